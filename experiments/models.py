"""Which models is the study run on? Each with its noise process, starts, and a ground truth that is exact or certified.

``mixture``   4 independent coordinates of 1-D mixtures: exact score, exact flow
``gaussian``  one Gaussian with the digits' mean and covariance, 64-D: exact score, exact flow
``digits``    the ideal denoiser of the 1,797 digits, 64-D: exact score; flow by DOPRI5 with an error estimate
``network``   a small network trained by denoising score matching on a 2-D mixture; flow by DOPRI5

Expensive parts, the trained network and the DOPRI5 runs, are kept on disk in ``figures/.cache``, under a hash of all
that they depend on, sources included; experiments share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Memory

import deis_analysis as da
from deis_analysis.process import Array, Process
from experiments import Config, problems
from experiments.runner import FIGURES, shared_sources
from experiments.toy_network import QUICK_TRAINING, TRAINING, toy_mixture, toy_network

BASE: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "samples": 256,
    "seed": 0,
    "rtol": 1e-7,
    "std": 0.0,
    "floor": 1e-4,
    "device": "cpu",
}  # what `study` reads; an experiment's CONFIG begins with it, and its QUICK with
BASE_QUICK: Config = {"samples": 64, "rtol": 1e-5, **QUICK_TRAINING}
CACHE = Memory(FIGURES / ".cache", verbose=0)
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Study:
    """A model to be sampled from, and what is known about it.

    Attributes:
        name, title: short and printed name.
        process: the forward process. model: ε model on (n, d) float64 torch tensors.
        x_T: (n, d) starts. data: (m, d) what a perfect sampler's law is to be compared with.
        exact: the mixture with exact flow whose ε the model is, or for ``network`` was trained on; None for the digits.
        trained: whether the model is a network, which differs from ``exact``.
    """

    name: str
    title: str
    process: Process
    model: Callable[[Any, float], Any]
    x_T: Any
    data: Array
    exact: da.GaussianMixture | da.ProductMixture | None
    trained: bool
    config: tuple[tuple[str, Any], ...]

    def path(self, times: Iterable[float]) -> tuple[Callable[[float], Any], float]:
        """(exact state at each of the times as a function of t, its estimated error); ``x_T`` is the first state."""
        levels = tuple(sorted({float(t) for t in times} | {float(dict(self.config)["t_start"])}, reverse=True))
        if self.exact is not None and not self.trained:
            mix = self.exact
            states = [mix.flow(self.process, self.x_T, levels[0], t) if i else self.x_T for i, t in enumerate(levels)]
            return dict(zip(levels, states, strict=True)).__getitem__, 0.0
        found = _certified(self.name, self.process, self.config, levels, shared_sources())
        device = self.x_T.device

        def state(t: float) -> Any:
            return found(float(t)).to(device)

        return state, found.error_estimate

    def reference(self, t_end: float) -> tuple[Any, float]:
        """(exact states at ``t_end``, their estimated error)."""
        state, error = self.path([t_end])
        return state(t_end), error

    def solve(self, solver: str, ts: Array, noise: Any = None) -> Any:
        """The samples of a registry solver on a grid, (n, d)."""
        table = da.build(solver, self.process, ts).in_terms_of(self.process, "eps")
        return da.run(table, self.model, self.x_T, noise)


def study(name: str, config: Config, process: Process | None = None) -> Study:
    """One of `MODELS` under a configuration (the keys of `BASE`); the process is VPLinear unless given."""
    if name not in MODELS:
        raise ValueError(f"model={name!r} is unknown; allowed: {', '.join(MODELS)}")
    chosen = {key: config.get(key, BASE[key]) for key in BASE}
    chosen |= {key: value for key, value in config.items() if key in TRAINING}
    return _build(name, problems.vp_linear(config) if process is None else process, tuple(sorted(chosen.items())))


def _build(name: str, process: Process, settings: tuple[tuple[str, Any], ...]) -> Study:
    import torch

    config = dict(settings)
    title, parts = MODELS[name]
    model, exact, data, trained = parts(process, config)
    scale = max(1.0, float(process.sigma(config["t_start"])))  # N(0, 1) on VP and flows, N(0, σ²) on VE
    x_T = torch.tensor(
        scale * problems.noise(config["samples"], data.shape[1], config["seed"]), device=config["device"]
    )
    return Study(name, title, process, model, x_T, data, exact, trained, settings)


Parts = tuple[Callable[[Any, float], Any], Any, Array, bool]


def _mixture(process: Process, config: Config) -> Parts:
    mix = problems.product_mixture()
    return mix.eps(process), mix, mix.sample(4096, seed=1), False


def _gaussian(process: Process, config: Config) -> Parts:
    mix = problems.gaussian_like(problems.digits(), config["floor"])
    return mix.eps(process), mix, mix.sample(4096, seed=1), False


def _digits(process: Process, config: Config) -> Parts:
    import torch

    data = problems.digits()
    points = torch.tensor(data, device=config["device"])
    return da.ideal_denoiser(points, process, std=config["std"]), None, data, False


def _network(process: Process, config: Config) -> Parts:
    if process != problems.vp_linear(config):
        raise ValueError(f"model='network' was trained on VPLinear; allowed: no other process, such as {process!r}")
    settings = {key: value for key, value in config.items() if key in TRAINING or key.startswith("beta_")}
    net = _trained(tuple(sorted(settings.items())), shared_sources()).to(config["device"])
    mix = toy_mixture()
    return net, mix, mix.sample(4096, seed=1), True


MODELS: dict[str, tuple[str, Callable[[Process, Config], Parts]]] = {
    "mixture": ("exact 4-D mixture", _mixture),
    "gaussian": ("Gaussian with the digits' moments", _gaussian),
    "digits": ("ideal denoiser of the digits", _digits),
    "network": ("network trained on a 2-D mixture", _network),
}


@CACHE.cache
def _trained(settings: tuple[tuple[str, Any], ...], sources: str) -> Any:
    return toy_network(dict(settings))


@CACHE.cache
def _certified(
    name: str, process: Process, settings: tuple[tuple[str, Any], ...], times: tuple[float, ...], sources: str
) -> Any:
    from deis_analysis.reference import reference_path

    rtol = dict(settings)["rtol"]
    problem = _build(name, process, settings)
    return reference_path(problem.model, process, problem.x_T, times, rtol, rtol)


def trim_cache() -> None:
    """Drop the results used longest ago, down to 1 GiB."""
    if Path(CACHE.location or "").exists():
        CACHE.reduce_size(bytes_limit=_CACHE_BYTES)
