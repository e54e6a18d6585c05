r"""The weights and identities once more, as formulas: sympy derives them from :math:`α(t), σ(t)` alone.

The package computes its numbers by quadrature (`deis_analysis.weights`), because closed forms cancel.  This module is
the witness: it starts from the probability flow in its first form,

.. math:: \dot x = f x + \frac{g^2}{2σ} ε , \qquad f = \dot α/α , \qquad g^2 = 2σ\dot σ - 2fσ^2 ,

puts the model's prediction :math:`p = a x_0 + b ε` in the place of ε (from :math:`x = αx_0 + σε`), and reads off
:math:`\dot x = A x + B p`, hence γ, κ and every weight :math:`\int ℓ_j(φ)\,dκ` that is an elementary function.

Every equation of a `Derivation` is either a definition (`_define`) or was simplified to 0 = 0 when it was built
(`_verify`, which raises otherwise).  ``tests/test_symbolic.py`` compares each formula with quadrature in numbers.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from typing import Any

import sympy as sp
from sympy.integrals.risch import NonElementaryIntegral, risch_integrate

from deis_analysis.process import PREDICTIONS, VARIABLES
from deis_analysis.validate import choose, positive_int

TIME, NEXT = sp.Symbol("t", positive=True), sp.Symbol("s", positive=True)
PHI = sp.Symbol("phi", real=True)


# -- equations -------------------------------------------------------------------------------------
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


def _tidy(expression: Any) -> sp.Expr:
    """The shortest of a few equivalent forms, for printing."""
    simple = sp.simplify(expression)
    return min((simple, sp.factor(sp.expand(simple)), sp.simplify(sp.expand(simple))), key=sp.count_ops)


def _define(lhs: Any, rhs: Any) -> sp.Eq:
    return sp.Eq(lhs, rhs, evaluate=False)


def _vanishes(expression: Any) -> bool:
    """Whether sympy simplifies ``expression`` to 0."""
    return any(sp.simplify(form) == 0 for form in (expression, sp.expand(expression)))


def _verify(lhs: Any, rhs: Any, shown: Any = None) -> sp.Eq:
    """The equation ``lhs = rhs`` (printed with ``shown`` on the left), after sympy has simplified lhs − rhs to 0."""
    if not _vanishes(lhs - rhs):
        raise ArithmeticError(f"{lhs} = {rhs} does not hold: the difference is {sp.simplify(lhs - rhs)}")
    return _define(lhs if shown is None else shown, rhs)


# -- processes -------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class SymbolicProcess:
    """α(t) and σ(t) as expressions in `TIME`; everything else is derived from the two.

    Attributes:
        parameters: from the attribute name of the class in `deis_analysis.process` to its symbol here.
        abbreviations: from a symbol that α and σ use to what it stands for, in the parameters.
        variance_preserving: whether v belongs to the angle (True) or to t (False), as in `deis_analysis.process`.
        score_clock: ∫ −g²/(2α) dt where it is elementary (tests differentiate it).
        clock_integrals: from a prediction to ∫ κ dt, where that is elementary although κ is not of a form that sympy
            integrates against every power of t (tests differentiate them).
    """

    name: str
    alpha: sp.Expr
    sigma: sp.Expr
    parameters: dict[str, sp.Symbol] = field(default_factory=dict)
    abbreviations: dict[sp.Symbol, sp.Expr] = field(default_factory=dict)
    variance_preserving: bool = False
    score_clock: sp.Expr | None = None
    clock_integrals: dict[str, sp.Expr] = field(default_factory=dict)

    @property
    def rho(self) -> sp.Expr:
        """ρ = σ/α."""
        return self.sigma / self.alpha

    @property
    def drift(self) -> sp.Expr:
        """f = α̇/α."""
        return sp.diff(self.alpha, TIME) / self.alpha

    @property
    def diffusion_squared(self) -> sp.Expr:
        """g² = 2σσ̇ − 2fσ²."""
        return 2 * self.sigma * sp.diff(self.sigma, TIME) - 2 * self.drift * self.sigma**2

    @property
    def psi(self) -> sp.Expr:
        """Ψ(s, t) = α_s/α_t."""
        return self.alpha.subs(TIME, NEXT) / self.alpha

    def prediction_parts(self, prediction: str) -> tuple[sp.Expr, sp.Expr]:
        """(a, b) of p = a x₀ + b ε.  For v: the derivatives of α and σ in the v-clock."""
        angle, velocity = (-self.sigma, self.alpha), (sp.diff(self.alpha, TIME), sp.diff(self.sigma, TIME))
        return {
            "eps": (sp.S.Zero, sp.S.One),
            "x0": (sp.S.One, sp.S.Zero),
            "v": angle if self.variance_preserving else velocity,
            "score": (sp.S.Zero, -1 / self.sigma),
        }[choose("prediction", prediction, PREDICTIONS)]

    def flow(self, prediction: str) -> tuple[sp.Expr, sp.Expr]:
        """(A, B) of ẋ = A x + B p: the probability flow with ε = (α p − a x)/(α b − σ a). [Song et al. 2021, eq. 13]"""
        a, b = self.prediction_parts(prediction)
        rate = self.diffusion_squared / (2 * self.sigma) / (self.alpha * b - self.sigma * a)
        return self.drift - rate * a, rate * self.alpha

    def gamma(self, prediction: str) -> sp.Expr:
        """γ of x = γ y, dy = p dκ: a solution of γ̇ = A γ (the derivation ``clocks`` verifies it)."""
        choose("prediction", prediction, PREDICTIONS)
        return {"eps": self.alpha, "x0": self.sigma, "v": sp.S.One, "score": self.alpha}[prediction]

    def kappa_rate(self, prediction: str) -> sp.Expr:
        """dκ/dt = B/γ."""
        return self.flow(prediction)[1] / self.gamma(prediction)

    def kappa(self, prediction: str) -> sp.Expr:
        """κ in closed form; ValueError where the score's clock has none here."""
        if choose("prediction", prediction, PREDICTIONS) == "score" and self.score_clock is None:
            raise ValueError(f"prediction='score' has no closed κ on {self.name}; allowed: eps, x0, v")
        angle = sp.atan(self.rho) if self.variance_preserving else TIME
        return {"eps": self.rho, "x0": 1 / self.rho, "v": angle, "score": self.score_clock}[prediction]


