r"""Tuned samplers as their authors released them, as tables: lists of levels, NeuralSolver, EPD, DC-Solver.

A tuned sampler is a grid, a table of coefficients, or both; here each becomes a `Tableau`, so that it runs, prints and
is analysed like any other.  The numbers lie in ``published.json`` beside this file, with source and licence; what users
have in files of their own is read by `read_levels`, `read_ratios`, `read_neural_solver` and `read_epd`.  Nothing is
unpickled.

Numbers are kept as printed, to four digits where four were printed: rows that should sum to 1 then do so to rounding of
the print, and times that should end at the data end up to 2e-4 beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.process.schedules import EDM, RectifiedFlow, VPLinear
from deis_analysis.solvers.predictor_corrector import unipc_weights
from deis_analysis.solvers.registry import Solver, builder_of
from deis_analysis.storage import read_text
from deis_analysis.tableau import Builder, Tableau
from deis_analysis.tableau.recorder import Line, Recorder, combined
from deis_analysis.validate import boolean, choose, finite, first, instance, nonnegative, positive_int

SCALES = ("rho", "flow")
ENDS = ("kept", "replaced", "appended")
_PRINT = 5e-4  # half of the third decimal, to which most lists are printed
_DEFAULT_STEPS = 10  # of a list that was published for many numbers of steps


@cache
def _data() -> dict[str, Any]:
    return json.loads(files("deis_analysis.interop").joinpath("published.json").read_text(encoding="utf-8"))


# -- lists of levels ------------------------------------------------------------------------------
@dataclass(frozen=True)
class SigmaList:
    """Tuned noise levels, for one number of steps or for several.

    Attributes:
        levels: number of steps N → (N + 1,) descending levels.
        scale: ``"rho"`` for σ/α, EDM's σ; ``"flow"`` for the σ of flow matching, σ/(α + σ).
        made_for: the network. source: paper or file. licence: of where the numbers were found.
    """

    name: str
    levels: Mapping[int, tuple[float, ...]]
    scale: str
    made_for: str
    source: str
    licence: str


def _lists() -> dict[str, SigmaList]:
    return {
        name: SigmaList(
            name,
            {len(levels) - 1: tuple(map(float, levels)) for levels in entry["levels"]},
            entry["scale"],
            entry["made for"],
            entry["source"],
            entry["licence"],
        )
        for name, entry in _data()["lists"].items()
    }


LISTS: Mapping[str, SigmaList] = _lists()


def sigma_list(name: str, steps: int | None = None) -> Array:
    """The levels (N + 1,) of a published list, in its own scale, the last one kept.

    Args:
        name: of `LISTS`. steps: N; where the list was not published for it, the longest one is interpolated, as its
            authors do. By default the one list there is, or that of 10 steps.

    Raises:
        ValueError: an unknown name, steps < 1.
    """
    published = LISTS[choose("name", name, LISTS)].levels
    if steps is None:
        steps = _DEFAULT_STEPS if _DEFAULT_STEPS in published else max(published)
    if positive_int("steps", steps) in published:
        return np.array(published[steps])
    return interpolated(published[max(published)], steps)


def interpolated(levels: Any, steps: int) -> Array:
    """``levels`` at ``steps`` + 1 places: linear in the logarithm, over equidistant places.

    Args:
        levels: (n + 1,) descending, positive.

    Raises:
        ValueError: levels that do not descend, are not finite or not positive; steps < 1.

    Source: Sabour et al. 2024, how-to, ``loglinear_interp``.
    """
    values = check_levels(levels)
    if values[-1] == 0:
        raise ValueError("levels end at 0.0, which has no logarithm; allowed: positive levels, 0 is added afterwards")
    places = np.linspace(0.0, 1.0, positive_int("steps", steps) + 1)
    found = np.exp(np.interp(places, np.linspace(0.0, 1.0, values.size), np.log(values)))
    found[0], found[-1] = values[0], values[-1]
    return found


def check_levels(levels: Any, scale: str = "rho") -> Array:
    """``levels`` as a float64 array (N + 1,).

    Raises:
        ValueError: fewer than two; not finite; not strictly descending; negative; above 1 with ``scale="flow"``.
    """
    values = finite("levels", levels, 0.0)
    choose("scale", scale, SCALES)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"levels has shape {values.shape}; allowed: one dimension, at least 2 levels")
    if np.any(np.diff(values) >= 0):
        where = np.append(np.diff(values) >= 0, False)
        raise ValueError(f"levels must descend strictly; they do not after {first(values, where)}")
    if scale == "flow" and values[0] > 1:
        raise ValueError(f"levels begin at {float(values[0])!r}; allowed in scale='flow': at most 1")
    return values


def times_of_levels(process: Process, levels: Any, scale: str = "rho", end: str = "kept", slack: float = 0.0) -> Array:
    """The times of ``process`` at which it has ``levels``, (N + 1,) or (N + 2,) descending.

    Args:
        levels: (N + 1,) descending. scale: see `SigmaList`.
        end: ``"kept"``: as tuned; ``"replaced"``: the last level is overwritten by 0, as ComfyUI does, which lengthens
            the last tuned step; ``"appended"``: a step to 0 is added, as diffusers and A1111 do.
        slack: by how much, in ρ, a level may lie outside the range of ``process``; it is then moved to its end.

    Raises:
        ValueError: bad levels, a level that ``process`` does not reach, or a 0 where the process has no time at σ = 0.
    """
    values = check_levels(levels, scale)
    require_process(process)
    choose("end", end, ENDS)
    if end != "kept" and values[-1] > 0:
        values = np.append(values[:-1] if end == "replaced" else values, 0.0)
    with np.errstate(divide="ignore"):
        rho = values / (1.0 - values) if scale == "flow" else values
    low, high = float(process.rho(process.t_min)), float(process.rho(process.t_max))
    near = (rho >= low - nonnegative("slack", slack)) & (rho <= high + slack) & (rho > 0)
    rho = np.where(near, np.clip(rho, low, high), rho)
    ends = {high: process.t_max, low: process.t_min}  # also where `time_from_rho` knows nothing: at ∞ and at 0
    if process._data_time is not None:
        ends[0.0] = process._data_time
    times = [ends[r] if r in ends else float(process.time_from_rho(r)) for r in rho.tolist()]
    return check_grid(process, times)


def on_levels(
    sampler: str | Solver | Builder,
    process: Process,
    levels: Any,
    *,
    steps: int | None = None,
    scale: str | None = None,
    end: str = "kept",
) -> Tableau:
    """A sampler on a tuned list: its table at the times at which ``process`` has those levels.

    Args:
        sampler: registry name, row, or a function (process, ts) → `Tableau`.
        levels: a name of `LISTS`, or (n + 1,) levels in ``scale`` (``"rho"`` unless given; a published list has its
            own).  A published level that the print rounded out of the range of ``process`` is moved to its end.
        steps: interpolate to so many steps, see `sigma_list` and `interpolated`. end: see `times_of_levels`.

    Raises:
        ValueError: as `sigma_list`, `times_of_levels` and the sampler; a scale that is not the list's.
    """
    if isinstance(levels, str):
        name, known, slack = levels, sigma_list(levels, steps), _PRINT
        if scale not in (None, LISTS[name].scale):
            raise ValueError(f"scale={scale!r}, but the list {name!r} has {LISTS[name].scale!r}")
        scale = LISTS[name].scale
    else:
        name, slack, scale = "given levels", 0.0, scale or "rho"
        known = check_levels(levels, scale) if steps is None else interpolated(levels, steps)
    table = builder_of(sampler)(process, times_of_levels(process, known, scale, end, slack))
    return table.changed(name=f"{table.name} on {name}")


# -- NeuralSolver ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class NeuralSolver:
    """The numbers of one NeuralSolver table.

    Attributes:
        deltas: (N,) lengths of the steps in time, positive, summing to at most 1.001.
        rows: (N, N) strictly lower triangular: the coefficients of the earlier outputs; that of the newest makes each
            row sum to 1.
    """

    deltas: Array
    rows: Array

    def __post_init__(self) -> None:
        deltas, rows = finite("deltas", self.deltas), finite("rows", self.rows)
        if deltas.ndim != 1 or deltas.size < 1 or rows.shape != (deltas.size, deltas.size):
            raise ValueError(f"rows has shape {rows.shape}, deltas {deltas.shape}; allowed: (N, N) and (N,)")
        if np.any(deltas <= 0):
            raise ValueError(f"deltas must be positive; they have {first(deltas, deltas <= 0)}")
        if deltas.sum() > 1.001:
            raise ValueError(f"deltas sum to {float(deltas.sum())!r}; allowed: at most 1.001, the whole range of times")
        if np.any(np.triu(rows)):
            raise ValueError("rows must be strictly lower triangular: step i combines the outputs before it")
        for name, array in (("deltas", deltas), ("rows", rows)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def weights(self) -> Array:
        """(N, N) what each step makes of all outputs: the rows and 1 − their sums on the diagonal."""
        return self.rows + np.diag(1.0 - self.rows.sum(axis=1))


KINDS = ("flow", "flow_sit", "ddpm")


def neural_solver_numbers(steps: int, kind: str = "flow") -> NeuralSolver:
    """The printed numbers: ``"flow"`` (trained on FlowDCN), ``"flow_sit"`` (on SiT), ``"ddpm"`` (on DiT).

    Raises:
        ValueError: an unknown kind, or a number of steps that was not published.
    """
    tables = _data()["neural_solver"][choose("kind", kind, KINDS)]["steps"]
    if str(positive_int("steps", steps)) not in tables:
        raise ValueError(f"steps={steps} was not published for kind={kind!r}; allowed: {', '.join(tables)}")
    entry = tables[str(steps)]
    return NeuralSolver(entry["timedeltas"], _lower_triangle("coeffs", entry["coeffs"]))


def neural_solver(steps: int | NeuralSolver, kind: str = "flow", *, twice: bool = False) -> Tableau:
    r"""NeuralSolver: a linear multistep method whose coefficients and steps are trained.

    .. math:: x_{i+1} = x_i + Δt_i v , \qquad v = \sum_{j<i} c_{ij} v_j + (1 - \sum_j c_{ij}) v_i

    for flow matching (a table in v on `RectifiedFlow` from t = 1 to max(0, 1 − ΣΔt)).  For ``"ddpm"`` the same
    combination of x₀ goes through DDIM's transfer, x' = (σ'/σ) x + σ' (α'/σ' − α/σ) x̂₀, on `VPLinear` from 0.999 to
    max(0.001, 0.999 − ΣΔt), as released.

    Args:
        steps: which of the printed tables, or numbers of one's own.
        kind: see `neural_solver_numbers`. twice: the loop of the released ``src/diffusion/ddpm``, which takes each step
            a second time, with x₀ for the combination, and stores each x₀ twice, so that c_ij meets another output.

    Raises:
        ValueError: as `neural_solver_numbers`; ``twice`` with a flow.

    Source: arXiv 2505.21114; github.com/MCG-NJU/NeuralSolver (MIT).
    """
    choose("kind", kind, KINDS)
    if boolean("twice", twice) and kind != "ddpm":
        raise ValueError(f"twice=True with kind={kind!r}; allowed: 'ddpm', the loop that was released so")
    numbers = steps if isinstance(steps, NeuralSolver) else neural_solver_numbers(steps, kind)
    n = numbers.deltas.size
    name = f"NeuralSolver {n} ({kind}{', released loop' if twice else ''})"
    return _of_ddpm(numbers, twice, name) if kind == "ddpm" else _of_flow(numbers, name)


def _of_flow(numbers: NeuralSolver, name: str) -> Tableau:
    ts = np.maximum(1.0 - np.concatenate([[0.0], np.cumsum(numbers.deltas)]), 0.0)
    r = Recorder(RectifiedFlow(), ts, "v")
    x, known = r.x_T, list[Line]()
    for delta, row in zip(numbers.deltas.tolist(), numbers.weights.tolist(), strict=True):
        known.append(r.call(x))
        x = r.node(x - delta * combined(row, known))  # its v is the derivative in the other direction of time
    return r.tableau(name)


def _of_ddpm(numbers: NeuralSolver, twice: bool, name: str) -> Tableau:
    process = VPLinear()
    ts = np.maximum(0.999 - np.concatenate([[0.0], np.cumsum(numbers.deltas)]), 1e-3)
    sigma, inverse = process.sigma(ts).tolist(), (1.0 / process.rho(ts)).tolist()
    r = Recorder(process, ts, "x0")
    x, known = r.x_T, list[Line]()
    for i, row in enumerate(numbers.weights.tolist()):
        ratio, length = sigma[i + 1] / sigma[i], sigma[i + 1] * (inverse[i + 1] - inverse[i])
        newest = r.call(x)
        known.append(newest)
        moved = ratio * x + length * (combined(row[:i], known) + row[i] * newest)
        if twice:
            known.append(newest)
            moved = ratio * moved + length * newest
        x = r.node(moved)
    return r.tableau(name)


# -- EPD ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class EPD:
    """The trained numbers of an EPD solver: N steps of K parallel directions, arrays (N, K).

    Attributes:
        r: where between the levels, τ = ρ_next^r ρ^(1 − r), in [0, 1].
        w: weights, each row summing to 1. s: scales of the directions. a: scales of the told levels, positive.
    """

    r: Array
    w: Array
    s: Array
    a: Array

    def __post_init__(self) -> None:
        arrays = {name: finite(name, getattr(self, name)) for name in ("r", "w", "s", "a")}
        shape = arrays["r"].shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"r has shape {shape}; allowed: (N, K), N steps of K directions")
        for name, array in arrays.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; allowed: {shape}, that of r")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if np.any((arrays["r"] < 0) | (arrays["r"] > 1)):
            raise ValueError(f"r={arrays['r'].tolist()} must lie in [0, 1]")
        sums = arrays["w"].sum(axis=1)
        if np.any(np.abs(sums - 1.0) > 1e-3):
            raise ValueError(f"w must sum to 1 in each step; the sums are {sums.tolist()}")
        if np.any(arrays["a"] <= 0):
            raise ValueError(f"a={arrays['a'].tolist()} must be positive")

    def row_sums(self) -> tuple[Array, Array]:
        """Per step (Σ w s, Σ w s a): what a step makes of a constant x₀ and of a constant ε, in units of the step.

        A consistent step has 1 in both; only one of them can be 1 unless a is 1 on average.
        """
        return np.sum(self.w * self.s, axis=1), np.sum(self.w * self.s * self.a, axis=1)


def epd(parameters: EPD, levels: Any, process: Process | None = None, *, afs: bool = False) -> Tableau:
    r"""EPD: each step asks the model at K intermediate levels side by side, and told levels beside them.

    In x̂ = x/α and EDM's σ = ρ, with d = (x̂ − D)/ρ at the start of the step,

    .. math:: \hat x_k = \hat x + (τ_k - ρ) d , \quad
              \hat x' = \hat x + (ρ' - ρ) \sum_k w_k s_k \frac{\hat x_k - D(\hat x_k, a_k τ_k)}{τ_k} ,
              \quad τ_k = ρ'^{r_k} ρ^{1 - r_k} .

    The table is in ε, of which D(x̂, σ) = x̂ − σ ε makes each direction a_k ε; the node of a direction holds the state
    that the network is shown, α x̂_k at the told level.

    Args:
        levels: (N + 1,) descending positive ρ. process: on which; by default `EDM`.
        afs: the first direction is x̂/√(1 + ρ²), without a model call.

    Raises:
        ValueError: bad levels or another number of them, or levels (told ones too) that ``process`` does not reach.

    Source: Zhu et al. 2025 (EPD, arXiv 2507.14797); github.com/BeierZhu/EPD, solvers.py.
    """
    process = require_process(EDM() if process is None else process)
    numbers, rho = instance("parameters", parameters, EPD), check_levels(levels)
    if rho.size != numbers.r.shape[0] + 1:
        raise ValueError(f"levels has {rho.size} entries; allowed: {numbers.r.shape[0] + 1}, one more than steps")
    ts = times_of_levels(process, rho)
    if rho[-1] == 0:
        raise ValueError("levels end at 0.0; allowed: positive levels, between which the geometric means lie")
    alpha, free = process.alpha(ts).tolist(), boolean("afs", afs)
    r = Recorder(process, ts, "eps")
    x = r.x_T
    for i, (now, then) in enumerate(zip(rho[:-1].tolist(), rho[1:].tolist(), strict=True)):
        hat = x / alpha[i]
        d = hat / float(np.hypot(1.0, now)) if free and i == 0 else r.call(x)
        ends = []
        for r_k, w, s, a in zip(numbers.r[i], numbers.w[i], numbers.s[i], numbers.a[i], strict=True):
            between = float(then**r_k * now ** (1.0 - r_k))
            told = float(process.time_from_rho(a * between))
            shown = r.state(float(process.alpha(told)) * (hat + (between - now) * d), told)
            ends.append(float((then - now) * w * s * a) * r.call(shown))
        x = r.node(alpha[i + 1] * sum(ends, start=hat))
    return r.tableau(f"EPD {numbers.r.shape[0]} × {numbers.r.shape[1]}")


_NUMBER = r"(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|inf)"
_DIRECTION = re.compile(rf"r(\d+): *{_NUMBER} +st\1: *{_NUMBER} +sd\1: *{_NUMBER} +w\1: *{_NUMBER}")


def parse_epd_log(text: str) -> EPD:
    """The numbers that EPD's sampler prints with ``verbose``; of several blocks of steps the last.

    Lines ``step 0: |r0: 0.03340 st0: 0.95420 sd0: 0.99740 w0: 0.86990 |r1: …``, st the scale of the told level (a), sd
    that of the direction (s).

    Raises:
        ValueError: no such line, steps that are missing, or different numbers of directions; as `EPD`.

    Source: github.com/BeierZhu/EPD, solvers.py, ``epd_sampler``.
    """
    steps: list[list[tuple[float, ...]]] = []
    for number, line in re.findall(r"^.*?\bstep (\d+): *(\|.*)$", instance("text", text, str), re.MULTILINE):
        if int(number) == 0:
            steps = []
        if int(number) != len(steps):
            raise ValueError(f"text has step {number} where step {len(steps)} should stand")
        found = _DIRECTION.findall(line)
        if [int(k) for k, *_ in found] != list(range(max(len(found), 1))) or line.count("|r") != len(found):
            raise ValueError(f"step {number} of text holds no directions of the form 'r0: … st0: … sd0: … w0: …'")
        steps.append([tuple(map(float, numbers)) for _, *numbers in found])
    if not steps:
        raise ValueError("text has no line 'step 0: |r0: … st0: … sd0: … w0: …|'; allowed: what epd_sampler prints")
    if len({len(step) for step in steps}) > 1:
        raise ValueError(f"the steps of text have {[len(step) for step in steps]} directions; allowed: equally many")
    r, a, s, w = np.moveaxis(np.array(steps), 2, 0)
    return EPD(r, w, s, a)


# -- DC-Solver ------------------------------------------------------------------------------------
def dc_solver(
    process: Process,
    times: Any,
    ratios: Any,
    order: int = 3,
    *,
    prediction: str = "x0",
    variant: str = "bh1",
    lower_order_final: bool = True,
) -> Tableau:
    """DC-Solver: before each step of UniPC the newest output is replaced by the history at another time.

    The outputs at t_i, t_{i−1} and t_{i−2} are interpolated by a parabola in t, which is read at
    ρ_i t_i + (1 − ρ_i) t_{i−1}; the later steps know the replaced output too.  With ρ_i = 1 the step is UniPC's.

    Args:
        times: (N + 1,) descending. ratios: (N,) ρ_i per step, 1 in the first two, which do not have three outputs.
        order, prediction, variant, lower_order_final: see `deis_analysis.unipc`; as released by default.

    Raises:
        ValueError: another number of ratios, ratios that are not finite, or others than 1 in the first two steps.

    Source: Zhao et al. 2024 (DC-Solver, ECCV); github.com/wl-zhao/DC-Solver.
    """
    ts, rho = check_grid(process, times), finite("ratios", ratios)
    if rho.shape != (ts.size - 1,):
        raise ValueError(f"ratios has shape {rho.shape}; allowed: {(ts.size - 1,)}, one per step")
    if np.any(rho[:2] != 1.0):
        raise ValueError(f"ratios begin with {rho[:2].tolist()}; allowed: 1, before there are three outputs")
    predict, correct = unipc_weights(
        process, ts, order, prediction=prediction, variant=variant, lower_order_final=lower_order_final
    )
    gamma = process.gamma(prediction, ts).tolist()
    r = Recorder(process, ts, prediction)
    x = r.x_T
    known = [r.call(x)]  # latest first
    for n, (w, w_c) in enumerate(zip(predict.tolist(), correct.tolist(), strict=True)):
        if rho[n] != 1.0:
            known[0] = combined(_parabola(ts[n - 2 : n + 1][::-1], float(rho[n])), known)
        ratio, g = gamma[n + 1] / gamma[n], gamma[n + 1]
        predicted = ratio * x + g * combined(w, known)
        if n == ts.size - 2:  # the last step is not corrected
            r.node(predicted)
            break
        known = [r.call(predicted, ts[n + 1]), *known[: max(order, 2)]]
        x = r.node(ratio * x + g * combined(w_c, known))
    return r.tableau(f"DC-Solver {order} ({variant})")


def _parabola(nodes: Array, ratio: float) -> list[float]:
    """The Lagrange basis at ``nodes`` (3,), latest first, at ratio · nodes[0] + (1 − ratio) · nodes[1]."""
    at = ratio * nodes[0] + (1.0 - ratio) * nodes[1]
    others = [np.delete(nodes, i) for i in range(3)]
    return [float(np.prod((at - rest) / (node - rest))) for node, rest in zip(nodes, others, strict=True)]


# -- files of users -------------------------------------------------------------------------------
def read_levels(source: str | Path, scale: str = "rho") -> Array:
    """Levels (N + 1,) of a text or a file: JSON, or numbers with commas, blanks or line ends between them.

    Of a JSON object the list under ``"sigmas"`` or ``"levels"`` is taken.

    Raises:
        ValueError: something that is no number, and as `check_levels`, or a file that cannot be read.
    """
    text = _text(source)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        words = re.split(r"[\s,;]+", text.strip(" \t\r\n[]()"))
        try:
            found = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"source={text[:60]!r} must hold numbers, or JSON with them") from None
    if isinstance(found, dict):
        found = _entry(found, "sigmas", "levels")
    return check_levels(_numbers("levels", found), scale)


def read_ratios(source: str | Path) -> Array:
    """The ratios (N,) of a ``dc_ratios/*.json`` that DC-Solver's search writes: a JSON list of numbers.

    Raises:
        ValueError: no such list, or ratios that are not finite, or a file that cannot be read.
    """
    return _numbers("ratios", _json(source))


def read_neural_solver(source: str | Path) -> NeuralSolver:
    """NeuralSolver's numbers of JSON: ``timedeltas`` (N,), and ``coeffs``, square or only what lies below the diagonal.

    Raises:
        ValueError: JSON without them, other lengths, and as `NeuralSolver`, or a file that cannot be read.
    """
    found = instance("source", _json(source), dict)
    deltas = _numbers("timedeltas", _entry(found, "timedeltas"))
    return NeuralSolver(deltas, _lower_triangle("coeffs", _entry(found, "coeffs")))


def read_epd(source: str | Path) -> EPD:
    """EPD's numbers of JSON with ``r``, ``w``, ``s`` and ``a``, lists of N lists of K; or of a log, `parse_epd_log`.

    Raises:
        ValueError: neither, and as `EPD`, or a file that cannot be read.
    """
    text = _text(source)
    if not text.lstrip().startswith("{"):
        return parse_epd_log(text)
    found = instance("source", _json(text), dict)
    return EPD(**{name: _entry(found, name) for name in ("r", "w", "s", "a")})


def _text(source: str | Path) -> str:
    return read_text(source) if isinstance(source, Path) else str(instance("source", source, str))


def _json(source: str | Path) -> Any:
    text = _text(source)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source={text[:60]!r} is not JSON: {error}") from None


def _entry(found: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in found:
            return found[name]
    raise ValueError(f"source has the entries {sorted(found)}; allowed: {' or '.join(names)}")


def _numbers(name: str, value: Any) -> Array:
    """A flat list of finite numbers as an array."""
    if not isinstance(value, list) or any(isinstance(v, (bool, str)) for v in value):
        raise ValueError(f"{name}={value!r} must be a list of numbers")
    array = finite(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; allowed: one dimension")
    return array


def _lower_triangle(name: str, rows: Sequence[Sequence[float]]) -> Array:
    """Rows of length N, or of length 0, 1, …, N − 1, as a square array."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"{name}={rows!r} must be a list of lists")
    n, lengths = len(rows), [len(row) for row in rows]
    if lengths not in ([n] * n, list(range(n))):
        raise ValueError(f"the rows of {name} have lengths {lengths}; allowed: {[n] * n} or {list(range(n))}")
    square = np.zeros((n, n))
    for i, row in enumerate(rows):
        square[i, : len(row)] = _numbers(f"{name}[{i}]", row)
    return square
