"""``python -m experiments certify``: the certified solutions of a network that its experiments need, kept beside it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from experiments import Config, models, network_work_precision


@click.command("certify")
@click.option("--model", "names", multiple=True, required=True, help=f"{models.WHAT_NETWORKS}; repeat for several.")
@click.option("--samples", type=click.IntRange(min=1), help="Starts (default: those of the experiments).")
@click.option("--rtol", type=click.FloatRange(min=1e-11, min_open=True), help="Of DOPRI5 (default: the experiments').")
@click.option("--tolerance", type=click.FloatRange(min=0, min_open=True), help="What both methods must agree to.")
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
    device: str,
    allow_pickle: bool,
    out: Path | None,
) -> None:
    """Integrate the flow of networks by DOPRI5, check it by a second method, and keep the result."""
    console = Console(highlight=False, soft_wrap=True)
    changes: Config = {"device": device, "allow_pickle": allow_pickle}
    changes |= {} if rtol is None else {"network_rtol": rtol}
    changes |= {} if samples is None else {"samples": samples, "network_samples": samples}
    for name in names:
        try:
            console.print(f"{name}: {certified(name, changes, out, tolerance, console.is_terminal)}", markup=False)
        except ValueError as error:
            raise click.UsageError(str(error)) from error


def certified(
    name: str, changes: Config, out: Path | None = None, tolerance: float | None = None, progress: bool = False
) -> str:
    """Certify the study of a network between the ends of its own process; what was found, in a sentence."""
    study = models.on_its_own_process(name, {**network_work_precision.CONFIG, **changes})
    assert study.network is not None
    folder = out or models.reference_folders(study.network)[-1]
    config = dict(study.config)
    levels = (config["t_start"], config["t_end"])
    found = models.network_path(
        study.network, study.process, study.x_T, levels, config["network_rtol"], [folder], tolerance, progress
    )
    return f"{len(study.x_T)} samples, {found.nfe} calls: {found.message}"
