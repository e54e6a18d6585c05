"""Is a learned score a score? How far it is from a gradient, and from the score of its own diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.diagnostics import as_score, jacobian_asymmetry, loop_integral
from experiments import Config, Frame, Progress, models, style

NAME = "score_diagnostics"
QUESTION = "How far is a learned score from being a gradient, and from being the score of any diffusion?"
CONFIG: Config = {
    **models.BASE,
    "models": ["mixture", "network"],
    "times": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95],
    "points": 200,
    "loops": 20,
    "radius": 1.0,
}
QUICK: Config = {**models.BASE_QUICK, "times": [0.05, 0.3, 0.9], "points": 40, "loops": 4}
THOROUGH: Config = {"points": 2000, "loops": 200, "times": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.95]}
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
        problem = models.study(name, config)
        if problem.exact is None:
            raise ValueError(f"model={name!r} has no exact samples at every t; allowed: those with an exact mixture")
        score, truth = as_score(problem.model, problem.process), problem.exact.score(problem.process)
        for t in config["times"]:
            x = _points(problem, t, config)
            values = _measures(score, truth, problem, x, t, config)
            rows += [{"model": name, "t": t, "measure": key, "value": value} for key, value in values.items()]
            done += 1
            progress(done / len(config["models"]) / len(config["times"]))
    return pd.DataFrame(rows)


def _points(problem: models.Study, t: float, config: Config) -> Any:
    import torch

    assert problem.exact is not None
    x = problem.exact.sample(config["points"], config["seed"], problem.process, t)
    return torch.tensor(x, device=problem.x_T.device)


def _measures(score: Any, truth: Any, problem: models.Study, x: Any, t: float, config: Config) -> dict[str, float]:
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
    return {
        "fitting": rms(score(x, t) - truth(x, t)) / rms(truth(x, t)),
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
        worst = [found[(name, key)] for name in config["models"]]
        told.append(f"{title} {', '.join(f'{style.as_text(v, 1)} (t = {t:g})' if v else '0' for _, v, t in worst)}")
    names = ", ".join(config["models"])
    return f"Largest values for {names}, relative to the size of what is compared: {'; '.join(told)}."


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per measure, against t; a line per model."""
    found, text = findings(frame), style.as_text
    shown = next((n for n in config["models"] if n == "network"), config["models"][-1])
    headline = (
        f"{models.MODELS[shown][0][0].upper()}{models.MODELS[shown][0][1:]}: Jacobian asymmetric by up to "
        f"{text(found[(shown, 'asymmetry')][1])}, Fokker–Planck residual "
        f"up to {text(found[(shown, 'residual')][1])} of the size of its two sides"
    )
    note = (
        f"{style.setting(config)}; root mean squares over {config['points']} samples of p_t; loops: circles of radius "
        f"{config['radius']:g} σ_t around {config['loops']} of them. An exact score has 0 everywhere: what the exact "
        "mixture shows is rounding and the numerical derivative in t. Sides of the Fokker–Planck equation of a score: "
        "∂s/∂t and ∇(½g²(∇·s + |s|²) − f·s − ∇·f). A gradient has a symmetric Jacobian and loop integrals of 0."
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
                label=models.MODELS[name][0],
            )
        ax.set(xscale="log", yscale="log", title=title, ylabel=unit, xlabel="time t", ylim=(3e-18, 10))
        style.plain_log_ticks(ax.xaxis, [0.02, 0.05, 0.1, 0.2, 0.5, 1])
        ax.title.set_fontsize(10)
    axes[0].legend(fontsize=9, loc="center right", frameon=False)
    return fig
