"""The architecture as a test: imports point up the list only, no cycles, a light import, names that do not clash."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import deis_analysis

ROOT = Path(deis_analysis.__file__).parent
HOUSE = [  # each may import what stands before it
    "validate", "storage", "lazy", "pages", "terminal", "backend", "process", "options", "doctor", "tableau",
    "symbolic", "solvers", "problems", "networks", "steppers", "reference", "analysis", "diagnostics", "tuning",
    "interop", "audit", "plot", "cli", "__main__", "__init__",
]  # fmt: skip
LEVEL = {name: level for level, name in enumerate(HOUSE)}
NUMPY_ONLY = {"validate", "storage", "lazy", "pages", "backend", "process", "tableau"}
USES_TORCH = {  # when they run
    "doctor",
    "reference", "tuning", "audit", "diagnostics", "networks", "analysis", "problems", "interop",
}  # fmt: skip
MOST_FLOORS = 12


def dotted(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(ROOT.rglob("*.py"))
MODULES = {dotted(path): path for path in FILES}


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


@cache
def imports(module):
    """(what is imported, at run time) of each import, inside functions and under TYPE_CHECKING too."""
    tree, found = ast.parse(MODULES[module].read_text()), []
    typing_only = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else node.module, node not in typing_only))
    return found


def inner(module):
    return {name for name, _ in imports(module) if name in MODULES and name != module}


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES} <= set(HOUSE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_up_the_list(module):
    own = room(module)
    for name, runtime in imports(module):
        if name in MODULES and room(name) != own and name != "deis_analysis":
            assert LEVEL[room(name)] < LEVEL[own], f"{module} imports {name}"
            assert room(name) != "symbolic" or own == "cli", f"{module} computes from formulas, by {name}"
        top = name.split(".")[0]
        if own in NUMPY_ONLY and runtime:
            assert top in {"deis_analysis", "numpy", "scipy", "rich", "torch", *sys.stdlib_module_names}, name
        if own not in USES_TORCH:
            assert (
                top not in {"torch", "torchdiffeq", "matplotlib", "jax"}
                or module in ("deis_analysis.tableau.extraction", "deis_analysis.plot")  # when it is asked to draw
            )


def test_there_is_no_cycle_and_the_house_is_not_high():
    """Depth of the longest chain of modules; a cycle would make it endless."""

    @cache
    def floor(module, above=()):
        assert module not in above, f"a cycle: {' → '.join((*above, module))}"
        below = [floor(name, (*above, module)) for name in inner(module) if name != "deis_analysis"]
        return 1 + max(below, default=0)

    assert max(floor(module) for module in MODULES if module != "deis_analysis") <= MOST_FLOORS


def loaded(code):
    """Names of the modules that ``code`` loads beyond an empty interpreter with NumPy."""
    run = f"import sys, numpy; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    return subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True).stdout.split()


def test_import_is_light():
    """The package loads nothing but itself; sampling loads sparse matrices, and neither torch nor plots."""
    assert [m for m in loaded("import deis_analysis") if not m.startswith("deis_analysis")] == []
    assert len(loaded("import deis_analysis")) == 1
    code = "import deis_analysis as da; p = da.VPLinear(); t = da.build('tab3', p, da.grid(p, 5))"
    found = loaded(f"{code}; da.run(t, lambda x, t: x, numpy.ones(2))")
    heavy = ("torch", "sympy", "matplotlib", "pandas", "jax", "torchdiffeq", "sklearn", "scipy.optimize")
    assert [m for m in found if m in heavy] == []
    assert len(found) < 400  # 300 where this was written; how long it takes: make bench


def test_the_pytest_plugin_is_light():
    """It is loaded into every test run of a user."""
    code = "import sys; import deis_analysis.audit.plugin; print(*[m for m in sys.modules if m.startswith('deis_')])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(found) <= 4
    assert "numpy" not in loaded("import deis_analysis.audit.plugin")


def test_names_are_reached_lazily():
    assert callable(deis_analysis.reference_solution)
    assert "reference_solution" in dir(deis_analysis)
    assert len(deis_analysis.__all__) <= 50
    for name in deis_analysis._WHERE:
        assert getattr(deis_analysis, name) is not None
    assert deis_analysis.learned is deis_analysis.networks
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deis_analysis.nonsense
    for package in ("analysis", "problems", "reference", "audit"):
        for name in getattr(deis_analysis, package).__all__:
            assert getattr(getattr(deis_analysis, package), name) is not None


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


def test_the_experiments_have_no_cycle_and_do_not_import_one_another_across_rooms():
    """Core and models below; an experiment may take from another of its room, training from the networks' ones."""
    root = ROOT.parent / "experiments"
    modules = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    below = {"core", "models"}

    @cache
    def imported(module):
        found = set()
        for node in ast.walk(ast.parse(modules[module].read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("experiments"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        return {name for name in found if name in modules} - {module}

    def walk(module, above):
        assert module not in above, f"a cycle: {' → '.join((*above, module))}"
        for name in imported(module):
            walk(name, (*above, module))

    for module in modules:
        walk(module, ())
        room = module.split(".")[1]
        others = {name.split(".")[1] for name in imported(module) if name.count(".") == 2}
        allowed = below | {room} | ({"networks"} if room == "training" else set())
        assert room == "__main__" or others <= allowed, f"{module} imports from {others}"


def test_validation_is_a_small_part_of_the_code():
    """Lines of `validate`, of what reads documents, and of the decorator: below 5 % of all."""
    texts = {path: path.read_text().splitlines() for path in ROOT.rglob("*.py")}
    checks = [line for name in ("validate.py", "tableau/document.py") for line in texts[ROOT / name]]
    checks += [line for lines in texts.values() for line in lines if line.strip().endswith("@checked")]
    assert 500 < len(checks) < 0.05 * sum(map(len, texts.values()))
