"""The audit itself: read, measure, find, and say it in one table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from deis_analysis.analysis.law import law_error
from deis_analysis.audit import checks
from deis_analysis.audit.case import Case, exact_end, read_case
from deis_analysis.audit.convergence import STEPS, Convergence, measure_convergence
from deis_analysis.audit.findings import EQUAL, FLOAT32, SEVERITIES, Finding, Nearest
from deis_analysis.audit.html_page import report_cells
from deis_analysis.audit.identity import nearest_row
from deis_analysis.audit.specs import subject_of
from deis_analysis.audit.subject import FunctionSubject, Subject, TableSubject, function_subject
from deis_analysis.problems.mixture import GaussianMixture
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Process
from deis_analysis.solvers import SOLVERS
from deis_analysis.tableau import Tableau, run
from deis_analysis.tableau.extraction import MOST_CALLS, NotApplicable, NotLinear, Refusal
from deis_analysis.validate import checked, positive_int, shown

RANK_NFE = (5, 10, 20)
_TOLERANCE = 0.6  # of orders, on at most 160 steps
_DATA = ([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])


@dataclass(frozen=True)
class Report:
    """What an audit found; `to_dict` has the keys that programs read.

    Attributes:
        errors: RMS error against the exact flow by NFE; for samplers with noise, of the law of Gaussian data.
        beside: the same for DDIM and for the best row of the registry, by NFE: (name, error).
        table: as extracted, None if it could not be.
    """

    spec: str
    linear: bool
    superposition_residual: float
    nfe: int
    wasted_calls: list[int]
    declared_order: int | None
    observed_order: float | None
    local_order: float | None
    order_without_startup: float | None
    exactness_degree: int | None
    exactness_in: str
    nearest: dict[str, Any] | None
    time_mismatch: float | None
    duplicate_times: int | None
    findings: list[Finding]
    errors: dict[int, float]
    beside: dict[int, dict[str, Any]] = field(default_factory=dict)
    convergence: Convergence | None = field(default=None, repr=False)
    table: Tableau | None = field(default=None, repr=False)

    @classmethod
    def failed(cls, spec: str, findings: list[Finding], **known: Any) -> Report:
        """The report on a sampler that has no table; ``known`` are fields that are known all the same."""
        unread: dict[str, Any] = dict.fromkeys(
            ("declared_order", "observed_order", "local_order", "order_without_startup", "exactness_degree")
        )
        unread |= dict.fromkeys(("nearest", "time_mismatch", "duplicate_times"))
        unread |= {"linear": False, "superposition_residual": float("inf"), "nfe": 0, "wasted_calls": []}
        return cls(**(unread | {"spec": spec, "findings": findings, "errors": {}, "exactness_in": ""} | known))

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings."""
        found = {finding.severity for finding in self.findings}
        return next((s for s in SEVERITIES if s in found), None)

    def _repr_html_(self) -> str:
        return report_cells(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None."""
        keys = (
            *("spec", "linear", "superposition_residual", "nfe", "wasted_calls", "declared_order", "observed_order"),
            *("local_order", "order_without_startup", "exactness_degree", "exactness_in", "nearest", "time_mismatch"),
            "duplicate_times",
        )
        data = {key: getattr(self, key) for key in keys}
        data["findings"] = [{"code": f.code, "severity": f.severity, "message": f.message} for f in self.findings]
        data["errors"] = {str(n): e for n, e in self.errors.items()}
        data["beside"] = {str(n): b for n, b in self.beside.items()}
        return json.loads(json.dumps(data, default=float), parse_constant=lambda _: None)


@checked
def audit_sampler(
    sampler: Any, *, nfe: int = 20, convention: str = "sigmas", order: int | None = None, **options: Any
) -> Report:
    """Audit a sampler: which method it is, its order, its model calls, its schedule, its error.

    Args:
        sampler: a spec (``"registry:tab3"``, ``"diffusers:DDIMScheduler?…"``, ``"path/file.py:function?…"``), a
            `Subject`, or a function with a ``convention`` (see `FunctionSubject`); ``order`` is what it claims.
        nfe: model calls at which table and schedule are read.

    Raises:
        ValueError: an unknown spec or option, or nfe < 3. What goes wrong in the sampler is in the report.
    """
    positive_int("nfe", nfe, minimum=1, most=MOST_CALLS)
    if callable(sampler) and not hasattr(sampler, "own"):
        sampler = function_subject(sampler, convention=convention, order=order, **options)
    else:
        for name, value, plain in (("convention", convention, "sigmas"), ("order", order, None), *_unknown(options)):
            if value != plain:
                raise ValueError(f"{name}={shown(value)} is for functions; a spec has it after ?, as ?order=2")
        if not isinstance(sampler, str) and not hasattr(sampler, "own"):
            raise ValueError(f"sampler={shown(sampler)} must be a spec, a Subject or a function")
        sampler = subject_of(sampler) if isinstance(sampler, str) else sampler
    try:
        case = read_case(sampler.own(nfe))
    except Refusal as refusal:
        return _refused(sampler, refusal)
    return _linear_report(sampler, case)


def _unknown(options: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, value, ...) for name, value in options.items()]


def _refused(sampler: Subject, refusal: Refusal) -> Report:
    """The report on a sampler that has no table."""
    nonlinear = isinstance(refusal, NotLinear)
    severity = "warning" if isinstance(refusal, NotLinear | NotApplicable) else "error"
    code = "RUN-NONLINEAR" if nonlinear else "RUN-FAILED"
    findings, convergence = [Finding(code, severity, str(refusal))], None
    if nonlinear:
        try:
            convergence = measure_convergence(sampler)
        except Refusal as other:
            findings.append(Finding("RUN-FAILED", "error", str(other)))
    own = convergence.own if convergence else None
    known = {"declared_order": sampler.declared_order, "observed_order": own, "convergence": convergence}
    return Report.failed(sampler.spec, findings, **known)


def _linear_report(sampler: Subject, case: Case) -> Report:
    note = case.prepared.note
    findings = [Finding("RUN-NOTE", "error", note)] if note else []
    findings += [Finding("RUN-NOTE", "info", case.prepared.remark)] if case.prepared.remark else []
    convergence = None
    try:
        convergence = measure_convergence(sampler)
    except Refusal as refusal:
        findings.append(Finding("RUN-FAILED", "warning", f"on the order problem: {refusal}"))
    if convergence is not None and not convergence.grows:  # its levels are its own: x_T is where it begins
        case = read_case(replace(case.prepared, t_start=None))
    reference = convergence.case if convergence is not None and convergence.case is not None else case
    noisy = reference.table.stochastic  # the mean of its rules is that of the reversed SDE, λ = 1
    degree, where, more = checks.exactness(reference, 5, sampler.declared_order, 1.0 if noisy else 0.0)
    if noisy:
        degree, where = -1, ""
    constants = degree >= 0 or _on_the_curve(reference)
    finest = convergence.fine if convergence is not None and convergence.fine is not None else case
    coarse, fine = checks.level_gap(reference), checks.level_gap(finest)
    persists = not constants and fine > max(1e-5, 100 * finest.floor, 0.5 * coarse)
    wasted, calls = checks.check_calls(case)
    schedule = checks.check_schedule(case, constants or persists)
    nearest = nearest_row(case)
    exact = isinstance(sampler, FunctionSubject | TableSubject) and case.reading.rounding < EQUAL
    findings += [
        checks.check_identity(nearest, case.reading.residual, exact),
        *_orders(sampler, convergence, more),
        *calls,
        *schedule.findings,
    ]
    findings += checks.check_ends(case) if constants else []
    findings += [
        *checks.check_numbers(case),
        *checks.check_noise(sampler.spec, case),
        *checks.check_start(case),
        *checks.check_last_step(case, degree, where, exact),
    ]
    findings += _varies(sampler, case, nearest)
    if noisy:
        findings += [*checks.check_churn(case), *checks.check_variance(case)]
    elif not constants:
        text = "neither constant ε nor constant x₀ is integrated exactly, so large steps are off even on straight paths"
        findings.append(Finding("INV-CONSTANTS", "info", text))
    errors, beside, absent = _rank(sampler, case)
    findings += [Finding("RUN-NOTE", "info", f"no error at {nfe} calls: {why}") for nfe, why in absent.items()]
    return Report(
        sampler.spec,
        True,
        case.reading.residual,
        max(case.reading.asked, case.reading.calls),
        wasted,
        sampler.declared_order,
        convergence.own if convergence else None,
        convergence.local if convergence else None,
        convergence.exact if convergence else None,
        None if reference.table.stochastic else degree,
        where,
        None if nearest is None else {"name": nearest.name, "distance": nearest.distance},
        max(schedule.mismatch, checks.start_gap(case)) if constants or persists else None,
        schedule.duplicates,
        sorted(findings, key=lambda f: SEVERITIES.index(f.severity)),
        errors,
        beside,
        convergence,
        case.table,
    )


def _varies(sampler: Subject, case: Case, nearest: Nearest | None) -> list[Finding]:
    """Whether it is the same method with one call less; where told times or levels are rounded that cannot be told."""
    calls = case.reading.calls
    if nearest is None or nearest.distance > EQUAL or case.reading.rounding > EQUAL or calls < 6:
        return []
    try:
        less = read_case(sampler.own(calls - 1))
    except (Refusal, ValueError):
        return []
    other = nearest_row(less) if less.reading.calls < calls else None
    if other is None or other.distance <= max(FLOAT32, 1e3 * nearest.distance):
        return []
    text = f"at {calls} calls {nearest.name}, but {other.distance:.1e} away from {other.name} at {less.reading.calls}"
    return [Finding("ID-VARIES", "error", text)]


def _on_the_curve(case: Case) -> bool:
    """Whether the states have scales that the process has at some time: then the method is exact on constants."""
    alpha, sigma = (values[case.lead : -1] for values in case.scales)
    tolerance = max(1e-5, 300 * case.floor)
    for a, s in zip(alpha, sigma, strict=True):
        if abs(a) < 1e-12:
            continue
        try:
            t = float(case.process.time_from_rho(s / a))
        except ValueError:
            continue
        if abs(a - float(case.process.alpha(t))) > tolerance * max(abs(a), 1e-3):
            return False
    return True


def _orders(sampler: Subject, convergence: Convergence | None, half: list[Finding]) -> list[Finding]:
    if convergence is None:
        return half
    if not convergence.grows:
        made, asked = ", ".join(map(str, convergence.calls)), ", ".join(map(str, STEPS))
        what = f"makes {made} calls when {asked} steps are asked for: its order cannot be measured"
        return [*half, Finding("ORD-FIXED-CALLS", "info", what)]
    declared = 0 if sampler.declared_order is None else sampler.declared_order
    noisy = convergence.exact is None
    if noisy:  # with its own start, an order above 2 in law cannot be told from one of 2
        declared = min(declared, 2)
    found = list(half)
    best = convergence.own if convergence.exact is None else convergence.exact  # the steps without the start
    if best is not None and best < 0.3:
        errors = ", ".join(f"{e:.1e}" for e in convergence.errors)
        found.append(Finding("ORD-DIVERGES", "error", f"errors {errors} at {convergence.steps} steps do not fall"))
    elif best is not None and best < declared - _TOLERANCE:
        how = "the law converges" if noisy else "also with exact first states the error falls"
        text = f"declared order {sampler.declared_order}; {how} with order {best:.2f}"
        found.insert(0, Finding("ORD-BELOW-DECLARED", "error", text))
    found += _count(convergence)
    own = convergence.own
    if own is not None and best is not None and own < best - _TOLERANCE:
        text = f"order {own:.2f} with its own start, {best:.2f} with exact first states: the start limits it"
        found.append(Finding("ORD-START", "info", text))
    return found


def _count(convergence: Convergence) -> list[Finding]:
    """Calls that are not a multiple of the steps asked for."""
    if not convergence.calls:
        return []
    (a, n), (b, m) = zip(convergence.calls[:2], STEPS[:2], strict=True)
    per, rest = divmod(b - a, m - n)
    extra = a - per * n
    steady = rest == 0 and all(c == per * k + extra for c, k in zip(convergence.calls, STEPS, strict=True))
    if not steady or not extra:
        return []
    rule = f"{per if per > 1 else ''}N{extra:+d}"
    return [Finding("NFE-COUNT", "info", f"makes {rule} calls when N steps are asked for")]


def _rank(sampler: Subject, case: Case) -> tuple[dict[int, float], dict[int, dict[str, Any]], dict[int, str]]:
    """Errors at 5, 10, 20 calls, DDIM's and the best row's between the same ends, and why one is not there."""
    errors, beside, absent = {}, {}, {}
    for nfe in RANK_NFE:
        try:
            at = case if max(case.reading.asked, case.reading.calls) == nfe else read_case(sampler.own(nfe))
            errors[nfe] = _error(at)
            beside[nfe] = _registry(at.process, float(at.times[0]), nfe, at)
        except (Refusal, ValueError, ZeroDivisionError) as error:
            absent[nfe] = str(error)
    return errors, beside, absent


def _error(case: Case) -> float:
    mix = GaussianMixture(*_DATA)
    if case.table.stochastic:
        return float(law_error(_in_process_scale(case), case.process, 0.3, 0.2)[0])
    x = mix.sample(256, 0, case.process, float(case.table.times[0]))
    found = run(case.table, mix.model(case.process, case.table.prediction), x)
    return float(np.sqrt(np.mean((found - exact_end(case, mix, x)) ** 2)))


def _in_process_scale(case: Case) -> Tableau:
    """The table, its result in the scale of the process."""
    alpha = float(case.process.alpha(case.table.times[-1])) if case.prepared.end_scale == "karras" else 1.0
    if alpha == 1:
        return case.table
    parts = {name: matrix.toarray() for name, matrix in case.table.matrices._asdict().items()}
    for dense in parts.values():
        dense[-1] *= alpha
    return case.table.changed(**parts)


_RIVALS = ("ddim", "tab1", "tab2", "tab3", "dpmpp_2m", "dpmpp_3m_exact", "unipc2_bh2_x0", "unipc3_bh2_x0", "ipndm4")
_NOISY = ("ddim_eta1", "sde_dpmpp_2m", "sde_dpm_2m", "seeds_2")


def _registry(process: Process, start: float, nfe: int, case: Case) -> dict[str, Any]:
    """DDIM and the best of a few rows on the quadratic and the λ grid, from the same start to the last time."""
    end = case.prepared.t_end if case.prepared.t_end else process.sampling_range[1]
    end = max(end, process.sampling_range[1])
    found = _rivals(process, min(start, process.sampling_range[0]), end, nfe, case.table.stochastic)
    best = min(found, key=found.__getitem__)
    first = "ddim_eta1" if case.table.stochastic else "ddim"
    return {"ddim": found[first], "best": best, "best_error": found[best]}


@lru_cache(maxsize=256)  # samplers of one package share their ends
def _rivals(process: Process, start: float, end: float, nfe: int, stochastic: bool) -> dict[str, float]:
    """The error of a few rows, each on the better of two grids."""
    mix, found = GaussianMixture(*_DATA), dict[str, float]()
    x = mix.sample(256, 0, process, start)
    truth = x if stochastic else mix.flow(process, x, start, end)
    for name in _NOISY if stochastic else _RIVALS:
        row = SOLVERS[name]
        steps = max((n for n in range(1, nfe + 1) if row.calls(n) <= nfe), default=1)
        for kind in ("t2", "logrho"):
            ts = grid(process, steps, kind, start, end)
            table = row.build(process, ts)
            if stochastic:
                error = float(law_error(table, process, 0.3, 0.2)[0])
            else:
                gap = run(table, mix.model(process, table.prediction), x) - truth
                error = float(np.sqrt(np.mean(gap**2)))
            found[name] = min(error, found.get(name, float("inf")))
    return found


__all__ = ["Report", "TableSubject", "audit_sampler"]
