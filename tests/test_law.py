"""The law of a sampler's output on Gaussian data, against sampling, closed forms and the exact process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONTINUOUS, DISTINCT, STOCHASTIC, grids, processes

import deis_analysis as da

VP = da.VPLinear()
TS = da.grid(VP, 12, "t2", 0.9, 0.01)
EXACT_AT_A_POINT = sorted(
    n
    for n in STOCHASTIC
    if da.SOLVERS[n].prediction == "x0" and da.SOLVERS[n].family not in ("score_sde", "ancestral", "analytic_dpm")
)


def test_law_is_that_of_many_runs():
    """4e5 runs of samplers with noise in stages, in history and in every prediction: mean and variance within 5 σ."""
    mean, variance, n = 0.7, 0.3, 400_000
    data = da.GaussianMixture([1.0], [mean], [variance])
    for name in (
        "sde_dpmpp_2m",
        "seeds_2",
        "edm_churn",
        "gdss_s4",
        "mrs_sde_v_2",
        "analytic_ddim",
        "dpmpp_2s_ancestral",
    ):
        table = da.build(name, VP, TS)
        x = data.sample(n, 0, VP, float(TS[0]))
        found = da.run(
            table,
            data.model(VP, table.prediction),
            x,
            noise=np.random.default_rng(1).standard_normal((table.noise.shape[1], n)),
        )
        law_mean, law_variance = da.output_law(table, VP, mean, variance)
        assert abs(found.mean() - law_mean) < 5 * np.sqrt(law_variance / n), name
        assert abs(found.var() - law_variance) < 5 * law_variance * np.sqrt(2 / n), name


@given(processes(CONTINUOUS), st.sampled_from(DISTINCT), st.floats(0.05, 2.0), st.floats(-2, 2), st.data())
def test_without_noise_the_law_is_the_transfer_function(process, name, variance, mean, data):
    table = da.build(name, process, data.draw(grids(process)))
    start = float(table.times[0])
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    factor = float(da.transfer(table, process, variance))
    found_mean, found = da.output_law(table, process, mean, variance)
    assert np.isclose(found, factor**2 * (alpha**2 * variance + sigma**2), rtol=1e-12, atol=1e-300)
    gaussian = da.GaussianMixture([1.0], [mean], [variance])
    centre = da.run(table, gaussian.model(process, table.prediction), np.array([alpha * mean]))[0]
    assert np.isclose(found_mean, centre, rtol=1e-8, atol=1e-9 * (1 + da.amplification(table)) * (1 + abs(mean)))


def test_covariances_of_any_shape_and_a_mean_to_revert_to():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3))
    covariance, mean = root @ root.T, rng.standard_normal(3)
    for process in (VP, da.MeanReverting(VP, np.array([1.0, -2.0, 0.5]), noise_scale=0.4)):
        table = da.build("sde_dpmpp_2m", process, TS)
        found_mean, found = da.output_law(table, process, mean, covariance)
        values, vectors = np.linalg.eigh(covariance)
        inner = da.MeanReverting(VP, 0.0, noise_scale=getattr(process, "noise_scale", 1.0))
        target = np.zeros(3) if process.mean is None else process.mean
        plain = da.build("sde_dpmpp_2m", inner, TS)
        axes = [da.output_law(plain, inner, m, v) for m, v in zip(vectors.T @ (mean - target), values, strict=True)]
        assert np.allclose(found_mean, vectors @ np.array([a[0] for a in axes]) + target, atol=1e-12)
        assert np.allclose(vectors.T @ found @ vectors, np.diag([a[1] for a in axes]), atol=1e-12)
    assert da.output_law(table, process, mean, [0.1, 0.2, 0.3])[1].shape == (3,)
    m, v = da.output_law(da.build("ddim", VP, TS), VP, 0.5, 0.2)
    assert m.shape == v.shape == ()


def test_the_start_may_be_the_prior():
    table = da.build("ddim", VP, da.grid(VP, 10))
    factor = float(da.transfer(table, VP, 0.3))
    _, exact = da.output_law(table, VP, 0.0, 0.3)
    _, prior = da.output_law(table, VP, 0.0, 0.3, start=(0.0, 1.0))
    assert np.isclose(prior, factor**2)
    assert np.isclose(exact, factor**2 * (0.3 * float(VP.alpha(1)) ** 2 + float(VP.sigma(1)) ** 2))


@pytest.mark.parametrize("name", EXACT_AT_A_POINT)
def test_samplers_in_x0_are_exact_for_data_at_a_point(name):
    """There x₀ is constant, so a mean that is exact on constants and a noise with the right variance give the law."""
    for process in (VP, da.VPCosine(), da.VE()):
        table = da.build(name, process, da.grid(process, 6))
        mean, variance = da.output_law(table, process, 1.3, 0.0)
        last = float(table.times[-1])
        assert np.isclose(variance, float(process.sigma(last)) ** 2, rtol=1e-9)
        assert np.isclose(mean, 1.3 * float(process.alpha(last)), rtol=1e-9)


def test_exact_at_a_point_is_a_property_that_can_fail():
    for name in ("ddpm_large", "euler_maruyama", "sde_dpm_1", "seeds_2", "gdss_s4"):
        table = da.build(name, VP, da.grid(VP, 6))
        variance = float(da.output_law(table, VP, 1.3, 0.0)[1])
        assert abs(variance / float(VP.sigma(table.times[-1])) ** 2 - 1) > 0.1, name
    for eta in (0.0, 0.4, 1.0):  # every η keeps it
        table = da.ddim_eta(VP, da.grid(VP, 6), eta)
        assert np.isclose(da.output_law(table, VP, 1.3, 0.0)[1], float(VP.sigma(1e-3)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("variance", [0.2, 0.9])
def test_analytic_dpm_has_the_exact_variance_on_isotropic_gaussians(variance):
    """With the true moments Γ = σ²/(α²v + σ²) each step has the exact conditional law: any number of steps is exact."""
    moments = lambda t: float(VP.sigma(t) ** 2 / (VP.alpha(t) ** 2 * variance + VP.sigma(t) ** 2))  # noqa: E731
    exact = float(VP.alpha(TS[-1])) ** 2 * variance + float(VP.sigma(TS[-1])) ** 2
    for eta in (0.0, 0.5, 1.0):
        table = da.analytic_dpm(VP, TS, moments, eta)
        assert np.isclose(da.output_law(table, VP, 0.0, variance)[1], exact, rtol=1e-11)
        plain = da.ddim_eta(VP, TS, eta)
        assert not np.isclose(da.output_law(plain, VP, 0.0, variance)[1], exact, rtol=1e-3)
    data = da.GaussianMixture([1.0], [0.0], [variance])
    estimate = da.moment_estimate(data.eps(VP), TS, lambda t: data.sample(200_000, 0, VP, t))
    assert np.allclose(estimate, [moments(t) for t in TS[:-1]], rtol=0.02)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_from_the_exact_law_is_the_declared_one(name):
    """On other Gaussians than those of `measure`; the variance converges to the exact one."""
    row = da.SOLVERS[name]
    process, _, options = da.order_problem(row.home)
    found = da.weak_order(
        row.build, process, da.step_counts(row, "weak"), mean=[0.2, -0.4], variance=[0.15, 0.6], **options
    )
    assert abs(found.slope - row.order) <= 0.15, found
    assert found.errors[-1] < 5e-3
    strong = da.strong_order(row.build, process, (20, 40, 80), mean=0.3, variance=0.4, **options)
    assert abs(strong.slope - row.strong_order) <= 0.15, strong


def test_strong_distance_is_that_of_runs_on_one_brownian_path():
    data = da.GaussianMixture([1.0], [0.3], [0.4])
    n = 20_000
    x = data.sample(n, 0, VP, 0.4)
    path = da.BrownianPath((n,), 5)
    for name in ("sde_dpmpp_1", "seeds_2", "ddim_eta05"):
        tables = [da.build(name, VP, da.grid(VP, steps, "t2", 0.4, 0.1)) for steps in (3, 4)]
        a, b = (da.run(table, data.model(VP, table.prediction), x, path) for table in tables)
        found = float(da.strong_distance(*tables, VP, 0.3, 0.4)[0])
        assert np.isclose(np.sqrt(np.mean((a - b) ** 2)), found, rtol=0.04), name


def test_strong_order_on_a_mixture_by_sampling():
    """Not on Gaussians alone: 4,000 paths of a mixture, one Brownian path, grids of 8 to 64 steps."""
    mix = da.order_problem()[1]
    x, path = mix.sample(4000, 0, VP, 0.4), da.BrownianPath((4000,), 1)
    for name, order in (("sde_dpmpp_2m", 1), ("euler_maruyama", 1), ("g2rpo", 0.5)):
        ends = {}
        for steps in (8, 16, 32, 64):
            table = da.build(name, VP, da.grid(VP, steps, "t2", 0.4, 0.1))
            ends[steps] = da.run(table, mix.model(VP, table.prediction), x, path)
        gaps = [np.sqrt(np.mean((ends[n] - ends[2 * n]) ** 2)) for n in (8, 16, 32)]
        assert abs(np.log2(gaps[0] / gaps[2]) / 2 - order) < 0.25, (name, gaps)


def test_overlapping_intervals_are_refused():
    noise = [[0.0, 0.0], [1.0, 1.0]]
    table = da.Tableau([1.0, 0.5], [[0, 0], [1, 0]], np.zeros((2, 2)), noise=noise, intervals=[[3.0, 1.0], [2.0, 0.5]])
    with pytest.raises(ValueError, match="intervals of the table overlap"):
        da.strong_distance(table, table, VP, 0.0, 1.0)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (-1.0, "variance=.* must be finite and >= 0"),
        ([[1.0, 0.5], [0.2, 1.0]], "covariance must be symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "covariance has the negative eigenvalue -1"),
        (np.ones((2, 3)), r"covariance has shape \(2, 3\)"),
        ("wide", "covariance='wide' must be made of real numbers"),
    ],
)
def test_bad_input(covariance, message):
    with pytest.raises(ValueError, match=message):
        da.output_law(da.build("ddim", VP, TS), VP, 0.0, covariance)
