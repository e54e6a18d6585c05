"""What `run` needs from an array library: cast, check, combine. Only NumPy is imported; others are met as they come."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Combination = Callable[[list[tuple[float, Any]]], Any]


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def cast(x: Any, dtype: Any) -> Any:
    """``x`` in another dtype, ``x`` itself where it has it."""
    if x.dtype == dtype:
        return x
    return x.to(dtype) if is_torch(x) else x.astype(dtype)


def like(values: Any, x: Any) -> Any:
    """``values`` as an array of the library, dtype and device of ``x``."""
    if is_torch(x):
        return sys.modules["torch"].as_tensor(values, dtype=x.dtype, device=x.device)
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(values, dtype=x.dtype)
    return cast(sys.modules["jax"].numpy.asarray(values), x.dtype)


def along(values: Any, x: Any) -> Any:
    """(n,) numbers as an array of the kind of ``x`` that multiplies its slices: shape (n, 1, …, 1)."""
    return like(np.asarray(values, dtype=np.float64).reshape(-1, *(1,) * (x.ndim - 1)), x)


class Centre:
    """The door between a process that reverts to a mean and the inner one, which x − μ obeys.

    Nothing is computed where there is no mean.

    Args:
        mean: μ, which broadcasts against the state, or None. x: a state, whose kind and dtype it takes.
        prediction: what the model predicts: x₀ has the mean on, all else knows nothing of it.
    """

    def __init__(self, mean: Any, x: Any, prediction: str = "eps") -> None:
        self.mean = None if mean is None else like(mean, x)
        self._shifts = self.mean is not None and prediction == "x0"

    def off(self, x: Any) -> Any:
        """The state x − μ."""
        return x if self.mean is None else x - self.mean

    def on(self, u: Any) -> Any:
        """The state u + μ."""
        return u if self.mean is None else u + self.mean

    def predicted(self, p: Any) -> Any:
        """What a prediction at u + μ says of u."""
        return p - self.mean if self._shifts else p


def alike(values: Any, x: Any) -> Any:
    """``values``, made an array of the library of ``x`` if they are of another."""
    return like(values, x) if is_torch(values) != is_torch(x) else values


def detached(x: Any) -> Any:
    """``x`` without its gradient graph, where the library has one."""
    return x.detach() if is_torch(x) else x


def _wrapped(x: Any) -> bool:
    """Whether ``x`` is a torch tensor inside a transform of torch.func, such as vmap or jvp."""
    return is_torch(x) and bool(sys.modules["torch"]._C._functorch.is_functorch_wrapped_tensor(x))


def _unwrapped(x: Any) -> Any:
    """``x`` without gradient graph and transforms: of vmap's tensor the whole batch, whose entries can be looked at."""
    while _wrapped(x):
        x = sys.modules["torch"]._C._functorch.get_unwrapped(x)
    return detached(x)


def wide(x: Any) -> Any:
    """A floating torch tensor detached and in float64, as NumPy has no bfloat16; anything else as it is."""
    return x.detach().double() if is_torch(x) and x.is_floating_point() else x


def flat(x: Any) -> np.ndarray:
    """(n, d) float64 copy, in NumPy, of n states of any shape and library."""
    values = np.array(wide(x).cpu().numpy() if is_torch(x) else x, dtype=np.float64)
    return values.reshape(values.shape[0], -1)


def wants_graph(x: Any) -> bool:
    """Whether what is computed from ``x`` is to be differentiated, as far as torch tells outside of torch.func."""
    return is_torch(x) and x.requires_grad and sys.modules["torch"].is_grad_enabled()


def with_graph(name: str, output: Any, where: str, x: Any = None) -> Any:
    """``output``, a torch tensor; ValueError unless a gradient graph hangs on it, so that derivatives are not silent 0.

    With ``x`` the graph must lead there, not only to parameters of a network.
    """
    found = output.requires_grad
    if found and x is not None:
        (gradient,) = sys.modules["torch"].autograd.grad(output.sum(), x, retain_graph=True, allow_unused=True)
        found = gradient is not None
    if not found:
        raise ValueError(f"{name} is not differentiable in x {where}; allowed: no torch.no_grad, no detach in it")
    return output


def dtype_for(name: str, dtype: Any, x: Any) -> Any:
    """``dtype`` itself; ValueError unless it is a floating one of the library of ``x``."""
    torch = sys.modules.get("torch")
    try:
        known = dtype if torch is not None and isinstance(dtype, torch.dtype) else np.dtype(dtype)
        if is_torch(x) == isinstance(known, np.dtype) or "float" not in str(known) or _is_array(dtype):
            raise TypeError
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{name}={reprlib.repr(dtype)} must be a floating dtype of the library of x") from None
    return dtype


def _is_array(value: Any) -> bool:
    return is_torch(value) or isinstance(value, (np.ndarray, np.generic))


