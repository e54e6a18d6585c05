"""Who is worse than Euler on a rectified flow, and which log-SNR step is it? Exact flows, time shifts 1 and 3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import judging, panels, style
from experiments.core.by_model import by_model
from experiments.core.frames import at, span
from experiments.models import studies
from experiments.models.problems import Problem, steps_for

NAME = "rectified_flow"
QUESTION = "Which samplers are worse than Euler on a rectified flow at 5 to 20 calls, and which step makes their error?"
LOWER = "*"  # marks a sampler whose last steps are of lower order, down to the first, as packages run it
CONFIG: Config = {
    **studies.BASE, "models": ["mixture", "digits"], "t_start": 0.999, "t_end": 1e-3, "grids": ["shift1", "shift3"],
    "calls": [5, 10, 20], "gaps": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "solvers": ["ddim", "flow_heun", "tab1", "tab2", "tab3", "rhoab2", "dpmpp_2m", "dpmpp_2m*", "unipc2_bh2_x0",
                "unipc2_bh2_x0*", "unipc3_bh2_x0", "unipc3_bh2_x0*", "unipc3_bh2_eps", "unipc3_bh2_eps*"],
    "swept": ["tab2", "dpmpp_2m", "dpmpp_2m*", "unipc3_bh2_x0", "unipc3_bh2_eps*"],
    "choices": {"ends": "1/1000 from 1 and 0, where the log-SNR is infinite; packages end at 0, by a first-order step"},
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "calls": [5, 10], "gaps": [1e-2, 1e-3]}
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048,
                    "calls": [5, 6, 8, 10, 14, 20, 28, 40]}  # fmt: skip
EULER = "flow_euler"
FLOW = da.RectifiedFlow()


def build(name: str, ts: Array) -> da.Tableau:
    """A registry solver on the rectified flow; with `LOWER` after its name its last steps are of lower order."""
    make: Any = da.SOLVERS[name.rstrip(LOWER)].build
    return make(FLOW, ts, lower_order_final=True) if name.endswith(LOWER) else make(FLOW, ts)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (RMS, its ratio to Euler's at as many calls with a 95 % band), "step" (exact flows, fewest
    calls: each step's share of the squared error) and "end" (RMS against where the grid starts or ends)."""
    return by_model(NAME, config, lambda name, _: list(_rows(name, config)), progress)


def _rows(model: str, config: Config) -> Iterator[dict[str, Any]]:
    problem = studies.problem_on(model, config, FLOW)
    solvers, grids, fewest = [EULER, *config["solvers"]], config["grids"], min(config["calls"])
    euler: dict[tuple[str, int], Array] = {}
    for row, squares in problem.tried(solvers, grids, config["calls"], build=build):
        base = euler.setdefault((row["grid"], row["calls"]), squares)
        yield {"part": "error", **row, "rms": float(np.sqrt(judging.mean_square(squares))),
               **judging.ratio_row(squares, base, config["seed"], 500), "estimate": problem.estimate}  # fmt: skip
    if problem.exact is None:
        return
    for name, kind in itertools.product(solvers, grids):
        ts = da.grid(FLOW, steps_for(name.rstrip(LOWER), fewest), kind, *problem.span)
        parts = da.transported_errors(build(name, ts), FLOW, problem.exact, np.asarray(problem.x_T.cpu()))
        error = parts.sum(axis=0)  # a share is ⟨step's transported error, error⟩/|error|²: they sum to 1
        for i, (part, size) in enumerate(zip(parts, np.diff(FLOW.lam(ts)), strict=True)):
            yield {"part": "step", "solver": name, "grid": kind, "calls": fewest, "step": i, "steps": len(parts),
                   "log_snr": float(size), "share": float(np.sum(part * error) / np.sum(error**2))}  # fmt: skip
    for gap, end in itertools.product(config["gaps"], ("t_start", "t_end")):
        ends = (1.0 - gap, config["t_end"]) if end == "t_start" else (config["t_start"], gap)
        moved = Problem(FLOW, problem.model, problem.x_T, problem.exact.flow(FLOW, problem.x_T, *ends), ends)
        for row, squares in moved.tried([EULER, *config["swept"]], grids[-1:], [fewest], build=build):
            yield {"part": "end", "end": end, "gap": gap, **row, "rms": float(np.sqrt(judging.mean_square(squares)))}


def standing(frame: Frame) -> Frame:
    """Per solver: of how many ``cells`` (model, grid, calls), in how many clearly ``worse`` than Euler or the ``same``,
    whether ``mostly`` worse, and its median ``ratio``."""
    rows = at(frame, part="error")[lambda found: found.solver != EULER]
    same = (rows.ratio - 1.0).abs() < 1e-6
    found = rows.assign(worse=(rows.low > 1) & ~same, same=same, cells=1).groupby("solver", sort=False)
    counts = found[["worse", "same", "cells"]].sum()
    return counts.assign(mostly=2 * counts.worse > counts.cells, ratio=found.ratio.median())


