"""The README's "Which sampler?" is what `choose` and `tune` found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments.study import tuned_samplers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.read_csv(ROOT / "figures" / "tuned_samplers.csv")


def test_the_readme_shows_the_table_that_was_measured(frame):
    assert "\n".join(tuned_samplers.which(frame)) in (ROOT / "README.md").read_text()


def test_every_cell_was_measured(frame):
    cells = frame[frame.part == "cell"]
    for model, counts in tuned_samplers.CONFIG["cells"].items():
        for nfe in counts:
            found = set(cells[(cells.model == model) & (cells.nfe == nfe)].what)
            parts = set(tuned_samplers.PARTS) if nfe == tuned_samplers.CONFIG["parts_at"].get(model) else set()
            assert found == {"published", "aware", "registry", "both"} | parts


def test_bands_hold_their_ratios(frame):
    cells = frame[frame.part == "cell"]
    assert (cells.ratio_low <= cells.ratio + 1e-9).all()
    assert (cells.ratio <= cells.ratio_high + 1e-9).all()
    assert (cells.energy_low <= cells.energy_ratio + 1e-9).all()
    assert (cells.energy_ratio <= cells.energy_high + 1e-9).all()
