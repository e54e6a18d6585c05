"""What notebooks show: tables that say what the objects hold, HTML that cannot be broken out of, pictures."""

from __future__ import annotations

import html.parser
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import deis_analysis as da
from deis_analysis import plot

matplotlib.use("Agg")
PROCESS = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
TS = da.grid(PROCESS, 4)
TABLE = da.build("tab3", PROCESS, TS)
X = MIX.sample(40, 0, PROCESS, 1.0)


class Reader(html.parser.HTMLParser):
    """Rows of cells; fails on tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(shown):
    reader = Reader()
    reader.feed(shown)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def choice():
    return da.choose("mixture", (5, 8), samples=8, solvers=["ddim", "tab2"], grids=["t2"], certify=False)


@pytest.fixture(scope="module")
def found():
    network = da.GaussianMixture([0.42, 0.58], [-1.0, 0.8], [0.05, 0.11])
    return da.error_budget(network, MIX, "tab3", 6, process=PROCESS, x_T=X)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_a_butcher_form_shows_its_numbers():
    form = TABLE.butcher()
    rows = read(form._repr_html_()).rows
    assert rows[0] == ["t", "x_T", "p0", "p1", "p2", "p3"]
    assert len(rows) == 1 + 4 + 1
    result = [float(cell) for cell in rows[-1][1:]]
    np.testing.assert_allclose(result, [form.start[-1], *form.weights[-1]], rtol=1e-3)
    assert form._repr_latex_() == TABLE._repr_latex_()
    wide = read(da.build("tab3", PROCESS, da.grid(PROCESS, 40)).butcher()._repr_html_()).rows
    assert len(wide) == 1 + 13 + 1
    noisy = read(da.build("ddpm", PROCESS, TS).butcher()._repr_html_()).rows
    assert noisy[0][-4:] == ["z0", "z1", "z2", "z3"]


def test_a_table_shows_a_row_per_node():
    assert len(read(TABLE._repr_html_()).rows) == 1 + 5
    assert r"\begin{array}" in TABLE._repr_latex_()


def test_a_budget_shows_its_terms(found):
    rows = read(found._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [*found.terms, "total"]
    assert float(rows[-1][1]) == pytest.approx(found.norms()["total"], rel=1e-3)
    assert sum(float(row[2].rstrip("%")) for row in rows[1:-1]) == pytest.approx(100, abs=0.5)
    latex = found._repr_latex_()
    assert latex.count(r"\\") == len(found.terms) + 1
    assert all(name in latex for name in found.terms)


def test_a_choice_shows_verdicts_and_ranking(choice):
    shown = read(choice._repr_html_())
    assert all(choice.verdict(nfe) in shown.text for nfe in (5, 8))
    assert [row[0] for row in shown.rows[1:]] == ["5", "5", "8", "8"]


def test_a_tuned_sampler_shows_before_and_after():
    tuned = da.tune("mixture", 3, samples=16, held_out=8, rounds=1, certify=False)
    shown = read(tuned._repr_html_())
    assert tuned.verdict() in shown.text
    rms = next(row for row in shown.rows if row[0] == "rms")
    assert float(rms[1]) == pytest.approx(tuned.report["before"]["rms"], rel=1e-3)


def test_a_report_shows_findings_and_escapes():
    report = da.audit_sampler(lambda model, x, sigmas: 1 / 0, convention="sigmas", spec="<script>alert(1)</script>")
    shown = report._repr_html_()
    assert "<script>" not in shown
    assert "RUN-FAILED" in read(shown).text
    fine = read(da.audit_sampler("registry:tab2", nfe=8)._repr_html_())
    assert "nearest to tab2" in fine.text


def test_trajectories_are_the_states_of_the_run():
    ax = plot.trajectories(TABLE, MIX.eps(PROCESS), X)
    assert len(ax.lines) == 40
    ends = np.array([line.get_ydata()[-1] for line in ax.lines])
    np.testing.assert_allclose(ends, da.run(TABLE, MIX.eps(PROCESS), X))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), TS)
    plane = da.GaussianMixture([1.0], [[0.0, 1.0]], [0.1])
    ax = plot.trajectories(TABLE, plane.eps(PROCESS), plane.sample(5, 0, PROCESS, 1.0))
    assert len(ax.lines) == 6
    with pytest.raises(ValueError, match="x_T has shape"):
        plot.trajectories(TABLE, MIX.eps(PROCESS), np.zeros((3, 4)))


def test_work_precision_takes_a_choice_and_numbers(choice):
    assert len(plot.work_precision(choice).get_legend_handles_labels()[1]) == 2
    ax = plot.work_precision({"a": {5: 0.1, 10: (0.05, 0.04, 0.07)}, "b": {5: 0.2}})
    assert ax.get_xscale() == ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [0.1, 0.05])
    for bad in ({}, {"a": {}}, {"a": {5: 0.0}}, {"a": {5: np.nan}}):
        with pytest.raises(ValueError, match="results"):
            plot.work_precision(bad)


def test_stability_is_the_transfer_over_the_exact_one():
    v = np.array([0.1, 1.0])
    ax = plot.stability([TABLE], PROCESS, v)
    exact = da.exact_transfer(PROCESS, v, TS[0], TS[-1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), da.transfer(TABLE, PROCESS, v) / exact)
    with pytest.raises(ValueError, match="variances"):
        plot.stability(TABLE, PROCESS, [0.0])


def test_budget_bars_are_the_norms(found):
    ax = plot.budget(found)
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths, list(found.norms().values()))


def test_given_axes_are_drawn_into():
    _, ax = plt.subplots()
    assert plot.stability(TABLE, PROCESS, ax=ax) is ax


def test_plots_are_loaded_when_asked_for_and_named_by_their_extra():
    code = "import deis_analysis as da, sys; da.plot; assert 'matplotlib' not in sys.modules; "
    code += (
        "sys.modules['matplotlib'] = None; p = da.VPLinear(); da.plot.stability(da.build('ddim', p, da.grid(p, 3)), p)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: matplotlib is not installed: pip install 'deis-analysis[plot]'"
