r"""Two independent methods for one probability flow, what their difference certifies, and what it cannot.

The first is torchdiffeq's DOPRI5 in λ = −log ρ, where the flow of y = x/α is :math:`dy/dλ = -e^{-λ} ε(αy, t(λ))`:
bounded, and smooth where the model is. The second is the table of ρRK-DEIS of order 4, on a grid nearly uniform in λ,
bent at random, see `_grid`. Both step onto every time asked for and onto the process's breakpoints. The steps of the
second are halved until it meets the first. With a the largest difference of the two, and c that of the runs on N and on
2N steps, the error of the first is at most a + c/15 where the second converges at its order:

.. math:: |x - x^*| ≤ |x - r_{2N}| + |r_{2N} - x^*| , \qquad r_N - r_{2N} ≈ 15 (r_{2N} - x^*) .

Both methods know the model at the times at which they ask it, and nothing between: they agree on a wrong answer where
both step over a feature that is narrower than their steps, such as one bad row of a network that rounds its time. So
the model is asked once more, on the path that was found, see `look`: at every level that it has, where these are known,
otherwise in the widest gaps between all questions. An answer that is not dy/dλ of the path makes DOPRI5 step there, and
the second method must meet what it finds then. What is narrower than the gaps that remain can still go unseen; their
widths are in the message.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.interpolate import KroghInterpolator
from torchdiffeq import odeint

from deis_analysis.backend import Centre
from deis_analysis.process.process import Array, Process
from deis_analysis.reference.settings import Settings
from deis_analysis.solvers.exponential_rk import runge_kutta
from deis_analysis.tableau import Model, run

METHOD, _STAGES, _RICHARDSON = "rhork_4rk", 4, 15.0
_FIRST_STEP = 0.25  # in λ, of the coarsest grid, before it is bent
_BEND = 0.125  # most by which a step may be longer or shorter for it
_SHORTEST = 1e-6  # in λ: a step between two given times that is shorter is not halved
_CHUNK = 32  # steps per table: a run that diverges ends with its table
_SAME_LEVEL = 1e-12
_TIGHTEN = 0.1
_LOOSEST = 1e-3  # rtol and atol, where those asked for cannot be met
_SLACK = 10.0  # default tolerance of a certificate over atol + rtol |x|
_SHARE = 5  # so many calls are made for each that looks between the steps
_SUSPICIOUS = 0.25  # of the tolerance: what the model may seem to hide between two steps
_SUSPECTS = 16  # times, the worst ones, that DOPRI5 is made to step onto
_ALIKE = 8.0  # ratio of the lengths of two steps that one polynomial may interpolate
_MEMORY = 2**30  # bytes of states and rates that are kept of a path
_SHORT = 1e-3  # of the median step: a step that something in the model forced
_FUNCTION = 1e-6  # of the answer: two answers to one question that differ by more are not those of a function
Show = Callable[[str, float], None]


SAME_TIME = 1e-12


class NotFiniteError(ValueError):
    """The model returned NaN or infinity."""


class UnreachableError(ValueError):
    """DOPRI5 cannot meet its tolerances."""


@dataclass(frozen=True)
class Reference:
    """A reference solution at two times or more.

    Attributes:
        times: descending, the first that of ``x_T``; a time that was asked for twice is here once.
        states: the state at each of the times, kind of the input, float64 inside; the first is ``x_T``.
        nfe: model evaluations of all runs together. second_nfe: those that check, all but DOPRI5's first two runs.
        error_estimate: largest absolute difference, over all times, between the states and a run at ten times its
            tolerance.
        rtol, atol: tolerances of the run that gave the states.
        certified: whether the second method confirms the states to ``tolerance``, at the tolerances asked for.
        agreement: largest absolute difference of the two methods; nan without a run of the second.
        tolerance: absolute, see `reference_solution`.
        message: to what and by what it is certified, and how narrow a feature of the model may have gone unseen; or why
            it is not, what difference remained, and at which time the model seems not to be smooth.
    """

    times: tuple[float, ...]
    states: tuple[Any, ...]
    nfe: int
    second_nfe: int
    error_estimate: float
    rtol: float
    atol: float
    certified: bool
    agreement: float
    tolerance: float
    message: str

    @property
    def x(self) -> Any:
        """The state at the last time."""
        return self.states[-1]

    def __call__(self, t: float) -> Any:
        """The state at one of the times (within 1e-12).

        Raises:
            ValueError: no state is known there.
        """
        nearest = min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))
        if not abs(self.times[nearest] - t) <= SAME_TIME:
            raise ValueError(f"t={t!r} is not on the path; allowed: one of its {len(self.times)} times")
        return self.states[nearest]


class Flow:
    """A model behind its door, counting its calls, and dy/dλ of y = (x − mean)/α."""

    def __init__(self, model: Model, process: Process, settings: Settings, numpy: bool, device: torch.device) -> None:
        self.model, self.process, self.settings, self.numpy = model, process, settings, numpy
        self.device = device
        self.centre = Centre(process.mean, torch.zeros((), dtype=torch.float64, device=device), settings.prediction)
        self.nfe, self.answered = 0, torch.float64
        self.levels: Array | None = None  # times at which the model has values of their own, where they are known
        self.show: Show = lambda text, share: None

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """The model's answer in float64."""
        self.nfe += 1
        asked = x.to(self.settings.model_dtype or x.dtype)
        try:
            output = self.model(asked.numpy() if self.numpy else asked, t)
        except RuntimeError as error:
            if self.settings.model_dtype is None and "dtype" in str(error):
                raise ValueError(
                    f"model does not take float64 ({error}); allowed: model_dtype=torch.float32"
                ) from error
            raise
        if output is None:
            raise ValueError(f"model returned None at call {self.nfe}, t={t!r}; allowed: shape {tuple(x.shape)}")
        answer = torch.as_tensor(output)
        if answer.shape != x.shape:
            raise ValueError(
                f"model returned shape {tuple(answer.shape)} at call {self.nfe}, t={t!r}; allowed: {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(answer).all()):
            raise NotFiniteError(f"model returned NaN or infinity at call {self.nfe}, t={t!r}")
        self.answered = answer.dtype
        return answer.to(x.dtype)

    def _eps(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """ε of the state x − mean."""
        p = self.centre.predicted(self(self.centre.on(x), t))
        from_x, from_p = (float(c) for c in self.process.convert(self.settings.prediction, "eps", t))
        return from_p * p + from_x * x if from_x else from_p * p

    def rate(self, lam: float, y: torch.Tensor, t: float) -> torch.Tensor:
        """dy/dλ at λ, which is that of t."""
        return -float(np.exp(-lam)) * self._eps(float(self.process.alpha(t)) * y, t)

    def integrate(
        self,
        x: torch.Tensor,
        times: list[float],
        nodes: list[float],
        rtol: float,
        atol: float,
        path: Path | None = None,
    ) -> list[torch.Tensor]:
        """DOPRI5's states at descending ``times``, the first that of ``x``; steps end on ``nodes``, which hold them.

        Raises:
            UnreachableError: the tolerances cannot be met.
        """
        levels = [float(self.process.lam(t)) for t in times]
        first, last, end, start = levels[0], levels[-1], times[-1], times[0]
        most = self.nfe + self.settings.most_calls

        def rate(lam: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if self.nfe >= most:
                raise UnreachableError(f"most_calls={self.settings.most_calls} are used up at λ={float(lam):.4g}")
            value = min(max(float(lam), first), last)
            self.show(f"DOPRI5, rtol={rtol:.1e}", (value - first) / (last - first))
            f = self.rate(value, y, float(np.clip(self.process.time_from_lam(value), end, start)))
            if path is not None:
                path.add(value, y, f)
            return f

        span = torch.tensor(levels, dtype=torch.float64, device=x.device)
        stops = torch.tensor([float(self.process.lam(t)) for t in nodes[1:]], dtype=torch.float64, device=x.device)
        y = self.centre.off(x) / float(self.process.alpha(start))
        try:
            y = odeint(rate, y, span, rtol=rtol, atol=atol, method="dopri5", options={"step_t": stops})
        except AssertionError as error:
            if not str(error).startswith(("underflow in dt", "non-finite values in state")):
                raise  # the model's own
            raise UnreachableError(str(error).split(": ")[0]) from error
        return [x, *(self.centre.on(float(self.process.alpha(t)) * y[i]) for i, t in enumerate(times) if i)]


class Path:
    """Where DOPRI5's accepted steps asked the model, and the path between their ends.

    DOPRI5 asks twice at the end of a step, the second time at the step's result; after a step that it rejects it goes
    back. Between the ends of a step stands the Hermite interpolant of y and dy/dλ there and at the far ends of the two
    steps beside it.

    Args:
        stops: levels at which steps have to end, ascending; the path may have a kink there.

    Attributes:
        asked: levels λ, ascending. known: False where the ends would take more than 1 GiB; they are not kept then.
    """

    def __init__(self, stops: Array) -> None:
        self.stops, self.known = stops, True
        self.asked: list[float] = []
        self.ends: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def add(self, lam: float, y: torch.Tensor, rate: torch.Tensor) -> None:
        """A call of the model."""
        end = not self.asked or lam == self.asked[-1]
        while self.asked and self.asked[-1] >= lam:
            self.asked.pop()
        while self.ends and self.ends[-1][0] >= lam:
            self.ends.pop()
        self.asked.append(lam)
        if end and self.known:
            self.ends.append((lam, y.cpu(), rate.cpu()))
            self.known = 2 * len(self.ends) * y.numel() * y.element_size() <= _MEMORY
        if not self.known:
            self.ends.clear()

    @cached_property
    def _steps(self) -> tuple[Array, Array, Array]:
        """The ends of all steps; their lengths; between which stops they are."""
        ends = np.array([lam for lam, _, _ in self.ends])
        lengths = np.diff(ends)
        return ends, lengths, np.searchsorted(self.stops, ends[:-1] + 0.5 * lengths)

    def between(self, points: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(y, dy/dλ) at each of the ascending levels."""
        ends, lengths, stretch = self._steps
        steps = np.clip(np.searchsorted(ends, points) - 1, 0, lengths.size - 1)
        for k in np.unique(steps).tolist():
            beside = [j for j in (k - 1, k + 1) if 0 <= j < lengths.size and stretch[j] == stretch[k]]
            alike = [j for j in beside if 1 / _ALIKE < lengths[j] / lengths[k] < _ALIKE]
            used = sorted({k, k + 1, *(j + (j > k) for j in alike)})
            known = torch.stack([part for i in used for part in self.ends[i][1:]])
            # what each of the known arrays counts for: the interpolant of the rows of a unit matrix
            basis = KroghInterpolator(np.repeat(ends[used], 2), np.eye(len(known)))
            for weights in torch.from_numpy(basis.derivatives(points[steps == k], der=2)).unbind(1):
                yield tuple(torch.tensordot(weights, known, 1))

    def shortest(self) -> float | None:
        """Where the shortest step is, if it is far shorter than most; the first and those up to a stop do not count."""
        if len(self.ends) < 4:
            return None
        ends, lengths, stretch = self._steps
        free = np.append(stretch[1:] == stretch[:-1], False) & (np.arange(lengths.size) > 0)
        k = int(np.argmin(np.where(free, lengths, np.inf)))
        return float(ends[k]) if free[k] and lengths[k] < _SHORT * np.median(lengths) else None


@dataclass(frozen=True)
class Comparison:
    """What the second method found.

    Attributes:
        agreement: largest difference to the given states, of the finest run, over all times; nan before any run,
            infinite where the second method diverged.
        change: largest difference of its two finest runs, infinite before there are two.
        steps: of the finest run.
        ending: ``"met"``, or why it stopped before: ``"converged"`` elsewhere, ``"floor"``: more steps no longer
            bring the two together, ``"calls"``: none are left.
        states: of the finest run, None where there is none or it diverged.
        times: at which that run asked the model.
    """

    agreement: float
    change: float
    steps: int
    ending: str
    states: list[Any] | None
    times: Array


def all_levels(process: Process, times: list[float]) -> list[float]:
    """The descending ``times`` and the breakpoints of the process between them."""
    kinks = process.breakpoints[(process.breakpoints < times[0]) & (process.breakpoints > times[-1])]
    distance = np.abs(process.lam(kinks)[:, None] - process.lam(np.array(times)))
    return sorted([*times, *kinks[np.all(distance > _SAME_LEVEL, axis=1)].tolist()], reverse=True)


def compare(
    flow: Flow, times: list[float], nodes: list[float], states: list[torch.Tensor], tolerance: float
) -> Comparison:
    """Run the second method from ``states[0]``, halving its steps until a + c/15 ≤ ``tolerance``.

    Args:
        times: descending; states: those of the first method. nodes: times to step onto, which hold ``times``.
    """
    planned, steps, asked = 0, 0, np.empty(0)
    previous: list[Any] | None = None
    gaps, changes, ending = [math.nan], [math.inf], ""
    for halvings in itertools.count():
        ts = _grid(flow.process, nodes, halvings, flow.settings.seed)
        planned += _STAGES * (ts.size - 1)
        if planned > flow.settings.most_calls:
            ending = "calls"
            break
        steps = ts.size - 1
        found, asked = _solve(flow, ts, states[0], times)
        gaps.append(math.inf if found is None else largest_difference(found, states))
        changes.append(math.inf if found is None or previous is None else largest_difference(found, previous))
        previous = found
        ending = _ending(gaps, changes, tolerance)
        if ending:
            break
    return Comparison(gaps[-1], changes[-1], steps, ending, previous, asked)


def _ending(gaps: list[float], changes: list[float], tolerance: float) -> str:
    """Why the second method need not be refined, empty where it should be."""
    if gaps[-1] + changes[-1] / _RICHARDSON <= tolerance:
        return "met"
    elsewhere = gaps[-1] > 2 * changes[-1] and gaps[-1] - changes[-1] > tolerance
    if changes[-1] < changes[-2] / 8 < math.inf and elsewhere:  # it converges at its order
        return "converged"
    if all(math.isfinite(b) and b > a / 2 for a, b in itertools.pairwise(gaps[-3:])) and len(gaps) > 3:
        return "floor"
    return ""


def _grid(process: Process, nodes: list[float], halvings: int, seed: int) -> Array:
    """(N + 1,) times that hold the nodes; all steps halved so many times.

    Between nodes at λ = a and b they are a + (b − a)(u + s u (1 − u)) at u = k/n, s uniform in ±1/8 and the same for
    all halvings: their steps are bent alike, so that the error of each grid is 1/16 of that of the one before.
    """
    ts, bends = [np.array(nodes[:1])], np.random.default_rng(seed).uniform(-_BEND, _BEND, len(nodes) - 1)
    for (high, low), bend in zip(itertools.pairwise(nodes), bends, strict=True):
        a, b = float(process.lam(high)), float(process.lam(low))
        count = 1 if b - a < _SHORTEST else math.ceil((b - a) / _FIRST_STEP) * 2**halvings
        u = np.arange(1, count) / count
        ts.append(np.append(process.time_from_lam(a + (b - a) * (u + bend * u * (1 - u))), low))
    return np.concatenate(ts)


def _solve(flow: Flow, ts: Array, x: Any, times: list[float]) -> tuple[list[Any] | None, Array]:
    """States of the second method at ``times``, all of which are on the grid, and the times that it asked at.

    The states are None where it diverged.
    """
    wanted, found, asked = set(times), [x], []
    for first in range(0, ts.size - 1, _CHUNK):
        flow.show(f"{METHOD}, {ts.size - 1} steps", first / (ts.size - 1))
        part = ts[first : first + _CHUNK + 1]
        table = runge_kutta(flow.process, part, "4rk", name=METHOD).in_terms_of(flow.process, flow.settings.prediction)
        nodes = [k for k, t in zip(table.grid_nodes[1:], part[1:], strict=True) if float(t) in wanted]
        asked.append(table.times[list(table.evaluated)])
        try:
            x, kept = run(table, flow, x, keep=[table.grid_nodes[-1], *nodes], check=False)
        except NotFiniteError:
            return None, np.concatenate(asked)
        found += [kept.states[k] for k in nodes]
    return found, np.concatenate(asked)


def largest_difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Largest absolute difference of two lists of torch states; nan if there is one."""
    return float(torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max())


# -- what both may have stepped over --------------------------------------------------------------
@dataclass(frozen=True)
class Look:
    """What the model answered between the steps of both methods.

    Attributes:
        levels: how many of the model's own levels were asked at; None where they are not known.
        apart: the longest stretch without a question, in t and in λ.
        suspects: times at which the model does not answer what the path implies, the worst first.
    """

    levels: int | None
    apart: tuple[float, float]
    suspects: list[float]


def look(flow: Flow, path: Path, nodes: list[float], second: Array, tolerance: float, calls: int) -> Look:
    """Ask the model on DOPRI5's path: at its levels if they are known, else ``calls`` times where it was asked least.

    Where a question at λ is the only one in a stretch of length w, and the answer is off the path's own dy/dλ by d, the
    model may move x there by α w d unseen. More than a quarter of ``tolerance`` is suspicious.

    Args:
        second: times that the second method asked at.
    """
    process = flow.process
    ends = [float(process.lam(t)) for t in (nodes[0], nodes[-1])]
    asked = np.unique(np.clip(np.concatenate([path.asked, process.lam(second), ends]), ends[0], ends[1]))
    own = _own_levels(flow, nodes) if path.known else None
    if own is not None:
        points = np.setdiff1d(process.lam(own), asked)
    else:
        points = process.lam(_widest(process.time_from_lam(asked), asked, calls if path.known else 0))
    every = np.union1d(asked, points)
    times, found = np.clip(process.time_from_lam(every), nodes[-1], nodes[0]), []
    for i, (y, implied) in zip(np.flatnonzero(np.isin(every, points)), path.between(points), strict=True):
        flow.show("between the steps", i / every.size)
        t = float(times[i])
        d = float((flow.rate(every[i], y.to(flow.device), t).cpu() - implied).abs().max())
        found.append((float(process.alpha(t)) * (every[i + 1] - every[i - 1]) * d, t))
    suspects = [t for size, t in sorted(found, reverse=True) if size > _SUSPICIOUS * tolerance]
    apart = float(np.max(-np.diff(times))), float(np.max(np.diff(every)))
    return Look(None if own is None else own.size, apart, suspects[:_SUSPECTS])


def _own_levels(flow: Flow, nodes: list[float]) -> Array | None:
    """The levels of the model between the ends of the path; None where none are known or there are too many."""
    if flow.levels is None:
        return None
    own = flow.levels[(flow.levels < nodes[0]) & (flow.levels > nodes[-1])]
    return own if 0 < own.size <= flow.settings.most_calls else None


def _widest(times: Array, lam: Array, count: int) -> Array:
    """At most ``count`` times that divide the widest gaps between the given, descending ones evenly.

    The width of a gap is its share of all of t plus its share of all of λ.
    """
    widths = np.diff(times) / (times[-1] - times[0]) + np.diff(lam) / (lam[-1] - lam[0])
    low, high = math.log(widths.sum() / (count + widths.size)), math.log(widths.max())
    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = np.sum(np.ceil(widths / math.exp(middle)) - 1) <= count
        low, high = (low, middle) if enough else (middle, high)
    parts = np.maximum(np.ceil(widths / math.exp(high) * (1 - 1e-9)), 1).astype(int)
    return np.concatenate(
        [a + (b - a) * np.arange(1, n) / n for a, b, n in zip(times[:-1], times[1:], parts, strict=True)]
    )


# -- both -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class First:
    """DOPRI5's states, those of its looser run, (rtol, atol), what was in the way of those asked for, its path."""

    fine: list[torch.Tensor]
    coarse: list[torch.Tensor]
    rtol: float
    atol: float
    obstacle: str
    path: Path | None


@torch.no_grad()
def solve(flow: Flow, x: torch.Tensor, times: list[float]) -> Reference:
    """The states at descending ``times`` by DOPRI5, the first that of ``x``; compared with the second method if asked.

    Raises:
        ValueError: tolerances that cannot be met even at 1e-3, or cannot be met where no certificate is asked for.
    """
    settings, begin = flow.settings, flow.nfe
    nodes = all_levels(flow.process, times) if settings.certify else times
    first = _first_method(flow, x, times, nodes)
    size = max(float(state.abs().max()) for state in first.fine[1:])
    tolerance = settings.tolerance or _SLACK * (settings.atol + settings.rtol * size)
    before = flow.nfe

    def solved(last: First, certified: bool, agreement: float, message: str) -> Reference:
        estimate, second = largest_difference(first.coarse, last.fine), flow.nfe - before
        return Reference(
            times=tuple(times), states=tuple(last.fine), nfe=flow.nfe, second_nfe=second, error_estimate=estimate,
            rtol=first.rtol, atol=first.atol, certified=certified, agreement=agreement, tolerance=tolerance,
            message=message,
        )  # fmt: skip

    if first.path is None:
        return solved(first, False, math.nan, "not certified: no second method was asked for (certify=False)")
    found = compare(flow, times, nodes, first.fine, tolerance)
    if not found.steps:
        need = f"{METHOD} needs more than most_calls={settings.most_calls} for its coarsest grid"
        return solved(first, False, math.nan, f"not certified: {need}")
    met = found.ending == "met" and not first.obstacle
    seen = look(flow, first.path, nodes, found.times, tolerance, (flow.nfe - begin) // _SHARE if met else 0)
    last, moved = _stepping_onto(flow, first, x, times, nodes, seen.suspects)
    agreement = found.agreement
    if last is not first and found.states is not None:
        agreement = largest_difference(found.states, last.fine)
    methods = f"DOPRI5 (rtol={first.rtol:.1e}, atol={first.atol:.1e}) and {METHOD} ({found.steps} steps)"
    if met and math.isfinite(moved) and agreement + found.change / _RICHARDSON <= tolerance:
        apart = f"{methods} differ by at most {agreement:.1e}; {_unseen(seen)}"
        return solved(last, True, agreement, f"certified to {tolerance:.1e}: {apart}")
    reasons = [f"not certified to {tolerance:.1e}: {methods} differ by up to {agreement:.1e}"]
    if not met:
        reasons.append(f"{first.obstacle}; {_suggestion(flow)}" if first.obstacle else _reason(flow, found, tolerance))
    return solved(last, False, agreement, "; ".join([*reasons, *_places(flow, seen, moved, last)]))


def _unseen(seen: Look) -> str:
    """What the certificate cannot tell."""
    own = "" if seen.levels is None else f"the model was asked at all {seen.levels} of its levels; "
    t, lam = seen.apart
    return f"{own}what is narrower than {t:.1e} in t and {lam:.1e} in λ can lie between all questions, unseen"


def _places(flow: Flow, seen: Look, moved: float, last: First) -> list[str]:
    """Where the model seems not to be smooth, as far as that is known."""
    found = []
    if moved:
        onto = f"moves by {moved:.1e}" if math.isfinite(moved) else "fails"
        found.append(
            f"at t={seen.suspects[0]:.6g}, between its steps, the model does not answer what DOPRI5's path implies: "
            f"made to step onto it, DOPRI5 {onto}"
        )
    short = None if last.path is None else last.path.shortest()
    if short is not None:
        found.append(f"DOPRI5's shortest step is at t={float(flow.process.time_from_lam(short)):.6g}")
    return found


def _first_method(flow: Flow, x: torch.Tensor, times: list[float], nodes: list[float]) -> First:
    """DOPRI5 at the tolerances that were asked for, or at the tightest that it can meet."""
    asked = rtol, atol = flow.settings.rtol, flow.settings.atol
    obstacle = ""
    while True:
        path = Path(flow.process.lam(np.array(nodes[1:-1]))) if flow.settings.certify else None
        try:
            fine = flow.integrate(x, times, nodes, rtol * _TIGHTEN, atol * _TIGHTEN, path)
            coarse = flow.integrate(x, times, nodes, rtol, atol)
        except UnreachableError as error:
            failed = f"rtol={rtol:.1e}, atol={atol:.1e} cannot be met by DOPRI5: {error}"
            if not flow.settings.certify or min(rtol, atol) >= _LOOSEST:
                raise ValueError(failed) from error
            if not obstacle:
                _check_function(flow, x, times[0], failed)
            obstacle = obstacle or failed
            rtol, atol = (min(10 * v, max(a, _LOOSEST)) for v, a in zip((rtol, atol), asked, strict=True))
        else:
            return First(fine, coarse, rtol * _TIGHTEN, atol * _TIGHTEN, obstacle, path)


def _stepping_onto(
    flow: Flow, first: First, x: torch.Tensor, times: list[float], nodes: list[float], suspects: list[float]
) -> tuple[First, float]:
    """DOPRI5 again, its steps ending at suspicious times, and by how much that moves it: infinitely if it fails."""
    if not suspects:
        return first, 0.0
    nodes = sorted({*nodes, *suspects}, reverse=True)
    path = Path(flow.process.lam(np.array(nodes[1:-1])))
    try:
        fine = flow.integrate(x, times, nodes, first.rtol, first.atol, path)
    except UnreachableError:
        return first, math.inf
    return replace(first, fine=fine, path=path), largest_difference(fine, first.fine)


def _check_function(flow: Flow, x: torch.Tensor, t: float, failed: str) -> None:
    """A ValueError if the model answers one question in two ways: looser tolerances would be tried in vain."""
    one, other = flow(x, t), flow(x, t)
    gap = float((one - other).abs().max())
    if gap > _FUNCTION * float(one.abs().max()):
        raise ValueError(
            f"{failed}. model, asked twice at t={t!r}, answered differently by {gap:.1e}: is it in eval()?"
        )


def _reason(flow: Flow, found: Comparison, tolerance: float) -> str:
    """Why the two methods did not come together."""
    match found.ending:
        case "converged":
            return f"{METHOD} moves by {found.change:.1e} only when its steps are halved: ask for smaller rtol and atol"
        case "calls":
            return f"more steps than most_calls={flow.settings.most_calls} allows would be needed"
        case _:
            return f"more steps no longer bring them together; {_suggestion(flow)}"


def _suggestion(flow: Flow) -> str:
    if flow.answered != torch.float64:
        return f"the model answers in {str(flow.answered).removeprefix('torch.')}, which is not smooth at this scale"
    return "the model seems not to be smooth at this scale: float32 inside, a rounded time, or kinks"
