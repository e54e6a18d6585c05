"""What the modules of packages share: options, the steps that a number of calls allows, noise on a Brownian path."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from deis_analysis.audit.subject import Prepared
from deis_analysis.tableau.extraction import Refusal, count_calls
from deis_analysis.validate import choose


def check_options(spec: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the first option that is not allowed, and the nearest ones."""
    allowed = sorted(allowed)
    for key in options:
        try:
            choose("option", key, allowed)
        except ValueError as error:
            raise ValueError(f"spec={spec!r}: {error}") from None


def fit_steps(prepare: Callable[[int], Prepared], nfe: int) -> Prepared:
    """The sampler at the largest number of steps that takes at most ``nfe`` model calls, one step at least.

    Raises:
        Refusal: even its smallest number of steps takes more.
    """

    def calls(prepared: Prepared) -> int:
        try:
            return count_calls(prepared.sampler, prepared.backend)
        except Refusal:
            return 0  # whoever reads it will learn why it cannot be run

    def smallest(steps: int) -> tuple[int, Prepared]:
        """At ``steps`` steps, or at the next number that the sampler allows."""
        try:
            return steps, prepare(steps)
        except Refusal:
            return smallest(steps + 1) if steps < nfe else (steps, prepare(steps))

    steps, made = nfe, prepare(nfe)
    while steps > 1 and (count := calls(made)) > nfe:
        before = steps
        steps, made = smallest(max(1, steps - max(1, -(-(count - nfe) * steps // count))))
        if steps >= before:
            raise Refusal(f"nfe={nfe} is too small: it takes {count} model calls or more")
    while steps < nfe and 0 < calls(more := prepare(steps + 1)) <= nfe:
        steps, made = steps + 1, more
    return made


class BrownianNoise:
    """Normalised increments of one Brownian path in the clock σ, drawn as they are asked for.

    What a released sampler takes from a Brownian tree; every new piece of the path is one standard-normal draw, and
    the draws are made by ``torch.randn_like``, where whoever reads the sampler can see them.
    """

    def __init__(self, x: Any) -> None:
        self.x = x
        self.path: list[tuple[float, Any]] = []

    def __call__(self, sigma: Any, sigma_next: Any) -> Any:
        """(W(sigma_next) − W(sigma))/√|sigma_next − sigma|."""
        a, b = float(sigma), float(sigma_next)
        first, second = self._at(a), self._at(b)
        return (second - first) / np.sqrt(abs(b - a))

    def _at(self, level: float) -> Any:
        import torch

        if not self.path:
            self.path.append((level, torch.zeros_like(self.x)))
        for known, value in self.path:
            if abs(known - level) <= 1e-5 * level:  # they take the logarithm and back, in float32
                return value
        last, value = self.path[-1]
        if level > last:
            raise Refusal(f"the noise of the level {level:g} was asked for after that of {last:g}")
        value = value + np.sqrt(last - level) * torch.randn_like(self.x)
        self.path.append((level, value))
        return value


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of a package about its own deprecations and options."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)
