r"""Flow maps φ_{r←t}: do they compose, and what is their mean velocity?

An exact flow is a semigroup, φ_{r←s} φ_{s←t} = φ_{r←t}.  Its mean velocity u(x, t, r) = (x − φ_{r←t} x)/(t − r) obeys

.. math:: u = v - (t - r) \, (∂_t + v · ∇) u , \qquad v(x, t) = \dot x ,

because φ_{r←t} x does not change along the path of x.  [MeanFlow: Geng et al. 2025, arXiv 2505.13447]

A flow map is any ``flow(x, t_from, t_to)``: the exact ``functools.partial(mix.flow, process)``, a distilled network or,
as `table_flow`, a sampler, whose semigroup defect is of its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deis_analysis import backend
from deis_analysis.process.grids import grid
from deis_analysis.process.process import PREDICTIONS, Process, require_process
from deis_analysis.solvers import build
from deis_analysis.tableau import Model, run
from deis_analysis.validate import checked, choose, finite, function, nonnegative, positive_int, scalar

FlowMap = Callable[[Any, float, float], Any]


def _times(**values: Any) -> list[float]:
    return [float(finite(name, scalar(name, value))) for name, value in values.items()]


def _different(t: float, r: float) -> None:
    if t == r:
        raise ValueError(f"r={r!r} must differ from t={t!r}: the mean velocity over no time is the velocity itself")


@checked
def semigroup_defect(flow: FlowMap, x: Any, t: float, s: float, r: float) -> Any:
    """abs(φ_{r←s} φ_{s←t} x − φ_{r←t} x), entry by entry, shape of ``x``.

    Args:
        flow: ``flow(x, t_from, t_to)``. x: the state at ``t``.
        s: the stop on the way to ``r``; any order of the three times that ``flow`` takes.
    """
    function("flow", flow)
    t, s, r = _times(t=t, s=s, r=r)
    return abs(flow(flow(x, t, s), s, r) - flow(x, t, r))


@checked
def mean_velocity(flow: FlowMap, x: Any, t: float, r: float) -> Any:
    """u = (x − φ_{r←t} x)/(t − r): displacement per unit of time from ``r`` to ``t``, shape of ``x``.

    Raises:
        ValueError: ``r`` equal to ``t``.
    """
    function("flow", flow)
    t, r = _times(t=t, r=r)
    _different(t, r)
    return (x - flow(x, t, r)) / (t - r)


@checked
def mean_velocity_residual(flow: FlowMap, velocity: Model, x: Any, t: float, r: float, delta: float) -> Any:
    r"""u − v + (t − r)(∂_t + v·∇)u, shape of ``x``: 0 for an exact flow but for O(δ²) of the difference quotient.

    The derivative is the central difference along the tangent of the path,

    .. math:: \frac{u(x + δ v, t + δ, r) - u(x - δ v, t - δ, r)}{2 δ} ,

    so ``flow`` is only asked for the way to ``r``.

    Args:
        velocity: ``velocity(x, t)`` = ẋ along the flow.
        delta: δ > 0 in units of time, less than abs(t − r); t ± δ must be times that ``flow`` takes.
    """
    function("flow", flow)
    function("velocity", velocity)
    t, r = _times(t=t, r=r)
    _different(t, r)
    x, delta = backend.floating("x", x), nonnegative("delta", delta)
    if not 0 < delta < abs(t - r):
        raise ValueError(f"delta={delta!r} must lie between 0 and abs(t - r)={abs(t - r)!r}, both excluded")
    v = velocity(x, t)
    ahead = mean_velocity(flow, x + delta * v, t + delta, r)
    behind = mean_velocity(flow, x - delta * v, t - delta, r)
    return mean_velocity(flow, x, t, r) - v + (t - r) * (ahead - behind) / (2.0 * delta)


@checked
def table_flow(
    solver: str, process: Process, model: Model, steps: int, kind: str = "t2", *, prediction: str = "eps"
) -> FlowMap:
    """A sampler as an approximate flow map: ``flow(x, t_from, t_to)`` runs ``steps`` steps down from t_from to t_to.

    Args:
        solver: registry name of a sampler without noise. model: ``model(x, t) -> prediction``.
        kind: grid between the two times, see `deis_analysis.grid`.

    Raises:
        ValueError: a stochastic sampler; when called, times that do not descend.
    """
    require_process(process)
    function("model", model)
    choose("prediction", prediction, PREDICTIONS)
    steps = positive_int("steps", steps)
    ends = process.sampling_range
    if build(solver, process, grid(process, steps, kind, *ends)).stochastic:
        raise ValueError(f"solver={solver!r} draws noise; allowed: samplers without, whose output is a map of x")

    def flow(x: Any, t_from: float, t_to: float) -> Any:
        """The table from ``t_from`` to ``t_to``, run."""
        table = build(solver, process, grid(process, steps, kind, t_from, t_to))
        return run(table.in_terms_of(process, prediction), model, x)

    return flow
