"""Is a table that was tuned for one model, guidance or number of calls better than untuned ones on another?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.tuning import choose, run_together, target_of, tune
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED
from deis_analysis.tuning.judged import judge, ratio_band
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import digits, digits_labels, vp_linear

NAME = "tuning_transfer"
QUESTION = "Does a table that was tuned for one model, guidance or number of calls help on another?"
COMMITTED = "`python -m experiments run tuning_transfer` tunes anew, ten minutes"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0,
    "tasks": {
        "all digits": {}, "smoothed": {"std": 0.25}, "half of them": {"part": 2},
        "guided, w = 1.5": {"digit": 3, "scale": 1.5}, "guided, w = 3": {"digit": 3, "scale": 3.0},
    },
    "nfe": 5, "other_nfe": [4, 6, 8, 10],
    "samples": 160, "held_out": 160, "choosing": 32, "rounds": 10, "degree": -1, "seed": 0,
    "grids": list(CUSTOMARY),
}  # fmt: skip
QUICK: Config = {
    "tasks": {"all digits": {"part": 16}, "smoothed": {"part": 16, "std": 0.25}}, "nfe": 4, "other_nfe": [8],
    "samples": 16, "held_out": 16, "choosing": 8, "rounds": 2, "grids": ["t2", "logrho"],
}  # fmt: skip


def model(config: Config, part: int = 1, std: float = 0.0, digit: int | None = None, scale: float = 1.0) -> da.Model:
    """The ideal denoiser of every ``part``-th digit, smoothed by ``std``; guided to one ``digit`` with ``scale``."""
    import torch

    process, data = vp_linear(config), torch.as_tensor(digits())
    everything = da.ideal_denoiser(data[::part], process, std)
    if digit is None:
        return da.Model(everything, process, "eps")
    own = da.ideal_denoiser(data[torch.as_tensor(digits_labels() == digit)], process, std)

    def guided(x: Any, t: float) -> Any:
        plain = everything(x, t)
        return plain + scale * (own(x, t) - plain)

    return da.Model(guided, process, "eps")


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "model" (tuned on, used on: ratio to the best untuned there) and "calls" (tuned times elsewhere)."""
    targets = {name: target_of(model(config, **given), shape=(64,)) for name, given in config["tasks"].items()}
    nfe, held_out = config["nfe"], {}
    untuned: dict[Any, da.Tableau] = {}
    steps, done = 2 * len(targets) + len(config["other_nfe"]), 0

    def chosen(name: str, calls: int) -> da.Tableau:
        found = choose(targets[name], calls, solvers=PUBLISHED, grids=config["grids"], samples=config["choosing"],
                       seed=config["seed"], certify=False)  # fmt: skip
        return found.ranking[calls][0].cell.table

    tuned = {}
    for name, target in targets.items():
        tuned[name] = tune(
            target, nfe, degree=config["degree"], samples=config["samples"], held_out=8, rounds=config["rounds"],
            seed=config["seed"], certify=False,
        )  # fmt: skip
        done += 1
        progress(done / steps)
    rows: list[dict[str, Any]] = []
    for name, target in targets.items():
        x = target.noise(config["held_out"], config["seed"] + 7)
        held_out[name] = x, target.truth(x)[0]
        untuned[name] = chosen(name, nfe)
        tables = {source: found.tableau for source, found in tuned.items()}
        for source, found in _against(target, tables, untuned[name], *held_out[name]).items():
            rows.append({"part": "model", "tuned_on": source, "used_on": name, "nfe": nfe, **found})
        done += 1
        progress(done / steps)
    first = next(iter(targets))
    for calls in config["other_nfe"]:
        tables = {"tuned times": tuned[first].at(calls)}
        for _, found in _against(targets[first], tables, chosen(first, calls), *held_out[first]).items():
            rows.append({"part": "calls", "tuned_on": first, "used_on": first, "nfe": calls, **found})
        done += 1
        progress(done / steps)
    return pd.DataFrame(rows)


def _against(target: Any, tables: dict[str, da.Tableau], untuned: da.Tableau, x: Any, truth: Any) -> dict[str, Any]:
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


def verdict(frame: Frame, config: Config) -> str:
    """Ratios at home, on other models, at other numbers of calls."""
    models, calls = frame[frame.part == "model"], frame[frame.part == "calls"]
    home, away = (models[(models.tuned_on == models.used_on) == same] for same in (True, False))
    better, worse = int((away.ratio_high < 1).sum()), int((away.ratio_low > 1).sum())
    return (
        f"At {config['nfe']} calls a table has {home.ratio.min():.2f} to {home.ratio.max():.2f} of the RMS error of "
        f"the best untuned one on the model that it was tuned for; on another it is better beyond the band in {better} "
        f"and worse in {worse} of {len(away)} cases ({away.ratio.min():.2f} to {away.ratio.max():.2f}); its times at "
        f"{style.in_words([str(n) for n in calls.nfe])} calls give {calls.ratio.min():.2f} to {calls.ratio.max():.2f}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A matrix of ratios: tuned on down, used on across; beside it the tuned times at other numbers of calls."""
    models, calls = frame[frame.part == "model"], frame[frame.part == "calls"]
    away = models[models.tuned_on != models.used_on]
    better, worse = int((away.ratio_high < 1).sum()), int((away.ratio_low > 1).sum())
    headline = f"On another model a tuned table is better in {better}, worse in {worse} of {len(away)} cases"
    note = (
        f"Ideal denoisers of the digits, {config['nfe']} calls, {config['held_out']} held-out noises. RMS error over "
        "that of the best published sampler on the customary grids, chosen for the model it is used on; * beyond the "
        "95 % band."
    )
    fig = style.new_figure(7.0, 4.6, headline, note)
    left, right = fig.subplots(1, 2, width_ratios=[2.2, 1], gridspec_kw={**style.body(fig, 1.3, 1.25), "wspace": 0.35})
    names = list(dict.fromkeys(models.tuned_on))
    table = models.pivot(index="tuned_on", columns="used_on", values="ratio").loc[names, names].to_numpy()
    left.imshow(np.log2(table), cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
    for row in models.itertuples():
        sure = "*" if row.ratio_high < 1 or row.ratio_low > 1 else ""
        place = names.index(row.used_on), names.index(row.tuned_on)
        dark = abs(np.log2(row.ratio)) > 1
        left.text(
            *place, f"{row.ratio:.2f}{sure}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    left.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_xlabel("used on")
    left.set_ylabel("tuned on")
    left.grid(False)
    error = np.abs([calls.ratio - calls.ratio_low, calls.ratio_high - calls.ratio])
    right.errorbar(calls.nfe, calls.ratio, yerr=error, fmt="o-", color=style.BLUE)
    right.axhline(1.0, color=style.GREY, lw=0.8)
    right.set_xticks(calls.nfe)
    right.set_xlabel("calls")
    right.set_ylabel("tuned times / best untuned", fontsize=9)
    return fig
