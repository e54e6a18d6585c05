"""What is installed here, on what it would run, and what it keeps."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

_NAME = "deis-analysis"
_REQUIREMENT = re.compile(r"(?P<package>[A-Za-z0-9_.-]+)(?:\[(?P<extras>[^]]*)\])?(?P<rest>.*)")
_EXTRA = re.compile(r"extra\s*==\s*['\"](?P<name>[^'\"]+)['\"]")


def examine(cache: Path) -> dict[str, dict[str, Any]]:
    """Versions, extras, devices, the ``cache`` and downloads, each as name → what is said of it."""
    needed, extras = requirements(importlib.metadata.requires(_NAME) or [])
    return {
        "versions": {
            _NAME: importlib.metadata.version(_NAME),
            "Python": platform.python_version(),
            **{package: version(package) or f"missing: pip install {_NAME}" for package in needed},
        },
        "extras": {extra: _state(extra, packages) for extra, packages in extras.items()},
        "devices": devices(),
        "cache": {"folder": str(cache), "size": f"{size(cache) / 2**20:.1f} MiB"},
        "downloads": {
            "by this package": "nothing: networks, figures and audits read local files only",
            "when asked for": "a model named by its hub id, by huggingface_hub, into that package's own cache",
        },
    }


def requirements(declared: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(packages that are always needed, extra → packages that it adds) of ``Requires-Dist`` lines."""
    needed, extras, inside = list[str](), dict[str, list[str]](), dict[str, list[str]]()
    for line in declared:
        found, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        assert found is not None
        package = found["package"]
        if extra is None:
            needed.append(package)
        elif package.replace("_", "-") == _NAME:
            inside.setdefault(extra["name"], []).extend((found["extras"] or "").replace(" ", "").split(","))
        else:
            extras.setdefault(extra["name"], []).append(package)
    for name, others in inside.items():
        for other in others:
            extras.setdefault(name, []).extend(extras.get(other, []))
    return needed, {name: list(dict.fromkeys(packages)) for name, packages in sorted(extras.items())}


def version(package: str) -> str | None:
    """The version that is installed, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _state(extra: str, packages: list[str]) -> str:
    missing = [package for package in packages if version(package) is None]
    if not missing:
        return "complete: " + ", ".join(f"{package} {version(package)}" for package in packages)
    return f"without {', '.join(missing)}: pip install '{_NAME}[{extra}]'"


def devices() -> dict[str, str]:
    """Where torch can run."""
    if version("torch") is None:
        return {"cpu": f"{os.cpu_count()} cores; torch is missing"}
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return found


def size(folder: Path) -> int:
    """Bytes of all files in it; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
