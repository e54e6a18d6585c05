"""Who is worse than Euler on a rectified flow, and which log-SNR step is it? Exact flows, time shifts 1 and 3."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, steps_for, vp_linear

NAME = "rectified_flow"
QUESTION = (
    "Which samplers are worse than Euler on a rectified flow at 5 to 20 model calls, and which step makes their error?"
)
LOWER = "*"  # marks a sampler whose last steps are of lower order, down to the first, as packages run it
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "t_start": 0.999,
    "t_end": 1e-3,
    "grids": ["shift1", "shift3"],
    "calls": [5, 10, 20],
    "solvers": ["ddim", "flow_heun", "tab1", "tab2", "tab3", "rhoab2", "dpmpp_2m", "dpmpp_2m*", "unipc2_bh2_x0",
                "unipc2_bh2_x0*", "unipc3_bh2_x0", "unipc3_bh2_x0*", "unipc3_bh2_eps", "unipc3_bh2_eps*"],
    "swept": ["tab2", "dpmpp_2m", "dpmpp_2m*", "unipc3_bh2_x0", "unipc3_bh2_eps*"],
    "gaps": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "choices": {
        "t_start": "1 - 1/1000, the largest time below 1 of a model told 1,000 times; at 1 the log-SNR is infinite",
        "t_end": "1e-3; packages end at 0, where the log-SNR is infinite, with a step of first order",
    },
}  # fmt: skip
QUICK: Config = {
    **studies.BASE_QUICK,
    "models": ["mixture"],
    "calls": [5, 10],
    "gaps": [1e-2, 1e-3],
}
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2048,
                    "calls": [5, 6, 8, 10, 14, 20, 28, 40]}  # fmt: skip
EULER = "flow_euler"


def build(name: str, ts: Array) -> da.Tableau:
    """A registry solver on the rectified flow; with `LOWER` after its name its last steps are of lower order."""
    make: Any = da.SOLVERS[name.rstrip(LOWER)].build
    return partial(make, lower_order_final=True)(FLOW, ts) if name.endswith(LOWER) else make(FLOW, ts)


FLOW = da.RectifiedFlow()


def setup(name: str, config: Config) -> tuple[Any, Any, Any, float, Any]:
    """(ε model, starts N(0, I), exact states at the end, their estimated error, mixture with exact flow or None).

    A network was trained on VP: it is asked ε at x σ_VP/σ where ρ is the same, and beyond its times at its last.
    """
    if name != "network":
        problem = studies.study(name, config, FLOW)
        return (problem.model, problem.x_T, *problem.reference(config["t_end"]), problem.exact)
    problem, vp = studies.study(name, {**config, "t_start": 1.0}), vp_linear(config)

    def eps(x: Any, t: float) -> Any:
        t_vp = float(vp.time_from_rho(min(float(FLOW.rho(t)), float(vp.rho(1.0)))))
        return problem.model(x * float(vp.sigma(t_vp) / FLOW.sigma(t)), t_vp)

    ends, rtol = (config["t_start"], config["t_end"]), config["rtol"]
    found = da.reference_solution(eps, FLOW, problem.x_T, ends[1], rtol, rtol, t_start=ends[0], certify=False)
    return eps, problem.x_T, found.x, found.error_estimate, None


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (RMS, and its ratio to Euler's at as many calls with a 95 % interval over samples), "step"
    (exact flows, fewest calls: each step's share of the squared error), "late" (there, but the first model output is
    used by the first step alone) and "end" (RMS against where the grid starts or ends)."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"], 1):
        eps, x_T, truth, estimate, exact = setup(name, config)
        for kind in config["grids"]:
            for calls in config["calls"]:
                found = _errors(eps, x_T, truth, kind, calls, config)
                rows += [{"part": "error", "model": name, "grid": kind, "estimate": estimate, **row} for row in found]
            if exact is not None:
                found = _steps(exact, np.asarray(x_T.cpu()), np.asarray(truth.cpu()), kind, config)
                rows += [{"model": name, "grid": kind, **row} for row in found]
        if exact is not None:
            rows += [{"part": "end", "model": name, **row} for row in _ends(exact, np.asarray(x_T.cpu()), config)]
        progress(done / len(config["models"]))
    return pd.DataFrame(rows)


def _grid(name: str, kind: str, calls: int, config: Config) -> Array:
    steps = steps_for(name.rstrip(LOWER), calls)
    return da.grid(FLOW, steps, kind, config["t_start"], config["t_end"])


def _errors(eps: Any, x_T: Any, truth: Any, kind: str, calls: int, config: Config) -> list[dict[str, Any]]:
    rows, euler = [], np.empty(0)
    for name in (EULER, *config["solvers"]):
        table = build(name, _grid(name, kind, calls, config)).in_terms_of(FLOW, "eps")
        squares = np.asarray(((da.run(table, eps, x_T) - truth) ** 2).mean(1).cpu())
        euler = squares if name == EULER else euler
        low, high = bootstrap_ratio(squares, euler, config["seed"], draws=500)
        ratio = float(np.sqrt(squares.mean() / euler.mean()))
        rows.append({"solver": name, "calls": calls, "nfe": table.nfe, "rms": float(np.sqrt(squares.mean())),
                     "ratio": ratio, "low": low, "high": high})  # fmt: skip
    return rows


def _steps(exact: Any, x: Array, truth: Array, kind: str, config: Config) -> list[dict[str, Any]]:
    """Shares of the steps: ⟨step's transported error, error⟩/|error|², which sum to 1."""
    rows, calls = [], min(config["calls"])
    for name in (EULER, *config["solvers"]):
        ts = _grid(name, kind, calls, config)
        table = build(name, ts)
        parts = da.transported_errors(table, FLOW, exact, x)
        error = parts.sum(axis=0)
        sizes = np.diff(FLOW.lam(ts))
        for i, part in enumerate(parts):
            share = float(np.sum(part * error) / np.sum(error**2))
            rows.append({"part": "step", "solver": name, "calls": calls, "step": i, "steps": len(parts),
                         "log_snr": float(sizes[i]), "share": share})  # fmt: skip
        if len(parts) > 2 and table.prediction in ("eps", "x0"):
            first = da.adams(FLOW, ts[:2], 0).in_terms_of(FLOW, table.prediction)
            late = first.then(build(name, ts[1:]))
            gap = da.run(late, exact.model(FLOW, table.prediction), x) - truth
            ratio = float(np.sqrt(np.mean(gap**2) / np.mean(error**2)))
            rows.append({"part": "late", "solver": name, "calls": calls, "ratio": ratio})
    return rows


