r"""DPM-Solver, DPM-Solver++, their SDE forms and SEEDS: interpolation in λ, within a step or over several.

*Singlestep* methods are exponential Runge–Kutta methods with stages at shares r of the step in λ.  Every published
stage is an interpolant through some of the earlier stages, integrated exactly or by the midpoint rule, so a method is
three lines of data (`Stage`).  With ``lam_sde`` > 0 the same stages integrate the mean of the λ-family and carry one
noise path through the step: SEEDS.

*Multistep* methods are `adams` in (ε, λ) and (x₀, λ).  The third order as released, in DPM-Solver++ and in the packages
that follow it, weighs the second divided difference of the model output, which is f″h²/2, with the weight that belongs
to f″h²: half of what is needed (``rule="halved"``).  It therefore converges with order 2.  ``dpmpp_3m`` is that method,
``dpmpp_3m_exact`` the one with the integral done right; ``tests/solvers/test_literature.py`` shows the factor, and
the orders 2 and 3 are measured like every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import PREDICTIONS, Array, Process
from deis_analysis.solvers.exponential_adams import adams
from deis_analysis.solvers.noise import check_lam, noise_scale, rho_intervals
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import Integrals, clock
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Line, Recorder, combined
from deis_analysis.validate import boolean, checked, choose, positive_int, scalar


@dataclass(frozen=True)
class Stage:
    """One row of a step: integrate the interpolant through ``nodes`` from the step's start, exactly or by midpoint."""

    nodes: tuple[int, ...]
    midpoint: bool = False


def stages_of(order: int, taylor: bool = False) -> tuple[Stage, ...]:
    """The rows of DPM-Solver-``order``: intermediate stages, then the step itself."""
    if order == 1:
        return (Stage((0,)),)
    if order == 2:
        return Stage((0,)), Stage((0, 1), midpoint=not taylor)
    return Stage((0,)), Stage((0, 1)), Stage((0, 1, 2) if taylor else (0, 2))


_SHARES: dict[int, tuple[float, ...]] = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}


@checked
def singlestep(
    process: Process,
    ts: Any,
    order: int,
    *,
    prediction: str = "eps",
    shares: tuple[float, ...] | None = None,
    taylor: bool = False,
    lam_sde: float = 0.0,
    name: str = "",
) -> Tableau:
    r"""DPM-Solver-``order``: stages at λ_t + r h, h = λ_s − λ_t.

    With I[…] the exact integral over dκ of the interpolant in λ, y = x/γ,

    .. math:: y_1 = y + I_0^{r_1}[p_0] , \quad y_2 = y + I_0^{r_2}[p_0, p_1] , \quad y_s = y + I_0^1[p_0, p_2]

    for order 3.  That last row takes p₂ alone, whose order condition r₂/2 = ⅓ only r₂ = ⅔ meets: with other r₂ the
    method converges with order 2.  So does ``taylor``, whose last row then takes p₁ as well, a stage of order 1.  For
    order 2 the step takes the interpolant through p₀, p₁ at its middle: Δκ((1 − 1/2r₁) p₀ + p₁/2r₁).

    Args:
        ts: (N + 1,) descending times; ``order`` model calls per step.
        order: 1 (DDIM), 2 or 3.
        prediction: ``"eps"`` is DPM-Solver, ``"x0"`` is DPM-Solver++ (2S, 3S).
        shares: (r₁,) or (r₁, r₂), increasing, inside (0, 1); default ½ and ⅓, ⅔, for which ``order`` is the order of
            convergence; so it is with every r₁, but for order 3 with r₂ = ⅔ only.
        taylor: integrate the interpolant through all stages exactly.
        lam_sde: λ of the λ-family, 0 to 1,000; 1 is SEEDS, with each stage's noise carried on to the end of the step.

    Raises:
        ValueError: order not 1–3, shares not increasing inside (0, 1), a bad grid, or times where ρ is 0 or infinite.

    Source: Lu et al. 2022 (arXiv 2206.00927), alg. 1–2; Lu et al. 2022 (arXiv 2211.01095), alg. 1; Gonzalez et al. 2023
    (SEEDS, arXiv 2305.14267).
    """
    ts, order = check_grid(process, ts), _order(order)
    choose("prediction", prediction, PREDICTIONS)
    points = _with_stages(process, ts, _check_shares(order, shares))
    first = np.arange(ts.size - 1) * order
    parts = [(first, stages_of(order, boolean("taylor", taylor)))]
    lam_sde = check_lam(process, prediction, points, lam_sde)
    return _blocks(process, points, parts, prediction, lam_sde, name or f"singlestep{order}")


