"""Do the samplers of DEIS converge at the orders they claim, and are those the orders one sees from noise to data?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models.problems import broad_mixture, distinct_solvers, vp_linear

NAME = "convergence"
QUESTION = "Do the samplers of DEIS converge at their declared orders, and do steps from noise to data show them?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "grid": "t2",
    "solvers": [
        "ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "logrhoab1", "logrhoab2", "logrhoab3",
        "ipndm2", "ipndm3", "ipndm4", "euler", "ei_score", "rhork_2midpoint", "rhork_2heun", "rhork_3kutta",
        "rhork_3heun", "rhork_3ralston", "rhork_3vdh", "rhork_3ssprk", "rhork_4rk",
    ],
    "ranges": {"smooth": [0.4, 0.1], "whole": [1.0, 1e-3]},
    "steps": [5, 10, 20, 40, 80, 160, 320],
    "samples": 64,
    "seed": 0,
    "tolerance": 0.15,
}  # fmt: skip
QUICK: Config = {"steps": [10, 20, 40, 80], "samples": 16}
_NAMED = ("ddim", "tab3", "ipndm4", "rhork_2heun", "rhork_3kutta", "rhork_4rk")  # lines with a name
TITLES = {"smooth": "Smooth part, t from {0:g} to {1:g}", "whole": "From noise to data, t from {0:g} to {1:g}"}


def compute(config: Config, progress: Progress) -> Frame:
    """One row per problem, distinct solver and step count: error, and the slope fitted to that solver's errors."""
    process = vp_linear(config)
    problems = {"smooth": da.order_problem()[1], "whole": broad_mixture()}
    groups = distinct_solvers(process, da.grid(process, 12, config["grid"]), config["solvers"])
    rows = []
    for done, (name, same) in enumerate(groups.items(), 1):
        for problem, mix in problems.items():
            t_start, t_end = config["ranges"][problem]
            found = da.observed_order(
                name, process, mix, config["steps"], kind=config["grid"], t_start=t_start, t_end=t_end,
                samples=config["samples"], seed=config["seed"],
            )  # fmt: skip
            row = da.SOLVERS[name]
            rows += [
                {"problem": problem, "solver": name, "same_as": " = ".join(same[1:]), "order": row.order,
                 "order_exact_start": row.order_exact_start, "steps": n, "nfe": row.calls(n), "rms": error,
                 "fitted": n in found.window, "slope": found.slope, "slope_error": found.standard_error}
                for n, error in zip(found.steps, found.errors, strict=True)
            ]  # fmt: skip
        progress(done / len(groups))
    return pd.DataFrame(rows)


def slopes(frame: Frame) -> Frame:
    """One row per solver: declared orders, and the slope on each problem."""
    wide = frame.pivot_table(index="solver", columns="problem", values="slope", sort=False)
    declared = frame.groupby("solver", sort=False)[["order", "order_exact_start"]].first()
    return wide.join(declared)


