"""How many model calls does a start at the Gaussian closed form save? The digits, their flow certified."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.problems.painters import gaussian_of, teleport
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models.problems import DigitsProblem, digits_problem, steps_for

NAME = "teleportation"
QUESTION = "How many model calls does a start at the Gaussian closed form save on the digits, and at which bias?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grids": ["t2", "rho7"],
    "solvers": ["tab3", "dpmpp_2m"],
    "t_skips": [0.7, 0.6, 0.5, 0.4, 0.3],
    "calls": [5, 7, 10, 15, 20],
    "compared_at": [10, 15],
    "std": 0.0,
    "floor": 1e-6,
    "samples": 256,
    "seed": 0,
    "rtol": 1e-6,
    "bias_rtol": 1e-5,
    "draws": 400,
    "device": "cpu",
    "choices": {
        "source": "not in the DEIS paper; the closed form of one Gaussian down to t_skips, then a sampler",
        "model": "the ideal denoiser of the digits, std = 0: the data themselves, not smoothed",
        "best": "each point the best of solvers and grids with at most so many calls",
    },
}
QUICK: Config = {
    "samples": 16,
    "rtol": 1e-4,
    "bias_rtol": 1e-3,
    "calls": [5, 10, 15],
    "t_skips": [0.6, 0.4],
    "draws": 50,
}
THOROUGH: Config = {
    "samples": 1024,
    "rtol": 1e-8,
    "bias_rtol": 1e-6,
    "grids": ["t2", "rho7", "logrho"],
    "t_skips": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
    "calls": [5, 6, 7, 8, 10, 12, 15, 20, 30],
    "draws": 2000,
}
Curve = tuple[Array, Array]
METRICS = {"rms": "all samples, RMS", "median": "typical sample, median"}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows "run" (start, solver, grid, calls), "bias" (exact flow from a teleported start), "interval", "reference"."""
    problem = digits_problem(config)
    gaussian = gaussian_of(problem.data, config["floor"])
    rows: list[dict[str, Any]] = [{"part": "reference", "nfe": problem.nfe, "estimate": problem.error_estimate}]
    squares: list[Array] = []
    starts = [config["t_start"], *config["t_skips"]]
    progress(0.2)
    for done, start in enumerate(starts, 1):
        x = problem.x_T
        if start < config["t_start"]:
            x = teleport(gaussian, problem.process, x, config["t_start"], start)
            tolerance = config["bias_rtol"]
            exact = da.reference_solution(
                problem.model, problem.process, x, config["t_end"], tolerance, tolerance, t_start=start, certify=False
            )
            cost = {"nfe": exact.nfe, "estimate": exact.error_estimate}
            rows.append({"part": "bias", "start": start, **_errors(problem, exact.x)[0], **cost})
        for solver, kind, calls in itertools.product(config["solvers"], config["grids"], config["calls"]):
            ts = da.grid(problem.process, steps_for(solver, calls), kind, start, config["t_end"])
            table = da.build(solver, problem.process, ts).in_terms_of(problem.process, "eps")
            errors, square = _errors(problem, da.run(table, problem.model, x))
            rows.append({"part": "run", "start": start, "solver": solver, "grid": kind, "nfe": table.nfe, **errors})
            squares.append(square)
        progress(0.2 + 0.75 * done / len(starts))
    frame = pd.DataFrame(rows)
    return pd.concat([frame, _intervals(frame, np.array(squares), config)], ignore_index=True)


def _errors(problem: DigitsProblem, x: Any) -> tuple[dict[str, float], Array]:
    """Errors per pixel of all samples and of the median one, share that ends at another digit; squares (n,)."""
    square = ((x - problem.reference) ** 2).mean(dim=1).cpu().numpy()
    elsewhere = problem.nearest(x) != problem.nearest(problem.reference)
    share = float(elsewhere.double().mean())
    return {"rms": _measure("rms", square), "median": _measure("median", square), "elsewhere": share}, square


def _measure(metric: str, square: Array) -> Any:
    return np.sqrt(square.mean(axis=-1) if metric == "rms" else np.median(square, axis=-1))


