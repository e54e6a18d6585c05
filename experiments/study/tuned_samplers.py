"""How much better than the best published sampler is a table made for the model, by moving what, and elsewhere?"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
from joblib import Memory
from matplotlib.figure import Figure

from deis_analysis import Model, ideal_denoiser
from deis_analysis.tableau import Tableau
from deis_analysis.tuning import GRIDS, choose, run_together, target_of, tune
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED
from deis_analysis.tuning.held_out import summary
from deis_analysis.tuning.judged import Clouds, judge, ratio_band
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.paths import FIGURES, kept_in
from experiments.models.problems import digits, digits_labels, vp_linear

NAME = "tuned_samplers"
QUESTION = (
    "How far below the best untuned sampler is a table that was tuned for the model, on noises it never saw, and on "
    "other models and numbers of calls?"
)
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
    "transfer": {
        "beta_min": 0.1, "beta_max": 20.0,
        "tasks": {
            "all digits": {}, "smoothed": {"std": 0.25}, "half of them": {"part": 2},
            "guided, w = 1.5": {"digit": 3, "scale": 1.5}, "guided, w = 3": {"digit": 3, "scale": 3.0},
        },
        "nfe": 5, "other_nfe": [4, 6, 8, 10],
        "samples": 160, "held_out": 160, "choosing": 32, "rounds": 10, "degree": -1, "seed": 0,
        "grids": list(CUSTOMARY),
    },
}  # fmt: skip
QUICK: Config = {
    "cells": {"mixture": [4]}, "samples": 32, "choosing": 16, "held_out": 16, "rounds": 2, "parts_at": {"mixture": 4},
    "grids": ["t2", "logrho"],
    "transfer": {
        **CONFIG["transfer"], "tasks": {"all digits": {"part": 16}, "smoothed": {"part": 16, "std": 0.25}}, "nfe": 4,
        "other_nfe": [8], "samples": 16, "held_out": 16, "choosing": 8, "rounds": 2, "grids": ["t2", "logrho"],
    },
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


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "cell" (model, calls, what: held-out error, law, ratio), "cause" (what an error is made of),
    "transfer" (tuned on, used on: ratio to the best untuned there) and "calls" (tuned times at other numbers)."""
    if set(config["cells"]) == set(CONFIG["cells"]) and not os.environ.get(ASKED):
        progress(1.0)
        return pd.read_csv(FIGURES / f"{NAME}.csv")
    cells = [(model, nfe) for model, counts in config["cells"].items() for nfe in counts]
    rows: list[dict[str, Any]] = []
    for done, (model, nfe) in enumerate(cells):
        rows += _cell(model, nfe, config)
        progress((done + 1) / (len(cells) + 1))
    return pd.DataFrame(rows + _transfer(config["transfer"]))


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


# -- on another model -----------------------------------------------------------------------------
def denoiser(config: Config, part: int = 1, std: float = 0.0, digit: int | None = None, scale: float = 1.0) -> Model:
    """The ideal denoiser of every ``part``-th digit, smoothed by ``std``; guided to one ``digit`` with ``scale``."""
    import torch

    process, data = vp_linear(config), torch.as_tensor(digits())
    everything = ideal_denoiser(data[::part], process, std)
    if digit is None:
        return Model(everything, process, "eps")
    own = ideal_denoiser(data[torch.as_tensor(digits_labels() == digit)], process, std)

    def guided(x: Any, t: float) -> Any:
        plain = everything(x, t)
        return plain + scale * (own(x, t) - plain)

    return Model(guided, process, "eps")


