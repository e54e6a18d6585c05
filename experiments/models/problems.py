"""On what is a sampler measured? The data sets, models and ground truths that several experiments share."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import deis_analysis as da
from deis_analysis.process.process import Array, Process

_SAME = 1e-9  # largest difference of two tables of the same method: rounding, on grids that reach ρ = 80


def vp_linear(config: dict[str, Any]) -> da.VPLinear:
    """The process of a configuration: VPLinear with its ``beta_min`` and ``beta_max``."""
    return da.VPLinear(config["beta_min"], config["beta_max"])


def digits() -> Array:
    """(1797, 64) the 8×8 digits of scikit-learn, grey levels 0 … 16 scaled to [-1, 1]."""
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().data / 8.0 - 1.0, dtype=np.float64)


def digits_labels() -> Array:
    """(1797,) the number that each shows."""
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().target)


def broad_mixture() -> da.GaussianMixture:
    """A 1-D mixture of two Gaussians of standard deviations 0.22 and 0.17, with an exact flow."""
    return da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03])


def product_mixture() -> da.ProductMixture:
    """Four independent coordinates, each a different 1-D mixture, from one Gaussian to three modes; an exact flow."""
    marginals = (
        ([1.0], [0.3], [0.2]),
        ([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03]),
        ([0.2, 0.5, 0.3], [-1.2, 0.0, 1.0], [0.02, 0.05, 0.02]),
        ([0.8, 0.2], [-0.2, 0.9], [0.3, 0.01]),
    )
    return da.ProductMixture([da.GaussianMixture(*parts) for parts in marginals])


def gaussian_like(data: Array, floor: float) -> da.GaussianMixture:
    """One Gaussian with the mean and covariance of ``data``, plus ``floor`` on the diagonal: an exact flow in 64-D."""
    covariance = np.cov(data.T) + floor * np.eye(data.shape[1])
    return da.GaussianMixture([1.0], data.mean(axis=0)[None], covariance[None])


def noise(n: int, dimension: int, seed: int) -> Array:
    """(n, dimension) standard normal starts x_T, the same on every device."""
    return np.random.default_rng(seed).standard_normal((n, dimension))


def start_scale(process: Process, t_start: float) -> float:
    """Standard deviation of starts: 1 on variance-preserving processes and flows, σ where the noise is larger."""
    return max(1.0, float(process.sigma(t_start)))


@dataclass(frozen=True)
class Problem:
    """Any ε model with starts and exact answers, such as guided ones, which have no name in the study.

    Attributes:
        model: ε model. x_T: (n, d) starts. truth: (n, d) exact end states. estimate: their largest error, estimated.
        span: (t_start, t_end). exact: the mixture with an exact flow whose ε the model is, where there is one.
        places: (m, d) where images lie, if the samples are such: one that ends next to another place does not count.
    """

    process: Process
    model: Any
    x_T: Any
    truth: Any
    span: tuple[float, float]
    estimate: float = 0.0
    exact: Any = None
    places: Any = None

    @classmethod
    def solved(cls, process: Process, model: Any, x_T: Any, span: tuple[float, float], rtol: float) -> Problem:
        """With DOPRI5's answers, whose error is estimated from a second run."""
        found = da.reference_solution(model, process, x_T, span[1], rtol, rtol, t_start=span[0], certify=False)
        return cls(process, model, x_T, found.x, span, found.error_estimate)

    @cached_property
    def _asked(self) -> Callable[[Any, float], Any]:
        return remembering(self.model)

    def ends(self, table: da.Tableau) -> Any:
        """(n, d) where the samples of a table end."""
        return da.run(table.in_terms_of(self.process, "eps"), self._asked, self.x_T)

    def judged(self, x: Any) -> Array:
        """(n,) mean squared error over the coordinates of each end state, NaN where it does not count."""
        squares = ((x - self.truth) ** 2).mean(1)
        if self.places is not None:
            squares[_nearest(x, self.places) != _nearest(self.truth, self.places)] = math.nan
        return np.asarray(squares.cpu() if hasattr(squares, "cpu") else squares)

    def squares(self, table: da.Tableau) -> Array:
        """(n,) mean squared errors of the samples of a table."""
        return self.judged(self.ends(table))

    def tried(
        self,
        solvers: Iterable[str],
        kinds: Iterable[str],
        calls: Iterable[int],
        *,
        build: Callable[[str, Array], da.Tableau] | None = None,
        grid: Callable[[str, int], Array] | None = None,
        judge: Callable[[Any], Any] | None = None,
    ) -> Iterator[tuple[dict[str, Any], Any]]:
        """(columns ``solver, grid, calls, steps, nfe`` of a row, (n,) squared errors), where a whole step fits.

        Args:
            build: (solver, times) → table, by default the registry's. grid: (kind, steps) → times.
            judge: end states → what is said of them instead of `judged`.
        """
        make = build or (lambda solver, ts: da.build(solver, self.process, ts))
        times = grid or (lambda kind, steps: da.grid(self.process, steps, kind, *self.span))
        for solver, kind, count in itertools.product(solvers, kinds, calls):
            steps = steps_for(solver.rstrip("*"), count)
            if steps:
                table = make(solver, times(kind, steps))
                row = {"solver": solver, "grid": kind, "calls": count, "steps": steps, "nfe": table.nfe}
                yield row, (judge or self.judged)(self.ends(table))


