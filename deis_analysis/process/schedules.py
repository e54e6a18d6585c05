"""The forward processes of the literature: VP (linear, cosine, discrete), sub-VP, VE, EDM, rectified flow.

Formulas keep full relative precision as t → 0: nothing is computed as 1 − α².
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from deis_analysis.process.process import Array, Process
from deis_analysis.validate import checked, first, positive, real


class _VariancePreserving(Process):
    """α² + σ² = 1: ρ decides everything."""

    variance_preserving: ClassVar[bool] = True

    def _kappa_score(self, t: Array) -> Array:
        return -1.0 / self._alpha(t)

    def _drift(self, t: Array) -> Array:
        return -(self._sigma(t) ** 2) * self._rate(t)

    def _diffusion_squared(self, t: Array) -> Array:
        return -2.0 * self._drift(t)


def _as_floats(process: Process, *names: str) -> None:
    """Check that these fields are positive numbers, and keep them as floats: a NumPy or torch number is one too."""
    for name in names:
        value = getattr(process, name)
        positive(**{name: value})
        object.__setattr__(process, name, float(value))


def _beta_integral_time(integral: Array, beta_min: float, beta_max: float) -> Array:
    """t with β₀t + ½(β₁−β₀)t² = integral, in the form that does not cancel."""
    return 2.0 * integral / (beta_min + np.sqrt(beta_min**2 + 2.0 * (beta_max - beta_min) * integral))


@checked
@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    r"""Variance-preserving process with linear β: log α = −½B, B = β₀t + ½(β₁−β₀)t², t ∈ [0, 1].

    [Song et al. 2021, eq. 32]
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _as_floats(self, "beta_min", "beta_max")
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max={self.beta_max!r} must be at least beta_min={self.beta_min!r}")

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return 1.0, 1e-3

    def _integral(self, t: Array) -> Array:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _beta(self, t: Array) -> Array:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _alpha(self, t: Array) -> Array:
        return np.exp(-0.5 * self._integral(t))

    def _sigma(self, t: Array) -> Array:
        return np.sqrt(-np.expm1(-self._integral(t)))

    def _rho(self, t: Array) -> Array:
        return np.sqrt(np.expm1(self._integral(t)))

    def _rate(self, t: Array) -> Array:
        return -0.5 * self._beta(t) / np.expm1(-self._integral(t))

    def _drift(self, t: Array) -> Array:
        return -0.5 * self._beta(t)

    def _time_from_rho(self, rho: Array) -> Array:
        return _beta_integral_time(np.log1p(rho * rho), self.beta_min, self.beta_max)


@checked
@dataclass(frozen=True)
class SubVP(VPLinear):
    """Sub-VP process: α of `VPLinear`, σ = 1 − α². [Song et al. 2021, eq. 36]"""

    variance_preserving: ClassVar[bool] = False

    def _sigma(self, t: Array) -> Array:
        return -np.expm1(-self._integral(t))

    def _rho(self, t: Array) -> Array:
        return 2.0 * np.sinh(0.5 * self._integral(t))

    def _rate(self, t: Array) -> Array:
        return 0.5 * self._beta(t) / np.tanh(0.5 * self._integral(t))

    def _time_from_rho(self, rho: Array) -> Array:
        return _beta_integral_time(2.0 * np.arcsinh(0.5 * rho), self.beta_min, self.beta_max)

    def _diffusion_squared(self, t: Array) -> Array:
        return -self._beta(t) * np.expm1(-2.0 * self._integral(t))

    def _kappa_score(self, t: Array) -> Array:
        alpha = self._alpha(t)
        return -1.0 / alpha - alpha**3 / 3.0


