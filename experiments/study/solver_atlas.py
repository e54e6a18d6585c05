"""The whole registry on three exact problems: how accurate is it at 5, 10 and 20 calls, and does the order tell?"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import broad_mixture, distinct_solvers, product_mixture, steps_for

NAME = "solver_atlas"
QUESTION = "How accurate is every registered sampler at 5, 10 and 20 calls, and does its order of convergence tell?"
CONFIG: Config = {
    "grids": {"vp": ["t2", "t1", "logrho"], "edm": ["rho7", "rho3", "logrho"], "flow": ["shift3", "t1", "logrho"]},
    "solvers": None,
    "preferred": ["ddim", "ddpm"],
    "calls": [5, 10, 20, 40, 80],
    "shown": [5, 10, 20],
    "ranked_at": 10,
    "samples": 256,
    "seed": 0,
    "tolerance": 0.15,
}
QUICK: Config = {
    "solvers": ["ddim", "tab2", "rhoab2", "dpmpp_2m", "rhork_3kutta", "flow_euler", "ddpm", "sde_dpmpp_2m"],
    "calls": [5, 10, 20],
    "samples": 32,
}
TITLES = {"vp": "1-D mixture, VPLinear", "edm": "product mixture, EDM", "flow": "1-D mixture, rectified flow"}
Exact = Any  # a mixture with an exact flow


def problems(config: Config) -> dict[str, tuple[Process, Exact]]:
    """Name → process and data with an exact flow."""
    known: dict[str, tuple[Process, Exact]] = {
        "vp": (da.VPLinear(), broad_mixture()),
        "edm": (da.EDM(), product_mixture()),
        "flow": (da.RectifiedFlow(), broad_mixture()),
    }
    return {name: known[name] for name in config["grids"]}


def methods(config: Config, *, stochastic: bool) -> dict[str, tuple[list[str], dict[str, str]]]:
    """First name → (other names of the same table on all problems, problem → the first name that is equal there)."""
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    first: dict[str, dict[str, str]] = {name: {} for name in names}
    for problem, (process, _) in problems(config).items():
        ts = da.grid(process, 12, config["grids"][problem][0])
        for leader, same in distinct_solvers(process, ts, names, stochastic=stochastic).items():
            for name in same:
                first[name][problem] = leader
    found: dict[str, tuple[list[str], dict[str, str]]] = {}
    for name, leaders in first.items():
        twin = next((other for other, (_, its) in found.items() if its == leaders), None)
        if twin is not None:
            found[twin][0].append(name)
        elif leaders:
            found[name] = ([], leaders)
    return found


def moments(mix: Exact) -> tuple[Array, Array]:
    """(d,) means and variances of the coordinates."""
    marginals = mix.marginals if isinstance(mix, da.ProductMixture) else (mix,)
    means = np.array([m.weights @ m.means for m in marginals])
    second = np.array([m.weights @ (m.covariances + m.means**2) for m in marginals])
    return means, second - means**2


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (problem, grid, solver, calls) and "order" (what `deis_analysis.measure` finds)."""
    found = {stochastic: methods(config, stochastic=stochastic) for stochastic in (False, True)}
    total = sum(map(len, found.values()))
    rows: list[dict[str, Any]] = []
    exact: dict[str, tuple[Array, Array]] = {}
    for name, (process, mix) in problems(config).items():
        x = mix.sample(config["samples"], config["seed"], process, process.sampling_range[0])
        exact[name] = (x, np.asarray(mix.flow(process, x, *process.sampling_range)))
    done = 0
    for stochastic, group in found.items():
        for solver, (same, leaders) in group.items():
            row = da.SOLVERS[solver]
            common = {"solver": solver, "family": row.family, "stochastic": stochastic, "same_as": " = ".join(same),
                      "order": row.order, "order_exact_start": row.order_exact_start}  # fmt: skip
            for problem, data in exact.items():
                equal = {"equal_here": leaders[problem] if leaders[problem] != solver else ""}
                rows += [{"part": "error", **common, **equal, **r} for r in _errors(solver, problem, data, config)]
            rows.append({"part": "order", **common, **_orders(row)})
            done += 1
            progress(done / total)
    return pd.DataFrame(rows)


