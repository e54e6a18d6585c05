"""A JSON document read field by field: whatever is wrong with it is named by its path."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

MOST = 10_000_000  # entries of a list; a million nodes have fewer
_DEEPEST = 32
_MISSING = object()


class Document:
    """An object of a JSON text.

    Args:
        fields: what it holds. what: what it should be, for messages. path: where it stands in the whole text.
    """

    def __init__(self, fields: dict[str, Any], what: str, path: str = "") -> None:
        self.fields, self.what, self.path = fields, what, path

    @staticmethod
    def read(text: str, form: str, what: str) -> Document:
        """The document in ``text``.

        Raises:
            ValueError: no JSON object, NaN or infinity in it, or another ``format`` than ``form``.
        """

        def refused(constant: str) -> Any:
            raise ValueError(f"{constant} is no number of JSON")

        try:
            data = json.loads(text, parse_constant=refused)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"text is not {what}: {error}") from error
        return Document.of(data, form, what)

    @staticmethod
    def of(data: Any, form: str, what: str, path: str = "") -> Document:
        """The document in ``data``, which stands at ``path``; ValueError as of `read`."""
        if not isinstance(data, dict):
            raise ValueError(f"text is not {what}: {path or 'it'} holds {reprlib.repr(data)}, not an object")
        document = Document(data, what, path and f"{path}.")
        if document["format"] != form:
            raise ValueError(f"text has {document.path}format {data['format']!r}; allowed: {form!r}")
        return document

    def __getitem__(self, name: str) -> Any:
        """The field; ValueError if there is none."""
        if name not in self.fields:
            raise ValueError(f"text is not {self.what}: it has no {self.path}{name}")
        return self.fields[name]

    def get(self, name: str) -> Any:
        """The field, or None."""
        return self.fields.get(name)

    def error(self, where: str, value: Any, allowed: str) -> ValueError:
        """What to raise of a ``value`` that is not ``allowed``."""
        return ValueError(f"text: {self.path}{where}={reprlib.repr(value)}; allowed: {allowed}")

    def string(self, where: str, value: Any = _MISSING) -> str:
        """A string: of the field ``where``, or ``value``, which stands there; so below."""
        value = self[where] if value is _MISSING else value
        if not isinstance(value, str):
            raise self.error(where, value, "a string")
        return value

    def array(self, where: str, value: Any = _MISSING, size: int | None = None) -> list[Any]:
        """A list, of ``size`` entries."""
        value = self[where] if value is _MISSING else value
        if not isinstance(value, list) or len(value) > MOST or size not in (None, len(value)):
            raise self.error(where, value, f"a list of {f'at most {MOST:,}' if size is None else size} entries")
        return value

    def number(self, where: str, value: Any) -> float:
        """A finite number."""
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise self.error(where, value, "a finite number")

    def numbers(self, where: str, value: Any = _MISSING, size: int | None = None) -> list[float]:
        """A list of finite numbers."""
        return [self.number(f"{where}[{i}]", part) for i, part in enumerate(self.array(where, value, size))]

    def index(self, where: str, value: Any, size: int) -> int:
        """An integer in [0, size)."""
        if type(value) is not int or not 0 <= value < size:
            raise self.error(where, value, f"an integer between 0 and {size - 1}")
        return value

    def nested(self, where: str, value: Any) -> Any:
        """A finite number, or lists of such, all of one shape."""
        if not isinstance(value, list):
            return self.number(where, value)
        if where.count("[") >= _DEEPEST:
            raise self.error(where, value, f"lists within lists, {_DEEPEST} deep at most")
        found = [self.nested(f"{where}[{i}]", part) for i, part in enumerate(self.array(where, value))]
        if len({_shape(part) for part in found}) > 1:
            raise self.error(where, value, "lists of one length")
        return found


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *(_shape(value[0]) if value else ())) if isinstance(value, list) else ()
