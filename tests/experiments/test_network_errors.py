"""What networks are off by: are the numbers those of models whose errors are known, and do the sentences turn?"""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from quick_runs import quick, quick_anew

import deis_analysis as da
from deis_analysis import networks as learned
from experiments.core import style
from experiments.models import problems, score_defects, studies
from experiments.models.image_data import read_images
from experiments.networks import floors
from experiments.networks import network_errors as errors

VP = da.VPLinear()
CONFIG = {**errors.CONFIG, **errors.QUICK, "data_root": None}


@pytest.fixture(scope="module")
def errors_found():
    return quick(errors, data_root=None)


@pytest.fixture(scope="module")
def floors_found():
    return quick(floors)


def images_of(points: np.ndarray) -> dict[str, torch.Tensor]:
    """Two-pixel images, all to train on, and the same held out."""
    return dict.fromkeys(("train", "held_out"), torch.as_tensor(points))


def points(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)


# -- fitting error --------------------------------------------------------------------------------
def test_exact_denoiser_as_network_has_no_fitting_error():
    images = errors.images_of(learned.load("digits8"), CONFIG)
    ideal, again = (da.ideal_denoiser(data, VP) for data in (images["train"], images["train"].double()))
    for row in errors.fitting_rows(again, ideal, VP, images, CONFIG):
        assert row["fit"] < 1e-20 * row["size"]
        assert row["loss"] == pytest.approx(row["ideal_loss"], abs=1e-12)


@pytest.mark.parametrize("process", [VP, da.RectifiedFlow(), da.VE()], ids=["vp", "flow", "ve"])
def test_a_scale_error_is_measured_as_it_is(process):
    images = images_of(points(40))
    ideal = da.ideal_denoiser(images["train"], process)
    rows = errors.fitting_rows(lambda x, t: 1.01 * ideal(x, t), ideal, process, images, CONFIG)
    assert [row["rho"] for row in rows] == 2 * CONFIG["levels"]
    for row in rows:
        assert process.rho(row["t"]) == pytest.approx(row["rho"], rel=1e-9)
        assert row["fit"] == pytest.approx(1e-4 * row["size"], rel=1e-9)
        assert row["fit_low"] <= row["fit"] <= row["fit_high"]


def test_loss_is_fitting_error_plus_the_least_loss(monkeypatch):
    """E|ε_θ − ε|² = E|ε_θ − ε*|² + E|ε* − ε|² where x₀ is drawn from the data, because ε* = E[ε | x_t]."""
    monkeypatch.setattr(errors, "bootstrap_ratio", lambda *_: (0.0, 0.0))  # of so many it is dear, and not looked at
    images = images_of(np.tile(points(50), (400, 1)))  # 400 draws of each of 50 points
    ideal = da.ideal_denoiser(images["train"][:50], VP)
    config = {**CONFIG, "samples": 20000, "batch": 20000, "levels": [0.3, 1.0]}
    for row in errors.fitting_rows(lambda x, t: torch.tanh(x), ideal, VP, images, config):
        assert row["loss"] == pytest.approx(row["fit"] + row["ideal_loss"], rel=0.03)  # 1/sqrt(20000) times some
        assert min(row["fit"], row["ideal_loss"]) > 0.1 * row["loss"]  # neither part is nothing


def test_held_out_images_are_not_the_training_images(errors_found):
    """Close to the data the ideal denoiser knows the noise of its own images, and only of these; a network does not."""
    frame, _ = errors_found
    low = frame[(frame.part == "fitting") & (frame.rho == 0.05)].set_index("images")
    assert low.ideal_loss["train"] < 1e-12
    assert low.ideal_loss["held_out"] > 10 * low.loss["held_out"]
    assert low.loss["held_out"] < 1.5 * low.loss["train"]


