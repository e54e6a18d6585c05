"""Which claims of the DEIS paper hold on models whose exact answer is known? Each claim counted cell by cell."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio

NAME = "paper_claims"
QUESTION = "Which of the paper's claims about its ingredients hold on which model?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", *studies.IMAGES], "kept": studies.IMAGES,
    "steps": [5, 10, 20], "budgets": [5, 8], "grids": ["t1", "t2", "t3", "rho7", "logrho"], "draws": 1000,
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits"], "kept": [], "draws": 200}
THOROUGH: Config = {"models": [*studies.MODELS], "kept": [], "samples": 2000, "steps": [5, 7, 10, 14, 20]}
CLAIMS = {  # what the paper says; briefly; its place; where it is drawn
    "score": ("an exponential integrator with a frozen score is worse than Euler", "frozen score loses to Euler",
              "fig. 3a", "fig3_discretization"),
    "eps": ("with a frozen ε it is better than Euler", "frozen ε beats Euler", "fig. 3c", "fig3_discretization"),
    "degree": ("each higher degree of the polynomial is better at N ≤ 20", "higher degree wins",
               "fig. 4c", "fig4_extrapolation"),
    "grid": ("the quadratic time grid is the best one for tAB", "t2 best for tAB", "app. H.3", "appendix_time_grids"),
    "tab": ("tAB is better than ρAB of the same degree at N ≤ 20", "tAB beats ρAB", "table 2", "table2_variants"),
    "rk": ("ρRK of order 2 to 4 is worse than DDIM below 10 calls", "ρRK loses to DDIM", "table 2", "table2_variants"),
}  # fmt: skip
RUNGE_KUTTA = ("rhork_2heun", "rhork_3kutta", "rhork_4rk")
ADAMS = ("ddim", *(f"{family}{degree}" for family in ("tab", "rhoab") for degree in (1, 2, 3)))
# prefix of the columns, what errors are the means of, and roots of these
METRICS: dict[str, tuple[str, Any, Any]] = {"mean": ("", np.abs, np.asarray), "rms": ("rms_", np.square, np.sqrt)}
Errors = dict[tuple[str, str, int], Array]  # of a run (solver, grid, calls), per sample


def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, claim and cell: ratio of the errors, > 1 where the claim holds, with its 95 % band over samples.

    By mean pixel differences and, ``rms_…``, by root mean squares, by which then the best grids are chosen, too.
    """

    def rows_of(name: str, progress: Progress) -> Rows:
        gaps, rows = _gaps(name, config, progress), defaultdict[tuple[str, str], dict[str, Any]](dict)
        for prefix, size, root in METRICS.values():
            errors = {run: size(gap).mean(axis=1) for run, gap in gaps.items()}
            for cell, (worse, better) in _cells(errors, config).items():
                low, high = bootstrap_ratio(worse, better, config["seed"], config["draws"], root)
                ratio = float(root(worse.mean() / better.mean()))
                rows[cell] |= {f"{prefix}ratio": ratio, f"{prefix}low": low, f"{prefix}high": high}
        return [{"claim": claim, "cell": cell, **row} for (claim, cell), row in rows.items()]

    return by_model(NAME, config, rows_of, progress)


def _gaps(name: str, config: Config, progress: Progress) -> Errors:
    """(n, d) difference to the exact answer of all runs that a claim is about."""
    study = studies.study(name, config)
    truth, _ = study.reference(config["t_end"])
    groups = [(("euler", "ei_score"), ["t1"], config["steps"]), (ADAMS, config["grids"], config["steps"]),
              (("ddim", *RUNGE_KUTTA), config["grids"], config["budgets"])]  # fmt: skip
    planned = dict.fromkeys(cell for group in groups for cell in cells.plan(study, *group, steps=cells.reaching))
    runs = cells.runs(study, list(planned), progress)
    return {(cell.solver, cell.grid, cell.calls): (x - truth).cpu().numpy() for cell, x in runs}