def _transfer(config: Config) -> list[dict[str, Any]]:
    targets = {name: target_of(denoiser(config, **given), shape=(64,)) for name, given in config["tasks"].items()}
    nfe, held_out = config["nfe"], {}

    def chosen(name: str, calls: int) -> Tableau:
        found = choose(targets[name], calls, solvers=PUBLISHED, grids=config["grids"], samples=config["choosing"],
                       seed=config["seed"], certify=False)  # fmt: skip
        return found.ranking[calls][0].cell.table

    tuned = {}
    for name, target in targets.items():
        tuned[name] = tune(
            target, nfe, degree=config["degree"], samples=config["samples"], held_out=8, rounds=config["rounds"],
            seed=config["seed"], certify=False,
        )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, target in targets.items():
        x = target.noise(config["held_out"], config["seed"] + 7)
        held_out[name] = x, target.truth(x)[0]
        tables = {source: found.tableau for source, found in tuned.items()}
        for source, found in _against(target, tables, chosen(name, nfe), *held_out[name]).items():
            rows.append({"part": "transfer", "tuned_on": source, "used_on": name, "nfe": nfe, **found})
    first = next(iter(targets))
    for calls in config["other_nfe"]:
        tables = {"tuned times": tuned[first].at(calls)}
        for _, found in _against(targets[first], tables, chosen(first, calls), *held_out[first]).items():
            rows.append({"part": "calls", "tuned_on": first, "used_on": first, "nfe": calls, **found})
    return rows


def _against(target: Any, tables: dict[str, Tableau], untuned: Tableau, x: Any, truth: Any) -> dict[str, Any]:
    """Of each table: RMS, and its ratio to that of the untuned one with the band, on the same noise."""
    ends = run_together([untuned, *tables.values()], target.model, x)
    before, *others = (judge(end, truth) for end in ends)
    found = {}
    for name, judged in zip(tables, others, strict=True):
        ratio, low, high = ratio_band(judged.squares, before.squares)
        found[name] = {
            "rms": judged.rms, "untuned": before.rms, "ratio": ratio, "ratio_low": low, "ratio_high": high,
            "unflipped_ratio": _unflipped(judged, before),
            "flips": float(judged.flips.mean()), "flips_untuned": float(before.flips.mean()), "label": untuned.name,
        }  # fmt: skip
    return found


def _unflipped(judged: Any, before: Any) -> float:
    """The ratio over the samples that end nearest to their own reference with both."""
    kept = ~(judged.flips | before.flips)
    return ratio_band(judged.squares[kept], before.squares[kept])[0] if kept.any() else float("nan")


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
    """Ratios of the tuned tables, and whether the law is worse; at home, on other models, at other numbers of calls."""
    both, (home, away) = _both(frame), _home_and_away(frame)
    sure = int((both.ratio_high < 1).sum())
    worse = int((both.energy_low > 1).sum())
    calls, asked = frame[frame.part == "calls"], config["transfer"]
    return (
        f"On held-out noises a tuned table has {both.ratio.min():.2f} to {both.ratio.max():.2f} of the RMS error of "
        f"the best of the registry on any grid; less beyond the band in {sure} of {len(both)} cases, and the energy "
        f"distance is larger beyond the band in {worse}. Of denoisers of the digits, at {asked['nfe']} calls, it has "
        f"{home.ratio.min():.2f} to {home.ratio.max():.2f} of the best published error on the model that it was tuned "
        f"for; {_elsewhere(away)} ({away.ratio.min():.2f} to {away.ratio.max():.2f}); its times at "
        f"{style.in_words([str(n) for n in calls.nfe])} calls give {calls.ratio.min():.2f} to {calls.ratio.max():.2f}."
    )


def _both(frame: Frame) -> Frame:
    return frame[(frame.part == "cell") & (frame.what == "both")]


def _home_and_away(frame: Frame) -> tuple[Frame, Frame]:
    rows = frame[frame.part == "transfer"]
    return rows[rows.tuned_on == rows.used_on], rows[rows.tuned_on != rows.used_on]


def _elsewhere(away: Frame) -> str:
    better, worse = int((away.ratio_high < 1).sum()), int((away.ratio_low > 1).sum())
    return f"on another it is better beyond the band in {better} and worse in {worse} of {len(away)} cases"


