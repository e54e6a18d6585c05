"""How much better than the best published sampler is a table made for the model, by moving what, and elsewhere?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis import Model, ideal_denoiser
from deis_analysis.tableau import Tableau
from deis_analysis.tuning import GRIDS, choose, run_together, target_of, tune
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED
from deis_analysis.tuning.held_out import summary
from deis_analysis.tuning.judged import Clouds, judge, ratio_band
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at
from experiments.core.paths import FIGURES
from experiments.models.problems import digits, digits_labels, vp_linear

NAME = "tuned_samplers"
QUESTION = (
    "How far below the best untuned sampler is a table that was tuned for the model, on noises it never saw, and on "
    "other models and numbers of calls?"
)
ASKED = "DEIS_ANALYSIS_TUNE"  # environment: tune anew, an hour; without it the committed numbers are drawn
COMMITTED = "`make tuned-samplers` tunes anew, an hour"
CONFIG: Config = {
    "cells": {"digits": [5, 10], "digits8": [5, 10], "digits8_flow": [5, 10]},
    "samples": 192, "choosing": 32, "held_out": 128, "rounds": 14, "degree": -1,
    "parts_at": {"digits": 5, "digits8": 5, "digits8_flow": 5},
    "seed": 0, "grids": list(CUSTOMARY),
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
_FEW = {"samples": 16, "choosing": 8, "held_out": 16, "rounds": 2, "grids": ["t2", "logrho"]}
QUICK: Config = {
    **_FEW, "cells": {"mixture": [4]}, "samples": 32, "choosing": 16, "parts_at": {"mixture": 4},
    "transfer": {
        **CONFIG["transfer"], **_FEW, "tasks": {"all digits": {"part": 16}, "smoothed": {"part": 16, "std": 0.25}},
        "nfe": 4, "other_nfe": [8],
    },
}  # fmt: skip
PARTS = {"times": {"tune_coefficients": False}, "coefficients": {"tune_times": False, "tune_told": False}}
KINDS = {"published": "published, usual grid", "aware": "published, aware grid", "times": "tuned: times",
         "coefficients": "tuned: weights", "both": "tuned: both"}  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "cell" (model, calls, what: held-out error, law, ratio), "transfer" (tuned on, used on: ratio to the
    best untuned there) and "calls" (tuned times at other numbers)."""
    if set(config["cells"]) == set(CONFIG["cells"]) and not os.environ.get(ASKED):
        progress(1.0)
        return pd.read_csv(FIGURES / f"{NAME}.csv")
    cells = [(model, nfe) for model, counts in config["cells"].items() for nfe in counts]
    rows: list[dict[str, Any]] = []
    for done, (model, nfe) in enumerate(cells, 1):
        rows += _cell(model, nfe, config)
        progress(done / (len(cells) + 1))
    return pd.DataFrame([*rows, *_transfer(config["transfer"])])


def _cell(model: str, nfe: int, config: Config) -> Iterator[dict[str, Any]]:
    """All that is compared on one model at one number of calls, on the same held-out noise."""
    labels, tables = dict[str, str](), dict[str, Tableau]()
    for what, grids, solvers in (("published", config["grids"], PUBLISHED),
                                 ("aware", [kind for kind in GRIDS if kind != "oss"], PUBLISHED),
                                 ("registry", None, None)):  # fmt: skip
        best = _best(model, nfe, config, grids=grids, solvers=solvers)
        labels[what], tables[what] = best.label, best.table
    parts = PARTS if nfe == config["parts_at"].get(model) else {}
    for what, moves in {**parts, "both": {}}.items():
        found = _tuned(model, nfe, config, held_out=config["held_out"], cache=FIGURES / ".cache" / "tuned", **moves)
        labels[what], tables[what] = f"{found.report['start']}, tuned", found.tableau
    target = target_of(model)
    x, truth = _held_out(target, config)
    clouds, found = Clouds(truth), _compared(target, tables, "registry", x, truth)
    for what, (end, judged, ratio) in found.items():
        names = ("energy_ratio", "energy_low", "energy_high")
        energy = dict(zip(names, clouds.ratio_band(end, found["registry"][0]), strict=True))
        yield {"part": "cell", "model": model, "nfe": nfe, "what": what, "label": labels[what], **ratio,
               "energy": clouds.squared(end), **energy, **summary(judged)}  # fmt: skip


