r"""The error budget between laws: the same causes as in `budget`, and the triangle

.. math:: W_2(\text{sampler}, \text{data}) ≤ W_2(\text{sampler}, \text{its flow}) + W_2(\text{its flow}, \text{data}) ,

where its flow is the exact flow of the sampler's model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.analysis.budget import DISCRETIZATION, ErrorBudget
from deis_analysis.analysis.distances import Distance, energy_distance, wasserstein2
from deis_analysis.validate import checked, finite, instance


@dataclass(frozen=True, eq=False)
class LawBudget:
    """The same error as a distance between laws: a path may be wrong where the law is right, never the other way round.

    Attributes:
        terms: cause → 2-Wasserstein distance between the laws with and without it; the four discretization terms are
            one cause, "discretization".
        pathwise: cause → √E|x − x'|² between the paths with and without it, which is never below the distance.
        sampler_data, sampler_flow, flow_data: W₂ of the result to ``data``, of the result to the exact flow of the
            model, and of that to ``data``: sampler_data ≤ sampler_flow + flow_data.
        energy: the energy distance of the same three pairs, ``"sampler_data"`` and so on.
    """

    terms: dict[str, Distance]
    pathwise: dict[str, float]
    sampler_data: Distance
    sampler_flow: Distance
    flow_data: Distance
    energy: dict[str, Distance]

    def __str__(self) -> str:
        lines = [f"{'':18} W2 of the laws   (95 % band)           paths"]
        for name, d in self.terms.items():
            lines.append(f"  {name:16s} {d.value:9.2e}   ({d.low:.2e} to {d.high:.2e})   {self.pathwise[name]:9.2e}")
        for name in ("sampler_data", "sampler_flow", "flow_data"):
            d = getattr(self, name)
            lines.append(f"  {name.replace('_', ' – '):16s} {d.value:9.2e}   ({d.low:.2e} to {d.high:.2e})")
        return "\n".join(lines)


@checked
def law_budget(budget: ErrorBudget, data: Any, *, method: str = "auto", seed: int = 0) -> LawBudget:
    """The laws behind an `ErrorBudget`, compared by `wasserstein2` and `energy_distance`.

    Args:
        data: (m, …) samples of the data distribution, to which sampler and exact flow are compared.
        method: see `wasserstein2`, where the bands and the bias of the value are explained too; with "sliced" the
            distances are sliced ones.

    Raises:
        ValueError: ``data`` whose samples are not of the shape of the budget's.
    """
    instance("budget", budget, ErrorBudget)
    data = finite("data", data)
    if data.shape[1:] != budget.result.shape[1:] or min(len(data), len(budget.result)) < 2:
        raise ValueError(
            f"data has shape {data.shape}, the budget's samples {budget.result.shape}; allowed: samples of one shape, "
            "at least 2 of each"
        )
    names = [name for name in budget.terms if name not in DISCRETIZATION]
    index = next(i for i, name in enumerate(budget.terms) if name in DISCRETIZATION)
    names.insert(min(index, len(names)), "discretization")
    merged = {**budget.terms, "discretization": sum(budget.terms[name] for name in DISCRETIZATION)}
    terms, pathwise, cloud = {}, {}, budget.ideal
    for name in names:
        moved = cloud + merged[name]
        terms[name] = wasserstein2(moved, cloud, method=method, seed=seed, paired=True)
        pathwise[name] = float(np.sqrt(np.sum(merged[name] ** 2) / len(cloud)))
        cloud = moved
    pairs = {
        "sampler_data": (budget.result, data, False),
        "sampler_flow": (budget.result, budget.exact_flow, True),
        "flow_data": (budget.exact_flow, data, False),
    }
    found = {
        name: wasserstein2(a, b, method=method, seed=seed, paired=paired) for name, (a, b, paired) in pairs.items()
    }
    energy = {name: energy_distance(a, b) for name, (a, b, _) in pairs.items()}
    return LawBudget(terms, pathwise, **found, energy=energy)
