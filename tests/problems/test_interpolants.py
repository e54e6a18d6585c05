"""Interpolants: continuity and Fokker–Planck equations, quantiles, Gaussian moments, conditional means by sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm
from strategies import mixtures

import deis_analysis as da
from deis_analysis.problems.interpolants import PATHS_0, PATHS_1, SQUARED_LATENTS, Interpolant, Scale

LEFT = da.GaussianMixture([0.3, 0.7], [-1.0, 0.6], [0.2, 0.3])
RIGHT = da.GaussianMixture([0.5, 0.2, 0.3], [-0.5, 0.4, 1.4], [0.15, 0.3, 0.1])
PLANE_0 = da.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.2], [0.5, 0.0]], [[[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.1], [-0.1, 0.6]]]
)
PLANE_1 = da.GaussianMixture([0.5, 0.5], [[0.7, 1.0], [-0.3, -0.8]], [[0.3, 0.7], [0.5, 0.2]])
NAMES = st.tuples(*(st.sampled_from(sorted(known)) for known in (PATHS_0, PATHS_1, SQUARED_LATENTS)))
STEP = 1e-3


def slope(f, at, h=STEP):
    """Fourth-order central difference."""
    return (8 * (f(at + h) - f(at - h)) - (f(at + 2 * h) - f(at - 2 * h))) / (12 * h)


@given(
    mixtures(2), mixtures(2), NAMES, st.floats(0.05, 0.95), st.floats(-2, 2), st.floats(0, 1), st.sampled_from([1, -1])
)
def test_densities_obey_the_equations(mix0, mix1, names, t, x, epsilon, direction):
    """∂_t p + (p v)' = 0, s = (log p)', and ∂_t p + (p (v ± εs))' = ± ε p''."""
    inter = Interpolant(mix0, mix1, *names)

    def p(t, x):
        return float(np.exp(inter.log_prob(t, np.array([x]))[0]))

    def drift(x):
        move = inter.forward_drift if direction > 0 else inter.backward_drift
        return float(move(t, np.array([x]), epsilon)[0])

    rate = slope(lambda u: p(u, x), t)
    flux = slope(lambda u: p(t, u) * float(inter.velocity(t, np.array([u]))[0]), x)
    size = 1 + abs(rate) + abs(flux)
    assert abs(rate + flux) < 1e-6 * size
    assert inter.score(t, np.array([x]))[0] == pytest.approx(slope(lambda u: np.log(p(t, u)), x), abs=1e-6)
    second = slope(lambda u: slope(lambda w: p(t, w), u), x)
    stochastic = slope(lambda u: p(t, u) * drift(u), x)
    assert abs(rate + stochastic - direction * epsilon * second) < 1e-5 * (size + abs(stochastic))


@pytest.mark.parametrize("names", [("linear", "linear", "sqrt"), ("trigonometric", "trigonometric", "sin2")])
def test_continuity_in_the_plane(names):
    inter, x, t = Interpolant(PLANE_0, PLANE_1, *names), np.array([[0.3, -0.4], [-1.0, 0.5]]), 0.37

    def p(t, x):
        return np.exp(inter.log_prob(t, x))

    rate = slope(lambda u: p(u, x), t)
    divergence, gradient = np.zeros(2), np.zeros((2, 2))
    for i in (0, 1):
        e = np.eye(2)[i]
        divergence += slope(lambda h, e=e, i=i: p(t, x + h * e) * inter.velocity(t, x + h * e)[:, i], 0.0)
        gradient[:, i] = slope(lambda h, e=e: inter.log_prob(t, x + h * e), 0.0)
    assert np.abs(rate).min() > 1e-3
    assert np.allclose(rate + divergence, 0, atol=1e-9)
    assert np.allclose(inter.score(t, x), gradient, atol=1e-9)


