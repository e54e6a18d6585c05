"""Whose samples are nearest to the data in law? Fréchet distance, precision and recall in a classifier's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.models.features import Features, Floor, Frechet, difference, floor, frechet, precision_recall
from experiments.models.problems import start_scale, steps_for

if TYPE_CHECKING:
    from deis_analysis.networks import Network

NAME = "network_law"
QUESTION = (
    "Which sampler's images are nearest to the data in law at 5, 10 and 20 model calls, and who can be told apart?"
)
CONFIG: Config = {
    "models": ["digits8", "mnist28"],
    "kept": ["mnist28"],
    "solvers": ["ddim", "tab3", "unipc2_bh2_x0"],
    "calls": [5, 10, 20],
    "grid": "t2",
    "samples": {"digits8": 256, "digits8_flow": 256, "mnist28": 128},
    "samples_else": 128,
    "reference": {"solver": "rhork_4rk", "grid": "logrho", "calls": 40},
    "features": {},
    "inception": None,
    "neighbours": 5,
    "floor_draws": 20,
    "seed": 0,
    "batch": 64,
    "allow_pickle": False,
    "device": "cpu",
    "choices": {
        "features": "of the network's own folder, or as named here (network: folder); with inception, a mapping with "
        "weights, data and data_root, those of Inception (FID) instead",
        "reference": "the network's own flow from the same starts, not certified: so many calls of a method of order 4",
        "real": "all kept training features for d^2; as many as samples, drawn at random, for precision and recall",
    },
}
QUICK: Config = {"models": ["digits8"], "kept": [], "solvers": ["ddim", "tab3"], "calls": [5, 10],
                 "samples": {"digits8": 128},
                 "reference": {"solver": "rhork_4rk", "grid": "logrho", "calls": 20}, "floor_draws": 5}  # fmt: skip
THOROUGH: Config = {"models": ["digits8", "digits8_flow", "mnist28"], "kept": [],
                    "solvers": ["ddim", "tab3", "rhoab2", "dpmpp_2m", "unipc2_bh2_x0", "edm_heun"],
                    "samples": {"digits8": 800, "digits8_flow": 800, "mnist28": 5000},
                    "reference": {"solver": "rhork_4rk", "grid": "logrho", "calls": 100}}  # fmt: skip
FLOW = "reference"  # the solver column of the network's own flow
METRICS = ("frechet", "precision", "recall")
BANDS = {"frechet": ("low", "high"), "excess": ("excess_low", "excess_high")}
TITLES = ("Fréchet distance²", "above the flow's", "precision", "recall")


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, solver and number of calls, and one per model of the network's own flow (`FLOW`).

    ``frechet low high``: d² and its band; ``corrected``: without bias in n. ``behind…``: what it is above the least of
    the same calls, ``excess…`` above the flow's, with paired bands. ``floor_…``: of real images, `floor`.
    """
    return by_model(NAME, config, lambda name, report: _model(name, config, report), progress)


def _model(name: str, config: Config, report: Progress) -> Rows:
    from deis_analysis import networks as learned

    net = learned.load(name, device=config["device"], allow_pickle=config["allow_pickle"])
    features, n = _features(name, config), config["samples"].get(name, config["samples_else"])
    real = floor(features, n, k=config["neighbours"], draws=config["floor_draws"], seed=config["seed"])
    drawn = np.random.default_rng(config["seed"]).choice(len(features.train), n, replace=False)
    starts = noise(net, n, config["seed"])
    total, spent = (len(config["solvers"]) * sum(config["calls"]) + config["reference"]["calls"]), 0

    def measured(solver: str, kind: str, calls: int) -> tuple[Frechet, dict[str, Any]]:
        nonlocal spent
        images, nfe = sample(net, solver, kind, calls, starts, config["batch"])
        fake = features(images)
        spent += calls
        report(spent / total)
        found = frechet(features.train, fake)
        precision, recall = precision_recall(features.train[drawn], fake, config["neighbours"])
        return found, {"calls": calls, "nfe": nfe, "frechet": found.value, "low": found.low, "high": found.high,
                       "corrected": found.corrected, "precision": precision, "recall": recall}  # fmt: skip

    by = config["reference"]
    own, own_row = measured(by["solver"], by["grid"], by["calls"])
    rows = [{"solver": FLOW, **own_row}]
    for calls in config["calls"]:
        tried = {s: measured(s, config["grid"], calls) for s in config["solvers"] if steps_for(s, calls)}
        best = min((found for found, _ in tried.values()), key=lambda found: found.value)
        for solver, (found, row) in tried.items():
            rows.append({"solver": solver, **row, **_gap("behind", found, best), **_gap("excess", found, own)})
    common = {"n": n, "seed": config["seed"], **_floor(real), "features": features.name}
    return [{**row, **common} for row in rows]


