"""How much does the time grid matter, and is the best one the same for every sampler?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress, style
from experiments.problems import broad_mixture, digits_problem, steps_for

NAME = "time_grids"
QUESTION = "How much does the time grid matter, and is the best one the same for every sampler?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "solvers": ["ddim", "rhoab3", "tab3"],
    "calls": [5, 7, 10, 14, 20, 28, 40],
    "compared_at": 10,
    "std": 0.0,
    "samples": 256,
    "mixture_samples": 1024,
    "seed": 0,
    "rtol": 1e-7,
    "device": "cpu",
}
QUICK: Config = {"calls": [5, 10, 20], "samples": 64, "mixture_samples": 256, "rtol": 1e-6}
PROBLEMS = {"mixture": "1-D mixture", "digits": "digits"}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (problem, solver, grid, nfe): RMS error."""
    problem = digits_problem(config)
    progress(0.4)
    process, mix = problem.process, broad_mixture()
    x = mix.sample(config["mixture_samples"], config["seed"], process, config["t_start"])
    exact = mix.flow(process, x, config["t_start"], config["t_end"])
    runs = {"mixture": (mix.eps(process), x, exact), "digits": (problem.model, problem.x_T, problem.reference)}
    rows = []
    for name, (model, start, truth) in runs.items():
        for solver in config["solvers"]:
            for kind in config["grids"]:
                for calls in config["calls"]:
                    steps = steps_for(solver, calls)
                    ts = da.grid(process, steps, kind, config["t_start"], config["t_end"])
                    table = da.build(solver, process, ts).in_terms_of(process, "eps")
                    gap = da.run(table, model, start) - truth
                    rows.append(
                        {
                            "problem": name,
                            "solver": solver,
                            "grid": kind,
                            "nfe": table.nfe,
                            "rms": float((gap**2).mean() ** 0.5),
                        }
                    )
            progress(
                min(
                    0.99,
                    0.4 + 0.6 * len(rows) / (2 * len(config["solvers"]) * len(config["grids"]) * len(config["calls"])),
                )
            )
    return pd.DataFrame(rows)


def findings(frame: Frame, calls: int) -> Frame:
    """Per problem and solver at ``calls``: best and worst grid and their errors."""
    at = frame[frame.nfe == calls]
    rows = []
    for (problem, solver), part in at.groupby(["problem", "solver"], sort=False):
        ordered = part.sort_values("rms")
        best, worst = ordered.iloc[0], ordered.iloc[-1]
        rows.append({"problem": problem, "solver": solver, "best": best.grid, "worst": worst.grid,
                     "factor": worst.rms / best.rms, "rms": best.rms})  # fmt: skip
    return pd.DataFrame(rows)


def verdict(frame: Frame, config: Config) -> str:
    """Which grid is best for each solver on each problem, and by how much."""
    found, parts = findings(frame, config["compared_at"]), []
    for problem, title in PROBLEMS.items():
        rows = found[found.problem == problem]
        parts.append(
            f"on the {title} "
            + ", ".join(f"{r.best} for {r.solver} ({r.factor:.1f}x better than {r.worst})" for r in rows.itertuples())
        )
    same = found.best.nunique() == 1
    closing = "one grid is best throughout" if same else "no single grid is best throughout"
    return f"At {config['compared_at']} calls the best grid is " + "; ".join(parts) + f": {closing}."


def draw(frame: Frame, config: Config) -> Figure:
    """Small multiples: columns are solvers, rows problems; the best grid at the compared count in colour."""
    calls = config["compared_at"]
    found = findings(frame, calls)
    counts = found.best.value_counts()
    tab3 = found[(found.solver == "tab3")]
    headline = (
        f"{calls} calls: {counts.index[0]} is the best grid in {counts.iloc[0]} of {len(found)} cases; for tab3 the "
        f"choice is worth {tab3.factor.min():.1f}× to {tab3.factor.max():.1f}×"
    )
    note = (
        "RMS error on a 1-D mixture (exact flow) and on the ideal denoiser of the digits (certified reference); "
        f"{style.setting(config)}. In colour: the best grid at {calls} calls. tN: power N in t; rho7: power 7 in ρ; "
        "logrho: uniform in log ρ."
    )
    fig = style.new_figure(12.0, 7.6, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.8, right=0.75, extra_top=0.35)
    axes = fig.subplots(len(PROBLEMS), len(config["solvers"]), sharex=True, sharey="row",
                        gridspec_kw={**margins, "wspace": 0.3, "hspace": 0.2})  # fmt: skip
    labels = []
    for row, (problem, title) in zip(axes, PROBLEMS.items(), strict=True):
        for ax, solver in zip(row, config["solvers"], strict=True):
            best = found[(found.problem == problem) & (found.solver == solver)].best.iloc[0]
            ends = _panel(ax, frame[(frame.problem == problem) & (frame.solver == solver)], best, config)
            ax.set_title(f"{solver}, {title}")
            labels.append((ax, ends))
        row[0].set_ylabel("RMS error")
    for ax in axes[-1]:
        ax.set_xlabel("model calls (NFE)")
    for ax, ends in labels:  # last, when the shared axes have their limits
        style.end_labels(ax, ends)
    return fig


def _panel(ax: Any, rows: Frame, best: str, config: Config) -> list[tuple[float, float, str, str]]:
    greys = dict(zip(config["grids"], np.linspace(0.78, 0.45, len(config["grids"])), strict=True))
    ends = []
    for kind, part in rows.groupby("grid", sort=False):
        look = style.look(part.solver.iloc[0])
        colour = look["color"] if kind == best else str(greys[kind])
        if look["markerfacecolor"] != "white":
            look["markerfacecolor"] = colour
        ax.plot(
            part.nfe,
            part.rms,
            **{**look, "color": colour, "linewidth": 2.8 if kind == best else 1.2},
            zorder=3 if kind == best else 2,
        )
        ends.append((part.nfe.iloc[-1], part.rms.iloc[-1], kind, colour))
    ax.set(xscale="log", yscale="log")
    ax.axvline(config["compared_at"], color="#bbbbbb", lw=0.8, zorder=0)
    style.plain_log_ticks(ax.xaxis, config["calls"])
    return ends
