"""Findings as continuous integration takes them: JUnit XML and SARIF 2.1.0."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

import deis_analysis
from deis_analysis.audit.findings import CODES
from deis_analysis.audit.report import Report

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def junit(reports: Sequence[Report]) -> str:
    """A suite per sampler, a case per code that applies; errors are failures, the rest is system-out.

    Source: the JUnit XML format as Jenkins and GitLab read it.
    """
    root = ElementTree.Element("testsuites", name="deis-analysis audit")
    for report in reports:
        wrong = sum(finding.severity == "error" for finding in report.findings)
        cases = max(1, len(report.findings))
        suite = ElementTree.SubElement(
            root, "testsuite", name=_clean(report.spec), tests=str(cases), failures=str(wrong), errors="0", skipped="0"
        )
        if not report.findings:
            ElementTree.SubElement(suite, "testcase", classname=_clean(report.spec), name="no finding")
        for finding in report.findings:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(report.spec), name=finding.code)
            text = f"{CODES[finding.code]}: {_clean(finding.message)}"
            if finding.severity == "error":
                ElementTree.SubElement(case, "failure", message=text, type=finding.code)
            else:
                ElementTree.SubElement(case, "system-out").text = f"{finding.severity}: {text}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(reports: Sequence[Report]) -> str:
    """One run with a result per finding; the location is the file of the sampler, where it is one.

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    results = []
    for report in reports:
        path = report.spec.partition("?")[0].rpartition(":")[0]
        uri = path if path.endswith(".py") else report.spec
        place = {"physicalLocation": {"artifactLocation": {"uri": uri}}} if path.endswith(".py") else {}
        for finding in report.findings:
            results.append(
                {
                    "ruleId": finding.code,
                    "level": _LEVELS[finding.severity],
                    "message": {"text": f"{report.spec}: {finding.message}"},
                    "locations": [place | {"logicalLocations": [{"fullyQualifiedName": report.spec}]}],
                }
            )
    rules = [{"id": code, "shortDescription": {"text": text}} for code, text in CODES.items()]
    driver = {"name": "deis-analysis", "version": deis_analysis.__version__, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _clean(text: str) -> str:
    """Without the control characters that XML does not have."""
    return "".join(c if c in "\t\n" or c >= " " else "�" for c in text)
