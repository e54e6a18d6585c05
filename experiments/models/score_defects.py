"""How far is a learned score from any score? Asymmetry of its Jacobian, residual of its Fokker–Planck equation.

Both relative to the size of what is compared, root mean squares over points, with bootstrap intervals (2.5 to 97.5 %).
The configuration is that of `experiments.networks.network_errors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from experiments import Config
from experiments.models.problems import bootstrap_ratio, noise
from experiments.models.studies import Study

Model = Callable[[Any, float], Any]


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Inside, networks have second derivatives in forward mode.

    Fused attention has none, and torch's group norm none for a tangent that is not contiguous.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.modules.module import register_module_forward_pre_hook

    def contiguous(module: Any, inputs: Any) -> Any:
        if isinstance(module, torch.nn.GroupNorm):
            return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])
        return None

    hook = register_module_forward_pre_hook(contiguous)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        hook.remove()


def asymmetry(score: Model, x: Any, t: float, config: Config) -> tuple[float, float, float]:
    """√(E‖J − Jᵀ‖²/E‖J‖²) of J = ∂s/∂x, and its interval."""
    import torch
    from torch.func import jacrev, jvp

    from deis_analysis.diagnostics import jacobian_asymmetry

    n, d = x.shape
    if d <= config["full_jacobian"]:
        squared = jacobian_asymmetry(score, x, t).squared
        size = jacrev(lambda y: score(y, t).sum(0))(x).square().sum((0, 2))
    else:
        probes, rng = config["jacobian_probes"], np.random.default_rng(config["seed"])
        squared = jacobian_asymmetry(score, x, t, probes=probes, seed=config["seed"]).squared
        signs = torch.as_tensor(rng.choice([-1.0, 1.0], (probes, n, d)), dtype=x.dtype, device=x.device)
        size = sum(jvp(lambda y: score(y, t), (x,), (v,))[1].square().sum(1) for v in signs) / probes
    norms = np.asarray(size.cpu())
    low, high = bootstrap_ratio(squared, norms, config["seed"])
    return float(np.sqrt(squared.mean() / norms.mean())), low, high


def residual(score: Model, process: Process, x: Any, t: float, config: Config) -> tuple[float, float, float]:
    """Root mean square of the residual over the sum of those of its equation's two sides, and its interval."""
    from deis_analysis.diagnostics import time_derivative

    rate, _ = time_derivative(score, process, x, t)
    if x.shape[1] <= config["full_jacobian"]:
        first = second = exact_residual(score, process, x, t, rate)
    else:
        first, second = (
            da.fokker_planck_residual(score, process, x, t, probes=config["divergence_probes"], seed=seed)
            for seed in (config["seed"], config["seed"] + 1)
        )
    pairs = ((first, second), (rate, rate), (rate - first, rate - second))
    means = np.stack([np.asarray((a * b).mean(dim=1).cpu()) for a, b in pairs])  # (3, n)
    index = np.random.default_rng(config["seed"]).integers(0, len(x), (2000, len(x)))
    low, high = np.quantile(_relative(means[:, index].mean(axis=-1)), [0.025, 0.975])
    return float(_relative(means.mean(axis=1))), float(low), float(high)


def exact_residual(score: Model, process: Process, x: Any, t: float, rate: Any) -> Any:
    """`deis_analysis.fokker_planck_residual` with its exact divergence, ∂s/∂t given, in reverse mode.

    One pass over d copies of each sample: for a network three times as fast as d products in forward mode.
    """
    import torch

    n, d = x.shape
    y = x.detach().requires_grad_()
    copies, unit = y.repeat_interleave(d, dim=0), torch.eye(d, dtype=x.dtype, device=x.device).repeat(n, 1)
    (rows,) = torch.autograd.grad((score(copies, t) * unit).sum(), copies, create_graph=True)
    s, g2, drift = score(y, t), float(process.diffusion_squared(t)), float(process.drift(t))
    potential = 0.5 * g2 * ((rows * unit).sum() + (s * s).sum()) - drift * (y * s).sum()
    return rate - torch.autograd.grad(potential, y)[0]


def _relative(means: Array) -> Array:
    """(3, …) mean squares of residual, left and right side → (…)."""
    own, left, right = np.sqrt(np.maximum(means, 0.0))
    return np.asarray(own / (left + right))


