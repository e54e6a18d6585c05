"""The grids on which samplers are tried for a model: customary ones, and those that know it, from one bank."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from deis_analysis.process.convention import Model
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array
from deis_analysis.tuning.bank import Bank, trajectories
from deis_analysis.tuning.candidates import CUSTOMARY, Times
from deis_analysis.tuning.grids import GRIDS
from deis_analysis.tuning.grids import grid as aware_grid
from deis_analysis.tuning.target import Target
from deis_analysis.validate import instance, several

Progress = Callable[[str, int, int], None]
_BANK = 64  # trajectories for the model-aware grids
_DEAR = ("oss",)


def grids_for(
    target: Target, grids: Iterable[str] | None, seed: int, show: Progress
) -> tuple[list[str], Times, list[int]]:
    """(kinds, how times of the model-aware ones are made, samples × calls that this takes, counted as it goes).

    All model-aware grids are made from one bank of trajectories; what cannot be made for the model is left out.
    """
    aware = [kind for kind in GRIDS if kind not in _DEAR]
    kinds = [*CUSTOMARY, *aware] if grids is None else list(several("grids", grids))
    for kind in kinds:
        if instance("grids", kind, str) not in GRIDS:
            grid(target.process, 2, kind, target.t_start, target.t_end)
    spent, banks = [0], list[Bank]()

    def asked(x: Any, t: float) -> Any:
        spent[0] += len(x)
        return target.model(x, t)

    counted = Model(asked, target.process, target.prediction)

    def times(steps: int, kind: str) -> Array:
        if kind not in GRIDS:
            return grid(target.process, steps, kind, target.t_start, target.t_end)
        if not banks:
            show("trajectories for the grids", 0, 0)
            x = target.noise(_BANK, seed + 2_000_003)
            banks.append(trajectories(counted, x, t_start=target.t_start, t_end=target.t_end))
        return aware_grid(counted, steps, kind, bank=None if kind == "dm" else banks[0], seed=seed)

    return kinds, functools.cache(times), spent
