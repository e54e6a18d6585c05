"""A choice as one self-contained HTML page: what to take, errors against calls, the table, pictures side by side."""

from __future__ import annotations

import base64
import importlib.util
import io
import math
from html import escape
from typing import Any

import numpy as np

from deis_analysis.process.process import Array
from deis_analysis.tuning.race import Ranked

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .7rem; text-align: right; } th { color: #57606a; }
td:nth-child(2), td:nth-child(3), th:nth-child(2), th:nth-child(3) { text-align: left; }
tr + tr { border-top: 1px solid #d8dee4; } .wide { overflow-x: auto; } .first { font-weight: 600; }
svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; } img { image-rendering: pixelated; }
figure { margin: 0 0 .6rem; } figcaption { color: #57606a; font-size: .85rem; }
"""
_COLOURS = ("#0b5cad", "#b35900", "#1a7f37", "#8250df", "#57606a")
_SHOWN = 8  # rows of each table
_CELL = 64  # pixels of a picture, at least


def choice_page(choice: Any) -> str:
    """The page of a `Choice` as text; it refers to nothing outside itself."""
    title = f"Samplers for {escape(choice.name)}"
    body = [f"<h1>{title}</h1>", f"<p>{escape(_settings(choice))}</p>", "<h2>Which one</h2><ul>"]
    body += [f"<li>{escape(choice.verdict(nfe))}</li>" for nfe in choice.ranking]
    body += ["</ul><h2>Error against model calls</h2>", f'<div class="wide">{_plot(choice)}</div>']
    for nfe, entries in choice.ranking.items():
        body.append(f'<h2>{nfe} calls</h2><div class="wide">{_table(entries)}</div>')
    if choice.pictures and importlib.util.find_spec("PIL") is not None:  # Pillow is of the extra [models]
        body += ["<h2>The same noise</h2>", _pictures(choice)]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _settings(choice: Any) -> str:
    return (
        f"{choice.samples} samples of seed {choice.seed}; ranked by {choice.by}; ground truth: {choice.reference}; "
        f"{choice.calls:,} samples × model calls in {choice.seconds:.0f} s. Bands hold 95 % of resamples of the "
        "samples; ranks are among the finalists. Flips: samples whose nearest reference is another sample's."
    )


def _table(entries: tuple[Ranked, ...]) -> str:
    heads = ("rank", "sampler", "grid", "RMS", "95 %", "median", "flips", "unflipped", "law", "arrays")
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for i, entry in enumerate(entries[:_SHOWN]):
        row = entry.row()
        cells = [
            _ranks(row), escape(row["solver"]), escape(row["grid"]), f"{row['rms']:.3g}",
            f"{row['low']:.3g}–{row['high']:.3g}", f"{row['median']:.3g}", f"{100 * row['flips']:.0f} %",
            f"{row['unflipped']:.3g}", _law(row), str(row["memory"]),
        ]  # fmt: skip
        mark = ' class="first"' if i == 0 else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"


def _ranks(row: dict[str, Any]) -> str:
    return "–" if row["rank_low"] is None else f"{row['rank_low']}–{row['rank_high']}"


def _law(row: dict[str, Any]) -> str:
    """The energy distance; of one that was found to be 0, what it is below."""
    return f"{row['law']:.3g}" if row["law"] else f"&lt; {row['law_high']:.2g}"


def _series(choice: Any) -> dict[str, dict[int, Ranked]]:
    """Of each number of calls the first, then what comes up most often among the finalists."""
    found: dict[str, dict[int, Ranked]] = {}
    for nfe, entries in choice.ranking.items():
        for entry in entries:
            found.setdefault(entry.cell.label, {})[nfe] = entry
    firsts = [entries[0].cell.label for entries in choice.ranking.values()]
    rest = sorted((label for label in found if label not in firsts), key=lambda label: -len(found[label]))
    names = list(dict.fromkeys([*firsts, *rest]))[: len(_COLOURS)]
    return {name: found[name] for name in names}


def _plot(choice: Any) -> str:
    """RMS with bands against the number of calls, both logarithmic."""
    series = _series(choice)
    points = [
        (n, v)
        for line in series.values()
        for n, e in line.items()
        for v in (e.judged.rms, *e.judged.band)
        if 0 < v < math.inf
    ]
    if not points:
        return "<p>Nothing to be drawn.</p>"
    low, high = (f(math.log10(v) for _, v in points) for f in (min, max))
    left, right = (f(math.log10(n) for n, _ in points) for f in (min, max))

    def place(n: float, v: float) -> tuple[float, float]:
        x = 70 + (420 * (math.log10(n) - left) / (right - left) if right > left else 210)
        return x, 20 + (240 * (high - math.log10(v)) / (high - low) if high > low else 120)

    parts = ['<svg role="img" aria-label="error against model calls" viewBox="0 0 820 310" width="820">']
    parts.append('<path d="M60 10V270H500" fill="none" stroke="#57606a"/>')
    parts += [
        f'<text x="{place(n, 10**low)[0]:.0f}" y="290" text-anchor="middle">{n} calls</text>' for n in choice.ranking
    ]
    parts += [
        f'<text x="54" y="{place(1, 10**e)[1] + 4:.0f}" text-anchor="end">{10**e:.2g}</text>' for e in (high, low)
    ]
    for i, (name, line) in enumerate(series.items()):
        colour = _COLOURS[i]
        ends = [(place(n, e.judged.rms), e.judged.band, n) for n, e in sorted(line.items())]
        way = " ".join(f"{x:.1f},{y:.1f}" for (x, y), _, _ in ends)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), band, n in ends:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            if band[0] > 0 and band[1] < math.inf:
                low_y, high_y = (place(n, value)[1] for value in band)
                parts.append(f'<path d="M{x:.1f} {low_y:.1f}V{high_y:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="520" cy="{30 + 20 * i}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="532" y="{34 + 20 * i}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _pictures(choice: Any) -> str:
    found = []
    for label, images in choice.pictures.items():
        data = _png(images)
        image = f'<img alt="{escape(label)}" src="data:image/png;base64,{data}">'
        found.append(f"<figure>{image}<figcaption>{escape(label)}</figcaption></figure>")
    return "".join(found)


def _png(images: Array) -> str:
    """(n, channels, h, w) in [-1, 1] as one row, in base64."""
    from PIL import Image

    grey = np.clip((np.asarray(images, dtype=np.float64) + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
    row = np.concatenate([np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=255) for image in grey], axis=2)
    pixels: Any = row[0] if row.shape[0] != 3 else row.transpose(1, 2, 0)
    scale = max(1, _CELL // images.shape[-1])
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()
