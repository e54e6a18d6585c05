"""Distances between laws: closed forms, other libraries, and the coverage of the bands in simulations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq, linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import ndtr
from scipy.stats import norm
from strategies import mixtures

import deis_analysis as da
from deis_analysis.analysis import distances as ds

A = da.GaussianMixture([0.3, 0.7], [-1.0, 1.0], [0.05, 0.1])
B = da.GaussianMixture([0.5, 0.2, 0.3], [-3.0, 0.5, 2.0], [0.01, 0.1, 0.4])
ENTRIES = st.floats(-10, 10).map(lambda v: round(v, 3))  # ties included
SAMPLES = st.lists(ENTRIES, min_size=2, max_size=9).map(np.array)


def coverage(draw, truth, runs):
    """(share of bands that hold ``truth``, share above it, share below it)."""
    found = [draw() for _ in range(runs)]
    above = np.mean([f.low > truth for f in found])
    below = np.mean([f.high < truth for f in found])
    return 1 - above - below, above, below


# -- one dimension --------------------------------------------------------------------------------
@given(SAMPLES, SAMPLES)
def test_quantiles_agree_with_pot_and_are_symmetric(x, y):
    here, back = ds.wasserstein2(x, y), ds.wasserstein2(y, x)
    assert np.isclose(here.value**2, ot.wasserstein_1d(x, y, p=2), rtol=1e-9, atol=1e-12)
    assert np.allclose((here.value, here.low, here.high), (back.value, back.low, back.high), rtol=1e-9, atol=1e-6)
    assert here.low <= here.value <= here.high
    assert (here.n, here.method) == ((x.size, y.size), "quantiles")


@given(SAMPLES, SAMPLES)
def test_potentials_are_an_optimal_dual_solution(x, y):
    """Strong duality and φ_i + ψ_j ≤ |x_i - y_j|²: no other pair of vectors passes."""
    square, phi, psi, _ = ds._monotone(x, y)
    cost = (x[:, None] - y) ** 2
    lift = np.min(cost - phi[:, None] - psi)
    assert np.isclose(phi.mean() + psi.mean() + lift, square, rtol=1e-9, atol=1e-9)


@given(SAMPLES, SAMPLES, SAMPLES)
def test_triangle(x, y, z):
    for distance in (ds.wasserstein2, lambda a, b: ds.wasserstein2(a, b, method="sliced", slices=3)):
        assert distance(x, z).value <= distance(x, y).value + distance(y, z).value + 1e-9


@given(SAMPLES, st.floats(-5, 5), st.floats(0.1, 3))
def test_shift_and_scale(x, shift, scale):
    assert np.isclose(ds.wasserstein2(x, x + shift).value, abs(shift), rtol=1e-9, atol=1e-12)
    assert np.isclose(
        ds.wasserstein2(x, scale * x).value, abs(scale - 1) * np.sqrt(np.mean(x**2)), rtol=1e-9, atol=1e-9
    )
    assert ds.wasserstein2(x, x) == ds.Distance(0.0, 0.0, 0.0, "quantiles", (x.size, x.size))


def test_repeating_every_sample_changes_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(12), rng.standard_normal(7)
    assert np.isclose(ds.wasserstein2(np.repeat(x, 5), y).value, ds.wasserstein2(x, np.repeat(y, 3)).value, rtol=1e-13)


def test_a_paired_shift_has_no_spread():
    """Nor has it a bias; of independent samples both are known: φ = −2·0.3·x, ψ = 2·0.3·y, equal gaps of x and y."""
    for seed, (size, offset, shift) in enumerate([(5, 0, 1e-3), (50, 100, 0.1), (300, 0, 0.3), (300, 100, 0.3)]):
        x = offset + np.random.default_rng(seed).standard_normal(size)
        paired = ds.wasserstein2(x, x + shift, paired=True)
        assert paired.low <= shift <= paired.high  # rounding must not decide
        assert np.isclose(paired.low, paired.high, rtol=1e-10)
    x = np.sort(np.random.default_rng(0).standard_normal(50))
    independent = ds.wasserstein2(x, x + 0.3)
    u, z = np.arange(1, 50) / 50, 1.959963985
    variance, bias = 4 * 0.09 * 2 * np.var(x, ddof=1) / 50, 2 * np.sum(u * (1 - u) * np.diff(x) ** 2)
    assert np.isclose(independent.low, np.sqrt(max(0.09 - bias - z * np.sqrt(variance), 0)), rtol=1e-9)
    upper, centre = independent.high**2, max(0.09 - bias, 0)
    assert np.isclose((upper - centre) ** 2, z**2 * variance / 0.09 * upper, rtol=1e-9)
    assert upper > centre


def test_cells_are_means_of_the_quantile_function():
    """0, 1, 3 on two cells: (0·⅓ + 1·⅙)/½ = ⅓ and (1·⅙ + 3·⅓)/½ = 7/3."""
    assert np.allclose(np.diff(ds._cells(np.array([0.0, 1.0, 3.0]), 2)), 2.0, rtol=1e-14)
    x = 1e6 + np.sort(np.random.default_rng(0).standard_normal(12))
    assert np.allclose(np.diff(ds._cells(np.repeat(x, 5), 12)), np.diff(x), rtol=1e-9)


@pytest.mark.parametrize(("n", "m", "correlation"), [(60, 60, 0.0), (40, 300, 0.0), (300, 40, 0.0), (60, 60, 0.8)])
def test_the_bias_is_the_mean_square_between_equal_laws(n, m, correlation):
    """Of the uniform law, (1/n + 1/m)/6 to first order: bounded, so that second order is enough."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        x, y = rng.standard_normal(n), rng.standard_normal(m)
        if correlation:
            y = correlation * x + np.sqrt(1 - correlation**2) * y
        found.append(ds._monotone(norm.cdf(x), norm.cdf(y), paired=bool(correlation))[::3])
    square, bias = np.mean(found, axis=0)
    error = np.std(found, axis=0)[0] / np.sqrt(2000)
    assert abs(square - bias) < 4 * error + 0.03 * square
    assert error < 0.03 * square
    if not correlation:
        assert np.isclose(bias, (1 / n + 1 / m) / 6, rtol=0.05)
    else:
        assert bias < 0.6 * (1 / n + 1 / m) / 6