def _intervals(frame: Frame, squares: Array, config: Config) -> Frame:
    """95 % intervals of the calls saved, samples resampled, from the start that `findings` names."""
    runs = frame[frame.part == "run"]
    nfe, of = runs.nfe.to_numpy(dtype=float), {s: (runs.start == s).to_numpy() for s in runs.start.unique()}
    rng, count = np.random.default_rng(config["seed"]), squares.shape[1]
    draws = [rng.integers(0, count, count) for _ in range(config["draws"])]
    rows = []
    for (metric, start), cases in findings(frame, config).groupby(["metric", "start"], sort=False):
        saved: list[list[float]] = []
        for index in draws:
            errors = _measure(metric, squares[:, index])
            plain, other = (_envelope(nfe[of[s]], errors[of[s]]) for s in (config["t_start"], start))
            saved.append([calls_saved(plain, other, level_at(plain, calls)) for calls in cases.calls])
        for calls, (low, high) in zip(cases.calls, np.quantile(saved, [0.025, 0.975], axis=0).T, strict=True):
            rows.append({"part": "interval", "metric": metric, "calls": calls, "low": low, "high": high})
    return pd.DataFrame(rows)


def _envelope(nfe: Array, errors: Array) -> Curve:
    """(calls, least error with at most so many calls)."""
    calls = np.unique(nfe)
    return calls, np.minimum.accumulate([errors[nfe == n].min() for n in calls])


def best_curve(frame: Frame, start: float, metric: str) -> Curve:
    """Calls, and the least error with at most so many over solvers and grids, for one start."""
    runs = frame[(frame.part == "run") & (frame.start == start)]
    return _envelope(runs.nfe.to_numpy(dtype=float), runs[metric].to_numpy(dtype=float))


def level_at(curve: Curve, calls: float) -> float:
    """The error of a curve with at most ``calls`` calls."""
    return float(curve[1][np.flatnonzero(curve[0] <= calls)[-1]])


def calls_needed(curve: Curve, level: float) -> float:
    """Calls at which the curve comes down to ``level``, between step counts by interpolation of log error; inf if not.

    The first count, where the curve begins below the level: then it is an upper bound.
    """
    calls, errors = curve
    reached = np.flatnonzero(errors <= level)
    if reached.size == 0:
        return float("inf")
    i = int(reached[0])
    if i == 0 or errors[i] == level:
        return float(calls[i])
    share = np.log(errors[i - 1] / level) / np.log(errors[i - 1] / errors[i])
    return float(calls[i - 1] + share * (calls[i] - calls[i - 1]))


def calls_saved(plain: Curve, other: Curve, level: float) -> float:
    """Calls that ``other`` needs less than ``plain`` for the same error; 0 where it needs more."""
    return max(calls_needed(plain, level) - calls_needed(other, level), 0.0)


def findings(frame: Frame, config: Config) -> Frame:
    """Per metric and number of plain calls: their error, the start that needs the fewest calls for it, and the bias.

    ``biased_from`` is the highest start whose own bias exceeds the error of those plain calls, 0 if none.
    """
    bias = frame[frame.part == "bias"].set_index("start")
    rows = []
    for metric in METRICS:
        plain = best_curve(frame, config["t_start"], metric)
        for calls in config["compared_at"]:
            level = level_at(plain, calls)
            curves = {s: best_curve(frame, s, metric) for s in bias.index}
            best = min(curves, key=lambda s: calls_needed(curves[s], level))
            beyond = bias.index[bias[metric] > level]
            rows.append(
                {
                    "metric": metric,
                    "calls": calls,
                    "level": level,
                    "start": best,
                    "saved": calls_saved(plain, curves[best], level),
                    "at_least": curves[best][1][0] <= level,
                    "biased_from": float(beyond.max()) if len(beyond) else 0.0,
                }
            )
    return pd.DataFrame(rows)


def _saving(frame: Frame, row: Any) -> str:
    if row.saved < 0.05:
        return "none"
    spread = frame[(frame.part == "interval") & (frame.metric == row.metric) & (frame.calls == row.calls)].iloc[0]
    return f"{'at least ' * row.at_least}{row.saved:.1f} [{spread.low:.1f}, {spread.high:.1f}]"


