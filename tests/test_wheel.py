"""What a user installs: the wheel, in an environment that has only what the package declares."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLER = """
def sample(model, x, sigmas):
    for s, t in zip(sigmas[:-1], sigmas[1:]):
        x = x + (t - s) * (x - model(x, s)) / s
    return x
"""


def declared(names):
    """Distributions that are needed for ``names``, and those that they need, without anybody's extras."""
    found, todo = set(), list(names)
    while todo:
        name = re.split(r"[^A-Za-z0-9._-]", todo.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform, or optional
            continue
        found.add(name)
        todo += [need for need in needs if "extra ==" not in need]
    return found


def link(distributions, folder):
    """Only these, as links, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    for name in distributions:
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            place = Path(files[0].locate()).parents[len(files[0].parts) - 1] / top
            if place.exists() and not (folder / top).exists():
                (folder / top).symlink_to(place)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=ROOT, capture_output=True)
    (found,) = folder.glob("deis_analysis-*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """(python, folder of its packages): the wheel and what it declares."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    link(declared(requirements()), home / "needed")
    (packages / "needed.pth").write_text(f"{home / 'needed'}\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return home / "bin" / "python", home / "needed"


def requirements(extra=None):
    """What the wheel's own metadata would say."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] if extra is None else project["optional-dependencies"][extra]


def run(python, *arguments, cwd):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=cwd, env=clean, timeout=300)


def test_the_wheel_holds_the_package_and_its_networks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deis_analysis").rglob("*.py")}
    assert own <= names
    assert {name.split("/")[0] for name in names} == {"deis_analysis", wheel.name.split("-py3")[0] + ".dist-info"}
    assert any(name.startswith("deis_analysis/networks/checkpoints/digits8/") for name in names)
    assert "deis_analysis/py.typed" in names
    assert (
        "License-Expression: MIT"
        in zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    )


def test_commands_run_with_what_is_declared_only(bare, tmp_path):
    python, _ = bare
    (tmp_path / "mine.py").write_text(SAMPLER)
    shown = run(python, "-m", "deis_analysis", "--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    where = run(python, "-c", "import deis_analysis; print(deis_analysis.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1])
    audit = run(python, "-m", "deis_analysis", "audit", "mine.py:sample?convention=sigmas&order=1", cwd=tmp_path)
    assert audit.returncode == 0, audit.stderr
    assert "nearest to ddim" in audit.stdout
    doctor = run(python, "-m", "deis_analysis", "doctor", cwd=tmp_path)
    assert "pip install 'deis-analysis[models]'" in doctor.stdout, doctor.stderr
    missing = run(python, "-m", "deis_analysis", "choose", "digits8", "--nfe", "5", cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        1,
        "Error: diffusers is not installed: pip install 'deis-analysis[models]'\n",
    )
    plot = "import deis_analysis as da; p = da.VPLinear(); da.plot.stability(da.build('ddim', p, da.grid(p, 3)), p)"
    assert run(python, "-c", plot, cwd=tmp_path).stderr.splitlines()[-1] == (
        "ImportError: matplotlib is not installed: pip install 'deis-analysis[plot]'"
    )


def test_networks_load_with_their_extra(bare, tmp_path):
    python, needed = bare
    link(declared(requirements("models")), needed)
    code = "import deis_analysis as da; net = da.networks.load('digits8'); print(net.shape, net.prediction)"
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.stdout == "(1, 8, 8) eps\n", done.stderr