def verdict(frame: Frame, config: Config) -> str:
    """How far the slopes are from the declared orders, and where the slope from noise to data departs most."""
    table, tolerance = slopes(frame), config["tolerance"]
    off = (table.smooth - table.order).abs()
    above = (table.whole - table.order).sort_values(ascending=False)
    met = int((off <= tolerance).sum())
    names = ", ".join(f"{name} {table.whole[name]:.2f} for {table.order[name]}" for name in above.index[:3])
    beyond = int((above > tolerance).sum())
    first, last = config["ranges"]["whole"]
    steeper = (
        f"from noise (t = {first:g}) to data (t = {last:g}) {beyond} are steeper than declared by more than "
        f"{tolerance:g} up to {frame.steps.max()} steps ({names})"
        if beyond
        else f"from noise to data none is steeper than declared by more than {tolerance:g}"
    )
    worst = "" if met == len(table) else f", the worst being {off.idxmax()} with {table.smooth[off.idxmax()]:.2f}"
    return (
        f"On the smooth part {met} of {len(table)} distinct samplers show their declared order within {tolerance:g} "
        f"(largest deviation {off.max():.2f}{worst}), while {steeper}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """All slopes beside the declared orders; at the right errors against calls on both problems."""
    table = slopes(frame)
    off = (table.smooth - table.order).abs()
    met = int((off <= config["tolerance"]).sum())
    within = off.max() if met == len(table) else config["tolerance"]
    headline = f"{met} of {len(table)} samplers show their declared order within {within:.2f}"
    note = (
        f"1-D Gaussian mixtures with exact flow, {style.setting(config)}, {config['grid']} grids of "
        f"{min(config['steps'])} to {max(config['steps'])} steps, {config['samples']} samples. Left: slopes of log "
        "error against log 1/N, fitted to the finest steps; from noise to data samplers can look steeper. "
        "Right: RMS error against the exact flow; grey: the other samplers."
    )
    fig = panels.sheet(headline, note, 5.2)
    grid = fig.add_gridspec(2, 2, width_ratios=[1, 0.95], hspace=0.32, wspace=0.3,
                            **style.body(fig, 0.42, 1.05, 0.1, 0.6))  # fmt: skip
    _orders(fig.add_subplot(grid[:, 0]), table)
    axes: list[Any] = []
    for i, problem in enumerate(config["ranges"]):
        axes.append(fig.add_subplot(grid[i, 1], sharex=axes[0] if axes else None, sharey=axes[0] if axes else None))
        axes[i].set_title(TITLES[problem].format(*config["ranges"][problem]), fontsize=8.5, pad=3)
        axes[i].tick_params(labelsize=panels.TICKS)
        _errors(axes[i], frame[frame.problem == problem])
    axes[0].set(xscale="log", yscale="log", ylim=(0.3 * frame.rms.min(), 2.5 * frame.rms.max()))
    panels.calls_axis(axes, [10, 30, 100, 300, 1000])
    top = fig.subplotpars.top - 0.02 / fig.get_size_inches()[1]
    fig.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=3, fontsize=7.5, handlelength=2.0,
               columnspacing=1.0, bbox_to_anchor=(0.99, top))  # fmt: skip
    return fig


def _errors(ax: Any, rows: Frame) -> None:
    for name, part in rows.groupby("solver", sort=False):
        if name in _NAMED:
            panels.curve(ax, part.nfe, part.rms, label=str(name), **style.look(str(name)))
        else:
            ax.plot(part.nfe, part.rms, color="#d0d0d0", lw=0.8, zorder=1)


def _orders(ax: Any, table: Frame) -> None:
    names = list(table.index)
    y = np.arange(len(names))[::-1]
    for order in range(1, int(max(table.whole.max(), table.order.max())) + 1):
        ax.axvline(order, color="#dddddd", lw=0.8, zorder=0)
    bar: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 2.0}
    ax.plot(table.order, y, **bar, color="#444444", zorder=1, label="declared")
    smooth: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linestyle": "none", "zorder": 3}
    whole: dict[str, Any] = {"marker": ">", "markersize": 5, "linestyle": "none", "markerfacecolor": "white",
                             "zorder": 2}  # fmt: skip
    ax.plot([], [], **smooth, color="#444444", label="smooth part")
    ax.plot([], [], **whole, color="#444444", label="noise to data")
    for name, height in zip(names, y, strict=True):
        colour = style.family(name)[0]
        ax.plot([table.smooth[name], table.whole[name]], [height, height], color=colour, lw=0.9, alpha=0.6)
        ax.plot(table.smooth[name], height, **smooth, color=colour)
        ax.plot(table.whole[name], height, **whole, color=colour)
    ax.set_yticks(y, names)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(style.family(name)[0])
    ax.grid(False)
    ax.tick_params(axis="both", labelsize=panels.TICKS)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("slope", fontsize=8.5, labelpad=2)
    ax.set_ylim(-0.8, len(names) - 0.3)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.4, 0.995), ncols=3, fontsize=7.5, columnspacing=0.6,
              handletextpad=0.0, handlelength=1.2)  # fmt: skip
