"""Multiplicative noise as VE in log x: against scipy's log-normal law, its quantiles, and the Itô form of the steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import lognorm, norm
from strategies import mixtures

import deis_analysis as da
from deis_analysis.problems.log_normal import MultiplicativeNoise

M, V = 0.3, 0.25  # of log X_0
ONE = da.GaussianMixture([1.0], [M], [V])
TWO = da.GaussianMixture([0.4, 0.6], [-0.7, 0.6], [0.1, 0.05])
NOISE = MultiplicativeNoise(mu=0.4, sigma=0.8)


def law(noise, t):
    """X_t = X_0 exp((μ − σ²/2) t + σ W_t), by scipy."""
    return lognorm(np.sqrt(V + noise.sigma**2 * t), scale=np.exp(M + (noise.mu - 0.5 * noise.sigma**2) * t))


noises = st.builds(MultiplicativeNoise, st.floats(-1, 1), st.floats(0.2, 1.5))


@given(noises, st.floats(0.01, 2.0))
def test_density_and_score_are_those_of_the_log_normal_law(noise, t):
    x, p = law(noise, t).ppf([0.05, 0.4, 0.9]), law(noise, t)
    assert np.allclose(noise.log_prob(ONE, x, t), p.logpdf(x), rtol=1e-9, atol=1e-9)
    step = 1e-4
    slope = (p.logpdf(x * np.exp(step)) - p.logpdf(x * np.exp(-step))) / (2 * step)  # d/dlog x = x d/dx
    assert np.allclose(noise.hyvarinen_score(ONE)(x, t), slope, rtol=1e-6, atol=1e-6)


def test_mean_grows_with_mu_whatever_sigma():
    """E X_t = E X_0 exp(μt): the Itô drift, by quadrature over a mixture's density."""
    for t in (0.0, 0.7):
        mean = quad(
            lambda x, t=t: x * np.exp(NOISE.log_prob(TWO, np.array(x), t)), 0, 200, points=[0.5, 2, 10], limit=400
        )
        start = sum(w * np.exp(m + 0.5 * v) for w, m, v in zip(TWO.weights, TWO.means, TWO.covariances, strict=True))
        assert mean[0] == pytest.approx(start * np.exp(NOISE.mu * t), rel=1e-7)


@given(noises, st.floats(0.3, 2.0))
def test_exact_flow_in_the_logarithm_keeps_the_quantiles_of_x(noise, t):
    end = 0.01 * t
    process, x = noise.process(end, t), law(noise, t).ppf([0.1, 0.5, 0.95])
    y = ONE.flow(process, noise.to_log(x, t), noise.level(t), noise.level(end))
    assert np.allclose(noise.from_log(y, end), law(noise, end).ppf([0.1, 0.5, 0.95]), rtol=1e-9)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("tab1", 2), ("rhork_3kutta", 3)])
def test_tables_sample_log_normal_data_with_their_order(solver, order):
    t, end, steps = 1.5, 0.02, np.array([20, 40, 80])
    process, share = NOISE.process(end, t), np.array([0.05, 0.3, 0.6, 0.9])
    x_T, exact = law(NOISE, t).ppf(share), law(NOISE, end).ppf(share)
    model, gaps = NOISE.log_model(NOISE.hyvarinen_score(ONE)), []
    for n in steps:
        ts = da.grid(process, int(n), "logrho", NOISE.level(t), NOISE.level(end))
        y = da.run(da.build(solver, process, ts), model, NOISE.to_log(x_T, t))
        gaps.append(np.abs(NOISE.from_log(y, end) - exact).max())
    assert -np.polyfit(np.log(steps), np.log(gaps), 1)[0] == pytest.approx(order, abs=0.15)


@given(noises, mixtures(), st.floats(0.05, 2.0))
def test_log_model_is_the_eps_model_of_the_logarithms(noise, mix, t):
    process, y = noise.process(0.01, 2.5), np.linspace(-2, 2, 5)
    rho = noise.level(t)
    assert noise.time(rho) == pytest.approx(t, rel=1e-14)
    found = noise.log_model(noise.hyvarinen_score(mix))(y, rho)
    assert np.allclose(found, mix.eps(process)(y, rho), rtol=1e-8, atol=1e-8)


def reverse_moments(noise, t, end, steps):
    """Mean and variance of log X after multiplicative steps on log-normal data: affine in (y, z)."""
    ts = np.linspace(t, end, steps + 1)
    mean, variance = np.log(law(noise, t).median()), V + noise.sigma**2 * t
    score = noise.hyvarinen_score(ONE)
    for now, after in itertools.pairwise(ts):
        x = np.exp(np.array([mean, mean + 1.0, mean]))
        log = np.log(noise.multiplicative_step(x, score(x, now), now - after, np.array([0.0, 0.0, 1.0])))
        mean, variance = log[0], (log[1] - log[0]) ** 2 * variance + (log[2] - log[0]) ** 2
    return mean, variance


