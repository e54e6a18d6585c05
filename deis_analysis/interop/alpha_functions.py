r"""Processes given by ᾱ = α² as the released DEIS package gives them: by functions of time, or by an array.

There "alpha" is the square of our α.  Everything follows from :math:`ρ = \sqrt{(1-ᾱ)/ᾱ}`.  Linear β and the cosine
have closed forms; of arbitrary functions the rate d log ρ/dt is found by differentiating Chebyshev interpolants.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.polynomial import chebyshev

from deis_analysis.process.process import Array
from deis_analysis.process.schedules import VPLinear, _VariancePreserving
from deis_analysis.validate import first, real, scalar

AlphaFunction = Callable[[Any], Any]
_SHIFT = 0.008  # of the cosine
_LEAST = 1e-7  # discrete ᾱ is clipped to [1e-7, 1 − 1e-7]
_INVERSE_SLACK = 1e-3  # in log ρ


# -- the functions of time that the released package provides -------------------------------------
def _namespace(value: Any) -> tuple[Any, Any]:
    """``value`` as an array of its own library (NumPy for numbers), and that library."""
    value = value if hasattr(value, "dtype") and not isinstance(value, np.generic) else np.asarray(value, np.float64)
    return value, array_namespace(value)


@dataclass(frozen=True)
class LinearAlpha:
    """ᾱ(t) = exp(−β₀t − ½(β₁−β₀)t²), elementwise on numbers and on NumPy, torch or JAX arrays."""

    beta_0: float
    beta_1: float

    def __call__(self, t: Any) -> Any:
        """ᾱ at ``t``, shape of ``t``."""
        t, xp = _namespace(t)
        return xp.exp(-t * (self.beta_0 + 0.5 * (self.beta_1 - self.beta_0) * t))


@dataclass(frozen=True)
class LinearTime:
    """The inverse of `LinearAlpha`, in the form that does not cancel as ᾱ → 1."""

    beta_0: float
    beta_1: float

    def __call__(self, alpha: Any) -> Any:
        """The time at which ᾱ equals ``alpha``, shape of ``alpha``."""
        alpha, xp = _namespace(alpha)
        integral = -xp.log(alpha)
        return 2.0 * integral / (self.beta_0 + xp.sqrt(self.beta_0**2 + 2.0 * (self.beta_1 - self.beta_0) * integral))


@dataclass(frozen=True)
class CosineAlpha:
    """ᾱ(t) = cos²(π/2 · (t + 0.008)/1.008): not normalised, so ᾱ(0) < 1; elementwise as `LinearAlpha`."""

    def __call__(self, t: Any) -> Any:
        """ᾱ at ``t``, shape of ``t``."""
        t, xp = _namespace(t)
        return xp.cos((t + _SHIFT) * (0.5 * math.pi / (1.0 + _SHIFT))) ** 2


@dataclass(frozen=True)
class CosineTime:
    """The inverse of `CosineAlpha`."""

    def __call__(self, alpha: Any) -> Any:
        """The time at which ᾱ equals ``alpha``, shape of ``alpha``."""
        alpha, xp = _namespace(alpha)
        return xp.acos(xp.sqrt(alpha)) * (2.0 * (1.0 + _SHIFT) / math.pi) - _SHIFT


def linear_betas(beta_0: Any, beta_1: Any) -> tuple[float, float]:
    """Both as floats; ValueError unless β(t) is finite, nowhere negative on [0, 1] and not zero throughout."""
    values = {"beta_0": scalar("beta_0", beta_0), "beta_1": scalar("beta_1", beta_1)}
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a finite number >= 0")
    if not any(values.values()):
        raise ValueError("beta_0=0 and beta_1=0 leave ᾱ at 1; one of them must be positive")
    return values["beta_0"], values["beta_1"]


# -- processes ------------------------------------------------------------------------------------
class _Cosine(_VariancePreserving):
    """α = cos θ, σ = sin θ with θ = π/2 · (t + 0.008)/1.008, t ∈ [0, 1]: our `VPCosine` without its division."""

    t_min, t_max = 0.0, 1.0
    _noise_time = 1.0
    _turn = 0.5 * math.pi / (1.0 + _SHIFT)  # dθ/dt

    def __repr__(self) -> str:
        return "the cosine of get_cos_alpha_fns()"

    def _alpha(self, t: Array) -> Array:
        return np.sin((self._noise_time - t) * self._turn)  # cos θ, accurate where it vanishes

    def _sigma(self, t: Array) -> Array:
        return np.sin((1.0 - self._noise_time + t + _SHIFT) * self._turn)

    def _rho(self, t: Array) -> Array:
        return self._sigma(t) / self._alpha(t)

    def _rate(self, t: Array) -> Array:
        return self._turn / (self._sigma(t) * self._alpha(t))

    def _time_from_rho(self, rho: Array) -> Array:
        return np.arctan(rho) / self._turn - _SHIFT


class PiecewiseLinearAlpha(_VariancePreserving):
    """ᾱ given at the integer times 0 … n−1, linear in t between them, clipped to [1e-7, 1 − 1e-7].

    Our `VPDiscrete` interpolates log ρ instead; the two agree at the integers.

    Args:
        alphas: (n,) ᾱ, n ≥ 2, strictly decreasing, inside [0, 1].

    Attributes:
        unclipped: first and last time at which ᾱ lies inside [1e-7, 1 − 1e-7]; before and after, the level stays.
    """

    def __init__(self, alphas: Any) -> None:
        a = real("discrete_alpha", alphas)
        if a.ndim != 1 or a.size < 2:
            raise ValueError(f"discrete_alpha has shape {a.shape}; allowed: one dimension, at least 2 values")
        if not np.all((a >= 0) & (a <= 1)):
            raise ValueError("discrete_alpha must lie inside [0, 1]; it has " + first(a, ~((a >= 0) & (a <= 1))))
        if not np.all(np.diff(a) < 0):
            rises = np.append(False, np.diff(a) >= 0)
            raise ValueError("discrete_alpha must decrease strictly; it does not at " + first(a, rises))
        self._a, self._rest = a, 1.0 - a  # ᾱ and 1 − ᾱ, each interpolated: none is got from the other by subtraction
        self._times = np.arange(float(a.size))
        self.t_min, self.t_max = 0.0, float(a.size - 1)
        self.unclipped = (
            float(np.interp(_LEAST, self._rest, self._times)),
            float(np.interp(-_LEAST, -a, self._times)),
        )
        kinks = np.unique([*self._times, *self.unclipped])
        self._kinks = kinks[(kinks > 0) & (kinks < self.t_max)]

    def __repr__(self) -> str:
        return f"DiscreteVPSDE({self._a.size} levels)"

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative jumps: the integers, and where clipping sets in."""
        return self._kinks

    def _squares(self, t: Array) -> tuple[Array, Array]:
        """(ᾱ, 1 − ᾱ), clipped."""
        parts = (np.interp(t, self._times, part) for part in (self._a, self._rest))
        a, rest = (np.clip(part, _LEAST, 1.0 - _LEAST) for part in parts)
        return a, rest

    def _alpha(self, t: Array) -> Array:
        return np.sqrt(self._squares(t)[0])

    def _sigma(self, t: Array) -> Array:
        return np.sqrt(self._squares(t)[1])

    def _rho(self, t: Array) -> Array:
        a, rest = self._squares(t)
        return np.sqrt(rest / a)

    def _rate(self, t: Array) -> Array:
        a, rest = self._squares(t)
        slope = np.diff(self._a)[np.clip(np.floor(t).astype(int), 0, self._a.size - 2)]
        clipped = (a <= _LEAST) | (rest <= _LEAST)
        return np.where(clipped, 0.0, -0.5 * slope / (a * rest))

    def _time_from_rho(self, rho: Array) -> Array:
        rest = rho * rho / (1.0 + rho * rho)
        near_noise = np.interp(-1.0 / (1.0 + rho * rho), -self._a, self._times)
        return np.where(rest < 0.5, np.interp(rest, self._rest, self._times), near_noise)


