r"""The error budget: from the ideal sample to the computed one, one cause at a time.

Each cause is removed in turn, and what changes is its term, so that the terms sum to the measured error:

.. math:: \text{result} - \text{ideal} = \sum_{\text{causes}} \bigl( X_{\text{with}} - X_{\text{without}} \bigr) .

Between the exact flow u*(t) of the model and the run of a table: step i, taken from the exact states u*_0 … u*_i and
the model's outputs there, ends δ_i beside u*_{i+1}.  Of δ_i, l_i is there for a constant prediction as well (*linear
part*: Euler against the exponential integrator), and the rest is that the prediction is not the polynomial that the
step takes it for (*extrapolation*).  Both are carried to the end by the exact flow E_{i+1}:

.. math:: \sum_i E_{i+1}(u^*_{i+1} + l_i) - E_{i+1}(u^*_{i+1}) , \qquad
          \sum_i E_{i+1}(u^*_{i+1} + δ_i) - E_{i+1}(u^*_{i+1} + l_i) .

*Accumulation* is the rest of the error of a run with exact start: its states and its history are not exact.
*Start-up* is what the method's own start adds to that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from deis_analysis import backend
from deis_analysis.analysis.orders import walk
from deis_analysis.pages import table
from deis_analysis.problems.mixture import GaussianMixture, ProductMixture
from deis_analysis.process.convention import Function, Model, predicting, type_of
from deis_analysis.process.grids import check_grid, grid
from deis_analysis.process.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.solvers import SOLVERS
from deis_analysis.solvers.registry import named
from deis_analysis.tableau import Builder, Tableau, fold, run
from deis_analysis.validate import checked, choose, finite, function, instance, positive, positive_int

TERMS = (
    "prior mismatch",
    "truncation",
    "guidance",
    "fitting",
    "linear part",
    "extrapolation",
    "accumulation",
    "start-up",
    "time rounding",
    "precision",
)
DISCRETIZATION = ("linear part", "extrapolation", "accumulation", "start-up")
Source = GaussianMixture | ProductMixture | Function
_EXACT = 1e-12  # a defect below this, relative to the state, is rounding


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """Where an error comes from, sample by sample.

    Attributes:
        terms: cause (those of `TERMS` that were asked about) → (n, …) its part of every sample's error.
        ideal, result: (n, …) the sample without any error, and the computed one.
        exact_flow: (n, …) exact flow of the model to the same end: what a perfect solver returns.
        solver: its name. nfe: model calls of the run.
        flow_error: largest estimated error of the exact flows: of closed forms by rounding, which is large for states
            on the boundary between two basins; of integrated ones as `ReferencePath.error_estimate`.
    """

    terms: dict[str, Array]
    ideal: Array
    result: Array
    exact_flow: Array
    solver: str
    nfe: int
    flow_error: float

    @property
    def total(self) -> Array:
        """(n, …) measured error: result − ideal.  The terms sum to it."""
        return self.result - self.ideal

    def norms(self) -> dict[str, float]:
        """Root mean square of each term over samples and dimensions, and of the ``total``."""
        return {name: _rms(part) for name, part in {**self.terms, "total": self.total}.items()}

    def shares(self) -> dict[str, float]:
        """⟨term, total⟩/⟨total, total⟩: the share of the squared error; they sum to 1, and may be negative."""
        scale = float(np.sum(self.total**2))
        if scale == 0:
            raise ValueError("total is 0 in every sample: there is no error to share out")
        return {name: float(np.sum(part * self.total)) / scale for name, part in self.terms.items()}

    def __str__(self) -> str:
        shares, norms = self.shares(), self.norms()
        lines = [f"{self.solver}, {self.nfe} model calls{'':>4} RMS   share of the squared error"]
        lines += [f"  {name:16s} {norms[name]:12.3e}   {shares[name]:8.1%}" for name in self.terms]
        return "\n".join([*lines, f"  {'total':16s} {norms['total']:12.3e}"])

    def _repr_html_(self) -> str:
        shares, norms = self.shares(), self.norms()
        rows = [(name, norms[name], f"{shares[name]:.1%}") for name in self.terms]
        caption = f"{self.solver}, {self.nfe} model calls"
        return table(("cause", "RMS", "share of the squared error"), [*rows, ("total", norms["total"], "")], caption)

    def _repr_latex_(self) -> str:
        shares, norms = self.shares(), self.norms()
        rows = [rf"\text{{{name}}} & {norms[name]:.3e} & {100 * shares[name]:.1f}\,\% \\" for name in self.terms]
        head = r"\text{cause} & \text{RMS} & \text{share of the squared error} \\ \hline"
        total = rf"\hline \text{{total}} & {norms['total']:.3e} &"
        return "$" + "\n".join([r"\begin{array}{l|rr}", head, *rows, total, r"\end{array}"]) + "$"


@checked
def error_budget(
    model: Source | None,
    exact: Source,
    solver: str | Builder,
    nfe: int,
    t_end: float | None = None,
    *,
    process: Process,
    x_T: Any,
    kind: str = "t2",
    t_start: float | None = None,
    t_data: float | None = None,
    prior_std: float | None = None,
    guided: Source | None = None,
    told: Callable[[float], float] | None = None,
    model_dtype: Any = None,
    state_dtype: Any = None,
    starting_steps: int | None = None,
    network_dtype: Any = None,
    frozen: str | None = None,
    rtol: float = 1e-8,
) -> ErrorBudget:
    """Split the error of a deterministic sampler into terms that sum to it.

    Args:
        model: ε_θ(x, t), the network; None: it is the exact model (or the guided one), and there is no *fitting* term.
        exact: the truth ε*: a mixture, or a function ε*(x, t) such as an ideal denoiser.  Flows are closed forms where
            there are any, and `reference_path`, at ``rtol``, where there is none.
        solver: registry name, or a function (process, ts) → `Tableau`.
        nfe: model calls allowed; the most steps that fit are taken. t_end, t_start, kind: the grid, see `grid`.
        x_T: (n, …) starts, NumPy or torch.
        t_data: where the ideal sample lives, at most t_end; given, *truncation* is what stopping at t_end costs.
        prior_std: given, ``x_T`` is a draw from N(μ, prior_std² I), μ the mean the process reverts to or 0, not from
            p_T; *prior mismatch* is the difference to the start that optimal transport assigns to it (1-D and
            product mixtures, one Gaussian).
        guided: ε with guidance: *guidance* is its exact flow against that of ``exact``; *fitting* then is against it.
        told: t → the time that an integer-time model is told instead: *time rounding*.
        model_dtype, state_dtype: of the run that is measured, float64 both unless given: *precision*.
        network_dtype: models are called in float64; a network with float32 weights that is not to be cast
            (``net.double()``) is called in this dtype instead, its exact flow included.
        starting_steps: steps that count as start-up; by default the registry row's, 0 for a function.
        frozen: the prediction whose constancy the linear part refers to; by default the registry row's, or the table's.

    Raises:
        ValueError: a sampler with noise; fewer calls than the sampler needs; times out of order; no samples; dtypes of
            another library than that of x_T; an ``exact`` whose optimal transport from the prior is not known.
    """
    require_process(process)
    dtypes = {"model_dtype": model_dtype, "state_dtype": state_dtype, "network_dtype": network_dtype}
    for name, dtype in dtypes.items():
        if dtype is not None:
            backend.dtype_for(name, dtype, x_T)
    sources = _sources({"exact": exact, "guided": guided, "model": model}, network_dtype)
    table, lead = _table(solver, process, positive_int("nfe", nfe), (kind, t_start, t_end), starting_steps)
    x = _start(x_T, dtypes)
    if t_data is not None and not process._check_scalar(t_data, "t_data") <= table.times[-1]:
        raise ValueError(f"t_data={t_data!r} must be at most t_end={float(table.times[-1])!r}")
    positive(rtol=rtol)
    flows = _Flows(process, rtol)
    truth = list(sources.values())[-1]
    path = flows.path(truth, x, float(table.times[0]), table.times)
    rungs = _rungs(flows, sources, table, path, x, t_data, prior_std)
    terms = {name: _array(b) - _array(a) for (_, a), (name, b) in itertools.pairwise(rungs)}
    frozen = choose("frozen", frozen or _frozen(solver, table), PREDICTIONS)
    result = run(table, _predicting(process, truth, table.prediction), x)
    terms |= discretization(table, lead, frozen, flows, truth, path, result)
    measured, result = _measured(table, process, truth, x, result, told, model_dtype, state_dtype)
    first, last = _array(rungs[0][1]), _array(rungs[-1][1])
    return ErrorBudget(terms | measured, first, _array(result), last, table.name, table.nfe, flows.error)


def _sources(given: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The models that were given, each a mixture or a function; functions are called in ``dtype``."""
    found = {}
    for name, source in given.items():
        if source is None and name != "exact":
            continue
        mixture = isinstance(source, (GaussianMixture, ProductMixture))
        found[name] = source if mixture else _in_dtype(function(name, source), dtype)
    return found


