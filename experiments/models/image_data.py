"""Of what images is a network trained? Digits from scikit-learn; MNIST, CIFAR-10 and folders from the user's disk."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deis_analysis.process.process import Array

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_EVERY, _FEWEST = 10, 100  # of a set without test images every 10th is held out, if there are at least 100


@dataclass(frozen=True)
class ImageSet:
    """Images in [-1, 1], float32, (n, channels, height, width).

    Attributes:
        name: of the data. train, held_out: to train on, and not to; the latter may be empty.
        licence: of the data. note: how the two parts were made.
    """

    name: str
    train: Array
    held_out: Array
    licence: str
    note: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def read_images(data: str, root: Path | None = None) -> ImageSet:
    """``digits``; ``mnist`` or ``cifar10`` from the folder ``root``; or a folder of images, all of one size.

    MNIST is read from ``mnist.npz`` or the four idx files, gzipped or not; CIFAR-10 from
    ``cifar10_{train,test}_jpeg.npz`` or its binary version (``data_batch_1.bin`` ...).

    Raises:
        ValueError: unknown data, no ``root`` for data that need one, missing or unreadable files, a folder without
            images or with images of different sizes.
    """
    if data == "digits":
        return _digits()
    if data in ("mnist", "cifar10"):
        if root is None:
            raise ValueError(f"--data {data} needs --data-root, the folder where its files lie")
        return _mnist(root) if data == "mnist" else _cifar10(root)
    if not Path(data).is_dir():
        raise ValueError(f"data={data!r} is unknown; allowed: digits, mnist, cifar10, or a folder of images")
    return _folder(Path(data))


def _scaled(images: Array, most: float = 255.0) -> Array:
    """(n, h, w) or (n, h, w, c) grey levels 0 … ``most`` as (n, c, h, w) in [-1, 1]."""
    values = images.astype(np.float32) / np.float32(most / 2) - np.float32(1.0)
    return np.ascontiguousarray(values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2))


def split(name: str, images: Array, licence: str) -> ImageSet:
    """Every 10th image held out, if there are at least 100; none otherwise."""
    if len(images) < _FEWEST:
        return ImageSet(name, images, images[:0], licence, f"all {len(images)} images; none held out")
    out = np.arange(len(images)) % _EVERY == _EVERY - 1
    note = f"of {len(images)} images every {_EVERY}th, from index {_EVERY - 1}, is held out"
    return ImageSet(name, images[~out], images[out], licence, note)


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    licence = "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits, its test part)"
    return split("digits", _scaled(load_digits().images, 16.0), licence)


def _mnist(root: Path) -> ImageSet:
    train, test = mnist_parts(root, "images")
    licence = "CC BY-SA 3.0 (LeCun, Cortes and Burges)"
    return ImageSet("mnist", _scaled(train), _scaled(test), licence, "its training and test images")


def mnist_parts(root: Path, what: str) -> tuple[Array, Array]:
    """(training, test) "images" or "labels" as bytes, from ``mnist.npz`` or the idx files, see `read_images`."""
    packed = root / "mnist.npz"
    if packed.is_file():
        keras = {"images": "x", "labels": "y"}[what]
        with np.load(packed) as file:
            old = f"{keras}_train" in file.files
            train, test = (file[f"{keras}_{part}" if old else f"{part}_{what}"] for part in ("train", "test"))
    else:
        kind = {"images": "idx3", "labels": "idx1"}[what]
        train, test = (_idx(root, f"{part}-{what}-{kind}-ubyte") for part in ("train", "t10k"))
    return train, test


def _idx(root: Path, name: str) -> Array:
    for path, unpack in ((root / name, bytes), (root / f"{name}.gz", gzip.decompress)):
        if path.is_file():
            raw = unpack(path.read_bytes())
            shape = np.frombuffer(raw, ">i4", raw[3], offset=4)  # the 4th byte is the number of dimensions
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    raise ValueError(f"--data-root: neither mnist.npz nor {name}[.gz] is there")


def _cifar10(root: Path) -> ImageSet:
    if (root / "cifar10_train_jpeg.npz").is_file() and (root / "cifar10_test_jpeg.npz").is_file():
        train, test = (_jpegs(root / f"cifar10_{part}_jpeg.npz") for part in ("train", "test"))
    else:
        train = _records(root, [f"data_batch_{i}.bin" for i in range(1, 6)])
        test = _records(root, ["test_batch.bin"])
    licence = "not stated by its authors (Krizhevsky 2009)"
    return ImageSet("cifar10", _scaled(train), _scaled(test), licence, "its training and test images")


def _jpegs(path: Path) -> Array:
    with np.load(path) as file:
        raw, offsets = file["bytes"], file["offsets"]
    return np.stack([_pixels(io.BytesIO(raw[a:b].tobytes())) for a, b in itertools.pairwise(offsets)])


def _records(root: Path, names: Iterable[str]) -> Array:
    parts = []
    for name in names:
        if not (root / name).is_file():
            raise ValueError(f"--data-root: neither cifar10_train_jpeg.npz nor {name} is there")
        parts.append(np.fromfile(root / name, np.uint8).reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32))
    return np.concatenate(parts).transpose(0, 2, 3, 1)


def _pixels(file: Any, mode: str = "RGB") -> Array:
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))


def _folder(folder: Path) -> ImageSet:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"data={folder.name!r}: the folder holds no images; allowed: {', '.join(SUFFIXES)}")
    sizes, grey = [], True
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                grey &= image.mode in ("1", "L")
        except OSError as error:
            raise ValueError(f"data={folder.name!r}: {path.name} cannot be read as an image ({error})") from error
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"data={folder.name!r}: {path.name} is {size[0]} x {size[1]}, {paths[0].name} is "
                f"{sizes[0][0]} x {sizes[0][1]}; allowed: images of one size"
            )
    pixels = np.stack([_pixels(path, "L" if grey else "RGB") for path in paths])
    return split(folder.name, _scaled(pixels), "unknown")
