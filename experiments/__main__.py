"""``python -m experiments list | run NAME… | reproduce | redraw NAME… | train | train-features | certify``."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deis_analysis import terminal
from deis_analysis.storage import prepared, sweep
from experiments import Experiment, discover, of_this_machine
from experiments.core import units
from experiments.core.executors import engine_options
from experiments.core.runner import (
    DIFFERS,
    FIGURES,
    UNDRAWN,
    Outcome,
    Task,
    allowed,
    bring,
    configuration,
    finished,
    last_seconds,
    redraw,
    run_here,
    run_parallel,
    solvers_key,
    sweeps,
    takes,
)
from experiments.models.studies import DTYPES, MODELS, REFERENCES, WHAT_NETWORKS, is_model, trim_cache
from experiments.training.certify import certify_command
from experiments.training.train import train_command
from experiments.training.train_features import train_features_command

out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where results go (default: figures/, or figures/.quick/).",
)


def _known(names: tuple[str, ...]) -> dict[str, Experiment]:
    """The named experiments; a usage error with the nearest names otherwise."""
    found = discover()
    for name in names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no experiment {name!r}.{hint} All: {', '.join(found)}")
    return {name: found[name] for name in dict.fromkeys(names)}


def _folder(out: Path | None, quick: bool, thorough: bool = False) -> Path:
    if out is not None:
        return out
    return FIGURES / ".quick" if quick else FIGURES / ".thorough" if thorough else FIGURES


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"--device {device}: this device cannot be used here ({reason})") from error


class ModelName(click.ParamType):
    """A model of the study, or an image network."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """``value``, if it can be meant as a model."""
        if not is_model(str(value)):
            self.fail(f"{value!r} is not one of {', '.join(MODELS)}, {WHAT_NETWORKS}", param, ctx)
        return str(value)


model_option = click.option(
    "--model",
    "models",
    multiple=True,
    type=ModelName(),
    help=f"On which model, instead of the default ones: {', '.join(MODELS)}, {WHAT_NETWORKS}; repeat for several.",
)
networks_option = click.option(
    "--networks", is_flag=True, help="Compute rows of image networks too, which else are kept: up to half an hour each."
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), default=min(2, os.cpu_count() or 1), show_default=True, help="Processes."
)


@click.group(cls=terminal.Commands)
def main() -> None:
    """Questions to the samplers: each answered by one figure, its data, and a computed sentence."""


@main.command("list")
@out_option
@click.option("--quick", is_flag=True, help="Look at the quick results.")
def list_command(out: Path | None, quick: bool) -> None:
    """Show every experiment, whether its result is up to date, and how long it took."""
    table = Table("name", "question", "finished", "seconds")
    for name, experiment in discover().items():
        task = Task(name, _folder(out, quick), quick)
        marker = finished(experiment, task)
        table.add_row(
            name, experiment.QUESTION, "yes" if marker else "no", f"{marker['wall_time_s']:.1f}" if marker else ""
        )
    terminal.console().print(table)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Run every experiment.")
@click.option("--quick", is_flag=True, help="Smaller settings, seconds each, written to figures/.quick/.")
@click.option("--thorough", is_flag=True, help="Larger settings, minutes each, written to figures/.thorough/.")
@model_option
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the weights of image networks (default: float32).")
@click.option("--allow-pickle", is_flag=True, help="Let a network of --model be a pickle, which runs code.")
@networks_option
@click.option(
    "--import",
    "imports",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Python file that registers samplers; repeat for several.",
)
@click.option(
    "--solver",
    "solvers",
    multiple=True,
    metavar="NAME[:GRID]",
    help="A registry sampler that takes part too, where an experiment has a list of them; repeat for several.",
)
@click.option("--force", is_flag=True, help="Compute again what is finished.")
@jobs_option
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for the experiments that use torch.")
@engine_options
@out_option
def run(
    names: tuple[str, ...],
    everything: bool,
    quick: bool,
    thorough: bool,
    models: tuple[str, ...],
    dtype: str | None,
    allow_pickle: bool,
    networks: bool,
    imports: tuple[Path, ...],
    solvers: tuple[str, ...],
    force: bool,
    jobs: int,
    device: str,
    engine: units.Engine | None,
    out: Path | None,
) -> None:
    """Run the experiments NAMES and print what each found. Finished results are kept unless something changed."""
    if everything == bool(names):
        raise click.UsageError("give the names of experiments, or --all")
    if quick and thorough:
        raise click.UsageError("give --quick or --thorough, not both")
    try:
        bring(imports)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    chosen = of_this_machine() if everything else _known(names)
    for allows, what in (
        (lambda one: takes(one, models), f"--model {', '.join(models)}" * bool(models)),
        (lambda one: "network_dtype" in one.CONFIG, "--dtype" * bool(dtype)),
        (lambda one: solvers_key(one.CONFIG) is not None, "--solver" * bool(solvers)),
        (sweeps, "--executor, --shard" * (engine is not None)),
    ):
        if what:
            chosen = _those_that(chosen, allows, what, everything)
    if device != "cpu":
        _check_device(device)
    console = Console(highlight=False, soft_wrap=True)
    todo = []
    for name, experiment in chosen.items():
        folder, asked = _folder(out, quick, thorough), tuple(dict.fromkeys(models))
        task = Task(name, folder, quick, device, thorough, asked, allow_pickle, dtype, networks, imports, solvers)
        try:
            configuration(experiment, task)
            marker = None if force else finished(experiment, task)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        if marker:
            _print(console, Outcome(name, "kept", marker["verdict"], marker["wall_time_s"]))
        else:
            todo.append(task)
    if everything:  # the longest first, so that no process is left with one at the end
        todo.sort(key=last_seconds, reverse=True)
    trim_cache()
    _prepare({task.folder for task in todo})
    with units.using(engine):
        sys.exit(_run_tasks(todo, 1 if engine else jobs, console))


@main.command()
@click.argument("names", nargs=-1)
@click.option("--strict", is_flag=True, help="Overwrite nothing, and exit with 1 if anything differs.")
@click.option("--quick", is_flag=True, help="Reproduce the quick results, in figures/.quick/.")
@model_option
@networks_option
@click.option("--force", is_flag=True, help="Compute again what was reproduced before.")
@jobs_option
@out_option
def reproduce(
    names: tuple[str, ...],
    strict: bool,
    quick: bool,
    models: tuple[str, ...],
    networks: bool,
    force: bool,
    jobs: int,
    out: Path | None,
) -> None:
    """Compute the experiments NAMES, or all, and compare their numbers with the committed ones, column by column.

    Files that agree stay as they are, bytes and all; what differs is named, and takes their place but for --strict;
    what is missing is written.
    """
    chosen = _known(names) if names else of_this_machine()
    console = Console(highlight=False, soft_wrap=True)
    folder, asked = _folder(out, quick), tuple(dict.fromkeys(models))
    if asked:
        chosen = {name: experiment for name, experiment in chosen.items() if takes(experiment, asked)}
    todo, agreed = [], 0
    for name, experiment in chosen.items():
        task = Task(name, folder, quick, models=asked, networks=networks, reproduce=True, strict=strict)
        marker = None if force else finished(experiment, task)
        if marker:
            _print(console, Outcome(name, "kept", marker["verdict"], marker["wall_time_s"]))
            agreed += 1
        else:
            todo.append(task)
    todo.sort(key=last_seconds, reverse=True)
    trim_cache()
    _prepare({task.folder for task in todo})
    ended: list[Outcome] = []
    code = _run_tasks(todo, jobs, console, ended)
    agreed += sum(outcome.status in ("agrees", "redrawn") for outcome in ended)
    console.print(_conclusion(ended, agreed, len(chosen), folder, strict))
    sys.exit(code or int(strict and agreed < len(chosen)))


def _conclusion(ended: list[Outcome], agreed: int, asked: int, folder: Path, strict: bool) -> str:
    """``reproduced 36 of 36``, and what was not."""

    def those(status: str) -> str:
        return ", ".join(outcome.name for outcome in ended if outcome.status == status)

    said = f"reproduced {agreed} of {asked}"
    if redrawn := those("redrawn"):
        said += f"; redrawn from committed numbers among them: {redrawn}"
    if differing := those("differs"):
        where = f"computed numbers are in {folder / DIFFERS}" if strict else "the files are the computed ones now"
        said += f"; differ ({where}): {differing}"
    if written := those("written"):
        said += f"; written, as nothing was committed: {written}"
    return said


def _those_that(
    chosen: dict[str, Experiment], allows: Callable[[Experiment], bool], what: str, everything: bool
) -> dict[str, Experiment]:
    """The experiments that an option is for; of named ones, a usage error where it is not for one."""
    others = [name for name, experiment in chosen.items() if not allows(experiment)]
    if others and not everything:
        hint = {name: f" (allowed: {allowed(chosen[name])})" for name in others} if "--model" in what else {}
        raise click.UsageError(f"{what} is not for {'; '.join(name + hint.get(name, '') for name in others)}")
    return {name: experiment for name, experiment in chosen.items() if name not in others}


def _prepare(folders: set[Path]) -> None:
    """Before hours of work: each can be written to, and holds nothing that killed runs left."""
    for place in folders:
        try:
            prepared(place)
        except ValueError as error:
            raise click.UsageError(f"--out {error}") from error
        for folder in (place, place / ".done", place / UNDRAWN, FIGURES / ".cache" / REFERENCES):
            sweep(folder)


class _Lines:
    """Progress without a terminal: a line on stderr every ten seconds, of all that runs."""

    def __init__(self, every: float = 10.0) -> None:
        self.every, self.last, self.shares = every, time.monotonic(), dict[str, float]()

    def __call__(self, name: str, share: float) -> None:
        self.shares[name] = share
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            said = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items() if share < 1)
            click.echo(said, err=True)


def _run_tasks(todo: list[Task], jobs: int, console: Console, ended: list[Outcome] | None = None) -> int:
    """Run, print each outcome as it comes, append it to ``ended``, and return the exit code."""
    failed: list[str] = []
    done: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    lines = _Lines()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        rows = {task.name: bars.add_task(task.name, total=1.0, start=False) for task in todo}

        def report(name: str, share: float) -> None:
            bars.start_task(rows[name])
            bars.update(rows[name], completed=share)
            if not console.is_terminal:
                lines(name, share)

        alone = jobs == 1 or len(todo) == 1
        outcomes = run_here(todo, report, jobs) if alone else run_parallel(todo, jobs, report)
        try:
            for outcome in outcomes:
                bars.update(rows[outcome.name], visible=False)
                _print(console, outcome)
                if ended is not None:
                    ended.append(outcome)
                (failed if outcome.status == "failed" else done).append(outcome.name)
        except KeyboardInterrupt:
            outcomes.close()  # type: ignore[attr-defined]
            left = [task.name for task in todo if task.name not in done]
            console.print(f"interrupted: {len(done)} finished and kept, {len(left)} not ({', '.join(left)})")
            return 130
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


_COLOURS = {"done": "green", "agrees": "green", "written": "yellow", "redrawn": "cyan", "kept": "cyan"}
_COLOURS |= {"waits": "yellow", "differs": "red", "failed": "red"}


def _print(console: Console, outcome: Outcome) -> None:
    console.print(
        f"[{_COLOURS[outcome.status]}]{outcome.status:7}[/] [bold]{outcome.name}[/] ({outcome.seconds:.1f} s): ",
        end="",
        markup=True,
    )
    console.print(outcome.text, markup=False)


@main.command("redraw")
@click.argument("names", nargs=-1, required=True)
@click.option("--model", "models", multiple=True, type=ModelName(), help="The result of a run with this --model.")
@out_option
def redraw_command(names: tuple[str, ...], models: tuple[str, ...], out: Path | None) -> None:
    """Draw figures and state verdicts again from their CSV files, computing nothing."""
    for name in _known(names):
        try:
            click.echo(f"{name}: {redraw(Task(name, _folder(out, False), models=tuple(dict.fromkeys(models))))}")
        except (FileNotFoundError, ValueError) as error:
            raise click.UsageError(str(error)) from error


main.add_command(train_command)
main.add_command(train_features_command)
main.add_command(certify_command)

if __name__ == "__main__":
    main(prog_name="python -m experiments")
