"""Does a result depend on the code that runs for it, all of it, and on nothing else?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import discover
from experiments.core.sources import Sources, depends_on

ROOT = Path(__file__).parents[2]
PACKAGES = ("deis_analysis", "experiments")
NEW = ("\n\n\n", "\n\n\nNEW = 1\n\n\n")  # at the first gap: code
READ: dict[str, tuple[bytes, set[str]]] = {}
MODULES = {name: experiment.__name__ for name, experiment in discover().items()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".mplstyle"):
                target = tmp_path / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return tmp_path


def stale(folder: Path, file: str, old: str, new: str) -> set[str]:
    """The experiments whose hash changes with a replacement in a file; other folders are not read again."""
    before, after = Sources(folder, PACKAGES), Sources(folder, PACKAGES)
    before._known |= READ
    hashes = {name: before.digest(module) for name, module in MODULES.items()}
    READ.update(before._known)
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after._known |= {name: found for name, found in READ.items() if after.paths[name].parent != path.parent}
    found = {name for name, module in MODULES.items() if hashes[name] != after.digest(module)}
    path.write_text(text)
    return found


def test_a_docstring_or_comment_changes_nothing(copied):
    assert stale(copied, "deis_analysis/audit/report.py", '"""', '"""Now. ') == set()
    assert stale(copied, "deis_analysis/process/process.py", '"""', '"""Now. ') == set()
    assert stale(copied, "experiments/core/style.py", NEW[0], "\n\n# a comment\n") == set()


def test_code_changes_what_runs_it(copied):
    audits = {"field_audit", "field_history"}
    assert stale(copied, "deis_analysis/audit/report.py", *NEW) == audits
    assert stale(copied, "deis_analysis/audit/packages/diffusers/ladder.py", *NEW) == audits
    assert stale(copied, "deis_analysis/tuning/choice.py", *NEW) == {"tuned_samplers"}
    assert stale(copied, "deis_analysis/process/process.py", *NEW) == set(MODULES)
    assert stale(copied, "experiments/core/style.mplstyle", "\n", "\n# look\n") == set(MODULES)
    assert stale(copied, "experiments/study/transfer.py", "QUESTION", "ANSWER") == {"transfer"}
    assert stale(copied, "experiments/core/runner.py", *NEW) == set()
    trained = stale(copied, "experiments/models/toy_network.py", *NEW)
    assert "fig3_discretization" in trained
    assert not trained & {"transfer", "convergence", "field_audit"}


def test_a_new_file_of_a_folder_that_is_loaded_whole_counts(copied):
    before = Sources(copied, PACKAGES).digest(MODULES["transfer"])
    new = copied / "deis_analysis" / "solvers" / "mine.py"
    new.write_text("X = 1\n")
    assert Sources(copied, PACKAGES).digest(MODULES["transfer"]) != before
    new.unlink()


@pytest.mark.parametrize("name", ["transfer", "convergence"])
def test_all_that_is_loaded_by_a_run_is_reached(name):
    """The authority is the interpreter: what a quick run loads."""
    code = f"""
import sys, importlib, deis_analysis
module = importlib.import_module({MODULES[name]!r})
config = {{**module.CONFIG, **module.QUICK}}
frame = module.compute(config, lambda share: None)
module.verdict(frame, config)
print(*sorted(m for m in sys.modules if m.split(".")[0] in {PACKAGES!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    reached = set(Sources(ROOT, PACKAGES).reached(MODULES[name]))
    assert loaded - reached == set()
    assert len(reached) < 100  # of 200: not simply all


def test_it_is_one_hash_in_one_process():
    assert depends_on(MODULES["transfer"]) == depends_on(MODULES["transfer"])
    assert depends_on(MODULES["transfer"]) != depends_on(MODULES["convergence"])
