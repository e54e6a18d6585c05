"""Pictures of what the package computes; each function draws into ``ax`` and returns it.

matplotlib is of the extra ``[plot]``, and is imported when a picture is drawn.  Colours are Okabe & Ito's (2008), which
people who are colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.analysis import exact_transfer, transfer
from deis_analysis.analysis.budget import ErrorBudget
from deis_analysis.lazy import extra
from deis_analysis.process.process import Process
from deis_analysis.tableau import Model, Tableau, run
from deis_analysis.validate import finite, instance

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dvp*"
_MOST = 200  # trajectories


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    with extra("plot"):
        import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1]


def trajectories(tableau: Tableau, model: Model, x_T: Any, noise: Any = None, *, ax: Any = None) -> Any:
    """States of a run at the times of the grid: (n,) or (n, 1) against time, (n, 2) in the plane.

    Args:
        x_T: starts, as `run` takes them. noise: for tables that draw noise.

    Raises:
        ValueError: states of another dimension, or more than 200 of them; what `run` raises.
        ImportError: matplotlib is missing.
    """
    if np.ndim(x_T) == 0 or np.prod(np.shape(x_T)[1:]) > 2 or len(x_T) > _MOST:
        raise ValueError(f"x_T has shape {tuple(np.shape(x_T))}; allowed: (n,), (n, 1) or (n, 2) with n <= {_MOST}")
    _, kept = run(tableau, model, x_T, noise, keep=tableau.grid_nodes)
    ax = _axes(ax)
    times = tableau.times[list(tableau.grid_nodes)]
    path = np.stack([backend.flat(kept.states[k]) for k in tableau.grid_nodes])
    for i in range(path.shape[1]):
        lines = (times, path[:, i, 0]) if path.shape[2] == 1 else (path[:, i, 0], path[:, i, 1])
        ax.plot(*lines, color=COLOURS[0], linewidth=0.8, alpha=0.7, marker=".", markersize=3)
    if path.shape[2] == 1:
        ax.set(xlabel="t", ylabel="x", xlim=(times[0], times[-1]))
    else:
        ax.plot(path[-1, :, 0], path[-1, :, 1], "o", color=COLOURS[1], markersize=3)
        ax.set(xlabel="x₁", ylabel="x₂", aspect="equal")
    ax.set_title(f"{tableau.name}, {tableau.nfe} model calls")
    return ax


def work_precision(results: Any, *, ax: Any = None, error: str = "RMS") -> Any:
    """Errors against model calls, both logarithmic.

    Args:
        results: what `choose` returned, of which each number's first three are shown; or name → (calls → error, or
            (error, low, high) with its band). error: what the axis is called.

    Raises:
        ValueError: no results, or errors that are not positive.
        ImportError: matplotlib is missing.
    """
    series = _series(results.ranking) if hasattr(results, "ranking") else dict(results)
    if not any(series.values()):
        raise ValueError("results hold no errors; allowed: name → (calls → error)")
    found = {}
    for name, line in series.items():
        points = finite(f"results[{name!r}]", [np.broadcast_to(np.ravel(line[n]), 3) for n in sorted(line)])
        if np.any(points[:, 0] <= 0):
            raise ValueError(f"results[{name!r}] must be positive, for a logarithmic axis")
        found[name] = (sorted(line), points)
    ax = _axes(ax)
    for i, (name, (calls, points)) in enumerate(found.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "label": name}
        ax.errorbar(calls, points[:, 0], np.abs(points[:, 1:] - points[:, :1]).T, capsize=2, **look)
    counts = sorted({n for calls, _ in found.values() for n in calls})
    ax.set(xscale="log", yscale="log", xlabel="model calls", ylabel=error)
    ax.set_xticks(counts, [f"{n}" for n in counts], minor=False)
    ax.set_xticks([], minor=True)
    ax.legend()
    return ax


def _series(ranking: Mapping[int, Sequence[Any]]) -> dict[str, dict[int, tuple[float, float, float]]]:
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    shown = {entry.cell.label for entries in ranking.values() for entry in entries[:3]}
    for nfe, entries in ranking.items():
        for entry in entries:
            if entry.cell.label in shown:
                found.setdefault(entry.cell.label, {})[nfe] = (entry.judged.rms, *entry.judged.band)
    return found


def stability(tables: Tableau | Sequence[Tableau], process: Process, variances: Any = None, *, ax: Any = None) -> Any:
    """What tables do to Gaussian data, over the exact flow's factor: 1 is right, see `transfer`.

    Args:
        tables: of one process. variances: (m,) of the data, by default 1e-4 to 1e2.

    Raises:
        ValueError: a table that draws noise; no tables; variances that are not positive.
        ImportError: matplotlib is missing.
    """
    several = [tables] if isinstance(tables, Tableau) else [instance("tables", t, Tableau) for t in tables]
    v = np.geomspace(1e-4, 1e2, 200) if variances is None else finite("variances", variances)
    if not several or v.ndim != 1 or np.any(v <= 0):
        raise ValueError("tables and variances must not be empty; allowed: tables, and (m,) positive variances")
    ratios = [transfer(t, process, v) / exact_transfer(process, v, t.times[0], t.times[-1]) for t in several]
    ax = _axes(ax)
    ax.axhline(1.0, color="#8a8a8a", linewidth=0.8)
    for i, (table, ratio) in enumerate(zip(several, ratios, strict=True)):
        ax.plot(v, ratio, color=COLOURS[i % len(COLOURS)], label=f"{table.name}, {table.nfe} calls")
    ax.set(xscale="log", xlabel="variance of the data", ylabel="factor on x_T over the exact one")
    ax.legend()
    return ax


def budget(found: ErrorBudget, *, ax: Any = None) -> Any:
    """The terms of an error budget as bars: root mean square, and beside it the share of the squared error.

    Raises:
        ImportError: matplotlib is missing.
    """
    norms, shares = instance("found", found, ErrorBudget).norms(), found.shares()
    ax = _axes(ax)
    names = list(norms)
    ax.barh(names, list(norms.values()), color=[COLOURS[0]] * (len(names) - 1) + ["#8a8a8a"])
    for i, name in enumerate(names):
        ax.annotate(f" {shares[name]:.1%}" if name in shares else "", (norms[name], i), va="center", fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(xlabel="root mean square", title=f"{found.solver}, {found.nfe} model calls")
    return ax
