"""Since when does each defect of diffusers stand? One list of configurations, audited in its released versions.

The versions are installed by hand (``make field-history``), each into a folder of its own beside the pinned torch, and
audited there by one child process each.  Where they are not, the committed CSV is drawn again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.cells import part_of
from experiments.core.frames import at
from experiments.core.paths import FIGURES

NAME = "field_history"
QUESTION = "Since when does each error of diffusers' samplers stand, which were mended, and which were brought in?"
COMMITTED = "`make field-history` installs and audits the versions, 45 minutes"
FOLDER = "DEIS_ANALYSIS_HISTORY"  # environment: where the versions are installed, one folder each
INSTALLED = "installed"  # in place of a version: the one that is importable
_OLD, _MIDDLE, _NEW = "0.17.3", "0.25.2", "0.36.0"  # of huggingface_hub, whose names a diffusers imports
_PLAIN, _KARRAS, _ZERO = "clip_sample=false", "use_karras_sigmas=true", "rescale_betas_zero_snr=true"
_SPACED, _SDE, _SD = "timestep_spacing", "algorithm_type=sde-dpmsolver++", "beta_start=0.00085&beta_end=0.012"
_CONFIGURATIONS = {  # class: the options of each
    "DDIM": [_PLAIN, f"{_PLAIN}&{_SPACED}=linspace", f"{_PLAIN}&{_SPACED}=trailing",
             f"{_PLAIN}&{_ZERO}&{_SPACED}=trailing", f"{_PLAIN}&set_alpha_to_one=false&steps_offset=1"],
    "DDPM": [_PLAIN, f"{_PLAIN}&variance_type=fixed_large_log"],
    "PNDM": ["", "skip_prk_steps=true"], "IPNDM": [""], "LMSDiscrete": [""],
    "DPMSolverMultistep": ["", "solver_order=3", _KARRAS, f"beta_schedule=squaredcos_cap_v2&{_KARRAS}",
                           f"use_exponential_sigmas=true&beta_schedule=scaled_linear&{_SD}", "use_lu_lambdas=true",
                           _SDE, f"{_SDE}&solver_order=3"],
    "DPMSolverSinglestep": ["", "solver_order=3", _KARRAS], "DEISMultistep": ["", "solver_order=3", _KARRAS],
    "UniPCMultistep": ["", "solver_order=3", _KARRAS, "solver_type=bh1"], "SASolver": [""],
    "EulerDiscrete": ["", f"{_SPACED}=leading", _KARRAS, f"{_ZERO}&{_SPACED}=trailing", "strength=0.5"],
    "EulerAncestralDiscrete": [""], "HeunDiscrete": ["", _KARRAS, "strength=0.5"],
    "KDPM2Discrete": ["", "strength=0.5"], "KDPM2AncestralDiscrete": [""], "DPMSolverSDE": [""], "EDMEuler": [""],
    "EDMDPMSolverMultistep": ["solver_order=3"],
    "FlowMatchEulerDiscrete": ["shift=3.0"], "FlowMatchHeunDiscrete": ["shift=3.0"],
}  # fmt: skip
CONFIG: Config = {
    "nfe": 20,
    "versions": {  # diffusers: huggingface_hub
        "0.8.1": _OLD, "0.10.2": _OLD, "0.12.1": _OLD, "0.15.1": _OLD, "0.18.2": _OLD, "0.20.2": _OLD,
        "0.22.3": _MIDDLE, "0.24.0": _MIDDLE, "0.27.2": _MIDDLE, "0.30.3": _MIDDLE, "0.33.1": _NEW, "0.36.0": _NEW,
        "0.39.0": "", "0.42.1": "",
    },
    "specs": [f"{name}Scheduler?{options}".rstrip("?") for name, all in _CONFIGURATIONS.items() for options in all],
}  # fmt: skip
QUICK: Config = {
    "versions": {INSTALLED: ""},
    "specs": [f"DDIMScheduler?{_PLAIN}", "PNDMScheduler", f"DDIMScheduler?{_PLAIN}&strength=0.5", "KarrasVeScheduler"],
}


def install(folder: Path) -> None:
    """Each version into its folder, with the hub it needs and nothing else; a line for each that does not install."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target")
    for version, hub in CONFIG["versions"].items():
        if not (folder / version).is_dir():
            wanted = [f"diffusers=={version}", *([f"huggingface_hub=={hub}"] if hub else [])]
            command = [sys.executable, "-m", "pip", "install", *options, str(folder / version), *wanted]
            done = subprocess.run(command, check=False).returncode == 0
            print(f"diffusers {version}: {'installed' if done else 'does not install'}", flush=True)


