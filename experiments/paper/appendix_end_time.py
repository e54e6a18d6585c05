"""Where should sampling stop? The error against the data end, split into truncation at t₀ and discretization."""

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

NAME = "appendix_end_time"
QUESTION = "From how many model calls on does stopping at t₀ = 1e-4 beat stopping at 1e-3?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "samples": 64,
    "exact_samples": 256,
    "cases": [["ddim", "t2"], ["tab3", "t2"], ["rhork_3kutta", "t2"], ["dpmpp_2m", "logrho"]],
    "end_times": [1e-2, 1e-3, 1e-4, 1e-5],
    "compared": [1e-3, 1e-4],
    "calls": [5, 7, 10, 14, 20, 28, 50],
    "limit_time": 1e-7,
    "choices": {
        "end times": "the paper: 1e-3 for few calls and 1e-4 for more, as recalled, without the count where it changes",
        "truth": "the exact answer at limit_time for every t₀, so that stopping early counts as an error",
        "cases": "sampler and grid of our choice; which sampler had which t₀ in the paper is not known",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "exact_samples": 64, "end_times": [1e-3, 1e-4], "calls": [5, 10, 20]}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 512,
    "exact_samples": 4096,
    "calls": [5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160],
}
PUBLISHED = "DPM-Solver: 1e-3 better below 15 calls, 1e-4 above (FID, other models)"  # Lu et al. 2022
SHADES = (style.GREY, style.ORANGE, style.BLUE, style.GREEN, style.PURPLE)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (model, solver, grid, t_end, calls): RMS ``total`` = sampler − exact answer at t = 0, and of its two parts.

    As vectors total = truncation + discretization: exact state at t₀ − exact state at 0, and sampler − exact state, at
    t₀.  ``ratio``, with its 95 % interval over samples: total error over that of the first of ``compared``.
    """
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        count = config["exact_samples"] if name in ("mixture", "gaussian") else config["samples"]
        problem = studies.study(name, {**config, "samples": count})
        exact, estimate = exact_states(problem, config)
        planned = [
            cell for solver, kind in config["cases"] for calls in config["calls"] for t_end in config["end_times"]
            for cell in cells.plan(problem, [solver], [kind], [calls], span=(config["t_start"], t_end))
        ]  # fmt: skip
        ends = list(cells.runs(problem, planned, cells.part_of(progress, done, len(config["models"]))))
        for first in range(0, len(ends), len(config["end_times"])):
            cell, group = ends[first][0], ends[first : first + len(config["end_times"])]
            found = _errors(exact, dict(zip(config["end_times"], (x for _, x in group), strict=True)), config)
            common = {"solver": cell.solver, "grid": cell.grid, "estimate": estimate}
            rows += [{"model": name, **common, **row, "calls": cell.calls, "nfe": cell.nfe} for row in found]
    return pd.DataFrame(rows)


def exact_states(problem: studies.Study, config: Config) -> tuple[dict[float, Any], float]:
    """(exact states at the end times and, under 0.0, at the data end; their estimated error).

    At t = 0 the mixture's flow is exact; the flow of an ideal denoiser with points of no width ends at the data point
    next to its last state; for others the state at ``limit_time`` stands for it.
    """
    import torch

    times = config["end_times"]
    if problem.exact is not None and not problem.trained:
        state, estimate = problem.path([*times, 0.0])
        return {t: state(t) for t in (*times, 0.0)}, estimate
    points = problem.exact is None and config["std"] == 0
    state, estimate = problem.path(times if points else [*times, config["limit_time"]])
    states = {t: state(t) for t in times}
    if points:
        data = torch.as_tensor(problem.data, dtype=problem.x_T.dtype, device=problem.x_T.device)
        states[0.0] = data[torch.cdist(states[min(times)], data).argmin(dim=1)]
    else:
        states[0.0] = state(config["limit_time"])
    return states, estimate


def _errors(exact: dict[float, Any], ends: dict[float, Any], config: Config) -> list[dict[str, Any]]:
    """A row for each end time, from the samples that ended there."""
    found: dict[float, dict[str, Array]] = {}
    for t_end, x in ends.items():
        parts = {"total": x - exact[0.0], "truncation": exact[t_end] - exact[0.0], "discretization": x - exact[t_end]}
        found[t_end] = {part: np.asarray((gap**2).mean(1).cpu()) for part, gap in parts.items()}
    rows, base = [], found[config["compared"][0]]["total"]
    for t_end, parts in found.items():
        row = {part: float(np.sqrt(squares.mean())) for part, squares in parts.items()}
        low, high = bootstrap_ratio(parts["total"], base, config["seed"], draws=500)
        ratio = row["total"] / float(np.sqrt(base.mean()))
        rows.append({"t_end": t_end, **row, "ratio": ratio, "low": low, "high": high})
    return rows


def crossover(frame: Frame, config: Config, model: str, solver: str) -> dict[str, Any]:
    """From which calls on the smaller of the ``compared`` end times wins for good, and from which on clearly so.

    ``wins`` and ``clear`` are None where that is at no call count; ``share``: truncation² over total² of the larger
    end time at the most calls.
    """
    late, early = config["compared"]
    rows = frame[(frame.model == model) & (frame.solver == solver)].sort_values("calls")
    small = rows[rows.t_end == early]
    last = rows[rows.t_end == late].iloc[-1]

    def since(good: Any) -> int | None:
        bad = np.flatnonzero(~np.asarray(good))
        first = int(bad[-1]) + 1 if bad.size else 0
        return int(small.calls.iloc[first]) if first < len(small) else None

    at = small.iloc[-1]
    return {
        "wins": since(small.ratio < 1),
        "clear": since(small.high < 1),
        "share": float(last.truncation**2 / last.total**2),
        "ratio": float(at.ratio),
        "calls": int(at.calls),
    }


def findings(frame: Frame, config: Config, model: str) -> dict[str, dict[str, Any]]:
    """`crossover` of every solver on a model."""
    return {solver: crossover(frame, config, model, solver) for solver, _ in config["cases"]}


def verdict(frame: Frame, config: Config) -> str:
    """Per model and solver, from which call count on the smaller end time clearly wins; ratios at the most calls."""
    late, early = config["compared"]
    parts, last = [], frame.calls.max()
    for model in frame.model.unique():
        since: dict[int | None, list[str]] = {}
        for solver, c in findings(frame, config, model).items():
            since.setdefault(c["clear"], []).append(solver)
        ordered = sorted(since.items(), key=lambda item: item[0] or np.inf)
        words = ", ".join(f"{'never' if n is None else f'from {n} calls on'} ({', '.join(s)})" for n, s in ordered)
        ratios = [c["ratio"] for c in findings(frame, config, model).values()]
        parts.append(f"on the {model} {words}, at {last} calls {_range(ratios)} times")
    return (
        f"Against the answer at t = 0, stopping at {_time(early)} has clearly less error than at {_time(late)} "
        f"{'; '.join(parts)}."
    )


def _range(values: list[float]) -> str:
    return f"{style.as_text(min(values))} to {style.as_text(max(values))}"


def draw(frame: Frame, config: Config) -> Figure:
    """Columns: solvers; per model a row of total errors against calls, dashed what truncation alone gives, and below
    it the ratio of the two compared end times with its interval."""
    names, (late, early) = list(frame.model.unique()), config["compared"]
    said = "; ".join(
        f"{model}: " + ", ".join(f"{s} {c['wins'] or 'never'}" for s, c in findings(frame, config, model).items())
        for model in names
    )
    headline = f"Calls from which on t₀ = {_time(early)} beats t₀ = {_time(late)}. {said[0].upper()}{said[1:]}"
    note = (
        "RMS error against the exact answer at t = 0 (mixture: exact flow; digits: the data point where the exact flow "
        f"ends). Dashed: truncation alone, that is exact sampling down to t₀. Small panels: error at {_time(early)} "
        f"over that at {_time(late)}, 95 % interval over samples. VPLinear({config['beta_min']:g}, "
        f"{config['beta_max']:g}), from t = {config['t_start']:g}. Published: {PUBLISHED}."
    )
    fig = style.new_figure(13.0, 1.9 + 4.4 * len(names), headline, note)
    margins = style.body(fig, bottom=0.95, left=0.8, right=0.2, extra_top=0.35)
    axes = fig.subplots(2 * len(names), len(config["cases"]), squeeze=False, sharex=True, sharey="row",
                        gridspec_kw={**margins, "wspace": 0.08, "hspace": 0.28,
                                     "height_ratios": [2, 1] * len(names)})  # fmt: skip
    for i, model in enumerate(names):
        for j, (solver, kind) in enumerate(config["cases"]):
            rows = frame[(frame.model == model) & (frame.solver == solver)]
            _errors_panel(axes[2 * i, j], rows, config)
            _ratio_panel(axes[2 * i + 1, j], rows[rows.t_end == early])
            axes[2 * i, j].set_title(f"{model}: {solver}, {kind} grid", fontsize=10.5)
        axes[2 * i, 0].set_ylabel("RMS error against t = 0")
        axes[2 * i + 1, 0].set_ylabel("ratio")
    for ax in axes[-1]:
        ax.set_xlabel("model calls (NFE)")
        style.plain_log_ticks(ax.xaxis, config["calls"][::2])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=len(config["end_times"]), fontsize=9.5)
    return fig


def _time(t: float) -> str:
    return f"{t:.0e}".replace("e-0", "e-")


def _errors_panel(ax: Any, rows: Frame, config: Config) -> None:
    for colour, (t_end, part) in zip(SHADES, rows.groupby("t_end", sort=False), strict=False):
        width = 2.2 if t_end in config["compared"] else 1.2
        ax.plot(part.calls, part.total, color=colour, marker="o", markersize=4, lw=width, label=f"t₀ = {_time(t_end)}")
        ax.axhline(part.truncation.iloc[0], color=colour, lw=0.9, ls="--", alpha=0.8, zorder=0)
    ax.set(xscale="log", yscale="log")


def _ratio_panel(ax: Any, rows: Frame) -> None:
    ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    ax.fill_between(rows.calls, rows.low, rows.high, color=style.BLUE, alpha=0.25, lw=0)
    ax.plot(rows.calls, rows.ratio, color=style.BLUE, marker="o", markersize=4, lw=1.8)
    ax.set(xscale="log", yscale="log")
    style.plain_log_ticks(ax.yaxis, [0.1, 0.3, 0.5, 1, 2, 4])
