"""The command as a person uses it: output, JSON for programs, errors without tracebacks."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

import deis_analysis as da
from deis_analysis.cli import main


def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_every_row_declares_what_is_observed():
    """`deis-analysis solvers --json`: the registry's claims and their measurements, none differs."""
    rows = json.loads(CliRunner().invoke(main, ["solvers", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(da.SOLVERS)
    assert len(rows) >= 120
    for row in rows:
        assert {
            "name",
            "family",
            "order",
            "observed_order",
            "degree",
            "observed_degree",
            "nfe",
            "stochastic",
            "source",
        } <= set(row)
        assert abs(row["order"] - row["observed_order"]) <= 0.15, row
        for field in ("order_exact_start", "strong_order"):  # None where the notion has no meaning
            declared, observed = row[field], row[f"observed_{field}"]
            assert (declared is None) == (observed is None)
            assert declared is None or abs(declared - observed) <= 0.15, row
        assert row["degree"] == row["observed_degree"], row
        assert row["nfe"] == row["observed_nfe"], row
        assert row["stochastic"] is row["observed_stochastic"] is (row["order_exact_start"] is None)


def test_solvers_as_a_table():
    text = invoke("solvers", "--declared")
    for name in da.SOLVERS:
        assert name in text


def test_steppers_are_listed():
    rows = json.loads(invoke("steppers", "--json"))
    assert [row["name"] for row in rows] == list(da.STEPPERS)
    assert all(row["source"] and row["description"] for row in rows)
    text = invoke("steppers")
    assert all(name in text for name in da.STEPPERS)


def test_tableau_prints_draws_and_round_trips():
    assert "tab3: 5 calls of eps" in invoke("tableau", "tab3", "--steps", "5")
    assert invoke("tableau", "ddim", "--latex").startswith(r"\begin{array}")
    table = da.Tableau.from_json(
        invoke(
            "tableau",
            "rhork_2heun",
            "--steps",
            "4",
            "--process",
            "VE:sigma_min=0.02,sigma_max=10",
            "--kind",
            "rho7",
            "--json",
        )
    )
    process = da.VE(0.02, 10.0)
    assert da.distance(table, da.build("rhork_2heun", process, da.grid(process, 4, "rho7"))) == 0


def test_derive_lists_prints_and_writes_latex():
    names = invoke("derive").split()
    assert "ddim" in names
    assert json.loads(invoke("derive", "--json")) == names
    assert len(invoke("derive", "ddim")) > 100
    assert "\\" in invoke("derive", "ddim", "--latex")
    assert json.loads(invoke("derive", "ddim", "--json"))["equations"]


def test_order_measures():
    data = json.loads(invoke("order", "tab1", "--json"))
    assert abs(data["slope"] - 2) < 0.15
    assert data["declared"] == 2
    text = invoke("order", "tab3", "--steps", "40,80,160", "--start", "exact")
    assert "declared 4" in text
    assert "160 steps" in text
    flow = json.loads(
        invoke("order", "ddim", "--process", "RectifiedFlow", "--t-start", "0.6", "--t-end", "0.2", "--json")
    )
    assert np.isclose(flow["slope"], 1, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tableau", "tab33"), "name='tab33' is unknown; nearest: tab3"),
        (("tableau", "tab3", "--steps", "0"), "steps=0 must be an integer >= 1"),
        (("tableau", "tab3", "--kind", "t"), "kind='t' is unknown"),
        (("tableau", "tab3", "--t-start", "2"), "t_start=2.0 is outside"),
        (("tableau", "tab3", "--process", "VPLiner"), "process='VPLiner' is unknown; nearest: VPLinear"),
        (("tableau", "tab3", "--process", "VPLinear:beta=1"), "beta"),
        (("tableau", "tab3", "--process", "VPLinear:beta_min"), "must look like"),
        (("tableau", "tab3", "--process", "EDM:sigma_min=-1"), "sigma_min=-1.0 must be a positive"),
        (("derive", "ddimm"), "is unknown; nearest: ddim"),
        (("order", "tab3", "--steps", "a,b"), "must be integers"),
        (("order", "tab3", "--steps", "10,20"), "at least 3"),
        (("nonsense",), "No such command"),
    ],
)
def test_errors_are_sentences_not_tracebacks(arguments, message):
    output = " ".join(invoke(*arguments, code=2).replace("│", " ").split())
    assert message in output
    assert "Traceback" not in output


def test_version_and_help():
    assert da.__version__ in invoke("--version")
    for command in ("solvers", "steppers", "tableau", "derive", "order"):
        assert command in invoke("--help")


# -- samplers of one's own ------------------------------------------------------------------------
OWN = """
import deis_analysis as da

def build(process, ts):
    return da.adams(process, ts, degree=1)

def number(process, ts):
    return 3

if "own_ddim" not in da.SOLVERS:
    da.register("own_ddim", alias="ddim", source="this file")
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own_samplers.py"
    file.write_text(OWN)
    yield file
    da.SOLVERS.pop("own_ddim", None)


def test_a_sampler_in_a_file(own):
    result = CliRunner().invoke(main, ["order", f"{own}:build", "--steps", "40,80,160,320"])
    assert result.exit_code == 0, result.output
    assert re.search(r"order (1\.9|2\.0)\d\d .* declared nothing", result.output)
    result = CliRunner().invoke(main, ["tableau", f"{own}:build", "--steps", "4", "--json"])
    table = da.Tableau.from_json(result.output)
    assert da.distance(table, da.build("tab1", da.VPLinear(), da.grid(da.VPLinear(), 4))) < 1e-12


def test_a_file_that_registers(own):
    result = CliRunner().invoke(main, ["tableau", "own_ddim", "--steps", "3", "--import", str(own)])
    assert result.exit_code == 0, result.output
    assert "own_ddim" in da.SOLVERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tableau", "nothing.py:build"], "there is no file"),
        (["tableau", "OWN:nothing"], "has no function 'nothing'"),
        (["tableau", "ddim", "--import", "nothing.py"], "there is no file"),
        (["order", "tab33"], "tab33"),
    ],
)
def test_what_is_wrong_with_ones_own(own, arguments, message):
    result = CliRunner().invoke(main, [text.replace("OWN", str(own)) for text in arguments])
    assert result.exit_code == 2
    assert message in result.output
