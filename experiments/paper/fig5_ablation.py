"""What does each ingredient gain? Euler, + EI, + ε, + polynomial, + time grid, beside others: the paper's fig. 5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.judging import FLIPPED, Judge, banded, law_terms, mean_square, ranked, ratio
from experiments.models import studies
from experiments.models.studies import Study

NAME = "fig5_ablation"
QUESTION = "What does each ingredient of DEIS gain, by path and by law, and how far do black-box solvers come?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network", "digits", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "seeds": [0, 1, 2],
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
TOLERANCES = FLIPPED
QUICK: Config = {
    **studies.BASE_QUICK,
    "models": ["mixture", "digits", "network"],
    "kept": [],
    "calls": [5, 10],
    "grids": ["t1", "t2", "logrho"],
    "rk45": [1e-1, 1e-2],
    "euler_maruyama": [20, 80],
    "adaptive_sde": {**CONFIG["adaptive_sde"], "rtol": [0.5]},
}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
    "samples": 2048,
    "calls": [5, 7, 10, 14, 20, 28, 40, 80, 160, 320],
    "rk45": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "euler_maruyama": [10, 20, 40, 80, 160, 320, 640, 1000],
    "adaptive_sde": {**CONFIG["adaptive_sde"], "rtol": [0.5, 0.1, 0.05, 0.02, 0.01]},
}
LADDER = {"Euler": "euler", "+ EI": "ei_score", "+ ε": "ddim", "+ polynomial": "tab3", "+ time grid": "tab3"}
STEPS = tuple(LADDER)[1:]
COLUMNS = 3
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

    def rows_of(name: str, progress: Progress) -> Rows:
        study = studies.study(name, config)
        judge = Judge(study, config)
        judges = judge.with_seeds()
        rows: Rows = [judge.reference]
        for i, calls in enumerate(config["calls"], 1):
            rows += _ladder(judges, calls)
            progress(0.6 * i / len(config["calls"]))
        return rows + [
            {"part": "run", **columns, **judge.row(x, path)} for columns, x, path in _others(judge.study, config)
        ]

    return by_model(NAME, config, rows_of, progress)


def _ladder(judges: list[Judge], calls: int) -> list[dict[str, Any]]:
    """The five methods at a number of calls, the last on the grid of least error, and what each step gains.

    The first judge's samples are the ones that count, those of the others give the range over seeds at ``compared_at``.
    """
    judge = judges[0]
    config, (*methods, last) = judge.config, LADDER
    results = {method: _end(judge, method, config["grid"], calls) for method in methods}
    on = {kind: results["+ polynomial"] if kind == config["grid"] else _end(judge, last, kind, calls)
          for kind in config["grids"]}  # fmt: skip
    best = min(on, key=lambda kind: mean_square(judge.counted(on[kind])))
    results[last] = on[best]
    grids = {**dict.fromkeys(methods, config["grid"]), last: best}
    rows: list[dict[str, Any]] = [
        {"part": "run", "method": method, "solver": LADDER[method], "grid": grids[method], "nfe": calls, **judge.row(x)}
        for method, x in results.items()
    ]
    factors = [_factors(judge, results)]
    if calls == config["compared_at"]:
        factors += [_factors(other, {m: _end(other, m, grids[m], calls) for m in LADDER}) for other in judges[1:]]
    terms = {method: law_terms(x, judge.data) for method, x in results.items()}
    for before, after in zip(list(LADDER)[:-1], STEPS, strict=True):
        law, law_low, law_high = banded(terms[after] - terms[before])
        found, low, high = factors[0][after]
        over = [each[after][0] for each in factors]
        rows.append({"part": "gain", "method": after, "nfe": calls, "grid": grids[after], "ratio": found, "low": low,
                     "high": high, "least": min(over), "most": max(over), "law": law, "law_low": law_low,
                     "law_high": law_high})  # fmt: skip
    return rows


def _end(judge: Judge, method: str, kind: str, calls: int) -> Any:
    return judge.study.solve(LADDER[method], _grid(judge.study, judge.config, kind, calls))


def _factors(judge: Judge, results: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Step of the ladder → error over that of the step before, with its 95 % band."""
    counted = {method: judge.counted(x) for method, x in results.items()}
    pairs = zip(list(LADDER)[:-1], STEPS, strict=True)
    return {after: ratio(counted[after], counted[before], judge.config["seed"]) for before, after in pairs}


