"""Kinds of samplers that people run, each written anew in a few lines: what the audit must say of it, and must not."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.special import ndtr

import deis_analysis as da
from deis_analysis.audit import audit_file, placed, subject_of
from deis_analysis.audit.case import exact_end, read_case
from deis_analysis.audit.checks import check_churn, check_ends, check_last_step
from deis_analysis.audit.identity import _levels
from deis_analysis.audit.report import _in_process_scale
from deis_analysis.audit.subject import _value, function_subject
from deis_analysis.cli import main

VP = da.VPLinear()
FIXED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0)  # a list tuned for ten steps


def euler(model, x, sigmas):
    for a, b in pairwise(float(s) for s in sigmas):
        x = x + (x - model(x, a)) / a * (b - a)
    return x


def alpha(t):
    """Of VPLinear()."""
    return torch.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)


def ddim(model, x, times, told=0.0, shift=0.0):
    """DDIM; the model is told times that lie ``told`` too high, and steps use levels ``shift`` too low."""
    for t, s in pairwise(times):
        a, b = (alpha(torch.clamp(torch.as_tensor(u) - shift, min=0)) for u in (t, s))
        e = model(x, torch.clamp(torch.as_tensor(t) + told, max=1.0))
        x = b * (x - torch.sqrt(1 - a**2) * e) / a + torch.sqrt(1 - b**2) * e
    return x


def slope_t(model, x, t, low):
    rate = low + t * 19.9
    return -0.5 * rate * x + 0.5 * rate / torch.sqrt(1 - alpha(t) ** 2) * model(x, t)


def heun_t(model, x, times, low=0.1):
    """Heun in t, the linear part too, as in the ablations of the EDM paper; ``low`` is β_min."""
    for t, s in pairwise(times):
        d = slope_t(model, x, t, low)
        x = x + (s - t) * 0.5 * (d + slope_t(model, x + (s - t) * d, s, low))
    return x


def audited(sampler, **options):
    report = da.audit_sampler(sampler, **options)
    return report, {finding.code for finding in report.findings if finding.severity != "info"}


# -- a number of calls of its own -----------------------------------------------------------------
def ten_levels(model, x, sigmas):
    return euler(model, x, FIXED)


def ten_levels_rescaled(model, x, sigmas):
    return euler(model, x * (FIXED[0] / float(sigmas[0])), FIXED)


def four_and_the_clean_one(model, x, sigmas):
    levels = [float(s) for s in sigmas[:: (len(sigmas) - 1) // 4]][:4]
    return model(euler(model, x, levels), levels[-1])


def one_call(model, x, sigmas):
    return model(x, float(sigmas[0]))


def twenty_from_eighty(model, x, sigmas):
    return euler(model, x, np.linspace(float(sigmas[0]), 0, 11 if len(sigmas) < 80 else 21))


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [(ten_levels, 10), (ten_levels_rescaled, 10), (four_and_the_clean_one, 4), (one_call, 1), (twenty_from_eighty, 10)],
)
def test_calls_that_do_not_grow_have_no_order(sampler, calls):
    report, wrong = audited(sampler)
    assert wrong == set()
    assert report.nfe == calls
    assert (report.observed_order, report.order_without_startup, report.local_order) == (None, None, None)
    (said,) = [f for f in report.findings if f.code == "ORD-FIXED-CALLS"]
    assert said.message.startswith(f"makes {calls}, {calls}")
    assert set(report.errors) == {5, 10, 20}
    if calls > 1:
        assert report.nearest["name"] == "ddim"


# -- ends -----------------------------------------------------------------------------------------
def to_data(model, x, times):
    return ddim(model, x, [*times[:-1], torch.tensor(0.0)])


def clean_estimate(model, x, times):
    return ddim(model, x, [*times, torch.tensor(0.0)])


@pytest.mark.parametrize("sampler", [to_data, clean_estimate])
def test_going_on_to_the_data_is_no_error(sampler):
    report, wrong = audited(sampler, convention="times")
    assert wrong == set()
    assert "SCH-END-AT-DATA" in {finding.code for finding in report.findings}
    assert report.nearest["name"] == "ddim"


def test_stopping_early_is_one():
    report, wrong = audited(lambda model, x, times: ddim(model, x, times[:-1]), convention="times")
    assert wrong == {"SCH-LAST-LEVEL"}
    (said,) = [f for f in report.findings if f.code == "SCH-LAST-LEVEL"]
    assert "should have 0.01049" in said.message


# -- levels told and used -------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1e-3, 3e-3, 1e-4])
@pytest.mark.parametrize("what", ["told", "shift"])
def test_a_shift_of_the_clock_is_found(what, size):
    sampler = lambda model, x, times: ddim(model, x, times, **{what: size})  # noqa: E731
    assert "SCH-LEVEL-MISMATCH" in audited(sampler, convention="times")[1]


def test_without_a_shift_there_is_none():
    assert audited(ddim, convention="times")[1] == set()


def test_a_method_that_is_not_exact_on_constants_is_told_from_a_wrong_one():
    right, wrong = audited(heun_t, convention="times")
    assert wrong == set()
    assert abs(right.observed_order - 2) < 0.1
    other, wrong = audited(lambda m, x, ts: heun_t(m, x, ts, 0.3), convention="times", order=2)
    assert {"ORD-DIVERGES", "SCH-LEVEL-MISMATCH"} <= wrong
    assert other.observed_order < 0.1


# -- a slip in one place --------------------------------------------------------------------------
def log_rho_ab2(model, x, times, last=1.0, odd=1.0, everywhere=1.0):
    """Two-step Adams–Bashforth in λ on dy = ε dρ; factors on the extrapolated part: last step, odd N, all steps."""
    levels = [float(t) for t in times]
    scale = [float(alpha(torch.tensor(t, dtype=torch.float64))) for t in levels]
    rho = [(1 - a * a) ** 0.5 / a for a in scale]
    lam = [-np.log(r) for r in rho]
    y, before, n = x / scale[0], None, len(levels) - 1
    for i in range(n):
        e, h = model(scale[i] * y, levels[i]), lam[i + 1] - lam[i]
        y = y + e * (rho[i + 1] - rho[i])
        if before is not None:
            moment = rho[i] * ((h + 1) * np.exp(-h) - 1)  # of λ − λ_i
            factor = (last if i == n - 1 else 1.0) * (odd if n % 2 else 1.0) * everywhere
            y = y + factor * moment * (e - before) / (lam[i] - lam[i - 1])
        before = e
    return scale[n] * y


@pytest.mark.parametrize(
    ("slip", "code"),
    [
        ({}, None),
        ({"last": 0.0}, None),  # a last step of lower degree
        ({"last": -1.0}, "ORD-LAST-STEP"),
        ({"last": 0.9}, "ORD-LAST-STEP"),
        ({"odd": 1.01}, "ID-VARIES"),
        ({"odd": -1.0}, "ID-VARIES"),
        ({"everywhere": 1.001}, "ID-NEAR"),
        ({"everywhere": 0.5}, "ORD-BELOW-DECLARED"),
    ],
)
def test_a_slip_in_one_place_is_named(slip, code):
    _, wrong = audited(lambda m, x, ts: log_rho_ab2(m, x, ts, **slip), convention="times", order=2)
    assert wrong == ({code} if code else set())


@pytest.mark.parametrize("bound", [1e4, 10.0])
def test_thresholding_of_large_values_is_seen(bound):
    sampler = lambda model, x, sigmas: euler(lambda x, s: model(x, s).clamp(-bound, bound), x, sigmas)  # noqa: E731
    assert audited(sampler)[1] == {"RUN-NONLINEAR"}


def test_calls_beside_the_steps_that_were_asked_for():
    report, _ = audited(clean_estimate, convention="times")
    (said,) = [f.message for f in report.findings if f.code == "NFE-COUNT"]
    assert said == "makes N+1 calls when N steps are asked for"
    assert "NFE-COUNT" not in {f.code for f in audited(ddim, convention="times")[0].findings}


def test_errors_of_noisy_samplers_in_the_other_scale():
    """k-diffusion's Euler ancestral on N(0.3, 0.2): the law by its own recursion of mean and variance."""
    if importlib.util.find_spec("k_diffusion") is None:
        pytest.skip("needs k-diffusion")
    report, wrong = audited("k_diffusion:sample_euler_ancestral")
    assert wrong == set()
    for nfe, error in report.errors.items():
        levels = [*subject_of("k_diffusion:sample_euler_ancestral").own(nfe).levels, 0.0][: nfe + 1]
        mean, variance = 0.3, 0.2 + levels[0] ** 2
        for a, b in pairwise(levels):
            down = b**2 / a  # ρ_down² = b² − b² (a² − b²)/a²
            share = 1 + (down - a) / a * a**2 / (0.2 + a**2)
            mean, variance = share * mean + (1 - share) * 0.3, share**2 * variance + b**2 - down**2
        assert np.isclose(error, np.hypot(mean - 0.3, variance**0.5 - 0.2**0.5), rtol=1e-4)


