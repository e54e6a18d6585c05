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
from experiments.core import style
from experiments.core.judging import Judge
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, noise, steps_for
from experiments.models.studies import Study

NAME = "fig6_comparison"
QUESTION = "Which sampler is most accurate at 5 to 50 model calls on which model, and is the winner distinct?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits", "network"],
    "samples": 256,
    "used": 96,
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
QUICK: Config = {**studies.BASE_QUICK, "used": 64, "calls": [5, 10], "ranked_at": [5, 10],
                 "grids": ["t2", "rho7", "logrho"], "moment_samples": 64}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048, "used": 2048,
                    "calls": [5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50],
                    "moment_samples": 1024}  # fmt: skip
CHOICES = ("customary", "best")
ANALYTIC = "analytic_ddim"
REPRODUCED = "diff-sampler: CIFAR-10, EDM's network"  # its grids are those of `customary`, for dpm_2 rho7
TABLE_2 = "Zhang & Chen 2023, table 2: CIFAR-10, VPSDE"
DPM_V3 = "DPM-Solver-v3, table 1: CIFAR-10, VPSDE"
PUBLISHED: dict[str, dict[int, dict[str, float]]] = {  # source → calls → FID of 50,000 samples
    REPRODUCED: {
        5: {"ddim": 49.66, "tab3": 14.39, "dpmpp_3m": 24.97, "unipc3_bh2_x0": 23.98, "ipndm4": 13.59},
        10: {"ddim": 15.69, "tab3": 4.09, "dpmpp_3m": 3.00, "unipc3_bh2_x0": 2.89, "ipndm4": 2.77, "dpm_2": 5.01,
             "edm_heun": 15.93},
    },
    DPM_V3: {20: {"tab3": 2.86, "dpmpp_3m": 2.90, "unipc3_bh2_x0": 2.73}},
    f"{TABLE_2}, as recalled": {20: {"ddim": 5.47, "rhoab3": 3.17}},
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


def _noise(study: Study, config: Config) -> Any:
    """l → the l-th noise of a table, standard normal of the shape of the starts."""
    import torch

    n, d = study.x_T.shape
    return lambda index: torch.as_tensor(noise(n, d, config["seed"] + 2 + index), device=study.x_T.device)


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (solver, grid, calls), "duel" (winner against runner-up), "reference" and "published"."""
    rows = published_rows(config)
    share = 1.0 / len(config["models"])
    for done, name in enumerate(config["models"]):
        study = studies.study(name, config)
        judge = Judge(study, config, config["used"])
        rows.append({"part": "reference", "model": name, "title": study.title, "rms": judge.estimate})
        squares: dict[tuple[int, str], dict[str, tuple[Array, str]]] = {}
        for i, solver in enumerate(config["customary"]):
            rows += [{"model": name, **row} for row in _solver(judge, solver, squares)]
            progress(share * (done + (i + 1) / len(config["customary"])))
        rows += [{"model": name, **_duel(*key, by, config["seed"])} for key, by in squares.items() if len(by) > 1]
    return pd.DataFrame(rows)


def published_rows(config: Config) -> list[dict[str, Any]]:
    """FIDs of other people on another model, at the numbers of calls that are ranked here."""
    return [
        {"part": "published", "model": "published: another model", "solver": solver, "calls": calls, "fid": fid,
         "source": source}
        for source, by_calls in PUBLISHED.items() for calls, fids in by_calls.items() if calls in config["ranked_at"]
        for solver, fid in fids.items() if solver in config["customary"]
    ]  # fmt: skip


def _solver(judge: Judge, solver: str, squares: dict[tuple[int, str], Any]) -> list[dict[str, Any]]:
    """Rows of a solver; its squared errors are filed under (calls, "customary" or "best")."""
    study, config, rows = judge.study, judge.config, []
    own = config["customary"][solver]
    for calls in config["calls"]:
        # the registry counts whole blocks of three; the paper's rule is made for any number
        steps, tried = calls if solver == "dpm_fast" else steps_for(solver, calls), {}
        if steps == 0:
            continue
        path = solver != ANALYTIC
        others = config["grids"] if path and calls in config["ranked_at"] else ()
        for kind in dict.fromkeys([own, *others]):
            ts = da.grid(study.process, steps, kind, config["t_start"], config["t_end"])
            method = table(study, solver, ts, config)
            x = da.run(method, study.model, study.x_T, _noise(study, config) if method.stochastic else None)
            rows.append({"part": "error", "solver": solver, "grid": kind, "customary": kind == own, "calls": calls,
                         "steps": steps, "nfe": method.nfe, **judge.row(x, path)})  # fmt: skip
            if path:
                tried[kind] = judge.squares(x)
        if tried and calls in config["ranked_at"]:
            best = min(tried, key=lambda kind: float(tried[kind].mean()))
            for choice, kind in zip(CHOICES, (own, best), strict=True):
                squares.setdefault((calls, choice), {})[solver] = (tried[kind], kind)
    return rows


def _duel(calls: int, choice: str, by: dict[str, tuple[Array, str]], seed: int) -> dict[str, Any]:
    """The most accurate solver against the next, with a 95 % band of the ratio of their errors."""
    first, second = sorted(by, key=lambda solver: float(by[solver][0].mean()))[:2]
    a, b = by[first][0], by[second][0]
    low, high = bootstrap_ratio(a, b, seed)
    return {"part": "duel", "calls": calls, "choice": choice, "solver": first, "grid": by[first][1], "second": second,
            "ratio": float(np.sqrt(a.mean() / b.mean())), "low": low, "high": high}  # fmt: skip


# -- what was found -------------------------------------------------------------------------------
def ranking(frame: Frame, model: str, calls: int, choice: str) -> Frame:
    """Solvers by RMS path error at a number of calls: on the customary grid, or each on its best."""
    rows = frame[(frame.part == "error") & (frame.model == model) & (frame.calls == calls) & frame.rms.notna()]
    if choice == "customary":
        rows = rows[rows.customary.astype(bool)]
    return rows.sort_values("rms").groupby("solver", sort=False).head(1).set_index("solver")


def nearest(frame: Frame, model: str, calls: int) -> tuple[str, int, int]:
    """The solver nearest to the data in energy distance, on customary grids; bands of others apart from it; others."""
    rows = frame[(frame.part == "error") & (frame.model == model) & (frame.calls == calls)]
    rows = rows[rows.customary.astype(bool)].sort_values("law")
    return str(rows.solver.iloc[0]), int((rows.law_low > rows.law_high.iloc[0]).sum()), len(rows) - 1


def _won(duel: Any) -> str:
    """The winner and by how much the runner-up is behind; "or" where the two cannot be told apart."""
    return f"{duel.solver} by {style.as_text(1 / duel.ratio)}x" if duel.high < 1 else f"{duel.solver} or {duel.second}"


def published(frame: Frame, calls: int) -> Any:
    """Solver → FID as published at a number of calls."""
    rows = frame[(frame.part == "published") & (frame.calls == calls)]
    return rows.set_index("solver").fid


def agreement(frame: Frame, model: str, calls: int) -> tuple[float, float, int]:
    """Spearman's correlation of path errors on customary grids with the published FIDs, its one-sided p over all
    permutations, and of how many samplers."""
    from scipy.stats import rankdata, spearmanr

    fid, ours = published(frame, calls), ranking(frame, model, calls, "customary").rms
    common = [solver for solver in fid.index if solver in ours.index]
    a, b = rankdata(ours[common]), rankdata(fid[common])
    chance = np.array(list(itertools.permutations(a))) @ b
    return float(spearmanr(a, b).statistic), float(np.mean(chance >= a @ b - 1e-9)), len(common)


def titles(frame: Frame) -> dict[str, str]:
    """Model → printed name."""
    return dict(frame[frame.part == "reference"].set_index("model").title)


def verdict(frame: Frame, config: Config) -> str:
    """In how many cases a winner is distinct, who wins at a middle number of calls, and who is nearest in law."""
    duels, ranked, names = frame[frame.part == "duel"], sorted(config["ranked_at"]), list(titles(frame))
    few, calls = ranked[0], ranked[len(ranked) // 2]
    at = duels[duels.calls == calls].set_index(["model", "choice"])
    won = "; ".join(f"{name}: {', '.join(_won(at.loc[(name, choice)]) for choice in CHOICES)}" for name in names)
    laws = [nearest(frame, name, few) for name in names]
    alike = [agreement(frame, name, calls) for name in names]
    return (
        f"By RMS path error the winner is distinct in {int((duels.high < 1).sum())} of {len(duels)} cases; at {calls} "
        f"calls ({', '.join(CHOICES)} grids) {won}; nearest in law at {few} calls "
        f"{', '.join(solver for solver, _, _ in laws)}, apart from {', '.join(str(n) for _, n, _ in laws)} of "
        f"{laws[0][2]} others; Spearman with published FIDs (another model, {alike[0][2]} samplers, {calls} calls) "
        f"{', '.join(f'{rho:.2f}' for rho, _, _ in alike)}."
    )


# -- the figure -----------------------------------------------------------------------------------
def _look(solver: str) -> dict[str, Any]:
    return {**style.look(solver), **({"color": "#9A8B00", "markerfacecolor": "#9A8B00"} if solver == ANALYTIC else {})}


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: models. Path error and law on customary grids; table of errors on customary and best grids."""
    duels, names = frame[frame.part == "duel"], titles(frame)
    clear = duels[duels.high < 1]
    counts = clear.solver.value_counts()
    headline = (
        f"The most accurate sampler is distinct in {len(clear)} of {len(duels)} cases (model × calls × grid choice): "
        + (", ".join(f"{name} {count}" for name, count in counts.items()) if len(counts) else "none")
    )
    note = (
        f"{style.setting(config)}; {studies.how_many(config)}, 95 % bands. Curves: each sampler on its customary grid, "
        "with at most so many calls. Law: squared energy distance to the data less the exact flow's. Table: RMS path "
        f"error × 1000, customary grid | best of {', '.join(config['grids'])}; bold: least; *: distinct from the next "
        "best; grey: FID as published on another model (diff-sampler: CIFAR-10, EDM's network), with the rank "
        "correlation of our customary column. A-DDIM (analytic_ddim) draws noise: law only. f_pndm needs 13 calls."
        + studies.whose_law(config)
    )
    fig = style.new_figure(16.5, 1.7 + 4.4 * len(names), headline, note)
    margins = style.body(fig, bottom=0.55, left=0.75, right=0.15, extra_top=0.4)
    axes = fig.subplots(len(names), 3, squeeze=False, gridspec_kw={**margins, "wspace": 0.62, "hspace": 0.3,
                                                                 "width_ratios": [1.0, 0.8, 1.75]})  # fmt: skip
    for row, (model, title) in zip(axes, names.items(), strict=True):
        rows = frame[(frame.part == "error") & (frame.model == model)]
        own = rows[rows.customary.astype(bool)]
        _curves(row[0], own[own.rms.notna()], config)
        row[0].set_title(f"{title}: path error")
        _laws(row[1], own, config)
        _table(row[2], frame, model, config)
    for ax in axes[-1, :2]:
        ax.set_xlabel("model calls (NFE)")
    return fig


def _lines(ax: Any, own: Frame, config: Config, values: tuple[str, ...]) -> None:
    value, low, high = (*values, "", "")[:3]
    ends = []
    for solver, part in own.groupby("solver", sort=False):
        part = part.sort_values("nfe").drop_duplicates("nfe")
        look = {**_look(str(solver)), "linewidth": 1.6, "markersize": 4.5}
        if low:
            ax.fill_between(part.nfe, part[low], part[high], color=look["color"], alpha=0.07, lw=0)
        ax.plot(part.nfe, part[value], **look)
        label = "A-DDIM" if solver == ANALYTIC else str(solver)
        ends.append((part.nfe.iloc[-1], part[value].iloc[-1], label, look["color"]))
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, [c for c in config["calls"] if c not in (7, 15)])
    ax.set_xlim(own.nfe.min() * 0.93, own.nfe.max() * 1.04)
    style.end_labels(ax, [end for end in ends if low or end[2] == "A-DDIM"], 8.5)


