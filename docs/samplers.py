"""The registry as pages: a table that sorts, and for each row its claims, its table, its pictures, its other names."""

from __future__ import annotations

import csv
import functools
import inspect
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.cli import _depth, _rule
from docs import svg

FIGURES = Path(__file__).parents[1] / "figures"
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
GAUSS = 0.3, 0.2  # mean and variance of the data on which laws are measured
STEPS = 4
COUNTS = (5, 7, 10, 14, 20, 28, 40)
FORMULAS = {  # family → derivations beside those of its prediction and variable
    "ipndm": ["adams-bashforth"],
    "pndm": ["adams-bashforth"],
    "runge_kutta": ["order-conditions"],
    "edm": ["order-conditions"],
    "dpm_singlestep": ["phi-functions"],
    "seeds": ["phi-functions"],
}


def write(folder: Path) -> None:
    """``reference/samplers/``: the index, and a page per row."""
    place = folder / "reference" / "samplers"
    place.mkdir(parents=True, exist_ok=True)
    same, abroad = groups(), names_abroad()
    (place / "index.md").write_text(index(), encoding="utf-8")
    for row in da.SOLVERS.values():
        (place / f"{row.name}.md").write_text(page(row, same[row.name], abroad.get(row.name, [])), encoding="utf-8")


def index() -> str:
    """The table of the registry."""
    heads = ("sampler", "family", "order", "exact start", "strong", "degree", "in", "NFE", "depth", "memory", "source")
    rows = []
    for row in da.SOLVERS.values():
        cells = (
            f'<a href="{row.name}.html"><code>{row.name}</code></a>',
            row.family.replace("_", " "),
            row.order,
            _shown(row.order_exact_start),
            _shown(row.strong_order),
            row.degree,
            f"{row.prediction}, {row.variable}",
            _rule(row.stages, row.extra_calls),
            _depth(row),
            table_of(row).memory,
            escape(row.source),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"""---
hide: [toc]
---
# Samplers

The registry, {len(da.SOLVERS)} rows, as `deis-analysis solvers` lists it: what each row declares, and tests measure
two-sided. Columns sort by their heads. *Order* is that of the method with its own first steps, weak where it draws
noise; *exact start* with exact ones; *strong* that of paths; *degree* the polynomials that a step integrates
exactly, of the prediction *in* the variable; N is the number of steps, *depth* the longest chain of calls that need
one another, *memory* the arrays of the state's size alive at once at {STEPS} steps.

<table class="sortable"><thead><tr>{head}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>

Samplers that are no tables are listed by `deis-analysis steppers`: {", ".join(f"`{name}`" for name in da.STEPPERS)}.
"""


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:g}"


def steps_of(row: da.Solver, about: int) -> int:
    """Whole blocks of steps, ``about`` so many."""
    return row.block * max(1, round(about / row.block))


@functools.cache
def table_of(row_or_name: Any, steps: int = STEPS) -> da.Tableau:
    """The row's table at its home."""
    row = da.SOLVERS[row_or_name] if isinstance(row_or_name, str) else row_or_name
    return row.build(row.home, da.grid(row.home, steps_of(row, steps)))


def groups() -> dict[str, list[str]]:
    """name → rows with the same Butcher form and noise at their home."""
    found = defaultdict(list)
    for name, row in da.SOLVERS.items():
        ts = da.grid(row.home, 12)
        form = row.build(row.home, ts).in_terms_of(row.home, "eps").butcher()
        noise = np.sort(np.abs(form.noise[-1])) if form.noise.size else np.zeros(0)
        key = tuple(np.round(np.concatenate([form.start, form.weights.ravel(), noise]), 9) + 0.0)
        found[key].append(name)
    return {name: [other for other in names if other != name] for names in found.values() for name in names}


