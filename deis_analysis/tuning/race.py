"""Successive halving: a few samples for all cells, more for those that are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.tableau import Tableau, run
from deis_analysis.tuning.candidates import Cell
from deis_analysis.tuning.judged import Judged, judge, rank_bands
from deis_analysis.tuning.together import run_together

_LEAST = 12  # cells that the last round sees
_ROUNDS = (1 / 16, 1 / 4, 1.0)  # of the samples; between two rounds a quarter of the cells stays
_KEPT = 1 / 4
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ranked:
    """A cell with what was measured: on all samples if it came to the last round.

    Attributes:
        judged: of ``samples`` samples. ranks: (first, last) in 95 % of the resamples, None before the last round and
            where the law ranks.
    """

    cell: Cell
    judged: Judged
    samples: int
    ranks: tuple[int, int] | None = None

    def row(self) -> dict[str, Any]:
        """As one line of a table."""
        low, high = self.judged.band
        return {
            "nfe": self.cell.nfe,
            "solver": self.cell.solver,
            "grid": self.cell.grid,
            "rms": self.judged.rms,
            "low": low,
            "high": high,
            "median": self.judged.median,
            "flips": float(self.judged.flips.mean()),
            "unflipped": self.judged.unflipped(),
            "law": self.judged.law,
            "law_high": self.judged.law_band[1],
            "rank_low": None if self.ranks is None else self.ranks[0],
            "rank_high": None if self.ranks is None else self.ranks[1],
            "memory": self.cell.table.memory,
            "samples": self.samples,
        }


def planned(cells: int, nfe: int, samples: int) -> int:
    """Samples × model calls of a race, at most."""
    return sum(n * nfe * size for n, size in rounds(cells, samples))


def rounds(cells: int, samples: int) -> list[tuple[int, int]]:
    """(cells, samples) of each round."""
    found = []
    for share in _ROUNDS:
        found.append((cells, max(2, round(share * samples))))
        cells = min(cells, max(_LEAST, round(_KEPT * cells)))
    return found


class Race:
    """Rounds over the cells of one number of calls."""

    def __init__(self, target: Any, x: Any, truth: Any, seed: int, by: str, total: int, show: Progress) -> None:
        self.target, self.x, self.truth, self.seed, self.by = target, x, truth, seed, by
        self.total, self.show, self.asked = total, show, 0

    def ranked(self, some: list[Cell]) -> tuple[Ranked, ...]:
        """The finalists in order, with bands of their ranks."""
        found: list[Ranked] = []
        for count, size in rounds(len(some), len(self.x)):
            some = some[:count]
            ends = self._ends(some, self.x[:size])
            judged = [judge(end, self.truth[:size]) for end in ends]
            found = sorted((Ranked(c, j, size) for c, j in zip(some, judged, strict=True)), key=self._key)
            some = [entry.cell for entry in found]
        if self.by == "law":
            return tuple(found)  # whose order only the bands of their distances can tell
        bands = rank_bands(np.stack([entry.judged.squares for entry in found]))
        return tuple(
            Ranked(e.cell, e.judged, e.samples, (int(a), int(b))) for e, (a, b) in zip(found, bands, strict=True)
        )

    def _key(self, entry: Ranked) -> tuple[float, float]:
        return (entry.judged.law, entry.judged.law_band[1]) if self.by == "law" else (entry.judged.rms, 0.0)

    def _ends(self, some: list[Cell], x: Any) -> list[Any]:
        plain = [cell.table for cell in some if not cell.table.stochastic]
        ends = iter(run_together(plain, self.target.model, x, asked=self._count) if plain else [])
        return [self._noisy(cell.table, x) if cell.table.stochastic else next(ends) for cell in some]

    def _noisy(self, table: Tableau, x: Any) -> Any:
        self._count(table.nfe * len(x))
        return run(table, self.target.model, x, self.seed, check=False)

    def _count(self, samples: int) -> None:
        self.asked += samples
        self.show("candidates", min(self.asked, self.total), self.total)
