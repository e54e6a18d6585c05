"""Certified references: two methods agree, or it is said why not; a file answers the question that it was kept for."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from exact import discrete_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

import deis_analysis as da
from deis_analysis.networks import Carried, Convention, ImageModel, process_from, shipped
from deis_analysis.reference import cache as reference_cache
from deis_analysis.reference import certificate

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
X = np.linspace(-2, 2, 5)


def steps_of(found, process=VP, t_start=1.0, t_end=1e-3):
    """Steps of the second method's finest run: its runs are on N, 2N, 4N ... steps of about 1/4 in λ."""
    first = math.ceil(float(process.lam(t_end) - process.lam(t_start)) / 0.25)
    steps = int(re.search(r"rhork_4rk \((\d+) steps\)", found.message)[1])
    runs = round(math.log2(steps / first)) + 1
    assert steps == first * 2 ** (runs - 1)
    assert found.second_nfe >= 4 * first * (2**runs - 1)
    return steps


def bent_grid(steps, process=VP, t_start=1.0, t_end=1e-3, seed=0):
    """Levels a + (b − a)(u + s u (1 − u)) for equidistant u, and s the first number in ±1/8 of the seed's generator."""
    a, b = process.lam(t_start), process.lam(t_end)
    s, u = np.random.default_rng(seed).uniform(-0.125, 0.125), np.linspace(0, 1, steps + 1)[1:-1]
    return np.array([t_start, *process.time_from_lam(a + (b - a) * (u + s * u * (1 - u))), t_end])


# -- what a certificate says ----------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1])
def test_the_agreement_is_that_with_rho_runge_kutta_on_a_bent_grid(seed):
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-6, 1e-6, seed=seed)
    table = da.build("rhork_4rk", VP, bent_grid(steps_of(found), seed=seed))
    second = da.run(table, MIX.eps(VP), X)
    assert np.isclose(found.agreement, np.abs(found.x - second).max(), rtol=1e-6, atol=1e-14)
    assert found.certified
    assert found.tolerance == pytest.approx(10 * (1e-6 + 1e-6 * np.abs(found.x).max()), rel=1e-12)
    assert found.message.startswith(f"certified to {found.tolerance:.1e}: DOPRI5")
    assert np.abs(found.x - MIX.flow(VP, X, 1.0, 1e-3)).max() < found.tolerance


def test_the_second_method_is_refined_until_its_own_error_fits_too():
    """One refinement less would not do: a + c/15 of the last run only is within the tolerance."""
    tolerance = 1e-9
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-11, 1e-11, tolerance=tolerance)
    steps = steps_of(found)
    runs = [da.run(da.build("rhork_4rk", VP, bent_grid(n)), MIX.eps(VP), X) for n in (steps // 4, steps // 2, steps)]
    bounds = [np.abs(b - found.x).max() + np.abs(b - a).max() / 15 for a, b in itertools.pairwise(runs)]
    assert bounds[1] <= tolerance < bounds[0]
    assert found.certified
    assert np.abs(found.x - MIX.flow(VP, X, 1.0, 1e-3)).max() <= bounds[1]


def test_a_first_method_that_is_too_coarse_is_told_from_a_model_that_is_not_smooth():
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-3, 1e-3, tolerance=1e-9)
    error = np.abs(found.x - MIX.flow(VP, X, 1.0, 1e-3)).max()
    assert not found.certified
    assert found.agreement == pytest.approx(error, rel=0.01)  # the second is that much better
    assert error > 1e-6
    assert "ask for smaller rtol and atol" in found.message
    assert "smooth" not in found.message


REVERTING = da.MeanReverting(VP, 1.5, 0.5)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (VP, "eps"), (VP, "x0"), (VP, "v"), (VP, "score"), (da.VPCosine(), "v"), (da.SubVP(), "score"),
        (da.VE(), "eps"), (da.EDM(), "x0"), (da.RectifiedFlow(), "v"), (REVERTING, "eps"), (REVERTING, "x0"),
        (REVERTING, "v"), (da.VPDiscrete(discrete_levels(50)), "eps"),
    ],
    ids=lambda p: p if isinstance(p, str) else type(p).__name__,
)  # fmt: skip
def test_every_process_and_prediction_is_certified(process, prediction):
    start, end = process.sampling_range
    end = max(end, 1e-2 * start)
    middle = float(process.time_from_lam(0.5 * (process.lam(start) + process.lam(end))))
    x = MIX.sample(4, 0, process, start)
    model, tolerance = MIX.model(process, prediction), 1e-6 * np.abs(x).max()  # of the largest state: VE starts at 50
    path = da.reference_path(
        model, process, x, [start, middle, end], 1e-8, 1e-8, prediction=prediction, tolerance=tolerance
    )
    errors = [np.abs(path(t) - MIX.flow(process, x, start, t)).max() for t in (middle, end)]
    assert path.certified, path.message
    assert max(errors) <= path.tolerance == tolerance
    assert path.nfe > path.second_nfe > 0