# -- correct code in other styles -----------------------------------------------------------------
def in_place(model, x, sigmas):
    for a, b in pairwise(float(s) for s in sigmas):
        x += (x - model(x, a)) / a * (b - a)
    return x


def in_place_on_the_output(model, x, sigmas):
    for a, b in pairwise(float(s) for s in sigmas):
        d = model(x, a)
        x.add_(d.sub_(x).div_(-a), alpha=b - a)
    return x


def in_place_on_a_clone(model, x, sigmas):
    return in_place(model, x.clone(), sigmas)


def from_a_queue(model, x, sigmas):
    """The two-step method with a deque of slopes, equal weights at the start."""
    slopes = deque(maxlen=2)
    levels = [float(s) for s in sigmas]
    for i, (a, b) in enumerate(pairwise(levels)):
        slopes.appendleft((x - model(x, a)) / a)
        h, last = b - a, a - levels[i - 1] if i else 1.0
        d = slopes[0] if i == 0 else (1 + h / (2 * last)) * slopes[0] - h / (2 * last) * slopes[1]
        x = x + h * d
    return x


class Stateful:
    """A class that keeps what it is doing."""

    def __init__(self):
        self.x = None

    def step(self, model, a, b):
        self.x = self.x + (self.x - model(self.x, a)) / a * (b - a)

    def sample(self, model, x, sigmas):
        self.x = x
        for a, b in pairwise(float(s) for s in sigmas):
            self.step(model, a, b)
        return self.x


