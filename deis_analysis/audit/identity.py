"""Which row of the registry is it? Build every row on the sampler's own levels, and compare."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import numpy as np

from deis_analysis.analysis.measurement import distance
from deis_analysis.audit.case import Case
from deis_analysis.audit.findings import FLOAT32, Nearest
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import VE, VPLinear
from deis_analysis.solvers import SOLVERS, Solver
from deis_analysis.tableau import Builder, Butcher, Tableau

_SAME_ROW = 1e-11  # absolute distance below which two rows of the registry are one table
_PROCESSES = VPLinear(), VE()  # some rows are one table on the first, and not on the second
_SURE = 1e-6  # no two different rows are as near as this at 20 calls
MODES = ("but the last", "whole", "open")  # without the last step; with it; with a last step to anywhere, not compared


def nearest_row(case: Case) -> Nearest | None:
    """The registry row whose table on the sampler's own levels differs least from what was read.

    Rows are compared at the model calls; the last step, which many packages take to σ = 0 in a way of their own, counts
    only for rows that treat it apart.
    """
    if case.lead:  # noise before the first call: no row of the registry begins so, but EDM's churn
        return None
    told, implied = case.table.times, _levels(case)
    ladders = [told] if np.array_equal(told, implied) else [told, implied]
    found: list[Nearest] = []
    for name, row, build in _candidates(tuple(SOLVERS), case.table.stochastic):
        for levels in ladders:
            for mode in MODES:
                pair = _compare(case, row, build, levels, mode)
                if pair is not None:
                    found.append(Nearest(name, *pair))
        if (
            found
            and found[-1].distance < (FLOAT32 if case.reading.rounding > 1e-10 else _SURE)
            and found[-1].calls >= case.reading.calls - 1
        ):
            break
    if not found:
        return None
    least = min(nearest.distance for nearest in found)
    # many rows are one table: of those that are equally near, the one over most calls, then the first of the registry
    return max((n for n in found if n.distance <= 2.0 * least + 1e-13), key=lambda n: n.calls)


def _levels(case: Case) -> Array:
    """(K + 1,) process times of the states by their implied levels, by the told ones where these agree."""
    alpha, sigma = case.scales
    times = case.table.times.copy()
    for k in range(times.size - 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            rho, told = sigma[k] / alpha[k], float(case.process.rho(times[k]))
        if np.isfinite(rho) and rho > 0 and abs(rho / told - 1) > max(1e-6, 10 * case.reading.residual):
            try:
                times[k] = case.process.time_from_rho(rho)
            except ValueError:
                return case.table.times
    return times


@lru_cache(maxsize=8)
def _candidates(names: tuple[str, ...], stochastic: bool) -> tuple[tuple[str, Solver, Builder], ...]:
    """The rows that a sampler may be, each with what builds it: names, rows, and variants of their ends."""
    found: list[tuple[str, Solver, Builder]] = []
    for name in _distinct(tuple(name for name in names if SOLVERS[name].stochastic == stochastic)):
        row = SOLVERS[name]
        found.append((name, row, row.build))
        function = row.build.func if isinstance(row.build, partial) else row.build
        if row.starting_steps and "lower_order_final" in inspect.signature(function).parameters:
            lowered: Callable[..., Tableau] = row.build
            found.append((f"{name} with lower_order_final", row, partial(lowered, lower_order_final=True)))
    return tuple(found)


def _compare(case: Case, row: Solver, build: Builder, levels: Array, mode: str) -> tuple[float, int] | None:
    """(relative distance, calls compared) of the row on these levels; None if the numbers of calls do not fit."""
    calls, complete = case.reading.calls, mode != "but the last"
    end = case.prepared.t_end if mode == "whole" else 0.5 * float(case.process.t_min + levels[calls - 1])
    if end is None or (mode == "open" and "lower_order_final" not in getattr(build, "keywords", {})):
        return None
    steps = _fitting(row, calls, complete)
    try:
        ts = _times(build, steps, levels, calls, end if complete else None)
        if ts is None:
            return None
        form = None if complete else _of_whole(case, row, build, levels, ts)
        form = _form(build, case, ts) if form is None else form
    except (ValueError, ZeroDivisionError):
        return None
    made = _pattern(build, steps)[0]
    return _distance(case.table, form, made + (mode != "open"), made), made


def _fitting(row: Solver, calls: int, complete: bool) -> int:
    """The most steps of the row that take ``calls`` calls, or where it is not complete one less at most; 0 if none."""
    fits = [(n, row.calls(n)) for n in range(row.block, calls + 1, row.block)]
    return max((n for n, made in fits if (made == calls if complete else made < calls)), default=0)


def _times(build: Builder, steps: int, levels: Array, calls: int, end: float | None) -> Array | None:
    """The row's times: levels of the calls at which its steps begin, then ``end`` or a call's; None if they do not fit.

    Raises:
        ValueError: the row cannot be built in so many steps.
    """
    if steps < 2:
        return None
    at = _pattern(build, steps)[1]
    if any(i >= calls for i in at[:-1]) or (end is None and at[-1] >= calls):
        return None
    ts = levels[np.minimum(at, levels.size - 1)] if end is None else np.append(levels[at[:-1]], end)
    return ts if np.all(np.diff(ts) < 0) else None


def _form(build: Builder, case: Case, ts: Array) -> Butcher:
    return _form_at(build, case.process, ts.tobytes(), case.table.prediction)


@lru_cache(maxsize=4096)  # samplers of one package share their levels
def _form_at(build: Builder, process: Process, levels: bytes, prediction: str) -> Butcher:
    with np.errstate(all="ignore"):  # not every row is finite where another sampler may end, at σ = 0
        table = build(process, np.frombuffer(levels))
    return table.in_terms_of(process, prediction).butcher()


def _of_whole(case: Case, row: Solver, build: Builder, levels: Array, ts: Array) -> Butcher | None:
    """The form of the whole row, which is compared as well, if the row on ``ts`` is the start of it; None if not."""
    calls, end, steps = case.reading.calls, case.prepared.t_end, ts.size - 1
    more = _fitting(row, calls, True)
    if end is None or more <= steps or not _steady(build, steps, more):
        return None
    longer = _times(build, more, levels, calls, end)
    if longer is None or not np.array_equal(longer[: ts.size], ts):
        return None
    with suppress(ValueError, ZeroDivisionError):
        return _form(build, case, longer)
    return None


@lru_cache(maxsize=2048)
def _steady(build: Builder, steps: int, more: int) -> bool:
    """Whether the row in ``more`` steps begins with that in ``steps``: not where it ends in a way of its own."""
    one, two = _dummy(build, steps), _dummy(build, more)
    return _distance(two, one.butcher(), one.nfe + 1, one.nfe) < _SAME_ROW


@lru_cache(maxsize=8)
def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """The rows without those that are the table of an earlier row, in the same prediction, under another name."""
    kept: list[str] = []
    for name in names:
        if not any(_same(name, other) for other in kept):
            kept.append(name)
    return tuple(kept)


@lru_cache(maxsize=1024)
def _small(name: str, process: Process) -> Tableau:
    """The row on 12 steps: whole blocks of every row."""
    return SOLVERS[name].build(process, grid(process, 12))


def _same(name: str, other: str) -> bool:
    """Whether two rows are one table on both processes; what takes longest is compared last."""
    for process in _PROCESSES:
        one, two = _small(name, process), _small(other, process)
        if one.prediction != two.prediction or one.noises != two.noises:
            return False
        a, b = one.butcher().weights, two.butcher().weights
        if a.shape != b.shape or np.abs(a - b).max(initial=0.0) > _SAME_ROW or distance(one, two) > _SAME_ROW:
            return False
    return True


@lru_cache(maxsize=2048)
def _pattern(build: Builder, steps: int) -> tuple[int, list[int]]:
    """(number of calls, first call at each time of the grid) of a row in ``steps`` steps: the same on any process."""
    dummy = _dummy(build, steps)
    return dummy.nfe, _calls_at_grid_times(dummy, steps)


@lru_cache(maxsize=2048)
def _dummy(build: Builder, steps: int) -> Tableau:
    """The row on the first times of one grid for all numbers of steps."""
    with np.errstate(all="ignore"):
        return build(VPLinear(), 1.0 / (1.0 + 0.1 * np.arange(steps + 1)))


def _calls_at_grid_times(table: Tableau, steps: int) -> list[int]:
    """For each time of the grid the first model call made at it; the number of calls for the end."""
    nodes = table.grid_nodes if len(table.grid_nodes) == steps + 1 else range(table.times.size)
    told = table.times[list(table.evaluated)]
    found = []
    for node in nodes:
        same = np.flatnonzero(told == table.times[node])
        found.append(int(same[0]) if same.size and node != table.times.size - 1 else len(told))
    return found


def _distance(read: Tableau, other: Butcher, rows: int, made: int) -> float:
    """Largest difference in the first ``rows`` states and ``made`` calls, relative to the largest weight."""
    form = read.butcher()
    size = min(rows, form.start.size)
    if other.start.size < size:
        return float("inf")
    a, b = form.weights[:size, :made], other.weights[:size, :made]
    if a.shape != b.shape:
        return float("inf")
    gaps: list[Any] = [np.abs(a - b).max(initial=0.0) / max(np.abs(b).max(initial=0.0), 1e-300)]
    gaps.append(np.abs(form.start[:size] - other.start[:size]).max() / np.abs(other.start[:size]).max())
    if read.stochastic:
        gaps.append(_noise_gap(form.noise[:size], other.noise[:size]))
    return float(max(gaps))


def _noise_gap(a: Array, b: Array) -> float:
    """Difference of the covariances that the noises give the rows: the same whatever the columns and their signs."""
    p, q = a @ a.T, b @ b.T
    return float(np.abs(p - q).max() / max(np.abs(q).max(), 1e-300))
