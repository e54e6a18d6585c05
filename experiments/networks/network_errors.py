"""What is a trained image network off by? Against the ideal denoiser of its training images, and as a score."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at, span
from experiments.core.judging import with_band
from experiments.models import score_defects, studies
from experiments.models.image_data import read_images
from experiments.models.problems import bootstrap_ratio, by_time, extrapolated, noise, start_scale, step_points
from experiments.models.score_defects import Model
from experiments.models.toy_network import QUICK_TRAINING

NAME = "network_errors"
QUESTION = "How far is a trained network from the ideal denoiser of its training images, and from any score?"
DATA = "$DEIS_ANALYSIS_DATA"
CONFIG: Config = {
    "models": ["digits8", "digits8_flow", "mnist28", "network"], "kept": ["digits8", "digits8_flow", "mnist28"],
    "data_root": DATA, "levels": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 8.0, 20.0, 80.0],
    "samples": 512, "batch": 128, "steps": 10, "grid": "t2", "points": 2, "degrees": [0, 1, 2, 3],
    "path_samples": 32, "rtol": 1e-4, "derivative_levels": [0.05, 0.3, 2.0, 10.0], "derivative_samples": 3,
    "full_jacobian": 100, "jacobian_probes": 32, "divergence_probes": 4,
    "score": {"times": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95], "points": 200, "loops": 20, "radius": 1.0,
              "data_points": 40}, "seed": 0, "allow_pickle": False, "device": "cpu",
    "choices": {
        "levels": "σ/α, the same for all processes: there the ideal ε of one data set is one function",
        "data_root": f"folder of MNIST or CIFAR-10, or {DATA}; without it networks trained on them lack rows",
        "derivatives": "of the float64 network; above full_jacobian dimensions by random directions",
    },
}  # fmt: skip
QUICK: Config = {"models": ["digits8", "network"], "kept": [], "levels": [0.05, 0.4, 2.0], "samples": 64, "steps": 5,
                 "points": 1, "path_samples": 4, "rtol": 1e-3, "derivative_levels": [0.4], "derivative_samples": 1,
                 "score": {"times": [0.05, 0.3, 0.9], "points": 40, "loops": 4, "radius": 1.0, "data_points": 8,
                           **QUICK_TRAINING}}  # fmt: skip
THOROUGH: Config = {"kept": [], "samples": 10_000, "path_samples": 64, "rtol": 1e-6, "points": 6,
                    "divergence_probes": 16, "derivative_samples": 32,
                    "derivative_levels": CONFIG["levels"][:-1]}  # fmt: skip
COLUMNS = ["model", "part", "images", "rho", "t", "fit", "loss", "ideal_loss", "size", "fit_low", "fit_high", "ratio",
           "ratio_low", "ratio_high", "field", "estimate", "quantity", "degree", "step", "delta", "measure", "samples",
           "value", "low", "high"]  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "fitting" (images, rho), "path" (field, quantity, degree, t), "derivative" (measure, rho); of models
    of the study, whose data are no images, the last alone."""
    import torch

    def rows_of(name: str, progress: Progress) -> Rows:
        if name in studies.MODELS:
            given = {**studies.BASE, "seed": config["seed"], "device": config["device"], **config["score"]}
            return [{"part": "derivative", **row} for row in score_defects.rows_of(studies.study(name, given), given)]
        net = studies.image_network(name, config["device"], config["allow_pickle"])
        images = images_of(net, config)
        ideal = da.ideal_denoiser(images["train"], net.process) if images else None
        fitted = fitting_rows(eps_of(net), ideal, net.process, images, config)
        progress(0.2)
        changed, ends = path_rows(net, ideal, config)
        progress(0.4)
        exact, clean = net.to(dtype=torch.float64), images["train"] if images else ends
        return fitted + changed + score_defects.network_rows(eps_of(exact), net.process, clean, config)

    return by_model(NAME, config, rows_of, progress).reindex(columns=COLUMNS)


def images_of(net: Any, config: Config) -> dict[str, Any]:
    """(n, d) float32 images, ``train`` and ``held_out``, empty where they are not at hand; others are refused."""
    import torch

    about = (net.card or {}).get("data", {})
    root = os.path.expandvars(config["data_root"] or "").removeprefix(DATA)  # empty where the variable is not set
    if about.get("name") not in (("digits", "mnist", "cifar10") if root else ("digits",)):
        return {}
    images = read_images(about["name"], Path(root))
    if hashlib.sha256(np.ascontiguousarray(images.train).data).hexdigest() != about.get("sha256"):
        raise ValueError(f"data_root={config['data_root']!r}: not the images that {net.name!r} was trained on")
    parts = {"train": images.train, "held_out": images.held_out}
    return {name: torch.as_tensor(part, device=config["device"]).flatten(1) for name, part in parts.items()}


