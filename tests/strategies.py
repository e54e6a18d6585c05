"""Hypothesis strategies for processes, grids and mixtures."""

from __future__ import annotations

import numpy as np
from exact import discrete_levels
from hypothesis import strategies as st

import deis_analysis as da

DETERMINISTIC = sorted(name for name, row in da.SOLVERS.items() if not row.stochastic)
STOCHASTIC = sorted(name for name, row in da.SOLVERS.items() if row.stochastic)
# every table once: the others are the same numbers under another name, see test_identities
DISTINCT = [n for n in DETERMINISTIC if not n.startswith(("mrs_", "ipndm_v", "tab0", "rhoab0", "ipndm1", "edm_euler"))]
CONTINUOUS = ("VPLinear", "VPCosine", "SubVP", "VE", "EDM", "RectifiedFlow")


@st.composite
def processes(draw, names=(*CONTINUOUS, "VPDiscrete")):
    """A process with parameters in the range that the literature uses."""
    match draw(st.sampled_from(names)):
        case "VPLinear":
            return da.VPLinear(draw(st.floats(0.01, 1.0)), draw(st.floats(5.0, 25.0)))
        case "SubVP":
            return da.SubVP(draw(st.floats(0.01, 1.0)), draw(st.floats(5.0, 25.0)))
        case "VPCosine":
            return da.VPCosine(s=draw(st.floats(0.002, 0.05)))
        case "VE":
            return da.VE(draw(st.floats(0.005, 0.1)), draw(st.floats(5.0, 100.0)))
        case "EDM":
            return da.EDM(draw(st.floats(0.001, 0.05)), draw(st.floats(5.0, 100.0)))
        case "VPDiscrete":
            return da.VPDiscrete(discrete_levels(draw(st.sampled_from([1, 10, 50]))))
        case _:
            return da.RectifiedFlow()


@st.composite
def grids(draw, process, min_steps=1, max_steps=12):
    """A descending grid: one of the kinds, or random times."""
    start, end = process.sampling_range
    steps = draw(st.integers(min_steps, max_steps))
    kind = draw(st.sampled_from(["t1", "t2", "t3", "rho7", "logrho", "random"]))
    if kind != "random":
        return da.grid(process, steps, kind, start, end)
    gaps = np.array(draw(st.lists(st.floats(0.2, 1.0), min_size=steps, max_size=steps)))
    ts = start + (end - start) * np.concatenate([[0.0], np.cumsum(gaps) / gaps.sum()])
    ts[-1] = end
    return ts


@st.composite
def mixtures(draw, max_components=3):
    """A 1-D mixture, broad enough to be a smooth problem."""
    k = draw(st.integers(1, max_components))
    weights = np.array(draw(st.lists(st.floats(0.2, 1.0), min_size=k, max_size=k)))
    means = draw(st.lists(st.floats(-1.5, 1.5), min_size=k, max_size=k))
    variances = draw(st.lists(st.floats(0.2, 1.0), min_size=k, max_size=k))
    return da.GaussianMixture(weights / weights.sum(), means, variances)
