"""A sampler read at one size: its table in process scale, its levels, and exact data to run it on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deis_analysis.audit.subject import Prepared, near
from deis_analysis.audit.tables import Steps, implied_scales, trunk
from deis_analysis.problems.mixture import GaussianMixture
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.extraction import Reading, Refusal, read_sampler, table_of, together


@dataclass(frozen=True)
class Case:
    """One prepared sampler, read.

    Attributes:
        times: (K,) process times told at the calls.
        table: state-free, in process scale; its last time is nominal where the result is at a level that the process
            does not reach.
    """

    prepared: Prepared
    reading: Reading
    times: Array
    table: Tableau

    @property
    def process(self) -> Process:
        """The forward process."""
        return self.prepared.process

    @property
    def floor(self) -> float:
        """Relative size of what is rounding in this sampler."""
        return max(1e-9, 30.0 * self.reading.rounding)

    @cached_property
    def trunk(self) -> Steps:
        """The steps but the last, which many samplers take to σ = 0 in a way of its own."""
        return trunk(self.table, self.process, self.floor)

    @cached_property
    def scales(self) -> tuple[Array, Array]:
        """(α, σ) that the states have, see `implied_scales`; the result is in the scale that the sampler gives it."""
        return implied_scales(self.table, self.process, self._anchor())

    def _anchor(self) -> float | None:
        """Process time of x_T by what the sampler says of it, which may not be what it tells the model."""
        start, levels = self.prepared.t_start, self.prepared.levels
        if start is not None and not self.lead:
            return start
        if self.lead or not levels or not np.isfinite(levels[0]) or levels[0] <= 0:
            return None
        low, high = (float(self.process.rho(t)) for t in (self.process.t_min, self.process.t_max))
        level = near(levels[0], low, high)
        return None if np.isnan(level) else float(self.process.time_from_rho(level))

    @property
    def lead(self) -> int:
        """Nodes before the first model call."""
        return int(self.table.times.size - 1 - self.reading.calls)


def read_case(prepared: Prepared) -> Case:
    """Run and read a prepared sampler.

    Raises:
        Refusal: it fails, is not linear, or tells times that the process does not have.
    """
    reading = together(read_sampler(prepared.sampler, backend=prepared.backend, dtype=prepared.dtype))
    process, convention = prepared.process, prepared.convention
    times = np.array([convention.process_time(process, raw) for raw in reading.told])
    if not np.all(np.isfinite(times)):
        bad = float(reading.told[~np.isfinite(times)][0])
        raise Refusal(f"the model was told {bad:g}, a time that {process!r} does not have")
    end = prepared.t_end if prepared.t_end is not None else process.t_min
    start, scaled = _start_time(prepared, reading), prepared.start_std is not None
    table = table_of(reading, process, np.append(times, end), convention, t_start=start, scaled=scaled)
    return Case(prepared, reading, times, table)


def _start_time(prepared: Prepared, reading: Reading) -> float | None:
    """Process time of x_T: as the sampler says, or by the scale that it gives x_T where α = 1."""
    if prepared.t_start is not None or prepared.start_std is None:
        return prepared.t_start
    try:
        t = float(prepared.process.time_from_rho(abs(reading.rows[0, 0]) * prepared.start_std))
    except ValueError:
        return None
    return t if float(prepared.process.alpha(t)) == 1 else None


def exact_end(case: Case, mix: GaussianMixture, x: Array) -> Array:
    """Where the exact flow takes x from the first told level to the level of the result, in the result's scale."""
    process, prepared = case.process, case.prepared
    start = float(case.table.times[0])
    if prepared.t_end is not None:
        y = mix.flow(process, x, start, prepared.t_end) if prepared.t_end < start else x
        return y / float(process.alpha(prepared.t_end)) if prepared.end_scale == "karras" else y
    last = float(process.t_min)
    y = mix.flow(process, x, start, last) if last < start else x
    rho, level = float(process.rho(last)), prepared.end_level if prepared.end_level is not None else 0.0
    y = y / float(process.alpha(last))
    if rho > level:
        y = mix.flow(EDM(level or rho / 2, rho), y, rho, level)  # 0, the data, is a time of every EDM
    return y if prepared.end_scale == "karras" or level == 0 else y / np.hypot(1.0, level)


def run_sampler(prepared: Prepared, mix: GaussianMixture, x: Array) -> tuple[Array, list[Array], list[float]]:
    """(result, model inputs, process times) of a run on exact data, the samples along the batch axis."""
    import sys

    process, convention = prepared.process, prepared.convention
    exact = mix.model(process, convention.prediction)
    inputs: list[Array] = []
    times: list[float] = []
    torch = sys.modules.get("torch") if prepared.backend == "torch" else None

    def give(values: Array) -> Any:
        shaped = np.array(values, dtype=prepared.dtype).reshape(-1, 1, 1, 1)
        return torch.as_tensor(shaped) if torch is not None else shaped

    def model(state: Any, time: Any, *_: Any, **__: Any) -> Any:
        raw = float(np.asarray(time.detach().cpu() if hasattr(time, "detach") else time).reshape(-1)[0])
        t = convention.process_time(process, raw)
        values = np.asarray(state.detach().cpu() if hasattr(state, "detach") else state, dtype=np.float64).reshape(-1)
        values = values * float(convention.input_scale(process, t))  # a new array: the sampler may go on in place
        inputs.append(values)
        times.append(t)
        return give(exact(values, t))

    result = prepared.sampler(model, give(x))
    plain = result.detach().cpu() if hasattr(result, "detach") else result
    return np.asarray(plain, dtype=np.float64).reshape(-1), inputs, times
