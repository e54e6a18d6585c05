"""Bad arguments: a sample of the hostile calls, and what was once accepted and silently wrong."""

from __future__ import annotations

import collections
import contextlib
import math

import hostile
import numpy as np
import pytest
import torch

import deis_analysis as da
from deis_analysis import interop, problems, tuning, validate
from deis_analysis.audit import plugin

VP = da.VPLinear()
TAB = da.build("tab2", VP, da.grid(VP, 3))


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("hostile")):  # some values are good paths
        hostile.warm()
        return [(case, *hostile.outcome(case)) for case in hostile.sample(1200, seed=0)]


def test_no_hostile_call_ends_raw_hangs_or_is_swallowed(ends):
    """1,200 of some 60,000; `make fuzz` runs all."""
    wrong = [f"{end} {case.where}: {said[:200]}" for case, end, said in ends if end in ("raw", "hang", "swallowed")]
    assert not wrong, "\n".join(wrong)
    count = collections.Counter(end for _, end, _ in ends)
    assert count["refused"] > 0.8 * len(ends)


def test_the_harness_sees_what_it_looks_for():
    """Planted: a raw error, a hang, a swallowed NaN, and a good refusal."""

    def endless(x: float) -> None:
        while True:
            pass

    def refuses(x: float) -> float:
        return validate.scalar("x", "no")

    plants = {
        "raw": lambda x: [][1], "hang": endless, "swallowed": lambda x: x, "refused": refuses,
    }  # fmt: skip
    for wanted, function in plants.items():
        case = hostile.Case(function, {"x": math.nan}, "planted", "x", "nan")
        hostile._GOOD["planted"] = {"x": 1.0}
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(hostile, "LIMIT_S", 0.1)
                assert hostile.outcome(case)[0] == wanted
        finally:
            del hostile._GOOD["planted"]


@pytest.mark.parametrize(("call", "match"), [
    (lambda: da.exactness_degree(TAB, VP, "eps", "abc"), "variable='abc' is unknown"),
    (lambda: da.exactness_degree(TAB, VP, "eps", "t", tolerance=np.nan), "tolerance=nan must be finite"),
    (lambda: da.exactness_degree(TAB, VP, "eps", "t", lam_sde=np.nan), "lam_sde=nan must be finite"),
    (lambda: da.Convention(time="sigma"), "time='sigma' is unknown"),
    (lambda: da.extract(lambda model, x: model(x, 1.0), backend="jax"), "backend='jax' is unknown"),
    (lambda: plugin.assert_order("registry:ddim", np.nan), "order=nan must be an integer"),
    (lambda: plugin.assert_order("registry:ddim", 1, start="none"), "start='none' is unknown"),
    (lambda: da.audit_sampler("registry:ddim", order=5), "order=5 is for functions; a spec has it after"),
    (lambda: da.audit_sampler("registry:ddim", convention="flow"), "convention='flow' is for functions"),
    (lambda: da.audit_sampler("registry:ddim", steps=5), "steps=5 is for functions"),
    (lambda: da.quadrature_weights(VP, "eps", "t", [0.5, 0.4], 0.4, 1e-320), "float64 does not reach the weights"),
])  # fmt: skip
def test_what_was_accepted_and_silently_wrong_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(("call", "match"), [
    (lambda: da.phi(10**9, 0.5), "k=1000000000 must be at most"),
    (lambda: da.observed_order("ddim", VP, hostile.MIX, samples=10**9), "samples=1000000000 must be at most"),
    (lambda: tuning.trajectories(hostile.MODEL, hostile.X, points=10**9), "points=1000000000 must be at most"),
    (lambda: da.log_likelihood(hostile.linear, VP, hostile.T2, steps=3, trace="hutchinson", probes=10**9),
     "probes=1000000000 must be at most"),
    (lambda: da.grid(VP, 10**9), "steps asks for a grid of 1000000001 points"),
    (lambda: hostile.MIX.sample(10**9), "n=1000000000 must be at most"),
])  # fmt: skip
def test_where_work_grows_it_is_bounded(call, match):
    with hostile.limited(hostile.LIMIT_S), pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("wrong", [10**400, "abc", torch.zeros(3, device="meta")], ids=["10**400", "text", "meta"])