def by_a_generator(model, x, sigmas):
    def states(x):
        for a, b in pairwise(float(s) for s in sigmas):
            x = x + (x - model(x, a)) / a * (b - a)
            yield x

    return list(states(x))[-1]


def as_in_a_web_interface(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    return euler(lambda x, s: model(x, s * x.new_ones([x.shape[0]]), **(extra_args or {})), x, sigmas)


def in_numpy(model, x, sigmas):
    import torch

    x, levels = x.numpy(), sigmas.numpy()
    for a, b in pairwise(levels):
        clean = model(torch.from_numpy(x), torch.tensor(a)).numpy()
        x = np.add(x, (b - a) * np.divide(np.subtract(x, clean), a))
    return torch.from_numpy(x)


def in_jax(model, x, sigmas):
    jax = pytest.importorskip("jax")
    import torch

    with jax.enable_x64(True):
        state = jax.numpy.asarray(x.numpy())
        for a, b in pairwise(jax.numpy.asarray(sigmas.numpy())):
            clean = jax.numpy.asarray(model(torch.from_numpy(np.array(state)), float(a)).numpy())
            state = clean + b / a * (state - clean)
        return torch.from_numpy(np.array(state))


def of_images(model, x, sigmas):
    """A level per image of a batch, broadcast over channels and pixels."""
    batch, channels, height, width = x.shape
    assert channels == height == width == 1
    for a, b in pairwise(sigmas):
        level = a.expand(batch)
        d = (x - model(x, level)) / level[:, None, None, None]
        x = x + d * (b - a).view(1, 1, 1, 1)
    return x


def by_lerp(model, x, sigmas):
    import torch

    for a, b in pairwise(sigmas):
        x = torch.lerp(model(x, a), x, b / a)
    return x


def by_addcmul(model, x, sigmas):
    import torch

    for a, b in pairwise(sigmas):
        d = torch.addcdiv(torch.zeros_like(x), x - model(x, a), a)
        x = torch.addcmul(x, d, b - a)
    return x


def with_a_callback(model, x, sigmas, callback=None):
    callback = callback or (lambda state: float(state["denoised"].mean()))
    with_steps = enumerate(pairwise(sigmas))
    for i, (a, b) in with_steps:
        clean = model(x, a)
        callback({"i": i, "denoised": clean, "x": x})
        x = clean + (x - clean) * (b / a)
    return x


@pytest.mark.parametrize(
    ("sampler", "row"),
    [
        (euler, "ddim"), (in_place, "ddim"), (in_place_on_the_output, "ddim"), (in_place_on_a_clone, "ddim"),
        (from_a_queue, "tab1"), (Stateful().sample, "ddim"), (by_a_generator, "ddim"),
        (as_in_a_web_interface, "ddim"), (in_numpy, "ddim"), (in_jax, "ddim"), (of_images, "ddim"), (by_lerp, "ddim"),
        (by_addcmul, "ddim"), (with_a_callback, "ddim"),
    ],
)  # fmt: skip
def test_correct_samplers_are_named_and_have_no_error(sampler, row):
    report, wrong = audited(sampler)
    assert wrong == set()
    assert report.nearest["name"] == row
    assert report.nearest["distance"] < 1e-8


def in_single_precision(model, x, sigmas):
    x = x.float()
    for a, b in pairwise(float(s) for s in sigmas):
        clean = model(x, a).float()
        x = clean + (x - clean) * (b / a)
    return x


def test_single_precision_is_a_row_to_its_rounding():
    report, wrong = audited(in_single_precision)
    assert wrong == set()
    assert report.nearest["name"] == "ddim"
    assert 1e-9 < report.nearest["distance"] < 2e-5


def ddim_of_x0(model, x, times):
    """Textbook DDIM on the linear VP process, of a model that gives the data."""
    for s, t in pairwise(float(t) for t in times):
        clean = model(x, s)
        eps = (x - VP.alpha(s) * clean) / VP.sigma(s)
        x = VP.alpha(t) * clean + VP.sigma(t) * eps
    return x


def ddim_of_v(model, x, times):
    for s, t in pairwise(float(t) for t in times):
        v = model(x, s)
        clean, eps = VP.alpha(s) * x - VP.sigma(s) * v, VP.sigma(s) * x + VP.alpha(s) * v
        x = VP.alpha(t) * clean + VP.sigma(t) * eps
    return x


@pytest.mark.parametrize(("sampler", "prediction"), [(ddim_of_x0, "x0"), (ddim_of_v, "v")])
def test_models_that_give_other_things_are_no_error(sampler, prediction):
    report, wrong = audited(sampler, convention="times", prediction=prediction)
    assert wrong == set()
    assert report.nearest["name"] == "ddim"
    assert report.nearest["distance"] < 1e-8


# -- models with two outputs ----------------------------------------------------------------------
def guided(model, x, sigmas, plus=False, scale=4.0):
    """Classifier-free guidance; ``plus``: CFG++, which goes on along the unconditional output."""
    for a, b in pairwise(float(s) for s in sigmas):
        with_, without = model(x, a, cond="a cat"), model(x, a, cond=None)
        clean = without + scale * (with_ - without)
        x = clean + b * (x - (without if plus else clean)) / a
    return x


def guided_by_tensors(model, x, sigmas):
    cond, uncond = torch.ones(1, 3), torch.zeros(1, 3)
    for a, b in pairwise(float(s) for s in sigmas):
        clean = 3.0 * model(x, a, cond) - 2.0 * model(x, a, uncond)
        x = x + (x - clean) / a * (b - a)
    return x


def asks_twice(model, x, sigmas):
    for a, b in pairwise(float(s) for s in sigmas):
        x = x + (x - 0.5 * (model(x, a) + model(x, a))) / a * (b - a)
    return x


@pytest.mark.parametrize("sampler", [guided, lambda m, x, s: guided(m, x, s, plus=True), guided_by_tensors])
def test_two_outputs_at_a_state_are_not_one_asked_twice(sampler):
    report, wrong = audited(sampler)
    assert wrong == set()
    assert (report.nfe, report.nearest["name"]) == (20, "ddim")
    (said,) = [f.message for f in report.findings if f.code == "NFE-OUTPUTS"]
    assert said.startswith("20 calls at 10 states")
    assert abs(report.observed_order - 1) < 0.1


def test_one_output_asked_twice_is_a_repetition():
    assert audited(asks_twice)[1] == {"NFE-REPEATED"}


@pytest.mark.parametrize(
    ("sampler", "shares"),
    [
        (guided, np.tile([4.0, -3.0], (11, 1))),
        (guided_by_tensors, np.tile([3.0, -2.0], (11, 1))),
        # of D + b (x − D_u)/a with D = D_u + 4 (D_c − D_u): D_c has 4, D_u −3 − b/a
        (lambda m, x, s: guided(m, x, s, plus=True), None),
    ],
)
def test_the_columns_of_two_outputs_are_kept_apart(sampler, shares):
    subject = function_subject(sampler)
    levels = [float(v) for v in (*da.grid(da.EDM(), 10, "rho7"), 0.0)]
    reading = read_case(subject.own(22)).reading
    if shares is None:
        ratio = np.array([b / a for a, b in pairwise(levels)])
        shares = np.stack([4.0 / (1.0 - ratio), (-3.0 - ratio) / (1.0 - ratio)], axis=1)
    np.testing.assert_allclose(reading.shares, shares, rtol=1e-9)
    np.testing.assert_allclose(reading.apart.sum(axis=0), reading.rows[:, 1 : 1 + reading.calls], rtol=1e-12)
    report = audited(sampler, nfe=22)[0]
    (said,) = [f.message for f in report.findings if f.code == "NFE-OUTPUTS"]
    assert ("in every step" in said) == bool(np.allclose(shares, shares[0]))
    assert f"{shares[0][0]:.4g} : {shares[0][1]:.4g}" in said


def noise_at_the_end(model, x, sigmas):
    """Euler, the last step to nine tenths of its level and up again with noise: right, with other weights."""
    a, b = (float(s) for s in sigmas[-2:])
    x = euler(model, x, sigmas[:-1])
    return x + (x - model(x, a)) / a * (0.9 * b - a) + (0.19 * b**2) ** 0.5 * torch.randn_like(x)


@pytest.mark.parametrize(
    ("sampler", "codes"),
    [(euler, []), (noise_at_the_end, []), (lambda *given: 0.5 * euler(*given), ["ORD-LAST-STEP"])],
)
def test_noise_in_the_last_step_is_no_error_of_its_weights(sampler, codes):
    case = read_case(function_subject(sampler, final_zero=False).own(8))
    assert [finding.code for finding in check_last_step(case, 0, "eps, rho", True)] == codes


def test_levels_are_corrected_where_the_result_is_at_none_of_the_process_s():
    """A ladder that is told 5 % too low and leads below the first level: the rows are compared on the levels used."""
    process, told = da.VE(0.1, 1.0), da.grid(da.VE(0.1, 1.0), 4, "logrho")
    sigma = np.append(process.rho(told[:-1]) * np.array([1.0, 1.05, 1.05, 1.05]), 0.05)
    case = SimpleNamespace(process=process, table=SimpleNamespace(times=told), scales=(np.ones(5), sigma),
                           reading=SimpleNamespace(residual=1e-14))  # fmt: skip
    found = _levels(case)
    np.testing.assert_allclose(process.rho(found[:-1]), sigma[:-1], rtol=1e-12)
    assert found[-1] == told[-1]


# -- noise at the wrong place, or too much of it ---------------------------------------------------
def churned(model, x, sigmas, late=False, gamma=0.1, scale=1.0):
    """Karras et al. 2022, algorithm 2, with Euler; ``late``: the model is asked before the noise, as a scheduler is."""
    for a, b in pairwise(float(s) for s in sigmas):
        up = a * (1 + gamma)
        noise = scale * (up**2 - a**2) ** 0.5 * torch.randn_like(x)
        if late:
            x = x + noise + (x - model(x, a)) / a * (b - up)
        else:
            x = x + noise
            x = x + (x - model(x, up)) / up * (b - up)
    return x


@pytest.mark.parametrize(("late", "gamma"), [(True, 0.1), (True, 0.02), (False, 0.1), (False, 0.3)])
def test_the_order_of_events_in_churn(late, gamma):
    report = audited(lambda m, x, s: churned(m, x, s, late, gamma))[0]
    found = {f.code: f.message for f in report.findings}
    assert ("ORD-CHURN-LATE" in found) is late
    assert ("INV-VARIANCE" in found) is late
    if late:
        levels = [float(v) for v in (*da.grid(da.EDM(), 19, "rho7"), 0.0)]
        variance, ratios = levels[0] ** 2, [1.0]
        for a, b in pairwise(levels[:-1]):
            up = a * (1 + gamma)  # with x₀ = 0 the ε that is asked for is x/a
            variance = variance * (1 + (b - up) / a) ** 2 + up**2 - a**2
            ratios.append(variance**0.5 / b)
        assert f"{max(ratios, key=lambda r: abs(np.log(r))):.4g} times the noise" in found["INV-VARIANCE"]


def test_churn_whose_noise_is_scaled_is_not_churn_that_comes_late():
    codes = {f.code for f in audited(lambda m, x, s: churned(m, x, s, False, 0.1, 1.2))[0].findings}
    assert "ORD-CHURN-LATE" not in codes
    assert "INV-VARIANCE" in codes


@pytest.mark.parametrize(("scale", "late"), [(1.0, True), (1.2, False)])
def test_churn_that_comes_late_is_seen_in_the_scale_of_vp_too(scale, late):
    """Algorithm 2 on x/α, the model asked before the noise; with noise that is scaled it is another method."""

    def churned_on_vp(model, x, times):
        for t, s in pairwise(times):
            rho, low = (torch.sqrt(1 / alpha(u) ** 2 - 1) for u in (t, s))
            noise = scale * (1.1**2 - 1) ** 0.5 * rho * torch.randn_like(x)
            x = alpha(s) * (x / alpha(t) + noise + (low - 1.1 * rho) * model(x, t))
        return x

    codes = {f.code for f in audited(churned_on_vp, convention="times")[0].findings}
    assert ("ORD-CHURN-LATE" in codes) is late


@pytest.mark.parametrize("name", [name for name, row in da.SOLVERS.items() if row.stochastic])
def test_no_row_with_noise_is_churn_that_comes_late(name):
    case = read_case(subject_of(f"registry:{name}").own(12))
    assert check_churn(case) == []


@pytest.mark.parametrize("large", [True, False])
def test_the_noise_of_fixed_large_is_in_the_states(large):
    """DDPM's two variances (Ho et al. 2020, §3.2): β, of which the states keep more than their level, and β̃."""

    def ddpm(model, x, times):
        for t, s in pairwise(times):
            a, b = alpha(t) ** 2, alpha(s) ** 2
            beta = 1 - a / b
            posterior = (1 - b) / (1 - a) * beta
            clean = (x - torch.sqrt(1 - a) * model(x, t)) / torch.sqrt(a)
            mean = torch.sqrt(b) * beta / (1 - a) * clean + torch.sqrt(a / b) * (1 - b) / (1 - a) * x
            x = mean + torch.sqrt(beta if large else posterior) * torch.randn_like(x)
        return x

    report, wrong = audited(ddpm, convention="times")
    assert wrong == set()
    found = {f.code: f.message for f in report.findings}
    assert ("INV-VARIANCE" in found) is large
    if large:
        ts = da.grid(VP, 20, "t2")
        a = VP.alpha(ts) ** 2
        variance, ratios = 1 - a[0], [1.0]
        for now, after in pairwise(a[:-1]):
            beta = 1 - now / after
            variance = variance * now / after * ((1 - after) / (1 - now)) ** 2 + beta
            ratios.append((variance / (1 - after)) ** 0.5)
        assert f"call 20 has {ratios[-1]:.4g} times the noise" in found["INV-VARIANCE"]


# -- noise by any name ----------------------------------------------------------------------------
BOUND_BEFORE = torch.randn_like


@pytest.mark.parametrize(
    "draw",
    [
        torch.randn_like,
        lambda x: BOUND_BEFORE(x),
        lambda x: torch.randn(x.shape, dtype=x.dtype),
        lambda x: torch.normal(0.0, 1.0, size=x.shape, dtype=x.dtype),
        lambda x: torch.normal(torch.zeros_like(x), 1.0),
        lambda x: torch.empty_like(x).normal_(),
        lambda x: torch.as_tensor(np.random.standard_normal(x.shape)),  # noqa: NPY002
        lambda x: torch.as_tensor(np.random.default_rng(0).normal(size=x.shape)),
    ],
)
def test_noise_is_seen_however_it_is_drawn(draw):
    def ancestral(model, x, sigmas):
        for a, b in pairwise(float(s) for s in sigmas):
            up = (b**2 * (a**2 - b**2) / a**2) ** 0.5
            down = (b**2 - up**2) ** 0.5
            x = x + (x - model(x, a)) / a * (down - a)
            x = x + up * draw(x) if b > 0 else x
        return x

    report, wrong = audited(ancestral)
    assert wrong == set()
    assert report.nearest["name"] in ("sde_dpmpp_1", "euler_ancestral", "ddpm")
    assert report.nearest["distance"] < 1e-8


# -- what fails -----------------------------------------------------------------------------------
def raises(model, x, sigmas):
    raise RuntimeError("no list[int] and no [/nope]")


def takes_two(model, x):
    return x


def is_nan(model, x, sigmas):
    return model(x, float(sigmas[0])) * float("nan")


def heun_without_a_guard(model, x, sigmas):
    for a, b in pairwise(torch.as_tensor(sigmas)):
        d = (x - model(x, a)) / a
        y = x + d * (b - a)
        x = x + 0.5 * (d + (y - model(y, b)) / b) * (b - a)
    return x


def leaves(model, x, sigmas):
    raise SystemExit(0)


def is_a_number(model, x, sigmas):
    return 1.0


def deep(model, x, sigmas):
    return deep(model, x, sigmas)


def asks_nothing(model, x, sigmas):
    return x


@pytest.mark.parametrize(
    "sampler", [raises, takes_two, is_nan, heun_without_a_guard, leaves, is_a_number, deep, asks_nothing]
)
def test_a_sampler_that_fails_is_an_error(sampler):
    report, wrong = audited(sampler)
    assert wrong == {"RUN-FAILED"}
    assert report.worst == "error"


# -- diffusers: given steps, starts from an image -------------------------------------------------
TEN = "999,850,736,645,545,455,343,233,124,24"


@pytest.mark.parametrize(
    ("spec", "calls", "row"),
    [
        (f"EulerDiscreteScheduler?timesteps={TEN}", 10, "ddim"),
        (f"DPMSolverMultistepScheduler?timesteps={TEN}", 10, "dpmpp_2m"),
        (f"EulerDiscreteScheduler?sigmas={','.join(map(str, FIXED))}", 10, "ddim"),
        ("FlowMatchEulerDiscreteScheduler?sigmas=1,0.8,0.6,0.4,0.2", 5, "flow_euler"),
        ("FlowMatchEulerDiscreteScheduler?use_dynamic_shifting=true&mu=1.15", 20, "flow_euler"),
        ("DDIMScheduler?clip_sample=false&strength=0.5", 10, "ddim"),
        ("EulerDiscreteScheduler?strength=0.5", 10, "ddim"),
        ("DPMSolverMultistepScheduler?strength=0.6", 12, "dpmpp_2m"),
        ("FlowMatchEulerDiscreteScheduler?strength=0.5", 10, "ddim"),
        ("EulerDiscreteScheduler?prediction_type=v_prediction", 20, "ddim"),
    ],
)
def test_what_pipelines_ask_of_diffusers(spec, calls, row):
    pytest.importorskip("diffusers")
    report, wrong = audited(f"diffusers:{spec}")
    assert not [code for code in wrong if code != "SCH-ROUNDED-TIMES"]
    assert (report.nfe, report.nearest["name"]) == (calls, row)
    assert {"ID-EQUAL", "ID-FLOAT32"} & {finding.code for finding in report.findings}


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_a_shift_that_is_applied_twice_is_a_grid_that_was_not_asked_for(shift):
    pytest.importorskip("diffusers")
    spec = f"diffusers:FlowMatchEulerDiscreteScheduler?shift={shift:g}"
    report, wrong = audited(spec)
    assert wrong == (set() if shift == 1 else {"SCH-GRID"})
    once = shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    twice = shift * once / (1 + (shift - 1) * once)
    assert subject_of(spec).own(8).asked_least == pytest.approx(once / (1 - once), rel=1e-12)
    said = [f.message for f in report.findings if f.code == "SCH-GRID"]
    if said:
        assert f"σ/α = {twice / (1 - twice):.4g}" in said[0]
        assert said[0].endswith(f"{once / (1 - once):.4g}")


@pytest.mark.parametrize(("std", "seen"), [(0.96, True), (0.99, False), (1.01, False), (1.04, True)])
def test_the_standard_deviation_of_x_T_is_that_of_the_first_level(std, seen):
    pytest.importorskip("diffusers")
    case = read_case(subject_of("diffusers:EulerDiscreteScheduler").own(8))
    case = replace(case, prepared=replace(case.prepared, start_std=std))
    said = [finding.message for finding in check_ends(case) if finding.code == "SCH-START-SCALE"]
    assert bool(said) is seen
    assert not said or f"the standard deviation {std:.2g}" in said[0]  # to two digits: σ is 0.998 at the first level


@pytest.mark.parametrize(
    ("options", "level", "severity"),
    [
        ("beta_schedule=scaled_linear&beta_start=0.00085&beta_end=0.012", 0.02917, "info"),
        ("beta_end=0.002", 0.01, "warning"),
    ],
)
def test_noise_that_is_left_and_signal_that_is_there_at_the_start(options, level, severity):
    """Sizes on N(½, ½): of two Gaussians on a line W₂² is the sum of the squares of both differences."""
    diffusers = pytest.importorskip("diffusers")
    ends = "set_alpha_to_one=false&steps_offset=1"
    report, _ = audited(f"diffusers:DDIMScheduler?clip_sample=false&{options}&{ends}")
    said = {f.code: f for f in report.findings}
    noise = said["SCH-RESIDUAL-NOISE"]
    assert noise.severity == "info"
    assert f"σ/α = {level:.3g}: its law is {(0.5 + level**2) ** 0.5 - 0.5**0.5:.1e} off" in noise.message
    start = said["SCH-PRIOR-MISMATCH"]
    assert start.severity == severity
    config = {key: _value(text) for key, text in (option.split("=") for option in options.split("&"))}
    bars = diffusers.DDIMScheduler(**config).alphas_cumprod.double().numpy()
    told = report.table.times[0]
    bar = float(bars[round(told)])
    gap = (bar * 0.25 + ((bar * 0.5 + 1 - bar) ** 0.5 - 1) ** 2) ** 0.5
    assert f"α = {bar**0.5:.3g}; a start from N(0, s² I), s = 1, is {gap:.1e} s off" in start.message


def test_a_result_in_the_other_scale_is_put_back():
    """DDPM's step on VPLinear ends at t = 0.2, where α is not 1; its result is handed over as x/α."""
    process = da.VPLinear()
    table = da.build("ddpm", process, da.grid(process, 6, "t2", 1.0, 0.2))
    parts = {name: matrix.toarray() for name, matrix in table.matrices._asdict().items()}
    for dense in parts.values():
        dense[-1] /= float(process.alpha(0.2))
    told = SimpleNamespace(table=table.changed(**parts), process=process, prepared=SimpleNamespace(end_scale="karras"))
    assert da.distance(_in_process_scale(told), table) < 1e-14


def test_plms_from_an_image_wastes_its_last_call():
    """As the pipelines start it: from the middle of its list, with none of its own steps behind it."""
    pytest.importorskip("diffusers")
    _, wrong = audited("diffusers:PNDMScheduler?skip_prk_steps=true&strength=0.5")
    assert {"NFE-WASTED", "SCH-LAST-LEVEL"} <= wrong


def test_truncated_levels_are_a_warning_with_the_level_used():
    """Exponential levels on trained times: truncated by at most one step of the clock."""
    pytest.importorskip("diffusers")
    options = "use_exponential_sigmas=true&beta_schedule=scaled_linear&beta_start=0.00085&beta_end=0.012"
    report, _ = audited(f"diffusers:DPMSolverMultistepScheduler?{options}")
    (said,) = [f for f in report.findings if f.code == "SCH-ROUNDED-TIMES"]
    assert "up to 1.00 steps" in said.message
    assert said.message.endswith("the step uses 0.04046")


@pytest.mark.parametrize("nfe", [1, 2])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DDIMScheduler?clip_sample=false", "SCH-PRIOR-MISMATCH"),  # spacing "leading": one step begins at time 0
        ("DPMSolverMultistepScheduler", None),
        ("EulerDiscreteScheduler", None),
        ("FlowMatchEulerDiscreteScheduler", None),
    ],
)
def test_one_step_and_two(name, code, nfe):
    report = da.audit_sampler(f"diffusers:{name}", nfe=nfe)
    assert report.linear
    assert report.nfe == nfe
    found = {f.code for f in report.findings if f.severity != "info"}
    assert "RUN-FAILED" not in found
    assert not [f for f in report.findings if f.severity == "error"]
    if code is not None:
        assert code in found


