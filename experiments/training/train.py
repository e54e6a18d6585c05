"""``python -m experiments train``: a network of diffusers on images, resumable, with its card and its samples.

The result is a folder as diffusers writes it, ``config.json`` and ``diffusion_pytorch_model.safetensors`` (averaged
weights), ``scheduler_config.json`` where diffusers has the process, and beside it ``card.json`` and ``samples.png``.
While the training runs its state is in ``training.pt``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import deis_analysis as da
from deis_analysis.cli import ProcessType
from deis_analysis.process.process import Process
from deis_analysis.storage import prepared
from experiments.core.paths import CHECKPOINTS
from experiments.models.problems import start_scale

if TYPE_CHECKING:
    from deis_analysis.networks import ImageModel
    from experiments.models.image_data import ImageSet
    from experiments.training.image_training import Plan, Training

STATE = "training.pt"
SO_FAR = "so_far"  # folder of the averaged weights of a training that was stopped
_CALLS, _SAMPLES, _PICTURES = 20, 64, 5  # of the sampler, of images, of grids in a training
_APART = ("process", "prediction", "convention", "architecture")  # of a plan, what the card does not list as training
_MEASURED = 1000  # images at most that a loss of the card is measured on


def unet(channels: tuple[int, ...], layers: int, groups: int, attention: tuple[int, ...] = (), **more: Any) -> Any:
    """Arguments of ``UNet2DModel``: channels of the levels, and on which levels, counted from 0, there is attention."""
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(channels))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        **more,
    }


_SMALL = unet((32, 48), 1, 8, attention_head_dim=16)
_GREY = unet((16, 32, 64), 1, 8, attention=(2,), attention_head_dim=16)
_MIDDLE = unet((32, 64, 96), 1, 8, attention=(2,), attention_head_dim=16)
_LARGE = unet((96, 192, 192, 160), 2, 32, attention=(1,), attention_head_dim=32, dropout=0.1)
PRESETS: dict[str, dict[str, Any]] = {  # folder: for images that are none of the others
    "digits": {"folder": "digits8", "architecture": _SMALL, "steps": 6000, "batch": 64, "learning_rate": 2e-3}
    | {"warmup": 200, "average": 0.999},
    "mnist": {"folder": "mnist28", "architecture": _GREY, "steps": 9000, "batch": 64, "learning_rate": 2e-3}
    | {"warmup": 300, "average": 0.999},
    "cifar10": {"folder": "cifar32", "architecture": _LARGE, "steps": 200_000, "batch": 256, "learning_rate": 4e-4}
    | {"warmup": 2000, "average": 0.9999, "flip": True, "half": True},
    "folder": {"folder": None, "architecture": _MIDDLE, "steps": 20_000, "batch": 64, "learning_rate": 5e-4}
    | {"warmup": 500, "average": 0.999},
}


def preset(data: str) -> dict[str, Any]:
    """The settings of `PRESETS` for ``--data``."""
    return PRESETS[data if data in PRESETS else "folder"]


def make_plan(images: ImageSet, process: Process, prediction: str, settings: dict[str, Any]) -> Plan:
    """The plan for images; ``settings`` as in `PRESETS`, and ``seed``, ``precision`` and ``compiled``."""
    from experiments.training.image_training import Plan

    channels, height, width = images.shape
    architecture = {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        **settings["architecture"],
    }
    factor = 2 ** (len(architecture["block_out_channels"]) - 1)
    if height % factor or width % factor:
        raise ValueError(f"the images are {width} x {height}; allowed: multiples of {factor}")
    if prediction == "flow":
        if not isinstance(process, da.RectifiedFlow):
            raise ValueError(f"prediction='flow' is the velocity of RectifiedFlow; process={process!r}")
        prediction = "v"
    others = {k: v for k, v in settings.items() if k not in ("folder", "half", "architecture")}
    return Plan(process, prediction, architecture, **others)


def output_folder(data: str, plan: Plan) -> Path:
    """Where a preset's network is kept: digits8 for ε on VPLinear, digits8_flow, digits8_x0_EDM ..."""
    name = preset(data)["folder"]
    if name is None:
        raise ValueError(f"--data {data} needs --out, the folder where the network goes")
    if isinstance(plan.process, da.RectifiedFlow) and plan.prediction == "v":
        return CHECKPOINTS / f"{name}_flow"
    if plan.process == da.VPLinear():
        return CHECKPOINTS / (name if plan.prediction == "eps" else f"{name}_{plan.prediction}")
    return CHECKPOINTS / f"{name}_{plan.prediction}_{type(plan.process).__name__}"