def _in_dtype(model: Function, dtype: Any) -> Function:
    if dtype is None:
        return model

    def inner(x: Any, t: float) -> Any:
        return backend.cast(model(backend.cast(x, dtype), t), x.dtype)

    known = type_of(model)
    return inner if known is None else Model(inner, *known)


def _start(x_T: Any, dtypes: dict[str, Any]) -> Any:
    """The starts in float64; ValueError for none, and for dtypes of another library than theirs."""
    x = backend.floating("x_T", x_T)
    if 0 in x.shape or x.ndim == 0:
        raise ValueError(f"x_T has shape {tuple(x.shape)}; allowed: (n, ...) with n >= 1")
    xp = array_namespace(x)
    for name, dtype in dtypes.items():
        try:
            known = dtype is None or xp.finfo(dtype).eps > 0
        except (TypeError, ValueError, AttributeError):
            known = False
        if not known:
            raise ValueError(f"{name}={dtype!r} must be a floating dtype of the library of x_T ({xp.__name__})")
    return backend.cast(x, xp.float64)


def _rungs(
    flows: _Flows, sources: dict[str, Any], table: Tableau, path: Any, x: Any, t_data: float | None, std: float | None
) -> list[tuple[str, Any]]:
    """(cause, sample with it and all before), from the ideal sample, of cause "", to the exact flow of the model."""
    exact, start, end = sources["exact"], float(table.times[0]), float(table.times[-1])
    clean = end if t_data is None else float(t_data)
    rungs: list[tuple[str, Any]] = []
    if std is not None:
        positive(prior_std=std)
        rungs.append(("", flows.to(exact, _transport(exact, flows.process, x, std, start), start, clean)))
    if std is not None and t_data is not None:
        rungs.append(("prior mismatch", flows.to(exact, x, start, clean)))
    elif t_data is not None:
        rungs.append(("", flows.to(exact, x, start, clean)))
    stopped = "truncation" if t_data is not None else "" if std is None else "prior mismatch"
    names = {"exact": stopped, "guided": "guidance", "model": "fitting"}
    for name, source in list(sources.items())[:-1]:
        rungs.append((names[name], flows.to(source, x, start, end)))
    return [*rungs, (names[list(sources)[-1]], path(end))]


