"""Where is a learned score accurate? Density and fitting error of a small network on the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at, span
from experiments.models import studies
from experiments.models.problems import vp_linear
from experiments.models.toy_network import QUICK_TRAINING, TRAINING, toy_mixture

NAME = "fig2_fitting_error"
QUESTION = "Is a score learned by denoising score matching accurate where the density is high and inaccurate elsewhere?"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0, "times": [0.02, 0.1, 0.4], "half_width": 3.0, "points": 40, "blocks": 8,
    "samples": 800, "seed": 0, "bootstrap": 400,
    **TRAINING,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 2, on a toy in the plane whose data, times and network are not known",
        "measure": "Euclidean norm of s_θ − ∇ log p_t; the message is tested by rank correlation with the density",
    },
}  # fmt: skip
QUICK: Config = {"points": 24, "samples": 200, "bootstrap": 100, **QUICK_TRAINING}
THOROUGH: Config = {"points": 80, "blocks": 10, "samples": 8000, "bootstrap": 4000, "train_steps": 20000}
PLACES = {"plane": style.BLUE, "samples": style.VERMILLION}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "plane" and "samples" (t, x, y, log_density, error) and "rank" (t, where, rho, low, high)."""
    mix, process = toy_mixture(), vp_linear(config)
    net = studies.study("network", config).model
    progress(0.6)
    plane, blocks = _plane(config)
    frames = []
    for done, t in enumerate(config["times"], 1):
        drawn = mix.sample(config["samples"], config["seed"], process, t)
        for where, x, groups in (("plane", plane, blocks), ("samples", drawn, np.arange(len(drawn)))):
            log_density, error = mix.log_prob(x, process, t), fitting_error(net, mix, process, x, t)
            points = pd.DataFrame({"x": x[:, 0], "y": x[:, 1], "log_density": log_density, "error": error})
            points = points.map(lambda v: float(f"{v:.5g}"))
            ranks = rank_correlation(log_density, error, groups, config["seed"], config["bootstrap"])
            row = {"part": "rank", "t": t, "where": where, **dict(zip(("rho", "low", "high"), ranks, strict=True))}
            frames += [pd.DataFrame({"part": where, "t": t, **points}), pd.DataFrame([row])]
        progress(0.6 + 0.4 * done / len(config["times"]))
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
    picks = (np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(draws))
    low, high = np.quantile([spearmanr(a[pick], b[pick]).statistic for pick in picks], [0.025, 0.975])
    return float(spearmanr(a, b).statistic), float(low), float(high)


def _plane(config: Config) -> tuple[Array, Array]:
    """(points², 2) grid points, y slowest, and the number of the square block that each lies in."""
    n, blocks = config["points"], config["blocks"]
    axis, block = np.linspace(-config["half_width"], config["half_width"], n), np.arange(n) * blocks // n
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], axis=-1), (block[:, None] * blocks + block).ravel()


def findings(frame: Frame) -> Frame:
    """Per place and t: ρ with its interval, and the median error in the densest and the least dense tenth."""
    found = at(frame, part="rank")
    ratios = []
    for rank in found.itertuples():
        tenths = np.array_split(at(frame, part=rank.where, t=rank.t).sort_values("log_density").error, 10)
        ratios.append(np.median(tenths[0]) / np.median(tenths[-1]))
    return found.assign(falls=found.high < 0, ratio=ratios)


def verdict(frame: Frame, config: Config) -> str:
    """In how many cases the claim holds, the headline; the rank correlations, and the errors in the tenths."""
    found = findings(frame)
    plane, samples = (at(found, where=where) for where in PLACES)
    return (
        f"The error of a learned score falls as the density rises in {found.falls.sum()} of {len(found)} cases, rises "
        f"in {(found.low > 0).sum()} (Spearman's correlation {span(plane.rho)} on the plane, {span(samples.rho)} on "
        f"samples of p_t); the median error is {span(plane.ratio)} times as large in the least dense tenth of the "
        "plane as in the densest."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A column per time: the fitting error on the plane, and error against density."""
    found, titles = findings(frame), [f"t = {t:g}" for t in config["times"]]
    note = (
        f"ε network ({config['depth']} layers of {config['width']} units, one training) of six modes in a plane, whose"
        f" score is exact; {style.setting(config)}. Above: ‖s_θ − ∇ log p_t‖ over its median on the plane; contours: "
        f"p_t at 1/100, 1/10, 1/2 of its maximum. Below: points of the plane and {config['samples']} samples, lines: "
        "medians of tenths by density; ρ: Spearman's, with 95 % bootstrap intervals."
    )
    fig = panels.sheet(verdict(frame, config).split(", rises")[0], note, 4.5)
    axes, below = panels.small_multiples(fig, titles, len(titles), more=len(titles), wspace=0.2, hspace=0.22, right=0.6)
    for above, under, t in zip(axes, below, config["times"], strict=True):
        _map(above, at(frame, part="plane", t=t), config)
        _against_density(under, at(frame, part=list(PLACES), t=t), at(found, t=t))
    axes[0].set_ylabel("x₂ against x₁", fontsize=8.5)
    below[0].set_ylabel("fitting error", fontsize=8.5)
    bar = fig.colorbar(axes[-1].images[0], cax=axes[-1].inset_axes((1.06, 0, 0.057, 1)), extend="both")
    bar.ax.tick_params(labelsize=panels.TICKS)
    style.plain_log_ticks(bar.ax.yaxis, [0.125, 0.25, 0.5, 1, 2, 4])
    return fig


def _map(ax: Any, rows: Frame, config: Config) -> None:
    n, half = config["points"], config["half_width"]
    density, error = (v.to_numpy().reshape(n, n) for v in (np.exp(rows.log_density), rows.error / rows.error.median()))
    edge, axis = half * n / (n - 1), np.linspace(-half, half, n)  # grid points are centres of pixels
    ax.imshow(error, cmap="inferno", norm="log", vmin=0.1, vmax=4, extent=(-edge, edge, -edge, edge), origin="lower",
              interpolation="bilinear", aspect="auto")  # fmt: skip
    ax.contour(axis, axis, density, levels=density.max() * np.array([0.01, 0.1, 0.5]), colors="white", linewidths=0.6)
    ax.set(xlim=(-half, half), ylim=(-half, half))
    ax.grid(visible=False)


def _against_density(ax: Any, rows: Frame, found: Frame) -> None:
    top = at(rows, part="plane").log_density.max()
    for (where, colour), height in zip(PLACES.items(), (0.98, 0.88), strict=True):
        here = at(rows, part=where).sort_values("log_density")
        ratio, error = np.exp(here.log_density.to_numpy() - top), here.error.to_numpy()
        ax.plot(ratio, error, ".", color=colour, markersize=1.5, alpha=0.35, rasterized=True, markeredgewidth=0)
        x, y = ([np.median(tenth) for tenth in np.array_split(values, 10)] for values in (ratio, error))
        panels.curve(ax, x, y, color=colour, marker="o", markeredgecolor="white")
        said = "{where}: ρ {rho:.2f} ({low:.2f}, {high:.2f})".format(**at(found, where=where).iloc[0])
        panels.words(ax, 0.985, height, said, colour, ha="right", va="top")
    low, high = rows.error.quantile(0.001), rows.error.max()
    ax.set(xscale="log", yscale="log", ylim=(low, high * (high / low) ** 0.35))
    ax.set_xlabel("p_t over its maximum", fontsize=8.5)