def _features(name: str, config: Config) -> Features:
    if config["inception"] is None:
        return Features.load(config["features"].get(name, name))
    from pathlib import Path

    from experiments.models.image_data import read_images

    given = config["inception"]
    images = read_images(given["data"], Path(given["data_root"]) if given.get("data_root") else None)
    return Features.inception(images, Path(given["weights"]))


def _gap(name: str, found: Frechet, other: Frechet) -> dict[str, float]:
    gap, low, high = difference(found, other)
    return {name: gap, f"{name}_low": low, f"{name}_high": high}


def _floor(real: Floor) -> dict[str, Any]:
    means = {name: getattr(real, name) for name in METRICS}
    spread = dict(zip((f"{name}_sd" for name in METRICS), real.sd, strict=True))
    return {**{f"floor_{key}": value for key, value in (means | spread).items()}, "floor_source": real.source}


def noise(net: Network, n: int, seed: int) -> Any:
    """(n, c, h, w) float32 starts at the process's first sampling time, the same on all devices."""
    import torch

    scale = start_scale(net.process, net.process.sampling_range[0])
    return scale * torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(seed))


def sample(net: Network, solver: str, kind: str, calls: int, starts: Any, batch: int) -> tuple[Any, int]:
    """Images (n, c, h, w) of a registry solver with at most ``calls`` calls of the network, and how many there were."""
    import torch

    ts = da.grid(net.process, steps_for(solver, calls), kind)
    table = da.build(solver, net.process, ts).in_terms_of(net.process, net.prediction)
    device = next(net.model.parameters()).device
    with torch.no_grad():
        parts = [da.run(table, net.model, part.to(device)).cpu() for part in starts.split(batch)]
    return torch.cat(parts), table.nfe


# -- what they say --------------------------------------------------------------------------------
def at_calls(frame: Frame, model: str, calls: int) -> Frame:
    """The solvers at a number of calls on a model, nearest to the data first."""
    rows = frame[(frame.model == model) & (frame.calls == calls) & (frame.solver != FLOW)]
    return rows.sort_values("frechet", kind="stable").set_index("solver")


def flow(frame: Frame, model: str) -> Any:
    """The row of a network's own flow."""
    return frame[(frame.model == model) & (frame.solver == FLOW)].iloc[0]


def printed(model: str) -> str:
    """A model's name without the path or owner before it."""
    return model.rstrip("/").split("/")[-1]


def tied(at: Frame) -> list[str]:
    """Those of `at_calls` after the first whose band of the distance behind it reaches 0."""
    return [str(name) for name in at.index[1:] if at.behind_low[name] <= 0]


def verdict(frame: Frame, config: Config) -> str:
    """Per model and number of calls the nearest and who cannot be told from it; the network's own flow; the floor."""
    parts = []
    for model in dict.fromkeys(frame.model):
        own, cells = flow(frame, model), []
        for calls in config["calls"]:
            at = at_calls(frame, model, calls)
            same = tied(at)
            rest = "all" if same and len(same) == len(at) - 1 else ", ".join(same) or "none"
            cells.append(f"{at.index[0]} {style.as_text(at.frechet.iloc[0])} ({rest})")
        parts.append(
            f"{printed(model)} (n={own.n}) {', '.join(cells)}; its own flow {style.as_text(own.frechet)}, "
            f"real images {style.as_text(own.floor_frechet)}±{style.as_text(own.floor_frechet_sd, 1)}"
        )
    counts = ", ".join(map(str, config["calls"]))
    return (
        f"Least squared Fréchet distance to the training images at {counts} calls, {config['grid']} grid (in brackets "
        f"who cannot be told from it): {'. '.join(parts)}."
    )


