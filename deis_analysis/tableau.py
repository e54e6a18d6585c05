r"""A sampler as a table of numbers, and the one loop that runs every table.

A sampler that calls the model K times is one explicit method over the whole interval [T, t₀]:

.. math:: u_k = \sum_{j<k} S_{kj} u_j + \sum_{j<k} F_{kj} p(u_j, t_j) + \sum_l Z_{kl} z_l ,
          \qquad u_0 = x_T , \quad \text{result } u_K .

This *recurrence* form runs.  `Tableau.butcher` eliminates the states; that form is unique, so two samplers are the same
method on a grid iff their Butcher forms are equal.  Number of model calls, history and memory are read off the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis import backend, printing
from deis_analysis.brownian import path_of
from deis_analysis.liveness import Row, make_plan, peak_memory
from deis_analysis.process import PREDICTIONS, Array, Process
from deis_analysis.validate import choose, positive_int, real

Model = Callable[[Any, float], Any]
_NODE_SLACK = 1e-12


def _frozen(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    owned = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.base is None
    array = value if owned and not value.flags.writeable else real(name, value)  # read-only: no copy
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
        mean: the table acts on x − ``mean`` (`MeanReverting`), and takes the mean off an x₀ output; other predictions
            do not depend on where the origin is. None where the process reverts to 0.

    Raises:
        ValueError: shapes that do not match, entries on or above the diagonal, non-finite entries.
    """

    times: Array
    states: Array
    outputs: Array
    noise: Array = None  # type: ignore[assignment]
    prediction: str = "eps"
    name: str = ""
    labels: tuple[str, ...] = ()
    intervals: Array = None  # type: ignore[assignment]
    grid_nodes: tuple[int, ...] = ()
    mean: Any = field(default=None, repr=False)

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
    def _plan(self) -> list[Row]:
        return make_plan(self)

    @cached_property
    def memory(self) -> int:
        """Arrays of the state's size alive at once, the one being computed included (DDIM: 3)."""
        return peak_memory(self._plan)

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
        """This table, then ``other`` from where this one ends; associative. Nodes are labelled anew.

        Raises:
            ValueError: the predictions differ, ``other`` does not start at this table's last time, or the means differ.
        """
        if other.prediction != self.prediction:
            raise ValueError(f"other predicts {other.prediction!r}; allowed: {self.prediction!r}, see in_terms_of")
        if abs(other.times[0] - self.times[-1]) > _NODE_SLACK * max(1.0, abs(self.times[-1])):
            raise ValueError(
                f"other starts at t={other.times[0]:.17g}; allowed: {self.times[-1]:.17g}, where this table ends"
            )
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
        return replace(self, states=states, outputs=outputs, prediction=prediction)

    # -- reading and writing ----------------------------------------------------------------------
    def to_json(self) -> str:
        """Text that `from_json` restores bit for bit."""
        return printing.to_json(self)

    @staticmethod
    def from_json(text: str) -> Tableau:
        """The table that `to_json` wrote; ValueError if ``text`` is not one."""
        return Tableau(**printing.parse(text))

    def __str__(self) -> str:
        return printing.draw(self)

    def latex(self, digits: int = 4, limit: int = 12) -> str:
        """The Butcher form as a LaTeX array, at most ``limit`` calls wide (the middle ones elided)."""
        return printing.latex(self, digits, limit)


# -- running --------------------------------------------------------------------------------------
Builder = Callable[[Process, Array], Tableau]  # a sampler: its table on descending times


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

    Works on whatever ``x`` is: NumPy, torch (any device, autograd, inside vmap, jvp and grad of torch.func) or JAX.
    Coefficients are float64 scalars; the state keeps the dtype of ``x``.  The model must not change ``x`` or its own
    earlier outputs in place.

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
    kept = _kept(tableau, keep)
    draw_noise = _noise_source(tableau, noise, start)
    call = backend.guarded(model, start, model_dtype, check)
    if tableau.mean is not None:
        mean = backend.like(tableau.mean, start)
        start = start - mean
    zero = None if all(row.combines for row in tableau._plan[1:]) else 0.0 * start
    states: dict[int, Any] = {0: start}
    outputs: dict[int, Any] = {}
    trajectory = Trajectory({}, {})
    add = backend.combination(start)
    del start, x
    for row in backend.tracked(tableau._plan, tableau.name, progress):
        k = row.node
        if k > 0:  # no local name keeps an array that the plan lets go
            states[k] = add(_terms(row, states, outputs, draw_noise)) if row.combines else zero
            for j in row.drop_states:
                del states[j]
            for j in row.drop_outputs:
                del outputs[j]
        if k in kept:
            trajectory.states[k] = states[k] if tableau.mean is None else states[k] + mean
        if row.evaluate:
            if tableau.mean is None:
                outputs[k] = call(states[k], row.time)
            else:
                output = call(states[k] + mean, row.time)
                outputs[k] = output - mean if tableau.prediction == "x0" else output
            if k in kept:
                trajectory.outputs[k] = outputs[k]
            for j in row.drop_after_call:
                del states[j]
    call.finish()
    result = states[k] if tableau.mean is None else states[k] + mean
    return (result, trajectory) if kept else result


def _terms(
    row: Row, states: dict[int, Any], outputs: dict[int, Any], draw_noise: Callable[[int], Any]
) -> list[tuple[float, Any]]:
    parts = [(c, states[j]) for c, j in row.states]
    parts += [(c, outputs[j]) for c, j in row.outputs]
    if row.noises:
        parts += [(c, draw_noise(j)) for c, j in row.noises]
    return parts


def _kept(tableau: Tableau, keep: str | Iterable[int]) -> set[int]:
    n = tableau.times.size
    if isinstance(keep, str) and keep == "all":
        return set(range(n))
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise ValueError(f"keep={keep!r} must be 'all' or node indices between 0 and {n - 1}")
    kept = {positive_int("keep", k, minimum=0) for k in keep}
    if kept and max(kept) >= n:
        raise ValueError(f"keep={sorted(kept)} must be 'all' or node indices between 0 and {n - 1}")
    return kept


def _noise_source(tableau: Tableau, noise: Any, x: Any) -> Callable[[int], Any]:
    count = tableau.noise.shape[1]
    if count == 0:
        return lambda _: None
    if noise is None:
        raise ValueError(
            f"noise=None, but {tableau.name or 'the table'} draws {count} noises; give a seed or a BrownianPath"
        )
    path = path_of(noise, tuple(x.shape))
    if path is not None:
        return lambda j: backend.like(path.normal(*tableau.intervals[j]), x)
    if isinstance(noise, Sequence) or hasattr(noise, "shape"):
        if len(noise) != count or any(tuple(z.shape) != tuple(x.shape) for z in noise):
            raise ValueError(f"noise must hold {count} arrays of shape {tuple(x.shape)}")
        return lambda j: noise[j]
    if callable(noise):
        return noise
    raise ValueError(
        f"noise={noise!r} must be a seed, a BrownianPath, a sequence of {count} arrays, or a function of l"
    )
