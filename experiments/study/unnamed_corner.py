"""Is a method without a name better than those with one? The cube prediction × variable × degree × grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import (
    bootstrap_ratio,
    broad_mixture,
    digits,
    digits_problem,
    product_mixture,
    vp_linear,
)

NAME = "unnamed_corner"
QUESTION = "At 5 to 10 calls, does any exponential Adams method without a name beat all those that have one?"
CONFIG: Config = {
    "beta_min": 0.1, "beta_max": 20.0, "t_start": 1.0, "t_end": 1e-3,
    "predictions": ["eps", "x0", "v", "score"],
    "variables": ["t", "rho", "lam", "inv_rho"],
    "degrees": [0, 1, 2, 3],
    "grids": ["t1", "t2", "rho7", "logrho"],
    "calls": [5, 8, 10],
    "published": {"eps": ["t", "rho", "lam"], "x0": ["lam"]},
    "published_frozen": ["score"],
    "samplers": [
        "ipndm2", "ipndm3", "ipndm4", "dpm_2m", "dpmpp_2m", "dpmpp_3m", "obelm",
        "unipc2_bh2_x0", "unipc3_bh2_x0", "unipc3_bh2_eps",
    ],
    "data": ["digits", "mixture", "product"], "chosen_on": "digits",
    "samples": 384, "seed": 0, "fresh_samples": 192, "fresh_seeds": [101, 102, 103, 104],
    "trial": {"calls": 5, "grid": "t2", "variable": "t", "unnamed": "x0", "published": "eps"},
    "std": 0.0,
    "rtol": 1e-6,
    "device": "cpu",
}  # fmt: skip
QUICK: Config = {
    "degrees": [0, 1, 3], "grids": ["t2"], "calls": [5, 8], "samplers": ["ipndm3"],
    "samples": 32, "fresh_samples": 24, "fresh_seeds": [101, 102], "rtol": 1e-3,
}  # fmt: skip
DATA = {"digits": "digits", "mixture": "1-D mixture", "product": "product mixture"}
_MIXTURES = {"mixture": broad_mixture, "product": product_mixture}
_PRINTED = {"eps": "ε", "x0": "x₀", "v": "v", "score": "score", "rho": "ρ", "lam": "λ", "inv_rho": "1/ρ"}
XLABEL = "error of the named / error of the unnamed"
Cell = tuple[str, str, int, str]  # prediction, variable, degree, grid; of other samplers name, "", -1, grid


@dataclass(frozen=True)
class Problem:
    """An ε model, starts and the exact answers."""

    model: Any
    x: Any
    truth: Any

    def squares(self, table: da.Tableau) -> Array:
        """(n,) mean squared errors of the samples."""
        gap = da.run(table, self.model, self.x) - self.truth
        values = np.asarray(gap.cpu() if hasattr(gap, "cpu") else gap)
        return np.square(values).reshape(values.shape[0], -1).mean(axis=1)


def problem(data: str, config: Config, seed: int, fresh: bool) -> Problem:
    """One of ``data``; choosing is done on every other image of the digits, ``fresh`` problems have the rest."""
    samples = config["fresh_samples" if fresh else "samples"]
    if data == "digits":
        given = {**config, "seed": seed, "samples": samples}
        found = digits_problem(given, digits()[int(fresh) :: 2])
        return Problem(found.model, found.x_T, found.reference)
    process, mix = vp_linear(config), cast(Any, _MIXTURES[data]())
    x = mix.sample(samples, seed, process, config["t_start"])
    return Problem(mix.eps(process), x, mix.flow(process, x, config["t_start"], config["t_end"]))


def table(process: Process, config: Config, cell: Cell, calls: int) -> da.Tableau:
    """The table of a cell, in terms of ε."""
    prediction, variable, degree, kind = cell
    ts = da.grid(process, calls, kind, config["t_start"], config["t_end"])
    if not variable:
        return da.build(prediction, process, ts).in_terms_of(process, "eps")
    return da.adams(process, ts, degree, prediction=prediction, variable=variable).in_terms_of(process, "eps")


def is_published(cell: Cell, config: Config) -> bool:
    """Whether the literature has a name for the cell itself (see `cube` for those that are equal to one)."""
    prediction, variable, degree, _ = cell
    frozen = degree == 0 and prediction in config["published_frozen"]
    return frozen or not variable or variable in config["published"].get(prediction, ())


def cube(process: Process, config: Config, calls: int) -> dict[Cell, tuple[da.Tableau, Cell]]:
    """Every cell's and sampler's table, and the first cell with the same table, a published one if there is one."""
    axes = (config[key] for key in ("predictions", "variables", "degrees", "grids"))
    samplers = [(name, "", -1, kind) for name in config["samplers"] for kind in config["grids"]]
    cells: list[Cell] = sorted([*itertools.product(*axes), *samplers], key=lambda cell: not is_published(cell, config))
    found: dict[Cell, tuple[da.Tableau, Cell]] = {}
    for cell in cells:
        made = table(process, config, cell, calls)
        firsts = ((c, t) for c, (t, first) in found.items() if c == first and c[3] == cell[3])
        found[cell] = (made, next((c for c, t in firsts if da.distance(t, made) < 1e-9), cell))
    return found


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "choose" (data, calls, cell: error) and "margin" (comparisons on fresh samples, paired)."""
    process = vp_linear(config)
    cubes = {calls: cube(process, config, calls) for calls in config["calls"]}
    progress(0.05)
    rows: list[dict[str, Any]] = []
    for done, data in enumerate(config["data"]):
        rows += _choose(problem(data, config, config["seed"], False), data, cubes, config)
        progress(0.05 + 0.65 * (done + 1) / len(config["data"]))
    chosen = picks(pd.DataFrame(rows))
    for done, data in enumerate(config["data"]):
        fresh = [problem(data, config, seed, True) for seed in config["fresh_seeds"]]
        for calls in config["calls"]:
            tables = {cell: made for cell, (made, _) in cubes[calls].items()}
            for kind, *pair in _comparisons(chosen, data, calls, config):
                margin = _margin(fresh, tables, pair[0], pair[1], config["seed"])
                rows.append({"part": "margin", "data": data, "calls": calls, "kind": kind, **margin})
        progress(0.7 + 0.3 * (done + 1) / len(config["data"]))
    return pd.DataFrame(rows)


