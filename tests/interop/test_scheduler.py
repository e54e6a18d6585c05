"""The scheduler of diffusers that runs a table: every row of the registry against `run`, configs, errors."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deis_analysis as da
from deis_analysis.audit import Prepared
from deis_analysis.interop import TableauScheduler, portable
from deis_analysis.process.convention import Convention
from deis_analysis.tableau.extraction import extract

diffusers = pytest.importorskip("diffusers")

STEPS = 6
DDPM = diffusers.DDPMScheduler()
VP = da.VPDiscrete(DDPM.alphas_cumprod.double().numpy())
FLOW = da.RectifiedFlow()
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SHAPE = (2, 1, 3, 3)


def table_for(name, process, steps=STEPS, kind="t2"):
    return da.build(name, process, da.grid(process, steps, kind))


def scheduler_for(table, process, prediction_type, told=None):
    base = DDPM if process is VP else diffusers.FlowMatchEulerDiscreteScheduler()
    made = portable(table, process, told)
    return TableauScheduler.from_config(base.config, table=made.scheduler_table(), prediction_type=prediction_type)


def loop(scheduler, model, x, generator=None, change=None):
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(len(scheduler.timesteps))
    x = x * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(model(seen, t), t, x, generator=generator, return_dict=False)[0]
        if change is not None:
            x = change(i, x)
    return x


def curve(x, t):
    """Some smooth prediction."""
    return torch.sin(1.3 * x + 0.7 * t) - 0.4 * x


def as_told(process, times):
    """``curve`` for a network that is told float32 times: at the float64 times of the table."""
    scale = 1000.0 if process is FLOW else 1.0

    def model(x, told):
        t = float(times[np.argmin(np.abs(times * scale - float(told)))])
        return curve(x, t / float(process.t_max))

    return model


def typed(process, prediction):
    return da.Model(lambda x, t: curve(x, t / float(process.t_max)), process, prediction)


def drawn(table, seed):
    """The noises of a table, in the order in which they are first used."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for row in table.plan:
        for _, j in row.noises:
            if j not in found:
                found[j] = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return [found[j] for j in range(table.noises)]


X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("process", [VP, FLOW], ids=["VPDiscrete", "RectifiedFlow"])
@pytest.mark.parametrize("name", da.SOLVERS)
def test_every_row_runs_as_it_does_here(name, process):
    """In float64 with all three kinds of model; the conversions of the scheduler and of `run` are written twice."""
    table = table_for(name, process)
    if table.evaluated[0]:
        assert (name, process) == ("edm_churn", FLOW)  # noise comes before its first call, which no pipeline can do
        with pytest.raises(ValueError, match=r"first model call is at node 1.*allowed: 0"):
            scheduler_for(table, process, "epsilon")
        return
    for prediction_type, prediction in PREDICTIONS.items():
        scheduler = scheduler_for(table, process, prediction_type)
        wanted = da.run(table, typed(process, prediction), X, drawn(table, 5) if table.stochastic else None)
        generator = torch.Generator().manual_seed(5)
        found = loop(scheduler, as_told(process, table.times), X, generator)
        assert found.dtype == torch.float64
        scale = max(1.0, float(wanted.abs().max()))
        assert float((found - wanted).abs().max()) <= 1e-9 * scale, (name, prediction_type)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_states_are_kept_in_float32(dtype):
    """Of a half sample, too: what the model sees is rounded, the state is not."""
    table = table_for("tab3", VP)
    scheduler = scheduler_for(table, VP, "epsilon")
    wanted = da.run(table, typed(VP, "eps"), X)
    model = as_told(VP, table.times)
    found = loop(scheduler, lambda x, t: model(x.double(), t).to(dtype), X.to(dtype))
    assert found.dtype == dtype
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    assert error < (3e-6 if dtype == torch.float32 else 3e-3)
    scheduler.set_timesteps()
    scheduler.step(X.to(dtype), scheduler.timesteps[0], X.to(dtype))
    assert {state.dtype for state in scheduler._states.values()} == {torch.float32}


def test_a_wrong_sign_shows():
    """The comparison above can fail: by one coefficient of one row."""
    table = table_for("tab2", VP)
    scheduler = scheduler_for(table, VP, "epsilon")
    rows = copy.deepcopy(scheduler.config["table"])
    rows["outputs"][4][-1][1] *= -1
    broken = TableauScheduler.from_config(scheduler.config, table=rows)
    model, wanted = as_told(VP, table.times), da.run(table, typed(VP, "eps"), X)
    assert float((loop(scheduler, model, X) - wanted).abs().max()) < 1e-9
    assert float((loop(broken, model, X) - wanted).abs().max()) > 1e-2


