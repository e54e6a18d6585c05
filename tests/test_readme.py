"""The README's Python runs as it stands, in one namespace, and prints what the README says."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path

import pytest

import deis_analysis as da

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


@pytest.fixture
def registry():
    before = dict(da.SOLVERS)
    yield
    da.SOLVERS.clear()
    da.SOLVERS.update(before)


def test_examples_run_and_print_what_is_shown(registry):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 4
    namespace, printed = {}, []
    for block in blocks:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block, "README.md", "exec"), namespace)
        printed.append(output.getvalue())
    shown = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert len(shown) >= 2
    assert set(shown) <= set(printed)


def named(text):
    """All names in backticks, braces expanded: `tab{1,2}` is tab1 and tab2."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for quoted in re.findall(r"`([^`]+)`", prose):
        parts = [part.split(",") for part in re.split(r"[{}]", quoted)]
        yield from ("".join(choice) for choice in itertools.product(*parts))


def test_every_registered_sampler_is_in_the_readme():
    names = set(named(TEXT[TEXT.index("## Samplers") : TEXT.index("### Adding")]))
    assert set(da.SOLVERS) | set(da.STEPPERS) <= names, (set(da.SOLVERS) | set(da.STEPPERS)) - names
    assert f"{len(da.SOLVERS)} registry rows" in TEXT


def test_every_experiment_is_in_the_gallery():
    for path in sorted((ROOT / "figures").glob("*.png")):
        assert f"figures/{path.name}" in TEXT, path.name


def test_links_inside_the_repository_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
