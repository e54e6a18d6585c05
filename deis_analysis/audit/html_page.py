"""A report as one self-contained HTML page: findings, numbers, the table drawn, the errors plotted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from deis_analysis.audit.findings import CODES
from deis_analysis.pages import document, table, work_precision

_STYLE = """
table { width: 100%; } .error { color: #a40e26; font-weight: 600; } .warning { color: #8a5a00; font-weight: 600; }
.info { color: #57606a; }
"""


def page(report: Any) -> str:
    """The page of a `Report` as text; it refers to nothing outside itself."""
    body = [
        f"<h1>Audit of <code>{escape(report.spec)}</code></h1>",
        f"<p>{escape(summary(report))}</p>",
        "<h2>Findings</h2>",
        _findings(report),
        "<h2>Measured</h2>",
        _rows([(name, _show(value)) for name, value in facts(report)]),
        "<h2>Error against the exact flow</h2>",
        _error_plot(report),
        _error_table(report),
        "<h2>The table that was read</h2>",
        f'<div class="wide">{_heat_map(report)}</div>',
    ]
    return document(f"Audit of {report.spec}", "\n".join(body), _STYLE)


def report_cells(report: Any) -> str:
    """A `Report` for a notebook: what it is, the findings, what was measured."""
    found = [(f.severity, f.code, f.message) for f in report.findings]
    measured = [(name, "–" if value is None else value if isinstance(value, float) else str(value))
                for name, value in facts(report)]  # fmt: skip
    parts = [f"<p><b>{escape(report.spec)}</b>: {escape(summary(report))}</p>"]
    parts.append(table(("severity", "code", "finding"), found) if found else "<p>No findings.</p>")
    return "".join([*parts, table(("measured", ""), measured)])


_SCRIPT = """
const rows = [...document.querySelectorAll("tbody tr")];
const filter = document.getElementById("filter"), worst = document.getElementById("worst");
const count = document.getElementById("count");
function show() {
  const words = filter.value.toLowerCase().split(/\\s+/);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word)) || (worst.value && row.dataset.worst !== worst.value);
  }
  count.textContent = rows.filter(row => !row.hidden).length + " of " + rows.length;
}
filter.addEventListener("input", show); worst.addEventListener("input", show);
document.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
  const up = button.dataset.up !== "1";
  document.querySelectorAll("th button").forEach(other => delete other.dataset.up);
  button.dataset.up = up ? "1" : "0";
  const key = row => row.cells[column].dataset.key;
  rows.sort((a, b) => {
    const x = key(a), y = key(b), number = Number(x) - Number(y);
    const order = x === "" ? 1 : y === "" ? -1 : Number.isNaN(number) ? x.localeCompare(y) : number;
    return up || x === "" || y === "" ? order : -order;
  });
  document.querySelector("tbody").append(...rows);
}));
show();
"""


def overview(reports: Sequence[Any], links: Sequence[str]) -> str:
    """One row per report, linked to its page; rows are sorted and filtered in the browser."""
    ranks = {"error": 3, "warning": 2, "info": 1, None: 0}
    heads = ("sampler", "worst", "declared order", "own start", "exact start", "nearest", "errors and warnings")
    lines = []
    for report, link in zip(reports, links, strict=True):
        codes = [f'<span class="{f.severity}">{f.code}</span>' for f in report.findings if f.severity != "info"]
        near = report.nearest or {}
        cells = [
            (report.spec, f'<a href="{escape(link)}"><code>{escape(report.spec)}</code></a>'),
            (ranks[report.worst], f'<span class="{report.worst}">{report.worst or "–"}</span>'),
            *((order, _show(order)) for order in (report.declared_order, report.observed_order)),
            (report.order_without_startup, _show(report.order_without_startup)),
            (near.get("name"), escape(str(near.get("name", "–")))),
            (len(codes), ", ".join(codes)),
        ]
        data = "".join(f'<td data-key="{"" if key is None else escape(str(key))}">{text}</td>' for key, text in cells)
        lines.append(f'<tr data-worst="{report.worst or ""}">{data}</tr>')
    titles = "".join(f"<th><button>{head}</button></th>" for head in heads)
    options = "".join(f'<option value="{s}">{s}</option>' for s in ("error", "warning", "info"))
    controls = (
        '<p><label>Filter <input id="filter"></label> <label>worst <select id="worst"><option value="">any</option>'
        f'{options}</select></label> <span id="count">{len(lines)}</span></p>'
    )
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    body = f"<h1>Audit of {len(lines)} samplers</h1>{controls}{table}<script>{_SCRIPT}</script>"
    look = (
        "body { max-width: 90rem; } button { font: inherit; background: none; border: 0; padding: 0; cursor: pointer; }"
    )
    return document("Audit", body, _STYLE + look)


def summary(report: Any) -> str:
    """One sentence: what it is, and how much is wrong."""
    counts = {s: sum(f.severity == s for f in report.findings) for s in ("error", "warning")}
    wrong = ", ".join(f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n) or "no errors or warnings"
    near = report.nearest
    what = f"nearest to {near['name']} (distance {near['distance']:.1e})" if near else "no registry row beside it"
    return f"{report.nfe} model calls; {what}; {wrong}."


def facts(report: Any) -> list[tuple[str, Any]]:
    """(name, value) of what was measured, for the text and the page."""
    degree = report.exactness_degree
    return [
        ("linear", report.linear),
        ("superposition residual", report.superposition_residual),
        ("model calls", report.nfe),
        ("calls without weight", ", ".join(map(str, report.wasted_calls)) or "none"),
        ("declared order", report.declared_order),
        ("observed order, own start", report.observed_order),
        ("observed order, exact start", report.order_without_startup),
        ("slope of the local error", report.local_order),
        ("exactness degree", None if degree is None else f"{degree} in ({report.exactness_in})"),
        ("level told against level used", report.time_mismatch),
        ("times told twice", report.duplicate_times),
    ]


def _show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "∞"
    return escape(str(value))


def _rows(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{escape(k)}</th><td>{v}</td></tr>" for k, v in rows) + "</table>"


def _findings(report: Any) -> str:
    if not report.findings:
        return "<p>None.</p>"
    lines = [
        f'<tr><td class="{f.severity}">{f.severity}</td><td><code>{f.code}</code></td>'
        f"<td>{escape(f.message)}<br><span class='info'>{escape(CODES[f.code])}</span></td></tr>"
        for f in report.findings
    ]
    return "<table>" + "".join(lines) + "</table>"


def _error_table(report: Any) -> str:
    rows = [
        (
            f"{nfe} calls",
            f"{error:.3g}; beside it DDIM {_show(beside.get('ddim'))}, best of the registry "
            f"{escape(str(beside.get('best', '–')))} {_show(beside.get('best_error'))}",
        )
        for nfe, error in report.errors.items()
        for beside in [report.beside.get(nfe, {})]
    ]
    return _rows(rows) if rows else "<p>Not measured.</p>"


def _error_plot(report: Any) -> str:
    """Its errors beside DDIM's and the best of the registry."""
    series = {report.spec.split("?")[0]: {n: (e, e, e) for n, e in report.errors.items() if e is not None}}
    for key, name in (("ddim", "DDIM"), ("best_error", "best of the registry")):
        series[name] = {n: (b[key],) * 3 for n, b in report.beside.items() if b.get(key) is not None}
    return work_precision(series)


