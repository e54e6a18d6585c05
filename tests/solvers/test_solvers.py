"""Every claim of the registry, measured: order with both starts, degree, NFE; equivariance; bad input."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import CONTINUOUS, DISTINCT, STOCHASTIC, grids, mixtures, processes

import deis_analysis as da

ROWS = DISTINCT
VP = da.VPLinear()
BROAD = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
OTHER = da.GaussianMixture([0.7, 0.3], [0.6, -0.9], [0.25, 0.7])


# The broad mixture, with both starts, degree, NFE and noise of every row: test_cli.py, through the command.
@pytest.mark.parametrize("start", ["exact", "own"])
@pytest.mark.parametrize("name", ROWS)
def test_order_on_another_problem_is_the_declared_one(name, start):
    row = da.SOLVERS[name]
    process, _, options = da.order_problem(row.home)
    counts = da.step_counts(row, start)[:3]  # the fourth is half of the work
    found = da.observed_order(name, process, OTHER, counts, start=start, **(options | {"kind": "t1.5"}))
    declared = row.order_exact_start if start == "exact" else row.order
    assert abs(found.slope - declared) <= 0.15, found
    assert found.standard_error < 0.05


def test_order_is_measured_where_the_grid_ends():
    """A two-stage grid ends above t_end: against the exact state at t_end errors would not fall."""
    options = {"kind": "twostage", "t_start": 0.4, "t_end": 0.1}
    assert da.grid(VP, 20, **options)[-1] > 0.14
    assert abs(da.observed_order("ddim", VP, OTHER, (20, 40, 80), **options).slope - 1) < 0.05


def test_why_the_midpoint_rule_gains_an_order_on_gaussian_data():
    """On Gaussian data dy/dφ = f y with f = m'/2m, m the variance; where m is quadratic in φ (ρ² + v in ρ, and in t on
    straight paths) the leading error f''/24 + f f'/4 + f³/6 is identically zero. One Gaussian cannot measure the order.
    """
    phi, a, b, c = sympy.symbols("phi a b c")
    m = a * phi**2 + b * phi + c
    f = m.diff(phi) / (2 * m)
    assert sympy.simplify(f.diff(phi, 2) / 24 + f * f.diff(phi) / 4 + f**3 / 6) == 0
    gaussian = da.GaussianMixture([1.0], [0.5], [0.3])
    for name, order in (("rhork_2midpoint", 3), ("flow_midpoint", 3), ("dpm_2", 2), ("edm_heun", 2)):
        process, _, options = da.order_problem(da.SOLVERS[name].home)
        found = da.observed_order(name, process, gaussian, (40, 80, 160, 320), **options)
        assert abs(found.slope - order) <= 0.05, (name, found)
        assert da.SOLVERS[name].order == 2


VP_LIKE = ("VPLinear", "VPCosine", "SubVP", "VPDiscrete")
UNEVEN_ONLY = ("ipndm1", "ipndm2", "ipndm3", "ipndm4", "f_pndm", "s_pndm", "plms", "bdia", "bdia_half")


@given(st.sampled_from(ROWS + STOCHASTIC), st.data())
def test_degree_is_the_declared_one_and_not_one_more(name, data):
    row = da.SOLVERS[name]
    # methods that are not exact on constants are DDIM, which is, where α is constant or paths are straight
    process = row.home if row.family == "flow" else data.draw(processes(VP_LIKE) if row.degree < 0 else processes())
    steps = row.shortest + row.block * data.draw(st.integers(0, 3))
    ts = data.draw(grids(process, min_steps=steps, max_steps=steps))
    table = row.build(process, ts)
    degrees = da.exactness_degree(table, process, row.prediction, row.variable, lam_sde=row.lam_sde)
    middle = degrees[row.starting_steps : degrees.size - row.final_steps]
    if name in UNEVEN_ONLY:  # made for equal steps of ρ, where they gain
        gaps = np.diff(process.rho(ts))
        if np.ptp(gaps) > 1e-3 * np.abs(gaps).max():
            assert middle.min() >= row.degree
        return
    if name == "g2rpo":
        assert middle.min() == -1
        return
    assert set(middle.tolist()) == {row.degree}, (degrees, ts)
    if row.family == "adams":  # each starting step has the degree that its shorter history allows
        assert degrees[: row.starting_steps].tolist() == list(range(row.starting_steps))


@given(st.sampled_from(["ipndm2", "ipndm3", "ipndm4"]), processes(), st.data())
def test_ipndm_is_exact_on_equal_steps_of_rho_only(name, process, data):
    """Its weights are those of equal steps of ρ: where a step and its history are, it has their degree; else less."""
    row = da.SOLVERS[name]
    ts = data.draw(grids(process, min_steps=row.starting_steps + 2, max_steps=8))
    degrees = da.exactness_degree(row.build(process, ts), process, "eps", "rho")
    gaps = np.diff(process.rho(ts))
    for i, degree in enumerate(degrees):
        reach = min(i, row.starting_steps)
        uneven = np.ptp(gaps[i - reach : i + 1]) / np.abs(gaps[i])
        if uneven < 1e-12:
            assert degree == reach
        elif uneven > 1e-3:
            assert row.degree <= degree < reach


def test_degree_sees_a_weight_that_is_wrong_by_one_part_in_a_million():
    ts = da.grid(VP, 6)
    good = da.build("tab2", VP, ts)
    outputs = good.outputs.copy()
    outputs[5, 3] *= 1 + 1e-6
    bad = da.Tableau(good.times, good.states, outputs)
    assert da.exactness_degree(good, VP, "eps", "t").tolist() == [0, 1, 2, 2, 2, 2]
    assert da.exactness_degree(bad, VP, "eps", "t").tolist() == [0, 1, 2, 2, -1, 2]


@pytest.mark.parametrize("name", list(da.SOLVERS))
def test_nfe_follows_the_declared_rule(name):
    row = da.SOLVERS[name]
    for steps in (6, 9, 15):
        calls = []
        table = da.build(name, row.home, da.grid(row.home, steps))
        da.run(table, lambda x, t, calls=calls: calls.append(t) or 0 * x, np.ones(2), noise=0)
        assert table.nfe == len(calls) == row.calls(steps)
        assert table.stochastic == row.stochastic == (row.strong_order is not None) == (row.order_exact_start is None)


@pytest.mark.parametrize("name", list(da.SOLVERS))
def test_rows_say_where_they_are_from(name):
    row = da.SOLVERS[name]
    assert row.name == name
    assert any(character.isdigit() for character in row.source)
    assert row.build(row.home, da.grid(row.home, 6)).name == name


@settings(max_examples=40)  # 15 combinations of end and method; a wrong weight lowers the order on any mixture
@given(
    mixtures(),
    st.sampled_from([0.05, 0.1, 0.2]),
    st.sampled_from(["tab1", "rhoab2", "rhork_3heun", "ddim", "rhork_4rk"]),
)
def test_order_on_drawn_mixtures(mix, t_end, name):
    """Not on chosen problems only: a drawn mixture, with exact start, lands within ± 0.3 of the claim."""
    try:
        found = da.observed_order(
            name, VP, mix, (80, 160, 320, 640), start="exact", t_start=0.4, t_end=t_end, samples=16
        )
    except ValueError as error:
        assert "round-off floor" in str(error)  # noqa: PT017 - a single Gaussian may be solved to rounding
        return
    assert abs(found.slope - da.SOLVERS[name].order_exact_start) <= 0.3


# -- Adams weights in the table -------------------------------------------------------------------
def test_a_tab2_row_is_the_integral_that_the_paper_prints():
    """DEIS eq. 15 with its own α (our α²), integrand −½ (log α)' √(α_s/α)/√(1−α) times the Lagrange basis."""
    ts = da.grid(VP, 5)
    table, i = da.build("tab2", VP, ts), 3
    nodes, s = ts[[3, 2, 1]], ts[4]

    def integrand(tau, j):
        squared = float(VP.alpha(tau)) ** 2
        dlog = 2 * float(VP.drift(tau))
        basis = np.prod([(tau - nodes[k]) / (nodes[j] - nodes[k]) for k in range(3) if k != j])
        return -0.5 * dlog * np.sqrt(float(VP.alpha(s)) ** 2 / squared) / np.sqrt(1 - squared) * basis

    for j in range(3):
        value = quad(integrand, ts[3], s, args=(j,), epsrel=1e-12)[0]
        assert np.isclose(table.outputs[i + 1, i - j], value, rtol=1e-11)


