"""Where to put the times, and where to stop? The paper's three kinds of grid, two families of them, four end times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, judging, panels, style
from experiments.core.frames import at
from experiments.models import problems, studies

NAME = "appendix_time_grids"
QUESTION = "Is quadratic in t the best grid for tAB, and from how many calls on does stopping at 1e-4 beat 1e-3?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "solvers": ["ddim", "tab1", "tab2", "tab3", "rhoab1", "rhoab2", "rhoab3", "ipndm4", "rhork_2heun", "rhork_3kutta",
                "rhork_4rk", "dpm_2", "dpmpp_2m", "unipc2_bh2_x0"], "claimed": ["tab1", "tab2", "tab3"], "claim": "t2",
    "grids": ["t1", "t2", "t3", "rho7", "logrho"], "calls": [5, 10, 20, 50], "compared_at": 10, "draws": 500,
    "exponents": {"t": [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6], "rho": [3, 5, 7, 10, 15, 24, 36]},
    "cases": [["ddim", "t2"], ["tab3", "t2"], ["rhork_3kutta", "t2"], ["dpmpp_2m", "logrho"]],
    "end_times": [1e-2, 1e-3, 1e-4, 1e-5], "end_calls": [5, 7, 10, 14, 20, 28, 50], "compared": [1e-3, 1e-4],
    "limit_time": 1e-7, "choices": {
        "grids": "T1 with exponents 1, 2, 3, T2 with 7, T3, as in the paper's appendix H.3; its numbers are not known",
        "compared": "the paper: 1e-3 for few calls and 1e-4 for more, as recalled, without the count where it changes",
        "truth": "of end times the exact answer at t = 0, so that stopping early counts as an error",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "solvers": ["ddim", "tab3", "rhoab3", "rhork_2heun", "dpmpp_2m"],
                 "calls": [5, 10], "exponents": {"t": [1, 1.5, 2, 3, 5], "rho": [4, 7, 12]},
                 "end_times": [1e-3, 1e-4], "end_calls": [5, 10, 20]}  # fmt: skip
THOROUGH: Config = {"models": list(studies.MODELS), "samples": 2048, "draws": 2000, "calls": [5, 7, 10, 14, 20, 28, 50],
                    "end_calls": [5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160]}  # fmt: skip
COLUMNS = ["part", "model", "solver", "calls", "steps", "grid", "family", "exponent", "t_end", "rms", "total",
           "truncation", "discretization", "ratio", "low", "high", "estimate"]  # fmt: skip
PUBLISHED = "Published: DPM-Solver: 1e-3 better below 15 calls, 1e-4 above (FID, other models)"  # Lu et al. 2022


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "grid" (a row per grid), "scan" (per exponent), "best" (the best exponent) and "end" (per end time).

    ``ratio``, with its 95 % interval over samples: for "grid", the RMS error over the least of the other grids, empty
    where a single step leaves nothing to choose; for "end", the total error over that of the first of ``compared``.
    """
    rows: list[dict[str, Any]] = []
    scan = [f"{family}{e:g}" for family, exponents in config["exponents"].items() for e in exponents]

    def kinds(solver: str, calls: int) -> list[str]:
        more = scan if calls == config["compared_at"] and problems.steps_for(solver, calls) > 1 else []
        return [*config["grids"], *more]

    for done, name in enumerate(config["models"]):
        problem = studies.study(name, config)
        grids = cells.plan(problem, config["solvers"], kinds, config["calls"])
        ends = [] if problem.network else [  # an image network has no answer at t = 0
            cell for solver, kind in config["cases"] for calls in config["end_calls"] for t in config["end_times"]
            for cell in cells.plan(problem, [solver], [kind], [calls], span=(config["t_start"], t))
        ]  # fmt: skip
        part = cells.part_of(progress, done, len(config["models"]))
        found = dict(cells.runs(problem, list(dict.fromkeys(grids + ends)), part))  # one sweep, which can be shared out
        rows += _grids(problem, {cell: found[cell] for cell in grids}, config)
        rows += _ends(problem, {cell: found[cell] for cell in ends}, config) if ends else []
    return pd.DataFrame(rows, columns=COLUMNS)


