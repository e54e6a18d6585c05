"""Error analysis: telescoping identity, local orders, extrapolation errors, all against exact flows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, grids, mixtures, processes

import deis_analysis as da

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
SMOOTH = ("VPLinear", "EDM", "VE", "SubVP", "VPCosine", "RectifiedFlow")


@given(processes(SMOOTH), mixtures(), st.sampled_from(DISTINCT), st.data())
def test_transported_local_errors_sum_to_the_global_error(process, mix, name, data):
    ts = data.draw(grids(process))
    table, x = da.build(name, process, ts), mix.sample(6, 0, process, float(ts[0]))
    parts, total = da.transported_errors(table, process, mix, x), da.global_error(table, process, mix, x)
    assert parts.shape == (len(table.grid_nodes) - 1, 6)
    assert np.allclose(parts.sum(axis=0), total, rtol=0, atol=1e-9 * (1 + np.abs(parts).max()))


def test_a_single_step_has_one_local_error_which_is_the_global_one():
    ts, x = np.array([0.5, 0.3]), np.linspace(-1, 1, 5)
    table = da.build("ddim", VP, ts)
    total = da.global_error(table, VP, MIX, x)
    assert np.allclose(da.local_errors(table, VP, MIX, x)[0], total)
    assert np.allclose(da.transported_errors(table, VP, MIX, x)[0], total)
    assert np.abs(total).max() > 1e-3


@cache
def on_the_way(t):
    """States at t of the paths that many tests follow; they begin at t = 0.4."""
    return MIX.flow(VP, MIX.sample(16, 0, VP, 0.4), 0.4, t)


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("tab1", 2), ("tab3", 4), ("rhoab2", 3), ("rhork_3heun", 3), ("ipndm3", 2)]
)
def test_local_errors_are_one_order_higher_than_the_method(name, order):
    errors, lead = [], da.SOLVERS[name].starting_steps
    for n in (80, 160, 320):
        ts = da.grid(VP, n, "t2", 0.4, 0.1)[
            n // 2 - 2 - lead : n // 2 + 3
        ]  # four steps in the middle and their history
        local = da.local_errors(da.build(name, VP, ts), VP, MIX, on_the_way(float(ts[0])))
        errors.append(np.sqrt(np.mean(local[lead:] ** 2)))
    slope = np.log2(errors[0] / errors[2]) / 2
    assert abs(slope - (order + 1)) < 0.2, slope


def test_local_errors_do_not_depend_on_the_run():
    """They start each step from exact history: the fifth is the error of a table that stops there."""
    ts, x = da.grid(VP, 8), MIX.sample(5, 0, VP, 1.0)
    full = da.local_errors(da.build("tab2", VP, ts), VP, MIX, x)
    short = da.local_errors(da.build("tab2", VP, ts[:6]), VP, MIX, x)
    assert np.allclose(full[:5], short, rtol=1e-12, atol=1e-14)


# -- extrapolation --------------------------------------------------------------------------------
def path_of(mix, process, x, start):
    return lambda t: x if t == start else mix.flow(process, x, start, t)


def test_frozen_predictions_are_degree_zero():
    ts, x = da.grid(VP, 5, "t1", 1.0, 0.05), MIX.sample(12, 0, VP, 1.0)
    path = path_of(MIX, VP, x, 1.0)
    times, errors = da.extrapolation_error(MIX.score(VP), VP, path, ts, 0, prediction="score", points=3)
    assert times.shape == errors.shape == (5, 3)
    for i in range(5):
        frozen = MIX.score(VP)(path(float(ts[i])), float(ts[i]))
        for j in range(3):
            truth = MIX.score(VP)(path(times[i, j]), times[i, j])
            assert np.isclose(errors[i, j], np.sqrt(np.mean((frozen - truth) ** 2)), rtol=1e-10)
    assert np.allclose(times[:, -1], ts[1:])


def test_delta_s_of_frozen_eps_is_measured_in_score_units():
    """DEIS fig. 3d: ‖s(x_τ, τ) + ε(x_t, t)/σ_τ‖ with σ at τ, not at t."""
    ts, x = da.grid(VP, 4, "t1", 1.0, 0.05), MIX.sample(12, 0, VP, 1.0)
    path = path_of(MIX, VP, x, 1.0)
    times, errors = da.extrapolation_error(MIX.eps(VP), VP, path, ts, 0, unit="score", points=2)
    for i in range(4):
        frozen = MIX.eps(VP)(path(float(ts[i])), float(ts[i]))
        for j in range(2):
            tau = times[i, j]
            gap = MIX.score(VP)(path(tau), tau) + frozen / VP.sigma(tau)
            assert np.isclose(errors[i, j], np.sqrt(np.mean(gap**2)), rtol=1e-9)


@pytest.mark.parametrize("variable", ["t", "rho", "lam", "inv_rho"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_extrapolation_error_has_order_degree_plus_one(degree, variable):
    errors = []
    for n in (40, 80, 160):
        ts = da.grid(VP, n, "t2", 0.4, 0.1)[n // 2 - 2 - degree : n // 2 + 3]  # four in the middle and their history
        _, delta = da.extrapolation_error(MIX.eps(VP), VP, on_the_way, ts, degree, variable=variable, points=1)
        errors.append(np.sqrt(np.mean(delta[degree:] ** 2)))
    assert abs(np.log2(errors[0] / errors[2]) / 2 - (degree + 1)) < 0.25


@given(st.integers(0, 3), st.sampled_from(["t", "rho", "lam", "inv_rho"]))
def test_polynomials_of_the_degree_are_extrapolated_exactly(degree, variable):
    clock = {"t": float, "rho": VP.rho, "lam": VP.lam, "inv_rho": lambda t: 1 / VP.rho(t)}[variable]
    scale = abs(float(clock(0.2))) + abs(float(clock(0.9)))

    def model(x, t, power=degree):
        return np.full_like(x, (float(clock(t)) / scale) ** power)

    ts = da.grid(VP, 8, "t1", 0.9, 0.2)
    _, exact = da.extrapolation_error(model, VP, lambda t: np.ones(2), ts, degree, variable=variable)
    assert exact[degree:].max() < 1e-11
    _, one_more = da.extrapolation_error(
        lambda x, t: model(x, t, degree + 1), VP, lambda t: np.ones(2), ts, degree, variable=variable
    )
    assert one_more[degree:].max() > 1e-7


def test_bad_input():
    arguments = {"model": MIX.eps(VP), "process": VP, "path": lambda t: np.ones(2), "ts": da.grid(VP, 3), "degree": 1}
    for change, message in (
        ({"degree": -1}, "degree=-1"),
        ({"points": 0}, "points=0"),
        ({"unit": "noise"}, "unit='noise' is unknown"),
        ({"variable": "x"}, "variable='x' is unknown"),
        ({"prediction": "s"}, "prediction='s' is unknown"),
        ({"ts": [0.1, 0.5]}, "ts must descend"),
    ):
        with pytest.raises(ValueError, match=message):
            da.extrapolation_error(**(arguments | change))
