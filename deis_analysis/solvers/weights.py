r"""The one integral of exponential Adams methods, and the φ-functions.

With :math:`x = γ y` the probability flow is :math:`dy = p\,dκ`.  Interpolating p at nodes :math:`t_0 … t_r` by the
Lagrange basis in a variable φ and integrating the interpolant gives the weights

.. math:: w_j = \int_a^b ℓ_j(φ_τ)\, \dot κ_τ \, dτ , \qquad
          ℓ_j(φ) = \prod_{k ≠ j} \frac{φ - φ_{t_k}}{φ_{t_j} - φ_{t_k}} .

One rule serves every prediction, variable and process: Gauss–Legendre with 16 points on panels that are at most ½ wide
in λ (so that every panel keeps its distance from the singularities at σ = 0 and α = 0) and that end where the process
has a kink.  No closed form is evaluated: those cancel (relative error 2e-9 at a step of 1e-4, 26 % at 1e-8).  For the
same reason no difference of φ is formed by subtraction: :math:`φ_τ - φ_{t_k}` is the integral of :math:`\dot φ` from
:math:`t_k` to τ, summed outward from the step, so that every term of the sum has one sign.

What remains is conditioning: weights alternate in sign when nodes lie close together and the step is long, and the
*small* ones then carry the rounding of the large ones.  Errors are therefore measured against the largest weight:
≤ 1e-13 for up to six nodes, steps from 1e-8 to the whole interval (``tests/solvers/test_weights.py``, 50 digits).
On `RectifiedFlow` and `VPCosine`, where α vanishes at t = 1, that holds from the last float64 before 1 on: near it
the rule's times are counted from 1.  The weights of ε and the score grow like 1/α there, and however exact they are,
a rounding of x_T comes back α_s/α_t times as large.

[Zhang & Chen 2023, eq. 14–15, in the general clock]
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np

from deis_analysis.process.process import PREDICTIONS, VARIABLES, Array, Process, require_process
from deis_analysis.validate import checked, choose, positive_int, real

MOST_DEGREE = 30  # of an interpolant: beyond, its weights alternate with more digits than float64 has
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # the classical weights, for equal steps
_POINTS = 16
_PANEL = 0.5  # widest panel in λ
_LAM_AT_INFINITY = (-14.0, 40.0)  # where panels stop towards α = 0 (κ is smooth there) and σ = 0 (√t for VP)


@cache
def _rule() -> tuple[Array, Array, Array]:
    """Gauss–Legendre on [0, 1]: points ξ, weights ω, and A with A[q, r] = ∫₀^ξ_q ℓ_r."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    points, weights = 0.5 * (points + 1.0), 0.5 * weights
    fine = points[:, None] * points[None, :]  # (q, s): the rule mapped to [0, ξ_q]
    gaps = points[:, None] - points[None, :] + np.eye(_POINTS)
    difference = fine[..., None] - points  # (q, s, r)
    basis = np.empty_like(difference)
    for r in range(_POINTS):
        basis[..., r] = np.prod(np.delete(difference, r, axis=-1), axis=-1) / np.prod(np.delete(gaps[r], r))
    return points, weights, points[:, None] * np.einsum("s,qsr->qr", weights, basis)


def _panels(process: Process, points: Array) -> Array:
    """(M, P + 1) panel edges of the M intervals between consecutive ``points``, padded by repeating the last edge."""
    lam = process.lam(points)
    finite = np.isfinite(lam)
    if not finite.all():
        ends = np.min(lam[finite], initial=_LAM_AT_INFINITY[0]), np.max(lam[finite], initial=_LAM_AT_INFINITY[1])
        lam = np.clip(lam, *ends)
    steps = np.diff(lam)
    count = max(1, int(np.ceil(np.max(np.abs(steps)) / _PANEL)))
    u = np.arange(1, count) / count
    interior = lam[:-1, None] + u * steps[:, None]
    low, high = np.minimum(points[:-1], points[1:])[:, None], np.maximum(points[:-1], points[1:])[:, None]
    inside = np.clip(process._time_from_rho(np.exp(-interior)), low, high) if count > 1 else interior
    edges = np.concatenate([points[:-1, None], inside, points[1:, None]], axis=1)
    if process.breakpoints.size == 0:
        return edges
    kinks, rows = np.sort(process.breakpoints), []
    for row in edges:
        first, last = np.searchsorted(kinks, row.min(), side="right"), np.searchsorted(kinks, row.max())
        rows.append(np.unique(np.concatenate([row, kinks[first:last]]))[:: 1 if row[-1] > row[0] else -1])
    padded = np.repeat([[row[-1]] for row in rows], max(row.size for row in rows), axis=1)
    for i, row in enumerate(rows):
        padded[i, : row.size] = row
    return padded


