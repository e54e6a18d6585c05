"""What do released samplers really compute? Every sampler of diffusers, azula and k-diffusion, read and measured."""

from __future__ import annotations

import contextlib
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.audit.report import Report, audit_sampler
from deis_analysis.audit.specs import catalogue, subject_of
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at
from experiments.core.side_by_side import each

NAME = "field_audit"
QUESTION = "What do the samplers of released packages compute, and which of them have errors?"
_DPM, _KARRAS = "diffusers:DPMSolverMultistepScheduler", "use_karras_sigmas=true"
_FLOW = "use_flow_sigmas=true&prediction_type=flow_prediction&flow_shift=3.0"
_HALF, _ENDS = "ORD-BELOW-DECLARED ORD-HALF-SECOND-DIFFERENCE", "NFE-WASTED-LAST"
_SLOPES = "local slope {local_order:.2f}, order {order_without_startup:.2f} of {declared_order:.0f}"
CONFIG: Config = {
    "nfe": 20, "packages": {"diffusers": "diffusers", "azula": "azula", "k_diffusion": "k-diffusion"},
    "specs": None, "instead": ["registry:ddim", "registry:tab3", "registry:dpmpp_2m", "registry:dpmpp_3m"],
    "told": [  # defects that were known before: what, whose, the codes that tell it, the numbers that say so
        ["half second difference of DPMSolverMultistep, solver_order=3", f"{_DPM}?solver_order=3", _HALF, _SLOPES],
        ["half second difference of dpmpp_3m_sde, eta=0.0", "k_diffusion:sample_dpmpp_3m_sde?eta=0.0", _HALF, _SLOPES],
        ["repeated times of squaredcos with Karras levels", f"{_DPM}?beta_schedule=squaredcos_cap_v2&{_KARRAS}",
         "SCH-DUPLICATE-TIMES", "{duplicate_times:.0f} of {nfe:.0f} calls"],
        ["last call of DEIS with Karras levels", f"diffusers:DEISMultistepScheduler?{_KARRAS}",
         f"NFE-WASTED {_ENDS}", "without weight: call {wasted_calls} of {nfe:.0f}"],
    ],
    "shifted": ["diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0", 3.0, 1000], "excepted": "UniPC",
    "flow": {  # what the notes say of 5 steps on a mixture in two dimensions
        "diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0": 0.26,
        f"{_DPM}?{_FLOW}": 0.23, f"{_DPM}?solver_order=3&{_FLOW}": 0.67,
        f"diffusers:UniPCMultistepScheduler?solver_order=3&{_FLOW}": 0.87,
        f"diffusers:DEISMultistepScheduler?{_FLOW}": 0.09,
    },
}  # fmt: skip
QUICK: Config = {"flow": {}, "specs": [
    f"{_DPM}?solver_order=3", f"{_DPM}?beta_schedule=squaredcos_cap_v2&{_KARRAS}", "azula:REABSampler?order=2",
    "k_diffusion:sample_dpmpp_2m", "k_diffusion:sample_euler_ancestral", "k_diffusion:sample_dpm_adaptive",
]}  # fmt: skip
_RANKED = (5, 10, 20)
_JOINED = ("wasted_calls", "nearest", "findings", "errors", "beside")  # of a report, not as they are


def specs_of(config: Config) -> list[str]:
    """The samplers to be audited, of the packages that are installed; rows of the registry if none is."""
    found = list[str]()
    for package in config["packages"]:
        with contextlib.suppress(ValueError):  # not installed
            found += catalogue(package)
    installed = {spec.split(":")[0] for spec in found}
    asked = [*(config["specs"] or found), *config["flow"]]
    return list(dict.fromkeys(s for s in asked if s.split(":")[0] in installed)) or list(config["instead"])


def row_of(report: Report) -> dict[str, Any]:
    """A report as one row: the keys of its JSON, lists joined."""
    data, fine = report.to_dict(), report.convergence.fine if report.convergence else None
    near, wasted = data["nearest"] or {}, data["wasted_calls"]
    row = {key: value for key, value in data.items() if key not in _JOINED} | {
        "wasted_calls": " ".join(map(str, wasted)),
        "wasted": len(wasted) if report.linear else None,
        "nearest": near.get("name", ""),
        "nearest_distance": near.get("distance"),
        "calls_per_step": fine.reading.calls / len(fine.trunk.chain) if fine else None,
        "messages": " | ".join(f"{f.severity} {f.code}: {f.message}" for f in report.findings),
        "unread": "" if report.linear else next((f.message for f in report.findings if "RUN-" in f.code), ""),
    }
    for severity in ("error", "warning", "info"):
        codes = [f.code for f in report.findings if f.severity == severity]
        row |= {f"{severity}s": len(codes), f"{severity}_codes": "; ".join(codes)}
    for nfe in map(str, _RANKED):
        best = data["beside"].get(nfe, {})
        row |= {f"error_{nfe}": data["errors"].get(nfe), f"ddim_{nfe}": best.get("ddim"),
                f"best_{nfe}": best.get("best", ""), f"best_error_{nfe}": best.get("best_error")}  # fmt: skip
    return row