def _processes() -> dict[str, SymbolicProcess]:
    beta_min, beta_max, sigma_min, sigma_max = sp.symbols("beta_min beta_max sigma_min sigma_max", positive=True)
    betas, delta = {"beta_min": beta_min, "beta_max": beta_max}, sp.Symbol("delta", positive=True)
    sigmas, growth = {"sigma_min": sigma_min, "sigma_max": sigma_max}, sp.Symbol("c", positive=True)
    alpha = sp.exp(-(beta_min * TIME + delta * TIME**2 / 2) / 2)
    ve = sigma_min * sp.exp(growth * TIME)
    spread, ratio = {delta: beta_max - beta_min}, {growth: sp.log(sigma_max / sigma_min)}
    theta = sp.Function("theta", positive=True)(TIME)
    rows = (
        SymbolicProcess("VPLinear", alpha, sp.sqrt(1 - alpha**2), betas, spread, True, -1 / alpha),
        _cosine(),
        SymbolicProcess("SubVP", alpha, 1 - alpha**2, betas, spread, False, -1 / alpha - alpha**3 / 3),
        SymbolicProcess("VE", sp.S.One, ve, sigmas, ratio, False, -(ve**2) / 2),
        SymbolicProcess("EDM", sp.S.One, TIME, score_clock=-(TIME**2) / 2),
        SymbolicProcess("RectifiedFlow", 1 - TIME, TIME, score_clock=-1 / (1 - TIME) - sp.log(1 - TIME)),
        SymbolicProcess("Generic", *(sp.Function(name, positive=True)(TIME) for name in ("alpha", "sigma"))),
        SymbolicProcess("GenericVP", sp.cos(theta), sp.sin(theta), {}, {}, True, -1 / sp.cos(theta)),
    )
    return {row.name: row for row in rows}


def _cosine() -> SymbolicProcess:
    """`process.VPCosine`.  With w = a + ct the substitution sin w makes ρ, 1/ρ and 1/α integrable: for example
    ∫ρ dw = ∫ √(cos²a − cos²w)/cos w dw, whose integrand is rational in sin w and √(sin²w − sin²a)."""
    a, c, s = sp.symbols("a_0 c s_0", positive=True)
    w = a + c * TIME
    root = sp.sqrt(sp.cos(a) ** 2 - sp.cos(w) ** 2)
    log = sp.log(sp.sin(w) + root)
    integrals = {
        "eps": (sp.cos(a) * sp.atanh(root / (sp.cos(a) * sp.sin(w))) - log) / c,
        "x0": log / c,
        "score": -sp.cos(a) * sp.atanh(sp.sin(w)) / c,
    }
    alpha, meaning = sp.cos(w) / sp.cos(a), {a: sp.pi * s / (2 * (1 + s)), c: sp.pi / (2 * (1 + s))}
    return SymbolicProcess("VPCosine", alpha, root / sp.cos(a), {"s": s}, meaning, True, -1 / alpha, integrals)


PROCESSES = _processes()


# -- closed weights --------------------------------------------------------------------------------
def weight_symbols(variable: str, degree: int) -> tuple[tuple[sp.Symbol, ...], sp.Symbol, sp.Symbol]:
    """The symbols of `weights_closed_form`: nodes, lower and upper limit (t_0 …, a, b for t; φ_0 …, φ_a, φ_b else)."""
    if choose("variable", variable, VARIABLES) == "t":
        return sp.symbols(f"t_:{degree + 1}", positive=True), *sp.symbols("a b", positive=True)
    return sp.symbols(f"phi_:{degree + 1}", real=True), *sp.symbols("phi_a phi_b", real=True)


