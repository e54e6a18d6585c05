"""Which sampler suits a trained network? Path error against the certified flow of the very network, ranked."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import FLIPPED, mean_square, ratio
from experiments.core.paths import FIGURES
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio
from experiments.models.studies import Study

NAME = "network_work_precision"
QUESTION = "Which sampler is most accurate on the shipped networks at 5, 10 and 20 model calls?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["digits8", "digits8_flow", "mnist28", "digits8:seed1", "digits8:seed2"],
    "kept": ["digits8", "digits8_flow", "mnist28", "digits8:seed1", "digits8:seed2"],
    "seeds": [0, 1, 2],
    "customary": {
        "ddim": "rho7",
        "ipndm4": "rho7",
        "tab1": "t2",
        "tab2": "t2",
        "tab3": "t2",
        "rhoab2": "rho7",
        "rhoab3": "rho7",
        "dpmpp_2m": "logrho",
        "dpmpp_3m": "logrho",
        "unipc2_bh2_x0": "logrho",
        "unipc3_bh2_x0": "logrho",
        "edm_heun": "rho7",
        "flow_euler": "t1",
        "flow_heun": "t1",
    },
    "also": ["t2", "t1"],
    "calls": [5, 10, 20],
    "ranked_at": [5, 10, 20],
    "draws": 2000,
    "choices": {
        "truth": "end of the flow of the same network in float64, the same x_T, certified; the network that is "
        "sampled computes in float32",
        "process": "the network's own, over its sampling range",
        "grids": "each sampler's customary one and those of also; the best of them is ranked, by the samples that do "
        "not flip",
        "bands": "95 %, bootstrap over the samples, paired; of a rank its 2.5 and 97.5 % quantiles, the best "
        "grid chosen anew in each draw",
        "seeds": "of the starts; the first is what sentences and tables state, the others say how far that moves",
        "digits8:seed1": "a further training of digits8, by its own command with --seed 1; on the first starts only",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["digits8", "digits8_flow"], "kept": [], "samples": 8,
                 "seeds": [0], "calls": [5, 10], "ranked_at": [5, 10], "draws": 200}  # fmt: skip
THOROUGH: Config = {"also": ["t1", "t2", "t3", "rho7", "logrho"], "calls": [5, 6, 7, 8, 10, 12, 14, 17, 20, 30, 40],
                    "models": ["digits8", "digits8_flow", "mnist28"], "kept": [], "network_samples": 256}  # fmt: skip
TOLERANCES = FLIPPED
TRAININGS = FIGURES / ".cache" / "trainings"  # of further trainings, which do not ship: digits8_seed1, …
_TIMED, _REPEATS = 64, 7  # images in a call that is timed, and how often: the least time counts
_NAMED = ("ddim", "edm_heun", "dpmpp_2m", "unipc3_bh2_x0", "ipndm4", "tab3")  # lines with a name, one a family


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, seed, solver, grid, calls), "rank" (on the best grid, ranked) and "reference"."""

    def rows_of(name: str, progress: Progress) -> Rows:
        seeds = config["seeds"][:1] if ":seed" in name else studies.seeds(name, config)
        rows: Rows = []
        for done, seed in enumerate(seeds):
            study = studies.on_its_own_process(weights(name), {**config, "seed": seed})
            reference = study.certified()
            part = cells.part_of(progress, done, len(seeds))
            found, tried = _errors(study, reference.states[-1], config, part)
            for calls in config["ranked_at"]:
                found += [{"calls": calls, **row} for row in ranked(tried[calls], config)]
            rows += [{"seed": seed, **row} for row in (_reference(study, reference), *found)]
        return rows

    return by_model(NAME, config, rows_of, progress)


def weights(name: str) -> str:
    """What `studies` loads for a model of this experiment.

    Raises:
        ValueError: a further training that is not there.
    """
    base, _, seed = name.partition(":seed")
    folder = TRAININGS / f"{base}_seed{seed}"
    if not seed:
        return name
    if not (folder / "card.json").exists():
        command = f"python -m experiments train --data digits --seed {seed} --out {folder}"
        raise ValueError(f"model={name!r} is a training that does not ship; make it by: {command}")
    return str(folder)


def _reference(study: Study, found: Any) -> dict[str, Any]:
    return {"part": "reference", "title": study.title, "samples": len(study.x_T), "rms": found.error_estimate,
            "agreement": found.agreement, "nfe": found.nfe, "certified": found.certified,
            "process": repr(study.process), "ms_per_call": milliseconds(study)}  # fmt: skip


