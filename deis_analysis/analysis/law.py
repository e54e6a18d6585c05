r"""The law of a sampler's output on Gaussian data, as exact linear algebra: no sampling.

For data N(m, C) the prediction is affine in x, along each principal axis of C separately.  Every state of a table is
then c x_T + d + Σ_l e_l z_l with numbers that the recurrence gives, so mean and covariance of the output are known; and
two tables driven by the same Brownian path differ by a Gaussian whose variance is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.tableau import Tableau, fold
from deis_analysis.tableau.rows import Matrices, make_plan, row_terms
from deis_analysis.validate import checked, finite, instance, real

Axes = tuple[Array, Array, Array]  # means (V,), variances (V,), principal axes (V, V) or ()


@checked
def affine_form(tableau: Tableau, process: Process, mean: Any, variance: Any) -> tuple[Array, Array, Array]:
    """The output on data N(mean, variance) as c x_T + d + Σ e_l z_l, along independent axes.

    Args:
        mean, variance: (V,) of the data along V axes, variance ≥ 0.

    Returns:
        c (V,), d (V,), e (V, L); x_T and the result are in the coordinates of the process (x − μ on `MeanReverting`).

    Raises:
        ValueError: negative or non-finite variances, a table that reverts to another mean than the process.
    """
    check_table(tableau, process)
    m, v = _data(mean, variance)
    gain, offset = np.zeros((2, tableau.times.size, v.size))
    for k in tableau.evaluated:
        gain[k], offset[k] = _prediction(process, tableau.prediction, float(tableau.times[k]), m, v)
    states, outputs, noise = tableau.matrices
    reach = _adjoint(states, outputs, gain)
    return reach[0], np.sum(offset * (outputs.T @ reach), axis=0), (noise.T @ reach).T


def _adjoint(states: Any, outputs: Any, gain: Array) -> Array:
    r"""(K + 1, V) by how much the result moves with each node: λ_j = Σ_k (S_kj + F_kj g_j) λ_k, λ_K = 1.

    With p = g u + o the table is u = (S + F g) u + F o + Z z, and its result is λ·(F o + Z z) and λ₀ x_T: one fold over
    the transposed table, whatever the number of noises.
    """
    n = states.shape[0]
    backward = tuple(csr_array(m.T)[::-1, ::-1] for m in (states, outputs))
    terms = [
        tuple((c, j) for c, j in of_states) + tuple((c * gain[n - 1 - k], j) for c, j in of_outputs)
        for k, (of_states, of_outputs) in enumerate(zip(*map(row_terms, backward), strict=True))
    ]
    union = Matrices(abs(backward[0]) + abs(backward[1]), csr_array((n, n)), csr_array((n, 0)))
    nothing: list[Any] = [()] * n
    reach = np.zeros(gain.shape)

    def place(k: int, u: Array) -> Array:
        reach[n - 1 - k] = u
        return u

    one = np.ones(gain.shape[1])
    fold(make_plan(union, (terms, nothing, nothing)), {0: one}, lambda *_: None, place=place, zero=0.0 * one)
    return reach


def check_table(tableau: Any, process: Any) -> None:
    """Raise a ValueError unless ``tableau`` is a `Tableau`, ``process`` a `Process`, and both revert to one mean."""
    instance("tableau", tableau, Tableau)
    require_process(process)
    a, b = (np.zeros(()) if mean is None else real("mean", mean) for mean in (tableau.mean, process.mean))
    if (a.ndim and b.ndim and a.shape != b.shape) or np.any(a != b):
        raise ValueError(f"tableau {tableau.name!r} reverts to the mean {tableau.mean!r}; allowed: {process.mean!r}")


def _data(mean: Any, variance: Any) -> tuple[Array, Array]:
    """(V,) means and (V,) variances of the data along V axes."""
    v = np.atleast_1d(finite("variance", variance, 0.0))
    if v.ndim != 1:
        raise ValueError(f"variance has shape {v.shape}; allowed: a number or (V,)")
    return _fitting("mean", mean, v.shape), v


def _fitting(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """``value`` as an array of ``shape``, from one number or an array of that shape."""
    m = finite(name, value)
    if m.shape not in ((), (1,), shape):
        raise ValueError(f"{name} has shape {m.shape}; allowed: one number or {shape}")
    return np.broadcast_to(m, shape)


def _target(process: Process, shape: tuple[int, ...]) -> Array:
    """The mean that the process reverts to, 0 if none, in ``shape``."""
    return np.zeros(shape) if process.mean is None else _fitting("mean of the process", process.mean, shape)


def _prediction(process: Process, prediction: str, t: float, mean: Array, variance: Array) -> tuple[Array, Array]:
    """(gain, offset) of the exact prediction gain · x + offset on N(mean, variance) at time t."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    part_x0, part_eps = process.prediction_parts(prediction, t)
    gain = (part_x0 * alpha * variance + part_eps * sigma) / (alpha**2 * variance + sigma**2)
    return gain, part_x0 * mean - gain * alpha * mean


