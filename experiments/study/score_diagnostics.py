"""Is a learned score a score? How far it is from a gradient, and from the score of its own diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.diagnostics import as_score, jacobian_asymmetry, loop_integral
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies

NAME = "score_diagnostics"
QUESTION = "How far is a learned score from being a gradient, and from being the score of any diffusion?"
IMAGE_NETWORKS = False  # it needs to know more of a model than its ε
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network"],
    "times": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95],
    "points": 200,
    "loops": 20,
    "data_points": 40,
    "radius": 1.0,
    "choices": {
        "data_points": "samples of p_t for a model without closed form, whose derivatives run over all data",
        "fitting": "left out for the digits: their ideal denoiser is the true score itself",
        "loops": "in the plane of the first two coordinates",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "times": [0.05, 0.3, 0.9], "points": 40, "data_points": 8, "loops": 4}
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "points": 2000, "data_points": 200,
                    "loops": 200, "times": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.95]}  # fmt: skip
MEASURES = {  # printed name, in which unit
    "fitting": ("fitting error", "‖s − ∇log p‖ / ‖∇log p‖"),
    "asymmetry": ("Jacobian asymmetry", "‖J − Jᵀ‖ / ‖J‖"),
    "loop": ("loop integral", "|∮ s·dl| / (length × ‖s‖)"),
    "residual": ("Fokker–Planck residual", "‖R‖ / (size of its two sides)"),
}
COLOURS = {"mixture": style.GREY, "network": style.VERMILLION, "gaussian": style.GREEN, "digits": style.BLUE}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (model, t, measure): relative root mean squares over samples of p_t, for "loop" over circles around some."""
    rows, done = [], 0
    for name in config["models"]:
        problem = studies.study(name, config)
        score = as_score(problem.model, problem.process)
        truth = None if problem.exact is None else problem.exact.score(problem.process)
        for t in config["times"]:
            x = _points(problem, t, config)
            values = _measures(score, truth, problem, x, t, config)
            rows += [{"model": name, "t": t, "measure": key, "value": value} for key, value in values.items()]
            done += 1
            progress(done / len(config["models"]) / len(config["times"]))
    return pd.DataFrame(rows)


def _points(problem: studies.Study, t: float, config: Config) -> Any:
    """Samples of p_t: of the exact mixture, or α_t times a draw of the smoothed data and noise of σ_t."""
    import torch

    if problem.exact is not None:
        x = problem.exact.sample(config["points"], config["seed"], problem.process, t)
    else:
        rng, n = np.random.default_rng(config["seed"]), config["data_points"]
        alpha, sigma = float(problem.process.alpha(t)), float(problem.process.sigma(t))
        drawn = problem.data[rng.choice(len(problem.data), n)]
        x = alpha * drawn + np.hypot(sigma, alpha * config["std"]) * rng.standard_normal(drawn.shape)
    return torch.tensor(x, device=problem.x_T.device)


def _measures(score: Any, truth: Any, problem: studies.Study, x: Any, t: float, config: Config) -> dict[str, float]:
    from torch.func import jacrev, vmap

    from deis_analysis.diagnostics import time_derivative

    def rms(value: Any) -> float:
        return float((value**2).mean() ** 0.5)

    jacobian = vmap(jacrev(lambda point: score(point[None], t)[0]))(x)
    rate, _ = time_derivative(score, problem.process, x, t)
    residual = da.fokker_planck_residual(score, problem.process, x, t)  # ∂s/∂t minus what it ought to be
    centres = np.asarray(x[: config["loops"]].cpu())
    radius = config["radius"] * float(problem.process.sigma(t))
    loops = [loop_integral(score, c, radius, (0, 1), t) for c in centres]
    size = rms(score(x, t)) * x.shape[1] ** 0.5
    fitting = {} if truth is None else {"fitting": rms(score(x, t) - truth(x, t)) / rms(truth(x, t))}
    return {
        **fitting,
        "asymmetry": float(
            (jacobian_asymmetry(score, x, t).squared.mean() / (jacobian**2).sum(dim=(1, 2)).mean()) ** 0.5
        ),
        "loop": float(np.sqrt(np.mean(np.square(loops)))) / (2 * np.pi * radius * size),
        "residual": rms(residual) / (rms(rate) + rms(rate - residual)),
    }