@given(
    processes(),
    st.sampled_from(da.PREDICTIONS),
    st.sampled_from(("t", "rho", "lam", "inv_rho")),
    st.integers(0, 4),
    st.data(),
)
def test_every_member_of_the_adams_family_has_its_degree(process, prediction, variable, degree, data):
    ts = data.draw(grids(process, min_steps=degree + 1, max_steps=degree + 3))
    table = da.adams(process, ts, degree, prediction=prediction, variable=variable)
    found = da.exactness_degree(table, process, prediction, variable, max_degree=degree)
    assert np.all(found[degree:] == degree), found
    assert table.nfe == ts.size - 1


@pytest.mark.parametrize("variable", ["t", "rho", "lam", "inv_rho"])
@pytest.mark.parametrize("prediction", da.PREDICTIONS)
def test_the_whole_prediction_variable_plane_converges_at_its_order(prediction, variable):
    mix = BROAD
    for builder, lead, order in (
        (lambda p, ts: da.adams(p, ts, 2, prediction=prediction, variable=variable), 2, 3),
        (lambda p, ts: da.runge_kutta(p, ts, "3heun", prediction=prediction, variable=variable), 0, 3),
    ):
        found = da.observed_order(
            builder, VP, mix, (80, 160, 320), start="exact", starting_steps=lead, t_start=0.4, t_end=0.1
        )
        assert abs(found.slope - order) <= 0.15, (prediction, variable, found)


