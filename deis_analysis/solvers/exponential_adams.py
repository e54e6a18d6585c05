r"""Exponential Adams–Bashforth methods: DEIS's tAB, ρAB and log-ρ families, and iPNDM beside them.

All but iPNDM are points of one family, prediction × variable × degree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import PREDICTIONS, VARIABLES, Array, Process
from deis_analysis.solvers.noise import check_lam, step_noise
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import ADAMS_BASHFORTH, MOST_DEGREE, Integrals, adams_weights, clock
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import assemble
from deis_analysis.tableau.rows import band, subdiagonal
from deis_analysis.validate import boolean, checked, choose, positive_int

RULES = ("exact", "midpoint", "halved", "released")


@checked
def adams(
    process: Process,
    ts: Any,
    degree: int,
    *,
    prediction: str = "eps",
    variable: str = "t",
    lam_sde: float = 0.0,
    rule: str = "exact",
    lower_order_final: bool = False,
    name: str = "",
) -> Tableau:
    r"""Exponential Adams–Bashforth: interpolate the prediction, integrate the interpolant exactly.

    With x_t = γ_t y_t the flow is dy = p(x_t, t) dκ_t, so with ℓ_j the Lagrange basis at the latest
    ``degree`` + 1 times

    .. math:: x_s = \frac{γ_s}{γ_t} x_t + γ_s \sum_j p_j \int_t^s ℓ_j(φ_u)\, dκ_u .

    The first steps use the nodes they have (degrees 0, 1, …), so the start is first order locally and the method's own
    global order is at most 2; with exact starting values it is ``degree`` + 1.

    With ``lam_sde`` = λ > 0 the same is done for the mean of dx = [f x − ½(1 + λ²) g² score] dt + λ g dw, and each step
    adds the noise of that SDE, exactly: variance σ_s² (1 − (ρ_s/ρ_t)^{2λ²}) for x₀, α_s² λ² (ρ_t² − ρ_s²) otherwise.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        degree: degree of the interpolant, DEIS's "order r", 0 to 30; 0 is DDIM for ``"eps"``.
        prediction: what is interpolated. variable: φ, in which it is.
        lam_sde: λ of the λ-family, 0 to 1,000; 0 is the probability flow.
        rule: ``"exact"`` integral; ``"midpoint"``, the interpolant at the middle of the step in φ times Δκ (degree 1:
            DPM-Solver++ 2M as published); ``"halved"``, degree 2 with its leading coefficient at half weight (the
            published third order, see `dpm_solver`); ``"released"``, halved at degree 2 and midpoint at degree 1.
        lower_order_final: the last steps use degrees …, 1, 0.

    Raises:
        ValueError: degree or λ out of range (λ also where ρ^{λ²} overflows), unknown names, a bad grid, or times where
            κ or φ is infinite.

    Source: Zhang & Chen 2023, eq. 14–15 (ε, t), sec. 3.3 (ε, ρ), eq. 4 (the λ-family).
    """
    ts, degree = check_grid(process, ts), positive_int("degree", degree, minimum=0, most=MOST_DEGREE)
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    choose("rule", rule, RULES)
    lam_sde = check_lam(process, prediction, ts, lam_sde)
    gamma = clock(process, prediction, ts, lam_sde)
    steps = ts.size - 1
    used = np.minimum(np.arange(steps), degree)
    if boolean("lower_order_final", lower_order_final):
        used = np.minimum(used, np.arange(steps)[::-1])
    integrals = Integrals(process, prediction, variable, ts, lam_sde)
    weights = integrals.adams(used)
    for r in np.unique(used).tolist():
        rows = np.flatnonzero(used == r)
        weights[rows, : r + 1] = _ruled(integrals.increments, rows, weights[rows, : r + 1], rule)
    noise, intervals = step_noise(process, prediction, ts, lam_sde)
    states, outputs = subdiagonal(gamma[1:] / gamma[:-1]), band(gamma[1:, None] * weights)
    return assemble(process, ts, states, outputs, noise, prediction, name or f"adams{degree}", intervals=intervals)


def _ruled(gaps: Array, rows: Array, weights: Array, rule: str) -> Array:
    """The exact weights (N, r + 1) of the steps ``rows``, or what the rule makes of them."""
    r = weights.shape[1] - 1
    midpoint = rule == "midpoint" or (rule == "released" and r == 1)
    if r == 0 or not (midpoint or (rule in ("halved", "released") and r == 2)):
        return weights
    back = np.cumsum(gaps[rows[:, None] - 1 - np.arange(r)], axis=1) / gaps[rows, None]
    z = np.concatenate([np.zeros((rows.size, 1)), -back], axis=1)  # the nodes, in units of the step
    differences = z[:, :, None] - z[:, None, :] + np.eye(r + 1)
    if midpoint:
        basis = [np.prod(np.delete((0.5 - z) / differences[:, j], j, axis=1), axis=1) for j in range(r + 1)]
        return weights.sum(axis=1, keepdims=True) * np.stack(basis, axis=1)
    second_moment = np.sum(weights * z**2, axis=1, keepdims=True)
    return weights - 0.5 * second_moment / np.prod(differences, axis=2)


@checked
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
    return assemble(process, ts, subdiagonal(gamma[1:] / gamma[:-1]), band(rows), None, "eps", f"ipndm{terms}")


_DEIS = "Zhang & Chen 2023 (arXiv 2204.13902)"
_row = family(adams, family="adams")
_row("ddim", 1, 0, {"degree": 0}, source=f"Song et al. 2021 (arXiv 2010.02502), eq. 12 with eta = 0; {_DEIS}, prop. 2")
for _prefix, _variable, _first, _source in (
    ("tab", "t", 0, f"{_DEIS}, eq. 14-15"),
    ("rhoab", "rho", 0, f"{_DEIS}, sec. 3.3 (rhoAB)"),
    ("logrhoab", "lam", 1, f"{_DEIS}; log-rho variant of the authors' later implementation in diffusers"),
):
    for _degree in range(_first, 4):
        _row(
            f"{_prefix}{_degree}",
            min(_degree + 1, 2),
            _degree,
            {"degree": _degree, "variable": _variable},
            order_exact_start=_degree + 1,
            variable=_variable,
            starting_steps=_degree,
            source=_source,
        )

_row = family(ipndm, family="ipndm", source=f"Liu et al. 2022 (arXiv 2202.09778), eq. 12; {_DEIS}, app. H.2")
for _terms in range(1, 5):
    _row(f"ipndm{_terms}", min(_terms, 2), 0, {"terms": _terms}, starting_steps=_terms - 1)

_row = family(adams, family="sde_multistep", variable="lam", lam_sde=0.5, strong_order=1)
for _degree, _source in enumerate(("frozen eps; Ito sampler of azula 0.11", "extrapolated eps", "extrapolated eps")):
    _row(
        f"ito_eab{_degree + 1}",
        min(_degree + 1, 2),
        _degree,
        {"degree": _degree, "variable": "lam", "lam_sde": 0.5},
        starting_steps=_degree,
        source=f"{_DEIS}, eq. 4 with lambda = 1/2, {_source}",
    )

_row = family(adams, family="ipndm", variable="rho")
for _terms in range(2, 5):
    _row(
        f"ipndm_v{_terms}",
        2,
        _terms - 1,
        {"degree": _terms - 1, "variable": "rho"},
        order_exact_start=_terms,
        starting_steps=_terms - 1,
        source="variable-step iPNDM of diff-sampler (Zhou et al. 2024, arXiv 2312.00094), exact weights in rho",
    )
