"""The tape of a run: states, model outputs and noises, and the numbers that combined them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.tableau import Model, Tableau
from deis_analysis.tableau.brownian import path_of

_KINDS = ("state", "output", "noise")  # the order in which `run` adds terms, so that a rerun rounds alike
_FRESH = float(np.exp(28.0))  # ρ² beyond any process: where draws that belong to no step have their intervals


@dataclass(frozen=True, eq=False)
class Traced:
    """An array and its place on the tape.

    Attributes:
        kind: ``"state"``, ``"output"`` (of the model) or ``"noise"``.
        index: which of its kind; an output has the index of the state it was called at.
        time: process time. value: the array, less the mean that the process reverts to.
    """

    kind: str
    index: int
    time: float
    value: Any


class History:
    """What a run has seen, and the tape it writes.

    Attributes:
        times: every time at which the model was called, in order.
        states, outputs: the latest ``depth`` evaluated states and their outputs, latest last.
        carry: what a stepper keeps from one step to the next (a step size, say).
        accepted, rejected: steps taken, and steps tried and thrown away.
    """

    def __init__(
        self,
        model: Model,
        x: Any,
        noise: Any,
        *,
        depth: int = 1,
        mean: Any = None,
        prediction: str = "eps",
        model_dtype: Any = None,
        check: bool = True,
    ) -> None:
        self._model = backend.guarded(model, x, model_dtype, check)
        self._own_mean, self._prediction = mean, prediction
        self._mean = None if mean is None else backend.like(mean, x)
        self._shift_output = self._mean is not None and prediction == "x0"
        self._like = x
        self._noise = _source(noise, x)
        self._add = backend.combination(x)
        self.tape: list[tuple[float, tuple[tuple[Any, str, int], ...] | None]] = []
        self.intervals: list[tuple[float, float]] = []
        self.times: list[float] = []
        self.states: deque[Traced] = deque(maxlen=depth)
        self.outputs: deque[Traced] = deque(maxlen=depth)
        self.carry: dict[str, Any] = {}
        self.accepted = self.rejected = 0

    @property
    def nfe(self) -> int:
        """Model calls so far, those of rejected steps included."""
        return self._model.calls

    def place(self, t: float, value: Any) -> Traced:
        """A state that is no combination of earlier ones; but for x_T, it leaves the run without a table."""
        self.tape.append((float(t), None))
        return Traced("state", len(self.tape) - 1, float(t), value)

    def combine(self, t: float, terms: Iterable[tuple[Any, Traced]]) -> Traced:
        """The state Σ c·a at time ``t``; c a number, or an array that broadcasts (a number per sample, say)."""
        merged: dict[tuple[int, int], tuple[Any, Traced]] = {}
        for c, a in terms:
            key = (_KINDS.index(a.kind), a.index)
            merged[key] = (merged[key][0] + c if key in merged else c, a)
        parts = [(c if np.ndim(c) else float(c), a) for _, (c, a) in sorted(merged.items(), key=lambda item: item[0])]
        parts = [(c, a) for c, a in parts if np.ndim(c) or c != 0.0]
        if not parts:
            value = 0.0 * self._like
        elif all(np.ndim(c) == 0 for c, _ in parts):
            value = self._add([(c, a.value) for c, a in parts])
        else:
            value = reduce(lambda x, y: x + y, [c * a.value for c, a in parts])
        self.tape.append((float(t), tuple((c, a.kind, a.index) for c, a in parts)))
        return Traced("state", len(self.tape) - 1, float(t), value)

    def evaluate(self, x: Traced) -> Traced:
        """The model output at the state ``x``, checked and counted."""
        value = self._model(x.value if self._mean is None else x.value + self._mean, x.time)
        output = Traced("output", x.index, x.time, value - self._mean if self._shift_output else value)
        self.times.append(x.time)
        self.states.append(x)
        self.outputs.append(output)
        return output

    def draw(self, start: float | None = None, stop: float | None = None) -> Traced:
        """The next noise, standard normal: of the step over [stop, start] in the ρ² clock, or of no step."""
        index = len(self.intervals)
        if start is None or stop is None:
            start, stop = _FRESH * (index + 2), _FRESH * (index + 1)
        self.intervals.append((float(start), float(stop)))
        return Traced("noise", index, np.nan, self._noise(index, float(start), float(stop)))

    def tableau(self, last: int, grid_nodes: Sequence[int], name: str, sample: int | None = None) -> Tableau:
        """The tape that leads to state ``last``, as a table: for all samples, or with the numbers of one."""
        kept = self._reached(last)
        position = {k: i for i, k in enumerate(kept)}
        n = len(kept)
        arrays = {"state": np.zeros((n, n)), "output": np.zeros((n, n)), "noise": np.zeros((n, len(self.intervals)))}
        for k in kept[1:]:
            for c, kind, j in self.tape[k][1] or ():
                arrays[kind][position[k], j if kind == "noise" else position[j]] = _number(c, sample)
        return Tableau(
            times=np.array([self.tape[k][0] for k in kept]),
            states=arrays["state"],
            outputs=arrays["output"],
            noise=arrays["noise"],
            prediction=self._prediction,
            name=name,
            intervals=np.array(self.intervals).reshape(-1, 2),
            grid_nodes=tuple(position[k] for k in grid_nodes if k in position),
            mean=self._own_mean,
        )

    def varies(self, last: int) -> bool:
        """Whether a number on the way to state ``last`` differs between entries of the batch."""
        return any(np.size(_plain(c)) > 1 for k in self._reached(last)[1:] for c, _, _ in self.tape[k][1] or ())

    def opaque(self, last: int) -> bool:
        """Whether a state on the way to ``last`` was placed, not combined."""
        return any(self.tape[k][1] is None for k in self._reached(last)[1:])

    def finish(self) -> None:
        """Report what the model's door left for after the run."""
        self._model.finish()

    def _reached(self, last: int) -> list[int]:
        reached, todo = {0, last}, [last]
        while todo:
            for _, kind, j in self.tape[todo.pop()][1] or ():
                if kind != "noise" and j not in reached:
                    reached.add(j)
                    todo.append(j)
        return sorted(reached)


