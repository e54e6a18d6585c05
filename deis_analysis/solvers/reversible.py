r"""Samplers that can be run backwards exactly: BDIA, BELM, O-BELM and reversible Heun.

In y = x/γ, with Δ the increments of κ before and after t and G > 0, the two-step methods are

.. math:: y_{next} = G\, y_{before} + (1 - G)\, y_t + (Δ_{next} + G\, Δ_{before})\, p_t .

Their local error is ½(Δ_next² − G Δ_before²) dp/dκ.  BDIA has G = g γ_before/γ_next with its own number g: order 1 for
g < 1, order 2 for g = 1 on smooth grids; O-BELM has G = (Δ_next/Δ_before)²: order 2 on any grid.  Solved for y_before,
the same line runs backwards (`invert`), and multiplies rounding errors by 1/G per step: what is stable in one direction
is unstable in the other.

[Zhang et al. 2024, arXiv 2307.10829 (BDIA); Wang et al. 2024, arXiv 2410.07273 (BELM)]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import adams_weights
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder
from deis_analysis.validate import between, checked, choose, finite


@checked
def bdia(process: Process, ts: Any, gamma: float = 1.0, *, prediction: str = "eps", name: str = "bdia") -> Tableau:
    r"""BDIA: z_next = γ z_before − γ DDIM(t → before) + DDIM(t → next); the first step is DDIM.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        gamma: in (0, 1], in the convention of the current release (the first preprint has 1 − γ in its place).
        prediction: ``"eps"`` as published; ``"x0"`` with the steps of DPM-Solver++.

    Raises:
        ValueError: gamma outside (0, 1], a bad grid, or times where κ is infinite.

    Source: Zhang et al. 2024, the update of BDIA-DDIM; Wang et al. 2024, as a member of BELM.
    """
    if between("gamma", gamma, 0.0, 1.0) == 0:
        raise ValueError("gamma=0.0 must lie in (0, 1]")
    ts = check_grid(process, ts)
    _increments(process, prediction, ts)  # names a time at which κ is infinite
    scale = process.gamma(prediction, ts)
    return belm(process, ts, gamma * scale[:-2] / scale[2:], prediction=prediction, name=name)


@checked
def belm(process: Process, ts: Any, g: Any, *, prediction: str = "eps", name: str = "belm") -> Tableau:
    r"""BELM: the general two-step method of the module docstring, for any G; the first step is DDIM.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        g: G > 0, one number or (N − 1,), of the steps after the first; G = (Δ_next/Δ_before)² is `obelm`.
        prediction: ``"eps"`` (κ = ρ) or ``"x0"`` (κ = 1/ρ).

    Raises:
        ValueError: G not positive and finite or of another shape, a bad grid, or times where κ is infinite.

    Source: Wang et al. 2024 (arXiv 2410.07273), the bidirectional explicit linear multi-step samplers with two steps.
    """
    ts = check_grid(process, ts)
    delta = _increments(process, prediction, ts)
    share = finite("g", g)
    if share.shape not in ((), (ts.size - 2,)) or not np.all(share > 0):
        raise ValueError(f"g={g!r} must be positive: one number or {ts.size - 2}, one per step after the first")
    g, h = np.broadcast_to(share, (ts.size - 2,)), delta
    gamma = process.gamma(prediction, ts)
    r = Recorder(process, ts, prediction)
    before = r.x_T
    x = r.node(gamma[1] / gamma[0] * before + gamma[1] * h[0] * r.call(before))
    for i in range(1, ts.size - 1):
        y = (
            g[i - 1] / gamma[i - 1] * before
            + (1.0 - g[i - 1]) / gamma[i] * x
            + (h[i] + g[i - 1] * h[i - 1]) * r.call(x)
        )
        before, x = x, r.node(gamma[i + 1] * y)
    return r.tableau(name)


@checked
def obelm(process: Process, ts: Any, *, prediction: str = "eps", name: str = "obelm") -> Tableau:
    r"""O-BELM: the two-step method with G = (Δ_next/Δ_before)², of second order on every grid; the first step is DDIM.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        prediction: ``"eps"`` as published, or ``"x0"``.

    Raises:
        ValueError: a bad grid, or times where κ is infinite.

    Source: Wang et al. 2024 (arXiv 2410.07273), O-BELM.
    """
    ts = check_grid(process, ts)
    delta = _increments(process, prediction, ts)
    return belm(process, ts, (delta[1:] / delta[:-1]) ** 2, prediction=prediction, name=name)


def _increments(process: Process, prediction: str, ts: Array) -> Array:
    """(N,) increments of κ."""
    choose("prediction", prediction, ("eps", "x0"))
    return adams_weights(process, prediction, "rho" if prediction == "eps" else "inv_rho", ts, 0)[:, 0]


@checked
def reversible_heun(process: Process, ts: Any, *, prediction: str = "eps", name: str = "reversible_heun") -> Tableau:
    r"""Reversible Heun on dy = p dκ: a second state ŷ makes every step solvable backwards.

    .. math:: ŷ_s = 2 y_t - ŷ_t + Δ\, p(ŷ_t) , \qquad y_s = y_t + \tfrac12 Δ\, (p(ŷ_t) + p(ŷ_s)) .

    Args:
        ts: (N + 1,) descending times; one model call per step and one at the start.
        prediction: ``"eps"`` (κ = ρ) or ``"x0"`` (κ = 1/ρ).

    Raises:
        ValueError: a bad grid, or times where κ is infinite.

    Source: Kidger 2022 (On Neural Differential Equations, arXiv 2202.02435), the reversible Heun method.
    """
    ts = check_grid(process, ts)
    delta = _increments(process, prediction, ts)
    gamma = process.gamma(prediction, ts)
    r = Recorder(process, ts, prediction)
    x = hat = r.x_T
    p = r.call(hat)
    for i, h in enumerate(delta):
        ratio = gamma[i + 1] / gamma[i]
        hat_s = ratio * (2.0 * x - hat) + gamma[i + 1] * h * p
        p_s = r.call(hat_s, ts[i + 1])
        x = r.node(ratio * x + 0.5 * gamma[i + 1] * h * (p + p_s))
        hat, p = hat_s, p_s
    return r.tableau(name)


_BDIA = "Zhang et al. 2024 (BDIA, arXiv 2307.10829)"
_BELM = "Wang et al. 2024 (BELM, arXiv 2410.07273), O-BELM"
_KIDGER = "Kidger 2022 (arXiv 2202.02435), reversible Heun method"
_row = family(bdia, family="reversible", variable="rho", starting_steps=1)
_row("bdia", 2, 0, source=f"{_BDIA}, BDIA-DDIM, gamma = 1")
_row("bdia_half", 1, 0, {"gamma": 0.5}, source=f"{_BDIA}, BDIA-DDIM, gamma = 1/2")
_row = family(obelm, family="reversible", starting_steps=1)
_row("obelm", 2, 1, variable="rho", source=_BELM)
_data = {"prediction": "x0", "variable": "inv_rho"}
_row("obelm_x0", 2, 1, {"prediction": "x0"}, source=f"{_BELM} on the data prediction", **_data)
_row = family(reversible_heun, family="reversible", variable="rho", extra_calls=1)
_row("reversible_heun", 2, 1, source=_KIDGER)
