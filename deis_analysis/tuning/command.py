"""``deis-analysis choose MODEL`` and ``deis-analysis tune MODEL``."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deis_analysis import terminal
from deis_analysis.options import import_option, try_file
from deis_analysis.storage import writable, write_text

_EVERY = 10.0  # seconds between two lines, where there is no terminal
_ROWS = 5  # of each number of calls, in the terminal


def cache_folder() -> Path:
    """Where references and unfinished searches are kept unless another folder is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deis_analysis"


@contextmanager
def shown() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line on a terminal, a line every ten seconds elsewhere; both on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting")
            yield lambda what, done, total: bar.update(task, description=_said(what, done, total))
        return
    last = [time.monotonic() - _EVERY]

    def line(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] >= _EVERY:
            last[0] = time.monotonic()
            click.echo(_said(what, done, total), err=True)

    yield line


def _said(what: str, done: int, total: int) -> str:
    return what if not done else f"{what}: {done:,}{f' of {total:,}' if total else ''} samples × calls"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take of a model."""
    for option in (
        click.argument("model"),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the noise."),
        click.option("--t-start", type=float, help="First time (default: the process's)."),
        click.option("--t-end", type=float, help="Last time (default: the process's)."),
        click.option("--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), help="Of a network's weights."),
        click.option("--device", help="cpu or cuda."),
        click.option("--times", type=click.Choice(["fractional", "nearest", "linear"]), default="fractional",
                     show_default=True, help="How a network is told times that are no integers."),
        import_option,
        click.option("--certify/--no-certify", default=True, show_default=True,
                     help="Whether DOPRI5 and a second method vouch for the ground truth; it takes longest."),
        click.option("--cache", type=click.Path(file_okay=False, path_type=Path),
                     help="Folder of references and unfinished searches (default: the user's cache)."),
    ):  # fmt: skip
        command = option(command)

    @functools.wraps(command)
    def wrapped(cache: Path | None, dtype: str | None, **options: Any) -> Any:
        try:
            if dtype:
                import torch

                options["dtype"] = getattr(torch, dtype)
            if cache is not None:
                writable("--cache", cache, many=True)
            return command(cache=cache or cache_folder(), **options)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except ImportError as error:
            raise click.ClickException(str(error)) from error

    wrapped.__click_params__ = command.__click_params__  # type: ignore[attr-defined]
    return wrapped


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise ValueError(f"nfe={text!r}; allowed: integers with commas between them, such as 5,8,10") from error


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@click.command("choose")
@_options
@click.option("--nfe", default="5,8,10,20", show_default=True, help="Numbers of model calls.")
@click.option("--samples", type=int, default=64, show_default=True)
@click.option("--solvers", help="Registry names with commas (default: all that differ).")
@click.option("--grids", help="Kinds of grids with commas (default: the customary and the model-aware ones).")
@click.option("--with-noise", is_flag=True, help="Let samplers with noise take part; all are ranked by law.")
@click.option("--budget", type=int, help="Samples × model calls that the candidates may take.")
@click.option("--error", type=float, help="Name the fewest calls whose band of the RMS lies below it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page.")
def choose_command(
    model: str, nfe: str, solvers: str | None, grids: str | None, error: float | None, as_json: bool, html: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Rank the samplers of the registry × grids on MODEL.

    MODEL is a shipped network, a folder or hub id, FILE.py:make (a function that returns a typed model), "mixture" or
    "digits".
    """
    import deis_analysis as da

    try_file("--html", html)
    with shown() as show:
        found = da.choose(
            model, _numbers(nfe), solvers=_names(solvers), grids=_names(grids), progress=show, **_given(options)
        )
    if html is not None:
        write_text(html, da.tuning.choice_page(found))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print_choice(found)
    if error is not None:
        fewest = found.fewest(error)
        said = "none of these calls" if fewest is None else f"{fewest[0]} calls, {fewest[1].name}"
        click.echo(f"RMS below {error:g}: {said}", err=as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _print_choice(found: Any) -> None:
    console = terminal.console()
    heads = ("calls", "rank", "sampler", "grid", "RMS", "95 %", "median", "flips", "arrays")
    table = Table(*heads, box=None)
    for entries in found.ranking.values():
        for entry in entries[:_ROWS]:
            row = entry.row()
            ranks = "–" if row["rank_low"] is None else f"{row['rank_low']}–{row['rank_high']}"
            table.add_row(
                str(row["nfe"]), ranks, row["solver"], row["grid"],
                f"{row['rms']:.3g}", f"{row['low']:.3g}–{row['high']:.3g}", f"{row['median']:.3g}",
                f"{100 * row['flips']:.0f} %", str(row["memory"]),
            )  # fmt: skip
    console.print(table)
    for nfe in found.ranking:
        console.print(found.verdict(nfe), style="bold", highlight=False)
    console.print(f"{found.samples} samples; ground truth: {found.reference}", style="dim", highlight=False)


@click.command("tune")
@_options
@click.option("--nfe", type=int, required=True, help="Number of model calls.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the table goes.")
@click.option("--start", help="Registry name to start from (default: the best of the published ones).")
@click.option("--grid", help="Kind of grid to start from.")
@click.option("--degree", type=int, default=0, show_default=True, help="Exactness that is kept; -1 for none.")
@click.option("--history", type=int, help="How many outputs a row may use (default: all up to 6 calls, 5 beyond).")
@click.option("--samples", type=int, default=256, show_default=True, help="Training noises.")
@click.option("--held-out", type=int, default=64, show_default=True, help="Noises on which it is judged.")
@click.option("--objective", type=click.Choice(["rms", "l1", "energy"]), default="rms", show_default=True)
@click.option("--stability", type=float, default=0.0, show_default=True, help="Weight of exactness on Gaussians.")
@click.option("--rounds", type=int, default=12, show_default=True)
@click.option("--minutes", type=float, help="No new round after so many.")
def tune_command(model: str, out: Path, **options: Any) -> None:
    """Move the numbers of a sampler until few calls do for MODEL what many did; the table goes to --out.

    Beside it, NAME.report.json holds held-out errors, settings and cost. Interrupted, it goes on where it was.
    """
    import deis_analysis as da

    try_file("--out", out)
    with shown() as show:
        try:
            found = da.tune(model, progress=show, **_given(options))
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from the last round", err=True)
            sys.exit(130)
    write_text(out, written(found))
    write_text(out.with_suffix(".report.json"), json.dumps(found.report, indent=1, default=float) + "\n")
    click.echo(found.verdict())


def written(found: Any) -> str:
    """The table as a file that can be exported: with its levels, and what the network is told."""
    import deis_analysis as da

    network, process = found.target.network, found.target.process
    source = f"tuned for {found.target.name}" if found.kept else f"chosen for {found.target.name}"
    told = None if network is None else network.model.convention
    return str(da.interop.portable(found.tableau, process, told=told, source=source).to_json())