def test_rectified_flow_starts_from_pure_noise_in_v_and_x0():
    flow, mix = da.RectifiedFlow(), BROAD
    x = np.linspace(-2, 2, 9)
    truth = mix.flow(flow, x, 1.0, 1e-3)
    for prediction in ("v", "x0"):
        errors = []
        for steps in (40, 80, 160):
            table = da.adams(flow, da.grid(flow, steps, "t1", 1.0, 1e-3), 1, prediction=prediction, variable="t")
            errors.append(np.abs(da.run(table, mix.model(flow, prediction), x) - truth).max())
        assert errors[-1] < 2e-3
        assert 1.5 < np.log2(errors[0] / errors[-1]) / 2 < 2.6, errors


@pytest.mark.parametrize("key", list(da.RUNGE_KUTTA))
def test_runge_kutta_from_pure_noise_in_x0(key):
    flow, mix = da.RectifiedFlow(), BROAD
    x = np.linspace(-2, 2, 9)
    truth, errors = mix.flow(flow, x, 1.0, 0.05), []
    for steps in (80, 160):
        table = da.runge_kutta(flow, da.grid(flow, steps, "t1", 1.0, 0.05), key, prediction="x0", variable="t")
        errors.append(np.abs(da.run(table, mix.x0(flow), x) - truth).max())
    assert abs(np.log2(errors[0] / errors[1]) - da.RUNGE_KUTTA[key].order) < 0.25


