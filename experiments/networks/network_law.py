"""Whose samples are nearest to the data in law? Fréchet distance, precision and recall in a classifier's features."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at
from experiments.core.judging import with_band
from experiments.models import studies
from experiments.models.features import Features, difference, floor, frechet, precision_recall
from experiments.models.image_data import read_images
from experiments.models.problems import start_scale, steps_for

NAME = "network_law"
QUESTION = "Which sampler's images are nearest to the data in law at 5, 10 and 20 model calls, beyond the bands?"
CONFIG: Config = {
    "models": ["digits8", "mnist28"], "kept": ["mnist28"], "solvers": ["ddim", "tab3", "unipc2_bh2_x0"], "seed": 0,
    "calls": [5, 10, 20], "samples": {"digits8": 256, "digits8_flow": 256, "mnist28": 128}, "samples_else": 128,
    "grid": "t2", "reference": {"solver": "rhork_4rk", "grid": "logrho", "calls": 40}, "features": {}, "batch": 64,
    "inception": None, "neighbours": 5, "floor_draws": 20, "allow_pickle": False, "device": "cpu",
    "choices": {
        "features": "of its own folder, or as named here (network: folder); inception: its weights, data, data_root",
        "real": "all kept training features for d^2; as many as samples, drawn at random, for precision and recall",
    },
}  # fmt: skip
QUICK: Config = {"models": ["digits8"], "kept": [], "solvers": ["ddim", "tab3"], "calls": [5, 10], "floor_draws": 5,
                 "samples": {"digits8": 128}, "reference": {**CONFIG["reference"], "calls": 20}}  # fmt: skip
THOROUGH: Config = {"models": [*CONFIG["samples"]], "kept": [], "reference": {**CONFIG["reference"], "calls": 100},
                    "solvers": [*CONFIG["solvers"], "rhoab2", "dpmpp_2m", "edm_heun"],
                    "samples": {"digits8": 800, "digits8_flow": 800, "mnist28": 5000}}  # fmt: skip
FLOW = "reference"  # the solver column of the network's own flow
SHOWN = {"frechet": ("Fréchet distance²", "low", "high"), "excess": ("above the flow's", "excess_low", "excess_high"),
         **{name: (name, name, name) for name in ("precision", "recall")}}  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, solver and number of calls, and one per model of the network's own flow (`FLOW`).

    ``frechet low high``: d² and its band; ``corrected``: without bias in n. ``behind…``: what it is above the least of
    the same calls, ``excess…`` above the flow's, with paired bands. ``floor_…``: of real images, `floor`.
    """
    frame = by_model(NAME, config, lambda name, report: _model(name, config, report), progress)
    return frame.drop(columns="found", errors="ignore")


def _model(name: str, config: Config, report: Progress) -> Rows:
    import torch

    net = studies.image_network(name, config["device"], config["allow_pickle"])
    process, features, k, seed = net.process, _features(name, config), config["neighbours"], config["seed"]
    n, metrics = config["samples"].get(name, config["samples_else"]), ("frechet", "precision", "recall")
    real = floor(features, n, k=k, draws=config["floor_draws"], seed=seed)
    common = {"n": n, "seed": seed, **{f"floor_{metric}": getattr(real, metric) for metric in metrics}}
    common |= {f"floor_{metric}_sd": sd for metric, sd in zip(metrics, real.sd, strict=True)}
    common |= {"floor_source": real.source, "features": features.name}
    drawn = features.train[np.random.default_rng(seed).choice(len(features.train), n, replace=False)]
    z = torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(seed))  # the same on all devices
    starts = (start_scale(process, process.sampling_range[0]) * z).split(config["batch"])
    by, cells = config["reference"], itertools.product(config["calls"], config["solvers"], [config["grid"]])
    asked = [(by["calls"], by["solver"], by["grid"]), *cells]
    rows: Rows = []
    for done, (calls, solver, kind) in enumerate(asked, 1):
        if steps := steps_for(solver, calls):
            table = da.build(solver, process, da.grid(process, steps, kind)).in_terms_of(process, net.prediction)
            with torch.no_grad():
                ends = [da.run(table, net.model, part.to(config["device"])).cpu() for part in starts]
            fake = features(torch.cat(ends))
            d2, (precision, recall) = frechet(features.train, fake), precision_recall(drawn, fake, k)
            rows.append({"solver": solver if rows else FLOW, "calls": calls, "nfe": table.nfe, "frechet": d2.value,
                         "low": d2.low, "high": d2.high, "corrected": d2.corrected, "precision": precision,
                         "recall": recall, "found": d2, **common})  # fmt: skip
        report(done / len(asked))
    own, *others = rows
    for row in others:
        best = min((one for one in others if one["calls"] == row["calls"]), key=lambda one: one["frechet"])
        for what, beside in (("behind", best), ("excess", own)):
            row |= with_band(what, difference(row["found"], beside["found"]))
    return rows


