"""Each sampler's published formula, written out in the paper's own terms, against our table: the source is checked."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import grids, processes

import deis_analysis as da
from deis_analysis.solvers import belm

VP, X = da.VPLinear(), np.ones(3)
TS = da.grid(VP, 7, "t2", 0.9, 0.01)
ALPHA, SIGMA, LAM, RHO = VP.alpha(TS), VP.sigma(TS), VP.lam(TS), VP.rho(TS)
H = np.diff(LAM)


def check(table, row, start, states, outputs, noise=None, rtol=1e-11):
    """One row of a table against the published coefficients."""
    found_s = {int(j): table.states[row, j] for j in np.flatnonzero(table.states[row])}
    found_f = {int(j): table.outputs[row, j] for j in np.flatnonzero(table.outputs[row])}
    scale = max(map(abs, [*found_f.values(), *found_s.values()]))
    assert set(found_s) == set(states)
    assert set(found_f) == set(outputs), (found_f, outputs)
    for j, value in states.items():
        assert np.isclose(found_s[j], value, rtol=rtol, atol=rtol * scale), (start, j)
    for j, value in outputs.items():
        assert np.isclose(found_f[j], value, rtol=rtol, atol=rtol * scale), (start, j)
    if noise is not None:
        values = table.noise[row][np.flatnonzero(table.noise[row])]
        assert np.allclose(values, noise, rtol=1e-9)


# -- DPM-Solver and DPM-Solver++ ------------------------------------------------------------------
@pytest.mark.parametrize("shares", [(0.5,), (0.3,), (0.8,)])
def test_dpm_solver_2(shares):
    """u = (α_u/α_t) x − σ_u (e^{r₁h} − 1) ε_t;  x_s = (α_s/α_t) x − σ_s (e^h − 1)(ε_t + (ε_u − ε_t)/(2r₁))."""
    (r,) = shares
    table = da.singlestep(VP, TS, 2, shares=shares)
    for i in range(TS.size - 1):
        u, last = 2 * i + 1, 2 * i + 2
        t_u = VP.time_from_lam(LAM[i] + r * H[i])
        a_u, s_u = float(VP.alpha(t_u)), float(VP.sigma(t_u))
        assert np.isclose(table.times[u], t_u, rtol=1e-14)
        check(table, u, i, {2 * i: a_u / ALPHA[i]}, {2 * i: -s_u * np.expm1(r * H[i])})
        whole = -SIGMA[i + 1] * np.expm1(H[i])
        outputs = {2 * i: whole * (1 - 1 / (2 * r)), u: whole / (2 * r)}
        if r == 0.5:
            outputs.pop(2 * i)
        check(table, last, i, {2 * i: ALPHA[i + 1] / ALPHA[i]}, outputs)


def test_the_node_of_dpm_solver_2_is_the_geometric_mean_of_rho():
    table = da.build("dpm_2", VP, TS)
    assert np.allclose(VP.rho(table.times[1::2]), np.sqrt(RHO[:-1] * RHO[1:]), rtol=1e-13)
    midpoint = da.build("rhork_2midpoint", VP, TS)
    assert np.allclose(VP.rho(midpoint.times[1::2]), 0.5 * (RHO[:-1] + RHO[1:]), rtol=1e-13)
    # in y = x/α and ρ it is the same rule with another node
    assert np.allclose(table.outputs[2::2, 1::2].diagonal(), midpoint.outputs[2::2, 1::2].diagonal(), rtol=1e-12)


def test_dpm_solver_3():
    """[DPM-Solver, algorithm 2] with r₁ = ⅓, r₂ = ⅔."""
    table, (r1, r2) = da.build("dpm_3", VP, TS), (1 / 3, 2 / 3)
    for i, h in enumerate(H):
        first = 3 * i
        a, s = VP.alpha(table.times[first : first + 4]), VP.sigma(table.times[first : first + 4])
        correction = -s[2] * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1)
        check(
            table,
            first + 2,
            i,
            {first: a[2] / a[0]},
            {first: -s[2] * np.expm1(r2 * h) - correction, first + 1: correction},
        )
        slope = -s[3] / r2 * (np.expm1(h) / h - 1)
        check(table, first + 3, i, {first: a[3] / a[0]}, {first: -s[3] * np.expm1(h) - slope, first + 2: slope})


def test_dpm_solver_3_has_its_order_at_two_thirds_only():
    """The last row takes p₂ alone: r₂/2 = ⅓. The Taylor form takes p₁ as well, a stage of first order: no better."""
    process, mix, options = da.order_problem()
    for taylor in (False, True):
        for shares, order in (((0.2, 0.7), 2), ((0.5, 0.6), 2), ((1 / 3, 2 / 3), 3), ((0.4, 2 / 3), 3)):

            def build(p, ts, shares=shares, taylor=taylor):
                return da.singlestep(p, ts, 3, shares=shares, taylor=taylor)

            found = da.observed_order(build, process, mix, (40, 80, 160), **options)
            assert abs(found.slope - order) < 0.12, (shares, taylor, found)


def test_dpm_solver_plus_plus_3s():
    table, (r1, r2) = da.build("dpmpp_3s", VP, TS), (1 / 3, 2 / 3)
    for i, h in enumerate(H):
        first = 3 * i
        a, s = VP.alpha(table.times[first : first + 4]), VP.sigma(table.times[first : first + 4])
        phi2 = np.expm1(-r2 * h) / (r2 * h) + 1
        weight = r2 / r1 * a[2] * phi2
        outputs = {first: -a[2] * np.expm1(-r2 * h) - weight, first + 1: weight}
        check(table, first + 2, i, {first: s[2] / s[0]}, outputs)
        weight = a[3] / r2 * (np.expm1(-h) / h + 1)
        outputs = {first: -a[3] * np.expm1(-h) - weight, first + 2: weight}
        check(table, first + 3, i, {first: s[3] / s[0]}, outputs)


def test_dpm_solver_plus_plus_2m():
    """x_s = (σ_s/σ_t) x − α_s (e^{−h} − 1) ((1 + 1/2r) D₀ − D₁/2r), r = h_before/h."""
    table = da.build("dpmpp_2m", VP, TS)
    for i in range(1, TS.size - 1):
        r, whole = H[i - 1] / H[i], -ALPHA[i + 1] * np.expm1(-H[i])
        outputs = {i: whole * (1 + 1 / (2 * r)), i - 1: -whole / (2 * r)}
        check(table, i + 1, i, {i: SIGMA[i + 1] / SIGMA[i]}, outputs)


def third_order(i, second_difference):
    """Weights of the multistep third order as released; ``second_difference`` 1 as there, 2 as the integral needs."""
    h, r0, r1 = H[i], H[i - 1] / H[i], H[i - 2] / H[i]
    d10, d11 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), second_difference * (d10 - d11) / (r0 + r1)
    phi1 = np.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    return ALPHA[i + 1] * (-phi1 * np.array([1, 0, 0]) + phi2 * d1 - phi3 * d2)


def test_the_released_third_order_weighs_the_second_difference_by_half():
    """`dpmpp_3m` is what is released, `dpmpp_3m_exact` twice that difference; the orders are 2 and 3 (test_cli)."""
    released, exact = da.build("dpmpp_3m", VP, TS), da.build("dpmpp_3m_exact", VP, TS)
    for i in range(2, TS.size - 1):
        nodes = [i, i - 1, i - 2]
        for table, factor in ((released, 1), (exact, 2)):
            outputs = dict(zip(nodes, third_order(i, factor), strict=True))
            check(table, i + 1, i, {i: SIGMA[i + 1] / SIGMA[i]}, outputs, rtol=1e-9)
    assert da.SOLVERS["dpmpp_3m"].order_exact_start == 2
    assert da.SOLVERS["dpmpp_3m_exact"].order_exact_start == 3


def test_2m_is_the_midpoint_rule_and_not_the_exact_weight():
    """The weight of D₁ − D₀ is ½(1 − e^{−h}) in 2M and (h − 1 + e^{−h})/h exactly: h²/12 apart, relatively h/6."""
    for steps in (40, 160):
        ts = da.grid(VP, steps, "logrho", 0.9, 0.01)
        a, b = da.build("dpmpp_2m", VP, ts), da.build("dpmpp_2m_exact", VP, ts)
        h = float(np.diff(VP.lam(ts))[5])
        relative = (a.outputs[6, 4] - b.outputs[6, 4]) / b.outputs[6, 4]
        assert np.isclose(relative, -h / 6, rtol=h)
        assert da.distance(a, b) > 0.1 * h**2 / 12 * float(VP.alpha(0.01))


def test_the_released_third_order_starts_with_ddim_and_2m():
    released, second = da.build("dpmpp_3m", VP, TS), da.build("dpmpp_2m", VP, TS)
    assert np.allclose(released.outputs[:3], second.outputs[:3], rtol=1e-13)
    exact = da.build("dpmpp_2m_exact", VP, TS)
    assert np.allclose(released.outputs[1], exact.outputs[1], rtol=1e-13)
    assert not np.allclose(released.outputs[2], exact.outputs[2], rtol=1e-3)
    for name, first in (("dpm_3m", "dpm_2m"), ("dpm_3m_exact", "dpm_2m_taylor"), ("dpmpp_3m_exact", "dpmpp_2m_exact")):
        assert np.allclose(da.build(name, VP, TS).outputs[2], da.build(first, VP, TS).outputs[2], rtol=1e-13), name


def test_dpm_solver_fast_spends_the_budget():
    from deis_analysis.solvers.dpm_solver import fast_orders

    for calls in range(1, 40):
        orders = fast_orders(calls)
        assert sum(orders) == calls
        k, rest = divmod(calls, 3)
        assert orders == {0: [3] * (k - 1) + [2, 1], 1: [3] * k + [1], 2: [3] * k + [2]}[rest]
        if calls >= 2:
            assert da.dpm_fast(VP, da.grid(VP, calls)).nfe == calls
    ts = da.grid(VP, 6, "logrho")
    table = da.dpm_fast(VP, ts)  # one of order 3, one of order 2, one of order 1
    assert table.grid_nodes == (0, 3, 5, 6)
    three = da.singlestep(VP, ts[[0, 3]], 3)  # uniform λ: the stages are the given times
    assert np.allclose(table.outputs[:4, :4], three.outputs, atol=1e-11)


def test_lower_order_final_ends_as_ddim():
    table = da.adams(VP, TS, 2, prediction="x0", variable="lam", lower_order_final=True)
    plain = da.build("dpmpp_3m_exact", VP, TS)
    ddim, second = da.build("dpmpp_1", VP, TS), da.build("dpmpp_2m_exact", VP, TS)
    assert np.array_equal(table.outputs[:-2], plain.outputs[:-2])
    assert np.allclose(table.outputs[-2], second.outputs[-2], atol=1e-15)
    assert np.allclose(table.outputs[-1], ddim.outputs[-1], atol=1e-15)


# -- UniPC ----------------------------------------------------------------------------------------
def published_unipc(i, p, prediction, variant, corrector):
    """The linear system of the release: weights of f at times i + 1 (if corrector), i, i − 1, …"""
    h = H[i]
    hh = h if prediction == "eps" else -h
    b = hh if variant == "bh1" else np.expm1(hh)
    r = [(LAM[i - m] - LAM[i]) / h for m in range(1, p)] + ([1.0] if corrector else [])
    rows, moments, phi, factorial = [], [], np.expm1(hh) / hh - 1, 1
    for k in range(1, len(r) + 1):
        rows.append([x ** (k - 1) for x in r])
        factorial *= k
        moments.append(phi * factorial / b)
        phi = phi / hh - 1 / (factorial * (k + 1))
    half = len(r) == 1
    w = np.array([0.5]) if half else np.linalg.solve(np.array(rows), np.array(moments)) if r else np.empty(0)
    scale, factor = (SIGMA, 1.0) if prediction == "eps" else (ALPHA, 1.0)
    d = -scale[i + 1] * b * factor * w / np.array(r)
    current = -scale[i + 1] * np.expm1(hh) - d.sum()
    nodes = [i - m for m in range(1, p)] + ([i + 1] if corrector else [])
    return {i: current, **dict(zip(nodes, d, strict=True))}


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_the_released_linear_system(order, variant, prediction):
    table = da.build(f"unipc{order}_{variant}_{prediction}", VP, TS)
    node = lambda k: max(2 * k - 1, 0)  # noqa: E731 - where the model is called for time k
    scale = ALPHA if prediction == "eps" else SIGMA
    for i in range(TS.size - 1):
        p = min(i + 1, order)
        start = table.grid_nodes[i]
        predicted = {node(k): w for k, w in published_unipc(i, p, prediction, variant, False).items()}
        check(table, node(i + 1), i, {start: scale[i + 1] / scale[i]}, predicted, rtol=1e-9)
        if i < TS.size - 2:
            corrected = {node(k): w for k, w in published_unipc(i, p, prediction, variant, True).items()}
            check(table, table.grid_nodes[i + 1], i, {start: scale[i + 1] / scale[i]}, corrected, rtol=1e-8)


def test_unipc_lowers_its_order_at_the_end():
    """lower_order_final: the step i of N takes min(i + 1, p, N − i) nodes, its corrector one more."""
    steps = TS.size - 1
    for order in (2, 3, 4):
        for lower in (False, True):
            table = da.unipc(VP, TS, order, lower_order_final=lower)
            for i in range(steps):
                p = min(i + 1, order, steps - i if lower else steps)
                assert np.count_nonzero(table.outputs[2 * i + 1]) == p, (order, lower, i)
                if i < steps - 1:
                    assert np.count_nonzero(table.outputs[2 * i + 2]) == p + 1, (order, lower, i)
    plain, lowered = da.unipc(VP, TS, 3), da.unipc(VP, TS, 3, lower_order_final=True)
    assert np.array_equal(plain.outputs[: 2 * steps - 3], lowered.outputs[: 2 * steps - 3])
    assert np.allclose(lowered.outputs[-1, -3], da.build("dpmpp_1", VP, TS).outputs[-1, -2], rtol=1e-12)


# -- PNDM -----------------------------------------------------------------------------------------
def test_pndm_is_its_start_and_then_ipndm():
    """After the start every row is iPNDM's; the start is the classical Runge–Kutta rule through DDIM transfers."""
    ipndm4, ipndm2 = da.build("ipndm4", VP, TS), da.build("ipndm2", VP, TS)
    for name, started, other in (("f_pndm", 3, ipndm4), ("s_pndm", 1, ipndm2), ("plms", 1, ipndm4)):
        table = da.build(name, VP, TS)
        nodes = np.array(table.grid_nodes)
        for i in range(started, TS.size - 1):
            assert np.allclose(table.outputs[nodes[i + 1], nodes[:-1]], other.outputs[i + 1, :-1], atol=1e-14)
            assert np.count_nonzero(table.outputs[nodes[i + 1]]) == min(i + 1, np.count_nonzero(other.outputs[-1]))
        whole = SIGMA[1] - ALPHA[1] / ALPHA[0] * SIGMA[0]
        weights = np.array([1, 2, 2, 1]) / 6 if name == "f_pndm" else np.array([0.5, 0.5])
        assert np.allclose(table.outputs[nodes[1], : weights.size], whole * weights, rtol=1e-10)
        middle = table.times[1 : nodes[1]]
        expected = [0.5 * (TS[0] + TS[1])] * 2 + [TS[1]] if name == "f_pndm" else [TS[1]]
        assert np.allclose(middle, expected, rtol=1e-15)


