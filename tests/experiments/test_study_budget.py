"""The figure of the budget and the measures of a score say what their data say."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from quick_runs import quick

import deis_analysis as da
from deis_analysis.networks import MLP
from experiments.core.frames import span
from experiments.models import score_defects, studies
from experiments.models.problems import noise, product_mixture
from experiments.networks import network_errors
from experiments.study import budget_of_errors

BUDGET = {**budget_of_errors.CONFIG, **budget_of_errors.QUICK}
SCORE = {**studies.BASE, **studies.BASE_QUICK, **network_errors.QUICK["score"]}


def defects(model: str, **changes) -> pd.DataFrame:
    config = SCORE | changes
    return pd.DataFrame(score_defects.rows_of(studies.study(model, config), config))


@pytest.fixture(scope="module")
def budget() -> pd.DataFrame:
    return quick(budget_of_errors)[0]


@pytest.fixture(scope="module")
def score() -> pd.DataFrame:
    return defects("mixture")


def test_the_total_is_the_measured_error(budget):
    process, mix, n = da.VPLinear(), product_mixture(), BUDGET["samples"]
    x = noise(n, 4, BUDGET["seed"])
    ideal = mix.flow(process, mix.from_prior(process, x, 1.0, 1.0), 1.0, 0.0)
    result = da.run(da.build("tab3", process, da.grid(process, 10, "t2", 1.0, 1e-3)), mix.eps(process), x)
    rows = budget[(budget.part == "term") & (budget.solver == "tab3") & (budget.nfe == 10)].set_index("what")
    rounding = float(rows.value["time rounding"] + rows.value["precision"])  # in the figure's run, not in this one
    assert abs(rows.value["total"] - np.sqrt(np.mean((result - ideal) ** 2))) <= rounding
    assert np.isclose(rows.share.drop("total").sum(), 1.0)
    start = mix.flow(process, x, 1.0, 0.0) - ideal
    assert np.isclose(rows.value["prior mismatch"], np.sqrt(np.mean(start**2)))


def test_the_budget_verdict_turns_with_the_data(budget):
    said, found = budget_of_errors.verdict(budget, BUDGET), budget_of_errors.largest(budget)
    assert (found.cause["mixture", "ddim"] == "extrapolation").all()
    assert found.cause["mixture", "tab3", 5] == "start-up"
    assert said.startswith(budget_of_errors.headline(budget, BUDGET))
    assert "; at 5 calls start-up; " in said
    assert "holds in 2 of 2, " in said
    ratio, slack = budget_of_errors.laws(budget)
    assert f"{span(ratio, 3)} times as far" in said
    assert (slack > -1e-9).all()
    forged = budget.copy()
    forged.loc[forged.what == "truncation", "value"] = 100.0
    forged.loc[forged.what == "total", "value"] = 50.0
    assert (budget_of_errors.largest(forged).cause == "truncation").all()
    said = budget_of_errors.verdict(forged, BUDGET)
    assert "tab3 at 10 calls on the exact 4-D mixture truncation is the largest cause of error, 2.00 of" in said
    assert "; at 5 calls truncation; " in said
    forged.loc[forged.what == "sampler_data", "value"] = 1e3
    assert "holds in 0 of 2, " in budget_of_errors.verdict(forged, BUDGET)
    forged.loc[forged.what == "paths", "value"] = 3 * forged.value[forged.what == "sampler_flow"].to_numpy()
    assert "paths being 3.00 times as far" in budget_of_errors.verdict(forged, BUDGET)


def test_an_exact_score_is_a_score(score):
    largest = score.groupby("measure").value.max()
    assert (largest[["fitting", "asymmetry", "loop"]] < 1e-14).all()
    assert 0 < largest["residual"] < 1e-4


def test_measures_of_a_wrong_score_are_those_worked_out():
    """s = −x/v − κKx on N(0, 1) data in the plane: every measure in closed form."""
    kappa, gauss = 0.3, da.GaussianMixture([1.0], np.zeros((1, 2)), np.ones((1, 2)))
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    plain = studies.study("gaussian", {**SCORE, "samples": 4})

    def eps(x, t):
        return gauss.eps(plain.process)(x, t) + kappa * float(plain.process.sigma(t)) * x @ turn.T

    wrong = studies.Study("gaussian", "", plain.process, eps, plain.x_T[:, :2], plain.data, gauss, True, plain.config)
    found = pd.DataFrame(score_defects.rows_of(wrong, {**SCORE, "times": [0.3]})).set_index("measure").value
    assert np.isclose(found["fitting"], kappa)  # |κKx| over |x|
    assert np.isclose(found["asymmetry"], np.sqrt(8) * kappa / np.sqrt(2 + 2 * kappa**2))
    sigma = float(plain.process.sigma(0.3))
    length = np.sqrt(1 + kappa**2) * np.sqrt(np.mean(np.sum(_points(wrong, 0.3) ** 2, axis=1)))
    assert np.isclose(found["loop"], 2 * np.pi * kappa * sigma**2 / (2 * np.pi * sigma * length), rtol=1e-6)
    assert np.isclose(
        found["residual"], 1.0, atol=1e-6
    )  # the score does not change in time, its right-hand side is not 0


def _points(problem, t):
    return problem.exact.sample(SCORE["points"], SCORE["seed"], problem.process, t)


def test_the_diagnostics_verdict_turns_with_the_data(score):
    config = {**network_errors.CONFIG, "models": ["mixture"]}
    frame = score.assign(part="derivative", model="mixture").reindex(columns=network_errors.COLUMNS)
    assert "asymmetric by up to 0;" in network_errors.verdict(frame, config)
    frame.loc[(frame.measure == "asymmetry") & (frame.t == 0.3), "value"] = 0.25
    frame.loc[(frame.measure == "fitting") & (frame.t == 0.9), "value"] = 0.125
    frame.loc[(frame.measure == "residual") & (frame.t == 0.9), "value"] = 0.75
    assert network_errors.verdict(frame, config) == (
        "Jacobians are asymmetric by up to 0.25; Fokker–Planck residuals are up to 0.75; errors of the score up to "
        "0.12."
    )
    assert network_errors.draw(frame, config).axes


def test_the_ideal_denoiser_is_a_score_without_fitting_error():
    frame = defects("digits", times=[0.3], data_points=4, loops=2)
    largest = frame.groupby("measure").value.max()
    assert set(largest.index) == {"asymmetry", "loop", "residual"}
    assert (largest[["asymmetry", "loop"]] < 1e-12).all()
    assert 0 < largest["residual"] < 1e-4


def test_points_of_data_follow_the_noised_smoothed_data():
    """Mean and covariance in closed form; 20,000 draws give each diagonal entry within 1 %, one σ."""
    config = {**SCORE, "std": 0.3, "data_points": 20_000, "samples": 2}
    problem, t = studies.study("digits", config), 0.2
    alpha, sigma = float(problem.process.alpha(t)), float(problem.process.sigma(t))
    x = np.asarray(score_defects.points(problem, t, config))
    covariance = alpha**2 * (np.cov(problem.data.T) + 0.09 * np.eye(64)) + sigma**2 * np.eye(64)
    assert np.allclose(x.mean(axis=0), alpha * problem.data.mean(axis=0), rtol=0, atol=0.05)
    assert np.allclose(np.diag(np.cov(x.T)), np.diag(covariance), rtol=0.05, atol=0)


def test_precision_of_a_network_is_that_of_float32_weights_and_states():
    """DDIM by hand: once with the network, once with a float32 copy that gets float32 states."""
    process, nfe = da.VPLinear(), 5
    mixture = studies.study("mixture", {**BUDGET, "samples": 6})
    net = MLP(4, process, 16, 2, seed=1).requires_grad_(False)
    problem = dataclasses.replace(mixture, model=net, trained=True)
    low, ts = copy.deepcopy(net).float(), da.grid(process, nfe, "t2", 1.0, 1e-3)

    def ddim(model):
        x = problem.x_T
        for t, s in itertools.pairwise(ts):
            ratio = float(process.alpha(s) / process.alpha(t))
            told = max(1e-3, round(float(t) * 1000) / 1000)
            x = ratio * x + (float(process.sigma(s)) - ratio * float(process.sigma(t))) * model(x, told)
        return x

    gap = ddim(lambda x, t: low(x.float(), t).double()) - ddim(net)
    cast_alone = ddim(lambda x, t: net(x.float(), t).double()) - ddim(net)
    budget = budget_of_errors.error_budget(problem, "ddim", nfe, BUDGET)
    expected = float((gap**2).mean() ** 0.5)
    assert budget.norms()["precision"] == pytest.approx(expected, rel=0.02)
    assert abs(float((cast_alone**2).mean() ** 0.5) / expected - 1) > 0.1
    assert next(net.parameters()).dtype == torch.float64