def test_the_ends_are_the_two_mixtures():
    x = np.linspace(-2, 2, 7)
    for names in (("linear", "linear", "sqrt"), ("trigonometric", "trigonometric", "parabola")):
        inter = Interpolant(LEFT, RIGHT, *names)
        assert np.allclose(inter.log_prob(0.0, x), LEFT.log_prob(x), rtol=1e-12)
        assert np.allclose(inter.log_prob(1.0, x), RIGHT.log_prob(x), rtol=1e-12)
        assert np.isfinite(inter.velocity(0.0, x)).all()
        assert np.isfinite(inter.velocity(1.0, x)).all()


def cdf(inter, t, x):
    law = inter.marginal(t)
    return float(law.weights @ norm.cdf((x - law.means) / np.sqrt(law.covariances)))


@pytest.mark.parametrize("gamma", sorted(SQUARED_LATENTS))
@pytest.mark.parametrize("path", sorted(PATHS_0))
def test_the_ode_keeps_quantiles(path, gamma):
    inter = Interpolant(LEFT, RIGHT, path, path, gamma)
    shares = np.array([0.02, 0.3, 0.55, 0.9])
    starts = np.array([brentq(lambda x, q=q: cdf(inter, 0.0, x) - q, -9, 9, xtol=1e-13) for q in shares])
    found = solve_ivp(inter.velocity, (0, 1), starts, method="DOP853", rtol=1e-10, atol=1e-12)
    ends = [brentq(lambda x, q=q: cdf(inter, 1.0, x) - q, -9, 9, xtol=1e-13) for q in shares]
    assert np.allclose(found.y[:, -1], ends, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("forward", [True, False])
def test_gaussian_moments_of_both_sdes(epsilon, forward):
    """The drift is affine on Gaussians: dm = drift(m), dC = JC + CJᵀ + 2εI forward, − 2εI per falling dt."""
    g0 = da.GaussianMixture([1.0], [[0.5, -1.0]], [[[0.6, 0.2], [0.2, 0.4]]])
    g1 = da.GaussianMixture([1.0], [[-0.7, 0.3]], [[[0.3, -0.1], [-0.1, 0.9]]])
    inter = Interpolant(g0, g1, "trigonometric", "linear", "sqrt")
    move, sign = (inter.forward_drift, 1.0) if forward else (inter.backward_drift, -1.0)

    def rate(t, state):
        m, c = state[:2], state[2:].reshape(2, 2)
        at = move(t, m + np.array([[0, 0], [1, 0], [0, 1]]), epsilon)
        j = (at[1:] - at[0]).T
        return np.concatenate([at[0], (j @ c + c @ j.T + sign * 2 * epsilon * np.eye(2)).ravel()])

    (first, last, span) = (g0, g1, (0.0, 1.0)) if forward else (g1, g0, (1.0, 0.0))
    state = np.concatenate([first.means[0], first.covariances[0].ravel()])
    found = solve_ivp(rate, span, state, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.allclose(found[:2], last.means[0], atol=1e-8)
    assert np.allclose(found[2:].reshape(2, 2), last.covariances[0], atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_velocity_is_the_conditional_mean_of_the_rate(t):
    """By quadrature over x_0, from the definition with γ = t(1 − t): given x and x_0, only (x_1, z) is Gaussian."""
    mix1, x = da.GaussianMixture([1.0], [0.4], [0.5]), 0.3
    inter = Interpolant(LEFT, mix1, "linear", "linear", "parabola")
    g, g_rate = t * (1 - t), 1 - 2 * t
    variance = t * t * 0.5 + g * g

    def weight(x0):
        return float(np.exp(LEFT.log_prob(np.array(x0)))) * norm.pdf(x, (1 - t) * x0 + t * 0.4, np.sqrt(variance))

    def rate(x0):
        surprise = (x - (1 - t) * x0 - t * 0.4) / variance
        return weight(x0) * (-x0 + 0.4 + t * 0.5 * surprise + g_rate * g * surprise)

    mean = quad(rate, -8, 8, epsabs=1e-13, limit=300)[0] / quad(weight, -8, 8, epsabs=1e-13, limit=300)[0]
    assert inter.velocity(t, np.array(x)) == pytest.approx(mean, abs=1e-9)


@given(mixtures(), st.floats(0.01, 0.99))
def test_one_sided_is_rectified_flow_with_time_reversed(mix, t):
    inter, x = Interpolant(da.GaussianMixture([1.0], [0.0], [1.0]), mix, gamma="none"), np.linspace(-2, 2, 5)
    flow = da.RectifiedFlow()
    assert np.allclose(inter.velocity(t, x), -mix.model(flow, "v")(x, 1 - t), rtol=1e-9, atol=1e-9)
    assert np.allclose(inter.score(t, x), mix.score(flow)(x, 1 - t), rtol=1e-9, atol=1e-9)
    assert np.allclose(inter.log_prob(t, x), mix.log_prob(x, flow, 1 - t), rtol=1e-9, atol=1e-9)


@given(NAMES, st.floats(0.05, 0.95))
def test_rates_are_derivatives(names, t):
    for name, known in zip(names, (PATHS_0, PATHS_1, SQUARED_LATENTS), strict=True):
        assert known[name].rate(t) == pytest.approx(slope(known[name].value, t, 1e-4), abs=1e-8)


def test_named_choices_are_the_functions_they_say():
    t = 0.3
    assert PATHS_0["trigonometric"].value(t) ** 2 + PATHS_1["trigonometric"].value(t) ** 2 == pytest.approx(1.0)
    assert PATHS_0["linear"].value(t) + PATHS_1["linear"].value(t) == pytest.approx(1.0)
    squares = {"none": 0.0, "sqrt": 0.21, "parabola": 0.21**2, "sin2": np.sin(np.pi * t) ** 4}
    assert {name: scale.value(t) for name, scale in SQUARED_LATENTS.items()} == pytest.approx(squares)


def test_own_scales():
    """a = (1 − t)², given with its derivative."""
    own = Interpolant(LEFT, RIGHT, Scale(lambda t: (1 - t) ** 2, lambda t: -2 * (1 - t)), "linear", "sin2")
    ends = solve_ivp(own.velocity, (0, 1), np.array([0.1]), rtol=1e-9, atol=1e-11).y[0, -1]
    assert cdf(own, 1.0, ends) == pytest.approx(cdf(own, 0.0, 0.1), abs=1e-7)


def test_a_component_of_weight_zero_has_no_say():
    three = da.GaussianMixture([0.3, 0.7, 0.0], [-1.0, 0.6, 3.0], [0.2, 0.3, 1.0])
    x = np.array([0.2, 2.5])
    assert np.allclose(Interpolant(three, RIGHT).velocity(0.2, x), Interpolant(LEFT, RIGHT).velocity(0.2, x))


ZERO = Scale(lambda t: 0.0, lambda t: 0.0)
NOTHING = Interpolant(LEFT, RIGHT, ZERO, ZERO, "none")
INTER, PLANE = Interpolant(LEFT, RIGHT), Interpolant(PLANE_0, PLANE_1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Interpolant(LEFT, "mix"), "mix1='mix' must be a GaussianMixture"),
        (lambda: Interpolant(LEFT, PLANE_1), "must have the dimension of mix0"),
        (lambda: Interpolant(LEFT, RIGHT, a="lineer"), "a='lineer' is unknown; nearest: linear"),
        (lambda: Interpolant(LEFT, RIGHT, gamma="sqr"), "gamma='sqr' is unknown"),
        (
            lambda: Interpolant(LEFT, RIGHT, gamma=Scale(lambda t: -1.0, lambda t: 0.0)).velocity(0.5, 1.0),
            "gamma squared",
        ),
        (lambda: NOTHING.velocity(0.5, 1.0), "t=0.5: a, b and gamma are 0"),
        (lambda: NOTHING.marginal(0.5), "t=0.5: a, b and gamma are 0"),
        (lambda: Scale(1.0, 2.0), "value=1.0 must be a function"),
        (lambda: INTER.velocity(1.5, np.ones(2)), "t=1.5 must lie"),
        (lambda: INTER.velocity(0.5, [np.nan]), "x=.* must be finite"),
        (lambda: INTER.forward_drift(0.5, np.ones(2), -1.0), "epsilon=-1.0"),
        (lambda: PLANE.score(0.5, np.ones(3)), r"x has shape \(3,\)"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