# -- what was found -------------------------------------------------------------------------------
def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: the ladder's gains at the compared calls, and from where the other samplers keep up with its top."""
    found = {}
    for name, rows in ranked(frame).groupby("model", sort=False):
        calls = config["compared_at"]
        runs = rows[rows.part == "run"]
        at = runs[(runs.nfe == calls) & runs.method.isin(list(LADDER))].set_index("method")
        top = at.loc[STEPS[-1]]
        black = runs[(runs.method == RK45) & (runs.error <= top.error)]
        near = {}
        for method in (EM, ADAPTIVE):
            noisy = runs[runs.method == method]
            close = noisy[(noisy.law_low <= 0) & (noisy.law_high >= 0)]
            near[method] = (int(close.nfe.min()) if len(close) else None, int(noisy.nfe.max()))
        found[str(name)] = {
            "title": rows[rows.part == "reference"].title.iloc[0],
            "gain": rows[(rows.part == "gain") & (rows.nfe == calls)].set_index("method"),
            "whole": float(top.error / at.loc["Euler"].error),
            "top": top,
            "rk45": int(black.nfe.min()) if len(black) else None,
            "near": near,
        }
    return found


def effect(gain: Any) -> str:
    """ "less", "more" or "same": what a step of the ladder does to the path error, by its 95 % band and all seeds."""
    return "less" if max(gain.high, gain.most) < 1 else "more" if min(gain.low, gain.least) > 1 else "same"


