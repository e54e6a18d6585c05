"""Small panels with shared axes, one message each: curves, intervals beside 1, shaded tables. Ticks have 7 pt."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import Frame
from experiments.core import style

WIDTH = 7.0  # inches
TICKS, SMALL = 7.5, 7.0  # pt
_SHORT = {"network": "2-D network", "gaussian": "Gaussian"}
BETTER, WORSE, SAME = style.BLUE, style.VERMILLION, style.GREY


def short(model: str) -> str:
    """A model's name on a small panel."""
    return _SHORT.get(model, model)


def sheet(headline: str, note: str, inches: float) -> Figure:
    """A figure of `WIDTH` with so many inches below its headline and note."""
    trial = style.new_figure(WIDTH, 10.0, headline, note)
    above = 10.0 * (1 - trial.subplotpars.top)
    style.plt.close(trial)
    return style.new_figure(WIDTH, above + inches, headline, note)


def small_multiples(
    fig: Figure,
    titles: Sequence[str],
    columns: int,
    share_y: bool = True,
    more: int = 0,
    indent: float = 0.0,
    **margins: float,
) -> tuple[list[Any], list[Any]]:
    """(panels with shared axes, ``more`` panels after them with axes of their own), row by row.

    Args:
        indent: inches that the panels with axes of their own leave free at their left, for names.
        margins: of `style.body`; ``wspace``, ``hspace``; ``begin``, ``end``: of the rows, as shares of the height
            below the headline.
    """
    rows = -(-(len(titles) + more) // columns)
    gaps = {"wspace": margins.pop("wspace", 0.12), "hspace": margins.pop("hspace", 0.35)}
    begin, end = margins.pop("begin", 0.0), margins.pop("end", 1.0)
    edges = style.body(fig, **{"bottom": 0.42, "left": 0.6, "right": 0.1, "extra_top": 0.2, **margins})
    height = edges["top"] - edges["bottom"]
    edges |= {"top": edges["top"] - begin * height, "bottom": edges["top"] - end * height}
    grid = fig.add_gridspec(rows, columns, **edges, **gaps)
    axes: list[Any] = []
    for i, title in enumerate(titles):
        first = axes[0] if axes else None
        ax = fig.add_subplot(grid[divmod(i, columns)], sharex=first, sharey=first if share_y else None)
        ax.set_title(title, fontsize=8.5, pad=3)
        ax.tick_params(
            labelsize=TICKS, labelbottom=i + columns >= len(titles), labelleft=not i % columns or not share_y
        )
        axes.append(ax)
    others = [fig.add_subplot(grid[divmod(len(titles) + i, columns)]) for i in range(more)]
    for ax in others:
        ax.tick_params(labelsize=TICKS)
        place, free = ax.get_position(), indent / fig.get_size_inches()[0]
        ax.set_position((place.x0 + free, place.y0, place.width - free, place.height))
    return axes, others


def calls_axis(axes: Sequence[Any], ticks: Iterable[float], label: str = "model calls (NFE)") -> None:
    """A logarithmic axis of numbers of calls, named below the lowest panels."""
    for ax in axes:
        ax.set_xscale("log")
        style.plain_log_ticks(ax.xaxis, list(ticks))
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel(label, fontsize=8.5, labelpad=2)


def curve(ax: Any, x: Any, y: Any, low: Any = None, high: Any = None, label: str | None = None, **look: Any) -> None:
    """A line with its band."""
    look = {"markersize": 3.5, "linewidth": 1.4, **look}
    if low is not None:
        ax.fill_between(x, low, high, color=look.get("color"), alpha=0.15, lw=0)
    ax.plot(x, y, label=label, **look)


def lines(
    fig: Figure, frame: Frame, titles: dict[Any, str], columns: int, *, x: str, y: str, panel: str = "model",
    line: str = "solver", look: Callable[[Any], dict[str, Any]] = style.look, names: Sequence[Any] | None = None,
    label: Callable[[Any], str] = str, band: tuple[str, str] | None = None, ticks: Iterable[float] | None = None,
    ylabel: str = "", xlabel: str = "model calls (NFE)", legend: bool = True, **margins: Any,
) -> list[Any]:  # fmt: skip
    """A panel of curves for each value of a column, on shared logarithmic axes, with one legend above all.

    Args:
        titles: value of the column ``panel`` → title, in the order of the panels. columns: panels in a row.
        x, y, line: columns; ``names``: which lines have their look and are in the legend, the others are thin and grey.
        look, label: value of ``line`` → properties of ``Axes.plot``, name in the legend. band: columns of its ends.
        margins: of `small_multiples`.
    """
    axes, _ = small_multiples(fig, list(titles.values()), columns, **{"extra_top": 0.5 if legend else 0.2, **margins})
    shown = list(frame[line].unique()) if names is None else list(names)
    for ax, value in zip(axes, titles, strict=True):
        rows = frame[(frame[panel] == value) & frame[y].notna()].sort_values(x)
        for other in rows[line].unique():
            if other not in shown:
                part = rows[rows[line] == other]
                ax.plot(part[x], part[y], color="#cfcfcf", lw=0.8, zorder=1)
        for name in shown:
            part = rows[rows[line] == name]
            ends = () if band is None else (part[band[0]], part[band[1]])
            curve(ax, part[x], part[y], *ends, **{"label": label(name), **look(name)})
    axes[0].set_yscale("log")
    calls_axis(axes, sorted(frame[x].unique()) if ticks is None else ticks, xlabel)
    for ax in axes[::columns]:
        ax.set_ylabel(ylabel, fontsize=8.5)
    if legend:
        key(fig, axes[0])
    return axes


def words(ax: Any, x: float, y: float, text: str, colour: str = "#333333", **where: Any) -> None:
    """Small letters at a place in axes fractions, on a ground that keeps them legible."""
    ground = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.8}
    ax.text(x, y, text, transform=ax.transAxes, fontsize=SMALL, color=colour, bbox=ground, **where)


