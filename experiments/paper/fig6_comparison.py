"""Which sampler wins on which model, on its customary and on its best grid? The paper's fig. 6, extended."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style, units
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at, span
from experiments.core.judging import FLIPPED, Judge, apart, best, distinct, duel, measured, middle, ranked
from experiments.models import studies
from experiments.models.problems import steps_for
from experiments.models.studies import Study

NAME = "fig6_comparison"
QUESTION = "Which sampler is most accurate at 5 to 50 model calls on which model, and is the winner distinct?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", *studies.IMAGES], "kept": studies.IMAGES,
    "seeds": [0, 1, 2], "calls": [5, 7, 10, 15, 20, 30, 50], "ranked_at": [5, 10, 20],
    "customary": {
        "ddim": "rho7", "analytic_ddim": "t1", "f_pndm": "t1", "ipndm4": "rho7", "tab1": "t2", "tab2": "t2",
        "tab3": "t2", "rhoab2": "rho7", "rhoab3": "rho7", "dpm_2": "logrho", "dpm_fast": "logrho",
        "dpmpp_2m": "logrho", "dpmpp_3m": "logrho", "unipc2_bh2_x0": "logrho", "unipc3_bh2_x0": "logrho",
        "edm_heun": "rho7",
    },
    "grids": ["t1", "t2", "t3", "rho7", "logrho"], "moment_samples": 128,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 6: FID on image models, a list we are not sure of; here other models",
        "customary": "of the diff-sampler code (ddim, ipndm4, tab3, dpmpp, unipc, edm), else of the papers",
        "analytic_ddim": "own moments of model and data; x0 not clipped; no path error, as it draws noise",
    },
}  # fmt: skip
TOLERANCES = FLIPPED
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits", "network"], "kept": [], "calls": [5, 10],
                 "ranked_at": [5, 10], "grids": ["t2", "rho7", "logrho"], "moment_samples": 64}  # fmt: skip
THOROUGH: Config = {"models": [*studies.MODELS], "kept": [], "samples": 2048, "moment_samples": 1024,
                    "calls": [*CONFIG["calls"], 6, 8, 12, 25, 40]}  # fmt: skip
COLUMNS, NAMED, DEEPEST = 3, 6, 20.0  # panels in a row, lines with names, ratio of the lightest shade
CHOICES = {"customary": "usual", "best": "best"}  # and how the table prints them
ANALYTIC = "analytic_ddim"
PUBLISHED: dict[tuple[str, int], dict[str, float]] = {  # (source, calls) → FID of 50,000 samples
    ("diff-sampler: CIFAR-10, EDM's network", 5): {  # its grids are those of `customary`, for dpm_2 rho7
        "ddim": 49.66, "tab3": 14.39, "dpmpp_3m": 24.97, "unipc3_bh2_x0": 23.98, "ipndm4": 13.59,
    },
    ("diff-sampler: CIFAR-10, EDM's network", 10): {
        "ddim": 15.69, "tab3": 4.09, "dpmpp_3m": 3.00, "unipc3_bh2_x0": 2.89, "ipndm4": 2.77, "dpm_2": 5.01,
        "edm_heun": 15.93,
    },
    ("DPM-Solver-v3, table 1: CIFAR-10, VPSDE", 20): {"tab3": 2.86, "dpmpp_3m": 2.90, "unipc3_bh2_x0": 2.73},
}  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (solver, grid, calls), "duel" (winner against runner-up), "reference" and "published"."""
    solvers = list(config["customary"])

    def steps(solver: str, calls: int) -> int:  # whole blocks of three by the registry; the paper's rule has any number
        return calls if solver == "dpm_fast" else steps_for(solver, calls)

    def rows_of(name: str, progress: Progress) -> Rows:
        judges = Judge(studies.study(name, config), config).with_seeds()
        judge, known = judges[0], {solver: config["customary"][solver] for solver in solvers if solver != ANALYTIC}
        rows = cells.customary(judge.study, known, config["grids"], config, judge.cell, steps=steps, progress=progress)
        duels = _duels(judges, pd.DataFrame(rows))
        rows = sorted([*rows, *_analytic(judge)], key=lambda row: solvers.index(row["solver"]))
        return [judge.reference, *rows, *duels]

    ours = by_model(NAME, config, rows_of, progress).drop(columns=["squares", "error"])
    return pd.concat([ours, pd.DataFrame(published_rows(config))], ignore_index=True)


