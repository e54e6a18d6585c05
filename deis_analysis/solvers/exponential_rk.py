r"""Explicit Runge–Kutta methods on the transformed flow: DEIS's ρRK family and every other (prediction, variable)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as Q
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import PREDICTIONS, VARIABLES, Array, Process
from deis_analysis.solvers.registry import family
from deis_analysis.solvers.weights import Integrals, check_finite
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder, combined
from deis_analysis.validate import checked, choose


@checked
@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge–Kutta method: nodes c (s), rows a (s, s) strictly lower, weights b (s), exact rationals.

    Attributes:
        order: of convergence, declared. degree: of the quadrature rule (b, c), declared.
        source: where it is from.
    """

    c: tuple[Q, ...]
    a: tuple[tuple[Q, ...], ...]
    b: tuple[Q, ...]
    order: int
    degree: int
    source: str

    def __post_init__(self) -> None:
        s = len(self.b)
        if len(self.c) != s or len(self.a) != s or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"b has {s} stages; c needs {s} nodes and row i of a needs i entries")
        if any(sum(row, Q(0)) != c for row, c in zip(self.a, self.c, strict=True)) or sum(self.b) != 1:
            raise ValueError("each row of a must sum to its node c, and b to 1")


def _method(a: str, b: str, order: int, degree: int, source: str) -> ButcherTableau:
    """Rows of ``a`` separated by ``;``, each starting with stage 2; nodes are the row sums."""
    rows = ((), *(tuple(Q(x) for x in row.split()) for row in a.split(";") if row.strip()))
    nodes = tuple(sum(row, Q(0)) for row in rows)
    return ButcherTableau(nodes, rows, tuple(Q(x) for x in b.split()), order, degree, source)


_KUTTA = "Kutta 1901"
RUNGE_KUTTA: dict[str, ButcherTableau] = {
    "1euler": _method("", "1", 1, 0, "Euler 1768"),
    "2midpoint": _method("1/2", "0 1", 2, 1, "Runge 1895"),
    "2heun": _method("1", "1/2 1/2", 2, 1, "Heun 1900"),
    "3kutta": _method("1/2; -1 2", "1/6 4/6 1/6", 3, 3, _KUTTA),
    "3heun": _method("1/3; 0 2/3", "1/4 0 3/4", 3, 2, "Heun 1900"),
    "3ralston": _method("1/2; 0 3/4", "2/9 1/3 4/9", 3, 2, "Ralston 1962"),
    "3vdh": _method("8/15; 1/4 5/12", "1/4 0 3/4", 3, 2, "van der Houwen 1972; Wray 1990"),
    "3ssprk": _method("1; 1/4 1/4", "1/6 1/6 2/3", 3, 3, "Shu & Osher 1988"),
    "4rk": _method("1/2; 0 1/2; 0 0 1", "1/6 1/3 1/3 1/6", 4, 3, _KUTTA),
}


_NATURAL = {"eps": "rho", "x0": "inv_rho"}


def _stage_times(process: Process, ts: Array, variable: str, c: float) -> Array:
    """(N,) times at which φ has covered the share ``c`` of each step."""
    if c == 0:
        return ts[:-1]
    if c == 1:
        return ts[1:]
    if variable == "t":
        return ts[:-1] + c * np.diff(ts)
    if variable == "lam":
        lam = process.lam(ts)
        return process.time_from_lam(lam[:-1] + c * np.diff(lam))
    rho = process.rho(ts) if variable == "rho" else 1.0 / process.rho(ts)
    level = rho[:-1] + c * np.diff(rho)
    return process.time_from_rho(level if variable == "rho" else 1.0 / level)


@checked
def runge_kutta(
    process: Process,
    ts: Any,
    tableau: str | ButcherTableau = "3kutta",
    *,
    prediction: str = "eps",
    variable: str = "rho",
    name: str = "",
) -> Tableau:
    r"""A Runge–Kutta method applied to dy/dφ = p · dκ/dφ, y = x/γ, with stages equidistributed in φ.

    With Δ = φ_s − φ_t, stage times φ_i = φ_t + c_i Δ and κ′ = dκ/dφ,

    .. math:: u_i = γ_i \Bigl( \frac{x_t}{γ_t} + Δ \sum_{j<i} a_{ij} κ'_j p(u_j, t_j) \Bigr) , \qquad
              x_s = γ_s \Bigl( \frac{x_t}{γ_t} + Δ \sum_j b_j κ'_j p(u_j, t_j) \Bigr) .

    The natural pair, φ = κ, has κ′ = 1: (ε, ρ) is ρRK-DEIS.  The order is that of the tableau in every variable.

    Args:
        ts: (N + 1,) descending times; s model calls per step, no reuse between steps.
        tableau: a key of ``RUNGE_KUTTA`` or a `ButcherTableau`.

    Raises:
        ValueError: unknown names, a bad grid, or times where κ or φ is infinite.

    Source: Zhang & Chen 2023, prop. 3 and sec. 3.3.
    """
    ts = check_grid(process, ts)
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    if not isinstance(tableau, ButcherTableau):
        tableau, name = RUNGE_KUTTA[choose("tableau", tableau, RUNGE_KUTTA)], name or f"rk_{tableau}"
    check_finite(process, prediction, variable, ts)
    steps = ts.size - 1
    natural = _NATURAL.get(prediction) == variable  # φ = κ: then Δκ is the weight of DDIM, bit for bit
    integrals = Integrals(process, prediction, variable, ts)
    delta = integrals.adams(np.zeros(steps, dtype=int))[:, 0] if natural else integrals.increments
    times = np.stack([_stage_times(process, ts, variable, float(c)) for c in tableau.c], axis=1)
    gamma, ends = process.gamma(prediction, times).tolist(), process.gamma(prediction, ts).tolist()
    with np.errstate(divide="ignore", invalid="ignore"):  # the recorder names the step that is singular
        slope = 1.0 if natural else process.kappa_rate(prediction, times) / process.variable_rate(variable, times)
        scale = (delta[:, None] * (slope + 0.0 * times)).tolist()
    *stages, last = [[float(w) for w in row] for row in (*tableau.a[1:], tableau.b)]
    r = Recorder(process, ts, prediction)
    x = r.x_T
    for i, (t, g, d) in enumerate(zip(times.tolist(), gamma, scale, strict=True)):
        k = [d[0] * r.call(x)]  # Δ κ′ p of each stage
        for j, row in enumerate(stages, 1):
            u = g[j] / g[0] * x + g[j] * combined(row, k)
            k.append(d[j] * r.call(u, t[j]))
        x = r.node(ends[i + 1] / g[0] * x + ends[i + 1] * combined(last, k))
    return r.tableau(name)


_row = family(runge_kutta, family="runge_kutta", variable="rho")
for _key, _tableau in RUNGE_KUTTA.items():
    _row(
        f"rhork_{_key}",
        _tableau.order,
        _tableau.degree,
        {"tableau": _key},
        stages=len(_tableau.b),
        source=f"Zhang & Chen 2023 (arXiv 2204.13902), sec. 3.3 (rhoRK); tableau: {_tableau.source}",
    )
