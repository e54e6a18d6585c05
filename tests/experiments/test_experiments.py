"""Are experiments finished once and whole, and do their sentences follow from their data?"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import quick_runs
import torch
from click.testing import CliRunner, Result

import deis_analysis as da
import experiments
from deis_analysis.storage import atomic, sweep
from experiments import discover, of_this_machine
from experiments.__main__ import main
from experiments.core import runner, style
from experiments.core.paths import kept_in
from experiments.models import cube
from experiments.models.problems import bootstrap_ratio, digits, distinct_solvers, steps_for
from experiments.paper import appendix_sde
from experiments.study import field_audit, solver_atlas

EXPERIMENTS, HERE = discover(), of_this_machine()
CHEAP = "transfer"
ROOT = Path(__file__).parents[2]


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module", autouse=True)
def _aligned():
    with pytest.MonkeyPatch.context() as patch:
        for name, changes in quick_runs.ALIGNED.items():
            patch.setattr(EXPERIMENTS[name], "QUICK", EXPERIMENTS[name].QUICK | changes)
        yield


@pytest.fixture(scope="module")
def quick() -> Path:
    """All experiments, quick, once; what other tests computed with these settings is not computed again."""
    folder = quick_runs.FOLDER / "quick"

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            for experiment in EXPERIMENTS.values():
                patch.setattr(experiment, "compute", quick_runs.shared(experiment.compute))
            result = call("run", "--all", "--quick", "--jobs", 1, "--out", folder)
        assert result.exit_code == 0, result.output

    quick_runs.once("quick", run)
    return folder


def load(folder: Path, name: str) -> tuple[pd.DataFrame, dict]:
    record = json.loads((folder / f"{name}.json").read_text())
    return pd.read_csv(folder / f"{name}.csv"), record


def contents(folder: Path, name: str) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in runner.result_files(name, folder)}


# -- what a result is -----------------------------------------------------------------------------
def test_the_study_is_whole():
    core = "convergence transfer solver_atlas tuned_samplers"
    paper = "fig2_fitting_error fig3_discretization fig4_extrapolation fig5_ablation fig6_comparison table2_variants"
    appendix = "time_grids blackbox vesde sde"
    beyond = "rectified_flow guidance teleportation budget_of_errors paper_claims"
    networks = "network_work_precision network_samples network_law network_errors floors gpu_validation"
    wanted = {
        "field_audit",
        "field_history",
        *core.split(),
        *paper.split(),
        *beyond.split(),
        *networks.split(),
    }
    assert set(EXPERIMENTS) == wanted | {f"appendix_{name}" for name in appendix.split()}


def test_what_measures_a_gpu_is_run_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set(EXPERIMENTS) - set(of_this_machine()) == {"gpu_validation"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of_this_machine() == EXPERIMENTS


@pytest.mark.parametrize("name", HERE)
def test_result_is_whole(quick, name):
    frame, record = load(quick, name)
    assert len(frame) > 3
    assert (quick / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    svg = (quick / f"{name}.svg").read_bytes()
    assert b"<svg" in svg
    assert b"dc:date" not in svg
    assert len(svg) < 1_000_000
    assert re.search(r"\d", record["verdict"])
    assert record["verdict"].endswith(".")
    assert len(record["verdict"].split()) <= 140  # of six models, and of what is claimed by mean and by RMS
    assert record["quick"] is True
    assert record["wall_time_s"] >= 0
    assert record["question"].endswith("?")
    assert record["versions"].keys() >= {"python", "numpy", "scipy", "torch", "deis_analysis"}
    assert record["config"] == {**EXPERIMENTS[name].CONFIG, **EXPERIMENTS[name].QUICK}
    assert {"seed", "device"} <= record.keys()
    assert not list(quick.glob(".*.tmp"))


@pytest.mark.parametrize("name", HERE)
def test_verdict_follows_from_the_csv(quick, name):
    frame, record = load(quick, name)
    assert EXPERIMENTS[name].verdict(frame, record["config"]) == record["verdict"]


@pytest.mark.parametrize("name", [n for n, e in HERE.items() if runner.takes(e, ("digits8",))])
def test_image_networks_can_be_judged_and_drawn(quick, name):
    """A figure's text looks models up by name: those of the quick result, called as the networks are."""
    frame, record = load(quick, name)
    told = dict(zip(record["config"]["models"], ("digits8", "digits8_flow", "mnist28", "cifar32"), strict=False))
    config = {**record["config"], "models": list(told.values())}
    frame["model"] = frame["model"].replace(told)
    assert EXPERIMENTS[name].verdict(frame, config).endswith(".")
    figure = EXPERIMENTS[name].draw(frame, config)
    style.plt.close(figure)


