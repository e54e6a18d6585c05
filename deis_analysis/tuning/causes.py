"""Which cause of error did the tuning reduce? The budget of a table on a model, along its exact path."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis.analysis.budget import discretization
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.exponential_rk import runge_kutta
from deis_analysis.tableau import Tableau, run
from deis_analysis.tuning.target import Target

_STEPS = 48  # of three calls each, over the whole stretch of λ: the flow between any two levels
_LEAST = 2


class _Flow:
    """The exact flow of a target: its closed form, or many steps of Kutta's third-order method in ρ."""

    def __init__(self, target: Target) -> None:
        self.target = target
        lam = target.process.lam(np.array([target.t_start, target.t_end]))
        self.whole = float(lam[1] - lam[0])

    @property
    def process(self) -> Process:
        return self.target.process

    def to(self, x: Any, start: float, end: float) -> Any:
        if end >= start:
            return x
        if self.target.exact is not None:
            return self.target.exact.flow(self.process, x, start, end)
        gap = float(self.process.lam(end) - self.process.lam(start))
        steps = max(_LEAST, round(_STEPS * gap / self.whole))
        ts = grid(self.process, steps, "logrho", start, end)
        return run(runge_kutta(self.process, ts, "3kutta", prediction="eps", variable="rho"), self.target.model, x)

    def carried(self, _: Any, states: list[tuple[Any, float]], end: float) -> list[Any]:
        """Each (state, its time), times descending, at ``end``: each joins the others at its own time."""
        if not states:
            return []
        together: list[Any] = []
        times = [t for _, t in states]
        concat = array_namespace(states[0][0]).concat
        for (x, t), until in zip(states, [*times[1:], end], strict=True):
            together.append(x)
            if until < t:
                moved = self.to(concat(together), t, until)
                together = [moved[i * len(x) : (i + 1) * len(x)] for i in range(len(together))]
        return together


def causes(target: Target, tables: dict[str, tuple[Tableau, Array]], x: Any) -> dict[str, dict[str, dict[str, float]]]:
    """What each table's error on ``x`` is made of: cause → RMS, and its share of the squared error.

    Args:
        tables: name → (table, (N + 1,) process times of its grid states, which may not be what the model is told).

    Linear part: what is wrong where the model's output is constant. Extrapolation: the output is not the polynomial
    that a step takes it for. Accumulation: states and history are not exact. See `analysis.budget`.
    """
    flow, found = _Flow(target), {}
    for name, (table, times) in tables.items():
        levels = _levels(table, times)
        known = {float(levels[0]): x}
        for a, b in pairwise(sorted(set(levels.tolist()), reverse=True)):
            known[b] = flow.to(known[a], a, b)
        result = run(table, target.model, x)
        terms = discretization(table, 0, table.prediction, flow, target.model, known.__getitem__, result, levels)
        total = sum(terms.values())
        scale = float(np.sum(np.square(total)))
        found[name] = {
            "rms": {term: float(np.sqrt(np.mean(np.square(part)))) for term, part in terms.items() if part.any()},
            "share": {term: float(np.sum(part * total) / scale) for term, part in terms.items() if part.any()},
        }
    return found


def _levels(table: Tableau, times: Array) -> Array:
    """(K + 1,) process times of the nodes' states: those of the grid, and of stages what they are told."""
    levels = table.times.copy()
    levels[list(table.grid_nodes)] = times
    return levels
