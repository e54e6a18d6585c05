"""The martingale of the denoiser: exact laws worked out here, Gauss–Hermite quadrature on mixtures, sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import CONTINUOUS, mixtures, processes

import deis_analysis as da
from deis_analysis.diagnostics.martingale import martingale_defect, sampled_martingale_defect

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
# one step of these is a step of the λ = 1 SDE that takes the posterior mean given x₀ = D(x_t)
POSTERIOR_MEAN = ("sde_dpmpp_1", "seeds_1_x0", "ddim_eta1", "ddpm", "ddpm_large", "euler_ancestral", "resfusion")


def levels(process, t):
    return float(process.alpha(t)), float(process.sigma(t))


@st.composite
def steps(draw, process, length=None):
    """Two descending times, away from the ends."""
    start, end = (float(process.lam(t)) for t in process.sampling_range)
    share = draw(st.floats(0.15, 0.6))
    size = draw(st.floats(0.02, 0.3)) if length is None else length
    return np.array([float(process.time_from_lam(start + (end - start) * s)) for s in (share, share + size)])


def exact_conditional(process, ts, mean, variance):
    """Slope and value at E x_t of E[x_s | x_t] under the forward process, by conditioning the Gaussian (x_t, x_s).

    x_t = R x_s + noise, so Cov(x_t, x_s) = R Var x_s.
    """
    (a, s), (a_s, s_s) = (levels(process, t) for t in ts)
    return a / a_s * (a_s**2 * variance + s_s**2) / (a**2 * variance + s**2), a_s * mean


def exact_step(process, ts, mean, variance):
    """A table whose one step has the exact mean on N(mean, variance): x_s = c x_t + b D(x_t), c + b k = slope."""
    slope, at = exact_conditional(process, ts, mean, variance)
    (a, s), _ = (levels(process, t) for t in ts)
    k = a * variance / (a**2 * variance + s**2)
    # two equations: slope of x and value at the mean, in the unknown weights of x_t and D
    c, b = np.linalg.solve([[1.0, k], [a * mean, mean]], [slope, at])
    states, outputs = np.zeros((2, 2)), np.zeros((2, 2))
    states[1, 0], outputs[1, 0] = c, b
    noise = np.array([[0.0], [0.123]])  # any: D is affine
    return da.Tableau(ts, states, outputs, noise, "x0", intervals=[[2.0, 1.0]])


@given(processes(CONTINUOUS), st.floats(0.3, 2.0), st.floats(0.05, 2.0), st.data())
def test_the_exact_reverse_step_has_no_defect_and_another_step_its_own(process, mean, variance, data):
    """The exact step: zero. Moved by a shift d and a factor 1 + η of the slope: k_s d and η k_t, by hand."""
    ts = data.draw(steps(process))
    exact = exact_step(process, ts, mean, variance)
    (a, s), (a_s, s_s) = (levels(process, t) for t in ts)
    k, k_s = a * variance / (a**2 * variance + s**2), a_s * variance / (a_s**2 * variance + s_s**2)
    size = 1e-12 * (1 + abs(exact.states[1, 0]) + abs(exact.outputs[1, 0])) * (1 + k_s) * (1 + mean)
    zero = martingale_defect(exact, process, mean, variance)
    assert abs(zero.slope[0]) < size
    assert abs(zero.offset[0]) < size * (1 + a)
    slope, _ = exact_conditional(process, ts, mean, variance)
    states = exact.states.copy()
    states[1, 0] += 0.1 * slope  # also moves the mean by 0.1 slope a m
    moved = martingale_defect(da.Tableau(ts, states, exact.outputs, prediction="x0"), process, mean, variance)
    assert np.isclose(moved.slope[0], 0.1 * k, rtol=1e-9, atol=size)
    assert np.isclose(moved.offset[0], k_s * 0.1 * slope * a * mean, rtol=1e-9, atol=size * (1 + a))
    rms = math.hypot(moved.offset[0], moved.slope[0] * math.sqrt(a**2 * variance + s**2))
    assert np.isclose(moved.rms[0], rms, rtol=1e-12)


@given(mixtures(), st.floats(0.1, 0.8), st.floats(0.2, 0.9), st.floats(-1.5, 1.5))
def test_the_denoiser_is_a_martingale_of_the_exact_reverse_law(mix, t, share, x):
    """E[D(x_s) | x_t] by quadrature of p(x_s | x_t) ∝ p_s(x_s) N(x_t; R x_s, σ_t² − R² σ_s²)."""
    s = t * share
    (a, sig), (a_s, sig_s) = levels(VP, t), levels(VP, s)
    r = a / a_s
    v = sig**2 - r**2 * sig_s**2

    def weight(y):
        return np.exp(mix.log_prob(y, VP, s) - (x - r * y) ** 2 / (2 * v))

    y = np.linspace(-14, 14, 6001)  # the trapezoidal rule on an analytic function that has decayed
    w = weight(y)
    assert np.isclose(w @ mix.x0(VP)(y, s) / w.sum(), mix.x0(VP)(np.array(x), t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", POSTERIOR_MEAN)
def test_posterior_mean_steps_have_no_defect_on_gaussians(name):
    """D is affine: whatever their noise. Their variances are not exact, which the defect cannot see."""
    table = da.build(name, VP, [0.6, 0.3])
    found = martingale_defect(table, VP, [0.3, -1.0], [0.5, 2.0])
    assert np.all(np.abs(found.rms) < 1e-15)
    assert da.law_error(table, VP, 0.3, 0.5)[0] > 1e-3


def slope_of(errors):
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler_maruyama", 2), ("reverse_diffusion", 2), ("sde_dpm_1", 2), ("gdss_s4", 2), ("seeds_2", 3), ("seeds_3", 4)],
)
def test_order_of_the_defect_on_gaussians(name, order):
    """The weak order + 1; seeds_3, of weak order 2, has a mean of one order more."""
    rms = [martingale_defect(da.build(name, VP, [0.4, 0.4 - h]), VP, 0.3, 0.5).rms[0] for h in (0.01, 0.005, 0.0025)]
    assert abs(slope_of(rms) - order) < 0.1
    assert order - da.SOLVERS[name].order == (2 if name == "seeds_3" else 1)


def by_quadrature(table, process, mix, x, nodes=24):
    """E[D(x_s, s)] − D(x, t) with Gauss–Hermite in every noise."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    columns = table.noise.shape[1]
    mesh = np.meshgrid(*[z] * columns, indexing="ij")
    weights = np.ones(())
    for _ in range(columns):
        weights = np.multiply.outer(weights, w / w.sum())
    noise = [np.repeat(m.reshape(-1)[:, None], x.size, 1) for m in mesh]
    start = np.repeat(x[None], noise[0].shape[0], 0)
    end = da.run(table, mix.model(process, table.prediction), start, noise)
    d = mix.x0(process)
    return weights.reshape(-1) @ d(end, float(table.times[-1])) - d(x, float(table.times[0]))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("sde_dpmpp_1", 2),
        ("ddpm", 2),
        ("ddim_eta1", 2),
        ("euler_ancestral", 2),
        ("euler_maruyama", 2),
        ("reverse_diffusion", 2),
        ("sde_dpm_1", 2),
        ("seeds_2_x0", 3),
        ("seeds_2", 3),
        ("dpmpp_2s_ancestral", 2),
        ("ddim_eta05", 1),
        ("g2rpo", 2),
    ],
)
def test_order_of_the_defect_on_a_mixture(name, order):
    """The declared weak order + 1 for λ = 1. Not so: `ddim_eta05`, a λ-family step, has a defect of order 1; one step
    of `g2rpo` is a step of DDIM(1); `dpmpp_2s_ancestral`, whose marginal law is of order 2, is a λ = 1 step to first
    order only."""
    x, errors = np.linspace(-2, 2, 9), []
    for h in (0.02, 0.01, 0.005):
        errors.append(np.sqrt(np.mean(by_quadrature(da.build(name, VP, [0.4, 0.4 - h]), VP, MIX, x) ** 2)))
    assert abs(slope_of(errors) - order) < 0.15, slope_of(errors)
    row = da.SOLVERS[name]
    if name not in ("ddim_eta05", "g2rpo", "dpmpp_2s_ancestral"):
        assert row.lam_sde == 1
        assert order == row.order + 1


