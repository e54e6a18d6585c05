"""What do released samplers really compute? Every sampler of diffusers, azula and k-diffusion, read and measured."""

from __future__ import annotations

import textwrap
from collections import Counter
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.audit.report import Report, audit_sampler
from deis_analysis.audit.specs import catalogue, subject_of
from deis_analysis.tableau.extraction import Refusal
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.side_by_side import each

NAME = "field_audit"
QUESTION = "What do the samplers of released packages compute, and which of them have errors?"
_DPM, _KARRAS = "diffusers:DPMSolverMultistepScheduler", "use_karras_sigmas=true"
_FLOW = "use_flow_sigmas=true&prediction_type=flow_prediction&flow_shift=3.0"
CONFIG: Config = {
    "nfe": 20,
    "packages": {"diffusers": "diffusers", "azula": "azula", "k_diffusion": "k-diffusion"},
    "specs": None,
    "instead": ["registry:ddim", "registry:tab3", "registry:dpmpp_2m", "registry:dpmpp_3m"],
    "half": [f"{_DPM}?solver_order=3", "k_diffusion:sample_dpmpp_3m_sde?eta=0.0"],
    "half_not": "diffusers:DPMSolverSinglestepScheduler?solver_order=3",
    "duplicates": f"{_DPM}?beta_schedule=squaredcos_cap_v2&{_KARRAS}",
    "wasted": f"diffusers:DEISMultistepScheduler?{_KARRAS}",
    "shifted": ["diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0", 3.0, 1000],
    "excepted": "UniPC",
    "flow": {  # what the notes say of 5 steps on a mixture in two dimensions
        "diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0": 0.26,
        f"{_DPM}?{_FLOW}": 0.23,
        f"{_DPM}?solver_order=3&{_FLOW}": 0.67,
        f"diffusers:UniPCMultistepScheduler?solver_order=3&{_FLOW}": 0.87,
        f"diffusers:DEISMultistepScheduler?{_FLOW}": 0.09,
    },
}
QUICK: Config = {
    "specs": [
        f"{_DPM}?solver_order=3",
        CONFIG["duplicates"],
        "azula:REABSampler?order=2",
        "k_diffusion:sample_dpmpp_2m",
        "k_diffusion:sample_euler_ancestral",
        "k_diffusion:sample_dpm_adaptive",
    ],
    "flow": {},
}
_PLAIN = ("linear", "superposition_residual", "nfe", "declared_order", "observed_order", "local_order",
          "order_without_startup", "exactness_degree", "exactness_in", "time_mismatch", "duplicate_times")  # fmt: skip
_COUNTED = ("wasted", "wasted_calls", "calls_per_step", "errors", "error_codes", "warnings", "warning_codes", "error_5",
            "error_20")  # fmt: skip
_RANKED = (5, 10, 20)


# -- measuring ---------------------------------------------------------------------------------------
def specs_of(config: Config) -> list[str]:
    """The samplers to be audited, of the packages that are installed; rows of the registry if none is."""
    found = list[str]()
    for package in config["packages"]:
        try:
            found += catalogue(package)
        except ValueError:  # not installed
            continue
    installed = {spec.split(":")[0] for spec in found}
    wanted = found if config["specs"] is None else config["specs"]
    extra = [*wanted, *config["flow"]]
    return list(dict.fromkeys(s for s in extra if s.split(":")[0] in installed)) or list(config["instead"])


def version_of(distribution: str) -> str:
    """The installed version, empty where there is none."""
    try:
        return metadata.version(distribution) if distribution else ""
    except metadata.PackageNotFoundError:
        return ""


def levels_of(spec: str, config: Config) -> dict[str, float | None]:
    """Of the samplers that are asked about their levels σ/α: the least above 0, and where 5 calls end."""
    found: dict[str, float | None] = {"least_level": None, "end_level_5": None}
    try:
        if spec == config["shifted"][0]:
            levels = subject_of(spec).own(config["nfe"]).levels or ()
            found["least_level"] = min((level for level in levels if level > 0), default=None)
        if spec in config["flow"]:
            found["end_level_5"] = subject_of(spec).own(_RANKED[0]).end_level
    except (Refusal, ValueError):
        pass
    return found


