"""The ``deis-analysis`` command: the registry with its claims measured, tables, derivations, orders."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

import deis_analysis as da
from deis_analysis import doctor, terminal
from deis_analysis.interop.command import export_command
from deis_analysis.options import ProcessType, import_option, solver_of, try_file
from deis_analysis.options import clear_errors as _clear_errors
from deis_analysis.options import grid_options as _grid_options
from deis_analysis.storage import write_text
from deis_analysis.tuning.command import cache_folder, choose_command, tune_command


class Counts(click.ParamType):
    """Step counts, ``20,40,80``."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the list."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(item) for item in value.split(","))
        except ValueError:
            self.fail(f"{value!r} must be integers separated by commas, such as 20,40,80", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=terminal.Commands)
@click.version_option(da.__version__, prog_name="deis-analysis")
def main() -> None:
    """Measure the samplers of diffusion models: order, exactness, tables and the formulas behind them."""


main.add_command(export_command)


def _row(solver: da.Solver, measured: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": solver.name,
        "family": solver.family,
        "order": solver.order,
        "order_exact_start": solver.order_exact_start,
        "strong_order": solver.strong_order,
        "degree": solver.degree,
        "prediction": solver.prediction,
        "variable": solver.variable,
        "nfe": _rule(solver.stages, solver.extra_calls),
        "depth": _depth(solver),
        "stochastic": solver.stochastic,
        "source": solver.source,
    }
    if measured:
        found = da.measure(solver)
        row |= {
            f"observed_{field}": None if estimate is None else round(estimate.slope, 3)
            for field, estimate in (
                ("order", found.order),
                ("order_exact_start", found.order_exact_start),
                ("strong_order", found.strong_order),
            )
        }
        row |= {
            "observed_degree": found.degree,
            "observed_nfe": _rule(found.stages, found.extra_calls),
            "observed_stochastic": found.stochastic,
        }
    return row


def _depth(solver: da.Solver) -> str:
    """The longest chain of calls that need one another in N steps, read off two tables."""
    steps = (solver.shortest, solver.shortest + solver.block)
    first, second = (solver.build(solver.home, da.grid(solver.home, n)).depth for n in steps)
    stages = (second - first) // solver.block
    return _rule(stages, first - stages * steps[0])


def _rule(stages: int, extra: int) -> str:
    """Model calls in N steps: N, 2N, N+9, 2N-1."""
    return "irregular" if stages < 1 else f"{'' if stages == 1 else stages}N{f'{extra:+d}' if extra else ''}"


