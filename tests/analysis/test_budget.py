"""The error budget: it sums to the measured error, each term vanishes with its cause, and bounds are bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DISTINCT, mixtures, processes

import deis_analysis as da
from deis_analysis.analysis.budget import DISCRETIZATION, TERMS

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
OTHER = da.GaussianMixture([0.45, 0.55], [-0.9, 0.8], [0.45, 0.35])
SMOOTH = ("VPLinear", "VPCosine", "SubVP", "VE", "EDM", "RectifiedFlow")
EI = [n for n in DISTINCT if da.SOLVERS[n].degree >= 0]
KINDS = st.sampled_from(["t1", "t2", "rho7", "logrho"])


def starts(process, n=6):
    return float(process.sigma(process.sampling_range[0])) * np.linspace(-1.5, 1.5, n)


def spent(name):
    """A few model calls: enough for one step after the start-up, in whole blocks."""
    return da.SOLVERS[name].calls(da.SOLVERS[name].shortest)


def budget_of(process, name, exact, model=None, nfe=None, **options):
    return da.error_budget(model, exact, name, nfe or spent(name), process=process, x_T=starts(process), **options)


# -- the terms sum to the error -------------------------------------------------------------------
@given(processes(SMOOTH), mixtures(), mixtures(), mixtures(), st.sampled_from(DISTINCT), KINDS, st.integers(0, 4))
def test_terms_sum_to_the_measured_error(process, exact, guided, model, name, kind, extra):
    """All causes at once; the total is computed here, from the table and the exact flow alone."""
    row, x = da.SOLVERS[name], starts(process)
    steps = row.shortest + extra * row.block
    start = process.sampling_range[0]
    data = process.t_min
    prior = float(process.sigma(start))

    def told(t):
        return float(np.clip(round(t, 3), process.t_min + 1e-3, process.t_max))

    try:
        ts = da.grid(process, steps, kind)
        table = da.build(name, process, ts)
    except ValueError:
        assume(False)  # coefficients that are singular on this process, or a grid that it has not
    budget = budget_of(
        process, name, exact, model, row.calls(steps), kind=kind, t_data=data, prior_std=prior, guided=guided,
        told=told, model_dtype=np.float32,
    )  # fmt: skip
    assert tuple(budget.terms) == TERMS
    assert budget.nfe == table.nfe
    in_eps = table.in_terms_of(process, "eps")
    rounded = da.Tableau(np.array([told(t) for t in in_eps.times]), in_eps.states, in_eps.outputs)
    result = da.run(rounded, model.eps(process), x, model_dtype=np.float32)
    ideal = exact.flow(process, exact.from_prior(process, x, start, prior), start, data)
    total = sum(budget.terms.values())
    scale = 1 + np.abs(result).max()
    assert np.allclose(budget.total, total, rtol=0, atol=1e-10 * scale)
    assert np.allclose(total, result - ideal, rtol=0, atol=1e-6 * scale)  # float32 sees rounding of the order of sums
    assert np.isclose(sum(budget.shares().values()), 1.0, rtol=1e-9)
    assert budget.norms()["total"] <= sum(budget.norms()[t] for t in budget.terms) * (1 + 1e-12)
    assert 0 < budget.flow_error < 1e-10 * scale


@given(processes(SMOOTH), mixtures(), st.sampled_from(DISTINCT), KINDS)
def test_without_other_causes_it_is_the_global_error(process, exact, name, kind):
    row = da.SOLVERS[name]
    try:
        table = da.build(name, process, da.grid(process, row.shortest, kind))
    except ValueError:
        assume(False)
    budget = budget_of(process, name, exact, kind=kind)
    assert tuple(budget.terms) == DISCRETIZATION
    truth = da.global_error(table, process, exact, starts(process))
    assert np.allclose(sum(budget.terms.values()), truth, rtol=0, atol=1e-10 * (1 + np.abs(truth).max()))


# -- each term vanishes with its cause ------------------------------------------------------------
@given(processes(SMOOTH), mixtures(), st.sampled_from(EI), KINDS)
def test_methods_that_are_exact_on_constants_have_no_linear_part(process, exact, name, kind):
    assume(da.SOLVERS[name].variable != "t" or da.SOLVERS[name].prediction != "v")  # exact in the velocity's own clock
    try:
        budget = budget_of(process, name, exact, kind=kind)
    except ValueError:
        assume(False)
    rounding = 1e-14 * float(process.rho(process.sampling_range[0]))  # of a difference of two numbers as large as ρ
    assert np.abs(budget.terms["linear part"]).max() <= 1e-10 + rounding


@given(processes(SMOOTH), mixtures(), st.floats(0.05, 0.9))
def test_the_linear_part_of_euler_is_euler_minus_ddim(process, exact, share):
    start, end = process.sampling_range
    middle = start + share * (end - start)
    x = starts(process)
    budget = da.error_budget(None, exact, "euler", 1, middle, process=process, x_T=x, kind="t1")
    ts = np.array([start, middle])
    euler, ddim = (da.run(da.build(n, process, ts), exact.eps(process), x) for n in ("euler", "ddim"))
    truth = exact.flow(process, x, start, middle)
    scale = 1 + np.abs(euler).max()
    assert np.allclose(budget.terms["linear part"], euler - ddim, rtol=0, atol=1e-11 * scale)
    assert np.allclose(budget.terms["extrapolation"], ddim - truth, rtol=0, atol=1e-11 * scale)
    assert np.all(np.abs(budget.terms["accumulation"]) <= 1e-11 * scale)  # one step has no history


@given(processes(SMOOTH), st.floats(-1.5, 1.5), st.sampled_from(EI))
def test_point_data_need_no_extrapolation(process, place, name):
    """ε and x₀ are constant along the paths of a point mass, here of standard deviation 1e-7."""
    row = da.SOLVERS[name]
    assume(row.prediction in ("eps", "x0") and not name.startswith(("bdia", "obelm", "reversible")))
    point = da.GaussianMixture([1.0], [place], [1e-14])
    budget = budget_of(process, name, point, kind="t1" if process.t_max > 1 else "t2", t_end=0.3 * process.t_max)
    scale = 1 + np.abs(budget.result).max()
    for term in DISCRETIZATION:
        assert np.abs(budget.terms[term]).max() < 1e-8 * scale, term


@given(processes(SMOOTH), mixtures(), st.sampled_from(DISTINCT))
def test_nothing_is_left_of_a_cause_that_is_not_there(process, exact, name):
    end = process.sampling_range[1]
    budget = budget_of(
        process, name, exact, exact, guided=exact, t_data=end, told=lambda t: t, model_dtype=np.float64,
        starting_steps=0,
    )  # fmt: skip
    scale = 1 + np.abs(budget.result).max()
    for term in ("truncation", "guidance", "fitting", "start-up", "time rounding", "precision"):
        assert np.abs(budget.terms[term]).max() <= 1e-10 * scale, term


@given(st.floats(0.01, 1.0), st.floats(5.0, 25.0), st.sampled_from(["ddim", "tab2"]))
def test_no_prior_mismatch_where_the_prior_is_the_law_at_the_start(beta_min, beta_max, name):
    standard = da.GaussianMixture([1.0], [0.0], [1.0])  # N(0, 1) keeps its law on a variance-preserving process
    budget = budget_of(da.VPLinear(beta_min, beta_max), name, standard, prior_std=1.0)
    assert np.abs(budget.terms["prior mismatch"]).max() < 1e-12
    moved = da.GaussianMixture([1.0], [3.0], [1.0])
    alpha = float(da.VPLinear(beta_min, beta_max).alpha(1.0))
    off = budget_of(da.VPLinear(beta_min, beta_max), name, moved, prior_std=1.0).terms["prior mismatch"]
    assert np.allclose(off, -3.0 * alpha, rtol=1e-9, atol=1e-12)  # N(0, 1) started α·3 too low; its flow keeps that


@given(processes(SMOOTH), mixtures(), st.sampled_from(DISTINCT))
def test_an_exact_start_removes_the_start_up_term(process, exact, name):
    row = da.SOLVERS[name]
    budget = budget_of(process, name, exact)
    if row.starting_steps == 0:
        assert np.all(budget.terms["start-up"] == 0.0)
        return
    ts = da.grid(process, row.shortest, "t2")
    table = da.build(name, process, ts)
    states = {k: exact.flow(process, starts(process), ts[0], table.times[k]) if k else starts(process)
              for k in range(table.grid_nodes[row.starting_steps] + 1)}  # fmt: skip
    from deis_analysis.analysis.orders import walk

    started = walk(table, exact.model(process, table.prediction), states)[table.times.size - 1]
    result = da.run(table, exact.model(process, table.prediction), starts(process))
    assert np.allclose(budget.terms["start-up"], result - started, rtol=0, atol=1e-10 * (1 + np.abs(result).max()))


# -- two-sided: what the terms are ----------------------------------------------------------------
def test_one_step_methods_accumulate_what_the_flow_does_to_wrong_states():
    """Carried local errors from the numerical states, minus those from the exact ones, computed step by step."""
    x, ts = starts(VP), da.grid(VP, 6, "t2", 1.0, 1e-2)
    table = da.build("rhork_2heun", VP, ts)
    budget = da.error_budget(None, MIX, "rhork_2heun", 12, 1e-2, process=VP, x_T=x)
    carried = da.transported_errors(table, VP, MIX, x)
    local = da.local_errors(table, VP, MIX, x)
    ideal = [
        (MIX.flow(VP, e + MIX.flow(VP, x, 1.0, t), t, ts[-1]) if t > ts[-1] else e + MIX.flow(VP, x, 1.0, t))
        - MIX.flow(VP, x, 1.0, ts[-1])
        for e, t in zip(local, ts[1:], strict=True)
    ]
    assert np.allclose(budget.terms["extrapolation"], sum(ideal), rtol=0, atol=1e-11)
    assert np.allclose(budget.terms["accumulation"], carried.sum(axis=0) - sum(ideal), rtol=0, atol=1e-11)
    assert np.abs(budget.terms["accumulation"]).max() > 1e-4


@pytest.mark.parametrize(("name", "degree"), [("ddim", 0), ("tab1", 1), ("tab2", 2), ("tab3", 3), ("logrhoab2", 2)])
def test_the_extrapolation_term_has_order_degree_plus_one(name, degree):
    norms = []
    for n in (40, 80, 160):
        budget = da.error_budget(
            None, MIX, name, n, 0.1, t_start=0.4, process=VP, x_T=np.linspace(-1.2, 1.4, 9), kind="t2"
        )
        norms.append(budget.norms()["extrapolation"])
    assert abs(np.log2(norms[0] / norms[2]) / 2 - (degree + 1)) < 0.12
    assert norms[2] > 1e-12


def test_fitting_is_the_difference_of_two_flows_and_truncation_the_rest_of_the_path():
    x = starts(VP)
    budget = da.error_budget(OTHER, MIX, "tab2", 8, 1e-2, process=VP, x_T=x, t_data=0.0)
    fitting = OTHER.flow(VP, x, 1.0, 1e-2) - MIX.flow(VP, x, 1.0, 1e-2)
    truncation = MIX.flow(VP, x, 1.0, 1e-2) - MIX.flow(VP, x, 1.0, 0.0)
    assert np.allclose(budget.terms["fitting"], fitting, atol=1e-12)
    assert np.allclose(budget.terms["truncation"], truncation, atol=1e-12)
    assert np.allclose(budget.exact_flow, OTHER.flow(VP, x, 1.0, 1e-2), atol=1e-12)
    assert np.abs(fitting).max() > 1e-2 < np.abs(truncation).max() * 10


def test_a_frozen_score_fails_by_extrapolation_and_not_by_its_linear_part():
    budget = da.error_budget(None, MIX, "ei_score", 10, 1e-2, process=VP, x_T=starts(VP))
    assert np.all(budget.terms["linear part"] == 0.0)
    as_eps = da.error_budget(None, MIX, "ei_score", 10, 1e-2, process=VP, x_T=starts(VP), frozen="eps")
    assert np.abs(as_eps.terms["linear part"]).max() > 0.05


def rounding_norms(told, steps=(40, 160)):
    found = [da.error_budget(None, MIX, "tab2", n, 0.02, process=VP, x_T=starts(VP), told=told).norms() for n in steps]
    return [f["time rounding"] for f in found], found[-1]


def test_the_budget_of_euler_on_a_gaussian_step_by_step():
    """Six steps of Euler, of the exponential integrator and of the exact flow, all written out."""
    v, x = 0.4, starts(VP)
    gauss, ts = da.GaussianMixture([1.0], [0.0], [v]), da.grid(VP, 6, "t2", 1.0, 1e-3)
    budget = da.error_budget(None, gauss, "euler", 6, 1e-3, process=VP, x_T=x)
    alpha, sigma, rho = (lambda t, f=f: float(f(t)) for f in (VP.alpha, VP.sigma, VP.rho))

    def spread(t):
        return np.sqrt(alpha(t) ** 2 * v + sigma(t) ** 2)

    linear, local = np.zeros((2, *x.shape))
    for t, s in itertools.pairwise(ts):
        here = x * spread(t) / spread(1.0)
        eps = sigma(t) * here / spread(t) ** 2
        slope = float(VP.drift(t)) * here + float(VP.diffusion_squared(t)) / (2 * sigma(t)) * eps
        euler, exponential = here + (s - t) * slope, alpha(s) / alpha(t) * here + alpha(s) * (rho(s) - rho(t)) * eps
        to_end = spread(1e-3) / spread(s)
        linear += to_end * (euler - exponential)
        local += to_end * (euler - here * spread(s) / spread(t))
    assert np.allclose(budget.terms["linear part"], linear, rtol=0, atol=1e-12)
    assert np.allclose(budget.terms["extrapolation"], local - linear, rtol=0, atol=1e-12)
    assert np.abs(linear).max() > 0.05


@pytest.mark.parametrize("name", ["rhork_2heun", "rhork_3kutta", "dpm_2"])
def test_the_linear_part_of_a_method_with_stages(name):
    """One step with a model whose v is constant, through the table's own stages, beside the exact answer."""
    x, calls = starts(VP), da.SOLVERS[name].stages
    budget = da.error_budget(None, MIX, name, calls, 0.6, process=VP, x_T=x, frozen="v")
    v = MIX.v(VP)(x, 1.0)
    stepped = da.run(
        da.build(name, VP, np.array([1.0, 0.6])), lambda u, t: float(VP.sigma(t)) * u + float(VP.alpha(t)) * v, x
    )
    angle = {t: np.arctan2(float(VP.sigma(t)), float(VP.alpha(t))) for t in (1.0, 0.6)}
    exact = x + v * (angle[0.6] - angle[1.0])  # v is dx/dangle
    line = budget.terms["linear part"]
    assert np.allclose(line, stepped - exact, rtol=0, atol=1e-11 * (1 + np.abs(stepped).max()))
    assert np.abs(line).max() > 1e-3
    truth = MIX.flow(VP, x, 1.0, 0.6)
    assert np.allclose(line + budget.terms["extrapolation"], budget.result - truth, rtol=0, atol=1e-11)


