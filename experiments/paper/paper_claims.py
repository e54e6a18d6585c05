"""Which claims of the DEIS paper hold on models whose exact answer is known? Each claim counted cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies
from experiments.models.studies import Study

NAME = "paper_claims"
QUESTION = "Which of the paper's claims about its ingredients hold on which model?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits", "network"],
    "steps": [5, 10, 20],
    "budgets": [5, 8],
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "draws": 1000,
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits"], "draws": 200}
THOROUGH: Config = {
    "samples": 2000,
    "steps": [5, 7, 10, 14, 20],
    "models": ["mixture", "gaussian", "digits", "network"],
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
Error = tuple[Array, Array]  # per sample: mean absolute and mean square difference
Errors = dict[tuple[str, str, int], Error]  # of (solver, grid, steps)


def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, claim and cell: ``ratio`` of the mean pixel differences, > 1 where the claim holds.

    ``low`` and ``high`` are its 95 % bootstrap band over samples; ``rms_ratio`` is that of root mean squares.
    """
    rows = []
    for done, name in enumerate(config["models"]):
        problem = studies.study(name, config)
        errors = _errors(problem, config)
        for claim, cell, worse, better in _cells(errors, config):
            rng = np.random.default_rng(config["seed"])
            index = rng.integers(0, worse[0].size, (config["draws"], worse[0].size))
            ratios = worse[0][index].mean(axis=1) / better[0][index].mean(axis=1)
            low, high = np.quantile(ratios, [0.025, 0.975])
            rows.append(
                {"model": name, "claim": claim, "cell": cell, "ratio": worse[0].mean() / better[0].mean(),
                 "rms_ratio": float(np.sqrt(worse[1].mean() / better[1].mean())), "low": low, "high": high}
            )  # fmt: skip
        progress((done + 1) / len(config["models"]))
    return pd.DataFrame(rows)


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
        found[key] = np.abs(gap).mean(axis=1), np.square(gap).mean(axis=1)
    return found


def _mean(error: Error) -> float:
    return float(error[0].mean())


