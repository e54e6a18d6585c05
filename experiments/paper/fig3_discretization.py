"""Does an exponential integrator help by itself? The paper's two surprises: frozen score worse than Euler, ε better."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import frames, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import ratio_row
from experiments.models import studies
from experiments.models.problems import by_time, extrapolated, step_points

NAME = "fig3_discretization"
QUESTION = "Is an exponential integrator worse than Euler with a frozen score, and better with a frozen ε?"
CONFIG: Config = {
    **studies.BASE,
    "models": [*studies.MODELS, *studies.IMAGES], "kept": studies.IMAGES,
    "grid": "t1", "steps": [5, 7, 10, 14, 20, 30, 50, 100, 200],
    "path_steps": 10, "path_points": 8, "path_samples": 32,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 3, on CIFAR10; here on other models",
        "Δp": "mean of |x - x*| over samples and dimensions, in data units; the paper's scale is not known",
        "Δs": "root mean square over samples and dimensions; the paper's N for it is not known, here path_steps",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": [*studies.MODELS], "kept": [],
                 "steps": [5, 10, 20], "path_points": 2, "path_samples": 16}  # fmt: skip
THOROUGH: Config = {"models": [*studies.MODELS], "kept": [], "samples": 1024, "path_points": 24, "path_samples": 256,
                    "steps": sorted([*CONFIG["steps"], 70, 140, 300, 500, 1000])}  # fmt: skip
SOLVERS = {"euler": "Euler", "ei_score": "frozen score", "ddim": "frozen ε (DDIM)"}
LOOKS = {"ei_score": {"color": style.VERMILLION, "marker": "o"}, "ddim": {"color": style.BLACK, "marker": "o"}}
FROZEN = {"score": "ei_score", "eps": "ddim"}
MEASURES = {"mean": (np.abs, 2), "rms": (np.square, 1)}  # of a gap, and the power of √(mean / mean) that it is
COLUMNS = 4


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, solver, steps: Δ_p, RMS, both over Euler's), "path" (Δ_s) and "reference"."""

    def rows_of(name: str, progress: Progress) -> Rows:
        study = studies.study(name, config)
        exact, estimate = study.reference(config["t_end"])
        rows: Rows = [{"part": "reference", "rms": estimate}]
        for steps in config["steps"]:
            ts = da.grid(study.process, steps, config["grid"], config["t_start"], config["t_end"])
            gaps = {solver: np.asarray((study.solve(solver, ts) - exact).cpu()) for solver in SOLVERS}
            rows += [{"part": "error", "steps": steps, **row} for row in compare(gaps, config["seed"])]
        progress(0.6)
        return rows + _along_the_path(name, config)

    return by_model(NAME, config, rows_of, progress)


def compare(gaps: dict[str, Array], seed: int) -> Rows:
    """Per solver mean |gap|, root mean square gap, and both over Euler's with 95 % intervals; gaps (n, d), paired."""
    rows: Rows = [{"solver": solver} for solver in gaps]
    for measure, (size, power) in MEASURES.items():
        sizes = {solver: size(gap).mean(axis=1) for solver, gap in gaps.items()}
        for row, mine in zip(rows, sizes.values(), strict=True):
            row[measure] = float(mine.mean() ** (power / 2))
            if row["solver"] != "euler":
                found = ratio_row(mine, sizes["euler"], seed)
                row |= {f"{measure}_{part}": value**power for part, value in found.items()}
    return rows


def _along_the_path(name: str, config: Config) -> Rows:
    """Δs of a frozen score and of a frozen ε along the exact solution, both in units of the score."""
    study = studies.study(name, {**config, "samples": config["path_samples"]})
    ts = da.grid(study.process, config["path_steps"], config["grid"], config["t_start"], config["t_end"])
    eps, _ = study.eps_on_path(step_points(ts, points := config["path_points"]))
    rows: Rows = []
    for frozen in FROZEN:
        known = {t: e * float(study.process.convert("eps", frozen, t)[1]) for t, e in eps.items()}
        rows += by_time(*extrapolated(known, study.process, ts, points, prediction=frozen, unit="score"), frozen=frozen)
    return rows


