"""What do the errors look like? Samples of the shipped networks at 5, 10 and 20 calls beside the certified ones."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.frames import at
from experiments.models import studies

NAME = "network_samples"
QUESTION = "What do samples of the shipped networks look like at 5, 10 and 20 calls, beside the certified ones?"
CONFIG: Config = {
    **studies.BASE, "models": ["digits8", "digits8_flow", "mnist28"],
    "solvers": cells.CUSTOMARY, "calls": [5, 10, 20], "shown": 6,
    "choices": {
        "shown": "the first ones, the same noise in every row; none was chosen",
        "mean": "mean |x - x*| per pixel over the samples shown, x* the certified sample; images in [-1, 1]",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "models": ["digits8", "digits8_flow"], "samples": 8, "calls": [5, 10],
                 "shown": 3}  # fmt: skip
THOROUGH: Config = {"shown": 16}
CERTIFIED = "certified"


def compute(config: Config, progress: Progress) -> Frame:
    """One row per image: model, solver, calls, sample, its grey levels as bytes in hexadecimal, its mean |x - x*|."""
    solvers, rows = config["solvers"], []
    for done, name in enumerate(config["models"]):
        study, part = studies.on_its_own_process(name, config), cells.part_of(progress, done, len(config["models"]))
        assert study.network is not None
        flow, few, (channels, height, _) = study.certified(), study.first(config["shown"]), study.network.shape
        truth = flow.states[-1][: config["shown"]].cpu()
        swept = cells.sweep(
            few, solvers, cells.each_on(solvers), config["calls"], lambda x: {"x": x.cpu()}, progress=part
        )
        row = {"model": name, "title": study.title, "channels": channels, "height": height}
        rows += [{**row, **{key: cell[key] for key in ("solver", "calls", "nfe")}, "sample": i,
                  "mean": float(abs(image - truth[i]).mean()), "pixels": hexed(image.numpy())}
                 for cell in ({"solver": CERTIFIED, "calls": 0, "nfe": flow.nfe, "x": truth}, *swept)
                 for i, image in enumerate(cell["x"])]  # fmt: skip
    return pd.DataFrame(rows)


def hexed(image: Array) -> str:
    """Pixels in [-1, 1], clipped to it, as grey levels 0 … 255 in hexadecimal."""
    return np.clip(127.5 * (image + 1.0), 0.0, 255.0).round().astype(np.uint8).tobytes().hex()


def image_of(row: Any) -> Array:
    """(height, width) or (height, width, 3) grey levels of a row."""
    levels = np.frombuffer(bytes.fromhex(row.pixels), np.uint8)
    return levels.reshape(int(row.channels), int(row.height), -1).transpose(1, 2, 0).squeeze()


def means(frame: Frame, model: str, calls: int) -> Any:
    """Solver → mean |x - x*| over the samples shown, the least first."""
    return at(frame, model=model, calls=calls).groupby("solver")["mean"].mean().sort_values()


def headline(frame: Frame, config: Config) -> str:
    """The nearest samples of the last network at the fewest calls."""
    last, few = frame.model.iloc[-1], min(config["calls"])
    nearest = means(frame, last, few)
    return (
        f"At {few} calls the nearest samples of {last}, {nearest.index[0]}'s, are {style.as_text(nearest.iloc[0])} per "
        "pixel from the certified ones"
    )


def verdict(frame: Frame, config: Config) -> str:
    """Of the last network, the least and the largest mean difference from the certified samples at each calls."""
    told = []
    for calls in config["calls"]:
        ends = means(frame, frame.model.iloc[-1], calls).iloc[[0, -1]].map(style.as_text)
        told.append(f"at {calls} calls " + " to ".join(f"{mean} ({solver})" for solver, mean in ends.items()))
    samplers = f"{len(config['solvers'])} samplers, least to largest"
    return f"{headline(frame, config)}; mean |x - x*| of {config['shown']} samples by {samplers}: {'; '.join(told)}."


def draw(frame: Frame, config: Config) -> Figure:
    """The last network at each number of calls, with what each sample lacks; the others at the fewest calls."""
    *others, last = frame.model.unique()
    note = (
        f"The same {config['shown']} noises in every row; images in [-1, 1]; numbers: mean |x - x*| per pixel over the "
        "samples shown. Each sampler on its customary grid; top rows: certified flow of the same network. Below each "
        "row of samples the difference from the certified ones, red where there is more ink, blue where less."
    )
    rows = [CERTIFIED, *config["solvers"]]
    upper, lower = 0.275 * (2 * len(rows) - 1) + 0.3, 0.3 * len(rows) + 0.5
    fig = panels.sheet(headline(frame, config), note, upper + (lower if others else 0.0))
    width, height = fig.get_size_inches()
    for names, counts, down, tall in (
        ([last], config["calls"], 0.0, upper),
        (others, config["calls"][:1], upper, lower),
    ):
        wide = (width - 1.05) / max(len(names) * len(counts), 2)
        for i, (name, calls) in enumerate(product(names, counts)):
            bottom = fig.subplotpars.top - (down + tall - 0.05) / height
            ax = fig.add_axes(((0.98 + i * wide) / width, bottom, (wide - 0.08) / width, (tall - 0.05) / height))
            _block(ax, at(frame, model=name, calls=[0, calls]), f"{name}, {calls} calls", rows, name == last, i == 0)
    return fig


def _block(ax: Any, frame: Frame, title: str, rows: list[str], apart: bool, named: bool) -> None:
    """Samples at one number of calls, a row per sampler; ``apart``: and a row of differences below each."""
    size, shown = int(frame.height.iloc[0]), int(frame["sample"].max()) + 1
    step, y = size + max(1, size // 8), 0
    images = {(row.solver, row.sample): image_of(row) for row in frame.itertuples()}
    grey = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if frame.channels.iloc[0] == 1 else {}

    def tile(image: Array, i: int, y: int, **look: Any) -> None:
        ax.imshow(image, extent=(i * step, i * step + size, y + size, y), interpolation="nearest", **look)

    for solver in rows:
        below = apart and solver != CERTIFIED
        for i in range(shown if (solver, 0) in images else 0):
            tile(images[solver, i], i, y, **grey)
            if below:
                gap = images[solver, i].astype(float) - images[CERTIFIED, i]
                tile(gap if grey else gap.mean(axis=2), i, y + step, cmap="RdBu_r", vmin=-255, vmax=255)
        if solver != CERTIFIED and (solver, 0) in images:
            mean = style.as_text(at(frame, solver=solver)["mean"].mean())
            ax.text(shown * step, y + step / 2, mean, va="center", fontsize=panels.SMALL, color="#555555")
        if named:
            colour = style.BLACK if solver == CERTIFIED else style.family(solver)[0]
            ax.text(-0.2 * size, y + step / 2, solver, ha="right", va="center", fontsize=panels.TICKS, color=colour)
        y += 2 * step if below else step
    ax.text(0, -0.2 * size, title, va="bottom", fontsize=8.5)
    ax.set(xlim=(0, (shown + 1.1) * step), ylim=(y, -0.8 * size))
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
