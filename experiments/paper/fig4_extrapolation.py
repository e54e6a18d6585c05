"""Does ε change slowly enough to be extrapolated? Along the exact solution, and in the samples that come of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, step_points

NAME = "fig4_extrapolation"
QUESTION = "Does ε change little along the exact solution, and does a higher degree extrapolate it and sample better?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "gaussian", "digits", "network", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "grids": ["t2", "t1"],
    "change_steps": 40,
    "change_above": 0.15,
    "path_steps": [10, 20],
    "path_points": 3,
    "path_samples": 32,
    "path_batches": 16,
    "degrees": [0, 1, 2, 3],
    "steps": [5, 7, 10, 14, 20, 50],
    "few": 20,
    "compared_at": 10,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 4, on CIFAR10; here on other models",
        "change": "||ε(x_t, t) - ε(x_s, s)|| / ||ε(x_t, t)|| over all samples and dimensions, s the next time of a "
        "uniform grid of change_steps steps; the paper's ratio and step are not known",
        "Δε": "root mean square over samples and dimensions, on the first of grids; the first steps have fewer nodes",
        "samples": "mean |x - x*| over samples and dimensions, x* of the same x_T; the paper's measure is not known",
        "intervals": "95 %, bootstrap over the samples, for Δε over path_batches groups of them",
    },
}
QUICK: Config = {
    **studies.BASE_QUICK,
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
    "grids": ["t2"],
    "change_steps": 12,
    "path_points": 2,
    "path_samples": 16,
    "path_batches": 4,
    "steps": [5, 10, 20],
}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
    "samples": 1024,
    "change_steps": 200,
    "path_points": 12,
    "path_samples": 256,
    "steps": [5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 30, 40, 50, 70, 100],
}
COLUMNS = 3
SHADES = ("#000000", "#9ecae1", "#4292c6", "#0b4a86")  # degree 0 is DDIM; tAB's blue darkens with the degree


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "change" (model, t), "path" (steps, degree, step, t: Δ_ε), "samples" (grid, steps, degree)."""

    def rows_of(name: str, progress: Progress) -> Rows:
        rows = _along_the_path(name, config)
        progress(0.5)
        return rows + _samples(name, config)

    return by_model(NAME, config, rows_of, progress)


def _numpy(x: Any) -> Array:
    return np.asarray(x.detach().cpu())


def _along_the_path(name: str, config: Config) -> list[dict[str, Any]]:
    """Relative change and extrapolation errors of ε, all on one exact path."""
    study = studies.study(name, {**config, "samples": config["path_samples"]})
    ends = config["t_start"], config["t_end"]
    fine = [float(t) for t in da.grid(study.process, config["change_steps"], "t1", *ends)]
    coarse = {n: da.grid(study.process, n, config["grids"][0], *ends) for n in config["path_steps"]}
    times = dict.fromkeys([*fine, *(t for ts in coarse.values() for t in step_points(ts, config["path_points"]))])
    state, estimate = study.path(times)
    eps = {t: _numpy(study.model(state(t), t)) for t in times}
    rows: list[dict[str, Any]] = [{"part": "reference", "estimate": estimate}]
    for t, s in itertools.pairwise(fine):
        change = float(np.linalg.norm(eps[t] - eps[s]) / np.linalg.norm(eps[t]))
        rows.append({"part": "change", "t": t, "to": s, "change": change})
    for n, ts in coarse.items():
        rows += [{"steps": n, **row} for row in _extrapolated(eps, study.process, ts, config)]
    return rows


def _extrapolated(eps: dict[float, Array], process: Any, ts: Array, config: Config) -> list[dict[str, Any]]:
    """Rows of parts "path", Δ_ε of each degree, and "average", its path average over those of other degrees."""
    rows: list[dict[str, Any]] = []
    squares: dict[int, Array] = {}  # (batches,) mean over the path, per degree
    batches = [{t: e[k :: config["path_batches"]] for t, e in eps.items()} for k in range(config["path_batches"])]
    for degree in config["degrees"]:
        found = [_errors_on(batch, process, ts, degree, config["path_points"]) for batch in batches]
        squares[degree] = np.mean([errors**2 for _, errors in found], axis=(1, 2))
        pooled = np.sqrt(np.mean([errors**2 for _, errors in found], axis=0))
        rows += [
            {"part": "path", "degree": degree, "step": i, "t": t, "delta": d}
            for i, (visited, row) in enumerate(zip(found[0][0], pooled, strict=True))
            for t, d in zip(visited, row, strict=True)
        ]
    return rows + _averages(squares, config["seed"])


def _errors_on(eps: dict[float, Array], process: Any, ts: Array, degree: int, points: int) -> tuple[Array, Array]:
    """Times and extrapolation errors where ε on the exact path is known, so that no state is needed."""
    return da.extrapolation_error(lambda x, t: eps[t], process, lambda t: None, ts, degree, points=points)


