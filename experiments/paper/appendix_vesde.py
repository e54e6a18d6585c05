"""Does a variance-exploding process need more model calls than a variance-preserving one? VP, VE and EDM, same data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import judging, panels, style
from experiments.core.frames import at, calls_for
from experiments.models import studies
from experiments.models.problems import Problem, vp_linear

NAME = "appendix_vesde"
QUESTION = "Do samplers on VE and EDM need more model calls than on VP for the same error?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"], "ve": [0.01, 50.0], "edm": [0.002, 80.0],
    "solvers": ["ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "rhork_2heun", "rhork_3kutta",
                "edm_heun", "dpmpp_2m", "unipc2_bh2_x0"],
    "grids": {"VP": ["t2"], "VE": ["t1", "vp_t2"], "EDM": ["rho7", "vp_t2"]},
    "calls": [5, 10, 20, 50], "compared_at": 10,
    "choices": {
        "VE": "noise levels of score SDE on CIFAR-10; the paper's table on VESDE and its grids are not known to us",
        "EDM": "not in the paper; noise levels of EDM",
        "end": "every process stops at the ρ of VP's t_end and starts at its own largest level",
        "vp_t2": "VP's times, carried over by equal ρ, since a grid in VE's own t is a choice too",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "solvers": ["ddim", "tab3", "dpmpp_2m"],
                 "calls": [5, 10, 20]}  # fmt: skip
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"], "samples": 512, "calls": [5, 7, 10, 14, 20, 28, 40, 56],
    "grids": {"VP": ["t2", "rho7", "logrho"], "VE": ["t1", "rho7", "vp_t2"], "EDM": ["rho7", "logrho", "vp_t2"]},
}  # fmt: skip
BORROWED = "vp_t2"  # the levels ρ of VP's t2 grid, on another process
OTHERS = ["VE", "EDM"]
LEVELS = ", on VP's levels"  # of a line: with the borrowed grid too
LINES = {"VP": (style.BLACK, "o"), "VE": (style.VERMILLION, "s"), "EDM": (style.BLUE, "^")}


def processes(config: Config) -> dict[str, tuple[Process, float, float]]:
    """Name → (process, t_start, t_end): from each one's own largest level down to the ρ of VP's ``t_end``."""
    vp = vp_linear(config)
    level = float(vp.rho(config["t_end"]))
    others = {"VE": da.VE(*config["ve"]), "EDM": da.EDM(*config["edm"])}
    found = {name: (q, q.sampling_range[0], float(q.time_from_rho(level))) for name, q in others.items()}
    return {"VP": (vp, config["t_start"], config["t_end"]), **found}


def make_grid(config: Config, name: str, kind: str, steps: int) -> Array:
    """A grid of a process by name; ``vp_t2`` has VP's times, uniform in √t, of the same levels ρ at both ends."""
    process, start, end = processes(config)[name]
    if kind != BORROWED:
        return da.grid(process, steps, kind, start, end)
    vp = vp_linear(config)
    begin = float(vp.time_from_rho(float(process.rho(start))))
    ts = np.array(process.time_from_rho(vp.rho(da.grid(vp, steps, "t2", begin, config["t_end"]))))
    ts[0], ts[-1] = start, end
    return ts


