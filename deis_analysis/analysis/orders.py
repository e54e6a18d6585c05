"""Orders of convergence, measured: of the error, of the law, and of paths driven by one Brownian path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from deis_analysis.analysis.law import law_error, strong_distance
from deis_analysis.backend import Centre
from deis_analysis.problems.mixture import GaussianMixture, ProductMixture
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.registry import Solver, builder_of, row_of
from deis_analysis.tableau import Builder, Model, Tableau, fold
from deis_analysis.validate import checked, choose, finite, instance, positive_int, several

Exact = GaussianMixture | ProductMixture
_GAUSSIANS = np.array([0.5, -1.0, 0.8]), np.array([0.05, 0.3, 1.2])  # means and variances of the standard problem


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
    tableau = tableau.for_model(model)
    computed: dict[int, Any] = {}
    times, centre = tableau.times.tolist(), Centre(tableau.mean, exact[0], tableau.prediction)

    def place(k: int, u: Any) -> Any:
        computed[k] = centre.on(u)
        return centre.off(exact[k]) if k in exact else u

    def output(k: int, u: Any) -> Any:
        return centre.predicted(model(centre.on(u), times[k]))

    fold(tableau.plan, {0: centre.off(exact[0])}, output, place=place, zero=0.0 * exact[0])
    return computed


@checked
def observed_order(
    solver: str | Solver | Builder,
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
        solver: registry name, row, or a function (process, ts) → `Tableau`.
        mix: a mixture with an exact flow (1-D, product, or one Gaussian).
        steps: at least three step counts, increasing. kind, t_start, t_end: the grids, see `grid`.
        start: ``"own"`` or ``"exact"``: the states in the first ``starting_steps`` steps are those of the exact flow.
        starting_steps: by default the registry row's; needed for a function with start="exact".

    Raises:
        ValueError: fewer than three errors lie clearly above the round-off floor: there is no order to fit.
    """
    choose("start", start, ("own", "exact"))
    if not callable(getattr(mix, "flow", None)):
        raise ValueError(f"mix={mix!r} must be a GaussianMixture or ProductMixture")
    counts = _counts(steps)
    row, builder, lead = row_of(solver), builder_of(solver), starting_steps
    if isinstance(row, Solver) and lead is None:
        lead = row.starting_steps
    if start == "exact" and lead is None:
        raise ValueError("starting_steps=None must be given for a function with start='exact'")
    lead = (lead or 0) if start == "exact" else 0
    if lead >= counts[0]:
        raise ValueError(f"steps={counts} must exceed starting_steps={lead}")
    first = float(grid(process, 1, kind, t_start, t_end)[0])
    x = mix.sample(samples, seed, process, first)
    flow = cache(lambda start, end: mix.flow(process, x, start, end))  # most grids end at the same time
    errors, floors = [], []
    for n in counts:
        ts = grid(process, n, kind, t_start, t_end)
        table = builder(process, ts)
        given = range(table.grid_nodes[lead] + 1)  # every node of the start: stages and predicted states too
        exact = {k: mix.flow(process, x, ts[0], table.times[k]) if k else x for k in given}
        truth = flow(float(ts[0]), float(ts[-1]))
        result = walk(table, mix.model(process, table.prediction), exact)[table.times.size - 1]
        errors.append(_rms(result - truth))
        floors.append(np.finfo(float).eps * (amplification(table) + _rms(truth)) * np.sqrt(n))
    return _fit(counts, np.array(errors), np.array(floors))


@checked
def amplification(tableau: Tableau) -> float:
    """Σ |weights| of the model outputs in the result: the gain of an error of size 1 in every model call."""
    return float(np.sum(np.abs(instance("tableau", tableau, Tableau).butcher().weights[-1])))


def _counts(steps: Any) -> list[int]:
    if not isinstance(steps, Iterable):
        raise ValueError(f"steps={steps!r} must be a sequence of at least 3 step counts")
    counts = sorted({positive_int("steps", n) for n in several("steps", steps)})
    if len(counts) < 3:
        raise ValueError(f"steps={counts} must hold at least 3 different step counts")
    return counts


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


@checked
def weak_order(
    solver: str | Solver | Builder,
    process: Process,
    steps: Iterable[int] = (20, 40, 80, 160),
    *,
    mean: Any = None,
    variance: Any = None,
    kind: str = "t2",
    t_start: float | None = None,
    t_end: float | None = None,
) -> OrderEstimate:
    """The order at which the law of the output converges on Gaussian data: exact linear algebra, no sampling.

    The error is the root mean square over the data of the 2-Wasserstein distance to the exact law, see `law_error`.

    Args:
        solver: registry name, row, or a function (process, ts) → `Tableau`.
        steps: at least three step counts.
        mean, variance: (V,) of the data; by default three Gaussians of different width.

    Raises:
        ValueError: fewer than three errors lie above the round-off floor: the law is exact.
    """

    def error(table: Callable[[int], Tableau], n: int, *data: Any) -> Array:
        return law_error(table(n), process, *data)

    return _law_order(solver, process, steps, (mean, variance), (kind, t_start, t_end), error)


@checked
def strong_order(
    solver: str | Solver | Builder,
    process: Process,
    steps: Iterable[int] = (20, 40, 80),
    *,
    mean: Any = None,
    variance: Any = None,
    kind: str = "t2",
    t_start: float | None = None,
    t_end: float | None = None,
) -> OrderEstimate:
    """The order at which paths converge on Gaussian data, when all grids are driven by one Brownian path.

    The error at N steps is the root mean square distance to the output at 2N steps, see `strong_distance`.

    Args and raises: as `weak_order`.
    """

    def error(table: Callable[[int], Tableau], n: int, *data: Any) -> Array:
        return strong_distance(table(n), table(2 * n), process, *data)

    return _law_order(solver, process, steps, (mean, variance), (kind, t_start, t_end), error)


def _law_order(
    solver: str | Solver | Builder,
    process: Process,
    steps: Any,
    data: tuple[Any, Any],
    span: tuple[Any, Any, Any],
    error: Any,
) -> OrderEstimate:
    """The order of ``error`` (table at n steps, n, mean, variance) on Gaussian data, the standard ones if None."""
    build = builder_of(solver)
    named = zip(("mean", "variance"), data, _GAUSSIANS, strict=True)
    given = [standard if value is None else finite(name, value) for name, value, standard in named]
    if np.size(given[0]) > 1 and np.size(given[1]) == 1:
        given[1] = np.broadcast_to(given[1], np.shape(given[0]))
    counts = _counts(steps)
    errors = [_rms(error(lambda m: build(process, grid(process, m, *span)), n, *given)) for n in counts]
    return _fit(counts, np.array(errors), 1e-14 * np.sqrt(np.array(counts)))
