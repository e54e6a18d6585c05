"""What came of a tuning, on noises that it never saw: errors, laws, causes, order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from deis_analysis.analysis.exactness import step_moment
from deis_analysis.process.process import Array, Process
from deis_analysis.tableau import Tableau, run
from deis_analysis.tuning.candidates import Cell
from deis_analysis.tuning.causes import causes
from deis_analysis.tuning.fit import Goal, State
from deis_analysis.tuning.judged import Clouds, Judged, judge, ratio_band, rms
from deis_analysis.tuning.parameters import Space
from deis_analysis.tuning.target import Target
from deis_analysis.tuning.together import run_together
from deis_analysis.validate import positive_int

_ROUNDING = 1e-9  # an error below it is no reason to tune
_CAUSES = 16  # samples on which the budget is drawn up


@dataclass(frozen=True)
class HeldOut:
    """A finished search beside its start.

    Attributes:
        cell: the start. goal: of the search, for its features.
    """

    target: Target
    cell: Cell
    space: Space
    state: State
    goal: Goal
    objective: str

    @property
    def tuned(self) -> Tableau:
        """The best table of the search."""
        assert self.state.best is not None
        name = f"{self.cell.solver} tuned for {self.target.name}, {self.cell.nfe} calls"
        return self.space.table(self.state.best, name).changed(process=self.target.process)

    @property
    def placed(self) -> Tableau:
        """The same, the model told the times that its states have."""
        assert self.state.best is not None
        return self.space.table(replace(self.state.best, offsets=0.0 * self.state.best.offsets))

    @property
    def times(self) -> Array:
        """(N + 1,) process times of the grid states."""
        placed = self.placed
        return placed.times[list(placed.grid_nodes)]

    def report(self, x: Any, truth: Any) -> dict[str, Any]:
        """Both tables on (B, …) noises that were not seen before, and the ground truth."""
        tables = [self.cell.table, self.tuned]
        ends = run_together(tables, self.target.model, x)
        before, after = (judge(end, truth) for end in ends)
        seen = self.goal.features or (lambda states: states)
        clouds = Clouds(seen(truth))
        if self.objective == "energy":
            ratio = clouds.ratio_band(seen(ends[1]), seen(ends[0]))
        else:
            ratio = ratio_band(*(judge(seen(end), seen(truth)).squares for end in reversed(ends)))
        plain = Clouds(truth)
        given = {"before": (self.cell.table, self.space.ts), "tuned": (self.tuned, self.times)}
        return {
            "kept": ratio[2] < 1.0 and before.rms > _ROUNDING,
            "ratio": ratio,
            "before": summary(before) | {"energy": plain.squared(ends[0])},
            "tuned": summary(after) | {"energy": plain.squared(ends[1])},
            "budget": causes(self.target, given, x[:_CAUSES]),
            "order": self._order(x, truth),
            "consistency": consistency(self.placed, self.target.process),
            "largest_weight": float(np.abs(self.tuned.butcher().weights).max()),
            "times": self.times.tolist(),
            "told": self.tuned.times[list(self.tuned.evaluated)].tolist(),
        }

    def _order(self, x: Any, truth: Any) -> dict[str, Any] | None:
        """Of the untuned sampler on the tuned times and on twice as many, and log₂ of how its error falls."""
        if self.cell.grid == "given times":
            return None
        steps = self.space.ts.size - 1
        errors = []
        for count in (steps, 2 * steps):
            ts = resampled(self.target.process, self.times, count)
            errors.append(rms(run(self.space.build(self.target.process, ts), self.target.model, x), truth))
        return {"steps": [steps, 2 * steps], "rms": errors, "order": float(np.log2(errors[0] / max(errors[1], 1e-300)))}


def resampled(process: Process, times: Array, steps: int) -> Array:
    """(steps + 1,) times: λ as a monotone function of the step's number (PCHIP), at other numbers."""
    lam = process.lam(times)
    curve = PchipInterpolator(np.linspace(0.0, 1.0, lam.size), lam)
    found = np.array(process.time_from_lam(curve(np.linspace(0.0, 1.0, positive_int("steps", steps) + 1))))
    found[[0, -1]] = times[0], times[-1]
    return found


def summary(found: Judged) -> dict[str, float]:
    """Errors and distances of one table's end states."""
    low, high = found.band
    return {
        "rms": found.rms,
        "low": low,
        "high": high,
        "median": found.median,
        "flips": float(found.flips.mean()),
        "unflipped": found.unflipped(),
        "law": found.law,
        "law_low": found.law_band[0],
        "law_high": found.law_band[1],
    }


def consistency(table: Tableau, process: Process) -> list[float]:
    """Of each grid step, what it gives beside the exact change where the model's output is constant, minus 1."""
    found = []
    for first, last in pairwise(table.grid_nodes):
        value, exact, _ = step_moment(table, process, table.prediction, "lam", first, last, 0)
        found.append(float(value / exact - 1.0) if exact else float("nan"))
    return found