def eps_of(net: Any) -> Model:
    """ε of a network on flat states (n, d) of its own process, differentiable."""
    model = net.carried_to(net.process, "eps")
    return lambda x, t: model(x.reshape(-1, *net.shape), t).reshape(x.shape)


def fitting_rows(eps: Model, ideal: Any, process: Process, images: dict[str, Any], config: Config) -> Rows:
    """Mean squares of ε_θ − ε* ("fit"), ε_θ − ε ("loss"), ε* − ε and ε*, per level and images; the losses' ratio."""
    import torch

    def asked(model: Model, x: Any, t: float) -> Any:
        with torch.no_grad():
            return torch.cat([model(part, t) for part in x.split(config["batch"])])

    def ratio(name: str, a: Array, b: Array) -> dict[str, float]:
        return with_band(name, (float(a.mean() / b.mean()), *np.square(bootstrap_ratio(a, b, seed))))

    rows, seed = [], config["seed"]
    for part, clean in images.items():
        for key, t, x, drawn in score_defects.noised(clean, config["samples"], seed, process, config["levels"]):
            found, best = asked(eps, x, t), asked(ideal, x, t)
            gaps = {"fit": found - best, "loss": found - drawn, "ideal_loss": best - drawn, "size": best}
            squares = {name: np.asarray((gap**2).mean(dim=1).cpu()) for name, gap in gaps.items()}
            row = {"part": "fitting", "images": part, **key, **{name: v.mean() for name, v in squares.items()}}
            row |= ratio("fit", squares["fit"], np.ones(len(x)))
            if squares["ideal_loss"].min() > 0:
                row |= ratio("ratio", squares["loss"], squares["ideal_loss"])
            rows.append(row)
    return rows


def path_rows(net: Any, ideal: Model | None, config: Config) -> tuple[Rows, Any]:
    """(Δ_s and Δ_ε of each degree on the flow of the network and of the ideal denoiser, clean ends of the former)."""
    import torch

    process, rtol, ends, rows = net.process, config["rtol"], [], []
    ts = da.grid(process, config["steps"], config["grid"])
    z = noise(config["path_samples"], math.prod(net.shape), config["seed"])
    x_T = torch.as_tensor(start_scale(process, float(ts[0])) * z, device=config["device"])
    for field, model in {"network": eps_of(net), **({"ideal": ideal} if ideal else {})}.items():
        with torch.no_grad():
            times = step_points(ts, config["points"])
            path = da.reference_path(model, process, x_T, times, rtol, rtol, certify=False)
            eps = {t: np.asarray(model(path(t), t).cpu()) for t in path.times}
        ends.append(path.states[-1] / float(process.alpha(path.times[-1])))
        rows.append({"part": "reference", "field": field, "estimate": path.error_estimate})
        rows += [{**row, "field": field} for row in changes(eps, process, ts, config)]
    return rows, ends[0]


def changes(eps: dict[float, Array], process: Process, ts: Array, config: Config) -> Rows:
    """Root mean squares of extrapolated minus true ε by time, "s": of a frozen score."""
    score, rows = {t: -e / float(process.sigma(t)) for t, e in eps.items()}, []
    for quantity, known, degree in (("s", score, 0), *(("eps", eps, degree) for degree in config["degrees"])):
        found = extrapolated(known, process, ts, config["points"], degree=degree, unit="eps",
                             prediction="score" if quantity == "s" else "eps")  # fmt: skip
        rows += by_time(*found, quantity=quantity, degree=degree)
    return [{**row, "rho": float(process.rho(row["t"]))} for row in rows]


def defects(frame: Frame) -> list[str]:
    """How far the networks are from a score at most, by each measure."""
    told = {"asymmetry": "Jacobians are asymmetric by", "residual": "Fokker–Planck residuals are",
            "fitting": "errors of the score"}  # fmt: skip
    most = at(frame, part="derivative").groupby("measure").value.max()
    return [f"{words} up to {style.as_text(most[name])}" for name, words in told.items() if name in most]


def headline(frame: Frame) -> str:
    """At how many noise levels the networks beat the ideal denoiser on held-out images, as far as bands tell."""
    held = at(frame, part="fitting", images="held_out")
    if held.empty:
        return defects(frame)[0]
    better = f"{(held.ratio_high < 1).sum()} of {len(held)} noise levels"
    return f"On held-out images the networks beat the ideal denoiser of their training images at {better}"


def verdict(frame: Frame, config: Config) -> str:
    """The headline, at how many levels they are worse, what a high degree leaves of Δ_ε, how far from a score."""
    said, high = [headline(frame)], max(config["degrees"])
    held = at(frame, part="fitting", images="held_out")
    path = at(frame, part="path", field="network", quantity="eps")
    if len(held):
        said[0] += f", at {(held.ratio_low > 1).sum()} they are worse"
    if len(path):
        moved = np.sqrt((path.delta**2).groupby([path.model, path.degree]).mean()).unstack()
        said.append(f"degree {high} leaves {span(moved[high] / moved[0])} of a frozen ε's change")
    return "; ".join(dict.fromkeys([*said, *defects(frame)])) + "."


