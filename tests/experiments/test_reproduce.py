"""Is a planted difference found, of every kind, and do files that agree stay as they are, bytes and all?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from experiments import discover
from experiments.__main__ import main
from experiments.core import runner
from experiments.core.agreement import EXACT, LEARNED, changed_settings, differences

CHEAP = "transfer"  # 0.1 s
FRAME = pd.DataFrame(
    {
        "model": ["mixture", "digits8", "digits"],
        "calls": [5, 10, 20],
        "steps": [5.0, np.nan, 20.0],
        "best": [True, False, None],
        "solver": ["ddim", "tab3", None],
        "rms": [0.25, 1.5e-3, np.nan],
        "seconds": [1.5, 2.5, 3.5],
    }
)


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def reproduce(folder: Path, *args: object) -> Result:
    return call("reproduce", CHEAP, "--quick", "--out", folder, *args)


@pytest.fixture
def committed(tmp_path):
    """A quick result as a fresh clone has it: four files, and nothing of how they came to be."""
    assert call("run", CHEAP, "--quick", "--out", tmp_path).exit_code == 0
    (tmp_path / ".done" / f"{CHEAP}.json").unlink()
    return tmp_path


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in runner.result_files(CHEAP, folder) if p.exists()}


def plant(folder: Path, column: str, factor: float) -> int:
    """Multiply the third number of a column; its row."""
    path = folder / f"{CHEAP}.csv"
    frame = pd.read_csv(path)
    row = int(frame.index[frame[column].notna()][2])
    frame.loc[row, column] *= factor
    frame.to_csv(path, index=False, float_format="%.10g")
    return row


# -- two frames -----------------------------------------------------------------------------------
def test_a_frame_agrees_with_itself():
    assert differences(FRAME, FRAME.copy()) == []


@pytest.mark.parametrize(("row", "rtol"), [(0, EXACT[0]), (1, LEARNED[0])])
def test_numbers_agree_within_the_tolerance_of_their_model_and_no_further(row, rtol):
    for factor, found in ((0.5, 0), (3.0, 1)):
        other = FRAME.copy()
        other.loc[row, "rms"] *= 1 + factor * rtol
        said = differences(FRAME, other)
        assert len(said) == found
        assert differences(other, FRAME) == said or found  # either way round
    assert f"rms in 1 of 3 rows, most in row {row} (model={FRAME.model[row]}, calls={FRAME.calls[row]}" in said[0]
    assert f"committed {FRAME.rms[row]}, computed {other.rms[row]}" in said[0]


def test_tiny_numbers_are_compared_by_their_absolute_difference():
    tiny = pd.DataFrame({"error": [1e-16, 0.5]})
    assert differences(tiny, pd.DataFrame({"error": [3e-16, 0.5]})) == []
    assert differences(tiny, pd.DataFrame({"error": [1e-9, 0.5]}))
    assert differences(tiny, pd.DataFrame({"error": [1e-9, 0.5]}), {"error": (0.0, 1e-8)}) == []


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("calls", 0, 6),
        ("steps", 0, 6.0),
        ("steps", 1, 6.0),
        ("solver", 1, "tab2"),
        ("solver", 2, "tab2"),
        ("best", 0, False),
        ("rms", 2, 0.1),
        ("rms", 0, np.nan),
        ("rms", 0, np.inf),
    ],
)
def test_counts_labels_and_gaps_are_equal_or_differ(column, row, value):
    other = FRAME.copy()
    other.loc[row, column] = value
    said = differences(FRAME, other)
    assert len(said) == 1
    assert said[0].startswith(f"{column} in 1 of 3 rows, most in row {row}")


def test_timings_are_not_compared():
    assert differences(FRAME, FRAME.assign(seconds=99.5)) == []


def test_shape_is_compared():
    assert differences(FRAME, FRAME[:2]) == ["3 rows are committed, 2 were computed"]
    assert differences(FRAME, FRAME.drop(columns="rms")) == ["no column rms was computed"]
    assert differences(FRAME, FRAME.assign(more=1)) == ["column more is not in the committed file"]
    assert differences(FRAME, FRAME[FRAME.columns[::-1]]) == []


def test_settings_are_compared():
    assert changed_settings({"samples": 8, "seed": 0}, {"samples": 16, "seed": 0}) == [
        "configuration samples: committed 8, now 16"
    ]
    assert changed_settings({"kept": ["digits8"]}, {"kept": []}) == []


# -- a result -------------------------------------------------------------------------------------
def test_what_agrees_stays_bytes_and_times(committed):
    plant(committed, "ratio", 1 + 1e-8)  # as another machine would round
    before = contents(committed)
    result = reproduce(committed, "--strict")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("agrees")
    assert result.output.splitlines()[-1] == "reproduced 1 of 1"
    assert contents(committed) == before
    assert reproduce(committed).output.startswith("kept")  # what was reproduced is not computed again
    assert contents(committed) == before
    assert {p.name for p in committed.iterdir()} == {*before, ".done"}


@pytest.mark.parametrize("strict", [True, False])
def test_a_planted_difference_is_named(committed, strict):
    row = plant(committed, "ratio", 1.01)
    before = contents(committed)
    result = reproduce(committed, *(["--strict"] if strict else []))
    assert result.exit_code == int(strict)
    assert (
        f"ratio in 1 of {len(pd.read_csv(committed / 'transfer.csv'))} rows, most in row {row} (part=" in result.output
    )
    assert "9.9e-03 apart relatively" in result.output
    assert "reproduced 0 of 1; differ" in result.output
    assert (contents(committed) == before) == strict
    if strict:
        assert "ratio in 1 of" in reproduce(committed).output  # it is not taken for finished
    else:
        assert reproduce(committed).output.startswith("kept")


def test_what_was_reproduced_and_is_changed_by_hand_is_computed_again(committed):
    assert reproduce(committed).output.startswith("agrees")
    plant(committed, "ratio", 1.01)
    assert reproduce(committed, "--strict").output.startswith("differs")


def test_a_difference_is_kept_beside_the_committed_files(committed):
    plant(committed, "ratio", 1.01)
    assert reproduce(committed, "--strict").exit_code == 1
    beside = committed / runner.DIFFERS
    assert all(path.is_file() for path in runner.result_files(CHEAP, beside))
    assert reproduce(beside, "--force", "--strict").exit_code == 0


def test_other_settings_and_other_sentences_are_differences(committed):
    path = committed / f"{CHEAP}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"verdict": "At 10 calls all is well."}))
    assert "the sentence does not: committed 'At 10 calls all is well.'" in reproduce(committed, "--strict").output
    path.write_text(json.dumps(record | {"config": record["config"] | {"calls": 99}}))
    assert "configuration calls: committed 99, now" in reproduce(committed, "--strict").output


def test_missing_files_are_written(committed):
    before = contents(committed)
    for suffix in ("png", "svg"):
        (committed / f"{CHEAP}.{suffix}").unlink()
    assert reproduce(committed).output.startswith("agrees")
    assert contents(committed).keys() == before.keys()
    assert contents(committed)["transfer.csv"] == before["transfer.csv"]
    (committed / f"{CHEAP}.csv").unlink()
    result = reproduce(committed)
    assert "reproduced 0 of 1; written, as nothing was committed: transfer" in result.output
    assert {name: data for name, (_, data) in contents(committed).items()}["transfer.csv"] == before["transfer.csv"][1]


def test_committed_numbers_are_redrawn_and_said_to_be(committed, monkeypatch):
    experiment = discover()[CHEAP]
    monkeypatch.setattr(experiment, "COMMITTED", "an hour on a cluster", raising=False)
    monkeypatch.setattr(experiment, "compute", None)
    monkeypatch.setattr(experiment, "CONFIG", experiment.CONFIG | experiment.QUICK)
    before = contents(committed)
    result = call("reproduce", CHEAP, "--out", committed, "--strict")
    assert result.exit_code == 0, result.output
    assert "redrawn" in result.output
    assert "an hour on a cluster" in result.output
    assert "reproduced 1 of 1; redrawn from committed numbers among them: transfer" in result.output
    assert contents(committed) == before
    (committed / f"{CHEAP}.csv").unlink()
    result = call("reproduce", CHEAP, "--out", committed)
    assert result.exit_code == 1
    assert "no numbers are committed" in result.output


def test_rows_that_were_not_computed_are_named():
    assert "rows of digits8 are the committed ones" in runner._but_kept(
        {"models": ["digits8"], "kept": ["digits8", "x"]}
    )
    assert runner._but_kept({"models": ["digits"], "kept": ["digits8"]}) == ""
    assert runner._but_kept({"models": ["digits8"], "kept": []}) == ""


def test_the_experiments_that_are_redrawn():
    assert {name for name, e in discover().items() if hasattr(e, "COMMITTED")} == {"tuned_samplers", "field_history"}
