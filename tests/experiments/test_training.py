"""Networks on images: what they are trained towards, that nothing is lost when training is killed, what is kept."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import deis_analysis as da
from deis_analysis.networks import (
    Convention,
    ImageModel,
    describe_process,
    equivalent_scheduler,
    process_from,
    save_folder,
    standard_convention,
)
from experiments.__main__ import main
from experiments.core import runner
from experiments.models.image_data import ImageSet, read_images
from experiments.training import train as command
from experiments.training.image_training import Plan, Training, denoising_loss, train_images

TINY = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8), "layers_per_block": 1,
    "norm_num_groups": 2, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"), "dropout": 0.1,
}  # fmt: skip
VP, FLOW = da.VPLinear(), da.RectifiedFlow()
SETTINGS = {"architecture": TINY, "steps": 30, "batch": 4, "learning_rate": 1e-2, "warmup": 3, "flip": True}
IMAGES = np.tanh(np.random.default_rng(0).standard_normal((12, 1, 8, 8))).astype(np.float32)
PAIRS = [
    (VP, "eps"), (VP, "x0"), (VP, "v"), (da.VPCosine(), "v"), (da.SubVP(), "eps"), (da.VE(), "eps"), (da.VE(), "x0"),
    (da.EDM(), "eps"), (da.EDM(), "x0"), (FLOW, "v"), (FLOW, "x0"), (FLOW, "eps"),
]  # fmt: skip


def plan(**changes) -> Plan:
    return Plan(**({"process": VP, "prediction": "eps", **SETTINGS} | changes))


def everything(training: Training) -> dict[str, torch.Tensor]:
    """All tensors of a training's state."""
    moments = training._optimizer.state_dict()["state"]
    return {
        **{f"net {k}": v for k, v in training.net.state_dict().items()},
        **{f"average {k}": v for k, v in training.averaged().state_dict().items()},
        **{f"{i} {k}": v for i, values in moments.items() for k, v in values.items()},
        "losses": torch.as_tensor(training.losses),
    }


def assert_equal(one: Training, other: Training) -> None:
    left, right = everything(one), everything(other)
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Training:
    training = Training(plan(), IMAGES)
    assert train_images(training, tmp_path_factory.mktemp("unbroken") / "state.pt", every=100)
    return training


# -- what is predicted ----------------------------------------------------------------------------
class Oracle(torch.nn.Module):
    """What is to be predicted on a data set of one image: ε = (x − αx₀)/σ, and what follows from it, in float64.

    It is a network: it sees the scaled input and the network time, and undoes both with formulas of its own.
    """

    def __init__(self, process, prediction, image, shift=0.0):
        super().__init__()
        self.config = {"sample_size": 8, "in_channels": 1}
        self.process, self.prediction, self.image, self.shift = process, prediction, torch.as_tensor(image), shift
        self.weights = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def levels(self, n):
        """(t, α, σ, dα/dt, dσ/dt) of network times: the processes by their definitions."""
        t = n.double() / 100
        if isinstance(self.process, da.EDM):
            sigma = 0.002 * (80.0 / 0.002) ** t  # geometric in the network time
            return sigma, torch.ones_like(t), sigma
        if isinstance(self.process, da.VE):
            return t, torch.ones_like(t), 0.01 * 5000.0**t
        if isinstance(self.process, da.RectifiedFlow):
            return t, 1 - t, t
        if isinstance(self.process, da.VPCosine):
            a = torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
            return t, a, torch.sqrt(1 - a * a)
        a = torch.exp(-0.05 * t - 0.25 * 19.9 * t * t)
        return t, a, 1 - a * a if isinstance(self.process, da.SubVP) else torch.sqrt(1 - a * a)

    def forward(self, seen, n, return_dict):
        assert not return_dict
        _, alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in self.levels(n))
        x = seen * torch.sqrt(1 + sigma**2) if isinstance(self.process, (da.VE, da.EDM)) else seen
        eps = (x - alpha * self.image) / sigma
        v = eps - self.image if isinstance(self.process, da.RectifiedFlow) else alpha * eps - sigma * self.image
        return ({"eps": eps, "x0": self.image.expand_as(x), "v": v}[self.prediction] + self.shift,)


