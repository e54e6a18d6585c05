r"""A sampler as a table of numbers, and running it.

A sampler that calls the model K times is one explicit method over the whole interval [T, t₀]:

.. math:: u_k = \sum_{j<k} S_{kj} u_j + \sum_{j<k} F_{kj} p(u_j, t_j) + \sum_l Z_{kl} z_l ,
          \qquad u_0 = x_T , \quad \text{result } u_K .

This *recurrence* form is stored sparsely and runs, by the one `fold`.  `Tableau.butcher` eliminates the states; that
form is unique, so two samplers are the same method on a grid iff their Butcher forms are equal.  Number of model calls,
history, memory and depth are read off the table.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from deis_analysis import backend
from deis_analysis.process.convention import type_of
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.tableau.brownian import path_of
from deis_analysis.tableau.fold import fold
from deis_analysis.tableau.rows import Matrices, Row, compressed, make_plan, peak_memory, row_numbers
from deis_analysis.tableau.text import as_html, butcher_html, draw, latex, parse, to_json
from deis_analysis.validate import boolean, checked, choose, finite, instance, positive_int, real, several

Model = Callable[[Any, float], Any]
_NODE_SLACK = 1e-12
_MOST_DENSE = 2 * 10**8  # numbers in a dense matrix: 1.6 GB


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

    def _repr_html_(self) -> str:
        return butcher_html(self)

    def _repr_latex_(self) -> str:
        return f"${latex(self)}$"


@dataclass(frozen=True, eq=False, repr=False)
class Tableau:
    """One sampler on one grid. Structure is asserted here; consistency is a property that analysis reports.

    Only entries that are not zero are kept; ``states``, ``outputs`` and ``noise`` are dense matrices made when asked
    for, and ``matrices`` the sparse ones.

    Attributes:
        times: (K + 1,) the time that the model is told at node k (an integer-time model is told a rounded one).
        states: (K + 1, K + 1) S, strictly lower triangular; dense or scipy.sparse.
        outputs: (K + 1, K + 1) F, strictly lower triangular; node j is evaluated iff column j is not zero.
        prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``.
        noise: (K + 1, L) Z, row 0 zero; L = 0 for a deterministic sampler.
        name: how to call it.
        labels: a name per node; unless given ``u0 u0.1 u1 …``, the number of the step, then of the stage.
        intervals: (L, 2) the interval of each noise column in the ρ² clock, larger end first.
        grid_nodes: the nodes that hold the state at the grid's times (the others are stages); all unless given.
        mean: the table acts on x − ``mean`` (`MeanReverting`), and takes the mean off an x₀ output; other predictions
            do not depend on where the origin is. None where the process reverts to 0.
        process: the process it was made for, where known; `run` compares it with that of a typed model.

    Raises:
        ValueError: shapes that do not match, entries on or above the diagonal, non-finite entries.
    """

    times: Array
    states: Any
    outputs: Any
    noise: Any = field(default_factory=lambda: None)
    prediction: str = "eps"
    name: str = ""
    labels: tuple[str, ...] = field(default_factory=tuple)
    intervals: Array = None  # type: ignore[assignment]
    grid_nodes: tuple[int, ...] = ()
    mean: Any = None
    process: Process | None = None

    def __post_init__(self) -> None:
        given = self.__dict__
        n = real("times", self.times).size
        if n < 2:
            raise ValueError(f"times has {n} entries; allowed: at least 2 nodes")
        choose("prediction", self.prediction, PREDICTIONS)
        instance("name", self.name, str)
        if self.process is not None:
            require_process(self.process)
        if self.mean is not None:
            finite("mean", self.mean)
        noise = given["noise"]
        shape = (n, 0) if noise is None else noise.shape if issparse(noise) else real("noise", noise).shape
        columns = shape[1] if len(shape) == 2 else 0
        matrices = Matrices(
            compressed("states", given["states"], (n, n)),
            compressed("outputs", given["outputs"], (n, n)),
            compressed("noise", np.zeros((n, 0)) if noise is None else noise, (n, columns)),
        )
        for name in ("states", "outputs"):
            matrix = getattr(matrices, name)
            if np.any(matrix.indices >= row_numbers(matrix)):
                raise ValueError(f"{name} must be strictly lower triangular: node k may use nodes before it only")
        if matrices.noise.indptr[1]:
            raise ValueError("noise must not act on node 0, which is x_T")
        nodes = tuple(positive_int("grid_nodes", k, 0) for k in several("grid_nodes", self.grid_nodes)) or range(n)
        if np.any(np.diff(nodes) <= 0) or nodes[0] != 0 or nodes[-1] != n - 1:
            raise ValueError(f"grid_nodes={reprlib.repr(nodes)} must increase from 0 to {n - 1}")
        labels = tuple(instance("labels", label, str) for label in several("labels", given["labels"]))
        if labels and len(labels) != n:
            raise ValueError(f"labels has {len(labels)} entries; allowed: {n}, one per node")
        kept = {
            "times": _frozen("times", self.times, (n,)),
            "intervals": _frozen("intervals", np.zeros((0, 2)) if columns == 0 else self.intervals, (columns, 2)),
            "grid_nodes": tuple(nodes),
            "matrices": matrices,
            "given_labels": labels,
        }
        for name in ("states", "outputs", "noise", "labels"):
            del given[name]
        given.update(kept)

    def __getattr__(self, name: str) -> Any:
        """The dense matrices and the labels, which are made when asked for."""
        if name in Matrices._fields and "matrices" in self.__dict__:
            sparse = getattr(self.matrices, name)
            if math.prod(sparse.shape) > _MOST_DENSE:
                raise ValueError(f"{name} has shape {sparse.shape}, too large for a dense matrix; see matrices")
            dense = sparse.toarray()
            dense.setflags(write=False)
            return dense
        if name == "labels" and "matrices" in self.__dict__:
            return tuple(self.label(k) for k in range(self.times.size))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @checked
    def label(self, k: int) -> str:
        """The name of node k."""
        if self.given_labels:
            return self.given_labels[k]
        step = int(np.searchsorted(self.grid_nodes, k, side="right")) - 1
        stage = k - self.grid_nodes[step]
        return f"u{step}.{stage}" if stage else f"u{step}"

    # -- read off the table -----------------------------------------------------------------------
    @cached_property
    def evaluated(self) -> tuple[int, ...]:
        """Nodes at which the model is called, in order."""
        return tuple(np.unique(self.matrices.outputs.indices).tolist())

    @property
    def nfe(self) -> int:
        """Number of model evaluations."""
        return len(self.evaluated)

    @property
    def noises(self) -> int:
        """L, the number of noise columns."""
        return int(self.matrices.noise.shape[1])

    @property
    def stochastic(self) -> bool:
        """Whether noise enters."""
        return bool(self.matrices.noise.nnz)

    @property
    def history(self) -> int:
        """The largest number of model outputs that one row combines."""
        return int(np.max(np.diff(self.matrices.outputs.indptr)))

    @cached_property
    def plan(self) -> list[Row]:
        """What each row combines and lets go, for `fold`."""
        return make_plan(self.matrices)

    @cached_property
    def memory(self) -> int:
        """Arrays of the state's size alive at once, the one being computed included (DDIM: 3)."""
        return peak_memory(self.plan)

    @cached_property
    def depth(self) -> int:
        """The longest chain of model calls that need one another: ``nfe`` unless some can run side by side."""

        def deepest(parts: list[tuple[float, int]]) -> int:
            return max(depth for _, depth in parts)

        return int(fold(self.plan, {0: 0}, lambda _, depth: depth + 1, lambda _: 0, add=deepest, zero=0))

    @cached_property
    def _butcher(self) -> Butcher:
        calls, size = {k: m for m, k in enumerate(self.evaluated)}, 1 + self.nfe + self.noises
        if (self.nfe + 1) * size > _MOST_DENSE:
            raise ValueError(f"tableau {self.name!r}: {self.nfe} calls are too many for a Butcher form, which is dense")
        rows = np.zeros((self.nfe + 1, size))

        def unit(i: int) -> Array:
            values = np.zeros(size)
            values[i] = 1.0
            return values

        def output(k: int, u: Array) -> Array:
            rows[calls[k]] = u
            return unit(1 + calls[k])

        rows[-1] = fold(self.plan, {0: unit(0)}, output, lambda j: unit(1 + self.nfe + j), zero=np.zeros(size))
        rows.setflags(write=False)
        times = self.times[list(self.evaluated)]
        times.setflags(write=False)
        return Butcher(times, rows[:, 0], rows[:, 1 : 1 + self.nfe], rows[:, 1 + self.nfe :], self.prediction)

    def butcher(self) -> Butcher:
        """The unique state-free form, see `Butcher`."""
        return self._butcher

    # -- new tables from old ----------------------------------------------------------------------
    def changed(self, **changes: Any) -> Tableau:
        """This table with some fields replaced; without making its matrices dense."""
        kept = {f.name: self.__dict__[f.name] for f in fields(self) if f.name in self.__dict__}
        return Tableau(**(kept | self.matrices._asdict() | {"labels": self.given_labels} | changes))

    @checked
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
        first = self.times.size - 1
        shifts = (first, first, self.noises)
        states, outputs, noise = (
            _stacked(a, b, shift) for a, b, shift in zip(self.matrices, other.matrices, shifts, strict=True)
        )
        return Tableau(
            times=np.concatenate([self.times[:-1], other.times]),
            states=states,
            outputs=outputs,
            noise=noise,
            prediction=self.prediction,
            name=f"{self.name}·{other.name}",
            intervals=np.concatenate([self.intervals, other.intervals]),
            grid_nodes=(*self.grid_nodes, *(first + k for k in other.grid_nodes[1:])),
            mean=self.mean,
            process=self.process if self.process == other.process else None,
        )

    @checked
    def in_terms_of(self, process: Process, prediction: str) -> Tableau:
        """The same method as a table for a model that predicts something else, converted at the told times.

        The old prediction is a combination of x and the new one, so the x part moves from ``outputs`` into ``states``.

        Raises:
            ValueError: unknown prediction, or a called time at which the conversion is singular.
        """
        choose("prediction", prediction, PREDICTIONS)
        if prediction == self.prediction:
            return self
        calls = list(self.evaluated)
        from_x, from_new = np.zeros((2, self.times.size))
        from_x[calls], from_new[calls] = process.convert(prediction, self.prediction, self.times[calls])
        states, outputs, _ = self.matrices
        moved, kept = (
            csr_array((outputs.data * factor[outputs.indices], outputs.indices, outputs.indptr), shape=outputs.shape)
            for factor in (from_x, from_new)
        )
        return self.changed(states=states + moved, outputs=kept, prediction=prediction)

    def for_model(self, model: Any) -> Tableau:
        """This method for what ``model`` predicts, if it says so (see `deis_analysis.Model`); itself for a function.

        Raises:
            ValueError: the model's process is another than the table's; names both.
        """
        known = type_of(model)
        if known is None:
            return self
        process, prediction = known
        if self.process is not None and self.process != process:
            raise ValueError(
                f"model is one of {process!r}, but tableau {self.name!r} was made for {self.process!r}; "
                "allowed: a model of the table's process"
            )
        return self.in_terms_of(process, prediction)

    # -- reading and writing ----------------------------------------------------------------------
    def to_json(self) -> str:
        """Text that `from_json` restores bit for bit, but for the process, which it does not hold."""
        return to_json(
            self.matrices,
            name=self.name,
            prediction=self.prediction,
            times=self.times.tolist(),
            intervals=self.intervals.tolist(),
            labels=list(self.given_labels),
            grid_nodes=list(self.grid_nodes),
            mean=None if self.mean is None else np.asarray(self.mean, dtype=np.float64).tolist(),
        )

    @staticmethod
    def from_json(text: str) -> Tableau:
        """The table that `to_json` wrote; ValueError if ``text`` is not one."""
        return Tableau(**parse(text))

    @property
    def _title(self) -> str:
        kind = f"{self.noises} noises" if self.stochastic else "deterministic"
        depth = "" if self.depth == self.nfe else f", {self.depth} deep"
        return (
            f"{self.name or 'tableau'}: {self.nfe} calls of {self.prediction}{depth}, {self.times.size} nodes, {kind}, "
            f"{self.memory} arrays in memory"
        )

    def __repr__(self) -> str:
        return f"<Tableau {self._title}>"

    def __str__(self) -> str:
        return draw(self._title, self.times, self.label, self.plan)

    def _repr_html_(self) -> str:
        return as_html(self._title, self.times, self.label, self.plan)

    @checked
    def latex(self, digits: int = 4, limit: int = 12) -> str:
        """The Butcher form as a LaTeX array, at most ``limit`` calls wide (the middle ones elided)."""
        positive_int("digits", digits, most=20), positive_int("limit", limit, 2)
        return latex(self.butcher(), digits, limit)

    def _repr_latex_(self) -> str:
        return f"${self.latex()}$"


