"""Does an exponential integrator help by itself? The paper's two surprises: frozen score worse than Euler, ε better."""

from __future__ import annotations

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

NAME = "fig3_discretization"
QUESTION = "Is an exponential integrator worse than Euler with a frozen score, and better with a frozen ε?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "gaussian", "digits", "network", "digits8", "digits8_flow", "mnist28"],
    "kept": ["digits8", "digits8_flow", "mnist28"],
    "grid": "t1",
    "steps": [5, 7, 10, 14, 20, 30, 50, 100, 200],
    "path_steps": 10,
    "path_points": 8,
    "path_samples": 32,
    "choices": {
        "source": "Zhang & Chen 2023, fig. 3, on CIFAR10; here on other models",
        "Δp": "mean of |x - x*| over samples and dimensions, in data units; the paper's scale is not known",
        "Δs": "root mean square over samples and dimensions; the paper's N for it is not known, here path_steps",
        "ground truth": "exact flow, or DOPRI5 at rtol/10, of the same x_T",
        "beyond the interval": "the 95 % bootstrap interval, over the samples, of the ratio to Euler excludes 1",
    },
}
QUICK: Config = {
    **studies.BASE_QUICK,
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
    "steps": [5, 10, 20],
    "path_points": 2,
    "path_samples": 16,
}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "kept": [],
    "samples": 1024,
    "steps": [5, 7, 10, 14, 20, 30, 50, 70, 100, 140, 200, 300, 500, 1000],
    "path_points": 24,
    "path_samples": 256,
}
SOLVERS = {"euler": "Euler", "ei_score": "frozen score", "ddim": "frozen ε (DDIM)"}
COLOURS = {"ei_score": style.VERMILLION, "ddim": style.BLACK}
COLUMNS = 4
FROZEN = {"score": "ei_score", "eps": "ddim"}
MEASURES = ("mean", "rms")


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "error" (model, solver, steps: Δ_p, RMS, both over Euler's), "path" (Δ_s) and "reference"."""

    def rows_of(name: str, progress: Progress) -> Rows:
        study = studies.study(name, config)
        exact, estimate = study.reference(config["t_end"])
        rows: Rows = [{"part": "reference", "rms": estimate}]
        for steps in config["steps"]:
            ts = da.grid(study.process, steps, config["grid"], config["t_start"], config["t_end"])
            gaps = {solver: _numpy(study.solve(solver, ts) - exact) for solver in SOLVERS}
            rows += [{"part": "error", "steps": steps, **row} for row in compare(gaps, config["seed"])]
        progress(0.6)
        return rows + [{"part": "path", **row} for row in _path_rows(name, config)]

    return by_model(NAME, config, rows_of, progress)


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
    """A panel per model: errors over Euler's against steps; last, how much further off a frozen score gets."""
    found = findings(frame, config)
    worse, better = (holds(found, claim) for claim in ("worse", "better"))
    headline = (
        f"A frozen score loses to Euler at every N on {len(worse)} of {len(found)} models, a frozen ε beats it at "
        f"every N on {style.in_words(better) or 'no model'}"
    )
    estimate = frame[frame.part == "reference"].rms.max()
    note = (
        "Mean pixel difference to the exact answer from the same noise, over Euler's, with its 95 % interval "
        f"(dashed: of root mean squares). Uniform t, {style.setting(config)}; {studies.how_many(config)}; reference "
        f"accurate to {style.as_text(estimate, 1)}. Last panel: largest distance from the true score while a step of "
        f"N = {config['path_steps']} lasts on {config['path_samples']} exact paths, of a frozen score over that "
        "of a frozen ε."
    )
    rows = -(-(len(found) + 1) // COLUMNS)
    fig = panels.sheet(headline, note, 0.75 + 1.75 * rows)
    names = [panels.short(name) for name in found]
    axes, (last,) = panels.small_multiples(fig, names, COLUMNS, more=1, extra_top=0.5)
    for ax, (name, f) in zip(axes, found.items(), strict=True):
        _ratios(ax, frame[(frame.part == "error") & (frame.model == name)], f)
    axes[0].set(yscale="log", ylim=(0.08, 6.0))
    style.plain_log_ticks(axes[0].yaxis, [0.3, 0.5, 1, 2, 4])
    panels.calls_axis(axes, [n for n in (5, 10, 20, 50, 200) if n <= max(config["steps"])])
    fig.supylabel("error / Euler's", fontsize=8.5, x=0.012)
    panels.key(fig, axes[0])
    _why(last, found)
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


def _ratios(ax: Any, rows: Frame, found: dict[str, Any]) -> None:
    ax.axhline(1.0, color="#333333", lw=0.9, zorder=0)
    for solver, claim, y in (("ei_score", "worse", 0.13), ("ddim", "better", 0.02)):
        part, colour = rows[rows.solver == solver], COLOURS[solver]
        panels.curve(ax, part.steps, part.mean_ratio, part.mean_low, part.mean_high, SOLVERS[solver], color=colour,
                     marker="o")  # fmt: skip
        ax.plot(part.steps, part.rms_ratio, color=colour, lw=0.9, ls="--")
        (count, _), (by_rms, _) = (found[claim][measure] for measure in MEASURES)
        text = f"{claim} at {count} of {found['counts']} (RMS {by_rms})"
        panels.words(ax, 0.97, y, text, colour, ha="right", va="bottom")


def _why(ax: Any, found: dict[str, dict[str, Any]]) -> None:
    deltas = [f["delta"] for f in found.values()]
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    for y, (value, f) in enumerate(zip(deltas, found.values(), strict=True)):
        wins = f["better"]["mean"][0] == f["counts"]
        ax.plot(value, y, "o", color=COLOURS["ddim"] if wins else style.GREY, markersize=5)
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, [0.1, 1, 10])
    ax.set_yticks([])
    for y, name in enumerate(found):
        ax.annotate(panels.short(name), (deltas[y], y), xytext=(-5 if deltas[y] > 1 else 5, 0), fontsize=panels.SMALL,
                    textcoords="offset points", va="center", ha="right" if deltas[y] > 1 else "left")  # fmt: skip
    ax.set_ylim(len(deltas) - 0.4, -0.6)
    ax.set_title("Δs, score / ε", fontsize=8.5, pad=3)
