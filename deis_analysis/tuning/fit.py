"""Least squares on end states: Levenberg–Marquardt with differences, over tables that share what they ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.analysis.measurement import exact_transfer, transfer
from deis_analysis.process.process import Array
from deis_analysis.tuning.judged import Clouds
from deis_analysis.tuning.parameters import Point, Space
from deis_analysis.tuning.target import Target
from deis_analysis.tuning.together import run_together

_STEP = 2e-3  # of the differences, in the units of `Space`: above float32 rounding, below curvature
_ENOUGH = 0.995  # a round that leaves more than so much of the error is the last
_TRIES = 6  # dampings of one round
OBJECTIVES = "rms", "l1", "energy"
Features = Callable[[Any], Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Goal:
    """What is made small: the difference of the end states from the references, as the objective weighs it.

    Attributes:
        x, truth: (B, …) noise and the ground truth. features: (B, …) states → (B, m), None for the states themselves.
        objective: ``"rms"``, ``"l1"``, the mean absolute difference, or ``"energy"``, the energy distance of the sets
            (see `Clouds`). stability: weight of the difference of the table's transfer from the exact one, over
            ``variances``; it takes no model calls.
    """

    target: Target
    x: Any
    truth: Any
    features: Features | None = None
    objective: str = "rms"
    stability: float = 0.0
    variances: Array = field(default_factory=lambda: np.geomspace(1e-3, 1.0, 13))

    def first(self, count: int) -> Goal:
        """The same on the first ``count`` samples."""
        return Goal(
            self.target,
            self.x[:count],
            self.truth[:count],
            self.features,
            self.objective,
            self.stability,
            self.variances,
        )

    def residuals(self, tables: list[Any], asked: Callable[[int], None]) -> list[Array]:
        """(B · m,) of each table."""
        ends = run_together(tables, self.target.model, self.x, asked=asked)
        seen = self.features or (lambda x: x)
        true = backend.flat(seen(self.truth))
        return [
            self._with_stability((backend.flat(seen(end)) - true).ravel(), t)
            for end, t in zip(ends, tables, strict=True)
        ]

    def _with_stability(self, gap: Array, table: Any) -> Array:
        if not self.stability:
            return gap
        process = self.target.process
        exact = exact_transfer(process, self.variances, self.target.t_start, self.target.t_end)
        off = transfer(table, process, self.variances) - exact
        return np.append(gap, self.stability * np.sqrt(gap.size / off.size) * off)

    @cached_property
    def clouds(self) -> Clouds:
        """The references as a set."""
        return Clouds((self.features or (lambda x: x))(self.truth))

    def _ends(self, residual: Array) -> tuple[Array, Array]:
        """((B, m) end states, what stability added to the residual)."""
        true = self.clouds.truth
        return residual[: true.size].reshape(true.shape) + true, residual[true.size :]

    def loss(self, residual: Array) -> float:
        """What is made small, in the unit of the state."""
        if not np.all(np.isfinite(residual)):
            return float("inf")
        if self.objective == "energy":
            ends, more = self._ends(residual)
            return self.clouds.squared(ends) + float(np.sum(np.square(more)) / residual.size)
        with np.errstate(over="ignore"):
            value = np.mean(np.abs(residual)) if self.objective == "l1" else np.sqrt(np.mean(np.square(residual)))
        return float(value) if np.isfinite(value) else float("inf")

    def pull(self, residual: Array) -> tuple[Array, Array]:
        """(slope by each entry, weight of its square) of the least squares that leads to the objective."""
        if self.objective == "rms":
            return residual, np.ones_like(residual)
        if self.objective == "energy":
            ends, more = self._ends(residual)
            slope, curvature = self.clouds.slope(ends)
            weights = np.repeat(curvature, ends.shape[1])
            return np.append(slope.ravel(), more), np.append(weights, np.ones_like(more))
        weights = 1.0 / (np.abs(residual) + 1e-3 * np.mean(np.abs(residual)) + 1e-300)
        return weights * residual, weights


@dataclass
class State:
    """How far the search has come: all that is needed to go on."""

    point: Point
    damping: float = 1e-2
    round: int = 0
    best: Point | None = None
    best_loss: float = float("inf")
    losses: list[float] = field(default_factory=list)  # on the samples that judge, the start's first
    done: bool = False


def search(
    space: Space,
    goal: Goal,
    judge: Goal,
    state: State,
    *,
    rounds: int,
    until: float,
    kept: Callable[[State], None],
    progress: Progress,
) -> State:
    """Rounds of Levenberg–Marquardt, on a quarter, a half, then all of the samples; the best round on ``judge`` counts.

    Args:
        goal: the training samples. judge: others, on which rounds are compared. rounds: at most so many.
        until: of `time.monotonic`, when no new round begins. kept: called after each round, to save the state.

    Source: Levenberg 1944, Marquardt 1963; the Jacobian by differences of tables that share their first rows.
    """
    asked = [0]

    def count(samples: int) -> None:
        asked[0] += samples
        progress(f"round {state.round + 1} of at most {rounds}", asked[0], 0)

    if not state.losses:
        (at_start,) = judge.residuals([space.table(state.point)], count)
        state.best, state.best_loss = state.point, judge.loss(at_start)
        state.losses.append(state.best_loss)
    longest = 0.0
    while state.round < rounds and not state.done and time.monotonic() + longest < until:
        begin = time.monotonic()
        size = len(goal.x)
        share = (4, 4, 2)[state.round] if state.round < 3 else 1
        part = goal.first(max(min(size, 32), size // share))
        if goal.objective == "energy" and state.round < rounds // 2:  # sets that are far apart are moved pair by pair
            part = replace(part, objective="rms")
        better = _round(space, part, state, count)
        (found,) = judge.residuals([space.table(state.point)], count)
        state.losses.append(judge.loss(found))
        if state.losses[-1] < state.best_loss:
            state.best, state.best_loss = state.point, state.losses[-1]
        state.round += 1
        state.done = share == 1 and better > _ENOUGH and part.objective == goal.objective
        kept(state)
        longest = max(longest, time.monotonic() - begin)
    return state


def _round(space: Space, goal: Goal, state: State, count: Callable[[int], None]) -> float:
    """One step; returns the loss after it relative to the one before."""
    moved = list(space.perturbed(state.point, _STEP))
    points = [state.point, *(point for point, _ in moved)]
    found = goal.residuals([space.table(point) for point in points], count)
    residual = found[0]
    before, (pull, weights) = goal.loss(residual), goal.pull(residual)
    jacobian = np.stack([(r - residual) / h for r, (_, h) in zip(found[1:], moved, strict=True)], axis=1)
    jacobian = np.where(np.isfinite(jacobian), jacobian, 0.0)
    square, slope = jacobian.T @ (weights[:, None] * jacobian), jacobian.T @ pull
    scale = np.diag(square) + 1e-9 * np.trace(square) / len(square)
    for _ in range(_TRIES):
        try:
            point = space.moved(state.point, -np.linalg.solve(square + state.damping * np.diag(scale), slope))
            after = goal.loss(goal.residuals([space.table(point)], count)[0])
        except (ValueError, np.linalg.LinAlgError):  # times that meet, or a table that blows up
            after = float("inf")
        if after < before:
            state.point, state.damping = point, max(state.damping / 10.0, 1e-9)
            return after / before
        state.damping *= 4.0
    return 1.0
