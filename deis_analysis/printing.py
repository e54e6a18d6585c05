"""Tables as text, LaTeX and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from deis_analysis.process import Array

if TYPE_CHECKING:
    from deis_analysis.tableau import Tableau


def latex(tableau: Tableau, digits: int = 4, limit: int = 12) -> str:
    """The Butcher form as a LaTeX array, at most ``limit`` calls wide (the middle ones elided)."""
    form = tableau.butcher()
    m = form.times.size
    shown: list[int | None] = list(range(m)) if m <= limit else [*range(limit // 2), None, *range(m - limit // 2, m)]
    head = " & ".join(r"\cdots" if j is None else f"p_{{{j}}}" for j in shown)
    lines = [rf"\begin{{array}}{{c|c|{'c' * len(shown)}}}", rf"t & x_T & {head} \\ \hline"]
    for k in [*shown, m]:
        if k is None:
            lines.append(r"\vdots & \vdots & " + " & ".join("" for _ in shown) + r" \\")
            continue
        if k == m:
            lines.append(r"\hline")
        cells = [r"\cdots" if j is None else _number(form.weights[k, j], digits, "") for j in shown]
        time = "" if k == m else f"{form.times[k]:.{digits}g}"
        lines.append(" & ".join([time, _number(form.start[k], digits, "0"), *cells]) + r" \\")
    return "\n".join([*lines, r"\end{array}"])


def _number(value: float, digits: int, zero: str) -> str:
    if value == 0:
        return zero
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return rf"{mantissa}\cdot10^{{{int(exponent)}}}" if exponent else mantissa


def _dense(entries: list[list[float]], shape: tuple[int, int]) -> Array:
    matrix = np.zeros(shape)
    for k, j, value in entries:
        matrix[int(k), int(j)] = value
    return matrix


def draw(tableau: Tableau, limit: int = 24) -> str:
    """The table as text: one equation per node, at most ``limit`` of them (the middle ones elided)."""
    n = tableau.times.size
    kind = f"{tableau.noise.shape[1]} noises" if tableau.stochastic else "deterministic"
    lines = [
        f"{tableau.name or 'tableau'}: {tableau.nfe} calls of {tableau.prediction}, {n} nodes, {kind}, "
        f"{tableau.memory} arrays in memory"
    ]
    rows = range(n) if n <= limit else [*range(limit // 2), -1, *range(n - limit // 2, n)]
    width = max(len(label) for label in tableau.labels)
    for k in rows:
        if k < 0:
            lines.append("  …")
            continue
        terms = [(tableau.states[k, j], tableau.labels[j]) for j in np.flatnonzero(tableau.states[k])]
        terms += [(tableau.outputs[k, j], f"p({tableau.labels[j]})") for j in np.flatnonzero(tableau.outputs[k])]
        terms += [(tableau.noise[k, j], f"z{j}") for j in np.flatnonzero(tableau.noise[k])]
        text = "x_T" if k == 0 else " ".join(f"{value:+.6g} {symbol}" for value, symbol in terms)
        lines.append(f"  t = {tableau.times[k]:<10.6g} {tableau.labels[k]:>{width}} = {text or '0'}")
    return "\n".join(lines)


def to_json(tableau: Tableau) -> str:
    """Text that `parse` restores bit for bit; matrices as [row, column, value] of their non-zero entries."""
    sparse = {
        name: [[int(k), int(j), float(matrix[k, j])] for k, j in np.argwhere(matrix)]
        for name, matrix in (("states", tableau.states), ("outputs", tableau.outputs), ("noise", tableau.noise))
    }
    mean = None if tableau.mean is None else np.asarray(tableau.mean, dtype=np.float64).tolist()
    return json.dumps(
        {
            "format": "deis_analysis.Tableau/1",
            "name": tableau.name,
            "prediction": tableau.prediction,
            "times": tableau.times.tolist(),
            **sparse,
            "intervals": tableau.intervals.tolist(),
            "labels": list(tableau.labels),
            "grid_nodes": list(tableau.grid_nodes),
            "mean": mean,
        }
    )


def parse(text: str) -> dict[str, Any]:
    """The fields of the table that `to_json` wrote; ValueError if ``text`` is not one."""
    try:
        data = json.loads(text)
        if data["format"] != "deis_analysis.Tableau/1":
            raise ValueError(f"text has format {data['format']!r}; allowed: 'deis_analysis.Tableau/1'")
        n, columns = len(data["times"]), len(data["intervals"])
        matrices = {"states": (n, n), "outputs": (n, n), "noise": (n, columns)}
        dense = {name: _dense(data[name], shape) for name, shape in matrices.items()}
        return dict(
            times=data["times"],
            **dense,
            prediction=data["prediction"],
            name=data["name"],
            labels=tuple(data["labels"]),
            intervals=np.array(data["intervals"]).reshape(columns, 2),
            grid_nodes=tuple(data["grid_nodes"]),
            mean=None if data["mean"] is None else np.array(data["mean"]),
        )
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"text is not a tableau written by to_json: {error!r}") from error
