"""What every script reads its frame with, against answers by hand."""

import math

import numpy as np
import pandas as pd
import pytest

import deis_analysis as da
from experiments.core.frames import at, calls_for, span
from experiments.core.judging import error_row, ratio_row
from experiments.models.problems import Problem, product_mixture, remembering

FRAME = pd.DataFrame({"part": ["a", "a", "b"], "calls": [5, 10, 10], "rms": [1.0, 2.0, 3.0]})


def test_rows_are_those_that_meet_every_condition():
    assert list(at(FRAME, part="a", calls=10).rms) == [2.0]
    assert list(at(FRAME, calls=[5, 10], part=("a", "b")).rms) == [1.0, 2.0, 3.0]
    assert at(FRAME, part="c").empty
    assert len(at(FRAME)) == 3
    with pytest.raises(KeyError, match="model"):
        at(FRAME, model="digits")


@pytest.mark.parametrize(
    ("values", "text"), [([3.0, 1.0, 2.0], "1.0 to 3.0"), ([0.101, 0.102], "0.10"), ([0.5], "0.50")]
)
def test_a_span_is_from_the_least_to_the_largest(values, text):
    assert span(values) == text


def test_calls_for_an_error_are_interpolated_in_log_log():
    calls = np.array([5, 10, 20, 40])
    errors = 7.0 * calls**-2.0  # a straight line there
    assert calls_for(calls, errors, 7.0 / 14.0**2) == pytest.approx(14.0)
    assert calls_for(calls, errors, errors[2]) == pytest.approx(20.0)
    assert calls_for(calls, errors, errors[-1]) == pytest.approx(40.0)  # at the last one, not beyond
    assert calls_for(calls, errors, 1.0) == 5.0  # below it from the first on
    assert calls_for(calls, errors, 1e-9) == math.inf


def test_rows_of_errors_and_ratios_hold_their_own_value():
    squares = np.random.default_rng(0).exponential(size=400)
    row = error_row(4.0 * squares, 1)
    assert row["rms"] == pytest.approx(2.0 * math.sqrt(squares.mean()))
    assert row["low"] < row["rms"] < row["high"]
    assert ratio_row(4.0 * squares, squares, 1) == pytest.approx({"ratio": 2.0, "low": 2.0, "high": 2.0})


def test_a_ratio_is_infinite_where_no_sample_of_the_first_counts():
    squares, none = np.ones(8), np.full(8, math.nan)
    assert ratio_row(none, squares, 1) == {"ratio": math.inf, "low": math.inf, "high": math.inf}
    assert all(math.isnan(value) for value in ratio_row(squares, none, 1).values())


def test_a_problem_without_a_name_is_tried_on_its_own_span():
    process, mix = da.VPLinear(), product_mixture()
    x = mix.sample(50, 0, process, 1.0)
    problem = Problem(process, mix.eps(process), x, mix.flow(process, x, 1.0, 0.01), (1.0, 0.01))
    tried = list(problem.tried(["ddim", "rhork_4rk"], ["t2"], [3, 40]))
    assert [(row["solver"], row["calls"], row["nfe"]) for row, _ in tried] == [
        ("ddim", 3, 3), ("ddim", 40, 40), ("rhork_4rk", 40, 40)
    ]  # fmt: skip
    alone = da.sample("ddim", mix.eps(process), x, steps=40, grid="t2", t_end=0.01)
    np.testing.assert_allclose(tried[1][1], ((alone - problem.truth) ** 2).mean(axis=1), rtol=1e-9)
    assert tried[2][1].mean() < tried[1][1].mean() / 10


def test_a_problem_remembers_what_the_model_said_of_a_state():
    process, mix = da.VPLinear(), product_mixture()
    x, asked = mix.sample(8, 0, process, 1.0), []
    eps = mix.eps(process)

    def model(states, t):
        asked.append(t)
        return eps(states, t)

    problem = Problem(process, model, x, mix.flow(process, x, 1.0, 0.01), (1.0, 0.01))
    (_, alone), (_, second), (_, again) = problem.tried(["ddim", "tab1", "ddim"], ["t2"], [5])
    assert len(asked) == 5 + 3  # tab1 begins with a step of DDIM: two states are the same
    assert np.array_equal(alone, again)
    assert not np.allclose(alone, second)
    table = da.build("tab1", process, da.grid(process, 5, "t2", 1.0, 0.01))
    np.testing.assert_array_equal(second, ((da.run(table, mix.eps(process), x) - problem.truth) ** 2).mean(axis=1))


def test_what_is_remembered_is_told_apart_by_state_and_time_and_is_not_much():
    asked = []
    model = remembering(lambda x, t: asked.append(t) or x * t, most=2)
    x = np.ones((2, 1))
    for state, t in ((x, 1.0), (x, 2.0), (x, 1.0), (2 * x, 1.0), (x, 1.0), (x, 2.0)):
        assert np.array_equal(model(state, t), state * t)
    assert asked == [1.0, 2.0, 1.0, 2.0]  # of the two kept the one asked for longest ago goes