def _ends(exact: Any, x: Array, config: Config) -> list[dict[str, Any]]:
    rows, kind, calls = [], config["grids"][-1], min(config["calls"])
    for gap in config["gaps"]:
        for end, span in (("t_start", (1.0 - gap, config["t_end"])), ("t_end", (config["t_start"], gap))):
            truth = exact.flow(FLOW, x, *span)
            for name in (EULER, *config["swept"]):
                table = build(name, da.grid(FLOW, steps_for(name.rstrip(LOWER), calls), kind, *span))
                error = da.run(table, exact.model(FLOW, table.prediction), x) - truth
                rows.append({"grid": kind, "calls": calls, "end": end, "gap": gap, "solver": name,
                             "rms": float(np.sqrt(np.mean(error**2)))})  # fmt: skip
    return rows


# -- what was found -------------------------------------------------------------------------------
def standing(frame: Frame) -> Frame:
    """Per solver: of how many cells (model, grid, calls), and in how many clearly worse or better than Euler."""
    rows = frame[(frame.part == "error") & (frame.solver != EULER)]
    same = (rows.ratio - 1.0).abs() < 1e-6
    marked = rows.assign(worse=(rows.low > 1) & ~same, better=(rows.high < 1) & ~same, same=same)
    found = marked.groupby("solver", sort=False)[["worse", "better", "same"]].sum()
    return found.assign(cells=marked.groupby("solver", sort=False).size())


def shares(frame: Frame, names: list[str]) -> dict[str, float]:
    """Medians over the exact flows, grids and ``names``: the share of the first and of the last step."""
    rows = frame[(frame.part == "step") & frame.solver.isin(names)]
    ends = {"first": rows[rows.step == 0], "last": rows[rows.step == rows.steps - 1]}
    return {end: float(part.share.median()) for end, part in ends.items()}


