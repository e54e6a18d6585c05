"""Analysis of tables: distance, transfer, amplification, degree and order, on tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, grids, processes

import deis_analysis as da

VP = da.VPLinear()
TS = da.grid(VP, 8)
MIX, OPTIONS = da.order_problem()[1:]


def test_distance_is_zero_only_for_the_same_method():
    a = da.build("tab2", VP, TS)
    assert da.distance(a, a) == 0
    outputs = a.outputs.copy()
    outputs[-1, -2] += 1e-7
    assert np.isclose(da.distance(a, da.Tableau(a.times, a.states, outputs)), 1e-7, rtol=1e-6)
    times = a.times.copy()
    times[3] += 1e-3
    moved = da.Tableau(times, a.states, a.outputs)
    assert np.isclose(da.distance(a, moved), 1e-3)
    assert da.distance(a, moved, times=False) == 0
    assert da.distance(a, da.build("rhork_2heun", VP, TS)) == np.inf
    assert da.distance(a, da.build("tab2", da.MeanReverting(VP, 1.0), TS)) == np.inf
    with pytest.raises(ValueError, match="tab_b predicts 'x0'; allowed: 'eps'"):
        da.distance(a, a.in_terms_of(VP, "x0"))


def test_distance_ignores_how_states_are_written():
    """The same method with the states eliminated: other recurrence, equal Butcher form."""
    a = da.build("tab2", VP, TS)
    n, form = a.times.size, a.butcher()
    states, outputs = np.zeros((2, n, n))
    states[1:, 0] = form.start[1:]
    outputs[1:, : n - 1] = form.weights[1:]
    assert da.distance(a, da.Tableau(a.times, states, outputs)) <= 1e-13 * np.abs(form.weights).max()


@given(processes(), st.sampled_from(DISTINCT), st.sampled_from(da.PREDICTIONS), st.data())
def test_transfer_is_a_run_on_gaussian_data(process, name, prediction, data):
    variance = data.draw(st.floats(0.01, 4.0))
    table = da.build(name, process, data.draw(grids(process))).in_terms_of(process, prediction)
    gaussian = da.GaussianMixture([1.0], [0.0], [variance])
    truth = da.run(table, gaussian.model(process, prediction), np.ones(1))[0]
    found = da.transfer(table, process, [variance])[0]
    assert np.isclose(found, truth, rtol=1e-9, atol=1e-10 * (1 + da.amplification(table)))


def test_tables_with_noise_are_refused_where_they_have_no_meaning():
    noisy = da.Tableau([1.0, 0.5], [[0, 0], [1, 0]], [[0, 0], [1, 0]], noise=[[0], [1]], intervals=[[2.0, 1.0]])
    with pytest.raises(ValueError, match="draws noise"):
        da.transfer(noisy, VP, 1.0)
    with pytest.raises(ValueError, match="draws noise"):
        da.local_errors(noisy, VP, MIX, np.ones(2))


@pytest.mark.parametrize("prediction", da.PREDICTIONS)
def test_order_under_a_mean_is_the_order_without(prediction):
    process = da.MeanReverting(VP, 2.0)

    def tab2(p, ts):
        return da.build("tab2", p, ts).in_terms_of(p, prediction)

    options = OPTIONS | {"start": "exact", "starting_steps": 2}
    assert abs(da.observed_order(tab2, process, MIX, (40, 80, 160), **options).slope - 3) < 0.15
    table, x = tab2(process, da.grid(process, 8)), MIX.sample(4, 0, process, 1.0)
    parts = da.transported_errors(table, process, MIX, x)
    assert np.allclose(parts.sum(axis=0), da.global_error(table, process, MIX, x), atol=1e-11)
    inner = da.GaussianMixture(MIX.weights, MIX.means - 2.0, MIX.covariances)
    plain = da.local_errors(tab2(VP, da.grid(VP, 8)), VP, inner, x - 2.0)
    assert np.allclose(da.local_errors(table, process, MIX, x), plain, atol=1e-11)


def test_order_says_whether_it_is_asymptotic():
    narrow = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
    coarse = da.observed_order("tab3", VP, narrow, (20, 40, 80))  # from noise to data: not yet
    fine = da.observed_order("tab3", VP, MIX, (320, 640, 1280), **OPTIONS)
    assert (coarse.asymptotic, fine.asymptotic) == (False, True)
    assert abs(coarse.slope - 2) > 1 > abs(fine.slope - 2)


def test_exact_transfer_is_the_flow_and_tables_approach_it():
    variances = np.array([0.0, 0.1, 1.0, 30.0])
    for v in variances[1:]:
        mix = da.GaussianMixture([1.0], [0.0], [v])
        assert np.isclose(da.exact_transfer(VP, v, 1.0, 1e-3), mix.flow(VP, np.ones(1), 1.0, 1e-3)[0], rtol=1e-13)
    errors = [
        np.abs(
            da.transfer(da.build("rhork_4rk", VP, da.grid(VP, n)), VP, variances)
            - da.exact_transfer(VP, variances, 1.0, 1e-3)
        ).max()
        for n in (40, 160)
    ]
    assert errors[1] < 1e-2 * errors[0]
    with pytest.raises(ValueError, match=r"variance=.* must be finite"):
        da.transfer(da.build("ddim", VP, TS), VP, -1.0)


def test_amplification_is_the_sum_of_absolute_weights():
    table = da.build("tab3", VP, TS)
    rng, x = np.random.default_rng(0), np.zeros(200)
    signs = np.sign(table.butcher().weights[-1])
    worst = iter(signs)
    assert np.isclose(da.run(table, lambda x, t: np.full_like(x, next(worst)), x)[0], da.amplification(table))
    noise = np.abs(da.run(table, lambda x, t: rng.choice([-1.0, 1.0], x.shape), x)).max()
    assert noise < da.amplification(table)
    ddim = da.build("ddim", VP, TS)
    assert np.isclose(da.amplification(ddim), -ddim.butcher().weights[-1].sum())  # all of one sign: no cancellation


def test_exactness_degree_is_measured_per_step_and_capped():
    assert da.exactness_degree(da.build("tab3", VP, TS), VP, "eps", "t").tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert da.exactness_degree(da.build("tab3", VP, TS), VP, "eps", "t", max_degree=1).tolist() == [0] + [1] * 7
    assert set(da.exactness_degree(da.build("tab3", VP, TS), VP, "eps", "rho").tolist()) == {0}
    assert set(da.exactness_degree(da.build("euler", VP, TS), VP, "eps", "t").tolist()) == {-1}
    ddim = da.build("ddim", VP, TS)
    assert set(da.exactness_degree(ddim, VP, "x0", "lam").tolist()) == {0}  # constants of ε and of x₀ alike
    with pytest.raises(ValueError, match="max_degree=-1"):
        da.exactness_degree(ddim, VP, "x0", "lam", max_degree=-1)


# -- order ----------------------------------------------------------------------------------------
def test_order_of_a_known_error():
    """A fake sampler whose error is exactly C h^2.5: the slope is 2.5 with no standard error."""

    def fake(process, ts):
        x = MIX.sample(32, 0, process, float(ts[0]))
        scale = MIX.flow(process, x, ts[0], ts[-1]) / x  # the exact answer, as a diagonal of the state
        factor = float(np.mean(scale))
        n = ts.size - 1
        return da.Tableau([ts[0], ts[-1]], [[0, 0], [factor * (1 + n**-2.5), 0]], [[0, 0], [0, 0]])

    single = da.GaussianMixture([1.0], [0.0], [0.5])

    def exact_but(process, ts):
        factor = float(da.exact_transfer(process, 0.5, ts[0], ts[-1]))
        return da.Tableau([ts[0], ts[-1]], [[0, 0], [factor * (1 + (ts.size - 1) ** -2.5), 0]], np.zeros((2, 2)))

    found = da.observed_order(exact_but, VP, single, (10, 20, 40, 80))
    assert np.isclose(found.slope, 2.5, atol=1e-6)
    assert found.standard_error < 1e-6
    assert found.window == (10, 20, 40, 80)
    assert fake is not exact_but


def test_order_uses_the_asymptotic_window_only():
    found = da.observed_order("rhoab3", VP, MIX, (5, 10, 40, 80, 160, 320), start="exact", **OPTIONS)
    assert found.window[0] >= 40
    assert found.steps == (5, 10, 40, 80, 160, 320)
    assert len(found.errors) == 6


def test_order_refuses_a_round_off_floor():
    single = da.GaussianMixture([1.0], [0.0], [0.5])

    def exact(process, ts):
        factor = float(da.exact_transfer(process, 0.5, ts[0], ts[-1]))
        return da.Tableau([ts[0], ts[-1]], [[0, 0], [factor, 0]], np.zeros((2, 2)))

    with pytest.raises(ValueError, match="reach the round-off floor"):
        da.observed_order(exact, VP, single)
    with pytest.raises(ValueError, match="reach the round-off floor"):
        da.observed_order("rhork_4rk", VP, MIX, (40, 80, 160), **(OPTIONS | {"t_start": 0.12}))


def test_order_sees_the_difference_between_own_and_exact_start():
    own = da.observed_order("tab3", VP, MIX, (160, 320, 640), **OPTIONS)
    exact = da.observed_order("tab3", VP, MIX, (40, 80, 160), start="exact", **OPTIONS)
    assert abs(own.slope - 2) < 0.15
    assert abs(exact.slope - 4) < 0.15


def test_order_in_several_dimensions():
    mix = da.ProductMixture([MIX, da.GaussianMixture([1.0], [0.2], [0.4])])
    assert abs(da.observed_order("tab1", VP, mix, (40, 80, 160), start="exact", **OPTIONS).slope - 2) < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 20}, "steps=20 must be a sequence"),
        ({"steps": (10, 20)}, "steps=.* must hold at least 3"),
        ({"steps": (10, 20, 20)}, "steps=.* must hold at least 3"),
        ({"steps": (10, 20, 40.5)}, "steps=40.5 must be an integer"),
        ({"start": "exakt"}, "start='exakt' is unknown; nearest: exact"),
        ({"solver": "ddimm"}, "solver='ddimm' is unknown; nearest: ddim"),
        ({"solver": lambda p, ts: None, "start": "exact"}, "starting_steps=None must be given"),
        ({"solver": "tab3", "start": "exact", "steps": (3, 6, 12)}, "must exceed starting_steps=3"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        da.observed_order(**({"solver": "ddim", "process": VP, "mix": MIX} | options))
