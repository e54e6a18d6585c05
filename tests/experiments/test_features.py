"""Fréchet distance, precision and recall against closed forms; the classifiers that ship; whose law is nearest."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from quick_runs import quick
from safetensors.torch import load_file
from scipy.special import gammaln

from deis_analysis import networks as learned
from experiments.__main__ import main
from experiments.models import features as ft
from experiments.models.image_data import ImageSet, read_images
from experiments.networks import network_law as law
from experiments.training import train_features as tf

RNG = np.random.default_rng(7)


def with_moments(mean, root, n: int, rng=RNG) -> np.ndarray:
    """(n, f) points of exactly this mean and of covariance root·rootᵀ."""
    z = rng.standard_normal((n, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T).reshape(len(mean), -1))).T
    return np.asarray(mean) + z @ np.asarray(root).T


def by_trace(real, fake) -> float:
    """d² by the trace, tr (C C')^{1/2} the sum of the roots of the eigenvalues of C C'."""
    a, b = (np.cov(x.T).reshape(x.shape[1], -1) for x in (real, fake))
    gap = real.mean(axis=0) - fake.mean(axis=0)
    return float(gap @ gap + np.trace(a + b) - 2 * np.sqrt(np.maximum(np.real(np.linalg.eigvals(a @ b)), 0)).sum())


def gaussian_features(train: int, test: int, f: int, seed: int = 0) -> ft.Features:
    """Features that are standard normal, of images of one pixel row that are their own features."""
    rng = np.random.default_rng(seed)
    parts = (rng.standard_normal((count, f)) for count in (train, test))
    return ft.Features("made", (1, 1, f), *parts, net=lambda x: x.flatten(1), card={})


# -- Fréchet distance -----------------------------------------------------------------------------
def test_gaussians_of_known_moments():
    """Commuting covariances: |m − m'|² + Σ(√a − √b)²; turned ones: the trace; one feature: standard
    deviations."""
    a, b = np.array([1.0, 0.25, 4.0]), np.array([0.5, 0.25, 1.0])
    gap = np.array([0.3, -0.2, 0.1])
    turn = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    real, fake = with_moments(np.zeros(3), turn * np.sqrt(a), 50), with_moments(gap, turn * np.sqrt(b), 40)
    expected = gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert ft.frechet(real, fake).value == pytest.approx(expected, rel=1e-12)
    fake = with_moments(gap, RNG.standard_normal((3, 3)), 40)
    assert ft.frechet(real, fake).value == pytest.approx(by_trace(real, fake), rel=1e-10)
    x, y = with_moments([0.0], [[2.0]], 9), with_moments([1.0], [[0.5]], 8)
    assert ft.frechet(x, y).value == pytest.approx(1.0 + 1.5**2, rel=1e-12)


def test_jackknife_is_the_one_of_the_docstring():
    """Each group left out in truth, d² by the trace."""
    real, fake = RNG.standard_normal((60, 3)), 1.2 * RNG.standard_normal((23, 3)) + 5.0
    found, whole = ft.frechet(real, fake, 5), by_trace(real, fake)
    left = [by_trace(real, np.delete(fake, np.arange(i, 23, 5), axis=0)) for i in range(5)]
    pseudo = 5 * whole - 4 * np.array(left)
    np.testing.assert_allclose(found.pseudo, pseudo, rtol=1e-9)
    assert found.corrected == pytest.approx(pseudo.mean(), rel=1e-9)
    margin = 1.959963984540054 * pseudo.std(ddof=1) / math.sqrt(5)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((margin, margin), rel=1e-8)
    assert len(ft.frechet(real, fake).pseudo) == 11  # 50 groups of at least 2 are more than 23 samples give


def one_feature(n: int, groups: int, runs: int) -> tuple[list[ft.Frechet], float, float]:
    """Distances of fakes N(μ, s²) to real moments 0 and 1, E d² = μ² + s²/n + s² + 1 − 2 c₄ s (E ŝ = c₄ s), and d² of
    the laws."""
    mu, s, rng = 0.4, 1.5, np.random.default_rng(3)
    c4 = math.sqrt(2 / (n - 1)) * math.exp(gammaln(n / 2) - gammaln((n - 1) / 2))
    real = with_moments([0.0], [[1.0]], 30)
    found = [ft.frechet(real, mu + s * rng.standard_normal((n, 1)), groups) for _ in range(runs)]
    return found, mu**2 + s**2 / n + s**2 + 1 - 2 * c4 * s, mu**2 + (s - 1) ** 2


def test_jackknife_removes_the_bias():
    found, biased, true = one_feature(16, 4, 2000)
    for name, expected, other in (("value", biased, true), ("corrected", true, biased)):
        values = np.array([getattr(f, name) for f in found])
        error = values.std() / math.sqrt(len(values))
        assert values.mean() == pytest.approx(expected, abs=4 * error)
        assert abs(values.mean() - other) > 6 * error


def test_band_is_as_wide_as_it_says():
    """s² is the variance of d², and d² ± 1.96 s covers its mean: 20 groups, Student's t says 93.5 %."""
    found, biased, _ = one_feature(200, 20, 800)
    values, margins = np.array([f.value for f in found]), np.array([f.high - f.value for f in found])
    assert np.mean((margins / 1.959963984540054) ** 2) == pytest.approx(values.var(), rel=0.15)
    assert 0.90 < np.mean(np.abs(values - biased) <= margins) < 0.96
    assert [f.low for f in found] == pytest.approx(np.maximum(0.0, values - margins), rel=1e-12)


def test_difference_is_paired():
    """Fakes that differ by a shift δ: d² differs by 2δ·(m − m_r) + δ², linear in m, whose jackknife is exact."""
    real, fake, shift = RNG.standard_normal((50, 2)), RNG.standard_normal((60, 2)), np.array([0.3, 0.0])
    one, other = ft.frechet(real, fake + shift, 10), ft.frechet(real, fake, 10)
    gap, low, high = ft.difference(one, other)
    assert gap == pytest.approx(2 * shift @ (fake.mean(0) - real.mean(0)) + shift @ shift, rel=1e-9)
    groups = np.array([fake[i::10, 0].mean() for i in range(10)])
    margin = 1.959963984540054 * 2 * 0.3 * groups.std(ddof=1) / math.sqrt(10)
    assert (gap - low, high - gap) == pytest.approx((margin, margin), rel=1e-8)
    assert ft.difference(one, one) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="other has 5 groups; allowed: 10"):
        ft.difference(one, ft.frechet(real, fake, 5))
    with pytest.raises(ValueError, match="other=0 must be a Frechet"):
        ft.difference(one, 0)


