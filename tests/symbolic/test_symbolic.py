"""Each formula three ways: sympy (mpmath, 60 digits) = quadrature_weights = scipy.integrate.quad."""

from fractions import Fraction
from functools import cache
from itertools import product
from math import factorial

import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

import deis_analysis.symbolic.derivations as symbolic
from deis_analysis.process.process import PREDICTIONS
from deis_analysis.process.schedules import EDM, VE, RectifiedFlow, SubVP, VPCosine, VPLinear
from deis_analysis.solvers.weights import phi, quadrature_weights
from deis_analysis.symbolic import equations
from deis_analysis.symbolic.derivations import DERIVATIONS, PROCESSES, TIME, butcher_order, derive, order_conditions
from deis_analysis.symbolic.derivations import weights_closed_form as closed_form

DIGITS = 60
NUMERIC = {
    "VPLinear": VPLinear(0.1, 20.0),
    "VPCosine": VPCosine(),
    "SubVP": SubVP(0.3, 11.0),
    "VE": VE(0.01, 50.0),
    "EDM": EDM(0.002, 80.0),
    "RectifiedFlow": RectifiedFlow(),
}
# nodes and step (a, b): a multistep step, one near the data, one with nodes inside and beyond the step, a long one
STEPS = [
    ((0.55, 0.61, 0.74, 0.8), 0.55, 0.47),
    ((0.021, 0.031, 0.05, 0.055), 0.021, 0.013),
    ((0.5, 0.41, 0.33, 0.3), 0.5, 0.3),
    ((0.9, 0.4, 0.65, 0.97), 0.9, 0.2),
]
IN_TIME = [(p, name) for p in PREDICTIONS for name in ("VE", "EDM", "RectifiedFlow")] + [("v", "SubVP")]
ON_EVERY = list(product(("eps", "x0"), ("rho", "lam", "inv_rho")))


@cache
def compiled(expressions, symbols):
    return sp.lambdify(symbols, list(expressions), "mpmath")


def parameters(name):
    return {symbol: mp.mpf(getattr(NUMERIC[name], key)) for key, symbol in PROCESSES[name].parameters.items()}


def evaluate(name, expressions, values):
    """Expressions of the process ``name`` at 60 digits, with floats taken as exact."""
    meaning = PROCESSES[name].abbreviations
    values = {symbol: mp.mpf(value) for symbol, value in values.items()} | parameters(name)
    with mp.workdps(DIGITS):
        return compiled(tuple(sp.sympify(e).subs(meaning) for e in expressions), tuple(values))(*values.values())


def level(name, variable, t):
    """φ at time t, at 60 digits, from the symbolic ρ."""
    (rho,) = evaluate(name, [PROCESSES[name].rho], {TIME: t})
    with mp.workdps(DIGITS):
        return {"t": mp.mpf(t), "rho": rho, "lam": -mp.log(rho), "inv_rho": 1 / rho}[variable]


def closed_weights(name, prediction, variable, nodes, a, b):
    symbols, low, high = symbolic.weight_symbols(variable, len(nodes) - 1)
    with mp.workdps(DIGITS):
        values = {s: level(name, variable, t) for s, t in zip((*symbols, low, high), (*nodes, a, b), strict=True)}
        return np.array(
            [complex(w) for w in evaluate(name, expressions(prediction, variable, len(nodes), name), values)]
        )


@cache
def expressions(prediction, variable, nodes, name):
    return closed_form(prediction, variable, nodes - 1, name if variable == "t" else None)


def quad_weights(name, prediction, variable, nodes, a, b):
    process = NUMERIC[name]
    phi_of = {"t": float, "rho": process.rho, "lam": process.lam, "inv_rho": lambda t: 1 / process.rho(t)}[variable]
    levels = [float(phi_of(t)) for t in nodes]

    def integrand(t, j):
        at, basis = float(phi_of(t)), float(process.kappa_rate(prediction, t))
        for k, other in enumerate(levels):
            basis *= (at - other) / (levels[j] - other) if k != j else 1.0
        return basis

    quad = scipy.integrate.quad
    return np.array([quad(integrand, a, b, args=(j,), epsabs=0, epsrel=1e-11, limit=200)[0] for j in range(len(nodes))])


