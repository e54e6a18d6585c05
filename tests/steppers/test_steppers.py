"""Samplers that are no table beforehand: what they do against the papers' formulas, exact laws and exact flows, and the
table they turn out to have been against `run`. No order is claimed for any; EVODiff's convergence is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import deis_analysis as da
from deis_analysis.steppers import (
    STEPPERS,
    AdaptiveDPM,
    EVODiff,
    Langevin,
    PredictorCorrector,
    StepperRow,
    dynamic_thresholding,
    exact_classifier,
    hand_over,
    langevin_gibbs,
    level_grid,
    register_stepper,
    simulate,
    static_thresholding,
)
from deis_analysis.tableau.many import by_time, run_many

VP, EDM, VE = da.VPLinear(), da.EDM(0.002, 80.0), da.VE(0.01, 50.0)
ONE = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])  # acts on every entry
TWO = da.GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [0.8, -0.5]], [[0.05, 0.2], [0.1, 0.03]])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def noises(shape, seed=0):
    """noise(k): independent draws, quicker than a BrownianPath and the same when asked again."""
    return lambda k: np.random.default_rng([seed, k]).standard_normal(shape)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


# -- the protocol ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clipped:
    """DDIM whose state is clipped where ``bound`` is given: no combination of earlier states, so no table."""

    ts: tuple
    bound: float | None = None
    process = VP
    prediction = "eps"
    depth = 1
    name = "clipped"

    @property
    def t_start(self):
        return self.ts[0]

    def done(self, x, history):
        return history.accepted == len(self.ts) - 1

    def step(self, x, history):
        s = self.ts[history.accepted + 1]
        weight = self.process.sigma(s) - self.process.psi(s, x.time) * self.process.sigma(x.time)
        moved = history.combine(s, [(self.process.psi(s, x.time), x), (weight, history.evaluate(x))])
        return moved if self.bound is None else history.place(s, np.clip(moved.value, -self.bound, self.bound))


def test_a_stepper_that_is_ddim_realises_the_ddim_table():
    ts = da.grid(VP, 6)
    done = simulate(Clipped(tuple(ts)), ONE.eps(VP), normal(5))
    assert da.distance(done.tableau, da.build("ddim", VP, ts)) < 1e-12
    assert (done.nfe, done.accepted, done.rejected) == (6, 6, 0)
    np.testing.assert_array_equal(done.times, ts)


def test_a_state_that_was_placed_leaves_no_table():
    done = simulate(Clipped(tuple(da.grid(VP, 6)), bound=1.0), ONE.eps(VP), 3 * normal(50))
    assert done.tableau is None
    assert np.abs(done.x).max() <= 1.0
    with pytest.raises(ValueError, match="clipped placed a state"):
        done.tableaux()


@pytest.mark.parametrize("name", list(STEPPERS))
def test_every_row_runs_and_its_table_reproduces_the_run(name):
    """Rerunning what was realised gives the result to rounding, on two processes; nfe is what the model counts."""
    row = STEPPERS[name]
    for process, t_end in ((VP, 1e-2), (EDM, 0.05)):
        calls = []

        def model(x, t, process=process, row=row, calls=calls):
            calls.append(t)
            return ONE.model(process, row.prediction)(x, t)

        stepper = row.build(process, da.grid(process, 12, "rho7", min(process.t_max, 20.0), t_end))
        assert (stepper.prediction, stepper.process) == (row.prediction, process)
        x = ONE.sample(3, seed=1, process=process, t=stepper.t_start)[:, None] * np.ones(2)
        done = simulate(stepper, model, x, noise=7)
        assert done.nfe == len(calls)
        assert min(calls) >= t_end
        assert done.times[-1] == t_end
        assert np.all(np.diff(done.times) < 0)
        if name.startswith("evodiff"):
            again = run_many(done.tableaux(), by_time(model), x)
        else:
            assert row.linear
            assert done.tableau.nfe <= done.nfe
            np.testing.assert_array_equal(done.tableau.times[list(done.tableau.grid_nodes)], done.times)
            again = da.run(done.tableau, model, x, noise=7)
        np.testing.assert_allclose(again, done.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(STEPPERS))
def test_torch_gives_what_numpy_gives_and_float32_stays(name):
    row, ts = STEPPERS[name], da.grid(VP, 8, "t2", 1.0, 1e-2)
    x = normal(3, 2, 4)
    z = noises(x.shape)
    expected = simulate(row.build(VP, ts), ONE.model(VP, row.prediction), x, z)
    got = simulate(
        row.build(VP, ts), ONE.model(VP, row.prediction), torch.as_tensor(x), lambda k: torch.as_tensor(z(k))
    )
    np.testing.assert_allclose(got.x.numpy(), expected.x, rtol=1e-9, atol=1e-11)
    assert got.nfe == expected.nfe
    single = simulate(
        row.build(VP, ts), ONE.model(VP, row.prediction), x.astype(np.float32), lambda k: np.float32(z(k))
    )
    assert single.x.dtype == np.float32
    np.testing.assert_allclose(single.x, expected.x, atol=0.05 if "adaptive" in name else 1e-3)  # it may step otherwise


@pytest.mark.parametrize("name", list(STEPPERS))
def test_steppers_act_about_the_mean_of_the_process(name):
    """On MeanReverting the result is that of the inner process on data shifted by the mean, shifted back."""
    row, ts, mu = STEPPERS[name], da.grid(VP, 8, "t2", 1.0, 1e-2), 3.0
    moved, shifted = da.MeanReverting(VP, mean=mu), da.GaussianMixture([0.4, 0.6], [mu - 1.0, mu + 0.8], [0.05, 0.1])
    x = normal(3, 2)
    inner = simulate(row.build(VP, ts), ONE.model(VP, row.prediction), x, noises(x.shape))
    outer = simulate(row.build(moved, ts), shifted.model(moved, row.prediction), x + mu, noises(x.shape))
    np.testing.assert_allclose(outer.x - mu, inner.x, rtol=1e-7, atol=1e-9)


def test_registry_rows():
    assert set(STEPPERS) >= {"dpm_adaptive_12", "dpm_adaptive_23", "evodiff", "pc_reverse_diffusion", "pc_ancestral"}
    for name, row in STEPPERS.items():
        assert row.name == name
        assert row.description.endswith(".")
        assert "arXiv" in row.source
        assert not hasattr(row, "order")
    row = STEPPERS["evodiff"]
    with pytest.raises(ValueError, match="name='evodiff' is already registered"):
        register_stepper(row)
    with pytest.raises(ValueError, match="prediction='noise' is unknown"):
        StepperRow("new", row.build, "noise", "", "", True)


def test_simulate_refuses_bad_input():
    stepper = PredictorCorrector(VP, da.grid(VP, 3))
    model, x = ONE.score(VP), normal(4, 2)
    for call, message in (
        (lambda: simulate(stepper, model, np.full(3, np.inf), 0), "x must be finite"),
        (lambda: simulate(stepper, model, np.float64(1.0), 0), r"x has shape \(\)"),
        (lambda: simulate(stepper, model, x.astype(int), 0), "x has dtype int64"),
        (lambda: simulate(stepper, model, x), "noise has nothing for draw 0"),
        (lambda: simulate(stepper, model, x, [x]), "noise has nothing for draw 1"),
        (lambda: simulate(stepper, model, x, lambda _: x[:2]), r"noise 0 has shape \(2, 2\)"),
        (lambda: simulate(stepper, model, x, 1.5), "noise=1.5 must be a seed"),
        (lambda: simulate(stepper, model, x, da.BrownianPath((2, 2))), "noise is a path of shape"),
        (lambda: simulate(stepper, lambda x, t: x[:1], x, 0), "model returned ndarray of shape"),
        (lambda: simulate(stepper, 3, x, 0), "model=3 must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# -- adaptive DPM-Solver --------------------------------------------------------------------------
def paper_step(model, x, s, t, order, prediction, r_1=None):
    """DPM-Solver-k of Lu et al. 2022 and DPM-Solver++(kS), typed from the papers, from time s to t on VP."""
    lam, at = (lambda u: float(VP.lam(u))), (lambda v: float(VP.time_from_lam(v)))
    a, sig = (lambda u: float(VP.alpha(u))), (lambda u: float(VP.sigma(u)))
    h = lam(t) - lam(s)
    r_1 = r_1 or {2: 1 / 2, 3: 1 / 3}.get(order)
    p = model(x, s)
    if prediction == "eps":
        one = lambda u, k: a(u) / a(s) * x - sig(u) * math.expm1(k) * p  # noqa: E731
    else:
        one = lambda u, k: sig(u) / sig(s) * x - a(u) * math.expm1(-k) * p  # noqa: E731
    if order == 1:
        return one(t, h)
    s_1 = at(lam(s) + r_1 * h)
    d_1 = model(one(s_1, r_1 * h), s_1) - p
    if order == 2:
        scale = sig(t) * math.expm1(h) if prediction == "eps" else a(t) * math.expm1(-h)
        return one(t, h) - scale / (2 * r_1) * d_1
    s_2, r_2 = at(lam(s) + 2 / 3 * h), 2 / 3
    if prediction == "eps":
        u_2 = one(s_2, r_2 * h) - sig(s_2) * r_2 / r_1 * (math.expm1(r_2 * h) / (r_2 * h) - 1) * d_1
        return one(t, h) - sig(t) / r_2 * (math.expm1(h) / h - 1) * (model(u_2, s_2) - p)
    u_2 = one(s_2, r_2 * h) + r_2 / r_1 * a(s_2) * (math.expm1(-r_2 * h) / (r_2 * h) + 1) * d_1
    return one(t, h) + a(t) / r_2 * (math.expm1(-h) / h + 1) * (model(u_2, s_2) - p)


def paper_adaptive(model, x, t_end, order, prediction, atol=0.0078, rtol=0.05, theta=0.9, h=0.05):
    """The loop of DPM-Solver's appendix C: (result, accepted times, attempts), reaching t_end exactly."""
    s, previous, times, attempts = 1.0, x, [1.0], 0
    end = float(VP.lam(t_end))
    while s > t_end:
        lam = float(VP.lam(s))
        h = min(h, end - lam)
        t = t_end if h == end - lam else float(VP.time_from_lam(lam + h))
        low = paper_step(model, x, s, t, order - 1, prediction, r_1=1 / 3 if order == 3 else None)
        high = paper_step(model, x, s, t, order, prediction)
        delta = np.maximum(atol, rtol * np.maximum(abs(low), abs(previous)))
        error = np.max(np.sqrt(np.mean(((high - low) / delta).reshape(len(x), -1) ** 2, axis=1)))
        attempts += 1
        if error <= 1:
            x, previous, s = high, low, t
            times.append(t)
        h = theta * h * error ** (-1 / order)
    return x, times, attempts


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_is_the_papers_algorithm(order, prediction):
    x = ONE.sample(60, seed=2, process=VP, t=1.0).reshape(20, 3)
    model = ONE.model(VP, prediction)
    expected, times, attempts = paper_adaptive(model, x, 1e-2, order, prediction)
    done = simulate(AdaptiveDPM(VP, 1.0, 1e-2, order=order, prediction=prediction), model, x)
    np.testing.assert_allclose(done.times, times, rtol=1e-8)
    np.testing.assert_allclose(done.x, expected, rtol=1e-7, atol=1e-9)
    assert done.accepted + done.rejected == attempts
    assert done.rejected > 0
    assert done.nfe == order * done.accepted + (order - 1) * done.rejected
    assert done.tableau.nfe == order * done.accepted


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("order", [2, 3])
def test_one_accepted_step_is_exact_to_its_order(order, prediction):
    """Local error against the exact flow ~ h^(order + 1); a step that accepts everything ends where it is told."""
    start, errors = 0.4, []
    x = ONE.sample(200, seed=3, process=VP, t=start)
    for h in (0.2, 0.1, 0.05):
        end = float(VP.time_from_lam(float(VP.lam(start)) + h))
        stepper = AdaptiveDPM(VP, start, end, order=order, prediction=prediction, atol=1e9, h_init=1e9)
        done = simulate(stepper, ONE.model(VP, prediction), x)
        assert (done.accepted, done.rejected, done.nfe) == (1, 0, order)
        errors.append(rms(done.x - ONE.flow(VP, x, start, end)))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(slopes - (order + 1)) < 0.35), slopes


