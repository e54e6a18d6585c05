"""The figures and tables of Zhang & Chen 2023 (arXiv 2204.13902), redrawn, and what its claims come to."""
