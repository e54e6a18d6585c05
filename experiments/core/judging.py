"""How far are samples from the exact ones, as paths and as a law? Errors with bands, for several experiments."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Array
from deis_analysis.tuning.judged import Judged
from experiments import Config, Frame
from experiments.core import style
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio
from experiments.models.studies import Study

FLIPPED = {  # tolerances, by column, of what rounding can move by one sample that ends between two places
    "flips": (0.0, 0.02),
    **dict.fromkeys(("unflipped", "unflipped_low", "unflipped_high"), (0.05, 1e-9)),
}
_DRAWS = 400  # of the bootstrap of an error; ratios, on which sentences rest, have more


def law_terms(x: Any, data: Any) -> Array:
    """(n,) numbers whose mean is the U-statistic 2E|X − Y| − E|X − X'|, X the samples (n, d), Y the data (m, d).

    That is the squared energy distance but for a term of the data alone.  They are its first-order terms: for two
    samplers with the same starts, the mean of the differences ± 1.96 standard errors is a paired 95 % band.
    """
    import torch

    cross, inside = torch.cdist(x, data).mean(dim=1), torch.cdist(x, x).sum(dim=1) / (len(x) - 1)
    return np.asarray((2 * cross - 2 * inside + inside.mean()).cpu())


def banded(terms: Array) -> tuple[float, float, float]:
    """(mean, low, high) with a 95 % band by the standard error of the mean."""
    margin = 1.96 * float(terms.std(ddof=1)) / math.sqrt(len(terms))
    return float(terms.mean()), float(terms.mean()) - margin, float(terms.mean()) + margin


def apart(model: str) -> bool:
    """Whether a model's samples are images that lie apart, so that one may end at another's: not of smooth laws."""
    return model not in ("mixture", "gaussian", "network")


def ranked(frame: Frame) -> Frame:
    """``error, error_low, error_high``, by which samplers are ranked: RMS, of images over the unflipped samples."""
    own = frame.model.map(lambda model: apart(str(model)))
    columns = {"error": ("unflipped", "rms"), "error_low": ("unflipped_low", "low"),
               "error_high": ("unflipped_high", "high")}  # fmt: skip
    return frame.assign(**{name: frame[images].where(own, frame[rest]) for name, (images, rest) in columns.items()})


def ratio(a: Array, b: Array, seed: int, draws: int = 2000) -> tuple[float, float, float]:
    """Root of the ratio of two mean squares, with its 95 % band, over the samples that count (no NaN) in both."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any() or not a[both].any() or not b[both].any():
        return math.nan, math.nan, math.nan
    return float(np.sqrt(a[both].mean() / b[both].mean())), *bootstrap_ratio(a[both], b[both], seed, draws)


def ratio_row(a: Array, b: Array, seed: int, draws: int = 2000) -> dict[str, float]:
    """``ratio, low, high`` of `ratio`, for a frame; infinite where no sample of the first counts."""
    if not np.isfinite(a).any() and np.isfinite(b).any():
        return dict.fromkeys(("ratio", "low", "high"), math.inf)
    return dict(zip(("ratio", "low", "high"), ratio(a, b, seed, draws), strict=True))


def interval(drawn: Any) -> dict[str, float]:
    """``low, high``: the 95 % interval of what a bootstrap drew, for a frame."""
    return dict(zip(("low", "high"), np.quantile(drawn, [0.025, 0.975]), strict=True))


