"""The DOPRI5 reference against exact flows: the true error stays below ten times the estimate, and certified it is
below the tolerance of the certificate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mixtures, processes

import deis_analysis as da

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])


@settings(max_examples=15)  # 200 take a minute: each is two runs of DOPRI5
@given(
    mixtures(),
    processes(("VPLinear", "VPCosine", "SubVP", "VE", "EDM", "RectifiedFlow")),
    st.sampled_from(da.PREDICTIONS),
)
def test_agrees_with_the_exact_flow_to_ten_times_its_estimate(mix, process, prediction):
    start, end = process.sampling_range
    end = max(end, start * 1e-2)
    x = mix.sample(5, 0, process, start)
    found = da.reference_solution(mix.model(process, prediction), process, x, end, 1e-7, 1e-7, prediction=prediction)
    truth = mix.flow(process, x, start, end)
    assert np.abs(found.x - truth).max() <= 10 * found.error_estimate + 1e-11
    assert found.error_estimate < 1e-4 * (1 + np.abs(truth).max())
    assert np.abs(found.x - truth).max() <= found.tolerance or not found.certified
    if not found.certified:  # DOPRI5's tolerances are of its steps, not of its result; then the second method tells
        assert np.isclose(found.agreement, np.abs(found.x - truth).max(), rtol=0.5, atol=0), found.message
    assert isinstance(found.x, np.ndarray)


def test_counts_every_model_call_and_tightens():
    calls = []

    def model(x, t):
        calls.append(t)
        return MIX.eps(VP)(x, t)

    x = MIX.sample(4, 0, VP, 1.0)
    loose = da.reference_solution(model, VP, x, 1e-3, 1e-5, 1e-5)
    assert loose.nfe == len(calls)
    assert np.allclose((loose.rtol, loose.atol), 1e-6)
    tight = da.reference_solution(MIX.eps(VP), VP, x, 1e-3, 1e-10, 1e-10)
    truth = MIX.flow(VP, x, 1.0, 1e-3)
    assert tight.nfe > loose.nfe
    assert np.abs(tight.x - truth).max() < 1e-8 < np.abs(loose.x - truth).max()
    assert min(calls) >= 1e-3
    assert max(calls) <= 1.0


def test_torch_in_torch_out_also_from_float32():
    x = torch.as_tensor(MIX.sample(4, 0, VP, 1.0))
    found = da.reference_solution(MIX.eps(VP), VP, x, 1e-3)
    assert found.x.dtype == torch.float64
    assert np.allclose(found.x.numpy(), MIX.flow(VP, x.numpy(), 1.0, 1e-3), atol=1e-6)
    assert da.reference_solution(MIX.eps(VP), VP, x.float(), 1e-3).x.dtype == torch.float64


def test_the_estimate_is_the_largest_difference_of_the_two_runs():
    x = MIX.sample(6, 0, VP, 1.0)
    found = da.reference_solution(MIX.eps(VP), VP, x, 1e-3, 1e-4, 1e-4)
    coarse = da.reference_solution(MIX.eps(VP), VP, x, 1e-3, 1e-3, 1e-3).x  # its second run is at 1e-4
    assert np.isclose(found.error_estimate, np.abs(found.x - coarse).max(), rtol=1e-9)


def test_a_float32_network_under_a_float64_state():
    network = torch.nn.Linear(2, 2)
    found = da.reference_solution(
        lambda x, t: network(x), VP, torch.ones(3, 2), 0.1, 1e-5, 1e-5, model_dtype=torch.float32
    )
    assert found.x.dtype == torch.float64


def test_mean_reverting_reference():
    process = da.MeanReverting(VP, 1.5)
    x = MIX.sample(4, 0, process, 1.0)
    for prediction in ("eps", "x0", "v"):
        found = da.reference_solution(MIX.model(process, prediction), process, x, 0.01, prediction=prediction)
        assert np.allclose(found.x, MIX.flow(process, x, 1.0, 0.01), atol=1e-6), prediction


def spike(x, t):
    """A model that jumps in time: no step size meets a tolerance across the jump."""
    return x * (1e12 if t < 0.3 else 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_end": 1.0}, "t_end=1.0 must be below t_start=1.0"),
        ({"t_end": -1.0}, "t_end=-1.0 is outside"),
        ({"t_end": 0.0}, "t_end=0.0: λ is infinite"),
        ({"t_start": 2.0}, "t_start=2.0 is outside"),
        ({"process": da.EDM(), "t_end": np.nextafter(80.0, 0)}, "have the same λ in float64"),
        ({"rtol": 0.0}, "rtol=0.0 must be a positive"),
        ({"atol": np.nan}, "atol=nan must be finite"),
        ({"prediction": "e"}, "prediction='e' is unknown"),
        ({"x_T": torch.ones(3, dtype=torch.int64)}, "x_T has dtype torch.int64"),
        ({"x_T": np.ones((0, 3))}, r"x_T has shape \(0, 3\); allowed: at least one entry"),
        ({"x_T": np.array([np.nan])}, "x_T must be finite"),
        ({"model": lambda x, t: x * np.nan}, "model returned NaN or infinity at call 1"),
        ({"model": None}, "model=None must be a function"),
        ({"model": lambda x, t: None}, "model returned None at call 1"),
        ({"model": lambda x, t: x[:1]}, r"model returned shape \(1,\) at call 1"),
        ({"rtol": 1e-14}, "rtol=1e-14 cannot be met in float64; allowed: at least 2.2e-13"),
        ({"model": spike, "rtol": 1e-9, "atol": 1e-9, "certify": False}, "cannot be met by DOPRI5: underflow in dt"),
        ({"model": spike, "most_calls": 2000}, "rtol=1.0e-03, atol=1.0e-03 cannot be met by DOPRI5: most_calls=2000"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be a positive"),
        ({"certify": 1}, "certify=1 must be True or False"),
        ({"progress": None}, "progress=None must be True or False"),
        ({"batch": 0}, "batch=0 must be an integer >= 1"),
        ({"most_calls": 0.5}, "most_calls=0.5 must be an integer"),
        ({"seed": -1}, "seed=-1 must be an integer >= 0"),
        ({"levels": [0.5, 1.5]}, r"levels=1.5 is outside \[0, 1\]"),
        ({"levels": [np.nan]}, "levels"),
        ({"cache": "somewhere"}, "key=None must be a string"),
        ({"cache": "somewhere", "key": ""}, "key='' must be a string"),
        ({"cache": [], "key": "mine"}, r"cache=\[\] must be a folder or several"),
    ],
)
def test_bad_input(options, message):
    arguments = {"model": MIX.eps(VP), "process": VP, "x_T": np.linspace(-1, 1, 3), "t_end": 1e-3} | options
    with pytest.raises(ValueError, match=message):
        da.reference_solution(**arguments)


# -- a path ---------------------------------------------------------------------------------------
def test_a_path_is_exact_at_every_time_it_was_asked_for():
    process, mix = da.VPLinear(), da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03])
    x = np.linspace(-2, 2, 9)
    times = np.concatenate([da.grid(process, 12, "t2", 1.0, 1e-3), [0.3, 0.3]])
    path = da.reference_path(mix.eps(process), process, x, times[::-1], 1e-9, 1e-9)
    assert path.times[0] == 1.0
    assert list(path.times) == sorted({*times}, reverse=True)
    errors = [np.abs(path(t) - (mix.flow(process, x, 1.0, t) if t < 1 else x)).max() for t in times]
    assert max(errors) < 3 * path.error_estimate < 1e-6
    one = da.reference_solution(mix.eps(process), process, x, 1e-3, 1e-9, 1e-9)
    assert np.allclose(path.states[-1], one.x, rtol=0, atol=one.error_estimate + path.error_estimate)
    assert path.nfe < 3 * one.nfe  # not one integration per time


def test_the_estimate_of_a_path_is_the_largest_over_its_times():
    """Where the flow contracts to a point the last time is the most exact one."""
    mix, x, times = da.GaussianMixture([1.0], [0.0], [1e-4]), np.linspace(-2, 2, 5), [1.0, 0.6, 0.3, 1e-3]
    found = da.reference_path(mix.eps(VP), VP, x, times, 1e-4, 1e-4)
    coarse = da.reference_path(mix.eps(VP), VP, x, times, 1e-3, 1e-3)  # its second run is at 1e-4
    gaps = [np.abs(a - b).max() for a, b in zip(found.states, coarse.states, strict=True)]
    assert gaps[-1] < 0.5 * max(gaps)
    assert np.isclose(found.error_estimate, max(gaps), rtol=1e-9)


def test_steps_end_on_the_times_of_a_path():
    """No interpolation: DOPRI5 asks the model at the end of each step, so at every time; and no state is worse than
    the estimate says."""
    asked, times = [], [1.0, 0.83, 0.41, 0.22, 0.05, 0.01]
    mix, x = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03]), np.linspace(-2, 2, 9)

    def model(y, t):
        asked.append(t)
        return mix.eps(VP)(y, t)

    path = da.reference_path(model, VP, x, times, 1e-6, 1e-6)
    for t in times[1:]:
        assert min(abs(t - u) for u in asked) < 1e-9 * t, t
    assert max(np.abs(path(t) - mix.flow(VP, x, 1.0, t)).max() for t in times[1:]) < 3 * path.error_estimate
    with pytest.raises(ValueError, match="model=None must be a function"):
        da.reference_path(None, VP, x, times)


def test_the_last_step_ends_at_the_end():
    """DOPRI5 would go on beyond it, where no model is asked, and interpolate: at the end it asks twice, not more."""
    asked = []
    process = da.VPCosine()

    def model(y, t):
        asked.append(t)
        return MIX.model(process, "v")(y, t)

    start, end = process.sampling_range[0], 1e-3
    x = MIX.sample(4, 0, process, start)
    found = da.reference_solution(model, process, x, end, prediction="v", certify=False)
    assert sum(t < end * (1 + 1e-12) for t in asked) == 4  # two runs
    assert np.abs(found.x - MIX.flow(process, x, start, end)).max() < 0.02 * found.tolerance


def test_a_path_of_a_process_with_a_mean():
    process = da.MeanReverting(da.VPLinear(), 0.7)
    mix = da.GaussianMixture([1.0], [1.2], [0.3])
    x = np.linspace(-1, 2, 5)
    path = da.reference_path(mix.eps(process), process, x, [1.0, 0.4, 0.1], 1e-9, 1e-9)
    assert np.allclose(path(0.4), mix.flow(process, x, 1.0, 0.4), atol=1e-6)


def test_bad_paths():
    process, mix = da.VPLinear(), da.GaussianMixture([1.0], [0.0], [1.0])
    path = da.reference_path(mix.eps(process), process, np.ones(2), [1.0, 0.5], 1e-6, 1e-6)
    with pytest.raises(ValueError, match=r"t=0\.7 is not on the path; allowed: one of its 2 times"):
        path(0.7)
    for times, message in (
        ([0.5], "at least 2 different"),
        ([0.5, 0.5], "at least 2"),
        ([1.0, 0.0], "λ is infinite"),
        ([1.0, 2.0], "times"),
    ):
        with pytest.raises(ValueError, match=message):
            da.reference_path(mix.eps(process), process, np.ones(2), times)
