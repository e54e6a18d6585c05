"""A newcomer's day: a sampler is one file and no list; a foreign package is one file beside its extra in pyproject."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import deis_analysis

# asynchronous leapfrog, two states: x and the velocity v [Zhuang et al. 2021, arXiv 2102.04668]
SAMPLER = """
from deis_analysis.solvers.registry import family
from deis_analysis.tableau.recorder import Recorder
def leapfrog(process, ts):
    r, rho, alpha = Recorder(process, ts), process.rho(ts), process.alpha(ts)
    y, v = r.x_T / alpha[0], r.call(r.x_T)
    for n, h in enumerate(rho[1:] - rho[:-1]):
        middle, t = y + h / 2 * v, process.time_from_rho(rho[n] + h / 2)
        v = 2 * r.call(process.alpha(t) * middle, t) - v
        y = r.node(alpha[n + 1] * (middle + h / 2 * v)) / alpha[n + 1]
    return r.tableau("leapfrog")
family(leapfrog, family="reversible", variable="rho", extra_calls=1)("leapfrog", 2, 1, source="arXiv 2102.04668")
"""
PACKAGE = """
from deis_analysis.audit.subject import TableSubject
from deis_analysis.solvers import build
INSTALL, CATALOGUE = "pip install click", ("tab2",)
def adapt(spec, name, options):
    return TableSubject(spec, lambda process, ts: build(name, process, ts), 3)
"""
MEASURE = """
import deis_analysis as da
row, found = da.SOLVERS["leapfrog"], da.measure(da.SOLVERS["leapfrog"])
assert abs(found.order.slope - row.order) < 0.1, found.order
assert abs(found.order_exact_start.slope - row.order_exact_start) < 0.1, found.order_exact_start
assert (found.degree, found.stages, found.extra_calls) == (row.degree, row.stages, row.extra_calls), found
report = da.audit_sampler("click:tab2")
assert report.nearest["name"] == "tab2", report.nearest
assert report.worst in (None, "info"), report.findings
assert da.audit.catalogue("click") == ["click:tab2"]
print(da.__file__)
"""


def test_a_sampler_is_twelve_lines_in_one_file_and_a_package_one_file(tmp_path):
    source, copy = Path(deis_analysis.__file__).parent, tmp_path / "deis_analysis"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    assert len(SAMPLER.strip().splitlines()) <= 12
    (copy / "solvers" / "leapfrog.py").write_text(SAMPLER)
    (copy / "audit" / "packages" / "click.py").write_text(PACKAGE)
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(copy / "__init__.py")
