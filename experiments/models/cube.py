"""Every exponential Adams method, prediction × variable × degree × grid: which have a name, and data to try them on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config
from experiments.models.problems import Problem, broad_mixture, digits, digits_problem, product_mixture, vp_linear

_MIXTURES = {"mixture": broad_mixture, "product": product_mixture}


@dataclass(frozen=True)
class Cell:
    """A method of the cube on a grid; of a sampler beyond it ``prediction`` is the name, and there is no variable."""

    prediction: str
    variable: str
    degree: int
    grid: str

    def __str__(self) -> str:
        """``(x0, t) 2 t1``, of another sampler ``ipndm3 t1``."""
        pair = f"({self.prediction}, {self.variable}) {self.degree}" if self.variable else self.prediction
        return f"{pair} {self.grid}"

    def table(self, process: Process, config: Config, calls: int) -> da.Tableau:
        """Its table, in terms of ε."""
        ts = da.grid(process, calls, self.grid, config["t_start"], config["t_end"])
        if not self.variable:
            return da.build(self.prediction, process, ts).in_terms_of(process, "eps")
        made = da.adams(process, ts, self.degree, prediction=self.prediction, variable=self.variable)
        return made.in_terms_of(process, "eps")

    def published(self, config: Config) -> bool:
        """Whether the literature has a name for the cell itself (see `cube` for those that are equal to one)."""
        frozen = self.degree == 0 and self.prediction in config["published_frozen"]
        return frozen or not self.variable or self.variable in config["published"].get(self.prediction, ())


def cube(config: Config, calls: int) -> dict[Cell, tuple[da.Tableau, Cell]]:
    """Every cell's and sampler's table, and the first cell with the same table, a published one if there is one."""
    axes = (config[key] for key in ("predictions", "variables", "degrees", "grids"))
    samplers = [(name, "", -1, kind) for name in config["samplers"] for kind in config["grids"]]
    cells = sorted((Cell(*place) for place in (*itertools.product(*axes), *samplers)),
                   key=lambda cell: not cell.published(config))  # fmt: skip
    found: dict[Cell, tuple[da.Tableau, Cell]] = {}
    for cell in cells:
        made = cell.table(vp_linear(config), config, calls)
        firsts = ((c, t) for c, (t, first) in found.items() if c == first and c.grid == cell.grid)
        found[cell] = (made, next((c for c, t in firsts if da.distance(t, made) < 1e-9), cell))
    return found


class Case(Problem):
    """Starts of one of the data sets with their exact answers, whose points may be plain numbers."""

    def squares(self, table: da.Tableau) -> Array:
        """(n,) mean squared errors of the samples."""
        gap = da.run(table, self.model, self.x_T) - self.truth
        values = np.asarray(gap.cpu() if hasattr(gap, "cpu") else gap)
        return np.asarray(np.square(values).reshape(len(values), -1).mean(axis=1))


def case(data: str, config: Config, seed: int, fresh: bool) -> Case:
    """One of ``data``; choosing is done on every other image of the digits, ``fresh`` cases have the rest."""
    samples = config["fresh_samples" if fresh else "samples"]
    process, ends = vp_linear(config), (config["t_start"], config["t_end"])
    if data == "digits":
        found = digits_problem({**config, "seed": seed, "samples": samples}, digits()[int(fresh) :: 2])
        return Case(process, found.model, found.x_T, found.reference, ends)
    mix = cast(Any, _MIXTURES[data]())
    x = mix.sample(samples, seed, process, config["t_start"])
    return Case(process, mix.eps(process), x, mix.flow(process, x, *ends), ends)
