"""The DEIS paper's table 2 on models with a known truth: which variant at which number of calls, on its best grid?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.judging import Judge
from experiments.models import studies

NAME = "table2_variants"
QUESTION = "Do DDIM and the variants of DEIS rank on known models as they do in the paper's table 2?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits", "network"],
    "used": 64,
    "calls": [5, 10, 12, 15, 20, 50],
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "permutations": 4999,
    "bootstrap": 400,
    "choices": {
        "source": "Zhang & Chen 2023, table 2: FID on CIFAR-10; here RMS path error and law on other models",
        "steps": "ceil(calls / stages), the surplus printed as +k, as in the paper",
        "grid": "least RMS path error on the samples used, cell by cell",
        "end": "t_end = 1e-3 in every cell; which of 1e-3 and 1e-4 the paper took in which cell is not known",
        "12 calls": "no published row",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "used": 64, "calls": [5, 10], "grids": ["t2", "rho7"], "permutations": 499,
                 "bootstrap": 50}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048, "used": 2048,
                    "permutations": 99999, "bootstrap": 2000}  # fmt: skip
STAGES = {
    "ddim": 1, "rhork_2heun": 2, "rhork_3kutta": 3, "rhork_4rk": 4, "rhoab1": 1, "rhoab2": 1, "rhoab3": 1,
    "tab1": 1, "tab2": 1, "tab3": 1,
}  # fmt: skip
PRINTED = ("DDIM", "ρ2Heun", "ρ3Kutta", "ρ4RK", "ρAB1", "ρAB2", "ρAB3", "tAB1", "tAB2", "tAB3")
PUBLISHED = {
    5: (26.91, 108, 185, 193, 22.28, 21.53, 21.43, 19.72, 16.31, 15.37),
    10: (11.14, 14.72, 13.19, 28.65, 7.56, 6.72, 6.50, 6.09, 4.57, 4.17),
    15: (7.06, 4.89, 4.88, 6.88, 4.69, 4.16, 3.99, 4.29, 3.57, 3.37),
    20: (5.47, 3.50, 3.51, 3.92, 3.70, 3.32, 3.17, 3.54, 3.05, 2.86),
    50: (3.27, 2.60, 2.56, 2.57, 2.70, 2.62, 2.59, 2.67, 2.59, 2.57),
}  # FID, Zhang & Chen 2023, table 2: CIFAR-10, VPSDE; columns as in STAGES
QUOTED = "tab3"  # the column that later papers quote; the others are as recalled
MEASURES = ("rms", "law")


def steps_of(solver: str, calls: int) -> tuple[int, int]:
    """(steps, surplus): as many whole steps as reach ``calls`` model calls, and how many more they cost."""
    stages = STAGES[solver]
    steps = -(-calls // stages)
    return steps, steps * stages - calls


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "ours" (cells, one per grid), "published" (FID), "rank" (Spearman, per measure) and "reference"."""
    rows = _published(config)
    share = 1.0 / len(config["models"])
    for done, name in enumerate(config["models"]):
        study = studies.study(name, config)
        judge = Judge(study, config, config["used"])
        rows.append({"part": "reference", "model": name, "title": study.title, "rms": judge.estimate})
        known: dict[tuple[str, str, int], Any] = {}
        for i, calls in enumerate(config["calls"]):
            cells, squares = _cells(judge, calls, known)
            rows += [{"model": name, **cell} for cell in cells]
            if calls in PUBLISHED:
                best = [cell for cell in cells if cell["best"]]
                rows += [{"model": name, "calls": calls, **row} for row in _ranks(best, squares, calls, config)]
            progress(share * (done + (i + 1) / len(config["calls"])))
    return pd.DataFrame(rows)


def _published(config: Config) -> list[dict[str, Any]]:
    return [
        {"part": "published", "model": "published: CIFAR-10, VPSDE", "solver": solver, "calls": calls,
         "surplus": steps_of(solver, calls)[1], "fid": float(fid),
         "source": "Zhang & Chen 2023, table 2, " + ("as quoted" if solver == QUOTED else "as recalled")}
        for calls, row in PUBLISHED.items() if calls in config["calls"]
        for solver, fid in zip(STAGES, row, strict=True)
    ]  # fmt: skip


def _cells(judge: Judge, calls: int, known: dict[Any, Any]) -> tuple[list[dict[str, Any]], Array]:
    """Rows of all solvers and grids at a number of calls; (10, n) squared errors on the best grids."""
    config, study, rows, kept = judge.config, judge.study, [], []
    for solver in STAGES:
        steps, surplus = steps_of(solver, calls)
        for kind in config["grids"]:
            if (solver, kind, steps) not in known:
                ts = da.grid(study.process, steps, kind, config["t_start"], config["t_end"])
                x = da.run(da.build(solver, study.process, ts), study.model, judge.study.x_T)
                known[solver, kind, steps] = judge.row(x), judge.squares(x)
        best = min(config["grids"], key=lambda kind: known[solver, kind, steps][0]["rms"])
        for kind in config["grids"]:
            rows.append({"part": "ours", "solver": solver, "calls": calls, "surplus": surplus, "steps": steps,
                         "grid": kind, "best": kind == best, **known[solver, kind, steps][0]})  # fmt: skip
        kept.append(known[solver, best, steps][1])
    return rows, np.array(kept)


