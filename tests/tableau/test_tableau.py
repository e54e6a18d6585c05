"""The table and the loop that runs it: structure, algebra, formats, array libraries, noise, bad input."""

from __future__ import annotations

import json
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, grids, mixtures, processes

import deis_analysis as da

VP = da.VPLinear()
TS = da.grid(VP, 6, "t2", 1.0, 1e-3)
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])


def random_table(seed, nodes=6, noises=2, prediction="eps"):
    """A dense random table with noise: nothing in `run` may depend on a sampler's usual shape."""
    rng = np.random.default_rng(seed)
    lower = np.tril(rng.standard_normal((nodes, nodes)), -1)
    outputs = np.tril(rng.standard_normal((nodes, nodes)), -1) * (rng.random(nodes) < 0.7)
    noise = rng.standard_normal((nodes, noises))
    noise[0] = 0
    intervals = np.array([[3.0 - k, 2.0 - k] for k in range(noises)])
    times = np.sort(rng.random(nodes))[::-1]
    return da.Tableau(
        times=times, states=lower, outputs=outputs, noise=noise, prediction=prediction, intervals=intervals
    )


def naive(table, model, x, noise=()):
    """The definition, literally."""
    states, outputs = [x], [model(x, table.times[0])]
    for k in range(1, table.times.size):
        u = sum(table.states[k, j] * states[j] for j in range(k))
        u = u + sum(table.outputs[k, j] * outputs[j] for j in range(k))
        u = u + sum(table.noise[k, j] * noise[j] for j in range(len(noise)))
        states.append(u)
        outputs.append(model(u, table.times[k]))
    return states[-1]


def model(x, t):
    return 0.3 * x + t


# -- structure ------------------------------------------------------------------------------------
def test_arrays_are_read_only_float64_copies():
    times = np.array([1.0, 0.5])
    table = da.Tableau(times=times, states=[[0, 0], [1, 0]], outputs=[[0, 0], [2, 0]])
    times[0] = 9
    assert table.times[0] == 1.0
    for array in (table.times, table.states, table.outputs, table.noise):
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert (table.nfe, table.stochastic, table.history) == (1, False, 1)
    assert table.labels == ("u0", "u1")


def ok(**changes):
    fields = {"times": [1.0, 0.5], "states": [[0, 0], [1, 0]], "outputs": [[0, 0], [1, 0]]} | changes
    return da.Tableau(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": [1.0]}, "times has 1 entries"),
        ({"times": [1.0, np.nan]}, "times must be finite"),
        ({"states": np.eye(2)}, "states must be strictly lower"),
        ({"outputs": [[0, 1], [0, 0]]}, "outputs must be strictly lower"),
        ({"outputs": [[0, 0], [np.inf, 0]]}, "outputs must be finite; entry .1, 0."),
        ({"states": np.zeros((3, 3))}, r"states has shape \(3, 3\); allowed: \(2, 2\)"),
        ({"prediction": "noise"}, "prediction='noise' is unknown"),
        ({"noise": [[1.0], [0.0]], "intervals": [[1, 0]]}, "noise must not act on node 0"),
        ({"noise": [[0.0], [1.0]]}, "intervals"),
        ({"labels": ("a",)}, "labels has 1 entries"),
        ({"grid_nodes": (0,)}, "grid_nodes=.* must increase from 0 to 1"),
    ],
)
def test_bad_structure(changes, message):
    with pytest.raises(ValueError, match=message):
        ok(**changes)


def test_memory_is_what_the_loop_keeps_alive():
    assert da.build("ddim", VP, TS).memory == 3
    assert da.build("tab2", VP, TS).memory == 5  # three-step Adams-Bashforth: five arrays, as in the design
    assert da.build("rhork_4rk", VP, TS).memory == 6

    for name in ("ddim", "tab3", "rhork_3kutta", "ipndm4"):
        table = da.build(name, VP, TS)
        probe = counting_scalar()
        da.run(table, lambda u, t, make=probe: make(0.1 * u.value), probe(1.0), check=False)
        assert probe.peak == table.memory + 1, name  # and the product that is being added