def _stacked(a: csr_array, b: csr_array, shift: int) -> csr_array:
    """Rows of ``a``, then those of ``b`` but its first, which is empty, with columns moved by ``shift``."""
    rows = a.shape[0] + b.shape[0] - 1
    return csr_array(
        (
            np.concatenate([a.data, b.data]),
            np.concatenate([a.indices, b.indices + shift]),
            np.concatenate([a.indptr, b.indptr[2:] + a.nnz]),
        ),
        shape=(rows, b.shape[1] + shift),
    )


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
            is cast to the dtype of ``x``.  The table is converted to what it predicts if it says so, see
            `deis_analysis.Model`; a bare function predicts what the table wants.
        x: the start, of any shape, of floating dtype.
        noise: for stochastic tables: a `BrownianPath`, an integer seed for one, a sequence of L arrays, or a function
            ``noise(l)``; arrays of the shape of ``x``, standard normal.
        keep: node indices, or ``"all"``; if given, the return value is (result, `Trajectory`).
        progress: show a progress bar.
        model_dtype: cast the state to it before each call (a bfloat16 network under a float64 state).
        check: look for NaN and infinity in each model output (after the run where arrays live on an accelerator).

    Raises:
        ValueError: integer or non-finite ``x``, missing noise, a model of another process, or a model output of another
            shape or not finite; the message names the call and its time.
    """
    for name, given in (("progress", progress), ("check", check)):
        boolean(name, given)
    tableau = instance("tableau", tableau, Tableau).for_model(model)
    start = backend.floating("x", x)
    kept = _kept(tableau, keep)
    draw_noise = _noise_source(tableau, noise, start)
    call = backend.guarded(model, start, model_dtype, check)
    centre = backend.Centre(tableau.mean, start, tableau.prediction)
    trajectory = Trajectory({}, {})
    times = tableau.times.tolist()

    def output(k: int, u: Any) -> Any:
        p = call(centre.on(u), times[k])
        if k in kept:
            trajectory.outputs[k] = p
        return centre.predicted(p)

    def place(k: int, u: Any) -> Any:
        if k in kept:
            trajectory.states[k] = centre.on(u)
        return u

    plan = tableau.plan
    zero = None if all(row.combines for row in plan[1:]) else 0.0 * start
    states = {0: centre.off(start)}
    add = backend.combination(start)
    del start, x
    rows = backend.tracked(plan, tableau.name, progress)
    u = fold(rows, states, output, draw_noise, place=place if kept else None, add=add, zero=zero)
    call.finish()
    result = centre.on(u)
    return (result, trajectory) if kept else result


def _kept(tableau: Tableau, keep: str | Iterable[int]) -> set[int]:
    n = tableau.times.size
    if isinstance(keep, str) and keep == "all":
        return set(range(n))
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise ValueError(f"keep={keep!r} must be 'all' or node indices between 0 and {n - 1}")
    kept = {positive_int("keep", k, minimum=0) for k in several("keep", keep)}
    if kept and max(kept) >= n:
        raise ValueError(f"keep={sorted(kept)} must be 'all' or node indices between 0 and {n - 1}")
    return kept


def _noise_source(tableau: Tableau, noise: Any, x: Any) -> Callable[[int], Any]:
    count = tableau.noises
    if count == 0:
        return lambda _: None
    if noise is None:
        raise ValueError(
            f"noise=None, but {tableau.name or 'the table'} draws {count} noises; give a seed or a BrownianPath"
        )
    path = path_of(noise, tuple(x.shape))
    if path is not None:
        return lambda j: backend.like(path.normal(*tableau.intervals[j]), x)
    if isinstance(noise, Sequence) or (hasattr(noise, "shape") and not isinstance(noise, type) and len(noise.shape)):
        if len(noise) != count or any(tuple(z.shape) != tuple(x.shape) for z in noise):
            raise ValueError(f"noise must hold {count} arrays of shape {tuple(x.shape)}")
        return lambda j: backend.alike(noise[j], x)
    if callable(noise):
        return noise
    raise ValueError(
        f"noise={noise!r} must be a seed, a BrownianPath, a sequence of {count} arrays, or a function of l"
    )