@checked
@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    r"""Variance-preserving process with α_t = cos(a + u)/cos a, a = (π/2) s/(1+s), u = (π/2) t/(1+s).

    The normalised form of Nichol & Dhariwal (2021, eq. 17), so that α₀ = 1; the released DEIS code leaves out the
    division by cos a.  t ∈ [0, t_max], t_max = 0.9946 as in DPM-Solver (Lu et al. 2022, app. D): α vanishes at t = 1.
    """

    _noise_time: ClassVar[float] = 1.0
    s: float = 0.008
    t_max: float = 0.9946
    t_min: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _as_floats(self, "s", "t_max")
        if self.t_max >= 1:
            raise ValueError(f"t_max={self.t_max!r} must be below 1, where α vanishes")

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return self.t_max, 1e-3

    @property
    def _offset(self) -> float:
        return 0.5 * math.pi * self.s / (1.0 + self.s)

    def _angle(self, t: Array) -> Array:
        return 0.5 * math.pi * (1.0 - self._noise_time + t) / (1.0 + self.s)

    def _cos_total(self, t: Array) -> Array:
        return np.sin(0.5 * math.pi * (self._noise_time - t) / (1.0 + self.s))  # cos(a+u), accurate where it vanishes

    def _alpha(self, t: Array) -> Array:
        return self._cos_total(t) / math.cos(self._offset)

    def _sigma(self, t: Array) -> Array:
        u = self._angle(t)
        return np.sqrt(np.sin(2 * self._offset + u) * np.sin(u)) / math.cos(self._offset)

    def _rho(self, t: Array) -> Array:
        u = self._angle(t)
        return np.sqrt(np.sin(2 * self._offset + u) * np.sin(u)) / self._cos_total(t)

    def _rate(self, t: Array) -> Array:
        a, u = self._offset, self._angle(t)
        sin_total, cos_total = np.sin(a + u), self._cos_total(t)
        product = np.sin(2 * a + u) * np.sin(u)
        return 0.5 * math.pi / (1.0 + self.s) * (sin_total * cos_total / product + sin_total / cos_total)

    def _drift(self, t: Array) -> Array:
        total = self._offset + self._angle(t)
        return -0.5 * math.pi / (1.0 + self.s) * np.sin(total) / self._cos_total(t)

    def _time_from_rho(self, rho: Array) -> Array:
        alpha, sigma_squared = 1.0 / np.hypot(1.0, rho), rho * rho / (1.0 + rho * rho)
        sin_a, cos_a = math.sin(self._offset), math.cos(self._offset)
        sin_total = np.sqrt(sin_a**2 + sigma_squared * cos_a**2)
        sin_u = cos_a * sigma_squared / (sin_total + alpha * sin_a)  # sin(a+u) cos a − cos(a+u) sin a, uncancelled
        cos_u = alpha * cos_a**2 + sin_total * sin_a
        to_time = (1.0 + self.s) / (0.5 * math.pi)
        left = np.arcsin(alpha * cos_a) * to_time  # 1 − t: near 1 it tells floats apart
        return np.where(alpha < 0.5, 1.0 - left, np.arctan2(sin_u, cos_u) * to_time)


