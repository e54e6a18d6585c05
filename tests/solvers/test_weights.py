"""The one integral against mpmath at 50 digits and scipy's quad; φ-functions; conditioning; bad input."""

from __future__ import annotations

from itertools import pairwise, product

import exact
import mpmath as mp
import numpy as np
import pytest
from exact import PROCESSES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import grids, processes

import deis_analysis as da
from deis_analysis.solvers.weights import adams_weights

VARIABLES = ("t", "rho", "lam", "inv_rho")
PAIRS = list(product(da.PREDICTIONS, VARIABLES))


def cases(process):
    """(nodes, a, b): steps from 1e-8 of the range to all of it, one to six nodes."""
    start, end = process.sampling_range
    span, middle = start - end, end + 0.4 * (start - end)
    for share, count in ((1e-8, 6), (1e-5, 4), (1e-2, 6), (0.1, 2)):
        step = share * span
        yield middle + step * np.arange(count) * (1 + 0.1 * np.arange(count)), middle, middle - step
    yield np.linspace(end + 0.3 * span, start, 3), end + 0.3 * span, end  # long step to the end
    yield np.linspace(end, start, 6), start, end  # the whole interval
    yield np.array([start]), start, end


def check(name, process, pairs, nodes, a, b, tolerance=1e-13):
    """Weights against mpmath, relative to the largest."""
    for prediction, variable in pairs:
        truth = exact.weights(name, prediction, variable, nodes, a, b)
        found = da.quadrature_weights(process, prediction, variable, nodes, a=a, b=b)
        error = np.max(np.abs(found - truth)) / np.max(np.abs(truth))
        assert error <= tolerance, (prediction, variable, nodes, a, b)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_weights_match_mpmath_to_1e_13(name):
    process = PROCESSES[name][0]
    for nodes, a, b in cases(process):
        check(name, process, PAIRS, nodes, a, b)


# -- where α vanishes -----------------------------------------------------------------------------
LAST = np.nextafter(1.0, 0.0)  # the last time before α = 0
NEAR = [*(1.0 - 10.0**-k for k in range(3, 13)), 1.0 - 1e-15, LAST]


def process_to(name, t):
    """The process as far as t."""
    return da.VPCosine(t_max=t) if name == "VPCosine" else PROCESSES[name][0]


@pytest.mark.parametrize("start", NEAR)
@pytest.mark.parametrize("name", exact.VANISHING)
def test_weights_hold_1e_13_up_to_the_last_time_before_alpha_vanishes(name, start):
    """All predictions and variables, on four nodes close to the end."""
    process, left = process_to(name, start), 1.0 - start
    check(name, process, PAIRS, 1.0 - left * np.array([1.0, 3.0, 8.0, 20.0]), 1.0 - 20.0 * left, 1.0 - 50.0 * left)


@pytest.mark.parametrize("start", [1.0 - 1e-8, 1.0 - 1e-12, LAST])
@pytest.mark.parametrize("name", exact.VANISHING)
def test_weights_hold_1e_13_from_there_over_the_whole_interval(name, start):
    nodes = np.array([start, 1.0 - np.sqrt(1.0 - start), 0.8, 0.5, 0.1])
    check(name, process_to(name, start), PAIRS, nodes, start, 0.01)


@settings(max_examples=25)
@given(st.sampled_from(exact.VANISHING), st.sampled_from(PAIRS), st.data())
def test_rows_of_a_grid_that_starts_near_alpha_0_match_mpmath(name, pair, data):
    count = data.draw(st.integers(1, 5))
    gaps = data.draw(st.lists(st.floats(0.1, 2.0), min_size=count, max_size=count))
    left = 10.0 ** (-data.draw(st.floats(2.0, 15.9)) + np.concatenate([[0.0], np.cumsum(gaps)]))
    ts = 1.0 - left[left < 0.9]
    ts = np.unique(ts)[::-1]
    process = process_to(name, ts[0])
    for row in range(ts.size - 1):
        truth = exact.weights(name, *pair, ts[row::-1], ts[row], ts[row + 1])
        found = adams_weights(process, *pair, ts, 4)[row, : row + 1]
        assert np.max(np.abs(found - truth)) <= 1e-13 * np.max(np.abs(truth)), ts


