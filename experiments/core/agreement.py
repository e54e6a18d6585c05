"""Do the numbers that were computed here agree with the committed ones? Column by column, as far as rounding goes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from deis_analysis.process.process import Array
from experiments import Config, Frame

# (relative, absolute) by which numbers of the same computation may differ between machines: in float64 arithmetic, and
# where a network takes part, whose float32 sums depend on the machine. An experiment's TOLERANCES, by column, go first.
EXACT, LEARNED = (1e-6, 1e-12), (1e-3, 1e-6)
EXACT_MODELS = ("mixture", "gaussian", "digits", "weights")  # whose rows are float64 arithmetic
TIMINGS = (
    "seconds",
    "images_per_second",
    "overhead",
    "ms_per_call",
)  # columns that are of the machine and are not compared
_NAMED = 5  # labels that say which row it is


def as_written(text: str) -> Frame:
    """A CSV as a frame."""
    import pandas as pd

    return pd.read_csv(io.StringIO(text))


def differences(committed: Frame, computed: Frame, declared: dict[str, tuple[float, float]] | None = None) -> list[str]:
    """One sentence for each column that differs: how many rows, which is worst, and by how much; [] if all agree.

    Labels, truth values and counts are to be equal, other numbers within the tolerances; see `EXACT`, `LEARNED`.

    Args:
        declared: (relative, absolute) tolerance of columns that have their own.
    """
    found = [f"no column {name} was computed" for name in committed.columns.difference(computed.columns)]
    found += [f"column {name} is not in the committed file" for name in computed.columns.difference(committed.columns)]
    if len(committed) != len(computed):
        return [*found, f"{len(committed)} rows are committed, {len(computed)} were computed"]
    for name in committed.columns.intersection(computed.columns, sort=False):
        if name in TIMINGS:
            continue
        a, b = committed[name], computed[name]
        if {a.dtype.kind, b.dtype.kind} <= {"f", "i"} and (_measured(a) or _measured(b)):
            rtol, atol = (declared or {}).get(name) or _tolerances(committed)
            excess = _excess(a.to_numpy(float), b.to_numpy(float), rtol, atol)
        else:
            excess = np.where((a == b) | (a.isna() & b.isna()), 0.0, np.inf)
        if (excess > 1).any():
            found.append(_sentence(name, committed, computed, excess))
    return found


def _measured(column: Any) -> bool:
    """Whether a column is of measured numbers, rather than of labels, truth values or counts."""
    if column.dtype.kind != "f":
        return False
    values = column.to_numpy()[np.isfinite(column.to_numpy())]
    return bool((values != np.round(values)).any())


def _tolerances(frame: Frame) -> tuple[Array, Array]:
    """(n,) relative and absolute tolerance of each row, by its model."""
    exact = frame["model"].isin(EXACT_MODELS) if "model" in frame else np.ones(len(frame), dtype=bool)
    return tuple(np.where(exact, a, b) for a, b in zip(EXACT, LEARNED, strict=True))  # type: ignore[return-value]


def _excess(a: Array, b: Array, rtol: Any, atol: Any) -> Array:
    """(n,) difference in units of what is allowed: infinite where one is missing, NaN or infinite alone."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        excess = np.abs(a - b) / (rtol * np.maximum(np.abs(a), np.abs(b)) + atol)
    return np.where(same, 0.0, np.where(np.isfinite(excess), excess, np.inf))


def _sentence(name: str, committed: Frame, computed: Frame, excess: Array) -> str:
    row = int(np.argmax(excess))
    a, b = committed[name].iloc[row], computed[name].iloc[row]
    said = (
        f"{name} in {int((excess > 1).sum())} of {len(excess)} rows, most in row {row}{_labels(committed, row, name)}"
    )
    said += f": committed {a}, computed {b}"
    if np.isfinite(excess[row]):
        said += f", {abs(a - b) / max(abs(a), abs(b)):.1e} apart relatively"
    return said


def _labels(frame: Frame, row: int, but: str) -> str:
    """`` (model=digits, calls=10)``: what identifies a row."""
    names = [name for name in frame if name != but and not _measured(frame[name]) and frame[name].notna().iloc[row]]
    said = ", ".join(f"{name}={frame[name].iloc[row]}" for name in names[:_NAMED])
    return f" ({said})" if said else ""


def changed_settings(committed: Config, now: Config) -> list[str]:
    """The keys of two configurations that differ, each as a sentence; not which rows were kept from before."""
    keys = [key for key in {**committed, **now} if key != "kept" and committed.get(key) != now.get(key)]
    return [f"configuration {key}: committed {committed.get(key)!r}, now {now.get(key)!r}" for key in keys]