def test_truncated_times_leave_a_floor_that_more_steps_do_not_remove():
    (few, many), norms = rounding_norms(lambda t: max(0.02, np.floor(50 * t) / 50))
    assert 0.7 < many / few < 1.4
    assert norms["total"] > 0.9 * many > 50 * norms["extrapolation"]


def test_times_rounded_to_the_nearest_average_out_over_many_steps():
    (few, many), _ = rounding_norms(lambda t: max(0.02, round(50 * t) / 50))
    assert many < 0.2 * few


def test_bfloat16_costs_more_than_float32():
    x = torch.tensor(starts(VP))
    low, single = (
        da.error_budget(None, MIX, "tab2", 10, 1e-2, process=VP, x_T=x, model_dtype=dtype).norms()["precision"]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert 1e-4 < low < 0.1
    assert 1e-9 < single < 1e-5
    for dtype, least, most in ((torch.float32, 1e-9, 1e-5), (torch.bfloat16, 1e-4, 0.1)):
        state = da.error_budget(None, MIX, "tab2", 10, 1e-2, process=VP, x_T=x, state_dtype=dtype)
        assert least < state.norms()["precision"] < most


def test_a_float32_network_is_called_in_float32():
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)

    def model(x, t):
        return net(x[:, None])[:, 0]

    options = {"process": VP, "x_T": torch.tensor(starts(VP)), "rtol": 1e-5}
    with torch.no_grad():
        kept = da.error_budget(model, MIX, "tab1", 5, 1e-2, network_dtype=torch.float32, **options)
        net = net.double()
        cast = da.error_budget(model, MIX, "tab1", 5, 1e-2, **options)
    assert np.allclose(kept.terms["fitting"], cast.terms["fitting"], rtol=1e-3, atol=1e-3)  # both flows are integrated
    assert np.abs(kept.terms["fitting"]).max() > 0.1
    assert kept.total.dtype == np.float64


