"""The sparse matrices of a table, and the order in which its rows are run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, issparse

from deis_analysis.validate import Array, real

Terms = tuple[tuple[Any, int], ...]  # (coefficient, node): the few entries of a row that are not zero


class Matrices(NamedTuple):
    """S (n, n), F (n, n) and Z (n, L) of a table, compressed by rows."""

    states: csr_array
    outputs: csr_array
    noise: csr_array


class Row(NamedTuple):
    """What `fold` does at one node: combine, forget what no later row uses, call the model."""

    node: int
    states: Terms
    outputs: Terms
    noises: Terms
    evaluate: bool
    drop_states: tuple[int, ...]
    drop_outputs: tuple[int, ...]
    drop_after_call: tuple[int, ...]  # the node's own state, where only the model needed it

    @property
    def combines(self) -> bool:
        """Whether the row has any term; a row without one is zero."""
        return bool(self.states or self.outputs or self.noises)


def compressed(name: str, value: Any, shape: tuple[int, int]) -> csr_array:
    """``value``, a matrix or a sparse array, as a read-only float64 CSR array without explicit zeros.

    Raises:
        ValueError: another shape, or entries that are not finite; named with ``name``.
    """
    if issparse(value):
        found = csr_array(value, dtype=np.float64)
        if not found.has_canonical_format:
            found = found.copy()
            found.sum_duplicates()
        if not np.all(found.data):
            kept = found.data != 0
            found = from_triplets(row_numbers(found)[kept], found.indices[kept], found.data[kept], found.shape)
    else:
        dense = real(name, value) if not isinstance(value, np.ndarray) or value.dtype != np.float64 else value
        if dense.ndim != 2:
            raise ValueError(f"{name} has shape {dense.shape}; allowed: {shape}")
        rows, columns = np.nonzero(dense)
        found = from_triplets(rows, columns, dense[rows, columns], dense.shape)
    if found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}; allowed: {shape}")
    if not np.all(np.isfinite(found.data)):
        at = int(np.flatnonzero(~np.isfinite(found.data))[0])
        where = [int(row_numbers(found)[at]), int(found.indices[at])]
        raise ValueError(f"{name} must be finite; entry {where} is not")
    for part in (found.data, found.indices, found.indptr):
        part.setflags(write=False)
    return found


def from_triplets(rows: Array, columns: Array, values: Array, shape: tuple[int, int]) -> csr_array:
    """A CSR array from entries sorted by row."""
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    return csr_array((values, columns, starts), shape=shape)


def row_numbers(matrix: csr_array) -> Array:
    """(nnz,) the row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def row_terms(matrix: csr_array) -> list[Terms]:
    """Per row its entries, each with its column."""
    pairs = list(zip(matrix.data.tolist(), matrix.indices.tolist(), strict=True))
    return [tuple(pairs[a:b]) for a, b in pairwise(matrix.indptr.tolist())]


def make_plan(matrices: Matrices, terms: tuple[list[Terms], ...] | None = None) -> list[Row]:
    """One `Row` per node, in order; ``terms`` of the three matrices, where they are not numbers."""
    n = matrices.states.shape[0]
    called = np.zeros(n, dtype=bool)
    called[matrices.outputs.indices] = True
    last_state, last_output = (_last_use(m) for m in (matrices.states, matrices.outputs))
    last_state = np.maximum(last_state, np.arange(n))
    last_state[-1] = n  # the result outlives the loop
    drop_states = _grouped(np.flatnonzero(last_state[:-1] > np.arange(n - 1)), last_state, n)
    drop_outputs = _grouped(np.flatnonzero(called), last_output, n)
    only_called = (last_state == np.arange(n)).tolist()
    states, outputs, noises = terms or tuple(row_terms(m) for m in matrices)
    return [
        Row(k, s, f, z, call, ds, df, (k,) if only else ())
        for k, (s, f, z, call, ds, df, only) in enumerate(
            zip(states, outputs, noises, called.tolist(), drop_states, drop_outputs, only_called, strict=True)
        )
    ]


def _last_use(matrix: csr_array) -> Array:
    """Per node, the last row that has it as a column; −1 for none."""
    last = np.full(matrix.shape[0], -1)
    np.maximum.at(last, matrix.indices, row_numbers(matrix))
    return last


def _grouped(nodes: Array, last: Array, n: int) -> list[tuple[int, ...]]:
    """Per row, those of ``nodes`` whose last use it is."""
    found: list[tuple[int, ...]] = [()] * n
    for j, k in zip(nodes.tolist(), last[nodes].tolist(), strict=True):
        found[k] = (*found[k], j)
    return found


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


def subdiagonal(values: Array) -> csr_array:
    """(N + 1, N + 1) matrix with ``values`` (N,) below its diagonal."""
    return band(np.asarray(values)[:, None])


def band(rows: Array) -> csr_array:
    """(N + 1, N + 1) matrix whose row k + 1 holds ``rows[k]`` at the columns k, k − 1, …"""
    steps, width = rows.shape
    columns = np.arange(steps)[:, None] - np.arange(width)[::-1]
    inside = columns >= 0
    counts = np.append(0, np.cumsum(np.append(0, inside.sum(axis=1))))
    return csr_array((rows[:, ::-1][inside], columns[inside], counts), shape=(steps + 1, steps + 1))
