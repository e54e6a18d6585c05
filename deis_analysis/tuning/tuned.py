"""A sampler made for one model: its times, told times and weights moved until few calls do what many did."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis import validate
from deis_analysis.pages import table
from deis_analysis.process.process import Array
from deis_analysis.solvers.registry import row_of
from deis_analysis.storage import folder, read_text, write_text
from deis_analysis.tableau import Builder, Tableau
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED, Cell, cells, solver_rows
from deis_analysis.tuning.fit import OBJECTIVES, Features, Goal, State, search
from deis_analysis.tuning.grids_for import grids_for
from deis_analysis.tuning.held_out import HeldOut, resampled
from deis_analysis.tuning.parameters import Point, Space
from deis_analysis.tuning.race import Progress, Race
from deis_analysis.tuning.target import Target, target_of
from deis_analysis.validate import checked, real, shown

_JUDGING = 1 / 4  # of the training samples, beside them: on which rounds are compared
_FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """A tuned table and what is known of it.

    Attributes:
        tableau: the tuned one, or ``start`` where it is not better on the held-out noises beyond the band.
        start: the best sampler that was not tuned. target: the model.
        times: (N + 1,) process times of the tableau's states; what the model is told may differ.
        report: held-out errors of both with bands, their ratio, flips, distances of laws, the budget of both by cause,
            the order of the tuned times, the consistency of the rows, the search's losses, settings and cost.
        build: of the sampler that was tuned, None for one that was given as a table.
    """

    tableau: Tableau
    start: Tableau
    target: Target
    times: Array
    report: dict[str, Any]
    build: Builder | None = None

    def at(self, steps: int) -> Tableau:
        """The untuned sampler in another number of steps, on the tuned times: λ interpolated over the step's number.

        Raises:
            ValueError: the sampler was given as a table; it cannot make so many steps.
        """
        if self.build is None:
            raise ValueError(f"steps={steps!r}: the sampler was given as one table; allowed: a registry row")
        return self.build(self.target.process, resampled(self.target.process, self.times, steps))

    @property
    def kept(self) -> bool:
        """Whether the tuned table is better, beyond the band."""
        return bool(self.report["kept"])

    def verdict(self) -> str:
        """One sentence."""
        report = self.report
        ratio, low, high = report["ratio"]
        what, key = ("energy distance", "energy") if report["settings"]["objective"] == "energy" else ("RMS", "rms")
        after, before = report["tuned"][key], report["before"][key]
        text = f"{report['nfe']} calls: held-out {what} {after:.3g} against {before:.3g} "
        text += f"of {report['start']}, ratio {ratio:.3f} ({low:.3f} to {high:.3f})"
        return text if self.kept else f"{text}: not better beyond the band, so the untuned table is returned"

    def _repr_html_(self) -> str:
        before, after = self.report["before"], self.report["tuned"]
        keys = [key for key in before if isinstance(before[key], float) and isinstance(after.get(key), float)]
        rows = [(key, before[key], after[key]) for key in keys]
        said = f"<p>{escape(self.verdict())}</p>"
        return said + table(("held out", str(self.report["start"]), "tuned"), rows, self.target.name)


@dataclass(frozen=True)
class Settings:
    """What is asked of `tune`, beside the model."""

    nfe: int
    samples: int
    held_out: int
    seed: int
    degree: int
    history: int | None
    times: bool
    told: bool
    coefficients: bool
    objective: str
    stability: float
    rounds: int

    def __post_init__(self) -> None:
        validate.positive_int("nfe", self.nfe, most=100)
        validate.positive_int("samples", self.samples, minimum=16)
        validate.positive_int("held_out", self.held_out, minimum=8)
        validate.positive_int("rounds", self.rounds)
        if isinstance(self.degree, bool) or self.degree not in range(-1, 6):
            raise ValueError(f"degree={self.degree!r}; allowed: -1 (free), 0 (consistent) … 5")
        if self.history is not None:
            validate.positive_int("history", self.history)
        for name in ("times", "told", "coefficients"):
            validate.boolean(name, getattr(self, name))
        if not (self.times or self.told or self.coefficients):
            raise ValueError("times=False, told=False, coefficients=False leave nothing to be tuned; allowed: one True")
        validate.choose("objective", self.objective, OBJECTIVES)
        validate.nonnegative("stability", self.stability)


@checked
def tune(
    model: Any,
    nfe: int,
    *,
    start: str | Builder | None = None,
    grid: Any = None,
    degree: int = 0,
    history: int | None = None,
    tune_times: bool = True,
    tune_told: bool = True,
    tune_coefficients: bool = True,
    objective: str = "rms",
    features: Features | None = None,
    stability: float = 0.0,
    samples: int = 256,
    held_out: int = 64,
    seed: int = 0,
    rounds: int = 12,
    minutes: float | None = None,
    certify: bool = True,
    cache: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tuned:
    """A table of ``nfe`` calls whose end states are as near to the model's flow as its numbers allow.

    The best of the published samplers, on the customary and the model-aware grids, is the start; then the times, the
    times that the model is told, and the weights of its outputs are moved together by least squares on the end states
    of training noises.
    Other noises decide which round is best, and a third set, never seen before, what is reported.

    Args:
        model, options: see `target_of`.
        start, grid: a registry name or a builder, and its kind of grid or (N + 1,) times, in place of a choice.
        degree: of polynomials in λ on which each row stays as exact as it was: 0 keeps constants, −1 nothing.
        history: how many of the newest outputs a row may use; None for all up to 6 calls, 5 beyond.
        tune_times, tune_told, tune_coefficients: what may move.
        objective: ``"rms"``, ``"l1"``, or ``"energy"``, the energy distance of the two sets of end states. features:
            (B, …) states → (B, m), in which differences are taken, the held-out ratio too.
        stability: weight of the difference from the exact transfer of Gaussians, over variances .001 to 1.
        samples, held_out, seed: of the noises. rounds, minutes: bounds of the search.
        certify: whether DOPRI5 and a second method vouch for the held-out truth.
        cache: folder in which the search is kept after each round, and goes on from where it was.
        progress: called with (what, done, total), total 0 where it is not known.

    Raises:
        ValueError: bad arguments; no sampler makes exactly ``nfe`` calls; a sampler with noise.

    Source: the tables of BNS (Shaul et al. 2024, arXiv 2403.01329), the told times of LD3 (Tong et al. 2025), rows that
    keep their sums as NeuralSolver's (2505.21114); the search is our own.
    """
    began = time.monotonic()
    if history is None and nfe > 6:
        history = 5
    settings = Settings(
        nfe,
        samples,
        held_out,
        seed,
        degree,
        history,
        tune_times,
        tune_told,
        tune_coefficients,
        objective,
        stability,
        rounds,
    )
    validate.boolean("certify", certify)
    if minutes is not None:
        validate.positive(minutes=minutes)
    target, show = target_of(model, **options), progress or (lambda *_: None)
    judging = max(16, round(_JUDGING * samples))
    x = target.noise(samples + judging, seed)
    show("training references", 0, 0)
    truth, error = target.truth(x)
    cell = _start(target, nfe, start, grid, x, truth, seed, show)
    space = _space(target, cell, settings)
    goal = Goal(target, x[:samples], truth[:samples], features, objective, stability)
    judged_by = Goal(target, x[samples:], truth[samples:], features, objective, stability)
    place = _place(cache, target, settings, cell)
    state = _loaded(place, space)
    until = float("inf") if minutes is None else began + 60.0 * minutes
    search(space, goal, judged_by, state, rounds=rounds, until=until, kept=lambda s: _save(place, s), progress=show)
    assert state.best is not None
    found = HeldOut(target, cell, space, state, goal, settings.objective)
    x = target.noise(held_out, seed + 1_000_003)
    show("held-out references", 0, 0)
    if certify:
        truth, said = target.certified(x, cache)
    else:
        truth, gap = target.truth(x)
        said = f"steps doubled until an estimated RMS error of {gap:.1e}"
    report = found.report(x, truth) | {
        "model": target.name,
        "nfe": nfe,
        "start": cell.label,
        "reference": said,
        "training_reference_error": error,
        "losses": state.losses,
        "settings": asdict(settings),
        "seconds": round(time.monotonic() - began, 1),
    }
    best = found.tuned if report["kept"] else cell.table
    times = found.times if report["kept"] else space.ts
    return Tuned(best, cell.table, target, times, report, None if cell.grid == "given times" else space.build)


# -- the start ------------------------------------------------------------------------------------
def _start(target: Target, nfe: int, start: Any, kind: Any, x: Any, truth: Any, seed: int, show: Progress) -> Cell:
    """The cell to start from: what was asked for, or the best of the published ones on the training noises."""
    if start is not None:
        return _given(target, nfe, start, kind)
    kinds, times, _ = grids_for(target, None if kind is None else [str(kind)], seed, show)
    some = cells(target, nfe, solver_rows(PUBLISHED, False), kinds, times)
    if not some:
        raise ValueError(f"nfe={nfe!r}: no published sampler makes exactly so many calls; allowed: another number")
    count = min(64, len(x))
    return Race(target, x[:count], truth[:count], 0, "rms", 0, show).ranked(some)[0].cell


def _given(target: Target, nfe: int, start: Any, kind: Any) -> Cell:
    name = start if isinstance(start, str) else getattr(start, "__name__", "builder")
    row = row_of(start)
    if kind is None or isinstance(kind, str):
        kinds = CUSTOMARY if kind is None else (kind,)
        if isinstance(start, str):
            found = cells(target, nfe, solver_rows([start], False), kinds[2:3] if kind is None else kinds)
            if not found:
                raise ValueError(
                    f"start={start!r} cannot make exactly nfe={nfe} calls without noise; allowed: one that can"
                )
            return found[0]
        raise ValueError(f"grid={kind!r}: of a builder the times must be given; allowed: (N + 1,) descending times")
    ts = real("grid", kind)
    if ts.ndim != 1 or ts.size < 2:
        raise ValueError(f"grid={shown(kind)} must be a kind, or (N + 1,) descending times")
    table = (row.build if hasattr(row, "build") else row)(target.process, ts)
    if table.nfe != nfe or table.stochastic:
        raise ValueError(f"start={name!r} makes {table.nfe} calls on this grid; allowed: {nfe}, without noise")
    return Cell(name, "given times", nfe, table)


def _space(target: Target, cell: Cell, settings: Settings) -> Space:
    row = solver_rows([cell.solver], True)[cell.solver].build if cell.grid != "given times" else None
    ts = cell.table.times[list(cell.table.grid_nodes)]
    build: Builder = row if row is not None else (lambda process, times: cell.table)
    times = settings.times and row is not None
    return Space(
        target.process, build, ts, settings.degree, settings.history, times, settings.told, settings.coefficients
    )


# -- what is kept between two runs ----------------------------------------------------------------
def _place(cache: Any, target: Target, settings: Settings, cell: Cell) -> Path | None:
    """The file of this search: named by all that it depends on; None where the model has no name."""
    if cache is None or (target.digest is None and target.exact is None):
        return None
    question = [_FORMAT, target.digest or target.name, asdict(settings), cell.label, target.t_start, target.t_end]
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return folder("cache", cache) / f"tune-{digest[:24]}.json"


def _save(place: Path | None, state: State) -> None:
    if place is None:
        return
    data = asdict(state)
    for key in ("point", "best"):
        data[key] = {name: np.asarray(values).tolist() for name, values in data[key].items()}
    try:
        write_text(place, json.dumps(data | {"seal": _seal(place, data)}))
    except OSError as error:  # the search is worth more than the file
        warnings.warn(f"the search is not kept: {error}")


def _seal(place: Path, data: dict[str, Any]) -> str:
    """A hash of the question, which names the file, and of what was found."""
    return hashlib.sha256(json.dumps([place.name, data], sort_keys=True).encode()).hexdigest()


def _loaded(place: Path | None, space: Space) -> State:
    """The state that was saved; the start where there is none, or, with a warning, where it is not what was saved."""
    if place is None or not place.exists():
        return State(space.start)
    try:
        data = json.loads(read_text(place))
        if data.pop("seal") != _seal(place, data):
            raise ValueError("it is not what was written")
        for key in ("point", "best"):
            data[key] = Point(**{name: np.array(values, dtype=np.float64) for name, values in data[key].items()})
        state = State(**data)
        space.table(state.point)
        return state
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"the search is begun anew, as {str(place)!r} is damaged: {error}")
        return State(space.start)
