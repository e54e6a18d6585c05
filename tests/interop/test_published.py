"""Tuned samplers as released: each against its method written out again as a plain loop, and what analysis says of it.

The loops share nothing with the package: NeuralSolver's runs in the time of flow matching (0 is noise), EPD's in EDM's
with a denoiser, DC-Solver's in UniPC's B(h) form with its linear system.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

import deis_analysis as da
from deis_analysis.analysis import exactness_degree
from deis_analysis.audit import Prepared
from deis_analysis.interop import published
from deis_analysis.process.convention import Convention

X = np.linspace(-2.0, 2.0, 9)
SD = da.VPDiscrete(np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03])
TABLES = [(kind, n) for kind in published.KINDS for n in (5, 6, 7, 8, 9, 10)] + [("flow", 15)]
# what the authors' log of CIFAR-10 at 5 calls prints for its first step, repeated
FIRST = {"r": (0.0334, 0.7950), "w": (0.8699, 0.1301), "s": (0.9974, 0.9862), "a": (0.9542, 0.9538)}


def close(found, wanted, tolerance=1e-12):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.max(np.abs(wanted)))


def wavy(x, t):
    """A prediction of everything, and of no structure."""
    return np.sin(1.3 * x + 2.0 * t) + 0.3 * x


@dataclass(frozen=True)
class Fixed:
    """One table as a subject of the audit: it has no other number of steps."""

    table: da.Tableau
    spec: str = "fixed"
    declared_order: int | None = None

    def own(self, nfe):
        t = self.table
        ends = (float(t.times[-1]), float(t.times[0]))
        return Prepared(
            lambda model, x: da.run(t, model, x),
            t.process,
            Convention(t.prediction),
            ends[0],
            backend="numpy",
            t_start=ends[1],
        )

    def ladder(self, steps):
        return None


def codes(table):
    return {finding.code: finding for finding in da.audit_sampler(Fixed(table), nfe=20).findings}


def error(table, start=None):
    """Root mean square distance of the results from the exact flow, over 200 starts."""
    process, (first, last) = table.process, (float(table.times[0]), float(table.times[-1]))
    noise = np.random.default_rng(0).standard_normal(200)
    scale = math.hypot(float(process.sigma(first)), 1e-3)
    truth = MIX.flow(process, scale * noise, min(first, 1 - 1e-9) if process.t_max == 1 else first, last)
    found = da.run(table, MIX.model(process, table.prediction), scale * noise)
    return float(np.sqrt(np.mean((found - truth) ** 2)))


# -- lists of levels --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", published.LISTS)
def test_every_list_descends_and_has_a_source(name):
    entry = published.LISTS[name]
    assert all((entry.source, entry.licence, entry.made_for))
    for steps, levels in entry.levels.items():
        assert len(levels) == steps + 1
        found = published.sigma_list(name, steps)
        assert np.all(np.diff([*found, 0.0]) < 0)
        assert found.tolist() == list(levels)


def test_gits_levels_are_those_of_its_teacher():
    """Chosen out of 101 equidistant times of Stable Diffusion's schedule: a wrong digit would fall between them."""
    for levels in published.LISTS["gits_sd"].levels.values():
        inside = np.clip(levels, SD.rho(0.0), SD.rho(999.0))
        np.testing.assert_allclose(inside, levels, rtol=1e-6)
        places = SD.time_from_rho(inside) / 9.99
        np.testing.assert_allclose(places, np.round(places), atol=1e-4)


def test_ays_levels_are_those_of_its_time_steps():
    """diffusers lists the integer times of the same schedules, and the levels but for the last."""
    schedules = pytest.importorskip("diffusers.schedulers.scheduling_utils").AysSchedules
    names = {"StableDiffusion": "ays_sd15", "StableDiffusionXL": "ays_sdxl", "StableDiffusionVideo": "ays_svd"}
    for theirs, ours in names.items():
        assert published.sigma_list(ours).tolist()[:-1] == schedules[f"{theirs}Sigmas"][:-1]
    for theirs, ours in list(names.items())[:2]:
        inside = np.clip(published.sigma_list(ours)[:-1], SD.rho(0.0), SD.rho(999.0))
        assert np.max(np.abs(SD.time_from_rho(inside) - schedules[f"{theirs}Timesteps"])) < 0.6


