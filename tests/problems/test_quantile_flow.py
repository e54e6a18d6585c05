"""The exact flow between separated modes, against mpmath and DOP853; its error estimate; its warning."""

from __future__ import annotations

import os

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from strategies import processes

import deis_analysis as da
from deis_analysis.problems.mixture import UnresolvedFlowWarning

VP = da.VPLinear()
EPS = np.finfo(np.float64).eps


# -- an authority: differences of tails, component by component, in as many digits as it takes ----
def _laws(mix, process, t):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    return [a * float(m) for m in mix.means], [float(np.sqrt(a * a * v + s * s)) for v in mix.covariances]


def _tail(z, upper):
    return mp.erfc(z / mp.sqrt(2) if upper else -z / mp.sqrt(2)) / 2


def _tail_difference(a, b):
    """Φ(b) − Φ(a) from the tail that both are in."""
    return _tail(a, True) - _tail(b, True) if a + b > 0 else _tail(b, False) - _tail(a, False)


class Truth:
    """The flow of one state by F_to(y) − F_from(x) = Σ w_k (Φ(z_k(y)) − Φ(z_k(x))), never by a cumulative weight."""

    def __init__(self, mix, process, x, t_from, t_to):
        self.x, self.weights = mp.mpf(x), [mp.mpf(float(w)) for w in mix.weights]
        self.source, self.target = _laws(mix, process, t_from), _laws(mix, process, t_to)

    def side(self, y):
        """Sign of y − answer; digits are doubled until the sum is above its rounding."""
        for digits in (40, 80, 160, 320, 640, 1280):
            with mp.workdps(digits):
                total, size = mp.mpf(0), mp.mpf(0)
                for w, m, s, m_to, s_to in zip(self.weights, *self.source, *self.target, strict=True):
                    a, b = (self.x - m) / s, (mp.mpf(y) - m_to) / s_to
                    total += w * _tail_difference(a, b)
                    size += w * max(_tail(a, a + b > 0), _tail(b, a + b > 0))
                if abs(total) > size * mp.mpf(10) ** (5 - digits):
                    return int(mp.sign(total))
        return 0

    def within(self, y, gap):
        """Whether the answer lies in [y − gap, y + gap]."""
        return self.side(mp.mpf(y) - gap) <= 0 <= self.side(mp.mpf(y) + gap)

    def amplification(self, y):
        """p_from(x)/p_to(y): what a change of x becomes."""

        def log_density(at, law):
            m, s = map(np.array, law)
            return np.logaddexp.reduce([float(mp.log(w)) for w in self.weights] - ((at - m) / s) ** 2 / 2 - np.log(s))

        return float(np.exp(min(log_density(float(self.x), self.source) - log_density(y, self.target), 700.0)))

    def answer(self, near=None, digits=25):
        """By bisection, to so many digits; a bracket is grown around ``near``, or is that of the components' images."""
        with mp.workdps(digits + 15):
            terms = zip(*self.source, *self.target, strict=True)
            images = [m_to + s_to * (self.x - m) / s for m, s, m_to, s_to in terms]
            low, high = mp.mpf(min(images)), mp.mpf(max(images))
            gap = mp.mpf(10) ** -9
            while near is not None and not self.within(near, gap):
                gap *= 100
            if near is not None:
                low, high = near - gap, near + gap
            while high - low > mp.mpf(10) ** -digits * (abs(low) + abs(high)):
                middle = (low + high) / 2
                low, high = (middle, high) if self.side(middle) < 0 else (low, middle)
            return (low + high) / 2


