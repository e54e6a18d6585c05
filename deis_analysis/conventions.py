"""Other people's clocks: wrap a model that counts time from noise to data, or in thousandths, into ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deis_analysis.process import PREDICTIONS
from deis_analysis.validate import boolean, choose, finite, function, scalar

Model = Callable[[Any, float], Any]


def flow_model(
    model: Model, *, data_time: float = 0.0, noise_time: float = 1.0, prediction: str = "v", per_own_time: bool = False
) -> Model:
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
