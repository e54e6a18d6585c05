"""Choosing: many tables at once are what each is alone, rankings are those of exact errors, bands hold."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import deis_analysis as da
from deis_analysis.cli import main
from deis_analysis.tuning import GRIDS, choose, run_together, target_of
from deis_analysis.tuning.candidates import CUSTOMARY, PUBLISHED, Cell, cells, solver_rows
from deis_analysis.tuning.choice import Choice
from deis_analysis.tuning.judged import Judged, judge, rank_bands, ratio_band
from deis_analysis.tuning.page import choice_page
from deis_analysis.tuning.race import Ranked, planned, rounds

VP = da.VPLinear()
GAUSSIAN = da.GaussianMixture([1.0], np.zeros((1, 2)), np.array([[0.3, 0.02]]))


class Counted:
    """A typed model that counts the samples it is asked about, and how often it is told one time."""

    def __init__(self, model):
        self.model, self.process, self.prediction = model, model.process, model.prediction
        self.samples, self.times = 0, []

    def __call__(self, x, t):
        self.samples += len(x)
        self.times.append(t)
        return self.model(x, t)


# -- many tables at once --------------------------------------------------------------------------
DETERMINISTIC = tuple(name for name, row in da.SOLVERS.items() if not row.stochastic)


@given(st.lists(st.sampled_from(DETERMINISTIC), min_size=1, max_size=6), st.sampled_from(CUSTOMARY), st.integers(8, 13))
def test_together_is_what_each_is_alone(names, kind, steps):
    model = Counted(GAUSSIAN.eps(VP))
    steps += -steps % 12  # whole blocks of every row
    tables = [da.build(name, VP, da.grid(VP, steps, kind)) for name in names]
    x = np.random.default_rng(0).standard_normal((3, 2))
    asked = []
    ends = run_together(tables, model, x, asked=asked.append)
    for table, end in zip(tables, ends, strict=True):
        alone = da.run(table, GAUSSIAN.eps(VP), x)
        np.testing.assert_allclose(end, alone, rtol=0, atol=1e-7 * (1 + np.abs(alone).max()))
    assert sum(asked) == model.samples
    assert model.samples <= 3 * (sum(table.nfe for table in tables) - len(tables) + 1)  # the first call is shared


def test_equal_tables_cost_one_and_batches_are_bounded():
    model = Counted(GAUSSIAN.eps(VP))
    table = da.build("tab3", VP, da.grid(VP, 6))
    x = np.random.default_rng(0).standard_normal((4, 2))
    run_together([table, table, table.changed(name="again")], model, x)
    assert model.samples == 6 * 4
    grids = [da.grid(VP, 6, kind) for kind in CUSTOMARY]
    sizes = []
    run_together([da.build("ddim", VP, ts) for ts in grids], model, x, most=8, asked=sizes.append)
    assert max(sizes) <= 8


def test_torch_states_of_any_shape():
    x = torch.randn(2, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = da.Model(lambda u, t: torch.tanh(u) * t, VP, "eps")
    tables = [da.build(name, VP, da.grid(VP, 5)) for name in ("dpmpp_2m", "tab2")]
    for table, end in zip(tables, run_together(tables, model, x), strict=True):
        torch.testing.assert_close(end, da.run(table, model, x))


@pytest.mark.parametrize("name", ["ddpm", "sde_dpmpp_2m"])
def test_tables_with_noise_are_refused(name):
    with pytest.raises(ValueError, match="draws noise"):
        run_together([da.build(name, VP, da.grid(VP, 5))], GAUSSIAN.eps(VP), np.ones((2, 2)))


# -- candidates -----------------------------------------------------------------------------------
def test_each_method_is_there_once_with_exactly_the_calls():
    target = target_of(GAUSSIAN)
    some = cells(target, 6, solver_rows(None, False), CUSTOMARY)
    assert all(cell.table.nfe == 6 for cell in some)
    for kind in CUSTOMARY:
        same = [cell for cell in some if cell.grid == kind]
        for i, a in enumerate(same):
            for b in same[:i]:
                if a.table.prediction == b.table.prediction:
                    assert da.distance(a.table, b.table) > 1e-11, (a.label, b.label)
    labels = {cell.label for cell in some}
    assert "ddim on t2" in labels
    assert "dpmpp_1 on t2" not in labels  # DDIM under another name
    assert set(PUBLISHED) <= set(da.SOLVERS)
    assert not any(da.SOLVERS[name].stochastic for name in PUBLISHED)


# -- what is measured -----------------------------------------------------------------------------
def test_flips_and_errors_are_apart():
    truth = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    ends = truth + 0.01
    ends[3] = [1.02, 0.98]  # ends at another sample's place
    found = judge(ends, truth)
    assert found.flips.tolist() == [False, False, False, True]
    assert np.isclose(found.unflipped(), 0.01)
    assert np.isclose(found.rms, np.sqrt((3 * 0.01**2 + (1.98**2 + 2.02**2) / 2) / 4))
    assert np.isclose(found.median, 0.01)
    lost = judge(np.full((4, 2), np.nan), truth)
    assert lost.rms == math.inf
    assert lost.flips.all()
    assert math.isnan(lost.unflipped())


def test_bands_hold_the_mean_of_the_law_in_95_of_100():
    """Of exponential squares, whose mean is known, over 400 sets of 64."""
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(400):
        squares = rng.exponential(1.0, 64)
        low, high = judge_of(squares).band
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 400 <= 0.98  # the bootstrap of the percentile is a little short at 64


def judge_of(squares):
    return type(judge(np.zeros((2, 1)), np.zeros((2, 1))))(squares, np.zeros(squares.size, bool), 0.0, (0.0, 0.0))


def test_a_paired_ratio_is_sharper_than_its_parts():
    rng = np.random.default_rng(0)
    squares = rng.exponential(1.0, 64) ** 3
    ratio, low, high = ratio_band(0.81 * squares, squares)
    assert np.allclose((ratio, low, high), 0.9)
    bands = rank_bands(np.stack([squares, 0.81 * squares, 1.21 * squares]))
    assert bands.tolist() == [[2, 2], [1, 1], [3, 3]]
    noisy = rank_bands(rng.exponential(1.0, (3, 64)))
    assert (noisy[:, 1] - noisy[:, 0]).max() >= 1


# -- the choice -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def choice():
    return choose("mixture", (5, 10), samples=64)


def test_the_ranking_is_that_of_exact_errors(choice):
    """Every cell run on its own against the exact flow: none that was left out is better than the first."""
    target = target_of("mixture")
    x = target.noise(64, 0)
    truth = target.exact.flow(VP, x, target.t_start, target.t_end)
    errors = {
        cell.label: float(np.sqrt(np.mean((da.run(cell.table, target.model, x) - truth) ** 2)))
        for cell in cells(target, 5, solver_rows(None, False), CUSTOMARY)
    }
    errors |= {entry.cell.label: entry.judged.rms for entry in choice.ranking[5] if entry.cell.grid in GRIDS}
    first = choice.ranking[5][0]
    assert first.cell.label == min(errors, key=errors.get)
    for entry in choice.ranking[5]:
        assert np.isclose(entry.judged.rms, errors[entry.cell.label], rtol=1e-9)
    assert choice.ranking[5][0].ranks[0] == 1
    assert choice.reference == "exact flow"
    assert len(choice.table) == sum(map(len, choice.ranking.values()))


def test_best_and_fewest(choice):
    assert choice.best(5).nfe == 5
    alike = choice.alike(10)
    assert choice.best(10).memory == min(entry.cell.table.memory for entry in alike)
    first = choice.ranking[5][0].judged
    assert choice.fewest(first.band[1] * 1.001)[0] == 5
    assert choice.fewest(choice._best(10).judged.band[1] * 1.001)[0] == 10
    assert choice.fewest(1e-9) is None
    with pytest.raises(ValueError, match=r"nfe=7 was not measured; allowed: 5, 10"):
        choice.best(7)
    with pytest.raises(ValueError, match="error"):
        choice.fewest(-1.0)


def test_of_what_cannot_be_told_apart_the_least_memory_is_best():
    """Three samplers with equal errors, and a fourth that is clearly worse and keeps less."""
    names = ("ipndm4", "tab3", "tab1", "ddim")
    entries = []
    for name, error in zip(names, (1.0, 1.0, 1.0, 9.0), strict=True):
        table = da.build(name, VP, da.grid(VP, 6))
        judged = Judged(error * np.linspace(0.9, 1.1, 40), np.zeros(40, bool), 0.1, (0.0, 0.2))
        entries.append(Ranked(Cell(name, "t2", 6, table), judged, 40))
    made = Choice("m", {6: tuple(entries)}, 40, 0, "exact flow", 0, 0.0)
    memories = [entry.cell.table.memory for entry in entries]
    assert memories[3] < memories[2] < min(memories[:2])
    assert [entry.cell.solver for entry in made.alike(6)] == ["ipndm4", "tab3", "tab1"]
    assert made.best(6) is entries[2].cell.table
    assert "it keeps the fewest arrays" in made.verdict(6)


def test_the_same_seed_gives_the_same_ranking(choice):
    again = choose("mixture", 5, samples=64)
    assert [e.row() for e in again.ranking[5]] == [e.row() for e in choice.ranking[5]]


def test_what_is_spent_is_planned():
    target, rows = target_of("mixture"), solver_rows(None, False)
    found = choose("mixture", 5, samples=64, grids=CUSTOMARY)
    assert found.calls <= planned(len(cells(target, 5, rows, CUSTOMARY)), 5, 64)
    assert choose("mixture", 5, samples=64, grids=CUSTOMARY, budget=4000).calls <= 4000
    assert [size for _, size in rounds(300, 64)] == [4, 16, 64]
    assert [count for count, _ in rounds(300, 64)] == [300, 75, 19]


def test_grids_that_know_the_model_cost_one_bank():
    """60 calls of a bank, 120 of its denoising losses, 59 of its scores, on 64 states, whatever the steps."""
    found = choose("mixture", (5, 6), samples=16, solvers=["ddim", "tab3"], grids=["entropic", "ays", "score_optimal"])
    race = 2 * planned(6, 5, 16)
    assert (60 + 120 + 59) * 64 < found.calls <= (60 + 120 + 59) * 64 + 2 * race
    assert {entry.cell.grid for entry in found.ranking[5]} == {"entropic", "ays", "score_optimal"}


def test_noise_is_ranked_by_law():
    found = choose("mixture", 10, samples=64, with_noise=True, solvers=["ddim", "tab3", "ddpm", "sde_dpmpp_2m"])
    assert found.by == "law"
    assert any(entry.cell.table.stochastic for entry in found.ranking[10])
    laws = [(entry.judged.law, entry.judged.law_band[1]) for entry in found.ranking[10]]
    assert laws == sorted(laws)
    assert all(entry.ranks is None for entry in found.ranking[10])
    for entry in found.alike(10):
        assert entry.judged.law_band[0] <= found.ranking[10][0].judged.law_band[1]
    assert "&lt; " in choice_page(found)


def test_a_typed_model_of_ones_own_needs_its_shape():
    model = da.Model(lambda x, t: GAUSSIAN.eps(VP)(x, t), VP, "eps")
    found = choose(model, 5, shape=(2,), samples=16, solvers=["ddim", "tab3"], grids=["t2"], certify=False)
    assert found.ranking[5][0].cell.solver == "tab3"
    assert "steps doubled" in found.reference


def test_what_is_not_installed_is_named(monkeypatch):
    from deis_analysis.tuning import target

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    target._embedded.cache_clear()
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'deis-analysis\[models\]'"):
        choose("digits", 5)


def test_a_network_that_ships():
    found = choose("digits8", 5, samples=8, solvers=["ddim", "tab3"], grids=["t2"], certify=False)
    assert found.ranking[5][0].cell.label == "tab3 on t2"
    assert set(found.pictures) == {"5 calls: tab3 on t2", "ground truth"}
    text = choice_page(found)
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_and_json_are_whole(choice):
    text = choice_page(choice)
    for entry in choice.ranking[5][:3]:
        assert entry.cell.solver in text
    assert text.count("<svg") == 1
    data = json.loads(json.dumps(choice.to_dict()))
    assert data["verdicts"]["5"] == choice.verdict(5)
    assert data["table"][0]["solver"] == choice.ranking[5][0].cell.solver


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda x, t: x, {}, "does not say what it predicts"),
        ("no_such_network", {}, "no_such_network"),
        ("nothing.py:make", {}, "there is no file"),
        (da.Model(lambda x, t: x, VP, "eps"), {}, "shape=None"),
        (da.Model(lambda x, t: x, VP, "eps"), {"shape": (0,)}, "shape=0"),
        (da.Model(lambda x, t: x * np.nan, VP, "eps"), {"shape": (2,)}, "NaN or infinity at t="),
        (da.Model(lambda x, t: x if t > 0.5 else x / 0.0, VP, "eps"), {"shape": (2,)}, "NaN or infinity at t="),
        (da.Model(lambda x, t: x[:, :1], VP, "eps"), {"shape": (2,)}, r"answers \(2, 1\) to \(2, 2\)"),
        (da.Model(lambda x, t: 1 / 0, VP, "eps"), {"shape": (2,)}, "failed at t=1: ZeroDivisionError"),
        ("mixture", {"nfe": 0}, "nfe=0"),
        ("mixture", {"nfe": 2.5}, "nfe=2.5"),
        ("mixture", {"samples": 4}, "samples=4"),
        ("mixture", {"solvers": ["tab33"]}, "tab33.*nearest"),
        ("mixture", {"solvers": ["edm_heun"], "nfe": 4}, "no sampler makes exactly 4 calls"),
        ("mixture", {"solvers": ["ddpm"]}, "no sampler makes exactly 5 calls"),
        ("mixture", {"grids": ["karras"]}, "karras"),
        ("mixture", {"budget": 10}, r"budget=10 \(at 5 calls\) is too small"),
        ("mixture", {"t_start": 2.0}, "t_start=2.0"),
        ("mixture", {"t_start": 0.1, "t_end": 0.5}, "must be below"),
        ("mixture", {"with_noise": "yes"}, "with_noise='yes'"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_input(model, options, message):
    with pytest.raises(ValueError, match=message):
        choose(model, **{"nfe": 5, "samples": 16, **options})


# -- the command ----------------------------------------------------------------------------------
OWN = """
import deis_analysis as da

