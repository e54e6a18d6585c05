"""What does a line mean? Colour is the family, marker the order, line style the prediction, in every figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from deis_analysis import SOLVERS

SHEET = Path(__file__).with_name("style.mplstyle")
plt.style.use(SHEET)

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"  # Okabe & Ito 2008
GREY = "#8a8a8a"

_UNIPC, _SDE = ("#7F3C8D", "UniPC"), (VERMILLION, "SDE multistep")
_FAMILIES = {  # (family, variable of the interpolant): colour and the name that figures print
    ("baselines", "t"): (GREY, "baselines"),
    ("adams", "t"): (BLUE, "tAB"),
    ("adams", "rho"): (SKY, "ρAB"),
    ("adams", "lam"): (GREEN, "log-ρAB"),
    ("ipndm", "t"): (PURPLE, "iPNDM"),
    ("pndm", "t"): ("#C2478F", "PNDM"),
    ("runge_kutta", "rho"): (VERMILLION, "ρRK"),
    ("edm", "rho"): ("#8C2D04", "EDM"),
    ("dpm_singlestep", "lam"): ("#5B5BD6", "DPM-Solver(++) singlestep"),
    ("dpm_multistep", "lam"): (ORANGE, "DPM-Solver(++) multistep"),
    ("unipc", "lam"): _UNIPC,
    ("reversible", "rho"): ("#5A7F2B", "reversible"),
    ("reversible", "inv_rho"): ("#5A7F2B", "reversible"),
    ("flow", "t"): ("#9A8B00", "flow"),
    ("mrs", "lam"): ("#A5694F", "MRS"),
    ("sde_multistep", "lam"): _SDE,
    ("seeds", "lam"): (SKY, "SEEDS"),
    ("ddim_eta", "lam"): (BLUE, "DDIM(η)"),
    ("ancestral", "lam"): (GREEN, "ancestral"),
    ("score_sde", "lam"): (GREY, "score SDE"),
    ("analytic_dpm", "lam"): ("#B8A800", "Analytic-DPM"),
    ("splitting", "t"): ("#9A8B00", "splitting"),
}
_SPARE = (ORANGE, BLACK, "#B8A800", "#7F3C8D", "#80BA5A", "#A5694F")  # for families yet to come, in order of registry
_MARKERS = {1: "o", 2: "s", 3: "^", 4: "D"}
_FILLS: tuple[dict[str, Any], ...] = (
    *({"fillstyle": "full", "markerfacecolor": face} for face in ("white", "#BBBBBB", "#444444")),
    *({"fillstyle": side, "markerfacecoloralt": "white"} for side in ("left", "right", "top", "bottom", "full")),
)
_LINES = {"eps": "-", "x0": "--", "v": "-.", "score": ":"}
DDIM = ("#000000", "DDIM")  # the method that most families contain as their lowest member


def family(name: str) -> tuple[str, str]:
    """(colour, printed name) of the family of a registry solver."""
    row = SOLVERS[name]
    if row.family == "adams" and row.degree == 0:
        return DDIM
    key = (row.family, row.variable)
    if key in _FAMILIES:
        return _FAMILIES[key]
    if (row.family, "t") in _FAMILIES:
        return _FAMILIES[(row.family, "t")]
    known = {family for family, _ in _FAMILIES}
    others = list(dict.fromkeys(s.family for s in SOLVERS.values() if s.family not in known))
    return _SPARE[others.index(row.family) % len(_SPARE)], row.family.replace("_", " ")


def look(name: str) -> dict[str, Any]:
    """Line properties of a registry solver, for ``ax.plot``, no two alike but for the forms of DDIM.

    The colour is the family's, the paler the lower the order among its samplers of the same prediction, and then the
    earlier in the registry; the marker is the order, and its filling tells apart what agrees in that. The order is that
    with an exact start or, of a method that draws noise, the weak one.
    """
    row, colour = SOLVERS[name], family(name)[0]
    order = _order(name)
    kin = [
        other for other, known in SOLVERS.items() if known.prediction == row.prediction and family(other)[0] == colour
    ]
    alike = [other for other in kin if _order(other) == order and colour != DDIM[0]]
    fills = _FILLS if order > 1 else _FILLS[::-1]
    place = sorted(kin, key=_order).index(name) + 1  # of as many; stable: as in the registry
    return {
        "color": colour if colour == DDIM[0] else tinted(colour, 0.6 * (1 - place / len(kin))),
        "marker": _MARKERS.get(order, "o"),
        "linestyle": _LINES[row.prediction],
        **fills[alike.index(name) % len(fills) if alike else 0],
    }


def _order(name: str) -> int:
    row = SOLVERS[name]
    return row.order if row.order_exact_start is None else row.order_exact_start


def tinted(colour: str, share: float) -> str:
    """A colour mixed with white, of which it gets a share."""
    r, g, b = matplotlib.colors.to_rgb(colour)
    return matplotlib.colors.to_hex((r + share * (1 - r), g + share * (1 - g), b + share * (1 - b)))


def new_figure(width: float, height: float, headline: str, note: str) -> Figure:
    """An empty figure with its finding on top and, below it in grey, how it was measured; use `body` for the axes.

    Narrow figures, up to 8 inches, have smaller letters.
    """
    fig = plt.figure(figsize=(width, height))
    large, small = (13.0, 9.5) if width > 8 else (11.0, 7.5)
    lines = textwrap.wrap(headline, int(width * 121 / large), break_on_hyphens=False)
    notes = textwrap.wrap(note, int(width * 132 / small), break_on_hyphens=False)
    inch = 1.0 / height
    fig.text(0.012, 1 - 0.12 * inch, "\n".join(lines), fontsize=large, fontweight="bold", va="top", linespacing=1.15)
    top = 0.18 + 0.018 * large * len(lines)
    fig.text(0.012, 1 - top * inch, "\n".join(notes), fontsize=small, color="#555555", va="top", linespacing=1.2)
    fig.subplots_adjust(top=1 - (top + 0.018 * small * len(notes) + 0.1) * inch)  # where `body` begins
    return fig


def body(fig: Figure, bottom: float = 0.55, left: float = 0.75, right: float = 0.2, extra_top: float = 0.25) -> Any:
    """Margins in inches for ``subplots_adjust`` or a GridSpec below the headline."""
    width, height = fig.get_size_inches()
    return {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": fig.subplotpars.top - extra_top / height,
    }


def spread(values: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Positions close to ``values``, at least ``gap`` apart, inside [low, high] while there is room."""
    order = np.argsort(values)
    wanted = np.clip(np.asarray(values, dtype=float)[order], low, high)
    n = len(wanted)
    gap = min(gap, (high - low) / max(n - 1, 1))
    shifted = wanted - gap * np.arange(n)  # in these coordinates "gap apart" means "not decreasing"
    blocks: list[tuple[float, int]] = []
    for value in shifted:  # pool adjacent violators: the least-squares answer
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            last, size = blocks.pop()
            mean, count = (mean * count + last * size) / (count + size), count + size
        blocks.append((mean, count))
    fitted = np.concatenate([np.full(count, mean) for mean, count in blocks]) if blocks else np.empty(0)
    placed = np.clip(fitted, low, high - gap * (n - 1)) + gap * np.arange(n)
    result = np.empty(n)
    result[order] = placed
    return result


