"""Jacobian asymmetry and loop integrals on linear fields, exact mixtures and a harmless curl."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import processes
from test_fokker_planck import inside, mixtures_2d

import deis_analysis as da
from deis_analysis.diagnostics.conservativity import as_score, jacobian_asymmetry, loop_integral

VP = da.VPLinear()
MIX = da.GaussianMixture([0.3, 0.7], [[-0.8, 0.4], [0.9, 0.1]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]])
MIX3 = da.GaussianMixture([0.5, 0.5], [[-0.8, 0.4, 0.1], [0.9, 0.1, -1.0]], [[0.5, 0.2, 0.9], [0.3, 0.7, 0.4]])
K = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # by a right angle, counter-clockwise


def linear(matrix):
    return lambda x, t: -x @ matrix.T


entries = st.floats(-2.0, 2.0)


@given(entries, entries, entries, entries, st.floats(0.1, 3.0), st.tuples(entries, entries))
def test_a_linear_field_has_its_closed_form(a, b, c, kappa, radius, center):
    """s = −(S + κK) x: ‖J − Jᵀ‖_F = 2√2 |κ|, and ∮ = −2πκr² about any point, +2πκr² the other way round."""
    score = linear(torch.tensor([[a, b], [b, c]], dtype=torch.float64) + kappa * K)
    found = jacobian_asymmetry(score, torch.tensor([[0.2, -1.0], center], dtype=torch.float64), 0.5)
    assert np.allclose(found.norm, 2 * math.sqrt(2) * abs(kappa), rtol=1e-12, atol=1e-14)
    assert np.allclose(found.squared, 8 * kappa**2, rtol=1e-12, atol=1e-14)
    assert not found.standard_error.any()
    for plane, sign in (((0, 1), -1), ((1, 0), 1), (np.eye(2), -1), (np.array([[0.6, 0.8], [-0.8, 0.6]]), -1)):
        work = loop_integral(score, center, radius, plane, 0.5, points=8)
        size = 2 * math.pi * radius * (abs(a) + abs(b) + abs(c) + 1) * (radius + 4)
        assert abs(work - sign * 2 * math.pi * kappa * radius**2) < 1e-13 * size


@given(processes(), mixtures_2d(), st.floats(0.1, 1.0), st.data())
def test_exact_scores_are_gradients(process, mix, radius, data):
    t = inside(data, process)
    score, x = mix.score(process), torch.tensor(mix.sample(2, 0, process, t))
    slope = 1 / (float(process.alpha(t)) ** 2 * 0.2 + float(process.sigma(t)) ** 2)  # of the steepest component
    size = slope * (1 + slope * float(process.alpha(t)) ** 2)  # and of their mixture
    assert jacobian_asymmetry(score, x, t).norm.max() < 1e-12 * size
    assert jacobian_asymmetry(score, x, t, probes=2).norm.max() < 1e-11 * size
    r = radius * float(process.sigma(t))
    assert abs(loop_integral(score, x[0], r, (0, 1), t, points=64)) < 1e-9 * r * slope * (r + 4)


def test_the_trapezoidal_rule_converges_spectrally_on_a_mixture():
    """The integral is zero, so what is left is the error: each doubling of the points squares it, until rounding."""
    score, center = MIX.score(VP), torch.tensor([0.1, 0.2], dtype=torch.float64)
    errors = [abs(loop_integral(score, center, 1.0, (0, 1), 0.15, points=n)) for n in (4, 8, 16, 32, 64)]
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-9
    assert math.log(errors[3]) < 1.5 * math.log(errors[2])


def test_a_loop_of_a_nonlinear_field_is_its_line_integral():
    """And Stokes: ∮ of (−y³, 0) around the unit circle is ∫ 3y² dA = 3π/4."""

    def field(x, t):
        return torch.stack([-(x[:, 1] ** 3), torch.zeros_like(x[:, 0])], 1)

    assert np.isclose(loop_integral(field, [0.0, 0.0], 1.0, (0, 1), 0.5, points=8), 3 * math.pi / 4, rtol=1e-13)

    def rough(x, t):
        return torch.stack([torch.exp(x[:, 1]) * x[:, 0], torch.sin(x[:, 0] * x[:, 1])], 1)

    def speed(a):
        x, y = 0.3 + 0.7 * math.cos(a), -0.2 + 0.7 * math.sin(a)
        return 0.7 * (-math.exp(y) * x * math.sin(a) + math.sin(x * y) * math.cos(a))

    truth = quad(speed, 0, 2 * math.pi, epsabs=1e-13)[0]
    assert np.isclose(loop_integral(rough, [0.3, -0.2], 0.7, (0, 1), 0.5), truth, rtol=1e-12)


def test_the_probed_estimate_is_unbiased_with_the_stated_error():
    """Against the full Jacobian, and with the standard error that normal numbers have."""
    matrix = torch.tensor([[1.0, 0.3, -0.2], [0.9, 0.5, 0.4], [0.1, -0.8, 1.5]], dtype=torch.float64)
    x, probes = torch.zeros((4, 3), dtype=torch.float64), 3000
    exact = jacobian_asymmetry(linear(matrix), x, 0.5)
    assert np.allclose(exact.squared, float(((matrix - matrix.T) ** 2).sum()), rtol=1e-13)
    found = jacobian_asymmetry(linear(matrix), x, 0.5, probes=probes)
    assert np.all(np.abs(found.squared - exact.squared) < 4 * found.standard_error)
    # M has singular values (m, m, 0): uᵀMv = m (a·b), a, b ~ N(0, I₂); E (a·b)² = 2, E (a·b)⁴ = 3 E|a|⁴ = 24
    m2 = exact.squared[0] / 2
    assert np.allclose(found.standard_error, m2 * math.sqrt((24 - 4) / probes), rtol=0.25)
    assert np.allclose(found.norm, np.sqrt(found.squared))


def test_a_curl_on_a_mixture_is_found_in_every_plane_and_shape():
    """In 3 dimensions, and as images of shape (1, 3): the same numbers."""
    turn = torch.zeros((3, 3), dtype=torch.float64)
    turn[0, 2], turn[2, 0] = -1.0, 1.0
    x, kappa = torch.tensor(MIX3.sample(3, 0, VP, 0.3)), 0.4

    def score(y, t):
        return MIX3.score(VP)(y, t) + kappa * y @ turn.T

    def image(y, t):
        return score(y.reshape(-1, 3), t).reshape(y.shape)

    for model, state in ((score, x), (image, x.reshape(3, 1, 3))):
        assert np.allclose(jacobian_asymmetry(model, state, 0.3).norm, 2 * math.sqrt(2) * kappa, rtol=1e-12)
        assert np.isclose(loop_integral(model, state[0], 0.5, (0, 2), 0.3), 2 * math.pi * kappa * 0.25, rtol=1e-9)
        assert abs(loop_integral(model, state[0], 0.5, (0, 1), 0.3)) < 1e-11


@given(processes(), st.sampled_from(da.PREDICTIONS), st.booleans(), st.data())
def test_as_score_is_the_score(process, prediction, reverting, data):
    t = inside(data, process)
    process = da.MeanReverting(process, mean=np.array([0.7, -0.4])) if reverting else process
    x = MIX.sample(3, 0, process, t)
    found = as_score(MIX.model(process, prediction), process, prediction)(x, t)
    exact = MIX.score(process)(x, t)
    # v and x0 are turned into ε by a difference of terms of the size of x: lost digits ∝ 1/σ²
    assert np.allclose(found, exact, rtol=1e-9, atol=1e-13 * (1 + np.abs(x).max()) / float(process.sigma(t)) ** 2)
    if prediction == "eps":
        assert (
            jacobian_asymmetry(as_score(MIX.eps(process), process), torch.tensor(x), t).norm.max()
            < 1e-11 / float(process.sigma(t)) ** 2
        )


@pytest.mark.parametrize("process", [VP, da.EDM(0.05, 10.0), da.RectifiedFlow()])
def test_a_curl_on_an_isotropic_gaussian_is_harmless_to_the_law(process):
    """s = −x/V + κ K x: dx/dt has the part −½ g² κ K x, so that the way down in t turns the exact end by
    θ = +½ ∫ g² κ dt: the law is exact, and each path misses by 2 |x| |sin(θ/2)|."""
    v, angle = 0.6, 1.3
    start, end = (float(process.time_from_rho(r)) for r in (4.0, 0.3))
    mix = da.GaussianMixture([1.0], [[0.0, 0.0]], [v])
    exact = mix.score(process)

    def score(y, t):
        return exact(y, t) + kappa * (1 + t) * y @ K.T

    kappa = angle / quad(lambda t: 0.5 * float(process.diffusion_squared(t)) * (1 + t), end, start, epsabs=1e-12)[0]
    x = torch.tensor(np.vstack([mix.sample(5, 0, process, start), np.eye(2)]))
    found = da.reference_solution(
        score, process, x, end, 1e-10, 1e-10, t_start=start, prediction="score", certify=False
    ).x
    straight = mix.flow(process, x, start, end)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=x.dtype)
    assert torch.allclose(found, straight @ turn.T, rtol=0, atol=1e-7)
    miss = (found - straight).norm(dim=1)
    assert torch.allclose(miss, 2 * straight.norm(dim=1) * abs(math.sin(angle / 2)), rtol=1e-6)
    flow = found[-2:].T  # of the unit vectors: the matrix of the linear flow
    scale = (float(process.alpha(end)) ** 2 * v + float(process.sigma(end)) ** 2) / (
        float(process.alpha(start)) ** 2 * v + float(process.sigma(start)) ** 2
    )
    assert torch.allclose(flow @ flow.T, scale * torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-7)
    asymmetry = jacobian_asymmetry(score, x, start).norm
    assert np.allclose(asymmetry, 2 * math.sqrt(2) * kappa * (1 + start), rtol=1e-10)


@pytest.mark.parametrize("kept", [True, False])
def test_a_model_without_a_graph_is_refused(kept):
    """Under torch.no_grad every derivative would be 0; parameters that require gradients do not hide it."""
    matrix = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=kept)
    x = torch.ones((2, 2), dtype=torch.float64)
    assert np.allclose(jacobian_asymmetry(linear(matrix), x, 0.5).norm, 2 * math.sqrt(2))
    with torch.no_grad():  # of the caller's, not of the model's
        assert np.allclose(jacobian_asymmetry(linear(matrix), x, 0.5).norm, 2 * math.sqrt(2))
    for model in (torch.no_grad()(linear(matrix)), lambda y, t: linear(matrix)(y.detach(), t)):
        for probes in (None, 2):
            with pytest.raises(ValueError, match=r"score is not differentiable in x at t=0\.5"):
                jacobian_asymmetry(model, x, 0.5, probes=probes)
    for prediction in da.PREDICTIONS:  # x itself has a part in the score of x0 and v
        with pytest.raises(ValueError, match=r"is not differentiable in x at t=0\.5"):
            jacobian_asymmetry(as_score(torch.no_grad()(linear(matrix)), VP, prediction), x, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_are_called_in_the_dtype_of_x(dtype):
    seen = []

    def score(y, t):
        seen.append(y.dtype)
        return linear(K.to(y.dtype))(y, t)

    found = jacobian_asymmetry(score, torch.ones((2, 2), dtype=dtype), 0.5)
    assert np.allclose(found.norm, 2 * math.sqrt(2))
    assert np.isclose(loop_integral(score, torch.zeros(2, dtype=dtype), 1.0, (0, 1), 0.5), -2 * math.pi, rtol=0.02)
    assert set(seen) == {dtype}
    loop_integral(score, np.zeros(2, dtype=np.float32), 1.0, (0, 1), 0.5)
    assert seen[-1] is torch.float64


@pytest.mark.parametrize("prediction", da.PREDICTIONS)
def test_as_score_on_a_mean_far_away(prediction):
    """By hand: s = −(x − α m − (1 − α) μ)/V on N(m, v)."""
    process, m, v, mean = da.MeanReverting(VP, mean=np.array([5.0, -7.0])), np.array([4.0, -6.5]), 0.3, [5.0, -7.0]
    a, s = float(process.alpha(0.4)), float(process.sigma(0.4))
    mix, x = da.GaussianMixture([1.0], m[None], [v]), np.array([[4.1, -6.0], [5.0, -8.0]])
    expected = -(x - a * m - (1 - a) * np.array(mean)) / (a**2 * v + s**2)
    assert np.allclose(as_score(mix.model(process, prediction), process, prediction)(x, 0.4), expected, rtol=1e-10)


def test_bad_input():
    score, x = MIX.score(VP), torch.zeros((2, 2), dtype=torch.float64)
    for call, message in (
        (lambda: jacobian_asymmetry(score, x[0], 0.5), "must be a floating torch tensor"),
        (lambda: jacobian_asymmetry(score, x.long(), 0.5), "must be a floating torch tensor"),
        (lambda: jacobian_asymmetry(lambda y, t: y[:1], x, 0.5), "score returned shape"),
        (lambda: jacobian_asymmetry(score, x, 0.5, probes=1), "probes=1"),
        (lambda: jacobian_asymmetry(lambda y, t: y.sqrt(), x, 0.5), "not finite"),
        (lambda: jacobian_asymmetry(1, x, 0.5), "score=1 must be a function"),
        (lambda: loop_integral(score, [0, 0], -1.0, (0, 1), 0.5), "radius=-1.0"),
        (lambda: loop_integral(score, [0, 0], 1.0, (0, 0), 0.5), "two different coordinates"),
        (lambda: loop_integral(score, [0, 0], 1.0, (0, 2), 0.5), "plane=2 must be at most 1"),
        (lambda: loop_integral(score, [0, 0], 1.0, np.ones((2, 2)), 0.5), "orthonormal"),
        (lambda: loop_integral(score, [0, 0], 1.0, np.ones(3), 0.5), "plane has shape"),
        (lambda: loop_integral(score, [0, 0], 1.0, (0, 1), 0.5, points=3), "points=3"),
        (lambda: loop_integral(lambda y, t: y / 0, [0, 0], 1.0, (0, 1), 0.5), "finite values"),
        (lambda: loop_integral(score, [math.nan, 0], 1.0, (0, 1), 0.5), "center"),
        (lambda: loop_integral(score, torch.zeros(2, dtype=torch.int64), 1.0, (0, 1), 0.5), "center has dtype"),
        (lambda: loop_integral(score, torch.full((2,), math.nan), 1.0, (0, 1), 0.5), "center must be finite"),
        (lambda: jacobian_asymmetry(score, x * math.nan, 0.5), "x must be finite"),
        (lambda: jacobian_asymmetry(lambda y, t: y * math.inf, x + 1, 0.5), "score must be finite"),
        (lambda: as_score(score, VP, "noise"), "prediction='noise' is unknown"),
        (lambda: as_score(score, VP)(x, 0.0), "t=0.0 has σ = 0"),
        (lambda: as_score(2, VP), "model=2 must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
