"""Checks at the boundary: each names the argument, its value and what is allowed."""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import math
import operator
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Array = np.ndarray
_FEW = 24  # names that a message lists


def checked(boundary: F) -> F:
    """Refuse, before a public function or a class begins, arguments that are not what its annotations say.

    Looked at are ``int``, ``float`` (finite, unless the default is infinite), ``str``, ``bool``, functions, classes and
    unions of such; `Any` and all else is left to the function. Numbers reach it as Python's. Seeds, and counts that
    memory and time grow with, have `_BOUNDS` by their names.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    if inspect.isclass(boundary):
        setattr(boundary, "__init__", checked(getattr(boundary, "__init__")))  # noqa: B009, B010 - for mypy
        return boundary
    signature = inspect.signature(boundary)

    @functools.cache
    def allowed() -> dict[str, tuple[Any, ...]]:
        scope = vars(sys.modules[boundary.__module__])
        kinds = {name: _kinds(str(p.annotation), p.default, scope) for name, p in signature.parameters.items()}
        return {name: kind for name, kind in kinds.items() if kind}

    @functools.wraps(boundary)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        for name, kinds in allowed().items():
            if name in given and given[name] is not signature.parameters[name].default:
                given[name] = _plain(name, given[name], kinds)
        return boundary(*bound.args, **bound.kwargs)

    return wrapped  # type: ignore[return-value]


def _kinds(annotation: str, default: Any, scope: dict[str, Any]) -> tuple[Any, ...]:
    """Each is None, a class, ``Callable``, or inf for a float that may be infinite; () for what is not looked at."""
    try:
        parts = [eval(part, scope) for part in annotation.split(" | ")]
    except Exception:  # a name that is imported for annotations only, a union inside of brackets
        return ()
    found: list[Any] = []
    for kind in (kind for part in parts for kind in (typing.get_args(part) if _is_union(part) else (part,))):
        if kind is None or kind is types.NoneType:
            found.append(None)
        elif typing.get_origin(kind) is collections.abc.Callable:
            found.append(collections.abc.Callable)
        elif kind is float:
            found.append(math.inf if isinstance(default, float) and math.isinf(default) else float)
        elif isinstance(kind, type) and kind not in (Any, object, Array, inspect.Parameter.empty):
            found.append(kind)
        else:
            return ()
    return tuple(found)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _plain(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """``value``, a number as Python's; the error of the first of ``kinds`` unless it is of one of them."""
    errors = []
    for kind in kinds:
        try:
            return _CHECKS[kind](name, value) if kind in _CHECKS else _of_class(name, value, kind)
        except ValueError as error:
            errors.append(error)
    raise errors[0] from None


def _of_class(name: str, value: Any, kind: Any) -> Any:
    if not getattr(kind, "_is_protocol", False):
        return instance(name, value, kind)
    if missing := [part for part in vars(kind) if not part.startswith("_") and not hasattr(value, part)]:
        raise ValueError(f"{name}={shown(value)} must be a {kind.__name__}; it has no {missing[0]}")
    return value


def shown(value: Any) -> str:
    """``repr`` for a message: short, whatever the value is."""
    try:
        text = repr(value) if isinstance(value, (str, int, float)) and len(str(value)) < 60 else reprlib.repr(value)
    except Exception:  # an integer of many digits, a repr that fails
        text = f"<{type(value).__name__}>"
    return " ".join(text.split())