# -- results --------------------------------------------------------------------------------------
def draw_samples(model: ImageModel, shape: tuple[int, int, int], seed: int = 0, device: Any = "cpu") -> Any:
    """(64, channels, height, width) samples of tab3 on the network's own prediction: 20 calls, grid t2, float32."""
    import torch

    process, start = model.process, model.process.sampling_range[0]
    table = da.build("tab3", process, da.grid(process, _CALLS, kind="t2"))
    table = table.in_terms_of(process, model.convention.prediction)
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that all devices start alike
    noise = torch.randn(_SAMPLES, *shape, generator=generator).to(device)
    with torch.no_grad():
        return da.run(table, model, noise * start_scale(process, start))


def save_picture(samples: Any, path: Path) -> None:
    """A square of images in [-1, 1], grey or RGB, as PNG."""
    import numpy as np
    from PIL import Image

    count, channels, height, width = samples.shape
    side = math.isqrt(count)
    levels = np.clip(127.5 * (samples[: side * side].float().cpu().numpy() + 1.0), 0.0, 255.0).round().astype(np.uint8)
    padded = np.pad(levels, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255)
    rows = padded.reshape(side, side, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(rows.reshape(side * (height + 1), side * (width + 1), channels).squeeze())
    zoom = max(1, 512 // picture.width)
    picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST).save(path)


def describe(training: Training, images: ImageSet, model: ImageModel, half: bool, command: str) -> dict[str, Any]:
    """The part of the card that `save_folder` does not write. No date, no place, no time taken."""
    import torch

    from deis_analysis.networks import ImageModel
    from experiments.training.image_training import denoising_loss

    plan = training.plan
    others = _spread(images.held_out, _MEASURED)
    some = _spread(images.train, len(others) or _MEASURED)
    held_out = denoising_loss(model, others, plan) if len(others) else None
    sizes = {"images": len(images.train), "held_out": len(images.held_out), "shape": list(images.shape)}
    settings = {k: v for k, v in plan.describe().items() if k not in _APART}
    where = torch.cuda.get_device_name(training.device) if training.device.type == "cuda" else "cpu"
    used = {name: version(name) for name in ("torch", "diffusers", "safetensors", "numpy")}
    card: dict[str, Any] = {
        "command": command,
        "data": {"name": images.name, "licence": images.licence, **sizes, "scaling": "grey levels to [-1, 1]"}
        | {"split": images.note, "sha256": training.digest},
        "training": {
            **settings,
            "device": where,
            "threads": torch.get_num_threads(),
            "objective": "mean square error of the prediction",
        },
        "loss": {
            "last_tenth_of_steps": training.loss(max(1, plan.steps // 10)),
            "training_images": denoising_loss(model, some, plan),
            "held_out_images": held_out,
            "note": f"per coordinate; on {len(some)} images of each kind: of the averaged weights, at 8 times each",
        },
        "versions": {"python": platform.python_version(), "deis_analysis": da.__version__, **used},
    }
    if half:
        rounded = ImageModel(copy.deepcopy(model.net).half().float(), plan.process, plan.convention)
        card["loss"]["float16_weights"] = denoising_loss(rounded, some, plan)
    return card


def _spread(images: Any, count: int) -> Any:
    """At most ``count`` images, evenly spaced: data sets are often sorted by what they show."""
    return images[:: max(1, math.ceil(len(images) / count))]


def finish(training: Training, images: ImageSet, folder: Path, half: bool, command: str) -> None:
    """Write the folder of a training that is over, and remove its state."""
    from deis_analysis.networks import ImageModel, save_folder

    plan = training.plan
    model = ImageModel(training.averaged(), plan.process, plan.convention)
    save_picture(draw_samples(model, images.shape, device=training.device), folder / "samples.png")
    card = describe(training, images, model, half, command)
    save_folder(folder, model.net, plan.process, plan.convention, card, half)
    (folder / STATE).unlink(missing_ok=True)


def save_so_far(training: Training, folder: Path, half: bool) -> None:
    """The averaged weights of an unfinished training, as a folder that `learned.load` reads."""
    from deis_analysis.networks import save_folder

    plan = training.plan
    card = {"unfinished": {"step": training.step, "of": plan.steps}, "training": plan.describe(),
            "loss": {"last_tenth_of_steps": training.loss(max(1, training.step // 10))}}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_folder(folder, training.averaged(), plan.process, plan.convention, card, half)


# -- the command ----------------------------------------------------------------------------------
@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come; a second one acts at once."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(
    training: Training, images: ImageSet, folder: Path, console: Console, every: int, minutes: float | None
) -> bool:
    """Train with a progress bar and pictures; True at the end, False after Ctrl-C or so many minutes."""
    from deis_analysis.networks import ImageModel
    from experiments.training.image_training import train_images

    plan, begin, first = training.plan, time.perf_counter(), training.step
    columns = (
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}, {task.fields[speed]:.0f} images/s,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar, _asked_to_stop() as stop:
        row = bar.add_task("", total=plan.steps, completed=first, loss=float("nan"), speed=0.0)

        def watch(now: Training) -> bool:
            if now.step % 10 == 0 or now.step == plan.steps:  # reading the loss waits for the device
                speed = (now.step - first) * plan.batch / (time.perf_counter() - begin)
                bar.update(row, completed=now.step, loss=now.loss(), speed=speed)
                if not console.is_terminal and now.step % max(10, plan.steps // 20) == 0:
                    left = (plan.steps - now.step) * plan.batch / speed / 60
                    said = f"loss {now.loss():.4f}, {speed:.0f} images/s, {left:.0f} min left"
                    console.print(f"step {now.step} of {plan.steps}: {said}", markup=False)
            if now.step % max(1, plan.steps // _PICTURES) == 0 and now.step < plan.steps:
                model = ImageModel(now.averaged(), plan.process, plan.convention)
                save_picture(draw_samples(model, images.shape, device=now.device), folder / "samples.png")
            return stop() or (minutes is not None and time.perf_counter() - begin > 60.0 * minutes)

        return train_images(training, folder / STATE, every=every, watch=watch)


def _finished(folder: Path, plan: Plan, digest: str) -> bool:
    """Whether the folder holds the network of this plan; ValueError if it holds another one."""
    if not all((folder / name).is_file() for name in ("card.json", "config.json")):
        return False
    card, network = (json.loads((folder / name).read_text()) for name in ("card.json", "config.json"))
    described = plan.describe()
    pairs = [(k, v, card["training"].get(k)) for k, v in described.items() if k not in _APART]
    pairs += [(k, described[k], card[k]) for k in ("process", "convention")]
    pairs += [(k, v, network.get(k)) for k, v in described["architecture"].items()]
    changed = [f"{name}={new!r} was {old!r}" for name, new, old in pairs if new != old]
    if card["data"]["sha256"] != digest:
        changed.append("the images")
    if changed:
        raise ValueError(f"{folder.name} holds another network; changed: {'; '.join(changed)}; --fresh replaces it")
    return True


def _command(data: str, process: Process, prediction: str, options: dict[str, Any]) -> str:
    """The command that makes the network again, places left out."""
    from deis_analysis.networks import describe_process

    values = describe_process(process)
    name = values.pop("name")
    written = ":".join([name, ",".join(f"{k}={v!r}" for k, v in values.items())]).rstrip(":")
    options = {"data": shlex.quote(Path(data).name), "process": written, "prediction": prediction, **options}
    return " ".join(["python -m experiments train", *(f"--{k} {v}" for k, v in options.items())])


@click.command("train")
@click.option("--data", required=True, help="digits, mnist, cifar10, or a folder of images of one size.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where the files of mnist or cifar10 lie.")
@click.option("--process", type=ProcessType(), default="VPLinear", show_default=True, help="NAME[:key=value,...].")
@click.option("--prediction", type=click.Choice(["eps", "x0", "v", "flow"]), default="eps", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder (default: in checkpoints/).")
@click.option("--steps", type=click.IntRange(min=1), help="Updates (default: the data's preset).")
@click.option("--batch", type=click.IntRange(min=1), help="Images in each (default: the data's preset).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--dtype", type=click.Choice(["float32", "bf16"]), help="Default: bf16 on CUDA, float32 on the CPU.")
@click.option("--every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps per checkpoint.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long, kept as after Ctrl-C."
)
@click.option("--resume/--fresh", default=True, help="Go on from the checkpoint in --out (default), or start over.")
def train_command(
    data: str,
    data_root: Path | None,
    process: Process,
    prediction: str,
    out: Path | None,
    steps: int | None,
    batch: int | None,
    seed: int,
    device: str,
    dtype: str | None,
    every: int,
    minutes: float | None,
    resume: bool,
) -> None:
    """Train a network on images. Killed or interrupted, the same command goes on where the last checkpoint was."""
    from experiments.models.image_data import read_images
    from experiments.training.image_training import Training

    console = Console(highlight=False, soft_wrap=True)
    on_cuda = device.startswith("cuda")
    chosen = {k: v for k, v in (("steps", steps), ("batch", batch)) if v is not None}
    chosen["seed"] = seed
    precision = dtype or ("bf16" if on_cuda else "float32")
    settings = {**preset(data), **chosen, "precision": precision, "compiled": on_cuda}
    try:
        images = read_images(data, data_root)
        plan = make_plan(images, process, prediction, settings)
        folder = out or output_folder(data, plan)
        command = _command(data, process, prediction, {**chosen, "dtype": precision, "device": device})
        training = Training(plan, images.train, device)
        message = train(training, images, folder, every, resume, bool(settings.get("half")), command, console, minutes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    console.print(message, markup=False)


def train(
    training: Training,
    images: ImageSet,
    folder: Path,
    every: int,
    resume: bool,
    half: bool,
    command: str,
    console: Console,
    minutes: float | None = None,
) -> str:
    """Train into ``folder`` and say how it ended; `click.exceptions.Exit` with code 130 after an interruption."""
    plan, state = training.plan, folder / STATE
    prepared(folder)
    if not resume:
        for path in (state, folder / "card.json"):
            path.unlink(missing_ok=True)
    elif _finished(folder, plan, training.digest):
        state.unlink(missing_ok=True)
        return f"{folder.name}: finished and kept (--fresh trains it again)"
    elif state.is_file():
        try:
            training.resume(state)
        except ValueError as error:
            raise ValueError(f"{error}; --fresh starts over") from error
        console.print(f"{folder.name}: going on from step {training.step}", markup=False)
    if not _watched(training, images, folder, console, every, minutes):
        save_so_far(training, folder / SO_FAR, half)
        place = f"step {training.step} of {plan.steps}"
        kept = f"{folder.name} is kept at {place}, its averaged weights in {SO_FAR}; the same command goes on"
        console.print(f"interrupted: {kept}", markup=False)
        raise click.exceptions.Exit(130)
    finish(training, images, folder, half, command)
    shutil.rmtree(folder / SO_FAR, ignore_errors=True)
    losses = json.loads((folder / "card.json").read_text())["loss"]
    held_out = "" if losses["held_out_images"] is None else f", {losses['held_out_images']:.4f} on held-out images"
    return f"{folder.name}: {plan.steps} steps, loss {losses['training_images']:.4f} on training images{held_out}"
