"""Does a variance-exploding process need more model calls than a variance-preserving one? VP, VE and EDM, same data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import judging, panels, style
from experiments.core.frames import at, calls_for
from experiments.models import problems, studies

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
        "ve": "noise levels of score SDE on CIFAR-10; the paper's table on VESDE and its grids are not known to us",
        "edm": "not in the paper",
        "vp_t2": "VP's times, carried over by equal ρ, since a grid in VE's own t is a choice too",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "solvers": ["ddim", "tab3", "dpmpp_2m"],
                 "calls": [5, 10, 20]}  # fmt: skip
THOROUGH: Config = {"models": list(studies.MODELS), "samples": 512, "calls": [5, 7, 10, 14, 20, 28, 40, 56]}
BORROWED = "vp_t2"  # the levels ρ of VP's t2 grid, on another process
OTHERS = ["VE", "EDM"]
LEVELS = ", on VP's levels"  # of a line: with the borrowed grid too
LOOKS = {"VP": {"color": style.BLACK, "marker": "o"}, "VE": {"color": style.VERMILLION, "marker": "s"},
         "EDM": {"color": style.BLUE, "marker": "^"}}  # fmt: skip
LOOKS |= {name + LEVELS: {**LOOKS[name], "ls": "--", "markerfacecolor": "white"} for name in OTHERS}


def processes(config: Config) -> dict[str, tuple[Process, float, float]]:
    """Name → (process, t_start, t_end): from each one's own largest level down to the ρ of VP's ``t_end``."""
    vp, others = problems.vp_linear(config), {"VE": da.VE(*config["ve"]), "EDM": da.EDM(*config["edm"])}
    level = float(vp.rho(config["t_end"]))
    found = {name: (q, q.sampling_range[0], float(q.time_from_rho(level))) for name, q in others.items()}
    return {"VP": (vp, config["t_start"], config["t_end"]), **found}


def make_grid(config: Config, name: str, kind: str, steps: int) -> Array:
    """A grid of a process by name; ``vp_t2`` has VP's times, uniform in √t, of the same levels ρ at both ends."""
    process, start, end = processes(config)[name]
    if kind != BORROWED:
        return da.grid(process, steps, kind, start, end)
    vp = problems.vp_linear(config)
    begin = float(vp.time_from_rho(float(process.rho(start))))
    ts = np.array(process.time_from_rho(vp.rho(da.grid(vp, steps, "t2", begin, config["t_end"]))))
    ts[0], ts[-1] = start, end
    return ts


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, process, solver, grid, calls) and "ratio" (model, process, solver, calls).

    A ratio is the RMS error over VP's with the same solver and calls, each on the best of its grids without the
    borrowed one (``own``) or with it (``any``), with its 95 % interval over samples, which start from the same noise.
    """
    rows, seed = [], config["seed"]
    for done, model in enumerate(config["models"]):
        found = []
        for k, (name, (process, start, end)) in enumerate(processes(config).items(), 1):
            problem = studies.problem_on(model, {**config, "t_start": start, "t_end": end}, process)
            grid = partial(make_grid, config, name)
            for row, squares in problem.tried(config["solvers"], config["grids"][name], config["calls"], grid=grid):
                rms = np.sqrt(judging.mean_square(squares))
                found.append({"part": "error", "model": model, "process": name, **row, "estimate": problem.estimate,
                              "rms": rms, "squares": squares})  # fmt: skip
            progress((done + k / len(config["grids"])) / len(config["models"]))
        errors = pd.DataFrame(found)
        vp: dict[tuple[str, int], Array] = {}
        rows += errors.drop(columns="squares").to_dict("records")
        for (name, solver, calls), cell in errors.groupby(["process", "solver", "calls"], sort=False):
            for choice, of in (("own", cell[cell.grid != BORROWED]), ("any", cell)):
                squares = of.squares[of.rms.idxmin()]
                base = vp.setdefault((solver, calls), squares)  # VP comes first
                if name != "VP":
                    rows.append({"part": "ratio", "model": model, "process": name, "solver": solver, "calls": calls,
                                 "choice": choice, **judging.ratio_row(squares, base, seed, 500)})  # fmt: skip
    return pd.DataFrame(rows)


def envelopes(frame: Frame) -> Frame:
    """Least error of all solvers by ``model, line, calls``: of a process on its own grids; `LEVELS`: borrowed too."""
    rows = at(frame, part="error")
    own, borrowed = rows[rows.grid != BORROWED], rows[rows.process != "VP"]
    lines = pd.concat([own.assign(line=own.process), borrowed.assign(line=borrowed.process + LEVELS)])
    return lines.groupby(["model", "line", "calls"], sort=False, as_index=False).rms.min()


def needed(frame: Frame, config: Config) -> Frame:
    """Calls that each line of `envelopes` takes for the least error that VP has with ``compared_at``: model × line."""
    least = envelopes(frame).pivot(index="calls", columns=["model", "line"], values="rms")
    found = {cell: calls_for(least.index, errors, least.loc[config["compared_at"], (cell[0], "VP")])
             for cell, errors in least.items()}  # fmt: skip
    return pd.Series(found).unstack(sort=False)


def verdict(frame: Frame, config: Config) -> str:
    """Calls in which the other processes reach VP's least error, and for how many solvers they err more."""
    calls = needed(frame, config).map(lambda n: f"{n:.3g}" if np.isfinite(n) else f"more than {frame.calls.max()}")
    last, ratios = calls.iloc[-1], at(frame, part="ratio", choice="own", calls=config["compared_at"])
    cases = [f"{name} in {(one > 1).sum()} of {len(one)}" for name, one in ratios.groupby("process", sort=False).ratio]
    borrowed = style.in_words([f"{name} {last[name + LEVELS]}" for name in OTHERS])
    others = "".join(f"; on the {model} VE takes {row.VE}" for model, row in calls.iloc[:-1].iterrows())
    return (
        f"On the {last.name} VE takes {last.VE} calls for the least error that VP has at {config['compared_at']}, EDM "
        f"{last.EDM}{LEVELS} {borrowed}{others}; solver by solver {style.in_words(cases)} cases has more error than VP."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A column per model: least error of all solvers per process and kind of grid; each solver's ratio to VP."""
    names, calls, solvers = list(frame.model.unique()), config["compared_at"], config["solvers"]
    note = (
        f"VE({config['ve'][0]:g}, {config['ve'][1]:g}), EDM up to {config['edm'][1]:g}, {style.setting(config)}; all "
        "stop at the same ρ and start from the same noise. Upper: least error of all solvers. Lower: error over VP's "
        f"at {calls} calls, same solver, on its best own grid, with 95 % interval over {config['samples']} samples, "
        "but for digits that flip (end at another one's place). Hollow and dashed: also on the noise levels of VP's "
        "t2 grid."
    )
    upper, between = 1.9, 0.95
    height, least = upper + between + 0.2 * len(solvers) + 0.5, envelopes(frame)
    fig = panels.sheet(verdict(frame, config).split(",")[0], note, height)
    axes = panels.lines(fig, least, {name: panels.short(name) for name in names}, max(len(names), 2), x="calls",
                        y="rms", line="line", look=LOOKS.__getitem__, ylabel="RMS error", wspace=0.06, left=1.0,
                        end=upper / height)  # fmt: skip
    for ax, name in zip(axes, names, strict=True):
        ax.axhline(at(least, model=name, line="VP", calls=calls).rms.item(), color="#999999", lw=0.8, zorder=0)
    ratios = at(frame, part="ratio", calls=calls).groupby(["model", "process"], sort=False)
    titles = [f"{panels.short(model)}, {other}" for (model, other), _ in ratios]
    below, _ = panels.small_multiples(fig, titles, len(titles), wspace=0.08, left=1.0, begin=(upper + between) / height)
    for ax, (_, rows) in zip(below, ratios, strict=True):
        own, every = (at(rows, choice=choice).set_index("solver").loc[solvers] for choice in ("own", "any"))
        panels.intervals(ax, own[["ratio", "low", "high"]].to_numpy(), [0.2, 1, 5], solvers)
        ax.plot(every.ratio, range(len(solvers)), "o", color="#333333", markerfacecolor="none", markersize=5)
        ax.set_xlabel("error over VP's", fontsize=8.5, labelpad=2)
    below[0].set_xlim(0.1, 12)  # one of few samples has a wider band
    return fig
