"""The Fokker–Planck residual on exact, scaled and rotated scores; the ODE–SDE gap against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
import torch
from exact import PROCESSES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from strategies import processes

import deis_analysis as da
from deis_analysis.diagnostics.conservativity import as_score
from deis_analysis.diagnostics.fokker_planck import fokker_planck_residual, linear_score_gap, time_derivative

VP = da.VPLinear()
MIX = da.GaussianMixture([0.3, 0.7], [[-0.8, 0.4], [0.9, 0.1]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]])


@st.composite
def mixtures_2d(draw):
    """Two Gaussians in two dimensions, correlated."""
    angle, weight = draw(st.floats(0.0, 3.0)), draw(st.floats(0.1, 0.9))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    spectra = draw(st.tuples(*[st.floats(0.2, 1.0)] * 4))
    covariances = [rotation @ np.diag(s) @ rotation.T for s in (spectra[:2], spectra[2:])]
    means = np.array(draw(st.tuples(*[st.floats(-1.5, 1.5)] * 4))).reshape(2, 2)
    return da.GaussianMixture(
        [weight, 1 - weight], means, 0.5 * (np.array(covariances) + np.swapaxes(covariances, 1, 2))
    )


def inside(data, process, ends=0.0):
    """A time at a share of the range of λ, kinks of VPDiscrete (integer times) left out."""
    start, end = process.sampling_range
    share = data.draw(st.floats(ends, 1.0 - ends))
    lam = (1 - share) * process.lam(start) + share * process.lam(end)
    t = float(np.clip(process.time_from_lam(lam), end, start))
    return t if not process.breakpoints.size else float(np.clip(math.floor(t) + 0.5, end, start))


def total_variance(process, t, v):
    return float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2


# -- the residual ---------------------------------------------------------------------------------
@settings(max_examples=50)
@given(processes(), mixtures_2d(), st.data())
def test_every_exact_score_of_a_mixture_has_residual_zero(process, mix, data):
    """To the error that the differences in time estimate, which is itself small beside what they difference."""
    t = inside(data, process)
    x = torch.tensor(mix.sample(2, 0, process, t))
    score = mix.score(process)
    rate, error = time_derivative(score, process, x, t)
    g2, s = float(process.diffusion_squared(t)), score(x, t)
    terms = float(rate.abs().max()) + g2 * float((s * s).max() + s.abs().max()) / math.sqrt(float(process.sigma(t)))
    residual = fokker_planck_residual(score, process, x, t)
    assert float(residual.abs().max()) < error + 1e-12 * terms
    assert error < 3e-10 * float(s.abs().max()) * float(process.log_rho_rate(t))


@settings(max_examples=80)
@given(processes(), st.floats(-0.5, 0.5), st.floats(0.0, 2.0), st.data())
def test_a_scaled_score_of_gaussian_data_leaves_its_closed_form(process, delta, v, data):
    """s = −(1 + δ) x/V: R = −δ (1 + δ) g² x/V², by hand from V̇ = 2fV + g²; with v = 0, α = 1 in the clock σ²: /s²."""
    t = inside(data, process, 0.05)
    big = total_variance(process, t, v)
    x = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64) * math.sqrt(big)
    residual = fokker_planck_residual(lambda y, u: -(1 + delta) * y / total_variance(process, u, v), process, x, t)
    g2 = float(process.diffusion_squared(t))
    scale = (g2 + 2 * abs(float(process.drift(t))) * big) / big**2 * float(x.abs().max())
    assert torch.allclose(residual, -delta * (1 + delta) * g2 * x / big**2, rtol=0, atol=2e-8 * scale)


def test_the_toy_in_its_own_clock():
    """VE of data at a point in the clock s = σ²: −δ (1 + δ) x/s²; on EDM ds/dt = 2t."""
    x, delta, t = torch.tensor([[0.5], [-2.0]], dtype=torch.float64), 0.3, 1.7
    found = fokker_planck_residual(lambda y, u: -(1 + delta) * y / u**2, da.EDM(), x, t)
    assert torch.allclose(found / (2 * t), -delta * (1 + delta) * x / t**4, rtol=1e-9)


@settings(max_examples=80)
@given(processes(("VPLinear", "EDM", "RectifiedFlow", "VE")), st.floats(-2.0, 2.0), st.data())
def test_a_rotating_part_leaves_its_own_residual(process, kappa, data):
    """s = −x/V + κ(t) K x with κ = κ₀ t: x·Kx = 0 and ∇·Kx = 0 leave R = κ̇ K x − g² κ² x."""
    t = inside(data, process, 0.1)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # row vectors: x @ turn = K x
    x = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64)

    def score(y, u):
        return -y / total_variance(process, u, 0.5) + kappa * u * (y @ turn)

    g2 = float(process.diffusion_squared(t))
    expected = kappa * (x @ turn) - g2 * (kappa * t) ** 2 * x
    scale = 1 + g2 + abs(float(process.drift(t))) / total_variance(process, t, 0.5) + float(expected.abs().max())
    residual = fokker_planck_residual(score, process, x, t)
    assert torch.allclose(residual, expected, rtol=0, atol=1e-7 * scale / total_variance(process, t, 0.5) ** 2)


def test_a_mean_reverting_process_has_its_own_drift():
    process = da.MeanReverting(VP, mean=np.array([2.0, -1.0]), noise_scale=0.4)
    x = torch.tensor(MIX.sample(4, 0, process, 0.4))
    assert float(fokker_planck_residual(MIX.score(process), process, x, 0.4).abs().max()) < 1e-8
    shifted = da.MeanReverting(VP, mean=np.array([2.1, -1.0]), noise_scale=0.4)
    assert float(fokker_planck_residual(MIX.score(process), shifted, x, 0.4).abs().max()) > 1e-2


def test_one_dimension_and_the_wrong_process():
    mix, x = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3]), torch.linspace(-2, 2, 7).double()[:, None]
    assert float(fokker_planck_residual(mix.score(VP), VP, x, 0.3).abs().max()) < 1e-9
    other = da.VPLinear(0.1, 15.0)
    assert float(fokker_planck_residual(mix.score(VP), other, x, 0.3).abs().max()) > 0.1


def test_a_model_without_a_graph_is_refused():
    """Under torch.no_grad the bracket would be 0 and R = ∂ₜs; the derivative in time alone needs no graph."""
    x, score = torch.tensor(MIX.sample(3, 0, VP, 0.3)), MIX.score(VP)
    hidden = torch.no_grad()(score)
    assert torch.equal(time_derivative(hidden, VP, x, 0.3)[0], time_derivative(score, VP, x, 0.3)[0])
    for probes in (None, 1):
        with pytest.raises(ValueError, match=r"score is not differentiable in x at t=0\.3"):
            fokker_planck_residual(hidden, VP, x, 0.3, probes=probes)
    for prediction in da.PREDICTIONS:
        model = MIX.model(VP, prediction)
        assert float(fokker_planck_residual(as_score(model, VP, prediction), VP, x, 0.3).abs().max()) < 1e-8
        with pytest.raises(ValueError, match="is not differentiable in x"):
            fokker_planck_residual(as_score(torch.no_grad()(model), VP, prediction), VP, x, 0.3)


def test_a_model_is_called_in_the_dtype_of_x():
    x, seen = torch.ones((2, 2)), set()

    def score(y, t):
        seen.add(y.dtype)
        return -y / total_variance(VP, t, 0.6)

    found = fokker_planck_residual(score, VP, x, 0.3, time_step=0.02)
    assert seen == {found.dtype} == {torch.float32}
    assert float(found.abs().max()) < 1e-2


def test_hutchinson_is_exact_in_one_dimension_and_unbiased_in_two():
    x = torch.tensor(MIX.sample(3, 0, VP, 0.3))
    exact = fokker_planck_residual(lambda y, t: 1.2 * MIX.score(VP)(y, t), VP, x, 0.3)
    draws = torch.stack(
        [
            fokker_planck_residual(lambda y, t: 1.2 * MIX.score(VP)(y, t), VP, x, 0.3, probes=1, seed=k)
            for k in range(50)
        ]
    )
    error = draws.std(0) / math.sqrt(50)
    assert float(error.max()) > 1e-2
    assert bool((abs(draws.mean(0) - exact) < 4.5 * error + 1e-9).all())
    many = fokker_planck_residual(lambda y, t: 1.2 * MIX.score(VP)(y, t), VP, x, 0.3, probes=150)
    assert bool((abs(many - exact) < 4.5 * draws.std(0) / math.sqrt(150) + 1e-9).all())
    mix, line = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3]), torch.linspace(-2, 2, 5).double()[:, None]
    pair = [fokker_planck_residual(lambda y, t: 1.2 * mix.score(VP)(y, t), VP, line, 0.3, probes=p) for p in (None, 1)]
    assert torch.allclose(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("process", "t"),
    [
        (VP, 1.0),
        (da.EDM(), 0.002),
        (da.EDM(), 80.0),
        (da.VE(), 0.0),
        (da.VE(), 1.0),
        (VP, 1e-3),
        (da.VPCosine(), 0.9946),
    ],
)
def test_time_derivative_at_the_ends_of_the_range(process, t):
    """One-sided there; the closed form for Gaussian data is x V̇/V², V̇ = 2fV + g²."""
    x, v = torch.tensor([[0.3, -0.7]], dtype=torch.float64), 0.6
    found, error = time_derivative(lambda y, u: -y / total_variance(process, u, v), process, x, t)
    big = total_variance(process, t, v)
    expected = x * (2 * float(process.drift(t)) * big + float(process.diffusion_squared(t))) / big**2
    gap = float((found - expected).abs().max())
    assert gap < 1e-7 * float(expected.abs().max())
    assert gap < error


def score_at(law, x, alpha, sigma):
    """The score of a 1-D mixture diffused to α, σ, in mpmath."""
    weights, means, variances = law
    spread = [alpha * alpha * v + sigma * sigma for v in variances]
    parts = [w * mp.npdf(x, alpha * m, mp.sqrt(s)) for w, m, s in zip(weights, means, spread, strict=True)]
    return mp.fsum(p * (alpha * m - x) / s for p, m, s in zip(parts, means, spread, strict=True)) / mp.fsum(parts)


def exact_rate(name, law, x, t):
    """∂ₜs to 20 digits, from above at a kink and from below at the end."""
    process, alpha, sigma = PROCESSES[name]
    t, x = mp.mpf(t), mp.mpf(float(x))
    step = mp.mpf(10) ** -13 * t if t > 0 else mp.mpf(10) ** -16
    step = -step if t >= process.t_max else step
    s0, s1, s2 = (score_at(law, x, alpha(u), sigma(u)) for u in (t, t + step, t + 2 * step))
    return float((4 * s1 - 3 * s0 - s2) / (2 * step))


def many_times(process, rng):
    """Both ends of the range of sampling, times evenly in λ between them, and kinks where there are any."""
    start, end = process.sampling_range
    shares = [0.0, *rng.uniform(0, 1, 3), 1.0]
    lams = [(1 - s) * float(process.lam(start)) + s * float(process.lam(end)) for s in shares]
    times = np.clip([float(process.time_from_lam(v)) for v in lams], end, start)
    times[[0, -1]] = start, end
    return np.append(times, rng.choice(process.breakpoints, 2)) if process.breakpoints.size else times


@pytest.mark.parametrize("name", PROCESSES)
def test_the_estimate_bounds_the_error_of_the_time_derivative(name):
    """And never lies below the rounding of a difference quotient, nor so far above that it says nothing."""
    process, rng = PROCESSES[name][0], np.random.default_rng(7)
    for point in (False, False, True):
        law = ([1.0], [0.0], [1e-12]) if point else ([0.3, 0.7], rng.uniform(-1, 1, 2), rng.uniform(0.1, 1, 2))
        score = da.GaussianMixture(*law).score(process)
        for t in map(float, many_times(process, rng)):
            x = torch.as_tensor(
                rng.standard_normal((2, 1)) * math.sqrt(total_variance(process, t, 0.0 if point else 0.5))
            )
            found, error = time_derivative(score, process, x, t)
            size, rate = float(score(x, t).abs().max()), float(process.log_rho_rate(t))
            with mp.workdps(40):
                exact = [exact_rate(name, law, v, t) for v in x[:, 0]]
            assert np.abs(found[:, 0].numpy() - exact).max() < error, (t, law)
            assert error > np.finfo(float).eps * size * rate, (t, law)
            assert error < 3e-10 * size * rate, (t, law)


def test_the_estimate_does_not_vanish_by_chance():
    """A score that does not depend on time has no difference to estimate from; what rounding hides is still there."""
    x, step = torch.tensor([[1.0, -3.0]], dtype=torch.float64), 0.01
    for t in (0.3, 1.0):
        found, error = time_derivative(lambda y, u: -y, VP, x, t, step=step)
        assert np.finfo(float).eps * 3.0 / step < error < 1e-10
        assert float(found.abs().max()) < error
        _, single = time_derivative(lambda y, u: -y, VP, x.float(), t, step=step)
        assert 1e-7 * 3.0 / step < single < 1e-2


def test_a_fast_time_dependence_gets_a_shorter_step():
    """sin(ωt) with ω = 300 L: t ± 0.125/L spans 12 waves, which 17 points cannot tell."""
    x, t = torch.ones((1, 1), dtype=torch.float64), 0.4
    omega = 300 * float(VP.log_rho_rate(t))
    found, error = time_derivative(lambda y, u: y * math.sin(omega * u), VP, x, t)
    exact = omega * math.cos(omega * t)
    assert abs(float(found) - exact) < error < 1e-6 * omega
    long, coarse = time_derivative(lambda y, u: y * math.sin(omega * u), VP, x, t, step=0.125 * 300 / omega)
    assert coarse > 0.05 * omega
    assert abs(float(long) - exact) > 0.05 * omega


def test_kinks_of_a_discrete_process_are_not_differenced_across():
    process = da.VPDiscrete([0.99, 0.9, 0.5, 0.3, 0.05])
    x, v, t = torch.ones((1, 1), dtype=torch.float64), 0.6, 2.0
    found, _ = time_derivative(lambda y, u: -y / total_variance(process, u, v), process, x, t)
    big = total_variance(process, t, v)  # drift and diffusion at a kink are those of the piece above
    expected = (2 * float(process.drift(t)) * big + float(process.diffusion_squared(t))) / big**2
    assert abs(float(found) - expected) < 1e-11 * abs(expected)
    below = (2 * float(process.drift(t - 1e-9)) * big + float(process.diffusion_squared(t - 1e-9))) / big**2
    assert abs(below - expected) > 0.1 * abs(expected)


# -- the gap --------------------------------------------------------------------------------------
short = st.tuples(st.floats(0.3, 0.7), st.floats(0.05, 0.15))  # shares of the range of λ: start and length


def span(process, shares):
    start, end = (float(process.lam(t)) for t in process.sampling_range)
    cut = [start + (end - start) * s for s in (shares[0], sum(shares))]
    return [float(process.time_from_lam(lam)) for lam in cut]


@pytest.mark.parametrize("process", [da.EDM(0.1, 5.0), da.VE(0.1, 5.0)])
def test_gap_of_the_scaled_score_is_its_closed_form(process):
    """VE, data at a point, s = −(1 + δ) x/σ² from N(0, S) at σ² = S down to σ² = s.

    V_ode = S (s/S)^{1+δ}, V_sde = s/(1 + 2δ) + C s^{2+2δ}, C = S^{−1−2δ} 2δ/(1 + 2δ); the bound by quadrature in σ².
    """
    delta, big, small = 0.3, 25.0, 0.01

    def sde(s):
        return s / (1 + 2 * delta) + big ** (-1 - 2 * delta) * 2 * delta / (1 + 2 * delta) * s ** (2 + 2 * delta)

    def speed(s):  # exp(∫ L) = (small/s)^{(1+δ)/2}
        return 0.5 * (small / s) ** ((1 + delta) / 2) * abs((1 + delta) / s - 1 / sde(s)) * math.sqrt(sde(s))

    gap = linear_score_gap(lambda t: (1 + delta) / process.sigma(t) ** 2, process, big, process.t_max, process.t_min)
    cuts = [small, 0.1, 1.0, 8.0, 15.0, 20.0, big]
    bound = sum(quad(speed, a, b, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for a, b in pairwise(cuts))
    ode = big * (small / big) ** (1 + delta)
    assert np.isclose(gap.variance_ode, ode, rtol=1e-10)
    assert np.isclose(gap.variance_sde, sde(small), rtol=1e-10)
    assert np.isclose(gap.wasserstein2, math.sqrt(sde(small)) - math.sqrt(ode), rtol=1e-9)
    assert np.isclose(gap.bound, bound, rtol=1e-7)
    assert bound > 1.05 * float(gap.wasserstein2)  # s − ∇ log p̃ changes sign on the way


@settings(max_examples=80)
@given(processes(), short, st.floats(0.0, 2.0))
def test_an_exact_score_leaves_no_gap(process, shares, v):
    start, end = span(process, shares)
    first = total_variance(process, start, v)
    gap = linear_score_gap(lambda t: 1 / total_variance(process, t, v), process, first, start, end)
    exact = total_variance(process, end, v)
    assert np.isclose(gap.variance_ode, exact, rtol=1e-8)
    assert np.isclose(gap.variance_sde, exact, rtol=1e-8)
    assert max(gap.wasserstein2, gap.bound) < 1e-8 * math.sqrt(exact)


@settings(max_examples=50)
@given(processes(), short, st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(0.0, 6.0), st.floats(0.1, 4.0))
def test_the_bound_holds_for_any_linear_score(process, shares, level, wave, phase, ratio):
    start, end = span(process, shares)

    def gain(t):
        return (level + wave * math.sin(3.0 * float(process.lam(t)) + phase)) / float(process.sigma(t)) ** 2

    gap = linear_score_gap(gain, process, ratio * float(process.sigma(start)) ** 2, start, end)
    assert gap.bound >= gap.wasserstein2 * (1 - 1e-8) - 1e-10 * float(process.sigma(end))
    assert np.isclose(gap.wasserstein2, abs(math.sqrt(gap.variance_ode) - math.sqrt(gap.variance_sde)), rtol=1e-12)


@settings(max_examples=80)
@given(processes(), short, st.floats(0.6, 3.0), st.booleans())
def test_the_bound_is_an_equality_where_the_error_keeps_its_sign(process, shares, level, stationary):
    """Constant A = σ² a from q = 1/(2A − 1), where q stays: A − 1/q = 1 − A. Also from q = 1/A, where A − 1/q is of
    the sign of 1 − A ever after (q moves from 1/A monotonically towards 1/(2A − 1))."""
    start, end = span(process, shares)
    q = 1 / (2 * level - 1) if stationary else 1 / level
    s0, s1 = float(process.sigma(start)) ** 2, float(process.sigma(end)) ** 2
    gap = linear_score_gap(lambda t: level / process.sigma(t) ** 2, process, q * s0, start, end)
    h = float(process.lam(end) - process.lam(start))
    ode = s1 * q * math.exp((2 - 2 * level) * h)
    fixed = 1 / (2 * level - 1)
    sde = s1 * (fixed + (q - fixed) * math.exp((2 - 4 * level) * h))
    assert np.isclose(gap.variance_ode, ode, rtol=1e-9)
    assert np.isclose(gap.variance_sde, sde, rtol=1e-9)
    w2 = abs(math.sqrt(ode) - math.sqrt(sde))
    assert np.isclose(gap.bound, w2, rtol=1e-6, atol=1e-9 * math.sqrt(s1))


@pytest.mark.parametrize("process", [VP, da.SubVP(), da.RectifiedFlow(), da.EDM(0.05, 10.0)])
def test_gap_against_the_sdes_in_process_time(process):
    """V̇ = 2(f + ½ g² a) V for the flow, V̇ = 2(f + g² a) V − g² for the SDE, L = −(f + ½ g² a): quadrature in t."""
    start, end = (float(process.time_from_rho(r)) for r in (3.0, 0.2))

    def gain(t):
        return 1.0 + math.cos(2.0 * float(process.lam(t)))

    def rate(t, y):
        f, g2, a = float(process.drift(t)), float(process.diffusion_squared(t)), gain(t)
        signed = 0.5 * g2 * (a - 1 / y[1]) * math.sqrt(y[1])
        growth = f + 0.5 * g2 * a
        return [2 * growth * y[0], 2 * (f + g2 * a) * y[1] - g2, growth * y[2] - abs(signed), growth * y[3] - signed]

    truth = solve_ivp(rate, (start, end), [2.0, 2.0, 0.0, 0.0], method="LSODA", rtol=1e-11, atol=1e-13).y[:, -1]
    gap = linear_score_gap(gain, process, 2.0, start, end)
    assert np.allclose([gap.variance_ode, gap.variance_sde, gap.bound], truth[:3], rtol=1e-7)
    assert np.isclose(gap.wasserstein2, abs(truth[3]), rtol=1e-6)  # without the absolute value: an identity
    assert gap.wasserstein2 > 1e-2


@pytest.mark.parametrize("process", [da.EDM(0.1, 5.0), da.VE(0.1, 5.0)])
def test_gap_of_the_toy_in_numbers(process):
    """Published to six digits: the scaled score, δ = 0.3, from N(0, 25) at σ² = 25 down to σ² = 0.01."""
    gap = linear_score_gap(lambda t: 1.3 / process.sigma(t) ** 2, process, 25.0, process.t_max, process.t_min)
    assert float(gap.wasserstein2) == pytest.approx(0.048132, abs=1e-6)
    assert float(gap.bound) == pytest.approx(0.050652, abs=1e-6)


@pytest.mark.parametrize("size", [1e2, 1e5, 1e8])
def test_a_stiff_gain(size):
    """V_sde follows the root of 0 = 2(f + g² a) V − g², V = 1/(2a) up to a share f/(g² a) and a lag alike;
    the flow is at 0, and s − ∇ log p̃ keeps its sign, so that bound and distance are one number."""
    gap = linear_score_gap(lambda t: size, VP, 1.0, 0.8, 0.1)
    shift = 1 + 2 * abs(float(VP.drift(0.1))) / float(VP.diffusion_squared(0.1))
    assert np.isclose(gap.variance_sde, 1 / (2 * size), rtol=shift / size, atol=0)
    assert np.isclose(gap.wasserstein2, math.sqrt(gap.variance_sde), rtol=1e-12)
    assert np.isclose(gap.bound, gap.wasserstein2, rtol=1e-9)


def test_axes_are_independent():
    gap = linear_score_gap(lambda t: np.array([0.5, 2.0]), VP, [1.0, 3.0], 0.8, 0.1)
    assert gap.bound.shape == (2,)
    for i, (a, v) in enumerate(((0.5, 1.0), (2.0, 3.0))):
        one = linear_score_gap(lambda t, a=a: a, VP, v, 0.8, 0.1)
        assert one.bound.shape == ()
        assert np.allclose(
            [one.variance_ode, one.variance_sde, one.wasserstein2, one.bound],
            [gap.variance_ode[i], gap.variance_sde[i], gap.wasserstein2[i], gap.bound[i]],
            rtol=1e-9,
        )


def test_bad_input():
    x, score = torch.zeros((2, 2), dtype=torch.float64), MIX.score(VP)
    for arguments, message in (
        ((score, VP, x, 0.0), "t=0.0 is singular"),
        ((score, VP, x, 2.0), "outside"),
        ((score, VP, x[0], 0.5), "must be a floating torch tensor"),
        ((score, VP, x.numpy(), 0.5), "must be a floating torch tensor"),
        ((score, VP, x * math.nan, 0.5), "x must be finite"),
        ((lambda y, t: y.sum(), VP, x, 0.5), "score returned shape"),
        ((lambda y, t: y / 0, VP, x, 0.5), "must be finite"),
        ((3, VP, x, 0.5), "score=3 must be a function"),
        ((score, "VP", x, 0.5), "process='VP'"),
        ((score, da.RectifiedFlow(), x, 1.0), "singular"),
    ):
        with pytest.raises(ValueError, match=message):
            fokker_planck_residual(*arguments)
    with pytest.raises(ValueError, match=r"derivatives .* not finite"):
        fokker_planck_residual(lambda y, t: torch.sqrt(y), VP, x, 0.5)
    with pytest.raises(ValueError, match="probes=0"):
        fokker_planck_residual(score, VP, x, 0.5, probes=0)
    with pytest.raises(ValueError, match="step=-1"):
        time_derivative(score, VP, x, 0.5, step=-1)
    for arguments, message in (
        ((lambda t: 1.0, VP, 0.0, 0.5, 0.1), "variance_start=0.0"),
        ((lambda t: 1.0, VP, 1.0, 0.1, 0.5), "t_end=0.5 must be below"),
        ((lambda t: 1.0, VP, 1.0, 0.5, 0.0), "t_end=0.0: λ is infinite"),
        ((lambda t: math.nan, VP, 1.0, 0.5, 0.1), "gain"),
        ((1.0, VP, 1.0, 0.5, 0.1), "gain=1.0 must be a function"),
        ((lambda t: 1.0, da.RectifiedFlow(), 1.0, 1.0, 0.1), "t_start=1.0: λ is infinite"),
        ((lambda t: np.ones(3), VP, [1.0, 2.0], 0.5, 0.1), r"gain has shape \(3,\), variance_start \(2,\)"),
        ((lambda t: np.ones((1, 2)), VP, [1.0, 2.0], 0.5, 0.1), r"gain has shape \(1, 2\)"),
        ((lambda t: 1.0, VP, [], 0.5, 0.1), r"variance_start \(0,\)"),
        ((lambda t: np.ones(2 if t == 0.5 else 3), VP, 1.0, 0.5, 0.1), r"gain has shape \(3,\) at t="),
    ):
        with pytest.raises(ValueError, match=message):
            linear_score_gap(*arguments)
