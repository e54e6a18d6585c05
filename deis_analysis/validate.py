"""Checks at the boundary: each names the argument, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Array = np.ndarray


def choose(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``; raise a ValueError that names the nearest ones otherwise."""
    allowed = tuple(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ValueError(f"{name}={value!r} is unknown{hint}. Allowed: {', '.join(allowed)}")


def positive_int(name: str, value: Any, minimum: int = 1, most: int | None = None) -> int:
    """``value`` as an int; ValueError unless an integer ≥ ``minimum`` (True and 3.0 are not) and at most ``most``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be an integer >= {minimum}") from None
    if number < minimum:
        raise ValueError(f"{name}={number} must be an integer >= {minimum}")
    if most is not None and number > most:
        raise ValueError(f"{name}={number} must be at most {most}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return ``value`` as a bool; ValueError unless it is True or False (1 and "no" are not)."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r} must be True or False")
    return bool(value)


def instance(name: str, value: Any, kind: type[T]) -> T:
    """Return ``value``; ValueError unless it is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={reprlib.repr(value)} must be a {kind.__name__}")
    return value


def several(name: str, value: Any) -> tuple[Any, ...]:
    """``value`` as a tuple; ValueError unless it can be iterated over, and is no string."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name}={reprlib.repr(value)} must be a sequence")
    return tuple(value)


def function(name: str, value: Any) -> Any:
    """Return ``value``; ValueError unless it can be called."""
    if not callable(value):
        raise ValueError(f"{name}={value!r} must be a function")
    return value


def _is_real(value: Any) -> bool:
    return isinstance(value, (Real, np.generic))


def real(name: str, value: Any) -> np.ndarray:
    """``value`` (number, list, array or tensor) as a new float64 array; ValueError unless made of real numbers."""
    try:
        plain = value.detach().cpu() if hasattr(value, "detach") else value
        array = np.asarray(plain.double() if str(getattr(plain, "dtype", "")) == "torch.bfloat16" else plain)
        if array.dtype.kind in "cSUMm" or (array.dtype.kind == "O" and not all(map(_is_real, array.flat))):
            raise TypeError
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, NotImplementedError):  # 10**400; tensors without data
        raise ValueError(f"{name}={reprlib.repr(value)} must be made of real numbers") from None


def finite(name: str, value: Any, minimum: float = -math.inf) -> np.ndarray:
    """``value`` as a new float64 array; ValueError unless made of finite numbers ≥ ``minimum``."""
    array = real(name, value)
    if not np.all(np.isfinite(array) & (array >= minimum)):
        raise ValueError(f"{name}={value!r} must be finite" + (f" and >= {minimum:g}" if minimum > -math.inf else ""))
    return array


def scalar(name: str, value: Any) -> float:
    """``value`` as a float; ValueError unless it is one real number."""
    array = real(name, value)
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}; allowed: one number")
    return float(array)


def positive(**values: Any) -> None:
    """Raise a ValueError unless every value is a positive finite number, a NumPy or torch one included."""
    for name, value in values.items():
        try:
            number = math.nan if isinstance(value, (bool, np.bool_, str)) else scalar(name, value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}={value!r} must be a positive finite number")


def first(values: np.ndarray, where: np.ndarray) -> str:
    """The first of ``values`` at which ``where`` holds, for a message."""
    i = int(np.flatnonzero(where)[0])
    return f"{float(values[i])!r} at index {i}"


def nonnegative(name: str, value: Any, most: float = math.inf) -> float:
    """Return ``value`` as a float; ValueError unless it is one finite number ≥ 0 and at most ``most``."""
    number = scalar(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}={value!r} must be a finite number >= 0")
    if number > most:
        raise ValueError(f"{name}={value!r} must be at most {most:g}")
    return number


def between(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a float; ValueError unless it is one number in [low, high]."""
    number = scalar(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r} must lie in [{low:g}, {high:g}]")
    return number