def published_rows(config: Config) -> Rows:
    """FIDs of other people on another model, at the numbers of calls that are ranked here."""
    return [
        {"model": "published: another model", "part": "published", "solver": solver, "calls": calls, "fid": fid,
         "source": source}
        for (source, calls), fids in PUBLISHED.items() if calls in config["ranked_at"]
        for solver, fid in fids.items() if solver in config["customary"]
    ]  # fmt: skip


def _duels(judges: list[Judge], rows: Frame) -> Rows:
    """The most accurate solver against the next, where solvers are ranked: on customary grids, and each on its best."""
    found = []
    for calls, choice in itertools.product(judges[0].config["ranked_at"], CHOICES):
        order = best(_chosen(at(rows, calls=calls), choice)).reset_index().to_dict("records")
        if len(order) > 1:
            a, b = order[:2]
            won = {"calls": calls, "choice": choice, "solver": a["solver"], "grid": a["grid"], "second": b["solver"]}
            found.append({"part": "duel", **won, **duel(judges, a, b)})
    return found


def _chosen(rows: Frame, choice: str) -> Frame:
    return rows[rows.customary.astype(bool)] if choice == "customary" else rows


def _analytic(judge: Judge) -> Rows:
    """Rows of Analytic-DDIM, which draws noise and has no path error; its table is the model's, not the registry's."""
    study, config, rows = judge.study, judge.config, []
    kind, drawn = config["customary"][ANALYTIC], units.noises(study, 0, len(study.x_T))
    for calls in config["calls"]:
        ts = da.grid(study.process, calls, kind, config["t_start"], config["t_end"])
        method = da.analytic_dpm(study.process, ts, moments(study, ts, config), 0.0, name=ANALYTIC)
        x = da.run(method, study.model, study.x_T, drawn)
        rows.append({"part": "error", "customary": True, "solver": ANALYTIC, "grid": kind, "calls": calls,
                     "steps": calls, "nfe": method.nfe, **judge.row(x, False)})  # fmt: skip
    return rows


def moments(study: Study, ts: Array, config: Config) -> Array:
    """(N,) Γ_t at the times but the last, of the study's model on a few of its data."""
    import torch

    rng = np.random.default_rng(config["seed"])
    chosen = rng.choice(len(study.data), config["moment_samples"], replace=False)
    few = torch.as_tensor(study.data[chosen], device=study.x_T.device)
    return da.moment_estimate(study.model, ts, few, process=study.process, seed=config["seed"] + 1)


def ranking(frame: Frame, model: str, calls: int, choice: str) -> Frame:
    """Solvers by ``error``, see `judging.ranked`, at a number of calls: on the customary grid, or each on its best."""
    return best(_chosen(ranked(at(frame, part="error", model=model, calls=calls)), choice))


def agreement(frame: Frame, model: str, calls: int) -> tuple[float, int]:
    """Spearman's correlation of path errors on customary grids with the published FIDs, and of how many samplers."""
    fid, ours = published(frame, calls), ranking(frame, model, calls, "customary").error
    return float(fid.corr(ours, method="spearman")), len(fid.index.intersection(ours.index))


def published(frame: Frame, calls: int) -> Any:
    """Solver → FID as published at a number of calls."""
    return at(frame, part="published", calls=calls).set_index("solver").fid


def told_flips(frame: Frame, model: str, calls: int) -> str:
    """The share of flips of the most accurate solver, and the least share where another one has it."""
    rows = ranking(frame, model, calls, "customary").flips
    first, fewest = str(rows.index[0]), str(rows.idxmin())
    least = f", {fewest} {rows[fewest]:.0%}" if rows[fewest] < rows[first] else ""
    return f"{first} {rows[first]:.0%}{least}"