def test_guidance_is_the_guided_flow_against_the_plain_one():
    def guided(x, t):
        return MIX.eps(VP)(x, t) + 0.5 * (OTHER.eps(VP)(x, t) - MIX.eps(VP)(x, t))

    x = starts(VP)
    budget = da.error_budget(None, MIX, "tab2", 8, 1e-2, process=VP, x_T=x, guided=guided, rtol=1e-9)
    path = da.reference_solution(guided, VP, x, 1e-2, 1e-10, 1e-10, certify=False).x
    assert np.allclose(budget.terms["guidance"], path - MIX.flow(VP, x, 1.0, 1e-2), atol=1e-7)
    table = da.build("tab2", VP, da.grid(VP, 8, "t2", 1.0, 1e-2))
    assert np.allclose(sum(budget.terms.values()), da.run(table, guided, x) - MIX.flow(VP, x, 1.0, 1e-2), atol=1e-10)
    assert 0 < budget.flow_error < 1e-6


def test_the_network_is_fitted_to_the_guided_model():
    x, third = starts(VP), da.GaussianMixture([0.5, 0.5], [-1.2, 1.0], [0.4, 0.4])
    budget = da.error_budget(third, MIX, "tab2", 8, 1e-2, process=VP, x_T=x, guided=OTHER)
    plain, guided, learned = (m.flow(VP, x, 1.0, 1e-2) for m in (MIX, OTHER, third))
    assert np.allclose(budget.terms["guidance"], guided - plain, atol=1e-12)
    assert np.allclose(budget.terms["fitting"], learned - guided, atol=1e-12)
    assert np.abs(guided - plain).max() > 1e-2 < np.abs(learned - guided).max()