def names_abroad() -> dict[str, list[tuple[str, str, float]]]:
    """name → (spec, version, distance) of released samplers that the audit found equal, to float32."""
    found = defaultdict(list)
    with (FIGURES / "field_audit.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["nearest"] and float(line["nearest_distance"]) < 2e-5:
                found[line["nearest"]].append((line["spec"], line["version"], float(line["nearest_distance"])))
    return found


def page(row: da.Solver, same: list[str], abroad: list[tuple[str, str, float]]) -> str:
    """One sampler."""
    table = table_of(row)
    grid_steps = len(table.grid_nodes) - 1
    facts = [
        ("family", row.family.replace("_", " ")),
        ("order, own start" if not row.stochastic else "weak order", row.order),
        ("order, exact start", _shown(row.order_exact_start)),
        ("strong order", _shown(row.strong_order)),
        ("exactness degree", f"{row.degree}, of {row.prediction} in {row.variable}"),
        ("model calls in N steps", _rule(row.stages, row.extra_calls)),
        ("depth", _depth(row)),
        ("arrays in memory", f"{table.memory} at {grid_steps} steps"),
        ("measured on", f"`{row.home!r}`"),
        ("source", row.source),
        ("code", _code(row)),
        ("the same method", ", ".join(f"[`{name}`]({name}.md)" for name in same) or "no other row"),
    ]
    lines = [f"# {row.name}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
    lines += ["## Formulas", "", *(f"* [{name}](../derivations/{name}.md)" for name in formulas(row)), ""]
    lines += ["## Elsewhere", "", *_elsewhere(abroad), ""]
    lines += [
        f"## Its table at {grid_steps} steps",
        "",
        "```text",
        str(table),
        "```",
        "",
        "State-free (Butcher) form:",
        "",
    ]
    lines += ['<div class="wide">' + table.butcher()._repr_html_().replace("\n", "") + "</div>", ""]
    lines += ["## What it does", "", *pictures(row), ""]
    return "\n".join(lines)


def _code(row: da.Solver) -> str:
    build: Any = row.build
    while hasattr(build, "func"):
        build = build.func
    return f"[`{build.__name__}`][{inspect.getmodule(build).__name__}.{build.__name__}]"  # type: ignore[union-attr]


def formulas(row: da.Solver) -> list[str]:
    """Derivations behind a row."""
    from deis_analysis.symbolic.derivations import DERIVATIONS

    wanted = [f"weights-{row.prediction}-{row.variable.replace('_', '-')}", *FORMULAS.get(row.family, [])]
    if row.variable == "t":
        wanted.append(f"weights-{row.prediction}-t-{type(row.home).__name__}")
    if row.prediction == "score":
        wanted.append("frozen-score")
    if row.degree == 0 and row.prediction == "eps":
        wanted.append("ddim")
    wanted.append("ode-inv-rho" if row.prediction == "x0" else "ode-rho")
    return [name for name in dict.fromkeys([*wanted, "clocks"]) if name in DERIVATIONS]


def _elsewhere(abroad: list[tuple[str, str, float]]) -> list[str]:
    if not abroad:
        return ["No audited release has this table ([field report](../../results/field.md))."]
    lines = [
        "Released samplers whose tables the audit found equal to this one on their processes, at 20 calls, in float32:",
        "",
    ]
    return lines + [f"* `{spec}`, {version}: {distance:.1e} away" for spec, version, distance in abroad]


def pictures(row: da.Solver) -> list[str]:
    """Stability and error, with what they show."""
    other = "ddpm" if row.stochastic else "ddim"
    shown = [row] if row.name == other else [row, da.SOLVERS[other]]
    v = np.geomspace(1e-3, 1e1, 30)
    factors = {r.name: list(zip(v, stability(r, row.home, v), strict=True)) for r in shown}
    errors = {r.name: error_curve(r.name, type(row.home).__name__) for r in shown}
    measured = "Error of the law on Gaussian data" if row.stochastic else "RMS error on a 1-D mixture, exact flow"
    factor = "Spread of the output over the exact one" if row.stochastic else "Factor on x_T over the exact flow's"
    return [
        '<div class="pair"><figure>' + svg.lines(factors, "variance of the data", "factor", logarithmic="x"),
        f"<figcaption>{factor}, for Gaussian data at 10 steps: 1 is right.</figcaption></figure>",
        "<figure>" + svg.lines(errors, "model calls", "error"),
        f"<figcaption>{measured}, on t2 at the row's home.</figcaption></figure></div>",
    ]


def stability(row: da.Solver, process: da.Process, v: np.ndarray) -> np.ndarray:
    """Standard deviation of the output over the exact one, by variance of the data."""
    table = row.build(process, da.grid(process, steps_of(row, 10)))
    start, end = table.times[0], da.grid(process, 2)[-1]
    exact = da.exact_transfer(process, v, start, end)
    if not table.stochastic:
        return np.asarray(da.transfer(table, process, v) / exact)
    into = process.alpha(start) ** 2 * v + process.sigma(start) ** 2
    out = [float(np.ravel(da.output_law(table, process, mean=0.0, covariance=value)[1])[0]) for value in v]
    return np.sqrt(np.array(out) / (exact**2 * into))


@functools.cache
def error_curve(name: str, home: str) -> list[tuple[float, float]]:
    """(calls, error) of a row on a process of the registry's homes."""
    row = da.SOLVERS[name]
    process = da.RectifiedFlow() if home == "RectifiedFlow" else da.VPLinear()
    found = []
    for count in COUNTS:
        steps = steps_of(row, max(1, (count - row.extra_calls) // row.stages))
        ts = da.grid(process, steps)
        table = row.build(process, ts)
        found.append((float(table.nfe), error(table, process, ts)))
    return sorted(set(found))


def error(table: da.Tableau, process: da.Process, ts: np.ndarray) -> float:
    """RMS error of 64 paths on the mixture, or of the law on Gaussian data."""
    if table.stochastic:
        return float(da.law_error(table, process, *GAUSS)[0])
    x, truth = exact_paths(process, float(ts[0]), float(ts[-1]))
    return float(np.sqrt(np.mean((da.run(table, MIX.model(process, table.prediction), x) - truth) ** 2)))


@functools.cache
def exact_paths(process: da.Process, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """(starts, exact ends)."""
    x = MIX.sample(64, 0, process, start)
    return x, MIX.flow(process, x, start, end)
