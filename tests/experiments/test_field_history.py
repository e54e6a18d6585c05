"""Since when an error stands: read off frames made by hand, and off child processes that answer, fail, or leave."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from deis_analysis.audit.packages.diffusers import scheduler
from deis_analysis.audit.packages.diffusers.families import FAMILIES
from deis_analysis.audit.packages.diffusers.scheduler import Scheduler
from deis_analysis.process.schedules import VPDiscrete
from experiments.core import panels
from experiments.core.paths import FIGURES
from experiments.study import field_history as history

VERSIONS = ("0.8.1", "0.10.2", "0.12.1", "0.15.1")


def frame(**rows):
    """A configuration per name; per version its codes with plus signs, "-" for none, "x" fails, "." absent."""
    found = []
    for spec, text in rows.items():
        for version, word in zip(VERSIONS, text.split(), strict=True):
            status = {"x": "fails", ".": "absent", "-": "clean"}.get(word, "errors")
            codes = word.replace("+", "; ") if status == "errors" else None
            row = {"version": version, "spec": spec, "status": status, "error_codes": codes, "warning_codes": None}
            found.append(row)
    return pd.DataFrame(found)


@pytest.mark.parametrize(
    ("text", "fates"),
    [
        ("A A A A", [("A", "stands", "0.8.1", "0.15.1", False)]),
        (". . A A", [("A", "stands", "0.12.1", "0.15.1", False)]),  # as old as what it stands in
        ("- - A A", [("A", "stands", "0.12.1", "0.15.1", True)]),
        ("x - A A", [("A", "stands", "0.12.1", "0.15.1", True)]),
        ("A x x A", [("A", "stands", "0.8.1", "0.15.1", False)]),  # what did not run says nothing
        ("A A - -", [("A", "mended", "0.8.1", "0.10.2", False)]),
        ("A - A -", [("A", "mended", "0.12.1", "0.12.1", True)]),  # it came back: the last time counts
        ("- A+B B B", [("A", "mended", "0.10.2", "0.10.2", True), ("B", "stands", "0.10.2", "0.15.1", True)]),
        ("A A A x", [("A", "stands", "0.8.1", "0.12.1", False)]),
        ("- - - -", []),
        ("x . . x", []),
    ],
)
def test_the_fate_of_an_error(text, fates):
    found = history.histories(frame(sampler=text))
    assert [tuple(row)[1:] for row in found.itertuples(index=False)] == fates


def test_an_order_that_could_not_be_measured_is_not_one_that_was_right():
    rows = frame(sampler="- ORD-BELOW-DECLARED ORD-BELOW-DECLARED ORD-BELOW-DECLARED")
    (fate,) = history.histories(rows).itertuples()
    assert fate.brought_in
    rows["warning_codes"] = ["RUN-FAILED", "", "", ""]
    (fate,) = history.histories(rows).itertuples()
    assert not fate.brought_in
    assert fate.since == "0.10.2"


def test_the_verdict_counts_them():
    said = history.verdict(frame(a="A A A A", b="- - A A", c="A A - -", d="x . - -"), history.CONFIG)
    assert said.startswith("2 errors stand (1 since 0.8.1) in diffusers 0.15.1, 1 of them brought in after a version")
    assert "1 others were mended" in said
    assert "of 16 audits, 4 configurations in 4 versions from 0.8.1 on, 1 could not run" in said


def test_errors_are_drawn_in_the_versions_that_have_them():
    rows = frame(a="A A - -", b="- - - -", c="x ORD-B+C C .")
    found = history.timelines(rows)
    assert [tuple(key) for key, _ in found.groupby(["spec", "code"], sort=False)] == [
        ("a", "A"),
        ("c", "C"),
        ("c", "ORD-B"),
    ]
    assert list(found[found.spec == "a"].there) == [True, True, False, False]
    assert list(found[found.code == "ORD-B"].version) == ["0.10.2", "0.12.1"]
    assert list(found[found.code == "ORD-B"].there) == [True, False]


@pytest.mark.parametrize(
    ("spec", "label", "order_only"),
    [
        ("k_diffusion:sample_dpmpp_3m_sde?eta=0.0", "dpmpp_3m_sde, eta=0.0", "dpmpp_3m_sde"),
        ("azula:REABSampler?order=2", "REAB, order=2", "REAB"),
        ("LMSDiscreteScheduler", "LMS", "LMS"),
        (
            "diffusers:DPMSolverMultistepScheduler?solver_order=3&use_flow_sigmas=true&prediction_type=flow_prediction",
            "DPMSolverMultistep, solver_order=3, flow_sigmas",
            "DPMSolverMultistep, solver_order=3",
        ),
        ("DDIMScheduler?clip_sample=false&beta_schedule=linear", "DDIM, no clip_sample, linear", "DDIM"),
    ],
)
def test_the_label_of_a_released_sampler(spec, label, order_only):
    assert panels.sampler(spec) == label
    assert panels.sampler(spec, options=False) == order_only
    assert len(panels.sampler(spec, 12)) <= 12 or " " not in label


def test_what_is_committed_is_drawn_where_no_version_lies(monkeypatch):
    monkeypatch.delenv(history.FOLDER, raising=False)
    found = history.compute(history.CONFIG, lambda _: None)
    pd.testing.assert_frame_equal(found, pd.read_csv(FIGURES / "field_history.csv", dtype={"version": str}))
    assert set(found.version) == set(history.CONFIG["versions"])
    assert set(found.spec) == set(history.CONFIG["specs"])
    assert len(found) == len(history.CONFIG["versions"]) * len(history.CONFIG["specs"])
    assert found[~found.status.isin(("absent", "fails"))].version.nunique() >= 6


def test_a_version_that_does_not_import_is_a_line_for_each_configuration(monkeypatch, tmp_path):
    (tmp_path / "1.2.3" / "diffusers").mkdir(parents=True)
    (tmp_path / "1.2.3" / "diffusers" / "__init__.py").write_text("raise ImportError('cannot import name HfFolder')")
    monkeypatch.setenv(history.FOLDER, str(tmp_path))
    shares = []
    config = {**history.CONFIG, "versions": {"1.2.3": "", "4.5.6": ""}, "specs": ["A", "B"]}
    found = history.compute(config, shares.append)
    assert list(found.status) == ["fails"] * 4
    assert list(found.messages) == ["no audit: ImportError: cannot import name HfFolder"] * 2 + ["not installed"] * 2


def test_the_child_sees_the_version_of_the_folder_and_ends_with_its_parent(tmp_path):
    package = tmp_path / "9.9.9" / "diffusers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9.9.9'\nclass DDIMScheduler: pass\n")
    config = {"specs": ["PNDMScheduler"], "nfe": 5}
    (row,) = history.audited("9.9.9", config, tmp_path, lambda _: None)
    assert row["diffusers"] == "9.9.9"
    assert row["status"] == "absent"
    assert "'PNDMScheduler' is unknown" in row["messages"]

    text = "import time; from experiments.study.field_history import _leave_with_parent as f; f(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, cwd=FIGURES.parent) as child:
        begin = time.monotonic()
        child.stdin.close()
        assert child.wait(timeout=50) == 1
        assert time.monotonic() - begin < 50


def test_rows_are_json_that_can_be_read_back():
    rows = list(history.audit_here(["NoSuchScheduler", "DDIMScheduler?clip_sample=false&nonsense=1"], 5))
    assert [row["status"] for row in rows] == ["absent", "absent"]
    assert json.loads(json.dumps(rows)) == rows


def test_classes_that_looked_levels_up_at_integer_times_have_no_list():
    """As released before 0.21: ᾱ by time; the last step goes to time 0, which has the first of the levels."""
    subject = Scheduler("", "DPMSolverMultistepScheduler", {}, {}, {}, 2)
    assert FAMILIES[subject.name].kind == "sigmas"
    old = SimpleNamespace(timesteps=[999, 500, 250], sigmas=list(range(1000)))  # a training table, not the steps
    assert scheduler._levels(subject, old) is None
    process = VPDiscrete([0.9, 0.5, 0.1])
    assert scheduler._end_level(subject, old, process) == pytest.approx((0.1 / 0.9) ** 0.5, rel=1e-12)
    new = SimpleNamespace(timesteps=[999, 500, 250], sigmas=[9.0, 3.0, 1.0, 0.25])
    assert scheduler._levels(subject, new) == (9.0, 3.0, 1.0, 0.25)
    assert scheduler._end_level(subject, new, process) == 0.25