@pytest.mark.parametrize("order", [2, 3])
def test_tolerance_to_zero_reaches_the_exact_flow(order):
    x = ONE.sample(100, seed=4, process=VP, t=1.0)
    exact, errors = ONE.flow(VP, x, 1.0, 1e-2), []
    for tol in (1e-3, 1e-4, 1e-5):
        done = simulate(AdaptiveDPM(VP, 1.0, 1e-2, order=order, atol=tol, rtol=tol), ONE.eps(VP), x)
        errors.append(np.abs(done.x - exact).max())
    assert errors[-1] < 2e-4
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.all((ratios > 3) & (ratios < 20)), ratios


def test_the_error_estimate_belongs_to_the_worst_sample():
    """One restless sample makes the whole batch small steps; copies of a calm one do not."""
    calm = np.zeros((7, 1))
    data = da.GaussianMixture([1.0], [0.0], [1.0])
    restless = np.vstack([calm, [[40.0]]])
    few = simulate(AdaptiveDPM(VP, 1.0, 1e-2), data.eps(VP), calm)
    many = simulate(AdaptiveDPM(VP, 1.0, 1e-2), data.eps(VP), restless)
    alone = simulate(AdaptiveDPM(VP, 1.0, 1e-2), data.eps(VP), restless[-1:])
    assert few.accepted < many.accepted
    np.testing.assert_allclose(many.times, alone.times, rtol=1e-12)


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([0.1, 1.0], "ts must descend strictly"),
        ([1.0], r"ts has shape \(1,\)"),
        ("grid", "ts='grid' must be made of real numbers"),
        ([1.0, np.nan, 0.1], "ts must be finite; it has nan at index 1"),
        ([1.5, 0.1], "ts=1.5 is outside"),
    ],
)
def test_adaptive_rows_check_the_grid(ts, message):
    with pytest.raises(ValueError, match=message):
        STEPPERS["dpm_adaptive_12"].build(VP, ts)


