"""``deis-analysis export``: a table for another package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deis_analysis.interop.portable_table import PortableTable, portable
from deis_analysis.options import ProcessType, clear_errors
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Process
from deis_analysis.storage import read_text, writable, write_text

TARGETS = ("diffusers", "k_diffusion", "comfyui", "sigmas", "json")
_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
_PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@click.command("export")
@click.argument("table")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="What DEST is to be for.")
@click.option("--steps", type=int, help="Steps of a sampler of the registry.  [default: 10]")
@click.option("--grid", "--kind", "kind", help="Its grid: t1 t2 t3 rho7 logrho shift3.  [default: t2]")
@click.option("--t-start", type=float, help="First time (default: the process's).")
@click.option("--t-end", type=float, help="Last time (default: the process's).")
@click.option("--process", type=ProcessType(), help="Its process, see `deis-analysis tableau --help`.")
@click.option(
    "--model", "network", help="A network instead: process and told times from `deis_analysis.networks.load`."
)
@click.option("--prediction-type", type=click.Choice(_TYPES), help="Of the model, for diffusers.")
@clear_errors
def export_command(
    table: str, dest: Path, target: str, network: str | None, prediction_type: str | None, **options: Any
) -> None:
    """Write the sampler TABLE for another package to DEST, a folder (diffusers, comfyui) or a file (all others).

    TABLE is a file that PortableTable.to_json wrote, or a name of the registry with --process or --model.
    """
    if prediction_type is not None and target != "diffusers":
        raise click.UsageError(f"--prediction-type {prediction_type} is for --to diffusers")
    if target in ("diffusers", "comfyui") and dest.is_file():
        raise click.UsageError(f"DEST {str(dest)!r} is a file; --to {target} writes a folder")
    if target not in ("diffusers", "comfyui") and dest.is_dir():
        raise click.UsageError(f"DEST {str(dest)!r} is a folder; --to {target} writes a file")
    writable("DEST", dest, many=target in ("diffusers", "comfyui"))
    given = {name: value for name, value in {**options, "model": network}.items() if value is not None}
    found, kind = _read(Path(table), given) if Path(table).is_file() else _build(table, network, **options)
    try:
        _write(found, dest, target, prediction_type or kind)
    except OSError as error:
        raise click.UsageError(f"DEST {str(dest)!r} cannot be written: {error}") from error
    click.echo(f"{found.tableau.name or 'the table'}, {found.nfe} model calls: {dest}")


def _read(file: Path, given: dict[str, Any]) -> tuple[PortableTable, None]:
    """The table of a file."""
    if given:
        option = "--" + next(iter(given)).replace("_", "-").replace("kind", "grid")
        raise click.UsageError(f"{option} is for samplers of the registry; the table of {str(file)!r} has its own")
    return PortableTable.from_json(read_text(file)), None


def _build(
    name: str,
    network: str | None,
    process: Process | None,
    steps: int | None,
    kind: str | None,
    t_start: float | None,
    t_end: float | None,
) -> tuple[PortableTable, str | None]:
    """(table of a name of the registry, prediction type of the network)."""
    from deis_analysis.solvers.registry import build, named

    named("TABLE", name)
    if (network is None) == (process is None):
        raise click.UsageError("a sampler of the registry needs either --process or --model")
    convention, prediction_type, source = None, None, f"deis_analysis {name}"
    if network is not None:
        from deis_analysis.networks import load

        net = load(network)
        process, convention = net.process, net.model.convention
        source += f" for {net.name}"
        if process.variance_preserving or net.prediction != "v":
            prediction_type = _PREDICTION_TYPES.get(net.prediction)
    assert process is not None
    made = build(name, process, grid(process, 10 if steps is None else steps, kind or "t2", t_start, t_end))
    return portable(made, process, convention, source), prediction_type


def _write(table: PortableTable, dest: Path, target: str, prediction_type: str | None) -> None:
    from deis_analysis.interop import exports

    match target:
        case "diffusers":
            exports.to_diffusers(table, dest, prediction_type)
        case "comfyui":
            exports.to_comfyui(table, dest)
        case "k_diffusion":
            exports.write_k_diffusion(table, dest)
        case _:
            text = table.to_json() if target == "json" else json.dumps(exports.to_sigmas(table))
            write_text(dest, text + "\n")
