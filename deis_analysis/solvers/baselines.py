r"""The two methods that DEIS starts from: naive Euler in t, and the exponential integrator with a frozen score."""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Process
from deis_analysis.solvers.exponential_adams import adams
from deis_analysis.solvers.registry import family
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import assemble
from deis_analysis.tableau.rows import subdiagonal
from deis_analysis.validate import checked


@checked
def euler(process: Process, ts: Any) -> Tableau:
    r"""Euler's method on the probability flow in t, linear part included:

    .. math:: x_s = x_t + (s - t) \Bigl( f_t x_t + \frac{g_t^2}{2σ_t} ε(x_t, t) \Bigr) .

    It is not exact even for constant ε, as the linear part is not integrated.

    Args:
        ts: (N + 1,) descending times.

    Source: Zhang & Chen 2023, eq. 7; Song et al. 2021 (arXiv 2011.13456), eq. 13.
    """
    ts = check_grid(process, ts)
    step, now = np.diff(ts), ts[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):  # assemble names the step that is singular
        speed = process.sigma(now) * process.log_rho_rate(now)
    states = subdiagonal(1.0 + step * process.drift(now))
    outputs = subdiagonal(step * speed)  # g²/(2σ) = σL
    return assemble(process, ts, states, outputs, None, "eps", "euler")


@checked
def ei_score(process: Process, ts: Any) -> Tableau:
    r"""Exponential integrator with the score s = −ε/σ frozen over the step, as a table in ε.

    On variance-preserving processes

    .. math:: x_s = Ψ x_t + (Ψ - 1)\, s(x_t, t) , \qquad Ψ = α_s/α_t ,

    the method that DEIS shows to be worse than Euler: the score grows like 1/σ as t → 0.

    Args:
        ts: (N + 1,) descending times.

    Source: Zhang & Chen 2023, eq. 8.
    """
    return adams(process, ts, 0, prediction="score", name="ei_score").in_terms_of(process, "eps")


_DEIS = "Zhang & Chen 2023 (arXiv 2204.13902)"
_row = family(euler, family="baselines")
_row("euler", 1, -1, source=f"{_DEIS}, eq. 7")
_row("ei_score", 1, 0, build=ei_score, source=f"{_DEIS}, eq. 8", prediction="score")
