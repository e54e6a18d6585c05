"""The study of image networks: their errors are those of the networks themselves, rankings and pictures follow."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import quick_runs
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from quick_runs import quick
from scipy.integrate import solve_ivp

import deis_analysis as da
from deis_analysis import networks as learned
from experiments.__main__ import main
from experiments.core import judging, runner
from experiments.models import studies
from experiments.networks import gpu_validation, network_samples, network_work_precision
from experiments.paper import fig6_comparison

SMALL = {**studies.BASE, **studies.BASE_QUICK, "samples": 2}  # one certified flow of a network serves all tests on it
SHIPPED = studies.CHECKPOINTS / "digits8"


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module", autouse=True)
def _own_cache():
    """References are computed in this run, not taken from an earlier one; those that ship are left aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "reference_folders", lambda net: [quick_runs.references()])
        yield


@pytest.fixture(scope="module")
def found():
    return quick(network_work_precision)


# -- a network as a model of the study ------------------------------------------------------------
@pytest.mark.parametrize(("name", "solver"), [("digits8", "tab3"), ("digits8_flow", "flow_heun")])
def test_a_solver_on_flat_states_is_that_solver_on_the_network_itself(name, solver):
    study, net = studies.on_its_own_process(name, SMALL), learned.load(name)
    ts = da.grid(net.process, 6, "t2")
    table = da.build(solver, net.process, ts).in_terms_of(net.process, net.prediction)
    with torch.no_grad():
        own = da.run(table, net.model, study.x_T.reshape(-1, *net.shape))
    assert study.process == net.process
    assert torch.allclose(study.solve(solver, ts), own.reshape(2, -1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["digits8", "digits8_flow"])
def test_the_certified_flow_is_that_of_the_network_in_double_precision(name):
    study, net = studies.on_its_own_process(name, SMALL), learned.load(name).to(dtype=torch.float64)
    path = study.certified()
    table = da.build("rhork_4rk", net.process, da.grid(net.process, 50, "logrho"))  # another method, the network's own
    table = table.in_terms_of(net.process, net.prediction)  # prediction, and 4-D states
    with torch.no_grad():
        other = da.run(table, net.model, study.x_T.reshape(-1, *net.shape))
    assert path.certified
    assert torch.allclose(path.states[-1], other.reshape(2, -1), rtol=0, atol=path.tolerance)


def test_one_network_on_another_process_ends_at_the_same_images():
    """y = x/α obeys one equation in ρ on both, so that the solver takes the same steps whatever its tolerance."""
    small = {**SMALL, "samples": 1, "network_rtol": 1e-3}
    own = studies.on_its_own_process("digits8_flow", small)
    end = da.VPLinear()
    rho = [float(own.process.rho(t)) for t in own.process.sampling_range]
    config = {**small, "t_start": float(end.time_from_rho(min(rho[0], 150.0))), "t_end": float(end.time_from_rho(0.02))}
    vp = studies.study("digits8_flow", config)
    start, stop = (float(own.process.time_from_rho(end.rho(config[key]))) for key in ("t_start", "t_end"))
    flow = studies.study("digits8_flow", {**config, "t_start": start, "t_end": stop}, own.process)
    scale = float(own.process.alpha(start) / end.alpha(config["t_start"]))
    flow = studies.dataclasses.replace(flow, x_T=vp.x_T * scale)  # the same y = x/α
    ends = vp.reference(config["t_end"])[0] / float(end.alpha(config["t_end"]))
    assert torch.allclose(ends, flow.reference(stop)[0] / float(own.process.alpha(stop)), rtol=0, atol=1e-6)


def test_starts_of_a_network_are_the_first_of_many():
    few, more = (studies.study("digits8", {**SMALL, "samples": n}).x_T for n in (3, 6))
    assert torch.equal(few, more[:3])
    assert len(studies.study("digits8", {**SMALL, "samples": 100, "network_samples": 5}).x_T) == 5


def test_own_samples_have_the_law_of_the_network(monkeypatch):
    monkeypatch.setattr(studies, "_OWN_SAMPLES", 2)
    monkeypatch.setattr(studies, "_OWN_SEED", 0)
    study = studies.on_its_own_process("digits8", SMALL)
    own = studies.own_samples.func(study.network, "", study.process, 1.0, 1e-3, "cpu")  # of the starts of the study
    assert 0 < ((own - study.certified().states[-1].numpy()) ** 2).mean() ** 0.5 < 5e-3  # so much 100 calls leave


def test_only_image_networks_are_certified_as_such():
    with pytest.raises(ValueError, match="model='mixture' is no image network"):
        studies.study("mixture", SMALL).certified()
    with pytest.raises(ValueError, match="model='cat' is unknown; allowed: mixture"):
        studies.study("cat", SMALL)


def test_shipped_references_of_digits8_agree_to_1e_8_on_64_samples(monkeypatch):
    """DOPRI5 and ρ4RK, 64 samples; and on one of them a third method, DOP853 in another variable."""
    shipped = [studies.CHECKPOINTS / "digits8" / studies.REFERENCES]
    changes = {"samples": 64, "network_samples": 64, "network_rtol": 2e-10, "network_tolerance": 1e-8}
    config = {**network_work_precision.CONFIG, **changes}
    study = studies.on_its_own_process("digits8", config)
    net, process = study.network.to(dtype=torch.float64), study.process
    monkeypatch.setattr(studies, "flat", lambda *_: lambda x, t: pytest.fail("the network was called"))
    found = studies.network_path(study.network, process, study.x_T, (1.0, 1e-3), config, shipped)
    assert found.certified
    assert found.agreement <= 1e-8
    assert found.states[-1].shape == (64, 64)

    def slope(log_rho, y):  # d(x/α)/d log ρ = ρ ε
        t = float(np.clip(process.time_from_rho(np.exp(log_rho)), 1e-3, 1.0))
        x = torch.tensor(float(process.alpha(t)) * y).reshape(1, *net.shape)
        with torch.no_grad():
            return np.exp(log_rho) * net.model(x, t).numpy().ravel()

    ends = np.log([float(process.rho(t)) for t in (1.0, 1e-3)])
    start = study.x_T[0].numpy() / float(process.alpha(1.0))
    other = solve_ivp(slope, ends, start, "DOP853", rtol=1e-7, atol=1e-7).y[:, -1] * float(process.alpha(1e-3))
    assert np.abs(other - found.states[-1][0].numpy()).max() < 1e-6


def test_references_ship_for_all_networks(monkeypatch):
    monkeypatch.setattr(studies, "flat", lambda *_: lambda x, t: pytest.fail("the network was called"))
    for name in studies.NETWORKS:
        study = studies.on_its_own_process(name, studies.BASE)
        folder = studies.CHECKPOINTS / name / studies.REFERENCES
        monkeypatch.setattr(studies, "reference_folders", lambda net, folder=folder: [folder])
        assert study.certified().certified


def test_the_docs_say_which_solver_to_use_on_mnist28():
    frame = pd.read_csv(runner.FIGURES / "network_work_precision.csv")
    table = network_work_precision.table(frame, "mnist28", tuple(network_work_precision.CONFIG["ranked_at"]))
    assert table in (runner.FIGURES.parent / "docs" / "results" / "mnist28.md").read_text()


def test_the_figures_that_rank_networks_name_the_same_winners():
    """On networks of the study's process, and of fig6 the grids that network_work_precision tries, too."""
    known, asked = (module.CONFIG["customary"] for module in (fig6_comparison, network_work_precision))
    assert set(asked) - set(known) == {"flow_euler", "flow_heun"}
    assert all(known[solver] == kind for solver, kind in asked.items() if solver in known)
    paper, networks = (pd.read_csv(runner.FIGURES / f"{m.NAME}.csv") for m in (fig6_comparison, network_work_precision))
    tried = paper[paper.customary.eq(True) | paper.grid.isin(network_work_precision.CONFIG["also"])]
    for name, calls in itertools.product(["digits8", "mnist28"], network_work_precision.CONFIG["ranked_at"]):
        first = fig6_comparison.ranking(tried, name, calls, "best").index[0]
        assert first == network_work_precision.ranking(networks, name, calls).index[0]


# -- rankings -------------------------------------------------------------------------------------
def ranked(tried, draws):
    """`network_work_precision.ranked` of solver → grid → squared errors."""
    rows = [
        {"solver": solver, "grid": kind, "calls": 10, "squares": v, "error": math.sqrt(judging.mean_square(v))}
        for solver, by in tried.items() for kind, v in by.items()
    ]  # fmt: skip
    return network_work_precision.ranked(pd.DataFrame(rows), {"seed": 0, "draws": draws})


@given(st.permutations(["ddim", "tab1", "tab2", "tab3"]), st.integers(0, 2**31))
def test_well_separated_errors_are_ranked_without_doubt(order, seed):
    rng = np.random.default_rng(seed)
    tried = {
        name: {"t2": 10.0**i * rng.uniform(1, 2, 40), "t1": 10.0**i * np.full(40, 3.0)} for i, name in enumerate(order)
    }
    rows = ranked(tried, 200)
    assert [row["solver"] for row in rows] == list(order)
    assert [(row["rank"], row["rank_low"], row["rank_high"]) for row in rows] == [(i, i, i) for i in (1, 2, 3, 4)]
    assert {row["grid"] for row in rows} == {"t2"}
    for i, row in enumerate(rows):
        assert row["rms"] == pytest.approx(np.sqrt(tried[order[i]]["t2"].mean()))
        assert row["low"] < row["rms"] < row["high"]
        assert row["ratio_low"] > 1 or i == 0


def test_equal_errors_share_their_ranks():
    rng = np.random.default_rng(0)
    tried = {name: {"t2": rng.exponential(1.0, 200)} for name in ("ddim", "tab1", "tab2")}
    for row in ranked(tried, 1000):
        assert row["rank_low"] < row["rank_high"]
        assert row["ratio_low"] <= 1.0 < row["ratio_high"] or row["rank"] == 1


def test_samples_that_flip_do_not_count_in_ranks():
    rng = np.random.default_rng(1)
    few = {
        "tab1": {"t2": rng.uniform(1, 2, 40)},
        "ddim": {"t2": rng.uniform(3, 4, 40)},
        "ddpm": {"t2": np.full(40, 9.0)},
    }
    few["tab1"]["t2"][:5] = math.nan  # of which each would outweigh all others
    few["ddpm"]["t2"][:] = math.nan
    rows = ranked(few, 200)
    assert [row["solver"] for row in rows] == ["tab1", "ddim", "ddpm"]
    assert [(row["rank_low"], row["rank_high"]) for row in rows] == [(1, 1), (2, 2), (3, 3)]
    assert rows[0]["rms"] == pytest.approx(np.sqrt(few["tab1"]["t2"][5:].mean()))
    both = few["ddim"]["t2"][5:].mean() / few["tab1"]["t2"][5:].mean()
    assert rows[1]["ratio"] == pytest.approx(np.sqrt(both))
    assert math.isnan(rows[2]["rms"])
    draws = np.array([[1.0, math.nan, 3.0], [math.nan] * 3])
    assert network_work_precision.means(draws).tolist() == [2.0, math.inf]


def test_seeds_and_trainings_move_ranks(found):
    """Ranks of a second seed and of a further training that are those of the first, turned round."""
    frame, config = found
    rows = frame[(frame.part == "rank") & (frame.model == "digits8")]
    turned = rows.assign(rank=1 + rows["rank"].max() - rows["rank"])
    both = pd.concat([frame, turned.assign(seed=1), turned.assign(model="digits8:seed1")], ignore_index=True)
    first = network_work_precision.ranking(both, "digits8", 10)
    assert (first["rank"] == network_work_precision.ranking(frame, "digits8", 10)["rank"]).all()
    over = network_work_precision.ranks(both, "seed", model="digits8", calls=10)
    count = len(first)
    assert (over.loc[first.index, 0] == first["rank"]).all()
    assert (over[0] + over[1] == count + 1).all()
    config = {**config, "models": [*config["models"], "digits8:seed1"], "seeds": [0, 1]}
    more = network_work_precision.trainings(config)["digits8"]
    assert more == ["digits8", "digits8:seed1"]
    assert network_work_precision.moved(both, more, 10) == (count - 1, pytest.approx(-1.0))
    said = network_work_precision.verdict(both, config)
    assert said.endswith(f"; 2 trainings of digits8 move ranks there by up to {count - 1}, Spearman at least -1.00.")
    assert "for 2 of 2 networks" in said
    figure = network_work_precision.draw(both, config)
    note = " ".join(figure.texts[1].get_text().split())
    assert "on its own process, 2 samples;" in note
    assert "thin: 2 seeds;" in note
    assert [ax.get_title(loc="left") for ax in figure.axes][3] == "rank on 2 trainings of digits8"
    cost = both[(both.part == "reference") & (both.model == "digits8")].ms_per_call.min()
    calls, (time,) = next(
        (ax, ax.child_axes) for ax in figure.axes if ax.get_title(loc="left") == "digits8: ms of one image"
    )
    figure.canvas.draw()
    assert np.divide(time.get_xlim(), calls.get_xlim()) == pytest.approx([cost, cost])  # the time of as many calls


def test_a_training_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(network_work_precision, "TRAININGS", tmp_path)
    assert network_work_precision.weights("digits8") == "digits8"
    with pytest.raises(ValueError, match=r"python -m experiments train --data digits --seed 2 --out .*digits8_seed2"):
        network_work_precision.weights("digits8:seed2")
    (tmp_path / "digits8_seed2").mkdir()
    (tmp_path / "digits8_seed2" / "card.json").write_text("{}")
    assert network_work_precision.weights("digits8:seed2") == str(tmp_path / "digits8_seed2")


def test_the_ranking_is_that_of_the_errors(found):
    frame, config = found
    for name in config["models"]:
        for calls in config["ranked_at"]:
            rows = network_work_precision.ranking(frame, name, calls)
            errors = frame[(frame.part == "error") & (frame.model == name) & (frame.calls == calls)]
            least = errors.groupby("solver").rms.min().sort_values()
            assert list(rows.index) == list(least.index)
            assert np.allclose(rows.rms, least)
            assert (errors.nfe <= calls).all()
    assert frame[frame.part == "reference"].certified.astype(bool).all()


def test_sentence_and_table_name_the_winner(found):
    frame, config = found
    sentence = network_work_precision.verdict(frame, config)
    assert len(sentence.split()) <= 60
    assert "certified for 2 of 2" in sentence
    first = network_work_precision.ranking(frame, "digits8", 10).index[0]
    assert f"`{first}`" in network_work_precision.table(frame, "digits8", (10,)).splitlines()[2]
    assert f"; on digits8 {first}" in sentence
    assert sentence.startswith(f"On digits8_flow at 10 calls {network_work_precision.first(frame, 'digits8_flow', 10)}")


# -- pictures -------------------------------------------------------------------------------------
@given(st.integers(1, 3).filter(lambda c: c != 2), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_pictures_keep_their_grey_levels(channels, height, width, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (channels, height, width))
    row = type(
        "Row", (), {"pixels": network_samples.hexed(levels / 127.5 - 1.0), "channels": channels, "height": height}
    )
    assert np.array_equal(network_samples.image_of(row), levels.transpose(1, 2, 0).squeeze())
    assert network_samples.hexed(np.array([-3.0, 3.0])) == "00ff"


def test_samples_shown_are_those_of_the_solvers():
    frame, config = quick(network_samples)
    frame = frame[frame.model == "digits8"]
    study = studies.on_its_own_process("digits8", config)
    exact = study.certified().states[-1]
    ts = da.grid(study.process, 10, "t2")
    rows = frame[(frame.solver == "tab3") & (frame.calls == 10)]
    assert np.allclose(rows["mean"], (study.solve("tab3", ts) - exact).abs().mean(dim=1)[:2], atol=1e-4)
    assert set(frame.solver) == {"certified", *config["solvers"]}
    assert frame[frame.solver == "certified"]["mean"].eq(0).all()
    assert (frame.nfe <= frame.calls).where(frame.solver != "certified", True).all()


# -- validation of a device -----------------------------------------------------------------------
def test_the_validation_runs_small_on_the_cpu():
    frame, config = quick(gpu_validation)
    parts = frame.groupby("part").size()
    assert set(parts.index) == {"certificate", "truth", "work", "speed", "floor"}
    assert bool(frame[frame.part == "certificate"].certified.iloc[0])
    work = frame[frame.part == "work"]
    assert (work.samples == config["many"]).all()
    assert ((work.low < work.rms) & (work.rms < work.high)).all()
    truth = frame[frame.part == "truth"].iloc[0]
    assert truth.rms < 0.1 * work.rms.min()
    floors = frame[frame.part == "floor"].set_index("dtype").rms
    assert 1e-8 < floors["float32"] < 1e-4 < floors["bfloat16"] < 1.0
    speed = frame[frame.part == "speed"]
    assert (speed.images_per_second > 0).all()
    assert speed.overhead.between(speed.low, speed.high).all()
    assert "images/s" in gpu_validation.verdict(frame, config)
    gpu_validation.draw(frame, config)


def test_speed_is_the_median_of_what_a_clock_says(monkeypatch):
    """Seconds of the samples 2, 4, 8 and of their bare calls 2, 2, 5: a busy machine changes nothing here."""
    clock, asked = iter([90.0, 1.0, 2.0, 2.0, 4.0, 2.0, 8.0, 5.0]), []  # the first two to warm up
    monkeypatch.setattr(gpu_validation, "_seconds", lambda action, device: (action(), next(clock))[1])
    monkeypatch.setattr(gpu_validation, "_called", lambda net, mode: lambda x, t: asked.append(len(x)) or x)
    config = {**gpu_validation.CONFIG, "timed_batches": [3], "timed_calls": 2, "repeats": 3}
    study = studies.on_its_own_process("digits8", SMALL)
    (row,) = gpu_validation._speed(study.network, study.process, config)
    assert asked == [3] * 2 * 2 * (1 + 3)  # calls of samples and bare ones, to warm up and in the repeats
    assert row["images_per_second"] == 3 / 4.0
    assert (row["low"], row["overhead"], row["high"]) == (1.0, 1.6, 2.0)


def test_an_overhead_is_stated_only_where_the_repeats_agree_on_it():
    speed = pd.DataFrame({"overhead": [0.99, 1.1], "low": [0.9, 0.98], "high": [1.2, 1.15]})
    assert gpu_validation.overhead(speed) == "what run adds to its calls is within the spread of repeats (20 %)"
    speed.loc[1, "low"] = 1.01
    assert gpu_validation.overhead(speed) == "run takes 0.99 to 1.10 times the bare calls"


def test_many_samples_are_those_of_one_batch():
    study = studies.on_its_own_process("digits8", SMALL)
    table = da.build("tab3", study.process, da.grid(study.process, 5, "t2"))
    whole, parts = (gpu_validation.in_batches(study, table, study.x_T.numpy(), n) for n in (2, 1))
    assert whole.shape == (2, 64)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_parts_of_a_float64_batch_on_a_cpu_are_the_batch(monkeypatch):
    net = studies.image_network("digits8", dtype="float64")
    x = torch.randn(7, 64, dtype=torch.float64)
    whole, sizes = studies.flat(net, net.process)(x, 0.5), []
    watch = net.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(studies, "_CACHED_PIXELS", 3 * 64 + 5)
    parts = studies.flat(net, net.process)(x, 0.5)
    watch.remove()
    assert sizes == [3, 3, 1]
    assert torch.allclose(parts, whole, atol=1e-13, rtol=0)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    net, asked = studies.image_network("digits8"), []
    process, x, whole = net.process, torch.randn(7, 64), studies.flat(net, net.process)

    def small(part, t):
        asked.append(len(part))
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return net.model(part, t)

    monkeypatch.setattr(type(net), "carried_to", lambda *_: small)
    eps = studies.flat(net, process)
    assert torch.allclose(eps(x, 0.5), whole(x, 0.5), atol=1e-5)
    assert asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    eps(x, 0.5)
    assert max(asked[9:]) == 1
    monkeypatch.setattr(type(net), "carried_to", lambda *_: lambda part, t: small(part.repeat(3, 1, 1, 1), t))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        studies.flat(net, process)(x, 0.5)


# -- the commands ---------------------------------------------------------------------------------
def test_certify_keeps_what_the_study_then_takes(tmp_path, monkeypatch):
    result = call(
        "certify", "--model", "digits8", "--samples", 2, "--rtol", "1e-2", "--tolerance", "0.3", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert "digits8: 2 samples" in result.output
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(studies, "reference_folders", lambda net: [tmp_path])
    monkeypatch.setattr(studies, "flat", lambda *_: lambda x, t: pytest.fail("the network was called"))
    study = studies.on_its_own_process(
        "digits8", {**studies.BASE, "samples": 2, "network_rtol": 1e-2, "network_tolerance": 0.3}
    )
    assert study.certified().certified


def test_what_is_not_certified_does_not_ship(tmp_path, monkeypatch):
    def path(net, process, x_T, levels, config, folders, batch, progress):
        (folders[0] / "found.npz").write_bytes(b"")
        return SimpleNamespace(certified=False, nfe=1, message="not certified")

    monkeypatch.setattr(studies, "network_path", path)
    result = call("certify", "--model", "digits8", "--out", tmp_path)
    assert result.exit_code == 1
    assert "not certified" in result.output
    assert not list(tmp_path.iterdir())


def test_results_are_stale_when_weights_change(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "net" / "unet")
    config = {"models": [str(tmp_path / "net")]}
    before = runner.fingerprint(network_samples, config)
    assert before == runner.fingerprint(network_samples, config)
    with (tmp_path / "net" / "unet" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"0")
    assert before != runner.fingerprint(network_samples, config)
    single = tmp_path / "net.pkl"
    single.write_bytes(b"0")
    before = runner.fingerprint(network_samples, {"models": [str(single)]})
    single.write_bytes(b"1")
    assert before != runner.fingerprint(network_samples, {"models": [str(single)]})


def test_dtype_is_for_what_has_one(tmp_path):
    result = call("run", "network_law", "--dtype", "bfloat16", "--out", tmp_path)
    assert result.exit_code == 2
    assert "--dtype is not for network_law" in result.output
    task = runner.Task("network_samples", tmp_path, dtype="bfloat16", models=("digits8",))
    assert task.files == "network_samples-bfloat16-digits8"
    assert runner.configuration(network_samples, task)["network_dtype"] == "bfloat16"
    study = studies.on_its_own_process("digits8", {**SMALL, "network_dtype": "bfloat16"})
    assert torch.equal(
        study.certified().states[-1], studies.on_its_own_process("digits8", SMALL).certified().states[-1]
    )
    ts = da.grid(study.process, 5, "t2")
    gap = study.solve("tab3", ts) - studies.on_its_own_process("digits8", SMALL).solve("tab3", ts)
    assert 1e-4 < float(gap.abs().max()) < 1.0


def test_a_folder_of_the_user_is_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(network_samples, "QUICK", quick_runs.settings(network_samples))  # of which the flow is at hand
    shutil.copytree(SHIPPED, tmp_path / "my net")
    result = call("run", "network_samples", "--quick", "--model", tmp_path / "my net", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (record,) = (tmp_path / "out").glob("network_samples-*.json")
    assert json.loads(record.read_text())["config"]["models"] == [str(tmp_path / "my net")]
    assert " " not in record.name


def test_results_of_a_gpu_have_their_own_names(tmp_path):
    assert runner.Task("a", tmp_path, device="cuda", models=("digits8",)).files == "a-cuda-digits8"
    assert runner.Task("a", tmp_path, device="cuda:1").files == "a-cuda1"
    assert runner.Task("a", tmp_path).files == "a"


def test_a_network_that_cannot_be_loaded_fails_with_the_reason(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "broken")
    weights = tmp_path / "broken" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = call("run", "network_samples", "--quick", "--model", tmp_path / "broken", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "ValueError" in result.output
    result = call("certify", "--model", "nothing-like-it")
    assert result.exit_code == 2