def counting_scalar():
    """An array-like scalar class that knows how many of its kind were alive at once."""

    class Probe:
        dtype, shape, alive, peak = np.dtype(float), (), weakref.WeakSet(), 0

        def __init__(self, value):
            self.value = value
            self.alive.add(self)
            Probe.peak = max(Probe.peak, len(self.alive))

        def sum(self):
            return self.value

        def __add__(self, other):
            self.value += other.value  # in place: only distinct arrays are counted
            return self

        def __rmul__(self, c):
            return Probe(c * self.value)

    return Probe


# -- running --------------------------------------------------------------------------------------
@given(st.integers(0, 10_000))
def test_run_is_the_definition(seed):
    table, rng = random_table(seed), np.random.default_rng(seed)
    x, noise = rng.standard_normal((3, 2)), rng.standard_normal((2, 3, 2))
    truth = naive(table, model, x, noise)
    assert np.allclose(da.run(table, model, x, noise), truth, rtol=1e-12, atol=1e-12 * np.abs(truth).max())


@given(st.integers(0, 10_000))
def test_the_butcher_form_reproduces_the_run(seed):
    table, rng = random_table(seed), np.random.default_rng(seed)
    x, noise, form = rng.standard_normal(4), rng.standard_normal((2, 4)), random_table(seed).butcher()
    outputs = []
    for m in range(table.nfe):
        u = form.start[m] * x + sum(form.weights[m, j] * outputs[j] for j in range(m)) + form.noise[m] @ noise
        outputs.append(model(u, form.times[m]))
    result = (
        form.start[-1] * x + sum(w * p for w, p in zip(form.weights[-1], outputs, strict=True)) + form.noise[-1] @ noise
    )
    truth = da.run(table, model, x, noise)
    assert np.allclose(result, truth, rtol=1e-10, atol=1e-10 * np.abs(truth).max())
    assert form.weights.shape == (table.nfe + 1, table.nfe)
    assert not np.any(np.triu(form.weights[:-1]))


def test_nodes_without_weight_are_not_evaluated():
    calls = []
    table = da.Tableau(
        times=[1.0, 0.5, 0.1], states=[[0] * 3, [1, 0, 0], [0, 1, 0]], outputs=[[0] * 3, [0] * 3, [0, 2, 0]]
    )
    da.run(table, lambda x, t: calls.append(t) or x, np.ones(2))
    assert calls == [0.5]
    assert table.nfe == 1


def test_model_times_are_python_floats_and_told_in_order():
    told = []
    da.run(da.build("tab3", VP, TS), lambda x, t: told.append(t) or 0 * x, np.ones(3))
    assert told == TS[:-1].tolist()
    assert all(type(t) is float for t in told)


def test_keep_returns_states_and_outputs():
    table = da.build("rhork_2heun", VP, TS)
    result, kept = da.run(table, model, np.ones(2), keep="all")
    assert np.array_equal(result, kept.states[table.times.size - 1])
    assert set(kept.outputs) == set(table.evaluated)
    assert np.allclose(kept.outputs[3], model(kept.states[3], table.times[3]))
    _, some = da.run(table, model, np.ones(2), keep=(2, 4))
    assert set(some.states) == {2, 4}
    for keep in (np.array([2, 4]), iter((2, 4)), [4, 2]):
        assert set(da.run(table, model, np.ones(2), keep=keep)[1].states) == {2, 4}
    for bad in ((99,), (1.7,), 3, None, "some", (-1,)):
        with pytest.raises(ValueError, match="keep="):
            da.run(table, model, np.ones(2), keep=bad)


def test_progress_changes_nothing(capsys):
    table = da.build("ddim", VP, TS)
    assert np.array_equal(da.run(table, model, np.ones(2), progress=True), da.run(table, model, np.ones(2)))
    assert "ddim" in capsys.readouterr().out


# -- algebra --------------------------------------------------------------------------------------
@given(st.integers(0, 1000))
def test_then_is_running_one_after_the_other_and_associative(seed):
    rng = np.random.default_rng(seed)
    tables = []
    for k in range(3):
        table = random_table(seed + k, nodes=4, noises=1)
        times = table.times.copy()
        times[0], times[-1] = 3.0 - k, 2.0 - k
        tables.append(
            da.Tableau(times, table.states, table.outputs, table.noise, intervals=table.intervals, name=str(k))
        )
    a, b, c = tables
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert np.array_equal(left.states, right.states)
    assert np.array_equal(left.outputs, right.outputs)
    assert np.array_equal(left.noise, right.noise)
    assert (left.name, left.grid_nodes) == (right.name, right.grid_nodes)
    assert da.distance(left, right) == 0
    x, z = rng.standard_normal(3), rng.standard_normal((3, 3))
    truth = da.run(c, model, da.run(b, model, da.run(a, model, x, z[:1]), z[1:2]), z[2:])
    assert np.allclose(da.run(left, model, x, z), truth, rtol=1e-11, atol=1e-11 * np.abs(truth).max())


