"""The folder that a network is kept in: diffusers' own, with a card beside it that says what the network is."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis.lazy import extra
from deis_analysis.networks.convention import NETWORK_TIMES
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM, VE, RectifiedFlow, SubVP, VPCosine, VPDiscrete, VPLinear
from deis_analysis.storage import write_text
from deis_analysis.validate import checked, choose, shown

PROCESSES = {cls.__name__: cls for cls in (VPLinear, VPCosine, VPDiscrete, SubVP, VE, EDM, RectifiedFlow)}
CARD = "card.json"
PART = "15MB"  # largest file of weights
_DDIM_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@checked
def describe_process(process: Process) -> dict[str, Any]:
    """A process as JSON-able values: its name and the arguments that make it; ValueError for one of no listed class."""
    choose("process", type(process).__name__, PROCESSES)
    values = {name: getattr(process, name) for name in inspect.signature(type(process)).parameters}
    return {"name": type(process).__name__} | {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()
    }


def process_from(description: Mapping[str, Any]) -> Process:
    """The process of `describe_process`; ValueError for an unknown name or argument."""
    if not isinstance(description, Mapping):
        raise ValueError(f"description={shown(description)} must be a mapping")
    arguments = dict(description)
    name = choose("process", arguments.pop("name", None), PROCESSES)
    try:
        return PROCESSES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"process={dict(description)!r}: {error}") from error


def equivalent_scheduler(process: Process, convention: Convention) -> tuple[Any | None, str]:
    """(diffusers' scheduler under which a network samples as it was trained, or None; what is to be known of it).

    `RectifiedFlow` and `VPDiscrete` have theirs. A variance-preserving process of real time has one at integer network
    times.
    """
    with extra("models"):
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    prediction, plain = convention.prediction, convention.time == "t" and convention.offset == 0
    scheduler: Any
    whole = convention.scale >= 1 and float(convention.scale).is_integer()
    if isinstance(process, RectifiedFlow) and prediction == "v" and plain and whole:
        scheduler = FlowMatchEulerDiscreteScheduler(int(convention.scale), shift=1.0)
        return scheduler, f"exact: sigma = t, network time {convention.scale:g} t"
    if isinstance(process, VPDiscrete) and plain and convention.scale == 1 and prediction in _DDIM_NAMES:
        levels = process.alphas_cumprod
        scheduler = DDIMScheduler(
            levels.size,
            trained_betas=(1.0 - levels / np.append(1.0, levels[:-1])).tolist(),
            prediction_type=_DDIM_NAMES[prediction],
            clip_sample=False,
            timestep_spacing="trailing",
        )
        return scheduler, f"its {levels.size} levels, in float32"
    if process.variance_preserving and plain and not isinstance(process, VPDiscrete) and prediction in _DDIM_NAMES:
        count = math.floor(min(process.t_max * convention.scale, NETWORK_TIMES - 1)) + 1
        levels = np.maximum(np.arange(count), 0.5) / convention.scale  # DDIM divides by the noise at 0, where none is
        scheduler = DDIMScheduler(
            count,
            trained_betas=_betas(process, levels).tolist(),
            prediction_type=_DDIM_NAMES[prediction],
            clip_sample=False,
            timestep_spacing="trailing",
        )
        return scheduler, f"the process at network times 1 ... {count - 1}, in float32; its level at 0 is that of 1/2"
    return None, "no scheduler of diffusers has these levels and this convention; sample with the process of this card"


def _betas(process: Process, levels: Array) -> Array:
    """β_n = 1 − α²(t_n)/α²(t_{n−1}), and β_0 = 1 − α²(t_0), with log α² = −log(1 + ρ²), which does not cancel."""
    return -np.expm1(-np.diff(np.log1p(process.rho(levels) ** 2), prepend=0.0))


def save_folder(
    folder: Path, net: Any, process: Process, convention: Convention, card: Mapping[str, Any], half: bool = False
) -> None:
    """Write ``net`` (``save_pretrained``, parts of at most 15 MB), its scheduler where there is one, and the card last.

    The card is ``card`` and the entries ``process``, ``convention``, ``scheduler`` and ``network``; it is there only if
    all else is.

    Args:
        half: write the weights in float16.
    """
    (folder / CARD).unlink(missing_ok=True)
    for leftover in [*folder.glob("diffusion_pytorch_model*"), folder / "scheduler_config.json"]:
        leftover.unlink(missing_ok=True)
    scheduler, note = equivalent_scheduler(process, convention)
    dtype, count = next(net.parameters()).dtype, sum(p.numel() for p in net.parameters())
    (copy.deepcopy(net).half() if half else net).save_pretrained(folder, max_shard_size=PART)
    if scheduler is not None:
        scheduler.save_pretrained(folder)
    whole = {
        **card,
        "process": describe_process(process),
        "convention": convention.card(),
        "scheduler": {"class": type(scheduler).__name__ if scheduler else None, "note": note},
        "network": {
            "class": type(net).__name__,
            "parameters": count,
            "dtype": "float16" if half else str(dtype).removeprefix("torch."),
        },
    }
    write_text(folder / CARD, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