def test_numbers_are_those_of_the_network_itself(errors_found):
    frame, config = errors_found
    net = learned.load("digits8")
    images = read_images("digits")
    pick = np.random.default_rng(0).permutation(len(images.held_out))[: config["samples"]]
    x0 = images.held_out[pick].astype(np.float64).reshape(-1, 64)
    z = problems.noise(len(x0), 64, 0)
    t = float(VP.time_from_rho(0.4))
    x = VP.alpha(t) * x0 + VP.sigma(t) * z
    with torch.no_grad():
        found = net.model(torch.tensor(x).reshape(-1, 1, 8, 8), t).reshape(-1, 64).numpy()
    train = images.train.astype(np.float64).reshape(-1, 64)
    logits = -((x[:, None, :] - VP.alpha(t) * train) ** 2).sum(-1) / (2 * VP.sigma(t) ** 2)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = (x - VP.alpha(t) * (weights / weights.sum(axis=1, keepdims=True)) @ train) / VP.sigma(t)
    row = frame[(frame.images == "held_out") & (frame.rho == 0.4)].iloc[0]
    assert row.fit == pytest.approx(np.mean((found - best) ** 2), rel=1e-5)  # float32 network, batches of other sizes
    assert row.loss == pytest.approx(np.mean((found - z) ** 2), rel=1e-5)
    assert row.ideal_loss == pytest.approx(np.mean((best - z) ** 2), rel=1e-9)


def test_other_images_than_those_trained_on_are_refused():
    net = learned.load("digits8")
    images, digits = errors.images_of(net, CONFIG), read_images("digits")
    assert len(images["train"]) == net.card["data"]["images"]
    np.testing.assert_array_equal(images["held_out"].reshape(digits.held_out.shape), digits.held_out)
    card = {**net.card, "data": {**net.card["data"], "sha256": hashlib.sha256(b"others").hexdigest()}}
    with pytest.raises(ValueError, match="not the images that 'digits8' was trained on"):
        errors.images_of(dataclasses.replace(net, card=card), CONFIG)


@pytest.fixture(scope="module")
def own_path():
    return errors.path_rows(learned.load("digits8"), None, CONFIG)


@pytest.mark.parametrize("card", [None, {"data": {"name": "mnist", "sha256": "0"}}, {"data": {"name": "my own"}}])
def test_without_training_images_only_their_rows_are_missing(card, own_path, monkeypatch):
    net = dataclasses.replace(learned.load("digits8"), card=card)
    monkeypatch.setattr(studies, "image_network", lambda *_: net)
    monkeypatch.setattr(errors, "path_rows", lambda _, ideal, config: asked.append((ideal, config)) or own_path)
    monkeypatch.setattr(score_defects, "network_rows", lambda _, process, clean, config: seen.append(clean) or measures)
    seen: list[torch.Tensor] = []
    measures = [
        {"part": "derivative", "measure": m, "rho": 1.0, "value": 0.1, "low": 0.1, "high": 0.1}
        for m in ("asymmetry", "residual")
    ]
    asked: list[tuple[None, dict]] = []
    frame, config = quick_anew(errors, data_root=None)
    assert asked == [(None, CONFIG)]
    assert set(frame.part) == {"reference", "path", "derivative"}
    assert set(frame.field.dropna()) == {"network"}
    assert errors.verdict(frame, config).startswith("Jacobians are asymmetric by up to 0.")
    assert "images" not in errors.verdict(frame, config)
    loss = errors.draw(frame, config).axes[0]
    assert [text.get_text() for text in loss.texts] == ["training images\nnot at hand"]
    assert seen[0].shape == (config["path_samples"], 64)  # its own samples instead
    assert 0.3 < float(seen[0].abs().mean()) < 1.2  # images in [-1, 1], mostly at the two ends


# -- change along the flow ------------------------------------------------------------------------
def test_changes_of_a_known_prediction():
    """ε = t is exact from degree 1 on; frozen it is off by t − τ, and the frozen score −ε/σ by σ_τ (t/σ_t − τ/σ_τ)."""
    config = {**CONFIG, "points": 2, "degrees": [0, 1]}
    ts = da.grid(VP, 5, "t2")
    eps = {t: np.full((3, 2), t) for t in problems.step_points(ts, 2)}
    for row in errors.changes(eps, VP, ts, config):
        t, tau = float(ts[row["step"]]), row["t"]
        frozen = t - tau
        if row["quantity"] == "s":
            frozen = t * float(VP.sigma(tau) / VP.sigma(t)) - tau
        elif row["degree"] == 1 and row["step"] > 0:
            frozen = 0.0
        assert row["delta"] == pytest.approx(abs(frozen), abs=1e-12)


