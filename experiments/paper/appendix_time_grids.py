"""Which time grid for which sampler, and which exponent? The paper's three kinds of grid, and two families of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells as swept
from experiments.core import style
from experiments.models import studies
from experiments.models.problems import steps_for

NAME = "appendix_time_grids"
QUESTION = "Which time grid is best for which sampler, and is quadratic in t best for tAB?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "solvers": ["ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "ipndm4", "rhork_2heun", "rhork_3kutta",
                "rhork_4rk", "dpm_2", "dpmpp_2m", "unipc2_bh2_x0"],
    "claimed": ["tab1", "tab2", "tab3"],
    "claim": "t2",
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "calls": [5, 10, 20, 50],
    "compared_at": 10,
    "exponents": {"t": [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6], "rho": [3, 5, 7, 10, 15, 24, 36]},
    "draws": 500,
    "choices": {
        "grids": "T1 with exponents 1, 2, 3, T2 with 7, T3, as in the paper's appendix H.3; its numbers are not known",
        "measure": "RMS path error, where the paper has FID; t_end = 1e-3 throughout",
        "exponents": "swept by us, at compared_at calls: the paper compares fixed grids",
    },
}  # fmt: skip
QUICK: Config = {
    **studies.BASE_QUICK,
    "solvers": ["ddim", "tab3", "rhoab3", "rhork_2heun", "dpmpp_2m"],
    "calls": [5, 10],
    "exponents": {"t": [1, 1.5, 2, 3, 5], "rho": [4, 7, 12]},
}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 2048,
    "calls": [5, 7, 10, 14, 20, 28, 50],
    "exponents": {
        "t": [1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4, 2.7, 3, 3.5, 4, 4.5, 5, 6],
        "rho": [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 30, 40, 60],
    },
    "draws": 2000,
}
COLOURS = {"t1": "#F0C94A", "t2": "#56B4E9", "t3": "#7B8FD6", "rho7": "#E58B5B", "logrho": "#7FBF7B"}
COLUMNS = ["part", "model", "solver", "calls", "steps", "grid", "family", "exponent", "rms", "ratio", "low", "high",
           "edge", "estimate"]  # fmt: skip
PRINTED = {"t": "t", "rho": "ρ"}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "grid" (model, solver, calls, grid), "scan" (…, family, exponent) and "best" (…, family).

    ``rms`` is the root mean square over samples and coordinates.  ``ratio`` (95 % interval ``low`` to ``high`` over
    resampled samples) is, for "grid", that error over the least of the other grids, empty where a single step leaves
    nothing to choose; for "best", the exponent is in ``exponent`` with its interval, and ``edge`` says that the least
    error is at an end of the scan.
    """
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        problem = studies.study(name, config)
        truth, estimate = problem.reference(config["t_end"])
        count = len(problem.x_T)
        counts = np.random.default_rng(config["seed"]).multinomial(count, np.full(count, 1 / count), config["draws"])
        found = swept.sweep(
            problem, config["solvers"], partial(_kinds, config), sorted({*config["calls"], config["compared_at"]}),
            swept.squares_to(truth), progress=swept.part_of(progress, done, len(config["models"])),
        )  # fmt: skip
        by = {(row["solver"], row["calls"], row["grid"]): row["squares"] for row in found}
        for solver in config["solvers"]:
            squares = partial(lambda by, solver, calls, kind: by[solver, calls, kind], by, solver)
            for row in _grids(config, solver, squares, counts) + _exponents(config, solver, squares, counts):
                rows.append({"model": name, "solver": solver, "estimate": estimate, **row})
    return pd.DataFrame(rows, columns=COLUMNS)


def _kinds(config: Config, solver: str, calls: int) -> list[str]:
    """The grids at a number of calls: those that are compared there, and the exponents that are scanned."""
    scanned = [f"{family}{e:g}" for family, exponents in config["exponents"].items() for e in exponents]
    one = steps_for(solver, calls) < 2
    return [
        *(config["grids"] if calls in config["calls"] else ()),
        *(scanned if calls == config["compared_at"] and not one else ()),
    ]


def _grids(config: Config, solver: str, squares: Any, counts: Array) -> list[dict[str, Any]]:
    rows = []
    for calls in config["calls"]:
        kinds, steps = config["grids"], steps_for(solver, calls)
        errors = np.stack([squares(calls, kind) for kind in kinds], axis=1)
        drawn = np.sqrt(counts @ errors / len(errors))
        rms = np.sqrt(errors.mean(axis=0))
        for i, kind in enumerate(kinds):
            row = {"part": "grid", "calls": calls, "steps": steps, "grid": kind, "rms": rms[i]}
            if steps > 1:
                low, high = np.quantile(drawn[:, i] / np.delete(drawn, i, axis=1).min(axis=1), [0.025, 0.975])
                row |= {"ratio": rms[i] / np.delete(rms, i).min(), "low": low, "high": high}
            rows.append(row)
    return rows


