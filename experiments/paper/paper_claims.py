"""Which claims of the DEIS paper hold on models whose exact answer is known? Each claim counted cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.by_model import Rows, by_model
from experiments.models import studies
from experiments.models.studies import Study

NAME = "paper_claims"
QUESTION = "Which of the paper's claims about its ingredients hold on which model?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "steps": [5, 10, 20],
    "budgets": [5, 8],
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "draws": 1000,
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits"], "kept": [], "draws": 200}
THOROUGH: Config = {
    "samples": 2000,
    "steps": [5, 7, 10, 14, 20],
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
}
CLAIMS = {  # what the paper says; its place; where it is drawn
    "score": ("an exponential integrator with a frozen score is worse than Euler", "fig. 3a", "fig3_discretization"),
    "eps": ("with a frozen ε it is better than Euler", "fig. 3c", "fig3_discretization"),
    "degree": ("each higher degree of the polynomial is better at N ≤ 20", "fig. 4c", "fig4_extrapolation"),
    "grid": ("the quadratic time grid is the best one for tAB", "app. H.3", "appendix_time_grids"),
    "tab": ("tAB is better than ρAB of the same degree at N ≤ 20", "table 2", "table2_variants"),
    "rk": ("ρRK of order 2 to 4 is worse than DDIM below 10 calls", "table 2", "table2_variants"),
}
BRIEFLY = {
    "score": "frozen score loses to Euler",
    "eps": "frozen ε beats Euler",
    "degree": "higher degree wins",
    "grid": "t2 best for tAB",
    "tab": "tAB beats ρAB",
    "rk": "ρRK loses to DDIM",
}
RUNGE_KUTTA = {"rhork_2heun": 2, "rhork_3kutta": 3, "rhork_4rk": 4}
Error = dict[str, Array]  # per sample: "mean" absolute and mean square ("rms") difference
Errors = dict[tuple[str, str, int], Error]  # of (solver, grid, steps)


METRICS = {"mean": "", "rms": "rms_"}  # what a claim is counted by → prefix of its columns


def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, claim and cell: ``ratio`` of the mean pixel differences, > 1 where the claim holds.

    ``low`` and ``high`` are its 95 % bootstrap band over samples; ``rms_ratio``, ``rms_low``, ``rms_high`` are those of
    root mean squares, for which the best grids are chosen by root mean square too.
    """

    def rows_of(name: str, progress: Progress) -> Rows:
        errors = _errors(studies.study(name, config), config)
        by = {metric: _cells(errors, config, metric) for metric in METRICS}
        rows: Rows = []
        for mean, rms in zip(*by.values(), strict=True):
            row: dict[str, Any] = {"claim": mean[0], "cell": mean[1]}
            for (_, _, worse, better), (metric, prefix) in zip((mean, rms), METRICS.items(), strict=True):
                names = (f"{prefix}ratio", f"{prefix}low", f"{prefix}high")
                row |= dict(zip(names, _ratio(worse[metric], better[metric], metric, config), strict=True))
            rows.append(row)
        return rows

    return by_model(NAME, config, rows_of, progress)


def _ratio(worse: Array, better: Array, metric: str, config: Config) -> tuple[float, float, float]:
    """Ratio of two errors of the same samples, with its 95 % band over samples."""
    rng = np.random.default_rng(config["seed"])
    index = rng.integers(0, worse.size, (config["draws"], worse.size))
    root = np.sqrt if metric == "rms" else lambda value: value
    low, high = np.quantile(root(worse[index].mean(axis=1) / better[index].mean(axis=1)), [0.025, 0.975])
    return float(root(worse.mean() / better.mean())), float(low), float(high)