def verdict(frame: Frame, config: Config) -> str:
    """Calls saved at the error of so many plain calls, by both measures, and where the bias is the larger error."""
    saved, limits, calls = [], [], config["compared_at"]
    for metric, rows in findings(frame, config).groupby("metric", sort=False):
        name, biased = METRICS[metric].split(", ")[1], rows.biased_from.iloc[0]
        saved.append(f"{' and '.join(_saving(frame, row) for row in rows.itertuples())} by {name}")
        limits.append(f"{f't = {biased:g}' if biased else 'no start'} ({name})")
    return (
        f"On the digits a start at the Gaussian closed form saves, of {' and '.join(map(str, calls))} calls of the "
        f"best of {', '.join(config['solvers'])}, {', '.join(saved)} [95 %]; its bias exceeds the error of {calls[0]} "
        f"calls first at {', '.join(limits)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Best error against calls for every start, by both measures, and the bias against the start."""
    found = findings(frame, config)
    saved = found[found.metric == "rms"].iloc[-1]
    headline = f"A start at the Gaussian closed form saves {saved.saved:.1f} of {saved.calls} calls by RMS error"
    reference = frame[frame.part == "reference"].iloc[0]
    calls = config["compared_at"][0]
    best = frame[(frame.part == "run") & (frame.start == config["t_start"]) & (frame.nfe <= calls)]
    best = best.loc[best.rms.idxmin()]
    note = (
        f"Ideal denoiser of the digits, {style.setting(config)}, {config['samples']} samples; each point the best of "
        f"{', '.join(config['solvers'])} on grids {', '.join(config['grids'])} with at most so many calls; error per "
        f"pixel against the flow from t = {config['t_start']:g}, accurate to {style.as_text(reference.estimate, 1)}. "
        f"With {calls} calls from there {best.elsewhere:.0%} of the samples end at another digit: in the RMS, not the "
        f"median. Right: error of the start alone; dashed: {calls} calls from t = {config['t_start']:g}."
    )
    fig = panels.sheet(headline, note, 3.2)
    margins = style.body(fig, bottom=0.42, left=0.6, right=0.1, extra_top=0.5)
    axes = fig.subplots(1, 3, sharey=True, gridspec_kw={**margins, "wspace": 0.08})
    for ax, metric in zip(axes, METRICS, strict=False):
        _curves(ax, frame, config, metric)
    _bias(axes[2], frame, config)
    axes[0].set(yscale="log", ylim=(None, 1.0))
    axes[0].set_ylabel("error per pixel", fontsize=8.5)
    for ax in axes:
        ax.tick_params(labelsize=panels.TICKS)
    panels.key(fig, axes[0])
    return fig


def _curves(ax: Any, frame: Frame, config: Config, metric: str) -> None:
    starts = [config["t_start"], *config["t_skips"]]
    shades = style.plt.get_cmap("viridis")(np.linspace(0.9, 0.15, max(len(starts) - 1, 1)))
    for start, colour in zip(starts, ["#000000", *shades], strict=True):
        plain = start == config["t_start"]
        panels.curve(ax, *best_curve(frame, start, metric), label=f"t = {start:g}", color=colour, marker="o",
                     linewidth=2.2 if plain else 1.4, zorder=3 if plain else 2)  # fmt: skip
    ax.set_title(METRICS[metric], fontsize=8.5, pad=3)
    ax.set_xlabel("model calls (NFE)", fontsize=8.5, labelpad=2)
    ax.set_xticks(config["calls"])


def _bias(ax: Any, frame: Frame, config: Config) -> None:
    bias, calls = frame[frame.part == "bias"].sort_values("start"), config["compared_at"][0]
    for metric, colour in zip(METRICS, (style.VERMILLION, style.BLUE), strict=True):
        panels.curve(ax, bias.start, bias[metric], color=colour, marker="s")
        ax.axhline(level_at(best_curve(frame, config["t_start"], metric), calls), color=colour, ls="--", lw=1.2)
        last = bias.iloc[0]
        ax.annotate(metric, (last.start, last[metric]), xytext=(3, 4), textcoords="offset points", color=colour,
                    fontsize=panels.TICKS)  # fmt: skip
    ax.set_title("bias of the start", fontsize=8.5, pad=3)
    ax.set_xlabel("start t (less noise to the left)", fontsize=8.5, labelpad=2)
