"""Which models is the study run on? Each with its noise process, starts, and a ground truth that is exact or certified.

``mixture``   4 independent coordinates of 1-D mixtures: exact score, exact flow
``gaussian``  one Gaussian with the digits' mean and covariance, 64-D: exact score, exact flow
``digits``    the ideal denoiser of the 1,797 digits, 64-D: exact score; flow by DOPRI5 with an error estimate
``network``   a small network trained by denoising score matching on a 2-D mixture; flow by DOPRI5

and the image networks of `deis_analysis.networks.load`: those that ship, ``digits8 digits8_flow mnist28``, folders, and
hub ids. They run in float32 under a float64 state; their flow is that of the same network in float64, by DOPRI5,
certified by a second method.

Expensive parts, the trained network and the DOPRI5 runs, are kept on disk in ``figures/.cache``, under a hash of all
that they depend on, sources included; experiments share them. References of image networks are kept under a hash of
weights, process, starts, times and tolerance instead, and some ship beside the network: see ``certify``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Memory

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from deis_analysis.storage import module_of
from experiments import Config
from experiments.core.paths import CHECKPOINTS, FIGURES, kept_in, without_tf32
from experiments.core.sources import depends_on
from experiments.models import problems
from experiments.models.toy_network import QUICK_TRAINING, TRAINING, toy_mixture, toy_network

if TYPE_CHECKING:
    from deis_analysis.networks import Network
    from deis_analysis.reference.flow import ReferencePath

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
    "network_samples": 64,
    "network_rtol": 1e-6,
    "network_tolerance": 3e-4,
    "network_dtype": "float32",
    "allow_pickle": False,
    "device": "cpu",
}  # what `study` reads; an experiment's CONFIG begins with it, and its QUICK with
BASE_QUICK: Config = {
    "samples": 64,
    "rtol": 1e-5,
    "network_samples": 16,
    "network_rtol": 1e-4,
    "network_tolerance": 1e-2,
    **QUICK_TRAINING,
}
IMAGES = ["digits8", "digits8_flow", "mnist28"]  # networks of many figures, dear enough to be kept: see `by_model`
CACHE = Memory(kept_in(FIGURES / ".cache"), verbose=0)
REFERENCES = "references"  # folder of certified solutions, in the cache and beside a shipped network
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEAR = ("mnist28",)  # a certificate of whose 64 samples takes more than an hour of one core: one seed of the starts
NETWORKS = tuple(sorted(card.parent.name for card in CHECKPOINTS.glob("*/card.json")))
_OWN_SAMPLES, _OWN_STEPS, _OWN_SEED = 256, 25, 1  # of a network's own law
_OF_MIXTURES = 4096  # samples that stand for the law of a mixture
_CACHE_BYTES = 2**30
_CACHED_PIXELS = 16 * 28 * 28  # measured: parts of 8 to 16 images of MNIST take 0.8 times the time of 32 at once


@dataclass(frozen=True)
class Study:
    """A model to be sampled from, and what is known about it.

    Attributes:
        name, title: short and printed name.
        process: the forward process. model: ε model on (n, d) float64 torch tensors.
        x_T: (n, d) starts; of images d is the number of all their values.
        exact: the mixture with exact flow whose ε the model is, or for ``network`` was trained on; None for the digits
            and for image networks.
        trained: whether the model is a network, which differs from ``exact``.
        network: the image network, None for the other models.
    """

    name: str
    title: str
    process: Process
    model: Callable[[Any, float], Any]
    x_T: Any
    samples: Callable[[], Array]
    exact: da.GaussianMixture | da.ProductMixture | None
    trained: bool
    config: tuple[tuple[str, Any], ...]
    network: Network | None = None

    @cached_property
    def data(self) -> Array:
        """(m, d) what a perfect sampler's law is to be compared with; for an image network, samples of its own law."""
        return self.samples()

    def path(self, times: Iterable[float]) -> tuple[Callable[[float], Any], float]:
        """(exact state at each of the times as a function of t, its estimated error); ``x_T`` is the first state.

        The error of an image network's flow is the largest difference of the two methods that certify it, per value.
        """
        levels = tuple(sorted({float(t) for t in times} | {float(dict(self.config)["t_start"])}, reverse=True))
        if self.exact is not None and not self.trained:
            mix = self.exact
            states = [mix.flow(self.process, self.x_T, levels[0], t) if i else self.x_T for i, t in enumerate(levels)]
            return dict(zip(levels, states, strict=True)).__getitem__, 0.0
        if self.network is None:
            found = _certified(self.name, self.process, self.config, levels, depends_on(__name__))
        else:
            found = self._network_path(levels)
            return (lambda t: found(float(t)).to(self.x_T.device)), found.agreement
        device = self.x_T.device

        def state(t: float) -> Any:
            return found(float(t)).to(device)

        return state, found.error_estimate

    def reference(self, t_end: float) -> tuple[Any, float]:
        """(exact states at ``t_end``, their estimated error)."""
        state, error = self.path([t_end])
        return state(t_end), error

    def eps_on_path(self, times: Iterable[float]) -> tuple[dict[float, Array], float]:
        """({t: (n, d) the model's ε of the exact states}, the estimated error of these)."""
        levels = dict.fromkeys(times)
        state, error = self.path(levels)
        return {t: np.asarray(self.model(state(t), t).cpu()) for t in levels}, error

    def certified(self) -> ReferencePath:
        """The certified flow of an image network at the two ends of the configuration.

        Raises:
            ValueError: the model is no image network.
        """
        if self.network is None:
            raise ValueError(f"model={self.name!r} is no image network; allowed: {WHAT_NETWORKS}")
        config = dict(self.config)
        return self._network_path((config["t_start"], config["t_end"]))

    def _network_path(self, levels: Iterable[float]) -> ReferencePath:
        """The flow of the network as it is loaded in float32, whatever dtype is sampled in."""
        assert self.network is not None
        config, net = dict(self.config), self.network
        if config["network_dtype"] not in ("float32", "float64"):
            net = image_network(self.name, config["device"], config["allow_pickle"])
        return network_path(net, self.process, self.x_T, levels, config)

    def first(self, count: int) -> Study:
        """The same study of the first starts only."""
        return dataclasses.replace(self, x_T=self.x_T[:count])

    def solve(self, solver: str, ts: Array, noise: Any = None) -> Any:
        """The samples of a registry solver on a grid, (n, d)."""
        table = da.build(solver, self.process, ts).in_terms_of(self.process, "eps")
        return da.run(table, self.model, self.x_T, noise)


