"""Which classes has a model of the study, and what is its guided ε? All exact but the ε of the small network."""

from __future__ import annotations

from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Process
from experiments import Config
from experiments.models import studies
from experiments.models.problems import digits, digits_labels


def classes(name: str, config: Config, process: Process) -> tuple[Any, list[Any], int]:
    """(ε of all data, ε of each class, dimension), all exact.

    ``network``: its own ε for all data, and exact ones of the mixture's three modes in the first coordinate.
    ``gaussian``: a class is what its leading principal coordinate is measured to be, see `measured`.
    """
    import torch

    if name == "mixture":
        mix = class_mixture(config)
        parts = zip(mix.means[:, None], mix.covariances[:, None], strict=True)
        return mix.eps(process), [da.GaussianMixture([1.0], m, c).eps(process) for m, c in parts], mix.dimension
    if name == "digits":
        data, label = torch.tensor(digits(), device=config["device"]), digits_labels()
        sets = [data[torch.as_tensor(label == k, device=data.device)] for k in range(10)]
        denoisers: list[Any] = [da.ideal_denoiser(part, process, std=config["std"]) for part in (data, *sets)]
        return denoisers[0], denoisers[1:], data.shape[1]
    problem = studies.study(name, config)
    if isinstance(problem.exact, da.GaussianMixture):
        return problem.model, [g.eps(process) for g in measured(problem.exact, config)], problem.exact.dimension
    assert problem.exact is not None
    first, *rest = problem.exact.marginals
    modes = [da.GaussianMixture([1.0], [m], [c]) for m, c in zip(first.means, first.covariances, strict=True)]
    each = [da.ProductMixture([mode, *rest]).eps(process) for mode in modes]
    return problem.model, each, problem.exact.dimension


def measured(gauss: da.GaussianMixture, config: Config) -> list[da.GaussianMixture]:
    """The Gaussian given y = uᵀx + noise, u its leading axis, noise of the variance of uᵀx, for K values of y.

    They are the quantiles (k + ½)/K of its law; the classes differ in mean and share a covariance.
    """
    from scipy.stats import norm

    (mean,), (covariance,) = gauss.means, gauss.covariances
    variances, axes = np.linalg.eigh(covariance)
    axis, variance = axes[:, -1], float(variances[-1])
    away = np.sqrt(2 * variance) * norm.ppf((np.arange(config["classes"]) + 0.5) / config["classes"])  # y − E y
    narrowed = covariance - variance / 2 * np.outer(axis, axis)
    return [da.GaussianMixture([1.0], [mean + y / 2 * axis], [narrowed]) for y in away]


def class_mixture(config: Config) -> da.GaussianMixture:
    """Equal isotropic Gaussians, one per class, their means uniform in [-1, 1]^d."""
    count, dimension = config["classes"], config["dimension"]
    means = np.random.default_rng(config["class_seed"]).uniform(-1, 1, (count, dimension))
    return da.GaussianMixture(np.full(count, 1 / count), means, np.full((count, dimension), config["class_std"] ** 2))


def guided_eps(everything: Any, each: list[Any], scales: list[float], samples: int) -> Any:
    """ε_u + w (ε_c − ε_u) of (W · n, d) states: n samples for each of W scales in turn, sample i of class i mod K.

    At w = 1 that is ε_c, and ε_u is not asked for.
    """
    import torch

    label = torch.arange(samples).repeat(len(scales)) % len(each)
    places = [torch.nonzero(label == k)[:, 0] for k in range(len(each))]

    def eps(x: Any, t: float) -> Any:
        own = torch.empty_like(x)
        for place, part in zip(places, each, strict=True):
            own[place] = part(x[place], t)
        for scale, part, state in zip(scales, own.split(samples), x.split(samples), strict=True):
            if scale != 1:
                plain = everything(state, t)
                part[:] = plain + scale * (part - plain)
        return own

    return eps