def test_order_by_runs_does_not_matter_to_the_band():
    """Samples sorted by class, as in many data sets: groups that take every g-th keep s² where runs inflate it."""
    fake = np.concatenate([RNG.normal(c, 0.1, (200, 1)) for c in range(5)])
    real = RNG.normal(0, 1, (500, 1))
    shuffled = np.concatenate([ft.frechet(real, RNG.permutation(fake)).pseudo for _ in range(5)]).std()
    assert ft.frechet(real, fake).pseudo.std() < 1.2 * shuffled


@pytest.mark.parametrize(
    ("real", "fake", "said"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), "fake has 3 features; allowed: 2"),
        (np.zeros((5, 2)), np.zeros((3, 2)), r"fake has shape \(3, 2\); allowed: \(n, features\), n >= 4"),
        (np.zeros(5), np.zeros((5, 2)), r"real has shape \(5,\)"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), r"(?s)real=.* must be finite"),
        (np.zeros((5, 0)), np.zeros((5, 0)), r"real has shape \(5, 0\)"),
    ],
)
def test_bad_features(real, fake, said):
    with pytest.raises(ValueError, match=said):
        ft.frechet(real, fake)


def test_bad_numbers():
    x = np.eye(6)
    with pytest.raises(ValueError, match="groups=1 must be an integer >= 2"):
        ft.frechet(x, x, 1)
    with pytest.raises(ValueError, match="k=0 must be an integer >= 1"):
        ft.precision_recall(x, x, 0)
    with pytest.raises(ValueError, match=r"real has shape \(6, 6\); allowed: \(n, features\), n >= 7"):
        ft.precision_recall(x, x, 6)


