"""What is a trained image network off by? Against the ideal denoiser of its training images, and as a score."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.models import score_defects, studies
from experiments.models.image_data import ImageSet, read_images
from experiments.models.problems import bootstrap_ratio, noise, start_scale, step_points
from experiments.models.toy_network import QUICK_TRAINING

if TYPE_CHECKING:
    from deis_analysis.networks import Network

NAME = "network_errors"
QUESTION = "How far is a trained network from the ideal denoiser of its training images, and from any score?"
DATA = "DEIS_ANALYSIS_DATA"
CONFIG: Config = {
    "models": ["digits8", "digits8_flow", "mnist28", "network"],
    "kept": ["mnist28"],
    "data_root": f"${DATA}",
    "levels": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 8.0, 20.0, 80.0],
    "samples": 512,
    "batch": 128,
    "steps": 10,
    "grid": "t2",
    "points": 2,
    "degrees": [0, 1, 2, 3],
    "path_samples": 16,
    "rtol": 1e-4,
    "derivative_levels": [0.05, 0.3, 2.0, 10.0],
    "derivative_samples": 3,
    "full_jacobian": 100,
    "jacobian_probes": 32,
    "divergence_probes": 4,
    "score": {
        "times": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95],
        "points": 200,
        "loops": 20,
        "radius": 1.0,
        "data_points": 40,
    },
    "seed": 0,
    "allow_pickle": False,
    "device": "cpu",
    "choices": {
        "levels": "σ/α, the same for all processes: there the ideal ε of one data set is one function",
        "data_root": f"folder of MNIST or CIFAR-10, or ${DATA}; without it networks trained on them lack rows",
        "fitting": "float32 network, x_t = αx₀ + σε with x₀ a training or a held-out image",
        "path": "flow of the float32 network, and of the ideal denoiser, by DOPRI5 at rtol, not certified",
        "derivatives": "float64 network at noised training images, or its own samples where the former are missing",
        "derivatives in x": "exact up to full_jacobian dimensions; above, the Jacobian by jacobian_probes random "
        "directions, the residual squared as the product of two estimates by divergence_probes directions each",
        "score": "of models whose data are known otherwise, as the 2-D network: samples of p_t, circles of radius σ_t "
        "times radius around some; data_points: samples for a model without closed form",
        "intervals": "bootstrap over the samples, 2.5 to 97.5 %; of so few derivative samples it is too narrow",
    },
}
QUICK: Config = {"models": ["digits8", "network"], "kept": [], "levels": [0.05, 0.4, 2.0], "samples": 64,
                 "steps": 5, "points": 1, "path_samples": 4, "rtol": 1e-3, "derivative_levels": [0.4],
                 "derivative_samples": 1,
                 "score": {"times": [0.05, 0.3, 0.9], "points": 40, "loops": 4, "radius": 1.0, "data_points": 8,
                           **QUICK_TRAINING}}  # fmt: skip
THOROUGH: Config = {"kept": [], "samples": 10_000, "path_samples": 64, "rtol": 1e-6, "points": 6,
                    "derivative_samples": 32,
                    "derivative_levels": [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 8.0, 20.0],
                    "divergence_probes": 16}  # fmt: skip
PARTS = {"train": "training images", "held_out": "held-out images"}
MEASURES = {  # of part "derivative": colour and printed name; the last two of models of the study only
    "asymmetry": (style.GREEN, "Jacobian asymmetry"),
    "residual": (style.PURPLE, "Fokker–Planck residual"),
    "fitting": (style.VERMILLION, "error of the score"),
    "loop": (style.SKY, "loop integral"),
}
Model = Callable[[Any, float], Any]


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "fitting" (images, rho), "path" (field, quantity, degree, t), "derivative" (measure, rho); of models
    of the study, whose data are no images, the last alone."""
    import torch

    def rows_of(name: str, progress: Progress) -> Rows:
        if name in studies.MODELS:
            given = {**studies.BASE, "seed": config["seed"], "device": config["device"], **config["score"]}
            return [{"part": "derivative", **row} for row in score_defects.rows_of(studies.study(name, given), given)]
        net = studies.image_network(name, config["device"], config["allow_pickle"])
        images, ideal = training_images(net, config), None
        rows: Rows = []
        if images is not None:
            ideal = da.ideal_denoiser(_points(images.train, config), net.process)
            rows += fitting_rows(eps_of(net), ideal, net.process, images, config)
        progress(0.2)
        found, ends = path_rows(net, ideal, config)
        progress(0.4)
        clean = ends if images is None else _points(images.train, config)
        return rows + found + derivative_rows(net.to(dtype=torch.float64), clean, config)

    return by_model(NAME, config, rows_of, progress)