@checked
def dpm_fast(process: Process, ts: Any, *, prediction: str = "eps", name: str = "dpm_fast") -> Tableau:
    r"""DPM-Solver-fast: a budget of N model calls spent on steps of order 3, with the rest at the end.

    With N = 3K: K − 1 steps of order 3, one of order 2, one of order 1; 3K + 1: K of order 3, one of order 1; 3K + 2:
    K of order 3, one of order 2.  Step ends and stages are the given times, N + 1 of them.  The last step of order 1
    limits the order to 2.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 3.4 and app. D.
    """
    ts = check_grid(process, ts)
    orders = fast_orders(ts.size - 1)
    ends = np.cumsum([0, *orders])[:-1]
    parts = [
        (np.array([e for e, o in zip(ends, orders, strict=True) if o == order]), stages_of(order))
        for order in sorted(set(orders))
    ]
    return _blocks(process, ts, parts, prediction, 0.0, name)


def fast_orders(calls: int) -> list[int]:
    """The orders of the steps of DPM-Solver-fast for a budget of ``calls`` ≥ 1 model calls."""
    thirds, rest = divmod(positive_int("calls", calls), 3)
    return [3] * (thirds - 1) + [2, 1] if rest == 0 else [3] * thirds + [rest]


def _order(order: int) -> int:
    if positive_int("order", order) > 3:
        raise ValueError(f"order={order} must be 1, 2 or 3")
    return int(order)


def _check_shares(order: int, shares: tuple[float, ...] | None) -> tuple[float, ...]:
    if shares is None:
        return _SHARES[order]
    listed = isinstance(shares, (tuple, list, np.ndarray))
    values = tuple(scalar("shares", r) for r in shares) if listed else ()
    if (
        not listed
        or len(values) != order - 1
        or not all(a < b for a, b in zip((0.0, *values), (*values, 1.0), strict=True))
    ):
        raise ValueError(f"shares={shares!r} must be {order - 1} increasing numbers inside (0, 1)")
    return values


def _with_stages(process: Process, ts: Array, shares: tuple[float, ...]) -> Array:
    """The grid with each step's stage times between its ends."""
    lam = process.lam(ts)
    if not np.all(np.isfinite(lam)):
        bad = float(ts[~np.isfinite(lam)][0])
        raise ValueError(f"t={bad!r}: λ is infinite there on {process!r}; allowed: times with 0 < ρ < ∞")
    stages = [process.time_from_lam(lam[:-1] + r * np.diff(lam)) for r in shares]
    points = np.append(np.stack([ts[:-1], *stages], axis=1).reshape(-1), ts[-1])
    if not np.all(np.diff(points) < 0):
        bad = int(np.flatnonzero(np.diff(points) >= 0)[0]) // (len(shares) + 1)
        raise ValueError(
            f"ts={float(ts[bad])!r} to {float(ts[bad + 1])!r}: too short a step for {len(shares)} stages in float64"
        )
    return points


def _blocks(
    process: Process,
    points: Array,
    parts: list[tuple[Array, tuple[Stage, ...]]],
    prediction: str,
    lam_sde: float,
    name: str,
) -> Tableau:
    """A table whose nodes are ``points``, in steps that begin at ``first`` and have the rows ``stages``."""
    integrals = Integrals(process, prediction, "lam", points, lam_sde)
    steps = {}
    for first, stages in parts:
        weights = [_stage_weights(integrals, first, stop, stage).tolist() for stop, stage in enumerate(stages, 1)]
        for n, k in enumerate(first.tolist()):
            steps[k] = [(stage.nodes, w[n]) for stage, w in zip(stages, weights, strict=True)]
    gamma = clock(process, prediction, points, lam_sde).tolist()
    if lam_sde:
        scale = process.sigma(points)[1:] * noise_scale(process, prediction, points, lam_sde) / gamma[1:]
        intervals = rho_intervals(process, points)
    r = Recorder(process, points[[*sorted(steps), -1]], prediction)
    x = r.x_T
    for k, rows in sorted(steps.items()):
        y, p, noise = x / gamma[k], [r.call(x)], Line({})
        for stop, (nodes, w) in enumerate(rows, k + 1):
            if lam_sde:
                noise = noise + scale[stop - 1] * r.noise(intervals[stop - 1])
            u = gamma[stop] * (y + combined(w, [p[j] for j in nodes]) + noise)
            if stop < k + len(rows):
                p.append(r.call(u, points[stop]))
        x = r.node(u)
    return r.tableau(name)


