"""Which sampler suits a trained network? Path error against the certified flow of the very network, ranked."""

from __future__ import annotations

import math
import timeit
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at
from experiments.core.judging import FLIPPED, best, error_row, mean_square, middle, nearest, ratio, with_band
from experiments.core.paths import FIGURES
from experiments.models import studies
from experiments.models.studies import Study

NAME = "network_work_precision"
QUESTION = "Which sampler is most accurate on the shipped networks at 5, 10 and 20 model calls?"
CONFIG: Config = {
    **studies.BASE, "models": ["digits8", "digits8_flow", "mnist28", "digits8:seed1", "digits8:seed2"],
    "kept": ["digits8", "digits8_flow", "mnist28", "digits8:seed1", "digits8:seed2"],
    "seeds": [0, 1, 2], "calls": [5, 10, 20], "ranked_at": [5, 10, 20], "draws": 2000,
    "customary": {
        "ddim": "rho7", "ipndm4": "rho7", "tab1": "t2", "tab2": "t2", "tab3": "t2", "rhoab2": "rho7", "rhoab3": "rho7",
        "dpmpp_2m": "logrho", "dpmpp_3m": "logrho", "unipc2_bh2_x0": "logrho", "unipc3_bh2_x0": "logrho",
        "edm_heun": "rho7", "flow_euler": "t1", "flow_heun": "t1",
    },
    "also": ["t2", "t1"],
    "choices": {
        "truth": "end of the certified flow of the same network in float64; what is sampled computes in float32",
        "bands": "95 %, paired bootstrap over samples; of a rank the best grid is chosen anew in each draw",
        "seeds": "of the starts; the first is what sentences and tables state, the others say how far that moves",
        "digits8:seed1": "a further training of digits8, by its own command with --seed 1; on the first starts only",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["digits8", "digits8_flow"], "kept": [], "samples": 8,
                 "seeds": [0], "calls": [5, 10], "ranked_at": [5, 10], "draws": 200}  # fmt: skip
THOROUGH: Config = {"also": ["t1", "t2", "t3", "rho7", "logrho"], "calls": [5, 6, 7, 8, 10, 12, 14, 17, 20, 30, 40],
                    "models": ["digits8", "digits8_flow", "mnist28"], "kept": [], "network_samples": 256}  # fmt: skip
TOLERANCES = FLIPPED
TRAININGS = FIGURES / ".cache" / "trainings"  # of further trainings, which do not ship: digits8_seed1, …
_TIMED, _REPEATS = 64, 7  # images in a call that is timed, and how often: the least time counts
_NAMED = ("ddim", "edm_heun", "dpmpp_2m", "unipc3_bh2_x0", "ipndm4", "tab3")  # lines with a name, one a family


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, seed, solver, grid, calls), "rank" (on the best grid, ranked) and "reference"."""

    def rows_of(name: str, progress: Progress) -> Rows:
        seeds, found = config["seeds"][:1] if ":seed" in name else studies.seeds(name, config), []
        for done, seed in enumerate(seeds):
            study = studies.on_its_own_process(weights(name), {**config, "seed": seed})
            flow, part = study.certified(), cells.part_of(progress, done, len(seeds))
            reference = {"part": "reference", "title": study.title, "samples": len(study.x_T), "nfe": flow.nfe,
                         "rms": flow.error_estimate, "agreement": flow.agreement, "certified": flow.certified,
                         "process": repr(study.process), "ms_per_call": milliseconds(study)}  # fmt: skip
            judge = partial(_judged, truth=flow.states[-1], config=config)
            rows = cells.customary(study, config["customary"], config["also"], config, judge, progress=part)
            tried = pd.DataFrame(rows)
            ranks = [row for calls in config["ranked_at"] for row in ranked(at(tried, calls=calls), config)]
            found += [{"seed": seed, **row} for row in (reference, *rows, *ranks)]
        return found

    return by_model(NAME, config, rows_of, progress).drop(columns=["steps", "squares", "error"], errors="ignore")


def weights(name: str) -> str:
    """What `studies` loads for a model of this experiment.

    Raises:
        ValueError: a further training that is not there.
    """
    base, _, seed = name.partition(":seed")
    folder = TRAININGS / f"{base}_seed{seed}"
    if seed and not (folder / "card.json").exists():
        command = f"python -m experiments train --data digits --seed {seed} --out {folder}"
        raise ValueError(f"model={name!r} is a training that does not ship; make it by: {command}")
    return str(folder) if seed else name


def milliseconds(study: Study) -> float:
    """Time of one model call for one image, of a batch of `_TIMED`: the least of `_REPEATS`."""
    x, t = study.x_T[:1].repeat(_TIMED, 1), 0.5 * (study.process.t_min + study.process.t_max)
    return 1e3 * min(timeit.repeat(lambda: study.model(x, t), number=1, repeat=1 + _REPEATS)) / _TIMED


def _judged(x: Any, truth: Any, config: Config) -> dict[str, Any]:
    squares, flips = cells.squares_to(truth)(x)["squares"], nearest(x, truth) != np.arange(len(x))
    counted = np.where(flips, math.nan, squares)
    error = math.sqrt(mean_square(counted))
    return {**error_row(squares, config["seed"], config["draws"]), "flips": float(flips.mean()),
            "unflipped": error if flips.mean() < 1 else math.nan, "squares": counted, "error": error}  # fmt: skip


def ranked(rows: Frame, config: Config) -> Rows:
    """Solvers by error on the best grid: RMS, rank with its band, and the ratio to the first with its band.

    Args:
        rows: ``solver, grid, error`` and ``squares``, of the same starts, NaN of samples that do not count.
    """
    top, seed, draws = best(rows), config["seed"], config["draws"]
    table = np.array(list(top.squares))
    index = np.random.default_rng(seed).integers(0, table.shape[1], (draws, table.shape[1]))
    again = [np.min([means(v[index]) for v in at(rows, solver=solver).squares], axis=0) for solver in top.index]
    places = 1 + (np.array(again)[:, None] > np.array(again)).sum(axis=1)
    found = []
    for i, (solver, kind) in enumerate(top.grid.items()):
        row = {"part": "rank", "calls": top.calls.iloc[0], "solver": solver, "grid": kind}
        row |= with_band("rank", (i + 1, *np.quantile(places[i], [0.025, 0.975])))
        row |= zip(("rms", "low", "high"), ratio(table[i], np.ones(table.shape[1]), seed, draws), strict=True)
        found.append(row | with_band("ratio", ratio(table[i], table[0], seed, draws)))
    return found


def means(draws: Array) -> Array:
    """Mean over the last axis of what counts, infinite where nothing does."""
    counts = np.isfinite(draws)
    with np.errstate(invalid="ignore"):
        return np.where(counts.any(axis=-1), np.nansum(draws, axis=-1) / counts.sum(axis=-1), np.inf)


def ranking(frame: Frame, model: str, calls: int) -> Frame:
    """Rows of part "rank" of the first seed, the most accurate solver first."""
    rows = at(frame, part="rank", model=model, calls=calls, seed=frame.seed.min())
    return rows.sort_values("rank").set_index("solver")


def ranks(frame: Frame, by: str, **where: Any) -> Frame:
    """Solver × what is in the column ``by``, seeds or models: ranks."""
    return at(frame, part="rank", **where).pivot(index="solver", columns=by, values="rank")


def first(frame: Frame, model: str, calls: int) -> str:
    """The most accurate solver, with one whose ratio to it is not beyond its band, and how many more there are."""
    rows = ranking(frame, model, calls)
    names = [str(rows.index[0]), *rows.index[1:][rows.ratio_low.iloc[1:] <= 1]]
    return " or ".join(names[:2]) + (f" or {len(names) - 2} more" if len(names) > 2 else "")


def table(frame: Frame, model: str, calls: tuple[int, ...], most: int = 5) -> str:
    """The table of a model in docs/results: the first solvers at each number of calls, with bands."""
    lines = ["| rank | " + " | ".join(f"{n} calls" for n in calls) + " |", "|---|" + "---|" * len(calls)]
    columns = [list(ranking(frame, model, n).reset_index().itertuples()) for n in calls]
    for place, line in enumerate(zip(*columns, strict=True), 1):
        told = [
            f"`{row.solver}` on {row.grid}: {style.as_text(row.rms)} ({style.as_text(row.low)} to "
            f"{style.as_text(row.high)}), rank {row.rank_low:.0f} to {row.rank_high:.0f}" for row in line
        ]  # fmt: skip
        lines.append(f"| {place} | " + " | ".join(told) + " |")
    return "\n".join(lines[: 2 + most])


def trainings(config: Config) -> dict[str, list[str]]:
    """Network that ships → it and its further trainings."""
    found: dict[str, list[str]] = {}
    for name in config["models"]:
        found.setdefault(name.partition(":seed")[0], []).append(name)
    return found


def moved(frame: Frame, names: list[str], calls: int) -> tuple[float, float]:
    """(how far training moves a rank at most, least Spearman correlation of two trainings' ranks)."""
    places = ranks(frame, "model", model=names, calls=calls, seed=frame.seed.min())
    return float((places.max(axis=1) - places.min(axis=1)).max()), float(places.corr().min().min())


def headline(frame: Frame, config: Config) -> str:
    """Who is first on the last of the networks, and how far from its flow."""
    name, calls = list(trainings(config))[-1], middle(config)
    who, error = first(frame, name, calls), style.as_text(ranking(frame, name, calls).rms.iloc[0])
    return f"On {name} at {calls} calls {who} is most accurate: {error} RMS from the network's own flow"


def verdict(frame: Frame, config: Config) -> str:
    """Who is first on each network, how certain the truth is, and what training moves."""
    by, calls, said = trainings(config), middle(config), headline(frame, config)
    sure = at(frame, part="reference", model=list(by)).groupby("model").certified.all().sum()
    said += "".join(f"; on {name} {first(frame, name, calls)}" for name in list(by)[:-1])
    said += f" ('or': not distinct at 95 %); the flow is certified for {sure} of {len(by)} networks"
    for name, names in by.items():
        if len(names) > 1:
            most, least = moved(frame, names, calls)
            said += f"; {len(names)} trainings of {name} move ranks there by up to {most:.0f}, Spearman at least "
            said += f"{math.floor(100 * least) / 100:.2f}"
    return said + "."


def draw(frame: Frame, config: Config) -> Figure:
    """Ranks of one network at each number of calls; of the others, and of trainings, at one; error against calls."""
    names, calls, by = list(trainings(config)), middle(config), trainings(config).items()
    many, seeds = (said({**config, "models": names}) for said in (studies.how_many, studies.how_many_seeds))
    note = (
        f"Each network on its own process, {many}; RMS error per pixel (images in [-1, 1]) against its certified flow. "
        f"Ranks: on the best of customary, {' and '.join(config['also'])} grid, without flips; thick: 95 % band; thin: "
        f"{seeds}; at the right error and grid. Below: customary grids; upper axis: time on one core."
    )
    order = list(ranking(frame, names[-1], calls).index)
    shown = [*((names[-1], n) for n in config["ranked_at"]), *((name, calls) for name in names[:-1])]
    more = {f"rank on {len(group)} trainings of {name}": group for name, group in by if len(group) > 1}
    titles = [*(f"rank on {name}, {n} calls" for name, n in shown), *more]
    above, below = -(-len(titles) // 3) * (0.155 * len(order) + 0.42), 3.25
    fig = panels.sheet(headline(frame, config), note, above + below)
    axes, _ = panels.small_multiples(fig, titles, 3, left=1.15, bottom=below + 0.1, hspace=0.22, wspace=0.06)
    for ax, (name, n) in zip(axes, shown, strict=False):
        _ranks(ax, order, ranks(frame, "seed", model=name, calls=n), ranking(frame, name, n))
    for ax, group in zip(axes[len(shown) :], more.values(), strict=True):
        _ranks(ax, order, ranks(frame, "model", model=group, calls=calls, seed=frame.seed.min()))
    times = at(frame, part="reference").groupby("model").ms_per_call.min()
    lower = panels.lines(
        fig, at(frame, part="error", customary=True, seed=frame.seed.min()), dict.fromkeys(names, ""), 3, x="nfe",
        y="rms", names=_NAMED, band=("low", "high"), ticks=config["calls"], ylabel="RMS error per pixel", legend=False,
        extra_top=above + 0.7, wspace=0.08,
    )  # fmt: skip
    for ax, name in zip(lower, names, strict=True):  # a second axis: the time that the calls take
        ms = times[name]
        upper = ax.secondary_xaxis("top", functions=(lambda n, ms=ms: n * ms, lambda t, ms=ms: t / ms))
        style.plain_log_ticks(upper.xaxis, [float(f"{n * ms:.2g}") for n in config["calls"]])
        upper.tick_params(labelsize=panels.TICKS, pad=1)
        ax.set_title(f"{name}: ms of one image", fontsize=8.5, pad=6)
    panels.key(fig, lower[0], above=0.62)
    return fig


def _ranks(ax: Any, order: list[str], places: Frame, rows: Frame | None = None) -> None:
    """Ranks, with their range; of ``rows`` that of the first with its band, its error and grid."""
    for y, solver in enumerate(order):
        look, found = {**style.look(solver), "linestyle": "", "markersize": 4, "zorder": 3}, list(places.loc[solver])
        marks = found if rows is None else found[:1]
        ax.plot([min(found), max(found)], [y, y], color=look["color"], lw=1.0)
        ax.plot(marks, [y] * len(marks), **look)
        if rows is not None:
            row = rows.loc[solver]
            ax.plot([row.rank_low, row.rank_high], [y, y], color=look["color"], lw=4, alpha=0.45, solid_capstyle="butt")
            ax.text(len(order) + 6.8, y, f"{style.as_text(row.rms)} {row.grid}", fontsize=panels.SMALL, ha="right",
                    va="center", color="#555555")  # fmt: skip
    ax.set(ylim=(len(order) - 0.4, -0.6), xlim=(0.2, len(order) + 6.9), xticks=[1, 5, 10, len(order)])
    ax.set_yticks(range(len(order)), order)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
