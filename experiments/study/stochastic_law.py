"""Which law does a sampler with noise produce? On Gaussian data mean and variance of the output are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.analysis.measurement import step_counts
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import digits, distinct_solvers, steps_for, vp_linear

NAME = "stochastic_law"
QUESTION = (
    "How far is the law of a stochastic sampler's output from the right one, per model call, and does noise help?"
)
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grid": "t2",
    "other_grids": ["t1", "t3", "rho7", "logrho"],
    "solvers": None,
    "preferred": ["ddpm"],
    "ode": ["ddim", "dpmpp_2m", "tab3"],
    "own_moments": ["analytic_ddpm", "analytic_ddim"],
    "calls": [5, 7, 10, 14, 20, 28, 40, 80, 160],
    "compared_at": [10, 20],
    "point": [0.7, 10],
    "exact_below": 1e-12,
    "tolerance": 0.15,
}
QUICK: Config = {
    "solvers": ["sde_dpmpp_1", "ddpm", "sde_dpmpp_2m", "seeds_3_x0", "euler_maruyama", "sde_dpm_2m", "analytic_ddpm"],
    "own_moments": ["analytic_ddpm"],
    "other_grids": ["logrho"],
    "calls": [5, 10, 20, 40],
}
Build = Callable[[Process, Array], da.Tableau]
OWN = "*"  # marks Analytic-DPM with the moments of the data rather than those of standard normal data


def gaussian() -> tuple[Array, Array]:
    """(64,) means and variances of the digits along their principal axes."""
    data = digits()
    variance, axes = np.linalg.eigh(np.cov(data.T))
    return np.asarray(axes.T @ data.mean(axis=0)), np.maximum(variance, 0.0)


def with_moments(name: str, variance: Array) -> Build:
    """Analytic-DPM with the Γ_t of Gaussian data: the mean over the axes of σ²/(α² v + σ²)."""
    eta = {"analytic_ddpm": 1.0, "analytic_ddim": 0.0}[name]

    def build(process: Process, ts: Array) -> da.Tableau:
        def moments(t: float) -> float:
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            return float(np.mean(sigma**2 / (alpha**2 * variance + sigma**2)))

        return da.analytic_dpm(process, ts, moments, eta, name=name + OWN)

    return build


def methods(config: Config, variance: Array) -> dict[str, tuple[Build, list[str], str]]:
    """Name → (build, other names of the same method, "sde" or "ode")."""
    process = vp_linear(config)
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    groups = distinct_solvers(process, da.grid(process, 12, config["grid"]), names, stochastic=True)
    found = {name: (da.SOLVERS[name].build, same[1:], "sde") for name, same in groups.items()}
    for name in config["own_moments"]:
        found[name + OWN] = (with_moments(name, variance), [], "sde")
    for name in config["ode"]:
        found[name] = (da.SOLVERS[name].build, [], "ode")
    return found


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "law" (solver, grid, nfe: W2 per pixel, relative error of the total variance), "order", "point"."""
    process, (mean, variance) = vp_linear(config), gaussian()
    found = methods(config, variance)
    rows: list[dict[str, Any]] = []
    for done, (name, (build, same, kind)) in enumerate(found.items(), 1):
        common = {"solver": name, "same_as": " = ".join(same), "kind": kind}
        rows += [{"part": "law", **common, **row} for row in _laws(build, name, process, (mean, variance), config)]
        if kind == "sde":
            row = da.SOLVERS[name.rstrip(OWN)]
            home, _, options = da.order_problem(row.home)
            order = da.weak_order(build, home, step_counts(row, "weak"), **options)
            rows.append({"part": "order", **common, "declared": row.order, "slope": order.slope,
                         "slope_error": order.standard_error})  # fmt: skip
        at, steps = config["point"]
        table = build(process, da.grid(process, steps, config["grid"], config["t_start"], config["t_end"]))
        rows.append({"part": "point", **common, "w2": float(da.law_error(table, process, at, 0.0)[0])})
        progress(done / len(found))
    return pd.DataFrame(rows)


