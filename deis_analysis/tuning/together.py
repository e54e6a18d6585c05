"""Many tables on one model, from the same noise: what several of them ask is asked once, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.fold import add_up
from deis_analysis.tableau.rows import Row
from deis_analysis.validate import checked, function, instance, positive_int, several

_DIGITS = 13  # of coefficients: tables that agree to so many ask the same questions
_MOST = 512  # samples in one call of the model
Asked = Callable[[int], None]


@dataclass
class _Walk:
    """A table on its way: values by node, and of each what it is made of."""

    plan: list[Row]
    times: list[float]
    states: dict[int, Any]
    names: dict[int, Any]  # node → what its state is, in words that equal states of other tables share
    outputs: dict[int, Any] = field(default_factory=dict)
    output_names: dict[int, Any] = field(default_factory=dict)
    at: int = 0

    def question(self) -> int | None:
        """Go on to the next node at which the model is asked; None at the end."""
        while self.at < len(self.plan):
            row = self.plan[self.at]
            self.at += 1
            if row.node:
                self._combine(row)
            if row.evaluate:
                return row.node
        return None

    def _combine(self, row: Row) -> None:
        parts = [(c, self.states[j]) for c, j in row.states] + [(c, self.outputs[j]) for c, j in row.outputs]
        said = [(_rounded(c), self.names[j]) for c, j in row.states]
        said += [(_rounded(c), self.output_names[j]) for c, j in row.outputs]
        self.states[row.node] = add_up(parts) if parts else 0.0 * self.states[0]
        self.names[row.node] = hash(tuple(sorted(said)))
        for j in row.drop_states:
            if j:
                self.states.pop(j, None)
        for j in row.drop_outputs:
            self.outputs.pop(j, None)

    @property
    def result(self) -> Any:
        return self.states[self.plan[-1].node]


def _rounded(c: float) -> str:
    return f"{c:.{_DIGITS}g}"


@checked
def run_together(
    tables: Sequence[Tableau], model: Any, x: Any, *, most: int = _MOST, asked: Asked | None = None
) -> list[Any]:
    """What `run` gives for each of the tables, from the same ``x``.

    Args:
        tables: deterministic ones. model: typed, or one that predicts what each table wants; it treats samples one by
            one. x: (B, …) states at the first time of them all.
        most: samples in one call. asked: called with the number of samples after each call.

    Returns:
        The end states; a table whose state is not finite on its way goes on with what it has.

    Raises:
        ValueError: a stochastic table, or one of a process that reverts to a mean.
    """
    x = backend.floating("x", x)
    if x.ndim == 0 or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (n, …) samples")
    positive_int("most", most), function("model", model)
    for table in several("tables", tables):
        if instance("tables", table, Tableau).stochastic or table.mean is not None:
            raise ValueError(f"table {table.name!r} draws noise or reverts to a mean; allowed: tables that do neither")
    walks = [_Walk(t.plan, t.times.tolist(), {0: x}, {0: 0}) for t in (t.for_model(model) for t in tables)]
    waiting = _asking(walks)
    while waiting:
        answers: dict[tuple[Any, float], Any] = {}
        for walk, node in waiting:
            answers.setdefault((walk.names[node], walk.times[node]), walk.states[node])
        _answer(answers, model, most, asked)
        for walk, node in waiting:
            key = (walk.names[node], walk.times[node])
            walk.outputs[node], walk.output_names[node] = answers[key], hash((*key, "p"))
        waiting = _asking([walk for walk, _ in waiting])
    return [walk.result for walk in walks]


def _asking(walks: list[_Walk]) -> list[tuple[_Walk, int]]:
    """Those that ask once more, each with the node at which."""
    found = [(walk, walk.question()) for walk in walks]
    return [(walk, node) for walk, node in found if node is not None]


def _answer(questions: dict[tuple[Any, float], Any], model: Any, most: int, asked: Asked | None) -> None:
    """Put answers in the place of states, the questions of one time in batches."""
    by_time: dict[float, list[tuple[Any, float]]] = {}
    for key in questions:
        by_time.setdefault(key[1], []).append(key)
    for t, keys in by_time.items():
        size = len(questions[keys[0]])
        chunk = max(1, most // size)
        for start in range(0, len(keys), chunk):
            part = keys[start : start + chunk]
            output = model(_joined([questions[key] for key in part]), t)
            for i, key in enumerate(part):
                like = questions[key]
                questions[key] = backend.cast(output[i * size : (i + 1) * size], like.dtype)
            if asked is not None:
                asked(size * len(part))


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if backend.is_torch(parts[0]):
        import torch

        return torch.cat(parts)
    return np.concatenate(parts)