def test_then_of_two_halves_is_the_whole_for_one_step_methods_and_not_for_multistep():
    for name, same in (("ddim", True), ("rhork_3kutta", True), ("tab2", False)):
        halves = da.build(name, VP, TS[:4]).then(da.build(name, VP, TS[3:]))
        assert (da.distance(halves, da.build(name, VP, TS)) == 0) == same


def test_then_refuses_what_does_not_fit():
    a = da.build("ddim", VP, TS[:4])
    with pytest.raises(ValueError, match="other starts at t="):
        a.then(da.build("ddim", VP, TS[2:]))
    with pytest.raises(ValueError, match="other predicts 'x0'"):
        a.then(da.adams(VP, TS[3:], 0, prediction="x0"))
    with pytest.raises(ValueError, match="another mean"):
        a.then(da.build("ddim", da.MeanReverting(VP, 1.0), TS[3:]))


@given(processes(), mixtures(), st.sampled_from(DISTINCT), st.sampled_from(da.PREDICTIONS), st.data())
def test_in_terms_of_is_the_same_method(process, mix, name, prediction, data):
    table = da.build(name, process, data.draw(grids(process)))
    other = table.in_terms_of(process, prediction)
    assert other.prediction == prediction
    assert other.nfe == table.nfe
    x = float(process.sigma(table.times[0])) * np.linspace(-2, 2, 5)
    a, b = da.run(table, mix.model(process, table.prediction), x), da.run(other, mix.model(process, prediction), x)
    form = other.butcher()
    rounding = np.abs(form.weights[-1]).sum() + np.abs(form.start[-1]) + np.abs(other.states).max() + 1
    assert np.max(np.abs(a - b)) <= 1e-11 * (np.abs(a).max() + rounding)
    back = other.in_terms_of(process, table.prediction)
    assert np.allclose(back.outputs, table.outputs, rtol=1e-10, atol=1e-12)
    assert np.allclose(back.states, table.states, rtol=1e-8, atol=1e-8 * (1 + np.abs(other.states).max()))


# -- formats --------------------------------------------------------------------------------------
@given(st.integers(0, 1000))
def test_json_round_trip_is_exact(seed):
    table = random_table(seed)
    back = da.Tableau.from_json(table.to_json())
    for name in ("times", "states", "outputs", "noise", "intervals"):
        assert np.array_equal(getattr(back, name), getattr(table, name)), name
    assert (back.name, back.prediction, back.labels, back.grid_nodes) == (
        table.name,
        table.prediction,
        table.labels,
        table.grid_nodes,
    )
    assert da.distance(back, table) == 0


def test_json_keeps_a_mean_and_rejects_what_is_not_a_table():
    table = da.build("tab1", da.MeanReverting(VP, np.array([1.0, -2.0])), TS)
    assert np.array_equal(da.Tableau.from_json(table.to_json()).mean, [1.0, -2.0])
    broken = json.loads(table.to_json())
    del broken["times"]
    for text in ("{}", "nonsense", json.dumps(broken), '{"format": "other"}', "[]"):
        with pytest.raises(ValueError, match="text"):
            da.Tableau.from_json(text)


def test_print_draws_every_node_and_elides_long_tables():
    text = str(da.build("rhork_2heun", VP, TS))
    assert "rhork_2heun: 12 calls of eps, 13 nodes, deterministic, 4 arrays in memory" in text
    assert len(text.splitlines()) == 14
    assert "u0.1" in text
    long = str(da.build("ddim", VP, da.grid(VP, 100)))
    assert "…" in long
    assert len(long.splitlines()) == 26
    assert "noises" in str(random_table(1))


def test_latex_is_a_balanced_array():
    for steps in (3, 40):
        text = da.build("tab3", VP, da.grid(VP, steps)).latex()
        assert text.startswith(r"\begin{array}")
        assert text.endswith(r"\end{array}")
        assert text.count("{") == text.count("}")
        widths = {line.count("&") for line in text.splitlines()[1:-1] if "&" in line}
        assert len(widths) == 1, widths