def audited(spec: str, config: Config) -> dict[str, Any]:
    """The row of one sampler; of some with the least of its levels σ/α above 0, or that at which 5 calls end."""
    package, nfe, version, failed, least, end = spec.split(":")[0], config["nfe"], "", {}, None, None
    with contextlib.suppress(KeyError, metadata.PackageNotFoundError):
        version = metadata.version(config["packages"][package])
    try:
        report = audit_sampler(spec, nfe=nfe)
    except Exception as error:  # the audit promises not to: that it did is a result, and 100 others wait
        report, failed = Report.failed(spec, []), {"unread": f"the audit failed: {type(error).__name__}: {error}"}
    with contextlib.suppress(ValueError):
        if spec == config["shifted"][0]:
            least = min((level for level in subject_of(spec).own(nfe).levels or () if level > 0), default=None)
        if spec in config["flow"]:
            end = subject_of(spec).own(_RANKED[0]).end_level
    known = {"spec": spec, "package": package, "version": version}
    return {**known, **row_of(report), **failed, "least_level": least, "end_level_5": end}


def compute(config: Config, progress: Progress) -> Frame:
    """A row per sampler: what its audit found."""
    return pd.DataFrame(each(partial(audited, config=config), specs_of(config), progress))


_UNMEASURED, _STATES = ("not measured", ""), {False: "not reproduced", True: "reproduced"}


def known(frame: Frame, config: Config) -> list[tuple[str, str, str]]:
    """Each known defect of the field notes: what it is, its state ("no code": no check tells it), and the numbers."""
    rows, excepted = frame[frame.linear.astype(bool)], config["excepted"]
    found = {what: _told(rows, *rest) for what, *rest in config["told"]}
    found["static flow shift applied twice"] = _shifted(rows, *config["shifted"])
    found[f"multistep of order 3 or 4 but {excepted} has order 2 with its own start"] = _starts(rows, excepted)
    found["flow matching, 5 steps"] = _flow(rows, config["flow"])
    return [(what, *said) for what, said in found.items()]


def _told(rows: Frame, spec: str, codes: str, evidence: str) -> tuple[str, str]:
    """By codes of errors and warnings, and whether the last call is one of those that are wasted."""
    for row in at(rows, spec=spec).to_dict("records"):
        row["wasted_calls"] = str(row["wasted_calls"]).replace(".0", "")
        there = f"{row['error_codes']}; {row['warning_codes']}".split("; ")
        there += [_ENDS] * (f"{row['nfe']:.0f}" in row["wasted_calls"].split())
        return _STATES[set(codes.split()) <= set(there)], evidence.format_map(row)
    return _UNMEASURED


def _shifted(rows: Frame, spec: str, shift: float, count: int) -> tuple[str, str]:
    """The audit takes a sampler's own levels as they are; here its last one is held against one shift and two."""
    for row in at(rows, spec=spec)[lambda found: found.least_level.notna()].itertuples():
        last, once = row.least_level / (1.0 + row.least_level), shift / count / (1.0 + (shift - 1.0) / count)
        twice = shift * once / (1.0 + (shift - 1.0) * once)
        text = f"last level {last:.3g}; shifted once it is {once:.3g}, twice {twice:.3g}"
        there = abs(last / twice - 1.0) < 0.01
        if there and "SCH-" not in f"{row.error_codes}{row.warning_codes}":
            return "no code", f"{text}: it is there, but no check of the audit sees it, as only the grid differs"
        return _STATES[there], text
    return _UNMEASURED


def _starts(rows: Frame, excepted: str) -> tuple[str, str]:
    """Multistep: one call a step, declared order 3 or more, no noise."""
    rows = rows[(rows.declared_order >= 3) & rows.order_without_startup.notna() & (rows.calls_per_step < 1.1)]
    orders = rows.set_index("spec").observed_order.dropna()
    other = orders.index.str.contains(excepted)
    own, others = orders[~other], orders[other]
    if own.empty:
        return _UNMEASURED
    text = f"{(own <= 2.5).sum()} of {len(own)} not above 2.5, slopes {own.min():.2f} to {own.max():.2f}"
    for side, those in (("above 2.5", own[own > 2.5]), ("below 1.5", own[own < 1.5])):
        text += f"; {side}: {', '.join(map(panels.sampler, those.index))}" if len(those) else ""
    text += f"; {excepted} {others.min():.2f} to {others.max():.2f}" if len(others) else ""
    return _STATES[own.max() <= 2.5], text


