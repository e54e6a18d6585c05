"""How is a long frame read? Its rows by what their columns say, and numbers of it for sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments import Frame
from experiments.core.style import as_text


def at(frame: Frame, **where: Any) -> Frame:
    """The rows whose columns have these values; of a list, one of them."""
    chosen = np.ones(len(frame), dtype=bool)
    for name, value in where.items():
        column = frame[name]
        chosen &= (column.isin(list(value)) if isinstance(value, list | tuple | set) else column == value).to_numpy()
    return frame[chosen]


def span(values: Iterable[float], digits: int = 2) -> str:
    """``1.2 to 3.4``, the least and the largest; one number where they print alike."""
    known = [float(value) for value in values]
    least, most = as_text(min(known), digits), as_text(max(known), digits)
    return least if least == most else f"{least} to {most}"


def calls_for(calls: Iterable[float], errors: Iterable[float], target: float) -> float:
    """Calls at which errors come down to ``target``, between two counts in log–log; inf if they do not.

    ``calls`` rise.  Where the first error is at the target or below, the first count: then it is an upper bound.
    """
    counts, known = np.array(list(calls), dtype=float), np.array(list(errors), dtype=float)
    below = np.flatnonzero(known <= target)
    if not below.size:
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(counts[0])
    share = np.log(known[i - 1] / target) / np.log(known[i - 1] / known[i])
    return float(np.exp(np.log(counts[i - 1]) + share * np.log(counts[i] / counts[i - 1])))
