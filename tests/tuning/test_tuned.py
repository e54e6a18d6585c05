"""Tuning: the space of tables keeps what it says, the search finds known optima, the report is of other noises."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import deis_analysis as da
from deis_analysis.cli import main
from deis_analysis.tuning import target_of, tune
from deis_analysis.tuning.fit import Goal, State, _round, search
from deis_analysis.tuning.held_out import consistency
from deis_analysis.tuning.parameters import Space

VP = da.VPLinear()
GAUSSIAN = da.GaussianMixture([1.0], np.zeros((1, 2)), np.array([[0.3, 0.02]]))


def space(name="tab3", nfe=5, kind="t2", **options):
    return Space(VP, da.SOLVERS[name].build, da.grid(VP, nfe, kind), **options)


# -- the space ------------------------------------------------------------------------------------
def test_the_start_is_the_sampler_itself():
    found = space()
    table = found.table(found.start)
    assert da.distance(table, da.build("tab3", VP, da.grid(VP, 5))) == 0
    assert np.array_equal(table.times, da.grid(VP, 5))
    assert found.size == 4 + 5 + (0 + 1 + 2 + 3 + 4)
    assert space(degree=-1).size == 4 + 5 + (1 + 2 + 3 + 4 + 5)
    assert space(degree=1).size == 4 + 5 + (0 + 0 + 1 + 2 + 3)
    assert space(history=2).size == 4 + 5 + 4
    assert space(times=False, told=False).size == 10
    assert space("rhork_2heun", 3).size == 2 + 6 + sum(range(6))


@given(st.sampled_from(["tab2", "dpmpp_2m_exact", "rhork_2heun", "ipndm3"]), st.integers(0, 3), st.integers(0, 99))
def test_what_degree_promises_is_kept(name, degree, seed):
    """Rows moved at random: polynomials in λ up to the degree give what they gave before, and one more does not."""
    found = space(name, 6, degree=degree, times=False, told=False)
    point = replace(found.start, weights=np.random.default_rng(seed).normal(size=found.size))
    before, after = found.first.outputs, found.table(point).outputs
    lam = VP.lam(found.first.times)
    lam = (lam - lam[0]) / np.ptp(lam)
    for m in range(degree + 1):
        np.testing.assert_allclose(after @ lam**m, before @ lam**m, atol=1e-9 * np.abs(after).max())
    moved = np.abs((after - before) @ lam ** (degree + 1)).max()
    assert found.size == 0 or moved > 1e-9 * np.abs(after - before).max()


@given(st.integers(0, 200), st.floats(0.01, 5.0))
def test_times_never_meet_and_the_ends_stay(seed, size):
    found = space(nfe=7)
    point, rng = found.start, np.random.default_rng(seed)
    for _ in range(5):
        point = found.moved(point, size * rng.normal(size=found.size))
    assert np.all(np.diff(point.lam) > 0)
    assert np.all(np.abs(point.offsets) <= 0.5)
    table = found.table(point)
    assert table.times[-1] == da.grid(VP, 7)[-1]
    assert np.all(table.times[:-1] <= 1.0)
    assert np.all(table.times >= table.times[-1])


def test_told_times_stay_within_half_a_gap():
    found = space(nfe=4)
    far = replace(found.start, offsets=np.full(4, 0.5))
    told, lam = VP.lam(found.table(far).times), VP.lam(found.ts)
    gaps = np.diff(lam)
    near = np.minimum(gaps, np.append(gaps[0], gaps[:-1]))
    np.testing.assert_allclose(told[:-1] - lam[:-1], 0.5 * near, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": -2}, "degree"),
        ({"degree": 9}, "degree"),
        ({"ts": np.array([1.0, 0.5, 0.0])}, "λ must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_spaces(options, message):
    with pytest.raises(ValueError, match=message):
        replace(space(), **options)


# -- the search -----------------------------------------------------------------------------------
def test_one_step_finds_the_exact_weight():
    """One call, Gaussian data of one variance, no degree kept: the flow is linear in x_T, so the error goes to 0."""
    gaussian = da.GaussianMixture([1.0], np.zeros((1, 2)), np.array([[0.3, 0.3]]))
    target = target_of(gaussian)
    x = target.noise(32, 0)
    goal = Goal(target, x, target.truth(x)[0])
    found = Space(VP, da.SOLVERS["ddim"].build, da.grid(VP, 1), degree=-1, times=False, told=False)
    state = search(found, goal, goal, State(found.start), rounds=6, until=np.inf, kept=lambda s: None,
                   progress=lambda *_: None)  # fmt: skip
    table = found.table(state.best)
    exact = float(da.exact_transfer(VP, 0.3, 1.0, 0.001))
    assert np.isclose(float(da.transfer(table, VP, 0.3)), exact, rtol=1e-6)
    assert state.best_loss < 1e-6 < state.losses[0]


def test_a_linear_problem_is_solved_as_least_squares():
    """Weights of the last row only: what LM finds is what lstsq gives on the outputs."""
    target = target_of("mixture")
    x = target.noise(64, 3)
    truth = target.truth(x)[0]
    found = Space(VP, da.SOLVERS["tab2"].build, da.grid(VP, 4), degree=-1, times=False, told=False)
    found.__dict__.update(rows=[row for row in found.rows if row[0] == 4])
    state = search(found, Goal(target, x, truth), Goal(target, x, truth), State(found.start), rounds=8, until=np.inf,
                   kept=lambda s: None, progress=lambda *_: None)  # fmt: skip
    first = found.first
    _, seen = da.run(first, target.model, x, keep="all")
    outputs = np.stack([seen.outputs[j].ravel() for j in first.evaluated], axis=1)
    fixed = first.states[4, 3] * seen.states[3].ravel()
    best, *_ = np.linalg.lstsq(outputs, truth.ravel() - fixed, rcond=None)
    residual = np.sqrt(np.mean((outputs @ best + fixed - truth.ravel()) ** 2))
    assert np.isclose(state.best_loss, residual, rtol=1e-4)
    assert state.losses[0] > 1.05 * residual


def test_a_step_that_is_taken_lowers_the_damping_tenfold_and_one_that_fails_raises_it_fourfold():
    """Tenfold is Marquardt's ν (1963). Where every step is refused the point stays."""
    target = target_of("mixture")
    x = target.noise(64, 3)
    goal, state = Goal(target, x, target.truth(x)[0]), State(space("tab2", 4).start, damping=1.0)
    assert _round(space("tab2", 4), goal, state, lambda n: None) < 1
    assert np.isclose(state.damping, 0.1, rtol=1e-12)
    point = state.point
    refused = SimpleNamespace(perturbed=space("tab2", 4).perturbed, table=space("tab2", 4).table, moved=_no_times)
    assert _round(refused, goal, state, lambda n: None) == 1
    assert np.isclose(state.damping, 0.1 * 4**6, rtol=1e-12)
    assert state.point is point


