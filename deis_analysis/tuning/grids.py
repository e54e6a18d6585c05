"""Time grids made for one model; `deis_analysis.grid` makes those that know none."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np

from deis_analysis.process.grids import grid as time_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.tuning.bank import Bank, eps_model, finite_level, trajectories
from deis_analysis.tuning.denoising import ays, entropic
from deis_analysis.tuning.jumps import gits, oss
from deis_analysis.tuning.score_path import score_optimal
from deis_analysis.tuning.weight_bound import dm
from deis_analysis.validate import checked, choose, instance, positive_int

GRIDS = ("entropic", "score_optimal", "gits", "oss", "ays", "dm")
_MAKERS: dict[str, Callable[..., Array]] = {
    "entropic": entropic,
    "score_optimal": score_optimal,
    "gits": gits,
    "oss": oss,
    "ays": ays,
    "dm": dm,
}
_GIVEN = {"bank", "model", "process", "steps", "ends", "seed"}  # arguments of a maker that are not options of a kind
_MOST_STEPS = 1000
_SLACK = 1e-12  # relative distance at which a time is one of the bank's


@checked
def grid(
    model: Any,
    steps: int,
    kind: str,
    *,
    x: Any = None,
    bank: Bank | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    points: int = 60,
    seed: int = 0,
    **options: Any,
) -> Array:
    """A descending time grid of ``steps`` + 1 points with exact ends, made for ``model``.

    ===============  ===================================================================  ========================
    kind             what it makes equal or least                                         calls, M bank times
    ===============  ===================================================================  ========================
    "entropic"       equal steps of rescaled entropic time, see `denoising`               2 · draws · M
    "score_optimal"  equal changes of the score, see `score_path`                         M − 1
    "gits"           errors of Euler jumps off the bank's trajectories, see `jumps`       0
    "oss"            error of the end of the DDIM steps themselves, see `jumps`           (N − 1)(M − 1 − N/2)
    "ays"            the upper bound KLUB of stochastic DDIM, see `denoising`             2 · draws · M
    "dm"             the model's error carried by DPM-Solver++ weights, `weight_bound`    0, and no bank
    ===============  ===================================================================  ========================

    A call is one of the whole batch; `model_calls` says how many before they are made. A bank keeps what was measured
    of its model: further grids of "entropic", "ays" and "score_optimal" on it cost nothing.

    Args:
        model: a model that says what it is (`deis_analysis.Model`), of any prediction and process.
        steps: N, 1 to 1000; at most M − 1 for "gits" and "oss", whose times are some of the bank's.
        x: (B, …) states at t_start, from which a bank of ``points`` times is made, at ``points`` calls more; or
        bank: one from `trajectories`, of this process; its ends are the defaults of t_start and t_end, and it must
            reach them (for "gits" and "oss": have them). The denoising error takes its last states for clean.
        t_start, t_end: process time; defaults: the bank's ends, else ``process.sampling_range``.
        seed: of the noise of "entropic" and "ays".
        options: "entropic", "ays": ``draws=1``, pairs of noises. "score_optimal": ``state="process"`` or ``"karras"``.
            "gits": ``gamma=1.15``, weight of each later step; ``metric="dev"`` or ``"l2"``. "dm": ``order=3``,
            ``power=2``, ``lower_order_final=True``, ``apart=3``.

    Raises:
        ValueError: names the argument; a bare function; a bank of another process; ρ infinite at t_start; levels that
            float64 does not tell apart in time; a model output that is NaN or infinite (names its t).
    """
    maker = _MAKERS[choose("kind", kind, GRIDS)]
    steps = positive_int("steps", steps, most=_MOST_STEPS)
    _check_options(kind, options)
    typed = eps_model(model)
    process, seed = typed.process, positive_int("seed", seed, minimum=0)
    if kind == "dm":
        ends = _ends(process, t_start, t_end)
        return _as_times(process, dm(process, steps, ends, **options), ends)
    if bank is None:
        bank = _made(kind, typed, x, _ends(process, t_start, t_end), points, steps)
    elif x is not None:
        raise ValueError("x and bank are both given; allowed: one of them")
    _check_bank(bank, process)
    ends = _ends_within(bank, t_start, t_end)
    if kind in ("gits", "oss"):
        part = _part(bank, ends, steps)
        return part.times[gits(part, steps, **options) if kind == "gits" else oss(part, typed, steps)]
    levels = (float(process.rho(ends[0])), float(process.rho(ends[1])))
    given = {"seed": seed} if "seed" in signature(maker).parameters else {}
    return _as_times(process, maker(bank, typed, steps, levels, **given, **options), ends)


@checked
def model_calls(kind: str, steps: int, points: int = 60, draws: int = 1) -> int:
    """Model calls of `grid` on a bank of ``points`` times; making the bank takes its ``calls`` more, but for "dm"."""
    steps, points = positive_int("steps", steps), positive_int("points", points)
    match choose("kind", kind, GRIDS):
        case "entropic" | "ays":
            return 2 * positive_int("draws", draws) * points
        case "score_optimal":
            return points - 1
        case "oss":
            return sum(points - 1 - k for k in range(1, steps))
        case _:
            return 0


def _check_options(kind: str, options: dict[str, Any]) -> None:
    allowed = [name for name in signature(_MAKERS[kind]).parameters if name not in _GIVEN]
    for name in options:
        if name not in allowed:
            raise ValueError(f"{name}={options[name]!r}: kind={kind!r} has no such option; allowed: {allowed}")


def _ends(process: Process, t_start: float | None, t_end: float | None) -> tuple[float, float]:
    start, end = time_grid(process, 1, "t1", t_start, t_end).tolist()
    finite_level(process, start)
    return start, end


def _made(kind: str, model: Any, x: Any, ends: tuple[float, float], points: int, steps: int) -> Bank:
    if x is None:
        raise ValueError(
            f"x=None, bank=None, but kind={kind!r} needs one; allowed: x, (B, …) states at t_start, or bank"
        )
    if kind in ("gits", "oss"):
        positive_int("steps", steps, most=positive_int("points", points, 3) - 1)  # before the calls are made
    return trajectories(model, x, points=points, t_start=ends[0], t_end=ends[1])


def _check_bank(bank: Bank, process: Process) -> None:
    if instance("bank", bank, Bank).process != process:
        raise ValueError(f"bank is of {bank.process!r}; allowed: one of the model's process, {process!r}")


def _ends_within(bank: Bank, t_start: float | None, t_end: float | None) -> tuple[float, float]:
    """The ends, by default those of the bank; ValueError outside its range."""
    first, last = float(bank.times[0]), float(bank.times[-1])
    start, end = _ends(bank.process, first if t_start is None else t_start, last if t_end is None else t_end)
    slack = _SLACK * max(abs(first), abs(last))
    for name, t in (("t_start", start), ("t_end", end)):
        if not last - slack <= t <= first + slack:
            raise ValueError(f"{name}={t!r} is outside [{last:g}, {first:g}], the times of {bank!r}")
    return start, end


def _part(bank: Bank, ends: tuple[float, float], steps: int) -> Bank:
    """The bank between two of its times; ValueError unless it has them and enough others."""
    where = []
    for name, t in zip(("t_start", "t_end"), ends, strict=True):
        near = int(np.argmin(np.abs(bank.times - t)))
        if abs(bank.times[near] - t) > _SLACK * abs(t):
            raise ValueError(f"{name}={t!r} is none of the bank's times; the nearest is {float(bank.times[near])!r}")
        where.append(near)
    kept = slice(where[0], where[1] + 1)
    part = Bank(bank.process, bank.times[kept].copy(), bank.states[kept], bank.eps[kept], bank.calls)
    positive_int("steps", steps, most=part.times.size - 1)
    return part


def _as_times(process: Process, levels: Array, ends: tuple[float, float]) -> Array:
    """Times of the levels ρ, between exact ends."""
    low, high = (float(process.rho(t)) for t in reversed(ends))
    times = np.array(process.time_from_rho(np.clip(levels, low, high)))
    times[0], times[-1] = ends
    if not np.all(np.diff(times) < 0):
        raise ValueError(f"steps={levels.size - 1}: levels of the grid are closer than float64 tells apart in time")
    return times
