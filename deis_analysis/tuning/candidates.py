"""Which tables are there to choose from: rows of the registry on grids, each method once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array
from deis_analysis.solvers import SOLVERS, Solver
from deis_analysis.solvers.registry import named
from deis_analysis.tableau import Tableau
from deis_analysis.validate import several

CUSTOMARY = ("t1", "t1.5", "t2", "t3", "rho5", "rho7", "logrho")
PUBLISHED = (  # what packages offer under some name, and their exact versions
    "ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "ipndm2", "ipndm3", "ipndm4", "dpm_2m_taylor", "dpmpp_2m",
    "dpmpp_2m_exact", "dpmpp_3m", "dpmpp_3m_exact", "unipc2_bh2_x0", "unipc3_bh2_x0", "unipc2_bh1_x0", "dpm_2", "dpm_3",
    "dpmpp_2s", "edm_heun", "rhork_2heun", "rhork_3kutta",
)  # fmt: skip
_SAME = 10  # significant digits of Butcher forms to which two tables are one method
Times = Callable[[int, str], Array]


@dataclass(frozen=True)
class Cell:
    """A sampler on a grid: its names and its table, which makes exactly ``nfe`` calls."""

    solver: str
    grid: str
    nfe: int
    table: Tableau

    @property
    def label(self) -> str:
        """``tab3 on t2``."""
        return f"{self.solver} on {self.grid}"


def solver_rows(solvers: Iterable[str] | None, noisy: bool) -> dict[str, Solver]:
    """The rows of these names, all if None; without those that draw noise unless ``noisy``."""
    names = (
        list(SOLVERS) if solvers is None else [name for name in several("solvers", solvers) if named("solvers", name)]
    )
    return {name: SOLVERS[name] for name in names if noisy or not SOLVERS[name].stochastic}


def cells(
    target: Any, nfe: int, rows: dict[str, Solver], grids: Iterable[str], times: Times | None = None
) -> list[Cell]:
    """All tables of exactly ``nfe`` calls, those that are one method once, under the first of their names.

    Args:
        times: (steps, kind) → the grid, where some are model-aware.
    """
    found: dict[bytes, Cell] = {}
    for kind in grids:
        for name, row in rows.items():
            steps, left = divmod(nfe - row.extra_calls, row.stages)
            if left or steps < 1 or steps % row.block:
                continue
            try:
                ts = _times(target, steps, kind, times)
                table = row.build(target.process, ts)
            except (ValueError, ZeroDivisionError):  # too few steps for the row, or the process is none of its kind
                continue
            if table.nfe == nfe and table.mean is None:
                found.setdefault(_method(table, target), Cell(name, kind, nfe, table))
    return list(found.values())


def _times(target: Any, steps: int, kind: str, times: Times | None) -> Array:
    if times is None:
        return grid(target.process, steps, kind, target.t_start, target.t_end)
    return times(steps, kind)


def _method(table: Tableau, target: Any) -> bytes:
    """What two tables share if they are one method for the target's model, up to rounding."""
    own = table.in_terms_of(target.process, target.prediction)
    form = own.butcher()
    parts = [form.start, form.weights, form.noise, own.times[list(own.evaluated)]]
    text = [
        np.array2string(np.asarray(p), precision=_SAME, floatmode="maxprec", threshold=10**9).encode() for p in parts
    ]
    return b"|".join(text)