def _measured(
    table: Tableau, process: Process, truth: Any, x: Any, result: Any, told: Any, model_dtype: Any, state_dtype: Any
) -> tuple[dict[str, Array], Any]:
    """What rounded times and low precision add to the float64 ``result``, and the result with both."""
    terms = {}
    if told is not None:
        table = _told(table, process, told)
        rounded = run(table, _predicting(process, truth, "eps"), x)
        terms["time rounding"], result = _array(rounded) - _array(result), rounded
    if model_dtype is not None or state_dtype is not None:
        low = x if state_dtype is None else backend.cast(x, state_dtype)
        low = run(table, _predicting(process, truth, table.prediction), low, model_dtype=model_dtype)
        terms["precision"], result = _array(low) - _array(result), low
    return terms, result


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _array(x: Any) -> Array:
    return np.asarray(x.detach().double().cpu() if backend.is_torch(x) else x, dtype=np.float64)


def _table(
    solver: str | Builder, process: Process, nfe: int, span: tuple[str, Any, Any], lead: int | None
) -> tuple[Tableau, int]:
    """The table of the most steps that ``nfe`` calls allow, and how many of them are its start."""
    kind, t_start, t_end = span
    if callable(solver):
        build, row = solver, None
    else:
        row = named("solver", solver)
        build = row.build
    for steps in range(nfe + 1, 0, -1):
        if row is not None and (row.calls(steps) > nfe or steps % row.block):
            continue
        table = instance(
            "the table of solver",
            build(process, check_grid(process, grid(process, steps, kind, t_start, t_end))),
            Tableau,
        )
        if table.nfe > nfe:
            continue
        if table.stochastic:
            raise ValueError(f"solver={table.name!r} draws noise; allowed: deterministic samplers")
        own = (0 if row is None else row.starting_steps) if lead is None else positive_int("starting_steps", lead, 0)
        return table, min(own, len(table.grid_nodes) - 1)
    raise ValueError(f"nfe={nfe} is too few for {solver!r}: not one step fits")


