"""Time grids: descending, from noise to data."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.validate import between, checked, choose, first, positive_int, real

_MOST_POINTS = 10_000_001  # of a grid: 80 MB, and some GB while its table is made


@checked
def grid(
    process: Process, steps: int, kind: str = "t2", t_start: float | None = None, t_end: float | None = None
) -> Array:
    """A descending time grid of ``steps`` + 1 points with exact endpoints (``"twostage"`` ends at its own level).

    Args:
        steps: number of steps, an integer ≥ 1.
        kind: ``"t1"``, ``"t2"``, ``"t3"`` … power k in t; ``"rho7"`` … power k in ρ (the k-th roots are equidistant,
            any exponent in [0.1, 100], ``"rho5"``, ``"t1.5"``); ``"logrho"`` uniform in log ρ, the log-SNR;
            ``"shift3"`` uniform in u with t = s u/(1 + (s − 1) u), the time shift s of flow matching; ``"twostage"``,
            see `two_stage_grid`.
        t_start, t_end: first and last time, in process time; default ``process.sampling_range``.  For ``"twostage"``
            the ends of its first grid: it stops at its own cut level, above t_end.

    Raises:
        ValueError: names the argument; too many points; ρ infinite or zero (λ infinite) at
            ``t_end``, or infinite at ``t_start`` for grids in ρ.

    Source: Zhang & Chen 2023, app. H.3 (power in t, power in ρ, uniform log ρ); Karras et al. 2022, eq. 5 (rho7);
    Esser et al. 2024 (arXiv 2403.03206), shift of the time steps.
    """
    steps = positive_int("steps", steps)
    _check_size(steps + 1, "steps")
    require_process(process)
    if kind == "twostage":
        return two_stage_grid(process, steps, t_start=t_start, t_end=t_end)
    start = process.sampling_range[0] if t_start is None else process._check_scalar(t_start, "t_start")
    end = process.sampling_range[1] if t_end is None else process._check_scalar(t_end, "t_end")
    if not end < start:
        raise ValueError(f"t_end={end!r} must be below t_start={start!r}: sampling runs from noise to data")
    if not np.isfinite(process.lam(end)):
        raise ValueError(
            f"t_end={end!r}: λ is infinite there on {process!r}; stop earlier, e.g. at {process.sampling_range[1]:g}"
        )
    ts = _unit_grid(process, np.linspace(0.0, 1.0, steps + 1), kind, start, end)
    ts[0], ts[-1] = start, end
    if not np.all(np.diff(ts) < 0):
        raise ValueError(f"steps={steps} is more than float64 resolves between t_start={start!r} and t_end={end!r}")
    return ts


_ELSEWHERE = {  # names of grids in other packages, and what they are here: the three nearest
    "karras": "rho7 rho5 logrho",
    "uniform": "t1 t2 t3",
    "linear": "t1 t2 t3",
    "quad": "t2 t1 t3",
    "exponential": "logrho rho7 rho5",
    "logsnr": "logrho rho7 rho5",
    "flow": "shift3 t1 t2",
}


def _unit_grid(process: Process, u: Array, kind: str, start: float, end: float) -> Array:
    match = re.fullmatch(r"(t|rho|shift)(\d+(?:\.\d+)?)", kind) if isinstance(kind, str) else None
    if kind == "logrho":
        _finite_start(process, start, kind)
        levels = np.linspace(process.lam(start), process.lam(end), u.size)
        return np.array(process.time_from_lam(levels))
    if match is None or not 0.1 <= float(match[2]) <= 100:
        choose("kind", kind, ("t1", "t2", "t3", "rho5", "rho7", "logrho", "shift3", "twostage"), _ELSEWHERE)
        raise AssertionError("unreachable")
    power = float(match[2])
    if match[1] == "shift":
        return _shifted(u, power, start, end)
    if match[1] == "t":
        return np.array((start ** (1 / power) + u * (end ** (1 / power) - start ** (1 / power))) ** power)
    _finite_start(process, start, kind)
    first, last = float(process.rho(start)), float(process.rho(end))
    levels = (first ** (1 / power) + u * (last ** (1 / power) - first ** (1 / power))) ** power
    return np.array(process.time_from_rho(np.clip(levels, last, first)))


def _shifted(u: Array, shift: float, start: float, end: float) -> Array:
    """Times whose preimages under t = s v/(1 + (s − 1) v) are equidistant."""
    low, high = (t / (shift - (shift - 1.0) * t) for t in (end, start))
    v = high + u * (low - high)
    return np.array(shift * v / (1.0 + (shift - 1.0) * v))


@checked
def two_stage_grid(
    process: Process,
    steps: int,
    *,
    levels: int = 12,
    exponent: float = 7.0,
    cut: int = 9,
    second_exponent: float = 1.2,
    t_start: float | None = None,
    t_end: float | None = None,
) -> Array:
    r"""The two-stage grid of "Hyperparameters are all you need": it stops at a noise level that is not small.

    A Karras grid of ``levels`` noise levels with a zero appended is cut at index ``cut``, the level ρ_cut; between the
    times of ρ_max and ρ_cut a second power grid, in time, has ``steps`` + 1 points.  There is no step to σ = 0: what
    noise is left at the end is truncation, not discretization.

    Args:
        steps: N ≥ 1. levels: of the first grid, ≥ 2. exponent, second_exponent: of the grids in ρ and in t,
            in [0.1, 100].
        cut: index in the first grid, 1 … levels − 1.
        t_start, t_end: range of the first grid, default ``process.sampling_range``.

    Raises:
        ValueError: names the argument.

    Source: arXiv 2510.02390, for N = 8 (levels, exponent, cut) = (12, 7, 9); N = 5 and 6: (8, 5, 6).
    """
    levels, cut = positive_int("levels", levels, 2), positive_int("cut", cut)
    if cut >= levels:
        raise ValueError(f"cut={cut} must be at most levels - 1 = {levels - 1}")
    powers = between("exponent", exponent, 0.1, 100), between("second_exponent", second_exponent, 0.1, 100)
    first_stage = grid(process, levels - 1, f"rho{powers[0]!r}", t_start, t_end)
    return grid(process, steps, f"t{powers[1]!r}", float(first_stage[0]), float(first_stage[cut]))


def _finite_start(process: Process, start: float, kind: str) -> None:
    if not np.isfinite(process.rho(start)):
        raise ValueError(f"t_start={start!r}: ρ is infinite there on {process!r}, which kind={kind!r} needs finite")


def _check_size(count: int, name: str) -> None:
    if count > _MOST_POINTS:
        raise ValueError(f"{name} asks for a grid of {count} points; allowed: at most {_MOST_POINTS}")


def check_grid(process: Process, ts: Any) -> Array:
    """Return ``ts`` as a float64 array; ValueError unless it is 1-D, ≥ 2 points, finite, descending, in range."""
    require_process(process)
    times = real("ts", ts)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"ts has shape {times.shape}; allowed: one dimension, at least 2 times")
    _check_size(times.size, "ts")
    if not np.all(np.isfinite(times)):
        raise ValueError("ts must be finite; it has " + first(times, ~np.isfinite(times)))
    if not np.all(np.diff(times) < 0):
        raise ValueError(
            "ts must descend strictly (from noise to data); it does not at "
            + first(times, np.append(False, np.diff(times) >= 0))
        )
    return process._check(times, "ts")