def _integral(rate: sp.Expr, x: sp.Symbol) -> sp.Expr | None:
    """∫ rate dx of a rational function, or of a polynomial times exp(c x); None for any other form."""
    if rate.is_rational_function(x):  # sympy writes log(x − 1), which is complex on the flow's 0 < t < 1
        return sp.integrate(rate, x).subs(sp.log(x - 1), sp.log(1 - x))
    exponents = [e for e in rate.atoms(sp.exp) if e.has(x)]
    if len(exponents) != 1 or (slope := sp.diff(exponents[0].exp, x)).has(x):
        return None
    factor = sp.simplify(rate / exponents[0])
    if not factor.is_polynomial(x):
        return None
    parts = ((-1) ** k * sp.diff(factor, x, k) / slope ** (k + 1) for k in range(sp.degree(factor, x) + 1))
    return sp.factor(sp.expand(sum(parts))) * exponents[0]  # by parts, until the polynomial is used up


def _clock(prediction: str, variable: str) -> sp.Expr | None:
    """κ as a function of φ on every process, where (prediction, φ) alone decides it: κ is ρ for ε, 1/ρ for x₀."""
    rho = {"rho": PHI, "lam": sp.exp(-PHI), "inv_rho": 1 / PHI}.get(variable)
    return None if rho is None else {"eps": rho, "x0": 1 / rho}.get(prediction)


def _moments(prediction: str, variable: str, degree: int, process: SymbolicProcess | None) -> tuple[sp.Symbol, list]:
    """φ and the antiderivatives of φ^m dκ, m = 0 … degree; ValueError where one of them has no closed form here."""
    pair = f"prediction={prediction!r}, variable={variable!r}"
    if variable != "t":
        kappa = _clock(prediction, variable)
        if kappa is None:
            raise ValueError(
                f"{pair} has no closed form here; allowed: eps or x0 in rho, lam or inv_rho; or variable='t'"
            )
        return PHI, [kappa, *(_integral(PHI**m * sp.diff(kappa, PHI), PHI) for m in range(1, degree + 1))]
    if process is None:
        raise ValueError(f"process=None: {pair} needs a process; allowed: {', '.join(PROCESSES)}")
    moments: list[Any] = [process.kappa(prediction)]
    rate = sp.simplify(process.kappa_rate(prediction))
    moments += [_integral(TIME**m * rate, TIME) for m in range(1, degree + 1)]
    if degree >= 1 and prediction in process.clock_integrals:
        moments[1] = TIME * moments[0] - process.clock_integrals[prediction]
    if None in moments:
        raise ValueError(
            f"degree={degree}: {pair} on {process.name} has no known elementary form; allowed: degree <= "
            f"{moments.index(None) - 1}, or numbers from quadrature_weights"
        )
    return TIME, moments


def weights_closed_form(
    prediction: str, variable: str, degree: int, process: str | SymbolicProcess | None = None
) -> list[sp.Expr]:
    r"""The weights :math:`w_j = \int_a^b ℓ_j(φ)\,dκ`, j = 0 … degree, as elementary functions.

    Args:
        prediction, variable: (eps | x0, rho | lam | inv_rho) hold on every process; (any, t) on VE, EDM and
            RectifiedFlow; (v, t) on SubVP; on VPCosine (eps | x0 | score, t) to degree 1; degree 0 on every process.
        degree: of the interpolating polynomial, 0 ≤ degree; it has degree + 1 nodes.
        process: a `SymbolicProcess` or a name in `PROCESSES`; only read for ``variable="t"``.

    Returns:
        degree + 1 expressions in the symbols of `weight_symbols` (nodes t_0 …, limits a, b for t; φ_0 …, φ_a, φ_b
        else) and in ``process.parameters``.  They cancel: evaluate them with more digits than you need.

    Raises:
        ValueError: where no elementary form is known, (eps, t) on VPLinear from degree 1 above all.

    Source: Zhang & Chen 2023, eq. 15; closed forms in λ: Lu et al. 2022, sec. 3.
    """
    choose("prediction", prediction, PREDICTIONS)
    choose("variable", variable, VARIABLES)
    degree = positive_int("degree", degree, minimum=0)
    process = PROCESSES[choose("process", process, PROCESSES)] if isinstance(process, str) else process
    nodes, a, b = weight_symbols(variable, degree)
    phi, moments = _moments(prediction, variable, degree, process)
    increments = [m.subs(phi, b) - m.subs(phi, a) for m in moments]
    meaning = process.abbreviations if process is not None else {}
    weights = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        coefficients = sp.Poly(sp.prod([phi - other for other in others]), phi).all_coeffs()[::-1]
        integral = sum(c * m for c, m in zip(coefficients, increments, strict=True))
        weights.append(sp.sympify(integral / sp.prod([node - other for other in others])).subs(meaning))
    return weights


def adams_bashforth(steps: int) -> list[sp.Rational]:
    """Adams–Bashforth weights on a uniform grid, newest value first: 1; 3/2, −1/2; 23/12, −16/12, 5/12; …

    They are the (eps, rho) weights at the nodes 0, −1, −2, … over the step [0, 1]. [Hairer, Nørsett & Wanner, III.1]
    """
    degree = positive_int("steps", steps) - 1
    nodes, a, b = weight_symbols("rho", degree)
    uniform = {node: -j for j, node in enumerate(nodes)} | {a: 0, b: 1}
    return [w.subs(uniform) for w in weights_closed_form("eps", "rho", degree)]


