"""Grids made for a model: closed forms on Gaussians, brute force where sets are small, and properties."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import mixtures, processes

import deis_analysis as da
from deis_analysis.tuning import GRIDS, Bank, grid, model_calls, trajectories
from deis_analysis.tuning.denoising import loss_curve
from deis_analysis.tuning.jumps import cheapest_path, jump_costs
from deis_analysis.tuning.score_path import score_changes
from deis_analysis.tuning.weight_bound import CUSTOMARY, weight_bound

VP, EDM, FLOW = da.VPLinear(), da.EDM(0.01, 60.0), da.RectifiedFlow()
PROCESSES = (VP, EDM, FLOW, da.VE(0.01, 50.0), da.VPDiscrete(da.VPLinear().alpha(np.linspace(1e-3, 1, 200)) ** 2))
THREE = da.GaussianMixture([0.3, 0.4, 0.3], [[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]], [0.02, 0.05, 0.03])
C = 0.7
GAUSS = da.GaussianMixture([1.0], [0.0], [C * C])


def variance(process, t):
    return process.alpha(t) ** 2 * C * C + process.sigma(t) ** 2


def gauss_bank(process, points=60, prediction="eps"):
    """A bank on N(0, c²) whose samples have mean 0 and the exact variance: closed forms hold without sampling error."""
    start = process.sampling_range[0]
    z = np.random.default_rng(0).standard_normal((16, 3))
    z = (z - z.mean()) / z.std()
    return trajectories(GAUSS.model(process, prediction), z * np.sqrt(variance(process, start)), points=points)


def three_bank(process, points=14, n=32):
    start = process.sampling_range[0]
    return trajectories(THREE.v(process), THREE.sample(n, 1, process, start), points=points)


def unevenness(values):
    """By how much of their whole range values are off equal spacing."""
    return np.max(np.abs(values - np.linspace(values[0], values[-1], values.size))) / np.ptp(values)


# -- the bank -------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("teacher", ["tab3", "rhork_2heun"])
def test_bank_is_on_the_flow(process, teacher):
    start = process.sampling_range[0]
    x = GAUSS.sample(20, 0, process, start).reshape(5, 4)
    bank = trajectories(GAUSS.x0(process), x, teacher=teacher)
    assert bank.times[0] == start
    assert bank.times[-1] == process.sampling_range[1]
    for t, state, eps in zip(bank.times, bank.states, bank.eps, strict=True):
        exact = GAUSS.flow(process, x, start, t)
        error = 4e-3 if teacher == "tab3" else 1.2e-2
        assert np.max(np.abs(state - exact)) < error * np.max(np.abs(exact))
        np.testing.assert_allclose(eps, GAUSS.eps(process)(state, t), rtol=1e-7, atol=1e-9)
    assert bank.calls == (60 if teacher == "tab3" else 119)
    np.testing.assert_allclose(bank.scaled[7], bank.states[7] / process.alpha(bank.times[7]))


def test_bank_of_images_in_torch_without_graph():
    process, layer = FLOW, torch.nn.Linear(4, 4, dtype=torch.float32)
    model = da.Model(lambda x, t: layer(x) + t, process, "v")
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    bank = trajectories(model, x, points=8)
    assert all(s.shape == x.shape and s.dtype == torch.float32 for s in bank.states)
    assert not any(s.requires_grad or e.requires_grad for s, e in zip(bank.states, bank.eps, strict=True))
    assert bank.scaled.shape == (8, 3, 32)
    for kind in GRIDS:
        assert grid(model, 3, kind, bank=bank).shape == (4,)


def test_a_mean_is_taken_off():
    """x − μ obeys the inner process: the same grids, from the data moved by μ."""
    moved = da.MeanReverting(VP, np.array([0.7, -0.4]))
    shifted = da.GaussianMixture(THREE.weights, THREE.means + moved.mean, THREE.covariances)
    x = THREE.sample(24, 1, VP, 1.0)
    for kind in GRIDS:
        plain = grid(THREE.eps(VP), 5, kind, x=x, points=20)
        ours = grid(shifted.x0(moved), 5, kind, x=x + moved.mean, points=20)
        np.testing.assert_allclose(ours, plain, rtol=1e-7)


# -- closed forms on Gaussians --------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_entropic_is_arctan(process):
    bank = gauss_bank(process)
    times = grid(GAUSS.v(process), 9, "entropic", bank=bank)
    assert unevenness(np.arctan(process.rho(times) / C)) < 4e-4


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_klub_optimum_is_geometric_in_the_denoising_error(process):
    bank = gauss_bank(process)
    times = grid(GAUSS.x0(process), 9, "ays", bank=bank)
    mmse = 1 / (1 / process.rho(times) ** 2 + 1 / C**2)
    assert unevenness(np.log(mmse)) < 2e-3


def bound_by_definition(levels):
    """KLUB on N(0, c²) by quadrature of E|D(y_ρ) − D(y_u)|² / ρ³, with y_u = y_ρ + √(u² − ρ²) z."""

    def integrand(log_rho, u):
        rho = np.exp(log_rho)
        k, k_u = (C**2 / (C**2 + r**2) for r in (rho, u))
        return ((k - k_u) ** 2 * (C**2 + rho**2) + k_u**2 * (u**2 - rho**2)) / rho**2

    return sum(quad(integrand, np.log(b), np.log(a), args=(a,))[0] for a, b in pairwise(levels))


def test_klub_by_its_definition_is_least_there():
    levels = grid(GAUSS.eps(EDM), 4, "ays", bank=gauss_bank(EDM))
    least = bound_by_definition(levels)
    for i in (1, 2, 3):
        for factor in (0.9, 1.1):
            moved = levels.copy()
            moved[i] *= factor
            assert bound_by_definition(moved) > least * (1 + 1e-4)
    angles = np.linspace(*np.arctan(levels[[0, -1]] / C), 5)
    assert bound_by_definition(C * np.tan(angles)) > 1.5 * least  # DDIM's optimum is not that of the bound


def test_denoisers_are_a_martingale():
    """E‖D(y_ρ) − D(y_u)‖² = mmse(u) − mmse(ρ), which makes the bound a sum; Monte Carlo, 4 standard errors."""
    rng, denoised = np.random.default_rng(0), THREE.x0(EDM)
    clean = THREE.sample(40_000, 3)
    low, high = 0.2, 0.9
    at_low = clean + low * rng.standard_normal(clean.shape)
    at_high = at_low + np.sqrt(high**2 - low**2) * rng.standard_normal(clean.shape)
    d_low, d_high = denoised(at_low, low), denoised(at_high, high)
    gap = (d_low - d_high) ** 2 - (clean - d_high) ** 2 + (clean - d_low) ** 2
    assert np.mean((clean - d_high) ** 2) - np.mean((clean - d_low) ** 2) > 0.05
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size / 2)


def test_denoising_error_of_a_mixture():
    """The curve from a bank against 20,000 fresh samples, to what 800 ends and 2 pairs of noises allow: 6 %."""
    bank = trajectories(THREE.eps(EDM), THREE.sample(800, 1, EDM, 60.0), points=30)
    curve = loss_curve(bank, THREE.eps(EDM), 0, 2)
    rng, clean = np.random.default_rng(1), THREE.sample(20_000, 2)
    for rho in (0.05, 0.2, 0.8, 3.0, 20.0):
        noise = rng.standard_normal(clean.shape)
        exact = np.mean((THREE.x0(EDM)(clean + rho * noise, rho) - clean) ** 2) / rho**2
        assert curve(np.log(rho)) == pytest.approx(exact, rel=0.06)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("state", ["process", "karras"])
def test_score_changes_are_exact(process, state):
    """√(L/d) = σ′ √V |1/V′ − 1/V| on N(0, c²), V of x or of x/α."""
    bank = gauss_bank(process)
    scale = process.alpha(bank.times) if state == "karras" else 1.0
    noise, v = process.sigma(bank.times) / scale, variance(process, bank.times) / scale**2
    expected = noise[1:] * np.sqrt(v[:-1]) * np.abs(1 / v[1:] - 1 / v[:-1])
    found = score_changes(bank, GAUSS.eps(process), state)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-9)


def length(rho):
    """∫ 2ρ²/(ρ² + c²)^{3/2} dρ."""
    return 2 * np.arcsinh(rho / C) - 2 * rho / np.sqrt(rho**2 + C**2)


def test_score_optimal_tends_to_its_closed_form():
    """First order in the number of times, as an increment is seen from one of its ends."""
    errors = []
    for points in (50, 100, 200):
        times = grid(GAUSS.eps(EDM), 8, "score_optimal", bank=gauss_bank(EDM, points))
        errors.append(unevenness(length(EDM.rho(times))))
    assert errors[0] < 8e-3
    assert errors[2] < 0.35 * errors[0]
    vp = grid(GAUSS.eps(VP), 8, "score_optimal", bank=gauss_bank(VP, 100), state="karras")
    assert unevenness(length(VP.rho(vp))) < 4e-3


# -- dynamic programming against all subsets ------------------------------------------------------


def all_paths(count, steps):
    return [(0, *inner, count - 1) for inner in combinations(range(1, count - 1), steps - 1)]


@given(st.integers(2, 7), st.data())
@settings(max_examples=60)
def test_cheapest_path_is_that_of_brute_force(count, data):
    steps = data.draw(st.integers(1, count - 1))
    gamma = data.draw(st.sampled_from([0.8, 1.0, 1.15]))
    cost = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=count**2, max_size=count**2))).reshape(count, count)

    def total(path):
        return sum(gamma**k * cost[i, j] for k, (i, j) in enumerate(pairwise(path)))

    found = cheapest_path(cost, steps, gamma)
    assert total(found) == pytest.approx(min(total(path) for path in all_paths(count, steps)))


@pytest.mark.parametrize("process", [VP, EDM, FLOW], ids=repr)
def test_jump_costs_are_those_of_ddim_tables(process):
    bank = three_bank(process, 9)
    costs = {metric: jump_costs(bank, metric) for metric in ("l2", "dev")}
    chord = bank.scaled[-1] - bank.scaled[0]

    def off(y):
        """Distance from the chord by the cross product."""
        away = y - bank.scaled[0]
        cross = away[:, 0] * chord[:, 1] - away[:, 1] * chord[:, 0]
        return np.mean(np.abs(cross) / np.linalg.norm(chord, axis=1))

    for i, j in combinations(range(9), 2):
        table = da.build("ddim", process, bank.times[[i, j]])
        y = da.run(table, THREE.eps(process), bank.states[i]) / process.alpha(bank.times[j])
        expected = np.mean(np.linalg.norm(y - bank.scaled[j], axis=1))
        assert costs["l2"][i, j] == pytest.approx(expected, rel=1e-7, abs=1e-9)
        assert costs["dev"][i, j] == pytest.approx(off(y) - off(bank.scaled[j]), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("metric", ["dev", "l2"])
@pytest.mark.parametrize("gamma", [1.0, 1.15])
def test_gits_is_that_of_brute_force(metric, gamma):
    bank = three_bank(EDM, 10)
    costs = jump_costs(bank, metric)
    for steps in (1, 2, 4, 9):
        best = min(
            all_paths(10, steps),
            key=lambda p: sum(gamma**k * costs[i, j] for k, (i, j) in enumerate(pairwise(p))),
        )
        found = grid(THREE.eps(EDM), steps, "gits", bank=bank, gamma=gamma, metric=metric)
        np.testing.assert_array_equal(found, bank.times[list(best)])


def end_error(bank, times):
    """Mean square distance of the DDIM steps' end from the bank's, in units of x/α."""
    end = da.run(da.build("ddim", bank.process, times), THREE.eps(bank.process), bank.states[0])
    return np.mean((end / bank.process.alpha(times[-1]) - bank.scaled[-1]) ** 2)


@pytest.mark.parametrize("process", [VP, EDM, FLOW], ids=repr)
def test_oss_is_that_of_brute_force_at_one_and_two_steps(process):
    bank = three_bank(process)
    for steps in (1, 2):
        best = min(all_paths(14, steps), key=lambda p: end_error(bank, bank.times[list(p)]))
        found = grid(THREE.v(process), steps, "oss", bank=bank)
        np.testing.assert_array_equal(found, bank.times[list(best)])


@pytest.mark.parametrize("process", [VP, EDM, FLOW], ids=repr)
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_oss_ends_nearer_than_customary_grids(process, steps):
    """Not a theorem, see below."""
    bank = three_bank(process, 40)
    found = end_error(bank, grid(THREE.x0(process), steps, "oss", bank=bank))
    for kind in ("t2", "rho7", "logrho"):
        near = nearest(bank, da.grid(process, steps, kind))
        assert near.size < steps + 1 or found <= end_error(bank, near)


def nearest(bank, times):
    """The bank's times nearest in log ρ."""
    return bank.times[np.unique([np.argmin(np.abs(np.log(bank.rho / bank.process.rho(t)))) for t in times])]


