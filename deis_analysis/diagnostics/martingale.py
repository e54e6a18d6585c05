r"""Does a stochastic step keep the denoiser? D(x_t, t) = E[x₀ | x_t] is a martingale along the exact reverse SDE.

The reverse SDE (λ = 1) reproduces the joint law of the forward process, so for s < t

.. math:: E[D(x_s, s) \mid x_t] = E[E[x_0 \mid x_s] \mid x_t] = D(x_t, t) .

A step's defect E[D(x_s, s) | x_t] − D(x_t, t) is therefore a weak error, of the joint law of (x_t, x_s). Two limits. On
Gaussian data D is affine, so only the mean of the step counts: every step that takes the posterior mean given
x₀ = D(x_t) has defect zero, whatever its noise. And the martingale belongs to λ = 1: a step of the λ-family of length h
has the defect :math:`-\tfrac12 (1 - λ^2)\, g^2 (s·∇ + Δ) D\, h + O(h^2)`, however accurate it is.

Source: the idea, SCott (Liu et al. 2024, arXiv 2403.01505); derived here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.analysis.law import affine_form, check_table
from deis_analysis.process.process import Array, Process
from deis_analysis.tableau import Model, Tableau, run
from deis_analysis.validate import checked, finite, function, positive_int


@dataclass(frozen=True)
class MartingaleDefect:
    """E[D(x_s, s) | x_t] − D(x_t, t) = slope · (x_t − E x_t) + offset, per axis.

    Attributes:
        slope: (V,). offset: (V,) the mean of the defect over p_t.
        rms: (V,) root mean square of the defect over p_t.
    """

    slope: Array
    offset: Array
    rms: Array


@checked
def martingale_defect(tableau: Tableau, process: Process, mean: Any, variance: Any) -> MartingaleDefect:
    r"""The defect of a table on data N(mean, variance), from its first time t to its last s: exact linear algebra.

    With x_s = c x_t + d + Σ e z and D(x, t) = m + k_t (x − α_t m), k = αv/(α²v + σ²),

    .. math:: \text{slope} = k_s c - k_t , \qquad \text{offset} = k_s (c\,α_t m + d - α_s m) .

    Args:
        tableau: one step or several, with the exact model of such data.
        mean, variance: (V,) of the data along V independent axes, variance ≥ 0.

    Raises:
        ValueError: as `law.affine_form`; variance 0 at a time with σ = 0.
    """
    check_table(tableau, process)
    v = np.atleast_1d(finite("variance", variance, 0.0))
    centre = 0.0 if process.mean is None else finite("mean of the process", process.mean)
    given = finite("mean", mean)
    if given.shape not in ((), (1,), v.shape):
        raise ValueError(f"mean has shape {given.shape}; allowed: one number, or {v.shape}, as variance")
    m = np.broadcast_to(given - centre, v.shape)
    c, d, _ = affine_form(tableau, process, m, v)
    (alpha, total), (alpha_s, total_s) = (
        (float(process.alpha(t)), float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2)
        for t in (float(tableau.times[0]), float(tableau.times[-1]))
    )
    if np.any(total_s == 0) or np.any(total == 0):
        raise ValueError(f"variance={variance!r} must be positive where σ = 0, at the table's last time")
    gain, gain_s = alpha * v / total, alpha_s * v / total_s
    slope = gain_s * c - gain
    offset = gain_s * (c * alpha * m + d - alpha_s * m)
    return MartingaleDefect(slope, offset, np.sqrt(offset**2 + slope**2 * total))


@dataclass(frozen=True)
class SampledDefect:
    """A Monte-Carlo estimate of E[D(x_s, s) | x_t] − D(x_t, t).

    Attributes:
        value: shape of x, in the array's kind. standard_error: of ``value``, entry by entry.
    """

    value: Any
    standard_error: Any


@checked
def sampled_martingale_defect(
    tableau: Tableau, model: Model, process: Process, x: Any, pairs: int = 128, *, seed: int = 0
) -> SampledDefect:
    """The defect of a table on any model, at each x, averaged over ``pairs`` of noises (z, −z).

    The part of D(x_s, s) that is odd in z, of the size of the noise, cancels in each pair; what is left is averaged.

    Args:
        tableau: from t to s, where σ_s > 0 unless it predicts x₀.
        model: ``model(x, t)``, predicts what the table says; called on batches of 2 · pairs · n states of the dtype of
            ``x``: for a float32 network x is float32.
        x: (n, …) states at the table's first time, NumPy or torch.
        pairs: independent pairs per state, at least 2; from ``seed``.

    Raises:
        ValueError: a table without noise, bad counts, non-finite x; as `run`.
    """
    check_table(tableau, process)
    function("model", model)
    count, columns = positive_int("pairs", pairs, minimum=2), tableau.noises
    if not tableau.stochastic:
        raise ValueError(f"tableau {tableau.name!r} has no noise; allowed: a stochastic table")
    start = backend.floating("x", x)
    if start.ndim == 0:
        raise ValueError("x has shape (); allowed: (n, …)")
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    shape = (2, count, *start.shape)
    one = rng.standard_normal((columns, *shape[1:]))
    z = backend.like(np.stack([one, -one], axis=1), start).reshape(columns, -1, *start.shape[1:])
    first, last = float(tableau.times[0]), float(tableau.times[-1])
    many = (start[None] + backend.like(np.zeros((2 * count, *start.shape)), start)).reshape(-1, *start.shape[1:])
    end = run(tableau, model, many, [z[i] for i in range(columns)])
    prediction = tableau.prediction
    change = process._translate(end, model(end, last), prediction, "x0", last).reshape(shape)
    before = process._translate(start, model(start, first), prediction, "x0", first)
    change = 0.5 * (change[0] + change[1]) - before
    mean = change.mean(0)
    return SampledDefect(mean, (((change - mean) ** 2).sum(0) / (count * (count - 1))) ** 0.5)