@pytest.mark.parametrize("lam_sde", [0.5, 1.0])
def test_the_lambda_family_near_alpha_0(lam_sde):
    """One node: the difference of κ = (1 + λ²) ρ or ρ^{−(1 + λ²)}."""
    for left in (1e-3, 1e-6, 1e-9, 1e-12):
        ts = 1.0 - left * np.array([1.0, 1.5])
        with mp.workdps(50):
            rho = [mp.mpf(t) / (1 - mp.mpf(t)) for t in ts]
            power = 1 + mp.mpf(lam_sde) ** 2
            truth = {"eps": power * (rho[1] - rho[0]), "x0": rho[1] ** -power - rho[0] ** -power}
        for prediction, value in truth.items():
            found = adams_weights(da.RectifiedFlow(), prediction, "lam", ts, 0, lam_sde)[0, 0]
            assert abs(found / float(value) - 1) <= 1e-14, (prediction, left)


def test_a_step_from_alpha_0_itself():
    """t = 1 on `RectifiedFlow`, where κ of x₀ and v, t and 1/ρ are finite."""
    pairs = list(product(("x0", "v"), ("t", "inv_rho")))
    for nodes in ([1.0], [1.0, LAST], [1.0, 1.0 - 1e-6, 0.9, 0.4]):
        check("RectifiedFlow", da.RectifiedFlow(), pairs, np.array(nodes), 1.0, 0.3)


@pytest.mark.parametrize("start", NEAR)
@pytest.mark.parametrize("name", exact.VANISHING)
def test_ddim_on_a_constant_noise_is_right_to_what_the_start_is_known_to(name, start):
    """ε = 1, x₀ = 0: the step leads from σ_t to σ_s.  The table does so to rounding; `run` adds Ψ x_T and a term of
    almost −Ψ x_T, so that a rounding of x_T comes back Ψ = α_s/α_t times as large, whatever the weights."""
    process, end = process_to(name, start), 0.5
    table = da.build("ddim", process, [start, end])
    _, alpha, sigma = PROCESSES[name]
    with mp.workdps(50):
        high, low = sigma(mp.mpf(start)), sigma(mp.mpf(end))
        psi = float(alpha(mp.mpf(end)) / alpha(mp.mpf(start)))
        of_table = mp.mpf(table.states[1, 0]) * high + mp.mpf(table.outputs[1, 0]) - low
    unit = 2.0**-53 * psi * float(high)
    result = da.run(table, lambda x, t: np.ones_like(x), np.array([float(high)]))
    assert abs(float(of_table)) <= 40 * unit
    assert abs(result[0] - float(low)) <= 40 * unit


def test_the_mpmath_authority_agrees_with_mpmaths_own_adaptive_quadrature():
    """The reference above places its own panels; here mp.quad decides."""
    process, alpha, sigma = PROCESSES["VPLinear"]
    nodes, a, b = [0.5, 0.7, 1.0], 0.5, 0.2
    with mp.workdps(30):
        for j, node in enumerate(nodes):

            def integrand(t, j=j, node=node):
                basis = mp.mpf(1)
                for k, other in enumerate(nodes):
                    if k != j:
                        basis *= (t - mp.mpf(other)) / (mp.mpf(node) - mp.mpf(other))
                return basis * mp.diff(lambda u: sigma(u) / alpha(u), t)

            value = float(mp.quad(integrand, [mp.mpf(a), mp.mpf("0.35"), mp.mpf(b)]))
            assert np.isclose(value, exact.weights("VPLinear", "eps", "t", nodes, a, b)[j], rtol=1e-14)
            assert np.isclose(value, da.quadrature_weights(process, "eps", "t", nodes, a=a, b=b)[j], rtol=1e-13)


@given(processes(), st.sampled_from(da.PREDICTIONS), st.sampled_from(VARIABLES), st.data())
def test_weights_match_scipy_quad(process, prediction, variable, data):
    ts = data.draw(grids(process, min_steps=3, max_steps=6))
    i = data.draw(st.integers(1, ts.size - 2))
    nodes, a, b = ts[: i + 1][::-1], ts[i], ts[i + 1]
    clock = {"t": np.asarray, "rho": process.rho, "lam": process.lam, "inv_rho": lambda t: 1 / process.rho(t)}[variable]
    at = clock(nodes)

    def integrand(t, j):
        return float(
            np.prod(np.delete((clock(t) - at) / (at[j] - at + (at == at[j])), j)) * process.kappa_rate(prediction, t)
        )

    kinks = process.breakpoints[(process.breakpoints > b) & (process.breakpoints < a)]
    if kinks.size > 60:
        return  # quad would take too long on a finely kinked process
    edges = [a, *kinks[::-1], b]
    found = da.quadrature_weights(process, prediction, variable, nodes, a=a, b=b)
    for j in range(nodes.size):
        parts = [quad(integrand, x, y, args=(j,), epsabs=0, epsrel=1e-10, limit=200)[0] for x, y in pairwise(edges)]
        assert abs(found[j] - sum(parts)) <= 1e-8 * np.max(np.abs(found))


