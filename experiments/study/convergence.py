"""Do the samplers of DEIS converge at the orders they claim, and are those the orders one sees from noise to data?"""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models.problems import broad_mixture, distinct_solvers, vp_linear

NAME = "convergence"
QUESTION = "Do the samplers of DEIS converge at their declared orders, and do steps from noise to data show them?"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0, "grid": "t2",
    "solvers": [
        "ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "logrhoab1", "logrhoab2", "logrhoab3",
        "ipndm2", "ipndm3", "ipndm4", "euler", "ei_score", "rhork_2midpoint", "rhork_2heun", "rhork_3kutta",
        "rhork_3heun", "rhork_3ralston", "rhork_3vdh", "rhork_3ssprk", "rhork_4rk",
    ],
    "ranges": {"smooth": [0.4, 0.1], "whole": [1.0, 1e-3]},
    "steps": [5, 10, 20, 40, 80, 160, 320], "samples": 64, "seed": 0, "tolerance": 0.15,
}  # fmt: skip
QUICK: Config = {"steps": [10, 20, 40, 80], "samples": 16}
_NAMED = ("ddim", "tab3", "ipndm4", "rhork_2heun", "rhork_3kutta", "rhork_4rk")  # lines with a name
TITLES = {"smooth": "Smooth part, t from {0:g} to {1:g}", "whole": "From noise to data, t from {0:g} to {1:g}"}


def compute(config: Config, progress: Progress) -> Frame:
    """One row per problem, distinct solver and step count: error, and the slope fitted to that solver's errors."""
    process, kind, parts = vp_linear(config), config["grid"], []
    problems = {"smooth": da.order_problem()[1], "whole": broad_mixture()}
    groups = distinct_solvers(process, da.grid(process, 12, kind), config["solvers"])
    for done, (name, problem) in enumerate(itertools.product(groups, problems), 1):
        (start, end), row = config["ranges"][problem], da.SOLVERS[name]
        found = da.observed_order(
            name, process, problems[problem], config["steps"], kind=kind, t_start=start, t_end=end,
            samples=config["samples"], seed=config["seed"],
        )  # fmt: skip
        parts.append(pd.DataFrame({
            "problem": problem, "solver": name, "same_as": " = ".join(groups[name][1:]), "order": row.order,
            "order_exact_start": row.order_exact_start, "steps": found.steps,
            "nfe": [row.calls(n) for n in found.steps], "rms": found.errors,
            "fitted": [n in found.window for n in found.steps], "slope": found.slope,
            "slope_error": found.standard_error,
        }))  # fmt: skip
        progress(done / len(groups) / len(problems))
    return pd.concat(parts, ignore_index=True)


def slopes(frame: Frame) -> Frame:
    """One row per solver: the declared order, and the slope on each problem."""
    wide = frame.pivot_table(index="solver", columns="problem", values="slope", sort=False)
    return wide.join(frame.groupby("solver", sort=False).order.first())


def headline(table: Frame, tolerance: float) -> str:
    """How many samplers show their declared order on the smooth part; if not all do, which is the furthest off."""
    off = (table.smooth - table.order).abs()
    met, worst = int((off <= tolerance).sum()), off.idxmax()
    within, but = off.max(), ""
    if met < len(table):
        within, but = tolerance, f", but {worst} with {table.smooth[worst]:.2f}"
    return f"{met} of {len(table)} distinct samplers show their declared order within {within:.2f}{but}"


def verdict(frame: Frame, config: Config) -> str:
    """The headline, and how many samplers look steeper than declared from noise to data."""
    table = slopes(frame)
    above, tolerance = table.whole - table.order, config["tolerance"]
    steepest = above.idxmax()
    return (
        f"{headline(table, tolerance)}; from noise to data {(above > tolerance).sum()} look steeper than declared "
        f"by more than {tolerance:g} up to {frame.steps.max()} steps, most of all {steepest}, "
        f"{table.whole[steepest]:.2f} for {table.order[steepest]}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """All slopes beside the declared orders; at the right errors against calls on both problems."""
    table = slopes(frame)
    note = (
        f"1-D Gaussian mixtures with exact flow, {style.setting(config)}, {config['grid']} grids of "
        f"{min(config['steps'])} to {max(config['steps'])} steps, {config['samples']} samples. Left: slopes of log "
        "error against log 1/N, fitted to the finest steps. Right: RMS error against the exact flow; grey: the others."
    )
    fig = panels.sheet(headline(table, config["tolerance"]), note, 5.2)
    ax = fig.add_subplot(fig.add_gridspec(1, 1, **style.body(fig, 0.42, 1.05, 3.3, 0.6))[0])
    places, colours = range(len(table)), [style.family(name)[0] for name in table.index]
    ax.hlines(places, table.smooth, table.whole, colors=colours, lw=0.9, alpha=0.6)
    ax.scatter(table.order, places, s=80, marker="|", color="#444444", linewidths=2.0, label="declared")
    ax.scatter(table.smooth, places, s=20, c=colours, zorder=3, label="smooth part")
    ax.scatter(table.whole, places, s=28, marker=">", facecolors="white", edgecolors=colours, zorder=2.5,
               label="noise to data")  # fmt: skip
    ax.set_yticks(places, table.index)
    for tick, colour in zip(ax.get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
    ax.tick_params(labelsize=panels.TICKS)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set(ylim=(len(table) - 0.3, -0.8), xticks=range(1, 5))
    ax.set_xlabel("slope", fontsize=8.5, labelpad=2)
    above: dict[str, Any] = {"fontsize": 7.5, "ncols": 3, "columnspacing": 1.0}
    ax.legend(loc="lower left", bbox_to_anchor=(-0.4, 0.995), handletextpad=0.0, handlelength=1.2, **above)
    titles = {problem: TITLES[problem].format(*ends) for problem, ends in config["ranges"].items()}
    right = panels.lines(
        fig, frame, titles, 1, x="nfe", y="rms", panel="problem", names=_NAMED, ticks=(10, 30, 100, 300, 1000),
        legend=False, left=4.4, extra_top=0.6, hspace=0.2,
    )  # fmt: skip
    top = fig.subplotpars.top - 0.02 / fig.get_size_inches()[1]
    fig.legend(*right[0].get_legend_handles_labels(), loc="upper right", bbox_to_anchor=(0.99, top), handlelength=2.0,
               **above)  # fmt: skip
    return fig
