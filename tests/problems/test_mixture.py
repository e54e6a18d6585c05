"""Mixtures against scipy's distributions, finite differences and integrated flows; the ideal denoiser; bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.stats import multivariate_normal, norm
from strategies import mixtures, processes

import deis_analysis as da

VP = da.VPLinear()
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws_whatever_ran_before():
    global RNG
    RNG = np.random.default_rng(0)


def vector_mixtures():
    """Isotropic, diagonal and full covariances in 3-D."""
    rng = np.random.default_rng(1)
    weights, means = [0.2, 0.5, 0.3], rng.standard_normal((3, 3))
    root = rng.standard_normal((3, 3, 3))
    full = root @ np.swapaxes(root, 1, 2) + 0.2 * np.eye(3)
    return {
        "isotropic": (da.GaussianMixture(weights, means, [0.3, 0.5, 1.0]), [c * np.eye(3) for c in (0.3, 0.5, 1.0)]),
        "diagonal": (
            da.GaussianMixture(weights, means, full[:, 0] ** 2 + 0.1),
            [np.diag(c) for c in full[:, 0] ** 2 + 0.1],
        ),
        "full": (da.GaussianMixture(weights, means, full), list(full)),
    }


def truth_log_prob(mix, matrices, process, t, x):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    return np.log(
        sum(
            w * multivariate_normal(a * m, a * a * c + s * s * np.eye(len(m))).pdf(x)
            for w, m, c in zip(mix.weights, mix.means, matrices, strict=True)
        )
    )


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_densities_scores_and_denoisers_in_3d(kind, t):
    mix, matrices = vector_mixtures()[kind]
    x = RNG.standard_normal((6, 3))
    assert np.allclose(mix.log_prob(x, VP, t), truth_log_prob(mix, matrices, VP, t, x), rtol=1e-10)
    h, score = 1e-5, np.empty_like(x)
    for i in range(3):
        e = h * np.eye(3)[i]
        score[:, i] = (mix.log_prob(x + e, VP, t) - mix.log_prob(x - e, VP, t)) / (2 * h)
    assert np.allclose(mix.score(VP)(x, t), score, rtol=1e-6, atol=1e-6)
    a, s = float(VP.alpha(t)), float(VP.sigma(t))
    assert np.allclose(mix.eps(VP)(x, t), -s * mix.score(VP)(x, t), rtol=1e-12)
    assert np.allclose(mix.x0(VP)(x, t), (x + s * s * mix.score(VP)(x, t)) / a, rtol=1e-9, atol=1e-9)  # Tweedie
    assert np.allclose(mix.v(VP)(x, t), a * mix.eps(VP)(x, t) - s * mix.x0(VP)(x, t), rtol=1e-10, atol=1e-12)
    tensor = torch.as_tensor(x)
    for prediction in da.PREDICTIONS:
        found = mix.model(VP, prediction)(tensor, t)
        assert isinstance(found, torch.Tensor)
        assert np.allclose(found.numpy(), mix.model(VP, prediction)(x, t), rtol=1e-12)
    assert mix.eps(VP)(tensor.float(), t).dtype == torch.float32


def test_log_prob_of_the_data_and_autograd():
    mix, matrices = vector_mixtures()["full"]
    x = RNG.standard_normal((4, 3))
    truth = np.log(
        sum(w * multivariate_normal(m, c).pdf(x) for w, m, c in zip(mix.weights, mix.means, matrices, strict=True))
    )
    assert np.allclose(mix.log_prob(x), truth, rtol=1e-11)
    tensor = torch.as_tensor(x).requires_grad_()
    (gradient,) = torch.autograd.grad(mix.log_prob(tensor, VP, 0.2).sum(), tensor)
    assert np.allclose(gradient.numpy(), mix.score(VP)(x, 0.2), rtol=1e-9)


@given(mixtures(), processes(), st.data())
def test_1d_predictions_are_posterior_means(mix, process, data):
    start, end = process.sampling_range
    t = data.draw(st.floats(end + 0.1 * (start - end), start))
    a, s = float(process.alpha(t)), float(process.sigma(t))
    x = data.draw(st.floats(-2, 2)) * np.sqrt(a * a + s * s)

    def joint(x0, power):
        return x0**power * np.exp(mix.log_prob(np.array(x0))) * norm.pdf(x, a * x0, s)

    centre = min(max(x / a, -4.0), 4.0)
    points = sorted({*mix.means.tolist(), centre, max(-9.0, centre - 4 * s / a), min(9.0, centre + 4 * s / a)})
    total, first = (quad(joint, -10, 10, args=(p,), points=points, limit=500)[0] for p in (0, 1))
    if total > 1e-200:
        assert np.isclose(mix.x0(process)(np.array(x), t), first / total, rtol=1e-5, atol=1e-5)


def test_precision_as_noise_vanishes():
    """ε is not formed as (x − αx₀)/σ: at t = 1e-8 it keeps its digits."""
    mix, t = da.GaussianMixture([1.0], [0.5], [0.25]), 1e-8
    x = np.array([1.7, -0.3])
    a, s = float(VP.alpha(t)), float(VP.sigma(t))
    assert np.allclose(mix.eps(VP)(x, t), s * (x - a * 0.5) / (a * a * 0.25 + s * s), rtol=1e-14)


# -- exact flows ----------------------------------------------------------------------------------
@given(mixtures(), processes(("VPLinear", "EDM", "RectifiedFlow", "SubVP", "VE", "VPCosine")), st.data())
def test_the_1d_flow_keeps_quantiles_composes_and_inverts(mix, process, data):
    start, end = process.sampling_range
    middle = data.draw(st.floats(end, start))
    x = mix.sample(20, 1, process, start)
    y = mix.flow(process, x, start, end)
    assert y.shape == x.shape

    def cdf(z, t):
        a, s = float(process.alpha(t)), float(process.sigma(t))
        spread = np.sqrt(a * a * mix.covariances + s * s)
        return np.sum(mix.weights * norm.cdf((z[:, None] - a * mix.means) / spread), axis=1)

    assert np.allclose(cdf(y, end), cdf(x, start), rtol=1e-10, atol=1e-14)
    assert np.allclose(mix.flow(process, mix.flow(process, x, start, middle), middle, end), y, rtol=1e-9, atol=1e-10)
    back = mix.flow(process, y, end, start)
    assert np.allclose(back, x, rtol=1e-8, atol=1e-8 * np.abs(x).max())
    assert np.all(np.diff(y[np.argsort(x)]) >= 0)


@pytest.mark.parametrize("process", [da.VPLinear(), da.EDM(0.002, 80.0), da.RectifiedFlow()], ids=repr)
def test_the_1d_flow_solves_the_probability_flow_ode(process):
    mix = da.GaussianMixture([0.3, 0.7], [-1.0, 1.5], [0.2, 0.1])
    start, end = process.sampling_range
    x = mix.sample(8, 0, process, start)
    eps = mix.eps(process)

    def rate(lam, y):
        t = float(process.time_from_lam(np.clip(lam, process.lam(start), process.lam(end))))
        return -np.exp(-lam) * eps(float(process.alpha(t)) * y, t)

    span = float(process.lam(start)), float(process.lam(end))
    solution = solve_ivp(rate, span, x / process.alpha(start), rtol=1e-11, atol=1e-11, method="DOP853").y[:, -1]
    assert np.allclose(mix.flow(process, x, start, end), solution * process.alpha(end), rtol=1e-7, atol=1e-8)


def test_the_flow_is_exact_far_in_the_tails():
    """Forty standard deviations out the cdf is 0 or 1; the log tails still match the outermost component's line."""
    mix = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.2, 0.2])
    x = np.array([-40.0, -20.0, 20.0, 40.0])
    y = mix.flow(VP, x, 1.0, 0.1)
    assert np.all(np.isfinite(y))
    assert np.allclose(mix.flow(VP, y, 0.1, 1.0), x, rtol=1e-11)
    assert np.allclose(y[:2], -y[:1:-1], rtol=1e-12)


