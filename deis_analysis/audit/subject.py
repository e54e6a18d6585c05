"""What an audit points at: a sampler that can be prepared at a number of model calls, and on the order problem."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np

from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.convention import Convention
from deis_analysis.process.grids import grid
from deis_analysis.process.process import PREDICTIONS, Array, Process
from deis_analysis.process.schedules import EDM, VPLinear
from deis_analysis.tableau import Tableau, run
from deis_analysis.tableau.extraction import Refusal, Sampler
from deis_analysis.validate import boolean, checked, choose, positive_int, shown

_SLACK = 1e-4  # relative distance by which float32 may carry a level out of its range


@dataclass(frozen=True)
class Prepared:
    """A sampler ready to run at one number of steps.

    Attributes:
        sampler: ``sampler(model, x)`` or ``sampler(model, x, noise)``, see `read_sampler`.
        process: the forward process that it says it follows. convention: how it speaks to its model.
        t_end: process time of the result as the sampler says, None where it does not say.
        end_scale: ``"process"`` or ``"karras"``: the scale of the result.
        backend: arrays that it is fed. dtype: their dtype.
        start_std: standard deviation of the x that it is handed, where it scales it to x_T itself; usually 1.
        t_start: process time of x_T; by default what the first call is told, which is not it where noise comes first.
        end_level: ρ of the result as the sampler says, 0 for data. levels: ρ of its steps, where it says.
        asked_least: ρ of the least level above 0 by the formula of the schedule that was asked for, where it is known.
        note: what had to be done to run it, empty where nothing. remark: what is odd about its levels, as information.
    """

    sampler: Sampler
    process: Process
    convention: Convention
    t_end: float | None = None
    end_scale: str = "process"
    backend: str = "torch"
    dtype: str = "float64"
    start_std: float | None = None
    end_level: float | None = None
    t_start: float | None = None
    levels: tuple[float, ...] | None = None
    asked_least: float | None = None
    note: str = ""
    remark: str = ""


class Subject(Protocol):
    """A sampler that the audit can run at different sizes."""

    @property
    def spec(self) -> str:
        """As it was asked for."""

    @property
    def declared_order(self) -> int | None:
        """The order that its author claims, with exact starting values; None if unknown."""

    def own(self, nfe: int) -> Prepared:
        """As its package would run it, with at most ``nfe`` model calls."""

    def ladder(self, steps: int) -> Prepared | None:
        """On `order_problem`'s stretch of levels with ``steps`` steps; None if it cannot be put there."""


