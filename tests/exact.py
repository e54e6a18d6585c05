"""The processes again, from their definitions in mpmath: an authority that shares no formula with the package."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import pairwise

import mpmath as mp
import numpy as np
from mpmath.calculus.quadrature import GaussLegendre

import deis_analysis as da

DIGITS = 50


def discrete_levels(every: int = 1) -> np.ndarray:
    """ᾱ of the 1,000-level DDPM schedule, each ``every``-th level."""
    return np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))[::every]


# name -> (process, a t at which ρ = 0 or the smallest, mpmath α(t), σ(t))
def _linear(t):
    return mp.exp(-(mp.mpf("0.1") * t / 2 + (20 - mp.mpf("0.1")) * t * t / 4))


def _sub(t):
    return 1 - _linear(t) ** 2


def _vp(t):
    return mp.sqrt(1 - _linear(t) ** 2)


def _cos(t):
    s = mp.mpf(0.008)
    return mp.cos((t + s) / (1 + s) * mp.pi / 2) / mp.cos(s / (1 + s) * mp.pi / 2)


def _cos_sigma(t):
    return mp.sqrt(1 - _cos(t) ** 2)


LEVELS = discrete_levels(50)


@cache
def _log_rho_of_level(i, digits):
    a = mp.mpf(float(LEVELS[i]))
    return mp.log((1 - a) / a) / 2


def _discrete_rho(t):
    i = min(int(mp.floor(t)), LEVELS.size - 2)
    low, high = (_log_rho_of_level(k, mp.mp.dps) for k in (i, i + 1))
    return mp.exp(low + (t - i) * (high - low))


def _discrete_alpha(t):
    return 1 / mp.sqrt(1 + _discrete_rho(t) ** 2)


def _discrete_sigma(t):
    return _discrete_rho(t) * _discrete_alpha(t)


def _one(t):
    return mp.mpf(1)


def _ve(t):
    return mp.mpf(0.01) * (mp.mpf(50) / mp.mpf(0.01)) ** t


PROCESSES = {
    "VPLinear": (da.VPLinear(0.1, 20.0), _linear, _vp),
    "VPCosine": (da.VPCosine(), _cos, _cos_sigma),
    "VPDiscrete": (da.VPDiscrete(LEVELS), _discrete_alpha, _discrete_sigma),
    "SubVP": (da.SubVP(0.1, 20.0), _linear, _sub),
    "VE": (da.VE(0.01, 50.0), _one, _ve),
    "EDM": (da.EDM(0.002, 80.0), _one, lambda t: t),
    "RectifiedFlow": (da.RectifiedFlow(), lambda t: 1 - t, lambda t: t),
}


VANISHING = ("RectifiedFlow", "VPCosine")  # α = 0 at t = 1


def v_clock(name, t):
    """The clock of v: the angle on variance-preserving processes, t elsewhere."""
    process, alpha, sigma = PROCESSES[name]
    return mp.atan(sigma(t) / alpha(t)) if process.variance_preserving else t


def kappa_rate(name, prediction, t):
    """dκ/dt by differentiating definitions: of ρ, 1/ρ and the v-clock, and −g²/(2α) for the score."""
    _, alpha, sigma = PROCESSES[name]
    if prediction == "score":
        return -diffusion_squared(name, t) / (2 * alpha(t))
    clock = {"eps": lambda u: sigma(u) / alpha(u), "x0": lambda u: alpha(u) / sigma(u), "v": lambda u: v_clock(name, u)}
    return derivative(name, clock[prediction], t)


def variable(name, key, t):
    _, alpha, sigma = PROCESSES[name]
    clock = {
        "t": lambda: t,
        "rho": lambda: sigma(t) / alpha(t),
        "lam": lambda: mp.log(alpha(t) / sigma(t)),
        "inv_rho": lambda: alpha(t) / sigma(t),
    }
    return clock[key]()


def room(name, t):
    """The distance to the nearest time at which a function of the process is singular: 0, or 1 where α vanishes."""
    return min(abs(t), abs(1 - t)) if name in VANISHING else abs(t)


def derivative(name, f, t):
    """A central difference at 1e-20 of the room in 50 digits: 1e-28 accurate; it stays off the kinks of VPDiscrete."""
    step = mp.mpf(10) ** -20 * max(room(name, t), mp.mpf(10) ** -16)
    return (f(t + step) - f(t - step)) / (2 * step)


def drift(name, t):
    _, alpha, _ = PROCESSES[name]
    return derivative(name, lambda u: mp.log(alpha(u)), t)


def diffusion_squared(name, t):
    """g² = dσ²/dt − 2 f σ²."""
    _, _, sigma = PROCESSES[name]
    return derivative(name, lambda u: sigma(u) ** 2, t) - 2 * drift(name, t) * sigma(t) ** 2


@cache
def _gauss(digits):
    rule = GaussLegendre(mp.mp)
    return rule.get_nodes(-1, 1, 4, int(digits * 3.33))  # 24 points


def _edges(name, a, b):
    """Split [a, b] at the kinks, and so that no panel is longer than its distance from 0 or from 1 (flow, cosine)."""
    low, high = min(a, b), max(a, b)
    cuts = {low, high}
    stack = [(low, high)]
    while stack:
        x, y = stack.pop()
        if y - x > max(min(room(name, x), room(name, y)), mp.mpf(10) ** -16):
            middle = mp.sqrt(x * y) if x > 0 and y / x > 4 else (x + y) / 2
            cuts.add(middle)
            stack += [(x, middle), (middle, y)]
    if name == "VPLinear" or name == "SubVP" or name == "VE":
        cuts |= {low + (high - low) * k / 12 for k in range(13)}
    if name == "VPDiscrete":
        cuts |= {mp.mpf(k) for k in range(1, LEVELS.size - 1) if low < k < high}
    return sorted(cuts, reverse=b < a)


@lru_cache(maxsize=8)
def _nodes(name, a, b):
    """Quadrature nodes and weights of [a, b] at 50 digits; a and b are mpmath numbers."""
    nodes = []
    for lo, hi in pairwise(_edges(name, a, b)):
        half, centre = (hi - lo) / 2, (hi + lo) / 2
        nodes += [(centre + half * x, half * w) for x, w in _gauss(DIGITS)]
    return nodes


@lru_cache(maxsize=8)
def _measure(name, prediction, a, b):
    return [w * kappa_rate(name, prediction, tau) for tau, w in _nodes(name, a, b)]


@lru_cache(maxsize=8)
def _basis(name, key, times, a, b):
    """ℓ_j at the quadrature nodes, one list per j, from differences of φ; the two kinds of nodes never meet."""
    at = [variable(name, key, x) for x in times]
    scale = [mp.fprod(at[j] - x for x in at if x != at[j]) for j in range(len(at))]
    basis = [[] for _ in at]
    for tau, _ in _nodes(name, a, b):
        value = variable(name, key, tau)
        gaps = [value - x for x in at]
        product = mp.fprod(gaps)
        for j, gap in enumerate(gaps):
            basis[j].append(product / (gap * scale[j]))
    return basis


def weights(name, prediction, key, nodes, a, b):
    """∫ ℓ_j(φ) dκ from a to b at 50 digits."""
    with mp.workdps(DIGITS):
        a, b, times = mp.mpf(float(a)), mp.mpf(float(b)), tuple(mp.mpf(float(x)) for x in nodes)
        measure = _measure(name, prediction, a, b)
        return np.array([float(mp.fdot(measure, basis)) for basis in _basis(name, key, times, a, b)])
