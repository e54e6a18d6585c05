"""``python -m experiments train-features``: a small classifier whose last hidden layer measures samples of networks.

It writes ``features.safetensors``, weights and the features of training and test images in float16, no image, and
``features.json``, which says how they were made; `experiments.models.features.Features.load` reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from deis_analysis.process.process import Array
from deis_analysis.storage import atomic, writable, write_text

if TYPE_CHECKING:
    from experiments.models.image_data import ImageSet

WIDTH = 32  # features
FOLDERS = {"digits": "digits8", "mnist": "mnist28"}
EPOCHS = {"digits": 40, "mnist": 6}
_BATCH, _RATE = 128, 3e-3
_MOST = 10_000  # images of each kind whose features are kept


def read_labels(data: str, root: Path | None = None) -> tuple[Array, Array]:
    """Labels (n,) int64 of the training and of the held-out images of `experiments.models.image_data.read_images`.

    Raises:
        ValueError: unknown data, no ``root`` for MNIST, missing files.
    """
    from experiments.models.image_data import mnist_parts, split

    if data == "digits":
        from sklearn.datasets import load_digits

        parts = split("labels", load_digits().target, "")
        return parts.train.astype(np.int64), parts.held_out.astype(np.int64)
    if data != "mnist":
        raise ValueError(f"data={data!r} has no labels here; allowed: {', '.join(FOLDERS)}")
    if root is None:
        raise ValueError("--data mnist needs --data-root, the folder where its files lie")
    train, test = mnist_parts(root, "labels")
    return train.astype(np.int64), test.astype(np.int64)


def fit(images: Array, labels: Array, epochs: int, seed: int, watch: Callable[[int, float], None]) -> Any:
    """A trained `classifier` whose features have a total variance of 1 on the images; the same for the same seed.

    Adam, batches without replacement, cross-entropy; the rate rises and falls once (``OneCycleLR``).

    Args:
        watch: called after each epoch with its number, from 1, and its mean loss.
    """
    import torch

    from experiments.models.features import classifier, extract

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order give other weights
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = classifier(images.shape[1:], WIDTH)
        x, y = torch.as_tensor(images), torch.as_tensor(labels)
        optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
        steps = epochs * math.ceil(len(x) / _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
                loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
            watch(epoch + 1, total / len(x))
        variance = extract(net[:-1], images).var(axis=0).sum()
        with torch.no_grad():  # relu(a z) = a relu(z): the logits stay what they are
            scale = float(variance) ** -0.5
            net[-3].weight.mul_(scale)
            net[-3].bias.mul_(scale)
            net[-1].weight.div_(scale)
        return net.eval()
    finally:
        torch.set_num_threads(threads)


def accuracy(net: Any, images: Array, labels: Array) -> float:
    """Share of the images whose largest logit is that of their label."""
    from experiments.models.features import extract

    return float((extract(net, images).argmax(axis=1) == labels).mean())


def save(folder: Path, net: Any, images: ImageSet, card: dict[str, Any]) -> None:
    """Write both files, each whole or not at all, the card last."""
    import torch
    from safetensors.torch import save_file

    from experiments.models.features import CARD, WEIGHTS, extract, spread

    parts = {"train": images.train, "test": images.held_out}
    tensors = {f"net.{name}": value.contiguous() for name, value in net.state_dict().items()}
    for name, part in parts.items():
        tensors[name] = torch.as_tensor(extract(net[:-1], spread(part, _MOST))).half()
    (folder / CARD).unlink(missing_ok=True)
    with atomic(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    kept = {name: len(tensors[name]) for name in parts}
    write_text(folder / CARD, json.dumps({**card, "kept": kept}, indent=2, ensure_ascii=False) + "\n")


def train_features(
    images: ImageSet,
    labels: tuple[Array, Array],
    folder: Path,
    epochs: int,
    seed: int,
    watch: Callable[[int, float], None],
) -> dict[str, Any]:
    """Train a classifier, write its features into ``folder``, and return their card."""
    digest = hashlib.sha256()
    for array in (images.train, images.held_out, *labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    net = fit(images.train, labels[0], epochs, seed, watch)
    right = {"train": accuracy(net, images.train, labels[0]), "test": accuracy(net, images.held_out, labels[1])}
    sizes = {"images": len(images.train), "test": len(images.held_out), "shape": list(images.shape)}
    card = {
        "command": f"python -m experiments train-features --data {images.name} --epochs {epochs} --seed {seed}",
        "data": {"name": images.name, "licence": images.licence, **sizes, "split": images.note}
        | {"sha256": digest.hexdigest()},
        "features": WIDTH,
        "layer": "the last hidden one, after ReLU, scaled to a total variance of 1 on the training images",
        "parameters": sum(p.numel() for p in net.parameters()),
        "training": {"epochs": epochs, "batch": _BATCH, "learning_rate": _RATE, "seed": seed, "threads": 1},
        "accuracy": right,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy")},
    }
    save(folder, net, images, card)
    return card


@click.command("train-features")
@click.option("--data", type=click.Choice(list(FOLDERS)), required=True)
@click.option("--data-root", type=click.Path(path_type=Path), help="Where the files of mnist lie.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder (default: in checkpoints/).")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the images (default: 40 or, of mnist, 6).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def train_features_command(data: str, data_root: Path | None, out: Path | None, epochs: int | None, seed: int) -> None:
    """Train the classifier whose features compare samples with data. Interrupted, it leaves what was there before."""
    from experiments.core.paths import CHECKPOINTS
    from experiments.models.image_data import read_images

    passes, folder = epochs or EPOCHS[data], out or CHECKPOINTS / FOLDERS[data]
    try:
        writable("--out", folder, many=True)
        images, labels = read_images(data, data_root), read_labels(data, data_root)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def watch(epoch: int, loss: float) -> None:
        click.echo(f"epoch {epoch} of {passes}: loss {loss:.4f}")

    card = train_features(images, labels, folder, passes, seed, watch)
    click.echo(f"{card['accuracy']['test']:.2%} of {card['data']['test']} test images are classified right")
