"""A data set as a mixture: the ideal denoiser, streamed in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis import backend
from deis_analysis.problems.mixture import centred, levels
from deis_analysis.process.process import Process, require_process
from deis_analysis.validate import checked, scalar


@checked
class IdealDenoiser:
    """The ε model of a data set seen as a mixture of Gaussians of standard deviation ``std`` at its points."""

    prediction = "eps"
    _BLOCK_ENTRIES = 2**23  # entries of a block of data: 64 MiB in float64

    def __init__(self, data: Any, process: Process, std: float) -> None:
        self.data, self.process, self.std = data, process, std
        self.count, self.shape = data.shape[0], tuple(data.shape[1:])
        self._flat = data.reshape(self.count, -1)
        self._block = max(1, min(self.count, self._BLOCK_ENTRIES // self._flat.shape[1]))
        self._norms = self._squared_norms()

    def _squared_norms(self) -> Any:
        xp = array_namespace(self._flat)
        blocks = (self._flat[i : i + self._block] for i in range(0, self.count, self._block))
        return xp.concat([xp.sum(backend.cast(b, xp.float64) ** 2, axis=1) for b in blocks])

    def __call__(self, x: Any, t: float) -> Any:
        """ε for x of shape (batch, *data.shape[1:]), computed in the dtype of ``x``."""
        backend.of_floating_dtype("x", x)
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1:
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (batch, {', '.join(map(str, self.shape))})")
        if backend.is_torch(x) != backend.is_torch(self._flat):
            raise ValueError("x and data must be of one library; convert the data once, before ideal_denoiser")
        alpha, sigma, centre = levels(self.process, t)
        variance = (alpha * self.std) ** 2 + sigma**2
        if variance == 0:
            raise ValueError(f"t={t!r}: σ=0 there, where the distribution of a data set has no density; allowed: σ > 0")
        flat = centred(x, centre).reshape(x.shape[0], -1)
        mean = self._posterior_mean(flat, alpha, variance)
        return ((flat - alpha * mean) * (sigma / variance)).reshape(x.shape)

    def _posterior_mean(self, x: Any, alpha: float, variance: float) -> Any:
        """Σ softmax(−|x − αm|²/2v) m over all data points m, block by block with a running maximum."""
        xp = array_namespace(x)
        query = x * (alpha / variance)
        top: Any = None
        total: Any = None
        mean: Any = None
        for i in range(0, self.count, self._block):
            points = backend.cast(self._flat[i : i + self._block], x.dtype)
            offset = backend.cast(self._norms[i : i + self._block] * (0.5 * alpha * alpha / variance), x.dtype)
            logits = query @ points.T
            logits -= offset  # −|x|²/2v is common to all points and drops out
            peak = xp.max(backend.detached(logits), axis=1, keepdims=True)  # a shift: its gradient cancels
            if top is not None:
                peak = xp.maximum(peak, top)
            logits -= peak
            share = _exp_in_place(xp, logits)
            part, weight = share @ points, xp.sum(share, axis=1, keepdims=True)
            if top is None:
                mean, total = part, weight
            else:
                rescale = xp.exp(top - peak)
                mean, total = mean * rescale + part, total * rescale + weight
            top = peak
        return mean / total


def _exp_in_place(xp: Any, a: Any) -> Any:
    return a.exp_() if backend.is_torch(a) and not a.requires_grad else xp.exp(a)


@checked
def ideal_denoiser(data: Any, process: Process, std: float = 0.0) -> IdealDenoiser:
    """The exact ε model of the empirical distribution of ``data``, smoothed by ``std``.

    Blocks of 64 MiB stream through the softmax, so beside the data itself only a block and (batch, d) arrays are held.

    Args:
        data: (n, …) NumPy or torch array of floating dtype, not copied; x then has shape (batch, …).
        process: the forward process. std: standard deviation of the Gaussian at each point, ≥ 0.

    In float32 the softmax loses digits where σ is small against the size of the data; use float64 states there.

    Source: Karras et al. 2022, eq. 57 (app. B.3).
    """
    data = backend.floating("data", data)
    if data.ndim < 2 or data.shape[0] == 0:
        raise ValueError(
            f"data has shape {tuple(data.shape)}; allowed: (n, ...) with n >= 1 points of at least 1 dimension"
        )
    std = scalar("std", std)
    if not (np.isfinite(std) and std >= 0):
        raise ValueError(f"std={std!r} must be finite and >= 0")
    return IdealDenoiser(data, require_process(process), std)
