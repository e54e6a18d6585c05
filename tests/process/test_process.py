"""Processes against their definitions in mpmath at 50 digits; inverses; grids; conversions; bad input."""

from __future__ import annotations

import exact
import mpmath as mp
import numpy as np
import pytest
from exact import PROCESSES
from hypothesis import given
from hypothesis import strategies as st
from strategies import grids, processes

import deis_analysis as da

NAMES = list(PROCESSES)


def times(process, count=25):
    """From 1e-8 (or the first time) to the last, dense at both ends; ρ finite."""
    low, high = max(process.t_min, 1e-8), process.t_max
    ts = np.concatenate([np.geomspace(low, high, count), high - (high - low) * np.geomspace(1e-3, 0.5, 6)])
    return ts[np.isfinite(process.rho(ts))]


def relative(found, truth):
    truth = np.array([float(x) for x in truth])
    return np.max(np.abs(found - truth) / np.where(truth == 0, 1.0, np.abs(truth)))


@pytest.mark.parametrize("name", NAMES)
def test_scales_match_mpmath_at_50_digits(name):
    process, alpha, sigma = PROCESSES[name]
    ts = times(process)
    with mp.workdps(50):
        exact_t = [mp.mpf(float(t)) for t in ts]
        a, s = [alpha(t) for t in exact_t], [sigma(t) for t in exact_t]
        rho = [y / x for x, y in zip(a, s, strict=True)]
        assert relative(process.alpha(ts), a) <= 1e-13
        assert relative(process.sigma(ts), s) <= 1e-13
        assert relative(process.rho(ts), rho) <= 1e-13
        lam = [float(-mp.log(r)) for r in rho]
    assert np.all(np.abs(process.lam(ts) - lam) <= 1e-13 * np.maximum(np.abs(lam), 0.1))


@pytest.mark.parametrize("name", NAMES)
def test_rates_match_derivatives_of_the_definitions(name):
    process, alpha, sigma = PROCESSES[name]
    ts = times(process, 12)
    ts = ts[(ts != np.round(ts)) & (ts < process.t_max)] if name == "VPDiscrete" else ts[ts < process.t_max]
    with mp.workdps(50):
        exact_t = [mp.mpf(float(t)) for t in ts]
        drift = [exact.drift(name, t) for t in exact_t]
        g2 = [exact.diffusion_squared(name, t) for t in exact_t]
        rate = [exact.derivative(name, lambda u: mp.log(sigma(u) / alpha(u)), t) for t in exact_t]
        kappa = {p: [exact.kappa_rate(name, p, t) for t in exact_t] for p in da.PREDICTIONS}
    assert np.allclose(process.drift(ts), np.array([float(x) for x in drift]), rtol=1e-13, atol=1e-25)
    assert relative(process.diffusion_squared(ts), g2) <= 1e-13
    assert relative(process.log_rho_rate(ts), rate) <= 1e-13
    for prediction, truth in kappa.items():
        assert relative(process.kappa_rate(prediction, ts), truth) <= 2e-13, prediction


@pytest.mark.parametrize("name", exact.VANISHING)
def test_times_counted_from_noise_keep_the_digits_of_alpha(name):
    """Clocks that read 0 at t = 1, for half of the times: 1e-20 before it is another time than 1."""
    _, alpha, sigma = PROCESSES[name]
    process = da.VPCosine(t_max=1 - 1e-12) if name == "VPCosine" else da.RectifiedFlow()
    ts = np.concatenate([-np.geomspace(1e-20, 0.6, 12), np.geomspace(1e-8, 0.6, 8)])
    origin = np.where(ts < 0, 1.0, 0.0)
    counted = process._counted_from(origin)
    scaled = da.MeanReverting(process, 2.0, 0.3)._counted_from(origin)
    with mp.workdps(70):
        exact_t = [mp.mpf(float(o)) + mp.mpf(float(t)) for o, t in zip(origin, ts, strict=True)]
        a, s = [alpha(t) for t in exact_t], [sigma(t) for t in exact_t]
        rho = [y / x for x, y in zip(a, s, strict=True)]
        lam = np.array([float(-mp.log(r)) for r in rho])
        rate = [exact.derivative(name, lambda u: mp.log(sigma(u) / alpha(u)), t) for t in exact_t]
        drift = [exact.drift(name, t) for t in exact_t]
        g2 = [exact.diffusion_squared(name, t) for t in exact_t]
        kappa = {p: [exact.kappa_rate(name, p, t) for t in exact_t] for p in da.PREDICTIONS}
    for found, truth, power in (
        ("_alpha", a, 0),
        ("_sigma", s, 1),
        ("_rho", rho, 1),
        ("_rate", rate, 0),
        ("_drift", drift, 0),
        ("_diffusion_squared", g2, 2),
    ):
        assert relative(getattr(counted, found)(ts), truth) <= 1e-13, found
        assert relative(getattr(scaled, found)(ts) / 0.3**power, truth) <= 1e-13, found
    assert np.all(np.abs(counted._lam(ts) - lam) <= 1e-13 * np.maximum(np.abs(lam), 0.1))
    for prediction, power in (("eps", 1), ("x0", -1), ("v", 0), ("score", 2)):
        assert relative(counted._kappa_rate(prediction, ts), kappa[prediction]) <= 1e-13, prediction
        if prediction != "v" or not process.variance_preserving:  # the angle is not that of the scaled ρ
            assert relative(scaled._kappa_rate(prediction, ts) / 0.3**power, kappa[prediction]) <= 1e-13, prediction
    for variable, truth, power in (("rho", kappa["eps"], 1), ("inv_rho", kappa["x0"], -1), ("lam", rate, 0)):
        sign = -1.0 if variable == "lam" else 1.0
        assert relative(sign * counted._variable_rate(variable, ts), truth) <= 1e-13, variable
        assert relative(sign * scaled._variable_rate(variable, ts) / 0.3**power, truth) <= 1e-13, variable