def _grids(problem: studies.Study, ends: dict[cells.Cell, Any], config: Config) -> list[dict[str, Any]]:
    judge, n, rows = judging.Judge(problem, config), len(problem.x_T), []
    counts = np.random.default_rng(config["seed"]).multinomial(n, np.full(n, 1 / n), config["draws"])
    found = pd.DataFrame([{**cell.columns, "squares": judge.counted(x)} for cell, x in ends.items()])
    for (solver, calls, steps), cell in found.groupby(["solver", "calls", "steps"], sort=False):
        errors = pd.DataFrame(dict(zip(cell.grid, cell.squares, strict=True)))  # (samples, grids)
        mean, drawn = errors.mean(), (counts @ errors.fillna(0.0)) / (counts @ errors.notna())
        common = {"model": problem.name, "solver": solver, "calls": calls, "steps": steps, "estimate": judge.estimate}
        for kind in config["grids"]:
            rows.append({"part": "grid", **common, "grid": kind, "rms": np.sqrt(mean[kind])})
            if steps > 1:
                others = [k for k in config["grids"] if k != kind]
                rows[-1] |= {"ratio": np.sqrt(mean[kind] / mean[others].min())}
                rows[-1] |= judging.interval(np.sqrt(drawn[kind] / drawn[others].min(axis=1)))
        for family, exponents in config["exponents"].items() if len(mean) > len(config["grids"]) else ():
            names, k = [f"{family}{e:g}" for e in exponents], np.array(exponents, dtype=float)
            common |= {"family": family}
            scan = pd.DataFrame({"part": "scan", **common, "exponent": k, "rms": np.sqrt(mean[names].to_numpy())})
            best, *drawn_best = (least(k, values) for values in np.vstack([mean[names], drawn[names]]))
            rows += [*scan.to_dict("records"), {"part": "best", **common, "exponent": best, "rms": scan.rms.min(),
                                                **judging.interval(drawn_best)}]  # fmt: skip
    return rows


def least(k: Array, errors: Array) -> float:
    """Exponent of the least error, by a parabola in (log k, log error) through three points, or the end it is at."""
    i = int(np.argmin(errors))
    if i in (0, k.size - 1):
        return float(k[i])
    x, y = np.log(k[i - 1 : i + 2]), np.log(errors[i - 1 : i + 2])
    a, b = x[1] - x[0], x[1] - x[2]
    p, q = a * (y[1] - y[2]), b * (y[1] - y[0])
    return float(np.exp(x[1] - 0.5 * (a * p - b * q) / (p - q))) if p != q else float(k[i])


def _ends(problem: studies.Study, ends: dict[cells.Cell, Any], config: Config) -> list[dict[str, Any]]:
    (exact, estimate), judge = exact_states(problem, config), judging.Judge(problem, config)

    def parts(x: Any, t_end: float) -> dict[str, Array]:  # as vectors total = truncation + discretization
        gaps = {"total": x - exact[0.0], "truncation": exact[t_end] - exact[0.0], "discretization": x - exact[t_end]}
        flips = judge.flips(x) & judging.apart(problem.name)
        return {part: np.where(flips, np.nan, np.asarray((gap**2).mean(dim=1).cpu())) for part, gap in gaps.items()}

    found, rows = {cell: parts(x, cell.times[-1]) for cell, x in ends.items()}, []
    late = {(c.solver, c.calls): each["total"] for c, each in found.items() if c.times[-1] == config["compared"][0]}
    for cell, each in found.items():
        ratio = judging.ratio_row(each["total"], late[cell.solver, cell.calls], config["seed"], config["draws"])
        errors = {part: float(np.sqrt(judging.mean_square(squares))) for part, squares in each.items()}
        rows.append({"part": "end", "model": problem.name, **cell.columns, "t_end": cell.times[-1],
                     "estimate": estimate, **errors, **ratio})  # fmt: skip
    return rows


def exact_states(problem: studies.Study, config: Config) -> tuple[dict[float, Any], float]:
    """(exact states at the end times and, under 0.0, at t = 0: of an ideal denoiser the data point next to the last
    state, of a network the state at ``limit_time``; their estimated error)."""
    times, points = config["end_times"], problem.exact is None and config["std"] == 0
    last = config["limit_time"] if problem.exact is None or problem.trained else 0.0
    state, estimate = problem.path(times if points else [*times, last])
    data, final = problem.x_T.new_tensor(problem.data), state(min(times) if points else last)
    end = data[judging.nearest(final, data)] if points else final
    return {**{t: state(t) for t in times}, 0.0: end}, estimate


def best_grids(frame: Frame) -> Frame:
    """Per (model, solver, calls) with a grid to choose: the row of the best grid."""
    rows = at(frame, part="grid").dropna(subset="ratio")
    return rows.loc[rows.groupby(["model", "solver", "calls"], sort=False).rms.idxmin()]


def since(frame: Frame, config: Config) -> Any:
    """(model, solver) → calls from which on the smaller of the ``compared`` end times is clearly better, NaN: never."""
    cases = at(frame, part="end", t_end=config["compared"][1]).groupby(["model", "solver"], sort=False)
    unclear = {case: rows.calls[rows.high >= 1].max() for case, rows in cases}
    return pd.Series({case: rows.calls[~(rows.calls <= unclear[case])].min() for case, rows in cases}, dtype=float)


