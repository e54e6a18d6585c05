"""Portable tables and what is written of them: diffusers' folder, k-diffusion, ComfyUI, lists, the command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import deis_analysis as da
from deis_analysis.cli import main
from deis_analysis.interop import (
    PortableTable,
    portable,
    to_comfyui,
    to_diffusers,
    to_k_diffusion,
    to_sigmas,
    write_k_diffusion,
)
from deis_analysis.process.convention import Convention

diffusers = pytest.importorskip("diffusers")

ALPHAS = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
VP, FLOW, VE = da.VPDiscrete(ALPHAS), da.RectifiedFlow(), da.VE(0.02, 30.0)
PROCESSES = {"vp": VP, "flow": FLOW, "other": VE}
X = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def table_for(name, process, steps=6, **options):
    return da.build(name, process, da.grid(process, steps, "t2", **options))


# -- portable tables --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tab3", "dpmpp_3m_exact", "gdss_s4", "flow_sde", "reversible_heun"])
@pytest.mark.parametrize("kind", PROCESSES)
def test_json_is_bit_for_bit(name, kind):
    made = portable(table_for(name, PROCESSES[kind]), PROCESSES[kind], source="a test")
    again = PortableTable.from_json(made.to_json())
    assert again.to_json() == made.to_json()
    assert (again.kind, again.source, again.shifted) == (kind, "a test", False)
    for field in ("alpha", "sigma", "told"):
        assert np.array_equal(getattr(again, field), getattr(made, field))
    assert da.distance(again.tableau, made.tableau) == 0
    assert made.tableau.prediction != "score"
    assert json.loads(json.dumps(made.rows())) == made.rows()


def test_what_the_network_is_told():
    flow = table_for("flow_euler", FLOW)
    assert np.array_equal(portable(flow, FLOW).told, 1000.0 * flow.times)
    vp = table_for("ddim", VP)
    assert np.array_equal(portable(vp, VP).told, vp.times)
    linear = da.VPLinear()
    assert np.array_equal(portable(table_for("ddim", linear), linear).told, table_for("ddim", linear).times)
    moved = portable(vp, VP, vp.times + 0.25)
    assert moved.shifted
    assert np.array_equal(moved.told, vp.times + 0.25)


@pytest.mark.parametrize("name", ["digits8", "digits8_flow", "mnist28"])
def test_shipped_networks_are_told_what_they_are_told_here(name):
    net = da.networks.load(name)
    table = table_for("ddim", net.process, 4)
    heard = []
    module = net.model.net
    hook = module.register_forward_pre_hook(lambda _, arguments: heard.append(float(arguments[1][0])))
    da.run(table, net.model, torch.zeros(1, *net.shape))
    hook.remove()
    told = portable(table, net.process, net.model.convention).told
    assert np.array_equal(np.float32(told[:-1]), np.float32(heard))


GOOD = portable(table_for("ddim", VP, 3), VP)


def damaged(**changes):
    return json.dumps({**json.loads(GOOD.to_json()), **changes})


@pytest.mark.parametrize(("call", "match"), [
    (lambda: PortableTable.from_json("no json"), "not a table written by PortableTable.to_json"),
    (lambda: PortableTable.from_json("[1, 2]"), "not a table written by"),
    (lambda: PortableTable.from_json(damaged(format="X/9")), "format 'X/9'; allowed: 'deis_analysis.PortableTable/1'"),
    (lambda: PortableTable.from_json(GOOD.tableau.to_json()), "allowed: 'deis_analysis.PortableTable/1'"),
    (lambda: PortableTable.from_json(damaged(alpha=[1.0])), r"alpha has shape \(1,\); allowed: \(4,\)"),
    (lambda: PortableTable.from_json(damaged(told=None)), "told=None must be made of real numbers"),
    (lambda: PortableTable.from_json(damaged(sigma=[0.1, 0.1, "x", 0])), "sigma"),
    (lambda: PortableTable.from_json(damaged(kind="ve")), "kind='ve'"),
    (lambda: PortableTable.from_json(damaged(kind="flow")), r"alpha \+ sigma is not 1 at node 0"),
    (lambda: PortableTable.from_json(damaged(tableau={"format": "?"})), "format '\\?'"),
    (lambda: PortableTable.from_json(damaged(shifted=1)), "shifted=1 must be True or False"),
    (lambda: PortableTable.from_json(GOOD.to_json()[:-30]), "not a table written by"),
    (lambda: portable(table_for("ddim", VP), FLOW), "was made for VPDiscrete"),
    (lambda: portable(table_for("ddim", VP), VP, told=[1.0]), r"told has shape \(1,\)"),
    (lambda: portable(table_for("ddim", VP), VP, told=np.full(7, np.nan)), "told=.*must be finite"),
    (lambda: portable(table_for("ddim", VP), VP, told="all"), "told='all' must be made of real numbers"),
    (lambda: portable("ddim", VP), "tableau='ddim' must be a Tableau"),
    (lambda: portable(table_for("ddim", VP), "vp"), "process='vp' must be a Process"),
    (lambda: portable(table_for("ddim", VP), da.MeanReverting(VP, 1.0)), "reverts to a mean"),
    (lambda: portable(table_for("ddim", VE), VE).scheduler_table(), "kind='other'"),
    (lambda: to_diffusers(portable(table_for("ddim", VE), VE), "nowhere"), "kind='other'"),
    (lambda: to_diffusers(GOOD, "nowhere", "eps"), "prediction_type='eps'"),
    (lambda: to_diffusers("table", "nowhere"), "table='table' must be a PortableTable"),
    (lambda: to_k_diffusion(portable(da.build("flow_euler", FLOW, [1.0, 0.5, 0.1]), FLOW)), "alpha=0 at node 0"),
    (lambda: to_k_diffusion(GOOD)[0](None, X, [3.0, 1.0, 0.5, 0.0]), r"sigmas=\[3, 1, 0.5, 0\] are not the table's"),
])  # fmt: skip
def test_what_is_refused(call, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        call()
    assert not list(tmp_path.iterdir())


# -- diffusers ----------------------------------------------------------------------------------------
def denoise(scheduler, unet, x):
    scheduler.set_timesteps(len(scheduler.timesteps))
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize(("name", "network"), [
    ("tab3", "digits8"), ("dpmpp_3m_exact", "digits8"), ("tab3", "digits8_flow"), ("dpmpp_3m_exact", "digits8_flow"),
])  # fmt: skip
def test_shipped_networks_give_the_same_images(name, network):
    """Five calls in a plain loop of diffusers, with the network's own U-Net and the config of its own scheduler."""
    net = da.networks.load(network)
    table = table_for(name, net.process, 5)
    made = portable(table, net.process, net.model.convention)
    folder = da.networks.shipped()[network]
    unet = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    own = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = da.interop.TableauScheduler.from_config(own, table=made.scheduler_table())
    x = torch.randn(4, *net.shape, generator=torch.Generator().manual_seed(3))
    wanted = da.run(table, net.model, x)
    assert float((denoise(scheduler, unet, x) - wanted).abs().max()) < 1e-5  # 0 where this was written


