"""The README's Python runs as it stands, in one namespace, and prints what the README says."""

from __future__ import annotations

import contextlib
import io
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
    assert shown[0] == printed[0]


def test_every_registered_sampler_is_in_the_readme():
    table = TEXT[TEXT.index("## Samplers") : TEXT.index("### Adding")]
    for name in da.SOLVERS:
        stem, digit = name[:-1], name[-1]
        in_range = digit.isdigit() and re.search(rf"`{stem}\d` … `{stem}\d`", table)
        assert f"`{name}`" in table or in_range, name


def test_every_experiment_is_in_the_gallery():
    for path in sorted((ROOT / "figures").glob("*.png")):
        assert f"figures/{path.name}" in TEXT, path.name


def test_links_inside_the_repository_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