def phi_function(k: int, z: Any) -> sp.Expr:
    """φ_k(z) = (eᶻ − Σ_{m<k} zᵐ/m!)/zᵏ, so that φ_{k+1}(z) = (φ_k(z) − 1/k!)/z.

    Undefined at z = 0, where its limit is 1/k!. [Hochbruck & Ostermann 2010, eq. 2.10]
    """
    k, z = positive_int("k", k, minimum=0), sp.sympify(z)
    return (sp.exp(z) - sum(z**m / sp.factorial(m) for m in range(k))) / z**k


# -- rooted trees and the order of a Runge–Kutta method --------------------------------------------
Tree = tuple  # a rooted tree is the sorted tuple of the trees that hang from its root; () is a single node


def _grafts(tree: Tree) -> set[Tree]:
    """The trees that one more leaf makes of ``tree``."""
    grown = {tuple(sorted((*tree, ())))}
    for i, child in enumerate(tree):
        grown |= {tuple(sorted((*tree[:i], larger, *tree[i + 1 :]))) for larger in _grafts(child)}
    return grown


@cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """The rooted trees with ``order`` nodes: 1, 1, 2, 4, 9, 20, … of them."""
    if positive_int("order", order) == 1:
        return ((),)
    return tuple(sorted(set().union(*(_grafts(tree) for tree in rooted_trees(order - 1)))))


def _nodes(tree: Tree) -> int:
    return 1 + sum(_nodes(child) for child in tree)


def tree_density(tree: Tree) -> int:
    """γ(τ): the number of nodes times the densities of the root's subtrees. [Hairer, Nørsett & Wanner, II.2]"""
    density = _nodes(tree)
    for child in tree:
        density *= tree_density(child)
    return density


def _elementary_weight(tree: Tree) -> sp.Expr:
    """Σ b_i …: a factor a_ij for every edge to an inner node, c_i for every edge to a leaf."""
    stages, (a, b, c) = sp.Symbol("s", integer=True, positive=True), map(sp.IndexedBase, "abc")
    names = (sp.Symbol(f"i_{n}", integer=True) for n in itertools.count(1))
    limits: list[Any] = []

    def product(node: Tree) -> tuple[sp.Symbol, sp.Expr]:
        index, factors = next(names), sp.S.One
        limits.append((index, 1, stages))
        for child in node:
            if child:
                inner, below = product(child)
                factors *= a[index, inner] * below
            else:
                factors *= c[index]
        return index, factors

    root, factors = product(tree)
    return sp.Sum(b[root] * factors, *limits)


def order_conditions(order: int) -> list[tuple[Tree, sp.Eq]]:
    """Butcher's conditions that order ``order`` adds to the lower ones: (tree τ, Σ b … = 1/γ(τ)), for c_i = Σ_j a_ij.

    Generated from the rooted trees; 1, 1, 2, 4, 9 conditions for the orders 1 … 5. [Hairer, Nørsett & Wanner, II.2]
    """
    return [(t, _define(_elementary_weight(t), sp.Rational(1, tree_density(t)))) for t in rooted_trees(order)]


def _rationals(name: str, values: Iterable[Any]) -> list[Fraction]:
    exact = []
    for value in values:
        if not (isinstance(value, (int, Fraction)) or getattr(value, "is_Rational", False)):
            raise ValueError(f"{name} holds {value!r}; allowed: int, Fraction or sympy Rational")
        exact.append(Fraction(int(value.p), int(value.q)) if isinstance(value, sp.Rational) else Fraction(value))
    return exact


def _stage_vectors(tree: Tree, rows: list[list[Fraction]], c: list[Fraction]) -> set[tuple[Fraction, ...]]:
    """What multiplies b_i in the condition of ``tree``, for every stage i.  A leaf is a derivative by y or by t: with
    Σ_j a_ij ≠ c_i the two differ, and the condition has to hold for each choice."""
    factors = []
    for child in tree:
        below = _stage_vectors(child, rows, c)
        factor = {tuple(sum((x * y for x, y in zip(row, v, strict=True)), Fraction(0)) for row in rows) for v in below}
        factors.append(factor if child else factor | {tuple(c)})
    ones = (Fraction(1),) * len(c)
    vectors = {ones}
    for factor in factors:
        vectors = {tuple(x * y for x, y in zip(u, v, strict=True)) for u in vectors for v in factor}
    return vectors


