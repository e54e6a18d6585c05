"""Where things lie, and what every result depends on."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import deis_analysis

CHECKPOINTS = Path(deis_analysis.__file__).parent / "networks" / "checkpoints"  # of the networks that ship
FIGURES = Path(__file__).resolve().parents[2] / "figures"


def kept_in(folder: Path) -> Path | None:
    """``folder``, which is made; None where it cannot be written, as in a checkout that is read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@cache
def shared_sources() -> str:
    """Hash of the package's and the shared modules' sources: results change with them."""
    here, package = Path(__file__).parents[1], Path(deis_analysis.__file__).parent
    files = [path for room in ("core", "models") for path in sorted((here / room).iterdir()) if path.is_file()]
    files = [path for path in files if path.name != "runner.py"] + sorted(package.rglob("*.py"))
    digest = hashlib.sha256(deis_analysis.__version__.encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def without_tf32(device: str) -> None:
    """On CUDA, let float32 be float32."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
