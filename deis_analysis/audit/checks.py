"""The checks: each looks at one side of a read sampler and returns findings with their evidence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deis_analysis.analysis.distances import gaussian_wasserstein2
from deis_analysis.audit.case import Case
from deis_analysis.audit.findings import EQUAL, FLOAT32, Finding, Nearest
from deis_analysis.audit.tables import moment_ratios, sparsest_steps, state_free
from deis_analysis.problems.mixture import GaussianMixture
from deis_analysis.process.process import Array
from deis_analysis.tableau import run

NEGLIGIBLE = 1e-3  # weight of ε in the result, in units of σ, below which the last call hardly counts
_DATA = 0.5, 0.5  # mean and variance of the data on which effects on laws are told
_NEAR = 5e-5, 1e-3  # relative distances from a row at which a slip is more likely than rounding or another method
_LEVEL = 1e-3  # relative difference of noise levels that is reported
_INTERPOLANTS = (
    *(("eps", v) for v in ("lam", "rho", "t")),
    *(("x0", v) for v in ("lam", "inv_rho", "t")),
    ("v", "t"),
)


@dataclass(frozen=True)
class Schedule:
    """What the schedule check measured: the largest relative difference of levels, and told times that repeat."""

    mismatch: float
    duplicates: int
    findings: tuple[Finding, ...]


def check_calls(case: Case) -> tuple[list[int], list[Finding]]:
    """Calls without weight in anything later (numbered from 1), and what is to be said of calls."""
    columns = [case.lead + k for k in range(case.reading.calls)]
    weights = _weights_of_eps(case)[:, columns] / case.process.sigma(case.times)
    states = case.reading.calls
    outputs = [] if case.reading.asked <= states else [_outputs(case)]
    wasted = [k + 1 for k, size in enumerate(np.abs(weights).max(axis=0)) if size <= 10 * case.floor]
    share = float(np.abs(weights[-1, -1]))
    findings = outputs
    if wasted:
        what = f"call {', '.join(map(str, wasted[:6]))} of {len(columns)}"
        findings.append(Finding("NFE-WASTED", "error", f"{what}: the output of the model is not used at all"))
    last = len(columns)
    if last not in wasted and share < NEGLIGIBLE:
        findings.append(
            Finding(
                "NFE-NEGLIGIBLE",
                "warning",
                f"call {last} of {last}: ε has the weight {share:.1e} σ in the result, where a last step has about σ",
            )
        )
    repeated = [
        k + 1
        for k in range(1, len(columns))
        if case.reading.told[k] == case.reading.told[k - 1]
        and np.allclose(case.reading.rows[k], case.reading.rows[k - 1], rtol=1e-9, atol=1e-12)
    ]
    if repeated:
        findings.append(
            Finding(
                "NFE-REPEATED", "error", f"call {repeated[0]} of {last} repeats the one before: same state, same time"
            )
        )
    return wasted, findings


def _outputs(case: Case) -> Finding:
    asked, states = case.reading.asked, case.reading.calls
    text = f"{asked} calls at {states} states: it asks for several outputs of the model, which are taken together here"
    shares = case.reading.shares
    if shares is not None and np.all(np.isfinite(shares)):
        first, last = (" : ".join(f"{share:.4g}" for share in row) for row in (shares[0], shares[-1]))
        same = np.allclose(shares, shares[0], rtol=1e-4)
        text += f"; their shares are {first} in every step" if same else f"; their shares go from {first} to {last}"
    return Finding("NFE-OUTPUTS", "info", text)


def _weights_of_eps(case: Case) -> Array:
    """(K + 1, K + 1) weights of the outputs as if the model gave ε, which has the size 1."""
    try:
        parts = case.process.convert("eps", case.table.prediction, case.times)[1]
    except ValueError:
        return np.asarray(case.table.outputs)
    weights = case.table.outputs.copy()
    weights[:, case.lead : case.lead + case.reading.calls] *= parts
    return weights


def level_gap(case: Case) -> float:
    """Largest difference between the angles arctan(σ/α) that are told and used."""
    alpha, sigma = (values[case.lead : -1] for values in case.scales)
    told = np.arctan2(case.process.sigma(case.times), case.process.alpha(case.times))
    used = np.array([np.any(case.table.outputs[:, case.lead + k] != 0) for k in range(told.size)])
    return float((np.abs(np.arctan2(sigma, alpha) - told) * used).max())


def check_schedule(case: Case, constants: bool) -> Schedule:
    """Told levels against the levels that the steps use; ``constants``: whether the method is exact on constants."""
    alpha, sigma = (values[case.lead : -1] for values in case.scales)
    told = case.times
    with np.errstate(divide="ignore", invalid="ignore"):
        implied, wanted = np.arctan2(sigma, alpha), np.arctan2(case.process.sigma(told), case.process.alpha(told))
        gaps = np.abs(np.tan(implied - wanted)) / np.maximum(np.minimum(np.sin(wanted), np.cos(wanted)), 1e-3)
    used = np.array([np.any(case.table.outputs[:, case.lead + k] != 0) for k in range(told.size)])
    gaps = np.where(used, gaps, 0.0)
    raw = case.reading.told
    same = np.append(False, np.abs(np.diff(raw)) == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.append(False, np.abs(np.diff(np.log(np.abs(np.tan(implied))))) > 1e-4)
    duplicates = int(np.count_nonzero(same & moved & used))
    findings = []
    if duplicates and constants:
        text = f"{duplicates} of {told.size} calls are told the time of the call before, though the level has moved"
        findings.append(Finding("SCH-DUPLICATE-TIMES", "error", text))
    worst = int(np.argmax(gaps))
    if gaps[worst] > max(_LEVEL, 100 * case.floor) and constants:
        findings.append(_level_finding(case, gaps, implied, wanted, worst))
    scale = np.hypot(alpha, sigma) / np.hypot(case.process.alpha(told), case.process.sigma(told))
    off = np.abs(scale - 1.0) * used
    if constants and off.max() > max(10 * _LEVEL, 100 * case.floor):
        k = int(np.argmax(off))
        text = f"at call {k + 1} the state is {scale[k]:.4g} times what {case.process!r} has there"
        findings.append(Finding("SCH-STATE-SCALE", "error", text))
    asked, used_levels = case.prepared.asked_least, [v for v in case.prepared.levels or () if 0 < v < np.inf]
    if asked is not None and used_levels and abs(min(used_levels) / asked - 1.0) > 0.01:
        least = min(used_levels)
        text = f"the least level is σ/α = {least:.4g}, {least / asked:.3g} times what the shift gives, {asked:.4g}"
        findings.append(Finding("SCH-GRID", "warning", text))
    return Schedule(float(gaps.max()), duplicates, tuple(findings))


def _level_finding(case: Case, gaps: Array, implied: Array, wanted: Array, worst: int) -> Finding:
    """A mismatch of levels: rounding of integer times, or something else."""
    raw = case.reading.told
    many = int(np.count_nonzero(gaps > _LEVEL))
    text = (
        f"{many} of {raw.size} calls; at call {worst + 1} the model is told σ/α = {np.tan(wanted[worst]):.4g}, "
        f"the step uses {np.tan(implied[worst]):.4g}"
    )
    integers = bool(np.all(raw == np.round(raw)))
    if integers and raw.size > 1 and raw[0] != raw[-1]:
        low, high = (float(case.process.rho(t)) for t in (case.process.t_min, case.process.t_max))
        times = case.process.time_from_rho(np.clip(np.tan(implied), low, min(high, 1e12)))
        unit = abs((case.times[0] - case.times[-1]) / (raw[0] - raw[-1]))  # of the model's clock, in process time
        distance = np.abs(times - case.times) / unit
        if np.all((distance <= 1.0 + 1e-6) | (gaps <= _LEVEL)):
            floor = _rounding_floor(case, times)
            moved = f"up to {distance.max():.2f} steps of the model's clock off, which moves the result by {floor:.1e}"
            text = f"integer times, {moved} (RMS, on a mixture): {text}"
            return Finding("SCH-ROUNDED-TIMES", "warning", text)
    return Finding("SCH-LEVEL-MISMATCH", "error", text)


def _rounding_floor(case: Case, times: Array) -> float:
    """RMS change of the result when the model is told the levels that the steps use."""
    mix = GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
    x = mix.sample(128, 0, case.process, float(case.table.times[0]))
    model = mix.model(case.process, case.table.prediction)
    told = np.append(times, case.table.times[-1]) if not case.lead else case.table.times
    noise = list(np.random.default_rng(0).standard_normal((case.table.noises, x.size)))
    results = [run(table, model, x, noise or None) for table in (case.table, case.table.changed(times=told))]
    return float(np.sqrt(np.mean((results[0] - results[1]) ** 2)))


def check_ends(case: Case) -> list[Finding]:
    """The level of the result and the scale of x_T."""
    findings = []
    prepared, process = case.prepared, case.process
    alpha, sigma = float(case.scales[0][-1]), float(case.scales[1][-1])
    level = sigma / alpha if alpha else float("inf")
    wanted = prepared.end_level
    if wanted is None and prepared.t_end is not None:
        wanted = float(process.rho(prepared.t_end))
    floor = max(1e-3 if wanted else 0.05, 100 * case.floor)  # of the level at the last call
    tolerance = 0.01 * wanted + floor * float(process.rho(case.times[-1])) if wanted is not None else 0.0
    if case.reading.rounding > 1e-10:  # float32 of the first level
        tolerance += 1e-6 * max(float(process.rho(case.times[0])), *(case.prepared.levels or (0.0,)))
    if wanted is not None and abs(level - wanted) > tolerance:
        text = f"the result has σ/α = {level:.4g}, and should have {wanted:.4g}"
        if prepared.end_level is None and level <= tolerance:  # nothing says that it should stop where it was told to
            text = f"the result has σ/α = {level:.4g}: from the last time, with {wanted:.4g}, it goes on to the data"
            findings.append(Finding("SCH-END-AT-DATA", "info", text))
        else:
            findings.append(Finding("SCH-LAST-LEVEL", "error", text))
    elif level > (0.05 if prepared.end_level is None else 1e-3):
        effect = gaussian_wasserstein2(*_DATA, _DATA[0], _DATA[1] + level**2)
        text = f"the result keeps noise, σ/α = {level:.3g}: its law is {effect:.1e} off (W₂, on N(½, ½))"
        findings.append(Finding("SCH-RESIDUAL-NOISE", "info", text))
    if start_gap(case) > max(_LEVEL, 100 * case.floor):
        begins, told = float(process.rho(prepared.t_start)), float(process.rho(case.times[0]))
        text = f"x_T has σ/α = {begins:.4g}, and at the first call the model is told {told:.4g}"
        findings.append(Finding("SCH-LEVEL-MISMATCH", "error", text))
    if prepared.start_std is not None and not case.lead:
        first = float(case.reading.rows[0, 0]) * prepared.start_std
        first *= float(prepared.convention.input_scale(process, case.times[0]))
        sigma_t = float(process.sigma(case.times[0]))
        widest = float(np.hypot(process.alpha(case.times[0]), sigma_t))
        if not 0.98 * sigma_t <= abs(first) <= 1.02 * widest:
            text = f"x_T is given the standard deviation {first:.4g}; the first level has σ = {sigma_t:.4g}"
            findings.append(Finding("SCH-START-SCALE", "warning", text))
    return findings


def start_gap(case: Case) -> float:
    """Relative difference between the level of x_T, where the sampler says it, and what the first call is told."""
    if case.prepared.t_start is None or case.lead:
        return 0.0
    begins = float(case.process.rho(case.prepared.t_start))
    return abs(float(case.process.rho(case.times[0])) - begins) / begins if np.isfinite(begins) else 0.0


def check_last_step(case: Case, degree: int, where: str, exact: bool) -> list[Finding]:
    """The last step, where it ends at noise: in the process's scale, exact on constants, its slope not nearly right.

    Of lower degree, or by another rule of its order, it may be: that leaves other moments. Not nearly: neither of the
    wrong sign nor off by a slip.
    """
    process, end = case.process, case.table.times[-1]
    if degree < 0 or case.prepared.t_end is None or float(process.rho(end)) <= 0 or case.table.stochastic:
        return []
    alpha, sigma = (float(values[-1]) for values in case.scales)
    if abs(sigma - float(process.rho(end)) * alpha) > 0.02 * float(process.rho(end)) * abs(alpha):
        return []  # it goes somewhere else, see `check_ends`
    steps = sparsest_steps(case.table, process, case.floor)
    later = steps.chain[len(steps.chain) // 2 :]
    if len(steps.chain) < 4 or any(b - a != 1 for a, b in pairwise(later)):  # multistep methods only
        return []
    prediction, variable = where.split(", ")
    try:
        moments = np.array([row[:2] for row in moment_ratios(steps, process, prediction, variable).values()])
    except ValueError:
        return []
    constant, slope = (float(v) for v in moments[-1])
    others = float(np.median(np.abs(moments[moments.shape[0] // 2 : -1, 0] - 1.0)))
    tolerance = max(1e-6 if exact else 1e-3, 300 * case.floor, 30 * others)  # told times that are rounded move all
    scale = alpha / float(process.alpha(end))
    if exact and abs(scale - 1.0) > tolerance:
        text = f"the last step leaves the state {scale:.7g} times as large as the process has it, the others 1"
        return [Finding("ORD-LAST-STEP", "error", text)]
    if constant == 0:  # its call is not used at all, see `check_calls`
        return []
    turned = slope < -tolerance or tolerance < abs(slope - 1.0) < 0.2
    if abs(constant - 1.0) <= tolerance and not (degree > 0 and turned):
        return []
    kind, value = ("constant", constant) if abs(constant - 1.0) > tolerance else (f"linear in {variable}", slope)
    text = f"with {prediction} {kind} the last step gives {value:.7g} of the change, the others 1"
    return [Finding("ORD-LAST-STEP", "error", text)]


def check_start(case: Case) -> list[Finding]:
    """What a start from pure noise costs where the process still has signal."""
    prepared, process = case.prepared, case.process
    if prepared.start_std is None or case.lead:
        return []
    alpha, sigma = float(process.alpha(case.times[0])), float(process.sigma(case.times[0]))
    scale = float(np.hypot(alpha, sigma)) if process.variance_preserving else sigma
    mean, variance = _DATA
    gap = gaussian_wasserstein2(alpha * mean, alpha**2 * variance + sigma**2, 0.0, scale**2) / scale
    if alpha / scale < 0.01:
        return []
    start = f"a start from N(0, s² I), s = {scale:.3g}, is {gap:.1e} s off in law (W₂, on N(½, ½))"
    text = f"at the first level α = {alpha:.3g}; {start}"
    return [Finding("SCH-PRIOR-MISMATCH", "warning" if gap > 0.1 else "info", text)]


def check_noise(spec: str, case: Case) -> list[Finding]:
    """Whether a sampler that is named after noise draws any, unless its options say that it should not."""
    name, _, options = spec.lower().rpartition("/")[2].partition("?")
    named = re.search(r"ancestral|sde|stochastic|churn|ddpm", name.rpartition(":")[2])
    if case.table.stochastic or named is None or re.search(r"\b(eta|s_noise|noise)=(0|0\.0|false)\b", options):
        return []
    return [Finding("RUN-NO-NOISE", "info", f"its name says {named[0]!r}, but it draws no noise at these settings")]


def check_variance(case: Case) -> list[Finding]:
    """Of a sampler with noise: whether its states keep the noise of their level, with one point of data."""
    alpha, sigma = (values[case.lead : -1] for values in case.scales)
    with np.errstate(divide="ignore", invalid="ignore"):
        told = case.process.sigma(case.times) / case.process.alpha(case.times)
        ratio = np.where(alpha != 0, sigma / alpha, np.nan) / told
    if not np.any(np.abs(ratio - 1.0) > max(_LEVEL, 100 * case.floor)):
        return []
    k = int(np.nanargmax(np.abs(np.log(ratio))))
    text = f"with one point as data the state at call {k + 1} has {ratio[k]:.4g} times the noise that the model is told"
    return [Finding("INV-VARIANCE", "info", text)]


def check_churn(case: Case) -> list[Finding]:
    """Churn in the wrong order: a step from ρ̂ = √(ρ² + s²), s of its noise, with the model asked before the noise."""
    table = case.table
    if not table.stochastic or case.lead:
        return []
    try:
        steps = sparsest_steps(state_free(table, case.process, "eps"), case.process, case.floor).table
        steps = steps if steps.prediction == "eps" else steps.in_terms_of(case.process, "eps")
    except ValueError:
        return []
    alpha, rho = case.process.alpha(table.times), case.process.rho(table.times)
    late = 0
    for row in steps.plan[:-1]:
        if not row.noises:
            continue
        if len(row.outputs) != 1 or len(row.states) != 1 or row.states[0][1] != row.outputs[0][1]:
            return []
        (weight, k), scale = row.outputs[0], alpha[row.node]
        spread = sum(z * z for z, _ in row.noises) / scale**2
        raised = (rho[row.node] - weight / scale) ** 2 - rho[k] ** 2
        if abs(raised - spread) > 0.01 * spread:
            return []
        late += 1
    if not late:
        return []
    text = (
        f"at {late} steps the noise of churn comes after the model is asked: the step goes down from √(ρ² + s²), "
        "with what the model said at ρ (Karras et al. 2022, algorithm 2, asks at √(ρ² + s²))"
    )
    return [Finding("ORD-CHURN-LATE", "warning", text)]


def check_numbers(case: Case) -> list[Finding]:
    """Precision and amplification."""
    findings = []
    if case.reading.precision != "float64" or case.reading.rounding > 1e-10:
        text = f"the state is {case.reading.precision}, its numbers are rounded to about {case.reading.rounding:.1e}"
        findings.append(Finding("NUM-FLOAT32", "info", text))
    weights = np.abs(case.table.outputs[-1]).sum()
    net = abs(case.table.outputs[-1].sum())
    if net and weights / net > 20:
        text = f"Σ|w| = {weights:.3g} is {weights / net:.0f} times |Σw|: errors of the model are amplified"
        findings.append(Finding("NUM-AMPLIFICATION", "warning", text))
    return findings


def check_identity(nearest: Nearest | None, residual: float, exact: bool) -> Finding:
    """Equal to a row, equal in float32, or unknown.

    Args:
        residual: the rounding that was seen in its runs. exact: whether its levels and numbers are float64.
    """
    if nearest is None:
        return Finding("ID-UNKNOWN", "info", "no row of the registry has this pattern of calls")
    text = f"{nearest.name}, {nearest.distance:.1e} away over {nearest.calls} calls"
    limit = max(FLOAT32, min(300.0 * residual, _NEAR[0]))  # a conversion in float32 moves weights by so much
    if (EQUAL if exact else _NEAR[0]) <= nearest.distance < _NEAR[1]:
        return Finding("ID-NEAR", "warning", f"not {text}: beyond rounding, so a variant or a slip")
    code = "ID-EQUAL" if nearest.distance < EQUAL else "ID-FLOAT32" if nearest.distance < limit else "ID-UNKNOWN"
    return Finding(code, "info", text if code != "ID-UNKNOWN" else f"not in the registry; nearest {text}")


def exactness(case: Case, starting: int, declared: int | None, lam_sde: float = 0.0) -> tuple[int, str, list[Finding]]:
    """(degree, "prediction, variable") of the interior steps at best, and a second difference at half weight."""
    tolerance = max(1e-7, 300 * case.floor)
    best, where, findings = -2, "", list[Finding]()
    for prediction, variable in _INTERPOLANTS:
        try:
            ratios = moment_ratios(case.trunk, case.process, prediction, variable, lam_sde=lam_sde)
        except ValueError:
            continue
        interior = np.array(list(ratios.values())[starting:])
        if interior.size == 0:
            continue
        off = np.abs(interior - 1.0)
        good = off.max(axis=0) < tolerance
        degree = int(np.argmin(good)) - 1 if not good.all() else interior.shape[1] - 1
        if degree > best:
            best, where = degree, f"{prediction}, {variable}"
        halves = np.abs(interior[:, 2] - 0.5) < 1e-3
        if degree == 1 and np.mean(halves) > 0.8 and not findings:
            text = (
                f"with {prediction} quadratic in {variable} a step gives {np.median(interior[:, 2]):.4f} of the second "
                "moment: the second divided difference has half of the weight that it needs for third order"
            )
            severity = "error" if declared is not None and declared > 2 else "warning"
            findings.append(Finding("ORD-HALF-SECOND-DIFFERENCE", severity, text))
    return max(best, -1), where, findings
