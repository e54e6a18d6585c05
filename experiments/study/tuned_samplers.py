"""How much better than the best published sampler is a table made for the model, by moving what, and elsewhere?"""

from __future__ import annotations

import os
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
from experiments.core.cells import Rows
from experiments.core.frames import at, span
from experiments.core.judging import with_band
from experiments.core.paths import FIGURES
from experiments.models.problems import digits, digits_labels, vp_linear

NAME = "tuned_samplers"
QUESTION = "How far below the best untuned sampler is a table tuned for the model, on new noises, and on other models?"
ASKED = "DEIS_ANALYSIS_TUNE"  # environment: tune anew, an hour; without it the committed numbers are drawn
COMMITTED = "`make tuned-samplers` tunes anew, an hour"
CONFIG: Config = {
    "cells": {"digits": [5, 10], "digits8": [5, 10], "digits8_flow": [5, 10]},
    "samples": 192, "choosing": 32, "held_out": 128, "rounds": 14, "degree": -1,
    "parts_at": {"digits": 5, "digits8": 5, "digits8_flow": 5}, "seed": 0, "grids": list(CUSTOMARY),
    "transfer": {
        "tasks": {"all digits": {}, "smoothed": {"std": 0.25}, "half of them": {"part": 2},
                  "guided, w = 1.5": {"digit": 3, "scale": 1.5}, "guided, w = 3": {"digit": 3, "scale": 3.0}},
        "nfe": 5, "other_nfe": [4, 6, 8, 10], "samples": 160, "held_out": 160, "choosing": 32, "rounds": 10,
        "beta_min": 0.1, "beta_max": 20.0, "degree": -1, "seed": 0, "grids": list(CUSTOMARY),
    },
}  # fmt: skip
_FEW = {"samples": 16, "choosing": 8, "held_out": 16, "rounds": 2, "grids": ["t2", "logrho"]}
QUICK: Config = {
    **_FEW, "cells": {"mixture": [4]}, "samples": 32, "choosing": 16, "parts_at": {"mixture": 4},
    "transfer": {**CONFIG["transfer"], **_FEW, "nfe": 4, "other_nfe": [8],
                 "tasks": {"all digits": {"part": 16}, "smoothed": {"part": 16, "std": 0.25}}},
}  # fmt: skip
PARTS = {"times": {"tune_coefficients": False}, "coefficients": {"tune_times": False, "tune_told": False}}
KINDS = {"published": "published, usual grid", "aware": "published, aware grid", "times": "tuned: times",
         "coefficients": "tuned: weights", "both": "tuned: both"}  # fmt: skip
RATIO = ["ratio", "ratio_low", "ratio_high"]


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "cell" (model, calls, what: held-out error, law, ratio), "transfer" (tuned on, used on: ratio to the
    best untuned there) and "calls" (tuned times at other numbers)."""
    if set(config["cells"]) == set(CONFIG["cells"]) and not os.environ.get(ASKED):
        progress(1.0)
        return pd.read_csv(FIGURES / f"{NAME}.csv")
    cells = [(model, nfe) for model, counts in config["cells"].items() for nfe in counts]
    rows: Rows = []
    for done, (model, nfe) in enumerate(cells, 1):
        rows += _cell(model, nfe, config)
        progress(done / (len(cells) + 1))
    return pd.DataFrame([*rows, *_transfer(config["transfer"])])


def _cell(model: str, nfe: int, config: Config) -> Rows:
    """All that is compared on one model at one number of calls, on the same held-out noise."""
    told = {"published": _best(model, nfe, config, grids=config["grids"], solvers=PUBLISHED),
            "aware": _best(model, nfe, config, grids=[kind for kind in GRIDS if kind != "oss"], solvers=PUBLISHED),
            "registry": _best(model, nfe, config)}  # fmt: skip
    parts = PARTS if nfe == config["parts_at"].get(model) else {}
    for what, moves in {**parts, "both": {}}.items():
        tuned = _tuned(model, nfe, config, held_out=config["held_out"], cache=FIGURES / ".cache" / "tuned", **moves)
        told[what] = f"{tuned.report['start']}, tuned", tuned.tableau
    x, truth = _held_out(target := target_of(model), config)
    found = _compared(target, {what: table for what, (_, table) in told.items()}, "registry", x, truth)
    rows, clouds, names = [], Clouds(truth), ("energy_ratio", "energy_low", "energy_high")
    for what, (ratio, end, judged) in found.items():
        energy = dict(zip(names, clouds.ratio_band(end, found["registry"][1]), strict=True))
        rows.append({"part": "cell", "model": model, "nfe": nfe, "what": what, "label": told[what][0], **ratio,
                     "energy": clouds.squared(end), **energy, **summary(judged)})  # fmt: skip
    return rows


def _best(model: Any, nfe: int, config: Config, **among: Any) -> tuple[str, Tableau]:
    """Label and table of the first cell of the ranking."""
    found = choose(model, nfe, samples=config["choosing"], seed=config["seed"], certify=False, **among)
    return found.ranking[nfe][0].cell.label, found.ranking[nfe][0].cell.table


def _tuned(model: Any, nfe: int, config: Config, **more: Any) -> Any:
    given = {key: config[key] for key in ("degree", "samples", "rounds", "seed")}
    return tune(model, nfe, certify=False, **given, **more)


def _held_out(target: Any, config: Config) -> tuple[Any, Any]:
    x = target.noise(config["held_out"], config["seed"] + 7)
    return x, target.truth(x)[0]


def _compared(target: Any, tables: dict[str, Tableau], untuned: str, x: Any, truth: Any) -> dict[str, tuple[Any, ...]]:
    """Of each table: the ratio to the RMS of the ``untuned`` with its band, its end states, how they are judged."""
    ends = run_together(list(tables.values()), target.model, x)
    judged = dict(zip(tables, (judge(end, truth) for end in ends), strict=True))
    ratios = [with_band("ratio", ratio_band(found.squares, judged[untuned].squares)) for found in judged.values()]
    return dict(zip(tables, zip(ratios, ends, judged.values(), strict=True), strict=True))


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


def _transfer(config: Config) -> Rows:
    """Each table, tuned on one model, on all of them; of the first one's times also at other numbers of calls."""
    targets = {name: target_of(denoiser(config, **given), shape=(64,)) for name, given in config["tasks"].items()}
    tuned = {name: _tuned(target, config["nfe"], config, held_out=8) for name, target in targets.items()}
    rows: Rows = []
    for place, (used, target) in enumerate(targets.items()):
        x, truth = _held_out(target, config)
        asked = [("transfer", config["nfe"], {source: found.tableau for source, found in tuned.items()})]
        asked += [("calls", n, {used: tuned[used].at(n)}) for n in ([] if place else config["other_nfe"])]
        for part, nfe, tables in asked:
            _, best = _best(target, nfe, config, solvers=PUBLISHED, grids=config["grids"])
            found = _compared(target, {"": best, **tables}, "", x, truth)
            for source in tables:
                ratio, _, judged = found[source]
                rows.append({"part": part, "tuned_on": source, "used_on": used, "nfe": nfe, "label": best.name,
                             "rms": judged.rms, "flips": float(judged.flips.mean()), **ratio})  # fmt: skip
    return sorted(rows, key=lambda row: row["part"] == "calls")


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