def _best(model: Any, nfe: int, config: Config, **among: Any) -> Any:
    """The first cell of the ranking."""
    found = choose(model, nfe, samples=config["choosing"], seed=config["seed"], certify=False, **among)
    return found.ranking[nfe][0].cell


def _tuned(model: Any, nfe: int, config: Config, **more: Any) -> Any:
    return tune(
        model, nfe, certify=False, **{key: config[key] for key in ("degree", "samples", "rounds", "seed")}, **more
    )


def _held_out(target: Any, config: Config) -> tuple[Any, Any]:
    x = target.noise(config["held_out"], config["seed"] + 7)
    return x, target.truth(x)[0]


def _compared(target: Any, tables: dict[str, Tableau], untuned: str, x: Any, truth: Any) -> dict[str, tuple[Any, ...]]:
    """Of each table: its end states, how they are judged, the ratio to the RMS of the ``untuned`` with its band."""
    ends = dict(zip(tables, run_together(list(tables.values()), target.model, x), strict=True))
    judged = {name: judge(end, truth) for name, end in ends.items()}
    ratios = {name: ratio_band(found.squares, judged[untuned].squares) for name, found in judged.items()}
    names = ("ratio", "ratio_low", "ratio_high")
    return {name: (ends[name], judged[name], dict(zip(names, ratios[name], strict=True))) for name in tables}


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
    """Each table, tuned on one model, on all of them; of the first one's times also at other numbers of calls."""
    targets = {name: target_of(denoiser(config, **given), shape=(64,)) for name, given in config["tasks"].items()}
    tuned = {name: _tuned(target, config["nfe"], config, held_out=8) for name, target in targets.items()}
    rows: list[dict[str, Any]] = []
    for place, (used, target) in enumerate(targets.items()):
        x, truth = _held_out(target, config)
        asked = {("transfer", config["nfe"]): {source: found.tableau for source, found in tuned.items()}}
        asked |= {("calls", n): {used: tuned[used].at(n)} for n in ([] if place else config["other_nfe"])}
        for (part, nfe), tables in asked.items():
            best = _best(target, nfe, config, solvers=PUBLISHED, grids=config["grids"]).table
            found = _compared(target, {"": best, **tables}, "", x, truth)
            for source in tables:
                _, judged, ratio = found[source]
                rows.append({"part": part, "tuned_on": source, "used_on": used, "nfe": nfe, "label": best.name,
                             "rms": judged.rms, "flips": float(judged.flips.mean()), **ratio})  # fmt: skip
    return sorted(rows, key=lambda row: row["part"] == "calls")


# -- what it says ---------------------------------------------------------------------------------
def which(frame: Frame) -> list[str]:
    """The README's table "Which sampler?", line by line: what `choose` put first, and what `tune` made of it."""
    lines = ["| model, calls | first of `choose` | RMS error | tuned, of it |", "|---|---|---|---|"]
    for (model, nfe), rows in at(frame, part="cell").groupby(["model", "nfe"], sort=False):
        (_, best), (_, both) = (next(at(rows, what=what).iterrows()) for what in ("registry", "both"))
        name, grid = best.label.split(" on ")
        error = f"{style.as_text(best.rms)} ({style.as_text(best.low)}–{style.as_text(best.high)})"
        ratio = f"{both.ratio:.2f} ({both.ratio_low:.2f}–{both.ratio_high:.2f})"
        lines.append(f"| {model}, {nfe:.0f} | `{name}` on {grid} | {error} | {ratio} |")
    return lines


def _headline(both: Frame) -> str:
    best = both.loc[both.ratio.idxmin()]
    return f"Tuned to {best.model}, a table of {best.nfe:.0f} calls has {best.ratio:.2f} of the best untuned error"