# -- array libraries ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tab3", "rhork_4rk", "ipndm4", "ei_score"])
def test_torch_and_jax_agree_with_numpy(name):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    table, x = da.build(name, VP, TS), np.linspace(-2, 2, 12).reshape(3, 4)
    truth = da.run(table, lambda x, t: 0.5 * x + 0.1 * t, x)
    for library, dtypes in (
        (torch.tensor, (torch.float64, torch.float32)),
        (jax.numpy.asarray, ("float64", "float32")),
    ):
        for dtype, tolerance in zip(dtypes, (1e-13, 2e-4), strict=True):
            start = library(x, dtype=dtype)
            out = da.run(table, lambda x, t: 0.5 * x + 0.1 * t, start)
            assert type(out) is type(start)
            assert out.dtype == start.dtype
            assert np.linalg.norm(np.asarray(out) - truth) <= tolerance * np.linalg.norm(truth)
    x32 = x.astype(np.float32)
    assert da.run(table, lambda x, t: np.float32(0.5) * x, x32).dtype == np.float32


def test_jax_runs_under_jit_and_grad():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    table, x = da.build("tab2", VP, TS), jax.numpy.linspace(-1.0, 1.0, 4)
    run = jax.jit(lambda x: da.run(table, lambda u, t: 0.5 * u, x))
    assert np.allclose(run(x), da.run(table, lambda u, t: 0.5 * u, np.asarray(x)))
    gradient = jax.grad(lambda x: run(x).sum())(x)
    assert np.allclose(gradient, da.run(table, lambda u, t: 0.5 * u, np.ones(4)))


def test_torch_autograd_through_a_run():
    table = da.build("tab3", VP, TS)
    x = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, s: da.run(table, lambda u, t: torch.tanh(s * u), x), (x, scale))


@pytest.mark.parametrize("name", ["tab2", "dpmpp_2s", "stochastic"])
def test_torch_func_transforms_agree_with_loops(name):
    """vmap over states, noises, and parameters alone (the state then is no batch); jvp, grad, and one in the other."""
    table = random_table(0) if name == "stochastic" else da.build(name, VP, TS)
    rng = np.random.default_rng(0)
    x, scale = (torch.as_tensor(rng.standard_normal(shape)) for shape in ((5, 3), (4,)))
    noise = torch.as_tensor(rng.standard_normal((5, table.noise.shape[1], 3)))

    def start(u, z):
        return da.run(table, lambda y, t: torch.tanh(t * y), u, z)

    def of_scale(s):
        return da.run(table, lambda y, t: torch.tanh(s * t * y), x, noise.transpose(0, 1))

    loop = torch.stack([start(u, z) for u, z in zip(x, noise, strict=True)])
    assert torch.allclose(torch.func.vmap(start)(x, noise), loop, rtol=1e-14, atol=1e-14)
    if name == "stochastic":
        seeded = torch.stack([start(u, 7) for u in x])  # one draw for all
        assert torch.allclose(torch.func.vmap(lambda u: start(u, 7))(x), seeded, rtol=1e-14, atol=1e-14)
    scaled = torch.stack([of_scale(s) for s in scale])
    assert torch.allclose(torch.func.vmap(of_scale)(scale), scaled, rtol=1e-14, atol=1e-14)
    forward, (s, step) = torch.func.vmap(torch.func.jacfwd(start))(x, noise), (scale[0], 1e-6)
    assert torch.allclose(forward, torch.func.vmap(torch.func.jacrev(start))(x, noise), rtol=1e-12, atol=1e-12)
    along = torch.func.jvp(of_scale, (s,), (torch.ones_like(s),))[1]
    assert torch.allclose(along, (of_scale(s + step) - of_scale(s - step)) / (2 * step), rtol=1e-7, atol=1e-7)
    assert torch.allclose(torch.func.grad(lambda s: of_scale(s).sum())(s), along.sum(), rtol=1e-12)