def test_each_stage_of_the_start_of_pndm_is_a_transfer_with_the_eps_before_it():
    """x₁ = φ(x, e₀), x₂ = φ(x, e₁) in the middle, x₃ = φ(x, e₂) at the end  [PNDM, eq. 13]."""
    table = da.build("f_pndm", VP, TS)
    for i in range(3):
        first = 4 * i
        for stage, uses in ((1, 0), (2, 1), (3, 2)):
            row = first + stage
            ratio = float(VP.alpha(table.times[row])) / ALPHA[i]
            on_e = float(VP.sigma(table.times[row])) - ratio * SIGMA[i]
            check(table, row, i, {first: ratio}, {first + uses: on_e}, rtol=1e-10)
    table = da.build("s_pndm", VP, TS)
    check(table, 1, 0, {0: ALPHA[1] / ALPHA[0]}, {0: SIGMA[1] - ALPHA[1] / ALPHA[0] * SIGMA[0]}, rtol=1e-10)


def test_the_transfer_of_pndm_is_ddim():
    """x' = x + (A' − A)(x/(√A(√A + √A')) − e/(√A(√((1−A')A) + √((1−A)A')))), A = α²  [PNDM, eq. 11]."""
    a, b = ALPHA[2] ** 2, ALPHA[3] ** 2
    on_x = 1 + (b - a) / (np.sqrt(a) * (np.sqrt(a) + np.sqrt(b)))
    on_e = -(b - a) / (np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b)))
    check(da.build("ddim", VP, TS), 3, 2, {2: on_x}, {2: on_e})


