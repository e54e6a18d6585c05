"""What a terminal can show: the letters of its encoding, its width, pipes that close, interrupts."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import click

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "…": "...", "·": "*", "⋅": "*", "×": "x", "±": "+-", "→": "->", "≤": "<=", "≥": ">=",
    "≈": "~", "≠": "!=", "∞": "inf", "√": "sqrt", "∫": "int", "∑": "sum", "Σ": "sum", "∏": "prod", "∂": "d", "‖": "||",
    "∈": "in", "′": "'", "″": "''", "“": '"', "”": '"', "‘": "'", "’": "'", "⟨": "<", "⟩": ">", "ᾱ": "alpha_bar",
}  # fmt: skip
_HANDLER, _ASCII = "deis_analysis.plain", "deis_analysis_ascii"
_ENDLESS = 10_000  # columns
_LEAST = 12


def plain(letter: str) -> str:
    """A letter in ASCII: ρ is rho, ₀ is 0, é is e, ┃ is |; what has no such form is a question mark."""
    if letter in _PLAIN:
        return _PLAIN[letter]
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK") and "LETTER" in name:
        word = name.split("LETTER ")[1].split()[0].lower().replace("lamda", "lambda")
        return word.capitalize() if "CAPITAL" in name else word
    if name.startswith("BOX DRAWINGS"):
        return "-" if "HORIZONTAL" in name and "VERTICAL" not in name else "|" if name.endswith("VERTICAL") else "+"
    decomposed = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return decomposed or ("" if unicodedata.combining(letter) else "?")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(plain, error.object[error.start : error.end])), error.end


def _ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII by a name of its own: click takes a stream that is called ``ascii`` for a mistake, and writes UTF-8."""
    if name != _ASCII:
        return None
    own = codecs.lookup("ascii")
    return codecs.CodecInfo(
        own.encode, own.decode, incrementalencoder=own.incrementalencoder, incrementaldecoder=own.incrementaldecoder,
        name=_ASCII,
    )  # fmt: skip


def prepare() -> None:
    """Let the standard streams write in ASCII what their encoding does not have, instead of failing."""
    codecs.register_error(_HANDLER, _replaced)
    codecs.register(_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors != _HANDLER:
            narrow = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if narrow else None, errors=_HANDLER)


class Commands(click.Group):
    """A group of commands that any terminal can show."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """`click.Command.main`, on streams that cannot fail to encode; a full disk is one line and status 1."""
        prepare()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sys.stderr.write(f"cannot be written: {error}\n")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered cannot be written either
            sys.exit(1)


def console(**options: Any) -> Any:
    """A console of rich: as wide as its terminal, or as COLUMNS says; a pipe or a file has lines of any length."""
    from rich.console import Console

    found = Console(**options)
    if not (found.is_terminal or found.stderr or "COLUMNS" in os.environ):
        found = Console(**(options | {"width": _ENDLESS}))
    return found


def in_one_line(screen: Any, table: Any) -> Any:
    """``table`` with a line per row: its last column is cut to the room there is, and left out where there is none."""
    *columns, last = table.columns
    for column in columns:
        column.no_wrap = True
    table.columns = columns
    room = screen.width - screen.measure(table).maximum - 2
    if room >= _LEAST:
        last.no_wrap, last.overflow, last.max_width = True, "ellipsis", room
        table.columns = [*columns, last]
    return table


def entry(load: Callable[[], Any]) -> None:
    """Run the command that ``load`` imports; Ctrl-C ends with status 130 and one line, also while it is imported."""
    try:
        load()()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
