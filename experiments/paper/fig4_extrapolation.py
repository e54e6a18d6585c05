"""Does ε change slowly enough to be extrapolated? Along the exact solution, and in the samples that come of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import frames, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import ratio
from experiments.models import studies
from experiments.models.problems import by_time, extrapolated, step_points
from experiments.models.studies import Study

NAME = "fig4_extrapolation"
QUESTION = "Does ε change little along the exact solution, and does a higher degree extrapolate it and sample better?"
CONFIG: Config = {
    **studies.BASE,
    "models": [*studies.MODELS, *studies.IMAGES], "kept": studies.IMAGES,
    "grids": ["t2", "t1"], "change_steps": 40, "change_above": 0.15,
    "path_steps": [10, 20], "path_points": 3, "path_samples": 32, "path_batches": 16,
    "degrees": [0, 1, 2, 3], "steps": [5, 7, 10, 14, 20, 50], "few": 20, "compared_at": 10,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 4, on CIFAR10; here on other models",
        "change": "||ε(x_t, t) - ε(x_s, s)|| / ||ε(x_t, t)|| over all samples and dimensions, s the next time of a "
        "uniform grid of change_steps steps; the paper's ratio and step are not known",
        "samples": "mean |x - x*| over samples and dimensions, x* of the same x_T; the paper's measure is not known",
        "intervals": "95 %, bootstrap over the samples, for Δε over path_batches groups of them",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": [*studies.MODELS], "kept": [], "grids": ["t2"], "steps": [5, 10, 20],
                 "change_steps": 12, "path_points": 2, "path_samples": 16, "path_batches": 4}  # fmt: skip
THOROUGH: Config = {"models": [*studies.MODELS], "kept": [], "samples": 1024, "change_steps": 200, "path_points": 12,
                    "path_samples": 256, "steps": [*CONFIG["steps"], 6, 8, 12, 17, 25, 30, 40, 70, 100]}  # fmt: skip
COLUMNS = 3
SHADES = ("#000000", "#9ecae1", "#4292c6", "#0b4a86")  # degree 0 is DDIM; tAB's blue darkens with the degree


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "change" (t), "path" (steps, degree, step, t: Δε), "average" of it, "samples" (grid, steps)."""

    def rows_of(name: str, progress: Progress) -> Rows:
        rows = _along_the_path(studies.study(name, {**config, "samples": config["path_samples"]}), config)
        progress(0.5)
        return rows + _samples(studies.study(name, config), config)

    return by_model(NAME, config, rows_of, progress)


def _along_the_path(study: Study, config: Config) -> Rows:
    """Relative change of ε and Δε of each degree, all on one exact path, and averages beside those of other degrees."""
    ends, points, count = (config["t_start"], config["t_end"]), config["path_points"], config["path_batches"]
    fine = [float(t) for t in da.grid(study.process, config["change_steps"], "t1", *ends)]
    coarse = {n: da.grid(study.process, n, config["grids"][0], *ends) for n in config["path_steps"]}
    eps, estimate = study.eps_on_path([*fine, *(t for ts in coarse.values() for t in step_points(ts, points))])
    rows: Rows = [{"part": "reference", "estimate": estimate}]
    for t, s in itertools.pairwise(fine):
        change = float(np.linalg.norm(eps[t] - eps[s]) / np.linalg.norm(eps[t]))
        rows.append({"part": "change", "t": t, "to": s, "change": change})
    batches = [{t: e[k::count] for t, e in eps.items()} for k in range(count)]
    for n, ts in coarse.items():
        squares = {}
        for degree in config["degrees"]:
            found = [extrapolated(batch, study.process, ts, points, degree=degree) for batch in batches]
            of_each = np.array([errors**2 for _, errors in found])  # (batches, N, points)
            squares[degree] = of_each.mean(axis=(1, 2))
            rows += by_time(found[0][0], np.sqrt(of_each.mean(axis=0)), steps=n, degree=degree)
        for row in against_others(squares, config["seed"]):
            row.pop("ratio", None)
            rows.append({"part": "average", "steps": n, "delta": float(np.sqrt(squares[row["degree"]].mean())), **row})
    return rows


def _samples(study: Study, config: Config) -> Rows:
    """Errors of tAB of each degree against the exact answer."""
    exact, estimate = study.reference(config["t_end"])
    rows: Rows = [{"part": "reference", "estimate": estimate}]
    for kind, steps in itertools.product(config["grids"], config["steps"]):
        ts = da.grid(study.process, steps, kind, config["t_start"], config["t_end"])
        gaps = {r: np.asarray((study.solve(f"tab{r}", ts) - exact).cpu()) for r in config["degrees"]}
        sizes = {degree: np.abs(gap).mean(axis=1) for degree, gap in gaps.items()}
        for row in against_others(sizes, config["seed"], power=2, draws=1000):
            gap, mean = gaps[row["degree"]], float(sizes[row["degree"]].mean())
            errors = {"mean": mean, "rms": float(np.sqrt((gap**2).mean()))}
            rows.append({"part": "samples", "grid": kind, "steps": steps, **errors, **row})
    return rows


def against_others(sizes: dict[int, Array], seed: int, power: int = 1, draws: int = 2000) -> Rows:
    """Per degree its error over that of the degree before, and gain, the lowest degree's over its own, with intervals.

    They are ``power``-th powers of the roots of ratios of means; of each degree ``sizes`` has what the means are of.
    """
    rows: Rows = [{"degree": degree} for degree in sizes]
    names, lowest = ("ratio", "low", "high", "gain", "gain_low", "gain_high"), next(iter(sizes.values()))
    for row, (before, own) in zip(rows[1:], itertools.pairwise(sizes.values()), strict=True):
        found = *ratio(own, before, seed, draws), *ratio(lowest, own, seed, draws)
        row |= {name: value**power for name, value in zip(names, found, strict=True)}
    return rows


