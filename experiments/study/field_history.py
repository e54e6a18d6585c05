"""Since when does each defect of diffusers stand? One list of configurations, audited in its released versions.

The versions are installed by hand (``make field-history``), each into a folder of its own beside the pinned torch, and
audited there by one child process each.  Where they are not, the committed CSV is drawn again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.paths import FIGURES

NAME = "field_history"
QUESTION = "Since when does each error of diffusers' samplers stand, which were mended, and which were brought in?"
COMMITTED = "`make field-history` installs and audits the versions, 45 minutes"
FOLDER = "DEIS_ANALYSIS_HISTORY"  # environment: where the versions are installed, one folder each
INSTALLED = "installed"  # in place of a version: the one that is importable
_DPM, _SINGLE, _UNIPC, _DEIS = (
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
)
_KARRAS, _COSINE, _SD = "use_karras_sigmas=true", "beta_schedule=squaredcos_cap_v2", "beta_schedule=scaled_linear"
_SD += "&beta_start=0.00085&beta_end=0.012"
_PLAIN = "clip_sample=false"
_ZERO = "rescale_betas_zero_snr=true&timestep_spacing=trailing"
CONFIG: Config = {
    "nfe": 20,
    # diffusers, and the huggingface_hub whose names it imports
    "versions": {
        "0.8.1": "0.17.3",
        "0.10.2": "0.17.3",
        "0.12.1": "0.17.3",
        "0.15.1": "0.17.3",
        "0.18.2": "0.17.3",
        "0.20.2": "0.17.3",
        "0.22.3": "0.25.2",
        "0.24.0": "0.25.2",
        "0.27.2": "0.25.2",
        "0.30.3": "0.25.2",
        "0.33.1": "0.36.0",
        "0.36.0": "0.36.0",
        "0.39.0": "",
        "0.42.1": "",
    },
    "specs": [
        f"DDIMScheduler?{_PLAIN}",
        f"DDIMScheduler?{_PLAIN}&timestep_spacing=linspace",
        f"DDIMScheduler?{_PLAIN}&timestep_spacing=trailing",
        f"DDIMScheduler?{_PLAIN}&{_ZERO}",
        f"DDIMScheduler?{_PLAIN}&set_alpha_to_one=false&steps_offset=1",
        f"DDPMScheduler?{_PLAIN}",
        f"DDPMScheduler?{_PLAIN}&variance_type=fixed_large_log",
        "PNDMScheduler",
        "PNDMScheduler?skip_prk_steps=true",
        "IPNDMScheduler",
        "LMSDiscreteScheduler",
        _DPM,
        f"{_DPM}?solver_order=3",
        f"{_DPM}?{_KARRAS}",
        f"{_DPM}?{_COSINE}&{_KARRAS}",
        f"{_DPM}?use_exponential_sigmas=true&{_SD}",
        f"{_DPM}?use_lu_lambdas=true",
        f"{_DPM}?algorithm_type=sde-dpmsolver++",
        f"{_DPM}?algorithm_type=sde-dpmsolver++&solver_order=3",
        _SINGLE,
        f"{_SINGLE}?solver_order=3",
        f"{_SINGLE}?{_KARRAS}",
        _DEIS,
        f"{_DEIS}?solver_order=3",
        f"{_DEIS}?{_KARRAS}",
        _UNIPC,
        f"{_UNIPC}?solver_order=3",
        f"{_UNIPC}?{_KARRAS}",
        f"{_UNIPC}?solver_type=bh1",
        "SASolverScheduler",
        "EulerDiscreteScheduler",
        "EulerDiscreteScheduler?timestep_spacing=leading",
        f"EulerDiscreteScheduler?{_KARRAS}",
        f"EulerDiscreteScheduler?{_ZERO}",
        "EulerDiscreteScheduler?strength=0.5",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        f"HeunDiscreteScheduler?{_KARRAS}",
        "HeunDiscreteScheduler?strength=0.5",
        "KDPM2DiscreteScheduler",
        "KDPM2DiscreteScheduler?strength=0.5",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler?solver_order=3",
        "FlowMatchEulerDiscreteScheduler?shift=3.0",
        "FlowMatchHeunDiscreteScheduler?shift=3.0",
    ],
}
QUICK: Config = {
    "versions": {INSTALLED: ""},
    "specs": [f"DDIMScheduler?{_PLAIN}", "PNDMScheduler", f"DDIMScheduler?{_PLAIN}&strength=0.5", "KarrasVeScheduler"],
}
_STATES = ("absent", "fails", "clean", "warnings", "errors")


# -- measuring ---------------------------------------------------------------------------------------
def install(folder: Path) -> None:
    """Each version into its folder, with the hub it needs and nothing else; a line for each that does not install."""
    for version, hub in CONFIG["versions"].items():
        if (folder / version).is_dir():
            continue
        wanted = [f"diffusers=={version}", *([f"huggingface_hub=={hub}"] if hub else [])]
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, str(folder / version), *wanted], check=False
        )
        print(f"diffusers {version}: {'installed' if done.returncode == 0 else 'does not install'}", flush=True)


def audit_here(specs: list[str], nfe: int) -> Iterator[dict[str, Any]]:
    """What the audit says of each configuration in the version that this process imports."""
    import diffusers

    from deis_analysis.audit.report import audit_sampler

    for spec in specs:
        row: dict[str, Any] = {"spec": spec, "diffusers": diffusers.__version__}
        try:
            report = audit_sampler(f"diffusers:{spec}", nfe=nfe)
        except ValueError as error:  # this version has no such class, or no such option
            yield row | {"status": "absent", "messages": str(error).partition("; nearest")[0]}
            continue
        found = {s: [f for f in report.findings if f.severity == s] for s in ("error", "warning")}
        failed = [f for f in found["error"] if f.code == "RUN-FAILED"]
        status = "fails" if failed else "errors" if found["error"] else "warnings" if found["warning"] else "clean"
        codes = {f"{s}_codes": "; ".join(dict.fromkeys(f.code for f in found[s])) for s in found}
        said = " | ".join(f"{f.code}: {f.message}" for f in failed or found["error"])
        yield row | {"status": status, **codes, "messages": said}


def audited(version: str, config: Config, folder: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """The rows of one version, by a child process that sees it first; it ends when this one does."""
    path = [] if folder is None else [str(folder / version)]
    path += [entry for entry in (str(FIGURES.parent), os.environ.get("PYTHONPATH", "")) if entry]
    command = [sys.executable, "-W", "ignore", "-m", __name__, "audit"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    rows, question = list[dict[str, Any]](), {"specs": config["specs"], "nfe": config["nfe"]}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        print(json.dumps(question), file=child.stdin, flush=True)
        for line in child.stdout:
            if line.startswith("{"):
                rows.append({"version": version, **json.loads(line)})
                progress(len(rows) / len(config["specs"]))
        child.wait()
        stderr.seek(0)
        said = (stderr.read().strip().splitlines() or ["it ended without a word"])[-1]
    if len(rows) < len(config["specs"]):
        missing = config["specs"][len(rows) :]
        rows += [{"version": version, "spec": s, "status": "fails", "messages": f"no audit: {said}"} for s in missing]
    return rows


def compute(config: Config, progress: Progress) -> Frame:
    """A row per version and configuration, from audits where the versions lie, else as committed."""
    place, versions = os.environ.get(FOLDER), list(config["versions"])
    if not place and versions != [INSTALLED]:
        committed = pd.read_csv(FIGURES / f"{NAME}.csv", dtype={"version": str, "diffusers": str})
        progress(1.0)
        return committed
    rows = list[dict[str, Any]]()
    for i, version in enumerate(versions):
        folder = None if version == INSTALLED else Path(str(place))
        if folder is not None and not (folder / version).is_dir():
            rows += [
                {"version": version, "spec": s, "status": "fails", "messages": "not installed"} for s in config["specs"]
            ]
            continue
        rows += audited(version, config, folder, lambda share, i=i: progress((i + share) / len(versions)))  # type: ignore[misc]
    columns = ("version", "diffusers", "spec", "status", "error_codes", "warning_codes", "messages")
    return pd.DataFrame(rows, columns=list(columns))


# -- what was found ----------------------------------------------------------------------------------
def _versions(frame: Frame) -> list[str]:
    """In the order of their release."""
    return list(dict.fromkeys(style.texts(frame.version)))


def _codes(frame: Frame) -> dict[tuple[str, str], set[str]]:
    """The errors of each (version, configuration) that could be read."""
    read = frame[~frame.status.isin(("absent", "fails"))]
    rows = zip(style.texts(read.version), read.spec, style.texts(read.error_codes), strict=True)
    return {(version, spec): set(text.split("; ")) - {""} for version, spec, text in rows}


def _unmeasured(frame: Frame) -> set[tuple[str, str]]:
    """The (version, configuration) that could not be put on the order problem: of its order nothing is known."""
    if "warning_codes" not in frame:
        return set()
    rows = zip(style.texts(frame.version), frame.spec, style.texts(frame.warning_codes), strict=True)
    return {(version, spec) for version, spec, text in rows if "RUN-FAILED" in text}


def histories(frame: Frame) -> Frame:
    """A row per configuration and code of an error: the first version that has it, the last, and what became of it.

    ``fate``: "stands" in the last version that could be read, or was "mended".  ``brought_in``: an earlier version
    was read without it, rather than that it was there from the configuration's first version on.
    """
    codes, unmeasured, rows = _codes(frame), _unmeasured(frame), list[dict[str, Any]]()
    for spec in dict.fromkeys(frame.spec):
        seen = [(version, codes[version, spec]) for version in _versions(frame) if (version, spec) in codes]
        for code in sorted(set().union(*(found for _, found in seen))):
            known = [(v, f) for v, f in seen if not (code.startswith("ORD-") and (v, spec) in unmeasured)]
            there = [code in found for _, found in known]
            last = len(there) - 1 - there[::-1].index(True)
            since = last
            while since and there[since - 1]:
                since -= 1
            rows.append(
                {
                    "spec": spec,
                    "code": code,
                    "fate": "stands" if there[-1] else "mended",
                    "since": known[since][0],
                    "until": known[last][0],
                    "brought_in": since > 0,
                }
            )
    return pd.DataFrame(rows, columns=["spec", "code", "fate", "since", "until", "brought_in"])


def verdict(frame: Frame, config: Config) -> str:
    """Counts of errors that stand, by age; of those mended; of those brought in."""
    found, versions = histories(frame), _versions(frame)
    stand, mended = found[found.fate == "stands"], found[found.fate == "mended"]
    first = {version: int((stand.since == version).sum()) for version in versions}
    ages = [f"{n} since {version}" for version, n in first.items() if n]
    brought = int(stand.brought_in.astype(bool).sum())
    failed = int((frame.status == "fails").sum())
    since = f" ({style.in_words(ages)})" if ages else ""
    return (
        f"Of {frame.spec.nunique()} configurations in {len(versions)} versions of diffusers ({versions[0]} to "
        f"{versions[-1]}), {len(stand)} errors stand{since}: {len(stand) - brought} are "
        f"there from the first of these versions that can be read on, {brought} were brought in later; {len(mended)} "
        f"others were mended; {failed} of {len(frame)} audits could not run."
    )


# -- the figure --------------------------------------------------------------------------------------
_COLOURS = ("#F2F2F2", "#B9B9B9", "#CFE6D4", "#F5E2B0", "#C8452C")
_WORDS = (
    "no such class or option",
    "does not run",
    "no error, no warning",
    "warnings",
    "errors (number of codes)",
)


def draw(frame: Frame, config: Config) -> Figure:
    """Versions across, configurations down; the colour is the severity, ▲ where an error came, ▽ where one went."""
    versions, specs = _versions(frame), list(dict.fromkeys(frame.spec))
    status = frame.assign(version=style.texts(frame.version)).set_index(["version", "spec"]).status
    codes = _codes(frame)
    cells = np.array([[_STATES.index(status.get((v, s), "absent")) for v in versions] for s in specs])
    found = histories(frame)
    stand, mended = int((found.fate == "stands").sum()), int((found.fate == "mended").sum())
    headline = f"{stand} errors stand in diffusers {versions[-1]}; {mended} older ones were mended"
    cell, wide = 0.2, 0.52
    fig = style.new_figure(4.6 + wide * len(versions) + 3.2, 2.2 + cell * len(specs), headline, _note(config))
    width, height = fig.get_size_inches()
    top = fig.subplotpars.top * height - 0.75
    place = (3.9 / width, (top - cell * len(specs)) / height, wide * len(versions) / width, cell * len(specs) / height)
    ax = fig.add_axes(place)
    ax.imshow(cells, aspect="auto", cmap=ListedColormap(_COLOURS), vmin=-0.5, vmax=len(_STATES) - 0.5)
    unmeasured = _unmeasured(frame)
    for i, spec in enumerate(specs):
        before: set[str] | None = None
        for j, version in enumerate(versions):
            now = codes.get((version, spec))
            if now is None:
                continue
            if now:
                ax.text(j, i, f"{len(now)}", ha="center", va="center", fontsize=7, color="white")
            if before is not None:
                came = {c for c in now - before if not (c.startswith("ORD-") and (versions[j - 1], spec) in unmeasured)}
                for x, mark, codes_of_it in ((j - 0.42, "▲", came), (j + 0.24, "▽", before - now)):
                    ink = "white" if now else "#333333"
                    ax.text(x, i, mark if codes_of_it else "", ha="left", va="center", fontsize=6.5, color=ink)
            before = now
        last = sorted(before or ())
        ax.text(len(versions) - 0.35, i, " ".join(last), fontsize=6.5, va="center", color="#B02000")
    ax.set_yticks(range(len(specs)), [_label(spec) for spec in specs], fontsize=7.2)
    ax.set_xticks(range(len(versions)), versions, fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(-0.5, len(versions)), minor=True)
    ax.set_yticks(np.arange(-0.5, len(specs)), minor=True)
    ax.grid(visible=False)
    ax.grid(which="minor", color="white", lw=0.8)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    handles = [Patch(color=colour, label=word) for colour, word in zip(_COLOURS, _WORDS, strict=True)]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.035), ncols=5, fontsize=7.5, frameon=False,
        handlelength=1.0, columnspacing=1.2, borderpad=0.0,
    )  # fmt: skip
    return fig


def _note(config: Config) -> str:
    return (
        f"Each configuration as the audit reads it off its own run at {config['nfe']} model calls. ▲ an error that the "
        "version before did not have, ▽ one that it had. Grey: it does not run beside the pinned torch and NumPy, for "
        "whatever reason, and is not counted. Right: codes of the errors in the last version that could be read."
    )


def _label(spec: str) -> str:
    name, _, query = spec.partition("?")
    name = name.removesuffix("Scheduler").removesuffix("Discrete")
    query = query.replace("clip_sample=false", "").strip("&").replace(_SD, "scaled_linear")
    for long, short in (
        ("use_", ""),
        ("=true", ""),
        ("_type", ""),
        ("timestep_spacing=", ""),
        ("beta_schedule=", ""),
        ("algorithm=", ""),
        ("rescale_betas_zero_snr", "zero SNR"),
        ("set_alpha_to_one=false&steps_offset=1", "ends at ᾱ₁, offset 1"),
        ("&", ", "),
    ):
        query = query.replace(long, short)
    return textwrap.shorten(f"{name} {query}".strip(), 52, placeholder=" …")


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone: its end of stdin closes."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]))
    else:
        question = json.loads(sys.stdin.readline())
        _leave_with_parent()
        for line in audit_here(question["specs"], question["nfe"]):
            print(json.dumps(line), flush=True)
        os._exit(0)