@checked
@dataclass(frozen=True, eq=False)
class VPDiscrete(_VariancePreserving):
    """Variance-preserving process given by ᾱ at the integer times 0 … n−1, with log ρ linear in t between them.

    log ρ rather than ᾱ is interpolated: it is nearly linear in t, and stays accurate where ᾱ is within rounding of 1.

    Args:
        alphas_cumprod: (n,) ᾱ = α², strictly decreasing, inside (0, 1).
    """

    alphas_cumprod: Array
    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(init=False, repr=False)
    _log_rho: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        a = real("alphas_cumprod", self.alphas_cumprod)
        if a.ndim != 1 or a.size < 2:
            raise ValueError(f"alphas_cumprod has shape {a.shape}; allowed: one dimension, at least 2 values")
        if not (np.all(np.isfinite(a)) and np.all(a > 0) and np.all(a < 1)):
            raise ValueError("alphas_cumprod must lie inside (0, 1); it has " + first(a, ~((a > 0) & (a < 1))))
        if not np.all(np.diff(a) < 0):
            raise ValueError(
                "alphas_cumprod must decrease strictly; it does not at " + first(a, np.append(False, np.diff(a) >= 0))
            )
        a.setflags(write=False)
        for name, value in (
            ("alphas_cumprod", a),
            ("t_max", float(a.size - 1)),
            ("_log_rho", 0.5 * (np.log1p(-a) - np.log(a))),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"VPDiscrete({self.alphas_cumprod.size} levels)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VPDiscrete) and np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash(self.alphas_cumprod.tobytes())

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative jumps."""
        return np.arange(1.0, self.t_max)

    def _piece(self, t: Array) -> Array:
        return np.clip(np.floor(t).astype(int), 0, self._log_rho.size - 2)

    def _log_rho_at(self, t: Array) -> Array:
        i = self._piece(t)
        return self._log_rho[i] + (t - i) * (self._log_rho[i + 1] - self._log_rho[i])

    def _alpha(self, t: Array) -> Array:
        return 1.0 / np.sqrt(1.0 + np.exp(2.0 * self._log_rho_at(t)))

    def _sigma(self, t: Array) -> Array:
        return 1.0 / np.sqrt(1.0 + np.exp(-2.0 * self._log_rho_at(t)))

    def _rho(self, t: Array) -> Array:
        return np.exp(self._log_rho_at(t))

    def _lam(self, t: Array) -> Array:
        return -self._log_rho_at(t)

    def _rate(self, t: Array) -> Array:
        i = self._piece(t)
        return self._log_rho[i + 1] - self._log_rho[i]

    def _time_from_rho(self, rho: Array) -> Array:
        log_rho = np.log(rho)
        i = np.clip(np.searchsorted(self._log_rho, log_rho, side="right") - 1, 0, self._log_rho.size - 2)
        return i + (log_rho - self._log_rho[i]) / (self._log_rho[i + 1] - self._log_rho[i])


class _VarianceExploding(Process):
    """α = 1, so ρ = σ."""

    def _alpha(self, t: Array) -> Array:
        return np.ones_like(t)

    def _rho(self, t: Array) -> Array:
        return self._sigma(t)

    def _drift(self, t: Array) -> Array:
        return np.zeros_like(t)

    def _kappa_score(self, t: Array) -> Array:
        return -0.5 * self._sigma(t) ** 2


@checked
@dataclass(frozen=True)
class VE(_VarianceExploding):
    """Variance-exploding process: α = 1, σ = σ_min (σ_max/σ_min)^t, t ∈ [0, 1]. [Song et al. 2021, eq. 31]"""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_sigmas(self)

    def _sigma(self, t: Array) -> Array:
        return self.sigma_min * np.exp(t * math.log(self.sigma_max / self.sigma_min))

    def _lam(self, t: Array) -> Array:
        return -(math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def _rate(self, t: Array) -> Array:
        return np.full_like(t, math.log(self.sigma_max / self.sigma_min))

    def _time_from_rho(self, rho: Array) -> Array:
        return np.log(rho / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@checked
@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """α = 1, σ = t, t ∈ [sigma_min, sigma_max], and t = 0, the data, where EDM's last step ends.

    [Karras et al. 2022, table 1]
    """

    _data_time: ClassVar[float | None] = 0.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_sigmas(self)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """First time: sigma_min."""
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """Last time: sigma_max."""
        return self.sigma_max

    def _sigma(self, t: Array) -> Array:
        return np.array(t)

    def _rate(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return 1.0 / t

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        return np.zeros_like(t), np.ones_like(t)  # also at t = 0, where the rate is infinite

    def _time_from_rho(self, rho: Array) -> Array:
        return np.array(rho)


def _check_sigmas(process: VE | EDM) -> None:
    _as_floats(process, "sigma_min", "sigma_max")
    if process.sigma_max <= process.sigma_min:
        raise ValueError(f"sigma_max={process.sigma_max!r} must be above sigma_min={process.sigma_min!r}")


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight paths: α = 1 − t, σ = t, t ∈ [0, 1]; t = 1 is noise. [Liu et al. 2023; Lipman et al. 2023]

    ρ is infinite at t = 1: tables in ε, ρ or λ start below it, tables in (v, t) and (x0, t) may start at 1.  From just
    below, ε amplifies what x_T is known to: by α_s/α_t, 5e11 from t = 1 − 1e-12 to s = ½.
    """

    _noise_time: ClassVar[float] = 1.0
    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(default=1.0, init=False, repr=False)

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return 1.0 - 1e-3, 1e-3

    def _alpha(self, t: Array) -> Array:
        return self._noise_time - t

    def _sigma(self, t: Array) -> Array:
        return np.asarray(1.0 - self._noise_time + t)

    def _rho(self, t: Array) -> Array:
        return self._sigma(t) / self._alpha(t)

    def _lam(self, t: Array) -> Array:
        sigma = self._sigma(t)
        near = np.abs(sigma - 0.5) < 0.25  # log1p keeps the relative error of λ small where λ itself is
        middle = np.where(near, sigma, 0.5)
        return np.where(near, np.log1p((1.0 - 2.0 * middle) / middle), np.log(self._alpha(t) / sigma))

    def _rate(self, t: Array) -> Array:
        return 1.0 / (self._sigma(t) * self._alpha(t))

    def _drift(self, t: Array) -> Array:
        return -1.0 / self._alpha(t)

    def _time_from_rho(self, rho: Array) -> Array:
        return rho / (1.0 + rho)

    def _kappa_score(self, t: Array) -> Array:
        alpha = self._alpha(t)
        with np.errstate(divide="ignore"):
            return -(1.0 + alpha * np.log(np.where(alpha == 0, 1.0, alpha))) / alpha

    def _rho_rate(self, t: Array) -> Array:
        return 1.0 / self._alpha(t) ** 2

    def _inv_rho_rate(self, t: Array) -> Array:
        return -1.0 / self._sigma(t) ** 2

    def _diffusion_squared(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return 2.0 * self._sigma(t) / self._alpha(t)

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        return -np.ones_like(t), np.ones_like(t)
