"""A recorder that runs: states, model outputs and noises with their arrays, and the numbers that combined them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.process import Process
from deis_analysis.tableau import Model, Tableau
from deis_analysis.tableau.brownian import path_of
from deis_analysis.tableau.recorder import KINDS, Line, Recorder

_FRESH = float(np.exp(28.0))  # ρ² beyond any process: where draws that belong to no step have their intervals


@dataclass(frozen=True, eq=False)
class Traced:
    """An array and its place in the recording.

    Attributes:
        key: 3 · index + kind, as in `recorder.Line`; an output has the index of the state it was called at.
        time: process time. value: the array, less the mean that the process reverts to.
    """

    key: int
    time: float
    value: Any

    @property
    def index(self) -> int:
        """Which of its kind it is."""
        return self.key // 3


class History:
    """What a run has seen, and the `Recorder` that it writes into: ``record``.

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
        process: Process,
        t_start: float,
        *,
        depth: int = 1,
        prediction: str = "eps",
        model_dtype: Any = None,
        check: bool = True,
    ) -> None:
        self._model = backend.guarded(model, x, model_dtype, check)
        self.centre = backend.Centre(process.mean, x, prediction)
        self.record = Recorder(process, np.array([t_start]), prediction)
        self.start = Traced(KINDS.index("state"), float(t_start), self.centre.off(x))
        self._placed: set[int] = set()
        self._like = x
        self._noise = _source(noise, x)
        self._add = backend.combination(x)
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
        """A state that is no combination of earlier ones; it leaves the run without a table."""
        self._placed.add(len(self.record.rows))
        return self._state(t, {}, value)

    def combine(self, t: float, terms: Iterable[tuple[Any, Traced]]) -> Traced:
        """The state Σ c·a at time ``t``; c a number, or an array that broadcasts (a number per sample, say)."""
        merged: dict[int, tuple[Any, Traced]] = {}
        for c, a in terms:
            merged[a.key] = (merged[a.key][0] + c if a.key in merged else c, a)
        in_order = sorted(merged.items(), key=lambda item: (item[0] % 3, item[0]))  # as `run` adds, to round alike
        parts = [(c if np.ndim(c) else float(c), a) for _, (c, a) in in_order]
        parts = [(c, a) for c, a in parts if np.ndim(c) or c != 0.0]
        if not parts:
            value = 0.0 * self._like
        elif all(np.ndim(c) == 0 for c, _ in parts):
            value = self._add([(c, a.value) for c, a in parts])
        else:
            value = reduce(lambda x, y: x + y, [c * a.value for c, a in parts])
        return self._state(t, {a.key: c for c, a in parts}, value)

    def _state(self, t: float, terms: dict[int, Any], value: Any) -> Traced:
        (key,) = self.record.state(Line(terms), t).terms
        return Traced(key, float(t), value)

    def evaluate(self, x: Traced) -> Traced:
        """The model output at the state ``x``, checked and counted."""
        value = self.centre.predicted(self._model(self.centre.on(x.value), x.time))
        output = Traced(3 * x.index + KINDS.index("output"), x.time, value)
        self.times.append(x.time)
        self.states.append(x)
        self.outputs.append(output)
        return output

    def draw(self, start: float | None = None, stop: float | None = None) -> Traced:
        """The next noise, standard normal: of the step over [stop, start] in the ρ² clock, or of no step."""
        index = len(self.record.intervals)
        if start is None or stop is None:
            start, stop = _FRESH * (index + 2), _FRESH * (index + 1)
        (key,) = self.record.noise((start, stop)).terms
        return Traced(key, np.nan, self._noise(index, float(start), float(stop)))

    def tableau(self, last: int, grid_nodes: Sequence[int], name: str, sample: int | None = None) -> Tableau:
        """The recording that leads to state ``last``, as a table: for all samples, or with the numbers of one."""
        kept = self._reached(last)
        position, whole = {k: i for i, k in enumerate(kept)}, self.record
        part = Recorder(whole.process, whole.ts, whole.prediction)

        def moved(key: int) -> int:
            return key if key % 3 == KINDS.index("noise") else 3 * position[key // 3] + key % 3

        part.rows = [{moved(key): _number(c, sample) for key, c in whole.rows[k].items()} for k in kept]
        part.times, part.intervals = [whole.times[k] for k in kept], whole.intervals
        part.grid_nodes = [position[k] for k in grid_nodes if k in position]
        return part.tableau(name)

    def varies(self, last: int) -> bool:
        """Whether a number on the way to state ``last`` differs between entries of the batch."""
        return any(np.size(_plain(c)) > 1 for k in self._reached(last) for c in self.record.rows[k].values())

    def opaque(self, last: int) -> bool:
        """Whether a state on the way to ``last`` was placed, not combined."""
        return not self._placed.isdisjoint(self._reached(last))

    def finish(self) -> None:
        """Report what the model's door left for after the run."""
        self._model.finish()

    def _reached(self, last: int) -> list[int]:
        reached, todo = {0, last}, [last]
        while todo:
            for key in self.record.rows[todo.pop()]:
                if key % 3 != KINDS.index("noise") and key // 3 not in reached:
                    reached.add(key // 3)
                    todo.append(key // 3)
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
