"""What commands of ``deis-analysis`` share: options, and how errors are shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deis_analysis.process.process import Process
from deis_analysis.process.schedules import EDM, VE, RectifiedFlow, SubVP, VPCosine, VPLinear
from deis_analysis.storage import module_of, writable
from deis_analysis.validate import choose

PROCESSES: dict[str, Callable[..., Process]] = {
    cls.__name__: cls for cls in (VPLinear, VPCosine, SubVP, VE, EDM, RectifiedFlow)
}


def clear_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show a ValueError of the library as a usage error, and a package that is missing as one line; no traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except ImportError as error:
            raise click.ClickException(str(error)) from error

    return wrapped


def try_file(option: str, file: Path | None, many: bool = False) -> None:
    """Before the work: a ValueError where the result could not be written, to a file or (``many``) to a folder."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise ValueError(f"{option} {str(file)!r}: there is no folder {str(file.parent)!r}")
    writable(option, file, many)


def _imported(_: click.Context, __: click.Parameter, files: tuple[Path, ...]) -> None:
    for file in files:
        try:
            module_of(file)
        except ValueError as error:
            raise click.UsageError(str(error)) from error


import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_imported,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A Python file that registers samplers; repeat for several.",
)


def solver_of(name: str) -> Any:
    """The function (process, ts) → table of ``FILE.py:function``; any other name as it stands.

    Raises:
        ValueError: the file cannot be imported, or has no such function.
    """
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return name
    found = getattr(module_of(Path(path)), function, None)
    if not callable(found):
        raise ValueError(f"name={name!r}: {path!r} has no function {function!r}")
    return found


class ProcessType(click.ParamType):
    """``NAME`` or ``NAME:key=value,key=value``."""

    name = "process"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Process:
        """Build the process; a usage error names what is wrong."""
        if isinstance(value, Process):
            return value
        name, _, options = value.partition(":")
        try:
            pairs = [item.split("=") for item in options.split(",") if item]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError(f"{value!r} must look like VPLinear or VPLinear:beta_min=0.1,beta_max=20")
            return PROCESSES[choose("process", name, PROCESSES)](**{key: float(number) for key, number in pairs})
        except (ValueError, TypeError) as error:
            self.fail(str(error), param, ctx)


def grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--process``, ``--kind``, ``--t-start`` and ``--t-end`` for a command."""
    for option in (
        click.option("--t-end", type=float, default=None, help="Last time (default: the process's)."),
        click.option("--t-start", type=float, default=None, help="First time (default: the process's)."),
        click.option("--kind", default="t2", show_default=True, help="Grid: t1 t2 t3 rho7 logrho."),
        click.option(
            "--process",
            type=ProcessType(),
            default="VPLinear",
            show_default=True,
            help=f"{', '.join(PROCESSES)}; parameters after a colon: VE:sigma_min=0.01,sigma_max=50.",
        ),
    ):
        command = option(command)
    return command
