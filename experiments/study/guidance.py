"""At which guidance scale does which sampler win? Exact classes of a mixture and of the digits, scales 1 to 15."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import judging, panels, style
from experiments.core.frames import at
from experiments.models import guided, studies
from experiments.models.problems import Problem, noise, vp_linear

NAME = "guidance"
QUESTION = "Does the ranking of samplers flip with the guidance scale, and does data prediction win at large scales?"
IMAGE_NETWORKS = False  # it needs to know more of a model than its ε
CONFIG: Config = {
    **studies.BASE, "models": ["mixture", "digits"], "rtol": 1e-6, "std": 0.2,
    "classes": 6, "dimension": 4, "class_std": 0.2, "class_seed": 0,
    "scales": [1.0, 2.0, 4.0, 7.5, 15.0], "calls": [5, 10, 20], "ranked_at": 10, "grids": ["t1", "t2", "logrho"],
    "eps": ["tab1", "tab2", "tab3", "rhoab2", "dpm_2m", "unipc2_bh2_eps"],
    "x0": ["dpmpp_2m", "dpmpp_3m", "unipc2_bh2_x0"], "others": ["ddim", "rhork_2heun"],
    "pairs": [["dpm_2m", "dpmpp_2m"], ["unipc2_bh2_eps", "unipc2_bh2_x0"]],
    "choices": {
        "labels": "sample i asks for class i mod K; no clipping or thresholding",
        "std": "digits are smoothed, so that path errors vary continuously rather than jump between digits",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "std": 0.2, "rtol": 1e-5,
                 "scales": [1.0, 4.0, 15.0], "calls": [5, 10], "grids": ["t2", "logrho"]}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048,
                    "scales": [1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 15.0],
                    "calls": [5, 7, 10, 14, 20, 30]}  # fmt: skip
_NAMED = ("ddim", "tab3", "rhoab2", "dpm_2m", "unipc2_bh2_eps", "unipc2_bh2_x0")  # lines with a name


def setup(name: str, config: Config) -> Problem:
    """A guided model solved by DOPRI5, all scales in one batch."""
    import torch

    process, samples, scales = vp_linear(config), config["samples"], config["scales"]
    everything, each, dimension = guided.classes(name, config, process)
    x_T = torch.tensor(noise(samples, dimension, config["seed"]), device=config["device"]).repeat(len(scales), 1)
    span = (config["t_start"], config["t_end"])
    return Problem.solved(process, guided.guided_eps(everything, each, scales, samples), x_T, span, config["rtol"])


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, scale, calls, solver: RMS on its best grid, 95 % interval over samples), "best" (the
    best solver's error over the second's) and "pair" (``solver`` in x₀ over ``other`` in ε, and their classes)."""
    rows: list[dict[str, Any]] = []
    solvers, scales = [*config["others"], *config["eps"], *config["x0"]], config["scales"]
    for done, name in enumerate(config["models"]):
        problem = setup(name, config)
        for k, calls in enumerate(config["calls"], 1):
            tried = list(problem.tried(solvers, config["grids"], [calls]))
            for i, scale in enumerate(scales):
                best: dict[str, tuple[str, Array]] = {}
                for row, squares in tried:
                    own, solver = np.split(squares, len(scales))[i], row["solver"]
                    if solver not in best or own.mean() < best[solver][1].mean():
                        best[solver] = row["grid"], own
                common = {"model": name, "scale": scale, "calls": calls, "estimate": problem.estimate}
                rows += [{**common, **row} for row in _rows(best, config)]
            progress((done + k / len(config["calls"])) / len(config["models"]))
    return pd.DataFrame(rows)


def _rows(best: dict[str, tuple[str, Array]], config: Config) -> list[dict[str, Any]]:
    """Of one cell, from each solver's best grid and its squares there."""
    rows: list[dict[str, Any]] = [
        {"part": "error", "solver": solver, "grid": grid, **judging.error_row(squares, config["seed"], 300)}
        for solver, (grid, squares) in best.items()
    ]
    order = sorted(best, key=lambda solver: float(best[solver][1].mean()))
    eps, x0 = (min(config[kind], key=order.index) for kind in ("eps", "x0"))
    pairs = [("best", order[1], order[0]), *(("pair", *pair) for pair in config["pairs"]), ("class", eps, x0)]
    for part, other, solver in pairs:
        ratio = judging.ratio_row(best[solver][1], best[other][1], config["seed"], 500)
        rows.append({"part": part, "solver": solver, "other": other, **ratio})
    return rows


