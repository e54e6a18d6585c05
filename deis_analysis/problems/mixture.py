r"""Gaussian mixtures under a forward process: exact density, predictions and flow.

If x₀ has density Σ w_k N(m_k, C_k), then x_t = α x₀ + (1−α) μ + σ ε has density Σ w_k N(α m_k + (1−α) μ, V_k) with
V_k = α² C_k + σ² I (μ = 0 but for `MeanReverting`).  With responsibilities r_k ∝ w_k N(x; …),

.. math:: ε = σ \sum_k r_k V_k^{-1} (x - α m_k) , \qquad x_0 = \sum_k r_k \bigl(m_k + α C_k V_k^{-1} (x - α m_k)\bigr) .

Neither divides a small difference by σ.  The exact flow: a 1-D probability flow keeps quantiles,
x_s = F_s^{-1}(F_t(x_t)); products of 1-D mixtures flow coordinate by coordinate; one Gaussian scales each principal
axis by √((α_s² λ + σ_s²)/(α_t² λ + σ_t²)).  Arrays are NumPy or torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis import backend
from deis_analysis.problems.quantiles import match_quantiles
from deis_analysis.process.convention import Model
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.process.schedules import VPLinear
from deis_analysis.validate import checked, choose, positive, positive_int, real, several

_WEIGHT_SLACK = 1e-9
_ROUNDING = 4.0 * np.finfo(np.float64).eps
_RESOLVED = 1e-9  # of the spread of the law: a flow with a larger estimated error warns


class UnresolvedFlowWarning(UserWarning):
    """Rounding of a state decides in which mode of the mixture it ends."""


def _finite(x: Any) -> Array:
    """``x`` as float64; ValueError unless finite."""
    values = np.asarray(x.detach().cpu() if backend.is_torch(x) else x, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError("x must be finite; it holds NaN or infinity")
    return values


def _logsumexp(xp: Any, a: Any) -> Any:
    top = xp.max(a, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(a - top), axis=-1)) + top[..., 0]


class _Mixture:
    """What both kinds of mixture share: predictions from (log density, −score, denoised)."""

    dimension: int
    _log_weights: Array
    _means: Array
    _variances: Array

    def _terms(self, x: Any, alpha: float, sigma: float, denoise: bool) -> tuple[Any, Any, Any]:
        """(log p, V⁻¹(x − αm) averaged over components, posterior mean of x₀ or None)."""
        raise NotImplementedError

    @checked
    def model(self, process: Process, prediction: str) -> Model:
        """The exact ``model(x, t)`` for a prediction; x of shape (…) if 1-D, (…, d) otherwise."""
        choose("prediction", prediction, PREDICTIONS)
        require_process(process)

        def exact(x: Any, t: float) -> Any:
            alpha, sigma, centre = levels(process, t)
            y = centred(self._checked(x), centre)
            _, pulled, denoised = self._terms(y, alpha, sigma, prediction in ("x0", "v"))
            if prediction == "score":
                return -pulled
            if prediction == "eps":
                return sigma * pulled
            if prediction == "x0":
                return denoised
            part_x0, part_eps = (float(c) for c in process.prediction_parts("v", t))
            if process.mean is not None:
                denoised = denoised - backend.like(process.mean, y)
            return part_x0 * denoised + (part_eps * sigma) * pulled

        return Model(exact, process, prediction)

    @checked
    def eps(self, process: Process) -> Model:
        """Exact noise prediction E[ε | x_t]."""
        return self.model(process, "eps")

    def x0(self, process: Process) -> Model:
        """Exact data prediction E[x₀ | x_t]."""
        return self.model(process, "x0")

    def v(self, process: Process) -> Model:
        """Exact v prediction; see `process` for what v is on which process."""
        return self.model(process, "v")

    @checked
    def score(self, process: Process) -> Model:
        """Exact score ∇ log p_t."""
        return self.model(process, "score")

    @checked
    def flow(self, process: Process, x: Any, t_from: float, t_to: float, *, with_error: bool = False) -> Any:
        """Exact probability flow of ``x`` from ``t_from`` to ``t_to``; the kind, dtype and shape of ``x``.

        By quantiles in 1-D and for products (`problems.quantiles`), along its axes for one Gaussian.  Near a boundary
        between two basins the rounding of ``x`` decides where it ends: no float64 answer is exact there.

        Args:
            with_error: return (flow, float64 estimate of its absolute error by rounding, of the shape of ``x``)
                instead of warning.

        Raises:
            ValueError: ``x`` that is not finite or too far out; more than one component in more than one dimension,
                where no closed form is known.

        Warns:
            UnresolvedFlowWarning: an estimated error above 1e-9 of the spread of the result.
        """
        start, end = process._check_scalar(t_from, "t_from"), process._check_scalar(t_to, "t_to")
        y, error = self._flow(process, self._checked(x), start, end)
        return self._told(y, error, process, t_to, with_error)

    @checked
    def flow_many(self, process: Process, x: Any, t_from: Any, t_to: Any, *, with_error: bool = False) -> Any:
        """(T, …) states at the times ``t_from`` (T,), each carried to its own of ``t_to`` (T,): one search for all.

        Arguments, errors and warnings as `flow`.
        """
        x, starts, ends = self._checked(x), real("t_from", t_from), real("t_to", t_to)
        if starts.ndim != 1 or starts.shape != ends.shape or starts.shape != tuple(x.shape[:1]):
            raise ValueError(f"t_from {starts.shape} and t_to {ends.shape} must have the length of x {tuple(x.shape)}")
        y, error = self._flow_many(process, x, starts, ends)
        return self._told(y, error, process, ends, with_error)

    def _told(self, y: Any, error: Array, process: Process, t_to: Any, with_error: bool) -> Any:
        """``y``, with its estimated error or with a warning where that is large."""
        if with_error:
            return y, error
        allowed = _RESOLVED * self._spread(process, np.atleast_1d(t_to))
        if error.size and not error.max() <= allowed:
            warnings.warn(
                f"{np.count_nonzero(error > allowed)} of {error.size} states lie so near a boundary between two basins "
                f"that rounding decides where they end; estimated error up to {error.max():.1e}",
                UnresolvedFlowWarning,
                stacklevel=3,
            )
        return y

    @checked
    def log_prob(self, x: Any, process: Process | None = None, t: float | None = None) -> Any:
        """Log density at time ``t`` of ``process``, of the data if both are None; one value per sample."""
        if (process is None) != (t is None):
            raise ValueError(f"process={process!r} and t={t!r} must be given together")
        alpha, sigma, centre = (1.0, 0.0, None) if process is None else levels(process, t)
        return self._terms(centred(self._checked(x), centre), alpha, sigma, False)[0]

    def _flow(self, process: Process, x: Any, t_from: float, t_to: float) -> tuple[Any, Array]:
        """(flow of the checked ``x``, estimate of its error)."""
        raise NotImplementedError

    def _flow_many(self, process: Process, x: Any, starts: Array, ends: Array) -> tuple[Any, Array]:
        """As `_flow`, along the first axis."""
        raise NotImplementedError

    def _spread(self, process: Process, times: Array) -> float:
        """Distance of the means plus the largest width of a component, the largest over times."""
        means = self._means[np.isfinite(self._log_weights)]
        width = np.sqrt(self._variances.max() + process.sigma(times).max() ** 2)
        return float(process.alpha(times).max() * np.ptp(means) + width)

    def _checked(self, x: Any) -> Any:
        x = backend.floating("x", x if hasattr(x, "dtype") else real("x", x))
        if self.dimension > 1 and (x.ndim == 0 or x.shape[-1] != self.dimension):
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (..., {self.dimension})")
        return x


def levels(process: Process, t: Any) -> tuple[float, float, Array | None]:
    """(α, σ, (1 − α) μ), the last None where the process reverts to 0."""
    t = t if isinstance(t, float) else process._check_scalar(t, "t")
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha, sigma, None if process.mean is None else np.asarray((1.0 - alpha) * np.asarray(process.mean))


def centred(x: Any, centre: Array | None) -> Any:
    """x − (1 − α) μ, which is distributed as αx₀ + σε."""
    return x if centre is None else x - backend.like(centre, x)


def _diffuse(process: Process, t: float, x: Array, rng: np.random.Generator) -> Array:
    alpha, sigma, centre = levels(process, t)
    noisy = alpha * x + sigma * rng.standard_normal(x.shape)
    return noisy if centre is None else noisy + centre


def _check_weights(weights: Any) -> Array:
    w = real("weights", weights)
    if w.ndim != 1 or w.size == 0:
        raise ValueError(f"weights has shape {w.shape}; allowed: (K,), K >= 1")
    if not np.all(np.isfinite(w)) or np.any(w < 0) or abs(w.sum() - 1) > _WEIGHT_SLACK:
        raise ValueError(f"weights={w.tolist()} must be non-negative and sum to 1; the sum is {w.sum():.12g}")
    return w / w.sum()


class _Scalar(_Mixture):
    """1-D mixtures, applied to every entry of x; parameters (K,), or (d, K) for one mixture per coordinate."""

    def __init__(self, log_weights: Array, means: Array, variances: Array) -> None:
        self._log_weights, self._means, self._variances = log_weights, means, variances

    def _terms(self, x: Any, alpha: float, sigma: float, denoise: bool) -> tuple[Any, Any, Any]:
        xp = array_namespace(x)
        log_w, means, variances = (backend.like(a, x) for a in (self._log_weights, self._means, self._variances))
        gap = x[..., None] - alpha * means
        total = alpha * alpha * variances + sigma * sigma
        pulled = gap / total
        log_terms = log_w - 0.5 * (gap * pulled + xp.log(2 * np.pi * total))
        log_p = _logsumexp(xp, log_terms)
        share = xp.exp(log_terms - log_p[..., None])
        denoised = xp.sum(share * (means + alpha * variances * pulled), axis=-1) if denoise else None
        return log_p, xp.sum(share * pulled, axis=-1), denoised

    def _flow(self, process: Process, x: Any, t_from: float, t_to: float) -> tuple[Any, Array]:
        y, error = self._quantile_flow(process, _finite(x)[None], np.array([float(t_from)]), np.array([float(t_to)]))
        return backend.like(y[0], x), error[0]

    def from_prior(self, process: Process, x: Any, t: float, std: float = 1.0) -> Any:
        """The start that optimal transport from N(μ, std² I) to p_t assigns to ``x``, μ the process's mean or 0."""
        x, values = self._prior_draw(process, x, std)
        alpha, sigma, centre = levels(process, t)
        means, scale = alpha * self._means, np.sqrt(alpha * alpha * self._variances + sigma * sigma)
        if self._means.shape[-1] == 1:
            y = (means + values[..., None] * (scale / std))[..., 0]
        else:
            y, _ = match_quantiles(values, self._log_weights, (0.0 * means, std + 0.0 * scale), (means, scale))
        return backend.like(y if centre is None else y + centre, x)

    def _prior_draw(self, process: Process, x: Any, std: float) -> tuple[Any, Array]:
        """``x`` checked, and as (x − μ) in float64."""
        mean = require_process(process).mean
        positive(std=std)
        x = backend.floating("x", self._checked(x))
        values = np.asarray(x.detach().cpu() if backend.is_torch(x) else x, dtype=np.float64)
        return x, values if mean is None else values - np.asarray(mean)

    def _flow_many(self, process: Process, x: Any, starts: Array, ends: Array) -> tuple[Any, Array]:
        y, error = self._quantile_flow(process, _finite(x), starts, ends)
        return backend.like(y, x), error

    def _quantile_flow(self, process: Process, x: Array, t_from: Array, t_to: Array) -> tuple[Array, Array]:
        centre, means, scale = self._law(process, t_from, x.ndim)
        centre_to, means_to, scale_to = self._law(process, t_to, x.ndim)
        x = x - centre
        if self._means.shape[-1] == 1:
            ratio = scale_to / scale
            y = means_to + (x[..., None] - means) * ratio
            error = _ROUNDING * (ratio * (np.abs(x[..., None]) + np.abs(means)) + np.abs(y))[..., 0]
            return y[..., 0] + centre_to, error
        y, error = match_quantiles(x, self._log_weights, (means, scale), (means_to, scale_to))
        return y + centre_to, error

    def _law(self, process: Process, times: Array, ndim: int) -> tuple[Any, Array, Array]:
        """((1 − α) μ, means, standard deviations) of the components at each time, for states of ``ndim`` axes."""
        each = [levels(process, t) for t in times]
        alpha, sigma = (np.array([e[i] for e in each]).reshape(-1, *(1,) * ndim) for i in (0, 1))
        centre: Any = 0.0
        if process.mean is not None:
            shape = np.shape(process.mean)
            centre = (1.0 - alpha.reshape(-1, *(1,) * (ndim - 1))) * np.reshape(
                process.mean, (1,) * (ndim - len(shape)) + shape
            )
        return centre, alpha * self._means, np.sqrt(alpha * alpha * self._variances + sigma * sigma)


