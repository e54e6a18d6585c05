"""Drop-ins for the interfaces of other packages: their scripts run here after a change of one import line.

`deis_analysis.interop.deis` stands in for ``th_deis`` and ``jax_deis``, the package that the authors of DEIS released.
`deis_analysis.interop.published` holds tuned samplers as their authors released them, as tables.
"""

from deis_analysis.interop import deis, published

__all__ = ["deis", "published"]
