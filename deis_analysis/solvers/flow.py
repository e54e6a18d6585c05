r"""Flow matching: Runge–Kutta methods on the velocity, and the splitting integrator of GDSS.

On `RectifiedFlow` and the variance-exploding processes v = ẋ, so Euler, midpoint and Heun on the velocity are plain
methods in t.  On variance-preserving processes the same rows multiply v, the derivative in the angle, by the rate of
the angle: the result is the naive method on the probability flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Process
from deis_analysis.process.schedules import RectifiedFlow
from deis_analysis.solvers.exponential_rk import runge_kutta
from deis_analysis.solvers.noise import MOST_LAM, rho_intervals
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.stochastic import euler_maruyama
from deis_analysis.solvers.weights import check_finite
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder
from deis_analysis.validate import checked, choose, nonnegative


@checked
def flow_sampler(process: Process, ts: Any, tableau: str = "1euler", *, name: str = "flow") -> Tableau:
    r"""A Runge–Kutta method on dx/dt = v: Euler x_s = x_t + (s − t) v, midpoint, Heun.

    Args:
        ts: (N + 1,) descending times; t = 1 is noise on `RectifiedFlow` (see `flow_model` for other conventions).
        tableau: a key of ``RUNGE_KUTTA``.

    Source: Lipman et al. 2023 (arXiv 2210.02747), sec. 3; Liu et al. 2023 (arXiv 2209.03003), alg. 1; Albergo et al.
    2023 (stochastic interpolants, arXiv 2303.08797), one-sided linear interpolant.
    """
    return runge_kutta(process, ts, tableau, prediction="v", variable="t", name=name)


@checked
def flow_sde(process: Process, ts: Any, noise: float = 0.7, *, name: str = "flow_sde") -> Tableau:
    r"""Euler–Maruyama on the flow with noise g = a √(t/(1 − t)), in terms of the velocity.

    .. math:: x_s = x_t + (s - t) \Bigl( v + \frac{g^2}{2 t} (x_t + (1 - t) v) \Bigr) + g \sqrt{t - s}\; z .

    It is the λ-family with λ = a/√2.  g is infinite at t = 1: start below it.  For constant ε the mean is linear in t,
    so the step is exact there, as Euler's is on straight paths.

    Args:
        process: `RectifiedFlow`. ts: (N + 1,) descending times, ts[0] < 1. noise: a, 0 to 1,000.

    Source: Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470), sec. 4, the sampling SDE; Albergo et al. 2023.
    """
    lam = nonnegative("noise", noise, MOST_LAM) / np.sqrt(2.0)
    return euler_maruyama(process, ts, lam, name=name).in_terms_of(process, "v")


@checked
def gdss_splitting(process: Process, ts: Any, variance: str = "exact", *, name: str = "gdss_s4") -> Tableau:
    r"""GDSS's symmetric splitting S4 without its corrector: half a linear step, the score step, half a linear step.

    With m the middle of the step in t, and the score evaluated once, at its start,

    .. math:: x' = \frac{α_m}{α_t} x_t + c_1 z_1 , \quad x'' = x' + (t - s)\, g_t^2\, score(x_t, t) , \quad
              x_s = \frac{α_s}{α_m} x'' + c_2 z_2 .

    The linear part runs backwards in time, so its noise has the variance c² = α_m² (ρ_t² − ρ_m²), which is e^I − 1 on
    variance-preserving processes, I = ∫β.  The released code has 1 − e^{−I} there, the forward one, smaller by I².

    Args:
        process: of one component; a system has one table per component, run together by `run_many`.
        ts: (N + 1,) descending times; one model call per step.
        variance: ``"exact"`` or ``"published"``.

    Raises:
        ValueError: unknown variance, a bad grid, or a step whose middle is not a time of the process.

    Source: Jo et al. 2022 (GDSS, arXiv 2202.02514), the S4 solver.
    """
    ts = check_grid(process, ts)
    choose("variance", variance, ("exact", "published"))
    check_finite(process, "score", "t", ts)
    middles = 0.5 * (ts[:-1] + ts[1:])
    if middles[-1] < process.t_min:  # the time of the data, 0 on EDM, may lie outside the range; no other time below it
        raise ValueError(
            f"ts={float(ts[-2])!r} to {float(ts[-1])!r}: the middle of the step, which the splitting needs, is "
            f"{float(middles[-1])!r}, below the first time of {process!r}; allowed: to end at {process.t_min!r}"
        )
    points = np.append(np.stack([ts[:-1], middles], axis=1).reshape(-1), ts[-1])
    alpha, rho = process.alpha(points), process.rho(points)
    squared = alpha[1:] ** 2 * (rho[:-1] ** 2 - rho[1:] ** 2)
    if variance == "published":
        squared *= (alpha[:-1] / alpha[1:]) ** 2
    c, g2 = np.sqrt(squared), process.diffusion_squared(ts[:-1])
    r, intervals = Recorder(process, ts, "score"), rho_intervals(process, points)
    x = r.x_T
    for i in range(ts.size - 1):
        score = r.call(x)
        x_1 = r.state(alpha[2 * i + 1] / alpha[2 * i] * x + c[2 * i] * r.noise(intervals[2 * i]), middles[i])
        x_2 = r.state(x_1 + (ts[i] - ts[i + 1]) * g2[i] * score, middles[i])
        z_2 = r.noise(intervals[2 * i + 1])
        x = r.node(alpha[2 * i + 2] / alpha[2 * i + 1] * x_2 + c[2 * i + 1] * z_2)
    return r.tableau(name)


_FLOW = "Lipman et al. 2023 (flow matching, arXiv 2210.02747), sec. 3"
_row = family(flow_sampler, family="flow", source=_FLOW, prediction="v", home=RectifiedFlow())
_row("flow_euler", 1, 0, {"tableau": "1euler"})
_row("flow_midpoint", 2, 1, {"tableau": "2midpoint"}, stages=2)
_row("flow_heun", 2, 1, {"tableau": "2heun"}, stages=2)

_GRPO = "Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470), the sampling SDE"
_row = family(flow_sde, family="flow", strong_order=1, home=RectifiedFlow())
_row("flow_sde", 1, 0, lam_sde=0.7 / 2**0.5, source=_GRPO)

_GDSS = "Jo et al. 2022 (GDSS, arXiv 2202.02514), S4 solver"
_row = family(gdss_splitting, family="splitting", prediction="score", lam_sde=1.0, strong_order=1)
_row("gdss_s4", 1, -1, {"variance": "exact"}, source=f"{_GDSS}, with the variance of reverse time")
_row("gdss_s4_published", 1, -1, {"variance": "published"}, source=f"{_GDSS}, variance as released")