def training_images(net: Network, config: Config) -> ImageSet | None:
    """What the network was trained on, None where that is not at hand; ValueError for other images in its place."""
    about = (net.card or {}).get("data", {})
    root = os.path.expandvars(config["data_root"]) if config["data_root"] else None
    root = None if root == f"${DATA}" else root  # the variable is not set
    if about.get("name") not in ("digits", "mnist", "cifar10") or (about["name"] != "digits" and root is None):
        return None
    images = read_images(about["name"], None if root is None else Path(root))
    if hashlib.sha256(np.ascontiguousarray(images.train).data).hexdigest() != about.get("sha256"):
        raise ValueError(f"data_root={config['data_root']!r}: not the images that {net.name!r} was trained on")
    return images


def _points(images: Array, config: Config) -> Any:
    """(n, d) float32 tensor on the device."""
    import torch

    return torch.as_tensor(images.reshape(len(images), -1), device=config["device"])


def eps_of(net: Network) -> Model:
    """ε of a network on flat states (n, d) of its own process, differentiable."""
    model = net.carried_to(net.process, "eps")

    def eps(x: Any, t: float) -> Any:
        return model(x.reshape(-1, *net.shape), t).reshape(x.shape)

    return eps


def _noised(clean: Any, z: Array, process: Process, t: float) -> tuple[Any, Any]:
    """(x_t, ε) in float64."""
    import torch

    eps = torch.as_tensor(z, device=clean.device)
    return float(process.alpha(t)) * clean.to(torch.float64) + float(process.sigma(t)) * eps, eps


def _some(points: Any, count: int, seed: int) -> Any:
    """At most ``count`` of the points, without repetition."""
    return points[np.random.default_rng(seed).permutation(len(points))[:count]]


def fitting_rows(eps: Model, ideal: Model, process: Process, images: ImageSet, config: Config) -> list[dict[str, Any]]:
    """Per level and images: E|ε_θ − ε*|²/d, E|ε_θ − ε|²/d, E|ε* − ε|²/d, the ratio of the two losses."""
    rows = []
    for part in PARTS:
        clean = _some(_points(getattr(images, part), config), config["samples"], config["seed"])
        if len(clean) == 0:
            continue
        z = noise(len(clean), clean.shape[1], config["seed"])
        for rho in config["levels"]:
            t = float(process.time_from_rho(rho))
            x, drawn = _noised(clean, z, process, t)
            found, best = _in_batches(eps, x, t, config["batch"]), _in_batches(ideal, x, t, config["batch"])
            gaps = {"fit": found - best, "loss": found - drawn, "ideal_loss": best - drawn, "size": best}
            values = {key: np.asarray((gap**2).mean(dim=1).cpu()) for key, gap in gaps.items()}
            rows.append({"part": "fitting", "images": part, "rho": rho, "t": t, **_summary(values, config["seed"])})
            rows[-1]["score"] = math.sqrt(rows[-1]["fit"]) / float(process.sigma(t))
    return rows


def _in_batches(model: Model, x: Any, t: float, batch: int) -> Any:
    import torch

    with torch.no_grad():
        return torch.cat([model(part, t) for part in torch.split(x, batch)])


