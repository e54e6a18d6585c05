r"""Networks of all kinds as `ImageModel` calls one; labels and classifier-free guidance.

A class-conditional network under guidance w answers

.. math:: p_\varnothing + w \, (p_c - p_\varnothing) ,

with :math:`p_c` for the label c and :math:`p_\varnothing` for the null label: w = 1 is the conditional network and
w = 0 the unconditional one. ε, x₀, v and the score are affine in each other at given (x, t), so that guidance of one is
guidance of all. [Ho & Salimans 2022, eq. 6, with 1 + w there for w here]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deis_analysis.validate import positive_int, scalar


@dataclass(frozen=True)
class Guidance:
    """Labels that a network is given, and how strongly they guide it.

    Attributes:
        labels: one for all samples, or one for each.
        scale: w.
    """

    labels: int | tuple[int, ...]
    scale: float = 1.0

    @property
    def batch(self) -> int | None:
        """The number of samples that the labels are for, None for any."""
        return None if isinstance(self.labels, int) else len(self.labels)


def read_guidance(labels: Any, guidance: Any, classes: int, null: int | None = None) -> Guidance | None:
    """``labels`` and ``guidance`` checked against a network of ``classes`` classes, 0 for an unconditional one.

    Args:
        null: the label of no class, if it is one that may be asked for.

    Raises:
        ValueError: labels without classes or classes without labels, one out of range, guidance without labels.
    """
    scale = scalar("guidance", guidance)
    if not abs(scale) < float("inf"):
        raise ValueError(f"guidance={guidance!r} must be finite")
    if not classes:
        if labels is not None or scale != 1.0:
            name, value, only = ("labels", labels, None) if labels is not None else ("guidance", guidance, 1.0)
            raise ValueError(f"{name}={value!r}: the network is not class-conditional; allowed: {only}")
        return None
    top = max(classes - 1, -1 if null is None else null)
    also = "" if null is None else f" ({null} for no class)"
    allowed = f"an integer 0 ... {top}{also}, or one for each sample"
    if labels is None:
        raise ValueError(f"labels=None: the network is class-conditional; allowed: {allowed}")
    several = isinstance(labels, (Sequence, torch.Tensor)) or getattr(labels, "ndim", 0) > 0
    try:
        values = tuple(
            positive_int("labels", label, minimum=0, most=top) for label in (labels if several else [labels])
        )
    except (TypeError, ValueError):
        values = ()
    if not values:
        raise ValueError(f"labels={labels!r}; allowed: {allowed}")
    return Guidance(values if several else values[0], scale)


class Called(torch.nn.Module):
    """A network, or function, as ``called(input, network_time, return_dict=False)[0]``.

    Args:
        net: ``net(input, network_time)`` or ``net(input, network_time, class_labels=...)``, giving a tensor or a tuple
            that begins with it.
        codes: what ``class_labels`` is to be for each label, (1, ...) or (batch, ...), None for no such argument.
        null: the same for no class, (1, ...); needed where ``scale`` is not 1.
        scale: w.
        channels: how many of the answered channels are the prediction; others are a learned variance.
        integers: whether network times are to be integer tensors.
        options: further keyword arguments of ``net``.
    """

    codes: torch.Tensor | None
    null: torch.Tensor | None

    def __init__(
        self,
        net: torch.nn.Module | Callable[..., Any],
        *,
        codes: torch.Tensor | None = None,
        null: torch.Tensor | None = None,
        scale: float = 1.0,
        channels: int | None = None,
        integers: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.scale, self.channels, self.integers = net, scale, channels, integers
        self.options = options or {}
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("null", null, persistent=False)

    def forward(self, x: torch.Tensor, n: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """The prediction at inputs (batch, ...) and network times (batch,)."""
        if self.integers:
            n = n.round().long()
        if self.codes is None:
            return (self._ask(x, n, {}),)
        codes = self.codes.repeat(len(x) // len(self.codes), *[1] * (self.codes.ndim - 1))
        if self.scale == 1.0:
            return (self._ask(x, n, {"class_labels": codes}),)
        assert self.null is not None
        both = torch.cat([codes, self.null.expand_as(codes)])
        given, none = self._ask(torch.cat([x, x]), torch.cat([n, n]), {"class_labels": both}).chunk(2)
        return (none + self.scale * (given - none),)

    def _ask(self, x: torch.Tensor, n: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        answer = self.net(x, n, **labels, **self.options)
        found: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
        return found if self.channels is None else found[:, : self.channels]
