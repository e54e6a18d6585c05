"""How much better than the best published sampler is a table that was made for the model, and by moving what?"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
from joblib import Memory
from matplotlib.figure import Figure

from deis_analysis.tableau import Tableau
from deis_analysis.tuning import GRIDS, choose, run_together, target_of, tune
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED
from deis_analysis.tuning.held_out import summary
from deis_analysis.tuning.judged import Clouds, judge, ratio_band
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.paths import FIGURES, kept_in

NAME = "tuned_samplers"
QUESTION = "How far below the best untuned sampler is a table that was tuned for the model, on noises it never saw?"
ASKED = "DEIS_ANALYSIS_TUNE"  # environment: tune anew, an hour; without it the committed numbers are drawn
COMMITTED = "`make tuned-samplers` tunes anew, an hour"
CACHE = Memory(kept_in(FIGURES / ".cache" / "tuned"), verbose=0)
CONFIG: Config = {
    "cells": {"digits": [5, 10], "digits8": [5, 10], "digits8_flow": [5, 10]},
    "samples": 192,
    "samples_of": {},  # model → another number of training noises
    "choosing": 32,
    "held_out": 128,
    "rounds": 14,
    "degree": -1,
    "parts_at": {"digits": 5, "digits8": 5, "digits8_flow": 5},
    "seed": 0,
    "grids": list(CUSTOMARY),
    # FID on CIFAR-10 of another network, as published: GITS (Chen et al. 2024), EPD (Zhu et al. 2025), and, of LD3 and
    # S4S, Table 2 of GAS
    "published_fid": {
        "iPNDM": {"5": 13.59, "8": 3.69, "10": 2.77},
        "iPNDM + GITS": {"5": 8.38, "8": 3.24, "10": 2.49},
        "best LD3": {"8": 2.81, "10": 2.38},
        "S4S-Alt": {"5": 3.73, "8": 2.39, "10": 2.18},
        "EPD (2 parallel calls)": {"5": 4.33, "9": 2.49},
    },
}
QUICK: Config = {
    "cells": {"mixture": [4]}, "samples": 32, "choosing": 16, "held_out": 16, "rounds": 2, "parts_at": {"mixture": 4},
    "grids": ["t2", "logrho"],
}  # fmt: skip
PARTS = {"times": (True, True, False), "coefficients": (False, False, True)}  # beside both: times and told, or weights
KINDS = {
    "published": ("best published on a customary grid", style.BLACK),
    "aware": ("best on a model-aware grid", style.GREEN),
    "registry": ("best of the registry × all grids", style.GREY),
    "times": ("tuned: times", style.SKY),
    "coefficients": ("tuned: coefficients", style.ORANGE),
    "both": ("tuned: both", style.VERMILLION),
}

_LINES = (style.PURPLE, style.GREEN, style.SKY, style.VERMILLION, style.ORANGE)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "cell" (model, calls, what: held-out error, law, ratio) and "cause" (what an error is made of)."""
    if set(config["cells"]) == set(CONFIG["cells"]) and not os.environ.get(ASKED):
        progress(1.0)
        return pd.read_csv(FIGURES / f"{NAME}.csv")
    cells = [(model, nfe) for model, counts in config["cells"].items() for nfe in counts]
    rows: list[dict[str, Any]] = []
    for done, (model, nfe) in enumerate(cells):
        rows += _cell(model, nfe, config)
        progress((done + 1) / len(cells))
    return pd.DataFrame(rows)


def _cell(model: str, nfe: int, config: Config) -> list[dict[str, Any]]:
    """All that is compared on one model at one number of calls, on the same held-out noise."""
    tables: dict[str, tuple[str, Tableau]] = {}
    for what, grids, solvers in (
        ("published", config["grids"], PUBLISHED),
        ("aware", [kind for kind in GRIDS if kind != "oss"], PUBLISHED),
        ("registry", None, None),
    ):
        label, text = _chosen(model, nfe, grids, solvers, config["choosing"], config["seed"])
        tables[what] = (label, Tableau.from_json(text))
    samples = config["samples_of"].get(model, config["samples"])
    given = (config["degree"], samples, config["held_out"], config["rounds"], config["seed"])
    causes: dict[str, Any] = {}
    parts = PARTS if nfe == config["parts_at"].get(model) else {}
    for what, moves in (parts | {"both": (True, True, True)}).items():
        label, text, budget = _tuned(model, nfe, moves, *given)
        tables[what] = (f"{label}, tuned", Tableau.from_json(text))
        causes |= budget if what == "both" else {}
    rows = _measured(model, nfe, tables, config)
    key = {"part": "cause", "model": model, "nfe": nfe}
    for what, budget in causes.items():
        for cause, rms in budget["rms"].items():
            rows.append({**key, "what": what, "label": cause, "rms": rms, "share": budget["share"][cause]})
    return rows


def _measured(model: str, nfe: int, tables: dict[str, tuple[str, Tableau]], config: Config) -> list[dict[str, Any]]:
    target = target_of(model)
    x = target.noise(config["held_out"], config["seed"] + 7)
    truth, _ = target.truth(x)
    ends = dict(zip(tables, run_together([t for _, t in tables.values()], target.model, x), strict=True))
    clouds, untuned = Clouds(truth), ends["registry"]
    rows = []
    for what, (label, _) in tables.items():
        found = judge(ends[what], truth)
        ratio, low, high = ratio_band(found.squares, judge(untuned, truth).squares)
        names = ("energy_ratio", "energy_low", "energy_high")
        energy = dict(zip(names, clouds.ratio_band(ends[what], untuned), strict=True))
        rows.append(
            {"part": "cell", "model": model, "nfe": nfe, "what": what, "label": label, "ratio": ratio,
             "ratio_low": low, "ratio_high": high, "energy": clouds.squared(ends[what]), **energy, **summary(found)}
        )  # fmt: skip
    return rows


