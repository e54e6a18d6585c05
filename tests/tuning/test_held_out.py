"""What a tuning reports: causes that sum to the error, distances of sets, times in other numbers, honest bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import energy_distance

import deis_analysis as da
from deis_analysis.tuning import target_of, tune
from deis_analysis.tuning.causes import causes
from deis_analysis.tuning.held_out import consistency, resampled
from deis_analysis.tuning.judged import Clouds

VP = da.VPLinear()
GAUSSIAN = da.GaussianMixture([1.0], np.zeros((1, 2)), np.array([[0.3, 0.02]]))


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


# -- causes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "kind"), [("tab3", "t2"), ("dpmpp_2m", "logrho"), ("euler", "t1"), ("ipndm3", "t3")])
def test_causes_are_those_of_the_error_budget(name, kind):
    target = target_of("mixture")
    x, ts = target.noise(16, 3), da.grid(VP, 6, kind)
    found = causes(target, {"it": (da.build(name, VP, ts), ts)}, x)["it"]
    budget = da.error_budget(
        None, target.exact, name, 6, process=VP, x_T=x, kind=kind, starting_steps=0,
        frozen=da.build(name, VP, ts).prediction,
    )  # fmt: skip
    norms, shares = budget.norms(), budget.shares()
    assert ("linear part" in found["rms"]) == (name == "euler")
    for term, value in found["rms"].items():
        assert np.isclose(value, norms[term], rtol=1e-7)
        assert np.isclose(found["share"][term], shares[term], rtol=1e-6)
    assert np.isclose(sum(found["share"].values()), 1.0)


def test_a_slip_in_a_weight_is_the_linear_part():
    """Of one Gaussian of variance 0 nothing but the slip is an error: 1 % of the last step, in ε = x/σ."""
    point = da.GaussianMixture([1.0], np.zeros((1, 2)), np.full((1, 2), 1e-14))
    target = target_of(point)
    ts = da.grid(VP, 4)
    table = da.build("ddim", VP, ts)
    outputs = table.outputs.copy()
    outputs[-1] *= 1.01
    x = target.noise(8, 0)
    found = causes(target, {"slip": (table.changed(outputs=outputs), ts)}, x)["slip"]
    step = VP.sigma(ts[-1]) - VP.alpha(ts[-1]) / VP.alpha(ts[-2]) * VP.sigma(ts[-2])
    assert np.isclose(found["rms"]["linear part"], abs(0.01 * step) * rms(x) / VP.sigma(1.0), rtol=1e-5)
    assert abs(found["share"]["linear part"] - 1.0) < 1e-5


def test_told_times_are_asked_and_states_stay_at_their_levels():
    """Told a little later at one call, DDIM on a Gaussian: the terms still sum to what the run is off."""
    target = target_of(GAUSSIAN)
    ts = da.grid(VP, 5)
    table = da.build("ddim", VP, ts)
    told = table.changed(times=ts + np.array([0, 0, 0.01, 0, 0, 0]))
    x = target.noise(16, 1)
    found = causes(target, {"told": (told, ts), "plain": (table, ts)}, x)
    truth = target.exact.flow(VP, x, 1.0, 0.001)
    for name, made in (("told", told), ("plain", table)):
        gap = da.run(made, target.model, x) - truth
        total = sum(share for share in found[name]["share"].values())
        assert np.isclose(total, 1.0)
        assert rms(gap) <= sum(found[name]["rms"].values())
    assert "linear part" not in found["told"]["rms"]
    assert found["told"]["rms"]["extrapolation"] != found["plain"]["rms"]["extrapolation"]


def test_without_a_closed_form_the_flow_is_run_finely():
    exact, plain = target_of(GAUSSIAN), target_of(GAUSSIAN.eps(VP), shape=(2,))
    ts = da.grid(VP, 5)
    table, x = da.build("tab2", VP, ts), exact.noise(16, 2)
    one, two = (causes(t, {"it": (table, ts)}, x)["it"]["rms"] for t in (exact, plain))
    assert one.keys() == two.keys()
    for term in one:
        assert np.isclose(one[term], two[term], rtol=3e-3)


# -- sets -----------------------------------------------------------------------------------------
@given(seed=st.integers(0, 10**6), n=st.integers(3, 20), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_the_distance_of_sets_is_scipys(seed, n, scale):
    rng = np.random.default_rng(seed)
    truth, ends = scale * rng.standard_normal((2, n, 1))
    clouds = Clouds(truth)
    assert np.isclose(
        clouds.squared(ends), energy_distance(ends[:, 0], truth[:, 0]) ** 2, rtol=1e-9, atol=1e-12 * scale
    )
    assert np.isclose(clouds.squared(truth), 0.0, atol=1e-12 * scale)


@given(seed=st.integers(0, 10**6), n=st.integers(3, 8), d=st.integers(1, 4))
def test_its_slope_is_a_difference_quotient(seed, n, d):
    rng = np.random.default_rng(seed)
    truth, ends = rng.standard_normal((2, n, d))
    clouds, way = Clouds(truth), rng.standard_normal((n, d))
    h = 1e-6
    quotient = (clouds.squared(ends + h * way) - clouds.squared(ends - h * way)) / (2 * h)
    scale = n / 2 * clouds.parts(ends)[0].mean()
    slope, curvature = clouds.slope(ends)
    np.testing.assert_allclose(np.sum(slope * way), scale * quotient, rtol=1e-4, atol=1e-6)
    for size in (1e-3, 1e-1, 1.0):  # the quadratic lies above
        above = np.sum(slope * size * way) + 0.5 * np.sum(curvature[:, None] * (size * way) ** 2)
        if clouds.parts(ends)[0].min() > 0.02 * clouds.parts(ends)[0].mean():
            assert scale * (clouds.squared(ends + size * way) - clouds.squared(ends)) <= above + 1e-9


def test_the_band_of_their_ratio():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((64, 3))
    near, far = truth + 0.05 * rng.standard_normal((64, 3)), truth + 0.2 * rng.standard_normal((64, 3))
    clouds = Clouds(truth)
    ratio, low, high = clouds.ratio_band(near, far)
    assert low < ratio < high < 1
    assert np.isclose(ratio, clouds.squared(near) / clouds.squared(far))
    assert clouds.ratio_band(far, far)[1:] == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_band_is_around_the_ratio_where_samples_are_few_and_wide(seed):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((32, 32))
    near, far = truth + 0.1 * rng.standard_normal((32, 32)), 1.3 * truth
    ratio, low, high = Clouds(truth).ratio_band(near, far)
    assert low < ratio < high


@pytest.mark.parametrize("shift", [0.1, 10.0])
def test_resamples_are_around_the_distance(shift):
    truth = np.random.default_rng(0).standard_normal((12, 2))
    whole, drawn = Clouds(truth).resampled(truth + shift * np.sin(np.arange(12.0))[:, None])
    assert np.isclose(whole, Clouds(truth).squared(truth + shift * np.sin(np.arange(12.0))[:, None]))
    assert abs(drawn.mean() - whole) < 4 * drawn.std() / np.sqrt(drawn.size)


def test_the_energy_distance_is_another_optimum():
    """On the training noises, each objective is better in its own measure than the other."""
    found = {
        what: tune("mixture", 3, samples=96, held_out=16, rounds=24, objective=what, start="tab2", grid="t1", degree=-1)
        for what in ("rms", "energy")
    }
    target = target_of("mixture")
    x = target.noise(96 + 24, 0)[:96]
    truth = target.exact.flow(VP, x, 1.0, 0.001)
    ends = {what: da.run(tuned.tableau, target.model, x) for what, tuned in found.items()}
    clouds = Clouds(truth)
    assert clouds.squared(ends["energy"]) < clouds.squared(ends["rms"])
    assert rms(ends["rms"] - truth) < rms(ends["energy"] - truth)
    assert "energy distance" in found["energy"].verdict()


# -- times in other numbers -----------------------------------------------------------------------
@given(steps=st.integers(1, 12), other=st.integers(1, 30))
def test_even_levels_stay_even(steps, other):
    found = resampled(VP, da.grid(VP, steps, "logrho"), other)
    np.testing.assert_allclose(VP.lam(found), VP.lam(da.grid(VP, other, "logrho")), atol=1e-8)


@given(steps=st.integers(2, 12), kind=st.sampled_from(["t2", "rho7", "t1"]))
def test_in_the_same_number_they_are_the_times(steps, kind):
    ts = da.grid(VP, steps, kind)
    np.testing.assert_allclose(resampled(VP, ts, steps), ts, rtol=1e-9)
    twice = resampled(VP, ts, 2 * steps)
    assert np.all(np.diff(twice) < 0)
    np.testing.assert_allclose(twice[::2], ts, rtol=1e-9)


def test_the_order_of_the_times_and_the_sampler_at_other_steps():
    """Of DDIM, on times that are tuned a little: halved with twice the steps, nearly."""
    found = tune(GAUSSIAN, 20, samples=32, held_out=16, rounds=1, start="ddim", grid="t2", tune_told=False,
                 tune_coefficients=False)  # fmt: skip
    order = found.report["order"]
    assert order["steps"] == [20, 40]
    assert abs(order["order"] - 1.0) < 0.15
    x = found.target.noise(16, 1_000_003)
    truth = found.target.exact.flow(VP, x, 1.0, 0.001)
    if found.kept:
        for steps, error in zip(order["steps"], order["rms"], strict=True):
            assert np.isclose(rms(da.run(found.at(steps), found.target.model, x) - truth), error)
    given = tune(GAUSSIAN, 4, samples=32, held_out=16, rounds=1, start=da.SOLVERS["ddim"].build, grid=da.grid(VP, 4))
    assert given.report["order"] is None
    with pytest.raises(ValueError, match="steps=8: the sampler was given as one table"):
        given.at(8)


# -- honest ---------------------------------------------------------------------------------------
def test_better_by_the_middle_of_the_band_only_is_not_kept():
    found = tune("mixture", 4, samples=16, held_out=8, rounds=1, seed=0, start="ipndm3", grid="t2")
    ratio, low, high = found.report["ratio"]
    assert low < ratio < 1.0 < high
    assert not found.kept
    assert found.tableau is found.start
    np.testing.assert_allclose(found.times, da.grid(VP, 4))


def test_the_report_is_of_both_tables():
    found = tune("mixture", 4, samples=64, held_out=32, rounds=4, start="ipndm3", grid="t2")
    assert found.kept
    target, report = found.target, found.report
    x = target.noise(32, 1_000_003)
    truth = target.exact.flow(VP, x, 1.0, 0.001)
    for name, table in (("before", found.start), ("tuned", found.tableau)):
        ends = da.run(table, target.model, x)
        assert np.isclose(report[name]["rms"], rms(ends - truth))
        assert np.isclose(report[name]["energy"], Clouds(truth).squared(ends))
        assert np.isclose(sum(report["budget"][name]["share"].values()), 1.0)
    np.testing.assert_allclose(report["times"], found.times)
    told = found.tableau.times[list(found.tableau.evaluated)]
    np.testing.assert_allclose(report["told"], told)
    np.testing.assert_allclose(consistency(found.start, VP), 0.0, atol=1e-10)
