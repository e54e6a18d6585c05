"""Samplers made at random, clean and with a slip: every audit ends in a report, which names slips and nothing else.

Rows of the registry and linear rules that are in none, on the times handed over or on a list of their own that may end
elsewhere.  Six of each in CI; ``DEIS_ANALYSIS_FUZZ=150`` makes 300.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest

import deis_analysis as da

COUNT = int(os.environ.get("DEIS_ANALYSIS_FUZZ", "6"))
SEEDS = range(COUNT)
VP = da.VPLinear()
ROWS = (
    "ddim", "tab1", "tab2", "rhoab1", "rhoab2", "logrhoab1", "logrhoab2", "dpmpp_2m", "dpmpp_2m_exact", "dpm_2m_taylor",
    "dpmpp_3m_exact", "rhork_2heun", "rhork_3kutta", "euler", "unipc2_bh2_x0", "ipndm3", "obelm", "reversible_heun",
    "ddpm", "sde_dpmpp_2m", "euler_maruyama", "seeds_2",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A row of the registry, or `blend`, as a foreign sampler: on the times handed over, or on a list of its own."""

    row: str
    own_steps: int | None
    end: float  # of its own list, as a share of the last time handed over
    slip: float
    where: float  # share of the steps before the one with the slip
    which: float

    @property
    def unnamed(self):
        """Whether it is a `blend`, whose share stands in place of the name of a row."""
        return self.row not in ROWS

    def __call__(self, model, x, times):
        ts = np.asarray(times, dtype=np.float64)
        if self.own_steps is not None:
            ts = da.grid(VP, self.own_steps, "t2", float(ts[0]), self.end * float(ts[-1]))
        table = blend(ts, float(self.row)) if self.unnamed else da.build(self.row, VP, ts)
        if self.slip:
            table = self.slipped(table)
        table = table if table.prediction == "eps" else table.in_terms_of(VP, "eps")
        import torch

        noise = (lambda _: torch.randn_like(x)) if table.stochastic else None
        return da.run(table, model, x, noise)

    def slipped(self, table):
        """One coefficient of an output or of a state changed, by a share of the largest of its row."""
        parts = {name: matrix.toarray() for name, matrix in table.matrices._asdict().items()}
        name = "outputs" if self.which < 0.7 else "states"
        k = 1 + min(int(self.where * (table.times.size - 1)), table.times.size - 2)
        while not np.any(parts[name][k]):
            k -= 1
        columns = np.flatnonzero(parts[name][k])
        parts[name][k, columns[int(self.which * 1e6) % columns.size]] += self.slip * np.abs(parts[name][k]).max()
        return table.changed(**parts)


def blend(ts, share):
    """Exact on constants, with (1 + share) of the last output and -share of the one before: a rule of no registry."""
    alpha, sigma = VP.alpha(ts), VP.sigma(ts)
    n = ts.size
    states, outputs = np.zeros((n, n)), np.zeros((n, n))
    for k in range(1, n):
        states[k, k - 1] = alpha[k] / alpha[k - 1]
        weight = sigma[k] - states[k, k - 1] * sigma[k - 1]
        outputs[k, k - 1] = weight * (1.0 + share * (k > 1))
        if k > 1:
            outputs[k, k - 2] = -weight * share
    return da.Tableau(ts, states, outputs, name="blend")


def made(seed, slip):
    rng = np.random.default_rng([seed, int(slip)])
    size = 10.0 ** rng.uniform(-5, -0.5) * rng.choice([-1, 1]) if slip else 0.0
    own = int(rng.integers(4, 25)) if not slip and rng.random() < 0.2 else None
    row = f"{rng.uniform(-0.4, 0.4):.6f}" if rng.random() < 0.2 else str(rng.choice(ROWS))
    end = float(rng.choice([0.5, 1.0, 3.0]))
    return Made(row, own, end, float(size), float(rng.random()), float(rng.random()))


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_ones_have_no_error_but_an_end_that_was_not_asked_for(seed):
    sampler = made(seed, False)
    report = da.audit_sampler(sampler, convention="times")
    elsewhere = sampler.own_steps is not None and sampler.end != 1
    wrong = {f.code: f.message for f in report.findings if f.severity == "error"}
    assert set(wrong) == ({"SCH-LAST-LEVEL"} if elsewhere else set()), sampler
    if elsewhere:
        assert f"{float(VP.rho(sampler.end * VP.sampling_range[1])):.4g}" in wrong["SCH-LAST-LEVEL"], sampler
    if sampler.row != "seeds_2" and not sampler.unnamed:  # two noises a step are read with other intervals than it has
        assert report.nearest is None or report.nearest["distance"] < 1e-8, sampler
    if sampler.unnamed:
        assert report.nearest is None or report.nearest["distance"] > 1e-4, sampler


@pytest.mark.parametrize("seed", sorted({*SEEDS, 109}))  # 109: 3e-5 in the state of the last step
def test_slips_are_named(seed):
    sampler = made(seed, True)
    report = da.audit_sampler(sampler, convention="times")
    codes = {f.code for f in report.findings}
    assert "ID-EQUAL" not in codes or {f.code for f in report.findings if f.severity != "info"}, sampler
