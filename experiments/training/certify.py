"""``python -m experiments certify``: the certified solutions of a network that its experiments need, kept beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
from rich.console import Console

from deis_analysis.storage import prepared
from experiments import Config
from experiments.models import studies
from experiments.networks import network_work_precision


@click.command("certify")
@click.option("--model", "names", multiple=True, required=True, help=f"{studies.WHAT_NETWORKS}; repeat for several.")
@click.option("--samples", type=click.IntRange(min=1), help="Starts (default: those of the experiments).")
@click.option("--rtol", type=click.FloatRange(min=1e-11, min_open=True), help="Of DOPRI5 (default: the experiments').")
@click.option("--tolerance", type=click.FloatRange(min=0, min_open=True), help="What both methods must agree to.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples that are integrated at a time (default: all).")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--allow-pickle", is_flag=True, help="Let a network be a pickle, which runs code.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder (default: references/ beside a shipped network, figures/.cache/references for others).",
)
def certify_command(
    names: tuple[str, ...],
    samples: int | None,
    rtol: float | None,
    tolerance: float | None,
    batch: int | None,
    device: str,
    allow_pickle: bool,
    out: Path | None,
) -> None:
    """Integrate the flow of networks by DOPRI5, check it by a second method, and keep what is certified."""
    console = Console(highlight=False, soft_wrap=True)
    changes: Config = {"device": device, "allow_pickle": allow_pickle}
    changes |= {} if rtol is None else {"network_rtol": rtol}
    changes |= {} if tolerance is None else {"network_tolerance": tolerance}
    sure = True
    for name in names:
        if samples is not None:
            changes |= {"samples": samples, "network_samples": samples}
        try:
            message, found = certified(name, changes, out, batch, console.is_terminal)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        console.print(f"{name}: {message}", markup=False)
        sure = sure and found
    if not sure:
        raise click.exceptions.Exit(1)


def certified(
    name: str, changes: Config, out: Path | None = None, batch: int | None = None, progress: bool = False
) -> tuple[str, bool]:
    """Certify the study of a network between the ends of its own process; what was found, and whether it is kept."""
    study = studies.on_its_own_process(name, {**network_work_precision.CONFIG, **changes})
    assert study.network is not None
    folder = out or studies.reference_folders(study.network)[-1]
    config = dict(study.config)
    levels = (config["t_start"], config["t_end"])
    prepared(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        new = Path(place)
        found = studies.network_path(
            study.network, study.process, study.x_T, levels, config, [new, folder], batch, progress
        )
        if found.certified:
            for file in new.glob("*.npz"):
                os.replace(file, folder / file.name)
    return f"{len(study.x_T)} samples, {found.nfe} calls: {found.message}", found.certified