def _features(name: str, config: Config) -> Features:
    given = config["inception"]
    if given is None:
        return Features.load(config["features"].get(name, name))
    images = read_images(given["data"], Path(given["data_root"]) if given.get("data_root") else None)
    return Features.inception(images, Path(given["weights"]))


def at_calls(frame: Frame, model: str, calls: int) -> Frame:
    """The solvers at a number of calls on a model, nearest to the data first."""
    rows = at(frame[frame.solver != FLOW], model=model, calls=calls)
    return rows.sort_values("frechet", kind="stable").set_index("solver")


def tied(nearest: Frame) -> list[str]:
    """Those of `at_calls` after the first whose band of the distance behind it reaches 0."""
    return [str(name) for name in nearest.index[1:] if nearest.behind_low[name] <= 0]


def near_from(frame: Frame, model: str, config: Config) -> str:
    """From how many calls on the nearest sampler is not further from the data than the flow, in words."""
    counts = sorted(config["calls"])
    further = max((calls for calls in counts if at_calls(frame, model, calls).excess_low.iloc[0] > 0), default=0)
    later = [calls for calls in counts if calls > further]
    return f"from {later[0]} calls on" if later else f"only beyond {further} calls, if at all"


def headline(frame: Frame, config: Config) -> str:
    """From how many calls on samples of the last network are as near to the data as those of its flow."""
    name = frame.model.iloc[-1]
    near = f"as near to the data as the network's own flow {near_from(frame, name, config)}"
    return f"On {Path(name).name} the best sampler is {near}, as far as bands tell"


def verdict(frame: Frame, config: Config) -> str:
    """The headline, the same of the other networks; on each who is nearest at the fewest calls, and who is tied."""
    said, fewest, parts = headline(frame, config), min(config["calls"]), []
    for model in frame.model.unique():
        nearest, name = at_calls(frame, model, fewest), Path(model).name
        said += f"; on {name} {near_from(frame, model, config)}" if model != frame.model.iloc[-1] else ""
        distance, same = style.as_text(nearest.frechet.iloc[0]), ", ".join(tied(nearest)) or "none"
        parts.append(f"{nearest.index[0]} {distance} on {name} (tied: {same})")
    return f"{said}; least squared Fréchet distance at {fewest} calls: {', '.join(parts)}."


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: d², d² above the flow's, precision, recall, against calls."""
    rows, own = frame[frame.solver != FLOW], frame[frame.solver == FLOW].set_index("model")
    sizes, by = ", ".join(f"{Path(name).name} n = {n}" for name, n in own.n.items()), config["reference"]
    note = (
        f"Fréchet distance and {config['neighbours']}-nearest-neighbour precision and recall in a classifier's last "
        f"hidden layer, whose total variance is 1 on the training images. {sizes}; the same starts for all; "
        f"{config['grid']} grid. Bands: 95 %, jackknife, paired in the second column. Grey: n real images, mean ± 2 "
        f"sd. Dashed: the network's own flow, {by['calls']} calls of {by['solver']}."
    )
    fig = panels.sheet(headline(frame, config), note, 0.75 + 1.6 * len(own))
    drawn = [rows.assign(panel=rows.model + what, value=rows[what], least=rows[low], most=rows[high])
             for what, (_, low, high) in SHOWN.items()]  # fmt: skip
    axes = panels.lines(
        fig, pd.concat(drawn), {name + what: title for name in own.index for what, (title, *_) in SHOWN.items()},
        len(SHOWN), panel="panel", x="nfe", y="value", band=("least", "most"), ticks=config["calls"], legend=False,
        share_y=False, extra_top=0.5, wspace=0.36, hspace=0.3, left=0.75,
    )  # fmt: skip
    for ax, (name, what) in zip(axes, itertools.product(own.index, SHOWN), strict=True):
        flow = own.loc[name]
        ax.axhline(0.0 if what == "excess" else flow[what], color="#222222", lw=1.1, ls="--", label="own flow")
        if what != "excess":
            middle, reach = flow[f"floor_{what}"], 2 * flow[f"floor_{what}_sd"]
            ax.axhspan(middle - reach, min(middle + reach, 1.0), color="#e6e6e6", zorder=0, label="real images")
        if what == "frechet":
            ax.set(yscale="log", ylim=(0.4 * min(flow.frechet, flow.floor_frechet), None))
            ax.set_ylabel(Path(name).name, fontsize=8.5)
            style.plain_log_ticks(ax.yaxis, [m * 10.0**e for e in range(-5, 2) for m in (1, 2, 5)])
    panels.key(fig, axes[0])
    return fig
