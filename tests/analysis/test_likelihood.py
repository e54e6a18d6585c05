"""Log-likelihoods: against densities in closed form, with the order of the tableau, whatever the trace costs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_runs import quick
from scipy.integrate import simpson
from scipy.stats import multivariate_normal, norm
from strategies import CONTINUOUS, grids, processes

import deis_analysis as da
from deis_analysis.analysis.likelihood import bits_per_dim, log_likelihood, log_likelihood_rk45
from experiments.core.frames import span
from experiments.models.problems import digits
from experiments.paper import appendix_blackbox

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 0.8, 0.1], [-0.3, 0.1, 0.5]])
MEAN = np.array([0.3, -0.5, 1.0])
GAUSSIAN = da.GaussianMixture([1.0], MEAN[None], COVARIANCE[None])
PROCESSES = {
    "VPLinear": VP,
    "VPCosine": da.VPCosine(),
    "SubVP": da.SubVP(),
    "VE": da.VE(0.01, 50.0),
    "EDM": da.EDM(0.002, 80.0),
    "RectifiedFlow": da.RectifiedFlow(),
    "MeanReverting": da.MeanReverting(VP, np.array([0.7]), 1.5),
}


def prior_of(mix, process, t):
    """The exact log density at t of coordinates that are each like the 1-D ``mix``."""
    return lambda x: mix.log_prob(x, process, t).sum(-1)


# -- against closed forms -------------------------------------------------------------------------
@pytest.mark.parametrize("run", ["rho", "rk45"])
def test_gaussian_data_has_its_exact_log_density(run):
    start, end = 1.0, 1e-3
    x = GAUSSIAN.sample(20, 0, VP, end)
    found = (
        log_likelihood(GAUSSIAN.eps(VP), VP, x, steps=150, method="4rk", kind="logrho", t_start=start, t_end=end)
        if run == "rho"
        else log_likelihood_rk45(GAUSSIAN.eps(VP), VP, x, rtol=1e-10, atol=1e-10, t_start=start, t_end=end)
    )
    first, last = (VP.alpha(t) ** 2 * COVARIANCE + VP.sigma(t) ** 2 * np.eye(3) for t in (end, start))
    data = multivariate_normal(VP.alpha(end) * MEAN, first).logpdf(x)
    noise = multivariate_normal(VP.alpha(start) * MEAN, last).logpdf
    assert np.allclose(found.log_prob - found.log_prior + noise(found.x_T), data, rtol=0, atol=3e-6)
    change = 0.5 * (np.linalg.slogdet(last)[1] - np.linalg.slogdet(first)[1])
    assert np.allclose(found.log_prob - found.log_prior, change, rtol=0, atol=3e-6)
    assert np.allclose(found.x_T, GAUSSIAN.flow(VP, x, end, start), atol=1e-5)
    assert np.allclose(found.log_prior, norm.logpdf(found.x_T, 0, VP.sigma(start)).sum(1), rtol=1e-12)


@given(
    processes(CONTINUOUS),
    st.sampled_from(sorted(da.RUNGE_KUTTA)),
    st.floats(-1.0, 1.0),
    st.floats(0.05, 2.0),
    st.one_of(st.none(), st.floats(0.05, 2.0)),
    st.data(),
)
def test_on_gaussians_the_change_is_the_rule_applied_to_the_trace(process, method, mean, variance, known, data):
    """∂ε/∂x does not depend on x: α tr ∂ε/∂x = d ρ/(v + ρ²), and Runge–Kutta is its quadrature rule (b, c)."""
    ts, rk = data.draw(grids(process, max_steps=4)), da.RUNGE_KUTTA[method]
    mix, start, end = da.GaussianMixture([1.0], [mean], [variance]), float(ts[0]), float(ts[-1])
    steps, kind = ts.size - 1, data.draw(st.sampled_from(["t1", "t2", "rho7", "logrho"]))
    rho = process.rho(da.grid(process, steps, kind, start, end))[::-1]
    x = np.array([[mean + 0.4, -0.7]])
    found = log_likelihood(
        mix.eps(process), process, x, steps=steps, method=method, kind=kind, t_start=start, t_end=end,
        known_variance=known,
    )  # fmt: skip
    delta = np.diff(rho)

    def rule(v):
        return sum(delta @ (float(b) * r / (v + r**2)) for b, c in zip(rk.b, rk.c, strict=True)
                   for r in [rho[:-1] + float(c) * delta])  # fmt: skip

    change = rule(variance) + np.log(process.alpha(start) / process.alpha(end))
    if known is not None:
        change += 0.5 * np.log((known + rho[-1] ** 2) / (known + rho[0] ** 2)) - rule(known)
    assert np.allclose(found.log_prob - found.log_prior, 2 * change, rtol=1e-9, atol=1e-9)
    assert found.nfe == steps * len(rk.b)
    assert found.products == 2 * found.nfe


def test_the_known_variance_is_exact_in_one_step():
    x = da.GaussianMixture([1.0], [0.2], [0.7]).sample(3, 0)[:, None]
    mix = da.GaussianMixture([1.0], [0.2], [0.7])
    found = log_likelihood(mix.eps(VP), VP, x, steps=1, method="1euler", known_variance=0.7)
    ends = [VP.alpha(t) ** 2 * 0.7 + VP.sigma(t) ** 2 for t in (1.0, 1e-3)]
    assert np.allclose(found.log_prob - found.log_prior, 0.5 * np.log(ends[0] / ends[1]), rtol=1e-12)


@pytest.mark.parametrize("known", [None, 1.0])
@pytest.mark.parametrize("method", ["1euler", "2heun", "2midpoint", "3kutta", "3heun", "3ssprk", "4rk"])
def test_error_has_the_order_of_the_tableau(method, known):
    """On a mixture, with the exact prior, both for the density and for the state."""
    rk, (start, end) = da.RUNGE_KUTTA[method], (0.4, 0.1)
    steps = (40, 80, 160) if rk.order < 3 else (16, 32, 64)
    x = MIX.sample(16, 0, VP, end)[:, None]
    truth, moved = MIX.log_prob(x[:, 0], VP, end), MIX.flow(VP, x, end, start)
    errors = []
    for n in steps:
        found = log_likelihood(
            MIX.eps(VP), VP, x, steps=n, method=method, kind="logrho", t_start=start, t_end=end,
            prior=prior_of(MIX, VP, start), known_variance=known,
        )  # fmt: skip
        gaps = (found.log_prob - truth, found.x_T - moved)
        errors.append([np.sqrt(np.mean(gap**2)) for gap in gaps])
    slopes = np.log2(np.array(errors[1]) / errors[2])
    assert np.allclose(slopes, rk.order, atol=0.15), (slopes, errors)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_agrees_with_the_exact_density(name):
    """Two coordinates, so that a lost factor d shows; data of MeanReverting revert to its mean."""
    process = PROCESSES[name]
    start, end = process.sampling_range
    end = max(end, 0.02 * start)
    x = MIX.sample(12, 0, process, end).reshape(6, 2)
    truth = MIX.log_prob(x, process, end).sum(-1)
    prior = prior_of(MIX, process, start)
    rho = log_likelihood(
        MIX.eps(process), process, x, steps=120, method="4rk", kind="logrho", t_start=start, t_end=end, prior=prior
    )
    assert np.allclose(rho.log_prob, truth, rtol=0, atol=2e-4)
    rk45 = log_likelihood_rk45(
        MIX.eps(process), process, x, rtol=1e-9, atol=1e-9, t_start=start, t_end=end, prior=prior
    )
    assert np.allclose(rk45.log_prob, truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize("run", ["rho", "rk45"])
def test_any_model_has_a_density_of_mass_one(run):
    """Also a wrong one: its law is what its flow makes of the prior."""

    def wrong(x, t):
        return 0.8 * MIX.eps(VP)(x, t) + 0.2 * torch.sin(2 * x)

    x = np.linspace(-9, 9, 2401)[:, None]
    found = (
        log_likelihood(wrong, VP, x, steps=60, method="4rk", kind="logrho", t_end=0.02)
        if run == "rho"
        else log_likelihood_rk45(wrong, VP, x, rtol=1e-8, atol=1e-8, t_end=0.02)
    )
    assert np.isclose(simpson(np.exp(found.log_prob), x=x[:, 0]), 1.0, atol=2e-4)
    assert np.abs(found.log_prob - MIX.log_prob(x[:, 0], VP, 0.02)).max() > 0.1


def test_ideal_denoiser_has_the_density_of_its_mixture():
    points, std = np.random.default_rng(0).standard_normal((7, 4)), 0.3
    mix = da.GaussianMixture(np.full(7, 1 / 7), points, np.full(7, std**2))
    images = torch.as_tensor(points).reshape(7, 2, 2)
    model = da.ideal_denoiser(images, VP, std=std)
    x = torch.as_tensor(mix.sample(5, 1, VP, 0.05)).reshape(5, 2, 2)
    found = log_likelihood(
        model, VP, x, steps=100, method="4rk", kind="logrho", t_end=0.05,
        prior=lambda z: mix.log_prob(z.reshape(-1, 4), VP, 1.0),
    )  # fmt: skip
    assert isinstance(found.log_prob, torch.Tensor)
    assert found.x_T.shape == (5, 2, 2)
    truth = mix.log_prob(x.reshape(5, 4), VP, 0.05)
    assert torch.allclose(found.log_prob, truth, rtol=0, atol=1e-4)


# -- the trace ------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 5])
def test_hutchinson_is_exact_where_the_jacobian_is_diagonal(steps):
    product = da.ProductMixture([MIX, da.GaussianMixture([0.3, 0.7], [-0.5, 1.0], [0.2, 0.1])])
    for mix, x in ((MIX, MIX.sample(6, 0)[:, None]), (product, product.sample(6, 0))):
        exact, noisy = (
            log_likelihood(mix.eps(VP), VP, x, steps=steps, trace=trace, seed=3) for trace in ("exact", "hutchinson")
        )
        assert np.allclose(exact.log_prob, noisy.log_prob, rtol=1e-12)
        assert exact.products == x.shape[1] * exact.nfe
        assert noisy.products == noisy.nfe == exact.nfe


@pytest.mark.parametrize("run", ["rho", "rk45"])
@pytest.mark.parametrize("probes", [1, 4])
def test_hutchinson_is_unbiased_with_the_variance_of_fixed_probes(run, probes):
    """With A = ∫ α ∂ε/∂x dρ, here ½ log of a quotient of covariances, Var vᵀAv = 2 Σ_{i≠j} A²_ij, over the probes.

    Probes drawn anew at each call would have a smaller variance.
    """
    n, start, end = 4000, 0.6, 0.05
    x = np.tile(GAUSSIAN.sample(1, 0, VP, end), (n, 1))
    arguments = {"t_start": start, "t_end": end, "trace": "hutchinson", "probes": probes}
    found = (
        log_likelihood(GAUSSIAN.eps(VP), VP, x, steps=20, method="4rk", kind="logrho", **arguments)
        if run == "rho"
        else log_likelihood_rk45(GAUSSIAN.eps(VP), VP, x, rtol=1e-6, atol=1e-6, **arguments)
    )
    values, axes = np.linalg.eigh(COVARIANCE)
    a = (axes * 0.5 * np.log((values + VP.rho(start) ** 2) / (values + VP.rho(end) ** 2))) @ axes.T
    change = found.log_prob - found.log_prior
    mean = np.trace(a) + 3 * np.log(VP.alpha(start) / VP.alpha(end))
    variance = 2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)) / probes
    assert abs(change.mean() - mean) < 4 * np.sqrt(variance / n)
    assert np.isclose(change.var(), variance, rtol=0.12)
    assert variance > 0.01
    assert found.products == probes * found.nfe


def test_probes_follow_the_seed():
    x = GAUSSIAN.sample(3, 0)
    a, b, c = (
        log_likelihood(GAUSSIAN.eps(VP), VP, x, steps=4, trace="hutchinson", seed=seed).log_prob for seed in (0, 0, 1)
    )
    assert np.array_equal(a, b)
    assert not np.any(a == c)


# -- what it costs --------------------------------------------------------------------------------
def test_every_call_is_counted():
    calls = []

    def model(x, t):
        calls.append(t)
        return MIX.eps(VP)(x, t)

    x = MIX.sample(4, 0)[:, None]
    for method, rk in da.RUNGE_KUTTA.items():
        calls.clear()
        found = log_likelihood(model, VP, x, steps=5, method=method)
        assert found.nfe == len(calls) == 5 * len(rk.b)
        assert calls[0] == min(calls) == 1e-3
        assert (max(calls) == 1.0) == (1 in rk.c)
    costs = []
    for tol in (1e-3, 1e-5, 1e-7):
        calls.clear()
        found = log_likelihood_rk45(model, VP, x, rtol=tol, atol=tol)
        assert found.nfe == len(calls)
        costs.append(found.nfe)
    assert costs == sorted(set(costs))
    default = log_likelihood_rk45(model, VP, x)
    assert default.nfe == costs[1]


def test_a_float32_network_is_differentiated_and_keeps_no_gradient():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))

    def model(x, t):
        return net(x.float())

    with torch.no_grad():  # of the caller's, not of the model's
        found = log_likelihood(model, VP, torch.ones(2, 3), steps=1, method="1euler", t_start=0.6, t_end=0.5)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, 0.5), torch.ones(3, dtype=torch.float64))
    rho, alpha = VP.rho([0.5, 0.6]), VP.alpha([0.5, 0.6])
    change = (rho[1] - rho[0]) * alpha[0] * float(torch.trace(jacobian)) + 3 * np.log(alpha[1] / alpha[0])
    assert torch.allclose(found.log_prob - found.log_prior, torch.full((2,), change, dtype=torch.float64), atol=1e-5)
    assert not found.log_prob.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_bits_per_dim():
    assert np.isclose(bits_per_dim(np.array([-np.log(8.0)]), 3), 1.0)
    levels = np.arange(256) / 127.5 - 1.0  # a uniform density on [-1, 1] in d = 2: 8 bits a dimension for 256 levels
    assert np.isclose(bits_per_dim(2 * np.log(0.5), 2, offset=-np.log2(2 / levels.size)), 8.0)
    assert -np.log2(2 / levels.size) == 7.0
    x = GAUSSIAN.sample(4, 0)
    found = log_likelihood(GAUSSIAN.eps(VP), VP, x, steps=3)
    assert np.allclose(found.bits_per_dim, -found.log_prob / (3 * np.log(2)))
    assert isinstance(bits_per_dim(torch.zeros(2), 2, offset=7.0), torch.Tensor)


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model=3 must be a function"),
        ({"process": "vp"}, "process='vp' must be a Process"),
        ({"x_0": np.ones(3)}, r"x_0 has shape \(3,\)"),
        ({"x_0": np.ones((0, 3))}, r"x_0 has shape \(0, 3\)"),
        ({"x_0": np.full((2, 3), np.nan)}, "x_0 must be finite"),
        ({"x_0": np.ones((2, 3), dtype=int)}, "x_0 has dtype int64"),
        ({"trace": "exactly"}, "trace='exactly' is unknown"),
        ({"probes": 0}, "probes=0"),
        ({"seed": -1}, "seed=-1"),
        ({"prior": 1.0}, "prior=1.0 must be a function"),
        ({"prior": lambda x: None}, r"prior\(x_T\)=None must be made of real numbers"),
        ({"prior": lambda x: x}, r"prior returned shape \(2, 3\)"),
        ({"prior": lambda x: x[:, 0] * np.inf}, "prior returned NaN or infinity"),
        ({"t_end": 2.0}, "t_end=2.0"),
        ({"t_start": 0.1, "t_end": 0.2}, "t_end=0.2 must be below"),
        ({"model": lambda x, t: x[:, :2]}, r"model returned shape \(2, 2\) at call 1"),
        ({"model": lambda x, t: x.detach().numpy()}, "model returned ndarray at call 1"),
        ({"model": lambda x, t: x * np.nan}, "model returned NaN or infinity at call 1"),
        ({"model": lambda x, t: torch.sqrt(x - x)}, "derivative of model is NaN or infinite at call 1"),
        ({"model": torch.no_grad()(lambda x, t: 2 * x)}, "model is not differentiable in x at call 1"),
        ({"model": lambda x, t: torch.ones(2, 3, requires_grad=True) * 1}, "model is not differentiable in x"),
    ],
)
def test_bad_input(change, message):
    arguments = {"model": GAUSSIAN.eps(VP), "process": VP, "x_0": np.ones((2, 3))} | change
    with pytest.raises(ValueError, match=message):
        log_likelihood(**arguments, steps=2)
    with pytest.raises(ValueError, match=message):
        log_likelihood_rk45(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"method": "3kuta"}, "method='3kuta' is unknown; nearest: 3kutta"),
        ({"kind": "rho"}, "kind='rho' is unknown"),
        ({"kind": "twostage"}, "kind='twostage' ends at a time of its own"),
        ({"known_variance": 0.0}, "known_variance=0.0 must be a positive"),
    ],
)
def test_bad_input_of_the_grid(change, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(GAUSSIAN.eps(VP), VP, np.ones((2, 3)), **({"steps": 2} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rtol": 0.0}, "rtol=0.0"), ({"atol": -1.0}, "atol=-1.0"), ({"rtol": 1e-16}, "cannot be met in float64")],
)
def test_bad_tolerances(change, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood_rk45(GAUSSIAN.eps(VP), VP, np.ones((2, 3)), **change)


def test_bad_input_of_bits_per_dim():
    for arguments, message in (
        ({"log_prob": np.nan}, "log_prob must be finite"),
        ({"dimension": 0}, "dimension=0"),
        ({"offset": np.inf}, "offset=inf"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            bits_per_dim(**({"log_prob": np.zeros(2), "dimension": 2} | arguments))


# -- the experiment -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def frame():
    return quick(appendix_blackbox)


def test_the_turned_densities_are_those_of_the_unturned(frame):
    config = frame[1]
    cases = appendix_blackbox.densities(config)
    data = digits()
    covariance = np.cov(data.T) + config["floor"] * np.eye(64)
    x = cases["gaussian"].x
    truth = multivariate_normal(
        VP.alpha(0.1) * data.mean(0), VP.alpha(0.1) ** 2 * covariance + VP.sigma(0.1) ** 2 * np.eye(64)
    )
    assert np.allclose(cases["gaussian"].log_prob(x, VP, 0.1), truth.logpdf(x), rtol=1e-9)
    for problem in cases.values():
        assert np.allclose(problem.axes.T @ problem.axes, np.eye(problem.mix.dimension), atol=1e-12)
        z = torch.as_tensor(problem.x).requires_grad_()
        (score,) = torch.autograd.grad(problem.log_prob(z, VP, 0.1).sum(), z)
        assert torch.allclose(problem.model(VP)(z, 0.1), -float(VP.sigma(0.1)) * score, atol=1e-9)
        jacobian = torch.autograd.functional.jacobian(lambda x, p=problem: p.model(VP)(x, 0.1), z[0].detach())
        assert (jacobian - torch.diag(torch.diag(jacobian))).abs().max() > 0.01


def test_the_prior_and_the_end_time_are_measured_apart(frame):
    rows, config = frame
    for name, problem in appendix_blackbox.densities(config).items():
        part = rows[(rows.model == name) & (rows.part != "samples")].set_index("part")
        d = problem.mix.dimension
        found = log_likelihood_rk45(problem.model(VP), VP, problem.x, rtol=1e-9, atol=1e-9)
        gap = found.log_prior - np.asarray(problem.log_prob(found.x_T, VP, 1.0))
        assert np.isclose(part.rms["prior"], np.sqrt(np.mean(gap**2)) / d / np.log(2), rtol=1e-4)
        gap = problem.log_prob(problem.x, VP, config["t_end"]) - problem.log_prob(problem.x)
        assert np.isclose(part.rms["truncation"], np.sqrt(np.mean(gap**2)) / d / np.log(2), rtol=1e-9)


def test_both_forms_are_what_each_gives_by_itself(frame):
    """The two share a path: only one is integrated, the other is that and what the rule makes of the known part."""
    rows, config = frame
    for name, density in appendix_blackbox.densities(config).items():
        truth = density.log_prob(density.x, VP, config["t_end"])
        for form, known in (("plain", None), ("split", config["known_variance"])):
            for calls in config["calls"]:
                found = log_likelihood(
                    density.model(VP), VP, density.x, steps=calls // 3, kind="t2", known_variance=known,
                    prior=lambda x, p=density: p.log_prob(x, VP, 1.0),
                )  # fmt: skip
                row = rows[(rows.model == name) & (rows.form == form) & (rows.nfe == calls) & (rows.trace == "exact")]
                gap = (found.log_prob - truth) / np.log(2) / density.x.shape[1]
                assert row.rms.item() == pytest.approx(np.sqrt(np.mean(gap**2)), rel=1e-9)


def test_verdict_turns_with_the_data(frame):
    rows, config = frame
    said = appendix_blackbox.verdict(rows, config)
    assert "on 0 of 2 densities, with the unit-variance part exact on 2; for them RK45 itself takes" in said
    usual = rows[(rows.part == "rk45") & (rows.trace == "exact") & (rows.tolerance == config["usual_tolerance"])].nfe
    costs = appendix_blackbox.costs(rows, config)
    assert (usual.to_numpy() > costs.rk45).all()
    assert (usual.to_numpy() == costs.usual).all()
    assert f", fewer than RK45's usual {usual.iloc[0]:.0f} and {usual.iloc[1]:.0f}, on 0" in said
    assert "0.01 bits per dimension take at most 50 calls" in said
    assert said.endswith(f"RK45 itself takes {span(costs.rk45)}.")
    better = rows.assign(rms=rows.rms.where((rows.form != "plain") | (rows.nfe < 48), 1e-3))
    assert "on 2 of 2 densities, with" in appendix_blackbox.verdict(better, config)
    assert set(appendix_blackbox.costs(better, config).plain) == {48}
    worse = rows.assign(rms=rows.rms.where(rows.part != "rhork", 1.0))
    assert "on 0 of 2 densities, with the unit-variance part exact on 0; for" in appendix_blackbox.verdict(
        worse, config
    )
    assert np.isinf(appendix_blackbox.costs(worse, config)[["plain", "split"]]).all(axis=None)
    cheap = rows.assign(nfe=rows.nfe.where(rows.part != "rk45", 10))
    said = appendix_blackbox.verdict(cheap, config)
    assert "RK45's usual 10 and 10, on 0 of 2 densities, with the unit-variance part exact on 0; for them" in said
    assert set(appendix_blackbox.costs(cheap, config).rk45) == {10}
    ways = appendix_blackbox.ways(rows)
    noisy = ways[(ways.way == "noisy") & (ways.part == "rk45")]
    assert len(noisy) == 2
    assert (noisy.rms > 10 * config["wanted"]).all()
    errors = rows.pivot_table(index="model", columns="part", values="rms")
    assert (errors.prior != errors.truncation).loc[list(config["densities"])].all()
    for data in (rows, worse):
        appendix_blackbox.style.plt.close(appendix_blackbox.draw(data, config))
