"""A small network on the plane whose truth is known: density, score and flow of what it was trained on are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import deis_analysis as da
from experiments.models.problems import vp_linear

if TYPE_CHECKING:
    from deis_analysis.networks import MLP

TRAINING: dict[str, Any] = {  # the configuration of a network, beside beta_min and beta_max
    "width": 64,
    "depth": 3,
    "train_steps": 4000,
    "train_batch": 256,
    "train_rate": 1e-2,
    "train_times": "lam",
    "train_seed": 0,
}
QUICK_TRAINING: dict[str, Any] = {"width": 32, "train_steps": 700, "train_batch": 128}


def toy_mixture() -> da.ProductMixture:
    """Two independent coordinates of three and two modes: six modes in the plane, of weights 0.07 to 0.325."""
    return da.ProductMixture(
        [
            da.GaussianMixture([0.5, 0.3, 0.2], [-1.3, 0.1, 1.3], [0.04, 0.06, 0.03]),
            da.GaussianMixture([0.65, 0.35], [-0.8, 0.9], [0.06, 0.04]),
        ]
    )


def toy_network(config: dict[str, Any]) -> MLP:
    """ε network of `toy_mixture`, float64, by denoising score matching on fresh samples; deterministic.

    Uses of ``config``: beta_min, beta_max and, where it has them, the keys of `TRAINING`.
    """
    from deis_analysis.networks import MLP, train_dsm

    config = {**TRAINING, **config}
    mix, process, seed = toy_mixture(), vp_linear(config), config["train_seed"]
    net = MLP(mix.dimension, process, config["width"], config["depth"], seed=seed)
    train_dsm(
        net,
        mix.sample,
        process,
        steps=config["train_steps"],
        batch=config["train_batch"],
        learning_rate=config["train_rate"],
        uniform_in=config["train_times"],
        seed=seed,
    )
    return net
