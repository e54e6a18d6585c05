"""How good are end states, sample by sample: errors with bands, flips, ranks with bands, distances of laws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from deis_analysis import backend
from deis_analysis.analysis.distances import energy_distance
from deis_analysis.process.process import Array

_DRAWS = 1000  # of the bootstrap
_SEED = 20_231
_NEAR = 1e-2  # of the mean distance: nearer than that a distance is as smooth as that


def rms(a: Any, b: Any) -> float:
    """Root mean square of the difference over all samples and coordinates."""
    return float(np.sqrt(np.mean(np.square(backend.flat(a) - backend.flat(b)))))


@dataclass(frozen=True)
class Judged:
    """End states beside the references of the same noise.

    Attributes:
        squares: (B,) mean squared error of each sample over its coordinates. flips: (B,) whether the nearest reference
            is another sample's. law: energy distance of the two sets; law_band: its 95 %, of which the upper end is
            what is known of a distance that was found to be 0.
    """

    squares: Array
    flips: Array
    law: float
    law_band: tuple[float, float]

    @property
    def rms(self) -> float:
        """Root mean square over samples and coordinates."""
        return float(np.sqrt(self.squares.mean()))

    @property
    def median(self) -> float:
        """Median over samples of the root mean square over coordinates."""
        return float(np.sqrt(np.median(self.squares)))

    @property
    def band(self) -> tuple[float, float]:
        """95 % of the RMS, by the bootstrap over samples."""
        found = np.sqrt(self.squares[resamples(self.squares.size)].mean(axis=1))
        return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))

    def unflipped(self) -> float:
        """RMS over the samples that end where they should; NaN if there are none."""
        kept = self.squares[~self.flips]
        return float(np.sqrt(kept.mean())) if kept.size else float("nan")


def judge(ends: Any, references: Any) -> Judged:
    """`Judged` of (B, …) end states; what is not finite has infinite error and is a flip."""
    found, true = backend.flat(ends), backend.flat(references)
    finite = np.all(np.isfinite(found), axis=1)
    safe = np.where(finite[:, None], found, 0.0)
    squares = np.where(finite, np.mean(np.square(safe - true), axis=1), np.inf)
    nearest = cdist(safe, true, "sqeuclidean").argmin(axis=1)
    flips = ~finite | (nearest != np.arange(len(true)))
    if not finite.all() or len(true) < 3:
        return Judged(squares, flips, float("inf"), (0.0, float("inf")))
    law = energy_distance(safe, true)
    return Judged(squares, flips, float(law.value), (float(law.low), float(law.high)))


def resamples(n: int, draws: int = _DRAWS) -> Array:
    """(draws, n) indices of the bootstrap, the same for equal n: bands of two samplers are paired."""
    return np.random.default_rng([_SEED, n]).integers(0, n, (draws, n))


def ratio_band(a: Array, b: Array) -> tuple[float, float, float]:
    """RMS of ``a`` over that of ``b`` with its 95 % band, paired over samples; both (B,) squares."""
    chosen = resamples(a.size)
    ratios = np.sqrt(a[chosen].mean(axis=1) / np.maximum(b[chosen].mean(axis=1), 1e-300))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.sqrt(a.mean() / max(b.mean(), 1e-300))), float(low), float(high)


class Clouds:
    """Energy distances D² of sets of end states from the references of the same noise, as two finite sets.

    Where both come from the same noise, the estimate for independent samples is below 0 and tells nothing; the distance
    of the two sets as they are (the V-statistic, Székely & Rizzo 2013) is 0 only where they are the same set.
    """

    def __init__(self, truth: Any) -> None:
        self.truth = backend.flat(truth)
        self.own = cdist(self.truth, self.truth)

    def parts(self, ends: Any) -> tuple[Array, Array]:
        """(B, B) distances between ends and references, and among ends."""
        flat = backend.flat(ends)
        return cdist(flat, self.truth), cdist(flat, flat)

    def squared(self, ends: Any) -> float:
        """D², in the unit of the state."""
        across, among = self.parts(ends)
        return float(2 * across.mean() - among.mean() - self.own.mean())

    def slope(self, ends: Any) -> tuple[Array, Array]:
        """(B, d) slope of D² by each end state, (B,) curvature of a quadratic that lies above it and touches it.

        Both times B/2 and the mean distance, so that they are of the size of a state's error, and of 1. Above each
        |x − y| lies (|x − y|²/c + c)/2, c its value here, and below each |x − x'| its tangent.
        """
        flat = backend.flat(ends)
        across, among = self.parts(flat)
        scale = float(across.mean())
        pulls = []
        for distances, others in ((across, self.truth), (among, flat)):
            inverse = np.where(distances > 0, 1.0 / np.where(distances > 0, distances, 1.0), 0.0)
            pulls.append(inverse.sum(axis=1, keepdims=True) * flat - inverse @ others)
        curvature = np.mean(scale / np.maximum(across, _NEAR * scale), axis=1)
        return np.asarray((pulls[0] - pulls[1]) / len(flat) * scale), curvature

    def ratio_band(self, a: Any, b: Any) -> tuple[float, float, float]:
        """D² of ``a`` over that of ``b`` with its 95 % band, paired over samples.

        A resample pairs a sample with itself more often than the samples do; what that adds on average is taken off.
        """
        (one, ones), (other, others) = (self.resampled(ends) for ends in (a, b))
        low, high = np.quantile(np.maximum(ones, 1e-300) / np.maximum(others, 1e-300), (0.025, 0.975))
        return one / max(other, 1e-300), float(low), float(high)

    def resampled(self, ends: Any) -> tuple[float, Array]:
        """D², and (draws,) those of resamples of the noise, whose mean is D²."""
        n = len(self.truth)
        counts = np.stack([np.bincount(row, minlength=n) for row in resamples(n)]) / n
        across, among = self.parts(ends)
        kernel = across + across.T - among - self.own
        whole, bias = float(kernel.mean()), float(kernel.diagonal().mean() - kernel.mean()) / n
        return whole, np.einsum("ri,ij,rj->r", counts, kernel, counts, optimize=True) - bias


def rank_bands(squares: Array) -> Array:
    """(C, 2) first and last rank, from 1, in 95 % of the paired resamples of (C, B) squared errors."""
    chosen = resamples(squares.shape[1])
    means = np.stack([row[chosen].mean(axis=1) for row in squares])  # (C, draws)
    ranks = 1 + means.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    low, high = np.quantile(ranks, (0.025, 0.975), axis=1, method="nearest")
    return np.stack([low, high], axis=1).astype(int)