def study(name: str, config: Config, process: Process | None = None) -> Study:
    """One of `MODELS`, or an image network, under a configuration (the keys of `BASE`); VPLinear unless given.

    An image network is carried to the process: its ε at the same ρ.

    Raises:
        ValueError: a model that is not known or cannot be loaded.
    """
    if not is_model(name):
        raise ValueError(f"model={name!r} is unknown; allowed: {', '.join(MODELS)}, {WHAT_NETWORKS}")
    chosen = {key: config.get(key, BASE[key]) for key in BASE}
    chosen |= {key: value for key, value in config.items() if key in TRAINING}
    return _build(name, problems.vp_linear(config) if process is None else process, tuple(sorted(chosen.items())))


def on_its_own_process(name: str, config: Config) -> Study:
    """An image network on the process that it was trained on, over that process's sampling range."""
    net = image_network(name, config["device"], config["allow_pickle"], config["network_dtype"])
    start, end = net.process.sampling_range
    return study(name, {**config, "t_start": start, "t_end": end}, net.process)


def problem_on(name: str, config: Config, process: Process) -> problems.Problem:
    """A model on any process from ``t_start`` to ``t_end`` of the configuration.

    The small network was trained on VPLinear: it is asked its ε at x σ_VP/σ where ρ is the same, beyond its times at
    its last, and its flow is DOPRI5's.
    """
    span, vp = (config["t_start"], config["t_end"]), problems.vp_linear(config)
    if name != "network" or process == vp:
        found = study(name, config, process)
        truth, estimate = found.reference(span[1])
        exact = None if found.trained else found.exact
        places = None if found.exact is not None else truth if found.network else truth.new_tensor(found.data)
        return problems.Problem(process, found.model, found.x_T, truth, span, estimate, exact, places)
    on_vp = study(name, {**config, "t_start": 1.0}, vp)

    def eps(x: Any, t: float) -> Any:
        t_vp = float(vp.time_from_rho(min(float(process.rho(t)), float(vp.rho(1.0)))))
        return on_vp.model(x * float(vp.sigma(t_vp) / process.sigma(t)), t_vp)

    x_T = problems.start_scale(process, span[0]) * on_vp.x_T
    return problems.Problem.solved(process, eps, x_T, span, config["rtol"])


