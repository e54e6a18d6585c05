r"""How far are samples from data in law, seen through a classifier? Fréchet distance, precision and recall of features.

.. math:: d^2 = |m_r - m_f|^2 + tr\bigl(C_r + C_f - 2 (C_r^{1/2} C_f C_r^{1/2})^{1/2}\bigr) ,

m and C the mean and covariance of the features of real and of fake images: W_2² of the Gaussians with these moments
(Heusel et al. 2017, with Inception's features: FID).  Precision is the share of fake features within the reach of real
ones, the union of balls around them up to the k-th nearest neighbour, recall the share of real ones within the reach of
fake ones (Kynkäänniemi et al. 2019).  At n samples d² is too large by about c/n, also for samples of the data's own
law: `floor` measures by how much.  Features are the last hidden layer of a classifier of
`experiments.training.train_features`, scaled to a total variance of 1 on the training images: d² is in units of the
data's variance there.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis import gaussian_wasserstein2
from deis_analysis.process.process import Array
from deis_analysis.validate import boolean, finite, instance, positive_int
from experiments.core.paths import CHECKPOINTS
from experiments.models.image_data import ImageSet

WEIGHTS, CARD = "features.safetensors", "features.json"
CLASSES = 10
_Z = 1.959963984540054  # two-sided 95 % of N(0, 1)
_BATCH = 500  # images at once


def classifier(shape: tuple[int, int, int], features: int) -> Any:
    """A network (n, c, h, w) → (n, 10) of logits: two convolutions, a layer of ``features`` ReLUs, a linear one."""
    from torch import nn

    channels, height, width = shape
    stride = 2 if min(height, width) >= 16 else 1
    left = [math.ceil(math.ceil(size / stride) / 2) for size in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * left[0] * left[1], features), nn.ReLU(),
        nn.Linear(features, CLASSES),
    )  # fmt: skip


def extract(net: Callable[[Any], Any], images: Any) -> Array:
    """(n, f) float64 features of (n, c, h, w) images; what lies outside [-1, 1] is cut off, as in an image file."""
    import torch

    given = torch.as_tensor(images).detach().cpu().float()
    with torch.no_grad():
        parts = [net(part.clamp(-1.0, 1.0)) for part in given.split(_BATCH)]
    return np.asarray(torch.cat(parts).double().numpy())


@dataclass(frozen=True)
class Features:
    """The features of images and, of the data, those of training and of test images.

    Attributes:
        name: of the data or the folder. shape: (channels, height, width) of the images.
        train, test: (m, f) float64. net: (n, c, h, w) float32 tensor in [-1, 1] → (n, f) tensor.
        card: of ``features.json``: how they were made, the accuracy on the test images.
    """

    name: str
    shape: tuple[int, int, int]
    train: Array
    test: Array
    net: Callable[[Any], Any]
    card: dict[str, Any]

    def __call__(self, images: Any) -> Array:
        """(n, f) float64 features of (n, c, h, w) images in [-1, 1]; ValueError for others and for NaN."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; allowed: (n, {', '.join(map(str, self.shape))})"
            )
        finite("images", images)
        return extract(self.net, images)

    @classmethod
    def load(cls, name: str | Path) -> Features:
        """Of a folder, or of a shipped network; a twin, "digits8_flow", has those of "digits8".

        Raises:
            ValueError: there are none, or their files are damaged.
        """
        folder = _folder(name)
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            tensors, shape = _tensors(folder / WEIGHTS), tuple(card["data"]["shape"])
            net = classifier(shape, card["features"])
            net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
            train, test = (tensors[part].double().numpy() for part in ("train", "test"))
        except Exception as error:  # whatever json, safetensors and torch raise for a damaged file
            raise ValueError(f"name={str(name)!r}: {CARD} or {WEIGHTS} cannot be read ({error})") from error
        return cls(folder.name, shape, train, test, net.eval()[:-1], card)

    @classmethod
    def inception(cls, images: ImageSet, weights: Path, most: int = 10_000) -> Features:
        """Inception's 2048 features, those of FID, by torch-fidelity, of at most ``most`` training and test images.

        Args:
            weights: the file that torch-fidelity offers (``weights-inception-2015-12-05-….pth``).

        Raises:
            ValueError: torch-fidelity is not installed, or the file is not there.
        """
        net = _inception(Path(weights))
        train, test = (extract(net, spread(part, most)) for part in (images.train, images.held_out))
        return cls(images.name, images.shape, train, test, net, {"features": 2048, "data": {"name": images.name}})


