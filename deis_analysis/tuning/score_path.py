r"""Score-optimal grids: equal steps along the path of distributions, in the length that the score measures.

.. math:: L(t, t') = σ_{t'}^2\, E_{x \sim p_t}\|∇\log p_{t'}(x) - ∇\log p_t(x)\|^2 , \qquad
          Λ = \sum \sqrt{L} \text{ over the bank's times} .

On Gaussian data of variance c², V = α²c² + σ²: L/d = σ_{t'}² V (1/V′ − 1/V)², so dΛ ∝ σ |dV|/V^{3/2}; for x/α that is
2ρ² dρ/(ρ² + c²)^{3/2}, the differential of 2 arsinh(ρ/c) − 2ρ/√(ρ² + c²).

Source: Williams, Campbell, Doucet & Syed 2024 (arXiv 2412.07877), the corrector-optimised cost.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from deis_analysis import backend
from deis_analysis.process.convention import Model
from deis_analysis.process.process import Array
from deis_analysis.tuning.bank import Bank, without_graph
from deis_analysis.tuning.lattice import inverted
from deis_analysis.validate import choose

STATES = ("process", "karras")
_ROUNDING = 1e-6  # a path shorter than this is rounding, whatever the dtype of the bank


def score_changes(bank: Bank, model: Model, state: str = "process") -> Array:
    """(M − 1,) √(L/d) of the bank's intervals: states of the noisier time seen at the next one. Makes M − 1 calls.

    Args:
        state: ``"process"``, the paper's: x is kept, and scores are of x.  ``"karras"``: x/α is, whose score changes
            with the level on all data (that of x does not on VP where the data are standard normal).
    """
    choose("state", state, STATES)
    process, first = bank.process, bank.states[0]
    scale = process.alpha(bank.times) if state == "karras" else np.ones(bank.times.size)
    noise = process.sigma(bank.times) / scale
    call, centre = backend.guarded(model, first, None, True), backend.Centre(process.mean, first)
    changes = np.zeros(bank.times.size - 1)
    with without_graph(first):
        for k, t in enumerate(bank.times[1:].tolist()):
            moved = centre.on(float(scale[k + 1] / scale[k]) * centre.off(bank.states[k]))
            change = backend.flat(call(moved, t)) - noise[k + 1] / noise[k] * backend.flat(bank.eps[k])
            changes[k] = np.sqrt(np.mean(change**2))
        call.finish()
    return changes


def score_optimal(bank: Bank, model: Model, steps: int, ends: tuple[float, float], state: str = "process") -> Array:
    """(steps + 1,) levels ρ at equal distances along Λ, which is interpolated in log ρ.

    Raises:
        ValueError: a score that does not change.
    """
    changes = bank.remembered(("score", state), lambda: score_changes(bank, model, state))
    length = np.concatenate([[0.0], np.cumsum(changes[::-1])])  # from the data's end
    if not length[-1] > _ROUNDING:
        raise ValueError(f"state={state!r}: the score of {bank!r} does not change in time; allowed: state='karras'")
    u = np.log(bank.rho[::-1])
    first, last = PchipInterpolator(u, length)(np.log(ends))
    return np.exp(inverted(length, u)(np.linspace(first, last, steps + 1)))
