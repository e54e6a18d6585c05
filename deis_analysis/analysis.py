r"""What a table computes, read off the table: exactness, order, transfer function, amplification, distance.

The registry's claims are measured here (`measure`); ``tests/test_solvers.py`` demands that each is met exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis.grids import grid
from deis_analysis.mixture import GaussianMixture, ProductMixture
from deis_analysis.process import Array, Process
from deis_analysis.schedules import VPLinear
from deis_analysis.solvers import SOLVERS, Solver
from deis_analysis.tableau import Model, Tableau
from deis_analysis.validate import choose, positive_int, real
from deis_analysis.weights import _intervals

Builder = Callable[[Process, Array], Tableau]
Exact = GaussianMixture | ProductMixture


# -- comparing and probing a table ----------------------------------------------------------------
def distance(a: Tableau, b: Tableau, *, times: bool = True) -> float:
    """Largest absolute difference of the Butcher forms: coefficients and, unless ``times=False``, told times.

    Infinite when the numbers of model calls or noises, or the means, differ.  Two samplers are the same method iff
    this is 0.

    Raises:
        ValueError: the tables predict different things (see `Tableau.in_terms_of`).
    """
    if a.prediction != b.prediction:
        raise ValueError(f"tab_b predicts {b.prediction!r}; allowed: {a.prediction!r}, convert with in_terms_of")
    p, q = a.butcher(), b.butcher()
    if p.weights.shape != q.weights.shape or p.noise.shape != q.noise.shape:
        return float("inf")
    if (a.mean is None) != (b.mean is None) or (a.mean is not None and not np.array_equal(a.mean, b.mean)):
        return float("inf")
    pairs = [(p.start, q.start), (p.weights, q.weights), (p.noise, q.noise)] + ([(p.times, q.times)] if times else [])
    return max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs)


def amplification(tableau: Tableau) -> float:
    """Σ |weights| of the model outputs in the result: the gain of an error of size 1 in every model call."""
    return float(np.sum(np.abs(tableau.butcher().weights[-1])))


def transfer(tableau: Tableau, process: Process, variance: Any) -> Array:
    r"""The factor by which the table maps x_T when the data are N(0, variance): its stability function.

    For such data the prediction is linear in x, p = c(t) x, so the recurrence is a number per variance; the exact flow
    has the factor √((α_s² v + σ_s²)/(α_t² v + σ_t²)).  Exact, no sampling.

    Args:
        variance: variances of the principal axes, any shape, ≥ 0.

    Returns:
        array of the shape of ``variance``.
    """
    if tableau.stochastic:
        raise ValueError(f"tableau {tableau.name!r} draws noise; allowed: deterministic tables")
    v = real("variance", variance)
    if not (np.all(np.isfinite(v)) and np.all(v >= 0)):
        raise ValueError(f"variance={variance!r} must be finite and >= 0")
    alpha, sigma = process.alpha(tableau.times), process.sigma(tableau.times)
    factors = np.zeros((tableau.times.size, *v.shape))
    outputs = np.zeros_like(factors)
    factors[0] = 1.0
    for k in range(tableau.times.size):
        if k:
            factors[k] = np.tensordot(tableau.states[k, :k], factors[:k], 1)
            factors[k] += np.tensordot(tableau.outputs[k, :k], outputs[:k], 1)
        if k in tableau.evaluated:
            total = alpha[k] ** 2 * v + sigma[k] ** 2
            part_x0, part_eps = process.prediction_parts(tableau.prediction, tableau.times[k])
            outputs[k] = factors[k] * (part_x0 * alpha[k] * v + part_eps * sigma[k]) / total
    return factors[-1]


def exact_transfer(process: Process, variance: Any, t_start: float, t_end: float) -> Array:
    """The factor of the exact probability flow on N(0, variance): √((α_s² v + σ_s²)/(α_t² v + σ_t²))."""
    v = real("variance", variance)
    start, end = (float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2 for t in (t_start, t_end))
    return np.sqrt(end / start)


# -- exactness ------------------------------------------------------------------------------------
def exactness_degree(
    tableau: Tableau, process: Process, prediction: str, variable: str, *, max_degree: int = 6, tolerance: float = 1e-9
) -> Array:
    """Per step, the largest d such that the step is exact when the prediction is any polynomial of degree ≤ d.

    Each step is taken from exact earlier states, with the prediction a given function of time, φ(t)^m; its result is
    compared with ∫ φ^m dκ.  A table in another prediction is converted first.

    Returns:
        (N,) integers between −1 (not even constants) and ``max_degree``, one per step of the grid.
    """
    positive_int("max_degree", max_degree, minimum=0)
    table = tableau if tableau.prediction == prediction else tableau.in_terms_of(process, prediction)
    nodes = table.grid_nodes
    degrees = np.full(len(nodes) - 1, -1)
    for i, (first, last) in enumerate(pairwise(nodes)):
        for m in range(max_degree + 1):
            if _defect(table, process, prediction, variable, first, last, m) > tolerance:
                break
            degrees[i] = m
    return degrees


def _defect(
    table: Tableau, process: Process, prediction: str, variable: str, first: int, last: int, power: int
) -> float:
    """Relative residual of the step ``first`` → ``last`` on z^power, z = (φ − φ_first)/(φ_last − φ_first)."""
    rows = slice(first + 1, last + 1)
    used = np.any(table.states[rows] != 0, axis=0) | np.any(table.outputs[rows] != 0, axis=0)
    used[[first, last]] = True
    index = np.flatnonzero(used)
    points = np.unique(table.times[index])[::-1]
    at = {int(k): int(np.flatnonzero(points == table.times[k])[0]) for k in index}
    measure, offsets, gaps = _intervals(process, prediction, variable, points)
    position = _outward(gaps, at[first])
    length = position[at[last]]
    z = position / length
    y = _outward(np.sum(measure * ((position[:-1, None] + offsets) / length) ** power, axis=1), at[first])
    gamma = process.gamma(prediction, points)
    outputs = {k: z[j] ** power for k, j in at.items()}
    states = {k: gamma[j] * y[j] for k, j in at.items() if k <= first}
    scale = abs(gamma[at[last]] * y[at[last]])
    for k in range(first + 1, last + 1):
        terms = [table.states[k, j] * states[int(j)] for j in np.flatnonzero(table.states[k])]
        terms += [table.outputs[k, j] * outputs[int(j)] for j in np.flatnonzero(table.outputs[k])]
        states[k] = sum(terms)
        scale = max(scale, max(map(abs, terms), default=0.0))
    return float(abs(states[last] - gamma[at[last]] * y[at[last]]) / scale) if scale else 0.0


def _outward(gaps: Array, origin: int) -> Array:
    """Positions of the points between which ``gaps`` lie, from the one at ``origin``, summed away from it."""
    return np.concatenate([-np.cumsum(gaps[:origin][::-1])[::-1], [0.0], np.cumsum(gaps[origin:])])


# -- order ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class OrderEstimate:
    """A measured order of convergence.

    Attributes:
        slope: of log error against log(1/steps), by regression over ``window``.
        standard_error: of the slope.
        steps, errors: all that was run; errors are root mean squares over the samples.
        window: the step counts in the asymptotic window that the regression used.
        asymptotic: whether the local slopes of the window agree within 0.1; if not, the three finest step counts were
            used, and the slope is not yet the order.
    """

    slope: float
    standard_error: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    window: tuple[int, ...]
    asymptotic: bool


def walk(tableau: Tableau, model: Model, exact: dict[int, Any]) -> dict[int, Any]:
    """Run a table with states imposed at some nodes; returns every node's state as its row computed it.

    With the exact states of the first nodes this is a run with exact start; with those of all grid nodes, each
    computed state minus the exact one is a local error.
    """
    if tableau.stochastic:
        raise ValueError(f"tableau {tableau.name!r} draws noise; allowed: deterministic tables")
    if tableau.mean is not None:
        mean, inner = tableau.mean, replace(tableau, mean=None)
        shift = mean if tableau.prediction == "x0" else 0.0
        centred = walk(inner, lambda y, t: model(y + mean, t) - shift, {k: x - mean for k, x in exact.items()})
        return {k: y + mean for k, y in centred.items()}
    computed: dict[int, Any] = {}
    outputs: dict[int, Any] = {}
    states: dict[int, Any] = {}
    for row in tableau._plan:
        k = row.node
        if k == 0:
            computed[0] = exact[0]
        else:
            terms = [c * states[j] for c, j in row.states] + [c * outputs[j] for c, j in row.outputs]
            computed[k] = sum(terms[1:], start=terms[0])
        states[k] = exact.get(k, computed[k])
        if row.evaluate:
            outputs[k] = model(states[k], row.time)
    return computed


def observed_order(
    solver: str | Builder,
    process: Process,
    mix: Exact,
    steps: Iterable[int] = (20, 40, 80),
    *,
    kind: str = "t2",
    t_start: float | None = None,
    t_end: float | None = None,
    start: str = "own",
    starting_steps: int | None = None,
    samples: int = 32,
    seed: int = 0,
) -> OrderEstimate:
    """Measure the order of a sampler on a problem with exact flow.

    Args:
        solver: registry name, or a function (process, ts) → `Tableau`.
        mix: a mixture with an exact flow (1-D, product, or one Gaussian).
        steps: at least three step counts, increasing. kind, t_start, t_end: the grids, see `grid`.
        start: ``"own"`` or ``"exact"``: the first ``starting_steps`` states are those of the exact flow.
        starting_steps: by default the registry row's; needed for a function with start="exact".

    Raises:
        ValueError: fewer than three errors lie clearly above the round-off floor: there is no order to fit.
    """
    choose("start", start, ("own", "exact"))
    if not isinstance(steps, Iterable):
        raise ValueError(f"steps={steps!r} must be a sequence of at least 3 step counts")
    counts = sorted({positive_int("steps", n) for n in steps})
    if len(counts) < 3:
        raise ValueError(f"steps={counts} must hold at least 3 different step counts")
    builder: Builder
    if callable(solver):
        builder, lead = solver, starting_steps
        if start == "exact" and lead is None:
            raise ValueError("starting_steps=None must be given for a function with start='exact'")
    else:
        row = SOLVERS[choose("solver", solver, SOLVERS)]
        builder, lead = row.build, row.starting_steps if starting_steps is None else starting_steps
    lead = (lead or 0) if start == "exact" else 0
    if lead >= counts[0]:
        raise ValueError(f"steps={counts} must exceed starting_steps={lead}")
    first = float(grid(process, 1, kind, t_start, t_end)[0])
    x = mix.sample(samples, seed, process, first)
    errors, floors = [], []
    for n in counts:
        ts = grid(process, n, kind, t_start, t_end)
        table = builder(process, ts)
        exact = {table.grid_nodes[i]: mix.flow(process, x, ts[0], ts[i]) if i else x for i in range(lead + 1)}
        truth = mix.flow(process, x, ts[0], ts[-1])
        result = walk(table, mix.model(process, table.prediction), exact)[table.times.size - 1]
        errors.append(_rms(result - truth))
        floors.append(np.finfo(float).eps * (amplification(table) + _rms(truth)) * np.sqrt(n))
    return _fit(counts, np.array(errors), np.array(floors))


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _fit(counts: list[int], errors: Array, floors: Array, flat: float = 0.1) -> OrderEstimate:
    """Regression over the asymptotic window: the longest tail whose local slopes agree, three points at least."""
    from scipy.stats import linregress

    if not np.all(np.isfinite(errors)):
        raise ValueError(f"the errors {errors.tolist()} are not finite: the sampler diverges on this problem")
    above = errors > 30 * floors
    last = int(np.argmin(above)) if not above.all() else len(counts)  # once on the floor, later points do not count
    if last < 3:
        raise ValueError(
            f"steps={counts}: errors {errors.tolist()} reach the round-off floor {floors.max():.1e}; "
            "allowed: at least 3 above it, take fewer steps or a harder problem"
        )
    x, y = -np.log(np.array(counts[:last], dtype=np.float64)), np.log(errors[:last])
    local = np.diff(y) / np.diff(x)
    first = last - 3
    while first > 0 and abs(local[first - 1] - local[-1]) < flat:
        first -= 1
    fit = linregress(x[first:], y[first:])
    agree = bool(np.ptp(local[first:]) < flat)
    return OrderEstimate(
        float(fit.slope), float(fit.stderr), tuple(counts), tuple(map(float, errors)), tuple(counts[first:last]), agree
    )


# -- the registry's claims, measured --------------------------------------------------------------
@dataclass(frozen=True)
class Measurement:
    """What `measure` found for a registry row; each field has a declared twin in `Solver`.

    Attributes:
        order, order_exact_start: estimates with the method's own start and with an exact one.
        degree: exactness degree after the start-up.
        stages: model calls per step, off tables of 7 and 12 steps; −1 if they are not proportional to the steps.
        stochastic: whether the tables draw noise.
    """

    order: OrderEstimate
    order_exact_start: OrderEstimate
    degree: int
    stages: int
    stochastic: bool


def order_problem() -> tuple[Process, GaussianMixture, dict[str, Any]]:
    """The standard problem for orders: a broad 1-D mixture on VPLinear, t from 0.4 to 0.1 on the quadratic grid.

    Smooth enough to be asymptotic at 40 steps, and started where ε already varies, so that a low-order start shows.
    """
    mix = GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
    return VPLinear(0.1, 20.0), mix, {"kind": "t2", "t_start": 0.4, "t_end": 0.1}


def measure(row: Solver) -> Measurement:
    """Measure what a registry row declares."""
    process, mix, options = order_problem()
    orders = {}
    for start in ("own", "exact"):
        counts = (160, 320, 640, 1280) if start == "own" and row.starting_steps else (40, 80, 160, 320)
        orders[start] = observed_order(row.name, process, mix, counts, start=start, **options)
    calls = {n: row.build(process, grid(process, n, "t2")) for n in (7, 12)}
    table = calls[12]
    stages = {t.nfe / n for n, t in calls.items()}
    degrees = exactness_degree(table, process, row.prediction, row.variable)[row.starting_steps :]
    return Measurement(
        orders["own"],
        orders["exact"],
        int(degrees.min()),
        int(stages.pop()) if len(stages) == 1 else -1,
        table.stochastic,
    )
