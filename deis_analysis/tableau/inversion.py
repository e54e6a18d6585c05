r"""Running a reversible sampler backwards: from its last two states to x_T, without solving an equation.

A row of a table is linear in the states and outputs that it uses.  Where the rows of a step determine an earlier state
from later ones *and* the model's values at known states only, the step can be undone exactly; BDIA, BELM and reversible
Heun are such tables, DDIM is not: its row holds a state and the model's value at that same state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.tableau import Tableau, run
from deis_analysis.validate import checked, function, instance

_TOLERANCE = 1e-10
Terms = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Solved:
    """One earlier state in terms of known ones: u_node = Σ states + Σ outputs."""

    node: int
    states: Terms
    outputs: Terms


@dataclass(frozen=True)
class Inversion:
    """A table solved backwards, see `invert`.

    Attributes:
        tableau: the table.
        blocks: per step of the grid, last step first, the states that it gives back.
    """

    tableau: Tableau
    blocks: tuple[tuple[Solved, ...], ...]

    @property
    def needs(self) -> tuple[int, int]:
        """The two nodes whose states it starts from: the result, and the one before."""
        last = self.tableau.times.size - 1
        return last, last - 1

    def run(self, model: Callable[[Any, float], Any], last: Any, before: Any) -> Any:
        """x_T from the states at ``needs``, as kept by ``run(tableau, model, x_T, keep=inversion.needs)``.

        Args:
            model: as for `run`. last, before: arrays of the same shape and dtype.

        Raises:
            ValueError: shapes that differ, or a model output of another shape or not finite.
        """
        function("model", model)
        given = [backend.floating(name, x) for name, x in (("last", last), ("before", before))]
        if given[0].shape != given[1].shape:
            raise ValueError(f"before has shape {tuple(given[1].shape)}; allowed: {tuple(given[0].shape)}, as last")
        centre = backend.Centre(self.tableau.mean, given[0], self.tableau.prediction)
        states = {k: centre.off(x) for k, x in zip(self.needs, given, strict=True)}
        call, outputs = backend.guarded(model, given[0], None, True), dict[int, Any]()

        def output(k: int) -> Any:
            if k not in outputs:
                outputs[k] = centre.predicted(call(centre.on(states[k]), float(self.tableau.times[k])))
            return outputs[k]

        for block in self.blocks:
            for row in block:
                terms = [(c, states[j]) for c, j in row.states] + [(c, output(j)) for c, j in row.outputs]
                states[row.node] = backend.combination(given[0])(terms)
        call.finish()
        return centre.on(states[0])

    def growth(self, process: Process) -> float:
        r"""By how much rounding errors grow on the way back, in y = x/γ: a determinant.

        That of the linear part, model outputs held fixed, of the map from the last pair of states to the first pair:
        for BDIA and BELM ∏ 1/G over the two-step rows; for reversible Heun 2, since each step has 1 but the first,
        which makes ŷ and y from one state and has ŷ₁ = y₀ + Δ p₀, y₁ = y₀ + ….
        """
        require_process(process)
        gamma = process.gamma(self.tableau.prediction, self.tableau.times)
        total, live = 1.0, sorted(self.needs)
        for block in self.blocks:
            basis = {k: np.eye(2)[i] for i, k in enumerate(live)}
            for row in block:
                parts = [c * gamma[j] / gamma[row.node] * basis[j] for c, j in row.states if j in basis]
                basis[row.node] = np.sum(parts, axis=0)
            live = sorted(basis)[:2]
            total *= abs(float(np.linalg.det(np.stack([basis[k] for k in live]))))
        return total


@checked
def invert(tableau: Tableau) -> Inversion:
    """Solve a reversible table for its earlier states, step by step from the end.

    Raises:
        ValueError: the table draws noise, or a step cannot be solved: an earlier state occurs only together with the
            model's value there.

    Source: Zhang et al. 2024 (BDIA, arXiv 2307.10829); Wang et al. 2024 (BELM, arXiv 2410.07273); Kidger 2022 (arXiv
    2202.02435), reversible Heun; here for any table, by elimination.
    """
    if instance("tableau", tableau, Tableau).stochastic:
        raise ValueError(f"tableau {tableau.name!r} draws noise; allowed: deterministic tables")
    last = tableau.times.size - 1
    known = {last, last - 1}
    blocks = []
    for first, end in reversed(list(pairwise(tableau.grid_nodes))):
        if 0 in known:
            break
        block: list[Solved] = []
        rows = np.arange(first + 1, end + 1)
        while found := _solve(tableau, rows, known):
            block.append(found)
            known.add(found.node)
        if not block:
            raise ValueError(
                f"tableau {tableau.name!r} is not reversible: its step from node {first} to {end} cannot be solved for "
                "an earlier state without the model's value at that state"
            )
        blocks.append(tuple(block))
    return Inversion(tableau, tuple(blocks))


def _solve(tableau: Tableau, rows: Array, known: set[int]) -> Solved | None:
    """An unknown state that a combination of the rows gives in terms of known states and outputs at them."""
    lines = np.zeros((rows.size, 2 * tableau.times.size))  # 0 = −u_row + Σ S u + Σ F p
    size = tableau.times.size
    lines[:, :size], lines[:, size:] = (m[rows].toarray() for m in tableau.matrices[:2])
    lines[np.arange(rows.size), rows] -= 1.0
    used = np.flatnonzero(np.any(lines != 0, axis=0))
    unknown = np.array([j for j in used if j % size not in known], dtype=int)
    for column in sorted((j for j in unknown if j < size), reverse=True):
        target = (unknown == column).astype(float)
        weights = np.linalg.lstsq(lines[:, unknown].T, target, rcond=None)[0]
        if np.max(np.abs(weights @ lines[:, unknown] - target)) > _TOLERANCE:
            continue
        line = -(weights @ lines)
        rest = [j for j in used if j % size in known and line[j] != 0]
        states = tuple((float(line[j]), int(j)) for j in rest if j < size)
        return Solved(int(column), states, tuple((float(line[j]), int(j - size)) for j in rest if j >= size))
    return None


@checked
def round_trip_error(tableau: Tableau, model: Callable[[Any, float], Any], x: Any) -> float:
    """Largest |x_T − inverse(sampler(x_T))| over the entries of ``x``: rounding alone, if the table is reversible."""
    x = backend.floating("x", x)
    if 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: at least one entry")
    inversion = invert(tableau)
    _, kept = run(tableau, model, x, keep=inversion.needs)
    back = inversion.run(model, *(kept.states[k] for k in inversion.needs))
    return float(abs(back - x).max())