def headline_of(frame: Frame) -> str:
    """Which step makes the error of those mostly worse than Euler, by its median share; else how many they are."""
    bad = list(standing(frame).query("mostly").index)
    rows = at(frame, part="step", solver=bad)
    if rows.empty:
        return f"{len(bad) or 'No'} samplers are mostly worse than Euler on rectified flows"
    shares = {"first": rows.share[rows.step == 0].median(), "last": rows.share[rows.step == rows.steps - 1].median()}
    end, share = max(shares.items(), key=lambda found: abs(found[1]))
    made = f"The {end} log-SNR step makes {round(100 * share)}\xa0% of the error"
    return f"{made} of samplers worse than Euler on rectified flows"


def verdict(frame: Frame, config: Config) -> str:
    """Which step makes the error of whom, and what last steps of lower order do to those that are there both ways."""
    found = standing(frame)
    bad = list(found.index[found.mostly])
    parts = [f"these are, in most of {found.cells.max()} cells, {style.in_words(bad)}"] if bad else []
    if eased := [name for name in bad if name + LOWER in found.index]:
        both = eased, [name + LOWER for name in eased]
        before, after = (span(found.ratio[names]).replace(" to ", "–") for names in both)
        parts.append(f"lower-order last steps ({LOWER}) take their median ratio to Euler from {before} to {after}")
    return "; ".join([headline_of(frame).replace("\xa0", " "), *parts]) + "."


def draw(frame: Frame, config: Config) -> Figure:
    """Upper row: ratio to Euler per model and shift; lower: shares of the steps, and where the grid ends."""
    errors, steps = at(frame, part="error"), at(frame, part="step")
    note = (
        f"RMS error against the exact flow (digits: DOPRI5), {config['samples']} samples but for digits that flip "
        "(end at another one's place); upper: over Euler's at as many calls, with 95 % intervals; t from "
        f"{config['t_start']:g} to {config['t_end']:g}; shift s: t = s u/(1 + (s − 1) u), u uniform. {LOWER}: "
        f"last steps of lower order. Lower, {min(config['calls'])} calls: share of a step: its error carried to the "
        "end by the exact flow, projected on the whole error."
    )
    names, kinds = [EULER, *config["solvers"]], {kind: f"shift {kind[5:]}" for kind in config["grids"]}
    cells = list(errors.groupby(["model", "grid"], sort=False))
    upper, lower = 0.165 * len(names) + 0.45, 0.165 * len(names) + 1.2 if len(steps) else 0.0
    fig = panels.sheet(headline_of(frame), note, upper + lower)
    axes, _ = panels.small_multiples(fig, [f"{model}, {kinds[kind]}" for (model, kind), _ in cells], len(cells),
                                     extra_top=0.45, end=upper / (upper + lower), left=1.15, wspace=0.06)  # fmt: skip
    counts, cmap = config["calls"], style.plt.get_cmap("viridis_r")
    for ax, (_, rows) in zip(axes, cells, strict=True):
        ax.axvline(1.0, color="#333333", lw=0.9, zorder=1)
        for calls, place in zip(counts, np.linspace(0, 1, len(counts)), strict=True):
            part = at(rows, calls=calls).set_index("solver").loc[names]
            y, face = np.arange(len(names)) + 0.22 * (len(counts) - 1) * (place - 0.5), cmap(0.15 + 0.75 * place)
            ax.hlines(y, part.low, part.high, color=face, lw=1.8)
            ax.plot(part.ratio, y, "o", color=face, markersize=4, label=f"{calls} calls", zorder=3)
        ax.set(ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)), yticklabels=names)
        ax.tick_params(axis="y", length=0)
    panels.calls_axis(axes, [0.01, 1, 100], "error / Euler's")
    panels.key(fig, axes[0])
    if len(steps):
        model = steps.model.iloc[0]
        axes, (ends,) = panels.small_multiples(
            fig, [f"{model}, {kind}: shares" for kind in kinds.values()], len(kinds) + 1, more=1, indent=0.45,
            begin=(upper + 0.85) / (upper + lower), left=1.15, wspace=0.06,
        )  # fmt: skip
        for ax, kind in zip(axes, kinds, strict=True):
            rows = at(steps, model=model, grid=kind)
            last = rows.assign(step=rows.step.mask(rows.step == rows.steps - 1, rows.steps.max() - 1))  # of fewer, too
            shares = last.pivot(index="solver", columns="step", values="share").loc[names]
            texts = shares.map("{:z.2f}".format).where(shares.notna(), "").to_numpy()
            panels.diverging(ax, shares.to_numpy(), texts, [f"{step + 1:.0f}" for step in shares], names, 1.3)
            ax.set_xlabel("step", fontsize=8.5, labelpad=2)
        rows = at(frame, part="end", model=model, end="t_end")
        for name, part in rows.groupby("solver", sort=False):
            plain = str(name).rstrip(LOWER)
            panels.curve(ends, part.gap, part.rms, label=str(name), marker="o", ls="-" if name == plain else "--",
                         color=style.GREY if name == EULER else style.family(plain)[0])  # fmt: skip
        ends.set(xscale="log", yscale="log", ylim=(None, 300 * rows.rms.max()))  # with room for the names
        ends.invert_xaxis()
        panels.named(ends, f"RMS error, {list(kinds.values())[-1]}", "t at the end")
        ends.legend(fontsize=panels.SMALL, loc="upper left", handlelength=1.6)
    return fig
