r"""Forward processes: the scales :math:`α_t, σ_t` of :math:`x_t = α_t x_0 + σ_t ε`, and their clocks.

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
velocity of flow matching (on `RectifiedFlow`: :math:`v = ε - x_0`).  On `MeanReverting` it is still that derivative,
of x − μ: x₀ − μ stands for x₀.

Formulas keep full relative precision as t → 0: nothing is computed as 1 − α².
``tests/process/test_process.py`` compares every function with mpmath at 50 digits.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import numpy as np

from deis_analysis import backend
from deis_analysis.validate import Array as Array
from deis_analysis.validate import checked, choose, positive, real, scalar

PREDICTIONS = ("eps", "x0", "v", "score")
VARIABLES = ("t", "rho", "lam", "inv_rho")

_SLACK = 1e-12  # relative distance by which a time or level may leave its range by rounding


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
    _data_time: ClassVar[float | None] = None  # a time outside the range that is allowed too: that of the data, σ = 0
    _noise_time: ClassVar[float | None] = None  # the time at which α = 0, if there is one; see `_counted_from`

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

    def _rho_rate(self, t: Array) -> Array:
        return self._rho(t) * self._rate(t)

    def _inv_rho_rate(self, t: Array) -> Array:
        return -self._rate(t) / self._rho(t)

    def _diffusion_squared(self, t: Array) -> Array:
        return 2.0 * self._sigma(t) ** 2 * self._rate(t)

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        """(α′, σ′), the derivatives in the v-clock."""
        if self.variance_preserving:
            return -self._sigma(t), self._alpha(t)
        f = self._drift(t)
        return f * self._alpha(t), (f + self._rate(t)) * self._sigma(t)

    def _v_clock(self, t: Array) -> Array:
        return np.arctan(self._rho(t)) if self.variance_preserving else np.array(t)

    def _v_clock_rate(self, t: Array) -> Array:
        if not self.variance_preserving:
            return np.ones_like(t)
        rho = self._rho(t)
        return self._rate(t) * rho / (1.0 + rho * rho)

    def _counted_from(self, origin: Array) -> Process:
        """This process on clocks that read 0 at ``origin``, 0 or ``_noise_time`` per time: for scales and rates only.

        A time near 1 is rounded to 1e-16, hence an α that vanishes at 1 to 1e-16/(1 − t) of itself.  Counted from 1 the
        same time is a number near 0 and keeps its digits.
        """
        process = copy.copy(self)
        object.__setattr__(process, "_noise_time", self._noise_time - origin)  # on a frozen dataclass too
        return process

    # -- public functions of time -----------------------------------------------------------------
    def _check(self, t: Any, name: str = "t") -> Array:
        if isinstance(t, float) and self.t_min <= t <= self.t_max:
            return np.float64(t)  # type: ignore[return-value]  # a scalar serves as an array of no dimension
        values = real(name, t) if not isinstance(t, np.ndarray) or t.dtype != np.float64 else t
        slack = _SLACK * max(abs(self.t_min), abs(self.t_max))
        good = (values >= self.t_min - slack) & (values <= self.t_max + slack)
        if self._data_time is not None and np.any(values == self._data_time):
            return np.where(values == self._data_time, values, self._check_others(values, name))
        if not good.all():
            bad = float(values[~good].flat[0]) if values.ndim else float(values)
            raise ValueError(f"{name}={bad!r} is outside [{self.t_min:g}, {self.t_max:g}], the time range of {self!r}")
        return np.clip(values, self.t_min, self.t_max)

    def _check_others(self, values: Array, name: str) -> Array:
        others = np.where(values == self._data_time, self.t_max, values)
        return self._check(others, name)

    def _check_scalar(self, t: Any, name: str) -> float:
        return float(self._check(scalar(name, t), name))

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
        """f_t = d log α/dt, per unit of time (−∞ where α vanishes)."""
        with np.errstate(divide="ignore"):
            return self._drift(self._check(t))

    def diffusion_squared(self, t: Any) -> Array:
        """g²_t = 2σ²L = dσ²/dt − 2fσ², per unit of time."""
        return self._diffusion_squared(self._check(t))

    def psi(self, s: Any, t: Any) -> Array:
        """Transition of the linear part from t to s: Ψ(s, t) = α_s/α_t."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._alpha(self._check(s, "s")) / self._alpha(self._check(t))

    def time_from_rho(self, rho: Any) -> Array:
        """The time at which σ/α equals ``rho``; ValueError outside [ρ(t_min), ρ(t_max)]."""
        values = real("rho", rho)
        return self._time_at(values, "rho", values)

    def _time_at(self, values: Array, name: str, given: Array) -> Array:
        """`time_from_rho`, with what was ``given`` under a ``name`` for the error."""
        with np.errstate(divide="ignore"):
            low, high = (float(self._rho(np.asarray(t))) for t in (self.t_min, self.t_max))
        good = (values >= low * (1 - _SLACK)) & (values <= high * (1 + _SLACK)) & np.isfinite(values)
        if not good.all():
            bad = float(given[~good].flat[0]) if given.ndim else float(given)
            ends = f"ρ in [{low:.6g}, {high:.6g}]"
            raise ValueError(f"{name}={bad!r} is outside {ends}, the levels that {self!r} reaches")
        return np.clip(self._time_from_rho(np.clip(values, low, high)), self.t_min, self.t_max)

    def time_from_lam(self, lam: Any) -> Array:
        """The time at which log(α/σ) equals ``lam``."""
        values = real("lam", lam)
        with np.errstate(over="ignore"):
            return self._time_at(np.exp(-values), "lam", values)

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
                    return self._v_clock(t)
                case _:
                    return self._kappa_score(t)

    def kappa_rate(self, prediction: str, t: Any) -> Array:
        """dκ/dt."""
        return self._kappa_rate(choose("prediction", prediction, PREDICTIONS), self._check(t))

    def _kappa_rate(self, prediction: str, t: Array) -> Array:
        match prediction:
            case "eps":
                return self._rho_rate(t)
            case "x0":
                return self._inv_rho_rate(t)
            case "v":
                return self._v_clock_rate(t)
            case _:
                return -self._sigma(t) * self._rho(t) * self._rate(t)

    def variable_rate(self, variable: str, t: Any) -> Array:
        """dφ/dt of the interpolation variable φ ∈ {t, rho, lam, inv_rho}."""
        return self._variable_rate(choose("variable", variable, VARIABLES), self._check(t))

    def _variable_rate(self, variable: str, t: Array) -> Array:
        match variable:
            case "t":
                return np.ones_like(t)
            case "rho":
                return self._rho_rate(t)
            case "lam":
                return -self._rate(t)
            case _:
                return self._inv_rho_rate(t)

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
        choose("source", source, PREDICTIONS), choose("target", target, PREDICTIONS)
        t = self._check(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        a, b = self.prediction_parts(source, t)
        a_new, b_new = self.prediction_parts(target, t)
        det = alpha * b - sigma * a
        if np.any(det == 0):
            bad = float(np.asarray(t)[det == 0].flat[0]) if np.ndim(t) else float(t)
            raise ValueError(f"t={bad!r}: {target!r} cannot be told from x and {source!r} there")
        return (a_new * b - b_new * a) / det, (alpha * b_new - sigma * a_new) / det

    def translate(self, x: Any, p: Any, source: str, target: str, t: Any) -> Any:
        """What predicts ``target``, from ``x`` and a prediction ``p`` of ``source`` at time t, or (n,) times of slices.

        Arrays of any library and one shape; on `MeanReverting` x and x₀ have the mean on.

        Raises:
            ValueError: unknown predictions, or a time at which the pair (x, p) does not tell the target.
        """
        x, p = backend.floating("x", x), backend.floating("p", p)
        choose("source", source, PREDICTIONS), choose("target", target, PREDICTIONS)
        if p.shape != x.shape or backend.is_torch(p) != backend.is_torch(x):
            raise ValueError(f"p is {type(p).__name__} of shape {tuple(p.shape)}; allowed: kind and shape of x")
        if real("t", t).shape not in ((), tuple(x.shape[:1])):
            raise ValueError(f"t has shape {np.shape(t)}; allowed: one time, or one for each slice of x")
        return self._translate(x, p, source, target, t)

    def _translate(self, x: Any, p: Any, source: str, target: str, t: Any) -> Any:
        """`translate` of a model's arguments and output, which are looked at elsewhere."""
        if source == target:
            return p
        centre = backend.Centre(self.mean, x, source)
        from_x, from_p = (backend.along(c, x) if np.ndim(c) else float(c) for c in self.convert(source, target, t))
        found = from_p * centre.predicted(p)
        if np.ndim(from_x) or from_x:
            found = found + from_x * centre.off(x)
        return centre.on(found) if target == "x0" else found


def require_process(process: Any) -> Process:
    """``process`` itself; ValueError unless it is a `Process`."""
    if not isinstance(process, Process):
        raise ValueError(f"process={process!r} must be a Process, such as VPLinear()")
    return process


@checked
class MeanReverting(Process):
    """dx = f (x − μ) dt + c g dw: the process reverts to ``mean``, and (x − μ)/c obeys ``process``.

    x_t = α x₀ + (1 − α) μ + c σ ε, so every solver applies to x − μ; tables carry μ as a shift.  On a
    variance-preserving process c is the stationary standard deviation of x − μ.
    [MRS: Li et al. 2025, arXiv 2502.07856; IR-SDE: Luo et al. 2023, arXiv 2301.11699]

    Args:
        process: the process that (x − μ)/c obeys.
        mean: μ, an array (or tensor) that broadcasts against one sample, or a number.
        noise_scale: c > 0.
    """

    def __init__(self, process: Process, mean: Any, noise_scale: float = 1.0) -> None:
        if require_process(process).mean is not None:
            raise ValueError("process already reverts to a mean; add the two means instead of nesting MeanReverting")
        if not bool(np.all(np.isfinite(real("mean", mean)))):
            raise ValueError("mean must be finite")
        positive(noise_scale=noise_scale)
        self.process, self.mean, self.noise_scale = process, mean, float(noise_scale)
        self.t_min, self.t_max = process.t_min, process.t_max
        self.variance_preserving = process.variance_preserving  # type: ignore[misc]
        self._data_time, self._noise_time = process._data_time, process._noise_time  # type: ignore[misc]

    # what c does not change
    def _alpha(self, t: Array) -> Array:
        return self.process._alpha(t)

    def _rate(self, t: Array) -> Array:
        return self.process._rate(t)

    def _drift(self, t: Array) -> Array:
        return self.process._drift(t)

    def _v_clock(self, t: Array) -> Array:
        return self.process._v_clock(t)

    def _v_clock_rate(self, t: Array) -> Array:
        return self.process._v_clock_rate(t)

    # and what it does
    def _counted_from(self, origin: Array) -> Process:
        return MeanReverting(self.process._counted_from(origin), 0.0, self.noise_scale)

    def _sigma(self, t: Array) -> Array:
        return self.noise_scale * self.process._sigma(t)

    def _rho(self, t: Array) -> Array:
        return self.noise_scale * self.process._rho(t)

    def _lam(self, t: Array) -> Array:
        return self.process._lam(t) - math.log(self.noise_scale)

    def _time_from_rho(self, rho: Array) -> Array:
        return self.process._time_from_rho(rho / self.noise_scale)

    def _kappa_score(self, t: Array) -> Array:
        return self.noise_scale**2 * self.process._kappa_score(t)

    def _rho_rate(self, t: Array) -> Array:
        return self.noise_scale * self.process._rho_rate(t)

    def _inv_rho_rate(self, t: Array) -> Array:
        return self.process._inv_rho_rate(t) / self.noise_scale

    def _diffusion_squared(self, t: Array) -> Array:
        return self.noise_scale**2 * self.process._diffusion_squared(t)

    def _v_rates(self, t: Array) -> tuple[Array, Array]:
        alpha_rate, sigma_rate = self.process._v_rates(t)
        return alpha_rate, self.noise_scale * sigma_rate

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeanReverting):
            return NotImplemented
        same = self.process == other.process and self.noise_scale == other.noise_scale
        return same and np.array_equal(real("mean", self.mean), real("mean", other.mean))

    def __hash__(self) -> int:
        return hash((self.process, self.noise_scale, real("mean", self.mean).tobytes()))

    def __repr__(self) -> str:
        scale = "" if self.noise_scale == 1 else f", noise_scale={self.noise_scale:g}"
        return f"MeanReverting({self.process!r}, mean of shape {np.shape(self.mean)}{scale})"

    @property
    def breakpoints(self) -> Array:
        """Times at which a derivative jumps."""
        return self.process.breakpoints

    @property
    def sampling_range(self) -> tuple[float, float]:
        """Default (t_start, t_end) of a grid."""
        return self.process.sampling_range
