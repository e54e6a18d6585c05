r"""Folders of diffusers: the network by its config.json, the process by the scheduler's.

==================================  =====================================  ==============================
scheduler                           process                                the network is told
==================================  =====================================  ==============================
any with ``alphas_cumprod`` (DDPM,  `VPDiscrete` of those levels           the level, 0 … n − 1
DDIM, DPM-Solver, UniPC, Euler …)
``FlowMatch…``, flow sigmas         `RectifiedFlow`, v = ε − x₀            n t, n = num_train_timesteps
``ScoreSdeVeScheduler``             `EDM`: α = 1, t = σ; the score         σ
==================================  =====================================  ==============================

``shift`` of a flow scheduler moves the times of a sampling grid, not the process. Levels that end at ᾱ = 0
(``rescale_betas_zero_snr``) end here, with a warning, at a quarter of the last level but one: ρ and λ are infinite at
0. diffusers' Euler, UniPC and DPM-Solver++ put 2⁻²⁴ there, which may lie above the level before it; then too.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deis_analysis.lazy import extra
from deis_analysis.networks.folder import CARD, process_from
from deis_analysis.networks.guided import Called, Guidance, read_guidance
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Process
from deis_analysis.process.schedules import EDM, RectifiedFlow, VPDiscrete
from deis_analysis.validate import choose

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_PARTS = ("", "unet", "transformer")


@dataclass(frozen=True)
class Found:
    """A network that was found, and what is known of it; None where nothing is.

    Attributes:
        net: as `ImageModel` calls it. architecture: what names it beside its weights.
        integers: whether it takes integer times only.
    """

    net: torch.nn.Module
    name: str
    process: Process | None = None
    convention: Convention | None = None
    shape: tuple[int, int, int] | None = None
    guidance: Guidance | None = None
    card: dict[str, Any] | None = None
    architecture: str | None = None
    integers: bool = False


def read_folder(
    folder: Path, name: str, labels: Any, guidance: float, shape: Any, dtype: torch.dtype, sampled: bool = True
) -> Found:
    """The network of a folder: ours with its card, of one network, or of a pipeline; process unknown without scheduler.

    Args:
        sampled: whether process and convention are looked for.

    Raises:
        ValueError: a part is missing, cannot be read or is of an unsupported class.
    """
    place = next((folder / part for part in _PARTS if (folder / part / "config.json").is_file()), None)
    if place is None:
        raise ValueError(
            f"spec={name!r}: the folder holds no config.json; allowed: folders that diffusers' save_pretrained wrote, "
            "of a network, or of a pipeline with unet or transformer"
        )
    net = _network(place, name, dtype)
    found = wrap_network(net, name, labels, guidance, shape)
    card = read_json(folder / CARD, name) if (folder / CARD).is_file() else None
    process, convention = None, None
    if sampled:
        process, convention = _from_card(card, name) if card is not None else _from_scheduler(folder, name)
    return Found(
        found.net, name, process, convention, found.shape, found.guidance, card, found.architecture, found.integers
    )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """An object of JSON; ValueError that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"spec={name!r}: {path.name} cannot be read ({in_one_line(error)})") from error
    if not isinstance(values, dict):
        raise ValueError(f"spec={name!r}: {path.name} is no JSON object")
    return values


