"""Many tables at once: one per slice of axis 0, all of the same structure, coefficients as arrays along that axis.

`run` moves a batch from one time to another.  Where every sample has its own start level (Denoising MCMC), or every
component its own process (a system of SDEs, as GDSS has one for the nodes and one for the edges of a graph), each
slice needs its own numbers, but the model should still be called once per node for all of them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse

from deis_analysis import backend
from deis_analysis.process.process import Array
from deis_analysis.tableau import Model, Tableau
from deis_analysis.tableau.brownian import BrownianPath, path_of
from deis_analysis.tableau.fold import fold
from deis_analysis.tableau.rows import Matrices, Row, make_plan, row_numbers
from deis_analysis.validate import checked, several


@checked
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
    tables = _alike(
        [table.for_model(model) if isinstance(table, Tableau) else table for table in several("tables", tables)]
    )
    start = backend.floating("x", x)
    if start.ndim == 0 or start.shape[0] != len(tables):
        raise ValueError(f"x has shape {tuple(start.shape)}; allowed: ({len(tables)}, ...), one slice per table")
    draw = _noises(tables, noise, start)
    call = backend.guarded(model, start, model_dtype, check)
    centre = backend.Centre(_means(tables, start), start, tables[0].prediction)
    times = np.stack([table.times for table in tables])

    def output(k: int, u: Any) -> Any:
        return centre.predicted(call(centre.on(u), as_times(times[:, k], start)))

    u = fold(_plan(tables, start), {0: centre.off(start)}, output, draw, zero=0.0 * start)
    call.finish()
    return centre.on(u)


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
        "number of noises": lambda table: table.noises,
        "reversion to a mean": lambda table: table.mean is not None,
    }
    for trait, read in traits.items():
        for i, table in enumerate(tables):
            if read(table) != read(tables[0]):
                raise ValueError(
                    f"tables[{i}] differs in {trait} from tables[0]: {read(table)!r}; allowed: {read(tables[0])!r}"
                )
    return tables


def _plan(tables: tuple[Tableau, ...], x: Any) -> list[Row]:
    """The plan of a table that is non-zero wherever one of them is, each coefficient an array with one per table."""
    union = Matrices(*(sum(map(abs, given)) for given in zip(*(table.matrices for table in tables), strict=True)))
    terms = []
    for key, pattern in union._asdict().items():
        at = row_numbers(pattern), pattern.indices
        values = np.stack([_entries(getattr(table.matrices, key), at) for table in tables], axis=1)
        pairs = [(backend.along(value, x), j) for value, j in zip(values, pattern.indices.tolist(), strict=True)]
        ends = pattern.indptr.tolist()
        terms.append([tuple(pairs[a:b]) for a, b in itertools.pairwise(ends)])
    return make_plan(union, tuple(terms))


def _entries(matrix: Any, at: tuple[Array, Array]) -> Array:
    """(nnz,) entries of a sparse matrix, zeros included."""
    found = matrix[at]
    return np.ravel(found.toarray() if issparse(found) else found)


def _means(tables: tuple[Tableau, ...], x: Any) -> Any:
    if tables[0].mean is None:
        return None
    return np.stack([np.broadcast_to(np.asarray(t.mean), tuple(x.shape[1:])) for t in tables])


def _noises(tables: tuple[Tableau, ...], noise: Any, x: Any) -> Callable[[int], Any]:
    count, shape = tables[0].noises, tuple(x.shape)
    if count == 0:
        return lambda _: None
    path = path_of(noise, shape)
    if path is not None:
        return lambda j: backend.like(_increments(path, [table.intervals[j] for table in tables]), x)
    if isinstance(noise, Sequence) or hasattr(noise, "shape"):
        if len(noise) != count or any(tuple(z.shape) != shape for z in noise):
            raise ValueError(f"noise must hold {count} arrays of shape {shape}")
        return lambda j: backend.alike(noise[j], x)
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