def butcher_order(a: Iterable[Iterable[Any]], b: Iterable[Any], c: Iterable[Any]) -> int:
    """The order of the explicit Runge–Kutta method (a, b, c), in exact rational arithmetic and from both sides: every
    condition up to this order holds and one of the next order fails (an explicit method of s stages has order ≤ s).

    Args:
        a: s rows of rationals, strictly lower triangular; trailing zeros of a row may be left out.
        b, c: s rationals each.  Rows of ``a`` that do not sum to c are judged as they act on ẏ = f(t, y).

    Source: Hairer, Nørsett & Wanner, Theorem II.2.13.
    """
    weights, times = _rationals("b", b), _rationals("c", c)
    rows, s = [_rationals("a", row) for row in a], len(weights)
    if s == 0 or len(times) != s or len(rows) != s:
        raise ValueError(f"a, b, c have {len(rows)}, {s}, {len(times)} rows; allowed: one size of at least 1")
    for i, row in enumerate(rows):
        if len(row) > s or any(row[i:]):
            raise ValueError(f"a[{i}]={[str(x) for x in row]} must be strictly lower triangular: an explicit method")
    rows = [row + [Fraction(0)] * (s - len(row)) for row in rows]

    def holds(tree: Tree) -> bool:
        sums = (sum(x * y for x, y in zip(weights, v, strict=True)) for v in _stage_vectors(tree, rows, times))
        return all(total * tree_density(tree) == 1 for total in sums)

    return next(p for p in itertools.count(0) if not all(map(holds, rooted_trees(p + 1))))


# -- derivations -----------------------------------------------------------------------------------
def _function(name: str, argument: sp.Symbol = TIME) -> sp.Expr:
    return sp.Function(name)(argument)


def _process(name: str) -> Derivation:
    process = PROCESSES[name]
    equations = [_define(symbol, meaning) for symbol, meaning in process.abbreviations.items()]
    equations += [
        _define(_function("alpha"), process.alpha),
        _define(_function("sigma"), process.sigma),
        _define(sp.Function("Psi")(NEXT, TIME), _tidy(process.psi)),
        _define(_function("rho"), _tidy(process.rho)),
        _define(_function("f"), _tidy(process.drift)),
        _define(_function("g") ** 2, _tidy(process.diffusion_squared)),
    ]
    for p in PREDICTIONS:
        shown = sp.Derivative(_function(f"kappa_{p}"), TIME)
        equations.append(_verify(sp.diff(process.kappa(p), TIME), _tidy(process.kappa_rate(p)), shown))
    text = (
        "Ψ, ρ, f, g² and dκ/dt of every prediction, from α and σ alone. Verified: dκ/dt = B/γ, read off the "
        "probability flow, is the derivative of the closed κ (ρ, 1/ρ, the v-clock, the score's clock). Sources: Song "
        "et al. 2021, eq. 13 and app. B; Zhang & Chen 2023, table 1 (whose α is the square of this one)."
    )
    return Derivation(f"process-{name}", f"Scales, drift and clocks of {name}", tuple(equations), text)


def _clocks() -> Derivation:
    equations = []
    for process, suffix in ((PROCESSES["Generic"], ""), (PROCESSES["GenericVP"], "_VP")):
        for p in PREDICTIONS:
            gamma, rate = process.gamma(p), process.kappa_rate(p)
            _verify(sp.diff(gamma, TIME), process.flow(p)[0] * gamma)
            equations.append(_define(_function(f"gamma_{p}{suffix}"), gamma))
            equations.append(_verify(rate, _tidy(rate), sp.Derivative(_function(f"kappa_{p}{suffix}"), TIME)))
    text = (
        "For any differentiable α, σ > 0, and for α = cos θ, σ = sin θ (index VP, where v belongs to the angle θ): "
        "ẋ = f x + g²/(2σ) ε with ε = (α p − a x)/(α b − σ a), p = a x₀ + b ε, is ẋ = A x + B p; with x = γ y it is "
        "dy = p dκ, dκ/dt = B/γ. Verified: γ̇ = A γ for γ = α, σ, 1, α. Sources: Zhang & Chen 2023, Prop. 3 (ε); "
        "Lu et al. 2022b (x₀); Salimans & Ho 2022 (v)."
    )
    return Derivation("clocks", "The flow dy = p dkappa of every prediction", tuple(equations), text)


def _ode(prediction: str) -> Derivation:
    process, x, eps = PROCESSES["Generic"], _function("x"), _function("epsilon")
    velocity = process.drift * x + process.diffusion_squared / (2 * process.sigma) * eps
    scale, clock = process.gamma(prediction), process.kappa(prediction)
    x0 = (x - process.sigma * eps) / process.alpha
    along = sp.diff(x / scale, TIME).subs(sp.Derivative(x, TIME), velocity) / sp.diff(clock, TIME)
    kappa = sp.Symbol("rho") if prediction == "eps" else sp.Symbol("eta")
    y, target = sp.Function("y")(kappa), eps if prediction == "eps" else x0
    found = _verify(along, target, sp.Derivative(y, kappa))
    equations = (_define(y, x / scale), _define(kappa, clock), _define(sp.Derivative(x, TIME), velocity), found)
    names = {"eps": ("ode-rho", "d(x/alpha)/d rho = eps"), "x0": ("ode-inv-rho", "d(x/sigma)/d(1/rho) = x0")}
    text = (
        "For any differentiable α, σ > 0, with f and g² written out in α and σ. Verified: the derivative of x/"
        f"{'α along ρ is ε' if prediction == 'eps' else 'σ along η = 1/ρ is x₀ = (x − σε)/α'}, identically. Source: "
        f"{'Zhang & Chen 2023, Prop. 3' if prediction == 'eps' else 'the clock of DPM-Solver++, Lu et al. 2022b'}."
    )
    return Derivation(*names[prediction], equations, text)


