r"""Exponential Adams–Bashforth methods: DEIS's tAB, ρAB and log-ρ families, and iPNDM beside them.

All but iPNDM are points of one family, prediction × variable × degree.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from deis_analysis.grids import check_grid
from deis_analysis.process import PREDICTIONS, VARIABLES, Process
from deis_analysis.solvers.registry import Solver, assemble, register
from deis_analysis.tableau import Tableau
from deis_analysis.validate import choose, positive_int
from deis_analysis.weights import adams_weights


def adams(
    process: Process, ts: Any, degree: int, *, prediction: str = "eps", variable: str = "t", name: str = ""
) -> Tableau:
    r"""Exponential Adams–Bashforth: interpolate the prediction, integrate the interpolant exactly.

    With x_t = γ_t y_t the flow is dy = p(x_t, t) dκ_t, so with ℓ_j the Lagrange basis at the latest
    ``degree`` + 1 times

    .. math:: x_s = \frac{γ_s}{γ_t} x_t + γ_s \sum_j p_j \int_t^s ℓ_j(φ_u)\, dκ_u .

    The first steps use the nodes they have (degrees 0, 1, …), so the start is first order locally and the method's own
    global order is at most 2; with exact starting values it is ``degree`` + 1.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        degree: degree of the interpolant, DEIS's "order r", ≥ 0; 0 is DDIM for ``"eps"``.
        prediction: what is interpolated. variable: φ, in which it is.

    Raises:
        ValueError: degree < 0, unknown names, a bad grid, or times where κ or φ is infinite.

    Source: Zhang & Chen 2023, eq. 14–15 (ε, t) and sec. 3.3 (ε, ρ).
    """
    ts, degree = check_grid(process, ts), positive_int("degree", degree, minimum=0)
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    weights = adams_weights(process, prediction, variable, ts, degree)
    gamma = process.gamma(prediction, ts)
    states = np.diag(gamma[1:] / gamma[:-1], -1)
    return assemble(process, ts, states, _band(gamma[1:, None] * weights), prediction, name or f"adams{degree}")


def _band(rows: np.ndarray) -> np.ndarray:
    """(N + 1, N + 1) matrix whose row k + 1 holds ``rows[k]`` at the columns k, k − 1, …"""
    steps = rows.shape[0]
    outputs = np.zeros((steps + 1, steps + 1))
    for j in range(min(rows.shape[1], steps)):
        outputs[np.arange(j, steps) + 1, np.arange(steps - j)] = rows[j:, j]
    return outputs


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(process: Process, ts: Any, terms: int = 4) -> Tableau:
    r"""iPNDM: the classical Adams–Bashforth combination of ε, sent through the DDIM transfer.

    .. math:: x_s = Ψ(s, t) x_t + (σ_s - Ψ(s, t) σ_t)\, \hat ε , \qquad
              \hat ε = (55 ε_0 - 59 ε_1 + 37 ε_2 - 9 ε_3)/24

    and the shorter combinations at the start.  The weights assume equal steps of the variable that is integrated, but
    the steps are equal in t and the integral is over ρ: the order is 2 for every ``terms`` ≥ 2.

    Args:
        ts: (N + 1,) descending times. terms: number of ε combined, 1 (DDIM) to 4.

    Source: Liu et al. 2022 (PNDM), eq. 12, without its Runge–Kutta start: Zhang & Chen 2023, app. H.2.
    """
    ts = check_grid(process, ts)
    if positive_int("terms", terms) > len(ADAMS_BASHFORTH):
        raise ValueError(f"terms={terms} must be at most {len(ADAMS_BASHFORTH)}")
    gamma = process.gamma("eps", ts)
    transfer = gamma[1:] * adams_weights(process, "eps", "rho", ts, 0)[:, 0]
    rows = np.zeros((ts.size - 1, terms))
    for k in range(ts.size - 1):
        combination = ADAMS_BASHFORTH[min(k, terms - 1)]
        rows[k, : len(combination)] = transfer[k] * np.array(combination)
    return assemble(process, ts, np.diag(gamma[1:] / gamma[:-1], -1), _band(rows), "eps", f"ipndm{terms}")


_DEIS = "Zhang & Chen 2023 (arXiv 2204.13902)"
_FAMILIES = (
    ("tab", "t", 0, f"{_DEIS}, eq. 14-15"),
    ("rhoab", "rho", 0, f"{_DEIS}, sec. 3.3 (rhoAB)"),
    ("logrhoab", "lam", 1, f"{_DEIS}; log-rho variant of the authors' later implementation in diffusers"),
)
register(
    Solver(
        "ddim",
        partial(adams, degree=0, name="ddim"),
        "adams",
        1,
        1,
        0,
        f"Song et al. 2021 (arXiv 2010.02502), eq. 12 with eta = 0; {_DEIS}, prop. 2",
    )
)
for _prefix, _variable, _first, _source in _FAMILIES:
    for _degree in range(_first, 4):
        register(
            Solver(
                name=f"{_prefix}{_degree}",
                build=partial(adams, degree=_degree, variable=_variable, name=f"{_prefix}{_degree}"),
                family="adams",
                order=min(_degree + 1, 2),
                order_exact_start=_degree + 1,
                degree=_degree,
                variable=_variable,
                starting_steps=_degree,
                source=_source,
            )
        )
for _terms in range(1, 5):
    register(
        Solver(
            name=f"ipndm{_terms}",
            build=partial(ipndm, terms=_terms),
            family="ipndm",
            order=min(_terms, 2),
            order_exact_start=min(_terms, 2),
            degree=0,
            starting_steps=_terms - 1,
            source=f"Liu et al. 2022 (arXiv 2202.09778), eq. 12; {_DEIS}, app. H.2",
        )
    )
