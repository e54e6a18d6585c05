"""Tables as text, LaTeX, HTML and JSON."""

from __future__ import annotations

import html
import json
from typing import Any

import numpy as np

from deis_analysis.pages import table
from deis_analysis.tableau.document import Document
from deis_analysis.tableau.rows import Matrices, Row, from_triplets, row_numbers

FORMAT = "deis_analysis.Tableau/1"
_SHOWN = 24  # nodes of a drawing


def latex(form: Any, digits: int = 4, limit: int = 12) -> str:
    """A Butcher form as a LaTeX array, at most ``limit`` calls wide (the middle ones elided)."""
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


def butcher_html(form: Any, limit: int = 12) -> str:
    """A Butcher form for a notebook, at most ``limit`` calls high and wide (the middle ones elided)."""
    m = form.times.size
    shown = _elided(m, limit)
    heads = ["t", "x_T", *("…" if j < 0 else f"p{j}" for j in shown), *(f"z{j}" for j in range(form.noise.shape[1]))]
    rows: list[list[object]] = []
    for k in [*shown, m]:
        if k < 0:
            rows.append(["…"] * len(heads))
            continue
        weights = ["…" if j < 0 else float(form.weights[k, j]) if form.weights[k, j] else "" for j in shown]
        time = "result" if k == m else f"{form.times[k]:.4g}"
        rows.append([time, float(form.start[k]), *weights, *map(float, form.noise[k])])
    caption = f"{m} calls of {form.prediction}: states in terms of x_T and the model's outputs"
    return table(heads, rows, caption)


def _number(value: float, digits: int, zero: str) -> str:
    if value == 0:
        return zero
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return rf"{mantissa}\cdot10^{{{int(exponent)}}}" if exponent else mantissa


def _elided(n: int, limit: int) -> list[int]:
    """Node numbers to show, −1 where the middle is left out."""
    return list(range(n)) if n <= limit else [*range(limit // 2), -1, *range(n - limit // 2, n)]


def draw(title: str, times: Any, labels: Any, plan: list[Row], limit: int = _SHOWN) -> str:
    """A table as text: one equation per node, at most ``limit`` of them (the middle ones elided)."""
    lines, shown = [title], _elided(len(plan), limit)
    width = max(len(labels(k)) for k in shown if k >= 0)
    for k in shown:
        if k < 0:
            lines.append("  …")
            continue
        text = "x_T" if k == 0 else " ".join(f"{value:+.6g} {symbol}" for value, symbol in _symbols(plan[k], labels))
        lines.append(f"  t = {times[k]:<10.6g} {labels(k):>{width}} = {text or '0'}")
    return "\n".join(lines)


def _symbols(row: Row, labels: Any) -> list[tuple[float, str]]:
    """(coefficient, name) of each term."""
    terms = [(c, labels(j)) for c, j in row.states]
    return terms + [(c, f"p({labels(j)})") for c, j in row.outputs] + [(c, f"z{j}") for c, j in row.noises]


def as_html(title: str, times: Any, labels: Any, plan: list[Row], limit: int = _SHOWN) -> str:
    """A table for a notebook: a row per node with its terms, coefficients coloured by their sign."""
    lines = []
    for k in _elided(len(plan), limit):
        if k < 0:
            lines.append("<tr><td colspan=3>…</td></tr>")
            continue
        terms = " ".join(
            f'<span style="color:{"#b2182b" if c < 0 else "#2166ac"}">{c:+.5g}</span>&#8239;{html.escape(symbol)}'
            for c, symbol in _symbols(plan[k], labels)
        )
        name = html.escape(labels(k))
        lines.append(
            f"<tr><td>{times[k]:.5g}</td><td>{name}</td><td style='text-align:left'>"
            f"{'x_T' if k == 0 else terms or '0'}</td></tr>"
        )
    head = "<tr><th>t</th><th>node</th><th style='text-align:left'>combination</th></tr>"
    return f"<table><caption>{html.escape(title)}</caption>{head}{''.join(lines)}</table>"


def to_json(matrices: Matrices, **fields: Any) -> str:
    """Text that `parse` restores bit for bit; matrices as [row, column, value] of their entries."""
    sparse = {
        name: [list(entry) for entry in zip(row_numbers(m).tolist(), m.indices.tolist(), m.data.tolist(), strict=True)]
        for name, m in matrices._asdict().items()
    }
    return json.dumps({"format": FORMAT, **fields, **sparse})


def parse(text: str) -> dict[str, Any]:
    """The fields of the table that `to_json` wrote; ValueError that names what is wrong by its path in ``text``."""
    return table_of(Document.read(text, FORMAT, "a tableau written by to_json"))


def table_of(data: Document) -> dict[str, Any]:
    """The fields of a `Tableau` in a document; nothing is allocated before its sizes are known to be small."""
    times = data.numbers("times")
    if len(times) < 2:
        raise data.error("times", times, "at least 2 numbers")
    pairs = [data.numbers(f"intervals[{i}]", part, 2) for i, part in enumerate(data.array("intervals"))]
    n, columns = len(times), len(pairs)
    mean = data.get("mean")
    return {
        "times": times,
        "states": _matrix(data, "states", (n, n), lower=True),
        "outputs": _matrix(data, "outputs", (n, n), lower=True),
        "noise": _matrix(data, "noise", (n, columns), lower=False),
        "prediction": data.string("prediction"),
        "name": data.string("name"),
        "labels": tuple(data.string(f"labels[{i}]", part) for i, part in enumerate(data.array("labels"))),
        "intervals": np.array(pairs, dtype=np.float64).reshape(columns, 2),
        "grid_nodes": tuple(data.index(f"grid_nodes[{i}]", k, n) for i, k in enumerate(data.array("grid_nodes"))),
        "mean": None if mean is None else np.array(data.nested("mean", mean)),
    }


def _matrix(data: Document, name: str, shape: tuple[int, int], lower: bool) -> Any:
    """The sparse matrix with these [row, column, value], each place at most once, below the diagonal if ``lower``."""
    found: dict[tuple[int, int], float] = {}
    for i, entry in enumerate(data.array(name)):
        row, column, value = data.array(f"{name}[{i}]", entry, 3)
        place = data.index(f"{name}[{i}][0]", row, shape[0]), data.index(f"{name}[{i}][1]", column, shape[1])
        if lower and place[1] >= place[0]:
            raise data.error(f"{name}[{i}]", entry, "a row and a column below it: node k may use nodes before it only")
        if place in found:
            raise data.error(f"{name}[{i}]", entry, "a row and a column that no entry before it has")
        found[place] = data.number(f"{name}[{i}][2]", value)
    places = sorted(found)
    rows, columns = np.array(places, dtype=int).reshape(-1, 2).T
    return from_triplets(rows, columns, np.array([found[place] for place in places]), shape)