def test_levels_that_do_not_fall_at_the_last_time_are_said():
    """Zero terminal SNR: the released class gives time 999 an ᾱ of 2⁻²⁴, which is above that of time 998."""
    name = "EulerDiscreteScheduler?rescale_betas_zero_snr=true&timestep_spacing=trailing"
    report = da.audit_sampler(f"diffusers:{name}")
    assert not [f for f in report.findings if f.severity == "error"]
    assert report.nearest["name"] == "ddim"
    (note,) = [f.message for f in report.findings if f.code == "RUN-NOTE"]
    assert "does not fall at time 999" in note


def test_half_a_second_difference_under_noise():
    """The third-order SDE rule as released, of order 2 in law; its twin of second order has none."""
    report = da.audit_sampler("k_diffusion:sample_dpmpp_3m_sde")
    wrong = {f.code: f.message for f in report.findings if f.severity == "error"}
    assert set(wrong) == {"ORD-HALF-SECOND-DIFFERENCE"}
    assert "0.5000 of the second moment" in wrong["ORD-HALF-SECOND-DIFFERENCE"]
    assert report.order_without_startup is None
    twin = da.audit_sampler("k_diffusion:sample_dpmpp_2m_sde")
    assert not [f for f in twin.findings if f.code.startswith("ORD-HALF")]


