"""The DEIS paper's table 2 on models with a known truth: which variant at which number of calls, on its best grid?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import Config, Frame, Progress
from experiments.core import cells, frames, panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import FLIPPED, Judge, distinct, duel, ranked
from experiments.models import studies

NAME = "table2_variants"
QUESTION = "Do the two messages of the paper's table 2 hold on known models: tAB before ρAB, ρRK last at few calls?"
CONFIG: Config = {
    **studies.BASE, "models": ["mixture", "network", "digits", *studies.IMAGES], "kept": studies.IMAGES,
    "seeds": [0, 1, 2], "calls": [5, 10, 12, 15, 20, 50], "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "choices": {
        "source": "Zhang & Chen 2023, table 2: FID on CIFAR-10; here path error and law on other models",
        "published": "of its columns only tAB3's is confirmed by a second source, so that ranks are not compared",
        "steps": "ceil(calls / stages), the surplus told, as in the paper",
        "end": "t_end = 1e-3 in every cell; which of 1e-3 and 1e-4 the paper took in which cell is not known",
    },
}  # fmt: skip
TOLERANCES = FLIPPED
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits", "network"], "kept": [],
                 "calls": [5, 10], "grids": ["t2", "rho7"]}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "kept": [], "samples": 2048}
VARIANTS = {  # and how the table prints them
    "ddim": "DDIM", "rhork_2heun": "ρ2Heun", "rhork_3kutta": "ρ3Kutta", "rhork_4rk": "ρ4RK",
    "rhoab1": "ρAB1", "rhoab2": "ρAB2", "rhoab3": "ρAB3", "tab1": "tAB1", "tab2": "tAB2", "tab3": "tAB3",
}  # fmt: skip
RUNGE_KUTTA, RHOAB, TAB = ([name for name in VARIANTS if name.startswith(kind)] for kind in ("rhork", "rhoab", "tab"))
# FID of tAB3: Zhang & Chen 2023, table 2, as later papers quote it (DPM-Solver-v3, SciRE-Solver)
PUBLISHED = {5: 15.37, 10: 4.17, 15: 3.37, 20: 2.86, 50: 2.57}
COLUMNS, DEEPEST = 3, 20.0  # panels in a row; ratio of the lightest shade


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "ours" (cells, one per grid), "duel" (best grids), "reference", "published" (FID elsewhere)."""

    def rows_of(name: str, progress: Progress) -> Rows:
        judges = Judge(studies.study(name, config), config).with_seeds()
        tried = judged(judges[0], progress)
        return [judges[0].reference, *tried.drop(columns=["nfe", "squares", "error"]).to_dict("records"),
                *duels(judges, tried[tried.best])]  # fmt: skip

    ours = by_model(NAME, config, rows_of, progress)
    fids = [
        {"model": "published: CIFAR-10, VPSDE", "part": "published", "solver": "tab3", "calls": calls, "surplus": 0,
         "fid": fid, "source": "Zhang & Chen 2023, table 2, as quoted"}
        for calls, fid in PUBLISHED.items() if calls in config["calls"]
    ]  # fmt: skip
    return pd.concat([ours, pd.DataFrame(fids)], ignore_index=True)


def judged(judge: Judge, progress: Progress) -> Frame:
    """Rows of all solvers and grids, by number of calls; best of a solver is its grid with the least error."""
    rows = pd.DataFrame(cells.sweep(
        judge.study, VARIANTS, judge.config["grids"], judge.config["calls"], judge.cell, steps=cells.reaching,
        progress=progress,
    ))  # fmt: skip
    best = rows.index.isin(rows.groupby(["calls", "solver"]).error.idxmin())
    rows = rows.assign(part="ours", surplus=rows.nfe - rows.calls, best=best)
    return rows.sort_values("calls", kind="stable")


def duels(judges: list[Judge], best: Frame) -> Rows:
    """At each number of calls tAB against ρAB of the same degree, and the most accurate against the next."""
    found = []
    for calls, rows in best.groupby("calls"):
        by = {row["solver"]: row for row in rows.sort_values("error", kind="stable").to_dict("records")}
        first, second, *_ = by
        for claim, one, other in (*(("tab", *pair) for pair in zip(TAB, RHOAB, strict=True)), ("first", first, second)):
            row = {"part": "duel", "calls": calls, "claim": claim, "solver": one, "second": other}
            found.append(row | duel(judges, by[one], by[other]))
    return found


