"""Diagnostics of models and of the systems around a sampler, each checked against a closed form.

A score field by itself:

* `fokker_planck`: how far it is from the score of the process's own marginals; the ODE–SDE gap of a linear score.
* `conservativity`: how far it is from being a gradient.
* `martingale`: how far a stochastic step is from keeping E[x₀ | x_t].
* `stiffness`: stiffness and local error, from model calls that a table makes anyway.

Systems next to it:

* `flow_map`: the flow between two times as one map, its semigroup and its mean velocity.
* `painters`: the Gaussian closed form as a start for a solver.
* `log_normal`: multiplicative noise as variance-exploding diffusion in log x.
* `posterior`: conditioning on a linear-Gaussian measurement.
* `interpolants`: flows and SDEs between two mixtures.
"""

from deis_analysis.diagnostics.conservativity import Asymmetry, as_score, jacobian_asymmetry, loop_integral
from deis_analysis.diagnostics.flow_map import (
    FlowMap,
    mean_velocity,
    mean_velocity_residual,
    semigroup_defect,
    table_flow,
)
from deis_analysis.diagnostics.fokker_planck import Gap, fokker_planck_residual, linear_score_gap, time_derivative
from deis_analysis.diagnostics.martingale import (
    MartingaleDefect,
    SampledDefect,
    martingale_defect,
    sampled_martingale_defect,
)
from deis_analysis.diagnostics.stiffness import (
    EmbeddedError,
    StiffnessEstimate,
    embedded_error,
    embedded_nodes,
    equal_time_pairs,
    stiffness_estimates,
)
from deis_analysis.problems.interpolants import Interpolant, Scale
from deis_analysis.problems.log_normal import MultiplicativeNoise
from deis_analysis.problems.painters import gaussian_of, teleport
from deis_analysis.problems.posterior import components, condition, moment_closure

__all__ = [
    "Asymmetry",
    "EmbeddedError",
    "FlowMap",
    "Gap",
    "Interpolant",
    "MartingaleDefect",
    "MultiplicativeNoise",
    "SampledDefect",
    "Scale",
    "StiffnessEstimate",
    "as_score",
    "components",
    "condition",
    "embedded_error",
    "embedded_nodes",
    "equal_time_pairs",
    "fokker_planck_residual",
    "gaussian_of",
    "jacobian_asymmetry",
    "linear_score_gap",
    "loop_integral",
    "martingale_defect",
    "mean_velocity",
    "mean_velocity_residual",
    "moment_closure",
    "sampled_martingale_defect",
    "semigroup_defect",
    "stiffness_estimates",
    "table_flow",
    "teleport",
    "time_derivative",
]
