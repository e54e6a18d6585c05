"""Is a sampler that is read by two runs read as by three, and is every other one left to those?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import default_rng

import deis_analysis as da
from deis_analysis.tableau import extraction
from deis_analysis.tableau.extraction import count_calls, read_sampler

VP = da.VPLinear()
TS = da.grid(VP, 5)
GENERATOR = torch.Generator().manual_seed(0)


def by_table(name):
    table = da.build(name, VP, TS)
    return lambda model, x: da.run(table, model, x)


def with_draw(draw):
    """Euler's steps with what ``draw`` gives for the state added before each."""

    def sampler(model, x):
        for t in TS[:-1]:
            x = x - 0.1 * model(x, float(t)) + 0.5 * draw(x)
        return x

    return sampler


def clipped(model, x):
    return (x - 0.1 * model(x, 1.0)).clip(-4.0, 4.0)


def by_size(model, x):
    for _ in range(3 if float(abs(x).max()) < 2 else 4):
        x = x - 0.1 * model(x, 1.0)
    return x


def failing(model, x):
    raise RuntimeError("no")


DRAWS = {
    "torch": lambda x: torch.randn(x.shape, dtype=x.dtype),
    "torch like": torch.randn_like,
    "torch in place": lambda x: torch.empty_like(x).normal_(),
    "own generator": lambda x: torch.randn(x.shape, dtype=x.dtype, generator=GENERATOR),
    "numpy": lambda x: torch.as_tensor(np.random.default_rng(0).standard_normal(tuple(x.shape))),
    "numpy, bound before": lambda x: torch.as_tensor(default_rng(0).standard_normal(tuple(x.shape))),
}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["ddim", "tab2", "rhork_2heun", "unipc2_bh2_x0"])
def test_two_runs_say_what_three_say(name, backend):
    twice = extraction._read_twice(by_table(name), backend, "float64", 0)
    counted = extraction._read_counted(by_table(name), backend, "float64", 0)
    assert np.array_equal(twice.rows, counted.rows)
    assert np.array_equal(twice.told, counted.told)
    assert (twice.residual, twice.kinds, twice.asked) == (counted.residual, counted.kinds, counted.asked)
    assert twice.linear
    assert twice.precision == counted.precision


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_sampler_that_draws_is_listened_to(draw):
    assert extraction._read_twice(with_draw(draw), "torch", "float64", 0) is None
    reading = read_sampler(with_draw(draw))
    assert reading.noises == (0 if draw is DRAWS["numpy, bound before"] else 5)  # that one nobody can hear
    assert reading.linear == bool(reading.noises)


@pytest.mark.parametrize(
    "sampler", [clipped, by_size, failing, lambda model, x: x], ids=["clip", "size", "fail", "ask"]
)
def test_what_is_not_plainly_linear_is_left_to_the_three_runs(sampler):
    assert extraction._read_twice(sampler, "torch", "float64", 0) is None


def test_the_reasons_are_those_of_the_three_runs():
    assert read_sampler(by_size).note == "calls depend on the data"
    assert "clipped" in read_sampler(clipped).note
    with pytest.raises(extraction.Refusal, match="RuntimeError: no"):
        read_sampler(failing)
    with pytest.raises(extraction.Refusal, match="never called"):
        read_sampler(lambda model, x: x)


def test_nobody_else_s_draws_move():
    """What is drawn while it is only watched is put back."""
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert extraction._read_twice(with_draw(torch.randn_like), "torch", "float64", 0) is None
    assert count_calls(with_draw(torch.randn_like)) == 5
    assert torch.equal(torch.randn(3), expected)


def test_calls_that_depend_on_what_is_drawn_are_counted_with_noise_of_zero():
    def sampler(model, x):
        for _ in range(2 if float(torch.randn_like(x).abs().max()) == 0 else 7):
            x = x - 0.1 * model(x, 1.0)
        return x

    assert count_calls(sampler) == 2
