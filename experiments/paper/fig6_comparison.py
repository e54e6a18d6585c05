"""Which sampler wins on which model, on its customary and on its best grid? The paper's fig. 6, extended."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style, units
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import FLIPPED, Judge, apart, mean_square, ranked, ratio
from experiments.models import studies
from experiments.models.problems import steps_for
from experiments.models.studies import Study

NAME = "fig6_comparison"
QUESTION = "Which sampler is most accurate at 5 to 50 model calls on which model, and is the winner distinct?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "seeds": [0, 1, 2],
    "customary": {
        "ddim": "rho7",
        "analytic_ddim": "t1",
        "f_pndm": "t1",
        "ipndm4": "rho7",
        "tab3": "t2",
        "rhoab3": "rho7",
        "dpm_2": "logrho",
        "dpm_fast": "logrho",
        "dpmpp_2m": "logrho",
        "dpmpp_3m": "logrho",
        "unipc3_bh2_x0": "logrho",
        "edm_heun": "rho7",
    },
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "calls": [5, 7, 10, 15, 20, 30, 50],
    "ranked_at": [5, 10, 20],
    "moment_samples": 128,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 6: FID on image models, a list we are not sure of; here other models",
        "customary": "of the diff-sampler code (ddim, ipndm4, tab3, dpmpp, unipc, edm), else of the papers",
        "analytic_ddim": "own moments of model and data; x0 not clipped; no path error, as it draws noise",
        "calls": "most whole steps that cost at most so many calls",
    },
}
TOLERANCES = FLIPPED
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture", "digits", "network"], "kept": [],
                 "calls": [5, 10], "ranked_at": [5, 10], "grids": ["t2", "rho7", "logrho"],
                 "moment_samples": 64}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "kept": [], "samples": 2048,
                    "calls": [5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50],
                    "moment_samples": 1024}  # fmt: skip
COLUMNS, NAMED, DEEPEST = 3, 6, 20.0  # panels in a row, lines with names, ratio of the lightest shade
CHOICES = ("customary", "best")
ANALYTIC = "analytic_ddim"
REPRODUCED = "diff-sampler: CIFAR-10, EDM's network"  # its grids are those of `customary`, for dpm_2 rho7
DPM_V3 = "DPM-Solver-v3, table 1: CIFAR-10, VPSDE"
PUBLISHED: dict[str, dict[int, dict[str, float]]] = {  # source → calls → FID of 50,000 samples
    REPRODUCED: {
        5: {"ddim": 49.66, "tab3": 14.39, "dpmpp_3m": 24.97, "unipc3_bh2_x0": 23.98, "ipndm4": 13.59},
        10: {"ddim": 15.69, "tab3": 4.09, "dpmpp_3m": 3.00, "unipc3_bh2_x0": 2.89, "ipndm4": 2.77, "dpm_2": 5.01,
             "edm_heun": 15.93},
    },
    DPM_V3: {20: {"tab3": 2.86, "dpmpp_3m": 2.90, "unipc3_bh2_x0": 2.73}},
}  # fmt: skip


def table(study: Study, solver: str, ts: Array, config: Config) -> da.Tableau:
    """A registry solver in terms of ε; Analytic-DDIM with Γ_t of the study's own model and data."""
    if solver != ANALYTIC:
        return da.build(solver, study.process, ts).in_terms_of(study.process, "eps")
    return da.analytic_dpm(study.process, ts, moments(study, ts, config), 0.0, name=ANALYTIC)