def _cells(errors: Errors, config: Config) -> dict[tuple[str, str], tuple[Array, Array]]:
    """(claim, cell) → what should have the larger error, what the smaller one."""

    def best(solver: str, n: int, but: str = "") -> Array:
        return min((errors[solver, grid, n] for grid in config["grids"] if grid != but), key=np.mean)

    pairs = {}
    for n in config["steps"]:
        score, euler, eps = (errors[solver, "t1", n] for solver in ("ei_score", "euler", "ddim"))
        on_t2 = [errors[solver, "t2", n] for solver in ADAMS[:4]]
        pairs["score", f"N = {n}"] = score, euler
        pairs["eps", f"N = {n}"] = euler, eps
        for r in (1, 2, 3):
            pairs["degree", f"tab{r}, N = {n}"] = on_t2[r - 1], on_t2[r]
            pairs["grid", f"tab{r}, N = {n}"] = best(f"tab{r}", n, but="t2"), on_t2[r]
            pairs["tab", f"degree {r}, N = {n}"] = best(f"rhoab{r}", n), best(f"tab{r}", n)
    for n, solver in itertools.product(config["budgets"], RUNGE_KUTTA):
        pairs["rk", f"{solver}, {n} calls"] = best(solver, n), best("ddim", n)
    return pairs


def findings(frame: Frame, metric: str) -> Frame:
    """(claim, model) → number of cells, in how many of them it holds by one of `METRICS`, the mean ratio of errors."""
    found = frame[f"{METRICS[metric][0]}ratio"].groupby([frame.claim, frame.model], sort=False)
    return found.agg(cells="size", holds=lambda r: (r > 1).sum(), ratio=lambda r: np.exp(np.log(r).mean()))


def _said(frame: Frame, between: str) -> Frame:
    """(claim, model) → ``7/9 1.6×`` by mean, what is ``between``, and the same by RMS."""
    found = (findings(frame, metric) for metric in METRICS)
    mean, rms = (f.apply(lambda row: f"{row.holds:g}/{row.cells:g} {style.as_text(row.ratio)}×", axis=1) for f in found)
    return mean + between + rms


def table(frame: Frame, config: Config) -> list[str]:
    """The README's table of claims, line by line."""
    said, names = _said(frame, ", "), config["models"]
    lines = [f"| claim of the paper | {' | '.join(names)} | figure |", f"|---|{'---|' * (len(names) + 1)}"]
    for claim, (text, _, place, figure) in CLAIMS.items():
        counts = " | ".join(said[claim, name] for name in names)
        lines.append(f"| {text} ({place}) | {counts} | [{figure}](figures/{figure}.png) |")
    return lines


def verdict(frame: Frame, config: Config) -> str:
    """How many claims hold everywhere by both, and how often the others do by each."""
    mean, rms = (findings(frame, metric).groupby(level="claim").sum() for metric in METRICS)
    everywhere = (mean.holds == mean.cells) & (rms.holds == rms.cells)
    held = [claim for claim in CLAIMS if everywhere[claim]]
    kept = f": {style.in_words([CLAIMS[claim][1] for claim in held])}" if held else ""
    others = ", ".join(
        f"{brief} in {mean.holds[claim]} (by RMS {rms.holds[claim]}) of {mean.cells[claim]} cells"
        for claim, (_, brief, *_) in CLAIMS.items() if claim not in held
    )  # fmt: skip
    said = f"{len(held)} of the paper's {len(CLAIMS)} claims hold in every cell on every model{kept}"
    return f"{said}{'; ' if others else ''}{others}."


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: claims. Columns: models. In each cell, by mean above and by RMS below, in how many cells it holds."""
    note = (
        "In how many cells (step count, degree, method) a claim holds, and by what factor errors differ on average, by "
        "mean pixel difference and, below, by RMS. The bluer the more cells of both. "
        f"{style.setting(config)}, {studies.how_many(config)}; ρAB, ρRK and DDIM on their best grid."
    )
    names, (mean, rms) = config["models"], [findings(frame, metric) for metric in METRICS]
    failing = (1 - (mean.holds + rms.holds) / (2 * mean.cells)).unstack().loc[list(CLAIMS), names]
    said = _said(frame, "\n").unstack().loc[list(CLAIMS), names]
    whole = (f"{text} ({place.replace(' ', '_')})".replace(" ≤ ", "_≤_") for text, _, place, _ in CLAIMS.values())
    labels = ["\n".join(textwrap.wrap(text, 28)).replace("_", " ") for text in whole]  # no line ends before a number
    fig = panels.sheet(re.split("[:;.]", verdict(frame, config))[0], note, 0.35 + 0.5 * len(CLAIMS))
    ax = fig.subplots(gridspec_kw=style.body(fig, bottom=0.05, left=1.75, right=0.05, extra_top=0.2))
    panels.shaded(ax, failing.to_numpy(), [panels.short(name) for name in names], labels, said.to_numpy())
    return fig
