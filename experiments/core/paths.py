"""Where things lie."""

from __future__ import annotations

from pathlib import Path

import deis_analysis

CHECKPOINTS = Path(deis_analysis.__file__).parent / "networks" / "checkpoints"  # of the networks that ship
FIGURES = Path(__file__).resolve().parents[2] / "figures"


def without_tf32(device: str) -> None:
    """On CUDA, let float32 be float32."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