# -- configs ----------------------------------------------------------------------------------------
def test_it_survives_save_and_load(tmp_path):
    table = table_for("rhork_2heun", VP)
    scheduler = scheduler_for(table, VP, "v_prediction")
    scheduler.save_pretrained(tmp_path)
    again = TableauScheduler.from_pretrained(tmp_path)
    assert again.table == scheduler.table
    assert again.config.prediction_type == "v_prediction"
    model = as_told(VP, table.times)
    assert torch.equal(loop(again, model, X), loop(scheduler, model, X))
    data = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert data["_class_name"] == "TableauScheduler"


def test_what_pipelines_ask_it(caplog):
    table = table_for("dpmpp_2m", FLOW)
    scheduler = scheduler_for(table, FLOW, None)
    assert scheduler.config.prediction_type == "flow_prediction"
    assert scheduler.config.use_flow_sigmas is True
    assert scheduler.config.get("base_shift") == 0.5  # of the scheduler that it replaces
    assert scheduler.config.num_train_timesteps == len(scheduler) == 1000
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    assert scheduler.timesteps.tolist() == pytest.approx((1000 * table.times[:-1]).tolist())
    assert scheduler.sigmas.tolist() == pytest.approx(table.times.tolist())
    assert scheduler.scale_model_input(X, scheduler.timesteps[0]) is X
    vp = scheduler_for(table_for("dpmpp_2m", VP), VP, None)
    assert vp.config.prediction_type == "epsilon"
    assert vp.sigmas[0] == pytest.approx(float(VP.rho(999.0)))
    out = vp.step(X, vp.timesteps[0], X)
    assert out.prev_sample is out[0]
    assert vp.step_index == 1
    assert vp.config.variance_type == "fixed_small"
    assert not caplog.records  # diffusers warns of options that it drops


@pytest.mark.parametrize("shape", ["linspace", "own", "with the last"])
def test_flows_leave_the_steps_to_the_table(shape):
    """diffusers' pipelines of flows pass 1 … 1/N, unless use_flow_sigmas says not to, and mu."""
    scheduler = scheduler_for(table_for("flow_euler", FLOW), FLOW, None)
    own = scheduler.sigmas.tolist()
    sigmas = {"linspace": np.linspace(1.0, 1 / STEPS, STEPS), "own": own[:-1], "with the last": own}[shape]
    before = scheduler.timesteps
    scheduler.set_timesteps(sigmas=sigmas, mu=1.15, device="cpu")
    assert torch.equal(scheduler.timesteps, before)


def installed(file, name):
    """A function of a pipeline of the installed diffusers, without the imports of its module."""
    source = (Path(diffusers.__file__).parent / "pipelines" / file).read_text()
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)
    space = {"inspect": inspect, "torch": torch}
    exec(compile(ast.Module([node], []), file, "exec"), space)
    return space[name]


def test_the_flux_loop_finds_its_steps():
    retrieve_timesteps = installed("flux/pipeline_flux.py", "retrieve_timesteps")
    scheduler = scheduler_for(table_for("dpmpp_2m", FLOW), FLOW, None)
    timesteps, count = retrieve_timesteps(scheduler, STEPS, "cpu", sigmas=None, mu=1.0)
    assert (len(timesteps), count) == (STEPS, STEPS)
    timesteps, count = retrieve_timesteps(scheduler, STEPS, "cpu", sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=1.0)
    assert (len(timesteps), count) == (STEPS, STEPS)


def test_models_of_other_levels_are_refused():
    rows = portable(table_for("tab3", VP), VP).scheduler_table()
    stable = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with pytest.raises(ValueError, match="made for another model"):
        TableauScheduler.from_config(stable.config, table=rows)
    with pytest.raises(ValueError, match="flow matching, but the table is of kind 'vp'"):
        TableauScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, table=rows)
    flow = portable(table_for("flow_euler", FLOW), FLOW).scheduler_table()
    with pytest.raises(ValueError, match="betas, but the table is of kind 'flow'"):
        TableauScheduler.from_config(DDPM.config, table=flow)
    few = diffusers.FlowMatchEulerDiscreteScheduler(100)
    with pytest.raises(ValueError, match="num_train_timesteps=100"):
        TableauScheduler.from_config(few.config, table=flow)
    short = diffusers.DDPMScheduler(100)
    with pytest.raises(ValueError, match=r"told 999.0; allowed: at most 100"):
        TableauScheduler.from_config(short.config, table=rows)


