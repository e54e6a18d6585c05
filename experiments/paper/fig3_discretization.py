"""Does an exponential integrator help by itself? The paper's two surprises: frozen score worse than Euler, ε better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, step_points

NAME = "fig3_discretization"
QUESTION = "Is an exponential integrator worse than Euler with a frozen score, and better with a frozen ε?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "gaussian", "digits", "network"],
    "grid": "t1",
    "steps": [5, 7, 10, 14, 20, 30, 50, 100, 200],
    "path_steps": 10,
    "path_points": 8,
    "path_samples": 64,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 3, on CIFAR10; here on other models",
        "Δp": "mean of |x - x*| over samples and dimensions, in data units; the paper's scale is not known",
        "Δs": "root mean square over samples and dimensions; the paper's N for it is not known, here path_steps",
        "ground truth": "exact flow, or DOPRI5 at rtol/10, of the same x_T",
        "beyond the interval": "the 95 % bootstrap interval, over the samples, of the ratio to Euler excludes 1",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "steps": [5, 10, 20], "path_points": 2, "path_samples": 16}
THOROUGH: Config = {
    "samples": 1024,
    "steps": [5, 7, 10, 14, 20, 30, 50, 70, 100, 140, 200, 300, 500, 1000],
    "path_points": 24,
    "path_samples": 256,
}
SOLVERS = {"euler": "Euler", "ei_score": "frozen score", "ddim": "frozen ε (DDIM)"}
FROZEN = {"score": "ei_score", "eps": "ddim"}
MEASURES = ("mean", "rms")


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, solver, steps: Δ_p, RMS, both over Euler's), "path" (Δ_s) and "reference"."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"], 1):
        study = studies.study(name, config)
        exact, estimate = study.reference(config["t_end"])
        rows.append({"part": "reference", "model": name, "rms": estimate})
        for steps in config["steps"]:
            ts = da.grid(study.process, steps, config["grid"], config["t_start"], config["t_end"])
            gaps = {solver: _numpy(study.solve(solver, ts) - exact) for solver in SOLVERS}
            rows += [{"part": "error", "model": name, "steps": steps, **row} for row in compare(gaps, config["seed"])]
        progress((done - 0.4) / len(config["models"]))
        rows += [{"part": "path", "model": name, **row} for row in _path_rows(name, config)]
        progress(done / len(config["models"]))
    return pd.DataFrame(rows)


def _numpy(x: Any) -> Array:
    return np.asarray(x.detach().cpu())


def compare(gaps: dict[str, Array], seed: int) -> list[dict[str, Any]]:
    """Per solver mean |gap|, root mean square gap, and both over Euler's with 95 % intervals; gaps (n, d), paired."""
    sizes = {solver: (np.abs(gap).mean(axis=1), (gap**2).mean(axis=1)) for solver, gap in gaps.items()}
    rows = []
    for solver, (absolute, square) in sizes.items():
        row = {"solver": solver, "mean": float(absolute.mean()), "rms": float(np.sqrt(square.mean()))}
        if solver != "euler":
            mine, euler = (absolute, square), sizes["euler"]
            for measure, power, a, b in zip(MEASURES, (2, 1), mine, euler, strict=True):
                low, high = bootstrap_ratio(a, b, seed)  # of the root of the ratio of means, hence the power
                row[f"{measure}_ratio"] = float(a.mean() / b.mean()) ** (power / 2)
                row |= {f"{measure}_low": low**power, f"{measure}_high": high**power}
        rows.append(row)
    return rows


def _path_rows(name: str, config: Config) -> list[dict[str, Any]]:
    """Δ_s of a frozen score and of a frozen ε along the exact solution, both in units of the score."""
    study = studies.study(name, {**config, "samples": config["path_samples"]})
    process = study.process
    ts = da.grid(process, config["path_steps"], config["grid"], config["t_start"], config["t_end"])
    times = step_points(ts, config["path_points"])
    state, _ = study.path(times)
    eps = {t: _numpy(study.model(state(t), t)) for t in times}
    rows: list[dict[str, Any]] = []
    for frozen in FROZEN:

        def model(x: Array, t: float, frozen: str = frozen) -> Array:
            return eps[t] * float(process.convert("eps", frozen, t)[1])

        visited, errors = da.extrapolation_error(
            model,
            process,
            lambda t: _numpy(state(t)),
            ts,
            0,
            prediction=frozen,
            unit="score",
            points=config["path_points"],
        )
        for step, (row, values) in enumerate(zip(visited, errors, strict=True)):
            rows += [{"frozen": frozen, "step": step, "t": t, "delta": d} for t, d in zip(row, values, strict=True)]
    return rows


