"""The convention that networks are trained under here, and a network under its convention as a model.

A network of diffusers is called as ``net(seen, told)``, as `Convention` says; told is a real number, rounded only where
`ImageModel` is asked to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deis_analysis.networks.dsm import zero_mean
from deis_analysis.networks.times import ROUNDINGS, answer_at
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM, VE, VPDiscrete
from deis_analysis.validate import checked, choose, instance

NETWORK_TIMES = 100.0  # of a whole process; see `standard_convention`


@checked
def standard_convention(process: Process, prediction: str) -> Convention:
    """The convention that networks are trained under here.

    Network times 100 t; on `VPDiscrete`, whose t counts levels, t; on `EDM` linear in λ from 0 at σ_min to 100 at
    σ_max. Where α = 1 the network sees x/√(1 + σ²), as under diffusers' Euler scheduler; elsewhere x.

    Not DDPM's 1000 t: the fastest sine of diffusers' embedding turns by 1 rad per unit of network time, so that a
    network told 1000 t carries a ripple in t of angular frequency 1000, which only steps far below 1e-3 resolve.
    """
    zero_mean(process)
    if isinstance(process, EDM):
        high, low = (float(process.lam(t)) for t in (process.t_min, process.t_max))
        scale = -NETWORK_TIMES / (high - low)
        return Convention(prediction, "lam", scale, -scale * high, "normalised")
    scale = 1.0 if isinstance(process, VPDiscrete) else NETWORK_TIMES
    return Convention(prediction, scale=scale, state="normalised" if isinstance(process, VE) else "process")


class ImageModel(torch.nn.Module):
    """A network of diffusers under its convention, as `deis_analysis.run` calls a model.

    Called as ``model(x, t)``, x a (batch, channels, height, width) tensor of any floating dtype, t a float or (batch,)
    times; the network computes in the dtype of its weights (of x, if it has none), the answer has the dtype of x.
    Differentiable in x.

    Args:
        net: called as ``net(input, network_time, return_dict=False)[0]``.
        times: how network times that are not integers are treated, one of `times.ROUNDINGS`.
        shape: (channels, height, width) that x must have, None to leave that to the network.
        batch: the number of samples that x must have, None for any.

    Attributes:
        digest: what names the model in a cache (see `Network.digest`), None where nothing does.

    Raises:
        ValueError: ``process`` reverts to a mean, an unknown ``times``; when called: t outside the range of the
            process, x of another shape.
    """

    digest: str | None = None

    def __init__(
        self,
        net: torch.nn.Module,
        process: Process,
        convention: Convention,
        times: str = "fractional",
        *,
        shape: tuple[int, int, int] | None = None,
        batch: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.process = instance("net", net, torch.nn.Module), zero_mean(process)
        self.convention = instance("convention", convention, Convention)
        self.times = choose("times", times, ROUNDINGS)
        self.shape, self.batch = shape, batch

    @property
    def prediction(self) -> str:
        """What it predicts: "eps", "x0", "v" or "score"."""
        return self.convention.prediction

    def with_times(self, times: str) -> ImageModel:
        """The same network asked at times that are treated in another way; its digest is None."""
        return ImageModel(self.net, self.process, self.convention, times, shape=self.shape, batch=self.batch)

    def forward(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """The prediction at (x, t)."""
        self._check(x)
        dtype = next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)
        times = t.detach().cpu().double().numpy() if isinstance(t, torch.Tensor) else np.asarray(t, dtype=np.float64)
        told = self.convention.told(self.process, times)
        if told.shape not in ((), (1,), (len(x),)):
            raise ValueError(f"t has shape {told.shape}; allowed: one time, or one for each of {len(x)} samples")
        if self.convention.state != "process":
            scale = torch.as_tensor(self.convention.input_scale(self.process, times), device=x.device, dtype=x.dtype)
            x_in = x / scale.reshape(-1, 1, 1, 1)
        else:
            x_in = x

        def ask(seen: torch.Tensor, n: Array) -> torch.Tensor:
            # half precision would round times near 100 to sixteenths
            exact = torch.as_tensor(n, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
            return self.net(seen, exact.to(x.device).expand(len(seen)), return_dict=False)[0]

        return answer_at(ask, x_in.to(dtype), told, self.times).to(x.dtype)

    def _check(self, x: torch.Tensor) -> None:
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            allowed = ", ".join(map(str, self.shape))
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (batch, {allowed}), channels first")
        if self.batch is not None and len(x) != self.batch:
            raise ValueError(f"x has {len(x)} samples; allowed: {self.batch}, one for each of labels")