def _errors(problem: Study, config: Config) -> Errors:
    """Of all runs that a claim is about, against the exact answer from the same start."""
    steps = sorted({*config["steps"], *config["budgets"]})
    wanted = [(s, "t1", n) for s in ("euler", "ei_score") for n in config["steps"]]
    families = ["ddim", *(f"{f}{r}" for f in ("tab", "rhoab") for r in (1, 2, 3))]
    wanted += [
        (s, g, n) for s in families for g in config["grids"] for n in (steps if s == "ddim" else config["steps"])
    ]
    wanted += [(s, g, -(-n // c)) for s, c in RUNGE_KUTTA.items() for g in config["grids"] for n in config["budgets"]]
    truth, _ = problem.reference(config["t_end"])
    found: Errors = {}
    for key in dict.fromkeys(wanted):
        solver, kind, n = key
        gap = problem.solve(solver, da.grid(problem.process, n, kind, config["t_start"], config["t_end"])) - truth
        gap = gap.cpu().numpy()
        found[key] = {"mean": np.abs(gap).mean(axis=1), "rms": np.square(gap).mean(axis=1)}
    return found


def _cells(errors: Errors, config: Config, metric: str) -> list[tuple[str, str, Error, Error]]:
    """(claim, cell, what should have the larger error, what the smaller one); grids that are best are so by metric."""

    def size(error: Error) -> float:
        return float(error[metric].mean())

    def best(solver: str, n: int) -> Error:
        return min((errors[(solver, g, n)] for g in config["grids"]), key=size)

    cells: list[tuple[str, str, Error, Error]] = []
    for n in config["steps"]:
        euler = errors[("euler", "t1", n)]
        cells.append(("score", f"N = {n}", errors[("ei_score", "t1", n)], euler))
        cells.append(("eps", f"N = {n}", euler, errors[("ddim", "t1", n)]))
        for r in (1, 2, 3):
            lower, own = "ddim" if r == 1 else f"tab{r - 1}", f"tab{r}"
            cells.append(("degree", f"{own}, N = {n}", errors[(lower, "t2", n)], errors[(own, "t2", n)]))
            other = min((errors[(own, g, n)] for g in config["grids"] if g != "t2"), key=size)
            cells.append(("grid", f"{own}, N = {n}", other, errors[(own, "t2", n)]))
            cells.append(("tab", f"degree {r}, N = {n}", best(f"rhoab{r}", n), best(own, n)))
    for n in config["budgets"]:
        for solver, calls in RUNGE_KUTTA.items():
            cells.append(("rk", f"{solver}, {n} calls", best(solver, -(-n // calls)), best("ddim", n)))
    return cells


def findings(frame: Frame) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Per claim and model, by "mean" and by "rms": cells in which it holds, those distinct, the mean ratio."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for (claim, name), rows in frame.groupby(["claim", "model"], sort=False):
        found[(claim, name)] = {}
        for metric, prefix in METRICS.items():
            ratio = rows[f"{prefix}ratio"]
            found[(claim, name)][metric] = {
                "cells": len(rows),
                "holds": int((ratio > 1).sum()),
                "sure": int((rows[f"{prefix}low"] > 1).sum()),
                "against": int((rows[f"{prefix}high"] < 1).sum()),
                "ratio": float(np.exp(np.log(ratio).mean())),
            }
    return found


def answer(found: dict[str, dict[str, Any]]) -> str:
    """In how many cells it holds by mean and by RMS, with the mean ratio of the errors of each."""
    return ", ".join(f"{f['holds']}/{f['cells']} {style.as_text(f['ratio'])}×" for f in found.values())


def table(frame: Frame, config: Config) -> list[str]:
    """The README's table of claims, line by line."""
    found, names = findings(frame), config["models"]
    lines = [f"| claim of the paper | {' | '.join(names)} | figure |", f"|---|{'---|' * (len(names) + 1)}"]
    for claim, (text, place, figure) in CLAIMS.items():
        cells = " | ".join(answer(found[(claim, name)]) for name in names)
        lines.append(f"| {text} ({place}) | {cells} | [{figure}](figures/{figure}.png) |")
    return lines


def whole(found: dict[tuple[str, str], dict[str, dict[str, Any]]], names: list[str], metric: str) -> list[str]:
    """The claims that hold in every cell on all models, by one of `METRICS`."""
    return [c for c in CLAIMS if all(f["holds"] == f["cells"] for f in (found[(c, n)][metric] for n in names))]


def verdict(frame: Frame, config: Config) -> str:
    """How many claims hold everywhere by both, and how often the others do by each."""
    found, names = findings(frame), config["models"]
    held = _both(found, names)
    parts = []
    for claim, text in BRIEFLY.items():
        if claim not in held:
            mean, rms = (", ".join(str(found[(claim, n)][metric]["holds"]) for n in names) for metric in METRICS)
            parts.append(f"{text} {mean} (by RMS {rms}) of {found[(claim, names[0])]['mean']['cells']}")
    failed = f"; not everywhere: {'; '.join(parts)} cells" if parts else ""
    kept = f" ({', '.join(BRIEFLY[c] for c in held)})" if held else ""
    return (
        f"By mean pixel difference and by RMS alike {len(held)} of {len(CLAIMS)} claims hold everywhere on "
        f"{', '.join(names)}{kept}{failed}."
    )


def _both(found: dict[tuple[str, str], dict[str, dict[str, Any]]], names: list[str]) -> list[str]:
    return [c for c in whole(found, names, "mean") if c in whole(found, names, "rms")]


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Rows: claims. Columns: models. In each cell, by mean above and by RMS below, in how many cells it holds."""
    found, names = findings(frame), config["models"]
    held = len(_both(found, names))
    headline = (
        f"{held} of the paper's {len(CLAIMS)} claims hold in every cell, by mean and by RMS, on all {len(names)} models"
    )
    note = (
        "In how many cells (step count, degree, method) a claim holds, and by what factor errors differ on average; "
        "upper half by mean pixel difference, lower half by RMS. Blue: it holds in all, orange: in none. "
        f"{style.setting(config)}, {studies.how_many(config)}; ρAB, ρRK and DDIM on their best grid."
    )
    fig = style.new_figure(7.0, 5.4, headline, note)
    margins = style.body(fig, bottom=0.05, left=1.75, right=0.05, extra_top=0.45)
    ax = fig.subplots(gridspec_kw=margins)
    colours = style.matplotlib.colors.LinearSegmentedColormap.from_list("holds", ["#F2B48A", "#F7F7F7", "#8FBCE0"])
    for y, claim in enumerate(CLAIMS):
        for x, name in enumerate(names):
            for half, f in enumerate(found[(claim, name)].values()):
                low = y - 0.46 + 0.46 * half
                colour = colours(f["holds"] / f["cells"])
                ax.add_patch(style.plt.Rectangle((x - 0.47, low), 0.94, 0.46, facecolor=colour, lw=0))
                words = f"{f['holds']}/{f['cells']}  {style.as_text(f['ratio'])}×"
                ax.text(x, low + 0.24, words, ha="center", va="center", fontsize=7.5)
    labels = ["\n".join(style.textwrap.wrap(f"{text} ({place})", 26)) for text, place, _ in CLAIMS.values()]
    ax.set_yticks(range(len(labels)), labels, fontsize=7.5)
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(CLAIMS) - 0.5, -0.5))
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return fig
