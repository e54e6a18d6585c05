"""A table as what other packages read: a folder of diffusers, a sampler of k-diffusion, nodes of ComfyUI, a list.

What is written needs no deis_analysis: the files that run the table are copies of ones in this folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deis_analysis import storage
from deis_analysis.interop import karras
from deis_analysis.interop.portable_table import PortableTable
from deis_analysis.storage import write_text
from deis_analysis.validate import checked, choose, instance

_HERE = Path(__file__).parent
PREDICTION_TYPES = {
    "vp": ("epsilon", "v_prediction", "sample"),
    "flow": ("flow_prediction", "epsilon", "v_prediction", "sample"),
}


@checked
def to_diffusers(table: PortableTable, folder: Any, prediction_type: str | None = None) -> Path:
    """Write ``scheduler.py``, ``scheduler_config.json`` and ``README.md``: a scheduler that needs diffusers only.

    Args:
        table: of kind "vp" or "flow".
        folder: made if missing; ``scheduler`` of a pipeline's folder, for ``trust_remote_code``.
        prediction_type: what the model predicts, see `TableauScheduler`; None is "epsilon", of a flow
            "flow_prediction".

    Returns:
        the folder.

    Raises:
        ValueError: a table of another kind, an unknown prediction type, a table that no pipeline can start.
        ImportError: diffusers is missing.
    """
    from deis_analysis.interop import TableauScheduler

    rows = instance("table", table, PortableTable).scheduler_table()
    allowed = PREDICTION_TYPES[table.kind]
    kind = choose("prediction_type", allowed[0] if prediction_type is None else prediction_type, allowed)
    times = {} if table.kind == "vp" else {"num_train_timesteps": _flow_times(table)}
    scheduler = TableauScheduler(prediction_type=kind, table=rows, **times)
    place = storage.folder("folder", folder)
    write_text(place / "scheduler.py", (_HERE / "scheduler.py").read_text(encoding="utf-8"))
    write_text(place / "README.md", _readme(table))
    write_text(place / scheduler.config_name, scheduler.to_json_string())  # last: with it the folder is a scheduler's
    return place


def _flow_times(table: PortableTable) -> int:
    """num_train_timesteps of a flow, read off what the network is told."""
    at = max(table.tableau.evaluated, key=lambda k: table.sigma[k])
    return max(1, round(float(table.told[at] / table.sigma[at])))


def _readme(table: PortableTable) -> str:
    name = table.tableau.name or "a table"
    came = f" It came from {table.source}." if table.source else ""
    return (
        f"`scheduler.py` runs the sampler {name} with {table.nfe} model calls, whose coefficients are in "
        f"`scheduler_config.json`.{came} Put this folder on Python's path and take over the config of a pipeline's own "
        "scheduler: `from scheduler import TableauScheduler; table = TableauScheduler.load_config(folder)['table']; "
        "pipe.scheduler = TableauScheduler.from_config(pipe.scheduler.config, table=table); "
        f"pipe(..., num_inference_steps={table.nfe})`. "
        "Or let it be the folder `scheduler` of a pipeline whose `model_index.json` says "
        '`"scheduler": ["scheduler", "TableauScheduler"]`, and load that with `trust_remote_code=True`.\n'
    )


@checked
def to_sigmas(table: PortableTable) -> list[float]:
    """Levels ρ = σ/α at the nodes of the grid, the largest first, as k-diffusion's samplers take them.

    The last is the table's own: put 0 in its place, as some packages do, and the last step is another one. A list says
    where a sampler goes and loses how: the coefficients. Ask for it where another sampler is to follow these levels.

    Raises:
        ValueError: a level is infinite.
    """
    return karras.table_sampler(instance("table", table, PortableTable).rows())[1]


@checked
def to_k_diffusion(table: PortableTable) -> tuple[Callable[..., Any], list[float]]:
    """(function, sigmas): the table as one of k-diffusion's samplers, and the levels that go with it.

    ``function(model, x, sigmas=None, extra_args=None, callback=None, disable=None)`` with
    ``model(x, sigma·ones, **extra_args)`` → denoised. x and the result are x₀ + ρ ε, for tables of any process; at the
    start ``x_T / alpha[0]``. Noises are ``torch.randn_like``. The network's time is what ``model`` makes of sigma.

    Raises:
        ValueError: a level is infinite; when called: ``sigmas`` that are not the table's.
    """
    return karras.table_sampler(instance("table", table, PortableTable).rows())


@checked
def write_k_diffusion(table: PortableTable, file: Any) -> Path:
    """Write `to_k_diffusion` as a Python file, with ``sample_table`` and ``SIGMAS``, that needs torch only."""
    to_k_diffusion(table)
    text = (_HERE / "karras.py").read_text(encoding="utf-8")
    data = json.dumps(json.dumps(table.rows()))
    return write_text(
        storage.file_to_be("file", file),
        f"{text}\n\nimport json  # noqa: E402\n\nsample_table, SIGMAS = table_sampler(json.loads({data}))\n",
    )


@checked
def to_comfyui(table: PortableTable, folder: Any) -> Path:
    """Write a folder for ComfyUI's ``custom_nodes``: a SAMPLER node of the table and a SIGMAS node of its levels.

    On a flow they are σ and the state is the process's, elsewhere ρ and x₀ + ρ ε, as ComfyUI samples them.

    Raises:
        ValueError: a level is infinite.
    """
    rows, place = instance("table", table, PortableTable).rows(), storage.folder("folder", folder)
    karras.table_sampler(rows, own_scale=table.kind == "flow")
    write_text(place / "table.json", json.dumps(rows))
    write_text(place / "karras.py", (_HERE / "karras.py").read_text(encoding="utf-8"))
    write_text(place / "__init__.py", (_HERE / "comfyui_node.py").read_text(encoding="utf-8"))
    return place
