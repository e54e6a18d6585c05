"""The DEIS paper's table 2 on models with a known truth: which variant at which number of calls, on its best grid?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells as swept
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import FLIPPED, Judge, mean_square, ranked
from experiments.models import studies

NAME = "table2_variants"
QUESTION = "Do the two messages of the paper's table 2 hold on known models: tAB before ρAB, ρRK last at few calls?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "calls": [5, 10, 12, 15, 20, 50],
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "choices": {
        "source": "Zhang & Chen 2023, table 2: FID on CIFAR-10; here path error and law on other models",
        "published": "of its columns only tAB3's is confirmed by a second source, so that ranks are not compared",
        "steps": "ceil(calls / stages), the surplus printed as +k, as in the paper",
        "grid": "least path error, cell by cell",
        "end": "t_end = 1e-3 in every cell; which of 1e-3 and 1e-4 the paper took in which cell is not known",
    },
}
TOLERANCES = FLIPPED
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits", "network"], "kept": [],
                 "calls": [5, 10], "grids": ["t2", "rho7"]}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "kept": [], "samples": 2048}
STAGES = {
    "ddim": 1, "rhork_2heun": 2, "rhork_3kutta": 3, "rhork_4rk": 4, "rhoab1": 1, "rhoab2": 1, "rhoab3": 1,
    "tab1": 1, "tab2": 1, "tab3": 1,
}  # fmt: skip
PRINTED = ("DDIM", "ρ2Heun", "ρ3Kutta", "ρ4RK", "ρAB1", "ρAB2", "ρAB3", "tAB1", "tAB2", "tAB3")
COLUMNS, DEEPEST = 3, 20.0  # panels in a row; ratio of the lightest shade
RUNGE_KUTTA = tuple(solver for solver, stages in STAGES.items() if stages > 1)
PUBLISHED = {
    5: 15.37,
    10: 4.17,
    15: 3.37,
    20: 2.86,
    50: 2.57,
}  # FID of tAB3: Zhang & Chen 2023, table 2, as later papers
QUOTED = "tab3"  # quote it (Zheng et al. 2023, DPM-Solver-v3; Li et al., SciRE-Solver)


def steps_of(solver: str, calls: int) -> tuple[int, int]:
    """(steps, surplus): as many whole steps as reach ``calls`` model calls, and how many more they cost."""
    stages = STAGES[solver]
    steps = -(-calls // stages)
    return steps, steps * stages - calls


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "ours" (cells, one per grid), "reference", and "published" (FID of another model)."""

    def rows_of(name: str, progress: Progress) -> Rows:
        study = studies.study(name, config)
        judge = Judge(study, config)
        return [judge.reference, *_cells(judge, progress)]

    ours = by_model(NAME, config, rows_of, progress)
    return pd.concat([ours, pd.DataFrame(_published(config))], ignore_index=True)


def _published(config: Config) -> Rows:
    return [
        {"model": "published: CIFAR-10, VPSDE", "part": "published", "solver": QUOTED, "calls": calls, "surplus": 0,
         "fid": fid, "source": "Zhang & Chen 2023, table 2, as quoted"}
        for calls, fid in PUBLISHED.items() if calls in config["calls"]
    ]  # fmt: skip


def _cells(judge: Judge, progress: Progress) -> Rows:
    """Rows of all solvers and grids, by number of calls."""
    config = judge.config
    rows = swept.sweep(
        judge.study, STAGES, config["grids"], config["calls"],
        lambda x: {**judge.row(x), "error": mean_square(judge.counted(x))},
        steps=lambda solver, calls: steps_of(solver, calls)[0], progress=progress,
    )  # fmt: skip
    best: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        at = best.setdefault((row["calls"], row["solver"]), row)
        best[row["calls"], row["solver"]] = row if row["error"] < at["error"] else at
    for row in rows:
        row |= {"part": "ours", "surplus": row.pop("nfe") - row["calls"]}
        del row["error"]
        row["best"] = row is best[row["calls"], row["solver"]]
    return sorted(rows, key=lambda row: config["calls"].index(row["calls"]))


# -- what was found -------------------------------------------------------------------------------
def cells(frame: Frame, model: str) -> Frame:
    """The best cell of each solver and number of calls on a model."""
    rows = frame[(frame.part == "ours") & (frame.model == model)]
    return rows[rows.best.astype(bool)]


def findings(frame: Frame) -> dict[str, dict[str, Any]]:
    """Per model: how often tAB is better than ρAB and RK worse than DDIM, and who is most accurate."""
    found = {}
    for row in frame[frame.part == "reference"].itertuples():
        at = ranked(cells(frame, row.model)).pivot(index="calls", columns="solver", values="error")
        tab = np.array([at[f"tab{r}"] < at[f"rhoab{r}"] for r in (1, 2, 3)])
        kutta = at[list(RUNGE_KUTTA)].to_numpy()
        found[str(row.model)] = {
            "title": row.title,
            "tab": (int(tab.sum()), tab.size),
            "fewest": int(at.index[0]),
            "most": int(at.index[-1]),
            "bad": int((kutta[0] > at.ddim.iloc[0]).sum()),
            "rk_last": int((kutta[-1] < at[["tab1", "tab2", "tab3"]].iloc[-1].min()).sum()),
            "winners": {int(calls): str(errors.idxmin()) for calls, errors in at.iterrows()},
            "by_rms": _by_rms(frame, str(row.model)),
            "ratios": (at.div(at.min(axis=1), axis=0))[list(STAGES)],
        }
    return found