def _choose(here: Problem, data: str, cubes: dict[int, Any], config: Config) -> list[dict[str, Any]]:
    rows = []
    for calls, cells in cubes.items():
        squares = {cell: here.squares(made) for cell, (made, first) in cells.items() if cell == first}
        for cell, (_, first) in cells.items():
            place = dict(zip(("prediction", "variable", "degree", "grid"), cell, strict=True))
            rows.append(
                {"part": "choose", "data": data, "calls": calls, **place,
                 "same_as": "" if cell == first else label(first), "published": is_published(first, config),
                 "rms": float(np.sqrt(squares[first].mean())), "median": float(np.sqrt(np.median(squares[first])))}
            )  # fmt: skip
    return rows


def label(cell: Cell, printed: bool = False) -> str:
    """``(x0, t) 2 t1``: prediction, variable, degree, grid; ``ipndm3 t1`` of another sampler."""
    prediction, variable, degree, kind = cell
    if not variable:
        return f"{prediction} {kind}"
    names = [_PRINTED.get(part, part) if printed else part for part in (prediction, variable)]
    return f"({', '.join(names)}) {int(degree)} {kind}"


def cell_of(text: str) -> Cell:
    """The cell of a `label`."""
    if not text.startswith("("):
        name, kind = text.split(" ")
        return name, "", -1, kind
    pair, degree, kind = text.rsplit(" ", 2)
    prediction, variable = pair.strip("()").split(", ")
    return prediction, variable, int(degree), kind


def picks(frame: Frame) -> dict[tuple[str, int], dict[str, Cell]]:
    """Per data and calls, the cell of least error of the "unnamed" ones, the named "cell" and all "named" methods."""
    found: dict[tuple[str, int], dict[str, Cell]] = {}
    rows = frame[(frame.part == "choose") & (style.texts(frame.same_as) == "")]
    for (data, calls), part in rows.groupby(["data", "calls"], sort=False):
        named, inside = part.published.astype(bool), part.degree >= 0
        roles = {"unnamed": part[~named], "cell": part[named & inside], "named": part[named]}
        found[data, int(calls)] = {role: _cell(rows.loc[rows.rms.idxmin()]) for role, rows in roles.items()}
    return found


def _cell(row: Any) -> Cell:
    variable = row.variable if isinstance(row.variable, str) else ""  # an empty field of the CSV is NaN
    return row.prediction, variable, int(row.degree), row.grid


def _comparisons(chosen: Any, data: str, calls: int, config: Config) -> list[tuple[str, Cell, Cell]]:
    """(kind, named, unnamed): chosen on these data; unnamed chosen on the digits; the hand trial at each degree."""
    here = chosen[data, calls]
    pairs = [("cube", here["cell"], here["unnamed"]), ("named", here["named"], here["unnamed"])]
    if data != config["chosen_on"]:
        pairs.append(("carried", here["named"], chosen[config["chosen_on"], calls]["unnamed"]))
    t = config["trial"]
    for degree in config["degrees"]:
        if degree > 0:
            named, unnamed = ((t[key], t["variable"], degree, t["grid"]) for key in ("published", "unnamed"))
            pairs.append(("trial", named, unnamed))
    return pairs


