"""The study's models: their flows against independent ones, their solver runs, and the choice of models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import deis_analysis as da
from experiments import discover
from experiments.__main__ import main
from experiments.core import runner
from experiments.models import studies
from experiments.models.problems import digits, noise, product_mixture
from experiments.models.toy_network import QUICK_TRAINING

SMALL = {**studies.BASE, "samples": 6, "rtol": 1e-6}


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_the_path_of_a_mixture_is_its_exact_flow():
    problem, mix = studies.study("mixture", SMALL), product_mixture()
    state, error = problem.path([0.5, 1e-3, 0.5])
    x = noise(6, 4, 0)
    assert error == 0.0
    assert torch.equal(state(1.0), torch.tensor(x))
    for t in (0.5, 1e-3):
        assert np.allclose(state(t), mix.flow(da.VPLinear(), x, 1.0, t), rtol=0, atol=1e-12)


def test_the_path_of_the_digits_is_certified():
    problem = studies.study("digits", SMALL)
    state, error = problem.path([0.3, 1e-3])
    data, process, x = digits(), da.VPLinear(), noise(6, 64, 0)
    for t in (0.3, 1e-3):
        truth = da.reference_solution(da.ideal_denoiser(data, process), process, x, t, 1e-9, 1e-9, certify=False).x
        assert float(np.abs(state(t).numpy() - truth).max()) < 10 * error + 1e-7
    again, _ = problem.path([0.3, 1e-3])  # from the disk
    assert torch.equal(again(1e-3), state(1e-3))
    assert torch.equal(problem.reference(1e-3)[0][0], studies.study("digits", SMALL).reference(1e-3)[0][0])


@pytest.mark.parametrize("solver", ["tab2", "dpmpp_2m", "flow_euler"])
def test_solvers_of_any_prediction_run_on_the_eps_model(solver):
    problem, mix, process = studies.study("mixture", SMALL), product_mixture(), da.VPLinear()
    ts = da.grid(process, 8, "t2", 1.0, 1e-3)
    table = da.build(solver, process, ts)
    own = da.run(table, mix.model(process, table.prediction), noise(6, 4, 0))
    assert np.allclose(problem.solve(solver, ts), own, rtol=0, atol=1e-10)


def test_starts_have_the_size_of_the_noise():
    ve = da.VE(0.01, 50.0)
    start, end = ve.sampling_range
    x = studies.study("mixture", {**SMALL, "t_start": start, "t_end": end}, ve).x_T
    assert torch.allclose(x, 50.0 * torch.tensor(noise(6, 4, 0)))
    assert torch.equal(studies.study("mixture", SMALL).x_T, torch.tensor(noise(6, 4, 0)))


def test_a_chosen_model_gets_its_own_files(tmp_path):
    result = call("run", "appendix_time_grids", "--quick", "--model", "mixture", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "appendix_time_grids-mixture.json").read_text())
    assert record["config"]["models"] == ["mixture"]
    assert not (tmp_path / "appendix_time_grids.json").exists()
    again = call("run", "appendix_time_grids", "--quick", "--model", "mixture", "--out", tmp_path)
    assert again.output.startswith("kept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transfer", "--model", "digits"), "--model digits is not for transfer (allowed: no --model)"),
        (("guidance", "--model", "digits8"), "is not for guidance (allowed: mixture, gaussian, digits, network)"),
        (("fig5_ablation", "--model", "cat"), "'cat' is not one of mixture, gaussian, digits, network, digits8"),
        (("transfer", "--quick", "--thorough"), "not both"),
    ],
)
def test_bad_choices(arguments, message, tmp_path):
    result = call("run", *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.output


def test_thorough_changes_only_what_it_names():
    for experiment in discover().values():
        more = getattr(experiment, "THOROUGH", {})
        assert set(more) <= set(experiment.CONFIG), experiment.NAME
        config = runner.configuration(experiment, runner.Task(experiment.NAME, runner.FIGURES, thorough=True))
        assert config == {**experiment.CONFIG, **more}


def test_what_is_not_about_models_takes_none():
    with pytest.raises(ValueError, match="guidance cannot be run on digits8; allowed: mixture, gaussian"):
        runner.configuration(discover()["guidance"], runner.Task("guidance", runner.FIGURES, models=("digits8",)))
    with pytest.raises(ValueError, match="transfer cannot be run on digits; allowed: no --model"):
        runner.configuration(discover()["transfer"], runner.Task("transfer", runner.FIGURES, models=("digits",)))


def test_all_models_can_be_had():
    for name in studies.MODELS:
        problem = studies.study(name, {**SMALL, **studies.QUICK_TRAINING, "train_steps": 20})
        assert problem.x_T.shape == (6, problem.data.shape[1])
        eps = problem.model(problem.x_T, 0.5)
        assert eps.shape == problem.x_T.shape
        assert bool(torch.isfinite(eps).all())
        assert (problem.exact is None) == (name == "digits")
        assert problem.trained == (name == "network")


def test_the_cache_is_kept_small(monkeypatch):
    dropped = []
    monkeypatch.setattr(studies.CACHE, "reduce_size", lambda **limits: dropped.append(limits))
    studies.trim_cache()
    assert dropped in ([], [{"bytes_limit": 2**30}])


@pytest.mark.parametrize("name", discover())
def test_other_settings_change_what_is_there_and_choices_are_words(name):
    module = discover()[name]
    for settings in (module.QUICK, getattr(module, "THOROUGH", {})):
        assert set(settings) <= {*module.CONFIG, *QUICK_TRAINING}  # every quick run trains a smaller network
    if name.startswith(("fig", "table", "appendix")):
        assert module.THOROUGH
        assert all(isinstance(text, str) and text for text in module.CONFIG["choices"].values())


@pytest.mark.parametrize("name", [n for n, module in discover().items() if "models" in module.CONFIG])
def test_every_model_is_in_the_default_or_the_thorough_run(name):
    module = discover()[name]
    thorough = getattr(module, "THOROUGH", {}).get("models", module.CONFIG["models"])
    assert set(thorough) == set(studies.MODELS) or set(thorough) <= {*studies.NETWORKS, "network"}  # what was trained
