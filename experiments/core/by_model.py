"""One frame over all models: light ones are computed, rows of the dear ones are kept from the shipped result.

An image network takes minutes where an exact model takes a second.  An experiment names in ``CONFIG["kept"]`` the
models whose rows `by_model` reads from ``figures/NAME.csv``, as long as that file was made with the same settings;
``run NAME --networks`` and ``--model`` compute them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd

from experiments import Config, Frame, Progress
from experiments.core.paths import FIGURES

Rows = list[dict[str, Any]]
_ANY = ("models", "kept", "device")  # what the rows of one model do not depend on


def shipped(name: str, config: Config) -> Frame | None:
    """The shipped frame of an experiment, None where there is none or it was made with other settings."""
    try:
        record = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))["config"]
        frame = pd.read_csv(FIGURES / f"{name}.csv")
    except (OSError, ValueError, KeyError):
        return None
    wanted = json.loads(json.dumps(config))
    same = {key: value for key, value in record.items() if key not in _ANY} == {
        key: value for key, value in wanted.items() if key not in _ANY
    }
    return frame if same and "model" in frame else None


def by_model(name: str, config: Config, rows_of: Callable[[str, Progress], Rows], progress: Progress) -> Frame:
    """The rows of every model in ``config["models"]``, in this order.

    Args:
        name: of the experiment, whose shipped result holds the rows that are kept.
        rows_of: (model, progress from 0 to 1) → rows without the column ``model``.
    """
    models, kept = config["models"], set(config.get("kept", ()))
    before = shipped(name, config) if kept else None
    known = set() if before is None else kept & set(before.model)
    parts, share = [], 1.0 / max(len(set(models) - known), 1)
    done = 0.0
    for model in models:
        if before is not None and model in known:
            parts.append(before[before.model == model])
            continue
        begin = done
        rows = rows_of(model, lambda part, begin=begin: progress(begin + share * part))  # type: ignore[misc]
        parts.append(pd.DataFrame([{"model": model, **row} for row in rows]))
        done += share
        progress(min(done, 1.0))
    return pd.concat(parts, ignore_index=True)
