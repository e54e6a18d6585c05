"""From a spec, as the command line takes it, to the subject that it names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from deis_analysis.audit import packages
from deis_analysis.audit.subject import Subject, TableSubject, function_subject, parse_spec
from deis_analysis.solvers import SOLVERS
from deis_analysis.solvers.registry import named
from deis_analysis.storage import module_of
from deis_analysis.validate import checked


@checked
def subject_of(spec: str) -> Subject:
    """The subject that a spec names.

    Raises:
        ValueError: the spec, a name or an option is unknown, or the package is not installed.
    """
    source, name, options = parse_spec(spec)
    if source == "registry":
        if options:
            raise ValueError(f"spec={spec!r}: registry rows take no options")
        return registry_subject(name)
    if source.endswith(".py"):
        return _from_file(spec, Path(source), name, options)
    if source in packages.SOURCES:
        return packages.adapt(spec, source, name, options)
    known = ", ".join(("registry", *packages.SOURCES))
    raise ValueError(f"spec={spec!r}: source {source!r} is unknown. Allowed: {known}, a .py file")


def registry_subject(name: str) -> TableSubject:
    """The subject ``registry:NAME``."""
    row = named("name", name)
    declared = row.order_exact_start if row.order_exact_start is not None else row.order
    return TableSubject(f"registry:{name}", row.build, declared, row.home, calls=row.calls, block=row.block)


def _from_file(spec: str, path: Path, name: str, options: dict[str, Any]) -> Subject:
    try:
        module = module_of(path)
    except ValueError as error:
        raise ValueError(f"spec={spec!r}: {error}") from error
    function = _member(module, name)
    if not callable(function):
        raise ValueError(f"spec={spec!r}: {str(path)!r} has no function {name!r}")
    try:
        if "spec" in options:
            raise ValueError("option='spec' is the audit's own; allowed: another name")
        return function_subject(function, spec=spec, **options)
    except ValueError as error:
        raise ValueError(f"spec={spec!r}: {error}") from error


def _member(module: Any, name: str) -> Any:
    """``function``, ``object.method`` or ``Class.method``, of a new ``Class()``; None if there is none."""
    *owners, last = name.split(".")
    owner = module
    for part in owners:
        owner = getattr(owner, part, None)
    if inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, last, None)):
        owner = owner()
    return getattr(owner, last, None)


@checked
def catalogue(source: str) -> list[str]:
    """The specs that ``deis-analysis audit --all SOURCE`` sweeps.

    Raises:
        ValueError: an unknown source, or its package is not installed.
    """
    if source == "registry":
        return [f"registry:{name}" for name in SOLVERS]
    return packages.catalogue(source)