def _by_rms(frame: Frame, model: str) -> int:
    """In how many cells tAB is better than ρAB by RMS over all samples, flipped or not, each on its best grid by it."""
    rows = frame[(frame.part == "ours") & (frame.model == model)]
    at = rows.pivot_table(index="calls", columns="solver", values="rms", aggfunc="min")
    return int(sum((at[f"tab{r}"] < at[f"rhoab{r}"]).sum() for r in (1, 2, 3)))


def _messages(found: dict[str, dict[str, Any]]) -> str:
    """The table's two messages, counted over all models."""
    tab, bad = np.sum([f["tab"] for f in found.values()], axis=0), sum(f["bad"] for f in found.values())
    return (
        f"tAB beats ρAB of equal degree in {tab[0]} of {tab[1]} cells; ρRK loses to DDIM at "
        f"{next(iter(found.values()))['fewest']} calls in {bad} of {len(RUNGE_KUTTA) * len(found)}"
    )


def verdict(frame: Frame, config: Config) -> str:
    """The table's two messages; who is most accurate how often; what is left of them at the most calls."""
    found = findings(frame)
    winners = pd.Series([w for f in found.values() for w in f["winners"].values()]).value_counts()
    first = ", ".join(f"{count} {name}" for name, count in winners.items())
    most, last = next(iter(found.values()))["most"], sum(f["rk_last"] for f in found.values())
    by_rms = sum(f["by_rms"] for f in found.values())
    return (
        f"By path error, of images over samples that do not flip, each on its best grid, on {', '.join(found)}: "
        f"{_messages(found)}; by RMS over all samples tAB does in {by_rms}; most accurate of "
        f"{winners.sum()} rows in {first}; at {most} calls ρRK is ahead of every tAB in {last} of "
        f"{len(RUNGE_KUTTA) * len(found)}."
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Above the mean over models, with numbers; below a panel per model. Rows: calls. Columns: variants."""
    found = findings(frame)
    ratios = [f["ratios"] for f in found.values()]
    mean = np.exp(np.mean([np.log(r.to_numpy()) for r in ratios], axis=0))
    quoted = frame[frame.part == "published"].sort_values("calls")
    said = ", ".join(f"{row.fid:g} ({int(row.calls)})" for row in quoted.itertuples())
    note = (
        f"RMS path error, of images over samples that do not flip (end at another one's place), "
        f"{style.setting(config)}, {studies.how_many(config)}, each cell on its best of "
        f"{', '.join(config['grids'])}, over the least of its row: 1 is best, white {int(DEEPEST)} times. Above: "
        f"geometric mean over the {len(found)} models; below: each of them, dot: least. ρRK takes up to 3 calls more "
        f"than the row says, as in the paper. Of the paper's FIDs (CIFAR-10) only tAB3's are confirmed: {said}."
    )
    calls = [f"{int(c)} calls" for c in ratios[0].index]
    small = -(-len(found) // COLUMNS)
    top, block = 0.5 + 0.24 * len(calls), 0.3 + 0.17 * len(calls)
    height = top + 0.7 + block * small + 0.1
    fig = panels.sheet(_messages(found), note, height)
    edges: dict[str, Any] = {"bottom": 0.05, "left": 0.6, "right": 0.1, "extra_top": 0.0}
    (ax,), _ = panels.small_multiples(fig, [""], 1, begin=0.3 / height, end=(top - 0.1) / height, **edges)
    texts = [[style.as_text(value) for value in row] for row in mean]
    panels.shaded(ax, _depths(mean), PRINTED, calls, texts, mean == mean.min(axis=1, keepdims=True))
    names = [panels.short(name) for name in found]
    axes, _ = panels.small_multiples(fig, names, COLUMNS, begin=(top + 0.8) / height, hspace=0.3, wspace=0.06, **edges)
    for i, (ax, ratio) in enumerate(zip(axes, ratios, strict=True)):
        dots = [["•" if value == 1 else "" for value in row] for row in ratio.to_numpy()]
        panels.shaded(ax, _depths(ratio.to_numpy()), PRINTED, calls, dots)
        ax.tick_params(axis="x", labelrotation=90, pad=1, labeltop=i < COLUMNS)
        ax.tick_params(axis="y", labelleft=not i % COLUMNS)
        ax.set_title(names[i], fontsize=8.5, pad=3)
    return fig


def _depths(ratios: Array) -> list[list[float]]:
    return [[math.log(value) / math.log(DEEPEST) for value in row] for row in ratios]