def test_oss_is_not_always_the_optimum():
    """It keeps one state per time: here uniform times end 4 % nearer."""
    bank = three_bank(FLOW, 40)
    found = end_error(bank, grid(THREE.x0(FLOW), 4, "oss", bank=bank))
    uniform = end_error(bank, nearest(bank, da.grid(FLOW, 4, "t1")))
    assert 0.9 * found < uniform < found


# -- the weights' bound ---------------------------------------------------------------------------


@pytest.mark.parametrize("process", [*PROCESSES, da.SubVP()], ids=repr)
@pytest.mark.parametrize("name", ["dpmpp_1", "dpmpp_2m_exact", "dpmpp_3m_exact"])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_weight_bound_is_read_off_the_table(process, name, power):
    """Σ η_j |b_Kj| / α_K with η = σ^p/α of the variance-preserving process at that ρ."""
    order = int(name[6])
    for kind, steps in (("rho7", 7), ("t2", 4)):
        times = da.grid(process, steps, kind)
        rho = process.rho(times[:-1])
        errors = (rho / np.hypot(1, rho)) ** power * np.hypot(1, rho)
        for final in (False, True):
            options = {"prediction": "x0", "variable": "lam", "lower_order_final": final}
            table = da.adams(process, times, order - 1, **options) if final else da.build(name, process, times)
            table_bound = errors @ np.abs(table.butcher().weights[-1]) / process.alpha(times[-1])
            assert weight_bound(process.lam(times), order, power, final) == pytest.approx(table_bound, rel=1e-9)