def mostly(frame: Frame) -> list[str]:
    """Solvers that are clearly worse than Euler in most of their cells."""
    found = standing(frame)
    return list(found.index[2 * found.worse > found.cells])


def _ratio(frame: Frame, name: str, column: str = "ratio", part: str = "error") -> float:
    rows = frame[(frame.part == part) & (frame.solver == name)]
    return float(rows[column].median())


def _eased(frame: Frame, bad: list[str]) -> list[str]:
    """Phrases: what last steps of lower order do to those of the solvers that are there both ways."""
    names = frame[frame.part == "error"].solver.unique()
    pairs = [(name, name + LOWER) for name in bad if name + LOWER in names]
    return [f"{a} {style.as_text(_ratio(frame, a))} to {style.as_text(_ratio(frame, b))}" for a, b in pairs]


def _cause(frame: Frame, names: list[str]) -> str:
    if not names or frame[(frame.part == "step") & frame.solver.isin(names)].empty:
        return ""
    found = shares(frame, names)
    larger, smaller = sorted(found, key=lambda end: -abs(found[end]))
    percent = {end: f"{round(100 * share)} %" for end, share in found.items()}
    return f"the {larger} log-SNR step makes {percent[larger]} of their error, the {smaller} {percent[smaller]}"


def verdict(frame: Frame, config: Config) -> str:
    """Who is clearly worse than Euler, how often; which step makes the error; what helps."""
    found, bad = standing(frame), mostly(frame)
    worse = ", ".join(f"{name} {found.worse[name]}" for name in bad)
    cells = int(found.cells.max())
    parts = [f"clearly worse than Euler in most of {cells} cells of model, shift and calls are {worse or 'none'}"]
    cause = _cause(frame, bad)
    if cause:
        parts.append(f"at {min(config['calls'])} calls {cause} (medians)")
    eased = _eased(frame, bad)
    if eased:
        parts.append(f"lower-order last steps take their median ratio to Euler from {', '.join(eased)}")
    return f"On rectified flows {'; '.join(parts)}."


# -- figure ---------------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """Upper row: ratio to Euler per model and shift; lower: log-SNR steps, shares of the steps, where the grid ends."""
    names, bad = list(frame[frame.part == "error"].model.unique()), mostly(frame)
    cause = _cause(frame, bad)
    headline = f"Mostly worse than Euler: {', '.join(bad) or 'none'}" + (
        f"; at {min(config['calls'])} calls {cause}" if cause else ""
    )
    headline = headline.replace(" % of their error", " % of their error".replace(" ", "\xa0"))  # kept on one line
    note = (
        "RMS error against the exact flow (digits: DOPRI5), over Euler's at as many calls, 95 % interval over "
        f"{config['samples']} samples. "
        f"t from {config['t_start']:g} to {config['t_end']:g} (at 1 and at 0 the log-SNR is infinite); shift s: "
        f"t = s u/(1 + (s − 1) u), u uniform. {LOWER}: last steps of lower order, down to the first. Share of a step: "
        "its error carried to the end by the exact flow, projected on the whole error; they sum to 1."
    )
    solvers, cells = config["solvers"], [(model, kind) for model in names for kind in config["grids"]]
    detailed = bool((frame.part == "step").any())
    upper, middle, lower = 0.165 * len(solvers) + 0.45, 0.165 * (len(solvers) + 1) + 0.95, 1.9
    height = upper + 0.35 + (middle + lower if detailed else 0.0)
    fig = panels.sheet(headline, note, height)
    titles = [f"{model}, shift {kind.removeprefix('shift')}" for model, kind in cells]
    axes, _ = panels.small_multiples(fig, titles, len(cells), left=1.15, extra_top=0.45, wspace=0.06, bottom=0.42,
                                     end=upper / height if detailed else 1.0)  # fmt: skip
    for ax, (model, kind) in zip(axes, cells, strict=True):
        _ratios(ax, frame[(frame.part == "error") & (frame.model == model) & (frame.grid == kind)], config)
        ax.set_xlabel("error / Euler's", fontsize=8.5, labelpad=2)
    for label, name in zip(axes[0].get_yticklabels(), solvers, strict=True):
        label.set_color(style.family(name.rstrip(LOWER))[0])
    panels.key(fig, axes[0])
    if detailed:
        begin = (upper + 0.75) / height
        _details(fig, frame, config, begin, (upper + 0.35 + middle - 0.45) / height, (height - lower + 0.3) / height)
    return fig