# -- EDM ------------------------------------------------------------------------------------------
def test_edm_heun_ends_at_zero_with_an_euler_step():
    """[EDM, algorithm 1], 2N − 1 calls, final σ = 0."""
    edm = da.EDM()
    sigmas = np.append(da.grid(edm, 17, "rho7"), 0.0)
    table = da.build("edm_heun", edm, sigmas)
    assert table.nfe == 2 * 18 - 1
    mix = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    denoise, u = mix.x0(edm), 80 * np.linspace(-1, 1, 5)
    x = u
    for a, b in pairwise(sigmas):
        d = (u - denoise(u, a)) / a
        euler = u + (b - a) * d
        u = euler if b == 0 else u + (b - a) * (d + (euler - denoise(euler, b)) / b) / 2
    assert np.allclose(da.run(table, mix.eps(edm), x), u, rtol=1e-12)


def test_edm_heun_is_rho_heun_but_for_its_last_step():
    ts = da.grid(da.EDM(), 9, "rho7")
    full, ours = da.build("rhork_2heun", da.EDM(), ts), da.build("edm_heun", da.EDM(), ts)
    n = ours.times.size - 1
    assert np.allclose(full.states[:n, :n], ours.states[:n, :n], atol=1e-14)
    assert np.allclose(full.outputs[:n, :n], ours.outputs[:n, :n], atol=1e-12)
    assert np.count_nonzero(ours.outputs[n]) == 1


def test_edm_churn_is_algorithm_2():
    edm = da.EDM(0.01, 10.0)
    ts = da.grid(edm, 6, "rho7", t_start=5.0)
    table = da.edm_churn(edm, ts, churn=1.2, rho_min=0.05, noise_scale=1.007)
    mix, u = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1]), np.linspace(-2, 2, 5)
    rng = np.random.default_rng(0)
    noises, x = rng.standard_normal((6, 5)), u
    used = iter(noises)
    eps = mix.eps(edm)
    for i, (a, b) in enumerate(pairwise(ts)):
        gamma = min(1.2 / 6, np.sqrt(2) - 1) if a >= 0.05 else 0.0
        hat = a + gamma * a
        if gamma:
            u = u + np.sqrt(hat**2 - a**2) * 1.007 * next(used)
        d = eps(u, hat)
        euler = u + (b - hat) * d
        u = euler if i == 5 else u + (b - hat) * (d + eps(euler, b)) / 2
    assert 0 < table.noise.shape[1] < 6
    assert np.allclose(da.run(table, eps, x, list(noises[: table.noise.shape[1]])), u, rtol=1e-11)
    widest = da.edm_churn(edm, da.grid(edm, 4, "rho7"), churn=100)  # capped at √2 − 1, and at the process's range
    assert widest.times.max() == 10.0
    assert np.allclose(widest.times[[3, 6, 9]] / widest.times[[2, 5, 8]], np.sqrt(2))


# -- reversible -----------------------------------------------------------------------------------
def test_bdia_is_the_published_recursion():
    """z_next = γ z_before − γ DDIM(t → before | z_t) + DDIM(t → next | z_t)."""
    for gamma in (0.3, 1.0):
        table = da.bdia(VP, TS, gamma)
        for i in range(1, TS.size - 1):
            forward = lambda j, i=i: (ALPHA[j] / ALPHA[i], SIGMA[j] - ALPHA[j] / ALPHA[i] * SIGMA[i])  # noqa: E731
            back, ahead = forward(i - 1), forward(i + 1)
            states = {i - 1: gamma, i: ahead[0] - gamma * back[0]}
            check(table, i + 1, i, states, {i: ahead[1] - gamma * back[1]}, rtol=1e-9)


def test_bdia_in_x0_is_the_same_recursion_with_the_steps_of_dpm_solver_plus_plus():
    for gamma in (0.3, 1.0):
        table = da.bdia(VP, TS, gamma, prediction="x0")
        for i in range(1, TS.size - 1):
            back, ahead = ((SIGMA[j] / SIGMA[i], ALPHA[j] - SIGMA[j] / SIGMA[i] * ALPHA[i]) for j in (i - 1, i + 1))
            states = {i - 1: gamma, i: ahead[0] - gamma * back[0]}
            check(table, i + 1, i, states, {i: ahead[1] - gamma * back[1]}, rtol=1e-9)


def test_belm_is_the_family_of_the_two_step_methods():
    """G = γ α_before/α_next is BDIA, (Δ/Δ_before)² O-BELM; exact for constant ε whatever G is, and not for other p."""
    for gamma in (0.4, 1.0):
        assert da.distance(belm(VP, TS, gamma * ALPHA[:-2] / ALPHA[2:]), da.bdia(VP, TS, gamma)) <= 1e-13
    h = np.diff(RHO)
    assert np.allclose(belm(VP, TS, (h[1:] / h[:-1]) ** 2).outputs, da.build("obelm", VP, TS).outputs, rtol=1e-9)
    for prediction, variable in (("eps", "rho"), ("x0", "inv_rho")):
        table = belm(VP, TS, 0.7, prediction=prediction)
        assert set(da.exactness_degree(table, VP, prediction, variable).tolist()) == {0}
        assert np.isclose(da.invert(table).growth(VP), 0.7 ** -(TS.size - 2.0), rtol=1e-9)


def test_obelm_is_the_published_recursion():
    table = da.build("obelm", VP, TS)
    h = -np.diff(RHO)
    for i in range(1, TS.size - 1):
        share = (h[i] / h[i - 1]) ** 2
        states = {i - 1: share * ALPHA[i + 1] / ALPHA[i - 1], i: (1 - share) * ALPHA[i + 1] / ALPHA[i]}
        output = -h[i] * (h[i] + h[i - 1]) / h[i - 1] * ALPHA[i + 1]
        check(table, i + 1, i, states, {i: output}, rtol=1e-10)


def test_reversible_heun_is_the_published_pair():
    process = da.EDM(0.05, 10.0)
    ts = da.grid(process, 6, "rho7")
    mix, y = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.3, 0.2]), np.linspace(-5, 5, 4)
    eps, x = mix.eps(process), y
    hat, f = y, eps(y, ts[0])
    for a, b in pairwise(ts):
        hat = 2 * y - hat + (b - a) * f
        after = eps(hat, b)
        y, f = y + 0.5 * (b - a) * (f + after), after
    assert np.allclose(da.run(da.build("reversible_heun", process, ts), eps, x), y, rtol=1e-12)


