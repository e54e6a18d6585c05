"""Small networks: what they are told, what denoising score matching makes of them, and their use as models."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

import deis_analysis as da
from deis_analysis.networks import MLP, train_dsm

VP = da.VPLinear()
MEAN, VARIANCE = np.array([0.5, -1.0]), np.array([0.09, 0.6])
SHORT = {"steps": 20, "batch": 8, "learning_rate": 1e-3, "seed": 0}


def gaussian(count, rng):
    return MEAN + np.sqrt(VARIANCE) * rng.standard_normal((count, 2))


def parameters(net):
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])


# -- training -------------------------------------------------------------------------------------
CASES = [
    (VP, "eps", "t", None),
    (VP, "eps", "lam", 0.02),
    (VP, "x0", "lam", None),
    (VP, "v", "t", None),
    (da.EDM(0.01, 20.0), "eps", "lam", None),
    (da.RectifiedFlow(), "v", "t", None),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{type(c[0]).__name__}-{c[1]}-{c[2]}-{c[3]}")
def trained(request):
    process, prediction, uniform_in, t_end = request.param
    net = MLP(2, process, width=32, depth=2)
    record = train_dsm(
        net, gaussian, process, steps=800, batch=256, learning_rate=1e-2, seed=1,
        prediction=prediction, uniform_in=uniform_in, t_end=t_end,
    )  # fmt: skip
    return net, record, process, prediction, uniform_in, t_end


def exact(process, prediction, x, t):
    """E[a x₀ + b ε | x_t] on N(MEAN, VARIANCE), by the formula of the Gaussian posterior."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    eps = sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
    x0 = MEAN + alpha * VARIANCE * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0 if process == VP else eps - x0}[prediction]


def irreducible(process, prediction, t):
    """Mean over coordinates of the conditional variance of the target; the target is linear in x₀ for given x_t."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    slope = {
        "eps": -alpha / sigma,
        "x0": 1.0,
        "v": -(alpha**2) / sigma - sigma if process == VP else -alpha / sigma - 1,
    }
    return slope[prediction] ** 2 * np.mean(VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2))


def mean_over_times(f, process, uniform_in, t_end):
    start, end = process.sampling_range
    end = end if t_end is None else t_end

    def weight(t):
        return float(process.log_rho_rate(t)) if uniform_in == "lam" else 1.0

    def integral(g):  # substituted t = e^s, in which small times have room
        return quad(lambda s: np.exp(s) * g(np.exp(s)), np.log(end), np.log(start), epsabs=1e-9, limit=200)[0]

    return integral(lambda t: weight(t) * f(t)) / integral(weight)


def times_of(process, uniform_in, t_end):
    """60 times in the middle of equal shares of t or λ."""
    start, end = process.sampling_range
    end = end if t_end is None else t_end
    u = (np.arange(60) + 0.5) / 60
    low, high = float(process.lam(start)), float(process.lam(end))
    times = end + (start - end) * u if uniform_in == "t" else process.time_from_lam(low + (high - low) * u)
    return [float(t) for t in times]


def distance(net, process, prediction, t):
    """Mean squares of the network minus the exact prediction, and of the exact prediction."""
    x = float(process.alpha(t)) * gaussian(2000, np.random.default_rng(7))
    x += float(process.sigma(t)) * np.random.default_rng(8).standard_normal(x.shape)
    truth = exact(process, prediction, x, t)
    return np.mean((net(x, t) - truth) ** 2), np.mean(truth**2)


def test_training_finds_the_exact_prediction(trained):
    """Excess loss, the mean square distance to the exact prediction over times as trained, against its mean square."""
    net, _, process, prediction, uniform_in, t_end = trained
    times = times_of(process, uniform_in, t_end)
    distances, squares = np.array([distance(net, process, prediction, t) for t in times]).mean(axis=0)
    assert distances < 0.006 * squares  # rectified flow 0.0028, the others below 0.001


def test_the_loss_is_that_of_the_exact_prediction_plus_the_excess(trained):
    """Mean of the last 200 batches, 102,400 numbers: its standard error is about 0.5 %."""
    net, record, process, prediction, uniform_in, t_end = trained
    floor = mean_over_times(lambda t: irreducible(process, prediction, t), process, uniform_in, t_end)
    above = np.mean([distance(net, process, prediction, t)[0] for t in times_of(process, uniform_in, t_end)])
    assert record.losses.shape == (record.steps,) == (800,)
    assert record.seconds > 0
    assert np.isclose(record.losses[-200:].mean(), floor + above, rtol=0.015)


def test_points_of_an_array_are_drawn_alike():
    """Data {−1, 1}: ε* = (x − α tanh(αx/σ²))/σ; with one point drawn more often, tanh is shifted."""
    net = MLP(1, VP, width=32, depth=2)
    train_dsm(net, [[-1.0], [1.0]], VP, steps=1000, batch=256, learning_rate=1e-2, seed=0, uniform_in="lam", t_end=0.05)
    for t in (0.2, 0.5, 1.0):
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        x = np.linspace(-2, 2, 81)[:, None]
        weight = np.exp(-0.5 * ((np.abs(x) - alpha) / sigma) ** 2)
        gap = net(x, t) - (x - alpha * np.tanh(alpha * x / sigma**2)) / sigma
        assert np.sum(weight * gap**2) / np.sum(weight) < 0.005


class Recorder(torch.nn.Module):
    """Writes down the times it is asked at."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.times = []

    def forward(self, x, t):
        assert t.shape == x.shape[:1]
        assert t.dtype == x.dtype == torch.float64
        self.times.append(t.numpy().copy())
        return self.linear(x)


