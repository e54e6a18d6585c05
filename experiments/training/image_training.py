r"""Training of image networks by denoising score matching, resumable to the bit.

The loss of one batch is the mean over images and coordinates of

.. math:: (p_θ(α_t x_0 + σ_t ε, t) - a_t x_0 - b_t ε)^2 ,

with (a, b) of `Process.prediction_parts`: ε, x₀, v = αε − σx₀ on variance-preserving processes, and on `RectifiedFlow`
the velocity ẋ = ε − x₀ of flow matching.

Images, times, flips and noise of a step are functions of (seed, step) alone; so is all that torch draws in it. A
training that is killed and goes on from its last checkpoint therefore ends, on one CPU and with as many threads as
before, with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deis_analysis.networks.convention import ImageModel, standard_convention
from deis_analysis.networks.dsm import TIMES, TRAINED, sampling_times, zero_mean
from deis_analysis.networks.folder import describe_process
from deis_analysis.networks.network import usable
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM, VE, RectifiedFlow
from deis_analysis.storage import atomic
from deis_analysis.validate import boolean, choose, instance, nonnegative, positive, positive_int

PRECISIONS = ("float32", "bf16")
RATES = ("cosine", "constant")


@dataclass(frozen=True)
class Plan:
    """All that trained weights depend on, beside the images, the machine and the versions.

    Attributes:
        process, prediction: what is predicted of x_t; "eps", "x0" or "v".
        architecture: arguments of diffusers' ``UNet2DModel``.
        steps, batch: updates, and images in each, drawn with replacement.
        learning_rate: of Adam, reached after ``warmup`` steps. rate: from there "cosine" to 0, or "constant".
        average: decay d of the average of the weights; update n uses min(d, n/(9 + n)), the first one 0.
        clip: largest norm of the gradient.
        uniform_in: the law of times, "t" or "lam", stratified over the batch; over `Process.sampling_range`, on
            `RectifiedFlow` and uniform in t over [0, 1].
        flip: whether half of the images are mirrored.
        precision: "float32", or "bf16" for automatic mixed precision, on CUDA only.
        compiled: whether ``torch.compile`` is used, on CUDA only.

    Raises:
        ValueError: bad input; v where α = 1, where it is ε times a function of time.
    """

    process: Process
    prediction: str
    architecture: dict[str, Any]
    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    rate: str = "cosine"
    average: float = 0.999
    clip: float = 1.0
    uniform_in: str = "t"
    flip: bool = False
    precision: str = "float32"
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        zero_mean(self.process)
        choose("prediction", self.prediction, TRAINED)
        if self.prediction == "v" and isinstance(self.process, (VE, EDM)):
            raise ValueError(f"prediction='v' is σ̇ε on {self.process!r}; allowed: eps, x0")
        instance("architecture", self.architecture, dict)
        positive_int("steps", self.steps)
        positive_int("batch", self.batch)
        positive(learning_rate=self.learning_rate, clip=self.clip)
        positive_int("warmup", self.warmup, minimum=0)
        choose("rate", self.rate, RATES)
        if nonnegative("average", self.average) >= 1:
            raise ValueError(f"average={self.average!r} must be below 1")
        choose("uniform_in", self.uniform_in, TIMES)
        self.times(np.zeros(1))
        boolean("flip", self.flip)
        choose("precision", self.precision, PRECISIONS)
        boolean("compiled", self.compiled)
        positive_int("seed", self.seed, minimum=0)

    @property
    def convention(self) -> Convention:
        """What the network predicts and is told."""
        return standard_convention(self.process, self.prediction)

    def times(self, shares: Array) -> Array:
        """The times below which these shares of all training times lie, or above which."""
        if isinstance(self.process, RectifiedFlow) and self.uniform_in == "t":  # its ends are those of flow schedulers
            return np.asarray(shares, dtype=np.float64)
        return sampling_times(self.process, self.uniform_in, None)(shares)

    def rate_at(self, step: int) -> float:
        """Learning rate of update ``step`` = 0 … steps − 1: linear to full at ``warmup``, then as ``rate`` says."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.rate == "constant":
            return self.learning_rate
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * share))

    def describe(self) -> dict[str, Any]:
        """As JSON's values."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found |= {"process": describe_process(self.process), "convention": self.convention.card()}
        return dict(json.loads(json.dumps(found)))


class Training:
    """A training under way: network, averaged weights, optimiser, number of updates made, losses.

    Args:
        plan: what to do.
        images: (n, channels, height, width), in [-1, 1] by convention.
        device: "cpu", "cuda", "cuda:1" ...

    Attributes:
        net: the network, a ``UNet2DModel``. step: updates made.

    Raises:
        ValueError: images of another shape than ``plan.architecture`` says or not finite, a device that cannot be used,
            bf16 or compilation away from CUDA, an architecture that diffusers refuses.
    """

    def __init__(self, plan: Plan, images: Any, device: str = "cpu") -> None:
        from diffusers.training_utils import EMAModel

        self.plan = instance("plan", plan, Plan)
        self.device = usable(device)
        for name, wanted in (("precision='bf16'", plan.precision == "bf16"), ("compiled=True", plan.compiled)):
            if wanted and self.device.type != "cuda":
                raise ValueError(f"{name} needs CUDA; device={device!r}")
        self.net = _network(plan).to(self.device)
        points = _checked(images, self.net.config)
        self.images, self.digest = points.to(self.device), hashlib.sha256(points.numpy().data).hexdigest()
        self.step = 0
        self._losses = torch.zeros(plan.steps, device=self.device)
        self._average = EMAModel(self.net.parameters(), decay=plan.average, foreach=True)
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=plan.learning_rate)
        called: Any = torch.compile(self.net) if plan.compiled else self.net
        self._model = ImageModel(called, plan.process, plan.convention)

    @property
    def losses(self) -> Array:
        """(step,) loss of each batch before its update."""
        return self._losses[: self.step].cpu().numpy()

    def loss(self, window: int = 50) -> float:
        """Mean loss of the last ``window`` updates; ValueError if it is not finite."""
        values = self._losses[max(0, self.step - window) : self.step]
        mean = float(values.mean()) if len(values) else math.nan
        if len(values) and not math.isfinite(mean):
            raise ValueError(
                f"the loss is {mean} at step {self.step}: learning_rate={self.plan.learning_rate!r} may be too large"
            )
        return mean

    def advance(self) -> None:
        """Make one update."""
        plan = self.plan
        x0, t, key = self._batch()
        with _seeded(key, self.device), torch.autocast(self.device.type, torch.bfloat16, plan.precision == "bf16"):
            loss = _loss(self._model, x0, t, torch.randn_like(x0))
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), plan.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate_at(self.step)
        self._optimizer.step()
        self._average.step(self.net.parameters())
        self._losses[self.step] = loss.detach()
        self.step += 1

    def _batch(self) -> tuple[torch.Tensor, Array, int]:
        """Images, times and the key of torch's draws of the step at hand."""
        sequence = np.random.SeedSequence([self.plan.seed, self.step])
        rng, count = np.random.Generator(np.random.Philox(sequence)), self.plan.batch
        index = torch.as_tensor(rng.integers(len(self.images), size=count), device=self.device)
        t = self.plan.times((np.arange(count) + rng.uniform(size=count)) / count)
        x0 = self.images[index]
        if self.plan.flip:
            mirrored = torch.as_tensor(rng.integers(2, size=count, dtype=bool), device=self.device)
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return x0, t, int(sequence.generate_state(1, np.uint64)[0])

    def averaged(self) -> torch.nn.Module:
        """A copy of the network that holds the averaged weights, frozen, in evaluation mode."""
        net = copy.deepcopy(self.net)
        self._average.copy_to(net.parameters())
        return net.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write all of it to ``path``, which at every moment holds the old state or the new one, whole."""
        self.loss()
        state = {
            "plan": self.plan.describe(),
            "images": self.digest,
            "step": self.step,
            "net": self.net.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self._losses[: self.step].clone(),
        }
        with atomic(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Go on from ``path``; ValueError if it cannot be read, or was written under another plan or other images."""
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)  # Adam counts its steps on the CPU
            plan, digest = state["plan"], state["images"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the checkpoint {path.name} cannot be read ({reason})") from error
        changed = _changes(plan, self.plan.describe())
        if digest != self.digest:
            changed.append("the images")
        if changed:
            raise ValueError(f"the checkpoint {path.name} belongs to another training; changed: {'; '.join(changed)}")
        self.net.load_state_dict(state["net"])
        self._average.load_state_dict(state["average"])
        self._average.to(device=self.device)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self._losses[: self.step] = state["losses"]


def train_images(
    training: Training, checkpoint: Path, *, every: int = 500, watch: Callable[[Training], bool] | None = None
) -> bool:
    """Go on to the last step of the plan, with a checkpoint each ``every`` steps, at the end and when told to stop.

    Args:
        checkpoint: file of `Training.save`; it is not read.
        watch: called after each update, not to change anything; True stops the training.

    Returns:
        whether the last step has been made.
    """
    positive_int("every", every)
    while training.step < training.plan.steps:
        training.advance()
        stop = watch is not None and watch(training)
        if stop or training.step % every == 0 or training.step == training.plan.steps:
            training.save(checkpoint)
        if stop:
            break
    return training.step == training.plan.steps


def denoising_loss(model: ImageModel, images: Any, plan: Plan, *, draws: int = 8, seed: int = 0) -> float:
    """Mean loss of ``model`` over images, each at ``draws`` stratified times of the plan; one seed, one noise."""
    net, total = model.net, 0.0
    device = next(net.parameters()).device
    points = _checked(images, net.config).to(device)
    positive_int("draws", draws)
    with torch.no_grad(), _seeded(positive_int("seed", seed, minimum=0), device):
        for image in torch.split(points, max(1, plan.batch // draws)):
            t = plan.times((np.arange(draws) + torch.rand(len(image), draws).numpy()) / draws).ravel()
            x0 = image.repeat_interleave(draws, dim=0)
            total += float(_loss(model, x0, t, torch.randn_like(x0))) * len(image)
    return total / len(points)


def _loss(model: ImageModel, x0: torch.Tensor, t: Array, eps: torch.Tensor) -> torch.Tensor:
    process = model.process
    alpha, sigma, a, b = (
        torch.as_tensor(c, dtype=x0.dtype, device=x0.device).reshape(-1, 1, 1, 1)
        for c in (process.alpha(t), process.sigma(t), *process.prediction_parts(model.convention.prediction, t))
    )
    return torch.nn.functional.mse_loss(model(alpha * x0 + sigma * eps, t), a * x0 + b * eps)


@contextlib.contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """All that torch draws inside is a function of ``key``; outside nothing changes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


def _network(plan: Plan) -> Any:
    from diffusers import UNet2DModel

    with _seeded(plan.seed, torch.device("cpu")):
        try:
            net: Any = UNet2DModel(**plan.architecture)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"architecture={dict(plan.architecture)!r} is not one of UNet2DModel: {error}") from error
    return net.train()


def _checked(images: Any, architecture: Any) -> torch.Tensor:
    points = torch.as_tensor(images, dtype=torch.float32).contiguous()
    size, channels = architecture["sample_size"], architecture["in_channels"]
    height, width = (size, size) if isinstance(size, int) else size
    if points.ndim != 4 or len(points) == 0 or tuple(points.shape[1:]) != (channels, height, width):
        raise ValueError(
            f"images have shape {tuple(points.shape)}; the architecture allows (n, {channels}, {height}, {width})"
        )
    if not torch.isfinite(points).all():
        raise ValueError("images must be finite")
    return points


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of plans, in words."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}={new.get(name)!r} was {old.get(name)!r}" for name in names]
