"""A perceptron of points and time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from deis_analysis.networks.dsm import zero_mean
from deis_analysis.process.process import Array, Process
from deis_analysis.validate import checked, positive_int


@checked
class MLP(torch.nn.Module):
    r"""A perceptron p(x, t) on d-dimensional data, SiLU between layers.

    It sees :math:`x/\sqrt{α_t^2 + σ_t^2}` and the time through :math:`u ∈ [-1, 1]`, which is λ_t scaled to the sampling
    range of the process (held at ±1 outside it), as :math:`u, \sin(πku/2), \cos(πku/2)`, k = 1 … ``features``.

    Called as ``net(x, t)``, x (…, d) NumPy or torch in any floating dtype, t a float or one time per point, shape
    x.shape[:-1]; the answer has kind, shape and dtype of x. Differentiable in x, not in t.

    Args:
        dimension: d. process: whose times the network is told.
        width, depth: units of each hidden layer, number of hidden layers.
        features: number of frequencies. seed: of the initial weights. dtype: of the weights.

    Raises:
        ValueError: sizes below 1, a process that reverts to a mean, x of another dimension.
    """

    def __init__(
        self,
        dimension: int,
        process: Process,
        width: int = 128,
        depth: int = 3,
        *,
        features: int = 4,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.dimension = positive_int("dimension", dimension)
        self.process = zero_mean(process)
        width, depth = positive_int("width", width), positive_int("depth", depth)
        self.features = positive_int("features", features)
        start, end = process.sampling_range
        self.lam_range = float(process.lam(start)), float(process.lam(end))
        sizes = [self.dimension + 1 + 2 * self.features, *[width] * depth]
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.manual_seed(positive_int("seed", seed, minimum=0))
            layers: list[torch.nn.Module] = []
            for before, after in itertools.pairwise(sizes):
                layers += [torch.nn.Linear(before, after, dtype=dtype), torch.nn.SiLU()]
            self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, self.dimension, dtype=dtype))

    def forward(self, x: Any, t: Any) -> Any:
        """The prediction at (x, t)."""
        if isinstance(x, np.ndarray):
            with torch.no_grad():
                return np.asarray(self(torch.from_numpy(x), t).numpy())
        if x.ndim == 0 or x.shape[-1] != self.dimension:
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (..., {self.dimension})")
        weights = next(self.parameters())
        times = t.detach().cpu().double().numpy() if isinstance(t, torch.Tensor) else t
        scale, told = (torch.as_tensor(a, dtype=weights.dtype, device=x.device) for a in self._time(times))
        told = told.expand(*x.shape[:-1], told.shape[-1])
        return self.layers(torch.cat([x.to(weights.dtype) / scale, told], dim=-1)).to(x.dtype)

    def _time(self, t: Any) -> tuple[Array, Array]:
        """√(α² + σ²) as (…, 1), and (…, 1 + 2 features) what the network is told of the time."""
        low, high = self.lam_range
        u = np.clip((2.0 * self.process.lam(t) - low - high) / (high - low), -1.0, 1.0)[..., None]
        angles = 0.5 * math.pi * np.arange(1, self.features + 1) * u
        scale = np.hypot(self.process.alpha(t), self.process.sigma(t))[..., None]
        return scale, np.concatenate([u, np.sin(angles), np.cos(angles)], axis=-1)
