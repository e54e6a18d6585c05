"""Mathematics of docstrings, which reStructuredText writes, as pages write it."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *(?=\n)))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


class Mathematics(griffe.Extension):
    """``.. math::`` and ``:math:`` as $$ and $."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = converted(obj.docstring.value)


def converted(text: str) -> str:
    """A docstring with mathematics in dollars."""

    def block(match: re.Match[str]) -> str:
        inside = textwrap.dedent(match[2].replace("\\n\\n", "\\n")).strip()
        return f"{match[1]}$$\n{textwrap.indent(inside, match[1])}\n{match[1]}$$\n"

    return _INLINE.sub(r"$\1$", _BLOCK.sub(block, text))
