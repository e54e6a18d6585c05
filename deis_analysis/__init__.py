"""deis_analysis: every sampler of diffusion models a table of numbers, and every number measured.

See the README for the notation; start with `build`, `run` and `observed_order`.
"""

from typing import Any

from deis_analysis import diagnostics
from deis_analysis.analysis import (
    Measurement,
    OrderEstimate,
    amplification,
    distance,
    exact_transfer,
    exactness_degree,
    fokker_planck_residual,
    law_error,
    measure,
    observed_order,
    order_problem,
    output_law,
    step_counts,
    strong_distance,
    strong_order,
    transfer,
    weak_order,
)
from deis_analysis.brownian import BrownianPath
from deis_analysis.budget import ErrorBudget, error_budget
from deis_analysis.conventions import flow_model
from deis_analysis.denoiser import ideal_denoiser
from deis_analysis.distances import (
    Distance,
    diffused,
    energy_distance,
    gaussian_wasserstein2,
    wasserstein2,
    wasserstein2_between,
    wasserstein2_floor,
)
from deis_analysis.error import extrapolation_error, global_error, local_errors, transported_errors
from deis_analysis.grids import grid, two_stage_grid
from deis_analysis.inversion import Inversion, invert, round_trip_error
from deis_analysis.law_of_budget import LawBudget, law_budget
from deis_analysis.likelihood import Likelihood, bits_per_dim, log_likelihood, log_likelihood_rk45
from deis_analysis.many import run_many
from deis_analysis.mixture import GaussianMixture, ProductMixture
from deis_analysis.process import PREDICTIONS, VARIABLES, MeanReverting, Process
from deis_analysis.schedules import EDM, VE, RectifiedFlow, SubVP, VPCosine, VPDiscrete, VPLinear
from deis_analysis.solvers import (
    RUNGE_KUTTA,
    SOLVERS,
    ButcherTableau,
    Solver,
    adams,
    analytic_dpm,
    ancestral,
    bdia,
    belm,
    build,
    ddim_eta,
    ddpm,
    dpm_fast,
    edm_churn,
    edm_sampler,
    euler_maruyama,
    flow_sampler,
    flow_sde,
    gdss_splitting,
    ipndm,
    moment_estimate,
    mrs,
    obelm,
    one_sde_step,
    pndm,
    register,
    resfusion,
    resfusion_start,
    resnoise_weight,
    reverse_diffusion,
    reversible_heun,
    runge_kutta,
    singlestep,
    unipc,
)
from deis_analysis.steppers import (
    STEPPERS,
    Simulation,
    dynamic_thresholding,
    hand_over,
    langevin_gibbs,
    simulate,
    static_thresholding,
)
from deis_analysis.tableau import Butcher, Tableau, Trajectory, run
from deis_analysis.weights import phi, quadrature_weights

__version__ = "0.1.0"

_LAZY = {  # these need torch, or are not needed by most
    "reference_solution": "deis_analysis.reference",
    "Reference": "deis_analysis.reference",
    "reference_path": "deis_analysis.reference",
    "ReferencePath": "deis_analysis.reference",
    "audit_sampler": "deis_analysis.audit",
    "Report": "deis_analysis.audit",
    "extract": "deis_analysis.extraction",
    "Convention": "deis_analysis.extraction",
}

__all__ = [
    "EDM",
    "PREDICTIONS",
    "RUNGE_KUTTA",
    "SOLVERS",
    "STEPPERS",
    "VARIABLES",
    "VE",
    "BrownianPath",
    "Butcher",
    "ButcherTableau",
    "Convention",
    "Distance",
    "ErrorBudget",
    "GaussianMixture",
    "Inversion",
    "LawBudget",
    "Likelihood",
    "MeanReverting",
    "Measurement",
    "OrderEstimate",
    "Process",
    "ProductMixture",
    "RectifiedFlow",
    "Reference",
    "ReferencePath",
    "Report",
    "Simulation",
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
    "analytic_dpm",
    "ancestral",
    "audit_sampler",
    "bdia",
    "belm",
    "bits_per_dim",
    "build",
    "ddim_eta",
    "ddpm",
    "diagnostics",
    "diffused",
    "distance",
    "dpm_fast",
    "dynamic_thresholding",
    "edm_churn",
    "edm_sampler",
    "energy_distance",
    "error_budget",
    "euler_maruyama",
    "exact_transfer",
    "exactness_degree",
    "extract",
    "extrapolation_error",
    "flow_model",
    "flow_sampler",
    "flow_sde",
    "fokker_planck_residual",
    "gaussian_wasserstein2",
    "gdss_splitting",
    "global_error",
    "grid",
    "hand_over",
    "ideal_denoiser",
    "invert",
    "ipndm",
    "langevin_gibbs",
    "law_budget",
    "law_error",
    "local_errors",
    "log_likelihood",
    "log_likelihood_rk45",
    "measure",
    "moment_estimate",
    "mrs",
    "obelm",
    "observed_order",
    "one_sde_step",
    "order_problem",
    "output_law",
    "phi",
    "pndm",
    "quadrature_weights",
    "reference_path",
    "reference_solution",
    "register",
    "resfusion",
    "resfusion_start",
    "resnoise_weight",
    "reverse_diffusion",
    "reversible_heun",
    "round_trip_error",
    "run",
    "run_many",
    "runge_kutta",
    "simulate",
    "singlestep",
    "static_thresholding",
    "step_counts",
    "strong_distance",
    "strong_order",
    "transfer",
    "transported_errors",
    "two_stage_grid",
    "unipc",
    "wasserstein2",
    "wasserstein2_between",
    "wasserstein2_floor",
    "weak_order",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "learned":
        return import_module("deis_analysis.learned")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
