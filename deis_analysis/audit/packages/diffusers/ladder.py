"""The formulas of diffusers' schedulers on the levels of the order problem, in float64.

Trained β give the VP classes ᾱ at these levels, the others get the levels in place of their own.  The module of a class
sees a torch and a NumPy whose float32 is float64, so that rounding does not hide the order.  Options of the schedule
(spacing, Karras levels, shifts) are left out; those of the formula stay.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from deis_analysis.audit.packages.diffusers.scheduler import Scheduler, convention_of, denoise, process_of, remember
from deis_analysis.audit.packages.shared import quiet
from deis_analysis.audit.subject import Prepared
from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM, RectifiedFlow

_SCHEDULE = {  # options that say where the steps are, not what a step is
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "timestep_spacing",
    "steps_offset",
    "interpolation_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "flow_shift",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "shift_terminal",
    "invert_sigmas",
    "time_shift_type",
    "rescale_betas_zero_snr",
    "lambda_min_clipped",
    "final_sigmas_type",
    "set_alpha_to_one",
    "sigma_min",
    "sigma_max",
    "sigma_schedule",
    "rho",
    "mu",
    "original_inference_steps",
    "timestep_type",
}
_STRIDE = 2  # levels of the ladder's process per step: PNDM asks in the middle of a step


class _Double:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@contextmanager
def _in_double(subject: Scheduler) -> Iterator[None]:
    """The scheduler's module computes in float64, and Python numbers become float64 tensors."""
    import diffusers
    import torch

    module, before = sys.modules[getattr(diffusers, subject.name).__module__], torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with ExitStack() as stack, quiet():
            for used in ("torch", "np"):
                if hasattr(module, used):
                    stack.enter_context(patch.object(module, used, _Double(getattr(module, used))))
            yield
    finally:
        torch.set_default_dtype(before)


