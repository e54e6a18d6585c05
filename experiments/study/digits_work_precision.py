"""Which sampler is most accurate per model call on real data? The ideal denoiser of the digits, its flow certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import DigitsProblem, bootstrap_ratio, digits_problem, distinct_solvers, steps_for

NAME = "digits_work_precision"
QUESTION = "Which sampler is most accurate per model call on the 1,797 digits of scikit-learn?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grid": "t2",
    "solvers": [
        "ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "logrhoab1", "logrhoab2", "logrhoab3",
        "ipndm2", "ipndm3", "ipndm4", "euler", "ei_score", "rhork_2midpoint", "rhork_2heun", "rhork_3kutta",
        "rhork_3heun", "rhork_3ralston", "rhork_3vdh", "rhork_3ssprk", "rhork_4rk",
        "dpm_3", "dpmpp_2m", "dpmpp_3m", "edm_heun", "unipc3_bh2_x0",
    ],
    "std": 0.0,
    "samples": 512,
    "seed": 0,
    "rtol": 1e-8,
    "calls": [5, 7, 10, 14, 20, 28, 40],
    "compared_at": 10,
    "expected_ratio": 1.7,
    "shown": ["ddim", "rhork_2heun", "rhoab3", "tab3"],
    "shown_samples": 14,
    "device": "cpu",
}  # fmt: skip
QUICK: Config = {"samples": 256, "rtol": 1e-5, "calls": [5, 10], "shown_samples": 6}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (one per solver and step count), "sample" (pixels of some results) and "reference"."""
    problem = digits_problem(config)
    progress(0.3)
    grid = da.grid(problem.process, 12, config["grid"], config["t_start"], config["t_end"])
    groups = distinct_solvers(problem.process, grid, config["solvers"])
    rows: list[dict[str, Any]] = []
    squares: dict[str, np.ndarray] = {}
    target = problem.nearest(problem.reference)
    for done, (name, same) in enumerate(groups.items(), 1):
        for steps in dict.fromkeys(steps_for(name, calls) for calls in config["calls"]):
            if steps == 0:
                continue
            table = da.build(
                name,
                problem.process,
                da.grid(problem.process, steps, config["grid"], config["t_start"], config["t_end"]),
            ).in_terms_of(problem.process, "eps")
            x = da.run(table, problem.model, problem.x_T)
            error = ((x - problem.reference) ** 2).mean(dim=1).cpu().numpy()
            rows.append(
                {
                    "part": "error",
                    "solver": name,
                    "same_as": " = ".join(same[1:]),
                    "steps": steps,
                    "nfe": table.nfe,
                    "rms": float(np.sqrt(error.mean())),
                    "median": float(np.sqrt(np.median(error))),
                    "elsewhere": float((problem.nearest(x) != target).double().mean()),
                }
            )
            if table.nfe == config["compared_at"]:
                squares[name] = error
                if name in config["shown"]:
                    rows += _pixels(problem, name, x, config["shown_samples"])
        progress(0.3 + 0.65 * done / len(groups))
    rows += _pixels(problem, "reference", problem.reference, config["shown_samples"])
    low, high = bootstrap_ratio(squares["ddim"], squares["tab3"], config["seed"])
    rows.append(
        {
            "part": "reference",
            "solver": "reference",
            "nfe": problem.nfe,
            "estimate": problem.error_estimate,
            "ratio_low": low,
            "ratio_high": high,
        }
    )
    return pd.DataFrame(rows)


def _pixels(problem: DigitsProblem, solver: str, x: Any, count: int) -> list[dict[str, Any]]:
    elsewhere = (problem.nearest(x) != problem.nearest(problem.reference)).cpu().numpy()
    images = x[:count].cpu().numpy()
    return [
        {
            "part": "sample",
            "solver": solver,
            "sample": i,
            "pixel": j,
            "value": round(float(v), 3),
            "elsewhere": float(elsewhere[i]),
        }
        for i, image in enumerate(images)
        for j, v in enumerate(image)
    ]


