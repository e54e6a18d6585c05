"""What several grids need: the cheapest path over given times, and a curve read backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import PchipInterpolator

from deis_analysis.process.process import Array

Curve = Callable[[Array], Array]


def cheapest_path(cost: Array, steps: int, gamma: float = 1.0) -> Array:
    """(steps + 1,) indices from the first to the last of M that minimise Σ_k γ^k cost[i_k, i_{k+1}], i increasing.

    Args:
        cost: (M, M), of which the part above the diagonal is read. steps: 1 … M − 1.
    """
    count = cost.shape[0]
    allowed = np.where(np.triu(np.ones((count, count), dtype=bool), 1), cost, np.inf)
    value, choices = allowed[:, -1], []
    for _ in range(steps - 1):
        total = allowed + gamma * value
        choices.append(np.argmin(total, axis=1))
        value = np.min(total, axis=1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array([*path, count - 1])


def inverted(clock: Array, u: Array) -> Curve:
    """clock ↦ u by monotone interpolation; where the clock stands still it is given a trifle of slope."""
    steps = np.maximum(np.diff(clock), 1e-13 * float(clock[-1] - clock[0]) / u.size)
    return PchipInterpolator(np.concatenate([[0.0], np.cumsum(steps)]) * (clock[-1] / np.sum(steps)), u)
