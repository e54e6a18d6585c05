"""A choice as one self-contained HTML page: what to take, errors against calls, the table, pictures side by side."""

from __future__ import annotations

import base64
import importlib.util
import io
from html import escape
from typing import Any

import numpy as np

from deis_analysis.pages import COLOURS, Point, document, table, work_precision
from deis_analysis.process.process import Array
from deis_analysis.tuning.race import Ranked

_STYLE = """
td, th { text-align: right; } th { color: #57606a; }
td:nth-child(2), td:nth-child(3), th:nth-child(2), th:nth-child(3) { text-align: left; }
.first { font-weight: 600; } img { image-rendering: pixelated; }
figure { margin: 0 0 .6rem; } figcaption { color: #57606a; font-size: .85rem; }
"""
_SHOWN = 8  # rows of each table
_CELL = 64  # pixels of a picture, at least


def choice_page(choice: Any) -> str:
    """The page of a `Choice` as text; it refers to nothing outside itself."""
    title = f"Samplers for {choice.name}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_settings(choice))}</p>", "<h2>Which one</h2><ul>"]
    body += [f"<li>{escape(choice.verdict(nfe))}</li>" for nfe in choice.ranking]
    body += ["</ul><h2>Error against model calls</h2>", f'<div class="wide">{work_precision(_series(choice))}</div>']
    for nfe, entries in choice.ranking.items():
        body.append(f'<h2>{nfe} calls</h2><div class="wide">{_table(entries)}</div>')
    if choice.pictures and importlib.util.find_spec("PIL") is not None:  # Pillow is of the extra [models]
        body += ["<h2>The same noise</h2>", _pictures(choice)]
    return document(title, "\n".join(body), _STYLE)


def choice_cells(choice: Any, most: int = 5) -> str:
    """A `Choice` for a notebook: its verdicts, and the first ``most`` of each number of calls."""
    heads = ("calls", "rank", "sampler", "grid", "RMS", "95 %", "median", "flips", "arrays")
    rows: list[tuple[object, ...]] = []
    for nfe, entries in choice.ranking.items():
        for row in (entry.row() for entry in entries[:most]):
            band, flips = f"{row['low']:.3g}–{row['high']:.3g}", f"{100 * row['flips']:.0f} %"
            names = (str(nfe), _ranks(row), row["solver"], row["grid"])
            rows.append((*names, float(row["rms"]), band, float(row["median"]), flips, row["memory"]))
    said = "".join(f"<p>{escape(choice.verdict(nfe))}</p>" for nfe in choice.ranking)
    return said + table(heads, rows, f"{choice.name}: {choice.samples} samples, ground truth: {choice.reference}")


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
    """The energy distance; of one that was found to be 0 what it is below, nothing where the samples do not tell."""
    return f"{row['law']:.3g}" if row["law"] else f"&lt; {row['law_high']:.2g}" if row["law_high"] else "–"


def _series(choice: Any) -> dict[str, dict[int, Point]]:
    """Of each number of calls the first, then what comes up most often among the finalists: RMS with its band."""
    found: dict[str, dict[int, Point]] = {}
    for nfe, entries in choice.ranking.items():
        for entry in entries:
            found.setdefault(entry.cell.label, {})[nfe] = (entry.judged.rms, *entry.judged.band)
    firsts = [entries[0].cell.label for entries in choice.ranking.values()]
    rest = sorted((label for label in found if label not in firsts), key=lambda label: -len(found[label]))
    return {name: found[name] for name in list(dict.fromkeys([*firsts, *rest]))[: len(COLOURS)]}


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