@pytest.mark.parametrize("steps", [1, 3, 10, 11, 25])
def test_interpolation_is_log_linear(steps):
    levels = published.sigma_list("ays_sd15")
    found = published.sigma_list("ays_sd15", steps)
    assert found.shape == (steps + 1,)
    assert (found[0], found[-1]) == (levels[0], levels[-1])
    for k, value in enumerate(found):
        place = k / steps * 10
        i = min(int(place), 9)
        part = place - i
        assert value == pytest.approx(levels[i] ** (1 - part) * levels[i + 1] ** part, rel=1e-12)


def test_a_family_of_lists_gives_the_one_that_was_published():
    assert published.sigma_list("gits_sd").size == 11
    assert published.sigma_list("gits_sd", 5).tolist() == list(published.LISTS["gits_sd"].levels[5])
    beyond = published.sigma_list("gits_sd", 40)
    close(beyond[::2], published.sigma_list("gits_sd", 20))
    assert published.sigma_list("oss_wan").size == 21


def test_ends_of_a_list():
    process = da.EDM(0.002, 80.0)
    levels = published.sigma_list("gits_cifar10")
    kept, replaced, appended = (
        published.times_of_levels(process, levels, end=end) for end in ("kept", "replaced", "appended")
    )
    assert kept.tolist() == levels.tolist()
    assert replaced.tolist() == [*levels[:-1], 0.0]
    assert appended.tolist() == [*levels, 0.0]
    flow = published.times_of_levels(da.RectifiedFlow(), published.sigma_list("oss_wan"), "flow", end="appended")
    close(flow, [*published.sigma_list("oss_wan"), 0.0], 1e-15)
    assert flow[[0, -1]].tolist() == [1.0, 0.0]


def test_a_list_fits_the_process_that_it_was_made_for():
    """Stable Diffusion's levels end at 14.6146 and 0.02917, which the paper prints as 14.615 and 0.029."""
    table = published.on_levels("dpmpp_2m", SD, "ays_sd15")
    assert table.times[[0, -1]].tolist() == [999.0, 0.0]
    close(published.on_levels("dpmpp_2m", SD, "gits_sd").times[[0, -1]], [999.0, 0.0], 1e-6)
    with pytest.raises(ValueError, match=r"rho=14\.615"):
        published.times_of_levels(SD, published.sigma_list("ays_sd15"))


def test_on_levels_is_the_sampler_at_those_times():
    process = da.VPLinear()
    table = published.on_levels("dpmpp_2m", process, "ays_sdxl")
    assert table.name == "dpmpp_2m on ays_sdxl"
    np.testing.assert_allclose(process.rho(table.times), published.sigma_list("ays_sdxl"), rtol=1e-12)
    assert (
        da.distance(table, da.build("dpmpp_2m", process, process.time_from_rho(published.sigma_list("ays_sdxl")))) == 0
    )
    flow = published.on_levels("flow_euler", da.RectifiedFlow(), "oss_wan")
    assert (flow.nfe, flow.times[0]) == (20, 1.0)
    known = published.on_levels(lambda p, ts: da.adams(p, ts, 1), process, [3.0, 1.0, 0.1], steps=4)
    assert known.nfe == 4