def _flow(rows: Frame, notes: dict[str, float]) -> tuple[str, str]:
    """The mixture of the notes is not recorded: what can be compared is who is better than whom."""
    rows = at(rows, spec=list(notes)).dropna(subset="error_5").sort_values("error_5", kind="stable")
    if len(rows) < 2:
        return _UNMEASURED
    rows = rows.assign(name=[panels.sampler(spec, options=False) for spec in rows.spec], noted=rows.spec.map(notes))
    text = ", ".join(f"{row.name} {row.error_5:.2f} (notes {row.noted:g})" for row in rows.itertuples(index=False))
    for row in rows[rows.end_level_5 > 0.01].itertuples(index=False):
        text += f"; {row.name} stops at σ/α = {row.end_level_5:.2g} and is measured there"
    return _STATES[rows.noted.is_monotonic_increasing], f"on another mixture, ranked: {text}"


def errors_of(frame: Frame) -> Frame:
    """Samplers × codes of severity error, the most frequent first: 1 where a sampler has it, else 0."""
    found = style.texts(frame.error_codes).str.get_dummies("; ")
    return found[found.sum().sort_values(ascending=False, kind="stable").index]


def verdict(frame: Frame, config: Config) -> str:
    """How many were read, how many have errors and which most, and what became of the known defects."""
    errors, found = errors_of(frame), known(frame, config)
    most = f", most often {errors.columns[0]} ({errors.iloc[:, 0].sum()})" if errors.size else ""
    failed = style.texts(frame.unread).str.startswith("the audit failed").sum()
    others = [f"{state}: {what}" for what, state, _ in found if state != "reproduced"]
    return (
        f"{errors.any(axis=1).sum()} of {len(frame)} samplers have a finding of severity error{most}; "
        f"{int(frame.linear.sum())} of {len(frame)} samplers can be read at {config['nfe']} calls of "
        f"{_who(frame, config)}; "
        f"{f'{failed} audits failed; ' if failed else ''}{len(found) - len(others)} of {len(found)} known defects are "
        f"{'; '.join(['reproduced', *others])}."
    )


def _who(frame: Frame, config: Config) -> str:
    """The packages with versions, and those that are missing."""
    there = frame.drop_duplicates("package").set_index("package").version
    names = [f"{name} {there[key]}" for key, name in config["packages"].items() if key in there.index]
    missing = [name for key, name in config["packages"].items() if key not in there.index]
    text = style.in_words(names) if names else "rows of the registry in place of packages"
    return f"{text} ({style.in_words(missing)} not installed)" if missing else text


_NUMBERS = {"declared_order": ("order declared", "{:.0f}".format), "observed_order": ("own start", "{:z.1f}".format),
            "error_20": ("error, 20 calls", style.as_text)}  # fmt: skip


def draw(frame: Frame, config: Config) -> Figure:
    """How many samplers have each code of severity error, and which of them the 12 worst rows have, with numbers."""
    errors, counts = errors_of(frame), errors_of(frame).sum()
    rows = frame.sort_values(["errors", "warnings", "error_20"], ascending=False, kind="stable").head(12)
    note = (
        f"{_who(frame, config)}, read off their own runs at {config['nfe']} model calls. First row: how many samplers "
        f"have the code; below: the {len(rows)} with most findings. Own start: slope on the order problem; error: RMS "
        "against the exact flow; both of the law where there is noise (~); –: not measured."
    )
    fig = panels.sheet(verdict(frame, config).split("; ")[0].split(", most")[0], note, 1.65 + 0.19 * (len(rows) + 1))
    ax = fig.subplots(gridspec_kw=style.body(fig, bottom=0.08, left=2.7, right=0.55, extra_top=1.5))
    names, empty = [f"of {len(frame)} samplers"], [None] * len(_NUMBERS)
    depths, texts = [[*(0.9 * (1 - counts / counts.max())), *empty]], [[*map(str, counts), *[""] * len(_NUMBERS)]]
    for i, row in rows.iterrows():
        noisy = row.linear and np.isnan(row.order_without_startup) and np.isfinite(row.observed_order)
        names.append(panels.sampler(row.spec, 44) + (" ~" if noisy else ""))
        depths.append([*(0.2 if mark else None for mark in errors.loc[i]), *empty])
        numbers = [say(row[name]) if np.isfinite(row[name]) else "–" for name, (_, say) in _NUMBERS.items()]
        texts.append([""] * len(counts) + numbers)
    heads = [*counts.index, *(head for head, _ in _NUMBERS.values())]
    panels.shaded(ax, depths, heads, names, texts, rotation=50, ha="left", rotation_mode="anchor")
    return fig
