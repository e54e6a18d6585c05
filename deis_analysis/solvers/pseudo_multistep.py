r"""PNDM: Adams–Bashforth combinations of ε sent through the DDIM transfer, with a Runge–Kutta start.

The transfer φ(x, e, t, s) = Ψ(s, t) x + (σ_s − Ψ σ_t) e is a DDIM step.  The classical weights, Runge–Kutta and
Adams–Bashforth alike, assume that the integral is over the variable in which the steps are equal; it is over ρ, and the
steps are equal in t.  So every member is of order 2, in its start as in the rest.

[Liu et al. 2022, arXiv 2202.09778, eq. 11–14, alg. 1–2]
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Process
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import ADAMS_BASHFORTH, adams_weights
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Line, Recorder, combined
from deis_analysis.validate import checked, choose

# Pseudo Runge–Kutta starts: stages as (share of the step, stage whose ε the transfer uses), and the final weights.
_STARTS: dict[str, tuple[tuple[tuple[float, int], ...], tuple[float, ...]]] = {
    "euler": (((1.0, 0),), (0.5, 0.5)),
    "rk4": (((0.5, 0), (0.5, 1), (1.0, 2)), (1 / 6, 2 / 6, 2 / 6, 1 / 6)),
}
_KINDS = {"f": ("rk4", 3, 4), "s": ("euler", 1, 2), "plms": ("euler", 1, 4)}  # start, its steps, terms of the rest


@checked
def pndm(process: Process, ts: Any, kind: str = "f", *, name: str = "") -> Tableau:
    r"""PNDM with its pseudo Runge–Kutta start, stages in the middle of the step in t.

    Args:
        ts: (N + 1,) descending times.
        kind: ``"f"``, F-PNDM: three pseudo-RK4 steps, then four terms, N + 9 model calls; ``"s"``, S-PNDM: one pseudo
            improved-Euler step, then two terms, N + 1 calls; ``"plms"``: the start of S-PNDM, then two, three, four
            terms as they become available, N + 1 calls.

    Raises:
        ValueError: unknown kind, a bad grid, or times where ρ is infinite.

    Source: Liu et al. 2022, eq. 12–14; PLMS: the pseudo linear multistep sampler of latent diffusion (Rombach et al.
    2022, arXiv 2112.10752).
    """
    ts = check_grid(process, ts)
    start, started, terms = _KINDS[choose("kind", kind, _KINDS)]
    stages, final = _STARTS[start]

    def transfer(x: Line, e: Line, t: float, s: float) -> Line:
        """φ(x, e, t, s), a DDIM step."""
        gamma, whole = process.gamma("eps", np.array([t, s])), adams_weights(process, "eps", "rho", np.array([t, s]), 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # the recorder names the step that is singular
            return gamma[1] / gamma[0] * x + gamma[1] * whole[0, 0] * e

    r = Recorder(process, ts)
    x, known = r.x_T, list[Line]()
    for i, (t, s) in enumerate(pairwise(ts.tolist())):
        known.append(r.call(x))
        if i < started:
            e = [known[-1]]
            for share, uses in stages:
                middle = t + share * (s - t)
                e.append(r.call(transfer(x, e[uses], t, middle), middle))
            mean = combined(final, e)
        else:
            mean = combined(ADAMS_BASHFORTH[min(i, terms - 1)], known[::-1])
        x = r.node(transfer(x, mean, t, s))
    return r.tableau(name or f"{kind}_pndm")


_LIU = "Liu et al. 2022 (PNDM, arXiv 2202.09778)"
_PLMS = "PLMS of latent diffusion (arXiv 2112.10752)"
_row = family(pndm, family="pndm")
_row("f_pndm", 2, 0, {"kind": "f"}, extra_calls=9, starting_steps=3, source=f"{_LIU}, eq. 12-13")
_row("s_pndm", 2, 0, {"kind": "s"}, extra_calls=1, starting_steps=1, source=f"{_LIU}, eq. 14")
_row("plms", 2, 0, {"kind": "plms"}, extra_calls=1, starting_steps=3, source=f"{_LIU}, eq. 12; {_PLMS}")
