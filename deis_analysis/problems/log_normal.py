r"""Multiplicative noise: dX = μX dt + σX dW is, in y = log X, a variance-exploding process with a moving origin.

By Itô's formula dy = (μ − σ²/2) dt + σ dW, so y_t − (μ − σ²/2) t = y_0 + σ√t ε: the process `EDM` at level ρ = σ√t.
Every table sampled there and mapped back by exp gives positive samples.  The score that belongs to the multiplicative
form is Hyvärinen's, for positive data,

.. math:: h(x, t) = x \, ∂_x \log p_t(x) = ∂_y \log q_t(y) - 1 ,

and the reverse process, in either form, is

.. math::
    dX = (-μ + 2σ^2 + σ^2 h) X dτ + σ X d\bar W , \qquad
    X \leftarrow X \exp\bigl[ (-μ + \tfrac32 σ^2 + σ^2 h) Δ + σ \sqrt Δ \, z \bigr] .

The second is Euler–Maruyama in y and keeps the sign; Euler–Maruyama on the first does not.
Symbols here are the paper's: μ is the drift and σ the volatility of X, not the mean and noise level of a process; those
are ρ = σ√t and the clock of `EDM`.  [the setting of "Dale meets Langevin", arXiv 2510.02730]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis.problems.mixture import GaussianMixture, ProductMixture
from deis_analysis.process.schedules import EDM
from deis_analysis.validate import checked, finite, function, instance, nonnegative, positive, scalar


@checked
@dataclass(frozen=True)
class MultiplicativeNoise:
    """Geometric Brownian motion dX = μX dt + σX dW, entry by entry, from X_0 > 0.

    Attributes:
        mu: drift μ per unit of time, any finite number. sigma: σ > 0, per square root of time.
    """

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        finite("mu", scalar("mu", self.mu))
        positive(sigma=self.sigma)

    @property
    def log_drift(self) -> float:
        """μ − σ²/2, the drift of log X per unit of time."""
        return self.mu - 0.5 * self.sigma**2

    def level(self, t: float) -> float:
        """ρ = σ√t, the time of `EDM` at time ``t`` ≥ 0."""
        return self.sigma * nonnegative("t", t) ** 0.5

    def time(self, rho: float) -> float:
        """t = (ρ/σ)², the inverse of `level`."""
        return (nonnegative("rho", rho) / self.sigma) ** 2

    def process(self, t_min: float, t_max: float) -> EDM:
        """The process that y_t − (μ − σ²/2) t obeys for t in [t_min, t_max], 0 < t_min, in the clock ρ = σ√t."""
        return EDM(self.level(t_min), self.level(t_max))

    def to_log(self, x: Any, t: float) -> Any:
        """y = log x − (μ − σ²/2) t, the state that tables work on; ValueError unless ``x`` is an array > 0."""
        shift = self.log_drift * nonnegative("t", t)
        return _log(_array("x", x)) - shift

    def from_log(self, y: Any, t: float) -> Any:
        """x = exp(y + (μ − σ²/2) t) > 0, the inverse of `to_log`."""
        shift = self.log_drift * nonnegative("t", t)
        y = _array("y", y)
        return array_namespace(y).exp(y + shift)

    def log_prob(self, log_data: GaussianMixture | ProductMixture, x: Any, t: float) -> Any:
        """Log density of X_t if log X_0 has the law ``log_data``: log q_t(y) − Σ log x, one value per sample."""
        _check_data(log_data)
        y = self.to_log(x, t)
        level = self.level(t)
        jacobian = y + self.log_drift * t  # log x
        joint = log_data.dimension > 1 or isinstance(log_data, ProductMixture)
        jacobian = array_namespace(y).sum(jacobian, axis=-1) if joint else jacobian
        return (log_data.log_prob(y, _at(level), level) if level else log_data.log_prob(y)) - jacobian

    def hyvarinen_score(self, log_data: GaussianMixture | ProductMixture) -> Callable[[Any, float], Any]:
        """The exact h(x, t) = x ∂_x log p_t(x), t > 0, of data whose logarithm has the law ``log_data``."""
        _check_data(log_data)

        def score(x: Any, t: float) -> Any:
            """∂_y log q_t − 1."""
            level = self.level(t)
            return log_data.score(_at(level))(self.to_log(x, t), level) - 1.0

        return score

    def log_model(self, score: Callable[[Any, float], Any]) -> Callable[[Any, float], Any]:
        """The eps model on `process` of a Hyvärinen score h(x, t): ε(y, ρ) = −ρ (h + 1).

        So `run` (table, noise.log_model(h), noise.to_log(x_T, T)) samples with any table.
        """
        function("score", score)

        def eps(y: Any, rho: float) -> Any:
            """ε at level ρ, which is the time of `process`."""
            t = self.time(rho)
            return -rho * (score(self.from_log(y, t), t) + 1.0)

        return eps

    def multiplicative_step(self, x: Any, score: Any, delta: float, z: Any) -> Any:
        """x exp[(−μ + 3σ²/2 + σ² h) Δ + σ√Δ z]: a reverse step that keeps the sign of ``x``.

        Args:
            score: h at (x, t), shape of ``x``. delta: Δ ≥ 0, from t to t − Δ. z: standard normal, shape of ``x``.
        """
        delta = nonnegative("delta", delta)
        rate = -self.mu + 1.5 * self.sigma**2 + self.sigma**2 * score
        return x * array_namespace(x).exp(rate * delta + self.sigma * delta**0.5 * z)

    def ambient_step(self, x: Any, score: Any, delta: float, z: Any) -> Any:
        """x + x (−μ + 2σ² + σ² h) Δ + σ x √Δ z: Euler–Maruyama on X, which leaves the positive numbers.

        It does at z < −(1 + (−μ + 2σ² + σ² h) Δ)/(σ√Δ), a set of positive probability at every Δ > 0.
        """
        delta = nonnegative("delta", delta)
        rate = -self.mu + 2.0 * self.sigma**2 + self.sigma**2 * score
        return x * (1.0 + rate * delta + self.sigma * delta**0.5 * z)


def _at(level: float) -> EDM:
    return EDM(level, 2.0 * level)


def _check_data(log_data: Any) -> None:
    if not isinstance(log_data, (GaussianMixture, ProductMixture)):
        instance("log_data", log_data, GaussianMixture)


def _array(name: str, x: Any) -> Any:
    if not hasattr(x, "dtype"):
        raise ValueError(f"{name}={x!r} must be an array: NumPy, torch or JAX")
    return np.asarray(x) if isinstance(x, np.generic) else x


def _log(x: Any) -> Any:
    if not bool((x > 0).all()):
        raise ValueError("x must be positive; it holds a number that is not")
    return array_namespace(x).log(x)