def test_functions_give_what_mixtures_give():
    """Without closed forms the flows are integrated: the same terms to the accuracy of the flow, the same sum."""
    x = starts(VP)
    options = {"process": VP, "x_T": x, "t_start": 1.0}
    closed = da.error_budget(OTHER, MIX, "tab1", 6, 1e-2, **options)
    found = da.error_budget(OTHER.eps(VP), MIX.eps(VP), "tab1", 6, 1e-2, rtol=1e-9, **options)
    for name, part in closed.terms.items():
        assert np.allclose(found.terms[name], part, atol=1e-6), name
    assert np.allclose(found.total, sum(found.terms.values()), rtol=0, atol=1e-12)
    assert 0 < found.flow_error < 1e-6


@pytest.mark.parametrize("frozen", [None, "x0", "v"])
@pytest.mark.parametrize("name", ["tab2", "dpmpp_2m", "euler", "rhork_2heun"])
def test_a_mean_moves_nothing(name, frozen):
    mean = 0.7
    process = da.MeanReverting(VP, mean)
    shifted = da.GaussianMixture(MIX.weights, MIX.means + mean, MIX.covariances)
    x = starts(VP)
    options = {"prior_std": 1.0, "t_data": 0.0, "frozen": frozen}
    plain = da.error_budget(None, MIX, name, 8, 1e-2, process=VP, x_T=x, **options)
    moved = da.error_budget(None, shifted, name, 8, 1e-2, process=process, x_T=x + mean, **options)
    for term in plain.terms:
        assert np.allclose(plain.terms[term], moved.terms[term], rtol=0, atol=1e-10), term


