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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from deis_analysis import backend
from deis_analysis.distances import Distance, energy_distance, wasserstein2
from deis_analysis.grids import check_grid, grid
from deis_analysis.mixture import GaussianMixture, ProductMixture
from deis_analysis.orders import walk
from deis_analysis.process import PREDICTIONS, Array, Process, require_process
from deis_analysis.solvers import SOLVERS
from deis_analysis.tableau import Model, Tableau, run
from deis_analysis.validate import choose, function, instance, positive, positive_int

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
Source = GaussianMixture | ProductMixture | Model
Builder = Callable[[Process, Array], Tableau]
_EXACT = 1e-12  # a defect below this, relative to the state, is rounding


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """Where an error comes from, sample by sample.

    Attributes:
        terms: cause (those of `TERMS` that were asked about) → (n, …) its part of every sample's error.
        ideal, result: (n, …) the sample without any error, and the computed one.
        exact_flow: (n, …) exact flow of the model to the same end: what a perfect solver returns.
        solver: its name. nfe: model calls of the run.
        flow_error: estimated error of the flows that had to be integrated, 0 where all are closed forms.
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
        prior_std: given, ``x_T`` is a draw from N(0, prior_std² I), not from p_T; *prior mismatch* is the difference to
            the start that optimal transport assigns to it (1-D and product mixtures, one Gaussian).
        guided: ε with guidance: *guidance* is its exact flow against that of ``exact``.
        told: t → the time that an integer-time model is told instead: *time rounding*.
        model_dtype, state_dtype: of the run that is measured, float64 both unless given: *precision*.
        starting_steps: steps that count as start-up; by default the registry row's, 0 for a function.
        frozen: the prediction whose constancy the linear part refers to; by default the registry row's, or the table's.

    Raises:
        ValueError: a sampler with noise; fewer calls than the sampler needs; times out of order; an ``exact`` whose
            optimal transport from the prior is not known.
    """
    require_process(process)
    for name, source in (("model", model), ("exact", exact), ("guided", guided)):
        if source is not None and not isinstance(source, (GaussianMixture, ProductMixture)):
            function(name, source)
    table, lead = _table(solver, process, positive_int("nfe", nfe), (kind, t_start, t_end), starting_steps)
    start, end = float(table.times[0]), float(table.times[-1])
    if t_data is not None and not process._check_scalar(t_data, "t_data") <= end:
        raise ValueError(f"t_data={t_data!r} must be at most t_end={end!r}")
    x = backend.floating("x_T", x_T)
    x = backend.cast(x, array_namespace(x).float64)
    flows = _Flows(process, rtol)
    rungs: list[tuple[str, Any]] = []
    clean = end if t_data is None else float(t_data)
    if prior_std is not None:
        positive(prior_std=prior_std)
        image = _transport(exact, process, x, prior_std, start)
        rungs.append(("", flows.to(exact, image, start, clean)))
        rungs.append(("prior mismatch", flows.to(exact, x, start, clean)))
    elif t_data is not None:
        rungs.append(("", flows.to(exact, x, start, clean)))
    causes = [("" if t_data is None else "truncation", exact), ("guidance", guided), ("fitting", model)]
    asked = [(name, source) for name, source in causes if source is not None]
    truth = asked[-1][1]
    path = flows.path(truth, x, start, table.times)
    rungs += [(name, flows.to(source, x, start, end)) for name, source in asked[:-1]]
    rungs.append((asked[-1][0], path(end)))
    terms = {name: _array(b) - _array(a) for (_, a), (name, b) in itertools.pairwise(rungs) if name}
    frozen = choose("frozen", frozen or _frozen(solver, table), PREDICTIONS)
    result = run(table, _predicting(process, truth, table.prediction), x)
    terms |= _discretization(table, lead, frozen, flows, truth, path, result)
    if told is not None:
        table = _told(table, process, told)
        rounded = run(table, _predicting(process, truth, "eps"), x)
        terms["time rounding"], result = _array(rounded) - _array(result), rounded
    if model_dtype is not None or state_dtype is not None:
        low = x if state_dtype is None else backend.cast(x, state_dtype)
        low = run(table, _predicting(process, truth, table.prediction), low, model_dtype=model_dtype)
        terms["precision"], result = _array(low) - _array(result), low
    return ErrorBudget(
        {name: terms[name] for name in TERMS if name in terms},
        _array(rungs[0][1]),
        _array(result),
        _array(rungs[-1][1]),
        table.name,
        table.nfe,
        flows.error,
    )


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _array(x: Any) -> Array:
    return np.asarray(x.detach().cpu() if backend.is_torch(x) else x, dtype=np.float64)