@pytest.mark.parametrize(("argument", "call"), [
    ("tableau", lambda wrong: da.run(wrong, hostile.MODEL, hostile.X)),
    ("process", lambda wrong: da.grid(wrong, 4)),
    ("mix", lambda wrong: da.global_error(TAB, VP, wrong, hostile.X)),
    ("stepper", lambda wrong: da.simulate(wrong, hostile.MODEL, hostile.X)),
    ("model_dtype", lambda wrong: da.run(TAB, hostile.MODEL, hostile.X, model_dtype=wrong)),
    ("seed", lambda wrong: hostile.MIX.sample(3, wrong)),
    ("path", lambda wrong: da.extrapolation_error(hostile.MODEL, VP, wrong, hostile.TS, 1)),
    ("convention", lambda wrong: da.extract(lambda model, x: model(x, 1.0), convention=wrong)),
    ("file", lambda wrong: interop.write_k_diffusion(interop.portable(TAB, VP), wrong)),
])  # fmt: skip
def test_a_wrong_kind_is_named(argument, call, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (argument, wrong) == ("file", "abc"):
        pytest.skip("a good path")
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}=|\b{argument} (must|has|is)") as error:
        call(wrong)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("call", "match"), [
    (lambda: da.reference_solution(hostile.linear, VP, hostile.X, 0.5, cache=""), "cache='' must be"),
    (lambda: tuning.target_of("no-such"), "^model='no-such'"),
    (lambda: tuning.trajectories(hostile.MODEL, hostile.X, teacher="abc"), "^teacher='abc' is unknown"),
    (lambda: hostile.PRODUCT.flow(VP, hostile.X2, 0.9, 9.0), "^t_to=9.0 is outside"),
    (lambda: problems.teleport([["a"]], VP, hostile.X2, 0.9, 0.5), "^source="),
    (lambda: problems.teleport(hostile.GAUSS, VP, hostile.X2, 0.9, -1.0), "^t_skip=-1.0 is outside"),
])  # fmt: skip
def test_the_argument_that_is_named_is_the_bad_one(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_weights_next_to_that_are_finite():
    assert np.all(np.isfinite(da.quadrature_weights(VP, "eps", "t", [0.5, 0.4], 0.4, 0.0)))


@pytest.mark.parametrize(("call", "match"), [
    (lambda: da.build("DEIS", VP, [0.9, 0.1]), r"nearest: tab3, .*, .*\. Allowed: 1[0-9][0-9] names$"),
    (lambda: da.build("DPMSolverMultistep", VP, [0.9, 0.1]), "'DPMSolverMultistep' is unknown; nearest: dpmpp_2m, "),
    (lambda: da.build("EulerAncestralDiscrete", VP, [0.9, 0.1]), "nearest: euler_ancestral, "),
    (lambda: da.sample("Tab-3", lambda x, t: x, 1.0, process=VP, prediction="eps"), "nearest: tab3, "),
    (lambda: da.grid(VP, 4, "karras"), "kind='karras' is unknown; nearest: rho7, rho5, logrho. Allowed: t1, t2, t3"),
    (lambda: da.grid(VP, 4, "uniform"), "kind='uniform' is unknown; nearest: t1, t2, t3. Allowed: t1"),
])  # fmt: skip
def test_the_nearest_names_are_told(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_float32_network_under_a_reference_is_told_of_model_dtype():
    net = torch.nn.Linear(2, 2)
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"model does not take float64 .*; allowed: model_dtype=torch.float32"):
        da.reference_solution(lambda x, t: net(x), VP, x, 0.5)
    options = {"model_dtype": torch.float32, "certify": False}
    assert da.reference_solution(lambda x, t: net(x), VP, x, 0.9, 1e-2, 1e-2, **options).nfe


@pytest.mark.parametrize("dtype", [np.float32, "float32", np.dtype("float32"), np.float16, float])
def test_dtypes_by_any_of_their_names(dtype):
    assert da.run(TAB, lambda x, t: 0.1 * x, np.ones(3), model_dtype=dtype).dtype == np.float64
    with pytest.raises(ValueError, match=r"model_dtype=.* must be a floating dtype of the library of x"):
        da.run(TAB, lambda x, t: 0.1 * x, torch.ones(3), model_dtype=dtype)
    assert da.run(TAB, lambda x, t: 0.1 * x, torch.ones(3), model_dtype=torch.bfloat16).dtype == torch.float32


def test_a_dtype_of_jax():
    jax = pytest.importorskip("jax")
    x = jax.numpy.ones(3)
    for dtype in (jax.numpy.bfloat16, np.float32, "float32"):
        assert da.run(TAB, lambda x, t: 0.1 * x, x, model_dtype=dtype).dtype == x.dtype


@validate.checked
def boundary(n: int, x: float, word: str = "", flag: bool = False, top: float = math.inf, maybe: float | None = None):
    return n, x, word, flag, top, maybe


def test_the_boundary_passes_numbers_as_pythons():
    n, x, *_ = boundary(np.int64(3), np.float32(0.5), maybe=np.array(2.0))
    assert (type(n), type(x)) == (int, float)
    assert boundary(1, 2)[:2] == (1, 2)
    assert boundary(1, 2.0, top=math.inf, maybe=None)[4:] == (math.inf, None)


@pytest.mark.parametrize(("change", "match"), [
    ({"n": 1.0}, "n=1.0 must be an integer"), ({"n": True}, "n=True must be an integer"),
    ({"n": -1}, "n=-1 must be an integer >= 0"), ({"n": 10**400}, "n=10+.*0 must be at most 100000000"),
    ({"x": "1"}, "x='1' must be made of real numbers"), ({"x": math.inf}, "x=inf must be finite"),
    ({"x": 10**400}, "x=10+.*0 must be made of real numbers"),
    ({"x": [1.0]}, r"x has shape \(1,\); allowed: one number"),
    ({"word": 3}, "word=3 must be a str"), ({"flag": 1}, "flag=1 must be True or False"),
    ({"top": math.nan}, "top=nan must be a number"), ({"maybe": "x"}, "maybe='x' must be made of real"),
])  # fmt: skip
def test_the_boundary_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        boundary(**({"n": 1, "x": 1.0} | change))