def test_lists_on_a_mixture_beside_customary_grids():
    """What tuned lists are worth on data that they were not tuned for, at their number of steps.

    With DDIM those of Stable Diffusion beat the customary grids.  With DPM++ 2M that of SD 1.5 does not: the step from
    0.152 to 0.029 is long.  That of FLUX spends 7 of 10 steps above 0.9, and loses to equal steps threefold.
    """
    process = da.VPLinear()
    ends = [float(t) for t in process.time_from_rho(np.array([14.615, 0.029]))]
    grids = {kind: da.grid(process, 10, kind, *ends) for kind in ("t1", "rho7", "logrho")}
    plain = {kind: error(da.build("ddim", process, ts)) for kind, ts in grids.items()}
    for name in ("ays_sd15", "ays_sdxl", "gits_sd"):
        assert error(published.on_levels("ddim", process, name)) < 0.92 * min(plain.values())
    second = {name: error(published.on_levels("dpmpp_2m", process, name)) for name in ("ays_sd15", "gits_sd")}
    assert second["ays_sd15"] > 3 * error(da.build("dpmpp_2m", process, grids["logrho"])) > 5 * second["gits_sd"]
    edm, flow = da.EDM(), da.RectifiedFlow()
    cifar = error(published.on_levels("ipndm4", edm, "gits_cifar10"))
    assert cifar < 0.75 * min(
        error(da.build("ipndm4", edm, da.grid(edm, 6, k, 80.0, 0.002))) for k in ("rho7", "logrho")
    )
    equal = da.build("flow_euler", flow, da.grid(flow, 10, "t1", 0.9968, 0.001))
    assert error(published.on_levels("flow_euler", flow, "oss_flux")) > 2.5 * error(equal)


@pytest.mark.parametrize("name", ["gits_cifar10", "oss_flux"])
def test_the_audit_knows_a_sampler_on_a_list(name):
    process = da.RectifiedFlow() if name == "oss_flux" else da.EDM(0.002, 80.0)
    assert "ID-EQUAL" in codes(published.on_levels("ddim", process, name))


# -- NeuralSolver -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "n"), TABLES)
def test_rows_are_consistent_and_of_degree_0(kind, n):
    numbers = published.neural_solver_numbers(n, kind)
    close(numbers.weights.sum(axis=1), np.ones(n), 1e-14)
    assert abs(numbers.deltas.sum() - 1.0) <= 2.1e-4
    table = published.neural_solver(n, kind)
    assert (table.nfe, table.depth) == (n, n)
    variable = ("x0", "inv_rho") if kind == "ddpm" else ("v", "t")
    past_the_data = kind != "ddpm" and numbers.deltas.sum() > 1.00005  # the last step goes beyond t = 0
    wanted = [0] * (n - 1) + [-1 if past_the_data else 0]
    assert exactness_degree(table, table.process, *variable).tolist() == wanted


@pytest.mark.parametrize(("kind", "n"), [t for t in TABLES if t[0] != "ddpm"])
def test_flow_tables_against_a_loop(kind, n):
    """In the time of flow matching: 0 is noise, u = x₀ − ε points to the data."""
    entry = published._data()["neural_solver"][kind]["steps"][str(n)]
    t, x, known = 0.0, X.copy(), []
    for i, delta in enumerate(entry["timedeltas"]):
        known.append(-wavy(x, 1.0 - t))
        u, total = 0.0, 0.0
        for j in range(i):
            u = u + entry["coeffs"][i][j] * known[j]
            total += entry["coeffs"][i][j]
        x = x + delta * (u + (1.0 - total) * known[i])
        t += delta
    close(da.run(published.neural_solver(n, kind), wavy, X), x)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("n", [5, 8, 10])
def test_ddpm_tables_against_a_loop(n, twice):
    """With α and σ of the schedule written out, and ε in place of x₀; ``twice`` as the released sampler runs."""
    entry = published._data()["neural_solver"]["ddpm"]["steps"][str(n)]

    def scales(t):
        log_alpha = -0.25 * 19.9 * max(t, 1e-3) ** 2 - 0.05 * max(t, 1e-3)
        return math.exp(log_alpha), math.sqrt(1.0 - math.exp(2.0 * log_alpha))

    t, x, known = 0.999, X.copy(), []
    for i, delta in enumerate(entry["timedeltas"]):
        (alpha, sigma), (alpha_n, sigma_n) = scales(t), scales(t - delta)
        x0 = (x - sigma * wavy(x, t)) / alpha
        known.append(x0)
        mixed = sum((entry["coeffs"][i][j] * known[j] for j in range(i)), start=0.0 * x)
        mixed = mixed + (1.0 - sum(entry["coeffs"][i])) * x0
        length = alpha_n / sigma_n - alpha / sigma
        x = sigma_n / sigma * x + sigma_n * length * mixed
        if twice:
            known.append(x0)
            x = sigma_n / sigma * x + sigma_n * length * x0
        t -= delta
    table = published.neural_solver(n, "ddpm", twice=twice)
    close(da.run(table.in_terms_of(da.VPLinear(), "eps"), wavy, X), x, 1e-11)


