"""Rows that are kept are those of the shipped result, as long as it was made with the same settings."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from experiments.core import by_model, runner
from experiments.paper import paper_claims

CONFIG = {"models": ["a", "dear", "b"], "kept": ["dear"], "steps": [5, 10], "device": "cpu"}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(by_model, "FIGURES", tmp_path)

    def write(**changes):
        (tmp_path / "one.json").write_text(json.dumps({"config": {**CONFIG, **changes}}))
        frame = pd.DataFrame({"model": ["dear", "a", "dear"], "value": [1.5, 99.0, 2.5]})
        frame.to_csv(tmp_path / "one.csv", index=False)

    return write


def run(config=CONFIG):
    asked, shares = [], []

    def rows_of(model, progress):
        asked.append(model)
        progress(0.5)
        return [{"value": float(len(model))}]

    return by_model.by_model("one", config, rows_of, shares.append), asked, shares


def test_dear_rows_are_those_of_the_shipped_file(shipped):
    shipped()
    frame, asked, shares = run()
    assert asked == ["a", "b"]
    assert frame.model.tolist() == ["a", "dear", "dear", "b"]
    assert frame.value.tolist() == [1.0, 1.5, 2.5, 1.0]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_other_settings_are_computed(shipped):
    shipped(steps=[5])
    assert run()[1] == ["a", "dear", "b"]


def test_other_models_beside_it_change_no_rows(shipped):
    shipped(models=["dear"], kept=[], device="cuda")
    assert run()[1] == ["a", "b"]


def test_without_a_file_or_on_request_all_is_computed(shipped, tmp_path):
    assert run()[1] == ["a", "dear", "b"]
    shipped()
    assert run({**CONFIG, "kept": []})[1] == ["a", "dear", "b"]


def test_who_asks_for_networks_or_for_models_gets_them_computed(tmp_path):
    def kept(**options):
        return runner.configuration(paper_claims, runner.Task("paper_claims", tmp_path, **options))["kept"]

    assert kept() == ["digits8", "digits8_flow", "mnist28"]
    assert kept(networks=True) == kept(models=("digits8",)) == kept(dtype="float64") == kept(quick=True) == []