@st.composite
def problems(draw, names=("VPLinear", "EDM", "RectifiedFlow", "VE", "SubVP", "VPCosine")):
    """(mixture, process, t_from, t_to): 2 to 5 modes, variances 1e-8 … 1, weights 1e-12 … 1."""
    k = draw(st.integers(2, 5))
    weights = 10.0 ** -np.array(draw(st.lists(st.floats(0, 12), min_size=k, max_size=k)))
    gaps = np.array(draw(st.lists(st.floats(0.1, 2.0), min_size=k - 1, max_size=k - 1)))
    means = np.concatenate([[0.0], np.cumsum(gaps)]) - gaps.sum() * draw(st.floats(0, 1))
    variances = 10.0 ** np.array(draw(st.lists(st.floats(-8, 0), min_size=k, max_size=k)))
    order = np.array(draw(st.permutations(range(k))))
    mix = da.GaussianMixture((weights / weights.sum())[order], means[order], variances[order])
    process = draw(processes(names))
    start, end = process.sampling_range
    late, early = sorted(draw(st.floats(0, 1)) ** 2 for _ in range(2))
    assume(early - late > 1e-3)
    return mix, process, end + (start - end) * early, end + (start - end) * late


def states(mix, process, t, place):
    """Uniform between the outermost modes (place in [0, 1]), or of the law (place in [2, 3])."""
    means, widths = _laws(mix, process, t)
    if place <= 1:
        return min(means) + place * (max(means) - min(means))
    rng = np.random.default_rng(int((place - 2) * 2**31))
    k = rng.choice(len(means), p=mix.weights)
    return means[k] + widths[k] * rng.standard_normal()


def assert_exact(mix, process, x, t_from, t_to):
    """The flow is within 1e-9 of the distance of modes where float64 states can tell, within its estimate elsewhere."""
    found, error = mix.flow(process, np.array([x]), t_from, t_to, with_error=True)
    y, truth = float(found[0]), Truth(mix, process, x, t_from, t_to)
    (means, widths), (means_from, widths_from) = _laws(mix, process, t_to), _laws(mix, process, t_from)
    size, rounding = np.ptp(means) + max(widths), EPS * max(map(abs, [y, *means]))
    assert truth.within(y, 2 * error[0] + rounding)
    inherent = EPS * max(map(abs, [x, *means_from, *widths_from])) * truth.amplification(y) + rounding
    if 100 * inherent <= 1e-9 * size:
        assert truth.within(y, 1e-9 * size)
        assert error[0] <= 100 * inherent  # rounding amplified, and no more
    return y


@settings(max_examples=300)
@given(problems(), st.one_of(st.floats(0, 1), st.floats(2, 3)), st.booleans())
def test_the_flow_is_mpmaths_in_gaps_and_modes_and_back(problem, place, up):
    mix, process, early, late = problem
    t_from, t_to = (late, early) if up else (early, late)
    y = assert_exact(mix, process, states(mix, process, t_from, place), t_from, t_to)
    assert_exact(mix, process, y, t_to, t_from)  # and back, from the float64 answer


CASES = [  # (mixture, x, t_from, t_to): points of gaps, where the cdf is a cumulative weight to rounding
    (da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [1e-4, 1e-4]), -0.26220480001364, 0.023308107381618322, 1e-3),
    (da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.05**2, 0.1**2]), -0.5, 0.01, 1e-3),
    (da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.05**2, 0.1**2]), -0.3, 0.01, 1e-3),
    (da.GaussianMixture([0.5, 1e-12, 0.5 - 1e-12], [-1.0, 0.0, 1.0], [0.01, 0.01, 0.01]), -0.3, 0.01, 1e-3),
    (da.GaussianMixture([0.3, 0.4, 0.3], [-1.0, 0.1, 1.0], [1e-6, 1e-8, 1e-4]), 0.62, 0.02, 0.0),
]


@pytest.mark.parametrize(("mix", "x", "t_from", "t_to"), CASES)
def test_states_in_gaps(mix, x, t_from, t_to):
    """mpmath's root to 25 digits, and DOP853 on dx/dt with the score written out here."""
    y = assert_exact(mix, VP, x, t_from, t_to)
    assert y == pytest.approx(float(Truth(mix, VP, x, t_from, t_to).answer()), abs=1e-13)
    if t_to > 0:
        assert y == pytest.approx(dop853(mix, VP, x, t_from, t_to), abs=1e-9 * np.ptp(mix.means))