@pytest.mark.parametrize("n", [5, 8, 10])
def test_the_released_ddpm_loop_is_not_consistent(n):
    """It takes each step twice: not even a constant x₀ is integrated, and its error does not fall with the steps."""
    once, twice = (published.neural_solver(n, "ddpm", twice=t) for t in (False, True))
    assert exactness_degree(twice, da.VPLinear(), "x0", "inv_rho").tolist() == [-1] * n
    assert error(twice) > (1.3 if n == 5 else 1.8) * error(once)


def test_the_audit_sees_the_released_ddpm_loop():
    once, twice = (published.neural_solver(8, "ddpm", twice=t) for t in (False, True))
    found = codes(twice)
    assert found["SCH-LEVEL-MISMATCH"].severity == found["SCH-STATE-SCALE"].severity == "error"
    assert "INV-CONSTANTS" in found
    assert set(codes(once)) == {"ID-UNKNOWN"}


@pytest.mark.parametrize("kind", published.KINDS)
def test_neural_solver_on_a_mixture(kind):
    """Tuned on images: on a mixture the error falls with the calls, and DDIM on equal steps is beaten at 10 only."""
    errors = {n: error(published.neural_solver(n, kind)) for n in (5, 7, 10)}
    assert errors[5] > errors[7] > errors[10]
    table = published.neural_solver(10, kind)
    ends = (min(float(table.times[0]), 1.0), float(table.times[-1]))
    prediction, variable = ("x0", "lam") if kind == "ddpm" else ("v", "t")
    ts = np.linspace(*ends, 11)
    plain = error(da.adams(table.process, ts, 0, prediction=prediction, variable=variable))
    assert errors[10] < plain


# -- EPD --------------------------------------------------------------------------------------------
def repeated(steps):
    return published.EPD(**{name: [row] * steps for name, row in FIRST.items()})


def epd_loop(numbers, levels, denoiser, x, afs):
    for i, (t, t_next) in enumerate(pairwise(levels)):
        d = x / math.sqrt(1.0 + t * t) if afs and i == 0 else (x - denoiser(x, t)) / t
        x_next = x
        for r, w, s, a in zip(numbers.r[i], numbers.w[i], numbers.s[i], numbers.a[i], strict=True):
            tau = t_next**r * t ** (1.0 - r)
            x_k = x + (tau - t) * d
            x_next = x_next + w * s * (t_next - t) * (x_k - denoiser(x_k, a * tau)) / tau
        x = x_next
    return x


LEVELS = [80.0, 9.7232, 0.47, 0.002]


@pytest.mark.parametrize("afs", [False, True])
def test_epd_against_a_loop(afs):
    rng = np.random.default_rng(1)
    weights = rng.random((3, 2))
    numbers = published.EPD(
        rng.random((3, 2)),
        weights / weights.sum(axis=1, keepdims=True),
        1.0 + 0.05 * rng.uniform(-1, 1, (3, 2)),
        1.0 - 0.05 * rng.random((3, 2)),
    )
    denoiser = lambda x, t: np.tanh(x / math.hypot(t, 0.5)) * 0.7  # noqa: E731
    wanted = epd_loop(numbers, LEVELS, denoiser, 80.0 * X, afs)
    table = published.epd(numbers, LEVELS, afs=afs)
    assert (table.nfe, table.depth) == ((8, 5) if afs else (9, 6))  # "5 calls" counts two side by side as one
    close(da.run(table.in_terms_of(da.EDM(), "x0"), denoiser, 80.0 * X), wanted)
    # and on Stable Diffusion's process, with the network shown x̂/√(1 + σ²) as EDM's wrapper shows it
    levels = [14.0, 3.0, 0.5, 0.05]
    eps = lambda x, t: np.sin(1.3 * x + t / 500.0)  # noqa: E731

    def wrapped(x, level):
        return x - level * eps(x / math.hypot(1.0, level), float(SD.time_from_rho(level)))

    wanted = epd_loop(numbers, levels, wrapped, 14.0 * X, afs)
    table = published.epd(numbers, levels, SD, afs=afs)
    alpha, alpha_end = (float(SD.alpha(t)) for t in table.times[[0, -1]])
    close(da.run(table, eps, alpha * 14.0 * X) / alpha_end, wanted, 1e-11)


