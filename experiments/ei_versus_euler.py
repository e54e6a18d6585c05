"""Does an exponential integrator help by itself? The paper's two surprises: frozen score worse than Euler, ε better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process import Array, Process
from experiments import Config, Frame, Progress, style
from experiments.problems import digits, digits_problem, exact_path, gaussian_like, noise, step_points

NAME = "ei_versus_euler"
QUESTION = "Is an exponential integrator worse than Euler with a frozen score, and better with a frozen ε?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grid": "t1",
    "std": 0.0,
    "floor": 1e-4,
    "samples": 256,
    "seed": 0,
    "rtol": 1e-8,
    "steps": [5, 7, 10, 14, 20, 28, 40, 56, 80],
    "compared_at": 10,
    "path_steps": 10,
    "path_points": 8,
    "path_samples": 64,
    "device": "cpu",
}
QUICK: Config = {"samples": 64, "rtol": 1e-6, "steps": [5, 10, 20], "path_points": 3, "path_samples": 32}
SOLVERS = ("euler", "ei_score", "ddim")
PROBLEMS = {"digits": "ideal denoiser of the digits", "gaussian": "Gaussian, the digits' mean and covariance"}
FROZEN = {"score": "frozen score", "eps": "frozen ε"}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (problem, solver, steps: mean absolute and RMS error) and "path" (Δ_s on the solution)."""
    problem = digits_problem(config)
    progress(0.35)
    like = gaussian_like(digits(), config["floor"])
    x = noise(config["samples"], like.dimension, config["seed"])
    exact = like.flow(problem.process, x, config["t_start"], config["t_end"])
    runs = {
        "digits": (problem.model, problem.x_T, problem.reference),
        "gaussian": (like.eps(problem.process), x, exact),
    }
    rows = []
    for name, (model, start, truth) in runs.items():
        for steps in config["steps"]:
            ts = da.grid(problem.process, steps, config["grid"], config["t_start"], config["t_end"])
            for solver in SOLVERS:
                gap = da.run(da.build(solver, problem.process, ts), model, start) - truth
                rows.append(
                    {"part": "error", "problem": name, "solver": solver, "steps": steps,
                     "mean_abs": float(abs(gap).mean()), "rms": float((gap**2).mean() ** 0.5)}
                )  # fmt: skip
    progress(0.6)
    ts = da.grid(problem.process, config["path_steps"], config["grid"], config["t_start"], config["t_end"])
    few = problem.x_T[: config["path_samples"]]
    states, _ = exact_path(
        problem.model, problem.process, few, step_points(ts, config["path_points"]), 10 * config["rtol"]
    )
    rows += _path_rows(
        "digits", _on_numpy(problem.model, few), problem.process, lambda t: states[t].cpu().numpy(), ts, config
    )
    progress(0.9)
    few_numpy = x[: config["path_samples"]]

    def flow(t: float) -> Array:
        return np.asarray(like.flow(problem.process, few_numpy, config["t_start"], t))

    rows += _path_rows("gaussian", like.eps(problem.process), problem.process, flow, ts, config)
    rows.append({"part": "reference", "problem": "digits", "rms": problem.error_estimate})
    return pd.DataFrame(rows)


def _on_numpy(model: Any, like: Any) -> Any:
    import torch

    return lambda x, t: model(torch.as_tensor(x, device=like.device), t).cpu().numpy()


def _path_rows(name: str, eps: Any, process: Process, path: Any, ts: Array, config: Config) -> list[dict[str, Any]]:
    rows = []
    for prediction in FROZEN:

        def model(x: Array, t: float, prediction: str = prediction) -> Array:
            return np.asarray(eps(x, t)) * float(process.convert("eps", prediction, t)[1])

        times, errors = da.extrapolation_error(
            model, process, path, ts, 0, prediction=prediction, unit="score", points=config["path_points"]
        )
        for step, (row, values) in enumerate(zip(times, errors, strict=True)):
            rows += [
                {"part": "path", "problem": name, "frozen": prediction, "step": step, "t": t, "delta": d}
                for t, d in zip(row, values, strict=True)
            ]
    return rows


