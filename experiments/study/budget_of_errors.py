"""Where does the error of a sample come from? The budget, cause by cause, along paths and between laws."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at, span
from experiments.models import studies
from experiments.models.studies import Study

NAME = "budget_of_errors"
QUESTION = "Which cause makes the error of a sample: the model, the solver's parts, or the two ends?"
IMAGE_NETWORKS = False  # it needs to know more of a model than its ε
CONFIG: Config = {
    **studies.BASE, "models": ["mixture", "network"], "samples": 100, "rtol": 1e-5,
    "solvers": ["euler", "ddim", "tab3"], "law_of": "tab3", "nfe": [5, 10, 20], "grid": "t2", "levels": 1000,
    "choices": {"precision": "float32 in the model: what exact models get and answer, of the network its weights too"},
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["mixture"], "solvers": ["ddim", "tab3"], "nfe": [5, 10]}
THOROUGH: Config = {"models": ["mixture", "gaussian", "digits", "network"], "samples": 2000, "rtol": 1e-8}
COLOURS = {
    "prior mismatch": style.PURPLE, "truncation": style.GREEN, "fitting": style.VERMILLION, "linear part": style.GREY,
    "extrapolation": style.BLUE, "accumulation": style.SKY, "start-up": style.ORANGE, "time rounding": "#7F3C8D",
    "precision": "#9A8B00", "total": style.BLACK,
}  # fmt: skip
LAWS = {"sampler_data": ("sampler – data", style.BLACK), "sampler_flow": ("sampler – its flow", style.BLUE),
        "flow_data": ("its flow – data", style.VERMILLION)}  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "term" (RMS and share of the squared error of each cause) and "law" (W₂ with band, per pair)."""
    rows: list[dict[str, Any]] = []
    problems = {name: studies.study(name, config) for name in config["models"]}
    cells = list(itertools.product(problems, config["solvers"], config["nfe"]))
    for done, (name, solver, nfe) in enumerate(cells, 1):
        budget, key = error_budget(problems[name], solver, nfe, config), {"model": name, "solver": solver, "nfe": nfe}
        shares = {**budget.shares(), "total": 1.0}
        rows += [{"part": "term", **key, "what": what, "value": value, "share": shares[what], "flow": budget.flow_error}
                 for what, value in budget.norms().items()]  # fmt: skip
        if solver == config["law_of"]:
            laws = da.law_budget(budget, problems[name].data[: 4 * config["samples"]], seed=config["seed"])
            apart = float(np.sqrt(np.sum((budget.result - budget.exact_flow) ** 2) / len(budget.result)))
            bands = {pair: (w.value, w.low, w.high) for pair in LAWS for w in [getattr(laws, pair)]}
            rows += [{"part": "law", **key, "what": what, "value": value, "low": low, "high": high}
                     for what, (value, low, high) in {**bands, "paths": (apart,) * 3}.items()]  # fmt: skip
        progress(done / len(cells))
    return pd.DataFrame(rows)


def error_budget(problem: Study, solver: str, nfe: int, config: Config) -> da.ErrorBudget:
    """The budget with the model in float32; prior and truncation where the truth has a closed form.

    A network gets float32 weights too: it computes in their dtype and answers in that of x, so that float32 states
    alone would be rounded, not summed.
    """
    import torch

    levels, end, closed, net = config["levels"], config["t_end"], problem.exact is not None, problem.model
    low = copy.deepcopy(net).float() if problem.trained else net  # type: ignore[attr-defined]
    return da.error_budget(
        (lambda x, t: (low if x.dtype == torch.float32 else net)(x, t)) if problem.trained else None,
        problem.exact if closed else net,
        solver, nfe, end, process=problem.process, x_T=problem.x_T, kind=config["grid"], t_start=config["t_start"],
        t_data=problem.process.t_min if closed else None, prior_std=1.0 if closed else None,
        told=lambda t: max(end, round(t * levels) / levels), model_dtype=torch.float32, rtol=config["rtol"],
    )  # fmt: skip


def largest(frame: Frame) -> Frame:
    """Per model, solver and calls the largest ``cause``, and its ``part``: root mean square over that of the total."""
    terms = at(frame, part="term").pivot(index=["model", "solver", "nfe"], columns="what", values="value")
    causes = terms.drop(columns="total")
    return pd.DataFrame({"cause": causes.idxmax(axis=1), "part": causes.max(axis=1) / terms.total})