class FromFunctions(_VariancePreserving):
    """ᾱ from ``t2alpha_fn``, its inverse from ``alpha2t_fn``, the rate by numerical differentiation.

    log ρ is interpolated by polynomials of degree 15 on panels that are halved until the last coefficients vanish to
    rounding, and the interpolants are differentiated.  The functions are called in float64; what they cannot carry
    (1 − ᾱ near t = 0 in float32) bounds the accuracy.  Where halving does not help, a kink is assumed.
    """

    def __init__(self, t2alpha_fn: AlphaFunction, alpha2t_fn: AlphaFunction, t_min: float, t_max: float) -> None:
        self._t2alpha, self._alpha2t = t2alpha_fn, alpha2t_fn
        self.t_min, self.t_max = t_min, t_max
        self._edges, coefficients, self._kinks = _fit(self._log_rho, t_min, t_max)
        self._slopes = chebyshev.chebder(coefficients.T) * (2.0 / np.diff(self._edges))
        times = np.linspace(t_min, t_max, 33)
        back = np.clip(self._time_from_rho(self._rho(times)), t_min, t_max)
        slack = _INVERSE_SLACK + 50.0 * self._log_rho(times)[1]
        wrong = ~(np.abs(np.log(self._rho(back) / self._rho(times))) < slack)
        if wrong.any():
            k = int(np.argmax(wrong))
            raise ValueError(
                f"alpha2t_fn must undo t2alpha_fn; from t={times[k]:.6g} the two lead to t={float(back[k]):.6g}"
            )

    def __repr__(self) -> str:
        return f"VPSDE of t2alpha_fn on [{self.t_min:g}, {self.t_max:g}]"

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative seems to jump."""
        return self._kinks

    def _a(self, t: Array) -> Array:
        return evaluate("t2alpha_fn", self._t2alpha, t)[0]

    def _log_rho(self, t: Array) -> tuple[Array, Array]:
        """log ρ and the rounding error that it carries, both of the shape of ``t``."""
        a, rounding = evaluate("t2alpha_fn", self._t2alpha, t)
        bad = ~((a > 0) & (a < 1))
        if bad.any():
            raise ValueError(
                f"t2alpha_fn must lie inside (0, 1) on [{self.t_min:g}, {self.t_max:g}]; "
                f"it is {float(a[bad][0])!r} at t={float(t[bad][0])!r}"
            )
        if np.any(np.diff(a[np.argsort(t)]) > rounding):
            raise ValueError(f"t2alpha_fn must decrease on [{self.t_min:g}, {self.t_max:g}]; it does not")
        return 0.5 * np.log((1.0 - a) / a), rounding / (1.0 - a)

    def _alpha(self, t: Array) -> Array:
        return np.sqrt(self._a(t))

    def _sigma(self, t: Array) -> Array:
        return np.sqrt(1.0 - self._a(t))

    def _rho(self, t: Array) -> Array:
        a = self._a(t)
        return np.sqrt((1.0 - a) / a)

    def _rate(self, t: Array) -> Array:
        panel = np.clip(np.searchsorted(self._edges, t, side="right") - 1, 0, self._edges.size - 2)
        low, high = self._edges[panel], self._edges[panel + 1]
        return chebyshev.chebval((2.0 * t - low - high) / (high - low), self._slopes[:, panel], tensor=False)

    def _time_from_rho(self, rho: Array) -> Array:
        return evaluate("alpha2t_fn", self._alpha2t, 1.0 / (1.0 + rho * rho))[0]


def process_of(t2alpha_fn: AlphaFunction, alpha2t_fn: AlphaFunction, t_min: float, t_max: float) -> _VariancePreserving:
    """The process on [t_min, t_max]: an exact one where the pair of functions is known, else `FromFunctions`."""
    if isinstance(t2alpha_fn, LinearAlpha) and isinstance(alpha2t_fn, LinearTime):
        betas = (t2alpha_fn.beta_0, t2alpha_fn.beta_1)
        if betas == (alpha2t_fn.beta_0, alpha2t_fn.beta_1) and 0 < betas[0] <= betas[1] and t_max <= 1:
            return VPLinear(*betas)
    if isinstance(t2alpha_fn, CosineAlpha) and isinstance(alpha2t_fn, CosineTime):
        return _Cosine()
    return FromFunctions(t2alpha_fn, alpha2t_fn, t_min, t_max)


# -- other people's functions ---------------------------------------------------------------------
def _double_precision() -> AbstractContextManager[Any]:
    """JAX computes in float64 inside, where JAX is in use."""
    for name in ("jax", "jax.experimental"):  # the newer home of the switch first
        enable = getattr(sys.modules.get(name), "enable_x64", None)
        if enable is not None:
            return enable(True)
    return nullcontext()


def _ways(fn: AlphaFunction) -> list[Callable[[Array], Any]]:
    """How ``fn`` may take a float64 array: as it is, as a torch tensor, number by number."""
    torch = sys.modules.get("torch")
    tensor = [] if torch is None else [lambda values: fn(torch.from_numpy(values.copy()))]
    return [fn, *tensor, lambda values: [scalar("a value", fn(float(v))) for v in values]]


def evaluate(name: str, fn: AlphaFunction, values: Array) -> tuple[Array, float]:
    """``fn`` of NumPy, torch, JAX or plain Python at ``values``: float64, the shape of ``values``; its unit roundoff.

    Raises:
        ValueError: every way of calling it fails; the first failure is the cause.
    """
    flat, failure = np.ravel(values), None
    size = 1 << (flat.size - 1).bit_length()  # a power of two: JAX compiles few shapes
    padded = np.pad(flat, (0, size - flat.size), mode="edge") if "jax" in sys.modules and flat.size else flat
    with _double_precision():
        for way in _ways(fn):
            try:
                result = way(padded)
                array = real(name, result)
                if array.shape != padded.shape:
                    raise ValueError(f"{name} returned shape {array.shape} for an input of shape {padded.shape}")
            except Exception as error:
                failure = failure or error
            else:
                single = not isinstance(result, list) and "64" not in str(getattr(result, "dtype", "64"))
                return array[: flat.size].reshape(np.shape(values)), 6e-8 if single else 1.2e-16
    raise ValueError(f"{name}={fn!r} fails on float64 arrays, on tensors and on floats: {failure}") from failure


_DEGREE = 15
_HALVINGS, _MOST_PANELS = 30, 4096


def _fit(fn: Callable[[Array], tuple[Array, Array]], low: float, high: float) -> tuple[Array, Array, Array]:
    """Piecewise Chebyshev interpolants: edges (P + 1,), coefficients (P, 16), middles of panels that do not converge.

    ``fn`` returns values and their rounding errors.
    """
    nodes = np.cos(math.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, _DEGREE)).T
    todo, done = np.array([[low, high]]), []
    for level in range(_HALVINGS + 1):
        middle, half = todo.mean(axis=1), 0.5 * np.diff(todo, axis=1)[:, 0]
        values, rounding = fn((middle[:, None] + half[:, None] * nodes).ravel())
        coefficients = values.reshape(-1, nodes.size) @ to_coefficients
        allowed = 1e-14 * np.abs(coefficients[:, 0]) + 2.0 * rounding.reshape(-1, nodes.size).max(axis=1)
        good = np.abs(coefficients[:, -3:]).max(axis=1) <= allowed
        last = level == _HALVINGS or 2 * np.sum(~good) > _MOST_PANELS
        keep = np.ones_like(good) if last else good
        done += list(zip(todo[keep, 0], coefficients[keep], strict=True))
        if keep.all():
            break
        rough, centre = todo[~good], middle[~good]
        todo = np.concatenate([np.stack([rough[:, 0], centre], 1), np.stack([centre, rough[:, 1]], 1)])
    done.sort(key=lambda panel: panel[0])
    edges = np.array([*(start for start, _ in done), high])
    return edges, np.array([c for _, c in done]), np.sort(middle[~good]) if level == _HALVINGS else np.empty(0)
