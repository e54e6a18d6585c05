"""Where a command is to write is tried before it works: on a full disk nothing is computed that would be lost."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import deis_analysis as da
from deis_analysis import audit
from deis_analysis.cli import main
from deis_analysis.interop import command as export
from experiments import __main__ as experiments
from experiments import discover
from experiments.models import studies
from experiments.training import train, train_features

QUICK = "transfer"
# (command, option) → what is given beside it; the option is last, and PLACE a folder
WRITE = {
    ("choose", "--html"): ["mixture", "--html", "PLACE/page.html"],
    ("choose", "--cache"): ["mixture", "--cache", "PLACE/cache"],
    ("tune", "--out"): ["mixture", "--nfe", "3", "--out", "PLACE/table.json"],
    ("tune", "--cache"): ["mixture", "--nfe", "3", "--out", "table.json", "--cache", "PLACE/cache"],
    ("audit", "--json"): ["registry:ddim", "--json", "PLACE/a.json"],
    ("audit", "--html"): ["registry:ddim", "--html", "PLACE/a.html"],
    ("audit", "--junit"): ["registry:ddim", "--junit", "PLACE/a.xml"],
    ("audit", "--sarif"): ["registry:ddim", "--sarif", "PLACE/a.sarif"],
    ("export", "dest"): ["ddim", "--process", "VPLinear", "--to", "json", "PLACE/table.json"],
    ("run", "--out"): [QUICK, "--quick", "--out", "PLACE"],
    ("run", "--units"): ["rectified_flow", "--quick", "--executor", "here", "--units", "PLACE/units"],
    ("reproduce", "--out"): [QUICK, "--quick", "--out", "PLACE"],
    ("train", "--out"): ["--data", "digits", "--steps", "1", "--out", "PLACE/net"],
    ("train-features", "--out"): ["--data", "digits", "--epochs", "1", "--out", "PLACE/features"],
    ("certify", "--out"): ["--model", "digits8", "--samples", "1", "--out", "PLACE/references"],
}
MORE = {
    ("export", "a folder"): ["export", "ddim", "--process", "VPLinear", "--to", "comfyui", "PLACE/node"],
    ("audit", "a folder"): ["audit", "--all", "registry", "--html", "PLACE/pages"],
}
READ = {  # paths that a command reads, or that it writes without having worked
    *(("list", "--out"), ("redraw", "--out"), ("train", "--data-root"), ("train-features", "--data-root")),
    *((name, "--import") for name in ("choose", "tune", "tableau", "order", "run")),
}
COMMANDS = {**main.commands, **experiments.main.commands}


def paths():
    """(command, option) of all that take a path."""
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                yield name, parameter.opts[0]


def call(name, arguments, place):
    given = [text.replace("PLACE", str(place)) for text in arguments]
    result = CliRunner().invoke(COMMANDS[name], given)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def idle(monkeypatch):
    """Whatever takes time fails the test."""
    for owner, name in (
        (da, "choose"), (da, "tune"), (audit, "audit_sampler"), (export, "_build"), (train, "_watched"),
        (train_features, "fit"), (studies, "network_path"), (discover()[QUICK], "compute"),
        (discover()["rectified_flow"], "compute"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def test_every_option_that_names_a_place_is_looked_at():
    assert set(paths()) == {*WRITE, *READ}


@pytest.mark.parametrize("what", [*WRITE, *MORE], ids=" ".join)
def test_a_full_disk_is_told_before_the_work(what, tmp_path, monkeypatch, idle):
    name, *arguments = [what[0], *WRITE[what]] if what in WRITE else MORE[what]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        status, said = call(name, arguments, tmp_path)
    assert status == 2, said
    assert "No space left on device" in said
    assert what[1].upper() in said.upper() or str(tmp_path) in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
