"""To and from other packages: their interfaces here, and tables for them. Names are loaded when they are asked for.

`deis_analysis.interop.deis` stands in for ``th_deis`` and ``jax_deis``, the package that the authors of DEIS released:
their scripts run here after a change of one import line. A table goes out as a `PortableTable`, to diffusers
(`TableauScheduler`, `to_diffusers`), k-diffusion, ComfyUI, or as a list of levels. `deis_analysis.interop.published`
holds tuned samplers as their authors released them, as tables.
"""

from importlib import import_module
from typing import Any

from deis_analysis.lazy import names

_EXTRA = "pip install 'deis-analysis[models]'"
_names, _get = names(
    __name__,
    {
        "portable_table": "PortableTable portable",
        "exports": "to_comfyui to_diffusers to_k_diffusion to_sigmas write_k_diffusion",
        "scheduler": "TableauScheduler",
        "command": "export_command",
    },
)
_MODULES = ("deis", "published")
__all__ = sorted([*_MODULES, *_names])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if name != "TableauScheduler" or not str(error.name).startswith("diffusers"):
            raise
        raise ImportError(f"TableauScheduler needs diffusers, which is not installed: {_EXTRA}") from error


def __dir__() -> list[str]:
    return __all__
