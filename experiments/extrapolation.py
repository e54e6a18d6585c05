"""Does a polynomial of higher degree extrapolate ε better? The error of the interpolant along the exact solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process import Array
from experiments import Config, Frame, Progress, style
from experiments.problems import digits, exact_path, gaussian_like, noise, step_points, vp_linear

NAME = "extrapolation"
QUESTION = "Along the exact solution, does ε extrapolated with a higher degree come closer to the true ε?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grid": "t2",
    "std": 0.0,
    "floor": 1e-4,
    "samples": 64,
    "seed": 0,
    "rtol": 1e-8,
    "steps": [10, 20],
    "degrees": [0, 1, 2, 3],
    "points": 6,
    "device": "cpu",
}
QUICK: Config = {"samples": 16, "rtol": 1e-5, "points": 2}
PROBLEMS = {"gaussian": "Gaussian with the digits' mean and covariance", "digits": "Ideal denoiser of the digits"}
SHADES = ("#000000", "#9ecae1", "#4292c6", "#0b4a86")  # degree 0 is DDIM; tAB's blue darkens with the degree


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (problem, steps, degree, step, t): the root mean square Δ_ε between extrapolated and true ε."""
    import torch

    process = vp_linear(config)
    data = digits()
    grids = {n: da.grid(process, n, config["grid"], config["t_start"], config["t_end"]) for n in config["steps"]}
    x = noise(config["samples"], data.shape[1], config["seed"])
    like = gaussian_like(data, config["floor"])
    device = torch.device(config["device"])
    ideal = da.ideal_denoiser(torch.tensor(data, device=device), process, std=config["std"])
    rows: list[dict[str, Any]] = []
    for done, (n, ts) in enumerate(grids.items(), 1):
        states, path_error = exact_path(
            ideal, process, torch.tensor(x, device=device), step_points(ts, config["points"]), config["rtol"]
        )
        progress((done - 0.3) / len(grids))

        def on_digits(x: Array, t: float) -> Array:
            return np.asarray(ideal(torch.as_tensor(x, device=device), t).cpu())

        def digits_path(t: float, states: dict[float, Any] = states) -> Array:
            return np.asarray(states[t].cpu())

        def gaussian_path(t: float) -> Array:
            return np.asarray(like.flow(process, x, config["t_start"], t))

        for problem, model, path in (
            ("gaussian", like.eps(process), gaussian_path),
            ("digits", on_digits, digits_path),
        ):
            for degree in config["degrees"]:
                times, errors = da.extrapolation_error(model, process, path, ts, degree, points=config["points"])
                rows += [
                    {
                        "problem": problem,
                        "steps": n,
                        "degree": degree,
                        "step": i,
                        "t": t,
                        "delta": d,
                        "path_error": path_error if problem == "digits" else 0.0,
                    }
                    for i in range(n)
                    for t, d in zip(times[i], errors[i], strict=True)
                ]
        progress(done / len(grids))
    return pd.DataFrame(rows)


def findings(frame: Frame) -> dict[tuple[str, int], dict[str, float]]:
    """Per problem and N: how lowest and highest degree compare over the path, and below which t the highest loses."""
    found = {}
    for key, rows in frame.groupby(["problem", "steps"]):
        # the step's end counts: it is where the extrapolation reaches farthest
        last = rows.groupby(["degree", "step"]).tail(1).pivot(index="t", columns="degree", values="delta").sort_index()
        low, high = last.columns.min(), last.columns.max()
        total = rows.groupby("degree").delta.apply(lambda d: float(np.sqrt(np.mean(np.square(d)))))
        loses = last[last[high] > last[low] * (1 + 1e-9)]
        found[key] = {
            "low": int(low),
            "high": int(high),
            "share": float((last[high] < last[low] * (1 - 1e-9)).sum() / len(last)),
            "loses_below": float(loses.index.max()) if len(loses) else 0.0,
            "gain": float(total[low] / total[high]),
            "best": int(total.idxmin()),
        }
    return found


