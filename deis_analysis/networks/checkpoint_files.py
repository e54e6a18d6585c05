r"""Networks in one file: EDM's pickles, which run code, and weights for a module that the user makes.

* A pickle of NVlabs/edm holds ``ema``, a preconditioned denoiser D(x, σ, class_labels) → x₀ of `EDM`. Its levels are
  [0.002, 80], less what the network does not support. [Karras et al. 2022; generate.py]
* A checkpoint of score_sde holds ``model``, a state dict, and ``ema``, whose ``shadow_params`` are averages of the
  parameters that are trained, in their order. Averages are used where there are some.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deis_analysis.lazy import extra
from deis_analysis.networks.diffusers_folder import Found, in_one_line
from deis_analysis.networks.guided import Called, read_guidance
from deis_analysis.process.convention import Convention
from deis_analysis.process.schedules import EDM
from deis_analysis.validate import function

PICKLES = (".pkl", ".pickle")
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


# -- EDM ------------------------------------------------------------------------------------------
def read_pickle(path: Path, labels: Any, guidance: float, allowed: bool) -> Found:
    """The network of an EDM pickle; under guidance no class is the zero vector, which is what EDM's code takes it for.

    Raises:
        ValueError: not ``allowed``, the file cannot be read, or holds something else.
    """
    if not allowed:
        raise ValueError(
            f"spec={path.name!r} is a pickle: reading it runs code that the file brings along; allowed with "
            "allow_pickle=True, for files that you trust"
        )
    warnings.warn(f"reading {path.name} runs the code that it brings along")
    try:
        with open(path, "rb") as file:
            data = pickle.load(file)
    except Exception as error:  # any code, any error
        hint = "; its repository must be on sys.path" if isinstance(error, ImportError) else ""
        raise ValueError(f"spec={path.name!r} cannot be read ({type(error).__name__}: {in_one_line(error)}{hint})") \
            from error  # fmt: skip
    net = data.get("ema") if isinstance(data, Mapping) else None
    missing = [k for k in ("img_resolution", "img_channels", "label_dim") if not hasattr(net, k)]
    if not isinstance(net, torch.nn.Module) or missing:
        raise ValueError(f"spec={path.name!r} holds no EDM network; allowed: a dict with 'ema', a module with "
                         "img_resolution, img_channels and label_dim")  # fmt: skip
    return _edm(net, path.stem, labels, guidance)


def _edm(net: Any, name: str, labels: Any, guidance: float) -> Found:
    classes = int(net.label_dim)
    given = read_guidance(labels, guidance, classes)
    codes = None
    if given is not None:
        codes = torch.eye(classes)[[given.labels] if isinstance(given.labels, int) else list(given.labels)]
    standard = EDM()
    low = max(standard.sigma_min, float(getattr(net, "sigma_min", 0.0)))
    high = min(standard.sigma_max, float(getattr(net, "sigma_max", float("inf"))))
    called = Called(
        net,
        codes=codes,
        null=None if given is None else torch.zeros(1, classes),
        scale=1.0 if given is None else given.scale,
    )
    size = int(net.img_resolution)
    shape = (int(net.img_channels), size, size)
    return Found(called, name, EDM(low, high), Convention("x0", scale=1.0), shape, given)


# -- weights --------------------------------------------------------------------------------------
def read_weights(path: Path, factory: Callable[[], Any] | None) -> torch.nn.Module:
    """The module that ``factory`` makes, with the weights of a file in it: averaged ones where there are some.

    Raises:
        ValueError: no factory, it makes no module, the file cannot be read or its weights are another module's.
    """
    if factory is None:
        raise ValueError(f"factory=None: {path.name} holds weights alone; allowed: a function that makes the module")
    net = function("factory", factory)()
    if not isinstance(net, torch.nn.Module):
        raise ValueError(f"factory={factory!r} made a {type(net).__name__}; allowed: a torch.nn.Module")
    state = _stored(path)
    average = state.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if isinstance(average, Mapping) and shadow is None:
        weights = average
    else:
        weights = next((state[k] for k in ("model", "state_dict") if isinstance(state.get(k), Mapping)), state)
    _put(net, weights, path.name)
    if shadow is not None:
        _put_average(net, shadow, path.name)
    return net


def _stored(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # of three formats, by whatever is in the file
        whole = isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)
        said = "it holds more than weights: save module.state_dict()" if whole else in_one_line(error)
        raise ValueError(f"spec={path.name!r} cannot be read ({said})") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"spec={path.name!r} holds a {type(state).__name__}; allowed: a state dict, or one in 'model'")
    return state


def _safetensors(path: Path) -> Mapping[str, Any]:
    with extra("models"):
        from safetensors.torch import load_file

    return load_file(path)


def _put(net: torch.nn.Module, weights: Mapping[str, Any], name: str) -> None:
    tensors = {str(k).removeprefix("module."): v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(
            f"spec={name!r} holds {sorted(map(str, weights))[:5]}; allowed: a state dict, or one in 'model' or 'ema'"
        )
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"spec={name!r}: the weights are not those of factory's module ({in_one_line(error)})"
        ) from error


def _put_average(net: torch.nn.Module, shadow: Any, name: str) -> None:
    trained = [p for p in net.parameters() if p.requires_grad]
    if not isinstance(shadow, (list, tuple)) or not all(isinstance(s, torch.Tensor) for s in shadow):
        raise ValueError(f"spec={name!r}: its shadow_params are {type(shadow).__name__}; allowed: a list of tensors")
    if [tuple(s.shape) for s in shadow] != [tuple(p.shape) for p in trained]:
        raise ValueError(f"spec={name!r}: its {len(shadow)} averages are not of the shapes of the {len(trained)} "
                         "parameters that factory's module trains")  # fmt: skip
    with torch.no_grad():
        for p, s in zip(trained, shadow, strict=True):
            p.copy_(s)
