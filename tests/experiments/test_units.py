"""Is a sweep in pieces the same sweep, whoever does the pieces and whatever dies meanwhile?"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

import deis_analysis as da
from experiments import discover
from experiments.__main__ import main
from experiments.core import cells, executors, runner, units
from experiments.models import studies

ROOT = Path(__file__).parents[2]
CONFIG = {**studies.BASE, **studies.BASE_QUICK, "samples": 50}
SWEEPING = "appendix_time_grids"  # one of the quickest that sweep


@pytest.fixture(scope="module")
def study():
    return studies.study("mixture", CONFIG)


@pytest.fixture(scope="module")
def planned(study):
    return cells.plan(study, ["ddim", "tab3", "ddpm"], ["t2", "logrho"], [5, 10])


@pytest.fixture(scope="module")
def direct(study, planned):
    return [x for _, x in cells.runs(study, planned)]


def ends(study, planned, engine, progress=lambda share: None):
    with units.using(engine):
        return [x for _, x in cells.runs(study, planned, progress)]


def same(found, expected, rtol=1e-12):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


# -- the sweep ------------------------------------------------------------------------------------
def test_a_cell_is_the_registered_sampler(study, planned, direct):
    assert [(c.solver, c.calls, c.grid) for c in planned[:4]] == [
        ("ddim", 5, "t2"), ("ddim", 5, "logrho"), ("ddim", 10, "t2"), ("ddim", 10, "logrho"),
    ]  # fmt: skip
    at = next(i for i, c in enumerate(planned) if (c.solver, c.grid, c.calls) == ("tab3", "t2", 10))
    table = da.build("tab3", study.process, da.grid(study.process, 10, "t2", 1.0, 1e-3))
    same([direct[at]], [da.run(table, study.model, study.x_T)])
    assert planned[at].nfe == table.nfe == 10


def test_cells_that_do_not_fit_are_left_out_and_grids_come_once(study):
    found = cells.plan(study, ["rhork_4rk", "ddim"], ["t2", "t2"], [3, 5])
    assert [(c.solver, c.calls, c.steps, c.nfe) for c in found] == [
        ("rhork_4rk", 5, 1, 4), ("ddim", 3, 3, 3), ("ddim", 5, 5, 5),
    ]  # fmt: skip
    by = cells.plan(study, ["ddim"], lambda solver, calls: ["t1"] if calls == 3 else ["t2", "t3"], [3, 5])
    assert [(c.grid, c.calls) for c in by] == [("t1", 3), ("t2", 5), ("t3", 5)]
    assert cells.plan(study, ["ddim"], ["t2"], [5], span=(1.0, 0.01))[0].times[-1] == 0.01


def test_the_frame_is_cells_and_what_the_judge_says(study):
    truth, _ = study.reference(1e-3)
    rows = cells.sweep(study, ["ddim"], ["t2"], [5, 10], cells.squares_to(truth))
    assert [list(row) for row in rows] == [["solver", "grid", "calls", "steps", "nfe", "squares"]] * 2
    assert rows[1]["squares"].mean() < rows[0]["squares"].mean()
    assert rows[0]["squares"].shape == (50,)


# -- units ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", [50, 17, 64])
def test_units_are_the_same_sweep(study, planned, direct, tmp_path, block):
    """Of a sampler with noise too: its noise is that of the sample, whatever the blocks are."""
    same(ends(study, planned, units.Engine(tmp_path, block=block)), direct)
    assert len(stamps(tmp_path)) == len(planned) * -(-50 // block)


def test_a_sweep_that_was_killed_goes_on_where_it_was(study, planned, direct, tmp_path):
    class Killed(BaseException):
        pass

    class Kills(units.Here):
        def submit(self, fn, /, *args, **kwargs):
            if len(stamps(tmp_path)) == 8:
                raise Killed
            return super().submit(fn, *args, **kwargs)

    engine = units.Engine(tmp_path, block=17)
    with pytest.raises(Killed):
        ends(study, planned, dataclasses.replace(engine, connect=Kills))
    before = stamps(tmp_path)
    assert len(before) == 8
    same(ends(study, planned, engine), direct)
    after = stamps(tmp_path)
    assert len(after) == 3 * len(planned)
    assert before.items() <= after.items()  # nothing was done twice
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_file_is_done_again(study, planned, direct, tmp_path):
    engine = units.Engine(tmp_path)
    ends(study, planned, engine)
    first, second = sorted(tmp_path.rglob("*.npy"))[:2]
    first.write_bytes(first.read_bytes()[:40])
    second.write_bytes(b"")
    same(ends(study, planned, engine), direct)


def test_the_name_of_a_unit_says_all_that_it_depends_on(study, planned):
    engine = units.Engine(Path())
    unit = engine.units(study, [("tab3", planned[0].times)])[0][0]
    assert engine.units(studies.study("mixture", CONFIG), [("tab3", planned[0].times)])[0][0].key == unit.key
    others = {
        "model": "digits", "settings": (("seed", 1),), "process": da.VPCosine(), "solver": "tab2",
        "times": (1.0, 0.5), "start": 1, "stop": 9, "starts": "x", "weights": "w", "code": "c",
        "imports": (("f", "h"),),
    }  # fmt: skip
    assert others.keys() == {field.name for field in dataclasses.fields(units.Unit)}
    keys = {dataclasses.replace(unit, **{name: value}).key for name, value in others.items()}
    assert len(keys | {unit.key}) == len(others) + 1


def test_a_worker_with_other_code_is_refused(study, planned, tmp_path):
    unit = units.Engine(tmp_path).units(study, [("ddim", planned[0].times)])[0][0]
    with pytest.raises(RuntimeError, match="other code or versions"):
        units.compute(dataclasses.replace(unit, code="older"), tmp_path)
    with pytest.raises(RuntimeError, match="starts of mixture"):
        units.compute(dataclasses.replace(unit, starts="others"), tmp_path)
    assert not stamps(tmp_path)
    executors.check({"tcp://a": units.signature()})
    with pytest.raises(RuntimeError, match="worker tcp://b has other code"):
        executors.check({"tcp://a": units.signature(), "tcp://b": "older"})


def test_shares_do_each_their_own_and_the_last_has_all(study, planned, direct, tmp_path):
    engine, total = units.Engine(tmp_path, block=17), 3 * len(planned)
    for i in range(2):
        with pytest.raises(units.Incomplete) as found:
            ends(study, planned, dataclasses.replace(engine, shard=(i, 3)))
        assert (found.value.done, found.value.missing) == ((i + 1) * total // 3, total - (i + 1) * total // 3)
    same(ends(study, planned, dataclasses.replace(engine, shard=(2, 3))), direct)


def test_what_is_lost_is_asked_for_again_but_not_for_ever(study, planned, direct, tmp_path):
    calls = []

    class Dies(units.Here):
        def submit(self, fn, /, *args, **kwargs):
            calls.append(args[0].key)
            future = super().submit(fn, *args, **kwargs)
            if len(calls) == 3:
                future = Future()
                future.set_exception(BrokenExecutor("a worker died"))
            return future

    same(ends(study, planned, units.Engine(tmp_path, Dies, pause=0.0)), direct)

    class Dead(units.Here):
        def submit(self, fn, /, *args, **kwargs):
            calls.append(None)
            future = Future()
            future.set_exception(BrokenExecutor("no worker lives"))
            return future

    calls.clear()
    with pytest.raises(BrokenExecutor):
        ends(study, planned[:1], units.Engine(tmp_path / "other", Dead, tries=2, pause=0.0))
    assert len(calls) == 3


def test_an_error_of_a_unit_is_an_error(study, tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        list(units.Engine(tmp_path).ends(study, [("nobody", (1.0, 0.5))], lambda share: None))


@pytest.mark.parametrize(
    ("args", "message"),
    [(("spark",), "executor='spark'"), (("local", 1, "tcp://x:1"), "address='tcp://x:1'")],
)
def test_executors_that_are_not_known_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        executors.connect(*args)


# -- on the command line --------------------------------------------------------------------------
def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    result = call("run", SWEEPING, "--quick", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def agrees(folder: Path, plain: Path) -> None:
    a, b = (pd.read_csv(place / f"{SWEEPING}.csv") for place in (folder, plain))
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)  # CSVs have ten digits


def test_shares_of_an_experiment(plain, tmp_path):
    args = ("run", SWEEPING, "--quick", "--out", tmp_path, "--units", tmp_path / "units", "--block", 16)
    first = call(*args, "--shard", "0/2")
    assert first.exit_code == 0, first.output
    assert "waits" in first.output
    assert "this share is done" in first.output
    assert not (tmp_path / f"{SWEEPING}.csv").exists()
    half = len(stamps(tmp_path))
    second = call(*args, "--shard", "1/2")
    assert "done" in second.output, second.output
    assert len(stamps(tmp_path)) == 2 * half
    agrees(tmp_path, plain)


@pytest.mark.parametrize("args", [["--shard", "2/2"], ["--shard", "x"], ["--block", "0"], ["--executor", "spark"]])
def test_unclear_engines_are_refused(args, tmp_path):
    assert call("run", SWEEPING, "--quick", "--out", tmp_path, *args).exit_code == 2


def test_an_experiment_without_sweep_is_refused(tmp_path):
    result = call("run", "transfer", "--quick", "--out", tmp_path, "--executor", "here")
    assert result.exit_code == 2
    assert "transfer" in result.output
    assert runner.sweeps(discover()[SWEEPING])


def test_two_clients_share_one_folder_of_units(plain, tmp_path):
    processes = [client(tmp_path / str(i), tmp_path / "units", "--executor", "here") for i in range(2)]
    for process in processes:
        assert process.communicate(timeout=600)[0] is not None
        assert process.returncode == 0
    for i in range(2):
        agrees(tmp_path / str(i), plain)
    assert not list(tmp_path.rglob("*.tmp"))


def client(out: Path, folder: Path, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments", "run", SWEEPING, "--quick", "--out", out, "--units", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in (*command, "--block", 16, *args)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


# -- on Dask --------------------------------------------------------------------------------------
def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def wait_for_units(folder: Path, count: int, process: subprocess.Popen) -> dict[str, int]:
    while len(stamps(folder)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return stamps(folder)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as found:
        yield found


def test_two_clients_on_a_cluster_find_what_one_process_finds(plain, cluster, tmp_path):
    args = ("--executor", "dask", "--address", cluster.scheduler_address)
    processes = [client(tmp_path / str(i), tmp_path / "units", *args) for i in range(2)]
    for i, process in enumerate(processes):
        finish(process)
        agrees(tmp_path / str(i), plain)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_worker_that_is_killed_loses_its_unit_and_no_other(plain, cluster, tmp_path):
    from distributed import Client

    process = client(tmp_path, tmp_path / "units", "--address", cluster.scheduler_address)
    with Client(cluster.scheduler_address, set_as_default=False) as other:
        pids = other.run(os.getpid)
        before = wait_for_units(tmp_path / "units", 5, process)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        assert process.poll() is None  # in the middle
        finish(process)
        assert set(other.run(os.getpid).values()) != set(pids.values())
    agrees(tmp_path, plain)
    assert before.items() <= stamps(tmp_path / "units").items()


@pytest.fixture
def daemons():
    pytest.importorskip("distributed")
    started: list[subprocess.Popen] = []

    def start(role: str, *args: object) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--no-dashboard", *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **quiet))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_scheduler_that_is_killed_and_started_again(plain, daemons, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"

    def start() -> subprocess.Popen:
        scheduler = daemons("scheduler", "--host", "127.0.0.1", "--port", port)
        daemons("worker", address, "--nthreads", 1, "--no-nanny", "--local-directory", tmp_path)
        return scheduler

    scheduler = start()
    process = client(tmp_path, tmp_path / "units", "--address", address)
    before = wait_for_units(tmp_path / "units", 5, process)
    os.kill(scheduler.pid, signal.SIGKILL)
    scheduler.wait()
    start()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "are asked for again" in output
    agrees(tmp_path, plain)
    assert before.items() <= stamps(tmp_path / "units").items()