def row_of(report: Report) -> dict[str, Any]:
    """A report as one row: the keys of its JSON, lists joined."""
    data = report.to_dict()
    row = {key: data[key] for key in _PLAIN}
    near, convergence = data["nearest"] or {}, report.convergence
    row["wasted_calls"] = " ".join(map(str, data["wasted_calls"]))
    row["wasted"] = len(data["wasted_calls"]) if report.linear else None
    row |= {"nearest": near.get("name", ""), "nearest_distance": near.get("distance")}
    at = convergence.fine if convergence else None
    row["calls_per_step"] = at.reading.calls / len(at.trunk.chain) if at else None
    for severity in ("error", "warning", "info"):
        codes = [f.code for f in report.findings if f.severity == severity]
        row |= {f"{severity}s": len(codes), f"{severity}_codes": "; ".join(codes)}
    row["messages"] = " | ".join(f"{f.severity} {f.code}: {f.message}" for f in report.findings)
    row["unread"] = "" if report.linear else next((f.message for f in report.findings if "RUN-" in f.code), "")
    for nfe in _RANKED:
        beside = data["beside"].get(str(nfe), {})
        row |= {f"error_{nfe}": data["errors"].get(str(nfe)), f"ddim_{nfe}": beside.get("ddim")}
        row |= {f"best_{nfe}": beside.get("best", ""), f"best_error_{nfe}": beside.get("best_error")}
    return row


def audited(spec: str, config: Config) -> dict[str, Any]:
    """The row of one sampler."""
    package = spec.split(":")[0]
    row: dict[str, Any] = {"spec": spec, "package": package, "version": version_of(config["packages"].get(package, ""))}
    try:
        row |= row_of(audit_sampler(spec, nfe=config["nfe"]))
    except Exception as error:  # the audit promises not to: that it did is a result, and 100 others wait
        row |= {"linear": False, "unread": f"the audit failed: {type(error).__name__}: {error}"}
    return row | levels_of(spec, config)


def compute(config: Config, progress: Progress) -> Frame:
    """A row per sampler: what its audit found."""
    rows = each(partial(audited, config=config), specs_of(config), progress)
    columns = dict.fromkeys([*(key for row in rows for key in row), *_PLAIN, *_COUNTED])
    return pd.DataFrame(rows, columns=list(columns))


# -- what was found ----------------------------------------------------------------------------------
def codes_of(frame: Frame, severity: str = "error") -> dict[str, int]:
    """How many samplers have each code, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in style.texts(frame[f"{severity}_codes"]):
        counts.update(set(text.split("; ")) - {""})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _row(frame: Frame, spec: str) -> Any:
    rows = frame[frame.spec == spec]
    return rows.iloc[0] if len(rows) and bool(rows.linear.iloc[0]) else None


def _has(row: Any, *codes: str) -> bool:
    return set(codes) <= set(f"{row.error_codes}; {row.warning_codes}".split("; "))


Known = tuple[str, str, str]  # the defect, "reproduced" / "not reproduced" / "not measured" / "no code", the evidence


def known(frame: Frame, config: Config) -> list[Known]:
    """Each known defect of the field notes: whether it is there, and the numbers that say so."""
    found = [_half(frame, spec, config) for spec in config["half"]]
    found += [_duplicates(frame, config), _wasted(frame, config), _shifted(frame, config)]
    return [*found, _starts(frame, config), _flow(frame, config)]


def _state(there: bool) -> str:
    return "reproduced" if there else "not reproduced"


def _half(frame: Frame, spec: str, config: Config) -> Known:
    what, row = f"half second difference of {_short(spec)}", _row(frame, spec)
    if row is None:
        return what, "not measured", ""
    other = _row(frame, config["half_not"])
    codes = ("ORD-BELOW-DECLARED", "ORD-HALF-SECOND-DIFFERENCE")
    text = f"local slope {row.local_order:.2f}, order {row.order_without_startup:.2f} of {row.declared_order:.0f}"
    if other is not None:
        text += f"; singlestep: {other.local_order:.2f}"
        text += ", flagged too" if _has(other, codes[1]) else ", not flagged"
    return what, _state(_has(row, *codes)), text


def _duplicates(frame: Frame, config: Config) -> Known:
    what, row = "repeated times of squaredcos with Karras levels", _row(frame, config["duplicates"])
    if row is None:
        return what, "not measured", ""
    return what, _state(_has(row, "SCH-DUPLICATE-TIMES")), f"{row.duplicate_times:.0f} of {row.nfe:.0f} calls"


def _wasted(frame: Frame, config: Config) -> Known:
    what, row = "last call of DEIS with Karras levels", _row(frame, config["wasted"])
    if row is None:
        return what, "not measured", ""
    calls = str(row.wasted_calls).replace(".0", "").split() if row.wasted else []
    text = f"without weight: call {', '.join(calls) or 'none'} of {row.nfe:.0f}"
    return what, _state(_has(row, "NFE-WASTED") and f"{row.nfe:.0f}" in calls), text


def _shifted(frame: Frame, config: Config) -> Known:
    """The audit takes a sampler's own levels as they are; here its last one is held against one shift and two."""
    spec, shift, count = config["shifted"]
    what, row = "static flow shift applied twice", _row(frame, spec)
    if row is None or not np.isfinite(row.least_level):
        return what, "not measured", ""
    last = row.least_level / (1.0 + row.least_level)
    once = shift / count / (1.0 + (shift - 1.0) / count)
    twice = shift * once / (1.0 + (shift - 1.0) * once)
    there = abs(last / twice - 1.0) < 0.01
    text = f"last level {last:.3g}; shifted once it is {once:.3g}, twice {twice:.3g}"
    schedule = [c for c in f"{row.error_codes}; {row.warning_codes}".split("; ") if c.startswith("SCH-")]
    if there and not schedule:
        return what, "no code", f"{text}: it is there, but no check of the audit sees it, as only the grid differs"
    return what, _state(there), text