def verdict(frame: Frame, config: Config) -> str:
    """The best ratio, in how many cells it is sure, whether the law is worse, and what it is on another model."""
    both, rows = at(frame, part="cell", what="both"), at(frame, part="transfer")
    home, away = rows[rows.tuned_on == rows.used_on], rows[rows.tuned_on != rows.used_on]
    return (
        f"{_headline(both)} on held-out noises; less beyond the band in {(both.ratio_high < 1).sum()} of {len(both)} "
        f"cases, the energy distance larger in {(both.energy_low > 1).sum()}; of denoisers of the digits it has "
        f"{home.ratio.min():.2f} to {home.ratio.max():.2f} on its own and {away.ratio.min():.2f} to "
        f"{away.ratio.max():.2f} on another (worse beyond the band in {(away.ratio_low > 1).sum()} of {len(away)})."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Ratios by model and calls; below, tuned on against used on, and the tuned times at other numbers of calls."""
    cells, asked = at(frame, part="cell"), config["transfer"]
    note = (
        f"Upper: RMS error on {config['held_out']} held-out noises over that of the best of the registry × all grids; "
        f"bars: 95 %, paired over samples. Lower: ideal denoisers of the digits, {asked['held_out']} held-out noises, "
        "over the best published sampler on usual grids for the model it is used on; left: "
        f"{asked['nfe']} calls, bold: beyond the band."
    )
    fig = panels.sheet(_headline(at(cells, what="both")), note, 5.4)
    models, keys = list(cells.model.unique()), [(n, what) for n in sorted(cells.nfe.unique()) for what in KINDS]
    keys = [(n, what) for n, what in keys if len(at(cells, nfe=n, what=what))]
    axes, _ = panels.small_multiples(fig, models, 3, share_y=False, left=1.75, end=0.5)
    for ax, model in zip(axes, models, strict=True):
        found = at(cells, model=model).set_index(["nfe", "what"])[["ratio", "ratio_low", "ratio_high"]]
        rows = [tuple(found.loc[key]) if key in found.index else (np.nan,) * 3 for key in keys]
        names = [f"{n:.0f} calls, {KINDS[what]}" for n, what in keys]
        panels.intervals(ax, rows, [0.2, 0.5, 1, 2], names if ax is axes[0] else None)
    grid = fig.add_gridspec(1, 2, width_ratios=[1.8, 1], wspace=0.35,
                            **style.body(fig, 0.3, 1.1, 0.1, extra_top=3.2))  # fmt: skip
    left, right = fig.add_subplot(grid[0]), fig.add_subplot(grid[1])
    _draw_transfer(left, at(frame, part="transfer"))
    calls = at(frame, part="calls")
    panels.intervals(right, list(zip(calls.ratio, calls.ratio_low, calls.ratio_high, strict=True)), [0.7, 1, 1.5, 2.5],
                     [f"{n:.0f} calls" for n in calls.nfe])  # fmt: skip
    right.set_title("tuned times at other calls", fontsize=8.5, pad=3)
    return fig


def _draw_transfer(ax: Any, rows: Frame) -> None:
    """Bluer than white is better than the best untuned one, redder worse; shades end at 1.5 octaves."""
    names = list(rows.tuned_on.unique())
    tables = rows.pivot(index="tuned_on", columns="used_on").loc[names]
    octaves = np.log2(tables.ratio[names].to_numpy())
    sure = ((tables.ratio_high < 1) | (tables.ratio_low > 1))[names].to_numpy()
    ax.imshow(octaves, cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
    for (y, x), octave in np.ndenumerate(octaves):
        ink, weight = "white" if abs(octave) > 1 else "black", "bold" if sure[y, x] else "normal"
        ax.text(x, y, f"{2**octave:.2f}", ha="center", va="center", fontsize=panels.TICKS, color=ink, fontweight=weight)
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n").replace(" of", "\nof") for name in names])
    ax.set_yticks(range(len(names)), names)
    ax.set_title("tuned on (down), used on (across)", fontsize=8.5, pad=3)
    ax.tick_params(length=0, labelsize=panels.TICKS)
    ax.grid(visible=False)
