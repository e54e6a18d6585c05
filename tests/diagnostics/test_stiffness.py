"""Stiffness and embedded errors, from a table's own calls, against exact derivatives and exact local errors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import CONTINUOUS, mixtures, processes

import deis_analysis as da
from deis_analysis.diagnostics.stiffness import (
    embedded_error,
    embedded_nodes,
    equal_time_pairs,
    stiffness_estimates,
)

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
PAIRED = ("rhork_2heun", "rhork_3kutta", "rhork_3ssprk", "rhork_4rk")


def slopes(process, t, v):
    """|∂p/∂x| on N(m, v) by prediction, and |∂v/∂x| of the flow x ∝ √V, V = α²v + σ²: V̇/(2V), by differences."""
    a, s = float(process.alpha(t)), float(process.sigma(t))
    total = a**2 * v + s**2

    def log_v(u):
        return np.log(float(process.alpha(u)) ** 2 * v + float(process.sigma(u)) ** 2)

    h = 1e-3 / float(process.log_rho_rate(t))
    once = [(log_v(t + k) - log_v(t - k)) / (4 * k) for k in (h, h / 2)]
    velocity = (4 * once[1] - once[0]) / 3
    own = a * s * (1 - v) / total if process.variance_preserving else velocity  # v in the angle: α′ = −σ, σ′ = α
    return {"eps": s / total, "x0": a * v / total, "score": 1 / total, "v": abs(own), "velocity": abs(velocity)}


@st.composite
def coarse(draw, process):
    """A few steps between 15 % and 90 % of the range of λ."""
    start, end = (float(process.lam(t)) for t in process.sampling_range)
    n = draw(st.integers(2, 6))
    shares = np.linspace(draw(st.floats(0.15, 0.4)), draw(st.floats(0.6, 0.9)), n + 1)
    return np.array([float(process.time_from_lam(start + (end - start) * s)) for s in shares])


@given(processes(CONTINUOUS), st.sampled_from(PAIRED), st.sampled_from(da.PREDICTIONS), st.floats(0.1, 2.0), st.data())
def test_estimates_are_the_derivatives_on_gaussians(process, name, prediction, v, data):
    """p is affine: equal for every pair and sample, to the rounding of u_a − u_b; the velocity likewise."""
    ts = data.draw(coarse(process))
    table = da.build(name, process, ts).in_terms_of(process, prediction)
    mix = da.GaussianMixture([1.0], [0.3], [v])
    x = mix.sample(3, 0, process, float(ts[0]))
    pairs = equal_time_pairs(table)
    assert len(pairs) == len(stiffness_estimates(table, mix.model(process, prediction), x))
    of_p = stiffness_estimates(table, mix.model(process, prediction), x)
    of_v = stiffness_estimates(table, mix.model(process, prediction), x, process=process)
    reach = 1 + np.abs(da.run(table, mix.model(process, prediction), x, keep="all")[1].states[0]).max()
    for p, velocity in zip(of_p, of_v, strict=True):
        exact = slopes(process, p.time, v)
        parts = exact[prediction] + 1.0 / float(process.sigma(p.time)) ** 2 * (prediction == "score") + 1.0
        blur = 1e-13 * reach / p.separation
        assert np.all(np.abs(p.estimate - exact[prediction]) <= 1e-9 * exact[prediction] + blur * parts)
        rates = abs(float(process.drift(p.time))) + float(process.log_rho_rate(p.time))
        assert np.all(np.abs(velocity.estimate - exact["velocity"]) <= 1e-9 * rates + blur * 10 * rates * (1 + parts))
        assert np.array_equal(p.separation, velocity.separation)


def test_the_estimates_resolve_the_derivative():
    """The tolerance above is not what makes it pass: here rounding is below 1e-8, and the derivative far from 0."""
    mix, ts = da.GaussianMixture([1.0], [0.3], [0.2]), da.grid(VP, 5, "t2", 0.5, 0.1)
    x = mix.sample(3, 0, VP, 0.5)
    for name in PAIRED:
        for found in stiffness_estimates(da.build(name, VP, ts), mix.eps(VP), x):
            assert np.allclose(found.estimate, slopes(VP, found.time, 0.2)["eps"], rtol=1e-8)
            assert found.separation.min() > 1e-6
        for found in stiffness_estimates(da.build(name, VP, ts), mix.eps(VP), x, process=VP):
            assert np.allclose(found.estimate, slopes(VP, found.time, 0.2)["velocity"], rtol=1e-7)
            assert found.estimate.min() > 0.1


@given(processes(CONTINUOUS), mixtures(), st.sampled_from(PAIRED), st.data())
def test_on_mixtures_the_estimate_is_a_derivative_between_the_two_states(process, mix, name, data):
    """The mean-value theorem: it lies between the least and the largest |∂ε/∂x| on [u_a, u_b], neither missed."""
    ts = data.draw(coarse(process))
    x = mix.sample(2, 0, process, float(ts[0]))
    table = da.build(name, process, ts)
    _, kept = da.run(table, mix.eps(process), x, keep="all")
    for found in stiffness_estimates(table, mix.eps(process), x):
        a, b = (kept.states[k] for k in found.nodes)
        assert np.allclose(np.abs(a - b), found.separation, rtol=1e-12)
        line = torch.tensor(a + np.linspace(0, 1, 201)[:, None] * (b - a), requires_grad=True)
        (gradient,) = torch.autograd.grad(mix.eps(process)(line, found.time).sum(), line)
        values = gradient.numpy()
        low, high = values.min(0), values.max(0)
        assume(np.all(found.separation > 1e-6 * (1 + np.abs(a))))
        room = 1e-4 * (high - low) + 1e-8 * (1 + np.abs(values).max())
        mean = values.mean(0) if np.all(low * high > 0) else None
        assert np.all(found.estimate <= np.maximum(np.abs(low), np.abs(high)) + room)
        if mean is not None:
            assert np.all(found.estimate >= np.minimum(np.abs(low), np.abs(high)) - room)


def test_in_more_dimensions_it_lies_between_the_principal_slopes_and_is_torch_too():
    mix = da.GaussianMixture([1.0], [[0.3, -0.2]], [[0.1, 2.0]])
    table, x = da.build("rhork_2heun", VP, da.grid(VP, 5, "t2", 0.9, 0.1)), mix.sample(20, 0, VP, 0.9)
    spread = []
    for found, tensor in zip(
        stiffness_estimates(table, mix.eps(VP), x),
        stiffness_estimates(table, mix.eps(VP), torch.tensor(x)),
        strict=True,
    ):
        ends = sorted(slopes(VP, found.time, v)["eps"] for v in (0.1, 2.0))
        assert np.all((found.estimate > ends[0] - 1e-9) & (found.estimate < ends[1] + 1e-9))
        spread.append(np.ptp(found.estimate))
        assert np.allclose(found.estimate, tensor.estimate, rtol=1e-9)
    assert max(spread) > 1e-2


def test_pairs_are_read_off_the_table():
    """Heun: the Euler stage and the next step's start. Kutta's fourth order: the two midpoints, and the same."""
    ts = da.grid(VP, 3)
    assert equal_time_pairs(da.build("rhork_2heun", VP, ts)) == ((1, 2), (3, 4))
    assert equal_time_pairs(da.build("rhork_4rk", VP, ts)) == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))
    assert equal_time_pairs(da.build("ddim", VP, ts)) == ()
    assert equal_time_pairs(da.build("dpmpp_2s_ancestral", VP, ts)) != ()
    states = np.zeros((4, 4))
    states[1, 0] = states[2, 0] = states[3, 2] = 1.0
    outputs = np.zeros((4, 4))
    outputs[3, :3] = 1.0
    assert equal_time_pairs(da.Tableau([0.5, 0.3, 0.3, 0.2], states, outputs)) == ()  # one state, asked twice


def test_states_that_coincide_give_zero():
    table = da.build("rhork_2heun", VP, da.grid(VP, 2))
    (found,) = stiffness_estimates(table, lambda x, t: 0 * x, np.array([1.0]))
    assert found.separation[0] < 1e-15
    assert found.estimate[0] == 0.0


def test_noise_reaches_the_run():
    table, x = da.build("dpmpp_2s_ancestral", VP, da.grid(VP, 3, "t2", 0.9, 0.1)), np.array([0.4])
    mix = da.GaussianMixture([1.0], [0.3], [0.2])
    found = stiffness_estimates(table, mix.x0(VP), x, noise=3)
    assert found
    for one in found:
        assert np.allclose(one.estimate, slopes(VP, one.time, 0.2)["x0"], rtol=1e-8)


# -- embedded errors ------------------------------------------------------------------------------
def euler_error(process, mix, states, a, b, told):
    """Exact local error of the stage's method from the numerical state: |û − flow(u)|."""
    return np.abs(told - mix.flow(process, states, a, b))


