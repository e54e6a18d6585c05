"""Samplers: functions from (process, grid) to a table, a file per family, and the registry of all of them.

Every file of this folder is loaded, and registers its rows: a new one needs no entry in a list.
"""

from importlib import import_module
from pkgutil import iter_modules

from deis_analysis.solvers.baselines import ei_score, euler
from deis_analysis.solvers.dpm_solver import dpm_fast, singlestep
from deis_analysis.solvers.edm import edm_churn, edm_sampler
from deis_analysis.solvers.exponential_adams import adams, ipndm
from deis_analysis.solvers.exponential_rk import RUNGE_KUTTA, ButcherTableau, runge_kutta
from deis_analysis.solvers.flow import flow_sampler, flow_sde, gdss_splitting
from deis_analysis.solvers.mean_reverting import mrs, resfusion, resfusion_start, resnoise_weight
from deis_analysis.solvers.predictor_corrector import unipc
from deis_analysis.solvers.pseudo_multistep import pndm
from deis_analysis.solvers.registry import SOLVERS, Solver, build, register, sample
from deis_analysis.solvers.reversible import bdia, belm, obelm, reversible_heun
from deis_analysis.solvers.stochastic import (
    analytic_dpm,
    ancestral,
    ddim_eta,
    ddpm,
    euler_maruyama,
    moment_estimate,
    one_sde_step,
    reverse_diffusion,
)

__all__ = [
    "RUNGE_KUTTA",
    "SOLVERS",
    "ButcherTableau",
    "Solver",
    "adams",
    "analytic_dpm",
    "ancestral",
    "bdia",
    "belm",
    "build",
    "ddim_eta",
    "ddpm",
    "dpm_fast",
    "edm_churn",
    "edm_sampler",
    "ei_score",
    "euler",
    "euler_maruyama",
    "flow_sampler",
    "flow_sde",
    "gdss_splitting",
    "ipndm",
    "moment_estimate",
    "mrs",
    "obelm",
    "one_sde_step",
    "pndm",
    "register",
    "resfusion",
    "resfusion_start",
    "resnoise_weight",
    "reverse_diffusion",
    "reversible_heun",
    "runge_kutta",
    "sample",
    "singlestep",
    "unipc",
]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