# -- more dimensions ------------------------------------------------------------------------------
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_assignment_agrees_with_scipy(n, d, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, n, d))
    cost = cdist(x, y, "sqeuclidean")
    found = ds.wasserstein2(x, y, method="assignment")
    assert np.isclose(found.value**2, cost[linear_sum_assignment(cost)].mean(), rtol=1e-10)
    square, phi, psi = ds._assigned(x, y)
    assert np.isclose(phi.mean() + psi.mean(), square, rtol=1e-9, atol=1e-12)
    assert np.min(cost - phi[:, None] - psi) > -1e-9


def test_assignment_in_one_dimension_is_sorting():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((40, 1)), 1 + 2 * rng.standard_normal((23, 1))
    sort, plan = ds._monotone(x[:, 0], y[:, 0]), ds._assigned(x, y)
    assert np.isclose(sort[0], plan[0], rtol=1e-12)
    for one, other in zip(sort[1:3], plan[1:], strict=True):
        assert np.isclose(np.var(one), np.var(other), rtol=1e-8)
    assert np.isclose(ds.wasserstein2(x, y).value, ds.wasserstein2(x, y, method="assignment").value, rtol=1e-12)


def test_assignment_reaches_the_optimum_where_pots_own_limit_does_not(monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((2, 100, 8))
    monkeypatch.setattr(ds, "_PIVOTS", 50)
    with pytest.warns(UserWarning, match="numItermax"), pytest.raises(RuntimeError, match="numItermax"):
        ds.wasserstein2(x, y)


def test_auto_chooses_by_dimension_and_size():
    x = np.random.default_rng(0).standard_normal((30, 2, 3))
    assert ds.wasserstein2(x[:, 0, 0], x[:, 1, 0]).method == "quantiles"
    assert ds.wasserstein2(x[:, :, :1] * 0 + x[:, :1, :1], x[:, :, :1]).method == "assignment"
    assert ds.wasserstein2(x, x, most=29).method == "sliced"
    shift = np.arange(6.0).reshape(2, 3)
    assert np.isclose(ds.wasserstein2(x, x + shift).value, np.linalg.norm(shift), rtol=1e-12)


def test_sliced_agrees_with_pot_on_the_same_directions():
    rng = np.random.default_rng(3)
    x, y, directions = rng.standard_normal((50, 4)), rng.standard_normal((31, 4)) * 1.5, rng.standard_normal((9, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    square, *_ = ds._sliced(x, y, directions)
    assert np.isclose(np.sqrt(square), ot.sliced_wasserstein_distance(x, y, projections=directions.T), rtol=1e-12)


@pytest.mark.parametrize("d", [2, 5, 20])
def test_sliced_distance_of_a_shift(d):
    """E_θ (θ·v)² = |v|²/d, with variance 2(d - 1)|v|⁴/(d²(d + 2)); pairs leave only the directions' spread."""
    x, v = np.random.default_rng(0).standard_normal((20, d)), np.ones(d)
    found = ds.wasserstein2(x, x + v, method="sliced", slices=1000, paired=True)
    spread = np.sqrt(2 * (d - 1) / (d + 2) / 1000)  # |v|² = d
    assert abs(found.value**2 - 1) < 4 * spread
    assert np.isclose(found.high**2 - found.value**2, 1.96 * spread, rtol=0.15)
    again = ds.wasserstein2(x, x + v, method="sliced", slices=1000, paired=True, seed=np.random.default_rng(0))
    assert again == found != ds.wasserstein2(x, x + v, method="sliced", slices=1000, paired=True, seed=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors(dtype):
    x, y = (torch.as_tensor(np.random.default_rng(i).standard_normal((20, 2, 2)), dtype=dtype) for i in (0, 1))
    x.requires_grad_()
    plain = [a.detach().double().numpy() for a in (x, y)]
    assert ds.wasserstein2(x, y) == ds.wasserstein2(*plain)
    assert ds.energy_distance(x, y) == ds.energy_distance(*plain)


# -- coverage -------------------------------------------------------------------------------------
RUNS = 1000
LEAST, MOST = scipy.stats.binom.ppf([1e-3, 1 - 1e-3], RUNS, [0.94, 0.98]) / RUNS  # of a coverage of 94 % to 98 %
MODES = [
    da.GaussianMixture(w, m, [0.05, 0.1]) for w, m in (([0.4, 0.6], [-1, 0.8]), ([0.3, 0.7], [-1.2, 0.9]))
]  # separated


@pytest.mark.parametrize(
    ("n", "m", "mean", "scale"),
    [(100, 100, 1.0, 1.0), (300, 300, 0.3, 1.2), (100, 1000, 0.0, 1.4), (200, 10_000, 0.0, 1.4), (1000, 100, 0.0, 0.5)],
)
def test_the_band_covers_the_distance_of_1d_gaussians(n, m, mean, scale):
    rng, truth = np.random.default_rng(0), np.hypot(mean, scale - 1)
    inside, above, below = coverage(
        lambda: ds.wasserstein2(rng.standard_normal(n), mean + scale * rng.standard_normal(m)), truth, RUNS
    )
    assert LEAST <= inside <= MOST, (above, below)
    assert min(above, below) > 0


@pytest.mark.parametrize(("n", "m"), [(100, 1000), (300, 200)])
def test_the_lower_end_between_equal_laws_is_0(n, m):
    rng = np.random.default_rng(0)
    for draw, wide in (
        (rng.standard_normal, 2),
        (lambda size: MODES[0].sample(size, int(rng.integers(2**31))), 4),
    ):
        found = [ds.wasserstein2(draw(n), draw(m)) for _ in range(RUNS // 2)]
        assert np.mean([f.low > 0 for f in found]) < 0.02
        assert np.median([f.high / f.value for f in found]) < wide  # the upper one is of use


@pytest.mark.parametrize(("n", "m"), [(100, 100), (100, 1000), (1000, 1000)])
def test_the_band_covers_the_distance_of_separated_modes(n, m):
    rng, truth = np.random.default_rng(0), ds.wasserstein2_between(*MODES).value
    inside, above, below = coverage(
        lambda: ds.wasserstein2(
            *(mix.sample(k, int(rng.integers(2**31))) for mix, k in zip(MODES, (n, m), strict=True))
        ),
        truth,
        RUNS,
    )
    assert LEAST <= inside <= MOST, (above, below)


@pytest.mark.parametrize(("slope", "noise"), [(0.9, 0.0), (0.9, 0.1), (1.0, 1.0)])
def test_the_paired_band_covers(slope, noise):
    """y = 0.1 + slope·x + noise·z at n = 100; without noise W_2² is a mean of squares, skewed."""
    rng, scale = np.random.default_rng(0), np.hypot(slope, noise)

    def draw():
        x, z = rng.standard_normal((2, 100))
        return ds.wasserstein2(x, 0.1 + slope * x + noise * z, paired=True)

    inside, above, below = coverage(draw, np.hypot(0.1, scale - 1), RUNS)
    assert LEAST <= inside <= MOST, (above, below)


def test_large_entries_up_to_the_limit():
    a, b = np.array([0.0, 1e69, 2e69]), np.array([1e69, 3e69, 5e69])
    small = ds.wasserstein2(a / 1e69, b / 1e69)
    found = ds.wasserstein2(a, b)
    assert np.allclose([found.value, found.low, found.high], np.array([small.value, small.low, small.high]) * 1e69)
    assert np.isfinite(ds.energy_distance(a, b).high)


def test_the_paired_band_is_narrower():
    rng, truth = np.random.default_rng(0), np.hypot(0.3, np.sqrt(1.45) - 1)
    pairs = [(x, 0.3 + 1.2 * x + 0.1 * z) for x, z in rng.standard_normal((RUNS, 2, 200))]
    paired = [ds.wasserstein2(x, y, paired=True) for x, y in pairs]
    wide = [ds.wasserstein2(x, y) for x, y in pairs]
    assert LEAST <= np.mean([f.low <= truth <= f.high for f in paired]) <= MOST
    assert np.mean([f.low <= truth <= f.high for f in wide]) > 0.999
    assert np.mean([f.high - f.low for f in paired]) < 0.5 * np.mean([f.high - f.low for f in wide])


@pytest.mark.parametrize(("shift", "least", "most"), [(2.0, 0.92, 0.99), (0.0, 0.98, 1.0)])
def test_the_band_covers_the_sliced_distance_of_a_shift(shift, least, most):
    """Few directions: their spread is a large part of it."""
    rng, v = np.random.default_rng(0), np.array([shift, 0.0, 0.0])
    inside, *_ = coverage(
        lambda: ds.wasserstein2(
            *(rng.standard_normal((100, 3)) + s for s in (0, v)), method="sliced", slices=32, seed=rng
        ),
        shift / np.sqrt(3),
        300,
    )
    assert least <= inside <= most


def test_in_high_dimension_the_band_covers_the_mean_of_the_estimate_and_not_the_distance():
    rng, shift = np.random.default_rng(0), 0.5 * np.eye(16)[0]
    found = [ds.wasserstein2(rng.standard_normal((60, 16)), shift + rng.standard_normal((60, 16))) for _ in range(200)]
    mean = np.sqrt(np.mean([f.value**2 for f in found]))
    assert mean > 3  # six times the distance of the laws
    assert np.mean([f.low <= mean <= f.high for f in found]) > 0.93
    assert np.mean([f.low <= 0.5 for f in found]) == 0


def test_the_floor_is_what_two_samples_of_one_law_are_apart():
    rng = np.random.default_rng(0)
    for shape in ((), (2,)):
        floor = ds.wasserstein2_floor(rng.standard_normal((4000, *shape)), 50, draws=200)
        fresh = [ds.wasserstein2(*rng.standard_normal((2, 50, *shape))).value for _ in range(400)]
        error = np.std(fresh) * np.sqrt(1 / 400 + 1 / 200 + 50 / 2000)
        assert abs(floor.value - np.mean(fresh)) < 4 * error
        assert 0.9 < np.mean([floor.low <= f <= floor.high for f in fresh]) < 0.99
        assert floor.n == (50, 50)
    with pytest.raises(ValueError, match=r"n=51 must be at most 50, half"):
        ds.wasserstein2_floor(np.zeros(100), 51)


# -- Gaussians ------------------------------------------------------------------------------------
def covariance(rng, d):
    root = rng.standard_normal((d, d))
    return root @ root.T


@given(st.integers(1, 5), st.integers(0, 10_000))
def test_bures_form_agrees_with_the_trace(d, seed):
    rng = np.random.default_rng(seed)
    (m, p), a, b = rng.standard_normal((2, d)), covariance(rng, d), covariance(rng, d)
    root = scipy.linalg.sqrtm(a)
    trace = np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(root @ b @ root)))
    found = ds.gaussian_wasserstein2(m, a, p, b)
    assert np.isclose(found**2, np.sum((m - p) ** 2) + trace, rtol=1e-6, atol=1e-6)  # sqrtm of nearly singular ones
    assert np.isclose(found, ds.gaussian_wasserstein2(p, b, m, a), rtol=1e-9)
    assert ds.gaussian_wasserstein2(m, a, m, a) < 1e-6 * np.sqrt(np.trace(a))


def test_commuting_covariances_and_numbers():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 0.25, 1.0])
    axes = scipy.stats.special_ortho_group.rvs(3, random_state=0)
    truth = np.sqrt(4.0 + 2.25 + 1.0 + 3.0)
    assert np.isclose(ds.gaussian_wasserstein2(0, a, 1, b), truth, rtol=1e-12)
    assert np.isclose(ds.gaussian_wasserstein2(0, (axes * a) @ axes.T, 1, (axes * b) @ axes.T), truth, rtol=1e-7)
    assert np.isclose(ds.gaussian_wasserstein2(0.5, 4.0, 2.0, 1.0), np.hypot(1.5, 1.0), rtol=1e-15)
    full = covariance(np.random.default_rng(0), 3)
    mean = np.zeros(3)
    assert np.isclose(
        ds.gaussian_wasserstein2(mean, full, 1, 2.0),
        ot.gaussian.bures_wasserstein_distance(mean, mean + 1, full, 2 * np.eye(3)),
    )


def test_near_gaussians_keep_their_digits():
    a = np.diag([1.0, 2.0])
    assert np.isclose(ds.gaussian_wasserstein2(0, a, 0, a * (1 + 1e-10) ** 2), 1e-10 * np.sqrt(3), rtol=1e-4)


# -- laws with exact quantiles --------------------------------------------------------------------
def cdf(mixture, x):
    return float(mixture.weights @ ndtr((x - mixture.means) / np.sqrt(mixture.covariances)))


def quantile(mixture, u):
    return brentq(lambda x: cdf(mixture, x) - u, -60, 60, xtol=1e-14)


def test_between_mixtures_against_quad_over_levels():
    square = sum(
        quad(lambda u: (quantile(A, u) - quantile(B, u)) ** 2, low, high, epsabs=1e-6, limit=100)[0]
        for low, high in [(1e-9, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1 - 1e-9)]
    )
    found = ds.wasserstein2_between(A, B)
    assert np.isclose(found.value**2, square, rtol=1e-6)
    assert found.low == found.value == found.high
    assert found.n == ()
    assert np.isclose(ds.wasserstein2_between(B, A).value, found.value, rtol=1e-10)


@settings(max_examples=60)
@given(mixtures(), mixtures())
def test_between_mixtures_bounds_and_symmetry(a, b):
    """The Gaussians of the same moments are nearer (Gelbrich), one component each is a closed form."""
    found = ds.wasserstein2_between(a, b).value
    moments = []
    for m in (a, b):
        mean = m.weights @ m.means
        moments += [mean, m.weights @ (m.covariances + m.means**2) - mean**2]
    gaussian = ds.gaussian_wasserstein2(*moments)
    assert found >= gaussian * (1 - 1e-9) - 1e-9
    if a.weights.size == b.weights.size == 1:
        assert np.isclose(found, gaussian, rtol=1e-9, atol=1e-9)
    assert np.isclose(found, ds.wasserstein2_between(b, a).value, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(mixtures(), st.floats(-3, 3), st.floats(0.1, 3))
def test_between_a_mixture_and_its_affine_image(mix, shift, scale):
    image = da.GaussianMixture(mix.weights, scale * mix.means + shift, scale**2 * mix.covariances)
    square = mix.weights @ (((scale - 1) * mix.means + shift) ** 2 + (scale - 1) ** 2 * mix.covariances)
    assert np.isclose(ds.wasserstein2_between(mix, image).value, np.sqrt(square), rtol=1e-9, atol=1e-9)


def test_narrow_and_far_components():
    """Two narrow ones apart: mass ½ goes 10 to the right, both spread by their own scale."""
    a = da.GaussianMixture([0.0, 0.5, 0.5, 0.0], [-1e6, -10.0, 10.0, 1e6], [1.0, 1e-8, 1e-8, 1.0])
    b = da.GaussianMixture([0.5, 0.5], [-10.0, 20.0], [1e-6, 1e-10])
    square = 0.5 * (1e-3 - 1e-4) ** 2 + 0.5 * (100 + (1e-4 - 1e-5) ** 2)
    assert np.isclose(ds.wasserstein2_between(a, b).value ** 2, square, rtol=1e-10)
    assert ds.wasserstein2_between(a, a).value < 1e-7


def test_sample_to_mixture_against_quad():
    x = np.array([-1.2, 0.4, 0.9, -0.3, 3.0])
    mix, edges = A, [-30.0, *(quantile(A, i / 5) for i in range(1, 5)), 30.0]
    square = sum(
        quad(lambda y, v=v: (y - v) ** 2 * np.exp(mix.log_prob(np.array(y))), *pair, points=(-1, 1), limit=400)[0]
        for v, pair in zip(np.sort(x), pairwise(edges), strict=True)
    )
    found = ds.wasserstein2_between(x, mix)
    assert np.isclose(found.value**2, square, rtol=1e-8)
    assert found == ds.wasserstein2_between(mix, torch.as_tensor(x))
    assert found.n == (5,)


def test_sample_to_mixture_is_the_limit_of_two_samples():
    x, u = B.sample(200, seed=1), (np.arange(20_000) + 0.5) / 20_000
    many = ds._quantile_map(norm.ppf(u), da.GaussianMixture([1.0], [0.0], [1.0]), A)
    limit, found = ds.wasserstein2(x, many), ds.wasserstein2_between(x, A)
    assert np.isclose(found.value, limit.value, rtol=1e-5)
    for end in ("low", "high"):  # the 20,000 add 1 % to variance and bias
        widths = [getattr(f, end) - f.value for f in (found, limit)]
        assert np.isclose(*widths, rtol=1e-2)


def test_sample_to_mixture_covers():
    rng, law = np.random.default_rng(0), da.GaussianMixture([1.0], [0.3], [1.44])
    inside, *_ = coverage(
        lambda: ds.wasserstein2_between(rng.standard_normal(200), law), ds.gaussian_wasserstein2(0, 1, 0.3, 1.44), 300
    )
    assert 0.92 < inside < 0.99
    own = da.GaussianMixture([1.0], [0.0], [1.0])
    inside, *_ = coverage(lambda: ds.wasserstein2_between(rng.standard_normal(200), own), 0.0, 300)
    assert inside > 0.99


def test_diffused_mixtures_are_the_laws_of_x_t():
    vp = da.VPLinear()
    for process in (vp, da.MeanReverting(vp, mean=0.7)):
        law, x = ds.diffused(B, process, 0.3), np.linspace(-3, 3, 7)
        assert np.allclose(law.log_prob(x), B.log_prob(x, process, 0.3), rtol=1e-12)
    x = np.random.default_rng(0).standard_normal((4, 2))
    for c in ([0.1, 0.2], [[0.1, 0.3], [0.2, 0.1]], [[[0.3, 0.1], [0.1, 0.2]], np.eye(2)]):
        mix = da.GaussianMixture([0.4, 0.6], [[0, 1], [1, 2]], c)
        assert np.allclose(ds.diffused(mix, vp, 0.3).log_prob(x), mix.log_prob(x, vp, 0.3), rtol=1e-12)


def test_the_flow_is_the_optimal_map():
    """1-D: W_2 of p_t and p_s is the root mean square displacement along the probability flow."""
    vp = da.VPLinear()
    start, end = (ds.diffused(A, vp, t) for t in (0.5, 0.01))
    nodes = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    x = ds._quantile_map(nodes, da.GaussianMixture([1.0], [0.0], [1.0]), start)
    moved = np.sqrt(np.mean((x - A.flow(vp, x, 0.5, 0.01)) ** 2))
    assert np.isclose(ds.wasserstein2_between(start, end).value, moved, rtol=1e-4)


# -- energy distance ------------------------------------------------------------------------------
def folded(mean, scale):
    """E|N(mean, scale²)|."""
    return scale * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * scale**2)) + mean * (1 - 2 * norm.cdf(-mean / scale))


def energy_of_shift(shift):
    return np.sqrt(2 * folded(shift, np.sqrt(2)) - 2 * folded(0, np.sqrt(2)))


def mean_gap(x):
    return cdist(x[:, None], x[:, None]).sum() / (x.size * (x.size - 1))


@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 10_000))
def test_energy_distance_agrees_with_scipy_up_to_the_diagonal(n, m, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(n), 3 + rng.standard_normal(m)
    found, back = ds.energy_distance(x, y), ds.energy_distance(y, x)
    truth = scipy.stats.energy_distance(x, y) ** 2 - mean_gap(x) / n - mean_gap(y) / m
    assert np.isclose(found.value, np.sqrt(max(truth, 0)), rtol=1e-9, atol=1e-7)
    assert np.allclose((found.low, found.value, found.high), (back.low, back.value, back.high), rtol=1e-9, atol=1e-7)
    assert found.low <= found.value <= found.high
    assert ds.energy_distance(x, x).value == 0


def test_the_jackknife_is_what_leaving_one_out_gives(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 2)), 4 + rng.standard_normal((7, 2))
    monkeypatch.setattr(ds, "_banded", lambda square, variance, *_, **__: (square, variance))
    variance = 0.0
    for side, size in ((0, 9), (1, 7)):
        left = [
            ds.energy_distance(*(np.delete(s, i, 0) if k == side else s for k, s in enumerate((x, y))))[0]
            for i in range(size)
        ]
        variance += (size - 1) * np.var(left)
    assert np.isclose(ds.energy_distance(x, y)[1], variance, rtol=1e-10)


