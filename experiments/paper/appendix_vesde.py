"""Does a variance-exploding process need more model calls than a variance-preserving one? VP, VE and EDM, same data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, steps_for, vp_linear

NAME = "appendix_vesde"
QUESTION = "Do samplers on VE and EDM need more model calls than on VP for the same error?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "ve": [0.01, 50.0],
    "edm": [0.002, 80.0],
    "solvers": ["ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "rhork_2heun", "rhork_3kutta",
                "edm_heun", "dpmpp_2m", "unipc2_bh2_x0"],
    "grids": {"VP": ["t2"], "VE": ["t1", "vp_t2"], "EDM": ["rho7", "vp_t2"]},
    "calls": [5, 10, 20, 50],
    "compared_at": 10,
    "choices": {
        "VE": "noise levels of score SDE on CIFAR-10; the paper's table on VESDE and its grids are not known to us",
        "EDM": "not in the paper; noise levels of EDM",
        "end": "every process stops at the ρ of VP's t_end and starts at its own largest level",
        "vp_t2": "VP's times, carried over by equal ρ, since a grid in VE's own t is a choice too",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "solvers": ["ddim", "tab3", "dpmpp_2m"],
                 "calls": [5, 10, 20]}  # fmt: skip
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 512,
    "grids": {"VP": ["t2", "rho7", "logrho"], "VE": ["t1", "rho7", "vp_t2"], "EDM": ["rho7", "logrho", "vp_t2"]},
    "calls": [5, 7, 10, 14, 20, 28, 40, 56],
}
ALIKE = 1.05  # call counts within this factor are "about as many"
BORROWED = "vp_t2"  # the levels ρ of VP's t2 grid, on another process
LINES = {"VP": (style.BLACK, "-", "o"), "VE": (style.VERMILLION, "-", "s"), "EDM": (style.BLUE, "-", "^")}


def processes(config: Config) -> dict[str, tuple[Process, float, float]]:
    """Name → (process, t_start, t_end): from each one's own largest level down to the ρ of VP's ``t_end``."""
    vp = vp_linear(config)
    level = float(vp.rho(config["t_end"]))
    found: dict[str, tuple[Process, float, float]] = {"VP": (vp, config["t_start"], config["t_end"])}
    for name, process in (("VE", da.VE(*config["ve"])), ("EDM", da.EDM(*config["edm"]))):
        found[name] = (process, process.sampling_range[0], float(process.time_from_rho(level)))
    return found


def make_grid(config: Config, name: str, kind: str, steps: int) -> Array:
    """A grid of a process by name; ``vp_t2`` has VP's times, uniform in √t, of the same levels ρ at both ends."""
    process, start, end = processes(config)[name]
    if kind != BORROWED:
        return da.grid(process, steps, kind, start, end)
    vp = vp_linear(config)
    begin = float(vp.time_from_rho(float(process.rho(start))))
    ts = np.array(process.time_from_rho(vp.rho(da.grid(vp, steps, "t2", begin, config["t_end"]))))
    ts[0], ts[-1] = start, end
    return ts