def _summary(values: dict[str, Array], seed: int) -> dict[str, float]:
    """Means, the interval of the fitting error, and the network's loss over the ideal denoiser's with its interval."""
    low, high = bootstrap_ratio(values["fit"], np.ones_like(values["fit"]), seed)
    row = {key: float(v.mean()) for key, v in values.items()} | {"fit_low": low**2, "fit_high": high**2}
    row["relative"] = math.sqrt(row["fit"] / row["size"])
    if values["ideal_loss"].min() > 0:
        low, high = bootstrap_ratio(values["loss"], values["ideal_loss"], seed)
        row |= {"ratio": row["loss"] / row["ideal_loss"], "ratio_low": low**2, "ratio_high": high**2}
    return row


def path_rows(net: Network, ideal: Model | None, config: Config) -> tuple[list[dict[str, Any]], Any]:
    """(Δ_s and Δ_ε of each degree on the flow of the network and of the ideal denoiser, clean ends of the former)."""
    import torch

    process = net.process
    ts = da.grid(process, config["steps"], config["grid"])
    z = noise(config["path_samples"], math.prod(net.shape), config["seed"])
    x_T = torch.as_tensor(start_scale(process, float(ts[0])) * z, device=config["device"])
    rows, ends = [], None
    for field, model in (("network", eps_of(net)), ("ideal", ideal)):
        if model is None:
            continue
        with torch.no_grad():
            path = da.reference_path(
                model, process, x_T, step_points(ts, config["points"]), config["rtol"], config["rtol"], certify=False
            )
            eps = {t: np.asarray(model(path(t), t).cpu()) for t in path.times}
        ends = path.states[-1] / float(process.alpha(path.times[-1])) if ends is None else ends
        rows.append({"part": "reference", "field": field, "estimate": path.error_estimate})
        rows += [{"part": "path", "field": field, **row} for row in changes(eps, process, ts, config)]
    return rows, ends


def changes(eps: dict[float, Array], process: Process, ts: Array, config: Config) -> list[dict[str, Any]]:
    """Root mean squares of extrapolated minus true ε by time, "s": of a frozen score; delta_score: over σ."""
    score = {t: -e / float(process.sigma(t)) for t, e in eps.items()}
    rows = []
    for quantity, known, degrees in (("s", score, [0]), ("eps", eps, config["degrees"])):
        prediction = "score" if quantity == "s" else "eps"
        for degree in degrees:
            times, deltas = da.extrapolation_error(
                lambda x, t, known=known: known[t], process, lambda t: None, ts, degree,
                prediction=prediction, unit="eps", points=config["points"],
            )  # fmt: skip
            for step, (visited, values) in enumerate(zip(times, deltas, strict=True)):
                rows += [
                    {"quantity": quantity, "degree": degree, "step": step, "t": t, "rho": float(process.rho(t)),
                     "delta": d, "delta_score": d / float(process.sigma(t))}
                    for t, d in zip(visited, values, strict=True)
                ]  # fmt: skip
    return rows


def derivative_rows(net: Network, clean: Any, config: Config) -> list[dict[str, Any]]:
    """Asymmetry of the Jacobian and Fokker–Planck residual of the score, relative, at noised ``clean`` points."""
    from deis_analysis.diagnostics import as_score

    chosen = _some(clean, config["derivative_samples"], config["seed"] + 1)
    z = noise(len(chosen), chosen.shape[1], config["seed"] + 1)
    score, rows = as_score(eps_of(net), net.process), []
    for rho in config["derivative_levels"]:
        t = float(net.process.time_from_rho(rho))
        x, _ = _noised(chosen, z, net.process, t)
        with score_defects.differentiable():
            for measure, values in (
                ("asymmetry", score_defects.asymmetry(score, x, t, config)),
                ("residual", score_defects.residual(score, net.process, x, t, config)),
            ):
                row = {"part": "derivative", "measure": measure, "rho": rho, "t": t, "samples": len(x)}
                rows.append(row | dict(zip(("value", "low", "high"), values, strict=True)))
    return rows


