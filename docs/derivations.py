"""Every formula of ``deis-analysis derive``, and of weights how far three witnesses agree."""

from __future__ import annotations

import re
from pathlib import Path

import mpmath as mp
import sympy as sp

import deis_analysis as da
from deis_analysis.symbolic.closed_forms import PROCESSES, TIME, weight_symbols, weights_closed_form
from deis_analysis.symbolic.derivations import DERIVATIONS, Derivation, derive

NUMERIC = {
    "VPLinear": da.VPLinear(), "VPCosine": da.VPCosine(), "VE": da.VE(), "EDM": da.EDM(),
    "RectifiedFlow": da.RectifiedFlow(),
}  # fmt: skip
DIGITS = 40
_WEIGHTS = re.compile(r"weights-(?P<prediction>[a-z0-9]+)-(?P<variable>rho|lam|inv-rho|t)(-(?P<process>\w+))?$")


def write(folder: Path) -> None:
    """``reference/derivations/``."""
    place = folder / "reference" / "derivations"
    place.mkdir(parents=True, exist_ok=True)
    found = {name: derive(name) for name in DERIVATIONS}
    lines = [f"* [{name}]({name}.md): {_prose(one.title)}" for name, one in found.items()]
    head = "sympy derives each from α(t) and σ(t) alone. Equations are definitions, or were simplified to 0 = 0."
    (place / "index.md").write_text(f"# Derivations\n\n{head}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    for name, one in found.items():
        (place / f"{name}.md").write_text(page(name, one), encoding="utf-8")


def page(name: str, one: Derivation) -> str:
    """Formulas, the statement, the witnesses."""
    shown = one.latex().split("\\\\\n", 1)
    formulas = "\\begin{aligned}\n" + shown[1]
    parts = [
        f"# {_prose(one.title)}",
        "",
        f"`deis-analysis derive {name}`",
        "",
        f"$$\n{formulas}\n$$",
        "",
        _prose(one.text),
        "",
    ]
    return "\n".join([*parts, *agreement(name), ""])


def _prose(text: str) -> str:
    """Letters that Markdown would take for marks, as they are."""
    parts = text.split("`")
    return "`".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    return re.sub(r"([*_|])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))


def agreement(name: str) -> list[str]:
    """Three witnesses of weights: the closed form at 40 digits, mpmath's integral, the numbers of the package."""
    found = _WEIGHTS.match(name)
    if found is None:
        return []
    prediction, variable = found["prediction"], found["variable"].replace("-", "_")
    lines = ["## Three witnesses", ""]
    lines += [
        "Weights on a step of each process, by the closed form above at 40 digits, by mpmath's quadrature of the "
        "definition, and by `quadrature_weights` in float64: the largest difference over the largest weight.",
        "",
        "| process | degree | closed form − mpmath | package − mpmath |",
        "|---|---|---|---|",
    ]
    for process in [found["process"]] if found["process"] else NUMERIC:
        for degree in (0, 1, 2):
            try:
                forms = weights_closed_form(prediction, variable, degree, process if variable == "t" else None)
            except ValueError:
                forms = []
            lines.append(
                f"| {process} | {degree} | {' | '.join(_gaps(process, prediction, variable, degree, forms))} |"
            )
    return [*lines, "", "No entry: no elementary form is known, so the witness is mpmath alone."]


def _gaps(process: str, prediction: str, variable: str, degree: int, forms: list[sp.Expr]) -> list[str]:
    numeric = NUMERIC[process]
    high, low = numeric.sampling_range
    times = [low + (high - low) * share for share in (0.6, 0.75, 0.9)][: degree + 1]
    a, b = times[0], low + 0.45 * (high - low)
    symbolic = PROCESSES[process]
    with mp.workdps(DIGITS):
        values = {symbol: mp.mpf(getattr(numeric, name)) for name, symbol in symbolic.parameters.items()}
        values |= {k: mp.mpf(sp.N(v.subs(values), DIGITS)) for k, v in symbolic.abbreviations.items()}
        rho = sp.lambdify(TIME, symbolic.rho.subs(values), "mpmath")
        rate = sp.lambdify(TIME, symbolic.kappa_rate(prediction).subs(symbolic.abbreviations).subs(values), "mpmath")
        level = {"t": lambda t: t, "rho": rho, "lam": lambda t: -mp.log(rho(t)), "inv_rho": lambda t: 1 / rho(t)}[
            variable
        ]
        nodes = [level(mp.mpf(t)) for t in times]

        def integrand(t: mp.mpf, j: int) -> mp.mpf:
            others = (node for k, node in enumerate(nodes) if k != j)
            return rate(t) * mp.fprod((level(t) - other) / (nodes[j] - other) for other in others)

        truth = [mp.quad(lambda t, j=j: integrand(t, j), [mp.mpf(a), mp.mpf(b)]) for j in range(degree + 1)]
        scale = max(abs(w) for w in truth)
        package = da.quadrature_weights(numeric, prediction, variable, times, a=a, b=b)
        gaps = [
            "–",
            f"{float(max(abs(mp.mpf(float(w)) - t) for w, t in zip(package, truth, strict=True)) / scale):.1e}",
        ]
        if forms:
            symbols, start, end = weight_symbols(variable, degree)
            at = dict(zip((*symbols, start, end), (*nodes, level(mp.mpf(a)), level(mp.mpf(b))), strict=True)) | values
            closed = [mp.mpmathify(sp.N(form.subs(symbolic.abbreviations).subs(at), DIGITS)) for form in forms]
            gaps[0] = f"{float(max(abs(mp.re(w) - t) for w, t in zip(closed, truth, strict=True)) / scale):.1e}"
    return gaps
