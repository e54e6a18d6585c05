"""Where does the error of a sample come from? The budget, cause by cause, along paths and between laws."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models import studies
from experiments.models.studies import Study

NAME = "budget_of_errors"
QUESTION = "Which cause makes the error of a sample: the model, the solver's parts, or the two ends?"
IMAGE_NETWORKS = False  # it needs to know more of a model than its ε
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "network"],
    "samples": 100,
    "rtol": 1e-5,
    "solvers": ["euler", "ddim", "tab3"],
    "law_of": "tab3",
    "nfe": [5, 10, 20],
    "grid": "t2",
    "levels": 1000,
    "choices": {
        "precision": "float32 in the model: what exact models get and answer, of the network its weights too",
        "guidance": "no guided model is among them, so that this term is not drawn; see the experiment guidance",
    },
}
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "solvers": ["ddim", "tab3"], "nfe": [5, 10]}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 2000,
    "rtol": 1e-8,
    "nfe": [5, 7, 10, 14, 20, 40],
}
TERMS = {  # printed name and colour
    "prior mismatch": style.PURPLE,
    "truncation": style.GREEN,
    "fitting": style.VERMILLION,
    "linear part": style.GREY,
    "extrapolation": style.BLUE,
    "accumulation": style.SKY,
    "start-up": style.ORANGE,
    "time rounding": "#7F3C8D",
    "precision": "#9A8B00",
}
PAIRS = {
    "sampler_data": ("sampler – data", style.BLACK),
    "sampler_flow": ("sampler – its flow", style.BLUE),
    "flow_data": ("its flow – data", style.VERMILLION),
}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "term" (RMS and share of the squared error of each cause) and "law" (W₂ with band, per pair)."""
    import torch

    rows: list[dict[str, Any]] = []
    cells = [(m, s, n) for m in config["models"] for s in config["solvers"] for n in config["nfe"]]
    chosen = {name: studies.study(name, config) for name in config["models"]}
    for done, (name, solver, nfe) in enumerate(cells):
        problem = chosen[name]
        budget = _budget(problem, solver, nfe, config, torch.float32)
        key = {"model": name, "solver": solver, "nfe": nfe}
        shares, norms = budget.shares(), budget.norms()
        rows += [
            {
                "part": "term",
                **key,
                "what": t,
                "value": norms[t],
                "share": shares.get(t, 1.0),
                "flow": budget.flow_error,
            }
            for t in norms
        ]
        if solver == config["law_of"]:
            laws = da.law_budget(budget, problem.data[: 4 * config["samples"]], seed=config["seed"])
            for pair in PAIRS:
                d = getattr(laws, pair)
                rows.append({"part": "law", **key, "what": pair, "value": d.value, "low": d.low, "high": d.high})
            bound = float(np.sqrt(np.sum((budget.result - budget.exact_flow) ** 2) / len(budget.result)))
            rows.append({"part": "law", **key, "what": "paths", "value": bound, "low": bound, "high": bound})
        progress((done + 1) / len(cells))
    return pd.DataFrame(rows)


def _budget(problem: Study, solver: str, nfe: int, config: Config, dtype: Any) -> da.ErrorBudget:
    levels, closed = config["levels"], problem.exact is not None

    def told(t: float) -> float:
        return max(config["t_end"], round(t * levels) / levels)

    return da.error_budget(
        _either_precision(problem.model) if problem.trained else None,
        problem.model if problem.exact is None else problem.exact,
        solver,
        nfe,
        config["t_end"],
        process=problem.process,
        x_T=problem.x_T,
        kind=config["grid"],
        t_start=config["t_start"],
        t_data=problem.process.t_min if closed else None,
        prior_std=1.0 if closed else None,
        told=told,
        model_dtype=dtype,
        rtol=config["rtol"],
    )


def _either_precision(net: Any) -> Any:
    """The network on float64 states, and a copy of it with float32 weights on float32 states.

    It computes in the dtype of its weights and answers in that of x: cast states alone would be rounded, not summed.
    """
    import torch

    low = copy.deepcopy(net).float()
    return lambda x, t: (low if x.dtype == torch.float32 else net)(x, t)


def findings(frame: Frame, config: Config) -> dict[tuple[str, str], dict[int, tuple[str, float]]]:
    """(model, solver) → calls → the largest cause, and its root mean square over that of the total."""
    found: dict[tuple[str, str], dict[int, tuple[str, float]]] = {}
    for (name, solver, nfe), rows in frame[frame.part == "term"].groupby(["model", "solver", "nfe"], sort=False):
        values = rows.set_index("what").value
        causes = values.drop("total")
        found.setdefault((name, solver), {})[int(nfe)] = (str(causes.idxmax()), float(causes.max() / values["total"]))
    return found


