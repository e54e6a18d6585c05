r"""Thresholding of x₀ as a wrapper of the model: any table or stepper then runs with it.

A thresholded model is no smooth function of x, so orders of convergence measured with it say nothing about the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis import backend
from deis_analysis.process.process import PREDICTIONS, Process, require_process
from deis_analysis.tableau import Model
from deis_analysis.validate import checked, choose, positive, scalar


@checked
def dynamic_thresholding(
    model: Model, process: Process, prediction: str = "eps", ratio: float = 0.995, max_value: float = 1.0
) -> Model:
    r"""``model`` with its x₀ clipped per sample at a quantile, and scaled back into [−M, M], M = ``max_value``:

    .. math:: q = \max(\mathrm{quantile}_{ratio} |x_0| , M) , \qquad
              x_0 \leftarrow \frac{M}{q}\, \mathrm{clip}(x_0, -q, q) .

    Where no more than the share 1 − ``ratio`` of x₀ leaves [−M, M], this is plain clipping.  The paper has M = 1.  The
    released dpm-solver code has M in q but divides by q alone, and so shrinks x₀ by M where nothing is to be clipped.

    Args:
        model: ``model(x, t)`` with x of shape (n, …), t a float or (n,).
        prediction: what it predicts, and what the wrapped model returns.
        ratio: in (0, 1]. max_value: M > 0, the largest |x₀| of the data.

    Raises:
        ValueError: arguments outside these ranges; in a call, times at which x₀ cannot be told from the prediction.

    Source: Saharia et al. 2022 (Imagen, arXiv 2205.11487), sec. 2.3.
    """
    if not 0 < scalar("ratio", ratio) <= 1:
        raise ValueError(f"ratio={ratio!r} must lie in (0, 1]")
    positive(max_value=max_value)

    def threshold(x0: Any) -> Any:
        xp = array_namespace(x0)
        q = _quantile(xp.abs(x0), ratio)
        q = xp.maximum(q, xp.full_like(q, max_value))
        return xp.minimum(xp.maximum(x0, -q), q) * (max_value / q)

    return _through_x0(model, process, prediction, threshold)


@checked
def static_thresholding(model: Model, process: Process, prediction: str = "eps", max_value: float = 1.0) -> Model:
    """``model`` with its x₀ clipped to [−max_value, max_value].

    Arguments and errors as in `dynamic_thresholding`.  Source: Saharia et al. 2022 (arXiv 2205.11487), sec. 2.3.
    """
    positive(max_value=max_value)

    def threshold(x0: Any) -> Any:
        xp = array_namespace(x0)
        bound = xp.full_like(x0, max_value)
        return xp.minimum(xp.maximum(x0, -bound), bound)

    return _through_x0(model, process, prediction, threshold)


def _quantile(values: Any, ratio: float) -> Any:
    """The quantile of each sample, shape (n, 1, …), linear between order statistics; by sorting, as torch's own
    refuses more than 2²⁴ entries."""
    xp = array_namespace(values)
    flat = xp.sort(xp.reshape(values, (values.shape[0], -1)), axis=1)
    place = ratio * (flat.shape[1] - 1)
    low = min(math.floor(place), flat.shape[1] - 1)
    high = min(low + 1, flat.shape[1] - 1)
    quantile = flat[:, low] + (place - low) * (flat[:, high] - flat[:, low])
    return xp.reshape(quantile, (-1, *(1,) * (values.ndim - 1)))


def _through_x0(model: Model, process: Process, prediction: str, change: Callable[[Any], Any]) -> Model:
    """The model with its x₀ changed: prediction → x₀ → changed → prediction, about the mean of the process."""
    choose("prediction", prediction, PREDICTIONS)
    require_process(process)
    if not callable(model):
        raise ValueError(f"model={model!r} must be callable, as model(x, t)")

    def wrapped(x: Any, t: Any) -> Any:
        output = model(x, t)
        if prediction == "x0":
            return change(output)
        times = np.asarray(t.detach().cpu() if backend.is_torch(t) else t, dtype=np.float64)
        x0 = change(process._translate(x, output, prediction, "x0", times))
        return process._translate(x, x0, "x0", prediction, times)

    return wrapped