@given(processes(CONTINUOUS), st.floats(0.0, 1.2), st.floats(0.05, 2.0), st.data())
def test_the_rate_of_the_defect_of_the_lambda_family(process, lam, variance, data):
    """−½ (1 − λ²) g² s D′ per unit of time: slope ½ (1 − λ²) g² k/V on N(m, v). Extrapolated from h, h/2, h/4."""
    t = float(data.draw(steps(process, 0.01))[0])
    a, s = levels(process, t)
    total = a**2 * variance + s**2
    rate = float(process.diffusion_squared(t)) * a * variance / total**2
    h = 1e-2 / float(process.log_rho_rate(t))
    slopes = []
    for step in (h, h / 2, h / 4):
        table = da.euler_maruyama(process, [t, t - step], lam)
        slopes.append(martingale_defect(table, process, 0.7, variance).slope[0] / step)
    once = [2 * slopes[1] - slopes[0], 2 * slopes[2] - slopes[1]]
    found = (4 * once[1] - once[0]) / 3
    assert abs(found - 0.5 * (1 - lam**2) * rate) < 2e-3 * (
        rate + float(process.log_rho_rate(t)) * a * variance / total
    )


def test_several_steps_and_axes_are_one_defect():
    """Of the first and last time; each axis alone; and the law that the defect's mean implies."""
    table = da.build("euler_maruyama", VP, da.grid(VP, 6, "t2", 0.8, 0.1))
    both = martingale_defect(table, VP, [0.3, -1.0], [0.5, 2.0])
    for i, (m, v) in enumerate(((0.3, 0.5), (-1.0, 2.0))):
        one = martingale_defect(table, VP, m, v)
        assert np.allclose([one.slope[0], one.offset[0], one.rms[0]], [both.slope[i], both.offset[i], both.rms[i]])
        k_s = levels(VP, 0.1)[0] * v / (levels(VP, 0.1)[0] ** 2 * v + levels(VP, 0.1)[1] ** 2)
        out_mean, _ = da.output_law(table, VP, m, v)
        assert np.isclose(one.offset[0], k_s * (out_mean - levels(VP, 0.1)[0] * m), rtol=1e-9)