def test_the_square_is_unbiased(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(ds, "_banded", lambda square, *_, **__: square)
    for shift in (0.0, 0.5):
        squares = [ds.energy_distance(rng.standard_normal(8), shift + rng.standard_normal(6)) for _ in range(4000)]
        truth, error = energy_of_shift(shift) ** 2, np.std(squares) / np.sqrt(4000)
        assert abs(np.mean(squares) - truth) < 4 * error
        assert error < 0.05 * folded(0, np.sqrt(2)) * (1 / 8 + 1 / 6)  # the bias of the V-statistic would be seen


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.99, 1.0), (0.2, 0.925, 0.98), (1.0, 0.93, 0.985)])
def test_the_energy_band_covers(shift, low, high):
    rng = np.random.default_rng(0)
    inside, *_ = coverage(
        lambda: ds.energy_distance(rng.standard_normal(100), shift + rng.standard_normal(80)),
        energy_of_shift(shift),
        RUNS,
    )
    assert low <= inside <= high


def test_energy_distance_in_blocks():
    x, y = np.random.default_rng(0).standard_normal((2, 1500, 2))
    assert np.allclose(ds._mean_distances(x, y), cdist(x, y).sum(axis=1), rtol=1e-13)


# -- bad input ------------------------------------------------------------------------------------
X = np.random.default_rng(0).standard_normal((6, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ds.wasserstein2(X, X[:, 0]), "b has 1 numbers per sample; allowed: 2"),
        (lambda: ds.wasserstein2(X * np.nan, X), r"a=array\(.*(?s:.*) must be finite"),
        (lambda: ds.wasserstein2(X, "x"), "b='x' must be made of real numbers"),
        (lambda: ds.wasserstein2(X[:1], X), r"a has shape \(1, 2\); allowed: \(n, ...\), n >= 2"),
        (lambda: ds.wasserstein2(X[:, :0], X), r"a has shape \(6, 0\)"),
        (lambda: ds.wasserstein2(3.0, X), r"a has shape \(\)"),
        (lambda: ds.wasserstein2(X, X, method="sinkhorn"), "method='sinkhorn' is unknown"),
        (lambda: ds.wasserstein2(X, X, method="quantiles"), "method='quantiles' needs samples of 1 number"),
        (lambda: ds.wasserstein2(X, X, method="assignment", most=5), "allowed: at most most=5"),
        (lambda: ds.wasserstein2(X, X[:5], paired=True), "paired=True with 6 and 5"),
        (lambda: ds.wasserstein2(X, X, paired=1), "paired=1 must be True or False"),
        (lambda: ds.wasserstein2(X, X, slices=1), "slices=1 must be an integer >= 2"),
        (lambda: ds.wasserstein2(X, X, method="sliced", seed=-1), "seed=-1 must be an integer >= 0"),
        (lambda: ds.wasserstein2_floor(X, 3, draws=1), "draws=1 must be"),
        (lambda: ds.gaussian_wasserstein2(0, -1, 0, 1), "cov_a has the eigenvalue -1"),
        (lambda: ds.gaussian_wasserstein2(0, 1, 0, [[1, 2], [0, 1]]), "cov_b must be symmetric"),
        (lambda: ds.gaussian_wasserstein2([0, 0], 1, [0, 0, 0], 1), r"mean_a has shape \(2,\)"),
        (lambda: ds.gaussian_wasserstein2(0, np.ones((2, 3)), 0, 1), r"cov_a has shape \(2, 3\)"),
        (lambda: ds.gaussian_wasserstein2(0, np.inf, 0, 1), "cov_a=inf must be finite"),
        (lambda: ds.wasserstein2_between(X[:, 0], X[:, 0]), "both samples"),
        (lambda: ds.wasserstein2_between(X, A), "a has 2 numbers per sample; allowed: 1"),
        (lambda: ds.wasserstein2_between(A, da.GaussianMixture([1.0], [[0, 0]], [1.0])), "b is a .*2-D.*one dimension"),
        (lambda: ds.diffused(X, da.VPLinear(), 0.1), "mixture=.* must be a GaussianMixture"),
        (lambda: ds.energy_distance(X[:2], X), "n >= 3"),
        (lambda: ds.wasserstein2(X * 1e200, X), r"a has entries of size .*allowed: at most 1e\+70"),
        (lambda: ds.energy_distance(X, X - 1e200), "b has entries of size"),
        (lambda: ds.wasserstein2_between(X[:, 0] * 1e200, A), "a has entries of size"),
        (lambda: ds.gaussian_wasserstein2([], 1, 0, 1), r"mean_a of shape \(0,\) is empty"),
        (lambda: ds.gaussian_wasserstein2(0, 1, 0, np.ones((0, 0))), r"cov_b of shape \(0, 0\) is empty"),
        (lambda: ds.gaussian_wasserstein2(1e200, 1, 0, 1), "mean_a of shape .* has an entry above"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