def spread(images: Array, most: int) -> Array:
    """At most ``most`` of the images, evenly spaced: data sets are often sorted by what they show."""
    return images[:: max(1, math.ceil(len(images) / most))]


def _folder(name: str | Path) -> Path:
    tried = [Path(name)] if isinstance(name, Path) else [CHECKPOINTS / name, CHECKPOINTS / name.split("_")[0]]
    for folder in tried:
        if (folder / CARD).is_file() and (folder / WEIGHTS).is_file():
            return folder
    known = ", ".join(sorted(path.parent.name for path in CHECKPOINTS.glob(f"*/{CARD}")))
    raise ValueError(f"name={str(name)!r}: there are no features; allowed: {known}, or what train-features has written")


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _inception(weights: Path) -> Callable[[Any], Any]:
    if not weights.is_file():
        raise ValueError(f"weights={weights.name!r} is not there; allowed: the file of Inception's weights")
    try:
        library = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ValueError("FID needs torch-fidelity, which is not installed: pip install torch-fidelity") from error
    network = library.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    )

    def features(images: Any) -> Any:
        levels = (127.5 * (images + 1.0)).round().byte()  # it takes RGB of 8 bits
        return network(levels.expand(-1, 3, -1, -1))[0]

    return features


# -- metrics --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Frechet:
    """A squared Fréchet distance d², its 95 % band, and d² without its bias in the number of fake samples.

    ``pseudo``: (g,) pseudo-values of the jackknife, whose mean is ``corrected``. Those of two samplers with the same
    starts are paired: see `difference`.
    """

    value: float
    low: float
    high: float
    corrected: float
    pseudo: Array


