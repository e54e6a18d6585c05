"""Schedulers of diffusers as subjects of the audit: as released, and on the order problem."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deis_analysis.audit.packages.diffusers.families import CATALOGUE, FAMILIES
from deis_analysis.audit.packages.diffusers.ladder import on_ladder
from deis_analysis.audit.packages.diffusers.scheduler import LISTS, NOT_OPTIONS, Scheduler, plus
from deis_analysis.audit.packages.shared import check_options
from deis_analysis.audit.subject import Prepared
from deis_analysis.validate import between, choose

CONFIG = "scheduler_config.json"
INSTALL = "pip install 'deis-analysis[peers]'"
__all__ = ["CATALOGUE", "INSTALL", "DiffusersSubject", "adapt"]


@dataclass(frozen=True)
class DiffusersSubject(Scheduler):
    """A scheduler with what is asked of a subject."""

    def ladder(self, steps: int) -> Prepared | None:
        """The formula on the order problem; None where `reason` says why not."""
        return None if self.reason else on_ladder(self, steps)


def adapt(spec: str, name: str, options: dict[str, Any]) -> DiffusersSubject:
    """The subject ``diffusers:NAME?options``, or ``diffusers:FOLDER?options`` of a scheduler that was saved.

    Options are those of the constructor, of ``set_timesteps`` (``timesteps`` and ``sigmas`` as numbers with commas) and
    of ``step``; ``strength`` below 1 starts in the middle, as from an image.
    """
    import diffusers

    saved: dict[str, Any] = {}
    if (Path(name) / CONFIG).is_file():
        name, saved = _saved(spec, Path(name) / CONFIG)
    names = [entry for entry in dir(diffusers) if entry.endswith("Scheduler") and not entry.startswith("Flax")]
    choose("scheduler", name, names)
    if name not in FAMILIES:
        return DiffusersSubject(spec, name, options, {}, {}, None)
    cls = getattr(diffusers, name)
    init, timing, step = (
        {key: p.default for key, p in inspect.signature(getattr(cls, method)).parameters.items()}
        for method in ("__init__", "set_timesteps", "step")
    )
    check_options(spec, options, ({*init, *timing, *step} - NOT_OPTIONS) | {"strength"})
    options = {key: value for key, value in saved.items() if key in init} | options
    strength = between("strength", options.pop("strength", 1.0), 0.0, 1.0)
    options = {key: _listed(value) if key in LISTS else plus(value) for key, value in options.items()}
    parts: tuple[dict[str, Any], ...] = ({}, {}, {})
    for key, value in options.items():
        parts[0 if key in init else 1 if key in timing else 2][key] = value
    order = FAMILIES[name].order
    if isinstance(order, str):
        order = int({**step, **init, **options}[order])
    return DiffusersSubject(spec, name, parts[0], parts[1], parts[2], order, strength)


def _saved(spec: str, file: Path) -> tuple[str, dict[str, Any]]:
    """(class, options) of a scheduler that was saved."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return str(config.pop("_class_name")), config
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"spec={spec!r}: {file.name} is no scheduler's ({type(error).__name__}: {error})") from error


def _listed(value: Any) -> list[float] | list[int]:
    """``999,800,600`` as numbers."""
    try:
        numbers = [float(text) for text in str(value).split(",")]
    except ValueError as error:
        raise ValueError(f"value={value!r}; allowed: numbers with commas between them") from error
    return [int(n) for n in numbers] if all(n.is_integer() for n in numbers) and max(numbers) > 1 else numbers