def verdict(frame: Frame, config: Config) -> str:
    """Who is the distinct winner how often, on both kinds of grids, and how far FIDs as published rank alike."""
    duels, calls = at(frame, part="duel"), middle(config)
    sure, said, best_too = duels[distinct(duels)], "no sampler is a distinct winner in any", ""
    own = at(sure, choice="customary").solver.value_counts()
    if len(own):
        said = f"{own.index[0]} is the distinct winner in {own.iloc[0]}"
        best_too = f", on each sampler's best grid in {len(at(sure, choice='best', solver=own.index[0]))}"
    alike = [agreement(frame, name, calls) for name in at(frame, part="reference").model]
    return (
        f"On customary grids {said} of {len(at(duels, choice='customary'))} cases{best_too}; a winner is distinct (95 "
        f"% band, every seed) in {len(sure)} of {len(duels)} cases; Spearman with published FIDs of another model "
        f"({alike[0][1]} samplers, {calls} calls) is {span(rho for rho, _ in alike)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Above a panel per model: errors on customary grids. Below the ranking at a middle number of calls, both ways."""
    names, calls = {name: panels.short(name) for name in at(frame, part="reference").model}, middle(config)
    found = pd.DataFrame({(name, choice): ranking(frame, name, calls, choice).error
                          for name in names for choice in CHOICES})  # fmt: skip
    order = [str(solver) for solver in found.rank().mean(axis=1).sort_values(kind="stable").index]
    note = (
        f"{measured(config)} Flips, and table: at {calls} calls; error over the least of its column, usual grid "
        f"(beside the name) and best of {', '.join(config['grids'])}; *: ahead of the next by band and "
        f"{studies.how_many_seeds(config)}. FID: as published for CIFAR-10."
    )
    table, curves = 0.75 + 0.185 * len(order), 1.05 + 1.55 * -(-len(names) // COLUMNS)
    fig = panels.sheet(re.split("; |, on", verdict(frame, config))[0], note, curves + table)
    errors = ranked(_chosen(at(frame, part="error"), "customary"))
    axes = panels.lines(
        fig, errors, names, COLUMNS, x="nfe", y="error", names=order[:NAMED], band=("error_low", "error_high"),
        ticks=[c for c in (5, 10, 20, 50) if c <= max(config["calls"])], ylabel="path error", bottom=table + 0.5,
    )  # fmt: skip
    axes[0].set_ylim(max(0.6 * errors.error.min(), 1e-6), 1.5)
    for ax, name in zip(axes, names, strict=True):
        if apart(name):
            panels.words(ax, 0.03, 0.03, f"flips: {told_flips(frame, name, calls)}", ha="left")
    (ax,), _ = panels.small_multiples(fig, [""], 1, extra_top=curves + 0.35, left=1.5, bottom=0.05)
    _table(ax, frame, found.loc[order] / found.min(), calls, config)
    for i, name in enumerate(names.values()):
        ax.text(2 * i + 0.5, -1.45, name, ha="center", va="bottom", fontsize=panels.TICKS)
    return fig


def _table(ax: Any, frame: Frame, ratios: Frame, calls: int, config: Config) -> None:
    least, fids = ratios.eq(1), published(frame, calls).reindex(ratios.index).map("{:.2f}".format, na_action="ignore")
    sure = distinct(at(frame, part="duel", calls=calls).set_index(["model", "choice"])).reindex(ratios.columns)
    texts = ratios.map(style.as_text) + (least & sure.eq(True)).map(lambda star: "*" * bool(star))
    depths = np.column_stack([np.log(ratios) / math.log(DEEPEST), [None] * len(fids)])
    texts, bold = np.column_stack([texts, fids.fillna("–")]), np.column_stack([least, [False] * len(fids)])
    rows = [f"{solver} ({config['customary'][solver]})" for solver in ratios.index]
    panels.shaded(ax, depths, [*(CHOICES[choice] for _, choice in ratios.columns), "FID"], rows, texts, bold)
    for tick, solver in zip(ax.get_yticklabels(), ratios.index, strict=True):
        tick.set_color(style.family(solver)[0])
