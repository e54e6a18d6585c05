"""Networks that ship and networks that users have: what is read of them, and that they are asked the right thing."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import processes

import deis_analysis as da
from deis_analysis import networks as learned
from deis_analysis.networks import Convention, ImageModel, loading
from deis_analysis.networks.diffusers_folder import scheduler_process, wrap_network
from deis_analysis.networks.guided import Called
from deis_analysis.networks.times import TimeEmbedding, answer_at

TINY = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8), "layers_per_block": 1,
    "norm_num_groups": 2, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 2, "out_channels": 4, "num_layers": 2,
    "sample_size": 8, "patch_size": 4, "num_embeds_ada_norm": 5, "norm_num_groups": 2,
}  # fmt: skip
VP, FLOW = da.VPLinear(), da.RectifiedFlow()
T_EPS = Convention("eps", scale=1.0)
SHIPPED = loading.CHECKPOINTS
DDIM = {"clip_sample": False, "set_alpha_to_one": False}


def unet(seed: int = 0, **changes):
    from diffusers import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**TINY | changes).eval().requires_grad_(False)


def dit(**changes):
    """A DiT that depends on its inputs; diffusers begins with blocks and outputs that do, unlike the paper."""
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiTTransformer2DModel(**DIT | changes).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def saved(folder: Path, net, scheduler=None, pipeline: str = "") -> Path:
    """A folder as diffusers writes it: flat, or of a pipeline with ``pipeline`` as its network's part."""
    net.save_pretrained(folder / pipeline)
    if scheduler is not None:
        scheduler.save_pretrained(folder / ("scheduler" if pipeline else ""))
    if pipeline:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


def ddim_folder(folder: Path, net=None, prediction: str = "epsilon") -> Path:
    from diffusers import DDIMScheduler

    return saved(folder, net or unet(), DDIMScheduler(1000, prediction_type=prediction, **DDIM))


# -- networks that ship ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "process", "prediction", "size"),
    [("digits8", VP, "eps", 8), ("digits8_flow", FLOW, "v", 8), ("mnist28", VP, "eps", 28)],
)
def test_shipped_networks_are_those_of_their_folders(name, process, prediction, size):
    from diffusers import UNet2DModel

    begin = time.perf_counter()
    network = learned.load(name)
    assert time.perf_counter() - begin < 5.0
    assert (network.name, network.process, network.prediction) == (name, process, prediction)
    assert network.shape == (1, size, size)
    folder = SHIPPED / name
    assert network.card == json.loads((folder / "card.json").read_text())
    net, x = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval(), noise(3, 1, size, size)
    with torch.no_grad():
        wanted = net(x, torch.tensor([70.0, 70.0, 70.0])).sample  # its card: 100 t
    assert torch.equal(network.model(x, 0.7), wanted)
    assert network.digest == learned.load(folder).digest == learned.load(str(folder)).digest
    assert name in learned.shipped()


def test_options_that_are_the_default_are_not_in_the_digest():
    """New versions of diffusers write new options; references are kept under the digest."""
    plain, other = (json.loads(wrap_network(unet(**more), "net", None, 1.0, None).architecture)
                    for more in ({"dropout": 0.0}, {"dropout": 0.1}))  # fmt: skip
    assert plain[0] == other[0] == "UNet2DModel"
    assert other[1] == plain[1] | {"dropout": 0.1}
    assert not {"dropout", "act_fn", "norm_eps"} & set(plain[1])
    assert {"in_channels", "sample_size"} <= set(plain[1])
    given = {"process": VP, "convention": Convention("eps", scale=100.0)}
    assert learned.load(unet(), **given).digest != learned.load(unet(dropout=0.1), **given).digest


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_checkpoints_cut_off_anywhere_are_refused(tmp_path, legacy, share):
    path = tmp_path / "net.pt"
    torch.save(unet().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    cut(path, share)
    with pytest.raises(ValueError, match=r"spec='net\.pt' (cannot be read|holds)"):
        learned.load(path, factory=unet, process=VP, convention=Convention("eps", scale=100.0), shape=(1, 8, 8))


@pytest.mark.parametrize("content", [{"model": {}, "ema": {"shadow_params": 3}}, {1: torch.ones(1)}, {"model": {2: 3}}])
def test_checkpoints_of_something_else_are_refused(tmp_path, content):
    state = {k: (unet().state_dict() if k == "model" and not v else v) for k, v in content.items()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"spec='net\.pt'"):
        learned.load(
            tmp_path / "net.pt", factory=unet, process=VP, convention=Convention("eps", scale=100.0), shape=(1, 8, 8)
        )


@pytest.mark.parametrize(
    ("key", "value"), [("sample_size", "x"), ("time_embedding_type", "qq"), ("block_out_channels", [8, "x"])]
)
def test_configs_that_make_no_network_are_refused(tmp_path, key, value):
    folder = ddim_folder(tmp_path / "net")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="spec='net'"):
        learned.load(folder)