def headline(frame: Frame) -> str:
    """The least ratio of all."""
    both = at(frame, part="cell", what="both")
    best = both.loc[both.ratio.idxmin()]
    return f"Tuned to {best.model}, a table of {best.nfe:.0f} calls has {best.ratio:.2f} of the best untuned error"


def verdict(frame: Frame, config: Config) -> str:
    """The best ratio, in how many cells it is sure, whether the law is worse, and what it is on another model."""
    both, rows = at(frame, part="cell", what="both"), at(frame, part="transfer")
    home = rows.tuned_on == rows.used_on
    return (
        f"{headline(frame)} on held-out noises; less beyond the band in {(both.ratio_high < 1).sum()} of {len(both)} "
        f"cases, the energy distance larger in {(both.energy_low > 1).sum()}; of denoisers of the digits it has "
        f"{span(rows.ratio[home])} on its own and {span(rows.ratio[~home])} on another."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Ratios by model and calls; below, tuned on against used on, and the tuned times at other numbers of calls."""
    cells, calls, rows = at(frame, part="cell", what=list(KINDS)), at(frame, part="calls"), at(frame, part="transfer")
    cells, asked = cells.assign(name=cells.nfe.map("{:.0f} calls, ".format) + cells.what.map(KINDS)), config["transfer"]
    note = (
        f"Upper: RMS error on {config['held_out']} held-out noises over that of the best of the registry × all grids; "
        f"bars: 95 %, paired over samples. Lower: ideal denoisers of the digits, {asked['held_out']} held-out noises, "
        "over the best published sampler on usual grids for the model it is used on; left: "
        f"{asked['nfe']} calls, bold: beyond the band."
    )
    fig, models = panels.sheet(headline(frame), note, 5.4), list(cells.model.unique())
    names = list(cells.sort_values("nfe", kind="stable").name.unique())
    axes, _ = panels.small_multiples(fig, models, 3, share_y=False, left=1.75, end=0.5)
    for ax, model in zip(axes, models, strict=True):
        found = at(cells, model=model).set_index("name")[RATIO].reindex(names)
        panels.intervals(ax, found.to_numpy(), [0.2, 0.5, 1, 2], names if ax is axes[0] else None)
    grid = fig.add_gridspec(1, 2, width_ratios=[1.8, 1], wspace=0.35,
                            **style.body(fig, 0.3, 1.1, 0.1, extra_top=3.2))  # fmt: skip
    left, right = fig.add_subplot(grid[0]), fig.add_subplot(grid[1])
    left.set_title("tuned on (down), used on (across)", fontsize=8.5, pad=3)
    used = list(rows.tuned_on.unique())
    tables = rows.pivot(index="tuned_on", columns="used_on")
    ratio, low, high = (tables[name].loc[used, used].to_numpy() for name in RATIO)
    across = [name.replace(", ", "\n").replace(" of", "\nof") for name in used]
    told = np.vectorize("{:.2f}".format)(ratio)
    panels.diverging(left, np.log2(ratio), told, across, used, 1.5, (high < 1) | (low > 1))
    panels.intervals(right, calls[RATIO].to_numpy(), [0.7, 1, 1.5, 2.5], list(calls.nfe.map("{:.0f} calls".format)),
                     title="tuned times at other calls")  # fmt: skip
    return fig