def counts(frame: Frame) -> Frame:
    """(model, solver) → at how many N a frozen score is worse, or ε better than Euler; "sure": beyond the band."""
    rows = frames.at(frame, part="error", solver=list(FROZEN.values())).copy()
    worse = rows.solver == "ei_score"
    for measure in MEASURES:
        ratio, low, high = (rows[f"{measure}_{part}"] for part in ("ratio", "low", "high"))
        rows[measure] = np.where(worse, ratio > 1, ratio < 1)
        rows[f"{measure}_sure"] = np.where(worse, low > 1, high < 1)
    return rows.groupby(["model", "solver"], sort=False)[["mean", "mean_sure", "rms", "rms_sure"]].sum()


def holds(frame: Frame, solver: str, column: str = "mean") -> list[str]:
    """The models on which the paper's claim on a solver holds at every N, by a column of `counts`."""
    found = counts(frame)[column].xs(solver, level="solver")
    return list(found.index[found == frames.at(frame, solver=solver).steps.nunique()])


def farther(frame: Frame) -> Frame:
    """Model → the largest Δs of a frozen score over that of a frozen ε."""
    largest = frames.at(frame, part="path").groupby(["model", "frozen"], sort=False).delta.max().unstack()
    return largest.score / largest.eps


def verdict(frame: Frame, config: Config) -> str:
    """Where a frozen score always loses, the headline; where a frozen ε always wins, and the errors over Euler's."""
    lost, lost_by_rms = (len(holds(frame, "ei_score", measure)) for measure in MEASURES)
    found = (holds(frame, "ddim", column) for column in ("mean", "mean_sure", "rms"))
    better, sure, rms = (style.in_words(models) or "no model" for models in found)
    score, eps = (frames.span(frames.at(frame, solver=solver).mean_ratio) for solver in FROZEN.values())
    return (
        f"A frozen score loses to Euler at every N on {lost} of {frame.model.nunique()} models; a frozen ε beats it at "
        f"every N on {better} (beyond the 95 % intervals on {sure}, by RMS on {rms}); by RMS the score loses on "
        f"{lost_by_rms}; mean errors are {score} and {eps} times Euler's at {min(config['steps'])} to "
        f"{max(config['steps'])} steps."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: errors over Euler's against steps; last, how much further off a frozen score gets."""
    note = (
        "Mean pixel difference to the exact answer from the same noise over Euler's, with 95 % interval (dashed: RMS). "
        f"Uniform t, {style.setting(config)}; {studies.how_many(config)}. Last panel: largest distance of the frozen "
        f"from the true score on exact paths within a step of N = {config['path_steps']}, frozen score over frozen ε."
    )
    titles = {name: panels.short(name) for name in config["models"]}
    inches = 0.75 + 1.75 * -(-(len(titles) + 1) // COLUMNS)
    fig = panels.sheet(verdict(frame, config).split(";")[0], note, inches)
    rows, found = frames.at(frame, part="error", solver=list(LOOKS)), counts(frame)
    axes = panels.lines(
        fig, rows, titles, COLUMNS, x="steps", y="mean_ratio", band=("mean_low", "mean_high"), names=list(LOOKS),
        look=LOOKS.__getitem__, label=SOLVERS.__getitem__, ylabel="error / Euler's", more=1, indent=0.62,
        ticks=[n for n in (5, 10, 20, 50, 200) if n <= max(config["steps"])],
    )  # fmt: skip
    for ax, name in zip(axes, titles, strict=True):
        ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
        for solver, part in frames.at(rows, model=name).groupby("solver"):
            ax.plot(part.steps, part.rms_ratio, color=LOOKS[solver]["color"], lw=0.9, ls="--")
        better = "ε better at {mean} (RMS {rms})".format(**found.loc[(name, "ddim")])
        panels.words(ax, 0.97, 0.03, f"{better} of {len(config['steps'])} N", ha="right", va="bottom")
    axes[0].set_ylim(0.09, 6.0)
    style.plain_log_ticks(axes[0].yaxis, [0.25, 0.5, 1, 2, 4])
    why, ratios = fig.axes[len(axes)], farther(frame)[list(titles)]
    panels.intervals(why, [(r, r, r) for r in ratios], [0.1, 1, 10], list(titles.values()), panels.SAME, style.BLACK,
                     title="Δs, score / ε")  # fmt: skip
    return fig