def milliseconds(study: Study) -> float:
    """Time of one model call for one image, of a batch of `_TIMED`: the least of `_REPEATS`."""
    x, t = study.x_T[:1].repeat(_TIMED, 1), 0.5 * (study.process.t_min + study.process.t_max)
    study.model(x, t)
    found = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        study.model(x, t)
        found.append(time.perf_counter() - begin)
    return 1e3 * min(found) / _TIMED


def _errors(study: Study, truth: Any, config: Config, progress: Progress) -> tuple[Rows, dict[int, Any]]:
    """(rows, calls → solver → grid → (n,) mean square errors where ranked, NaN where a sample flips)."""
    import torch

    customary, tried = config["customary"], dict[int, Any]()

    def grids(solver: str, calls: int) -> list[str]:
        return [customary[solver], *(config["also"] if calls in config["ranked_at"] else ())]

    def judge(x: Any) -> dict[str, Any]:
        squares = np.asarray(((x - truth) ** 2).mean(dim=1).cpu())
        flips = np.asarray(torch.cdist(x, truth).argmin(dim=1).cpu()) != np.arange(len(x))
        low, high = bootstrap_ratio(squares, np.ones_like(squares), config["seed"], config["draws"])
        kept = squares[~flips]
        return {"rms": float(np.sqrt(squares.mean())), "low": low, "high": high, "flips": float(flips.mean()),
                "unflipped": float(np.sqrt(kept.mean())) if kept.size else np.nan,
                "squares": np.where(flips, np.nan, squares)}  # fmt: skip

    rows = cells.sweep(study, customary, grids, config["calls"], judge, progress=progress)
    for row in rows:
        squares, solver, kind = row.pop("squares"), row["solver"], row["grid"]
        row |= {"part": "error", "customary": kind == customary[solver]}
        del row["steps"]
        if row["calls"] in config["ranked_at"]:
            tried.setdefault(row["calls"], {}).setdefault(solver, {})[kind] = squares
    return rows, tried


def ranked(tried: dict[str, dict[str, Array]], config: Config) -> list[dict[str, Any]]:
    """Solvers by error on the best grid: RMS, rank with its band, and the ratio to the first with its band.

    Args:
        tried: solver → grid → (n,) mean square errors of the same starts, NaN of samples that do not count.
    """
    best = {solver: min((mean_square(v), kind) for kind, v in grids.items())[1] for solver, grids in tried.items()}
    squares = {solver: tried[solver][kind] for solver, kind in best.items()}
    order = sorted(squares, key=lambda solver: mean_square(squares[solver]))
    table = np.array([squares[solver] for solver in order])
    index = np.random.default_rng(config["seed"]).integers(0, table.shape[1], (config["draws"], table.shape[1]))
    again = np.array([np.min([means(v[index]) for v in tried[solver].values()], axis=0) for solver in order])
    ranks = 1 + (again[:, None, :] > again[None, :, :]).sum(axis=1)
    rows = []
    for place, solver in enumerate(order):
        first, last = np.quantile(ranks[place], [0.025, 0.975])
        found, low, high = ratio(table[place], table[0], config["seed"], config["draws"])
        rms, rms_low, rms_high = ratio(table[place], np.ones(table.shape[1]), config["seed"], config["draws"])
        rows.append({"part": "rank", "solver": solver, "grid": best[solver], "rank": place + 1, "rank_low": first,
                     "rank_high": last, "rms": rms, "low": rms_low, "high": rms_high, "ratio": found,
                     "ratio_low": low, "ratio_high": high})  # fmt: skip
    return rows


def means(draws: Array) -> Array:
    """Mean over the last axis of what counts, infinite where nothing does."""
    counts = np.isfinite(draws)
    with np.errstate(invalid="ignore"):
        return np.where(counts.any(axis=-1), np.nansum(draws, axis=-1) / counts.sum(axis=-1), np.inf)


# -- what was found -------------------------------------------------------------------------------
def ranking(frame: Frame, model: str, calls: int, seed: int | None = None) -> Frame:
    """Rows of part "rank" of one seed, by default the first, the most accurate solver first."""
    rows = frame[(frame.part == "rank") & (frame.model == model) & (frame.calls == calls)]
    return rows[rows.seed == (rows.seed.min() if seed is None else seed)].sort_values("rank").set_index("solver")


def over_seeds(frame: Frame, model: str, calls: int) -> Frame:
    """Columns ``min`` and ``max``: of a solver's ranks on the seeds."""
    rows = frame[(frame.part == "rank") & (frame.model == model) & (frame.calls == calls)]
    return rows.groupby("solver")["rank"].agg(["min", "max"])