def test_adaptive_never_overshoots_and_starts_anywhere():
    for h_init in (1e-3, 0.05, 1e6):
        seen = []

        def model(x, t, seen=seen):
            seen.append(t)
            return ONE.eps(EDM)(x, t)

        done = simulate(AdaptiveDPM(EDM, 10.0, 0.7, h_init=h_init), model, 10 * normal(30))
        assert min(seen) > 0.7  # the model is not called at the end
        assert done.times[-1] == 0.7


def test_adaptive_errors_name_the_place():
    x, bad = normal(20), lambda x, t: x * (np.nan if t < 0.5 else 0.0)
    with pytest.raises(ValueError, match="NaN or infinity at call"):
        simulate(AdaptiveDPM(VP, 1.0, 1e-2), bad, x)
    with pytest.raises(ValueError, match=r"dpm_adaptive_23 at t=0\.\d+, λ=.*error estimate of the step is NaN"):
        simulate(AdaptiveDPM(VP, 1.0, 1e-2), bad, x, check=False)
    for tiny in (1e-30, 1e-300, 5e-324):
        with pytest.raises(ValueError, match=r"at t=(1.0|0.99999\d+) after \d accepted .* too small for float64"):
            simulate(AdaptiveDPM(VP, 1.0, 1e-2, atol=tiny, rtol=tiny), ONE.eps(VP), x)
    with pytest.raises(ValueError, match=r"at t=0\.\d+ after .*max_steps=50 attempts are used up"):
        simulate(AdaptiveDPM(VP, 1.0, 1e-2, atol=1e-6, rtol=1e-6, max_steps=50), ONE.eps(VP), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t_start": 0.1, "t_end": 0.5}, "t_end=0.5 must be below t_start=0.1"),
        ({"t_end": 0.0}, "t_end=0.0: λ is infinite there"),
        ({"t_start": 2.0}, r"t_start=2.0 is outside \[0, 1\]"),
        ({"order": 4}, r"order=4 must be 2 \(pair 12\) or 3"),
        ({"prediction": "v"}, "prediction='v' is unknown"),
        ({"atol": 0.0}, "atol=0.0 must be a positive finite number"),
        ({"rtol": float("nan")}, "rtol=nan must be finite"),
        ({"theta": 1.5}, "theta=1.5 must be at most 1"),
        ({"h_init": -1.0}, "h_init=-1.0 must be a positive"),
        ({"max_steps": 0}, "max_steps=0 must be an integer >= 1"),
    ],
)
def test_adaptive_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveDPM(**{"process": VP, "t_start": 1.0, "t_end": 1e-2, **arguments})