def is_model(name: str) -> bool:
    """Whether ``name`` can be meant as a model: one of `MODELS`, a shipped network, a path, FILE.py:make, a hub id."""
    known = name in MODELS or name in NETWORKS or Path(name).exists()
    return known or bool(re.fullmatch(r"[\w.-]+/[\w.-]+|.+\.py:\w+", name))


def _build(name: str, process: Process, settings: tuple[tuple[str, Any], ...]) -> Study:
    import torch

    config = dict(settings)
    scale = problems.start_scale(process, config["t_start"])

    def starts(n: int, dimension: int) -> Any:
        return torch.tensor(scale * problems.noise(n, dimension, config["seed"]), device=config["device"])

    if name in MODELS:
        known, parts = MODELS[name]
        model, exact, data, trained = parts(process, config)
        x_T = starts(config["samples"], exact.dimension if data is None else data.shape[1])

        def samples() -> Array:
            return exact.sample(_OF_MIXTURES, seed=1) if data is None else data

        return Study(name, known, process, model, x_T, samples, exact, trained, settings)
    net = image_network(name, config["device"], config["allow_pickle"], config["network_dtype"])
    x_T = starts(_count(name, config), math.prod(net.shape))

    def own() -> Array:
        return own_samples(net, net.digest, process, config["t_start"], config["t_end"], config["device"])

    sized = f"{net.name}, {'×'.join(map(str, net.shape[1:]))} image network"
    return Study(name, sized, process, flat(net, process), x_T, own, None, True, settings, net)


def title(name: str) -> str:
    """The printed name of a model of the study, or of an image network without loading it."""
    return MODELS[name][0] if name in MODELS else f"image network {Path(name.rpartition(':')[2] or name).name}"


def _count(name: str, config: Config) -> int:
    """How many samples there are of a model."""
    samples = int(config["samples"])
    return samples if name in MODELS else min(samples, config["network_samples"])


def how_many(config: Config) -> str:
    """How many samples a figure is made of, in words: there are fewer of image networks."""
    most, *fewer = sorted({_count(name, config) for name in config["models"]}, reverse=True)
    return f"{most} samples" + "".join(f", {n} of image networks" for n in fewer)


def seeds(name: str, config: Config) -> list[int]:
    """The seeds of a model's starts, the first of which counts; the others give the range over seeds."""
    return [config["seed"]] if name in DEAR else [config["seed"], *(s for s in config["seeds"] if s != config["seed"])]


def how_many_seeds(config: Config) -> str:
    """How many seeds the ranges are of, in words."""
    one = [name for name in config["models"] if name in DEAR]
    return f"{len(config['seeds'])} seeds" + (f" (one of {', '.join(one)})" if one else "")


# -- image networks -------------------------------------------------------------------------------
@cache
def image_network(name: str, device: str = "cpu", allow_pickle: bool = False, dtype: str = "float32") -> Network:
    """A network by `deis_analysis.networks.load`, its weights in one of `DTYPES`; on CUDA float32 is not TF32."""
    import torch

    from deis_analysis import networks as learned

    without_tf32(device)
    path, colon, function = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        return learned.load(name, device=device, allow_pickle=allow_pickle, dtype=getattr(torch, dtype))
    made = getattr(module_of(Path(path)), function, None)
    found = made() if callable(made) else None
    if not isinstance(found, learned.Network):
        raise ValueError(f"model={name!r} must be a function without arguments that returns what networks.load returns")
    return dataclasses.replace(found.to(device, getattr(torch, dtype)), name=function)


