r"""The monotone map between two one-dimensional mixtures of K Gaussians with the same weights: F_to(y) = F_from(x).

Between separated modes the cdf equals a cumulative weight to rounding, so it is never formed.  With the components in
the order of their means, for every split j into the first j (left) and the others (right), and z = (y − m)/s,

.. math:: F(y) - \sum_{k<j} w_k = R_j(y) - L_j(y) , \qquad
          R_j = \sum_{k≥j} w_k Φ(z_k) , \qquad L_j = \sum_{k<j} w_k Φ(-z_k) ,

an identity without the cumulative weight.  Left and right have the same weights on both sides of the map, so y solves

.. math:: R_j(y) - L_j(y) = c_j := R_j(x) - L_j(x) .

If y lies between the means of components j − 1 and j of the target, all terms are tails; everything is in logarithms,
so tails of e^{-10^7} count, and no level is a plateau.  What is left is the rounding of x itself: an error δ of the
cdf at x moves y by δ/p_to(y), which is large only near the boundary between two basins.  That is the error reported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.process import Array

_ROUNDING = 4.0 * np.finfo(np.float64).eps


def match_quantiles(x: Array, log_w: Array, source: Any, target: Any) -> tuple[Array, Array]:
    """(y, estimate of its error) with F_target(y) = F_source(x), the shape of ``x``.

    Args:
        x: finite float64. log_w: (…, K) logarithms of the weights, −inf allowed.
        source, target: (means, standard deviations), each broadcasting to (…, K); the means in the same order in both.

    Raises:
        ValueError: an ``x`` so far out that the logarithm of its tail is not finite.
    """
    from scipy.optimize.elementwise import find_root

    shape = np.broadcast_shapes(x.shape, log_w.shape[:-1])
    full = (*shape, log_w.shape[-1])
    log_w, m, s, m_to, s_to = (np.broadcast_to(p, full).reshape(-1, full[-1]) for p in (log_w, *source, *target))
    order = np.argsort(np.where(np.isneginf(log_w), np.inf, m_to), axis=-1, kind="stable")
    log_w, m, s, m_to, s_to = (np.take_along_axis(p, order, -1) for p in (log_w, m, s, m_to, s_to))
    x = np.broadcast_to(x, shape).reshape(-1)
    active = np.sum(np.isfinite(log_w), axis=-1)

    def mismatch(y: Array, sign: Array, level: Array, split: Array, i: Array) -> Array:
        """Increases with y, 0 at the answer: log of the larger side minus log of the smaller one and |c|."""
        left, right = _tails(y, log_w[i], m_to[i], s_to[i], split)
        positive = right - np.logaddexp(left, np.where(sign >= 0, level, -np.inf))
        return np.where(sign >= 0, positive, np.logaddexp(right, level) - left)

    with np.errstate(invalid="ignore"):
        lost = np.isnan(_level(x, log_w, m, s, 0 * active)[0]) | np.isnan(_level(x, log_w, m, s, active)[0])
    if lost.any():
        raise ValueError(f"x={float(x[np.argmax(lost)])!r} is too far out: the logarithm of its tail is not finite")
    everything = np.arange(x.size)
    first, last = np.zeros(x.size, dtype=int), active.copy()  # bisection for the split, between which means y lies
    while np.any(open_ := first < last):
        i = everything[open_]
        middle = (first[i] + last[i]) // 2
        sign, level = _level(x[i], log_w[i], m[i], s[i], middle)
        beyond = mismatch(m_to[i, middle], sign, level, middle, i) < 0
        first[i], last[i] = np.where(beyond, middle + 1, first[i]), np.where(beyond, last[i], middle)
    sign, level = _level(x, log_w, m, s, first)
    low, high = _bracket(log_w, m_to, s_to, first, active, sign, level)
    args = (sign, level, first, everything)
    at_low, at_high = mismatch(low, *args), mismatch(high, *args)
    y = np.where(at_low >= 0, low, high)  # a root at the edge but for rounding
    inside = (at_low < 0) & (at_high > 0)
    if inside.any():
        found = find_root(mismatch, (low[inside], high[inside]), args=tuple(a[inside] for a in args))
        y[inside] = found.x
    errors = _error(x, y, log_w, (m, s), (m_to, s_to))
    return y.reshape(shape), errors.reshape(shape)


def _tails(y: Array, log_w: Array, m: Array, s: Array, split: Array) -> tuple[Array, Array]:
    """(log L_j, log R_j) at ``y`` (n,), j = ``split`` (n,)."""
    from scipy.special import log_ndtr

    left = np.arange(log_w.shape[-1]) < split[:, None]
    z = (y[:, None] - m) / s
    terms = log_w + log_ndtr(np.where(left, -z, z))
    inside = (np.where(left, terms, -np.inf), np.where(left, -np.inf, terms))
    return np.logaddexp.reduce(inside[0], axis=-1), np.logaddexp.reduce(inside[1], axis=-1)


def _level(x: Array, log_w: Array, m: Array, s: Array, split: Array) -> tuple[Array, Array]:
    """(sign, log |c_j|); the sign is nan where both tails underflow even in logarithms."""
    left, right = _tails(x, log_w, m, s, split)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = right - left
        level = np.maximum(left, right) + np.log(-np.expm1(-np.abs(gap)))
    return np.sign(gap), np.where(gap == 0, -np.inf, level)


def _bracket(
    log_w: Array, m: Array, s: Array, split: Array, active: Array, sign: Array, level: Array
) -> tuple[Array, Array]:
    """Two points with y between: the neighbouring means; beyond the outermost, the components' own quantiles."""
    from scipy.special import ndtri_exp

    rows = np.arange(split.size)
    low, high = m[rows, np.maximum(split - 1, 0)], m[rows, np.minimum(split, active - 1)]
    for edge, side, choose in ((split == 0, 1.0, np.min), (split == active, -1.0, np.max)):
        ends = m[edge] + s[edge] * (side * ndtri_exp(np.minimum(level[edge], -1e-300)))[:, None]
        ends = np.where(np.isneginf(log_w[edge]), m[edge, :1], ends)
        outermost = choose(ends, axis=-1)
        outermost = outermost - side * 1e-9 * (s[edge].max(axis=-1) + np.abs(outermost))
        (low if side > 0 else high)[edge] = outermost
    return low, high


def _error(x: Array, y: Array, log_w: Array, source: Any, target: Any) -> Array:
    """Rounding of x, means, deviations and tails, in units of the cdf, over the density at y; at most the spread.

    Where the density falls within that error of y, as beside a gap, the least of it there counts.
    """
    total = np.full(x.shape, -np.inf)
    for value, (m, s) in ((x, source), (y, target)):
        z = (value[:, None] - m) / s
        log_phi = log_w - 0.5 * z * z
        size = np.log(_ROUNDING * ((np.abs(value)[:, None] + np.abs(m)) / s + np.abs(z) + 1.0))
        total = np.logaddexp(total, np.logaddexp.reduce(log_phi + size, axis=-1))
    centres = np.where(np.isneginf(log_w), np.nan, m)
    most = np.nanmax(centres, axis=-1) - np.nanmin(centres, axis=-1) + np.max(s, axis=-1) + np.abs(y)
    error, least = np.zeros(y.shape), np.full(y.shape, np.inf)
    for _ in range(2):
        for place in (y - error, y + error):
            density = np.logaddexp.reduce(log_w - 0.5 * ((place[:, None] - m) / s) ** 2 - np.log(s), axis=-1)
            least = np.minimum(least, density)
        error = np.minimum(np.exp(np.minimum(total - least, 700.0)), most)
    return error