def test_weight_bound_apart_adds_roots_of_squares_of_the_first_rows():
    """Two steps of order 2: w₀ alone, then the root of two squares."""
    times = da.grid(VP, 2, "logrho", 0.8, 0.1)
    lam = VP.lam(times)
    first = da.quadrature_weights(VP, "x0", "lam", times[:1], times[0], times[1])
    second = da.quadrature_weights(VP, "x0", "lam", times[:2], times[1], times[2])
    eta = VP.sigma(times[:2]) ** 2 / VP.alpha(times[:2])
    expected = (eta[0] * abs(first[0]) + np.hypot(*(eta * second))) * np.exp(-lam[-1])
    assert weight_bound(lam, 2, 2.0, False, apart=2) == pytest.approx(expected, rel=1e-10)


def test_dm_of_first_order_and_power_one_is_uniform_in_log_snr():
    """The bound is then Σ (e^{h_n} − 1)."""
    times = grid(GAUSS.eps(EDM), 5, "dm", order=1, power=1)
    np.testing.assert_allclose(times, da.grid(EDM, 5, "logrho"), rtol=1e-4)


@pytest.mark.parametrize(("steps", "power"), [(2, 1.0), (2, 2.0), (3, 1.0), (3, 2.0)])
def test_dm_is_that_of_brute_force(steps, power):
    start, end = VP.lam(np.array(VP.sampling_range))
    inner = np.array(list(combinations(np.linspace(start, end, 151)[1:-1], steps - 1)))
    tried = np.column_stack([np.full(len(inner), start), inner, np.full(len(inner), end)])
    values = weight_bound(tried, 3, power, True, 3)
    found = weight_bound(VP.lam(grid(GAUSS.eps(VP), steps, "dm", power=power)), 3, power, True, 3)
    assert 0.99 * values.min() < found <= values.min()