def choose(name: str, value: Any, allowed: Iterable[str], known_as: Mapping[str, str] | None = None) -> str:
    """``value`` if it is one of ``allowed``; else a ValueError with the three nearest ones, and all if they are few.

    Args:
        known_as: what a part of the value, in small letters and figures, is called here: one name, or the nearest ones.
    """
    allowed = tuple(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    key, plain = _letters(shown(value)), {_letters(one): one for one in reversed(allowed)}
    many = len(allowed) > _FEW
    near = [one for part, names in (known_as or {}).items() if part in key for one in names.split()]
    near += [plain[one] for one in difflib.get_close_matches(key, plain, n=3, cutoff=0.2 if many else 0.4)]
    hint = f"; nearest: {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
    listed = f"{len(allowed)} names" if many and near else ", ".join(allowed)
    raise ValueError(f"{name}={shown(value)} is unknown{hint}. Allowed: {listed}")


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def integer(name: str, value: Any, allowed: str = "an integer") -> int:
    """``value`` as an int; ValueError unless it is one: True and 3.0 are not."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}={shown(value)} must be {allowed}") from None


def positive_int(name: str, value: Any, minimum: int = 1, most: int | None = None) -> int:
    """``value`` as an int; ValueError unless an integer ≥ ``minimum`` (True and 3.0 are not) and at most ``most``."""
    number = integer(name, value, f"an integer >= {minimum}")
    if number < minimum:
        raise ValueError(f"{name}={shown(number)} must be an integer >= {minimum}")
    if most is not None and number > most:
        raise ValueError(f"{name}={shown(number)} must be at most {most}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return ``value`` as a bool; ValueError unless it is True or False (1 and "no" are not)."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={shown(value)} must be True or False")
    return bool(value)


def instance(name: str, value: Any, kind: type[T]) -> T:
    """Return ``value``; ValueError unless it is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={shown(value)} must be a {kind.__name__}")
    return value


def several(name: str, value: Any) -> tuple[Any, ...]:
    """``value`` as a tuple; ValueError unless it can be iterated over, and is no string."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return tuple(value)
    except TypeError:
        raise ValueError(f"{name}={shown(value)} must be a sequence") from None


def function(name: str, value: Any) -> Any:
    """Return ``value``; ValueError unless it can be called."""
    if not callable(value):
        raise ValueError(f"{name}={shown(value)} must be a function")
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
    except (TypeError, ValueError, OverflowError, RuntimeError):  # 10**400; tensors without data
        raise ValueError(f"{name}={shown(value)} must be made of real numbers") from None


def finite(name: str, value: Any, minimum: float = -math.inf) -> np.ndarray:
    """``value`` as a new float64 array; ValueError unless made of finite numbers ≥ ``minimum``."""
    array = real(name, value)
    if not np.all(np.isfinite(array) & (array >= minimum)):
        raise ValueError(
            f"{name}={shown(value)} must be finite" + (f" and >= {minimum:g}" if minimum > -math.inf else "")
        )
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
            raise ValueError(f"{name}={shown(value)} must be a positive finite number")


def first(values: np.ndarray, where: np.ndarray) -> str:
    """The first of ``values`` at which ``where`` holds, for a message."""
    i = int(np.flatnonzero(where)[0])
    return f"{float(values[i])!r} at index {i}"


def nonnegative(name: str, value: Any, most: float = math.inf) -> float:
    """Return ``value`` as a float; ValueError unless it is one finite number ≥ 0 and at most ``most``."""
    number = scalar(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}={shown(value)} must be a finite number >= 0")
    if number > most:
        raise ValueError(f"{name}={shown(value)} must be at most {most:g}")
    return number


def between(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a float; ValueError unless it is one number in [low, high]."""
    number = scalar(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}={shown(value)} must lie in [{low:g}, {high:g}]")
    return number


def _counted(name: str, value: Any) -> int:
    low, high = _BOUNDS.get(name, (-math.inf, math.inf))
    number = integer(name, value)
    if number < low:
        raise ValueError(f"{name}={shown(value)} must be an integer >= {low}")
    if number > high:
        raise ValueError(f"{name}={shown(value)} must be at most {high}")
    return number


def _number(name: str, value: Any) -> float:
    number = scalar(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}={shown(value)} must be finite, one number")
    return value if isinstance(value, int) else number


def _not_nan(name: str, value: Any) -> float:
    number = scalar(name, value)
    if math.isnan(number):
        raise ValueError(f"{name}={shown(value)} must be a number")
    return value if isinstance(value, int) else number


def _nothing(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"{name}={shown(value)} must be None")


_GROW = "samples held_out most sweeps levels rounds depth dimension features corrector_steps digits limit degree"
_DEAR = "width draws probes slices points pairs max_degree terms"
_BOUNDS: dict[str, tuple[int, int]] = {
    "seed": (0, 2**63 - 1),
    "n": (0, 10**8),
    **dict.fromkeys(_GROW.split(), (-(10**6), 10**6)),
    **dict.fromkeys(_DEAR.split(), (-(10**4), 10**4)),
}
_CHECKS: dict[Any, Callable[[str, Any], Any]] = {
    None: _nothing,
    bool: boolean,
    int: _counted,
    float: _number,
    math.inf: _not_nan,
    collections.abc.Callable: function,
}