@dataclass(frozen=True)
class TableSubject:
    """A function (process, ts) → `Tableau`: a row of the registry, or the user's own."""

    spec: str
    build: Callable[[Process, Array], Tableau]
    declared_order: int | None = None
    process: Process = field(default_factory=VPLinear)
    kind: str = "t2"
    calls: Callable[[int], int] | None = None
    block: int = 1

    def own(self, nfe: int) -> Prepared:
        """On the process's whole range, as many steps as the calls allow."""
        counts = range(self.block, nfe + 1, self.block)
        calls = self.calls or (lambda n: self.build(self.process, grid(self.process, n, self.kind)).nfe)
        fitting = [n for n in counts if calls(n) <= nfe]
        return self._prepared(self.process, grid(self.process, max(fitting, default=self.block), self.kind))

    def ladder(self, steps: int) -> Prepared:
        """On the order problem."""
        process, _, options = order_problem(self.process)
        return self._prepared(process, grid(process, -(-steps // self.block) * self.block, **options))

    def _prepared(self, process: Process, ts: Array) -> Prepared:
        table = self.build(process, ts)

        def sampler(model: Any, x: Any, noise: Any) -> Any:
            drawn: dict[int, Any] = {}

            def draw(column: int) -> Any:
                if column not in drawn:
                    drawn[column] = noise()
                return drawn[column]

            return run(table, model, x, draw)

        convention, ends = Convention(table.prediction), (float(ts[0]), float(ts[-1]))
        return Prepared(sampler, process, convention, ends[1], backend="numpy", t_start=ends[0])


CONVENTIONS = ("table", "times", "sigmas", "edm")


@dataclass(frozen=True)
class FunctionSubject:
    r"""A function in a file, ``path/file.py:function?convention=…``.

    Conventions:
        ``table``: (process, ts) → `Tableau`.
        ``times``: (model, x, times) with model(x, t) → ``prediction`` (default ε) on `VPLinear`.
        ``sigmas``: (model, x, sigmas), model(x, sigma) → x₀, α = 1, as in k-diffusion; the last sigma is 0.
        ``edm``: (net, latents, …) of EDM-style code, net(x, sigma, …) → x₀, keywords num_steps, sigma_min, sigma_max.
    """

    spec: str
    function: Callable[..., Any]
    convention: str = "sigmas"
    prediction: str = "eps"
    options: dict[str, Any] = field(default_factory=dict)
    declared_order: int | None = None
    final_zero: bool = True
    process: Process = field(default_factory=VPLinear)
    kind: str = "t2"

    def own(self, nfe: int) -> Prepared:
        """The largest number of steps whose model calls fit."""
        if self.convention == "times":
            return self._fit(nfe, lambda n: self._times(self.process, grid(self.process, n, self.kind)))
        return self._fit(nfe, lambda n: self._levels(grid(EDM(), n, "rho7"), self.final_zero))

    def ladder(self, steps: int) -> Prepared:
        """On the order problem's stretch of levels."""
        process, _, options = order_problem(self.process if self.convention == "times" else None)
        if self.convention == "times":
            return self._times(process, grid(process, steps, **options))
        return self._levels(process.rho(grid(process, steps, **options)), False)

    def _fit(self, nfe: int, prepare: Callable[[int], Prepared]) -> Prepared:
        from deis_analysis.tableau.extraction import count_calls

        for n in range(nfe, 0, -1):
            prepared = prepare(n)
            if count_calls(prepared.sampler, prepared.backend) <= nfe or n == 1:
                return prepared
        raise Refusal(f"nfe={nfe} is too small for this sampler")

    def _times(self, process: Process, ts: Array) -> Prepared:
        import torch

        times = torch.as_tensor(ts)
        sampler = lambda model, x: self.function(model, x, times, **self.options)  # noqa: E731
        return Prepared(sampler, process, Convention(self.prediction), float(ts[-1]), t_start=float(ts[0]))

    def _levels(self, levels: Array, zero: bool) -> Prepared:
        import torch

        edm = EDM(float(levels[-1]) / 10, float(levels[0]) * 10)  # room for models that are told a wrong level
        convention = Convention("x0", "rho", state="karras")
        if self.convention == "edm":
            low, high, n = float(levels[-1]), float(levels[0]), levels.size
            names = inspect.signature(self.function).parameters
            known = {"num_steps": n, "sigma_min": low, "sigma_max": high}
            keywords = {key: value for key, value in known.items() if key in names} | self.options

            def sampler(model: Any, x: Any) -> Any:
                return self.function(_Net(model, low, high), x, **keywords)

            return Prepared(sampler, edm, convention, 0.0, start_std=1.0, t_start=high)
        sigmas = torch.as_tensor(np.append(levels, 0.0) if zero else levels)
        told = lambda model, x: self.function(model, x, sigmas, **self.options)  # noqa: E731
        return Prepared(told, edm, convention, float(sigmas[-1]), t_start=float(levels[0]))


class _Net:
    """A model with the attributes that EDM-style samplers ask a network for."""

    def __init__(self, model: Callable[..., Any], sigma_min: float, sigma_max: float) -> None:
        self.model, self.sigma_min, self.sigma_max = model, sigma_min, sigma_max

    def __call__(self, x: Any, sigma: Any, *_: Any, **__: Any) -> Any:
        return self.model(x, sigma)

    def round_sigma(self, sigma: Any) -> Any:
        """The level itself: the network takes any."""
        return sigma


def near(value: float, low: float, high: float) -> float:
    """``value``, put back into [low, high] if rounding to float32 may have carried it out; NaN further away."""
    if low * (1 - _SLACK) - 1e-12 <= value <= high * (1 + _SLACK):
        return min(max(value, low), high)
    return float("nan")


def parse_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """(source, name, options) of ``source:name?key=value&key=value``; values are numbers, booleans or text."""
    head, _, query = spec.partition("?")
    source, colon, name = head.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(
            f"spec={spec!r} must look like registry:tab3, diffusers:DDIMScheduler?key=value, azula:NAME, "
            "k_diffusion:NAME or path/file.py:function?convention=sigmas"
        )
    pairs = [item.partition("=")[::2] for item in query.split("&") if item]
    return source, name, {unquote(key): _value(unquote(text)) for key, text in pairs}  # a plus stays a plus


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@checked
def function_subject(
    function: Callable[..., Any],
    *,
    spec: str = "",
    convention: str = "sigmas",
    prediction: str = "eps",
    order: int | None = None,
    final_zero: bool = True,
    **options: Any,
) -> Subject:
    """A user's function as a subject, see `FunctionSubject`; ``order`` is what its author claims.

    Raises:
        ValueError: an unknown convention, prediction or option, an order that is no integer.
    """
    spec = spec or getattr(function, "__name__", "function")
    choose("prediction", prediction, PREDICTIONS)
    if order is not None:
        positive_int("order", order, minimum=0)
    boolean("final_zero", final_zero)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in options:
            choose("option", key, ["convention", "prediction", "order", "final_zero", *(p.name for p in parameters)])
    if choose("convention", convention, CONVENTIONS) == "table":
        return TableSubject(spec, function, order)
    return FunctionSubject(spec, function, convention, prediction, options, order, final_zero)


def placed(found: Subject, process: Process | None, kind: str | None) -> Subject:
    """The subject on another process or kind of grid.

    Raises:
        ValueError: it brings its own.
    """
    changes = {key: value for key, value in (("process", process), ("kind", kind)) if value is not None}
    if not changes:
        return found
    free = isinstance(found, TableSubject) or (isinstance(found, FunctionSubject) and found.convention == "times")
    if not free:
        name, value = next(iter(changes.items()))
        raise ValueError(
            f"{name}={shown(value)}: {found.spec} brings its own; allowed for registry rows and functions of times"
        )
    return replace(found, **changes)  # type: ignore[type-var]
