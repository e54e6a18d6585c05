"""Which sampler, on which grid, with how many calls, for this model: measured on it, with bands."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deis_analysis import backend
from deis_analysis.process.process import Array
from deis_analysis.tableau import Tableau, run
from deis_analysis.tuning.candidates import Cell, cells, solver_rows
from deis_analysis.tuning.grids_for import grids_for
from deis_analysis.tuning.judged import ratio_band
from deis_analysis.tuning.page import choice_cells
from deis_analysis.tuning.race import Progress, Race, Ranked, planned
from deis_analysis.tuning.target import Target, target_of
from deis_analysis.validate import boolean, checked, positive, positive_int, several

_PICTURES = 8


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
        """The first, and those of the next two that cannot be told from it.

        By the band of the ratio of their RMS, which holds 1; by law, where the bands of the distances overlap.
        """
        first, *others = self.ranking[nfe][:3]
        if self.by == "law":
            return (first, *(e for e in others if e.judged.law_band[0] <= first.judged.law_band[1]))
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

    def _repr_html_(self) -> str:
        return choice_cells(self)

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


@checked
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
            seven and those of `tuning.grid` but ``oss``, which is dear; they take 64 trajectories of 60 calls.
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
    given = several("nfe", nfe) if isinstance(nfe, Iterable) else [nfe]
    counts = [positive_int("nfe", n, most=1000) for n in given]
    samples = positive_int("samples", samples, minimum=8)
    boolean("with_noise", with_noise)
    boolean("certify", certify)
    rows = solver_rows(solvers, with_noise)
    target = target_of(model, **options)
    show = progress or (lambda *_: None)
    kinds, times, spent = grids_for(target, grids, seed, show)
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
    choice = Choice(target.name, ranking, samples, seed, said, race.asked + spent[0], 0.0, race.by)
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
        found[f"{nfe} calls: {best.label}"] = backend.flat(end).reshape(-1, *target.shape)
    return found | {"ground truth": backend.flat(truth[:_PICTURES]).reshape(-1, *target.shape)}


def _stepped(target: Target, x: Any) -> tuple[Any, str]:
    truth, error = target.truth(x)
    return truth, f"steps doubled until an estimated RMS error of {error:.1e}"


def _within(some: list[Cell], nfe: int, samples: int, budget: int) -> list[Cell]:
    """As many cells as the budget allows, spread over the solvers in their order."""
    count = len(some)
    while count > 1 and planned(count, nfe, samples) > budget:
        count -= 1
    if count < 2:
        least = planned(2, nfe, samples)
        raise ValueError(f"budget={budget} (at {nfe} calls) is too small; allowed: at least {least} for two cells")
    return some[:: max(1, -(-len(some) // count))]