def test_redrawing_gives_the_same_bytes(quick, tmp_path):
    for file in runner.result_files("transfer", quick):
        shutil.copy(file, tmp_path)
    before = (tmp_path / "transfer.svg").read_bytes()
    (tmp_path / "transfer.svg").unlink()
    result = call("redraw", "transfer", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "transfer.svg").read_bytes() == before


IN_README = re.findall(r"\(figures/(\w+)\.png\)\]", (ROOT / "README.md").read_text())


SHOWN = [name for name, one in EXPERIMENTS.items() if not getattr(one, "NEEDS_CUDA", False)]


@pytest.mark.parametrize("name", SHOWN)
def test_figures_can_be_read_at_the_size_they_have_on_a_page(name):
    frame, record = load(runner.FIGURES, name)
    figure = EXPERIMENTS[name].draw(frame, record["config"])
    figure.canvas.draw()
    assert figure.get_size_inches()[0] <= 7
    ticks = [text for ax in figure.axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels()) if text.get_text()]
    assert min((text.get_fontsize() for text in ticks), default=7) >= 7
    headline = " ".join(figure.texts[0].get_text().split())
    assert re.search(r"\d", headline)
    assert record["verdict"].startswith(headline)  # one rule for both
    style.plt.close(figure)


def test_there_are_no_more_figures_than_a_reader_bears():
    assert len(SHOWN) <= 26


def test_five_figures_are_in_the_readme_beside_its_first():
    wanted = "network_work_precision paper_claims budget_of_errors convergence field_audit"
    assert wanted.split() == IN_README


def test_redraw_without_data_is_an_error(tmp_path):
    assert call("redraw", CHEAP, "--out", tmp_path).exit_code == 2


# -- what was found -------------------------------------------------------------------------------
def test_convergence_verdict_when_an_order_is_missed(quick):
    frame, record = load(quick, "convergence")
    frame.loc[frame.problem == "smooth", "slope"] = frame.order
    whole = EXPERIMENTS["convergence"].verdict(frame, record["config"])
    count = frame.solver.nunique()
    assert f"{count} of {count} distinct" in whole
    frame.loc[(frame.solver == "tab3") & (frame.problem == "smooth"), "slope"] = 1.0
    said = EXPERIMENTS["convergence"].verdict(frame, record["config"])
    assert f"{count - 1} of {count} distinct samplers show their declared order within 0.15, but tab3 with 1.00" in said
    assert f"{count - 1} of {count}" in EXPERIMENTS["convergence"].draw(frame, record["config"]).texts[0].get_text()
    frame.loc[(frame.solver == "tab3") & (frame.problem == "whole"), "slope"] = 9.0
    said = EXPERIMENTS["convergence"].verdict(frame, record["config"])
    assert "most of all tab3, 9.00 for 2." in said


def test_transfer_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "transfer")
    module, config = EXPERIMENTS["transfer"], record["config"]
    assert "ddim 1.00x (1.0)" in module.verdict(frame.assign(ratio=1.0), config)
    frame.loc[(frame.solver == "ddim") & (frame.part == "spectrum"), "ratio"] = np.where(np.arange(64) % 2, 0.99, 1.01)
    frame.loc[frame.solver == "tab3", "ratio"] = 0.5
    said = module.verdict(frame, config)
    assert "the best of 4 samplers, ddim, gets the scale of the digits' principal directions wrong by 1.01x" in said
    assert "tab3 2.00x (0.50)" in said  # to shrink by two is as wrong as to stretch by two
    assert module.draw(frame, config).texts[0].get_text().replace("\n", " ") == said.split(";")[0]


def declared_orders_are_met(off: pd.DataFrame) -> bool:
    return bool((off.own.abs() < 0.15).all() and not (off.exact.abs() >= 0.15).any())


def test_atlas_measures_the_declared_orders(quick):
    frame, record = load(quick, "solver_atlas")
    count = int((frame.part == "order").sum())
    assert declared_orders_are_met(solver_atlas.orders_off(frame))
    assert f"for {count} of {count} methods" in record["verdict"]
    frame.loc[(frame.part == "order") & (frame.solver == "ddim"), "slope"] = 2.0
    assert not declared_orders_are_met(solver_atlas.orders_off(frame))
    assert f"for {count - 1} of {count} methods" in solver_atlas.verdict(frame, record["config"])


def test_atlas_correlation_turns_with_the_data(quick):
    frame, record = load(quick, "solver_atlas")
    errors = frame[frame.part == "error"]
    for sign, expected in ((-1.0, 1.0), (1.0, -1.0)):
        forged = errors.assign(error=10.0 ** (sign * errors.order_exact_start))
        assert np.allclose(solver_atlas.correlations(forged, record["config"]), expected)
        said = solver_atlas.verdict(frame.assign(error=10.0 ** (sign * frame.order_exact_start)), record["config"])
        tells = "tells" if expected > 0 else "does not tell"
        assert said.startswith(f"At 5 calls a sampler's order {tells} how accurate it is: rank correlation at most")