def side(low: float, high: float, less_is: str = BETTER, more_is: str = WORSE) -> str:
    """The colour of a ratio by its band: whether it is below 1, above, or neither."""
    return less_is if high < 1 else more_is if low > 1 else SAME


def intervals(
    ax: Any, rows: Any, ticks: Sequence[float], names: Sequence[str] | None,
    less_is: str = BETTER, more_is: str = WORSE, outer: Any = (), title: str | None = None,
) -> None:  # fmt: skip
    """Ratios (value, low, high) below one another on a logarithmic axis with a line at 1, coloured by `side`.

    ``outer``: of each (least, most), over seeds; then the wider of the two ranges gives the colour.
    """
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    for y, (value, low, high) in enumerate(rows):
        least, most = outer[y] if len(outer) else (low, high)
        colour = side(min(low, least), max(high, most), less_is, more_is)
        ax.plot([least, most], [y, y], color=colour, lw=0.9)
        ax.plot([low, high], [y, y], color=colour, lw=2.6, solid_capstyle="butt")
        ax.plot(value, y, "o", color=colour, markeredgecolor="white", markersize=5, zorder=3)
    ax.set_xscale("log")
    style.plain_log_ticks(ax.xaxis, ticks)
    ax.set_yticks(range(len(rows)), names or [""] * len(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="both", labelsize=TICKS)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    if title is not None:
        ax.set_title(title, fontsize=8.5, pad=3)


def shaded(
    ax: Any, depths: Any, columns: Sequence[str], rows: Sequence[str], texts: Any = None, bold: Any = None, **heads: Any
) -> None:
    """A table whose cells are the deeper blue the nearer to 0 their depth is, 0 to 1; ``None`` is an empty cell.

    Args:
        depths, texts, bold: a row of cells for each of ``rows``. heads: of the text above the columns.
    """
    cmap = style.matplotlib.colormaps["Blues_r"]
    for y, line in enumerate(depths):
        for x, depth in enumerate(line):
            if depth is not None:
                shade = cmap(0.4 + 0.58 * min(max(depth, 0.0), 1.0))
                ax.add_patch(style.plt.Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=shade, lw=0))
            if texts is not None:
                ink = "white" if depth is not None and depth < 0.15 else "#222222"
                weight = "bold" if bold is not None and bold[y][x] else "normal"
                ax.text(x, y, texts[y][x], ha="center", va="center", fontsize=SMALL, color=ink, fontweight=weight)
    table(ax, columns, rows, **heads)


def table(ax: Any, columns: Sequence[str], rows: Sequence[str], **heads: Any) -> None:
    """Names above the columns and beside the rows of a table, whose cells are at whole numbers; ``heads``: of text."""
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns, **heads)
    ax.set_yticks(range(len(rows)), rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=TICKS)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def diverging(
    ax: Any, values: Any, texts: Any, columns: Sequence[str], rows: Sequence[str], most: float, bold: Any = None
) -> None:
    """A table whose cells are redder the further above 0 their values, bluer the further below, up to ``most``.

    Args:
        values, texts, bold: (rows, columns) arrays.
    """
    ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        ink, sure = "white" if abs(value) > most / 1.5 else "black", bold is not None and bold[y, x]
        ax.text(x, y, texts[y, x], ha="center", va="center", fontsize=TICKS, color=ink,
                fontweight="bold" if sure else "normal")  # fmt: skip
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelsize=TICKS)
    ax.grid(visible=False)


def key(fig: Figure, ax: Any, above: float = 0.5, **options: Any) -> None:
    """The legend of a panel's lines, in one line above the panels, so many inches of which are for it and titles."""
    handles, labels = ax.get_legend_handles_labels()
    top = min(fig.subplotpars.top, ax.get_position().y1 + above / fig.get_size_inches()[1])
    top += 0.02 / fig.get_size_inches()[1]
    fig.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, top), ncol=len(labels), fontsize=8,
               handlelength=2.2, columnspacing=1.4, **options)  # fmt: skip


def sampler(spec: str, width: int = 0, options: bool = True) -> str:
    """A released sampler's spec as a label, cut at a width: without what is the same in all, or but for its order."""
    name, _, query = spec.rpartition(":")[2].partition("?")
    found = [re.sub("(Discrete)?Scheduler|Sampler|sample_", "", name)]
    for key, _, value in (item.partition("=") for item in query.split("&") if item):
        key = key.removeprefix("use_").removesuffix("_type")
        if value != "flow_prediction" and (options or key == "solver_order"):
            number = value.replace(".", "").isdigit()
            found.append(f"{key}={value}" if number else {"true": key, "false": f"no {key}"}.get(value, value))
    return textwrap.shorten(", ".join(found), width, placeholder=" …") if width else ", ".join(found)


def named(ax: Any, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Title, names of the axes and ticks of a panel in small letters."""
    ax.set_title(title, fontsize=8.5, pad=3)
    ax.set_xlabel(xlabel, fontsize=8.5, labelpad=2)
    ax.set_ylabel(ylabel, fontsize=8.5)
    ax.tick_params(labelsize=TICKS)