def check_three_ways(name, prediction, variable, nodes, a, b):
    exact = closed_weights(name, prediction, variable, nodes, a, b)
    assert np.max(np.abs(exact.imag)) == 0
    exact, scale = exact.real, np.max(np.abs(exact.real))
    assert scale > 0
    numbers = quadrature_weights(NUMERIC[name], prediction, variable, nodes, a, b)
    assert np.max(np.abs(exact - numbers)) < 1e-12 * scale
    assert np.max(np.abs(exact - quad_weights(name, prediction, variable, nodes, a, b))) < 1e-10 * scale


# -- processes ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NUMERIC)
def test_scales_and_rates_equal_the_process(name):
    process, numeric = PROCESSES[name], NUMERIC[name]
    pairs = [
        (process.alpha, numeric.alpha),
        (process.sigma, numeric.sigma),
        (process.rho, numeric.rho),
        (process.drift, numeric.drift),
        (process.diffusion_squared, numeric.diffusion_squared),
    ]
    for p in PREDICTIONS:
        pairs.append((process.kappa_rate(p), lambda t, p=p: numeric.kappa_rate(p, t)))
        pairs.append((process.kappa(p), lambda t, p=p: numeric.kappa(p, t)))
        pairs.append((process.gamma(p), lambda t, p=p: numeric.gamma(p, t)))
        for part in (0, 1):
            pairs.append((process.prediction_parts(p)[part], lambda t, p=p, i=part: numeric.prediction_parts(p, t)[i]))
    for t in (0.003, 0.1, 0.5, 0.93):
        for value, (_, function) in zip(evaluate(name, [e for e, _ in pairs], {TIME: t}), pairs, strict=True):
            assert float(value) == pytest.approx(float(function(t)), rel=1e-13)
        (psi,) = evaluate(name, [process.psi], {TIME: t, symbolic.NEXT: 0.002})
        assert float(psi) == pytest.approx(float(numeric.psi(0.002, t)), rel=1e-13)


def test_generic_clocks_are_the_table_of_process():
    generic, vp = PROCESSES["Generic"], PROCESSES["GenericVP"]
    alpha, sigma = generic.alpha, generic.sigma
    rate = sp.diff(sp.log(sigma / alpha), TIME)  # L of the table
    rho = sigma / alpha
    table = {"eps": rho * rate, "x0": -rate / rho, "v": 1, "score": -sigma * rho * rate}
    for p in PREDICTIONS:
        assert sp.simplify(generic.kappa_rate(p) - table[p]) == 0
        assert sp.simplify(sp.diff(generic.gamma(p), TIME) - generic.flow(p)[0] * generic.gamma(p)) == 0
        assert sp.simplify(sp.diff(vp.kappa(p), TIME) - vp.kappa_rate(p)) == 0
    angle = vp.rho * sp.diff(sp.log(vp.rho), TIME) / (1 + vp.rho**2)
    assert sp.simplify(vp.kappa_rate("v") - angle) == 0
    assert vp.prediction_parts("v") == (-vp.sigma, vp.alpha)
    with pytest.raises(ValueError, match="prediction='score' has no closed"):
        generic.kappa("score")
    with pytest.raises(ValueError, match="prediction='epsilon' is unknown"):
        generic.kappa_rate("epsilon")


def test_probability_flow_becomes_the_two_clocks():
    """The chain rule once more, without the module: x = α x₀ + σ ε moves along the probability flow."""
    t = sp.Symbol("t")
    alpha, sigma, x, eps = (sp.Function(name)(t) for name in ("alpha", "sigma", "x", "eps"))
    f = alpha.diff(t) / alpha
    g_squared = 2 * sigma * sigma.diff(t) - 2 * f * sigma**2
    flow = f * x + g_squared / (2 * sigma) * eps
    along_rho = (x / alpha).diff(t).subs(x.diff(t), flow) / (sigma / alpha).diff(t)
    along_inverse = (x / sigma).diff(t).subs(x.diff(t), flow) / (alpha / sigma).diff(t)
    assert sp.simplify(along_rho - eps) == 0
    assert sp.simplify(along_inverse - (x - sigma * eps) / alpha) == 0
    found = derive("ode-rho").equations[-1].rhs, derive("ode-inv-rho").equations[-1].rhs
    names = {PROCESSES["Generic"].alpha: alpha, PROCESSES["Generic"].sigma: sigma}
    plain = [e.subs(names).subs({sp.Function("epsilon")(TIME): eps, sp.Function("x")(TIME): x}) for e in found]
    assert sp.simplify(plain[0] - eps) == 0
    assert sp.simplify(plain[1] - (x - sigma * eps) / alpha) == 0