# -- what was found -------------------------------------------------------------------------------
def better(frame: Frame, config: Config, column: str = "ratio") -> Frame:
    """(grid, model) → at how many ``of`` the few N every degree ``helps``: beats the one before, surely by "high"."""
    rows = frames.at(frame, part="samples").dropna(subset=[column])
    few = rows[rows.steps <= config["few"]]
    every = few[column].lt(1).groupby([few.grid, few.model, few.steps], sort=False).all()
    return every.groupby(level=["grid", "model"], sort=False).agg(helps="sum", of="size")


def falls(frame: Frame) -> list[str]:
    """The models on whose exact path every degree extrapolates better than the one before, beyond the intervals."""
    average = frames.at(frame, part="average").dropna(subset=["high"])
    sure = average.high.lt(1).groupby(average.model, sort=False).all()
    return list(sure.index[sure])


def gains(frame: Frame, config: Config, part: str, steps: int, **where: Any) -> Frame:
    """Model → gain of the highest degree over the lowest, with its interval, in the samples or on the path."""
    rows = frames.at(frame, part=part, steps=steps, degree=max(config["degrees"]), **where)
    return rows.set_index("model")[["gain", "gain_low", "gain_high"]]


def changes(frame: Frame, config: Config) -> Frame:
    """Model → largest relative change of ε "above" a time, and "below"."""
    rows = frames.at(frame, part="change")
    side = np.where(rows.to >= config["change_above"], "above", "below")
    return rows.groupby(["model", side], sort=False).change.max().unstack()


def verdict(frame: Frame, config: Config) -> str:
    """What the highest degree gains, where every degree helps in the samples and on the exact path; change of ε."""
    (kind, *_), steps, degrees = config["grids"], config["compared_at"], config["degrees"]
    times = frames.span(gains(frame, config, "samples", steps, grid=kind).gain)
    always = better(frame, config).query("helps == of").index
    helped = (
        f"{', '.join(name for at, name in always if at == grid) or 'no model'} ({grid})" for grid in config["grids"]
    )
    return (
        f"Degree {min(degrees)} has {times} times degree {max(degrees)}'s error at {steps} steps on the {kind} grid; "
        f"every degree helps at all N ≤ {config['few']} on {', '.join(helped)}, clearly along the exact path on "
        f"{', '.join(falls(frame)) or 'no model'}; ε changes there at most "
        f"{style.as_text(100 * changes(frame, config).above.max())} % per 1/{config['change_steps']} of t above "
        f"{config['change_above']:g}."
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: error of the samples against N, by degree; then the gain and the change on the exact path."""
    kind, highest, at = config["grids"][0], max(config["degrees"]), config["path_steps"][0]
    note = (
        f"{style.setting(config)}, {studies.how_many(config)}. Numbers: at how many N ≤ {config['few']} each degree "
        f"beats the one before; degree 0 is DDIM. On exact paths: error of ε extrapolated with degree 0 over degree "
        f"{highest} (95 %), and largest change of ε in 1/{config['change_steps']} of the time above t = "
        f"{config['change_above']:g} (dot) and below (end of the bar)."
    )
    titles = {name: panels.short(name) for name in config["models"]}
    inches = 0.75 + 1.75 * -(-(len(titles) + 2) // COLUMNS)
    fig = panels.sheet(verdict(frame, config).split(";")[0], note, inches)
    looks: dict[str, Any] = {f"degree {r}": {"color": SHADES[r], "marker": "o"} for r in config["degrees"]}
    looks |= {f"degree {highest}, {grid} grid": {"color": style.ORANGE, "linestyle": "--", "linewidth": 1.0}
              for grid in config["grids"][1:]}  # fmt: skip
    rows = frames.at(frame, part="samples")
    others = rows.grid.map(lambda grid: "" if grid == kind else f", {grid} grid")
    rows = rows.assign(curve="degree " + rows.degree.map("{:g}".format) + others)
    axes = panels.lines(
        fig, frames.at(rows, curve=list(looks)), titles, COLUMNS, x="steps", y="mean", line="curve", names=list(looks),
        look=looks.__getitem__, ticks=[n for n in (5, 10, 20, 50, 100) if n <= max(config["steps"])],
        ylabel="mean |x − x*|", more=2, indent=0.7,
    )  # fmt: skip
    found, names = better(frame, config), list(titles.values())
    for ax, name in zip(axes, titles, strict=True):
        text = " · ".join("{} {helps} of {of}".format(grid, **found.loc[grid, name]) for grid in config["grids"])
        panels.words(ax, 0.03, 0.03, text, ha="left", va="bottom")
    on_path = gains(frame, config, "average", at).loc[list(titles)].to_numpy()
    largest = changes(frame, config).loc[list(titles)]
    dots = np.column_stack([largest.above, largest.min(axis=1), largest.max(axis=1)])
    gain, change = fig.axes[len(axes) :]
    panels.intervals(gain, on_path, [0.5, 0.7, 1, 1.4, 2, 4], names, panels.WORSE, panels.BETTER,
                     title=f"path gain, N = {at}")  # fmt: skip
    panels.intervals(change, dots, [0.03, 0.1, 0.3, 1], names, panels.SAME, panels.SAME, title="path: change of ε")
    return fig