def _no_times(point, step):
    raise ValueError("times that meet")


def test_the_mean_absolute_difference_is_another_optimum():
    target = target_of("mixture")
    x = target.noise(128, 3)
    truth = target.truth(x)[0]
    losses = {}
    for objective in ("rms", "l1"):
        found = space("tab2", 4)
        goal = Goal(target, x, truth, objective=objective)
        state = search(found, goal, goal, State(found.start), rounds=10, until=np.inf, kept=lambda s: None,
                       progress=lambda *_: None)  # fmt: skip
        (residual,) = goal.residuals([found.table(state.best)], lambda n: None)
        losses[objective] = (np.sqrt(np.mean(residual**2)), np.mean(np.abs(residual)))
    assert losses["l1"][1] < losses["rms"][1]
    assert losses["rms"][0] < losses["l1"][0]


# -- the result -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tuned():
    return tune("mixture", 5, samples=128, rounds=6)


def test_it_is_better_on_noises_that_it_never_saw(tuned):
    """Measured anew against the exact flow, with a seed of our own."""
    target = target_of("mixture")
    x = target.noise(256, 987)
    truth = target.exact.flow(VP, x, target.t_start, target.t_end)
    before, after = (
        float(np.sqrt(np.mean((da.run(table, target.model, x) - truth) ** 2))) for table in (tuned.start, tuned.tableau)
    )
    assert tuned.kept
    assert after < 0.75 * before
    low, high = tuned.report["ratio"][1:]
    assert 0.7 * low < after / before < 1.4 * high  # 64 held-out samples say about as much
    assert tuned.tableau.nfe == 5
    assert np.isclose(tuned.report["tuned"]["rms"] / tuned.report["before"]["rms"], tuned.report["ratio"][0])