def test_the_consistency_defect_of_epd_shows():
    """Σ w s of the first step of CIFAR-10 at 5 calls is 0.9959, and Σ w s a 0.950: neither x₀ nor ε is kept."""
    numbers = repeated(3)
    of_x0, of_eps = numbers.row_sums()
    np.testing.assert_allclose(of_x0, 0.9959, atol=5e-5)
    np.testing.assert_allclose(of_eps, 0.9503, atol=5e-5)
    table = published.epd(numbers, LEVELS)
    start, noise = 0.3, 1.7
    x0 = da.run(table.in_terms_of(da.EDM(), "x0"), lambda x, t: start + 0.0 * x, np.array([start + 80.0 * noise]))
    left = np.prod([1 + of_x0[i] * (b / a - 1) for i, (a, b) in enumerate(pairwise(LEVELS))])
    close(x0, start + 80.0 * left * noise)  # noise is left: the data are not reached
    eps = da.run(table, lambda x, t: noise + 0.0 * x, np.array([80.0 * noise]))
    close(eps, 80.0 * noise + noise * of_eps[0] * (LEVELS[-1] - 80.0))
    assert exactness_degree(table, da.EDM(), "eps", "rho").tolist() == [-1] * 3
    found = codes(table)
    assert found["SCH-LEVEL-MISMATCH"].severity == found["SCH-LAST-LEVEL"].severity == "error"
    plain = published.EPD(**{**{n: [v] * 3 for n, v in FIRST.items()}, "s": np.ones((3, 2)), "a": np.ones((3, 2))})
    assert exactness_degree(published.epd(plain, LEVELS), da.EDM(), "eps", "rho").min() >= 0


def test_epd_on_a_mixture():
    """Inconsistent, and yet better than DDIM with as many sequential calls; with s = a = 1 better by a tenth."""
    edm = da.EDM()
    trained = error(published.epd(repeated(3), LEVELS))
    ones = {"s": np.ones((3, 2)), "a": np.ones((3, 2))}
    consistent = error(published.epd(published.EPD(**{**{n: [v] * 3 for n, v in FIRST.items()}, **ones}), LEVELS))
    assert consistent < 0.93 * trained < consistent * 1.1
    assert trained < 0.5 * error(da.build("ddim", edm, da.grid(edm, 6, "rho7", 80.0, 0.002)))


def test_epd_logs_are_read():
    line = "step {}: |r0: 0.03340 st0: 0.95420 sd0: 0.99740 w0: 0.86990 |"
    line += "r1: 0.79500 st1: 0.95380 sd1: 0.98620 w1: 0.13010 |"
    text = "\n".join(["Loading…", *(line.format(i) for i in range(2)), *(line.format(i) for i in range(3)), "done"])
    found = published.read_epd(text)
    for name in FIRST:
        assert getattr(found, name).tolist() == getattr(repeated(3), name).tolist()
    again = published.read_epd(json.dumps({name: [row] * 3 for name, row in FIRST.items()}))
    assert all(np.array_equal(getattr(found, n), getattr(again, n)) for n in FIRST)


