"""Does the declared order, or having a name, tell who is accurate? The registry, and the cube of all Adams methods."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at
from experiments.core.judging import ratio_row
from experiments.models.cube import Cell, case, cube
from experiments.models.problems import broad_mixture, distinct_solvers, product_mixture, steps_for

NAME = "solver_atlas"
QUESTION = "At few calls, does a sampler's order of convergence, or having a name, tell how accurate it is?"
CONFIG: Config = {
    "grids": {"vp": ["t2", "t1", "logrho"], "edm": ["rho7", "rho3", "logrho"], "flow": ["shift3", "t1", "logrho"]},
    "solvers": None, "preferred": ["ddim", "ddpm"],
    "calls": [5, 10, 20, 40, 80], "shown": [5, 10, 20], "ranked_at": 10,
    "well_known": ["ddim", "ipndm3", "dpmpp_2m", "unipc3_bh2_x0", "rhork_2heun", "tab3"],
    "samples": 256, "seed": 0, "tolerance": 0.15, "device": "cpu",
    "cube": {
        "beta_min": 0.1, "beta_max": 20.0, "t_start": 1.0, "t_end": 1e-3, "std": 0.0, "rtol": 1e-6,
        "predictions": ["eps", "x0", "v", "score"], "variables": ["t", "rho", "lam", "inv_rho"],
        "degrees": [0, 1, 2, 3], "grids": ["t1", "t2", "rho7", "logrho"], "calls": [5, 8, 10],
        "published": {"eps": ["t", "rho", "lam"], "x0": ["lam"]}, "published_frozen": ["score"],
        "samplers": ["ipndm2", "ipndm3", "ipndm4", "dpm_2m", "dpmpp_2m", "dpmpp_3m", "obelm", "unipc2_bh2_x0",
                     "unipc3_bh2_x0", "unipc3_bh2_eps"],
        "data": ["digits", "mixture", "product"], "chosen_on": "digits",
        "samples": 384, "fresh_samples": 192, "fresh_seeds": [101, 102, 103, 104],
        "trial": ["eps", "x0"],
    },
}  # fmt: skip
QUICK: Config = {
    "solvers": ["ddim", "tab2", "rhoab2", "dpmpp_2m", "rhork_3kutta", "flow_euler", "ddpm", "sde_dpmpp_2m"],
    "calls": [5, 10, 20], "samples": 32,
    "cube": {**CONFIG["cube"], "degrees": [0, 1, 3], "grids": ["t2"], "calls": [5, 8], "samplers": ["ipndm3"],
             "samples": 32, "fresh_samples": 24, "fresh_seeds": [101, 102], "rtol": 1e-3},
}  # fmt: skip
Rows = list[dict[str, Any]]
PROBLEMS: dict[str, tuple[Process, Any]] = {  # with data whose flow is exact
    "vp": (da.VPLinear(), broad_mixture()), "edm": (da.EDM(), product_mixture()),
    "flow": (da.RectifiedFlow(), broad_mixture()),
}  # fmt: skip
LOOKS = {"vp": ("1-D mixture, VPLinear", style.BLUE, "o"), "edm": ("4-D mixture, EDM", style.VERMILLION, "s"),
         "flow": ("1-D mixture, rectified flow", style.GREEN, "^")}  # fmt: skip
DATA = {"digits": "digits", "mixture": "1-D", "product": "4-D"}
BEST = 12  # so many are shown


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of the registry, part "error" and "order", and of the cube, "choose" and "margin"."""
    registry = registry_rows(config, lambda share: progress(0.5 * share))
    return pd.DataFrame(registry + cube_rows(config, lambda share: progress(0.5 + 0.5 * share)))


# -- the registry ---------------------------------------------------------------------------------
def methods(config: Config, *, stochastic: bool) -> dict[str, tuple[list[str], dict[str, str | None]]]:
    """First name → (other names of the same table on all problems, problem → the first name that is equal there)."""
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    leaders: dict[str, dict[str, str]] = {}
    for problem, (process, _) in PROBLEMS.items():
        ts = da.grid(process, 12, config["grids"][problem][0])
        groups = distinct_solvers(process, ts, names, stochastic=stochastic)
        leaders[problem] = {name: first for first, same in groups.items() for name in same}
    found: dict[tuple[str | None, ...], list[str]] = {}
    for name in names:
        found.setdefault(tuple(leaders[problem].get(name) for problem in PROBLEMS), []).append(name)
    return {first: (same, dict(zip(PROBLEMS, its, strict=True))) for its, (first, *same) in found.items() if any(its)}