def _starts(frame: Frame, config: Config) -> Known:
    """Multistep: one call a step, declared order 3 or more, no noise."""
    rows = frame[(frame.linear.astype(bool)) & (frame.declared_order >= 3) & frame.order_without_startup.notna()]
    rows = rows[(rows.calls_per_step < 1.1) & rows.observed_order.notna()]
    excepted = rows.spec.str.contains(config["excepted"])
    what = f"multistep of order 3 or 4 but {config['excepted']} has order 2 with its own start"
    if not (~excepted).any():
        return what, "not measured", ""
    own, other = rows[~excepted], rows[excepted]
    above = own[own.observed_order > 2.5]
    text = f"{len(own) - len(above)} of {len(own)} not above 2.5, slopes {own.observed_order.min():.2f} to "
    text += f"{own.observed_order.max():.2f}"
    below = own[own.observed_order < 1.5]
    for side, rest in (("above 2.5", above), ("below 1.5", below)):
        text += f"; {side}: {', '.join(map(_short, rest.spec))}" if len(rest) else ""
    if len(other):
        text += f"; {config['excepted']} {other.observed_order.min():.2f} to {other.observed_order.max():.2f}"
    return what, _state(not len(above)), text


def _flow(frame: Frame, config: Config) -> Known:
    """The mixture of the notes is not recorded: what can be compared is who is better than whom."""
    what = "flow matching, 5 steps"
    rows = {spec: _row(frame, spec) for spec in config["flow"]}
    there = {spec: float(row.error_5) for spec, row in rows.items() if row is not None and np.isfinite(row.error_5)}
    if len(there) < 2:
        return what, "not measured", ""
    claimed = sorted(there, key=lambda spec: config["flow"][spec])
    measured = sorted(there, key=there.__getitem__)
    text = ", ".join(f"{_short(s, False)} {there[s]:.2f} (notes {config['flow'][s]:g})" for s in measured)
    for spec in measured:
        end = rows[spec].end_level_5
        text += f"; {_short(spec, False)} stops at σ/α = {end:.2g} and is measured there" if end > 0.01 else ""
    return what, _state(measured == claimed), f"on another mixture, ranked: {text}"


def verdict(frame: Frame, config: Config) -> str:
    """How many were read, how many have errors and which most, and what became of the known defects."""
    read, wrong = frame[frame.linear.astype(bool)], frame[frame.errors.fillna(0) > 0]
    counts = ", ".join(f"{code} {n}" for code, n in list(codes_of(frame).items())[:3])
    failed = style.texts(frame.unread).str.startswith("the audit failed").sum()
    there = known(frame, config)
    states = dict.fromkeys(state for _, state, _ in there if state != "reproduced")
    others = "".join(f"; {state}: {', '.join(what for what, s, _ in there if s == state)}" for state in states)
    return (
        f"{_who(frame, config)}: {len(read)} of {len(frame)} samplers can be read at {config['nfe']} calls and "
        f"{len(wrong)} have a finding of severity error{f' (most: {counts})' if counts else ''}"
        f"{f'; {failed} audits failed' if failed else ''}; of {len(there)} known defects "
        f"{len(there) - sum(s in states for _, s, _ in there)} are reproduced{others}."
    )


def _who(frame: Frame, config: Config) -> str:
    """The packages with versions, and those that are missing."""
    there = frame.drop_duplicates("package").set_index("package").version
    names = [f"{name} {there[key]}" for key, name in config["packages"].items() if key in there.index]
    missing = [name for key, name in config["packages"].items() if key not in there.index]
    text = style.in_words(names) if names else "rows of the registry in place of packages"
    return f"{text} ({style.in_words(missing)} not installed)" if missing else text


# -- the figure --------------------------------------------------------------------------------------
_ROW, _SLANT = 0.175, 50  # inches of a row; degrees of the names of codes
_NUMBERS = (("declared_order", "order declared"), ("observed_order", "own start"), ("error_20", "error, 20 calls"))