@pytest.mark.parametrize("uniform_in", ["t", "lam"])
@pytest.mark.parametrize("t_end", [None, 0.1])
def test_times_are_uniform_over_the_sampling_range_and_stratified(uniform_in, t_end):
    net = Recorder()
    train_dsm(net, gaussian, VP, steps=50, batch=40, learning_rate=1e-3, seed=0, uniform_in=uniform_in, t_end=t_end)
    low, high = (1e-3 if t_end is None else t_end), 1.0
    clock = VP.lam if uniform_in == "lam" else np.asarray
    u = (clock(np.array(net.times)) - clock(low)) / (clock(high) - clock(low))
    assert u.shape == (50, 40)
    assert np.all((u >= 0) & (u <= 1))
    assert np.all(np.sort(np.clip(u * 40, 0, 39.999999), axis=1).astype(int) == np.arange(40))
    assert kstest(u.ravel(), "uniform").pvalue > 0.01
    assert kstest((u * 40 % 1).ravel(), "uniform").pvalue > 0.01


def test_a_seed_makes_a_network():
    state = torch.get_rng_state()
    runs = []
    for seed, start in ((0, 0), (0, 0), (1, 0), (0, 1)):
        torch.rand(3)  # the global generator has no say
        net = MLP(2, VP, 16, 2, seed=start)
        record = train_dsm(net, gaussian, VP, **(SHORT | {"seed": seed}))
        runs.append((parameters(net), record.losses))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][1], runs[1][1])
    assert np.abs(runs[0][0] - runs[2][0]).max() > 1e-6
    assert np.abs(runs[0][0] - runs[3][0]).max() > 1e-2
    torch.set_rng_state(state)
    MLP(2, VP, 16)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("average", "decay"), [(0.0, 0.0), (0.25, 0.9), (1.0, 0.975)])
def test_it_ends_with_averaged_weights(average, decay):
    net, seen, shares = MLP(2, VP, 8, 1), [], []
    seen.append(parameters(net))

    def note(share):
        shares.append(share)
        seen.append(parameters(net))

    train_dsm(net, gaussian, VP, **(SHORT | {"steps": 40}), average=average, progress=note)
    mean = seen[1]
    for now in seen[2:]:
        mean = decay * mean + (1 - decay) * now
    assert np.allclose(parameters(net), mean, rtol=1e-12, atol=1e-14)
    assert np.allclose(shares, np.arange(1, 41) / 40)


def test_adam_with_a_cosine():
    """The first step of Adam has the size of the learning rate, whatever the gradient; it falls to 0 at the end."""
    net, seen = MLP(2, VP, 8, 1), []
    before = parameters(net)
    train_dsm(net, gaussian, VP, **(SHORT | {"steps": 100}), progress=lambda _: seen.append(parameters(net)))
    first = np.abs(seen[0] - before)
    assert np.isclose(np.median(first), 1e-3, rtol=1e-3)
    rates = 0.5e-3 * (1 + np.cos(np.pi * np.arange(100) / 100))
    sizes = np.abs(np.diff(seen, axis=0)).max(axis=1) / rates[1:]
    assert np.all((sizes > 0.2) & (sizes < 3))


# -- the network as a model -----------------------------------------------------------------------
def test_what_the_network_is_told():
    process = da.EDM(0.01, 50.0)
    net = MLP(2, process, 8, 1, features=2)
    x = np.array([[0.3, -4.0], [20.0, 1.0]])
    for t in (0.01, 0.7, 50.0):
        u = -1 + 2 * (np.log(50.0) - np.log(t)) / (np.log(50.0) - np.log(0.01))  # λ = −log t
        told = [u, np.sin(np.pi * u / 2), np.sin(np.pi * u), np.cos(np.pi * u / 2), np.cos(np.pi * u)]
        inputs = np.concatenate([x / np.sqrt(1 + t * t), np.tile(told, (2, 1))], axis=1)
        assert np.allclose(net(x, t), net.layers(torch.tensor(inputs)).detach().numpy(), rtol=1e-12)
    assert np.array_equal(MLP(2, VP)(x, 0.0), MLP(2, VP)(x, 1e-3))  # held at the end of the sampling range