# -- equivariance ---------------------------------------------------------------------------------
@given(st.sampled_from(ROWS), st.floats(0.1, 10), mixtures(), st.data())
def test_scaling_data_and_levels_scales_the_result(name, c, mix, data):
    """On EDM, data times c with σ times c: u → c u, for every table."""
    ts = data.draw(grids(da.EDM(0.01, 10.0)))
    small, large = da.EDM(0.01, 10.0), da.EDM(0.01 * c, 10.0 * c)
    scaled = da.GaussianMixture(mix.weights, c * mix.means, c**2 * mix.covariances)
    x = 10 * np.linspace(-2, 2, 7)
    table = da.build(name, small, ts)
    a = da.run(table, mix.model(small, table.prediction), x)
    again = da.build(name, large, np.clip(c * ts, 0.01 * c, 10.0 * c))
    b = da.run(again, scaled.model(large, table.prediction), c * x)
    assert np.allclose(b, c * a, rtol=1e-9, atol=1e-9 * c * (1 + np.abs(a).max()))


@given(processes(CONTINUOUS), st.sampled_from(ROWS), st.floats(-3, 3), mixtures(), st.data())
def test_shifting_the_data_shifts_the_result(process, name, shift, mix, data):
    """x₀ + c moves x_t by α_t c and leaves ε alone; every table but naive Euler moves by α_s c exactly."""
    ts = data.draw(grids(process))
    table = da.build(name, process, ts)
    moved = da.GaussianMixture(mix.weights, mix.means + shift, mix.covariances)
    x = float(process.sigma(ts[0])) * np.linspace(-1.5, 1.5, 7)
    a = da.run(table, mix.model(process, table.prediction), x)
    b = da.run(table, moved.model(process, table.prediction), x + shift * float(process.alpha(ts[0])))
    gap = np.abs(b - a - shift * float(process.alpha(ts[-1]))).max()
    scale = 1 + np.abs(a).max() + np.abs(table.butcher().weights[-1]).sum() * (1 + abs(shift))
    if name in ("euler", "flow_euler", "flow_midpoint", "flow_heun") and not isinstance(process, (da.VE, da.EDM)):
        return
    assert gap <= 1e-10 * scale


def test_naive_euler_is_not_shift_equivariant():
    mix = BROAD
    ts, x = da.grid(VP, 10, "t1"), np.linspace(-1.5, 1.5, 7)
    table = da.build("euler", VP, ts)
    moved = da.GaussianMixture(mix.weights, mix.means + 1.0, mix.covariances)
    a, b = da.run(table, mix.eps(VP), x), da.run(table, moved.eps(VP), x + float(VP.alpha(1.0)))
    assert np.abs(b - a - float(VP.alpha(1e-3))).max() > 0.01


@given(st.sampled_from([n for n in ROWS if "rho" in n]), st.integers(2, 8), st.sampled_from(["rho7", "logrho"]))
def test_time_reparametrisation_leaves_rho_methods_unchanged(name, steps, kind):
    """The same levels ρ reached by other times and another α(t) with the same ρ: equal tables, but for told times."""
    first, last = 60.0, 0.02
    linear, cosine = da.VPLinear(), da.VPCosine()
    levels = da.EDM(last, first)
    rho = da.grid(levels, steps, kind)
    tables = [da.build(name, p, p.time_from_rho(rho)) for p in (linear, cosine)]
    scale = np.abs(tables[0].butcher().weights).max()
    assert da.distance(*tables, times=False) <= 1e-11 * scale
    assert da.distance(*tables) > 1e-3


def test_time_reparametrisation_changes_the_t_method():
    rho = da.grid(da.EDM(0.02, 60.0), 6, "rho7")
    tables = [da.build("tab3", p, p.time_from_rho(rho)) for p in (da.VPLinear(), da.VPCosine())]
    assert da.distance(*tables, times=False) > 1e-2


# -- registry and bad input -----------------------------------------------------------------------
def test_grids_may_be_lists_or_tensors():
    table = da.build("tab3", VP, TS)
    assert da.distance(table, da.build("tab3", VP, TS.tolist())) == 0
    assert da.distance(table, da.build("tab3", VP, torch.as_tensor(TS))) == 0