def _transport(exact: Any, process: Process, x: Any, std: float, t: float) -> Any:
    if not hasattr(exact, "from_prior"):
        raise ValueError("prior_std: exact must be a mixture, for the optimal transport from N(0, prior_std²) to p_T")
    return exact.from_prior(process, x, t, std)


class _Flows:
    """Exact flows: closed forms where there are any, `reference_path` where not."""

    def __init__(self, process: Process, rtol: float) -> None:
        self.process, self.rtol, self.error = process, rtol, 0.0

    def to(self, source: Any, x: Any, start: float, end: float) -> Any:
        return x if end == start else self.path(source, x, start, [end])(end)

    def carried(self, source: Any, states: list[tuple[Any, float]], end: float) -> list[Any]:
        """Each (state, its time), times descending, at ``end``."""
        if not states:
            return []
        xp, times = array_namespace(states[0][0]), [t for _, t in states]
        if _closed_form(source):
            return list(self.many(source, xp.stack([x for x, _ in states]), times, [end] * len(states)))
        together: list[Any] = []
        for (x, t), until in zip(states, [*times[1:], end], strict=True):  # each joins the others at its own time
            together.append(x)
            if until < t:
                moved = self.to(source, xp.concat(together), t, until)
                together = [moved[i * len(x) : (i + 1) * len(x)] for i in range(len(together))]
        return together

    def many(self, source: Any, x: Any, starts: list[float], ends: list[float]) -> Any:
        """`flow_many` of a source with a closed form."""
        states, errors = source.flow_many(self.process, x, starts, ends, with_error=True)
        self.error = max(self.error, float(errors.max()))
        return states

    def path(self, source: Any, x: Any, start: float, times: Any) -> Callable[[float], Any]:
        """t ↦ the state at each of ``times``, from ``x`` at ``start``."""
        if _closed_form(source):
            levels = sorted({float(t) for t in times} - {start})
            stack = array_namespace(x).stack([x] * len(levels)) if levels else ()
            states = self.many(source, stack, [start] * len(levels), levels) if levels else ()
            known = {start: x, **dict(zip(levels, states, strict=True))}
            return lambda t: known[float(t)]
        from deis_analysis.reference.flow import reference_path

        path = reference_path(
            _eps(self.process, source), self.process, x, [start, *times], self.rtol, self.rtol, certify=False
        )
        self.error = max(self.error, path.error_estimate)
        return path


def _closed_form(source: Any) -> bool:
    one = isinstance(source, GaussianMixture) and (source.means.ndim == 1 or source.weights.size == 1)
    return one or isinstance(source, ProductMixture)


def _eps(process: Process, source: Any) -> Function:
    return _predicting(process, source, "eps")


def _predicting(process: Process, source: Any, prediction: str) -> Function:
    """The source's ``prediction`` of x."""
    if isinstance(source, (GaussianMixture, ProductMixture)):
        source = source.eps(process)
    return predicting(Model(predicting(source, process, "eps"), process, "eps"), process, prediction)