def headline(frame: Frame, config: Config) -> str:
    """From how many calls on the nearest sampler is not further from the data than the flow, as far as bands tell."""
    parts = []
    for model in dict.fromkeys(frame.model):
        as_near: list[int] = []
        for calls in sorted(config["calls"], reverse=True):
            if at_calls(frame, model, calls).excess_low.iloc[0] > 0:
                break
            as_near.append(calls)
        if as_near:
            parts.append(
                f"on {printed(model)} from {as_near[-1]} calls on ({at_calls(frame, model, as_near[-1]).index[0]})"
            )
        else:
            parts.append(f"on {printed(model)} not within {max(config['calls'])} calls")
    return f"The best sampler's images are as near to the data as the flow's, as far as bands tell: {', '.join(parts)}"


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: d², d² above the flow's, precision, recall, against calls."""
    names = list(dict.fromkeys(frame.model))
    by = config["reference"]
    sizes = ", ".join(f"{printed(name)} n = {flow(frame, name).n}" for name in names)
    note = (
        f"Fréchet distance and {config['neighbours']}-nearest-neighbour precision and recall in the last hidden layer "
        "of a classifier, whose features have a total variance of 1 on the training images: squared distances are in "
        f"units of it. {sizes}; seed {config['seed']}, the same starts for all; {config['grid']} grid. Bars: 95 %, "
        "jackknife over samples, paired in the second column. Grey: n real images, mean ± 2 sd of "
        f"{config['floor_draws']} draws. "
        f"Dashed: the network's own flow, {by['calls']} calls of {by['solver']}."
    )
    fig = panels.sheet(headline(frame, config), note, 0.75 + 1.6 * len(names))
    axes, _ = panels.small_multiples(
        fig, [title for _ in names for title in TITLES], len(TITLES), share_y=False, extra_top=0.5, wspace=0.36,
        hspace=0.3, left=0.75,
    )  # fmt: skip
    for row, name in enumerate(names):
        mine = axes[len(TITLES) * row : len(TITLES) * (row + 1)]
        mine[0].set_ylabel(printed(name), fontsize=8.5)
        for ax, what in zip(mine, ("frechet", "excess", "precision", "recall"), strict=True):
            _panel(ax, frame[frame.model == name], flow(frame, name), what, config)
    panels.calls_axis(axes, config["calls"])
    panels.key(fig, axes[0])
    return fig


def _panel(ax: Any, frame: Frame, own: Any, what: str, config: Config) -> None:
    rows = frame[frame.solver != FLOW]
    groups = list(rows.groupby("solver", sort=False))
    ax.axhline(0.0 if what == "excess" else own[what], color="#222222", lw=1.1, ls="--", zorder=1, label="own flow")
    bottom = 0.4 * min(rows.frechet.min(), own.floor_frechet)
    if what in METRICS:
        middle, reach = float(own[f"floor_{what}"]), 2 * float(own[f"floor_{what}_sd"])
        low, high = (max(middle - reach, bottom), middle + reach) if what == "frechet" else (
            middle - reach, min(1.0, middle + reach))  # fmt: skip
        ax.axhspan(low, high, color="#e6e6e6", zorder=0, label="real images")
    for i, (name, part) in enumerate(groups):
        look = {k: v for k, v in style.look(str(name)).items() if k != "linestyle"}
        x = part.nfe * 1.06 ** (i - (len(groups) - 1) / 2)  # keeps the bars apart
        bars = None
        if what in BANDS:
            low, high = (part[column] for column in BANDS[what])
            bars = [part[what] - (low.clip(lower=bottom) if what == "frechet" else low), high - part[what]]
        ax.errorbar(x, part[what], yerr=bars, **look, linewidth=1.2, elinewidth=0.9, markersize=4, label=str(name))
    if what == "frechet":
        ax.set(yscale="log", ylim=(bottom, None))
        top = ax.get_ylim()[1]
        ticks = [m * 10.0**e for e in range(-5, 2) for m in (1, 2, 5)]
        style.plain_log_ticks(ax.yaxis, [tick for tick in ticks if bottom <= tick <= top])