_WEIGHTS_TEXT = (
    "κ and its moments M_m with dM_m = φ^m dκ. With ℓ_j = Σ_m c_jm φ^m the weights of every degree are w_j = Σ_m c_jm "
    "(M_m(b) − M_m(a)), M_0 = κ; `weights_closed_form` writes them out, here for degree 1. Verified: M_m by "
    "differentiation, m <= {degree}. {known}Source: Zhang & Chen 2023, eq. 15."
)
_KNOWN = {
    ("eps", "rho"): "Plain Lagrange integrals: ρAB-DEIS, the variable-step LMS of k-diffusion.",
    ("eps", "lam"): "log-ρ DEIS; degree 0 is DPM-Solver-1, α_b w_0 = −σ_b (eʰ − 1) (Lu et al. 2022).",
    ("x0", "lam"): "DPM-Solver++ with exact weights, σ_b w_0 = −α_b (e⁻ʰ − 1) at degree 0 (Lu et al. 2022b).",
    ("x0", "inv_rho"): "Plain Lagrange integrals in 1/ρ.",
    "VPCosine": "From degree 2 on sympy finds no elementary form and none is known here; that is not a proof.",
}


def _weights(prediction: str, variable: str, process: SymbolicProcess | None = None) -> Derivation:
    degree = 1 if process is not None and prediction in process.clock_integrals else 3
    phi, moments = _moments(prediction, variable, degree, process)
    rate = sp.diff(moments[0], phi)
    meaning = {} if process is None else process.abbreviations
    equations = [_define(*pair) for pair in meaning.items()]
    equations.append(_define(_function("kappa", phi), moments[0]))
    for m, moment in enumerate(moments[1:], start=1):
        _verify(sp.diff(moment, phi), phi**m * rate)
        equations.append(_define(_function(f"M_{m}", phi), moment))
    (first, second), a, b = weight_symbols(variable, 1)
    if process is None:
        equations += [
            _define(sp.Symbol(f"w_{j}"), w) for j, w in enumerate(weights_closed_form(prediction, variable, 1))
        ]
    else:
        m0, m1 = (sp.Function(name)(b) - sp.Function(name)(a) for name in ("kappa", "M_1"))
        equations += [_define(sp.Symbol("w_0"), (m1 - second * m0) / (first - second))]
        equations += [_define(sp.Symbol("w_1"), (m1 - first * m0) / (second - first))]
    name = "-".join(["weights", prediction, variable.replace("_", "-"), *([process.name] if process else [])])
    where = f" on {process.name}" if process else " on every process"
    known = _KNOWN.get((prediction, variable), _KNOWN.get(process.name, "") if process else "")
    text = _WEIGHTS_TEXT.format(degree=degree, known=known and known + " ")
    return Derivation(name, f"Weights of ({prediction}, {variable.replace('_', '-')}){where}", tuple(equations), text)


_NOT_ELEMENTARY = (
    "If β_max > β_min, the weights of a degree r >= 1 are never all elementary: they give Σ_j t_j w_j = ∫ t dρ, "
    "and by parts that needs ∫ √(E − 1) dt with E = exp B. By Liouville's theorem an elementary integral is v_0 + "
    "Σ c_i log v_i with all v_i in the field C(t, E, √(E − 1)), which lies in the Laurent series in E^(−1/2) over "
    "C(t); the coefficients of E^(1/2) then leave q' + (B'/2) q = 1 for a rational q. A pole of q would be a "
    "higher pole of q', so q is a polynomial, and the degree of B' q is at least 1: there is no such q. Verified: "
    "ρ, the integration by parts, and, by sympy's Risch algorithm, that ∫ exp(B/2) dt is not elementary (the same "
    "equation for q; the algorithm does not accept the square root itself). The same holds on SubVP, where ρ = 2 "
    "sinh(B/2). Exceptions: degree 0, which is DDIM; constant β (last line) at degree 1. Numbers: "
    "quadrature_weights. Source of the weights: Zhang & Chen 2023, eq. 15."
)


