r"""Distances between laws: 2-Wasserstein (exact in one dimension and for Gaussians) and energy distance, with bands.

.. math:: W_2^2(P, Q) = \min_π E_π |x - y|^2 = \max_{φ(x) + ψ(y) ≤ |x - y|^2} E_P φ + E_Q ψ .

In one dimension the plan is monotone: W_2² = ∫₀¹ (F_P^{-1} - F_Q^{-1})² du.  **Band.**  The potentials φ, ψ are the
influence functions of W_2² at P and Q, so for independent samples

.. math:: W_2^2(P_n, Q_m) - E W_2^2(P_n, Q_m) \;≈\; N(0, s^2), \qquad s^2 = \frac{Var φ(x)}{n} + \frac{Var ψ(y)}{m}

(del Barrio & Loubes 2019, Ann. Probab. 47).  **Bias.**  W_2² of samples is too large in the mean; to second order in
the errors of the quantiles a = F_P^{-1}, b = F_Q^{-1}, in one dimension,

.. math:: E W_2^2(P_n, Q_m) - W_2^2(P, Q) \;≈\; B = \Bigl(\frac1n + \frac1m\Bigr) \int_0^1 u(1-u)\,a'(u)\,b'(u)\,du ,

with the gaps between neighbours for a' and b'; for pairs u - C(u, u) replaces u(1 - u), C their copula.  As the
variance of W_2² is about proportional to it (of a shift δ: to δ²), the ends of the band are the roots of

.. math:: W_2^2 - B - 1.96\,s \qquad \text{and the larger solution } U \text{ of} \qquad
          (U - D)^2 = 1.96^2\,\frac{s^2}{W_2^2}\,U , \quad D = \max(W_2^2 - B, 0)

(Wilson's form).  In more dimensions B is not known and taken as 0, though it is most of the value where d ≫ 1 and the
laws are near one another; `wasserstein2_floor` measures it for equal laws.  Samples (n, ...) are taken as (n, d), NumPy
or torch.
Symbols here are the literature's: φ and ψ are potentials, s is the standard deviation of a squared distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.problems.mixture import GaussianMixture, levels
from deis_analysis.problems.quantiles import match_quantiles
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.validate import boolean, checked, choose, finite, instance, positive_int

Seed = int | np.random.Generator
METHODS = ("auto", "quantiles", "assignment", "sliced")
_Z = 1.959963984540054  # two-sided 95 % of N(0, 1)
_ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of the difference of two entries, over the largest of them
_LARGEST = 1e70  # the variance of a squared distance, a fourth power, is finite
_PIVOTS = 100_000_000  # POT's own limit of 100,000 stops short of the optimum at n = 2,000 in 64 dimensions


@dataclass(frozen=True)
class Distance:
    """A distance in the unit of the samples (its square root for "energy") and its 95 % band, low ≤ value ≤ high.

    ``method``: "quantiles" (1-D, exact), "assignment" (exact plan), "sliced", "energy". ``n``: sizes of the samples;
    () between two laws, where ``low`` = ``high`` = ``value``.
    """

    value: float
    low: float
    high: float
    method: str
    n: tuple[int, ...]


def _banded(
    square: float, variance: float, method: str, n: tuple[int, ...], *, growth: float, bias: float = 0.0
) -> Distance:
    """Roots of the square and of the ends of its band, nothing below 0.

    The lower end is square - bias - 1.96 s.  The upper one is where the variance s² + growth·(U - square), that of a
    square whose mean is U, just allows what was found: (U - D)² = 1.96² (variance at U), D = square - bias.
    """
    shift, left = _Z**2 * growth / 2, max(variance - growth * bias, 0.0)
    upper = square - bias + shift + math.hypot(_Z * math.sqrt(left), shift)
    ends = (square, square - bias - _Z * math.sqrt(variance), max(upper, square))
    value, low, high = (math.sqrt(max(end, 0.0)) for end in ends)
    return Distance(value, low, high, method, n)


def _banded_wasserstein(square: float, variance: float, bias: float, method: str, n: tuple[int, ...]) -> Distance:
    """The band of the module's docstring; ``bias`` beyond the square itself says no more than that."""
    growth = variance / square if square > 0 else 0.0
    return _banded(square, variance, method, n, growth=growth, bias=min(bias, square))


