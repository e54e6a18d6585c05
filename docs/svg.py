"""Small pictures as SVG in the colours of the page: lines on axes that may be logarithmic, and tables of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 34


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, logarithmic: str = "xy") -> str:
    """Named lines of (x, y); the first one is drawn bold, the others dashed."""
    points = [p for line in series.values() for p in line if all(map(math.isfinite, p))]
    spans = [_span([p[i] for p in points], "xy"[i] in logarithmic) for i in (0, 1)]
    parts = [
        f'<svg class="plot" role="img" aria-label="{escape(y)} against {escape(x)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    ]
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for i in (0, 1):
        for tick in _ticks(*spans[i]):
            at = _place(tick, spans[i], i)
            where = f'x="{at:.0f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle"'
            if i == 1:
                where = f'x="{LEFT - 5}" y="{at + 4:.0f}" text-anchor="end"'
            parts.append(f"<text {where}>{tick:.3g}</text>")
    for k, (name, line) in enumerate(series.items()):
        way = " ".join(
            f"{_place(a, spans[0], 0):.1f},{_place(b, spans[1], 1):.1f}" for a, b in line if math.isfinite(b)
        )
        parts.append(f'<polyline class="line{min(k, 2)}" points="{way}"><title>{escape(name)}</title></polyline>')
        place = f'x="{LEFT + k * (WIDTH - LEFT - RIGHT) / len(series):.0f}" y="{TOP - 10}"'
        parts.append(f'<text class="key{min(k, 2)}" {place}>{escape(name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    return "".join(parts) + "</svg>"


def _span(values: Sequence[float], logarithmic: bool) -> tuple[float, float, bool]:
    low, high = min(values), max(values)
    if logarithmic and low > 0:
        return low, max(high, low * 1.01), True
    pad = 0.05 * (high - low) or 1.0
    return low - pad, high + pad, False


def _place(value: float, span: tuple[float, float, bool], axis: int) -> float:
    low, high, logarithmic = span
    share = (value - low) / (high - low)
    if logarithmic:
        share = math.log(max(value, 1e-300) / low) / math.log(high / low)
    return LEFT + share * (WIDTH - LEFT - RIGHT) if axis == 0 else HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return (
            list(np.linspace(low, high, 4)[1:-1])
            if high - low < 1e-9
            else [low + (high - low) * s for s in (0.1, 0.5, 0.9)]
        )
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        return [low, high]
    return [10.0**e for e in range(first, last + 1, max(1, (last - first) // 4))]