@pytest.mark.parametrize("process", [VP, EDM], ids=repr)
@pytest.mark.parametrize("steps", [5, 8])
def test_dm_is_below_the_customary_grids(process, steps):
    found = weight_bound(process.lam(grid(GAUSS.eps(process), steps, "dm")), 3, 2.0, True, 3)
    for kind in CUSTOMARY:
        if kind != "shift3" or process is VP:
            assert found < 0.99 * weight_bound(process.lam(da.grid(process, steps, kind)), 3, 2.0, True, 3)


# -- properties -----------------------------------------------------------------------------------


@given(processes(), mixtures(), st.sampled_from(GRIDS[:-1]), st.integers(1, 6), st.integers(0, 3), st.data())
@settings(max_examples=40)
def test_ends_length_order_and_determinism(process, mix, kind, steps, seed, data):
    model = mix.model(process, data.draw(st.sampled_from(da.PREDICTIONS)))
    start, end = process.sampling_range
    x = mix.sample(8, 0, process, start).reshape(4, 2)
    bank = trajectories(model, x, points=12)
    options = {"gits": {"metric": "l2"}, "score_optimal": {"state": "karras"}}.get(kind, {})
    times = grid(model, steps, kind, bank=bank, seed=seed, **options)
    assert times.shape == (steps + 1,)
    assert times.dtype == np.float64
    assert (times[0], times[-1]) == (start, end)
    assert np.all(np.diff(times) < 0)
    np.testing.assert_array_equal(times, grid(model, steps, kind, x=x, points=12, seed=seed, **options))
    da.build("tab3", process, times)