def of_floating_dtype(name: str, x: Any) -> Any:
    """``x`` itself; ValueError unless it is a dense array or tensor, with its numbers, of a floating dtype."""
    if isinstance(x, type) or not hasattr(x, "shape"):
        raise ValueError(f"{name}={reprlib.repr(x)} must be an array of floating dtype")
    if is_torch(x) and (x.is_meta or x.layout is not sys.modules["torch"].strided):
        raise ValueError(
            f"{name} is a tensor on {x.device} of layout {x.layout}; allowed: a dense one with its numbers"
        )
    if not (x.dtype.is_floating_point if is_torch(x) else "float" in str(x.dtype)):
        raise ValueError(f"{name} has dtype {x.dtype}; allowed: a floating dtype (float32, float64, bfloat16 …)")
    return x


def floating(name: str, x: Any) -> Any:
    """``x`` as an array of floating dtype and finite entries; ValueError otherwise."""
    x = of_floating_dtype(name, x if hasattr(x, "dtype") else _asarray(name, x))
    if not _traced(x) and not _all_finite(x):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    return np.asarray(x) if isinstance(x, np.generic) else x


def _asarray(name: str, x: Any) -> Any:
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError):  # ragged lists
        raise ValueError(f"{name}={reprlib.repr(x)} must be an array of floating dtype") from None


def _traced(x: Any) -> bool:
    return "Tracer" in type(x).__name__


def _all_finite(x: Any) -> bool:
    x = _unwrapped(x)
    with np.errstate(over="ignore"):  # half precision overflows in a sum; then every entry is looked at
        total = float(x.sum())
    if math.isfinite(total):
        return True
    if is_torch(x):  # a sum may overflow where no entry does
        return bool(sys.modules["torch"].isfinite(x).all())
    return bool(np.isfinite(np.asarray(x, dtype=np.float64)).all())


class guarded:
    """A model behind its door: input cast, output shape, dtype and finiteness checked, calls counted."""

    def __init__(self, model: Callable[[Any, float], Any], x: Any, model_dtype: Any, check: bool) -> None:
        if not callable(model):
            raise ValueError(f"model={reprlib.repr(model)} must be callable, as model(x, t)")
        if model_dtype is not None:
            dtype_for("model_dtype", model_dtype, x)
        if not isinstance(check, (bool, np.bool_)):
            raise ValueError(f"check={reprlib.repr(check)} must be True or False")
        self.model, self.model_dtype, self.shape, self.dtype = model, model_dtype, x.shape, x.dtype
        on_host = not is_torch(x) or x.device.type == "cpu"
        self.at_once = check and on_host and (is_torch(x) or isinstance(x, np.ndarray))
        self.later = check and not self.at_once and not _traced(x)
        self.sums: list[tuple[float, Any]] = []  # kept on the device, so that checking does not stall it
        self.calls = 0

    def __call__(self, x: Any, t: float) -> Any:
        """The model output at (x, t), in the dtype of the state."""
        self.calls += 1
        p = self.model(x if self.model_dtype is None else cast(x, self.model_dtype), t)
        if getattr(p, "shape", None) != self.shape or is_torch(p) != is_torch(x):
            shape = f"{type(p).__name__} of shape {tuple(p.shape)}" if hasattr(p, "shape") else type(p).__name__
            raise ValueError(
                f"model returned {shape} at call {self.calls}, t={t!r}; "
                f"allowed: the kind and shape of x, {tuple(self.shape)}"
            )
        if p.dtype != self.dtype:
            p = cast(p, self.dtype)
        if self.at_once and not _all_finite(p):
            raise ValueError(f"model returned NaN or infinity at call {self.calls}, t={t!r}")
        if self.later:
            self.sums.append((t, _unwrapped(p).sum()))
        return p

    def finish(self) -> None:
        """Report what was to be checked after the run."""
        for call, (t, total) in enumerate(self.sums, 1):
            if not math.isfinite(float(total)):
                raise ValueError(f"model returned NaN or infinity (or overflowed in sum) at call {call}, t={t!r}")


def combination(x: Any) -> Combination:
    """A function that returns Σ c·a as a new array, in place after the first term where the library allows."""
    if is_torch(x):
        return _combine_torch
    if isinstance(x, np.ndarray) and x.ndim > 0:
        return _combine_numpy
    return _combine


def _combine(parts: list[tuple[float, Any]]) -> Any:
    total = parts[0][0] * parts[0][1]
    for c, a in parts[1:]:
        total = total + c * a
    return total


def _combine_torch(parts: list[tuple[float, Any]]) -> Any:
    total = parts[0][1] * parts[0][0]
    in_place = not any(_wrapped(a) for _, a in parts)  # a plain tensor cannot take up what a transform follows
    for c, a in parts[1:]:
        total = total.add_(a, alpha=c) if in_place else total.add(a, alpha=c)
    return total


def _combine_numpy(parts: list[tuple[float, Any]]) -> Any:
    total = parts[0][1] * parts[0][0]
    scratch = np.empty_like(total)
    for c, a in parts[1:]:
        np.multiply(a, c, out=scratch)
        total += scratch
    return total


def tracked(rows: list[Any], name: str, progress: bool) -> Iterable[Any]:
    """``rows``, behind a progress bar if asked."""
    if not progress:
        return rows
    from rich.progress import track

    return track(rows, description=name or "sampling")
