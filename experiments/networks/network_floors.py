"""How exact is a network as a function? Floors of its arithmetic and of rounded network times, under a sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, noise, start_scale

if TYPE_CHECKING:
    from deis_analysis.networks import Network
    from deis_analysis.reference.flow import ReferencePath

NAME = "network_floors"
QUESTION = "How far are samples of a network off because of its arithmetic, or because network times are rounded?"
CONFIG: Config = {
    "models": ["digits8", "digits8_flow"],
    "variants": ["float32", "bfloat16", "nearest", "linear"],
    "solver": "tab3",
    "grid": "t2",
    "calls": [10, 20, 40, 100],
    "compared_at": 20,
    "samples": 4,
    "rtol": 3e-7,
    "tolerance": 1e-5,
    "seed": 0,
    "allow_pickle": False,
    "device": "cpu",
    "choices": {
        "exact": "the network in float64, its time embedding too, asked at real network times",
        "float32, bfloat16": "weights and arithmetic of the network; times and embedding in float32; state in float64",
        "nearest, linear": "float64, network times rounded, or interpolated linearly between integers",
        "truth": "flow of the exact network by DOPRI5 at rtol, which a second method is to confirm to tolerance",
        "gap": "root mean square difference to the exact network under the same sampler",
        "intervals": "bootstrap over the samples, 2.5 to 97.5 %; of so few samples it is too narrow",
    },
}
QUICK: Config = {"calls": [10, 20], "samples": 2, "rtol": 1e-4, "tolerance": 1e-2}
THOROUGH: Config = {"calls": [10, 20, 40, 80, 160, 320, 640], "samples": 32, "rtol": 1e-9, "tolerance": 1e-6}
COLOURS = {"exact": style.BLACK, "float32": style.BLUE, "bfloat16": style.PURPLE, "nearest": style.VERMILLION,
           "linear": style.ORANGE}  # fmt: skip
_ROUNDING = 1e-12  # below it two float64 answers are the same
NAMES = {"exact": "float64, real times", "float32": "float32", "bfloat16": "bfloat16", "nearest": "nearest time",
         "linear": "linear in time"}  # fmt: skip


# -- all numbers ----------------------------------------------------------------------------------
def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "reference" (estimate), "sample" (variant, calls: error, gap) and "prediction" (variant, t: gap)."""
    rows: list[dict[str, Any]] = []
    share = 1.0 / len(config["models"])
    for done, name in enumerate(config["models"]):
        exact = load(name, "exact", config)
        starts = start(exact, config)
        found = reference(exact, starts, config)
        rows.append({"part": "reference", "model": name, "process": repr(exact.process), "nfe": found.nfe,
                     "agreement": found.agreement, "certified": found.certified})  # fmt: skip
        truth = found.states[-1]
        progress(share * (done + 0.3))
        own = sampled(exact, starts, config)
        visited = own[max(config["calls"])][1]
        rows += [{"model": name, **row} for row in _sample_rows("exact", own, own, truth, config)]
        for i, variant in enumerate(config["variants"], 1):
            net = load(name, variant, config)
            other = sampled(net, starts, config)
            rows += [{"model": name, **row} for row in _sample_rows(variant, other, own, truth, config)]
            rows += [{"model": name, **row} for row in _prediction_rows(variant, net, visited, config)]
            progress(share * (done + 0.3 + 0.7 * i / len(config["variants"])))
    return pd.DataFrame(rows)


def load(name: str, variant: str, config: Config) -> Network:
    """The network under one of the variants, or "exact"; ValueError for another one."""
    import torch

    from deis_analysis import networks as learned

    kinds: dict[str, tuple[torch.dtype, str]] = {
        "exact": (torch.float64, "fractional"),
        "float32": (torch.float32, "fractional"),
        "bfloat16": (torch.bfloat16, "fractional"),
        "nearest": (torch.float64, "nearest"),
        "linear": (torch.float64, "linear"),
    }
    if variant not in kinds:
        raise ValueError(f"variants: {variant!r} is unknown; allowed: {', '.join(kinds)}")
    dtype, times = kinds[variant]
    return learned.load(name, device=config["device"], dtype=dtype, times=times, allow_pickle=config["allow_pickle"])


def start(net: Network, config: Config) -> Any:
    """(n, d) float64 starts at the upper end of the process's sampling range."""
    import torch

    scale = start_scale(net.process, net.process.sampling_range[0])
    z = noise(config["samples"], math.prod(net.shape), config["seed"])
    return torch.tensor(scale * z, device=config["device"])