def test_the_case_between_two_narrow_modes():
    assert CASES[0][0].flow(VP, *CASES[0][1:]) == pytest.approx(-0.879582443, abs=5e-10)


def test_the_estimate_knows_that_the_density_falls_beside_a_gap():
    """Rounding of x moves y by half of a mode's distance, and from the slope at y a quarter of that was expected."""
    weights = [0.07236596311865007, 0.3975855367093479, 0.22884126852667597, 0.07236596311865007, 0.22884126852667597]
    variances = [1e-3, 3.1622776601683795e-05, 1e-3, 2.0169145547303305e-05, 1.333521432163324e-07]
    mix, process = da.GaussianMixture(weights, [0.0, 1.0, 1.125, 1.25, 1.375], variances), da.VPCosine(0.046875, 0.9946)
    x, t_from, t_to = -0.9164168144471406, 0.72151767578125, 0.001
    y, error = mix.flow(process, np.array([x]), t_from, t_to, with_error=True)
    assert Truth(mix, process, x, t_from, t_to).within(float(y[0]), error[0])


def dop853(mix, process, x, t_from, t_to):
    """The probability flow in λ by SciPy: dy/dλ = −e^{−λ} ε, y = x/α, ε = σ Σ r_k (x − αm_k)/s_k²."""

    def rate(lam, y):
        t = float(process.time_from_lam(np.clip(lam, *sorted(span))))
        a, s = float(process.alpha(t)), float(process.sigma(t))
        variance = a * a * mix.covariances + s * s
        gap = a * y - a * mix.means
        log_r = np.log(mix.weights) - 0.5 * (gap * gap / variance + np.log(variance))
        share = np.exp(log_r - log_r.max())
        return [-np.exp(-lam) * s * float(share @ (gap / variance) / share.sum())]

    span = float(process.lam(t_from)), float(process.lam(t_to))
    start = [x / float(process.alpha(t_from))]
    solved = solve_ivp(rate, span, start, method="DOP853", rtol=1e-12, atol=1e-14, max_step=0.05)
    return float(solved.y[0, -1]) * float(process.alpha(t_to))


@settings(max_examples=40)
@given(problems(), st.floats(0.05, 0.95))
def test_the_flow_solves_the_ode_between_modes(problem, place):
    """Beyond quantiles: what the identity of laws says is what the differential equation says."""
    mix, process, early, late = problem
    assume(process.rho(early) < 50 and process.rho(late) > 1e-3)
    x = states(mix, process, early, place)
    y, _ = mix.flow(process, np.array([x]), early, late, with_error=True)
    means, widths = _laws(mix, process, late)
    size = np.ptp(means) + max(widths)
    amplification = Truth(mix, process, x, early, late).amplification(float(y[0]))
    assume(amplification < 1e3)  # DOP853's own error is 1e-13, amplified
    assert abs(float(y[0]) - dop853(mix, process, x, early, late)) <= 1e-9 * size


def test_a_state_on_a_boundary_between_basins_is_said_to_be_unresolved():
    mix = da.GaussianMixture([0.4, 0.6], [-1.0, 1.0], [1e-4, 1e-4])
    low, high = -1.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        left = Truth(mix, VP, middle, 1.0, 1e-3).side(0.0) > 0
        low, high = (middle, high) if left else (low, middle)
    with pytest.warns(UnresolvedFlowWarning, match=r"1 of 2 states lie so near a boundary between two basins"):
        mix.flow(VP, np.array([low, 0.5]), 1.0, 1e-3)
    y, error = mix.flow(VP, np.array([low]), 1.0, 1e-3, with_error=True)
    assert error[0] > 1e-9
    assert abs(y[0] - float(Truth(mix, VP, low, 1.0, 1e-3).answer())) <= error[0]


