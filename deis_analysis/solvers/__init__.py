"""Samplers: functions from (process, grid) to a table, a file per family, and the registry of all of them."""

from deis_analysis.solvers.baselines import ei_score, euler
from deis_analysis.solvers.exponential_adams import adams, ipndm
from deis_analysis.solvers.exponential_rk import RUNGE_KUTTA, ButcherTableau, runge_kutta
from deis_analysis.solvers.registry import SOLVERS, Solver, build, register

__all__ = [
    "RUNGE_KUTTA",
    "SOLVERS",
    "ButcherTableau",
    "Solver",
    "adams",
    "build",
    "ei_score",
    "euler",
    "ipndm",
    "register",
    "runge_kutta",
]