def test_a_new_sampler_is_one_function_and_one_row():
    def half_euler(process, ts):
        return da.adams(process, ts, 0, name="half_euler")

    row = da.Solver("half_euler", half_euler, "test", 1, 1, 0, "nobody 2000")
    try:
        da.register(row)
        assert da.build("half_euler", VP, da.grid(VP, 3)).nfe == 3
        with pytest.raises(ValueError, match="name='half_euler' is already registered"):
            da.register(row)
        with pytest.raises(ValueError, match="row='half_euler' must be a Solver"):
            da.register("half_euler")
    finally:
        da.SOLVERS.pop("half_euler")


TS = da.grid(VP, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: da.build("tab33", VP, TS), "name='tab33' is unknown; nearest: tab3"),
        (lambda: da.build(3, VP, TS), "name=3 must be a str"),
        (lambda: da.build("ddim", VP, TS[::-1]), "ts must descend strictly.*at index 1"),
        (lambda: da.build("ddim", VP, [1.0, 0.5, 0.5]), "ts must descend strictly.* 0.5 at index 2"),
        (lambda: da.build("ddim", VP, [1.0, np.nan, 0.5]), "ts must be finite; it has nan at index 1"),
        (lambda: da.build("ddim", VP, None), "ts=None must be made of real numbers"),
        (lambda: da.build("ddim", VP, "grid"), "ts='grid' must be made of real numbers"),
        (lambda: da.build("ddim", None, TS), "process=None must be a Process"),
        (lambda: da.build("ddim", VP, [1.0]), r"ts has shape \(1,\)"),
        (lambda: da.build("ddim", VP, []), r"ts has shape \(0,\)"),
        (lambda: da.build("ddim", VP, [[1.0, 0.5]]), r"ts has shape \(1, 2\)"),
        (lambda: da.build("ddim", VP, [1.5, 0.5]), r"ts=1.5 is outside \[0, 1\]"),
        (lambda: da.build("ddim", da.RectifiedFlow(), [1.0, 0.5]), "t=1.0: ρ=inf there"),
        (lambda: da.build("rhork_2heun", da.RectifiedFlow(), [1.0, 0.5]), "t=1.0: ρ=inf there"),
        (lambda: da.build("euler", da.RectifiedFlow(), [1.0, 0.5]), r"t=1.0 to 0.5: the step of euler is singular"),
        (lambda: da.runge_kutta(VP, [1.0, 0.5, 0.0], variable="t"), "the step of .* is singular there"),
        (lambda: da.build("logrhoab1", VP, [1.0, 0.5, 0.0]), "t=0.0: ρ=0 there"),
        (
            lambda: da.build("ddim", VP, da.grid(VP, 10_000_001, "t1")),
            "a grid of 10000002 points; allowed: at most 10000001",
        ),
        (lambda: da.adams(VP, TS, -1), "degree=-1 must be an integer >= 0"),
        (lambda: da.adams(VP, TS, 1.5), "degree=1.5 must be an integer"),
        (lambda: da.adams(VP, TS, 1, prediction="x_0"), "prediction='x_0' is unknown; nearest: x0"),
        (lambda: da.adams(VP, TS, 1, variable="sigma"), "variable='sigma' is unknown"),
        (lambda: da.runge_kutta(VP, TS, "3kuta"), "tableau='3kuta' is unknown; nearest: 3kutta"),
        (lambda: da.runge_kutta(VP, TS, variable="log"), "variable='log' is unknown"),
        (lambda: da.ipndm(VP, TS, 5), "terms=5 must be at most 4"),
        (lambda: da.ipndm(VP, TS, 0), "terms=0 must be an integer >= 1"),
        (lambda: da.ButcherTableau((0,), ((), (1,)), (1,), 1, 0, ""), "b has 1 stages"),
        (lambda: da.ButcherTableau((0, 1), ((), (0.5,)), (0.5, 0.5), 1, 0, ""), "each row of a must sum"),
        (lambda: da.Solver("x", da.adams, "f", 1, 1, 0, "s", prediction="noise"), "prediction='noise'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