@pytest.mark.parametrize("options", [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(1e-3, 0.03, 400).tolist(), "num_train_timesteps": 400},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
])  # fmt: skip
def test_models_of_the_same_levels_are_taken(options):
    base = diffusers.DDIMScheduler(**options)
    levels = base.alphas_cumprod.double().numpy()
    if options.get("rescale_betas_zero_snr"):
        levels = levels[:-1]
    process = da.VPDiscrete(levels)
    ts = da.grid(process, 7, "rho7", process.t_max - 0.4, 0.3)
    rows = portable(da.build("tab3", process, ts), process).scheduler_table()
    assert TableauScheduler.from_config(base.config, table=rows).num_inference_steps == 7
    wrong = {**rows, "told": [t + 3.0 for t in rows["told"]]}
    with pytest.raises(ValueError, match=r"another model|at most"):
        TableauScheduler.from_config(base.config, table=wrong)


def test_tuned_told_times_are_taken_within_half_a_step():
    table = table_for("ddim", VP)
    told = np.clip(table.times + np.array([0, 40, -40, 20, -10, 3, 0]), 0, 999)
    rows = portable(table, VP, told).scheduler_table()
    assert rows["shifted"] is True
    scheduler = TableauScheduler.from_config(DDPM.config, table=rows)
    assert scheduler.timesteps.tolist() == pytest.approx(told[:-1].tolist())
    with pytest.raises(ValueError, match="another model"):
        TableauScheduler.from_config(DDPM.config, table={**rows, "shifted": False})


# -- changed samples, images ------------------------------------------------------------------------
def test_a_changed_sample_takes_the_place_of_the_state():
    """As da.run in two parts: after step 3 the state is another one, and the outputs of before are still used."""
    table = table_for("tab1", VP)
    scheduler = scheduler_for(table, VP, "epsilon")
    model = as_told(VP, table.times)
    changed = loop(scheduler, model, X, change=lambda i, x: x + 0.5 if i == 2 else x)
    states, outputs = {0: X}, {}
    for k in range(1, STEPS + 1):
        outputs[k - 1] = model(states[k - 1], table.times[k - 1])
        parts = [(c, states[j]) for c, j in table.plan[k].states] + [(c, outputs[j]) for c, j in table.plan[k].outputs]
        states[k] = sum(c * value for c, value in parts) + (0.5 if k == 3 else 0.0)
    assert float((changed - states[STEPS]).abs().max()) < 1e-12
    in_place = loop(scheduler, model, X, change=lambda i, x: x.add_(0.5) if i == 2 else x)
    assert torch.equal(in_place, changed)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_changed_stage_counts_as_what_the_model_saw(prediction_type):
    """The state of the stage is as computed; the model's answer is turned into ε at the sample that it was given."""
    table = table_for("dpm_2", VP)
    assert not set(table.evaluated) <= set(table.grid_nodes)
    scheduler, model = scheduler_for(table, VP, prediction_type), as_told(VP, table.times)
    changed = loop(scheduler, model, X, change=lambda i, x: x + 0.5 if i == 2 else x)
    assert 3 not in table.grid_nodes
    assert torch.equal(loop(scheduler, model, X, change=lambda i, x: x.add_(0.5) if i == 2 else x), changed)
    states, outputs = {0: X}, {}
    for k in range(table.times.size):
        if k:
            row = table.plan[k]
            states[k] = sum([c * states[j] for c, j in row.states] + [c * outputs[j] for c, j in row.outputs])
        if k in table.evaluated:
            seen = states[k] + 0.5 if k == 3 else states[k]
            out = model(seen, table.times[k])
            outputs[k] = VP.translate(seen, out, PREDICTIONS[prediction_type], table.prediction, table.times[k])
    assert float((changed - states[table.times.size - 1]).abs().max()) < 1e-10