# -- weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize(("prediction", "variable"), ON_EVERY)
def test_weights_on_every_process(prediction, variable, degree):
    for name in NUMERIC:
        for nodes, a, b in STEPS:
            check_three_ways(name, prediction, variable, nodes[: degree + 1], a, b)


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize(("prediction", "name"), IN_TIME)
def test_weights_in_time(prediction, name, degree):
    for nodes, a, b in STEPS:
        check_three_ways(name, prediction, "t", nodes[: degree + 1], a, b)


@pytest.mark.parametrize("degree", range(2))
@pytest.mark.parametrize("prediction", ["eps", "x0", "score"])
def test_weights_in_time_on_the_cosine_process_end_at_degree_one(prediction, degree):
    for nodes, a, b in STEPS:
        check_three_ways("VPCosine", prediction, "t", nodes[: degree + 1], a, b)
    with pytest.raises(ValueError, match=r"degree=2.*VPCosine.*no known elementary form; allowed: degree <= 1"):
        closed_form(prediction, "t", 2, "VPCosine")


@pytest.mark.parametrize(("prediction", "name"), list(product(PREDICTIONS, NUMERIC)))
def test_degree_zero_in_time_on_every_process(prediction, name):
    check_three_ways(name, prediction, "t", (0.55,), 0.55, 0.47)


