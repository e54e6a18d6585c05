"""How fast a read sampler converges: with its own start, with an exact one, per step, and in law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis.analysis.law import law_error
from deis_analysis.audit.case import Case, read_case, run_sampler
from deis_analysis.audit.subject import Prepared, Subject
from deis_analysis.audit.tables import exact_nodes, run_errors, up_to
from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.process import Array
from deis_analysis.tableau.extraction import NotLinear

STEPS = (20, 40, 80, 160)
_START = 5  # states given exactly when the start is taken away
_SAMPLES = 32
_GAUSSIANS = np.array([0.5, -1.0, 0.8]), np.array([0.05, 0.3, 1.2])


@dataclass(frozen=True)
class Convergence:
    """Slopes of errors against steps on the order problem; None where not measured.

    Attributes:
        own: with the sampler's own start; of the law for samplers with noise. exact: with exact first states.
        local: of the error of one step from exact history, in the middle of the stretch.
        calls: model calls of each run. steps, errors: of ``own``. case, fine: the coarsest and the finest run.
    """

    own: float | None
    exact: float | None
    local: float | None
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    calls: tuple[int, ...] = ()
    case: Case | None = None
    fine: Case | None = None

    @property
    def grows(self) -> bool:
        """Whether more steps are more model calls; otherwise there is no order to be measured."""
        return all(a < b for a, b in pairwise(self.calls))


def measure_convergence(subject: Subject, steps: Sequence[int] = STEPS) -> Convergence | None:
    """Run the sampler on the order problem; None if it cannot be put there.

    Raises:
        Refusal: it fails there.
    """
    prepared = [(n, subject.ladder(n)) for n in steps]
    if any(p is None for _, p in prepared):
        return None
    own, exact, local, counts, calls = [], [], [], [], []
    case: Case | None = None
    for _, p in prepared:
        assert p is not None
        try:
            read = read_case(p)
        except NotLinear:
            return _by_running(prepared)
        case = case or read
        counts.append(len(read.trunk.chain) - 1)
        calls.append(read.reading.calls)
        if read.table.stochastic:
            own.append(_law(read))
        else:
            a, b, c = _pathwise(read)
            own.append(a)
            exact.append(b)
            local.append(c)
    assert case is not None
    floor = max(1e-12, 10 * read.reading.rounding)
    x, points = np.array(counts, dtype=float), 2 if floor < 1e-10 else 3
    return Convergence(
        _slope(x, own, floor, points),
        _slope(x, exact, floor, points),
        _slope(x, local, floor * 1e-2, points),
        tuple(counts),
        tuple(map(float, own)),
        tuple(calls),
        case,
        read,
    )


def _slope(counts: Array, errors: Sequence[float], floor: float, points: int = 3) -> float | None:
    """Slope over the finest ``points`` runs that lie above rounding; None if fewer than two do."""
    if not errors or not np.all(np.isfinite(errors)) or not np.all(np.diff(counts) > 0):
        return None
    above = np.array(errors) > 30 * floor
    last = int(np.argmin(above)) if not above.all() else len(errors)
    if last < 2:
        return None
    first = max(0, last - points)
    x, y = np.log(counts[first:last]), np.log(np.array(errors[first:last]))
    return float(-np.polyfit(x, y, 1)[0])


def _pathwise(case: Case) -> tuple[float, float, float]:
    """RMS errors at the last call: own start, exact start, and of three steps in the middle from exact history."""
    mix = order_problem()[1]
    steps, process = case.trunk, case.process
    times = steps.table.times
    x = mix.sample(_SAMPLES, 0, process, float(times[0]))
    model = mix.model(process, steps.table.prediction)
    last = times.size - 1
    start = next((k for k in steps.chain if _START <= k < last), 0)
    chain = [k for k in steps.chain if k > 0]
    middle = chain[len(chain) // 2 - 1 : len(chain) // 2 + 2]  # each from exact history
    runs = [(steps, 0), (steps, start), *((_cut(steps, k), steps.before[k]) for k in middle)]
    nodes = sorted(set().union(*(exact_nodes(*run) for run in runs)))
    ends = np.minimum(times[nodes], times[0])
    exact = mix.flow_many(process, np.tile(x, (len(nodes), 1)), np.full(ends.shape, times[0]), ends)
    path = {k: state if times[k] < times[0] else x for k, state in zip(nodes, exact, strict=True)}
    own, late, *local = (_rms(run_errors(part, model, path, first)) for part, first in runs)
    return own, late, _rms(local)


def _cut(steps: Any, node: int) -> Any:
    """The steps up to a node."""
    short = up_to(steps.table, node).changed(grid_nodes=(0, node))
    return replace(steps, table=short, before=steps.before[: node + 1])


def _law(case: Case) -> float:
    """RMS over Gaussians of the 2-Wasserstein distance of the law at the last call."""
    return _rms(law_error(case.trunk.table, case.process, *_GAUSSIANS))


def _by_running(prepared: Sequence[tuple[int, Prepared | None]]) -> Convergence:
    """For samplers that are not linear: the error of runs, at the state of the last call."""
    mix = order_problem()[1]
    errors, counts, calls = [], [], []
    for n, p in prepared:
        assert p is not None
        first = run_sampler(p, mix, np.zeros(_SAMPLES))[2][0]
        x = mix.sample(_SAMPLES, 0, p.process, first)
        _, inputs, times = run_sampler(p, mix, x / float(p.convention.input_scale(p.process, first)))
        truth = mix.flow(p.process, inputs[0], times[0], times[-1]) if times[-1] < times[0] else inputs[0]
        errors.append(_rms(inputs[-1] - truth))
        counts.append(n)
        calls.append(len(times))
    slope = _slope(np.array(counts, float), errors, 1e-10) if np.all(np.diff(calls) > 0) else None
    return Convergence(slope, None, None, tuple(counts), tuple(errors), tuple(calls))


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
