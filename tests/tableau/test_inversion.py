"""Reversible samplers, there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, grids, mixtures, processes

import deis_analysis as da

VP = da.VPLinear()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
X = MIX.sample(64, 0, VP, 1.0)
REVERSIBLE = ("bdia", "bdia_half", "obelm", "obelm_x0", "reversible_heun")


def round_trip(name, steps, x=X, kind="t2"):
    table = da.build(name, VP, da.grid(VP, steps, kind))
    return da.round_trip_error(table, MIX.model(VP, table.prediction), x)


@pytest.mark.parametrize("kind", ["t1", "rho7"])
@pytest.mark.parametrize("name", ["bdia", "obelm", "obelm_x0", "reversible_heun"])
def test_round_trips_over_640_steps(name, kind):
    assert round_trip(name, 640, kind=kind) <= 1e-12


def test_obelm_loses_digits_where_its_growth_is_large():
    """∏ 1/G is 1e5 on equal steps of t and 1e10 on quadratic ones of the cosine process: 2e-14 against 2e-9."""
    cosine = da.VPCosine()
    table = da.build("obelm", cosine, da.grid(cosine, 640, "t2"))
    x = MIX.sample(64, 0, cosine, cosine.t_max)
    assert 1e-10 < da.round_trip_error(table, MIX.eps(cosine), x) < 1e-7
    assert da.invert(table).growth(cosine) > 1e9
    assert round_trip("obelm", 640, kind="t1") < 1e-13
    assert round_trip("bdia", 640) < 1e-13


def test_the_round_trip_of_bdia_at_one_half_is_lost_to_rounding():
    """Rounding grows by 1/G a step: 5e-11 after 20 steps, 5e-5 after 40, everything after 80."""
    assert 1e-12 < round_trip("bdia_half", 20) < 1e-9
    assert 1e-6 < round_trip("bdia_half", 40) < 1e-3
    with np.errstate(all="ignore"):
        assert round_trip("bdia_half", 80) > 1
    assert round_trip("bdia", 80) < 1e-13


def test_growth_is_the_product_of_1_over_g():
    ts = da.grid(VP, 9)
    alpha, rho = VP.alpha(ts), VP.rho(ts)
    for gamma in (0.5, 1.0):
        growth = da.invert(da.bdia(VP, ts, gamma)).growth(VP)
        assert np.isclose(growth, np.prod(alpha[2:] / (gamma * alpha[:-2])), rtol=1e-9)
    growth = da.invert(da.build("obelm", VP, ts)).growth(VP)
    delta = np.diff(rho)
    assert np.isclose(growth, np.prod((delta[:-1] / delta[1:]) ** 2), rtol=1e-9)
    heun = da.invert(da.build("reversible_heun", VP, ts))
    assert np.isclose(heun.growth(VP), 2.0)  # ŷ₁ = y₀ + Δ p₀ at the start
    later = da.Inversion(heun.tableau, heun.blocks[:-1])  # every step but the first, which is undone last
    assert np.isclose(later.growth(VP), 1.0)


@given(st.sampled_from(REVERSIBLE), processes(), mixtures(), st.data())
def test_short_round_trips_on_any_process(name, process, mix, data):
    ts = data.draw(grids(process, min_steps=2, max_steps=6))
    table = da.build(name, process, ts)
    x = float(process.sigma(ts[0])) * np.linspace(-1.5, 1.5, 5)
    model, inversion = mix.model(process, table.prediction), da.invert(table)
    _, kept = da.run(table, model, x, keep="all")
    if max(np.abs(s).max() for s in kept.states.values()) > 1e6 * np.abs(x).max():
        return  # a wild grid, on which the two-step methods are unstable
    back = inversion.run(model, *(kept.states[k] for k in inversion.needs))
    sizes = [abs(c) for block in inversion.blocks for row in block for c, _ in (*row.states, *row.outputs)]
    assert np.allclose(back, x, atol=1e-13 * np.prod([max(s, 1.0) for s in sizes]) * np.abs(x).max())


def test_only_reversible_tables_can_be_inverted():
    ts = da.grid(VP, 5)
    for name in DETERMINISTIC:
        if name in REVERSIBLE:
            assert da.invert(da.build(name, VP, ts)).needs == (da.build(name, VP, ts).times.size - 1,) * 1 + (
                da.build(name, VP, ts).times.size - 2,
            )
        else:
            with pytest.raises(ValueError, match="is not reversible: its step from node"):
                da.invert(da.build(name, VP, da.grid(VP, 6)))
    with pytest.raises(ValueError, match="draws noise"):
        da.invert(da.build("ddpm", VP, ts))


def test_inversion_in_torch_under_a_mean_and_with_bad_input():
    process = da.MeanReverting(VP, 0.7)
    mix = da.GaussianMixture(MIX.weights, MIX.means + 0.7, MIX.covariances)
    ts = da.grid(process, 12)
    for name in ("obelm", "obelm_x0"):
        table = da.build(name, process, ts)
        inversion, model = da.invert(table), mix.model(process, table.prediction)
        x = torch.as_tensor(X + 0.7)
        _, kept = da.run(table, model, x, keep=inversion.needs)
        last, before = (kept.states[k] for k in inversion.needs)
        assert torch.allclose(inversion.run(model, last, before), x, atol=1e-10)
        with pytest.raises(ValueError, match=r"before has shape \(3,\); allowed: \(64,\)"):
            inversion.run(model, last, before[:3])


def test_bad_input_is_named():
    inversion = da.invert(da.build("obelm", VP, da.grid(VP, 5)))
    cases = [
        (lambda: da.invert("obelm"), "tableau='obelm' must be a Tableau"),
        (lambda: da.round_trip_error(None, MIX.eps(VP), X), "tableau=None must be a Tableau"),
        (lambda: inversion.growth(None), "process=None must be a Process"),
        (lambda: inversion.run(None, X, X), "model=None must be a function"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
