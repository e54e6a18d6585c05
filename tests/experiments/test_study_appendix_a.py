"""Grids, black-box tolerance, VE and end time: are the numbers right, and do the sentences turn with them?"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from quick_runs import quick
from scipy.optimize import minimize_scalar

import deis_analysis as da
from experiments.core.cells import Cell
from experiments.core.frames import span
from experiments.models import problems, studies
from experiments.paper import appendix_blackbox as blackbox
from experiments.paper import appendix_time_grids as grids
from experiments.paper import appendix_vesde as vesde

VP = da.VPLinear()


@pytest.fixture(scope="module")
def grids_found():
    return quick(grids)


@pytest.fixture(scope="module")
def blackbox_found():
    return quick(blackbox)


@pytest.fixture(scope="module")
def vesde_found():
    return quick(vesde)


def mixture(samples: int) -> tuple[da.ProductMixture, np.ndarray]:
    return problems.product_mixture(), problems.noise(samples, 4, 0)


def ddim(process, eps, x, ts) -> np.ndarray:
    """DDIM written out: x ↦ (α'/α) x + (σ' − σ α'/α) ε."""
    for t, s in itertools.pairwise(ts):
        ratio = process.alpha(s) / process.alpha(t)
        x = ratio * x + (process.sigma(s) - ratio * process.sigma(t)) * eps(x, float(t))
    return x


def rms(gap) -> float:
    return float(np.sqrt(np.mean(np.asarray(gap) ** 2)))


@pytest.mark.parametrize("module", [grids, blackbox, vesde])
def test_figures_are_drawn_and_sentences_end(module, request):
    name = {grids: "grids", blackbox: "blackbox", vesde: "vesde"}[module]
    frame, config = request.getfixturevalue(f"{name}_found")
    said = module.verdict(frame, config)
    assert said.endswith(".")
    assert "nan" not in said
    assert module.draw(frame, config).axes
    one = frame[frame.model == "mixture"]
    assert "digits" not in module.verdict(one, config)
    assert module.draw(one, config).axes


# -- time grids -----------------------------------------------------------------------------------
def test_grid_errors_and_ratios(grids_found):
    frame, config = grids_found
    mix, x = mixture(config["samples"])
    exact = mix.flow(VP, x, 1.0, 1e-3)
    u = np.linspace(0, 1, 11)
    by_hand = {
        "t1": 1 + u * (1e-3 - 1),
        "t2": (1 + u * (np.sqrt(1e-3) - 1)) ** 2,
        "t3": (1 + u * (0.1 - 1)) ** 3,
        "rho7": VP.time_from_rho((VP.rho(1.0) ** (1 / 7) * (1 - u) + u * VP.rho(1e-3) ** (1 / 7)) ** 7),
        "logrho": VP.time_from_rho(np.exp(np.log(VP.rho(1.0)) * (1 - u) + u * np.log(VP.rho(1e-3)))),
    }
    expected = {k: rms(ddim(VP, mix.eps(VP), x, ts) - exact) for k, ts in by_hand.items()}
    rows = frame[(frame.model == "mixture") & (frame.solver == "ddim") & (frame.calls == 10) & (frame.part == "grid")]
    for row in rows.itertuples():
        others = min(v for k, v in expected.items() if k != row.grid)
        assert row.rms == pytest.approx(expected[row.grid], rel=1e-7)
        assert row.ratio == pytest.approx(row.rms / others, rel=1e-7)
        assert row.low < row.ratio < row.high
    at = grids.best_grids(frame)
    best = at[(at.model == "mixture") & (at.solver == "ddim") & (at.calls == 10)].iloc[0]
    assert best.grid == min(expected, key=expected.get)


@pytest.mark.parametrize(("solver", "family"), [("ddim", "t"), ("tab1", "t"), ("rhoab3", "t"), ("rhork_3kutta", "rho")])
def test_best_exponent_is_what_scipy_finds(solver, family):
    """A parabola through three points of the scan is within a tenth of the scan's spacing, a quarter of k, of it."""
    config = {**grids.CONFIG, "models": ["mixture"], "solvers": [solver], "calls": [10], "draws": 50}
    frame = grids.compute(config, lambda share: None)
    mix, x = mixture(config["samples"])
    exact = mix.flow(VP, x, 1.0, 1e-3)
    steps = problems.steps_for(solver, 10)

    def error(k: float) -> float:
        ts = da.grid(VP, steps, f"{family}{k:.12f}", 1.0, 1e-3)
        return rms(da.run(da.build(solver, VP, ts), mix.eps(VP), x) - exact)

    best = frame[(frame.part == "best") & (frame.family == family)].iloc[0]
    bounds = (0.75 * best.exponent, 1.35 * best.exponent)
    assert best.exponent == pytest.approx(minimize_scalar(error, bounds=bounds, method="bounded").x, rel=0.06)
    assert best.low <= best.exponent <= best.high


def test_vertex_of_a_parabola_and_ends():
    k = np.array([1.0, 1.5, 2.0, 3.0, 5.0])
    assert grids.least(k, np.exp(3 * (np.log(k) - np.log(2.3)) ** 2)) == pytest.approx(2.3, rel=1e-12)
    assert grids.least(k, k) == 1.0
    assert grids.least(k, 1 / k) == 5.0


def test_grid_verdict_turns(grids_found):
    frame, config = grids_found
    ours = (frame.part == "grid") & frame.solver.isin(config["claimed"])
    cells = int((ours & (frame.grid == "t2") & frame.ratio.notna()).sum())
    good = frame.copy()
    good.loc[ours & (good.grid == "t2"), ["ratio", "low", "high"]] = [0.5, 0.4, 0.6]
    assert f"best of 5 grids in {cells} of {cells} cells;" in grids.verdict(good, config)
    assert "t2 is clearly beaten in 0," in grids.verdict(good, config)
    bad = frame.copy()
    bad.loc[ours & (bad.grid == "t2"), ["ratio", "low", "high"]] = [2.0, 1.5, 3.0]
    assert f"best of 5 grids in 0 of {cells} cells;" in grids.verdict(bad, config)
    assert f"t2 is clearly beaten in {cells}," in grids.verdict(bad, config)
    bad.loc[(bad.part == "grid") & (bad.grid == "logrho"), "rms"] = 1e-12
    assert set(grids.best_grids(bad).grid) == {"logrho"}
    power = (bad.part == "best") & (bad.family == "t")
    bad.loc[power, "exponent"] = bad.model[power].map({"mixture": 1.25, "digits": 3.5})
    assert grids.verdict(bad, config).endswith("exponent of t at 10 calls is 1.25 to 3.50.")
    assert grids.verdict(bad[bad.model == "digits"], config).endswith("calls is 3.50 to 3.50.")
    said = grids.draw(bad, config).texts[0].get_text().replace("\n", " ")
    assert grids.verdict(bad, config).startswith(f"{said}; ")


def test_one_step_leaves_no_grid_to_choose():
    frame, _ = quick(grids, models=["mixture"], solvers=["rhork_4rk"], calls=[5])
    assert frame[frame.part == "grid"].ratio.isna().all()
    assert grids.best_grids(frame).empty


# -- black box ------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["t", "rho", "lam"])
def test_every_form_is_the_same_flow(form):
    problem = studies.study("mixture", {**studies.BASE, "samples": 8})
    exact = problem.reference(1e-3)[0].numpy()
    calls = []
    object.__setattr__(problem, "model", counted(problem.model, calls))
    found = blackbox.black_box(problem, form, 1.0, 1e-3, 1e-9)
    assert np.abs(found["x"] - exact).max() < 1e-6
    assert found["nfe"] == len(calls) == 2 + 6 * (found["steps"] + found["rejected"])
    assert found["rejected"] >= 0
    assert all(1e-3 <= t <= 1.0 for t in calls)


def counted(model, calls):
    def inner(x, t):
        calls.append(t)
        return model(x, t)

    return inner


def test_unknown_form_is_named():
    problem = studies.study("mixture", {**studies.BASE, "samples": 2})
    with pytest.raises(ValueError, match="form='sigma'"):
        blackbox.black_box(problem, "sigma", 1.0, 1e-3, 1e-3)


def test_calls_for_an_error_of_a_power_law():
    tolerance = 10.0 ** -np.arange(1, 6)
    rows = pd.DataFrame({"tolerance": tolerance, "rms": 3 * tolerance, "nfe": 20 * tolerance**-0.2})
    for target in (0.1, 1e-3, 4e-5):
        assert blackbox.calls_to_stay(rows, target) == pytest.approx(20 * (target / 3) ** -0.2, rel=1e-12)
    assert np.isinf(blackbox.calls_to_stay(rows, 1e-9))
    assert np.isinf(blackbox.calls_to_stay(rows, 1.0))
    back = rows.assign(rms=[0.3, 0.001, 0.003, 3e-4, 3e-5])  # an error counts from where it stays below on
    assert 20 * 10**0.6 < blackbox.calls_to_stay(back, 0.002) < 20 * 10**0.8


def test_blackbox_verdict_turns(blackbox_found, monkeypatch):
    frame, config = blackbox_found
    found, ours = blackbox.equal_error(frame, config), frame.part == "samples"
    said = blackbox.verdict(frame, config)
    assert (
        f" times the calls on the ρ-ODE that it takes on the original ODE; it takes fewer at 0 of {len(found)} errors;"
        in said
    )
    assert f"RK45 takes {span(found.rho / found.t)} times" in said
    assert blackbox.draw(frame, config).texts[0].get_text().replace("\n", " ") == said.split("; ")[0]
    cheap = frame.astype({"nfe": float})
    cheap.loc[cheap.form == "rho", "nfe"] /= 100
    assert f"fewer at {len(found)} of {len(found)} errors;" in blackbox.verdict(cheap, config)
    apart = frame.assign(rms=frame.rms.where(~ours, 10.0))
    assert "have no error in common;" in blackbox.verdict(apart, config)
    assert blackbox.draw(apart, config).axes
    forged = found.assign(rho=[0.5 * found.t.iloc[0], *(3 * found.t.iloc[1:])], lam=0.8 * found.t)
    monkeypatch.setattr(blackbox, "equal_error", lambda *_: forged)
    said = blackbox.verdict(frame, config)
    assert said.startswith("For the same error RK45 takes 0.50 to 3.0 times the calls on the ρ-ODE that ")
    assert f"fewer at 1 of {len(found)} errors;" in said
    told = [text.get_text() for ax in blackbox.draw(frame, config).axes for text in ax.texts]
    assert any("ρ 0.50 to 3.0, λ 0.80" in text for text in told)


def test_as_many_calls_as_the_usual_ones_are_not_fewer(blackbox_found, monkeypatch):
    frame, config = blackbox_found
    forged = {"plain": [40.0, 40.0], "split": [39.0, 40.0], "rk45": [30.0, 38.0], "usual": [40.0, 40.0]}
    monkeypatch.setattr(blackbox, "costs", lambda *_: pd.DataFrame(forged, index=["mixture", "gaussian"]))
    said = blackbox.verdict(frame, config)
    assert "usual 40 and 40, on 0 of 2 densities, with the unit-variance part exact on 1; for them RK45" in said
    assert said.endswith("RK45 itself takes 30 to 38.")


def test_errors_below_the_reference_are_not_compared(blackbox_found):
    frame, config = blackbox_found
    assert blackbox.equal_error(frame.assign(estimate=0.05), config).empty
    assert not blackbox.equal_error(frame, config).empty


# -- VE and EDM -----------------------------------------------------------------------------------
def test_processes_end_at_one_level():
    config = vesde.CONFIG
    for name, (process, start, end) in vesde.processes(config).items():
        assert process.rho(end) == pytest.approx(np.sqrt(np.expm1(0.1e-3 + 9.95e-6)), rel=1e-9)
        assert start == {"VP": 1.0, "VE": 1.0, "EDM": 80.0}[name]


@pytest.mark.parametrize("name", ["VE", "EDM"])
def test_borrowed_grid_has_the_levels_of_equal_steps_of_root_t(name):
    process, start, end = vesde.processes(vesde.CONFIG)[name]
    ts = vesde.make_grid(vesde.CONFIG, name, "vp_t2", 7)
    roots = np.sqrt(VP.time_from_rho(process.rho(ts)))
    assert (ts[0], ts[-1]) == (start, end)
    assert np.allclose(np.diff(roots), (roots[-1] - roots[0]) / 7, rtol=1e-6)
    assert roots[-1] ** 2 == pytest.approx(1e-3, rel=1e-9)


def test_ve_error_is_that_of_ddim_by_hand(vesde_found):
    frame, config = vesde_found
    mix, x = mixture(config["samples"])
    sigma = 50.0 * (np.sqrt(np.expm1(1.0995e-4)) / 50.0) ** np.linspace(0, 1, 11)  # uniform in log σ: VE's t1
    process = da.VE(0.01, 50.0)
    ts = np.log(sigma / 0.01) / np.log(5000.0)
    state = 50.0 * x
    for t, a, b in zip(ts[:-1], sigma[:-1], sigma[1:], strict=True):
        state = state + (b - a) * mix.eps(process)(state, float(t))
    expected = rms(state - mix.flow(process, 50.0 * x, 1.0, ts[-1]))
    rows = frame[(frame.part == "error") & (frame.solver == "ddim") & (frame.grid == "t1") & (frame.calls == 10)]
    assert rows.rms.item() == pytest.approx(expected, rel=1e-6)


def test_on_edm_t_is_rho():
    frame, _ = quick(vesde, solvers=["tab2", "rhoab2"], calls=[10])
    rows = frame[(frame.part == "error") & (frame.process == "EDM")].pivot(index="grid", columns="solver", values="rms")
    assert np.allclose(rows.tab2, rows.rhoab2, rtol=1e-8)
    rows = frame[(frame.part == "error") & (frame.process == "VE")].pivot(index="grid", columns="solver", values="rms")
    assert not np.isclose(rows.tab2, rows.rhoab2, rtol=0.05).any()


def test_network_of_vp_on_another_process(monkeypatch):
    def parts(process, config):
        assert process == VP  # a network is not asked on what it was not trained on
        return mix.eps(VP), mix, mix.sample(16), True

    mix = problems.product_mixture()
    monkeypatch.setitem(studies.MODELS, "network", ("the mixture as if learned on VP", parts))
    config = {**vesde.CONFIG, "samples": 4, "rtol": 1e-9}
    for name in ("VE", "EDM"):
        process, start, end = vesde.processes(config)[name]
        problem = studies.problem_on("network", {**config, "t_start": start, "t_end": end}, process)
        eps, x, truth, estimate = problem.model, problem.x_T, problem.truth, problem.estimate
        assert np.allclose(x, process.sigma(start) * problems.noise(4, 4, 0))
        for t in np.linspace(end, start, 5):
            assert np.allclose(eps(x, float(t)), mix.eps(process)(x, float(t)), rtol=1e-8, atol=1e-12)
        assert estimate < 1e-6
        assert np.allclose(truth, mix.flow(process, x, start, end), atol=1e-6)


def test_ve_digits_are_measured_too():
    frame, config = quick(vesde, models=["digits"], solvers=["ddim"], calls=[5, 10], samples=4)
    assert set(frame[frame.part == "error"].process) == {"VP", "VE", "EDM"}
    errors = frame[frame.part == "error"].rms
    assert errors[np.isfinite(errors)].between(1e-4, 1).all()  # infinite where all of the four flip
    assert np.isfinite(errors).any()
    assert vesde.verdict(frame, config).startswith("On the digits VE takes ")


def test_vesde_verdict_turns(vesde_found):
    frame, config = vesde_found
    errors = (frame.part == "error") & (frame.process == "VE")
    for factor, said in ((100.0, "more than 20"), (0.01, "5")):
        turned = frame.copy()
        turned.loc[errors, "rms"] *= factor
        begin = f"On the mixture VE takes {said} calls for the least error that VP has at 10, EDM "
        assert vesde.verdict(turned, config).startswith(begin)
    same = frame.copy()
    vp = frame[(frame.part == "error") & (frame.process == "VP")].groupby("calls").rms.min()
    same.loc[errors, "rms"] = same.calls[errors].map(vp)
    assert "On the mixture VE takes 10 calls " in vesde.verdict(same, config)
    headline = vesde.draw(same, config).texts[0].get_text().replace("\n", " ")
    assert vesde.verdict(same, config).startswith(f"{headline}, EDM ")
    ratio = frame.copy()
    ratio.loc[ratio.part == "ratio", ["ratio", "low", "high"]] = [2.0, 1.5, 2.5]
    assert "VE in 3 of 3 and EDM in 3 of 3 cases has more error than VP." in vesde.verdict(ratio, config)
    ratio.loc[ratio.process == "EDM", ["ratio", "low", "high"]] = [0.5, 0.4, 0.6]
    assert "VE in 3 of 3 and EDM in 0 of 3 cases" in vesde.verdict(ratio, config)


def test_borrowed_levels_count_for_the_lines_of_their_name_alone(vesde_found):
    frame, config = vesde_found
    better = frame.copy()
    better.loc[(better.part == "error") & (better.grid == "vp_t2"), "rms"] *= 1e-3
    before, after = vesde.needed(frame, config).loc["mixture"], vesde.needed(better, config).loc["mixture"]
    assert after["VE"] == before["VE"]
    assert after[f"VE{vesde.LEVELS}"] == 5
    assert "on VP's levels VE 5 and EDM 5" in vesde.verdict(better, config)


def test_two_models_are_told_apart(vesde_found):
    frame, config = vesde_found
    other = frame.assign(model="digits", rms=frame.rms.where(frame.process != "VE", 1e3))
    said = vesde.verdict(pd.concat([frame, other]), config)
    assert said.startswith("On the digits VE takes more than 20 calls ")
    assert f"; on the mixture VE takes {vesde.needed(frame, config).VE.item():.3g}; " in said


def test_ratios_are_those_of_the_errors(vesde_found):
    frame, _ = vesde_found
    rows = frame[frame.part == "error"].set_index(["process", "solver", "grid", "calls"]).rms
    for r in frame[frame.part == "ratio"].itertuples():
        own = {"VE": "t1", "EDM": "rho7"}[r.process]
        least = rows[r.process, r.solver, own, r.calls]
        if r.choice == "any":
            least = min(least, rows[r.process, r.solver, "vp_t2", r.calls])
        assert r.ratio == pytest.approx(least / rows["VP", r.solver, "t2", r.calls], rel=1e-9)
        assert r.low <= r.ratio * (1 + 1e-9)
        assert r.high >= r.ratio * (1 - 1e-9)


# -- end time -------------------------------------------------------------------------------------
def test_parts_of_the_error_by_hand(grids_found):
    frame, config = grids_found
    mix, x = mixture(config["samples"])
    answer = mix.flow(VP, x, 1.0, 0.0)
    for t_end in (1e-3, 1e-4):
        ts = (1 + np.linspace(0, 1, 11) * (np.sqrt(t_end) - 1)) ** 2
        result, exact = ddim(VP, mix.eps(VP), x, ts), mix.flow(VP, x, 1.0, t_end)
        rows = frame[
            (frame.model == "mixture") & (frame.solver == "ddim") & (frame.calls == 10) & (frame.part == "end")
        ]
        row = rows[rows.t_end == t_end].iloc[0]
        assert row.total == pytest.approx(rms(result - answer), rel=1e-7)
        assert row.truncation == pytest.approx(rms(exact - answer), rel=1e-6)
        assert row.discretization == pytest.approx(rms(result - exact), rel=1e-7)


def test_parts_add_up_as_vectors(grids_found):
    frame = grids_found[0][grids_found[0].part == "end"]
    frame = frame[np.isfinite(frame.total)]  # of some samplers all of these few digits flip
    assert len(frame) > 30
    slack = 1 + 1e-9
    assert (frame.total <= slack * (frame.truncation + frame.discretization)).all()
    assert (frame.total * slack >= (frame.truncation - frame.discretization).abs()).all()


def test_digits_end_at_a_data_point():
    config = {**grids.CONFIG, "samples": 6, "rtol": 1e-6}
    problem = studies.study("digits", config)
    states, _ = grids.exact_states(problem, config)
    state, _ = problem.path([1e-3, 1e-7])
    assert float((states[0.0] - state(1e-7)).abs().max()) < 5 * float(VP.rho(1e-7))  # the flow itself, carried on
    gap = torch.cdist(states[0.0], torch.tensor(problems.digits()))
    assert (gap.min(dim=1).values < 1e-6).all()
    truncation = [rms(states[t] - states[0.0]) for t in config["end_times"]]
    assert np.allclose(truncation, truncation[-1] * VP.rho(config["end_times"]) / VP.rho(1e-5), rtol=0.1)


def test_a_network_goes_on_to_the_limit_time(monkeypatch):
    mix = problems.product_mixture()

    def parts(process, config):
        return mix.eps(process), mix, mix.sample(16), True

    monkeypatch.setitem(studies.MODELS, "network", ("the mixture as if learned", parts))
    monkeypatch.setattr(studies, "_certified", studies._certified.func)
    config = {**grids.CONFIG, "samples": 4}
    problem = studies.study("network", config)
    states, _ = grids.exact_states(problem, config)
    assert np.allclose(states[0.0], mix.flow(VP, problem.x_T, 1.0, 0.0), atol=1e-5)
    assert np.allclose(states[1e-2], mix.flow(VP, problem.x_T, 1.0, 1e-2), atol=1e-5)


def test_end_time_verdict_turns(grids_found):
    frame, config = grids_found
    early = (frame.part == "end") & (frame.t_end == config["compared"][1])
    turned = frame.copy()
    turned.loc[early, ["ratio", "low", "high"]] = [2.0, 1.5, 3.0]
    assert grids.since(turned, config).isna().all()
    assert "; stopping at t = 0.0001 clearly beats 0.001 in 0 of 8 cases; t2 is" in grids.verdict(turned, config)
    turned.loc[early & (turned.calls >= 10), ["ratio", "low", "high"]] = [0.5, 0.4, 1.2]
    assert grids.since(turned, config).isna().all()
    turned.loc[early & (turned.calls >= 20) & (turned.solver == "tab3"), "high"] = 0.9
    assert grids.since(turned, config).dropna().to_dict() == {("mixture", "tab3"): 20, ("digits", "tab3"): 20}
    said = grids.verdict(turned, config)
    assert "clearly beats 0.001 in 2 of 8 cases, from 20 calls on at the earliest; t2 is" in said
    headline = grids.draw(turned, config).texts[0].get_text().replace("\n", " ")
    assert said.startswith(f"{headline}; ")
    turned.loc[early & (turned.solver == "tab3"), "high"] = turned.calls.map({5: 0.9, 10: 0.9, 20: 1.1})
    assert grids.since(turned, config).isna().all()  # not where it is clear at fewer calls only
    turned.loc[early & (turned.solver == "tab3"), "high"] = 0.9
    assert grids.since(turned, config)["mixture", "tab3"] == 5


def test_ratios_of_end_times_are_those_of_the_total_errors(grids_found):
    frame, config = grids_found
    total = frame[frame.part == "end"].set_index(["model", "solver", "calls", "t_end"])
    late, early = (total.xs(t, level="t_end") for t in config["compared"])
    smooth = early.index.get_level_values("model") == "mixture"  # of the digits, samples that count in both
    assert np.allclose(early.ratio[smooth], early.total[smooth] / late.total[smooth], rtol=1e-9)
    assert (late.ratio.dropna() == 1).all()
    known = early.dropna(subset="ratio")
    assert ((known.low <= known.ratio) & (known.ratio <= known.high)).all()


def test_a_digit_that_ends_at_another_image_does_not_count(monkeypatch):
    config = {**grids.CONFIG, **grids.QUICK, "models": ["digits"], "samples": 6, "draws": 20}
    problem = studies.study("digits", config)
    exact, _ = grids.exact_states(problem, config)
    times = (1.0, *config["compared"])
    data = torch.tensor(problems.digits())
    rows = []
    for moved in (False, True):
        ends = {}
        for t in config["compared"]:
            x = exact[0.0] + 0.01
            if moved:
                x[2] = data[(data - exact[0.0][2]).abs().sum(dim=1).argmax()]  # the image farthest away
            ends[Cell("tab3", "t2", 10, 10, 10, (times[0], t))] = x
        rows.append(grids._ends(problem, ends, config))
    for plain, other in zip(*rows, strict=True):
        assert plain["total"] == pytest.approx(0.01)
        assert other["total"] == pytest.approx(0.01)
        assert other["ratio"] == pytest.approx(plain["ratio"])
    truth, _ = problem.reference(config["t_end"])
    kinds = {kind: truth + 0.01 * k for k, kind in enumerate(config["grids"], 1)}
    first = next(iter(kinds.values()))
    first[2] = data[(data - truth[2]).abs().sum(dim=1).argmax()]
    cells_ = {Cell("tab3", kind, 5, 5, 5, (1.0, 1e-3)): x for kind, x in kinds.items()}
    errors = pd.DataFrame(grids._grids(problem, cells_, config)).set_index("grid")
    assert list(errors.rms) == pytest.approx([0.01 * k for k in range(1, len(kinds) + 1)])
    assert errors.low.iloc[0] == pytest.approx(errors.ratio.iloc[0])  # all squares that count are equal
    assert errors.high.iloc[0] == pytest.approx(errors.ratio.iloc[0])
    monkeypatch.setattr(blackbox, "densities", lambda *_: {})
    monkeypatch.setattr(blackbox, "black_box", lambda *_: {"x": first.numpy(), "nfe": 1, "steps": 1, "rejected": 0})
    found = blackbox.compute({**blackbox.CONFIG, **config, "tolerances": [0.1], "densities": {}}, lambda _: None)
    assert list(found.rms) == pytest.approx([0.01] * len(found))
    found = studies.problem_on("digits", {**config, "t_end": 1e-3}, VP)
    x = found.truth + 0.01
    x[2] = data[(data - found.truth[2]).abs().sum(dim=1).argmax()]
    squares = found.judged(x)
    assert np.isnan(squares[2])
    assert np.delete(squares, 2) == pytest.approx(1e-4)


def test_published_practice_is_marked_as_such(grids_found):
    frame, config = grids_found
    assert "15" not in " ".join(frame.columns)
    said = [text.get_text().replace("\n", " ") for text in grids.draw(frame, config).texts]
    assert any(grids.PUBLISHED in text and "Published: " in text and "other models" in text for text in said)


def test_an_image_network_has_no_answer_at_the_data_end():
    frame, config = quick(grids, models=["digits8"], solvers=["tab3"], calls=[10], network_samples=2)
    assert set(frame.part) == {"grid", "scan", "best"}
    assert "in 0 of 0 cases; t2" in grids.verdict(frame, config)
    assert grids.draw(frame, config).axes