def test_torch_gives_what_numpy_gives():
    x = np.stack([starts(VP), starts(VP)[::-1]], axis=1)
    product = da.ProductMixture([MIX, OTHER])
    a = da.error_budget(None, product, "tab2", 8, 1e-2, process=VP, x_T=x, prior_std=1.0, t_data=0.0)
    b = da.error_budget(None, product, "tab2", 8, 1e-2, process=VP, x_T=torch.tensor(x), prior_std=1.0, t_data=0.0)
    assert all(np.allclose(a.terms[t], b.terms[t], rtol=0, atol=1e-11) for t in a.terms)


def test_the_transport_from_the_prior_has_the_law_at_the_start():
    covariance = np.array([[0.5, 0.2], [0.2, 0.4]])
    gauss = da.GaussianMixture([1.0], [[1.0, -2.0]], covariance[None])
    x = np.random.default_rng(0).standard_normal((4, 2))
    y = gauss.from_prior(VP, x, 0.3, std=2.0)
    alpha, sigma = float(VP.alpha(0.3)), float(VP.sigma(0.3))
    from scipy.linalg import sqrtm

    root = np.real(sqrtm(alpha**2 * covariance + sigma**2 * np.eye(2)))  # symmetric: the optimal map of Gaussians
    assert np.allclose(y, alpha * np.array([1.0, -2.0]) + x @ root / 2.0)
    from scipy.stats import norm

    z = MIX.from_prior(VP, x, 0.3, std=2.0)
    level = sum(w * norm.cdf(z, alpha * m, np.sqrt(alpha**2 * v + sigma**2))
                for w, m, v in zip(MIX.weights, MIX.means, MIX.covariances, strict=True))  # fmt: skip
    assert np.allclose(level, norm.cdf(x / 2.0), atol=1e-12)
    one = da.GaussianMixture([1.0], [0.7], [0.5])
    assert np.allclose(one.from_prior(VP, x, 0.3, std=2.0), alpha * 0.7 + np.sqrt(alpha**2 * 0.5 + sigma**2) * x / 2.0)


