"""The noise of a step: that of the λ-family of SDEs, exactly, and where on the ρ² clock it acts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from deis_analysis.process.process import Array, Process
from deis_analysis.solvers.weights import check_finite, increments
from deis_analysis.validate import nonnegative

MOST_LAM = 1e3  # λ of the λ-family


def check_lam(process: Process, prediction: str, ts: Array, lam_sde: Any) -> float:
    """``lam_sde`` as a float; ValueError unless in [0, 1,000] and, for x₀, small enough for ρ^{λ²} to be a number."""
    lam = nonnegative("lam_sde", lam_sde, MOST_LAM)
    if lam and prediction == "x0":
        check_finite(process, prediction, "lam", ts)
        largest = float(np.max(np.abs(process.lam(ts))))
        if lam**2 * largest > 700:
            raise ValueError(f"lam_sde={lam_sde!r}: ρ^(λ²) overflows; allowed: at most {(700 / largest) ** 0.5:.3g}")
    return lam


def step_noise(process: Process, prediction: str, ts: Array, lam_sde: float) -> tuple[Any, Any]:
    """(N + 1, N) noise of each step of the λ-family in the clock of ``prediction``, and the (N, 2) intervals in ρ²."""
    if not lam_sde:
        return None, ()
    sigma = process.sigma(ts)[1:]
    return one_noise_a_step(sigma * noise_scale(process, prediction, ts, lam_sde)), rho_intervals(process, ts)


def one_noise_a_step(scales: Array) -> csr_array:
    """(N + 1, N) matrix that adds noise l times ``scales[l]`` (N,) at the end of step l."""
    steps = scales.size
    return csr_array((scales, np.arange(steps), np.append(0, np.arange(steps + 1))), shape=(steps + 1, steps))


def noise_scale(process: Process, prediction: str, ts: Array, lam_sde: float) -> Array:
    """(N,) standard deviation of each step's noise, in units of σ at its end."""
    h = np.abs(increments(process, "lam", ts))
    if prediction == "x0":
        return np.sqrt(-np.expm1(-2.0 * lam_sde**2 * h))
    return lam_sde * np.sqrt(np.expm1(2.0 * h))


def rho_intervals(process: Process, ts: Array) -> Array:
    """(N, 2) the steps of a grid as intervals of the ρ² clock."""
    level = process.rho(ts) ** 2
    return np.stack([level[:-1], level[1:]], axis=1)
