"""One Brownian path for every grid: noise by interval of the ρ² clock."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from deis_analysis.validate import Array, checked, positive_int, several


@checked
class BrownianPath:
    """One Brownian path W in the ρ² clock, the same for every grid that asks: W(u) depends on (seed, u) alone.

    A virtual Brownian tree: W is bridged down a fixed binary tree in log u, each node with its own counter-based
    random stream, down to neighbouring floats; so no query depends on earlier ones.
    [Li et al. 2020, arXiv 2001.01328, alg. 3]

    Args:
        shape: the shape of one sample batch.
        seed: an integer ≥ 0.
    """

    _LOW, _HIGH = -80.0, 40.0  # the tree spans ρ² in [e^-80, e^40]
    _REMEMBERED = 64  # nodes of the tree kept, latest used first

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.shape = tuple(positive_int("shape", n, minimum=0) for n in several("shape", shape))
        self.seed = positive_int("seed", seed, minimum=0)
        self._node = lru_cache(self._REMEMBERED)(self._draw)

    def _draw(self, kind: int, index: int) -> Array:
        bits = np.random.Philox(key=self.seed, counter=[0, kind, index, 0])
        return np.random.Generator(bits).standard_normal(self.shape)

    @checked
    def __call__(self, u: float) -> Array:
        """W(u), shape ``shape``; W(0) = 0; ValueError unless u is 0 or in [e^-80, e^40]."""
        low, high, index = self._LOW, self._HIGH, 1
        a, b = math.exp(low), math.exp(high)
        if u == 0:
            return np.zeros(self.shape)
        if not a <= u <= b:
            raise ValueError(f"u={u!r} must be 0 or lie in [{a:.3g}, {b:.3g}], in the ρ² clock")
        w_a = math.sqrt(a) * self._node(0, 0)
        w_b = w_a + math.sqrt(b - a) * self._node(0, 1)
        while a < u < b:
            middle = 0.5 * (low + high)
            m = math.exp(middle)
            if not a < m < b:  # the ends are neighbours in float64
                break
            share = (m - a) / (b - a)
            w_m = (1 - share) * w_a + share * w_b + math.sqrt((m - a) * (1 - share)) * self._node(1, index)
            if u < m:
                high, b, w_b, index = middle, m, w_m, 2 * index
            else:
                low, a, w_a, index = middle, m, w_m, 2 * index + 1
        return w_a if u - a <= b - u else w_b

    @checked
    def normal(self, start: float, stop: float) -> Array:
        """The increment over an interval of the ρ² clock as a standard normal, (W(start) − W(stop))/√|start − stop|."""
        if start == stop:
            raise ValueError(f"the interval [{start!r}, {stop!r}] is empty")
        return (self(float(start)) - self(float(stop))) / math.sqrt(abs(start - stop))


def path_of(noise: Any, shape: tuple[int, ...]) -> BrownianPath | None:
    """The path that ``noise``, a seed or a path, stands for; None if it is neither.

    Raises:
        ValueError: a path of another shape than ``shape``.
    """
    if isinstance(noise, (int, np.integer)) and not isinstance(noise, bool):
        return BrownianPath(shape, int(noise))
    if not isinstance(noise, BrownianPath):
        return None
    if noise.shape != shape:
        raise ValueError(f"noise is a path of shape {noise.shape}; allowed: {shape}, the shape of x")
    return noise