def test_path_of_the_network_ends_at_its_samples(errors_found):
    net = learned.load("digits8")
    config = {**CONFIG, "path_samples": 1, "rtol": 1e-5}
    rows, ends = errors.path_rows(net, None, config)
    x_T = torch.tensor(problems.noise(1, 64, 0))
    table = da.build("rhork_4rk", VP, da.grid(VP, 60, "logrho")).in_terms_of(VP, "eps")
    exact = da.run(table, studies.flat(net, VP), x_T) / float(VP.alpha(1e-3))
    estimate = next(row["estimate"] for row in rows if row["part"] == "reference")
    assert float((ends - exact).abs().max()) < estimate < 0.01


# -- is it a score? -------------------------------------------------------------------------------
S = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64)
TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(("full", "slack"), [(100, 1e-12), (2, 0.1)], ids=["exact", "probes"])
@pytest.mark.parametrize("curl", [0.0, 0.01, 0.7])
def test_a_known_curl_is_measured(curl, full, slack):
    """J = −(S + κK): ‖J − Jᵀ‖ = 2√2 κ."""
    matrix = S + curl * TURN
    config = {**CONFIG, "full_jacobian": full, "jacobian_probes": 400}
    value, low, high = score_defects.asymmetry(lambda x, t: -x @ matrix.T, torch.randn(4, 3).double(), 0.3, config)
    assert value == pytest.approx(2 * math.sqrt(2) * curl / float((matrix**2).sum() ** 0.5), rel=slack, abs=1e-12)
    assert low <= value * (1 + 1e-9)
    assert value <= high * (1 + 1e-9) + 1e-15


def gaussian_score(variance: float, scale: float = 1.0):
    """scale times the score of N(0, variance) data."""
    return lambda x, t: -scale * x / (float(VP.alpha(t)) ** 2 * variance + float(VP.sigma(t)) ** 2)


@pytest.mark.parametrize("full", [100, 2], ids=["exact", "probes"])
def test_residual_of_a_scaled_gaussian_score(full):
    """s = −c x/q: ∂s/∂t = c q̇/q² x, the other side c (g² c/q² + 2f/q) x, q̇ = 2fq + g²; equal for c = 1."""
    t, x = 0.3, torch.tensor(problems.noise(5, 3, 0))
    config = {**CONFIG, "full_jacobian": full, "divergence_probes": 2}
    assert score_defects.residual(gaussian_score(0.4), VP, x, t, config)[0] < 1e-8
    q = float(VP.alpha(t)) ** 2 * 0.4 + float(VP.sigma(t)) ** 2
    f, g2 = float(VP.drift(t)), float(VP.diffusion_squared(t))
    for c in (0.5, 1.01):
        left, right = c * (2 * f * q + g2) / q**2, c * (g2 * c / q**2 + 2 * f / q)
        value, low, high = score_defects.residual(gaussian_score(0.4, c), VP, x, t, config)
        assert value == pytest.approx(abs(left - right) / (abs(left) + abs(right)), rel=1e-6)
        assert low == pytest.approx(high, rel=1e-6)  # a ratio of two lines through 0 is the same at all points


@pytest.mark.parametrize("process", [VP, da.RectifiedFlow(), da.VE()], ids=["vp", "flow", "ve"])
def test_reverse_mode_is_the_package_residual(process):
    t = float(process.time_from_rho(0.7))
    x = torch.tensor(problems.noise(4, 3, 1))

    def score(y, u):
        return torch.sin(y @ S) * (1 + u) + y[:, [1, 2, 0]] ** 2

    rate, _ = da.diagnostics.time_derivative(score, process, x, t)
    found = score_defects.exact_residual(score, process, x, t, rate)
    assert torch.allclose(found, da.fokker_planck_residual(score, process, x, t), rtol=1e-10, atol=1e-10)


