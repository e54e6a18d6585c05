r"""The weights and identities once more, as formulas: sympy derives them from :math:`α(t), σ(t)` alone.

The package computes its numbers by quadrature (`solvers.weights`), because closed forms cancel.  This module is
the witness: it starts from the probability flow in its first form,

.. math:: \dot x = f x + \frac{g^2}{2σ} ε , \qquad f = \dot α/α , \qquad g^2 = 2σ\dot σ - 2fσ^2 ,

puts the model's prediction :math:`p = a x_0 + b ε` in the place of ε (from :math:`x = αx_0 + σε`), and reads off
:math:`\dot x = A x + B p`, hence γ, κ and every weight :math:`\int ℓ_j(φ)\,dκ` that is an elementary function.

Every equation of a `Derivation` is either a definition (`define`) or was simplified to 0 = 0 when it was built
(`verify`, which raises otherwise).  ``tests/symbolic/test_symbolic.py`` compares each formula with quadrature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import sympy as sp
from sympy.integrals.risch import NonElementaryIntegral, risch_integrate

from deis_analysis.process.process import PREDICTIONS
from deis_analysis.symbolic.closed_forms import (
    NEXT,
    PROCESSES,
    TIME,
    SymbolicProcess,
    adams_bashforth,
    clock_moments,
    phi_function,
    weight_symbols,
    weights_closed_form,
)
from deis_analysis.symbolic.equations import Derivation, define, tidy, verify
from deis_analysis.symbolic.trees import butcher_order, order_conditions, rooted_trees, tree_density
from deis_analysis.validate import choose

__all__ = [
    "DERIVATIONS",
    "NEXT",
    "PROCESSES",
    "TIME",
    "Derivation",
    "SymbolicProcess",
    "adams_bashforth",
    "butcher_order",
    "derive",
    "order_conditions",
    "phi_function",
    "rooted_trees",
    "tree_density",
    "weight_symbols",
    "weights_closed_form",
]


def _function(name: str, argument: sp.Symbol = TIME) -> sp.Expr:
    return sp.Function(name)(argument)


def _process(name: str) -> Derivation:
    process = PROCESSES[name]
    equations = [define(symbol, meaning) for symbol, meaning in process.abbreviations.items()]
    equations += [
        define(_function("alpha"), process.alpha),
        define(_function("sigma"), process.sigma),
        define(sp.Function("Psi")(NEXT, TIME), tidy(process.psi)),
        define(_function("rho"), tidy(process.rho)),
        define(_function("f"), tidy(process.drift)),
        define(_function("g") ** 2, tidy(process.diffusion_squared)),
    ]
    for p in PREDICTIONS:
        shown = sp.Derivative(_function(f"kappa_{p}"), TIME)
        equations.append(verify(sp.diff(process.kappa(p), TIME), tidy(process.kappa_rate(p)), shown))
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
            verify(sp.diff(gamma, TIME), process.flow(p)[0] * gamma)
            equations.append(define(_function(f"gamma_{p}{suffix}"), gamma))
            equations.append(verify(rate, tidy(rate), sp.Derivative(_function(f"kappa_{p}{suffix}"), TIME)))
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
    found = verify(along, target, sp.Derivative(y, kappa))
    equations = (define(y, x / scale), define(kappa, clock), define(sp.Derivative(x, TIME), velocity), found)
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
    phi, moments = clock_moments(prediction, variable, degree, process)
    rate = sp.diff(moments[0], phi)
    meaning = {} if process is None else process.abbreviations
    equations = [define(*pair) for pair in meaning.items()]
    equations.append(define(_function("kappa", phi), moments[0]))
    for m, moment in enumerate(moments[1:], start=1):
        verify(sp.diff(moment, phi), phi**m * rate)
        equations.append(define(_function(f"M_{m}", phi), moment))
    (first, second), a, b = weight_symbols(variable, 1)
    if process is None:
        equations += [
            define(sp.Symbol(f"w_{j}"), w) for j, w in enumerate(weights_closed_form(prediction, variable, 1))
        ]
    else:
        m0, m1 = (sp.Function(name)(b) - sp.Function(name)(a) for name in ("kappa", "M_1"))
        equations += [define(sp.Symbol("w_0"), (m1 - second * m0) / (first - second))]
        equations += [define(sp.Symbol("w_1"), (m1 - first * m0) / (second - first))]
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
    verify(sp.diff(constant, TIME), root)
    verify(sp.diff(TIME * rho - sp.Integral(rho, TIME), TIME), TIME * sp.diff(rho, TIME))
    verify(PROCESSES["SubVP"].rho, (2 * sp.sinh(integral / 2)).rewrite(sp.exp))
    limits = [(TIME * rho).subs(TIME, x) for x in (a, b)]
    equations = (
        *(define(*pair) for pair in process.abbreviations.items()),
        define(_function("B"), integral),
        verify(process.rho**2, rho**2, _function("rho") ** 2),
        define(
            sp.Integral(TIME * sp.Derivative(_function("rho"), TIME), (TIME, a, b)),
            limits[1] - limits[0] - sp.Integral(rho, (TIME, a, b)),
        ),
        define(sp.diff(q, TIME) + sp.diff(integral, TIME) / 2 * q, 1),
        define(sp.Integral(root, TIME), constant),
    )
    return Derivation(
        "weights-eps-t-VPLinear",
        "Weights of (eps, t) on VPLinear: no elementary form from degree 1 on",
        equations,
        _NOT_ELEMENTARY,
    )


def _phi_functions() -> Derivation:
    z, u, h = sp.Symbol("z", positive=True), sp.Symbol("theta", positive=True), sp.Symbol("h", positive=True)
    equations = [define(sp.Function(f"phi_{k}")(z), phi_function(k, z)) for k in range(4)]
    for k in range(3):
        following = sp.Function(f"phi_{k + 1}")(z)
        recurrence = (sp.Function(f"phi_{k}")(z) - 1 / sp.factorial(k)) / z
        verify(phi_function(k + 1, z), (phi_function(k, z) - 1 / sp.factorial(k)) / z)
        integral = sp.Integral(sp.exp((1 - u) * z) * u**k / sp.factorial(k), (u, 0, 1))
        verify(phi_function(k + 1, z), integral.doit())
        step = sp.Integral(sp.exp(h - u) * u**k / sp.factorial(k), (u, 0, h))
        verify(step.doit(), h ** (k + 1) * phi_function(k + 1, h))
        equations += [define(following, recurrence), define(following, integral)]
        equations += [define(step, h ** (k + 1) * sp.Function(f"phi_{k + 1}")(h))]
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
    equations = [define(x_s, ddim)]
    for prediction, variable in itertools.product(("eps", "x0"), levels):
        _, low, high = weight_symbols(variable, 0)
        (weight,) = weights_closed_form(prediction, variable, 0)
        weight = weight.subs(dict(zip((low, high), levels[variable], strict=True)))
        value, scale = {"eps": (eps, (a_t, a_s)), "x0": ((x - s_t * eps) / a_t, (s_t, s_s))}[prediction]
        verify(scale[1] / scale[0] * x + scale[1] * weight * value, ddim)
    dpm_solver_1 = a_s / a_t * x - s_s * (sp.exp(h) - 1) * eps
    verify(dpm_solver_1.subs(h, sp.log(a_s / s_s) - sp.log(a_t / s_t)), ddim)
    equations.append(define(x_s, dpm_solver_1))
    published = a_s * ((x - s_t * eps) / a_t) + s_s * eps
    verify(published, ddim)
    equations.append(define(x_s, published))
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
    equations = [define(sp.Symbol("x_s"), psi * x + alpha(NEXT) * (kappa(NEXT) - kappa(TIME)) * score)]
    for name in ("GenericVP", "SubVP", "VE", "EDM", "RectifiedFlow"):
        process, clock = PROCESSES[name], PROCESSES[name].kappa("score")
        bracket = process.alpha.subs(TIME, NEXT) * (clock.subs(TIME, NEXT) - clock)
        update = process.psi * x + bracket * score
        drift, diffusion = (e.subs(TIME, NEXT) for e in (process.drift, process.diffusion_squared))
        verify(sp.diff(update, NEXT), drift * update - diffusion / 2 * score)
        verify(update.subs(NEXT, TIME), x)
        if name == "GenericVP":
            verify(bracket, process.psi - 1)
            equations.append(define(sp.Symbol("x_s^VP"), psi * x + (psi - 1) * score))
        else:
            equations.append(define(_function(f"kappa_{name}"), clock))
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
        equations.append(define(sp.Symbol("y_{n+1}") - sp.Symbol("y_n"), h * step))
        for power in range(k):  # w integrates u^power over [0, 1] exactly from its values at 0, −1, −2, …
            moment = sum(w * sp.Integer(-j) ** power for j, w in enumerate(adams_bashforth(k)))
            verify(moment, sp.Rational(1, power + 1))
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
