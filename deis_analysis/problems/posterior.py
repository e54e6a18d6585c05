r"""Posteriors under a linear-Gaussian measurement y = A x₀ + n, n ∼ N(0, R): exact, and by closure of moments.

`condition` gives the posterior of a Gaussian mixture, a Gaussian mixture again, so its exact score is known at every
noise level: with S_k = A C_k Aᵀ + R and K_k = C_k Aᵀ S_k^{-1},

.. math:: w_k' ∝ w_k N(y; A m_k, S_k) , \qquad m_k' = m_k + K_k (y - A m_k) , \qquad C_k' = (I - K_k A) C_k .

`moment_closure` is about samplers that move weighted particles through q_t ∝ p_t e^{-Φ} with
Φ(x) = ½ (y − Ax)ᵀ R^{-1} (y − Ax): another path than the diffused posterior, with the same end at σ = 0.  In reverse
time the particles have drift F − V²∇Φ and noise V, where F = −f x + ½ (g² + V²) ∇ log p_t, and their log-weights grow
at the rate

.. math:: U = \tfrac12 V^2 (|∇Φ|^2 - ΔΦ) - F · ∇Φ .

[the scheme of AFDPS]  For Gaussian data every q_t is N(m, C), drift and ∇U are affine, and

.. math:: \dot m = E[F - V^2 ∇Φ] + C \, E[∇U] , \qquad \dot C = J C + C J^T + V^2 I + C \, (∇^2 U) \, C ,

J the Jacobian of the drift: no ensemble, no degeneracy of weights, and the result is the posterior for every V.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.problems.mixture import GaussianMixture, levels
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.validate import checked, finite, instance, nonnegative, positive


@checked
def condition(mix: GaussianMixture, A: Any, y: Any, noise_covariance: Any) -> GaussianMixture:
    """The law of x₀ ∼ ``mix`` given A x₀ + n = y.

    Args:
        mix: 1-D or d-dimensional. A: (m, d); a number is A times the identity. y: (m,), or a number for all.
        noise_covariance: R, (m, m) positive definite, (m,) variances, or one variance.

    Returns:
        a mixture with as many components: 1-D if ``mix`` is, with full covariances (K, d, d) otherwise.

    Raises:
        ValueError: shapes that do not fit, R that is not symmetric positive definite.
    """
    instance("mix", mix, GaussianMixture)
    means, covariances = components(mix)
    a, y, r = _measurement(A, y, noise_covariance, mix.dimension)
    gap = y - means @ a.T
    s = a @ covariances @ a.T + r
    gain = np.swapaxes(np.linalg.solve(s, a @ covariances), 1, 2)
    rest = np.eye(mix.dimension) - gain @ a
    # Joseph's form: symmetric and positive definite in rounding too
    posterior = rest @ covariances @ np.swapaxes(rest, 1, 2) + gain @ r @ np.swapaxes(gain, 1, 2)
    distance = np.einsum("ki,ki->k", gap, np.linalg.solve(s, gap[..., None])[..., 0])
    with np.errstate(divide="ignore"):
        log_w = np.log(mix.weights) - 0.5 * (distance + np.linalg.slogdet(s)[1])
    weights = np.exp(log_w - log_w.max())
    centres = means + np.einsum("kij,kj->ki", gain, gap)
    if mix.means.ndim == 1:
        return GaussianMixture(weights / weights.sum(), centres[:, 0], posterior[:, 0, 0])
    return GaussianMixture(weights / weights.sum(), centres, 0.5 * (posterior + np.swapaxes(posterior, 1, 2)))


@checked
def components(mix: GaussianMixture) -> tuple[Array, Array]:
    """(K, d) means and (K, d, d) covariances, whatever form they were given in."""
    k, d = mix.weights.size, mix.dimension
    if mix.covariances.ndim == 3:
        return mix.means, mix.covariances
    per_axis = np.broadcast_to(mix.covariances.reshape(k, -1), (k, d))
    return mix.means.reshape(k, d), per_axis[:, :, None] * np.eye(d)


def _measurement(A: Any, y: Any, noise_covariance: Any, d: int) -> tuple[Array, Array, Array]:
    """(m, d), (m,) and (m, m), checked."""
    a, y, r = finite("A", A), finite("y", y), finite("noise_covariance", noise_covariance)
    a = a * np.eye(d) if a.ndim == 0 else a
    if a.ndim != 2 or a.shape[1] != d or a.shape[0] == 0:
        raise ValueError(f"A has shape {a.shape}; allowed: a number or (m, {d})")
    m = a.shape[0]
    if y.shape not in ((), (m,)):
        raise ValueError(f"y has shape {y.shape}; allowed: a number or ({m},)")
    if r.shape not in ((), (m,), (m, m)):
        raise ValueError(f"noise_covariance has shape {r.shape}; allowed: a number, ({m},) or ({m}, {m})")
    r = r if r.ndim == 2 else r * np.eye(m)
    if not np.allclose(r, r.T, rtol=1e-10, atol=0) or np.linalg.eigvalsh(r)[0] <= 0:
        raise ValueError(f"noise_covariance={noise_covariance!r} must be symmetric positive definite")
    return a, np.broadcast_to(y, (m,)), r


@checked
def moment_closure(
    gaussian: GaussianMixture,
    process: Process,
    A: Any,
    y: Any,
    noise_covariance: Any,
    v_squared: float,
    t_start: float,
    t_end: float,
    *,
    rtol: float = 1e-10,
) -> tuple[Array, Array]:
    """Mean and covariance of the weighted particles at ``t_end``, started from their law at ``t_start``.

    Args:
        gaussian: the data, a `GaussianMixture` of one component.
        A, y, noise_covariance: as in `condition`. v_squared: V² ≥ 0 per unit of time.
        t_start, t_end: times of ``process`` at which drift and diffusion are finite, descending; at t_end with σ = 0
            the result is the posterior.
        rtol: relative tolerance of SciPy's DOP853, in float64 > 0.

    Returns:
        mean and covariance, () each if ``gaussian`` is 1-D, (d,) and (d, d) otherwise.

    Raises:
        ValueError: several components, times that do not descend or are singular, a process that reverts to a mean, an
            integration that fails.
    """
    from scipy.integrate import solve_ivp

    instance("gaussian", gaussian, GaussianMixture)
    if gaussian.weights.size != 1:
        raise ValueError(f"gaussian={gaussian!r} must have one component: moments do not close for more")
    if require_process(process).mean is not None:
        raise ValueError(f"process={process!r} reverts to a mean; allowed: processes around 0, for x − μ")
    start, end = process._check_scalar(t_start, "t_start"), process._check_scalar(t_end, "t_end")
    if not end < start:
        raise ValueError(f"t_end={t_end!r} must be below t_start={t_start!r}")
    for name, t in (("t_start", start), ("t_end", end)):
        if not np.all(np.isfinite([process.drift(t), process.diffusion_squared(t)])):
            raise ValueError(f"{name}={t!r}: drift or diffusion are infinite there on {process!r}")
    v2, d = nonnegative("v_squared", v_squared, 1e4), gaussian.dimension
    positive(rtol=rtol)
    a, y, r = _measurement(A, y, noise_covariance, d)
    precision = a.T @ np.linalg.solve(r, a)
    closure = _Closure(gaussian, process, precision, a.T @ np.linalg.solve(r, y), v2)
    first = condition(closure.marginal(start), a, y, r)
    state = np.concatenate([first.means[0], first.covariances[0].ravel()])
    found = solve_ivp(closure.rate, (start, end), state, method="DOP853", rtol=rtol, atol=1e-3 * rtol)
    if not found.success:
        raise ValueError(f"rtol={rtol!r}: the integration of the moments failed: {found.message}")
    mean, covariance = found.y[:d, -1], found.y[d:, -1].reshape(d, d)
    return (mean[0], covariance[0, 0]) if gaussian.means.ndim == 1 else (mean, covariance)


class _Closure:
    """The rate of (m, C) per unit of process time; ∇Φ = Hx − h."""

    def __init__(self, gaussian: GaussianMixture, process: Process, precision: Array, pull: Array, v2: float) -> None:
        means, covariances = components(gaussian)
        self.mean, self.covariance, self.process = means[0], covariances[0], process
        self.precision, self.pull, self.v2 = precision, pull, v2

    def marginal(self, t: float) -> GaussianMixture:
        """The law of x_t."""
        alpha, sigma, _ = levels(self.process, t)
        spread = alpha**2 * self.covariance + sigma**2 * np.eye(self.mean.size)
        return GaussianMixture([1.0], [alpha * self.mean], [spread])

    def rate(self, t: float, state: Array) -> Array:
        """d(m, C)/dt, minus that in reverse time."""
        d, h, v2 = self.mean.size, self.precision, self.v2
        m, c = state[:d], state[d:].reshape(d, d)
        p_t = self.marginal(t)
        half = 0.5 * (float(self.process.diffusion_squared(t)) + v2)
        inverse = np.linalg.inv(p_t.covariances[0])
        slope = -float(self.process.drift(t)) * np.eye(d) - half * inverse  # F = slope x + offset
        drift = slope @ m + half * inverse @ p_t.means[0]
        push = h @ m - self.pull
        weight_slope = v2 * h @ push - slope.T @ push - h @ drift
        curvature = v2 * h @ h - slope.T @ h - h @ slope
        jacobian = slope - v2 * h
        m_rate = drift - v2 * push + c @ weight_slope
        c_rate = jacobian @ c + c @ jacobian.T + v2 * np.eye(d) + c @ curvature @ c
        return -np.concatenate([m_rate, c_rate.ravel()])