def _weights_vp() -> Derivation:
    process, (a, b) = PROCESSES["VPLinear"], weight_symbols("t", 0)[1:]
    (delta,), beta = process.abbreviations, process.parameters["beta_min"]
    integral = beta * TIME + delta * TIME**2 / 2
    rho, q = sp.sqrt(sp.exp(integral) - 1), _function("q")
    if not isinstance(risch_integrate(sp.exp(integral / 2), TIME), NonElementaryIntegral):
        raise ArithmeticError(f"sympy integrates exp({integral / 2}), which was to have no elementary integral")
    root = sp.sqrt(sp.exp(beta * TIME) - 1)
    constant = 2 * (root - sp.atan(root)) / beta
    _verify(sp.diff(constant, TIME), root)
    _verify(sp.diff(TIME * rho - sp.Integral(rho, TIME), TIME), TIME * sp.diff(rho, TIME))
    _verify(PROCESSES["SubVP"].rho, (2 * sp.sinh(integral / 2)).rewrite(sp.exp))
    limits = [(TIME * rho).subs(TIME, x) for x in (a, b)]
    equations = (
        *(_define(*pair) for pair in process.abbreviations.items()),
        _define(_function("B"), integral),
        _verify(process.rho**2, rho**2, _function("rho") ** 2),
        _define(
            sp.Integral(TIME * sp.Derivative(_function("rho"), TIME), (TIME, a, b)),
            limits[1] - limits[0] - sp.Integral(rho, (TIME, a, b)),
        ),
        _define(sp.diff(q, TIME) + sp.diff(integral, TIME) / 2 * q, 1),
        _define(sp.Integral(root, TIME), constant),
    )
    return Derivation(
        "weights-eps-t-VPLinear",
        "Weights of (eps, t) on VPLinear: no elementary form from degree 1 on",
        equations,
        _NOT_ELEMENTARY,
    )


def _phi_functions() -> Derivation:
    z, u, h = sp.Symbol("z", positive=True), sp.Symbol("theta", positive=True), sp.Symbol("h", positive=True)
    equations = [_define(sp.Function(f"phi_{k}")(z), phi_function(k, z)) for k in range(4)]
    for k in range(3):
        following = sp.Function(f"phi_{k + 1}")(z)
        recurrence = (sp.Function(f"phi_{k}")(z) - 1 / sp.factorial(k)) / z
        _verify(phi_function(k + 1, z), (phi_function(k, z) - 1 / sp.factorial(k)) / z)
        integral = sp.Integral(sp.exp((1 - u) * z) * u**k / sp.factorial(k), (u, 0, 1))
        _verify(phi_function(k + 1, z), integral.doit())
        step = sp.Integral(sp.exp(h - u) * u**k / sp.factorial(k), (u, 0, h))
        _verify(step.doit(), h ** (k + 1) * phi_function(k + 1, h))
        equations += [_define(following, recurrence), _define(following, integral)]
        equations += [_define(step, h ** (k + 1) * sp.Function(f"phi_{k + 1}")(h))]
    text = (
        "φ_k in closed form, for z ≠ 0; φ_k(0) = 1/k!. Verified for k <= 3: the recurrence, the integral, and that "
        "the Taylor moments of an exponential step are h^{k+1} φ_{k+1}(h), which is how DPM-Solver writes the (eps, "
        "lam) weights: α_s ∫ e^{−λ} (λ − λ_t)^k/k! dλ = σ_s h^{k+1} φ_{k+1}(h). Sources: Hochbruck & Ostermann 2010, "
        "eq. 2.10; Lu et al. 2022, sec. 3."
    )
    return Derivation("phi-functions", "The phi-functions and their recurrence", tuple(equations), text)


def _ddim() -> Derivation:
    a_t, a_s, s_t, s_s = sp.symbols("alpha_t alpha_s sigma_t sigma_s", positive=True)
    x, eps, x_s, h = sp.symbols("x_t epsilon x_s h")
    ddim = a_s / a_t * x + (s_s - a_s / a_t * s_t) * eps
    levels = {"rho": (s_t / a_t, s_s / a_s), "lam": (sp.log(a_t / s_t), sp.log(a_s / s_s))}
    levels["inv_rho"] = (a_t / s_t, a_s / s_s)
    equations = [_define(x_s, ddim)]
    for prediction, variable in itertools.product(("eps", "x0"), levels):
        _, low, high = weight_symbols(variable, 0)
        (weight,) = weights_closed_form(prediction, variable, 0)
        weight = weight.subs(dict(zip((low, high), levels[variable], strict=True)))
        value, scale = {"eps": (eps, (a_t, a_s)), "x0": ((x - s_t * eps) / a_t, (s_t, s_s))}[prediction]
        _verify(scale[1] / scale[0] * x + scale[1] * weight * value, ddim)
    dpm_solver_1 = a_s / a_t * x - s_s * (sp.exp(h) - 1) * eps
    _verify(dpm_solver_1.subs(h, sp.log(a_s / s_s) - sp.log(a_t / s_t)), ddim)
    equations.append(_define(x_s, dpm_solver_1))
    published = a_s * ((x - s_t * eps) / a_t) + s_s * eps
    _verify(published, ddim)
    equations.append(_define(x_s, published))
    text = (
        "Degree 0 freezes the prediction over the step: w_0 = κ(s) − κ(t), whatever the variable. Verified: (eps, ·) "
        "and (x0, ·) in rho, lam and inv_rho all give the first line; so does −σ_s(eʰ − 1) with h = λ_s − λ_t "
        "(DPM-Solver-1), and deterministic DDIM in its published form, α_s x̂₀ + σ_s ε with x̂₀ = (x_t − σ_t ε)/α_t. "
        "Sources: Zhang & Chen 2023, Prop. 2; Song, Meng & Ermon 2021, eq. 12 with no noise; Lu et al. 2022."
    )
    return Derivation("ddim", "DDIM is the update of degree 0", tuple(equations), text)