def _intervals(
    process: Process, prediction: str, variable: str, points: Array, lam_sde: float = 0.0
) -> tuple[Array, Array, Array]:
    """For the M intervals between consecutive points: dκ at Q quadrature points, φ there minus φ at the interval's
    start (both (M, Q)), and the whole increment of φ (M,)."""
    edges = _panels(process, points)
    xi, omega, cumulative = _rule()
    width = np.diff(edges, axis=1)[..., None]
    middle = 0.5 * (edges[:, :1] + edges[:, -1:])[..., None]
    base = np.where(width == 0, middle, edges[:, :-1, None])
    if process._noise_time is not None:  # near it α keeps its digits only in times that are counted from it
        origin = process._noise_time * (base > 0.5 * process._noise_time)
        process, base = process._counted_from(origin), base - origin
    tau = base + width * xi
    # unchecked: between the last level and the data a process may have times that are not in its public range
    measure = process._kappa_rate(prediction, tau) * (width * omega)
    if lam_sde:
        measure *= (1.0 + lam_sde**2) * (process._rho(tau) ** -(lam_sde**2) if prediction == "x0" else 1.0)
    rate = width * process._variable_rate(variable, tau)
    increments = rate @ omega
    before = np.cumsum(increments, axis=1) - increments
    before[:, 0] = 0.0
    offsets = before[..., None] + rate @ cumulative.T
    m = points.size - 1
    return measure.reshape(m, -1), offsets.reshape(m, -1), increments.sum(axis=1)


@lru_cache(maxsize=64)  # the rules of a family are built on one grid
def _known(process: Process, prediction: str, variable: str, points: bytes, lam_sde: float) -> tuple[Array, ...]:
    found = _intervals(process, prediction, variable, np.frombuffer(points), lam_sde)
    for part in found:
        part.setflags(write=False)
    return found


def _pairwise(increments: Array) -> Array:
    """(…, n, n) distances φ_j − φ_k of n ordered nodes, added up from the n − 1 increments between them."""
    n = increments.shape[-1] + 1
    distance = np.zeros((*increments.shape[:-1], n, n))
    for j in range(n):
        distance[..., j + 1 :, j] = np.cumsum(increments[..., j:], axis=-1)
    return distance - np.swapaxes(distance, -1, -2)


def _lagrange(offsets: Array, from_start: Array, distance: Array) -> Array:
    """(…, n, Q) basis at points ``offsets`` (…, Q) from the start, nodes ``from_start`` (…, n), gaps (…, n, n)."""
    n = from_start.shape[-1]
    gap = offsets[..., None, :] - from_start[..., :, None]
    basis = np.ones_like(gap)
    for j in range(n):
        for k in range(n):
            if k != j:
                basis[..., j, :] *= gap[..., k, :] / distance[..., j, k, None]
    return basis


