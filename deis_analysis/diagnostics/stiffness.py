r"""Stiffness and local error from the calls that a table makes anyway.

*Stiffness.* Two evaluated nodes a, b at one time and with different states give

.. math:: \frac{\|p(u_a, t) - p(u_b, t)\|}{\|u_a - u_b\|} ,

a lower bound of the model's Lipschitz constant there, and |∂p/∂x| itself on one axis of Gaussian data, where p is
affine. Heun's Euler stage and the state that the next step starts from are such a pair. The model's share of the
velocity dx/dt = A x + B p is known, so the same two calls estimate |∂v/∂x|.

*Local error.* Where the last stage of a step sits at the step's end it is itself a result, of lower order; the distance
to the step's result estimates its local error, as an embedded pair does.

Source: Shampine 1977 (stiffness from two stages at one abscissa); Hairer, Nørsett & Wanner 1993, sec. II.4 (embedded
pairs); both as sums over a trajectory, Pal et al. 2021 (arXiv 2105.03918).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.tableau import Model, Tableau, run
from deis_analysis.validate import checked, instance

_SAME_TIME = 1e-12  # relative


@dataclass(frozen=True)
class StiffnessEstimate:
    """One pair of nodes.

    Attributes:
        nodes: the two nodes of the table. time: the time that both are told.
        estimate: (n,) per sample: change of the prediction (dimensionless for ε) or of the velocity (per unit of time)
            over change of the state, Euclidean norms of one sample; 0 where the two states coincide.
        separation: (n,) ‖u_a − u_b‖; the estimate's relative rounding error is about 1e-16 ‖u‖ over this.
    """

    nodes: tuple[int, int]
    time: float
    estimate: Array
    separation: Array


@checked
def equal_time_pairs(tableau: Tableau) -> tuple[tuple[int, int], ...]:
    """Pairs of evaluated nodes that are told one time (to 1e-12 relative) in different states, by the table."""
    times, rows = instance("tableau", tableau, Tableau).times, _rows(tableau)
    calls = sorted(tableau.evaluated, key=lambda k: (times[k], k))
    groups: list[list[int]] = []
    for k in calls:
        if groups and abs(times[k] - times[groups[-1][-1]]) <= _SAME_TIME * abs(times[k]):
            groups[-1].append(k)
        else:
            groups.append([k])
    pairs = [pair for group in groups for pair in combinations(sorted(group), 2)]
    return tuple(sorted((a, b) for a, b in pairs if not np.array_equal(rows[a], rows[b])))


def _rows(tableau: Tableau) -> dict[int, Array]:
    """The state of each evaluated node in terms of x_T, outputs and noises."""
    form = tableau.butcher()
    everything = np.column_stack([form.start, form.weights, form.noise])
    return dict(zip(tableau.evaluated, everything, strict=False))


@checked
def stiffness_estimates(
    tableau: Tableau, model: Model, x: Any, *, process: Process | None = None, noise: Any = None
) -> tuple[StiffnessEstimate, ...]:
    """One estimate per pair of evaluated nodes at one time, in order of the nodes.

    Args:
        tableau: any table that has such pairs, such as ``rhork_2heun``, ``rhork_4rk``.
        model: ``model(x, t)``, predicts what the table says; called in the dtype of ``x``. Differences lose digits, so
            use float64. x: (n, …) at the table's first time, n ≥ 1.
        process: None to estimate ‖∂p/∂x‖; a process to estimate ‖∂v/∂x‖ of its probability flow.
        noise: for a stochastic table, see `run`.

    Raises:
        ValueError: a table without such a pair; no samples; times at which the velocity is singular; as `run`.
    """
    pairs = equal_time_pairs(tableau)
    if not pairs:
        raise ValueError(
            f"tableau {tableau.name!r} calls the model at no time twice in different states; allowed: one with two "
            "stages at one time, such as rhork_2heun"
        )
    parts = {pair: _velocity_parts(process, tableau.prediction, float(tableau.times[pair[0]])) for pair in pairs}
    _, kept = run(tableau, model, _checked(x), noise, keep=sorted({k for pair in pairs for k in pair}))
    found = []
    for (a, b), (from_x, from_p) in parts.items():
        du, dp = kept.states[a] - kept.states[b], kept.outputs[a] - kept.outputs[b]
        separation, change = _norms(du), _norms(from_x * du + from_p * dp)
        ratio = np.divide(change, separation, out=np.zeros_like(change), where=separation > 0)
        found.append(StiffnessEstimate((a, b), float(tableau.times[a]), ratio, separation))
    return tuple(found)


def _velocity_parts(process: Process | None, prediction: str, t: float) -> tuple[float, float]:
    """(A, B) of dx/dt = A x + B p on the probability flow; (0, 1), for p itself, without a process."""
    if process is None:
        return 0.0, 1.0
    f, rate = float(require_process(process).drift(t)), float(process.log_rho_rate(t))
    from_x = {"eps": f, "score": f, "x0": f + rate, "v": 0.0}[prediction]  # d log γ/dt
    with np.errstate(invalid="ignore", divide="ignore"):
        from_p = float(process.gamma(prediction, t) * process.kappa_rate(prediction, t))
    if not np.all(np.isfinite([from_x, from_p])):
        raise ValueError(f"t={t!r}: the velocity in terms of {prediction!r} is singular there on {process!r}")
    return from_x, from_p


def _norms(a: Any) -> Array:
    """(n,) Euclidean norms of the samples, float64."""
    values = np.atleast_1d(np.asarray(backend.wide(a).cpu() if backend.is_torch(a) else a, dtype=np.float64))
    return np.sqrt(np.sum(values.reshape(values.shape[0], -1) ** 2, axis=1))


def _checked(x: Any) -> Any:
    """``x``; ValueError if it holds no sample or empty ones."""
    x = backend.floating("x", x)
    if np.prod(np.shape(x)) == 0:
        raise ValueError(f"x has shape {tuple(np.shape(x))}; allowed: (n, …), n >= 1, no empty axis")
    return x


@dataclass(frozen=True)
class EmbeddedError:
    """Local errors by an embedded result, of M steps and n samples.

    Attributes:
        times: (M, 2) start and end of each step that has an embedded result.
        errors: (M, n) E_j = ‖u_j − û_j‖, the unit of x: the local error of û_j at leading order.
        total: (n,) Σ_j |h_j| E_j, h_j the step in process time: the quantity that Pal et al. 2021 penalise.
    """

    times: Array
    errors: Array
    total: Array


@checked
def embedded_nodes(tableau: Tableau) -> tuple[tuple[int, int, int], ...]:
    """(start, stage, end) of each step that has a stage at its end time: its grid nodes, and the last such stage."""
    nodes, times = instance("tableau", tableau, Tableau).grid_nodes, tableau.times
    found = []
    for a, b in pairwise(nodes):
        there = [k for k in range(a + 1, b) if abs(times[k] - times[b]) <= _SAME_TIME * abs(times[b])]
        if there:
            found.append((a, there[-1], b))
    return tuple(found)


@checked
def embedded_error(tableau: Tableau, model: Model, x: Any) -> EmbeddedError:
    r"""Local error of each step by the distance to its embedded result, without further model calls.

    û_j is the state of the step's last stage at the end time: the Euler step of ``rhork_2heun`` and ``rhork_3ssprk``, a
    first-order step of ``rhork_3kutta``, a second-order step of ``rhork_4rk``. Both start from the numerical u_{j−1}.
    Where u_j is of order q and û_j of order p < q, E_j over the local error of û_j is 1 + O(h^{q−p}). That is the case
    for the Runge–Kutta rows; predictor–corrector rows have such nodes too, and there E_j is the change that the
    corrector makes.

    Args:
        tableau: deterministic. model, x: as `run`; x (n, …), n ≥ 1, in whose dtype the model is called.

    Raises:
        ValueError: a stochastic table; a table none of whose steps has a stage at its end; as `run`.
    """
    steps = embedded_nodes(tableau)
    if tableau.stochastic or not steps:
        raise ValueError(
            f"tableau {tableau.name!r} has noise, or no stage at the end of a step; allowed: a deterministic table "
            "with one, such as rhork_2heun"
        )
    _, kept = run(tableau, model, _checked(x), keep=sorted({k for _, stage, end in steps for k in (stage, end)}))
    errors = np.array([_norms(kept.states[end] - kept.states[stage]) for _, stage, end in steps])
    times = np.array([(tableau.times[start], tableau.times[end]) for start, _, end in steps])
    return EmbeddedError(times, errors, np.abs(np.diff(times, axis=1))[:, 0] @ errors)