@pytest.mark.parametrize("name", NAMES)
def test_kappa_is_the_integral_of_its_rate(name):
    process = PROCESSES[name][0]
    a, b = process.sampling_range
    for prediction in da.PREDICTIONS:
        total = da.quadrature_weights(process, prediction, "t", [a], a, b)[0]
        assert np.isclose(total, process.kappa(prediction, b) - process.kappa(prediction, a), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_time_from_rho_inverts_rho(name):
    process = PROCESSES[name][0]
    ts = times(process, 60)
    back = process.time_from_rho(process.rho(ts))
    vanishing = process.rho(process.t_min) == 0  # else ρ itself cannot resolve t near 0
    assert np.all(np.abs(back - ts) <= 1e-12 * (ts if vanishing else process.t_max))
    assert np.allclose(process.time_from_lam(process.lam(ts)), ts, rtol=1e-11, atol=1e-12 * process.t_max)


@pytest.mark.parametrize("name", exact.VANISHING)
def test_time_from_rho_is_the_nearest_time_where_alpha_vanishes(name):
    """Up to the last one before 1: there a time that is off by one is another α by a factor of 2."""
    process = da.VPCosine(t_max=1.0 - 2.0**-53) if name == "VPCosine" else da.RectifiedFlow()
    ts = 1.0 - 2.0**-53 * np.concatenate([np.arange(1.0, 50.0), 2.0 ** np.arange(6, 50)])
    assert np.array_equal(process.time_from_rho(process.rho(ts)), ts)
    _, alpha, sigma = PROCESSES[name]
    levels = float(process.rho(1.0 - 2.0**-53)) / np.geomspace(1.1, 1e6, 200)
    with mp.workdps(50):
        slack = mp.mpf(0.55) * mp.mpf(2) ** -53
        for level, t in zip(levels, process.time_from_rho(levels), strict=True):
            before, after = (sigma(u) / alpha(u) for u in (mp.mpf(t) - slack, mp.mpf(t) + slack))
            assert before <= level <= after, (level, t)


@given(processes(), st.data())
def test_psi_composes_and_transports_alpha(process, data):
    a, b = process.sampling_range
    r, s, t = (data.draw(st.floats(b, a)) for _ in range(3))
    assert np.isclose(process.psi(r, s) * process.psi(s, t), process.psi(r, t), rtol=1e-13)
    assert np.isclose(process.psi(s, t), process.alpha(s) / process.alpha(t), rtol=1e-15)


@given(processes(), st.data())
def test_conversions_round_trip_and_mean_what_they_say(process, data):
    start, end = process.sampling_range
    t = data.draw(st.floats(end, start))
    x0, eps = data.draw(st.floats(-2, 2)), data.draw(st.floats(-2, 2))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = alpha * x0 + sigma * eps
    v = alpha * eps - sigma * x0 if process.variance_preserving else None
    if isinstance(process, da.RectifiedFlow):
        v = eps - x0
    values = {"x0": x0, "eps": eps, "score": -eps / sigma, "v": v}
    if v is None:
        a, b = process.prediction_parts("v", t)
        values["v"] = a * x0 + b * eps
    size = 1 + max(abs(float(value)) for value in values.values())
    for source in da.PREDICTIONS:
        for target in da.PREDICTIONS:
            c, d = process.convert(source, target, t)
            gain = 1 + abs(float(c)) * (abs(x) + 1) + abs(float(d)) * size
            assert abs(c * x + d * values[source] - values[target]) <= 1e-13 * gain, (source, target)


def test_velocity_is_the_time_derivative_where_it_is_not_an_angle():
    for process in (da.SubVP(), da.VE(), da.EDM(), da.RectifiedFlow()):
        start, end = process.sampling_range
        t = np.linspace(end, start, 7)[1:-1]
        h = 1e-6 * t
        a, b = process.prediction_parts("v", t)
        assert np.allclose(a, (process.alpha(t + h) - process.alpha(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)
        assert np.allclose(b, (process.sigma(t + h) - process.sigma(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_mean_reverting_has_the_scales_of_its_inner_process():
    inner = da.VPLinear()
    outer = da.MeanReverting(inner, np.array([1.0, -2.0]))
    ts = np.linspace(0.01, 1, 9)
    for name in ("alpha", "sigma", "rho", "lam", "drift", "diffusion_squared"):
        assert np.array_equal(getattr(outer, name)(ts), getattr(inner, name)(ts)), name
    assert np.array_equal(da.grid(outer, 5), da.grid(inner, 5))
    with pytest.raises(ValueError, match="process already reverts"):
        da.MeanReverting(outer, 0.0)
    with pytest.raises(ValueError, match="mean must be finite"):
        da.MeanReverting(inner, np.nan)


@pytest.mark.parametrize(
    "inner", [da.VPLinear(), da.SubVP(), da.VE(), da.RectifiedFlow()], ids=lambda p: type(p).__name__
)
def test_the_noise_scale_of_mean_reverting_scales_the_noise(inner):
    """σ, ρ and σ′ by c, g² and κ of the score by c², 1/ρ by 1/c; each rate is the derivative of its own scale."""
    c = 0.3
    outer = da.MeanReverting(inner, 1.0, noise_scale=c)
    ts = np.linspace(*inner.sampling_range, 9)[1:-1]
    h = 1e-5 * ts

    def slope(f):
        return (f(ts + h) - f(ts - h)) / (2 * h)

    for name, factor in (("sigma", c), ("rho", c), ("diffusion_squared", c**2), ("alpha", 1.0), ("drift", 1.0)):
        assert np.allclose(getattr(outer, name)(ts), factor * getattr(inner, name)(ts), rtol=1e-14), name
    assert np.allclose(outer.lam(ts), inner.lam(ts) - np.log(c), rtol=1e-13, atol=1e-13)
    assert np.allclose(outer.time_from_rho(outer.rho(ts)), ts, rtol=1e-10)
    g2 = slope(lambda t: outer.sigma(t) ** 2) - 2 * outer.drift(ts) * outer.sigma(ts) ** 2
    assert np.allclose(outer.diffusion_squared(ts), g2, rtol=1e-6)
    assert np.allclose(outer.kappa("score", ts), c**2 * inner.kappa("score", ts), rtol=1e-14)
    for prediction in ("eps", "x0", "score"):
        rate = slope(lambda t, p=prediction: outer.kappa(p, t))
        assert np.allclose(outer.kappa_rate(prediction, ts), rate, rtol=1e-6), prediction
    a, b = outer.prediction_parts("v", ts)
    angle = inner.log_rho_rate(ts) / (inner.rho(ts) + 1 / inner.rho(ts)) if inner.variance_preserving else 1.0
    assert np.allclose(a, slope(outer.alpha) / angle, rtol=1e-6, atol=1e-9)
    assert np.allclose(b, slope(outer.sigma) / angle, rtol=1e-6)
    for variable in ("rho", "lam", "inv_rho"):
        f = {"rho": outer.rho, "lam": outer.lam, "inv_rho": lambda t: 1 / outer.rho(t)}[variable]
        assert np.allclose(outer.variable_rate(variable, ts), slope(f), rtol=1e-6), variable


def test_the_time_of_the_data_does_not_excuse_other_times():
    """EDM takes t = 0, outside its range, in an array too; a time that is neither is still refused."""
    edm = da.EDM(0.002, 80.0)
    assert edm.sigma([0.0, 1.0]).tolist() == [0.0, 1.0]
    for bad in (-0.5, 0.001, 81.0, np.nan):
        with pytest.raises(ValueError, match=f"t={bad} is outside"):
            edm.sigma([0.0, bad, 1.0])
    with pytest.raises(ValueError, match=r"ts=-1.0 is outside"):
        da.build("edm_heun", edm, [1.0, 0.0, -1.0])


def test_closed_ends_have_limits_not_nan():
    for process, limit in ((da.VPLinear(0.1, 20.0), 0.1), (da.SubVP(0.1, 20.0), 0.0), (da.RectifiedFlow(), 0.0)):
        assert process.diffusion_squared(0.0) == pytest.approx(limit)
    assert da.VPCosine().diffusion_squared(0.0) == pytest.approx(-2 * float(da.VPCosine().drift(0.0)))
    assert da.VPCosine().drift(0.0) < 0
    flow = da.RectifiedFlow()
    assert flow.psi(0.5, 1.0) == np.inf
    assert flow.kappa("score", 1.0) == -np.inf
    assert flow.drift(1.0) == -np.inf
    assert flow.kappa_rate("eps", 0.0) == flow.variable_rate("rho", 0.0) == 1.0
    assert flow.kappa_rate("x0", 1.0) == flow.variable_rate("inv_rho", 1.0) == -1.0
    single = da.GaussianMixture([1.0], [0.5], [0.25])
    assert np.allclose(single.score(da.VPLinear())(np.array([1.5]), 0.0), -4.0)


# -- grids ----------------------------------------------------------------------------------------
@given(processes(), st.sampled_from(["t1", "t2", "t3", "rho5", "rho7", "logrho"]), st.integers(1, 60))
def test_grids_descend_and_hit_both_ends_exactly(process, kind, steps):
    start, end = process.sampling_range
    ts = da.grid(process, steps, kind, start, end)
    assert ts.dtype == np.float64
    assert ts.shape == (steps + 1,)
    assert ts[0] == start
    assert ts[-1] == end
    assert np.all(np.diff(ts) < 0)


@pytest.mark.parametrize("kind", ["t1", "t2", "t3", "rho5", "rho7", "logrho"])
def test_grids_are_equidistant_in_their_variable(kind):
    process = da.VPLinear()
    ts = da.grid(process, 10, kind, 1.0, 1e-3)
    power = float(kind.lstrip("trho") or 1) if kind != "logrho" else None
    clock = -process.lam(ts) if power is None else (ts if kind[0] == "t" else process.rho(ts)) ** (1 / power)
    assert np.allclose(np.diff(clock), np.diff(clock)[0], rtol=1e-9)


def test_edm_rho7_is_the_published_grid():
    smin, smax, n = 0.002, 80.0, 18
    i = np.arange(n)
    published = (smax ** (1 / 7) + i / (n - 1) * (smin ** (1 / 7) - smax ** (1 / 7))) ** 7
    assert np.allclose(da.grid(da.EDM(smin, smax), n - 1, "rho7"), published, rtol=1e-12)


@given(processes(), st.data())
def test_any_grid_of_the_strategies_is_accepted(process, data):
    ts = data.draw(grids(process))
    assert da.build("ddim", process, ts).nfe == ts.size - 1


# -- bad input ------------------------------------------------------------------------------------
VP = da.VPLinear()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: da.grid(VP, 0), "steps=0 must be an integer >= 1"),
        (lambda: da.grid(VP, -3), "steps=-3"),
        (lambda: da.grid(VP, 2.5), "steps=2.5 must be an integer"),
        (lambda: da.grid(VP, 3.0), "steps=3.0 must be an integer"),
        (lambda: da.grid(VP, True), "steps=True"),
        (lambda: da.grid(VP, "10"), "steps='10'"),
        (lambda: da.grid(VP, 10**10), "steps asks for a grid of 10000000001 points; allowed: at most 10000001"),
        (lambda: da.grid(VP, 10**10, "twostage"), "steps asks for a grid of 10000000001 points"),
        (lambda: da.grid(VP, 10, "rho"), "kind='rho' is unknown; nearest: .*rho7"),
        (lambda: da.grid(VP, 10, "t0"), "kind='t0' is unknown"),
        (lambda: da.grid(VP, 10, None), "kind=None must be a str"),
        (lambda: da.grid(VP, 10, "rho0.001"), "kind='rho0.001' is unknown"),
        (lambda: da.grid(VP, 10, "t2", 1.5, 1e-3), r"t_start=1.5 is outside \[0, 1\]"),
        (lambda: da.grid(VP, 10, "t2", 1.0, -0.1), r"t_end=-0.1 is outside"),
        (lambda: da.grid(VP, 10, "t2", 1e-3, 1.0), "t_end=1.0 must be below t_start=0.001"),
        (lambda: da.grid(VP, 10, "t2", 0.5, 0.5), "t_end=0.5 must be below"),
        (lambda: da.grid(VP, 10, "t2", np.nan, 0.1), "t_start=nan"),
        (lambda: da.grid(VP, 10, "t2", 1.0, 0.0), "t_end=0.0: λ is infinite"),
        (lambda: da.grid(da.RectifiedFlow(), 10, "t1", 0.9, 0.0), "t_end=0.0: λ is infinite"),
        (lambda: da.grid(da.VPCosine(), 10, "t1", 0.9, 0.0), "t_end=0.0: λ is infinite"),
        (lambda: da.grid(da.RectifiedFlow(), 10, "logrho", 1.0, 0.1), "t_start=1.0: ρ is infinite"),
        (lambda: da.grid(da.RectifiedFlow(), 10, "rho7", 1.0, 0.1), "t_start=1.0: ρ is infinite"),
        (lambda: VP.alpha(1.1), r"t=1.1 is outside \[0, 1\]"),
        (lambda: VP.sigma([0.5, np.nan]), "t=nan is outside"),
        (lambda: VP.rho(np.inf), "t=inf is outside"),
        (lambda: da.EDM(0.002, 80.0).lam(0.001), "t=0.001 is outside"),
        (lambda: VP.alpha("0.5s"), "t='0.5s' must be made of real numbers"),
        (lambda: VP.alpha(None), "t=None must be made of real numbers"),
        (lambda: VP.alpha(0.5 + 1j), "must be made of real numbers"),
        (lambda: da.grid(None, 5), "process=None must be a Process"),
        (lambda: da.grid(VP, 5, "t2", [1.0], 0.1), r"t_start has shape \(1,\); allowed: one number"),
        (lambda: da.VPLinear(True, 20.0), "beta_min=True must be a positive"),
        (lambda: da.VPDiscrete(None), "alphas_cumprod=None must be made of real numbers"),
        (lambda: VP.psi(2.0, 0.5), "s=2.0 is outside"),
        (lambda: VP.time_from_rho(1e9), "rho=1000000000.0 is outside"),
        (lambda: VP.time_from_rho(-1.0), "rho=-1.0 is outside"),
        (lambda: VP.time_from_rho(np.nan), "rho=nan is outside"),
        (lambda: VP.time_from_lam(-99.0), "lam=-99.0 is outside"),
        (lambda: VP.convert("eps", "abc", 0.5), "target='abc' is unknown"),
        (lambda: VP.kappa("noise", 0.5), "prediction='noise' is unknown"),
        (lambda: VP.gamma("epsilon", 0.5), "prediction='epsilon' is unknown; nearest: eps"),
        (lambda: da.VPLinear(-1.0, 20.0), "beta_min=-1.0 must be a positive"),
        (lambda: da.VPLinear(20.0, 1.0), "beta_max=1.0 must be at least"),
        (lambda: da.VPLinear("a", 1.0), "beta_min='a'"),
        (lambda: da.VE(50.0, 0.01), "sigma_max=0.01 must be above"),
        (lambda: da.EDM(0.0, 80.0), "sigma_min=0.0 must be a positive"),
        (lambda: da.VPCosine(t_max=1.0), "t_max=1.0 must be below 1"),
        (lambda: da.VPDiscrete([0.9, 0.5, 0.6]), "alphas_cumprod must decrease strictly; .* 0.6 at index 2"),
        (lambda: da.VPDiscrete([1.0, 0.5]), r"alphas_cumprod must lie inside \(0, 1\); it has 1.0 at index 0"),
        (lambda: da.VPDiscrete([0.5, 0.0]), "alphas_cumprod must lie inside"),
        (lambda: da.VPDiscrete([0.5, np.nan]), "alphas_cumprod must lie inside"),
        (lambda: da.VPDiscrete([0.5]), "alphas_cumprod has shape"),
        (lambda: da.MeanReverting("VP", 0.0), "process='VP' must be a Process"),
        (lambda: da.RectifiedFlow().convert("eps", "x0", 1.0), "cannot be told from x and 'eps'"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_discrete_processes_are_equal_where_their_levels_are():
    levels = np.linspace(0.99, 0.01, 10)
    one, same, other = da.VPDiscrete(levels), da.VPDiscrete(levels.copy()), da.VPDiscrete(levels * 0.999)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "VPDiscrete(10 levels)"
