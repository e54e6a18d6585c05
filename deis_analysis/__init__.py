"""deis_analysis: every sampler of diffusion models a table of numbers, and every number measured.

See the README for the notation; start with `build`, `run`, `sample` and `observed_order`.  Names are resolved when they
are asked for, so that the package imports in a moment; all else is reached as ``deis_analysis.solvers.X`` and so on.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_START = {  # module → the names that users start from: what ``__all__`` and ``dir`` show
    "process.schedules": "EDM VE RectifiedFlow SubVP VPCosine VPDiscrete VPLinear",
    "process.process": "MeanReverting Process",
    "process.convention": "Model",
    "process.grids": "grid",
    "tableau.tableau": "Tableau run",
    "tableau.many": "run_many",
    "tableau.brownian": "BrownianPath",
    "solvers": "SOLVERS Solver adams build register runge_kutta sample",
    "steppers": "STEPPERS simulate",
    "solvers.weights": "quadrature_weights",
    "problems.mixture": "GaussianMixture ProductMixture",
    "problems.denoiser": "ideal_denoiser",
    "reference.flow": "reference_path reference_solution",
    "analysis": "distance exactness_degree law_error measure observed_order output_law strong_order transfer "
    "weak_order",
    "analysis.budget": "error_budget",
    "analysis.laws_of_budget": "law_budget",
    "analysis.distances": "energy_distance wasserstein2",
    "analysis.likelihood": "log_likelihood",
    "tuning.choice": "choose",
    "tuning.tuned": "tune",
    "tableau.extraction": "extract",
    "audit": "audit_sampler",
    "tableau.inversion": "invert",
}
_MORE = {  # also reached as ``deis_analysis.X``, as in 0.1
    "process.process": "PREDICTIONS VARIABLES",
    "process.grids": "two_stage_grid",
    "tableau.tableau": "Butcher Trajectory",
    "solvers": "RUNGE_KUTTA ButcherTableau analytic_dpm ancestral bdia belm ddim_eta ddpm dpm_fast edm_churn "
    "edm_sampler euler_maruyama flow_sampler flow_sde gdss_splitting ipndm moment_estimate mrs obelm one_sde_step pndm "
    "resfusion resfusion_start resnoise_weight reverse_diffusion reversible_heun singlestep unipc",
    "steppers": "Simulation dynamic_thresholding hand_over langevin_gibbs static_thresholding",
    "solvers.weights": "phi",
    "problems.mixture": "UnresolvedFlowWarning order_problem",
    "process.convention": "Convention flow_model",
    "reference.flow": "Reference ReferencePath",
    "analysis": "Measurement OrderEstimate amplification exact_transfer step_counts strong_distance",
    "diagnostics.fokker_planck": "fokker_planck_residual",
    "analysis.errors": "extrapolation_error global_error local_errors transported_errors",
    "analysis.budget": "ErrorBudget",
    "analysis.laws_of_budget": "LawBudget",
    "analysis.distances": "Distance diffused gaussian_wasserstein2 wasserstein2_between wasserstein2_floor",
    "analysis.likelihood": "Likelihood bits_per_dim log_likelihood_rk45",
    "audit": "Report",
    "tableau.inversion": "Inversion round_trip_error",
}
_PACKAGES = [
    "analysis",
    "audit",
    "diagnostics",
    "interop",
    "networks",
    "plot",
    "problems",
    "process",
    "reference",
    "solvers",
    "steppers",
    "symbolic",
    "tableau",
    "tuning",
]
_WHERE = {name: module for table in (_START, _MORE) for module, names in table.items() for name in names.split()}

__all__ = sorted(["__version__", *(name for names in _START.values() for name in names.split())])


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name == "learned":  # as it was called in 0.1
        return import_module(f"{__name__}.networks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