@pytest.mark.parametrize("kind", GRIDS)
def test_processes_agree_in_levels(kind):
    """One model under two processes, over one range of ρ: the same levels; score-optimal in x/α."""
    ends = VP.rho(np.array([0.9, 0.01]))
    edm = da.EDM(float(ends[1]), float(ends[0]))
    x = THREE.sample(24, 1, VP, 0.9)
    options = {"state": "karras"} if kind == "score_optimal" else {}
    banks = [
        trajectories(THREE.v(VP), x, points=25, t_start=0.9, t_end=0.01, teacher="rhoab3"),
        trajectories(THREE.eps(edm), x / VP.alpha(0.9), points=25, teacher="rhoab3"),
    ]
    on_vp = grid(THREE.v(VP), 5, kind, bank=banks[0], t_start=0.9, t_end=0.01, **options)
    on_edm = grid(THREE.x0(edm), 5, kind, bank=banks[1], **options)
    np.testing.assert_allclose(VP.rho(on_vp), on_edm, rtol=1e-5)


@given(st.floats(0.3, 4.0), st.floats(-5, 5), st.sampled_from(GRIDS[:-1]))
@settings(max_examples=20)
def test_grids_move_with_the_data(scale, shift, kind):
    """Data that are shifted change nothing; data and noise that are scaled scale the levels."""
    other = da.EDM(0.01 * scale, 60.0 * scale)
    moved = da.GaussianMixture(THREE.weights, scale * THREE.means + shift, scale**2 * THREE.covariances)
    x = THREE.sample(16, 1, EDM, 60.0)
    plain = grid(THREE.eps(EDM), 5, kind, x=x, points=20)
    ours = grid(moved.eps(other), 5, kind, x=scale * x + shift, points=20)
    np.testing.assert_allclose(ours, scale * plain, rtol=1e-5)


def test_seed_changes_the_noise_only():
    bank = three_bank(EDM)
    for kind in ("entropic", "ays"):
        first, second = (grid(THREE.eps(EDM), 5, kind, bank=bank, seed=s) for s in (0, 1))
        assert not np.array_equal(first, second)
        np.testing.assert_allclose(first, second, rtol=0.25)


def test_torch_gives_the_grid_of_numpy():
    x = THREE.sample(16, 1, VP, 1.0)
    for kind in GRIDS[:-1]:
        plain = grid(THREE.eps(VP), 4, kind, x=x, points=20)
        np.testing.assert_allclose(grid(THREE.eps(VP), 4, kind, x=torch.tensor(x), points=20), plain, rtol=1e-6)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_calls_are_those_foretold(kind, steps):
    calls = []

    def counted(x, t):
        calls.append(t)
        return THREE.eps(VP)(x, t)

    model, x = da.Model(counted, VP, "eps"), THREE.sample(4, 0, VP, 1.0)
    bank = trajectories(model, x, points=15)
    assert len(calls) == bank.calls == 15
    grid(model, steps, kind, bank=bank)
    assert len(calls) == 15 + model_calls(kind, steps, 15)


def test_ends_inside_a_bank():
    bank = three_bank(VP, 20)
    start, end = (float(t) for t in bank.times[[3, -4]])
    for kind in GRIDS:
        times = grid(THREE.eps(VP), 4, kind, bank=bank, t_start=start, t_end=end)
        assert (times[0], times[-1]) == (start, end)
    part = Bank(VP, bank.times[3:-3], bank.states[3:-3], bank.eps[3:-3], 0)
    np.testing.assert_array_equal(
        grid(THREE.eps(VP), 4, "oss", bank=part),
        grid(THREE.eps(VP), 4, "oss", bank=bank, t_start=start, t_end=end),
    )


# -- bad input ------------------------------------------------------------------------------------