# -- EVODiff --------------------------------------------------------------------------------------
def released_evodiff(model, x, process, ts, lower_order_final):
    """The published rule, one sample and channel at a time with scalars, typed from its formulas."""
    sigma, inv, n = process.sigma(ts), 1.0 / process.rho(ts), len(ts) - 1
    logistic = lambda u: 1.0 / (1.0 + math.exp(-u))  # noqa: E731
    proj = lambda a, b: min(max(float((a * b).sum() / (b * b).sum()), -2.0), 2.0)  # noqa: E731
    m_1 = model(x, ts[0])
    x = sigma[1] / sigma[0] * x + sigma[1] * (inv[1] - inv[0]) * m_1
    m_0 = model(x, ts[1])
    for i in range(1, n):
        h, ratio = inv[i + 1] - inv[i], sigma[i + 1] / sigma[i]
        euler = ratio * x + sigma[i + 1] * h * m_0
        if i == n - 1 and lower_order_final:
            r_d = 1 - 0.5 * math.sqrt(ratio) if ratio < 0.5 else 1 - 0.5 * math.sqrt(ratio - 0.5)
            return (1 - math.sqrt(sigma[i + 1] * sigma[i])) * euler + 0.5 * sigma[i + 1] * h * (m_0 - r_d * m_1)
        r = math.log(inv[i] / inv[i - 1]) / math.log(inv[i + 1] / inv[i])
        w = 0.5 * (1 - ((ts[i + 1] + ts[-1]) / (ts[0] + ts[-1])) ** 2)
        base = math.sqrt(ratio / (sigma[i] / sigma[i - 1]))
        probe, store = np.empty_like(x), {}
        for k in np.ndindex(x.shape[:2]):
            b_1 = (1 - w) * base + w * proj(m_0[k], m_1[k])
            d_1 = m_0[k] - b_1 * m_1[k]
            r_i = min(max(logistic(0.25 * abs(b_1)) * r, 0.25 * r), 1.5 * r)
            probe[k] = euler[k] + 0.5 * sigma[i + 1] * h / r_i * d_1
            store[k] = d_1, r_i
        m_t, x = model(probe, ts[i + 1]), np.empty_like(x)
        for k in np.ndindex(x.shape[:2]):
            d_1, r_i = store[k]
            d_2 = m_t[k] - ((1 - w) * base + w * proj(m_t[k], m_0[k])) * m_0[k]
            minus, plus = d_1 / r / h, d_2 * r / h
            eta = 0.5 * logistic(abs(0.5 * proj(plus + minus, plus - minus)))
            b = -eta / r * d_1 + r * (1 - eta) * d_2
            rest = probe[k] - euler[k] - 0.5 * sigma[i + 1] * h / r_i * b
            zeta = abs(proj(rest, d_1) / (h * sigma[i + 1])) - 0.5
            if n > 20:
                slope = (m_0[k] - m_1[k]) / h
                zeta = -zeta * logistic(proj(m_0[k], slope) * (2 - ratio**2))
            x[k] = euler[k] + 0.5 * sigma[i + 1] * h / logistic(zeta) * b
        m_1, m_0 = m_0, m_t
    return x


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize(("process", "steps"), [(EDM, 7), (EDM, 24), (VP, 7), (VP, 24)])
def test_evodiff_is_the_released_rule(process, steps, lower_order_final):
    ts = da.grid(process, steps, "rho7", min(process.t_max, 20.0), 0.05)
    x = normal(2, 3, 4, 5) * float(process.sigma(ts[0]))
    model = ONE.x0(process)
    done = simulate(EVODiff(process, ts, lower_order_final), model, x)
    np.testing.assert_allclose(
        done.x, released_evodiff(model, x, process, ts, lower_order_final), rtol=1e-9, atol=1e-11
    )
    assert done.nfe == steps + (not lower_order_final)


def product_problem():
    rng = np.random.default_rng(0)
    marginals = [
        da.GaussianMixture([w, 1 - w], m, v)
        for w, m, v in zip(
            rng.uniform(0.2, 0.8, 64), rng.normal(size=(64, 2)), rng.uniform(0.02, 0.2, (64, 2)), strict=True
        )
    ]
    mix = da.ProductMixture(marginals)
    x = mix.sample(32, seed=1, process=EDM, t=20.0)
    return mix, x, mix.flow(EDM, x, 20.0, 0.05)


def test_what_evodiff_converges_to():
    """The table in EVODiff's docstring: a stall with the released last step, about first order without it."""
    mix, x, exact = product_problem()
    with_final, without, dpm = [], [], []
    for steps in (40, 80, 160, 320):
        ts = da.grid(EDM, steps, "logrho", 20.0, 0.05)
        last = simulate(EVODiff(EDM, ts), mix.x0(EDM), x).x
        with_final.append(rms(last - exact))
        without.append(rms(simulate(EVODiff(EDM, ts, lower_order_final=False), mix.x0(EDM), x).x - exact))
        dpm.append(rms(da.run(da.adams(EDM, ts, 1, prediction="x0", variable="lam"), mix.x0(EDM), x) - exact))
    assert np.all(np.diff(with_final) > 0)  # more steps do not help
    assert rms(last - (1 - 0.05) * exact) < 0.1 * with_final[-1]  # it converges to (1 − σ_end) x, not to x
    assert 0.9 < with_final[-1] / (0.05 * rms(exact)) < 1.0
    slopes = np.log2(np.array(without[:-1]) / np.array(without[1:]))
    assert np.all((slopes > 0.75) & (slopes < 1.1)), slopes
    assert abs(np.log2(dpm[-2] / dpm[-1]) - 2) < 0.1
    assert without[-1] > 20 * dpm[-1]