def _averages(squares: dict[int, Array], seed: int) -> list[dict[str, Any]]:
    """Per degree the path average; the interval of it over that of the degree before; gain, the lowest's over it."""
    rows: list[dict[str, Any]] = []
    first = before = next(iter(squares.values()))
    for degree, mine in squares.items():
        row = {"part": "average", "degree": degree, "delta": float(np.sqrt(mine.mean()))}
        if rows:
            row["low"], row["high"] = bootstrap_ratio(mine, before, seed)
            row["gain"] = float(np.sqrt(first.mean() / mine.mean()))
            row["gain_low"], row["gain_high"] = bootstrap_ratio(first, mine, seed)
        rows.append(row)
        before = mine
    return rows


def _samples(name: str, config: Config) -> list[dict[str, Any]]:
    """Errors of tAB of each degree against the exact answer."""
    study = studies.study(name, config)
    exact, estimate = study.reference(config["t_end"])
    rows: list[dict[str, Any]] = [{"part": "reference", "estimate": estimate}]
    for kind in config["grids"]:
        for steps in config["steps"]:
            ts = da.grid(study.process, steps, kind, config["t_start"], config["t_end"])
            gaps = {r: _numpy(study.solve(f"tab{r}", ts) - exact) for r in config["degrees"]}
            common = {"part": "samples", "grid": kind, "steps": steps}
            rows += [{**common, **row} for row in compare(gaps, config["seed"])]
    return rows


def compare(gaps: dict[int, Array], seed: int) -> list[dict[str, Any]]:
    """Per degree mean |gap| and RMS; the mean over that of the degree before, and gain, the lowest's over it."""
    rows: list[dict[str, Any]] = []
    first = before = None
    for degree, gap in gaps.items():
        size = np.abs(gap).mean(axis=1)
        row = {"degree": degree, "mean": float(size.mean()), "rms": float(np.sqrt((gap**2).mean()))}
        if first is None or before is None:
            first = size
        else:
            low, high = bootstrap_ratio(size, before, seed, draws=1000)  # of √(mean / mean)
            row |= {"ratio": float(size.mean() / before.mean()), "low": low**2, "high": high**2}
            low, high = bootstrap_ratio(first, size, seed, draws=1000)
            row |= {"gain": float(first.mean() / size.mean()), "gain_low": low**2, "gain_high": high**2}
        rows.append(row)
        before = size
    return rows


