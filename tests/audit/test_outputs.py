"""What an audit writes for others: JUnit, SARIF, a page per sampler with an overview."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import deis_analysis as da
from deis_analysis import audit
from deis_analysis.cli import main


def raises(model, x, sigmas):
    raise TypeError("list[int] <b> \x07 [/nope]")


@pytest.fixture(scope="module")
def reports():
    return [da.audit_sampler("registry:ddim"), da.audit_sampler(raises), da.audit_sampler("registry:rhork_2heun")]


def test_junit_has_a_failure_per_error(reports):
    root = ElementTree.fromstring(audit.junit(reports).partition("\n")[2])
    assert [suite.get("failures") for suite in root] == ["0", "1", "0"]
    for suite, report in zip(root, reports, strict=True):
        assert suite.get("name") == report.spec
        assert [case.get("name") for case in suite] == [finding.code for finding in report.findings]
        assert int(suite.get("tests")) == len(suite) >= 1
    (failure,) = root.iter("failure")
    assert "list[int] <b>" in failure.get("message")
    assert "\x07" not in failure.get("message")


def test_sarif_has_a_result_per_finding(reports):
    (run,) = json.loads(audit.sarif(reports))["runs"]
    known = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert known == set(audit.CODES)
    found = [(result["ruleId"], result["level"]) for result in run["results"]]
    levels = {"error": "error", "warning": "warning", "info": "note"}
    assert found == [(f.code, levels[f.severity]) for report in reports for f in report.findings]


def test_the_place_of_a_finding_in_a_file_is_the_file(reports, tmp_path):
    (run,) = json.loads(audit.sarif([audit.Report.failed("some/file.py:f?order=2", reports[1].findings)]))["runs"]
    (place,) = run["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "some/file.py"


class Rows(HTMLParser):
    """The cells' keys and links of the overview."""

    def __init__(self):
        super().__init__()
        self.rows, self.links, self.heads = [], [], 0

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr" and "data-worst" in attributes:
            self.rows.append([attributes["data-worst"]])
        elif tag == "td":
            self.rows[-1].append(attributes["data-key"])
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "button":
            self.heads += 1


def test_the_overview_has_what_it_sorts_by(reports):
    text = audit.overview(reports, ["a.html", "b.html", "c.html"])
    rows = Rows()
    rows.feed(text)
    assert rows.links == ["a.html", "b.html", "c.html"]
    assert [row[0] for row in rows.rows] == ["info", "error", "info"]
    assert all(len(row) == 1 + rows.heads for row in rows.rows)
    assert [row[1] for row in rows.rows] == [report.spec for report in reports]
    assert rows.rows[1][4] == ""  # no order was measured: sorted last
    assert not re.search(r"https?://|src=|@import", text)


def test_the_command_writes_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr("deis_analysis.audit.specs.SOLVERS", {"ddim": da.SOLVERS["ddim"]})
    files = {name: tmp_path / name for name in ("json", "junit", "sarif", "html")}
    arguments = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    result = CliRunner().invoke(main, ["audit", "--all", "registry", *arguments])
    assert result.exit_code == 0, result.output
    assert "ddim" in result.output
    assert [row["spec"] for row in json.loads(files["json"].read_text())] == ["registry:ddim"]
    assert sorted(path.name for path in files["html"].iterdir()) == ["000-registry-ddim.html", "index.html"]
    assert 'href="000-registry-ddim.html"' in (files["html"] / "index.html").read_text()
    assert ElementTree.parse(files["junit"]).getroot()[0].get("name") == "registry:ddim"
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
