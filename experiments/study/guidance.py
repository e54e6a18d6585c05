"""At which guidance scale does which sampler win? Exact classes of a mixture and of the digits, scales 1 to 15."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import kendalltau

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, digits, noise, steps_for, vp_linear

NAME = "guidance"
QUESTION = "Does the ranking of samplers flip with the guidance scale, and does data prediction win at large scales?"
IMAGE_NETWORKS = False  # it needs to know more of a model than its ε
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "rtol": 1e-6,
    "std": 0.2,
    "classes": 6,
    "dimension": 4,
    "class_std": 0.2,
    "class_seed": 0,
    "scales": [1.0, 2.0, 4.0, 7.5, 15.0],
    "calls": [5, 10, 20],
    "ranked_at": 10,
    "grids": ["t1", "t2", "logrho"],
    "eps": ["tab1", "tab2", "tab3", "rhoab2", "dpm_2m", "unipc2_bh2_eps"],
    "x0": ["dpmpp_2m", "dpmpp_3m", "unipc2_bh2_x0"],
    "others": ["ddim", "rhork_2heun"],
    "pairs": [["dpm_2m", "dpmpp_2m"], ["unipc2_bh2_eps", "unipc2_bh2_x0"]],
    "choices": {
        "mixture": "equal weights, means uniform in [-1, 1]^d, each coordinate's standard deviation class_std",
        "gaussian": "class k of it: a noisy measurement of its leading principal coordinate, K quantiles of its law",
        "network": "its ε for all data, exact ε of the mixture's modes in the first coordinate for the classes",
        "labels": "sample i asks for class i mod K; no clipping or thresholding",
        "std": "digits are smoothed, so that path errors vary continuously rather than jump between digits",
        "grids": "every sampler on the best of them in each cell",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "std": 0.2, "rtol": 1e-5,
                 "scales": [1.0, 4.0, 15.0], "calls": [5, 10], "grids": ["t2", "logrho"]}  # fmt: skip
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048,
                    "scales": [1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 15.0],
                    "calls": [5, 7, 10, 14, 20, 30]}  # fmt: skip


_NAMED = ("ddim", "tab3", "rhoab2", "dpm_2m", "unipc2_bh2_eps", "unipc2_bh2_x0")  # lines with a name


# -- guided models --------------------------------------------------------------------------------
def classes(name: str, config: Config, process: Process) -> tuple[Any, list[Any], int]:
    """(ε of all data, ε of each class, dimension), all exact.

    ``network``: its own ε for all data, and exact ones of the mixture's three modes in the first coordinate.
    ``gaussian``: a class is what its leading principal coordinate is measured to be, see `measured`.
    """
    import torch

    if name == "mixture":
        mix = class_mixture(config)
        parts = zip(mix.means[:, None], mix.covariances[:, None], strict=True)
        return mix.eps(process), [da.GaussianMixture([1.0], m, c).eps(process) for m, c in parts], mix.dimension
    if name == "digits":
        from sklearn.datasets import load_digits

        data, label = torch.tensor(digits(), device=config["device"]), load_digits().target
        sets = [data[torch.as_tensor(label == k, device=data.device)] for k in range(10)]
        denoisers: list[Any] = [da.ideal_denoiser(part, process, std=config["std"]) for part in (data, *sets)]
        return denoisers[0], denoisers[1:], data.shape[1]
    problem = studies.study(name, config)
    if isinstance(problem.exact, da.GaussianMixture):
        return problem.model, [g.eps(process) for g in measured(problem.exact, config)], problem.exact.dimension
    assert problem.exact is not None
    first, *rest = problem.exact.marginals
    modes = [da.GaussianMixture([1.0], [m], [c]) for m, c in zip(first.means, first.covariances, strict=True)]
    each = [da.ProductMixture([mode, *rest]).eps(process) for mode in modes]
    return problem.model, each, problem.exact.dimension


def measured(gauss: da.GaussianMixture, config: Config) -> list[da.GaussianMixture]:
    """The Gaussian given y = uᵀx + noise, u its leading axis, noise of the variance of uᵀx, for K values of y.

    They are the quantiles (k + ½)/K of its law; the classes differ in mean and share a covariance.
    """
    from scipy.stats import norm

    (mean,), (covariance,) = gauss.means, gauss.covariances
    variances, axes = np.linalg.eigh(covariance)
    axis, variance = axes[:, -1], float(variances[-1])
    away = np.sqrt(2 * variance) * norm.ppf((np.arange(config["classes"]) + 0.5) / config["classes"])  # y − E y
    narrowed = covariance - variance / 2 * np.outer(axis, axis)
    return [da.GaussianMixture([1.0], [mean + y / 2 * axis], [narrowed]) for y in away]


def class_mixture(config: Config) -> da.GaussianMixture:
    """Equal isotropic Gaussians, one per class."""
    count, dimension = config["classes"], config["dimension"]
    means = np.random.default_rng(config["class_seed"]).uniform(-1, 1, (count, dimension))
    return da.GaussianMixture(np.full(count, 1 / count), means, np.full((count, dimension), config["class_std"] ** 2))


def guided(everything: Any, each: list[Any], scales: list[float], samples: int) -> Any:
    """ε_u + w (ε_c − ε_u) of (W · n, d) states: n samples for each of W scales in turn, sample i of class i mod K."""
    import torch

    label = torch.arange(samples).repeat(len(scales)) % len(each)
    places = [torch.nonzero(label == k)[:, 0] for k in range(len(each))]
    weights = torch.tensor(scales, dtype=torch.float64).repeat_interleave(samples)[:, None]

    def eps(x: Any, t: float) -> Any:
        own = torch.empty_like(x)
        for place, part in zip(places, each, strict=True):
            own[place] = part(x[place], t)
        plain = everything(x, t)
        return plain + weights.to(x.device) * (own - plain)

    return eps


def setup(name: str, config: Config) -> tuple[Process, Any, Any, Any, float]:
    """(process, guided ε, starts, end states by DOPRI5, their estimated error); all scales in one batch."""
    import torch

    process, scales = vp_linear(config), config["scales"]
    everything, each, dimension = classes(name, config, process)
    samples = config["samples"]
    model = guided(everything, each, scales, samples)
    x_T = torch.tensor(noise(samples, dimension, config["seed"]), device=config["device"]).repeat(len(scales), 1)
    ends, rtol = (config["t_start"], config["t_end"]), config["rtol"]
    found = da.reference_solution(model, process, x_T, ends[1], rtol, rtol, t_start=ends[0], certify=False)
    return process, model, x_T, found.x, found.error_estimate


# -- numbers --------------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, scale, calls, solver: RMS on its best grid, 95 % interval over samples), "best" (the
    best solver's error over the second's) and "pair" (``solver`` in x₀ over ``other`` in ε, and their classes)."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        process, model, x_T, truth, estimate = setup(name, config)
        for k, calls in enumerate(config["calls"], 1):
            squares = _squares(process, model, x_T, truth, calls, config)
            for i, scale in enumerate(config["scales"]):
                common = {"model": name, "scale": scale, "calls": calls, "estimate": estimate}
                at = {solver: (grid, values) for (solver, grid), values in _best_grids(squares, i).items()}
                rows += [{**common, **row} for row in _rows(at, config)]
            progress((done + k / len(config["calls"])) / len(config["models"]))
    return pd.DataFrame(rows)


def _squares(
    process: Process, model: Any, x_T: Any, truth: Any, calls: int, config: Config
) -> dict[tuple[str, str], Array]:
    """(solver, grid) → (W, n) mean squared errors per scale and sample."""
    found: dict[tuple[str, str], Array] = {}
    for solver in (*config["others"], *config["eps"], *config["x0"]):
        for kind in config["grids"]:
            ts = da.grid(process, steps_for(solver, calls), kind, config["t_start"], config["t_end"])
            table = da.build(solver, process, ts).in_terms_of(process, "eps")
            squares = ((da.run(table, model, x_T) - truth) ** 2).mean(1).cpu()
            found[solver, kind] = np.asarray(squares).reshape(len(config["scales"]), -1)
    return found


def _best_grids(squares: dict[tuple[str, str], Array], i: int) -> dict[tuple[str, str], Array]:
    best: dict[str, str] = {}
    for solver, kind in squares:
        if solver not in best or squares[solver, kind][i].mean() < squares[solver, best[solver]][i].mean():
            best[solver] = kind
    return {(solver, kind): squares[solver, kind][i] for solver, kind in best.items()}


def _rows(at: dict[str, tuple[str, Array]], config: Config) -> list[dict[str, Any]]:
    rows, one = [], np.ones(1)
    for solver, (kind, values) in at.items():
        low, high = bootstrap_ratio(values, np.broadcast_to(one, values.shape), config["seed"], draws=300)
        rows.append({"part": "error", "solver": solver, "grid": kind, "rms": float(np.sqrt(values.mean())),
                     "low": low, "high": high})  # fmt: skip
    order = sorted(at, key=lambda solver: float(at[solver][1].mean()))
    rows.append(_ratio("best", order[0], order[1], at, config))
    rows += [_ratio("pair", x0, eps, at, config) for eps, x0 in config["pairs"]]
    least = {kind: min(config[kind], key=order.index) for kind in ("x0", "eps")}
    return [*rows, _ratio("class", least["x0"], least["eps"], at, config)]


def _ratio(part: str, a: str, b: str, at: dict[str, tuple[str, Array]], config: Config) -> dict[str, Any]:
    x, y = at[a][1], at[b][1]
    low, high = bootstrap_ratio(x, y, config["seed"], draws=500)
    ratio = float(np.sqrt(x.mean() / y.mean()))
    return {"part": part, "solver": a, "other": b, "ratio": ratio, "low": low, "high": high}


def ranking(frame: Frame, model: str, calls: int) -> tuple[Frame, list[float]]:
    """(RMS, a row per solver and a column per scale; Kendall's τ of each scale's ranking with the first scale's)."""
    rows = frame[(frame.part == "error") & (frame.model == model) & (frame.calls == calls)]
    table = rows.pivot(index="solver", columns="scale", values="rms").sort_index(axis=1)
    return table, [float(kendalltau(table.iloc[:, 0], table[scale]).statistic) for scale in table.columns]


def _part(frame: Frame, part: str, model: str, calls: int) -> Frame:
    return frame[(frame.part == part) & (frame.model == model) & (frame.calls == calls)].sort_values("scale")


def winners(frame: Frame, model: str, calls: int) -> list[tuple[str, list[Any]]]:
    """Runs of scales with one best solver: (solver, its rows of part "best")."""
    runs: list[tuple[str, list[Any]]] = []
    for row in _part(frame, "best", model, calls).itertuples():
        if not runs or runs[-1][0] != row.solver:
            runs.append((str(row.solver), []))
        runs[-1][1].append(row)
    return runs


def _run(solver: str, rows: list[Any]) -> str:
    first, last = rows[0].scale, rows[-1].scale
    clear = [f"{row.scale:g}" for row in rows if row.high < 1]
    said = "" if len(clear) == len(rows) else f", clearly at {', '.join(clear)}" if clear else ", unclear"
    return f"{solver} ({first:g}{f'–{last:g}' if last > first else ''}{said})"


def data_prediction(frame: Frame, scale: float) -> dict[str, dict[str, int]]:
    """Per x₀ solver with a counterpart in ε, and for the best of both ("class"): cells (model, calls) and in how
    many it is clearly better or worse, at one scale."""
    rows = frame[frame.part.isin(["pair", "class"]) & (frame.scale == scale)]
    key = np.where(rows.part == "class", "class", rows.solver.astype(str) + " than " + rows.other.astype(str))
    return {
        str(name): {"cells": len(at), "better": int((at.high < 1).sum()), "worse": int((at.low > 1).sum())}
        for name, at in rows.groupby(key, sort=False)
    }


def verdict(frame: Frame, config: Config) -> str:
    """Who is best at which scale, and whether data prediction wins at large scales."""
    calls, parts = config["ranked_at"], []
    small, large = float(frame.scale.min()), float(frame.scale.max())
    for model in frame.model.unique():
        runs = ", ".join(_run(solver, rows) for solver, rows in winners(frame, model, calls))
        parts.append(f"{model} {runs}")
    at = data_prediction(frame, large)
    at.pop("class")
    pairs = ", ".join(
        f"{name.split(' ')[0]} better in {c['better']} and worse in {c['worse']} of {c['cells']}"
        for name, c in at.items()
    )
    where = "; on the ".join(parts)
    return (
        f"The best sampler at {calls} calls by scale w from {small:g} to {large:g} is on the {where}; "
        f"at w = {large:g} x₀ is, against ε in the same method, for {pairs}."
    )


# -- figure ---------------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Rows: models; columns: error against scale at each number of calls; below, best x₀ over best ε."""
    names, counts = list(frame.model.unique()), sorted(int(c) for c in frame.calls.unique())
    calls, model = config["ranked_at"], names[0]
    solver, rows = winners(frame, model, calls)[-1]
    headline = f"At {calls} calls and large guidance scales {_run(solver, rows)} is the best sampler on the {model}"
    said_of = {
        "mixture": f"Mixture: {config['classes']} Gaussians in {config['dimension']}-D",
        "gaussian": f"Gaussian: {config['classes']} values of a noisy measurement of its leading coordinate",
        "digits": f"Digits: ten classes, smoothed by {config['std']:g}",
        "network": "Network: classes are the exact modes in the first coordinate",
    }
    note = (
        "ε_u + w (ε_c − ε_u) with exact ε of all data and of one class per sample; RMS error against the guided ODE "
        f"(DOPRI5), {style.setting(config)}; each on its best grid of {', '.join(config['grids'])}; bands 95 % over "
        f"{config['samples']} samples. "
        f"{'; '.join(text for name, text in said_of.items() if name in names)}. Circle: the best; grey: "
        "the others. Lowest: the best of x₀ over the best of ε."
    )
    upper, below = 1.85 * len(names), 1.7
    height = upper + below + 0.9
    fig = panels.sheet(headline, note, height)
    cells = [(name, count) for name in names for count in counts]
    axes, _ = panels.small_multiples(fig, [f"{name}, {count} calls" for name, count in cells], len(counts),
                                     extra_top=0.45, end=upper / height, hspace=0.2, wspace=0.06)  # fmt: skip
    for ax, (name, count) in zip(axes, cells, strict=True):
        _errors(ax, frame, name, count)
    axes[0].set(xscale="log", yscale="log")
    scales = sorted(frame.scale.unique())
    style.plain_log_ticks(axes[0].xaxis, scales)
    axes[0].set_ylabel("RMS error", fontsize=8.5)
    panels.key(fig, axes[0])
    lower, _ = panels.small_multiples(fig, [f"{name}, x₀ over ε" for name in names], max(len(names), 2), wspace=0.06,
                                      begin=(upper + 0.9) / height)  # fmt: skip
    for ax, name in zip(lower, names, strict=True):
        _classes(ax, frame, name, counts)
        ax.set_xlabel("guidance scale w", fontsize=8.5, labelpad=2)
    lower[0].set(xscale="log", yscale="log")
    style.plain_log_ticks(lower[0].xaxis, scales)
    style.plain_log_ticks(lower[0].yaxis, [0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    lower[-1].legend(fontsize=7.5, loc="best")
    return fig


def _errors(ax: Any, frame: Frame, model: str, calls: int) -> None:
    rows = _part(frame, "error", model, calls)
    for name, part in rows.groupby("solver", sort=False):
        if name in _NAMED:
            panels.curve(ax, part.scale, part.rms, part.low, part.high, label=str(name), **style.look(str(name)))
        else:
            ax.plot(part.scale, part.rms, color="#d0d0d0", lw=0.8, zorder=1)
    best, least = _part(frame, "best", model, calls), rows.groupby("scale").rms.min()
    ax.plot(best.scale, least.loc[best.scale], "o", color=style.VERMILLION, markersize=8.5, markerfacecolor="none",
            markeredgewidth=1.4, zorder=5)  # fmt: skip


def _classes(ax: Any, frame: Frame, model: str, counts: list[int]) -> None:
    ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    faces = style.plt.get_cmap("viridis_r")(np.linspace(0.15, 0.9, len(counts)))
    for count, face in zip(counts, faces, strict=True):
        rows = _part(frame, "class", model, count)
        panels.curve(ax, rows.scale, rows.ratio, rows.low, rows.high, label=f"{count} calls", color=face, marker="o")