def test_one_time_per_point_is_the_same_as_a_float():
    net, times = MLP(3, VP, 16, 2), [0.001, 0.3, 1.0]
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = net(x, torch.tensor(times, dtype=torch.float64))
    assert torch.allclose(together, torch.stack([net(x[i], t) for i, t in enumerate(times)]), rtol=1e-12)
    assert net(x[None], 0.3).shape == (1, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_trained_network_is_a_model(dtype):
    """Kind and dtype of the state are kept, no graph is built, and the flow is near the exact flow of the Gaussian."""
    net = MLP(2, VP, 32, 2, dtype=dtype)
    train_dsm(net, gaussian, VP, steps=600, batch=256, learning_rate=1e-2, seed=0, uniform_in="lam")
    alpha, sigma = (np.array([float(f(t)) for t in (1.0, 1e-3)]) for f in (VP.alpha, VP.sigma))
    x = np.random.default_rng(0).standard_normal((200, 2))
    scale = np.sqrt(alpha[:, None] ** 2 * VARIANCE + sigma[:, None] ** 2)
    truth = alpha[1] * MEAN + (x - alpha[0] * MEAN) * scale[1] / scale[0]
    found = da.reference_solution(net, VP, x, rtol=1e-5, atol=1e-5, certify=False).x
    table = da.build("tab3", VP, da.grid(VP, 40))
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.1
    assert np.sqrt(np.mean((da.run(table, net, x) - found) ** 2)) < 0.01
    for state in (torch.tensor(x), torch.tensor(x, dtype=torch.float32)):
        result = da.run(table, net, state)
        assert result.dtype == state.dtype
        assert not result.requires_grad
    assert da.run(table, net, x.astype(np.float32)).dtype == np.float32
    assert not net.training


def test_it_can_be_differentiated_in_x():
    net = MLP(2, VP, 16, 2)
    train_dsm(net, gaussian, VP, **SHORT)
    x, h = torch.tensor([0.3, -0.7], dtype=torch.float64), 1e-5
    jacobian = torch.func.jacrev(lambda y: net(y, 0.4))(x)
    for j in range(2):
        e = h * torch.eye(2, dtype=torch.float64)[j]
        assert torch.allclose(jacobian[:, j], (net(x + e, 0.4) - net(x - e, 0.4)) / (2 * h), atol=1e-8)


def test_it_can_be_pickled():
    net = MLP(2, VP, 16, 2)
    record = train_dsm(net, gaussian, VP, **SHORT)
    again, its_record = pickle.loads(pickle.dumps((net, record)))
    x = np.random.default_rng(0).standard_normal((5, 2))
    assert np.array_equal(again(x, 0.2), net(x, 0.2))
    assert np.array_equal(its_record.losses, record.losses)


def test_bad_input():
    good = {"net": MLP(2, VP, 8, 1), "data": gaussian, "process": VP, **SHORT}
    for change, message in (
        ({"net": 3}, "net=3 must be a Module"),
        ({"process": 3}, "process=3 must be a Process"),
        ({"process": da.MeanReverting(VP, 1.0)}, "reverts to a mean"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"average": 2.0}, "average=2.0"),
        ({"prediction": "score"}, "prediction='score' is unknown"),
        ({"uniform_in": "rho"}, "uniform_in='rho' is unknown"),
        ({"t_end": 2.0}, "t_end=2.0 must lie in"),
        ({"t_end": 1.0}, "t_end=1.0 must be below"),
        ({"t_end": 0.0, "uniform_in": "lam"}, "t_end=0.0: λ is infinite"),
        ({"data": np.ones(3)}, r"data has shape \(3,\)"),
        ({"data": [[np.nan, 0.0]]}, "data=.* must be finite"),
        ({"data": lambda n, rng: np.ones((n + 1, 2))}, r"data gave shape \(9, 2\); allowed: \(8, ...\)"),
        ({"learning_rate": 1e300}, "learning_rate=1e.300 may be too large"),
    ):
        with pytest.raises(ValueError, match=message):
            train_dsm(**(good | change))
    for arguments, message in (
        ((0, VP), "dimension=0"),
        ((2, "VP"), "process='VP' must be a Process"),
        ((2, VP, 0), "width=0"),
        ((2, VP, 8, 0), "depth=0"),
    ):
        with pytest.raises(ValueError, match=message):
            MLP(*arguments)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\); allowed: \(..., 2\)"):
        MLP(2, VP)(np.ones((4, 3)), 0.5)