def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: at how many step counts each claim holds, (by value, beyond the interval) per measure; ratios, Δs."""
    found = {}
    for name in config["models"]:
        rows = frame[(frame.part == "error") & (frame.model == name)]
        score, eps = rows[rows.solver == "ei_score"], rows[rows.solver == "ddim"]
        largest = frame[(frame.part == "path") & (frame.model == name)].groupby("frozen").delta.max()
        found[name] = {
            "counts": len(score),
            "worse": {m: (int((score[f"{m}_ratio"] > 1).sum()), int((score[f"{m}_low"] > 1).sum())) for m in MEASURES},
            "better": {m: (int((eps[f"{m}_ratio"] < 1).sum()), int((eps[f"{m}_high"] < 1).sum())) for m in MEASURES},
            "ratios": {
                claim: (float(rows.mean_ratio.min()), float(rows.mean_ratio.max()))
                for claim, rows in (("worse", score), ("better", eps))
            },
            "delta": float(largest["score"] / largest["eps"]),
        }
    return found


def holds(found: dict[str, dict[str, Any]], claim: str, measure: str = "mean") -> list[str]:
    """The models on which a claim holds at every step count, by mean pixel difference unless by another measure."""
    return [name for name, f in found.items() if f[claim][measure][0] == f["counts"]]


def _count(found: dict[str, Any], claim: str) -> str:
    return "{}/{} ({}/{})".format(*found[claim]["mean"], *found[claim]["rms"])


def verdict(frame: Frame, config: Config) -> str:
    """How the errors compare with Euler's for each of the paper's two claims, and on which models it always holds."""
    found, steps, text = findings(frame, config), config["steps"], style.as_text

    def times(claim: str) -> str:
        low, high = zip(*(f["ratios"][claim] for f in found.values()), strict=True)
        return f"{text(min(low))} to {text(max(high))} times"

    return (
        f"With {min(steps)} to {max(steps)} steps ({config['grid']} grid) EI with a frozen score has {times('worse')} "
        f"Euler's mean pixel error, more at every N on {_listed(holds(found, 'worse'))}; with a frozen ε "
        f"{times('better')}, less at every N on {_claimed(found, 'better')}, by RMS on "
        f"{_listed(holds(found, 'better', 'rms'))}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Columns: the models. Above Δ_p against steps (a, c), below Δ_s on the exact solution (b, d)."""
    found = findings(frame, config)
    headline = (
        f"EI with a frozen score is worse than Euler at every N on {_claimed(found, 'worse')}; with a frozen ε "
        f"better than Euler at every N on {_claimed(found, 'better')}"
    )
    estimate = frame[frame.part == "reference"].rms.max()
    on_path = studies.how_many({**config, "samples": config["path_samples"]})
    note = (
        f"Δp = mean |x − x*| over samples and dimensions, from the same x_T; uniform t grid, {style.setting(config)}; "
        f"{studies.how_many(config)}; x* accurate to {style.as_text(estimate, 1)}. Δs = root mean square distance of "
        f"the frozen prediction from the true score while a step of N = {config['path_steps']} lasts, along the exact "
        f"solution, {on_path}. n/m (n/m): at n of {len(config['steps'])} N by mean, at m "
        "beyond its 95 % interval (the same by RMS)."
    )
    columns = len(found)
    fig = style.new_figure(max(1.2 + 3.9 * columns, 9.0), 8.2, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.75, right=1.25, extra_top=0.4)
    axes = fig.subplots(2, columns, sharey="row", squeeze=False, gridspec_kw={**margins, "wspace": 0.1, "hspace": 0.3})
    for column, name in enumerate(found):
        last = column == columns - 1
        _errors(axes[0, column], frame, config, name, found[name], last)
        _delta(axes[1, column], frame, name, found[name], last)
    axes[0, 0].set_ylabel("(a, c)  mean pixel difference Δp")
    axes[1, 0].set_ylabel("(b, d)  Δs (score units)")
    return fig


def _claimed(found: dict[str, Any], claim: str) -> str:
    """The models on which a claim holds at every N, with the number of N at which it does beyond the interval."""
    parts = []
    for name in holds(found, claim):
        sure, counts = found[name][claim]["mean"][1], found[name]["counts"]
        parts.append(name + ("" if sure == counts else f" ({sure} of {counts} beyond a 95 % interval)"))
    return _listed(parts)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no model"


def _errors(ax: Any, frame: Frame, config: Config, name: str, found: dict[str, Any], last: bool) -> None:
    rows = frame[(frame.part == "error") & (frame.model == name)]
    for solver, part in rows.groupby("solver", sort=False):
        ax.plot(part.steps, part["mean"], **{**style.look(solver), "linewidth": 2.0})
    ax.set(xscale="log", yscale="log", title=_title(name), xlabel="steps N = model calls (NFE)")
    style.plain_log_ticks(ax.xaxis, [n for n in (5, 10, 20, 50, 100, 200, 500, 1000) if n <= max(config["steps"])])
    claims = f"worse at {_count(found, 'worse')}", f"better at {_count(found, 'better')}"
    for y, text, solver in zip((0.115, 0.04), claims, ("ei_score", "ddim"), strict=True):
        ax.text(0.03, y, f"{SOLVERS[solver].split(' (')[0]} {text}", transform=ax.transAxes, fontsize=9,
                color=style.family(solver)[0])  # fmt: skip
    if last:
        ends = [
            (part.steps.iloc[-1], part["mean"].iloc[-1], SOLVERS[str(solver)], style.family(str(solver))[0])
            for solver, part in rows.groupby("solver", sort=False)
        ]
        style.end_labels(ax, ends, 9.5)


def _title(name: str) -> str:
    title = studies.title(name)
    return title[0].upper() + title[1:]


def _delta(ax: Any, frame: Frame, name: str, found: dict[str, Any], last: bool) -> None:
    rows = frame[(frame.part == "path") & (frame.model == name)]
    for frozen, part in rows.groupby("frozen", sort=False):
        colour, dots = style.family(FROZEN[str(frozen)])[0], ":" if frozen == "score" else "-"
        label = SOLVERS[FROZEN[str(frozen)]].split(" (")[0]
        for step, line in part.groupby("step"):
            ax.plot(line.t, line.delta, color=colour, linestyle=dots, linewidth=2.0, label=None if step else label)
    ax.set(yscale="log", xlim=(-0.02, 1.0), xlabel="time t (sampling runs to the left)")
    ax.set_title(f"largest Δs, score / ε: {style.as_text(found['delta'])}", fontsize=10)
    if last:
        ax.legend(loc="upper right", fontsize=9.5)
