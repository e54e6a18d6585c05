"""Posteriors: the conditioned mixture against numerical integration, the moment closure against the exact posterior."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, trapezoid
from scipy.stats import multivariate_normal, norm
from strategies import mixtures, processes

import deis_analysis as da
from deis_analysis.problems.posterior import condition, moment_closure

VP = da.VPLinear()
COVARIANCE = np.array([[1.0, 0.6, 0.1], [0.6, 0.8, -0.2], [0.1, -0.2, 0.5]])
PRIOR = da.GaussianMixture([1.0], [[0.5, -0.3, 0.2]], [COVARIANCE])
A, Y, R = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]]), np.array([0.9, -0.4]), np.array([[0.3, 0.1], [0.1, 0.4]])


def textbook(mean, covariance, a, y, r):
    """Information form: (C⁻¹ + Aᵀ R⁻¹ A)⁻¹."""
    precision = np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision + a.T @ np.linalg.inv(r) @ a)
    return posterior @ (precision @ mean + a.T @ np.linalg.inv(r) @ y), posterior


# -- the exact posterior --------------------------------------------------------------------------
@given(
    mixtures(),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.1, 2),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_bayes_pointwise(mix, a, y, r, points):
    """Posterior density over prior × likelihood is one constant, the evidence."""
    x = np.array(points)
    post = condition(mix, a, y, r)
    evidence = np.log(sum(w * norm.pdf(y, a * m, np.sqrt(a * a * c + r)) for w, m, c in
                          zip(mix.weights, mix.means, mix.covariances, strict=True)))  # fmt: skip
    expected = mix.log_prob(x) + norm.logpdf(y, a * x, np.sqrt(r)) - evidence
    assert np.allclose(post.log_prob(x), expected, rtol=1e-8, atol=1e-8)


def test_one_dimension_by_quadrature():
    mix = da.GaussianMixture([0.3, 0.7], [-1.0, 0.8], [0.2, 0.1])
    post = condition(mix, [[1.5]], [0.4], [[0.3]])

    def joint(x):
        return float(np.exp(mix.log_prob(np.array(x)))) * norm.pdf(0.4, 1.5 * x, np.sqrt(0.3))

    total = quad(joint, -6, 6, epsabs=1e-13, limit=200)[0]
    moments = [quad(lambda x, k=k: x**k * joint(x), -6, 6, epsabs=1e-13, limit=200)[0] / total for k in (1, 2)]
    mean = post.weights @ post.means
    assert mean == pytest.approx(moments[0], rel=1e-9)
    assert post.weights @ (post.covariances + post.means**2) == pytest.approx(moments[1], rel=1e-9)
    for cut in (-0.5, 0.3):
        cdf = float(post.weights @ norm.cdf((cut - post.means) / np.sqrt(post.covariances)))
        assert quad(joint, -6, cut, epsabs=1e-13, limit=200)[0] / total == pytest.approx(cdf, rel=1e-8)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_two_dimensions_by_quadrature(form):
    covariances = {
        "isotropic": [0.3, 0.2],
        "diagonal": [[0.3, 0.5], [0.2, 0.4]],
        "full": [[[0.3, 0.1], [0.1, 0.5]], [[0.4, -0.2], [-0.2, 0.3]]],
    }[form]
    mix = da.GaussianMixture([0.4, 0.6], [[-0.8, 0.3], [0.7, -0.2]], covariances)
    a = np.array([[1.0, -0.7]])
    post = condition(mix, a, 0.5, 0.25)

    axis = np.linspace(-6, 6, 481)  # the trapezoidal rule is exact to rounding for such a density
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    joint = np.exp(mix.log_prob(x)) * norm.pdf(0.5, x @ a[0], 0.5)

    def average(values):
        return trapezoid(trapezoid(values * joint, axis), axis)

    total = average(1.0)
    second = post.covariances + post.means[:, :, None] * post.means[:, None, :]
    for i in (0, 1):
        assert post.weights @ post.means[:, i] == pytest.approx(average(x[..., i]) / total, abs=1e-10)
        for j in (0, 1):
            expected = average(x[..., i] * x[..., j]) / total
            assert post.weights @ second[:, i, j] == pytest.approx(expected, abs=1e-10)
    assert np.allclose(np.exp(post.log_prob(x)), joint / total, atol=1e-10)


def test_gaussian_by_the_information_form_and_two_measurements_in_turn():
    mean, covariance = textbook(PRIOR.means[0], COVARIANCE, A, Y, R)
    post = condition(PRIOR, A, Y, R)
    assert np.allclose(post.means[0], mean, rtol=1e-12)
    assert np.allclose(post.covariances[0], covariance, rtol=1e-12)
    free = np.array([0.3, 0.4])
    turn = condition(condition(PRIOR, A[:1], Y[:1], free[0]), A[1:], Y[1:], free[1])
    once = condition(PRIOR, A, Y, free)
    assert np.allclose(turn.means, once.means, rtol=1e-12)
    assert np.allclose(turn.covariances, once.covariances, rtol=1e-12)


def test_a_far_measurement_does_not_lose_the_weights():
    post = condition(da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1]), 1.0, 60.0, 0.01)
    assert post.weights.sum() == pytest.approx(1.0)
    assert post.weights[1] == pytest.approx(1.0)


@given(processes(), mixtures(), st.floats(0, 0.9))
def test_posterior_score_at_every_level_is_a_measured_conditional_mean(process, mix, share):
    """E[x₀ | x_t, y] of the conditioned mixture: both observations of x₀ are Gaussian, so condition twice instead."""
    start, end = process.sampling_range
    t = end + (start - end) * (1 - share)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x_t = alpha * 0.4 + sigma * 0.8
    post = condition(mix, 1.2, 0.5, 0.3)
    both = condition(post, alpha, x_t, sigma**2)
    found = post.x0(process)(np.array([x_t]), t)[0]
    assert found == pytest.approx(float(both.weights @ both.means), rel=1e-6, abs=1e-8)


# -- the weighted-particle scheme -----------------------------------------------------------------
ENDS = {
    "vp": (VP, 1.0, 0.0),
    "edm": (da.EDM(1e-6, 3.0), 3.0, 1e-6),
    "flow": (da.RectifiedFlow(), 0.95, 0.0),
    "subvp": (da.SubVP(), 1.0, 1e-7),
}


@pytest.mark.parametrize("v_squared", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ENDS)
def test_closure_ends_at_the_posterior_for_every_noise(name, v_squared):
    process, start, end = ENDS[name]
    mean, covariance = textbook(PRIOR.means[0], COVARIANCE, A, Y, R)
    found = moment_closure(PRIOR, process, A, Y, R, v_squared, start, end)
    assert np.allclose(found[0], mean, atol=1e-7)
    assert np.allclose(found[1], covariance, atol=1e-7)


@pytest.mark.parametrize("v_squared", [0.0, 0.5, 1.0, 2.0])
def test_closure_in_one_dimension_by_hand(v_squared):
    """x₀ ∼ N(0.4, 0.7), 1.3 x₀ + N(0, 0.5) = 0.9: precisions 1/0.7 and 1.69/0.5 add."""
    variance = 1 / (1 / 0.7 + 1.69 / 0.5)
    mean = variance * (0.4 / 0.7 + 1.3 * 0.9 / 0.5)
    found = moment_closure(da.GaussianMixture([1.0], [0.4], [0.7]), VP, 1.3, 0.9, 0.5, v_squared, 1.0, 0.0)
    assert np.shape(found[0]) == np.shape(found[1]) == ()
    assert found == pytest.approx((mean, variance), abs=1e-9)


@given(st.floats(0, 3), st.floats(0.05, 0.9), st.floats(-1, 1), st.floats(0.2, 2), st.floats(0.2, 2))
def test_on_the_way_the_law_is_the_marginal_times_the_likelihood(v_squared, t, y, c, r):
    """q_t ∝ p_t e^{-Φ}; it is not the diffused posterior, which it meets at σ = 0."""
    found = moment_closure(da.GaussianMixture([1.0], [0.4], [c]), VP, 1.3, y, r, v_squared, 1.0, t, rtol=1e-8)
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    p_t = alpha**2 * c + sigma**2
    variance = 1 / (1 / p_t + 1.69 / r)
    assert found == pytest.approx((variance * (alpha * 0.4 / p_t + 1.3 * y / r), variance), rel=1e-6, abs=1e-7)


def test_q_is_not_the_diffused_posterior():
    gaussian = da.GaussianMixture([1.0], [0.4], [0.7])
    post = condition(gaussian, 1.3, 0.9, 0.5)
    gaps = []
    for t in (0.3, 0.03, 0.003):
        diffused = float(VP.alpha(t)) ** 2 * post.covariances[0] + float(VP.sigma(t)) ** 2
        gaps.append(abs(moment_closure(gaussian, VP, 1.3, 0.9, 0.5, 1.0, 1.0, t)[1] - diffused))
    assert gaps[0] > 0.05
    assert gaps[2] < 0.02 * gaps[0]


def test_bayes_in_three_dimensions_pointwise():
    mix = da.GaussianMixture([0.3, 0.7], [[0.5, -0.3, 0.2], [-1.0, 0.0, 0.4]], [COVARIANCE, 0.5 * np.eye(3)])
    x = np.random.default_rng(0).standard_normal((5, 3))
    ratio = condition(mix, A, Y, R).log_prob(x) - mix.log_prob(x)
    likelihood = multivariate_normal(np.zeros(2), R).logpdf(Y - x @ A.T)
    assert np.ptp(ratio - likelihood) < 1e-10


ONE = da.GaussianMixture([1.0], [0.0], [1.0])
TWO = da.GaussianMixture([0.5, 0.5], [0.0, 1.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: condition("mix", 1, 0, 1), "mix='mix' must be a GaussianMixture"),
        (lambda: condition(PRIOR, np.ones((2, 2)), Y, R), r"A has shape \(2, 2\)"),
        (lambda: condition(PRIOR, A, np.ones(3), R), r"y has shape \(3,\)"),
        (lambda: condition(PRIOR, A, Y, np.ones((3, 3))), "noise_covariance has shape"),
        (lambda: condition(PRIOR, A, Y, np.array([[1.0, 2.0], [2.0, 1.0]])), "positive definite"),
        (lambda: condition(PRIOR, A, Y, np.array([[1.0, 0.3], [0.2, 1.0]])), "symmetric"),
        (lambda: condition(PRIOR, A, Y, 0.0), "positive definite"),
        (lambda: condition(PRIOR, A, [np.nan, 0], R), "y=.* must be finite"),
        (lambda: moment_closure(TWO, VP, 1, 0, 1, 0.0, 1.0, 0.0), "one component"),
        (lambda: moment_closure(ONE, VP, 1, 0, 1, -1.0, 1.0, 0.0), "v_squared=-1.0"),
        (lambda: moment_closure(ONE, VP, 1, 0, 1, 0.0, 0.0, 1.0), "t_end=1.0 must be below"),
        (lambda: moment_closure(ONE, VP, 1, 0, 1, 0.0, 2.0, 1.0), "outside"),
        (lambda: moment_closure(ONE, da.RectifiedFlow(), 1, 0, 1, 0.0, 1.0, 0.0), "t_start=1.0: drift or diffusion"),
        (lambda: moment_closure(ONE, da.MeanReverting(VP, 1.0), 1, 0, 1, 0.0, 1.0, 0.0), "reverts to a mean"),
        (lambda: moment_closure(ONE, VP, 1, 0, 1, 0.0, 1.0, 0.0, rtol=0.0), "rtol=0.0"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