def draw(frame: Frame, config: Config) -> Figure:
    """Ratios by model and calls; below, tuned on against used on, and the tuned times at other numbers of calls."""
    both = _both(frame)
    best = both.loc[both.ratio.idxmin()]
    asked = config["transfer"]
    headline = f"Tuned to {best.model}, a table of {best.nfe} calls has {best.ratio:.2f} of the best untuned error"
    note = (
        f"Upper: RMS error on {config['held_out']} held-out noises over that of the best of the registry × all grids; "
        f"bars: 95 %, paired over samples; the best were chosen on {config['choosing']} other noises. Lower: ideal "
        f"denoisers of the digits, {asked['held_out']} held-out noises, RMS error over that of the best published "
        f"sampler on customary grids for the model it is used on; {asked['nfe']} calls at the left, bold: beyond the "
        "95 % band."
    )
    fig = panels.sheet(headline, note, 6.4)
    grid = fig.add_gridspec(2, 2, height_ratios=[1.25, 1], width_ratios=[1.9, 1],
                            **style.body(fig, 0.45, 1.35, 0.1, 0.55), hspace=0.42, wspace=0.3)  # fmt: skip
    upper, left, right = (fig.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    _draw_ratios(upper, frame[frame.part == "cell"])
    _draw_transfer(left, frame[frame.part == "transfer"])
    _draw_calls(right, frame[frame.part == "calls"])
    for ax in (upper, left, right):
        ax.tick_params(labelsize=panels.TICKS)
    fig.legend(*upper.get_legend_handles_labels(), loc="upper center", ncols=3, fontsize=7.5, columnspacing=1.4,
               bbox_to_anchor=(0.5, fig.subplotpars.top - 0.02 / fig.get_size_inches()[1]))  # fmt: skip
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
                row.ratio, y, xerr=np.abs(error), fmt="o", ms=3.5, color=colour, elinewidth=1.4,
                label=None if row.what in seen else label,
            )  # fmt: skip
            seen.add(row.what)
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, [0.2, 0.3, 0.5, 0.7, 1, 1.5, 2])
    ax.set_yticks(range(len(groups)), [f"{model}, {nfe} calls" for (model, nfe), _ in groups])
    ax.invert_yaxis()
    ax.set_xlabel("held-out RMS error / best untuned", fontsize=8.5, labelpad=1)


def _draw_transfer(ax: Any, rows: Frame) -> None:
    names = list(dict.fromkeys(rows.tuned_on))
    cells = {(row.tuned_on, row.used_on): row for row in rows.itertuples()}
    table = [[cells[down, across] for across in names] for down in names]
    reach = 1.5  # octaves of the deepest shade
    ax.imshow([[np.log2(row.ratio) for row in line] for line in table], cmap="RdBu_r", vmin=-reach, vmax=reach,
              aspect="auto")  # fmt: skip
    for y, line in enumerate(table):
        for x, row in enumerate(line):
            sure, dark = row.ratio_high < 1 or row.ratio_low > 1, abs(np.log2(row.ratio)) > 1
            ax.text(x, y, f"{row.ratio:.2f}", ha="center", va="center", fontsize=7.5,
                    color="white" if dark else "black", fontweight="bold" if sure else "normal")  # fmt: skip
    ax.set_xticks(range(len(names)), [name.replace("guided, ", "") for name in names])
    ax.set_yticks(range(len(names)), names)
    ax.set_title("tuned on (down), used on (across)", fontsize=8.5, pad=3)
    ax.tick_params(length=0)
    ax.grid(visible=False)


def _draw_calls(ax: Any, rows: Frame) -> None:
    error = np.abs([rows.ratio - rows.ratio_low, rows.ratio_high - rows.ratio])
    ax.errorbar(rows.nfe, rows.ratio, yerr=error, fmt="o-", ms=3.5, color=style.VERMILLION)
    ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    ax.set_xticks(rows.nfe)
    ax.set_xlabel("calls", fontsize=8.5, labelpad=1)
    ax.set_title("tuned times at other calls", fontsize=8.5, pad=3)
