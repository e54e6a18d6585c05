"""Which directions of the data does a sampler shrink or stretch? Its stability function on Gaussian data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at, span
from experiments.models.problems import digits, steps_for, vp_linear

NAME = "transfer"
QUESTION = "By which factor does a sampler at 10 calls get the standard deviation of each principal direction wrong?"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0, "t_start": 1.0, "t_end": 1e-3, "grid": "t2", "calls": 10,
    "solvers": ["ddim", "rhoab3", "tab3", "rhork_2heun"],
    "variances": [1e-6, 10.0, 241],
}  # fmt: skip
QUICK: Config = {"variances": [1e-6, 10.0, 41]}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "curve" (solver, variance, ratio) and "spectrum" (the same at the digits' eigenvalues)."""
    process, ends = vp_linear(config), (config["t_start"], config["t_end"])
    spectrum = np.maximum(np.linalg.eigvalsh(np.cov(digits().T))[::-1], 0.0)
    parts = []
    for done, solver in enumerate(config["solvers"], 1):
        steps = steps_for(solver, config["calls"])
        table = da.build(solver, process, da.grid(process, steps, config["grid"], *ends))
        for part, variances in {"curve": np.geomspace(*config["variances"]), "spectrum": spectrum}.items():
            ratio = da.transfer(table, process, variances) / da.exact_transfer(process, variances, *ends)
            row = {"part": part, "solver": solver, "steps": steps, "nfe": table.nfe}
            parts.append(pd.DataFrame({**row, "variance": variances, "ratio": ratio}))
        progress(done / len(config["solvers"]))
    return pd.concat(parts, ignore_index=True)


def findings(frame: Frame) -> Frame:
    """Per solver, best first, over the digits' spectrum: the typical |log ratio| as a factor, and ``range``."""
    ratios = at(frame, part="spectrum").groupby("solver", sort=False).ratio
    typical = ratios.agg(lambda r: float(np.exp(np.sqrt(np.mean(np.log(np.abs(r)) ** 2)))))
    return pd.DataFrame({"typical": typical, "range": ratios.agg(span)}).sort_values("typical")


def headline(frame: Frame, config: Config) -> str:
    """The best of the samplers and its factor."""
    best = findings(frame).iloc[0]
    return (
        f"At {config['calls']} calls even the best of {frame.solver.nunique()} samplers, {best.name}, gets the scale "
        f"of the digits' principal directions wrong by {best.typical:.2f}x"
    )


def verdict(frame: Frame, config: Config) -> str:
    """How far each solver's scale factors are from the exact ones on the digits' spectrum."""
    told = ", ".join(f"{row.Index} {row.typical:.2f}x ({row.range})" for row in findings(frame).itertuples())
    return f"{headline(frame, config)}; root mean square of the log, and least to largest: {told}."


def draw(frame: Frame, config: Config) -> Figure:
    """Transfer over exact transfer against the variance, with the digits' spectrum as a rug."""
    note = (
        "Standard deviation of a Gaussian direction after the sampler over the exact one, by transfer functions: no "
        f"samples. Below 1 the sampler shrinks. {style.setting(config)}, {config['grid']} grid. The factor of the "
        "headline is the root mean square of the logarithm over the eigenvalues of the digits' covariance (ticks)."
    )
    fig = panels.sheet(headline(frame, config), note, 3.3)
    ax = fig.subplots(gridspec_kw=style.body(fig, bottom=0.45, left=0.6, right=1.05, extra_top=0.1))
    curves = at(frame, part="curve")
    ends = []
    for solver, part in curves.groupby("solver", sort=False):
        last, look = part.iloc[-1], style.look(str(solver))
        panels.curve(ax, part.variance, part.ratio, **look, markevery=max(1, len(part) // 12))
        ends.append((last.variance, last.ratio, str(solver), look["color"]))
    ax.axhline(1.0, color="#333333", lw=1.0, zorder=1)
    spectrum = at(frame, part="spectrum", solver=config["solvers"][0]).variance
    shown = spectrum[spectrum > curves.variance.min()]
    ax.plot(shown, 0.04 + 0 * shown, "|", color=style.ORANGE, markersize=10, transform=ax.get_xaxis_transform())
    panels.words(ax, 0.42, 0.11, f"the digits' directions ({len(shown)} of {len(spectrum)} shown)", "#9a6a00")
    low, high = curves.ratio.min(), curves.ratio.max()
    ax.set(xscale="log", yscale="log", xlim=(curves.variance.min(), curves.variance.max()),
           ylim=(low / (high / low) ** 0.3, high * 1.08))  # fmt: skip
    ax.set_xlabel("variance of the data along a direction", fontsize=8.5)
    ax.set_ylabel("standard deviation produced / exact", fontsize=8.5)
    ax.tick_params(labelsize=panels.TICKS)
    style.plain_log_ticks(ax.yaxis, [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3])
    style.end_labels(ax, ends, 8.0)
    return fig
