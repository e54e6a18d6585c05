r"""Denoising score matching: what it minimises, and the training of a network on points.

With :math:`x_t = α_t x_0 + σ_t ε`, the network that minimises

.. math:: E_t \, E_{x_0, ε} \, \tfrac1d \lVert p_θ(x_t, t) - (a_t x_0 + b_t ε) \rVert^2

is the conditional mean of what it predicts: (a, b) = (0, 1) for ε, whose mean is −σ ∇ log p_t, (1, 0) for x₀ and
(α′, σ′) for v.
The minimum is not zero: the loss is that of the exact prediction plus the mean square distance to it.
[Vincent 2011; Ho et al. 2020, eq. 14]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.validate import between, checked, choose, finite, instance, nonnegative, positive, positive_int

TRAINED = ("eps", "x0", "v")  # the score is unbounded as σ → 0: train ε and divide by −σ
TIMES = ("t", "lam")


@dataclass(frozen=True)
class TrainingRecord:
    """How a training went.

    Attributes:
        losses: (steps,) loss of each batch, per coordinate, before its update. steps: updates made.
        seconds: wall-clock time.
    """

    losses: Array
    steps: int
    seconds: float


@checked
def train_dsm(
    net: torch.nn.Module,
    data: Any,
    process: Process,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    prediction: str = "eps",
    uniform_in: str = "t",
    t_end: float | None = None,
    average: float = 0.1,
    progress: Callable[[float], None] | None = None,
) -> TrainingRecord:
    """Train ``net(x, t) -> prediction`` by denoising score matching; then it is frozen and holds averaged weights.

    Adam with its learning rate falling to 0 as a cosine. The result depends on ``seed`` and the initial weights alone
    on one CPU thread; random numbers are NumPy's, so that they are the same on every device.

    Args:
        net: takes x (batch, ...) and t (batch,) as tensors in the dtype and on the device of its weights.
        data: (n, ...) data points, drawn with replacement, or ``data(count, rng) -> (count, ...)`` with a
            `numpy.random.Generator`.
        prediction: "eps", "x0" or "v".
        uniform_in: times are uniform (stratified over each batch) in "t", or in "lam", which is the same expected loss
            weighted by |dλ/dt|, up to a factor.
        t_end: the smallest time, default that of ``process.sampling_range``; the largest is that range's start.
        average: memory of the exponential average of the weights, as a share of ``steps``, 0 for the last weights.
        progress: takes the share done.

    Raises:
        ValueError: bad input, data of another number of points than asked for or not finite, or a loss that is not.
    """
    steps, batch = positive_int("steps", steps), positive_int("batch", batch)
    positive(learning_rate=learning_rate)
    nonnegative("average", average, 1.0)
    choose("prediction", prediction, TRAINED)
    times = sampling_times(zero_mean(process), choose("uniform_in", uniform_in, TIMES), t_end)
    draw = data if callable(data) else _resampled(data)
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    weights = next(instance("net", net, torch.nn.Module).parameters())
    net.train().requires_grad_(True)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1.0 - 1.0 / max(average * steps, 1.0))))
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, begin = np.empty(steps), time.perf_counter()
    for i in range(steps):
        x, t, target = (
            torch.as_tensor(a, dtype=weights.dtype, device=weights.device)
            for a in _noisy_batch(draw, process, times, prediction, batch, rng)
        )
        loss = torch.nn.functional.mse_loss(net(x, t), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(net)
        losses[i] = loss.item()
        if not math.isfinite(losses[i]):
            raise ValueError(f"the loss is {losses[i]} at step {i}: learning_rate={learning_rate!r} may be too large")
        if progress is not None and (i + 1) % max(1, steps // 100) == 0:
            progress((i + 1) / steps)
    net.load_state_dict(averaged.module.state_dict())
    net.eval().requires_grad_(False)
    return TrainingRecord(losses, steps, time.perf_counter() - begin)


def zero_mean(process: Process) -> Process:
    """``process``; ValueError if it reverts to a mean."""
    if require_process(process).mean is not None:
        raise ValueError(f"process={process!r} reverts to a mean; allowed: processes that revert to 0")
    return process


def sampling_times(process: Process, uniform_in: str, t_end: float | None) -> Callable[[Array], Array]:
    """Times of the sampling range, uniform in t or λ, as a function of shares in [0, 1]."""
    start, end = process.sampling_range
    end = end if t_end is None else between("t_end", t_end, process.t_min, start)
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below {start!r}, the start of the sampling range")
    if uniform_in == "t":
        return lambda u: end + (start - end) * u
    low, high = float(process.lam(start)), float(process.lam(end))
    if not math.isfinite(high - low):
        raise ValueError(f"t_end={end!r}: λ is infinite there, so no law is uniform in it")
    return lambda u: np.clip(process.time_from_lam(np.clip(high + (low - high) * u, low, high)), end, start)


def _resampled(data: Any) -> Callable[[int, np.random.Generator], Array]:
    points = finite("data", data)
    if points.ndim < 2 or points.size == 0:
        raise ValueError(f"data has shape {points.shape}; allowed: (n, ...) with n >= 1, or a function (count, rng)")
    return lambda count, rng: points[rng.integers(len(points), size=count)]


def _noisy_batch(
    draw: Callable[[int, np.random.Generator], Any],
    process: Process,
    times: Callable[[Array], Array],
    prediction: str,
    batch: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:
    """x_t (batch, …), t (batch,) and what is to be predicted, (batch, …)."""
    x0 = finite("data", draw(batch, rng))
    if x0.ndim < 2 or len(x0) != batch:
        raise ValueError(f"data gave shape {x0.shape}; allowed: ({batch}, ...)")
    eps = rng.standard_normal(x0.shape)
    t = times((np.arange(batch) + rng.uniform(size=batch)) / batch)  # stratified: less variance, the same law
    alpha, sigma, a, b = (
        c.reshape(-1, *[1] * (x0.ndim - 1))
        for c in (process.alpha(t), process.sigma(t), *process.prediction_parts(prediction, t))
    )
    return alpha * x0 + sigma * eps, t, a * x0 + b * eps
