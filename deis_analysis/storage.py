"""Files: there as a whole or not at all, whenever the machine stops; and files of the user's code."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import reprlib
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SETTLED = 60.0  # seconds; a folder may be shared with another machine, whose processes are not seen


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which is made; it takes the place of ``path`` when the block ends well.

    Raises:
        OSError: the folder cannot be made, or the file cannot be written; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp"
    )  # other hosts have this pid too
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a name must not reach the disk before what it names
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """``text`` in UTF-8 as the file ``path``, whole or not at all; ``path`` itself."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def prepared(place: Path, size: int = 2**20) -> Path:
    """``place``, a folder that is there and to which ``size`` bytes can be written; tried before long computations.

    Raises:
        ValueError: it is none.
    """
    try:
        with atomic(place / "probe") as temporary:
            temporary.write_bytes(b"\0" * size)
            raise _Enough
    except _Enough:
        return place
    except OSError as error:
        raise ValueError(f"{str(place)!r} cannot be written to: {error}") from error


class _Enough(Exception):
    pass


def writable(name: str, path: Path, many: bool = False) -> Path:
    """``path``, a file (``many``: a folder) that can be written, tried before long computations; nothing is left of it.

    Raises:
        ValueError: it cannot.
    """
    if path.is_dir() and not many:
        raise ValueError(f"{name} {str(path)!r} is a folder; allowed: a file")
    place = path if many else path.parent
    try:
        prepared(next(one for one in (place, *place.parents) if os.path.lexists(one)))
    except ValueError as error:
        raise ValueError(f"{name} {str(path)!r}: {error}") from error
    return path


def sweep(place: Path) -> None:
    """Remove temporary files that `atomic` left in a folder when its process was killed, more than a minute ago."""
    with contextlib.suppress(OSError):
        for file in place.glob(".*.tmp"):
            pid = file.name.split(".")[-2]
            if pid.isdigit() and not _alive(int(pid)) and time.time() - file.stat().st_mtime > _SETTLED:
                file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def folder(name: str, value: Any) -> Path:
    """``value`` as the path of a folder, which may not be there yet; ValueError if it cannot be one."""
    try:
        place = Path(value)
        place.resolve(strict=False)
        if str(value) and (place.is_dir() or not os.path.lexists(place)):
            return place
    except (TypeError, ValueError, OSError):
        pass
    raise ValueError(f"{name}={reprlib.repr(value)} must be the path of a folder")


def file_to_be(name: str, value: Any) -> Path:
    """``value`` as the path of a file, which may not be there yet; ValueError if it cannot be one."""
    try:
        place = Path(value)
        place.resolve(strict=False)
        if str(value) and place.name and not place.is_dir():
            return place
    except (TypeError, ValueError, OSError):
        pass
    raise ValueError(f"{name}={reprlib.repr(value)} must be the path of a file")


def read_text(path: Path, most: int = 2**28) -> str:
    """The text of a file in UTF-8; ValueError unless it can be read, and is a regular one of at most ``most`` bytes."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{str(path)!r} is no file")
        if path.stat().st_size > most:
            raise ValueError(f"{str(path)!r} has {path.stat().st_size:,} bytes; allowed: at most {most:,}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def module_of(path: Path) -> Any:
    """A Python file of the user's as a module: what lies beside it can be imported, now and when it runs.

    Raises:
        ValueError: there is no such file, or its code fails.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} is no file of Python; allowed: NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"importing the file failed: {type(error).__name__}: {error}") from error
    return module