def end_labels(ax: Any, labels: Iterable[tuple[float, float, str, str]], fontsize: float = 8.5) -> None:
    """Names at the right edge, pushed apart, each with a hair line to its (x, y); entries (x, y, text, colour)."""
    entries = list(labels)
    if not entries:
        return
    ax.figure.canvas.draw_idle()
    to_axes = ax.transData + ax.transAxes.inverted()
    points = [to_axes.transform((x, y)) for x, y, _, _ in entries]
    height = ax.get_position().height * ax.figure.get_size_inches()[1]
    gap = 1.22 * fontsize / 72.0 / height
    places = spread([float(np.clip(p[1], 0, 1)) for p in points], gap, 0.01, 0.99)
    for (x, y, text, colour), point, place in zip(entries, points, places, strict=True):
        inside = 0 <= point[1] <= 1
        ax.annotate(
            text,
            xy=(x, y) if inside else (1.0, place),
            xycoords="data" if inside else "axes fraction",
            xytext=(1.035, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=fontsize,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2},
        )


def plain_log_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Ticks at round numbers, written as such, on a logarithmic axis."""
    axis.set_major_locator(matplotlib.ticker.FixedLocator(list(ticks)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def setting(config: dict[str, Any]) -> str:
    """The process and, where a configuration has them, the ends of the time grid, for a figure's note."""
    text = f"VPLinear({config['beta_min']:g}, {config['beta_max']:g})"
    if "t_start" in config:
        text += f", t from {config['t_start']:g} to {config['t_end']:g}"
    return text


def texts(column: Any) -> Any:
    """A column of text; a field that is empty in the CSV, which is read as NaN, is empty again."""
    return column.astype(object).fillna("")


def in_words(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def as_text(value: float, digits: int = 2) -> str:
    """A number for a sentence: significant digits, powers of ten below 1e-3."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e-3 and abs(value) < 1e5:
        places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
        return f"{value:.{places}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