def test_atlas_figure_shows_the_best_and_the_well_known(quick):
    frame, record = load(quick, "solver_atlas")
    config = record["config"]
    ranks = solver_atlas.ranking(frame, config)
    assert list(ranks.rank().mean(axis=1)) == sorted(ranks.rank().mean(axis=1))
    assert not {"ddpm", "sde_dpmpp_2m"} & set(ranks.index)  # they draw noise
    figure = solver_atlas.draw(frame, config)
    assert record["verdict"].startswith(figure.texts[0].get_text().replace("\n", " ") + " (")
    assert [text.get_text().split()[0] for text in figure.axes[2].get_yticklabels()] == list(ranks.index)
    style.plt.close(figure)


def test_atlas_errors_are_those_of_the_tables(quick):
    frame, record = load(quick, "solver_atlas")
    config = record["config"]
    rows = solver_atlas.main_grid(frame, config).set_index(["problem", "solver", "calls"])
    for problem, (process, mix) in solver_atlas.PROBLEMS.items():
        kind = config["grids"][problem][0]
        x = mix.sample(config["samples"], config["seed"], process, process.sampling_range[0])
        table = da.build("dpmpp_2m", process, da.grid(process, 10, kind))
        gap = da.run(table, mix.x0(process), x) - mix.flow(process, x, *process.sampling_range)
        assert np.isclose(rows.error[problem, "dpmpp_2m", 10], np.sqrt(np.mean(gap**2)), rtol=1e-8)
        mean, variance = solver_atlas.moments(mix)
        draws = mix.sample(200_000, seed=1)
        assert np.allclose(mean, draws.mean(axis=0), atol=0.01)
        assert np.allclose(variance, draws.var(axis=0), atol=0.01)
        error = da.law_error(da.build("ddpm", process, da.grid(process, 20, kind)), process, mean, variance)
        assert np.isclose(rows.error[problem, "ddpm", 20], np.sqrt(np.mean(error**2)), rtol=1e-8)
    assert rows.error["edm", "tab2", 10] == pytest.approx(rows.error["edm", "rhoab2", 10], rel=1e-8)
    assert rows.equal_here["edm", "rhoab2", 10] == "tab2"
    assert rows.error["vp", "tab2", 10] != pytest.approx(rows.error["vp", "rhoab2", 10], rel=1e-3)


def test_stochastic_slopes_are_the_weak_orders(quick):
    frame, record = load(quick, "appendix_sde")
    order = frame[frame.part == "order"]
    assert set(order.declared) == {1, 2}
    assert ((order.slope - order.declared).abs() < 0.15).all()
    assert f"{len(order)} have their declared weak order" in appendix_sde.verdict(frame, record["config"])
    frame.loc[frame.part == "order", "slope"] = 1.5
    assert "an exact model, 0 have their declared weak order" in appendix_sde.verdict(frame, record["config"])
    frame.loc[frame.part == "order", "slope"] = order.declared + np.where(np.arange(len(order)) < 2, -0.14, 0.16)
    assert "an exact model, 2 have their declared weak order" in appendix_sde.verdict(frame, record["config"])


def test_stochastic_law_of_ddim_is_its_transfer(quick):
    frame, record = load(quick, "appendix_sde")
    process, config = da.VPLinear(), record["config"]
    _, variance = appendix_sde.moments()
    table = da.build("ddim", process, da.grid(process, 10, config["grid"], config["t_start"], config["t_end"]))
    start, end = (process.alpha(t) ** 2 * variance + process.sigma(t) ** 2 for t in (1.0, 1e-3))
    expected = (da.transfer(table, process, variance) ** 2 * start).sum() / end.sum() - 1
    rows = frame[(frame.part == "law") & (frame.solver == "ddim") & (frame.nfe == 10)]
    assert np.isclose(rows.variance.iloc[0], expected, rtol=1e-8)


def test_stochastic_law_knows_who_is_exact_for_a_point(quick):
    frame, record = load(quick, "appendix_sde")
    process = da.VPLinear()
    rows = frame[(frame.part == "point") & (frame.kind == "sde")]
    points, exact = rows.solver, set(rows.solver[rows.w2 < record["config"]["exact_below"]])
    assert exact
    assert f", {len(exact)} are exact for a point mass." in appendix_sde.verdict(frame, record["config"])
    assert exact < set(points)
    for name in set(points) - {"analytic_ddpm*"}:
        error = da.law_error(da.build(name, process, da.grid(process, 7, "logrho")), process, -1.3, 0.0)[0]
        assert (error < 1e-12) == (name in exact)


def test_own_moments_make_analytic_dpm_exact_on_one_variance():
    process = da.VPLinear()
    for v in (0.05, 0.4):
        build = appendix_sde.with_moments("analytic_ddpm", np.array([v]))
        assert da.law_error(build(process, da.grid(process, 5)), process, 0.0, v)[0] < 1e-12
    other = appendix_sde.with_moments("analytic_ddpm", np.array([0.4]))
    assert da.law_error(other(process, da.grid(process, 5)), process, 0.0, 0.05)[0] > 1e-3