def moments(mix: Any) -> tuple[Array, Array]:
    """(d,) means and variances of the coordinates."""
    marginals = mix.marginals if isinstance(mix, da.ProductMixture) else (mix,)
    means = np.array([m.weights @ m.means for m in marginals])
    second = np.array([m.weights @ (m.covariances + m.means**2) for m in marginals])
    return means, second - means**2


def registry_rows(config: Config, progress: Progress) -> Rows:
    """Part "error" (problem, grid, solver, calls) and "order" (what `deis_analysis.measure` finds)."""
    exact = {}
    for name, (process, mix) in PROBLEMS.items():
        x = mix.sample(config["samples"], config["seed"], process, process.sampling_range[0])
        exact[name] = (x, np.asarray(mix.flow(process, x, *process.sampling_range)))
    found = {stochastic: methods(config, stochastic=stochastic) for stochastic in (False, True)}
    asked = [(stochastic, *method) for stochastic, group in found.items() for method in group.items()]
    rows: Rows = []
    for done, (stochastic, solver, (same, leaders)) in enumerate(asked, 1):
        row = da.SOLVERS[solver]
        common = {"solver": solver, "family": row.family, "stochastic": stochastic, "same_as": " = ".join(same),
                  "order": row.order, "order_exact_start": row.order_exact_start}  # fmt: skip
        for problem, data in exact.items():
            equal = {"equal_here": leaders[problem] if leaders[problem] != solver else ""}
            rows += [{"part": "error", **common, **equal, **r} for r in _errors(solver, problem, data, config)]
        measured = da.measure(row)
        start = measured.order_exact_start
        rows.append({"part": "order", **common, "slope": measured.order.slope,
                     "slope_exact_start": np.nan if start is None else start.slope, "degree": row.degree,
                     "degree_measured": measured.degree})  # fmt: skip
        progress(done / len(asked))
    return rows


def _errors(solver: str, problem: str, data: tuple[Array, Array], config: Config) -> Rows:
    """Error per budget of calls on the main grid and, for the budgets shown, on the others."""
    (process, mix), grids = PROBLEMS[problem], config["grids"][problem]
    rows: Rows = []
    for kind, calls in ((grid, n) for grid in grids for n in config["calls" if grid == grids[0] else "shown"]):
        steps = steps_for(solver, calls)
        if steps == 0:
            continue
        place = {"problem": problem, "grid": kind, "calls": calls, "steps": steps}
        try:
            table = da.build(solver, process, da.grid(process, steps, kind))
        except ValueError as reason:  # a step that is singular for this method
            rows.append({**place, "refused": str(reason)})
            continue
        if table.stochastic:  # W2 distance of the law for Gaussian data with these moments
            gap = da.law_error(table, process, *moments(mix))
        else:
            gap = da.run(table, mix.model(process, table.prediction), data[0]) - data[1]
        gain = da.amplification(table.in_terms_of(process, "eps"))
        error = float(np.sqrt(np.mean(gap**2)))
        rows.append({**place, "nfe": table.nfe, "error": error, "amplification": gain})
    return rows


# -- the cube -------------------------------------------------------------------------------------
def cube_rows(config: Config, progress: Progress) -> Rows:
    """Part "choose" (data, calls, cell: error) and "margin" (comparisons on fresh samples, paired)."""
    inner = {**config["cube"], "seed": config["seed"], "device": config["device"]}
    cubes = {calls: cube(inner, calls) for calls in inner["calls"]}
    progress(0.1)
    rows: Rows = []
    for done, data in enumerate(inner["data"], 1):
        here = case(data, inner, inner["seed"], False)
        for calls, cells in cubes.items():
            squares = {cell: here.squares(made) for cell, (made, first) in cells.items() if cell == first}
            for cell, (_, first) in cells.items():
                rows.append(
                    {"part": "choose", "data": data, "calls": calls, **asdict(cell),
                     "same_as": "" if cell == first else str(first), "published": first.published(inner),
                     "rms": float(np.sqrt(squares[first].mean())), "median": float(np.sqrt(np.median(squares[first])))}
                )  # fmt: skip
        progress(0.1 + 0.6 * done / len(inner["data"]))
    chosen = picks(pd.DataFrame(rows))
    for done, data in enumerate(inner["data"], 1):
        fresh = [case(data, inner, seed, True) for seed in inner["fresh_seeds"]]
        for calls in inner["calls"]:
            errors = cache(lambda cell, fresh=fresh, calls=calls: [c.squares(cubes[calls][cell][0]) for c in fresh])
            for kind, named, unnamed in _comparisons(chosen, data, calls, inner):
                margin = _margin(errors(named), errors(unnamed), inner["seed"])
                rows.append({"part": "margin", "data": data, "calls": calls, "kind": kind, "named": str(named),
                             "unnamed": str(unnamed), **margin})  # fmt: skip
        progress(0.7 + 0.3 * done / len(inner["data"]))
    return rows


