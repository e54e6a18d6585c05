"""The second protocol: samplers whose numbers are not known before they run.

A table is fixed before sampling.  A `Stepper` is not: it decides from what it sees (an error estimate, a norm of the
score) which numbers to use, and therefore no order is claimed for it.  But each number once decided multiplies states,
model outputs and noises like any other.  So a stepper does its arithmetic through a `History`, which writes it on a
tape; and after the run the tape, without what was rejected, *is* a table: `Simulation.tableau`, which `run` reruns and
analysis reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from deis_analysis import backend
from deis_analysis.process.convention import predicting
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.steppers.history import History, Traced
from deis_analysis.tableau import Model, Tableau
from deis_analysis.validate import checked, choose


class Stepper(Protocol):
    """A sampler that decides as it goes. Holds options only; what it learns in a run lives in the `History`."""

    @property
    def name(self) -> str:
        """How to call it."""

    @property
    def process(self) -> Process:
        """The forward process."""

    @property
    def prediction(self) -> str:
        """What the model predicts."""

    @property
    def t_start(self) -> float:
        """The time of x_T."""

    @property
    def depth(self) -> int:
        """How many evaluated states and outputs it looks back on."""

    def step(self, x: Traced, history: History) -> Traced:
        """The next accepted state."""

    def done(self, x: Traced, history: History) -> bool:
        """Whether ``x`` is the result."""


@dataclass(frozen=True)
class StepperRow:
    """A row of ``STEPPERS``. No order: where numbers depend on the data there is none to claim.

    Attributes:
        build: (process, ts) → `Stepper`, ts a descending grid (the adaptive ones use its ends only).
        prediction: what the model of the built stepper predicts.
        source: paper and equation. description: one sentence.
        linear: whether a run is linear in x_T, outputs and noises once its scalars are known.
    """

    name: str
    build: Callable[[Process, Array], Stepper]
    prediction: str
    source: str
    description: str
    linear: bool

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, PREDICTIONS)


STEPPERS: dict[str, StepperRow] = {}


@checked
def register_stepper(row: StepperRow) -> StepperRow:
    """Add a row to ``STEPPERS``; ValueError if the name is taken."""
    if row.name in STEPPERS:
        raise ValueError(f"name={row.name!r} is already registered, by {STEPPERS[row.name].source}")
    STEPPERS[row.name] = row
    return row


@dataclass(frozen=True, eq=False)
class Simulation:
    """One run of a stepper.

    Attributes:
        x: the result, the kind and shape of what was started from.
        nfe: model calls, those of rejected steps included.
        times: (accepted + 1,) times of the accepted states.
        accepted, rejected: numbers of steps.
        name: the stepper's.
    """

    x: Any
    nfe: int
    times: Array
    accepted: int
    rejected: int
    name: str
    _history: History = field(repr=False)
    _nodes: tuple[int, ...] = field(repr=False)

    @cached_property
    def tableau(self) -> Tableau | None:
        """The table that was run: only what entered the result, so ``tableau.nfe`` ≤ ``nfe``.

        None where a state was not a combination of earlier ones, or the numbers differ between samples (`tableaux`).
        Noise columns are numbered as drawn: ``run(tableau, model, x, noise)`` with the same noise gives ``x`` again.
        """
        last = self._nodes[-1]
        if self._history.opaque(last) or self._history.varies(last):
            return None
        return self._history.tableau(last, self._nodes, self.name)

    def tableaux(self) -> tuple[Tableau, ...]:
        """A table per sample, for `run_many`; ValueError where the run was not linear, or channels differ."""
        last = self._nodes[-1]
        if self._history.opaque(last):
            raise ValueError(f"{self.name} placed a state that is no combination of others: it has no table")
        return tuple(self._history.tableau(last, self._nodes, self.name, i) for i in range(self.x.shape[0]))


@checked
def simulate(
    stepper: Stepper, model: Model, x: Any, noise: Any = None, *, model_dtype: Any = None, check: bool = True
) -> Simulation:
    """Run a stepper from ``x`` at its ``t_start`` until it is done.

    Args:
        stepper: such as ``STEPPERS["dpm_adaptive_23"].build(process, ts)``.
        model: ``model(x, t)`` with ``t`` a float in process time; one that says what it predicts is converted to
            ``stepper.prediction``, a bare function predicts that.
        x: (n, …) the start, floating dtype, NumPy or torch.
        noise: for stochastic steppers: an integer seed or a `BrownianPath`, a function ``noise(l)`` of the number of
            the draw (the fast choice), or a sequence of arrays; each the shape of ``x``, standard normal.
        model_dtype: dtype in which the model sees ``x``. check: refuse model outputs that are not finite.

    Raises:
        ValueError: ``x`` not floating and finite, no noise where it is drawn, a model output of another shape or not
            finite, and whatever the stepper refuses.

    Source: the interface is this package's own; each stepper names its paper.
    """
    process = require_process(stepper.process)
    choose("prediction", stepper.prediction, PREDICTIONS)
    start = backend.floating("x", x)
    if start.ndim == 0 or 0 in start.shape:
        raise ValueError(f"x has shape {tuple(start.shape)}; allowed: one dimension or more, the first counts samples")
    history = History(
        predicting(model, process, stepper.prediction),
        start,
        noise,
        process,
        stepper.t_start,
        depth=stepper.depth,
        prediction=stepper.prediction,
        model_dtype=model_dtype,
        check=check,
    )
    state = history.start
    nodes, times = [state.index], [state.time]
    while not stepper.done(state, history):
        state = stepper.step(state, history)
        history.accepted += 1
        nodes.append(state.index)
        times.append(state.time)
    history.finish()
    return Simulation(
        history.centre.on(state.value),
        history.nfe,
        np.array(times),
        history.accepted,
        history.rejected,
        stepper.name,
        history,
        tuple(nodes),
    )
