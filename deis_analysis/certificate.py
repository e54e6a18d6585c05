r"""Two independent methods for one probability flow, and what their difference certifies.

The first is torchdiffeq's DOPRI5 in λ = −log ρ, where the flow of y = x/α is :math:`dy/dλ = -e^{-λ} ε(αy, t(λ))`:
bounded, and smooth where the model is. The second is the table of ρRK-DEIS of order 4, on a grid uniform in λ. Both
step onto every time asked for and onto the process's breakpoints. The steps of the second are halved until it meets
the first. With a the largest difference of the two, and c that of the runs on N and on 2N steps, the error of the first
is at most a + c/15 where the second converges at its order:

.. math:: |x - x^*| ≤ |x - r_{2N}| + |r_{2N} - x^*| , \qquad r_N - r_{2N} ≈ 15 (r_{2N} - x^*) .
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchdiffeq import odeint

from deis_analysis.process import Array, Process
from deis_analysis.solvers import build
from deis_analysis.tableau import Model, run

if TYPE_CHECKING:
    from deis_analysis.reference import Settings

METHOD, _STAGES, _RICHARDSON = "rhork_4rk", 4, 15.0
_FIRST_STEP = 0.25  # in λ, of the coarsest grid
_SHORTEST = 1e-6  # in λ: a step between two given times that is shorter is not halved
_CHUNK = 32  # steps per table: tables are dense
_SAME_LEVEL = 1e-12
_TIGHTEN = 0.1
_LOOSEST = 1e-3  # rtol and atol, where those asked for cannot be met
_SLACK = 10.0  # default tolerance of a certificate over atol + rtol |x|
_FUNCTION = 1e-6  # of the answer: two answers to one question that differ by more are not those of a function
Show = Callable[[str, float], None]


class NotFiniteError(ValueError):
    """The model returned NaN or infinity."""


class UnreachableError(ValueError):
    """DOPRI5 cannot meet its tolerances."""


@dataclass(frozen=True)
class Solved:
    """States at all times, and what is known of them; as in `deis_analysis.Reference`."""

    states: tuple[Any, ...]
    second_nfe: int
    error_estimate: float
    rtol: float
    atol: float
    certified: bool
    agreement: float
    tolerance: float
    message: str


class Flow:
    """A model behind its door, counting its calls, and dy/dλ of y = (x − mean)/α."""

    def __init__(self, model: Model, process: Process, settings: Settings, numpy: bool, device: torch.device) -> None:
        self.model, self.process, self.settings, self.numpy = model, process, settings, numpy
        self.mean = None if process.mean is None else torch.as_tensor(process.mean, dtype=torch.float64, device=device)
        self.nfe, self.answered = 0, torch.float64
        self.show: Show = lambda text, share: None

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """The model's answer in float64."""
        self.nfe += 1
        asked = x.to(self.settings.model_dtype or x.dtype)
        output = self.model(asked.numpy() if self.numpy else asked, t)
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
        prediction = self.settings.prediction
        p = self(x if self.mean is None else x + self.mean, t)
        if self.mean is not None and prediction == "x0":
            p = p - self.mean
        from_x, from_p = (float(c) for c in self.process.convert(prediction, "eps", t))
        return from_p * p + from_x * x if from_x else from_p * p

    def integrate(
        self, x: torch.Tensor, times: list[float], nodes: list[float], rtol: float, atol: float
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
            t = float(np.clip(self.process.time_from_lam(value), end, start))
            return -float(np.exp(-value)) * self._eps(float(self.process.alpha(t)) * y, t)

        span = torch.tensor(levels, dtype=torch.float64, device=x.device)
        stops = torch.tensor([float(self.process.lam(t)) for t in nodes[1:-1]], dtype=torch.float64, device=x.device)
        options = {"step_t": stops} if len(stops) else None  # a step ends there: no interpolation
        centre = 0.0 if self.mean is None else self.mean
        y = (x - centre) / float(self.process.alpha(start))
        try:
            y = odeint(rate, y, span, rtol=rtol, atol=atol, method="dopri5", options=options)
        except AssertionError as error:
            if not str(error).startswith(("underflow in dt", "non-finite values in state")):
                raise  # the model's own
            raise UnreachableError(str(error).split(": ")[0]) from error
        return [x, *(float(self.process.alpha(t)) * y[i] + centre for i, t in enumerate(times) if i)]


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
    """

    agreement: float
    change: float
    steps: int
    ending: str


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
    planned, steps = 0, 0
    previous: list[Any] | None = None
    gaps, changes = [math.nan], [math.inf]
    for halvings in itertools.count():
        ts = _grid(flow.process, nodes, halvings)
        planned += _STAGES * (ts.size - 1)
        if planned > flow.settings.most_calls:
            break
        steps = ts.size - 1
        found = _solve(flow, ts, states[0], times)
        gaps.append(math.inf if found is None else largest_difference(found, states))
        changes.append(math.inf if found is None or previous is None else largest_difference(found, previous))
        previous = found
        ending = _ending(gaps, changes, tolerance)
        if ending:
            return Comparison(gaps[-1], changes[-1], steps, ending)
    return Comparison(gaps[-1], changes[-1], steps, "calls")


def _ending(gaps: list[float], changes: list[float], tolerance: float) -> str:
    """Why the second method need not be refined, empty where it should be."""
    if gaps[-1] + changes[-1] / _RICHARDSON <= tolerance:
        return "met"
    if changes[-1] < changes[-2] / 8 < math.inf and gaps[-1] - changes[-1] > tolerance:  # it converges at its order
        return "converged"
    if all(math.isfinite(b) and b > a / 2 for a, b in itertools.pairwise(gaps[-3:])) and len(gaps) > 3:
        return "floor"
    return ""


def _grid(process: Process, nodes: list[float], halvings: int) -> Array:
    """(N + 1,) times that hold the nodes, uniform in λ between each two; all steps halved so many times."""
    ts = [np.array(nodes[:1])]
    for high, low in itertools.pairwise(nodes):
        a, b = float(process.lam(high)), float(process.lam(low))
        count = 1 if b - a < _SHORTEST else math.ceil((b - a) / _FIRST_STEP) * 2**halvings
        between = process.time_from_lam(np.linspace(a, b, count + 1)[1:-1])
        ts.append(np.append(between, low))
    return np.concatenate(ts)


def _solve(flow: Flow, ts: Array, x: Any, times: list[float]) -> list[Any] | None:
    """States of the second method at ``times``, all of which are on the grid; None where it diverged."""
    wanted, found = set(times), [x]
    for first in range(0, ts.size - 1, _CHUNK):
        flow.show(f"{METHOD}, {ts.size - 1} steps", first / (ts.size - 1))
        part = ts[first : first + _CHUNK + 1]
        table = build(METHOD, flow.process, part).in_terms_of(flow.process, flow.settings.prediction)
        nodes = [k for k, t in zip(table.grid_nodes[1:], part[1:], strict=True) if float(t) in wanted]
        try:
            x, kept = run(table, flow, x, keep=[table.grid_nodes[-1], *nodes], check=False)
        except NotFiniteError:
            return None
        found += [kept.states[k] for k in nodes]
    return found


def largest_difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Largest absolute difference of two lists of torch states; nan if there is one."""
    return float(torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max())


# -- both -----------------------------------------------------------------------------------------
@torch.no_grad()
def solve(flow: Flow, x: torch.Tensor, times: list[float]) -> Solved:
    """The states at descending ``times`` by DOPRI5, the first that of ``x``; compared with the second method if asked.

    Raises:
        ValueError: tolerances that cannot be met even at 1e-3, or cannot be met where no certificate is asked for.
    """
    settings = flow.settings
    nodes = all_levels(flow.process, times) if settings.certify else times
    fine, estimate, rtol, atol, obstacle = _first_method(flow, x, times, nodes)
    size = max(float(state.abs().max()) for state in fine[1:])
    tolerance = settings.tolerance or _SLACK * (settings.atol + settings.rtol * size)
    if not settings.certify:
        message = "not certified: no second method was asked for (certify=False)"
        return Solved(tuple(fine), 0, estimate, rtol, atol, False, math.nan, tolerance, message)
    before = flow.nfe
    found = compare(flow, times, nodes, fine, tolerance)
    second, certified = flow.nfe - before, found.ending == "met" and not obstacle
    methods = f"DOPRI5 (rtol={rtol:.1e}, atol={atol:.1e}) and {METHOD} ({found.steps} steps)"
    if not found.steps:
        message = f"not certified: {METHOD} needs more than most_calls={settings.most_calls} for its coarsest grid"
    elif certified:
        message = f"certified to {tolerance:.1e}: {methods} differ by at most {found.agreement:.1e}"
    else:
        reason = f"{obstacle}; {_suggestion(flow)}" if obstacle else _reason(flow, found, tolerance)
        message = f"not certified to {tolerance:.1e}: {methods} differ by up to {found.agreement:.1e}; {reason}"
    return Solved(tuple(fine), second, estimate, rtol, atol, certified, found.agreement, tolerance, message)


def _first_method(
    flow: Flow, x: torch.Tensor, times: list[float], nodes: list[float]
) -> tuple[list[torch.Tensor], float, float, float, str]:
    """DOPRI5's states, their estimated error, (rtol, atol), and what was in the way of those asked for if anything."""
    asked = rtol, atol = flow.settings.rtol, flow.settings.atol
    obstacle = ""
    while True:
        try:
            fine = flow.integrate(x, times, nodes, rtol * _TIGHTEN, atol * _TIGHTEN)
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
            return fine, largest_difference(coarse, fine), rtol * _TIGHTEN, atol * _TIGHTEN, obstacle


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
