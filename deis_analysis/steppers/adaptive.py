r"""DPM-Solver with adaptive steps: two embedded solutions per step, their difference as the error estimate.

Both solutions are exponential Runge–Kutta steps in λ with shared stages.  With :math:`h = λ_t - λ_s`, q = 1 and
(γ, β) = (α, σ) for ε, q = −1 and (γ, β) = (σ, α) for x₀ (DPM-Solver++: α and σ change places and h its sign),
:math:`E_r = e^{qrh} - 1` and stages at :math:`λ_i = λ_s + r_i h`,

.. math::
    u_1 &= \frac{γ_1}{γ_s} x - β_1 E_{r_1} p_s , \qquad
    u_2 = \frac{γ_2}{γ_s} x - β_2 E_{r_2} p_s
          - β_2 \frac{r_2}{r_1} \Bigl( \frac{E_{r_2}}{q r_2 h} - 1 \Bigr) (p_1 - p_s) , \\
    x^{(1)} &= \frac{γ_t}{γ_s} x - β_t E_1 p_s , \qquad
    x^{(2)} = x^{(1)} - \frac{β_t E_1}{2 r_1} (p_1 - p_s) , \qquad
    x^{(3)} = x^{(1)} - \frac{β_t}{r_2} \Bigl( \frac{E_1}{q h} - 1 \Bigr) (p_2 - p_s) .
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.solvers.weights import phi
from deis_analysis.steppers.history import History, Traced
from deis_analysis.steppers.protocol import StepperRow, register_stepper
from deis_analysis.validate import checked, choose, positive, positive_int


@checked
@dataclass(frozen=True)
class AdaptiveDPM:
    r"""Adaptive DPM-Solver-12 or -23: step size chosen from the difference of an embedded pair.

    Order 2: DPM-Solver-1 inside DPM-Solver-2 (r₁ = ½).  Order 3: DPM-Solver-2 (r₁ = ⅓) inside DPM-Solver-3
    (r₁ = ⅓, r₂ = ⅔).  With the lower solution, the higher, and the lower one of the last accepted step,

    .. math:: δ = \max(\text{atol}, \text{rtol} \max(|x_{low}|, |x_{prev}|)) , \qquad
              E = \max_{\text{batch}} \mathrm{RMS}\Bigl(\frac{x_{high} - x_{low}}{δ}\Bigr) ,

    a step is accepted if E ≤ 1, continuing from x_high, and in any case
    :math:`h \leftarrow \min(θ h E^{-1/\text{order}}, λ_{end} - λ)`.

    The model is called ``order`` times per accepted step and ``order`` − 1 times per rejected one, as its output at
    the start of the step is kept (the released code calls it again: ``order`` times in both cases).  The step
    never goes past ``t_end``, which is reached exactly.

    Args:
        t_start, t_end: process times, t_end < t_start, λ finite at both.
        order: 2 or 3. prediction: ``"eps"``, or ``"x0"`` for DPM-Solver++.
        atol, rtol: tolerances in the units of x and relative; 0.0078 = 1/128 is half a grey level of images in [−1, 1].
        theta: safety factor. h_init: first step in λ. max_steps: attempts allowed, rejected ones included.

    Raises:
        ValueError: arguments outside these ranges; in a run, steps that underflow or exceed ``max_steps``, and
            error estimates that are not finite, each with the place reached.

    Source: Lu et al. 2022 (arXiv 2206.00927), app. C with alg. 1-2; Lu et al. 2022 (arXiv 2211.01095) for x₀.
    """

    process: Process
    t_start: float
    t_end: float
    order: int = 3
    prediction: str = "eps"
    atol: float = 0.0078
    rtol: float = 0.05
    theta: float = 0.9
    h_init: float = 0.05
    max_steps: int = 10_000

    depth = 1

    def __post_init__(self) -> None:
        start, end = (require_process(self.process)._check_scalar(getattr(self, k), k) for k in ("t_start", "t_end"))
        if not end < start:
            raise ValueError(f"t_end={end!r} must be below t_start={start!r}: sampling runs from noise to data")
        for name, t in (("t_start", start), ("t_end", end)):
            if not math.isfinite(float(self.process.lam(t))):
                raise ValueError(f"{name}={t!r}: λ is infinite there on {self.process!r}, and steps are in λ")
        if positive_int("order", self.order) not in (2, 3):
            raise ValueError(f"order={self.order} must be 2 (pair 12) or 3 (pair 23)")
        choose("prediction", self.prediction, ("eps", "x0"))
        positive(atol=self.atol, rtol=self.rtol, theta=self.theta, h_init=self.h_init)
        if self.theta > 1:
            raise ValueError(f"theta={self.theta!r} must be at most 1")
        positive_int("max_steps", self.max_steps)
        object.__setattr__(self, "t_start", start)
        object.__setattr__(self, "t_end", end)

    @property
    def name(self) -> str:
        """How to call it."""
        return f"dpm{'pp' if self.prediction == 'x0' else ''}_adaptive_{self.order - 1}{self.order}"

    def done(self, x: Traced, history: History) -> bool:
        """Whether ``x`` is at ``t_end``."""
        return x.time == self.t_end

    def step(self, x: Traced, history: History) -> Traced:
        """The next accepted state: as many attempts as it takes."""
        end = float(self.process.lam(self.t_end))
        lam = history.carry.get("lam", float(self.process.lam(x.time)))
        h = history.carry.get("h", self.h_init)
        previous = history.carry.get("previous", x.value)
        start = history.evaluate(x)
        while True:
            last = h >= end - lam
            h = min(h, end - lam)
            t = self.t_end if last else max(self.t_end, float(self.process.time_from_lam(lam + h)))
            self._check_place(x.time, t, h, history)
            low, high = self._pair(x, start, t, h, history)
            error = self._error(low.value, high.value, previous)
            if math.isnan(error):
                raise ValueError(f"{self.name} at t={x.time!r}, λ={lam:.6g}: the error estimate of the step is NaN")
            stretch = self.theta * error ** (-1 / self.order) if error > 0 else math.inf
            if error <= 1:
                history.carry.update(lam=end if last else lam + h, h=h * stretch, previous=low.value)
                return high
            history.rejected += 1
            h *= stretch

    def _check_place(self, s: float, t: float, h: float, history: History) -> None:
        place = (
            f"{self.name} at t={s!r} after {history.accepted} accepted and {history.rejected} rejected steps, with "
            f"atol={self.atol!r}, rtol={self.rtol!r}"
        )
        if not (t < s and h > 0):
            raise ValueError(f"{place}: the step {h:.3g} in λ is too small for float64; allowed: larger tolerances")
        if history.accepted + history.rejected >= self.max_steps:
            raise ValueError(
                f"{place}: max_steps={self.max_steps!r} attempts are used up; allowed: larger tolerances or max_steps"
            )

    def _error(self, low: Any, high: Any, previous: Any) -> float:
        """Largest RMS of the batch, of (high − low)/δ; its square is not formed, since tiny tolerances overflow it."""
        xp = array_namespace(high)
        scale = self.rtol * xp.maximum(xp.abs(low), xp.abs(previous))
        with np.errstate(over="ignore"):
            ratio = xp.abs(high - low) / xp.maximum(scale, xp.full_like(scale, self.atol))
        top = float(xp.max(ratio))
        if top == 0.0 or not math.isfinite(top):
            return top
        mean_square = xp.mean(xp.reshape((ratio / top) ** 2, (ratio.shape[0], -1)), axis=1)
        return top * math.sqrt(float(xp.max(mean_square)))

    def _pair(self, x: Traced, start: Traced, t: float, h: float, history: History) -> tuple[Traced, Traced]:
        """(low, high) at time ``t`` by the formulas above."""
        q = 1.0 if self.prediction == "eps" else -1.0
        partner = "x0" if self.prediction == "eps" else "eps"
        gamma_s, lam = self.process.gamma(self.prediction, x.time), self.process.lam(x.time)

        def state(r: float, *more: tuple[float, Traced]) -> Traced:
            """x^(1) at the share r of the step, and what is added to it, in units of −β."""
            time = t if r == 1.0 else float(self.process.time_from_lam(lam + r * h))
            gamma = self.process.gamma(self.prediction, time) / gamma_s
            beta = -float(self.process.gamma(partner, time))
            terms = [(gamma, x), (beta * math.expm1(q * r * h), start)]
            for c, output in more:
                terms += [(beta * c, output), (-beta * c, start)]
            return history.combine(time, terms)

        def excess(r: float) -> float:
            """E_r/(q r h) − 1, which cancels where h is small."""
            z = q * r * h
            return z * float(phi(2, z))

        r_1 = 1 / 2 if self.order == 2 else 1 / 3
        first = history.evaluate(state(r_1))
        second_order = (math.expm1(q * h) / (2 * r_1), first)
        if self.order == 2:
            return state(1.0), state(1.0, second_order)
        r_2 = 2 / 3
        second = history.evaluate(state(r_2, (r_2 / r_1 * excess(r_2), first)))
        return state(1.0, second_order), state(1.0, (excess(1.0) / r_2, second))


def _build(process: Process, ts: Array, order: int, prediction: str) -> AdaptiveDPM:
    ts = check_grid(process, ts)
    return AdaptiveDPM(process, float(ts[0]), float(ts[-1]), order=order, prediction=prediction)


for _prediction, _paper in (
    ("eps", "Lu et al. 2022 (arXiv 2206.00927), app. C, alg. 1-2"),
    ("x0", "Lu et al. 2022 (arXiv 2211.01095), in the adaptive scheme of arXiv 2206.00927, app. C"),
):
    for _order in (2, 3):
        register_stepper(
            StepperRow(
                name=f"dpm{'pp' if _prediction == 'x0' else ''}_adaptive_{_order - 1}{_order}",
                build=partial(_build, order=_order, prediction=_prediction),
                prediction=_prediction,
                source=_paper,
                description=(
                    f"DPM-Solver{'++' if _prediction == 'x0' else ''}-{_order} whose step in λ is chosen from its "
                    f"difference to the embedded order {_order - 1}."
                ),
                linear=True,
            )
        )