@pytest.mark.parametrize(("process", "prediction"), PAIRS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_the_target_is_the_conditional_prediction(process, prediction):
    """On one image the loss of the exact prediction is 0, up to float32's rounding of x_t; shifted by c it is c²."""
    image = IMAGES[0].astype(np.float64)
    settings = plan(process=process, prediction=prediction)
    for shift in (0.0, 0.5):
        oracle = Oracle(process, prediction, image, shift)
        model = ImageModel(oracle, process, settings.convention)
        # ε and v are read off x with a division by σ, which multiplies the rounding 6e-8 |x| by up to 1/σ, 350 to 1000
        assert denoising_loss(model, image[None], settings, draws=64) == pytest.approx(
            shift**2, abs=1e-4 * (shift + 1e-4)
        )


@pytest.mark.parametrize(("process", "prediction"), PAIRS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_the_prediction_is_what_run_expects(process, prediction):
    """On one image the flow keeps ε, and DDIM is exact: x_s = α_s x₀ + σ_s (x_T − α_T x₀)/σ_T."""
    image = IMAGES[0].astype(np.float64)
    model = ImageModel(Oracle(process, prediction, image), process, standard_convention(process, prediction))
    ts = da.grid(process, 4, kind="t1")
    start = torch.as_tensor(np.random.default_rng(1).standard_normal((3, 1, 8, 8)) * float(process.sigma(ts[0])))
    with torch.no_grad():
        found = da.run(da.build("ddim", process, ts).in_terms_of(process, prediction), model, start)
    a, s = process.alpha(ts), process.sigma(ts)
    wanted = a[-1] * image + s[-1] * (start.numpy() - a[0] * image) / s[0]
    # network times are float64 here; α is recomputed from t = n/100, σ = √(1 − α²) cancels to 1e-10 at the end
    assert np.abs(found.numpy() - wanted).max() < 1e-9 * float(s[0])


def test_the_loss_is_a_mean_square_per_coordinate():
    """A network that answers 0 has the loss mean x₀² for x₀, 1 for ε up to sampling, their sum for the flow."""
    image = IMAGES[:1]
    square = float(np.mean(image**2))
    count = 64 * 4096
    for process, prediction, wanted in ((VP, "x0", square), (VP, "eps", 1.0), (FLOW, "v", 1.0 + square)):
        oracle = Oracle(process, "x0", np.zeros((1, 8, 8)))
        model = ImageModel(oracle, process, standard_convention(process, prediction))
        found = denoising_loss(model, image, plan(process=process, prediction=prediction), draws=4096)
        assert found == pytest.approx(wanted, abs=1e-6 if prediction == "x0" else 5 * math.sqrt(6.0 / count))
    uneven = plan(prediction="x0", batch=40)  # blocks of 5, 5 and 2 images
    zero = ImageModel(Oracle(VP, "x0", np.zeros((1, 8, 8))), VP, uneven.convention)
    assert denoising_loss(zero, IMAGES, uneven) == pytest.approx(float(np.mean(IMAGES.astype(float) ** 2)), rel=1e-6)
    again = denoising_loss(model, image, plan(process=FLOW, prediction="v"), draws=4096)
    other = denoising_loss(model, image, plan(process=FLOW, prediction="v"), draws=4096, seed=1)
    assert found == again != other


def test_training_reaches_the_exact_prediction():
    """One image, x₀ prediction: the answer is the image whatever x and t, and the network learns it."""
    settings = plan(prediction="x0", steps=60, flip=False, average=0.9, architecture=TINY | {"dropout": 0.0})
    training = Training(settings, IMAGES[:1])
    model = ImageModel(training.averaged(), VP, settings.convention)
    before = denoising_loss(model, IMAGES[:1], settings)
    while training.step < settings.steps:
        training.advance()
    model = ImageModel(training.averaged(), VP, settings.convention)
    assert denoising_loss(model, IMAGES[:1], settings) < 0.1 * before
    assert training.loss() == pytest.approx(training.losses[-50:].mean(), rel=1e-5)


# -- what a network is told -----------------------------------------------------------------------
class Ear(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, seen, n, return_dict):
        self.seen, self.n = seen, n
        return (seen,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_network_hears_its_time_and_sees_its_dtype(dtype):
    ear, x = Ear(dtype), torch.ones(3, 1, 8, 8, dtype=torch.float64)
    answer = ImageModel(ear, da.EDM(), standard_convention(da.EDM(), "eps"))(x, 0.7)
    told = 100 * math.log(0.7 / 0.002) / math.log(80 / 0.002)
    assert ear.n.shape == (3,)
    assert ear.n.numpy() == pytest.approx(told, rel=1e-12 if dtype == torch.float64 else 1e-7)
    assert ear.seen.dtype == dtype
    assert answer.dtype == torch.float64
    assert answer.numpy() == pytest.approx(1 / math.sqrt(1.49), rel=1e-3 if dtype == torch.float16 else 1e-7)
    times = torch.tensor([0.123, 0.5, 0.987])
    ImageModel(ear, VP, standard_convention(VP, "eps"))(x, times)
    assert ear.n.numpy() == pytest.approx(100 * times.numpy(), rel=1e-7)
    discrete = da.VPDiscrete(np.linspace(0.99, 0.01, 50))
    ImageModel(ear, discrete, standard_convention(discrete, "eps"))(x, 17.5)
    assert ear.n.tolist() == [17.5] * 3


# -- the law of a batch ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def idle() -> Training:
    return Training(plan(batch=16), IMAGES)


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**6))
def test_a_batch_is_a_function_of_seed_and_step(idle, seed, step):
    idle.plan, idle.step = replace(idle.plan, seed=seed), step
    (x0, t, key), (again, t_again, key_again) = idle._batch(), idle._batch()
    assert torch.equal(x0, again)
    assert np.array_equal(t, t_again)
    assert key == key_again
    known = np.concatenate([IMAGES, IMAGES[..., ::-1]])
    assert all((known == image.numpy()).all(axis=(1, 2, 3)).any() for image in x0)
    shares = (t - 1e-3) / (1 - 1e-3)
    assert np.array_equal(np.floor(16 * shares).astype(int), np.arange(16))  # one time in each sixteenth
    idle.step = step + 1
    assert idle._batch()[2] != key


def test_half_of_the_images_are_mirrored_and_all_are_drawn():
    training = Training(plan(batch=4000), IMAGES)
    for flip in (True, False):
        training.plan = plan(batch=4000, flip=flip)
        x0 = training._batch()[0].numpy()
        plain = (x0[:, None] == IMAGES[None]).all(axis=(2, 3, 4))
        share = plain.any(axis=1).mean()
        assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 4000) if flip else share == 1.0
        if not flip:
            expected = 4000 / len(IMAGES)
            assert np.abs(plain.sum(axis=0) - expected).max() < 5 * math.sqrt(expected)