def test_without_a_certificate_there_is_no_second_method():
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, certify=False)
    assert not found.certified
    assert math.isnan(found.agreement)
    assert found.second_nfe == 0
    assert "certify=False" in found.message
    both = da.reference_solution(MIX.eps(VP), VP, X, 1e-3)
    assert np.array_equal(both.x, found.x)
    assert both.nfe == found.nfe + both.second_nfe


@pytest.mark.parametrize("wrong", ["second", "first"])
def test_a_wrong_method_is_noticed(monkeypatch, wrong):
    """A relative error of 1e-5 in the coefficients of one of them: they differ by about that."""
    if wrong == "second":

        def wrong_method(*args, **kwargs):
            table = da.runge_kutta(*args, **kwargs)
            return da.Tableau(table.times, table.states, table.outputs * (1 + 1e-5), grid_nodes=table.grid_nodes)

        monkeypatch.setattr(certificate, "runge_kutta", wrong_method)
    else:
        eps = certificate.Flow._eps
        monkeypatch.setattr(certificate.Flow, "_eps", lambda self, x, t: (1 + 1e-5) * eps(self, x, t))
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3)
    assert not found.certified
    assert 1e-6 < found.agreement < 1e-3
    assert "ask for smaller rtol" in found.message  # all that two methods can tell


# -- models that are not smooth -------------------------------------------------------------------
def jump(x, t):
    """ε = 1 above t = 0.3, 0 below: x/α falls by ρ(1) − ρ(0.3)."""
    return np.ones_like(x) * (t > 0.3)


def test_a_jump_in_time_is_not_certified_and_the_floor_is_that_of_the_step_across_it():
    found = da.reference_solution(jump, VP, X, 0.1, 1e-7, 1e-7, most_calls=5000)
    exact = float(VP.alpha(0.1)) * (X / float(VP.alpha(1.0)) - float(VP.rho(1.0) - VP.rho(0.3)))
    error = np.abs(found.x - exact).max()
    steps = steps_of(found, t_end=0.1)
    ts = bent_grid(steps, t_end=0.1)
    i = int(np.searchsorted(-ts, -0.3)) - 1  # the step that the jump is in, of which RK4 takes a wrong share
    high, low = (float(VP.rho(t)) for t in ts[i : i + 2])
    share = (high - float(VP.rho(0.3))) / (high - low)
    taken = 1 / 6 + (2 / 3 if share > 0.5 else 0.0)
    floor = float(VP.alpha(0.1)) * (high - low) * abs(taken - share)
    assert abs(found.agreement - floor) <= 1.001 * error < 0.01 * floor
    assert not found.certified
    assert f"differ by up to {floor:.1e}" in found.message


def test_tolerances_that_underflow_are_loosened_and_reported(monkeypatch):
    asked, integrate = [], certificate.odeint

    def odeint(*args, rtol, atol, **kwargs):
        asked.append((rtol, atol))
        assert rtol > 5e-8, "underflow in dt 1e-17"
        return integrate(*args, rtol=rtol, atol=atol, **kwargs)

    monkeypatch.setattr(certificate, "odeint", odeint)
    with pytest.raises(ValueError, match=r"rtol=1.0e-08, atol=1.0e-04 cannot be met by DOPRI5: underflow in dt 1e-17"):
        da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-8, 1e-4, certify=False)
    asked.clear()
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-8, 1e-4, tolerance=1.0)
    assert np.allclose(np.log10(asked), [(-9, -5), (-8, -4), (-7, -4), (-6, -3)])
    assert np.allclose((found.rtol, found.atol), (1e-7, 1e-4))
    assert not found.certified  # even to a tolerance of 1: it is not what was asked for
    assert "rtol=1.0e-08, atol=1.0e-04 cannot be met by DOPRI5: underflow in dt 1e-17" in found.message
    assert f"differ by up to {found.agreement:.1e}" in found.message
    assert found.agreement == pytest.approx(np.abs(found.x - MIX.flow(VP, X, 1.0, 1e-3)).max(), rel=0.2)


