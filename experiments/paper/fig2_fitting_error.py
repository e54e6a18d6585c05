"""Where is a learned score accurate? Density and fitting error of a small network on the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import vp_linear
from experiments.models.toy_network import QUICK_TRAINING, TRAINING, toy_mixture, toy_network

NAME = "fig2_fitting_error"
QUESTION = "Is a score learned by denoising score matching accurate where the density is high and inaccurate elsewhere?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "times": [0.02, 0.1, 0.4],
    "half_width": 3.0,
    "points": 40,
    "blocks": 8,
    "samples": 800,
    "seed": 0,
    "bootstrap": 400,
    **TRAINING,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 2, on a toy in the plane whose data, times and network are not known",
        "data": "six modes of unlike weight, a product of two mixtures on the line: score and density are exact",
        "times": "one near the data, one in the middle, one with much noise",
        "measure": "Euclidean norm of s_θ − ∇ log p_t; the message is tested by rank correlation with the density",
        "training": "denoising score matching, times drawn uniformly in train_times",
    },
}
QUICK: Config = {"points": 24, "samples": 200, "bootstrap": 100, **QUICK_TRAINING}
THOROUGH: Config = {
    "times": [0.01, 0.02, 0.05, 0.1, 0.2, 0.4],
    "points": 80,
    "blocks": 10,
    "samples": 8000,
    "bootstrap": 4000,
    "train_steps": 20000,
}
PLACES = {"plane": "the plane", "samples": "samples of p_t"}
BINS = 10


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "plane" and "samples" (t, x, y, log_density, error) and "rank" (t, where, rho, low, high)."""
    mix, process = toy_mixture(), vp_linear(config)
    net = toy_network(config)
    progress(0.8)
    plane, blocks = _plane(config)
    frames = []
    for done, t in enumerate(config["times"], 1):
        drawn = mix.sample(config["samples"], config["seed"], process, t)
        for where, x, groups in (("plane", plane, blocks), ("samples", drawn, np.arange(len(drawn)))):
            log_density, error = mix.log_prob(x, process, t), fitting_error(net, mix, process, x, t)
            frames.append(
                pd.DataFrame(
                    {
                        "part": where,
                        "t": t,
                        "x": _short(x[:, 0]),
                        "y": _short(x[:, 1]),
                        "log_density": _short(log_density),
                        "error": _short(error),
                    }
                )
            )
            rho, low, high = rank_correlation(log_density, error, groups, config["seed"], config["bootstrap"])
            frames.append(
                pd.DataFrame([{"part": "rank", "where": where, "t": t, "rho": rho, "low": low, "high": high}])
            )
        progress(0.8 + 0.2 * done / len(config["times"]))
    return pd.concat(frames, ignore_index=True)


def fitting_error(net: Any, mix: da.ProductMixture, process: da.Process, x: Array, t: float) -> Array:
    """(n,) Euclidean norms of s_θ − ∇ log p_t at (n, d) points, s_θ = −ε_θ/σ_t."""
    return np.asarray(np.linalg.norm(-net(x, t) / float(process.sigma(t)) - mix.score(process)(x, t), axis=-1))