def findings(frame: Frame) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(model, measure) → smallest and largest value over the times, and the time of the largest."""
    found = {}
    for (name, measure), rows in frame.groupby(["model", "measure"], sort=False):
        worst = rows.loc[rows.value.idxmax()]
        found[(name, measure)] = (float(rows.value.min()), float(worst.value), float(worst.t))
    return found


def verdict(frame: Frame, config: Config) -> str:
    """Of each model, how large each measure gets and when."""
    found, told = findings(frame), []
    for key, (title, _) in MEASURES.items():
        worst = [found.get((name, key)) for name in config["models"]]
        told.append(f"{title} {', '.join(_largest(values) for values in worst)}")
    names = ", ".join(config["models"])
    return f"Largest values for {names}, relative to the size of what is compared: {'; '.join(told)}."


def _largest(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "0 by construction"
    return f"{style.as_text(values[1], 1)} (t = {values[2]:g})" if values[1] else "0"


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per measure, against t; a line per model."""
    found, text = findings(frame), style.as_text
    shown = next((n for n in config["models"] if n == "network"), config["models"][-1])
    headline = (
        f"{studies.title(shown)[0].upper()}{studies.title(shown)[1:]}: Jacobian asymmetric by up to "
        f"{text(found[(shown, 'asymmetry')][1])}, Fokker–Planck residual "
        f"up to {text(found[(shown, 'residual')][1])} of the size of its two sides"
    )
    alone = [name for name in config["models"] if (name, "fitting") not in found]
    fewer = f" ({config['data_points']} on the {', '.join(alone)})" if alone else ""
    note = (
        f"{style.setting(config)}; root mean squares over {config['points']} samples of p_t{fewer}; loops: circles of "
        f"radius {config['radius']:g} σ_t around {config['loops']} of them. An exact score has 0 everywhere: what "
        "exact models show is rounding and the numerical derivative in t. Sides of a score's Fokker–Planck equation: "
        "∂s/∂t and ∇(½g²(∇·s + |s|²) − f x·s). A gradient has a symmetric Jacobian and loop integrals of 0."
        + (" The digits' ideal denoiser is the true score: no fitting error by construction." if alone else "")
    )
    fig = style.new_figure(13.5, 4.9, headline, note)
    margins = style.body(fig, bottom=0.6, left=0.8, right=0.2, extra_top=0.4)
    axes = fig.subplots(1, len(MEASURES), gridspec_kw={**margins, "wspace": 0.34})
    for ax, (key, (title, unit)) in zip(axes, MEASURES.items(), strict=True):
        for name in config["models"]:
            part = frame[(frame.model == name) & (frame.measure == key)].sort_values("t")
            ax.plot(
                part.t,
                part.value.clip(lower=1e-17),
                "o-",
                color=COLOURS.get(name, style.BLACK),
                label=studies.title(name),
            )
        if not (frame.measure == key).any():
            ax.text(0.5, 0.5, "0 by construction", ha="center", color="#777777", transform=ax.transAxes)
        ax.set(xscale="log", yscale="log", title=title, ylabel=unit, xlabel="time t", ylim=(3e-18, 10),
               xlim=(0.85 * min(config["times"]), 1.15 * max(config["times"])))  # fmt: skip
        style.plain_log_ticks(ax.xaxis, [0.02, 0.05, 0.1, 0.2, 0.5, 1])
        ax.title.set_fontsize(10)
    axes[1].legend(fontsize=9, loc="center right", frameon=False)
    return fig