def _stage_weights(integrals: Integrals, first: Array, stop: int, stage: Stage) -> Array:
    """(N, n) weights in y of one stage of the steps that begin at ``first``."""
    if not stage.midpoint:
        return integrals.weights(first, 0, stop, stage.nodes)
    whole, gaps = integrals.weights(first, 0, stop, (0,)), integrals.increments
    share = (gaps[first] / sum(gaps[first + k] for k in range(stop)))[:, None]
    late = 0.5 / share
    late = np.where(np.abs(late - 1.0) < 1e-13, 1.0, late)  # a stage in the middle takes all the weight
    return np.concatenate([whole * (1.0 - late), whole * late], axis=1)


_DPM, _PP, _SEEDS = (
    "Lu et al. 2022 (DPM-Solver, arXiv 2206.00927)",
    "Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095)",
    "Gonzalez et al. 2023 (SEEDS, arXiv 2305.14267)",
)


_THIRD = "singlestep third order of the authors' package"
_row = family(singlestep, family="dpm_singlestep", variable="lam")
for _prediction, _prefix, _letter, _third in (("eps", f"{_DPM}, ", "", "alg. 2"), ("x0", f"{_PP}, ", "s", _THIRD)):
    _solver = "dpm" if _prediction == "eps" else "dpmpp"
    for _stages, _taylor, _degree, _source in (
        (1, False, 0, "first order, DDIM"),
        (2, False, 0, "alg. 1"),
        (2, True, 1, "alg. 1"),
        (3, False, 1, _third),
        (3, True, 2, _third),
    ):
        _row(
            f"{_solver}_{_stages}{_letter if _stages > 1 else ''}{'_taylor' if _taylor else ''}",
            _stages,
            _degree,
            {"order": _stages, "prediction": _prediction, "taylor": _taylor},
            prediction=_prediction,
            stages=_stages,
            source=_prefix + _source,
        )
_row("dpm_fast", 2, 1, build=dpm_fast, final_steps=2, block=3, source=f"{_DPM}, sec. 3.4")

_row = family(adams, family="dpm_multistep", variable="lam")
for _name, _prediction, _degree, _rule, _exact_start, _exactness, _source in (
    ("dpm_2m", "eps", 1, "midpoint", 2, 0, f"{_DPM}; multistep form of the authors' package"),
    ("dpm_2m_taylor", "eps", 1, "exact", 2, 1, f"{_DPM}; multistep, exact weights"),
    ("dpm_3m", "eps", 2, "released", 2, 1, f"{_DPM}; multistep form of the authors' package"),
    ("dpm_3m_exact", "eps", 2, "exact", 3, 2, f"{_DPM}; multistep, exact weights"),
    ("dpmpp_2m", "x0", 1, "midpoint", 2, 0, f"{_PP}, alg. 2"),
    ("dpmpp_2m_exact", "x0", 1, "exact", 2, 1, f"{_PP}, alg. 2 with exact weights"),
    ("dpmpp_3m", "x0", 2, "released", 2, 1, f"{_PP}; third order of the authors' package"),
    ("dpmpp_3m_exact", "x0", 2, "exact", 3, 2, f"{_PP}; third order with exact weights"),
):
    _row(
        _name,
        2,
        _exactness,
        {"degree": _degree, "prediction": _prediction, "variable": "lam", "rule": _rule},
        order_exact_start=_exact_start,
        prediction=_prediction,
        starting_steps=_degree,
        source=_source,
    )

_SDE = {"variable": "lam", "lam_sde": 1.0, "strong_order": 1}
_row = family(adams, family="sde_multistep", **_SDE)
for _prefix, _prediction, _of in (("sde_dpm", "eps", "noise"), ("sde_dpmpp", "x0", "data")):
    for _suffix, _degree, _rule, _exactness in (
        ("1", 0, "exact", 0),
        ("2m", 1, "midpoint", 0),
        ("2m_exact", 1, "exact", 1),
        ("3m", 2, "halved", 1),
        ("3m_exact", 2, "exact", 2),
    ):
        _source = f"{_PP}, SDE forms" if _degree < 2 else f"k-diffusion's 3M SDE (0.1.1), for the {_of} prediction"
        _row(
            f"{_prefix}_{_suffix}",
            min(_degree + 1, 2),
            _exactness,
            {"degree": _degree, "prediction": _prediction, "variable": "lam", "rule": _rule, "lam_sde": 1.0},
            prediction=_prediction,
            starting_steps=_degree,
            source=_source + ", exact weights" * _suffix.endswith("exact"),
        )
_row = family(singlestep, family="seeds", **_SDE)
for _stages in (1, 2, 3):
    for _suffix, _prediction in (("", "eps"), ("_x0", "x0")):
        _row(
            f"seeds_{_stages}{_suffix}",
            min(_stages, 2),
            int(_stages == 3),
            {"order": _stages, "prediction": _prediction, "lam_sde": 1.0},
            prediction=_prediction,
            stages=_stages,
            source=f"{_SEEDS}, SEEDS-{_stages}",
        )