def test_too_few_calls():
    with pytest.raises(ValueError, match="most_calls=30 are used up at λ="):
        da.reference_solution(MIX.eps(VP), VP, X, 1e-3, most_calls=30, certify=False)
    loose = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-9, 1e-9, most_calls=200)
    assert not loose.certified
    assert loose.rtol > 1e-9
    assert "most_calls=200 are used up" in loose.message
    found = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-6, 1e-6, most_calls=600, tolerance=1e-12)
    assert not found.certified
    few = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-3, 1e-3, most_calls=145)
    assert few.second_nfe == 0
    assert math.isnan(few.agreement)
    assert "needs more than most_calls=145" in few.message


def test_a_model_that_is_no_function():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"asked twice at t=1\.0, answered differently by .*eval\(\)"):
        da.reference_solution(lambda x, t: x + generator.standard_normal(x.shape), VP, X, 1e-3, most_calls=2000)


def test_an_assertion_of_the_model_is_its_own():
    def model(x, t):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        da.reference_solution(model, VP, X, 1e-3)


def test_breakpoints_of_a_process_are_stepped_onto(monkeypatch):
    """A network that is told t on a process whose t is only piecewise smooth in λ: there a step ends."""
    process = da.VPDiscrete(discrete_levels(50))

    def told(x, t):
        return np.sin(t) + 0 * x

    def rate(t):
        return math.sin(t) * float(process.kappa_rate("eps", t))

    def error(found):
        stops = [10.0, *range(9, 0, -1), 0.5]
        parts = [quad(rate, b, a, epsabs=1e-13, epsrel=1e-13)[0] for a, b in itertools.pairwise(stops)]
        exact = float(process.alpha(0.5)) * (X / float(process.alpha(10.0)) - sum(parts))
        return np.abs(found.x - exact).max()

    options = {"t_start": 10.0, "rtol": 1e-10, "atol": 1e-10, "most_calls": 4000}
    found = da.reference_solution(told, process, X, 0.5, **options)
    assert found.certified, found.message
    assert error(found) < found.tolerance < 1e-8
    monkeypatch.setattr(certificate, "all_levels", lambda process, times: times)
    without = da.reference_solution(told, process, X, 0.5, **options)
    assert not without.certified
    assert "more steps than most_calls=4000" in without.message  # it does not converge at its order


# -- models that hide something between the steps -------------------------------------------------
def gaussian(x, t):
    """ε of data of variance 1/4."""
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    return sigma * x / (0.25 * alpha**2 + sigma**2)


def off_by_one(low, high, start=1.0, end=1e-3):
    """ε of the Gaussian, wrong by 1 in a slot of times; and where its flow takes X from start to end.

    With z = y/√(1/4 + ρ²) dz/dρ is 0, and 1/√(1/4 + ρ²) in the slot.
    """
    rho = {t: float(VP.rho(t)) for t in (start, high, low, end)}
    z = X / float(VP.alpha(start)) / math.hypot(0.5, rho[start]) - math.asinh(2 * rho[high]) + math.asinh(2 * rho[low])
    return lambda x, t: gaussian(x, t) + (low < t < high), float(VP.alpha(end)) * math.hypot(0.5, rho[end]) * z


def width_unseen(found):
    return float(re.search(r"narrower than (\S+) in t", found.message)[1])


LEVELS = np.arange(1, 1000) / 1000
OPTIONS = {"rtol": 1e-6, "atol": 1e-6, "most_calls": 1100}


@pytest.mark.parametrize("row", np.linspace(30, 970, 16).round().astype(int).tolist())
def test_a_bad_row_is_found_wherever_it_is_if_the_levels_are_known(row):
    start, end = min(1.0, row / 1000 + 0.15), max(1e-3, row / 1000 - 0.15)
    model, exact = off_by_one((row - 0.5) / 1000, (row + 0.5) / 1000, start, end)
    options = {"t_start": start, "levels": LEVELS, "most_calls": 1000}
    found = da.reference_solution(model, VP, X, end, 1e-5, 1e-5, **options)
    assert not found.certified
    assert f"at t={row / 1000:g}, between its steps, the model does not answer" in found.message
    assert np.abs(found.x - exact).max() < 2 * found.tolerance < 0.2 * found.error_estimate  # DOPRI5 steps onto it


