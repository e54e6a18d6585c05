"""Samplers of released packages as subjects of an audit. A package has its module here, which is found by its name.

Such a module defines ``INSTALL`` (how to get the package), ``CATALOGUE`` (the specs of a sweep, without their source)
and ``adapt(spec, name, options)``, which makes the subject; it imports the package when it is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from deis_analysis.audit.subject import Subject
from deis_analysis.validate import checked, choose

SOURCES = tuple(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name != "shared")


def adapt(spec: str, source: str, name: str, options: dict[str, Any]) -> Subject:
    """The subject ``source:name?options`` of a released package.

    Raises:
        ValueError: the package is not installed, or has no such sampler or option.
    """
    made: Subject = _module(spec, source).adapt(spec, name, dict(options))
    return made


@checked
def catalogue(source: str) -> list[str]:
    """The specs of a sweep over a package: every class, and the options at which it is another method."""
    return [f"{source}:{entry}" for entry in _module(source, source).CATALOGUE]


def _module(spec: str, source: str) -> Any:
    module = importlib.import_module(f"{__name__}.{choose('source', source, SOURCES)}")
    if importlib.util.find_spec(source) is None:
        raise ValueError(f"spec={spec!r}: {source} is not installed; {module.INSTALL}")
    return module