def test_one_gaussian_of_any_covariance_scales_its_axes():
    root = RNG.standard_normal((4, 4))
    covariance, mean = root @ root.T + 0.1 * np.eye(4), RNG.standard_normal(4)
    mix = da.GaussianMixture([1.0], mean[None], covariance[None])
    x = RNG.standard_normal((5, 4))
    start, end = 1.0, 1e-3
    spectrum, axes = np.linalg.eigh(covariance)
    a, s, a1, s1 = (float(f(t)) for t in (start, end) for f in (VP.alpha, VP.sigma))
    scale = np.sqrt((a1**2 * spectrum + s1**2) / (a**2 * spectrum + s**2))
    truth = a1 * mean + ((x - a * mean) @ axes * scale) @ axes.T
    assert np.allclose(mix.flow(VP, x, start, end), truth, rtol=1e-12)
    assert np.allclose(mix.flow(VP, torch.as_tensor(x), start, end).numpy(), truth, rtol=1e-12)
    same = da.GaussianMixture([1.0], [0.5], [2.0])
    assert np.allclose(
        same.flow(VP, x[:, 0], 1.0, 0.1), da.GaussianMixture([1.0], [[0.5]], [[2.0]]).flow(VP, x[:, :1], 1.0, 0.1)[:, 0]
    )