# -- with noise -----------------------------------------------------------------------------------
@pytest.mark.parametrize("lam", [0.3, 1.0, 1.4])
def test_the_exact_step_of_the_lambda_family(lam):
    """ε and x₀ frozen, by quadrature of dx = [f x − ½(1 + λ²) g² score] dt + λ g dw."""
    for prediction in ("eps", "x0"):
        table = da.adams(VP, TS, 0, prediction=prediction, variable="lam", lam_sde=lam)
        i = 3
        t, s = TS[i], TS[i + 1]

        def rate(u, prediction=prediction):  # of the linear part, and the factor of the prediction
            half = 0.5 * (1 + lam**2) * float(VP.diffusion_squared(u))
            sigma = float(VP.sigma(u))
            if prediction == "eps":
                return float(VP.drift(u)), half / sigma
            return float(VP.drift(u)) + half / sigma**2, -half * float(VP.alpha(u)) / sigma**2

        def transition(u, rate=rate, s=s):
            return np.exp(quad(lambda w: rate(w)[0], u, s, epsabs=1e-13)[0])

        on_p = quad(lambda u: transition(u) * rate(u)[1], t, s, epsrel=1e-11)[0]
        noise = quad(lambda u: transition(u) ** 2 * lam**2 * float(VP.diffusion_squared(u)), s, t, epsrel=1e-11)[0]
        check(table, i + 1, i, {i: transition(t)}, {i: on_p}, noise=np.sqrt(noise), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.25, 1.0, 2.0])
def test_the_general_eta_of_k_diffusion_is_lambda_squared(eta):
    """x' = (s'/s) e^{−ηh} x + (1 − e^{−(1+η)h}) D + s' √(1 − e^{−2ηh}) z, and 2M's ½(1 − e^{−(1+η)h})(D₀ − D₁)/r."""
    ve = da.VE(0.02, 20.0)
    ts = da.grid(ve, 6, "rho7")
    sigma, h = ve.sigma(ts), np.diff(ve.lam(ts))
    first = da.adams(ve, ts, 0, prediction="x0", variable="lam", lam_sde=eta**0.5)
    second = da.adams(ve, ts, 1, prediction="x0", variable="lam", lam_sde=eta**0.5, rule="midpoint")
    for i in range(1, 6):
        on_x = sigma[i + 1] / sigma[i] * np.exp(-eta * h[i])
        whole, noise = -np.expm1(-(1 + eta) * h[i]), sigma[i + 1] * np.sqrt(-np.expm1(-2 * eta * h[i]))
        check(first, i + 1, i, {i: on_x}, {i: whole}, noise=noise)
        extra = 0.5 * whole * h[i] / h[i - 1]
        check(second, i + 1, i, {i: on_x}, {i: whole + extra, i - 1: -extra}, noise=noise)


def test_sde_dpm_solver_in_eps():
    table = da.build("sde_dpm_2m", VP, TS)
    for i in range(1, TS.size - 1):
        whole, r = -2 * SIGMA[i + 1] * np.expm1(H[i]), H[i - 1] / H[i]
        outputs = {i: whole * (1 + 1 / (2 * r)), i - 1: -whole / (2 * r)}
        noise = SIGMA[i + 1] * np.sqrt(np.expm1(2 * H[i]))
        check(table, i + 1, i, {i: ALPHA[i + 1] / ALPHA[i]}, outputs, noise=noise)


def test_the_third_order_of_sde_dpm_solver_is_k_diffusions():
    """α (φ₁ D₀ + φ₂ D₁ − φ₃ D₂), φ₁ = 1 − e^{−2h}, φ₂ = 1 − φ₁/2h, φ₃ = φ₂/2h − ½; the exact weights have 2 φ₃."""
    released, exact = da.build("sde_dpmpp_3m", VP, TS), da.build("sde_dpmpp_3m_exact", VP, TS)
    for i in range(2, TS.size - 1):
        h, r0, r1 = H[i], H[i - 1] / H[i], H[i - 2] / H[i]
        d10, d11 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
        d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
        phi1 = -np.expm1(-2 * h)
        phi2 = 1 - phi1 / (2 * h)
        phi3 = phi2 / (2 * h) - 0.5
        for table, factor in ((released, 1), (exact, 2)):
            weights = ALPHA[i + 1] * (phi1 * np.array([1, 0, 0]) + phi2 * d1 - factor * phi3 * d2)
            outputs = dict(zip([i, i - 1, i - 2], weights, strict=True))
            start, noise = SIGMA[i + 1] / SIGMA[i] * np.exp(-h), SIGMA[i + 1] * np.sqrt(phi1)
            check(table, i + 1, i, {i: start}, outputs, noise=noise, rtol=1e-9)


def test_seeds_2_carries_one_noise_path_through_the_step():
    """[SEEDS-2; consistent noise] n₁² + n₂² = 1 − e^{−2h}, the stage's noise being the first part of the step's.

    As released the step ends with σ_s (n₂ z₁ + n₁ z₂), n₁ = √(1 − e^{−2rh}), n₂ = √(e^{−2rh} − e^{−2h}): the same at
    r = ½, and not elsewhere.
    """
    ve = da.VE(0.02, 20.0)
    ts = da.grid(ve, 5, "rho7")
    sigma, h = ve.sigma(ts), np.diff(ve.lam(ts))
    for r in (0.5, 0.3, 0.8):
        table = da.singlestep(ve, ts, 2, prediction="x0", shares=(r,), lam_sde=1.0)
        for i in range(5):
            middle = float(ve.sigma(table.times[2 * i + 1]))
            n1, n2 = np.sqrt(-np.expm1(-2 * r * h[i])), np.sqrt(np.exp(-2 * r * h[i]) - np.exp(-2 * h[i]))
            stage_then_rest = np.exp(-(1 - r) * h[i]) * n1
            rest = np.sqrt(-np.expm1(-2 * (1 - r) * h[i]))
            found = table.noise[2 * i + 2, 2 * i : 2 * i + 2] / sigma[i + 1]
            assert np.allclose(table.noise[2 * i + 1, 2 * i], middle * n1, rtol=1e-10)
            assert np.allclose(found, [stage_then_rest, rest], rtol=1e-10)
            assert np.isclose(np.sum(found**2), -np.expm1(-2 * h[i]), rtol=1e-10)
            assert np.isclose(n1**2 + n2**2, -np.expm1(-2 * h[i]), rtol=1e-10)
            assert np.allclose(found, [n2, n1], rtol=1e-9) == (r == 0.5)


def test_the_stage_of_2s_ancestral_is_at_the_geometric_mean_of_its_own_step():
    """ρ_m = √(ρ_t ρ_down): the middle in λ of the deterministic step, which stops short of the grid's next level."""
    for eta in (0.0, 0.5, 1.0):
        table = da.ancestral(VP, TS, eta, second=True)
        up = eta * RHO[1:] * np.sqrt(1 - (RHO[1:] / RHO[:-1]) ** 2)
        down = np.sqrt(RHO[1:] ** 2 - up**2)
        middle = np.sqrt(RHO[:-1] * down)
        assert np.allclose(VP.rho(table.times[1::2]), middle, rtol=1e-11)
        for i in range(TS.size - 1):
            a = float(VP.alpha(table.times[2 * i + 1]))
            at_middle = {2 * i: a * (1 - middle[i] / RHO[i])}
            check(table, 2 * i + 1, i, {2 * i: a * middle[i] / (ALPHA[i] * RHO[i])}, at_middle, rtol=1e-9)
            states = {2 * i: ALPHA[i + 1] * down[i] / (ALPHA[i] * RHO[i])}
            outputs = {2 * i + 1: ALPHA[i + 1] * (1 - down[i] / RHO[i])}
            check(table, 2 * i + 2, i, states, outputs, noise=ALPHA[i + 1] * up[i] if eta else None, rtol=1e-9)


def test_churn_is_bounded_on_both_sides():
    """No noise where ρ < S_min or ρ > S_max; both bounds included."""
    edm = da.EDM(0.01, 10.0)
    ts = da.grid(edm, 6, "rho7", t_start=5.0)
    for low, high in ((ts[4], ts[1]), (0.0, ts[2]), (ts[3], np.inf)):
        table = da.edm_churn(edm, ts, churn=1.0, rho_min=low, rho_max=high)
        expected = [i for i in range(6) if low <= ts[i] <= high]
        assert np.allclose(table.intervals[:, 0], ts[expected] ** 2)
        assert 0 < len(expected) < 6