def _laws(build: Build, name: str, process: Process, data: tuple[Array, Array], config: Config) -> list[dict[str, Any]]:
    rows = []
    alpha, sigma = float(process.alpha(config["t_end"])), float(process.sigma(config["t_end"]))
    exact = alpha**2 * data[1] + sigma**2
    for kind in (config["grid"], *config["other_grids"]):
        budgets = config["calls" if kind == config["grid"] else "compared_at"]
        for steps in dict.fromkeys(steps_for(name.rstrip(OWN), calls) for calls in budgets):
            if steps == 0:
                continue
            table = build(process, da.grid(process, steps, kind, config["t_start"], config["t_end"]))
            mean, variance = da.output_law(table, process, *data)
            square = (mean - alpha * data[0]) ** 2 + (np.sqrt(variance) - np.sqrt(exact)) ** 2
            rows.append({"grid": kind, "steps": steps, "nfe": table.nfe, "w2": float(np.sqrt(square.mean())),
                         "variance": float(variance.sum() / exact.sum() - 1.0)})  # fmt: skip
    return rows


def at_calls(frame: Frame, calls: int, grids: list[str]) -> Frame:
    """Per solver the result of most calls up to ``calls``, on the best of ``grids``; ordered by W2."""
    rows = frame[(frame.part == "law") & (frame.nfe <= calls) & frame.grid.isin(grids)]
    last = rows.sort_values("nfe").groupby(["solver", "grid"], sort=False).tail(1)
    return last.sort_values("w2").groupby("solver", sort=False).head(1).set_index("solver")


def findings(frame: Frame, config: Config) -> dict[str, Any]:
    """The numbers that verdict and headline state."""
    order = frame[frame.part == "order"]
    points = frame[(frame.part == "point") & (frame.kind == "sde")]
    off = (order.slope - order.declared).abs()
    return {
        "off": float(off.max()),
        "met": int((off <= config["tolerance"]).sum()),
        "count": len(order),
        "exact": points[points.w2 < config["exact_below"]].solver.tolist(),
        "points": points,
        "at": {calls: at_calls(frame, calls, [config["grid"]]) for calls in config["compared_at"]},
        "best": {calls: at_calls(frame, calls, [config["grid"], *config["other_grids"]])
                 for calls in config["compared_at"]},
    }  # fmt: skip