# -- what was found -------------------------------------------------------------------------------
def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: fitting errors, where it beats the ideal denoiser on held-out images, Δ, asymmetry, residual."""
    found: dict[str, dict[str, Any]] = {}
    for name in config["models"]:
        rows = frame[frame.model == name]
        fitting = rows[rows.part == "fitting"] if "images" in rows else rows[:0]
        found[name] = {part: _extremes(fitting[fitting.images == part], "fit") for part in PARTS if len(fitting)}
        held = fitting[fitting.images == "held_out"] if len(fitting) else fitting
        if len(held):
            least = held.loc[held.ratio.idxmin()]
            better, worse = int((held.ratio_high < 1).sum()), int((held.ratio_low > 1).sum())
            found[name]["held"] = {"better": better, "worse": worse, "levels": len(held),
                                   "least": float(least.ratio), "at": float(least.rho)}  # fmt: skip
        path = rows[rows.part == "path"]
        groups = path.groupby(["field", "quantity", "degree"]) if len(path) else ()
        found[name]["path"] = {
            (str(field), str(q), int(degree)): float(np.sqrt((part.delta**2).mean()))
            for (field, q, degree), part in groups
        }
        measures = rows[rows.part == "derivative"]
        for measure in MEASURES:
            found[name][measure] = _extremes(measures[measures.measure == measure], "value")
    return found


def _extremes(rows: Frame, column: str) -> dict[str, float] | None:
    """Least and largest value, and the σ/α of the latter."""
    if not len(rows):
        return None
    worst = rows.loc[rows[column].idxmax()]
    return {"least": float(rows[column].min()), "most": float(worst[column]), "at": float(worst.rho)}


def verdict(frame: Frame, config: Config) -> str:
    """Of each model: fitting error, loss on held-out images beside the ideal denoiser's, Δ_ε, asymmetry, residual."""
    found = findings(frame, config)
    return f"{_most(found)}. {'; '.join(_told(name, f, config) for name, f in found.items())}."


def _told(name: str, f: dict[str, Any], config: Config) -> str:
    text, high = style.as_text, max(config["degrees"])
    if f.get("train"):
        told = f"{name}: E|ε_θ − ε*|²/d up to {text(f['train']['most'])} on {PARTS['train']}"
        if "held" in f:
            held = f["held"]
            told += (f", {text(f['held_out']['most'])} on {PARTS['held_out']}, where its loss is below the ideal "
                     f"denoiser's at {held['better']} and above at {held['worse']} of {held['levels']} levels "
                     f"(least {text(held['least'])} times)")  # fmt: skip
    elif f["fitting"]:
        told = f"{name}: error of the score up to {text(f['fitting']['most'])}, loop up to {text(f['loop']['most'])}"
    else:
        told = f"{name}: no training images at hand"
    moved = {key: f["path"].get(("network", "eps", r)) for key, r in (("frozen", 0), ("high", high))}
    if None not in moved.values():
        told += f", Δ_ε {text(moved['frozen'])} frozen and {text(moved['high'])} at degree {high}"
    return told + f", asymmetry up to {text(f['asymmetry']['most'])}, residual up to {text(f['residual']['most'])}"