def _axes(process: Process, mean: Any, covariance: Any) -> tuple[Axes, tuple[int, ...]]:
    """Mean and variances along principal axes, and the shape of the covariance given."""
    c = finite("covariance", covariance)
    if c.ndim > 2 or c.size == 0 or (c.ndim == 2 and c.shape[0] != c.shape[1]):
        raise ValueError(f"covariance has shape {c.shape}; allowed: a number, (d,) variances or (d, d)")
    size = 1 if c.ndim == 0 else c.shape[0]
    m = _fitting("mean", mean, (size,)) - _target(process, (size,))
    if c.ndim < 2:
        finite("covariance", covariance, 0.0)
        return (m, c.reshape(size), np.empty(0)), c.shape
    if not np.allclose(c, c.T, rtol=1e-12, atol=0):
        raise ValueError("covariance must be symmetric")
    values, vectors = np.linalg.eigh(c)
    if values.min() < -1e-12 * max(1.0, abs(values).max()):
        raise ValueError(f"covariance has the negative eigenvalue {values.min():.3g}; allowed: positive semi-definite")
    return (vectors.T @ m, np.maximum(values, 0.0), vectors), c.shape


@checked
def output_law(
    tableau: Tableau, process: Process, mean: Any, covariance: Any, *, start: tuple[Any, Any] | None = None
) -> tuple[Array, Array]:
    """Mean and covariance of a sampler's output for data N(mean, covariance) and the exact model of such data.

    Args:
        mean: number or (d,). covariance: variance, (d,) variances of independent coordinates, or (d, d).
        start: (mean, variance) of x_T, such as (0, 1): a number or (d,), and one variance ≥ 0 for all coordinates; by
            default the exact law of the process at the table's first time.

    Returns:
        mean (d,) or (), and covariance in the shape it was given.

    Raises:
        ValueError: a covariance that is not symmetric positive semi-definite; a mean or start of another shape or not
            finite; a table that reverts to another mean than the process.
    """
    check_table(tableau, process)
    (m, v, axes), shape = _axes(process, mean, covariance)
    c, d, e = affine_form(tableau, process, m, v)
    first = float(tableau.times[0])
    alpha, sigma = float(process.alpha(first)), float(process.sigma(first))
    shift = _target(process, m.shape)
    shift = axes.T @ shift if axes.size else shift
    if start is None:
        start_mean, start_variance = alpha * m, alpha**2 * v + sigma**2
    else:
        level, start_variance = _start(start, m.shape)
        start_mean = (axes.T @ level if axes.size else level) - shift
    out_mean = c * start_mean + d + shift
    variance = c**2 * start_variance + np.sum(e**2, axis=1)
    if axes.size:
        return axes @ out_mean, (axes * variance) @ axes.T
    return out_mean.reshape(shape if shape else ()), variance.reshape(shape)


