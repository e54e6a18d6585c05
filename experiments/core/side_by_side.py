"""One experiment on several processes: what it asks of each of many things, where the runner has workers to spare."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

from experiments import Progress

CHUNK = 4  # things that one process does in a row: neighbours share what they cache
_pools: list[Callable[[], contextlib.AbstractContextManager[Executor]]] = []


@contextlib.contextmanager
def spare(pool: Callable[[], contextlib.AbstractContextManager[Executor]] | None) -> Iterator[None]:
    """Let `each` use the workers of ``pool``, which is opened if it comes to that; None: there are none."""
    _pools[:] = [] if pool is None else [pool]
    try:
        yield
    finally:
        _pools.clear()


def each(function: Callable[[Any], Any], things: Sequence[Any], progress: Progress) -> list[Any]:
    """``function`` of each thing, in order; both can be sent to another process, and are where workers are to spare."""
    found = []
    with _pools[0]() if _pools and len(things) > CHUNK else contextlib.nullcontext() as pool:
        results = pool.map(function, things, chunksize=CHUNK) if pool else map(function, things)
        for result in results:
            found.append(result)
            progress(len(found) / len(things))
    return found
