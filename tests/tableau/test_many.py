"""Many tables at once: every slice as if it were alone, and per-sample levels and processes against exact flows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import deis_analysis as da
from deis_analysis.backend import along
from deis_analysis.tableau.many import by_time, run_many

VP, EDM = da.VPLinear(), da.EDM(0.002, 80.0)
MIX = da.GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [0.8, -0.5]], [[0.05, 0.2], [0.1, 0.03]])
ONE = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])  # acts on every entry
STARTS = (1.0, 0.7, 0.4, 0.9)


def tables(name="tab2", starts=STARTS, process=VP, steps=6, t_end=1e-3):
    return [da.build(name, process, da.grid(process, steps, "t2", t, t_end)) for t in starts]


def noisy(process, starts, mean_reverts=False, prediction="eps"):
    """DDIM with noise added on the way: two draws, each on the interval of its own grid."""
    made = []
    for t in starts:
        base = da.adams(process, da.grid(process, 3, "t1", t, 0.01), 0, prediction=prediction)
        z = np.zeros((4, 2))
        z[1, 0], z[2, 1] = 0.3 * t, 0.2
        rho2 = process.rho(base.times) ** 2
        intervals = np.stack([rho2[:2], rho2[1:3]], axis=1)
        made.append(da.Tableau(base.times, base.states, base.outputs, z, prediction, "noisy", intervals=intervals))
    return made


def start(shape=(4, 2), seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("name", ["ddim", "tab3", "rhork_3kutta", "euler"])
def test_each_slice_is_run_as_if_alone(name):
    x, many = start((4, 5, 2)), tables(name)
    got = run_many(many, by_time(MIX.eps(VP)), x)
    for i, table in enumerate(many):
        np.testing.assert_allclose(got[i], da.run(table, MIX.eps(VP), x[i]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shares", [(0.5, 0.3), (0.3, 0.5)])
def test_tables_may_differ_in_which_coefficients_are_zero(shares):
    """DPM-Solver-2 with its stage in the middle does not use the first output for the step; elsewhere it does."""
    ts = da.grid(VP, 4, "t2", 0.9, 0.01)
    pair = [da.singlestep(VP, ts, 2, shares=(r,)) for r in shares]
    assert np.any((pair[0].outputs != 0) != (pair[1].outputs != 0))
    x = start((2, 5, 2))
    got = run_many(pair, by_time(MIX.eps(VP)), x)
    for i, table in enumerate(pair):
        np.testing.assert_allclose(got[i], da.run(table, MIX.eps(VP), x[i]), rtol=1e-12)
    draws = [noisy(VP, (0.8,))[0] for _ in range(2)]
    z = draws[1].noise.copy()
    z[3, 0], z[1, 0] = z[1, 0], 0.0  # the first noise enters at the end instead
    draws[1] = da.Tableau(draws[1].times, draws[1].states, draws[1].outputs, z, intervals=draws[1].intervals)
    noise = list(np.random.default_rng(2).standard_normal((2, 2, 2)))
    for pair in (draws, draws[::-1]):
        got = run_many(pair, by_time(MIX.eps(VP)), start((2, 2)), noise)
        for i, table in enumerate(pair):
            alone = da.run(table, MIX.eps(VP), start((2, 2)), noise)[i]
            np.testing.assert_allclose(got[i], alone, rtol=1e-12)


def test_the_model_is_called_once_per_node_with_a_time_per_slice():
    many, seen = tables("rhork_2heun"), []

    def model(x, t):
        seen.append((x.shape, t))
        return 0.1 * x * along(t, x)

    run_many(many, model, start())
    assert len(seen) == many[0].nfe
    for (shape, t), k in zip(seen, many[0].evaluated, strict=True):
        assert shape == (4, 2)
        assert t.dtype == np.float64
        np.testing.assert_array_equal(t, [table.times[k] for table in many])


def test_samples_from_their_own_levels_reach_the_exact_flow():
    """The authority is the quantile flow of each sample from its own time; the error falls as tab2's does, by 2^2."""
    starts = np.linspace(0.3, 1.0, 12)
    x = np.array([ONE.sample(1, seed=i, process=VP, t=t)[0] for i, t in enumerate(starts)])
    exact = np.array([ONE.flow(VP, x[i : i + 1], t, 0.05)[0] for i, t in enumerate(starts)])
    errors = [
        np.abs(run_many(tables("tab2", starts, steps=n, t_end=0.05), by_time(ONE.eps(VP)), x) - exact).max()
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 1e-4
    assert np.all(np.array(errors[:-1]) / np.array(errors[1:]) > 3.2)
    assert np.all(np.array(errors[:-1]) / np.array(errors[1:]) < 9.0)


def test_coupled_components_with_their_own_processes():
    """GDSS's setting, made Gaussian: x^(1) on VP, x^(2) on EDM's clock, correlated data; the flow by scipy's DOP853.

    Both components share s in [0, 1]; component 2 is at EDM time 10 s + 0.05.
    """
    data = np.array([[1.0, 0.7], [0.7, 0.8]])
    tau = lambda s: 10.0 * s + 0.05  # noqa: E731

    def scales(s):
        return np.array([VP.alpha(s), 1.0]), np.array([VP.sigma(s), tau(s)])

    def score(x, s):
        alpha, sigma = scales(s)
        return -np.linalg.solve(alpha[:, None] * data * alpha + np.diag(sigma**2), x)

    def velocity(s, y):
        x = y.reshape(2, -1)
        f, g2 = np.array([VP.drift(s), 0.0]), np.array([VP.diffusion_squared(s), 2 * tau(s) * 10.0])
        return (f[:, None] * x - 0.5 * g2[:, None] * score(x, s)).ravel()

    def model(x, t):
        assert abs(tau(t[0]) - t[1]) < 1e-9
        return -scales(t[0])[1][:, None] * score(x, t[0])

    x = start((2, 6), seed=3) * np.array([[1.0], [10.0]])
    exact = solve_ivp(velocity, (1.0, 0.01), x.ravel(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1].reshape(2, -1)
    errors = []
    for n in (100, 200):
        ts = da.grid(VP, n, "t2", 1.0, 0.01)
        pair = [da.build("tab2", VP, ts), da.build("tab2", EDM, tau(ts))]
        errors.append(np.abs(run_many(pair, model, x) - exact).max())
    assert errors[1] < 1e-4
    assert 3.0 < errors[0] / errors[1] < 9.0


@pytest.mark.parametrize("kind", ["seed", "path", "list", "function", "array"])
def test_noise_of_each_slice_is_that_of_a_single_run(kind):
    many, x = noisy(VP, STARTS), start()
    z = np.random.default_rng(1).standard_normal((2, 4, 2))
    noise = {"seed": 5, "path": da.BrownianPath((4, 2), 5), "list": list(z), "function": lambda k: z[k], "array": z}[
        kind
    ]
    got = run_many(many, by_time(MIX.eps(VP)), x, noise)
    for i, table in enumerate(many):
        np.testing.assert_allclose(got[i], da.run(table, MIX.eps(VP), x, noise)[i], rtol=1e-12)


def test_each_slice_has_its_own_mean():
    means = (np.array([2.0, -1.0]), np.array([0.5, 0.5]))
    processes = [da.MeanReverting(VP, mean=m) for m in means]
    for prediction in ("eps", "x0"):
        many = [da.adams(p, da.grid(p, 5, "t2", 1.0, 0.01), 1, prediction=prediction) for p in processes]

        def model(x, t, prediction=prediction):
            return np.stack([MIX.model(p, prediction)(x[i], float(t[i])) for i, p in enumerate(processes)])

        x = start((2, 2))
        got = run_many(many, model, x)
        for i, (p, table) in enumerate(zip(processes, many, strict=True)):
            np.testing.assert_allclose(got[i], da.run(table, MIX.model(p, prediction), x[i]), rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_keeps_its_dtype_and_carries_gradients(dtype):
    many, x = tables("tab2"), start()
    t = torch.as_tensor(x, dtype=dtype).requires_grad_()
    model = by_time(MIX.eps(VP))
    seen = []
    got = run_many(many, lambda x, t: (seen.append(t.dtype), model(x, t))[1], t)
    assert got.dtype == dtype
    assert set(seen) == {torch.float64}
    expected = run_many(many, model, x)
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4 if dtype == torch.float32 else 1e-12)
    (got**2).sum().backward()
    assert torch.isfinite(t.grad).all()
    assert float(abs(t.grad).min()) > 0


def test_model_dtype_is_what_the_model_sees():
    seen = []

    def model(x, t):
        seen.append(x.dtype)
        return x

    got = run_many(tables(), model, start(), model_dtype=np.float32)
    assert set(seen) == {np.dtype(np.float32)}
    assert got.dtype == np.float64


def test_by_time_groups_equal_times():
    calls = []

    def model(x, t):
        calls.append((len(x), t))
        return x * t

    x = start((5, 2))
    t = np.array([0.5, 0.2, 0.5, 0.5, 0.2])
    np.testing.assert_allclose(by_time(model)(x, t), x * t[:, None])
    assert calls == [(2, 0.2), (3, 0.5)]
    with pytest.raises(ValueError, match=r"t has shape \(4,\); allowed: \(5,\)"):
        by_time(model)(x, t[:4])


def other_structure():
    a, b = tables(starts=(1.0, 0.5))
    yield "nodes", [a, *tables("tab2", (0.5,), steps=7)]
    idle = np.zeros((7, 7))
    idle[np.arange(1, 7), np.arange(6)] = [1, 1, 0, 1, 1, 1]
    yield "evaluated nodes", [a, da.Tableau(a.times, a.states, idle)]
    yield "prediction", [a, b.in_terms_of(VP, "x0")]
    yield "number of noises", [noisy(VP, (1.0,))[0], da.adams(VP, da.grid(VP, 3, "t1", 1.0, 0.01), 0)]
    shifted = da.MeanReverting(VP, mean=1.0)
    yield "reversion to a mean", [a, da.build("tab2", shifted, da.grid(VP, 6, "t2"))]


@pytest.mark.parametrize(("trait", "pair"), list(other_structure()), ids=lambda v: v if isinstance(v, str) else "")
def test_other_structure_is_refused(trait, pair):
    with pytest.raises(ValueError, match=rf"tables\[1\] differs in {trait}"):
        run_many(pair, by_time(MIX.eps(VP)), start((2, 2)))


def test_bad_input_is_refused():
    model, many = by_time(MIX.eps(VP)), tables()
    cases = [
        (lambda: run_many([], model, start()), "at least one Tableau"),
        (lambda: run_many([1], model, start()), "at least one Tableau"),
        (lambda: run_many(many, model, start((3, 2))), r"x has shape \(3, 2\); allowed: \(4, ...\)"),
        (lambda: run_many(many, model, np.full((4, 2), np.nan)), "x must be finite"),
        (lambda: run_many(many, lambda x, t: x[:2], start()), "model returned ndarray of shape"),
        (lambda: run_many(many, lambda x, t: x * np.nan, start()), "NaN or infinity at call 1"),
        (lambda: run_many(noisy(VP, STARTS), model, start()), "noise=None, but the tables draw 2 noises"),
        (lambda: run_many(noisy(VP, STARTS), model, start(), [start()]), "noise must hold 2 arrays"),
        (lambda: run_many(noisy(VP, STARTS), model, start(), da.BrownianPath((3, 2))), "noise is a path of shape"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