def flat(net: Network, process: Process) -> Callable[[Any, float], Any]:
    """The network as an ε model of a process on (n, d) states, without gradients.

    A batch that does not fit into a GPU's memory is halved until its parts do; later ones begin at that size. On a CPU
    parts of a float64 batch are faster than the whole, which does not fit into its cache.
    """
    import torch

    model, weights = net.carried_to(process, "eps"), next(net.model.parameters(), None)
    cached = weights is not None and weights.device.type == "cpu" and weights.dtype == torch.float64
    most = max(1, _CACHED_PIXELS // math.prod(net.shape)) if cached else 0

    @torch.no_grad()
    def eps(x: Any, t: float) -> Any:
        nonlocal most
        images = x.reshape(-1, *net.shape)
        while True:
            try:
                return torch.cat([model(part, t) for part in images.split(most or len(images))]).reshape(x.shape)
            except torch.cuda.OutOfMemoryError:
                most = (most or len(images)) // 2
                if not most:
                    raise

    return eps


def reference_folders(net: Network) -> list[Path]:
    """Where certified solutions are looked for; new ones go to the first."""
    found = [FIGURES / ".cache" / REFERENCES]
    return [*found, CHECKPOINTS / net.name / REFERENCES] if net.name in NETWORKS else found


def network_path(
    net: Network,
    process: Process,
    x_T: Any,
    times: Iterable[float],
    config: Config,
    folders: list[Path] | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> ReferencePath:
    """The certified flow of (n, d) states under the network in float64; kept in the first of `reference_folders`.

    ``network_rtol`` of the configuration is DOPRI5's, ``network_tolerance`` what the second method must confirm, in the
    largest error of a pixel.
    """
    import torch

    from deis_analysis.reference.flow import reference_path

    exact = net.to(dtype=torch.float64)
    where = reference_folders(net) if folders is None else folders
    rtol = config["network_rtol"]
    return reference_path(
        flat(exact, process), process, x_T, times, rtol, rtol,
        tolerance=config["network_tolerance"], batch=batch, cache=where or None, key=exact.digest, progress=progress,
    )  # fmt: skip


@CACHE.cache(ignore=["net"])
def own_samples(net: Network, digest: str, process: Process, t_start: float, t_end: float, device: str) -> Array:
    """(256, d) samples of a network's own law at ``t_end``, by ρ4RK with 100 calls; ``digest``: the network's."""
    import torch

    z = problems.noise(_OWN_SAMPLES, math.prod(net.shape), _OWN_SEED) * problems.start_scale(process, t_start)
    table = da.build("rhork_4rk", process, da.grid(process, _OWN_STEPS, "logrho", t_start, t_end))
    return np.asarray(da.run(table, flat(net, process), torch.tensor(z, device=device)).cpu())


Parts = tuple[
    Callable[[Any, float], Any], Any, Array | None, bool
]  # ε, exact mixture, data if not its samples, trained


def _mixture(process: Process, config: Config) -> Parts:
    mix = problems.product_mixture()
    return mix.eps(process), mix, None, False


def _gaussian(process: Process, config: Config) -> Parts:
    mix = problems.gaussian_like(problems.digits(), config["floor"])
    return mix.eps(process), mix, None, False


def _digits(process: Process, config: Config) -> Parts:
    import torch

    data = problems.digits()
    points = torch.tensor(data, device=config["device"])
    return da.ideal_denoiser(points, process, std=config["std"]), None, data, False


def _network(process: Process, config: Config) -> Parts:
    if process != problems.vp_linear(config):
        raise ValueError(f"model='network' was trained on VPLinear; allowed: no other process, such as {process!r}")
    settings = {key: value for key, value in config.items() if key in TRAINING or key.startswith("beta_")}
    net = _trained(tuple(sorted(settings.items())), depends_on(toy_network.__module__)).to(config["device"])
    mix = toy_mixture()
    return net, mix, None, True


WHAT_NETWORKS = f"{', '.join(NETWORKS)}, the folder of a network, FILE.py:make, or a hub id owner/name"
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
    from deis_analysis.reference.flow import reference_path

    rtol = dict(settings)["rtol"]
    problem = _build(name, process, settings)
    return reference_path(problem.model, process, problem.x_T, times, rtol, rtol, certify=False)


def trim_cache() -> None:
    """Drop the results used longest ago, down to 1 GiB."""
    if Path(CACHE.location or "").exists():
        CACHE.reduce_size(bytes_limit=_CACHE_BYTES)