def _short(spec: str, options: bool = True) -> str:
    """A spec as a label: without what is the same in all of them."""
    name, _, query = spec.split(":", 1)[1].partition("?")
    for part in ("DiscreteScheduler", "Scheduler", "Sampler", "sample_"):
        name = name.replace(part, "")
    found = [name]
    for item in query.split("&") if query else []:
        key, _, value = item.partition("=")
        key = key.removeprefix("use_").removesuffix("_type")
        if value == "flow_prediction" or (not options and key != "solver_order"):
            continue
        number = value.replace(".", "").isdigit()
        found.append(f"{key}={value}" if number else {"true": key, "false": f"no {key}"}.get(value, value))
    return ", ".join(found)


def draw(frame: Frame, config: Config) -> Figure:
    """How often each code of severity error, and below it which of them the worst rows have, with their numbers."""
    wrong, rows, counts = int((frame.errors.fillna(0) > 0).sum()), worst(frame), codes_of(frame)
    headline = f"{wrong} of {len(frame)} released samplers have a finding of severity error"
    names, bars, table = 1.5, 0.75, _ROW * max(len(rows), 1)  # inches
    fig = panels.sheet(headline, _note(frame, config, rows), names + bars + table + 0.35)
    width, height = fig.get_size_inches()
    top, left, right = fig.subplotpars.top * height, 2.75, 0.5
    wide = (width - left - right) / width
    span = (-0.5, len(counts) + len(_NUMBERS) + 0.1)
    above = fig.add_axes((left / width, (top - names - bars) / height, wide, bars / height))
    below = fig.add_axes((left / width, (top - names - bars - table - 0.05) / height, wide, table / height))
    for x, n in enumerate(counts.values()):
        above.bar(x, n, color=style.VERMILLION, width=0.7)
        above.text(x, n, f" {n}", ha="center", va="bottom", fontsize=panels.TICKS)
    place = above.get_xaxis_transform()
    heads: list[tuple[float, str]] = [
        *enumerate(counts),
        *((len(counts) + 0.6 + i, text) for i, (_, text) in enumerate(_NUMBERS)),
    ]
    for at, text in heads:
        above.text(at, 1.28, text, rotation=_SLANT, ha="left", va="bottom", fontsize=panels.SMALL, transform=place,
                   rotation_mode="anchor")  # fmt: skip
    above.text(-0.8, 0.4, f"samplers of {len(frame)} with the code", ha="right", va="center", fontsize=panels.TICKS,
               transform=place)  # fmt: skip
    above.set(xlim=span, xticks=[], yticks=[])
    _worst(below, rows, list(counts))
    below.set(xlim=span, ylim=(max(len(rows), 1) - 0.5, -0.5))
    for ax in (above, below):
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    return fig


def worst(frame: Frame, rows: int = 12) -> Frame:
    """The rows with the most errors, then the most warnings, then the largest error at 20 calls."""
    wrong = frame[frame.errors.fillna(0) > 0]
    return wrong.sort_values(["errors", "warnings", "error_20"], ascending=False, kind="stable").head(rows)


def _note(frame: Frame, config: Config, rows: Frame) -> str:
    read = int(frame.linear.astype(bool).sum())
    return (
        f"{_who(frame, config)}: {len(frame)} configurations, of which {read} can be read off their own run at "
        f"{config['nfe']} model calls. Below the counts the {len(rows)} with most findings. Own start: slope on the "
        "order problem, of the law where there is noise (~); error: RMS against the exact flow, of the law with noise. "
        "“–”: not measured. Every sampler is a row of the CSV, and a page of `deis-analysis audit --all`."
    )


def _worst(ax: Any, rows: Frame, codes: list[str]) -> None:
    noisy = rows.linear.astype(bool) & rows.order_without_startup.isna() & rows.observed_order.notna()
    names = [_short(spec) + (" ~" if mark else "") for spec, mark in zip(rows.spec, noisy, strict=True)]
    for y, (_, row) in enumerate(rows.iterrows()):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", lw=0)
        mine = str(row.error_codes).split("; ")
        ax.plot([x for x, code in enumerate(codes) if code in mine], [y] * sum(code in mine for code in codes), "s",
                color=style.VERMILLION, markersize=6.5)  # fmt: skip
        for i, (column, _) in enumerate(_NUMBERS):
            value = pd.to_numeric(row[column], errors="coerce")
            ax.text(len(codes) + 0.6 + i, y, _number(value, column), ha="center", va="center", fontsize=panels.SMALL)
    ax.set_xticks([])
    ax.set_yticks(range(len(names)), [textwrap.shorten(name, 50, placeholder=" …") for name in names])
    ax.tick_params(length=0, labelsize=panels.SMALL)


def _number(value: float, name: str) -> str:
    if not np.isfinite(value):
        return "–"
    if name == "declared_order":
        return f"{value:.0f}"
    if "order" in name:
        return f"{value + 0.0:.1f}".replace("-0.0", "0.0")
    if 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