def _margin(fresh: list[Problem], tables: Any, named: Cell, unnamed: Cell, seed: int) -> dict[str, Any]:
    """Error of the named method over that of the unnamed cell: pooled, its 95 % interval, its range over seeds."""
    squares = [[here.squares(tables[cell]) for here in fresh] for cell in (named, unnamed)]
    by_seed = [float(np.sqrt(a.mean() / b.mean())) for a, b in zip(*squares, strict=True)]
    a, b = map(np.concatenate, squares)
    low, high = bootstrap_ratio(a, b, seed)
    return {
        "named": label(named), "unnamed": label(unnamed), "rms_named": float(np.sqrt(a.mean())),
        "rms": float(np.sqrt(b.mean())), "ratio": float(np.sqrt(a.mean() / b.mean())), "low": low, "high": high,
        "seed_low": min(by_seed), "seed_high": max(by_seed),
        "median_ratio": float(np.sqrt(np.median(a) / np.median(b))),
    }  # fmt: skip


def findings(frame: Frame, config: Config) -> dict[str, Any]:
    """Comparisons by kind, (better, worse, of) counts by kind, and how many tables were tried."""
    margins = frame[frame.part == "margin"]
    kinds = {kind: margins[margins.kind == kind] for kind in ("cube", "named", "carried", "trial")}
    kinds["trial"] = kinds["trial"][kinds["trial"].calls == config["trial"]["calls"]]
    tried = frame[(frame.part == "choose") & (style.texts(frame.same_as) == "") & (frame.data == config["chosen_on"])]
    tried = tried[tried.calls == config["calls"][0]].published.astype(bool)
    counts = {kind: (int((rows.low > 1).sum()), int((rows.high < 1).sum()), len(rows)) for kind, rows in kinds.items()}
    return {"rows": kinds, "counts": counts, "named": int(tried.sum()), "unnamed": int((~tried).sum())}


def _amount(row: Any) -> str:
    times = f"{row.ratio:.2f}x less" if row.ratio >= 1 else f"{1 / row.ratio:.2f}x more"
    low, high = (row.low, row.high) if row.ratio >= 1 else (1 / row.high, 1 / row.low)
    return f"{times} [{low:.2f}, {high:.2f}]"


