r"""EVODiff: a multistep method on x₀ whose weights are inner products of model outputs, as released.

With :math:`h = 1/ρ_t - 1/ρ_s`, r the ratio of the last step to this one in λ, model outputs m₁, m₀ (older, latest) and
:math:`m_t` at the probe, inner products per sample and channel, clip to [−2, 2],

.. math::
    x_e &= \frac{σ_t}{σ_s} x + σ_t h\, m_0 , \qquad
    w = \tfrac12 \Bigl( 1 - \bigl(\tfrac{t + t_0}{T + t_0}\bigr)^2 \Bigr) , \\
    b_1 &= (1 - w) \sqrt{\frac{σ_t/σ_s}{σ_s/σ_r}} + w\, \mathrm{clip} \frac{⟨m_0, m_1⟩}{⟨m_1, m_1⟩} , \qquad
    D_1 = m_0 - b_1 m_1 , \qquad x_p = x_e + \frac{σ_t h}{2 r_i} D_1 , \\
    D_2 &= m_t - b_2 m_0 , \qquad B = -\frac{η}{r} D_1 + (1 - η)\, r\, D_2 , \qquad
    x_t = x_e + \frac{σ_t h}{2 ζ} B .

σ_r is the level before s, b₂ is b₁ with (m_t, m₀) for (m₀, m₁), and with S the logistic function

.. math::
    r_i = \mathrm{clip}(r\, S(|b_1|/4), r/4, 3r/2) , \qquad η = \tfrac12 S(|η^*|) , \qquad
    η^* = \tfrac12 \mathrm{proj}(B_+ + B_-, B_+ - B_-) , \\
    ζ = S(|ζ^*| - \tfrac12) , \qquad ζ^* = \mathrm{proj}\Bigl(x_p - x_e - \frac{σ_t h}{2 r_i} B,\, D_1\Bigr)/(hσ_t) ,

B₋ = D₁/(rh), B₊ = rD₂/h, proj(a, b) = clip ⟨a, b⟩/⟨b, b⟩.  Above 20 steps ζ = S(−c(|ζ*| − ½)),
c = S(proj(m₀, (m₀ − m₁)/h)(2 − (σ_t/σ_s)²)).  The first step is DPM-Solver++(1), and so is the last with
``lower_order_final``, but multiplied by 1 − √(σ_tσ_s), plus ½σ_t h(m₀ − r_d m₁).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.steppers.history import History, Traced
from deis_analysis.steppers.protocol import StepperRow, register_stepper
from deis_analysis.validate import checked

_CLIP = 2.0
_MANY_STEPS = 20  # above this many, the released rule takes another ζ


@checked
@dataclass(frozen=True, eq=False)
class EVODiff:
    """EVODiff as released, on any process and grid: one model call per step and, but for the final step, one more.

    What it converges to is measured, not claimed.  RMS error on a 64-D product mixture, `EDM`, σ from 20 to 0.05,
    uniform log ρ (``tests/steppers/test_steppers.py``):

    =========================  ======  ======  ======  ======  ======
    steps                      40      80      160     320     1280
    =========================  ======  ======  ======  ======  ======
    as released                4.2e-2  4.6e-2  4.9e-2  5.1e-2  5.3e-2
    lower_order_final=False    9.2e-3  5.1e-3  2.7e-3  1.4e-3  3.5e-4
    adams(1, "x0", "lam")      1.4e-3  3.7e-4  9.4e-5  2.4e-5  1.5e-6
    =========================  ======  ======  ======  ======  ======

    The released last step multiplies by 1 − √(σ_tσ_s), so that the limit is (1 − σ_end) x and the error σ_end |x|;
    without it the slope rises from 0.85 to 0.99, first order.  Equal outputs give 0/0 in the projections, NaN in the
    released code; here a projection on the zero vector is 0, so that a constant x₀ passes exactly where b = 1.

    Args:
        ts: (N + 1,) descending times, N ≥ 2.
        lower_order_final: the released default, whose last step is not consistent: its error does not vanish.

    Raises:
        ValueError: a bad grid, fewer than 2 steps, σ = 0 or λ infinite on the grid.

    Source: Li et al. 2025 (arXiv 2509.26096), with the constants of the code released by the authors.
    """

    process: Process
    ts: Any
    lower_order_final: bool = True

    name = "evodiff"
    prediction = "x0"
    depth = 2

    def __post_init__(self) -> None:
        ts = check_grid(self.process, self.ts)
        if ts.size < 3:
            raise ValueError(f"ts has {ts.size - 1} step; allowed: at least 2, since EVODiff is a two-step method")
        bad = ~np.isfinite(self.process.lam(ts)) | ~np.isfinite(self.process.kappa("x0", ts))
        if bad.any():
            t = float(ts[np.argmax(bad)])
            raise ValueError(f"ts={t!r}: λ is infinite there on {self.process!r}; allowed: times with α, σ > 0")
        object.__setattr__(self, "ts", ts)

    @cached_property
    def _numbers(self) -> tuple[list[float], list[float], list[float]]:
        """σ, the steps in 1/ρ, and the ratio of each step in λ to the one after it."""
        sigma, h = self.process.sigma(self.ts), np.diff(self.process.kappa("x0", self.ts))
        steps = np.diff(self.process.lam(self.ts))
        return sigma.tolist(), h.tolist(), (steps[:-1] / steps[1:]).tolist()

    @property
    def t_start(self) -> float:
        """The time of x_T."""
        return float(self.ts[0])

    def done(self, x: Traced, history: History) -> bool:
        """Whether ``x`` is at the last time."""
        return history.accepted == self.ts.size - 1

    def step(self, x: Traced, history: History) -> Traced:
        """First step, two-step rule, or the released final step."""
        i, last = history.accepted, self.ts.size - 2
        sigma, h, _ = self._numbers
        t = float(self.ts[i + 1])
        if i <= 1:  # later steps use the outputs at the probes
            history.evaluate(x)
        euler = [(sigma[i + 1] / sigma[i], x), (sigma[i + 1] * h[i], history.outputs[-1])]
        if i == 0:
            return history.combine(t, euler)
        if i == last and self.lower_order_final:
            return self._final(t, i, euler, history)
        return self._two_step(t, i, euler, history)

    def _final(self, t: float, i: int, euler: list[tuple[Any, Traced]], history: History) -> Traced:
        sigma, h, _ = self._numbers
        ratio, half = sigma[i + 1] / sigma[i], 0.5 * sigma[i + 1] * h[i]
        r_d = 1.0 - 0.5 * math.sqrt(ratio if ratio < 0.5 else ratio - 0.5)
        older, latest = history.outputs
        shrink = 1.0 - math.sqrt(sigma[i + 1] * sigma[i])
        return history.combine(t, [(shrink * c, a) for c, a in euler] + [(half, latest), (-half * r_d, older)])

    def _two_step(self, t: float, i: int, euler: list[tuple[Any, Traced]], history: History) -> Traced:
        sigma, h, r = self._numbers[0], self._numbers[1][i], self._numbers[2][i - 1]
        w = 0.5 * (1.0 - float((t + self.ts[-1]) / (self.ts[0] + self.ts[-1])) ** 2)
        base = (1.0 - w) * math.sqrt(sigma[i + 1] / sigma[i] * sigma[i - 1] / sigma[i])
        half = 0.5 * sigma[i + 1] * h
        m_1, m_0 = history.outputs
        b_1 = base + w * _projection(m_0.value, m_1.value)
        r_i = _clip(_logistic(0.25 * abs(b_1)) * r, 0.25 * r, 1.5 * r)
        probe = history.combine(t, [*euler, (half / r_i, m_0), (-half / r_i * b_1, m_1)])
        m_t = history.evaluate(probe)
        b_2 = base + w * _projection(m_t.value, m_0.value)

        d_1, d_2 = m_0.value - b_1 * m_1.value, m_t.value - b_2 * m_0.value
        before, after = d_1 / (r * h), d_2 * (r / h)
        eta = 0.5 * _logistic(abs(0.5 * _projection(after + before, after - before)))
        weight_1, weight_2 = -eta / r, (1.0 - eta) * r  # B = weight_1 D₁ + weight_2 D₂
        rest = half / r_i * (d_1 - (weight_1 * d_1 + weight_2 * d_2))
        excess = abs(_projection(rest, d_1) / (h * sigma[i + 1])) - 0.5
        if self.ts.size - 1 > _MANY_STEPS:
            slope = (m_0.value - m_1.value) / h
            excess = -excess * _logistic(_projection(m_0.value, slope) * (2.0 - (sigma[i + 1] / sigma[i]) ** 2))
        gain = half / _logistic(excess)
        return history.combine(
            t,
            [
                *euler,
                (gain * (weight_1 - weight_2 * b_2), m_0),
                (-gain * weight_1 * b_1, m_1),
                (gain * weight_2, m_t),
            ],
        )


def _projection(a: Any, b: Any) -> Any:
    """clip ⟨a, b⟩/⟨b, b⟩ per sample and channel, shape (n, c, 1, …), or (n, 1) for vectors; 0 where b is zero."""
    xp = array_namespace(a)
    axes = tuple(range(2 if a.ndim > 2 else 1, a.ndim))
    over, under = (
        (xp.sum(a * b, axis=axes, keepdims=True), xp.sum(b * b, axis=axes, keepdims=True))
        if axes
        else (
            a * b,
            b * b,
        )
    )
    empty = under == 0
    return xp.where(empty, 0.0 * over, _clip(over / xp.where(empty, under + 1.0, under), -_CLIP, _CLIP))


def _clip(a: Any, low: float, high: float) -> Any:
    xp = array_namespace(a)
    return xp.minimum(xp.maximum(a, xp.full_like(a, low)), xp.full_like(a, high))


def _logistic(a: Any) -> Any:
    return 1.0 / (1.0 + array_namespace(a).exp(-a))


def _build(process: Process, ts: Array, lower_order_final: bool) -> EVODiff:
    return EVODiff(process, ts, lower_order_final)


_SOURCE = "Li et al. 2025 (arXiv 2509.26096), with the constants of the authors' code"
for _name, _final, _text in (
    ("evodiff", True, "Two-step method on x0 with weights from inner products of outputs, and the released last step."),
    ("evodiff_full", False, "EVODiff with the two-step rule to the end, which the released default replaces."),
):
    register_stepper(StepperRow(_name, partial(_build, lower_order_final=_final), "x0", _SOURCE, _text, linear=True))
