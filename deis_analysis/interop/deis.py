r"""The interface of the DEIS authors' released package (``th_deis`` for torch, ``jax_deis`` for JAX), on our tables.

A script written for it runs after a change of its import line::

    from deis_analysis.interop import deis  # was: import th_deis as deis, or import jax_deis as deis

Noise may be a NumPy, torch or JAX array of any floating dtype, on any device; neither torch nor JAX is needed to import
this module.  What differs from the released package:

* Argument names and their order are kept, so "alpha" in them is ᾱ, the square of the α of this package.
* Weights are exact to rounding.  The released ones are left Riemann sums of 10,000 points in float32: at 10 steps they
  differ from these by about 1e-4 of the largest weight (``"t_ab"``; 1e-5 for ``"rho_ab"``), and by more in the first
  step where ᾱ(T) nearly vanishes: up to 0.1 for the cosine from T = 0.9946.
* Grids are float64 with exact ends; in float32 an integer grid may start at T − 1.
* Both variants' discrete grids are here, see `DiscreteVPSDE`; unless told otherwise, they hold integers. The time that
  a model is told is another matter: ``"t_ab"`` and ``"ipndm"`` tell the grid's times, int32 where it is of integers;
  ``"rho_ab"`` and ``"rho_rk"`` tell t(ρ), a float, as there, but exactly: 749.0, not within 1e-3 of it.
* Bad input raises ValueError.

Source: Zhang & Chen 2023 (arXiv 2204.13902), and the usage notes of the package at github.com/qsh-zh/deis, v1.0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deis_analysis.backend import is_torch
from deis_analysis.interop import alpha_functions as functions
from deis_analysis.process.process import Array
from deis_analysis.solvers import RUNGE_KUTTA, adams, ipndm, runge_kutta
from deis_analysis.tableau import Tableau, run
from deis_analysis.validate import choose, positive_int, scalar

__all__ = [
    "VPSDE",
    "DiscreteVPSDE",
    "Sampler",
    "get_ab_eps_coef",
    "get_cos_alpha_fns",
    "get_linear_alpha_fns",
    "get_rev_ts",
    "get_sampler",
    "get_sampler_ipndm",
    "get_sampler_rho_ab",
    "get_sampler_rho_rk",
    "get_sampler_t_ab",
]

_METHODS = ("t_ab", "rho_ab", "rho_rk", "ipndm")
_PHASES = ("t", "rho", "log")
_RK = {name: name for name in ("1euler", "2heun", "3kutta", "3heun", "3vdh", "3ssprk", "4rk")} | {"3ral": "3ralston"}
_FIRST_TIME = 0.1  # of an integer grid, before it is rounded down


# -- processes ------------------------------------------------------------------------------------
def get_linear_alpha_fns(beta_0: Any, beta_1: Any) -> tuple[functions.AlphaFunction, functions.AlphaFunction]:
    """(t2alpha_fn, alpha2t_fn) of linear β: ᾱ(t) = exp(−β₀t − ½(β₁−β₀)t²), elementwise on arrays of any library.

    Raises:
        ValueError: a β that is negative or not finite, or both zero.

    Source: Song et al. 2021, eq. 32.
    """
    betas = functions.linear_betas(beta_0, beta_1)
    return functions.LinearAlpha(*betas), functions.LinearTime(*betas)


def get_cos_alpha_fns() -> tuple[functions.AlphaFunction, functions.AlphaFunction]:
    """(t2alpha_fn, alpha2t_fn) of ᾱ(t) = cos²(π/2 · (t + 0.008)/1.008), which is not normalised: ᾱ(0) < 1.

    Source: Nichol & Dhariwal 2021, eq. 17, without the division by its value at 0.
    """
    return functions.CosineAlpha(), functions.CosineTime()


class VPSDE:
    """A variance-preserving process from ᾱ(t), with the range of times to sample on.

    Args:
        t2alpha_fn: t → ᾱ, decreasing, elementwise. alpha2t_fn: its inverse. Functions of NumPy, torch, JAX or floats;
            they are called with float64 arrays, or with what they accept. For the pairs of `get_linear_alpha_fns` and
            `get_cos_alpha_fns` everything is in closed form; of others the rate is differentiated numerically.
        sampling_eps, sampling_T: last and first time of sampling.

    Attributes:
        process: the `Process` that solvers use; its α is √ᾱ.

    Raises:
        ValueError: times that do not descend from T to eps or where ᾱ leaves (0, 1), or an inverse that is none.
    """

    is_continuous = True

    def __init__(
        self,
        t2alpha_fn: functions.AlphaFunction,
        alpha2t_fn: functions.AlphaFunction,
        sampling_eps: Any,
        sampling_T: Any,
    ) -> None:
        for name, fn in (("t2alpha_fn", t2alpha_fn), ("alpha2t_fn", alpha2t_fn)):
            if not callable(fn):
                raise ValueError(f"{name}={fn!r} must be callable")
        self.sampling_eps, self.sampling_T = scalar("sampling_eps", sampling_eps), scalar("sampling_T", sampling_T)
        if not 0 <= self.sampling_eps < self.sampling_T < float("inf"):
            raise ValueError(
                f"sampling_eps={self.sampling_eps!r}, sampling_T={self.sampling_T!r}; "
                "allowed: 0 <= sampling_eps < sampling_T < inf"
            )
        self.t2alpha_fn, self.alpha2t_fn = t2alpha_fn, alpha2t_fn
        self.process = functions.process_of(t2alpha_fn, alpha2t_fn, self.sampling_eps, self.sampling_T)
        if not np.isfinite(self.process.rho(self.process._check_scalar(self.sampling_T, "sampling_T"))):
            raise ValueError(f"sampling_T={self.sampling_T!r}: ᾱ vanishes there; allowed: earlier times")

    def t2rho(self, t: Any) -> Array:
        """ρ = √((1 − ᾱ)/ᾱ), shape of ``t``."""
        return self.process.rho(t)

    def rho2t(self, rho: Any) -> Array:
        """The time of ``rho``, of its shape."""
        return self.process.time_from_rho(rho)

    def psi(self, t_start: Any, t_end: Any) -> Array:
        """√(ᾱ(t_end)/ᾱ(t_start)): the transition of the linear part."""
        return self.process.psi(t_end, t_start)

    def x2v(self, x: Any, t: Any) -> Any:
        """v = x/√ᾱ(t), t one time."""
        return x / float(self.process.alpha(t))

    def v2x(self, v: Any, t: Any) -> Any:
        """x = √ᾱ(t) v, t one time."""
        return v * float(self.process.alpha(t))


class DiscreteVPSDE(VPSDE):
    """The process of a model trained at the integer times 0 … n−1: ᾱ there, linear in between, in [1e-7, 1 − 1e-7].

    Of a last ᾱ of 0 (zero terminal SNR) the level is 1e-7 from where ᾱ falls to it, t = 998.49 for the rescaled
    schedule of Stable Diffusion, up to t = 999. There ``"rho_ab"`` and ``"rho_rk"`` tell the model 998.49, the limit of
    t(ρ), as the released package does: the time at which a model of the unclipped ᾱ expects that level. Told 999, where
    it expects none of the data, such a model misses the exact flow of a Gaussian by 5 times as much with 20 steps of
    ``"rho_ab"`` and by 100 times with ``"rho_rk"``. ``"t_ab"`` and ``"ipndm"`` interpolate in t and tell it 999, here
    and there.

    Args:
        discrete_alpha: (n,) ᾱ, strictly decreasing, inside [0, 1]; any array.
        integer_times: whether grids hold integers only, as in ``jax_deis``: the grid that ends at 0.1 is rounded down,
            double times are dropped, and the smallest missing integers added. False gives the grid of ``th_deis``,
            which ends at 0 and is rounded only where two of its times round to the same integer. Runge–Kutta stages
            lie between the grid's times in either case.

    Raises:
        ValueError: another shape, values outside [0, 1], or not decreasing.
    """

    is_continuous = False

    def __init__(self, discrete_alpha: Any, *, integer_times: bool = True) -> None:
        process = functions.PiecewiseLinearAlpha(discrete_alpha)
        self.sampling_eps, self.sampling_T = process.t_min, process.t_max
        self.process, self.integer_times = process, bool(integer_times)
        self.t2alpha_fn = lambda t: process.alpha(t) ** 2
        self.alpha2t_fn = lambda alpha: process.time_from_rho(np.sqrt(1.0 / np.asarray(alpha, np.float64) - 1.0))


# -- grids ----------------------------------------------------------------------------------------
def get_rev_ts(sde: VPSDE, num_step: int, ts_order: float, ts_phase: str = "t") -> Array:
    """The descending grid of ``num_step`` + 1 times, float64, or integers for a `DiscreteVPSDE`.

    Args:
        ts_phase: ``"t"``, power ``ts_order`` in t; ``"rho"``, power ``ts_order`` in ρ; ``"log"``, uniform in log ρ.

    Raises:
        ValueError: unknown phase, ``ts_order`` not positive where it is used, more steps than there are integer times.

    Source: Zhang & Chen 2023, app. H.3.
    """
    process, steps = _checked(sde).process, positive_int("num_step", num_step)
    start, end = sde.sampling_T, sde.sampling_eps
    if isinstance(sde, DiscreteVPSDE) and sde.integer_times:
        end = _FIRST_TIME
    first, last = float(process.rho(start)), float(process.rho(end))
    if choose("ts_phase", ts_phase, _PHASES) == "t":
        times = _powers(start, end, steps, ts_order)
    elif ts_phase == "rho":
        times = process.time_from_rho(np.clip(_powers(first, last, steps, ts_order), last, first))
    else:
        if last == 0:
            raise ValueError(f"ts_phase='log': ρ is 0 at sampling_eps={end!r}; allowed: a later end, or another phase")
        times = process.time_from_lam(np.linspace(-np.log(first), -np.log(last), steps + 1))
    times[0], times[-1] = start, end
    return _whole(times, sde.integer_times) if isinstance(sde, DiscreteVPSDE) else times


def _powers(start: float, end: float, steps: int, order: Any) -> Array:
    """(steps + 1,) values from ``start`` to ``end`` whose ``order``-th roots are equidistant."""
    power = scalar("ts_order", order)
    if not 0.01 <= power <= 1000:
        raise ValueError(f"ts_order={order!r} must be a number in [0.01, 1000]")
    return np.array(np.linspace(start ** (1.0 / power), end ** (1.0 / power), steps + 1) ** power)


def _whole(times: Array, integers: bool) -> Array:
    """``times`` rounded down and filled up from below to their old number; kept if not ``integers`` and distinct."""
    whole = np.unique(np.floor(times * (1.0 + 1e-12)).astype(int))
    missing = times.size - whole.size
    if not (integers or missing):
        return times
    unused = np.setdiff1d(np.arange(1, whole[-1] + 1), whole)
    if unused.size < missing:
        raise ValueError(f"num_step={times.size - 1} must be at most {int(times[0])}, one per integer time")
    return np.sort(np.concatenate([whole, unused[:missing]]))[::-1]


# -- samplers -------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Sampler:
    """What `get_sampler` returns: call it with noise.

    Attributes:
        table: the `Tableau` that it runs, to be studied like any other.
        eps_fn: ε(x, t).
        integer_times: whether ``eps_fn`` is told int32 times.
    """

    table: Tableau = field(repr=False)
    eps_fn: Callable[[Any, Any], Any]
    integer_times: bool = False

    def __call__(self, noise: Any) -> Any:
        """The sample that belongs to ``noise``, x at sampling_T: same library, shape, dtype and device."""
        return run(self.table, lambda x, t: self.eps_fn(x, _told(t, x, self.integer_times)), noise)


def _told(t: float, x: Any, integer: bool) -> Any:
    """``t`` as a scalar of the library and device of ``x``: int32, or float32 (float64 where x is)."""
    kind = "int32" if integer else "float64" if "float64" in str(x.dtype) else "float32"
    if is_torch(x):
        torch = sys.modules["torch"]
        return torch.tensor(t, dtype=getattr(torch, kind), device=x.device)
    if isinstance(x, (np.ndarray, np.generic)):
        return np.dtype(kind).type(t)
    return sys.modules["jax"].numpy.asarray(t, dtype=kind)


def get_sampler(
    sde: VPSDE,
    eps_fn: Callable[[Any, Any], Any],
    ts_phase: str,
    ts_order: float,
    num_step: int,
    method: str = "rho_rk",
    ab_order: int = 3,
    rk_method: str = "3kutta",
) -> Sampler:
    """A function that maps noise at ``sampling_T`` to a sample at ``sampling_eps``; its table is built here, once.

    Args:
        sde: a `VPSDE` or `DiscreteVPSDE`.
        eps_fn: ``eps_fn(x, t)`` → ε of the shape of x; t is a scalar of x's library on its device, float32 unless x is
            float64, int32 where the grid is of integers and the method is ``"t_ab"`` or ``"ipndm"``.
        ts_phase, ts_order, num_step: the grid, see `get_rev_ts`.
        method: ``"t_ab"``, ``"rho_ab"``, ``"rho_rk"`` or ``"ipndm"``, in any case; ``"ipndm"`` has its own grid,
            uniform in t, and ignores ``ts_phase`` and ``ts_order``.
        ab_order: past values that the two ``"ab"`` methods use beside the present one: the degree of the interpolant.
        rk_method: ``"1euler"``, ``"2heun"``, ``"3kutta"``, ``"3heun"``, ``"3ral"``, ``"3vdh"``, ``"3ssprk"`` or
            ``"4rk"``, used by ``"rho_rk"``.

    Raises:
        ValueError: names the argument, its value and what is allowed; arguments that the method ignores are not looked
            at.

    Source: Zhang & Chen 2023, eq. 14–15 and sec. 3.3; each solver names its equation.
    """
    match choose("method", method.lower() if isinstance(method, str) else method, _METHODS):
        case "t_ab":
            return get_sampler_t_ab(sde, eps_fn, ts_phase, ts_order, num_step, ab_order)
        case "rho_ab":
            return get_sampler_rho_ab(sde, eps_fn, ts_phase, ts_order, num_step, ab_order)
        case "rho_rk":
            return get_sampler_rho_rk(sde, eps_fn, ts_phase, ts_order, num_step, rk_method)
        case _:
            return get_sampler_ipndm(sde, eps_fn, num_step)


def get_sampler_t_ab(
    sde: VPSDE, eps_fn: Callable[[Any, Any], Any], ts_phase: str, ts_order: float, num_step: int, ab_order: int
) -> Sampler:
    """tAB-DEIS, see `get_sampler`. [Zhang & Chen 2023, eq. 14–15]"""
    ts, degree = get_rev_ts(sde, num_step, ts_order, ts_phase), positive_int("ab_order", ab_order, minimum=0)
    return _sampler(adams(sde.process, ts, degree, variable="t", name=f"t_ab{degree}"), eps_fn, ts)


def get_sampler_rho_ab(
    sde: VPSDE, eps_fn: Callable[[Any, Any], Any], ts_phase: str, ts_order: float, num_step: int, ab_order: int
) -> Sampler:
    """ρAB-DEIS, see `get_sampler`. [Zhang & Chen 2023, sec. 3.3]"""
    ts, degree = _times_of_rho(sde, num_step, ts_order, ts_phase), positive_int("ab_order", ab_order, minimum=0)
    return _sampler(adams(sde.process, ts, degree, variable="rho", name=f"rho_ab{degree}"), eps_fn)


def get_sampler_rho_rk(
    sde: VPSDE, eps_fn: Callable[[Any, Any], Any], ts_phase: str, ts_order: float, num_step: int, rk_method: str
) -> Sampler:
    """ρRK-DEIS, see `get_sampler`. [Zhang & Chen 2023, prop. 3 and sec. 3.3]"""
    ts = _times_of_rho(sde, num_step, ts_order, ts_phase)
    method = RUNGE_KUTTA[_RK[choose("rk_method", rk_method, _RK)]]
    return _sampler(runge_kutta(sde.process, ts, method, variable="rho", name=f"rho_rk_{rk_method}"), eps_fn)


def get_sampler_ipndm(sde: VPSDE, eps_fn: Callable[[Any, Any], Any], num_step: int) -> Sampler:
    """iPNDM on the grid uniform in t, see `get_sampler`. [Liu et al. 2022, eq. 12; Zhang & Chen 2023, app. H.2]"""
    ts = get_rev_ts(sde, num_step, 1)
    return _sampler(ipndm(sde.process, ts), eps_fn, ts)


def _times_of_rho(sde: VPSDE, num_step: int, ts_order: float, ts_phase: str) -> Array:
    """The grid as t(ρ): a level that clipping gives to many times belongs to the one at which ᾱ itself reaches it."""
    times = get_rev_ts(sde, num_step, ts_order, ts_phase)
    process = sde.process
    return np.clip(times, *process.unclipped) if isinstance(process, functions.PiecewiseLinearAlpha) else times


def _sampler(table: Tableau, eps_fn: Any, told: Array | None = None) -> Sampler:
    if not callable(eps_fn):
        raise ValueError(f"eps_fn={eps_fn!r} must be callable, as eps_fn(x, t)")
    return Sampler(table, eps_fn, told is not None and told.dtype.kind == "i")


def get_ab_eps_coef(sde: VPSDE, highest_order: int, timesteps: Any, order: int) -> Array:
    """(N, highest_order + 1) weights of tAB-DEIS: row i holds those of ε at the times i, i − 1, … of the grid.

    Args:
        highest_order: number of columns less one, at least ``order``. timesteps: (N + 1,) descending times.
        order: past values used.

    Source: Zhang & Chen 2023, eq. 15.
    """
    degree = positive_int("order", order, minimum=0)
    columns = positive_int("highest_order", highest_order, minimum=degree) + 1
    outputs = adams(_checked(sde).process, timesteps, degree, variable="t").outputs
    weights = np.zeros((outputs.shape[0] - 1, columns))
    for j in range(min(columns, weights.shape[0])):
        weights[j:, j] = np.diagonal(outputs, -1 - j)
    return weights


def _checked(sde: Any) -> VPSDE:
    if not isinstance(sde, VPSDE):
        raise ValueError(f"sde={sde!r} must be a VPSDE or DiscreteVPSDE of this module")
    return sde


# The released package spreads these names over submodules; scripts that say deis.sde.get_rev_ts find them.
sde = vpsde = sampler = multistep = sys.modules[__name__]
