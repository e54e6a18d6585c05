r"""Ground truth by an adaptive integrator: DOPRI5 in float64 on the (x/α, λ) form, with an error estimate.

In λ the flow of y = x/α is :math:`dy/dλ = -e^{-λ} ε(αy, t(λ))`: bounded, and smooth where the model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchdiffeq import odeint

from deis_analysis import backend
from deis_analysis.process import PREDICTIONS, Process, require_process
from deis_analysis.tableau import Model
from deis_analysis.validate import choose, real

_TIGHTEN = 0.1


@dataclass(frozen=True)
class Reference:
    """A reference solution.

    Attributes:
        x: the state at ``t_end``, kind of the input, float64 inside.
        nfe: model evaluations of both runs together.
        error_estimate: largest absolute difference between ``x`` and a run at ten times its tolerance.
        rtol, atol: tolerances of the run that gave ``x``.
    """

    x: Any
    nfe: int
    error_estimate: float
    rtol: float
    atol: float


def reference_solution(
    model: Model,
    process: Process,
    x_T: Any,
    t_end: float | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    *,
    t_start: float | None = None,
    prediction: str = "eps",
    model_dtype: torch.dtype | None = None,
) -> Reference:
    """Integrate the probability flow from ``t_start`` to ``t_end`` by torchdiffeq's DOPRI5.

    Two runs are made, at (rtol, atol) and at a tenth of both; the second is returned, their difference is the estimate.

    Args:
        model: ``model(x, t) -> prediction``; gets NumPy arrays if ``x_T`` is one, torch tensors otherwise, in float64.
        x_T: the state at ``t_start``, any shape, NumPy or torch.
        model_dtype: cast the state to it before each call, for a float32 network under the float64 state.
        t_start, t_end: default ``process.sampling_range``; λ must be finite at both.

    Raises:
        ValueError: bad times or tolerances, a model that returns another shape or NaN, or tolerances that DOPRI5 cannot
            meet in float64 (its step underflows).
    """
    choose("prediction", prediction, PREDICTIONS)
    require_process(process)
    start = process.sampling_range[0] if t_start is None else process._check_scalar(t_start, "t_start")
    end = process.sampling_range[1] if t_end is None else process._check_scalar(t_end, "t_end")
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be positive and finite")
    if rtol * _TIGHTEN < 100 * np.finfo(np.float64).eps:
        raise ValueError(
            f"rtol={rtol!r} cannot be met in float64; allowed: at least {100 / _TIGHTEN * np.finfo(float).eps:.1e}"
        )
    for name, t in (("t_start", start), ("t_end", end)):
        if not np.isfinite(process.lam(t)):
            raise ValueError(f"{name}={t!r}: λ is infinite there on {process!r}")
    if not process.lam(start) < process.lam(end):
        raise ValueError(
            f"t_start={start!r} and t_end={end!r} have the same λ in float64; allowed: times further apart"
        )
    flow = _Flow(model, process, prediction, not isinstance(x_T, torch.Tensor), model_dtype)
    if hasattr(x_T, "dtype"):
        backend.of_floating_dtype("x_T", x_T)
    state = x_T.detach().to(torch.float64) if isinstance(x_T, torch.Tensor) else torch.from_numpy(real("x_T", x_T))
    if state.numel() == 0:
        raise ValueError(f"x_T has shape {tuple(state.shape)}; allowed: at least one entry")
    if not bool(torch.isfinite(state).all()):
        raise ValueError("x_T must be finite; it holds NaN or infinity")
    if process.mean is not None:
        flow.mean = torch.as_tensor(process.mean, dtype=torch.float64, device=state.device)
        state = state - flow.mean
    coarse = flow.integrate(state, start, end, rtol, atol)
    fine = flow.integrate(state, start, end, rtol * _TIGHTEN, atol * _TIGHTEN)
    estimate = float((coarse - fine).abs().max())
    result = fine if flow.mean is None else fine + flow.mean
    x: Any = result.numpy() if flow.numpy else result
    return Reference(x, flow.nfe, estimate, rtol * _TIGHTEN, atol * _TIGHTEN)


class _Flow:
    """dy/dλ of y = (x − mean)/α, counting model calls."""

    def __init__(self, model: Model, process: Process, prediction: str, numpy: bool, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.model, self.process, self.prediction, self.numpy = model, process, prediction, numpy
        self.mean: torch.Tensor | None = None
        self.nfe = 0

    def eps(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.nfe += 1
        shifted = (x if self.mean is None else x + self.mean).to(self.dtype or x.dtype)
        p = torch.as_tensor(self.model(shifted.numpy() if self.numpy else shifted, t)).to(x.dtype)
        if p.shape != x.shape:
            raise ValueError(
                f"model returned shape {tuple(p.shape)} at call {self.nfe}, t={t!r}; allowed: {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(p).all()):
            raise ValueError(f"model returned NaN or infinity at call {self.nfe}, t={t!r}")
        if self.mean is not None:
            p = p - self.mean if self.prediction == "x0" else p
        from_x, from_p = (float(c) for c in self.process.convert(self.prediction, "eps", t))
        return from_p * p + from_x * x if from_x else from_p * p

    @torch.no_grad()
    def integrate(self, x: torch.Tensor, start: float, end: float, rtol: float, atol: float) -> torch.Tensor:
        first, last = float(self.process.lam(start)), float(self.process.lam(end))

        def rate(lam: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            value = min(max(float(lam), first), last)
            t = float(np.clip(self.process.time_from_lam(value), end, start))
            return -float(np.exp(-value)) * self.eps(float(self.process.alpha(t)) * y, t)

        span = torch.tensor([first, last], dtype=torch.float64, device=x.device)
        try:
            y = odeint(rate, x / float(self.process.alpha(start)), span, rtol=rtol, atol=atol, method="dopri5")[-1]
        except AssertionError as error:
            raise ValueError(f"rtol={rtol!r}, atol={atol!r} cannot be met in float64: {error}") from error
        return float(self.process.alpha(end)) * y
