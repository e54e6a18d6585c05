"""What do the errors look like? Samples of the shipped networks at 5, 10 and 20 calls beside the certified ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
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
    """The last network at each number of calls, with what each sample lacks; the others at the fewest calls."""
    names = list(dict.fromkeys(frame.model))
    last, few, found = names[-1], min(config["calls"]), means(frame)
    best = found[last, few]
    headline = (
        f"At {few} calls the nearest samples of {last}, {best.idxmin()}'s, are {style.as_text(best.min())} per pixel "
        "from the certified ones"
    )
    note = (
        f"The same {config['shown']} noises in every row; images in [-1, 1]; numbers: mean |x - x*| per pixel over the "
        "samples shown. Each sampler on its customary grid; top rows: certified flow of the same network. Below each "
        "row of samples the difference from the certified ones, red where there is more ink, blue where less."
    )
    rows = [CERTIFIED, *config["solvers"]]
    upper, lower = 0.275 * (2 * len(rows) - 1) + 0.3, 0.3 * len(rows) + 0.5
    fig = panels.sheet(headline, note, upper + (lower if len(names) > 1 else 0.0))
    width, height = fig.get_size_inches()
    top = fig.subplotpars.top * height

    def place(left: float, down: float, wide: float, tall: float) -> Any:
        return fig.add_axes((left / width, (top - down - tall) / height, wide / width, tall / height))

    wide = (width - 1.05) / len(config["calls"])
    for c, calls in enumerate(config["calls"]):
        ax = place(0.98 + c * wide, 0.0, wide - 0.08, upper - 0.05)
        part = frame[(frame.model == last) & frame.calls.isin((0, calls))]
        _block(ax, part, found[last, calls], f"{last}, {calls} calls", rows, True, c == 0)
    wide = (width - 1.05) / max(len(names) - 1, 2)
    for i, name in enumerate(names[:-1]):
        ax = place(0.98 + i * wide, upper, wide - 0.08, lower - 0.05)
        part = frame[(frame.model == name) & frame.calls.isin((0, few))]
        _block(ax, part, found[name, few], f"{name}, {few} calls", rows, False, i == 0)
    return fig


def _block(ax: Any, frame: Frame, found: Any, title: str, rows: list[str], apart: bool, named: bool) -> None:
    """Samples at one number of calls, a row per sampler; ``apart``: and a row of differences below each."""
    size, shown = int(frame.height.iloc[0]), int(frame["sample"].max()) + 1
    step = size + max(1, size // 8)
    truth = {row["sample"]: image_of(row) for _, row in frame[frame.solver == CERTIFIED].iterrows()}
    grey = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if frame.channels.iloc[0] == 1 else {}
    y = 0
    for solver in rows:
        for _, row in frame[frame.solver == solver].iterrows():
            x, image = row["sample"] * step, image_of(row)
            ax.imshow(image, extent=(x, x + size, y + size, y), interpolation="nearest", **grey)
            if apart and solver != CERTIFIED:
                gap = image.astype(float) - truth[row["sample"]]
                ax.imshow(gap if grey else gap.mean(axis=2), extent=(x, x + size, y + step + size, y + step),
                          interpolation="nearest", cmap="RdBu_r", vmin=-255, vmax=255)  # fmt: skip
        if solver in found.index:
            ax.text(shown * step, y + step / 2, style.as_text(found[solver]), va="center", fontsize=panels.SMALL,
                    color="#555555")  # fmt: skip
        if named:
            colour = style.BLACK if solver == CERTIFIED else style.family(solver)[0]
            ax.text(-0.2 * size, y + step / 2, solver, ha="right", va="center", fontsize=panels.TICKS, color=colour)
        y += step if solver == CERTIFIED or not apart else 2 * step
    ax.text(0, -0.2 * size, title, va="bottom", fontsize=8.5)
    ax.set(xlim=(0, (shown + 1.1) * step), ylim=(y, -0.8 * size))
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