# -- the same images as diffusers' own loop -------------------------------------------------------
def own_loop(net, scheduler, x: torch.Tensor, count: int) -> torch.Tensor:
    scheduler.set_timesteps(count)
    with torch.no_grad():
        for n in scheduler.timesteps:
            x = scheduler.step(net(x, n).sample, n, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("kind", "prediction"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_ddim_folders_sample_the_same_images(tmp_path, spacing, kind, prediction):
    from diffusers import DDIMScheduler

    offset = 1 if spacing == "leading" else 0  # the last level asked at must lie above that of the result, level 0
    scheduler = DDIMScheduler(1000, prediction_type=kind, timestep_spacing=spacing, steps_offset=offset, **DDIM)
    net, start = unet(), noise(4, 1, 8, 8)
    network = learned.load(saved(tmp_path, net, scheduler))
    assert network.prediction == prediction
    assert isinstance(network.process, da.VPDiscrete)
    wanted = own_loop(net, scheduler, start, 10)
    ts = np.append(np.asarray(scheduler.timesteps, dtype=float), 0.0)
    found = da.run(da.build("ddim", network.process, ts).in_terms_of(network.process, prediction), network.model, start)
    # 10 steps of a few float32 roundings each, 6e-8 of a state that is as large as the result
    assert float((found - wanted).abs().max()) < 2e-6 * float(wanted.abs().max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_folders_sample_the_same_images(tmp_path, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    net, start = unet(), noise(4, 1, 8, 8)
    network = learned.load(saved(tmp_path, net, scheduler))
    assert (network.process, network.prediction) == (FLOW, "v")
    wanted = own_loop(net, scheduler, start, 10)
    ts = np.asarray(scheduler.sigmas, dtype=float)
    bend = np.abs(np.diff(ts[:-1], 2)).max()
    assert bend < 1e-6 if shift == 1 else bend > 1e-2
    table = da.build("flow_euler", FLOW, ts).in_terms_of(FLOW, "v")
    found = da.run(table, network.model, start)
    assert float((found - wanted).abs().max()) < 2e-6 * float(wanted.abs().max())
    other = da.run(table, learned.load(tmp_path, convention=Convention("v", scale=100.0)).model, start)
    assert float((other - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())  # the network is heard


def test_levels_that_end_at_no_signal_end_just_above_it(tmp_path):
    """ᾱ = 0 is taken as a quarter of the level before: with v the images move by α_T and its like."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    scheduler = DDIMScheduler(1000, prediction_type="v_prediction", timestep_spacing="trailing",
                              rescale_betas_zero_snr=True, **DDIM)  # fmt: skip
    net, start = unet(), noise(4, 1, 8, 8)
    saved(tmp_path, net, scheduler)
    with pytest.warns(UserWarning, match="end at alphas_cumprod=0 after"):
        network = learned.load(tmp_path)
    alphas = np.asarray(scheduler.alphas_cumprod, dtype=float)
    assert alphas[-1] == 0
    assert network.process.alphas_cumprod[-1] == 0.25 * alphas[-2]
    assert np.array_equal(network.process.alphas_cumprod[:-1], alphas[:-1])
    wanted = own_loop(net, scheduler, start, 10)
    ts = np.append(np.asarray(scheduler.timesteps, dtype=float), 0.0)
    assert ts[0] == 999
    found = da.run(da.build("ddim", network.process, ts).in_terms_of(network.process, "v"), network.model, start)
    gap = float((found - wanted).abs().max() / wanted.abs().max())
    assert gap < 2 * math.sqrt(network.process.alphas_cumprod[-1])
    euler = EulerDiscreteScheduler(1000, rescale_betas_zero_snr=True)
    assert euler.alphas_cumprod[-1] > euler.alphas_cumprod[-2]  # 2^-24: its levels do not fall
    with pytest.warns(UserWarning, match="after"):
        again, _ = scheduler_process(euler)
    assert np.allclose(again.alphas_cumprod, network.process.alphas_cumprod, rtol=1e-4)


# -- folders --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler",
])  # fmt: skip
@pytest.mark.parametrize(("kind", "prediction"), [("epsilon", "eps"), ("v_prediction", "v")])
def test_schedulers_of_discrete_levels(name, kind, prediction):
    """ᾱ_n = Π (1 − β_i), β linear from 1e-4 to 0.02; the network is told n."""
    import diffusers

    made = getattr(diffusers, name)(num_train_timesteps=50, beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    process, convention = scheduler_process(made)
    assert process.alphas_cumprod == pytest.approx(np.cumprod(1 - np.linspace(1e-4, 0.02, 50)), rel=1e-5)
    assert convention == Convention(prediction, scale=1.0)


def test_other_schedulers(tmp_path):
    import diffusers

    for made in (
        diffusers.FlowMatchHeunDiscreteScheduler(500, shift=2.0),
        diffusers.DPMSolverMultistepScheduler(500, prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        assert scheduler_process(made) == (FLOW, Convention("v", scale=500.0))
    ve = diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=90.0)
    assert scheduler_process(ve) == (da.EDM(0.02, 90.0), Convention("score", scale=1.0))
    saved(tmp_path, unet(), diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match=r"pass process= and convention="):
        learned.load(tmp_path, process=da.EDM())
    given = learned.load(tmp_path, process=da.EDM(), convention=Convention("x0", "lam", scale=-0.25))
    x = noise(2, 1, 8, 8)
    with torch.no_grad():
        wanted = unet()(x, torch.full((2,), 0.25 * math.log(3.0))).sample
    assert torch.allclose(given.model(x, 3.0), wanted, rtol=0, atol=1e-6)
    for made in (
        diffusers.EDMEulerScheduler(),
        diffusers.IPNDMScheduler(),
        diffusers.CosineDPMSolverMultistepScheduler(),
    ):
        with pytest.raises(ValueError, match=rf"scheduler='{type(made).__name__}'.*pass process= and convention="):
            scheduler_process(made)


def test_score_networks_are_told_sigma(tmp_path):
    """The unconditional NCSN++ kind of diffusers: Fourier features of log σ, the answer divided by σ."""
    from diffusers import ScoreSdeVeScheduler

    net, x = unet(time_embedding_type="fourier"), noise(2, 1, 8, 8)
    network = learned.load(saved(tmp_path, net, ScoreSdeVeScheduler(sigma_max=90.0)))
    with torch.no_grad():
        assert torch.equal(network.model(x, 2.5), net(x, torch.tensor([2.5, 2.5])).sample)
    assert network.prediction == "score"
    with pytest.raises(ValueError, match="times='nearest': the network is told σ"):
        learned.load(tmp_path, times="nearest")


@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_pipelines(tmp_path, part):
    from diffusers import DDPMScheduler

    net = unet()
    saved(tmp_path / "pipe", net, DDPMScheduler(100), part)
    network, x = learned.load(tmp_path / "pipe"), noise(2, 1, 8, 8)
    assert network.name == "pipe"
    assert network.process.t_max == 99
    with torch.no_grad():
        assert torch.equal(network.model(x, 17.25), net(x, torch.tensor([17.25] * 2)).sample)
    assert learned.load(tmp_path / "pipe" / part).digest == network.digest
    fixed = learned.load(tmp_path / "pipe", process=VP, convention=Convention("x0", scale=100.0))
    assert (fixed.process, fixed.prediction) == (VP, "x0")
    with torch.no_grad():
        assert torch.equal(fixed.model(x, 0.25), net(x, torch.tensor([25.0] * 2)).sample)


def test_a_hub_id_is_downloaded_by_that_id(tmp_path, monkeypatch):
    import huggingface_hub

    ddim_folder(tmp_path / "snapshot")
    asked = []

    def download(spec, *, allow_patterns, ignore_patterns):
        asked.append((spec, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    network = learned.load("somebody/some-network-32")
    assert network.name == "somebody/some-network-32"
    assert [spec for spec, _ in asked] == ["somebody/some-network-32"]
    wanted = {
        "scheduler/*config.json",
        "unet/*config.json",
        "unet/diffusion_pytorch_model*.safetensors",
        "*config.json",
    }
    assert wanted <= set(asked[0][1])
    assert network.digest == learned.load(tmp_path / "snapshot").digest
    weights = tmp_path / "snapshot" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    unet().save_pretrained(tmp_path / "snapshot", safe_serialization=False)
    assert learned.load("somebody/some-network-32").digest == network.digest
    assert "diffusion_pytorch_model*.bin" in asked[-1][1]

    def offline(spec, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection, nothing cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match=r"spec='no/body' is no folder here, and as a hub id it cannot be had \(no conn"
    ):
        learned.load("no/body")


# -- labels and guidance --------------------------------------------------------------------------
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("labels", [3, [0, 4, 2]])
def test_guidance_of_a_dit(tmp_path, labels, guidance):
    """p_∅ + w (p_c − p_∅) of single calls, on the first half of its channels; no class is label 5."""
    from diffusers import DDIMScheduler

    net, x = dit(), noise(3, 2, 8, 8)
    network = learned.load(saved(tmp_path, net, DDIMScheduler(**DDIM), "transformer"), labels=labels, guidance=guidance)
    assert network.shape == (2, 8, 8)
    n, c = torch.full((3,), 40.5), torch.tensor(labels).expand(3)
    given = net(x, n, class_labels=c, return_dict=False)[0][:, :2]
    none = net(x, n, class_labels=torch.full((3,), 5), return_dict=False)[0][:, :2]
    assert float((given - none).abs().max()) > 1e-3
    wanted = none + guidance * (given - none)
    assert torch.allclose(network.model(x, 40.5), wanted, rtol=0, atol=1e-5)
    if isinstance(labels, list):
        with pytest.raises(ValueError, match="x has 2 samples; allowed: 3, one for each of labels"):
            network.model(x[:2], 40.5)
        linear = learned.load(tmp_path, labels=labels, guidance=guidance, times="linear")
        low, high = (network.model(x, n) for n in (40.0, 41.0))
        assert torch.allclose(linear.model(x, 40.25), 0.75 * low + 0.25 * high, rtol=0, atol=1e-5)


def test_guidance_of_a_unet(tmp_path):
    """Its last class stands for none."""
    net, x = unet(num_class_embeds=4), noise(2, 1, 8, 8)
    ddim_folder(tmp_path, net)
    n = torch.full((2,), 7.0)
    given, none = (net(x, n, class_labels=torch.tensor([c, c]), return_dict=False)[0] for c in (1, 3))
    found = learned.load(tmp_path, labels=1, guidance=3.0).model(x, 7.0)
    assert torch.allclose(found, none + 3.0 * (given - none), rtol=0, atol=1e-5)
    assert torch.allclose(learned.load(tmp_path, labels=1).model(x, 7.0), given, rtol=0, atol=1e-6)


# -- checkpoint files -----------------------------------------------------------------------------
EDM_CODE = """
import torch
class Denoiser(torch.nn.Module):
    img_resolution, img_channels, sigma_min, sigma_max = 8, 2, 0.01, float("inf")
    def __init__(self, label_dim):
        super().__init__()
        self.label_dim, self.weight = label_dim, torch.nn.Parameter(torch.tensor(0.5))
    def forward(self, x, sigma, class_labels=None):
        assert (class_labels is None) == (self.label_dim == 0)
        shift = 0 if class_labels is None else (class_labels * torch.arange(1.0, 1 + self.label_dim)).sum(1)
        return self.weight * x / (1 + sigma.reshape(-1, 1, 1, 1)) + torch.as_tensor(shift).reshape(-1, 1, 1, 1)
"""


@pytest.fixture
def edm(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "edm_code_of_a_test.py").write_text(EDM_CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    import edm_code_of_a_test as code

    for name, labels in (("plain", 0), ("labelled", 3)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"ema": code.Denoiser(labels)}))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"net": 3}))
    yield tmp_path
    sys.modules.pop("edm_code_of_a_test", None)


def test_edm_pickles(edm):
    x = noise(3, 2, 8, 8)
    with pytest.warns(UserWarning, match=r"reading plain\.pkl runs the code that it brings along"):
        network = learned.load(edm / "plain.pkl", allow_pickle=True)
    assert (network.process, network.prediction, network.shape) == (da.EDM(0.01, 80.0), "x0", (2, 8, 8))
    assert torch.allclose(network.model(x, 3.0), x / 8, rtol=1e-6)
    for labels, guidance, shift in ((2, 1.0, 3.0), ([0, 1, 2], 1.0, torch.tensor([1.0, 2.0, 3.0])), (1, 4.0, 8.0)):
        with pytest.warns(UserWarning, match="runs the code"):
            network = learned.load(edm / "labelled.pkl", allow_pickle=True, labels=labels, guidance=guidance)
        wanted = x / 8 + torch.as_tensor(shift).reshape(-1, 1, 1, 1)
        assert torch.allclose(network.model(x, 3.0), wanted, rtol=1e-5)


def test_pickles_are_not_read_unasked(edm):
    marker = edm / "ran"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (edm / "bad.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"'bad\.pkl' is a pickle: reading it runs code .* allow_pickle=True"):
        learned.load(edm / "bad.pkl")
    torch.save(Payload(), edm / "bad.pt")
    with pytest.raises(ValueError, match=r"spec='bad\.pt' cannot be read .*save module.state_dict\(\)"):
        learned.load(edm / "bad.pt", factory=unet, process=VP, convention=T_EPS, shape=(1, 8, 8))
    assert not marker.exists()
    with (
        pytest.warns(UserWarning, match="runs the code"),
        pytest.raises(ValueError, match=r"spec='other\.pkl' holds no EDM network"),
    ):
        learned.load(edm / "other.pkl", allow_pickle=True)
    (edm / "plain.pkl").write_bytes((edm / "plain.pkl").read_bytes().replace(b"edm_code", b"edm_c0de"))
    with (
        pytest.warns(UserWarning, match="runs the code"),
        pytest.raises(ValueError, match=r"ModuleNotFoundError.*must be on sys\.path"),
    ):
        learned.load(edm / "plain.pkl", allow_pickle=True)


class Small(torch.nn.Module):
    """p(x, n) = w x + b + n/1000 with a parameter that is not trained between the two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.0))
        self.fixed = torch.nn.Parameter(torch.tensor([9.0, 9.0]), requires_grad=False)
        self.b = torch.nn.Parameter(torch.zeros(1, 1, 1, 1))

    def forward(self, x, n):
        return self.w * x + self.b + n.reshape(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize(("kind", "w", "b"), [
    ("score_sde.pth", 2.0, 3.0), ("ema_state.ckpt", 2.0, 3.0), ("model.pt", 0.5, 0.25), ("lightning.ckpt", 0.5, 0.25),
    ("plain.pt", 0.5, 0.25), ("plain.safetensors", 0.5, 0.25),
])  # fmt: skip
def test_checkpoints_through_a_factory(tmp_path, kind, w, b):
    from safetensors.torch import save_file

    def state(w, b):
        values = {"w": torch.tensor(w), "fixed": torch.tensor([1.0, 2.0]), "b": torch.full((1, 1, 1, 1), b)}
        return {f"module.{k}": v for k, v in values.items()}

    shadow = [torch.tensor(2.0), torch.full((1, 1, 1, 1), 3.0)]
    content = {
        "score_sde.pth": {"optimizer": {}, "model": state(0.5, 0.25), "step": 7,
                          "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}},
        "ema_state.ckpt": {"model": state(0.5, 0.25), "ema": state(2.0, 3.0)},
        "model.pt": {"model": state(0.5, 0.25)},
        "lightning.ckpt": {"state_dict": state(0.5, 0.25), "epoch": 3},
        "plain.pt": state(0.5, 0.25),
        "plain.safetensors": state(0.5, 0.25),
    }[kind]  # fmt: skip
    (save_file if kind.endswith("safetensors") else torch.save)(content, tmp_path / kind)
    facts = {"process": da.VPDiscrete(np.linspace(0.99, 0.01, 50)), "convention": T_EPS, "shape": (1, 8, 8)}
    network, x = learned.load(tmp_path / kind, factory=Small, **facts), noise(3, 1, 8, 8)
    assert torch.allclose(network.model(x, 30.0), w * x + b + 0.03, rtol=1e-6)
    assert network.model.net.net.fixed.tolist() == [1.0, 2.0]
    assert network.name == kind.split(".")[0]
    for wrong, message in (
        ({"factory": None}, "factory=None: .* holds weights alone"),
        ({"factory": unet}, "the weights are not those of factory's module"),
        ({"factory": lambda: 3}, "made a int; allowed: a torch.nn.Module"),
        ({"process": None, "shape": None}, "does not say all of itself; process=, shape= must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            learned.load(tmp_path / kind, **{"factory": Small, **facts, **wrong})


def test_safetensors_is_needed_for_its_own_files_only(tmp_path, monkeypatch):
    facts = {"factory": Small, "process": VP, "convention": T_EPS, "shape": (1, 8, 8)}
    torch.save(Small().state_dict(), tmp_path / "plain.pt")
    (tmp_path / "plain.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert learned.load(tmp_path / "plain.pt", **facts).shape == (1, 8, 8)
    with pytest.raises(ImportError, match=r"safetensors.* is not installed: pip install 'deis-analysis\[models\]'"):
        learned.load(tmp_path / "plain.safetensors", **facts)


def test_damaged_checkpoints(tmp_path):
    facts = {"factory": Small, "process": VP, "convention": T_EPS, "shape": (1, 8, 8)}
    good = {"model": Small().state_dict(), "ema": {"shadow_params": [torch.tensor(2.0)]}}
    for name, content, message in (
        ("average.pt", good, "its 1 averages are not of the shapes of the 2 parameters"),
        ("list.pt", [1, 2], "holds a list; allowed: a state dict"),
        ("numbers.pt", {"step": 3}, r"holds \['step'\]; allowed: a state dict"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            learned.load(tmp_path / name, **facts)
    torch.save(Small().state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:300])
    (tmp_path / "cut.safetensors").write_bytes(b"\x50\0\0\0\0\0\0\0{")
    for name in ("cut.pt", "cut.safetensors"):
        with pytest.raises(ValueError, match=f"spec='{name}' cannot be read"):
            learned.load(tmp_path / name, **facts)


# -- modules and functions ------------------------------------------------------------------------
def test_modules_are_copied(tmp_path):
    from diffusers import UNet2DModel

    net = UNet2DModel(**TINY).train()
    before = copy.deepcopy(net.state_dict())
    network = learned.load(net, process=VP, convention=Convention("eps", scale=100.0), dtype=torch.float64)
    assert network.name == "UNet2DModel"
    assert network.shape == (1, 8, 8)
    assert net.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert type(net.time_proj).__name__ == "Timesteps"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.requires_grad or p.dtype != torch.float64 for p in network.model.net.parameters())
    torch.save(unet().state_dict(), tmp_path / "unet.pt")
    from_file = learned.load(tmp_path / "unet.pt", factory=lambda: unet(1), process=VP, convention=T_EPS)
    again = learned.load(unet(), process=VP, convention=T_EPS)
    assert (from_file.digest, from_file.shape) == (again.digest, (1, 8, 8))
    plain = learned.load(Small(), process=VP, convention=T_EPS, shape=(1, 8, 8))
    x = noise(2, 1, 8, 8).requires_grad_(True)
    (gradient,) = torch.autograd.grad(learned.load(net, process=VP, convention=T_EPS).model(x, 0.5).sum(), x)
    assert float(gradient.abs().max()) > 0
    assert torch.allclose(plain.model(x, 0.5), torch.tensor(5e-4))


def test_functions_compute_in_the_dtype_of_the_state():
    seen = []

    def f(x, n):
        seen.append((x.dtype, n.dtype, n.shape))
        return 2 * x

    network = learned.load(f, process=da.VE(), convention=Convention("eps", scale=3.0), shape=(2, 4, 4))
    assert network.name == "f"
    for dtype in (torch.float32, torch.float64):
        x = noise(5, 2, 4, 4, dtype=dtype)
        assert torch.equal(network.model(x, 0.5), 2 * x)
        assert seen[-1] == (dtype, dtype, (5,))
    assert network.to(dtype=torch.float64).digest == network.digest
    assert network.digest != learned.load(f, process=da.VE(), convention=T_EPS, shape=(2, 4, 4)).digest


# -- times ----------------------------------------------------------------------------------------
@given(
    n=st.lists(st.floats(0, 1000), min_size=1, max_size=4), times=st.sampled_from(["fractional", "nearest", "linear"])
)
def test_rounded_times(n, times):
    """A network that answers g(n) = n² + n x, against what the three words mean."""
    calls = []

    def ask(x, told):
        calls.append(len(x))
        told = torch.as_tensor(told)
        return told**2 + told * x

    x, n = torch.arange(1.0, 1 + len(n), dtype=torch.float64), np.array(n)
    g = lambda told: told**2 + told * x.numpy()  # noqa: E731
    wanted = {
        "fractional": g(n),
        "nearest": g(np.array([round(v) for v in n])),
        "linear": np.array([np.interp(v, np.arange(1002), np.arange(1002.0) ** 2) for v in n]) + n * x.numpy(),
    }[times]
    assert answer_at(ask, x, n, times).numpy() == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    halfway = times == "linear" and not np.array_equal(n, np.rint(n))
    assert calls == [len(n) * (2 if halfway else 1)]


def test_times_of_networks(tmp_path):
    ddim_folder(tmp_path)
    x, t = noise(3, 1, 8, 8), torch.tensor([10.5, 11.5, 999.0])
    network = learned.load(tmp_path)
    found = {times: learned.load(tmp_path, times=times).model for times in ("nearest", "linear")}
    assert torch.equal(found["nearest"](x, t), network.model(x, torch.tensor([10.0, 12.0, 999.0])))  # ties to even
    low, high = (network.model(x, torch.tensor(v)) for v in ([10.0, 11.0, 999.0], [11.0, 12.0, 999.0]))
    assert torch.allclose(found["linear"](x, t), 0.5 * (low + high), rtol=0, atol=1e-6)
    assert torch.equal(found["linear"](x, 12.0), network.model(x, 12.0))
    between = 0.75 * network.model(x, 12.0) + 0.25 * network.model(x, 13.0)
    assert torch.allclose(found["linear"](x, 12.25), between, rtol=0, atol=1e-6)
    assert len({network.digest, *(learned.load(tmp_path, times=m).digest for m in ("nearest", "linear"))}) == 3
    floor = learned.time_floor(network, x, t)
    fractional = network.model(x, t)
    for times in ("nearest", "linear"):
        assert floor[times] == float((found[times](x, t) - fractional).abs().max()) > 0


def test_the_floor_of_rounded_times_is_what_it_is():
    """p = sin n: |sin n − sin round n|, and the error of linear interpolation."""
    network = learned.load(lambda x, n: torch.sin(n).reshape(-1, 1, 1, 1).expand_as(x), process=VP,
                           convention=Convention("eps", scale=10.0), shape=(1, 1, 1))  # fmt: skip
    floor = learned.time_floor(network, torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.tensor([0.13, 0.74]))
    t = [float(v) for v in 10 * torch.tensor([0.13, 0.74]).double()]
    nearest = max(abs(math.sin(v) - math.sin(round(v))) for v in t)
    line = lambda v: (1 - v % 1) * math.sin(math.floor(v)) + (v % 1) * math.sin(math.ceil(v))  # noqa: E731
    assert floor == pytest.approx({"nearest": nearest, "linear": max(abs(math.sin(v) - line(v)) for v in t)}, rel=1e-12)


def test_tables_of_times_take_integers(tmp_path):
    net = unet(time_embedding_type="learned", num_train_timesteps=1000)
    ddim_folder(tmp_path, net)
    x = noise(2, 1, 8, 8)
    with pytest.raises(ValueError, match="times='fractional': the network has a table of integer times; allowed: near"):
        learned.load(tmp_path)
    n = torch.tensor([999, 999])
    with torch.no_grad():
        low, high = (net(x, m).sample for m in (n - 1, n))
    assert torch.equal(learned.load(tmp_path, times="nearest").model(x, 998.7), high)
    found = learned.load(tmp_path, times="linear").model(x, 998.25)
    assert torch.allclose(found, 0.75 * low + 0.25 * high, rtol=0, atol=1e-6)


# -- dtypes and devices ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("channels", "flip", "shift", "scale"), [(16, True, 0, 1), (7, False, 1, 1), (256, True, 1, 3)]
)
def test_time_embeddings(channels, flip, shift, scale):
    """Against diffusers in float32, and against the formula term by term in float64."""
    from diffusers.models.embeddings import Timesteps

    ours, n = TimeEmbedding(channels, flip, shift, scale), torch.tensor([0.0, 1.25, 97.3, 999.0])
    assert torch.equal(ours(n), Timesteps(channels, flip, shift, scale)(n))
    assert torch.equal(ours(torch.arange(4)), Timesteps(channels, flip, shift, scale)(torch.arange(4)))
    half, found = channels // 2, ours(n.double()).numpy()
    assert found.dtype == np.float64
    for i, v in enumerate(n.double().tolist()):
        angle = [scale * v * 10000 ** (-k / (half - shift)) for k in range(half)]
        sines, cosines = [math.sin(a) for a in angle], [math.cos(a) for a in angle]
        wanted = [*(cosines + sines if flip else sines + cosines), *[0.0] * (channels % 2)]
        assert found[i] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ["digits8", "dit"])
def test_a_float64_network_is_one_in_its_times_too(tmp_path, name):
    """Second differences in t over ±h are h² p″ ~ 1e-12; a float32 embedding moves in steps of 50 · 6e-8 · p′."""
    from diffusers import UNet2DModel

    if name == "dit":
        saved(tmp_path, dit(), None)
        network = learned.load(tmp_path, labels=1, process=VP, convention=Convention("eps", scale=100.0))
    else:
        network = learned.load(name)
    wide, x = network.to(dtype=torch.float64), noise(2, *network.shape, dtype=torch.float64)
    h = 1e-7

    def second(model):
        return float((model(x, 0.5 + h) - 2 * model(x, 0.5) + model(x, 0.5 - h)).abs().max())

    moved = float((wide.model(x, 0.5 + h) - wide.model(x, 0.5 - h)).abs().max())
    assert moved > 1e-9
    assert second(wide.model) < min(1e-10, 1e-2 * moved)
    raw = dit() if name == "dit" else UNet2DModel.from_pretrained(SHIPPED / name, low_cpu_mem_usage=False).eval()
    raw = (
        raw.double()
        if name == "digits8"
        else Called(raw.double(), codes=torch.tensor([1]), channels=2, options={"return_dict": False})
    )
    assert second(ImageModel(raw, VP, network.model.convention)) > 1e-9  # the embedding is still in float32
    for t in (0.9, 0.5, 0.01):
        narrow, exact = network.model(x, t), wide.model(x, t)
        assert 0 < float((narrow - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    assert next(network.model.net.parameters()).dtype == torch.float32
    back = wide.to(dtype=torch.float32)
    assert torch.equal(back.model(x, 0.3), network.model(x, 0.3))
    assert back.digest == network.digest != wide.digest
    assert network.to("cpu").digest == network.digest
    again = learned.load(name, dtype=torch.float64) if name != "dit" else wide
    assert again.digest == wide.digest
    assert torch.equal(again.model(x, 0.3), wide.model(x, 0.3))


def test_narrow_dtypes():
    x = noise(2, 1, 8, 8)
    whole = learned.load("digits8").model(x, 0.5)
    for dtype, most in ((torch.bfloat16, 0.2), (torch.float16, 0.02)):
        network = learned.load("digits8", dtype=dtype)
        assert next(network.model.net.parameters()).dtype == dtype
        assert 1e-5 < float((network.model(x, 0.5) - whole).abs().max()) < most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu():
    x, network = noise(2, 1, 8, 8), learned.load("digits8", dtype=torch.float64)
    other = learned.load("digits8", dtype=torch.float64, device="cuda")
    assert other.digest == network.digest == network.to("cuda").digest
    found = other.model(x.cuda().double(), 0.5)
    assert found.is_cuda
    assert torch.allclose(found.cpu(), network.model(x.double(), 0.5), rtol=1e-9, atol=1e-10)


# -- on another process ---------------------------------------------------------------------------
MIX = da.GaussianMixture([0.3, 0.7], [-1.0, 0.5], [0.2, 0.4])
PREDICTIONS = ("eps", "x0", "v", "score")


def exact(process, prediction):
    """What a perfect network of the mixture answers, coordinate by coordinate: from its ε by definition."""
    eps = MIX.eps(process)

    def model(x, t):
        e = eps(x.reshape(-1, 1), t).reshape(x.shape)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        if prediction == "score":
            return -e / sigma
        if prediction == "eps":
            return e
        x0 = (x - sigma * e) / alpha
        if prediction == "x0":
            return x0
        if process.variance_preserving:
            return alpha * e - sigma * x0
        h = 1e-6  # v = α̇ x₀ + σ̇ ε; α and σ of the flow are linear in t, of VE and EDM α̇ = 0
        if isinstance(process, da.RectifiedFlow):
            return e - x0
        if isinstance(process, da.VE):
            return sigma * math.log(process.sigma_max / process.sigma_min) * e
        if isinstance(process, da.EDM):
            return e
        rates = [(float(f(t + h)) - float(f(t - h))) / (2 * h) for f in (process.alpha, process.sigma)]
        return rates[0] * x0 + rates[1] * e

    return model


def network_of(process, prediction):
    model = exact(process, prediction)
    return learned.load(lambda x, n: model(x, float(n[0])), process=process, shape=(1, 2, 2),
                        convention=Convention(prediction, scale=1.0))  # fmt: skip


@given(data=st.data(), source=processes(), target=processes(), seed=st.integers(0, 99))
def test_a_network_on_another_process_is_that_processs(data, source, target, seed):
    """Both ways between any two processes, and in any terms: the mixture's own prediction there."""
    share = data.draw(st.floats(0.2, 0.8))
    low = max(float(source.rho(source.sampling_range[1])), float(target.rho(target.sampling_range[1])))
    high = min(float(source.rho(source.sampling_range[0])), float(target.rho(target.sampling_range[0])))
    t = float(target.time_from_rho(low * (high / low) ** share))
    spoken, wanted = data.draw(st.sampled_from(PREDICTIONS)), data.draw(st.sampled_from(PREDICTIONS))
    if spoken == "v" and not source.variance_preserving and not isinstance(source, da.RectifiedFlow):
        spoken = "eps"
    carried = network_of(source, spoken).carried_to(target, wanted)
    x = float(np.hypot(target.alpha(t), target.sigma(t))) * noise(3, 1, 2, 2, seed=seed, dtype=torch.float64)
    found, truth = carried(x, t), exact(target, wanted)(x, t)
    # x₀ and ε are told from each other by a division by ρ or 1/ρ; v on SubVP is a difference quotient in the test
    ratio = max(float(target.rho(t)), 1 / float(target.rho(t)))
    loose = 1e-7 if wanted == "v" and type(target) is da.SubVP else 1e-12 * ratio**2
    assert float((found - truth).abs().max()) < loose * (1 + float(truth.abs().max()))


@pytest.mark.parametrize("target", [FLOW, da.EDM(), da.VE(), da.VPCosine()], ids=lambda p: type(p).__name__)
def test_eps_is_carried_to_rounding(target):
    for one, other in ((VP, target), (target, VP)):
        carried = network_of(one, "eps").carried_to(other)
        for t in 0.1 + 0.6 * np.linspace(0, 1, 4):
            x = float(np.hypot(other.alpha(t), other.sigma(t))) * noise(4, 1, 2, 2, dtype=torch.float64)
            found, truth = carried(x, float(t)), exact(other, "eps")(x, float(t))
            assert float((found - truth).abs().max()) < 1e-12 * (1 + float(truth.abs().max()))


def test_carrying_keeps_batches_of_times_and_gradients():
    network = learned.load("digits8", dtype=torch.float64)
    carried, x = network.carried_to(FLOW, "v"), noise(3, 1, 8, 8, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = carried(x, t)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], carried(x[i : i + 1], float(t[i])), rtol=1e-9, atol=1e-11)
    x.requires_grad_(True)
    assert float(torch.autograd.grad(carried(x, 0.5).sum(), x)[0].abs().max()) > 0
    names = {network.carried_to(p, q).digest for p in (FLOW, da.EDM()) for q in ("eps", "v")}
    assert len(names | {network.digest, network.model.digest}) == 5
    assert torch.allclose(network.carried_to(VP)(x, 0.3), network.model(x, 0.3), rtol=0, atol=1e-12)


def test_carrying_ends_where_the_network_does():
    network = network_of(VP, "eps")
    x = noise(1, 1, 2, 2, dtype=torch.float64)
    top = float(VP.rho(1.0))
    carried = network.carried_to(da.EDM())
    carried(x, 0.999 * min(top, 80.0))
    network = network_of(da.EDM(), "eps")
    for target, t in ((FLOW, 1.0), (FLOW, 0.999), (VP, 1e-6)):
        with pytest.raises(ValueError, match=rf"t={t!r} of {type(target).__name__}.* is no time of the network's EDM"):
            network.carried_to(target)(x, t)
    with pytest.raises(ValueError, match="prediction='nonsense' is unknown"):
        network.carried_to(FLOW, "nonsense")
    with pytest.raises(ValueError, match="reverts to a mean"):
        network.carried_to(da.MeanReverting(VP, 1.0))


# -- digests --------------------------------------------------------------------------------------
def test_digests_tell_networks_apart(tmp_path):
    ddim_folder(tmp_path / "one")
    ddim_folder(tmp_path / "other")
    one = learned.load(tmp_path / "one")
    assert one.digest == learned.load(tmp_path / "other").digest == one.model.digest
    assert len(one.digest) == 64
    assert int(one.digest, 16) > 0
    net = unet()
    weight = net.conv_in.weight.view(-1)
    weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))  # the smallest change there is
    net.save_pretrained(tmp_path / "other")
    assert learned.load(tmp_path / "other").digest != one.digest
    sign = unet()
    sign.conv_in.bias[0] = -sign.conv_in.bias[0]
    swapped = unet()
    swapped.conv_in.bias[:2] = swapped.conv_in.bias[[1, 0]]
    facts = {"process": one.process, "convention": T_EPS}
    found = [one.digest]
    found += [learned.load(net, **facts).digest for net in (sign, swapped, unet(act_fn="mish"), unet(freq_shift=1))]
    found += [
        learned.load(tmp_path / "one", **changes).digest
        for changes in (
            {"process": da.VPDiscrete(0.5 * one.process.alphas_cumprod)},
            {"process": da.VPLinear(), "convention": Convention("eps", scale=100.0)},
            {"convention": Convention("x0", scale=1.0)},
            {"convention": Convention("eps", scale=1.5)},
            {"convention": Convention("eps", scale=1.0, offset=1.0)},
            {"convention": Convention("eps", scale=1.0, state="normalised")},
            {"times": "nearest"},
            {"dtype": torch.float64},
        )
    ]
    labelled = ddim_folder(tmp_path / "labelled", unet(num_class_embeds=4))
    pairs = [(1, 1.0), (2, 1.0), (2, 1.5), ([1, 2], 1.0), ([2, 1], 1.0)]
    found += [learned.load(labelled, labels=labels, guidance=w).digest for labels, w in pairs]
    assert len(set(found)) == len(found)
    assert learned.load(labelled, labels=[1, 2]).digest == found[-2]


def test_digests_of_modules():
    facts = {"process": VP, "convention": T_EPS, "shape": (1, 8, 8)}
    assert learned.load(Small(), **facts).digest == learned.load(Small(), **facts).digest
    other = Small()
    other.w.data += 1
    assert learned.load(other, **facts).digest != learned.load(Small(), **facts).digest


# -- bad input ------------------------------------------------------------------------------------
def test_bad_specs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no network")
    facts = {"process": VP, "convention": T_EPS, "shape": (1, 8, 8)}
    for spec, changes, message in (
        (
            "digits9",
            {},
            r"spec='digits9': there is no such network, folder or file; nearest: digits8.*shipped: digits8",
        ),
        ("", {}, "spec='': there is no such"),
        (3, {}, "spec=3 is unknown; allowed: a shipped name, a folder"),
        (None, {}, "spec=None is unknown"),
        (str(tmp_path / "none"), {}, "there is no such network, folder or file"),
        (tmp_path / "none", {}, "there is no such folder or file"),
        ("some/none.pt", {}, "there is no such network, folder or file"),
        (tmp_path / "empty", {}, "spec='empty': the folder holds no config.json"),
        (tmp_path / "notes.txt", {}, "spec='notes.txt': allowed files are .pkl"),
        ("digits8", {"device": "cuda:77"}, "device='cuda:77' cannot be used here"),
        ("digits8", {"device": "tpu"}, "device='tpu' cannot be used here"),
        ("digits8", {"dtype": torch.int32}, "dtype=torch.int32; allowed: torch.float16"),
        ("digits8", {"dtype": "float32"}, "dtype='float32'; allowed"),
        ("digits8", {"process": 3}, "process=3 must be a Process"),
        ("digits8", {"process": da.MeanReverting(VP, 1.0)}, "reverts to a mean"),
        ("digits8", {"convention": "eps"}, "convention='eps' must be a Convention"),
        ("digits8", {"shape": (3, 8, 8)}, r"shape=\(3, 8, 8\): the network has 1 channels"),
        ("digits8", {"shape": (8, 8)}, r"shape=\(8, 8\); allowed: \(channels, height, width\)"),
        ("digits8", {"shape": (1, 0, 8)}, "shape=0 must be an integer >= 1"),
        ("digits8", {"shape": (1, 7, 7)}, r"'digits8' (does not answer to x|answers .* to x) of shape \(1, 1, 7, 7\)"),
        ("digits8", {"times": "round"}, "times='round' is unknown; .*Allowed: fractional, nearest, linear"),
        ("digits8", {"labels": 1}, "labels=1: the network is not class-conditional; allowed: None"),
        ("digits8", {"guidance": 2.0}, r"guidance=2\.0: the network is not class-conditional; allowed: 1\.0"),
        ("digits8", {"guidance": float("nan")}, "guidance=nan must be finite"),
        ("digits8", {"allow_pickle": 1}, "allow_pickle=1 must be True or False"),
        ("digits8", {"factory": Small}, "factory=.* is for files of weights"),
        (Small(), {}, "spec='Small' does not say all of itself; process=, convention=, shape= must be given"),
        (Small(), {**facts, "labels": 1}, "labels=1: the network is not class-conditional"),
        (lambda x, n: x[:, :, 1:], facts, r"'<lambda>' answers \(1, 1, 7, 8\) to x of shape \(1, 1, 8, 8\)"),
        (lambda x: x, facts, r"'<lambda>' does not answer to x of shape .*TypeError"),
        (Small(), {**facts, "process": da.EDM(), "times": "linear"}, "times='linear': the network is told σ"),
    ):
        with pytest.raises(ValueError, match=message):
            learned.load(spec, **changes)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' cannot be used here"):
            learned.load("digits8", device="cuda")
    with pytest.raises(ValueError, match="time='lambda' is unknown"):
        Convention("eps", time="lambda")
    network = learned.load("digits8")
    for shape in ((2, 3, 8, 8), (1, 8, 8), (2, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"x has shape .*; allowed: \(batch, 1, 8, 8\), channels first"):
            network.model(torch.zeros(shape), 0.5)
    with pytest.raises(ValueError, match=r"t has shape \(3,\); allowed: one time, or one for each of 2 samples"):
        network.model(torch.zeros(2, 1, 8, 8), torch.rand(3))
    with pytest.raises(ValueError, match=r"t=1\.5 is outside \[0, 1\]"):
        network.model(torch.zeros(2, 1, 8, 8), 1.5)
    with pytest.raises(ValueError, match="dtype=3; allowed"):
        network.to(dtype=3)
    with pytest.raises(ValueError, match="device='nowhere' cannot be used here"):
        network.to("nowhere")
    with pytest.raises(ValueError, match="times='nonsense' is unknown"):
        ImageModel(Small(), VP, T_EPS, "nonsense")


def test_bad_folders(tmp_path):
    def fresh(net=None) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return ddim_folder(folder, net)

    def changed(file: str, **values) -> Path:
        folder = fresh()
        old = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in {**old, **values}.items() if v != "gone"}))
        return folder

    weights = "diffusion_pytorch_model.safetensors"
    missing, cut, empty = fresh(), fresh(), fresh()
    (missing / weights).unlink()
    (cut / weights).write_bytes((cut / weights).read_bytes()[:-1000])
    (empty / weights).write_bytes(b"")
    bare = fresh()
    (bare / "scheduler_config.json").unlink()
    garbled, listed = fresh(), fresh()
    (garbled / "config.json").write_text("{")
    (listed / "config.json").write_text("[]")
    carded = fresh()
    (carded / "card.json").write_text(json.dumps({"process": {"name": "VPLinear"}}))
    odd = fresh()
    (odd / "card.json").write_text(
        json.dumps({"process": {"name": "VPLinear"}, "convention": {"prediction": "eps", "clock": "day"}})
    )
    for folder, message in (
        (missing, "the weights cannot be read"),
        (cut, "the weights cannot be read"),
        (empty, "the weights cannot be read"),
        (bare, "does not say all of itself; process=, convention= must be given"),
        (garbled, "config.json cannot be read"),
        (listed, "config.json is no JSON object"),
        (carded, "card.json lacks or misstates 'convention'"),
        (odd, "time='day' is unknown"),
        (changed("config.json", _class_name="UNet2DConditionModel"), "its network is a UNet2DConditionModel"),
        (changed("config.json", _class_name="gone"), "its network is a None"),
        (
            changed("config.json", num_class_embeds=4),
            r"the weights are not those of config\.json .*missing keys: class_emb",
        ),
        (changed("config.json", layers_per_block=2), "the weights cannot be read .*size mismatch"),
        (changed("config.json", in_channels=3), "the weights (cannot be read|are not those of config.json)"),
        (changed("config.json", norm_num_groups=3), "the weights cannot be read"),
        (changed("config.json", sample_size=None), "shape=None: config.json has no sample_size"),
        (changed("scheduler_config.json", prediction_type="noise"), "prediction_type='noise' is unknown.*epsilon"),
        (changed("scheduler_config.json", _class_name="DDIMSheduler"), "'DDIMSheduler' is unknown; nearest: .*DDIMSch"),
        (changed("scheduler_config.json", beta_schedule="nonsense"), "its DDIMScheduler cannot be made"),
        (fresh(unet(out_channels=3)), "1 channels in and 3 out"),
        (
            fresh(unet(num_class_embeds=4)),
            r"labels=None: the network is class-conditional; allowed: an integer 0 \.\.\. 3",
        ),
        (fresh(unet(class_embed_type="timestep")), "class_embed_type='timestep' of the network"),
    ):
        with pytest.raises(ValueError, match=message):
            learned.load(folder)
    assert learned.load(changed("config.json", sample_size=None), shape=(1, 16, 8)).shape == (1, 16, 8)
    assert learned.load(fresh(unet(out_channels=2))).model(noise(2, 1, 8, 8), 3.0).shape == (2, 1, 8, 8)
    labelled, dits = fresh(unet(num_class_embeds=4)), saved(tmp_path / "dit", dit())
    facts = {"process": VP, "convention": T_EPS}
    for folder, changes, message in (
        (labelled, {"labels": 4}, r"labels=4; allowed: an integer 0 \.\.\. 3, or one for each sample"),
        (labelled, {"labels": -1}, "labels=-1; allowed"),
        (labelled, {"labels": True}, "labels=True; allowed"),
        (labelled, {"labels": "cat"}, "labels='cat'; allowed"),
        (labelled, {"labels": [0, 1.5]}, r"labels=\[0, 1\.5\]; allowed"),
        (labelled, {"labels": []}, r"labels=\[\]; allowed"),
        (labelled, {"guidance": 2.0}, "labels=None: the network is class-conditional"),
        (labelled, {"labels": 1, "guidance": "much"}, "guidance='much'"),
        (dits, {"labels": 6, **facts}, r"labels=6; allowed: an integer 0 \.\.\. 5 \(5 for no class\)"),
        (dits, {"labels": 1, "shape": (2, 8, 16), **facts}, "'dit' (answers|does not answer)"),
    ):
        with pytest.raises(ValueError, match=message):
            learned.load(folder, **changes)


def test_without_the_shipped_networks_it_says_that_there_are_none(monkeypatch):
    monkeypatch.setattr(loading, "CHECKPOINTS", loading.CHECKPOINTS / "nowhere")
    assert learned.shipped() == {}
    with pytest.raises(ValueError, match=r"spec='digits8': there is no such.*shipped: none here"):
        learned.load("digits8")


def test_called_networks_keep_their_weights_names():
    """A network's digest does not tell whether it was wrapped: only what it answers does."""
    net = unet()
    assert {k.removeprefix("net.") for k in Called(net).state_dict()} == set(net.state_dict())


def test_shipped_networks_do_not_depend_on_the_folder_one_is_in(tmp_path):
    """An `experiments` package of the user's, first on the path, hid them once."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise RuntimeError('not ours')")
    code = "import deis_analysis as da; print(sorted(da.networks.shipped()), da.networks.load('digits8').shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['digits8', 'digits8_flow', 'mnist28'] (1, 8, 8)"