def test_nan_is_found_inside_and_outside_of_vmap():
    table, x = da.build("tab2", VP, TS), torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)

    def run(u, check=True):
        return da.run(table, lambda y, t: torch.where((y > 0.9) & (t == 1.0), torch.nan, 0.1 * y), u, check=check)

    for call in (run, torch.func.vmap(run), torch.func.vmap(torch.func.jacfwd(run))):
        assert call(x[:2]).isfinite().all()
        with pytest.raises(ValueError, match=r"model returned NaN or infinity at call 1, t=1\.0"):
            call(x)
        with pytest.raises(ValueError, match="x must be finite"):
            call(x / 0)
    unchecked = torch.func.vmap(lambda u: run(u, check=False))(x)
    assert unchecked[:2].isfinite().all()
    assert unchecked[2, 1].isnan()


def test_bfloat16_model_under_a_float64_state():
    table, x = da.build("tab3", VP, TS), torch.linspace(-1, 1, 8, dtype=torch.float64)
    seen = []

    def network(u, t):
        seen.append(u.dtype)
        return 0.5 * u

    out = da.run(table, network, x, model_dtype=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert out.dtype == torch.float64
    truth = da.run(table, lambda u, t: 0.5 * u, x)
    error = float((out - truth).norm() / truth.norm())
    assert 1e-6 < error < 3e-2  # the model rounds, the state does not
    assert da.run(table, lambda u, t: (0.5 * u).to(torch.bfloat16), x).dtype == torch.float64


def test_any_shape_and_scalars():
    table = da.build("tab3", VP, TS)
    for shape in ((), (1,), (2, 3, 4, 5)):
        x = np.full(shape, 0.7)
        assert np.allclose(da.run(table, lambda u, t: 0.5 * u, x), da.run(table, lambda u, t: 0.5 * u, np.array(0.7)))
    assert isinstance(float(da.run(table, lambda u, t: 0.5 * u, 0.7)), float)


def test_the_input_is_not_changed():
    for make in (np.ones, lambda n: torch.ones(n, dtype=torch.float64)):
        x = make(4)
        da.run(da.build("tab3", VP, TS), lambda u, t: u, x)  # a model that returns its own input
        assert float(abs(x - 1).sum()) == 0


def test_a_model_returning_its_input_is_the_identity_model():
    x = np.linspace(-1, 1, 5)
    assert np.array_equal(
        da.run(da.build("tab3", VP, TS), lambda u, t: u, x), da.run(da.build("tab3", VP, TS), lambda u, t: u.copy(), x)
    )


# -- mean-reverting -------------------------------------------------------------------------------
@given(st.sampled_from(DISTINCT), st.sampled_from(da.PREDICTIONS), st.floats(-3, 3), st.floats(-3, 3))
def test_a_mean_is_a_shift(name, prediction, m1, m2):
    """Data shifted by μ under MeanReverting(process, μ): the run is the unshifted run, shifted."""
    mu = np.array([m1, m2])
    outer = da.MeanReverting(VP, mu)
    plain = da.ProductMixture([MIX, da.GaussianMixture([1.0], [0.3], [0.2])])
    shifted = da.ProductMixture(
        [da.GaussianMixture(m.weights, m.means + mu[i], m.covariances) for i, m in enumerate(plain.marginals)]
    )
    x = np.random.default_rng(0).standard_normal((4, 2))
    inner_table = da.build(name, VP, TS).in_terms_of(VP, prediction)
    table = da.build(name, outer, TS).in_terms_of(outer, prediction)
    a = da.run(inner_table, plain.model(VP, prediction), x)
    b = da.run(table, shifted.model(outer, prediction), x + mu)
    rounding = np.abs(inner_table.butcher().weights[-1]).sum() + np.abs(inner_table.states).max()
    allowed = 1e-12 * (1 + np.abs(a).max() + np.abs(mu).max()) * (1 + rounding)
    assert np.max(np.abs(b - mu - a)) <= allowed
    moved = torch.as_tensor(x + mu)
    c = da.run(table, lambda u, t: torch.as_tensor(shifted.model(outer, prediction)(u.numpy(), t)), moved)
    assert np.max(np.abs(c.numpy() - b)) <= allowed  # torch and NumPy round differently, and obelm_x0 amplifies it


def test_tables_under_a_mean_compose_in_every_prediction():
    process = da.MeanReverting(VP, np.array([1.0, -2.0]))
    x = np.random.default_rng(0).standard_normal((3, 2)) + process.mean
    mix = da.ProductMixture([MIX, MIX])
    for prediction in da.PREDICTIONS:
        a, b = (da.build("rhork_2heun", process, ts).in_terms_of(process, prediction) for ts in (TS[:4], TS[3:]))
        model = mix.model(process, prediction)
        whole = da.build("rhork_2heun", process, TS).in_terms_of(process, prediction)
        assert np.allclose(da.run(a.then(b), model, x), da.run(whole, model, x), rtol=1e-10, atol=1e-10)


def test_v_under_a_mean_is_still_the_velocity():
    """On rectified flow ẋ = ε − (x₀ − μ): the derivative of x = (1 − t) x₀ + t μ + t ε."""
    mu, single = 2.0, da.GaussianMixture([1.0], [0.5], [0.3])
    process = da.MeanReverting(da.RectifiedFlow(), mu)
    x, t, h = np.linspace(0, 3, 5), 0.4, 1e-6
    moved = (single.flow(process, x, t, t + h) - single.flow(process, x, t, t - h)) / (2 * h)
    assert np.allclose(single.v(process)(x, t), moved, rtol=1e-7)


def test_the_mean_is_a_fixed_point():
    mu = np.array([2.0, -1.0])
    process = da.MeanReverting(VP, mu)
    for prediction, output in (("eps", 0 * mu), ("x0", mu), ("score", 0 * mu)):
        table = da.build("tab3", process, TS).in_terms_of(process, prediction)
        assert np.allclose(da.run(table, lambda x, t, p=output: p, mu.copy()), mu, rtol=1e-14)


# -- noise ----------------------------------------------------------------------------------------
def test_a_brownian_path_depends_on_seed_and_time_alone():
    a, b = da.BrownianPath((3,), 1), da.BrownianPath((3,), 1)
    for u in (5.0, 0.1, 700.0):
        a(u)
    assert np.array_equal(a(0.3), b(0.3))
    assert not np.array_equal(b(0.3), da.BrownianPath((3,), 2)(0.3))
    assert not np.any(a(0.0))


def test_a_seed_stands_for_the_same_path_in_every_version():
    """Two nodes of the tree, e⁴⁰ and e⁻²⁰, from NumPy's own streams of their numbers; one far down as it has been."""

    def z(kind, index):
        bits = np.random.Philox(key=7, counter=[0, kind, index, 0])
        return np.random.Generator(bits).standard_normal(2)

    (low, middle, high), path = np.exp([-80.0, -20.0, 40.0]), da.BrownianPath((2,), 7)
    bottom = np.sqrt(low) * z(0, 0)
    top = bottom + np.sqrt(high - low) * z(0, 1)
    between = bottom + (middle - low) / (high - low) * (top - bottom)
    assert np.allclose(path(high), top, rtol=1e-12)
    assert np.allclose(
        path(middle), between + np.sqrt((middle - low) * (high - middle) / (high - low)) * z(1, 1), rtol=1e-9
    )
    assert np.allclose(path(1.0), [0.14035519, -1.25526874], rtol=1e-7)


def test_increments_add_up_over_grids():
    path = da.BrownianPath((2,), 3)
    fine = np.geomspace(100.0, 0.01, 33)
    total = sum(np.sqrt(x - y) * path.normal(x, y) for x, y in pairwise(fine))
    assert np.allclose(total, np.sqrt(fine[0] - fine[-1]) * path.normal(fine[0], fine[-1]), rtol=1e-12)


def test_the_law_of_a_brownian_path():
    """Variance u, covariance min(u, v), independent increments: 20,000 paths, five standard errors."""
    n = 20_000
    path = da.BrownianPath((n,), 0)
    points = [1e-3, 0.04, 0.5, 2.0, 60.0, 61.0]
    w = [path(u) for u in points]
    for i, u in enumerate(points):
        assert abs(np.var(w[i]) / u - 1) < 5 * np.sqrt(2 / n)
        for j in range(i):
            z = (w[i] - w[j]) / np.sqrt(u - points[j])
            assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / n)
            assert abs(np.mean(z * w[j]) / np.sqrt(points[j])) < 5 / np.sqrt(n)


