r"""The log-likelihood that a model gives to data, by the instantaneous change of variables along its probability flow.

In y = (x − μ)/α (μ = 0 but for `MeanReverting`) the flow is dy/dρ = ε(x, t), so the density q of y obeys along it

.. math:: \frac{d \log q}{dρ} = -\operatorname{div}_y ε = -α \operatorname{tr} \frac{∂ε}{∂x} ,
          \qquad \log p_t(x) = \log q(y) - d \log α_t .

From data at t₀ up to noise at T, with d the dimension,

.. math:: \log p_{t_0}(x_{t_0}) = \log p_T(x_T) + d \log \frac{α_T}{α_{t_0}}
          + \int_{ρ_{t_0}}^{ρ_T} α \operatorname{tr} \frac{∂ε}{∂x} \, dρ .

Three errors are apart from the discretization: p_T is not the prior, p_{t₀} is not the law of the data, and a trace
that is estimated is noisy.

Source: Chen et al. 2018 (arXiv 1806.07366), thm. 1; Grathwohl et al. 2019 (FFJORD, arXiv 1810.01367), the trace
estimate with one probe along the path; Song et al. 2021 (arXiv 2011.13456), app. D.2; ρRK: Zhang & Chen 2023, sec. 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.solvers import RUNGE_KUTTA, ButcherTableau
from deis_analysis.tableau import Model
from deis_analysis.validate import checked, choose, finite, function, positive, positive_int, real, scalar

Prior = Callable[[Any], Any]
TRACES = ("exact", "hutchinson")
_AT_ONCE = 128  # directions that one batched backward pass carries


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of n samples, nats; arrays of the kind of ``x_0``, float64.

    Attributes:
        log_prob: (n,) log density at t_end, ``log_prior`` + change along the path.
        log_prior: (n,) log density of the prior at ``x_T``: another prior is a subtraction and an addition.
        x_T: the states at t_start, shape of ``x_0``.
        nfe: model evaluations (of the whole batch).
        products: vector–Jacobian products per sample: ``nfe`` times d (exact trace) or times ``probes``.
    """

    log_prob: Any
    log_prior: Any
    x_T: Any
    nfe: int
    products: int

    @property
    def bits_per_dim(self) -> Any:
        """(n,) −log₂ p / d, of the density itself: no offset for discrete data, see the function of this name."""
        return bits_per_dim(self.log_prob, math.prod(self.x_T.shape[1:]))


@checked
def bits_per_dim(log_prob: Any, dimension: int, *, offset: float = 0.0) -> Any:
    r"""−log p / (d log 2) + offset, shape and kind of ``log_prob``.

    Levels that are w apart in the scaled data have a probability of about p·w each way, hence :math:`-\log_2 w` bits
    more a dimension: 256 levels scaled to [-1, 1] have w = 2/256 and ``offset=7``, scaled to [0, 1] ``offset=8``.

    Args:
        log_prob: nats. dimension: d ≥ 1. offset: bits per dimension, any finite number.

    Raises:
        ValueError: names the argument.

    Source: the offset is that of score SDE's released code (Song et al. 2021).
    """
    values = backend.floating("log_prob", log_prob)
    return float(finite("offset", scalar("offset", offset))) - values / (
        positive_int("dimension", dimension) * math.log(2.0)
    )


@checked
def log_likelihood(
    model: Model,
    process: Process,
    x_0: Any,
    *,
    steps: int,
    method: str | ButcherTableau = "3kutta",
    kind: str = "rho7",
    t_start: float | None = None,
    t_end: float | None = None,
    trace: str = "exact",
    probes: int = 1,
    seed: int = 0,
    prior: Prior | None = None,
    known_variance: float | None = None,
) -> Likelihood:
    r"""Log-likelihood by ρRK-DEIS: a Runge–Kutta method in ρ on (y, log q), up the grid from t_end to t_start.

    The order is that of the tableau, for the density as for the state.  For large ρ the integrand is close to d/ρ,
    which polynomials in ρ integrate badly over long steps.  With ``known_variance`` v what data N(·, vI) would have,

    .. math:: \int \frac{d \, ρ}{v + ρ^2} dρ = \tfrac d2 \log \frac{v + ρ_T^2}{v + ρ_{t_0}^2} ,

    is added exactly and the rule gets the difference: same order, no extra calls.

    Args:
        model: predicts ε; ``model(x, t)`` gets float64 torch tensors, which a float32 network casts itself, as
            ``net(x.float())``; it must be differentiable in x, and treat each sample by itself (no batch statistics).
            Its output is cast to float64.
        x_0: (n, …) states at ``t_end``, NumPy or torch.
        steps: N ≥ 1. method: a key of ``RUNGE_KUTTA`` or a `ButcherTableau`; s stages cost N·s evaluations.
        kind, t_start, t_end: the grid, see `grid`; ``"twostage"``, which ends at another time, is refused.
        trace: ``"exact"``, d products an evaluation; ``"hutchinson"``, the mean of vᵀ (∂ε/∂x) v over ``probes`` vectors
            of random signs, drawn once per sample with ``seed`` and kept along the path. It is exact where ∂ε/∂x is
            diagonal, as it is for d = 1 and for a `ProductMixture`.
        prior: log density at ``t_start``, (n, …) torch → (n,); by default that of N(μ, σ²I), σ at ``t_start``.
        known_variance: v > 0 (1 suits data scaled to about unit variance), or None for the integrand as it is.

    Raises:
        ValueError: names the argument; a model output or prior of another shape or not finite; a model that is not
            differentiable in x, such as one under ``torch.no_grad``.
    """
    function("model", model)
    require_process(process)
    rk = method if isinstance(method, ButcherTableau) else RUNGE_KUTTA[choose("method", method, RUNGE_KUTTA)]
    if kind == "twostage":
        raise ValueError("kind='twostage' ends at a time of its own; allowed: kinds that end at t_end, such as 'rho7'")
    if known_variance is not None:
        positive(known_variance=known_variance)
    ts = grid(process, steps, kind, t_start, t_end)[::-1]
    flow = _Flow(model, process, x_0, trace, probes, seed)
    first, last = (float(process.alpha(t)) for t in (ts[0], ts[-1]))
    y, change = (flow.start - flow.mean) / first, flow.dimension * math.log(last / first)
    for now, then in pairwise(ts):
        y, change = _rho_step(flow, rk, (float(now), float(then)), y, change, known_variance)
    if known_variance is not None:
        low, high = (known_variance + float(process.rho(t)) ** 2 for t in (ts[0], ts[-1]))
        change = change + 0.5 * flow.dimension * math.log(high / low)
    return flow.result(last * y + flow.mean, change, prior, float(ts[-1]))