def test_rows_stay_consistent_unless_they_are_free(tuned):
    assert np.abs(tuned.report["consistency"]).max() < 1e-10
    free = tune("mixture", 4, samples=64, rounds=3, degree=-1, start="tab2", grid="t2")
    assert np.abs(free.report["consistency"]).max() > 1e-4
    off = da.build("tab2", VP, da.grid(VP, 4))
    outputs = off.outputs.copy()
    outputs[2] *= 1.01
    assert np.allclose(consistency(off.changed(outputs=outputs), VP), [0, 0.01, 0, 0], atol=1e-12)


def test_the_same_seed_gives_the_same_table(tuned):
    again = tune("mixture", 5, samples=128, rounds=6)
    assert again.tableau.to_json() == tuned.tableau.to_json()
    other = tune("mixture", 5, samples=128, rounds=6, seed=1)
    assert other.tableau.to_json() != tuned.tableau.to_json()


def test_what_is_not_better_is_not_returned():
    """A sampler that is exact already: DDIM in one step on a point."""
    point = da.GaussianMixture([1.0], np.full((1, 2), 0.3), np.full((1, 2), 1e-12))
    found = tune(point, 3, samples=32, held_out=16, rounds=2, start="ddim", grid="t2")
    assert not found.kept
    assert found.tableau is found.start
    assert "not better beyond the band" in found.verdict()


def test_stability_is_a_price():
    plain, stable = (
        tune("mixture", 4, samples=64, rounds=4, start="tab2", grid="t2", stability=weight, degree=-1)
        for weight in (0.0, 1.0)
    )
    variances = np.geomspace(1e-3, 1.0, 13)
    exact = da.exact_transfer(VP, variances, 1.0, 0.001)
    off = [np.abs(da.transfer(t.tableau, VP, variances) - exact).max() for t in (plain, stable)]
    assert off[1] < off[0]


def test_features_of_a_user():
    found = tune("mixture", 4, samples=64, rounds=3, start="tab2", grid="t2", features=lambda x: x[:, :1])
    target = target_of("mixture")
    x = target.noise(64, 5)
    truth = target.exact.flow(VP, x, 1.0, 0.001)
    before, after = (np.square(da.run(t, target.model, x) - truth).mean(axis=0) for t in (found.start, found.tableau))
    assert after[0] < before[0]