def _nearest(x: Any, places: Any) -> Any:
    """(n,) index of the place next to each sample."""
    import torch

    return torch.cdist(x, places).argmin(dim=1)


def remembering(model: Callable[[Any, float], Any], most: int = 256) -> Callable[[Any, float], Any]:
    """The model, not asked again about one of the ``most`` latest states: samplers that begin alike ask the same."""
    known: dict[tuple[float, bytes], Any] = {}

    def eps(x: Any, t: float) -> Any:
        values = np.asarray(x.detach().cpu() if hasattr(x, "cpu") else x).tobytes()
        asked = (float(t), hashlib.sha1(values, usedforsecurity=False).digest())
        known[asked] = known.pop(asked) if asked in known else model(x, t)  # the latest is the last
        if len(known) > most:
            del known[next(iter(known))]
        return known[asked]

    return eps


@dataclass(frozen=True)
class DigitsProblem(Problem):
    """The ideal denoiser of the digits, or of some of their images.

    Attributes:
        data: (m, 64). nfe: what the reference cost.
    """

    data: Any = None
    nfe: int = 0

    @property
    def reference(self) -> Any:
        """(n, 64) the exact answers, `truth`."""
        return self.truth

    @property
    def error_estimate(self) -> float:
        """Largest absolute error of the reference, estimated."""
        return self.estimate

    def nearest(self, x: Any) -> Any:
        """(n,) index of the data point next to each sample."""
        return _nearest(x, self.data)


def digits_problem(config: dict[str, Any], images: Array | None = None) -> DigitsProblem:
    """Set up the digits, or some of their ``images``, with `reference_solution` (DOPRI5 at ``rtol``) as ground truth.

    Uses of ``config``: beta_min, beta_max, std, samples, seed, t_start, t_end, rtol, device.
    """
    import torch

    process, span, rtol = vp_linear(config), (config["t_start"], config["t_end"]), config["rtol"]
    data = torch.tensor(digits() if images is None else images, device=config["device"])
    model = da.ideal_denoiser(data, process, std=config["std"])
    x_T = torch.tensor(noise(config["samples"], data.shape[1], config["seed"]), device=config["device"])
    found = da.reference_solution(model, process, x_T, span[1], rtol, rtol, t_start=span[0], certify=False)
    return DigitsProblem(process, model, x_T, found.x, span, found.error_estimate, data=data, nfe=found.nfe)


def step_points(ts: Array, points: int) -> list[float]:
    """The times at which `deis_analysis.extrapolation_error` visits the path, with the grid's own."""
    visited = [float(t) for t in ts]
    for a, b in itertools.pairwise(ts):
        visited += [float(a + (b - a) * (j + 1) / points) for j in range(points - 1)]
    return visited


def extrapolated(known: dict[float, Array], process: Process, ts: Array, points: int, **options: Any) -> Any:
    """`deis_analysis.extrapolation_error` of a model by its values at `step_points`: (steps, points) times, errors."""
    options = {"degree": 0, **options}
    return da.extrapolation_error(lambda _, t: known[t], process, lambda t: None, ts, points=points, **options)


def by_time(times: Array, deltas: Array, **columns: Any) -> list[dict[str, Any]]:
    """Rows of part "path", ``step, t, delta``, of what `extrapolated` finds."""
    visited = zip(np.ndindex(times.shape), times.flat, deltas.flat, strict=True)
    return [{"part": "path", **columns, "step": step, "t": t, "delta": delta} for (step, _), t, delta in visited]


def distinct_solvers(
    process: Process, ts: Array, names: Iterable[str] | None = None, *, stochastic: bool = False
) -> dict[str, list[str]]:
    """Registry solvers on a grid, first name → all names of the same method: equal Butcher forms in terms of ε.

    Args:
        ts: a grid whose number of steps suits the blocks of all solvers, such as 12.
        names: which solvers, all by default. stochastic: those that draw noise, rather than those that do not.
    """
    groups: dict[str, list[str]] = {}
    tables = {name: da.build(name, process, ts) for name in (da.SOLVERS if names is None else names)}
    tables = {
        name: table.in_terms_of(process, "eps") for name, table in tables.items() if table.stochastic == stochastic
    }
    for name, table in tables.items():
        for first in groups:
            if tables[first].nfe == table.nfe and da.distance(tables[first], table) < _SAME:
                groups[first].append(name)
                break
        else:
            groups[name] = [name]
    return groups


def steps_for(name: str, calls: int) -> int:
    """Steps of a registry solver that cost at most ``calls`` model calls, in whole blocks; 0 if none fit.

    None fit, either, where a start that costs extra calls is all there would be.
    """
    row = da.SOLVERS[name]
    steps = (calls - row.extra_calls) // row.stages // row.block * row.block
    return steps if steps > 0 and (row.extra_calls <= 0 or steps >= row.starting_steps) else 0


def bootstrap_ratio(a: Array, b: Array, seed: int, draws: int = 2000, root: Any = np.sqrt) -> tuple[float, float]:
    """95 % interval of √(mean a / mean b) over resampled samples, a and b paired mean squares per sample.

    Args:
        root: np.asarray instead, if a and b are means of absolute values.
    """
    index = np.random.default_rng(seed).integers(0, a.size, (draws, a.size))
    ratios = root(a[index].mean(axis=1) / b[index].mean(axis=1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