@pytest.mark.parametrize(
    ("name", "order"), [("rhork_2heun", 1), ("rhork_3ssprk", 1), ("rhork_3kutta", 1), ("rhork_4rk", 2)]
)
def test_embedded_errors_are_the_local_errors_of_the_lower_order(name, order):
    """On a Gaussian and a mixture: their size is h^{order + 1}, and their ratio tends to 1 as h to the difference of
    the two orders, since |E − exact| is the local error of the result."""
    for mix in (da.GaussianMixture([1.0], [0.3], [0.2]), MIX):
        off, size, x = [], [], np.array([-1.6, 0.9])
        for n in (40, 80, 160):
            ts = da.grid(VP, n, "t1", 0.5, 0.3)
            table = da.build(name, VP, ts)
            _, kept = da.run(table, mix.eps(VP), x, keep="all")
            found = embedded_error(table, mix.eps(VP), x)
            exact = np.array(
                [
                    euler_error(VP, mix, kept.states[i], a, b, kept.states[k])
                    for (i, k, _), (a, b) in zip(embedded_nodes(table), found.times, strict=True)
                ]
            )
            off.append(np.abs(found.errors[0] / exact[0] - 1).max())
            size.append(found.errors[0].max())
        assert off[-1] < 0.02
        assert abs(np.log2(off[0] / off[2]) / 2 - (da.SOLVERS[name].order - order)) < 0.1, off
        assert abs(np.log2(size[0] / size[2]) / 2 - (order + 1)) < 0.1, size