@given(processes(), st.sampled_from(da.PREDICTIONS), st.sampled_from(VARIABLES), st.data())
def test_weights_sum_to_the_difference_of_kappa(process, prediction, variable, data):
    ts = data.draw(grids(process, min_steps=2, max_steps=8))
    for i in range(1, ts.size - 1):
        w = da.quadrature_weights(process, prediction, variable, ts[max(0, i - 3) : i + 1][::-1], a=ts[i], b=ts[i + 1])
        gap = process.kappa(prediction, ts[i + 1]) - process.kappa(prediction, ts[i])
        size = np.max(np.abs(w)) + abs(process.kappa(prediction, ts[i])) + abs(process.kappa(prediction, ts[i + 1]))
        assert abs(w.sum() - gap) <= 2e-14 * size


@given(processes(), st.sampled_from(da.PREDICTIONS), st.sampled_from(VARIABLES), st.integers(0, 5), st.data())
def test_the_weights_of_a_whole_grid_are_those_of_its_steps(process, prediction, variable, degree, data):
    ts = data.draw(grids(process))
    rows = adams_weights(process, prediction, variable, ts, degree)
    assert rows.shape == (ts.size - 1, min(degree, ts.size - 2) + 1)
    for i, row in enumerate(rows):
        nodes = ts[max(0, i - degree) : i + 1][::-1]
        single = da.quadrature_weights(process, prediction, variable, nodes, a=ts[i], b=ts[i + 1])
        assert np.allclose(row[: nodes.size], single, rtol=0, atol=1e-12 * np.max(np.abs(single)))
        assert not np.any(row[nodes.size :])


@pytest.mark.parametrize("t", [1.0, 1e-3, 1e-8])
def test_steps_to_the_end_of_the_range(t):
    """To σ = 0, where ρ ~ √t, and where |λ| is large."""
    for process in (da.VPLinear(), da.VPCosine(), da.SubVP(), da.RectifiedFlow()):
        if t < process.t_max:
            assert np.isclose(da.quadrature_weights(process, "eps", "t", [t], t, 0.0)[0], -process.rho(t), rtol=1e-13)
    wide = da.EDM(1e-9, 1e9)
    assert np.isclose(da.quadrature_weights(wide, "x0", "t", [1e-6], 1e-6, 1e-9)[0], 1e9 - 1e6, rtol=1e-13)
    assert np.isclose(da.quadrature_weights(wide, "x0", "t", [1e9], 1e9, 1e-9)[0], 1e9, rtol=1e-13)


def test_weights_under_a_mean_are_those_of_the_inner_process():
    inner = PROCESSES["VPDiscrete"][0]
    outer = da.MeanReverting(inner, 3.0)
    for prediction in da.PREDICTIONS:
        a, b = (adams_weights(p, prediction, "t", da.grid(p, 6), 2) for p in (inner, outer))
        assert np.array_equal(a, b)
    flow = da.RectifiedFlow()
    ts = 1.0 - np.array([1e-12, 1e-9, 1e-4, 0.3])
    for prediction, factor in (("eps", 0.3), ("x0", 1 / 0.3), ("v", 1.0), ("score", 0.09)):
        a, b = (adams_weights(p, prediction, "t", ts, 2) for p in (flow, da.MeanReverting(flow, 3.0, 0.3)))
        assert np.allclose(b, factor * a, rtol=1e-14)


def test_order_of_nodes_only_permutes_weights_and_direction_only_changes_sign():
    process, nodes = da.VPLinear(), np.array([0.5, 0.6, 0.8, 1.0])
    w = da.quadrature_weights(process, "eps", "t", nodes, a=0.5, b=0.3)
    assert np.allclose(da.quadrature_weights(process, "eps", "t", nodes[::-1], a=0.5, b=0.3), w[::-1], rtol=1e-14)
    assert np.allclose(da.quadrature_weights(process, "eps", "t", nodes, a=0.3, b=0.5), -w, rtol=1e-12)
    assert np.array_equal(da.quadrature_weights(process, "eps", "t", nodes, a=0.3, b=0.3), np.zeros(4))


