r"""Stochastic interpolants between two Gaussian mixtures, in closed form.

x_t = a x_0 + b x_1 + γ z with independent x_0, x_1 and z ∼ N(0, I), t from 0 to 1.  With the law p_t of x_t,

.. math:: v(t, x) = E[\dot a x_0 + \dot b x_1 + \dot γ z \mid x_t = x] , \qquad s = ∇ \log p_t ,

the ODE ẋ = v and, for every ε ≥ 0, the SDE dX = (v + εs) dt + √(2ε) dW forward, and dX = (v − εs) dt + √(2ε) dW with t
falling, carry p_0 to p_1 or back through the same p_t.  For mixtures p_t is a mixture over pairs (i, j) of components,

.. math::
    m = a μ^0_i + b μ^1_j , \quad C = a^2 C^0_i + b^2 C^1_j + γ^2 I , \qquad
    v = \sum_{ij} r_{ij} \bigl( \dot m + \tfrac12 \dot C C^{-1} (x - m) \bigr) , \quad
    s = -\sum_{ij} r_{ij} C^{-1} (x - m) .

Only γ² and its rate 2γγ̇ enter: they are finite where γ̇ is not, at t = 0 and 1 for γ = √(t(1 − t)).
[Albergo, Boffi & Vanden-Eijnden 2023, arXiv 2303.08797, where this v is called b]  A diffusion is the one-sided case,
x_0 ∼ N(0, I) and γ = 0; note that t runs from noise to data here.

Symbols here are the paper's: ε is the noise level of the SDE, not a noise or a prediction, and γ the scale of z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deis_analysis.problems.mixture import GaussianMixture
from deis_analysis.problems.posterior import components
from deis_analysis.process.process import Array
from deis_analysis.validate import between, checked, choose, finite, function, instance, nonnegative


@dataclass(frozen=True)
class Scale:
    """A function of t in [0, 1] and its derivative: ``value(t)`` and ``rate(t)``."""

    value: Callable[[float], float]
    rate: Callable[[float], float]

    def __post_init__(self) -> None:
        function("value", self.value)
        function("rate", self.rate)


_TURN = 0.5 * math.pi
PATHS_0 = {
    "linear": Scale(lambda t: 1.0 - t, lambda t: -1.0),
    "trigonometric": Scale(lambda t: math.cos(_TURN * t), lambda t: -_TURN * math.sin(_TURN * t)),
}
PATHS_1 = {
    "linear": Scale(lambda t: t, lambda t: 1.0),
    "trigonometric": Scale(lambda t: math.sin(_TURN * t), lambda t: _TURN * math.cos(_TURN * t)),
}
SQUARED_LATENTS = {  # γ² and 2γγ̇
    "none": Scale(lambda t: 0.0, lambda t: 0.0),
    "sqrt": Scale(lambda t: t * (1.0 - t), lambda t: 1.0 - 2.0 * t),
    "parabola": Scale(lambda t: (t * (1.0 - t)) ** 2, lambda t: 2.0 * t * (1.0 - t) * (1.0 - 2.0 * t)),
    "sin2": Scale(
        lambda t: math.sin(math.pi * t) ** 4,
        lambda t: 4.0 * math.pi * math.sin(math.pi * t) ** 3 * math.cos(math.pi * t),
    ),
}


@checked
class Interpolant:
    """x_t = a x_0 + b x_1 + γ z between two Gaussian mixtures of one dimension; methods take and return NumPy arrays.

    Args:
        mix0, mix1: the laws at t = 0 and t = 1; x has shape (…) if they are 1-D, (…, d) otherwise.
        a, b: "linear" (1 − t, t) or "trigonometric" (cos ½πt, sin ½πt), or a `Scale`.
        gamma: "none", "sqrt" √(t(1 − t)), "parabola" t(1 − t), "sin2" sin² πt, or the `Scale` **of γ²**: value γ²,
            rate 2γγ̇.

    Raises:
        ValueError: mixtures of different dimension, an unknown name; at some t asked for, a γ² that is negative or
            a = b = γ = 0.
    """

    def __init__(
        self,
        mix0: GaussianMixture,
        mix1: GaussianMixture,
        a: str | Scale = "linear",
        b: str | Scale = "linear",
        gamma: str | Scale = "sqrt",
    ) -> None:
        self.mix0, self.mix1 = instance("mix0", mix0, GaussianMixture), instance("mix1", mix1, GaussianMixture)
        if mix0.means.shape[1:] != mix1.means.shape[1:]:
            raise ValueError(f"mix1={mix1!r} must have the dimension of mix0={mix0!r}")
        self.a, self.b = _named("a", a, PATHS_0), _named("b", b, PATHS_1)
        self.gamma_squared = _named("gamma", gamma, SQUARED_LATENTS)
        (self._m0, self._c0), (self._m1, self._c1) = components(mix0), components(mix1)

    def __repr__(self) -> str:
        return f"Interpolant({self.mix0!r}, {self.mix1!r})"

    def marginal(self, t: float) -> GaussianMixture:
        """The law of x_t: a mixture over all pairs of components."""
        m, c, *_ = self._pairs(t)
        weights = np.outer(self.mix0.weights, self.mix1.weights).ravel()
        if self.mix0.means.ndim == 1:
            return GaussianMixture(weights, m[:, 0], c[:, 0, 0])
        return GaussianMixture(weights, m, c)

    def log_prob(self, t: float, x: Array) -> Array:
        """log p_t(x), one value per sample."""
        return np.asarray(self.marginal(t).log_prob(x))

    def velocity(self, t: float, x: Array) -> Array:
        """v(t, x) = E[ẋ_t | x_t = x], shape of ``x``: the right-hand side of the ODE."""
        return self._fields(t, x)[0]

    def score(self, t: float, x: Array) -> Array:
        """∇ log p_t(x), shape of ``x``."""
        return self._fields(t, x)[1]

    def forward_drift(self, t: float, x: Array, epsilon: float) -> Array:
        """v + ε s of dX = (v + εs) dt + √(2ε) dW, t rising; ε ≥ 0 per unit of time."""
        v, s = self._fields(t, x)
        return v + nonnegative("epsilon", epsilon) * s

    def backward_drift(self, t: float, x: Array, epsilon: float) -> Array:
        """v − ε s of dX = (v − εs) dt + √(2ε) dW̄ with dt < 0, t falling; ε ≥ 0 per unit of time."""
        v, s = self._fields(t, x)
        return v - nonnegative("epsilon", epsilon) * s

    def _pairs(self, t: float) -> tuple[Array, Array, Array, Array]:
        """(P, d) m, (P, d, d) C and their rates ṁ and ½Ċ, for the P pairs."""
        t = between("t", t, 0.0, 1.0)
        a, a_rate, b, b_rate = self.a.value(t), self.a.rate(t), self.b.value(t), self.b.rate(t)
        g, g_rate = self.gamma_squared.value(t), self.gamma_squared.rate(t)
        finite("a, b, gamma and rates", [a, a_rate, b, b_rate, g, g_rate])
        nonnegative("gamma squared", g)
        if not a * a + b * b + g > 0:
            raise ValueError(f"t={t!r}: a, b and gamma are 0, so that x_t is one point; allowed: not all of them 0")
        d, eye = self._m0.shape[1], np.eye(self._m0.shape[1])

        def paired(p: float, first: Array, q: float, second: Array) -> Array:
            return p * first[:, None] + q * second[None, :]

        m, m_rate = (paired(p, self._m0, q, self._m1).reshape(-1, d) for p, q in ((a, b), (a_rate, b_rate)))
        c = (paired(a * a, self._c0, b * b, self._c1) + g * eye).reshape(-1, d, d)
        half_rate = (paired(a * a_rate, self._c0, b * b_rate, self._c1) + 0.5 * g_rate * eye).reshape(-1, d, d)
        return m, c, m_rate, half_rate

    def _fields(self, t: float, x: Array) -> tuple[Array, Array]:
        """(v, s), from one pass over the pairs."""
        x = finite("x", x)
        flat = self.mix0.means.ndim == 1
        d = self._m0.shape[1]
        if not flat and (x.ndim == 0 or x.shape[-1] != d):
            raise ValueError(f"x has shape {x.shape}; allowed: (..., {d})")
        points = x.reshape(-1, 1, d)
        m, c, m_rate, half_rate = self._pairs(t)
        gap = points - m
        pulled = np.einsum("pij,npj->npi", np.linalg.inv(c), gap)
        with np.errstate(divide="ignore"):
            log_w = np.log(np.outer(self.mix0.weights, self.mix1.weights).ravel())
        log_terms = log_w - 0.5 * (np.sum(gap * pulled, axis=-1) + np.linalg.slogdet(c)[1])
        share = np.exp(log_terms - log_terms.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        moved = m_rate + np.einsum("pij,npj->npi", half_rate, pulled)
        v, s = (np.einsum("np,npi->ni", share, field).reshape(x.shape) for field in (moved, -pulled))
        return v, s


def _named(name: str, value: str | Scale, known: dict[str, Scale]) -> Scale:
    return value if isinstance(value, Scale) else known[choose(name, value, known)]
