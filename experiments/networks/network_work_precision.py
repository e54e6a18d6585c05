"""Which sampler suits a trained network? Path error against the certified flow of the very network, ranked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio
from experiments.models.studies import Study

NAME = "network_work_precision"
QUESTION = "Which sampler is most accurate on the shipped networks at 5, 10 and 20 model calls?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["digits8", "digits8_flow", "mnist28"],
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
        "grids": "each sampler's customary one and those of also; the best of them, by all samples, is ranked",
        "bands": "95 %, bootstrap over the samples, paired; of a rank its 2.5 and 97.5 % quantiles, the best "
        "grid chosen anew in each draw",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["digits8", "digits8_flow"], "samples": 8, "calls": [5, 10],
                 "ranked_at": [5, 10], "draws": 200}  # fmt: skip
THOROUGH: Config = {"also": ["t1", "t2", "t3", "rho7", "logrho"], "calls": [5, 6, 7, 8, 10, 12, 14, 17, 20, 30, 40],
                    "network_samples": 256}  # fmt: skip


_TICKS = tuple(m * 10.0**e for e in range(-5, 2) for m in (1, 3))


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, solver, grid, calls), "rank" (on the best grid, ranked) and "reference"."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        study = studies.on_its_own_process(name, config)
        reference = study.certified()
        rows.append({"part": "reference", "model": name, "title": study.title, "samples": len(study.x_T),
                     "rms": reference.error_estimate, "agreement": reference.agreement, "nfe": reference.nfe,
                     "certified": reference.certified, "process": repr(study.process)})  # fmt: skip
        part = cells.part_of(progress, done, len(config["models"]))
        found, tried = _errors(study, reference.states[-1], config, part)
        rows += [{"model": name, **row} for row in found]
        for calls in config["ranked_at"]:
            rows += [{"model": name, "calls": calls, **row} for row in ranked(tried[calls], config)]
    return pd.DataFrame(rows)


def _errors(study: Study, truth: Any, config: Config, progress: Progress) -> tuple[cells.Rows, dict[int, Any]]:
    """(rows, calls → solver → grid → (n,) mean square errors where ranked)."""
    customary, tried = config["customary"], dict[int, Any]()

    def grids(solver: str, calls: int) -> list[str]:
        return [customary[solver], *(config["also"] if calls in config["ranked_at"] else ())]

    rows = cells.sweep(study, customary, grids, config["calls"], cells.squares_to(truth), progress=progress)
    for row in rows:
        squares, solver, kind = row.pop("squares"), row["solver"], row["grid"]
        low, high = bootstrap_ratio(squares, np.ones_like(squares), config["seed"], config["draws"])
        row |= {"part": "error", "customary": kind == customary[solver], "rms": float(np.sqrt(squares.mean())),
                "low": low, "high": high}  # fmt: skip
        del row["steps"]
        if row["calls"] in config["ranked_at"]:
            tried.setdefault(row["calls"], {}).setdefault(solver, {})[kind] = squares
    return rows, tried


def ranked(tried: dict[str, dict[str, Array]], config: Config) -> list[dict[str, Any]]:
    """Solvers by error on the best grid: RMS, rank with its band, and the ratio to the first with its band.

    Args:
        tried: solver → grid → (n,) mean square errors of the same starts.
    """
    best = {solver: min((float(v.mean()), kind) for kind, v in grids.items())[1] for solver, grids in tried.items()}
    squares = {solver: tried[solver][kind] for solver, kind in best.items()}
    order = sorted(squares, key=lambda solver: float(squares[solver].mean()))
    table = np.array([squares[solver] for solver in order])
    index = np.random.default_rng(config["seed"]).integers(0, table.shape[1], (config["draws"], table.shape[1]))
    again = np.array([np.min([v[index].mean(axis=-1) for v in tried[solver].values()], axis=0) for solver in order])
    ranks = 1 + (again[:, None, :] > again[None, :, :]).sum(axis=1)
    rows = []
    for place, solver in enumerate(order):
        first, last = np.quantile(ranks[place], [0.025, 0.975])
        low, high = bootstrap_ratio(table[place], table[0], config["seed"], config["draws"])
        rms_low, rms_high = bootstrap_ratio(table[place], np.ones(table.shape[1]), config["seed"], config["draws"])
        rows.append({"part": "rank", "solver": solver, "grid": best[solver], "rank": place + 1, "rank_low": first,
                     "rank_high": last, "rms": float(np.sqrt(table[place].mean())), "low": rms_low, "high": rms_high,
                     "ratio": float(np.sqrt(table[place].mean() / table[0].mean())), "ratio_low": low,
                     "ratio_high": high})  # fmt: skip
    return rows


# -- what was found -------------------------------------------------------------------------------
def ranking(frame: Frame, model: str, calls: int) -> Frame:
    """Rows of part "rank", the most accurate solver first."""
    rows = frame[(frame.part == "rank") & (frame.model == model) & (frame.calls == calls)]
    return rows.sort_values("rank").set_index("solver")


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


def verdict(frame: Frame, config: Config) -> str:
    """Who is first at each number of calls on each network, and how certain the truth is."""
    reference = frame[frame.part == "reference"].set_index("model")
    won = []
    for name in config["models"]:
        firsts = [first(frame, name, calls) for calls in config["ranked_at"]]
        won.append(f"{name}: {', '.join(firsts)}")
    sure = [name for name in config["models"] if bool(reference.certified[name])]
    return (
        f"Least RMS path error at {', '.join(map(str, config['ranked_at']))} calls, of the best of customary and "
        f"{', '.join(config['also'])} grids ('or': not distinct at 95 %): {'; '.join(won)}. The truth is certified for "
        f"{len(sure)} of {len(config['models'])} networks: two methods differ by at most "
        f"{', '.join(style.as_text(reference.agreement[name], 1) for name in config['models'])} in any pixel."
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Rows: networks. Left: error against calls on customary grids; right: the ranking with its bands."""
    reference = frame[frame.part == "reference"].set_index("model")
    middle = sorted(config["ranked_at"])[len(config["ranked_at"]) // 2]
    firsts = [f"{first(frame, name, middle)} on {name}" for name in config["models"]]
    headline = f"Most accurate at {middle} calls: {', '.join(firsts)}"
    note = (
        f"Each network on its own process, {int(reference.samples.max())} samples; RMS error per pixel (images in "
        "[-1, 1]) against the certified flow of the same network; 95 % bands. Left: customary grids. Right: the best "
        f"of customary and {', '.join(config['also'])} grid; thick: band of the error; number: rank and its 95 % band."
    )
    count = len(config["models"])
    fig = style.new_figure(17.5, 1.5 + 4.0 * count, headline, note)
    columns = 1 + len(config["ranked_at"])
    margins = style.body(fig, bottom=0.55, left=0.75, right=0.2, extra_top=0.35)
    axes = fig.subplots(count, columns, squeeze=False, gridspec_kw={
        **margins, "wspace": 0.8, "hspace": 0.28, "width_ratios": [1.15] + [1.0] * (columns - 1)})  # fmt: skip
    for ax in axes[:, 0]:  # room for the names of its curves
        place = ax.get_position()
        ax.set_position((place.x0, place.y0, 0.8 * place.width, place.height))
    for row, name in zip(axes, config["models"], strict=True):
        rows = frame[(frame.part == "error") & (frame.model == name) & (frame.customary == True)]  # noqa: E712
        _curves(row[0], rows, config)
        row[0].set_title(str(reference.title[name]))
        for ax, calls in zip(row[1:], config["ranked_at"], strict=True):
            _ranks(ax, ranking(frame, name, calls), calls)
    axes[-1, 0].set_xlabel("model calls (NFE)")
    return fig


def _curves(ax: Any, rows: Frame, config: Config) -> None:
    ends = []
    for solver, part in rows.groupby("solver", sort=False):
        look = {**style.look(str(solver)), "linewidth": 1.5, "markersize": 4.5}
        ax.fill_between(part.nfe, part.low, part.high, color=look["color"], alpha=0.08, lw=0)
        ax.plot(part.nfe, part.rms, **look)
        ends.append((part.nfe.iloc[-1], part.rms.iloc[-1], str(solver), look["color"]))
    ax.set(xscale="log", yscale="log", ylabel="RMS error per pixel")
    style.plain_log_ticks(ax.xaxis, config["calls"])
    ax.set_xlim(rows.nfe.min() * 0.93, rows.nfe.max() * 1.04)
    style.end_labels(ax, ends, 8)


def _ranks(ax: Any, rows: Frame, calls: int) -> None:
    for y, (solver, at) in enumerate(rows.iterrows()):
        colour = style.look(str(solver))["color"]
        ax.plot([at.low, at.high], [y, y], color=colour, lw=4, alpha=0.45, solid_capstyle="butt")
        ax.plot(at.rms, y, "o", color=colour, markersize=5)
        ax.annotate(f"{at['rank']:.0f} ({at.rank_low:.0f}-{at.rank_high:.0f})", (1.0, y), xytext=(-2, 0), fontsize=8,
                    xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="center",
                    color="#555555")  # fmt: skip
    ax.set(xscale="log", title=f"{calls} calls", ylim=(len(rows) - 0.5, -0.5))
    low, high = float(rows.low.min()), float(rows.high.max())
    ax.set_xlim(low * 0.8, high * (high / low) ** 0.35)  # room for the ranks
    style.plain_log_ticks(ax.xaxis, [v for v in _TICKS if low * 0.8 <= v <= high])
    ax.set_yticks(range(len(rows)), [f"{solver} ({at.grid})" for solver, at in rows.iterrows()], fontsize=8.5)
    ax.grid(axis="y", visible=False)
