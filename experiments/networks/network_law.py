"""Whose samples are nearest to the data in law? Fréchet distance, precision and recall in a classifier's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

import deis_analysis as da
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import Rows, by_model
from experiments.core.frames import at
from experiments.models.features import Features, Frechet, difference, floor, frechet, precision_recall
from experiments.models.problems import start_scale, steps_for

if TYPE_CHECKING:
    from deis_analysis.networks import Network

NAME = "network_law"
QUESTION = (
    "Which sampler's images are nearest to the data in law at 5, 10 and 20 model calls, and who can be told apart?"
)
CONFIG: Config = {
    "models": ["digits8", "mnist28"], "kept": ["mnist28"], "solvers": ["ddim", "tab3", "unipc2_bh2_x0"],
    "calls": [5, 10, 20], "grid": "t2", "samples": {"digits8": 256, "digits8_flow": 256, "mnist28": 128},
    "samples_else": 128, "reference": {"solver": "rhork_4rk", "grid": "logrho", "calls": 40}, "features": {},
    "inception": None, "neighbours": 5, "floor_draws": 20, "seed": 0, "batch": 64, "allow_pickle": False,
    "device": "cpu",
    "choices": {
        "features": "of the network's own folder, or as named here (network: folder); with inception, a mapping with "
        "weights, data and data_root, those of Inception (FID) instead",
        "reference": "the network's own flow from the same starts, not certified",
        "real": "all kept training features for d^2; as many as samples, drawn at random, for precision and recall",
    },
}  # fmt: skip
QUICK: Config = {"models": ["digits8"], "kept": [], "solvers": ["ddim", "tab3"], "calls": [5, 10],
                 "samples": {"digits8": 128}, "reference": {**CONFIG["reference"], "calls": 20},
                 "floor_draws": 5}  # fmt: skip
THOROUGH: Config = {"models": [*CONFIG["samples"]], "kept": [], "reference": {**CONFIG["reference"], "calls": 100},
                    "solvers": ["ddim", "tab3", "rhoab2", "dpmpp_2m", "unipc2_bh2_x0", "edm_heun"],
                    "samples": {"digits8": 800, "digits8_flow": 800, "mnist28": 5000}}  # fmt: skip
FLOW = "reference"  # the solver column of the network's own flow
TITLES = {"frechet": "Fréchet distance²", "excess": "above the flow's", "precision": "precision", "recall": "recall"}
BANDS = {"frechet": ("low", "high"), "excess": ("excess_low", "excess_high")}


def compute(config: Config, progress: Progress) -> Frame:
    """A row per model, solver and number of calls, and one per model of the network's own flow (`FLOW`).

    ``frechet low high``: d² and its band; ``corrected``: without bias in n. ``behind…``: what it is above the least of
    the same calls, ``excess…`` above the flow's, with paired bands. ``floor_…``: of real images, `floor`.
    """
    return by_model(NAME, config, lambda name, report: _model(name, config, report), progress)


def _model(name: str, config: Config, report: Progress) -> Rows:
    from deis_analysis import networks as learned

    net = learned.load(name, device=config["device"], allow_pickle=config["allow_pickle"])
    features, k, seed = _features(name, config), config["neighbours"], config["seed"]
    n, metrics = config["samples"].get(name, config["samples_else"]), ("frechet", "precision", "recall")
    real = floor(features, n, k=k, draws=config["floor_draws"], seed=seed)
    common = {"n": n, "seed": seed, **{f"floor_{metric}": getattr(real, metric) for metric in metrics}}
    common |= {f"floor_{metric}_sd": sd for metric, sd in zip(metrics, real.sd, strict=True)}
    common |= {"floor_source": real.source, "features": features.name}
    drawn = features.train[np.random.default_rng(seed).choice(len(features.train), n, replace=False)]
    starts, by, kind = noise(net, n, seed), config["reference"], config["grid"]
    asked = [(solver, kind, calls) for calls in config["calls"] for solver in config["solvers"]]
    asked = [(by["solver"], by["grid"], by["calls"]), *(one for one in asked if steps_for(one[0], one[2]))]
    found: list[tuple[Frechet, dict[str, Any]]] = []
    for solver, kind, calls in asked:
        images, nfe = sample(net, solver, kind, calls, starts, config["batch"])
        fake = features(images)
        d2 = frechet(features.train, fake)
        precision, recall = precision_recall(drawn, fake, k)
        row = {"solver": solver if found else FLOW, "calls": calls, "nfe": nfe, "frechet": d2.value, "low": d2.low,
               "high": d2.high, "corrected": d2.corrected, "precision": precision, "recall": recall}  # fmt: skip
        found.append((d2, {**row, **common}))
        report(len(found) / len(asked))
    (own, _), *others = found
    for d2, row in others:
        best = min((one for one, at in others if at["calls"] == row["calls"]), key=lambda one: one.value)
        for what, beside in (("behind", best), ("excess", own)):
            row |= dict(zip((what, f"{what}_low", f"{what}_high"), difference(d2, beside), strict=True))
    return [row for _, row in found]


def _features(name: str, config: Config) -> Features:
    if config["inception"] is None:
        return Features.load(config["features"].get(name, name))
    from pathlib import Path

    from experiments.models.image_data import read_images

    given = config["inception"]
    images = read_images(given["data"], Path(given["data_root"]) if given.get("data_root") else None)
    return Features.inception(images, Path(given["weights"]))


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
    rows = at(frame[frame.solver != FLOW], model=model, calls=calls)
    return rows.sort_values("frechet", kind="stable").set_index("solver")


def tied(nearest: Frame) -> list[str]:
    """Those of `at_calls` after the first whose band of the distance behind it reaches 0."""
    return [str(name) for name in nearest.index[1:] if nearest.behind_low[name] <= 0]


def printed(model: str) -> str:
    """A model's name without the path or owner before it."""
    return model.rstrip("/").split("/")[-1]


