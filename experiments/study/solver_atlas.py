"""Does the declared order, or having a name, tell who is accurate? The registry, and the cube of all Adams methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.cells import Rows, part_of
from experiments.core.frames import at
from experiments.core.judging import ratio_row
from experiments.models.cube import Cell, case, cube
from experiments.models.problems import broad_mixture, distinct_solvers, product_mixture, steps_for

NAME = "solver_atlas"
QUESTION = "At few calls, does a sampler's order of convergence, or having a name, tell how accurate it is?"
CONFIG: Config = {
    "grids": {"vp": ["t2", "t1", "logrho"], "edm": ["rho7", "rho3", "logrho"], "flow": ["shift3", "t1", "logrho"]},
    "solvers": None, "preferred": ["ddim", "ddpm"], "calls": [5, 10, 20, 40, 80], "shown": [5, 10, 20], "ranked_at": 10,
    "well_known": ["ddim", "ipndm3", "dpmpp_2m", "unipc3_bh2_x0", "rhork_2heun", "tab3"],
    "samples": 256, "seed": 0, "tolerance": 0.15, "device": "cpu",
    "cube": {
        "beta_min": 0.1, "beta_max": 20.0, "t_start": 1.0, "t_end": 1e-3, "std": 0.0, "rtol": 1e-6,
        "predictions": ["eps", "x0", "v", "score"], "variables": ["t", "rho", "lam", "inv_rho"],
        "degrees": [0, 1, 2, 3], "grids": ["t1", "t2", "rho7", "logrho"], "calls": [5, 8, 10],
        "published": {"eps": ["t", "rho", "lam"], "x0": ["lam"]}, "published_frozen": ["score"],
        "samplers": ["ipndm2", "ipndm3", "ipndm4", "dpm_2m", "dpmpp_2m", "dpmpp_3m", "obelm", "unipc2_bh2_x0",
                     "unipc3_bh2_x0", "unipc3_bh2_eps"],
        "data": ["digits", "mixture", "product"], "chosen_on": "digits", "trial": ["eps", "x0"],
        "samples": 384, "fresh_samples": 192, "fresh_seeds": [101, 102, 103, 104],
    },
}  # fmt: skip
QUICK: Config = {
    "solvers": ["ddim", "tab2", "rhoab2", "dpmpp_2m", "rhork_3kutta", "flow_euler", "ddpm", "sde_dpmpp_2m"],
    "calls": [5, 10, 20], "samples": 32,
    "cube": {**CONFIG["cube"], "degrees": [0, 1, 3], "grids": ["t2"], "calls": [5, 8], "samplers": ["ipndm3"],
             "samples": 32, "fresh_samples": 24, "fresh_seeds": [101, 102], "rtol": 1e-3},
}  # fmt: skip
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
    return pd.DataFrame(registry_rows(config, part_of(progress, 0, 2)) + cube_rows(config, part_of(progress, 1, 2)))


# -- the registry ---------------------------------------------------------------------------------
def methods(config: Config) -> list[tuple[list[str], dict[str, str]]]:
    """Those without noise first: (names of the same table on all problems, problem → the first name equal there)."""
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    found = []
    for stochastic in (False, True):
        leaders: dict[str, dict[str, str]] = {}
        for problem, (process, _) in PROBLEMS.items():
            ts = da.grid(process, 12, config["grids"][problem][0])
            groups = distinct_solvers(process, ts, names, stochastic=stochastic)
            leaders[problem] = {name: first for first, same in groups.items() for name in same}
        table = pd.DataFrame(leaders).reindex(names).dropna()
        found += [(list(same.index), same.iloc[0].to_dict()) for _, same in table.groupby([*PROBLEMS], sort=False)]
    return found


def moments(mix: Any) -> tuple[Array, Array]:
    """(d,) means and variances of the coordinates."""
    marginals = mix.marginals if isinstance(mix, da.ProductMixture) else (mix,)
    means, second = np.array([(m.weights @ m.means, m.weights @ (m.covariances + m.means**2)) for m in marginals]).T
    return means, second - means**2


def registry_rows(config: Config, progress: Progress) -> Rows:
    """Part "error" (problem, grid, solver, calls) and "order" (what `deis_analysis.measure` finds)."""
    rows, found, exact = [], methods(config), {}
    for problem, (process, mix) in PROBLEMS.items():
        x = mix.sample(config["samples"], config["seed"], process, process.sampling_range[0])
        exact[problem] = (x, np.asarray(mix.flow(process, x, *process.sampling_range)))
    for done, ((solver, *same), leaders) in enumerate(found, 1):
        row = da.SOLVERS[solver]
        measured = da.measure(row)
        common = {"solver": solver, "family": row.family, "stochastic": row.stochastic, "same_as": " = ".join(same),
                  "order": row.order, "order_exact_start": row.order_exact_start}  # fmt: skip
        for problem, first in leaders.items():
            here = {"part": "error", **common, "equal_here": first if first != solver else ""}
            rows += [{**here, **error} for error in _errors(solver, problem, exact[problem], config)]
        rows.append({"part": "order", **common, "slope": measured.order.slope,
                     "slope_exact_start": getattr(measured.order_exact_start, "slope", np.nan),
                     "degree": row.degree, "degree_measured": measured.degree})  # fmt: skip
        progress(done / len(found))
    return rows


def _errors(solver: str, problem: str, data: tuple[Array, Array], config: Config) -> Iterator[dict[str, Any]]:
    """Error per budget of calls on the main grid and, for the budgets shown, on the others."""
    (process, mix), (main, *others) = PROBLEMS[problem], config["grids"][problem]
    for kind, calls in (*product([main], config["calls"]), *product(others, config["shown"])):
        if not (steps := steps_for(solver, calls)):
            continue
        place = {"problem": problem, "grid": kind, "calls": calls, "steps": steps}
        try:
            table = da.build(solver, process, da.grid(process, steps, kind))
        except ValueError as reason:  # a step that is singular for this method
            yield {**place, "refused": str(reason)}
            continue
        if table.stochastic:  # W2 distance of the law for Gaussian data with these moments
            gap = da.law_error(table, process, *moments(mix))
        else:
            gap = da.run(table, mix.model(process, table.prediction), data[0]) - data[1]
        gain = da.amplification(table.in_terms_of(process, "eps"))
        yield {**place, "nfe": table.nfe, "error": float(np.sqrt(np.mean(gap**2))), "amplification": gain}


# -- the cube -------------------------------------------------------------------------------------
def cube_rows(config: Config, progress: Progress) -> Rows:
    """Part "choose" (data, calls, cell: error) and "margin" (comparisons on fresh samples, paired)."""
    inner = {**config["cube"], "seed": config["seed"], "device": config["device"]}
    cubes = {calls: cube(inner, calls) for calls in inner["calls"]}
    rows: Rows = []
    for done, data in enumerate(inner["data"], 1):
        here = case(data, inner, inner["seed"], False)
        for calls, cells in cubes.items():
            squares = {cell: here.squares(made) for cell, (made, first) in cells.items() if cell == first}
            rows += [{"part": "choose", "data": data, "calls": calls, **asdict(cell),
                      "same_as": "" if cell == first else str(first), "published": first.published(inner),
                      "rms": np.sqrt(squares[first].mean()), "median": np.sqrt(np.median(squares[first]))}
                     for cell, (_, first) in cells.items()]  # fmt: skip
        progress(0.7 * done / len(inner["data"]))
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
        for role, some in {"unnamed": ~named, "cell": named & (part.degree >= 0), "named": named}.items():
            row = part.loc[part.rms[some].idxmin()]
            cell = Cell(row.prediction, row.variable, int(row.degree), row.grid)
            found.setdefault((data, int(calls)), {})[role] = cell
    return found


def _comparisons(chosen: Any, data: str, calls: int, config: Config) -> list[tuple[str, Cell, Cell]]:
    """(kind, named, unnamed): chosen on these data; unnamed chosen on the digits; a trial by hand at each degree."""
    here, there, (one, other) = chosen[data, calls], chosen[config["chosen_on"], calls], config["trial"]
    carried = [("carried", here["named"], there["unnamed"])] if data != config["chosen_on"] else []
    trials = [("trial", Cell(one, "t", d, "t2"), Cell(other, "t", d, "t2")) for d in config["degrees"] if d > 0]
    return [("cube", here["cell"], here["unnamed"]), ("named", here["named"], here["unnamed"]), *carried, *trials]


def _margin(named: list[Array], unnamed: list[Array], seed: int) -> dict[str, Any]:
    """Error of the named method over that of the unnamed cell: pooled, its 95 % interval, its range over seeds."""
    by_seed = [np.sqrt(a.mean() / b.mean()) for a, b in zip(named, unnamed, strict=True)]
    a, b = np.concatenate(named), np.concatenate(unnamed)
    return {"rms_named": np.sqrt(a.mean()), "rms": np.sqrt(b.mean()), **ratio_row(a, b, seed), "seed_low": min(by_seed),
            "seed_high": max(by_seed), "median_ratio": np.sqrt(np.median(a) / np.median(b))}  # fmt: skip


# -- what was found -------------------------------------------------------------------------------
def main_grid(frame: Frame, config: Config) -> Frame:
    """The errors on each problem's first grid."""
    rows = at(frame, part="error")
    return rows[rows.error.notna() & (rows.grid == rows.problem.map(lambda problem: config["grids"][problem][0]))]


