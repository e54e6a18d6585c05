"""Networks that ship with the project and networks that users have: `load`."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deis_analysis.lazy import extra
from deis_analysis.networks.checkpoint_files import PICKLES, WEIGHTS, read_pickle, read_weights
from deis_analysis.networks.diffusers_folder import (
    NETWORKS,
    Found,
    in_one_line,
    read_folder,
    scheduler_process,
    wrap_network,
)
from deis_analysis.networks.folder import CARD
from deis_analysis.networks.guided import Called, read_guidance
from deis_analysis.networks.network import DTYPES, Network, assembled, placed, usable
from deis_analysis.networks.times import ROUNDINGS
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Process, require_process
from deis_analysis.process.schedules import EDM
from deis_analysis.validate import boolean, choose, instance, positive_int, shown

CHECKPOINTS = Path(__file__).with_name("checkpoints")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ALLOWED = "a shipped name, a folder, a hub id OWNER/NAME, a checkpoint file, a pipeline, a torch module or a function"
_SMALL_FILES = [f"{part}{name}" for part in ("", "unet/", "transformer/", "scheduler/")
                for name in ("*config.json", "*.index.json", "card.json", "model_index.json")]  # fmt: skip


def load(
    spec: Any,
    *,
    device: Any = "cpu",
    dtype: torch.dtype = torch.float32,
    process: Process | None = None,
    convention: Convention | None = None,
    shape: tuple[int, int, int] | None = None,
    times: str = "fractional",
    labels: Any = None,
    guidance: float = 1.0,
    factory: Callable[[], torch.nn.Module] | None = None,
    allow_pickle: bool = False,
) -> Network:
    """A network as a model of its process, frozen and in evaluation mode.

    ==========================  ===============================================================================
    ``spec``                    what is known of it
    ==========================  ===============================================================================
    shipped name                all: "digits8" and what else lies in ``networks/checkpoints``
    folder                      all, from ``card.json`` or the scheduler of diffusers (see `diffusers_folder`)
    hub id ``OWNER/NAME``       as of a folder; it is downloaded, once, without other parts of a pipeline
    ``.pkl`` of NVlabs/edm      all; reading it runs code that it brings along
    ``.pt .pth .ckpt .bin``     nothing: ``process``, ``convention``, ``shape`` and ``factory`` are needed
    ``.safetensors``
    pipeline of diffusers       all, from its network and its scheduler; a live object
    module or function          nothing: ``process``, ``convention`` and ``shape``; f(input, network_time)
    ==========================  ===============================================================================

    Args:
        device, dtype: of the weights. A module is copied first. A function computes in the dtype of x.
        process, convention: what it was trained on and is told, if not known or not as its folder says.
        shape: (channels, height, width).
        times: "fractional" asks the network at real network times, "nearest" at integers and "linear" between the
            answers at two integers: see `times`.
        labels: of a class-conditional network, one, or one for each sample.
        guidance: classifier-free guidance w, see `guided`. No class is the label after the last one of a DiT, the last
            one of a UNet and the zero vector of EDM.
        factory: makes the module whose weights a checkpoint file holds.
        allow_pickle: whether a pickle may be read.

    Raises:
        ValueError: anything missing, damaged, unknown or not fitting together; the network fails at ``shape``.
    """
    usable(device)
    if not any(dtype is known for known in DTYPES):
        raise ValueError(f"dtype={shown(dtype)}; allowed: {', '.join(map(str, DTYPES))}")
    choose("times", times, ROUNDINGS)
    boolean("allow_pickle", allow_pickle)
    if process is not None:
        require_process(process)
    if convention is not None:
        instance("convention", convention, Convention)
    size = None if shape is None else _checked_shape(shape)
    sampled = process is None or convention is None
    found = _find(spec, dtype, size, labels, guidance, factory, allow_pickle, sampled)
    found = replace(found, process=process or found.process, convention=convention or found.convention)
    if size is not None and found.shape is not None and found.shape != size:
        raise ValueError(f"shape={shape!r}: {found.name!r} takes {found.shape}")
    given = {"process": found.process, "convention": found.convention, "shape": found.shape or size}
    missing = [f"{name}=" for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"spec={found.name!r} does not say all of itself; {', '.join(missing)} must be given")
    return _made(found, given, device, dtype, times)


def _made(found: Found, given: dict[str, Any], device: Any, dtype: torch.dtype, times: str) -> Network:
    convention, process = given["convention"], given["process"]
    if found.integers and times == "fractional":
        raise ValueError("times='fractional': the network has a table of integer times; allowed: nearest, linear")
    if times != "fractional" and isinstance(process, EDM) and convention.time == "t":
        raise ValueError(f"times={times!r}: the network is told σ, of which integers are few; allowed: fractional")
    return assembled(
        placed(found.net, device, dtype), convention, process, given["shape"], found.name, times=times,
        guidance=found.guidance, card=found.card, architecture=found.architecture,
    )  # fmt: skip


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"shape={shape!r}; allowed: (channels, height, width)")
    channels, height, width = (positive_int("shape", n) for n in shape)
    return channels, height, width


# -- where it is ----------------------------------------------------------------------------------
def _find(
    spec: Any,
    dtype: torch.dtype,
    shape: tuple[int, int, int] | None,
    labels: Any,
    guidance: float,
    factory: Callable[[], torch.nn.Module] | None,
    allow_pickle: bool,
    sampled: bool,
) -> Found:
    pipeline = _network_of(spec)
    if pipeline is not None:
        found = _find(pipeline, dtype, shape, labels, guidance, factory, allow_pickle, False)
        known = scheduler_process(spec.scheduler) if sampled else (None, None)
        return replace(found, name=type(spec).__name__, process=known[0], convention=known[1])
    path = None if callable(spec) else _located(spec)
    if factory is not None and (path is None or path.suffix not in WEIGHTS):
        raise ValueError(f"factory={factory!r} is for files of weights, {', '.join(WEIGHTS)}; spec={spec!r}")
    if path is None and callable(spec):
        return _given(copy.deepcopy(spec), _name_of(spec), labels, guidance, shape)
    if path is not None and path.suffix in PICKLES and path.is_file():
        return read_pickle(path, labels, guidance, allow_pickle)
    if path is not None and path.suffix in WEIGHTS and path.is_file():
        return _given(read_weights(path, factory), path.stem, labels, guidance, shape)
    if path is not None and path.is_file():
        raise ValueError(f"spec={path.name!r}: allowed files are {', '.join((*PICKLES, *WEIGHTS))}")
    name = path.resolve().name if path is not None else spec
    return read_folder(path or _downloaded(spec), name, labels, guidance, shape, dtype, sampled)


def _network_of(spec: Any) -> Any:
    """The network of a pipeline of diffusers, a live one; None for anything else."""
    if isinstance(spec, (str, Path, torch.nn.Module)) or getattr(spec, "scheduler", None) is None:
        return None
    return getattr(spec, "unet", None) or getattr(spec, "transformer", None)


def shipped() -> dict[str, Path]:
    """The folders of the networks that ship with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob(f"*/{CARD}"))}