def euler_ancestral(model, x, sigmas, eta=1.0):
    """Euler with noise, but the generator's noise is forgotten: it is Euler."""
    return euler(model, x, sigmas)


def test_a_sampler_named_after_noise_that_draws_none():
    report, wrong = audited(euler_ancestral)
    assert wrong == set()
    assert [f.severity for f in report.findings if f.code == "RUN-NO-NOISE"] == ["info"]
    report, _ = audited(euler)
    assert not [f for f in report.findings if f.code == "RUN-NO-NOISE"]
    report = da.audit_sampler("k_diffusion:sample_dpmpp_2m_sde?eta=0.0")
    assert not [f for f in report.findings if f.code == "RUN-NO-NOISE"]


def test_a_sampler_that_chooses_its_steps_has_no_order():
    report = da.audit_sampler("k_diffusion:sample_dpm_adaptive")
    assert not report.linear
    assert report.observed_order is None


def test_a_saved_scheduler_is_the_class_with_its_options(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True)
    made.save_pretrained(tmp_path / "scheduler")
    saved = da.audit_sampler(f"diffusers:{tmp_path}/scheduler")
    named = da.audit_sampler("diffusers:DPMSolverMultistepScheduler?solver_order=3&use_karras_sigmas=true")
    assert (saved.errors, saved.findings, saved.nearest) == (named.errors, named.findings, named.nearest)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is no scheduler's"):
        subject_of(f"diffusers:{tmp_path}/scheduler")