# -- DC-Solver --------------------------------------------------------------------------------------
def dc_loop(process, ts, ratios, order, variant, model, x):
    """UniPC's multistep update as published, with x₀, and the compensation before each step."""
    alpha, sigma, lam = (f(ts) for f in (process.alpha, process.sigma, process.lam))
    times, outputs = [0], [model(x, ts[0])]
    steps = len(ts) - 1
    for n in range(1, steps + 1):
        p = min(n, order, steps + 1 - n)
        if ratios[n - 1] != 1.0:
            t = [ts[times[-k]] for k in (1, 2, 3)]
            at = ratios[n - 1] * t[0] + (1.0 - ratios[n - 1]) * t[1]
            rest = [[t[j] for j in range(3) if j != i] for i in range(3)]
            basis = [(at - b) * (at - c) / ((t[i] - b) * (t[i] - c)) for i, (b, c) in enumerate(rest)]
            outputs[-1] = sum(b * outputs[-1 - i] for i, b in enumerate(basis))
        h = lam[n] - lam[n - 1]
        scale = math.expm1(-h) if variant == "bh2" else -h
        r = [(lam[times[-1 - k]] - lam[n - 1]) / h for k in range(1, p)]
        d = [(outputs[-1 - k] - outputs[-1]) / r[k - 1] for k in range(1, p)]
        matrix, b, phi, factorial = [], [], math.expm1(-h) / -h - 1.0, 1.0
        for i in range(1, p + 1):
            matrix.append([q ** (i - 1) for q in [*r, 1.0]])
            b.append(phi * factorial / scale)
            factorial *= i + 1
            phi = phi / -h - 1.0 / factorial
        matrix, b = np.array(matrix), np.array(b)
        base = sigma[n] / sigma[n - 1] * x - alpha[n] * math.expm1(-h) * outputs[-1]
        c = [0.5] if p == 2 else np.linalg.solve(matrix[:-1, :-1], b[:-1]) if p > 2 else []
        predicted = base - alpha[n] * scale * sum((ck * dk for ck, dk in zip(c, d, strict=True)), start=0.0)
        if n == steps:
            return predicted
        new = model(predicted, ts[n])
        c = [0.5] if p == 1 else np.linalg.solve(matrix, b)
        terms = zip(c, [*d, new - outputs[-1]], strict=True)
        x = base - alpha[n] * scale * sum(ck * dk for ck, dk in terms)
        times.append(n)
        outputs.append(new)
    return x


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3])
def test_dc_solver_against_a_loop(variant, order):
    process = da.VPLinear()
    ts = da.grid(process, 7, "t2")  # equal steps would hide a history that is read backwards
    ratios = [1.0, 1.0, 0.83, 1.12, 1.0, 0.95, 0.7]
    table = published.dc_solver(process, ts, ratios, order, variant=variant)
    assert table.nfe == 7
    close(da.run(table, wavy, X), dc_loop(process, ts, ratios, order, variant, wavy, X))


def test_dc_solver_with_ratios_of_1_is_unipc_and_others_cost_its_order():
    process = da.VPLinear()
    ts = da.grid(process, 8)
    plain = published.dc_solver(process, ts, [1.0] * 8, variant="bh2", lower_order_final=False)
    assert da.distance(plain, da.build("unipc3_bh2_x0", process, ts)) == 0.0
    compensated = published.dc_solver(process, ts, [1.0, 1.0, *[0.9] * 6], lower_order_final=False)
    assert exactness_degree(compensated, process, "x0", "lam").tolist()[3:] == [0] * 5

    def ratio(value):
        def build(process, ts):
            return published.dc_solver(process, ts, [*[1.0] * min(2, len(ts) - 1), *[value] * (len(ts) - 3)])

        return build

    report = da.audit_sampler(ratio(0.9), convention="table", nfe=8)
    assert report.observed_order < 1.2
    assert da.observed_order(ratio(1.0), process, MIX, t_start=0.4, t_end=0.1).slope > 1.9


