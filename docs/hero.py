"""``python -m docs.hero``: the README's picture, mnist28's samples, from the data of the figure network_samples."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from experiments.networks import network_samples

FIGURES = Path(__file__).parents[1] / "figures"
PICTURE = Path(__file__).parent / "assets" / "hero.png"


def draw(place: Path) -> None:
    """The picture, as a PNG at ``place``."""
    frame = pd.read_csv(FIGURES / "network_samples.csv", dtype={"pixels": str})
    config = json.loads((FIGURES / "network_samples.json").read_text(encoding="utf-8"))["config"]
    shown = frame[frame.model == "mnist28"]
    network_samples.draw(shown, config).savefig(place, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    draw(PICTURE)