def test_equal_outputs_do_not_become_nan():
    """x₀ ≡ c is 0/0 in the released code. With b = 1 (VE, uniform log ρ) the flow is then exact; so it is for c = 0."""
    ts = da.grid(VE, 9, "logrho", 1.0, 0.2)
    x = 40.0 * normal(5, 6)
    ratio = VE.sigma(ts[-1]) / VE.sigma(ts[0])
    for c in (2.0, 0.0):
        done = simulate(EVODiff(VE, ts, lower_order_final=False), lambda x, t, c=c: np.full_like(x, c), x)
        np.testing.assert_allclose(done.x, c + ratio * (x - c), rtol=1e-11, atol=1e-11)
    assert np.isfinite(simulate(EVODiff(VE, ts), lambda x, t: np.zeros_like(x), x).x).all()


def test_evodiff_has_a_table_per_sample_but_none_per_batch():
    mix, x, _ = product_problem()
    ts = da.grid(EDM, 12, "logrho", 20.0, 0.05)
    done = simulate(EVODiff(EDM, ts), mix.x0(EDM), x[:3])
    assert done.tableau is None
    tables = done.tableaux()
    assert tables[0].nfe == done.nfe == 12
    assert da.distance(tables[0], tables[1]) > 1e-4  # the numbers are the data's
    alone = simulate(EVODiff(EDM, ts), mix.x0(EDM), x[1:2])
    assert da.distance(alone.tableau, tables[1]) < 1e-9
    np.testing.assert_allclose(da.run(alone.tableau, mix.x0(EDM), x[1:2]), done.x[1:2], rtol=1e-9)
    channels = simulate(EVODiff(EDM, ts), ONE.x0(EDM), 20 * normal(2, 3, 4))
    with pytest.raises(ValueError, match="differ between its channels"):
        channels.tableaux()