# -- a wrong sign is found --------------------------------------------------------------------------
def test_planted_slips_are_found():
    """Every comparison above would fail by far more than its tolerance on one slip in the numbers."""
    x = da.run(published.neural_solver(6), wavy, X)
    numbers = published.neural_solver_numbers(6)
    rows = numbers.rows.copy()
    rows[3, 1] *= -1.0
    assert (
        np.max(np.abs(da.run(published.neural_solver(published.NeuralSolver(numbers.deltas, rows)), wavy, X) - x))
        > 1e-2
    )
    plain, slipped = repeated(3), {name: [row] * 3 for name, row in FIRST.items()}
    slipped["s"] = [FIRST["s"], (FIRST["s"][0], -FIRST["s"][1]), FIRST["s"]]
    assert da.distance(published.epd(plain, LEVELS), published.epd(published.EPD(**slipped), LEVELS)) > 1e-2
    process, ratios = da.VPLinear(), [1.0, 1.0, 0.9, 0.9]
    ts = da.grid(process, 4)
    mirrored = [1.0, 1.0, 1.1, 0.9]
    assert da.distance(published.dc_solver(process, ts, ratios), published.dc_solver(process, ts, mirrored)) > 1e-3


# -- files of users, and what is refused ------------------------------------------------------------
def test_levels_are_read(tmp_path):
    wanted = [14.615, 3.861, 0.029]
    for text in ("14.615, 3.861, 0.029", "[14.615, 3.861, 0.029]", "14.615\n3.861\n0.029\n", "14.615;3.861; 0.029"):
        assert published.read_levels(text).tolist() == wanted
    assert published.read_levels(json.dumps({"sigmas": wanted})).tolist() == wanted
    path = tmp_path / "sigmas.txt"
    path.write_text("(1.0, 0.65 0.1)")
    assert published.read_levels(path, "flow").tolist() == [1.0, 0.65, 0.1]
    assert published.read_ratios("[1, 1, 0.9]").tolist() == [1.0, 1.0, 0.9]


def test_neural_solver_numbers_are_read():
    numbers = published.neural_solver_numbers(5)
    for rows in (numbers.rows.tolist(), [row[:i] for i, row in enumerate(numbers.rows.tolist())]):
        found = published.read_neural_solver(json.dumps({"timedeltas": numbers.deltas.tolist(), "coeffs": rows}))
        assert da.distance(published.neural_solver(found), published.neural_solver(5)) == 0.0