def reference(net: Network, starts: Any, config: Config) -> ReferencePath:
    """The flow of ``starts`` over the process's sampling range, kept with the other references of the network."""
    settings = {"network_rtol": config["rtol"], "network_tolerance": config["tolerance"]}
    return studies.network_path(net, net.process, starts, net.process.sampling_range, settings)


Visited = list[tuple[float, Any, Any]]  # time, states, ε of each model call


def sampled(net: Network, starts: Any, config: Config) -> dict[int, tuple[Any, Visited]]:
    """Number of calls → (samples, the model calls that led to them)."""
    found = {}
    for calls in config["calls"]:
        ts = da.grid(net.process, calls, config["grid"])
        table = da.build(config["solver"], net.process, ts).in_terms_of(net.process, "eps")
        if table.nfe != calls:
            raise ValueError(f"solver={config['solver']!r} makes {table.nfe} calls in {calls} steps; allowed: as many")
        visited: Visited = []
        found[calls] = (da.run(table, recorded(studies.flat(net, net.process), visited), starts), visited)
    return found


def recorded(model: Any, visited: Visited) -> Any:
    """``model``, which appends each call to ``visited``."""

    def inner(x: Any, t: float) -> Any:
        eps = model(x, t)
        visited.append((float(t), x, eps))
        return eps

    return inner


def squares(gap: Any) -> Array:
    """(n,) mean squares of (n, d)."""
    return np.asarray((gap**2).mean(dim=1).cpu())


def _sample_rows(variant: str, found: Any, exact: Any, truth: Any, config: Config) -> list[dict[str, Any]]:
    rows = []
    for calls, (x, _) in found.items():
        row: dict[str, Any] = {"part": "sample", "variant": variant, "calls": calls}
        for key, other in (("error", truth), ("gap", exact[calls][0])):
            values = squares(x - other)
            low, high = bootstrap_ratio(values, np.ones_like(values), config["seed"])
            row |= {key: float(np.sqrt(values.mean())), f"{key}_low": low, f"{key}_high": high}
        rows.append(row)
    return rows


def _prediction_rows(variant: str, net: Network, visited: Visited, config: Config) -> list[dict[str, Any]]:
    """Gaps of ε where the exact network was asked, at as many of the calls as the shortest run has."""
    eps = studies.flat(net, net.process)
    index = np.unique(np.linspace(0, len(visited) - 1, min(len(visited), 4 * min(config["calls"]))).round().astype(int))
    rows = []
    for i in index:
        t, x, exact = visited[int(i)]
        gap, size = (float(np.sqrt(squares(v).mean())) for v in (eps(x, t) - exact, exact))
        rho = float(net.process.rho(t))
        rows.append({"part": "prediction", "variant": variant, "t": t, "rho": rho, "gap": gap, "relative": gap / size})
    return rows


# -- what was found -------------------------------------------------------------------------------
def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per model: the exact network's error; per variant gaps of samples and of ε, and from which calls it rules."""
    found = {}
    for name in config["models"]:
        rows = frame[(frame.model == name) & (frame.part == "sample")]
        own = rows[rows.variant == "exact"].set_index("calls").error
        variants = {}
        for variant in config["variants"]:
            mine = rows[rows.variant == variant].set_index("calls")
            asked = frame[(frame.model == name) & (frame.part == "prediction") & (frame.variant == variant)]
            larger = mine.index[mine.gap > own[mine.index]]
            variants[variant] = {
                "gap": float(mine.gap[config["compared_at"]]),
                "last": float(mine.gap[max(config["calls"])]),
                "eps": float(asked.gap.max()),
                "rules_from": int(larger.min()) if len(larger) else None,
            }
        truth = frame[(frame.model == name) & (frame.part == "reference")].iloc[0]
        found[name] = {"own": {n: float(own[n]) for n in own.index}, "variants": variants, "truth": truth}
    return found


def verdict(frame: Frame, config: Config) -> str:
    """Gaps of the samples per model and variant beside the sampler's own error, and where a floor exceeds that."""
    text, told = style.as_text, []
    for name, f in findings(frame, config).items():
        gaps = ", ".join(f"{NAMES[v]} {text(values['gap'], 1)}" for v, values in f["variants"].items())
        told.append(f"on {name} {gaps} ({config['solver']}'s own error {text(f['own'][config['compared_at']], 1)})")
    return (
        f"Samples after {config['compared_at']} calls are off those of the float64 network at real times by: "
        f"{'; '.join(told)}; {_rules(frame, config)}."
    )