def picks(frame: Frame) -> dict[tuple[str, int], dict[str, Cell]]:
    """Per data and calls, the cell of least error of the "unnamed" ones, the named "cell" and all "named" methods."""
    rows = at(frame, part="choose")
    rows = rows[style.texts(rows.same_as) == ""].assign(variable=lambda part: style.texts(part.variable))
    found: dict[tuple[str, int], dict[str, Cell]] = {}
    for (data, calls), part in rows.groupby(["data", "calls"], sort=False):
        named = part.published.astype(bool)
        roles = {"unnamed": part[~named], "cell": part[named & (part.degree >= 0)], "named": part[named]}
        best = {role: some.loc[some.rms.idxmin()] for role, some in roles.items()}
        found[data, int(calls)] = {role: Cell(row.prediction, row.variable, int(row.degree), row.grid)
                                   for role, row in best.items()}  # fmt: skip
    return found


def _comparisons(chosen: Any, data: str, calls: int, config: Config) -> list[tuple[str, Cell, Cell]]:
    """(kind, named, unnamed): chosen on these data; unnamed chosen on the digits; a trial by hand at each degree."""
    here, there, (one, other) = chosen[data, calls], chosen[config["chosen_on"], calls], config["trial"]
    pairs = [("cube", here["cell"], here["unnamed"]), ("named", here["named"], here["unnamed"])]
    if data != config["chosen_on"]:
        pairs.append(("carried", here["named"], there["unnamed"]))
    degrees = [degree for degree in config["degrees"] if degree > 0]
    return pairs + [("trial", Cell(one, "t", degree, "t2"), Cell(other, "t", degree, "t2")) for degree in degrees]


def _margin(named: list[Array], unnamed: list[Array], seed: int) -> dict[str, Any]:
    """Error of the named method over that of the unnamed cell: pooled, its 95 % interval, its range over seeds."""
    by_seed = [float(np.sqrt(a.mean() / b.mean())) for a, b in zip(named, unnamed, strict=True)]
    a, b = np.concatenate(named), np.concatenate(unnamed)
    return {"rms_named": float(np.sqrt(a.mean())), "rms": float(np.sqrt(b.mean())), **ratio_row(a, b, seed),
            "seed_low": min(by_seed), "seed_high": max(by_seed),
            "median_ratio": float(np.sqrt(np.median(a) / np.median(b)))}  # fmt: skip


# -- what was found -------------------------------------------------------------------------------
def main_grid(frame: Frame, config: Config) -> Frame:
    """The errors on each problem's first grid."""
    rows = at(frame, part="error")
    firsts = rows.problem.map({problem: grids[0] for problem, grids in config["grids"].items()})
    return rows[rows.error.notna() & (rows.grid == firsts)]


def correlations(rows: Frame, order: str) -> Frame:
    """Spearman's rank correlation of an order and accuracy: calls × problem; 1 if a higher order is always better."""
    rows = rows[~rows.stochastic.astype(bool) & (style.texts(rows.equal_here) == "")]
    grouped = rows.groupby(["calls", "problem"], sort=False)
    return grouped.apply(lambda part: float(spearmanr(part[order], -part.error).statistic)).unstack()


def ranking(frame: Frame, config: Config) -> Frame:
    """Errors at ``ranked_at`` calls, solver × problem, by the mean rank over the problems; no samplers with noise."""
    rows = main_grid(frame, config)
    rows = rows[~rows.stochastic.astype(bool) & (rows.calls == config["ranked_at"])]
    errors = rows.pivot(index="solver", columns="problem", values="error")
    return errors.loc[errors.rank().mean(axis=1).sort_values(kind="stable").index]


def orders_off(frame: Frame) -> Frame:
    """Measured minus declared orders, with the own start and, where there is one, an exact start."""
    order = at(frame, part="order").set_index("solver")
    return pd.DataFrame({"own": order.slope - order.order, "exact": order.slope_exact_start - order.order_exact_start})


def wins(frame: Frame, kind: str) -> tuple[int, int, int]:
    """In how many comparisons of a kind the unnamed cell is better, of how many, and worse; by bootstrap and seeds."""
    rows = at(frame, part="margin", kind=kind)
    better, worse = rows[["low", "seed_low"]].min(axis=1) > 1, rows[["high", "seed_high"]].max(axis=1) < 1
    return int(better.sum()), len(rows), int(worse.sum())