def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: largest relative changes, path averages of Δ_ε per degree, and how often each degree improves."""
    return {name: _findings(frame[frame.model == name], config) for name in config["models"]}


def _findings(rows: Frame, config: Config) -> dict[str, Any]:
    change = rows[rows.part == "change"]
    above = change.to >= config["change_above"]
    average = rows[rows.part == "average"]
    lowest, highest = average.degree.min(), average.degree.max()
    last = average[average.degree == highest].set_index("steps")
    few = rows[(rows.part == "samples") & (rows.steps <= config["few"])]
    better, samples = {}, {}
    for kind in config["grids"]:
        later = few[(few.grid == kind) & (few.degree > lowest)]
        each, sure = (later[column].lt(1).groupby(later.steps).all() for column in ("ratio", "high"))
        better[kind] = (int(each.sum()), int(sure.sum()))
        at = later[(later.steps == config["compared_at"]) & (later.degree == highest)].iloc[0]
        samples[kind] = (at.gain, at.gain_low, at.gain_high)
    return {
        "above": float(change[above].change.max()),
        "below": float(change[~above].change.max()),
        "at": float(change.t[change.change.idxmax()]),
        "gain": {n: tuple(last.loc[n, ["gain", "gain_low", "gain_high"]]) for n in config["path_steps"]},
        "falls": bool((average.high[average.degree > lowest] < 1).all()),
        "loses": {
            n: float(_losing(rows[(rows.part == "path") & (rows.steps == n)], lowest, highest).max())
            for n in last.index
        },
        "better": better,
        "samples": samples,
        "counts": int(few.steps.nunique()),
    }


def _losing(path: Frame, lowest: float, highest: float) -> Any:
    """Times at which a step ends where the highest degree is farther off than the lowest, by step."""
    ends = path.groupby(["degree", "step"])[["t", "delta"]].last()
    low, high = ends.loc[lowest], ends.loc[highest]
    return low.t[high.delta > low.delta * (1 + 1e-9)]


def always(found: dict[str, dict[str, Any]], kind: str) -> list[str]:
    """The models on which every higher degree gives better samples at all the few steps, on one kind of grid."""
    return [name for name, f in found.items() if f["better"][kind][0] == f["counts"]]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no model"


def _percent(value: float) -> str:
    return f"{style.as_text(100 * value)} %"


def verdict(frame: Frame, config: Config) -> str:
    """What the highest degree gains, where every degree helps in the samples and on the exact path; change of ε."""
    found, text, kinds = findings(frame, config), style.as_text, config["grids"]
    gains = {kind: ", ".join(text(f["samples"][kind][0]) for f in found.values()) for kind in kinds}
    return (
        f"On {', '.join(found)} degree {min(config['degrees'])} has at {config['compared_at']} steps "
        f"{' and '.join(f'{gains[kind]} ({kind})' for kind in kinds)} times degree "
        f"{max(config['degrees'])}'s error; every degree helps throughout N ≤ {config['few']} on "
        f"{', '.join(f'{_listed(always(found, kind))} ({kind})' for kind in kinds)}, along the exact path clearly on "
        f"{_listed([n for n, f in found.items() if f['falls']])}; ε changes there at most "
        f"{_percent(max(f['above'] for f in found.values()))} per 1/{config['change_steps']} of t above "
        f"{config['change_above']:g}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: error of the samples against N, by degree; then the gain and the change on the exact path."""
    found, kind = findings(frame, config), config["grids"][0]
    lowest, highest, few = min(config["degrees"]), max(config["degrees"]), config["few"]
    gains = [f["samples"][kind][0] for f in found.values()]
    headline = (
        f"Degree {lowest} has {style.as_text(min(gains))} to {style.as_text(max(gains))} times degree {highest}'s "
        f"error at {config['compared_at']} steps; every degree helps at all N ≤ {few} on {len(always(found, kind))} of "
        f"{len(found)} models"
    )
    on_path = studies.how_many({**config, "samples": config["path_samples"]})
    note = (
        f"Mean |x − x*| on the {kind} grid, {style.setting(config)}, {studies.how_many(config)}; reference accurate to "
        f"{style.as_text(frame.estimate.max(), 1)}. n of {next(iter(found.values()))['counts']}: N ≤ {few} at which "
        f"each degree is better than the one below. On the exact path ({on_path}): error of ε extrapolated with degree "
        f"{lowest} over degree {highest} (95 % interval; blue: the higher is better), and the largest relative change "
        f"of ε over 1/{config['change_steps']} of the time, above t = {config['change_above']:g} and below."
    )
    fig = panels.sheet(headline, note, 0.75 + 1.75 * -(-(len(found) + 2) // COLUMNS))
    names = [panels.short(name) for name in found]
    axes, (gain, change) = panels.small_multiples(fig, names, COLUMNS, more=2, indent=0.62, extra_top=0.5)
    for ax, (name, f) in zip(axes, found.items(), strict=True):
        _errors(ax, frame[(frame.part == "samples") & (frame.model == name)], config, f)
    axes[0].set_yscale("log")
    panels.calls_axis(axes, [n for n in (5, 10, 20, 50, 100) if n <= max(config["steps"])])
    fig.supylabel("mean pixel difference Δp", fontsize=8.5, x=0.012)
    panels.key(fig, axes[0])
    _gain(gain, found, config)
    _change(change, found)
    return fig


def _shade(degree: Any) -> str:
    return SHADES[min(int(degree), len(SHADES) - 1)]


def _errors(ax: Any, rows: Frame, config: Config, found: dict[str, Any]) -> None:
    kind, *others = config["grids"]
    for degree, line in rows[rows.grid == kind].groupby("degree"):
        label = f"degree {int(degree)}{'' if degree else ' (DDIM)'}"
        panels.curve(ax, line.steps, line["mean"], label=label, color=_shade(degree), marker="o")
    for other in others:
        line = rows[(rows.grid == other) & (rows.degree == max(config["degrees"]))]
        label = f"degree {max(config['degrees'])}, {other} grid"
        panels.curve(ax, line.steps, line["mean"], label=label, color=style.ORANGE, linestyle="--", linewidth=1.0)
    better = " · ".join(f"{kind} {found['better'][kind][0]} of {found['counts']}" for kind in config["grids"])
    panels.words(ax, 0.03, 0.03, better, ha="left", va="bottom")


def _gain(ax: Any, found: dict[str, dict[str, Any]], config: Config) -> None:
    """Two intervals a model, of the first and the last number of steps on the path."""
    ends = dict.fromkeys((config["path_steps"][0], config["path_steps"][-1]))
    rows = [f["gain"][n] for f in found.values() for n in ends]
    panels.intervals(ax, rows, [0.5, 1, 2, 4], None, less_is=panels.WORSE, more_is=panels.BETTER)
    _by_model(ax, found, len(ends))
    ax.set_title(f"path gain, N = {', '.join(map(str, ends))}", fontsize=8.5, pad=3)


def _change(ax: Any, found: dict[str, dict[str, Any]]) -> None:
    for y, f in enumerate(found.values()):
        ax.plot([f["above"], f["below"]], [y, y], color="#cccccc", lw=1.5, zorder=1)
        ax.plot(f["above"], y, "o", color=style.BLUE, markersize=4.5)
        ax.plot(f["below"], y, "o", color=style.GREY, markersize=4.5)
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, [0.03, 0.1, 0.3, 1])
    _by_model(ax, found, 1)
    ax.set_title("path: change of ε", fontsize=8.5, pad=3)


def _by_model(ax: Any, found: dict[str, dict[str, Any]], lines: int) -> None:
    """Names of the models at the left, each with so many lines."""
    places = [lines * i + (lines - 1) / 2 for i in range(len(found))]
    ax.set_yticks(places, [panels.short(name) for name in found], fontsize=panels.SMALL)
    ax.set_ylim(lines * len(found) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
