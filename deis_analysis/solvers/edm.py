r"""EDM's samplers: Euler, Heun and the second-order α-method in ρ, with a final Euler step, and their stochastic churn.

In the coordinates of Karras et al. the state is y = x/α and the clock is ρ = σ/α, their σ: dy = ε dρ.  A step of the
stochastic sampler first adds noise, from ρ to ρ̂ = (1 + γ) ρ, then integrates down from ρ̂.

[Karras et al. 2022, arXiv 2206.00364, alg. 1–3]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.noise import rho_intervals
from deis_analysis.solvers.registry import family
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder
from deis_analysis.validate import between, checked, nonnegative, scalar

_MOST_CHURN = math.sqrt(2.0) - 1.0


@checked
def edm_sampler(process: Process, ts: Any, alpha: float | None = 1.0, *, name: str = "edm") -> Tableau:
    r"""EDM's deterministic sampler: in ρ, with h = ρ_s − ρ_t and a stage at ρ_t + αh,

    .. math:: y_s = y_t + h \Bigl( \bigl(1 - \tfrac{1}{2α}\bigr) ε_t + \tfrac{1}{2α} ε_{t + αh} \Bigr) ,

    and a last step by Euler, which may end at σ = 0 (append 0 to a grid of `EDM`): 2N − 1 model calls.

    Args:
        ts: (N + 1,) descending times.
        alpha: position of the stage, in (0, 1]; 1 is Heun, ½ the midpoint rule; None is Euler, N calls.

    Raises:
        ValueError: alpha outside (0, 1], a bad grid, or times where ρ is infinite.

    Source: Karras et al. 2022, alg. 1 (Heun), alg. 3 (α).
    """
    ts = check_grid(process, ts)
    return _sampler(process, ts, alpha, np.zeros(ts.size - 1), 1.0, name)


@checked
def edm_churn(
    process: Process,
    ts: Any,
    alpha: float | None = 1.0,
    *,
    churn: float = 1.0,
    rho_min: float = 0.0,
    rho_max: float = math.inf,
    noise_scale: float = 1.0,
    name: str = "edm_churn",
) -> Tableau:
    r"""EDM's stochastic sampler: noise up to ρ̂ = (1 + γ)ρ, γ = min(S_churn/N, √2 − 1), then a step down from ρ̂.

    No noise where ρ lies outside [``rho_min``, ``rho_max``], and never above the largest level of the process.  The
    noise of a step is the Brownian increment of that step's own interval [ρ_s, ρ_t], so steps are independent.

    Args:
        ts: (N + 1,) descending times.
        alpha: position of the stage, see `edm_sampler`.
        churn, rho_min, rho_max, noise_scale: the paper's S_churn ≥ 0, S_min, S_max, S_noise.

    Raises:
        ValueError: as `edm_sampler`; parameters that are negative or no numbers.

    Source: Karras et al. 2022, alg. 2.
    """
    ts = check_grid(process, ts)
    rho = _levels(process, ts)[:-1]
    gamma = min(nonnegative("churn", churn) / rho.size, _MOST_CHURN)
    top = scalar("rho_max", rho_max)
    if not top >= 0:
        raise ValueError(f"rho_max={rho_max!r} must be a number >= 0, or infinite")
    inside = (rho >= nonnegative("rho_min", rho_min)) & (rho <= top)
    highest = float(process.rho(process.t_max))
    gammas = np.where(inside, np.minimum(gamma, highest / rho - 1.0), 0.0)
    return _sampler(process, ts, alpha, np.maximum(gammas, 0.0), nonnegative("noise_scale", noise_scale), name)


def _levels(process: Process, ts: Array) -> Array:
    """(N + 1,) ρ of a grid, finite."""
    level = process.rho(ts)
    if not np.all(np.isfinite(level)):
        raise ValueError(f"ts starts at {ts[0]!r}, where ρ is infinite on {process!r}; allowed: times with finite ρ")
    return level


def _sampler(process: Process, ts: Array, alpha: float | None, gammas: Array, scale: float, name: str) -> Tableau:
    """The table of both samplers; ``gammas`` (N,) say by how much ρ is raised before each step."""
    steps = ts.size - 1
    if alpha is not None and between("alpha", alpha, 0.0, 1.0) == 0:
        raise ValueError("alpha=0.0 must lie in (0, 1]")
    level = _levels(process, ts)
    top = level[:-1] * (1.0 + gammas)
    h = level[1:] - top
    staged = (np.arange(steps) < steps - 1) & (alpha is not None)  # the last step is Euler's
    t_top = np.where(gammas > 0, process.time_from_rho(np.clip(top, level.min(), None)), ts[:-1])
    share = 1.0 if alpha is None else alpha
    t_stage = ts[1:] if share == 1 else process.time_from_rho(np.maximum(top + share * h, level[-2]))
    a, a_top, a_stage = (process.alpha(t) for t in (ts, t_top, t_stage))
    added = scale * level[:-1] * np.sqrt(gammas * (2.0 + gammas))
    r, intervals = Recorder(process, ts), rho_intervals(process, ts)
    x = r.x_T
    for i in range(steps):
        if gammas[i] > 0:
            x = r.state(a_top[i] * (x / a[i] + added[i] * r.noise(intervals[i])), t_top[i])
        e = r.call(x)
        if staged[i]:
            u = a_stage[i] * (x / a_top[i] + share * h[i] * e)
            e = (1.0 - 0.5 / share) * e + 0.5 / share * r.call(u, t_stage[i])
        x = r.node(a[i + 1] * (x / a_top[i] + h[i] * e))
    return r.tableau(name)


_EDM = "Karras et al. 2022 (EDM, arXiv 2206.00364)"
_row = family(edm_sampler, family="edm", variable="rho")
_heun: dict[str, Any] = {"stages": 2, "extra_calls": -1, "final_steps": 1}
_row("edm_euler", 1, 0, {"alpha": None}, source=f"{_EDM}, alg. 1 without correction")
_row("edm_heun", 2, 1, source=f"{_EDM}, alg. 1", **_heun)
_row("edm_alpha", 2, 1, {"alpha": 0.7}, source=f"{_EDM}, alg. 3 with alpha = 0.7", **_heun)
_row("edm_churn", 2, -1, build=edm_churn, strong_order=1, source=f"{_EDM}, alg. 2 with S_churn = 1", **_heun)