def test_noise_of_random_directions_is_no_residual():
    """A true score: one estimate is as far from 0 as its directions are noisy, the product of two only by chance."""
    score = da.diagnostics.as_score(da.ideal_denoiser(torch.as_tensor(points(20)).double(), VP, std=0.3), VP)
    x, t = torch.tensor(problems.noise(4000, 2, 2)), 0.1
    config = {**CONFIG, "full_jacobian": 1, "divergence_probes": 1}
    rate, _ = da.diagnostics.time_derivative(score, VP, x, t)
    one = da.fokker_planck_residual(score, VP, x, t, probes=1, seed=CONFIG["seed"])
    relative = float(one.square().mean() ** 0.5 / (rate.square().mean() ** 0.5 + (rate - one).square().mean() ** 0.5))
    assert relative > 0.05
    assert score_defects.residual(score, VP, x, t, config)[0] < 0.7 * relative  # with one seed twice it is that
    assert score_defects.residual(score, VP, x[:50], t, {**config, "full_jacobian": 2})[0] < 1e-7


def test_random_directions_agree_with_all_of_them():
    x = torch.tensor(problems.noise(200, 3, 2))

    def score(y, u):
        return torch.sin(2 * y @ S) * (1 + u)

    exact = score_defects.residual(score, VP, x, 0.3, {**CONFIG, "full_jacobian": 100})[0]
    value, low, high = score_defects.residual(score, VP, x, 0.3, {**CONFIG, "full_jacobian": 2, "divergence_probes": 2})
    assert value == pytest.approx(exact, rel=0.05)
    assert low < value < high


def test_networks_are_differentiable_twice_inside_and_unchanged():
    net = learned.load("digits8", dtype=torch.float64)
    eps, x = errors.eps_of(net), torch.tensor(problems.noise(1, 64, 0))
    before, v = eps(x, 0.5), torch.tensor(problems.noise(1, 64, 1))
    with score_defects.differentiable():
        assert torch.allclose(eps(x, 0.5), before, rtol=0, atol=1e-12)
        along = torch.func.jvp(lambda y: eps(y, 0.5), (x,), (v,))[1]
    difference = (eps(x + 1e-5 * v, 0.5) - eps(x - 1e-5 * v, 0.5)) / 2e-5
    assert torch.allclose(along, difference, rtol=0, atol=1e-7)
    assert not torch.nn.modules.module._global_forward_pre_hooks


# -- the sentence of network_errors ---------------------------------------------------------------
def test_errors_verdict_turns_with_the_data(errors_found):
    frame, config = errors_found
    levels = len(config["levels"])
    held = frame.images == "held_out"
    for band, better, worse in (([0.25, 0.2, 0.3], levels, 0), ([4.0, 3.0, 5.0], 0, levels), ([0.9, 0.8, 1.2], 0, 0)):
        turned = frame.copy()
        turned.loc[held, ["ratio", "ratio_low", "ratio_high"]] = band
        said = errors.verdict(turned, config)
        assert f"at {better} of {levels} noise levels, at {worse} they are worse;" in said
        assert said.startswith(errors.headline(turned))
    turned = frame.copy()
    turned.loc[(turned.measure == "residual") & (turned.model == "digits8"), "value"] = 0.97
    turned.loc[turned.measure == "asymmetry", "value"] = 0.33
    turned.loc[(turned.measure == "fitting") & (turned.t == 0.9), "value"] = 123.0
    path = (turned.part == "path") & (turned.field == "network") & (turned.quantity == "eps")
    turned.loc[path & (turned.degree == 3), "delta"] = 0.5
    turned.loc[path & (turned.degree == 0), "delta"] = 0.25
    assert errors.verdict(turned, config).endswith(
        "degree 3 leaves 2.0 of a frozen ε's change; Jacobians are asymmetric by up to 0.33; "
        "Fokker–Planck residuals are up to 0.97; errors of the score up to 123."
    )