def _cells(errors: Errors, config: Config) -> list[tuple[str, str, Any, Any]]:
    """(claim, cell, what should have the larger error, what the smaller one)."""

    def best(solver: str, n: int) -> Error:
        return min((errors[(solver, g, n)] for g in config["grids"]), key=_mean)

    cells: list[tuple[str, str, Any, Any]] = []
    for n in config["steps"]:
        euler = errors[("euler", "t1", n)]
        cells.append(("score", f"N = {n}", errors[("ei_score", "t1", n)], euler))
        cells.append(("eps", f"N = {n}", euler, errors[("ddim", "t1", n)]))
        for r in (1, 2, 3):
            lower, own = "ddim" if r == 1 else f"tab{r - 1}", f"tab{r}"
            cells.append(("degree", f"{own}, N = {n}", errors[(lower, "t2", n)], errors[(own, "t2", n)]))
            other = min((errors[(own, g, n)] for g in config["grids"] if g != "t2"), key=_mean)
            cells.append(("grid", f"{own}, N = {n}", other, errors[(own, "t2", n)]))
            cells.append(("tab", f"degree {r}, N = {n}", best(f"rhoab{r}", n), best(own, n)))
    for n in config["budgets"]:
        for solver, calls in RUNGE_KUTTA.items():
            cells.append(("rk", f"{solver}, {n} calls", best(solver, -(-n // calls)), best("ddim", n)))
    return cells


def findings(frame: Frame) -> dict[tuple[str, str], dict[str, Any]]:
    """Per claim and model: cells in which it holds by mean pixel difference and by RMS, those distinct, the ratio."""
    found = {}
    for (claim, name), rows in frame.groupby(["claim", "model"], sort=False):
        found[(claim, name)] = {
            "cells": len(rows),
            "holds": int((rows.ratio > 1).sum()),
            "holds_rms": int((rows.rms_ratio > 1).sum()),
            "sure": int((rows.low > 1).sum()),
            "against": int((rows.high < 1).sum()),
            "ratio": float(np.exp(np.log(rows.ratio).mean())),
        }
    return found


def answer(f: dict[str, Any]) -> str:
    """``yes``, ``no`` or in how many cells, with the mean ratio of the errors."""
    word = "yes" if f["holds"] == f["cells"] else "no" if f["holds"] == 0 else "partly"
    return f"{word}: {f['holds']} of {f['cells']}, {style.as_text(f['ratio'])}×"


def table(frame: Frame, config: Config) -> list[str]:
    """The README's table of claims, line by line; with the figures that show them, if these models are theirs."""
    found, names = findings(frame), config["models"]
    linked = list(names) == CONFIG["models"]
    lines = [
        f"| claim of the paper | {' | '.join(studies.title(n) for n in names)} |{' figure |' if linked else ''}",
        f"|---|{'---|' * (len(names) + linked)}",
    ]
    for claim, (text, place, figure) in CLAIMS.items():
        cells = " | ".join(answer(found[(claim, n)]) for n in names)
        lines.append(f"| {text} ({place}) | {cells} |{f' [{figure}](figures/{figure}.png) |' if linked else ''}")
    return lines


def verdict(frame: Frame, config: Config) -> str:
    """How many claims hold everywhere, and how often the others do."""
    found, names = findings(frame), config["models"]
    held = whole(found, names)
    parts = []
    for claim, text in BRIEFLY.items():
        if claim not in held:
            counts = ", ".join(str(found[(claim, n)]["holds"]) for n in names)
            parts.append(f"{text} {counts} of {found[(claim, names[0])]['cells']}")
    failed = f"; not everywhere: {'; '.join(parts)} cells" if parts else ""
    kept = f" ({', '.join(BRIEFLY[c] for c in held)})" if held else ""
    return (
        f"By mean pixel difference {len(held)} of {len(CLAIMS)} claims hold everywhere on "
        f"{', '.join(names)}{kept}{failed}."
    )


def whole(found: dict[tuple[str, str], dict[str, Any]], names: list[str]) -> list[str]:
    """The claims that hold in every cell on all models."""
    return [c for c in CLAIMS if all(found[(c, n)]["holds"] == found[(c, n)]["cells"] for n in names)]


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: claims. Columns: models. Each cell's ratio of errors, right of 1 where the claim holds."""
    found, names = findings(frame), config["models"]
    held = len(whole(found, names))
    headline = f"{held} of the paper's {len(CLAIMS)} claims hold in every cell on all {len(names)} models"
    note = (
        "A point per cell (step count, degree): error of what the claim says is worse over that of what it says is "
        "better, mean pixel difference; right of 1 the claim holds. Bars: 95 % bands over samples, grey where they "
        f"contain 1. {style.setting(config)}, {studies.how_many(config)}; ρAB, ρRK and DDIM on their best grid."
    )
    fig = style.new_figure(11.5, 8.6, headline, note)
    margins = style.body(fig, bottom=0.6, left=3.1, right=0.25, extra_top=0.4)
    axes = fig.subplots(len(CLAIMS), len(names), sharex=True, squeeze=False, gridspec_kw={**margins, "wspace": 0.06})
    limits = frame[["ratio", "low", "high"]].clip(0.1, 12)
    for row, (claim, (text, place, _)) in zip(axes, CLAIMS.items(), strict=True):
        for ax, name in zip(row, names, strict=True):
            _panel(ax, frame[(frame.claim == claim) & (frame.model == name)])
            ax.set_xlim(float(limits.min().min()) * 0.9, float(limits.max().max()) * 1.1)
            ax.text(0.98, 0.93, answer(found[(claim, name)]), transform=ax.transAxes, ha="right", va="top", fontsize=9)
        label = "\n".join(style.textwrap.wrap(f"{text} ({place})", 34))
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10, labelpad=10)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(studies.title(name))
    for ax in axes[-1]:
        ax.set_xlabel("ratio of errors")
    return fig


def _panel(ax: Any, rows: Frame) -> None:
    places = np.arange(len(rows))[::-1]
    for y, cell in zip(places, rows.itertuples(), strict=True):
        colour = style.BLUE if cell.low > 1 else style.VERMILLION if cell.high < 1 else style.GREY
        ax.plot(
            [max(cell.low, 0.1), min(cell.high, 12)], [y, y], color=colour, lw=2.2, solid_capstyle="butt", alpha=0.6
        )
        ax.plot(np.clip(cell.ratio, 0.1, 12), y, "o", color=colour, markersize=5)
    ax.axvline(1.0, color="#333333", lw=1.0, zorder=0)
    ax.set(xscale="log", ylim=(-1, len(rows) * 1.25 + 0.3), yticks=[])
    style.plain_log_ticks(ax.xaxis, [0.25, 0.5, 1, 2, 4, 8])
