"""A page per figure, from its JSON and CSV; the claims of the paper; what the audits of released packages found."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import re
import shutil
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"


def write(folder: Path) -> None:
    """``results/``: an index, a page per figure, `claims` and `field`; pictures and data beside them."""
    place = folder / "results"
    place.mkdir(parents=True, exist_ok=True)
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("*.json"))}
    for name, record in records.items():
        for kind in (".png", ".csv"):
            shutil.copy(FIGURES / (name + kind), place)
        (place / f"{name}.md").write_text(page(name, record), encoding="utf-8")
    (place / "index.md").write_text(index(records), encoding="utf-8")
    page_of_claims = place / "claims.md"
    page_of_claims.write_text(claims(page_of_claims.read_text(encoding="utf-8")), encoding="utf-8")
    (place / "field.md").write_text(field(), encoding="utf-8")


def index(records: dict[str, Any]) -> str:
    """All figures, with what each found."""
    cards = [
        f'<a class="card" href="{name}.html"><img loading="lazy" alt="" src="{name}.png"><b>{name}</b>'
        f"<span>{escape(record['question'])}</span></a>"
        for name, record in records.items()
    ]
    return f"""---
hide: [toc]
---
# Results

{len(records)} figures. Each is an experiment that answers one question, and writes a picture, its data and a JSON with
configuration, versions, seed, device and a verdict computed from the data; the pages below are made of these. Published
numbers, measured on other models, are marked as such. [Claims](claims.md) holds the paper's claims cell by cell,
[field](field.md) what audits of released packages found.

<div class="cards">
{chr(10).join(cards)}
</div>
"""


def page(name: str, record: dict[str, Any]) -> str:
    """Question, figure, verdict, settings, limits, data."""
    experiment = record["name"]
    doc = _docstring(experiment)
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    config = "\n".join(f"| `{k}` | {_cell(v)} |" for k, v in record["config"].items())
    models = record["config"].get("models")
    rerun = f"python -m experiments run {experiment} --force"
    if name != experiment and models:
        rerun += "".join(f" --model {model}" for model in models)
    return f"""# {name}

**{record["question"]}**

[![{name}]({name}.png)]({name}.png)

{record["verdict"]}

## How, and what it does not say

{doc}

These are numbers of the models and settings below, in one run of {record["wall_time_s"]:.0f} s on {record["device"]};
other models and other settings are other questions.

## Settings

| | |
|---|---|
{config}

Seed {record["seed"]}; {versions}.

## Data

[{name}.csv]({name}.csv); again with `{rerun}`.
"""


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|") if text else "–"


def _docstring(name: str) -> str:
    for room in ("paper", "study", "networks"):
        if (ROOT / "experiments" / room / f"{name}.py").is_file():
            return inspect.getdoc(importlib.import_module(f"experiments.{room}.{name}")) or ""
    return ""


def claims(text: str) -> str:
    """``text`` with the table of claims in place of ``{{paper_claims}}``."""
    import pandas as pd

    from experiments.paper import paper_claims

    config = json.loads((FIGURES / "paper_claims.json").read_text(encoding="utf-8"))["config"]
    measured = pd.read_csv(FIGURES / "paper_claims.csv")
    if "rms_low" not in measured:  # of a run before claims were counted by RMS too
        return text.replace("{{paper_claims}}", "Counted in [paper_claims](paper_claims.md).")
    table = "\n".join(paper_claims.table(measured, config))
    return text.replace("{{paper_claims}}", re.sub(r"\]\(figures/(\w+)\.png\)", r"](\1.md)", table))


def field() -> str:
    """The audits of released packages, by sampler and by version."""
    with (FIGURES / "field_audit.csv").open(encoding="utf-8") as file:
        audited = list(csv.DictReader(file))
    with (FIGURES / "field_history.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    rows = []
    for line in audited:
        cells = (line["spec"], line["declared_order"], _number(line["observed_order"]), line["nearest"] or "–",
                 line["error_codes"], line["warning_codes"])  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = "".join(
        f"<th>{head}</th>" for head in ("sampler", "declared", "observed", "nearest row", "errors", "warnings")
    )
    by_spec: dict[str, dict[str, str]] = defaultdict(dict)
    for line in history:
        by_spec[line["spec"]][line["version"]] = line["error_codes"] or line["status"]
    versions = list(dict.fromkeys(line["version"] for line in history))
    grid = [
        "<tr>"
        + f"<td>{escape(spec)}</td>"
        + "".join(f"<td>{escape(found.get(v, '–'))}</td>" for v in versions)
        + "</tr>"
        for spec, found in by_spec.items()
    ]
    columns = "".join(f"<th>{version}</th>" for version in versions)
    return f"""---
hide: [toc]
---
# The field report

What audits of released packages found, as [field_audit](field_audit.md) and [field_history](field_history.md) wrote
it. Codes are explained by `deis-analysis audit`, and on the page of
[`deis_analysis.audit.findings`](../reference/api/audit.md).

## Samplers, audited at 20 calls

<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>

## Known defects of the field

{known_defects()}

## diffusers, release by release

Errors of each configuration; *clean* has none, *absent* is not in that release.

<div class="wide"><table><thead><tr><th>configuration</th>{columns}</tr></thead><tbody>
{chr(10).join(grid)}
</tbody></table></div>
"""


def known_defects() -> str:
    """What became of defects that were known before the audit, a line each."""
    import pandas as pd

    from experiments.study import field_audit

    config = json.loads((FIGURES / "field_audit.json").read_text(encoding="utf-8"))["config"]
    found = field_audit.known(pd.read_csv(FIGURES / "field_audit.csv"), config)
    return "\n".join(f"* {what}: **{state}**{f'; {text}' if text else ''}" for what, state, text in found)


def _number(text: str) -> str:
    return f"{float(text):.2f}" if text else "–"
