"""How a reference is computed: the arguments, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deis_analysis.process.process import PREDICTIONS
from deis_analysis.validate import boolean, choose, positive, positive_int


@dataclass(frozen=True)
class Settings:
    """How to integrate: arguments of `reference_solution`."""

    rtol: float
    atol: float
    prediction: str
    model_dtype: torch.dtype | None
    certify: bool
    tolerance: float | None
    batch: int | None
    most_calls: int
    progress: bool
    seed: int = 0
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, PREDICTIONS)
        positive(rtol=self.rtol, atol=self.atol)
        least = 1000 * np.finfo(np.float64).eps
        if self.rtol < least:
            raise ValueError(f"rtol={self.rtol!r} cannot be met in float64; allowed: at least {least:.1e}")
        boolean("certify", self.certify)
        boolean("progress", self.progress)
        positive_int("most_calls", self.most_calls)
        positive_int("seed", self.seed, minimum=0)
        if self.tolerance is not None:
            positive(tolerance=self.tolerance)
        if self.batch is not None:
            positive_int("batch", self.batch)

    def question(self) -> dict[str, Any]:
        """Those on which the solution depends."""
        numbers = {name: float(getattr(self, name)) for name in ("rtol", "atol")}
        tolerance = None if self.tolerance is None else float(self.tolerance)
        others = {"prediction": self.prediction, "certify": bool(self.certify), "most_calls": int(self.most_calls)}
        # only where they are not the defaults: files from before there were these arguments keep their names
        later = {name: getattr(self, name) for name in ("seed", "levels") if getattr(self, name) not in (0, None)}
        return {**numbers, **others, **later, "tolerance": tolerance, "model_dtype": str(self.model_dtype)}