@pytest.mark.parametrize("step", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("u", [1e-12, 1.3, 1e6])
def test_short_increments_have_unit_variance(u, step):
    z = da.BrownianPath((4000,), 2).normal(u * (1 + step), u)
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / 4000)


def test_every_way_to_give_noise():
    table, x = random_table(0), np.ones(3)
    path = da.BrownianPath((3,), 5)
    z = [path.normal(*interval) for interval in table.intervals]
    truth = naive(table, model, x, z)
    for noise in (5, path, z, np.array(z), lambda j: z[j]):
        assert np.allclose(da.run(table, model, x, noise), truth)
    assert da.run(table, model, torch.ones(3), 5).dtype == torch.float32


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (None, "noise=None, but .* draws 2 noises"),
        (da.BrownianPath((4,)), r"noise is a path of shape \(4,\); allowed: \(3,\)"),
        ([np.ones(3)], "noise must hold 2 arrays"),
        ([np.ones(3), np.ones(2)], "noise must hold 2 arrays"),
        (0.5, "noise=0.5 must be a seed"),
    ],
)
def test_bad_noise(noise, message):
    with pytest.raises(ValueError, match=message):
        da.run(random_table(0), model, np.ones(3), noise)


def test_bad_brownian_arguments():
    for call, message in (
        (lambda: da.BrownianPath((1,), -1), "seed=-1"),
        (lambda: da.BrownianPath((1,), 0.5), "seed=0.5"),
        (lambda: da.BrownianPath((1,))(-1.0), "u=-1.0"),
        (lambda: da.BrownianPath((1,))(1e20), "u=1e"),
        (lambda: da.BrownianPath((1,))(np.nan), "u=nan"),
        (lambda: da.BrownianPath((1,)).normal(1.0, 1.0), "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# -- bad input to run -----------------------------------------------------------------------------
def late(value):
    """A model that misbehaves at its third call."""
    calls = []

    def misbehave(x, t):
        calls.append(t)
        return value(x) if len(calls) == 3 else 0 * x

    return misbehave


@pytest.mark.parametrize("make", [lambda: np.ones(4), lambda: torch.ones(4)])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x * np.nan, "model returned NaN or infinity at call 3, t=0.4"),
        (lambda x: x * np.inf, "model returned NaN or infinity at call 3"),
        (lambda x: x[:, None], r"model returned .* of shape \(4, 1\) at call 3, t=0.4.*allowed: .*\(4,\)"),
        (lambda x: x[:2], r"shape \(2,\) at call 3"),
        (lambda x: None, "model returned NoneType at call 3"),
        (lambda x: 1.0, "model returned float at call 3"),
        (lambda x: (x, x), "model returned tuple at call 3"),
    ],
)
def test_a_model_that_misbehaves_is_named_with_call_and_time(make, value, message):
    with pytest.raises(ValueError, match=message):
        da.run(da.build("tab3", VP, TS), late(value), make())


