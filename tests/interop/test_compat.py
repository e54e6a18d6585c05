"""The drop-in for the released DEIS package, against the published formulas written out again.

The authority shares nothing with the package: weights are integrals over ρ of ℓ_j(t(ρ)), which need no derivative of ᾱ,
by fine Gauss rules; samplers are plain loops in v = x/√ᾱ.
"""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import deis_analysis as da
from deis_analysis.interop import alpha_functions, deis
from deis_analysis.interop.alpha_functions import _Cosine

B0, B1 = 0.1, 20.0
DDPM = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))
XI, OMEGA = np.polynomial.legendre.leggauss(12)


# -- the published formulas again -------------------------------------------------------------------
def linear_alpha(t):
    return np.exp(-B0 * t - 0.5 * (B1 - B0) * t**2)


def linear_time(alpha):
    return (-B0 + np.sqrt(B0**2 - 2.0 * (B1 - B0) * np.log(alpha))) / (B1 - B0)


def cos_alpha(t):
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


def cos_time(alpha):
    return np.arccos(np.sqrt(alpha)) * 2 / np.pi * 1.008 - 0.008


def discrete_alpha(levels):
    return lambda t: np.clip(np.interp(t, np.arange(levels.size), levels), 1e-7, 1 - 1e-7)


def discrete_time(levels):
    return lambda alpha: np.interp(-alpha, -levels, np.arange(levels.size))


def rho_of(alpha_fn, t):
    a = alpha_fn(np.asarray(t, dtype=float))
    return np.sqrt((1 - a) / a)


def reference_weights(alpha_fn, time_fn, ts, degree, variable="t", kinks=(), panels=60):
    """√ᾱ_s ∫ ℓ_j dρ by a Gauss rule in log ρ; row i holds the weights of ε at ts[i], ts[i−1], …"""
    ts = np.asarray(ts, dtype=float)
    weights = np.zeros((ts.size - 1, degree + 1))
    for i in range(ts.size - 1):
        inside = [k for k in kinks if ts[i + 1] < k < ts[i]]
        ends = np.log(rho_of(alpha_fn, np.array([ts[i], *sorted(inside, reverse=True), ts[i + 1]])))
        edges = np.concatenate([np.linspace(a, b, panels + 1)[:-1] for a, b in pairwise(ends)])
        edges = np.append(edges, ends[-1])
        half = 0.5 * np.diff(edges)[:, None]
        rho = np.exp(edges[:-1, None] + half * (1 + XI))
        t = time_fn(1 / (1 + rho**2))
        nodes = ts[i - np.arange(min(i, degree) + 1)]
        z, at = (t, nodes) if variable == "t" else (rho, rho_of(alpha_fn, nodes))
        for j in range(nodes.size):
            basis = np.prod([(z - at[k]) / (at[j] - at[k]) for k in range(nodes.size) if k != j], axis=0)
            weights[i, j] = np.sqrt(alpha_fn(ts[i + 1])) * np.sum(half * OMEGA * rho * basis)
    return weights


def reference_adams(alpha_fn, ts, weights, eps_fn, x):
    history = []
    for i in range(len(ts) - 1):
        history.insert(0, eps_fn(x, ts[i]))
        x = np.sqrt(alpha_fn(ts[i + 1]) / alpha_fn(ts[i])) * x
        x = x + sum(w * e for w, e in zip(weights[i], history, strict=False))
    return x