def correlations(frame: Frame, config: Config) -> Frame:
    """Spearman's rank correlation of order and accuracy: calls × problem; 1 if a higher order is always better."""
    rows = at(main_grid(frame, config), stochastic=False)
    grouped = rows[style.texts(rows.equal_here) == ""].groupby(["calls", "problem"], sort=False)
    return grouped.apply(lambda part: float(spearmanr(part.order_exact_start, -part.error).statistic)).unstack()


def ranking(frame: Frame, config: Config) -> Frame:
    """Errors at ``ranked_at`` calls, solver × problem, by the mean rank over the problems; no samplers with noise."""
    rows = at(main_grid(frame, config), stochastic=False, calls=config["ranked_at"])
    errors = rows.pivot(index="solver", columns="problem", values="error")
    return errors.loc[errors.rank().mean(axis=1).sort_values(kind="stable").index]


def orders_off(frame: Frame) -> Frame:
    """Measured minus declared orders, with the own start and, where there is one, an exact start."""
    order = at(frame, part="order").set_index("solver")
    return pd.DataFrame({"own": order.slope - order.order, "exact": order.slope_exact_start - order.order_exact_start})


def wins(frame: Frame, kind: str) -> str:
    """In how many comparisons of a kind the unnamed cell is better or worse, in words; by bootstrap and seeds."""
    rows = at(frame, part="margin", kind=kind)
    better, worse = rows[["low", "seed_low"]].min(axis=1) > 1, rows[["high", "seed_high"]].max(axis=1) < 1
    return f"in {better.sum()} of {len(rows)}, worse in {worse.sum()}"


