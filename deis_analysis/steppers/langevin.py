r"""Langevin correctors: predictor–corrector sampling as in score_sde, and Langevin dynamics at one level.

The corrector's step is measured on the batch.  With s the score at x, fresh noise z, norms averaged over the batch,

.. math:: e = 2 a \Bigl( r \frac{‖z‖}{‖s‖} \Bigr)^2 , \qquad x \leftarrow x + e\, s + \sqrt{2e}\, z ,

a = Ψ² = (α_t/α_s)² over the grid step that follows: DDPM's α_i = 1 − β_i on VP, and 1 where α = 1.  On N(0, vI) in
high dimension, ‖z‖/‖s‖ → v/√V at variance V, so e = 2ar²v²/V, and the law of a fixed step, V = v/(1 − e/(2v)),
has its fixed point at

.. math:: V = v (1 + a r^2) .

(Taking V = v inside e gives v/(1 − ar²): the same 2.6 % at r = 0.16, but 33 % for 25 % at r = 0.5; the test decides.)

Given the numbers e, a run is linear in x_T, outputs and noises: `Simulation.tableau` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.steppers.history import History, Traced
from deis_analysis.steppers.protocol import StepperRow, register_stepper
from deis_analysis.validate import checked, choose, positive, positive_int

PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama", "none")
StepSize = Callable[[Any, Any], float]  # (score, noise) -> e


def _score(stepper: Any, x: Traced, output: Traced) -> tuple[float, float]:
    """(c, d) with score = c·x + d·output."""
    c, d = stepper.process.convert(stepper.prediction, "score", x.time)
    return float(c), float(d)


def _langevin(stepper: Any, x: Traced, history: History, size: StepSize) -> Traced:
    """x + e s + √(2e) z at the time of ``x``."""
    output = history.evaluate(x)
    z = history.draw()
    c, d = _score(stepper, x, output)
    score = d * output.value if c == 0 else c * x.value + d * output.value
    e = size(score, z.value)
    if not math.isfinite(e):
        raise ValueError(f"{stepper.name} at t={x.time!r}: the Langevin step is {e}; the score is zero or not finite")
    return history.combine(x.time, [(1.0 + e * c, x), (e * d, output), (math.sqrt(2.0 * e), z)])


def _relative_size(score: Any, z: Any, snr: float, a: float) -> float:
    top, bottom = _mean_norm(z), _mean_norm(score)
    return 2.0 * a * (snr * top / bottom) ** 2 if bottom > 0 else math.inf


def _mean_norm(v: Any) -> float:
    """‖v‖ per sample, averaged over the batch."""
    xp = array_namespace(v)
    squares = xp.reshape(v * v, (v.shape[0], -1))
    return float(xp.mean(xp.sqrt(xp.sum(squares, axis=1))))


@checked
@dataclass(frozen=True)
class Langevin:
    r"""Unadjusted Langevin dynamics at one time: ``steps`` of x + e s + √(2e) z.

    With a fixed ``step_size`` e the law on N(0, vI) is exactly V = v/(1 − e/(2v)), which needs e < 2v; with ``snr`` see
    the module.

    Args:
        t: process time. steps: how many. snr: r, in the module's e with a = 1. step_size: a fixed e instead.
        prediction: what the model predicts.

    Source: Song et al. 2021 (arXiv 2011.13456), alg. 4-5; Roberts & Tweedie 1996 for the law of the fixed step.
    """

    process: Process
    t: float
    steps: int
    snr: float = 0.16
    step_size: float | None = None
    prediction: str = "score"

    name = "langevin"
    depth = 1

    def __post_init__(self) -> None:
        require_process(self.process)._check_scalar(self.t, "t")
        positive_int("steps", self.steps)
        positive(snr=self.snr, step_size=1.0 if self.step_size is None else self.step_size)
        choose("prediction", self.prediction, PREDICTIONS)

    @property
    def t_start(self) -> float:
        """The time of x."""
        return float(self.t)

    def done(self, x: Traced, history: History) -> bool:
        """Whether all steps are taken."""
        return history.accepted == self.steps

    def step(self, x: Traced, history: History) -> Traced:
        """One Langevin step."""
        fixed = self.step_size
        size = partial(_relative_size, snr=self.snr, a=1.0) if fixed is None else lambda *_: float(fixed)
        return _langevin(self, x, history, size)


@checked
@dataclass(frozen=True, eq=False)
class PredictorCorrector:
    r"""score_sde's predictor–corrector sampler on any process and grid.

    Each step first corrects ``corrector_steps`` times at time t, then predicts from t to s.  With the score S and the
    forward kernel over the step, Ψ = α_t/α_s, G² = σ_t² − Ψ²σ_s² (VP: Ψ² = 1 − β_i and G² = β_i),

    ==================  =========================  ==================================================
    predictor           noiseless mean             noise
    ==================  =========================  ==================================================
    reverse_diffusion   (2 − Ψ) x + G² S           G
    ancestral           (x + G² S)/Ψ               G on variance-preserving processes, else G σ_s/σ_t
    euler_maruyama      x + (f x − g² S)(s − t)    g √(t − s)
    none                x                          0
    ==================  =========================  ==================================================

    The released code takes β_i = β(t_i)/N for 1 − Ψ², has no ancestral predictor for sub-VP, and discretises sub-VP by
    Euler–Maruyama in the reverse-diffusion predictor.

    Args:
        ts: (N + 1,) descending times, ρ finite at the first.
        predictor: a row of the table. corrector_steps: per predictor step; with 0 the table is known from the start.
        snr: r of the corrector, see the module. denoise: return the noiseless mean of the last predictor step.
        prediction: what the model predicts.

    Raises:
        ValueError: unknown names, numbers out of range, a bad grid, or one on which ρ or a coefficient is infinite.

    Source: Song et al. 2021 (arXiv 2011.13456), alg. 2-5, eq. 46 and app. E-G, in the order of the released code.
    """

    process: Process
    ts: Any
    predictor: str = "reverse_diffusion"
    corrector_steps: int = 1
    snr: float = 0.16
    denoise: bool = True
    prediction: str = "score"

    depth = 1

    def __post_init__(self) -> None:
        ts = check_grid(self.process, self.ts)
        choose("predictor", self.predictor, PREDICTORS)
        choose("prediction", self.prediction, PREDICTIONS)
        positive_int("corrector_steps", self.corrector_steps, minimum=0)
        positive(snr=self.snr)
        if not np.isfinite(self.process.rho(ts[0])):
            raise ValueError(f"ts={float(ts[0])!r}: ρ is infinite there on {self.process!r}, and with it the noise")
        object.__setattr__(self, "ts", ts)

    @property
    def name(self) -> str:
        """How to call it."""
        return f"pc_{self.predictor}"

    @property
    def t_start(self) -> float:
        """The time of x_T."""
        return float(self.ts[0])

    def done(self, x: Traced, history: History) -> bool:
        """Whether ``x`` is at the last time."""
        return history.accepted == self.ts.size - 1

    def step(self, x: Traced, history: History) -> Traced:
        """Correct at t, predict from t to s."""
        i = history.accepted
        t, s = float(self.ts[i]), float(self.ts[i + 1])
        for _ in range(self.corrector_steps):
            a = float(self.process.psi(t, s)) ** 2
            x = _langevin(self, x, history, partial(_relative_size, snr=self.snr, a=a))
        if self.predictor == "none":
            return history.combine(s, [(1.0, x)])
        from_x, from_score, noise = self._coefficients(t, s)
        output = history.evaluate(x)
        c, d = _score(self, x, output)
        terms = [(from_x + from_score * c, x), (from_score * d, output)]
        if not (self.denoise and i == self.ts.size - 2):
            z = history.draw(float(self.process.rho(t)) ** 2, float(self.process.rho(s)) ** 2)
            terms.append((noise, z))
        return history.combine(s, terms)

    def _coefficients(self, t: float, s: float) -> tuple[float, float, float]:
        """What the predictor's step from t to s multiplies x, the score and the noise with."""
        if self.predictor == "euler_maruyama":
            f, g2 = float(self.process.drift(t)), float(self.process.diffusion_squared(t))
            return 1.0 + f * (s - t), -g2 * (s - t), math.sqrt(g2 * (t - s))
        psi = float(self.process.psi(t, s))
        sigma_t, sigma_s = float(self.process.sigma(t)), float(self.process.sigma(s))
        # σ_t² − Ψ²σ_s² in factors, since the difference of squares cancels on fine grids
        variance = (sigma_t - psi * sigma_s) * (sigma_t + psi * sigma_s)
        noise = math.sqrt(variance)
        if self.predictor == "reverse_diffusion":
            return 2.0 - psi, variance, noise
        if not self.process.variance_preserving:
            noise *= sigma_s / sigma_t
        return 1.0 / psi, variance / psi, noise


def _build(process: Process, ts: Array, predictor: str) -> PredictorCorrector:
    return PredictorCorrector(process, ts, predictor)


_SONG = "Song et al. 2021 (arXiv 2011.13456)"
for _predictor, _place, _text in (
    ("reverse_diffusion", "eq. 46, alg. 2-5", "Reverse-diffusion predictor"),
    ("ancestral", "app. F, alg. 2-5", "Ancestral-sampling predictor"),
    ("euler_maruyama", "sec. 4.1, alg. 2-5", "Euler-Maruyama predictor"),
    ("none", "alg. 4-5 alone", "No predictor"),
):
    register_stepper(
        StepperRow(
            name=f"pc_{_predictor}",
            build=partial(_build, predictor=_predictor),
            prediction="score",
            source=f"{_SONG}, {_place}",
            description=f"{_text} and a Langevin corrector whose step is measured on the batch.",
            linear=True,
        )
    )