def _most(found: dict[str, dict[str, Any]]) -> str:
    known = [f["held"] for f in found.values() if "held" in f]
    if not known:
        return f"Jacobians asymmetric by up to {style.as_text(max(f['asymmetry']['most'] for f in found.values()))}"
    better, levels = (sum(held[key] for held in known) for key in ("better", "levels"))
    return (
        f"On held-out images the networks beat the ideal denoiser of their training images at {better} of {levels} "
        "noise levels"
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Columns: models. Rows: losses; change of ε along the flow; how far from a score. Noise levels below."""
    found = findings(frame, config)
    note = (
        f"Top: mean square of predicted minus drawn ε, of the network and of ε*, the ideal denoiser of its training "
        f"images; {config['samples']} images at most. Middle: root mean square of ε extrapolated over a step minus ε, "
        f"{config['steps']} steps, {config['grid']} grid, {config['path_samples']} flows of the network (solid) and of "
        f"ε* (dotted). Bottom: ‖J − Jᵀ‖/‖J‖ and the Fokker–Planck residual over its two sides, at "
        f"{config['derivative_samples']} samples, whose bootstrap the bands are; 0 for a true score. Of models "
        f"whose score is known, at {config['score']['points']} points: ‖s − ∇log p‖/‖∇log p‖, |∮ s·dl|/(length × ‖s‖)."
    )
    fig = panels.sheet(_most(found), note, 6.4)
    whole = [name for name, f in found.items() if f["path"]]
    rows = (
        ("loss", _draw_loss, "fitting", whole),
        ("change of ε", _draw_path, "path", whole),
        ("not a score by", _draw_derivatives, "derivative", list(found)),
    )
    columns = len(found) if len(found) > len(whole) else len(found) + 1  # one is left for the keys
    for i, (label, panel, part, names) in enumerate(rows):
        if not names:
            continue
        titles = [panels.short(name) if name not in whole or i == 0 else "" for name in names]
        axes, _ = panels.small_multiples(fig, titles, columns, extra_top=0.25, begin=0.345 * i, end=0.345 * i + 0.3,
                                         wspace=0.16)  # fmt: skip
        for ax, name in zip(axes, names, strict=True):
            panel(ax, frame[(frame.model == name) & (frame.part == part)], config)
            ax.tick_params(labelbottom=True)
        axes[0].set(xscale="log", yscale="log")
        axes[0].set_ylabel(label, fontsize=8.5)
        if i < 2:
            axes[0].set_ylim(bottom=1e-4)
        lines = dict(zip(*reversed(axes[-1].get_legend_handles_labels()), strict=True))
        place, above = axes[0].get_position(), len(names) == columns  # the key, in the last column or above its panel
        fig.legend(lines.values(), lines.keys(), fontsize=7.5, handlelength=1.6,
                   loc="lower left" if above else "upper left",
                   bbox_to_anchor=(1 - 0.98 / columns, place.y1 + 0.02 * above))  # fmt: skip
    for ax in axes:
        ax.set_xlabel("noise level σ/α", fontsize=8.5, labelpad=1)
    return fig


def _draw_loss(ax: Any, rows: Frame, config: Config) -> None:
    for part, colour in zip(PARTS, (style.BLUE, style.VERMILLION), strict=True):
        mine = rows[rows.images == part].sort_values("rho") if len(rows) else rows
        if len(mine):
            panels.curve(ax, mine.rho, mine.loss, label=f"network, {part.replace('_', '-')}", color=colour, marker="o")
            ax.plot(mine.rho, mine.ideal_loss, ":", color=colour, lw=1.8, label=f"ε*, {part.replace('_', '-')}")
    if not len(rows):
        ax.text(0.5, 0.5, "training images\nnot at hand", ha="center", transform=ax.transAxes, color="#777777")


def _draw_path(ax: Any, rows: Frame, config: Config) -> None:
    high = max(config["degrees"])
    lines = (("s", 0, style.GREY, "frozen score"), ("eps", 0, style.BLACK, "frozen ε"),
             ("eps", high, style.BLUE, f"ε of degree {high}"))  # fmt: skip
    for quantity, degree, colour, label in lines:
        for field, line in (("network", "-"), ("ideal", ":")):
            part = rows[(rows.quantity == quantity) & (rows.degree == degree) & (rows.field == field)]
            part = part.sort_values("rho")
            ax.plot(part.rho, part.delta, line, color=colour, lw=1.3, label=label if field == "network" else None)


def _draw_derivatives(ax: Any, rows: Frame, config: Config) -> None:
    for measure, (colour, label) in MEASURES.items():
        part = rows[rows.measure == measure].sort_values("rho")
        if len(part):
            panels.curve(ax, part.rho, part.value, part.get("low"), part.get("high"), label=label, color=colour,
                         marker="o")  # fmt: skip
