"""Where should sampling stop? The error against the data end, split into truncation at t₀ and discretization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio

NAME = "appendix_end_time"
QUESTION = "From how many model calls on does stopping at t₀ = 1e-4 beat stopping at 1e-3?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
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
QUICK: Config = {**studies.BASE_QUICK, "end_times": [1e-3, 1e-4], "calls": [5, 10, 20]}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 2048,
    "calls": [5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160],
}
PUBLISHED = "DPM-Solver: 1e-3 better below 15 calls, 1e-4 above (FID, other models)"  # Lu et al. 2022


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (model, solver, grid, t_end, calls): RMS ``total`` = sampler − exact answer at t = 0, and of its two parts.

    As vectors total = truncation + discretization: exact state at t₀ − exact state at 0, and sampler − exact state, at
    t₀.  ``ratio``, with its 95 % interval over samples: total error over that of the first of ``compared``.
    """
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        problem = studies.study(name, config)
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


def _most(frame: Frame, config: Config) -> str:
    """In how many cases the smaller end time is clearly better for good, and since which number of calls."""
    late, early = config["compared"]
    clear = [c["clear"] for model in frame.model.unique() for c in findings(frame, config, model).values()]
    since = [calls for calls in clear if calls is not None]
    when = f", from {min(since)} calls on at the earliest" if since else ""
    return (
        f"Stopping at t₀ = {_time(early)} clearly beats stopping at {_time(late)} in {len(since)} of {len(clear)} "
        f"cases{when}"
    )


def verdict(frame: Frame, config: Config) -> str:
    """Per model and solver, from which call count on the smaller end time clearly wins; ratios at the most calls."""
    parts, last = [], frame.calls.max()
    for model in frame.model.unique():
        since: dict[int | None, list[str]] = {}
        for solver, c in findings(frame, config, model).items():
            since.setdefault(c["clear"], []).append(solver)
        ordered = sorted(since.items(), key=lambda item: item[0] or np.inf)
        words = ", ".join(f"{'never' if n is None else f'from {n} calls on'} ({', '.join(s)})" for n, s in ordered)
        ratios = [c["ratio"] for c in findings(frame, config, model).values()]
        parts.append(f"on the {model} {words}, at {last} calls {_range(ratios)} times the error")
    return f"{_most(frame, config)}: against the answer at t = 0 {'; '.join(parts)}."


def _range(values: list[float]) -> str:
    return f"{style.as_text(min(values))} to {style.as_text(max(values))}"


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: models; columns: solvers; error at the smaller of the compared end times over that at the larger one."""
    models, (late, early) = list(frame.model.unique()), config["compared"]
    note = (
        f"RMS error against the exact answer at t = 0 when stopping at {_time(early)}, over that when stopping at "
        f"{_time(late)}, 95 % interval over {config['samples']} samples; blue: clearly less, orange: clearly more. "
        "Mixture: exact flow; digits: the data point where the exact flow ends. "
        f"VPLinear({config['beta_min']:g}, {config['beta_max']:g}), from t = {config['t_start']:g}. Share: of stopping "
        f"early in the squared error at {_time(late)}, with most calls. Published: {PUBLISHED}."
    )
    fig = panels.sheet(_most(frame, config), note, 0.8 + 1.65 * len(models))
    titles = [f"{model}: {solver}" for model in models for solver, _ in config["cases"]]
    axes, _ = panels.small_multiples(fig, titles, len(config["cases"]))
    for i, model in enumerate(models):
        for j, (solver, c) in enumerate(findings(frame, config, model).items()):
            rows = frame[(frame.model == model) & (frame.solver == solver) & (frame.t_end == early)]
            _ratio_panel(axes[i * len(config["cases"]) + j], rows, c)
    axes[0].set(yscale="log", ylim=(0.08, 5.0))
    style.plain_log_ticks(axes[0].yaxis, [0.3, 0.5, 1, 2, 4])
    panels.calls_axis(axes, [5, 10, 20, 50])
    fig.supylabel(f"error at {_time(early)} / at {_time(late)}", fontsize=8.5, x=0.012)
    return fig


def _time(t: float) -> str:
    return f"{t:.0e}".replace("e-0", "e-")


def _ratio_panel(ax: Any, rows: Frame, found: dict[str, Any]) -> None:
    ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    panels.curve(ax, rows.calls, rows.ratio, rows.low, rows.high, color="#666666")
    for row in rows.itertuples():
        ax.plot(row.calls, row.ratio, "o", color=panels.side(row.low, row.high), markersize=4.5, zorder=3)
    clear = "never clearly less" if found["clear"] is None else f"clearly less from {found['clear']} on"
    panels.words(ax, 0.03, 0.03, f"{clear}\nshare {found['share']:.0%}", ha="left", va="bottom")