def spearman(ours: Array, published: Array) -> Array:
    """Spearman's rank correlation along the last axis, ties at their mean rank."""
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=-1) for v in (ours, published))
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    return np.asarray((a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1)))


def _ranks(best: list[dict[str, Any]], squares: Array, calls: int, config: Config) -> list[dict[str, Any]]:
    """Rank correlation with the published row: one-sided permutation p; for path errors a bootstrap band."""
    fid, rng = np.array(PUBLISHED[calls], dtype=float), np.random.default_rng(config["seed"])
    shuffled = rng.permuted(np.tile(fid, (config["permutations"], 1)), axis=1)
    index = rng.integers(0, squares.shape[1], (config["bootstrap"], squares.shape[1]))
    again = spearman(squares[:, index].mean(axis=-1).T, np.tile(fid, (config["bootstrap"], 1)))
    rows = []
    for measure in MEASURES:
        values = np.array([cell[measure] for cell in best])
        found = float(spearman(values, fid))
        chance = spearman(np.tile(values, (len(shuffled), 1)), shuffled)
        p = (1 + int((chance >= found - 1e-12).sum())) / (1 + len(shuffled))
        low, high = np.quantile(again, [0.025, 0.975]) if measure == "rms" else (math.nan, math.nan)
        rows.append({"part": "rank", "measure": measure, "spearman": found, "low": low, "high": high, "p": p})
    return rows


# -- what was found -------------------------------------------------------------------------------
def cells(frame: Frame, model: str) -> Frame:
    """The best cell of each solver and number of calls on a model."""
    rows = frame[(frame.part == "ours") & (frame.model == model)]
    return rows[rows.best.astype(bool)]


def findings(frame: Frame) -> dict[str, dict[str, Any]]:
    """Per model: how often tAB is better than ρAB and RK worse than DDIM, and the rank correlations."""
    found = {}
    for row in frame[frame.part == "reference"].itertuples():
        at = cells(frame, row.model).pivot(index="calls", columns="solver", values="rms")
        ranks = frame[(frame.part == "rank") & (frame.model == row.model)]
        tab = np.array([at[f"tab{r}"] < at[f"rhoab{r}"] for r in (1, 2, 3)])
        kutta = at[["rhork_2heun", "rhork_3kutta", "rhork_4rk"]].to_numpy()
        found[str(row.model)] = {
            "title": row.title,
            "tab": (int(tab.sum()), tab.size),
            "fewest": int(at.index[0]),
            "most": int(at.index[-1]),
            "bad": int((kutta[0] > at.ddim.iloc[0]).sum()),
            "rk_last": int((kutta[-1] < at[["tab1", "tab2", "tab3"]].iloc[-1].min()).sum()),
            "winners": {int(calls): str(errors.idxmin()) for calls, errors in at.iterrows()},
            "ranks": {m: ranks[ranks.measure == m].set_index("calls") for m in MEASURES},
        }
    return found