def _frozen(solver: Any, table: Tableau) -> str:
    return table.prediction if callable(solver) else SOLVERS[solver].prediction


class Flows(Protocol):
    """The exact flow of a model on one process."""

    @property
    def process(self) -> Process:
        """Whose flow it is."""

    def carried(self, source: Any, states: list[tuple[Any, float]], end: float) -> list[Any]:
        """Each (state, its time), times descending, at ``end``."""


def discretization(
    table: Tableau,
    lead: int,
    frozen: str,
    flows: Flows,
    source: Any,
    path: Callable[[float], Any],
    result: Any,
    levels: Array | None = None,
) -> dict[str, Array]:
    """Terms between the exact flow of a model and the float64 ``result`` of a table; they sum to the difference.

    Args:
        lead: steps of the start-up. frozen: the prediction whose constancy the linear part refers to.
        source: the model. path: t ↦ its exact state. levels: (K + 1,) process times of the nodes' states, by default
            the times that the model is told there.
    """
    placed = table if levels is None else table.changed(times=levels)
    last, end = table.times.size - 1, float(placed.times[-1])
    model = _predicting(flows.process, source, table.prediction)
    begin = table.grid_nodes[lead]
    started = {k: path(float(placed.times[k])) for k in range(begin + 1)}
    exact = started | {k: path(float(placed.times[k])) for k in table.grid_nodes}
    from_exact = walk(table, model, exact)
    bent, local = [], []
    for i, k in list(enumerate(table.grid_nodes))[lead + 1 :]:
        t = float(placed.times[k])
        constant = _constant_defect(placed, flows.process, frozen, source, exact, table.grid_nodes[i - 1], k)
        if float(abs(constant).max()) > _EXACT * (1.0 + float(abs(exact[k]).max())):
            bent.append((exact[k] + constant, t))
        local.append((from_exact[k], t))
    zero = np.zeros_like(_array(exact[0]))
    linear = sum((_array(x) - _array(exact[last]) for x in flows.carried(source, bent, end)), zero)
    extrapolation = sum((_array(x) - _array(exact[last]) for x in flows.carried(source, local, end)), zero) - linear
    own_start = walk(table, model, started)[last] if lead < len(table.grid_nodes) - 1 else exact[last]
    return {
        "linear part": linear,
        "extrapolation": extrapolation,
        "accumulation": _array(own_start) - _array(exact[last]) - linear - extrapolation,
        "start-up": _array(result) - _array(own_start) if lead else np.zeros_like(linear),
    }


def _constant_defect(
    table: Tableau, process: Process, frozen: str, source: Any, exact: dict[int, Any], i: int, k: int
) -> Any:
    """The defect of the step from node i to node k if ``frozen`` kept the value that it has at i."""
    centre = backend.Centre(process.mean, exact[0], frozen)
    here = centre.off(exact[i])
    value = centre.predicted(_predicting(process, source, frozen)(exact[i], float(table.times[i])))
    gamma, kappa = (f(frozen, table.times[: k + 1]) for f in (process.gamma, process.kappa))
    before = set(table.grid_nodes) - {k}

    def line(j: int) -> Any:
        return gamma[j] / gamma[i] * here + gamma[j] * (kappa[j] - kappa[i]) * value

    def place(j: int, u: Any) -> Any:
        """Exact on the grid before k; a stage, and the result, as the table has it."""
        return line(j) if j in before else u

    def output(j: int, u: Any) -> Any:
        from_x, from_value = (float(c) for c in process.convert(frozen, table.prediction, table.times[j]))
        return from_value * value + from_x * u if from_x else from_value * value

    zero = 0.0 * here
    return fold(table.plan[: k + 1], {0: zero}, output, place=place, zero=zero) - line(k)


def _told(table: Tableau, process: Process, told: Callable[[float], float]) -> Tableau:
    """The table of an integer-time model: ε is asked at the rounded time, all else stays at the true one."""
    table = table.in_terms_of(process, "eps")
    function("told", told)
    return table.changed(times=np.array([float(finite(f"told({t:g})", told(float(t)))) for t in table.times]))
