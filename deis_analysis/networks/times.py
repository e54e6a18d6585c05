r"""Network times: rounded or as they are, and the embedding of times in the precision that they come in.

A network that was trained at integer times n = 0, 1, … is asked at a real n in one of three ways:

==============  ==============================================================================================
``fractional``  p(x, n): the embedding is a smooth function of n, the network was never trained between integers
``nearest``     p(x, round n), ties to even: piecewise constant in n
``linear``      (1 − w) p(x, ⌊n⌋) + w p(x, ⌈n⌉), w = n − ⌊n⌋: continuous in n, with kinks at the integers
==============  ==============================================================================================
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import torch

from deis_analysis.process.process import Array

ROUNDINGS = ("fractional", "nearest", "linear")


def answer_at(
    ask: Callable[[torch.Tensor, Array], torch.Tensor], x: torch.Tensor, n: Array, times: str
) -> torch.Tensor:
    """What ``ask(x, n)`` is under one of `ROUNDINGS`: "linear" asks once, about x twice, unless all n are integers.

    Args:
        n: network times, (batch,), (1,) or one number.
    """
    if times == "fractional":
        return ask(x, n)
    if times == "nearest":
        return ask(x, np.rint(n))
    low, high = np.floor(n), np.ceil(n)
    if np.array_equal(low, high):
        return ask(x, low)
    both = [np.broadcast_to(a, len(x)) for a in (low, high)]
    below, above = ask(torch.cat([x, x]), np.concatenate(both)).chunk(2)
    weight = torch.as_tensor(n - low, dtype=below.dtype, device=below.device).reshape(-1, *[1] * (below.ndim - 1))
    return (1.0 - weight) * below + weight * above


class TimeEmbedding(torch.nn.Module):
    r"""The sinusoids of diffusers' ``Timesteps``, in float64 for float64 times and in float32 for all others.

    (sin sωn, cos sωn), or the cosines first, with ω_k = 10000^{−k/(h − shift)}, k = 0 … h − 1, h = ⌊channels/2⌋.
    diffusers computes them in float32 whatever n is: a float64 network then moves in steps of n's float32 rounding.
    """

    def __init__(self, channels: int, flip: bool, shift: float, scale: float) -> None:
        super().__init__()
        self.channels, self.flip, self.shift, self.scale = channels, flip, shift, scale

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        """(batch, channels) of network times (batch,)."""
        n = n if n.dtype == torch.float64 else n.float()
        half = self.channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=n.dtype, device=n.device) / (half - self.shift)
        angle = self.scale * (n[:, None] * torch.exp(exponent)[None])
        parts = [torch.cos(angle), torch.sin(angle)] if self.flip else [torch.sin(angle), torch.cos(angle)]
        return torch.nn.functional.pad(torch.cat(parts, dim=-1), (0, self.channels % 2))


def embed_exactly(net: torch.nn.Module) -> torch.nn.Module:
    """``net`` with every ``Timesteps`` of diffusers in it replaced, in place, by a `TimeEmbedding`."""
    embeddings = sys.modules.get("diffusers.models.embeddings")
    if embeddings is None:  # then there is none
        return net
    found = [
        (module, name, child)
        for module in net.modules()
        for name, child in module.named_children()
        if isinstance(child, embeddings.Timesteps)
    ]
    for module, name, old in found:
        new = TimeEmbedding(old.num_channels, old.flip_sin_to_cos, old.downscale_freq_shift, old.scale)
        setattr(module, name, new)
    return net