def moments(study: Study, ts: Array, config: Config) -> Array:
    """(N,) Γ_t at the times but the last, of the study's model on a few of its data."""
    import torch

    rng = np.random.default_rng(config["seed"])
    few = study.data[rng.choice(len(study.data), config["moment_samples"], replace=False)]
    few = torch.as_tensor(few, device=study.x_T.device)
    return da.moment_estimate(study.model, ts, few, process=study.process, seed=config["seed"] + 1)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (solver, grid, calls), "duel" (winner against runner-up), "reference" and "published"."""

    def rows_of(name: str, progress: Progress) -> Rows:
        study = studies.study(name, config)
        judge = Judge(study, config)
        rows: Rows = [judge.reference]
        squares: dict[tuple[int, str], dict[str, tuple[Array, str]]] = {}
        swept = _swept(judge, progress)
        for solver in config["customary"]:
            rows += _analytic(judge) if solver == ANALYTIC else _solver(solver, swept[solver], config, squares)
        judges = judge.with_seeds()
        return rows + [_duel(judges, *key, by) for key, by in squares.items() if len(by) > 1]

    ours = by_model(NAME, config, rows_of, progress)
    return pd.concat([ours, pd.DataFrame(published_rows(config))], ignore_index=True)


def published_rows(config: Config) -> list[dict[str, Any]]:
    """FIDs of other people on another model, at the numbers of calls that are ranked here."""
    return [
        {"model": "published: another model", "part": "published", "solver": solver, "calls": calls, "fid": fid,
         "source": source}
        for source, by_calls in PUBLISHED.items() for calls, fids in by_calls.items() if calls in config["ranked_at"]
        for solver, fid in fids.items() if solver in config["customary"]
    ]  # fmt: skip


def _steps(solver: str, calls: int) -> int:
    # the registry counts whole blocks of three; the paper's rule is made for any number
    return calls if solver == "dpm_fast" else steps_for(solver, calls)


def _swept(judge: Judge, progress: Progress) -> dict[str, Rows]:
    """Solver → its cells: on the customary grid at all numbers of calls, on all grids where solvers are ranked."""
    config, customary = judge.config, judge.config["customary"]

    def grids(solver: str, calls: int) -> list[str]:
        return [customary[solver], *(config["grids"] if calls in config["ranked_at"] else ())]

    solvers = [solver for solver in customary if solver != ANALYTIC]
    rows = cells.sweep(
        judge.study, solvers, grids, config["calls"], lambda x: {**judge.row(x), "squares": judge.counted(x)},
        steps=_steps, progress=progress,
    )  # fmt: skip
    return {solver: [row for row in rows if row["solver"] == solver] for solver in solvers}


def _solver(solver: str, rows: Rows, config: Config, squares: dict[tuple[int, str], Any]) -> Rows:
    """Rows of a solver; its squared errors are filed under (calls, "customary" or "best")."""
    own = config["customary"][solver]
    for calls in config["ranked_at"]:
        tried = {row["grid"]: row["squares"] for row in rows if row["calls"] == calls}
        if tried:
            best = min(tried, key=lambda kind: mean_square(tried[kind]))
            for choice, kind in zip(CHOICES, (own, best), strict=True):
                squares.setdefault((calls, choice), {})[solver] = (tried[kind], kind)
    kept = [{name: value for name, value in row.items() if name != "squares"} for row in rows]
    return [{"part": "error", "customary": row["grid"] == own, **row} for row in kept]


def _analytic(judge: Judge) -> Rows:
    """Rows of Analytic-DDIM, which draws noise and has no path error; its table is the model's, not the registry's."""
    study, config, rows = judge.study, judge.config, []
    kind, drawn = config["customary"][ANALYTIC], units.noises(study, 0, len(study.x_T))
    for calls in config["calls"]:
        steps = steps_for(ANALYTIC, calls)
        method = table(study, ANALYTIC, da.grid(study.process, steps, kind, config["t_start"], config["t_end"]), config)
        x = da.run(method, study.model, study.x_T, drawn)
        where = {"solver": ANALYTIC, "grid": kind, "calls": calls, "steps": steps, "nfe": method.nfe}
        rows.append({"part": "error", "customary": True, **where, **judge.row(x, False)})
    return rows


def _duel(judges: list[Judge], calls: int, choice: str, by: dict[str, tuple[Array, str]]) -> dict[str, Any]:
    """The most accurate solver against the next: the ratio of their errors, its 95 % band and its range over seeds."""
    first, second = sorted(by, key=lambda solver: mean_square(by[solver][0]))[:2]
    seed, grids = judges[0].config["seed"], (by[first][1], by[second][1])
    found, low, high = ratio(by[first][0], by[second][0], seed)
    others = [found]
    for judge in judges[1:]:
        a, b = (
            judge.counted(_end(judge.study, s, calls, kind)) for s, kind in zip((first, second), grids, strict=True)
        )
        others.append(ratio(a, b, seed)[0])
    return {"part": "duel", "calls": calls, "choice": choice, "solver": first, "grid": grids[0], "second": second,
            "ratio": found, "low": low, "high": high, "least": min(others), "most": max(others)}  # fmt: skip


def _end(study: Study, solver: str, calls: int, kind: str) -> Any:
    """(n, d) where a solver takes a study's samples."""
    (cell,) = cells.plan(study, [solver], [kind], [calls], steps=_steps)
    return study.solve(solver, np.array(cell.times))


