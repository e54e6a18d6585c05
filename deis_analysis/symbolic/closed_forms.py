"""Closed forms by computer algebra: what α(t) and σ(t) imply, and the weights that are elementary functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from deis_analysis.process.process import PREDICTIONS, VARIABLES
from deis_analysis.validate import choose, positive_int

TIME, NEXT = sp.Symbol("t", positive=True), sp.Symbol("s", positive=True)
PHI = sp.Symbol("phi", real=True)


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


def clock_moments(
    prediction: str, variable: str, degree: int, process: SymbolicProcess | None
) -> tuple[sp.Symbol, list]:
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
    phi, moments = clock_moments(prediction, variable, degree, process)
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