def make():
    return da.Model(lambda x, t: x * da.VPLinear().sigma(t), da.VPLinear(), "eps")

def mixture():
    return da.GaussianMixture([1.0], [[0.0, 0.0]], [[0.3, 0.02]])

if "own_ddim" not in da.SOLVERS:
    da.register("own_ddim", alias="ddim", source="this file")
"""


def call(*arguments):
    result = CliRunner().invoke(main, ["choose", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command(tmp_path):
    file, page = tmp_path / "own.py", tmp_path / "page.html"
    file.write_text(OWN)
    try:
        status, text = call(
            f"{file}:mixture", "--nfe", "5", "--samples", 16, "--solvers", "own_ddim,tab3", "--grids", "t2,rho7",
            "--import", file, "--html", page, "--error", "0.5", "--no-certify",
        )  # fmt: skip
    finally:
        da.SOLVERS.pop("own_ddim", None)
    assert status == 0, text
    assert "own_ddim" in text
    assert "RMS below 0.5: 5 calls" in text
    assert "own_ddim" in page.read_text()
    status, text = call("mixture", "--nfe", "5", "--samples", 16, "--solvers", "ddim", "--grids", "t2", "--json")
    assert status == 0
    assert json.loads(text[text.index("{") :])["model"] == "mixture"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixture", "--nfe", "5,x"), "nfe='5,x'"),
        (("mixture", "--html", "/no/such/folder/page.html"), "there is no folder"),
        (("mixture", "--solvers", "tab33"), "tab33"),
        (("mixture", "--import", "nothing.py"), "there is no file"),
        (("nothing.py:f",), "there is no file"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message):
    status, text = call(*arguments)
    assert status == 2
    assert message in text