def test_stochastic_verdict_turns_with_the_data(quick):
    frame, record = load(quick, "appendix_sde")
    assert record["config"]["ode"][-1] == "tab3"
    assert re.search(r"; 0 of \d+ samplers with noise beat tab3 at 10 calls", record["verdict"])
    frame.loc[(frame.part == "law") & (frame.solver == "euler_maruyama"), "w2"] = 1e-9
    assert re.search(
        r"; 1 of \d+ samplers with noise beat tab3 at 10 calls", appendix_sde.verdict(frame, record["config"])
    )
    law = appendix_sde.at_calls(frame, 10)
    assert (law.index[0], law.nfe.max()) == ("euler_maruyama", 10)


HALF, CLEAN = field_audit.CONFIG["told"][0][1], "k_diffusion:sample_dpmpp_2m"


def test_field_audit_names_the_half_difference_and_no_other(quick):
    for package in field_audit.CONFIG["packages"]:
        pytest.importorskip(package) if package != "k_diffusion" else pytest.importorskip("torchsde")
    frame, record = load(quick, "field_audit")
    rows = frame.set_index("spec")
    assert {"ORD-BELOW-DECLARED", "ORD-HALF-SECOND-DIFFERENCE"} <= set(rows.error_codes[HALF].split("; "))
    assert rows.local_order[HALF] == pytest.approx(3.0, abs=0.15)
    assert rows.errors[CLEAN] == rows.warnings[CLEAN] == 0
    assert rows.observed_order[CLEAN] == pytest.approx(2.0, abs=0.15)
    assert not rows.linear["k_diffusion:sample_dpm_adaptive"]
    assert "depends on the data" in rows.unread["k_diffusion:sample_dpm_adaptive"]
    states = {what: state for what, state, _ in field_audit.known(frame, record["config"])}
    assert list(states.values()).count("reproduced") == 3
    frame["error_codes"] = frame.error_codes.str.replace("ORD-HALF-SECOND-DIFFERENCE", "ORD-DIVERGES")
    mended = {what: state for what, state, _ in field_audit.known(frame, record["config"])}
    changed = {what for what in states if states[what] != mended[what]}
    assert len(changed) == 1
    assert {mended[what] for what in changed} == {"not reproduced"}
    assert "not reproduced: half second difference of DPMSolverMultistep, solver_order=3" in field_audit.verdict(
        frame, record["config"]
    )


def test_field_audit_tells_one_shift_from_two_and_which_call_is_wasted(quick):
    frame, record = load(quick, "field_audit")
    config = record["config"]
    spec, shift, count = config["shifted"]
    once = shift / count / (1 + (shift - 1) / count)
    twice = shift * once / (1 + (shift - 1) * once)
    row = frame.iloc[:1].assign(spec=spec, linear=True, error_codes=None)
    for level, codes, state in (
        (once, None, "not reproduced"),
        (twice, None, "no code"),
        (twice, "SCH-LAST-LEVEL", "reproduced"),
    ):
        said = field_audit.known(row.assign(least_level=level / (1 - level), error_codes=codes), config)
        assert [s for what, s, _ in said if "shift" in what] == [state]
    for calls, state in (("20", "reproduced"), ("7", "not reproduced")):
        (deis,) = (deis for what, deis, *_ in config["told"] if "DEIS with" in what)
        wasted = row.assign(spec=deis, error_codes="NFE-WASTED", nfe=20, wasted=1, wasted_calls=calls)
        assert [s for what, s, _ in field_audit.known(wasted, config) if "DEIS with" in what] == [state]


def test_field_audit_without_packages(monkeypatch):
    config = {**field_audit.CONFIG, **field_audit.QUICK, "nfe": 5}

    def some(package):
        if package == "azula":
            return ["azula:DDIMSampler"]
        raise ValueError(f"{package} is not installed")

    def none(package):
        raise ValueError(f"{package} is not installed")

    monkeypatch.setattr(field_audit, "catalogue", some)
    assert field_audit.specs_of(config) == [s for s in config["specs"] if s.startswith("azula:")]
    monkeypatch.setattr(field_audit, "catalogue", none)
    specs = field_audit.specs_of(config)
    assert len(specs) > 3
    assert {spec.split(":")[0] for spec in specs} == {"registry"}
    monkeypatch.setattr(field_audit, "audit_sampler", lambda *_, **__: 1 / 0)
    frame = pd.read_csv(io.StringIO(field_audit.compute(config, lambda _: None).to_csv(index=False)))
    said = field_audit.verdict(frame, config)
    assert "rows of the registry in place of packages (diffusers, azula and k-diffusion not installed)" in said
    assert f"{len(specs)} audits failed" in said
    assert "ZeroDivisionError" in frame.unread[0]
    field_audit.draw(frame, config)
    style.plt.close("all")