@given(processes(CONTINUOUS), st.floats(0.1, 2.0), st.data())
def test_heun_is_its_formula(process, v, data):
    """û is the DDIM step, so E = ½ α_s |Δρ| |ε(û) − ε(x)|, and total = Σ |h| E."""
    ts = data.draw(coarse(process))
    mix = da.GaussianMixture([1.0], [0.3], [v])
    x = mix.sample(3, 0, process, float(ts[0]))
    found = embedded_error(da.build("rhork_2heun", process, ts), mix.eps(process), x)
    total, scale = 0.0, 1 + np.abs(x).max()
    eps = mix.eps(process)
    for i, (t, s) in enumerate(pairwise(ts)):
        ddim = da.run(da.build("ddim", process, [t, s]), eps, x)
        weight = 0.5 * float(process.alpha(s) * (process.rho(t) - process.rho(s)))
        expected = weight * np.abs(eps(ddim, s) - eps(x, t))
        assert np.allclose(found.errors[i], expected, rtol=1e-8, atol=1e-13 * scale)
        total = total + (t - s) * expected
        x = ddim + weight * (eps(x, t) - eps(ddim, s))
    assert np.allclose(found.total, total, rtol=1e-8, atol=1e-13 * scale * (ts[0] - ts[-1]))
    assert np.allclose(found.times, np.column_stack([ts[:-1], ts[1:]]))


