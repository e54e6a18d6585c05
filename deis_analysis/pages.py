"""What HTML pages and displays in notebooks share: a look, tables, errors against model calls as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .3rem .6rem; text-align: left; vertical-align: top; }
tr + tr { border-top: 1px solid #d8dee4; } code { font-size: .9em; } .wide { overflow-x: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
"""
COLOURS = ("#0b5cad", "#b35900", "#1a7f37", "#8250df", "#57606a")
Point = tuple[float, float, float]  # value, lower and upper end of its band; equal where there is none


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; it refers to nothing outside itself. ``body`` is HTML, ``title`` text."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table for a notebook: columns that hold numbers to the right, the first one and those of text to the left."""
    body = [list(row) for row in rows]
    numbers = {i for row in body for i, cell in enumerate(row) if i and not isinstance(cell, str)}

    def line(kind: str, cells: Sequence[object]) -> str:
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        sides = ("right" if i in numbers else "left" for i in range(len(cells)))
        pairs = zip(shown, sides, strict=True)
        return "".join(f'<{kind} style="text-align:{side}">{escape(text)}</{kind}>' for text, side in pairs)

    lines = "".join(f"<tr>{line('td', cells)}</tr>" for cells in body)
    above = f'<caption style="text-align:left">{escape(caption)}</caption>' if caption else ""
    return f"<table>{above}<thead><tr>{line('th', heads)}</tr></thead><tbody>{lines}</tbody></table>"


def work_precision(series: Mapping[str, Mapping[int, Point]]) -> str:
    """Errors of up to five named lines against model calls, both logarithmic; empty where nothing is above 0."""
    shown = [(n, v) for line in series.values() for n, point in line.items() for v in point if 0 < v < math.inf]
    if not shown:
        return ""
    low, high = (f(math.log10(v) for _, v in shown) for f in (min, max))
    left, right = (f(math.log10(n) for n, _ in shown) for f in (min, max))

    def place(n: float, v: float) -> tuple[float, float]:
        x = 70 + (420 * (math.log10(n) - left) / (right - left) if right > left else 210)
        return x, 20 + (240 * (high - math.log10(v)) / (high - low) if high > low else 120)

    parts = ['<svg role="img" aria-label="error against model calls" viewBox="0 0 820 310" width="820">']
    parts.append('<path d="M60 10V270H500" fill="none" stroke="#57606a"/>')
    for n in sorted({n for n, _ in shown}):
        parts.append(f'<text x="{place(n, 10**low)[0]:.0f}" y="290" text-anchor="middle">{n} calls</text>')
    for e in dict.fromkeys((high, low)):
        parts.append(f'<text x="54" y="{place(1, 10**e)[1] + 4:.0f}" text-anchor="end">{10**e:.2g}</text>')
    for i, ((name, line), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        ends = [(*place(n, p[0]), p[1:], n) for n, p in sorted(line.items()) if 0 < p[0] < math.inf]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in ends)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, band, n in ends:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            if 0 < band[0] < band[1] < math.inf:
                bottom, top = (place(n, v)[1] for v in band)
                parts.append(f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="520" cy="{30 + 20 * i}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="532" y="{34 + 20 * i}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"
