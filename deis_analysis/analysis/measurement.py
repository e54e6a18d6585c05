r"""What a table computes, read off the table: exactness, order, transfer function, amplification, distance.

The registry's claims are measured here (`measure`); ``tests/solvers/test_solvers.py`` demands that each is met exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis.analysis.exactness import step_moment
from deis_analysis.analysis.law import affine_form, cells, check_table
from deis_analysis.analysis.orders import OrderEstimate, observed_order, strong_order, weak_order
from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.grids import grid
from deis_analysis.process.process import VARIABLES, Array, Process, require_process
from deis_analysis.solvers.registry import Solver
from deis_analysis.tableau import Tableau
from deis_analysis.validate import checked, choose, finite, instance, nonnegative, positive_int

_SAME_END = 1e-9  # relative difference of ends of noise intervals that count as one


# -- comparing and probing a table ----------------------------------------------------------------
@checked
def distance(a: Tableau, b: Tableau, *, times: bool = True) -> float:
    """Largest absolute difference of the Butcher forms: coefficients and, unless ``times=False``, told times.

    Noises are compared as a law: the covariance that each part of the ρ² clock gives the states, so that the sign and
    the order of columns do not matter, and their intervals do.  Infinite when the numbers of model calls, or the means,
    differ.  Two samplers are the same method iff this is 0.

    Raises:
        ValueError: the tables predict different things (see `Tableau.in_terms_of`), or one is not a table.
    """
    instance("a", a, Tableau)
    instance("b", b, Tableau)
    if a.prediction != b.prediction:
        raise ValueError(f"tab_b predicts {b.prediction!r}; allowed: {a.prediction!r}, convert with in_terms_of")
    p, q = a.butcher(), b.butcher()
    if p.weights.shape != q.weights.shape:
        return float("inf")
    if (a.mean is None) != (b.mean is None) or (a.mean is not None and not np.array_equal(a.mean, b.mean)):
        return float("inf")
    pairs = [(p.start, q.start), (p.weights, q.weights)] + ([(p.times, q.times)] if times else [])
    gaps = [float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs]
    return max(*gaps, _noise_distance(p.noise, a.intervals, q.noise, b.intervals))


def _noise_distance(p: Array, at_p: Array, q: Array, at_q: Array) -> float:
    r"""Root of the sum, over the cells between all ends of intervals, of (max|C_p − C_q|²/max(C_p, C_q)).

    C is the covariance that the cell's part of the path gives the rows: Σ_l s_l N_l N_lᵀ, s_l the share of interval l
    that is in the cell.  For one noise of coefficients n and n + δ on one interval it is about 2|δ|.
    """
    cuts, total = cells(at_p, at_q), 0.0
    for high, low in pairwise(cuts):
        found = []
        for noise, intervals in ((p, at_p), (q, at_q)):
            inside = (intervals[:, 0] >= high * (1 - _SAME_END)) & (intervals[:, 1] <= low * (1 + _SAME_END))
            share = np.sqrt((high - low) / (intervals[inside, 0] - intervals[inside, 1]))
            found.append(noise[:, inside] * share)
        moved = np.any(found[0] != 0, axis=1) | np.any(found[1] != 0, axis=1)
        covariances = [n[moved] @ n[moved].T for n in found]
        size = max(float(np.abs(c).max(initial=0.0)) for c in covariances)
        total += float(np.abs(covariances[0] - covariances[1]).max()) ** 2 / size if size else 0.0
    return total**0.5


@checked
def transfer(tableau: Tableau, process: Process, variance: Any) -> Array:
    r"""The factor by which the table maps x_T when the data are N(0, variance): its stability function.

    For such data the prediction is linear in x, p = c(t) x, so the recurrence is a number per variance; the exact flow
    has the factor √((α_s² v + σ_s²)/(α_t² v + σ_t²)).  Exact, no sampling.

    Args:
        variance: variances of the principal axes, any shape, ≥ 0.

    Returns:
        array of the shape of ``variance``.

    Raises:
        ValueError: a table that draws noise; variances that are negative or not finite.
    """
    check_table(tableau, process)
    if tableau.stochastic:
        raise ValueError(f"tableau {tableau.name!r} draws noise; allowed: deterministic tables")
    v = finite("variance", variance, 0.0)
    return affine_form(tableau, process, 0.0, v.reshape(-1))[0].reshape(v.shape)


@checked
def exact_transfer(process: Process, variance: Any, t_start: float, t_end: float) -> Array:
    """The factor of the exact probability flow on N(0, variance): √((α_s² v + σ_s²)/(α_t² v + σ_t²)).

    Raises:
        ValueError: variances that are negative or not finite; nothing is left at ``t_start`` to be scaled.
    """
    v = finite("variance", variance, 0.0)
    ends = (require_process(process)._check_scalar(t, name) for t, name in ((t_start, "t_start"), (t_end, "t_end")))
    start, end = (float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2 for t in ends)
    if np.any(start == 0):
        raise ValueError(f"t_start={t_start!r}: data of variance 0 are a point there; allowed: times with σ > 0")
    return np.sqrt(end / start)


# -- exactness ------------------------------------------------------------------------------------
@checked
def exactness_degree(
    tableau: Tableau,
    process: Process,
    prediction: str,
    variable: str,
    *,
    lam_sde: float = 0.0,
    max_degree: int = 6,
    tolerance: float = 1e-9,
) -> Array:
    """Per step, the largest d such that the step is exact when the prediction is any polynomial of degree ≤ d.

    Each step is taken from exact earlier states, with the prediction a given function of time, φ(t)^m; its result is
    compared with ∫ φ^m dκ.  A table in another prediction is converted first.  Of a stochastic table the mean is
    taken, and compared with that of the λ-family of SDEs with ``lam_sde`` = λ.

    Returns:
        (N,) integers between −1 (not even constants) and ``max_degree``, one per step of the grid.
    """
    instance("tableau", tableau, Tableau)
    require_process(process)
    positive_int("max_degree", max_degree, minimum=0)
    nonnegative("tolerance", tolerance), nonnegative("lam_sde", lam_sde, 100.0), choose("variable", variable, VARIABLES)
    table = tableau if tableau.prediction == prediction else tableau.in_terms_of(process, prediction)
    nodes = table.grid_nodes
    degrees = np.full(len(nodes) - 1, -1)
    for i, (first, last) in enumerate(pairwise(nodes)):
        for m in range(max_degree + 1):
            found, exact, scale = step_moment(table, process, prediction, variable, first, last, m, lam_sde)
            if scale and abs(found - exact) / scale > tolerance:
                break
            degrees[i] = m
    return degrees


# -- the registry's claims, measured --------------------------------------------------------------
@dataclass(frozen=True)
class Measurement:
    """What `measure` found for a registry row; each field has a declared twin in `Solver`.

    Attributes:
        order, order_exact_start: estimates with the method's own start and with an exact one (None: stochastic). The
            order of a stochastic row is that of its law on Gaussian data.
        strong_order: of the paths of stochastic rows on Gaussian data, None for deterministic ones.
        degree: exactness degree after the start-up.
        stages, extra_calls: model calls are ``stages`` · N + ``extra_calls``; stages is −1 if they follow no such rule.
        stochastic: whether the tables draw noise.
    """

    order: OrderEstimate
    order_exact_start: OrderEstimate | None
    strong_order: OrderEstimate | None
    degree: int
    stages: int
    extra_calls: int
    stochastic: bool


@checked
def measure(row: Solver) -> Measurement:
    """Measure what a registry row declares; ValueError unless ``row`` is a `Solver`."""
    instance("row", row, Solver)
    process, mix, options = order_problem(row.home)
    calls = {n: row.build(process, grid(process, n, "t2")).nfe for n in (12, 18, 24)}
    stages, rest = divmod(calls[18] - calls[12], 6)
    linear = rest == 0 and calls[24] - calls[18] == calls[18] - calls[12]
    table = row.build(process, grid(process, 12, "t2"))
    degrees = exactness_degree(table, process, row.prediction, row.variable, lam_sde=row.lam_sde)
    middle = degrees[row.starting_steps : degrees.size - row.final_steps]
    found: dict[str, OrderEstimate | None] = {"order_exact_start": None, "strong_order": None}
    if table.stochastic:
        found["order"] = weak_order(row, process, step_counts(row, "weak"), **options)
        found["strong_order"] = strong_order(row, process, step_counts(row, "strong"), **options)
    else:
        for field, start in (("order", "own"), ("order_exact_start", "exact")):
            found[field] = observed_order(row, process, mix, step_counts(row, start), start=start, **options)
    return Measurement(
        degree=int(middle.min()),
        stages=stages if linear else -1,
        extra_calls=calls[12] - 12 * stages if linear else 0,
        stochastic=table.stochastic,
        **found,  # type: ignore[arg-type]
    )


_COUNTS = {"own": (40, 80, 160, 320), "exact": (40, 80, 160, 320), "weak": (20, 40, 80, 160), "strong": (20, 40, 80)}


@checked
def step_counts(row: Solver, start: str) -> tuple[int, ...]:
    """Step counts at which a row's order is measured: ``"own"`` or ``"exact"`` start, ``"weak"`` or ``"strong"``.

    A low-order start needs many steps to show; whole blocks only.
    """
    instance("row", row, Solver)
    counts = _COUNTS[choose("start", start, _COUNTS)]
    if start == "own" and row.starting_steps:
        counts = (160, 320, 640, 1280)
    if start == "weak" and row.starting_steps > 1:
        counts = (320, 640, 1280)
    base = -(-counts[0] // row.block) * row.block
    return tuple(base * 2**i for i in range(len(counts)))