def _exponents(config: Config, solver: str, squares: Any, counts: Array) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    calls = config["compared_at"]
    common = {"calls": calls, "steps": steps_for(solver, calls)}
    if common["steps"] < 2:
        return rows
    for family, exponents in config["exponents"].items():
        k = np.array(exponents, dtype=float)
        errors = np.stack([squares(calls, f"{family}{e:g}") for e in exponents], axis=1)
        mean = errors.mean(axis=0)
        rows += [
            {"part": "scan", "family": family, "exponent": e, "rms": np.sqrt(m), **common}
            for e, m in zip(k, mean, strict=True)
        ]
        low, high = np.quantile([least(k, m) for m in counts @ errors / len(errors)], [0.025, 0.975])
        best, at = least(k, mean), int(mean.argmin())
        rows.append({"part": "best", "family": family, "exponent": best, "low": low, "high": high,
                     "edge": at in (0, k.size - 1), "rms": np.sqrt(mean[at]), **common})  # fmt: skip
    return rows


def least(k: Array, errors: Array) -> float:
    """Exponent of the least of the positive ``errors``: vertex of the parabola in (log k, log error) through the least
    and its neighbours, or the end of ``k`` where the least is."""
    i = int(np.argmin(errors))
    if i in (0, k.size - 1):
        return float(k[i])
    x, y = np.log(k[i - 1 : i + 2]), np.log(errors[i - 1 : i + 2])
    a, b = x[1] - x[0], x[1] - x[2]
    p, q = a * (y[1] - y[2]), b * (y[1] - y[0])
    return float(np.exp(x[1] - 0.5 * (a * p - b * q) / (p - q))) if p != q else float(k[i])


def cells(frame: Frame) -> Frame:
    """Per (model, solver, calls) with a grid to choose: the best grid, how it compares, and whether that is clear."""
    rows = frame[(frame.part == "grid") & frame.ratio.notna()]
    best = rows.loc[rows.groupby(["model", "solver", "calls"], sort=False).rms.idxmin()]
    return best.assign(gain=1 / best.ratio, clear=best.high < 1).reset_index(drop=True)


def claim(frame: Frame, config: Config, model: str) -> dict[str, Any]:
    """How the claimed grid does for the claimed solvers on a model: cells, best in, clearly beaten in, exponents."""
    rows = frame[(frame.part == "grid") & frame.ratio.notna() & (frame.model == model)]
    rows = rows[rows.solver.isin(config["claimed"]) & (rows.grid == config["claim"])]
    best = frame[(frame.part == "best") & (frame.model == model) & (frame.family == "t")]
    best = best[best.solver.isin(config["claimed"])]
    return {
        "cells": len(rows),
        "best": int((rows.ratio <= 1).sum()),
        "beaten": int((rows.low > 1).sum()),
        "exponents": {r.solver: (r.exponent, r.low, r.high) for r in best.itertuples()},
    }


def _favourites(found: Frame, calls: int) -> str:
    at = found[found.calls == calls]
    return ", ".join(f"{kind} {n}" for kind, n in at.grid.value_counts(sort=True).items()) + f" of {len(at)}"