def test_products_flow_coordinate_by_coordinate():
    parts = [da.GaussianMixture([0.4, 0.6], [-1, 1], [0.1, 0.2]), da.GaussianMixture([1.0], [0.3], [0.5])]
    product = da.ProductMixture(parts)
    x = RNG.standard_normal((6, 2))
    y = product.flow(VP, x, 1.0, 0.01)
    for i, part in enumerate(parts):
        assert np.allclose(y[:, i], part.flow(VP, x[:, i], 1.0, 0.01), rtol=1e-12)
        assert np.allclose(product.eps(VP)(x, 0.2)[:, i], part.eps(VP)(x[:, i], 0.2), rtol=1e-13)
    assert np.allclose(product.log_prob(x, VP, 0.2), sum(p.log_prob(x[:, i], VP, 0.2) for i, p in enumerate(parts)))
    joint = da.GaussianMixture(
        [0.4, 0.6], [[-1, 0.3], [1, 0.3]], [[0.1, 0.5], [0.2, 0.5]]
    )  # the same density as one 2-D mixture
    assert np.allclose(product.log_prob(x, VP, 0.2), joint.log_prob(x, VP, 0.2), rtol=1e-12)
    assert np.allclose(product.x0(VP)(x, 0.2), joint.x0(VP)(x, 0.2), rtol=1e-11)


def test_mean_reverting_processes_shift_densities_and_flows():
    mu, mix = 2.0, da.GaussianMixture([0.4, 0.6], [-1, 1], [0.1, 0.2])
    process = da.MeanReverting(VP, mu)
    moved = da.GaussianMixture(mix.weights, mix.means - mu, mix.covariances)
    x, t = np.linspace(-2, 4, 7), 0.3
    assert np.allclose(mix.log_prob(x, process, t), moved.log_prob(x - mu, VP, t), rtol=1e-13)
    assert np.allclose(mix.eps(process)(x, t), moved.eps(VP)(x - mu, t), rtol=1e-12)
    assert np.allclose(mix.x0(process)(x, t), moved.x0(VP)(x - mu, t) + mu, rtol=1e-12)
    assert np.allclose(mix.flow(process, x, 1.0, 0.1), moved.flow(VP, x - mu, 1.0, 0.1) + mu, rtol=1e-11)
    samples = mix.sample(20_000, 0, process, 1.0)
    assert abs(samples.mean() - mu) < 0.05