def test_errors_figure_is_drawn(errors_found):
    figure = errors.draw(*errors_found)
    assert len(figure.axes) == 4
    headline = figure.texts[0].get_text().replace("\n", " ")
    assert errors.verdict(*errors_found).startswith(f"{headline}, ")
    assert all(ax.lines for ax in figure.axes)


def test_what_is_drawn_is_what_was_measured(errors_found):
    frame, _ = errors_found
    lines = errors.curves(frame).set_index("line").value
    held = frame[frame.images == "held_out"]
    assert list(lines["loss held_out"]) == list(held.loss)
    assert list(lines["ideal_loss held_out"]) == list(held.ideal_loss)
    path = frame[(frame.part == "path") & (frame.quantity == "eps") & (frame.degree == 3)]
    assert list(lines["eps 3 network"]) == list(path[path.field == "network"].delta)
    assert list(lines["eps 3 ideal"]) == list(path[path.field == "ideal"].delta)
    assert set(lines.index) == set(errors.LOOKS)


# -- floors ---------------------------------------------------------------------------------------
def floors_of(frame, variant):
    return frame[(frame.part == "sample") & (frame.variant == variant)]


def test_floor_of_single_precision_is_rounding(floors_found):
    frame, _ = floors_found
    single, half = (floors_of(frame, variant).gap for variant in ("float32", "bfloat16"))
    assert single.between(1e-9, 1e-4).all()
    assert single.max() > 1e-8  # an ulp of 1 is 6e-8
    assert half.max() > 1e3 * single.max()  # 2^16 times coarser


def test_exact_network_has_no_gap(floors_found):
    own = floors_of(floors_found[0], "exact")
    assert (own.gap == 0).all()
    assert (own.error > 0).all()


def test_gap_and_error_by_hand(floors_found):
    frame, config = floors_found
    exact, rounded = (learned.load("digits8", dtype=torch.float64, times=times) for times in ("fractional", "nearest"))
    x_T = torch.tensor(problems.noise(config["samples"], 64, config["seed"]))
    table = da.build("tab3", VP, da.grid(VP, 20, "t2", 1.0, 1e-3)).in_terms_of(VP, "eps")
    flat = [lambda x, t, net=net: net.model(x.reshape(-1, 1, 8, 8), t).reshape(x.shape) for net in (exact, rounded)]
    found = [da.run(table, model, x_T) for model in flat]
    asked = []
    told = da.run(table, lambda x, t: asked.append(t) or flat[0](x, round(100 * t) / 100), x_T)  # 100 t is told
    assert len(asked) == 20
    row = frame[(frame.model == "digits8") & (frame.variant == "nearest") & (frame.calls == 20)].iloc[0]
    assert row.gap == pytest.approx(float(((found[0] - found[1]) ** 2).mean() ** 0.5), rel=1e-7)
    assert row.gap == pytest.approx(float(((found[0] - told) ** 2).mean() ** 0.5), rel=1e-6)
    fine = da.build("rhork_4rk", VP, da.grid(VP, 60, "logrho", 1.0, 1e-3)).in_terms_of(VP, "eps")
    truth = da.run(fine, flat[0], x_T)
    assert row.error == pytest.approx(float(((found[1] - truth) ** 2).mean() ** 0.5), rel=0.05)