def test_multiplicative_steps_reach_the_law_with_weak_order_one():
    """In the variance of log X; its mean is exact, as the increment vanishes at the mean but for the drift of time."""
    gaps, steps = [], np.array([160, 320, 640])
    for n in steps:
        mean, variance = reverse_moments(NOISE, 1.0, 0.1, int(n))
        assert mean == pytest.approx(np.log(law(NOISE, 0.1).median()), abs=1e-12)
        gaps.append(variance - V - NOISE.sigma**2 * 0.1)
    assert -np.polyfit(np.log(steps), np.log(np.abs(gaps)), 1)[0] == pytest.approx(1.0, abs=0.02)


@given(noises, st.floats(1e-3, 0.5), st.floats(-4, 4), st.floats(-5, 5), st.floats(0.01, 100))
def test_signs(noise, delta, h, z, x):
    x, h, z = np.array([x, -x]), np.array([h, h]), np.array([z, z])
    assert np.array_equal(np.sign(noise.multiplicative_step(x, h, delta, z)), [1.0, -1.0])
    assert np.allclose(noise.multiplicative_step(-x, h, delta, z), -noise.multiplicative_step(x, h, delta, z))


def test_euler_maruyama_on_x_leaves_the_positive_numbers():
    """With the probability that the increment gives it; the multiplicative step never does."""
    delta, x = 0.5, np.ones(200_000)
    h = NOISE.hyvarinen_score(ONE)(x, 1.0)
    z = np.random.default_rng(0).standard_normal(x.size)
    rate = -0.4 + 2 * 0.64 + 0.64 * h[0]
    expected = norm.cdf(-(1 + rate * delta) / (0.8 * np.sqrt(delta)))
    share = float(np.mean(NOISE.ambient_step(x, h, delta, z) < 0))
    assert expected > 0.01
    assert share == pytest.approx(expected, abs=5 * np.sqrt(expected / x.size))
    assert (NOISE.multiplicative_step(x, h, delta, z) > 0).all()


@pytest.mark.parametrize("z", [0.0, 1.3, -0.7])
def test_both_steps_are_one_sde(z):
    """Their difference is x (σ²/2)(z² − 1) Δ to leading order (Milstein's term), of mean zero: so it falls like Δ^1."""
    x, h, sizes, deltas = np.array([0.7]), np.array([-1.4]), [], np.array([1e-4, 1e-5, 1e-6])
    for d in deltas:
        gap = NOISE.multiplicative_step(x, h, d, np.array([z])) - NOISE.ambient_step(x, h, d, np.array([z]))
        sizes.append(float(gap[0]) / d)
    assert sizes[-1] == pytest.approx(0.7 * 0.32 * (z**2 - 1), abs=5e-3)


def test_products_and_tensors():
    product = da.ProductMixture([ONE, TWO])
    x = np.exp(product.sample(4, seed=1))
    apart = NOISE.log_prob(ONE, x[:, 0], 0.5) + NOISE.log_prob(TWO, x[:, 1], 0.5)
    assert np.allclose(NOISE.log_prob(product, x, 0.5), apart, rtol=1e-12)
    full = da.GaussianMixture([1.0], [[M, 0.1]], [[V, 0.4]])
    apart = NOISE.log_prob(ONE, x[:, 0], 0.5) + NOISE.log_prob(da.GaussianMixture([1.0], [0.1], [0.4]), x[:, 1], 0.5)
    assert np.allclose(NOISE.log_prob(full, x, 0.5), apart, rtol=1e-12)
    tensor = NOISE.hyvarinen_score(product)(torch.tensor(x), 0.5)
    assert np.allclose(tensor.numpy(), NOISE.hyvarinen_score(product)(x, 0.5), rtol=1e-12)
    assert np.allclose(NOISE.from_log(NOISE.to_log(torch.tensor(x), 0.3), 0.3).numpy(), x, rtol=1e-12)


def test_numpy_numbers_are_arrays():
    assert float(NOISE.from_log(NOISE.to_log(np.float64(1.7), 0.3), 0.3)) == pytest.approx(1.7, rel=1e-14)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MultiplicativeNoise(sigma=0.0), "sigma=0.0"),
        (lambda: MultiplicativeNoise(mu=np.inf), "mu=inf must be finite"),
        (lambda: NOISE.to_log(np.array([1.0, 0.0]), 0.5), "x must be positive"),
        (lambda: NOISE.to_log(np.array([np.nan]), 0.5), "x must be positive"),
        (lambda: NOISE.to_log([1.0, 2.0], 0.5), r"x=\[1.0, 2.0\] must be an array"),
        (lambda: NOISE.to_log(1.0, 0.5), "x=1.0 must be an array"),
        (lambda: NOISE.from_log([1.0], 0.5), r"y=\[1.0\] must be an array"),
        (lambda: NOISE.from_log(0.0, 0.5), "y=0.0 must be an array"),
        (lambda: NOISE.level(-1.0), "t=-1.0 must be"),
        (lambda: NOISE.process(0.0, 1.0), "sigma_min=0.0"),
        (lambda: NOISE.multiplicative_step(np.ones(1), np.ones(1), -0.1, np.ones(1)), "delta=-0.1"),
        (lambda: NOISE.hyvarinen_score("data"), "log_data='data' must be a GaussianMixture"),
        (lambda: NOISE.log_model(None), "score=None must be a function"),
        (lambda: NOISE.hyvarinen_score(ONE)(np.ones(2), 0.0), "sigma_min=0.0"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