def with_band(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    """(value, low, high) as the columns ``name, name_low, name_high`` of a frame."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def error_row(squares: Array, seed: int, draws: int = _DRAWS) -> dict[str, float]:
    """``rms, low, high``: root mean square with its 95 % band over samples, for a frame."""
    low, high = bootstrap_ratio(squares, np.ones_like(squares), seed, draws)
    return {"rms": float(np.sqrt(squares.mean())), "low": low, "high": high}


def mean_square(squares: Array) -> float:
    """Over the samples that count; infinite if there are none."""
    return float(np.nanmean(squares)) if np.isfinite(squares).any() else math.inf


def nearest(x: Any, places: Any) -> Array:
    """(n,) index of the place (m, d) next to each sample (n, d)."""
    import torch

    return np.asarray(torch.cdist(x, places).argmin(dim=1).cpu())


def best(rows: Frame) -> Frame:
    """Of each solver the row of least ``error``, which is that on its best grid, by solver, the most accurate first."""
    ordered = rows[rows.error.notna()].sort_values("error", kind="stable")
    return ordered.drop_duplicates("solver").set_index("solver")


def duel(judges: list[Judge], a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """``ratio, low, high`` of the errors of two cells of the first judge, and ``least, most`` over all judges.

    Args:
        a, b: ``solver, grid, steps`` and ``squares``, see `Judge.cell`.
    """
    seed = judges[0].config["seed"]
    found = ratio_row(a["squares"], b["squares"], seed)
    over = [found["ratio"]]
    for judge in judges[1:]:
        first, second = (judge.counted(judge.end(cell["solver"], cell["grid"], cell["steps"])) for cell in (a, b))
        over.append(ratio(first, second, seed)[0])
    return {**found, "least": min(over), "most": max(over)}


def measured(config: Config) -> str:
    """What `ranked` errors are, for a figure's note."""
    return (
        f"RMS path error, of images over each sampler's own samples that do not flip, {style.setting(config)}; "
        f"{studies.how_many(config)}, 95 % bands."
    )


def middle(config: Config) -> int:
    """The number of calls, of those at which solvers are ranked, that sentences are of."""
    return int(sorted(config["ranked_at"])[len(config["ranked_at"]) // 2])


def distinct(duels: Any) -> Any:
    """Whether the first is ahead of the second beyond the 95 % band, and with every seed; of one duel or of many."""
    return (duels.high < 1) & (duels.most < 1)


class Judge:
    """Path errors of results for one study, and how much further from the data their law is than the exact flow's."""

    def __init__(self, study: Study, config: Config) -> None:
        self.study, self.config = study, config
        self.truth, self.estimate = study.reference(config["t_end"])

    @cached_property
    def data(self) -> Any:
        """(m, d) what the law is compared with."""
        import torch

        return torch.tensor(self.study.data, device=self.study.x_T.device)

    @cached_property
    def _exact(self) -> Array:
        return law_terms(self.truth, self.data)

    @cached_property
    def _own(self) -> Array:
        return self._nearest(self.truth)

    @property
    def reference(self) -> dict[str, Any]:
        """The row of part "reference": how many samples there are, and how well their truth is known."""
        return {"part": "reference", "title": self.study.title, "rms": self.estimate, "samples": len(self.truth)}

    def squares(self, x: Any) -> Array:
        """(n,) mean square over coordinates of the distance to the exact path's end."""
        return np.asarray(((x - self.truth) ** 2).mean(dim=1).cpu())

    def counted(self, x: Any) -> Array:
        """(n,) the squares by which samplers are ranked: of images NaN where a sample ends at another one's place."""
        return np.where(self.flips(x) & apart(self.study.name), math.nan, self.squares(x))

    def with_seeds(self) -> list[Judge]:
        """This one, and the same with the starts of the configuration's other seeds."""
        name, config = self.study.name, self.config
        others = studies.seeds(name, config)[1:]
        return [self, *(Judge(studies.study(name, {**config, "seed": seed}), config) for seed in others)]

    def row(self, x: Any, path: bool = True) -> dict[str, Any]:
        """Excess of the squared energy distance; where there is a path to compare with, errors with 95 % bands.

        The RMS is over all samples, of which one that ends at another image can be most of it; ``flips`` is the share
        of those, ``unflipped`` the RMS over the others, ``median`` that over coordinates of the median sample.
        """
        law, law_low, law_high = banded(law_terms(x, self.data) - self._exact)
        found = {"law": law, "law_low": law_low, "law_high": law_high}
        if path:
            judged = Judged(self.squares(x), self.flips(x), law, (law_low, law_high))
            low, high = self._band(judged.squares)
            found |= {"rms": judged.rms, "low": low, "high": high, "flips": float(judged.flips.mean())}
            low, high = self._band(judged.squares[~judged.flips])
            found |= {"median": judged.median, "unflipped": judged.unflipped(), "unflipped_low": low,
                      "unflipped_high": high}  # fmt: skip
        return found

    def flips(self, x: Any) -> Array:
        """(n,) whether a sample ends nearer to another place than the exact one does: to another truth.

        Of the digits, whose flow ends at data points, the places are all of these: an image that none of the truths is
        would go unseen.  Where data are dense, it happens as soon as errors are as large as the gaps between truths.
        """
        return self._nearest(x) != self._own

    def cell(self, x: Any) -> dict[str, Any]:
        """`row`, the squares that count, and ``error``, their root mean: by it samplers and grids are ranked."""
        squares = self.counted(x)
        return {**self.row(x), "squares": squares, "error": math.sqrt(mean_square(squares))}

    def end(self, solver: str, kind: str, steps: int) -> Any:
        """(n, d) where a registry solver takes the study's starts."""
        ts = da.grid(self.study.process, steps, kind, self.config["t_start"], self.config["t_end"])
        return self.study.solve(solver, ts)

    def _nearest(self, x: Any) -> Array:
        return nearest(x, self.data if self.study.name == "digits" else self.truth)

    def _band(self, squares: Array) -> tuple[float, float]:
        """95 % band of the root mean square, NaN of no sample."""
        if not squares.size:
            return math.nan, math.nan
        return bootstrap_ratio(squares, np.ones_like(squares), self.config["seed"], _DRAWS)
