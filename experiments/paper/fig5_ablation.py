"""What does each ingredient gain? Euler, + EI, + ε, + polynomial, + time grid, beside others: the paper's fig. 5."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.black_box import black_box
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at, span
from experiments.core.judging import FLIPPED, Judge, distinct, duel, measured, ranked
from experiments.models import studies
from experiments.models.studies import Study

NAME = "fig5_ablation"
QUESTION = "What does each ingredient of DEIS gain on the path error, and how far do black-box and SDE solvers come?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", *studies.IMAGES], "kept": studies.IMAGES,
    "seeds": [0, 1, 2], "calls": [5, 7, 10, 14, 20, 28, 40], "compared_at": 10, "rk45": [1e-1, 1e-2, 1e-3, 1e-4],
    "grid": "t1", "grids": ["t1", "t2", "t3", "rho7", "logrho"], "euler_maruyama": [10, 20, 40, 80, 160],
    "adaptive_sde": {
        "rtol": [0.5, 0.1, 0.05], "atol": 0.0078, "first": 0.01, "exponent": 0.9, "safety": 0.9, "most_calls": 20000,
        "batch": "one step size for all samples; on rejection the noise is drawn again; no denoising at the end",
    },
    "choices": {
        "source": "Zhang & Chen 2023, fig. 5, FID on CIFAR-10; of its numbers we know no certain source",
        "adaptive_sde": "Jolicoeur-Martineau et al. 2021; the tolerances of the paper's runs are not known",
    },
}  # fmt: skip
TOLERANCES = FLIPPED
QUICK: Config = {
    **studies.BASE_QUICK, "models": ["mixture", "digits", "network"], "kept": [], "grids": ["t1", "t2", "logrho"],
    "calls": [5, 10], "rk45": [1e-1, 1e-2], "euler_maruyama": [20, 80],
    "adaptive_sde": {**CONFIG["adaptive_sde"], "rtol": [0.5]},
}  # fmt: skip
THOROUGH: Config = {"models": [*studies.MODELS], "kept": [], "samples": 2048, "calls": [*CONFIG["calls"], 80, 160, 320],
                    "euler_maruyama": [*CONFIG["euler_maruyama"], 320, 640, 1000]}  # fmt: skip
LADDER = {"Euler": "euler", "+ EI": "ei_score", "+ ε": "ddim", "+ polynomial": "tab3", "+ time grid": "tab3"}
STEPS, TOP = tuple(LADDER)[1:], "+ time grid"
RK45, EM, ADAPTIVE = "RK45", "Euler–Maruyama", "adaptive SDE"
COLUMNS = 3


def adaptive_sde(study: Study, config: Config, rtol: float) -> tuple[Any, int]:
    """(samples, calls) of the adaptive solver of the reverse SDE: improved Euler, Euler's difference as error.

    With a = f x + g² ε/σ: x' = x − h a(x, t) + √h g(t) z, x̃ = x − h a(x', t−h) + √h g(t−h) z, accepted is ½(x' + x̃) if
    the RMS of ½(x' − x̃)/max(atol, rtol |x'|, rtol |x'_prev|) is E ≤ 1; then h ← min(t − t₀, θ h E^{-r}).
    [Jolicoeur-Martineau et al. 2021, algorithm 1]  One step size for all samples, so that E hardly depends on z.
    """
    import torch

    def slope(x: Any, t: float) -> Any:
        ratio = float(process.diffusion_squared(t)) / float(process.sigma(t))
        return float(process.drift(t)) * x + ratio * study.model(x, t)

    s, process, rng = config["adaptive_sde"], study.process, np.random.default_rng(config["seed"])
    x, t, h, calls, previous = study.x_T, config["t_start"], s["first"], 0, study.x_T
    while t > config["t_end"]:
        noise = torch.as_tensor(rng.standard_normal(tuple(x.shape)), device=x.device) * math.sqrt(h)
        end = max(t - h, config["t_end"])
        first, second = (math.sqrt(process.diffusion_squared(time)) * noise for time in (t, end))
        euler = x - h * slope(x, t) + first
        second = x - h * slope(euler, end) + second
        calls += 2
        if calls > s["most_calls"]:
            raise RuntimeError(f"the adaptive SDE solver stands at t = {t:.3g} after {calls} calls, rtol={rtol:g}")
        scale = torch.clamp(rtol * torch.maximum(abs(euler), abs(previous)), min=s["atol"])
        error = float(((0.5 * (euler - second) / scale) ** 2).mean().sqrt())
        if error <= 1:
            x, t, previous = 0.5 * (euler + second), end, euler
        h = min(t - config["t_end"], s["safety"] * h * max(error, 1e-6) ** -s["exponent"])
    return x, calls


def _others(study: Study, config: Config) -> Iterator[tuple[str, Any, int, dict[str, Any]]]:
    """(method, samples, calls, its setting) of the samplers beside the ladder."""
    for tolerance in config["rk45"]:
        found = black_box(study, "t", config["t_start"], config["t_end"], tolerance)
        yield RK45, study.x_T.new_tensor(found["x"]), found["nfe"], {"tolerance": tolerance}
    for steps in config["euler_maruyama"]:
        ts = da.grid(study.process, steps, config["grid"], config["t_start"], config["t_end"])
        yield EM, study.solve("euler_maruyama", ts, config["seed"]), steps, {"grid": config["grid"]}
    for tolerance in config["adaptive_sde"]["rtol"]:
        yield ADAPTIVE, *adaptive_sde(study, config, tolerance), {"tolerance": tolerance}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "run" (a method and its cost), "gain" (a rung's error over that of the one before), "reference"."""

    grids = {solver: [config["grid"]] for solver in LADDER.values()} | {LADDER[TOP]: [config["grid"], *config["grids"]]}

    def rows_of(name: str, progress: Progress) -> Rows:
        judges = Judge(studies.study(name, config), config).with_seeds()
        judge = judges[0]
        tried = cells.sweep(judge.study, grids, lambda solver, _: grids[solver], config["calls"], judge.cell,
                            progress=lambda share: progress(0.6 * share))  # fmt: skip
        rows: Rows = [judge.reference]
        for calls in config["calls"]:
            few = judges if calls == config["compared_at"] else [judge]
            rows += _ladder([row for row in tried if row["calls"] == calls], few)
        for method, x, nfe, setting in _others(judge.study, config):
            rows.append({"part": "run", "method": method, "nfe": nfe, **setting, **judge.row(x, method == RK45)})
        return rows

    return by_model(NAME, config, rows_of, progress).drop(columns=["calls", "steps", "squares", "error"])


def _ladder(tried: Rows, judges: list[Judge]) -> Rows:
    """The five methods at a number of calls, the last on the grid of least error, and what each step gains."""
    uniform = [row for row in tried if row["grid"] == judges[0].config["grid"]]
    top = min((row for row in tried if row["solver"] == LADDER[TOP]), key=lambda row: row["error"])
    runs = [{"part": "run", "method": name, **row} for name, row in zip(LADDER, [*uniform, top], strict=True)]
    return runs + [
        {"part": "gain", **{key: after[key] for key in ("method", "grid", "nfe")}, **duel(judges, after, before)}
        for before, after in itertools.pairwise(runs)
    ]


def leader(frame: Frame, config: Config) -> tuple[str, Frame]:
    """(the step with the smallest factor on most models at the compared calls, its factors there)."""
    ratios = at(frame, part="gain", nfe=config["compared_at"]).pivot(index="model", columns="method", values="ratio")
    least = ratios.idxmin(axis=1)
    step = str(least.value_counts().index[0])
    return step, ratios[step][least == step]


def keeping_up(frame: Frame, config: Config, method: str) -> str:
    """Fewest calls, over models, with the path error of the ladder's top, or with samples whose law is near enough."""
    runs = ranked(at(frame, part="run"))
    top = at(runs, method=TOP, nfe=config["compared_at"]).set_index("model").error
    near = (runs.law_low <= 0) & (runs.law_high >= 0)
    good = at(runs[runs.error <= runs.model.map(top) if method == RK45 else near], method=method)
    return span(good.groupby("model").nfe.min().reindex(top.index, fill_value=math.inf))


def verdict(frame: Frame, config: Config) -> str:
    """Which step gains most, how often each helps, and with how many calls others keep up with the ladder's top."""
    calls, (step, factors) = config["compared_at"], leader(frame, config)
    gains = at(frame, part="gain", nfe=calls)
    helps = ", ".join(f"{distinct(at(gains, method=each)).sum()} ({each})" for each in STEPS)
    rk, em, adaptive = (keeping_up(frame, config, method) for method in (RK45, EM, ADAPTIVE))
    return (
        f"At {calls} calls {step} gains most on {len(factors)} of {frame.model.nunique()} models, ×{span(factors)} on "
        f"the path error; beyond band and seeds it falls on {helps}; RK45 is as accurate with {rk} calls; near the "
        f"exact law are {EM} with {em}, {ADAPTIVE} with {adaptive}."
    )


_LOOK: dict[str, dict[str, Any]] = {
    "Euler": {"color": style.GREY, "marker": "o"},
    "+ EI": {"color": style.GREY, "marker": "o", "linestyle": ":"},
    "+ ε": {"color": style.BLACK, "marker": "o"},
    "+ polynomial": {"color": style.SKY, "marker": "D", "markerfacecolor": "white"},
    TOP: {"color": style.BLUE, "marker": "D", "markerfacecolor": "white", "linewidth": 1.8},
    RK45: {"color": style.VERMILLION, "marker": "s", "markerfacecolor": "white"},
}


def draw(frame: Frame, config: Config) -> Figure:
    """Above a panel per step of the ladder: its factor, model by model. Below a panel per model: errors and calls."""
    note = (
        f"{measured(config)} Above: factor at {config['compared_at']} calls, blue where it helps; thin: "
        f"{studies.how_many_seeds(config)}. All on grid {config['grid']}, the last step on the best of "
        f"{', '.join(config['grids'])}. Polynomial: tAB3; RK45: scipy's."
    )
    names = {name: panels.short(name) for name in frame.model.unique()}
    above, below = 0.5 + 0.2 * len(names), 0.9 + 1.55 * -(-len(names) // COLUMNS)
    fig = panels.sheet(verdict(frame, config).split(", ×")[0], note, above + below)
    gains = at(frame, part="gain", nfe=config["compared_at"])
    axes, _ = panels.small_multiples(fig, STEPS, len(STEPS), bottom=below + 0.35, left=0.9)
    for ax, step in zip(axes, STEPS, strict=True):
        rows = at(gains, method=step)
        bands, seeds = (rows[columns].to_numpy() for columns in (["ratio", "low", "high"], ["least", "most"]))
        panels.intervals(ax, bands, [0.01, 0.1, 1], list(names.values()), outer=seeds)
        for y, row in enumerate(rows.itertuples()):
            text = style.as_text(row.ratio) + (f" {row.grid}" if step == TOP else "")
            place, shift, side = (row.low, -3, "right") if row.ratio > 1 else (row.high, 3, "left")
            ax.annotate(text, (place, y), xytext=(shift, 0), textcoords="offset points", ha=side, va="center",
                        fontsize=panels.SMALL)  # fmt: skip
        ax.tick_params(axis="y", labelleft=ax is axes[0])
    axes[0].set_xlim(0.5 * gains.low.min(), 3.0 * gains.high.max())  # room for the numbers
    panels.lines(
        fig, ranked(at(frame, part="run")), names, COLUMNS, x="nfe", y="error", line="method", look=_LOOK.__getitem__,
        names=list(_LOOK), band=("error_low", "error_high"), ticks=[5, 10, 20, 50, 100], ylabel="path error",
        extra_top=above + 0.5,
    )  # fmt: skip
    return fig