def test_what_is_wider_than_the_gap_of_the_message_is_found_and_what_lies_in_a_gap_is_not():
    asked = []

    def model(x, t):
        asked.append(t)
        return gaussian(x, t)

    clean = da.reference_solution(model, VP, X, 1e-3, **OPTIONS)
    assert clean.certified
    assert clean.nfe == len(asked)
    times = np.sort(asked)
    widest = int(np.argmax(np.diff(times)))
    low, high = times[widest : widest + 2]
    gap = width_unseen(clean)
    assert high - low <= 1.05 * gap  # two digits; what DOPRI5 asked in steps that it rejected does not count
    wrong, exact = off_by_one(low, high)
    blind = da.reference_solution(wrong, VP, X, 1e-3, **OPTIONS)
    assert blind.certified  # this is what a certificate cannot see
    assert np.abs(blind.x - exact).max() > 100 * blind.tolerance
    assert np.array_equal(blind.x, clean.x)
    for middle in np.random.default_rng(0).uniform(2 * gap, 1 - gap, 6):
        wrong, _ = off_by_one(middle - 0.6 * gap, middle + 0.6 * gap)
        assert not da.reference_solution(wrong, VP, X, 1e-3, **OPTIONS).certified, middle


def test_it_costs_one_call_for_every_five():
    calls = []
    found = da.reference_solution(lambda x, t: calls.append(t) or gaussian(x, t), VP, X, 1e-3, **OPTIONS)
    first = da.reference_solution(gaussian, VP, X, 1e-3, 1e-6, 1e-6, certify=False).nfe
    second = 4 * 39 * (2 ** (1 + round(math.log2(steps_of(found) / 39))) - 1)
    assert len(calls) == found.nfe == first + found.second_nfe
    assert 0.19 * (first + second) < found.second_nfe - second <= 0.2 * (first + second)


@settings(max_examples=30)
@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8), st.integers(0, 40))
def test_the_widest_gaps_are_divided_first(gaps, count):
    """No way to place as many times leaves a narrower widest gap than one after another in the then widest."""
    times = 1.0 - np.append(0.0, np.cumsum(gaps)) / sum(gaps)
    placed = certificate._widest(times, -times, count)
    parts = np.ones(len(gaps))
    for _ in range(count):
        parts[np.argmax(np.array(gaps) / parts)] += 1
    best = np.max(np.array(gaps) / parts) / sum(gaps)
    assert placed.size <= count
    assert np.max(-np.diff(np.sort(np.append(times, placed))[::-1])) == pytest.approx(best, rel=1e-6)


def test_the_path_between_the_ends_of_steps():
    """DOPRI5's questions at steps that end at ends, one of which is rejected at first; y = sin λ with a kink at 1."""
    ends = [0.0, 0.2, 0.45, 0.7, 1.0, 1.3, 1.6]

    def y(lam):
        return torch.tensor([math.sin(lam), abs(lam - 1)], dtype=torch.float64)

    def rate(lam):
        return torch.tensor([math.cos(lam), math.copysign(1.0, lam - 1)], dtype=torch.float64)

    path = certificate.Path(np.array([1.0]))
    path.add(0.0, y(0.0), rate(0.0))
    for a, b in itertools.pairwise(ends):
        tries = [b + 0.3, b] if a == 0.45 else [b]
        for end in tries:
            for c in (0.2, 0.3, 0.8, 8 / 9, 1.0):
                path.add(a + c * (end - a), y(0.0) + 9, rate(0.0))
            path.add(end, y(end), rate(end))
            if end == 1.0:  # the kink is from below
                path.ends[-1] = (end, y(end), torch.tensor([math.cos(end), -1.0], dtype=torch.float64))
    assert [lam for lam, _, _ in path.ends] == ends
    assert len(path.asked) == 1 + 5 * 6
    for lam, (value, slope) in zip((0.05, 0.3, 0.6, 0.99), path.between(np.array([0.05, 0.3, 0.6, 0.99])), strict=True):
        assert torch.allclose(value, y(lam), rtol=0, atol=1e-7), lam
        assert torch.allclose(slope, rate(lam), rtol=0, atol=1e-6), lam


def test_a_path_that_would_take_too_much_memory_is_not_looked_at(monkeypatch):
    whole = da.reference_solution(gaussian, VP, X, 1e-3, **OPTIONS)
    monkeypatch.setattr(certificate, "_MEMORY", 1000)
    blind = da.reference_solution(gaussian, VP, X, 1e-3, **OPTIONS)
    assert blind.certified
    assert blind.second_nfe < whole.second_nfe
    assert width_unseen(blind) > 2 * width_unseen(whole)
    assert np.array_equal(blind.x, whole.x)