# -- of an image network --------------------------------------------------------------------------
def noised(
    points: Any, count: int, seed: int, process: Process, levels: list[float]
) -> Iterator[tuple[dict[str, float], float, Any, Any]]:
    """At each level σ/α (its rho and t, t, x_t, ε) in float64: the same points, ``count`` at most, and the same ε."""
    import torch

    clean = points[np.random.default_rng(seed).permutation(len(points))[:count]].to(torch.float64)
    eps = torch.as_tensor(noise(len(clean), clean.shape[1], seed), device=clean.device)
    for rho in levels if len(clean) else ():
        t = float(process.time_from_rho(rho))
        yield {"rho": rho, "t": t}, t, float(process.alpha(t)) * clean + float(process.sigma(t)) * eps, eps


def network_rows(eps: Model, process: Process, clean: Any, config: Config) -> list[dict[str, Any]]:
    """Rows (rho, t, measure, samples, value, low, high) of its asymmetry and residual at noised ``clean`` points."""
    score, rows = da.diagnostics.as_score(eps, process), []
    levels, seed = config["derivative_levels"], config["seed"] + 1
    for key, t, x, _ in noised(clean, config["derivative_samples"], seed, process, levels):
        with differentiable():
            found = {
                "asymmetry": asymmetry(score, x, t, config),
                "residual": residual(score, process, x, t, config),
            }
        for name, (value, low, high) in found.items():
            row = {"part": "derivative", **key, "measure": name, "samples": len(x)}
            rows.append({**row, "value": value, "low": low, "high": high})
    return rows


# -- of a model of the study, about which more is known -------------------------------------------
def rows_of(problem: Study, config: Config) -> list[dict[str, Any]]:
    """Rows (t, rho, measure, samples, value) at ``config["times"]``: see `measures`."""
    rows = []
    for t in config["times"]:
        x = points(problem, t, config)
        key = {"t": t, "rho": float(problem.process.rho(t)), "samples": len(x)}
        rows += [{**key, "measure": name, "value": value} for name, value in measures(problem, x, t, config).items()]
    return rows


def points(problem: Study, t: float, config: Config) -> Any:
    """Samples of p_t: of the exact mixture, or α_t times a draw of the smoothed data and noise of σ_t."""
    import torch

    if problem.exact is not None:
        x = problem.exact.sample(config["points"], config["seed"], problem.process, t)
    else:
        rng, n = np.random.default_rng(config["seed"]), config["data_points"]
        alpha, sigma = float(problem.process.alpha(t)), float(problem.process.sigma(t))
        drawn = problem.data[rng.choice(len(problem.data), n)]
        x = alpha * drawn + np.hypot(sigma, alpha * config["std"]) * rng.standard_normal(drawn.shape)
    return torch.tensor(x, device=problem.x_T.device)


def measures(problem: Study, x: Any, t: float, config: Config) -> dict[str, float]:
    """Root mean squares over points, relative: ``fitting`` ‖s − ∇log p‖/‖∇log p‖, left out where the model is exact;
    ``asymmetry`` and ``residual`` as above; ``loop`` |∮ s·dl| / (length × ‖s‖), in the first two coordinates' plane.
    """
    from torch.func import jacrev, vmap

    from deis_analysis.diagnostics import as_score, jacobian_asymmetry, loop_integral, time_derivative

    def rms(value: Any) -> float:
        return float((value**2).mean() ** 0.5)

    score = as_score(problem.model, problem.process)
    truth = None if problem.exact is None else problem.exact.score(problem.process)
    jacobian = vmap(jacrev(lambda point: score(point[None], t)[0]))(x)
    rate, _ = time_derivative(score, problem.process, x, t)
    wrong = da.fokker_planck_residual(score, problem.process, x, t)  # ∂s/∂t minus what it ought to be
    radius = config["radius"] * float(problem.process.sigma(t))
    loops = [loop_integral(score, c, radius, (0, 1), t) for c in np.asarray(x[: config["loops"]].cpu())]
    size = rms(score(x, t)) * x.shape[1] ** 0.5
    fitting = {} if truth is None else {"fitting": rms(score(x, t) - truth(x, t)) / rms(truth(x, t))}
    apart = jacobian_asymmetry(score, x, t).squared.mean() / (jacobian**2).sum(dim=(1, 2)).mean()
    return {
        **fitting,
        "asymmetry": float(apart**0.5),
        "loop": float(np.sqrt(np.mean(np.square(loops)))) / (2 * np.pi * radius * size),
        "residual": rms(wrong) / (rms(rate) + rms(rate - wrong)),
    }
