"""A bank of trajectories: many samples of one model on a fine grid, run once by a good table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.convention import Model, predicting, type_of
from deis_analysis.process.grids import check_grid
from deis_analysis.process.grids import grid as time_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.registry import Solver, builder_of
from deis_analysis.tableau import Builder, run
from deis_analysis.validate import checked, positive_int


@dataclass(frozen=True, eq=False)
class Bank:
    """Trajectories of one model.

    Attributes:
        process: the model's. times: (M,) descending, M ≥ 2.
        states: M arrays (B, …), as the model sees them. eps: M arrays (B, …), the model's output there, as ε.
        calls: model calls that made it, each of the whole batch.

    Raises:
        ValueError: times that do not descend, ρ that is infinite at one, other than one state and output per time.
    """

    process: Process
    times: Array
    states: tuple[Any, ...]
    eps: tuple[Any, ...]
    calls: int

    def __post_init__(self) -> None:
        times = check_grid(self.process, self.times)
        finite_level(self.process, float(times[0]))
        times.setflags(write=False)
        object.__setattr__(self, "times", times)
        for name in ("states", "eps"):
            arrays = tuple(getattr(self, name))
            if len(arrays) != times.size or any(a.shape != self.states[0].shape for a in arrays):
                raise ValueError(f"{name} holds {len(arrays)} arrays; allowed: {times.size} of one shape, one per time")
            object.__setattr__(self, name, arrays)

    def __repr__(self) -> str:
        shape = tuple(self.states[0].shape)
        return f"<Bank of {self.times.size} times, states {shape}, {self.calls} calls, {self.process!r}>"

    def remembered(self, what: tuple[Any, ...], make: Callable[[], Array]) -> Array:
        """What ``make`` gives, made once for equal ``what``: what was measured of the model, for several grids."""
        known: dict[Any, Array] = self.__dict__.setdefault("_known", {})
        if what not in known:
            known[what] = make()
        return known[what]

    @cached_property
    def rho(self) -> Array:
        """(M,) levels σ/α, descending."""
        return np.array(self.process.rho(self.times))

    @cached_property
    def scaled(self) -> Array:
        """(M, B, d) y = (x − μ)/α in float64, which obeys dy = ε dρ; μ the process's mean or 0."""
        centre = backend.Centre(self.process.mean, self.states[0])
        alpha = self.process.alpha(self.times)
        return np.stack([backend.flat(centre.off(x)) / a for x, a in zip(self.states, alpha, strict=True)])

    @cached_property
    def slopes(self) -> Array:
        """(M, B, d) ε in float64: dy/dρ."""
        return np.stack([backend.flat(e) for e in self.eps])


@checked
def trajectories(
    model: Any,
    x: Any,
    *,
    points: int = 60,
    kind: str = "rho7",
    t_start: float | None = None,
    t_end: float | None = None,
    teacher: str | Solver | Builder = "tab3",
) -> Bank:
    """Run a good table at many points and keep all states and outputs.

    Args:
        model: a model that says what it is (`deis_analysis.Model`), of any prediction.
        x: (B, …) states at t_start, NumPy or torch, of floating dtype; outputs are kept without gradient graph.
        points: M ≥ 3 times. kind, t_start, t_end: of their grid, see `deis_analysis.grid`.
        teacher: a deterministic sampler: registry name, row or function (process, ts) → `Tableau`.

    Returns:
        the bank; its ``calls`` are the teacher's, and one for each time at which the teacher makes none, such as the
        last: ``points`` for one of one call per step.

    Raises:
        ValueError: a bare function; x without samples; a teacher with noise, or without a state at every time; ρ
            infinite at t_start; a model output that is NaN or infinite (names its t).
    """
    model, x = eps_model(model), batch(x)
    process, count = model.process, positive_int("points", points, 3)
    times = time_grid(process, count - 1, kind, t_start, t_end)
    finite_level(process, float(times[0]))
    table = builder_of(teacher, "teacher")(process, times)
    nodes = table.grid_nodes
    if table.stochastic or len(nodes) != count:
        raise ValueError(
            f"teacher={teacher!r} draws noise or skips times; allowed: deterministic, a state at each time"
        )
    with without_graph(x):
        _, kept = run(table, model, x, keep=nodes)
        call, eps = backend.guarded(model, x, None, True), []
        for k, t in zip(nodes, times.tolist(), strict=True):
            told = k in kept.outputs and table.times[k] == t
            eps.append(kept.outputs[k] if told else call(kept.states[k], t))
        call.finish()
    states = tuple(backend.detached(kept.states[k]) for k in nodes)
    return Bank(process, times, states, tuple(backend.detached(e) for e in eps), table.nfe + call.calls)


def eps_model(model: Any) -> Model:
    """A typed model as one that predicts ε; ValueError for a bare function."""
    known = type_of(model)
    if known is None:
        raise ValueError(
            f"model={model!r} does not say what it is; allowed: deis_analysis.Model(function, process, prediction)"
        )
    return Model(predicting(model, known[0], "eps"), known[0], "eps")


def batch(x: Any) -> Any:
    """``x`` itself; ValueError unless it is (B, …) of floating dtype, finite, B ≥ 1 and no axis empty."""
    x = backend.floating("x", x)
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, …), B >= 1, no empty axis")
    return x


def finite_level(process: Process, t: float) -> None:
    """ValueError unless ρ is finite at ``t``."""
    if not np.isfinite(process.rho(t)):
        raise ValueError(
            f"t_start={t!r}: ρ is infinite there on {process!r}; start later, e.g. at {process.sampling_range[0]:g}"
        )


def without_graph(x: Any) -> AbstractContextManager[Any]:
    """Where torch computes without keeping gradient graphs; nothing for other libraries."""
    return sys.modules["torch"].no_grad() if backend.is_torch(x) else nullcontext()