# -- what was found -------------------------------------------------------------------------------
def ranking(frame: Frame, model: str, calls: int, choice: str) -> Frame:
    """Solvers by ``error``, see `judging.ranked`, at a number of calls: on the customary grid, or each on its best."""
    rows = ranked(frame[(frame.part == "error") & (frame.model == model) & (frame.calls == calls)])
    if choice == "customary":
        rows = rows[rows.customary.astype(bool)]
    rows = rows[rows.error.notna()].sort_values("error")
    return rows.groupby("solver", sort=False).head(1).set_index("solver")


def nearest(frame: Frame, model: str, calls: int) -> tuple[str, int, int]:
    """The solver nearest to the data in energy distance, on customary grids; bands of others apart from it; others."""
    rows = frame[(frame.part == "error") & (frame.model == model) & (frame.calls == calls)]
    rows = rows[rows.customary.astype(bool)].sort_values("law")
    return str(rows.solver.iloc[0]), int((rows.law_low > rows.law_high.iloc[0]).sum()), len(rows) - 1


def _won(duel: Any) -> str:
    """The winner and by how much the runner-up is behind; "or" where the two cannot be told apart."""
    return f"{duel.solver} by {style.as_text(1 / duel.ratio)}x" if distinct(duel) else f"{duel.solver} or {duel.second}"


def distinct(duel: Any) -> Any:
    """Whether the first is ahead of the next beyond the 95 % band, and with every seed; of one duel or of many."""
    return (duel.high < 1) & (duel.most < 1)


def published(frame: Frame, calls: int) -> Any:
    """Solver → FID as published at a number of calls."""
    rows = frame[(frame.part == "published") & (frame.calls == calls)]
    return rows.set_index("solver").fid


def agreement(frame: Frame, model: str, calls: int) -> tuple[float, float, int]:
    """Spearman's correlation of path errors on customary grids with the published FIDs, its one-sided p over all
    permutations, and of how many samplers."""
    from scipy.stats import rankdata, spearmanr

    fid, ours = published(frame, calls), ranking(frame, model, calls, "customary").error
    common = [solver for solver in fid.index if solver in ours.index]
    a, b = rankdata(ours[common]), rankdata(fid[common])
    chance = np.array(list(itertools.permutations(a))) @ b
    return float(spearmanr(a, b).statistic), float(np.mean(chance >= a @ b - 1e-9)), len(common)


def titles(frame: Frame) -> dict[str, str]:
    """Model → printed name."""
    return dict(frame[frame.part == "reference"].set_index("model").title)


def wins(frame: Frame, choice: str) -> Any:
    """Solver → in how many cases it is the distinct winner on grids of a choice; most first."""
    duels = frame[(frame.part == "duel") & (frame.choice == choice)]
    return duels[distinct(duels)].solver.value_counts()