# nodes c and rows of the released package's Runge–Kutta schemes: the last row is b
SCHEMES = {
    "1euler": ([0], [[1]]),
    "2heun": ([0, 1], [[1], [1 / 2, 1 / 2]]),
    "3kutta": ([0, 1 / 2, 1], [[1 / 2], [-1, 2], [1 / 6, 2 / 3, 1 / 6]]),
    "3ral": ([0, 1 / 2, 3 / 4], [[1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]]),
    "3heun": ([0, 1 / 3, 2 / 3], [[1 / 3], [0, 2 / 3], [1 / 4, 0, 3 / 4]]),
    "3vdh": ([0, 8 / 15, 2 / 3], [[8 / 15], [1 / 4, 5 / 12], [1 / 4, 0, 3 / 4]]),
    "3ssprk": ([0, 1, 1 / 2], [[1], [1 / 4, 1 / 4], [1 / 6, 1 / 6, 2 / 3]]),
    "4rk": ([0, 1 / 2, 1 / 2, 1], [[1 / 2], [0, 1 / 2], [0, 0, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
}


def reference_rk(alpha_fn, time_fn, ts, scheme, eps_fn, x):
    nodes, rows = SCHEMES[scheme]
    rhos = rho_of(alpha_fn, ts)
    v = x / np.sqrt(alpha_fn(ts[0]))
    for rho, step in zip(rhos, np.diff(rhos), strict=False):
        slopes, at = [], v
        for c, row in zip(nodes, rows, strict=True):
            level = 1 / (1 + (rho + c * step) ** 2)
            slopes.append(eps_fn(np.sqrt(level) * at, time_fn(level)))
            at = v + step * sum(a * k for a, k in zip(row, slopes, strict=True))
        v = at
    return v * np.sqrt(alpha_fn(ts[-1]))


def bumpy(alpha_fn):
    """An ε that depends on x and on t in earnest."""

    def eps_fn(x, t):
        a = alpha_fn(np.float64(t))
        return np.sqrt(1 - a) * x / (0.3 * a + 1 - a) + 0.1 * np.sin(x + 3 * np.sqrt(a))

    return eps_fn


NOISE = np.random.default_rng(0).standard_normal((7, 2))
WRAPPED = {  # arbitrary user functions, by library: none is recognised as linear
    "numpy": (linear_alpha, linear_time),
    "torch": (
        lambda t: torch.exp(-B0 * t - 0.5 * (B1 - B0) * t**2),
        lambda a: (-B0 + torch.sqrt(B0**2 - 2.0 * (B1 - B0) * torch.log(a))) / (B1 - B0),
    ),
    "jax": (
        lambda t: jnp.exp(-B0 * t - 0.5 * (B1 - B0) * t**2),
        jax.jit(lambda a: (-B0 + jnp.sqrt(B0**2 - 2.0 * (B1 - B0) * jnp.log(a))) / (B1 - B0)),
    ),
    "math": (
        lambda t: math.exp(-B0 * t - 0.5 * (B1 - B0) * t**2),
        lambda a: (-B0 + math.sqrt(B0**2 - 2.0 * (B1 - B0) * math.log(a))) / (B1 - B0),
    ),
}


def processes():
    """name -> (our sde, ᾱ(t), t(ᾱ), kinks)."""
    levels = np.concatenate([[1.0], DDPM[::10]])
    return {
        "linear": (deis.VPSDE(*deis.get_linear_alpha_fns(B0, B1), 1e-3, 1.0), linear_alpha, linear_time, ()),
        "cosine": (deis.VPSDE(*deis.get_cos_alpha_fns(), 1e-3, 0.9946), cos_alpha, cos_time, ()),
        "user": (deis.VPSDE(*WRAPPED["numpy"], 1e-3, 1.0), linear_alpha, linear_time, ()),
        "discrete": (
            deis.DiscreteVPSDE(levels), discrete_alpha(levels), discrete_time(levels),
            [1e-7 / (1 - levels[1]), *range(1, levels.size)],
        ),
    }  # fmt: skip


PROCESSES = processes()


# -- a script of the released package ---------------------------------------------------------------
SCRIPT = """
import th_deis as deis
import torch

def eps_fn(x, scalar_t):
    vec_t = torch.ones(x.shape[0]).float().to(x) * scalar_t
    with torch.no_grad():
        return network(x, vec_t)

t2alpha_fn, alpha2t_fn = deis.get_linear_alpha_fns(beta_0=0.1, beta_1=20)
vpsde = deis.VPSDE(t2alpha_fn, alpha2t_fn, 1e-3, 1.0)
sampler_fn = deis.get_sampler(
    vpsde, eps_fn, ts_phase="t", ts_order=2.0, num_step=10, method="t_ab", ab_order=3, rk_method="3kutta"
)
sample = sampler_fn(noise)
seven = deis.get_sampler(vpsde, eps_fn, "t", 2, 7, method="T_AB", ab_order=3)(noise)
grid = deis.sde.get_rev_ts(vpsde, 50, 0, "log")
discrete = deis.DiscreteVPSDE(t2alpha_fn(torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)))
whole = deis.get_sampler(discrete, eps_fn, ts_phase="t", ts_order=1, num_step=8, method="t_ab")(noise)
"""


def gaussian(x, t):
    """ε of data with variance 0.3."""
    a = linear_alpha(t)
    return np.sqrt(1 - a) * x / (0.3 * a + 1 - a)


def test_a_script_of_the_released_package_runs_after_a_change_of_its_import_line():
    script = SCRIPT.replace("import th_deis as deis", "from deis_analysis.interop import deis")
    seen = []

    def network(x, vec_t):
        assert vec_t.shape == (7,)
        seen.append(float(vec_t[0]))
        alpha = torch.exp(-(0.1 * vec_t + 9.95 * vec_t**2))[:, None]
        return torch.sqrt(1 - alpha) * x / (0.3 * alpha + 1 - alpha)

    space = {"network": network, "noise": torch.from_numpy(NOISE)}
    exec(compile(script, "script", "exec"), space)
    for name, steps in (("sample", 10), ("seven", 7)):
        ts = np.linspace(1.0, math.sqrt(1e-3), steps + 1) ** 2
        weights = reference_weights(linear_alpha, linear_time, ts, 3)
        expected = reference_adams(linear_alpha, ts, weights, gaussian, NOISE)
        assert np.abs(space[name].numpy() - expected).max() < 1e-10
    ratios = np.diff(np.log(rho_of(linear_alpha, space["grid"])))
    assert space["grid"].shape == (51,)
    assert np.allclose(ratios, ratios[0], rtol=1e-9)
    assert seen[17:] == [1000.0, 875.0, 750.0, 625.0, 500.0, 375.0, 250.0, 125.0]
    assert space["whole"].shape == space["noise"].shape


JAX_SCRIPT = """
import jax_deis as deis
import jax.numpy as jnp

def eps_fn(x_t, scalar_t):
    vec_t = jnp.ones(x_t.shape[0]) * scalar_t
    return jnp.tanh(x_t) * jnp.sqrt(vec_t)[:, None]

vpsde = deis.VPSDE(*deis.get_cos_alpha_fns(), 1e-3, 0.99)
for method in ["rho_rk", "rho_ab", "t_ab", "ipndm"]:
    samples.append(deis.get_sampler(vpsde, eps_fn, "rho", 7, 6, method=method)(noise))
"""


def test_a_jax_script_gives_the_samples_of_the_published_formulas():
    samples = []
    script = JAX_SCRIPT.replace("import jax_deis as deis", "from deis_analysis.interop import deis")
    exec(compile(script, "script", "exec"), {"samples": samples, "noise": jnp.asarray(NOISE, dtype=jnp.float32)})
    high, low = rho_of(cos_alpha, 0.99) ** (1 / 7), rho_of(cos_alpha, 1e-3) ** (1 / 7)
    ts = cos_time(1 / (1 + np.linspace(high, low, 7) ** 14))

    def eps_fn(x, t):
        return np.tanh(x) * np.sqrt(t)

    expected = [reference_rk(cos_alpha, cos_time, ts, "3kutta", eps_fn, NOISE)]
    for variable in ("rho", "t"):
        weights = reference_weights(cos_alpha, cos_time, ts, 3, variable)
        expected.append(reference_adams(cos_alpha, ts, weights, eps_fn, NOISE))
    even = np.linspace(0.99, 1e-3, 7)
    expected.append(reference_adams(cos_alpha, even, ipndm_weights(cos_alpha, even), eps_fn, NOISE))
    for sample, right in zip(samples, expected, strict=True):
        assert isinstance(sample, jax.Array)
        assert np.abs(np.asarray(sample) - right).max() < 3e-5 * np.abs(right).max()


def ipndm_weights(alpha_fn, ts):
    """The DDIM transfer times the Adams–Bashforth combination of 1, 2, 3, then 4 values of ε."""
    rows = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    a, b = alpha_fn(np.asarray(ts[:-1])), alpha_fn(np.asarray(ts[1:]))
    transfer = np.sqrt(1 - b) - np.sqrt(b / a) * np.sqrt(1 - a)
    return [c * np.array(rows[min(i, 3)]) for i, c in enumerate(transfer)]


# -- weights ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("degree", [0, 1, 3])
def test_weights_are_the_integrals_over_rho(name, degree):
    sde, alpha_fn, time_fn, kinks = PROCESSES[name]
    ts = deis.get_rev_ts(sde, 5, 2.0, "t")
    expected = reference_weights(alpha_fn, time_fn, ts, degree, kinks=kinks, panels=60 if not kinks else 4)
    found = deis.get_ab_eps_coef(sde, degree, ts, degree)
    assert found.shape == (5, degree + 1)
    assert np.abs(found - expected).max() < 2e-10 * np.abs(expected).max()


@pytest.mark.parametrize("library", WRAPPED)
def test_user_functions_of_every_library_give_the_exact_process(library):
    exact = PROCESSES["linear"][0].process
    assert isinstance(exact, da.VPLinear)
    process = deis.VPSDE(*WRAPPED[library], 1e-3, 1.0).process
    assert isinstance(process, alpha_functions.FromFunctions)
    ts = np.geomspace(1.0, 1e-3, 500)
    assert np.abs(process.log_rho_rate(ts) / exact.log_rho_rate(ts) - 1).max() < 1e-8
    for variable in ("t", "rho"):
        tables = [da.adams(p, da.grid(exact, 10), 3, variable=variable) for p in (process, exact)]
        assert da.distance(*tables) < 1e-10
    assert process.time_from_rho(exact.rho(0.3)) == pytest.approx(0.3, rel=1e-10)


def test_functions_of_single_precision_are_differentiated_above_their_noise():
    process = deis.VPSDE(
        lambda t: linear_alpha(t.astype(np.float32)), lambda a: linear_time(a.astype(np.float32)), 1e-2, 1.0
    ).process
    exact = PROCESSES["linear"][0].process
    assert da.distance(*(da.adams(p, da.grid(exact, 10, t_end=1e-2), 3) for p in (process, exact))) < 1e-4


def test_a_kink_in_a_user_function_is_found():
    def log_rho(t):
        return np.where(t < 0.4, 3.0 * t, 1.2 + 9.0 * (t - 0.4)) - 2.0

    process = deis.VPSDE(
        lambda t: 1 / (1 + np.exp(2 * log_rho(t))),
        lambda a: np.interp(0.5 * np.log(1 / a - 1), log_rho(np.array([0.0, 0.4, 1.0])), [0.0, 0.4, 1.0]),
        0.0,
        1.0,
    ).process
    assert process.breakpoints == pytest.approx([0.4], abs=1e-8)
    assert process.log_rho_rate([0.2, 0.7]) == pytest.approx([3.0, 9.0], rel=1e-10)
    (weight,) = da.quadrature_weights(process, "eps", "t", [1.0], 1.0, 0.0)
    assert weight == pytest.approx(math.exp(-2) - math.exp(log_rho(1.0)), rel=1e-9)


def test_the_released_sums_are_first_order_approximations_of_these_weights():
    """Left Riemann sums over t of −½ (log ᾱ)′ √(ᾱ_s/ᾱ)/√(1−ᾱ) ℓ_j, as released: 1e-4 away, half at a doubling."""
    sde, ts = PROCESSES["linear"][0], np.linspace(1.0, math.sqrt(1e-3), 11) ** 2
    ours = deis.get_ab_eps_coef(sde, 3, ts, 3)

    def left_sums(points):
        found = np.zeros_like(ours)
        for i in range(10):
            step = (ts[i + 1] - ts[i]) / points
            tau = ts[i] + step * np.arange(points)
            a, nodes = linear_alpha(tau), ts[i - np.arange(min(i, 3) + 1)]
            weight = 0.5 * (B0 + (B1 - B0) * tau) * np.sqrt(linear_alpha(ts[i + 1]) / a) / np.sqrt(1 - a)
            for j in range(nodes.size):
                basis = [(tau - nodes[k]) / (nodes[j] - nodes[k]) for k in range(nodes.size) if k != j]
                found[i, j] = np.sum(weight * np.prod(basis, axis=0)) * step
        return found

    errors = [np.abs(left_sums(n) - ours).max() / np.abs(ours).max() for n in (10_000, 20_000, 200_000)]
    assert 2e-5 < errors[0] < 5e-4
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.02)
    assert errors[0] / errors[2] == pytest.approx(20.0, rel=0.02)


# -- samplers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("variable", ["t", "rho"])
def test_adams_samplers(name, variable):
    sde, alpha_fn, time_fn, kinks = PROCESSES[name]
    eps_fn = bumpy(alpha_fn)
    sample = deis.get_sampler(sde, eps_fn, "rho", 5, 6, method=f"{variable}_ab", ab_order=2)(NOISE)
    ts = deis.get_rev_ts(sde, 6, 5, "rho")
    weights = reference_weights(alpha_fn, time_fn, ts, 2, variable, kinks, panels=60 if not kinks else 4)
    expected = reference_adams(alpha_fn, ts, weights, eps_fn, NOISE)
    assert np.abs(sample - expected).max() < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_runge_kutta_samplers(name, scheme):
    sde, alpha_fn, time_fn, _ = PROCESSES[name]
    eps_fn = bumpy(alpha_fn)
    sample = deis.get_sampler(sde, eps_fn, "t", 2, 6, rk_method=scheme)(NOISE)  # the default method
    expected = reference_rk(alpha_fn, time_fn, deis.get_rev_ts(sde, 6, 2, "t"), scheme, eps_fn, NOISE)
    assert np.abs(sample - expected).max() < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("name", PROCESSES)
def test_ipndm_sampler_has_a_grid_of_its_own(name):
    sde, alpha_fn, _, _ = PROCESSES[name]
    eps_fn = bumpy(alpha_fn)
    sample = deis.get_sampler(sde, eps_fn, "nonsense", None, 7, method="ipndm", ab_order=None)(NOISE)
    end = 0.1 if name == "discrete" else sde.sampling_eps
    ts = np.linspace(sde.sampling_T, end, 8)
    ts = np.floor(ts) if name == "discrete" else ts
    expected = reference_adams(alpha_fn, ts, ipndm_weights(alpha_fn, ts), eps_fn, NOISE)
    assert np.abs(sample - expected).max() < 1e-9 * np.abs(expected).max()


def test_samples_converge_to_the_exact_flow_of_a_mixture():
    mix = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
    exact, x = da.VPLinear(B0, B1), NOISE[:, 0]
    sde = deis.VPSDE(*deis.get_linear_alpha_fns(B0, B1), 1e-2, 1.0)
    model, goal = mix.eps(exact), mix.flow(exact, x, 1.0, 1e-2)
    errors = [
        np.abs(deis.get_sampler(sde, lambda x, t: model(x, float(t)), "log", 1, n)(x) - goal).max() for n in (40, 80)
    ]
    assert errors[1] < 1e-3
    assert 6 < errors[0] / errors[1] < 12  # third order


def test_the_sampler_carries_its_table_and_builds_it_once():
    calls = []
    sde = deis.VPSDE(lambda t: (calls.append(1), linear_alpha(t))[1], linear_time, 1e-3, 1.0)
    sampler = deis.get_sampler(sde, bumpy(linear_alpha), "t", 2, 5, method="t_ab", ab_order=3)
    before = len(calls)
    assert np.array_equal(sampler(NOISE), sampler(NOISE))
    assert len(calls) == before > 0
    assert (sampler.table.nfe, sampler.table.history, sampler.table.name) == (5, 4, "t_ab3")
    assert deis.get_sampler(sde, bumpy(linear_alpha), "t", 2, 5, rk_method="4rk").table.nfe == 20


# -- grids ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["linear", "cosine", "user"])
@pytest.mark.parametrize(("phase", "order"), [("t", 1), ("t", 2.0), ("t", 2.5), ("rho", 7), ("rho", 5.0), ("log", 0)])
def test_grids(name, phase, order):
    sde, alpha_fn, _, _ = PROCESSES[name]
    ts = deis.get_rev_ts(sde, 20, order, phase)
    assert ts[0] == sde.sampling_T
    assert ts[-1] == sde.sampling_eps
    value = {"t": lambda: ts ** (1 / max(order, 1)), "rho": lambda: rho_of(alpha_fn, ts) ** (1 / max(order, 1)),
             "log": lambda: np.log(rho_of(alpha_fn, ts))}[phase]()  # fmt: skip
    steps = np.diff(value)
    assert np.allclose(steps, steps[0], rtol=1e-8)
    assert steps[0] < 0


def test_integer_grids_by_hand():
    """From 16 to 0.1 in 8 steps, power 2 in t: 16 12.4 9.2 6.5 4.3 2.6 1.3 0.5 0.1 → 0 is double, 3 is missing."""
    sde = deis.DiscreteVPSDE(np.linspace(0.99, 0.01, 17))
    root = np.linspace(4.0, math.sqrt(0.1), 9) ** 2
    assert np.floor(root).tolist() == [16, 12, 9, 6, 4, 2, 1, 0, 0]
    assert deis.get_rev_ts(sde, 8, 2.0).tolist() == [16, 12, 9, 6, 4, 3, 2, 1, 0]
    assert deis.get_rev_ts(sde, 4, 1).tolist() == [16, 12, 8, 4, 0]
    assert deis.get_rev_ts(sde, 16, 7, "rho").tolist() == list(range(16, -1, -1))
    torch_like = deis.DiscreteVPSDE(np.linspace(0.99, 0.01, 17), integer_times=False)
    assert deis.get_rev_ts(torch_like, 5, 2.0).tolist() == [16, 10, 5, 2, 1, 0]  # 0.64 and 0 are both 0
    assert deis.get_rev_ts(torch_like, 4, 2.0) == pytest.approx([16, 9, 4, 1, 0])
    assert deis.get_rev_ts(torch_like, 3, 1) == pytest.approx([16, 32 / 3, 16 / 3, 0])
    assert deis.get_rev_ts(torch_like, 3, 1).dtype == np.float64


# -- discrete processes -----------------------------------------------------------------------------
@pytest.mark.parametrize("first", [0.9999, 1.0])
def test_discrete_alpha_is_linear_between_integers_and_clipped(first):
    levels = np.array([first, 0.9, 0.4, 1e-3, 0.0])
    sde = deis.DiscreteVPSDE(levels)
    t = np.linspace(0, 4, 401)
    assert np.abs(sde.t2alpha_fn(t) - discrete_alpha(levels)(t)).max() < 1e-15
    inner = t[(t > 0.01) & (t < 3.99)]
    assert np.abs(sde.alpha2t_fn(sde.t2alpha_fn(inner)) - inner).max() < 1e-11
    assert np.abs(sde.rho2t(sde.t2rho(inner)) - inner).max() < 1e-11
    rate = sde.process.log_rho_rate(np.array([0.5, 1.5, 2.25, 3.75]))
    slopes = np.diff(levels)
    for k, at in enumerate([0.5, 1.5, 2.25, 3.75]):
        a = np.interp(at, np.arange(5), levels)
        assert rate[k] == pytest.approx(-0.5 * slopes[int(at)] / (a * (1 - a)), rel=1e-12)
    assert sde.process.log_rho_rate(4.0) == 0.0  # clipped
    assert (sde.process.log_rho_rate(0.0) == 0.0) == (first == 1.0)


def test_discrete_and_our_own_discrete_process_agree_at_the_integers():
    ours, theirs = da.VPDiscrete(DDPM), deis.DiscreteVPSDE(DDPM).process
    t = np.arange(1000.0)
    assert np.abs(theirs.rho(t) / ours.rho(t) - 1).max() < 1e-12
    assert np.abs(theirs.rho(t[:-1] + 0.5) / ours.rho(t[:-1] + 0.5) - 1).max() > 1e-4  # not between them


# -- arrays -----------------------------------------------------------------------------------------
def unit(x, t):
    """ε of data with variance 1, in whatever library."""
    return x * (1 - math.e ** (-t * (B0 + 0.5 * (B1 - B0) * t))) ** 0.5


def noises():
    yield "numpy float64", NOISE, np.float64
    yield "numpy float32", NOISE.astype(np.float32), np.float32
    yield "torch float64", torch.from_numpy(NOISE), torch.float64
    yield "torch float32", torch.from_numpy(NOISE).float(), torch.float32
    yield "torch bfloat16", torch.from_numpy(NOISE).bfloat16(), torch.float32
    yield "jax float32", jnp.asarray(NOISE, dtype=jnp.float32), jnp.float32


@pytest.mark.parametrize(("label", "noise", "dtype"), list(noises()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("method", ["t_ab", "rho_rk"])
def test_every_library_and_what_the_model_is_told(label, noise, dtype, method):
    told = []
    sde = deis.VPSDE(*deis.get_linear_alpha_fns(B0, B1), 1e-3, 0.4)  # not so noisy that bfloat16 drowns

    def eps_fn(x, t):
        told.append(t)
        return unit(x, t)

    sample = deis.get_sampler(sde, eps_fn, "t", 2, 4, method=method)(noise)
    assert type(sample) is type(noise)
    assert sample.dtype == noise.dtype
    assert all(t.shape == () and t.dtype == dtype for t in told)
    if isinstance(noise, torch.Tensor):
        assert all(isinstance(t, torch.Tensor) and t.device == noise.device for t in told)
    expected = deis.get_sampler(sde, unit, "t", 2, 4, method=method)(NOISE)
    sample = sample.float().numpy() if isinstance(sample, torch.Tensor) else np.asarray(sample)
    tolerance = 0.05 if "bfloat16" in label else 1e-5
    assert np.abs(sample - expected).max() < tolerance * np.abs(expected).max()


def test_the_time_lives_on_the_device_of_the_state():
    assert deis._told(0.5, torch.ones(2, device="meta"), False).device.type == "meta"


@pytest.mark.parametrize(("method", "integer"), [("t_ab", True), ("ipndm", True), ("rho_ab", False), ("rho_rk", False)])
def test_discrete_models_are_told_integers_by_the_methods_in_t(method, integer):
    told = []
    noise = torch.from_numpy(NOISE).float()
    deis.get_sampler(
        deis.DiscreteVPSDE(torch.from_numpy(DDPM)), lambda x, t: told.append(t) or x, "t", 1, 4, method=method
    )(noise)
    assert {t.dtype for t in told} == {torch.int32 if integer else torch.float32}
    first = told[:: 3 if method == "rho_rk" else 1]
    assert [float(t) for t in first] == [999, 749, 499, 249]  # floats too are exact: t(ρ(t)) is not computed


def zero_terminal(levels):
    """ᾱ with √ᾱ shifted and scaled so that the last is 0. [Lin et al. 2024, alg. 1]"""
    root = np.sqrt(levels)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def test_a_model_is_told_the_time_at_which_it_expects_the_clipped_level():
    """Zero terminal SNR: ᾱ is clipped to 1e-7 from 998.49 on. The authority is a Gaussian's exact ε under the ᾱ that is
    not clipped, and its exact flow from N(0, 1) at ᾱ = 0; t(ρ) as published is `discrete_time`."""
    levels = zero_terminal(np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    sde, x, mean, v = deis.DiscreteVPSDE(levels), np.random.default_rng(0).standard_normal(500), 0.7, 0.3
    alpha_fn, time_fn, told = discrete_alpha(levels), discrete_time(levels), []

    def eps_fn(x, t):
        told.append(float(t))
        a = np.interp(float(t), np.arange(1000), levels)
        return np.sqrt(1 - a) * (x - np.sqrt(a) * mean) / (a * v + 1 - a)

    a = alpha_fn(0.0)
    exact = np.sqrt(a) * mean + np.sqrt(a * v + 1 - a) * x
    ts = deis.get_rev_ts(sde, 20, 2.0, "t")
    assert ts[0] == 999
    limit = float(time_fn(1e-7))
    assert limit == pytest.approx(998.4918, abs=1e-4)
    for method, first, gain in (("rho_rk", limit, 50), ("rho_ab", limit, 3), ("t_ab", 999, None), ("ipndm", 999, None)):
        told.clear()
        sample = deis.get_sampler(sde, eps_fn, "t", 2.0, 20, method=method, ab_order=2)(x)
        assert told[0] == pytest.approx(first, abs=1e-9)
        if gain is None:
            continue
        at_the_end = deis.get_sampler(sde, lambda x, t: eps_fn(x, 999.0 if t > 998 else t), "t", 2.0, 20, method, 2)(x)
        error, other = (np.sqrt(np.mean((s - exact) ** 2)) for s in (sample, at_the_end))
        assert other > gain * error  # as the docstring says: 5 and 100 times
    right = reference_rk(alpha_fn, time_fn, ts, "3kutta", eps_fn, x)
    assert np.abs(deis.get_sampler(sde, eps_fn, "t", 2.0, 20)(x) - right).max() < 1e-8


def test_gradients_and_jit_pass_through():
    sampler = deis.get_sampler(PROCESSES["linear"][0], lambda x, t: x * t, "t", 2, 4)
    noise = torch.from_numpy(NOISE).requires_grad_()
    sampler(noise).sum().backward()
    factor = sampler(np.ones(1))[0]
    assert noise.grad.numpy() == pytest.approx(np.full_like(NOISE, factor))
    x = jnp.asarray(NOISE, dtype=jnp.float32)
    assert np.allclose(jax.jit(lambda z: sampler(z))(x), sampler(x), rtol=1e-5)


def test_alpha_functions_take_arrays_of_every_library():
    for (t2alpha, alpha2t), alpha_fn in (
        (deis.get_linear_alpha_fns(B0, B1), linear_alpha), (deis.get_cos_alpha_fns(), cos_alpha),
    ):  # fmt: skip
        t = np.linspace(0.01, 0.9, 5)
        assert np.abs(t2alpha(t) - alpha_fn(t)).max() < 1e-15
        assert float(t2alpha(0.3)) == pytest.approx(alpha_fn(0.3), rel=1e-15)
        assert np.abs(alpha2t(t2alpha(t)) - t).max() < 1e-14
        for array in (torch.from_numpy(t), jnp.asarray(t)):
            values = t2alpha(array)
            assert isinstance(values, type(array))
            assert np.abs(np.asarray(values) - alpha_fn(t)).max() < 1e-6
            assert np.abs(np.asarray(alpha2t(values)) - t).max() < 1e-4


def test_helpers_of_the_process():
    for sde, alpha_fn, *_ in PROCESSES.values():
        start, end = sde.sampling_T, 0.3 * sde.sampling_T
        assert float(sde.psi(start, end)) == pytest.approx(np.sqrt(alpha_fn(end) / alpha_fn(start)), rel=1e-10)
        assert float(sde.t2rho(end)) == pytest.approx(rho_of(alpha_fn, end), rel=1e-10)
        assert float(sde.rho2t(sde.t2rho(end))) == pytest.approx(end, rel=1e-10)
        assert sde.x2v(NOISE, end) == pytest.approx(NOISE / np.sqrt(alpha_fn(end)), rel=1e-10)
        assert sde.v2x(sde.x2v(NOISE, end), end) == pytest.approx(NOISE, rel=1e-12)
        assert float(sde.t2alpha_fn(end)) == pytest.approx(alpha_fn(end), rel=1e-10)
    assert [sde.is_continuous for sde, *_ in PROCESSES.values()] == [True, True, True, False]


def test_a_falling_beta_and_a_longer_time_run_through_the_general_process():
    falling = deis.VPSDE(*deis.get_linear_alpha_fns(8.0, 2.0), 1e-3, 1.0).process
    assert float(falling.rho(0.5)) == pytest.approx(math.sqrt(math.expm1(8 * 0.5 - 3 * 0.25)), rel=1e-9)
    longer = deis.VPSDE(*deis.get_linear_alpha_fns(0.1, 3.0), 1e-3, 2.0).process
    assert float(longer.rho(2.0)) == pytest.approx(math.sqrt(math.expm1(0.2 + 1.45 * 4)), rel=1e-9)
    assert float(longer.log_rho_rate(2.0)) == pytest.approx(
        0.5 * (0.1 + 2.9 * 2) / -math.expm1(-(0.2 + 1.45 * 4)), rel=1e-8
    )


# -- bad input --------------------------------------------------------------------------------------
LINEAR = PROCESSES["linear"][0]


def sampler(sde=LINEAR, eps_fn=lambda x, t: x, ts_phase="t", ts_order=2.0, num_step=4, **others):
    return deis.get_sampler(sde, eps_fn, ts_phase, ts_order, num_step, **others)


def vpsde(t2alpha_fn=linear_alpha, alpha2t_fn=linear_time, sampling_eps=1e-3, sampling_T=1.0):
    return deis.VPSDE(t2alpha_fn, alpha2t_fn, sampling_eps, sampling_T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sampler(method="tab"),
            r"method='tab' is unknown; nearest: t_ab.*Allowed: t_ab, rho_ab, rho_rk, ipndm",
        ),
        (lambda: sampler(method=3), r"method=3 is unknown"),
        (lambda: sampler(rk_method="3ralston"), r"rk_method='3ralston' is unknown; nearest: 3ral"),
        (lambda: sampler(ts_phase="logrho"), r"ts_phase='logrho' is unknown.*Allowed: t, rho, log"),
        (lambda: sampler(ts_order=0), r"ts_order=0 must be a number in \[0.01, 1000\]"),
        (lambda: sampler(ts_order=float("nan")), r"ts_order=nan"),
        (lambda: sampler(num_step=0), r"num_step=0 must be an integer >= 1"),
        (lambda: sampler(method="t_ab", ab_order=-1), r"ab_order=-1 must be an integer >= 0"),
        (lambda: sampler(method="rho_ab", ab_order=1.5), r"ab_order=1.5 must be an integer"),
        (lambda: sampler(sde=da.VPLinear()), r"sde=VPLinear.* must be a VPSDE or DiscreteVPSDE"),
        (lambda: sampler(eps_fn=None), r"eps_fn=None must be callable, as eps_fn\(x, t\)"),
        (lambda: sampler(sde=deis.DiscreteVPSDE([0.9, 0.5, 0.1])), r"num_step=4 must be at most 2"),
        (lambda: vpsde(t2alpha_fn=0.5), r"t2alpha_fn=0.5 must be callable"),
        (lambda: vpsde(alpha2t_fn=lambda a: 1 - a), r"alpha2t_fn must undo t2alpha_fn"),
        (lambda: vpsde(t2alpha_fn=lambda t: 1.5 - t), r"t2alpha_fn must lie inside \(0, 1\)"),
        (lambda: vpsde(t2alpha_fn=lambda t: 0.5 + 0.4 * t), r"t2alpha_fn must decrease on \[0.001, 1\]"),
        (lambda: vpsde(t2alpha_fn=lambda t: t.no_such), r"t2alpha_fn=.* fails on float64 arrays.*no_such"),
        (lambda: vpsde(t2alpha_fn=lambda t: np.ones(3)), r"t2alpha_fn=.* fails .*returned shape \(3,\)"),
        (lambda: vpsde(sampling_eps=1.0), r"sampling_eps=1.0, sampling_T=1.0; allowed: 0 <= sampling_eps"),
        (lambda: vpsde(sampling_eps=-0.1), r"sampling_eps=-0.1"),
        (lambda: vpsde(sampling_T="one"), r"sampling_T='one' must be made of real numbers"),
        (lambda: vpsde(*deis.get_cos_alpha_fns(), 1e-3, 1.0), r"sampling_T=1.0: ᾱ vanishes there"),
        (lambda: vpsde(*deis.get_cos_alpha_fns(), 1e-3, 1.2), r"sampling_T=1.2 is outside \[0, 1\]"),
        (lambda: sampler(vpsde(*deis.get_linear_alpha_fns(0.1, 20), 0.0), ts_phase="log"), r"ρ is 0 at sampling_eps=0"),
        (lambda: deis.get_linear_alpha_fns(-0.1, 20), r"beta_0=-0.1 must be a finite number >= 0"),
        (lambda: deis.get_linear_alpha_fns(0.0, 0.0), r"one of them must be positive"),
        (lambda: deis.DiscreteVPSDE([0.9]), r"discrete_alpha has shape \(1,\)"),
        (lambda: deis.DiscreteVPSDE([0.9, 1.1]), r"discrete_alpha must lie inside \[0, 1\]; it has 1.1 at index 1"),
        (lambda: deis.DiscreteVPSDE([0.9, np.nan]), r"discrete_alpha must lie inside"),
        (
            lambda: deis.DiscreteVPSDE([0.1, 0.9]),
            r"discrete_alpha must decrease strictly; it does not at 0.9 at index 1",
        ),
        (lambda: deis.get_ab_eps_coef(LINEAR, 2, [1.0, 0.5], 3), r"highest_order=2 must be an integer >= 3"),
        (lambda: sampler()(np.arange(3)), r"x has dtype int64"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_sampling_to_time_zero_is_allowed_where_rho_is_known_there():
    sde = deis.VPSDE(*deis.get_linear_alpha_fns(B0, B1), 0.0, 1.0)
    sample = sampler(sde, method="t_ab", ab_order=1)(NOISE)
    assert np.isfinite(sample).all()
    weights = deis.get_ab_eps_coef(sde, 0, [0.5, 0.0], 0)
    assert weights[0, 0] == pytest.approx(-rho_of(linear_alpha, 0.5), rel=1e-12)


def test_neither_torch_nor_jax_is_imported():
    code = (
        "import sys; from deis_analysis.interop import deis; import numpy as np;"
        "p = deis.VPSDE(lambda t: np.exp(-t), lambda a: -np.log(a), 1e-3, 1.0);"
        "deis.get_sampler(p, lambda x, t: x, 't', 2, 3)(deis.get_cos_alpha_fns()[0](np.ones(2)));"
        "print([m for m in ('torch', 'jax') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
def test_weights_of_the_cosine_hold_where_alpha_vanishes(gap):
    """Degree 0, where the integral is ρ(½) − ρ(t); against mpmath, from a start that is ``gap`` from pure noise."""
    process, t = _Cosine(), 1.0 - gap
    (found,) = da.quadrature_weights(process, "eps", "t", [t], t, 0.5)
    with mpmath.workdps(50):
        turn = mpmath.pi / 2 / (1 + mpmath.mpf(0.008))

        def rho(x):
            return mpmath.sin((x + mpmath.mpf(0.008)) * turn) / mpmath.sin((1 - x) * turn)

        assert abs(found / (rho(mpmath.mpf(0.5)) - rho(mpmath.mpf(t))) - 1) <= 5e-15