def in_one_line(error: BaseException) -> str:
    """What an error says, or how it begins, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# -- the network ----------------------------------------------------------------------------------
def _network(place: Path, name: str, dtype: torch.dtype) -> torch.nn.Module:
    with extra("models"):
        import diffusers

    kind = read_json(place / "config.json", name).get("_class_name")
    if kind not in NETWORKS:
        raise ValueError(
            f"spec={name!r}: its network is a {kind}, which is called with more than x, a time and a label, or in "
            f"another way; allowed: {', '.join(NETWORKS)}, or a function f(input, network_time) around it with "
            "process=, convention= and shape="
        )
    try:
        net, info = getattr(diffusers, kind).from_pretrained(
            place, low_cpu_mem_usage=False, output_loading_info=True, local_files_only=True, torch_dtype=dtype
        )
    except Exception as error:  # of diffusers, by whatever is in the folder
        raise ValueError(f"spec={name!r}: the weights cannot be read ({in_one_line(error)})") from error
    wrong = {k: info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]}
    if wrong:
        said = "; ".join(f"{k.replace('_', ' ')}: {v[0]} ({len(v)} in all)" for k, v in wrong.items())
        raise ValueError(f"spec={name!r}: the weights are not those of config.json ({said})")
    return net


def wrap_network(net: Any, name: str, labels: Any, guidance: float, shape: Any) -> Found:
    """A network of diffusers under its labels, shape and learned variance by its config."""
    config = net.config
    channels, size = config["in_channels"], config["sample_size"]
    sizes = [size] if isinstance(size, int) else size
    if size is not None and not (isinstance(sizes, (list, tuple)) and all(isinstance(n, int) for n in sizes)):
        raise ValueError(f"spec={name!r}: sample_size={size!r} of its config; allowed: an integer, or two")
    answered = config["out_channels"] or channels
    if answered not in (channels, 2 * channels):
        raise ValueError(f"spec={name!r}: {channels} channels in and {answered} out; allowed: as many, or twice (the "
                         "first half is taken)")  # fmt: skip
    if shape is None:
        if size is None:
            raise ValueError(f"shape=None: config.json has no sample_size; allowed: ({channels}, height, width)")
        shape = (channels, *((size, size) if isinstance(size, int) else size))
    if shape[0] != channels:
        raise ValueError(f"shape={shape!r}: the network has {channels} channels")
    given, codes, null = _labels(net, labels, guidance)
    integers = config.get("time_embedding_type") == "learned"
    architecture = _architecture(net)
    if given is not None or answered != channels or integers:
        net = Called(
            net,
            codes=codes,
            null=null,
            scale=1.0 if given is None else given.scale,
            channels=channels,
            integers=integers,
            options={"return_dict": False},
        )
    return Found(net, name, shape=shape, guidance=given, architecture=architecture, integers=integers)


def _architecture(net: Any) -> str:
    """Class and config as text, without what is the default: new versions of diffusers add options."""
    options = inspect.signature(type(net).__init__).parameters
    given = {k: v for k, v in dict(net.config).items() if k in options}
    told = {k: v for k, v in given.items() if json.dumps(v, default=str) != json.dumps(options[k].default, default=str)}
    return json.dumps([type(net).__name__, told], sort_keys=True, default=str)


def _labels(net: Any, labels: Any, guidance: float) -> tuple[Guidance | None, Any, Any]:
    """(guidance, codes, null code). The null label of a DiT follows its classes; that of a UNet is its last one."""
    config = net.config
    if type(net).__name__ == "DiTTransformer2DModel":
        null = config["num_embeds_ada_norm"]
        given = read_guidance(labels, guidance, null, null)
    else:
        if config["class_embed_type"] is not None:
            kind = config["class_embed_type"]
            raise ValueError(f"class_embed_type={kind!r} of the network; allowed: None, a table of num_class_embeds")
        classes = config["num_class_embeds"] or 0
        null = classes - 1
        given = read_guidance(labels, guidance, classes)
    if given is None:
        return None, None, None
    values = [given.labels] if isinstance(given.labels, int) else list(given.labels)
    return given, torch.tensor(values), torch.tensor([null])


# -- the process ----------------------------------------------------------------------------------
def _from_card(card: Mapping[str, Any], name: str) -> tuple[Process, Convention]:
    try:
        return process_from(card["process"]), Convention.from_card(card["convention"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"spec={name!r}: {CARD} lacks or misstates {error}") from error


def _from_scheduler(folder: Path, name: str) -> tuple[Process | None, Convention | None]:
    places = [p for p in (folder, folder / "scheduler", folder.parent / "scheduler")
              if (p / "scheduler_config.json").is_file()]  # fmt: skip
    if not places:
        return None, None
    with extra("models"):
        import diffusers

    kind = str(read_json(places[0] / "scheduler_config.json", name).get("_class_name"))
    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    choose("scheduler", kind, known)
    try:
        scheduler = getattr(diffusers, kind).from_pretrained(places[0])
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"spec={name!r}: its {kind} cannot be made ({in_one_line(error)})") from error
    return scheduler_process(scheduler)


def scheduler_process(scheduler: Any) -> tuple[Process, Convention]:
    """(process, convention) of the networks that a scheduler of diffusers is made for.

    Raises:
        ValueError: it is none of the module's table, or has a prediction type that is not known.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    predicted = config.get("prediction_type")
    if kind.startswith("FlowMatch") or config.get("use_flow_sigmas") or predicted == "flow_prediction":
        return RectifiedFlow(), Convention("v", scale=float(config["num_train_timesteps"]))
    if kind == "ScoreSdeVeScheduler":
        return EDM(float(config["sigma_min"]), float(config["sigma_max"])), Convention("score", scale=1.0)
    if getattr(scheduler, "alphas_cumprod", None) is None or kind.startswith(("EDM", "Cosine")):
        raise ValueError(
            f"scheduler={kind!r}: its networks' convention is none of ours; allowed: schedulers with alphas_cumprod, "
            "FlowMatch..., ScoreSdeVeScheduler; or pass process= and convention="
        )
    prediction = _PREDICTIONS[choose("prediction_type", predicted or "epsilon", _PREDICTIONS)]
    levels = scheduler.alphas_cumprod.double().numpy().copy()
    if config.get("rescale_betas_zero_snr") and not 0.0 < levels[-1] < levels[-2]:
        said = f"the levels of {kind} end at alphas_cumprod={levels[-1]:.3g} after {levels[-2]:.3g}"
        levels[-1] = 0.25 * levels[-2]
        warnings.warn(f"{said}; they are taken to end at {levels[-1]:.3g}")
    return VPDiscrete(levels), Convention(prediction, scale=1.0)
