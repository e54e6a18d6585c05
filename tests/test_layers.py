"""The architecture as a test: imports point down, the package imports little beside numpy, names do not clash."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deis_analysis

ROOT = Path(deis_analysis.__file__).parent
LAYERS = [
    {
        "validate",
        "storage",
        "process",
        "schedules",
        "grids",
        "backend",
        "brownian",
        "liveness",
        "printing",
        "tableau",
        "conventions",
        "many",
    },  # 0
    {"weights", "quantiles", "mixture", "denoiser", "symbolic", "closed_forms", "trees", "equations", "inversion"},  # 1
    {"solvers"},  # 2
    {
        "analysis",
        "law",
        "orders",
        "error",
        "budget",
        "law_of_budget",
        "distances",
        "diagnostics",
        "likelihood",
        "learned",
        "reference",
        "reference_cache",
        "certificate",
        "extraction",
        "audit",
        "steppers",
        "compat",
    },  # 3
    {"cli", "__init__"},  # 4
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITNESS = {"symbolic", "closed_forms", "trees", "equations"}  # the package computes nothing from formulas
NUMPY_ONLY = LAYERS[0]
USES_TORCH = {
    "reference",
    "certificate",
    "extraction",
    "audit",
    "budget",
    "diagnostics",
    "likelihood",
    "learned",
}  # when they run


def module_name(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path):
    """(top-level package, module inside deis_analysis or None, at run time) of each import."""
    typing_only = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only |= set(ast.walk(node))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            inner = parts[1] if parts[0] == "deis_analysis" and len(parts) > 1 and parts[1] in LEVEL else None
            yield parts[0], inner, node not in typing_only


FILES = sorted(ROOT.rglob("*.py"))


def test_every_module_has_a_layer():
    assert {module_name(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = module_name(path)
    for top, inner, runtime in imports(path):
        if inner is not None and runtime and inner != own:
            assert LEVEL[inner] <= LEVEL[own], f"{own} imports {inner}"
            assert inner not in WITNESS or own in {*WITNESS, "cli"}, f"{own} imports {inner}, which is a witness"
        if own in NUMPY_ONLY and runtime:
            assert top in {"deis_analysis", "numpy", "rich", *sys.stdlib_module_names}, f"{own} imports {top}"
        if own not in USES_TORCH:
            assert top not in {"torch", "torchdiffeq", "matplotlib", "jax"}, f"{own} imports {top}"


def test_import_is_light():
    """Beside numpy come array_api_compat and a few modules of the standard library, and running a table adds nothing.

    The time it takes is a ratio to numpy's in ``make bench``; here the modules are counted.
    """
    code = (
        "import sys, numpy; before = set(sys.modules); import deis_analysis as da; p = da.VPLinear();"
        "da.run(da.build('tab3', p, da.grid(p, 5)), lambda x, t: x, numpy.ones(2)); print(*set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    others = [name for name in found if name.partition(".")[0] != "deis_analysis"]
    packages = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
    assert {p for p in packages if not p.startswith(("cython_", "_cython_"))} <= {"numpy", "array_api_compat"}
    assert len(others) < 80, sorted(others)  # 54 of them where this was written


def test_reference_is_reached_lazily():
    assert callable(deis_analysis.reference_solution)
    assert "reference_solution" in dir(deis_analysis)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deis_analysis.nonsense


def test_no_public_function_shares_its_name_with_a_module():
    modules = {path.stem for path in FILES} - {"__init__"}
    assert not modules & set(deis_analysis.__all__)
    assert not modules & set(deis_analysis.solvers.__all__)


def test_public_names_exist_and_have_docstrings():
    for name in deis_analysis.__all__:
        value = getattr(deis_analysis, name)
        if callable(value):
            assert value.__doc__, name


def test_library_code_does_not_print():
    for path in FILES:
        if path.stem == "cli":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path