@pytest.mark.parametrize("process", [VP, FLOW], ids=["VPDiscrete", "RectifiedFlow"])
def test_one_step_methods_start_from_an_image(process):
    table = table_for("ddim", process)
    scheduler = scheduler_for(table, process, "epsilon")
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(2)
    noise = torch.randn_like(X)
    latents = scheduler.add_noise(X, noise, scheduler.timesteps[2:3])
    assert torch.equal(latents, scheduler.scale_noise(X, scheduler.timesteps[2:3], noise))
    t = table.times[2]
    assert torch.allclose(latents, float(process.alpha(t)) * X + float(process.sigma(t)) * noise)
    model, x = as_told(process, table.times), latents
    for told in scheduler.timesteps[2:]:
        x = scheduler.step(model(x, told), told, x, return_dict=False)[0]
    rest = da.build("ddim", process, table.times[2:])
    assert torch.allclose(x, da.run(rest, typed(process, "eps"), latents), rtol=1e-9, atol=1e-9)


def test_multistep_methods_do_not_start_in_their_middle():
    scheduler = scheduler_for(table_for("tab3", VP), VP, "epsilon")
    with pytest.raises(ValueError, match=r"begin_index=2: the table cannot start there.*allowed: 0; take"):
        scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="cannot start there"):
        scheduler.step(X, scheduler.timesteps[3], X)
    heun = scheduler_for(table_for("rhork_2heun", VP), VP, "epsilon")
    heun.set_begin_index(4)
    with pytest.raises(ValueError, match="allowed: 0, 2, 4"):
        heun.set_begin_index(3)


def test_dense_times_are_found_by_the_nearest():
    """Times of neighbours differ by less than half precision; a run from an image finds its own all the same."""
    table = table_for("ddim", VP, 400, "t1")
    for begin in (1, 250, 399):
        scheduler = scheduler_for(table, VP, "epsilon")
        scheduler.step(X, scheduler.timesteps[begin], X)
        assert scheduler.step_index == begin + 1
    twice = scheduler_for(table_for("rhork_2heun", VP), VP, "epsilon")
    twice.set_begin_index(2)  # told the same time as at 1
    twice.step(X, twice.timesteps[2].bfloat16(), X)
    assert twice.step_index == 3


def test_masked_images_get_the_noise_of_the_next_step():
    """As inpainting does it: add_noise at the time of the step to come."""
    scheduler = scheduler_for(table_for("ddim", VP), VP, "epsilon")
    scheduler.step(X, scheduler.timesteps[0], X)
    got = scheduler.add_noise(X, torch.zeros_like(X), scheduler.timesteps[1:2])
    assert torch.allclose(got, float(VP.alpha(float(scheduler.timesteps[1]))) * X)


# -- read by the audit ------------------------------------------------------------------------------
class Exported:
    """A row of the registry through the scheduler, as a subject of the audit."""

    declared_order = None

    def __init__(self, name, process):
        self.name, self.process, self.spec = name, process, f"TableauScheduler of {name}"

    def own(self, nfe):
        return self.prepared(da.grid(self.process, nfe, "t2"))

    def ladder(self, steps):
        return None

    def prepared(self, ts):
        made = portable(da.build(self.name, self.process, ts), self.process, told=Convention())
        scheduler = TableauScheduler(table=made.scheduler_table())
        sampler = lambda model, x: loop(scheduler, model, x)  # noqa: E731
        return Prepared(sampler, self.process, Convention(), float(ts[-1]), t_start=float(ts[0]))


@pytest.mark.parametrize("name", ["ddim", "tab3"])
def test_the_audit_reads_the_table_back(name):
    report = da.audit_sampler(Exported(name, VP), nfe=8)
    codes = {finding.code: finding.severity for finding in report.findings}
    assert "error" not in codes.values(), report.findings
    assert {"ID-EQUAL", "ID-FLOAT32"} & set(codes), report.findings
    assert report.nearest["name"] == name


@pytest.mark.parametrize("name", ["tab3", "rhork_2heun", "unipc2_bh2_eps", "reversible_heun"])
def test_extraction_gives_the_table(name):
    table = table_for(name, VP)
    scheduler = scheduler_for(table, VP, "epsilon")
    read = extract(lambda model, x: loop(scheduler, model, x), process=VP, t_end=table.times[-1], backend="torch")
    a, b = table.butcher(), read.butcher()
    assert np.abs(a.weights - b.weights).max() < 1e-12
    assert np.abs(a.start - b.start).max() < 1e-12


# -- what is refused ---------------------------------------------------------------------------------
GOOD = portable(table_for("ddim", VP), VP).scheduler_table()