def audit_here(specs: list[str], nfe: int) -> Iterator[dict[str, Any]]:
    """What the audit says of each configuration in the version that this process imports."""
    import diffusers

    from deis_analysis.audit.report import audit_sampler

    for spec in specs:
        row: dict[str, Any] = {"spec": spec, "diffusers": diffusers.__version__}
        try:
            findings = audit_sampler(f"diffusers:{spec}", nfe=nfe).findings
        except ValueError as error:  # this version has no such class, or no such option
            yield row | {"status": "absent", "messages": str(error).partition("; nearest")[0]}
            continue
        errors, warnings = ([f for f in findings if f.severity == severity] for severity in ("error", "warning"))
        failed = [f for f in errors if f.code == "RUN-FAILED"]
        status = "fails" if failed else "errors" if errors else "warnings" if warnings else "clean"
        error_codes, warning_codes = ("; ".join(dict.fromkeys(f.code for f in some)) for some in (errors, warnings))
        said = " | ".join(f"{f.code}: {f.message}" for f in failed or errors)
        yield row | {"status": status, "error_codes": error_codes, "warning_codes": warning_codes, "messages": said}


def audited(version: str, config: Config, place: str | Path | None, progress: Progress) -> list[dict[str, Any]]:
    """The rows of one version, by a child process that sees it first; it ends when this one does."""
    specs, rows, said = config["specs"], list[dict[str, Any]](), "no audit: it ended without a word"
    folder = "" if version == INSTALLED else str(Path(place or "", version))
    path = os.pathsep.join(filter(None, [folder, str(FIGURES.parent), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-W", "ignore", "-m", __name__, "audit", json.dumps([specs, config["nfe"]])]
    if folder and not Path(folder).is_dir():
        said = "not installed"
    else:
        with subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
        ) as child:  # fmt: skip
            for line in child.stdout or ():
                if line.startswith("{"):
                    rows.append({"version": version, **json.loads(line)})
                    progress(len(rows) / len(specs))
                elif line.strip():
                    said = f"no audit: {line.strip()}"
    missing = {"version": version, "status": "fails", "messages": said}
    return [*rows, *({**missing, "spec": spec} for spec in specs[len(rows) :])]


def compute(config: Config, progress: Progress) -> Frame:
    """A row per version and configuration, from audits where the versions lie, else as committed."""
    place, versions = os.environ.get(FOLDER), list(config["versions"])
    if not place and versions != [INSTALLED]:
        progress(1.0)
        return pd.read_csv(FIGURES / f"{NAME}.csv", dtype={"version": str, "diffusers": str})
    parts = (audited(v, config, place, part_of(progress, i, len(versions))) for i, v in enumerate(versions))
    columns = ["version", "diffusers", "spec", "status", "error_codes", "warning_codes", "messages"]
    return pd.DataFrame([row for rows in parts for row in rows], columns=columns)


def timelines(frame: Frame) -> Frame:
    """A row per configuration, code of an error that it ever had, and version that was read: whether it is ``there``.

    Where a configuration could not be put on the order problem, nothing is known of its order.
    """
    rows = frame[~frame.status.isin(("absent", "fails"))]
    unmeasured = style.texts(rows.warning_codes).str.contains("RUN-FAILED").astype(bool)
    codes = style.texts(rows.error_codes).str.get_dummies("; ").astype(bool)
    found = pd.concat([rows[["spec", "version"]].assign(unmeasured=unmeasured), codes], axis=1)
    found = found.melt(["spec", "version", "unmeasured"], var_name="code", value_name="there")
    found = found[~(found.code.astype(str).str.startswith("ORD-") & found.unmeasured)]
    found = found[found.groupby(["spec", "code"]).there.transform("any").astype(bool)]
    return found.sort_values("spec", key=lambda specs: specs.map(list(frame.spec).index), kind="stable")


def histories(frame: Frame) -> Frame:
    """A row per configuration and code of an error: the first version that has it, the last, and what became of it.

    ``fate``: "stands" in the last version that could be read, or was "mended".  ``brought_in``: an earlier version
    was read without it, rather than that it was there from the configuration's first version on.
    """
    rows = list[tuple[Any, ...]]()
    for key, own in timelines(frame).groupby(["spec", "code"], sort=False):
        there, known = own.there.to_numpy(bool), own.version.to_numpy()
        last = int(np.flatnonzero(there)[-1])
        since = int(max(np.flatnonzero(~there[:last]), default=-1)) + 1
        fate = "stands" if there[-1] else "mended"
        rows.append((*key, fate, known[since], known[last], since > 0))
    return pd.DataFrame(rows, columns=["spec", "code", "fate", "since", "until", "brought_in"])


def _headline(frame: Frame, found: Frame) -> str:
    first, last = frame.version.iloc[[0, -1]]
    stand = at(found, fate="stands")
    return f"{len(stand)} errors stand ({(stand.since == first).sum()} since {first}) in diffusers {last}"


def verdict(frame: Frame, config: Config) -> str:
    """How many errors stand, how many of them were brought in, how many were mended, how many audits could not run."""
    found = histories(frame)
    stand = found.fate == "stands"
    return (
        f"{_headline(frame, found)}, {(stand & found.brought_in).sum()} of them brought in after a version without; "
        f"{(~stand).sum()} others were mended; of {len(frame)} audits, {frame.spec.nunique()} configurations in "
        f"{frame.version.nunique()} versions from {frame.version.iloc[0]} on, {(frame.status == 'fails').sum()} could "
        "not run."
    )


_KINDS = {"ORD": ("order", style.BLUE), "NFE": ("calls without weight", style.ORANGE),
          "SCH": ("schedule", style.VERMILLION), "RUN": ("its run", style.PURPLE)}  # fmt: skip


def draw(frame: Frame, config: Config) -> Figure:
    """Versions across, the errors of configurations down: coloured where an error is there, pale where it is not."""
    found, cells, versions = histories(frame), timelines(frame), list(dict.fromkeys(frame.version))
    note = (
        f"All errors of {frame.spec.nunique()} configurations, each read off its own run at {config['nfe']} model "
        f"calls; the {frame.spec.nunique() - found.spec.nunique()} others have none. Pale: read, and without this "
        "error; empty: this version has no such class or option, or it does not run beside the pinned torch and NumPy."
    )
    fig = panels.sheet(_headline(frame, found), note, 0.95 + 0.165 * max(len(found), 1))
    ax = fig.subplots(gridspec_kw=style.body(fig, bottom=0.08, left=2.38, right=1.75, extra_top=0.8))
    for y, (spec, code) in enumerate(zip(found.spec, found.code, strict=True)):
        colour = _KINDS.get(code[:3], ("", style.BLACK))[1]
        for row in at(cells, spec=spec, code=code).itertuples():
            ax.barh(y, 0.94, left=versions.index(row.version) - 0.47, height=0.86,
                    color=colour if row.there else style.tinted(colour, 0.85))  # fmt: skip
        ax.text(len(versions) - 0.4, y, code, va="center", fontsize=panels.SMALL, color=colour)
    names = found.spec.map(lambda spec: panels.sampler(spec, 46)).mask(found.spec == found.spec.shift(), "")
    panels.table(ax, versions, list(names) or [""], rotation=60)
    ax.tick_params(labelsize=panels.SMALL)
    fig.legend(handles=[Patch(color=colour, label=name) for name, colour in _KINDS.values()], ncols=len(_KINDS),
               loc="upper left", bbox_to_anchor=(0, fig.subplotpars.top), fontsize=panels.TICKS)  # fmt: skip
    return fig


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]))
    else:  # until the one that started this process is gone: then its end of stdin closes
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
        for row in audit_here(*json.loads(sys.argv[2])):
            print(json.dumps(row), flush=True)
        os._exit(0)