def test_evodiff_refuses():
    for call, message in (
        (lambda: EVODiff(VP, [1.0, 0.5]), "ts has 1 step; allowed: at least 2"),
        (lambda: EVODiff(VP, [1.0, 0.5, 0.0]), "ts=0.0: λ is infinite there"),
        (lambda: EVODiff(VP, [0.5, 1.0, 0.1]), "ts must descend strictly"),
        (lambda: EVODiff("vp", [1.0, 0.5, 0.1]), "must be a Process"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# -- Langevin and predictor-corrector -------------------------------------------------------------
def gaussian_variance(table, process, data_variance, start_variance):
    """Variance of the result on N(0, c I), propagated through the table: nothing is sampled."""
    noise = table.noise.shape[1]
    rows = np.zeros((table.times.size, 1 + noise))
    rows[0, 0] = 1.0
    alpha, sigma = process.alpha(table.times), process.sigma(table.times)
    assert table.prediction == "score"
    gain = -1.0 / (alpha**2 * data_variance + sigma**2)
    for k in range(1, table.times.size):
        rows[k] = (table.states[k] + table.outputs[k] * gain) @ rows
        rows[k, 1:] += table.noise[k]
    return float(rows[-1, 0] ** 2 * start_variance + (rows[-1, 1:] ** 2).sum())


def test_the_law_of_a_fixed_langevin_step():
    """ULA on N(0, v): V = v/(1 − e/(2v)) exactly, read off the realised table."""
    process, t, c = EDM, 0.5, 0.3
    v = c + t**2
    data = da.GaussianMixture([1.0], [0.0], [c])
    for e in (0.05 * v, 0.7 * v):
        done = simulate(Langevin(process, t, 400, step_size=e), data.score(process), normal(2, 3), noises((2, 3)))
        assert done.tableau.nfe == 400
        assert abs(gaussian_variance(done.tableau, process, c, v) / (v / (1 - e / (2 * v))) - 1) < 1e-8


@pytest.mark.parametrize(("snr", "steps", "band"), [(0.5, 25, 0.006), (0.16, 60, 0.01)])
def test_the_law_of_the_measured_langevin_step(snr, steps, band):
    """In high dimension V = v(1 + r²): 1.25 at r = 0.5 (v/(1 − r²) would be 1.333), 1.0256 at r = 0.16."""
    t, c = 0.5, 0.3
    v = c + t**2
    data, shape = da.GaussianMixture([1.0], [0.0], [c]), (32, 8192)
    rng = np.random.default_rng(5)
    x = math.sqrt(v) * rng.standard_normal(shape)
    done = simulate(Langevin(EDM, t, steps, snr=snr), data.score(EDM), x, lambda _: rng.standard_normal(shape))
    assert abs(done.x.var() / v - (1 + snr**2)) < band
    steps_taken = done.tableau.noise[np.arange(1, steps + 1), np.arange(steps)] ** 2 / 2
    expected = 2 * snr**2 * v / (1 + snr**2)  # e = 2 r² v²/V
    assert abs(steps_taken[-1] / expected - 1) < 0.02
    assert abs(gaussian_variance(done.tableau, EDM, c, v) / v - (1 + snr**2)) < band


ABAR = np.cumprod(1.0 - np.linspace(1e-3, 5e-2, 40))


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
def test_predictors_on_vp_are_ddpms(predictor):
    """One coefficient row per step against β_i of the released code: the last step is the noiseless mean."""
    process = da.VPDiscrete(ABAR)
    ts = np.arange(39.0, 30.0, -1.0)
    done = simulate(PredictorCorrector(process, ts, predictor, corrector_steps=0), lambda x, t: -x, normal(2, 3), 0)
    table = done.tableau
    for i, t in enumerate(range(39, 31, -1)):
        beta = 1.0 - ABAR[t] / ABAR[t - 1]
        if predictor == "reverse_diffusion":
            want = (2.0 - math.sqrt(1.0 - beta), beta)
        else:
            want = (1.0 / math.sqrt(1.0 - beta), beta / math.sqrt(1.0 - beta))
        got = (table.states[i + 1, i], table.outputs[i + 1, i])
        np.testing.assert_allclose(got, want, rtol=1e-10)
        if i < 7:
            assert abs(table.noise[i + 1, i] - math.sqrt(beta)) < 1e-12
    assert table.noise.shape[1] == 7
    assert not table.noise[-1].any()


def test_predictors_on_ve_are_score_sdes():
    ts = np.array([1.0, 0.8, 0.5])
    sigma, next_sigma = VE.sigma(ts[0]), VE.sigma(ts[1])
    gap = sigma**2 - next_sigma**2
    g2 = sigma**2 * 2 * math.log(50.0 / 0.01)
    expected = {
        "reverse_diffusion": (1.0, gap, math.sqrt(gap)),
        "ancestral": (1.0, gap, math.sqrt(next_sigma**2 * gap / sigma**2)),
        "euler_maruyama": (1.0, 0.2 * g2, math.sqrt(0.2 * g2)),
    }
    for predictor, want in expected.items():
        table = simulate(
            PredictorCorrector(VE, ts, predictor, corrector_steps=0), lambda x, t: -x, normal(2), 0
        ).tableau
        got = (table.states[1, 0], table.outputs[1, 0], table.noise[1, 0])
        np.testing.assert_allclose(got, want, rtol=1e-10)
        np.testing.assert_allclose(table.intervals[0], [sigma**2, next_sigma**2])


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral", "euler_maruyama"])
@pytest.mark.parametrize("process", [VP, da.SubVP(), EDM], ids=["VP", "SubVP", "EDM"])
def test_predictors_converge_weakly_to_the_marginal(predictor, process):
    """Exact law of the realised table on Gaussian data: the variance error halves with the step."""
    c, t_end, errors = 0.3, 0.05, []
    for steps in (100, 200, 400):
        ts = da.grid(process, steps, "t2", min(process.t_max, 5.0), t_end)
        stepper = PredictorCorrector(process, ts, predictor, corrector_steps=0, denoise=False)
        table = simulate(stepper, lambda x, t: -x, normal(1), lambda _: normal(1)).tableau
        start = float(process.alpha(ts[0]) ** 2 * c + process.sigma(ts[0]) ** 2)
        exact = float(process.alpha(t_end) ** 2 * c + process.sigma(t_end) ** 2)
        errors.append(abs(gaussian_variance(table, process, c, start) / exact - 1))
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert errors[-1] < 0.1
    assert np.all(np.abs(ratios - 2.0) < 0.35), (errors, ratios)


def test_the_corrector_measures_its_step_on_the_batch():
    """e = 2 a (r mean‖z‖/mean‖s‖)², a = 1 − β_i on VP, before the predictor; norms are averaged, not squares."""
    process, x, z = da.VPDiscrete(ABAR), normal(4, 3) * np.array([[1.0], [2.0], [3.0], [9.0]]), noises((4, 3))
    ts = np.array([39.0, 38.0, 37.0])
    score = lambda x, t: -x / (1 + 0.01 * t)  # noqa: E731
    done = simulate(PredictorCorrector(process, ts, snr=0.2), score, x, z)
    table = done.tableau
    norm = lambda a: np.linalg.norm(a, axis=1).mean()  # noqa: E731
    e = 2 * ABAR[39] / ABAR[38] * (0.2 * norm(z(0)) / norm(score(x, 39.0))) ** 2
    np.testing.assert_allclose([table.outputs[1, 0], table.noise[1, 0]], [e, math.sqrt(2 * e)], rtol=1e-10)
    np.testing.assert_array_equal(table.times, [39.0, 39.0, 38.0, 38.0, 37.0])
    assert (done.nfe, done.accepted, table.nfe) == (4, 2, 4)
    twice = simulate(PredictorCorrector(process, ts, corrector_steps=2), score, x, z)
    assert (twice.nfe, twice.tableau.grid_nodes) == (6, (0, 3, 6))


def test_draws_of_the_corrector_are_independent_of_the_path_of_the_predictor():
    """Intervals of all noises are disjoint, so that one BrownianPath gives independent draws."""
    table = simulate(PredictorCorrector(VP, da.grid(VP, 5)), ONE.score(VP), normal(3), 0).tableau
    ends = np.sort(table.intervals[:, ::-1], axis=0)
    assert np.all(ends[1:, 0] >= ends[:-1, 1] * (1 - 1e-12))
    assert np.all(table.intervals[:, 0] > table.intervals[:, 1])


def test_predictor_corrector_takes_any_prediction():
    x, ts = normal(6, 2), da.grid(VP, 7, "t2", 1.0, 1e-2)
    results = [
        simulate(PredictorCorrector(VP, ts, prediction=p), ONE.model(VP, p), x, noises(x.shape)).x
        for p in ("score", "eps", "x0", "v")
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PredictorCorrector(VP, [1.0, 0.5], "heun"), "predictor='heun' is unknown"),
        (lambda: PredictorCorrector(VP, [1.0, 0.5], snr=0.0), "snr=0.0 must be a positive"),
        (lambda: PredictorCorrector(VP, [1.0, 0.5], corrector_steps=-1), "corrector_steps=-1 must be an integer >= 0"),
        (lambda: PredictorCorrector(VP, [1.0, 0.5], prediction="noise"), "prediction='noise' is unknown"),
        (lambda: PredictorCorrector(da.RectifiedFlow(), [1.0, 0.5]), "ts=1.0: ρ is infinite there"),
        (lambda: Langevin(VP, 2.0, 3), r"t=2.0 is outside \[0, 1\]"),
        (lambda: Langevin(VP, 0.5, 0), "steps=0 must be an integer >= 1"),
        (lambda: Langevin(VP, 0.5, 3, step_size=-1.0), "step_size=-1.0 must be a positive"),
    ],
)
def test_langevin_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_zero_score_is_an_error_not_a_nan():
    with pytest.raises(ValueError, match=r"pc_none at t=1.0: the Langevin step is inf"):
        simulate(PredictorCorrector(VP, [1.0, 0.5], "none"), lambda x, t: 0 * x, normal(3, 2), 0)


