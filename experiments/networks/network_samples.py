"""What do the errors look like? Samples of the shipped networks at 5, 10 and 20 calls beside the certified ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies
from experiments.models.problems import steps_for
from experiments.models.studies import Study

NAME = "network_samples"
QUESTION = "What do samples of the shipped networks look like at 5, 10 and 20 calls, beside the certified ones?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["digits8", "digits8_flow", "mnist28"],
    "solvers": {"ddim": "rho7", "tab3": "t2", "rhoab3": "rho7", "dpmpp_2m": "logrho", "unipc3_bh2_x0": "logrho",
                "edm_heun": "rho7"},
    "calls": [5, 10, 20],
    "shown": 6,
    "choices": {
        "shown": "the first ones, the same noise in every row; none was chosen",
        "mean": "mean |x - x*| per pixel over the samples shown, x* the certified sample; images in [-1, 1]",
        "grids": "customary ones",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["digits8", "digits8_flow"], "samples": 8, "calls": [5, 10],
                 "shown": 3}  # fmt: skip
THOROUGH: Config = {"shown": 16}
CERTIFIED = "certified"


def compute(config: Config, progress: Progress) -> Frame:
    """One row per image: model, solver, calls, sample, its grey levels as bytes in hexadecimal, its mean |x - x*|."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        study = studies.on_its_own_process(name, config)
        found = study.certified()
        truth = np.asarray(found.states[-1].cpu())[: config["shown"]]
        few = study.first(config["shown"])

        rows += _rows(study, CERTIFIED, 0, found.nfe, truth, truth)
        for solver, kind in config["solvers"].items():
            for calls in config["calls"]:
                steps = steps_for(solver, calls)
                if steps:
                    ts = da.grid(study.process, steps, kind)
                    nfe = da.build(solver, study.process, ts).nfe
                    rows += _rows(study, solver, calls, nfe, np.asarray(few.solve(solver, ts).cpu()), truth)
        progress((done + 1) / len(config["models"]))
    return pd.DataFrame(rows)


def _rows(study: Study, solver: str, calls: int, nfe: int, x: Array, truth: Array) -> list[dict[str, Any]]:
    """A row per image of x, (n, d)."""
    assert study.network is not None
    channels, height, _ = study.network.shape
    errors = np.abs(x - truth).mean(axis=1)
    return [
        {"model": study.name, "title": study.title, "channels": channels, "height": height, "solver": solver,
         "calls": calls, "nfe": nfe, "sample": i, "mean": float(error), "pixels": hexed(image)}
        for i, (image, error) in enumerate(zip(x, errors, strict=True))
    ]  # fmt: skip


def hexed(image: Array) -> str:
    """Pixels in [-1, 1], clipped to it, as grey levels 0 … 255 in hexadecimal."""
    return np.clip(127.5 * (image + 1.0), 0.0, 255.0).round().astype(np.uint8).tobytes().hex()


def image_of(row: Any) -> Array:
    """(height, width) or (height, width, 3) grey levels of a row."""
    levels = np.frombuffer(bytes.fromhex(row.pixels), np.uint8)
    return levels.reshape(int(row.channels), int(row.height), -1).transpose(1, 2, 0).squeeze()


def means(frame: Frame) -> Frame:
    """Mean |x - x*| over the samples shown: rows (model, calls, solver)."""
    return frame[frame.solver != CERTIFIED].groupby(["model", "calls", "solver"])["mean"].mean()


def verdict(frame: Frame, config: Config) -> str:
    """Per network, the least and the largest mean difference from the certified samples at each number of calls."""
    found, parts = means(frame), []
    for name in dict.fromkeys(frame.model):
        cells = []
        for calls in config["calls"]:
            at = found[name, calls].sort_values()
            cells.append(
                f"{style.as_text(at.iloc[0])} ({at.index[0]}) to {style.as_text(at.iloc[-1])} ({at.index[-1]})"
            )
        parts.append(f"{name} {', '.join(cells)}")
    return (
        f"Mean |x - x*| per pixel of the {config['shown']} samples shown, at {', '.join(map(str, config['calls']))} "
        f"calls, least to largest of {len(config['solvers'])} samplers: {'; '.join(parts)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A block per network: the certified samples on top, then a row per sampler, a group of columns per calls."""
    names = list(dict.fromkeys(frame.model))
    few = min(config["calls"])
    found = means(frame)
    worst = max(names, key=lambda name: float(found[name, few].max()))
    headline = (
        f"At {few} calls samples differ from the certified ones by up to {style.as_text(found[worst, few].max())} per "
        f"pixel ({found[worst, few].idxmax()}, {worst}), at {max(config['calls'])} by at most "
        f"{style.as_text(max(found[name, max(config['calls'])].max() for name in names))}"
    )
    note = (
        f"The same {config['shown']} noises in every row; images in [-1, 1]; numbers: mean |x - x*| per pixel over the "
        "samples shown. Each sampler on its customary grid; top rows: certified flow of the same network."
    )
    count = 1 + len(config["solvers"])
    block = 0.62 * count + 0.9
    fig = style.new_figure(13.5, 1.1 + block * len(names), headline, note)
    top = style.body(fig, extra_top=0.1)["top"] * fig.get_size_inches()[1]
    for i, name in enumerate(names):
        high = fig.get_size_inches()[1]
        ax = fig.add_axes((0.09, (top - (i + 1) * block + 0.2) / high, 0.9, (block - 0.25) / high))
        _block(ax, frame[frame.model == name], found[name], config)
    return fig


def _block(ax: Any, frame: Frame, found: Any, config: Config) -> None:
    size, shown = int(frame.height.iloc[0]), config["shown"]
    gap, apart = max(1, size // 8), int(1.6 * size)
    rows = [CERTIFIED, *config["solvers"]]
    width = shown * (size + gap)
    grey = frame.channels.iloc[0] == 1
    for c, calls in enumerate(config["calls"]):
        left = c * (width + apart)
        ax.text(left + width / 2, -0.35 * size, f"{calls} calls", ha="center", va="bottom", fontsize=10)
        for r, solver in enumerate(rows):
            part = frame[(frame.solver == solver) & frame.calls.isin((0, calls))]
            for _, row in part.iterrows():
                x, y = left + row["sample"] * (size + gap), r * (size + gap)
                ax.imshow(image_of(row), extent=(x, x + size, y + size, y), interpolation="nearest",
                          **({"cmap": "gray_r", "vmin": 0, "vmax": 255} if grey else {}))  # fmt: skip
            if solver != CERTIFIED and (calls, solver) in found.index:
                ax.text(left + width + 0.05 * size, (r + 0.5) * (size + gap), style.as_text(found[calls, solver]),
                        va="center", fontsize=8.5, color="#555555")  # fmt: skip
    for r, solver in enumerate(rows):
        colour = style.BLACK if solver == CERTIFIED else style.family(solver)[0]
        ax.text(-0.3 * size, (r + 0.5) * (size + gap), solver, ha="right", va="center", fontsize=9.5, color=colour)
    ax.text(-gap, -1.1 * size, str(frame.title.iloc[0]), va="bottom", fontsize=10.5)
    ax.set(xlim=(-gap, len(config["calls"]) * (width + apart)), ylim=(len(rows) * (size + gap), -1.9 * size))
    ax.set_aspect("equal")
    ax.set_axis_off()
