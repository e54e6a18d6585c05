"""A sweep in pieces that any process can do: the unit is a sampler on a grid and a block of samples.

A unit is known by a hash of all that its result depends on: model and weights, process, configuration, sampler, times,
the block's starts, the code that it reaches, versions. Its result is a file of that name, written whole or not at all.
So units are independent, nothing is computed twice, and a sweep that was killed, wherever, goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis.process.process import Array, Process
from deis_analysis.reference.cache import fingerprint
from deis_analysis.storage import atomic, module_of
from experiments import Progress
from experiments.core.sources import depends_on
from experiments.models import studies
from experiments.models.problems import noise
from experiments.models.studies import Study

BLOCK = 256  # samples of a unit
LOST = (BrokenExecutor, CancelledError, OSError, TimeoutError)  # workers or scheduler are gone: their units again


class Incomplete(RuntimeError):
    """A share of the units is done; ``done`` and ``missing`` say how many are there and not."""

    def __init__(self, done: int, missing: int) -> None:
        super().__init__(f"{done} of {done + missing} units are there; the others are of other shares")
        self.done, self.missing = done, missing


@dataclass(frozen=True)
class Unit:
    """A sampler on a grid, for the samples ``start`` to ``stop`` of a study's starts.

    Attributes:
        model, settings, process: what `studies` builds the study from. times: the grid.
        starts: hash of the block of starts. weights: hash of a network's weights, or empty. code: see `signature`.
        imports: files of the user's that register samplers, and their hash.
    """

    model: str
    settings: tuple[tuple[str, Any], ...]
    process: Process
    solver: str
    times: tuple[float, ...]
    start: int
    stop: int
    starts: str
    weights: str
    code: str
    imports: tuple[tuple[str, str], ...] = ()

    @cached_property
    def key(self) -> str:
        """The hash that is its name, equal on all machines."""
        return fingerprint({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def path(self, folder: Path) -> Path:
        """Where its result is, or will be."""
        return folder / self.key[:2] / f"{self.key}.npy"


@cache
def signature() -> str:
    """What workers and client must have in common: the code that units reach, and versions of what computes."""
    found = {name: version(name) for name in ("numpy", "scipy", "torch")}
    return f"{depends_on(__name__)} {found}"


def compute(unit: Unit, folder: Path) -> None:
    """Do a unit, unless it is there.

    Raises:
        RuntimeError: code, versions or starts here are not those of the process that asked.
    """
    if _is_there(unit, folder):
        return
    if unit.code != signature():
        raise RuntimeError(f"this worker has other code or versions than its client: {signature()}, not {unit.code}")
    for file, _ in unit.imports:
        _bring(file)
    study = _study(unit.model, unit.settings, unit.process)
    if _hash(study.x_T[unit.start : unit.stop]) != unit.starts:
        raise RuntimeError(f"the starts of {unit.model} come out differently on this worker")
    block = dataclasses.replace(study, x_T=study.x_T[unit.start : unit.stop])
    x = block.solve(unit.solver, np.array(unit.times), noises(study, unit.start, unit.stop))
    with atomic(unit.path(folder)) as temporary, temporary.open("wb") as out:
        np.save(out, x.cpu().numpy())


def noises(study: Study, start: int, stop: int) -> Callable[[int], Any]:
    """l → the l-th noise of a table for a block of the samples: rows of the noise of all, whatever the blocks are."""
    import torch

    count, seed = dict(study.config)["samples"], dict(study.config)["seed"]

    def drawn(index: int) -> Any:
        z = noise(max(count, len(study.x_T)), study.x_T.shape[1], seed + 2 + index)
        return torch.as_tensor(z[start:stop], device=study.x_T.device)

    return drawn


@lru_cache(maxsize=4)
def _study(model: str, settings: tuple[tuple[str, Any], ...], process: Process) -> Study:
    return studies.study(model, dict(settings), process)


@lru_cache
def _bring(file: str) -> None:
    module_of(Path(file))


def _hash(x: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(x.cpu().numpy()).tobytes()).hexdigest()


def _load(unit: Unit, folder: Path) -> Array | None:
    try:
        return np.asarray(np.load(unit.path(folder)))
    except (OSError, ValueError, EOFError):
        return None


def _is_there(unit: Unit, folder: Path) -> bool:
    return unit.path(folder).is_file()


# -- doing many -----------------------------------------------------------------------------------
class Here(Executor):
    """What is submitted is done at once, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class Engine:
    """How the units of sweeps are done, and where their results are kept.

    Attributes:
        folder: of the results; on a cluster, one that all machines see.
        connect: a context with an executor; it is left by `close`, and entered again when workers or the scheduler
            were lost.
        block: samples of a unit. shard: (i, N), this process does every N-th unit from the i-th on and no other.
        tries, pause: how often in a row, and after how many seconds, what was lost is asked for again.
    """

    folder: Path
    connect: Callable[[], AbstractContextManager[Executor]] = Here
    block: int = BLOCK
    shard: tuple[int, int] | None = None
    imports: tuple[tuple[str, str], ...] = ()
    tries: int = 5
    pause: float = 2.0
    _open: tuple[contextlib.ExitStack, Executor] | None = field(default=None, init=False, repr=False)

    def ends(self, study: Study, tables: list[tuple[str, tuple[float, ...]]], progress: Progress) -> Iterator[Any]:
        """(n, d) end states of each (solver, times), in order.

        Raises:
            Incomplete: units of other shards are not there.
        """
        import torch

        blocks = self.units(study, tables)
        self.ensure([unit for parts in blocks for unit in parts], progress)
        for parts in blocks:
            found = [_load(unit, self.folder) for unit in parts]
            if any(part is None for part in found):  # a file that was damaged: once more
                for unit, part in zip(parts, found, strict=True):
                    if part is None:
                        unit.path(self.folder).unlink(missing_ok=True)
                self.ensure(parts, progress)
                found = [np.load(unit.path(self.folder)) for unit in parts]
            yield torch.cat([torch.as_tensor(part, device=study.x_T.device) for part in found])

    def units(self, study: Study, tables: list[tuple[str, tuple[float, ...]]]) -> list[list[Unit]]:
        """For each (solver, times) the units that make it up."""
        code, weights = signature(), "" if study.network is None else study.network.digest
        edges = range(0, len(study.x_T), self.block)
        blocks = [(i, min(i + self.block, len(study.x_T)), _hash(study.x_T[i : i + self.block])) for i in edges]
        return [
            [
                Unit(study.name, study.config, study.process, solver, times, *block, weights, code, self.imports)
                for block in blocks
            ]
            for solver, times in tables
        ]

    def ensure(self, units: list[Unit], progress: Progress) -> None:
        """Have all units done, or those of this shard.

        What is lost with a worker, or with the scheduler, is asked for again; an error of a unit is raised.
        """
        first, of = self.shard or (0, 1)
        mine, tries = units[first::of], self.tries
        before = len(missing := self._missing(mine))
        while missing:
            try:
                self._round(missing, lambda done: progress(1 - (len(missing) - done) / len(mine)))  # noqa: B023
            except LOST as lost:
                self.close()
                if not tries:
                    raise
                _say(f"{type(lost).__name__}: {len(self._missing(mine))} units are asked for again")
                time.sleep(self.pause)
            missing = self._missing(mine)
            tries, before = (self.tries if len(missing) < before else tries - 1), len(missing)
        if others := self._missing(units):
            raise Incomplete(len(units) - len(others), len(others))

    def close(self) -> None:
        """Leave the executor, if there is one."""
        if self._open is not None:
            (stack, _), self._open = self._open, None
            stack.close()

    def _round(self, units: list[Unit], report: Callable[[int], None]) -> None:
        if self._open is None:
            stack = contextlib.ExitStack()
            self._open = stack, stack.enter_context(self.connect())
        futures: list[Future[Any]] = []
        for unit in units:
            futures.append(self._open[1].submit(compute, unit, self.folder))
            if futures[-1].done():  # here, at once
                report(len(futures))
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done)

    def _missing(self, units: list[Unit]) -> list[Unit]:
        return [unit for unit in units if not _is_there(unit, self.folder)]


def _say(text: str) -> None:
    import click

    click.echo(text, err=True)


_current: Engine | None = None


def current() -> Engine | None:
    """The engine in use, None where sweeps are done on the spot and nothing is kept."""
    return _current


@contextlib.contextmanager
def using(engine: Engine | None) -> Iterator[None]:
    """Sweeps in the block are done by an engine, whose executor is left at its end."""
    global _current
    before, _current = _current, engine
    try:
        yield
    finally:
        _current = before
        if engine is not None:
            engine.close()