def data_prediction(frame: Frame) -> Frame:
    """At the largest scale, of the best x₀ sampler over the best ε one ("class") and of each x₀ sampler over the same
    method in ε: ``cells`` (model, calls), and how many of them are clearly ``better`` and ``worse``."""
    rows = at(frame, part=["class", "pair"], scale=frame.scale.max())
    marked = rows.assign(better=rows.high < 1, worse=rows.low > 1, cells=1)
    return marked.groupby(rows.solver.mask(rows.part == "class", "class"))[["better", "worse", "cells"]].sum()


def headline_of(frame: Frame) -> str:
    """Whether data prediction wins at the largest scale."""
    better, worse, cells = data_prediction(frame).loc["class"]
    side, count = ("worse", worse) if worse >= better else ("better", better)
    said = f"data prediction is clearly {side} than noise prediction in {count} of {cells} cases"
    return f"At guidance scale {frame.scale.max():g} {said}"


def verdict(frame: Frame, config: Config) -> str:
    """Whether data prediction wins at large scales, in its best sampler and method by method, and who is best."""
    calls, pairs = config["ranked_at"], data_prediction(frame).drop("class").better
    best = at(frame, part="best", calls=calls).sort_values("scale")
    named = best.assign(said=best.solver.where(best.high < 1, best.solver + " (unclear)")).groupby("model", sort=False)
    went = ", ".join(f"on the {model} from {s.iloc[0]} to {s.iloc[-1]}" for model, s in named.said)
    same = ", ".join(f"{name} in {count}" for name, count in pairs.items())
    return (
        f"{headline_of(frame)} (model and calls, best against best; in the same method better for {same}); "
        f"from scale {best.scale.min():g} the best sampler of {calls} calls goes {went}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: models; columns: error against scale at each number of calls; below, best x₀ over best ε."""
    names, counts = list(frame.model.unique()), sorted(int(count) for count in frame.calls.unique())
    note = (
        f"ε_u + w (ε_c − ε_u), exact ε of all data and of one class per sample: {config['classes']} Gaussians, the ten "
        f"digits smoothed by {config['std']:g}. {style.setting(config)}. RMS error against DOPRI5, each sampler on its "
        f"best grid of {', '.join(config['grids'])}; bands 95 % over {config['samples']} samples. Circle: the best; "
        "grey: other samplers. Lowest: the best of x₀ over the best of ε."
    )
    upper, between = 1.5 * len(names) + 0.4, 1.0
    height = upper + between + 1.8
    fig = panels.sheet(headline_of(frame), note, height)
    errors = at(frame, part="error").assign(cell=frame.model.map(panels.short) + frame.calls.map(", {} calls".format))
    cells = {cell: cell for cell in errors.cell.unique()}  # model by model, by rising calls
    shared: dict[str, Any] = {"x": "scale", "band": ("low", "high"), "xlabel": "guidance scale w", "wspace": 0.06}
    axes = panels.lines(fig, errors, cells, len(counts), y="rms", panel="cell", names=_NAMED,
                        ylabel="RMS error", hspace=0.25, end=upper / height, **shared)  # fmt: skip
    for ax, cell in zip(axes, cells, strict=True):
        least = at(errors, cell=cell).groupby("scale").rms.min()
        ax.plot(least, "o", color=style.VERMILLION, markersize=8, markerfacecolor="none", zorder=5)
    faces = dict(zip(counts, style.plt.get_cmap("viridis_r")(np.linspace(0.15, 0.9, len(counts))), strict=True))
    lower = panels.lines(
        fig, at(frame, part="class"), {name: f"{panels.short(name)}, x₀ over ε" for name in names}, max(len(names), 2),
        y="ratio", line="calls", names=counts, look=lambda count: {"color": faces[count], "marker": "o"},
        label="{} calls".format, ylabel="error ratio", legend=False, begin=(upper + between) / height, **shared,
    )  # fmt: skip
    style.plain_log_ticks(lower[0].yaxis, [0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    for ax in lower:
        ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    lower[-1].legend(fontsize=7.5, loc="best")
    return fig