def told_flips(frame: Frame, model: str, calls: int) -> str:
    """The share of flips of the most accurate solver, and the least share where another one has it."""
    rows = ranking(frame, model, calls, "customary").flips
    first, fewest = str(rows.index[0]), str(rows.idxmin())
    least = f", {fewest} {rows[fewest]:.0%}" if rows[fewest] < rows[first] else ""
    return f"{first} {rows[first]:.0%}{least}"


def by_rms(frame: Frame, model: str, calls: int) -> str:
    """The solver of least RMS over all samples, flipped or not, on customary grids."""
    return str(ranking(frame, model, calls, "customary").rms.idxmin())


def _most(frame: Frame) -> str:
    """Who wins distinctly how often on customary grids, and how often on the best ones."""
    own, best = (wins(frame, choice) for choice in CHOICES)
    cases = int((frame[frame.part == "duel"].choice == CHOICES[0]).sum())
    if not len(own):
        return f"On customary grids no sampler is a distinct winner in any of {cases} cases"
    first = str(own.index[0])
    return (
        f"On customary grids {first} is the distinct winner in {own.iloc[0]} of {cases} cases, on each sampler's best "
        f"grid in {best.get(first, 0)}"
    )


def verdict(frame: Frame, config: Config) -> str:
    """In how many cases a winner is distinct, who wins at a middle number of calls, and who is nearest in law."""
    duels, at_calls, names = frame[frame.part == "duel"], sorted(config["ranked_at"]), list(titles(frame))
    few, calls = at_calls[0], at_calls[len(at_calls) // 2]
    at = duels[duels.calls == calls].set_index(["model", "choice"])
    won = "; ".join(f"{name}: {', '.join(_won(at.loc[(name, choice)]) for choice in CHOICES)}" for name in names)
    laws = [nearest(frame, name, few) for name in names]
    alike = [agreement(frame, name, calls) for name in names]
    first = {name: str(ranking(frame, name, calls, "customary").index[0]) for name in names if apart(name)}
    flipped = "; ".join(f"{told_flips(frame, name, calls)} on {name}" for name in first)
    others = [f"{other} on {name}" for name, solver in first.items() if (other := by_rms(frame, name, calls)) != solver]
    return (
        f"{_most(frame)}; by path error, of images over samples that do not flip, the winner is distinct (95 %, and "
        f"with each of {studies.how_many_seeds(config)}) in {int(distinct(duels).sum())} of {len(duels)} cases; at "
        f"{calls} calls ({', '.join(CHOICES)} grids) {won}; there flips of the first, and of the one with fewest, are "
        f"{flipped}; by RMS over all samples {', '.join(others) or 'no other sampler'} would be first; nearest in law "
        f"at {few} calls {', '.join(solver for solver, _, _ in laws)}, apart from "
        f"{', '.join(str(n) for _, n, _ in laws)} of "
        f"{laws[0][2]} others; Spearman with published FIDs (another model, {alike[0][2]} samplers, {calls} calls) "
        f"{', '.join(f'{rho:.2f}' for rho, _, _ in alike)}."
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Above a panel per model: errors on customary grids. Below the ranking at a middle number of calls, both ways."""
    names, calls = titles(frame), sorted(config["ranked_at"])[len(config["ranked_at"]) // 2]
    alike = [agreement(frame, name, calls) for name in names]
    note = (
        "RMS path error, of images over samples that do not flip (end at another one's place), "
        f"{style.setting(config)}; {studies.how_many(config)}, 95 % bands; as many whole steps as the calls allow. "
        f"Flips: at {calls} calls. Table: error over the least of its column at {calls} calls, customary grid (beside "
        f"the name) and best of {', '.join(config['grids'])}; *: ahead of the next by the 95 % band, and with each of "
        f"{studies.how_many_seeds(config)}. Last column: FID as published for another model (diff-sampler: CIFAR-10, "
        f"EDM's network); Spearman of our customary columns with it {min(a[0] for a in alike):.2f} to "
        f"{max(a[0] for a in alike):.2f}, {alike[0][2]} samplers."
    )
    order, errors = _order(frame, names, calls), ranked(frame[frame.part == "error"])
    rows, table = -(-len(names) // COLUMNS), 0.75 + 0.185 * len(order)
    height = 0.6 + 1.65 * rows + table
    fig = panels.sheet(_most(frame), note, height)
    inner = height - 0.95
    axes, _ = panels.small_multiples(
        fig, [panels.short(name) for name in names], COLUMNS, extra_top=0.5, end=(inner - table) / inner
    )
    for ax, name in zip(axes, names, strict=True):
        own = errors[(errors.model == name) & errors.error.notna()]
        _curves(ax, own[own.customary.astype(bool)], order[:NAMED])
        if apart(name):
            panels.words(ax, 0.03, 0.03, f"flips: {told_flips(frame, name, calls)}", ha="left")
    smallest = errors.error.min()
    axes[0].set(yscale="log", ylim=(max(0.6 * smallest, 1e-6), 1.5))
    panels.calls_axis(axes, [c for c in (5, 10, 20, 50) if c <= max(config["calls"])])
    fig.supylabel("path error", fontsize=8.5, x=0.012, y=axes[-1].get_position().y1)
    panels.key(fig, axes[0])
    (ax,), _ = panels.small_multiples(
        fig, [""], 1, extra_top=0.5, left=1.5, bottom=0.05, begin=(inner - table + 0.95) / (inner + 0.37)
    )
    _table(ax, frame, names, order, calls, config)
    return fig


def _order(frame: Frame, names: dict[str, str], calls: int) -> list[str]:
    """Solvers by their mean rank over models on customary and on best grids."""
    ranks = [ranking(frame, name, calls, choice).error.rank() for name in names for choice in CHOICES]
    return [str(solver) for solver in pd.concat(ranks, axis=1).mean(axis=1).sort_values().index]


def _curves(ax: Any, own: Frame, named: list[str]) -> None:
    """The named solvers with their bands, the others thin and grey."""
    for solver, part in own.groupby("solver", sort=False):
        part = part.sort_values("nfe").drop_duplicates("nfe")
        if solver not in named:
            ax.plot(part.nfe, part.error, color="#cfcfcf", lw=0.8, zorder=1)
    for solver in named:
        part = own[own.solver == solver].sort_values("nfe").drop_duplicates("nfe")
        panels.curve(ax, part.nfe, part.error, part.error_low, part.error_high, label=solver, **style.look(solver))


def _table(ax: Any, frame: Frame, names: dict[str, str], order: list[str], calls: int, config: Config) -> None:
    columns = [(name, choice) for name in names for choice in CHOICES]
    duels = frame[(frame.part == "duel") & (frame.calls == calls)].set_index(["model", "choice"])
    fid = published(frame, calls)
    ratios = pd.DataFrame({c: (rank := ranking(frame, c[0], calls, c[1]).error) / rank.min() for c in columns}).loc[
        order
    ]
    texts = [[style.as_text(ratios[c][s]) + "*" * bool(ratios[c][s] == 1 and distinct(duels.loc[c])) for c in columns]
             for s in order]  # fmt: skip
    depths = [[math.log(ratios[c][s]) / math.log(DEEPEST) for c in columns] for s in order]
    for y, solver in enumerate(order):
        depths[y].append(None)  # type: ignore[arg-type]
        texts[y].append(f"{fid[solver]:.2f}" if solver in fid.index else "–")
    heads = [{"customary": "usual", "best": "best"}[choice] for _, choice in columns] + ["FID"]
    bold = [[*(ratios[c][s] == 1 for c in columns), False] for s in order]
    panels.shaded(ax, depths, heads, [f"{s} ({config['customary'][s]})" for s in order], texts, bold)
    for i, name in enumerate(names):
        ax.text(2 * i + 0.5, -1.45, panels.short(name), ha="center", va="bottom", fontsize=panels.TICKS)
    for tick, solver in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(style.family(solver)[0])