ROWS = {"fitting": "loss", "path": "change of ε", "derivative": "not a score by"}
LOOKS: dict[str, dict[str, Any]] = {  # what is drawn: its name in the key, if it has one, and its look
    "loss train": {"label": "network, train", "color": style.BLUE, "marker": "o"},
    "ideal_loss train": {"label": "ε*, train", "color": style.BLUE, "linestyle": ":"},
    "loss held_out": {"label": "network, held-out", "color": style.VERMILLION, "marker": "o"},
    "ideal_loss held_out": {"label": "ε*, held-out", "color": style.VERMILLION, "linestyle": ":"},
    "s 0 network": {"label": "frozen score", "color": style.GREY},
    "eps 0 network": {"label": "frozen ε", "color": style.BLACK},
    "eps 3 network": {"label": "ε of degree 3", "color": style.BLUE},
    **{f"{what} ideal": {"label": "_", "color": colour, "linestyle": ":"}
       for what, colour in (("s 0", style.GREY), ("eps 0", style.BLACK), ("eps 3", style.BLUE))},
    "asymmetry": {"label": "Jacobian asymmetry", "color": style.GREEN, "marker": "o"},
    "residual": {"label": "Fokker–Planck residual", "color": style.PURPLE, "marker": "o"},
    "fitting": {"label": "error of the score", "color": style.VERMILLION, "marker": "o"},
    "loop": {"label": "loop integral", "color": style.SKY, "marker": "o"},
}  # fmt: skip


def curves(frame: Frame) -> Frame:
    """What is drawn: the frame with a column ``line``, of `LOOKS`, and the numbers in ``value``."""
    fitted, path, scores = (at(frame, part=part) for part in ROWS)
    images, field = fitted.images.astype(str), path.field.astype(str)
    parts = [fitted.assign(line=f"{what} " + images, value=fitted[what]) for what in ("loss", "ideal_loss")]
    changed = path.quantity.astype(str) + path.degree.map(" {:.0f} ".format) + field
    drawn = pd.concat([*parts, path.assign(line=changed, value=path.delta), scores.assign(line=scores.measure)])
    return drawn[drawn.line.isin(list(LOOKS))]


def draw(frame: Frame, config: Config) -> Figure:
    """Columns: models. Rows: losses; change of ε along the flow; how far from a score. Noise levels below."""
    note = (
        f"Top: mean square of predicted minus drawn ε, of the network and of ε*, the ideal denoiser of its training "
        f"images; {config['samples']} images at most. Middle: root mean square of ε extrapolated over a step minus ε, "
        f"{config['steps']} steps, {config['grid']} grid, {config['path_samples']} flows of the network (solid) and "
        f"of ε* (dotted). Bottom, relative: ‖J − Jᵀ‖, the Fokker–Planck residual, at {config['derivative_samples']} "
        f"samples (bands: bootstrap); where the score is known its error and ∮ s·dl, at {config['score']['points']}."
    )
    fig, drawn, models = panels.sheet(headline(frame), note, 6.0), curves(frame), config["models"]
    images = [name for name in models if name not in studies.MODELS]
    columns = len(models) + (images == models)  # one is left for the keys
    for i, (part, ylabel) in enumerate(ROWS.items()):
        rows, last = at(drawn, part=part), part == "derivative"
        names = models if last else images
        if not names:
            continue
        axes = panels.lines(
            fig, rows, {name: panels.short(name) if i == 0 or name not in images else "" for name in names}, columns,
            x="rho", y="value", line="line", names=[name for name in LOOKS if (rows.line == name).any()],
            look=LOOKS.__getitem__, band=("low", "high") if last else None, ticks=(0.01, 1, 100), ylabel=ylabel,
            xlabel="noise level σ/α" if last else "", legend=False, begin=0.345 * i, end=0.345 * i + 0.31,
        )  # fmt: skip
        axes[0].set(xlim=(8e-4, 150), ylim=(None if last else 1e-4, None))
        for name, ax in zip(names, axes, strict=True):
            ax.tick_params(labelbottom=last)
            if not (rows.model == name).any():
                ax.text(0.5, 0.5, "training images\nnot at hand", ha="center", transform=ax.transAxes, color="#777777")
        taken = len(names) == columns  # then the key is above the last panel, in the column that is free there
        corner = 1 - 0.98 / columns, axes[0].get_position().y1 + 0.02 * taken
        fig.legend(*axes[0].get_legend_handles_labels(), fontsize=7.5, handlelength=1.6, bbox_to_anchor=corner,
                   loc="lower left" if taken else "upper left")  # fmt: skip
    return fig
