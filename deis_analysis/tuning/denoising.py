r"""Grids from the denoising error: entropic time, and the upper bound that "Align your steps" minimises.

Both need one curve, the error of the denoiser in units of the noise, which is the training loss of ε:

.. math:: \ell(ρ) = E\|ε - \hat ε(x_ρ)\|^2 / d = \mathrm{mmse}(ρ) / ρ^2 , \qquad
          \mathrm{mmse}(ρ) = E\|x_0 - D(x_ρ)\|^2 / d .

*Entropic.* Conditional entropy of x₀ falls at the rate mmse/ρ³ (I-MMSE); its rescaled form :math:`\int ℓ\,dρ` is the
clock. On Gaussian data of variance c² it is c·arctan(ρ/c), in which equal steps make the exact variance of DDIM best.

*KLUB.* A stochastic DDIM step from ρ_i keeps D frozen; by Girsanov the paths differ by

.. math:: \sum_i \int_{ρ_{i+1}}^{ρ_i} E\|D(x_ρ) - D(x_{ρ_i})\|^2 ρ^{-3} dρ
          = d \sum_i \tfrac12 \mathrm{mmse}(ρ_i) (ρ_{i+1}^{-2} - ρ_i^{-2}) - \text{const} ,

since posterior means are a martingale in the noise: E‖D(x_ρ) − D(x_u)‖² = d (mmse(u) − mmse(ρ)). So the whole bound is
a Riemann sum of one curve, and is minimised without another model call. On Gaussian data 1/mmse = 1/ρ² + 1/c² is
geometric at the optimum. (The arctan grid, which the paper gives for Gaussian data, is the optimum for DDIM's ODE.)

Sources: Stancevic, Handke & Ambrogioni 2025 (arXiv 2504.13612); Sabour, Fidler & Kreis 2024 (arXiv 2404.14507), with
the reduction to the mmse derived here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import cumulative_simpson
from scipy.interpolate import PchipInterpolator

from deis_analysis import backend
from deis_analysis.process.convention import Model
from deis_analysis.process.process import Array
from deis_analysis.tuning.bank import Bank, without_graph
from deis_analysis.tuning.lattice import Curve, cheapest_path, inverted
from deis_analysis.validate import positive_int

_FINE = 4097  # points of the cumulated integral
_LATTICE = 257  # levels among which the bound is first minimised
_LEAST = 1e-300
_OFFSETS = np.arange(-3.0, 4.0)


def denoising_losses(bank: Bank, model: Model, seed: int, draws: int) -> Array:
    """(M,) ℓ at the bank's levels: the ends of its trajectories noised anew, in antithetic pairs of one fixed noise.

    The noises are scaled to mean square 1 and are the same at all levels, so that the curve is smooth and, on Gaussian
    data, as exact as the variance of the bank's ends.  Makes 2 · draws · M calls.
    """
    process, last = bank.process, bank.states[-1]
    centre, rng = backend.Centre(process.mean, last), np.random.default_rng(seed)
    call, losses = backend.guarded(model, last, None, True), np.zeros(bank.times.size)
    alpha, sigma = process.alpha(bank.times), process.sigma(bank.times)
    with without_graph(last):
        clean = centre.off(last) / float(alpha[-1])
        for _ in range(draws):
            noise = rng.standard_normal(tuple(last.shape))
            noise /= np.sqrt(np.mean(noise**2))
            for z in (backend.like(noise, last), backend.like(-noise, last)):
                for k, t in enumerate(bank.times.tolist()):
                    found = call(centre.on(float(alpha[k]) * clean + float(sigma[k]) * z), t)
                    losses[k] += float(np.mean((backend.flat(found) - backend.flat(z)) ** 2)) / (2 * draws)
        call.finish()
    return losses


def loss_curve(bank: Bank, model: Model, seed: int, draws: int) -> Curve:
    """log ρ ↦ ℓ, interpolated in logarithms: positive, and without overshoot.

    Raises:
        ValueError: a loss that is not above 0 at any level: there is nothing to be learnt about x₀ from x_t.
    """
    positive_int("draws", draws)
    losses = bank.remembered(("loss", seed, draws), lambda: denoising_losses(bank, model, seed, draws))
    if not losses.max() > _LEAST:
        raise ValueError("model denoises without any error at all times; allowed: data that is more than one point")
    log_loss = np.log(np.maximum(losses, max(_LEAST, 1e-30 * float(losses.max()))))
    inner = PchipInterpolator(np.log(bank.rho[::-1]), log_loss[::-1])
    return lambda u: np.exp(inner(u))


def entropic(bank: Bank, model: Model, steps: int, ends: tuple[float, float], seed: int, draws: int = 1) -> Array:
    """(steps + 1,) levels ρ, uniform in rescaled entropic time ∫ mmse/ρ² dρ."""
    loss, top, bottom = loss_curve(bank, model, seed, draws), *np.log(ends)
    u = np.linspace(bottom, top, _FINE)
    clock = cumulative_simpson(loss(u) * np.exp(u), x=u, initial=0.0)
    return np.exp(inverted(clock, u)(np.linspace(clock[-1], 0.0, steps + 1)))


def _klub(loss: Array, gap: Array) -> Array:
    """½ mmse(ρ) (ρ_next^{-2} − ρ^{-2}), the share of a step from loss ℓ(ρ) over ``gap`` = log ρ − log ρ_next."""
    return 0.5 * loss * np.expm1(2.0 * gap)


def ays(bank: Bank, model: Model, steps: int, ends: tuple[float, float], seed: int, draws: int = 1) -> Array:
    """(steps + 1,) levels ρ that minimise the bound: the best of a lattice in log ρ, then of ever finer ones around."""
    loss, top, bottom = loss_curve(bank, model, seed, draws), *np.log(ends)
    lattice = np.linspace(top, bottom, max(_LATTICE, 3 * steps + 1))
    values, width = loss(lattice), float(lattice[0] - lattice[1])
    cost = _klub(values[:, None], np.triu(lattice[:, None] - lattice))
    u = lattice[cheapest_path(cost, steps)]
    for _ in range(40):
        moved = _best_nearby(loss, u, width)
        width *= 0.5 if np.max(np.abs(moved - u)) < 2.5 * width else 1.0
        u = moved
    return np.exp(u)


def _best_nearby(loss: Curve, u: Array, width: float) -> Array:
    """The descending ``u`` that is best among all with every inner level moved by a few ``width``, jointly."""
    moves = width * np.tile(_OFFSETS, (u.size, 1))
    moves[[0, -1]] = 0.0
    levels = u[:, None] + moves
    values = loss(levels)
    total, parents = np.zeros(_OFFSETS.size), []
    for k in range(u.size - 1):
        gap = levels[k][:, None] - levels[k + 1]
        cost = _klub(values[k][:, None], np.maximum(gap, 0.0))
        reached = np.where(gap > 0, total[:, None] + cost, np.inf)
        parents.append(np.argmin(reached, axis=0))
        total = np.min(reached, axis=0)
    chosen: list[Any] = [int(np.argmin(total))]
    for parent in reversed(parents):
        chosen.append(int(parent[chosen[-1]]))
    return levels[np.arange(u.size), chosen[::-1]]
