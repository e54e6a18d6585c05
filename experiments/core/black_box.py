"""A black-box integrator on the flow of a study's model: SciPy's RK45, on the three forms of its ODE."""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis.process.process import Array
from experiments.models.studies import Study


def black_box(problem: Study, form: str, t_start: float, t_end: float, tolerance: float) -> dict[str, Any]:
    """SciPy's RK45 at rtol = atol = ``tolerance`` from ``problem.x_T``, as in Song et al. 2021 (app. D.2).

    Forms: ``t``: dx/dt = f x + (g²/2σ) ε.  ``rho``: dy/dρ = ε with y = x/α.  ``lam``: dy/dλ = −e^{−λ} ε.  Returns
    x (n, d) NumPy, nfe, steps, rejected (steps that were tried and not taken).
    """
    import torch
    from scipy.integrate import solve_ivp

    process, like = problem.process, problem.x_T

    def eps(x: Array, t: float) -> Array:
        states = torch.as_tensor(x.reshape(tuple(like.shape)), dtype=like.dtype, device=like.device)
        return np.asarray(problem.model(states, t).detach().cpu()).ravel()

    def in_t(t: float, x: Array) -> Array:
        return float(process.drift(t)) * x + float(process.diffusion_squared(t) / (2 * process.sigma(t))) * eps(x, t)

    def in_rho(rho: float, y: Array) -> Array:
        t = float(np.clip(process.time_from_rho(rho), t_end, t_start))
        return eps(process.alpha(t) * y, t)

    forms: dict[str, tuple[Any, Any, Any]] = {
        "t": (in_t, float, lambda t: 1.0), "rho": (in_rho, process.rho, process.alpha),
        "lam": (lambda lam, y: -np.exp(-lam) * in_rho(np.exp(-lam), y), process.lam, process.alpha),
    }  # fmt: skip
    if form not in forms:
        raise ValueError(f"form={form!r} is unknown; allowed: {', '.join(forms)}")
    rate, clock, scale = forms[form]
    begin, ends = like.cpu().numpy().ravel() / scale(t_start), (float(clock(t_start)), float(clock(t_end)))
    found = solve_ivp(rate, ends, begin, method="RK45", rtol=tolerance, atol=tolerance)
    if not found.success:
        raise ValueError(f"tolerance={tolerance!r}: RK45 stopped on form {form!r}: {found.message}")
    x, steps = found.y[:, -1].reshape(tuple(like.shape)) * scale(t_end), found.t.size - 1
    return {"x": x, "nfe": found.nfev, "steps": steps, "rejected": (found.nfev - 2) // 6 - steps}  # 6 calls a try