@pytest.mark.parametrize(("change", "match"), [
    ({"kind": "ve"}, "kind='ve'; allowed: vp, flow"),
    ({"prediction": "score"}, "prediction='score'; allowed: eps, x0, v"),
    ({"alpha": GOOD["alpha"][:-1]}, "alpha has 6 entries; allowed: 7"),
    ({"alpha": [0.5] * 7}, "alpha² .* is not 1 at node 0"),
    ({"kind": "flow"}, "is not 1 at node"),
    ({"sigma": [float("nan")] * 7}, "must be finite"),
    ({"alpha": [-1.0] * 7}, "must be finite and >= 0"),
    ({"states": [[[1, 1.0]], *GOOD["states"][1:]]}, "row 0 of states uses what is not known"),
    ({"outputs": [*GOOD["outputs"][:-1], [[0, float("inf")]]]}, "row 6 of outputs must be finite"),
    ({"noise": [[[0, 1.0]], *GOOD["noise"][1:]]}, "row 0 of noise"),
    ({"states": "none"}, "not made of numbers"),
    ({"outputs": [[] for _ in range(7)]}, "first model call is at node None"),
    ({"grid_nodes": [0, 3, 2, 6]}, "must increase from 0 to 6"),
])  # fmt: skip
def test_damaged_tables_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        TableauScheduler(table={**GOOD, **change})


@pytest.mark.parametrize(("call", "match"), [
    (lambda s: TableauScheduler(), r"table=None; allowed: a dictionary with kind"),
    (lambda s: TableauScheduler.from_config(DDPM.config), "table=None"),
    (lambda s: TableauScheduler(table={"kind": "vp"}), "table has no prediction, states"),
    (lambda s: TableauScheduler(table=GOOD, prediction_type="flow_prediction"), "allowed: epsilon, sample, v_pred"),
    (lambda s: TableauScheduler(table=GOOD, prediction_type="eps"), "prediction_type='eps'"),
    (lambda s: s.set_timesteps(20), "num_inference_steps=20, but the table makes 6 model calls; allowed: 6"),
    (lambda s: s.set_timesteps(timesteps=[999, 500]), r"timesteps=\[999, 500\] are not the table's"),
    (lambda s: s.set_timesteps(sigmas=[14.0, 3.0, 0.0]), r"sigmas=\[14, 3, 0\] are not the table's"),
    (lambda s: s.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6)), "are not the table's"),
    (lambda s: s.set_timesteps(6, mu=1.0), "mu=1.0 is for flows"),
    (lambda s: s.set_begin_index(6), "begin_index=6 must lie in 0 … 5"),
    (lambda s: s.step(X[:1], s.timesteps[0], X), r"model_output has shape \(1, 1, 3, 3\)"),
    (lambda s: s.step(X, 123.0, X), "timestep=123.0 is none of the table's"),
    (lambda s: (s.step(X, s.timesteps[0], X), s.step(X, s.timesteps[2], X)), "out of turn"),
    (lambda s: (loop(s, lambda x, t: x, X), s.step(X, s.timesteps[0], X)), "made its last step"),
    (lambda s: s.add_noise(X, X, torch.tensor([5])), "timestep=5.0 is none"),
])  # fmt: skip
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(TableauScheduler(table=GOOD))


def test_a_flow_that_starts_at_noise_needs_a_model_that_can_tell():
    table = da.build("flow_euler", FLOW, np.array([1.0, 0.6, 0.2, 0.01]))
    rows = portable(table, FLOW).scheduler_table()
    scheduler = TableauScheduler(table=rows)
    assert scheduler.timesteps[0] == 1000.0
    with pytest.raises(ValueError, match=r"'v' cannot be told from a model's 'eps' at node 0"):
        TableauScheduler(table=rows, prediction_type="epsilon")


def test_without_diffusers_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import deis_analysis as da\n"
        "assert da.interop.portable and da.interop.to_sigmas and da.interop.deis\n"
        "try: da.interop.TableauScheduler\n"
        "except ImportError as error: assert \"pip install 'deis-analysis[models]'\" in str(error); print('said')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "said", out.stderr


def test_the_module_has_the_name_that_pipelines_look_for():
    import deis_analysis.interop.scheduler as module

    assert module.SchedulerMixin is diffusers.SchedulerMixin
    assert da.interop.TableauScheduler is module.TableauScheduler