def setup(model: str, config: Config, name: str) -> tuple[Any, Any, Any, float]:
    """(ε model on the process, starts N(0, σ²), exact states at the end, their estimated error).

    A network was trained on VP: of a state x of another process it is asked ε at x α_VP/α where ρ is the same.
    """
    process, start, end = processes(config)[name]
    on_vp = studies.study(model, config)
    if not on_vp.trained or name == "VP":
        problem = studies.study(model, {**config, "t_start": start, "t_end": end}, process)
        return (problem.model, problem.x_T, *problem.reference(end))
    vp, net, x_T = vp_linear(config), on_vp.model, float(process.sigma(start)) * on_vp.x_T

    def eps(x: Any, t: float) -> Any:
        t_vp = float(np.clip(vp.time_from_rho(process.rho(t)), 0.0, 1.0))
        return net(x * float(vp.alpha(t_vp) / process.alpha(t)), t_vp)

    rtol = config["rtol"]
    found = da.reference_solution(eps, process, x_T, end, rtol, rtol, t_start=start, certify=False)
    return eps, x_T, found.x, found.error_estimate


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, process, solver, grid, calls) and "ratio" (model, process, solver, calls).

    A ratio is the RMS error over VP's with the same solver and calls, each on the best of its grids without the
    borrowed one (``own``) or with it (``any``), with its 95 % interval over samples, which start from the same noise.
    """
    rows: list[dict[str, Any]] = []
    total, done = len(config["models"]) * len(config["grids"]), 0
    for model in config["models"]:
        kept: dict[tuple[str, str, str, int], Array] = {}
        for name, kinds in config["grids"].items():
            eps, x_T, truth, estimate = setup(model, config, name)
            for solver, kind, calls in [(s, k, c) for s in config["solvers"] for k in kinds for c in config["calls"]]:
                steps = steps_for(solver, calls)
                if not steps:
                    continue
                ts = make_grid(config, name, kind, steps)
                process = processes(config)[name][0]
                table = da.build(solver, process, ts).in_terms_of(process, "eps")
                squares = np.asarray(((da.run(table, eps, x_T) - truth) ** 2).mean(1).cpu())
                kept[name, solver, kind, calls] = squares
                rows.append({"part": "error", "model": model, "process": name, "solver": solver, "grid": kind,
                             "calls": calls, "nfe": table.nfe, "steps": steps, "rms": float(np.sqrt(squares.mean())),
                             "estimate": estimate})  # fmt: skip
            done += 1
            progress(done / total)
        rows += [{"part": "ratio", "model": model, **row} for row in _ratios(kept, config)]
    return pd.DataFrame(rows)


def _ratios(kept: dict[tuple[str, str, str, int], Array], config: Config) -> list[dict[str, Any]]:
    rows = []
    for solver, calls in {(s, c): None for _, s, _, c in kept}:
        best: dict[tuple[str, str], Array] = {}
        for name, kinds in config["grids"].items():
            for choice in ("own", "any"):
                allowed = [k for k in kinds if choice == "any" or k != BORROWED]
                best[name, choice] = min((kept[name, solver, k, calls] for k in allowed), key=lambda s: float(s.mean()))
        for (name, choice), squares in best.items():
            if name != "VP":
                base = best["VP", "own"]
                low, high = bootstrap_ratio(squares, base, config["seed"], draws=500)
                ratio = float(np.sqrt(squares.mean() / base.mean()))
                rows.append({"process": name, "solver": solver, "calls": calls, "choice": choice,
                             "ratio": ratio, "low": low, "high": high})  # fmt: skip
    return rows


def envelope(frame: Frame, model: str, process: str, *, borrowed: bool) -> Any:
    """Series over calls: the least RMS error of all solvers and grids, with or without the borrowed grid."""
    rows = frame[(frame.part == "error") & (frame.model == model) & (frame.process == process)]
    if not borrowed:
        rows = rows[rows.grid != BORROWED]
    return rows.groupby("calls").rms.min()


def calls_for(errors: Any, target: float) -> float:
    """Calls at which a series over calls falls to ``target`` for good, between counts in log–log; inf if it does not.

    Where the first entry is at the target or below, its calls.
    """
    calls, rms = errors.index.to_numpy(float), errors.to_numpy(float)
    above = np.flatnonzero(rms > target)
    if above.size == 0:
        return float(calls[0])
    i = int(above[-1])
    if i == rms.size - 1:
        return float("inf")
    share = np.log(rms[i] / target) / np.log(rms[i] / rms[i + 1])
    return float(np.exp(np.log(calls[i]) + share * np.log(calls[i + 1] / calls[i])))


def findings(frame: Frame, config: Config, model: str) -> dict[str, dict[str, Any]]:
    """Per process other than VP: its ratios at the compared calls, and the calls for VP's least error there."""
    found = {}
    calls = config["compared_at"]
    target = float(envelope(frame, model, "VP", borrowed=True)[calls])
    for name in [p for p in config["grids"] if p != "VP"]:
        at = frame[(frame.part == "ratio") & (frame.model == model) & (frame.process == name) & (frame.calls == calls)]
        own, every = at[at.choice == "own"], at[at.choice == "any"]
        found[name] = {
            "solvers": len(own),
            "more": int((own.ratio > 1).sum()),
            "clear": int((own.low > 1).sum()),
            "less": int((own.high < 1).sum()),
            "median": float(own.ratio.median()),
            "median_any": float(every.ratio.median()),
            "target": target,
            "calls": calls_for(envelope(frame, model, name, borrowed=False), target),
            "calls_any": calls_for(envelope(frame, model, name, borrowed=True), target),
            "most": int(frame.calls.max()),
        }
    return found


def _count(calls: float, most: int) -> str:
    return f"{calls:.0f}" if np.isfinite(calls) else f"more than {most}"


def verdict(frame: Frame, config: Config) -> str:
    """Calls in which the other processes reach VP's least error, and for how many solvers they err more."""
    calls, every = config["compared_at"], {m: findings(frame, config, m) for m in frame.model.unique()}
    took, more = [], []
    for name in next(iter(every.values())):
        own = [found[name] for found in every.values()]
        reached, borrowed = (" and ".join(_count(f[key], f["most"]) for f in own) for key in ("calls", "calls_any"))
        took.append(f"{name} {reached} ({borrowed})")
        more.append(f"{name} in {sum(f['more'] for f in own)} of {sum(f['solvers'] for f in own)}")
    said = ", ".join(f"{_needs(found['VE']['calls'] / calls)} on the {m}" for m, found in every.items())
    return (
        f"VP's least error at {calls} calls takes {', '.join(took)} calls (brackets: on VP's noise levels): VE needs "
        f"{said}; solver by solver {', '.join(more)} cases has more error than VP."
    )