def frechet(real: Any, fake: Any, groups: int = 50) -> Frechet:
    r"""d² of features (m, f) and (n, f), with the jackknife that leaves out one of g groups of the fake ones,

    .. math:: p_i = g d^2 - (g - 1) d^2_{(i)} , \qquad \text{corrected} = \bar p , \qquad s^2 = Var(p)/g ,

    d² ± 1.96 s, nothing below 0.  The band covers the spread over fake samples; the real ones are taken as the law.  It
    does not cover the bias of d², about c/n where n ≫ f; ``corrected`` has a bias of order 1/n² there (as has the
    extrapolation to n = ∞ of Chong & Forsyth 2020), and may be negative.  Where the two laws are equal d² is not
    asymptotically normal: see `floor`.  With the 32 features of MNIST and n = 128 … 1000 it covered E d² in 93 % to
    99 % of draws, s up to 1.5 times too large for equal laws; with one feature and n = 40 in 87 %.

    Args:
        groups: at least 2, at most n/2; fewer if n is too small for them. Group i has samples i, i + g, i + 2g ….

    Raises:
        ValueError: entries not finite, fewer than 4 fake or 2 real samples, unlike numbers of features.
    """
    real, fake = _pair(real, fake, 4)
    groups = min(positive_int("groups", groups, 2), len(fake) // 2)
    mean, covariance = real.mean(axis=0), np.cov(real.T)
    centre = fake.mean(axis=0)
    rest = fake - centre  # sums of squares about the mean lose nothing when a group is taken away
    n, total = len(rest), rest.T @ rest

    def square(count: int, sums: Array, squares: Array) -> float:
        own = (squares - np.outer(sums, sums) / count) / (count - 1)
        return gaussian_wasserstein2(mean, np.atleast_2d(covariance), centre + sums / count, own) ** 2

    value = square(n, np.zeros(len(centre)), total)
    parts = [rest[i::groups] for i in range(groups)]  # images of a data set often come in runs
    left = np.array([square(n - len(part), -part.sum(axis=0), total - part.T @ part) for part in parts])
    pseudo = groups * value - (groups - 1) * left
    margin = _Z * math.sqrt(pseudo.var(ddof=1) / groups)
    return Frechet(value, max(0.0, value - margin), value + margin, float(pseudo.mean()), pseudo)


def difference(one: Frechet, other: Frechet) -> tuple[float, float, float]:
    """(d²_one − d²_other, low, high), a 95 % band for samplers that had the same starts in the same order."""
    instance("one", one, Frechet)
    instance("other", other, Frechet)
    if one.pseudo.shape != other.pseudo.shape:
        raise ValueError(f"other has {len(other.pseudo)} groups; allowed: {len(one.pseudo)}, as one has")
    gap = one.value - other.value
    margin = _Z * math.sqrt((one.pseudo - other.pseudo).var(ddof=1) / len(one.pseudo))
    return gap, gap - margin, gap + margin


def precision_recall(real: Any, fake: Any, k: int = 5) -> tuple[float, float]:
    """(precision, recall) of features (m, f) and (n, f) by reaches to the k-th nearest neighbour; use m = n.

    A reach grows with the distance between neighbours, so both numbers depend on m and n: compare with `floor`.

    Raises:
        ValueError: entries not finite, k not below m and n, unlike numbers of features.
    """
    real, fake = _pair(real, fake, positive_int("k", k) + 1)
    return _within(fake, real, k), _within(real, fake, k)


def _within(points: Array, support: Array, k: int) -> float:
    """Share of the points (n, f) that lie within the reach of at least one of the support (m, f)."""
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    # the tree, and scipy's "minkowski": scikit-learn's "euclidean" rounds the distance of near points to 1e-8
    reach = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(support).kneighbors()[0][:, -1]
    chunks = pairwise_distances_chunked(
        points, support, metric="minkowski", reduce_func=lambda part, start: (part <= reach).any(axis=1)
    )
    return float(np.concatenate(list(chunks)).mean())


@dataclass(frozen=True)
class Floor:
    """What n real images score as if they were fake: means over draws, and the standard deviations over them.

    ``sd``: of the three in their order. ``source``: "test", test images against the training images; "pooled", images
    of both kinds against the others.
    """

    n: int
    draws: int
    source: str
    frechet: float
    precision: float
    recall: float
    sd: tuple[float, float, float]


def floor(
    features: Features, n: int, *, k: int = 5, draws: int = 20, seed: int = 0, pooled: bool | None = None
) -> Floor:
    """The metrics of n real images against the data, at random ``draws`` times.

    n test images against the training images, where there are at least 2n test images; else, or with ``pooled=True``,
    n of all images against all others.  Precision and recall are of n against n.  The draws share one set of images:
    ``sd`` is too small, by about a factor √(1 - n/N) of N images to draw from, at least 0.7.

    Raises:
        ValueError: n is more than half of the images to draw from.
    """
    instance("features", features, Features)
    n, draws = positive_int("n", n, 4), positive_int("draws", draws, 2)
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    pooled = 2 * n > len(features.test) if pooled is None else boolean("pooled", pooled)
    pool = np.concatenate([features.train, features.test]) if pooled else features.test
    most = min(len(pool) // 2, len(features.train))
    if n > most:
        raise ValueError(f"n={n} is more than the data of {features.name} allow; allowed: at most {most}")
    found = []
    for _ in range(draws):
        order = rng.permutation(len(pool))
        part, others = pool[order[:n]], pool[order[n:]] if pooled else features.train
        same = others[rng.choice(len(others), n, replace=False)]
        found.append((frechet(others, part, 2).value, *precision_recall(same, part, k)))
    distance, precision, recall = np.mean(found, axis=0).tolist()
    sd = tuple(np.std(found, axis=0, ddof=1).tolist())
    return Floor(n, draws, "pooled" if pooled else "test", distance, precision, recall, sd)


def _pair(real: Any, fake: Any, least: int) -> tuple[Array, Array]:
    arrays = {"real": finite("real", real), "fake": finite("fake", fake)}
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) < least or array.shape[1] == 0:
            raise ValueError(f"{name} has shape {array.shape}; allowed: (n, features), n >= {least}")
    if arrays["real"].shape[1] != arrays["fake"].shape[1]:
        raise ValueError(
            f"fake has {arrays['fake'].shape[1]} features; allowed: {arrays['real'].shape[1]}, as real has"
        )
    return arrays["real"], arrays["fake"]
