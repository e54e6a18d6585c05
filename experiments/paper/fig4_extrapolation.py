"""Does ε change slowly enough to be extrapolated? Along the exact solution, and in the samples that come of it."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at, span
from experiments.core.judging import ratio, ratio_row, with_band
from experiments.models import studies
from experiments.models.problems import by_time, extrapolated, step_points

NAME = "fig4_extrapolation"
QUESTION = "Does ε change little along the exact solution, and does a higher degree extrapolate it and sample better?"
CONFIG: Config = {
    **studies.BASE,
    "models": [*studies.MODELS, *studies.IMAGES], "kept": studies.IMAGES, "grids": ["t2", "t1"],
    "degrees": [0, 1, 2, 3], "steps": [5, 7, 10, 14, 20, 50], "few": 20, "compared_at": 10, "change_steps": 40,
    "change_above": 0.15, "path_steps": [10, 20], "path_points": 3, "path_samples": 32, "path_batches": 16,
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
LOOKS = {f"degree {degree}": {"color": shade, "marker": "o"} for degree, shade in enumerate(SHADES)}
OTHER_GRID = {"color": style.ORANGE, "linestyle": "--", "linewidth": 1.0}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "change" (t), "path" (steps, degree, step, t: Δε), "average" of it, "samples" (grid, steps)."""

    def rows_of(name: str, progress: Progress) -> Rows:
        rows, study = _along_the_path(name, config), studies.study(name, config)
        progress(0.5)
        exact, estimate = study.reference(config["t_end"])
        rows.append({"part": "reference", "estimate": estimate})
        for kind, steps in itertools.product(config["grids"], config["steps"]):
            ts = da.grid(study.process, steps, kind, config["t_start"], config["t_end"])
            gaps = {r: np.asarray((study.solve(f"tab{r}", ts) - exact).cpu()) for r in config["degrees"]}
            sizes = {r: np.abs(gap).mean(axis=1) for r, gap in gaps.items()}
            errors = {r: {"mean": size.mean(), "rms": np.sqrt((gaps[r] ** 2).mean())} for r, size in sizes.items()}
            for row in against_others(sizes, config["seed"], power=2, draws=1000):
                rows.append({"part": "samples", "grid": kind, "steps": steps, **errors[row["degree"]], **row})
        return rows

    return by_model(NAME, config, rows_of, progress)


def _along_the_path(name: str, config: Config) -> Rows:
    """Relative change of ε and Δε of each degree, all on one exact path, and averages beside those of other degrees."""
    study = studies.study(name, {**config, "samples": config["path_samples"]})
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


def against_others(sizes: dict[int, Array], seed: int, power: int = 1, draws: int = 2000) -> Rows:
    """Per degree its error over that of the degree before; ``gain``: the lowest's over its own; `ratio` to a power."""
    lowest, *_ = sizes
    rows: Rows = [{"degree": lowest}]
    for before, degree in itertools.pairwise(sizes):
        found = ratio_row(sizes[degree], sizes[before], seed, draws)
        found |= with_band("gain", ratio(sizes[lowest], sizes[degree], seed, draws))
        rows.append({"degree": degree, **{name: value**power for name, value in found.items()}})
    return rows


def better(frame: Frame, config: Config, column: str = "ratio", part: str = "samples") -> Frame:
    """(grid, model) → at how many ``of`` the few N every degree ``helps``: beats the one before, surely by "high"."""
    rows = at(frame, part=part).fillna({"grid": config["grids"][0]}).dropna(subset=[column])
    few = rows[rows.steps <= config["few"]]
    every = few[column].lt(1).groupby([few.grid, few.model, few.steps], sort=False).all()
    return every.groupby(level=["grid", "model"], sort=False).agg(helps="sum", of="size")


def changes(frame: Frame, config: Config) -> Frame:
    """Model → largest relative change of ε "above" a time, and "below"."""
    rows = at(frame, part="change")
    side = np.where(rows.to >= config["change_above"], "above", "below")
    return rows.groupby(["model", side], sort=False).change.max().unstack(sort=False)


def verdict(frame: Frame, config: Config) -> str:
    """What the highest degree gains, where every degree helps in the samples and on the exact path; change of ε."""
    grids, steps, degrees = config["grids"], config["compared_at"], config["degrees"]
    gains = at(frame, part="samples", grid=grids[0], steps=steps, degree=max(degrees)).gain
    always = better(frame, config).query("helps == of").index
    on_path = better(frame, config, "high", "average").query("helps == of").index
    helped = [f"{', '.join(name for on, name in always if on == grid) or 'no model'} ({grid})" for grid in grids]
    return (
        f"Degree {min(degrees)} has {span(gains)} times degree {max(degrees)}'s error at {steps} steps on the "
        f"{grids[0]} grid; every degree helps at all N ≤ {config['few']} on {', '.join(helped)}, clearly along the "
        f"exact path on {', '.join(name for _, name in on_path) or 'no model'}; ε changes there at most "
        f"{style.as_text(100 * changes(frame, config).above.max())} % per 1/{config['change_steps']} of t above "
        f"{config['change_above']:g}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: error of the samples against N, by degree; then the gain and the change on the exact path."""
    grids, highest, steps = config["grids"], max(config["degrees"]), config["path_steps"][0]
    note = (
        f"{style.setting(config)}, {studies.how_many(config)}. Numbers: at how many N ≤ {config['few']} each degree "
        f"beats the one before; degree 0 is DDIM. On exact paths: error of ε extrapolated with degree 0 over degree "
        f"{highest} (95 %), largest change of ε per 1/{config['change_steps']} of t above {config['change_above']:g} "
        "(dot) and below (end of the bar)."
    )
    titles = {name: panels.short(name) for name in config["models"]}
    fig = panels.sheet(verdict(frame, config).split(";")[0], note, 0.75 + 1.75 * -(-(len(titles) + 2) // COLUMNS))
    rows = at(frame, part="samples").query("grid == @grids[0] or degree == @highest")
    lines = [f"degree {row.degree:g}" + f", {row.grid} grid" * (row.grid != grids[0]) for row in rows.itertuples()]
    axes = panels.lines(
        fig, rows.assign(line=lines), titles, COLUMNS, x="steps", y="mean", line="line", ylabel="mean |x − x*|", more=2,
        look=lambda line: LOOKS.get(line, OTHER_GRID), ticks=[5, 10, 20, 50, 100], indent=0.7,
    )  # fmt: skip
    found, names = better(frame, config), list(titles.values())
    for ax, name in zip(axes, titles, strict=True):
        text = " · ".join("{} {helps} of {of}".format(grid, **found.loc[grid, name]) for grid in grids)
        panels.words(ax, 0.03, 0.03, text, ha="left", va="bottom")
    gain, change = fig.axes[len(axes) :]
    path = at(frame, part="average", steps=steps, degree=highest)[["gain", "gain_low", "gain_high"]]
    panels.intervals(gain, path.to_numpy(), [0.5, 0.7, 1, 1.4, 2, 4], names, panels.WORSE, panels.BETTER,
                     title=f"path gain, N = {steps}")  # fmt: skip
    dots = [(one.above, min(one), max(one)) for one in changes(frame, config).itertuples(index=False)]
    panels.intervals(change, dots, [0.03, 0.1, 0.3, 1], names, panels.SAME, panels.SAME, title="path: change of ε")
    return fig