def winners(frame: Frame, model: str, calls: int) -> list[str]:
    """The most accurate solver, and those whose ratio to it is not beyond its 95 % band."""
    rows = ranking(frame, model, calls)
    return [str(rows.index[0]), *(str(s) for s in rows.index[1:] if rows.ratio_low[s] <= 1.0)]


def table(frame: Frame, model: str, calls: tuple[int, ...], most: int = 5) -> str:
    """The table of a model in docs/results: the first solvers at each number of calls, with bands."""
    lines = ["| rank | " + " | ".join(f"{n} calls" for n in calls) + " |", "|---|" + "---|" * len(calls)]
    columns = [ranking(frame, model, n).reset_index() for n in calls]
    for place in range(most):
        cells = []
        for rows in columns:
            at = rows.iloc[place]
            error = f"{style.as_text(at.rms)} ({style.as_text(at.low)} to {style.as_text(at.high)})"
            cells.append(f"`{at.solver}` on {at.grid}: {error}, rank {at.rank_low:.0f} to {at.rank_high:.0f}")
        lines.append(f"| {place + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def first(frame: Frame, model: str, calls: int) -> str:
    """The most accurate solver, with one that cannot be told from it, and how many more there are."""
    names = winners(frame, model, calls)
    return " or ".join(names[:2]) + (f" or {len(names) - 2} more" if len(names) > 2 else "")


def shipped(config: Config) -> list[str]:
    """The models that are not further trainings of another one."""
    return [name for name in config["models"] if ":seed" not in name]


def trainings(config: Config) -> list[str]:
    """A network and its further trainings; empty where there are none."""
    further = [name for name in config["models"] if ":seed" in name]
    return [further[0].partition(":")[0], *further] if further else []


def moved(frame: Frame, config: Config, calls: int) -> tuple[float, float]:
    """(how far training moves a rank at most, least Spearman correlation of two trainings' ranks)."""
    ranks = pd.DataFrame({name: ranking(frame, name, calls)["rank"] for name in trainings(config)})
    return float((ranks.max(axis=1) - ranks.min(axis=1)).max()), float(ranks.corr().min().min())


def _middle(config: Config) -> int:
    return int(sorted(config["ranked_at"])[len(config["ranked_at"]) // 2])


def verdict(frame: Frame, config: Config) -> str:
    """Who is first at each number of calls on each network, how certain the truth is, and what training moves."""
    reference = frame[frame.part == "reference"].groupby("model")
    won, names = [], shipped(config)
    for name in names:
        firsts = [first(frame, name, calls) for calls in config["ranked_at"]]
        won.append(f"{name}: {', '.join(firsts)}")
    sure, apart = reference.certified.all(), reference.agreement.max()
    said = (
        f"Least RMS path error at {', '.join(map(str, config['ranked_at']))} calls, of the best of customary and "
        f"{', '.join(config['also'])} grids ('or': not distinct at 95 %): {'; '.join(won)}. The truth is certified for "
        f"{sum(bool(sure[name]) for name in names)} of {len(names)} networks: two methods differ by at most "
        f"{', '.join(style.as_text(apart[name], 1) for name in names)} in any pixel."
    )
    if trainings(config):
        places, least = moved(frame, config, _middle(config))
        said += (
            f" Over {len(trainings(config))} trainings of {trainings(config)[0]} a rank moves by up to {places:.0f} "
            f"places, Spearman at least {least:.2f}."
        )
    return said


def headline(frame: Frame, config: Config) -> str:
    """Who is first on the last of the shipped networks, and how far from its flow."""
    name, calls = shipped(config)[-1], _middle(config)
    at = ranking(frame, name, calls).iloc[0]
    return (
        f"On {name} at {calls} calls {first(frame, name, calls)} is most accurate: {style.as_text(at.rms)} RMS from "
        "the network's own flow"
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Ranks of one network at each number of calls; of the others, and of trainings, at one; error against calls."""
    reference = frame[frame.part == "reference"]
    names, calls = shipped(config), _middle(config)
    many, seeds = (said({**config, "models": names}) for said in (studies.how_many, studies.how_many_seeds))
    note = (
        f"Each network on its own process, {many}; RMS error per pixel (images in [-1, 1]) against the certified flow "
        f"of the same network. Ranks: on the best of customary, {' and '.join(config['also'])} grid, by the samples "
        f"that do not flip; thick: 95 % band of the first seed; thin: range over {seeds}. At the right: that error and "
        f"the grid. Lowest: customary grids, all samples; upper axis: time for one image in a batch of {_TIMED} on one "
        "core; grey: the other samplers."
    )
    order = list(ranking(frame, names[-1], calls).index)
    shown = [(names[-1], n) for n in config["ranked_at"]]
    shown += [(name, calls) for name in names[:-1]]
    more = trainings(config)
    titles = [f"rank on {name}, {n} calls" for name, n in shown]
    titles += [f"rank on {len(more)} trainings of {more[0]}"] if more else []
    rows = -(-len(titles) // 3)
    ranks, between, curves = rows * (0.155 * len(order) + 0.42), 0.8, 2.3  # inches
    height = ranks + between + curves
    fig = panels.sheet(headline(frame, config), note, height)
    axes, _ = panels.small_multiples(
        fig, titles, 3, left=1.15, right=0.08, end=(ranks - 0.15) / height, hspace=0.22, wspace=0.06, bottom=0.32
    )
    for ax, (name, n) in zip(axes, shown, strict=False):
        _ranks(ax, ranking(frame, name, n), over_seeds(frame, name, n), order)
    if more:
        _trained(axes[-1], {name: ranking(frame, name, calls) for name in more}, order)
    below, _ = panels.small_multiples(
        fig,
        [f"{name}, error" for name in names],
        3,
        left=0.6,
        right=0.08,
        begin=(ranks + between) / height,
        bottom=0.4,
        wspace=0.08,
    )
    errors = frame[(frame.part == "error") & (frame.customary == True) & (frame.seed == frame.seed.min())]  # noqa: E712
    for ax, name in zip(below, names, strict=True):
        milliseconds = float(reference[reference.model == name].ms_per_call.min())
        _curves(ax, errors[errors.model == name], milliseconds, config)
    below[0].set_ylabel("RMS error per pixel", fontsize=8.5)
    panels.calls_axis(below, config["calls"])
    place = below[0].get_position().y1 + 0.32 / fig.get_size_inches()[1]
    fig.legend(*below[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, place), ncol=6,
               fontsize=7.5, handlelength=2.2, columnspacing=1.2)  # fmt: skip
    return fig


def _ranks(ax: Any, rows: Frame, over: Frame, order: list[str]) -> None:
    for y, solver in enumerate(order):
        at, colour = rows.loc[solver], style.look(solver)["color"]
        ax.plot(over.loc[solver], [y, y], color=colour, lw=1.0)
        ax.plot([at.rank_low, at.rank_high], [y, y], color=colour, lw=4, alpha=0.45, solid_capstyle="butt")
        ax.plot(at["rank"], y, **_marker(solver))
        ax.text(len(order) + 6.8, y, f"{style.as_text(at.rms)} {at.grid}", fontsize=panels.SMALL, ha="right",
                va="center", color="#555555")  # fmt: skip
    _places(ax, order)


def _trained(ax: Any, tables: dict[str, Frame], order: list[str]) -> None:
    for y, solver in enumerate(order):
        places = [float(rows["rank"][solver]) for rows in tables.values()]
        ax.plot([min(places), max(places)], [y, y], color=style.look(solver)["color"], lw=1.0)
        for place in places:
            ax.plot(place, y, **_marker(solver))
    _places(ax, order)


def _marker(solver: str) -> dict[str, Any]:
    return {**style.look(solver), "linestyle": "", "markersize": 4}


def _places(ax: Any, order: list[str]) -> None:
    ax.set(ylim=(len(order) - 0.4, -0.6), xlim=(0.2, len(order) + 6.9))
    ax.set_xticks([1, 5, 10, len(order)])
    ax.set_yticks(range(len(order)), order)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _curves(ax: Any, rows: Frame, milliseconds: float, config: Config) -> None:
    for solver, part in rows.groupby("solver", sort=False):
        if solver not in _NAMED:
            ax.plot(part.nfe, part.rms, color="#d0d0d0", lw=0.8, zorder=1)
    for solver in _NAMED:
        part = rows[rows.solver == solver]
        if len(part):
            panels.curve(ax, part.nfe, part.rms, part.low, part.high, label=solver, **style.look(solver))
    ax.set_yscale("log")
    for calls in config["calls"]:
        ax.text(calls, 1.02, f"{style.as_text(calls * milliseconds)} ms", transform=ax.get_xaxis_transform(),
                fontsize=panels.SMALL, ha="center", va="bottom", color="#555555")  # fmt: skip
    ax.set_title(ax.get_title(loc="left"), fontsize=8.5, pad=13)
