r"""PNDM: Adams–Bashforth combinations of ε sent through the DDIM transfer, with a Runge–Kutta start.

The transfer φ(x, e, t, s) = Ψ(s, t) x + (σ_s − Ψ σ_t) e is a DDIM step.  The classical weights, Runge–Kutta and
Adams–Bashforth alike, assume that the integral is over the variable in which the steps are equal; it is over ρ, and the
steps are equal in t.  So every member is of order 2, in its start as in the rest.

[Liu et al. 2022, arXiv 2202.09778, eq. 11–14, alg. 1–2]
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from deis_analysis.grids import check_grid, check_nodes
from deis_analysis.process import Process
from deis_analysis.solvers.exponential_adams import ADAMS_BASHFORTH
from deis_analysis.solvers.registry import Solver, assemble, register, step_labels
from deis_analysis.tableau import Tableau
from deis_analysis.validate import choose
from deis_analysis.weights import adams_weights

# Pseudo Runge–Kutta starts: stages as (share of the step, stage whose ε the transfer uses), and the final weights.
_STARTS: dict[str, tuple[tuple[tuple[float, int], ...], tuple[float, ...]]] = {
    "euler": (((1.0, 0),), (0.5, 0.5)),
    "rk4": (((0.5, 0), (0.5, 1), (1.0, 2)), (1 / 6, 2 / 6, 2 / 6, 1 / 6)),
}
_KINDS = {"f": ("rk4", 3, 4), "s": ("euler", 1, 2), "plms": ("euler", 1, 4)}  # start, its steps, terms of the rest


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
    steps = ts.size - 1
    started = min(started, steps)
    extra = len(stages)  # model calls of a starting step beyond the first
    nodes = np.concatenate([np.arange(started) * (extra + 1), started * (extra + 1) + np.arange(steps + 1 - started)])
    times = np.empty(nodes[-1] + 1)
    times[nodes] = ts
    check_nodes(times.size)
    states, outputs = (np.zeros((times.size, times.size)) for _ in range(2))

    def transfer(row: int, begin: int, combination: dict[int, float]) -> None:
        """The row x_row = φ(x_begin, Σ weight · ε_node)."""
        gamma = process.gamma("eps", times[[begin, row]])
        whole = gamma[1] * adams_weights(process, "eps", "rho", times[[begin, row]], 0)[0, 0]
        states[row, begin] = gamma[1] / gamma[0]
        for node, weight in combination.items():
            outputs[row, node] = whole * weight

    for i in range(steps):
        first, last = int(nodes[i]), int(nodes[i + 1])
        if i < started:
            for stage, (share, uses) in enumerate(stages, 1):
                times[first + stage] = ts[i] + share * (ts[i + 1] - ts[i])
                transfer(first + stage, first, {first + uses: 1.0})
            transfer(last, first, {first + j: weight for j, weight in enumerate(final)})
        else:
            combination = ADAMS_BASHFORTH[min(i, terms - 1)]
            transfer(last, first, {int(nodes[i - j]): weight for j, weight in enumerate(combination)})
    grid_nodes = tuple(nodes.tolist())
    labels = step_labels(grid_nodes, times.size)
    return assemble(process, times, states, outputs, "eps", name or f"{kind}_pndm", grid_nodes, labels)


_LIU = "Liu et al. 2022 (PNDM, arXiv 2202.09778)"
for _name, _kind, _extra, _starting, _source in (
    ("f_pndm", "f", 9, 3, f"{_LIU}, eq. 12-13"),
    ("s_pndm", "s", 1, 1, f"{_LIU}, eq. 14"),
    ("plms", "plms", 1, 3, f"{_LIU}, eq. 12; PLMS of latent diffusion (arXiv 2112.10752)"),
):
    register(
        Solver(
            name=_name,
            build=partial(pndm, kind=_kind, name=_name),
            family="pndm",
            order=2,
            order_exact_start=2,
            degree=0,
            extra_calls=_extra,
            starting_steps=_starting,
            source=_source,
        )
    )
