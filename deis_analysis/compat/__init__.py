"""Drop-ins for the interfaces of other packages: their scripts run here after a change of one import line.

`deis_analysis.compat.deis` stands in for ``th_deis`` and ``jax_deis``, the package that the authors of DEIS released.
"""

from deis_analysis.compat import deis

__all__ = ["deis"]