def verdict(frame: Frame, config: Config) -> str:
    """The largest cause of each model and solver from the fewest to the most calls, and the triangle of laws."""
    found, parts = findings(frame, config), []
    for name in config["models"]:
        told = []
        for solver in config["solvers"]:
            by_calls = found[(name, solver)]
            causes = dict.fromkeys((by_calls[min(by_calls)][0], by_calls[max(by_calls)][0]))
            told.append(f"{' then '.join(causes)} ({solver})")
        parts.append(f"on the {name} {', '.join(told)}")
    ratio, slack = laws(frame)
    return (
        f"From {min(config['nfe'])} to {max(config['nfe'])} calls the largest cause is {'; '.join(parts)}; the "
        f"triangle of laws holds in {int((slack >= -1e-9).sum())} of {len(slack)}, {config['law_of']}'s paths "
        f"being {ratio.min():.2f} to {ratio.max():.2f} times as far from the exact flow as its law."
    )


def laws(frame: Frame) -> tuple[Any, Any]:
    """Per case: distance of the paths over that of the laws of sampler and exact flow; slack of the triangle."""
    table = frame[frame.part == "law"].pivot_table(index=["model", "nfe"], columns="what", values="value")
    slack = (table.sampler_flow + table.flow_data - table.sampler_data) / table.sampler_data
    return table.paths / table.sampler_flow, slack


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model and solver: each cause's part at each number of calls; last, the triangle of laws."""
    found = findings(frame, config)
    most, chosen, name = max(config["nfe"]), config["law_of"], config["models"][0]
    cause, share = found[(name, chosen)][most]
    headline = (
        f"With {chosen} at {most} calls on the {studies.title(name)} {cause} is the largest cause of error, "
        f"{share:.2f} of the total"
    )
    note = (
        f"Root mean square of each cause's part of the error; the parts add up to the error as vectors; the paler the "
        f"fewer calls, {style.in_words([str(n) for n in config['nfe']])}. {style.setting(config)}, {config['grid']} "
        f"grid, {config['samples']} samples; prior N(0, 1); truncation to t = 0; times rounded to {config['levels']} "
        "levels; precision: models in float32, the network with its weights; none is guided, hence no guidance term. "
        "Lowest: 2-Wasserstein distances, with 95 % bands over samples (empirical laws: two samples of one law are not "
        "at 0)."
    )
    terms, names = frame[frame.part == "term"], [*TERMS, "total"]
    causes = [what for what in names if (terms[terms.what == what].value > 0).any()]
    rows, lowest, between = (0.155 * len(causes) + 0.3) * len(config["models"]), 1.9, 0.75
    height = rows + between + lowest
    fig = panels.sheet(headline, note, height)
    titles = [f"{solver}, {panels.short(m)}" for m in config["models"] for solver in config["solvers"]]
    axes, _ = panels.small_multiples(
        fig, titles, len(config["solvers"]), left=1.05, right=0.18, end=(rows - 0.1) / height, hspace=0.22, wspace=0.06
    )
    cases = [(m, solver) for m in config["models"] for solver in config["solvers"]]
    for ax, (m, solver) in zip(axes, cases, strict=True):
        _causes(ax, terms[(terms.model == m) & (terms.solver == solver)], causes, config)
    largest = float(terms.value.max())
    least = max(0.4 * float(terms.value[terms.value > 0].min()), 1e-8 * largest)
    axes[0].set(xscale="log", xlim=(least, 1.6 * largest), ylim=(len(causes) - 0.4, -0.6))
    axes[-2].set_xlabel("root mean square of the cause's part", fontsize=8.5, labelpad=2)
    below, _ = panels.small_multiples(
        fig, [f"laws, {chosen}, {panels.short(m)}" for m in config["models"]], max(len(config["models"]), 2),
        begin=(rows + between) / height, share_y=True, bottom=0.42,
    )  # fmt: skip
    for ax, m in zip(below, config["models"], strict=True):
        _triangle(ax, frame[(frame.part == "law") & (frame.model == m)])
    panels.calls_axis(below, config["nfe"])
    below[0].set_ylabel("W₂", fontsize=8.5)
    place = below[0].get_position().y1 + 0.17 / fig.get_size_inches()[1]
    fig.legend(*below[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=7.5, handlelength=2.0,
               bbox_to_anchor=(0.5, place))  # fmt: skip
    return fig


def _causes(ax: Any, rows: Frame, causes: list[str], config: Config) -> None:
    for y, what in enumerate(causes):
        part, colour = rows[rows.what == what].sort_values("nfe"), {**TERMS, "total": style.BLACK}[what]
        part = part[part.value > 0]
        ax.plot(part.value, [y] * len(part), color=colour, lw=0.8, alpha=0.6)
        for n, value in zip(part.nfe, part.value, strict=True):
            pale = 0.75 * (1 - config["nfe"].index(n) / max(len(config["nfe"]) - 1, 1))
            ax.plot(value, y, "o", color=colour, markerfacecolor=style.tinted(colour, pale), markersize=4.5)
    ax.set_yticks(range(len(causes)), causes)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _triangle(ax: Any, rows: Frame) -> None:
    for what, (printed, colour) in PAIRS.items():
        part = rows[rows.what == what]
        low = part.low.clip(lower=part.value.min() * 0.2)
        panels.curve(ax, part.nfe, part.value, low, part.high, label=printed, color=colour, marker="o")
    table = rows.pivot(index="nfe", columns="what", values="value")
    bound = table.sampler_flow + table.flow_data
    ax.plot(bound.index, bound, ":", color=style.GREY, linewidth=2.0, label="sum of the two")
    ax.set_yscale("log")