def verdict(frame: Frame, config: Config) -> str:
    """In how many cells the claimed grid is best for tAB, the range of best exponents, and the best grids of all."""
    found, calls = cells(frame), config["compared_at"]
    every = {model: claim(frame, config, model) for model in frame.model.unique()}
    cases = " and ".join(f"{c['best']} of {c['cells']} ({model})" for model, c in every.items())
    powers = [[k for k, _, _ in c["exponents"].values()] for c in every.values()]
    best = " and ".join(f"{min(k):.2f} to {max(k):.2f}" for k in powers)
    return (
        f"For tAB {config['claim']} is the best of {len(config['grids'])} grids in {cases} cells, clearly beaten in "
        f"{' and '.join(str(c['beaten']) for c in every.values())}, and the best exponent of t at {calls} calls "
        f"{best}; over all solvers the best grid is {_favourites(found, calls)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: best grid per solver and call count; best exponent of t and of ρ with its interval."""
    names, found = list(frame.model.unique()), cells(frame)
    every = {model: claim(frame, config, model) for model in names}
    headline = f"Is {config['claim']} the best grid for tAB? " + "; ".join(
        f"{model}: in {c['best']} of {c['cells']} cells, and {c['beaten']} times clearly beaten"
        for model, c in every.items()
    )
    note = (
        f"Left: the grid of least RMS error and how many times better than the next best; pale where the 95 % interval "
        f"over {config['samples']} samples includes 1. Right: exponent of least error at {config['compared_at']} "
        f"calls, 95 % interval; hollow: at an end of the scan. {style.setting(config)}; reference accurate to "
        f"{style.as_text(frame.estimate.max(), 1)}."
    )
    rows = len(config["solvers"])
    fig = style.new_figure(12.5, 2.0 + len(names) * (0.27 * rows + 0.75), headline, note)
    margins = style.body(fig, bottom=0.75, left=1.25, right=0.25, extra_top=0.4)
    ratios = {"width_ratios": [1.5, 1, 1], "wspace": 0.06, "hspace": 0.24}
    axes = fig.subplots(len(names), 3, squeeze=False, gridspec_kw={**margins, **ratios})
    for row, model in zip(axes, names, strict=True):
        _table(row[0], found[found.model == model], config, studies.title(model))
        for ax, (family, exponents) in zip(row[1:], config["exponents"].items(), strict=True):
            part = frame[(frame.part == "best") & (frame.model == model) & (frame.family == family)]
            _intervals(ax, part, config, exponents)
            ax.set_title(f"best k for equal steps of {PRINTED[family]}$^{{1/k}}$")
    _legend(axes[-1, 0], config)
    return fig


def _table(ax: Any, found: Frame, config: Config, title: str) -> None:
    from matplotlib.patches import Rectangle

    for row in found.itertuples():
        x, y = config["calls"].index(row.calls), config["solvers"].index(row.solver)
        alpha = 1.0 if row.clear else 0.3
        ax.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=COLOURS.get(row.grid, "#dddddd"), alpha=alpha))
        gain = f"{row.gain:.1f}×" if row.gain >= 1.05 else "≈"
        ax.text(x, y, f"{row.grid}  {gain}", ha="center", va="center", fontsize=8.5, color="#222222")
    ax.set_xticks(range(len(config["calls"])), [f"{c} calls" for c in config["calls"]], fontsize=9)
    ax.set_yticks(range(len(config["solvers"])), config["solvers"], fontsize=9)
    for label, solver in zip(ax.get_yticklabels(), config["solvers"], strict=True):
        label.set_color(style.family(solver)[0])
    ax.set(xlim=(-0.5, len(config["calls"]) - 0.5), ylim=(len(config["solvers"]) - 0.5, -0.5))
    ax.set_title(f"best grid: {title}")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def _intervals(ax: Any, best: Frame, config: Config, exponents: list[float]) -> None:
    for row in best.itertuples():
        y, colour = config["solvers"].index(row.solver), style.family(row.solver)[0]
        ax.plot([row.low, row.high], [y, y], color=colour, lw=3.5, alpha=0.45, solid_capstyle="butt")
        hollow = "white" if str(row.edge) == "True" else colour
        ax.plot(row.exponent, y, "o", color=colour, markerfacecolor=hollow, markersize=6, zorder=3)
    claimed = {"t": 2.0, "rho": 7.0}[best.family.iloc[0]] if len(best) else 2.0
    ax.axvline(claimed, color="#555555", lw=1.0, ls="--", zorder=0)
    ax.set(xscale="log", ylim=(len(config["solvers"]) - 0.5, -0.5))
    ax.set_xlim(exponents[0] * 0.92, exponents[-1] * 1.09)
    ticks = [v for v in (1, 1.5, 2, 3, 4, 5, 6, 7, 12, 24, 36, 60) if exponents[0] <= v <= exponents[-1]]
    style.plain_log_ticks(ax.xaxis, [v for v in ticks if v != 6 or exponents[-1] == 6])
    ax.set_yticks(range(len(config["solvers"])), [])
    ax.tick_params(axis="y", length=0)


def _legend(ax: Any, config: Config) -> None:
    from matplotlib.patches import Patch

    meaning = {"t1": "uniform in t", "t2": "quadratic in t", "t3": "cubic in t", "rho7": "equal steps of $ρ^{1/7}$",
               "logrho": "uniform in log ρ"}  # fmt: skip
    handles = [Patch(color=COLOURS.get(k, "#dddddd"), label=f"{k}: {meaning.get(k, k)}") for k in config["grids"]]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.2, -0.09), ncol=len(handles), fontsize=9)