# -- thresholding ---------------------------------------------------------------------------------
@pytest.mark.parametrize("max_value", [1.0, 2.0])
def test_dynamic_thresholding_is_imagens(max_value):
    x0 = np.stack([normal(6, 7), 3 * normal(6, 7, seed=1), 0.1 * normal(6, 7, seed=2)])
    got = dynamic_thresholding(lambda x, t: x0, VP, "x0", ratio=0.9, max_value=max_value)(x0, 0.5)
    for sample, before in zip(got, x0, strict=True):
        q = max(np.quantile(np.abs(before), 0.9), max_value)
        np.testing.assert_allclose(sample, max_value * np.clip(before, -q, q) / q, rtol=1e-13)
    np.testing.assert_array_equal(got[2], x0[2])  # nothing to clip: nothing changes, whatever max_value is
    assert np.abs(got).max() <= max_value * (1 + 1e-15)
    tensor = torch.as_tensor(x0)
    again = dynamic_thresholding(lambda x, t: tensor, VP, "x0", ratio=0.9, max_value=max_value)(tensor, 0.5)
    np.testing.assert_allclose(again.numpy(), got, rtol=1e-13)


@pytest.mark.parametrize("process", [VP, EDM, da.MeanReverting(VP, mean=0.4)], ids=["VP", "EDM", "MR"])
@pytest.mark.parametrize("prediction", ["eps", "score", "v"])
def test_thresholding_acts_on_the_x0_that_the_prediction_implies(process, prediction):
    """x₀ of the wrapped model, from x = αx₀ + σε (+ the mean), is the thresholded x₀ of the model."""
    t, x = 0.3, 2.0 * normal(5, 4)
    wrappers = (static_thresholding, lambda *a: dynamic_thresholding(*a, ratio=0.7))
    for wrap in wrappers:
        direct = wrap(ONE.x0(process), process, "x0")(x, t)
        output = wrap(ONE.model(process, prediction), process, prediction)(x, t)
        a, b = (float(p) for p in process.prediction_parts(prediction, t))
        mean = 0.0 if process.mean is None else process.mean
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x0 = np.linalg.solve([[alpha, sigma], [a, b]], np.stack([(x - mean).ravel(), output.ravel()]))[0] + mean
        np.testing.assert_allclose(x0.reshape(x.shape), direct, rtol=1e-9, atol=1e-11)
        assert np.abs(direct).max() <= 1 + 1e-12
        assert np.abs(ONE.x0(process)(x, t)).max() > 1.01  # so that there was something to clip


def test_thresholded_models_run_in_tables_and_with_a_time_per_sample():
    x = 2.0 * normal(4, 3)
    model = static_thresholding(ONE.eps(VP), VP)
    ddim = da.build("ddim", VP, da.grid(VP, 20, "t2", 1.0, 1e-3))
    assert np.abs(da.run(ddim, model, x)).max() < 1.05 < np.abs(da.run(ddim, ONE.eps(VP), x)).max()
    times = np.array([0.1, 0.4, 0.4, 0.9])
    many = static_thresholding(by_time(ONE.eps(VP)), VP)(x, times)
    for i, t in enumerate(times):
        np.testing.assert_allclose(many[i], model(x[i : i + 1], float(t))[0], rtol=1e-12)


