r"""Grids out of a bank's times, by dynamic programming over Euler jumps (DDIM steps): GITS and OSS.

With y = x/α a jump from time i to time j of a trajectory is :math:`y_i + (ρ_j - ρ_i) ε_i`.

*GITS* starts every jump on the trajectory and adds up the jumps' own errors, later ones weighted by γ; *OSS* carries
the states that the jumps reach and compares them with the trajectory. GITS is exact for what it minimises; OSS keeps
one state per time and number of steps, so it is exact for 1 and 2 steps only, and beyond may miss the best grid.

Sources: Chen, Zhou, Chen, Shen & Lyu 2024 (GITS, arXiv 2405.11326); Pei et al. 2025 (OSS, arXiv 2503.21774).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.convention import Model
from deis_analysis.process.process import Array
from deis_analysis.tuning.bank import Bank, without_graph
from deis_analysis.tuning.lattice import cheapest_path
from deis_analysis.validate import choose, positive

METRICS = ("dev", "l2")
_ROUNDING = 1e-6  # deviations below this share of the chord are rounding, whatever the dtype of the bank


def jump_costs(bank: Bank, metric: str = "dev") -> Array:
    """(M, M) errors of the jumps from i to j > i, mean over samples of norms of a whole sample; 0 elsewhere.

    Args:
        metric: ``"l2"``, distance to the trajectory. ``"dev"``, by how much more than the trajectory at j the jump is
            off the chord between the trajectory's ends.

    Raises:
        ValueError: ``"dev"`` on trajectories that are straight, as all are in one dimension.
    """
    choose("metric", metric, METRICS)
    y, slopes, rho = bank.scaled, bank.slopes, bank.rho
    chord = y[-1] - y[0]
    length = np.linalg.norm(chord, axis=-1, keepdims=True)
    unit = chord / np.where(length > 0, length, 1.0)

    def off_chord(states: Array) -> Array:
        """Distance from the chord, mean over samples."""
        away = states - y[0]
        across = away - np.sum(away * unit, axis=-1, keepdims=True) * unit
        return np.mean(np.linalg.norm(across, axis=-1), axis=-1)

    own = off_chord(y)
    if metric == "dev" and own.max() <= _ROUNDING * float(length.mean()):
        raise ValueError("metric='dev', but the trajectories are straight lines; allowed: metric='l2'")
    costs = np.zeros((rho.size, rho.size))
    for i in range(rho.size - 1):
        reached = y[i] + (rho[i + 1 :, None, None] - rho[i]) * slopes[i]
        error = np.mean(np.linalg.norm(reached - y[i + 1 :], axis=-1), axis=-1)
        costs[i, i + 1 :] = error if metric == "l2" else off_chord(reached) - own[i + 1 :]
    return costs


def gits(bank: Bank, steps: int, gamma: float = 1.15, metric: str = "dev") -> Array:
    """(steps + 1,) indices of the bank's times. Makes no call."""
    positive(gamma=gamma)
    return cheapest_path(jump_costs(bank, metric), steps, gamma)


def oss(bank: Bank, model: Model, steps: int) -> Array:
    """(steps + 1,) indices of the bank's times. Makes Σ_{k=1}^{steps−1} (M − 1 − k) calls, (M − 2) at 2 steps.

    Errors are mean squares over the whole batch, one grid for all samples.
    """
    first, count = bank.states[0], bank.times.size
    call, parents = backend.guarded(model, first, None, True), []
    centre = backend.Centre(bank.process.mean, first)
    alpha = bank.process.alpha(bank.times)
    states: dict[int, Any] = {0: centre.off(first) / float(alpha[0])}
    slopes: dict[int, Any] = {0: bank.eps[0]}
    with without_graph(first):
        for k in range(1, steps + 1):
            last = k == steps
            targets = [count - 1] if last else range(k, count - 1)
            parent = {j: _best_origin(bank, states, slopes, j) for j in targets}
            states = {j: _jump(bank, states, slopes, i, j) for j, i in parent.items()}
            if not last:
                times = bank.times.tolist()
                slopes = {j: call(centre.on(float(alpha[j]) * y), times[j]) for j, y in states.items()}
            parents.append(parent)
        call.finish()
    path = [count - 1]
    for parent in reversed(parents):
        path.append(parent[path[-1]])
    return np.array(path[::-1])


def _jump(bank: Bank, states: dict[int, Any], slopes: dict[int, Any], i: int, j: int) -> Any:
    return states[i] + float(bank.rho[j] - bank.rho[i]) * slopes[i]


def _best_origin(bank: Bank, states: dict[int, Any], slopes: dict[int, Any], j: int) -> int:
    """The time before j from whose state a jump comes nearest to the trajectory at j."""
    origins = [i for i in states if i < j]
    errors = [float(np.mean((backend.flat(_jump(bank, states, slopes, i, j)) - bank.scaled[j]) ** 2)) for i in origins]
    return origins[int(np.argmin(errors))]