@pytest.mark.parametrize("text", ["strength=2", "strength=x", "timesteps=a,b", "begin=3"])
def test_options_that_diffusers_does_not_have(text):
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=text.partition("=")[0] if text != "timesteps=a,b" else "value='a,b'"):
        subject_of(f"diffusers:EulerDiscreteScheduler?{text}")


def test_the_problem_lies_in_the_sampler_s_own_range():
    report = da.audit_sampler(placed(subject_of("registry:tab2"), da.VE(0.1, 1.0), None))
    assert report.worst == "info"
    assert abs(report.observed_order - 2) < 0.2


@pytest.mark.parametrize(("level", "at"), [(0.0, 0.0), (0.002, 0.002), (0.03, 0.03), (0.09, 0.09), (0.2, 0.1)])
def test_the_exact_end_at_a_level_that_the_process_does_not_reach(level, at):
    """The quantile of x at ρ = 1 is kept down to the level; the process ends at ρ = 0.1, above it there is no flow."""
    means, deviations, weights = np.array([-1.0, 0.8]), np.sqrt([0.05, 0.1]), np.array([0.4, 0.6])
    mix, process, x = da.GaussianMixture(weights, means, deviations**2), da.VE(0.1, 1.0), np.linspace(-2.0, 2.0, 7)

    def share(x, rho):
        return ndtr((x[:, None] - means) / np.hypot(deviations, rho)) @ weights

    for scale, unit in (("karras", 1.0), ("process", np.hypot(1.0, level))):
        said = SimpleNamespace(t_end=None, end_level=level, end_scale=scale)
        case = SimpleNamespace(process=process, prepared=said, table=SimpleNamespace(times=[process.t_max]))
        assert np.allclose(share(unit * exact_end(case, mix, x), at), share(x, 1.0), rtol=1e-9)


