r"""The grid of DM-NonUniform: the model's error, carried to the end by the weights of a multistep method, made least.

A DPM-Solver++ multistep table ends in :math:`x_K = a\,x_T + \sum_j b_{Kj} D_j`. If D_j is off by η_j, the end is off by
at most :math:`\sum_j η_j |b_{Kj}|`: the η-weighted ℓ1 norm of the last row of the Butcher form, which needs no model.
With :math:`b_{Kj} = σ_K \sum_n J_{nj}`, J the integrals of Lagrange bases in λ against e^λ, what is minimised is

.. math:: \frac{1}{α_K} \sum_j η_j |b_{Kj}| = e^{-λ_K} \sum_j η_j \Bigl|\sum_n J_{nj}\Bigr| , \qquad η = σ^p/α ,

with σ and α of the variance-preserving process at that λ, so that equivalent processes get equal levels.

The bound knows no truncation error, so alone it is least where the weights of the noisiest outputs cancel, on grids
that use them for nothing. Hence ``apart``: the first three steps add the root of their sum of squares, as in the
paper's code.

Source: Xue et al. 2024 (arXiv 2402.17376), with orders 1, 2 at both ends as there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from scipy.optimize import LinearConstraint, minimize

from deis_analysis.process.grids import grid as time_grid
from deis_analysis.process.process import Array, Process
from deis_analysis.validate import boolean, nonnegative, positive_int

CUSTOMARY = ("t1", "t2", "t3", "rho5", "rho7", "logrho", "shift3")
MOST_ORDER = 3
_POINTS = 24  # Gauss–Legendre, of e^λ times a polynomial on one step
_RANDOM_STARTS, _ITERATIONS = 2000, 60
_ROUNDS, _MOVES = 60, 100
_LEAST_GAP = 1e-4  # of a step, in shares of the mean one
Bound = Callable[[Array], Array]


@cache
def _rule() -> tuple[Array, Array]:
    """Points and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    return 0.5 * (points + 1.0), 0.5 * weights


def weight_bound(
    lams: Array, order: int = 3, power: float = 2.0, lower_order_final: bool = True, apart: int = 0
) -> Array:
    """The bound at ascending half log-SNRs (…, N + 1); shape (…).

    Args:
        order: of the method, 1 to 3; its interpolants have degree order − 1 once there are nodes.
        power: p of η = σ^p/α. lower_order_final: the last steps use orders …, 2, 1.
        apart: so many first steps add the root of their sum of squares instead, so that their weights cannot cancel.
    """
    n = np.arange(lams.shape[-1] - 1)
    degrees = np.minimum(np.minimum(n, order - 1), n[::-1] if lower_order_final else n)
    errors, columns = _errors(lams[..., :-1], power), np.zeros(lams[..., :-1].shape)
    squares = np.zeros(columns.shape)
    for degree in np.unique(degrees).tolist():
        rows = np.flatnonzero(degrees == degree)
        summed = rows >= apart
        for j, integral in enumerate(_integrals(lams, rows, degree)):
            share = errors[..., rows - j] * integral
            columns[..., rows[summed] - j] += share[..., summed]
            squares[..., rows[~summed]] += share[..., ~summed] ** 2
    return np.sum(np.abs(columns), axis=-1) + np.sum(np.sqrt(squares), axis=-1)


def _integrals(lams: Array, rows: Array, degree: int) -> list[Array]:
    """(…, R) e^{−λ_K} ∫ ℓ_j(λ) e^λ dλ over the steps ``rows``, for j = 0 … degree; node j is the j-th latest."""
    points, omega = _rule()
    start, width = lams[..., rows, None], (lams[..., rows + 1] - lams[..., rows])[..., None]
    inside = start + width * points
    kernel = width * omega * np.exp(inside - lams[..., -1, None, None])
    nodes = [lams[..., rows - j, None] for j in range(degree + 1)]
    found = []
    for j, node in enumerate(nodes):
        basis = kernel
        for other in nodes[:j] + nodes[j + 1 :]:
            basis = basis * (inside - other) / (node - other)
        found.append(np.sum(basis, axis=-1))
    return found


