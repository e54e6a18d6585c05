"""README and docs: their Python runs as it stands, their commands exist, their numbers are measured."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import deis_analysis as da
from deis_analysis.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
BY_HAND = {
    name: text for name, text in PAGES.items() if "tutorials/" not in name
}  # tutorials run where the site is built
TEXTS = {"README.md": README, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()} | PAGES
FINDINGS = {  # what the README says of a figure, as its verdict says it
    "network_samples": ["0.077 (tab3) to 0.73 (edm_heun)", "0.0030 (unipc3_bh2_x0) to 0.030 (ddim)"],
    "field_audit": ["109 of 117 samplers can be read", "25 of 117 samplers have a finding of severity error"],
    "field_history": ["20 errors stand (9 since 0.8.1"],
    "solver_atlas": ["-0.38 to -0.07 at 5", "+0.13 to +0.74 at 80"],
}
AUDITED = "diffusers:DPMSolverMultistepScheduler?solver_order=3"


@pytest.fixture
def registry():
    before = dict(da.SOLVERS)
    yield
    da.SOLVERS.clear()
    da.SOLVERS.update(before)


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def plain(text):
    return " ".join(text.split())


def run(text, name):
    """What each block of Python prints, all run in one namespace."""
    namespace, printed = {"__name__": "__main__"}, []
    for block in blocks(text, "python"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block, name, "exec"), namespace)
        printed.append(output.getvalue())
    return printed


def test_the_readme_is_read_in_three_minutes():
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 12_000
    assert len(README.split()) <= 1_500


def test_examples_of_the_readme_run_and_print_what_is_shown(registry):
    printed, shown = run(README, "README.md"), blocks(README, "text")
    assert len(printed) >= 3
    assert len(shown) >= 3
    assert set(shown) <= set(printed)


@pytest.mark.parametrize("name", [name for name, text in BY_HAND.items() if blocks(text, "python")])
def test_pages_run(name, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(BY_HAND[name], name)


def test_the_audit_prints_what_the_readme_shows():
    (shown,) = blocks(README, "console")
    first, *lines = shown.strip().splitlines()
    assert first == f'$ deis-analysis audit "{AUDITED}"'
    printed = [
        plain(line) for line in CliRunner().invoke(main, ["audit", AUDITED], env={"COLUMNS": "400"}).output.splitlines()
    ]
    assert [line for line in lines if plain(line) not in printed] == []


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_are_those_of_the_figures(name):
    verdict = json.loads((ROOT / "figures" / f"{name}.json").read_text())["verdict"]
    for said in FINDINGS[name]:
        assert said in verdict
        assert said in plain(README).replace(" calls, +0.13", ", +0.13")


def commands(text):
    """Every call of deis-analysis, or of make, in blocks that are commands."""
    for block in blocks(text, "sh") + blocks(text, "console") + blocks(text, "yaml"):
        for line in block.splitlines():
            found = re.search(r"(deis-analysis|make) (?!_)[a-z].*", line)
            if found and "pip install" not in line and "eval" not in line and "uses:" not in line:
                yield shlex.split(found.group(0), comments=True)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if any(commands(text))])
def test_commands_exist_with_their_options(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, command, *arguments in commands(TEXTS[name]):
        if program == "make":
            assert command in targets
            continue
        given = [word.strip("[]") for word in arguments if word != "|" and word.strip("[]")]
        context = main.commands[command].make_context(command, given, resilient_parsing=True)
        known = {option for parameter in context.command.params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in given if word.startswith("--")} <= known, (command, given)


def named(text):
    """All names in backticks, braces expanded: `tab{1,2}` is tab1 and tab2."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for quoted in re.findall(r"`([^`]+)`", prose):
        parts = [part.split(",") for part in re.split(r"[{}]", quoted)]
        yield from ("".join(choice) for choice in itertools.product(*parts))


def test_every_registered_sampler_is_in_a_family():
    names = set(named(PAGES["docs/reference/families.md"]))
    assert set(da.SOLVERS) | set(da.STEPPERS) <= names, (set(da.SOLVERS) | set(da.STEPPERS)) - names
    assert f"All {len(da.SOLVERS)} registry rows" in README


def test_every_figure_has_a_page(tmp_path):
    from docs import results

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "claims.md").write_text(PAGES["docs/results/claims.md"])
    results.write(tmp_path)
    index = (tmp_path / "results" / "index.md").read_text()
    for path in sorted((ROOT / "figures").glob("*.png")):
        record = json.loads(path.with_suffix(".json").read_text())
        page = (tmp_path / "results" / f"{path.stem}.md").read_text()
        assert record["question"] in page
        assert record["verdict"] in page
        assert f'href="{path.stem}.html"' in index
        assert (tmp_path / "results" / f"{path.stem}.csv").is_file()


def test_links_inside_the_repository_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", TEXTS[name]):
            assert (ROOT / target).exists(), (name, target)


def test_the_hero_is_drawn_from_the_figures_data(tmp_path):
    from matplotlib.image import imread

    from docs import hero

    hero.draw(tmp_path / "hero.png")
    import numpy as np

    assert np.abs(imread(tmp_path / "hero.png") - imread(hero.PICTURE)).mean() < 0.01