@main.command()
@json_option
@click.option("--declared", is_flag=True, help="Do not measure; print what is declared.")
@_clear_errors
def solvers(as_json: bool, declared: bool) -> None:
    """List the registry: what each sampler declares beside what is measured (N = steps)."""
    progress = terminal.console(stderr=True)
    rows = [
        _row(solver, not declared)
        for solver in track(list(da.SOLVERS.values()), "measuring", console=progress, transient=True, disable=declared)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    headers = ("order", "exact start", "strong", "degree", "in", "NFE", "source")
    table = Table("sampler", *headers, box=None)
    for row in rows:
        cells = [
            "" if row[field] is None else f"{row[field]}" + ("" if declared else f" ({row[f'observed_{field}']:.2f})")
            for field in ("order", "order_exact_start", "strong_order")
        ]
        degree = f"{row['degree']}" if declared else f"{row['degree']} ({row['observed_degree']})"
        table.add_row(row["name"], *cells, degree, f"{row['prediction']}, {row['variable']}", row["nfe"], row["source"])
    console = terminal.console()
    console.print(terminal.in_one_line(console, table))
    if not declared:
        console.print(
            "declared (observed); order with the method's own start and with an exact one; for samplers that draw "
            "noise, order of the law and of the paths",
            style="dim",
        )


@main.command()
@json_option
def steppers(as_json: bool) -> None:
    """List the samplers that are not tables: adaptive, data-dependent; no order is claimed for them."""
    rows = [
        {"name": row.name, "prediction": row.prediction, "linear": row.linear, "source": row.source}
        | {"description": row.description}
        for row in da.STEPPERS.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(Column("sampler", no_wrap=True), "predicts", "what it does", "source", box=None)
    for row in rows:
        table.add_row(str(row["name"]), str(row["prediction"]), str(row["description"]), str(row["source"]))
    terminal.console().print(table)


@main.command()
@click.argument("name")
@click.option("--steps", type=int, default=10, show_default=True)
@_grid_options
@import_option
@click.option("--latex", is_flag=True, help="Print the Butcher form as a LaTeX array.")
@json_option
@_clear_errors
def tableau(
    name: str,
    steps: int,
    process: da.Process,
    kind: str,
    t_start: float | None,
    t_end: float | None,
    latex: bool,
    as_json: bool,
) -> None:
    """Print the table of the sampler NAME, a registry row or FILE.py:function, on a grid."""
    build, ts = solver_of(name), da.grid(process, steps, kind, t_start, t_end)
    table = build(process, ts) if callable(build) else da.build(name, process, ts)
    click.echo(table.to_json() if as_json else table.latex() if latex else str(table))


@main.command()
@click.argument("name", required=False)
@click.option("--latex", is_flag=True, help="Print LaTeX.")
@json_option
@_clear_errors
def derive(name: str | None, latex: bool, as_json: bool) -> None:
    """Derive a formula by computer algebra; without NAME, list what can be derived."""
    from deis_analysis.symbolic import derivations as symbolic

    if name is None:
        names = list(symbolic.DERIVATIONS)
        click.echo(json.dumps(names) if as_json else "\n".join(names))
        return
    found = symbolic.derive(name)
    if as_json:
        equations = [str(equation) for equation in found.equations]
        data = {"name": found.name, "title": found.title, "equations": equations, "text": found.text}
        click.echo(json.dumps(data | {"latex": found.latex()}, indent=1))
    else:
        click.echo(found.latex() if latex else str(found))


@main.command()
@click.argument("name")
@click.option("--steps", type=Counts(), default="40,80,160,320", show_default=True, help="At least three step counts.")
@_grid_options
@import_option
@click.option("--start", type=click.Choice(["own", "exact"]), default="own", show_default=True)
@json_option
@_clear_errors
def order(
    name: str,
    steps: tuple[int, ...],
    process: da.Process,
    kind: str,
    t_start: float | None,
    t_end: float | None,
    start: str,
    as_json: bool,
) -> None:
    """Measure the order of the sampler NAME, a row or FILE.py:function, on a broad 1-D mixture with exact flow."""
    _, mix, options = da.order_problem()
    if isinstance(process, da.VPLinear) and t_start is None and t_end is None:
        t_start, t_end = options["t_start"], options["t_end"]
    build = solver_of(name)
    found = da.observed_order(build, process, mix, steps, kind=kind, t_start=t_start, t_end=t_end, start=start)
    row = None if callable(build) else da.SOLVERS[name]
    declared = None if row is None else row.order if start == "own" else row.order_exact_start
    if as_json:
        data: dict[str, Any] = {"name": name, "start": start, "declared": declared, "slope": found.slope}
        data |= {"standard_error": found.standard_error, "window": found.window}
        click.echo(json.dumps(data | {"steps": found.steps, "errors": found.errors}, indent=1))
        return
    for n, error in zip(found.steps, found.errors, strict=True):
        click.echo(f"{n:6d} steps   error {error:.3e}{'' if n in found.window else '   (outside the window)'}")
    click.echo(
        f"order {found.slope:.3f} ± {found.standard_error:.3f} with {start} start; declared {declared or 'nothing'}"
    )


@main.command()
@click.argument("spec", required=False)
@click.option("--all", "source", help="Sweep a package: diffusers, azula, k_diffusion or registry.")
@click.option(
    "--nfe",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Model calls at which table and schedule are read.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds for a file, which is code and runs in a process of its own.",
)
@click.option("--process", type=ProcessType(), help="For registry rows and functions of times; default VPLinear.")
@click.option("--grid", "kind", help="Kind of their grid: t1 t2 rho7 logrho.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True), help="Write JSON; - prints it.")
@click.option("--html", "html_file", type=click.Path(), help="Write a page; with --all a folder of pages.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, writable=True), help="Write JUnit XML.")
@click.option("--sarif", "sarif_file", type=click.Path(dir_okay=False, writable=True), help="Write SARIF 2.1.0.")
@_clear_errors
def audit(
    spec: str | None,
    source: str | None,
    nfe: int,
    timeout: float,
    process: da.Process | None,
    kind: str | None,
    **files: str | None,
) -> None:
    """Audit the sampler SPEC: which method it is, its order, its calls, its schedule. Status 1 if there are errors.

    SPEC is registry:NAME, diffusers:CLASS?option=value&…, azula:CLASS?…, k_diffusion:FUNCTION?…, or
    path/file.py:function?convention=sigmas (or times, edm, table).
    """
    from deis_analysis.audit import audit_file, audit_sampler, catalogue, placed, subject_of
    from deis_analysis.audit.subject import parse_spec

    if (spec is None) == (source is None):
        raise click.UsageError("give either SPEC or --all PACKAGE")
    for name, file in files.items():
        if file and (name, file) != ("json_file", "-"):
            try_file(f"--{name.removesuffix('_file')}", Path(file), many=name == "html_file" and source is not None)

    def one(name: str) -> Any:
        if parse_spec(name)[0].endswith(".py"):
            return audit_file(name, nfe=nfe, process=process, kind=kind, timeout=timeout)
        return audit_sampler(placed(subject_of(name), process, kind), nfe=nfe)

    if "diffusers" in (source, str(spec).partition(":")[0]):
        _import_diffusers()
    if source is None:
        reports, failed = [one(str(spec))], dict[str, str]()
    else:
        reports, failed = _swept(catalogue(source), one)
    if files["json_file"] != "-":
        if source is None:
            _print_report(reports[0])
        else:
            _print_sweep(reports, failed)
    _write_reports(reports, failed, source is not None, files)
    if source is None and reports[0].worst == "error":
        raise SystemExit(1)


def _import_diffusers() -> None:
    """Without torch's compiler, for which diffusers marks functions: its import takes as long as that of torch."""
    compiler = "torch._dynamo"
    absent = sys.modules.setdefault(compiler, cast(Any, None)) is None
    try:
        with contextlib.suppress(ImportError):  # the audit says what is missing
            importlib.import_module("diffusers")
    finally:
        if absent:
            del sys.modules[compiler]


def _swept(specs: list[str], one: Callable[[str], Any]) -> tuple[list[Any], dict[str, str]]:
    """The reports, and why the other specs have none."""
    reports, failed = [], {}
    for spec in track(specs, "auditing", console=terminal.console(stderr=True), transient=True):
        try:
            reports.append(one(spec))
        except ValueError as error:
            failed[spec] = str(error)
    return reports, failed


def _write_reports(reports: list[Any], failed: dict[str, str], many: bool, files: dict[str, str | None]) -> None:
    from deis_analysis.audit import junit, overview, page, sarif

    data: Any = [*(r.to_dict() for r in reports), *({"spec": s, "error": why} for s, why in failed.items())]
    text = json.dumps(data if many else data[0], indent=1)
    if files["json_file"] == "-":
        click.echo(text)
    elif files["json_file"]:
        write_text(Path(files["json_file"]), text + "\n")
    if files["junit_file"]:
        write_text(Path(files["junit_file"]), junit(reports))
    if files["sarif_file"]:
        write_text(Path(files["sarif_file"]), sarif(reports))
    if files["html_file"] and not many:
        write_text(Path(files["html_file"]), page(reports[0]))
    elif files["html_file"]:
        folder = Path(files["html_file"])
        links = [f"{i:03d}-{re.sub(r'[^A-Za-z0-9]+', '-', r.spec)[:60]}.html" for i, r in enumerate(reports)]
        for report, link in zip(reports, links, strict=True):
            write_text(folder / link, page(report))
        write_text(folder / "index.html", overview(reports, links))


def _print_report(report: Any) -> None:
    from deis_analysis.audit import facts, summary

    console = terminal.console()
    console.print(escape(report.spec), highlight=False, style="bold")
    console.print(escape(summary(report)), highlight=False)
    table = Table(box=None, show_header=False)
    for name, value in facts(report):
        shown = "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        table.add_row(name, shown)
    for calls, error in report.errors.items():
        beside = report.beside.get(calls, {})
        best = f"{beside['best']} {beside['best_error']:.3g}" if beside else "–"
        ddim = f"{beside['ddim']:.3g}" if beside else "–"
        table.add_row(f"error at {calls} calls", f"{error:.3g}; DDIM {ddim}; best of the registry {best}")
    console.print(table)
    colours = {"error": "red", "warning": "yellow", "info": "dim"}
    for finding in report.findings:
        colour = colours[finding.severity]
        head = f"[{colour}]{finding.severity:8s}{finding.code}[/{colour}]: "
        console.print(head + escape(finding.message), highlight=False)


def _print_sweep(reports: list[Any], failed: dict[str, str]) -> None:
    """One overview."""
    table = Table("sampler", "declared", "own", "exact", "nearest", "errors and warnings", box=None)
    for report in reports:
        codes = [finding.code for finding in report.findings if finding.severity != "info"]
        orders = (report.declared_order, report.observed_order, report.order_without_startup)
        shown = ["–" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c) for c in orders]
        near = (report.nearest or {}).get("name", "–")
        table.add_row(escape(report.spec), *shown, str(near), ", ".join(codes))
    for spec, why in failed.items():
        table.add_row(escape(spec), "–", "–", "–", "–", escape(why))
    terminal.console().print(table)


@main.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Show versions, what is installed of each extra, devices, the cache, and what would be downloaded: nothing."""
    found = doctor.examine(cache_folder())
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for head, facts in found.items():
        click.echo(head)
        for name, value in facts.items():
            click.echo(f"  {name:20s} {value}")


main.add_command(choose_command)
main.add_command(tune_command)
