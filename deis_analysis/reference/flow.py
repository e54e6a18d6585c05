r"""Ground truth by an adaptive integrator: DOPRI5 in float64 on the (x/α, λ) form, certified by a second method.

In λ the flow of y = x/α is :math:`dy/dλ = -e^{-λ} ε(αy, t(λ))`: bounded, and smooth where the model is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from deis_analysis import backend
from deis_analysis.process.convention import predicting
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.reference.cache import Cache, files, load, store
from deis_analysis.reference.certificate import SAME_TIME, Flow, Reference, Show, solve
from deis_analysis.reference.settings import Settings
from deis_analysis.tableau import Model
from deis_analysis.validate import checked, function, real

_MOST_CALLS = 50_000


ReferencePath = Reference
_MEASURED = tuple(f.name for f in fields(Reference) if f.name not in ("times", "states"))


@checked
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
    certify: bool = True,
    tolerance: float | None = None,
    batch: int | None = None,
    most_calls: int = _MOST_CALLS,
    seed: int = 0,
    levels: Any = None,
    cache: Cache = None,
    key: str | None = None,
    progress: bool = False,
) -> Reference:
    """Integrate the probability flow from ``t_start`` to ``t_end`` by torchdiffeq's DOPRI5, and certify the result.

    Two runs are made, at (rtol, atol) and at a tenth of both; the second is returned, their difference is the estimate.
    To certify it an independent method, see `certificate`, must agree with it. Where DOPRI5 cannot meet
    the tolerances, because its step underflows or ``most_calls`` are made, they are loosened tenfold, up to 1e-3, and
    the result is not certified: its ``message`` says what was reached.

    What a certificate cannot see: the model was asked at finitely many times. A feature of it that is narrower than the
    widest gap between these can lie in a gap; both methods then step over it, agree, and are wrong. ``message`` tells
    the widest gap. To narrow it one more call is made for every five, in the widest gaps. It helps, and is no proof: of
    a model on VPLinear (two modes, variance .05, eight states) that is off by 1 in one row of 1,000, right elsewhere,
    40 of 48 rows were found out at the default tolerances and 20 of 48 at 1e-6. Where ``levels`` are known each of them
    is asked at, and the row is found out wherever it is; that costs a call per level.

    Args:
        model: ``model(x, t) -> prediction``; gets NumPy arrays if ``x_T`` is one, torch tensors otherwise, in float64.
        x_T: the state at ``t_start``, any shape, NumPy or torch.
        model_dtype: cast the state to it before each call, for a float32 network under the float64 state.
        t_start, t_end: default ``process.sampling_range``; λ must be finite at both.
        certify: without it there is no second method, and tolerances that cannot be met are an error.
        tolerance: to which error the result is to be certified, absolute and in max norm: largest difference of the
            two methods plus the second one's own estimate. Default 10 (atol + rtol max|x|), x all states but x_T.
        batch: integrate at most so many samples at a time, each part with steps of its own; the model must treat
            samples one by one. Parts that do not fit into a CUDA device's memory are halved.
        most_calls: model calls per part that each run of DOPRI5, and all of the second method together, may make.
        seed: of the random bends of the second method's grid.
        levels: times at which the model has values of its own, such as those at which a network that rounds its time is
            told an integer; more than ``most_calls`` between the ends are as good as unknown. Default: those of a
            network of `networks` whose ``times`` are "nearest" or "linear"; unknown for other models. Both
            methods step onto the levels of a `VPDiscrete` process in any case.
        cache: folders; a reference found in any of them is not computed, a new one is written to the first.
        key: what the model is, such as a hash of its weights; default ``model.digest``. With the process, times, state
            and tolerances it names the file; ``batch`` does not.
        progress: show a progress bar.

    Raises:
        ValueError: bad arguments, a model that is no function or returns another shape or NaN, tolerances that DOPRI5
            cannot meet even at 1e-3, or a cache without a key.
    """
    own = _given_levels(require_process(process), levels)
    settings = Settings(rtol, atol, prediction, model_dtype, certify, tolerance, batch, most_calls, progress, seed, own)
    start = process.sampling_range[0] if t_start is None else process._check_scalar(t_start, "t_start")
    end = process.sampling_range[1] if t_end is None else process._check_scalar(t_end, "t_end")
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}")
    return _path(model, process, x_T, {"t_start": start, "t_end": end}, settings, cache, key)


@checked
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
    certify: bool = True,
    tolerance: float | None = None,
    batch: int | None = None,
    most_calls: int = _MOST_CALLS,
    seed: int = 0,
    levels: Any = None,
    cache: Cache = None,
    key: str | None = None,
    progress: bool = False,
) -> Reference:
    """The probability flow of ``x_T`` at many ``times``: both methods step exactly onto each of them.

    Args:
        times: at least two different times, in any order; ``x_T`` is the state at the largest.

    Other arguments and errors as `reference_solution`.
    """
    own = _given_levels(require_process(process), levels)
    settings = Settings(rtol, atol, prediction, model_dtype, certify, tolerance, batch, most_calls, progress, seed, own)
    apart: list[float] = []
    for t in sorted((process._check_scalar(t, "times") for t in np.ravel(real("times", times))), reverse=True):
        if not apart or apart[-1] - t > SAME_TIME:
            apart.append(t)
    if len(apart) < 2:
        raise ValueError(f"times={apart} must hold at least 2 different times")
    return _path(model, process, x_T, {f"times[{i}]": t for i, t in enumerate(apart)}, settings, cache, key)


def _path(
    model: Model,
    process: Process,
    x_T: Any,
    times: dict[str, float],
    settings: Settings,
    cache: Cache,
    key: str | None,
) -> Reference:
    """The path over the named, descending times, from a file or computed."""
    function("model", model)
    _check_levels(process, times)
    state, levels, numpy = _checked_state(x_T), list(times.values()), not isinstance(x_T, torch.Tensor)
    dtype = str(getattr(x_T, "dtype", "float64")).removeprefix("torch.")
    question = settings.question() | {"process": process, "times": levels, "x_T": state, "dtype": dtype}
    places = files(cache, key, model, question)
    names, shape = {"states", *_MEASURED}, (len(levels), *state.shape)
    found = next(filter(None, (load(place, names, shape) for place in places)), None)
    if found is None:
        flow = Flow(predicting(model, process, settings.prediction), process, settings, numpy, state.device)
        flow.levels = _levels_of(model, process, levels) if settings.levels is None else np.array(settings.levels)
        with _bar(settings.progress) as flow.show:
            solved = _in_parts(flow, state, levels)
        found = {name: getattr(solved, name) for name in ("states", *_MEASURED)}
        if places:
            store(places[0], found | {"states": torch.stack(solved.states).cpu().numpy()})
    states = [torch.as_tensor(x, device=state.device) for x in found.pop("states")]
    return Reference(tuple(levels), tuple(x.numpy() if numpy else x for x in states), **found)


def _given_levels(process: Process, levels: Any) -> tuple[float, ...] | None:
    if levels is None:
        return None
    return tuple(sorted({process._check_scalar(t, "levels") for t in np.ravel(real("levels", levels))}))


def _levels_of(model: Any, process: Process, times: list[float]) -> Array | None:
    """Times between the largest and the smallest at which a network that rounds what it is told is told an integer.

    It is an `ImageModel`, or one `Carried` to another process.
    """
    network = getattr(model, "model", model)
    if getattr(network, "times", "fractional") == "fractional" or not hasattr(network, "convention"):
        return None
    told, own = network.convention, network.process
    first, last = sorted(told.told(own, own.time_from_rho(process.rho([times[0], times[-1]]))))
    clock = (np.arange(np.ceil(first), np.floor(last) + 1) - told.offset) / told.scale
    return process.time_from_rho(own.rho(own.time_from_lam(clock) if told.time == "lam" else clock))


def _in_parts(flow: Flow, state: torch.Tensor, levels: list[float]) -> Reference:
    """Solve for the whole batch, or in parts that are small enough."""
    count = len(state) if state.ndim else 1
    size, start, parts = min(flow.settings.batch or count, count), 0, []
    while start < count:
        try:
            parts.append(solve(flow, state[start : start + size] if state.ndim else state, levels))
            start += size
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
    if len(parts) == 1:
        return parts[0]
    worst = max(parts, key=lambda part: (not part.certified, part.agreement))
    largest = {name: max(getattr(p, name) for p in parts) for name in ("error_estimate", "rtol", "atol", "tolerance")}
    return Reference(
        times=tuple(levels),
        states=tuple(torch.cat(states) for states in zip(*(part.states for part in parts), strict=True)),
        nfe=flow.nfe,
        second_nfe=sum(part.second_nfe for part in parts),
        certified=all(part.certified for part in parts),
        agreement=float(np.max([part.agreement for part in parts])),  # nan if any is
        message=f"{worst.message} (the worst of {len(parts)} parts of the batch)",
        **largest,
    )


@contextmanager
def _bar(progress: bool) -> Iterator[Show]:
    """A function that shows what runs, and the share of it that is done."""
    if not progress:
        yield lambda text, share: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        row = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(row, description=text, completed=share)


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