def _frozen_score() -> Derivation:
    x, score, psi = sp.Symbol("x_t"), sp.Symbol("s_theta"), sp.Function("Psi")(NEXT, TIME)
    kappa, alpha = sp.Function("kappa_score"), sp.Function("alpha")
    equations = [_define(sp.Symbol("x_s"), psi * x + alpha(NEXT) * (kappa(NEXT) - kappa(TIME)) * score)]
    for name in ("GenericVP", "SubVP", "VE", "EDM", "RectifiedFlow"):
        process, clock = PROCESSES[name], PROCESSES[name].kappa("score")
        bracket = process.alpha.subs(TIME, NEXT) * (clock.subs(TIME, NEXT) - clock)
        update = process.psi * x + bracket * score
        drift, diffusion = (e.subs(TIME, NEXT) for e in (process.drift, process.diffusion_squared))
        _verify(sp.diff(update, NEXT), drift * update - diffusion / 2 * score)
        _verify(update.subs(NEXT, TIME), x)
        if name == "GenericVP":
            _verify(bracket, process.psi - 1)
            equations.append(_define(sp.Symbol("x_s^VP"), psi * x + (psi - 1) * score))
        else:
            equations.append(_define(_function(f"kappa_{name}"), clock))
    text = (
        "The exponential integrator with the score frozen, instead of ε: x_s = Ψ x_t + α_s (κ(s) − κ(t)) s_θ with "
        "dκ/dt = −g²/(2α); κ = −1/α on every variance-preserving process, hence x_s = Ψ x_t + (Ψ − 1) s_θ. Verified "
        "on each: the update solves dx/ds = f x − g²/2 s_θ with s_θ constant, and x_s = x_t at s = t. Zhang & Chen "
        "find it worse than Euler: s_θ changes fast as t → 0. Source: Zhang & Chen 2023, eq. 8."
    )
    return Derivation("frozen-score", "The exponential integrator with a frozen score", tuple(equations), text)


def _adams_bashforth() -> Derivation:
    h, values = sp.Symbol("h"), [sp.Symbol(name) for name in ("f_n", "f_{n-1}", "f_{n-2}", "f_{n-3}")]
    equations = []
    for k in range(1, 5):
        step = sum(w * f for w, f in zip(adams_bashforth(k), values, strict=False))
        equations.append(_define(sp.Symbol("y_{n+1}") - sp.Symbol("y_n"), h * step))
        for power in range(k):  # w integrates u^power over [0, 1] exactly from its values at 0, −1, −2, …
            moment = sum(w * sp.Integer(-j) ** power for j, w in enumerate(adams_bashforth(k)))
            _verify(moment, sp.Rational(1, power + 1))
    text = (
        "The (eps, rho) weights of 1 to 4 nodes on a uniform grid, newest first. Verified: they "
        "integrate polynomials of degree < steps exactly. iPNDM applies these numbers on every grid. Source: Hairer, "
        "Nørsett & Wanner, Solving ODEs I, sec. III.1."
    )
    return Derivation("adams-bashforth", "Adams-Bashforth weights of 1 to 4 steps", tuple(equations), text)


def _order_conditions() -> Derivation:
    equations = tuple(condition for order in range(1, 6) for _, condition in order_conditions(order))
    text = (
        "One condition for each rooted tree: 1, 1, 2, 4, 9 of them for the orders 1 to 5, in this order, for a method "
        "of s stages with c_i = Σ_j a_ij. Generated: the trees by grafting leaves, the left sides by walking the "
        "tree, the right sides as 1/γ(τ). Source: Hairer, Nørsett & Wanner, Solving ODEs I, sec. II.2."
    )
    return Derivation("order-conditions", "Butcher's order conditions up to order 5", equations, text)


def _derivations() -> dict[str, Callable[[], Derivation]]:
    concrete = [name for name in PROCESSES if not name.startswith("Generic")]
    rows: dict[str, Callable[[], Derivation]] = {f"process-{name}": partial(_process, name) for name in concrete}
    rows |= {"clocks": _clocks, "ode-rho": partial(_ode, "eps"), "ode-inv-rho": partial(_ode, "x0")}
    for prediction, variable in (("eps", "rho"), ("eps", "lam"), ("x0", "lam"), ("x0", "inv_rho")):
        rows[f"weights-{prediction}-{variable.replace('_', '-')}"] = partial(_weights, prediction, variable)
    for name in ("VE", "EDM", "RectifiedFlow", "VPCosine"):
        rows[f"weights-eps-t-{name}"] = partial(_weights, "eps", "t", PROCESSES[name])
    rows |= {"weights-eps-t-VPLinear": _weights_vp, "phi-functions": _phi_functions, "ddim": _ddim}
    return rows | {
        "frozen-score": _frozen_score,
        "adams-bashforth": _adams_bashforth,
        "order-conditions": _order_conditions,
    }


DERIVATIONS = _derivations()


def derive(name: str) -> Derivation:
    """The derivation ``name`` (a key of `DERIVATIONS`), derived and verified now; ValueError with the nearest names."""
    return DERIVATIONS[choose("name", name, DERIVATIONS)]()