def headline(frame: Frame, config: Config) -> str:
    """From how many calls on the nearest sampler is not further from the data than the flow, as far as bands tell."""
    parts, counts = [], sorted(config["calls"])
    for model in frame.model.unique():
        further = [calls for calls in counts if at_calls(frame, model, calls).excess_low.iloc[0] > 0]
        later = [calls for calls in counts if not further or calls > further[-1]]
        told = f"from {later[0]} calls on" if later else f"not within {counts[-1]} calls"
        parts.append(f"on {printed(model)} {told}")
    return f"As far as bands tell the best sampler is as near to the data as the flow: {', '.join(parts)}"


def verdict(frame: Frame, config: Config) -> str:
    """The headline; and per model who is nearest at the fewest calls, and who cannot be told from it."""
    fewest, parts = min(config["calls"]), []
    for model in frame.model.unique():
        nearest = at_calls(frame, model, fewest)
        distance, same = style.as_text(nearest.frechet.iloc[0]), ", ".join(tied(nearest)) or "none"
        parts.append(f"{nearest.index[0]} {distance} on {printed(model)} (tied: {same})")
    return f"{headline(frame, config)}; least squared Fréchet distance at {fewest} calls: {', '.join(parts)}."


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: d², d² above the flow's, precision, recall, against calls."""
    own, by = frame[frame.solver == FLOW].set_index("model"), config["reference"]
    sizes = ", ".join(f"{printed(name)} n = {n}" for name, n in own.n.items())
    note = (
        f"Fréchet distance and {config['neighbours']}-nearest-neighbour precision and recall in a classifier's last "
        f"hidden layer, whose total variance is 1 on the training images. {sizes}; the same starts for all; "
        f"{config['grid']} grid. Bars: 95 %, jackknife, paired in the second column. Grey: n real images, mean ± 2 sd. "
        f"Dashed: the network's own flow, {by['calls']} calls of {by['solver']}."
    )
    fig = panels.sheet(headline(frame, config), note, 0.75 + 1.6 * len(own))
    axes, _ = panels.small_multiples(
        fig, [title for _ in own.index for title in TITLES.values()], len(TITLES), share_y=False, extra_top=0.5,
        wspace=0.36, hspace=0.3, left=0.75,
    )  # fmt: skip
    for ax, (name, what) in zip(axes, ((name, what) for name in own.index for what in TITLES), strict=True):
        _panel(ax, at(frame[frame.solver != FLOW], model=name), own.loc[name], what)
        if what == "frechet":
            ax.set_ylabel(printed(name), fontsize=8.5)
    panels.calls_axis(axes, config["calls"])
    panels.key(fig, axes[0])
    return fig


def _panel(ax: Any, rows: Frame, own: Any, what: str) -> None:
    ax.axhline(0.0 if what == "excess" else own[what], color="#222222", lw=1.1, ls="--", label="own flow")
    bottom, logarithmic = 0.4 * min(rows.frechet.min(), own.floor_frechet), what == "frechet"
    if what != "excess":
        middle, reach = own[f"floor_{what}"], 2 * own[f"floor_{what}_sd"]
        ends = (
            (max(middle - reach, bottom), middle + reach) if logarithmic else (middle - reach, min(middle + reach, 1))
        )
        ax.axhspan(*ends, color="#e6e6e6", zorder=0, label="real images")
    for i, (name, part) in enumerate(rows.groupby("solver", sort=False)):
        x = part.nfe * 1.06 ** (i - (rows.solver.nunique() - 1) / 2)  # keeps the bars apart
        band = [part[column].clip(lower=bottom if logarithmic else None) for column in BANDS.get(what, ())]
        bars = [part[what] - band[0], band[1] - part[what]] if band else None
        look = {**style.look(str(name)), "linestyle": "-", "linewidth": 1.2, "markersize": 4}
        ax.errorbar(x, part[what], yerr=bars, elinewidth=0.9, label=str(name), **look)
    if logarithmic:
        ax.set(yscale="log", ylim=(bottom, None))
        ticks = [m * 10.0**e for e in range(-5, 2) for m in (1, 2, 5)]
        style.plain_log_ticks(ax.yaxis, [tick for tick in ticks if bottom <= tick <= ax.get_ylim()[1]])