def _errors(lams: Array, power: float) -> Array:
    """η = σ^p/α of the variance-preserving process: ρ^p (1 + ρ²)^{(1−p)/2}."""
    return np.exp(-power * lams + 0.5 * (1.0 - power) * np.logaddexp(0.0, -2.0 * lams))


def dm(
    process: Process,
    steps: int,
    ends: tuple[float, float],
    order: int = 3,
    power: float = 2.0,
    lower_order_final: bool = True,
    apart: int = 3,
) -> Array:
    """(steps + 1,) levels ρ between the times ``ends`` that minimise the bound; makes no call.

    The bound has local minima, and kinks where a weight changes its sign: descents start from the best of the customary
    and of random grids, a random search follows, and the result is the best that was met, never above a customary one.

    Raises:
        ValueError: an order above 3, a negative power or ``apart``.
    """
    order = positive_int("order", order, most=MOST_ORDER)
    final, apart = boolean("lower_order_final", lower_order_final), positive_int("apart", apart, minimum=0)
    bound = partial(weight_bound, order=order, power=nonnegative("power", power), lower_order_final=final, apart=apart)
    kinds = [kind for kind in CUSTOMARY if kind != "shift3" or ends[0] <= 1]  # the shift is one of times in [0, 1]
    known = np.array([process.lam(time_grid(process, steps, kind, *ends)) for kind in kinds])
    if steps == 1:
        return np.exp(-known[0])
    rng = np.random.default_rng(0)
    gaps = rng.dirichlet(np.full(steps, 2.0), _RANDOM_STARTS)
    drawn = known[0, 0] + (known[0, -1] - known[0, 0]) * np.cumsum(gaps, axis=1)[:, :-1]
    drawn = np.column_stack([np.full(len(gaps), known[0, 0]), drawn, np.full(len(gaps), known[0, -1])])
    starts = [known[int(np.argmin(bound(known)))], drawn[int(np.argmin(bound(drawn)))]]
    candidates = np.array([*known, *(_searched(bound, _descended(bound, start), rng) for start in starts)])
    return np.exp(-candidates[int(np.argmin(bound(candidates)))])


def _descended(bound: Bound, lams: Array) -> Array:
    """A local minimum by trust-constr, with gaps that stay positive; ``lams`` itself where that is none."""
    inner, span = lams.size - 2, float(lams[-1] - lams[0])
    shift = 1e-6 * span * np.eye(lams.size)[1:-1]

    def whole(x: Array) -> Array:
        return np.concatenate([lams[:1], x, lams[-1:]])

    def gradient(x: Array) -> Array:
        both = bound(whole(x) + np.stack([shift, -shift]))
        return (both[0] - both[1]) / (2e-6 * span)

    lower = np.full(inner + 1, _LEAST_GAP * span / (inner + 1))
    lower[0] += lams[0]
    lower[-1] -= lams[-1]
    differences = np.eye(inner + 1, inner) - np.eye(inner + 1, inner, -1)
    constraint = LinearConstraint(differences, lower, np.inf, keep_feasible=True)
    start = np.array(lams[1:-1])
    if np.any(differences @ start <= lower):
        return lams
    settings = {"maxiter": _ITERATIONS}
    result = minimize(
        lambda x: float(bound(whole(x))),
        start,
        jac=gradient,
        method="trust-constr",
        constraints=[constraint],
        options=settings,
    )
    found = whole(result.x)
    return found if np.all(np.diff(found) > 0) else lams


def _searched(bound: Bound, lams: Array, rng: np.random.Generator) -> Array:
    """The best found by random moves that become shorter: where gradients stop at a kink, it goes along."""
    span, best = float(lams[-1] - lams[0]), lams
    for width in np.geomspace(0.1, 1e-7, _ROUNDS) * span / lams.size:
        moves = width * rng.standard_normal((_MOVES, lams.size))
        moves[:, [0, -1]] = 0.0
        moved = best + moves
        moved = moved[np.all(np.diff(moved, axis=1) > _LEAST_GAP * span / lams.size, axis=1)]
        tried = np.concatenate([best[None], moved])
        best = tried[int(np.argmin(bound(tried)))]
    return best