# -- precision and recall -------------------------------------------------------------------------
def test_sets_made_by_hand():
    """Equal sets, disjoint ones, one mode of two, and a thin fake set inside a wide real one."""
    near, far = RNG.standard_normal((30, 2)), RNG.standard_normal((30, 2)) + 100.0
    assert ft.precision_recall(near, near) == (1.0, 1.0)
    assert ft.precision_recall(near, far) == (0.0, 0.0)
    both = np.concatenate([near, far])
    assert ft.precision_recall(both, np.concatenate([near, near + 1e-3])) == (1.0, 0.5)
    assert ft.precision_recall(np.concatenate([near, near + 1e-3]), both) == (0.5, 1.0)


def test_reach_is_that_of_the_kth_neighbour():
    """On 0, 1, 3, 7 reaches are 1, 1, 2, 4 for k = 1 and 3, 2, 3, 6 for k = 2, ends included."""
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    for k, low, high in ((1, -1.0, 11.0), (2, -3.0, 13.0)):
        inside, outside = (
            np.array([[low], [high], [2.0], [5.0]]),
            np.array([[low - 1e-9], [high + 1e-9], [-9.0], [20.0]]),
        )
        assert ft.precision_recall(real, inside, k)[0] == 1.0
        assert ft.precision_recall(real, outside, k)[0] == 0.0


points = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(rng=points, m=st.integers(4, 12), n=st.integers(4, 12), f=st.integers(1, 3), k=st.integers(1, 3))
def test_precision_and_recall_are_their_definition(rng, m, n, f, k):
    """Loops over integer points, where distances tie and points coincide."""
    real, fake = rng.integers(0, 5, (m, f)).astype(float), rng.integers(0, 5, (n, f)).astype(float)

    def share(of, support) -> float:
        reach = [sorted(math.dist(x, y) for j, y in enumerate(support) if j != i)[k - 1] for i, x in enumerate(support)]
        return float(np.mean([any(math.dist(p, x) <= r for x, r in zip(support, reach, strict=True)) for p in of]))

    assert ft.precision_recall(real, fake, k) == (share(fake, real), share(real, fake))


# -- floor ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("train", "test", "n"), [(3000, 3000, 200), (700, 100, 200), (400, 100, 250)])
def test_floor_is_that_of_equal_gaussians(train, test, n):
    """E d² = (f + (f² + f)/4)(1/n + 1/m) to first order: means, and a quarter of |C − C'|²; m is what is left of the
    pool, or the training features."""
    f, runs = 4, 40
    found = [ft.floor(gaussian_features(train, test, f, seed), n, draws=4, seed=seed) for seed in range(runs)]
    source, m = ("test", train) if 2 * n <= test else ("pooled", train + test - n)
    values = np.array([one.frechet for one in found])
    assert {one.source for one in found} == {source}
    expected = (f + (f * f + f) / 4) * (1 / n + 1 / m)
    assert values.mean() == pytest.approx(expected, abs=4 * values.std(ddof=1) / math.sqrt(runs) + 0.02 * expected)
    assert expected > 8 * values.std() / math.sqrt(runs)