def verdict(frame: Frame, config: Config) -> str:
    """The rank correlation with the published table by path error and by law, and the table's two messages."""
    found = findings(frame)
    ranks = {m: [f["ranks"][m] for f in found.values()] for m in MEASURES}
    path = ", ".join(f"{r.spearman.min():.2f} to {r.spearman.max():.2f}" for r in ranks["rms"])
    law = [v for r in ranks["law"] for v in r.spearman]
    sure = {m: f"{sum(int((r.p < 0.05).sum()) for r in rows)} of {sum(map(len, rows))}" for m, rows in ranks.items()}
    tab, bad = np.sum([f["tab"] for f in found.values()], axis=0), sum(f["bad"] for f in found.values())
    return (
        f"The published ranking of 10 variants returns in path errors with Spearman {path} ({', '.join(found)}; "
        f"p < 0.05 in {sure['rms']}), by law {min(law):.2f} to {max(law):.2f} ({sure['law']}); tAB beats ρAB of equal "
        f"degree in {tab[0]} of {tab[1]} cells, DDIM ρRK at {next(iter(found.values()))['fewest']} calls in {bad} of "
        f"{3 * len(found)}."
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Blocks: the published table, then ours per model with the rank correlations beside each row."""
    found = findings(frame)
    bounds = [r for f in found.values() for r in f["ranks"]["rms"].spearman]
    p = [v for f in found.values() for v in f["ranks"]["rms"].p]
    headline = (
        f"The published ranking returns in path errors with Spearman {min(bounds):.2f} to {max(bounds):.2f}; "
        f"beyond chance (p < 0.05) in {sum(v < 0.05 for v in p)} of {len(p)} rows"
    )
    note = (
        f"Ours: RMS path error × 1000, {style.setting(config)}, {studies.how_many(config)}, each cell on its best of "
        f"{', '.join(config['grids'])} (small: which). +k: surplus calls, as in the paper. Shade: factor to the row's "
        "least (bold). Right: Spearman correlation with the published row, by path error [95 % over samples] and by "
        "excess energy distance to the data (where laws differ by less than the noise of sampling it means nothing), "
        "with permutation p, grey from 0.05. Published: FID on another model, Zhang & Chen 2023, table 2; column tAB3 "
        "as quoted by later papers, the others as recalled." + studies.whose_law(config)
    )
    rows = [len([c for c in PUBLISHED if c in config["calls"]]), *([len(config["calls"])] * len(found))]
    height = 1.75 + 0.43 * sum(rows) + 0.75 * len(rows)
    fig = style.new_figure(14.5, height, headline, note)
    margins = style.body(fig, bottom=0.15, left=0.75, right=3.1, extra_top=0.65)
    axes = fig.subplots(len(rows), 1, squeeze=False, gridspec_kw={**margins, "hspace": 0.75 / 0.43 / np.mean(rows),
                                                                 "height_ratios": rows})[:, 0]  # fmt: skip
    published = frame[frame.part == "published"]
    _block(axes[0], published.assign(value=published.fid, grid=""), "Published FID: CIFAR-10, VPSDE (another model)")
    for ax, (model, f) in zip(axes[1:], found.items(), strict=True):
        own = cells(frame, model)
        _block(ax, own.assign(value=1e3 * own.rms), f"Ours, {f['title']}: RMS path error × 1000")
        _correlations(ax, list(dict.fromkeys(own.calls)), f["ranks"])
    return fig


def _block(ax: Any, rows: Frame, title: str) -> None:
    calls, solvers = list(dict.fromkeys(rows.calls)), list(STAGES)
    cmap = style.matplotlib.colormaps["Blues_r"]
    least = rows.groupby("calls").value.min()
    for row in rows.itertuples():
        x, y = solvers.index(row.solver), calls.index(row.calls)
        depth = min(math.log(row.value / least[row.calls]) / math.log(20.0), 1.0)
        ax.add_patch(style.plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=cmap(0.45 + 0.53 * depth), lw=0))
        number = f"{row.value:.2f}" if row.value < 100 and not row.grid else style.as_text(row.value)
        ink = {"color": "white" if depth < 0.12 else "#222222", "va": "center"}
        surplus = f"$^{{+{int(row.surplus)}}}$" if row.surplus else ""
        ax.text(x - (0.1 if row.grid else 0), y, f"{number}{surplus}", ha="center", fontsize=10,
                fontweight="bold" if row.value == least[row.calls] else "normal", **ink)  # fmt: skip
        ax.text(x + 0.45, y + 0.2, row.grid, ha="right", fontsize=7.5, **ink)
    ax.set(xlim=(-0.5, len(solvers) - 0.5), ylim=(len(calls) - 0.5, -0.5))
    ax.set_title(title, loc="left", fontsize=11, pad=24)
    ax.set_xticks(range(len(solvers)), PRINTED, fontsize=9.5)
    ax.set_yticks(range(len(calls)), [f"{int(c)} calls" for c in calls], fontsize=9.5)
    ax.xaxis.tick_top()
    for tick, solver in zip(ax.get_xticklabels(), solvers, strict=True):
        tick.set_color(style.family(solver)[0])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _correlations(ax: Any, calls: list[int], ranks: dict[str, Any]) -> None:
    transform = ax.get_yaxis_transform()
    ax.text(1.015, -0.75, "by path", transform=transform, fontsize=9, color="#555555", va="center")
    ax.text(1.2, -0.75, "by law", transform=transform, fontsize=9, color="#555555", va="center")
    for y, c in enumerate(calls):
        for measure, x in zip(MEASURES, (1.015, 1.2), strict=True):
            if c not in ranks[measure].index:
                ax.text(x, y, "not published" if measure == "rms" else "", transform=transform, fontsize=8.5,
                        color="#999999", va="center")  # fmt: skip
                continue
            r = ranks[measure].loc[c]
            band = f" [{r.low:.2f}, {r.high:.2f}]" if measure == "rms" else ""
            chance = f"p {r.p:.3f}" if r.p >= 0.001 else "p < 0.001"
            ax.text(x, y, f"{r.spearman:.2f}{band}  {chance}", transform=transform, fontsize=9, va="center",
                    color=style.BLACK if r.p < 0.05 else "#999999")  # fmt: skip
