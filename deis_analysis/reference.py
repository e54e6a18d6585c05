r"""Ground truth by an adaptive integrator: DOPRI5 in float64 on the (x/α, λ) form, with an error estimate.

In λ the flow of y = x/α is :math:`dy/dλ = -e^{-λ} ε(αy, t(λ))`: bounded, and smooth where the model is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchdiffeq import odeint

from deis_analysis import backend
from deis_analysis.process import PREDICTIONS, Process, require_process
from deis_analysis.tableau import Model
from deis_analysis.validate import choose, function, real

_TIGHTEN = 0.1
_SAME_TIME = 1e-12


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


@dataclass(frozen=True)
class ReferencePath:
    """A reference solution at many times.

    Attributes:
        times: descending, the first that of ``x_T``; a time that was asked for twice is here once.
        states: the state at each of the times, kind of the input, float64 inside; the first is ``x_T``.
        nfe, error_estimate, rtol, atol: as in `Reference`; the estimate is the largest over all times.
    """

    times: tuple[float, ...]
    states: tuple[Any, ...]
    nfe: int
    error_estimate: float
    rtol: float
    atol: float

    def __call__(self, t: float) -> Any:
        """The state at one of the times (within 1e-12).

        Raises:
            ValueError: no state is known there.
        """
        nearest = min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))
        if not abs(self.times[nearest] - t) <= _SAME_TIME:
            raise ValueError(f"t={t!r} is not on the path; allowed: one of its {len(self.times)} times")
        return self.states[nearest]


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
        ValueError: bad times or tolerances, a model that is no function or returns another shape or NaN, or tolerances
            that DOPRI5 cannot meet in float64 (its step underflows).
    """
    require_process(process)
    start = process.sampling_range[0] if t_start is None else process._check_scalar(t_start, "t_start")
    end = process.sampling_range[1] if t_end is None else process._check_scalar(t_end, "t_end")
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}")
    path = _path(model, process, x_T, {"t_start": start, "t_end": end}, rtol, atol, prediction, model_dtype)
    return Reference(path.states[-1], path.nfe, path.error_estimate, path.rtol, path.atol)


def reference_path(
    model: Model,
    process: Process,
    x_T: Any,
    times: Any,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    *,
    prediction: str = "eps",
    model_dtype: torch.dtype | None = None,
) -> ReferencePath:
    """The probability flow of ``x_T`` at many ``times``: one integration that steps exactly onto each of them.

    Args:
        times: at least two different times, in any order; ``x_T`` is the state at the largest.

    Other arguments and errors as `reference_solution`.
    """
    require_process(process)
    levels: list[float] = []
    for t in sorted((process._check_scalar(t, "times") for t in np.ravel(real("times", times))), reverse=True):
        if not levels or levels[-1] - t > _SAME_TIME:
            levels.append(t)
    if len(levels) < 2:
        raise ValueError(f"times={levels} must hold at least 2 different times")
    named = {f"times[{i}]": t for i, t in enumerate(levels)}
    return _path(model, process, x_T, named, rtol, atol, prediction, model_dtype)


def _path(
    model: Model,
    process: Process,
    x_T: Any,
    times: dict[str, float],
    rtol: float,
    atol: float,
    prediction: str,
    dtype: Any,
) -> ReferencePath:
    """Two runs of DOPRI5 over the named, descending times."""
    function("model", model)
    choose("prediction", prediction, PREDICTIONS)
    _check_tolerances(rtol, atol)
    _check_levels(process, times)
    flow = _Flow(model, process, prediction, not isinstance(x_T, torch.Tensor), dtype)
    state = _checked_state(x_T)
    if process.mean is not None:
        flow.mean = torch.as_tensor(process.mean, dtype=torch.float64, device=state.device)
        state = state - flow.mean
    levels = list(times.values())
    coarse = flow.integrate(state, levels, rtol, atol)
    fine = flow.integrate(state, levels, rtol * _TIGHTEN, atol * _TIGHTEN)
    estimate = max(float((a - b).abs().max()) for a, b in zip(coarse, fine, strict=True))
    states = fine if flow.mean is None else [x + flow.mean for x in fine]
    found = tuple(x.numpy() if flow.numpy else x for x in states)
    return ReferencePath(tuple(levels), found, flow.nfe, estimate, rtol * _TIGHTEN, atol * _TIGHTEN)


def _check_tolerances(rtol: float, atol: float) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be positive and finite")
    if rtol * _TIGHTEN < 100 * np.finfo(np.float64).eps:
        raise ValueError(
            f"rtol={rtol!r} cannot be met in float64; allowed: at least {100 / _TIGHTEN * np.finfo(float).eps:.1e}"
        )


def _check_levels(process: Process, times: dict[str, float]) -> None:
    for name, t in times.items():
        if not np.isfinite(process.lam(t)):
            raise ValueError(f"{name}={t!r}: λ is infinite there on {process!r}")
    for (before, t), (after, s) in itertools.pairwise(times.items()):
        if not process.lam(t) < process.lam(s):
            raise ValueError(
                f"{before}={t!r} and {after}={s!r} have the same λ in float64; allowed: times further apart"
            )


def _checked_state(x_T: Any) -> torch.Tensor:
    if hasattr(x_T, "dtype"):
        backend.of_floating_dtype("x_T", x_T)
    state = x_T.detach().to(torch.float64) if isinstance(x_T, torch.Tensor) else torch.from_numpy(real("x_T", x_T))
    if state.numel() == 0:
        raise ValueError(f"x_T has shape {tuple(state.shape)}; allowed: at least one entry")
    if not bool(torch.isfinite(state).all()):
        raise ValueError("x_T must be finite; it holds NaN or infinity")
    return state


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
        output = self.model(shifted.numpy() if self.numpy else shifted, t)
        if output is None:
            raise ValueError(f"model returned None at call {self.nfe}, t={t!r}; allowed: shape {tuple(x.shape)}")
        p = torch.as_tensor(output).to(x.dtype)
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
    def integrate(self, x: torch.Tensor, times: list[float], rtol: float, atol: float) -> list[torch.Tensor]:
        """States at descending ``times``, the first of which is that of ``x``."""
        levels = [float(self.process.lam(t)) for t in times]
        first, last, end, start = levels[0], levels[-1], times[-1], times[0]

        def rate(lam: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            value = min(max(float(lam), first), last)
            t = float(np.clip(self.process.time_from_lam(value), end, start))
            return -float(np.exp(-value)) * self.eps(float(self.process.alpha(t)) * y, t)

        span = torch.tensor(levels, dtype=torch.float64, device=x.device)
        options = {"step_t": span[1:-1]} if len(levels) > 2 else None  # a step ends there: no interpolation
        try:
            y = odeint(
                rate, x / float(self.process.alpha(start)), span, rtol=rtol, atol=atol, method="dopri5", options=options
            )
        except AssertionError as error:
            raise ValueError(f"rtol={rtol!r}, atol={atol!r} cannot be met in float64: {error}") from error
        return [x, *(float(self.process.alpha(t)) * y[i] for i, t in enumerate(times) if i)]
