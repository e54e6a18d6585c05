r"""Is a field the score of its process's marginals? The Fokker–Planck residual, and what it costs: the ODE–SDE gap.

The density of dx = f (x − μ) dt + g dw obeys ∂ₜp = −∇·(f p) + ½ g² Δp. For s = ∇ log p the gradient of ∂ₜ log p is

.. math:: ∂_t s = ∇\Bigl[ \tfrac12 g^2 (∇·s + |s|^2) - f\,(x - μ)·s \Bigr]

(∇·(f (x − μ)) is constant in x). The residual R is the left side less the right one: zero if s is the score of the
process started from some density, whatever the density. With R ≠ 0 the probability flow and the reverse SDE of one
model may end in different laws; for a linear score both are known.

Source: the residual in the form of potentials, Deveney et al. 2023 (arXiv 2311.15996).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import chebyshev

from deis_analysis import backend
from deis_analysis.diagnostics.conservativity import samples
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.tableau import Model
from deis_analysis.validate import checked, finite, function, positive, positive_int, real

if TYPE_CHECKING:
    import torch

_STEPS = (0.125, 0.025, 0.005, 0.001)  # of 1/L, the time in which σ/α changes by a factor e
_STRIDES = (4, 2, 1)  # of 16: interpolants of degree 4, 8 and 16, whose nodes are among those of the next
_GOOD_RATE = 1e-6  # error of a time derivative over its root mean square, at which a shorter step is not tried
_BEST_RATE = 1e-13  # and at which a higher degree is not
_ROUNDINGS = 4.0  # of a model's output, in units of its machine precision
_STIFF: Any = {"rtol": 1e-12, "atol": 1e-13}


@checked
def fokker_planck_residual(
    score: Model,
    process: Process,
    x: torch.Tensor,
    t: float,
    *,
    probes: int | None = None,
    seed: int = 0,
    time_step: float | None = None,
) -> torch.Tensor:
    r"""(n, d) residual R = ∂ₜs − ∇[½g² (∇·s + |s|²) − f (x − μ)·s] of ``score`` at time ``t``, per unit of time.

    Space derivatives are automatic, and accurate to rounding; ∂ₜs is `time_derivative`, whose estimate is the error of
    R. On exact scores of mixtures in float64 R was at most 1e-13 |s| L in the middle of the range, L = d log ρ/dt, and
    2e-12 |s| L at its ends; 1e-11 |s| L on a `VPDiscrete` of 1,000 levels, where an interpolant has no more than the
    one step between two levels. Of ∂ₜs that is more where s hardly depends on t: up to 4e-11, 2e-8 and, at the last
    level, where |∂ₜs| is 3e-5 |s| L, 1e-7.

    Args:
        score: torch model (x, t) → (n, d), twice differentiable in x, each sample independent of the others; called in
            the dtype of ``x``.
        x: (n, d) of floating dtype, finite; use float64, and float32 only for a float32 network, whose ∂ₜs then has few
            digits.
        t: a time with σ > 0 at which drift and diffusion are finite.
        probes: None for the exact divergence by d Jacobian-vector products; an integer for Hutchinson's estimate by
            that many Rademacher vectors from ``seed``, which is unbiased.
        time_step: see `time_derivative`.

    Raises:
        ValueError: bad shapes, a time at which the process is singular, x or an output that is not finite, a model that
            is not differentiable in x, such as one under ``torch.no_grad``.

    Source: Deveney et al. 2023 (arXiv 2311.15996); Hutchinson 1990.
    """
    import torch

    t = _regular_time(process, t)
    x = samples(function("score", score), x, t, flat=True)
    directions = _directions(x, probes, seed)
    drift, g2 = float(process.drift(t)), float(process.diffusion_squared(t))
    centre = 0.0 if process.mean is None else torch.as_tensor(process.mean, dtype=x.dtype, device=x.device)

    def potential(y: torch.Tensor) -> torch.Tensor:
        """Σ over samples of the bracket, so that its gradient has one row per sample."""
        divergence = torch.zeros((), dtype=x.dtype, device=x.device)
        for v in directions:
            along = torch.func.jvp(lambda z: score(z, t), (y,), (v,))[1]
            divergence = divergence + (v * along).sum()
        if probes is not None:
            divergence = divergence / probes
        s = score(y, t)
        return 0.5 * g2 * (divergence + (s * s).sum()) - drift * ((y - centre) * s).sum()

    rate, _ = time_derivative(score, process, x, t, step=time_step)
    residual = rate - torch.func.grad(potential)(x)
    if not bool(torch.isfinite(residual).all()):
        raise ValueError(f"score has derivatives at t={t!r} that are not finite; allowed: a twice differentiable model")
    return residual


@checked
def time_derivative(
    score: Model, process: Process, x: torch.Tensor, t: float, *, step: float | None = None
) -> tuple[torch.Tensor, float]:
    r"""∂ₜs at fixed x and an estimate of its largest error.

    The interpolant of degree N through N + 1 Chebyshev points τ_k of an interval [a, b] around t is differentiated:

    .. math:: \partial_t s \approx \sum_k w_k\, s(τ_k), \qquad
              \text{error} \approx \frac{4 g}{b - a} \max_{j > N - 3} |c_j|
              + 4\epsilon \sum_k |w_k|\, |s(τ_k)|, \qquad
              g = \min\bigl(N^2, N/\sqrt{1 - z^2}\bigr)

    with c_j the interpolant's coefficients, z ∈ [−1, 1] the place of t in [a, b], g ≥ |T_N′(z)| (Bernstein, Markov) and
    ε the machine precision of ``x``.  The second term is rounding, below which no difference quotient can be: an
    estimate does not vanish by chance.  Of N = 4, 8 and 16 the one of least error counts.  [a, b] is t ± ``step``, cut
    off where the range of times or, on `VPDiscrete`, the smooth piece ends; a kink belongs to the piece above it.

    Args:
        score, x: see `fokker_planck_residual`; the score need not be differentiable in x.
        step: the largest distance in time, larger for a float32 network. Unless given it is 0.125/L, with
            L = d log ρ/dt, and shorter where the estimate then is above 1e-6 of the derivative, as of a network whose
            time embedding oscillates.

    Raises:
        ValueError: a time at which the process is singular; a step that is not positive.

    Source: Trefethen 2013, Approximation Theory and Approximation Practice, ch. 3–8.
    """
    import torch

    t = _regular_time(process, t)
    x = samples(function("score", score), x, t, flat=True, derivatives=False)
    if step is not None:
        positive(step=step)
    unit, epsilon = 1.0 / float(process.log_rho_rate(t)), float(torch.finfo(x.dtype).eps)
    best, error = np.zeros(x.numel()), math.inf

    def value(time: float) -> Array:
        with torch.no_grad():
            return real("score", backend.wide(score(x, time))).reshape(-1)

    for wanted in [share * unit for share in _STEPS] if step is None else [float(step)]:
        low, high = _smooth(process, t, wanted)
        times = np.clip(low + 0.5 * (high - low) * (1.0 - np.cos(math.pi / 16 * np.arange(17))), low, high)
        values: dict[int, Array] = {}
        for stride in _STRIDES:
            nodes = range(0, 17, stride)
            values |= {k: value(float(times[k])) for k in nodes if k not in values}
            rate, estimate = _slope(times[::stride], np.stack([values[k] for k in nodes], -1), t, epsilon)
            if estimate < error or not math.isfinite(error):
                best, error = rate, estimate
            size = float(np.sqrt(np.mean(best**2)))
            if error <= _BEST_RATE * size:
                break
        if error <= _GOOD_RATE * size:
            break
    return torch.as_tensor(best.reshape(x.shape), dtype=x.dtype, device=x.device), error


def _slope(times: Array, values: Array, t: float, epsilon: float) -> tuple[Array, float]:
    """Derivative (n,) at t of the interpolant of values (n, N + 1), and the error that `time_derivative` defines."""
    degree, middle, half = times.size - 1, 0.5 * (times[0] + times[-1]), 0.5 * (times[-1] - times[0])
    z = float(np.clip((t - middle) / half, -1.0, 1.0))
    to_coefficients = np.linalg.inv(chebyshev.chebvander((times - middle) / half, degree))  # at the rounded times
    weights = chebyshev.chebval(z, chebyshev.chebder(np.eye(degree + 1))) @ to_coefficients / half
    steepest = min(degree**2, degree / math.sqrt(max(1.0 - z * z, 1e-300)))
    tail = 2.0 * steepest / half * np.abs(values @ to_coefficients[-3:].T).max()
    return values @ weights, float(tail + _ROUNDINGS * epsilon * (np.abs(values) @ np.abs(weights)).max())


def _regular_time(process: Process, t: float) -> float:
    t = require_process(process)._check_scalar(t, "t")
    values = [process.drift(t), process.diffusion_squared(t)]
    if not (float(process.sigma(t)) > 0 and np.all(np.isfinite(values))):
        raise ValueError(f"t={t!r} is singular on {process!r}; allowed: times with σ > 0, finite drift and diffusion")
    return t


def _directions(x: torch.Tensor, probes: int | None, seed: int) -> list[torch.Tensor]:
    """Tangents v with Σ v·Jv = ∇·s (unit vectors), or of that expectation (Rademacher, to be averaged)."""
    import torch

    if probes is None:
        return list(torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None, :].expand(-1, *x.shape))
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    signs = rng.choice([-1.0, 1.0], size=(positive_int("probes", probes), *x.shape))
    return list(torch.as_tensor(signs, dtype=x.dtype, device=x.device))


def _smooth(process: Process, t: float, wanted: float) -> tuple[float, float]:
    """t ± ``wanted``, as far as times are smooth; a kink belongs to the piece above it."""
    cuts = np.unique([process.t_min, *process.breakpoints, process.t_max])
    after = min(int(np.searchsorted(cuts, t, side="right")), cuts.size - 1)
    return max(t - wanted, float(cuts[after - 1])), min(t + wanted, float(cuts[after]))


@dataclass(frozen=True)
class Gap:
    """Laws of the two samplers of one linear score, both N(0, variance), per axis.

    Attributes:
        variance_ode, variance_sde: at the end, of the probability flow and of the reverse SDE.
        wasserstein2: their 2-Wasserstein distance |√variance_ode − √variance_sde|.
        bound: what the score's error allows, see `linear_score_gap`; the same unit as x.
    """

    variance_ode: Array
    variance_sde: Array
    wasserstein2: Array
    bound: Array


@checked
def linear_score_gap(
    gain: Callable[[float], Any], process: Process, variance_start: Any, t_start: float, t_end: float
) -> Gap:
    r"""Exact laws of probability flow and reverse SDE for the score s = −a(t) x, and the bound on their distance.

    From one start N(0, variance), the density p̃ of the SDE moves along the ODE's field plus ½ g² (s − ∇ log p̃), so

    .. math:: W_2(p^{ODE}, p^{SDE}) \le \tfrac12 \int_{t_0}^{T} g^2 e^{\int_{t_0}^t L}
              \bigl( E_{\tilde p_t} |∇\log \tilde p_t - s|^2 \bigr)^{1/2} dt ,

    L = −(f + ½ g² a) the one-sided Lipschitz constant of the ODE's field in reverse time. On one axis the bound is an
    equality iff s − ∇ log p̃ keeps its sign. With A = σ² a, the variances q of the SDE and p of the ODE in units of σ²,
    and b the bound in units of σ, per unit of λ

    .. math:: \dot q = (2 - 4A)\,q + 2 , \qquad \dot p = (2 - 2A)\,p , \qquad
              \dot b = (1 - A)\,b + |A - 1/q| \sqrt q .

    They are integrated by SciPy's LSODA, log q and log p in place of q and p, so that stiff gains are no harder.
    Axes are independent: W₂ of the product law and its bound are the root sums of squares over the axes.

    Args:
        gain: a(t), one number or (V,), one per axis; 1/(α²v + σ²) is exact for data of variance v.
        variance_start: > 0, one number or (V,), at ``t_start``.
        t_start, t_end: λ must be finite at both, t_end < t_start.

    Raises:
        ValueError: bad times, a variance that is not positive, a gain that is not finite or of another shape.

    Source: shape of the bound, Deveney et al. 2023 (arXiv 2311.15996); derived here with L explicit.
    """
    from scipy.integrate import solve_ivp

    start, end, clock = _span(process, t_start, t_end)
    variance = finite("variance_start", variance_start, 0.0)
    if np.any(variance == 0) or variance.ndim > 1:
        raise ValueError(f"variance_start={variance_start!r} must be > 0, a number or (V,)")
    if not np.all((variance >= 1e-12) & (variance <= 1e12)):
        raise ValueError(f"variance_start={variance_start!r} must lie in [1e-12, 1e12]")
    function("gain", gain)
    shape = _common_shape(variance, finite("gain", gain(start)))
    first = np.broadcast_to(variance, shape).reshape(-1) / float(process.sigma(start)) ** 2

    def rate(lam: float, y: Array) -> Array:
        log_q, _, b = y.reshape(-1, 3).T
        t = clock(lam)
        given = finite("gain", gain(t))
        if given.shape not in ((), shape):
            raise ValueError(f"gain has shape {given.shape} at t={t!r}; allowed: () or {shape}")
        a, root = float(process.sigma(t)) ** 2 * given.reshape(-1), np.exp(0.5 * log_q)
        return np.stack(
            [2.0 - 4.0 * a + 2.0 / root**2, 2.0 - 2.0 * a + 0.0 * b, (1.0 - a) * b + np.abs(a * root - 1.0 / root)], 1
        ).reshape(-1)

    y = np.stack([np.log(first), np.log(first), np.zeros_like(first)], 1).reshape(-1)
    lam = (float(process.lam(start)), float(process.lam(end)))
    # stiff at rate 4A; logarithms keep both variances positive; one axis does not see another, hence the band
    with np.errstate(over="ignore", invalid="ignore"):
        solved = solve_ivp(rate, lam, y, method="LSODA", lband=2, uband=2, **_STIFF)
    end_values = solved.y[:, -1].reshape(-1, 3).T
    if not solved.success or not np.all(np.isfinite(end_values)):
        raise ValueError(f"gain leads to variances that are not finite between t={start!r} and t={end!r}")
    sigma = float(process.sigma(end))
    q, p, b = (v.reshape(shape) for v in (np.exp(end_values[0]), np.exp(end_values[1]), end_values[2]))
    return Gap(sigma**2 * p, sigma**2 * q, sigma * np.abs(np.sqrt(p) - np.sqrt(q)), sigma * b)


def _common_shape(variance: Array, gain: Array) -> tuple[int, ...]:
    """() or (V,), the shape of both together."""
    shapes = {variance.shape, gain.shape} - {()}
    if len(shapes) > 1 or gain.ndim > 1 or gain.size == 0 or variance.size == 0:
        raise ValueError(
            f"gain has shape {gain.shape}, variance_start {variance.shape}; allowed: a number or (V,), V alike"
        )
    return shapes.pop() if shapes else ()


def _span(process: Process, t_start: float, t_end: float) -> tuple[float, float, Callable[[float], float]]:
    """Both times, and the time at a λ between theirs."""
    start = require_process(process)._check_scalar(t_start, "t_start")
    end = process._check_scalar(t_end, "t_end")
    for name, t in (("t_start", start), ("t_end", end)):
        if not math.isfinite(float(process.lam(t))):
            raise ValueError(f"{name}={t!r}: λ is infinite there on {process!r}; allowed: times with 0 < ρ < ∞")
    if not float(process.lam(start)) < float(process.lam(end)):
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}")

    low, high = float(process.lam(start)), float(process.lam(end))

    def clock(lam: float) -> float:
        return min(max(float(process.time_from_lam(min(max(lam, low), high))), end), start)

    return start, end, clock