def _start(start: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and variance of x_T as given, along all coordinates."""
    if not isinstance(start, (tuple, list)) or len(start) != 2:
        raise ValueError(f"start={start!r} must be a pair (mean, variance)")
    variance = finite("start variance", start[1], 0.0)
    if variance.ndim:
        raise ValueError(f"start variance has shape {variance.shape}; allowed: one number")
    return _fitting("start mean", start[0], shape), np.full(shape, float(variance))


@checked
def law_error(tableau: Tableau, process: Process, mean: Any, variance: Any) -> Array:
    """(V,) 2-Wasserstein distances between the output's law and the exact one, per axis of the data N(mean, variance).

    Between Gaussians in one dimension: √((difference of means)² + (difference of standard deviations)²).
    """
    m, v = _data(mean, variance)
    found_mean, found_variance = output_law(tableau, process, m, v)
    last = float(tableau.times[-1])
    alpha, sigma = float(process.alpha(last)), float(process.sigma(last))
    exact_mean = alpha * m + (1.0 - alpha) * _target(process, v.shape)
    difference = np.sqrt(found_variance) - np.sqrt(alpha**2 * v + sigma**2)
    return np.asarray(np.hypot(found_mean - exact_mean, difference))


@checked
def strong_distance(a: Tableau, b: Tableau, process: Process, mean: Any, variance: Any) -> Array:
    """(V,) root mean square distances between the outputs of two tables driven by one Brownian path from one x_T.

    Each noise is the normalised increment of the path over its interval of the ρ² clock, so noises of the two tables
    are correlated by the overlap of their intervals.

    Raises:
        ValueError: the intervals of a table overlap one another; the tables start at different times.
    """
    for table in (a, b):
        check_table(table, process)
    m, v = _data(mean, variance)
    m = m - _target(process, v.shape)
    if not np.isclose(a.times[0], b.times[0], rtol=1e-12, atol=0):
        raise ValueError(f"b starts at t={float(b.times[0])!r}; allowed: {float(a.times[0])!r}, where a starts")
    (c1, d1, e1), (c2, d2, e2) = (affine_form(table, process, m, v) for table in (a, b))
    first = float(a.times[0])
    alpha, sigma = float(process.alpha(first)), float(process.sigma(first))
    cuts = cells(a.intervals, b.intervals, 1e-13)
    difference = _on_cells(e1, a.intervals, cuts) - _on_cells(e2, b.intervals, cuts)
    square = (c1 - c2) ** 2 * (alpha**2 * v + sigma**2) + ((c1 - c2) * alpha * m + d1 - d2) ** 2
    return np.asarray(np.sqrt(square + np.sum(difference**2, axis=1)))


def cells(a: Array, b: Array, same: float = 1e-9) -> Array:
    """All ends of the intervals (·, 2) of two tables, descending, ends within ``same`` of one another taken as one."""
    ends = np.sort(np.concatenate([a.reshape(-1), b.reshape(-1)]))[::-1]
    keep = np.append(True, -np.diff(ends) > same * ends[:-1]) if ends.size else np.empty(0, dtype=bool)
    return np.array(ends[keep])


def _on_cells(e: Array, intervals: Array, cuts: Array) -> Array:
    """(V, cells) coefficients of the normalised increments over the cells between the cuts."""
    if intervals.size == 0:
        return np.zeros((e.shape[0], max(cuts.size - 1, 0)))
    index = np.array([[int(np.argmin(np.abs(cuts - end))) for end in pair] for pair in intervals])
    widths = -np.diff(cuts)
    share = np.zeros((intervals.shape[0], widths.size))
    for row, (high, low) in zip(share, index, strict=True):
        row[high:low] = np.sqrt(widths[high:low] / (cuts[high] - cuts[low]))
    if np.any(np.count_nonzero(share, axis=0) > 1):
        raise ValueError("intervals of the table overlap, so its noises are not independent on one path")
    return e @ share