def _table(
    solver: str | Builder, process: Process, nfe: int, span: tuple[str, Any, Any], lead: int | None
) -> tuple[Tableau, int]:
    """The table of the most steps that ``nfe`` calls allow, and how many of them are its start."""
    kind, t_start, t_end = span
    if callable(solver):
        build, row = solver, None
    else:
        row = SOLVERS[choose("solver", solver, SOLVERS)]
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
            return list(source.flow_many(self.process, xp.stack([x for x, _ in states]), times, [end] * len(states)))
        together: list[Any] = []
        for (x, t), until in zip(states, [*times[1:], end], strict=True):  # each joins the others at its own time
            together.append(x)
            if until < t:
                moved = self.to(source, xp.concat(together), t, until)
                together = [moved[i * len(x) : (i + 1) * len(x)] for i in range(len(together))]
        return together

    def path(self, source: Any, x: Any, start: float, times: Any) -> Callable[[float], Any]:
        """t ↦ the state at each of ``times``, from ``x`` at ``start``."""
        if _closed_form(source):
            levels = sorted({float(t) for t in times} - {start})
            stack = array_namespace(x).stack([x] * len(levels)) if levels else ()
            states = source.flow_many(self.process, stack, [start] * len(levels), levels) if levels else ()
            known = {start: x, **dict(zip(levels, states, strict=True))}
            return lambda t: known[float(t)]
        from deis_analysis.reference import reference_path

        path = reference_path(_eps(self.process, source), self.process, x, [start, *times], self.rtol, self.rtol)
        self.error = max(self.error, path.error_estimate)
        return path


def _closed_form(source: Any) -> bool:
    one = isinstance(source, GaussianMixture) and (source.means.ndim == 1 or source.weights.size == 1)
    return one or isinstance(source, ProductMixture)


def _eps(process: Process, source: Any) -> Model:
    return source.eps(process) if isinstance(source, (GaussianMixture, ProductMixture)) else source


def _predicting(process: Process, source: Any, prediction: str) -> Model:
    """The source's ``prediction`` of x, from its ε."""
    eps = _eps(process, source)

    def model(x: Any, t: float) -> Any:
        if prediction == "eps":
            return eps(x, t)
        from_x, from_eps = (float(c) for c in process.convert("eps", prediction, t))
        if process.mean is None:
            return from_x * x + from_eps * eps(x, t)
        mean = backend.like(process.mean, x)
        p = from_x * (x - mean) + from_eps * eps(x, t)
        return p + mean if prediction == "x0" else p

    return model


def _frozen(solver: Any, table: Tableau) -> str:
    return table.prediction if callable(solver) else SOLVERS[solver].prediction


def _discretization(
    table: Tableau, lead: int, frozen: str, flows: _Flows, source: Any, path: Callable[[float], Any], result: Any
) -> dict[str, Array]:
    """Terms between the exact flow of ``source``, with states ``path``, and the float64 ``result`` of ``table``."""
    last, end = table.times.size - 1, float(table.times[-1])
    model = _predicting(flows.process, source, table.prediction)
    begin = table.grid_nodes[lead]
    started = {k: path(float(table.times[k])) for k in range(begin + 1)}
    exact = started | {k: path(float(table.times[k])) for k in table.grid_nodes}
    from_exact = walk(table, model, exact)
    bent, local = [], []
    for i, k in list(enumerate(table.grid_nodes))[lead + 1 :]:
        t = float(table.times[k])
        constant = _constant_defect(table, flows.process, frozen, source, exact, table.grid_nodes[i - 1], k)
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
    mean = 0.0 if process.mean is None else backend.like(process.mean, exact[0])
    here, value = exact[i] - mean, _predicting(process, source, frozen)(exact[i], float(table.times[i]))
    value = value - mean if frozen == "x0" else value
    gamma, kappa = (f(frozen, table.times[: k + 1]) for f in (process.gamma, process.kappa))
    nodes, states = set(table.grid_nodes), dict[int, Any]()

    def line(j: int) -> Any:
        return gamma[j] / gamma[i] * here + gamma[j] * (kappa[j] - kappa[i]) * value

    def state(j: int) -> Any:
        """Exact on the grid before k; a stage, and the result, as the table has it."""
        if j in nodes and j < k:
            return line(j)
        if j not in states:
            rows = ((table.states[j], state), (table.outputs[j], output))
            parts = [float(row[m]) * part(int(m)) for row, part in rows for m in np.flatnonzero(row)]
            states[j] = sum(parts[1:], start=parts[0])
        return states[j]

    def output(m: int) -> Any:
        from_x, from_value = (float(c) for c in process.convert(frozen, table.prediction, table.times[m]))
        return from_value * value + from_x * state(m) if from_x else from_value * value

    return state(k) - line(k)