def verdict(frame: Frame, config: Config) -> str:
    """Per problem, how much the highest degree gains over the path, and where it loses."""
    found, parts = findings(frame), []
    for problem, title in (("gaussian", "the Gaussian"), ("digits", "the digits")):
        cases = [found[(problem, n)] for n in config["steps"]]
        gains = " and ".join(
            f"{style.as_text(max(f['gain'], 1 / f['gain']))}x {'smaller' if f['gain'] >= 1 else 'larger'} (N = {n})"
            for n, f in zip(config["steps"], cases, strict=True)
        )
        limit = max(f["loses_below"] for f in cases)
        where = f", being larger only for steps that end at t = {limit:.2f} or below" if limit else ""
        best = "/".join(dict.fromkeys(str(f["best"]) for f in cases))
        parts.append(f"on {title} {gains}{where} (best degree {best})")
    f = cases[0]
    return (
        f"Over the exact path the extrapolation error of eps with degree {f['high']} is, against degree {f['low']}, "
        + "; ".join(parts)
        + "."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: problems; columns: step counts; one line per degree, broken at the steps."""
    found = findings(frame)
    finest = max(config["steps"])
    g, d = found[("gaussian", finest)], found[("digits", finest)]
    where = f", losing only below t ≈ {d['loses_below']:.2f}" if d["loses_below"] else ""
    headline = (
        f"N = {finest}: degree {g['high']} extrapolates ε {_change(g['gain'])} than DDIM's constant on a Gaussian; on "
        f"the digits {_change(d['gain'])} over the path{where}"
    )
    note = (
        "Δε = root mean square of extrapolated minus true ε along the exact solution, while each step lasts; "
        f"{config['grid']} grid, {style.setting(config)}, {config['samples']} samples; digits' path accurate to "
        f"{style.as_text(frame.path_error.max(), 1)}. The first steps have fewer nodes, so all degrees start alike."
    )
    fig = style.new_figure(11.0, 8.2, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.8, right=0.3, extra_top=0.35)
    axes = fig.subplots(len(PROBLEMS), len(config["steps"]), sharex=True, sharey="row", squeeze=False,
                        gridspec_kw={**margins, "wspace": 0.08, "hspace": 0.22})  # fmt: skip
    for row, (problem, title) in zip(axes, PROBLEMS.items(), strict=True):
        for ax, n in zip(row, config["steps"], strict=True):
            _panel(ax, frame[(frame.problem == problem) & (frame.steps == n)], f"{title}, N = {n}", found[(problem, n)])
        row[0].set_ylabel("Δε (RMS per pixel)")
    for ax in axes[-1]:
        ax.set_xlabel("time t (sampling runs to the left)")
    axes[-1, 0].legend(loc="upper right", title="degree of the interpolant", title_fontsize=9)
    return fig


def _change(gain: float) -> str:
    return f"{gain:.1f}× better" if gain >= 1 else f"{1 / gain:.1f}× worse"


def _panel(ax: Any, rows: Frame, title: str, found: dict[str, float]) -> None:
    for degree, part in rows.groupby("degree"):
        colour = SHADES[min(int(degree), len(SHADES) - 1)]
        for i, (_, step) in enumerate(part.groupby("step")):
            ax.plot(
                step.t,
                step.delta,
                color=colour,
                lw=1.6,
                label=f"r = {degree}{' (DDIM)' if degree == 0 else ''}" if i == 0 else None,
            )
    if found["loses_below"]:
        ax.axvspan(0, found["loses_below"], color=style.VERMILLION, alpha=0.08, lw=0)
        ax.text(found["loses_below"] / 2, 0.03, f"r = {found['high']} loses", transform=ax.get_xaxis_transform(),
                ha="center", fontsize=9, color=style.VERMILLION)  # fmt: skip
    ax.set(yscale="log", title=title, xlim=(-0.02, 1.0), ylim=(max(rows.delta.min(), 2e-5), None))