def test_one_axis_too_many_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape \(64, 64\) at call 1"):
        da.run(da.build("ddim", VP, TS), lambda x, t: x[None] + x[:, None], np.ones(64))


def test_jax_models_are_checked_after_the_run():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match=r"NaN or infinity .* at call 3, t=0\.4"):
        da.run(da.build("tab3", VP, TS), late(lambda x: x * np.nan), jax.numpy.ones(4))


def test_a_torch_run_refuses_a_numpy_model_output():
    with pytest.raises(ValueError, match="ndarray of shape"):
        da.run(da.build("ddim", VP, TS), lambda x, t: x.numpy(), torch.ones(4))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, dtype=torch.int64), "x has dtype torch.int64; allowed: a floating dtype"),
        (np.ones(3, dtype=int), "x has dtype int64"),
        (np.array([True]), "x has dtype bool"),
        (np.array([1.0, np.nan]), "x must be finite"),
        (torch.tensor([1.0, float("inf")]), "x must be finite"),
        (3, "x has dtype int64"),
    ],
)
def test_bad_start(x, message):
    with pytest.raises(ValueError, match=message):
        da.run(da.build("ddim", VP, TS), model, x)


def test_a_model_that_cannot_be_called():
    with pytest.raises(ValueError, match="model=None must be callable"):
        da.run(da.build("ddim", VP, TS), None, np.ones(2))


def test_a_large_finite_float32_state_is_not_called_infinite():
    x = torch.full((1000,), 1e37, dtype=torch.float32)
    assert torch.isfinite(da.run(da.build("ddim", VP, TS[-3:]), lambda u, t: 0 * u, x)).all()
