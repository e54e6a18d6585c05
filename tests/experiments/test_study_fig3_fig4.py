"""Do the studies of discretisation and extrapolation measure what they say, and do their sentences turn?"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import deis_analysis as da
from experiments.models import problems
from experiments.paper import fig3_discretization as fig3
from experiments.paper import fig4_extrapolation as fig4

VP = da.VPLinear(0.1, 20.0)
C3, C4 = ({**m.CONFIG, **m.QUICK, "models": ["mixture", "gaussian", "digits"]} for m in (fig3, fig4))
EXACT = {"mixture": problems.product_mixture(), "gaussian": problems.gaussian_like(problems.digits(), 1e-4)}


@pytest.fixture(scope="module")
def discretization():
    return fig3.compute(C3, lambda share: None)


@pytest.fixture(scope="module")
def extrapolation():
    return fig4.compute(C4, lambda share: None)


def uniform(n):
    return np.linspace(1.0, 1e-3, n + 1)


def gap_to_exact(name, method, ts, samples):
    """Error of a first-order method, by hand in NumPy: one formula a step."""
    mix = EXACT[name]
    eps, x = mix.eps(VP), problems.noise(samples, mix.dimension, 0)
    exact = mix.flow(VP, x, 1.0, 1e-3)
    for t, s in itertools.pairwise(ts):
        e, sigma, psi = eps(x, t), VP.sigma(t), VP.alpha(s) / VP.alpha(t)
        if method == "euler":
            x = x + (t - s) * (0.1 + 19.9 * t) / 2 * (x - e / sigma)
        elif method == "ei_score":
            x = psi * x - (psi - 1) * e / sigma
        else:
            x = psi * x + (VP.sigma(s) - psi * sigma) * e
    return x - exact


# -- figure 3: numbers ----------------------------------------------------------------------------
@pytest.mark.parametrize("method", fig3.SOLVERS)
@pytest.mark.parametrize("name", EXACT)
def test_errors_are_those_of_the_formulas(discretization, name, method):
    rows = discretization[(discretization.model == name) & (discretization.solver == method)].set_index("steps")
    for n in (5, 20):
        gap, euler = (gap_to_exact(name, m, uniform(n), C3["samples"]) for m in (method, "euler"))
        assert rows["mean"][n] == pytest.approx(abs(gap).mean(), rel=1e-6)
        assert rows.rms[n] == pytest.approx((gap**2).mean() ** 0.5, rel=1e-6)
        if method != "euler":
            assert rows.mean_ratio[n] == pytest.approx(abs(gap).mean() / abs(euler).mean(), rel=1e-6)
            assert rows.rms_ratio[n] == pytest.approx(((gap**2).mean() / (euler**2).mean()) ** 0.5, rel=1e-6)
            assert rows.mean_low[n] < rows.mean_ratio[n] < rows.mean_high[n]
            assert rows.rms_low[n] < rows.rms_ratio[n] < rows.rms_high[n]


@pytest.mark.parametrize("name", EXACT)
def test_delta_s_is_the_distance_to_the_true_score(discretization, name):
    mix, ts = EXACT[name], uniform(C3["path_steps"])
    x = problems.noise(C3["path_samples"], mix.dimension, 0)
    for step in (2, 9):
        t, s = ts[step], ts[step + 1]
        now, then = (mix.flow(VP, x, 1.0, u) for u in (t, s))
        frozen = {"score": mix.score(VP)(now, t), "eps": -mix.eps(VP)(now, t) / VP.sigma(s)}
        for kind, value in frozen.items():
            rows = discretization[(discretization.model == name) & (discretization.frozen == kind)]
            got = rows[(rows.step == step) & np.isclose(rows.t, s, rtol=0, atol=1e-12)].delta.item()
            assert got == pytest.approx(((value - mix.score(VP)(then, s)) ** 2).mean() ** 0.5, rel=1e-6)


def test_interval_of_a_common_factor_is_that_factor():
    euler = np.random.default_rng(1).standard_normal((50, 3))
    rows = {row["solver"]: row for row in fig3.compare({"euler": euler, "ei_score": 3 * euler, "ddim": -euler / 2}, 0)}
    for solver, factor in (("ei_score", 3.0), ("ddim", 0.5)):
        for measure in fig3.MEASURES:
            row = [rows[solver][f"{measure}_{part}"] for part in ("ratio", "low", "high")]
            np.testing.assert_allclose(row, factor, rtol=1e-12)


def test_interval_has_the_spread_of_the_mean():
    rng = np.random.default_rng(2)
    euler, other = np.ones((400, 1)), rng.uniform(0.5, 1.5, (400, 1))
    row = fig3.compare({"euler": euler, "ddim": other}, 0)[1]
    error = 1.96 * other.std() / 20  # the denominator does not vary
    assert row["mean_high"] - row["mean_low"] == pytest.approx(2 * error, rel=0.1)


# -- figure 3: claims of the paper ----------------------------------------------------------------
def test_frozen_score_is_worse_than_euler_everywhere(discretization):
    for column in ("mean", "mean_sure"):
        assert fig3.holds(discretization, "ei_score", column) == C3["models"]


def test_frozen_eps_beats_euler_on_the_digits_and_not_on_smooth_densities(discretization):
    assert fig3.holds(discretization, "ddim") == ["digits"]
    found, delta = fig3.counts(discretization).xs("ddim", level="solver"), fig3.farther(discretization)
    assert (found.loc[["mixture", "gaussian"], ["mean", "mean_sure"]] == 0).all(axis=None)
    assert delta["digits"] > 1 > max(delta["mixture"], delta["gaussian"])


def test_discretization_verdict_turns_with_the_data(discretization):
    frame, every = discretization.copy(), "mixture, gaussian and digits"
    before = fig3.verdict(frame, C3)
    assert "loses to Euler at every N on 3 of 3 models; a frozen ε beats it at every N on digits (beyond" in before
    assert re.search(r", by RMS on no model\); by RMS the score loses on [0-3]; mean", before)
    score, eps = frame.solver == "ei_score", frame.solver == "ddim"
    columns = [f"{m}_{part}" for m in fig3.MEASURES for part in ("ratio", "low", "high")]
    frame.loc[score, columns], frame.loc[eps, columns] = 0.5, 0.25
    frame.loc[frame.frozen == "score", "delta"] = 4 * frame.delta[frame.frozen == "eps"].to_numpy()
    said = fig3.verdict(frame, C3)
    assert f"on 0 of 3 models; a frozen ε beats it at every N on {every} (beyond the 95 % intervals on {every}" in said
    assert said.endswith(
        f"by RMS on {every}); by RMS the score loses on 0; mean errors are 0.50 and 0.25 times Euler's at 5 to 20 "
        "steps."
    )
    found = fig3.counts(frame)
    assert (found.xs("ei_score", level="solver") == 0).all(axis=None)
    assert (found.xs("ddim", level="solver") == 3).all(axis=None)
    assert fig3.farther(frame).to_numpy() == pytest.approx(4.0)
    frame.loc[eps, "mean_high"] = 1.5  # still better, but not surely
    assert f"on {every} (beyond the 95 % intervals on no model, by RMS on {every})" in fig3.verdict(frame, C3)
    frame.loc[eps & (frame.steps == 10), "rms_ratio"] = 1.5
    assert "by RMS on no model)" in fig3.verdict(frame, C3)
    assert fig3.counts(frame).loc[("mixture", "ddim")].to_dict() == {
        "mean": 3, "mean_sure": 0, "rms": 2, "rms_sure": 3,
    }  # fmt: skip


def test_discretization_verdict_has_the_range_of_the_ratios(discretization):
    rows = discretization[discretization.solver == "ei_score"].mean_ratio
    assert f"mean errors are {rows.min():.1f} to {rows.max():.1f} and" in fig3.verdict(discretization, C3)


def test_headline_of_the_discretization_begins_its_verdict(discretization):
    headline = fig3.draw(discretization, C3).texts[0].get_text().replace("\n", " ")
    assert headline == "A frozen score loses to Euler at every N on 3 of 3 models"
    assert fig3.verdict(discretization, C3).startswith(f"{headline}; a frozen ε beats it at every N on digits (beyond")


# -- figure 4: numbers ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", EXACT)
def test_relative_change_is_that_of_eps_on_the_exact_path(extrapolation, name):
    mix = EXACT[name]
    x, eps = problems.noise(C4["path_samples"], mix.dimension, 0), mix.eps(VP)
    rows = extrapolation[(extrapolation.model == name) & (extrapolation.part == "change")]
    ts = uniform(C4["change_steps"])
    np.testing.assert_allclose(rows.t, ts[:-1], rtol=1e-12)
    np.testing.assert_allclose(rows.to, ts[1:], rtol=1e-12)
    for k in (6, 11):
        now, then = (eps(mix.flow(VP, x, 1.0, t), t) for t in ts[k : k + 2])
        expected = np.sqrt(((now - then) ** 2).sum() / (now**2).sum())
        assert rows.change.iloc[k] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("degree", C4["degrees"])
@pytest.mark.parametrize("name", EXACT)
def test_delta_eps_is_the_error_of_the_interpolating_polynomial(extrapolation, name, degree):
    mix, n = EXACT[name], 10
    ts = np.linspace(1.0, np.sqrt(1e-3), n + 1) ** 2
    x, eps = problems.noise(C4["path_samples"], mix.dimension, 0), mix.eps(VP)
    rows = extrapolation[(extrapolation.model == name) & (extrapolation.steps == n)]
    rows = rows[(rows.part == "path") & (rows.degree == degree)]
    for step in (1, 7):
        nodes = ts[max(step - degree, 0) : step + 1]
        known = np.array([eps(mix.flow(VP, x, 1.0, t), t).ravel() for t in nodes])
        s = ts[step + 1]
        guess = np.array([1.0, *(s ** np.arange(1, nodes.size))]) @ np.linalg.solve(
            np.vander(nodes, increasing=True), known
        )
        true = eps(mix.flow(VP, x, 1.0, s), s).ravel()
        got = rows[(rows.step == step) & np.isclose(rows.t, s, rtol=0, atol=1e-9)].delta.item()
        assert got == pytest.approx(((guess - true) ** 2).mean() ** 0.5, rel=1e-6)


def test_path_average_is_that_of_the_curve(extrapolation):
    keys = ["model", "steps", "degree"]
    curve = extrapolation[extrapolation.part == "path"].groupby(keys).delta.apply(lambda d: (d**2).mean() ** 0.5)
    rows = extrapolation[extrapolation.part == "average"].set_index(keys)
    np.testing.assert_allclose(rows.delta, curve[rows.index], rtol=1e-9)
    for (model, steps), part in rows.delta.groupby(level=[0, 1]):
        gain = rows.loc[(model, steps, 3)]
        assert gain.gain == pytest.approx(part[model, steps, 0] / part[model, steps, 3], rel=1e-9)
        assert gain.gain_low < gain.gain < gain.gain_high


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("name", EXACT)
def test_sample_errors_are_those_of_the_solver(extrapolation, name, degree):
    mix, n = EXACT[name], 10
    ts = np.linspace(1.0, np.sqrt(1e-3), n + 1) ** 2
    x = problems.noise(C4["samples"], mix.dimension, 0)
    exact = mix.flow(VP, x, 1.0, 1e-3)
    gap = da.run(da.adams(VP, ts, degree), mix.eps(VP), x) - exact
    rows = extrapolation[(extrapolation.model == name) & (extrapolation.part == "samples")]
    row = rows[(rows.steps == n) & (rows.degree == degree)].iloc[0]
    assert row["mean"] == pytest.approx(abs(gap).mean(), rel=1e-6)
    assert row.rms == pytest.approx((gap**2).mean() ** 0.5, rel=1e-6)
    if degree:
        first = da.run(da.adams(VP, ts, 0), mix.eps(VP), x) - exact
        assert row.gain == pytest.approx(abs(first).mean() / abs(gap).mean(), rel=1e-6)


def test_ratios_are_to_the_degree_before_and_gains_to_the_lowest():
    sizes = {0: np.full(5, 36.0), 1: np.full(5, 9.0), 3: np.full(5, 4.0)}
    for power, expected in ((1, [[0.5] * 3 + [2.0] * 3, [2 / 3] * 3 + [3.0] * 3]),
                            (2, [[0.25] * 3 + [4.0] * 3, [4 / 9] * 3 + [9.0] * 3])):  # fmt: skip
        rows = fig4.against_others(sizes, 0, power)
        values = [[row[key] for key in ("ratio", "low", "high", "gain", "gain_low", "gain_high")] for row in rows[1:]]
        assert rows[0] == {"degree": 0}
        np.testing.assert_allclose(values, expected, rtol=1e-12)


# -- figure 4: claims of the paper ----------------------------------------------------------------
def test_eps_changes_less_above_the_threshold_except_on_the_digits(extrapolation):
    found = fig4.changes(extrapolation, C4)
    assert found.above["mixture"] < 0.5 * found.below["mixture"]
    assert found.above["gaussian"] < 0.2 * found.below["gaussian"]
    assert found.above["digits"] > found.below["digits"]


def test_every_degree_helps_on_the_gaussian_and_the_highest_hurts_on_the_digits_path(extrapolation):
    on_path = fig4.better(extrapolation, C4, "high", "average")
    assert [name for _, name in on_path.index[on_path.helps == on_path.of]] == ["gaussian"]
    for column in ("ratio", "high"):
        assert (fig4.better(extrapolation, C4, column).loc["t2"].loc[["mixture", "gaussian"]] == 3).all(axis=None)
    for n in C4["path_steps"]:
        assert highest_degree(extrapolation, "average", n).gain_high["digits"] < 1
    assert (highest_degree(extrapolation, "samples", 10).gain_low > 1).all()  # beyond the interval


def highest_degree(frame, part, steps):
    return frame[(frame.part == part) & (frame.steps == steps) & (frame.degree == 3)].set_index("model")


def test_extrapolation_verdict_turns_with_the_data(extrapolation):
    frame = extrapolation.copy()
    change, average, samples = (frame.part == part for part in ("change", "average", "samples"))
    assert "clearly along the exact path on gaussian;" in fig4.verdict(frame, C4)
    frame.loc[change, "change"] = np.where(frame.to[change] >= 0.15, 0.5, 0.25)
    frame.loc[average | samples, ["ratio", "low", "high"]] = 2.0
    frame.loc[average, ["gain", "gain_low", "gain_high"]] = 7.0
    frame.loc[samples, "gain"] = 5.0
    said = fig4.verdict(frame, C4)
    assert said.startswith("Degree 0 has 5.0 times degree 3's error at 10 steps on the t2 grid; ")
    assert "helps at all N ≤ 20 on no model (t2), clearly along the exact path on no model;" in said
    assert said.endswith("ε changes there at most 50 % per 1/12 of t above 0.15.")
    assert (fig4.changes(frame, C4)[["above", "below"]].to_numpy() == [0.5, 0.25]).all()
    assert (fig4.better(frame, C4).helps == 0).all()
    frame.loc[average | samples, ["ratio", "low", "high"]] = 0.5
    every = "mixture, gaussian, digits"
    assert f"20 on {every} (t2), clearly along the exact path on {every};" in fig4.verdict(frame, C4)
    assert (fig4.better(frame, C4) == 3).all(axis=None)
    frame.loc[samples | average, "high"] = 1.1
    assert f"20 on {every} (t2), clearly along the exact path on no model;" in fig4.verdict(frame, C4)
    assert (fig4.better(frame, C4) == 3).all(axis=None)
    assert (fig4.better(frame, C4, "high").helps == 0).all()
    frame.loc[samples & (frame.degree == 2) & (frame.steps == 10), "ratio"] = 1.1  # one degree of three spoils an N
    assert "at all N ≤ 20 on no model (t2)" in fig4.verdict(frame, C4)
    assert (fig4.better(frame, C4).helps == 2).all()


def test_headline_of_the_extrapolation_begins_its_verdict(extrapolation):
    headline = fig4.draw(extrapolation, C4).texts[0].get_text().replace("\n", " ")
    assert fig4.verdict(extrapolation, C4).startswith(headline)


# -- both -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("module", "config"), [(fig3, C3), (fig4, C4)], ids=["fig3", "fig4"])
def test_one_model_alone(module, config):
    alone = {**config, "models": ["mixture"]}
    frame = module.compute(alone, lambda share: None)
    assert frame.model.unique().tolist() == ["mixture"]
    said = module.verdict(frame, alone)
    assert said.endswith(".")
    assert "digits" not in said
    assert not re.search(r"\bnan\b|inf\b", said)
    axes = module.draw(frame, alone).axes
    assert all(ax.lines for ax in axes)


@pytest.mark.parametrize("module", [fig3, fig4], ids=["fig3", "fig4"])
def test_what_the_paper_leaves_open_is_in_the_configuration(module):
    assert "Zhang & Chen 2023" in module.CONFIG["choices"]["source"]
    assert "not known" in " ".join(module.CONFIG["choices"].values())