def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per problem: ratios to Euler at the compared step count, and at how many step counts each claim holds."""
    found = {}
    for name in PROBLEMS:
        rows = frame[(frame.part == "error") & (frame.problem == name)]
        mean, rms = (rows.pivot(index="steps", columns="solver", values=v) for v in ("mean_abs", "rms"))
        at = mean.loc[config["compared_at"]]
        path = frame[(frame.part == "path") & (frame.problem == name)].groupby("frozen").delta.max()
        found[name] = {
            "counts": len(mean),
            "score_worse": int((mean.ei_score > mean.euler).sum()),
            "eps_better": int((mean.ddim < mean.euler).sum()),
            "eps_better_rms": int((rms.ddim < rms.euler).sum()),
            "score": float(at.ei_score / at.euler),
            "eps": float(at.ddim / at.euler),
            "delta": float(path["score"] / path["eps"]),
        }
    return found


def _compared(ratio: float) -> str:
    return (
        f"{style.as_text(ratio)}x Euler's error" if ratio >= 1 else f"{style.as_text(1 / ratio)}x less error than Euler"
    )


def verdict(frame: Frame, config: Config) -> str:
    """On which problem each of the two claims holds, in the paper's measure and in RMS."""
    found = findings(frame, config)
    d, g = found["digits"], found["gaussian"]

    def claim(f: dict[str, Any]) -> str:
        return (
            f"a frozen score has {_compared(f['score'])} (worse at {f['score_worse']} of {f['counts']} step counts), "
            f"frozen eps {_compared(f['eps'])} (better at {f['eps_better']})"
        )

    both = all(f["score_worse"] == f["counts"] and f["eps_better"] == f["counts"] for f in (d, g))
    holds = d["score_worse"] == d["counts"] and d["eps_better"] == d["counts"]
    summary = "both claims hold on both problems" if both else (
        "both claims hold on the digits only" if holds else "the claims do not hold everywhere"
    )  # fmt: skip
    return (
        f"By mean pixel difference at N = {config['compared_at']}, on the digits {claim(d)}; on a Gaussian of their "
        f"mean and covariance {claim(g)}: {summary}; by RMS frozen eps beats Euler on the digits at "
        f"{d['eps_better_rms']} of {d['counts']} step counts; the largest Δs of a frozen score over that of a frozen "
        f"eps is {style.as_text(d['delta'])} on the digits, {style.as_text(g['delta'])} on the Gaussian."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: the problems. Left error against steps; right Δ_s on the exact solution, frozen score against frozen ε."""
    found = findings(frame, config)
    d, g = found["digits"], found["gaussian"]
    headline = (
        f"Freezing the score: {d['score']:.1f}× Euler's error; freezing ε: {_times(d['eps'])} on the digits, but "
        f"{_times(g['eps'])} on a Gaussian"
    )
    note = (
        f"Errors at N = {config['compared_at']}; uniform t grid, {style.setting(config)}, {config['samples']} samples. "
        f"Right: how far the frozen prediction is from the true score while a step of N = {config['path_steps']} "
        "lasts, RMS over pixels, along the exact solution."
    )
    fig = style.new_figure(10.5, 8.6, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.8, right=0.3, extra_top=0.35)
    axes = fig.subplots(2, 2, sharex="col", gridspec_kw={**margins, "wspace": 0.58, "hspace": 0.2})
    for row, name in zip(axes, PROBLEMS, strict=True):
        _errors(row[0], frame, config, name)
        _delta(row[1], frame, name)
    axes[1, 0].set_xlabel("steps N = model calls (NFE)")
    axes[1, 1].set_xlabel("time t (sampling runs to the left)")
    return fig


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio >= 0.95 else f"{ratio:.2f}×"


def _errors(ax: Any, frame: Frame, config: Config, name: str) -> None:
    rows = frame[(frame.part == "error") & (frame.problem == name)]
    printed = {"euler": "Euler", "ei_score": "frozen score", "ddim": "frozen ε (DDIM)"}
    ends = []
    for solver, part in rows.groupby("solver", sort=False):
        ax.plot(part.steps, part.mean_abs, **{**style.look(solver), "linewidth": 2.0})
        ends.append((part.steps.iloc[-1], part.mean_abs.iloc[-1], printed[solver], style.family(solver)[0]))
    ax.set(xscale="log", yscale="log", title=PROBLEMS[name][0].upper() + PROBLEMS[name][1:])
    style.plain_log_ticks(ax.xaxis, config["steps"][::2])
    ax.set_ylabel("mean pixel difference |x − x*|")
    style.end_labels(ax, ends, 9)


def _delta(ax: Any, frame: Frame, name: str) -> None:
    rows = frame[(frame.part == "path") & (frame.problem == name)]
    colours = {"score": style.family("ei_score")[0], "eps": style.family("ddim")[0]}
    ends = []
    for frozen, part in rows.groupby("frozen", sort=False):
        for _, step in part.groupby("step"):
            ax.plot(
                step.t, step.delta, color=colours[frozen], linestyle=":" if frozen == "score" else "-", linewidth=2.0
            )
        ends.append((frozen, part.sort_values("t").iloc[0]))
    ax.set(yscale="log", xlim=(-0.02, 1.0), title="Δs along the exact solution")
    ax.set_ylim(bottom=max(rows.delta.min(), rows.delta.max() * 1e-7) * 0.7)
    ax.set_ylabel("Δs (score units)")
    for frozen, last in ends:
        ax.annotate(
            FROZEN[frozen], (last.t, last.delta), xytext=(22, 0), textcoords="offset points",
            color=colours[frozen], va="center", fontsize=9.5,
        )  # fmt: skip
