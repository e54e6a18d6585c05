"""What a model predicts, and of which process: typed models, and models with other people's clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deis_analysis.process.process import PREDICTIONS, Process, require_process
from deis_analysis.validate import boolean, choose, finite, function, scalar

Function = Callable[[Any, float], Any]


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
    return lambda x, t: process.translate(x, model(x, t), says, prediction, t)


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