def gains_most(found: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Step of the ladder → the models on which it has the smallest factor; most models first."""
    by: dict[str, list[str]] = {}
    for name, f in found.items():
        by.setdefault(str(f["gain"].ratio.idxmin()), []).append(name)
    return dict(sorted(by.items(), key=lambda item: -len(item[1])))


def _apart(gain: Frame) -> bool:
    first, second = gain.sort_values("ratio").iloc[:2].itertuples()
    return bool(first.high < second.low)


def _most(found: dict[str, dict[str, Any]], config: Config) -> str:
    (first, where), *others = gains_most(found).items()
    factors = _range([float(found[name]["gain"].ratio[first]) for name in where])
    rest = "".join(f", {method} on {style.in_words(names)}" for method, names in others)
    return (
        f"At {config['compared_at']} calls {first} gains most on {len(where)} of {len(found)} models, {factors} on the "
        f"path error{rest}"
    )


def _range(values: list[float]) -> str:
    low, high = style.as_text(min(values)), style.as_text(max(values))
    return f"×{low}" if low == high else f"×{low} to {high}"


def verdict(frame: Frame, config: Config) -> str:
    """Which step gains most where; each step's factor on the path error; the calls with which others keep up."""
    found, text, said = findings(frame, config), style.as_text, []
    for method in STEPS:
        gains = [f["gain"].loc[method] for f in found.values()]
        said.append(f"{', '.join(text(g.ratio) + '~' * (effect(g) == 'same') for g in gains)} ({method})")
    whole = ", ".join(text(f["whole"]) for f in found.values())
    black = ", ".join(str(f["rk45"] or "more than tried") for f in found.values())
    near = ", ".join(str(f["near"][EM][0] or "more than tried") for f in found.values())
    apart = sum(_apart(f["gain"]) for f in found.values())
    return (
        f"{_most(found, config)} (bands apart from the next step's on {apart}); the steps multiply the path error, of "
        f"images over samples that do not flip, on {', '.join(found)} by {', '.join(said)}, together {whole} (~: the "
        f"95 % band or the range over seeds holds 1); RK45 is as accurate with {black} calls; {EM} is near the "
        f"exact law, within its band, with {near}."
    )


# -- the figure -----------------------------------------------------------------------------------
_LOOK: dict[str, dict[str, Any]] = {
    "Euler": {"color": style.GREY, "linestyle": "-", "marker": "o"},
    "+ EI": {"color": style.GREY, "linestyle": ":", "marker": "o"},
    "+ ε": {"color": style.BLACK, "linestyle": "-", "marker": "o"},
    "+ polynomial": {"color": style.SKY, "linestyle": "-", "marker": "D", "markerfacecolor": "white"},
    "+ time grid": {"color": style.BLUE, "linestyle": "-", "marker": "D", "markerfacecolor": "white", "linewidth": 1.8},
    RK45: {"color": style.VERMILLION, "linestyle": "-", "marker": "s", "markerfacecolor": "white"},
}


def draw(frame: Frame, config: Config) -> Figure:
    """Above a panel per step of the ladder: its factor, model by model. Below a panel per model: errors and calls."""
    found = findings(frame, config)
    note = (
        f"RMS path error, of images over samples that do not flip, {style.setting(config)}; "
        f"{studies.how_many(config)}, 95 % bands. Above: each step's factor, blue where it helps, orange where it "
        f"hurts; thin: range over {studies.how_many_seeds(config)}. The ladder is on the {config['grid']} grid, its "
        f"last step on the best of {', '.join(config['grids'])}; polynomial: tAB of degree 3; RK45: scipy's, on "
        "dx/dt, the batch as one state."
    )
    rows, top = -(-len(found) // COLUMNS), 0.45 + 0.2 * len(found)
    height = 0.3 + top + 0.5 + 1.6 * rows
    fig = panels.sheet(_most(found, config), note, height)
    names = [panels.short(name) for name in found]
    _gains(fig, found, names, (top - 0.3) / (height - 0.6), config)
    axes, _ = panels.small_multiples(fig, names, COLUMNS, begin=(top + 0.45) / (height - 0.6))
    runs = ranked(frame[frame.part == "run"])
    for ax, name in zip(axes, found, strict=True):
        _paths(ax, runs[(runs.model == name) & runs.error.notna()])
    axes[0].set_yscale("log")
    panels.calls_axis(axes, [5, 10, 20, 50, 100])
    for ax in axes[::COLUMNS]:
        ax.set_ylabel("path error", fontsize=8)
    legend = axes[0].get_legend_handles_labels()
    fig.legend(*legend, loc="center left", ncol=6, fontsize=7.5, columnspacing=1.0, handlelength=1.8,
               bbox_to_anchor=(0.0, axes[0].get_position().y1 + 0.3 / fig.get_size_inches()[1]))  # fmt: skip
    return fig


def _gains(fig: Figure, found: dict[str, dict[str, Any]], names: list[str], end: float, config: Config) -> None:
    axes, _ = panels.small_multiples(fig, STEPS, len(STEPS), end=end, left=0.9)
    for ax, method in zip(axes, STEPS, strict=True):
        gains = [f["gain"].loc[method] for f in found.values()]
        bands, seeds = [(g.ratio, g.low, g.high) for g in gains], [(g.least, g.most) for g in gains]
        panels.intervals(ax, bands, [0.01, 0.1, 1], names, outer=seeds)
        for y, g in enumerate(gains):
            text = f"{style.as_text(g.ratio)}" + (f" {g.grid}" if method == STEPS[-1] else "")
            left = g.ratio > 1
            ax.annotate(text, (g.low if left else g.high, y), xytext=(-3 if left else 3, 0), fontsize=7,
                        textcoords="offset points", ha="right" if left else "left", va="center")  # fmt: skip
        ax.tick_params(axis="y", labelleft=ax is axes[0])
        ax.set_xlabel(f"factor at {config['compared_at']} calls", fontsize=8, labelpad=1)
    ends = np.array([[f["gain"].low.min(), f["gain"].high.max()] for f in found.values()])
    axes[0].set_xlim(0.5 * ends[:, 0].min(), 3.0 * ends[:, 1].max())  # room for the numbers


def _paths(ax: Any, runs: Frame) -> None:
    for method, part in runs.groupby("method", sort=False):
        part = part.sort_values("nfe")
        panels.curve(ax, part.nfe, part.error, part.error_low, part.error_high, label=str(method), **_LOOK[str(method)])