def _rho_step(
    flow: _Flow, rk: ButcherTableau, times: tuple[float, float], y: Any, change: Any, known: float | None
) -> tuple[Any, Any]:
    """(y, change) one Runge–Kutta step in ρ later, without the part of the change that is known."""
    process, (now, then) = flow.process, times
    low, delta = float(process.rho(now)), float(process.rho(then) - process.rho(now))
    rates: list[tuple[Any, Any]] = []
    for c, row in zip(rk.c, rk.a, strict=True):
        rho = low + float(c) * delta
        inside = c not in (0, 1)  # the ends are the grid's own times, not inverted again
        t = float(process.time_from_rho(rho)) if inside else then if c else now
        alpha, stage = float(process.alpha(t)), y
        for a, (slope, _) in zip(row, rates, strict=True):
            stage = stage + (delta * float(a)) * slope if a else stage
        eps, divergence = flow(alpha * stage + flow.mean, t)
        removed = 0.0 if known is None else flow.dimension * rho / (known + rho * rho)
        rates.append((eps, alpha * divergence - removed))
    for b, (slope, gain) in zip(rk.b, rates, strict=True):
        y, change = y + (delta * float(b)) * slope, change + (delta * float(b)) * gain
    return y, change


@checked
def log_likelihood_rk45(
    model: Model,
    process: Process,
    x_0: Any,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_start: float | None = None,
    t_end: float | None = None,
    trace: str = "exact",
    probes: int = 1,
    seed: int = 0,
    prior: Prior | None = None,
) -> Likelihood:
    r"""Log-likelihood by scipy's RK45 in t, as score SDE computes it: the yardstick for `log_likelihood`.

    .. math:: \dot x = f (x - μ) + σ L ε , \qquad
              \log p_{t_0} = \log p_T + \int_{t_0}^{T} \Bigl( d f + σ L \operatorname{tr} \frac{∂ε}{∂x} \Bigr) dt ,

    with g²/2σ = σL. The batch is one system, so its samples share steps and calls. Arguments as in `log_likelihood`;
    the model gets float64 tensors here too.

    Args:
        rtol, atol: tolerances, at least 100 machine epsilons and positive.

    Raises:
        ValueError: as in `log_likelihood`; tolerances that cannot be met.

    Source: Song et al. 2021, eq. 39 and app. D.2, rtol = atol = 1e-5.
    """
    from scipy.integrate import solve_ivp

    function("model", model)
    require_process(process)
    positive(rtol=rtol, atol=atol)
    if rtol < 100 * np.finfo(np.float64).eps:
        raise ValueError(f"rtol={rtol!r} cannot be met in float64; allowed: at least {100 * np.finfo(float).eps:.1e}")
    start, end = (float(t) for t in grid(process, 1, "logrho", t_start, t_end))
    flow = _Flow(model, process, x_0, trace, probes, seed)
    size = flow.start.numel()

    def rate(t: float, state: Array) -> Array:
        x = flow.tensor(state[:size]).reshape(flow.start.shape)
        eps, divergence = flow(x, t)
        f, scale = float(process.drift(t)), float(process.sigma(t) * process.log_rho_rate(t))
        velocity = f * (x - flow.mean) + scale * eps
        return np.concatenate([flow.flat(velocity), flow.flat(f * flow.dimension + scale * divergence)])

    initial = np.concatenate([flow.flat(flow.start), np.zeros(flow.start.shape[0])])
    found = solve_ivp(rate, (end, start), initial, method="RK45", t_eval=[start], rtol=rtol, atol=atol)
    if not found.success:
        raise ValueError(f"rtol={rtol!r}, atol={atol!r} cannot be met: {found.message}")
    x_T = flow.tensor(found.y[:size, -1]).reshape(flow.start.shape)
    return flow.result(x_T, flow.tensor(found.y[size:, -1]), prior, start)


