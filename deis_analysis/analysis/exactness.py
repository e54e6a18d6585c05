"""What one step makes of a prediction that is a power of its variable: the moments behind degrees of exactness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.weights import _intervals, clock
from deis_analysis.tableau import Tableau, fold
from deis_analysis.validate import checked, nonnegative, positive_int

Moment = tuple[float, float, float]


@checked
def step_moment(
    table: Tableau,
    process: Process,
    prediction: str,
    variable: str,
    first: int,
    last: int,
    power: int,
    lam_sde: float = 0.0,
) -> Moment:
    """What the step from node ``first`` to ``last`` makes of the prediction z^power, from y = 0 at its start.

    z = (φ − φ_first)/(φ_last − φ_first).  Returns the step's value, the exact one, and the size of the terms.
    """
    positive_int("first", first, 0), positive_int("last", last, most=table.times.size - 1)
    if first >= last:
        raise ValueError(f"first={first} must be below last={last}")
    positive_int("power", power, 0, 100), nonnegative("lam_sde", lam_sde, 100.0)
    return step_moments(table, process, prediction, variable, first, last, (power,), lam_sde)[0]


def step_moments(
    table: Tableau,
    process: Process,
    prediction: str,
    variable: str,
    first: int,
    last: int,
    powers: Sequence[int],
    lam_sde: float = 0.0,
) -> list[Moment]:
    """`step_moment` of several powers, with one quadrature and one walk over the table."""
    rows = table.plan[first + 1 : last + 1]
    index = sorted({first, last} | {j for row in rows for terms in (row.states, row.outputs) for _, j in terms})
    points = np.unique(table.times[index])[::-1]
    at = {k: int(np.flatnonzero(points == table.times[k])[0]) for k in index}
    measure, offsets, gaps = _intervals(process, prediction, variable, points, lam_sde)
    position = _outward(gaps, at[first])
    length = position[at[last]]
    z = position / length
    inside = (position[:-1, None] + offsets) / length
    y = np.stack([_outward(np.sum(measure * inside**power, axis=1), at[first]) for power in powers], axis=1)
    gamma = clock(process, prediction, points, lam_sde)
    exact = gamma[at[last]] * y[at[last]]  # (powers,), as all that follows
    scale = abs(exact)

    def add(parts: list[tuple[float, Array]]) -> Array:
        nonlocal scale
        total: Any = 0.0
        for c, a in parts:
            term = c * a
            scale = np.maximum(scale, np.abs(term))
            total = total + term
        return np.asarray(total)

    none = np.zeros(len(powers))
    states = {k: gamma[j] * y[j] for k, j in at.items() if k <= first}
    known = {k: np.array([z[j] ** power for power in powers]) for k, j in at.items()}
    outputs = dict(known)  # all of them are known beforehand: the prediction is a function of time
    found = fold(rows, states, lambda k, _: known.get(k, none), lambda _: none, outputs=outputs, add=add, zero=none)
    return list(zip(found.tolist(), exact.tolist(), scale.tolist(), strict=True))


def _outward(gaps: Array, origin: int) -> Array:
    """Positions of the points between which ``gaps`` lie, from the one at ``origin``, summed away from it."""
    return np.concatenate([-np.cumsum(gaps[:origin][::-1])[::-1], [0.0], np.cumsum(gaps[origin:])])
