"""Data of the page to play with: nodes, rows, trajectories and errors of samplers on a 1-D mixture, as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import deis_analysis as da

PROCESSES = {
    "VPLinear": da.VPLinear(), "VPCosine": da.VPCosine(), "EDM": da.EDM(), "RectifiedFlow": da.RectifiedFlow()
}  # fmt: skip
GRIDS = ("t1", "t2", "t3", "rho7", "logrho")
SAMPLERS = (
    "ddim", "tab1", "tab2", "tab3", "rhoab2", "logrhoab2", "ipndm4", "dpm_2", "dpm_3", "dpmpp_2m", "dpmpp_3m_exact",
    "unipc2_bh2_x0", "edm_heun", "rhork_2heun", "rhork_3kutta", "flow_euler", "flow_heun",
)  # fmt: skip
STEPS = (4, 6, 8, 10, 15, 20)
PATHS, SAMPLES, FINE = 11, 400, 61
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])


def write(folder: Path) -> None:
    """``assets/play-NAME.json``, one per process, and ``assets/play.json``, which lists what there is."""
    listed = {"processes": list(PROCESSES), "grids": GRIDS, "samplers": SAMPLERS, "steps": STEPS}
    (folder / "assets" / "play.json").write_text(json.dumps(listed), encoding="utf-8")
    for name, process in PROCESSES.items():
        text = json.dumps(data(process), separators=(",", ":"))
        (folder / "assets" / f"play-{name}.json").write_text(text, encoding="utf-8")


def data(process: da.Process) -> dict[str, Any]:
    """Exact trajectories, and ``sampler/grid/steps`` → nodes, trajectories, rows, error."""
    high, low = process.sampling_range
    x = MIX.sample(SAMPLES, 0, process, high)
    truth = MIX.flow(process, x, high, low)
    spread = math.sqrt(float(process.alpha(high)) ** 2 * 0.9 + float(process.sigma(high)) ** 2)
    starts = np.linspace(-1.8, 1.8, PATHS) * spread
    fine = da.grid(process, FINE - 1, "t2")
    exact = np.stack([starts if t == high else MIX.flow(process, starts, high, t) for t in fine])
    found: dict[str, Any] = {"t": _short(fine), "exact": _short(exact.T), "runs": {}}
    for kind in GRIDS:
        for steps in STEPS:
            ts = da.grid(process, steps, kind)
            for name in SAMPLERS:
                table = da.build(name, process, ts)
                model = MIX.model(process, table.prediction)
                _, kept = da.run(table, model, starts, keep=table.grid_nodes)
                path = np.stack([kept.states[k] for k in table.grid_nodes])
                error = float(np.sqrt(np.mean((da.run(table, model, x) - truth) ** 2)))
                form = table.butcher()
                found["runs"][f"{name}/{kind}/{steps}"] = {
                    "t": _short(ts),
                    "calls": _short(form.times),
                    "x": _short(path.T),
                    "w": _short(form.weights[-1]),
                    "nfe": table.nfe,
                    "error": float(f"{error:.3g}") if math.isfinite(error) else None,
                }
    return found


def _short(values: Any) -> Any:
    """Numbers of four digits, as JSON takes them."""
    if np.ndim(values) > 1:
        return [_short(row) for row in values]
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in np.asarray(values)]