def test_a_step_that_must_be_short_is_named():
    found = da.reference_solution(jump, VP, X, 0.1, 1e-7, 1e-7, most_calls=2000)
    assert float(re.search(r"shortest step is at t=(\S+)", found.message)[1]) == pytest.approx(0.3, abs=1e-5)
    clean = da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-3, 1e-3, tolerance=1e-9)
    assert "shortest" not in clean.message


@pytest.mark.parametrize("row", [3, 17, 31])
def test_the_levels_of_a_discrete_process_are_stepped_onto(row):
    process = da.VPDiscrete(discrete_levels(25))

    def model(x, t):
        return MIX.eps(process)(x, t) + (abs(t - row) < 0.1)

    options = {"t_start": 38.0, "rtol": 1e-5, "atol": 1e-5, "most_calls": 1500}
    assert da.reference_solution(MIX.eps(process), process, X, 1.0, **options).certified
    found = da.reference_solution(model, process, X, 1.0, **options)
    assert not found.certified


class Rounded(torch.nn.Module):
    """A network of diffusers' kind that keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, x, n, return_dict):
        self.told.append(float(n[0]))
        return (torch.sin(x) * torch.exp(-n / 100).reshape(-1, 1, 1, 1),)


@pytest.mark.parametrize("clock", ["t", "lam"])
@pytest.mark.parametrize("carried", [False, True])
def test_a_network_that_rounds_its_time_is_asked_at_all_its_levels(clock, carried):
    convention = Convention("eps", clock, *((100.0, 0.5) if clock == "t" else (-10.0, 50.0)))
    net, x = Rounded(), torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 1, 2, 2)
    model = ImageModel(net, VP, convention, "linear", shape=(1, 2, 2))
    process = da.EDM() if carried else VP
    if carried:
        model = Carried(model, process, "eps")
    ends = [float(process.time_from_lam(lam)) for lam in (-2.03, 3.04)]
    told = convention.told(VP, VP.time_from_lam(np.array([-2.03, 3.04])))
    found = da.reference_solution(model, process, x, ends[1], 1e-5, 1e-5, t_start=ends[0], tolerance=1e-3)
    own = np.arange(math.ceil(min(told)), math.floor(max(told)) + 1)
    asked = np.array(net.told)
    assert all(np.abs(asked - n).min() < 1e-9 for n in own)
    assert found.certified, found.message
    assert f"asked at all {own.size} of its levels" in found.message
    smooth = model.model.with_times("fractional") if carried else model.with_times("fractional")
    plain = da.reference_solution(smooth, VP, x, 0.1, 1e-5, 1e-5, t_start=0.5)
    assert "levels" not in plain.message


def test_more_levels_than_calls_are_as_good_as_unknown():
    found = da.reference_solution(gaussian, VP, X, 1e-3, 1e-6, 1e-6, levels=LEVELS, most_calls=900)
    unknown = da.reference_solution(gaussian, VP, X, 1e-3, 1e-6, 1e-6, most_calls=900)
    assert found.message == unknown.message
    assert found.nfe == unknown.nfe


# -- networks -------------------------------------------------------------------------------------
class Net(torch.nn.Module):
    """A smooth network on images of its own: one convolution, tanh, and the time added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(x) + t)) + 0.5 * x


def test_a_network_in_float64_and_its_floor_in_float32():
    x, net = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), Net()
    found32 = da.reference_solution(net, VP, x, 0.4, model_dtype=torch.float32, tolerance=1e-8)
    found64 = da.reference_solution(net.double(), VP, x, 0.4, 1e-10, 1e-10, tolerance=1e-8)
    assert found64.certified
    assert found64.x.shape == x.shape
    assert found64.x.dtype == torch.float64
    assert not found64.x.requires_grad
    assert not found32.certified
    difference = float((found32.x - found64.x).abs().max())
    assert found64.tolerance < found32.agreement < 1e-4
    assert found32.agreement / 30 < difference < 30 * found32.agreement  # the floor is that of float32
    assert "the model answers in float32" in found32.message


class Float64Time(torch.nn.Module):
    """The sinusoidal embedding of diffusers, which computes it in float32."""

    def __init__(self, of):
        super().__init__()
        half = of.num_channels // 2
        self.frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - of.downscale_freq_shift))
        self.flip = of.flip_sin_to_cos

    def forward(self, t):
        angles = t.double()[:, None] * self.frequencies
        parts = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return torch.cat(parts, dim=-1)