def test_cell_of_the_cube_is_the_registered_method(quick):
    frame, record = load(quick, "solver_atlas")
    config, process = {**record["config"]["cube"], "seed": 0, "device": "cpu"}, da.VPLinear()
    made = cube.Cell("eps", "t", 3, "t2").table(process, config, 8)
    assert da.distance(made, da.build("tab3", process, da.grid(process, 8, "t2", 1.0, 1e-3))) == 0
    rows = frame[(frame.part == "choose") & (frame.calls == 8)].set_index(["data", "prediction", "variable", "degree"])
    for data in config["data"]:
        squares = cube.case(data, config, config["seed"], False).squares(made)
        assert np.isclose(rows.rms[data, "eps", "t", 3], np.sqrt(squares.mean()), rtol=1e-8)
        assert rows.same_as[data, "x0", "t", 0] == "(eps, t) 0 t2"
        assert rows.published[data, "x0", "t", 0]
        assert not rows.published[data, "x0", "t", 1]
        assert rows.published[data, "x0", "lam", 1]
        assert rows.rms[data, "x0", "t", 1] != pytest.approx(rows.rms[data, "eps", "t", 1], rel=1e-3)


def test_cube_is_compared_on_fresh_samples():
    config = {**solver_atlas.QUICK["cube"], "device": "cpu"}
    assert solver_atlas.CONFIG["seed"] not in config["fresh_seeds"]
    for data in config["data"]:
        before, after = (cube.case(data, config, 0, fresh) for fresh in (False, True))
        other = cube.case(data, config, 1, True)
        assert not np.array_equal(np.asarray(after.x_T), np.asarray(other.x_T))
        assert before.x_T.shape[0] == config["samples"]
        assert after.x_T.shape[0] == config["fresh_samples"]
    points = [{p.tobytes() for p in digits()[i::2]} for i in (0, 1)]
    assert not points[0] & points[1]


def test_cube_picks_the_least_and_its_verdict_turns(quick):
    frame, record = load(quick, "solver_atlas")
    config = record["config"]
    chosen = solver_atlas.picks(frame)
    rows = frame[(frame.part == "choose") & (frame.data == "product") & (frame.calls == 5)]
    unnamed = rows[~rows.published.astype(bool)]
    best = unnamed.loc[unnamed.rms.idxmin()]
    cell = cube.Cell(best.prediction, best.variable, int(best.degree), best.grid)
    assert chosen["product", 5]["unnamed"] == cell
    margin = frame[(frame.kind == "named") & (frame.data == "product") & (frame.calls == 5)].iloc[0]
    assert margin.unnamed == str(cell)
    assert margin.low <= margin.ratio <= margin.high
    named = frame.kind == "named"
    for low, high, said in ((1.1, 1.2, "in 6 of 6, worse in 0;"), (0.5, 0.9, "in 0 of 6, worse in 6;")):
        frame.loc[named, ["low", "seed_low"]], frame.loc[named, ["high", "seed_high"]] = low, high
        assert f"with one {said}" in solver_atlas.verdict(frame, config)
    frame.loc[named, "seed_high"] = 1.1  # one seed says the opposite
    assert "with one in 0 of 6, worse in 0;" in solver_atlas.verdict(frame, config)


def test_names_of_cells():
    assert str(cube.Cell("x0", "inv_rho", 3, "logrho")) == "(x0, inv_rho) 3 logrho"
    assert str(cube.Cell("ipndm3", "", -1, "t2")) == "ipndm3 t2"


# -- once -----------------------------------------------------------------------------------------
def test_finished_results_are_kept(tmp_path):
    assert call("run", CHEAP, "--quick", "--out", tmp_path).exit_code == 0
    before = contents(tmp_path, CHEAP)
    result = call("run", CHEAP, "--quick", "--out", tmp_path)
    assert result.output.startswith("kept")
    assert contents(tmp_path, CHEAP) == before
    listed = call("list", "--quick", "--out", tmp_path).output
    assert re.search(rf"{CHEAP} .*yes", listed)
    assert re.search(r"convergence .*no", listed)


def test_force_and_changes_compute_again(tmp_path, monkeypatch):
    def times() -> list[int]:
        return [stamp for stamp, _ in contents(tmp_path, CHEAP).values()]

    call("run", CHEAP, "--quick", "--out", tmp_path)
    first = times()
    assert call("run", CHEAP, "--quick", "--force", "--out", tmp_path).output.startswith("done")
    second = times()
    assert all(b > a for a, b in zip(first, second, strict=True))
    monkeypatch.setitem(EXPERIMENTS[CHEAP].CONFIG, "calls", 12)
    assert call("run", CHEAP, "--quick", "--out", tmp_path).output.startswith("done")
    assert load(tmp_path, CHEAP)[1]["config"]["calls"] == 12
    (tmp_path / f"{CHEAP}.svg").unlink()
    assert call("run", CHEAP, "--quick", "--out", tmp_path).output.startswith("done")