def _plain(c: Any) -> Any:
    return np.asarray(backend.detached(c).cpu()) if backend.is_torch(c) else c


def _number(c: Any, sample: int | None) -> float:
    values = np.asarray(_plain(c), dtype=np.float64)
    if values.size > 1 and sample is not None:
        values = values[sample]
    if values.size != 1:
        raise ValueError(f"the numbers of sample {sample} differ between its channels, {values.shape}: no one table")
    return float(values.reshape(()))


def _source(noise: Any, x: Any) -> Callable[[int, float, float], Any]:
    """noise as a function of (column, interval); how many there will be is not known."""
    path = path_of(noise, tuple(x.shape))
    if path is not None:
        return lambda _, start, stop: backend.like(path.normal(start, stop), x)
    if noise is None or callable(noise):
        return lambda column, *_: _checked_noise(noise(column) if noise else None, column, x)
    if isinstance(noise, Sequence) or hasattr(noise, "shape"):
        return lambda column, *_: _checked_noise(noise[column] if column < len(noise) else None, column, x)
    raise ValueError(f"noise={noise!r} must be a seed, a BrownianPath, a sequence of arrays, or a function of l")


def _checked_noise(z: Any, column: int, x: Any) -> Any:
    if z is None:
        raise ValueError(
            f"noise has nothing for draw {column}; allowed: a seed, a BrownianPath, a function of l, or enough arrays"
        )
    if tuple(getattr(z, "shape", ())) != tuple(x.shape):
        raise ValueError(f"noise {column} has shape {getattr(z, 'shape', None)}; allowed: {tuple(x.shape)}")
    return z