def test_the_digits_network_is_certified():
    diffusers = pytest.importorskip("diffusers")
    folder = shipped()["digits8"]
    card = json.loads((folder / "card.json").read_text())
    net = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).double().eval()
    net.time_proj = Float64Time(net.time_proj)
    process, convention = process_from(card["process"]), Convention.from_card(card["convention"])
    model = ImageModel(net, process, convention)
    x = torch.as_tensor(np.random.default_rng(0).standard_normal((2, 1, 8, 8)))
    found = da.reference_solution(model, process, x, 0.18, 1e-10, 1e-10, t_start=0.2, tolerance=1e-8)
    assert found.certified, found.message
    assert found.agreement < 1e-8


# -- in parts -------------------------------------------------------------------------------------
def test_a_batch_in_parts_has_the_same_answer():
    sizes = []

    def model(x, t):
        sizes.append(len(x))
        return MIX.eps(VP)(x, t)

    whole = da.reference_path(MIX.eps(VP), VP, X, [1.0, 0.2, 0.01], 1e-6, 1e-6)
    parts = da.reference_path(model, VP, X, [1.0, 0.2, 0.01], 1e-6, 1e-6, batch=2)
    assert set(sizes) == {1, 2}
    assert len(sizes) == parts.nfe
    assert parts.certified
    assert parts.message.endswith("(the worst of 3 parts of the batch)")
    for one, other in zip(whole.states, parts.states, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < parts.tolerance
    each = [da.reference_path(MIX.eps(VP), VP, X[i : i + 2], [1.0, 0.2, 0.01], 1e-6, 1e-6) for i in (0, 2, 4)]
    assert parts.nfe == sum(p.nfe for p in each)
    assert parts.second_nfe == sum(p.second_nfe for p in each)
    assert parts.agreement == max(p.agreement for p in each)
    assert parts.error_estimate == max(p.error_estimate for p in each)


def test_one_bad_part_spoils_the_certificate():
    def model(x, t):
        return np.where(np.abs(x[:1]) > 1e4, 0.0, MIX.eps(VP)(x, t)) if len(x) == 2 else jump(x, t)

    found = da.reference_solution(model, VP, X, 0.1, 1e-6, 1e-6, batch=2, most_calls=2000)
    last = da.reference_solution(jump, VP, X[4:], 0.1, 1e-6, 1e-6, most_calls=2000)
    assert not found.certified
    assert found.agreement == last.agreement
    assert found.message == f"{last.message} (the worst of 3 parts of the batch)"


def test_parts_that_do_not_fit_are_halved():
    asked = []

    def model(x, t):
        asked.append(len(x))
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("too large")
        return MIX.eps(VP)(x, t)

    found = da.reference_solution(model, VP, torch.as_tensor(X), 1e-3, 1e-6, 1e-6)
    assert found.certified
    assert found.nfe == len(asked)
    assert asked[0] == 5
    assert asked[1] == 3
    assert set(asked[2:]) == {2, 1}
    with pytest.raises(torch.cuda.OutOfMemoryError):
        da.reference_solution(lambda x, t: model(torch.ones(3), t), VP, torch.as_tensor(X), 1e-3)


# -- kept on disk ---------------------------------------------------------------------------------
class Counted:
    """The model of the mixture, counting its calls."""

    digest = "abc"

    def __init__(self, process=VP):
        self.process, self.calls = process, 0

    def __call__(self, x, t):
        self.calls += 1
        return MIX.eps(self.process)(x, t)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_reference_found_on_disk_costs_no_call(tmp_path, kind):
    model, x = Counted(), kind(X)
    options = {"rtol": 1e-6, "atol": 1e-6, "cache": [tmp_path / "new" / "er", tmp_path / "other"]}
    first = da.reference_solution(model, VP, x, 1e-3, **options)
    assert model.calls == first.nfe > 0
    (file,) = (tmp_path / "new" / "er").iterdir()
    again = da.reference_solution(model, VP, x, 1e-3, **options)
    assert model.calls == first.nfe
    assert type(again.x) is type(first.x)
    assert np.array_equal(again.x, first.x)
    for name in first.__dict__.keys() - {"states"}:
        assert getattr(again, name) == getattr(first, name)
        assert type(getattr(again, name)) is type(getattr(first, name))
    (tmp_path / "other").mkdir()
    file.rename(tmp_path / "other" / file.name)  # a folder further back is looked in too
    path = da.reference_path(model, VP, x, [1e-3, 1.0], **options, batch=3, key="abc")
    assert model.calls == first.nfe
    assert np.array_equal(path(1e-3), first.x)
    assert not list((tmp_path / "new" / "er").iterdir())
    assert da.reference_solution(model, VP, x, 1e-3, 1e-6, 1e-6, cache=str(tmp_path / "other")).nfe == model.calls


class Custom(da.VPLinear):
    """Another class with the same parameters."""


@pytest.mark.parametrize(
    "change",
    [
        {"key": "abd"}, {"process": da.VPLinear(0.1, 19.0)}, {"process": Custom()}, {"prediction": "x0"},
        {"process": da.MeanReverting(VP, 0.0)}, {"x_T": np.nextafter(X, 3)}, {"x_T": X.astype(np.float32)},
        {"x_T": X[:, None]}, {"t_end": 1.1e-3}, {"t_start": 0.99}, {"rtol": 2e-6}, {"atol": 2e-6}, {"tolerance": 1e-4},
        {"certify": False}, {"model_dtype": torch.float32}, {"most_calls": 40_000}, {"seed": 1}, {"levels": [0.5]},
    ],
    ids=lambda c: "_".join(c),
)  # fmt: skip
def test_another_question_is_another_file(tmp_path, change):
    plain = {"process": VP, "x_T": X, "t_end": 1e-3, "rtol": 1e-4, "atol": 1e-4, "key": "abc", "cache": tmp_path}
    model = Counted()
    da.reference_solution(model, **plain)
    before = model.calls
    da.reference_solution(model, **plain)
    assert model.calls == before
    da.reference_solution(model, **(plain | change))
    assert model.calls > before
    assert len(list(tmp_path.iterdir())) == 2


def test_another_version_of_the_method_is_another_file(tmp_path, monkeypatch):
    model, options = Counted(), {"rtol": 1e-4, "atol": 1e-4, "certify": False, "cache": tmp_path}
    first = da.reference_solution(model, VP, X, 0.5, **options)
    monkeypatch.setattr(reference_cache, "_FORMAT", reference_cache._FORMAT + 1)
    da.reference_solution(model, VP, X, 0.5, **options)
    assert model.calls == 2 * first.nfe
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_are_told_apart_by_their_parameters():
    levels = discrete_levels(50)
    others = [
        VP, da.SubVP(), da.VPLinear(0.2), da.VPCosine(), da.VPDiscrete(levels), da.VPDiscrete(levels[:-1]), da.EDM(),
        da.VPDiscrete(levels * (1 - 1e-12)), da.MeanReverting(VP, 1.0), da.MeanReverting(VP, [1.0, 2.0]), da.VE(),
        da.MeanReverting(VP, [1.0, 2.5]), da.MeanReverting(da.SubVP(), 1.0), da.MeanReverting(VP, 1.0, 2.0),
    ]  # fmt: skip
    names = {reference_cache.fingerprint({"process": p}) for p in others}
    assert len(names) == len(others)
    assert reference_cache.fingerprint({"process": da.VPLinear()}) in names
    assert reference_cache.fingerprint({"process": da.MeanReverting(VP, torch.tensor([1.0, 2.0]))}) in names

    class Secret(da.VPLinear):
        def __init__(self):
            super().__init__()
            object.__setattr__(self, "beta_min", lambda t: t)

    with pytest.raises(ValueError, match=r"cache: <function .* cannot be hashed; allowed: numbers, strings"):
        reference_cache.fingerprint({"process": Secret()})


def refilled(**changes):
    """Damage to a file: other values in it, of those that it has."""

    def damage(file, fields):
        np.savez(file, **(fields | {name: change(fields[name]) for name, change in changes.items()}))

    return damage


def without(*names):
    return lambda file, fields: np.savez(file, **{k: v for k, v in fields.items() if k not in names})


def cut(file, fields):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, fields):
    content = bytearray(file.read_bytes())
    content[content.index(fields["states"].tobytes()) + 45] ^= 1
    file.write_bytes(content)


