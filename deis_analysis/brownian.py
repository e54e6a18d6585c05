"""One Brownian path for every grid: noise by interval of the ρ² clock."""

from __future__ import annotations

import math

import numpy as np

from deis_analysis.process import Array


class BrownianPath:
    """One Brownian path W in the ρ² clock, the same for every grid that asks: W(u) depends on (seed, u) alone.

    A virtual Brownian tree: W is bridged down a fixed binary tree in log u, each node with its own counter-based
    random stream, so that no query depends on earlier ones.  [Li et al. 2020, arXiv 2001.01328, alg. 3]

    Args:
        shape: the shape of one sample batch.
        seed: an integer ≥ 0.
    """

    _LOW, _HIGH, _DEPTH = -28.0, 28.0, 20  # the tree spans ρ² in [e^-28, e^28]

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        if int(seed) != seed or seed < 0:
            raise ValueError(f"seed={seed!r} must be an integer >= 0")
        self.shape, self.seed = tuple(shape), int(seed)
        self._memo: dict[int, Array] = {}

    def _draw(self, kind: int, index: int) -> Array:
        bits = np.random.Philox(key=self.seed, counter=[0, kind, index, 0])
        return np.random.Generator(bits).standard_normal(self.shape)

    @staticmethod
    def _bridge(a: float, w_a: Array, b: float, w_b: Array, u: float, z: Array) -> Array:
        share = (u - a) / (b - a)
        return (1 - share) * w_a + share * w_b + math.sqrt((u - a) * (1 - share)) * z

    def __call__(self, u: float) -> Array:
        """W(u), shape ``shape``; W(0) = 0; ValueError outside [0, e^28]."""
        low, high = self._LOW, self._HIGH
        if not 0 <= u <= math.exp(high):
            raise ValueError(f"u={u!r} must lie in [0, {math.exp(high):.3g}], in the ρ² clock")
        if u == 0:
            return np.zeros(self.shape)
        a, b = math.exp(low), math.exp(high)
        w_a = math.sqrt(a) * self._draw(0, 0)
        w_b = w_a + math.sqrt(b - a) * self._draw(0, 1)
        if u <= a:
            return w_a if u == a else self._bridge(0.0, np.zeros(self.shape), a, w_a, u, self._leaf(u))
        index = 1
        for _ in range(self._DEPTH):
            middle = 0.5 * (low + high)
            m = math.exp(middle)
            if index not in self._memo:
                self._memo[index] = self._bridge(a, w_a, b, w_b, m, self._draw(1, index))
            if u < m:
                high, b, w_b, index = middle, m, self._memo[index], 2 * index
            else:
                low, a, w_a, index = middle, m, self._memo[index], 2 * index + 1
        return w_a if u == a else self._bridge(a, w_a, b, w_b, u, self._leaf(u))

    def _leaf(self, u: float) -> Array:
        return self._draw(2, int(np.float64(u).view(np.uint64)))

    def normal(self, start: float, stop: float) -> Array:
        """The increment over an interval of the ρ² clock as a standard normal, (W(start) − W(stop))/√|start − stop|."""
        if start == stop:
            raise ValueError(f"the interval [{start!r}, {stop!r}] is empty")
        return (self(float(start)) - self(float(stop))) / math.sqrt(abs(start - stop))
