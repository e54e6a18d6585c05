"""The fitting error of the score on the plane: its measure, its rank correlation, and its verdict."""

from __future__ import annotations

import pickle
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import deis_analysis as da
from deis_analysis.networks import MLP, train_dsm
from experiments.models import toy_network
from experiments.paper import fig2_fitting_error as fig2

VP = da.VPLinear()
MIX = toy_network.toy_mixture()
CONFIG = {**fig2.CONFIG, **fig2.QUICK}


@given(st.floats(1e-3, 1.0), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.integers(0, 2**31))
def test_the_error_is_that_of_the_score(t, a, b, seed):
    """ε_θ = ε* − σ c gives s_θ = s* + c."""
    x = np.random.default_rng(seed).uniform(-3, 3, (4, 2))

    def net(x, t):
        return MIX.eps(VP)(x, t) - float(VP.sigma(t)) * np.array([a, b])

    found = fig2.fitting_error(net, MIX, VP, x, t)
    scale = np.abs(MIX.score(VP)(x, t)).max()
    assert np.allclose(found, np.hypot(a, b), rtol=1e-9, atol=1e-13 * scale)


def test_the_true_score_is_the_gradient_of_the_log_density():
    x, t, h = np.random.default_rng(0).uniform(-2, 2, (20, 2)), 0.1, 1e-5
    for j in range(2):
        e = h * np.eye(2)[j]
        slope = (MIX.log_prob(x + e, VP, t) - MIX.log_prob(x - e, VP, t)) / (2 * h)
        assert np.allclose(MIX.score(VP)(x, t)[:, j], slope, rtol=1e-6, atol=1e-6)


def test_rank_correlation():
    rng = np.random.default_rng(0)
    a, groups = rng.standard_normal(300), np.arange(300)
    assert np.allclose(fig2.rank_correlation(a, -np.exp(a), groups, 0, 50), -1.0)
    assert np.allclose(fig2.rank_correlation(a, a**3, groups, 0, 50), 1.0)
    b = 0.6 * a + 0.8 * rng.standard_normal(300)  # bivariate normal: ρ_S = (6/π) arcsin(r/2)
    rho, low, high = fig2.rank_correlation(a, b, groups, 0, 500)
    assert low < rho < high
    assert abs(rho - 6 / np.pi * np.arcsin(0.3)) < 0.1
    assert 0.8 < (high - low) / (2 * 1.96 * (1 - rho**2) * np.sqrt(1 + rho**2 / 2) / np.sqrt(300)) < 1.25


@given(st.integers(0, 2**31), st.integers(2, 4))
def test_copies_of_points_do_not_narrow_the_interval(seed, copies):
    a, b = np.random.default_rng(seed).standard_normal((2, 12))
    once = fig2.rank_correlation(a, b, np.arange(12), 0, 8)
    copied = fig2.rank_correlation(*(np.repeat(v, copies) for v in (a, b, np.arange(12))), 0, 8)
    assert np.allclose(once, copied, atol=1e-12)


def test_the_plane_and_its_blocks():
    x, block = fig2._plane({"points": 12, "blocks": 4, "half_width": 3.0})
    assert x.shape == (144, 2)
    assert np.array_equal(x[:12, 1], np.full(12, -3.0))  # y is slowest
    assert np.allclose(x[:12, 0], np.linspace(-3, 3, 12))
    assert np.array_equal(np.bincount(block), np.full(16, 9))
    for b in range(16):
        assert np.ptp(x[block == b], axis=0).max() < 2 * 6 / 11 + 1e-9


def computed(monkeypatch, error):
    """The frame of a network whose score is off by ``error(p_t)``."""

    def net(x, t):
        off = error(np.exp(MIX.log_prob(x, VP, t)))
        return MIX.eps(VP)(x, t) - float(VP.sigma(t)) * off[:, None] * np.array([0.6, -0.8])

    monkeypatch.setattr(fig2.studies, "study", lambda name, config: SimpleNamespace(model=net))
    return fig2.compute(CONFIG, lambda share: None)


def ratios_said(said):
    """The least and the largest ratio of the errors in the outer tenths."""
    return [float(r) for r in re.search(r"the median error is ([\d.]+) to ([\d.]+) times", said).groups()]


def test_the_verdict_turns_with_the_data(monkeypatch):
    frame = computed(monkeypatch, lambda p: p**-0.05)
    points = frame[frame.part == "plane"]
    assert np.allclose(points.error, np.exp(-0.05 * points.log_density), rtol=1e-4)
    said = fig2.verdict(frame, CONFIG)
    assert "falls as the density rises in 6 of 6 cases, rises in 0 (" in said
    assert "correlation -1.0 on the plane, -1.0 on samples of p_t" in said
    found = fig2.findings(frame)
    assert np.allclose(found[["rho", "low", "high"]], -1.0, atol=5e-3)
    ratios = found[found["where"] == "plane"].ratio
    assert np.allclose(ratios_said(said), [ratios.min(), ratios.max()], rtol=0.05)
    for t, ratio in zip(CONFIG["times"], ratios, strict=True):
        p = np.sort(np.exp(points.log_density[points.t == t]))
        n = len(p) // 10
        assert np.isclose(ratio, (np.median(p[-n:]) / np.median(p[:n])) ** 0.05, rtol=0.05)

    frame = computed(monkeypatch, lambda p: p**0.05)
    said = fig2.verdict(frame, CONFIG)
    assert "falls as the density rises in 0 of 6 cases, rises in 6 (" in said
    assert max(ratios_said(said)) < 1