@pytest.mark.parametrize("name", ["VPLinear", "SubVP", "Generic"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_no_elementary_weights_in_time(name, degree):
    with pytest.raises(ValueError, match=rf"degree={degree}.*{name} has no known elementary form.*quadrature_weights"):
        closed_form("eps", "t", degree, name)


def test_non_elementary_statement():
    """The equations of the statement hold in numbers, and the theorem it leans on can be told from its exception."""
    found = derive("weights-eps-t-VPLinear")
    assert "never all elementary" in found.text
    integral, antiderivative = found.equations[-3].rhs, found.equations[-1]
    _, a, b = symbolic.weight_symbols("t", 0)
    process, nodes = NUMERIC["VPLinear"], [0.6, 0.8]
    with mp.workdps(30):
        values = parameters("VPLinear") | {a: mp.mpf(0.6), b: mp.mpf(0.4)}
        numbers = sp.lambdify(tuple(values), integral.subs(PROCESSES["VPLinear"].abbreviations), "mpmath")
        by_parts = float(numbers(*values.values()))
    weights = quadrature_weights(process, "eps", "t", nodes, 0.6, 0.4)
    assert by_parts == pytest.approx(float(weights @ nodes), rel=1e-12)
    constant = VPLinear(2.0, 2.0)  # constant β: elementary at degree 1
    value = sp.lambdify(TIME, antiderivative.rhs.subs(PROCESSES["VPLinear"].parameters["beta_min"], 2))
    rho, _ = scipy.integrate.quad(lambda t: float(constant.rho(t)), 0.2, 0.9, epsabs=0, epsrel=1e-12)
    assert value(0.9) - value(0.2) == pytest.approx(rho, rel=1e-11)


@pytest.mark.parametrize(("prediction", "variable"), ON_EVERY)
def test_weights_integrate_every_polynomial_of_their_degree(prediction, variable):
    """Σ_j w_j φ_j^m = ∫ φ^m dκ, as an identity between symbols."""
    degree = 2
    nodes, a, b = symbolic.weight_symbols(variable, degree)
    weights = closed_form(prediction, variable, degree)
    phi_symbol = sp.Symbol("u", positive=True)
    level = {"rho": phi_symbol, "lam": sp.exp(-phi_symbol), "inv_rho": 1 / phi_symbol}[variable]
    rate = sp.diff(level if prediction == "eps" else 1 / level, phi_symbol)
    for m in range(degree + 1):
        moment = sp.integrate(sp.expand(phi_symbol**m * rate), phi_symbol)
        total = sum(w * node**m for w, node in zip(weights, nodes, strict=True))
        assert sp.simplify(total - moment.subs(phi_symbol, b) + moment.subs(phi_symbol, a)) == 0


def test_dpm_solver_weights_of_degree_one():
    """(eps, lam): the multistep weights in the form of Lu et al. 2022, with h and φ-functions."""
    (now, before), a, b = symbolic.weight_symbols("lam", 1)
    w = closed_form("eps", "lam", 1)
    h = b - a
    second = -sp.exp(-b) * h**2 * symbolic.phi_function(2, h) / (a - before)  # multiplies ε_0 − ε_{−1}
    assert sp.simplify((-w[1] - second).subs(now, a)) == 0
    assert sp.simplify((w[0] + w[1] + sp.exp(-b) * (sp.exp(h) - 1)).subs(now, a)) == 0


def test_weight_errors():
    with pytest.raises(ValueError, match="variable='lambda' is unknown; nearest: lam"):
        closed_form("eps", "lambda", 1)
    with pytest.raises(ValueError, match="prediction='noise' is unknown"):
        closed_form("noise", "rho", 1)
    with pytest.raises(ValueError, match="degree=-1 must be an integer >= 0"):
        closed_form("eps", "rho", -1)
    with pytest.raises(ValueError, match="process=None"):
        closed_form("eps", "t", 1)
    with pytest.raises(ValueError, match=r"process='VPLin' is unknown; nearest: VPLinear"):
        closed_form("eps", "t", 1, "VPLin")
    with pytest.raises(ValueError, match=r"prediction='v', variable='rho' has no closed form here; allowed"):
        closed_form("v", "rho", 1)


# -- identities -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NUMERIC)
def test_ddim_is_degree_zero(name):
    """The printed update, in numbers, against the weights and against √ᾱ_s x̂₀ + √(1−ᾱ_s) ε."""
    process, t, s, x, eps = NUMERIC[name], 0.7, 0.45, 1.3, -0.4
    symbols = sp.symbols("alpha_t alpha_s sigma_t sigma_s", positive=True) + sp.symbols("x_t epsilon h")
    alpha, sigma = ((float(scale(t)), float(scale(s))) for scale in (process.alpha, process.sigma))
    h = float(process.lam(s) - process.lam(t))
    ddim = alpha[1] * (x - sigma[0] * eps) / alpha[0] + sigma[1] * eps
    equations = derive("ddim").equations
    assert len(equations) == 3
    for equation in equations:
        value = sp.lambdify(symbols, equation.rhs)(*alpha, *sigma, x, eps, h)
        assert value == pytest.approx(ddim, rel=1e-13)
    x0 = (x - sigma[0] * eps) / alpha[0]
    for prediction, value in (("eps", eps), ("x0", x0)):
        for variable in ("t", "rho", "lam"):
            (w,) = quadrature_weights(process, prediction, variable, [t], t, s)
            gamma = process.gamma(prediction, t), process.gamma(prediction, s)
            assert gamma[1] / gamma[0] * x + gamma[1] * w * value == pytest.approx(ddim, rel=1e-12)


@pytest.mark.parametrize("name", NUMERIC)
def test_frozen_score_closed_form(name):
    """α_s(κ_s − κ_t) = −½∫Ψ(s, τ) g²_τ dτ (DEIS eq. 8); on variance-preserving processes it is Ψ − 1 > 0."""
    process, t, s = NUMERIC[name], 0.7, 0.45

    def integrand(tau):
        return -0.5 * float(process.psi(s, tau) * process.diffusion_squared(tau))

    bracket, _ = scipy.integrate.quad(integrand, t, s, epsabs=0, epsrel=1e-12)
    kappa_t, kappa_s = (evaluate(name, [PROCESSES[name].kappa("score")], {TIME: u})[0] for u in (t, s))
    assert float(process.alpha(s)) * float(kappa_s - kappa_t) == pytest.approx(bracket, rel=1e-11)
    (w,) = quadrature_weights(process, "score", "t", [t], t, s)
    assert process.alpha(s) * w == pytest.approx(bracket, rel=1e-11)
    general, vp, *clocks = derive("frozen-score").equations
    psi, x, score = sp.Function("Psi")(symbolic.NEXT, TIME), sp.Symbol("x_t"), sp.Symbol("s_theta")
    assert sp.expand(vp.rhs - psi * x - (psi - 1) * score) == 0
    assert general.rhs.coeff(score).has(sp.Function("kappa_score"))
    assert [str(c.lhs.func) for c in clocks] == ["kappa_SubVP", "kappa_VE", "kappa_EDM", "kappa_RectifiedFlow"]
    if process.variance_preserving:
        assert float(process.psi(s, t)) - 1 == pytest.approx(bracket, rel=1e-11)
        assert bracket > 0


@pytest.mark.parametrize("k", range(5))
def test_phi_functions(k):
    z, u = sp.Symbol("z"), sp.Symbol("u", positive=True)
    closed = symbolic.phi_function(k, z)
    assert sp.limit(closed, z, 0) == sp.Rational(1, factorial(k))
    if k:
        definition = sp.integrate(sp.exp((1 - u) * 2) * u ** (k - 1) / factorial(k - 1), (u, 0, 1))
        assert sp.simplify(closed.subs(z, 2) - definition) == 0
        recurrence = (symbolic.phi_function(k - 1, z) - sp.Rational(1, factorial(k - 1))) / z
        assert sp.simplify(closed - recurrence) == 0
    for h in (-7.0, -0.3, 1e-3, 0.5, 2.0):
        assert float(closed.subs(z, sp.Rational(h)).evalf(30)) == pytest.approx(float(phi(k, h)), rel=1e-13)


def test_adams_bashforth():
    classical = {1: "1", 2: "3/2 -1/2", 3: "23/12 -16/12 5/12", 4: "55/24 -59/24 37/24 -9/24"}
    for steps, numbers in classical.items():
        found = symbolic.adams_bashforth(steps)
        assert found == [sp.Rational(number) for number in numbers.split()]
        nodes = 10 + 0.25 * np.arange(steps)  # on EDM ρ = t, and sampling steps go down
        weights = quadrature_weights(NUMERIC["EDM"], "eps", "rho", nodes, 10.0, 9.75)
        assert np.max(np.abs(weights / -0.25 - np.array(found, dtype=float))) < 1e-13
    assert sum(symbolic.adams_bashforth(6)) == 1
    with pytest.raises(ValueError, match="steps=0"):
        symbolic.adams_bashforth(0)


# -- order conditions -----------------------------------------------------------------------------
def q(text):
    return [Fraction(x) for x in text.split()]


TABLEAUX = {  # name: (order, rows of a, b, c); facts of DEIS's code and of Hairer, Nørsett & Wanner II.1
    "Euler": (1, [""], "1", "0"),
    "midpoint": (2, ["", "1/2"], "0 1", "0 1/2"),
    "Heun": (2, ["", "1"], "1/2 1/2", "0 1"),
    "Kutta3": (3, ["", "1/2", "-1 2"], "1/6 4/6 1/6", "0 1/2 1"),
    "Heun3": (3, ["", "1/3", "0 2/3"], "1/4 0 3/4", "0 1/3 2/3"),
    "Ralston3": (3, ["", "1/2", "0 3/4"], "2/9 1/3 4/9", "0 1/2 3/4"),
    "VdH3": (3, ["", "8/15", "1/4 5/12"], "1/4 0 3/4", "0 8/15 2/3"),
    "SSPRK3": (3, ["", "1", "1/4 1/4"], "1/6 1/6 2/3", "0 1 1/2"),
    "RK4": (4, ["", "1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/6", "0 1/2 1/2 1"),
    "3/8 rule": (4, ["", "1/3", "-1/3 1", "1 -1 1"], "1/8 3/8 3/8 1/8", "0 1/3 2/3 1"),
    "RK4, one weight wrong": (0, ["", "1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/3", "0 1/2 1/2 1"),
    "RK4, weights swapped": (1, ["", "1/2", "0 1/2", "0 0 1"], "1/3 1/6 1/3 1/6", "0 1/2 1/2 1"),
    "RK4, inner weights moved": (2, ["", "1/2", "0 1/2", "0 0 1"], "1/6 2/3 0 1/6", "0 1/2 1/2 1"),
    "Heun, times wrong": (1, ["", "1"], "1/2 1/2", "0 1/2"),
    "Heun, matrix wrong": (1, ["", "1/2"], "1/2 1/2", "0 1"),
    "inconsistent": (0, [""], "1/2", "0"),
}


@pytest.mark.parametrize("name", TABLEAUX)
def test_butcher_order(name):
    order, a, b, c = TABLEAUX[name]
    assert butcher_order([q(row) for row in a], q(b), q(c)) == order


@pytest.mark.parametrize(("method", "order"), [("RK23", 3), ("RK45", 5)])
def test_butcher_order_of_scipy(method, order):
    """Bogacki–Shampine and Dormand–Prince, read from scipy and made rational."""
    solver = getattr(scipy.integrate, method)
    tables = [np.atleast_2d(table) for table in (solver.A, solver.B, solver.C)]
    a, b, c = ([[Fraction(x).limit_denominator(100000) for x in row] for row in table] for table in tables)
    assert butcher_order(a, b[0], c[0]) == order


fractions = st.fractions(min_value=-2, max_value=2, max_denominator=12)


@given(fractions.filter(bool), fractions.filter(bool), fractions)
def test_two_stage_orders_are_known_by_hand(c2, b2, shift):
    """Order 2 iff b₁ + b₂ = 1 and b₂c₂ = b₂a₂₁ = ½; never 3."""
    assert butcher_order([[], [c2]], [1 - 1 / (2 * c2), 1 / (2 * c2)], [0, c2]) == 2
    expected = 2 if b2 * c2 == Fraction(1, 2) and shift == 0 else 1
    assert butcher_order([[], [c2 + shift]], [1 - b2, b2], [0, c2]) == expected


@given(fractions, fractions)
def test_three_stage_family_has_order_three(c2, c3):
    """Kutta's two-parameter family of order 3. [Hairer, Nørsett & Wanner, exercise II.1.4]"""
    if 0 in (c2, c3, c2 - c3) or c2 == Fraction(2, 3):
        return
    b2 = (Fraction(1, 3) - c3 / 2) / (c2 * (c2 - c3))
    b3 = (Fraction(1, 3) - c2 / 2) / (c3 * (c3 - c2))
    a32 = Fraction(1, 6) / (b3 * c2)
    assert butcher_order([[], [c2], [c3 - a32, a32]], [1 - b2 - b3, b2, b3], [0, c2, c3]) == 3


def sides(condition, a, b, c):
    """Both sides of a printed condition, for a tableau of numbers."""
    (s,) = (symbol for symbol in condition.free_symbols if symbol.name == "s")
    bases = {str(base): values for base, values in zip("abc", (a, b, c), strict=True)}
    total = condition.lhs.subs(s, len(b)).doit()
    entries = {e: bases[str(e.base)][tuple(int(i) - 1 for i in e.indices)] for e in total.atoms(sp.Indexed)}
    return total.xreplace(entries), condition.rhs


def test_order_conditions_hold_for_gauss_and_stop_there():
    """An authority without trees: Gauss–Legendre collocation with 2 and 3 nodes has order exactly 4 and 6."""
    for stages in (2, 3):
        nodes = sp.Poly(sp.legendre(stages, 2 * TIME - 1), TIME).nroots(n=30)
        basis = [sp.interpolate([(x, int(i == j)) for i, x in enumerate(nodes)], TIME) for j in range(stages)]
        integral = [sp.integrate(e, TIME) for e in basis]
        a = np.array([[e.subs(TIME, x) for e in integral] for x in nodes])
        b, c = np.array([e.subs(TIME, 1) for e in integral]), np.array(nodes)
        for order in range(1, 6):
            errors = [abs(left - right) for left, right in (sides(e, a, b, c) for _, e in order_conditions(order))]
            assert max(errors) > 1e-4 if order > 2 * stages else max(errors) < 1e-25


def test_order_conditions_counted_and_by_name():
    assert [len(order_conditions(order)) for order in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    assert [sorted(str(e.rhs) for _, e in order_conditions(order)) for order in (3, 4)] == [
        ["1/3", "1/6"],
        ["1/12", "1/24", "1/4", "1/8"],
    ]
    a = np.array([[0, 0, 0, 0], [sp.S.Half, 0, 0, 0], [0, sp.S.Half, 0, 0], [0, 0, 1, 0]])
    b, c = np.array([sp.Rational(x) for x in ("1/6", "1/3", "1/3", "1/6")]), a.sum(axis=1)
    for order in range(1, 5):
        assert all(left == right for left, right in (sides(e, a, b, c) for _, e in order_conditions(order)))
    assert any(left != right for left, right in (sides(e, a, b, c) for _, e in order_conditions(5)))
    with pytest.raises(ValueError, match="order=0"):
        order_conditions(0)


def test_butcher_order_errors():
    with pytest.raises(ValueError, match=r"b holds 0.5; allowed: int, Fraction or sympy Rational"):
        butcher_order([[], [1]], [0.5, 0.5], [0, 1])
    with pytest.raises(ValueError, match=r"a\[0\]=.* must be strictly lower triangular"):
        butcher_order([[sp.S.Half]], [1], [sp.S.Half])
    with pytest.raises(ValueError, match="a, b, c have 1, 2, 2 rows"):
        butcher_order([[]], [1, 0], [0, 1])
    with pytest.raises(ValueError, match="a, b, c have 0, 0, 0 rows"):
        butcher_order([], [], [])


# -- printing -------------------------------------------------------------------------------------
REQUIRED = {"clocks", "ode-rho", "ode-inv-rho", "weights-eps-rho", "weights-eps-lam", "weights-x0-lam"}
REQUIRED |= {"weights-x0-inv-rho", "weights-eps-t-VE", "weights-eps-t-EDM", "weights-eps-t-RectifiedFlow"}
REQUIRED |= {"weights-eps-t-VPLinear", "phi-functions", "ddim", "frozen-score", "adams-bashforth", "order-conditions"}


def test_required_derivations_exist():
    assert set(DERIVATIONS) >= REQUIRED | {f"process-{name}" for name in NUMERIC}
    with pytest.raises(ValueError, match="name='weights-eps-lamb' is unknown; nearest: weights-eps-lam"):
        derive("weights-eps-lamb")


@pytest.mark.parametrize("name", DERIVATIONS)
def test_derivations_print(name):
    found = derive(name)
    assert found.name == name
    assert found.title.isascii()
    assert "Source" in found.text
    latex, plain = found.latex(), str(found)
    assert plain.startswith(f"{name}: {found.title}\n\n")
    assert found.text.split() == plain.split("\n\n", 2)[1].split()
    assert len(plain.split("\n\n", 2)[2]) > 10
    rows = latex.split("\n")
    assert rows[0] == r"\begin{aligned}"
    assert rows[-1] == r"\end{aligned}"
    assert len(rows) == len(found.equations) + 3
    assert rows[1] == rf"&\text{{{found.title}}} \\"
    assert all(row.count("&=") == 1 for row in rows[2:-1])
    depth = np.cumsum([{"{": 1, "}": -1}.get(c, 0) for c in latex.replace(r"\{", "").replace(r"\}", "")])
    assert depth.min() >= 0
    assert depth[-1] == 0
    assert latex.count(r"\left") == latex.count(r"\right")
    assert all(isinstance(e, sp.Eq) and e.lhs != e.rhs for e in found.equations)


def test_verification_refuses_a_wrong_identity():
    x = sp.Symbol("x", positive=True)
    with pytest.raises(ArithmeticError, match="does not hold"):
        equations.verify(sp.diff(sp.exp(-x), x), sp.exp(-x))
    assert equations.verify(sp.sin(x) ** 2, 1 - sp.cos(x) ** 2) == sp.Eq(sp.sin(x) ** 2, 1 - sp.cos(x) ** 2)