@checked
def quadrature_weights(process: Process, prediction: str, variable: str, nodes: Any, a: float, b: float) -> Array:
    r"""Weights :math:`w_j = \int_a^b ℓ_j(φ)\,dκ`.

    Args:
        process: the forward process.
        prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``: decides κ.
        variable: ``"t"``, ``"rho"``, ``"lam"`` or ``"inv_rho"``: φ, the variable of the interpolating polynomial.
        nodes: (n,) distinct times at which the prediction is known.
        a, b: the step, from time a to time b (b < a when sampling), both scalars.

    Returns:
        (n,) float64 weights; with γ = ``process.gamma(prediction, ·)`` the step is
        x_b = γ_b/γ_a x_a + γ_b Σ_j w_j p_j.

    Raises:
        ValueError: unknown prediction or variable, a time outside the process's range, coinciding nodes, or a κ or φ
            that is infinite on the step (ρ on `RectifiedFlow` at t = 1).

    Source: Zhang & Chen 2023, eq. 15.
    """
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    times = require_process(process)._check(nodes, "nodes")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"nodes has shape {times.shape}; allowed: one dimension, at least one time")
    if np.unique(times).size != times.size:
        raise ValueError(f"nodes={times.tolist()} must be distinct")
    start, end = process._check_scalar(a, "a"), process._check_scalar(b, "b")
    if start == end:
        return np.zeros(times.size)
    points = np.unique(np.concatenate([times, [start, end]]))
    points = points[::-1] if end < start else points
    check_finite(process, prediction, variable, points)
    with np.errstate(over="ignore", invalid="ignore"):  # next to t = 0; seen below
        measure, offsets, increments = _intervals(process, prediction, variable, points)
    first, last = (int(np.flatnonzero(points == x)[0]) for x in (start, end))
    distance = _pairwise(increments)
    steps = slice(first, last)
    from_start = (offsets[steps] + distance[first:last, first, None]).reshape(-1)
    index = np.array([int(np.flatnonzero(points == x)[0]) for x in times])
    basis = _lagrange(from_start, distance[index, first], distance[np.ix_(index, index)])
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.array(basis @ measure[steps].reshape(-1))
    if not np.all(np.isfinite(weights)):
        raise ValueError(f"a={a!r}, b={b!r}: float64 does not reach the weights; allowed: 0, or times further from it")
    return weights


def adams_weights(
    process: Process, prediction: str, variable: str, ts: Array, degree: int, lam_sde: float = 0.0
) -> Array:
    """(N, min(degree, N − 1) + 1) weights of a grid's N steps: row i, column j is of the prediction at ts[i − j].

    Row i uses its min(i, degree) + 1 latest nodes, the rest is zero: the method starts with lower degrees.
    """
    integrals = Integrals(process, prediction, variable, ts, lam_sde)
    return integrals.adams(np.minimum(np.arange(ts.size - 1), degree))


class Integrals:
    r"""The one integral on one grid: the quadrature is made once, for any number of rules.

    Args:
        points: (M + 1,) descending times, grid times and stages together.
        lam_sde: λ of the λ-family of SDEs, see `clock`.

    Attributes:
        increments: (M,) of φ between consecutive points, to full relative precision.
    """

    def __init__(self, process: Process, prediction: str, variable: str, points: Array, lam_sde: float = 0.0) -> None:
        check_finite(process, prediction, variable, points)
        given = points.tobytes()
        self._measure, self._offsets, self.increments = _known(process, prediction, variable, given, lam_sde)

    def weights(self, first: Array, start: int, stop: int, nodes: tuple[int, ...]) -> Array:
        r"""(N, n) weights of N like steps, with nodes that are points of the grid.

        Args:
            first: (N,) index of the point from which ``start``, ``stop`` and ``nodes`` are counted, one per step.
            start, stop: the step runs from point first + start to first + stop. nodes: where the prediction is known.
        """
        return _windows(self._measure, self._offsets, self.increments, first, start, stop, nodes)

    def adams(self, degrees: Array) -> Array:
        """(M, max degree + 1) weights of the steps between consecutive points: row i uses degrees[i] + 1 latest."""
        found = np.zeros((degrees.size, int(degrees.max()) + 1))
        for r in np.unique(degrees).tolist():
            rows = np.flatnonzero(degrees == r)
            found[rows, : r + 1] = self.weights(rows - r, r, r + 1, tuple(range(r, -1, -1)))
        return found