def test_thresholding_refuses():
    model = ONE.eps(VP)
    for call, message in (
        (lambda: dynamic_thresholding(model, VP, ratio=0.0), r"ratio=0.0 must lie in \(0, 1\]"),
        (lambda: dynamic_thresholding(model, VP, ratio=1.5), r"ratio=1.5 must lie in \(0, 1\]"),
        (lambda: dynamic_thresholding(model, VP, max_value=-1.0), "max_value=-1.0 must be a positive"),
        (lambda: static_thresholding(model, VP, "noise"), "prediction='noise' is unknown"),
        (lambda: static_thresholding(1, VP), "model=1 must be a function"),
        (lambda: static_thresholding(lambda x, t: x, VP, "eps")(normal(2), 0.0), "cannot be told"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# -- Denoising MCMC -------------------------------------------------------------------------------
def joint_start(times, chains, seed=0):
    """An exact draw of the joint law: the level uniform, x from p at that level."""
    rng = np.random.default_rng(seed)
    level = rng.integers(times.size, size=chains)
    x = np.empty((chains, 2))
    for k, t in enumerate(times):
        members = np.flatnonzero(level == k)
        x[members] = TWO.sample(members.size or 1, rng, EDM, float(t))[: members.size]
    return x, level


@pytest.mark.parametrize("draw", [True, False])
def test_the_chain_keeps_the_joint_law(draw):
    """Levels stay uniform and x stays as its level says, within 4.5 standard errors of 8,000 independent chains.

    Taking the most likely level instead, as released, does not keep them.
    """
    times, chains, sweeps = level_grid(EDM, 8, 5.0, 0.1), 8000, 12
    classifier = exact_classifier(TWO, EDM, times)
    x, level = joint_start(times, chains)
    done = langevin_gibbs(
        by_time(TWO.score(EDM)), classifier, EDM, times, x, level, sweeps=sweeps, eta=0.1, draw=draw, seed=3
    )
    assert done.nfe == sweeps
    share = np.bincount(done.level, minlength=8) / chains
    band = 4.5 * math.sqrt(1 / 8 * 7 / 8 / chains)
    assert (np.abs(share - 1 / 8).max() < band) == draw, share
    if draw:
        spread = np.array([(done.x[done.level == k] ** 2).sum(axis=1).mean() for k in range(8)])
        second = 0.4 * (1.09 + 0.25) + 0.6 * (0.89 + 0.13)  # E|x₀|² of the mixture
        exact = second + 2 * times**2
        assert np.all(np.abs(spread / exact - 1) < 4.5 * math.sqrt(1.0 / 1000))
    assert np.all(done.lowest_level >= np.maximum(level, done.level))


def test_the_lowest_state_belongs_to_its_level():
    """With a classifier that dictates levels, the state kept is the one reached with the lowest."""
    times, script = level_grid(EDM, 4, 5.0, 0.1), iter([1, 3, 2])
    seen = []

    def classifier(x):
        seen.append(x.copy())
        logits = np.full((5, 4), -np.inf)
        logits[:, next(script)] = 0.0
        return logits

    done = langevin_gibbs(
        by_time(TWO.score(EDM)), classifier, EDM, times, normal(5, 2), np.zeros(5, int), sweeps=3, eta=0.1
    )
    np.testing.assert_array_equal(done.lowest_level, 3)
    np.testing.assert_array_equal(done.level, 2)
    np.testing.assert_array_equal(done.lowest_x, seen[1])
    np.testing.assert_array_equal(done.x, seen[2])


@pytest.mark.parametrize("relative", [True, False])
def test_the_langevin_step_of_the_chain(relative):
    """x + (η/2) s + √η z with η = eta σ² or eta, from the same generator."""
    times, x, level = level_grid(EDM, 4, 5.0, 0.1), normal(6, 2), np.array([0, 1, 2, 3, 1, 2])
    done = langevin_gibbs(
        by_time(TWO.score(EDM)), lambda x: np.zeros((6, 4)), EDM, times, x, level, sweeps=1, eta=0.2, relative=relative
    )
    z = np.random.default_rng(0).standard_normal((6, 2))
    for i, k in enumerate(level):
        eta = 0.2 * (times[k] ** 2 if relative else 1.0)
        want = x[i] + eta / 2 * TWO.score(EDM)(x[i], float(times[k])) + math.sqrt(eta) * z[i]
        np.testing.assert_allclose(done.x[i], want, rtol=1e-12)


@pytest.mark.parametrize("prediction", ["score", "eps", "x0"])
def test_hand_over_is_a_single_run_per_sample(prediction):
    times = np.array([0.2, 1.0, 5.0, 0.05, 0.02])
    x = np.array([TWO.sample(1, seed=i, process=EDM, t=max(t, 0.02))[0] for i, t in enumerate(times)])
    model = TWO.model(EDM, prediction)
    got = hand_over(by_time(model), EDM, x, times, steps=6, t_end=0.05, prediction=prediction)
    for i, t in enumerate(times):
        y = x[i : i + 1]
        if t > 0.05:
            ts = da.grid(EDM, 6, "rho7", t, 0.05)
            y = da.run(da.runge_kutta(EDM, ts, "2heun").in_terms_of(EDM, prediction), model, y)
        end = min(t, 0.05)
        np.testing.assert_allclose(got[i], (y + end**2 * TWO.score(EDM)(y, end))[0], rtol=1e-10)


def test_hand_over_reaches_the_exact_flow_from_every_level():
    times = np.geomspace(0.2, 10.0, 9)
    x = np.array([ONE.sample(1, seed=i, process=EDM, t=t)[0] for i, t in enumerate(times)])
    exact = np.array([ONE.flow(EDM, x[i : i + 1], t, 0.05)[0] for i, t in enumerate(times)])
    errors = []
    for steps in (20, 40, 80):
        got = hand_over(by_time(ONE.eps(EDM)), EDM, x, times, steps=steps, t_end=0.05, prediction="eps", denoise=False)
        errors.append(np.abs(got - exact).max())
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert errors[-1] < 5e-4
    assert np.all((ratios > 3.0) & (ratios < 6.0)), ratios
    other = hand_over(
        by_time(ONE.eps(EDM)),
        EDM,
        torch.as_tensor(x),
        times,
        steps=20,
        t_end=0.05,
        prediction="eps",
        denoise=False,
        builder=lambda process, ts: da.build("rhork_4rk", process, ts),
    )
    assert np.abs(other.numpy() - exact).max() < errors[0] / 5


def test_level_grid_is_uniform_in_log_sigma():
    times = level_grid(VE, 1000)
    assert times.size == 1000
    np.testing.assert_allclose(np.diff(np.log(VE.sigma(times))), -math.log(5000) / 999, rtol=1e-9)


def test_denoising_mcmc_refuses():
    times, x, level = level_grid(EDM, 4, 5.0, 0.1), normal(5, 2), np.zeros(5, int)
    model, flat = by_time(TWO.score(EDM)), lambda x: np.zeros((5, 4))
    for call, message in (
        (lambda: langevin_gibbs(model, flat, EDM, times, x, level[:3]), r"level has shape \(3,\)"),
        (lambda: langevin_gibbs(model, flat, EDM, times, x, level + 4), "level reaches from 4 to 4; allowed: 0 to 3"),
        (lambda: langevin_gibbs(model, flat, EDM, times, x, level + 0.5), "allowed: .* integers"),
        (lambda: langevin_gibbs(model, flat, EDM, times[::-1], x, level), "at least 2 descending times"),
        (lambda: langevin_gibbs(model, flat, EDM, times, x, level, eta=0.0), "eta=0.0 must be a positive"),
        (lambda: langevin_gibbs(model, lambda x: np.zeros((5, 3)), EDM, times, x, level), "classifier returned shape"),
        (lambda: langevin_gibbs(model, lambda x: flat(x) * np.nan, EDM, times, x, level), "classifier returned NaN"),
        (lambda: langevin_gibbs(lambda x, t: x * np.nan, flat, EDM, times, x, level), "NaN or infinity at call 1"),
        (lambda: hand_over(model, EDM, x, times), r"times has shape \(4,\); allowed: \(5,\)"),
        (lambda: level_grid(EDM, 1), "levels=1 must be an integer >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
