r"""Is a field a gradient? The asymmetry of its Jacobian, and its work around a circle.

A score is ∇ log p: its Jacobian J is symmetric and ∮ s·dl = 0. For s = −(S + κK) x with S symmetric and K the rotation
by a right angle in a plane, ‖J − Jᵀ‖_F = 2√2 |κ|, and a circle of radius r in that plane, traversed the way K turns,
gives −2πκr².

Neither says that samples are worse: on an isotropic Gaussian s + κ(t) K x moves along circles of equal density, so the
law of the probability flow is unchanged while each path is turned by θ = ½ ∫ g² κ dt and misses its end by
2 |x| |sin(θ/2)| (``tests/diagnostics/test_conservativity.py``).

Symbols here: κ is the strength of a curl and K the quarter turn, not the scale κ of a prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.tableau import Model
from deis_analysis.validate import checked, choose, finite, function, positive, positive_int, scalar

if TYPE_CHECKING:
    import torch

_UNIT_SLACK = 1e-9


@dataclass(frozen=True)
class Asymmetry:
    """‖J − Jᵀ‖_F of n samples.

    Attributes:
        norm: (n,) ‖J − Jᵀ‖_F, the root of ``squared``.
        squared: (n,) ‖J − Jᵀ‖_F², exact or an unbiased estimate.
        standard_error: (n,) of ``squared``, 0 where exact.
    """

    norm: Array
    squared: Array
    standard_error: Array


@checked
def as_score(model: Model, process: Process, prediction: str = "eps") -> Model:
    """The score that a model of another prediction implies, model(x, t) → c x + d p; NumPy or torch, differentiable.

    Args:
        model: predicts ``prediction`` on ``process``, such as ε, where the score is −ε/σ.

    Raises:
        ValueError: a model that is not a function, an unknown prediction; on a call, a time at which σ = 0, and a model
            that is not differentiable where ``x`` requires a gradient.
    """
    function("model", model)
    require_process(process)
    choose("prediction", prediction, PREDICTIONS)

    def score(x: Any, t: float) -> Any:
        if not float(process.sigma(t)) > 0:
            raise ValueError(f"t={t!r} has σ = 0 on {process!r}, where the score is not finite; allowed: σ > 0")
        p = model(x, t)
        if backend.wants_graph(x) and backend.is_torch(p):  # the term in x would hide that there is none
            backend.with_graph("model", p, f"at t={t!r}")
        return process._translate(x, p, prediction, "score", t)

    return score


@checked
def jacobian_asymmetry(
    score: Model, x: torch.Tensor, t: float, *, probes: int | None = None, seed: int = 0
) -> Asymmetry:
    r"""‖J − Jᵀ‖_F of J = ∂s/∂x at each sample, exactly or from Jacobian–vector products.

    With independent u, v ~ N(0, I), E (uᵀJv − vᵀJu)² = ‖J − Jᵀ‖_F²: two products for one draw.

    Args:
        score: torch model (x, t) → shape of x, differentiable, each sample independent of the others (networks in
            evaluation mode); called in the dtype of ``x``.
        x: (n, …) of floating dtype, finite; float32 for a float32 network.
        probes: None for the full Jacobian, d reverse passes and n d² numbers; an integer ≥ 2 for that many draws from
            ``seed``.

    Raises:
        ValueError: bad shapes, x or an output that is not finite, fewer than 2 probes, a model that is not
            differentiable in x, such as one under ``torch.no_grad``, derivatives that are not finite.
    """
    import torch

    t = scalar("t", t)
    x = samples(function("score", score), x, t)
    n, d = x.shape[0], x[0].numel()
    if probes is None:
        total = torch.func.jacrev(lambda y: score(y, t).reshape(n, d).sum(0))(x)  # sum: samples are independent
        jacobian = total.reshape(d, n, d).permute(1, 0, 2)
        squares = (jacobian - jacobian.transpose(1, 2)).square().sum((1, 2))[None]
    else:
        draws = positive_int("probes", probes, minimum=2)
        rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
        squares = torch.stack([_one_probe(score, x, t, rng) for _ in range(draws)])
    values = np.asarray(backend.wide(squares).cpu())
    if not np.all(np.isfinite(values)):
        raise ValueError(f"score has derivatives at t={t!r} that are not finite; allowed: a differentiable model")
    squared = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if probes else np.zeros(n)
    return Asymmetry(np.sqrt(squared), squared, spread / math.sqrt(values.shape[0]))


def _one_probe(score: Model, x: torch.Tensor, t: float, rng: np.random.Generator) -> torch.Tensor:
    """(n,) (uᵀJv − vᵀJu)²."""
    import torch

    u, v = (torch.as_tensor(rng.standard_normal(x.shape), dtype=x.dtype, device=x.device) for _ in range(2))
    along_u, along_v = (torch.func.jvp(lambda y: score(y, t), (x,), (w,))[1] for w in (u, v))
    return (u * along_v - v * along_u).reshape(x.shape[0], -1).sum(1).square()


def samples(score: Model, x: Any, t: float, *, flat: bool = False, derivatives: bool = True) -> torch.Tensor:
    """``x``, detached, if it is a tensor (n, …), or (n, d) if ``flat``, that the model takes and, if asked for
    ``derivatives``, is differentiable in."""
    import torch

    fits = isinstance(x, torch.Tensor) and (x.ndim == 2 or (x.ndim > 2 and not flat))
    if not fits or x.layout is not torch.strided or x.is_meta or not x.is_floating_point() or x.numel() == 0:
        kind, shape = type(x).__name__, tuple(np.shape(x)) if isinstance(x, (np.ndarray, torch.Tensor)) else ()
        raise ValueError(
            f"x of type {kind} and shape {shape} must be a floating torch tensor (n, {'d' if flat else '…'})"
        )
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x must be finite; it holds NaN or infinity")
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(derivatives)
        output = score(leaf, t)
        if not isinstance(output, torch.Tensor) or output.shape != x.shape:
            raise ValueError(f"score returned shape {tuple(np.shape(output))}; allowed: {tuple(x.shape)}")
        if not bool(torch.isfinite(output).all()):
            raise ValueError(f"score must be finite; it holds NaN or infinity at t={t!r}")
        if derivatives:
            backend.with_graph("score", output, f"at t={t!r}", leaf)
    return x


@checked
def loop_integral(score: Model, center: Any, radius: float, plane: Any, t: float, points: int = 64) -> float:
    r"""∮ s·dl around the circle c + r (cos θ e₁ + sin θ e₂), by the trapezoidal rule.

    .. math:: \oint s·dl = \frac{2πr}{n} \sum_k s(x_k)·(-\sin θ_k\, e_1 + \cos θ_k\, e_2) , \qquad θ_k = 2πk/n .

    The integrand is periodic, so the rule converges faster than any power of n where s is smooth, and is exact where s
    is a polynomial of degree ≤ n − 2. All points are one batch.

    Args:
        score: model (x, t) → shape of x on torch tensors (n, …), without gradients; called in the dtype of ``center``
            if that is a tensor, in float64 otherwise.
        center: (…) one finite sample, an array or a tensor of floating dtype (float32 for a float32 network).
        radius: > 0. plane: two coordinates (i, j) of the flattened sample, or two orthonormal vectors of its shape.
        points: n ≥ 4.

    Raises:
        ValueError: a center that is not finite or not floating, a plane that is none of these, an output that is not
            finite.

    Source: Trefethen & Weideman 2014 for the convergence of the rule.
    """
    import torch

    t = scalar("t", t)
    function("score", score)
    given = isinstance(center, torch.Tensor)
    middle = backend.floating("center", center).detach() if given else torch.as_tensor(finite("center", center))
    positive(radius=radius)
    count = positive_int("points", points, minimum=4)
    basis = torch.as_tensor(_plane(plane, tuple(middle.shape)), dtype=middle.dtype, device=middle.device)
    angle = torch.arange(count, dtype=middle.dtype, device=middle.device) * (2 * math.pi / count)
    outward = torch.stack([angle.cos(), angle.sin()], 1) @ basis
    tangent = torch.stack([-angle.sin(), angle.cos()], 1) @ basis
    with torch.no_grad():
        s = score(middle + float(radius) * outward.reshape(count, *middle.shape), t)
    if not isinstance(s, torch.Tensor) or tuple(s.shape) != (count, *middle.shape) or not bool(torch.isfinite(s).all()):
        raise ValueError(f"score must return finite values of shape {(count, *middle.shape)} at t={t!r}")
    return float(2 * math.pi * radius / count * (s.reshape(count, -1) * tangent).sum())


def _plane(plane: Any, shape: tuple[int, ...]) -> Array:
    """(2, d) orthonormal vectors of the plane."""
    size = math.prod(shape)
    given = finite("plane", plane)
    if given.shape == (2,):
        i, j = (positive_int("plane", axis, minimum=0, most=size - 1) for axis in plane)
        if i == j:
            raise ValueError(f"plane={plane!r} must name two different coordinates")
        return np.eye(size)[[i, j]]
    if given.shape != (2, *shape):
        raise ValueError(f"plane has shape {given.shape}; allowed: two coordinates, or two vectors {(2, *shape)}")
    vectors = given.reshape(2, size)
    if not np.allclose(vectors @ vectors.T, np.eye(2), rtol=0, atol=_UNIT_SLACK):
        raise ValueError("plane must be spanned by two orthonormal vectors")
    return vectors
