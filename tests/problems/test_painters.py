"""The Gaussian closed form: against the formula, an integrator, and the ideal denoiser of data at high noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import processes

import deis_analysis as da
from deis_analysis.problems.painters import gaussian_of, teleport

VP = da.VPLinear()
RNG = np.random.default_rng(0)
DATA = RNG.gamma(2.0, 0.5, (40, 3)) @ np.array([[1.0, 0.4, 0.0], [0.0, 0.7, -0.3], [0.0, 0.0, 0.5]])


def times(process, shares):
    start, end = process.sampling_range
    return [start + (end - start) * share for share in shares]


def written_out(data, floor, process, x_T, t_start, t):
    mean = data.mean(axis=0)
    c = data - mean
    values, vectors = np.linalg.eigh(c.T @ c / len(data) + floor * np.eye(mean.size))
    (a, s), (a_T, s_T) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (t, t_start))
    total = np.tile(a * mean, (len(x_T), 1))
    for k in range(mean.size):
        u = vectors[:, k]
        factor = np.sqrt((s**2 + a**2 * values[k]) / (s_T**2 + a_T**2 * values[k]))
        total += factor * np.outer((x_T - a_T * mean) @ u, u)
    return total


@given(processes(), st.integers(0, 1000), st.floats(0, 0.9), st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0]))
def test_formula_and_composition(process, seed, first, second, floor):
    rng = np.random.default_rng(seed)
    data, x_T = rng.standard_normal((8, 3)) * [1.0, 0.5, 2.0] + 0.7, rng.standard_normal((4, 3))
    start, middle, end = times(process, (0.0, first, first + (1 - first) * second))
    direct = teleport(data, process, x_T, start, end, floor=floor)
    assert np.allclose(direct, written_out(data, floor, process, x_T, start, end), rtol=1e-9, atol=1e-11)
    halfway = teleport(data, process, x_T, start, middle, floor=floor)
    assert np.allclose(teleport(data, process, halfway, middle, end, floor=floor), direct, rtol=1e-9, atol=1e-11)


def test_integrator_agrees():
    g = gaussian_of(DATA)
    x_T = RNG.standard_normal((5, 3))
    found = da.reference_solution(g.eps(VP), VP, x_T, 0.3, 1e-10, 1e-10, t_start=1.0, certify=False)
    assert np.abs(teleport(g, VP, x_T, 1.0, 0.3) - found.x).max() < 1e-8


def test_rotation_is_another_picture():
    """α x₀ + √(1 − α²) x_T is the flow of a point (λ = 0), not of data with λ = 2.5."""
    process = da.VPLinear()
    t = float(process.time_from_rho(np.sqrt(1 - 0.9**2) / 0.9))
    wide = da.GaussianMixture([1.0], [0.0], [2.5])
    x_T = np.array([1.0])
    x_0 = wide.flow(process, x_T, 1.0, 0.0)
    exact, rotation = float(teleport(wide, process, x_T, 1.0, t)[0]), 0.9 * x_0[0] + np.sqrt(1 - 0.9**2) * x_T[0]
    assert exact == pytest.approx(np.sqrt(0.19 + 0.81 * 2.5), abs=2e-4)  # α_T = 0.0066 is not 0
    assert (round(exact, 3), round(float(rotation), 3)) == (1.488, 1.859)
    point = teleport(np.zeros((1, 2)), process, np.ones((1, 2)), 1.0, t, floor=1e-14)
    assert np.allclose(point, process.sigma(t) / process.sigma(1.0), rtol=1e-10)


def denoiser_gap(data, process, z, rho):
    """Ideal denoiser minus that of the Gaussian at x̄ = μ + ρ z."""
    t = float(process.time_from_rho(rho))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = alpha * (data.mean(axis=0) + rho * z)
    ideal = (x - sigma * da.ideal_denoiser(data, process)(x, t)) / alpha
    return ideal - gaussian_of(data).x0(process)(x, t)


def test_skewed_data_leave_the_gaussian_at_second_order_in_the_inverse_noise_level():
    process, z = da.EDM(0.002, 1e4), RNG.standard_normal((6, 3))
    levels = np.array([100.0, 200.0, 400.0, 800.0])
    gaps = [denoiser_gap(DATA, process, z, rho) for rho in levels]
    slope = np.polyfit(np.log(1 / levels**2), [np.log(np.abs(g).max()) for g in gaps], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.02)
    c = DATA - DATA.mean(axis=0)
    third = np.einsum("ni,nj,nk->ijk", c, c, c) / len(c)
    lead = 0.5 * np.einsum("ijk,njk->ni", third, z[:, :, None] * z[:, None, :] - np.eye(3))
    assert np.allclose(gaps[-1] * levels[-1] ** 2, lead, rtol=0, atol=0.02 * np.abs(lead).max())


def test_symmetric_data_leave_it_one_half_order_later():
    """The leading term of D − μ is itself of order ½ in 1/ρ²."""
    data, process, z = np.concatenate([DATA, -DATA]), da.EDM(0.002, 1e4), RNG.standard_normal((6, 3))
    levels = np.array([50.0, 100.0, 200.0])
    gaps = [np.abs(denoiser_gap(data, process, z, rho)).max() for rho in levels]
    assert np.polyfit(np.log(1 / levels**2), np.log(gaps), 1)[0] == pytest.approx(1.5, abs=0.02)
    pull = (
        gaussian_of(data).x0(process)(levels[1] * z, levels[1]),
        gaussian_of(data).x0(process)(levels[2] * z, levels[2]),
    )
    assert np.log2(np.abs(pull[0]).max() / np.abs(pull[1]).max()) / 2 == pytest.approx(0.5, abs=0.01)


def test_moments_are_those_of_the_data_set_smoothed():
    g = gaussian_of(DATA, floor=0.04)
    c = DATA - DATA.mean(axis=0)
    assert np.allclose(g.means[0], DATA.mean(axis=0))
    assert np.allclose(g.covariances[0], c.T @ c / 40 + 0.04 * np.eye(3))
    one = gaussian_of(DATA[:, 0], floor=0.04)
    assert one.dimension == 1
    assert one.covariances[0] == pytest.approx(DATA[:, 0].var() + 0.04)
    few = gaussian_of(DATA[:2], floor=1e-3)
    assert np.allclose(np.linalg.eigvalsh(few.covariances[0])[:2], 1e-3)


def test_images_and_tensors_keep_their_shape():
    images, x_T = DATA[:36].reshape(9, 3, 2, 2), RNG.standard_normal((5, 3, 2, 2))
    flat = teleport(images.reshape(9, 12), VP, x_T.reshape(5, 12), 1.0, 0.5, floor=0.1)
    assert np.array_equal(teleport(images, VP, x_T, 1.0, 0.5, floor=0.1), flat.reshape(x_T.shape))
    single = teleport(torch.tensor(images), VP, torch.tensor(x_T, dtype=torch.float32), 1.0, 0.5, floor=0.1)
    assert single.dtype == torch.float32
    assert np.allclose(single.numpy(), flat.reshape(x_T.shape), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 2, 2), (5, 2, 2), (5, 4, 1), (5, 1, 4), (4,)])
def test_states_of_any_shape_have_the_numbers_of_a_point(shape):
    images, x_T = RNG.gamma(2.0, 0.5, (30, 1, 2, 2)), RNG.standard_normal(shape)
    found = teleport(images, VP, x_T, 1.0, 0.5)
    assert found.shape == shape
    flat = written_out(images.reshape(30, 4), 0.0, VP, x_T.reshape(-1, 4), 1.0, 0.5)
    assert np.allclose(found, flat.reshape(shape), rtol=1e-10)


def test_bfloat16_data():
    data = torch.tensor(DATA).bfloat16()
    assert np.allclose(gaussian_of(data).covariances, gaussian_of(data.double().numpy()).covariances, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian_of(DATA[:2]), "floor=0.0 leaves the covariance of data singular"),
        (lambda: gaussian_of(np.zeros(5)), "singular"),
        (lambda: gaussian_of(DATA, floor=-1.0), "floor=-1.0 must be"),
        (lambda: gaussian_of([np.nan, 1.0]), "data=.* must be finite"),
        (lambda: gaussian_of(3.0), r"data has shape \(\)"),
        (lambda: gaussian_of(np.empty((0, 2))), "data has shape"),
        (lambda: teleport(DATA, VP, np.ones((2, 4)), 1.0, 0.5), r"x_T has shape \(2, 4\)"),
        (
            lambda: teleport(np.eye(6)[:, :4].reshape(6, 1, 2, 2), VP, np.ones((5, 1, 4, 4)), 1.0, 0.5),
            r"\(5, 1, 4, 4\)",
        ),
        (lambda: teleport(DATA, VP, np.ones((2, 2, 3)), 1.0, 0.5), r"x_T has shape \(2, 2, 3\)"),
        (lambda: teleport(DATA, VP, np.ones(2), 1.0, 0.5), r"x_T has shape \(2,\)"),
        (lambda: teleport(DATA, VP, np.ones(()), 1.0, 0.5), r"x_T has shape \(\)"),
        (lambda: teleport(DATA, VP, np.full((2, 3), np.nan), 1.0, 0.5), "x_T must be finite"),
        (lambda: teleport(DATA[:, 0], VP, np.array([np.nan]), 1.0, 0.5), "x_T must be finite"),
        (lambda: teleport(gaussian_of(DATA), VP, np.ones((2, 3)), 1.0, 0.5, floor=0.1), "floor=0.1 is for data"),
        (lambda: teleport(DATA, VP, np.ones((2, 3)), 1.0, 1.5), "outside"),
        (lambda: teleport(DATA, "vp", np.ones((2, 3)), 1.0, 0.5), "process='vp'"),
        (lambda: teleport(da.GaussianMixture([0.5, 0.5], [0, 1], [1, 1]), VP, np.ones(2), 1.0, 0.5), "one component"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
