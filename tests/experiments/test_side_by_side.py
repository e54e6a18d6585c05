"""Is an experiment that asks the same of many things the same on one process and on several?"""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from experiments.core import runner
from experiments.core.side_by_side import CHUNK, each, spare

THINGS = list(range(3 * CHUNK))


def square(i: int) -> tuple[int, int]:
    """What is asked, and by which process."""
    if i < 0:
        raise ValueError(f"{i} is refused")
    return i * i, os.getpid()


def slow(i: int) -> int:
    """Never done in time."""
    time.sleep(600 if i else 0)
    return i


@pytest.fixture
def pool():
    return lambda: runner._pool(2)


def test_it_is_done_here_without_workers_to_spare():
    shares = list[float]()
    assert each(square, THINGS, shares.append) == [(i * i, os.getpid()) for i in THINGS]
    assert shares == [(i + 1) / len(THINGS) for i in THINGS]


def test_workers_give_the_same_in_the_same_order(pool):
    shares = list[float]()
    with spare(pool):
        found = each(square, THINGS, shares.append)
    assert [value for value, _ in found] == [i * i for i in THINGS]
    assert os.getpid() not in {pid for _, pid in found}
    assert shares[-1] == 1.0
    assert each(square, THINGS, shares.append)[0][1] == os.getpid()  # they are to spare no longer
    with spare(pool):
        assert each(square, THINGS[:CHUNK], shares.append)[0][1] == os.getpid()  # not worth a process


def test_what_is_refused_is_raised_here_and_ends_the_workers(pool):
    with spare(pool), pytest.raises(ValueError, match="-1 is refused"):
        each(square, [-1, *THINGS], lambda _: None)
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_workers_at_once(pool):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with spare(pool), pytest.raises(KeyboardInterrupt):
        each(slow, [*[0] * CHUNK, *THINGS[1:]], interrupt)
    assert not multiprocessing.active_children()


def test_only_an_experiment_that_runs_alone_has_workers_to_spare(monkeypatch, tmp_path):
    seen = list[int]()
    monkeypatch.setattr(runner, "spare", lambda pool: seen.append(pool.args[0] if pool else 1) or spare(None))
    tasks = [runner.Task("no_such_experiment", tmp_path)]
    assert [outcome.status for outcome in runner.run_here(tasks, lambda *_: None, 3)] == ["failed"]
    assert [outcome.status for outcome in runner.run_here(tasks, lambda *_: None)] == ["failed"]
    assert seen == [3, 1]
