"""The sparse table and what is built on it: linear cost, the recorder, typed models, sampling in one line."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DETERMINISTIC, STOCHASTIC, grids, mixtures, processes

import deis_analysis as da
from deis_analysis.tableau import fold
from deis_analysis.tableau.recorder import Recorder

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
ALL = [*DETERMINISTIC, *STOCHASTIC]


# -- rows -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tab3", "rhork_4rk", "unipc3_bh2_x0", "sde_dpmpp_2m"])
def test_memory_and_terms_grow_with_the_steps_and_not_with_their_square(name):
    sizes = []
    for steps in (400, 800):
        ts = da.grid(VP, steps, "t1")
        da.build(name, VP, ts)  # what is cached once
        tracemalloc.start()
        table = da.build(name, VP, ts)
        assert table.memory < 12
        sizes.append((tracemalloc.get_traced_memory()[0], sum(m.nnz for m in table.matrices)))
        tracemalloc.stop()
    assert all(size < 500 * terms for size, terms in sizes)  # bytes; dense matrices have 5,000 and more a term
    assert sizes[1][1] <= 2 * sizes[0][1] + 16


def test_a_table_of_many_nodes_is_built_and_read():
    """Ten times the nodes that dense matrices allowed; a million takes five seconds."""
    table = da.build("ddim", VP, da.grid(VP, 200_000, "t1"))
    assert (table.nfe, table.noises, table.matrices.states.nnz) == (200_000, 0, 200_000)
    assert table.label(199_999) == "u199999"
    assert str(table).startswith("ddim: 200000 calls of eps, 200001 nodes, deterministic, 3 arrays in memory")


@given(st.sampled_from(ALL), processes(), st.data())
def test_json_sparse_and_dense_are_one_table(name, process, data):
    row = da.SOLVERS[name]
    try:
        table = row.build(process, data.draw(grids(process, row.block, 6)))
    except ValueError:
        return  # coefficients that are singular on this process, or a grid of another length than whole blocks
    dense = da.Tableau(
        table.times, table.states, table.outputs, table.noise, table.prediction, intervals=table.intervals,
        grid_nodes=table.grid_nodes, mean=table.mean,
    )  # fmt: skip
    for other in (dense, da.Tableau.from_json(table.to_json()), table.changed()):
        for key in ("states", "outputs", "noise", "times", "intervals"):
            assert np.array_equal(getattr(other, key), getattr(table, key))
        assert other.grid_nodes == table.grid_nodes
        assert other.labels == table.labels
    assert da.distance(table, dense) == 0


def test_depth_counts_calls_that_wait_for_one_another():
    ts = da.grid(VP, 6)
    for name in ("tab3", "rhork_3kutta", "unipc3_bh2_x0", "edm_heun"):
        table = da.build(name, VP, ts)
        assert table.depth == table.nfe  # each needs the one before
    r = Recorder(VP, np.array([1.0, 0.5]))
    a, b = (r.call(c * r.x_T, t) for c, t in ((1.0, 0.9), (0.9, 0.8)))  # side by side
    third = r.call(0.5 * r.x_T + 0.1 * a + 0.2 * b, 0.6)
    r.node(0.3 * r.x_T + 0.5 * third)
    assert (r.tableau().nfe, r.tableau().depth) == (3, 2)
    assert "2 deep" in str(r.tableau())


def test_one_fold_serves_arrays_and_symbols():
    """The result as a polynomial in x_T and outputs, by a value that knows + and * only, is the Butcher form."""

    class Terms(dict):
        def __add__(self, other):
            return Terms({k: self.get(k, 0.0) + other.get(k, 0.0) for k in {*self, *other}})

        def __rmul__(self, c):
            return Terms({k: c * v for k, v in self.items()})

    table = da.build("rhork_3kutta", VP, da.grid(VP, 3))
    end = fold(table.plan, {0: Terms({"x": 1.0})}, lambda k, _: Terms({k: 1.0}))
    form = table.butcher()
    assert end["x"] == pytest.approx(form.start[-1], rel=1e-14)
    assert [end[k] for k in table.evaluated] == pytest.approx(form.weights[-1].tolist(), rel=1e-13)


# -- the recorder ---------------------------------------------------------------------------------
def test_a_sampler_of_two_states_in_twelve_lines():
    """A leapfrog on dy = ε dρ, written as it is read: equal to its run by hand."""
    ts = da.grid(VP, 7, "t2")
    rho, alpha = VP.rho(ts), VP.alpha(ts)
    r = Recorder(VP, ts)
    before = r.x_T
    x = r.node(alpha[1] * (before / alpha[0] + (rho[1] - rho[0]) * r.call(before)))
    for i in range(1, 7):
        y = before / alpha[i - 1] + (rho[i + 1] - rho[i - 1]) * r.call(x)
        before, x = x, r.node(alpha[i + 1] * y)
    table = r.tableau("leapfrog")
    y = [np.array([1.3, -0.4]) / alpha[0]]
    eps = MIX.eps(VP)
    y.append(y[0] + (rho[1] - rho[0]) * eps(alpha[0] * y[0], ts[0]))
    for i in range(1, 7):
        y.append(y[i - 1] + (rho[i + 1] - rho[i - 1]) * eps(alpha[i] * y[i], ts[i]))
    assert np.allclose(da.run(table, eps, alpha[0] * y[0]), alpha[7] * y[7], rtol=1e-12)
    assert (table.nfe, table.grid_nodes) == (7, tuple(range(8)))


def test_lines_are_linear_and_calls_name_states():
    r = Recorder(VP, np.array([1.0, 0.5, 0.1]), "x0")
    x = r.x_T
    p = r.call(x)
    z = r.noise((4.0, 1.0))
    u = np.float64(2.0) * x - p / 4.0 + sum([z, z])
    assert u.terms == {0: 2.0, 1: -0.25, 2: 2.0}
    q = r.call(u, 0.7)  # u is a state from here on
    assert u.terms == {3: 1.0}
    assert r.call(u).terms == q.terms
    assert r.call(u, 0.6).terms != q.terms  # asked at another time: another call
    r.node(u + q)
    r.node(r.state(x + p, 0.3))
    table = r.tableau("t")
    assert table.times.tolist() == [1.0, 0.7, 0.6, 0.5, 0.3, 0.1]
    bad = Recorder(VP, np.array([1.0, 0.5]))
    bad.node(np.inf * bad.x_T)
    with pytest.raises(ValueError, match=r"t=1.0 to 0.5: the step of bad is singular there"):
        bad.tableau("bad")


# -- models that say what they are ----------------------------------------------------------------
@settings(max_examples=80)
@given(st.sampled_from(ALL), processes(), mixtures(), st.sampled_from(da.PREDICTIONS), st.data())
def test_a_table_is_converted_to_what_a_model_predicts(name, process, mix, prediction, data):
    """A table on the exact model of any prediction gives what it gives on that of its own."""
    row = da.SOLVERS[name]
    try:
        table = row.build(process, data.draw(grids(process, row.block, 5)))
        table.in_terms_of(process, prediction)
    except ValueError:
        return  # singular on this process
    x = float(process.sigma(table.times[0])) * np.linspace(-1.5, 1.5, 4)
    own = mix.model(process, table.prediction)
    bare = da.run(table, lambda y, t: own(y, t), x, 0 if table.stochastic else None)
    found = da.run(table, mix.model(process, prediction), x, 0 if table.stochastic else None)
    weights = table.in_terms_of(process, prediction).butcher().weights
    assert np.allclose(found, bare, rtol=1e-8, atol=1e-10 * (1 + np.abs(bare).max()) * (1 + np.abs(weights).max()))


@pytest.mark.parametrize("run", ["run", "sample", "simulate", "walk"])
def test_a_model_of_another_process_is_refused(run):
    x = np.ones(3)
    model = MIX.eps(da.VPCosine())
    table = da.build("dpmpp_2m", VP, da.grid(VP, 5))
    calls = {
        "run": lambda: da.run(table, model, x),
        "sample": lambda: da.sample("tab3", model, x, process=VP),
        "simulate": lambda: da.simulate(da.STEPPERS["dpm_adaptive_23"].build(VP, da.grid(VP, 5)), model, x),
        "walk": lambda: da.run_many([table] * 3, model, x),
    }
    with pytest.raises(ValueError, match=r"VPCosine.*VPLinear|VPLinear.*VPCosine"):
        calls[run]()


def test_an_eps_model_on_an_x0_table_is_right_and_a_mix_up_impossible():
    x = MIX.sample(200, 0, VP, 1.0)
    exact = MIX.flow(VP, x, 1.0, 1e-3)
    table = da.build("dpmpp_2m", VP, da.grid(VP, 20))
    errors = [np.abs(da.run(table, m, x) - exact).max() for m in (MIX.eps(VP), MIX.x0(VP), MIX.v(VP), MIX.score(VP))]
    assert np.ptp(errors) < 1e-10
    assert errors[0] < 0.05
    wrong = np.abs(da.run(table, lambda y, t: MIX.eps(VP)(y, t), x) - exact).max()  # a bare function is believed
    assert wrong > 0.5


def test_sample_is_grid_build_and_run():
    x = MIX.sample(8, 0, VP, 0.8)
    ts = da.grid(VP, 6, "logrho", 0.8, 1e-2)
    found = da.sample("dpmpp_2m", MIX.v(VP), x, 6, "logrho", t_start=0.8, t_end=1e-2)
    assert np.allclose(found, da.run(da.build("dpmpp_2m", VP, ts), MIX.x0(VP), x), rtol=1e-12)
    bare = MIX.eps(VP).function
    assert np.array_equal(
        da.sample(da.SOLVERS["tab2"], bare, x, 5, process=VP, prediction="eps"),
        da.sample(da.SOLVERS["tab2"].build, da.Model(bare, VP, "eps"), x, 5),
    )
    torched = da.sample("sde_dpmpp_2m", MIX.eps(VP), torch.as_tensor(x).float(), 5, noise=0)
    assert torched.dtype == torch.float32
    for call, message in (
        (lambda: da.sample("tab3", bare, x), "does not say what it is, and process=None"),
        (lambda: da.sample("tab3", bare, x, process=VP), "prediction=None"),
        (lambda: da.sample("tab3", MIX.eps(VP), x, prediction="x0"), "but the model says"),
        (lambda: da.sample("tab33", MIX.eps(VP), x), "solver='tab33' is unknown; nearest"),
        (lambda: da.Model(1, VP, "eps"), "function=1 must be a function"),
        (lambda: da.Model(bare, None, "eps"), "process=None must be a Process"),
        (lambda: da.Model(bare, VP, "noise"), "prediction='noise'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@given(processes(("VPLinear", "RectifiedFlow", "EDM", "SubVP")), mixtures(), st.sampled_from(da.PREDICTIONS), st.data())
def test_translations_are_those_of_exact_models(process, mix, source, data):
    target = data.draw(st.sampled_from(da.PREDICTIONS))
    start, end = process.sampling_range
    t = data.draw(st.floats(end + 0.2 * (start - end), start))
    for law in (process, da.MeanReverting(process, 0.7, 0.8)):
        x = float(law.sigma(t)) * np.linspace(-1, 1, 5)
        found = law.translate(x, mix.model(law, source)(x, t), source, target, t)
        truth = mix.model(law, target)(x, t)
        size = np.abs(law.convert(source, target, t)).max() if source != target else 1.0
        assert np.allclose(found, truth, rtol=1e-9, atol=1e-12 * (1 + size) * (1 + np.abs(x).max()))


# -- what was wrong -------------------------------------------------------------------------------
def test_measure_measures_the_row_it_is_given():
    liar = dataclasses.replace(da.SOLVERS["tab3"], build=da.SOLVERS["ddim"].build)
    found, true = da.measure(liar), da.measure(da.SOLVERS["ddim"])
    assert (found.degree, true.degree) == (0, 0)
    assert abs(found.order.slope - 1) < 0.15
    assert abs(found.order_exact_start.slope - 1) < 0.15
    process, mix, options = da.order_problem()
    slopes = [da.observed_order(s, process, mix, (20, 40, 80), **options).slope for s in
              ("ddim", da.SOLVERS["ddim"], da.SOLVERS["ddim"].build)]  # fmt: skip
    assert np.ptp(slopes) == 0
    for order in (da.weak_order, da.strong_order):
        row = da.SOLVERS["ddpm"]
        assert np.ptp([order(s, VP, (20, 40, 80)).slope for s in ("ddpm", row, row.build)]) == 0


def test_kept_states_and_outputs_of_a_reverting_process_are_what_the_model_saw_and_said():
    process = da.MeanReverting(VP, 1.5, 0.5)
    table, seen = da.build("dpmpp_2m", process, da.grid(process, 4)), []

    def model(x, t):
        seen.append((x, 0.3 * x + 1.0))
        return seen[-1][1]

    _, kept = da.run(table, model, np.array([1.0, 2.0]), keep="all")
    for k, (x, said) in zip(table.evaluated, seen, strict=True):
        assert np.allclose(kept.states[k], x, rtol=1e-14)
        assert np.array_equal(kept.outputs[k], said)


def test_moments_are_fit_where_the_noise_is_large():
    """1 − Γ, of which Analytic-DPM uses ρ² times, relative to its truth: 2,000 samples, five seeds."""
    variance, ts = 0.857, np.array([1.0, 0.5, 0.1])
    data = da.GaussianMixture([1.0], [0.0], [variance])
    for seed in range(5):
        rest = 1 - da.moment_estimate(data.eps(VP), ts, data.sample(2000, seed), seed=seed + 10)
        implied = rest * VP.rho(ts[:-1]) ** 2  # → v as ρ → ∞
        assert 0.75 < implied[0] < 0.97
        truth = VP.alpha(ts[:-1]) ** 2 * variance / (VP.alpha(ts[:-1]) ** 2 * variance + VP.sigma(ts[:-1]) ** 2)
        assert np.allclose(rest, truth, rtol=0.12)


def test_numpy_noise_is_intercepted():
    ts = da.grid(VP, 5)
    table = da.build("ddpm", VP, ts)
    eps_table = table.in_terms_of(VP, "eps")

    def by(draw):
        def sampler(model, x):
            for i in range(5):
                a, b = eps_table.states[i + 1, i], eps_table.outputs[i + 1, i]
                x = a * x + b * model(x, ts[i]) + eps_table.noise[i + 1, i] * draw(x.shape)
            return x

        return sampler

    draws = (
        lambda s: np.random.randn(*s),  # noqa: NPY002
        lambda s: np.random.standard_normal(s),  # noqa: NPY002
        lambda s: np.random.normal(size=s),  # noqa: NPY002
        lambda s: np.random.default_rng(0).standard_normal(s),
        lambda s: np.random.default_rng(0).normal(0.0, 1.0, s),
    )
    for draw in draws:
        found = da.extract(by(draw), 5, noises=5, process=VP, t_end=float(ts[-1]))
        assert da.distance(found, eps_table) < 1e-12


def test_distance_compares_noise_as_a_law_with_its_intervals():
    ts = da.grid(VP, 4)
    table = da.build("ddpm", VP, ts)
    flipped = table.changed(noise=-table.noise)
    order = [2, 0, 3, 1]
    shuffled = table.changed(noise=table.noise[:, order], intervals=table.intervals[order])
    assert da.distance(table, flipped) < 1e-14
    assert da.distance(table, shuffled) < 1e-14
    moved = table.changed(intervals=table.intervals * 0.5)
    assert da.distance(table, moved) > 0.1
    larger = table.changed(noise=table.noise * (1 + 1e-6))
    assert 1e-6 < da.distance(table, larger) / np.abs(table.butcher().noise).max() < 1e-5
    halves = [table.intervals.mean(axis=1)[:, None], table.intervals[:, 1:]]
    cut = np.concatenate([np.hstack([table.intervals[:, :1], halves[0]]), np.hstack([halves[0], halves[1]])])
    split = table.changed(noise=np.hstack([table.noise] * 2) / 2**0.5, intervals=cut)  # one increment in two parts
    assert da.distance(table, split) < 1e-6
    assert da.distance(table, da.build("ddim", VP, ts)) > 0.1


def test_small_things():
    with pytest.raises(ValueError, match=r"it reaches 800.0"):
        da.phi(1, [-1000, 800])
    table = da.build("ddpm", VP, da.grid(VP, 3))
    x = torch.ones(2, dtype=torch.float64)
    noise = [np.full(2, 0.5)] * 3
    found = da.run(table, lambda y, t: y, x, noise)
    assert np.allclose(found.numpy(), da.run(table, lambda y, t: y, np.ones(2), noise))
    for beta in (np.array(0.1), torch.tensor(0.1), np.float32(0.1)):
        assert float(da.VPLinear(beta, 20.0).alpha(0.5)) == pytest.approx(float(VP.alpha(0.5)), rel=1e-7)
    with pytest.raises(ValueError, match="beta_min="):
        da.VPLinear("0.1")
    a, b, c = (da.MeanReverting(VP, m) for m in ([1.0, 2.0], np.array([1.0, 2.0]), 1.0))
    assert a == b
    assert a != c
    assert a != VP
    assert hash(a) == hash(b)


def test_displays():
    table = da.build("tab1", VP, da.grid(VP, 30))
    html = table._repr_html_()
    assert html.count("<tr>") == 26  # a heading, 24 nodes and the gap
    assert html.count("color:#b2182b") == 23  # the latest output has a negative weight in each row
    assert "p(u0)" in html
    assert table._repr_latex_().startswith(r"$\begin{array}")
    assert repr(table) == "<Tableau tab1: 30 calls of eps, 31 nodes, deterministic, 4 arrays in memory>"