def test_ddim_eta_and_its_names():
    """DDIM(0) = DDIM; DDIM(1) = DDPM = SDE-DPM-Solver++1 = ancestral Euler; on VE = score SDE's ancestral predictor."""
    for process in (VP, da.VE(0.02, 20.0), da.RectifiedFlow(), da.VPCosine()):
        ts = da.grid(process, 6)
        one = da.ddim_eta(process, ts, 1.0)
        plain = da.ddim_eta(process, ts, 0.0)
        assert not plain.stochastic
        assert da.distance(plain, da.build("ddim", process, ts)) <= 1e-12 * float(process.rho(ts[0]))
        tolerance = 1e-12 * (1 + np.abs(one.butcher().weights).max() + np.abs(one.noise).max())
        for name in ("ddpm", "euler_ancestral", "ancestral_ve", "resfusion"):
            assert da.distance(one, da.build(name, process, ts)) <= tolerance, name
        sde = da.build("sde_dpmpp_1", process, ts).in_terms_of(process, "eps")
        assert da.distance(one, sde) <= 10 * tolerance
        for eta in (0.3, 0.8):
            assert da.distance(da.ddim_eta(process, ts, eta), da.ancestral(process, ts, eta)) <= tolerance
        assert da.distance(da.build("ddpm_large", process, ts), da.build("ancestral_vp", process, ts)) == 0


def test_ddpm_is_algorithm_2():
    """x_s = (x − β/√(1 − ᾱ_t) ε)/√(1 − β) + √β̃ z, β̃ = (1 − ᾱ_s)/(1 − ᾱ_t) β, 1 − β = ᾱ_t/ᾱ_s."""
    for name, large in (("ddpm", False), ("ddpm_large", True)):
        table = da.build(name, VP, TS)
        for i in range(TS.size - 1):
            beta = 1 - (ALPHA[i] / ALPHA[i + 1]) ** 2
            root = np.sqrt(1 - beta)
            variance = beta if large else SIGMA[i + 1] ** 2 / SIGMA[i] ** 2 * beta
            check(table, i + 1, i, {i: 1 / root}, {i: -beta / SIGMA[i] / root}, noise=np.sqrt(variance))


def test_score_sde_predictors():
    """Reverse diffusion: x − f + G² s + G z, f = (√(1 − β) − 1) x on VP; VE: x + (σ² − σ₋²) s, noise √(σ² − σ₋²)."""
    table = da.build("reverse_diffusion", VP, TS)
    for i in range(TS.size - 1):
        beta = 1 - (ALPHA[i] / ALPHA[i + 1]) ** 2
        check(table, i + 1, i, {i: 2 - np.sqrt(1 - beta)}, {i: -beta / SIGMA[i]}, noise=np.sqrt(beta))
    ve = da.VE(0.02, 20.0)
    ts = da.grid(ve, 5)
    sigma = ve.sigma(ts)
    for name in ("reverse_diffusion", "ancestral_ve"):
        table = da.build(name, ve, ts)
        for i in range(5):
            gap = sigma[i] ** 2 - sigma[i + 1] ** 2
            noise = np.sqrt(gap) * (sigma[i + 1] / sigma[i] if name == "ancestral_ve" else 1)
            check(table, i + 1, i, {i: 1.0}, {i: -gap / sigma[i]}, noise=noise)


def test_euler_maruyama_at_lambda_zero_is_naive_euler_and_the_flow_in_v_too():
    for process in (VP, da.VE(0.02, 20.0), da.VPCosine()):
        ts = da.grid(process, 6)
        naive = da.build("euler", process, ts)
        assert da.distance(da.euler_maruyama(process, ts, 0.0), naive) <= 1e-13 * float(process.rho(ts[0]))
        flow = da.build("flow_euler", process, ts).in_terms_of(process, "eps")
        assert da.distance(flow, naive) <= 1e-11 * (1 + np.abs(naive.butcher().weights).max())


def test_flow_grpo_is_the_lambda_family():
    """x + dt (v + g²/(2t)(x + (1 − t) v)) + g √|dt| z, dt < 0, g = a √(t/(1 − t))  [score = −(x + (1 − t) v)/t]."""
    flow, a = da.RectifiedFlow(), 0.7
    ts = da.grid(flow, 5, "t1", 0.95, 0.05)
    table = da.build("flow_sde", flow, ts)
    for i, (t, dt) in enumerate(zip(ts[:-1], np.diff(ts), strict=True)):
        g2 = a**2 * t / (1 - t)
        outputs = {i: dt * (1 + g2 / (2 * t) * (1 - t))}
        check(table, i + 1, i, {i: 1 + dt * g2 / (2 * t)}, outputs, noise=np.sqrt(g2 * -dt), rtol=1e-10)


def test_analytic_dpm_is_the_published_variance():
    moments = np.linspace(0.9, 0.5, TS.size - 1)
    for eta in (0.0, 0.6, 1.0):
        table = da.analytic_dpm(VP, TS, moments, eta)
        for i in range(TS.size - 1):
            a, b = ALPHA[i] ** 2, ALPHA[i + 1] ** 2
            lam2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
            clipped = np.clip((1 - a) / a * (1 - moments[i]), 0, 1)
            variance = lam2 + (np.sqrt(b) - np.sqrt((1 - b - lam2) * a / (1 - a))) ** 2 * clipped
            assert np.isclose(table.noise[i + 1].sum(), np.sqrt(variance), rtol=1e-9)
    ddpm_form = []
    for i in range(TS.size - 1):  # the DDPM form of the same variance
        a, b = ALPHA[i] ** 2, ALPHA[i + 1] ** 2
        beta = 1 - a / b
        clipped = np.clip((1 - a) / a * (1 - moments[i]), 0, 1)
        ddpm_form.append(np.sqrt(beta * (1 - b) / (1 - a) + b * beta**2 / (1 - a) ** 2 * clipped))
    assert np.allclose(np.diag(da.analytic_dpm(VP, TS, moments, 1.0).noise, -1), ddpm_form, rtol=1e-9)
    clipped = da.analytic_dpm(VP, TS, moments, last_std=2 * 2 / 255 * np.sqrt(np.pi / 2))
    assert np.isclose(clipped.noise[-1].sum(), 4 / 255 * np.sqrt(np.pi / 2))


def test_analytic_dpm_clips_and_has_the_moments_of_normal_data_by_default():
    """Γ > 1 would be a negative covariance: clipped to 0, DDIM(η)'s noise; a lower bound of 0.2 adds 0.2 weight²."""
    too_large = np.full(TS.size - 1, 1.5)
    for eta in (0.3, 1.0):
        plain = da.ddim_eta(VP, TS, eta)
        assert np.allclose(da.analytic_dpm(VP, TS, too_large, eta).noise, plain.noise, rtol=1e-13)
        clipped = da.analytic_dpm(VP, TS, too_large, eta, clip=(0.2, 1.0))
        weight = ALPHA[1:] - np.sqrt(SIGMA[1:] ** 2 - np.diag(plain.noise, -1) ** 2) * ALPHA[:-1] / SIGMA[:-1]
        extra = np.diag(clipped.noise, -1) ** 2 - np.diag(plain.noise, -1) ** 2
        assert np.allclose(extra, 0.2 * weight**2, rtol=1e-9)
    assert not da.analytic_dpm(VP, TS, too_large, 0.0).stochastic
    for process in (VP, da.SubVP(), da.EDM(0.05, 10.0)):
        ts = da.grid(process, 5, "t2")
        exact = float(process.alpha(ts[-1])) ** 2 + float(process.sigma(ts[-1])) ** 2
        found = [da.output_law(da.analytic_dpm(process, ts), process, 0.0, v)[1] for v in (1.0, 0.8)]
        assert np.isclose(found[0], exact, rtol=1e-10)
        assert abs(found[1] - exact + float(process.alpha(ts[-1])) ** 2 * 0.2) > 1e-3