def test_a_mean_reverting_process_shifts():
    """Data around μ: the defect of the shifted problem; and it is what sampling finds."""
    process = da.MeanReverting(VP, mean=2.0)
    table, plain = (da.build("euler_maruyama", p, [0.5, 0.3]) for p in (process, VP))
    found, expected = martingale_defect(table, process, 2.4, 0.5), martingale_defect(plain, VP, 0.4, 0.5)
    assert np.isclose(found.slope[0], expected.slope[0])
    assert np.isclose(found.offset[0], expected.offset[0])
    mix = da.GaussianMixture([1.0], [2.4], [0.5])
    centre = float(process.alpha(0.5)) * 2.4 + (1 - float(process.alpha(0.5))) * 2.0
    sampled = sampled_martingale_defect(table, mix.eps(process), process, np.array([centre, centre + 1.0]), 8)
    assert np.allclose(sampled.value, found.offset[0] + found.slope[0] * np.array([0.0, 1.0]), atol=1e-13)


@pytest.mark.parametrize("name", ["sde_dpmpp_1", "euler_maruyama", "seeds_2", "dpmpp_2s_ancestral"])
def test_sampling_agrees_with_quadrature(name):
    table, x = da.build(name, VP, [0.4, 0.2]), np.linspace(-2, 2, 5)
    truth = by_quadrature(table, VP, MIX, x)
    found = sampled_martingale_defect(table, MIX.model(VP, table.prediction), VP, x, 4000)
    assert found.value.shape == found.standard_error.shape == (5,)
    assert np.all(np.abs(found.value - truth) < 4.5 * found.standard_error)
    assert np.any(np.abs(truth) > 6 * found.standard_error)
    fewer = sampled_martingale_defect(table, MIX.model(VP, table.prediction), VP, x, 1000, seed=1)
    assert np.allclose(fewer.standard_error / found.standard_error, 2.0, rtol=0.25)