def _errors(solver: str, problem: str, data: tuple[Array, Array], config: Config) -> list[dict[str, Any]]:
    """Error per budget of calls on the main grid and, for the budgets shown, on the others."""
    process, mix = problems(config)[problem]
    grids, rows = config["grids"][problem], []
    for kind in grids:
        for calls in config["calls"] if kind == grids[0] else config["shown"]:
            steps = steps_for(solver, calls)
            if steps == 0:
                continue
            place = {"problem": problem, "grid": kind, "calls": calls, "steps": steps}
            try:
                table = da.build(solver, process, da.grid(process, steps, kind))
            except ValueError as reason:  # a step that is singular for this method
                rows.append({**place, "refused": str(reason)})
                continue
            if table.stochastic:
                error = float(np.sqrt(np.mean(da.law_error(table, process, *moments(mix)) ** 2)))
            else:
                gap = da.run(table, mix.model(process, table.prediction), data[0]) - data[1]
                error = float(np.sqrt(np.mean(gap**2)))
            gain = da.amplification(table.in_terms_of(process, "eps"))
            rows.append({**place, "nfe": table.nfe, "error": error, "amplification": gain})
    return rows


def _orders(row: da.Solver) -> dict[str, Any]:
    found = da.measure(row)
    exact = found.order_exact_start
    return {"slope": found.order.slope, "slope_exact_start": np.nan if exact is None else exact.slope,
            "degree": row.degree, "degree_measured": found.degree}  # fmt: skip


def main_grid(frame: Frame, config: Config) -> Frame:
    """The errors on each problem's first grid."""
    firsts = {problem: grids[0] for problem, grids in config["grids"].items()}
    rows = frame[(frame.part == "error") & frame.error.notna()]
    return rows[rows.grid == rows.problem.map(firsts)]


def best_grid(frame: Frame) -> Frame:
    """The errors of every method on the best of its problem's grids."""
    rows = frame[(frame.part == "error") & frame.error.notna()]
    return rows.loc[rows.groupby(["problem", "solver", "calls"]).error.idxmin()]


def correlations(rows: Frame, order: str) -> Frame:
    """Spearman's rank correlation of an order and accuracy: calls × problem; 1 if a higher order is always better."""
    rows = rows[~rows.stochastic.astype(bool) & (style.texts(rows.equal_here) == "")]
    grouped = rows.groupby(["calls", "problem"], sort=False)
    return grouped.apply(lambda part: float(spearmanr(part[order], -part.error).statistic)).unstack()


def ranking(frame: Frame, config: Config, stochastic: bool) -> list[str]:
    """Solvers by their mean rank over the problems at the budget ``ranked_at``; those that do not fit come last."""
    rows = main_grid(frame, config)
    rows = rows[rows.stochastic.astype(bool) == stochastic]
    names = rows.solver.unique()
    at = rows[rows.calls == config["ranked_at"]].pivot(index="solver", columns="problem", values="error")
    ranks = at.rank().mean(axis=1).reindex(names)
    return [str(name) for name in ranks.sort_values(na_position="last", kind="stable").index]


def orders_off(frame: Frame) -> Frame:
    """Measured minus declared orders, with the own start and, where there is one, an exact start."""
    order = frame[frame.part == "order"].set_index("solver")
    return pd.DataFrame({"own": order.slope - order.order, "exact": order.slope_exact_start - order.order_exact_start})


