"""The law of a sampler's output on Gaussian data, against sampling, closed forms and the exact process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONTINUOUS, DISTINCT, STOCHASTIC, grids, processes

import deis_analysis as da

VP = da.VPLinear()
TS = da.grid(VP, 12, "t2", 0.9, 0.01)
EXACT_AT_A_POINT = sorted(
    n
    for n in STOCHASTIC
    if da.SOLVERS[n].prediction == "x0" and da.SOLVERS[n].family not in ("score_sde", "ancestral", "analytic_dpm")
)


def test_law_is_that_of_many_runs():
    """4e5 runs of samplers with noise in stages, in history and in every prediction: mean and variance within 5 σ."""
    mean, variance, n = 0.7, 0.3, 400_000
    data = da.GaussianMixture([1.0], [mean], [variance])
    for name in (
        "sde_dpmpp_2m",
        "seeds_2",
        "edm_churn",
        "gdss_s4",
        "mrs_sde_v_2",
        "analytic_ddim",
        "dpmpp_2s_ancestral",
    ):
        table = da.build(name, VP, TS)
        x = data.sample(n, 0, VP, float(TS[0]))
        found = da.run(
            table,
            data.model(VP, table.prediction),
            x,
            noise=np.random.default_rng(1).standard_normal((table.noise.shape[1], n)),
        )
        law_mean, law_variance = da.output_law(table, VP, mean, variance)
        assert abs(found.mean() - law_mean) < 5 * np.sqrt(law_variance / n), name
        assert abs(found.var() - law_variance) < 5 * law_variance * np.sqrt(2 / n), name


@given(processes(CONTINUOUS), st.sampled_from(DISTINCT), st.floats(0.05, 2.0), st.floats(-2, 2), st.data())
def test_without_noise_the_law_is_the_transfer_function(process, name, variance, mean, data):
    table = da.build(name, process, data.draw(grids(process)))
    start = float(table.times[0])
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    factor = float(da.transfer(table, process, variance))
    found_mean, found = da.output_law(table, process, mean, variance)
    assert np.isclose(found, factor**2 * (alpha**2 * variance + sigma**2), rtol=1e-12, atol=1e-300)
    gaussian = da.GaussianMixture([1.0], [mean], [variance])
    centre = da.run(table, gaussian.model(process, table.prediction), np.array([alpha * mean]))[0]
    assert np.isclose(found_mean, centre, rtol=1e-8, atol=1e-9 * (1 + da.amplification(table)) * (1 + abs(mean)))


def test_covariances_of_any_shape_and_a_mean_to_revert_to():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3))
    covariance, mean = root @ root.T, rng.standard_normal(3)
    for process in (VP, da.MeanReverting(VP, np.array([1.0, -2.0, 0.5]), noise_scale=0.4)):
        table = da.build("sde_dpmpp_2m", process, TS)
        found_mean, found = da.output_law(table, process, mean, covariance)
        values, vectors = np.linalg.eigh(covariance)
        inner = da.MeanReverting(VP, 0.0, noise_scale=getattr(process, "noise_scale", 1.0))
        target = np.zeros(3) if process.mean is None else process.mean
        plain = da.build("sde_dpmpp_2m", inner, TS)
        axes = [da.output_law(plain, inner, m, v) for m, v in zip(vectors.T @ (mean - target), values, strict=True)]
        assert np.allclose(found_mean, vectors @ np.array([a[0] for a in axes]) + target, atol=1e-12)
        assert np.allclose(vectors.T @ found @ vectors, np.diag([a[1] for a in axes]), atol=1e-12)
    assert da.output_law(table, process, mean, [0.1, 0.2, 0.3])[1].shape == (3,)
    m, v = da.output_law(da.build("ddim", VP, TS), VP, 0.5, 0.2)
    assert m.shape == v.shape == ()


def test_the_start_may_be_the_prior():
    table = da.build("ddim", VP, da.grid(VP, 10))
    factor = float(da.transfer(table, VP, 0.3))
    _, exact = da.output_law(table, VP, 0.0, 0.3)
    _, prior = da.output_law(table, VP, 0.0, 0.3, start=(0.0, 1.0))
    assert np.isclose(prior, factor**2)
    assert np.isclose(exact, factor**2 * (0.3 * float(VP.alpha(1)) ** 2 + float(VP.sigma(1)) ** 2))


@pytest.mark.parametrize("name", EXACT_AT_A_POINT)
def test_samplers_in_x0_are_exact_for_data_at_a_point(name):
    """There x₀ is constant, so a mean that is exact on constants and a noise with the right variance give the law."""
    for process in (VP, da.VPCosine(), da.VE()):
        table = da.build(name, process, da.grid(process, 6))
        mean, variance = da.output_law(table, process, 1.3, 0.0)
        last = float(table.times[-1])
        assert np.isclose(variance, float(process.sigma(last)) ** 2, rtol=1e-9)
        assert np.isclose(mean, 1.3 * float(process.alpha(last)), rtol=1e-9)


def test_exact_at_a_point_is_a_property_that_can_fail():
    for name in ("ddpm_large", "euler_maruyama", "sde_dpm_1", "seeds_2", "gdss_s4"):
        table = da.build(name, VP, da.grid(VP, 6))
        variance = float(da.output_law(table, VP, 1.3, 0.0)[1])
        assert abs(variance / float(VP.sigma(table.times[-1])) ** 2 - 1) > 0.1, name
    for eta in (0.0, 0.4, 1.0):  # every η keeps it
        table = da.ddim_eta(VP, da.grid(VP, 6), eta)
        assert np.isclose(da.output_law(table, VP, 1.3, 0.0)[1], float(VP.sigma(1e-3)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("variance", [0.2, 0.9])
def test_analytic_dpm_has_the_exact_variance_on_isotropic_gaussians(variance):
    """With the true moments Γ = σ²/(α²v + σ²) each step has the exact conditional law: any number of steps is exact."""
    moments = lambda t: float(VP.sigma(t) ** 2 / (VP.alpha(t) ** 2 * variance + VP.sigma(t) ** 2))  # noqa: E731
    exact = float(VP.alpha(TS[-1])) ** 2 * variance + float(VP.sigma(TS[-1])) ** 2
    for eta in (0.0, 0.5, 1.0):
        table = da.analytic_dpm(VP, TS, moments, eta)
        assert np.isclose(da.output_law(table, VP, 0.0, variance)[1], exact, rtol=1e-11)
        plain = da.ddim_eta(VP, TS, eta)
        assert not np.isclose(da.output_law(plain, VP, 0.0, variance)[1], exact, rtol=1e-3)
    data = da.GaussianMixture([1.0], [0.0], [variance])
    estimate = da.moment_estimate(data.eps(VP), TS, data.sample(20_000, 0))
    exact_rest = 1 - np.array([moments(t) for t in TS[:-1]])
    assert np.allclose(1 - estimate, exact_rest, rtol=0.05)  # relative to 1 − Γ, which is 5e-5 at t = 1


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_from_the_exact_law_is_the_declared_one(name):
    """On other Gaussians than those of `measure`; the variance converges to the exact one."""
    row = da.SOLVERS[name]
    process, _, options = da.order_problem(row.home)
    found = da.weak_order(
        row.build, process, da.step_counts(row, "weak"), mean=[0.2, -0.4], variance=[0.15, 0.6], **options
    )
    assert abs(found.slope - row.order) <= 0.15, found
    assert found.errors[-1] < 5e-3
    strong = da.strong_order(row.build, process, (20, 40, 80), mean=0.3, variance=0.4, **options)
    assert abs(strong.slope - row.strong_order) <= 0.15, strong


def test_strong_distance_is_that_of_runs_on_one_brownian_path():
    data = da.GaussianMixture([1.0], [0.3], [0.4])
    n = 20_000
    x = data.sample(n, 0, VP, 0.4)
    path = da.BrownianPath((n,), 5)
    for name in ("sde_dpmpp_1", "seeds_2", "ddim_eta05"):
        tables = [da.build(name, VP, da.grid(VP, steps, "t2", 0.4, 0.1)) for steps in (3, 4)]
        a, b = (da.run(table, data.model(VP, table.prediction), x, path) for table in tables)
        found = float(da.strong_distance(*tables, VP, 0.3, 0.4)[0])
        assert np.isclose(np.sqrt(np.mean((a - b) ** 2)), found, rtol=0.04), name


def test_strong_order_on_a_mixture_by_sampling():
    """Not on Gaussians alone: 4,000 paths of a mixture, one Brownian path, grids of 8 to 64 steps."""
    mix = da.order_problem()[1]
    x, path = mix.sample(4000, 0, VP, 0.4), da.BrownianPath((4000,), 1)
    for name, order in (("sde_dpmpp_2m", 1), ("euler_maruyama", 1), ("g2rpo", 0.5)):
        ends = {}
        for steps in (8, 16, 32, 64):
            table = da.build(name, VP, da.grid(VP, steps, "t2", 0.4, 0.1))
            ends[steps] = da.run(table, mix.model(VP, table.prediction), x, path)
        gaps = [np.sqrt(np.mean((ends[n] - ends[2 * n]) ** 2)) for n in (8, 16, 32)]
        assert abs(np.log2(gaps[0] / gaps[2]) / 2 - order) < 0.25, (name, gaps)


@pytest.mark.parametrize("name", ["reverse_diffusion", "euler_maruyama"])
def test_strong_distance_does_not_see_where_the_process_reverts_to(name):
    """Neither method is shift-equivariant, so data about μ and data about 0 differ unless the table acts on x − μ."""

    def found(process, mean):
        a, b = (da.build(name, process, da.grid(process, n, "t2", 0.4, 0.1)) for n in (8, 16))
        return da.strong_distance(a, b, process, mean, [0.4, 0.2])

    plain = found(VP, [0.3, -0.5])
    assert np.allclose(found(da.MeanReverting(VP, 2.0), [2.3, 1.5]), plain, rtol=1e-12)
    assert np.allclose(found(da.MeanReverting(VP, [2.0, -1.0]), [2.3, -1.5]), plain, rtol=1e-12)
    assert np.all(np.abs(found(VP, [2.3, 1.5]) / plain - 1) > 0.005)  # what leaving μ in would give


def test_strong_distance_of_deterministic_tables_is_that_of_their_affine_maps():
    """Euler and DDIM differ in slope and offset; both are read off two runs, about a mean that is far from 0."""
    mean, variance = 5.0, 0.3
    data = da.GaussianMixture([1.0], [mean], [variance])
    a, b = da.build("euler", VP, TS), da.build("ddim", VP, TS)
    alpha, sigma = float(VP.alpha(TS[0])), float(VP.sigma(TS[0]))
    x = alpha * mean + np.array([0.0, 1.0])
    at_mean, further = da.run(a, data.eps(VP), x) - da.run(b, data.eps(VP), x)
    expected = np.hypot((further - at_mean) * np.sqrt(alpha**2 * variance + sigma**2), at_mean)
    assert abs(at_mean) > 0.1 * expected
    assert np.isclose(da.strong_distance(a, b, VP, mean, variance)[0], expected, rtol=1e-9)


def test_law_error_does_not_see_where_the_process_reverts_to():
    for name in ("euler_maruyama", "sde_dpmpp_2m", "ddim"):
        found = []
        for process, mean in ((VP, [0.3, -0.5]), (da.MeanReverting(VP, [2.0, -1.0]), [2.3, -1.5])):
            table = da.build(name, process, da.grid(process, 6, "t2", 0.9, 0.3))
            found.append(da.law_error(table, process, mean, [0.4, 0.2]))
        assert np.allclose(*found, rtol=1e-10)
        assert np.all(found[0] > 1e-3)
        assert np.all(found[0] < 1.0)


def test_the_start_is_in_the_coordinates_of_x():
    """With a mean to revert to and correlated data: output mean and covariance are those of the affine map of runs."""
    covariance = np.array([[1.0, 0.6, 0.1], [0.6, 0.5, -0.2], [0.1, -0.2, 0.9]])
    mean, target = np.array([0.4, -1.0, 0.1]), np.array([2.0, -3.0, 0.5])
    assert np.linalg.eigvalsh(covariance).min() > 0
    for c in (covariance, np.array([0.5, 1.2, 0.1])):
        process = da.MeanReverting(VP, target)
        table = da.build("tab2", process, TS)
        full = c if c.ndim == 2 else np.diag(c)

        def eps(x, t, process=process, full=full):
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            centred = x - alpha * mean - (1 - alpha) * target
            return sigma * np.linalg.solve(alpha**2 * full + sigma**2 * np.eye(3), centred.T).T

        begin = np.array([0.7, 0.2, -0.4])
        runs = da.run(table, eps, begin + np.concatenate([np.zeros((1, 3)), np.eye(3)]))
        slope = (runs[1:] - runs[0]).T
        found_mean, found = da.output_law(table, process, mean, c, start=(begin, 0.8))
        assert np.allclose(found_mean, runs[0], rtol=1e-10)
        assert np.allclose(found if c.ndim == 2 else np.diag(found), 0.8 * slope @ slope.T, atol=1e-10)
        number, _ = da.output_law(table, process, mean, c, start=(0.7, 0.8))
        assert np.allclose(number, da.run(table, eps, np.full((1, 3), 0.7))[0], rtol=1e-10)


# -- intervals of the noises ----------------------------------------------------------------------
@pytest.mark.parametrize("name", STOCHASTIC)
def test_each_noise_is_drawn_inside_its_own_step(name):
    """The intervals of a step's noises, in the order of their use, split the step's [ρ_s², ρ_t²] from the top down."""
    process, _, options = da.order_problem(da.SOLVERS[name].home)
    table = da.build(name, process, da.grid(process, 6, **options))
    ends, nodes = process.rho(table.times[list(table.grid_nodes)]) ** 2, np.array(table.grid_nodes)
    first_use = np.argmax(table.noise != 0, axis=0)
    step = np.searchsorted(nodes, first_use) - 1
    for i in range(6):
        mine = np.flatnonzero(step == i)
        if mine.size:
            joints = np.append(table.intervals[mine, 0], table.intervals[mine[-1], 1])
            assert np.allclose(joints[[0, -1]], ends[i : i + 2], rtol=1e-12)
            assert np.allclose(table.intervals[mine, 1], joints[1:], rtol=1e-12)
            assert np.all(np.diff(joints) < 0)
    assert set(step) == set(range(6)) or name == "g2rpo"
    per_step = {"gdss_s4": 2, "gdss_s4_published": 2, "seeds_2": 2, "seeds_2_x0": 2, "seeds_3": 3, "seeds_3_x0": 3}
    assert np.all(np.bincount(step)[np.unique(step)] == per_step.get(name, 1))


LAMBDA_ONE = [n for n in STOCHASTIC if da.SOLVERS[n].lam_sde == 1 and n != "sde_dpmpp_3m_exact"]


@pytest.mark.parametrize("name", LAMBDA_ONE)
def test_all_samplers_of_the_reverse_sde_approach_one_path(name):
    """Order 1 towards `sde_dpmpp_3m_exact` on the same Brownian path; 1½ where the difference is that of the means."""
    found = []
    for n in (80, 160):
        ts = da.grid(VP, n, "t2", 0.4, 0.1)
        pair = da.build(name, VP, ts), da.build("sde_dpmpp_3m_exact", VP, ts)
        found.append(float(da.strong_distance(*pair, VP, 0.3, 0.4)[0]))
    assert found[1] < 5e-3
    multistep = da.SOLVERS[name].family in ("sde_multistep", "mrs") and not name.endswith("1")
    assert abs(np.log2(found[0] / found[1]) - (1.5 if multistep else 1.0)) < 0.15


def test_overlapping_intervals_are_refused():
    noise = [[0.0, 0.0], [1.0, 1.0]]
    table = da.Tableau([1.0, 0.5], [[0, 0], [1, 0]], np.zeros((2, 2)), noise=noise, intervals=[[3.0, 1.0], [2.0, 0.5]])
    with pytest.raises(ValueError, match="intervals of the table overlap"):
        da.strong_distance(table, table, VP, 0.0, 1.0)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (-1.0, "^covariance=-1.0 must be finite and >= 0"),
        ([0.1, np.nan], "^covariance=.* must be finite"),
        ([], r"covariance has shape \(0,\)"),
        ([[1.0, 0.5], [0.2, 1.0]], "covariance must be symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "covariance has the negative eigenvalue -1"),
        (np.ones((2, 3)), r"covariance has shape \(2, 3\)"),
        ("wide", "covariance='wide' must be made of real numbers"),
    ],
)
def test_bad_input(covariance, message):
    with pytest.raises(ValueError, match=message):
        da.output_law(da.build("ddim", VP, TS), VP, 0.0, covariance)


def test_bad_input_names_what_is_wrong():
    table = da.build("ddim", VP, TS)
    shifted = da.MeanReverting(VP, 1.0)
    functions = {
        "output_law": lambda table=table, process=VP, mean=0.0, variance=1.0: da.output_law(
            table, process, mean, variance
        ),
        "law_error": lambda table=table, process=VP, mean=0.0, variance=1.0: da.law_error(
            table, process, mean, variance
        ),
        "strong_distance": lambda table=table, process=VP, mean=0.0, variance=1.0: da.strong_distance(
            table, table, process, mean, variance
        ),
    }
    for call in functions.values():
        cases = [
            ({"process": None}, "process=None must be a Process"),
            ({"table": "junk"}, "='junk' must be a Tableau"),
            ({"process": shifted}, "reverts to the mean None; allowed: 1.0"),
            (
                {"process": shifted, "table": da.build("ddim", da.MeanReverting(VP, 2.0), TS)},
                "the mean 2.0; allowed: 1.0",
            ),
            ({"mean": np.inf}, "^mean=inf must be finite"),
            ({"mean": "x"}, "^mean='x' must be made of real"),
            ({"mean": [1.0, 2.0], "variance": [1.0, 2.0, 3.0]}, r"^mean has shape \(2,\)"),
        ]
        for arguments, message in cases:
            with pytest.raises(ValueError, match=message):
                call(**arguments)
    cases = [
        (lambda: da.law_error(table, VP, 0.0, -1.0), "^variance=-1.0 must be finite and >= 0"),
        (lambda: da.strong_distance(table, table, VP, 0.0, np.nan), "^variance=nan must be finite and >= 0"),
        (lambda: da.strong_distance(table, da.build("ddim", VP, TS[1:]), VP, 0.0, 1.0), "b starts at t="),
        (lambda: da.law_error(table, VP, 0.0, np.ones((2, 2))), r"variance has shape \(2, 2\)"),
        (lambda: da.output_law(table, VP, 0.0, 1.0, start=0.0), "start=0.0 must be a pair"),
        (lambda: da.output_law(table, VP, 0.0, 1.0, start=(0.0, -1.0)), "start variance=-1.0 must be finite and >= 0"),
        (lambda: da.output_law(table, VP, 0.0, 1.0, start=(np.nan, 1.0)), "start mean=nan must be finite"),
        (lambda: da.output_law(table, VP, 0.0, 1.0, start=(0.0, [1.0])), "start variance has shape"),
        (lambda: da.output_law(table, VP, 0.0, 1.0, start=([0.0, 1.0], 1.0)), "start mean has shape"),
        (lambda: da.transfer("junk", VP, 1.0), "tableau='junk'"),
        (lambda: da.transfer(table, None, 1.0), "process=None"),
        (lambda: da.transfer(table, VP, -1.0), "variance=-1.0 must be finite and >= 0"),
        (lambda: da.exact_transfer(None, 1.0, 1.0, 0.1), "process=None"),
        (lambda: da.exact_transfer(VP, -1.0, 1.0, 0.1), "variance=-1.0 must be finite and >= 0"),
        (lambda: da.exact_transfer(VP, 1.0, 1.0, 2.0), "t_end=2.0 is outside"),
        (lambda: da.exact_transfer(VP, 0.0, 0.0, 0.0), "t_start=0.0: data of variance 0"),
        (lambda: da.distance(table, "junk"), "b='junk' must be a Tableau"),
        (lambda: da.distance(None, table), "a=None must be a Tableau"),
        (lambda: da.amplification("ddim"), "tableau='ddim' must be a Tableau"),
        (lambda: da.exactness_degree("ddim", VP, "eps", "t"), "tableau='ddim' must be a Tableau"),
        (lambda: da.order_problem("VP"), "process='VP' must be a Process"),
        (lambda: da.step_counts("ddim", "own"), "row='ddim' must be a Solver"),
        (lambda: da.step_counts(da.SOLVERS["ddim"], "mine"), "start='mine' is unknown"),
        (lambda: da.observed_order("ddim", VP, None), "mix=None must be a GaussianMixture"),
        (lambda: da.measure("ddim"), "row='ddim' must be a Solver"),
        (lambda: da.weak_order("ddimm", VP), "solver='ddimm' is unknown; nearest: ddim"),
        (lambda: da.strong_order(None, VP), "solver=None must be a str"),
        (lambda: da.weak_order(da.ddpm, None), "process=None"),
        (lambda: da.weak_order(da.ddpm, VP, 5), "steps=5 must be a sequence"),
        (lambda: da.strong_order(da.ddpm, VP, variance=-1.0), "variance=.* must be finite and >= 0"),
        (lambda: da.strong_order(lambda p, ts: ts.tolist(), VP), "a=.* must be a Tableau"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
