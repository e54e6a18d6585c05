"""Which sampler, on which grid, with how many calls, for this model: measured on it, with bands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array
from deis_analysis.tableau import Tableau, run
from deis_analysis.tuning.candidates import CUSTOMARY, Cell, cells, solver_rows
from deis_analysis.tuning.judged import Judged, judge, rank_bands, ratio_band
from deis_analysis.tuning.target import Target, flat, target_of
from deis_analysis.tuning.together import run_together
from deis_analysis.validate import boolean, positive, positive_int

_LEAST = 12  # cells that the last round sees
_ROUNDS = (1 / 16, 1 / 4, 1.0)  # of the samples; between two rounds a quarter of the cells stays
_KEPT = 1 / 4
_PICTURES = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ranked:
    """A cell with what was measured: on all samples if it came to the last round.

    Attributes:
        judged: of ``samples`` samples. ranks: (first, last) in 95 % of the resamples, None before the last round.
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
            "rank_low": None if self.ranks is None else self.ranks[0],
            "rank_high": None if self.ranks is None else self.ranks[1],
            "memory": self.cell.table.memory,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class Choice:
    """The ranking of samplers on one model, by number of calls.

    Attributes:
        name: of the model. ranking: number of calls → finalists, the least RMS first. samples: of the last round.
        reference: what vouches for the ground truth. calls: samples × model calls that it took. seconds: in all.
        by: ``"rms"``, or ``"law"`` where samplers with noise take part.
        pictures: of image models: what → (8, channels, height, width) end states of the same noise.
    """

    name: str
    ranking: dict[int, tuple[Ranked, ...]]
    samples: int
    seed: int
    reference: str
    calls: int
    seconds: float
    by: str = "rms"
    pictures: dict[str, Array] = field(default_factory=dict)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A line per finalist and number of calls: errors, bands, flips, ranks."""
        return [entry.row() for entries in self.ranking.values() for entry in entries]

    def best(self, nfe: int) -> Tableau:
        """The first of the ranking; of the first three, if they cannot be told apart, that of least memory.

        Raises:
            ValueError: ``nfe`` was not asked for.
        """
        return self._best(nfe).cell.table

    def _best(self, nfe: int) -> Ranked:
        if nfe not in self.ranking:
            raise ValueError(f"nfe={nfe!r} was not measured; allowed: {', '.join(map(str, self.ranking))}")
        return min(self.alike(nfe), key=lambda entry: entry.cell.table.memory)

    def alike(self, nfe: int) -> tuple[Ranked, ...]:
        """The first, and those of the next two that cannot be told from it: whose band of the ratio holds 1."""
        first, *others = self.ranking[nfe][:3]
        same = [e for e in others if ratio_band(e.judged.squares, first.judged.squares)[1] <= 1.0]
        return (first, *same)

    def fewest(self, error: float) -> tuple[int, Tableau] | None:
        """(calls, table) of the fewest calls whose band lies below ``error``; None if none does."""
        positive(error=error)
        for nfe in sorted(self.ranking):
            entry = self._best(nfe)
            if entry.judged.band[1] <= error:
                return nfe, entry.cell.table
        return None

    def verdict(self, nfe: int) -> str:
        """One sentence: which, and whether it can be told from the next."""
        best, same = self._best(nfe), self.alike(nfe)
        low, high = best.judged.band
        text = f"{nfe} calls: {best.cell.label}, RMS {best.judged.rms:.3g} ({low:.3g} to {high:.3g})"
        if len(same) > 1:
            others = ", ".join(e.cell.label for e in same if e is not best)
            return (
                f"{text}; not to be told from {others}, of these it keeps the fewest arrays ({best.cell.table.memory})"
            )
        return f"{text}, alone"

    def to_dict(self) -> dict[str, Any]:
        """All of it but the tables, for JSON."""
        return {
            "model": self.name,
            "samples": self.samples,
            "seed": self.seed,
            "reference": self.reference,
            "calls": self.calls,
            "seconds": round(self.seconds, 1),
            "by": self.by,
            "verdicts": {str(nfe): self.verdict(nfe) for nfe in self.ranking},
            "table": self.table,
        }


def choose(
    model: Any,
    nfe: int | Sequence[int] = (5, 8, 10, 20),
    *,
    solvers: Iterable[str] | None = None,
    grids: Iterable[str] | None = None,
    samples: int = 64,
    seed: int = 0,
    with_noise: bool = False,
    budget: int | None = None,
    certify: bool = True,
    cache: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Choice:
    """Rank the samplers of the registry × grids on a model, by the error against the ground truth of the same noise.

    Successive halving: a sixteenth of the samples for all cells, a quarter for the best quarter of them, all for the
    best quarter of these. What several tables ask is asked once.

    Args:
        model, options: see `target_of`; ``shape``, ``t_start``, ``t_end``, ``dtype``, ``device``, ``times``.
        nfe: numbers of model calls; a sampler takes part where it makes exactly so many.
        solvers: names of registry rows, default all that make different tables. grids: kinds, default the customary
            seven and those of `tuning.grid` (see there) but ``oss``, which is dear.
        samples, seed: of the noise. with_noise: let samplers with noise take part; all are then ranked by law.
        budget: samples × model calls that the candidates may take; fewer cells are then looked at, published first.
        certify: whether DOPRI5 and a second method vouch for the ground truth, or steps are doubled until it stands.
        cache: folder for certified references. progress: called with (what, done, total).

    Raises:
        ValueError: bad arguments, a model that cannot be asked or answers with NaN; nothing to be ranked; a budget that
            is too small for two cells.

    Source: successive halving, Jamieson & Talwalkar 2016 (arXiv 1502.07943).
    """
    begin = time.perf_counter()
    given = nfe if isinstance(nfe, Iterable) else [nfe]
    counts = [positive_int("nfe", n, most=1000) for n in given]
    samples = positive_int("samples", samples, minimum=8)
    boolean("with_noise", with_noise)
    boolean("certify", certify)
    rows = solver_rows(solvers, with_noise)
    target = target_of(model, **options)
    show = progress or (lambda *_: None)
    kinds, times, spent = grids_for(target, grids, seed)
    found = {n: cells(target, n, rows, kinds, times) for n in dict.fromkeys(counts)}
    for n, some in found.items():
        if not some:
            raise ValueError(
                f"nfe={n}: no sampler makes exactly {n} calls on {target.process!r}; allowed: another number"
            )
    if budget is not None:
        found = {
            n: _within(some, n, samples, positive_int("budget", budget) // len(found)) for n, some in found.items()
        }
    x = target.noise(samples, seed)
    show("reference", 0, 1)
    truth, said = target.certified(x, cache) if certify else _stepped(target, x)
    total = sum(planned(len(some), n, samples) for n, some in found.items())
    race = Race(target, x, truth, seed, by="law" if with_noise else "rms", total=total, show=show)
    ranking = {n: race.ranked(some) for n, some in found.items()}
    choice = Choice(target.name, ranking, samples, seed, said, race.asked + spent, 0.0, race.by)
    pictures = _pictures(target, choice, x, truth)
    return replace(choice, pictures=pictures, seconds=time.perf_counter() - begin)


def _pictures(target: Target, choice: Choice, x: Any, truth: Any) -> dict[str, Array]:
    """End states of the best of each number of calls beside the ground truth, for states that are images."""
    if len(target.shape) != 3:
        return {}
    found = {}
    for nfe in choice.ranking:
        best = choice._best(nfe).cell
        end = run(best.table, target.model, x[:_PICTURES], choice.seed if best.table.stochastic else None)
        found[f"{nfe} calls: {best.label}"] = flat(end).reshape(-1, *target.shape)
    return found | {"ground truth": flat(truth[:_PICTURES]).reshape(-1, *target.shape)}


def grids_for(target: Target, grids: Iterable[str] | None, seed: int) -> tuple[list[str], Any, int]:
    """(kinds, how times of the model-aware ones are made, samples × calls that this took)."""
    kinds = list(CUSTOMARY) if grids is None else list(grids)
    for kind in kinds:
        grid(target.process, 2, kind, target.t_start, target.t_end)
    return kinds, None, 0


def _stepped(target: Target, x: Any) -> tuple[Any, str]:
    truth, error = target.truth(x)
    return truth, f"steps doubled until an estimated RMS error of {error:.1e}"


def planned(cells: int, nfe: int, samples: int) -> int:
    """Samples × model calls of a race, at most."""
    return sum(n * nfe * size for n, size in _rounds(cells, samples))


def _rounds(cells: int, samples: int) -> list[tuple[int, int]]:
    """(cells, samples) of each round."""
    found = []
    for share in _ROUNDS:
        found.append((cells, max(2, round(share * samples))))
        cells = min(cells, max(_LEAST, round(_KEPT * cells)))
    return found


def _within(some: list[Cell], nfe: int, samples: int, budget: int) -> list[Cell]:
    """As many cells as the budget allows, spread over the solvers in their order."""
    count = len(some)
    while count > 1 and planned(count, nfe, samples) > budget:
        count -= 1
    if count < 2:
        least = planned(2, nfe, samples)
        raise ValueError(f"budget={budget} (at {nfe} calls) is too small; allowed: at least {least} for two cells")
    return some[:: max(1, -(-len(some) // count))]


class Race:
    """Rounds over the cells of one number of calls."""

    def __init__(self, target: Target, x: Any, truth: Any, seed: int, by: str, total: int, show: Progress) -> None:
        self.target, self.x, self.truth, self.seed, self.by = target, x, truth, seed, by
        self.total, self.show, self.asked = total, show, 0

    def ranked(self, some: list[Cell]) -> tuple[Ranked, ...]:
        """The finalists in order, with bands of their ranks."""
        found: list[Ranked] = []
        for count, size in _rounds(len(some), len(self.x)):
            some = some[:count]
            ends = self._ends(some, self.x[:size])
            judged = [judge(end, self.truth[:size]) for end in ends]
            found = sorted((Ranked(c, j, size) for c, j in zip(some, judged, strict=True)), key=self._key)
            some = [entry.cell for entry in found]
        bands = rank_bands(np.stack([entry.judged.squares for entry in found]))
        return tuple(
            Ranked(e.cell, e.judged, e.samples, (int(a), int(b))) for e, (a, b) in zip(found, bands, strict=True)
        )

    def _key(self, entry: Ranked) -> float:
        return entry.judged.law if self.by == "law" else entry.judged.rms

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