def setup(model: str, config: Config, name: str) -> Problem:
    """A model of the study on a process by name."""
    process, start, end = processes(config)[name]
    return studies.problem_on(model, {**config, "t_start": start, "t_end": end}, process)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, process, solver, grid, calls) and "ratio" (model, process, solver, calls).

    A ratio is the RMS error over VP's with the same solver and calls, each on the best of its grids without the
    borrowed one (``own``) or with it (``any``), with its 95 % interval over samples, which start from the same noise.
    """
    rows: list[dict[str, Any]] = []
    for done, model in enumerate(config["models"]):
        best: dict[tuple[str, int, str, str], Array] = {}  # (solver, calls, process, choice of grids)
        for k, (name, kinds) in enumerate(config["grids"].items(), 1):
            problem = setup(model, config, name)
            tried = problem.tried(config["solvers"], kinds, config["calls"], grid=partial(make_grid, config, name))
            for row, squares in tried:
                rows.append({"part": "error", "model": model, "process": name, **row,
                             "rms": float(np.sqrt(squares.mean())), "estimate": problem.estimate})  # fmt: skip
                for choice in ("own", "any") if row["grid"] != BORROWED else ("any",):
                    cell = (row["solver"], row["calls"], name, choice)
                    best[cell] = min(best.get(cell, squares), squares, key=np.mean)
            progress((done + k / len(config["grids"])) / len(config["models"]))
        for (solver, calls, name, choice), squares in best.items():
            if name != "VP":
                ratio = judging.ratio_row(squares, best[solver, calls, "VP", "own"], config["seed"], 500)
                rows.append({"part": "ratio", "model": model, "process": name, "solver": solver, "calls": calls,
                             "choice": choice, **ratio})  # fmt: skip
    return pd.DataFrame(rows)


# -- what was found -------------------------------------------------------------------------------
def envelopes(frame: Frame) -> Frame:
    """Least RMS error of all solvers and grids: ``model, line, calls, rms``, a line being a process on its own grids
    or, with `LEVELS` after its name, with the borrowed grid too."""
    rows = at(frame, part="error")
    borrowed = rows[rows.process != "VP"].assign(line=lambda part: part.process + LEVELS)
    lines = pd.concat([rows[rows.grid != BORROWED].assign(line=lambda part: part.process), borrowed])
    return lines.groupby(["model", "line", "calls"], sort=False, as_index=False).rms.min()


def needed(frame: Frame, config: Config) -> Frame:
    """Calls that each line of `envelopes` takes for the least error that VP has with ``compared_at``: model × line."""
    least = envelopes(frame).pivot(index="calls", columns=["model", "line"], values="rms")
    found = {cell: calls_for(least.index, errors, least.loc[config["compared_at"], (cell[0], "VP")])
             for cell, errors in least.items()}  # fmt: skip
    return pd.Series(found).unstack(sort=False)


def more(frame: Frame, config: Config) -> Frame:
    """Per process: of how many ``cases`` (model, solver) at the compared calls, on own grids, ``more`` error than VP's,
    and clearly more (``clear``) or ``less``."""
    rows = at(frame, part="ratio", choice="own", calls=config["compared_at"])
    marked = rows.assign(more=rows.ratio > 1, clear=rows.low > 1, less=rows.high < 1, cases=1)
    return marked.groupby("process", sort=False)[["more", "clear", "less", "cases"]].sum()


def headline_of(frame: Frame, config: Config) -> str:
    """How many calls VE takes on the last model."""
    found = needed(frame, config).VE
    count = f"{found.iloc[-1]:.0f}" if np.isfinite(found.iloc[-1]) else f"more than {frame.calls.max()}"
    return f"On the {found.index[-1]} VE takes {count} calls for the least error that VP has at {config['compared_at']}"


def verdict(frame: Frame, config: Config) -> str:
    """Calls in which the other processes reach VP's least error, and for how many solvers they err more."""
    found, cases = needed(frame, config).replace(np.inf, np.nan).round(), more(frame, config)
    calls = found.map(lambda count: f"more than {frame.calls.max()}" if np.isnan(count) else f"{count:.0f}")
    others = "".join(f"; on the {model} VE takes {row.VE}" for model, row in calls.iloc[:-1].iterrows())
    borrowed = style.in_words([f"{name} {calls.iloc[-1][name + LEVELS]}" for name in OTHERS])
    solvers = style.in_words([f"{name} in {row.more} of {row.cases}" for name, row in cases.iterrows()])
    return (
        f"{headline_of(frame, config)}, EDM {calls.EDM.iloc[-1]}{LEVELS} {borrowed}{others}; "
        f"solver by solver {solvers} cases has more error than VP."
    )


# -- figure ---------------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """A column per model: least error of all solvers per process and kind of grid; each solver's ratio to VP."""
    names, calls, solvers = list(frame.model.unique()), config["compared_at"], config["solvers"]
    note = (
        f"VE({config['ve'][0]:g}, {config['ve'][1]:g}), EDM up to {config['edm'][1]:g}, {style.setting(config)}; all "
        f"stop at the same ρ and start from the same noise. Upper: least error of all solvers. Lower: error over VP's "
        f"at {calls} calls, same solver, on its best own grid, with 95 % interval over {config['samples']} samples. "
        "Hollow and dashed: also on the noise levels of VP's t2 grid."
    )
    upper, between = 1.9, 0.95
    height, least = upper + between + 0.2 * len(solvers) + 0.5, envelopes(frame)
    fig = panels.sheet(headline_of(frame, config), note, height)
    axes = panels.lines(fig, least, {name: panels.short(name) for name in names}, max(len(names), 2), x="calls",
                        y="rms", line="line", look=_look, ylabel="RMS error", wspace=0.06, left=1.0,
                        end=upper / height)  # fmt: skip
    for ax, name in zip(axes, names, strict=True):
        ax.axhline(at(least, model=name, line="VP", calls=calls).rms.item(), color="#999999", lw=0.8, zorder=0)
    cells = [(model, other) for model in names for other in OTHERS]
    below, _ = panels.small_multiples(fig, [f"{panels.short(model)}, {other}" for model, other in cells], len(cells),
                                      wspace=0.08, left=1.0, begin=(upper + between) / height)  # fmt: skip
    ratios = at(frame, part="ratio", calls=calls)
    for ax, (model, other) in zip(below, cells, strict=True):
        rows = at(ratios, model=model, process=other)
        own, every = (at(rows, choice=choice).set_index("solver").loc[solvers] for choice in ("own", "any"))
        panels.intervals(ax, own[["ratio", "low", "high"]].to_numpy(), [0.5, 1, 2, 5], solvers)
        ax.plot(every.ratio, range(len(solvers)), "o", color="#333333", markerfacecolor="none", markersize=5)
        ax.set_xlabel("error over VP's", fontsize=8.5, labelpad=2)
    return fig


def _look(line: str) -> dict[str, Any]:
    process, _, borrowed = line.partition(", ")
    colour, marker = LINES[process]
    return {"color": colour, "marker": marker, "ls": "--" if borrowed else "-",
            "markerfacecolor": "white" if borrowed else colour}  # fmt: skip
