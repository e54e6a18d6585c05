"""Commands from click, processes from their classes, and a page of API per room of the package."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import Any

import click

import deis_analysis as da
from deis_analysis import cli
from deis_analysis.options import PROCESSES

SCHEDULES = [*PROCESSES, "VPDiscrete", "MeanReverting"]


def write(folder: Path) -> None:
    """``reference/cli.md``, ``reference/processes.md`` and ``reference/api/``."""
    (folder / "reference" / "cli.md").write_text(commands(), encoding="utf-8")
    (folder / "reference" / "processes.md").write_text(processes(), encoding="utf-8")
    place = folder / "reference" / "api"
    place.mkdir(parents=True, exist_ok=True)
    rooms = rooms_of_the_package()
    for room, modules in rooms.items():
        packages = {
            module.rpartition(".")[0] for module in modules
        }  # their names are documented where they are defined
        blocks = [f"::: {m}\n" + "    options: {members: false}\n" * (m in packages) for m in modules]
        (place / f"{room}.md").write_text(f"# deis_analysis.{room}\n\n" + "\n".join(blocks), encoding="utf-8")
    names = [name for name in da.__all__ if name != "__version__"]
    start = ", ".join(f"[`{name}`][{where}]" for name, where in ((name, home(name)) for name in names))
    lines = [
        f"* [deis_analysis.{room}]({room}.md): {', '.join(m.split('.', 2)[-1] for m in modules)}"
        for room, modules in rooms.items()
    ]
    text = f"# API\n\n`import deis_analysis as da`, and users start from {start}.\n\n" + "\n".join(lines) + "\n"
    (place / "index.md").write_text(text, encoding="utf-8")


def home(name: str) -> str:
    """The dotted place at which a name of the package is documented."""
    value = getattr(da, name)
    if hasattr(value, "__module__") and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return {"SOLVERS": "deis_analysis.solvers.registry", "STEPPERS": "deis_analysis.steppers.protocol"}[name]


def rooms_of_the_package() -> dict[str, list[str]]:
    """Room → its modules, those with nothing public left out."""
    found: dict[str, list[str]] = {}
    for info in pkgutil.walk_packages(da.__path__, "deis_analysis."):
        room = info.name.split(".")[1]
        if not room.startswith("__") and not info.name.endswith("__main__") and "comfyui" not in info.name:
            found.setdefault(room, []).append(info.name)
    return dict(sorted(found.items()))


def commands() -> str:
    """Every command as its own help says it."""
    lines = [
        "# Commands",
        "",
        "`deis-analysis`, or `python -m deis_analysis`; in `.venv/bin` after `make install`.",
        "",
    ]
    lines += ["```text", _help(cli.main, "deis-analysis"), "```", ""]
    for name, command in sorted(cli.main.commands.items()):
        lines += [f"## {name}", "", "```text", _help(command, f"deis-analysis {name}"), "```", ""]
    lines += [
        "## Completion of words",
        "",
        "click completes commands and options in bash, zsh and fish; one line in the shell's start-up file:",
        "",
        "```sh",
        'eval "$(_DEIS_ANALYSIS_COMPLETE=bash_source deis-analysis)"  # ~/.bashrc; zsh_source in ~/.zshrc',
        "_DEIS_ANALYSIS_COMPLETE=fish_source deis-analysis | source     # ~/.config/fish/config.fish",
        "```",
        "",
    ]
    return "\n".join(lines)


def _help(command: click.Command, name: str) -> str:
    return command.get_help(click.Context(command, info_name=name, max_content_width=100))


def processes() -> str:
    """What is diffused, and the grids."""
    rows = []
    for name in SCHEDULES:
        cls: Any = getattr(da, name)
        first = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        rows.append(f"| [`{name}`][{cls.__module__}.{name}] | {first} |")
    grids = inspect.getdoc(da.grid) or ""
    text = "\n".join(rows)
    return f"""# Processes and grids

| process | |
|---|---|
{text}

On the command line: `--process VE:sigma_min=0.01,sigma_max=50`.

## Grids

```text
{grids}
```

Grids that know the model, `da.tuning.grid`: {", ".join(f"`{kind}`" for kind in da.tuning.GRIDS)}.
"""
