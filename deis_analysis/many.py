"""Many tables at once: one per slice of axis 0, all of the same structure, coefficients as arrays along that axis.

`run` moves a batch from one time to another.  Where every sample has its own start level (Denoising MCMC), or every
component its own process (a system of SDEs, as GDSS has one for the nodes and one for the edges of a graph), each
slice needs its own numbers, but the model should still be called once per node for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.brownian import BrownianPath, path_of
from deis_analysis.liveness import Row, make_plan
from deis_analysis.process import Array
from deis_analysis.tableau import Model, Tableau


def run_many(
    tables: Sequence[Tableau], model: Model, x: Any, noise: Any = None, *, model_dtype: Any = None, check: bool = True
) -> Any:
    """Run table i on slice ``x[i]``, all together: one model call per node for the whole of ``x``.

    Slice i of the result is, to rounding, slice i of ``run(tables[i], …)`` on the same noise.

    Args:
        tables: n tables with the same number of nodes, the same evaluated nodes, the same prediction and the same
            number of noises; their times and coefficients are their own.
        model: ``model(x, t)`` with ``t`` of shape (n,), in process time, float64, of the library of ``x``; returns the
            shape of ``x``.  See `by_time` for a model that takes one time.
        x: (n, …) start, floating dtype, NumPy or torch.
        noise: for stochastic tables: an integer seed, a `BrownianPath` of the shape of ``x``, a sequence of L arrays of
            that shape, or a function ``noise(l)``.  A path is asked for the intervals of each table.
        model_dtype: dtype in which the model sees ``x``. check: refuse model outputs that are not finite.

    Returns:
        (n, …) array, the kind and dtype of ``x``.

    Raises:
        ValueError: structures that differ, ``x`` without one slice per table, noise that does not fit, a model output
            of another shape or not finite.

    Source: the "per-sample start level" of Denoising MCMC (Kim & Ye 2022, arXiv 2209.14593) and the systems
    of SDEs of GDSS (Jo et al. 2022, arXiv 2202.02514).
    """
    tables = _alike(tables)
    start = backend.floating("x", x)
    if start.ndim == 0 or start.shape[0] != len(tables):
        raise ValueError(f"x has shape {tuple(start.shape)}; allowed: ({len(tables)}, ...), one slice per table")
    draw = _noises(tables, noise, start)
    call = backend.guarded(model, start, model_dtype, check)
    mean = _means(tables, start)
    state = start if mean is None else start - mean
    states, outputs = {0: state}, dict[int, Any]()
    zero = 0.0 * state
    times = np.stack([table.times for table in tables])
    stacks = [np.stack([getattr(table, key) for table in tables]) for key in ("states", "outputs", "noise")]
    shift_output = mean is not None and tables[0].prediction == "x0"
    for row in make_plan(_pattern(tables)):
        k = row.node
        if k > 0:
            states[k] = _combine(row, stacks, (states, outputs), draw, zero)
            for j in row.drop_states:
                del states[j]
            for j in row.drop_outputs:
                del outputs[j]
        if row.evaluate:
            told: Any = as_times(times[:, k], start)
            output = call(states[k] if mean is None else states[k] + mean, told)
            outputs[k] = output - mean if shift_output else output
            for j in row.drop_after_call:
                del states[j]
    call.finish()
    return states[k] if mean is None else states[k] + mean


def by_time(model: Model) -> Model:
    """A ``model(x, t)`` of one time as a model of t with shape (n,): slices at equal times are called together.

    Works for NumPy and torch; as many calls per node as there are different times.
    """

    def of_times(x: Any, t: Any) -> Any:
        values = np.asarray(t.detach().cpu() if backend.is_torch(t) else t, dtype=np.float64)
        if values.shape != (x.shape[0],):
            raise ValueError(f"t has shape {values.shape}; allowed: ({x.shape[0]},), one time per slice of x")
        unique, group = np.unique(values, return_inverse=True)
        if unique.size == 1:
            return model(x, float(unique[0]))
        result = 0.0 * x
        for i, time in enumerate(unique):
            members = np.flatnonzero(group == i)
            result[members] = backend.cast(model(x[members], float(time)), x.dtype)
        return result

    return of_times


def along(values: Any, x: Any) -> Any:
    """(n,) numbers as an array of the kind of ``x`` that multiplies its slices: shape (n, 1, …, 1)."""
    return backend.like(np.asarray(values, dtype=np.float64).reshape(-1, *(1,) * (x.ndim - 1)), x)


def as_times(values: Array, x: Any) -> Any:
    """(n,) times for a model, of the library of ``x``, float64: in float32 the ends of a range fall outside it."""
    if backend.is_torch(x):
        torch = sys.modules["torch"]
        return torch.as_tensor(values, dtype=torch.float64, device=x.device)
    return np.array(values)


def _alike(tables: Sequence[Tableau]) -> tuple[Tableau, ...]:
    tables = tuple(tables)
    if not tables or any(not isinstance(table, Tableau) for table in tables):
        raise ValueError(f"tables={tables!r} must hold at least one Tableau, and nothing else")
    traits: dict[str, Callable[[Tableau], Any]] = {
        "nodes": lambda table: table.times.size,
        "evaluated nodes": lambda table: table.evaluated,
        "prediction": lambda table: table.prediction,
        "number of noises": lambda table: table.noise.shape[1],
        "reversion to a mean": lambda table: table.mean is not None,
    }
    for trait, read in traits.items():
        for i, table in enumerate(tables):
            if read(table) != read(tables[0]):
                raise ValueError(
                    f"tables[{i}] differs in {trait} from tables[0]: {read(table)!r}; allowed: {read(tables[0])!r}"
                )
    return tables


def _pattern(tables: tuple[Tableau, ...]) -> Tableau:
    """A table that is non-zero wherever one of them is: its plan serves all."""
    first = tables[0]
    states, outputs, noise = (
        np.any([getattr(table, key) != 0 for table in tables], axis=0).astype(np.float64)
        for key in ("states", "outputs", "noise")
    )
    return Tableau(first.times, states, outputs, noise, first.prediction, intervals=first.intervals)


def _combine(
    row: Row,
    stacks: list[Array],
    values: tuple[dict[int, Any], dict[int, Any]],
    draw: Callable[[int], Any],
    zero: Any,
) -> Any:
    total = None
    sources = (*(source.__getitem__ for source in values), draw)
    for stack, terms, source in zip(stacks, (row.states, row.outputs, row.noises), sources, strict=True):
        for _, j in terms:
            part = along(stack[:, row.node, j], zero) * source(j)
            total = part if total is None else total + part
    return zero if total is None else total


def _means(tables: tuple[Tableau, ...], x: Any) -> Any:
    if tables[0].mean is None:
        return None
    return backend.like(np.stack([np.broadcast_to(np.asarray(t.mean), tuple(x.shape[1:])) for t in tables]), x)


def _noises(tables: tuple[Tableau, ...], noise: Any, x: Any) -> Callable[[int], Any]:
    count, shape = tables[0].noise.shape[1], tuple(x.shape)
    if count == 0:
        return lambda _: None
    path = path_of(noise, shape)
    if path is not None:
        return lambda j: backend.like(_increments(path, [table.intervals[j] for table in tables]), x)
    if isinstance(noise, Sequence) or hasattr(noise, "shape"):
        if len(noise) != count or any(tuple(z.shape) != shape for z in noise):
            raise ValueError(f"noise must hold {count} arrays of shape {shape}")
        return lambda j: noise[j]
    if callable(noise):
        return noise
    raise ValueError(
        f"noise={noise!r}, but the tables draw {count} noises; allowed: a seed, a BrownianPath of shape {shape}, "
        f"a sequence of {count} arrays, or a function of l"
    )


def _increments(path: BrownianPath, intervals: list[Array]) -> Array:
    """Slice i of the path's increment over interval i; equal intervals are asked for once."""
    result = np.empty(path.shape)
    unique, group = np.unique(np.array(intervals), axis=0, return_inverse=True)
    for i, (start, stop) in enumerate(unique):
        members = group.reshape(-1) == i
        result[members] = path.normal(float(start), float(stop))[members]
    return result