def _needs(ratio: float) -> str:
    return "more calls" if ratio > ALIKE else "fewer calls" if ratio < 1 / ALIKE else "about as many calls"


def draw(frame: Frame, config: Config) -> Figure:
    """A column per model: least error of all solvers per process and kind of grid; each solver's ratio to VP."""
    names, calls = list(frame.model.unique()), config["compared_at"]
    found = findings(frame, config, names[-1])["VE"]
    headline = (
        f"On the {names[-1]} VE takes {_count(found['calls'], found['most'])} calls for the least error that VP has at "
        f"{calls}"
    )
    own = "; ".join(
        f"{name}: {', '.join(k for k in kinds if k != BORROWED)}" for name, kinds in config["grids"].items()
    )
    note = (
        f"VE({config['ve'][0]:g}, {config['ve'][1]:g}), EDM up to {config['edm'][1]:g}, {style.setting(config)}; all "
        f"stop at the same noise level ρ = {float(vp_linear(config).rho(config['t_end'])):.4f} and start from the same "
        f"noise. Own grids: {own}; t1 on VE is uniform in log ρ. Upper: least error of all solvers. Lower: error over "
        f"VP's at {calls} calls, same solver, each on its best grid, with 95 % interval over {config['samples']} "
        "samples. Hollow and dashed: VE and EDM may also use the noise levels of VP's t2 grid."
    )
    upper, between, lower = 2.0, 0.75, 0.2 * len(config["solvers"]) + 0.5
    height, columns = upper + between + lower, max(len(names), 2)
    fig = panels.sheet(headline, note, height)
    titles = [panels.short(model) for model in names]
    axes, _ = panels.small_multiples(fig, titles, columns, extra_top=0.45, wspace=0.06, left=1.0, end=upper / height)
    for ax, model in zip(axes, names, strict=True):
        _envelopes(ax, frame, config, model, findings(frame, config, model))
    axes[0].set(yscale="log")
    axes[0].set_ylabel("RMS error", fontsize=8.5)
    panels.calls_axis(axes, config["calls"])
    panels.key(fig, axes[0])
    below, _ = panels.small_multiples(fig, [""] * len(names), columns, wspace=0.06, left=1.0,
                                      begin=(upper + between) / height)  # fmt: skip
    for ax, model in zip(below, names, strict=True):
        _ratio_panel(ax, frame, config, model)
        ax.set_xlabel(f"RMS error over that on VP, {calls} calls", fontsize=8.5, labelpad=2)
    return fig


def _envelopes(ax: Any, frame: Frame, config: Config, model: str, found: dict[str, Any]) -> None:
    for name in config["grids"]:
        colour, line, marker = LINES[name]
        for borrowed in (False, True) if name != "VP" else (False,):
            least = envelope(frame, model, name, borrowed=borrowed)
            panels.curve(ax, least.index, least, label=f"{name}, VP's levels" if borrowed else name, color=colour,
                         ls="--" if borrowed else line, marker=marker,
                         markerfacecolor="white" if borrowed else colour)  # fmt: skip
    ax.axhline(next(iter(found.values()))["target"], color="#999999", lw=0.8, zorder=0)


def _ratio_panel(ax: Any, frame: Frame, config: Config, model: str) -> None:
    at = frame[(frame.part == "ratio") & (frame.calls == config["compared_at"])]
    others = [name for name in config["grids"] if name != "VP"]
    for name, shift in zip(others, np.linspace(-0.2, 0.2, len(others)) if len(others) > 1 else [0.0], strict=True):
        colour, _, marker = LINES[name]
        for row in at[(at.process == name) & (at.model == model)].itertuples():
            y = config["solvers"].index(row.solver) + shift
            if row.choice == "own":
                ax.plot([row.low, row.high], [y, y], color=colour, lw=2.2, alpha=0.45)
            ax.plot(row.ratio, y, marker, color=colour, markersize=4.5, zorder=3 if row.choice == "own" else 2,
                    markerfacecolor=colour if row.choice == "own" else "white")  # fmt: skip
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    low, high = min(at.ratio.min(), 1.0) / 1.6, max(at.ratio.max(), 1.0) * 1.6  # long intervals run out of the panel
    ax.set(xscale="log", xlim=(low, high), ylim=(len(config["solvers"]) - 0.5, -0.5))
    style.plain_log_ticks(ax.xaxis, [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= v <= high])
    ax.set_yticks(range(len(config["solvers"])), config["solvers"])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