# -- laws -----------------------------------------------------------------------------------------
@given(processes(SMOOTH), mixtures(), mixtures(), st.sampled_from(["ddim", "tab2", "dpmpp_2m"]), st.integers(4, 8))
def test_bounds_are_bounds(process, exact, model, name, nfe):
    """Paths are a coupling of the laws, and distances obey the triangle inequality."""
    budget = budget_of(process, name, exact, model, nfe, t_data=process.t_min, prior_std=1.0)
    laws = da.law_budget(budget, exact.sample(30, 3))
    for term, distance in laws.terms.items():
        assert distance.value <= laws.pathwise[term] * (1 + 1e-9) + 1e-12, term
    assert laws.sampler_data.value <= laws.sampler_flow.value + laws.flow_data.value + 1e-12
    assert np.isclose(laws.sampler_flow.value, laws.terms["discretization"].value, rtol=1e-6, atol=1e-12)


def test_bands_are_those_of_pairs():
    """Two clouds of one budget come from the same starts."""
    budget = da.error_budget(OTHER, MIX, "ddim", 6, 1e-2, process=VP, x_T=np.linspace(-2, 2, 40))
    laws = da.law_budget(budget, MIX.sample(50, 0))
    moved = budget.ideal + budget.terms["fitting"]
    assert laws.terms["fitting"] == da.wasserstein2(moved, budget.ideal, paired=True)
    assert laws.terms["fitting"] != da.wasserstein2(moved, budget.ideal)
    assert laws.sampler_flow == da.wasserstein2(budget.result, budget.exact_flow, paired=True)
    last, same = laws.terms["discretization"], laws.sampler_flow  # value and band: between the same two clouds
    assert [last.value, last.low, last.high] == pytest.approx([same.value, same.low, same.high], rel=1e-9)
    assert laws.flow_data == da.wasserstein2(budget.exact_flow, MIX.sample(50, 0))
    assert laws.energy["flow_data"] == da.energy_distance(budget.exact_flow, MIX.sample(50, 0))


def test_each_law_is_compared_with_the_one_before():
    """Clouds so far apart that the best pairing is not that of the starts."""
    rng = np.random.default_rng(0)
    ideal, *parts = rng.standard_normal((6, 30, 2))
    terms = dict(zip(("fitting", *DISCRETIZATION), parts, strict=True))
    exact_flow, result = ideal + parts[0], ideal + sum(parts)
    budget = da.ErrorBudget(terms, ideal, result, exact_flow, "none", 0, 0.0)
    laws = da.law_budget(budget, ideal)
    assert laws.terms["discretization"].value == pytest.approx(da.wasserstein2(result, exact_flow).value)
    assert laws.terms["fitting"].value == pytest.approx(da.wasserstein2(exact_flow, ideal).value)
    assert laws.pathwise["fitting"] == pytest.approx(np.sqrt((parts[0] ** 2).sum(axis=1).mean()))
    assert laws.terms["fitting"].value < 0.9 * laws.pathwise["fitting"]


