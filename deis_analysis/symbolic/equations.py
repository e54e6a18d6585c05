"""Equations that are definitions, or were verified when they were built; named groups of them as text and LaTeX."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import sympy as sp


@dataclass(frozen=True)
class Derivation:
    """A named result: equations, and a plain statement of what was assumed, what was verified, and the source."""

    name: str
    title: str
    equations: tuple[sp.Basic, ...]
    text: str

    def latex(self) -> str:
        r"""The equations as one LaTeX ``aligned`` block (for display mathematics), under the title."""
        rows = [rf"&\text{{{self.title}}}"]
        for e in self.equations:
            sides = (e.lhs, e.rhs) if isinstance(e, sp.Eq) else (e,)
            rows.append(" &= ".join(sp.latex(side) for side in sides))
        return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"

    def __str__(self) -> str:
        bodies = (sp.pretty(e, use_unicode=True, wrap_line=False) for e in self.equations)
        return "\n\n".join([f"{self.name}: {self.title}", textwrap.fill(self.text, 100), *bodies])


def tidy(expression: Any) -> sp.Expr:
    """The shortest of a few equivalent forms, for printing."""
    simple = sp.simplify(expression)
    return min((simple, sp.factor(sp.expand(simple)), sp.simplify(sp.expand(simple))), key=sp.count_ops)


def define(lhs: Any, rhs: Any) -> sp.Eq:
    """An equation that holds by definition."""
    return sp.Eq(lhs, rhs, evaluate=False)


def vanishes(expression: Any) -> bool:
    """Whether sympy simplifies ``expression`` to 0."""
    return any(sp.simplify(form) == 0 for form in (expression, sp.expand(expression)))


def verify(lhs: Any, rhs: Any, shown: Any = None) -> sp.Eq:
    """The equation ``lhs = rhs`` (printed with ``shown`` on the left), after sympy has simplified lhs − rhs to 0."""
    if not vanishes(lhs - rhs):
        raise ArithmeticError(f"{lhs} = {rhs} does not hold: the difference is {sp.simplify(lhs - rhs)}")
    return define(lhs if shown is None else shown, rhs)