def test_device_is_part_of_the_fingerprint():
    digits = EXPERIMENTS["fig5_ablation"]
    configs = [
        runner.configuration(digits, runner.Task(digits.NAME, Path(), device=device)) for device in ("cpu", "cuda")
    ]
    assert runner.fingerprint(digits, configs[0]) != runner.fingerprint(digits, configs[1])
    cheap = [runner.configuration(EXPERIMENTS[CHEAP], runner.Task(CHEAP, Path(), device=d)) for d in ("cpu", "cuda")]
    assert cheap[0] == cheap[1]


# -- whole ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", ["compute", "verdict", "draw"])
def test_failure_leaves_old_files_untouched_and_the_rest_continues(tmp_path, monkeypatch, step):
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    call("run", CHEAP, "--quick", "--out", tmp_path)
    before = contents(tmp_path, CHEAP)
    monkeypatch.setattr(EXPERIMENTS[CHEAP], step, broken)
    monkeypatch.setattr(runner, "fingerprint", lambda *_: "another")
    result = call("run", CHEAP, "convergence", "--quick", "--jobs", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "no such luck" in result.output
    assert contents(tmp_path, CHEAP) == before
    assert (tmp_path / "convergence.json").is_file()
    assert not list(tmp_path.glob(".*.tmp"))
    kept = tmp_path / runner.UNDRAWN / f"{CHEAP}.json"
    assert kept.is_file() == (step != "compute")
    if step == "compute":
        return
    assert "what was computed is kept: `redraw` draws it" in result.output
    monkeypatch.undo()
    marked = json.loads(kept.read_text())
    assert marked["fingerprint"] == "another"
    redrawn = call("redraw", CHEAP, "--out", tmp_path)
    assert redrawn.exit_code == 0, redrawn.output
    assert not list(kept.parent.iterdir())
    record = json.loads((tmp_path / f"{CHEAP}.json").read_text())
    assert record == {**marked, "verdict": record["verdict"]}
    assert record["verdict"] in redrawn.output


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_interruption_keeps_what_is_finished(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EXPERIMENTS["convergence"], "compute", interrupted)
    result = call("run", CHEAP, "convergence", "--quick", "--jobs", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert "1 finished and kept, 1 not (convergence)" in result.output
    assert all(path.is_file() for path in runner.result_files(CHEAP, tmp_path))
    assert not (tmp_path / "convergence.csv").exists()


def descendants(pid: int) -> list[int]:
    """All processes that a process or its children started and that are there."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_on_workers_leaves_no_orphan(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        CHEAP,
        "fig5_ablation",
        "--jobs",
        "2",
        "--out",
        tmp_path,
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for what runs behind
    )
    marker = tmp_path / ".done" / f"{CHEAP}.json"
    while not marker.is_file() and process.poll() is None:  # however long a busy machine takes
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    children = descendants(process.pid)
    assert len(children) >= 3  # the server that forks, its worker, and what looks after shared resources
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)  # it does not hang
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert marker.is_file()
    assert not (tmp_path / "fig5_ablation.csv").exists()
    deadline = time.monotonic() + 300  # multiprocessing's own resource tracker takes a moment to notice
    while (left := [pid for pid in children if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_worker_that_dies_is_reported(tmp_path):
    tasks = [runner.Task("no_such_experiment", tmp_path), runner.Task(CHEAP, tmp_path, quick=True)]
    outcomes = {o.name: o for o in runner.run_parallel(tasks, 2, lambda *_: None)}
    assert outcomes["no_such_experiment"].status == "failed"
    assert outcomes[CHEAP].status == "done"


# -- what is refused ------------------------------------------------------------------------------
def test_unknown_name_is_refused_with_the_nearest():
    result = call("run", "convergance", "--quick")
    assert result.exit_code == 2
    assert "convergence" in result.output


@pytest.mark.parametrize("args", [["run"], ["run", CHEAP, "--all"], ["run", CHEAP, "--jobs", "0"]])
def test_unclear_requests_are_refused(args):
    assert call(*args).exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(tmp_path):
    result = call("run", "fig5_ablation", "--device", "cuda", "--out", tmp_path)
    assert result.exit_code == 2
    assert "--device cuda" in result.output
    assert not list(tmp_path.iterdir())


# -- the parts ------------------------------------------------------------------------------------
def test_every_registered_solver_has_a_look():
    for name, row in da.SOLVERS.items():
        assert style.look(name)["linestyle"] == {"eps": "-", "x0": "--", "v": "-.", "score": ":"}[row.prediction]
    assert style.family("tab3") == style.family("tab1") != style.family("rhoab3")


def test_no_two_solvers_look_alike():
    looks = [tuple(style.look(name).items()) for name in da.SOLVERS if style.family(name) != style.DDIM]
    assert len(set(looks)) == len(looks)


def test_spread_keeps_order_and_distance():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.uniform(-0.2, 1.2, rng.integers(1, 12))
        placed = style.spread(list(values), 0.08, 0.0, 1.0)
        assert placed.min() >= -1e-12
        assert placed.max() <= 1 + 1e-12
        assert np.all(np.diff(np.sort(placed)) >= 0.08 - 1e-9)
        assert np.all(np.diff(placed[np.argsort(values)]) > 0)
    assert np.allclose(style.spread([0.2, 0.5, 0.9], 0.1, 0.0, 1.0), [0.2, 0.5, 0.9])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.123, "0.12"), (12.3, "12"), (1234.0, "1234"), (1.5e-7, "1.5e-7"), (2.46, "2.5")]
)
def test_numbers_in_sentences(value, text):
    assert style.as_text(value) == text


def test_same_methods_are_grouped():
    process = da.VPLinear()
    ts = da.grid(process, 12)
    groups = distinct_solvers(process, ts)
    assert set(groups["ddim"]) >= {"ddim", "tab0", "rhoab0", "ipndm1", "rhork_1euler", "dpmpp_1"}
    noisy = distinct_solvers(process, ts, stochastic=True)
    assert set(noisy["sde_dpmpp_1"]) >= {"ddpm", "ddim_eta1", "seeds_1_x0"}
    assert sorted(name for same in [*groups.values(), *noisy.values()] for name in same) == sorted(da.SOLVERS)
    assert distinct_solvers(process, ts, ["tab1", "ddim", "tab0", "ddpm"]) == {
        "tab1": ["tab1"],
        "ddim": ["ddim", "tab0"],
    }
    firsts = list(groups)
    for a, b in itertools.pairwise(firsts):
        tables = [da.build(name, process, ts).in_terms_of(process, "eps") for name in (a, b)]
        assert da.distance(*tables) > 1e-6


@pytest.mark.parametrize("name", da.SOLVERS)
def test_steps_are_as_many_as_fit(name):
    row = da.SOLVERS[name]
    for calls in (3, 5, 10, 20, 41):
        steps = steps_for(name, calls)
        if steps:
            assert steps % row.block == 0
            assert row.build(row.home, da.grid(row.home, steps)).nfe == row.calls(steps) <= calls
            assert row.calls(steps + row.block) > calls
        else:
            least = max(row.block, row.starting_steps if row.extra_calls > 0 else 1)
            assert row.calls(least) > calls


def test_bootstrap_interval_holds_the_ratio():
    rng = np.random.default_rng(1)
    a, b = rng.chisquare(3, 400) * 4.0, rng.chisquare(3, 400)
    low, high = bootstrap_ratio(a, b, 0)
    assert low < np.sqrt(a.mean() / b.mean()) < high
    assert 1.7 < low < high < 2.4


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    from experiments.__main__ import _Lines

    lines = _Lines(every=0.0)
    lines("convergence", 0.25)
    lines("transfer", 1.0)
    assert capsys.readouterr().err == "convergence 25%\nconvergence 25%\n"
    seldom = _Lines(every=1e9)
    seldom("convergence", 0.5)
    assert capsys.readouterr().err == ""


# -- broken files ---------------------------------------------------------------------------------
def test_one_broken_experiment_does_not_stop_the_others(tmp_path, monkeypatch):
    folders = [ROOT / "experiments" / room for room in experiments.ROOMS]
    files = {file.stem for folder in folders for file in folder.glob("*.py")} - {"__init__"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(discover()) == len(files)  # none of ours is broken
    texts = {"syntax": "def", "exits": "raise SystemExit(3)", "empty": "", "twice": f"NAME = {CHEAP!r}"}
    for name, text in texts.items():
        (tmp_path / f"broken_{name}.py").write_text(text)
    room = importlib.import_module("experiments.study")
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    given = experiments.pkgutil.iter_modules

    def with_broken(places):
        return given([*places, str(tmp_path)] if places[0].endswith("study") else places)

    monkeypatch.setattr(experiments.pkgutil, "iter_modules", with_broken)
    with pytest.warns(UserWarning, match=r"no experiment: .*broken_") as found:
        assert discover().keys() == EXPERIMENTS.keys()
    said = [str(one.message) for one in found]
    assert len(said) == 4
    for part in ("broken_syntax.py (SyntaxError", "broken_exits.py (SystemExit", "it has no NAME, QUESTION, CONFIG"):
        assert any(part in text for text in said), said


MARKERS = ["[]", "{}", "null", "{damaged", "", "[" * 10_000, '{"fingerprint": 3, "verdict": "x", "wall_time_s": NaN}']


@pytest.mark.parametrize("marker", [*MARKERS, None])
def test_a_damaged_marker_is_no_marker(tmp_path, marker):
    task = runner.Task(CHEAP, tmp_path, quick=True)
    file = tmp_path / ".done" / f"{CHEAP}.json"
    file.parent.mkdir()
    for path in runner.result_files(CHEAP, tmp_path):
        path.write_text("")
    mark = runner.fingerprint(EXPERIMENTS[CHEAP], runner.configuration(EXPERIMENTS[CHEAP], task))
    csv = hashlib.sha256((tmp_path / f"{CHEAP}.csv").read_bytes()).hexdigest()
    good = {"fingerprint": mark, "csv": csv, "verdict": "so it is", "wall_time_s": 1.0}
    file.write_text(json.dumps(good))
    assert runner.finished(EXPERIMENTS[CHEAP], task) == good
    for bad in ({"verdict": 3}, {"wall_time_s": "long"}, {"fingerprint": None}, {"csv": None}):
        file.write_text(json.dumps(good | bad))
        assert runner.finished(EXPERIMENTS[CHEAP], task) is None
    file.unlink()
    if marker is None:
        os.mkfifo(file)
    else:
        file.write_text(marker)
    assert runner.finished(EXPERIMENTS[CHEAP], task) is None
    assert call("list", "--quick", "--out", tmp_path).exit_code == 0


def test_redraw_names_what_is_broken(tmp_path):
    assert call("run", CHEAP, "--quick", "--out", tmp_path).exit_code == 0
    before = contents(tmp_path, CHEAP)
    csv, info = (tmp_path / f"{CHEAP}.{suffix}" for suffix in ("csv", "json"))
    broken = [(csv, text) for text in ("", "a,b\n1,2\n", "\0\0", 'a,"b\n')] + [
        (info, text) for text in ("{}", "[]", "{")
    ]
    for file, text in broken:
        whole = file.read_text()
        file.write_text(text)
        result = call("redraw", CHEAP, "--out", tmp_path)
        assert result.exit_code == 2, result.output
        assert f"{CHEAP}.csv and {CHEAP}.json do not give the figure of {CHEAP}" in result.output
        assert "Traceback" not in result.output
        file.write_text(whole)
    assert {name: content for name, (_, content) in contents(tmp_path, CHEAP).items()} == {
        name: content for name, (_, content) in before.items()
    }


# -- places ---------------------------------------------------------------------------------------
def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(EXPERIMENTS[CHEAP], "compute", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").write_text("")
    result = call("run", CHEAP, "--quick", "--out", tmp_path / "file" / "folder")
    assert result.exit_code == 2
    assert re.search(r"--out '.*folder' cannot be written to: .*Not a directory", result.output)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = call("run", CHEAP, "--quick", "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "cannot be written to: [Errno 28] No space left on device" in result.output


def test_data_come_before_pictures_and_are_kept_elsewhere_if_need_be(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_save_figure", full)
        result = call("run", CHEAP, "--quick", "--out", tmp_path)
    assert result.exit_code == 1
    assert (tmp_path / f"{CHEAP}.csv").is_file()
    assert (tmp_path / f"{CHEAP}.json").is_file()
    assert call("redraw", CHEAP, "--out", tmp_path).exit_code == 0
    text = (tmp_path / f"{CHEAP}.csv").read_text()
    write = runner.write_text

    def nearly_full(path: Path, content: str) -> Path:
        return full() if path.parent == tmp_path else write(path, content)

    monkeypatch.setattr(runner, "write_text", nearly_full)
    result = call("run", CHEAP, "--quick", "--force", "--out", tmp_path)
    assert result.exit_code == 1
    (kept,) = re.findall(r"what was computed is kept in (\S+)", result.output)
    assert (Path(kept) / f"{CHEAP}.csv").read_text() == text
    assert json.loads((Path(kept) / f"{CHEAP}.json").read_text())["name"] == CHEAP
    shutil.rmtree(kept)


def test_temporary_files_of_killed_runs_are_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = time.time() - 3600
    files = {name: tmp_path / f".{name}.tmp" for name in (f"a.csv.{gone.pid}", f"b.csv.{os.getpid()}", "c.csv.x", "d")}
    for file in files.values():
        file.write_text("half")
        os.utime(file, (old, old))
    recent = tmp_path / f".e.csv.{gone.pid}.tmp"
    recent.write_text("half")
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert {file.name for file in tmp_path.iterdir()} == {
        recent.name, *(file.name for name, file in files.items() if not name.startswith("a"))
    }  # fmt: skip


def test_a_checkout_that_is_read_only_has_no_cache(tmp_path, monkeypatch):
    assert kept_in(tmp_path / "new" / "er") == tmp_path / "new" / "er"
    (tmp_path / "file").write_text("")
    assert kept_in(tmp_path / "file" / "folder") is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert kept_in(tmp_path) is None