def pipe(file, fields):
    file.unlink()
    os.mkfifo(file)


def bomb(file, fields):
    np.savez_compressed(file, **(fields | {"states": np.zeros(2**21)}))


def swap(file, fields):
    da.reference_solution(Counted(), VP, X, 2e-3, 1e-6, 1e-6, cache=file.parent)
    (other,) = set(file.parent.iterdir()) - {file}
    other.replace(file)


def promise(file, fields):
    """A header of more bytes than there are."""
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    shape = repr(fields["states"].shape).encode()
    assert shape in parts["states.npy"]
    parts["states.npy"] = parts["states.npy"].replace(shape, b"(9" + b"9" * 12 + b", 2)", 1)
    with zipfile.ZipFile(file, "w") as whole:
        for name, part in parts.items():
            whole.writestr(name, part)


CHANGED = "its values are not those that were written"
DAMAGE = {  # what is done to a file, and what the warning says
    "truncated": (cut, ""),
    "empty": (lambda file, _: file.write_bytes(b""), ""),
    "garbage": (lambda file, _: file.write_bytes(b"not a reference"), ""),
    "flipped": (flip, "CRC"),
    "pipe": (pipe, "it is no file"),
    "bomb": (bomb, "it is larger than its states"),
    "huge header": (promise, ""),
    "swapped": (swap, "it answers another question"),
    "old": (without("question", "sha256"), "it was written before files had a checksum"),
    "no field": (without("message"), CHANGED),
    "another shape": (refilled(states=lambda x: x[:, :2]), CHANGED),
    "nan": (refilled(states=lambda x: x * np.nan), CHANGED),
    "edited": (refilled(states=lambda x: x * (1 + 1e-15)), CHANGED),
    "certified": (refilled(certified=lambda b: ~b), CHANGED),
    "strings": (refilled(states=lambda x: x.astype(str)), CHANGED),
    "objects": (refilled(states=lambda x: x.astype(object)), "allow_pickle=False"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    model, options = Counted(), {"rtol": 1e-6, "atol": 1e-6, "cache": tmp_path}
    first = da.reference_solution(model, VP, X, 1e-3, **options)
    (file,) = tmp_path.iterdir()
    act, said = DAMAGE[damage]
    act(file, dict(np.load(file)))
    with pytest.warns(UserWarning, match=rf"the reference '.*' is passed over: .*{said}") as found:
        again = da.reference_solution(model, VP, X, 1e-3, **options)
    (line,) = [text for text in (str(one.message) for one in found) if text.startswith("the reference")]
    assert "\n" not in line
    assert model.calls == 2 * first.nfe
    assert np.array_equal(again.x, first.x)
    da.reference_solution(model, VP, X, 1e-3, **options)
    assert model.calls == 2 * first.nfe
    assert [f.suffix for f in tmp_path.iterdir()] == [".npz"]


@pytest.mark.parametrize("damage", ["old", "edited", "garbage"])
def test_behind_a_damaged_file_the_next_folder_is_looked_into(tmp_path, damage):
    first, second = tmp_path / "first", tmp_path / "second"
    model, options = Counted(), {"rtol": 1e-6, "atol": 1e-6}
    whole = da.reference_solution(model, VP, X, 1e-3, **options, cache=second)
    (file,) = second.iterdir()
    first.mkdir()
    DAMAGE[damage][0](first / file.name, dict(np.load(file)))
    with pytest.warns(UserWarning, match="first.*is passed over"):
        found = da.reference_solution(model, VP, X, 1e-3, **options, cache=[first, second])
    assert model.calls == whole.nfe
    assert np.array_equal(found.x, whole.x)


def test_a_cache_is_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for cache in ("", b"", tmp_path / "file", [tmp_path, ""], [None], [3], "\0", "x" * 5000):
        with pytest.raises(ValueError, match=r"cache=.* must be the path of a folder"):
            da.reference_solution(Counted(), VP, X, 1e-3, 1e-6, 1e-6, cache=cache)


def test_shipped_references_say_their_question_and_have_their_checksum(recwarn):
    files = [file for folder in shipped().values() for file in folder.glob("references/*.npz")]
    assert len(files) >= 4
    for file in files:
        with np.load(file) as found:
            names, shape = set(found.files) - {"question", "sha256"}, found["states"].shape
        assert reference_cache.load(file, names, shape) is not None
    assert not recwarn


@pytest.mark.parametrize("where", ["savez", "replace"])
def test_a_write_that_is_cut_off_leaves_no_file(tmp_path, monkeypatch, where):
    def cut(file, *args, **kwargs):
        if where == "savez":
            file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reference_cache.np if where == "savez" else reference_cache.os, where, cut)
        with pytest.raises(KeyboardInterrupt):
            da.reference_solution(Counted(), VP, X, 1e-3, 1e-6, 1e-6, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown(capsys):
    da.reference_solution(MIX.eps(VP), VP, X, 1e-3, 1e-6, 1e-6, progress=True)
    assert "between the steps" in capsys.readouterr().out
