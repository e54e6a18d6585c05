"""The literature as equations between tables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import grids, processes

import deis_analysis as da
from deis_analysis.symbolic.derivations import butcher_order


@given(processes(), st.data())
def test_ddim_has_five_names(process, data):
    ts = data.draw(grids(process))
    ddim = da.build("ddim", process, ts)
    for name in ("tab0", "rhoab0", "rhork_1euler", "ipndm1"):
        assert da.distance(ddim, da.build(name, process, ts)) <= 1e-14, name
    for variable in ("t", "rho", "lam", "inv_rho"):
        assert da.distance(ddim, da.adams(process, ts, 0, variable=variable)) <= 1e-14


@given(processes(), st.data())
def test_ddim_is_the_published_formula(process, data):
    """x_s = (α_s/α_t) x_t + (σ_s − α_s σ_t/α_t) ε  [Song, Meng & Ermon 2021, eq. 12]."""
    ts = data.draw(grids(process))
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    table = da.build("ddim", process, ts)
    assert np.allclose(np.diag(table.states, -1), alpha[1:] / alpha[:-1], rtol=1e-15)
    published = sigma[1:] - alpha[1:] / alpha[:-1] * sigma[:-1]
    assert np.allclose(
        np.diag(table.outputs, -1), published, rtol=0, atol=1e-14 * (1 + sigma[:-1] / alpha[:-1]).max() * 10
    )


@given(processes(), st.data())
def test_frozen_x0_and_frozen_eps_are_the_same_step(process, data):
    """DPM-Solver++(1) = DPM-Solver-1 = DDIM."""
    ts = data.draw(grids(process))
    frozen_x0 = da.adams(process, ts, 0, prediction="x0", variable="lam").in_terms_of(process, "eps")
    ddim = da.build("ddim", process, ts)
    assert da.distance(frozen_x0, ddim) <= 1e-11 * (1 + np.abs(ddim.butcher().weights).max())


def test_frozen_v_is_ddim_on_variance_preserving_processes_only_in_the_angle():
    """On VP, x₀ and ε are frozen together iff v is not: frozen v is another first-order method."""
    process = da.VPLinear()
    ts = da.grid(process, 8)
    frozen_v = da.adams(process, ts, 0, prediction="v").in_terms_of(process, "eps")
    assert da.distance(frozen_v, da.build("ddim", process, ts)) > 1e-2


@given(st.data())
def test_on_rectified_flow_frozen_v_is_ddim_is_euler(data):
    """dx/dt = v = ε − x₀ on a straight path: Euler on the velocity, naive Euler on the ODE and DDIM are one method."""
    flow = da.RectifiedFlow()
    ts = data.draw(grids(flow))
    ddim = da.build("ddim", flow, ts)
    scale = 1 + np.abs(ddim.butcher().weights).max()
    frozen_v = da.adams(flow, ts, 0, prediction="v").in_terms_of(flow, "eps")
    assert da.distance(frozen_v, ddim) <= 1e-10 * scale
    assert da.distance(da.build("euler", flow, ts), ddim) <= 1e-10 * scale


@given(st.floats(0.001, 0.1), st.floats(5, 100), st.integers(0, 4), st.data())
def test_on_edm_tab_is_rhoab_and_euler_is_ddim(low, high, degree, data):
    process = da.EDM(low, high)
    ts = data.draw(grids(process))
    a = da.adams(process, ts, degree, variable="t")
    b = da.adams(process, ts, degree, variable="rho")
    assert da.distance(a, b) <= 1e-13 * (1 + np.abs(b.butcher().weights).max())
    assert da.distance(da.build("euler", process, ts), da.build("ddim", process, ts)) <= 1e-13 * high


@given(st.data())
def test_rhoab_is_the_variable_step_lms_of_k_diffusion(data):
    """Classical Adams–Bashforth coefficients on unequal steps in σ, integrated by NumPy polynomials."""
    process = da.EDM(0.01, 20.0)
    ts = data.draw(grids(process, min_steps=5))
    table = da.build("rhoab3", process, ts)
    for i in range(3, ts.size - 1):
        for j in range(4):
            roots = np.delete(ts[[i, i - 1, i - 2, i - 3]], j)
            basis = np.poly1d(roots, r=True) / np.prod(ts[i - j] - roots)
            integral = np.polyint(basis)(ts[i + 1]) - np.polyint(basis)(ts[i])
            size = np.abs(table.outputs[i + 1]).max() + np.abs(ts[i - 3]) * 1e-3
            assert abs(table.outputs[i + 1, i - j] - integral) <= 1e-7 * size


def test_rhoab1_is_the_printed_formula():
    """[facts: c₀ = ((ρn−ρ1)² − (ρ0−ρ1)²)/(2(ρ0−ρ1)), c₁ = (ρn−ρ0)²/(2(ρ1−ρ0))]"""
    process = da.VPLinear()
    ts = da.grid(process, 6)
    rho, alpha = process.rho(ts), process.alpha(ts)
    table = da.build("rhoab1", process, ts)
    for i in range(1, 6):
        r0, r1, rn = rho[i], rho[i - 1], rho[i + 1]
        c0, c1 = ((rn - r1) ** 2 - (r0 - r1) ** 2) / (2 * (r0 - r1)), (rn - r0) ** 2 / (2 * (r1 - r0))
        assert np.isclose(table.outputs[i + 1, i], alpha[i + 1] * c0, rtol=1e-11)
        assert np.isclose(table.outputs[i + 1, i - 1], alpha[i + 1] * c1, rtol=1e-11)


def test_ei_with_a_frozen_score_on_vp_is_the_closed_form():
    """x_s = Ψ x_t + (Ψ − 1) s_θ, in terms of ε = −σ s."""
    process = da.VPLinear()
    ts = da.grid(process, 7, "t1")
    table = da.build("ei_score", process, ts)
    psi = process.psi(ts[1:], ts[:-1])
    assert np.allclose(np.diag(table.states, -1), psi, rtol=1e-14)
    assert np.allclose(np.diag(table.outputs, -1), -(psi - 1) / process.sigma(ts[:-1]), rtol=1e-12)


def test_ipndm_on_equal_steps_of_rho_is_rhoab():
    """The classical weights are the exact ones there, after the start."""
    process = da.EDM(0.1, 10.0)
    ts = da.grid(process, 9, "t1")
    for terms in (1, 2, 3, 4):
        a, b = da.build(f"ipndm{terms}", process, ts), da.build(f"rhoab{terms - 1}", process, ts)
        assert da.distance(a, b) <= 1e-12
    uneven = da.grid(process, 9, "t2")
    assert da.distance(da.build("ipndm3", process, uneven), da.build("rhoab2", process, uneven)) > 1e-2


@pytest.mark.parametrize("name", list(da.RUNGE_KUTTA))
def test_runge_kutta_tableaux_have_the_order_that_trees_give(name):
    tableau = da.RUNGE_KUTTA[name]
    stages = len(tableau.b)
    full = [[*row, *[0] * (stages - len(row))] for row in tableau.a]
    assert butcher_order(full, tableau.b, tableau.c) == tableau.order
    moments = [sum(b * c**m for b, c in zip(tableau.b, tableau.c, strict=True)) * (m + 1) == 1 for m in range(6)]
    assert moments.index(False) - 1 == tableau.degree


def test_rho_heun_on_edm_is_edms_heun_but_for_its_last_step():
    """[Karras et al. 2022, algorithm 1] with the correction also at the last, non-zero level."""
    process = da.EDM(0.002, 80.0)
    ts = da.grid(process, 6, "rho7")
    mix = da.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    denoise, x = mix.x0(process), 80 * np.linspace(-1, 1, 5)
    u = x
    for a, b in pairwise(ts):
        d = (u - denoise(u, a)) / a
        euler = u + (b - a) * d
        u = u + (b - a) * (d + (euler - denoise(euler, b)) / b) / 2
    found = da.run(da.build("rhork_2heun", process, ts), mix.eps(process), x)
    assert np.allclose(found, u, rtol=1e-11)


@given(processes(), st.integers(0, 3), st.sampled_from(da.PREDICTIONS), st.data())
def test_consistency_on_constants(process, degree, prediction, data):
    """Σ_j F_kj = γ_s (κ(s) − κ(t)) for every degree: polynomials reproduce constants."""
    ts = data.draw(grids(process))
    table = da.adams(process, ts, degree, prediction=prediction, variable="t")
    gamma, kappa = process.gamma(prediction, ts), process.kappa(prediction, ts)
    total = table.outputs.sum(axis=1)[1:]
    scale = gamma[1:] * (np.abs(kappa[1:]) + np.abs(kappa[:-1])) + np.abs(table.outputs).sum(axis=1)[1:]
    assert np.all(np.abs(total - gamma[1:] * np.diff(kappa)) <= 1e-13 * scale)


def test_the_released_riemann_sums_match_to_1e_4_and_no_tighter():
    """DEIS's published code: 10,000-point left Riemann sums. [facts/deis.md §3.1]"""
    process = da.VPLinear(0.1, 20.0)
    ts = da.grid(process, 10, "t2", 1.0, 1e-3)
    worst = []
    for degree in range(4):
        table = da.adams(process, ts, degree)
        for i in range(degree, 10):
            tau = np.linspace(ts[i], ts[i + 1], 10_000, endpoint=False)
            rate = process.kappa_rate("eps", tau) * (ts[i + 1] - ts[i]) / 10_000 * process.alpha(ts[i + 1])
            nodes = ts[i - degree : i + 1][::-1]
            for j in range(degree + 1):
                others = np.delete(nodes, j)
                value = np.sum(rate * np.prod((tau[:, None] - others) / (nodes[j] - others), axis=1))
                worst.append(abs(value - table.outputs[i + 1, i - j]) / np.abs(table.outputs[i + 1]).max())
    assert 5e-5 < max(worst) < 1.2e-4