def headline(frame: Frame, config: Config) -> str:
    """Whether order tells the accuracy at the fewest calls."""
    calls = config["shown"][0]
    most = correlations(main_grid(frame, config), "order_exact_start").loc[calls].max()
    tells = "tells" if most >= 0.5 else "does not tell"
    return f"At {calls} calls a sampler's order {tells} how accurate it is: rank correlation at most {most:+.2f}"


def verdict(frame: Frame, config: Config) -> str:
    """Whether order tells the accuracy, whether a name does, and whether the declared orders are met."""
    exact, off = correlations(main_grid(frame, config), "order_exact_start"), orders_off(frame).abs()
    calls = dict.fromkeys([config["shown"][0], config["shown"][-1], max(config["calls"])])
    spans = ", ".join(f"{exact.loc[c].min():+.2f} to {exact.loc[c].max():+.2f} at {c}" for c in calls)
    met = ((off.own <= config["tolerance"]) & ~(off.exact > config["tolerance"])).sum()
    tried = at(frame, part="choose", data=config["cube"]["chosen_on"], calls=config["cube"]["calls"][0])
    named = tried[style.texts(tried.same_as) == ""].published.astype(bool)
    here, carried = ("in {} of {}, worse in {}".format(*wins(frame, kind)) for kind in ("named", "carried"))
    return (
        f"{headline(frame, config)} ({spans}). The best of {(~named).sum()} tables without a name is on fresh samples "
        f"better than the best of {named.sum()} with one {here}; carried to other data {carried}. Declared orders are "
        f"measured for {met} of {len(off)} methods."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Correlations against calls, ratios of named to unnamed, and the errors of the best and the well-known."""
    margins, asked = at(frame, part="margin", kind="named"), config["cube"]
    note = (
        "Order: with an exact start. Right: deterministic samplers of the registry by mean rank over the problems, "
        f"{config['samples']} samples. Below: exponential Adams methods, {len(asked['fresh_seeds'])} × "
        f"{asked['fresh_samples']} fresh samples, by data and calls; right of 1 the unnamed is better; thick: paired "
        "bootstrap 95 %, thin: range over seeds."
    )
    fig = panels.sheet(headline(frame, config), note, 4.8)
    grid = fig.add_gridspec(2, 2, **style.body(fig, left=0.65, bottom=0.42, right=0.1), wspace=0.72, hspace=0.42)
    left, below, right = (fig.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    found = correlations(main_grid(frame, config), "order_exact_start")
    for problem, (title, colour, marker) in LOOKS.items():
        panels.curve(left, found.index, found[problem], label=title, color=colour, marker=marker)
    left.axhline(0.0, color="#333333", lw=0.9, zorder=0)
    left.set_ylim(-1, 1)
    left.legend(fontsize=panels.SMALL, loc="lower right")
    panels.calls_axis([left], config["calls"], "")
    names = [f"{DATA[row.data]}, {row.calls:g}" for row in margins.itertuples()]
    ratios = margins[["ratio", "low", "high", "seed_low", "seed_high"]].to_numpy().tolist()
    panels.intervals(below, [row[:3] for row in ratios], [0.5, 0.7, 1, 1.4, 2], names, panels.WORSE, panels.BETTER,
                     [row[3:] for row in ratios])  # fmt: skip
    _dots(right, ranking(frame, config), config)
    for ax, title, label in (
        (left, "rank correlation of order and accuracy", "model calls (NFE)"),
        (below, "errors: best named / best unnamed table", "ratio"),
        (right, f"errors at {config['ranked_at']} calls, with ranks", "RMS error"),
    ):
        ax.set_title(title, fontsize=8.5, pad=3)
        ax.set_xlabel(label, fontsize=8.5, labelpad=2)
        ax.tick_params(labelsize=panels.TICKS)
    return fig


def _dots(ax: Any, errors: Frame, config: Config) -> None:
    """The best samplers, and below a line well-known ones."""
    shown = [*errors.index[:BEST], *(name for name in errors.index[BEST:] if name in config["well_known"])]
    for problem, (_, colour, marker) in LOOKS.items():
        ax.plot(errors.loc[shown, problem], range(len(shown)), marker, color=colour, markersize=4, linestyle="none")
    ax.set_yticks(range(len(shown)), [f"{name}  {errors.index.get_loc(name) + 1}" for name in shown])
    ax.axhline(BEST - 0.5, color="#999999", lw=0.8)
    ax.set(xscale="log", ylim=(len(shown) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
