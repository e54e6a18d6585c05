"""The order in which a table is run: what each row combines, and which arrays no later row needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deis_analysis.process import Array

if TYPE_CHECKING:
    from deis_analysis.tableau import Tableau


@dataclass(frozen=True)
class Row:
    """What `run` does at one node: combine, forget what no later row uses, call the model."""

    node: int
    time: float
    states: tuple[tuple[float, int], ...]
    outputs: tuple[tuple[float, int], ...]
    noises: tuple[tuple[float, int], ...]
    evaluate: bool
    drop_states: tuple[int, ...]
    drop_outputs: tuple[int, ...]
    drop_after_call: tuple[int, ...]  # the node's own state, where only the model needed it

    @property
    def combines(self) -> bool:
        """Whether the row has any term; a row without one is zero."""
        return bool(self.states or self.outputs or self.noises)


def make_plan(tableau: Tableau) -> list[Row]:
    """One `Row` per node, in order."""
    n, calls = tableau.times.size, set(tableau.evaluated)
    last_state = _last_use(tableau.states, np.arange(n))
    last_output = _last_use(tableau.outputs, np.full(n, -1))
    last_state[-1] = n  # the result outlives the loop
    drop_states: list[list[int]] = [[] for _ in range(n + 1)]
    drop_outputs: list[list[int]] = [[] for _ in range(n + 1)]
    for j in range(n - 1):
        if last_state[j] > j:
            drop_states[last_state[j]].append(j)
    for j in calls:
        drop_outputs[last_output[j]].append(j)
    states, outputs, noises = (_terms(matrix) for matrix in (tableau.states, tableau.outputs, tableau.noise))
    return [
        Row(
            node=k,
            time=float(tableau.times[k]),
            states=states[k],
            outputs=outputs[k],
            noises=noises[k],
            evaluate=k in calls,
            drop_states=tuple(drop_states[k]),
            drop_outputs=tuple(drop_outputs[k]),
            drop_after_call=(k,) if last_state[k] == k else (),
        )
        for k in range(n)
    ]


def _terms(matrix: Array) -> list[tuple[tuple[float, int], ...]]:
    """Per row its entries that are not zero, each with its column."""
    found: list[list[tuple[float, int]]] = [[] for _ in matrix]
    rows, columns = np.nonzero(matrix)
    for k, j, value in zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True):
        found[k].append((value, j))
    return [tuple(terms) for terms in found]


def _last_use(matrix: Array, unused: Array) -> list[int]:
    """Per column, the last row that is not zero there."""
    last, (rows, columns) = unused.copy(), np.nonzero(matrix)
    np.maximum.at(last, columns, rows)
    return [int(k) for k in last]


def peak_memory(plan: list[Row]) -> int:
    """Arrays of the state's size alive at once while the plan runs, the one being computed included."""
    live, peak = 1, 1
    for row in plan:
        if row.node > 0:
            live += 1
            peak = max(peak, live + (1 if row.noises else 0))
        live -= len(row.drop_states) + len(row.drop_outputs)
        if row.evaluate:
            live += 1
            peak = max(peak, live)
            live -= len(row.drop_after_call)
    return peak