def test_floor_tells_what_it_is_of():
    features = gaussian_features(300, 300, 3)
    one = ft.floor(features, 100, draws=6, seed=2)
    assert one == ft.floor(features, 100, draws=6, seed=2) != ft.floor(features, 100, draws=6, seed=3)
    assert (one.n, one.draws, one.source) == (100, 6, "test")
    assert ft.floor(features, 100, draws=6, pooled=True).source == "pooled"
    assert 0.85 < min(one.precision, one.recall) <= max(one.precision, one.recall) < 1
    assert all(0 < sd < limit for sd, limit in zip(one.sd, (one.frechet, 0.1, 0.1), strict=True))
    moved = dataclasses.replace(features, test=features.test + 0.5)  # test images of another law show
    assert ft.floor(moved, 100, draws=6, seed=2).frechet > 0.5 > 5 * one.frechet
    with pytest.raises(ValueError, match="n=301 is more than the data of made allow; allowed: at most 300"):
        ft.floor(features, 301)
    with pytest.raises(ValueError, match=r"n=200 is more .* at most 150"):
        ft.floor(features, 200, pooled=False)


# -- labels and training --------------------------------------------------------------------------
def test_labels_belong_to_images():
    from sklearn.datasets import load_digits

    images, (train, test) = read_images("digits"), tf.read_labels("digits")
    known = {image.tobytes(): label for image, label in zip(load_digits().images, load_digits().target, strict=True)}
    for part, labels in ((images.train, train), (images.held_out, test)):
        found = [known[(8.0 * (image[0].astype(float) + 1.0)).round().tobytes()] for image in part]
        assert len(part) == len(labels)
        assert found == labels.tolist()


@pytest.mark.parametrize("names", ["{}_labels", "y_{}", "idx", "idx.gz"])
def test_labels_of_mnist(tmp_path, names):
    train, test = np.arange(5, dtype=np.uint8), np.array([9, 8], dtype=np.uint8)
    if names.startswith("idx"):
        for part, labels in (("train", train), ("t10k", test)):
            raw = np.array([2049, len(labels)], ">i4").tobytes() + labels.tobytes()
            name, packed = f"{part}-labels-idx1-ubyte", names.endswith(".gz")
            (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(raw) if packed else raw)
    else:
        np.savez(tmp_path / "mnist.npz", **{names.format("train"): train, names.format("test"): test})
    found = tf.read_labels("mnist", tmp_path)
    assert [part.tolist() for part in found] == [train.tolist(), test.tolist()]
    assert {part.dtype for part in found} == {np.dtype(np.int64)}


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="data='cifar10' has no labels here; allowed: digits, mnist"):
        tf.read_labels("cifar10")
    with pytest.raises(ValueError, match="--data mnist needs --data-root"):
        tf.read_labels("mnist")
    with pytest.raises(ValueError, match=r"neither mnist\.npz nor train-labels-idx1-ubyte"):
        tf.read_labels("mnist", tmp_path)


def test_features_have_variance_one_and_logits_stay():
    """The cross-entropy after scaling is that of training: below the last epoch's mean, which it would not be if the
    last layer had not been scaled back."""
    images, labels = read_images("digits").train, tf.read_labels("digits")[0]
    losses = []
    net = tf.fit(images, labels, 3, 0, lambda epoch, loss: losses.append(loss))
    hidden = ft.extract(net[:-1], images)
    assert hidden.shape == (len(images), tf.WIDTH)
    assert hidden.min() == 0.0
    assert hidden.var(axis=0).sum() == pytest.approx(1.0, rel=1e-5)
    logits = torch.as_tensor(ft.extract(net, images))
    loss = float(torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels)))
    assert 0.8 * losses[-1] < loss < losses[-1] < losses[0]
    assert tf.accuracy(net, images, labels) == float((logits.argmax(1).numpy() == labels).mean())