def test_errors_are_never_zero_and_products_and_single_gaussians_have_them():
    x = np.array([0.0, 0.5, -0.3])
    pair, one = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1]), da.GaussianMixture([1.0], [0.2], [0.3])
    plane = da.GaussianMixture([1.0], [[0.2, 0.1]], [[[0.3, 0.1], [0.1, 0.2]]])
    for mix, state in ((pair, x), (one, x), (plane, x[:2]), (da.ProductMixture([pair, one]), x[:2])):
        y, error = mix.flow(VP, state, 1.0, 0.1, with_error=True)
        assert error.shape == y.shape == state.shape
        assert np.all((error > 0) & (error < 1e-13))
        many, errors = mix.flow_many(VP, np.stack([state, state]), [1.0, 1.0], [0.1, 0.1], with_error=True)
        assert np.array_equal(many, [y, y])
        assert np.array_equal(errors, [error, error])


# -- the error budget between separated modes -----------------------------------------------------
def mp_flow(mix, x, t_from, t_to):
    near = mix.flow(VP, np.array([float(x)]), t_from, t_to, with_error=True)[0][0] if t_to < t_from else None
    return x if t_to == t_from else Truth(mix, VP, x, t_from, t_to).answer(near, 14)


def mp_ddim_budget(mix, x, ts):
    """(extrapolation, accumulation) of DDIM from one start, in 40 digits."""
    with mp.workdps(40):

        def eps(u, t):
            a, s = mp.mpf(float(VP.alpha(t))), mp.mpf(float(VP.sigma(t)))
            means, variances = [a * float(m) for m in mix.means], [a * a * float(c) + s * s for c in mix.covariances]
            parts = [
                (mp.mpf(float(w)) * mp.npdf(u, m, mp.sqrt(v)), (u - m) / v)
                for w, m, v in zip(mix.weights, means, variances, strict=True)
            ]
            return s * sum(p * g for p, g in parts) / sum(p for p, _ in parts)

        def step(u, t, s):
            a, b = (mp.mpf(float(f(t))) for f in (VP.alpha, VP.sigma))
            c, d = (mp.mpf(float(f(s))) for f in (VP.alpha, VP.sigma))
            return c / a * u + c * (d / c - b / a) * eps(u, t)

        x, end = mp.mpf(float(x)), float(ts[-1])
        exact = [mp_flow(mix, x, float(ts[0]), float(t)) for t in ts]
        run = x
        extrapolation = mp.mpf(0)
        for i in range(len(ts) - 1):
            run = step(run, ts[i], ts[i + 1])
            extrapolation += mp_flow(mix, step(exact[i], ts[i], ts[i + 1]), float(ts[i + 1]), end) - exact[-1]
        return float(extrapolation), float(run - exact[-1] - extrapolation)


def budget_case(seed):
    """(mixture, calls, starts): 2 to 5 modes on [-1, 1], variance 1e-5 or 1e-6, 4 to 10 calls."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    mix = da.GaussianMixture(np.full(k, 1 / k), np.linspace(-1, 1, k), np.full(k, rng.choice([1e-5, 1e-6])))
    return mix, int(rng.integers(4, 11)), np.sort(rng.standard_normal(4))


BUDGETS = range(int(os.environ.get("DEIS_ANALYSIS_BUDGETS", "3")))  # 120 take about five minutes


@pytest.mark.parametrize("seed", BUDGETS)
def test_budget_terms_between_separated_modes(seed):
    mix, nfe, x = budget_case(seed)
    budget = da.error_budget(None, mix, "ddim", nfe, 1e-3, process=VP, x_T=x, kind="logrho")
    ts = da.grid(VP, nfe, "logrho", 1.0, 1e-3)
    truth = np.array([mp_ddim_budget(mix, start, ts) for start in x])
    for name, column in (("extrapolation", 0), ("accumulation", 1)):
        assert np.allclose(budget.terms[name], truth[:, column], rtol=0, atol=1e-6)
    assert np.abs(budget.terms["linear part"]).max() < 1e-12
    assert 0 < budget.flow_error < 1e-8
