r"""Mean-reverting diffusion: MRS and Resfusion.

On `MeanReverting` x − μ obeys the inner process, so MRS is DPM-Solver(++) on x − μ, ODE and SDE, and every table does
the shift by itself: the published terms in μ are those that make x ≡ μ a fixed point.  The published second order has
the exact weights; the third weighs the second difference by half, as does the DPM-Solver++ code (see `dpm_solver`).

Resfusion is the case μ = R, the residual between a degraded input and the data: its "resnoise" target makes the update
of DDPM carry the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.solvers.exponential_adams import adams
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.stochastic import ddpm
from deis_analysis.tableau import Tableau
from deis_analysis.validate import checked, choose, positive_int


@checked
def mrs(
    process: Process, ts: Any, order: int = 2, *, prediction: str = "x0", lam_sde: float = 0.0, name: str = "mrs"
) -> Tableau:
    r"""The mean-reverting sampler of order 1–3: interpolation in λ over the latest steps, as published.

    Args:
        ts: (N + 1,) descending times; one model call per step.
        order: the paper's, 1, 2 or 3; the third converges with order 2.
        prediction: ``"eps"``, ``"x0"``, or ``"v"``, which is converted to x₀ at each call.
        lam_sde: 0 for the ODE solver, 1 for the SDE solver.

    Raises:
        ValueError: order not 1–3, unknown prediction, a bad grid, or times where ρ is 0 or infinite.

    Source: Li et al. 2025 (MRS, arXiv 2502.07856), the solvers for noise, data and velocity prediction.
    """
    if positive_int("order", order) > 3:
        raise ValueError(f"order={order} must be 1, 2 or 3")
    inner = "x0" if choose("prediction", prediction, ("eps", "x0", "v")) == "v" else prediction
    table = adams(process, ts, order - 1, prediction=inner, variable="lam", lam_sde=lam_sde, rule="halved", name=name)
    return table.in_terms_of(process, "v") if prediction == "v" else table


@checked
def resfusion(process: Process, ts: Any, *, name: str = "resfusion") -> Tableau:
    r"""Resfusion: the update of DDPM, for a model that predicts ``resnoise`` = ε + R · `resnoise_weight`.

    On x itself, without knowing R: equal to `ddpm` on ``MeanReverting(process, R)`` with a model of ε.  Sampling starts
    where α = ½ (`resfusion_start`): there the mean is half the degraded input, whatever the data.

    Args:
        ts: (N + 1,) descending times.

    Source: Shi et al. 2024 (Resfusion, arXiv 2311.14900), the reverse process with resnoise.
    """
    return ddpm(process, ts, name=name)


@checked
def resnoise_weight(process: Process, ts: Any) -> Array:
    """(N,) weight of the residual in the resnoise target: (1 − R) σ_t/β at ts[:-1], R = α_t/α_s, β = σ_t² − R² σ_s².

    Source: Shi et al. 2024, definition of the resnoise.
    """
    ts = check_grid(process, ts)
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    ratio = alpha[:-1] / alpha[1:]
    h = process.lam(ts[1:]) - process.lam(ts[:-1])
    return np.asarray((1.0 - ratio) / (sigma[:-1] * -np.expm1(-2.0 * h)))


@checked
def resfusion_start(process: Process) -> float:
    """The time at which α = ½, where x_t = (x₀ + R)/2 + σε does not depend on x₀ but through the degraded input.

    Raises:
        ValueError: the process is not variance preserving.
    """
    if not require_process(process).variance_preserving:
        raise ValueError(f"process={process!r} must be variance preserving")
    return float(process.time_from_rho(np.sqrt(3.0)))


_MRS = "Li et al. 2025 (MRS, arXiv 2502.07856)"
_row = family(mrs, family="mrs", variable="lam")
for _kind, _lam, _strong in (("ode", 0.0, None), ("sde", 1.0, 1)):
    for _prediction, _measured in (("eps", "eps"), ("x0", "x0"), ("v", "x0")):
        for _order in (1, 2, 3):
            _row(
                f"mrs_{_kind}_{_prediction}_{_order}",
                min(_order, 2),
                min(_order, 2) - 1,
                {"order": _order, "prediction": _prediction, "lam_sde": _lam},
                prediction=_measured,
                starting_steps=_order - 1,
                lam_sde=_lam,
                strong_order=_strong,
                source=_MRS + (", third order by analogy" if _order == 3 and _lam else ""),
            )

_SHI = "Shi et al. 2024 (Resfusion, arXiv 2311.14900), reverse process"
_row = family(resfusion, family="ancestral", variable="lam", lam_sde=1.0, strong_order=1)
_row("resfusion", 1, 0, prediction="x0", source=_SHI)
