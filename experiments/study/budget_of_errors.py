"""Where does the error of a sample come from? The budget, cause by cause, along paths and between laws."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import style
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
    """Rows: models. Columns: the causes of each solver against calls; last, the triangle of laws."""
    count, found = len(config["models"]), findings(frame, config)
    most, chosen = max(config["nfe"]), config["law_of"]
    causes = " and ".join(f"{found[(m, chosen)][most][0]} on the {studies.title(m)}" for m in config["models"])
    headline = f"With {chosen} at {most} calls the largest cause of error is {causes}"
    note = (
        f"Root mean square of each cause's part of the error; the parts add up to the error as vectors. "
        f"{style.setting(config)}, {config['grid']} grid, {config['samples']} samples; prior N(0, 1); truncation to "
        f"t = 0; times rounded to {config['levels']} levels; precision: models in float32, the network with its "
        "weights; none is guided, hence no guidance term. Right: 2-Wasserstein distances, with 95 % bands over samples "
        "(empirical laws: two samples of one law are not at 0)."
    )
    fig = style.new_figure(13.5, 1.7 + 3.5 * count, headline, note)
    margins = style.body(fig, bottom=0.55, left=0.95, right=1.35, extra_top=0.4)
    columns = len(config["solvers"]) + 1
    axes = fig.subplots(count, columns, squeeze=False, gridspec_kw={**margins, "wspace": 0.72, "hspace": 0.3})
    terms = frame[frame.part == "term"]
    largest = float(terms.value.max())
    span = max(0.4 * float(terms.value[terms.value > 0].min()), 1e-8 * largest), 1.6 * largest
    for row, name in zip(axes, config["models"], strict=True):
        for ax, solver in zip(row, config["solvers"], strict=False):
            ax.set(title=solver, xscale="log", yscale="log", ylim=span)
            _causes(ax, terms[(terms.model == name) & (terms.solver == solver)], config)
        _triangle(row[-1], frame[(frame.part == "law") & (frame.model == name)], config)
        row[0].set_ylabel(f"{studies.title(name)}\nRMS of the cause's part")
    for ax in axes[-1]:
        ax.set_xlabel("model calls (NFE)")
    return fig


def _causes(ax: Any, rows: Frame, config: Config) -> None:
    ends = []
    for what, colour in {**TERMS, "total": style.BLACK}.items():
        part = rows[(rows.what == what) & (rows.value > ax.get_ylim()[0])]
        if len(part):
            ax.plot(part.nfe, part.value, "o-", color=colour, linewidth=3.0 if what == "total" else 1.6, markersize=4)
            ends.append((float(part.nfe.iloc[-1]), float(part.value.iloc[-1]), what, colour))
    style.plain_log_ticks(ax.xaxis, config["nfe"])
    style.end_labels(ax, ends, 8)


def _triangle(ax: Any, rows: Frame, config: Config) -> None:
    ends = []
    for what, (printed, colour) in PAIRS.items():
        part = rows[rows.what == what]
        ax.plot(part.nfe, part.value, "o-", color=colour, linewidth=2.0, markersize=4)
        ax.fill_between(
            part.nfe, part.low.clip(lower=part.value.min() * 0.2), part.high, color=colour, alpha=0.15, lw=0
        )
        ends.append((float(part.nfe.iloc[-1]), float(part.value.iloc[-1]), printed, colour))
    table = rows.pivot(index="nfe", columns="what", values="value")
    bound = table.sampler_flow + table.flow_data
    ax.plot(bound.index, bound, ":", color=style.GREY, linewidth=2.0)
    ends.append((float(bound.index[-1]), float(bound.iloc[-1]), "sum of the two", style.GREY))
    ax.set(xscale="log", yscale="log", title=f"W₂ between laws, {config['law_of']}")
    style.plain_log_ticks(ax.xaxis, config["nfe"])
    style.end_labels(ax, ends, 8)