_LONGEST = 4096


def _located(spec: Any) -> Path | None:
    """The path that ``spec`` names, None for a hub id; ValueError for anything else."""
    if isinstance(spec, (str, Path)) and len(str(spec)) > _LONGEST:
        raise ValueError(f"spec={shown(spec)} is too long for a path")
    if isinstance(spec, Path):
        if not spec.exists():
            raise ValueError(f"spec={str(spec)!r}: there is no such folder or file")
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"spec={shown(spec)} is unknown; allowed: {_ALLOWED}")
    names = shipped()
    if spec in names:
        return names[spec]
    if spec and Path(spec).exists():
        return Path(spec)
    if _HUB.fullmatch(spec) and Path(spec).suffix not in (*PICKLES, *WEIGHTS):
        return None
    near = difflib.get_close_matches(spec, names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ValueError(f"spec={spec!r}: there is no such network, folder or file{hint}. Allowed: {_ALLOWED}; "
                     f"shipped: {', '.join(names) or 'none here'}")  # fmt: skip


def _downloaded(spec: str) -> Path:
    """The folder of a hub id: configs, and weights as safetensors, or as .bin where there are no others."""
    with extra("models"):
        import huggingface_hub

    def fetch(kind: str) -> Path:
        weights = [f"{part}diffusion_pytorch_model*{kind}" for part in ("", "unet/", "transformer/")]
        unwanted = ["*.fp16.*", "*non_ema*"]
        return Path(
            huggingface_hub.snapshot_download(spec, allow_patterns=_SMALL_FILES + weights, ignore_patterns=unwanted)
        )

    try:
        folder = fetch(".safetensors")
        return folder if any(folder.rglob("*.safetensors")) else fetch(".bin")
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        raise ValueError(
            f"spec={spec!r} is no folder here, and as a hub id it cannot be had ({in_one_line(error)})"
        ) from error


def _given(net: Any, name: str, labels: Any, guidance: float, shape: tuple[int, int, int] | None) -> Found:
    """A module or function of the user's."""
    if type(net).__name__ in NETWORKS and type(net).__module__.startswith("diffusers."):
        return wrap_network(net, name, labels, guidance, shape)
    read_guidance(labels, guidance, 0)
    return Found(Called(net), name)


def _name_of(spec: Any) -> str:
    return str(getattr(spec, "__name__", type(spec).__name__))