# -- files ----------------------------------------------------------------------------------------
FILE = """
from __future__ import annotations
import os
import sys
import time
from dataclasses import dataclass
import lying_beside
@dataclass
class Step:
    a: float
    b: float
print("on import")
def euler(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    print("in a run")
    for a, b in zip(sigmas, sigmas[1:]):
        s = Step(float(a), float(b))
        x = x + (x - model(x, s.a)) / s.a * (s.b - s.a)
    return lying_beside.same(x)
class Sampler:
    def sample(self, model, x, sigmas):
        return euler(model, x, sigmas)
method = Sampler().sample
def leaves_the_process(model, x, sigmas):
    os._exit(0)
def hangs(model, x, sigmas):
    if os.fork() == 0:
        time.sleep(1000)
    while True:
        time.sleep(0.1)
def markup(model, x, sigmas):
    raise TypeError("list[int] [/nope]")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("theirs")
    (made / "theirs.py").write_text(FILE)
    (made / "lying_beside.py").write_text("def same(x):\n    return x\n")
    return made


def command(folder, *arguments):
    """In a process of its own, from another folder, with stdout apart."""
    call = [sys.executable, "-m", "deis_analysis", "audit", *map(str, arguments)]
    return subprocess.run(call, cwd=folder.parent, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ["euler", "method"])
def test_a_file_is_audited_and_its_prints_are_not_json(folder, name):
    done = command(folder, f"{folder}/theirs.py:{name}", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nearest"]["name"] == "ddim"
    assert "in a run" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("leaves_the_process", "ended the process, with status 0"),
        ("hangs", "did not end within 15 s"),
        ("markup", "list[int] [/nope]"),
    ],
)
def test_what_a_file_does_is_an_error_of_the_sampler(folder, name, text):
    done = command(folder, f"{folder}/theirs.py:{name}", "--timeout", 15)
    assert done.returncode == 1, done.stderr
    assert text in " ".join(done.stdout.split())
    left = subprocess.run(["pgrep", "-f", f"{folder}/theirs.py"], capture_output=True, text=True).stdout.split()
    assert [pid for pid in left if int(pid) != os.getpid()] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "has no function 'nothing'"),
        ("euler?order=abc", "order='abc' must be an integer"),
        ("euler?spec=x", "option='spec'"),
        ("euler?convention=time", "convention='time' is unknown"),
        ("euler?prediction=epsilon", "prediction='epsilon' is unknown"),
        ("method?steps=3", "option='steps' is unknown"),
    ],
)
def test_a_wrong_question_is_a_usage_error(folder, name, text):
    result = CliRunner().invoke(main, ["audit", f"{folder}/theirs.py:{name}"])
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_missing_folder_is_said_before_the_work(tmp_path, option):
    result = CliRunner().invoke(main, ["audit", "registry:ddim", option, str(tmp_path / "no" / "file")])
    assert result.exit_code == 2
    assert "there is no folder" in result.output
    assert not Path(tmp_path / "no").exists()


@pytest.mark.parametrize("nfe", ["0", "1001", "x"])
def test_nfe_has_bounds(nfe):
    assert CliRunner().invoke(main, ["audit", "registry:ddim", "--nfe", nfe]).exit_code == 2


def test_function_child_and_command_make_the_same_number_of_calls():
    (option,) = (p for p in main.commands["audit"].params if p.name == "nfe")
    defaults = [inspect.signature(door).parameters["nfe"].default for door in (da.audit_sampler, audit_file)]
    assert defaults == [20, 20] == [option.default] * 2
