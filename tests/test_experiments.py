"""Are experiments finished once and whole, and do their sentences follow from their data?"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

import deis_analysis as da
from experiments import discover, runner, style
from experiments.__main__ import main
from experiments.problems import bootstrap_ratio, distinct_solvers, exact_path

EXPERIMENTS = discover()
CHEAP = "transfer"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, _one_thread) -> Path:
    """All experiments, quick, once."""
    folder = tmp_path_factory.mktemp("quick")
    result = call("run", "--all", "--quick", "--jobs", 1, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def load(folder: Path, name: str) -> tuple[pd.DataFrame, dict]:
    record = json.loads((folder / f"{name}.json").read_text())
    return pd.read_csv(folder / f"{name}.csv"), record


def contents(folder: Path, name: str) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in runner.result_files(name, folder)}


# -- what a result is -----------------------------------------------------------------------------
def test_the_first_set_is_there():
    wanted = "convergence ei_versus_euler extrapolation time_grids transfer digits_work_precision weights_accuracy"
    assert set(EXPERIMENTS) >= set(wanted.split())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_result_is_whole(quick, name):
    frame, record = load(quick, name)
    assert len(frame) > 3
    assert (quick / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    svg = (quick / f"{name}.svg").read_bytes()
    assert b"<svg" in svg
    assert b"dc:date" not in svg
    assert len(svg) < 1_000_000
    assert re.search(r"\d", record["verdict"])
    assert record["verdict"].endswith(".")
    assert record["quick"] is True
    assert record["wall_time_s"] >= 0
    assert record["question"].endswith("?")
    assert record["versions"].keys() >= {"python", "numpy", "scipy", "torch", "deis_analysis"}
    assert record["config"] == {**EXPERIMENTS[name].CONFIG, **EXPERIMENTS[name].QUICK}
    assert {"seed", "device"} <= record.keys()
    assert not list(quick.glob(".*.tmp"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_verdict_follows_from_the_csv(quick, name):
    frame, record = load(quick, name)
    assert EXPERIMENTS[name].verdict(frame, record["config"]) == record["verdict"]


def test_redrawing_gives_the_same_bytes(quick):
    before = (quick / "transfer.svg").read_bytes()
    result = call("redraw", "transfer", "--out", quick)
    assert result.exit_code == 0, result.output
    assert (quick / "transfer.svg").read_bytes() == before


def test_redraw_without_data_is_an_error(tmp_path):
    assert call("redraw", CHEAP, "--out", tmp_path).exit_code == 2


# -- what was found -------------------------------------------------------------------------------
def test_tab3_beats_ddim_on_digits(quick):
    frame, record = load(quick, "digits_work_precision")
    at = frame[(frame.part == "error") & (frame.nfe == 10)].set_index("solver").rms
    assert at["ddim"] / at["tab3"] >= 1.7
    reference = frame[frame.part == "reference"].iloc[0]
    assert reference.estimate < 0.05 * frame[frame.part == "error"].rms.min()
    assert "as expected" in record["verdict"]


def test_digits_verdict_when_the_claim_fails(quick):
    frame, record = load(quick, "digits_work_precision")
    frame.loc[frame.solver == "tab3", "rms"] *= 3
    said = EXPERIMENTS["digits_work_precision"].verdict(frame, record["config"])
    assert "against the expectation" in said
    assert "x more" in said


def test_convergence_verdict_when_an_order_is_missed(quick):
    frame, record = load(quick, "convergence")
    frame.loc[frame.problem == "smooth", "slope"] = frame.order
    whole = EXPERIMENTS["convergence"].verdict(frame, record["config"])
    count = frame.solver.nunique()
    assert f"{count} of {count} distinct" in whole
    frame.loc[(frame.solver == "tab3") & (frame.problem == "smooth"), "slope"] = 1.0
    said = EXPERIMENTS["convergence"].verdict(frame, record["config"])
    assert f"{count - 1} of {count} distinct" in said
    assert "tab3 with 1.00" in said


def test_ei_verdict_counts_where_claims_hold(quick):
    frame, record = load(quick, "ei_versus_euler")
    assert "both claims hold on the digits only" in record["verdict"]
    errors = frame.part == "error"
    frame.loc[errors & (frame.solver == "ei_score"), ["mean_abs", "rms"]] = 1e-9
    said = EXPERIMENTS["ei_versus_euler"].verdict(frame, record["config"])
    assert "worse at 0 of" in said
    assert "do not hold everywhere" in said


def test_extrapolation_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "extrapolation")
    frame.loc[frame.degree == 3, "delta"] = 1e-12
    said = EXPERIMENTS["extrapolation"].verdict(frame, record["config"])
    assert "larger" not in said
    frame.loc[frame.degree == 3, "delta"] = 1e3
    assert "smaller" not in EXPERIMENTS["extrapolation"].verdict(frame, record["config"])


def test_time_grid_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "time_grids")
    frame.loc[frame.grid == "logrho", "rms"] = 1e-9
    assert "one grid is best throughout" in EXPERIMENTS["time_grids"].verdict(frame, record["config"])


def test_transfer_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "transfer")
    assert "shrink every direction" not in EXPERIMENTS["transfer"].verdict(
        frame.assign(ratio=1 / frame.ratio.clip(upper=0.99)), record["config"]
    )
    assert "ddim by 1.00x" in EXPERIMENTS["transfer"].verdict(frame.assign(ratio=1.0), record["config"])


def test_weights_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "weights_accuracy")
    ours = frame[frame.method == "quadrature"].error
    assert ours.max() < 1e-13
    frame.loc[frame.method == "quadrature", "error"] = 0.5
    assert "at most 0.50 at every step" in EXPERIMENTS["weights_accuracy"].verdict(frame, record["config"])


# -- once -----------------------------------------------------------------------------------------
def test_finished_results_are_kept(tmp_path):
    assert call("run", CHEAP, "--quick", "--out", tmp_path).exit_code == 0
    before = contents(tmp_path, CHEAP)
    result = call("run", CHEAP, "--quick", "--out", tmp_path)
    assert result.output.startswith("kept")
    assert contents(tmp_path, CHEAP) == before
    listed = call("list", "--quick", "--out", tmp_path).output
    assert re.search(rf"{CHEAP} .*yes", listed)
    assert re.search(r"convergence .*no", listed)


def test_force_and_changes_compute_again(tmp_path, monkeypatch):
    def times() -> list[int]:
        return [stamp for stamp, _ in contents(tmp_path, CHEAP).values()]

    call("run", CHEAP, "--quick", "--out", tmp_path)
    first = times()
    assert call("run", CHEAP, "--quick", "--force", "--out", tmp_path).output.startswith("done")
    second = times()
    assert all(b > a for a, b in zip(first, second, strict=True))
    monkeypatch.setitem(EXPERIMENTS[CHEAP].CONFIG, "calls", 12)
    assert call("run", CHEAP, "--quick", "--out", tmp_path).output.startswith("done")
    assert load(tmp_path, CHEAP)[1]["config"]["calls"] == 12
    (tmp_path / f"{CHEAP}.svg").unlink()
    assert call("run", CHEAP, "--quick", "--out", tmp_path).output.startswith("done")


def test_device_is_part_of_the_fingerprint():
    digits = EXPERIMENTS["digits_work_precision"]
    configs = [
        runner.configuration(digits, runner.Task(digits.NAME, Path(), device=device)) for device in ("cpu", "cuda")
    ]
    assert runner.fingerprint(digits, configs[0]) != runner.fingerprint(digits, configs[1])
    cheap = [runner.configuration(EXPERIMENTS[CHEAP], runner.Task(CHEAP, Path(), device=d)) for d in ("cpu", "cuda")]
    assert cheap[0] == cheap[1]


# -- whole ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", ["compute", "verdict", "draw"])
def test_failure_leaves_old_files_untouched_and_the_rest_continues(tmp_path, monkeypatch, step):
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    call("run", CHEAP, "--quick", "--out", tmp_path)
    before = contents(tmp_path, CHEAP)
    monkeypatch.setattr(EXPERIMENTS[CHEAP], step, broken)
    monkeypatch.setattr(runner, "fingerprint", lambda *_: "another")
    result = call("run", CHEAP, "weights_accuracy", "--quick", "--jobs", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "no such luck" in result.output
    assert contents(tmp_path, CHEAP) == before
    assert (tmp_path / "weights_accuracy.json").is_file()
    assert not list(tmp_path.glob(".*.tmp"))


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with runner.atomic(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_interruption_keeps_what_is_finished(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EXPERIMENTS["weights_accuracy"], "compute", interrupted)
    result = call("run", CHEAP, "weights_accuracy", "--quick", "--jobs", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert "1 finished and kept, 1 not (weights_accuracy)" in result.output
    assert all(path.is_file() for path in runner.result_files(CHEAP, tmp_path))
    assert not (tmp_path / "weights_accuracy.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_on_workers_leaves_no_orphan(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        CHEAP,
        "digits_work_precision",
        "--jobs",
        "2",
        "--out",
        tmp_path,
    ]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    marker = tmp_path / ".done" / f"{CHEAP}.json"
    deadline = time.monotonic() + 60
    while not marker.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert marker.is_file()
    assert not (tmp_path / "digits_work_precision.csv").exists()
    deadline = time.monotonic() + 10  # multiprocessing's own resource tracker takes a moment to notice
    while (left := [pid for pid in children if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_worker_that_dies_is_reported(tmp_path):
    tasks = [runner.Task("no_such_experiment", tmp_path), runner.Task(CHEAP, tmp_path, quick=True)]
    outcomes = {o.name: o for o in runner.run_parallel(tasks, 2, lambda *_: None)}
    assert outcomes["no_such_experiment"].status == "failed"
    assert outcomes[CHEAP].status == "done"


# -- what is refused ------------------------------------------------------------------------------
def test_unknown_name_is_refused_with_the_nearest():
    result = call("run", "convergance", "--quick")
    assert result.exit_code == 2
    assert "convergence" in result.output


@pytest.mark.parametrize("args", [["run"], ["run", CHEAP, "--all"], ["run", CHEAP, "--jobs", "0"]])
def test_unclear_requests_are_refused(args):
    assert call(*args).exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(tmp_path):
    result = call("run", "digits_work_precision", "--device", "cuda", "--out", tmp_path)
    assert result.exit_code == 2
    assert "--device cuda" in result.output
    assert not list(tmp_path.iterdir())


# -- the parts ------------------------------------------------------------------------------------
def test_every_registered_solver_has_a_look():
    for name, row in da.SOLVERS.items():
        assert style.look(name)["linestyle"] == {"eps": "-", "x0": "--", "v": "-.", "score": ":"}[row.prediction]
    assert style.look("tab3")["color"] == style.look("tab1")["color"] != style.look("rhoab3")["color"]


def test_spread_keeps_order_and_distance():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.uniform(-0.2, 1.2, rng.integers(1, 12))
        placed = style.spread(list(values), 0.08, 0.0, 1.0)
        assert placed.min() >= -1e-12
        assert placed.max() <= 1 + 1e-12
        assert np.all(np.diff(np.sort(placed)) >= 0.08 - 1e-9)
        assert np.all(np.diff(placed[np.argsort(values)]) > 0)
    assert np.allclose(style.spread([0.2, 0.5, 0.9], 0.1, 0.0, 1.0), [0.2, 0.5, 0.9])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.123, "0.12"), (12.3, "12"), (1234.0, "1234"), (1.5e-7, "1.5e-7"), (2.46, "2.5")]
)
def test_numbers_in_sentences(value, text):
    assert style.as_text(value) == text


def test_same_methods_are_grouped():
    process = da.VPLinear()
    groups = distinct_solvers(process, da.grid(process, 6))
    assert set(groups["ddim"]) >= {"ddim", "tab0", "rhoab0", "ipndm1", "rhork_1euler"}
    assert sum(map(len, groups.values())) <= len(da.SOLVERS)


def test_exact_path_agrees_with_the_exact_flow():
    process, mix = da.VPLinear(), da.GaussianMixture([1.0], [0.3], [0.2])
    x = np.array([-1.0, 0.5, 2.0])
    states, error = exact_path(mix.eps(process), process, x, [1.0, 0.7, 0.7 + 1e-14, 0.2, 0.01], 1e-8)
    for t, state in states.items():
        assert np.max(np.abs(state - mix.flow(process, x, 1.0, t))) < 1e-6
    assert 0 < error < 1e-5


def test_bootstrap_interval_holds_the_ratio():
    rng = np.random.default_rng(1)
    a, b = rng.chisquare(3, 400) * 4.0, rng.chisquare(3, 400)
    low, high = bootstrap_ratio(a, b, 0)
    assert low < np.sqrt(a.mean() / b.mean()) < high
    assert 1.7 < low < high < 2.4