def laws(frame: Frame) -> tuple[Any, Any]:
    """Per case: distance of the paths over that of the laws of sampler and exact flow; slack of the triangle."""
    table = at(frame, part="law").pivot(index=["model", "nfe"], columns="what", values="value")
    slack = (table.sampler_flow + table.flow_data - table.sampler_data) / table.sampler_data
    return table.paths / table.sampler_flow, slack


def headline(frame: Frame, config: Config) -> str:
    """The largest cause of one solver at the most calls on the first model."""
    solver, most, name = config["law_of"], max(config["nfe"]), config["models"][0]
    found = largest(frame).loc[(name, solver, most)]
    return (
        f"With {solver} at {most} calls on the {studies.title(name)} {found.cause} is the largest cause of error, "
        f"{found.part:.2f} of the total"
    )


def verdict(frame: Frame, config: Config) -> str:
    """The headline, the same of other models and at the fewest calls, and the triangle of laws."""
    found, solver, (least, most) = largest(frame), config["law_of"], (min(config["nfe"]), max(config["nfe"]))
    others = [f"on the {panels.short(name)} {found.cause[name, solver, most]}" for name in config["models"][1:]]
    early = style.in_words(list(dict.fromkeys(found.cause[name, solver, least] for name in config["models"])))
    ratio, slack = laws(frame)
    return (
        f"{', '.join([headline(frame, config), *others])}; at {least} calls {early}; the triangle of laws holds in "
        f"{(slack >= -1e-9).sum()} of {len(slack)}, paths being {span(ratio, 3)} times as far apart as laws."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model and solver: each cause's part at each number of calls; last, the triangle of laws."""
    note = (
        f"Root mean square of each cause's part; the parts add up as vectors; the paler the fewer calls, "
        f"{style.in_words([str(n) for n in config['nfe']])}. {style.setting(config)}, {config['grid']} grid, "
        f"{config['samples']} samples; prior N(0, 1); truncation to t = 0; times rounded to {config['levels']} levels; "
        "precision: float32. Lowest: 2-Wasserstein distances, 95 % bands; two samples of one law are not at 0."
    )
    terms = at(frame, part="term").query("value > 0")
    models, solvers = config["models"], config["solvers"]
    causes = [what for what in COLOURS if what in set(terms.what)]
    rows, between, lowest = (0.155 * len(causes) + 0.3) * len(models), 0.8, 1.85
    height = rows + between + lowest
    fig, cases = panels.sheet(headline(frame, config), note, height), list(itertools.product(models, solvers))
    axes, _ = panels.small_multiples(
        fig, [f"{solver}, {panels.short(name)}" for name, solver in cases], len(solvers), left=1.05, right=0.18,
        end=(rows - 0.1) / height, hspace=0.22, wspace=0.06,
    )  # fmt: skip
    for ax, (name, solver) in zip(axes, cases, strict=True):
        part = at(terms, model=name, solver=solver)
        late = part.nfe.map(config["nfe"].index) / max(len(config["nfe"]) - 1, 1)
        colours = part.what.map(COLOURS)
        faces = [style.tinted(colour, 0.75 * (1 - share)) for colour, share in zip(colours, late, strict=True)]
        ax.scatter(part.value, part.what.map(causes.index), s=20, c=faces, edgecolors=colours, linewidths=0.9)
        ax.set_yticks(range(len(causes)), causes)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    least, most = terms.value.min(), terms.value.max()
    axes[0].set(xscale="log", xlim=(max(0.4 * least, 1e-8 * most), 1.6 * most), ylim=(len(causes) - 0.4, -0.6))
    axes[-(len(solvers) + 1) // 2].set_xlabel("root mean square of the cause's part", fontsize=8.5, labelpad=2)
    drawn = at(frame, part="law", what=list(LAWS)).assign(low=lambda rows: rows.low.clip(lower=0.2 * rows.value))
    panels.lines(
        fig, drawn, {name: f"laws, {config['law_of']}, {panels.short(name)}" for name in models}, max(len(models), 2),
        x="nfe", y="value", line="what", look=lambda pair: {"color": LAWS[pair][1], "marker": "o"},
        label=lambda pair: LAWS[pair][0], band=("low", "high"), ylabel="W₂", begin=(rows + between) / height,
    )  # fmt: skip
    return fig