def _heat_map(report: Any) -> str:
    """|weights| of the model outputs, row by row, as squares."""
    if report.table is None:
        return "<p>There is none: the sampler is not linear, or did not run.</p>"
    form = report.table.butcher()
    weights = np.abs(form.weights)
    size = max(6, min(22, 640 // max(weights.shape[0], 1)))
    scale = weights.max(axis=1, keepdims=True)
    shades = np.divide(weights, scale, out=np.zeros_like(weights), where=scale > 0)
    cells = [
        f'<rect x="{60 + c * size}" y="{r * size}" width="{size - 1}" height="{size - 1}" '
        f'fill="rgb({255 - int(244 * s)},{255 - int(163 * s)},{255 - int(82 * s)})">'
        f"<title>row {r + 1}, output {c + 1}: {form.weights[r, c]:.4g}</title></rect>"
        for r in range(weights.shape[0])
        for c in range(weights.shape[1])
        for s in [float(shades[r, c]) ** 0.5]
        if s > 0
    ]
    rows = weights.shape[0]
    labels = [
        f'<text x="54" y="{r * size + size * 0.75:.0f}" text-anchor="end">{"result" if r == rows - 1 else r + 1}</text>'
        for r in range(rows)
        if size > 11 or r in (0, rows - 1)
    ]
    width, height = 70 + weights.shape[1] * size, rows * size + 24
    caption = (
        f'<text x="60" y="{height - 6}">columns: outputs of the model; rows: its questions, then the result</text>'
    )
    label = f'role="img" aria-label="weights of the model outputs" viewBox="0 0 {max(width, 460)} {height}"'
    return f'<svg {label} width="{max(width, 460)}">' + "".join(cells + labels) + caption + "</svg>"