def test_samples_have_the_moments():
    n = 40_000
    for mix, matrices in vector_mixtures().values():
        x = mix.sample(n, 3)
        mean = mix.weights @ mix.means
        second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(mix.weights, mix.means, matrices, strict=True))
        assert np.all(np.abs(x.mean(0) - mean) < 6 * x.std(0) / np.sqrt(n))
        truth = second - np.outer(mean, mean)
        assert np.allclose(np.cov(x.T), truth, rtol=0, atol=0.05 * np.trace(truth))
        assert np.array_equal(mix.sample(5, 3), mix.sample(5, 3))
    product = da.ProductMixture([da.GaussianMixture([1.0], [1.0], [0.5])] * 2)
    x = product.sample(n, 0, VP, 0.5)
    a, s = float(VP.alpha(0.5)), float(VP.sigma(0.5))
    assert np.allclose(x.mean(0), a, atol=0.03)
    assert np.allclose(x.var(0), a * a * 0.5 + s * s, rtol=0.05)


# -- ideal denoiser -------------------------------------------------------------------------------
def brute_force(data, process, std, x, t):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    v = a * a * std**2 + s * s
    flat, points = x.reshape(len(x), -1), data.reshape(len(data), -1)
    logits = -((flat[:, None] - a * points) ** 2).sum(-1) / (2 * v)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return (s / v * (flat - a * share @ points)).reshape(x.shape)


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("block", [2**23, 40])
def test_ideal_denoiser_is_the_mixture_at_the_data(std, block, monkeypatch):
    from deis_analysis.problems.denoiser import IdealDenoiser

    monkeypatch.setattr(IdealDenoiser, "_BLOCK_ENTRIES", block)
    data, x = RNG.standard_normal((50, 2, 3)), RNG.standard_normal((7, 2, 3))
    model = da.ideal_denoiser(data, VP, std)
    for t in (1e-3, 0.05, 0.5, 1.0):
        truth = brute_force(data, VP, std, x, t)
        assert np.allclose(model(x, t), truth, rtol=1e-8, atol=1e-9)
        tensor = da.ideal_denoiser(torch.as_tensor(data), VP, std)(torch.as_tensor(x), t)
        assert np.allclose(tensor.numpy(), truth, rtol=1e-8, atol=1e-9)
    if std:
        mix = da.GaussianMixture(np.full(50, 0.02), data.reshape(50, 6), np.full(50, std**2))
        assert np.allclose(model(x, 0.2).reshape(7, 6), mix.eps(VP)(x.reshape(7, 6), 0.2), rtol=1e-9, atol=1e-10)


def test_ideal_denoiser_keeps_dtypes_and_gradients():
    data = torch.randn(20, 4, dtype=torch.float32)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model = da.ideal_denoiser(data, VP, 0.2)
    assert model(x, 0.5).dtype == torch.float64
    assert model(x.float(), 0.5).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda u: model(u, 0.5), (x,))
    shifted = da.MeanReverting(VP, 1.0)
    a = da.ideal_denoiser(data.double() + 1.0, shifted, 0.2)(x.detach() + 1.0, 0.5)
    assert torch.allclose(a, da.ideal_denoiser(data.double(), VP, 0.2)(x.detach(), 0.5), rtol=1e-10)


def test_fifty_thousand_points_of_dimension_3072_fit_in_2_gib():
    code = """
import re, numpy as np, deis_analysis as da
rng = np.random.default_rng(0)
data = np.empty((50_000, 3072), dtype=np.float32)
for i in range(0, 50_000, 5000):
    data[i:i + 5000] = rng.random((5000, 3072), dtype=np.float32)
model = da.ideal_denoiser(data, da.VPLinear())
out = model(rng.standard_normal((8, 3072)).astype(np.float32), 0.3)
assert out.shape == (8, 3072) and np.isfinite(out).all()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 2**20)
"""
    peak = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert peak < 2.0  # GiB, of which the data are 0.57


