r"""First-order samplers with noise: DDIM(η), DDPM, Analytic-DPM, the predictors of score SDE, Euler–Maruyama.

One line in common: with R = α_t/α_s and the forward variance β = σ_t² − R² σ_s² of a step from t to s < t,

.. math:: x_s = a x_t + b\, ε(x_t, t) + c\, z .

The posterior of x_s given x_t and x₀ has the variance σ_s² β/σ_t² (β̃ of DDPM).  Each is three numbers per step, of weak
order 1; of strong order 1, since the noise is additive, but ½ where a step of the ODE is given extra noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.process.convention import predicting, type_of
from deis_analysis.process.grids import check_grid
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.solvers.noise import MOST_LAM, one_noise_a_step, rho_intervals
from deis_analysis.solvers.registry import family, register
from deis_analysis.solvers.weights import check_finite, increments
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.recorder import Recorder, assemble
from deis_analysis.tableau.rows import subdiagonal
from deis_analysis.validate import boolean, checked, choose, finite, function, nonnegative, positive_int, real


def _grid(process: Process, ts: Any) -> Array:
    """The grid, checked to have finite ρ."""
    ts = check_grid(process, ts)
    check_finite(process, "eps", "rho", ts)
    return ts


def _one_line(process: Process, ts: Array, a: Array, b: Array, c: Array, name: str, prediction: str = "eps") -> Tableau:
    """The table of x_s = a x + b p + c z, one entry of a, b, c (N,) per step."""
    noisy = c != 0
    noise, intervals = one_noise_a_step(c)[:, np.flatnonzero(noisy)], rho_intervals(process, ts)[noisy]
    return assemble(process, ts, subdiagonal(a), subdiagonal(b), noise, prediction, name, intervals=intervals)


def _posterior_variance(process: Process, ts: Array) -> Array:
    """(N,) σ_s² β/σ_t² = σ_s² (1 − (ρ_s/ρ_t)²), from the increments of λ."""
    return np.asarray(process.sigma(ts)[1:] ** 2 * -np.expm1(-2.0 * np.abs(increments(process, "lam", ts))))


@checked
def ddim_eta(process: Process, ts: Any, eta: float | Any = 1.0, *, name: str = "ddim_eta") -> Tableau:
    r"""Stochastic DDIM(η): with v = η² σ_s² (1 − (ρ_s/ρ_t)²),

    .. math:: x_s = α_s \hat x_0 + \sqrt{σ_s^2 - v}\; ε + \sqrt v\, z .

    η = 0 is DDIM, η = 1 DDPM's ancestral step with the posterior variance, which is SDE-DPM-Solver++1.

    Args:
        ts: (N + 1,) descending times.
        eta: η in [0, 1], or (N,) values, one per step (a single non-zero one: one SDE step inside an ODE sampler).

    Raises:
        ValueError: η outside [0, 1], a bad grid, or times where ρ is 0 or infinite.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), eq. 12 and 16.
    """
    ts = _grid(process, ts)
    etas = real("eta", eta)
    if etas.shape not in ((), (ts.size - 1,)):
        raise ValueError(f"eta has shape {etas.shape}; allowed: one number or {(ts.size - 1,)}, one per step")
    etas = np.broadcast_to(etas, (ts.size - 1,))
    if not np.all((etas >= 0) & (etas <= 1)):
        raise ValueError(f"eta={eta!r} must lie in [0, 1]")
    variance = etas**2 * _posterior_variance(process, ts)
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    ratio = alpha[1:] / alpha[:-1]
    b = np.sqrt(sigma[1:] ** 2 - variance) - ratio * sigma[:-1]
    return _one_line(process, ts, ratio, b, np.sqrt(variance), name)


@checked
def ddpm(process: Process, ts: Any, variance: str = "posterior", *, name: str = "ddpm") -> Tableau:
    r"""DDPM's ancestral step: x_s = (x_t − β ε/σ_t)/R + √v z.

    Args:
        ts: (N + 1,) descending times.
        variance: v: ``"posterior"``, σ_s² β/σ_t² (DDPM's small variance; the ancestral predictor of score SDE for VE);
            ``"forward"``, β (DDPM's large variance; score SDE's ancestral predictor for VP).

    Raises:
        ValueError: unknown variance, a bad grid, or times where ρ is infinite.

    Source: Ho et al. 2020 (arXiv 2006.11239), alg. 2; Song et al. 2021 (arXiv 2011.13456), app. F.
    """
    ts = _grid(process, ts)
    choose("variance", variance, ("posterior", "forward"))
    forward, ratio = _forward_variance(process, ts)
    v = _posterior_variance(process, ts) if variance == "posterior" else forward
    sigma = process.sigma(ts)[:-1]
    return _one_line(process, ts, 1.0 / ratio, -forward / (sigma * ratio), np.sqrt(v), name)


def _forward_variance(process: Process, ts: Array) -> tuple[Array, Array]:
    """(N,) β = σ_t² − R² σ_s² = σ_t² (1 − (ρ_s/ρ_t)²) and R = α_t/α_s, of each step from t down to s."""
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    ratio = alpha[:-1] / alpha[1:]
    return sigma[:-1] ** 2 * -np.expm1(-2.0 * np.abs(increments(process, "lam", ts))), ratio


@checked
def reverse_diffusion(process: Process, ts: Any, *, name: str = "reverse_diffusion") -> Tableau:
    r"""The reverse-diffusion predictor: x_s = (2 − R) x_t − β ε/σ_t + √β z, the reverse of the discrete forward step.

    Args:
        ts: (N + 1,) descending times.

    Source: Song et al. 2021 (arXiv 2011.13456), app. E.
    """
    ts = check_grid(process, ts)
    forward, ratio = _forward_variance(process, ts)
    return _one_line(process, ts, 2.0 - ratio, -forward / process.sigma(ts)[:-1], np.sqrt(forward), name)


@checked
def euler_maruyama(process: Process, ts: Any, lam_sde: float = 1.0, *, name: str = "euler_maruyama") -> Tableau:
    r"""Euler–Maruyama on the λ-family dx = [f x − ½(1 + λ²) g² score] dt + λ g dw:

    .. math:: x_s = x_t + (s - t)\bigl(f x_t + (1 + λ^2)\, \frac{g^2}{2σ}\, ε\bigr) + λ\, g \sqrt{t - s}\; z .

    On `RectifiedFlow` λ = a/√2 is the noise g = a √(t/(1 − t)) of Flow-GRPO.

    Args:
        ts: (N + 1,) descending times. lam_sde: λ, 0 to 1,000; 0 is naive Euler on the probability flow.

    Source: Zhang & Chen 2023, eq. 4; Song et al. 2021, eq. 6; Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470).
    """
    ts, lam_sde = check_grid(process, ts), nonnegative("lam_sde", lam_sde, MOST_LAM)
    now, step = ts[:-1], np.diff(ts)
    with np.errstate(divide="ignore", invalid="ignore"):  # assemble names the step that is singular
        speed = (1.0 + lam_sde**2) * process.sigma(now) * process.log_rho_rate(now)
        noise = lam_sde * np.sqrt(process.diffusion_squared(now) * -step)
    return _one_line(process, ts, 1.0 + step * process.drift(now), step * speed, noise, name)


@checked
def analytic_dpm(
    process: Process,
    ts: Any,
    moments: Any = None,
    eta: float = 1.0,
    *,
    clip: tuple[float, float] = (0.0, 1.0),
    last_std: float | None = None,
    name: str = "analytic_dpm",
) -> Tableau:
    r"""Analytic-DPM: DDIM(η) with the optimal isotropic variance of the reverse step.

    With v as in `ddim_eta`, Γ_t = E‖ε(x_t, t)‖²/d and Cov[x₀|x_t] ≈ ρ_t² (1 − Γ_t),

    .. math:: v^* = v + \Bigl(α_s - \sqrt{σ_s^2 - v}\, \frac{α_t}{σ_t}\Bigr)^2 \operatorname{clip}(ρ_t^2 (1 - Γ_t)) .

    For isotropic Gaussian data the law of one step is then exact.  η = 1 is Analytic-DDPM, η = 0 Analytic-DDIM.

    Args:
        ts: (N + 1,) descending times.
        moments: Γ: a function of t, or (N,) values at ts[:-1], from a model and samples (`moment_estimate`); by default
            those of standard normal data, σ²/(α² + σ²).
        eta: η in [0, 1].
        clip: two numbers, bounds of the estimated covariance; the upper one is the variance of data in [−1, 1].
        last_std: upper bound of the last step's standard deviation; the paper: 2/255·√(π/2) times 1 or 2 pixels.

    Raises:
        ValueError: Γ negative, of another shape or not finite; clip not increasing; η outside [0, 1]; a bad grid.

    Source: Bao et al. 2022 (arXiv 2201.06503), theorem 1; clipping of the released code.
    """
    ts = _grid(process, ts)
    now = ts[:-1]
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    if moments is None:
        gamma = sigma[:-1] ** 2 / (alpha[:-1] ** 2 + sigma[:-1] ** 2)
    else:
        gamma = real("moments", [float(moments(t)) for t in now] if callable(moments) else moments)
    if gamma.shape != now.shape or not np.all(np.isfinite(gamma) & (gamma >= 0)):
        raise ValueError(f"moments={moments!r} must give {now.size} finite values >= 0, one per step")
    bounds = real("clip", clip)
    if bounds.shape != (2,) or not bounds[0] <= bounds[1]:
        raise ValueError(f"clip={clip!r} must be two numbers, the lower one first")
    base = ddim_eta(process, ts, nonnegative("eta", eta, 1.0))
    variance = float(eta) ** 2 * _posterior_variance(process, ts)
    weight = alpha[1:] - np.sqrt(sigma[1:] ** 2 - variance) * alpha[:-1] / sigma[:-1]
    optimal = variance + weight**2 * np.clip(process.rho(now) ** 2 * (1.0 - gamma), *bounds)
    std = np.sqrt(optimal)
    if last_std is not None:
        std[-1] = min(std[-1], nonnegative("last_std", last_std))
    return _one_line(process, ts, base.matrices.states.diagonal(-1), base.matrices.outputs.diagonal(-1), std, name)


@checked
def moment_estimate(model: Any, ts: Any, data: Any, *, process: Process | None = None, seed: int = 0) -> Array:
    r"""Γ_t = E‖ε_θ(x_t, t)‖²/d at the times of ``ts`` but the last, for `analytic_dpm`, as

    .. math:: Γ_t = 1 - E‖ε - ε_θ(x_t, t)‖^2/d , \qquad x_t = α_t x_0 + σ_t ε ,

    which is the same for ε_θ = E[ε | x_t].  Analytic-DPM needs ρ²(1 − Γ): the Monte-Carlo error of E‖ε_θ‖² itself times
    ρ², 2e4 at t = 1 of `VPLinear`, would be all of it; this one's is relative to 1 − Γ.  What is below 0 counts as 0.

    Args:
        model: a model that says what it predicts (`deis_analysis.Model`), or an ε function with its ``process``.
        ts: (N + 1,) times. data: (n, …) samples of x₀, NumPy or torch, of floating dtype.
        seed: of ε, one draw per sample for all times.

    Returns:
        (N,) float64.

    Raises:
        ValueError: a function without process, times that are not finite, no data, an output of another shape or not
            finite.

    Source: Bao et al. 2022, the Monte-Carlo estimate of Γ.
    """
    known = type_of(model)
    if known is None and process is None:
        raise ValueError("process=None must be given for a model that does not say what it is")
    process = require_process(known[0] if process is None and known else process)
    eps = function("model", predicting(model, process, "eps"))
    times, x0 = finite("ts", ts), backend.floating("data", data)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"ts has shape {times.shape}; allowed: one dimension, at least 2 times")
    if x0.ndim == 0 or 0 in x0.shape:
        raise ValueError(f"data has shape {tuple(x0.shape)}; allowed: (n, ...) with n >= 1")
    rng = np.random.default_rng(positive_int("seed", seed, minimum=0))
    z = backend.like(rng.standard_normal(tuple(x0.shape)), x0)

    def moment(t: float) -> float:
        alpha = float(process.alpha(t))
        x = alpha * x0 + float(process.sigma(t)) * z
        if process.mean is not None:
            x = x + (1.0 - alpha) * backend.like(process.mean, x0)
        found = finite("eps", backend.wide(eps(x, t)))
        if found.shape != tuple(x0.shape):
            raise ValueError(f"model returned shape {found.shape} for data {tuple(x0.shape)}; allowed: the same")
        return max(0.0, 1.0 - float(np.mean((np.asarray(backend.wide(z)) - found) ** 2)))

    return np.array([moment(float(t)) for t in times[:-1]])


@checked
def one_sde_step(process: Process, ts: Any, step: int | None = None, *, name: str = "one_sde_step") -> Tableau:
    r"""DDIM with one step, number ``step`` (the middle one by default), that of the λ = 1 SDE: DDIM(1).

    Args:
        ts: (N + 1,) descending times. step: 0 … N − 1.

    Raises:
        ValueError: step out of range, or a bad grid.

    Source: G²RPO (Zhou et al. 2025, arXiv 2510.01982), singular stochastic sampling.
    """
    ts = _grid(process, ts)
    index = (ts.size - 1) // 2 if step is None else positive_int("step", step, minimum=0)
    if index > ts.size - 2:
        raise ValueError(f"step={step!r} must lie in [0, {ts.size - 2}]")
    return ddim_eta(process, ts, np.arange(ts.size - 1) == index, name=name)


_SONG, _DDIM = "Song et al. 2021 (score SDE, arXiv 2011.13456)", "Song et al. 2021 (DDIM, arXiv 2010.02502)"
_HO = "Ho et al. 2020 (DDPM, arXiv 2006.11239), alg. 2"
_BAO = "Bao et al. 2022 (Analytic-DPM, arXiv 2201.06503), theorem 1"
_ZHOU = "Zhou et al. 2025 (G2RPO, arXiv 2510.01982), one step of DDIM(1) inside DDIM"
_row = family(ddpm, variable="lam", prediction="x0", lam_sde=1.0, strong_order=1)
_eta = {"build": ddim_eta, "family": "ddim_eta"}
_row("ddim_eta1", 1, 0, source=f"{_DDIM}, eq. 16 with eta = 1", **_eta)
_row("ddim_eta05", 1, -1, {"eta": 0.5}, lam_sde=0.5, source=f"{_DDIM}, eq. 16", **_eta)
_row("ddpm", 1, 0, family="ancestral", source=f"{_HO}, small variance")
_row("ddpm_large", 1, 0, {"variance": "forward"}, family="ancestral", source=f"{_HO}, large variance")
_SDE = {"family": "score_sde"}
register("ancestral_vp", alias="ddpm_large", source=f"{_SONG}, app. F, ancestral predictor for VP", **_SDE)
register("ancestral_ve", alias="ddpm", source=f"{_SONG}, app. F, ancestral predictor for VE", **_SDE)
_row("reverse_diffusion", 1, -1, build=reverse_diffusion, source=f"{_SONG}, app. E", **_SDE)
_row("euler_maruyama", 1, -1, build=euler_maruyama, prediction="eps", source=f"{_SONG}, eq. 6", **_SDE)
_row = family(analytic_dpm, family="analytic_dpm", variable="lam", source=_BAO)
_row("analytic_ddpm", 1, 0, prediction="x0", lam_sde=1.0, strong_order=1)
_row("analytic_ddim", 1, 0, {"eta": 0.0}, strong_order=0.5)  # the noise of a step has variance h²
_row = family(one_sde_step, family="ddim_eta", variable="lam", prediction="x0", source=_ZHOU)
_row("g2rpo", 1, -1, strong_order=0.5)  # noise in one step only


@checked
def ancestral(process: Process, ts: Any, eta: float = 1.0, *, second: bool = False, name: str = "ancestral") -> Tableau:
    r"""Ancestral sampling in ρ: integrate down to ρ_down, add noise of variance ρ_up² to reach ρ_s.

    With ρ_up = min(ρ_s, η ρ_s √(1 − (ρ_s/ρ_t)²)) and ρ_down² = ρ_s² − ρ_up² the law of data at a point is kept exactly.

    Args:
        ts: (N + 1,) descending times.
        eta: η ≥ 0.
        second: integrate by DPM-Solver++(2S), two calls a step, rather than by Euler (DDIM).

    Raises:
        ValueError: η < 0, a bad grid, or times where ρ is 0 or infinite.

    Source: the ancestral samplers of k-diffusion, in ρ = σ; Lu et al. 2022 (arXiv 2211.01095), alg. 1, for 2S.
    """
    ts, eta = _grid(process, ts), nonnegative("eta", eta)
    alpha, rho = process.alpha(ts), process.rho(ts)
    h = np.abs(increments(process, "lam", ts))
    share = np.minimum(1.0, eta * np.sqrt(-np.expm1(-2.0 * h)))
    up, down = rho[1:] * share, rho[1:] * np.sqrt(1.0 - share**2)
    if eta == 1:
        down = rho[1:] * np.exp(-h)
    if not boolean("second", second):
        ratio = alpha[1:] / alpha[:-1]
        return _one_line(process, ts, ratio, alpha[1:] * (down - rho[:-1]), alpha[1:] * up, name)
    if np.any(down == 0):
        raise ValueError(f"eta={eta!r} leaves ρ_down = 0, where a second-order step in λ is singular; take a smaller η")
    sigma_down, middle = alpha[1:] * down, np.sqrt(rho[:-1] * down)
    t_m = process.time_from_rho(middle)
    alpha_m = process.alpha(t_m)
    r, intervals = Recorder(process, ts, "x0"), rho_intervals(process, ts)
    x = r.x_T
    for i in range(ts.size - 1):
        d = r.call(x)
        u = alpha_m[i] * (middle[i] / rho[i] * x / alpha[i] + (1.0 - middle[i] / rho[i]) * d)
        d_m = r.call(u, t_m[i])
        x = sigma_down[i] / rho[i] * x / alpha[i] + alpha[i + 1] * (1.0 - down[i] / rho[i]) * d_m
        x = r.node(x + alpha[i + 1] * up[i] * r.noise(intervals[i]))
    return r.tableau(name)


_KD = "ancestral sampler of k-diffusion 0.1.1"
_2S = "DPM-Solver++(2S); Lu et al. 2022 (arXiv 2211.01095), alg. 1"
_row = family(ancestral, family="ancestral", variable="lam", prediction="x0", lam_sde=1.0, strong_order=1)
_row("euler_ancestral", 1, 0, source=f"{_KD}, Euler")
_row("dpmpp_2s_ancestral", 2, 0, {"second": True}, stages=2, source=f"{_KD}, {_2S}")