def headline(frame: Frame, config: Config) -> str:
    """Whether order tells the accuracy at the fewest calls."""
    calls = config["shown"][0]
    most = correlations(frame, config).loc[calls].max()
    tells = "tells" if most >= 0.5 else "does not tell"
    return f"At {calls} calls a sampler's order {tells} how accurate it is: rank correlation at most {most:+.2f}"


def verdict(frame: Frame, config: Config) -> str:
    """Whether order tells the accuracy, whether a name does, and whether the declared orders are met."""
    exact, off = correlations(frame, config), orders_off(frame).abs()
    calls = dict.fromkeys([config["shown"][0], config["shown"][-1], max(config["calls"])])
    spans = ", ".join(f"{exact.loc[c].min():+.2f} to {exact.loc[c].max():+.2f} at {c}" for c in calls)
    met = ((off.own <= config["tolerance"]) & ~(off.exact > config["tolerance"])).sum()
    return (
        f"{headline(frame, config)} ({spans}); the best table without a name is on fresh samples better than the best "
        f"with one {wins(frame, 'named')}; carried to other data {wins(frame, 'carried')}; declared orders are "
        f"measured for {met} of {len(off)} methods."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Correlations against calls, ratios of named to unnamed, and the errors of the best and the well-known."""
    margins, asked, found = at(frame, part="margin", kind="named"), config["cube"], correlations(frame, config)
    note = (
        "Order: with an exact start. Right: deterministic samplers of the registry by mean rank over the problems, "
        f"{config['samples']} samples. Below: exponential Adams methods, {len(asked['fresh_seeds'])} × "
        f"{asked['fresh_samples']} fresh samples, by data and calls; right of 1 the unnamed is better; thick: paired "
        "bootstrap 95 %, thin: range over seeds."
    )
    fig = panels.sheet(headline(frame, config), note, 4.8)
    grid = fig.add_gridspec(2, 2, **style.body(fig, left=0.65, bottom=0.42, right=0.1), wspace=0.72, hspace=0.42)
    left, below, right = (fig.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    errors = ranking(frame, config)  # the best samplers, and below a line well-known ones
    shown = [*errors.index[:BEST], *(name for name in errors.index[BEST:] if name in config["well_known"])]
    for problem, (title, colour, marker) in LOOKS.items():
        panels.curve(left, found.index, found[problem], label=title, color=colour, marker=marker)
        right.plot(errors.loc[shown, problem], range(len(shown)), marker, color=colour, markersize=4, linestyle="none")
    left.axhline(0.0, color="#333333", lw=0.9, zorder=0)
    left.set_ylim(-1, 1)
    left.legend(fontsize=panels.SMALL, loc="lower right")
    panels.calls_axis([left], config["calls"], "")
    names = [f"{DATA[row.data]}, {row.calls:g}" for row in margins.itertuples()]
    ratios, seeds = margins[["ratio", "low", "high"]].to_numpy(), margins[["seed_low", "seed_high"]].to_numpy()
    panels.intervals(below, ratios, [0.5, 0.7, 1, 1.4, 2], names, panels.WORSE, panels.BETTER, list(seeds))
    right.set_yticks(range(len(shown)), [f"{name}  {errors.index.get_loc(name) + 1}" for name in shown])
    right.axhline(BEST - 0.5, color="#999999", lw=0.8)
    right.set(xscale="log", ylim=(len(shown) - 0.5, -0.5))
    right.tick_params(axis="y", length=0)
    panels.named(left, "rank correlation of order and accuracy", "model calls (NFE)")
    panels.named(below, "errors: best named / best unnamed table", "ratio")
    panels.named(right, f"errors at {config['ranked_at']} calls, with ranks", "RMS error")
    return fig
