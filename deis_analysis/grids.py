"""Time grids: descending, from noise to data."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from deis_analysis.process import Array, Process, require_process
from deis_analysis.validate import choose, first, positive_int, real

_MOST_NODES = 20_001  # tables are dense


def grid(
    process: Process, steps: int, kind: str = "t2", t_start: float | None = None, t_end: float | None = None
) -> Array:
    """A descending time grid of ``steps`` + 1 points with exact endpoints.

    Args:
        steps: number of steps, an integer ≥ 1.
        kind: ``"t1"``, ``"t2"``, ``"t3"`` … power k in t; ``"rho7"`` … power k in ρ (the k-th roots are equidistant,
            any exponent in [0.1, 100], ``"rho5"``, ``"t1.5"``); ``"logrho"`` uniform in log ρ, the log-SNR.
        t_start, t_end: first and last time, in process time; default ``process.sampling_range``.

    Raises:
        ValueError: names the argument; also where ρ is infinite or zero (λ infinite) at ``t_end``, and at ``t_start``
            for grids in ρ.

    Source: Zhang & Chen 2023, app. H.3 (power in t, power in ρ, uniform log ρ); Karras et al. 2022, eq. 5 (rho7).
    """
    steps = positive_int("steps", steps)
    require_process(process)
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


def _unit_grid(process: Process, u: Array, kind: str, start: float, end: float) -> Array:
    match = re.fullmatch(r"(t|rho)(\d+(?:\.\d+)?)", kind) if isinstance(kind, str) else None
    if kind == "logrho":
        _finite_start(process, start, kind)
        levels = np.linspace(process.lam(start), process.lam(end), u.size)
        return np.array(process.time_from_lam(levels))
    if match is None or not 0.1 <= float(match[2]) <= 100:
        choose("kind", kind, ("t1", "t2", "t3", "rho5", "rho7", "logrho"))
        raise AssertionError("unreachable")
    power = float(match[2])
    if match[1] == "t":
        return np.array((start ** (1 / power) + u * (end ** (1 / power) - start ** (1 / power))) ** power)
    _finite_start(process, start, kind)
    first, last = float(process.rho(start)), float(process.rho(end))
    levels = (first ** (1 / power) + u * (last ** (1 / power) - first ** (1 / power))) ** power
    return np.array(process.time_from_rho(np.clip(levels, last, first)))


def _finite_start(process: Process, start: float, kind: str) -> None:
    if not np.isfinite(process.rho(start)):
        raise ValueError(f"t_start={start!r}: ρ is infinite there on {process!r}, which kind={kind!r} needs finite")


def check_nodes(count: int) -> None:
    """Raise a ValueError for a table that would be too large: tables are dense (20,001 nodes: 3.2 GB a matrix)."""
    if count > _MOST_NODES:
        raise ValueError(
            f"ts asks for a table of {count} nodes; allowed: at most {_MOST_NODES}, since tables are dense"
        )


def check_grid(process: Process, ts: Any) -> Array:
    """Return ``ts`` as a float64 array; ValueError unless it is 1-D, ≥ 2 points, finite, descending, in range."""
    require_process(process)
    times = real("ts", ts)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"ts has shape {times.shape}; allowed: one dimension, at least 2 times")
    check_nodes(times.size)
    if not np.all(np.isfinite(times)):
        raise ValueError("ts must be finite; it has " + first(times, ~np.isfinite(times)))
    if not np.all(np.diff(times) < 0):
        raise ValueError(
            "ts must descend strictly (from noise to data); it does not at "
            + first(times, np.append(False, np.diff(times) >= 0))
        )
    return process._check(times, "ts")
