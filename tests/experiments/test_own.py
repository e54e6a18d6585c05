"""A sampler and a network of the user's own take part in the experiments."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import deis_analysis as da
from experiments.__main__ import main

FILE = """
import torch
import deis_analysis as da
from deis_analysis.networks import Convention, load

da.SOLVERS["own_tab1"] = da.SOLVERS["tab1"]

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return 0.7 * x + 0.1 * torch.tanh(self.mix(x))

def make():
    return load(Net(), process=da.VPLinear(), convention=Convention("eps", scale=1.0), shape=(1, 4, 4))

def number():
    return 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    before = dict(da.SOLVERS)
    path = tmp_path_factory.mktemp("own") / "own_things.py"
    path.write_text(FILE)
    yield path
    da.SOLVERS.clear()
    da.SOLVERS.update(before)


def call(*arguments):
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_an_own_sampler_on_an_own_network(own, tmp_path):
    given = (
        "appendix_time_grids",
        "--quick",
        "--model",
        f"{own}:make",
        "--import",
        own,
        "--solver",
        "own_tab1",
        "--out",
    )
    result = call(*given, tmp_path, "--solver", "tab1")
    assert result.exit_code == 0, result.output
    (csv,) = tmp_path.glob("*.csv")
    assert "make" in csv.name
    assert "own_tab1" in csv.name
    frame = pd.read_csv(csv)
    rows = frame[frame.rms.notna()].set_index("solver") if "rms" in frame else frame.set_index("solver")
    assert {"own_tab1", "tab1", "tab3"} <= set(rows.index)
    numbers = rows.select_dtypes(float)
    assert np.array_equal(numbers.loc["own_tab1"].to_numpy(), numbers.loc["tab1"].to_numpy(), equal_nan=True)
    config = json.loads(csv.with_suffix(".json").read_text())["config"]
    assert list(config["imports"]) == ["own_things.py"]
    assert call(*given, tmp_path, "--solver", "tab1").output.startswith("kept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("appendix_time_grids", "--solver", "nothing"), "solver='nothing' is not in the registry"),
        (("floors", "--solver", "tab1"), "--solver is not for floors"),
        (("appendix_time_grids", "--import", "nothing.py"), "'nothing.py' does not exist"),
    ],
)
def test_what_is_wrong_is_said(arguments, message, tmp_path):
    result = call(*arguments, "--quick", "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.output


def test_a_function_that_makes_no_network(own, tmp_path):
    result = call("appendix_time_grids", "--quick", "--model", f"{own}:number", "--out", tmp_path)
    assert result.exit_code == 1
    assert "must be a function without arguments that returns what networks.load returns" in result.output
