"""The witness by computer algebra: closed forms, and derivations that are compared with the quadrature."""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(__name__, {"derivations": ""})
