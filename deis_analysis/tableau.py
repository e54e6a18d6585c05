r"""A sampler as a table of numbers, and the one loop that runs every table.

A sampler that calls the model K times is one explicit method over the whole interval [T, t₀]:

.. math:: u_k = \sum_{j<k} S_{kj} u_j + \sum_{j<k} F_{kj} p(u_j, t_j) + \sum_l Z_{kl} z_l ,
          \qquad u_0 = x_T , \quad \text{result } u_K .

This *recurrence* form runs.  `Tableau.butcher` eliminates the states; that form is unique, so two samplers are the same
method on a grid iff their Butcher forms are equal.  Number of model calls, history and memory are read off the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process import PREDICTIONS, Array, Process, choose

Model = Callable[[Any, float], Any]
_NODE_SLACK = 1e-12


def _frozen(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; allowed: {shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite; entry {np.argwhere(~np.isfinite(array))[0].tolist()} is not")
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Butcher:
    """The state-free form: the state at the m-th model call, and the result, in terms of x_T, outputs and noises.

    Attributes:
        times: (M,) time told at each of the M model calls.
        start: (M + 1,) coefficient of x_T at each call; the last entry is the result's.
        weights: (M + 1, M) coefficients of the model outputs, strictly lower triangular but for the last row.
        noise: (M + 1, L) coefficients of the noises.
        prediction: what the model predicts.
    """

    times: Array
    start: Array
    weights: Array
    noise: Array
    prediction: str


@dataclass(frozen=True, eq=False)
class Tableau:
    """One sampler on one grid. Structure is asserted here; consistency is a property that analysis reports.

    Attributes:
        times: (K + 1,) the time that the model is told at node k (an integer-time model is told a rounded one).
        states: (K + 1, K + 1) S, strictly lower triangular.
        outputs: (K + 1, K + 1) F, strictly lower triangular; node j is evaluated iff column j is not zero.
        prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``.
        noise: (K + 1, L) Z, row 0 zero; L = 0 for a deterministic sampler.
        name: how to call it.
        labels: a name per node, ``u0 … uK`` unless given.
        intervals: (L, 2) the interval of each noise column in the ρ² clock, larger end first.
        grid_nodes: the nodes that hold the state at the grid's times (the others are stages); all unless given.
        mean, mean_outputs: the table acts on x − ``mean``, with ``mean_outputs[k]·mean`` taken off the model's output
            (`MeanReverting`); None where the process reverts to 0.

    Raises:
        ValueError: shapes that do not match, entries on or above the diagonal, non-finite entries.
    """

    times: Array
    states: Array
    outputs: Array
    noise: Array | None = None
    prediction: str = "eps"
    name: str = ""
    labels: tuple[str, ...] = ()
    intervals: Array | None = None
    grid_nodes: tuple[int, ...] = ()
    mean: Any = field(default=None, repr=False)
    mean_outputs: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = np.size(self.times)
        if n < 2:
            raise ValueError(f"times has {n} entries; allowed: at least 2 nodes")
        choose("prediction", self.prediction, PREDICTIONS)
        noise = np.zeros((n, 0)) if self.noise is None else np.asarray(self.noise, dtype=np.float64)
        columns = noise.shape[1] if noise.ndim == 2 else 0
        arrays = {
            "times": _frozen("times", self.times, (n,)),
            "states": _frozen("states", self.states, (n, n)),
            "outputs": _frozen("outputs", self.outputs, (n, n)),
            "noise": _frozen("noise", noise, (n, columns)),
            "intervals": _frozen("intervals", np.zeros((0, 2)) if columns == 0 else self.intervals, (columns, 2)),
            "mean_outputs": _frozen("mean_outputs", np.zeros(n) if self.mean_outputs is None else self.mean_outputs, (n,)),
        }
        for name in ("states", "outputs"):
            if np.any(np.triu(arrays[name])):
                raise ValueError(f"{name} must be strictly lower triangular: node k may use nodes before it only")
        if np.any(arrays["noise"][0]):
            raise ValueError("noise must not act on node 0, which is x_T")
        labels = self.labels or tuple(f"u{k}" for k in range(n))
        nodes = tuple(int(k) for k in self.grid_nodes) or tuple(range(n))
        if len(labels) != n:
            raise ValueError(f"labels has {len(labels)} entries; allowed: {n}, one per node")
        if list(nodes) != sorted(set(nodes)) or nodes[0] != 0 or nodes[-1] != n - 1:
            raise ValueError(f"grid_nodes={nodes} must increase from 0 to {n - 1}")
        for name, value in {**arrays, "labels": tuple(labels), "grid_nodes": nodes}.items():
            object.__setattr__(self, name, value)

    # -- read off the table -----------------------------------------------------------------------
    @cached_property
    def evaluated(self) -> tuple[int, ...]:
        """Nodes at which the model is called, in order."""
        return tuple(int(j) for j in np.flatnonzero(np.any(self.outputs != 0, axis=0)))

    @property
    def nfe(self) -> int:
        """Number of model evaluations."""
        return len(self.evaluated)

    @property
    def stochastic(self) -> bool:
        """Whether noise enters."""
        return bool(np.any(self.noise))

    @property
    def history(self) -> int:
        """The largest number of model outputs that one row combines."""
        return int(np.max(np.count_nonzero(self.outputs, axis=1)))

    @cached_property
    def _plan(self) -> list[_Row]:
        return _make_plan(self)

    @cached_property
    def memory(self) -> int:
        """Arrays of the state's size alive at once, the one being computed included (DDIM: 3)."""
        live, peak = 1, 1
        for row in self._plan:
            if row.node > 0:
                live += 1
                peak = max(peak, live + (1 if row.noises else 0))
            live -= len(row.drop_states) + len(row.drop_outputs)
            if row.evaluate:
                live += 1
                peak = max(peak, live)
                live -= len(row.drop_after_call)
        return peak

    @cached_property
    def _butcher(self) -> Butcher:
        n, calls = self.times.size, self.evaluated
        rows = np.zeros((n, 1 + n + self.noise.shape[1]))  # columns: x_T, outputs of every node, noises
        rows[0, 0] = 1.0
        for k in range(1, n):
            used = np.flatnonzero(self.states[k])
            rows[k] = self.states[k, used] @ rows[used]
            rows[k, 1 : n + 1] += self.outputs[k]
            rows[k, n + 1 :] += self.noise[k]
        rows = rows[[*calls, n - 1]]
        weights = rows[:, [1 + j for j in calls]]
        parts = (self.times[list(calls)], rows[:, 0], weights, rows[:, n + 1 :])
        for part in parts:
            part.setflags(write=False)
        return Butcher(*parts, self.prediction)

    def butcher(self) -> Butcher:
        """The unique state-free form, see `Butcher`."""
        return self._butcher

    # -- new tables from old ----------------------------------------------------------------------
    def then(self, other: Tableau) -> Tableau:
        """This table, then ``other`` from where this one ends; associative.

        Raises:
            ValueError: the predictions differ, ``other`` does not start at this table's last time, or the means differ.
        """
        if other.prediction != self.prediction:
            raise ValueError(f"other predicts {other.prediction!r}; allowed: {self.prediction!r}, see in_terms_of")
        if abs(other.times[0] - self.times[-1]) > _NODE_SLACK * max(1.0, abs(self.times[-1])):
            raise ValueError(f"other starts at t={other.times[0]:.17g}; allowed: {self.times[-1]:.17g}, where this table ends")
        if (self.mean is None) != (other.mean is None) or (self.mean is not None and np.any(self.mean != other.mean)):
            raise ValueError("other reverts to another mean than this table")
        first, size = self.times.size - 1, self.times.size - 1 + other.times.size

        def stack(a: Array, b: Array) -> Array:
            total = np.zeros((size, size))
            total[: first + 1, : first + 1] = a
            total[first:, first:] += b
            return total

        columns = self.noise.shape[1]
        noise = np.zeros((size, columns + other.noise.shape[1]))
        noise[: first + 1, :columns], noise[first:, columns:] = self.noise, other.noise
        return Tableau(
            times=np.concatenate([self.times[:-1], other.times]),
            states=stack(self.states, other.states),
            outputs=stack(self.outputs, other.outputs),
            noise=noise,
            prediction=self.prediction,
            name=f"{self.name}·{other.name}",
            intervals=np.concatenate([self.intervals, other.intervals]),
            grid_nodes=(*self.grid_nodes, *(first + k for k in other.grid_nodes[1:])),
            mean=self.mean,
            mean_outputs=np.concatenate([self.mean_outputs[:-1], other.mean_outputs]),
        )

    def in_terms_of(self, process: Process, prediction: str) -> Tableau:
        """The same method as a table for a model that predicts something else, converted at the told times.

        The old prediction is a combination of x and the new one, so the x part moves from ``outputs`` into ``states``.

        Raises:
            ValueError: unknown prediction, or a called time at which the conversion is singular.
        """
        choose("prediction", prediction, PREDICTIONS)
        calls = list(self.evaluated)
        from_x, from_new = process.convert(prediction, self.prediction, self.times[calls])
        states, outputs = self.states.copy(), self.outputs.copy()
        states[:, calls] += self.outputs[:, calls] * from_x
        outputs[:, calls] *= from_new
        shift = np.zeros(self.times.size)
        if self.mean is not None:
            shift[calls] = process.prediction_parts(prediction, self.times[calls])[0]
        return replace(self, states=states, outputs=outputs, prediction=prediction, mean_outputs=shift)

    # -- reading and writing ----------------------------------------------------------------------
    def to_json(self) -> str:
        """Text that `from_json` restores bit for bit; matrices as [row, column, value] of their non-zero entries."""
        sparse = {
            name: [[int(k), int(j), float(matrix[k, j])] for k, j in np.argwhere(matrix)]
            for name, matrix in (("states", self.states), ("outputs", self.outputs), ("noise", self.noise))
        }
        mean = None if self.mean is None else np.asarray(self.mean, dtype=np.float64).tolist()
        return json.dumps(
            {
                "format": "deis_analysis.Tableau/1",
                "name": self.name,
                "prediction": self.prediction,
                "times": self.times.tolist(),
                **sparse,
                "intervals": self.intervals.tolist(),
                "labels": list(self.labels),
                "grid_nodes": list(self.grid_nodes),
                "mean": mean,
                "mean_outputs": self.mean_outputs.tolist(),
            }
        )

    @staticmethod
    def from_json(text: str) -> Tableau:
        """The table that `to_json` wrote; ValueError if ``text`` is not one."""
        try:
            data = json.loads(text)
            if data["format"] != "deis_analysis.Tableau/1":
                raise ValueError(f"text has format {data['format']!r}; allowed: 'deis_analysis.Tableau/1'")
            n, columns = len(data["times"]), len(data["intervals"])
            matrices = {"states": (n, n), "outputs": (n, n), "noise": (n, columns)}
            dense = {name: _dense(data[name], shape) for name, shape in matrices.items()}
            return Tableau(
                times=data["times"],
                **dense,
                prediction=data["prediction"],
                name=data["name"],
                labels=tuple(data["labels"]),
                intervals=np.array(data["intervals"]).reshape(columns, 2),
                grid_nodes=tuple(data["grid_nodes"]),
                mean=None if data["mean"] is None else np.array(data["mean"]),
                mean_outputs=data["mean_outputs"],
            )
        except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(f"text is not a tableau written by to_json: {error!r}") from error

    def __str__(self) -> str:
        return draw(self)

    def latex(self, digits: int = 4, limit: int = 12) -> str:
        """The Butcher form as a LaTeX array, at most ``limit`` calls wide (the middle ones elided)."""
        form = self.butcher()
        m = form.times.size
        shown: list[int | None] = list(range(m)) if m <= limit else [*range(limit // 2), None, *range(m - limit // 2, m)]
        head = " & ".join(r"\cdots" if j is None else f"p_{{{j}}}" for j in shown)
        lines = [rf"\begin{{array}}{{c|c|{'c' * len(shown)}}}", rf"t & x_T & {head} \\ \hline"]
        for k in [*shown, m]:
            if k is None:
                lines.append(r"\vdots & \vdots & " + " & ".join("" for _ in shown) + r" \\")
                continue
            if k == m:
                lines.append(r"\hline")
            cells = [r"\cdots" if j is None else _number(form.weights[k, j], digits, "") for j in shown]
            time = "" if k == m else f"{form.times[k]:.{digits}g}"
            lines.append(" & ".join([time, _number(form.start[k], digits, "0"), *cells]) + r" \\")
        return "\n".join([*lines, r"\end{array}"])


def _number(value: float, digits: int, zero: str) -> str:
    if value == 0:
        return zero
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return rf"{mantissa}\cdot10^{{{int(exponent)}}}" if exponent else mantissa


def _dense(entries: list[list[float]], shape: tuple[int, int]) -> Array:
    matrix = np.zeros(shape)
    for k, j, value in entries:
        matrix[int(k), int(j)] = value
    return matrix


def draw(tableau: Tableau, limit: int = 24) -> str:
    """The table as text: one equation per node, at most ``limit`` of them (the middle ones elided)."""
    n = tableau.times.size
    kind = f"{tableau.noise.shape[1]} noises" if tableau.stochastic else "deterministic"
    lines = [
        f"{tableau.name or 'tableau'}: {tableau.nfe} calls of {tableau.prediction}, {n} nodes, {kind}, "
        f"{tableau.memory} arrays in memory"
    ]
    rows = range(n) if n <= limit else [*range(limit // 2), -1, *range(n - limit // 2, n)]
    width = max(len(label) for label in tableau.labels)
    for k in rows:
        if k < 0:
            lines.append("  …")
            continue
        terms = [(tableau.states[k, j], tableau.labels[j]) for j in np.flatnonzero(tableau.states[k])]
        terms += [(tableau.outputs[k, j], f"p({tableau.labels[j]})") for j in np.flatnonzero(tableau.outputs[k])]
        terms += [(tableau.noise[k, j], f"z{j}") for j in np.flatnonzero(tableau.noise[k])]
        text = "x_T" if k == 0 else " ".join(f"{value:+.6g} {symbol}" for value, symbol in terms)
        lines.append(f"  t = {tableau.times[k]:<10.6g} {tableau.labels[k]:>{width}} = {text or '0'}")
    return "\n".join(lines)


# -- running --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Row:
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


def _make_plan(tableau: Tableau) -> list[_Row]:
    n, calls = tableau.times.size, set(tableau.evaluated)
    last_state = [int(np.max(np.flatnonzero(tableau.states[:, j]), initial=j)) for j in range(n)]
    last_output = [int(np.max(np.flatnonzero(tableau.outputs[:, j]), initial=-1)) for j in range(n)]
    last_state[-1] = n  # the result outlives the loop

    def terms(row: Array) -> tuple[tuple[float, int], ...]:
        return tuple((float(row[j]), int(j)) for j in np.flatnonzero(row))

    return [
        _Row(
            node=k,
            time=float(tableau.times[k]),
            states=terms(tableau.states[k]),
            outputs=terms(tableau.outputs[k]),
            noises=terms(tableau.noise[k]),
            evaluate=k in calls,
            drop_states=tuple(j for j in range(k) if last_state[j] == k),
            drop_outputs=tuple(j for j in calls if last_output[j] == k),
            drop_after_call=(k,) if last_state[k] == k else (),
        )
        for k in range(n)
    ]


@dataclass(frozen=True)
class Trajectory:
    """States and model outputs by node, as asked for by ``keep``."""

    states: dict[int, Any]
    outputs: dict[int, Any]


def run(
    tableau: Tableau,
    model: Model,
    x: Any,
    noise: Any = None,
    *,
    keep: str | Iterable[int] = (),
    progress: bool = False,
    model_dtype: Any = None,
    check: bool = True,
) -> Any:
    """Run a table: ``x`` at the table's first time becomes the result at its last.

    Works on whatever ``x`` is: NumPy, torch (any device, autograd) or JAX. Coefficients are float64 scalars; the state
    keeps the dtype of ``x``.  The model must not change ``x`` or its own earlier outputs in place.

    Args:
        model: ``model(x, t)`` with ``t`` a float in process time, returning an array of the shape of ``x``; its output
            is cast to the dtype of ``x``.
        x: the start, of any shape, of floating dtype.
        noise: for stochastic tables: a `BrownianPath`, an integer seed for one, a sequence of L arrays, or a function
            ``noise(l)``; arrays of the shape of ``x``, standard normal.
        keep: node indices, or ``"all"``; if given, the return value is (result, `Trajectory`).
        progress: show a progress bar.
        model_dtype: cast the state to it before each call (a bfloat16 network under a float64 state).
        check: look for NaN and infinity in each model output (after the run where arrays live on an accelerator).

    Raises:
        ValueError: integer or non-finite ``x``, missing noise, or a model output of another shape or not finite; the
            message names the call and its time.
    """
    start = backend.floating("x", x)
    kept = set(range(tableau.times.size)) if keep == "all" else _kept(tableau, keep)
    draw_noise = _noise_source(tableau, noise, start)
    call = backend.guarded(model, start, model_dtype, check)
    if tableau.mean is not None:
        mean = backend.like(tableau.mean, start)
        start = start - mean
    states: dict[int, Any] = {0: start}
    outputs: dict[int, Any] = {}
    trajectory = Trajectory({}, {})
    add = backend.combination(start)
    for row in backend.tracked(tableau._plan, tableau.name, progress):
        k = row.node
        if k > 0:
            parts = [(c, states[j]) for c, j in row.states] + [(c, outputs[j]) for c, j in row.outputs]
            if row.noises:
                parts += [(c, draw_noise(j)) for c, j in row.noises]
            states[k] = add(parts) if parts else 0.0 * start
            for j in row.drop_states:
                del states[j]
            for j in row.drop_outputs:
                del outputs[j]
        u = states[k]
        if k in kept:
            trajectory.states[k] = u if tableau.mean is None else u + mean
        if row.evaluate:
            if tableau.mean is None:
                outputs[k] = call(u, row.time)
            else:
                outputs[k] = call(u + mean, row.time) - float(tableau.mean_outputs[k]) * mean
            if k in kept:
                trajectory.outputs[k] = outputs[k]
            for j in row.drop_after_call:
                del states[j]
    call.finish()
    result = u if tableau.mean is None else u + mean
    return (result, trajectory) if kept else result


def _kept(tableau: Tableau, keep: str | Iterable[int]) -> set[int]:
    n = tableau.times.size
    if isinstance(keep, str) or any(not 0 <= int(k) < n for k in keep):
        raise ValueError(f"keep={keep!r} must be 'all' or node indices between 0 and {n - 1}")
    return {int(k) for k in keep}


def _noise_source(tableau: Tableau, noise: Any, x: Any) -> Callable[[int], Any]:
    count = tableau.noise.shape[1]
    if count == 0:
        return lambda _: None
    if noise is None:
        raise ValueError(f"noise=None, but {tableau.name or 'the table'} draws {count} noises; give a seed or a BrownianPath")
    if isinstance(noise, (int, np.integer)) and not isinstance(noise, bool):
        noise = BrownianPath(tuple(x.shape), int(noise))
    if isinstance(noise, BrownianPath):
        path = noise
        if path.shape != tuple(x.shape):
            raise ValueError(f"noise is a path of shape {path.shape}; allowed: {tuple(x.shape)}, the shape of x")
        return lambda j: backend.like(path.normal(*tableau.intervals[j]), x)
    if isinstance(noise, Sequence) or hasattr(noise, "shape"):
        if len(noise) != count or any(tuple(z.shape) != tuple(x.shape) for z in noise):
            raise ValueError(f"noise must hold {count} arrays of shape {tuple(x.shape)}")
        return lambda j: noise[j]
    if callable(noise):
        return noise
    raise ValueError(f"noise={noise!r} must be a seed, a BrownianPath, a sequence of {count} arrays, or a function of l")


class BrownianPath:
    """One Brownian path W in the ρ² clock, the same for every grid that asks: W(u) depends on (seed, u) alone.

    A virtual Brownian tree: W is bridged down a fixed binary tree in log u, each node with its own counter-based
    random stream, so that no query depends on earlier ones.  [Li et al. 2020, arXiv 2001.01328, alg. 3]

    Args:
        shape: the shape of one sample batch.
        seed: an integer ≥ 0.
    """

    _LOW, _HIGH, _DEPTH = -28.0, 28.0, 20  # the tree spans ρ² in [e^-28, e^28]

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        if int(seed) != seed or seed < 0:
            raise ValueError(f"seed={seed!r} must be an integer >= 0")
        self.shape, self.seed = tuple(shape), int(seed)
        self._memo: dict[int, Array] = {}

    def _draw(self, kind: int, index: int) -> Array:
        bits = np.random.Philox(key=self.seed, counter=[0, kind, index, 0])
        return np.random.Generator(bits).standard_normal(self.shape)

    @staticmethod
    def _bridge(a: float, w_a: Array, b: float, w_b: Array, u: float, z: Array) -> Array:
        share = (u - a) / (b - a)
        return (1 - share) * w_a + share * w_b + math.sqrt((u - a) * (1 - share)) * z

    def __call__(self, u: float) -> Array:
        """W(u), shape ``shape``; W(0) = 0; ValueError outside [0, e^28]."""
        low, high = self._LOW, self._HIGH
        if not 0 <= u <= math.exp(high):
            raise ValueError(f"u={u!r} must lie in [0, {math.exp(high):.3g}], in the ρ² clock")
        if u == 0:
            return np.zeros(self.shape)
        a, b = math.exp(low), math.exp(high)
        w_a = math.sqrt(a) * self._draw(0, 0)
        w_b = w_a + math.sqrt(b - a) * self._draw(0, 1)
        if u <= a:
            return w_a if u == a else self._bridge(0.0, np.zeros(self.shape), a, w_a, u, self._leaf(u))
        index = 1
        for _ in range(self._DEPTH):
            middle = 0.5 * (low + high)
            m = math.exp(middle)
            if index not in self._memo:
                self._memo[index] = self._bridge(a, w_a, b, w_b, m, self._draw(1, index))
            if u < m:
                high, b, w_b, index = middle, m, self._memo[index], 2 * index
            else:
                low, a, w_a, index = middle, m, self._memo[index], 2 * index + 1
        return w_a if u == a else self._bridge(a, w_a, b, w_b, u, self._leaf(u))

    def _leaf(self, u: float) -> Array:
        return self._draw(2, int(np.float64(u).view(np.uint64)))

    def normal(self, start: float, stop: float) -> Array:
        """The increment over an interval of the ρ² clock, as a standard normal: (W(start) − W(stop))/√|start − stop|."""
        if start == stop:
            raise ValueError(f"the interval [{start!r}, {stop!r}] is empty")
        return (self(float(start)) - self(float(stop))) / math.sqrt(abs(start - stop))
