"""The registry: one row per sampler, with what its author claims. Tests measure every claim and demand equality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis.grids import check_grid, grid
from deis_analysis.process import PREDICTIONS, VARIABLES, Array, Process
from deis_analysis.schedules import VPLinear
from deis_analysis.tableau import Tableau
from deis_analysis.validate import choose, instance


@dataclass(frozen=True)
class Solver:
    """A registry row. NFE, history and noise are read off the table; the rest is declared here and measured by tests.

    Attributes:
        name: registry name.
        build: (process, ts) → `Tableau`, ts a descending grid.
        family: the file's method family.
        order: global order of convergence with the method's own start; for a stochastic row the weak order, that of
            the law of the output.
        order_exact_start: global order when the first ``starting_steps`` states are exact; None for stochastic rows.
        degree: largest d such that a step after the start-up is exact whenever ``prediction`` is a polynomial of degree
            d in ``variable`` along the solution; −1 if not even constants are integrated exactly.
        prediction, variable: where ``degree`` is measured.
        stages, extra_calls: the method makes ``stages`` · N + ``extra_calls`` model calls in N steps.
        starting_steps, final_steps: steps before the method runs at its full degree, and last steps that do not.
        block: the steps of the grid are used in groups of this many; claims hold for multiples of it.
        lam_sde: λ of the λ-family of SDEs whose mean ``degree`` refers to; 0 is the probability flow.
        strong_order: order of the distance between paths driven by one Brownian path; None for deterministic rows.
        home: the process on which the claims are measured; they hold wherever the formulas are finite, except that
            ``degree`` of a method written in t holds where t is the clock of its prediction.
        source: paper and equation.
    """

    name: str
    build: Callable[[Process, Array], Tableau]
    family: str
    order: int
    order_exact_start: int | None
    degree: int
    source: str
    prediction: str = "eps"
    variable: str = "t"
    stages: int = 1
    starting_steps: int = 0
    extra_calls: int = 0
    final_steps: int = 0
    block: int = 1
    lam_sde: float = 0.0
    strong_order: float | None = None
    home: Process = field(default_factory=VPLinear)

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, PREDICTIONS)
        choose("variable", self.variable, VARIABLES)

    @cached_property
    def stochastic(self) -> bool:
        """Whether the method draws noise, read off a short table."""
        return self.build(self.home, grid(self.home, self.shortest)).stochastic

    @property
    def shortest(self) -> int:
        """The fewest steps with one at full degree and one after it, in whole blocks."""
        return -(-(self.starting_steps + self.final_steps + 2) // self.block) * self.block

    def calls(self, steps: int) -> int:
        """Model calls in ``steps`` steps."""
        return self.stages * steps + self.extra_calls


SOLVERS: dict[str, Solver] = {}


def register(row: Solver) -> Solver:
    """Add a row; ValueError if the name is taken, or ``row`` is not a `Solver`."""
    instance("row", row, Solver)
    if row.name in SOLVERS:
        raise ValueError(f"name={row.name!r} is already registered, by {SOLVERS[row.name].source}")
    SOLVERS[row.name] = row
    return row


def build(name: str, process: Process, ts: Any) -> Tableau:
    """The table of the registered sampler ``name`` for ``process`` on the descending grid ``ts`` (N + 1 times).

    Raises:
        ValueError: unknown name (with the nearest ones); a grid that is not descending, finite and in range.
    """
    return SOLVERS[choose("name", name, SOLVERS)].build(process, check_grid(process, ts))


def assemble(
    process: Process,
    times: Array,
    states: Array,
    outputs: Array,
    prediction: str,
    name: str,
    grid_nodes: tuple[int, ...] = (),
    labels: tuple[str, ...] = (),
    noise: Array | None = None,
    intervals: Array | None = None,
) -> Tableau:
    """A table for ``process``, shifted by the mean that the process reverts to."""
    bad = ~(np.isfinite(states) & np.isfinite(outputs)).all(axis=1)
    if noise is not None:
        bad |= ~np.isfinite(noise).all(axis=1)
    if bad.any():
        k = int(np.argmax(bad))
        raise ValueError(
            f"t={float(times[k - 1])!r} to {float(times[k])!r}: the step of {name} is singular there on {process!r}; "
            "allowed: times at which its coefficients are finite"
        )
    for matrix in (states, outputs) if noise is None else (states, outputs, noise):
        matrix.setflags(write=False)  # handed over, so that a long table is not copied
    return Tableau(
        times=times,
        states=states,
        outputs=outputs,
        prediction=prediction,
        name=name,
        grid_nodes=grid_nodes,
        labels=labels,
        mean=process.mean,
        noise=noise,  # type: ignore[arg-type]
        intervals=intervals,  # type: ignore[arg-type]
    )


def step_labels(grid_nodes: tuple[int, ...], count: int) -> tuple[str, ...]:
    """``u0 u0.1 u0.2 u1 …``: the number of the step, then of the stage, for ``count`` nodes."""
    step = np.searchsorted(grid_nodes, np.arange(count), side="right") - 1
    stage = np.arange(count) - np.array(grid_nodes)[step]
    return tuple(f"u{i}" if j == 0 else f"u{i}.{j}" for i, j in zip(step, stage, strict=True))