def _windows(
    measure: Array, offsets: Array, increments: Array, first: Array, start: int, stop: int, nodes: tuple[int, ...]
) -> Array:
    """(N, n) weights; no difference of φ is formed but by summing increments outward from the step."""
    low = min(start, *nodes)
    window = low + np.arange(max(stop, *nodes) - low)
    distance = _pairwise(increments[first[:, None] + window])  # (N, W + 1, W + 1), φ_j − φ_k
    index = np.array(nodes) - low
    gaps = distance[:, index[:, None], index]
    from_start = distance[:, index, start - low]
    weights = np.zeros((first.size, len(nodes)))
    for piece in range(start, stop):
        inside = offsets[first + piece] + distance[:, piece - low, start - low, None]
        basis = _lagrange(inside, from_start, gaps)
        weights += np.einsum("iq,ijq->ij", measure[first + piece], basis)
    return weights


def clock(process: Process, prediction: str, times: Array, lam_sde: float = 0.0) -> Array:
    r"""γ of the mean of the λ-family of SDEs, shape of ``times``.

    The family dx = [f x − ½(1 + λ²) g² score] dt + λ g dw has, for a prediction p, dx/dt = A x + B p in the mean.  With
    x = γ y it is dy = p dκ: for ε, γ = α and κ = (1 + λ²) ρ; for x₀, γ = σ ρ^{λ²} and κ = ρ^{−(1 + λ²)}.

    Source: Zhang & Chen 2023, eq. 4; Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095) for λ = 1.
    """
    if lam_sde and prediction == "v":
        raise ValueError("prediction='v' has no clock of its own in the λ-family; allowed: 'eps', 'x0', 'score'")
    gamma = process.gamma(prediction, times)
    return gamma * process.rho(times) ** lam_sde**2 if lam_sde and prediction == "x0" else gamma


def increments(process: Process, variable: str, ts: Array) -> Array:
    """(N,) φ(ts[i+1]) − φ(ts[i]) of a grid, to full relative precision: the integral of dφ/dt, not a difference."""
    return _intervals(process, "eps", variable, ts)[2]


def check_finite(process: Process, prediction: str, variable: str, times: Array) -> None:
    """Raise a ValueError that names the first time at which the step's κ, γ or φ is infinite or γ is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = process.rho(times)
        bad = np.zeros(rho.shape, dtype=bool)
        if prediction in ("eps", "score") or variable == "rho":
            bad |= ~np.isfinite(rho)
        if prediction == "x0" or variable == "inv_rho":
            bad |= rho == 0
        if variable == "lam":
            bad |= ~np.isfinite(process.lam(times))
    if bad.any():
        t = float(np.atleast_1d(times)[np.atleast_1d(bad)][0])
        raise ValueError(
            f"t={t!r}: ρ={float(process.rho(t)):g} there, where ({prediction}, {variable}) is singular on {process!r}; "
            "allowed: times with 0 < ρ < ∞"
        )


@checked
def phi(k: int, h: Any) -> Array:
    r"""φ-function :math:`φ_k(h) = \int_0^1 e^{(1-θ)h} θ^{k-1}/(k-1)!\,dθ`, φ₀(h) = eʰ, shape of ``h``.

    Evaluated as the integral (composite Gauss–Legendre), since (φ_{k-1} − 1/(k−1)!)/h cancels for small h.
    [Hochbruck & Ostermann 2010, eq. 2.10]
    """
    k = positive_int("k", k, minimum=0, most=100)
    h = real("h", h)
    outside = ~((h >= -1e4) & (h <= 700))
    if outside.any():
        raise ValueError(f"h must be finite and lie in [-1e4, 700]; it reaches {float(h[outside].flat[0])!r}")
    if k == 0:
        return np.exp(h)
    xi, omega, _ = _rule()
    count = max(1, int(np.ceil(np.max(np.abs(h), initial=0.0) / 4.0)))
    theta = ((np.arange(count)[:, None] + xi) / count).reshape(-1)
    weight = np.tile(omega, count) / count * theta ** (k - 1) / math.factorial(k - 1)
    return np.array(np.exp(h[..., None] * (1.0 - theta)) @ weight)