class _Flow:
    """ε and tr ∂ε/∂x at a state, each call of the model counted; and what comes of it at the end."""

    def __init__(self, model: Model, process: Process, x_0: Any, trace: str, probes: int, seed: int) -> None:
        import torch

        choose("trace", trace, TRACES)
        probes, seed = positive_int("probes", probes), positive_int("seed", seed, minimum=0)
        x = backend.floating("x_0", x_0)
        if x.ndim < 2 or math.prod(x.shape) == 0:
            raise ValueError(f"x_0 has shape {tuple(x.shape)}; allowed: (n, ...), at least two dimensions, none empty")
        self.model, self.process, self.numpy, self.calls = model, process, not backend.is_torch(x), 0
        self.start = torch.as_tensor(x).detach().to(torch.float64)
        self.mean: Any = 0.0 if process.mean is None else self.tensor(process.mean)
        self.dimension = self.start[0].numel()
        if trace == "exact":
            axes = torch.eye(self.dimension, dtype=torch.float64, device=self.start.device)
            directions = axes.reshape(-1, 1, *self.start.shape[1:]).expand(-1, *self.start.shape)
        else:
            signs = np.random.default_rng(seed).integers(0, 2, (probes, *self.start.shape))
            directions = self.tensor(2.0 * signs - 1.0)
        self.directions, self.weight = directions, 1.0 if trace == "exact" else 1.0 / probes

    def tensor(self, values: Any) -> Any:
        """``values`` as a float64 tensor where the samples are."""
        import torch

        return torch.as_tensor(values, dtype=torch.float64, device=self.start.device)

    @staticmethod
    def flat(x: Any) -> Array:
        """A tensor as one row of NumPy numbers."""
        return np.asarray(x.cpu()).reshape(-1)

    def __call__(self, x: Any, t: float) -> tuple[Any, Any]:
        """ε, shape of x, and (n,) the trace of ∂ε/∂x: one forward pass, then products with its Jacobian."""
        import torch

        self.calls += 1
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps = self._checked(self.model(x, t), t)
            trace: Any = 0.0
            for some in self.directions.split(_AT_ONCE):
                (rows,) = torch.autograd.grad(eps, x, some, retain_graph=True, is_grads_batched=True, allow_unused=True)
                if rows is None:
                    raise ValueError(f"model is not differentiable in x at call {self.calls}, t={t!r}")
                trace = trace + (rows * some).flatten(2).sum((0, 2))
        if not bool(torch.isfinite(trace).all()):
            raise ValueError(f"the derivative of model is NaN or infinite at call {self.calls}, t={t!r}")
        return eps.detach(), self.weight * trace

    def _checked(self, eps: Any, t: float) -> Any:
        """``eps`` in float64; ValueError unless it is a finite tensor of the right shape with a graph behind it."""
        import torch

        where = f"at call {self.calls}, t={t!r}"
        if not isinstance(eps, torch.Tensor) or eps.shape != self.start.shape:
            got = f"shape {tuple(eps.shape)}" if isinstance(eps, torch.Tensor) else type(eps).__name__
            raise ValueError(f"model returned {got} {where}; allowed: a tensor of shape {tuple(self.start.shape)}")
        if not bool(torch.isfinite(eps).all()):
            raise ValueError(f"model returned NaN or infinity {where}")
        return backend.with_graph("model", eps, where).to(torch.float64)

    def result(self, x_T: Any, change: Any, prior: Prior | None, t_start: float) -> Likelihood:
        """The answer, from the end of the path and log p_{t₀} − log p_T along it."""
        import torch

        n = self.start.shape[0]
        if prior is None:
            scale = float(self.process.sigma(t_start))
            square = (((x_T - self.mean) / scale) ** 2).flatten(1).sum(1)
            log_prior = -0.5 * square - self.dimension * (math.log(scale) + 0.5 * math.log(2 * math.pi))
        else:
            found = function("prior", prior)(x_T)
            found = found if backend.is_torch(found) else real("prior(x_T)", found)
            log_prior = self.tensor(found).detach()
            if log_prior.shape != (n,):
                raise ValueError(f"prior returned shape {tuple(log_prior.shape)}; allowed: ({n},), one per sample")
            if not bool(torch.isfinite(log_prior).all()):
                raise ValueError("prior returned NaN or infinity")
        parts = (log_prior + change, log_prior, x_T)
        log_prob, log_prior, x_T = (np.asarray(p.cpu()) for p in parts) if self.numpy else parts
        return Likelihood(log_prob, log_prior, x_T, self.calls, self.calls * self.directions.shape[0])