def verdict(frame: Frame, config: Config) -> str:
    """In how many cells the claimed grid is best and beaten, where stopping later clearly is better, best exponents."""
    clear, kind, (late, early) = since(frame, config), config["claim"], config["compared"]
    rows = at(frame, part="grid", solver=config["claimed"], grid=kind).dropna(subset="ratio")
    exponents = at(frame, part="best", solver=config["claimed"], family="t").exponent
    first = f", from {clear.min():.0f} calls on at the earliest" if clear.notna().any() else ""
    return (
        f"For tAB {kind} is the best of {len(config['grids'])} grids in {(rows.ratio <= 1).sum()} of {len(rows)} "
        f"cells; stopping at t = {early:g} clearly beats {late:g} in {clear.notna().sum()} of {len(clear)} cases{first}"
        f"; {kind} is clearly beaten in {(rows.low > 1).sum()}, and the best exponent of t at {config['compared_at']} "
        f"calls is {exponents.min():.2f} to {exponents.max():.2f}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: the best grid per solver and calls; the best exponent of t; the error at two end times."""
    models, (late, early) = list(frame.model.unique()), config["compared"]
    note = (
        f"Left: best grid, tk: steps of t$^{{1/k}}$, blue: {config['claim']}; how much better than the next, "
        f"bold: clearly. Middle: best k at {config['compared_at']} calls; hollow: an end of the scan. Right: against "
        f"the answer at t = 0. 95 % intervals, {config['samples']} samples but for digits that flip (end at "
        f"another one's place), {style.setting(config)}. {PUBLISHED}."
    )
    inches = len(models) * (0.16 * len(config["solvers"]) + 0.6) + 0.45
    fig = panels.sheet(verdict(frame, config).split("; ")[0], note, inches)
    places = {**style.body(fig, 0.4, 0.95, 0.08, 0.45), "width_ratios": [1.6, 1, 1.05], "wspace": 0.2, "hspace": 0.32}
    axes = fig.subplots(len(models), 3, squeeze=False, gridspec_kw=places)
    for row, model in zip(axes, models, strict=True):
        _table(row[0], best_grids(at(frame, model=model)), config)
        _exponents(row[1], at(frame, part="best", model=model, family="t"), config)
        for solver, part in at(frame, part="end", model=model, t_end=early).groupby("solver", sort=False):
            panels.curve(row[2], part.calls, part.ratio, part.low, part.high, solver, **style.look(str(solver)))
        row[2].axhline(1.0, color="#333333", lw=0.9, zorder=0)
        row[2].set(yscale="log", ylim=(0.25, 5))
        style.plain_log_ticks(row[2].yaxis, [0.3, 0.5, 1, 2, 4])
        ends = f"error at {early:g} / at {late:g}"
        for ax, title in zip(row, (studies.title(model), "best k for steps of t$^{1/k}$", ends), strict=True):
            panels.named(ax, title)
    panels.calls_axis(list(axes[:, 2]), [5, 10, 20, 50])
    axes[0, 2].legend(*axes[0, 2].get_legend_handles_labels(), fontsize=panels.SMALL, loc="upper right")
    return fig


def _table(ax: Any, found: Frame, config: Config) -> None:
    by = {(row.solver, row.calls): row for row in found.itertuples()}
    rows = [[by.get((solver, calls)) for calls in config["calls"]] for solver in config["solvers"]]
    texts = [[r and f"{r.grid.replace('logrho', 'logρ')} {style.as_text(1 / r.ratio)}×" for r in row] for row in rows]
    bold = [[r and r.high < 1 for r in row] for row in rows]
    depths = [[(0.4 if r.high < 1 else 0.8) if r and r.grid == config["claim"] else None for r in row] for row in rows]
    panels.shaded(ax, depths, [f"{calls} calls" for calls in config["calls"]], config["solvers"], texts, bold)


def _exponents(ax: Any, best: Frame, config: Config) -> None:
    ends = config["exponents"]["t"][0], config["exponents"]["t"][-1]
    for row in best.itertuples():
        y, colour = config["solvers"].index(row.solver), style.family(row.solver)[0]
        ax.plot([row.low, row.high], [y, y], color=colour, lw=2.6, alpha=0.45, solid_capstyle="butt")
        ax.plot(row.exponent, y, "o", color=colour, mfc="white" if row.exponent in ends else colour, markersize=4.5)
    ax.axvline(float(config["claim"][1:]), color="#555555", lw=1.0, ls="--", zorder=0)
    ax.set(xscale="log", ylim=(len(config["solvers"]) - 0.5, -0.5), xlim=(ends[0] * 0.92, ends[1] * 1.09))
    style.plain_log_ticks(ax.xaxis, [1, 1.5, 2, 3, 4, 6])
    ax.set_yticks(range(len(config["solvers"])), [])
    ax.tick_params(axis="y", length=0)