def verdict(frame: Frame, config: Config) -> str:
    """Whether order tells the accuracy, who is most accurate, and whether the declared orders are met."""
    rows, shown, calls = main_grid(frame, config), config["shown"], config["ranked_at"]
    exact, free = (correlations(r, "order_exact_start") for r in (rows, best_grid(frame)))
    order = frame[frame.part == "order"]
    quiet = rows[~rows.stochastic.astype(bool)]
    refused = frame[frame.refused.notna()].solver.nunique() if "refused" in frame else 0
    beside = f"; {refused} of them cannot be built on some grid" if refused else ""

    def span(table: Frame, budget: int) -> str:
        return f"{table.loc[budget].min():+.2f} to {table.loc[budget].max():+.2f}"

    spans = ", ".join(f"{span(exact, c)} at {c}" for c in dict.fromkeys([*shown, max(config["calls"])]))
    off = orders_off(frame).abs()
    met = int(((off.own <= config["tolerance"]) & ~(off.exact > config["tolerance"])).sum())
    return (
        f"Of {len(order)} distinct methods {quiet.solver.nunique()} are deterministic: over these Spearman's "
        f"correlation of declared order with accuracy is, over {len(config['grids'])} problems, {spans} calls, on each "
        f"method's best grid {span(free, calls)} at {calls}; least error at {calls} calls "
        f"{_leaders(quiet[quiet.calls == calls], config)}; the orders measured are those declared within "
        f"{config['tolerance']:g} for {met} of {len(order)} (largest deviation "
        f"{np.nanmax(off.to_numpy()):.2f}){beside}."
    )


def _leaders(rows: Frame, config: Config) -> str:
    best = [rows.loc[rows[rows.problem == problem].error.idxmin()] for problem in config["grids"]]
    return ", ".join(f"{row.solver} ({style.as_text(row.error)}, {row.problem})" for row in best)


def draw(frame: Frame, config: Config) -> Figure:
    """A dot per method and budget on each problem, ranked; orders and amplification beside; correlations below."""
    exact = correlations(main_grid(frame, config), "order_exact_start")
    low, high = config["shown"][0], max(config["calls"])
    quiet, noisy = (ranking(frame, config, stochastic) for stochastic in (False, True))
    spans = [f"{exact.loc[c].min():+.2f} to {exact.loc[c].max():+.2f}" for c in (low, high)]
    telling = "tells little" if exact.loc[low].max() < 0.5 else "tells much"
    headline = (
        f"{len(quiet)} deterministic samplers: at {low} calls the declared order {telling} about accuracy (rank "
        f"correlation {spans[0]}; at {high} {spans[1]})"
    )
    grids = ", ".join(f"{grids[0]} on {TITLES[problem].split(', ')[1]}" for problem, grids in config["grids"].items())
    note = (
        f"Grids: {grids}, over each process's default range. Dots: at most {', '.join(map(str, config['shown']))} "
        "model calls, as many steps as fit; an arrow: off the scale. Ranked by the mean rank at "
        f"{config['ranked_at']} calls. Above: RMS error against the exact flow, {config['samples']} samples. Below "
        "the line: samplers with noise, not comparable: W2 distance of the output's law to the exact one for "
        "Gaussian data of the same mean and variance, exact. (+n): n more registry names of the same table, listed "
        "in the CSV."
    )
    width, height = 15.0, 5.6 + 0.158 * (len(quiet) + len(noisy) + 2)
    fig = style.new_figure(width, height, headline, note)
    margins = style.body(fig, bottom=3.3, left=2.1, right=0.25, extra_top=0.6)
    axes = fig.subplots(1, 4, gridspec_kw={**margins, "width_ratios": [1, 1, 1, 0.6], "wspace": 0.06})
    places = {name: float(y) for y, name in enumerate(quiet)}
    places |= {name: len(quiet) + 1.2 + y for y, name in enumerate(noisy)}
    for ax, (problem, title) in zip(axes, TITLES.items(), strict=False):
        _dots(ax, frame, problem, places, config)
        ax.set_title(title)
    _slopes(axes[3], frame, places)
    for ax in axes:
        ax.axhline(len(quiet) + 0.1, color="#333333", lw=1.0)
        ax.set_ylim(max(places.values()) + 0.8, -0.8)
        ax.set_yticks([])
    place = axes[0].get_position()
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(place.x0 - 0.01, place.y1 + 0.22 / height),
        ncols=3,
    )
    _name(axes[0], frame, places)
    _correlations(fig.add_axes((0.75 / width, 0.55 / height, 4.4 / width, 1.9 / height)), frame, config)
    fig.text(7.5 / width, 2.65 / height, _aliases(frame), fontsize=7.6, va="top", color="#333333", linespacing=1.25)
    return fig


def _aliases(frame: Frame) -> str:
    """The names that stand for one table, a line per table."""
    order = frame[(frame.part == "order") & (style.texts(frame.same_as) != "")]
    lines = ["One table under several names:"]
    for row in order.itertuples():
        lines += textwrap.wrap(f"{row.solver} = {row.same_as}", 118, subsequent_indent="    ")
    return "\n".join(lines)


