r"""A table as a point in a space of tables: its times, the times that the model is told, and its coefficients.

.. math:: F_{kj} = F^0_{kj}(\text{times}) + w_k (N_k z_k)_j , \qquad w_k = |\textstyle\sum_j F^0_{kj}|

:math:`F^0` is what the starting sampler has on these times, :math:`N_k` spans the weights that leave the moments up to
``degree`` as they are: with degree 0 each row gives the same as before where the model's output is constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deis_analysis.process.process import Array, Process
from deis_analysis.tableau import Builder, Tableau
from deis_analysis.validate import positive_int

_MOST_OFFSET = 0.5  # of the smaller gap beside a time, in λ
_MOST_MOVE = 0.4  # of the smaller gap, in one step


@dataclass(frozen=True)
class Point:
    """One table: where its numbers are, in the units in which they are moved.

    Attributes:
        lam: (N + 1,) λ of the grid; the ends stay. offsets: per called node but those told nothing, in gaps.
        weights: z of all rows, one after the other.
    """

    lam: Array
    offsets: Array
    weights: Array


@dataclass(frozen=True)
class Space:
    """All tables that a starting sampler can be moved to.

    Attributes:
        build: of the starting sampler. ts: its grid. degree: of the moments that stay, −1 for none.
        history: of how many outputs, the newest ones, a row may use; None for all.
        times, told, coefficients: which of the three may move.
    """

    process: Process
    build: Builder
    ts: Array
    degree: int = 0
    history: int | None = None
    times: bool = True
    told: bool = True
    coefficients: bool = True

    def __post_init__(self) -> None:
        positive_int("degree + 1", self.degree + 1, minimum=0, most=6)
        if not np.all(np.isfinite(self.process.lam(self.ts))):
            raise ValueError(f"ts={self.ts}: λ must be finite at both ends; allowed: another t_start or t_end")

    @cached_property
    def first(self) -> Tableau:
        """The starting table."""
        return self.build(self.process, self.ts)

    @cached_property
    def rows(self) -> list[tuple[int, Array, Array]]:
        """(row, the outputs whose weights are moved, those that make up for it) of each row that can be moved.

        The newest outputs make up for it, ``degree`` + 1 of them at different times; where a row has fewer times, all.
        """
        called, found = np.array(self.first.evaluated), []
        for k in range(1, self.first.times.size):
            usable = called[called < k]
            usable = usable if self.history is None else usable[-self.history :]
            _, newest = np.unique(self.first.times[usable][::-1], return_index=True)
            bound = usable[::-1][np.sort(newest)[: self.degree + 1]]
            free = usable[~np.isin(usable, bound)]
            if self.coefficients and free.size:
                found.append((k, free, bound))
        return found

    @property
    def start(self) -> Point:
        """The starting sampler itself."""
        free = sum(moved.size for _, moved, _ in self.rows)
        return Point(self.process.lam(self.ts), np.zeros(len(self.first.evaluated)), np.zeros(free))

    @property
    def size(self) -> int:
        """How many numbers may move."""
        inner = self.ts.size - 2 if self.times else 0
        return inner + (len(self.first.evaluated) if self.told else 0) + sum(moved.size for _, moved, _ in self.rows)

    def moved(self, point: Point, step: Array) -> Point:
        """``point`` moved by ``step``, (size,), shortened as a whole where times would meet."""
        inner = self.ts.size - 2 if self.times else 0
        told = len(self.first.evaluated) if self.told else 0
        most = np.abs(step[:inner]).max(initial=0.0)
        step = step * min(1.0, _MOST_MOVE / most) if most > 0 else step
        lam, offsets, weights = point.lam.copy(), point.offsets.copy(), point.weights.copy()
        if inner:
            gaps = np.diff(point.lam)
            lam[1:-1] += step[:inner] * np.minimum(gaps[:-1], gaps[1:])
        if told:
            offsets = np.clip(offsets + step[inner : inner + told], -_MOST_OFFSET, _MOST_OFFSET)
        if weights.size:
            weights = weights + step[inner + told :]
        return Point(lam, offsets, weights)

    def table(self, point: Point, name: str = "") -> Tableau:
        """The table at a point.

        Raises:
            ValueError: its times do not descend, or the sampler cannot be built on them.
        """
        same = np.array_equal(point.lam, self.start.lam)
        ts = self.ts if same else np.array(self.process.time_from_lam(point.lam))
        ts[[0, -1]] = self.ts[[0, -1]]
        table = self.first if same else self.build(self.process, ts)
        outputs = self._moved_rows(table, point.weights) if point.weights.any() else table.matrices.outputs
        told = self._told(table, ts, point.offsets) if point.offsets.any() else table.times
        return table.changed(outputs=outputs, times=told, name=name or table.name)

    def _moved_rows(self, table: Tableau, weights: Array) -> Array:
        outputs, at, lam = table.outputs.copy(), 0, self.process.lam(table.times)
        for k, free, bound in self.rows:
            z, unit = weights[at : at + free.size], abs(outputs[k].sum())
            at += free.size
            outputs[k, free] += unit * z
            if bound.size:
                here = (lam - lam[bound[0]]) / (lam[bound[0]] - lam[0] or 1.0)
                powers = np.vander(here, bound.size, increasing=True).T
                outputs[k, bound] -= unit * np.linalg.solve(powers[:, bound], powers[:, free] @ z)
        return outputs

    def _told(self, table: Tableau, ts: Array, offsets: Array) -> Array:
        called, lam = list(table.evaluated), self.process.lam(table.times)
        grid = self.process.lam(ts)
        gaps = np.diff(grid)
        at = np.clip(np.searchsorted(grid, lam[called], side="right") - 1, 0, gaps.size - 1)
        near = np.minimum(gaps[at], gaps[np.maximum(at - 1, 0)])
        told = np.clip(lam[called] + offsets * near, grid[0], grid[-1])
        times = table.times.copy()
        times[called] = np.where(offsets == 0, times[called], self.process.time_from_lam(told))
        return times

    def perturbed(self, point: Point, h: float) -> Iterator[tuple[Point, float]]:
        """Each of the numbers moved by ``h``, back where it cannot go on."""
        for i in range(self.size):
            step = np.zeros(self.size)
            step[i] = self._sign(point, i) * h
            yield self.moved(point, step), float(step[i])

    def _sign(self, point: Point, i: int) -> float:
        inner = self.ts.size - 2 if self.times else 0
        if self.told and inner <= i < inner + point.offsets.size:
            offset = point.offsets[i - inner]
            first = i == inner  # the first time cannot be told earlier than sampling starts
            return -1.0 if offset > _MOST_OFFSET / 2 and not first else 1.0
        return 1.0