def _rules(frame: Frame, config: Config) -> str:
    """From how many calls on the gap of each variant is larger than the sampler's own error."""
    parts = []
    for variant in config["variants"]:
        where = {name: f["variants"][variant]["rules_from"] for name, f in findings(frame, config).items()}
        told = ", ".join(f"{n} ({name})" for name, n in where.items() if n is not None)
        parts.append(f"{NAMES[variant]} {'from ' + told if told else 'never'}")
    return f"more than that error up to {max(config['calls'])} calls: {', '.join(parts)}"


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: models. Columns: error and gap of the samples against calls, gap of ε against σ/α."""
    found, text = findings(frame, config), style.as_text
    worst = {v: max(f["variants"][v]["gap"] for f in found.values()) for v in config["variants"]}
    gaps = ", ".join(f"{NAMES[v]} {text(value, 1)}" for v, value in worst.items())
    headline = f"What a network's arithmetic and its rounded times cost a sample of {config['compared_at']} calls, "
    headline += f"at most: {gaps}"
    truths = ", ".join(
        f"{text(f['truth'].agreement, 1)} ({name}{'' if f['truth'].certified else ', not certified'})"
        for name, f in found.items()
    )
    note = (
        f"{config['solver']}, {config['grid']} grid, each network's own process, {config['samples']} samples, "
        "root mean squares per pixel; images range over [-1, 1]. Solid: error against the flow of the float64 network "
        f"at real times, by DOPRI5 (largest difference to a second method: {truths}). Dashed: "
        "difference to the float64 network at real times under the same sampler; bands: bootstrap, few samples. The "
        "shipped networks are told 100 t; 'nearest' rounds that to an integer, 'linear' interpolates between the "
        "answers at two; where 100 t is an integer neither differs."
    )
    fig = style.new_figure(12.5, 1.6 + 3.3 * len(found), headline, note)
    margins = style.body(fig, bottom=0.6, left=0.85, right=1.6, extra_top=0.35)
    axes = fig.subplots(len(found), 2, squeeze=False, gridspec_kw={**margins, "wspace": 0.72, "hspace": 0.38})
    for (left, right), name in zip(axes, found, strict=True):
        rows = frame[frame.model == name]
        _draw_samples(left, rows[rows.part == "sample"], config)
        left.set(title=f"{name}: samples", ylabel="root mean square, per pixel")
        _draw_predictions(right, rows[rows.part == "prediction"], config)
        right.set(title=f"{name}: ε along the path", ylabel="root mean square difference of ε")
    axes[-1, 0].set_xlabel("model calls (NFE)")
    axes[-1, 1].set_xlabel("noise level σ/α")
    return fig


def _draw_samples(ax: Any, rows: Frame, config: Config) -> None:
    labels = []
    for variant in ["exact", *config["variants"]]:
        part, colour = rows[rows.variant == variant].sort_values("calls"), COLOURS[variant]
        on_top = variant == "exact"  # thin, so that a line below it that is the same can be seen
        width, size, order = (0.9, 2.5, 3) if on_top else (2.2, 4.5, 2)
        ax.plot(part.calls, part.error, "-", color=colour, lw=width, marker="o", markersize=size, zorder=order)
        height = float(part.error.iloc[-1])
        if variant != "exact":
            ax.plot(part.calls, part.gap, "--", color=colour, lw=1.3)
            ax.fill_between(part.calls, part.gap_low, part.gap_high, color=colour, alpha=0.15, lw=0)
            height = float(part.gap.iloc[-1])
        labels.append((float(part.calls.iloc[-1]), height, NAMES[variant], colour))
    ax.set(xscale="log", yscale="log")
    style.plain_log_ticks(ax.xaxis, config["calls"])
    style.end_labels(ax, labels)


def _draw_predictions(ax: Any, rows: Frame, config: Config) -> None:
    labels = []
    for variant in config["variants"]:
        part = rows[(rows.variant == variant) & (rows.gap > _ROUNDING)].sort_values("rho")
        ax.plot(part.rho, part.gap, color=COLOURS[variant], lw=1.3)
        if len(part):
            labels.append((float(part.rho.iloc[-1]), float(part.gap.iloc[-1]), NAMES[variant], COLOURS[variant]))
    seen = rows.gap[rows.gap > _ROUNDING]
    ax.set(xscale="log", yscale="log", ylim=(0.3 * seen.min(), 3.0 * seen.max()) if len(seen) else None)
    style.end_labels(ax, labels)
