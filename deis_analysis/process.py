r"""Forward processes: the scales :math:`α_t, σ_t` of :math:`x_t = α_t x_0 + σ_t ε`, their clocks, and time grids.

Everything a process is follows from two functions of time. With :math:`ρ = σ/α` and its logarithmic rate
:math:`L = \dot ρ/ρ = -\dot λ`,

.. math:: f = \dot α/α , \qquad g^2 = 2σ\dot σ - 2fσ^2 = 2σ^2 L , \qquad λ = -\log ρ .

For a prediction :math:`p` (ε, x₀, v or the score) the probability-flow ODE is linear in (x, p).  Written
:math:`x = γ y`, it is :math:`dy = p\,dκ`:

=========  =======  =================================  ==========================
p          γ        κ                                  dκ/dt
=========  =======  =================================  ==========================
ε          α        ρ                                  ρ L
x₀         σ        1/ρ                                −L/ρ
v          1        the v-clock (angle, or t)          1/(ρ + 1/ρ)·L, or 1
score      α        −∫ σ ρ L dt (VP: −1/α)             −σ ρ L
=========  =======  =================================  ==========================

``v`` is the derivative of x along the flow in the process's own v-clock: the angle ``arctan ρ`` on variance-preserving
processes, where :math:`v = αε - σx_0` (Salimans & Ho 2022), and ``t`` elsewhere, where :math:`v = \dot x` is the
velocity of flow matching (on `RectifiedFlow`: :math:`v = ε - x_0`).

Formulas keep full relative precision as t → 0: nothing is computed as 1 − α².  ``tests/test_process.py`` compares every
function with mpmath at 50 digits.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray
PREDICTIONS = ("eps", "x0", "v", "score")
VARIABLES = ("t", "rho", "lam", "inv_rho")

_SLACK = 1e-12  # relative distance by which a time or level may leave its range by rounding


def choose(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``; raise a ValueError that names the nearest ones otherwise."""
    allowed = tuple(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ValueError(f"{name}={value!r} is unknown{hint}. Allowed: {', '.join(allowed)}")


def positive_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int; raise a ValueError unless it is an integer ≥ ``minimum`` (True and 3.0 are not)."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be an integer >= {minimum}") from None
    if number < minimum:
        raise ValueError(f"{name}={number} must be an integer >= {minimum}")
    return number


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a positive finite number")