@checked
class GaussianMixture(_Scalar):
    """A mixture of K Gaussians.

    Args:
        weights: (K,) non-negative, summing to 1.
        means: (K,) for a 1-D mixture, which acts on every entry of x; (K, d) for a d-dimensional one, x of shape
            (…, d).
        covariances: 1-D: (K,) variances.  d-D: (K,) isotropic variances, (K, d) diagonals, or (K, d, d) matrices.

    Raises:
        ValueError: weights that are negative or do not sum to 1, shapes that do not match, a covariance that is not
            symmetric positive definite.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        w = _check_weights(weights)
        m, c = real("means", means), real("covariances", covariances)
        k = w.size
        if m.ndim not in (1, 2) or m.shape[0] != k or (m.ndim == 2 and m.shape[1] == 0):
            raise ValueError(f"means has shape {m.shape}; allowed: ({k},) or ({k}, d), one row per weight")
        allowed = [(k,)] if m.ndim == 1 else [(k,), m.shape, (*m.shape, m.shape[1])]
        if c.shape not in allowed:
            raise ValueError(f"covariances has shape {c.shape}; allowed: {' or '.join(map(str, allowed))}")
        if not (np.all(np.isfinite(m)) and np.all(np.isfinite(c))):
            raise ValueError("means and covariances must be finite")
        self.weights, self.means, self.covariances = w, m, c
        self.dimension = 1 if m.ndim == 1 else m.shape[1]
        self._axes: Array | None = None
        if c.ndim == 3:
            if not np.allclose(c, np.swapaxes(c, 1, 2), rtol=1e-10, atol=0):
                raise ValueError("covariances must be symmetric")
            spectrum, self._axes = np.linalg.eigh(0.5 * (c + np.swapaxes(c, 1, 2)))
        else:
            spectrum = c if c.ndim == m.ndim else np.repeat(c[:, None], m.shape[1], axis=1)
        if np.any(spectrum <= 0):
            raise ValueError(f"covariances must be positive definite; the smallest eigenvalue is {spectrum.min():.6g}")
        self._spectrum = spectrum
        with np.errstate(divide="ignore"):
            super().__init__(np.log(w), m, spectrum)

    def __repr__(self) -> str:
        return f"GaussianMixture({self.weights.size} components in {self.dimension}-D)"

    def _terms(self, x: Any, alpha: float, sigma: float, denoise: bool) -> tuple[Any, Any, Any]:
        if self.means.ndim == 1:
            return super()._terms(x, alpha, sigma, denoise)
        xp = array_namespace(x)
        log_w, means, spectrum = (backend.like(a, x) for a in (self._log_weights, self._means, self._spectrum))
        gap = x[..., None, :] - alpha * means
        total = alpha * alpha * spectrum + sigma * sigma
        rotated = self._rotate(gap, x, transpose=False)
        scaled = rotated / total
        log_terms = log_w - 0.5 * xp.sum(rotated * scaled + xp.log(2 * np.pi * total), axis=-1)
        log_p = _logsumexp(xp, log_terms)
        share = xp.exp(log_terms - log_p[..., None])[..., None]
        pulled = xp.sum(share * self._rotate(scaled, x, transpose=True), axis=-2)
        if not denoise:
            return log_p, pulled, None
        toward = means + alpha * self._rotate(spectrum * scaled, x, transpose=True)
        return log_p, pulled, xp.sum(share * toward, axis=-2)

    def _rotate(self, vectors: Any, x: Any, *, transpose: bool) -> Any:
        """(…, K, d) vectors into the principal axes of each component, or back."""
        if self._axes is None:
            return vectors
        axes = backend.like(np.swapaxes(self._axes, 1, 2) if transpose else self._axes, x)
        return (vectors[..., None, :] @ axes)[..., 0, :]

    @checked
    def sample(
        self, n: int, seed: int | np.random.Generator = 0, process: Process | None = None, t: float = 0.0
    ) -> Array:
        """(n,) or (n, d) draws of x₀, or of x_t if a process is given; ``seed`` is an integer or a Generator."""
        n, rng = positive_int("n", n), np.random.default_rng(seed)
        k = rng.choice(self.weights.size, size=n, p=self.weights)
        z = rng.standard_normal((n, *self.means.shape[1:])) * np.sqrt(self._spectrum[k])
        x = self.means[k] + (z if self._axes is None else np.einsum("nij,nj->ni", self._axes[k], z))
        if process is None:
            return x
        return _diffuse(process, t, x, rng)

    def _flow(self, process: Process, x: Any, t_from: float, t_to: float) -> tuple[Any, Array]:
        if self.means.ndim == 1:
            return super()._flow(process, x, t_from, t_to)
        self._require_one("flow", " (for others use reference_solution)")
        (a, s, centre), (a_to, s_to, centre_to) = levels(process, t_from), levels(process, t_to)
        ratio = np.sqrt((a_to**2 * self._spectrum + s_to**2) / (a**2 * self._spectrum + s**2))
        mean = backend.like(self.means[0], x)
        rotated = self._rotate((centred(x, centre) - a * mean)[..., None, :], x, transpose=False) * backend.like(
            ratio, x
        )
        y = a_to * mean + self._rotate(rotated, x, transpose=True)[..., 0, :]
        size = ratio.max() * (np.abs(_finite(x)).max(-1, keepdims=True) + np.abs(self.means[0]).max())
        error = _ROUNDING * self.dimension * (size + np.abs(_finite(y)))
        return (y if centre_to is None else y + backend.like(centre_to, x)), error

    def _require_one(self, what: str, hint: str = "") -> None:
        if self.weights.size > 1:
            allowed = "1-D mixtures, ProductMixture, one Gaussian"
            raise ValueError(f"{self!r} has no closed-form {what}; allowed: {allowed}{hint}")

    def _flow_many(self, process: Process, x: Any, starts: Array, ends: Array) -> tuple[Any, Array]:
        if self.means.ndim == 1:
            return super()._flow_many(process, x, starts, ends)
        pieces = [self._flow(process, y, float(a), float(b)) for y, a, b in zip(x, starts, ends, strict=True)]
        return array_namespace(x).stack([y for y, _ in pieces]), np.stack([error for _, error in pieces])

    @checked
    def from_prior(self, process: Process, x: Any, t: float, std: float = 1.0) -> Any:
        """The start that optimal transport from N(μ, std² I) to p_t assigns to ``x``, μ the mean of the process or 0.

        Raises:
            ValueError: more than one component in more than one dimension, where the transport is not known.
        """
        if self.means.ndim == 1:
            return super().from_prior(process, x, t, std)
        self._require_one("transport")
        x, values = self._prior_draw(process, x, std)
        alpha, sigma, centre = levels(process, t)
        scale = backend.like(np.sqrt(alpha**2 * self._spectrum + sigma**2) / std, x)
        draw = backend.like(values, x)[..., None, :]
        y = self._rotate(self._rotate(draw, x, transpose=False) * scale, x, transpose=True)[..., 0, :]
        y = y + backend.like(alpha * self.means[0], x)
        return y if centre is None else y + backend.like(centre, x)


@checked
class ProductMixture(_Scalar):
    """Independent coordinates, each a 1-D `GaussianMixture`: a d-dimensional density with an exact flow.

    Args:
        marginals: d one-dimensional mixtures; x has shape (…, d).
    """

    def __init__(self, marginals: Sequence[GaussianMixture]) -> None:
        self.marginals = several("marginals", marginals)
        if not self.marginals or any(not isinstance(m, GaussianMixture) or m.means.ndim != 1 for m in self.marginals):
            raise ValueError("marginals must be one-dimensional GaussianMixture objects, at least one")
        self.dimension, most = len(self.marginals), max(m.weights.size for m in self.marginals)
        log_w, means, variances = np.full((self.dimension, most), -np.inf), *np.ones((2, self.dimension, most))
        for row, m in enumerate(self.marginals):
            k = m.weights.size
            log_w[row, :k], means[row, :k], variances[row, :k] = m._log_weights, m.means, m.covariances
        super().__init__(log_w, means, variances)

    def __repr__(self) -> str:
        return f"ProductMixture({self.dimension}-D)"

    def _checked(self, x: Any) -> Any:
        x = backend.floating("x", x if hasattr(x, "dtype") else real("x", x))
        if x.ndim == 0 or x.shape[-1] != self.dimension:
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (..., {self.dimension})")
        return x

    @checked
    def log_prob(self, x: Any, process: Process | None = None, t: float | None = None) -> Any:
        """Log density, one value per sample: the sum over coordinates."""
        per_coordinate = super().log_prob(x, process, t)
        return array_namespace(per_coordinate).sum(per_coordinate, axis=-1)

    @checked
    def sample(
        self, n: int, seed: int | np.random.Generator = 0, process: Process | None = None, t: float = 0.0
    ) -> Array:
        """(n, d) draws of x₀, or of x_t if a process is given."""
        rng = np.random.default_rng(seed)
        x = np.stack([m.sample(n, rng) for m in self.marginals], axis=-1)
        if process is None:
            return x
        return _diffuse(process, t, x, rng)


@checked
def order_problem(process: Process | None = None) -> tuple[Process, GaussianMixture, dict[str, Any]]:
    """The standard problem for orders: a broad 1-D mixture on VPLinear, t from 0.4 to 0.1 on the quadratic grid.

    Smooth enough to be asymptotic at 40 steps, and started where ε already varies, so that a low-order start shows.
    On another ``process`` the same stretch of ρ, or one as long, as far as there is room, inside its own range.
    """
    mix = GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
    standard = VPLinear(0.1, 20.0)
    if process is None or process == standard:
        return standard, mix, {"kind": "t2", "t_start": 0.4, "t_end": 0.1}
    require_process(process)
    low, high = (float(process.rho(t)) for t in sorted(process.sampling_range))
    top, bottom = (float(standard.rho(t)) for t in (0.4, 0.1))
    if not low < bottom < top < high:
        ratio = min(top / bottom, (high / low) ** 0.8)
        centre = min(max((top * bottom) ** 0.5, low * ratio**0.6), high * ratio**-0.6)
        top, bottom = centre * ratio**0.5, centre * ratio**-0.5
    first, last = (float(process.time_from_rho(rho)) for rho in (top, bottom))
    return process, mix, {"kind": "t2", "t_start": first, "t_end": last}