def test_the_one_step_is_the_middle_one():
    for steps, middle in ((5, 2), (6, 3), (7, 3), (1, 0)):
        ts = da.grid(VP, steps, "t2", 0.9, 0.01)
        default = da.one_sde_step(VP, ts)
        assert np.flatnonzero(default.noise.any(axis=1)).tolist() == [middle + 1]
        assert da.distance(default, da.one_sde_step(VP, ts, middle)) == 0


def test_one_sde_step_inside_an_ode_sampler():
    table, ddim = da.one_sde_step(VP, TS, 2), da.build("ddim", VP, TS)
    one = da.ddim_eta(VP, TS, 1.0)
    for row in range(1, TS.size):
        other = one if row == 3 else ddim
        assert np.allclose(table.outputs[row], other.outputs[row], atol=1e-13)
        assert table.noise[row].any() == (row == 3)
    assert table.noise.shape == (TS.size, 1)
    assert np.allclose(table.intervals, [RHO[2:4] ** 2])
    mixed = da.ddim_eta(VP, TS[:4], np.array([0, 0, 1])).then(da.build("ddim", VP, TS[3:]))
    assert da.distance(mixed, table) <= 1e-12


def test_gdss_variances():
    """Backwards in time the linear part has the variance e^I − 1, I = ∫β over half a step; released: 1 − e^{−I}."""
    exact, published = da.build("gdss_s4", VP, TS), da.build("gdss_s4_published", VP, TS)
    for i in range(TS.size - 1):
        middle = 0.5 * (TS[i] + TS[i + 1])
        integral = quad(lambda t: float(VP.diffusion_squared(t)), middle, TS[i], epsrel=1e-12)[0]
        assert np.isclose(exact.noise[3 * i + 1, 2 * i] ** 2, np.expm1(integral), rtol=1e-9)
        assert np.isclose(published.noise[3 * i + 1, 2 * i] ** 2, -np.expm1(-integral), rtol=1e-9)
        expected = float(VP.diffusion_squared(TS[i])) * (TS[i] - TS[i + 1])
        check(exact, 3 * i + 2, i, {3 * i + 1: 1.0}, {3 * i: expected})


def coupled_law(variance, steps):
    """Covariance of GDSS's output for two coupled components with their own processes, by feeding unit vectors."""
    processes = (da.VPLinear(0.1, 1.0), da.VPLinear(0.1, 5.0))
    covariance = np.array([[0.5, 0.3], [0.3, 0.4]])
    ts = da.grid(processes[0], steps, "t1", 1.0, 0.1)

    def joint(t):
        alpha = np.array([float(p.alpha(t)) for p in processes])
        sigma = np.array([float(p.sigma(t)) for p in processes])
        return alpha[:, None] * covariance * alpha + np.diag(sigma**2)

    tables = [da.gdss_splitting(p, ts, variance) for p in processes]
    noises, columns = tables[0].noise.shape[1], 2 + 2 * tables[0].noise.shape[1]
    basis = np.eye(columns).reshape(columns, -1, 2).transpose(1, 2, 0)  # x_T, then the noises, per component
    out = da.run_many(tables, lambda x, t: -np.linalg.solve(joint(float(t[0])), x), basis[0], list(basis[1:]))
    assert noises == 2 * steps
    start = np.linalg.cholesky(joint(ts[0]))
    maps = np.concatenate([out[:, :2] @ start, out[:, 2:]], axis=1)
    return np.abs(maps @ maps.T - joint(ts[-1])).max()


def test_gdss_on_coupled_linear_processes_has_its_law_to_first_order_with_either_variance():
    """A block covariance, propagated exactly; the released variance costs a factor of 1.84, not the order."""
    errors = {v: [coupled_law(v, n) for n in (20, 40, 80, 160)] for v in ("exact", "published")}
    for v, found in errors.items():
        slopes = -np.diff(np.log2(found))
        assert abs(slopes[-1] - 1) < 0.1, (v, found)
    assert 1.8 < errors["published"][-1] / errors["exact"][-1] < 1.9


# -- mean-reverting -------------------------------------------------------------------------------
MRS_ROWS = [n for n in da.SOLVERS if n.startswith("mrs_")]


@pytest.mark.parametrize("name", MRS_ROWS)
def test_mrs_is_the_solver_on_the_shifted_state_and_the_mean_is_a_fixed_point(name):
    mu = np.array([1.5, -0.7])
    outer = da.MeanReverting(VP, mu, noise_scale=0.196)
    inner = da.MeanReverting(VP, 0.0, noise_scale=0.196)
    table, plain = da.build(name, outer, TS), da.build(name, inner, TS)
    x = np.random.default_rng(0).standard_normal((3, 2))
    marginals = [da.GaussianMixture([0.3, 0.7], [-1.0, 0.5], [0.1, 0.2]), da.GaussianMixture([1.0], [0.3], [0.2])]
    centred = da.ProductMixture(marginals)
    shifted = da.ProductMixture(
        [da.GaussianMixture(m.weights, m.means + c, m.covariances) for m, c in zip(marginals, mu, strict=True)]
    )
    a = da.run(plain, centred.model(inner, table.prediction), x, noise=1)
    b = da.run(table, shifted.model(outer, table.prediction), x + mu, noise=1)
    assert np.allclose(b - mu, a, atol=1e-12 * (1 + np.abs(table.states).max()))
    at_mean = np.broadcast_to(mu, (3, 2)).copy()
    resting = (lambda u, t: u) if table.prediction == "x0" else (lambda u, t: 0.0 * u)
    zero = [np.zeros((3, 2))] * table.noise.shape[1]
    _, path = da.run(table, resting, at_mean, zero or None, keep="all")
    for state in path.states.values():
        assert np.allclose(state, mu, atol=1e-13)