def test_times_follow_their_law():
    shares = np.linspace(0, 1, 5)
    assert plan().times(shares) == pytest.approx(1e-3 + (1 - 1e-3) * shares, rel=1e-15)
    assert plan(process=FLOW, prediction="v").times(shares) == pytest.approx(shares, abs=0)
    edm = plan(process=da.EDM(), uniform_in="lam").times(shares)
    assert np.sort(edm) == pytest.approx(np.geomspace(0.002, 80.0, 5), rel=1e-12)


def test_training_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    training = Training(plan(), IMAGES)
    training.advance()
    denoising_loss(ImageModel(training.averaged(), VP, plan().convention), IMAGES, plan())
    assert torch.equal(torch.rand(3), wanted)


# -- updates --------------------------------------------------------------------------------------
def test_rate_warms_up_and_falls():
    cosine, constant = plan(steps=103, learning_rate=2.0), plan(steps=103, learning_rate=2.0, rate="constant")
    assert [cosine.rate_at(i) for i in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert cosine.rate_at(53) == pytest.approx(1.0)
    assert cosine.rate_at(103) == pytest.approx(0.0, abs=1e-15)
    assert [constant.rate_at(i) for i in (0, 3, 50, 102)] == pytest.approx([0.5, 2.0, 2.0, 2.0])


def test_first_updates_are_those_of_adam_on_clipped_gradients():
    """Adam's first update is rate · g/(|g| + 1e-8): at most the rate, and nearly the rate where g is not tiny."""
    training = Training(plan(clip=1e-3, learning_rate=0.04, warmup=3), IMAGES)
    before = {k: v.clone() for k, v in training.net.named_parameters()}
    training.advance()
    moved = torch.cat([(v - before[k]).abs().ravel() for k, v in training.net.named_parameters()])
    gradient = torch.cat([p.grad.ravel() for p in training.net.parameters()])
    assert gradient.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert moved.max().item() == pytest.approx(0.01, rel=1e-3)


def test_average_is_the_declared_recursion():
    """ā_n = d_n ā_{n−1} + (1 − d_n) w_n, d_1 = 0, d_n = min(d, n/(9 + n))."""
    training = Training(plan(average=0.3), IMAGES)
    average: dict = {}
    for n in range(1, 8):
        training.advance()
        d = 0.0 if n == 1 else min(0.3, n / (9 + n))
        for k, v in training.net.state_dict().items():
            average[k] = d * average.get(k, 0.0) + (1 - d) * v.double()
    found = training.averaged()
    for k, v in found.state_dict().items():
        assert torch.allclose(v.double(), average[k], rtol=1e-5, atol=1e-7), k
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert not torch.equal(found.conv_in.weight, training.net.conv_in.weight)


# -- killed and resumed ---------------------------------------------------------------------------
def train_in_a_process_of_its_own(path: Path, how: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    training = Training(plan(), IMAGES)
    if path.exists():
        training.resume(path)
    whole = torch.save

    def half(state, file):
        whole(state, file)
        if training.step > 12:
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "killed in the middle of a checkpoint":
        torch.save = half
    train_images(training, path, every=4, watch=lambda now: pipe.send(now.step))


def test_killed_at_any_moment_it_goes_on_with_nothing_lost(tmp_path, unbroken):
    """SIGKILL from outside between checkpoints, then in the middle of writing one: the same state, bit for bit."""
    path, context = tmp_path / "state.pt", runner.start_method()

    def started(how):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=train_in_a_process_of_its_own, args=(path, how, sender), daemon=True)
        process.start()
        sender.close()
        return process, receiver

    process, steps = started("killed from outside")
    while steps.recv() != 6:
        pass
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = torch.load(path, weights_only=True)["step"]
    assert first % 4 == 0
    assert 4 <= first < 30
    process, steps = started("killed in the middle of a checkpoint")
    assert steps.recv() == first + 1
    with contextlib.suppress(EOFError):
        while True:
            steps.recv()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = Training(plan(), IMAGES)
    again.resume(path)
    assert again.step == max(first, 12)
    assert train_images(again, path, every=4)
    assert_equal(again, unbroken)


def test_stopped_it_is_saved_where_it_stands(tmp_path, unbroken):
    path = tmp_path / "state.pt"
    path.with_name(".state.pt.1.tmp").write_bytes(b"half of what a killed process saved")
    first = Training(plan(), IMAGES)
    assert not train_images(first, path, every=100, watch=lambda now: now.step == 7)
    again = Training(plan(), IMAGES)
    again.resume(path)
    assert again.step == 7
    assert_equal(again, first)
    assert not list(tmp_path.glob(".*.tmp"))
    other = Training(plan(seed=1), IMAGES)
    for _ in range(7):
        other.advance()
    assert not torch.equal(other.net.conv_in.weight, first.net.conv_in.weight)


# -- the folder -----------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [VP, da.VPCosine(0.01), da.SubVP(), da.VE(0.02), da.EDM(), FLOW])
def test_processes_are_described(process):
    again = process_from(json.loads(json.dumps(describe_process(process))))
    assert again == process
    assert type(again) is type(process)


def test_discrete_processes_are_described():
    process = da.VPDiscrete(np.linspace(0.99, 0.01, 50))
    again = process_from(json.loads(json.dumps(describe_process(process))))
    assert np.array_equal(again.alphas_cumprod, process.alphas_cumprod)


@pytest.mark.parametrize(
    ("process", "prediction"), [(VP, "eps"), (VP, "x0"), (da.VPCosine(), "v"), (FLOW, "v")], ids=lambda v: str(v)[:9]
)
def test_the_scheduler_of_the_folder_samples_the_same_images(tmp_path, unbroken, process, prediction):
    """diffusers' DDIM and flow Euler from the folder alone, and our tables, on the saved network."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

    convention = standard_convention(process, prediction)
    save_folder(tmp_path, unbroken.averaged(), process, convention, {})
    net = UNet2DModel.from_pretrained(tmp_path).eval().requires_grad_(False)
    assert torch.equal(net.conv_in.weight, unbroken.averaged().conv_in.weight)
    kind = FlowMatchEulerDiscreteScheduler if process == FLOW else DDIMScheduler
    scheduler = kind.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    x = start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for n in scheduler.timesteps:
        x = scheduler.step(net(x, n).sample, n, x, return_dict=False)[0]
    told = np.append(np.asarray(scheduler.timesteps, dtype=float), 0.0)  # the last step ends at the data
    ts = told / 100
    name = "flow_euler" if process == FLOW else "ddim"
    table = da.build(name, process, ts).in_terms_of(process, prediction)
    ours = da.run(table, ImageModel(net, process, convention), start)
    steps = np.linspace(100, 1, 5) if process == FLOW else np.arange(99, 0, -20)
    assert told[:-1] == pytest.approx(steps, rel=1e-6)
    # diffusers multiplies 100 float32 factors: relative error up to 1e-5 of a small α
    assert float((ours - x).abs().max()) < 2e-4 * float(x.abs().max())


def test_no_scheduler_is_claimed_where_there_is_none():
    for process in (da.VE(), da.EDM(), da.SubVP()):
        scheduler, note = equivalent_scheduler(process, standard_convention(process, "eps"))
        assert scheduler is None
        assert "no scheduler" in note
    assert equivalent_scheduler(FLOW, Convention("v", scale=99.5))[0] is None


# -- data -----------------------------------------------------------------------------------------
def write_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (8, 8), mode: str = "L") -> np.ndarray:
    folder.mkdir(exist_ok=True)
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], *channels), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    return pixels


def test_digits_are_those_of_the_experiments():
    from experiments.models.problems import digits

    found = read_images("digits")
    whole = np.empty((1797, 1, 8, 8))
    out = np.arange(1797) % 10 == 9
    whole[~out], whole[out] = found.train, found.held_out
    assert np.array_equal(whole.reshape(1797, 64), digits())
    assert found.shape == (1, 8, 8)
    assert found.train.dtype == np.float32


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_pictures(tmp_path, mode):
    pixels = write_pictures(tmp_path, 120, (12, 8), mode)
    found = read_images(str(tmp_path))
    assert found.shape == (1 if mode == "L" else 3, 8, 12)
    assert (len(found.train), len(found.held_out)) == (108, 12)
    whole = np.concatenate([found.train[:9], found.held_out[:1]])
    wanted = pixels[:10, None] if mode == "L" else pixels[:10].transpose(0, 3, 1, 2)
    assert np.abs((whole + 1) * 127.5 - wanted).max() < 1e-4


def test_mnist_in_its_formats(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    head = b"\0\0\x08\x03" + np.array([5, 28, 28], ">i4").tobytes()
    for name, files in {
        "ours": {"mnist.npz": {"train_images": pixels, "test_images": pixels[:2]}},
        "keras": {"mnist.npz": {"x_train": pixels, "x_test": pixels[:2]}},
        "idx": {
            "train-images-idx3-ubyte": head + pixels.tobytes(),
            "t10k-images-idx3-ubyte.gz": head + pixels.tobytes(),
        },
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            if isinstance(content, dict):
                np.savez(folder / file, **content)
            else:
                (folder / file).write_bytes(gzip.compress(content) if file.endswith("gz") else content)
        found = read_images("mnist", folder)
        assert np.abs((found.train[:, 0] + 1) * 127.5 - pixels).max() < 1e-4, name
        assert len(found.held_out) == (5 if name == "idx" else 2)


def test_cifar10_in_its_formats(tmp_path):
    pixels = np.full((2, 32, 32, 3), 100, np.uint8)
    pixels[1] = (200, 50, 0)  # of one colour, which JPEG keeps to a level or two
    raw = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        raw.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, raw)])
    (tmp_path / "jpeg").mkdir()
    for part in ("train", "test"):
        packed = np.frombuffer(b"".join(raw), np.uint8)
        np.savez(tmp_path / "jpeg" / f"cifar10_{part}_jpeg.npz", bytes=packed, offsets=offsets, labels=np.zeros(2))
    (tmp_path / "binary").mkdir()
    records = b"".join(b"\1" + p.transpose(2, 0, 1).tobytes() for p in pixels)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / "binary" / name).write_bytes(records)
    for kind, tolerance, count in (("jpeg", 3.0, 2), ("binary", 1e-4, 10)):
        found = read_images("cifar10", tmp_path / kind)
        assert len(found.train) == count
        assert np.abs((found.train[:2] + 1) * 127.5 - pixels.transpose(0, 3, 1, 2)).max() < tolerance


# -- the command ----------------------------------------------------------------------------------
def call(*args: object):
    return CliRunner().invoke(main, ["train", *map(str, args)])


@pytest.fixture
def tiny(monkeypatch):
    size = {k: v for k, v in TINY.items() if k not in ("sample_size", "in_channels", "out_channels")}
    settings = {"folder": None, "architecture": size, "steps": 10, "batch": 4, "learning_rate": 1e-3}
    monkeypatch.setitem(command.PRESETS, "folder", settings)
    monkeypatch.setattr(command, "_SAMPLES", 4)
    monkeypatch.setattr(command, "_CALLS", 4)
    return settings


def test_the_folder_is_complete_and_made_once(tmp_path, tiny):
    from diffusers import UNet2DModel

    write_pictures(tmp_path / "pictures", 100)
    out = tmp_path / "out"
    options = ("--data", tmp_path / "pictures", "--out", out, "--seed", 3)
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert "out: 10 steps, loss" in result.output
    assert "on held-out images" in result.output
    names = {"config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json", "card.json", "samples.png"}
    assert {p.name for p in out.iterdir()} == names
    card = json.loads((out / "card.json").read_text())
    assert card["data"] == card["data"] | {
        "name": "pictures", "licence": "unknown", "images": 90, "held_out": 10, "shape": [1, 8, 8],
    }  # fmt: skip
    assert card["training"] == card["training"] | {
        "steps": 10, "batch": 4, "seed": 3, "learning_rate": 1e-3, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    assert card["process"] == {"name": "VPLinear", "beta_min": 0.1, "beta_max": 20.0}
    assert card["convention"] == {
        "prediction": "eps", "clock": "t", "scale": 100.0, "offset": 0.0, "normalised": False,
    }  # fmt: skip
    assert card["scheduler"]["class"] == "DDIMScheduler"
    assert set(card["versions"]) == {"python", "deis_analysis", "torch", "diffusers", "safetensors", "numpy"}
    assert str(tmp_path) not in (out / "card.json").read_text()
    net = UNet2DModel.from_pretrained(out)
    assert card["network"] == {"class": "UNet2DModel", "parameters": net.num_parameters(), "dtype": "float32"}
    assert card["command"].endswith("--prediction eps --seed 3 --dtype float32 --device cpu")
    settings = command.make_plan(read_images(str(tmp_path / "pictures")), VP, "eps", {**tiny, "seed": 3})
    training = Training(settings, read_images(str(tmp_path / "pictures")).train)
    train_images(training, tmp_path / "state.pt")
    assert torch.equal(training.averaged().conv_in.weight, net.conv_in.weight)
    model = ImageModel(net.eval(), VP, settings.convention)
    held_out = read_images(str(tmp_path / "pictures")).held_out
    assert card["loss"]["held_out_images"] == pytest.approx(denoising_loss(model, held_out, settings), rel=1e-6)
    assert card["loss"]["last_tenth_of_steps"] == pytest.approx(float(training.losses[-1]), rel=1e-6)

    files = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    kept = call(*options)
    assert kept.exit_code == 0
    assert "finished and kept" in kept.output
    assert files == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    changed = call(*options, "--steps", 11)
    assert changed.exit_code == 2
    assert "steps=11 was 10; --fresh replaces it" in changed.output
    changed = call(*options, "--prediction", "x0")
    assert "changed: convention={'prediction': 'x0'" in changed.output
    write_pictures(tmp_path / "pictures", 101)
    assert "changed: the images" in call(*options).output
    fresh = call(*options, "--fresh", "--process", "RectifiedFlow", "--prediction", "flow")
    assert fresh.exit_code == 0, fresh.output
    card = json.loads((out / "card.json").read_text())
    assert card["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert card["convention"]["prediction"] == "v"


def test_interrupted_it_saves_and_says_so(tmp_path, tiny, monkeypatch):
    write_pictures(tmp_path / "pictures")
    options = ("--data", tmp_path / "pictures", "--out", tmp_path / "out")
    save = command.save_picture
    monkeypatch.setattr(command, "save_picture", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    stopped = call(*options)
    assert stopped.exit_code == 130
    said = "interrupted: out is kept at step 2 of 10, its averaged weights in so_far; the same command goes on"
    assert said in stopped.output
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["so_far", "training.pt"]
    weights = torch.load(tmp_path / "out" / "training.pt", weights_only=True)["average"]["shadow_params"]
    so_far = da.learned.load(tmp_path / "out" / "so_far")
    assert so_far.card["unfinished"] == {"step": 2, "of": 10}
    for found, wanted in zip(so_far.model.net.parameters(), weights, strict=True):
        assert torch.allclose(found, wanted.float(), atol=1e-6)
    other = call(*options, "--batch", 5)
    assert other.exit_code == 2
    assert "changed: batch=5 was 4; --fresh starts over" in other.output
    monkeypatch.setattr(command, "save_picture", save)
    done = call(*options)
    assert "out: going on from step 2" in done.output
    assert "out: 10 steps" in done.output
    assert not (tmp_path / "out" / "so_far").exists()
    assert call("--data", tmp_path / "pictures", "--out", tmp_path / "whole").exit_code == 0
    names = ("diffusion_pytorch_model.safetensors", "samples.png", "card.json")
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


def test_it_stops_after_the_minutes_it_is_given(tmp_path, tiny):
    write_pictures(tmp_path / "pictures")
    stopped = call("--data", tmp_path / "pictures", "--out", tmp_path / "out", "--minutes", 1e-6)
    assert stopped.exit_code == 130
    assert "out is kept at step 1 of 10" in stopped.output
    assert call("--data", tmp_path / "pictures", "--out", tmp_path / "out", "--minutes", 60).exit_code == 0


def test_half_precision_is_measured(tmp_path, tiny, unbroken):
    from safetensors.torch import load_file

    write_pictures(tmp_path / "pictures")
    tiny["half"] = True
    assert call("--data", tmp_path / "pictures", "--out", tmp_path / "out").exit_code == 0
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in weights.values()} == {torch.float16}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["network"]["dtype"] == "float16"
    assert card["loss"]["held_out_images"] is None
    loss, rounded = card["loss"]["training_images"], card["loss"]["float16_weights"]
    assert rounded == pytest.approx(loss, rel=1e-2)
    assert rounded != loss
    net = unbroken.averaged()
    save_folder(tmp_path, net, VP, standard_convention(VP, "eps"), {}, half=True)
    assert next(net.parameters()).dtype == torch.float32


def test_losses_are_measured_on_images_of_all_kinds():
    """Data sets are often sorted: what is measured is spread over all of it."""
    for n, count in ((25, 10), (10_000, 1000), (7, 1000), (1001, 1000)):
        found = command._spread(np.arange(n), count)
        assert len(set(np.diff(found))) <= 1
        assert found[0] == 0
        assert n - 1 - found[-1] < max(1, n / len(found))
        assert n / (1 + math.ceil(n / count)) < len(found) <= count


def test_presets_fit_their_data():
    from diffusers import UNet2DModel

    for data, shape, most in (("digits", (1, 8, 8), 1e6), ("mnist", (1, 28, 28), 4e6), ("cifar10", (3, 32, 32), 2e7)):
        blank = np.zeros((1, *shape), np.float32)
        images = ImageSet("blank", blank, blank[:0], "none", "blank")
        settings = command.make_plan(images, VP, "eps", command.preset(data))
        with torch.device("meta"):
            net = UNet2DModel(**settings.architecture)
        assert 3e5 < sum(p.numel() for p in net.parameters()) < most, data
        assert (
            command.output_folder(data, settings).name
            == {"digits": "digits8", "mnist": "mnist28", "cifar10": "cifar32"}[data]
        )
    flow = command.make_plan(images, FLOW, "flow", command.preset("digits"))
    assert command.output_folder("digits", flow).name == "digits8_flow"


# -- bad input ------------------------------------------------------------------------------------
def test_bad_options_are_usage_errors(tmp_path, tiny):
    pictures = tmp_path / "pictures"
    write_pictures(pictures)
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    write_pictures(mixed)
    Image.new("L", (9, 8)).save(mixed / "z.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    write_pictures(tmp_path / "odd", 3, (9, 8))
    out = ("--out", tmp_path / "out")
    for options, message in (
        (("--data", "digitz"), "data='digitz' is unknown; allowed: digits, mnist, cifar10, or a folder of images"),
        (("--data", tmp_path / "empty"), "data='empty': the folder holds no images; allowed: .png"),
        (("--data", mixed), "data='mixed': z.png is 9 x 8, 000.png is 8 x 8; allowed: images of one size"),
        (("--data", broken), "data='broken': a.png cannot be read as an image"),
        (("--data", tmp_path / "odd"), "the images are 9 x 8; allowed: multiples of 2"),
        (("--data", "mnist"), "--data mnist needs --data-root"),
        (("--data", "mnist", "--data-root", pictures), "neither mnist.npz nor train-images-idx3-ubyte[.gz] is there"),
        (
            ("--data", "cifar10", "--data-root", pictures),
            "neither cifar10_train_jpeg.npz nor data_batch_1.bin is there",
        ),
        (("--data", pictures, "--process", "VPLiner"), "'VPLiner' is unknown; nearest: VPLinear"),
        (("--data", pictures, "--prediction", "score"), "'score' is not one of"),
        (("--data", pictures, "--prediction", "flow"), "prediction='flow' is the velocity of RectifiedFlow"),
        (("--data", pictures, "--process", "VE", "--prediction", "v"), "prediction='v' is σ̇ε on VE"),
        (("--data", pictures, "--steps", 0), "0 is not in the range"),
        (("--data", pictures, "--dtype", "bf16"), "precision='bf16' needs CUDA; device='cpu'"),
        (("--data", pictures, "--device", "cuda:77"), "device='cuda:77' cannot be used here"),
        (("--data", pictures, "--device", "tpu"), "device='tpu' cannot be used here"),
    ):
        result = call(*options, *out)
        assert result.exit_code == 2, (options, result.output, result.exception)
        shown = " ".join(result.output.replace("│", " ").split())
        assert message in shown, (options, shown)
    assert "needs --out" in call("--data", pictures).output
    assert not (tmp_path / "out").exists()


def test_bad_plans_and_images():
    for change, message in (
        ({"process": 3}, "process=3 must be a Process"),
        ({"process": da.MeanReverting(VP, 1.0)}, "reverts to a mean"),
        ({"prediction": "score"}, "prediction='score' is unknown"),
        ({"architecture": 3}, "architecture=3 must be a dict"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"rate": "linear"}, "rate='linear' is unknown"),
        ({"average": 1.0}, "average=1.0 must be below 1"),
        ({"uniform_in": "rho"}, "uniform_in='rho' is unknown"),
        ({"flip": 1}, "flip=1 must be True or False"),
        ({"precision": "fp8"}, "precision='fp8' is unknown"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(**change)
    for settings, images, message in (
        (plan(), IMAGES[0], r"images have shape \(1, 8, 8\); the architecture allows \(n, 1, 8, 8\)"),
        (plan(), IMAGES[:0], r"images have shape \(0, 1, 8, 8\)"),
        (plan(), np.repeat(IMAGES, 3, axis=1), r"images have shape \(12, 3, 8, 8\)"),
        (plan(), IMAGES * np.nan, "images must be finite"),
        (plan(compiled=True), IMAGES, "compiled=True needs CUDA"),
        (plan(architecture=TINY | {"norm_num_groups": 3}), IMAGES, "is not one of UNet2DModel"),
        (plan(architecture=TINY | {"nonsense": 3}), IMAGES, "is not one of UNet2DModel: .*nonsense"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(settings, images)
    with pytest.raises(ValueError, match=r"scale=0\.0 must not be 0"):
        Convention("eps", scale=0.0)
    with pytest.raises(ValueError, match="process='Nonsense' is unknown"):
        process_from({"name": "Nonsense"})
    with pytest.raises(ValueError, match="unexpected keyword argument 'beta'"):
        process_from({"name": "VPLinear", "beta": 3.0})
    with pytest.raises(ValueError, match="process='MeanReverting' is unknown"):
        describe_process(da.MeanReverting(VP, 1.0))


def test_bad_checkpoints(tmp_path, unbroken):
    path = tmp_path / "state.pt"
    unbroken.save(path)
    for changes, images, message in (
        ({"steps": 31, "seed": 2}, IMAGES, "changed: steps=31 was 30; seed=2 was 0"),
        ({"process": da.VPLinear(0.1, 19.0)}, IMAGES, "changed: process="),
        ({}, IMAGES[1:], "changed: the images"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(plan(**changes), images).resume(path)
    path.write_bytes(path.read_bytes()[:5000])
    for file in (path, tmp_path / "missing.pt"):
        with pytest.raises(ValueError, match=f"the checkpoint {file.name} cannot be read"):
            Training(plan(), IMAGES).resume(file)
    with pytest.raises(ValueError, match="every=0"):
        train_images(unbroken, path, every=0)
    training = Training(plan(learning_rate=1e30), IMAGES)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: learning_rate=1e\+30 may be too large"):
        train_images(training, path, every=5)