def test_value_and_standard_error_are_those_of_the_pairs():
    """From the states at which the model is asked at the end: mean over pairs, then s/√pairs with n − 1 in s."""
    table, x, pairs, ends = da.build("sde_dpmpp_1", VP, [0.4, 0.2]), np.linspace(-2, 2, 5), 40, []
    denoiser = MIX.x0(VP)

    def model(y, t):
        if t == 0.2:
            ends.append(y)
        return denoiser(y, t)

    found = sampled_martingale_defect(table, model, VP, x, pairs)
    (end,) = ends
    change = denoiser(end, 0.2).reshape(2, pairs, 5).mean(0) - denoiser(x, 0.4)
    assert np.allclose(found.value, change.mean(0), rtol=1e-12)
    assert np.allclose(found.standard_error, change.std(0, ddof=1) / math.sqrt(pairs), rtol=1e-12)


def test_antithetic_pairs_are_exact_on_gaussians_and_torch_is_the_same():
    mix, table = da.GaussianMixture([1.0], [[0.3, -1.0]], [[0.5, 2.0]]), da.build("sde_dpm_1", VP, [0.5, 0.3])
    x = mix.sample(4, 0, VP, 0.5)
    exact = martingale_defect(table, VP, [0.3, -1.0], [0.5, 2.0])
    found = sampled_martingale_defect(table, mix.eps(VP), VP, x, 2)
    expected = exact.slope * (x - float(VP.alpha(0.5)) * np.array([0.3, -1.0])) + exact.offset
    assert np.allclose(found.value, expected, atol=1e-13)
    tensors = sampled_martingale_defect(table, mix.eps(VP), VP, torch.tensor(x), 2)
    assert isinstance(tensors.value, torch.Tensor)
    assert np.allclose(tensors.value.numpy(), found.value, atol=1e-14)
    assert float(tensors.standard_error.max()) < 1e-14


def test_rms_is_an_average_over_the_law():
    table = da.build("euler_maruyama", VP, [0.5, 0.3])
    found = martingale_defect(table, VP, 0.4, 0.5)
    a, s = levels(VP, 0.5)
    v = a**2 * 0.5 + s**2
    square = quad(
        lambda y: (
            (found.slope[0] * y + found.offset[0]) ** 2 * math.exp(-(y**2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        ),
        -15,
        15,
        epsabs=1e-13,
    )[0]
    assert np.isclose(found.rms[0], math.sqrt(square), rtol=1e-9)


def test_bad_input():
    table = da.build("sde_dpmpp_1", VP, [0.5, 0.3])
    for call, message in (
        (lambda: martingale_defect(table, VP, 0.0, -1.0), "variance"),
        (lambda: martingale_defect(table, "VP", 0.0, 1.0), "process='VP'"),
        (lambda: martingale_defect("sde", VP, 0.0, 1.0), "tableau"),
        (lambda: martingale_defect(table, VP, math.nan, 1.0), "mean"),
        (lambda: martingale_defect(da.build("edm_euler", da.EDM(), [1.0, 0.0]), da.EDM(), 0.0, 0.0), "variance"),
        (lambda: sampled_martingale_defect(table, MIX.x0(VP), VP, np.zeros(2), 1), "pairs=1"),
        (lambda: sampled_martingale_defect(table, 3, VP, np.zeros(2)), "model=3"),
        (lambda: sampled_martingale_defect(table, MIX.x0(VP), VP, np.array([math.nan])), "finite"),
        (lambda: sampled_martingale_defect(table, MIX.x0(VP), VP, np.zeros(())), "x has shape"),
        (lambda: sampled_martingale_defect(da.build("ddim", VP, [0.5, 0.3]), MIX.eps(VP), VP, np.zeros(2)), "no noise"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
