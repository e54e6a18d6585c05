"""The λ-family, rectified flows and guidance: are the numbers right, and do the sentences turn with them?"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from quick_runs import quick
from scipy.integrate import solve_ivp
from scipy.special import softmax
from scipy.stats import norm

import deis_analysis as da
from experiments.models import guided, problems, studies
from experiments.paper import appendix_sde as sde
from experiments.study import guidance
from experiments.study import rectified_flow as flow

VP, RF = da.VPLinear(), da.RectifiedFlow()


@pytest.fixture(scope="module")
def sde_found():
    return quick(sde)


@pytest.fixture(scope="module")
def flow_found():
    return quick(flow)


@pytest.fixture(scope="module")
def guidance_found():
    return quick(guidance)


def rms(gap) -> float:
    return float(np.sqrt(np.mean(np.asarray(gap) ** 2)))


@pytest.mark.parametrize("name", ["sde", "flow", "guidance"])
def test_figures_are_drawn_from_the_csv_and_sentences_end(name, request, tmp_path):
    module = {"sde": sde, "flow": flow, "guidance": guidance}[name]
    frame, config = request.getfixturevalue(f"{name}_found")
    frame.to_csv(tmp_path / "x.csv", index=False)
    again = pd.read_csv(tmp_path / "x.csv")
    assert module.verdict(again, config) == module.verdict(frame, config)
    assert module.verdict(frame, config).endswith(".")
    assert "nan" not in module.verdict(frame, config)
    assert module.draw(again, config).axes


# -- the λ-family ---------------------------------------------------------------------------------
T2 = (1 + np.linspace(0, 1, 11) * (np.sqrt(1e-3) - 1)) ** 2  # ten steps, equal in √t


def by_hand(lam: float, delta: float, factor: float, family: str) -> float:
    """W₂ per pixel of DDIM(η = λ), or of ε frozen in dx = f x dt + ½(1 + λ²) g² ε/σ dt + λ g dw, by a recursion."""
    m, v = sde.moments()
    alpha, sigma = VP.alpha(T2), VP.sigma(T2)
    mean, variance = alpha[0] * m, alpha[0] ** 2 * v + sigma[0] ** 2
    for a, s, b, r in zip(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], strict=True):
        gain = (1 + delta) * s / (a**2 * factor * v + s**2)  # ε = gain (x − α m)
        if family == "ddim_eta":
            noise = lam**2 * r**2 * (1 - (r * a / (s * b)) ** 2)
            per_eps = np.sqrt(r**2 - noise) - b * s / a
        else:
            noise = b**2 * lam**2 * (s**2 / a**2 - r**2 / b**2)
            per_eps = (1 + lam**2) * (r - b * s / a)
        mean = b / a * mean + per_eps * gain * (mean - a * m)
        variance = (b / a + per_eps * gain) ** 2 * variance + noise
    gap = np.sqrt(variance) - np.sqrt(b**2 * v + r**2)
    return float(np.sqrt(np.mean(gap**2 + (mean - b * m) ** 2)))


@pytest.mark.parametrize("family", ["ddim_eta", "eps_0"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_laws_are_those_of_a_recursion(sde_found, family, lam):
    frame, config = sde_found
    rows = frame[(frame.family == family) & (frame.lam == lam) & (frame.nfe == 10)].set_index("case")
    assert list(rows.index) == list(config["cases"])
    for case, (delta, factor) in config["cases"].items():
        assert rows.w2[case] == pytest.approx(by_hand(lam, delta, factor, family), rel=1e-7)


def test_exact_model_is_what_law_error_says(sde_found):
    frame, config = sde_found
    for family in config["families"]:
        table = sde.build(family, VP, T2, 0.5)
        expected = np.sqrt(np.mean(da.law_error(table, VP, *sde.moments()) ** 2))
        row = frame[(frame.family == family) & (frame.lam == 0.5) & (frame.nfe == 10) & (frame.case == "exact")]
        assert row.w2.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("delta", "factor"), [(0.0, 1.0), (0.02, 1.0), (-0.02, 1.0), (0.0, 1.2), (0.1, 0.7)])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_floor_is_the_moment_equation_solved_by_scipy(delta, factor, lam):
    """d Var/dt = 2 f Var + (1 + λ²)(1 + δ) g² Var/(α² v' + σ²) − λ² g² backwards in time, for x itself."""
    m, v = np.zeros(3), np.array([1e-2, 0.3, 2.0])

    def rate(t, variance):
        level = float(VP.alpha(t)) ** 2 * factor * v + float(VP.sigma(t)) ** 2
        g2 = float(VP.diffusion_squared(t))
        return 2 * float(VP.drift(t)) * variance + g2 * ((1 + lam**2) * (1 + delta) * variance / level - lam**2)

    start = float(VP.alpha(1.0)) ** 2 * v + float(VP.sigma(1.0)) ** 2
    found = solve_ivp(rate, (1.0, 1e-3), start, rtol=1e-10, atol=1e-13, method="LSODA").y[:, -1]
    exact = float(VP.alpha(1e-3)) ** 2 * v + float(VP.sigma(1e-3)) ** 2
    expected = rms(np.sqrt(found) - np.sqrt(exact))
    assert sde.floor(VP, (m, v), [delta, factor], lam, (1.0, 1e-3)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_many_steps_come_down_to_the_floor():
    config = {**sde.CONFIG, "families": ["eps_2", "x0_1"], "lams": [0.0, 0.5], "calls": [200]}
    frame = pd.DataFrame(sde.families(config))
    wrong = frame[frame.case != "exact"]
    assert np.allclose(wrong.w2, wrong.floor, rtol=0.02)
    assert (frame[frame.case == "exact"].floor < 1e-12).all()


def test_noise_mends_a_scaled_score_but_not_wrong_data():
    data = sde.moments()
    ratio = {
        case: sde.floor(VP, data, list(wrong), 1.0, (1.0, 1e-3)) / sde.floor(VP, data, list(wrong), 0.0, (1.0, 1e-3))
        for case, wrong in {"scaled": (0.02, 1.0), "data": (0.0, 1.2)}.items()
    }
    assert ratio["scaled"] < 0.25
    assert ratio["data"] == pytest.approx(1.0, abs=2e-3)


def test_sde_verdict_turns(sde_found):
    frame, config = sde_found
    ours = frame.part == "model"

    def turned(w2):
        return frame.assign(w2=frame.w2.where(~ours, w2))

    noisy = turned(frame.w2.where(frame.lam > 0, frame.w2 + 1e3))
    said = sde.verdict(noisy, config)
    assert (
        "is closer in law than the best ODE at 4 of 4 counts of calls; it is at 4 with ε × 1.02, 4 with ε × 0.98,"
        in said
    )
    headline = sde.draw(noisy, config).texts[0].get_text().replace("\n", " ")
    assert said.startswith(f"{headline}; ")
    still = turned(frame.w2.where(frame.lam > 0, 1e-9))
    assert "best ODE at 0 of 4 counts of calls; it is at 0 with ε × 1.02, 0 with ε × 0.98, 0 with variance × 1.2;" in (
        sde.verdict(still, config)
    )
    late = turned(frame.w2.where(frame.lam > 0, np.where(frame.nfe < 20, 1e-9, 1e3)))
    found = sde.best(late)
    assert (found.closer == (found.nfe >= 20)).all()
    told = [text.get_text() for ax in sde.draw(late, config).axes for text in ax.texts]
    assert told == ["SDE closer at 2 of 4"] * 4


def test_best_of_the_families_by_hand(sde_found):
    frame, _ = sde_found
    for row in sde.best(frame).itertuples(index=False):
        case, nfe, ode, noisy, closer = row
        at = frame[(frame.part == "model") & (frame.case == case) & (frame.nfe == nfe)]
        assert ode == at.w2[at.lam == 0].min()
        assert noisy == at.w2[at.lam > 0].min()
        assert closer == (noisy < ode)


# -- rectified flow -------------------------------------------------------------------------------
def shifted(shift: float, steps: int, start: float = 0.999, end: float = 1e-3) -> np.ndarray:
    u = np.linspace(start / (shift - (shift - 1) * start), end / (shift - (shift - 1) * end), steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def euler(mix, x, ts) -> list[np.ndarray]:
    states = [x]
    for t, s in itertools.pairwise(ts):
        states.append(states[-1] + (s - t) * mix.v(RF)(states[-1], float(t)))
    return states


def dpmpp_2m_lower_order_final(mix, x, ts) -> np.ndarray:
    """DPM-Solver++(2M), alg. 2 of Lu et al., its first and last steps of first order."""
    lam = np.log((1 - ts) / ts)
    h, old = np.diff(lam), None
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        new = mix.x0(RF)(x, float(t))
        first_order = i in (0, len(ts) - 2)
        d = new if first_order else new + (new - old) * h[i] / (2 * h[i - 1])
        x, old = s / t * x - (1 - s) * np.expm1(-h[i]) * d, new
    return x


def start(config):
    mix, x = problems.product_mixture(), problems.noise(config["samples"], 4, 0)
    return mix, x, mix.flow(RF, x, 0.999, 1e-3)


@pytest.mark.parametrize("shift", [1, 3])
def test_errors_on_the_rectified_flow_by_hand(flow_found, shift):
    frame, config = flow_found
    mix, x, truth = start(config)
    rows = frame[(frame.part == "error") & (frame.grid == f"shift{shift}") & (frame.calls == 10)].set_index("solver")
    ts = shifted(shift, 10)
    first = rms(euler(mix, x, ts)[-1] - truth)
    assert rows.rms["flow_euler"] == pytest.approx(first, rel=1e-7)
    assert rows.rms["ddim"] == pytest.approx(first, rel=1e-7)
    second = rms(dpmpp_2m_lower_order_final(mix, x, ts) - truth)
    assert rows.rms["dpmpp_2m*"] == pytest.approx(second, rel=1e-7)
    assert rows.ratio["dpmpp_2m*"] == pytest.approx(second / first, rel=1e-7)
    assert (rows.low <= rows.ratio * (1 + 1e-9)).all()
    assert (rows.high >= rows.ratio * (1 - 1e-9)).all()
    assert rows.nfe["flow_heun"] == 10


@pytest.mark.parametrize("shift", [1, 3])
def test_shares_sum_to_one_and_are_those_of_the_steps(flow_found, shift):
    frame, config = flow_found
    mix, x, truth = start(config)
    rows = frame[(frame.part == "step") & (frame.grid == f"shift{shift}")]
    assert np.allclose(rows.groupby("solver").share.sum(), 1.0, atol=1e-9)
    ts = shifted(shift, 5)
    states = euler(mix, x, ts)
    error = states[-1] - truth
    handed = [mix.flow(RF, u, float(t), 1e-3) for u, t in zip(states[:-1], ts[:-1], strict=True)] + [states[-1]]
    expected = [np.sum((b - a) * error) / np.sum(error**2) for a, b in itertools.pairwise(handed)]
    own = rows[rows.solver == "flow_euler"]
    assert np.allclose(own.share, expected, atol=1e-6)
    assert np.allclose(own.log_snr, np.diff(np.log((1 - ts) / ts)), rtol=1e-9)


def test_ends_of_the_grid(flow_found):
    frame, config = flow_found
    mix, x, _ = start(config)
    rows = frame[(frame.part == "end") & (frame.solver == "flow_euler")].set_index(["end", "gap"]).rms
    for end, gap, ts in (("t_start", 1e-2, shifted(3, 5, 0.99)), ("t_end", 1e-2, shifted(3, 5, end=1e-2))):
        expected = rms(euler(mix, x, ts)[-1] - mix.flow(RF, x, ts[0], ts[-1]))
        assert rows[end, gap] == pytest.approx(expected, rel=1e-7)
    same = frame[(frame.part == "error") & (frame.solver == "flow_euler") & (frame.grid == "shift3")]
    assert rows["t_end", 1e-3] == pytest.approx(same[same.calls == 5].rms.item(), rel=1e-7)


def test_flow_verdict_turns(flow_found):
    frame, config = flow_found
    cells = 2 * len(config["calls"])
    errors = (frame.part == "error") & ~frame.solver.isin(["flow_euler", "ddim"])
    good = frame.copy()
    good.loc[errors, ["ratio", "low", "high"]] = [0.5, 0.4, 0.6]
    assert flow.verdict(good, config) == "No samplers are mostly worse than Euler on rectified flows."
    bad = good.copy()
    bad.loc[errors & (bad.solver == "tab2"), ["ratio", "low", "high"]] = [3.0, 2.0, 4.0]
    bad.loc[(bad.part == "step") & (bad.solver == "tab2"), "share"] = 0.0
    bad.loc[(bad.part == "step") & (bad.solver == "tab2") & (bad.step == 0), "share"] = 1.0
    said = flow.verdict(bad, config)
    assert said.startswith("The first log-SNR step makes 100 % of the error of samplers worse than Euler ")
    assert said.endswith(f"; these are, in most of {cells} cells, tab2.")
    assert flow.draw(bad, config).texts[0].get_text().startswith("The first log-SNR step makes 100\xa0% ")
    standing = flow.standing(bad)
    assert standing.same["ddim"] == cells
    assert standing.worse["tab2"] == cells
    assert standing.worse["tab1"] == 0
    last = bad.copy()
    share = (last.part == "step") & (last.solver == "tab2") & (last.step == last.steps - 1)
    last.loc[share, "share"] = -3.0
    assert flow.headline_of(last).startswith("The last log-SNR step makes -300\xa0% of the error")
    both = good.copy()
    both.loc[errors & (both.solver == "dpmpp_2m"), ["ratio", "low", "high"]] = [3.0, 2.0, 4.0]
    assert "(*) take their median ratio to Euler from 3.0 to 0.50." in flow.verdict(both, config)


def test_data_without_an_exact_flow_have_errors_alone(flow_found):
    frame, config = flow_found
    only = frame[frame.part == "error"]
    assert "log-SNR" not in flow.verdict(only, config)
    assert len(flow.draw(only, config).axes) == 2


def test_digits_on_the_rectified_flow():
    frame, config = quick(flow, models=["digits"], solvers=["ddim"], calls=[5], grids=["shift3"], samples=4)
    assert set(frame.part) == {"error"}
    problem = studies.study("digits", config, RF)
    truth, estimate = problem.reference(1e-3)
    eps, x = problem.model, problem.x_T
    for t, s in itertools.pairwise(shifted(3, 5)):  # t x₀ part out: ẋ = (ε − x)/(1 − t) + ε
        e = eps(x, float(t))
        x = x + (s - t) * (e - (x - t * e) / (1 - t))
    data = torch.tensor(problems.digits())
    stays = torch.cdist(x, data).argmin(dim=1) == torch.cdist(truth, data).argmin(dim=1)
    assert 0 < stays.sum() < len(x)  # of the four one flips, and does not count
    assert frame[frame.solver == "flow_euler"].rms.item() == pytest.approx(rms((x - truth)[stays]), rel=1e-6)
    assert estimate < 1e-2


def as_network(monkeypatch, mix):
    def parts(process, config):
        return mix.eps(VP), mix, mix.sample(16), True

    monkeypatch.setitem(studies.MODELS, "network", ("a mixture as if learned on VP", parts))


def test_network_of_vp_on_the_rectified_flow(monkeypatch):
    mix = problems.product_mixture()
    as_network(monkeypatch, mix)
    config = {**flow.CONFIG, **flow.QUICK, "samples": 4, "t_start": 0.99}
    problem = studies.problem_on("network", config, RF)
    eps, x, truth, estimate = problem.model, problem.x_T, problem.truth, problem.estimate
    for t in (1e-3, 0.1, 0.5, 0.9, 0.99):
        assert np.allclose(eps(x, t), mix.eps(RF)(x, t), rtol=1e-8, atol=1e-12)
    assert problem.exact is None
    assert np.allclose(truth, mix.flow(RF, x, 0.99, 1e-3), atol=max(1e-4, 10 * estimate))
    assert torch.isfinite(eps(x, 0.9999)).all()


# -- guidance -------------------------------------------------------------------------------------
def test_guided_model_by_hand():
    config = {**guidance.CONFIG, "samples": 10}
    mix = guided.class_mixture(config)
    everything, each, d = guided.classes("mixture", config, VP)
    scales, x = [0.0, 1.0, 7.5], torch.tensor(problems.noise(10, 4, 3)).repeat(3, 1)
    found = guided.guided_eps(everything, each, scales, 10)(x, 0.3).numpy().reshape(3, 10, d)
    a, s, one = float(VP.alpha(0.3)), float(VP.sigma(0.3)), x[:10].numpy()
    v = a**2 * config["class_std"] ** 2 + s**2
    gaps = one[:, None] - a * mix.means
    share = softmax(-np.sum(gaps**2, axis=-1) / (2 * v), axis=1)
    plain = s / v * np.einsum("nk,nkd->nd", share, gaps)
    own = s / v * gaps[np.arange(10), np.arange(10) % 6]
    for w, rows in zip(scales, found, strict=True):
        assert np.allclose(rows, plain + w * (own - plain), rtol=1e-10, atol=1e-12)


def test_digits_of_all_classes_are_the_mean_of_the_classes():
    """E[ε | x] = Σ_c P(c | x) E[ε | x, c], with P(c | x) from the points' densities."""
    from sklearn.datasets import load_digits

    config, label, data = guidance.CONFIG, load_digits().target, problems.digits()
    everything, each, d = guided.classes("digits", config, VP)
    assert (len(each), d) == (10, 64)
    rng = np.random.default_rng(0)
    t = 0.15
    a, s = float(VP.alpha(t)), float(VP.sigma(t))
    x = a * data[[3, 500]].mean(axis=0) + s * rng.standard_normal((5, 64))
    v = (a * config["std"]) ** 2 + s**2
    points = softmax(-((x[:, None] - a * data) ** 2).sum(-1) / (2 * v), axis=1)
    share = np.stack([points[:, label == k].sum(axis=1) for k in range(10)], axis=1)
    assert (share.max(axis=1) < 0.999).any()
    found = np.stack([part(torch.tensor(x), t).numpy() for part in each], axis=1)
    assert np.allclose(everything(torch.tensor(x), t).numpy(), np.einsum("nk,nkd->nd", share, found), atol=1e-9)


def test_scale_one_is_the_flow_of_the_class(guidance_found):
    _, config = guidance_found
    problem = guidance.setup("mixture", config)
    process, x, truth, estimate = problem.process, problem.x_T, problem.truth, problem.estimate
    mix, n = guided.class_mixture(config), config["samples"]
    for i in range(12):
        k = i % config["classes"]
        own = da.GaussianMixture([1.0], mix.means[k : k + 1], mix.covariances[k : k + 1])
        gap = own.flow(process, x[i].numpy(), 1.0, 1e-3) - truth[i].numpy()
        assert np.abs(gap).max() < max(1e-4, 2 * estimate)
    assert torch.equal(x[:n], x[n : 2 * n])


def test_guided_errors_by_hand(guidance_found):
    frame, config = guidance_found
    problem = guidance.setup("mixture", config)
    process, model, x, truth = problem.process, problem.model, problem.x_T, problem.truth
    n, errors = config["samples"], {}
    for kind in config["grids"]:
        ts, state = da.grid(process, 10, kind, 1.0, 1e-3), x
        for t, s in itertools.pairwise(ts):
            ratio = float(VP.alpha(s) / VP.alpha(t))
            state = ratio * state + float(VP.sigma(s) - ratio * VP.sigma(t)) * model(state, float(t))
        errors[kind] = [rms(part) for part in (state - truth).split(n)]
    rows = frame[(frame.part == "error") & (frame.calls == 10) & (frame.solver == "ddim")]
    for i, row in enumerate(rows.sort_values("scale").itertuples()):
        best = min(errors, key=lambda kind: errors[kind][i])
        assert row.grid == best
        assert row.rms == pytest.approx(errors[best][i], rel=1e-7)
        assert row.low <= row.rms * (1 + 1e-9)
        assert row.high >= row.rms * (1 - 1e-9)


def test_ratios_and_winners_are_those_of_the_errors(guidance_found):
    frame, config = guidance_found
    errors = frame[frame.part == "error"].set_index(["scale", "calls", "solver"]).rms.sort_index()
    for row in frame[frame.part != "error"].itertuples():
        at = errors[row.scale, row.calls]
        assert row.ratio == pytest.approx(at[row.solver] / at[row.other], rel=1e-9)
        if row.part == "best":
            assert [row.solver, row.other] == list(at.sort_values().index[:2])
        if row.part == "class":
            assert (row.solver, row.other) == (at[config["x0"]].idxmin(), at[config["eps"]].idxmin())
    assert (frame[frame.part == "best"].ratio < 1).all()


def test_guidance_verdict_turns(guidance_found):
    frame, config = guidance_found
    large, classes = frame.scale == 15, frame.part == "class"
    pair = (frame.part == "pair") & (frame.solver == "dpmpp_2m")
    good, bad = frame.copy(), frame.copy()
    good.loc[large & (classes | pair), ["ratio", "low", "high"]] = [0.5, 0.4, 0.6]
    bad.loc[large & (classes | pair), ["ratio", "low", "high"]] = [2.0, 1.5, 2.5]
    begin = "At guidance scale 15 data prediction is clearly"
    assert guidance.verdict(good, config).startswith(f"{begin} better than noise prediction in 2 of 2 cases")
    assert guidance.verdict(bad, config).startswith(f"{begin} worse than noise prediction in 2 of 2 cases")
    assert "better for dpmpp_2m in 2, " in guidance.verdict(good, config)
    assert "better for dpmpp_2m in 0, " in guidance.verdict(bad, config)
    headline = guidance.draw(bad, config).texts[0].get_text().replace("\n", " ")
    assert guidance.verdict(bad, config).startswith(headline)
    small = frame.copy()
    small.loc[(frame.scale == 1) & (classes | pair), ["ratio", "low", "high"]] = [0.5, 0.4, 0.6]
    assert guidance.data_prediction(small).equals(guidance.data_prediction(frame))
    one = frame.copy()
    one.loc[one.part == "best", ["solver", "ratio", "low", "high"]] = ["tab3", 0.5, 0.4, 0.6]
    one.loc[(one.part == "best") & (one.scale == 15), ["solver", "high"]] = ["ddim", 1.2]
    end = "from scale 1 the best sampler of 10 calls goes on the mixture from tab3 to ddim (unclear)."
    assert guidance.verdict(one, config).endswith(end)


def test_at_scale_one_all_data_are_not_asked_for():
    asked = []

    def everything(x, t):
        asked.append(len(x))
        return torch.zeros_like(x)

    model = guided.guided_eps(everything, [lambda x, t: x], [1.0, 3.0], 2)
    assert torch.equal(model(torch.ones(4, 1), 0.5)[:, 0], torch.tensor([1.0, 1.0, 3.0, 3.0]))
    assert asked == [2]


def test_network_is_guided_toward_exact_modes(monkeypatch):
    mix = problems.product_mixture()
    as_network(monkeypatch, mix)
    config = {**guidance.CONFIG, **guidance.QUICK}
    everything, each, d = guided.classes("network", config, VP)
    assert (len(each), d) == (1, 4)  # one Gaussian in the first coordinate: guidance does nothing
    x = torch.tensor(problems.noise(3, 4, 0))
    assert np.allclose(guided.guided_eps(everything, each, [15.0], 3)(x, 0.4), everything(x, 0.4), atol=1e-10)


def test_classes_of_a_gaussian_are_its_laws_given_a_measurement():
    """Against conditioning of the joint law of (x, y); and with many classes mixed, they are the Gaussian again."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    mean, covariance = np.array([0.3, -0.2]), turn @ np.diag([0.5, 2.0]) @ turn.T
    whole = da.GaussianMixture([1.0], mean[None], covariance[None])
    u = turn[:, 1]  # of the larger variance, 2, and so measured with noise of variance 2
    joint = np.block([[covariance, (covariance @ u)[:, None]], [(u @ covariance)[None], np.array([[4.0]])]])
    for k, one in enumerate(sorted(guided.measured(whole, {"classes": 6}), key=lambda g: float(g.means[0] @ u))):
        y = norm.ppf((k + 0.5) / 6, u @ mean, 2.0)
        assert np.allclose(one.means[0], mean + joint[:2, 2] / joint[2, 2] * (y - u @ mean))
        assert np.allclose(one.covariances[0], covariance - np.outer(joint[:2, 2], joint[2, :2]) / joint[2, 2])
    many = guided.measured(whole, {"classes": 1001})
    means = np.array([one.means[0] for one in many])
    assert np.allclose(means.mean(axis=0), mean)
    assert np.allclose(np.cov(means.T) + many[0].covariances[0], covariance, atol=0.01)
    everything, each, d = guided.classes("gaussian", guidance.CONFIG, VP)
    assert (len(each), d) == (6, 64)
    x = torch.tensor(problems.noise(2, 64, 0))
    own = studies.study("gaussian", guidance.CONFIG).exact
    assert torch.allclose(everything(x, 0.4), own.eps(VP)(x, 0.4))
    assert torch.allclose(each[3](x, 0.4), guided.measured(own, guidance.CONFIG)[3].eps(VP)(x, 0.4))