def _generator(seed: Seed) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(positive_int("seed", seed, minimum=0))


def _samples(name: str, x: Any, least: int = 2) -> Array:
    """(n, d) float64."""
    array = finite(name, backend.wide(x))
    if array.ndim == 0 or array.shape[0] < least or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; allowed: (n, ...), n >= {least}, no empty axis")
    array = array.reshape(array.shape[0], -1)
    if (size := float(np.abs(array).max()) * math.sqrt(array.shape[1])) > _LARGEST:
        raise ValueError(f"{name} has entries of size {size:.3g}; allowed: at most {_LARGEST:g} (times d^-1/2)")
    return array


def _pair(a: Any, b: Any, least: int = 2) -> tuple[Array, Array]:
    x, y = _samples("a", a, least), _samples("b", b, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"b has {y.shape[1]} numbers per sample; allowed: {x.shape[1]}, as a has")
    return x, y


def _steps(x: Array, y: Array) -> Array:
    """Potential at the sorted x (n,) against the sorted y (m,), 0 at the first.

    φ_{i+1} - φ_i = (x_{i+1} - x_i)(x_{i+1} + x_i - 2T), T the quantile of y at level (i + 1)/n, the mean of its two
    sides at a jump.  Levels are compared as integers.
    """
    level = np.arange(1, x.size) * y.size
    between = y[-(-level // x.size) - 1] + y[level // x.size]
    return np.append(0.0, np.cumsum(np.diff(x) * (x[1:] + x[:-1] - between)))


def _cells(x: Array, k: int) -> Array:
    """Means of the quantile function of the sorted x over k equal cells of level, less one constant."""
    if x.size == k:
        return x
    total = np.append(0.0, np.cumsum(x - x[0]))
    return np.diff(np.interp(np.arange(k + 1) * (x.size / k), np.arange(x.size + 1.0), total)) * (k / x.size)


def _bias(x: Array, y: Array, common: Array | None) -> float:
    """B of the sorted x (n,), y (m,) on min(n, m) cells; of pairs, given C at their inner ends."""
    k = min(x.size, y.size)
    u = np.arange(1, k) / k
    spread = u * (1 - u) if common is None else u - common
    return float((1 / x.size + 1 / y.size) * k * (spread * np.diff(_cells(x, k))) @ np.diff(_cells(y, k)))


def _monotone(x: Array, y: Array, paired: bool = False) -> tuple[float, Array, Array, float]:
    """W_2² of two 1-D samples (n,), (m,), the potentials at their entries, in the order given, and the bias of W_2²."""
    n, m = x.size, y.size
    order, order_y = np.argsort(x), np.argsort(y)
    x, y = x[order], y[order_y]
    ends = np.unique(np.append(np.arange(n + 1) * m, np.arange(m + 1) * n))  # levels in units of 1/(nm)
    gap = x[ends[:-1] // m] - y[ends[:-1] // n]
    phi, psi = np.empty(n), np.empty(m)
    phi[order], psi[order_y] = _steps(x, y), _steps(y, x)
    common = None
    if paired:  # C(i/n, i/n): the share of pairs with both ranks at most i
        ranks = np.maximum(np.argsort(order), np.argsort(order_y))
        common = np.cumsum(np.bincount(ranks, minlength=n))[:-1] / n
    return float(gap**2 @ (np.diff(ends) / (n * m))), phi, psi, _bias(x, y, common)


def _assigned(x: Array, y: Array) -> tuple[float, Array, Array]:
    """W_2² of two samples (n, d), (m, d), and the potentials, by network simplex."""
    # 3.5 s, as POT loads every array library it finds; hiding them here would hide them from the caller's POT too
    import ot
    from scipy.spatial.distance import cdist

    square, log = ot.emd2([], [], cdist(x, y, "sqeuclidean"), numItermax=_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"optimal transport of {len(x)} onto {len(y)} samples: {log['warning']}")
    return float(square), np.asarray(log["u"]), np.asarray(log["v"])


def _sliced(x: Array, y: Array, directions: Array, paired: bool = False) -> tuple[float, Array, Array, float, float]:
    """Means over directions (L, d) of W_2², potentials and bias, and the variance of the first over directions."""
    squares, biases, phi, psi = *np.empty((2, len(directions))), np.zeros(len(x)), np.zeros(len(y))
    for i, direction in enumerate(directions):
        squares[i], along_x, along_y, biases[i] = _monotone(x @ direction, y @ direction, paired)
        phi += along_x / len(directions)
        psi += along_y / len(directions)
    spread = float(squares.var(ddof=1)) / len(directions)
    return float(squares.mean()), phi, psi, float(biases.mean()), spread


def _resolved(method: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], most: int) -> str:
    """The method meant by "auto"; ValueError where one is impossible."""
    choose("method", method, METHODS)
    (n, d), (m, _) = shapes
    if method == "auto":
        return "quantiles" if d == 1 else "assignment" if max(n, m) <= most else "sliced"
    if method == "quantiles" and d > 1:
        raise ValueError(f"method='quantiles' needs samples of 1 number; these have {d}. Allowed: assignment, sliced")
    if method == "assignment" and max(n, m) > most:
        raise ValueError(f"method='assignment' with {n} and {m} samples; allowed: at most most={most}")
    return method


@checked
def wasserstein2(
    a: Any, b: Any, *, method: str = "auto", seed: Seed = 0, slices: int = 256, most: int = 2000, paired: bool = False
) -> Distance:
    r"""2-Wasserstein distance of two samples, the exact one of the empirical laws but for "sliced".

    Args:
        a, b: (n, ...) and (m, ...).
        method: "quantiles" in one dimension, n ≠ m allowed; "assignment", the optimal plan by POT; "sliced", the root
            of the mean over ``slices`` random directions θ of W_2²(θ·a, θ·b), **another distance**, at most W_2/√d;
            "auto": the first that applies, "assignment" up to ``most`` samples (2,000: about a second).
        seed: of the directions.
        paired: a_i and b_i are made from the same noise, pairs independent of one another: then s² = Var(φ + ψ)/n.

    Returns:
        the distance, and a band for W_2 of the laws (of the sliced distance, with the spread over directions too); for
        "assignment" a band for √E W_2²(P_n, Q_m), below which W_2 of the laws lies.  Coverage in 1-D, 4,000 draws each,
        n and m of 100 to 10,000, equal and unequal: 94 % to 98 % for Gaussians further apart than the samples' spread
        and for pairs, 96 % to 97 % on two separated modes, 92 % to 97 % for shifts of 0.1 of the uniform law and
        scales of the exponential one, most misses with W_2 above the band.  Near equal laws it covers too often, 98 %
        and more, equal ones 99.6 % and more; a shift of two separated modes by 0.1 in 92 % at n = 1,000.

    Raises:
        ValueError: entries not finite or above 1e70 in size, samples of different dimension, fewer than two of them, a
            method that does not apply, ``paired`` with n ≠ m. RuntimeError: POT did not reach the optimum.
    """
    x, y = _pair(a, b)
    positive_int("slices", slices, 2)
    positive_int("most", most)
    n, m = len(x), len(y)
    if boolean("paired", paired) and n != m:
        raise ValueError(f"paired=True with {n} and {m} samples; allowed: equal numbers")
    method, bias, extra = _resolved(method, (x.shape, y.shape), most), 0.0, 0.0
    if method == "quantiles":
        square, phi, psi, bias = _monotone(x[:, 0], y[:, 0], paired)
    elif method == "assignment":
        square, phi, psi = _assigned(x, y)
    else:
        directions = _generator(seed).standard_normal((slices, x.shape[1]))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        square, phi, psi, bias, extra = _sliced(x, y, directions, paired)
    spread = np.var(phi + psi, ddof=1) / n if paired else np.var(phi, ddof=1) / n + np.var(psi, ddof=1) / m
    rounding = square * (_ROUNDING * max(float(np.abs(x).max()), float(np.abs(y).max()))) ** 2 * x.shape[1]
    return _banded_wasserstein(square, float(spread) + extra + rounding, bias, method, (n, m))


@checked
def wasserstein2_floor(
    x: Any, n: int, *, seed: Seed = 0, draws: int = 40, method: str = "auto", slices: int = 256, most: int = 2000
) -> Distance:
    """W_2 of two samples of size n of one law: what `wasserstein2` shows where there is nothing to see.

    Each draw cuts two disjoint random parts of size n from ``x`` (N, ...), N ≥ 2n.  ``value`` is the mean over draws,
    unbiased for the mean over samples of the law; ``low`` and ``high`` are the 2.5 % and 97.5 % quantiles over draws of
    the distance itself, not a band of the mean: a distance of two samples of size n below ``high`` tells nothing apart.
    The draws share one sample, so N ≫ 2n makes them more alike to independent ones.
    """
    pool, n = _samples("x", x), positive_int("n", n, 2)
    positive_int("draws", draws, 2)
    if 2 * n > len(pool):
        raise ValueError(f"n={n} must be at most {len(pool) // 2}, half of the samples in x")
    rng, found = _generator(seed), []
    for _ in range(draws):
        parts = pool[rng.permutation(len(pool))[: 2 * n]]
        found.append(wasserstein2(parts[:n], parts[n:], method=method, seed=rng, slices=slices, most=most))
    values = np.array([f.value for f in found])
    low, high = np.quantile(values, [0.025, 0.975])
    return Distance(float(values.mean()), float(low), float(high), found[0].method, (n, n))


def _gaussian(side: str, mean: Array, covariance: Array, d: int) -> tuple[Array, Array]:
    """Mean (d,) and the symmetric root of the covariance (d, d)."""
    if mean.shape not in ((), (d,)):
        raise ValueError(f"mean_{side} has shape {mean.shape}; allowed: a number or ({d},)")
    if covariance.shape not in ((), (d,), (d, d)):
        raise ValueError(f"cov_{side} has shape {covariance.shape}; allowed: a number, ({d},) or ({d}, {d})")
    full = covariance if covariance.ndim == 2 else np.diag(np.broadcast_to(covariance, d))
    size = float(np.abs(full).max())
    if not np.allclose(full, full.T, rtol=0, atol=1e-12 * size):
        raise ValueError(f"cov_{side} must be symmetric")
    values, axes = np.linalg.eigh(full)
    if values[0] < -1e-12 * size:
        raise ValueError(f"cov_{side} has the eigenvalue {values[0]:.3g}; allowed: positive semi-definite")
    return np.broadcast_to(mean, d), (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T


@checked
def gaussian_wasserstein2(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    r"""W_2 of N(mean_a, A) and N(mean_b, B), exact: the Bures–Wasserstein distance

    .. math:: |m_a - m_b|^2 + tr\bigl(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}\bigr)
              = |m_a - m_b|^2 + \min_{U^TU = I} \| A^{1/2} - B^{1/2} U \|_F^2 .

    The second form is computed, U the polar factor of B^{1/2}A^{1/2}: the trace loses half the digits for near laws
    (Bhatia, Jain & Lim 2019).

    Means: number or (d,). Covariances: a variance, (d,) of independent coordinates, or (d, d).
    """
    given = {"mean_a": mean_a, "cov_a": cov_a, "mean_b": mean_b, "cov_b": cov_b}
    arrays = {name: np.asarray(finite(name, value)) for name, value in given.items()}
    for name, array in arrays.items():
        if array.size == 0 or np.abs(array).max() > _LARGEST:
            raise ValueError(f"{name} of shape {array.shape} is empty or has an entry above {_LARGEST:g}")
    d = max(array.shape[0] if array.ndim else 1 for array in arrays.values())
    m_a, root_a = _gaussian("a", arrays["mean_a"], arrays["cov_a"], d)
    m_b, root_b = _gaussian("b", arrays["mean_b"], arrays["cov_b"], d)
    left, _, right = np.linalg.svd(root_b @ root_a)
    return float(np.hypot(np.linalg.norm(m_a - m_b), np.linalg.norm(root_a - root_b @ (left @ right))))


@checked
def diffused(mixture: GaussianMixture, process: Process, t: float) -> GaussianMixture:
    """The law of x_t for data from ``mixture``: means α m_k + (1 - α) μ, covariances α² C_k + σ² I."""
    instance("mixture", mixture, GaussianMixture)
    require_process(process)
    alpha, sigma, centre = levels(process, t)
    means, c = alpha * mixture.means, alpha**2 * mixture.covariances
    means = means if centre is None else means + np.broadcast_to(centre, means.shape[1:] or (1,))
    return GaussianMixture(mixture.weights, means, c + sigma**2 * (np.eye(c.shape[-1]) if c.ndim == 3 else 1.0))


@checked
def wasserstein2_between(a: Any, b: Any) -> Distance:
    r"""W_2 in one dimension where at least one side is a `GaussianMixture` (at a time of a process: `diffused`).

    Two mixtures: ∫ (x - T(x))² p_a(x) dx, T = F_b^{-1} ∘ F_a, by Gauss–Legendre, panels halved until the integral stays
    within 1e-12 of itself or 1e-15 of the squared range of the laws.  A sample and a mixture: the exact distance of
    the empirical law,

    .. math:: \sum_i \int_{q_i}^{q_{i+1}} (y - x_{(i)})^2 \, p(y) dy , \qquad F(q_i) = i/n ,

    by partial moments of Gaussians, with the band of s² = Var φ/n and B for 1/m = 0: it covered W_2 of the laws in
    96 % of 1,000 samples of 200, and in all of 1,000 drawn from the mixture itself.

    Raises:
        ValueError: a mixture that is not one-dimensional, two samples (use `wasserstein2`), a sample that is not
            one-dimensional. RuntimeError: the integral does not settle.
    """
    for name, side in (("a", a), ("b", b)):
        if isinstance(side, GaussianMixture) and side.means.ndim != 1:
            raise ValueError(f"{name} is a {side!r}; allowed: one dimension")
    if isinstance(a, GaussianMixture) and isinstance(b, GaussianMixture):
        value = math.sqrt(_between_mixtures(a, b))
        return Distance(value, value, value, "quantiles", ())
    if not isinstance(a, GaussianMixture) and not isinstance(b, GaussianMixture):
        raise ValueError("a and b are both samples; allowed: at least one GaussianMixture (wasserstein2 takes samples)")
    name, sample, mixture = ("b", b, a) if isinstance(a, GaussianMixture) else ("a", a, b)
    x = _samples(name, sample)
    if x.shape[1] != 1:
        raise ValueError(f"{name} has {x.shape[1]} numbers per sample; allowed: 1")
    return _to_mixture(np.sort(x[:, 0]), mixture)


def _quantile_map(x: Array, a: GaussianMixture, b: GaussianMixture) -> Array:
    """T(x) = F_b^{-1}(F_a(x)); the two sets of weights, in the order of the means, are cut into common pieces."""
    orders = [np.argsort(m.means, kind="stable") for m in (a, b)]
    ends = [np.cumsum(m.weights[order]) for m, order in zip((a, b), orders, strict=True)]
    cuts = np.unique(np.concatenate([[0.0], *ends]))
    pieces = np.diff(cuts)
    index = [order[np.searchsorted(end[:-1], cuts[:-1], side="right")] for order, end in zip(orders, ends, strict=True)]
    source, target = ((m.means[i], np.sqrt(m.covariances[i])) for m, i in zip((a, b), index, strict=True))
    return match_quantiles(x, np.log(pieces / pieces.sum()), source, target)[0]


def _between_mixtures(a: GaussianMixture, b: GaussianMixture) -> float:
    """∫ (x - T(x))² p_a dx; panels end at multiples of the deviations of both sides' components."""
    reach = np.linspace(-9.0, 9.0, 13)[:, None]  # what lies outside has mass 1e-19
    marks, marks_b = ((m.means + reach * np.sqrt(m.covariances))[:, m.weights > 0].ravel() for m in (a, b))
    edges = np.unique(np.append(marks, np.clip(_quantile_map(marks_b, b, a), marks.min(), marks.max())))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    # levels next to a gap of the density are known to 1e-16, so that such a mass may be mapped across the gap
    negligible, last = 1e-15 * np.ptp(np.append(marks, marks_b)) ** 2, math.inf
    for _ in range(8):
        half = np.diff(edges)[:, None] / 2
        x = edges[:-1, None] + half * (1 + nodes)
        square = float(np.sum(half * weights * (x - _quantile_map(x, a, b)) ** 2 * np.exp(a.log_prob(x))))
        if abs(square - last) <= 1e-12 * square + negligible:
            return square
        last, edges = square, np.sort(np.append(edges, (edges[1:] + edges[:-1]) / 2))
    raise RuntimeError(f"the quadrature between {a!r} and {b!r} does not settle")


def _to_mixture(x: Array, mixture: GaussianMixture) -> Distance:
    """W_2 of the sorted sample x (n,) and a mixture."""
    from scipy.special import ndtr, ndtri

    n, (m, s) = x.size, (mixture.means, np.sqrt(mixture.covariances))
    inner = _quantile_map(ndtri(np.arange(1, n) / n), GaussianMixture([1.0], [0.0], [1.0]), mixture)
    q = np.concatenate([[np.min(m - 40 * s)], inner, [np.max(m + 40 * s)]])
    z = (q[:, None] - m) / s
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    mass = np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
    gap = m - x[:, None]
    terms = (gap**2 + s**2) * mass - 2 * gap * s * np.diff(density, axis=0)  # less s² Δ(zφ), which sums to 0
    phi = np.append(0.0, np.cumsum(np.diff(x) * (x[1:] + x[:-1] - 2 * inner)))
    u, cells = np.arange(1, n) / n, n * (m * mass - s * np.diff(density, axis=0)) @ mixture.weights
    bias = float((u * (1 - u) * np.diff(x)) @ np.diff(cells))
    square, variance = float(np.sum(terms @ mixture.weights)), float(np.var(phi, ddof=1)) / n
    return _banded_wasserstein(square, variance, bias, "quantiles", (n,))


def _mean_distances(x: Array, y: Array) -> Array:
    """(n,) Σ_j |x_i - y_j|, in blocks of rows: memory 8 MB times m / 1000."""
    from scipy.spatial.distance import cdist

    return np.concatenate([cdist(x[i : i + 1000], y).sum(axis=1) for i in range(0, len(x), 1000)])


@checked
def energy_distance(a: Any, b: Any) -> Distance:
    r"""Energy distance of two samples (n, ...), (m, ...), the root of

    .. math:: D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'| .

    D² is estimated by the U-statistic (means over i ≠ j): unbiased, so there is no floor, and negative where nothing is
    told apart; then ``value`` = 0.  The V-statistic, which `scipy.stats.energy_distance` takes, adds
    mean|X - X'|/n + mean|Y - Y'|/m.  The band has s² from the two-sample jackknife, whose mean is no less than the
    variance (Efron & Stein 1981), and as the variance of D² is about c D², c = s²/V, its upper end solves
    (D² - U)² = 1.96² (s² + c (D² - U)) (Wilson's form): it covers 94 % to 100 % on 1-D Gaussians.
    Samples are independent, at least three on each side; time (n + m)² d.  (Székely & Rizzo 2013.)
    """
    x, y = _pair(a, b, 3)
    n, m = len(x), len(y)
    within_x, within_y = _mean_distances(x, x), _mean_distances(y, y)
    across_x, across_y = _mean_distances(x, y), _mean_distances(y, x)
    cross, own_x, own_y = across_x.sum(), within_x.sum(), within_y.sum()
    square = 2 * cross / (n * m) - own_x / (n * (n - 1)) - own_y / (m * (m - 1))
    without_x = 2 * (cross - across_x) / ((n - 1) * m) - (own_x - 2 * within_x) / ((n - 1) * (n - 2))
    without_y = 2 * (cross - across_y) / ((m - 1) * n) - (own_y - 2 * within_y) / ((m - 1) * (m - 2))
    variance = (n - 1) * np.var(without_x) + (m - 1) * np.var(without_y)
    biased = 2 * cross / (n * m) - own_x / n**2 - own_y / m**2  # an estimate of D² that is positive
    growth = float(variance / biased) if biased > 0 else 0.0
    return _banded(float(square), float(variance), "energy", (n, m), growth=growth)
