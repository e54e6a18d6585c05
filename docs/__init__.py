"""The docs site: Markdown by hand, and generators of what the registry, the figures and the commands know.

``python -m docs`` writes plain Markdown to ``build/docs``, which ``mkdocs build`` or another generator of sites reads.
"""