def test_mrs_updates_are_the_published_ones():
    """ODE-data and SDE-data second order, with the published terms in μ."""
    mu, c = 0.8, 0.3
    process = da.MeanReverting(VP, mu, noise_scale=c)
    sigma = c * SIGMA
    lam = np.log(ALPHA / sigma)
    for kind, lam_sde in (("ode", 0), ("sde", 1)):
        table = da.build(f"mrs_{kind}_x0_2", process, TS)
        x, d = np.array([0.4, -1.1]), np.array([0.2, 0.5])
        outputs = iter([d * (1 + 0.3 * k) for k in range(TS.size)])
        _, path = da.run(
            table, lambda u, t, it=outputs: next(it), x, [np.ones(2)] * table.noise.shape[1] or None, keep="all"
        )
        for i in range(1, TS.size - 1):
            h, r = lam[i + 1] - lam[i], (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            now, d0 = path.states[i], path.outputs[i]
            d1 = (path.outputs[i] - path.outputs[i - 1]) / r
            ratio, a, b = sigma[i + 1] / sigma[i], ALPHA[i], ALPHA[i + 1]
            if lam_sde:
                q = np.exp(-2 * h)
                value = ratio * np.exp(-h) * now + b * ((1 - q) * d0 + (1 - (1 - q) / (2 * h)) * d1)
                value += mu * (1 - ratio * np.exp(-h) - b * (1 - q))
                value += sigma[i + 1] * np.sqrt(1 - q)
            else:
                phi1 = np.expm1(-h)
                value = ratio * now - b * (phi1 * d0 - (phi1 / h + 1) * d1) + mu * (1 - ratio + ratio * a - b)
            assert np.allclose(path.states[i + 1], value, atol=1e-11), (kind, i)


def test_resfusion():
    """R = 0 gives DDPM; resnoise carries the residual; sampling starts where α = ½, whatever the data there."""
    assert da.distance(da.build("resfusion", VP, TS), da.build("ddpm", VP, TS)) == 0
    start = da.resfusion_start(VP)
    assert np.isclose(VP.alpha(start), 0.5, rtol=1e-12)
    residual = np.array([0.7, -0.2])
    process = da.MeanReverting(VP, residual)
    weight = dict(zip(TS[:-1].tolist(), da.resnoise_weight(VP, TS), strict=True))
    data = da.ProductMixture([da.GaussianMixture([1.0], [m], [0.1]) for m in (0.3, -0.5)])
    eps = data.eps(process)
    x = np.random.default_rng(1).standard_normal((4, 2))
    a = da.run(da.build("ddpm", process, TS), eps, x, noise=3)
    b = da.run(da.build("resfusion", VP, TS), lambda u, t: eps(u, t) + weight[t] * residual, x, noise=3)
    assert np.allclose(a, b, atol=1e-11)
    x0 = np.array([0.4, 0.9])
    point = da.ProductMixture([da.GaussianMixture([1.0], [m], [1e-4]) for m in x0])
    for t, tolerance in ((start, 0.02), (0.7 * start, None)):  # the mean there is half the degraded input, x₀ + R
        sample = point.sample(20_000, 0, process, t)
        gap = np.abs(sample.mean(axis=0) - (x0 + residual) / 2).max()
        alpha = float(process.alpha(t))
        assert np.allclose(sample.mean(axis=0), alpha * x0 + (1 - alpha) * residual, atol=0.02)
        assert gap < tolerance if tolerance else gap > 0.02
    with pytest.raises(ValueError, match="must be variance preserving"):
        da.resfusion_start(da.EDM())


# -- grids ----------------------------------------------------------------------------------------
def test_two_stage_grid_is_the_published_list_of_levels():
    """The Stable Diffusion schedule; the paper interpolates ᾱ, we log ρ: 5e-4 apart at most."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    sd = da.VPDiscrete(np.cumprod(1 - betas))
    lists = {
        (8, 12, 7, 9): [14.6146, 6.7121, 3.6076, 2.1723, 1.4045, 0.9366, 0.6169, 0.3725, 0.1472],
        (5, 8, 5, 6): [14.6146, 4.5188, 1.9615, 1.0010, 0.5015, 0.1320],
        (6, 8, 5, 6): [14.6146, 5.3409, 2.5230, 1.3877, 0.8052, 0.4374, 0.1320],
    }
    for (steps, levels, exponent, cut), sigmas in lists.items():
        ts = da.two_stage_grid(sd, steps, levels=levels, exponent=exponent, cut=cut, t_end=0.0)
        assert np.allclose(sd.rho(ts), sigmas, rtol=5e-4), sd.rho(ts)
    assert np.allclose(da.grid(sd, 8, "twostage", t_end=0.0)[[1, -1]], [857.3, 22.7], atol=0.1)
    with pytest.raises(ValueError, match="cut=12 must be at most levels - 1 = 11"):
        da.two_stage_grid(sd, 8, cut=12)


@given(st.integers(1, 20), st.floats(1.0, 6.0))
def test_the_shift_grid_is_flow_matchings(steps, shift):
    shift = round(shift, 3)
    flow = da.RectifiedFlow()
    ts = da.grid(flow, steps, f"shift{shift}", 0.999, 1e-3)
    back = ts / (shift - (shift - 1) * ts)
    assert np.allclose(np.diff(back), np.diff(back)[0], rtol=1e-9)
    assert (ts[0], ts[-1]) == (0.999, 1e-3)
    assert shift == 1 or np.all(ts[1:-1] > np.linspace(0.999, 1e-3, steps + 1)[1:-1])


def test_a_flow_model_in_other_conventions():
    flow, mix = da.RectifiedFlow(), da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
    velocity, x = mix.v(flow), np.linspace(-2, 2, 5)
    reversed_clock = da.flow_model(lambda u, tau: -velocity(u, 1 - tau), data_time=1.0, noise_time=0.0)
    thousand = da.flow_model(lambda u, tau: velocity(u, tau / 1000), noise_time=1000.0)
    own = da.flow_model(lambda u, tau: velocity(u, tau / 1000) / 1000, noise_time=1000.0, per_own_time=True)
    table = da.build("flow_heun", flow, da.grid(flow, 8, "shift3"))
    expected = da.run(table, velocity, x)
    own_reversed = da.flow_model(
        lambda u, tau: -velocity(u, 1 - tau / 1000) / 1000, data_time=1000.0, noise_time=0.0, per_own_time=True
    )
    for model in (reversed_clock, thousand, own, own_reversed):
        assert np.allclose(da.run(table, model, x), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"noise_time=0.0 must differ from data_time=0.0"):
        da.flow_model(velocity, noise_time=0.0)


# -- all -------------------------------------------------------------------------------------------
@given(processes(), st.data())
def test_first_order_names_are_one_method(process, data):
    ts = data.draw(grids(process))
    ddim = da.build("ddim", process, ts)
    scale = 1 + np.abs(ddim.butcher().weights).max()
    for name in ("dpm_1", "dpmpp_1", "edm_euler", "mrs_ode_eps_1", "mrs_ode_x0_1", "mrs_ode_v_1"):
        table = da.build(name, process, ts)
        assert da.distance(table.in_terms_of(process, "eps"), ddim) <= 1e-11 * scale, name


def test_names_that_are_aliases():
    for a, b in [
        *((f"ipndm_v{k}", f"rhoab{k - 1}") for k in (2, 3, 4)),
        ("dpm_2m_taylor", "logrhoab1"),
        ("dpm_3m_exact", "logrhoab2"),
        ("mrs_ode_x0_2", "dpmpp_2m_exact"),
        ("mrs_sde_x0_3", "sde_dpmpp_3m"),
        ("mrs_sde_eps_2", "sde_dpm_2m_exact"),
        ("seeds_1", "sde_dpm_1"),
    ]:
        assert da.distance(da.build(a, VP, TS), da.build(b, VP, TS)) <= 1e-13, (a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: da.singlestep(VP, TS, 4), "order=4 must be 1, 2 or 3"),
        (lambda: da.singlestep(VP, TS, 2, shares=(1.0,)), r"shares=\(1.0,\) must be 1 increasing"),
        (lambda: da.singlestep(VP, TS, 3, shares=(0.6, 0.3)), "shares=.* must be 2 increasing"),
        (lambda: da.singlestep(VP, [1.0, 0.0], 2), "t=0.0: λ is infinite there"),
        (lambda: da.adams(VP, TS, 1, lam_sde=-1), "lam_sde=-1 must be a finite number >= 0"),
        (lambda: da.adams(VP, TS, 1, prediction="v", lam_sde=1), "prediction='v' has no clock of its own"),
        (lambda: da.adams(VP, TS, 1, rule="middle"), "rule='middle' is unknown; nearest: midpoint"),
        (lambda: da.unipc(VP, TS, 0), "order=0 must be an integer >= 1"),
        (lambda: da.unipc(VP, TS, variant="bh3"), "variant='bh3' is unknown"),
        (lambda: da.unipc(VP, TS, prediction="v"), "prediction='v' is unknown"),
        (lambda: da.pndm(VP, TS, "g"), "kind='g' is unknown"),
        (lambda: da.edm_sampler(VP, TS, 0.0), r"alpha=0.0 must lie in \(0, 1\]"),
        (lambda: da.edm_sampler(VP, TS, 1.5), r"alpha=1.5 must lie in \[0, 1\]"),
        (lambda: da.edm_sampler(da.RectifiedFlow(), [1.0, 0.5]), "ρ is infinite"),
        (lambda: da.edm_churn(VP, TS, churn=-1), "churn=-1 must be"),
        (lambda: da.bdia(VP, TS, 0.0), r"gamma=0.0 must lie in \(0, 1\]"),
        (lambda: da.bdia(VP, TS, 1.1), r"gamma=1.1 must lie in \[0, 1\]"),
        (lambda: da.ddim_eta(VP, TS, 1.2), r"eta=1.2 must lie in \[0, 1\]"),
        (lambda: da.ddpm(VP, TS, "small"), "variance='small' is unknown"),
        (lambda: da.analytic_dpm(VP, TS, [0.5]), "moments=.* must give 7 finite values"),
        (lambda: da.analytic_dpm(VP, TS, -np.ones(7)), "moments=.* must give 7 finite values"),
        (lambda: da.one_sde_step(VP, TS, 7), r"step=7 must lie in \[0, 6\]"),
        (lambda: da.ancestral(VP, TS, -0.1), "eta=-0.1 must be"),
        (lambda: da.ancestral(VP, TS, 9.0, second=True), "leaves ρ_down = 0"),
        (lambda: da.mrs(VP, TS, 4), "order=4 must be 1, 2 or 3"),
        (lambda: da.mrs(VP, TS, prediction="score"), "prediction='score' is unknown"),
        (lambda: da.gdss_splitting(VP, TS, "other"), "variance='other' is unknown"),
        (lambda: da.MeanReverting(VP, 0.0, noise_scale=0.0), "noise_scale=0.0 must be a positive"),
        (lambda: da.singlestep(VP, TS, 2, shares=0.5), "shares=0.5 must be 1 increasing"),
        (lambda: da.singlestep(VP, TS, 2, shares=("a",)), "shares='a' must be made of real"),
        (lambda: da.singlestep(VP, TS, 2, taylor="no"), "taylor='no' must be True or False"),
        (lambda: da.singlestep(VP, TS, 2, lam_sde=1e4), "lam_sde=10000.0 must be at most 1000"),
        (
            lambda: da.singlestep(VP, TS, 2, prediction="x0", lam_sde=100),
            "lam_sde=100: ρ.* overflows; allowed: at most",
        ),
        (lambda: da.adams(VP, TS, 1, prediction="x0", lam_sde=100.0), "lam_sde=100.0: ρ.* overflows; allowed: at most"),
        (lambda: da.adams(VP, TS, 1, lam_sde=1e4), "lam_sde=10000.0 must be at most 1000"),
        (lambda: da.mrs(VP, TS, 1, prediction="eps", lam_sde=1e4), "lam_sde=10000.0 must be at most 1000"),
        (lambda: da.euler_maruyama(VP, TS, 1e200), r"lam_sde=1e\+200 must be at most 1000"),
        (lambda: da.flow_sde(VP, TS, 1e4), "noise=10000.0 must be at most 1000"),
        (lambda: da.adams(VP, TS, 10**20), "degree=100000000000000000000 must be at most"),
        (lambda: da.unipc(VP, TS, 31), "order=31 must be at most 30"),
        (lambda: da.adams(VP, TS, 1, lower_order_final=1), "lower_order_final=1 must be True or False"),
        (lambda: da.unipc(VP, TS, 1, lower_order_final="no"), "lower_order_final='no' must be True or False"),
        (lambda: da.ancestral(VP, TS, second=None), "second=None must be True or False"),
        (lambda: da.edm_sampler(VP, []), r"ts has shape \(0,\)"),
        (lambda: da.edm_churn(VP, TS, rho_max=None), "rho_max=None must be made of real"),
        (lambda: da.edm_churn(VP, TS, rho_max="x"), "rho_max='x' must be made of real"),
        (lambda: da.edm_churn(VP, TS, rho_max=np.nan), "rho_max=nan must be a number"),
        (lambda: da.edm_churn(VP, TS, rho_max=-1.0), "rho_max=-1.0 must be a number >= 0, or infinite"),
        (lambda: da.edm_churn(da.RectifiedFlow(), [1.0, 0.5]), "ρ is infinite"),
        (lambda: da.bdia(da.RectifiedFlow(), [1.0, 0.5, 0.1]), "t=1.0: ρ=inf there"),
        (lambda: da.bdia(VP, [1.0, 0.5, 0.0], prediction="x0"), "t=0.0: ρ=0 there"),
        (lambda: da.resfusion_start(None), "process=None must be a Process"),
        (lambda: belm(VP, TS, 0.0), "g=0.0 must be positive: one number or 6"),
        (lambda: belm(VP, TS, [0.5]), r"g=\[0.5\] must be positive: one number or 6"),
        (lambda: da.ddim_eta(VP, TS, [1, 2]), r"eta has shape \(2,\); allowed: one number or \(7,\)"),
        (lambda: da.ddim_eta(VP, TS, np.nan), r"eta=nan must lie in \[0, 1\]"),
        (lambda: da.analytic_dpm(VP, TS, clip=(1.0, 0.0)), r"clip=\(1.0, 0.0\) must be two numbers"),
        (lambda: da.analytic_dpm(VP, TS, clip=0.5), "clip=0.5 must be two numbers"),
        (lambda: da.analytic_dpm(VP, TS, clip=(0.0, np.nan)), r"clip=\(0.0, nan\) must be two numbers"),
        (lambda: da.analytic_dpm(VP, TS, eta=1.5), "eta=1.5 must be at most 1"),
        (lambda: da.one_sde_step(VP, TS, 1.5), "step=1.5 must be an integer"),
        (lambda: da.one_sde_step(VP, TS, True), "step=True must be an integer"),
        (lambda: da.one_sde_step(VP, TS, "x"), "step='x' must be an integer"),
        (lambda: da.moment_estimate(None, TS, X, process=VP), "model=None must be a function"),
        (lambda: da.moment_estimate(lambda x, t: x, TS, X), "process=None must be given"),
        (lambda: da.moment_estimate(lambda x, t: x, [1.0, np.nan], X, process=VP), "ts=.* must be finite"),
        (lambda: da.moment_estimate(lambda x, t: x, 1.0, X, process=VP), r"ts has shape \(\)"),
        (lambda: da.moment_estimate(lambda x, t: x, TS, X[:0], process=VP), r"data has shape \(0,"),
        (lambda: da.moment_estimate(lambda x, t: x[:1], TS, X, process=VP), r"model returned shape \(1,\) for data"),
        (lambda: da.moment_estimate(lambda x, t: x * np.nan, TS, X, process=VP), "eps=.* must be finite"),
        (
            lambda: da.gdss_splitting(da.EDM(), [1.0, 0.003, 0.0]),
            "the middle of the step.* 0.0015, below the first time",
        ),
        (lambda: da.two_stage_grid(VP, 8, exponent=1e300), r"exponent=1e\+300 must lie in \[0.1, 100\]"),
        (lambda: da.two_stage_grid(VP, 8, second_exponent=0.0), "second_exponent=0.0 must lie"),
        (lambda: da.flow_model(None), "model=None must be a function"),
        (lambda: da.flow_model(print, data_time=np.nan), "data_time=nan must be finite"),
        (lambda: da.flow_model(print, noise_time=np.inf), "noise_time=inf must be finite"),
        (lambda: da.flow_model(print, per_own_time="no"), "per_own_time='no' must be True or False"),
        (lambda: da.build("flow_sde", da.RectifiedFlow(), [1.0, 0.5]), "the step of flow_sde is singular"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TOO_SHORT = {"dpm_2": 2, "dpm_3_taylor": 3, "dpmpp_2s": 2, "dpmpp_3s": 3, "seeds_2": 2, "seeds_3_x0": 3}


@pytest.mark.parametrize("name", list(da.SOLVERS))
def test_what_cannot_be_built_is_refused_without_a_warning(name):
    """At t = 1 ρ is infinite on `RectifiedFlow`; a step of one ulp has no room for stages."""
    ulp = [0.9, 0.5, np.nextafter(0.5, 0.0), 0.1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for process, ts in ((da.RectifiedFlow(), [1.0, 0.5, 0.1]), (VP, ulp)):
            try:
                table = da.build(name, process, ts)
            except ValueError as error:
                refused = str(error)
            else:
                refused = ""
                assert np.isfinite(table.states).all()
            if process is VP and name in TOO_SHORT:
                assert f"too short a step for {TOO_SHORT[name] - 1} stages" in refused
            if process is not VP and name in ("ddpm", "ddim_eta1", "g2rpo", "analytic_ddim", "unipc2_bh2_eps"):
                assert "t=1.0: ρ=inf there" in refused
