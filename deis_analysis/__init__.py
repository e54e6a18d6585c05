"""deis_analysis: every sampler of diffusion models a table of numbers, and every number measured.

See the README for the notation; start with `build`, `run` and `observed_order`.
"""

from typing import Any

from deis_analysis.analysis import (
    Measurement,
    OrderEstimate,
    amplification,
    distance,
    exact_transfer,
    exactness_degree,
    measure,
    observed_order,
    order_problem,
    transfer,
)
from deis_analysis.denoiser import ideal_denoiser
from deis_analysis.error import extrapolation_error, global_error, local_errors, transported_errors
from deis_analysis.grids import grid
from deis_analysis.mixture import GaussianMixture, ProductMixture
from deis_analysis.process import PREDICTIONS, VARIABLES, MeanReverting, Process
from deis_analysis.schedules import EDM, VE, RectifiedFlow, SubVP, VPCosine, VPDiscrete, VPLinear
from deis_analysis.solvers import (
    RUNGE_KUTTA,
    SOLVERS,
    ButcherTableau,
    Solver,
    adams,
    build,
    ipndm,
    register,
    runge_kutta,
)
from deis_analysis.tableau import BrownianPath, Butcher, Tableau, Trajectory, run
from deis_analysis.weights import phi, quadrature_weights

__version__ = "0.1.0"

_LAZY = {"reference_solution": "deis_analysis.reference", "Reference": "deis_analysis.reference"}  # these need torch

__all__ = [
    "EDM",
    "PREDICTIONS",
    "RUNGE_KUTTA",
    "SOLVERS",
    "VARIABLES",
    "VE",
    "BrownianPath",
    "Butcher",
    "ButcherTableau",
    "GaussianMixture",
    "MeanReverting",
    "Measurement",
    "OrderEstimate",
    "Process",
    "ProductMixture",
    "RectifiedFlow",
    "Reference",
    "Solver",
    "SubVP",
    "Tableau",
    "Trajectory",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "__version__",
    "adams",
    "amplification",
    "build",
    "distance",
    "exact_transfer",
    "exactness_degree",
    "extrapolation_error",
    "global_error",
    "grid",
    "ideal_denoiser",
    "ipndm",
    "local_errors",
    "measure",
    "observed_order",
    "order_problem",
    "phi",
    "quadrature_weights",
    "reference_solution",
    "register",
    "run",
    "runge_kutta",
    "transfer",
    "transported_errors",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
