r"""What a model predicts, of which process, and what it is told: typed models, and models with other people's clocks.

A network, or a sampler that asks one, has its own idea of time and of scale. Both are written in one way:

.. math:: \text{told} = \text{offset} + \text{scale} \cdot c_t , \qquad c_t ∈ \{t, ρ_t, λ_t\} , \qquad
    \text{seen} = x, \; x / α_t \;\text{or}\; x / \sqrt{α_t^2 + σ_t^2} .
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.validate import boolean, checked, choose, finite, function, scalar

Function = Callable[[Any, float], Any]
CLOCKS = ("t", "rho", "lam")
STATES = ("process", "karras", "normalised")


@dataclass(frozen=True)
class Model:
    """A model that says what it predicts, of which process: `run` converts a table to it, and refuses another process.

    Attributes:
        function: ``function(x, t)``, which `Model` calls.
        process: the process whose x and t it takes. prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``.

    Raises:
        ValueError: ``function`` cannot be called, ``process`` is no `Process`, an unknown prediction.
    """

    function: Function
    process: Process
    prediction: str

    def __post_init__(self) -> None:
        function("function", self.function)
        require_process(self.process)
        choose("prediction", self.prediction, PREDICTIONS)

    def __call__(self, x: Any, t: float) -> Any:
        """The prediction at (x, t)."""
        return self.function(x, t)


def type_of(model: Any) -> tuple[Process, str] | None:
    """(process, prediction) of a model that says what it is; None for a bare function, which is taken at its word."""
    process, prediction = getattr(model, "process", None), getattr(model, "prediction", None)
    return (process, prediction) if isinstance(process, Process) and prediction in PREDICTIONS else None


def predicting(model: Any, process: Process, prediction: str) -> Function:
    """``model`` as a function that predicts ``prediction``, if it says what it is; a bare function as it stands.

    Raises:
        ValueError: a model of another process; names both.
    """
    known = type_of(model)
    if known is None:
        return model
    own, says = known
    if own != process:
        raise ValueError(f"model is one of {own!r}; allowed: a model of {process!r}")
    if says == prediction:
        return model
    return lambda x, t: process._translate(x, model(x, t), says, prediction, t)


@checked
def flow_model(
    model: Function,
    *,
    data_time: float = 0.0,
    noise_time: float = 1.0,
    prediction: str = "v",
    per_own_time: bool = False,
) -> Function:
    """A model of `RectifiedFlow` (t = 0 data, t = 1 noise) from one whose clock runs from data_time to noise_time.

    Conventions in use: (0, 1) rectified flow and most image models; (1, 0) the papers in which t = 1 is data, whose
    velocity x₁ − x₀ points to the data: it changes sign; (0, 1000) networks that are told 1000 t.

    Args:
        model: ``model(x, time)``.
        data_time, noise_time: its times of data and of noise, different numbers.
        prediction: what it predicts; only ``"v"`` is changed, to the velocity from data to noise.
        per_own_time: its velocity is per unit of its own clock, rather than over the whole range.

    Raises:
        ValueError: equal or infinite times, an unknown prediction, a model that is not a function.
    """
    function("model", model)
    choose("prediction", prediction, PREDICTIONS)
    boolean("per_own_time", per_own_time)
    start, stop = (
        float(finite(name, scalar(name, t))) for name, t in (("data_time", data_time), ("noise_time", noise_time))
    )
    length = stop - start
    if length == 0:
        raise ValueError(f"noise_time={noise_time!r} must differ from data_time={data_time!r}")
    factor = (length if per_own_time else 1.0 if length > 0 else -1.0) if prediction == "v" else 1.0

    def told(x: Any, t: float) -> Any:
        """The model in the convention of `RectifiedFlow`."""
        output = model(x, start + length * t)
        return output if factor == 1.0 else factor * output

    return told


@dataclass(frozen=True)
class Convention:
    """What a model predicts, and what it is told of the time and of the state.

    Attributes:
        prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``, as in `Process.prediction_parts`.
        time: the clock c: ``"t"``, process time; ``"rho"``, the level σ/α; ``"lam"``; or, for samplers that are read, a
            function from what is told to process time.
        scale, offset: told is offset + scale · c.
        state: what is seen: ``"process"``, α x₀ + σ ε; ``"karras"``, x₀ + ρ ε; ``"normalised"``, over √(α² + σ²).

    Raises:
        ValueError: an unknown prediction, time or state, scale 0, numbers that are not finite.
    """

    prediction: str = "eps"
    time: str | Callable[[float], float] = "t"
    scale: float = 1.0
    offset: float = 0.0
    state: str = "process"

    def __post_init__(self) -> None:
        if isinstance(self.scale, str) and self.scale in STATES:  # Convention("x0", "rho", "karras"), as in 0.1
            object.__setattr__(self, "state", self.scale)
            object.__setattr__(self, "scale", 1.0)
        choose("prediction", self.prediction, PREDICTIONS)
        choose("state", self.state, STATES)
        if not callable(self.time):
            choose("time", self.time, CLOCKS)
        finite("offset", scalar("offset", self.offset))
        if finite("scale", scalar("scale", self.scale)) == 0:
            raise ValueError(f"scale={self.scale!r} must not be 0: the model would not be told the time")

    @checked
    def told(self, process: Process, t: Any) -> Array:
        """What the model is told at times t, shape of ``t``; ValueError outside the range, or if time is a function."""
        process.alpha(t)  # refuses such times
        if callable(self.time):
            raise ValueError(f"time={self.time!r} gives process time from what is told only; allowed: {CLOCKS}")
        clock = np.asarray(t, dtype=np.float64) if self.time == "t" else getattr(process, self.time)(t)
        return self.offset + self.scale * clock

    @checked
    def process_time(self, process: Process, told: float) -> float:
        """Process time of what the model was told; NaN where the process has no such time."""
        try:
            if callable(self.time):
                return float(self.time(told))
            clock = (told - self.offset) / self.scale
            if self.time == "t":
                return float(process._check_scalar(clock, "t"))
            return float(process.time_from_rho(clock) if self.time == "rho" else process.time_from_lam(clock))
        except ValueError:
            return float("nan")

    @checked
    def input_scale(self, process: Process, t: Any) -> Array:
        """What x is divided by at times t, shape of ``t``."""
        if self.state == "process":
            return np.ones_like(process.alpha(t))
        return process.alpha(t) if self.state == "karras" else np.hypot(process.alpha(t), process.sigma(t))

    def card(self) -> dict[str, Any]:
        """As numbers and strings for a file; `from_card` reads them. ValueError if ``time`` is a function."""
        if callable(self.time):
            raise ValueError(f"time={self.time!r} cannot be written; allowed: {CLOCKS}")
        told = {"prediction": self.prediction, "clock": self.time, "scale": self.scale, "offset": self.offset}
        return told | ({"state": "karras"} if self.state == "karras" else {"normalised": self.state == "normalised"})

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Convention:
        """The convention that `card` wrote; TypeError for entries that it does not write."""
        entries = dict(card)
        if "clock" in entries:
            entries["time"] = entries.pop("clock")
        if boolean("normalised", entries.pop("normalised", False)):
            entries["state"] = "normalised"
        return cls(**entries)