def test_steps_without_a_stage_at_the_end_are_left_out():
    """EDM's Heun ends with an Euler step; a norm is taken over all entries of a sample."""
    process = da.EDM(0.002, 10.0)
    table = da.build("edm_heun", process, [5.0, 2.0, 1.0, 0.0])
    mix, x = da.GaussianMixture([1.0], [0.3], [0.2]), np.ones((2, 3, 4)) * 5
    found = embedded_error(table, mix.model(process, table.prediction), x)
    assert np.array_equal(found.times, [[5.0, 2.0], [2.0, 1.0]])
    assert found.errors.shape == (2, 2)
    one = embedded_error(table, mix.model(process, table.prediction), x[:, :1, :1])
    assert np.allclose(found.errors, one.errors * np.sqrt(12), rtol=1e-12)


@pytest.mark.parametrize("process", [VP, da.SubVP(), da.VPCosine(), da.RectifiedFlow()])
def test_the_velocity_of_v_has_no_part_in_x(process):
    """ẋ is a multiple of v on variance-preserving processes (α′ = −σ in the angle) and v itself elsewhere: with a model
    whose prediction does not change, the velocity does not either."""
    table = da.build("rhork_2heun", process, [0.8, 0.5, 0.2]).in_terms_of(process, "v")
    (found,) = stiffness_estimates(table, lambda x, t: 0.0 * x + t, np.array([0.4, -1.0]), process=process)
    assert found.separation.min() > 1e-3
    assert found.estimate.max() == 0.0


def test_the_embedded_result_is_the_last_stage_at_the_end():
    """A step with two stages at its end, as in a corrector that is applied twice."""
    states, outputs = np.zeros((4, 4)), np.zeros((4, 4))
    states[1:, 0] = 1.0
    outputs[1, 0], outputs[2, :2], outputs[3, :3] = -0.2, -0.1, [-0.1, 0.0, -0.1]
    table = da.Tableau([0.5, 0.3, 0.3, 0.3], states, outputs, grid_nodes=(0, 3))
    (step,) = embedded_nodes(table)
    assert step == (0, 2, 3)
    x, t = np.array([1.0, 3.0]), (0.5, 0.3)
    p = [x]
    p.append(x - 0.2 * p[0])
    p.append(x - 0.1 * (p[0] + p[1]))
    last = x - 0.1 * (p[0] + p[2])
    found = embedded_error(table, lambda y, u: y, x)
    assert np.allclose(found.errors[0], np.abs(last - p[2]), rtol=1e-12)
    assert np.allclose(found.times, [t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision(dtype):
    table, x = da.build("rhork_2heun", VP, [0.8, 0.5, 0.2]), torch.tensor([[0.4, -1.0], [2.0, 1.0]], dtype=dtype)
    seen = set()

    def model(y, t):
        seen.add(y.dtype)
        return 0.5 * y

    (found,) = stiffness_estimates(table, model, x)
    assert np.allclose(found.estimate, 0.5, rtol=0.05)
    assert embedded_error(table, model, x).errors.dtype == np.float64
    assert seen == {dtype}


def test_bad_input():
    ts, x = da.grid(VP, 3), np.ones(2)
    for call, message in (
        (lambda: stiffness_estimates(da.build("tab2", VP, ts), MIX.eps(VP), x), "no time twice"),
        (lambda: stiffness_estimates("heun", MIX.eps(VP), x), "tableau='heun'"),
        (lambda: stiffness_estimates(da.build("rhork_2heun", VP, ts), MIX.eps(VP), x, process="VP"), "process='VP'"),
        (
            lambda: stiffness_estimates(da.build("rhork_2heun", VP, ts), MIX.eps(VP), np.ones((0, 2))),
            r"x has shape \(0, 2",
        ),
        (lambda: embedded_error(da.build("rhork_2heun", VP, ts), MIX.eps(VP), np.ones((2, 0))), r"x has shape \(2, 0"),
        (lambda: embedded_error(da.build("tab2", VP, ts), MIX.eps(VP), x), "no stage at the end"),
        (lambda: embedded_error(da.build("ddpm", VP, ts), MIX.eps(VP), x), "has noise"),
        (lambda: embedded_error(da.build("rhork_2heun", VP, ts), MIX.eps(VP), np.array([np.nan])), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
