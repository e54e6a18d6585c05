"""The vocabulary of an audit: codes, severities, one sentence each."""

from __future__ import annotations

from dataclasses import dataclass

EQUAL, FLOAT32 = 1e-8, 2e-5  # relative distances of a table from a row of the registry
SEVERITIES = ("error", "warning", "info")

CODES: dict[str, str] = {
    "RUN-FAILED": "the sampler could not be run or read",
    "RUN-NOTE": "it needed help to run",
    "RUN-NO-NOISE": "it is named after noise, and draws none as it was run",
    "RUN-NONLINEAR": "the result is not a linear combination of x_T, outputs and noises",
    "ID-EQUAL": "a row of the registry, to rounding",
    "ID-FLOAT32": "a row of the registry, to float32 rounding",
    "ID-VARIES": "another method at the next smaller number of calls",
    "ID-NEAR": "nearly a row of the registry: a variant, or a slip",
    "ID-UNKNOWN": "not in the registry",
    "ORD-BELOW-DECLARED": "converges more slowly than declared, also with an exact start",
    "ORD-HALF-SECOND-DIFFERENCE": "a second divided difference enters with half its weight",
    "ORD-FIXED-CALLS": "its calls do not grow with the steps that are asked for",
    "ORD-START": "its first steps limit the order",
    "ORD-LAST-STEP": "the last step is neither the rule of the others nor one of lower degree",
    "ORD-CHURN-LATE": "noise of churn enters after the model is asked at the lower level",
    "ORD-DIVERGES": "does not converge",
    "NFE-OUTPUTS": "several outputs of the model at one state, such as with and without a condition",
    "NFE-COUNT": "its calls are not a multiple of the steps asked for",
    "NFE-WASTED": "a model call whose output is not used",
    "NFE-NEGLIGIBLE": "a model call whose output hardly counts",
    "NFE-REPEATED": "the model is asked the same question twice",
    "SCH-LEVEL-MISMATCH": "the model is told another noise level than the step uses",
    "SCH-ROUNDED-TIMES": "told times are rounded, which leaves an error that more steps do not remove",
    "SCH-DUPLICATE-TIMES": "different noise levels are told as the same time",
    "SCH-LAST-LEVEL": "the result does not have the noise level that it should have",
    "SCH-END-AT-DATA": "the result lies at the data, beyond the last time that it was handed",
    "SCH-RESIDUAL-NOISE": "the result keeps noise",
    "SCH-START-SCALE": "x_T does not have the scale of the first level",
    "SCH-PRIOR-MISMATCH": "x_T is pure noise, where the process still has signal",
    "SCH-GRID": "the levels are not those of the schedule that was asked for",
    "SCH-STATE-SCALE": "the state has another scale than the process",
    "NUM-FLOAT32": "works in float32",
    "NUM-AMPLIFICATION": "model errors are amplified",
    "INV-CONSTANTS": "not exact when ε and x₀ are constant",
    "INV-VARIANCE": "with one point as data its states have other noise than their level",
}


@dataclass(frozen=True)
class Finding:
    """One finding: a code of ``CODES``, how serious it is, and one sentence with the evidence."""

    code: str
    severity: str
    message: str

    def __post_init__(self) -> None:
        if self.code not in CODES or self.severity not in SEVERITIES:
            raise ValueError(f"code={self.code!r}, severity={self.severity!r} are not of the vocabulary")


@dataclass(frozen=True)
class Nearest:
    """The nearest row: its name (with options), the largest relative difference of coefficients, the calls compared."""

    name: str
    distance: float
    calls: int