X = THREE.sample(4, 0, VP, 1.0)
MODEL = THREE.eps(VP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "entropc"}, "kind='entropc' is unknown; nearest: entropic"),
        ({"kind": "t2"}, "kind='t2' is unknown"),
        ({"steps": 0}, "steps=0 must be an integer >= 1"),
        ({"steps": 1001}, "steps=1001 must be at most 1000"),
        ({"steps": 15}, "steps=15 must be at most 14"),
        ({"points": 2}, "points=2"),
        ({"model": lambda x, t: x}, "does not say what it is; allowed: deis_analysis.Model"),
        ({"x": None}, "x=None, bank=None, but kind='gits' needs one"),
        ({"x": np.ones((4, 3))}, r"x has shape \(4, 3\); allowed: \(..., 2\)"),
        ({"x": np.float64(1.0)}, r"x has shape \(\); allowed: \(B, …\)"),
        ({"x": np.ones((0, 2))}, r"x has shape \(0, 2\)"),
        ({"x": np.full((4, 2), np.nan)}, "x must be finite"),
        ({"t_end": 0.0}, "t_end=0.0: λ is infinite"),
        ({"t_start": 0.1, "t_end": 0.2}, "t_end=0.2 must be below t_start=0.1"),
        ({"seed": -1}, "seed=-1"),
        ({"metric": "l1"}, "metric='l1' is unknown"),
        ({"gamma": 0.0}, "gamma=0.0 must be a positive"),
        ({"draws": 2}, r"draws=2: kind='gits' has no such option; allowed: \['gamma', 'metric'\]"),
        ({"kind": "entropic", "draws": 0}, "draws=0"),
        ({"kind": "score_optimal", "state": "normalised"}, "state='normalised' is unknown"),
        ({"kind": "dm", "order": 4}, "order=4 must be at most 3"),
        ({"kind": "dm", "power": -1}, "power=-1"),
        ({"kind": "dm", "lower_order_final": 1}, "lower_order_final=1 must be True or False"),
        ({"bank": three_bank(VP)}, "x and bank are both given"),
        ({"bank": three_bank(EDM), "x": None}, "bank is of EDM"),
        ({"bank": X, "x": None}, "must be a Bank"),
        ({"bank": three_bank(VP), "x": None, "t_end": 0.5}, "t_end=0.5 is none of the bank's times"),
        ({"bank": three_bank(VP), "x": None, "t_end": 1e-4}, "t_end=0.0001 is outside"),
    ],
)
def test_bad_input(change, message):
    given = {"model": MODEL, "steps": 5, "kind": "gits", "x": X, "points": 15} | change
    with pytest.raises(ValueError, match=message):
        grid(given.pop("model"), given.pop("steps"), given.pop("kind"), **given)


def test_bad_banks():
    with pytest.raises(ValueError, match="ρ is infinite there"):
        trajectories(THREE.v(FLOW), X, t_start=1.0)
    with pytest.raises(ValueError, match="draws noise or skips times"):
        trajectories(MODEL, X, teacher="ancestral_ve")
    with pytest.raises(ValueError, match="teacher='tab9' is unknown; nearest: tab3"):
        trajectories(MODEL, X, teacher="tab9")
    with pytest.raises(ValueError, match="must descend strictly"):
        Bank(VP, np.array([0.1, 0.2]), (X, X), (X, X), 0)
    with pytest.raises(ValueError, match="eps holds 1 arrays; allowed: 2 of one shape"):
        Bank(VP, np.array([0.2, 0.1]), (X, X), (X,), 0)
    assert "14 times" in repr(three_bank(VP))


@pytest.mark.parametrize("kind", GRIDS[:-1])
def test_a_model_that_breaks_is_named_by_its_time(kind):
    bank = three_bank(VP)
    bad = float(bank.times[8])
    model = da.Model(lambda x, t: np.where(t == bad, np.nan, 1.0) * MODEL(x, t), VP, "eps")
    with pytest.raises(ValueError, match=f"t={bad!r}"):
        trajectories(model, X, points=14)
    if kind != "gits":
        with pytest.raises(ValueError, match=f"t={bad!r}"):
            grid(model, 5, kind, bank=bank)


def test_what_tells_nothing_is_refused():
    """Straight trajectories, a score that does not change, data that are one point."""
    with pytest.raises(ValueError, match="straight lines; allowed: metric='l2'"):
        grid(GAUSS.eps(VP), 4, "gits", bank=gauss_bank(VP))
    standard = da.GaussianMixture([1.0], [0.0], [1.0])
    bank = trajectories(standard.eps(VP), X)
    with pytest.raises(ValueError, match="does not change in time; allowed: state='karras'"):
        grid(standard.eps(VP), 4, "score_optimal", bank=bank)
    times = grid(standard.eps(VP), 4, "score_optimal", bank=bank, state="karras")
    assert np.all(np.diff(times) < 0)