def test_polynomials_up_to_the_degree_are_integrated_exactly_and_not_one_more():
    process, nodes = da.VPLinear(), np.array([0.5, 0.6, 0.8])
    w = da.quadrature_weights(process, "eps", "t", nodes, a=0.5, b=0.3)
    for m in range(4):
        truth = quad(lambda t, m=m: t**m * process.kappa_rate("eps", t), 0.5, 0.3, epsrel=1e-13)[0]
        error = abs(w @ nodes**m - truth) / abs(truth)
        assert (error < 1e-12) == (m <= 2), (m, error)


def test_where_conditioning_limits_small_weights():
    """Nodes 1e-6 apart and a step of 0.3: weights reach 1e+24. Each is exact relative to the largest, while their sum,
    24 orders smaller, is lost: the limit of what float64 weights can carry, not of the rule that finds them."""
    process, gap = da.VPLinear(), 1e-6
    nodes = 0.5 + gap * np.arange(5)
    w = da.quadrature_weights(process, "eps", "t", nodes, a=0.5, b=0.2)
    truth = exact.weights("VPLinear", "eps", "t", nodes, 0.5, 0.2)
    assert np.max(np.abs(truth)) > 1e20
    assert np.max(np.abs(w - truth)) <= 1e-13 * np.max(np.abs(truth))
    assert abs(w.sum() - (process.rho(0.2) - process.rho(0.5))) > 1.0


@pytest.mark.parametrize("k", [*range(6), 22, 25])
def test_phi_functions_match_mpmath(k):
    h = np.array([0.0, 1e-12, -1e-8, 1e-3, -0.1, 0.7, -3.0, 8.0, -20.0])
    with mp.workdps(400):

        def truth(z):
            z = mp.mpf(float(z))
            if z == 0:
                return 1 / mp.factorial(k)
            value = mp.e**z
            for i in range(k):
                value = (value - 1 / mp.factorial(i)) / z
            return value

        values = np.array([float(truth(z)) for z in h])
    assert np.allclose(da.phi(k, h), values, rtol=2e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: da.quadrature_weights(p, "epsilon", "t", [0.5], a=0.5, b=0.4),
            "prediction='epsilon' is unknown; nearest: eps",
        ),
        (lambda p: da.quadrature_weights(p, "eps", "lambda", [0.5], a=0.5, b=0.4), "variable='lambda' is unknown"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [0.5, 0.5], a=0.5, b=0.4), "nodes=.* must be distinct"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [], a=0.5, b=0.4), "nodes has shape"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [[0.5]], a=0.5, b=0.4), "nodes has shape"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [1.5], a=0.5, b=0.4), "nodes=1.5 is outside"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [0.5], a=0.5, b=-0.4), "b=-0.4 is outside"),
        (lambda p: da.quadrature_weights(p, "eps", "t", [0.5], a=np.nan, b=0.4), "a=nan must be finite"),
        (lambda p: da.quadrature_weights(p, "eps", "lam", [0.5], a=0.5, b=0.0), r"t=0.0: ρ=0 there"),
        (lambda p: da.quadrature_weights(p, "x0", "t", [0.5], a=0.5, b=0.0), r"t=0.0: ρ=0 there"),
        (lambda p: da.phi(-1, 0.5), "k=-1 must be an integer >= 0"),
        (lambda p: da.phi(1, np.nan), "h must be finite"),
        (lambda p: da.phi(1, 1e15), r"h must be finite and lie in"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(da.VPLinear())


def test_infinite_rho_is_refused_where_it_matters_and_only_there():
    flow = da.RectifiedFlow()
    for prediction, variable in (("eps", "t"), ("score", "t"), ("x0", "rho"), ("v", "lam")):
        with pytest.raises(ValueError, match=r"t=1.0: ρ=inf there"):
            da.quadrature_weights(flow, prediction, variable, [1.0], a=1.0, b=0.8)
    assert np.isclose(da.quadrature_weights(flow, "v", "t", [1.0], a=1.0, b=0.8)[0], -0.2, rtol=1e-14)
    assert np.isclose(da.quadrature_weights(flow, "x0", "t", [1.0], a=1.0, b=0.8)[0], 0.25, rtol=1e-13)  # (1−t)/t
