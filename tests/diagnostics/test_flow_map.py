"""Flow maps: semigroup and mean-velocity identity, exact on Gaussians and 1-D mixtures, of their order for tables."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import mixtures, processes

import deis_analysis as da
from deis_analysis.diagnostics.flow_map import mean_velocity, mean_velocity_residual, semigroup_defect, table_flow

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.3, 0.2])
MEAN, VARIANCE = 0.7, 0.36


def velocity_of(mix, process):
    """ẋ = f x + (g²/2σ) ε of the probability flow."""
    eps = mix.eps(process)

    def velocity(x, t):
        half = float(process.diffusion_squared(t)) / (2 * float(process.sigma(t)))
        return float(process.drift(t)) * x + half * eps(x, t)

    return velocity


def law(t):
    """Mean and variance of x_t, and their rates, written out for VPLinear(0.1, 20)."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 0.5 * 19.9 * t * t
    alpha2 = np.exp(-integral)
    return (
        np.sqrt(alpha2) * MEAN,
        alpha2 * VARIANCE + 1 - alpha2,
        -0.5 * beta * np.sqrt(alpha2) * MEAN,
        beta * alpha2 * (1 - VARIANCE),
    )


def gaussian_flow(x, t_from, t_to):
    (m, v, *_), (m_to, v_to, *_) = law(t_from), law(t_to)
    return m_to + (x - m) * np.sqrt(v_to / v)


def gaussian_velocity(x, t):
    m, v, m_rate, v_rate = law(t)
    return m_rate + 0.5 * v_rate / v * (x - m)


@given(processes(), mixtures(), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_exact_flows_compose(process, mix, shares):
    start, end = process.sampling_range
    t, s, r = (start + (end - start) * share for share in shares)
    x = mix.sample(4, 0, process, t)
    scale = max(float(process.alpha(u)) + float(process.sigma(u)) for u in (t, s, r))
    assert semigroup_defect(partial(mix.flow, process), x, t, s, r).max() < 1e-9 * scale * 10


def test_defect_and_mean_velocity_of_a_map_that_does_not_compose():
    """φ_{r←t} x = x + (t − r)²: the defect is (t−r)² − (t−s)² − (s−r)², the mean velocity −(t − r)."""
    flow, x = lambda x, t, r: x + (t - r) ** 2, np.array([1.0, -2.0])
    assert np.allclose(semigroup_defect(flow, x, 1.0, 0.7, 0.2), 0.64 - 0.09 - 0.25)
    assert np.allclose(semigroup_defect(lambda x, t, r: x - (t - r) ** 2, x, 1.0, 0.7, 0.2), 0.3)
    assert np.allclose(mean_velocity(flow, x, 1.0, 0.2), -0.8)


def test_gaussian_flow_is_the_square_root_of_the_variances():
    x = np.array([-1.0, 0.4, 2.0])
    mix = da.GaussianMixture([1.0], [MEAN], [VARIANCE])
    assert np.allclose(mix.flow(VP, x, 0.9, 0.2), gaussian_flow(x, 0.9, 0.2), rtol=1e-12)
    assert np.allclose(velocity_of(mix, VP)(x, 0.5), gaussian_velocity(x, 0.5), rtol=1e-12)
    u = mean_velocity(partial(mix.flow, VP), x, 0.9, 0.2)
    assert np.allclose(u, (x - gaussian_flow(x, 0.9, 0.2)) / 0.7, rtol=1e-12)
    near = mean_velocity(partial(mix.flow, VP), x, 0.5, 0.5 - 1e-6)
    assert np.allclose(near, gaussian_velocity(x, 0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("flow", "velocity"),
    [(gaussian_flow, gaussian_velocity), (partial(MIX.flow, VP), velocity_of(MIX, VP))],
    ids=["gaussian", "mixture"],
)
@pytest.mark.parametrize(("t", "r"), [(0.5, 0.1), (0.3, 0.8)])
def test_residual_falls_with_the_square_of_delta(flow, velocity, t, r):
    x, deltas = np.array([-0.9, -0.2, 0.5, 1.3]), np.array([8e-3, 4e-3, 2e-3])
    sizes = [np.abs(mean_velocity_residual(flow, velocity, x, t, r, d)).max() for d in deltas]
    assert np.polyfit(np.log(deltas), np.log(sizes), 1)[0] == pytest.approx(2.0, abs=0.02)
    assert sizes[-1] < 1e-2


@pytest.mark.parametrize("error", [0.01, -0.2])
def test_residual_of_a_wrong_velocity(error):
    """u does not change; v → v + e changes the residual by −e + (t − r) e ∂_x u."""
    x, t, r, d = np.array([-0.9, 1.3]), 0.5, 0.1, 1e-3
    right = mean_velocity_residual(gaussian_flow, gaussian_velocity, x, t, r, d)
    wrong = mean_velocity_residual(gaussian_flow, lambda x, t: gaussian_velocity(x, t) + error, x, t, r, d)
    slope = (1 - np.sqrt(law(r)[1] / law(t)[1])) / (t - r)
    assert np.allclose(wrong - right, -error + (t - r) * error * slope, rtol=1e-3)


@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("tab1", 2), ("rhork_2heun", 2), ("rhork_3kutta", 3), ("rhork_4rk", 4)]
)
def test_semigroup_defect_of_a_table_is_of_its_order(solver, order):
    x, sizes, steps = MIX.sample(16, 0, VP, 0.6), [], np.array([40, 80, 160])
    for n in steps:
        flow = table_flow(solver, VP, MIX.eps(VP), int(n))
        sizes.append(np.sqrt(np.mean(semigroup_defect(flow, x, 0.6, 0.3, 0.1) ** 2)))
    assert -np.polyfit(np.log(steps), np.log(sizes), 1)[0] == pytest.approx(order, abs=0.15)


def test_table_flow_is_the_table():
    x, ts = MIX.sample(5, 0, VP, 0.9), da.grid(VP, 7, "logrho", 0.9, 0.05)
    expected = da.run(da.build("dpmpp_2m", VP, ts), MIX.x0(VP), x)
    got = table_flow("dpmpp_2m", VP, MIX.eps(VP), 7, "logrho")(x, 0.9, 0.05)
    assert np.allclose(got, expected, rtol=1e-10, atol=1e-12)


def flow_one(x, t, r):
    return x


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: semigroup_defect(None, 1.0, 1, 0.5, 0), "flow=None must be a function"),
        (lambda: semigroup_defect(flow_one, 1.0, 1, np.nan, 0), "s=.* must be finite"),
        (lambda: mean_velocity(flow_one, 1.0, 0.5, 0.5), "r=0.5 must differ"),
        (lambda: mean_velocity_residual(flow_one, 3, 1.0, 0.5, 0.1, 0.1), "velocity=3 must be a function"),
        (lambda: mean_velocity_residual(flow_one, flow_one, 1.0, 0.5, 0.1, 0.4), "delta=0.4 must lie"),
        (lambda: mean_velocity_residual(flow_one, flow_one, 1.0, 0.5, 0.1, 0.0), "delta=0.0 must lie"),
        (lambda: table_flow("ddpm", VP, flow_one, 5), "solver='ddpm' draws noise"),
        (lambda: table_flow("ddim", VP, flow_one, 0), "steps=0"),
        (lambda: table_flow("ddim", VP, None, 5), "model=None"),
        (lambda: table_flow("ddim", VP, flow_one, 5)(np.ones(1), 0.1, 0.5), "t_end=0.5"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
