r"""UniPC: an exponential Adams predictor in λ, and a corrector that costs no model call.

At the end of a step the model is evaluated at the predicted state, which the next step needs anyway; the corrector
then repeats the step with that value among the nodes.  The history holds the values at predicted states.  The last step
is not corrected.  With predictor of degree p − 1 the order is p + 1 with an exact start; with its own start the first
corrected step is of second order locally h³, so the order is at most 3.

The published B(h) matters only where one node is combined with the current one: UniP-2 and UniC-1.  There the weight ½
replaces the exact one, times B₂ = e^h − 1 (the midpoint rule of DPM-Solver++ 2M) or B₁ = h.  From three nodes on the
published linear system determines the exact weights, whatever B is.

[Zhao et al. 2023, arXiv 2302.04867, alg. 1–2]
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from deis_analysis.grids import check_grid, check_nodes
from deis_analysis.process import Array, Process
from deis_analysis.solvers.exponential_adams import MOST_DEGREE
from deis_analysis.solvers.registry import Solver, assemble, register, step_labels
from deis_analysis.tableau import Tableau
from deis_analysis.validate import boolean, choose, positive_int
from deis_analysis.weights import check_finite, increments, step_weights


def unipc(
    process: Process,
    ts: Any,
    order: int = 3,
    *,
    prediction: str = "x0",
    variant: str = "bh2",
    lower_order_final: bool = False,
    name: str = "",
) -> Tableau:
    r"""UniPC-``order``: UniP predictor through ``order`` nodes, UniC corrector through one more.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        order: p of the paper, 1 to 30, the number of nodes of the predictor.
        prediction: ``"eps"`` or ``"x0"``.
        variant: ``"bh1"`` (B = h) or ``"bh2"`` (B = e^h − 1).
        lower_order_final: the last steps use orders …, 2, 1, as released.

    Raises:
        ValueError: order out of range, unknown names, a bad grid, or times where ρ is 0 or infinite.

    Source: Zhao et al. 2023, alg. 1–2.
    """
    ts, order = check_grid(process, ts), positive_int("order", order, most=MOST_DEGREE)
    choose("prediction", prediction, ("eps", "x0"))
    choose("variant", variant, ("bh1", "bh2"))
    steps = ts.size - 1
    check_nodes(2 * steps)
    check_finite(process, prediction, "lam", ts)
    gamma = process.gamma(prediction, ts)
    used = np.minimum(np.arange(1, steps + 1), order)
    if boolean("lower_order_final", lower_order_final):
        used = np.minimum(used, np.arange(steps, 0, -1))
    evaluated = np.maximum(2 * np.arange(steps + 1) - 1, 0)  # node of the model's value at time i: the predicted state
    kept = 2 * np.arange(steps + 1)  # node of the corrected state
    kept[-1] = evaluated[-1]
    states, outputs = (np.zeros((2 * steps, 2 * steps)) for _ in range(2))
    for p in np.unique(used):
        i = np.flatnonzero(used == p)  # steps that use p nodes
        ratio = gamma[i + 1] / gamma[i]
        for row, nodes, weights in (
            (evaluated[i + 1], range(p), _predictor(process, prediction, ts, i, p, variant)),
            (kept[i + 1], range(-1, p), _corrector(process, prediction, ts, i, p, variant)),
        ):
            here = np.ones(i.size, dtype=bool) if nodes[0] == 0 else i < steps - 1  # the last step is not corrected
            states[row[here], kept[i[here]]] = ratio[here]
            for j, back in enumerate(nodes):
                outputs[row[here], evaluated[i[here] - back]] = gamma[i[here] + 1] * weights[here, j]
    times = np.concatenate([ts[:1], np.repeat(ts[1:], 2)[:-1]])
    ends = tuple(kept.tolist())
    labels = step_labels(ends, times.size)
    return assemble(process, times, states, outputs, prediction, name or f"unipc{order}", ends, labels)


def _predictor(process: Process, prediction: str, ts: Array, i: Array, p: int, variant: str) -> Array:
    """(N, p) weights in y of the values at times i, i − 1, …"""
    if p == 2:
        gaps = increments(process, "lam", ts)
        return _half(process, prediction, ts, i, -gaps[i] / gaps[i - 1], variant)
    return step_weights(process, prediction, "lam", ts, i - p + 1, p - 1, p, tuple(range(p - 1, -1, -1)))


def _corrector(process: Process, prediction: str, ts: Array, i: Array, p: int, variant: str) -> Array:
    """(N, p + 1) weights in y of the values at times i + 1, i, i − 1, …"""
    if p == 1:
        return _half(process, prediction, ts, i, np.ones(i.size), variant)[:, ::-1]
    return step_weights(process, prediction, "lam", ts, i - p + 1, p - 1, p, tuple(range(p, -1, -1)))


def _half(process: Process, prediction: str, ts: Array, i: Array, slope: Array, variant: str) -> Array:
    """(N, 2) weights of Δκ p₀ + ½ B (p₁ − p₀) · slope, slope = h/(λ₁ − λ₀)."""
    whole = step_weights(process, prediction, "lam", ts, i, 0, 1, (0,))[:, 0]
    if variant == "bh2":
        b = whole
    else:  # B = h in place of e^h − 1 (eps) or of e^−h − 1 (x0): h dκ/dλ at the step's end
        rho = process.rho(ts[i + 1])
        b = increments(process, "lam", ts)[i] * (-rho if prediction == "eps" else 1.0 / rho)
    return np.stack([whole - 0.5 * b * slope, 0.5 * b * slope], axis=1)


for _prediction in ("eps", "x0"):
    for _variant in ("bh1", "bh2"):
        for _order in (1, 2, 3):
            register(
                Solver(
                    name=f"unipc{_order}_{_variant}_{_prediction}",
                    build=partial(
                        unipc,
                        order=_order,
                        prediction=_prediction,
                        variant=_variant,
                        name=f"unipc{_order}_{_variant}_{_prediction}",
                    ),
                    family="unipc",
                    order=min(_order + 1, 3),
                    order_exact_start=_order + 1,
                    degree={1: 0, 2: 2, 3: 3}[_order],
                    prediction=_prediction,
                    variable="lam",
                    starting_steps=_order - 1,
                    final_steps=1,
                    source="Zhao et al. 2023 (UniPC, arXiv 2302.04867), alg. 1-2",
                )
            )
