"""How many model calls does a start at the Gaussian closed form save? The digits, their flow certified."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.problems.painters import gaussian_of, teleport
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at, calls_for
from experiments.core.judging import interval
from experiments.models.problems import DigitsProblem, Problem, digits_problem

NAME = "teleportation"
QUESTION = "How many model calls does a start at the Gaussian closed form save on the digits, and at which bias?"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0, "t_start": 1.0, "t_end": 1e-3, "grids": ["t2", "rho7"], "draws": 400,
    "solvers": ["tab3", "dpmpp_2m"], "t_skips": [0.7, 0.6, 0.5, 0.4, 0.3], "calls": [5, 7, 10, 15, 20], "device": "cpu",
    "compared_at": [10, 15], "std": 0.0, "floor": 1e-6, "samples": 256, "seed": 0, "rtol": 1e-6, "bias_rtol": 1e-5,
}  # fmt: skip
QUICK: Config = {"samples": 16, "rtol": 1e-4, "bias_rtol": 1e-3, "calls": [5, 10, 15], "t_skips": [0.6, 0.4],
                 "draws": 50}  # fmt: skip
THOROUGH: Config = {"samples": 1024, "rtol": 1e-8, "bias_rtol": 1e-6, "draws": 2000,
                    "t_skips": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], "calls": [5, 6, 7, 8, 10, 12, 15, 20]}  # fmt: skip
METRICS = {"rms": ("all samples, RMS", style.VERMILLION), "median": ("typical sample, median", style.BLUE)}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows "run" (start, solver, grid, nfe), "bias" (exact flow from a teleported start), "interval", "reference"."""
    problem: Any = digits_problem(config)
    moved, process, gaussian = problem, problem.process, gaussian_of(problem.data, config["floor"])
    rows: list[dict[str, Any]] = [{"part": "reference", "estimate": problem.estimate}]
    for done, start in enumerate([config["t_start"], *config["t_skips"]], 1):
        if start < config["t_start"]:
            x = teleport(gaussian, process, problem.x_T, config["t_start"], start)
            moved = Problem.solved(process, problem.model, x, (start, config["t_end"]), config["bias_rtol"])
            rows.append({"part": "bias", "start": start, **_errors(problem, moved.truth), "estimate": moved.estimate})
        for row, x in moved.tried(config["solvers"], config["grids"], config["calls"], judge=lambda x: x):
            rows.append({"part": "run", "start": start, **row, **_errors(problem, x)})
        progress(done / (2 + len(config["t_skips"])))
    frame = pd.DataFrame(rows).drop(columns=["calls", "steps"])  # only nfe counts
    return pd.concat([frame.drop(columns="squares"), _intervals(frame, config)], ignore_index=True)


def _errors(problem: DigitsProblem, x: Any) -> dict[str, Any]:
    """Errors per pixel of all samples and of the median one, and the share that ends at another digit."""
    squares, elsewhere = problem.judged(x), problem.nearest(x) != problem.nearest(problem.truth)
    return {**_averages(squares), "elsewhere": float(elsewhere.double().mean()), "squares": squares}


def _averages(squares: Array) -> dict[str, Any]:
    return {"rms": np.sqrt(squares.mean(axis=-1)), "median": np.sqrt(np.median(squares, axis=-1))}


def _intervals(frame: Frame, config: Config) -> Frame:
    """95 % intervals of the calls saved, samples resampled, from the start that `findings` names."""
    runs, rows, shape = at(frame, part="run"), [], (config["draws"], config["samples"])
    squares, again = np.array(list(runs.squares)), np.random.default_rng(config["seed"]).integers(shape[1], size=shape)
    drawn = [runs.assign(**_averages(squares[:, index])) for index in again]
    for row in findings(frame, config).itertuples():
        curves = [best_curves(one, row.metric) for one in drawn]
        ends = [(found[config["t_start"]], found[row.start]) for found in curves]
        saved = [calls_saved(plain, other, plain.asof(row.calls)) for plain, other in ends]
        rows.append({"part": "interval", "metric": row.metric, "calls": row.calls, **interval(saved)})
    return pd.DataFrame(rows)


def best_curves(frame: Frame, metric: str) -> Any:
    """By start and calls: the least error with at most so many over solvers and grids."""
    return at(frame, part="run").groupby(["start", "nfe"])[metric].min().groupby("start").cummin()


def calls_needed(curve: Any, level: float) -> float:
    """As `calls_for`, but between two counts log error is taken for linear in the calls, not in their logarithm."""
    return float(np.log(calls_for(np.exp(curve.index), curve, level)))


