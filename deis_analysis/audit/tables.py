r"""What an extracted, state-free table says: its steps, the noise levels it uses, its errors with exact history.

A state-free row holds the whole history, u_k = a_k u_0 + Σ F_kj p_j.  A sampler that steps from state to state has rows
of which the old part is a multiple of an earlier row; taking that multiple off shows the step.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis.analysis.exactness import step_moments
from deis_analysis.process.process import Array, Process
from deis_analysis.tableau import Model, Tableau, fold
from deis_analysis.tableau.rows import Row

_REACH = 12  # calls back to where a step may start
_ZERO = 1e-9  # relative size below which a coefficient read off a sampler counts as zero


def up_to(table: Tableau, k: int) -> Tableau:
    """The table up to node ``k``."""
    states, outputs = (m[: k + 1, : k + 1] for m in table.matrices[:2])
    noise = table.matrices.noise[: k + 1]
    used = np.unique(noise.indices)
    parts = {"states": states, "outputs": outputs, "noise": noise[:, used], "intervals": table.intervals[used]}
    return table.changed(times=table.times[: k + 1], labels=(), grid_nodes=(), **parts)


@dataclass(frozen=True)
class Steps:
    """A state-free table written as steps.

    Attributes:
        table: the same sampler; row k starts from the state of node ``before[k]``. Its grid nodes are the chain of
            states that leads to the result.
        before: (K + 1,) the node that each row starts from, −1 for the first.
    """

    table: Tableau
    before: tuple[int, ...]

    @property
    def chain(self) -> tuple[int, ...]:
        """The grid nodes."""
        return self.table.grid_nodes


def state_free(table: Tableau, process: Process, prediction: str) -> Tableau:
    """A state-free table in terms of another prediction, state-free again.

    Raises:
        ValueError: a told time at which the conversion is singular.
    """
    if prediction == table.prediction:
        return table
    other = table.in_terms_of(process, prediction)
    count = table.times.size
    rows, of_states = np.hstack([np.zeros((count, 1)), other.outputs, other.noise]), other.states
    rows[0, 0] = 1.0  # coefficients of x_T, outputs, noises
    for k in range(1, count):
        rows[k] += of_states[k, :k] @ rows[:k]
    states = np.zeros((count, count))
    states[1:, 0] = rows[1:, 0]
    return other.changed(states=states, outputs=rows[:, 1 : 1 + count], noise=rows[:, 1 + count :])


def sparsest_steps(table: Tableau, process: Process, floor: float = _ZERO) -> Steps:
    """The steps in ε, in x₀ or as read, whichever has the fewest terms: rules in x₀ are dense in ε, and conversely."""
    return _fewest([rule.steps() for rule in _rules(table, process, floor).values()])


def trunk(table: Tableau, process: Process, floor: float = _ZERO) -> Steps:
    """`sparsest_steps` but for the last one, as these alone would be written; all if there are fewer than two."""
    rules = _rules(table, process, floor)
    whole = _fewest([rule.steps() for rule in rules.values()])
    if len(whole.chain) < 3:
        return whole
    end = whole.chain[-2]
    if len(rules) < len(_forms_of(table)):  # the last call has no other form: the others may
        return sparsest_steps(up_to(table, end), process, floor)
    return _fewest([rule.steps(end) for rule in rules.values()])


def _forms_of(table: Tableau) -> list[str]:
    return list(dict.fromkeys((table.prediction, "eps", "x0")))


def _rules(table: Tableau, process: Process, floor: float) -> dict[str, _Rules]:
    """Of the predictions to which the table can be converted."""
    found = {}
    for prediction in _forms_of(table):
        with suppress(ValueError):
            found[prediction] = _as_rules(state_free(table, process, prediction), floor)
    return found


def _fewest(found: list[Steps]) -> Steps:
    return min(found, key=lambda steps: int(steps.table.matrices.outputs.nnz))


def as_steps(table: Tableau, floor: float = _ZERO) -> Steps:
    """Find, for every row, the earlier state of which it is the fewest terms away.

    Args:
        floor: relative size below which coefficients are rounding (1e-5 for samplers that work in float32).
    """
    return _as_rules(table, floor).steps()


@dataclass(frozen=True)
class _Rules:
    """What `as_steps` finds, row by row: each depends on earlier rows alone.

    Attributes:
        before: as of `Steps`, up to the first row that starts from no earlier state, if there is one.
    """

    table: Tableau
    states: Array
    outputs: Array
    noise: Array
    before: tuple[int, ...]

    def steps(self, end: int | None = None) -> Steps:
        """Up to the node ``end``, all of them by default."""
        whole = end is None
        end = self.table.times.size - 1 if end is None else end
        table = self.table if whole else up_to(self.table, end)
        if len(self.before) <= end:
            return Steps(table, (-1, *range(end)))
        chain = [end]
        while chain[-1] > 0:
            chain.append(self.before[chain[-1]])
        n = end + 1
        parts = {"states": self.states[:n, :n], "outputs": self.outputs[:n, :n], "noise": self.noise[:n]}
        if not whole:
            parts["noise"] = parts["noise"][:, np.unique(self.table.matrices.noise[:n].indices)]
        new = table.changed(**parts, grid_nodes=tuple(chain[::-1]), labels=())
        return Steps(new, self.before[:n])


def _as_rules(table: Tableau, floor: float) -> _Rules:
    count = table.times.size
    start, dense, given = table.states[:, 0].copy(), table.outputs, table.noise
    start[0] = 1.0
    states, outputs, before = np.zeros((count, count)), np.zeros((count, count)), [-1]
    noise, largest = np.zeros_like(given), np.abs(dense).max(axis=1)
    for k in range(1, count):
        scale = max(largest[k], _ZERO)
        nodes = np.arange(k - 1, max(k - 1 - _REACH, -1), -1)
        nodes = nodes[start[nodes] != 0]
        if nodes.size == 0:
            break
        rows = dense[:, :k]  # the others are zero
        ratios = (start[k] / start[nodes])[:, None]
        rests, noises = rows[k] - ratios * rows[nodes], given[k] - ratios * given[nodes]
        sizes = scale + np.abs(ratios) * largest[nodes, None]
        rests = np.where(np.abs(rests) > floor * sizes, rests, 0.0)
        terms = np.count_nonzero(rests, axis=1)
        terms += np.count_nonzero(np.abs(noises) > floor * np.maximum(1.0, np.abs(ratios)), axis=1)
        keys = 4 * terms + _forms(table.times, rests, k, nodes)
        best = int(np.flatnonzero(keys == keys.min())[-1])  # of equals the earliest node
        j, ratio, rest, noisy = int(nodes[best]), ratios[best, 0], rests[best], noises[best]
        states[k, j], outputs[k, :k], noise[k] = ratio, rest, noisy
        before.append(j)
    return _Rules(table, states, outputs, noise, tuple(before))


def _forms(times: Array, rests: Array, k: int, nodes: Array) -> Array:
    """(J,) how natural it is that node k starts from each of ``nodes`` (J,) with the terms ``rests`` (J, n): 0, with
    later outputs only, a Runge–Kutta method; 1, with earlier ones only, a multistep method; 2, mixed; 3, from a state
    at the same time."""
    used, column = rests != 0, np.arange(rests.shape[1])
    earlier = np.any(used & (column < nodes[:, None]), axis=1)
    later = np.any(used & (column > nodes[:, None]), axis=1)
    again = (times[nodes] == times[k]) & np.any(used, axis=1)
    return np.where(again, 3, np.where(~earlier, 0, np.where(~later, 1, 2)))


def implied_scales(table: Tableau, process: Process, start: float | None = None) -> tuple[Array, Array]:
    """(α, σ) that each node's state really has: (K + 1,) each.

    Without noise: x₀ and ε are constant along the path, p = p_α x₀ + p_σ ε; a state a u₀ + Σ F p is α x₀ + σ ε with
    α = a α₀ + Σ F p_α and σ = a σ₀ + Σ F p_σ.  For a model of ε or x₀ this does not use the told times: it is the level
    that the sampler believes in.  With noise: the data are a point, x₀ is constant, and the variance adds up.
    Samplers that are exact on constants have the process's scales here, at the level that their steps aim at.

    Args:
        start: process time of x_T; by default what the first call is told.
    """
    if table.stochastic and table.prediction != "x0":
        table = table.in_terms_of(process, "x0")
    form, calls = table.butcher(), table.evaluated
    on_x0, on_eps = process.prediction_parts(table.prediction, form.times)
    first = float(table.times[0]) if start is None else start
    alpha = form.start * float(process.alpha(first)) + form.weights @ on_x0
    sigma = form.start * float(process.sigma(first)) + form.weights @ on_eps
    sigma = np.hypot(sigma, np.sqrt(np.sum(form.noise**2, axis=1))) if table.stochastic else sigma
    index = [*calls, table.times.size - 1]
    full = np.full((2, table.times.size), np.nan)  # nodes whose output is not used keep what they were told
    full[:, index] = alpha, sigma
    for k in np.flatnonzero(np.isnan(full[0])):
        full[:, k] = float(process.alpha(table.times[k])), float(process.sigma(table.times[k]))
    return full[0], full[1]


def exact_nodes(steps: Steps, start: int) -> set[int]:
    """The nodes at which `run_errors` is given exact states."""
    states, outputs = _used(steps.table.plan[start + 1 :], start)
    return states | outputs | {steps.table.times.size - 1}


def _used(rows: list[Row], start: int) -> tuple[set[int], set[int]]:
    """The nodes up to ``start`` of which ``rows`` use the state, and the output."""
    states = {j for row in rows for _, j in row.states if j <= start}
    return states, {j for row in rows for _, j in row.outputs if j <= start}


def run_errors(steps: Steps, model: Model, exact: dict[int, Any], start: int = 0) -> Any:
    """The result minus the exact one, on the state path; the nodes up to ``start`` hold exact states.

    Args:
        exact: exact state at the nodes up to ``start`` that later rows use, and at the last node.
    """
    table = steps.table
    rows, times = table.plan[start + 1 :], table.times.tolist()
    of_states, of_outputs = _used(rows, start)
    states = {j: exact[j] for j in of_states}
    outputs = {j: model(exact[j], times[j]) for j in of_outputs}
    last = table.times.size - 1
    result = fold(rows, states, lambda k, u: model(u, times[k]), outputs=outputs, zero=0.0 * exact[last])
    return result - exact[last]


def moment_ratios(
    steps: Steps, process: Process, prediction: str, variable: str, powers: int = 4, lam_sde: float = 0.0
) -> dict[int, list[float]]:
    """Per grid step, what it makes of z^m over the exact integral, m = 0 …: 1 where exact, ½ for half a weight.

    Of a rule with noise it is what the mean makes, over the integral of the SDE of the λ-family, ``lam_sde``.
    """
    table = steps.table if steps.table.prediction == prediction else steps.table.in_terms_of(process, prediction)
    found = {}
    for first, last in pairwise(steps.chain):
        with np.errstate(all="ignore"):  # a step of length zero has no moments
            moments = step_moments(table, process, prediction, variable, first, last, range(powers), lam_sde)
        found[last] = [value / exact if exact else float("nan") for value, exact, _ in moments]
    return found
