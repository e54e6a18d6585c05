r"""The Gaussian closed form of the probability flow, as a start that costs no model call.

For data N(μ, Σ) with Σ = U Λ Uᵀ the flow is known,

.. math::
    x_t = α_t μ + \sum_k \sqrt{\frac{σ_t^2 + α_t^2 λ_k}{σ_T^2 + α_T^2 λ_k}} \, u_k u_k^T (x_T - α_T μ) ,

and at high noise any data look like the Gaussian of their mean and covariance.  With x_t = α_t μ + α_t ρ_t z, ρ = σ/α
and c = x₀ − μ, the denoisers of the data and of that Gaussian share the terms of order 0 and 1 in 1/ρ:

.. math::
    D - μ = \frac{Σ z}{ρ} + \frac{κ_3[z z^T - I]}{2 ρ^2} + O(ρ^{-3}) , \qquad
    κ_3[A]_i = \sum_{jk} E[c_i c_j c_k] A_{jk} ,

where the Gaussian has κ₃ = 0.  So a sampler may be started at a lower noise, with a bias that does not vanish with the
number of its steps.  [Wang & Vastola 2023, arXiv 2303.02490]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.problems.mixture import GaussianMixture
from deis_analysis.process.process import Process, require_process
from deis_analysis.validate import checked, finite, nonnegative, real


@checked
def gaussian_of(data: Any, floor: float = 0.0) -> GaussianMixture:
    """One Gaussian with the mean and covariance of ``data``: Σ = (1/n) Σ_i (x_i − μ)(x_i − μ)ᵀ + floor · I.

    The covariance is that of the data set as a law (1/n), as `deis_analysis.ideal_denoiser` sees it; with
    ``floor`` = std² it is that of the data set smoothed by ``std``.

    Args:
        data: (n,) numbers, for a 1-D Gaussian, or (n, …) points, flattened to (n, d); NumPy or torch.
        floor: variance ≥ 0 added to every direction; needed where the points do not span the space, as if n ≤ d.

    Raises:
        ValueError: data that are not finite or empty, a singular covariance.
    """
    points = finite("data", backend.wide(data))
    if points.ndim == 0 or points.size == 0:
        raise ValueError(f"data has shape {points.shape}; allowed: (n,) or (n, ...) with at least one entry")
    floor = nonnegative("floor", floor)
    if points.ndim == 1:
        variance = float(points.var()) + floor
        _require_spread(variance, float(np.abs(points).max()) ** 2, floor)
        return GaussianMixture([1.0], [points.mean()], [variance])
    points = points.reshape(points.shape[0], -1)
    mean = points.mean(axis=0)
    covariance = np.cov(points.T, bias=True).reshape(mean.size, mean.size) + floor * np.eye(mean.size)
    spectrum = np.linalg.eigvalsh(covariance)
    _require_spread(float(spectrum[0]), float(spectrum[-1]), floor)
    return GaussianMixture([1.0], mean[None], covariance[None])


def _require_spread(smallest: float, scale: float, floor: float) -> None:
    if not smallest > 1e-14 * scale:
        raise ValueError(
            f"floor={floor!r} leaves the covariance of data singular (smallest variance {smallest:.3g}); allowed: "
            "floor > 0 where the points do not vary in every direction"
        )


@checked
def teleport(source: Any, process: Process, x_T: Any, t_start: float, t_skip: float, *, floor: float = 0.0) -> Any:
    """x at ``t_skip`` from x_T at ``t_start`` by the exact flow of a Gaussian, without a model call.

    Args:
        source: a `GaussianMixture` of one component, or data, whose Gaussian is `gaussian_of` (data, floor).
        x_T: (batch, …) states, NumPy or torch; a sample has the d numbers of a data point, in any shape. For 1-D data
            any shape. One flat sample, (d,), is taken too.
        t_start, t_skip: times of ``process``; the state there continues in any solver whose grid starts at ``t_skip``.

    Returns:
        states of the kind, dtype and shape of ``x_T``.

    Raises:
        ValueError: a mixture of several components or with a ``floor``, x_T of another size than the data or not
            finite, times outside the process.
    """
    if isinstance(source, GaussianMixture) and nonnegative("floor", floor):
        raise ValueError(f"floor={floor!r} is for data; allowed with a mixture as source: none")
    gaussian = source if isinstance(source, GaussianMixture) else gaussian_of(real("source", source), floor)
    t_start, t_skip = (
        require_process(process)._check_scalar(t_start, "t_start"),
        process._check_scalar(t_skip, "t_skip"),
    )
    if gaussian.weights.size != 1:
        raise ValueError(f"source={gaussian!r} must have one component: no other has a closed-form flow in general")
    x = backend.floating("x_T", x_T if hasattr(x_T, "dtype") else real("x_T", x_T))
    d = gaussian.dimension
    if gaussian.means.ndim == 1 or (0 < x.ndim <= 2 and x.shape[-1] == d):
        return gaussian.flow(process, x, t_start, t_skip)
    if x.ndim < 2 or math.prod(x.shape[1:]) != d:
        raise ValueError(f"x_T has shape {tuple(x.shape)}; allowed: (batch, ...) with {d} numbers per sample")
    return gaussian.flow(process, x.reshape(x.shape[0], d), t_start, t_skip).reshape(x.shape)