def test_an_error_that_does_not_depend_on_density_is_undecided(monkeypatch):
    rng = np.random.default_rng(5)
    frame = computed(monkeypatch, lambda p: rng.uniform(1, 2, p.shape))
    found = fig2.findings(frame)
    assert (found.falls.sum() + (found.low > 0).sum()) <= 1  # six 95 % intervals
    said = fig2.verdict(frame, CONFIG)
    assert f"in {found.falls.sum()} of 6 cases, rises in {(found.low > 0).sum()} (" in said
    assert ((found.low <= 0) & (found.high >= 0)).sum() >= 5


def test_samples_follow_the_density(monkeypatch):
    """Means α E x₀, variances α² Var x₀ + σ²."""
    frame = computed(monkeypatch, lambda p: 1 + p)
    for t in CONFIG["times"]:
        rows = frame[(frame.part == "samples") & (frame.t == t)]
        assert len(rows) == CONFIG["samples"]
        means = [float(VP.alpha(t)) * (m.weights @ m.means) for m in MIX.marginals]
        assert np.allclose(rows[["x", "y"]].mean(), means, atol=4 * 1.2 / np.sqrt(len(rows)))
        parts = [m.weights @ (m.covariances + m.means**2) - (m.weights @ m.means) ** 2 for m in MIX.marginals]
        wanted = float(VP.alpha(t)) ** 2 * np.array(parts) + float(VP.sigma(t)) ** 2
        assert np.allclose(rows[["x", "y"]].var() / wanted, 1, atol=0.02 + 3 / np.sqrt(len(rows)))
        assert np.allclose(MIX.log_prob(rows[["x", "y"]].to_numpy(), VP, t), rows.log_density, atol=2e-3)


def test_it_is_drawn(monkeypatch):
    frame = computed(monkeypatch, lambda p: 1 / (1 + p))
    figure = fig2.draw(frame, CONFIG)
    assert fig2.verdict(frame, CONFIG).startswith(figure.texts[0].get_text().replace("\n", " ") + ", rises in 0")
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["t = 0.02", "t = 0.1", "t = 0.4"]
    assert all(len(ax.images) == 1 for ax in figure.axes[:3])
    assert all(len(ax.lines) == 4 for ax in figure.axes[3:6])  # points and medians, of the plane and of samples
    plt.close(figure)


def test_the_toy_network_is_made_by_its_configuration():
    config = {**CONFIG, "train_steps": 30, "train_batch": 16, "width": 8, "depth": 1}
    x = np.random.default_rng(0).uniform(-2, 2, (5, 2))
    first = toy_network.toy_network(config)
    assert {"train_steps", "train_batch", "train_seed", "width", "depth"} <= toy_network.TRAINING.keys()
    assert np.array_equal(first(x, 0.1), toy_network.toy_network(config)(x, 0.1))
    assert np.array_equal(first(x, 0.1), pickle.loads(pickle.dumps(first))(x, 0.1))
    again = MLP(2, VP, 8, 1, seed=1)
    train_dsm(again, MIX.sample, VP, steps=30, batch=16, learning_rate=1e-2, uniform_in="lam", seed=1)
    assert np.array_equal(again(x, 0.1), toy_network.toy_network({**config, "train_seed": 1})(x, 0.1))
    for key, value in {"train_seed": 1, "train_steps": 31, "train_rate": 1e-3, "train_times": "t", "width": 9,
                       "depth": 2, "train_batch": 17, "beta_max": 15.0}.items():  # fmt: skip
        assert not np.allclose(first(x, 0.1), toy_network.toy_network({**config, key: value})(x, 0.1), rtol=1e-9)


def test_a_short_training_beats_the_best_linear_score():
    """ε of the Gaussian with the mixture's mean and covariance is the best linear prediction."""
    net = toy_network.toy_network({**CONFIG, "train_steps": 1000})
    means = np.array([m.weights @ m.means for m in MIX.marginals])
    second = np.array([m.weights @ (m.covariances + m.means**2) for m in MIX.marginals])
    linear = da.GaussianMixture([1.0], means[None], (second - means**2)[None]).eps(VP)
    for t in (0.02, 0.1):
        x = MIX.sample(2000, 3, VP, t)
        truth = MIX.eps(VP)(x, t)
        assert np.mean((net(x, t) - truth) ** 2) < 0.6 * np.mean((linear(x, t) - truth) ** 2)
