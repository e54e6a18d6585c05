"""The teleportation experiment: calls are counted right, and the verdict turns with the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import deis_analysis as da
from deis_analysis.problems.painters import gaussian_of, teleport
from experiments.core import style
from experiments.models.problems import digits, digits_problem
from experiments.study import teleportation

CONFIG = {**teleportation.CONFIG, **teleportation.QUICK}


@pytest.fixture(scope="module")
def frame():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shares = []
    yield teleportation.compute(CONFIG, shares.append)
    assert shares == sorted(shares)
    torch.set_num_threads(before)


def test_calls_needed_by_hand():
    errors, runs = [1.0, 0.1, 2.0, 0.001, 0.5], {"part": "run", "start": 1.0, "nfe": [5, 10, 10, 20, 30]}
    curve = teleportation.best_curves(pd.DataFrame({**runs, "rms": errors}), "rms")[1.0]
    assert dict(curve) == {5: 1.0, 10: 0.1, 20: 0.001, 30: 0.001}
    assert teleportation.calls_needed(curve, 0.1) == 10
    assert teleportation.calls_needed(curve, 0.01) == pytest.approx(15.0)
    assert teleportation.calls_needed(curve, 2.0) == 5
    assert teleportation.calls_needed(curve, 1e-4) == np.inf
    assert curve.asof(12) == 0.1
    better = curve / 10
    assert teleportation.calls_saved(curve, better, 0.1) == pytest.approx(5.0)
    assert teleportation.calls_saved(better, curve, 0.01) == 0.0


def test_a_row_is_the_table_from_the_closed_form(frame):
    problem = digits_problem(CONFIG)
    x = teleport(gaussian_of(digits(), CONFIG["floor"]), problem.process, problem.x_T, 1.0, 0.6)
    ts = da.grid(problem.process, 10, "rho7", 0.6, CONFIG["t_end"])
    gap = da.run(da.build("dpmpp_2m", problem.process, ts).in_terms_of(problem.process, "eps"), problem.model, x)
    square = ((gap - problem.reference) ** 2).mean(dim=1).numpy()
    row = frame[(frame.start == 0.6) & (frame.solver == "dpmpp_2m") & (frame.grid == "rho7") & (frame.nfe == 10)]
    assert row.rms.iloc[0] == pytest.approx(np.sqrt(square.mean()), rel=1e-9)
    assert row["median"].iloc[0] == pytest.approx(np.sqrt(np.median(square)), rel=1e-9)
    assert set(frame[frame.part == "run"].nfe) == set(CONFIG["calls"])


def test_bias_grows_with_the_skip(frame):
    bias = frame[frame.part == "bias"].set_index("start")["median"]
    assert bias[0.4] > 5 * bias[0.6]


def saved(frame):
    found = teleportation.findings(frame, CONFIG)
    return {(row.metric, row.calls): row.saved for row in found.itertuples()}


def test_verdict_turns_with_the_data(frame):
    csv = frame.copy()
    skipped = (csv.part == "run") & (csv.start < 1)
    csv.loc[skipped, ["rms", "median"]] = 1e3
    assert set(saved(csv).values()) == {0.0}
    begin = "A start at the Gaussian closed form saves"
    assert teleportation.verdict(csv, CONFIG).startswith(f"{begin} 0.0 of 10 calls on the median digit [")
    assert "by the RMS over all samples 0.0 [" in teleportation.verdict(csv, CONFIG)
    csv.loc[skipped, ["rms", "median"]] = 1e-9
    assert saved(csv)["rms", 10] == 5.0
    said = teleportation.verdict(csv, CONFIG)
    assert said.startswith(f"{begin} at least 5.0 of 10 calls on the median digit [")
    assert "by the RMS over all samples 5.0 [" in said
    assert teleportation.draw(csv, CONFIG).texts[0].get_text().replace("\n", " ") == said.split(" [")[0]
    csv.loc[csv.part == "bias", ["rms", "median"]] = 1e-12
    assert teleportation.verdict(csv, CONFIG).endswith("; from no start its bias exceeds the median error of 10 calls.")
    assert set(teleportation.findings(csv, CONFIG).biased_from) == {0.0}
    csv.loc[(csv.part == "bias") & (csv.start == 0.4), "rms"] = 1e3
    assert set(teleportation.findings(csv, CONFIG).query("metric == 'rms'").biased_from) == {0.4}
    csv.loc[(csv.part == "bias") & (csv.start == 0.4), "median"] = 1e3
    assert "; from t = 0.4 down its bias exceeds " in teleportation.verdict(csv, CONFIG)


def test_intervals_hold_the_estimate(frame):
    spread = frame[frame.part == "interval"].set_index(["metric", "calls"])
    assert len(spread) == 4
    assert (spread.low <= spread.high).all()
    for key, value in saved(frame).items():
        assert spread.low[key] <= value + 1e-9
        assert value <= spread.high[key] + 1e-9


def test_drawn_from_the_csv(frame, tmp_path):
    frame.to_csv(tmp_path / "f.csv", index=False)
    again = pd.read_csv(tmp_path / "f.csv")
    assert teleportation.verdict(again, CONFIG) == teleportation.verdict(frame, CONFIG)
    fig = teleportation.draw(again, CONFIG)
    assert len(fig.axes) == 3
    style.plt.close(fig)