def _told(table: Tableau, process: Process, told: Callable[[float], float]) -> Tableau:
    """The table of an integer-time model: ε is asked at the rounded time, all else stays at the true one."""
    table = table.in_terms_of(process, "eps")
    return replace(table, times=np.array([float(function("told", told)(float(t))) for t in table.times]))


@dataclass(frozen=True, eq=False)
class LawBudget:
    """The same error as a distance between laws: a path may be wrong where the law is right, never the other way round.

    Attributes:
        terms: cause → 2-Wasserstein distance between the laws with and without it; the four discretization terms are
            one cause, "discretization".
        pathwise: cause → √E|x − x'|² between the paths with and without it, which is never below the distance.
        sampler_data, sampler_flow, flow_data: W₂ of the result to ``data``, of the result to the exact flow of the
            model, and of that to ``data``: sampler_data ≤ sampler_flow + flow_data.
        energy: the energy distance of the same three pairs, ``"sampler_data"`` and so on.
    """

    terms: dict[str, Distance]
    pathwise: dict[str, float]
    sampler_data: Distance
    sampler_flow: Distance
    flow_data: Distance
    energy: dict[str, Distance]

    def __str__(self) -> str:
        lines = [f"{'':18} W2 of the laws   (95 % band)           paths"]
        for name, d in self.terms.items():
            lines.append(f"  {name:16s} {d.value:9.2e}   ({d.low:.2e} to {d.high:.2e})   {self.pathwise[name]:9.2e}")
        for name in ("sampler_data", "sampler_flow", "flow_data"):
            d = getattr(self, name)
            lines.append(f"  {name.replace('_', ' – '):16s} {d.value:9.2e}   ({d.low:.2e} to {d.high:.2e})")
        return "\n".join(lines)


def law_budget(budget: ErrorBudget, data: Any, *, method: str = "auto", seed: int = 0) -> LawBudget:
    """The laws behind an `ErrorBudget`, compared by `wasserstein2` and `energy_distance`.

    Args:
        data: (m, …) samples of the data distribution, to which sampler and exact flow are compared.
        method: see `wasserstein2`, where the bands and the bias of the value are explained too; with "sliced" the
            distances are sliced ones.

    Raises:
        ValueError: ``data`` whose samples are not of the shape of the budget's.
    """
    instance("budget", budget, ErrorBudget)
    names = [name for name in budget.terms if name not in DISCRETIZATION]
    index = next(i for i, name in enumerate(budget.terms) if name in DISCRETIZATION)
    names.insert(min(index, len(names)), "discretization")
    merged = {**budget.terms, "discretization": sum(budget.terms[name] for name in DISCRETIZATION)}
    terms, pathwise, cloud = {}, {}, budget.ideal
    for name in names:
        moved = cloud + merged[name]
        terms[name] = wasserstein2(moved, cloud, method=method, seed=seed, paired=True)
        pathwise[name] = float(np.sqrt(np.sum(merged[name] ** 2) / len(cloud)))
        cloud = moved
    pairs = {
        "sampler_data": (budget.result, data, False),
        "sampler_flow": (budget.result, budget.exact_flow, True),
        "flow_data": (budget.exact_flow, data, False),
    }
    found = {
        name: wasserstein2(a, b, method=method, seed=seed, paired=paired) for name, (a, b, paired) in pairs.items()
    }
    energy = {name: energy_distance(a, b) for name, (a, b, _) in pairs.items()}
    return LawBudget(terms, pathwise, **found, energy=energy)
