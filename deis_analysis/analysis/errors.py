r"""Where the error of a run comes from: per step, transported to the end, and in the prediction itself.

With u_i the numerical states and E the exact flow, :math:`g_i = E_{t_i → t_N}(u_i)` hands step i over to the
exact flow. Then g_N is the result, g_0 the exact answer, and the transported local errors g_{i+1} − g_i sum to the
global error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.analysis.orders import Exact, walk
from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import PREDICTIONS, VARIABLES, Array, Process
from deis_analysis.tableau import Model, Tableau, run
from deis_analysis.validate import checked, choose, positive_int


def _grid_times(tableau: Tableau) -> Array:
    return tableau.times[list(tableau.grid_nodes)]


@checked
def global_error(tableau: Tableau, process: Process, mix: Exact, x: Array) -> Array:
    """Result of the run minus exact flow, pathwise; shape of ``x``, which is the state at the table's first time."""
    ts = _grid_times(tableau)
    return run(tableau, mix.model(process, tableau.prediction), x) - mix.flow(process, x, ts[0], ts[-1])


@checked
def local_errors(tableau: Tableau, process: Process, mix: Exact, x: Array) -> Array:
    """(N, *x.shape) error of each step taken from exact history (exact earlier states and model outputs)."""
    x = backend.floating("x", x)
    ts = _grid_times(tableau)
    exact = {
        k: mix.flow(process, x, ts[0], t) if i else x
        for i, (k, t) in enumerate(zip(tableau.grid_nodes, ts, strict=True))
    }
    computed = walk(tableau, mix.model(process, tableau.prediction), exact)
    return np.array([computed[k] - exact[k] for k in tableau.grid_nodes[1:]])


@checked
def transported_errors(tableau: Tableau, process: Process, mix: Exact, x: Array) -> Array:
    """(N, *x.shape) each step's own contribution to the global error, carried to the end by the exact flow.

    They sum to `global_error` up to the accuracy of the flow.
    """
    ts = _grid_times(tableau)
    _, trajectory = run(tableau, mix.model(process, tableau.prediction), x, keep=tableau.grid_nodes)
    handed_over = [
        mix.flow(process, trajectory.states[k], t, ts[-1]) if k != tableau.grid_nodes[-1] else trajectory.states[k]
        for k, t in zip(tableau.grid_nodes, ts, strict=True)
    ]
    return np.diff(np.array(handed_over), axis=0)


@checked
def extrapolation_error(
    model: Model,
    process: Process,
    path: Callable[[float], Any],
    ts: Any,
    degree: int,
    *,
    prediction: str = "eps",
    variable: str = "t",
    unit: str | None = None,
    points: int = 8,
) -> tuple[Array, Array]:
    r"""How far the extrapolated prediction is from the true one between nodes, along the exact solution.

    On each step the polynomial through the prediction at the latest ``degree`` + 1 nodes of the exact path is compared
    with the prediction on the path:

    .. math:: Δ(τ) = \Bigl( \tfrac1n \sum_{i=1}^n | p(x_τ, τ) - P_r(τ) |_i^2 \Bigr)^{1/2} .

    Degree 0 with ``"score"`` or ``"eps"`` is the error of a frozen score or ε: Δ_s and Δ_ε.

    Args:
        model: predicts ``prediction``; path: the exact state x_τ at a time τ, NumPy.
        ts: (N + 1,) descending times. unit: the prediction to measure in: prediction="eps",
            unit="score" is the Δ_s of a method that freezes ε.
        points: times per step at which Δ is evaluated, the step's end included.

    Returns:
        (N, points) times and (N, points) root mean squares over samples and dimensions.

    Source: Zhang & Chen 2023, fig. 3b, 3d and 4b.
    """
    ts, degree = check_grid(process, ts), positive_int("degree", degree, minimum=0)
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    unit = choose("unit", prediction if unit is None else unit, PREDICTIONS)
    positive_int("points", points)
    known = [np.asarray(model(path(float(t)), float(t))) for t in ts[:-1]]
    times, errors = np.empty((2, ts.size - 1, points))
    for i in range(ts.size - 1):
        r = min(i, degree)
        nodes = ts[i - r : i + 1][::-1]
        for j in range(points):
            tau = float(ts[i] + (ts[i + 1] - ts[i]) * (j + 1) / points) if j + 1 < points else float(ts[i + 1])
            basis = _basis(process, variable, nodes, tau)
            state = path(tau)
            gap = sum(b * known[i - k] for k, b in enumerate(basis)) - np.asarray(model(state, tau))
            factor = process.convert(prediction, unit, tau)[1]  # same state: only the prediction's part differs
            times[i, j], errors[i, j] = tau, abs(float(factor)) * float(np.sqrt(np.mean(gap**2)))
    return times, errors


def _basis(process: Process, variable: str, nodes: Array, tau: float) -> Array:
    """Lagrange basis at tau, from differences of φ."""
    clocks: dict[str, Callable[[Any], Array]] = {
        "t": np.asarray,
        "rho": process.rho,
        "lam": process.lam,
        "inv_rho": lambda t: 1.0 / process.rho(t),
    }
    at, z = clocks[variable](nodes), clocks[variable](tau)
    return np.array([np.prod(np.delete((z - at) / (at[j] - at + (at == at[j])), j)) for j in range(nodes.size)])