class Process:
    """A forward process. Subclasses define scales, rate and inverse; all else is derived.

    Attributes:
        t_min, t_max: the closed range of times; every method raises a ValueError outside it.
        variance_preserving: whether α² + σ² = 1 (decides what ``v`` means, see the module docstring).
        breakpoints: interior times at which a derivative jumps (quadrature splits there).
        mean: the point that the process reverts to (see `MeanReverting`), None for 0.
    """

    t_min: float
    t_max: float
    variance_preserving: ClassVar[bool] = False
    mean: Any = None

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative jumps."""
        return np.empty(0)

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a sampling grid: where ρ and λ are finite, with the field's usual end time."""
        return self.t_max, self.t_min

    # -- what a subclass defines, on a validated float64 array ------------------------------------
    def _alpha(self, t: Array) -> Array:
        raise NotImplementedError

    def _sigma(self, t: Array) -> Array:
        raise NotImplementedError

    def _rho(self, t: Array) -> Array:
        raise NotImplementedError

    def _lam(self, t: Array) -> Array:
        return -np.log(self._rho(t))

    def _rate(self, t: Array) -> Array:
        """L = d log ρ / dt."""
        raise NotImplementedError

    def _drift(self, t: Array) -> Array:
        raise NotImplementedError

    def _time_from_rho(self, rho: Array) -> Array:
        raise NotImplementedError

    def _kappa_score(self, t: Array) -> Array:
        raise NotImplementedError

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        """(α′, σ′), the derivatives in the v-clock."""
        if self.variance_preserving:
            return -self._sigma(t), self._alpha(t)
        f = self._drift(t)
        return f * self._alpha(t), (f + self._rate(t)) * self._sigma(t)

    # -- public functions of time -----------------------------------------------------------------
    def _check(self, t: Any, name: str = "t") -> Array:
        values = np.asarray(t, dtype=np.float64)
        slack = _SLACK * max(abs(self.t_min), abs(self.t_max))
        good = (values >= self.t_min - slack) & (values <= self.t_max + slack)
        if not good.all():
            bad = float(values[~good].flat[0]) if values.ndim else float(values)
            raise ValueError(f"{name}={bad!r} is outside [{self.t_min:g}, {self.t_max:g}], the time range of {self!r}")
        return np.clip(values, self.t_min, self.t_max)

    def alpha(self, t: Any) -> Array:
        """Signal scale α_t (not squared), shape of ``t``."""
        return self._alpha(self._check(t))

    def sigma(self, t: Any) -> Array:
        """Noise scale σ_t, shape of ``t``."""
        return self._sigma(self._check(t))

    def rho(self, t: Any) -> Array:
        """ρ_t = σ_t/α_t: DEIS's clock, EDM's σ (infinite where α vanishes)."""
        with np.errstate(divide="ignore"):
            return self._rho(self._check(t))

    def lam(self, t: Any) -> Array:
        """λ_t = log(α_t/σ_t): half the log signal-to-noise ratio, DPM-Solver's clock."""
        with np.errstate(divide="ignore"):
            return self._lam(self._check(t))

    def log_rho_rate(self, t: Any) -> Array:
        """L_t = d log ρ/dt = −dλ/dt, per unit of time."""
        return self._rate(self._check(t))

    def drift(self, t: Any) -> Array:
        """f_t = d log α/dt, per unit of time."""
        return self._drift(self._check(t))

    def diffusion_squared(self, t: Any) -> Array:
        """g²_t = 2σ²L = dσ²/dt − 2fσ², per unit of time."""
        t = self._check(t)
        return 2.0 * self._sigma(t) ** 2 * self._rate(t)

    def psi(self, s: Any, t: Any) -> Array:
        """Transition of the linear part from t to s: Ψ(s, t) = α_s/α_t."""
        return self._alpha(self._check(s, "s")) / self._alpha(self._check(t))

    def time_from_rho(self, rho: Any) -> Array:
        """The time at which σ/α equals ``rho``; ValueError outside [ρ(t_min), ρ(t_max)]."""
        values = np.asarray(rho, dtype=np.float64)
        with np.errstate(divide="ignore"):
            low, high = (float(self._rho(np.asarray(t))) for t in (self.t_min, self.t_max))
        good = (values >= low * (1 - _SLACK)) & (values <= high * (1 + _SLACK)) & np.isfinite(values)
        if not good.all():
            bad = float(values[~good].flat[0]) if values.ndim else float(values)
            raise ValueError(f"rho={bad!r} is outside [{low:.6g}, {high:.6g}], the levels that {self!r} reaches")
        return np.clip(self._time_from_rho(np.clip(values, low, high)), self.t_min, self.t_max)

    def time_from_lam(self, lam: Any) -> Array:
        """The time at which log(α/σ) equals ``lam``."""
        return self.time_from_rho(np.exp(-np.asarray(lam, dtype=np.float64)))

    # -- predictions and their clocks -------------------------------------------------------------
    def gamma(self, prediction: str, t: Any) -> Array:
        """γ_t of x = γ y, dy = p dκ."""
        t = self._check(t)
        match choose("prediction", prediction, PREDICTIONS):
            case "x0":
                return self._sigma(t)
            case "v":
                return np.ones_like(t)
            case _:
                return self._alpha(t)

    def kappa(self, prediction: str, t: Any) -> Array:
        """κ_t of dy = p dκ."""
        t = self._check(t)
        with np.errstate(divide="ignore"):
            match choose("prediction", prediction, PREDICTIONS):
                case "eps":
                    return self._rho(t)
                case "x0":
                    return 1.0 / self._rho(t)
                case "v":
                    return np.arctan(self._rho(t)) if self.variance_preserving else np.array(t)
                case _:
                    return self._kappa_score(t)

    def kappa_rate(self, prediction: str, t: Any) -> Array:
        """dκ/dt."""
        t = self._check(t)
        match choose("prediction", prediction, PREDICTIONS):
            case "eps":
                return self._rho(t) * self._rate(t)
            case "x0":
                return -self._rate(t) / self._rho(t)
            case "v":
                if not self.variance_preserving:
                    return np.ones_like(t)
                rho = self._rho(t)
                return self._rate(t) * rho / (1.0 + rho * rho)
            case _:
                return -self._sigma(t) * self._rho(t) * self._rate(t)

    def variable_rate(self, variable: str, t: Any) -> Array:
        """dφ/dt of the interpolation variable φ ∈ {t, rho, lam, inv_rho}."""
        t = self._check(t)
        match choose("variable", variable, VARIABLES):
            case "t":
                return np.ones_like(t)
            case "rho":
                return self._rho(t) * self._rate(t)
            case "lam":
                return -self._rate(t)
            case _:
                return -self._rate(t) / self._rho(t)

    def prediction_parts(self, prediction: str, t: Any) -> tuple[Array, Array]:
        """(a, b) with p = a x₀ + b ε."""
        t = self._check(t)
        zero, one = np.zeros_like(t), np.ones_like(t)
        match choose("prediction", prediction, PREDICTIONS):
            case "eps":
                return zero, one
            case "x0":
                return one, zero
            case "v":
                return self._v_rates(t)
            case _:
                return zero, -1.0 / self._sigma(t)

    def convert(self, source: str, target: str, t: Any) -> tuple[Array, Array]:
        """(c, d) with target = c·x + d·source, from x = αx₀ + σε; ValueError where the pair (x, source) is singular."""
        t = self._check(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        a, b = self.prediction_parts(source, t)
        a_new, b_new = self.prediction_parts(target, t)
        det = alpha * b - sigma * a
        if np.any(det == 0):
            bad = float(np.asarray(t)[det == 0].flat[0]) if np.ndim(t) else float(t)
            raise ValueError(f"t={bad!r}: {target!r} cannot be told from x and {source!r} there")
        return (a_new * b - b_new * a) / det, (alpha * b_new - sigma * a_new) / det


class _VariancePreserving(Process):
    """α² + σ² = 1: ρ decides everything."""

    variance_preserving: ClassVar[bool] = True

    def _kappa_score(self, t: Array) -> Array:
        return -1.0 / self._alpha(t)

    def _drift(self, t: Array) -> Array:
        return -(self._sigma(t) ** 2) * self._rate(t)


def _beta_integral_time(integral: Array, beta_min: float, beta_max: float) -> Array:
    """t with β₀t + ½(β₁−β₀)t² = integral, in the form that does not cancel."""
    return 2.0 * integral / (beta_min + np.sqrt(beta_min**2 + 2.0 * (beta_max - beta_min) * integral))


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
        _positive(beta_min=self.beta_min, beta_max=self.beta_max)
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

    def _kappa_score(self, t: Array) -> Array:
        alpha = self._alpha(t)
        return -1.0 / alpha - alpha**3 / 3.0


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    r"""Variance-preserving process with α_t = cos(a + u)/cos a, a = (π/2) s/(1+s), u = (π/2) t/(1+s).

    The normalised form of Nichol & Dhariwal (2021, eq. 17), so that α₀ = 1; the released DEIS code leaves out the
    division by cos a.  t ∈ [0, t_max], t_max = 0.9946 as in DPM-Solver (Lu et al. 2022, app. D): α vanishes at t = 1.
    """

    s: float = 0.008
    t_max: float = 0.9946
    t_min: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _positive(s=self.s, t_max=self.t_max)
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
        return 0.5 * math.pi * t / (1.0 + self.s)

    def _cos_total(self, t: Array) -> Array:
        return np.sin(0.5 * math.pi * (1.0 - t) / (1.0 + self.s))  # cos(a+u), accurate where it vanishes

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

    def _time_from_rho(self, rho: Array) -> Array:
        alpha, sigma_squared = 1.0 / np.hypot(1.0, rho), rho * rho / (1.0 + rho * rho)
        sin_a, cos_a = math.sin(self._offset), math.cos(self._offset)
        sin_total = np.sqrt(sin_a**2 + sigma_squared * cos_a**2)
        sin_u = cos_a * sigma_squared / (sin_total + alpha * sin_a)  # sin(a+u) cos a − cos(a+u) sin a, uncancelled
        cos_u = alpha * cos_a**2 + sin_total * sin_a
        return np.arctan2(sin_u, cos_u) * (1.0 + self.s) / (0.5 * math.pi)


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
        a = np.array(self.alphas_cumprod, dtype=np.float64)
        if a.ndim != 1 or a.size < 2:
            raise ValueError(f"alphas_cumprod has shape {a.shape}; allowed: one dimension, at least 2 values")
        if not (np.all(np.isfinite(a)) and np.all(a > 0) and np.all(a < 1)):
            raise ValueError("alphas_cumprod must lie inside (0, 1); it has " + _first(a, ~((a > 0) & (a < 1))))
        if not np.all(np.diff(a) < 0):
            raise ValueError(
                "alphas_cumprod must decrease strictly; it does not at " + _first(a, np.append(False, np.diff(a) >= 0))
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


def _first(values: Array, where: Array) -> str:
    i = int(np.flatnonzero(where)[0])
    return f"{float(values[i])!r} at index {i}"


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


@dataclass(frozen=True)
class VE(_VarianceExploding):
    """Variance-exploding process: α = 1, σ = σ_min (σ_max/σ_min)^t, t ∈ [0, 1]. [Song et al. 2021, eq. 31]"""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def _sigma(self, t: Array) -> Array:
        return self.sigma_min * np.exp(t * math.log(self.sigma_max / self.sigma_min))

    def _lam(self, t: Array) -> Array:
        return -(math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def _rate(self, t: Array) -> Array:
        return np.full_like(t, math.log(self.sigma_max / self.sigma_min))

    def _time_from_rho(self, rho: Array) -> Array:
        return np.log(rho / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """α = 1, σ = t, t ∈ [sigma_min, sigma_max]. [Karras et al. 2022, table 1]"""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

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
        return 1.0 / t

    def _time_from_rho(self, rho: Array) -> Array:
        return np.array(rho)


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    _positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if sigma_max <= sigma_min:
        raise ValueError(f"sigma_max={sigma_max!r} must be above sigma_min={sigma_min!r}")


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight paths: α = 1 − t, σ = t, t ∈ [0, 1]; t = 1 is noise. [Liu et al. 2023; Lipman et al. 2023]

    ρ is infinite at t = 1: tables in ε, ρ or λ start below it, tables in (v, t) and (x0, t) may start at 1.
    """

    t_min: float = field(default=0.0, init=False, repr=False)
    t_max: float = field(default=1.0, init=False, repr=False)

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return 1.0 - 1e-3, 1e-3

    def _alpha(self, t: Array) -> Array:
        return 1.0 - t

    def _sigma(self, t: Array) -> Array:
        return np.array(t)

    def _rho(self, t: Array) -> Array:
        return t / (1.0 - t)

    def _lam(self, t: Array) -> Array:
        near = np.abs(t - 0.5) < 0.25  # log1p keeps the relative error of λ small where λ itself is
        return np.where(near, np.log1p((1.0 - 2.0 * t) / np.where(near, t, 1.0)), np.log((1.0 - t) / t))

    def _rate(self, t: Array) -> Array:
        return 1.0 / (t * (1.0 - t))

    def _drift(self, t: Array) -> Array:
        return -1.0 / (1.0 - t)

    def _time_from_rho(self, rho: Array) -> Array:
        return rho / (1.0 + rho)

    def _kappa_score(self, t: Array) -> Array:
        return -1.0 / (1.0 - t) - np.log1p(-t)

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        return -np.ones_like(t), np.ones_like(t)


class MeanReverting(Process):
    """dx = f (x − μ) dt + g dw: the process reverts to ``mean``, and x − μ obeys ``process``.

    x_t = α x₀ + (1 − α) μ + σ ε, so every solver of the inner process applies to x − μ; tables carry μ as a shift.
    [MRS: Li et al. 2025, arXiv 2502.07856, eq. 1]

    Args:
        process: the process that x − μ obeys.
        mean: μ, an array (or tensor) that broadcasts against one sample, or a number.
    """

    def __init__(self, process: Process, mean: Any) -> None:
        if not isinstance(process, Process):
            raise ValueError(f"process={process!r} must be a Process")
        if process.mean is not None:
            raise ValueError("process already reverts to a mean; add the two means instead of nesting MeanReverting")
        if not bool(np.all(np.isfinite(np.asarray(mean, dtype=np.float64)))):
            raise ValueError("mean must be finite")
        self.process, self.mean = process, mean
        self.t_min, self.t_max = process.t_min, process.t_max
        self.variance_preserving = process.variance_preserving  # type: ignore[misc]
        for name in ("_alpha", "_sigma", "_rho", "_lam", "_rate", "_drift", "_time_from_rho", "_kappa_score"):
            setattr(self, name, getattr(process, name))
        self._v_rates = process._v_rates  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"MeanReverting({self.process!r})"

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative jumps."""
        return self.process.breakpoints

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return self.process.sampling_range


def grid(
    process: Process, steps: int, kind: str = "t2", t_start: float | None = None, t_end: float | None = None
) -> Array:
    """A descending time grid of ``steps`` + 1 points with exact endpoints.

    Args:
        steps: number of steps, an integer ≥ 1.
        kind: ``"t1"``, ``"t2"``, ``"t3"`` … power k in t; ``"rho7"`` … power k in ρ (the k-th roots are equidistant,
            any positive exponent, ``"rho5"``, ``"t1.5"``); ``"logrho"`` uniform in log ρ, the log-SNR.
        t_start, t_end: first and last time, in process time; default ``process.sampling_range``.

    Raises:
        ValueError: names the argument; also where ρ is infinite or zero (λ infinite) at ``t_end``, and at ``t_start``
            for grids in ρ.

    Source: Zhang & Chen 2023, app. H.3 (power in t, power in ρ, uniform log ρ); Karras et al. 2022, eq. 5 (rho7).
    """
    steps = positive_int("steps", steps)
    start = process.sampling_range[0] if t_start is None else float(process._check(t_start, "t_start"))
    end = process.sampling_range[1] if t_end is None else float(process._check(t_end, "t_end"))
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}: sampling runs from noise to data")
    if not np.isfinite(process.lam(end)):
        raise ValueError(
            f"t_end={end!r}: λ is infinite there on {process!r}; stop earlier, e.g. at {process.sampling_range[1]:g}"
        )
    ts = _unit_grid(process, np.linspace(0.0, 1.0, steps + 1), kind, start, end)
    ts[0], ts[-1] = start, end
    if not np.all(np.diff(ts) < 0):
        raise ValueError(f"steps={steps} is more than float64 resolves between t_start={start!r} and t_end={end!r}")
    return ts


def _unit_grid(process: Process, u: Array, kind: str, start: float, end: float) -> Array:
    match = re.fullmatch(r"(t|rho)(\d+(?:\.\d+)?)", kind) if isinstance(kind, str) else None
    if kind == "logrho":
        _finite_start(process, start, kind)
        levels = np.linspace(process.lam(start), process.lam(end), u.size)
        return np.array(process.time_from_lam(levels))
    if match is None or float(match[2]) == 0:
        choose("kind", kind, ("t1", "t2", "t3", "rho5", "rho7", "logrho"))
        raise AssertionError("unreachable")
    power = float(match[2])
    if match[1] == "t":
        return np.array((start ** (1 / power) + u * (end ** (1 / power) - start ** (1 / power))) ** power)
    _finite_start(process, start, kind)
    first, last = float(process.rho(start)), float(process.rho(end))
    levels = (first ** (1 / power) + u * (last ** (1 / power) - first ** (1 / power))) ** power
    return np.array(process.time_from_rho(np.clip(levels, last, first)))


def _finite_start(process: Process, start: float, kind: str) -> None:
    if not np.isfinite(process.rho(start)):
        raise ValueError(f"t_start={start!r}: ρ is infinite there on {process!r}, which kind={kind!r} needs finite")


def check_grid(process: Process, ts: Any) -> Array:
    """Return ``ts`` as a float64 array; ValueError unless it is 1-D, ≥ 2 points, finite, descending, in range."""
    times = np.array(ts, dtype=np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"ts has shape {times.shape}; allowed: one dimension, at least 2 times")
    if not np.all(np.isfinite(times)):
        raise ValueError("ts must be finite; it has " + _first(times, ~np.isfinite(times)))
    if not np.all(np.diff(times) < 0):
        raise ValueError(
            "ts must descend strictly (from noise to data); it does not at "
            + _first(times, np.append(False, np.diff(times) >= 0))
        )
    return process._check(times, "ts")
