"""Which directions of the data does a sampler shrink or stretch? Its stability function on Gaussian data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import digits, steps_for, vp_linear

NAME = "transfer"
QUESTION = "By which factor does a sampler at 10 calls get the standard deviation of each principal direction wrong?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grid": "t2",
    "solvers": ["ddim", "rhoab3", "tab3", "rhork_2heun"],
    "calls": 10,
    "variances": [1e-6, 10.0, 241],
}
QUICK: Config = {"variances": [1e-6, 10.0, 41]}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "curve" (solver, variance, ratio) and "spectrum" (the same at the digits' eigenvalues)."""
    process = vp_linear(config)
    low, high, count = config["variances"]
    spectrum = np.linalg.eigvalsh(np.cov(digits().T))[::-1]
    axes = {"curve": np.geomspace(low, high, count), "spectrum": np.maximum(spectrum, 0.0)}
    rows = []
    for done, solver in enumerate(config["solvers"], 1):
        steps = steps_for(solver, config["calls"])
        table = da.build(solver, process, da.grid(process, steps, config["grid"], config["t_start"], config["t_end"]))
        for part, variances in axes.items():
            exact = da.exact_transfer(process, variances, config["t_start"], config["t_end"])
            ratios = da.transfer(table, process, variances) / exact
            rows += [
                {"part": part, "solver": solver, "steps": steps, "nfe": table.nfe, "variance": v, "ratio": r}
                for v, r in zip(variances, ratios, strict=True)
            ]
        progress(done / len(config["solvers"]))
    return pd.DataFrame(rows)


def findings(frame: Frame) -> Frame:
    """Per solver, over the digits' spectrum: smallest and largest ratio, and the typical |log ratio| as a factor."""
    spectrum = frame[frame.part == "spectrum"]
    grouped = spectrum.groupby("solver", sort=False).ratio
    typical = grouped.apply(lambda r: float(np.exp(np.sqrt(np.mean(np.log(np.abs(r)) ** 2)))))
    return pd.DataFrame({"low": grouped.min(), "high": grouped.max(), "typical": typical})


def verdict(frame: Frame, config: Config) -> str:
    """How far each solver's scale factors are from the exact ones on the digits' spectrum."""
    found = findings(frame)
    parts = ", ".join(
        f"{row.Index} by {row.typical:.2f}x ({row.low:.2f} to {row.high:.2f})"
        for row in found.sort_values("typical").itertuples()
    )
    shrinks = [name for name, row in found.iterrows() if row.high < 1]
    closing = f"; {', '.join(shrinks)} shrink every direction" if shrinks else ""
    return (
        f"At {config['calls']} calls on the {config['grid']} grid, typically (root mean square of the log) over the "
        f"principal directions of the digits, the standard deviation comes out wrong: {parts}{closing}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Transfer over exact transfer against the variance, with the digits' spectrum as a rug."""
    found = findings(frame).sort_values("typical")
    best, worst = found.index[0], found.index[-1]
    headline = (
        f"{config['calls']} calls: over the digits' directions {best} is typically {found.typical.iloc[0]:.2f}× off in "
        f"scale, {worst} {found.typical.iloc[-1]:.2f}×"
    )
    note = (
        "How the table scales a Gaussian direction, over how the exact flow does (transfer functions: no sampling); 1 "
        f"is right, below 1 the sampler shrinks. {style.setting(config)}, {config['grid']} grid; ticks below: "
        "eigenvalues of the digits' covariance."
    )
    fig = style.new_figure(10.0, 6.2, headline, note)
    ax = fig.subplots(gridspec_kw=style.body(fig, bottom=0.6, left=0.8, right=1.75, extra_top=0.15))
    curves = frame[frame.part == "curve"]
    ends = []
    for solver, part in curves.groupby("solver", sort=False):
        look = {**style.look(solver), "linewidth": 2.2, "markevery": max(1, len(part) // 12)}
        ax.plot(part.variance, part.ratio, **look)
        steps = int(part.steps.iloc[0])
        ends.append(
            (
                part.variance.iloc[-1],
                part.ratio.iloc[-1],
                f"{solver}" + (f" ({steps} steps)" if steps != part.nfe.iloc[0] else ""),
                look["color"],
            )
        )
    ax.axhline(1.0, color="#333333", lw=1.2, zorder=1)
    ax.text(curves.variance.min() * 1.3, 1.0, "exact", va="bottom", fontsize=9.5, color="#333333")
    spectrum = frame[(frame.part == "spectrum") & (frame.solver == config["solvers"][0])].variance
    shown = spectrum[spectrum > curves.variance.min()]
    ax.plot(
        shown,
        np.full(len(shown), 0.02),
        "|",
        color=style.ORANGE,
        markersize=16,
        markeredgewidth=1.4,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )
    rug = f"variance of the digits' principal directions ({len(shown)} of {len(spectrum)} shown)"
    ax.text(np.sqrt(shown.min() * shown.max()), 0.065, rug, color="#9a6a00", fontsize=9.5, ha="center",
            transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="variance of the data along a direction",
        ylabel="standard deviation produced / exact",
    )
    low, high = curves.ratio.min(), curves.ratio.max()
    ax.set_ylim(low / (high / low) ** 0.25, high * 1.08)
    ax.set_xlim(curves.variance.min(), curves.variance.max())
    style.plain_log_ticks(
        ax.yaxis,
        [t for t in (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4) if ax.get_ylim()[0] < t < ax.get_ylim()[1]],
    )
    style.end_labels(ax, ends, 10)
    return fig