def _at(frame: Frame, solver: str, calls: int) -> Frame:
    rows = frame[(frame.part == "error") & (frame.solver == solver) & (frame.nfe == calls)]
    return rows.iloc[0]


def findings(frame: Frame, config: Config) -> dict[str, Any]:
    """The numbers that verdict and headline state."""
    calls = config["compared_at"]
    errors = frame[frame.part == "error"]
    ddim, tab3 = _at(frame, "ddim", calls), _at(frame, "tab3", calls)
    within = errors[errors.nfe <= calls].sort_values("nfe").groupby("solver").tail(1)
    best = within.sort_values("rms").iloc[0]
    reference = frame[frame.part == "reference"].iloc[0]
    return {
        "ddim": ddim,
        "tab3": tab3,
        "ratio": ddim.rms / tab3.rms,
        "low": reference.ratio_low,
        "high": reference.ratio_high,
        "best": best.solver,
        "best_rms": best.rms,
        "certainty": errors.rms.min() / reference.estimate,
    }


def verdict(frame: Frame, config: Config) -> str:
    """How tab3 and DDIM compare at the stated number of calls, by RMS, by median and by where samples end."""
    f, text = findings(frame, config), style.as_text
    expected = config["expected_ratio"]
    met = "as expected at least" if f["ratio"] >= expected else "against the expectation not"
    median = f["tab3"]["median"] / f["ddim"]["median"]
    amount = f"{f['ratio']:.2f}x less" if f["ratio"] >= 1 else f"{1 / f['ratio']:.2f}x more"
    contrast = "though" if (median > 1) == (f["ratio"] > 1) else "and"
    typical = f"{text(median)}x further off" if median > 1 else f"{text(1 / median)}x closer"
    best = (
        "the least of all solvers" if f["best"] == "tab3" else f"{f['best']} having the least, {text(f['best_rms'], 3)}"
    )
    return (
        f"At {config['compared_at']} calls on the {config['grid']} grid the RMS error per pixel is "
        f"{text(f['ddim'].rms, 3)} with DDIM and {text(f['tab3'].rms, 3)} with tab3 ({best}), {amount} (95 % "
        f"{f['low']:.2f} to {f['high']:.2f} over {config['samples']} samples), {met} {expected:g}x less: "
        f"{f['tab3'].elsewhere:.0%} of the samples end at another image with tab3, {f['ddim'].elsewhere:.0%} with "
        f"DDIM, {contrast} the median sample is {typical} with tab3 ({text(f['tab3']['median'])} against "
        f"{text(f['ddim']['median'])}); the reference is {text(f['certainty'], 1)} times more accurate than the "
        "smallest error shown."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Error against calls, a panel per family with DDIM and tab3 in each; below it samples from the same noise."""
    f, calls = findings(frame, config), config["compared_at"]
    factor, more = max(f["ratio"], 1 / f["ratio"]), "less" if f["ratio"] >= 1 else "more"
    headline = (
        f"Digits, {calls} model calls: tab3 errs {factor:.2f}× {more} than DDIM; {f['tab3'].elsewhere:.0%} of its "
        f"samples end at another image, {f['ddim'].elsewhere:.0%} of DDIM's"
    )
    accuracy = style.as_text(frame[frame.part == "reference"].estimate.iloc[0], 1)
    note = (
        f"Ideal denoiser of the 1,797 digits (64-D, scaled to [-1, 1], std {config['std']:g}); "
        f"{style.setting(config)}, {config['grid']} grid; {config['samples']} samples; error against DOPRI5, itself "
        f"accurate to {accuracy}. DDIM (black) and tab3 (blue) in every panel."
    )
    solvers = list(frame[frame.part == "error"].solver.unique())
    families = list(dict.fromkeys(style.family(name) for name in solvers if style.family(name) != style.DDIM))
    columns = 3
    rows, shown = -(-len(families) // columns), 1 + len(config["shown"])
    curves, samples = 2.65 * rows, 0.68 * shown + 0.5
    height = curves + samples + 1.9
    fig = style.new_figure(12.0, height, headline, note)
    margins = style.body(fig, left=0.75, right=1.35, extra_top=0.35)
    margins["bottom"] = (samples + 0.85) / height
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False,
                        gridspec_kw={**margins, "wspace": 0.5, "hspace": 0.22})  # fmt: skip
    for ax, family in zip(axes.flat, families, strict=False):
        _curves(ax, frame[frame.part == "error"], family, config, f)
    for ax in axes.flat[len(families) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("model calls (NFE)")
    for ax in axes[:, 0]:
        ax.set_ylabel("RMS error per pixel")
    _samples(fig.add_axes((0.09, 0.01, 0.9, (samples - 0.25) / height)), frame, config, shown)
    return fig


def _curves(ax: Any, errors: Frame, family: tuple[str, str], config: Config, f: dict[str, Any]) -> None:
    errors = errors[errors.nfe >= min(config["calls"])]
    ends = []
    for name, rows in errors.groupby("solver", sort=False):
        member, anchor = style.family(name) == family, name in ("ddim", "tab3")
        if not (member or anchor):
            continue
        ax.plot(
            rows.nfe, rows.rms, **{**style.look(name), "linewidth": 2.2 if anchor else 1.3}, zorder=2 if anchor else 3
        )
        if member or name == "ddim":
            ends.append((rows.nfe.iloc[-1], rows.rms.iloc[-1], str(name), style.family(name)[0]))
    calls = config["compared_at"]
    ax.set(xscale="log", yscale="log", title=family[1])
    ax.set_ylim(0.7 * errors.rms.min(), 2.0 * errors[errors.solver == "ddim"].rms.max())
    ax.set_xlim(errors.nfe.min() * 0.93, errors.nfe.max() * 1.05)
    style.plain_log_ticks(ax.xaxis, sorted(set(config["calls"])))
    if family == style.family("tab3"):
        arrow = {"arrowstyle": "<->", "lw": 1.6, "color": "black", "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (calls, f["tab3"].rms), (calls, f["ddim"].rms), arrowprops=arrow, zorder=6)
        ax.annotate(f"{f['ratio']:.2f}× at {calls} calls", (calls, f["tab3"].rms), xytext=(0.05, 0.3), va="center",
                    textcoords="axes fraction", fontsize=11, fontweight="bold", zorder=6,
                    arrowprops={"arrowstyle": "-", "lw": 0.8, "shrinkB": 3})  # fmt: skip
    style.end_labels(ax, ends, 9)


def _samples(ax: Any, frame: Frame, config: Config, rows: int) -> None:
    pixels = frame[frame.part == "sample"]
    names = ["reference", *config["shown"]]
    count, size, gap = config["shown_samples"], 8, 2
    canvas = np.full((rows * (size + gap), count * (size + gap)), np.nan)
    ax.set_axis_off()
    ax.grid(False)
    for r, name in enumerate(names):
        part = pixels[pixels.solver == name]
        for i, image in part.groupby("sample"):
            y, x = r * (size + gap), int(i) * (size + gap)
            canvas[y : y + size, x : x + size] = image.sort_values("pixel").value.to_numpy().reshape(size, size)
            if image.elsewhere.iloc[0] > 0:
                ax.plot(
                    [x - 1, x + size, x + size, x - 1, x - 1], [y - 1, y - 1, y + size, y + size, y - 1],
                    color=style.VERMILLION, lw=1.8, zorder=5,
                )  # fmt: skip
        colour = style.BLACK if name == "reference" else style.family(name)[0]
        ax.text(-2.5, r * (size + gap) + 3.5, name, ha="right", va="center", color=colour, fontsize=10)
    ax.imshow(-np.ma.masked_invalid(canvas), vmin=-1, vmax=1, interpolation="nearest", rasterized=True)
    ax.set(xlim=(-2, count * (size + gap)), ylim=(rows * (size + gap) - 1, -2))
    ax.set_title(
        f"The first {count} samples at {config['compared_at']} calls, same noise; framed: not the reference's image",
        fontsize=10, color="#333333",
    )  # fmt: skip