PLAIN = """
import sys
sys.modules["deis_analysis"] = None
try:
    import deis_analysis
except ImportError:
    print("alone")
import torch
from diffusers import DDPMPipeline
folder, out = sys.argv[1:]
pipe = DDPMPipeline.from_pretrained(folder, trust_remote_code=True, low_cpu_mem_usage=False)
pipe.set_progress_bar_config(disable=True)
assert type(pipe.scheduler).__module__.startswith("diffusers_modules"), type(pipe.scheduler)
images = pipe(2, torch.Generator().manual_seed(7), num_inference_steps=5, output_type="np").images
torch.save(torch.tensor(images), out)
sys.path.insert(0, folder + "/scheduler")
from scheduler import TableauScheduler
table = TableauScheduler.load_config(folder + "/scheduler")["table"]
assert TableauScheduler.from_config(pipe.scheduler.config, table=table).num_inference_steps == 5
"""


def test_the_folder_runs_without_this_package(tmp_path):
    """As part of a pipeline that diffusers loads with trust_remote_code, where this package cannot be imported."""
    net = da.networks.load("digits8")
    table = table_for("dpmpp_3m_exact", net.process, 5)
    unet = diffusers.UNet2DModel.from_pretrained(da.networks.shipped()["digits8"], low_cpu_mem_usage=False)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    for old in (tmp_path / "pipe" / "scheduler").iterdir():
        old.unlink()
    folder = to_diffusers(portable(table, net.process, net.model.convention, "a test"), tmp_path / "pipe" / "scheduler")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "scheduler.py", "scheduler_config.json"]
    assert "deis_analysis" not in (folder / "scheduler.py").read_text()
    assert "num_inference_steps=5" in (folder / "README.md").read_text()
    index = tmp_path / "pipe" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["scheduler", "TableauScheduler"]}))
    quiet = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet
    out = tmp_path / "images.pt"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "pipe"), str(out)],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "alone", done.stderr[-2000:]
    x = torch.randn(2, *net.shape, generator=torch.Generator().manual_seed(7))
    wanted = (da.run(table, net.model, x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((torch.load(out) - wanted).abs().max()) < 1e-5


# -- k-diffusion ----------------------------------------------------------------------------------------
def denoiser(process):
    """(model of k-diffusion's kind, typed model): one denoiser of x₀ + ρ ε at level ρ, told neither t nor α."""

    def x0(y, rho):
        return torch.tanh(0.9 * y / (1.0 + rho)) + 0.1 * torch.sin(y + rho)

    def typed(x, t):
        return x0(x / float(process.alpha(t)), float(process.rho(t)))

    return lambda y, sigma: x0(y, sigma.reshape(-1, 1, 1, 1)), da.Model(typed, process, "x0")


@pytest.mark.parametrize("name", [
    "tab3", "dpmpp_3m_exact", "flow_heun", "rhork_3kutta", "unipc2_bh2_eps", "gdss_s4", "seeds_2", "edm_churn",
])  # fmt: skip
@pytest.mark.parametrize("kind", PROCESSES)
def test_samplers_of_k_diffusion(name, kind):
    process = PROCESSES[kind]
    table = table_for(name, process)
    made = portable(table, process)
    function, sigmas = to_k_diffusion(made)
    assert sigmas == to_sigmas(made)
    assert np.allclose(sigmas, process.rho(table.times[list(table.grid_nodes)]), rtol=1e-12)
    assert sigmas[-1] > 0
    theirs, ours = denoiser(process)
    torch.manual_seed(3)
    found = function(theirs, X / made.alpha[0], torch.tensor(sigmas))
    torch.manual_seed(3)
    noises = {j: torch.randn_like(X) for j in dict.fromkeys(j for row in table.plan for _, j in row.noises)}
    wanted = da.run(table, ours, X, [noises[j] for j in range(table.noises)] if noises else None) / made.alpha[-1]
    assert float((found - wanted).abs().max()) < 1e-9 * max(1.0, float(wanted.abs().max()))


def test_callbacks_see_each_step_once():
    table = table_for("rhork_2heun", VP)
    function, sigmas = to_k_diffusion(portable(table, VP))
    seen = []
    function(denoiser(VP)[0], X, None, {}, seen.append, True)
    assert [call["i"] for call in seen] == list(range(6))
    assert [call["sigma"] for call in seen] == sigmas[:-1]
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    assert seen[0]["x"].shape == seen[0]["denoised"].shape == X.shape


@pytest.fixture
def external(monkeypatch):
    """``k_diffusion.external`` by itself: the package's own import pulls in torchvision and CLIP."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed")
    parts = {name: types.ModuleType(f"k_diffusion_alone{name}") for name in ("", ".sampling", ".utils")}
    parts[".utils"].append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, f"k_diffusion_alone{name}", module)
        setattr(parts[""], name[1:] or "__path__", module if name else [])
    file = os.path.join(found.submodule_search_locations[0], "external.py")
    return module_of(file, "k_diffusion_alone.external")


def test_with_the_denoiser_of_k_diffusion(external):
    """CompVisDenoiser around an ε network that is told level numbers; its own ρ → t is linear in log ρ, as ours."""

    class Net(torch.nn.Module):
        alphas_cumprod = torch.tensor(ALPHAS, dtype=torch.float64)

        def apply_model(self, x, t, gain):
            return gain * torch.sin(x + t.reshape(-1, 1, 1, 1) / 300.0)

    table = table_for("tab3", VP)
    made = portable(table, VP)
    function, sigmas = to_k_diffusion(made)
    wrapped = external.CompVisDenoiser(Net()).double()
    model = da.Model(lambda x, t: 0.8 * torch.sin(x + t / 300.0), VP, "eps")
    found = function(wrapped, X / made.alpha[0], sigmas, {"gain": 0.8})
    wanted = da.run(table, model, X) / made.alpha[-1]
    assert float((found - wanted).abs().max()) < 1e-5


def module_of(file, name):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_written_sampler_is_the_same(tmp_path):
    made = portable(table_for("tab3", VP), VP)
    file = write_k_diffusion(made, tmp_path / "deep" / "my_sampler.py")
    assert "deis_analysis" not in file.read_text()
    module, (function, sigmas) = module_of(file, "my_sampler"), to_k_diffusion(made)
    assert sigmas == module.SIGMAS
    model = denoiser(VP)[0]
    assert torch.equal(module.sample_table(model, X), function(model, X))


# -- ComfyUI ----------------------------------------------------------------------------------------------
class Sampling:
    """What ComfyUI does around a sampler: scaling of noise, and back."""

    def __init__(self, flow):
        self.flow = flow

    def start(self, sigma, noise):
        return sigma * noise if self.flow else noise * (1.0 + sigma**2) ** 0.5

    def end(self, sigma, x):
        return x / (1.0 - sigma) if self.flow else x


@pytest.fixture
def comfy(monkeypatch):
    samplers = types.ModuleType("comfy.samplers")

    class KSAMPLER:
        def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006
            self.function, self.options = sampler_function, extra_options

        def sample(self, model, sigmas, extra_args, callback, noise, sampling):
            def told(step):
                callback(step["i"], step["denoised"], step["x"], len(sigmas) - 1)

            x = sampling.start(sigmas[0], noise)
            x = self.function(model, x, sigmas, extra_args=extra_args, callback=told, disable=True, **self.options)
            return sampling.end(sigmas[-1], x)

    samplers.KSAMPLER = KSAMPLER
    package = types.ModuleType("comfy")
    package.samplers = samplers
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_nodes_of_comfyui(comfy, tmp_path, kind):
    process = PROCESSES[kind]
    table = table_for("dpmpp_2m_exact", process)
    folder = to_comfyui(portable(table, process), tmp_path / "custom")
    assert sorted(p.name for p in folder.iterdir()) == ["__init__.py", "karras.py", "table.json"]
    assert not any("deis_analysis" in p.read_text().replace("deis_analysis ddim", "") for p in folder.iterdir())
    module = module_of(folder / "__init__.py", f"custom_{kind}")
    nodes = {node.RETURN_TYPES[0]: node for node in module.NODE_CLASS_MAPPINGS.values()}
    assert set(nodes) == {"SAMPLER", "SIGMAS"}
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(module.NODE_CLASS_MAPPINGS)
    made = {name: getattr(node(), node.FUNCTION)()[0] for name, node in nodes.items()}
    assert all(node.INPUT_TYPES() == {"required": {}} for node in nodes.values())
    sigmas, calls = made["SIGMAS"], []
    levels = process.sigma(table.times) if kind == "flow" else process.rho(table.times)
    assert np.allclose(sigmas.numpy(), levels, rtol=1e-6)

    def model(x, sigma, model_options):
        """ComfyUI's flows are asked about α x₀ + σ ε."""
        sigma = sigma.reshape(-1, 1, 1, 1)
        karras = (x / (1 - sigma), sigma / (1 - sigma)) if kind == "flow" else (x, sigma)
        return denoiser(process)[0](*karras)

    sampling = Sampling(kind == "flow")
    found = made["SAMPLER"].sample(model, sigmas, {"model_options": {}}, lambda *a: calls.append(a[0]), X, sampling)
    start = float(process.sigma(table.times[0])) * X if kind == "flow" else X
    wanted = da.run(table, denoiser(process)[1], start) / float(process.alpha(table.times[-1]))
    assert float((found - wanted).abs().max()) < 1e-6
    assert calls == list(range(6))


# -- the command ------------------------------------------------------------------------------------------
def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_writes_every_kind(tmp_path):
    row = ("tab3", "--steps", "5", "--grid", "rho7", "--process", "VPLinear:beta_max=18")
    file = tmp_path / "table.json"
    assert "tab3, 5 model calls" in invoke(*row, "--to", "json", file)
    made = PortableTable.from_json(file.read_text())
    process = da.VPLinear(beta_max=18.0)
    assert da.distance(made.tableau, da.build("tab3", process, da.grid(process, 5, "rho7"))) == 0
    invoke(file, "--to", "sigmas", tmp_path / "sigmas.json")
    assert json.loads((tmp_path / "sigmas.json").read_text()) == to_sigmas(made)
    invoke(file, "--to", "k_diffusion", tmp_path / "sampler.py")
    invoke(file, "--to", "comfyui", tmp_path / "nodes")
    assert json.loads((tmp_path / "nodes" / "table.json").read_text()) == made.rows()
    invoke(file, "--to", "diffusers", tmp_path / "scheduler", "--prediction-type", "sample")
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "sample"
    assert config["table"] == made.scheduler_table()


@pytest.mark.parametrize(("network", "kind", "times"), [
    ("digits8", "epsilon", 1000), ("digits8_flow", "flow_prediction", 100),
])  # fmt: skip
def test_the_command_takes_a_network(tmp_path, network, kind, times):
    invoke("tab3", "--model", network, "--steps", "5", "--to", "diffusers", tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert (config["prediction_type"], config["num_train_timesteps"]) == (kind, times)
    process = da.networks.load(network).process
    assert np.allclose(config["table"]["told"], 100.0 * da.grid(process, 5))


@pytest.mark.parametrize(("arguments", "match"), [
    (("nonsense", "--process", "VPLinear", "--to", "json", "x.json"), "TABLE='nonsense' is unknown"),
    (("tab3", "--to", "json", "x.json"), "needs either --process or --model"),
    (("tab3", "--process", "VPLinear", "--model", "digits8", "--to", "json", "x.json"), "either --process or"),
    (("tab3", "--process", "VP", "--to", "json", "x.json"), "process='VP' is unknown"),
    (("tab3", "--process", "VPLinear", "x.json"), "Missing option '--to'"),
    (("tab3", "--process", "VPLinear", "--to", "onnx", "x.json"), "'onnx' is not one of"),
    (("tab3", "--process", "VPLinear", "--grid", "t9x", "--to", "json", "x.json"), "kind='t9x' is unknown"),
    (("tab3", "--process", "VPLinear", "--steps", "0", "--to", "json", "x.json"), "steps=0"),
    (("tab3", "--model", "digits9", "--to", "json", "x.json"), "digits9"),
    (("tab3", "--process", "VE", "--to", "diffusers", "x"), "kind='other'"),
    (("tab3", "--process", "VPLinear", "--to", "json", "x.json", "--prediction-type", "epsilon"), "is for --to diff"),
    (("tab3", "--process", "VPLinear", "--to", "json", "folder"), "is a folder"),
    (("tab3", "--process", "VPLinear", "--to", "comfyui", "file"), "is a file"),
    (("tab3", "--process", "VPLinear", "--to", "json", "file/x.json"), "cannot be written"),
    (("file", "--to", "json", "x.json"), "not a table written by PortableTable"),
    (("file", "--steps", "3", "--to", "json", "x.json"), "--steps is for samplers of the registry"),
])  # fmt: skip
def test_errors_of_the_command_have_no_traceback(arguments, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    assert match in " ".join(invoke(*arguments, code=2).split())
    assert not (tmp_path / "x.json").exists()


def test_told_times_follow_a_convention():
    linear = da.VPLinear()
    table = table_for("ddim", linear)
    assert np.array_equal(portable(table, linear, Convention(scale=1000.0, offset=-1.0)).told[:-1],
                          -1.0 + 1000.0 * table.times[:-1])  # fmt: skip


def test_the_clock_of_the_data_may_be_infinite():
    """EDM's λ at σ = 0, where nobody is told it."""
    edm = da.EDM(0.01, 20.0)
    table = da.build("edm_euler", edm, [20.0, 3.0, 0.5, 0.01, 0.0])
    made = portable(table, edm, Convention("eps", "lam", -0.25))
    assert made.told[-1] == 0.0
    assert np.allclose(made.told[:-1], 0.25 * np.log(table.times[:-1]))
