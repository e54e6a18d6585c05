"""Ground truth: DOPRI5 with a certificate by a second method, kept on disk."""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(__name__, {"flow": "Reference ReferencePath reference_path reference_solution"})