PAIR = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.2])


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: da.GaussianMixture([0.5, 0.4], [0, 1], [1, 1]), "weights=.* sum to 1; the sum is 0.9"),
        (lambda: da.GaussianMixture([1.5, -0.5], [0, 1], [1, 1]), "weights=.* must be non-negative"),
        (lambda: da.GaussianMixture([0.5, np.nan], [0, 1], [1, 1]), "weights="),
        (lambda: da.GaussianMixture([], [], []), r"weights has shape \(0,\)"),
        (lambda: da.GaussianMixture([1.0], [0.0, 1.0], [1.0]), r"means has shape \(2,\); allowed: \(1,\)"),
        (lambda: da.GaussianMixture([1.0], [0.0], [1.0, 2.0]), r"covariances has shape \(2,\); allowed: \(1,\)"),
        (lambda: da.GaussianMixture([1.0], [[0.0, 1.0]], [[1.0, 2.0, 3.0]]), r"covariances has shape \(1, 3\)"),
        (lambda: da.GaussianMixture([1.0], [0.0], [-1.0]), "covariances must be positive definite; .* -1"),
        (lambda: da.GaussianMixture([1.0], [0.0], [0.0]), "covariances must be positive definite"),
        (lambda: da.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite; .* -1"),
        (lambda: da.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "covariances must be symmetric"),
        (lambda: da.GaussianMixture([1.0], [np.inf], [1.0]), "means and covariances must be finite"),
        (
            lambda: vector_mixtures()["full"][0].eps(VP)(np.ones((2, 4)), 0.5),
            r"x has shape \(2, 4\); allowed: \(..., 3\)",
        ),
        (lambda: vector_mixtures()["full"][0].flow(VP, np.ones((2, 3)), 1.0, 0.1), "no closed-form flow; allowed"),
        (lambda: da.GaussianMixture([1.0], [0.0], [1.0]).eps(VP)(np.ones(2), 1.5), "t=1.5 is outside"),
        (lambda: da.GaussianMixture([1.0], [0.0], [1.0]).model(VP, "noise"), "prediction='noise'"),
        (lambda: da.GaussianMixture([1.0], [0.0], [1.0]).log_prob(np.ones(2), VP), "must be given together"),
        (lambda: da.GaussianMixture([1.0], [0.0], [1.0]).sample(0), "n=0 must be an integer"),
        (lambda: PAIR.flow(VP, np.array([0.0, np.nan]), 1.0, 0.1), "x must be finite"),
        (lambda: PAIR.flow(VP, np.array([0.0, 1e200]), 1.0, 0.1), r"x=1e\+200 is too far out"),
        (lambda: PAIR.flow(VP, np.array([0.0, -1e200]), 1.0, 0.1), r"x=-1e\+200 is too far out"),
        (lambda: da.ProductMixture([]), "marginals must be"),
        (lambda: da.ProductMixture([vector_mixtures()["full"][0]]), "marginals must be one-dimensional"),
        (
            lambda: da.ProductMixture([da.GaussianMixture([1.0], [0.0], [1.0])] * 2).eps(VP)(np.ones(3), 0.5),
            "x has shape",
        ),
        (lambda: PAIR.eps(VP)(np.ones(3, int), 0.5), "x has dtype int64"),
        (lambda: PAIR.eps(VP)(torch.ones(3, dtype=torch.int64), 0.5), "x has dtype torch.int64"),
        (lambda: PAIR.eps(None), "process=None must be a Process"),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), VP)(np.ones((4, 2), int), 0.5), "x has dtype int64"),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), VP, "a"), "std='a' must be made of real numbers"),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), None), "process=None must be a Process"),
        (lambda: da.ideal_denoiser(np.ones(3), VP), r"data has shape \(3,\)"),
        (lambda: da.ideal_denoiser(np.ones((3, 2), int), VP), "data has dtype int64"),
        (lambda: da.ideal_denoiser(np.full((3, 2), np.nan), VP), "data must be finite"),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), VP, -1.0), "std=-1.0 must be finite and >= 0"),
        (
            lambda: da.ideal_denoiser(np.ones((3, 2)), VP)(np.ones((4, 3)), 0.5),
            r"x has shape \(4, 3\); allowed: \(batch, 2\)",
        ),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), VP)(torch.ones(4, 2), 0.5), "x and data must be of one library"),
        (lambda: da.ideal_denoiser(np.ones((3, 2)), VP)(np.ones((4, 2)), 0.0), "t=0.0: σ=0 there"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