def test_a_rotation_of_the_paths_is_no_error_of_the_law():
    gauss = da.GaussianMixture([1.0], np.zeros((1, 2)), [0.5])
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    x = np.random.default_rng(0).standard_normal((400, 2))

    def curled(x, t):  # s + κ K x with κ = 1: ε − σ K x
        return gauss.eps(VP)(x, t) - float(VP.sigma(t)) * x @ turn.T

    budget = da.error_budget(curled, gauss, "rhork_4rk", 40, 0.05, process=VP, x_T=x, t_start=0.4, rtol=1e-7)
    laws = da.law_budget(budget, gauss.sample(400, 1, VP, 0.05))
    assert laws.pathwise["fitting"] > 2 * laws.terms["fitting"].value


def test_tables_are_printed():
    budget = da.error_budget(OTHER, MIX, "tab2", 8, 1e-2, process=VP, x_T=starts(VP), t_data=0.0)
    text = str(budget)
    assert text.splitlines()[0].startswith("tab2, 8 model calls")
    assert all(name in text for name in (*budget.terms, "total"))
    assert "sampler – data" in str(da.law_budget(budget, MIX.sample(50, 0)))


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "ddpm"}, "draws noise"),
        ({"solver": "nonsense"}, "nonsense"),
        ({"nfe": 0}, "nfe=0"),
        ({"solver": "rhork_4rk", "nfe": 3}, "nfe=3 is too few"),
        ({"t_data": 0.5}, "t_data=0.5 must be at most"),
        ({"prior_std": -1.0}, "prior_std=-1.0"),
        ({"prior_std": 1.0, "exact": lambda x, t: x}, "prior_std"),
        ({"exact": 3}, "exact=3"),
        ({"model": "net"}, "model='net'"),
        ({"guided": 1.0}, "guided=1.0"),
        ({"told": 5}, "told=5"),
        ({"x_T": np.array([np.nan])}, "x_T must be finite"),
        ({"frozen": "noise"}, "frozen='noise'"),
        ({"exact": None}, "exact=None"),
        ({"told": lambda t: None}, r"told\(1\)=None"),
        ({"told": lambda t: np.nan}, r"told\(1\)=nan"),
        ({"x_T": np.zeros(0)}, r"x_T has shape \(0,\)"),
        ({"x_T": np.float64(1.0)}, r"x_T has shape \(\)"),
        ({"model_dtype": torch.float32}, "model_dtype=torch.float32 must be a floating dtype"),
        ({"state_dtype": int}, "state_dtype=<class 'int'> must be"),
        ({"network_dtype": "no"}, "network_dtype='no'"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"kind": "t0"}, "kind"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "model": None,
        "exact": MIX,
        "solver": "tab2",
        "nfe": 6,
        "t_end": 1e-2,
        "process": VP,
        "x_T": np.ones(3),
    }
    with pytest.raises(ValueError, match=message):
        da.error_budget(**(arguments | change))


@pytest.mark.parametrize("data", [np.ones((5, 2)), np.ones(1), np.array([1.0, np.nan])])
def test_data_of_a_law_budget(data):
    budget = da.error_budget(None, MIX, "ddim", 3, 0.1, process=VP, x_T=starts(VP))
    with pytest.raises(ValueError, match="data"):
        da.law_budget(budget, data)


@pytest.mark.parametrize("std", [-1.0, 0.0, "a", np.inf])
def test_the_transport_wants_a_width(std):
    for mix in (MIX, da.GaussianMixture([1.0], [[0.0, 1.0]], [1.0])):
        with pytest.raises(ValueError, match="std="):
            mix.from_prior(VP, np.ones((2, 2)), 0.5, std)
    with pytest.raises(ValueError, match="x must be finite"):
        MIX.from_prior(VP, np.array([np.nan]), 0.5)
    with pytest.raises(ValueError, match="process=None"):
        MIX.from_prior(None, np.ones(2), 0.5)


def test_no_error_has_no_shares():
    standard = da.GaussianMixture([1.0], [0.0], [1.0])
    zero = da.error_budget(None, standard, "ddim", 1, 0.5, process=VP, x_T=np.zeros(3))
    with pytest.raises(ValueError, match="no error"):
        zero.shares()