def errors(frame: Frame) -> Frame:
    """(model, calls) × solver: the errors by which solvers are ranked, each on its best grid."""
    best = ranked(frames.at(frame, part="ours", best=True))
    found = best.pivot(index=["model", "calls"], columns="solver", values="error")
    return found.reindex(best.model.unique(), level="model")[list(VARIANTS)]


def by_rms(frame: Frame) -> Frame:
    """The same by RMS over all samples, flipped or not."""
    rows = frames.at(frame, part="ours")
    return rows.pivot_table(index=["model", "calls"], columns="solver", values="rms", aggfunc="min")


def ahead(found: Frame) -> int:
    """In how many cells tAB has a smaller error than ρAB of the same degree."""
    return int((found[TAB].to_numpy() < found[RHOAB].to_numpy()).sum())


def surely(frame: Frame, claim: str) -> int:
    """In how many duels of a claim the first is ahead beyond the 95 % band and with every seed."""
    return int(distinct(frames.at(frame, part="duel", claim=claim)).sum())


def verdict(frame: Frame, config: Config) -> str:
    """The table's two messages; what is left of the second at the most calls; who is most accurate how often."""
    found, calls = errors(frame), config["calls"]
    few, many = (found.xs(count, level="calls") for count in (min(calls), max(calls)))
    behind = few[RUNGE_KUTTA].gt(few.ddim, axis=0).to_numpy()
    first = many[RUNGE_KUTTA].lt(many[TAB].min(axis=1), axis=0).to_numpy()
    winners = found.idxmin(axis=1).value_counts()
    return (
        f"tAB beats ρAB of equal degree in {ahead(found)} of {found[TAB].size} cells, each on its best grid, beyond "
        f"band and seeds in {surely(frame, 'tab')} ({ahead(by_rms(frame))} by RMS over all samples); ρRK loses to DDIM "
        f"at {min(calls)} calls in {behind.sum()} of {behind.size}, and is ahead of every tAB at {max(calls)} in "
        f"{first.sum()}; most accurate is {winners.index[0]}, in {winners.iloc[0]} of {len(found)} rows; the first is "
        f"distinct in {surely(frame, 'first')}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Above the mean over models, with numbers; below a panel per model. Rows: calls. Columns: variants."""
    found, fids = errors(frame), frames.at(frame, part="published").sort_values("calls")
    ratios = found.div(found.min(axis=1), axis=0)
    mean = np.exp(np.log(ratios).groupby(level="calls").mean()).to_numpy()
    names, calls = [str(name) for name in ratios.index.unique("model")], [f"{n} calls" for n in config["calls"]]
    said = ", ".join(f"{fid:g} ({int(n)})" for n, fid in zip(fids.calls, fids.fid, strict=True))
    note = (
        f"RMS error, of images over samples that do not flip, on the best grid, over the least of the row: 1 is best, "
        f"white {int(DEEPEST)}. {style.setting(config)}, {studies.how_many(config)}. Above: geometric mean of models; "
        f"dot: least, *: distinct, by band and {studies.how_many_seeds(config)}. ρRK takes up to 3 calls more, as in "
        f"the paper. Of the paper's FIDs (CIFAR-10) only tAB3's are confirmed: {said}."
    )
    top, block = 0.5 + 0.24 * len(calls), 0.3 + 0.17 * len(calls)
    height = top + 0.8 + block * -(-len(names) // COLUMNS)
    fig = panels.sheet(verdict(frame, config).split(", beyond")[0], note, height)
    edges: dict[str, Any] = {"bottom": 0.05, "left": 0.6, "right": 0.1, "extra_top": 0.0}
    (ax,), _ = panels.small_multiples(fig, [""], 1, begin=0.3 / height, end=(top - 0.1) / height, **edges)
    texts, least = [[style.as_text(value) for value in row] for row in mean], mean == mean.min(axis=1, keepdims=True)
    panels.shaded(ax, np.log(mean) / np.log(DEEPEST), list(VARIANTS.values()), calls, texts, least)
    titles = [panels.short(name) for name in names]
    axes, _ = panels.small_multiples(fig, titles, COLUMNS, begin=(top + 0.8) / height, hspace=0.3, wspace=0.06, **edges)
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        own, sure = ratios.loc[name].to_numpy(), distinct(frames.at(frame, part="duel", claim="first", model=name))
        marks = np.where(own == 1, np.where(sure, "*", "•")[:, None], "")
        panels.shaded(ax, np.log(own) / np.log(DEEPEST), list(VARIANTS.values()), calls, marks)
        ax.tick_params(axis="x", labelrotation=90, pad=1, labeltop=i < COLUMNS)
        ax.tick_params(axis="y", labelleft=not i % COLUMNS)
    return fig