def trained(folder, *more) -> str:
    result = CliRunner().invoke(
        main, ["train-features", "--data", "digits", "--epochs", "1", "--out", str(folder), *more]
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_command_is_reproducible(tmp_path):
    said = trained(tmp_path / "a")
    torch.rand(1)  # the caller's random numbers do not matter
    trained(tmp_path / "b")
    trained(tmp_path / "c", "--seed", "1")
    first, second, third = ((tmp_path / name / ft.WEIGHTS).read_bytes() for name in "abc")
    assert first == second != third
    card = json.loads((tmp_path / "a" / ft.CARD).read_text())
    assert card == json.loads((tmp_path / "b" / ft.CARD).read_text())
    assert card["command"] == "python -m experiments train-features --data digits --epochs 1 --seed 0"
    assert f"{card['accuracy']['test']:.2%} of 179 test images" in said
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [ft.CARD, ft.WEIGHTS]
    images, labels = read_images("digits"), tf.read_labels("digits")
    data = b"".join(x.tobytes() for x in (images.train, images.held_out, *labels))
    assert card["data"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert ft.Features.load(tmp_path / "a").name == "a"


def test_interrupted_training_leaves_what_was_there(tmp_path, monkeypatch):
    trained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def stop(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tf, "accuracy", stop)
    result = CliRunner().invoke(main, ["train-features", "--data", "digits", "--epochs", "1", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_command_says_what_is_missing():
    result = CliRunner().invoke(main, ["train-features", "--data", "mnist"])
    assert result.exit_code == 2
    assert "needs --data-root" in result.output


# -- what ships -----------------------------------------------------------------------------------
def test_digits_features_are_those_of_the_digits():
    """Stored in float16: to half a unit in its last place, 2⁻¹¹, and to float32 on another machine."""
    found, images = ft.Features.load("digits8"), read_images("digits")
    assert found.card["accuracy"]["test"] > 0.95
    for part, stored in ((images.train, found.train), (images.held_out, found.test)):
        np.testing.assert_allclose(found(part), stored, rtol=2**-11 * 1.01, atol=1e-5)
    assert found(torch.as_tensor(images.train[:3])).dtype == np.float64
    twin = ft.Features.load("digits8_flow")
    assert twin.name == "digits8"
    np.testing.assert_array_equal(twin.train, found.train)


@pytest.mark.parametrize(
    ("name", "kept", "right"), [("digits8", (1618, 179), 0.95), ("mnist28", (10_000, 10_000), 0.98)]
)
def test_what_ships_is_small_and_whole(name, kept, right):
    found, folder = ft.Features.load(name), ft.CHECKPOINTS / name
    tensors = load_file(folder / ft.WEIGHTS)
    assert (len(found.train), len(found.test)) == kept == tuple(found.card["kept"].values())
    assert found.card["accuracy"]["test"] > right
    assert sum(v.numel() for k, v in tensors.items() if k.startswith("net.")) == found.card["parameters"] <= 100_000
    assert (folder / ft.WEIGHTS).stat().st_size < 3e6
    assert {tensors[part].dtype for part in ("train", "test")} == {torch.float16}
    assert found.train.shape[1] == found.card["features"] <= 64
    assert found.train.var(axis=0).sum() == pytest.approx(1.0, rel=0.01)  # of the mnist ones every sixth is kept


def test_images_beyond_white_are_cut_off():
    found = ft.Features.load("digits8")
    image = RNG.standard_normal((5, 1, 8, 8)) * 2
    np.testing.assert_array_equal(found(image), found(np.clip(image, -1, 1)))
    assert np.abs(found(image) - found(image / 2)).max() > 1e-3


def test_features_that_cannot_be_had(tmp_path):
    found = ft.Features.load("digits8")
    with pytest.raises(ValueError, match=r"images have shape \(2, 1, 9, 8\); allowed: \(n, 1, 8, 8\)"):
        found(np.zeros((2, 1, 9, 8)))
    with pytest.raises(ValueError, match=r"(?s)images=.* must be finite"):
        found(np.full((2, 1, 8, 8), np.nan))
    with pytest.raises(ValueError, match="name='cifar99': there are no features; allowed: digits8"):
        ft.Features.load("cifar99")
    with pytest.raises(ValueError, match="there are no features"):
        ft.Features.load(tmp_path)
    trained(tmp_path)
    whole = (tmp_path / ft.WEIGHTS).read_bytes()
    (tmp_path / ft.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"features\.json or features\.safetensors cannot be read"):
        ft.Features.load(tmp_path)


# -- Inception ------------------------------------------------------------------------------------
def test_inception_is_asked_for_by_torch_fidelity(tmp_path, monkeypatch):
    """A stand-in for the library, whose features are the channels' means: RGB of 8 bits, −1 ↦ 0, 0 ↦ 128, 1 ↦ 255."""
    weights, asked = tmp_path / "inception.pth", []
    weights.write_bytes(b"")

    class Extractor:
        def __init__(self, name, features_list, feature_extractor_weights_path):
            asked.append((name, features_list, feature_extractor_weights_path))

        def __call__(self, x):
            assert (x.dtype, x.shape[1]) == (torch.uint8, 3)
            return (x.float().mean(dim=(2, 3)),)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    levels = np.array([-1.0, 0.0, 1.0, 3.0], dtype=np.float32)
    images = ImageSet("made", np.broadcast_to(levels[:, None, None, None], (4, 1, 6, 6)).copy(), np.zeros((2, 1, 6, 6)),
                      "", "")  # fmt: skip
    found = ft.Features.inception(images, weights)
    assert asked == [("inception-v3-compat", ["2048"], str(weights))]
    np.testing.assert_array_equal(found.train, np.repeat([[0.0], [128.0], [255.0], [255.0]], 3, axis=1))
    assert len(ft.Features.inception(images, weights, most=2).train) == 2
    assert found(images.train).shape == (4, 3)


def test_inception_that_is_not_there(tmp_path):
    images = read_images("digits")
    with pytest.raises(ValueError, match=r"weights='none\.pth' is not there"):
        ft.Features.inception(images, tmp_path / "none.pth")
    if importlib.util.find_spec("torch_fidelity") is None:
        (tmp_path / "some.pth").write_bytes(b"")
        with pytest.raises(ValueError, match="pip install torch-fidelity"):
            ft.Features.inception(images, tmp_path / "some.pth")


# -- the experiment -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def found():
    return quick(law)


def test_rows_are_what_a_loop_by_hand_gives(found):
    """DDIM written out on the network; d² by the trace; precision and recall by all distances."""
    frame, config = found
    net, features, n = learned.load("digits8"), ft.Features.load("digits8"), config["samples"]["digits8"]
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(config["seed"])).double()
    ts = (1 + np.linspace(0, 1, 6) * (math.sqrt(1e-3) - 1)) ** 2
    with torch.no_grad():
        for t, s in itertools.pairwise(ts):
            ratio = float(net.process.alpha(s) / net.process.alpha(t))
            x = ratio * x + (float(net.process.sigma(s)) - ratio * float(net.process.sigma(t))) * net.model(x, float(t))
    fake = features(x)
    row = frame[(frame.solver == "ddim") & (frame.calls == 5)].iloc[0]
    assert row.frechet == pytest.approx(by_trace(features.train, fake), rel=1e-3)
    real = features.train[np.random.default_rng(config["seed"]).choice(len(features.train), n, replace=False)]
    reach = np.sort(np.linalg.norm(real[:, None] - real, axis=2), axis=1)[:, config["neighbours"]]
    inside = (np.linalg.norm(fake[:, None] - real, axis=2) <= reach).any(axis=1).mean()
    assert row.precision == pytest.approx(inside, abs=1.5 / n)
    assert (row.nfe, row.n, row.seed, row.features) == (5, n, 0, "digits8")


def test_gaps_and_floor(found):
    frame, config = found
    own = frame[frame.solver == law.FLOW].iloc[0]
    assert own.nfe == config["reference"]["calls"]
    others = frame[frame.solver != law.FLOW]
    assert len(others) == len(config["solvers"]) * len(config["calls"])
    for calls, at in others.groupby("calls"):
        np.testing.assert_allclose(at.behind, at.frechet - at.frechet.min(), atol=1e-12)
        np.testing.assert_allclose(at.excess, at.frechet - own.frechet, atol=1e-12)
        assert (at.calls == calls).all()
    for low, value, high in (("low", "frechet", "high"), ("behind_low", "behind", "behind_high"),
                             ("excess_low", "excess", "excess_high")):  # fmt: skip
        assert ((others[low] <= others[value]) & (others[value] <= others[high])).all()
    real = ft.floor(ft.Features.load("digits8"), own.n, k=5, draws=config["floor_draws"], seed=0)
    assert (own.floor_frechet, own.floor_precision, own.floor_recall) == (real.frechet, real.precision, real.recall)
    assert (own.floor_frechet_sd, own.floor_precision_sd, own.floor_recall_sd) == real.sd
    assert own.floor_source == "pooled"


def test_sentences_turn_with_the_numbers(found):
    frame, config = found
    said = law.verdict(frame, config)
    assert said.endswith(".")
    assert "nan" not in said
    assert law.draw(frame, config).axes
    first = law.at_calls(frame, "digits8", 5)
    assert said.startswith(f"{law.headline(frame, config)}; ")
    assert f"at 5 calls: {first.index[0]} " in said
    other = frame.copy()
    other.loc[(other.solver == first.index[1]) & (other.calls == 5), "frechet"] = 1e-6
    assert f"at 5 calls: {first.index[1]} 1.0e-6 on digits8" in law.verdict(other, config)
    told, same = frame.copy(), frame.copy()
    told.loc[told.behind > 0, "behind_low"] = 1e-9
    same["behind_low"] = -1e-9
    assert "(tied: none)" in law.verdict(told, config)
    assert f"(tied: {', '.join(first.index[1:])})" in law.verdict(same, config)
    assert all(len(law.tied(law.at_calls(told, "digits8", calls))) == 0 for calls in config["calls"])
    assert all(len(law.tied(law.at_calls(same, "digits8", calls))) == len(first) - 1 for calls in config["calls"])


def test_headline_needs_all_later_calls(found):
    """From c calls on: at c and at every larger number the best one's band above the flow reaches 0."""
    frame, config = found
    beyond = "only beyond 10 calls, if at all"
    for lows, text in (
        ((-1, -1), "from 5 calls on"),
        ((1, -1), "from 10 calls on"),
        ((-1, 1), beyond),
        ((1, 1), beyond),
    ):
        other = frame.copy()
        for calls, low in zip((5, 10), lows, strict=True):
            other.loc[other.calls == calls, "excess_low"] = low
        said = law.headline(other, config)
        assert said.startswith("On digits8 the best sampler is as near to the data as the network's own flow ")
        assert said.endswith(f" {text}, as far as bands tell")


def test_headline_is_of_the_last_network_and_the_others_follow_it(found):
    frame, config = found
    far = frame.assign(model="a/mnist28", excess_low=1.0)
    two = pd.concat([frame.assign(excess_low=-1.0), far])
    said = law.headline(two, config)
    assert said == law.headline(far, config)
    assert said.startswith("On mnist28 ")
    assert law.verdict(two, config).startswith(f"{said}; on digits8 from 5 calls on; least ")
    assert law.draw(two, config).texts[0].get_text().replace("\n", " ") == said


def test_verdict_of_the_default_models_is_short(found):
    frame, config = found
    names = ["a/digits8", "b/mnist28", "c/digits8_flow"]
    many = {name: frame.assign(model=name) for name in names}
    said = law.verdict(pd.concat(many.values()), config)
    assert len(said.split()) <= 65
    assert "a/" not in said
