"""A sampler run on symbols: states, model outputs and noises are linear expressions, and the recording is its table.

r = Recorder(process, ts, "eps")
x = r.x_T
for ... in ...:
    x = r.node(a * x + b * r.call(x))
table = r.tableau("name")
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from deis_analysis.process.process import Array, Process
from deis_analysis.tableau.rows import row_numbers
from deis_analysis.tableau.tableau import Tableau

KINDS = ("state", "output", "noise")
_STATE, _OUTPUT, _NOISE = range(3)


class Line:
    """Σ c·a over recorded states, outputs and noises; knows ``+``, ``-`` and multiplication by numbers.

    Attributes:
        terms: 3 · index + kind → coefficient; kind 0 is a state, 1 an output, 2 a noise.
    """

    __slots__ = ("terms",)
    __array_ufunc__ = None  # a NumPy number leaves the multiplication to `__rmul__`

    def __init__(self, terms: dict[int, Any]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Line:
        if not isinstance(other, Line):
            return self if isinstance(other, int) and other == 0 else NotImplemented  # the start of sum()
        terms = dict(self.terms)
        for key, c in other.terms.items():
            terms[key] = terms[key] + c if key in terms else c
        return Line(terms)

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Line:
        return Line({key: factor * c for key, c in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Line) -> Line:
        return self + -1.0 * other

    def __truediv__(self, divisor: Any) -> Line:
        return Line({key: c / divisor for key, c in self.terms.items()})

    @property
    def state(self) -> int | None:
        """The index of the one state that this is, None for a combination."""
        if len(self.terms) != 1:
            return None
        ((key, c),) = self.terms.items()
        return key // 3 if key % 3 == _STATE and c == 1.0 else None


def combined(weights: Iterable[float], lines: Iterable[Line]) -> Line:
    """Σ weight · line, over the shorter of the two, without the terms of weight 0."""
    return sum((w * line for w, line in zip(weights, lines, strict=False) if w), start=Line({}))


class Recorder:
    """Writes down what a sampler does in ``process`` on the grid ``ts`` with a model of ``prediction``.

    Attributes:
        x_T: the start.
    """

    def __init__(self, process: Process, ts: Array, prediction: str = "eps") -> None:
        self.process, self.ts, self.prediction = process, ts, prediction
        self.times: list[float] = [float(ts[0])]
        self.rows: list[dict[int, Any]] = [{}]
        self.intervals: list[tuple[float, float]] = []
        self.grid_nodes: list[int] = [0]
        self.x_T = Line({_STATE: 1.0})

    def state(self, x: Line, t: float) -> Line:
        """``x`` as a state of its own at time ``t``, so that later ones can refer to it; ``x`` then is that state."""
        self.rows.append(x.terms)
        self.times.append(float(t))
        x.terms = {3 * (len(self.rows) - 1) + _STATE: 1.0}
        return x

    def node(self, x: Line) -> Line:
        """``x`` as the state at the next time of the grid."""
        self.state(x, self.ts[len(self.grid_nodes)])
        self.grid_nodes.append(len(self.rows) - 1)
        return x

    def call(self, x: Line, t: float | None = None) -> Line:
        """The model's output at ``x``, told ``t``, by default the time of the state that ``x`` is.

        A combination becomes a state by it, see `state`.
        """
        k = x.state
        if k is None or (t is not None and float(t) != self.times[k]):
            k = self.state(x if k is None else 1.0 * x, self.times[k or 0] if t is None else t).state
        return Line({3 * (k or 0) + _OUTPUT: 1.0})

    def noise(self, interval: Any) -> Line:
        """A new standard normal noise: the path's increment over ``interval`` of the ρ² clock, larger end first."""
        self.intervals.append((float(interval[0]), float(interval[1])))
        return Line({3 * (len(self.intervals) - 1) + _NOISE: 1.0})

    def tableau(self, name: str = "") -> Tableau:
        """The recording as a table.

        Raises:
            ValueError: coefficients that are not finite; names the step.
        """
        n, keys, values, counts = len(self.rows), list[int](), list[float](), list[int]()
        for terms in self.rows:
            keys += terms.keys()
            values += terms.values()
            counts.append(len(terms))
        rows = np.repeat(np.arange(n), counts)
        key, value = np.array(keys, dtype=int), np.array(values, dtype=np.float64)
        matrices: list[csr_array] = []
        for kind, columns in ((_STATE, n), (_OUTPUT, n), (_NOISE, len(self.intervals))):
            of_kind = key % 3 == kind
            at, column, c = rows[of_kind], key[of_kind] // 3, value[of_kind]
            order = np.lexsort((column, at))
            starts = np.searchsorted(at, np.arange(n + 1))
            matrices.append(csr_array((c[order], column[order], starts), shape=(n, columns)))
        return assemble(
            self.process,
            np.array(self.times),
            matrices[0],
            matrices[1],
            matrices[2],
            self.prediction,
            name,
            self.grid_nodes,
            self.intervals,
        )


def assemble(
    process: Process,
    times: Array,
    states: Any,
    outputs: Any,
    noise: Any,
    prediction: str,
    name: str,
    grid_nodes: Any = (),
    intervals: Any = (),
) -> Tableau:
    """A table for ``process``, shifted by the mean that the process reverts to; sparse matrices, ``noise`` or None.

    Raises:
        ValueError: coefficients that are not finite; names the step.
    """
    given = [m for m in (states, outputs, noise) if m is not None]
    k = min(int(row_numbers(m)[~np.isfinite(m.data)].min(initial=times.size)) for m in given)
    if k < times.size:
        raise ValueError(
            f"t={float(times[k - 1])!r} to {float(times[k])!r}: the step of {name} is singular there on {process!r}; "
            "allowed: times at which its coefficients are finite"
        )
    return Tableau(
        times=times,
        states=states,
        outputs=outputs,
        noise=noise,
        prediction=prediction,
        name=name,
        grid_nodes=tuple(grid_nodes),
        intervals=np.reshape(intervals, (-1, 2)),
        mean=process.mean,
        process=process,
    )