@CACHE.cache
def _chosen(model: str, nfe: int, grids: Any, solvers: Any, samples: int, seed: int) -> tuple[str, str]:
    """(label, table as JSON) of the best."""
    found = choose(model, nfe, grids=grids, solvers=solvers, samples=samples, seed=seed, certify=False)
    best = found.ranking[nfe][0].cell
    return best.label, best.table.to_json()


@CACHE.cache
def _tuned(
    model: str,
    nfe: int,
    moves: tuple[bool, bool, bool],
    degree: int,
    samples: int,
    held_out: int,
    rounds: int,
    seed: int,
) -> tuple[str, str, dict[str, Any]]:
    """(label of the start, table as JSON, budget before and after)."""
    times, told, coefficients = moves
    found = tune(
        model, nfe, degree=degree, samples=samples, held_out=held_out, rounds=rounds, seed=seed, certify=False,
        tune_times=times, tune_told=told, tune_coefficients=coefficients, cache=FIGURES / ".cache" / "tuned",
    )  # fmt: skip
    return found.report["start"], found.tableau.to_json(), found.report["budget"]


def which(frame: Frame) -> list[str]:
    """The README's table "Which sampler?", line by line: what `choose` put first, and what `tune` made of it."""
    lines = ["| model, calls | first of `choose` | RMS error | tuned, of it |", "|---|---|---|---|"]
    cells = frame[frame.part == "cell"]
    for (model, nfe), part in cells.groupby(["model", "nfe"], sort=False):
        rows = part.set_index("what")
        best, both = rows.loc["registry"], rows.loc["both"]
        name, grid = best.label.split(" on ")
        error = f"{style.as_text(best.rms)} ({style.as_text(best.low)}–{style.as_text(best.high)})"
        ratio = f"{both.ratio:.2f} ({both.ratio_low:.2f}–{both.ratio_high:.2f})"
        lines.append(f"| {model}, {nfe} | `{name}` on {grid} | {error} | {ratio} |")
    return lines


# -- what it says ---------------------------------------------------------------------------------
def verdict(frame: Frame, config: Config) -> str:
    """Ratios of the tuned tables, and whether the law is worse."""
    both = _both(frame)
    sure = int((both.ratio_high < 1).sum())
    worse = int((both.energy_low > 1).sum())
    low, high = both.ratio.min(), both.ratio.max()
    return (
        f"On held-out noises a tuned table has {low:.2f} to {high:.2f} of the RMS error of the best of the registry on "
        f"any grid; less beyond the band in {sure} of {len(both)} cases, and the energy distance is larger beyond the "
        f"band in {worse}."
    )


def _both(frame: Frame) -> Frame:
    return frame[(frame.part == "cell") & (frame.what == "both")]


def draw(frame: Frame, config: Config) -> Figure:
    """Left, ratios by model and calls; right, what the errors are made of before and after."""
    both = _both(frame)
    best = both.loc[both.ratio.idxmin()]
    headline = f"Tuned to its model, {best.nfe} calls have {best.ratio:.2f} of the best untuned error ({best.model})"
    note = (
        f"{config['held_out']} held-out noises; bars: 95 %, paired over samples; the best were chosen on "
        f"{config['choosing']} other noises. Published FIDs are of another model, beside which ours are not to be read."
    )
    fig = style.new_figure(7.0, 5.8, headline, note)
    axes = fig.subplots(1, 2, width_ratios=[1.7, 1], gridspec_kw={**style.body(fig, 1.25, 1.35), "wspace": 0.35})
    _draw_ratios(axes[0], frame[frame.part == "cell"])
    _draw_published(axes[1], config["published_fid"])
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        place = {"x": 0.02, "ncols": 2} if ax is axes[0] else {"x": 0.66, "ncols": 1}
        fig.legend(handles, labels, loc="lower left", bbox_to_anchor=(place.pop("x"), 0.0), fontsize=7, **place)
    return fig


def _draw_ratios(ax: Any, cells: Frame) -> None:
    groups = list(cells.groupby(["model", "nfe"], sort=False))
    seen: set[str] = set()
    for i, (_, part) in enumerate(groups):
        rows = [part[part.what == what].iloc[0] for what in KINDS if (part.what == what).any()]
        for j, row in enumerate(rows):
            label, colour = KINDS[row.what]
            y = i + 0.7 * (j / max(len(rows) - 1, 1) - 0.5)
            error = [[row.ratio - row.ratio_low], [row.ratio_high - row.ratio]]
            ax.errorbar(
                row.ratio, y, xerr=np.abs(error), fmt="o", ms=4, color=colour, elinewidth=1,
                label=None if row.what in seen else label,
            )  # fmt: skip
            seen.add(row.what)
    ax.axvline(1.0, color=style.GREY, lw=0.8)
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, [0.2, 0.3, 0.5, 0.7, 1, 1.5, 2])
    ax.set_yticks(range(len(groups)), [f"{model}, {nfe} calls" for (model, nfe), _ in groups], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("held-out RMS / best untuned")


def _draw_published(ax: Any, published: dict[str, dict[str, float]]) -> None:
    for i, (name, values) in enumerate(published.items()):
        calls = [int(n) for n in values]
        ax.plot(calls, list(values.values()), marker="o", ms=4, color=_LINES[i % len(_LINES)], label=name)
    ax.set_yscale("log")
    style.plain_log_ticks(ax.yaxis, [2, 3, 5, 10])
    ax.set_xticks([5, 6, 7, 8, 9, 10])
    ax.set_xlabel("calls")
    ax.set_title("FID, as published (CIFAR-10)", fontsize=8)
