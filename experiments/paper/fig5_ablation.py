"""What does each ingredient gain? Euler, + EI, + ε, + polynomial, + time grid, beside others: the paper's fig. 5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.judging import Judge, banded, law_terms
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio
from experiments.models.studies import Study

NAME = "fig5_ablation"
QUESTION = "What does each ingredient of DEIS gain, by path and by law, and how far do black-box solvers come?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits", "network"],
    "used": 128,
    "calls": [5, 7, 10, 14, 20, 28, 40],
    "compared_at": 10,
    "grid": "t1",
    "grids": ["t1", "t2", "t3", "rho7", "logrho"],
    "rk45": [1e-1, 1e-2, 1e-3, 1e-4],
    "euler_maruyama": [10, 20, 40, 80, 160],
    "adaptive_sde": {
        "rtol": [0.5, 0.1, 0.05],
        "atol": 0.0078,
        "first": 0.01,
        "exponent": 0.9,
        "safety": 0.9,
        "most_calls": 20000,
        "batch": "one step size for all samples; on rejection the noise is drawn again; no denoising at the end",
    },
    "choices": {
        "source": "Zhang & Chen 2023, fig. 5, FID on CIFAR-10; here path error and energy distance on other models",
        "ladder": "uniform in t (grid) up to the last rung, which is on the best of grids at each number of calls",
        "polynomial": "degree 3; the paper's tAB3",
        "published": "none beside ours: of the figure's numbers we know no certain source",
        "rk45": "rtol = atol",
        "adaptive_sde": "Jolicoeur-Martineau et al. 2021; the tolerances of the paper's runs are not known",
    },
}
QUICK: Config = {
    **studies.BASE_QUICK,
    "used": 64,
    "calls": [5, 10],
    "grids": ["t1", "t2", "logrho"],
    "rk45": [1e-1, 1e-2],
    "euler_maruyama": [20, 80],
    "adaptive_sde": {**CONFIG["adaptive_sde"], "rtol": [0.5]},
}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 2048,
    "used": 2048,
    "calls": [5, 7, 10, 14, 20, 28, 40, 80, 160, 320],
    "rk45": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "euler_maruyama": [10, 20, 40, 80, 160, 320, 640, 1000],
    "adaptive_sde": {**CONFIG["adaptive_sde"], "rtol": [0.5, 0.1, 0.05, 0.02, 0.01]},
}
LADDER = {"Euler": "euler", "+ EI": "ei_score", "+ ε": "ddim", "+ polynomial": "tab3", "+ time grid": "tab3"}
STEPS = tuple(LADDER)[1:]
RK45, EM, ADAPTIVE = "RK45", "Euler–Maruyama", "adaptive SDE"


# -- the other samplers ---------------------------------------------------------------------------
def rk45(study: Study, config: Config, tolerance: float) -> tuple[Any, int]:
    """(samples, model calls) of scipy's RK45 on dx/dt = f x + g²/(2σ) ε, all samples as one state, rtol = atol.

    Score SDE's black-box sampler (Song et al. 2021).
    """
    import torch
    from scipy.integrate import solve_ivp

    process, start = study.process, study.x_T

    def slope(t: float, flat: Array) -> Array:
        x = torch.as_tensor(flat.reshape(start.shape), device=start.device)
        half = float(process.diffusion_squared(t)) / (2.0 * float(process.sigma(t)))
        return np.asarray((float(process.drift(t)) * x + half * study.model(x, t)).cpu()).ravel()

    times = (config["t_start"], config["t_end"])
    found = solve_ivp(slope, times, start.cpu().numpy().ravel(), "RK45", rtol=tolerance, atol=tolerance)
    return torch.as_tensor(found.y[:, -1].reshape(start.shape), device=start.device), int(found.nfev)


def adaptive_sde(study: Study, config: Config, rtol: float) -> tuple[Any, int]:
    """(samples, model calls) of the adaptive solver of the reverse SDE: improved Euler, Euler's difference as error.

    With a = f x + g² ε/σ: x' = x − h a(x, t) + √h g(t) z, x̃ = x − h a(x', t−h) + √h g(t−h) z, accepted is ½(x' + x̃) if
    the RMS of ½(x' − x̃)/max(atol, rtol |x'|, rtol |x'_prev|) is E ≤ 1; then h ← min(t − t₀, θ h E^{-r}).
    [Jolicoeur-Martineau et al. 2021, algorithm 1]  There a step size per sample, here one for all: over so many
    numbers E hardly depends on z, so that drawing z again on rejection biases nothing.
    """
    import torch

    s, process = config["adaptive_sde"], study.process
    rng = np.random.default_rng(config["seed"])
    x, t, h, calls = study.x_T, config["t_start"], s["first"], 0
    previous = x
    while t > config["t_end"]:
        z = torch.as_tensor(rng.standard_normal(tuple(x.shape)), device=x.device) * math.sqrt(h)
        end = max(t - h, config["t_end"])

        def move(y: Any, at: float, x: Any = x, h: float = h, z: Any = z) -> Any:
            g2 = float(process.diffusion_squared(at))
            slope = float(process.drift(at)) * y + g2 / float(process.sigma(at)) * study.model(y, at)
            return x - h * slope + math.sqrt(g2) * z

        euler = move(x, t)
        second = move(euler, end)
        calls += 2
        if calls > s["most_calls"]:
            raise RuntimeError(f"the adaptive SDE solver stands at t = {t:.3g} after {calls} calls, rtol={rtol:g}")
        scale = torch.clamp(rtol * torch.maximum(abs(euler), abs(previous)), min=s["atol"])
        error = float(((0.5 * (euler - second) / scale) ** 2).mean().sqrt())
        if error <= 1:
            x, t, previous = 0.5 * (euler + second), end, euler
        h = min(t - config["t_end"], s["safety"] * h * max(error, 1e-6) ** -s["exponent"])
    return x, calls


def _others(study: Study, config: Config) -> Iterator[tuple[dict[str, Any], Any, bool]]:
    """(columns, samples, whether they end a path) of the samplers beside the ladder."""
    for tolerance in config["rk45"]:
        x, nfe = rk45(study, config, tolerance)
        yield {"method": RK45, "nfe": nfe, "tolerance": tolerance}, x, True
    for steps in config["euler_maruyama"]:
        table = da.build("euler_maruyama", study.process, _grid(study, config, config["grid"], steps))
        x = da.run(table, study.model, study.x_T, config["seed"])
        yield {"method": EM, "nfe": table.nfe, "grid": config["grid"]}, x, False
    for tolerance in config["adaptive_sde"]["rtol"]:
        x, nfe = adaptive_sde(study, config, tolerance)
        yield {"method": ADAPTIVE, "nfe": nfe, "tolerance": tolerance}, x, False


# -- all numbers ----------------------------------------------------------------------------------
def _grid(study: Study, config: Config, kind: str, steps: int) -> Array:
    return da.grid(study.process, steps, kind, config["t_start"], config["t_end"])


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "run" (one per method and cost), "gain" (ladder step, ratio of errors) and "reference"."""
    rows: list[dict[str, Any]] = []
    share = 1.0 / len(config["models"])
    for done, name in enumerate(config["models"]):
        study = studies.study(name, config)
        judge = Judge(study, config, config["used"])
        rows.append({"part": "reference", "model": name, "title": study.title, "rms": judge.estimate})
        for i, calls in enumerate(config["calls"]):
            rows += [{"model": name, **row} for row in _ladder(judge, calls)]
            progress(share * (done + 0.6 * (i + 1) / len(config["calls"])))
        for columns, x, path in _others(judge.study, config):
            rows.append({"part": "run", "model": name, **columns, **judge.row(x, path)})
        progress(share * (done + 1))
    return pd.DataFrame(rows)


def _ladder(judge: Judge, calls: int) -> list[dict[str, Any]]:
    """The five methods at a number of calls, the last on the grid of least RMS, and what each step gains."""
    study, config = judge.study, judge.config
    results = {method: study.solve(solver, _grid(study, config, config["grid"], calls))
               for method, solver in list(LADDER.items())[:-1]}  # fmt: skip
    last = tuple(LADDER)[-1]
    on = {kind: results["+ polynomial"] if kind == config["grid"] else
          study.solve(LADDER[last], _grid(study, config, kind, calls)) for kind in config["grids"]}  # fmt: skip
    best = min(on, key=lambda kind: float(judge.squares(on[kind]).mean()))
    results[last] = on[best]
    rows: list[dict[str, Any]] = []
    for method, x in results.items():
        grid = best if method == last else config["grid"]
        rows.append({"part": "run", "method": method, "solver": LADDER[method], "grid": grid, "nfe": calls,
                     **judge.row(x)})  # fmt: skip
    terms = {method: law_terms(x, judge.data) for method, x in results.items()}
    for before, after in zip(list(LADDER)[:-1], STEPS, strict=True):
        a, b = judge.squares(results[after]), judge.squares(results[before])
        low, high = bootstrap_ratio(a, b, config["seed"]) if b.any() and a.any() else (math.nan, math.nan)
        law, law_low, law_high = banded(terms[after] - terms[before])
        rows.append({"part": "gain", "method": after, "nfe": calls, "grid": best if after == last else config["grid"],
                     "ratio": float(np.sqrt(a.mean() / b.mean())), "low": low, "high": high, "law": law,
                     "law_low": law_low, "law_high": law_high})  # fmt: skip
    return rows


# -- what was found -------------------------------------------------------------------------------
def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: the ladder's gains at the compared calls, and from where the other samplers keep up with its top."""
    found = {}
    for name, rows in frame.groupby("model", sort=False):
        calls = config["compared_at"]
        runs = rows[rows.part == "run"]
        at = runs[(runs.nfe == calls) & runs.method.isin(list(LADDER))].set_index("method")
        top = at.loc[STEPS[-1]]
        black = runs[(runs.method == RK45) & (runs.rms <= top.rms)]
        near = {}
        for method in (EM, ADAPTIVE):
            noisy = runs[runs.method == method]
            close = noisy[(noisy.law_low <= 0) & (noisy.law_high >= 0)]
            near[method] = (int(close.nfe.min()) if len(close) else None, int(noisy.nfe.max()))
        found[str(name)] = {
            "title": rows[rows.part == "reference"].title.iloc[0],
            "gain": rows[(rows.part == "gain") & (rows.nfe == calls)].set_index("method"),
            "whole": float(top.rms / at.loc["Euler"].rms),
            "top": top,
            "rk45": int(black.nfe.min()) if len(black) else None,
            "near": near,
        }
    return found


def effect(gain: Any) -> str:
    """ "less", "more" or "same": what a step of the ladder does to the path error, by its 95 % band."""
    return "less" if gain.high < 1 else "more" if gain.low > 1 else "same"


def verdict(frame: Frame, config: Config) -> str:
    """Each step's factor on the path error, model by model, and the calls with which RK45 keeps up."""
    found, text, said = findings(frame, config), style.as_text, []
    for method in STEPS:
        gains = [f["gain"].loc[method] for f in found.values()]
        said.append(f"{', '.join(text(g.ratio) + '~' * (effect(g) == 'same') for g in gains)} ({method})")
    whole = ", ".join(text(f["whole"]) for f in found.values())
    black = ", ".join(str(f["rk45"] or "more than tried") for f in found.values())
    return (
        f"At {config['compared_at']} calls the steps multiply the RMS path error on {', '.join(found)} by "
        f"{', '.join(said)}, together {whole} (~: 95 % band holds 1); RK45 is as accurate with {black} calls."
    )


# -- the figure -----------------------------------------------------------------------------------
_LOOK: dict[str, dict[str, Any]] = {
    "Euler": {"color": style.GREY, "linestyle": "-", "marker": "o"},
    "+ EI": {"color": style.GREY, "linestyle": ":", "marker": "o"},
    "+ ε": {"color": style.BLACK, "linestyle": "-", "marker": "o"},
    "+ polynomial": {"color": style.SKY, "linestyle": "-", "marker": "D", "markerfacecolor": "white"},
    "+ time grid": {"color": style.BLUE, "linestyle": "-", "marker": "D", "markerfacecolor": "white", "linewidth": 2.4},
    RK45: {"color": style.VERMILLION, "linestyle": "-", "marker": "s", "markerfacecolor": "white"},
    EM: {"color": style.ORANGE, "linestyle": "-", "marker": "o"},
    ADAPTIVE: {"color": style.GREEN, "linestyle": "-", "marker": "s", "markerfacecolor": "white"},
}


def _range(values: list[float]) -> str:
    low, high = style.as_text(min(values)), style.as_text(max(values))
    return f"×{low}" if low == high else f"×{low} to {high}"


def draw(frame: Frame, config: Config) -> Figure:
    """Columns: models. Rows: path error; energy distance of the law; gain of each step at the compared calls."""
    f = findings(frame, config)
    factors = {method: [float(m["gain"].ratio[method]) for m in f.values()] for method in STEPS}
    best = min(factors, key=lambda method: float(np.mean(np.log(factors[method]))))
    headline = f"At {config['compared_at']} calls {best} gains most; factors on the path error: " + ", ".join(
        f"{method} {_range(values)}" for method, values in factors.items()
    )
    note = (
        f"{style.setting(config)}; {studies.how_many(config)}, 95 % bands. Ladder on the {config['grid']} grid, its "
        f"last step on the best of {', '.join(config['grids'])} at each number of calls; polynomial: tAB "
        f"of degree 3. RK45: scipy, on dx/dt, batch as one state; {EM}: {config['grid']} grid; {ADAPTIVE}: "
        "Jolicoeur-Martineau et al. 2021. Noise leaves no path to compare. Middle: squared energy "
        "distance to the data less that of the exact flow from the same starts (bands: last step, with noise)."
        + studies.whose_law(config)
    )
    width = 1.6 + 4.3 * len(f)
    fig = style.new_figure(width, 11.6, headline, note)
    margins = style.body(fig, bottom=0.55, left=1.05, right=1.35, extra_top=0.35)
    axes = fig.subplots(3, len(f), squeeze=False, gridspec_kw={**margins, "wspace": 0.24, "hspace": 0.3,
                                                              "height_ratios": [1.25, 1.1, 0.75]})  # fmt: skip
    for column, (name, found) in enumerate(f.items()):
        runs = frame[(frame.part == "run") & (frame.model == name)]
        last = column == len(f) - 1
        _paths(axes[0, column], runs, found, last)
        _laws(axes[1, column], runs, last)
        _gains(axes[2, column], found, config)
    axes[0, 0].set_ylabel("RMS path error")
    axes[1, 0].set_ylabel("excess squared energy distance")
    for ax in axes[2, 1:]:
        ax.set_yticklabels([])
    return fig


def _calls(ax: Any, runs: Frame) -> None:
    ax.set(xscale="log", xlabel="model calls (NFE)")
    style.plain_log_ticks(ax.xaxis, [c for c in (5, 10, 20, 50, 100, 300, 1000) if c <= runs.nfe.max() * 1.05])


def _paths(ax: Any, runs: Frame, found: dict[str, Any], names: bool) -> None:
    ends = []
    for method, part in runs[runs.rms.notna()].groupby("method", sort=False):
        part = part.sort_values("nfe")
        ax.fill_between(part.nfe, part.low, part.high, color=_LOOK[method]["color"], alpha=0.13, lw=0)
        ax.plot(part.nfe, part.rms, **_LOOK[method])
        ends.append((part.nfe.iloc[-1], part.rms.iloc[-1], method, _LOOK[method]["color"]))
    ax.set(yscale="log", title=found["title"])
    _calls(ax, runs)
    if names:
        style.end_labels(ax, ends, 9.5)


def _laws(ax: Any, runs: Frame, names: bool) -> None:
    ends = []
    ax.axhline(0.0, color="#333333", lw=1.0, ls="--")
    for method, part in runs.groupby("method", sort=False):
        part = part.sort_values("nfe")
        if method in (STEPS[-1], EM, ADAPTIVE):
            ax.fill_between(part.nfe, part.law_low, part.law_high, color=_LOOK[method]["color"], alpha=0.13, lw=0)
        ax.plot(part.nfe, part.law, **_LOOK[method])
        ends.append((part.nfe.iloc[-1], part.law.iloc[-1], method, _LOOK[method]["color"]))
    ax.set_yscale("symlog", linthresh=1e-3, linscale=0.7)
    ax.set_yticks(
        [-0.1, -0.01, -1e-3, 0, 1e-3, 0.01, 0.1, 1.0, 10.0],
        labels=["−0.1", "−0.01", "−0.001", "0", "0.001", "0.01", "0.1", "1", "10"],
    )
    ax.set_ylim(max(-0.03, 1.2 * runs.law_low.min()), 1.3 * runs.law_high.max())
    ax.yaxis.set_minor_locator(style.matplotlib.ticker.NullLocator())
    _calls(ax, runs)
    if names:
        style.end_labels(ax, ends, 9.5)


def _gains(ax: Any, found: dict[str, Any], config: Config) -> None:
    colours = {"less": style.BLUE, "more": style.VERMILLION, "same": style.GREY}
    gain = found["gain"]
    for y, (method, g) in enumerate(gain.iterrows()):
        colour = colours[effect(g)]
        ax.plot([g.low, g.high], [y, y], color=colour, lw=4, solid_capstyle="butt")
        ax.plot(g.ratio, y, "o", color=colour, markeredgecolor="white", markersize=8, zorder=3)
        words = f"×{style.as_text(g.ratio)}" + (f" ({g.grid})" if method == STEPS[-1] else "")
        ax.annotate(
            words, (g.ratio, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9, color=colour
        )
    ax.axvline(1.0, color="#333333", lw=1.0, zorder=0)
    low, high = min(0.15, gain.low.min() * 0.7), max(3.0, gain.high.max() * 1.4)
    ax.set(xscale="log", xlim=(low, high), xlabel=f"factor on the path error at {config['compared_at']} calls")
    style.plain_log_ticks(ax.xaxis, [v for v in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= v <= high])
    ax.set_yticks(range(len(gain)), list(gain.index), fontsize=9.5)
    ax.set_ylim(len(gain) - 0.5, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
