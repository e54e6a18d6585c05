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

from itertools import product
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import MOST_DEGREE, Integrals
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder, combined
from deis_analysis.validate import boolean, checked, choose, positive_int


@checked
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
    ts = check_grid(process, ts)
    predict, correct = unipc_weights(
        process, ts, order, prediction=prediction, variant=variant, lower_order_final=lower_order_final
    )
    gamma = process.gamma(prediction, ts).tolist()
    r = Recorder(process, ts, prediction)
    x = r.x_T
    known = [r.call(x)]  # the model's values at the predicted states, latest first
    for n, (w, w_c) in enumerate(zip(predict.tolist(), correct.tolist(), strict=True)):
        ratio, g = gamma[n + 1] / gamma[n], gamma[n + 1]
        predicted = ratio * x + g * combined(w, known)
        if n == ts.size - 2:  # the last step is not corrected
            r.node(predicted)
            break
        known = [r.call(predicted, ts[n + 1]), *known[:order]]
        x = r.node(ratio * x + g * combined(w_c, known))
    return r.tableau(name or f"unipc{order}")


def unipc_weights(
    process: Process,
    ts: Array,
    order: int,
    *,
    prediction: str = "x0",
    variant: str = "bh2",
    lower_order_final: bool = False,
) -> tuple[Array, Array]:
    """What predictor and corrector of each step make of the outputs, latest first: (N, order) and (N, order + 1).

    Args, errors and source as `unipc`; ``ts`` a checked grid.
    """
    order = positive_int("order", order, most=MOST_DEGREE)
    choose("prediction", prediction, ("eps", "x0"))
    choose("variant", variant, ("bh1", "bh2"))
    integrals = Integrals(process, prediction, "lam", ts)
    steps = ts.size - 1
    used = np.minimum(np.arange(1, steps + 1), order)
    if boolean("lower_order_final", lower_order_final):
        used = np.minimum(used, np.arange(steps, 0, -1))
    half = _half_steps(integrals, process, prediction, ts, variant)
    predict, correct = np.zeros((steps, order)), np.zeros((steps, order + 1))
    for p in map(int, np.unique(used)):
        i = np.flatnonzero(used == p)  # steps that use p nodes
        predict[i, :p] = half(i, True) if p == 2 else integrals.weights(i - p + 1, p - 1, p, tuple(range(p)[::-1]))
        correct[i, : p + 1] = (
            half(i, False) if p == 1 else integrals.weights(i - p + 1, p - 1, p, tuple(range(p + 1)[::-1]))
        )
    return predict, correct


def _half_steps(integrals: Integrals, process: Process, prediction: str, ts: Array, variant: str) -> Any:
    """(steps i, whether to predict) → (N, 2) weights of Δκ p₀ + ½ B (p₁ − p₀) h/(λ₁ − λ₀), latest value first."""
    h, whole = integrals.increments, integrals.adams(np.zeros(ts.size - 1, dtype=int))[:, 0]
    b = whole
    if variant == "bh1":  # B = h in place of e^h − 1 (eps) or of e^−h − 1 (x0): h dκ/dλ at the step's end
        rho = process.rho(ts[1:])
        b = h * (-rho if prediction == "eps" else 1.0 / rho)

    def half(i: Array, predict: bool) -> Array:
        slope = -h[i] / h[i - 1] if predict else 1.0
        weights = np.stack([whole[i] - 0.5 * b[i] * slope, 0.5 * b[i] * slope], axis=1)
        return weights if predict else weights[:, ::-1]

    return half


_ZHAO = "Zhao et al. 2023 (UniPC, arXiv 2302.04867)"
_row = family(unipc, family="unipc", variable="lam", final_steps=1, source=f"{_ZHAO}, alg. 1-2")
for _prediction, _variant in product(("eps", "x0"), ("bh1", "bh2")):
    for _order, _global, _degree in ((1, 2, 0), (2, 3, 2), (3, 3, 3)):
        _row(
            f"unipc{_order}_{_variant}_{_prediction}",
            _global,
            _degree,
            {"order": _order, "prediction": _prediction, "variant": _variant},
            order_exact_start=_order + 1,
            prediction=_prediction,
            starting_steps=_order - 1,
        )