def _ratios(ax: Any, rows: Frame, config: Config) -> None:
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=1)
    calls = sorted(rows.calls.unique())
    faces = style.plt.get_cmap("viridis_r")(np.linspace(0.15, 0.9, len(calls)))
    for k, (count, face) in enumerate(zip(calls, faces, strict=True)):
        part = rows[rows.calls == count].set_index("solver").loc[config["solvers"]]
        y = np.arange(len(part)) + 0.22 * (k - (len(calls) - 1) / 2)
        ax.hlines(y, part.low, part.high, color=face, lw=1.8)
        ax.plot(part.ratio, y, "o", color=face, markeredgecolor="#333333", markeredgewidth=0.4, markersize=4,
                label=f"{count} calls", zorder=3)  # fmt: skip
    ax.set(xscale="log", ylim=(len(config["solvers"]) - 0.4, -0.6))
    style.plain_log_ticks(ax.xaxis, [0.01, 1, 100])
    ax.set_yticks(range(len(config["solvers"])), config["solvers"])
    ax.tick_params(axis="y", length=0)


def _details(fig: Figure, frame: Frame, config: Config, begin: float, end: float, below: float) -> None:
    model = frame[frame.part == "step"].model.iloc[0]
    kinds = config["grids"]
    titles = [f"{model}, shift {kind.removeprefix('shift')}: share of each step" for kind in kinds]
    axes, _ = panels.small_multiples(fig, titles, max(len(kinds), 2), left=1.15, begin=begin, end=end, wspace=0.06,
                                     extra_top=0.45)  # fmt: skip
    for ax, kind in zip(axes, kinds, strict=True):
        _shares(ax, frame[(frame.part == "step") & (frame.model == model) & (frame.grid == kind)], config)
    calls, kind = min(config["calls"]), kinds[-1].removeprefix("shift")
    (ax,), _ = panels.small_multiples(fig, [f"{model}, shift {kind}, {calls} calls: where the grid ends"], 1, left=0.6,
                                      right=1.6, begin=below, extra_top=0.45, bottom=0.42)  # fmt: skip
    _ends_panel(ax, frame[(frame.part == "end") & (frame.model == model)])


def _shares(ax: Any, rows: Frame, config: Config) -> None:
    names, steps = [EULER, *config["solvers"]], int(rows.steps.max())
    values = np.full((len(names), steps), np.nan)
    for row in rows.itertuples():
        at = row.step if row.step < row.steps - 1 else steps - 1  # of fewer steps, too, the last stands last
        values[names.index(row.solver), int(at)] = row.share
    ax.imshow(values, cmap="RdBu_r", vmin=-1.3, vmax=1.3, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(j, i, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=panels.SMALL,
                    color="white" if abs(value) > 0.8 else "#222222")  # fmt: skip
    sizes = rows[rows.solver == EULER].sort_values("step").log_snr
    ax.set_xticks(range(steps), [str(i + 1) for i in range(steps)])
    ax.set_xlabel(f"step, of sizes {', '.join(f'{size:.1f}' for size in sizes)} in λ", fontsize=8.5, labelpad=2)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.grid(visible=False)


def _ends_panel(ax: Any, rows: Frame) -> None:
    ends = []
    for (end, name), part in rows.groupby(["end", "solver"], sort=False):
        colour = style.GREY if name == EULER else style.family(str(name).rstrip(LOWER))[0]
        part = part.sort_values("gap", ascending=False)
        panels.curve(ax, part.gap, part.rms, color=colour, ls="-" if end == "t_end" else ":", marker="o")
        if end == "t_end" or name == f"unipc3_bh2_eps{LOWER}":
            mark = "" if end == "t_end" else " (start)"
            ends.append((part.gap.iloc[-1], part.rms.iloc[-1], f"{name}{mark}", colour))
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("t at the end (solid), 1 − t at the start (dotted)", fontsize=8.5, labelpad=2)
    ax.set_ylabel("RMS error", fontsize=8.5)
    ax.invert_xaxis()
    style.end_labels(ax, ends, panels.TICKS)
