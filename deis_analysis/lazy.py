"""Names that are loaded when they are asked for, and packages that may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages that are of the extra ``name``.

    Raises:
        ImportError: one of them is not installed; one sentence with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ImportError(f"{package} is not installed: pip install 'deis-analysis[{name}]'", name=package) from None


def names(package: str, where: dict[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """``__all__`` and ``__getattr__`` of a package.

    Args:
        package: its ``__name__``. where: module of it → the names there, separated by blanks.
    """
    module_of = {name: module for module, names in where.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), get