def _curves(ax: Any, own: Frame, config: Config) -> None:
    ax.set_yscale("log")
    ax.set_ylim(max(own.rms.min() * 0.6, 1e-6), min(own.rms.max() * 1.4, 3.0))
    ax.set_ylabel("RMS path error")
    _lines(ax, own, config, ("rms", "low", "high"))


def _laws(ax: Any, own: Frame, config: Config) -> None:
    ax.set_yscale("symlog", linthresh=3e-3, linscale=0.8)
    ax.set_ylim(-0.02, min(own.law.max() * 1.3, 1.0))
    ticks = {-0.01: "−0.01", 0.0: "0", 0.01: "0.01", 0.1: "0.1", 1.0: "1"}
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.yaxis.set_minor_locator(style.matplotlib.ticker.NullLocator())
    ax.axhline(0.0, color="#333333", lw=1.0, ls="--")
    ax.set_title("law: excess energy distance²")
    _lines(ax, own, config, ("law",))


def _table(ax: Any, frame: Frame, model: str, config: Config) -> None:
    """Errors × 1000; shade: factor to the least of the column, up to 30."""
    columns = [(calls, choice) for calls in config["ranked_at"] for choice in CHOICES]
    ranks = {column: ranking(frame, model, *column) for column in columns}
    solvers = [s for s in config["customary"] if s != ANALYTIC]
    middle = ranks[(config["ranked_at"][len(config["ranked_at"]) // 2], "best")]
    order = [*middle.index, *(s for s in solvers if s not in middle.index)]
    duels = frame[(frame.part == "duel") & (frame.model == model)].set_index(["calls", "choice"])
    cmap = style.matplotlib.colormaps["Blues_r"]
    for x, column in enumerate(columns):
        rank = ranks[column]
        for y, solver in enumerate(order):
            if solver not in rank.index:
                ax.text(x, y, "–", ha="center", va="center", color="#999999", fontsize=9)
                continue
            at, first = rank.loc[solver], rank.index[0] == solver
            depth = min(math.log(at.rms / rank.rms.iloc[0]) / math.log(30.0), 1.0)
            shade = cmap(0.45 + 0.53 * depth)
            ax.add_patch(style.plt.Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=shade, lw=0))
            star = "*" if first and duels.high[column] < 1 else ""
            grid = f"  {at.grid}" if column[1] == "best" else ""
            ax.text(x, y, f"{style.as_text(1e3 * at.rms)}{star}{grid}", ha="center", va="center", fontsize=8.8,
                    fontweight="bold" if first else "normal", color="white" if depth < 0.12 else "#222222")  # fmt: skip
    heads = [f"{calls} calls\n{choice}" for calls, choice in columns]
    heads.append(_published_column(ax, frame, model, order, config))
    ax.set(xlim=(-0.5, len(heads) - 0.5), ylim=(len(order) - 0.5, -0.5))
    ax.set_xticks(range(len(heads)), heads, fontsize=9)
    ax.set_yticks(range(len(order)), [f"{s} ({config['customary'][s]})" for s in order], fontsize=9)
    for tick, solver in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(_look(solver)["color"])
    ax.xaxis.tick_top()
    ax.get_xticklabels()[-1].set_color("#777777")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _published_column(ax: Any, frame: Frame, model: str, order: list[str], config: Config) -> str:
    """Published FIDs in grey, right of our columns; the head of the column."""
    calls = sorted(config["ranked_at"])[len(config["ranked_at"]) // 2]
    fid, (rho, p, count) = published(frame, calls), agreement(frame, model, calls)
    x = 2 * len(config["ranked_at"])
    for y, solver in enumerate(order):
        text = f"{fid[solver]:.2f}" if solver in fid.index else "–"
        ax.text(x, y, text, ha="center", va="center", fontsize=8.8, color="#777777" if text != "–" else "#BBBBBB")
    ax.text(x + 0.48, len(order) - 0.35, f"Spearman of {calls} calls, customary, with published ({count} samplers): "
            f"{rho:.2f}, p {p:.2g}", ha="right", va="top", fontsize=8.8, color="#777777")  # fmt: skip
    return f"{calls} calls\npublished"