# -- interrupted ----------------------------------------------------------------------------------
def test_interrupted_it_goes_on_to_the_same_table(tmp_path, tuned):
    """Stopped after two rounds by an exception, as by Ctrl-C; the second run begins at the third."""
    rounds = []

    def stop(what, done, total):
        if what.startswith("round 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune("mixture", 5, samples=128, rounds=6, cache=tmp_path, progress=stop)
    (file,) = tmp_path.glob("tune-*.json")
    assert json.loads(file.read_text())["round"] == 2
    found = tune("mixture", 5, samples=128, rounds=6, cache=tmp_path, progress=lambda what, *_: rounds.append(what))
    assert not any(what.startswith(("round 1 ", "round 2 ")) for what in rounds)
    np.testing.assert_allclose(found.tableau.outputs, tuned.tableau.outputs, rtol=1e-12, atol=1e-14)
    whole = json.loads(file.read_text())
    for damaged in (json.dumps(whole | {"round": 1}), "{damaged", "[" * 10_000):
        file.write_text(damaged)
        with pytest.warns(UserWarning, match=r"the search is begun anew, as '.*json' is damaged"):
            again = tune("mixture", 5, samples=128, rounds=6, cache=tmp_path)
    assert again.tableau.to_json() == tuned.tableau.to_json()


def test_minutes_bound_the_search():
    found = tune("mixture", 4, samples=64, rounds=50, minutes=1e-6, start="tab2", grid="t2")
    assert len(found.report["losses"]) == 1
    assert not found.kept


# -- to a file and out of the house ---------------------------------------------------------------
def test_tune_export_and_a_plain_loop_of_diffusers(tmp_path):
    """The images of a diffusers loop on the shipped network's folder are those of `run`."""
    from diffusers import UNet2DModel

    table, folder = tmp_path / "t.json", tmp_path / "exported"
    arguments = ["tune", "digits8", "--nfe", "3", "--samples", "16", "--held-out", "8", "--rounds", "1"]
    arguments += ["--start", "tab2", "--grid", "t2", "--no-certify", "--out", str(table)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(table.with_suffix(".report.json").read_text())
    assert report["start"] == "tab2 on t2"
    result = CliRunner().invoke(main, ["export", str(table), "--to", "diffusers", str(folder)])
    assert result.exit_code == 0, result.output

    network = da.networks.load("digits8")
    scheduler = da.interop.TableauScheduler.from_pretrained(folder)
    shipped = Path(da.networks.__file__).parent / "checkpoints" / "digits8"
    unet = UNet2DModel.from_pretrained(shipped)
    x = torch.randn(4, *network.shape, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(3)
    state = x * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            state = scheduler.step(unet(scheduler.scale_model_input(state, t), t).sample, t, state).prev_sample
        portable = da.interop.PortableTable.from_json(table.read_text())
        expected = da.run(portable.tableau, da.Model(network.model, network.process, network.prediction), x)
    assert float((state - expected).abs().max()) < 1e-5


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, "nfe=0"),
        ({"nfe": 101}, "nfe=101"),
        ({"samples": 3}, "samples=3"),
        ({"held_out": 2}, "held_out=2"),
        ({"degree": 7}, "degree=7"),
        ({"degree": 0.5}, "degree=0.5"),
        ({"history": 0}, "history=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"minutes": -1.0}, "minutes"),
        ({"objective": "lpips"}, "objective='lpips'"),
        ({"stability": -1.0}, "stability"),
        ({"tune_times": 1}, "times=1"),
        ({"tune_times": False, "tune_told": False, "tune_coefficients": False}, "nothing to be tuned"),
        ({"start": "tab33"}, "tab33"),
        ({"start": "ddpm"}, "start='ddpm' cannot make exactly nfe=5 calls without noise"),
        ({"start": "edm_heun", "nfe": 4}, "cannot make exactly nfe=4"),
        ({"start": da.SOLVERS["tab2"].build, "grid": "t2"}, "of a builder the times must be given"),
        ({"start": "tab2", "grid": da.grid(VP, 4)}, "makes 4 calls on this grid; allowed: 5"),
        ({"certify": "yes"}, "certify='yes'"),
        ({"shape": (3,), "model": lambda x, t: x}, "does not say what it predicts"),
    ],
)
def test_bad_input(options, message):
    model = options.pop("model", "mixture") if "model" in options else "mixture"
    with pytest.raises(ValueError, match=message):
        tune(model, **{"nfe": 5, "samples": 16, "held_out": 8, "rounds": 1, **options})


def test_torch_is_loaded_when_a_command_runs():
    code = "import sys; import deis_analysis.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