def verdict(frame: Frame, config: Config) -> str:
    """Whether the best unnamed cell holds its margin on fresh noise, other images and other data."""
    f = findings(frame, config)
    rows = f["rows"]["cube"]
    margins = ", ".join(f"{_amount(r)} at {r.calls}" for r in rows[rows.data == config["chosen_on"]].itertuples())
    cube, named, carried = ("{} (worse in {}) of {}".format(*f["counts"][k])
                            for k in ("cube", "named", "carried"))  # fmt: skip
    return (
        f"Of {f['unnamed']} unnamed and {f['named']} named tables the best unnamed on half of the digits errs on the "
        f"other half {margins} calls than the best named cell; over {len(config['data'])} data sets it is clearly "
        f"better in {cube} cases than the named cell, {named} than all that is named and, chosen on the digits, "
        f"{carried} on other data."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Above the cube on the digits, a map per call count; below the margins on fresh samples of all data sets."""
    f = findings(frame, config)
    (cube_wins, cube_losses, total), (wins, losses, _) = (f["counts"][kind] for kind in ("cube", "named"))
    headline = (
        f"Fresh samples: the best unnamed cell beats the best named cell in {cube_wins} of {total} cases (loses "
        f"{cube_losses}), and the best of all named methods in {wins} (loses {losses})"
    )
    note = (
        f"Exponential Adams methods; {style.setting(config)}. Above: ideal denoiser of every other of the 1,797 "
        f"digits, {config['samples']} samples: RMS error over that of the best named cell (○; ★ best unnamed). Framed "
        "rows have names: (ε, t) tAB, (ε, ρ) ρAB, (ε, λ) log-ρAB, (x₀, λ) DPM-Solver++, and so have DDIM and the "
        f"frozen score; named beyond the cube: {', '.join(config['samplers'])}. Below: {len(config['fresh_seeds'])} × "
        f"{config['fresh_samples']} fresh samples, of the digits' other images; thick: paired bootstrap 95 %, thin: "
        "range over seeds; right of 1 the unnamed is better."
    )
    width, height = 15.0, 13.2
    fig = style.new_figure(width, height, headline, note)
    columns, top = len(config["calls"]), fig.subplotpars.top - 0.35 / height
    maps = fig.add_gridspec(1, columns + 1, width_ratios=[*[1] * columns, 0.035], wspace=0.1,
                            left=0.95 / width, right=1 - 0.55 / width, top=top, bottom=0.57)  # fmt: skip
    images = [_map(fig.add_subplot(maps[i]), frame, calls, config, i == 0) for i, calls in enumerate(config["calls"])]
    bar = fig.colorbar(images[0], cax=fig.add_subplot(maps[columns]), ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["¼×", "½×", "1×", "2×", "≥4×"])
    bar.outline.set_visible(False)
    low, room = 0.55 / height, 0.445
    _forest(fig.add_axes((1.75 / width, low, 3.9 / width, room)), f, config)
    _trial(fig.add_axes((11.4 / width, low + 0.5 * room, 3.2 / width, 0.5 * room)), f, config)
    return fig


def _map(ax: Any, frame: Frame, calls: int, config: Config, labelled: bool) -> Any:
    rows = frame[(frame.part == "choose") & (frame.data == config["chosen_on"]) & (frame.calls == calls)]
    best = picks(rows)[config["chosen_on"], calls]
    lines = list(itertools.product(config["predictions"], config["variables"]))
    columns = list(itertools.product(config["grids"], config["degrees"]))
    at = rows.set_index(["prediction", "variable", "grid", "degree"]).rms
    values = np.array([[at[(*line, *column)] for column in columns] for line in lines])
    limit = rows[rows.published.astype(bool) & (rows.degree >= 0)].rms.min()
    image = ax.imshow(np.log2(values / limit), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto", interpolation="nearest")
    for role, mark, size, face in (("cell", "o", 9, "none"), ("unnamed", "*", 14, "#ffd500")):
        prediction, variable, degree, kind = best[role]
        y, x = lines.index((prediction, variable)), columns.index((kind, degree))
        ax.plot(x, y, mark, markersize=size, markerfacecolor=face, markeredgecolor="black", markeredgewidth=1.3)
    for y, (prediction, variable) in enumerate(lines):
        if variable in config["published"].get(prediction, ()):
            ax.add_patch(Rectangle((-0.5, y - 0.5), len(columns), 1, fill=False, edgecolor="black", lw=1.2, zorder=4))
    for x in range(1, len(config["grids"])):
        ax.axvline(x * len(config["degrees"]) - 0.5, color="white", lw=2.5)
    names = [f"({_PRINTED[p]}, {_PRINTED.get(v, v)})" for p, v in lines]
    ax.set_yticks(range(len(lines)), names if labelled else [])
    ax.set_xticks(range(len(columns)), [str(degree) for _, degree in columns], fontsize=8.5)
    for i, kind in enumerate(config["grids"]):
        middle = (i + 0.5) * len(config["degrees"]) - 0.5
        ax.text(middle, len(lines) + 0.75, kind, ha="center", va="top", fontsize=9.5)
    for word, drop in (("degree", -0.05), ("grid", 0.75)) if labelled else ():
        ax.text(-0.7, len(lines) + drop, word, ha="right", va="top", fontsize=9)
    ax.set_title(f"{calls} calls: ★ {label(best['unnamed'], True)}, ○ {label(best['cell'], True)}", fontsize=10)
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _forest(ax: Any, f: dict[str, Any], config: Config) -> None:
    places, names, y = [], [], 0.0
    for kind, title in (
        ("cube", "against the best named cell of the cube"),
        ("named", "against the best of all named methods"),
        ("carried", f"cell chosen on the {DATA[config['chosen_on']]}, against the best of all named methods"),
    ):
        ax.text(0.01, y, title, transform=ax.get_yaxis_transform(), va="center", fontsize=9, fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip
        for row in f["rows"][kind].itertuples():
            y += 1
            style.ratio_interval(ax, row, y)
            places.append(y)
            names.append(f"{DATA[row.data]}, {row.calls}")
            text = f"{label(cell_of(row.unnamed), True)} against {label(cell_of(row.named), True)}"
            ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color="#333333")
        y += 1.3
    style.ratio_axis(ax, places, names, "Best unnamed cell, by data and calls", XLABEL)


def _trial(ax: Any, f: dict[str, Any], config: Config) -> None:
    t, rows = config["trial"], f["rows"]["trial"]
    for y, row in enumerate(rows.itertuples()):
        style.ratio_interval(ax, row, y)
    a, b = (f"({_PRINTED[t[key]]}, {t['variable']})" for key in ("unnamed", "published"))
    names = [f"{DATA[row.data]}, degree {cell_of(row.unnamed)[2]}" for row in rows.itertuples()]
    title = f"{a} against {b}, {t['calls']} calls, {t['grid']}"
    style.ratio_axis(ax, range(len(names)), names, title, XLABEL)