def calls_saved(plain: Any, other: Any, level: float) -> float:
    """Calls that ``other`` needs less than ``plain`` for the same error; 0 where it needs more."""
    return max(calls_needed(plain, level) - calls_needed(other, level), 0.0)


def findings(frame: Frame, config: Config) -> Frame:
    """Per ``metric`` and plain ``calls``: their error ``level``, the ``start`` of fewest calls for it, those ``saved``,
    ``at_least`` where its first error is less; ``biased_from``: the highest start of bias above the level, else 0."""
    bias, rows = at(frame, part="bias").set_index("start"), []
    for metric, calls in itertools.product(METRICS, config["compared_at"]):
        curves = best_curves(frame, metric)
        plain = curves[config["t_start"]]
        level = plain.asof(calls)
        best = min(bias.index, key=lambda start: calls_needed(curves[start], level))
        rows.append({"metric": metric, "calls": calls, "level": level, "start": best,
                     "saved": calls_saved(plain, curves[best], level), "at_least": curves[best].iloc[0] <= level,
                     "biased_from": bias.index[bias[metric] > level].max()})  # fmt: skip
    return pd.DataFrame(rows).fillna({"biased_from": 0.0})


def headline_of(frame: Frame, config: Config) -> str:
    """What is saved of the least calls compared on the typical sample."""
    row = at(findings(frame, config), metric="median").iloc[0]
    least = "at least " if row.at_least else ""
    return f"A start at the Gaussian closed form saves {least}{row.saved:.1f} of {row.calls} calls on the median digit"


def verdict(frame: Frame, config: Config) -> str:
    """Calls saved at the error of so many plain calls, by both measures, and where the bias is the larger error."""
    found = findings(frame, config).merge(at(frame, part="interval")[["metric", "calls", "low", "high"]])
    typical, whole = (at(found, metric=metric).iloc[0] for metric in ("median", "rms"))
    limit = f"from t = {typical.biased_from:g} down" if typical.biased_from else "from no start"
    return (
        f"{headline_of(frame, config)} [{typical.low:.1f}, {typical.high:.1f}], by the RMS over all samples "
        f"{whole.saved:.1f} [{whole.low:.1f}, {whole.high:.1f}]; {limit} its bias exceeds the median error of "
        f"{typical.calls} calls."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Best error against calls for every start, by both measures, and the bias against the start."""
    calls, plain, bias = config["compared_at"][0], config["t_start"], at(frame, part="bias").sort_values("start")
    best = at(frame, part="run", start=plain).query("nfe <= @calls").sort_values("rms").iloc[0]
    note = (
        f"Ideal denoiser of the digits, {style.setting(config)}, {config['samples']} samples; each point the best of "
        f"{', '.join(config['solvers'])} on {', '.join(config['grids'])}; error per pixel against the flow from "
        f"t = {plain:g}. With {calls} calls from there {best.elsewhere:.0%} of the samples end at another digit: in "
        f"the RMS, not the median. Right: error of the start alone; dashed: {calls} calls from t = {plain:g}."
    )
    fig = panels.sheet(headline_of(frame, config), note, 3.2)
    axes, (right,) = panels.small_multiples(fig, list(METRICS), 3, more=1, extra_top=0.5, wspace=0.08)
    faces = style.plt.get_cmap("viridis")(np.linspace(0.9, 0.15, len(config["t_skips"])))
    for ax, (metric, (title, colour)) in zip(axes, METRICS.items(), strict=True):
        curves = best_curves(frame, metric)
        for start, face in zip([plain, *config["t_skips"]], ["#000000", *faces], strict=True):
            panels.curve(ax, curves[start].index, curves[start], label=f"t = {start:g}", color=face, marker="o",
                         linewidth=2.2 if start == plain else 1.4)  # fmt: skip
        panels.named(ax, title, "model calls (NFE)", "error per pixel" if ax is axes[0] else "")
        panels.curve(right, bias.start, bias[metric], color=colour, marker="s")
        right.axhline(curves[plain].asof(calls), color=colour, ls="--", lw=1.2)
        right.text(bias.start.iloc[0], 1.4 * bias[metric].iloc[0], f" {metric}", color=colour, fontsize=panels.TICKS)
    right.sharey(axes[0])
    panels.named(right, "bias of the start", "start t (less noise to the left)")
    right.tick_params(labelleft=False)
    axes[0].set(yscale="log", ylim=(None, 1.0))
    panels.key(fig, axes[0])
    return fig