def verdict(frame: Frame, config: Config) -> str:
    """Who is closest at equal calls, and how many are closer than ODE rows; weak orders; who is exact for a point."""
    f, first, closer = findings(frame, config), [], []
    for calls, at in f["at"].items():
        sde, free = at[at.kind == "sde"], f["best"][calls]
        noisy, still = (free[free.kind == kind].iloc[0] for kind in ("sde", "ode"))
        first.append(
            f"{sde.index[0]} at {calls} calls (W2 {style.as_text(sde.w2.iloc[0])} per pixel; on best grids "
            f"{noisy.name} {style.as_text(noisy.w2)}, without noise {still.name} {style.as_text(still.w2)})"
        )
        beaten = ", ".join(str(int((sde.w2 < at.w2[name]).sum())) for name in config["ode"])
        closer.append(f"{beaten} of {len(sde)}")
    return (
        f"For Gaussian data with the digits' moments, {config['grid']} grid, the closest with noise is "
        f"{', '.join(first)}, and {' and '.join(closer)} are closer than {', '.join(config['ode'])}; the weak order is "
        f"the declared one within {config['tolerance']:g} for {f['met']} of {f['count']}; {len(f['exact'])} of "
        f"{len(f['points'])} are exact for a point mass."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """W2 against calls; variance errors of all rows, ranked; slopes beside declared weak orders."""
    f = findings(frame, config)
    first = config["compared_at"][0]
    at = f["at"][first]
    sde, ode = at[at.kind == "sde"], at[at.kind == "ode"]
    closer = int((sde.w2 < ode.w2.min()).sum())
    headline = (
        f"{first} calls, exact model: {closer or 'none'} of {len(sde)} samplers with noise come closer to the right "
        f"law than {ode.index[0]} without; {len(f['exact'])} are exact for a point mass"
    )
    note = (
        f"Data: the Gaussian with the digits' mean and covariance (64-D); {style.setting(config)}, {config['grid']} "
        "grid; exact laws by linear algebra, no sampling; model and law of x_T are exact, so noise has nothing to "
        "mend. Slopes: 1-D Gaussians, t from 0.4 to 0.1. Solid ε, dashed x₀, dotted score, dash-dotted v; left, "
        f"hollow: order 2 and more. Name{OWN}: Analytic-DPM with the moments of these data; (+n): n more names."
    )
    width, height = 14.7, 2.6 + 0.2 * len(at)
    fig = style.new_figure(width, height, headline, note)
    low, room = 0.6 / height, fig.subplotpars.top - (0.6 + 0.4) / height
    axes = [
        fig.add_axes((left / width, low, wide / width, room)) for left, wide in ((0.8, 4.0), (8.3, 3.5), (12.0, 2.5))
    ]
    _curves(axes[0], frame, config, f)
    _variances(axes[1], frame, list(at.index), config)
    _orders(axes[2], frame, list(at.index), f)
    return fig


def _look(name: str) -> dict[str, Any]:
    return style.look(name.rstrip(OWN))


def _curves(ax: Any, frame: Frame, config: Config, f: dict[str, Any]) -> None:
    rows = frame[(frame.part == "law") & (frame.grid == config["grid"])]
    named = {at[at.kind == "sde"].index[0] for at in f["at"].values()} | {*config["preferred"], *config["ode"]}
    ends = []
    for name, part in rows.groupby("solver", sort=False):
        ode, bold = part.kind.iloc[0] == "ode", name in named
        look = _look(str(name)) if bold else {"color": "#c4c4c4"}
        ax.plot(
            part.nfe, part.w2, **{**look, "linewidth": 2.2 if ode else 1.6 if bold else 0.9}, zorder=3 if bold else 2
        )
        if bold:
            ends.append((part.nfe.iloc[-1], part.w2.iloc[-1], f"{name}{' (ODE)' if ode else ''}", look["color"]))
    ax.set(xscale="log", yscale="log", title="2-Wasserstein distance to the exact law", xlabel="model calls (NFE)",
           ylabel="W2 per pixel", xlim=(min(config["calls"]) * 0.93, rows.nfe.max() * 1.05))  # fmt: skip
    ax.set_ylim(max(rows.w2.min() * 0.6, 1e-6), 3.0)
    style.plain_log_ticks(ax.xaxis, [c for c in config["calls"] if c not in (7, 14, 28)])
    ax.text(0.03, 0.03, "grey: all other stochastic rows", transform=ax.transAxes, fontsize=9, color="#777777")
    style.end_labels(ax, ends, 9)


def _variances(ax: Any, frame: Frame, names: list[str], config: Config) -> None:
    limit = 2.0
    for calls, face in zip(config["compared_at"], ("white", None), strict=False):
        at = at_calls(frame, calls, [config["grid"]])
        for y, name in enumerate(names):
            if name not in at.index:
                continue
            value, colour = float(at.variance[name]), style.family(name.rstrip(OWN))[0]
            inside = value < limit
            ax.plot(min(value, limit), y, "o" if inside else ">", color=colour, markerfacecolor=face or colour,
                    markersize=6.5, clip_on=False, zorder=3)  # fmt: skip
    ax.plot(
        [], [], "o", color="#444444", markerfacecolor="white", markersize=6.5, label=f"{config['compared_at'][0]} calls"
    )
    ax.plot([], [], "o", color="#444444", markersize=6.5, label=f"{config['compared_at'][-1]} calls")
    ax.axvline(0.0, color="#333333", lw=1.0, zorder=1)
    ax.set_xscale("symlog", linthresh=0.05, linscale=0.6)
    ticks = [-0.5, -0.1, 0.0, 0.1, 0.4, limit]
    ax.set_xticks(ticks, [f"{100 * v:+g} %" if v else "0" for v in ticks], fontsize=8.5)
    ax.xaxis.set_minor_locator(style.matplotlib.ticker.NullLocator())
    ax.set(xlim=(-1.0, limit), xlabel="relative error of the total variance", title="Total variance of the output")
    same = style.texts(frame[frame.part == "point"].set_index("solver").same_as)
    more = {name: f" (+{same[name].count('=') + 1})" if same[name] else "" for name in names}
    printed = [f"{name} (ODE)" if name in config["ode"] else name + more[name] for name in names]
    ax.set_yticks(range(len(names)), printed, fontsize=8.8)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(style.family(name.rstrip(OWN))[0])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower left", fontsize=8.5)


def _orders(ax: Any, frame: Frame, names: list[str], f: dict[str, Any]) -> None:
    order = frame[frame.part == "order"].set_index("solver")
    for y, name in enumerate(names):
        colour = style.family(name.rstrip(OWN))[0]
        if name in order.index:
            ax.plot(order.declared[name], y, "|", color="#444444", markersize=12, markeredgewidth=2.2)
            ax.plot(order.slope[name], y, "o", color=colour, markersize=5.5, zorder=3)
        if name in f["exact"]:
            ax.text(2.75, y, "✓", ha="center", va="center", fontsize=10, color=colour)
    ax.set(xlim=(0.5, 3.1), title="Weak order", xlabel="slope (bar: declared)")
    ax.text(2.75, -0.9, "point", ha="center", va="bottom", fontsize=9)
    ax.set_xticks([1, 2])
    ax.set_yticks([])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