def _name(ax: Any, frame: Frame, places: dict[str, float]) -> None:
    same = style.texts(frame[frame.part == "order"].set_index("solver").same_as)
    more = {name: same[name].count("=") + 1 if same[name] else 0 for name in places}
    ax.set_yticks(list(places.values()), [f"{n} (+{more[n]})" if more[n] else n for n in places], fontsize=8.6)
    for tick, name in zip(ax.get_yticklabels(), places, strict=True):
        tick.set_color(style.family(name)[0])
    ax.tick_params(axis="y", length=0)


_MARKS = ({"marker": "o", "markersize": 4.4, "markerfacecolor": "white"}, {"marker": "o", "markersize": 5.4},
          {"marker": "|", "markersize": 6.5, "markeredgewidth": 1.7})  # fmt: skip


def _dots(ax: Any, frame: Frame, problem: str, places: dict[str, float], config: Config) -> None:
    rows = main_grid(frame, config)
    rows = rows[(rows.problem == problem) & rows.calls.isin(config["shown"])]
    low, high = rows.error.min() * 0.6, 3.0
    marks: dict[int, dict[str, Any]] = dict(zip(config["shown"], _MARKS, strict=True))
    for name, part in rows.groupby("solver", sort=False):
        colour, y = style.family(str(name))[0], places[str(name)]
        ax.plot(part.error.clip(upper=high), [y] * len(part), color=colour, lw=0.8, alpha=0.5, zorder=2)
        for row in part.itertuples():
            mark = marks[row.calls] | ({"marker": ">", "markersize": 5} if row.error > high else {})
            top = 4 if row.calls == config["ranked_at"] else 3
            ax.plot(min(row.error, high), y, color=colour, clip_on=False, zorder=top, linestyle="none", **mark)
    for calls, mark in marks.items():
        ax.plot([], [], color="#444444", linestyle="none", **mark, label=f"{calls} calls")
    ax.set(xscale="log", xlim=(low, high), xlabel="RMS error; with noise: W2 of the law")
    for y in list(places.values())[::5]:
        ax.axhline(y, color="#eeeeee", lw=0.6, zorder=0)


def _slopes(ax: Any, frame: Frame, places: dict[str, float]) -> None:
    order = frame[frame.part == "order"].set_index("solver")
    for name, y in places.items():
        row, colour = order.loc[name], style.family(name)[0]
        ax.plot([row.order], [y], "|", color="#444444", markersize=8, markeredgewidth=1.8, zorder=2)
        ax.plot(row.slope, y, "o", color=colour, markersize=4.2, zorder=3)
        if row.order_exact_start > row.order:
            ax.plot(row.slope_exact_start, y, ">", color=colour, markerfacecolor="white", markersize=5, zorder=3)
    ax.set(xlim=(0.5, 4.5), xticks=[1, 2, 3, 4], title="Order", xlabel="slope; bar: declared; ▷: exact start")


def _correlations(ax: Any, frame: Frame, config: Config) -> None:
    rows = main_grid(frame, config)
    ends = []
    looks = dict(zip(config["grids"], ((style.BLUE, "o"), (style.VERMILLION, "s"), (style.GREEN, "^")), strict=True))
    for column, line in (("order_exact_start", "-"), ("order", ":")):
        table = correlations(rows, column)
        for problem in config["grids"]:
            colour, marker = looks[problem]
            ax.plot(table.index, table[problem], marker=marker, color=colour, linestyle=line, lw=1.6, alpha=0.95)
            if line == "-":
                ends.append((table.index[-1], table[problem].iloc[-1], TITLES[problem], colour))
    ax.axhline(0.0, color="#333333", lw=1.0, zorder=1)
    ax.set(xscale="log", xlabel="model calls (NFE)", ylabel="rank correlation", ylim=(-1, 1))
    ax.set_title("Does a higher order mean a smaller error? Spearman; dotted: order with the own start", fontsize=10)
    style.plain_log_ticks(ax.xaxis, config["calls"])
    style.end_labels(ax, ends, 9)
