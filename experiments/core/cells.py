"""One sweep for all: registry samplers × grids × numbers of model calls on one study, to where each sample ends.

A cell is a sampler on a grid. Without more ado cells run here, one after the other. Under an `Engine` (``--executor``,
``--shard``) their units, blocks of samples, run anywhere and are kept: see `experiments.core.units`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Progress
from experiments.core import units
from experiments.models.problems import steps_for
from experiments.models.studies import Study

Rows = list[dict[str, Any]]
Grids = Iterable[str] | Callable[[str, int], Iterable[str]]
Judge = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A registry sampler on a grid.

    Attributes:
        calls: how many model calls were allowed. steps, nfe: those that fit, in whole blocks, and what they cost.
        times: (steps + 1,) the grid.
    """

    solver: str
    grid: str
    calls: int
    steps: int
    nfe: int
    times: tuple[float, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of a frame says of the cell."""
        return {"solver": self.solver, "grid": self.grid, "calls": self.calls, "steps": self.steps, "nfe": self.nfe}


def plan(
    study: Study,
    solvers: Iterable[str],
    grids: Grids,
    calls: Iterable[int],
    *,
    span: tuple[float, float] | None = None,
    steps: Callable[[str, int], int] = steps_for,
) -> list[Cell]:
    """The cells, solver by solver, by calls and then by grid; those in which no step fits are left out.

    Args:
        grids: for all, or (solver, calls) → those of a cell; a grid that comes twice is taken once.
        span: (t_start, t_end), by default that of the study. steps: (solver, calls) → steps, 0 where none fits.
    """
    config, numbers, found = dict(study.config), list(calls), []
    start, end = (config["t_start"], config["t_end"]) if span is None else span
    for solver in solvers:
        for count in numbers:
            n = steps(solver, count)
            for kind in dict.fromkeys(grids(solver, count) if callable(grids) else grids) if n else ():
                ts = da.grid(study.process, n, kind, start, end)
                nfe = da.build(solver, study.process, ts).nfe
                found.append(Cell(solver, kind, count, n, nfe, tuple(map(float, ts))))
    return found


def reaching(solver: str, calls: int) -> int:
    """Steps of a registry solver that reach ``calls``, in blocks of its stages: a block may go beyond."""
    return -(-calls // da.SOLVERS[solver].stages)


def runs(study: Study, cells: list[Cell], progress: Progress | None = None) -> Iterator[tuple[Cell, Any]]:
    """(cell, (n, d) where its samples end), in the order of ``cells``; ``progress`` takes the share that is there.

    Raises:
        units.Incomplete: this process runs a share of the units, and others are not there yet.
    """
    report = progress or (lambda share: None)
    engine = units.current()
    if engine is not None:
        yield from zip(cells, engine.ends(study, [(c.solver, c.times) for c in cells], report), strict=True)
        return
    for done, cell in enumerate(cells, 1):
        ts = np.array(cell.times)
        yield cell, study.solve(cell.solver, ts, units.noises(study, 0, len(study.x_T)))
        report(done / len(cells))


def sweep(
    study: Study,
    solvers: Iterable[str],
    grids: Grids,
    calls: Iterable[int],
    judge: Judge,
    *,
    progress: Progress | None = None,
    **limits: Any,
) -> Rows:
    """The long frame: a row per cell, with ``solver, grid, calls, steps, nfe`` and what ``judge`` says of its ends.

    Args:
        judge: (n, d) end states → columns. solvers, grids, calls, limits: see `plan`.
    """
    cells = plan(study, solvers, grids, calls, **limits)
    return [{**cell.columns, **judge(x)} for cell, x in runs(study, cells, progress)]


def customary(
    study: Study, solvers: dict[str, str], others: Iterable[str], config: Config, judge: Judge, **limits: Any
) -> Rows:
    """`sweep` on each solver's customary grid at ``config["calls"]``; at ``config["ranked_at"]`` on others, too.

    Args:
        solvers: solver → its customary grid; the column ``customary`` says whether a row is on it.
    """

    def grids(solver: str, calls: int) -> list[str]:
        return [solvers[solver], *(others if calls in config["ranked_at"] else ())]

    rows = sweep(study, solvers, grids, config["calls"], judge, **limits)
    return [{"part": "error", "customary": row["grid"] == solvers[row["solver"]], **row} for row in rows]


def squares_to(truth: Any) -> Callable[[Any], dict[str, Array]]:
    """A judge: ``squares``, (n,) mean square over coordinates of the distance to ``truth`` (n, d)."""
    return lambda x: {"squares": np.asarray(((x - truth) ** 2).mean(dim=1).cpu())}


def part_of(progress: Progress, done: int, of: int) -> Progress:
    """The progress of one of several equal parts, ``done`` of which are over."""
    return lambda share: progress((done + share) / of)


CUSTOMARY = {  # a sampler of each family with its customary grid, for experiments that have no list of their own
    "ddim": "rho7", "tab3": "t2", "rhoab3": "rho7", "dpmpp_2m": "logrho", "unipc3_bh2_x0": "logrho",
    "edm_heun": "rho7",
}  # fmt: skip


def each_on(grids: dict[str, str]) -> Callable[[str, int], list[str]]:
    """The grids of a `plan` in which each solver has one of its own, at all numbers of calls."""
    return lambda solver, calls: [grids[solver]]
