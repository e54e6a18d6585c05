"""Where things lie."""

from __future__ import annotations

import os
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


def without_tf32(device: str) -> None:
    """On CUDA, let float32 be float32."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