def rank_correlation(a: Array, b: Array, groups: Array, seed: int, draws: int) -> tuple[float, float, float]:
    """Spearman's ρ of a and b, and its 95 % interval over resampled groups of points.

    Neighbours on a grid err alike, so that whole blocks of the plane are resampled; each independent sample is a group.
    """
    from scipy.stats import spearmanr

    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    found = []
    for _ in range(draws):
        pick = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        found.append(spearmanr(a[pick], b[pick]).statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(spearmanr(a, b).statistic), float(low), float(high)


def _plane(config: Config) -> tuple[Array, Array]:
    """(points², 2) grid points, y slowest, and the number of the square block that each lies in."""
    n, blocks = config["points"], config["blocks"]
    axis = np.linspace(-config["half_width"], config["half_width"], n)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    block = np.arange(n) * blocks // n
    return np.stack([x.ravel(), y.ravel()], axis=-1), (block[:, None] * blocks + block).ravel()


def _short(values: Array) -> list[float]:
    return [float(f"{v:.5g}") for v in values]


def findings(frame: Frame) -> Frame:
    """Per place and t: ρ with its interval, and the median error in the densest and the least dense tenth."""
    rows = []
    for rank in frame[frame.part == "rank"].itertuples():
        here = frame[(frame.part == rank.where) & (frame.t == rank.t)].sort_values("log_density")
        tenth = max(1, len(here) // 10)
        rows.append(
            {
                "where": rank.where,
                "t": rank.t,
                "rho": rank.rho,
                "low": rank.low,
                "high": rank.high,
                "falls": rank.high < 0,
                "sparse": float(here.error[:tenth].median()),
                "dense": float(here.error[-tenth:].median()),
            }
        )
    return pd.DataFrame(rows)


def verdict(frame: Frame, config: Config) -> str:
    """In how many cases the claim holds, the rank correlations of error and density, and the errors in the tenths."""
    found, text = findings(frame), style.as_text
    ranks = " and ".join(
        f"{rows.rho.min():.2f} to {rows.rho.max():.2f} on {PLACES[str(where)]}"
        for where, rows in found.groupby("where", sort=False)
    )
    plane = found[found["where"] == "plane"]
    ratio = plane["sparse"] / plane["dense"]
    return (
        f"The fitting error of the score falls as the density rises in {found.falls.sum()} of {len(found)} cases, "
        f"rises in {(found.low > 0).sum()} (Spearman's correlation {ranks}); in the least dense tenth of the plane "
        f"the median error is {text(ratio.min())}x to {text(ratio.max())}x that of the densest."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: times; columns: density, fitting error, error against density."""
    found = findings(frame)
    plane = found[found["where"] == "plane"]
    count = f"{found.falls.sum()} of {len(found)} cases"
    headline = (
        f"The learned score errs less where the density is higher in {count}: rank correlation on the plane "
        f"{plane.rho.min():.2f} to {plane.rho.max():.2f}, on samples "
        f"{found.rho[found['where'] == 'samples'].min():.2f} to {found.rho[found['where'] == 'samples'].max():.2f}"
    )
    note = (
        f"ε network ({config['depth']} layers of {config['width']} units, {config['train_steps']} steps of denoising "
        f"score matching, one training) of a mixture of six modes, VPLinear({config['beta_min']:g}, "
        f"{config['beta_max']:g}); the true score is exact. Each error map has its colours, the outermost 2 % cut. "
        "White contours: p_t at 1/100, 1/10, 1/2 of its maximum. "
        "Right: lines are medians of tenths by density; ρ is Spearman's, with 95 % intervals over points."
    )
    fig = style.new_figure(11.0, 2.85 * len(config["times"]) + 1.55, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.62, right=0.25, extra_top=0.35)
    grid = {**margins, "wspace": 0.42, "hspace": 0.3, "width_ratios": [1, 1, 1.25]}
    axes = fig.subplots(len(config["times"]), 3, squeeze=False, gridspec_kw=grid)
    for row, t in zip(axes, config["times"], strict=True):
        _maps(row[0], row[1], frame[(frame.part == "plane") & (frame.t == t)], config, t)
        _against_density(row[2], frame[(frame.part != "rank") & (frame.t == t)], found[found.t == t])
    for ax in axes[-1, :2]:
        ax.set_xlabel("x₁")
    axes[-1, 2].set_xlabel("density p_t over its maximum on the plane")
    return fig


def _maps(left: Any, right: Any, rows: Frame, config: Config, t: float) -> None:
    n, half = config["points"], config["half_width"]
    density = np.exp(rows.log_density.to_numpy()).reshape(n, n)
    error = rows.error.to_numpy().reshape(n, n)
    edge = half * n / (n - 1)  # grid points are centres of pixels
    place: dict[str, Any] = {"origin": "lower", "extent": (-edge, edge, -edge, edge), "interpolation": "bilinear"}
    low, high = np.quantile(error, [0.02, 0.98])
    norm = LogNorm(float(low), float(high))
    images = (left.imshow(density, cmap="viridis", **place), right.imshow(error, cmap="inferno", norm=norm, **place))
    axis = np.linspace(-half, half, n)
    for ax, image, title in zip((left, right), images, (f"t = {t:g}: density p_t", "fitting error ‖s_θ − ∇log p_t‖"),
                                strict=True):  # fmt: skip
        ax.contour(axis, axis, density, levels=density.max() * np.array([0.01, 0.1, 0.5]), colors="white",
                   linewidths=0.6)  # fmt: skip
        ax.set(title=title, xlim=(-half, half), ylim=(-half, half))
        ax.grid(visible=False)
        ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, extend="both" if ax is right else "neither")
    left.set_ylabel("x₂")


def _against_density(ax: Any, rows: Frame, found: Frame) -> None:
    top = float(rows.log_density[rows.part == "plane"].max())
    looks = {"plane": (style.BLUE, 1.5, "on the plane"), "samples": (style.VERMILLION, 2.5, "on samples of p_t")}
    for (where, (colour, size, label)), height in zip(looks.items(), (0.965, 0.875), strict=True):
        here = rows[rows.part == where].sort_values("log_density")
        ratio, error = np.exp(here.log_density.to_numpy() - top), here.error.to_numpy()
        ax.plot(ratio, error, ".", color=colour, markersize=size, alpha=0.35, rasterized=True, markeredgewidth=0)
        bins = np.array_split(np.arange(len(here)), BINS)
        ax.plot([np.median(ratio[b]) for b in bins], [np.median(error[b]) for b in bins], "-o", color=colour, lw=1.8,
                markeredgecolor="white")  # fmt: skip
        case = found[found["where"] == where].iloc[0]
        ax.text(0.985, height, f"{label}: ρ = {case.rho:.2f} ({case.low:.2f} to {case.high:.2f})", color=colour,
                fontsize=9, ha="right", va="top", transform=ax.transAxes)  # fmt: skip
    low, high = float(rows.error.quantile(0.001)), float(rows.error.max())
    ax.set(xscale="log", yscale="log", title="error against density", ylim=(low, high * (high / low) ** 0.35))
