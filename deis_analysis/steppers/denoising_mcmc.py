r"""Denoising MCMC: a Markov chain over (x, level) close to the data, then each sample denoised from its own level.

The chain has the joint law π(k) p_{t_k}(x) with π uniform on a grid of levels.  It alternates a Langevin step at the
level, :math:`x \leftarrow x + \tfrac η2 s(x, t_k) + \sqrt η z`, and a draw of the level from p(k | x).  A sample is
handed over at the lowest level that the chain has visited, and a table per sample (`run_many`) takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.problems.mixture import GaussianMixture, ProductMixture
from deis_analysis.process.grids import grid
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.solvers.exponential_rk import runge_kutta
from deis_analysis.tableau import Builder, Model, Tableau
from deis_analysis.tableau.many import as_times, run_many
from deis_analysis.validate import checked, choose, positive, positive_int, real

Classifier = Callable[[Any], Any]  # x (n, …) -> (n, K) unnormalised log p(k | x)


@checked
def level_grid(process: Process, levels: int = 1000, t_start: float | None = None, t_end: float | None = None) -> Array:
    """(levels,) descending times, uniform in log ρ: the grid of σ of Denoising MCMC."""
    return grid(process, positive_int("levels", levels, minimum=2) - 1, "logrho", t_start, t_end)


@checked
def exact_classifier(mix: GaussianMixture | ProductMixture, process: Process, times: Any) -> Classifier:
    """log p(x | t_k) for the (K,) ``times``, which is log p(k | x) up to a constant where levels are equally likely.

    ``mix`` must give one log density per sample: d-dimensional, x of shape (n, d).
    """
    times = require_process(process)._check(times, "times")

    def classify(x: Any) -> Any:
        columns = [np.asarray(_host(mix.log_prob(x, process, float(t)))) for t in times]
        return np.stack(columns, axis=-1)

    return classify


@dataclass(frozen=True, eq=False)
class Chains:
    """n chains after some sweeps.

    Attributes:
        x, level: (n, …) and (n,) where the chains are now; continue from here.
        lowest_x, lowest_level: the visited state at the lowest noise level, the start included.
        nfe: calls of the score model, n samples each.
    """

    x: Any
    level: Array
    lowest_x: Any
    lowest_level: Array
    nfe: int


@checked
def langevin_gibbs(
    model: Model,
    classifier: Classifier,
    process: Process,
    times: Any,
    x: Any,
    level: Any,
    *,
    sweeps: int = 10,
    eta: float = 0.1,
    relative: bool = True,
    draw: bool = True,
    prediction: str = "score",
    seed: int = 0,
) -> Chains:
    """Sweeps of Denoising Langevin Gibbs over (x, level).

    Args:
        model: ``model(x, t)`` with t of shape (n,), see `by_time`.
        classifier: x → (n, K) unnormalised log p(k | x), such as `exact_classifier`.
        times: (K,) descending times of the levels. x: (n, …) start. level: (n,) integers, the start's indices.
        eta: the step; η = ``eta`` σ² at each level if ``relative``, ``eta`` itself if not, as released.
        draw: draw the level from p(k | x); False takes the most likely one, as released, which is no longer a
            Gibbs step and has another stationary law.
        prediction: what the model predicts. seed: of all noise.

    Raises:
        ValueError: shapes that do not match, levels out of range, a model or classifier output that is not finite.

    Source: Kim & Ye 2022 (arXiv 2209.14593), DLG; ``draw=False`` and constant η as in the authors' code.
    """
    choose("prediction", prediction, PREDICTIONS)
    positive_int("sweeps", sweeps)
    positive(eta=eta)
    times = require_process(process)._check(times, "times")
    x = backend.floating("x", x)
    if x.ndim == 0:
        raise ValueError("x has shape (); allowed: (n, …)")
    level = _levels(level, x, times)
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    call = backend.guarded(model, x, None, True)
    lowest_x, lowest_level = x, level
    for _ in range(sweeps):
        t = times[level]
        size = eta * process.sigma(t) ** 2 if relative else np.full(level.shape, eta)
        score = process._translate(x, call(x, as_times(t, x)), prediction, "score", t)
        z = backend.like(rng.standard_normal(tuple(x.shape)), x)
        x = x + backend.along(0.5 * size, x) * score + backend.along(np.sqrt(size), x) * z
        level = _next_level(classifier(x), level.size, times.size, rng if draw else None)
        better = level > lowest_level  # times descend
        lowest_level = np.where(better, level, lowest_level)
        keep = backend.along(better, x)
        lowest_x = keep * x + (1.0 - keep) * lowest_x
    call.finish()
    return Chains(x, level, lowest_x, lowest_level, call.calls)


@checked
def hand_over(
    model: Model,
    process: Process,
    x: Any,
    times: Any,
    *,
    steps: int = 10,
    t_end: float | None = None,
    builder: Builder | None = None,
    grid_kind: str = "rho7",
    prediction: str = "score",
    denoise: bool = True,
    noise: Any = None,
) -> Any:
    """Take each sample from its own time to ``t_end`` by its own table, and then to x₀ by Tweedie's formula.

    Tweedie's (x + σ² score)/α, the x₀ of one more model call, is Euler's step to ρ = 0; the released code takes that
    step and then applies the formula again, to a sample without noise.  Samples at or below ``t_end`` keep their state.

    Args:
        model: ``model(x, t)`` with t of shape (n,), see `by_time`. x: (n, …). times: (n,) process times.
        steps: of every table. t_end: default ``process.sampling_range[1]``.
        builder: (process, ts) → `Tableau`; default Heun on dx̄/dρ = ε. grid_kind: of `grid`.
        prediction: what the model predicts. denoise: Tweedie at the end. noise: for stochastic tables, see `run_many`.

    Returns:
        (n, …) array, the kind of ``x``.

    Source: Kim & Ye 2022 (arXiv 2209.14593); Karras et al. 2022 (arXiv 2206.00364), alg. 1 and eq. 5.
    """
    x = backend.floating("x", x)
    times = require_process(process)._check(times, "times")
    if x.ndim == 0:
        raise ValueError("x has shape (); allowed: (n, …)")
    if times.shape != (x.shape[0],):
        raise ValueError(f"times has shape {times.shape}; allowed: ({x.shape[0]},), one per sample")
    end = process.sampling_range[1] if t_end is None else process._check_scalar(t_end, "t_end")
    build = builder or _heun
    cache: dict[float, Tableau] = {}
    moving = np.flatnonzero(times > end)
    for t in np.unique(times[moving]):
        table = build(process, grid(process, steps, grid_kind, float(t), end))
        cache[float(t)] = table if table.prediction == prediction else table.in_terms_of(process, prediction)
    if moving.size == times.size:
        x = run_many([cache[float(t)] for t in times], model, x, noise)
    elif moving.size:
        moved = run_many([cache[float(t)] for t in times[moving]], model, x[moving], noise)
        x = x + 0.0  # a copy, so that the caller's array is not written to
        x[moving] = moved
    if not denoise:
        return x
    call, last = backend.guarded(model, x, None, True), np.minimum(times, end)
    x0 = process._translate(x, call(x, as_times(last, x)), prediction, "x0", last)
    call.finish()
    return x0


def _heun(process: Process, ts: Array) -> Tableau:
    return runge_kutta(process, ts, "2heun", prediction="eps", variable="rho")


def _host(a: Any) -> Any:
    return backend.detached(a).cpu() if backend.is_torch(a) else a


def _levels(level: Any, x: Any, times: Array) -> Array:
    real("level", level)
    values = np.asarray(_host(level))
    if times.ndim != 1 or times.size < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"times has shape {times.shape}; allowed: at least 2 descending times")
    if values.shape != (x.shape[0],) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"level has shape {values.shape}, dtype {values.dtype}; allowed: ({x.shape[0]},) integers")
    if values.min() < 0 or values.max() >= times.size:
        raise ValueError(f"level reaches from {values.min()} to {values.max()}; allowed: 0 to {times.size - 1}")
    return values


def _next_level(logits: Any, count: int, levels: int, rng: np.random.Generator | None) -> Array:
    """A draw from softmax(logits) per row (by Gumbel noise), or the most likely entry without ``rng``."""
    values = np.asarray(_host(logits), dtype=np.float64)
    if values.shape != (count, levels):
        raise ValueError(f"classifier returned shape {values.shape}; allowed: {(count, levels)}, a row per sample")
    if np.isnan(values).any() or not np.isfinite(values.max(axis=1)).all():
        raise ValueError("classifier returned NaN, or a row without a finite entry")
    return np.argmax(values if rng is None else values + rng.gumbel(size=values.shape), axis=1)