def on_ladder(subject: Scheduler, steps: int) -> Prepared:
    """The formula on the order problem with ``steps`` steps, whole blocks of a singlestep method."""
    if "Singlestep" in subject.name:
        block = int(subject.declared_order or 1)
        steps = -(-steps // block) * block
    names = _options(subject)
    config = {key: value for key, value in subject.config.items() if key not in _SCHEDULE}
    if "lower_order_final" in names:
        config.setdefault("lower_order_final", False)
    if "final_sigmas_type" in names:
        config["final_sigmas_type"] = "sigma_min"
    if subject.name == "SASolverScheduler":
        config["tau_func"] = lambda _: 1.0  # its own is 1 in the middle of its 1000 times and 0 elsewhere
    if subject.kind == "flow" and subject.family.kind != "flow":
        config["use_flow_sigmas"] = True
    bare = replace(subject, config=config, timing={})
    return _replaced(bare, steps) if subject.kind in ("flow", "edm") else _trained(bare, steps)


def _options(subject: Scheduler) -> Any:
    """Parameters of the constructor."""
    import diffusers

    return inspect.signature(getattr(diffusers, subject.name).__init__).parameters


def _trained(subject: Scheduler, steps: int) -> Prepared:
    """A VP class whose training levels are those of the order problem."""
    process, _, options = order_problem()
    fine = grid(process, _STRIDE * steps, **options)[::-1]
    mode, spacing = subject.family.ladder, math.sqrt(fine[1]) - math.sqrt(fine[0])
    if mode == "leading":  # it divides the number of training times by that of steps: one more block of them
        fine = np.append(fine, (math.sqrt(fine[-1]) + spacing * np.arange(1, _STRIDE)) ** 2)
    ts = fine[: _STRIDE * steps + 1 : _STRIDE][::-1]
    alphas, log_rho = process.alpha(fine) ** 2, np.log(process.rho(fine))
    config: dict[str, Any] = {
        "trained_betas": 1.0 - alphas / np.append(1.0, alphas[:-1]),
        "num_train_timesteps": fine.size,
    }
    if mode == "betas":
        config = {"trained_betas": process.sigma(ts)}
    elif "timestep_spacing" in _options(subject):
        config["timestep_spacing"] = "leading" if mode == "leading" else "linspace"
    skip = int(mode in ("leading", "ends at 0"))  # their last step is from the last level to the data

    pristine, known = functools.cache(lambda: subject.make(**config)), dict[Any, Any]()

    def sampler(model: Callable[..., Any], x: Any) -> Any:
        with _in_double(subject):
            scheduler = copy.deepcopy(pristine())
            remember(scheduler, known)
            scheduler.set_timesteps(steps + skip)
            start = x / float(process.alpha(ts[0])) if subject.kind == "karras" else x
            return denoise(subject, scheduler, model, start, skip)

    def time(raw: float) -> float:
        if mode == "betas":
            return float(process.time_from_rho(math.tan(raw * math.pi / 2)))
        return float(process.time_from_rho(math.exp(np.interp(raw, np.arange(fine.size), log_rho))))

    return _prepared(subject, sampler, process, time, ts)


def _replaced(subject: Scheduler, steps: int) -> Prepared:
    """A class that works from its lists of levels and times: those of the order problem take their place."""
    import torch

    process: Process = RectifiedFlow()
    if subject.kind == "edm":
        standard, _, options = order_problem()
        low, high = (float(standard.rho(options[key])) for key in ("t_end", "t_start"))
        process = EDM(low / 2, high * 2)
        ts = standard.rho(grid(standard, steps, **options))
    else:
        process, _, options = order_problem(process)
        ts = grid(process, steps, **options)
    relabel = subject.family.ladder == "relabel"

    pristine = functools.cache(subject.make)

    def sampler(model: Callable[..., Any], x: Any) -> Any:
        with _in_double(subject):
            scheduler = copy.deepcopy(pristine())
            scheduler.set_timesteps(steps + (2 if subject.name == "MiniMaxH3Scheduler" else int(relabel)))
            if relabel:
                scheduler.sigmas = _in_turn(scheduler.sigmas, np.append(ts, 0.0))
                scheduler.timesteps = _in_turn(scheduler.timesteps, _raw(subject, scheduler, ts))
            else:
                scheduler.sigmas = torch.as_tensor(ts.copy())
                scheduler.timesteps = torch.as_tensor(_raw(subject, scheduler, ts[:-1]))
            return denoise(subject, scheduler, model, x, int(relabel))

    example = subject.make()
    return _prepared(subject, sampler, process, process_of(subject, example)[1], ts)


def _raw(subject: Scheduler, scheduler: Any, ts: Array) -> Array:
    """What the model is told at these times of a flow or levels of EDM."""
    if subject.name == "MiniMaxH3Scheduler":
        return 1.0 - ts
    if subject.kind == "flow":
        return float(scheduler.config.num_train_timesteps) * ts
    return np.arctan(ts) * 2 / math.pi if subject.name.startswith("Cosine") else 0.25 * np.log(ts)


def _in_turn(theirs: Any, ours: Array) -> Any:
    """A tensor in which the k-th different number of ``theirs`` is the k-th of ``ours``."""
    import torch

    values = np.asarray(theirs, dtype=np.float64)
    _, first = np.unique(values, return_index=True)
    rank = {float(values[i]): k for k, i in enumerate(np.sort(first))}
    return torch.as_tensor(np.array([ours[rank[float(value)]] for value in values]))


def _prepared(
    subject: Scheduler, sampler: Callable[..., Any], process: Process, time: Callable[[float], float], ts: Array
) -> Prepared:
    rho = process.rho(ts)
    return Prepared(
        sampler,
        process,
        convention_of(subject, subject.make(), time),
        float(ts[-1]),
        "karras" if subject.kind in ("karras", "edm") else "process",
        end_level=float(rho[-1]),
        levels=tuple(map(float, rho)),
    )
