"""Who does the units of a sweep: this process, processes of this machine, or workers of Dask, wherever they are."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from deis_analysis.storage import writable
from experiments.core import units
from experiments.core.paths import FIGURES
from experiments.core.runner import limited_threads, start_method

UNITS = FIGURES / ".cache" / "units"
NAMES = ("here", "local", "dask")
_PATIENCE = 120  # seconds that a scheduler may take to come back


def connect(name: str, jobs: int = 1, address: str | None = None) -> Callable[[], AbstractContextManager[Executor]]:
    """What gives executors: one in this process, ``jobs`` processes, or Dask at an address or with ``jobs`` of its own.

    Raises:
        ValueError: an executor that is not known, an address without Dask, or Dask that is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"executor={name!r} is unknown; allowed: {', '.join(NAMES)}")
    if address is not None and name != "dask":
        raise ValueError(f"address={address!r} is of a Dask scheduler; allowed with executor='dask', not {name!r}")
    if name == "here":
        return units.Here
    if name == "local":
        return lambda: _processes(jobs)
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ValueError(f"executor='dask' needs Dask: pip install 'deis-analysis[cluster]' ({error})") from error
    return lambda: _dask(jobs, address)


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[Executor]:
    with limited_threads(max(1, (os.cpu_count() or 1) // jobs)), ProcessPoolExecutor(jobs, start_method()) as pool:
        yield pool


@contextlib.contextmanager
def _dask(jobs: int, address: str | None) -> Iterator[Executor]:
    """Workers whose code and versions are the client's; units have the same name for every client.

    Raises:
        RuntimeError: a worker with other code or versions.
    """
    from distributed import Client, LocalCluster
    from distributed.cfexecutor import ClientExecutor

    with contextlib.ExitStack() as stack:
        if address is None:
            own = LocalCluster(jobs, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR)
            address = stack.enter_context(own).scheduler_address
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
        try:
            check(client.run(units.signature))
            yield _Named(ClientExecutor(client, pure=False))
        finally:
            client.close(timeout=5)


class _Named(Executor):
    """Dask's executor, with the unit's hash as the name of what is done: two clients' equal units are one."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The future of a unit, the first of ``args``."""
        return self.executor.submit(fn, *args, key=f"unit-{args[0].key}", **kwargs)


def check(found: dict[str, str]) -> None:
    """Whether workers, by address, have the `units.signature` of this process.

    Raises:
        RuntimeError: one has not; it and what differs are named.
    """
    own = units.signature()
    for worker, theirs in found.items():
        if theirs != own:
            raise RuntimeError(f"worker {worker} has other code or versions than this client: {theirs}, not {own}")


# -- on the command line --------------------------------------------------------------------------
class Shard(click.ParamType):
    """``i/N``: from 0/N to (N − 1)/N."""

    name = "i/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(i, N)."""
        try:
            first, of = (int(part) for part in str(value).split("/"))
        except ValueError:
            first, of = -1, 0
        if not 0 <= first < of:
            self.fail(f"{value!r} is not a share; allowed: i/N with 0 <= i < N, such as 0/4", param, ctx)
        return first, of


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose an engine; it takes ``engine``, None where none of them is used."""

    kept = click.Path(file_okay=False, path_type=Path)

    @click.option("--executor", type=click.Choice(NAMES), help="Do sweeps in units that are kept, by whom.")
    @click.option("--address", help="Of a Dask scheduler, as tcp://node:8786; without it Dask starts --jobs workers.")
    @click.option("--shard", type=Shard(), help="Do this share of the units, for array jobs: 0/4, 1/4, 2/4, 3/4.")
    @click.option("--block", type=click.IntRange(min=1), default=units.BLOCK, help="Samples of a unit.")
    @click.option("--units", "folder", type=kept, default=UNITS, help="Where units are kept; all workers must see it.")
    @wraps(command)
    def inner(
        *args: Any,
        executor: str | None,
        address: str | None,
        shard: tuple[int, int] | None,
        block: int,
        folder: Path,
        **others: Any,
    ) -> Any:
        engine = None
        if executor or shard or address:
            files = tuple((str(f.resolve()), hashlib.sha256(f.read_bytes()).hexdigest()) for f in others["imports"])
            try:
                writable("--units", folder, many=True)
                how = connect(executor or ("dask" if address else "here"), others["jobs"], address)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            engine = units.Engine(folder.resolve(), how, block, shard, files)
        return command(*args, engine=engine, **others)

    return inner
