"""Nodes of ComfyUI for the table in table.json beside this file: a sampler, and the levels that belong to it.

Connect both to SamplerCustom or SamplerCustomAdvanced. ComfyUI tells the network the time of the level by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .karras import table_sampler

TABLE = json.loads((Path(__file__).parent / "table.json").read_text(encoding="utf-8"))
# flows are sampled there on their own scale, with σ = t; all others as x₀ + σ ε
FUNCTION, LEVELS = table_sampler(TABLE, own_scale=TABLE["kind"] == "flow")


class TableSampler:
    """SAMPLER: runs the table; it takes no other levels than the table's."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """No inputs."""
        return {"required": {}}

    def make(self) -> tuple[Any]:
        """The sampler as ComfyUI wraps it."""
        import comfy.samplers

        return (comfy.samplers.KSAMPLER(FUNCTION),)


class TableSigmas:
    """SIGMAS: the levels of the table."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """No inputs."""
        return {"required": {}}

    def make(self) -> tuple[torch.Tensor]:
        """(N + 1,) levels, the first the largest."""
        return (torch.tensor(LEVELS, dtype=torch.float32),)


_NAME = f"{TABLE['name'] or 'table'}, {len(LEVELS) - 1} steps"
NODE_CLASS_MAPPINGS: dict[str, type] = {f"TableSampler {_NAME}": TableSampler, f"TableSigmas {_NAME}": TableSigmas}
NODE_DISPLAY_NAME_MAPPINGS = {name: name for name in NODE_CLASS_MAPPINGS}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
