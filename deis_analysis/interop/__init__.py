"""Drop-ins for the interfaces of other packages: their scripts run here after a change of one import line.

`deis_analysis.interop.deis` stands in for ``th_deis`` and ``jax_deis``, the package that the authors of DEIS released.
"""

from deis_analysis.interop import deis

__all__ = ["deis"]