VP, EDM, FOUR = da.VPLinear(), da.EDM(), [1.0, 0.7, 0.4, 0.1]
BAD = {
    "unknown list": (lambda: published.sigma_list("ays_sd1"), "nearest: ays_sd15"),
    "no slack": (lambda: published.times_of_levels(VP, [3.0, 1.0], slack=-1.0), "slack=-1.0"),
    "a long integer": (lambda: published.read_ratios(f"[1{'0' * 400}]"), "must be made of real numbers"),
    "no steps": (lambda: published.sigma_list("ays_sd15", 0), "steps=0"),
    "ascending": (lambda: published.read_levels("1, 2, 3"), "levels must descend strictly; they do not after 1.0"),
    "NaN": (lambda: published.read_levels("[3, NaN, 1]"), "levels=.* must be finite"),
    "negative": (lambda: published.check_levels([3.0, -1.0]), "levels=.*>= 0"),
    "one level": (lambda: published.read_levels("[3]"), r"levels has shape \(1,\)"),
    "words": (lambda: published.read_levels("sigmas: 3 2 1"), "must hold numbers"),
    "nothing": (lambda: published.read_levels(""), "must hold numbers"),
    "strings": (lambda: published.read_levels('["3", "2"]'), "must be a list of numbers"),
    "another object": (lambda: published.read_levels('{"times": [3, 1]}'), "allowed: sigmas or levels"),
    "nested": (lambda: published.read_levels("[[3, 1]]"), r"levels has shape \(1, 2\)"),
    "not a text": (lambda: published.read_levels(3), "source=3 must be a str"),
    "above 1": (lambda: published.check_levels([3.0, 1.0], "flow"), "levels begin at 3.0"),
    "log of 0": (lambda: published.interpolated([3.0, 0.0], 4), "no logarithm"),
    "no such level": (lambda: published.on_levels("ddim", EDM, "ays_svd"), "rho=700"),
    "no data": (lambda: published.on_levels("ddim", SD, [3.0, 1.0], end="appended"), "rho=0.0"),
    "another scale": (lambda: published.on_levels("ddim", VP, "oss_flux", scale="rho"), "scale='rho', but"),
    "unknown end": (lambda: published.times_of_levels(VP, [3.0, 1.0], end="zero"), "end='zero'"),
    "unknown scale": (lambda: published.check_levels([1.0, 0.5], "sigma"), "scale='sigma'"),
    "not published": (lambda: published.neural_solver(11), "steps=11 was not published"),
    "unknown kind": (lambda: published.neural_solver(5, "sit"), "kind='sit'"),
    "a flow twice": (lambda: published.neural_solver(5, twice=True), "twice=True"),
    "square": (lambda: published.NeuralSolver([0.5, 0.5], [[0.0, 1.0], [0.0, 0.0]]), "strictly lower triangular"),
    "lengths": (lambda: published.NeuralSolver([0.5, 0.5], [[0.0]]), "rows has shape"),
    "negative step": (lambda: published.NeuralSolver([0.5, -0.5], np.zeros((2, 2))), "deltas must be positive"),
    "too far": (lambda: published.NeuralSolver([0.9, 0.9], np.zeros((2, 2))), "deltas sum to 1.8"),
    "ragged": (
        lambda: published.read_neural_solver('{"timedeltas": [0.5, 0.5], "coeffs": [[], [1, 2, 3]]}'),
        "the rows of coeffs have lengths",
    ),
    "no coeffs": (lambda: published.read_neural_solver('{"timedeltas": [1]}'), "allowed: coeffs"),
    "not JSON": (lambda: published.read_neural_solver("timedeltas = [1]"), "is not JSON"),
    "a list": (lambda: published.read_neural_solver("[1]"), "must be a dict"),
    "a word in a row": (lambda: published.read_neural_solver('{"timedeltas": [1], "coeffs": ["a"]}'), "list of lists"),
    "EPD shapes": (lambda: published.EPD([[0.5]], [[1.0]], [[1.0]], [[1.0, 1.0]]), "a has shape"),
    "EPD flat": (lambda: published.EPD([0.5], [1.0], [1.0], [1.0]), r"r has shape \(1,\)"),
    "EPD weights": (lambda: published.EPD([[0.5]], [[0.9]], [[1.0]], [[1.0]]), "w must sum to 1"),
    "EPD outside": (lambda: published.EPD([[1.5]], [[1.0]], [[1.0]], [[1.0]]), "r=.*must lie in"),
    "EPD told": (lambda: published.EPD([[0.5]], [[1.0]], [[1.0]], [[0.0]]), "a=.*must be positive"),
    "EPD steps": (lambda: published.epd(repeated(2), LEVELS), "levels has 4 entries; allowed: 3"),
    "EPD to 0": (lambda: published.epd(repeated(1), [3.0, 0.0]), "levels end at 0.0"),
    "EPD out of range": (lambda: published.epd(repeated(1), [80.0, 0.001]), "rho=0.001"),
    "EPD parameters": (lambda: published.epd(FIRST, LEVELS), "parameters=.*must be a EPD"),
    "no log": (lambda: published.parse_epd_log("step 0: loss 3"), "text has no line"),
    "torn log": (lambda: published.parse_epd_log("step 0: |r0: 0.1 st0: 1.0 sd0: 1.0 |"), "step 0 of text"),
    "gap in a log": (lambda: published.parse_epd_log("step 1: |r0: 0.1 st0: 1 sd0: 1 w0: 1 |"), "where step 0"),
    "ratios too few": (lambda: published.dc_solver(VP, FOUR, [1.0, 1.0]), "allowed: .3,., one per step"),
    "ratios too early": (lambda: published.dc_solver(VP, FOUR, [1.0, 0.9, 1.0]), "before there are three outputs"),
    "ratio NaN": (lambda: published.dc_solver(VP, FOUR, [1.0, 1.0, math.nan]), "ratios=.*must be finite"),
    "ratios of a log": (lambda: published.read_ratios('{"a": 1}'), "ratios=.*must be a list"),
    "DC of v": (lambda: published.dc_solver(VP, FOUR, [1.0] * 3, prediction="v"), "prediction='v'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_by_name(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call()
