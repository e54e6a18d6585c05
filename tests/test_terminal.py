"""Any terminal: encodings without Greek, pipes that close, narrow screens, full disks, Ctrl-C; a line, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata

import pytest
from click.testing import CliRunner

from deis_analysis import doctor, terminal
from deis_analysis.cli import main
from experiments import discover

COMMANDS = [
    ("--help",),
    ("solvers", "--declared"),
    ("steppers",),
    ("derive",),
    ("derive", "weights-eps-rho"),
    ("tableau", "tab3", "--steps", "3"),
    ("audit", "--help"),
]


def run(*command, head=None, of="deis_analysis", **environment):
    """(status, bytes of stdout, text of stderr); with ``head`` the pipe is closed after so many bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", of, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | environment,
    )
    if head is None:
        out, errors = process.communicate(timeout=120)
    else:
        out = process.stdout.read(head)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=120)
    return process.returncode, out, errors.decode(errors="replace")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_encodings_without_greek(command, encoding):
    status, out, errors = run(*command, PYTHONIOENCODING=encoding)
    assert (status, errors) == (0, "")
    assert "?" not in out.decode(encoding).replace("CLASS?", "").replace("FUNCTION?", "").replace("function?", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_list_of_experiments_without_greek(encoding, tmp_path):
    status, out, errors = run("list", "--out", str(tmp_path), of="experiments", PYTHONIOENCODING=encoding)
    assert (status, errors) == (0, "")
    assert b"fig2_fitting_error" in out
    assert out.decode(encoding).count("?") == sum(one.QUESTION.count("?") for one in discover().values())


def test_plain_letters():
    said = {"ρ": "rho", "Δ": "Delta", "λ": "lambda", "₀": "0", "é": "e", "…": "...", "┃": "|", "─": "-", "┼": "+"}
    assert {letter: terminal.plain(letter) for letter in said} == said
    assert terminal.plain("好") == "?"
    greek = [chr(i) for i in range(0x370, 0x400) if "LETTER" in unicodedata.name(chr(i), "")]
    assert all(terminal.plain(letter).isascii() for letter in greek)


def test_one_line_a_sampler_in_a_pipe_and_on_a_narrow_screen():
    from deis_analysis import SOLVERS

    for environment in ({}, {"COLUMNS": "80"}, {"COLUMNS": "120"}):
        lines = run("solvers", "--declared", **environment)[1].decode().splitlines()
        assert [line.split()[0] for line in lines[1:]] == list(SOLVERS)
        assert max(map(len, lines)) <= int(environment.get("COLUMNS", 10_000))
    assert "arXiv" in run("solvers", "--declared", COLUMNS="120")[1].decode()


@pytest.mark.parametrize("command", COMMANDS[:5], ids=" ".join)
def test_closed_pipes(command):
    status, out, errors = run(*command, head=20)
    assert len(out) == 20
    assert (status in (0, 1), errors) == (True, "")


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deis_analysis", "solvers", "--declared"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_no_colour():
    status, out, _ = run("audit", "registry:ddim", "--nfe", "5", NO_COLOR="1", FORCE_COLOR="1")
    coloured = run("audit", "registry:ddim", "--nfe", "5", FORCE_COLOR="1")[1]
    assert status == 0
    assert b"\x1b[3" not in out
    assert b"\x1b[" in coloured


def test_an_interrupt_while_importing_is_one_line(tmp_path):
    (tmp_path / "rich.py").write_text("import time\nopen('started', 'w').close()\ntime.sleep(60)\n")
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in jobs
    start += "runpy.run_module('deis_analysis', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "--help"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_missing_package_is_one_line(tmp_path):
    (tmp_path / "diffusers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'diffusers'\", name='diffusers')\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    status, _, errors = run("choose", "digits8", "--nfe", "5", PYTHONPATH=path)
    assert status == 1
    assert errors == "Error: diffusers is not installed: pip install 'deis-analysis[models]'\n"


def test_the_doctor(tmp_path):
    (tmp_path / "deis_analysis").mkdir()
    (tmp_path / "deis_analysis" / "x.npz").write_bytes(b"0" * 3 * 2**20)
    result = CliRunner().invoke(main, ["doctor", "--json"], env={"XDG_CACHE_HOME": str(tmp_path)})
    found = json.loads(result.output)
    assert found["cache"]["size"] == "3.0 MiB"
    assert found["versions"]["numpy"] == __import__("numpy").__version__
    assert found["extras"]["models"].startswith("complete: diffusers")
    assert found["downloads"]["by this package"].startswith("nothing")
    plain = CliRunner().invoke(main, ["doctor"]).output
    assert "devices\n  cpu " in plain


def test_extras_are_read_as_they_are_declared():
    of_plot = ["matplotlib>=3.8; extra == 'plot'", "foo-bar[x]>=1; extra == 'plot'"]
    of_all = ["deis-analysis[plot]; extra == 'all'", "nowhere; extra == 'all'"]
    needed, extras = doctor.requirements(["numpy>=1.26", *of_plot, *of_all])
    assert needed == ["numpy"]
    assert extras == {"all": ["nowhere", "matplotlib", "foo-bar"], "plot": ["matplotlib", "foo-bar"]}
    assert doctor._state("all", extras["all"]) == "without nowhere, foo-bar: pip install 'deis-analysis[all]'"
    assert doctor.version("nowhere") is None