def test_floors_verdict_turns_with_the_data(floors_found):
    frame, config = floors_found
    assert floors.rules_from(frame, config)["float32"] == np.inf
    turned = frame.copy()
    turned.loc[turned.variant == "float32", ["gap", "gap_low"]] = 9.0
    turned.loc[turned.variant.isin(["bfloat16", "nearest", "linear"]), ["gap", "gap_low"]] = 1e-9
    assert floors.rules_from(turned, config)["float32"] == 10
    one = turned[(turned.part == "sample") & (turned.model == "digits8")]
    other = one.assign(model="another", gap_low=0.0)
    assert floors.rules_from(pd.concat([turned, other]), config)["float32"] == np.inf  # not with every network
    turned.loc[(turned.variant == "float32") & (turned.calls == 20), "gap_low"] = 0.0
    assert floors.rules_from(turned, config)["float32"] == np.inf  # not from there on
    turned.loc[turned.variant == "float32", "gap_low"] = np.where(turned.calls[turned.variant == "float32"] < 20, 0, 9)
    said = floors.verdict(turned, config)
    assert floors.rules_from(turned, config)["float32"] == 20
    assert said.startswith("float32 cost samples of all networks more than tab3's own error from 20 calls on; ")
    assert "at 20 calls at most float32 9, bfloat16 1e-9," in said
    turned.loc[turned.part == "sample", ["gap", "gap_low"]] = 0.0
    assert floors.verdict(turned, config).startswith("No arithmetic costs")
    turned.loc[(turned.variant == "exact") & (turned.model == "digits8") & (turned.calls == 20), "error"] = 7.0
    turned.loc[turned.method == "quadrature", "error"] = 0.5
    turned.loc[(turned.method == "closed64") & (turned.step < 1e-3), "error"] = np.nan
    said = floors.verdict(turned, config)
    assert "(own error 7)" in said
    worst = turned[turned.method == "riemann64"].error.max()
    assert f"quadrature errs by at most 0.50, the released Riemann sum by {style.as_text(worst)}, and" in said
    lost = turned[(turned.method == "closed64") & (turned.step < 1e-3)].step.max()
    assert f"a closed form has no digit at steps up to {style.as_text(lost, 1)}" in said


def test_weights_by_quadrature_are_exact_and_the_other_ways_are_not(floors_found):
    worst = floors_found[0].groupby(["panel", "method"]).error.max()
    assert (worst[:, "quadrature"] < 1e-13).all()
    assert 1e-5 < worst["t", "riemann64"] < 1e-3
    assert worst["lam", "closed64"] > 1
    h = 1e-2  # their exact values by series, degree 2 in λ: h(φ1 + 3φ2/2 + φ3), −2h(φ2 + φ3), h(φ2/2 + φ3)
    phi = [sum(h**i / math.factorial(i + k) for i in range(20)) for k in range(4)]
    series = [h * (phi[1] + 1.5 * phi[2] + phi[3]), -2 * h * (phi[2] + phi[3]), h * (phi[2] / 2 + phi[3])]
    assert np.allclose(floors._closed(np.float64(h), lambda h: np.exp(h) - 1), series, rtol=1e-8)


def test_floors_figure_and_bad_input(floors_found):
    frame, config = floors_found
    figure = floors.draw(frame, config)
    assert len(figure.axes) == 2 + len(config["models"])
    assert floors.verdict(frame, config).startswith(figure.texts[0].get_text().replace("\n", " ") + "; ")
    note = figure.texts[1].get_text().replace("\n", " ")
    assert "2 samples" in note
    assert ", below all errors;" in note
    frame = frame.assign(agreement=frame.agreement.where(frame.model != "digits8", 1.0))
    assert "not below all errors of digits8;" in floors.draw(frame, config).texts[1].get_text().replace("\n", " ")
    with pytest.raises(ValueError, match="'float8' is unknown; allowed: float32, bfloat16"):
        floors.load("digits8", "float8", config)
    study = studies.on_its_own_process("digits8", config)
    heun = floors.sampled(study, {**config, "solver": "rhork_2heun", "calls": [20]}, study.model)  # two calls a step
    assert torch.equal(heun[20], study.solve("rhork_2heun", da.grid(study.process, 10, config["grid"])))


def test_frames_are_tidy(errors_found, floors_found):
    for frame, config in (errors_found, floors_found):
        assert set(frame.model) - {"weights"} == set(config["models"])
        assert frame.part.notna().all()
        assert np.isfinite(
            frame.select_dtypes("number").to_numpy()[frame.select_dtypes("number").notna().to_numpy()]
        ).all()
        assert isinstance(frame, pd.DataFrame)
