"""Which way of computing the weights loses digits? Quadrature, the released code's Riemann sum, and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import vp_linear

NAME = "weights_accuracy"
QUESTION = "How many digits do weights keep, from steps of 1e-8 on, by quadrature, Riemann sum and closed form?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "start": 0.3,
    "t_degree": 3,
    "t_steps": [1e-8, 0.2, 16],
    "lam_degree": 2,
    "lam_steps": [1e-8, 1.5, 17],
    "riemann_points": 10_000,
    "digits": 50,
}
QUICK: Config = {"t_steps": [1e-8, 0.2, 4], "lam_steps": [1e-8, 1.5, 4], "digits": 40}
METHODS = {  # name, colour, marker, line, where its label stands: share of the way along, offset in points
    "quadrature": ("Gauss quadrature (deis_analysis)", style.BLUE, "o", "-", 0.35, (0, 12), "center"),
    "riemann64": ("Riemann sum, float64", style.ORANGE, "s", "-", 0.85, (0, 14), "center"),
    "riemann32": ("Riemann sum, float32", "#9a6a00", "s", "--", 0.1, (12, 6), "left"),
    "closed64": ("closed form,\nfloat64", style.VERMILLION, "^", "-", 0.3, (8, 4), "left"),
    "closed32": ("closed form,\nfloat32", style.VERMILLION, "^", "--", 0.55, (8, 6), "left"),
    "expm1": ("closed form with\nexpm1, float64", style.GREEN, "v", "-", 0.45, (-8, -12), "right"),
}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (panel, method, step): largest error of a weight, relative to the largest weight; NaN if not finite."""
    rows: list[dict[str, Any]] = []
    t_steps, lam_steps = np.geomspace(*config["t_steps"]), np.geomspace(*config["lam_steps"])
    for i, h in enumerate(t_steps):
        rows += [{"panel": "t", "step": h, "method": m, "error": e} for m, e in _in_t(config, float(h)).items()]
        progress(0.7 * (i + 1) / len(t_steps))
    for i, h in enumerate(lam_steps):
        rows += [{"panel": "lam", "step": h, "method": m, "error": e} for m, e in _in_lam(config, float(h)).items()]
        progress(0.7 + 0.3 * (i + 1) / len(lam_steps))
    return pd.DataFrame(rows)


def _relative(weights: Any, exact: Any) -> float:
    """max |w − w*| / max |w*|, subtracted with all digits."""
    import mpmath as mp

    if not all(np.isfinite(float(w)) for w in weights):
        return float("nan")
    return float(
        max(abs(mp.mpf(float(w)) - e) for w, e in zip(weights, exact, strict=True)) / max(abs(e) for e in exact)
    )


def _in_t(config: Config, h: float) -> dict[str, float]:
    """Errors of the (ε, t) weights of a step of ``h`` from nodes ``h`` apart, all in the form α_s ∫ ℓ_j dρ."""
    import mpmath as mp

    process = vp_linear(config)
    nodes = config["start"] + h * np.arange(config["t_degree"] + 1)
    end = config["start"] - h
    with mp.workdps(config["digits"]):
        b0, b1 = mp.mpf(config["beta_min"]), mp.mpf(config["beta_max"])
        exact_nodes, stop = [mp.mpf(float(t)) for t in nodes], mp.mpf(end)

        def integral(t: Any) -> Any:
            return t * (b0 + (b1 - b0) * t / 2)

        def rate(t: Any) -> Any:
            grown = mp.expm1(integral(t))
            return (grown + 1) * (b0 + (b1 - b0) * t) / (2 * mp.sqrt(grown))

        def basis(j: int, t: Any) -> Any:
            return mp.fprod((t - u) / (exact_nodes[j] - u) for k, u in enumerate(exact_nodes) if k != j)

        alpha = mp.exp(-integral(stop) / 2)
        exact = [
            alpha * mp.quad(lambda t, j=j: basis(j, t) * rate(t), [exact_nodes[0], stop], method="gauss-legendre")
            for j in range(len(nodes))
        ]
        ours = float(process.alpha(end)) * da.quadrature_weights(process, "eps", "t", nodes, nodes[0], end)
        return {
            "quadrature": _relative(ours, exact),
            "riemann64": _relative(_riemann(config, nodes, end, np.float64), exact),
            "riemann32": _relative(_riemann(config, nodes, end, np.float32), exact),
        }


def _riemann(config: Config, nodes: Array, end: float, dtype: Any) -> Array:
    """Left Riemann sum of −½ (d log ᾱ/dτ) √(ᾱ_s/ᾱ_τ)/√(1−ᾱ_τ) ℓ_j(τ), every operation in ``dtype``; ᾱ = α².

    Source: the quadrature of the code released with Zhang & Chen 2023 (default: 10,000 points per step, float32).
    """
    points, u, s = config["riemann_points"], nodes.astype(dtype), dtype(end)
    b0, b1 = dtype(config["beta_min"]), dtype(config["beta_max"])
    width = (s - u[0]) / dtype(points)
    tau = u[0] + width * np.arange(points).astype(dtype)

    def log_alpha_bar(t: Any) -> Any:
        return -b0 * t - dtype(0.5) * (b1 - b0) * t * t

    integrand = dtype(0.5) * (b0 + (b1 - b0) * tau) * np.exp(dtype(0.5) * (log_alpha_bar(s) - log_alpha_bar(tau)))
    integrand = integrand / np.sqrt(dtype(1) - np.exp(log_alpha_bar(tau)))
    weights = np.empty(u.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        for j in range(u.size):
            others = np.delete(u, j)
            basis = np.prod([(tau - v) / (u[j] - v) for v in others], axis=0, dtype=dtype)
            weights[j] = np.sum(integrand * basis * width, dtype=dtype)
    return weights


def _in_lam(config: Config, h: float) -> dict[str, float]:
    """Errors of the (ε, λ) weights of degree 2 for a step of ``h`` from nodes ``h`` apart.

    In units of −ρ_s they are h(φ₁ + 3φ₂/2 + φ₃), −2h(φ₂ + φ₃) and h(φ₂/2 + φ₃), with φ_k = (φ_{k−1} − 1/(k−1)!)/h.
    Closed forms are given h itself, without the cancellation in λ_s − λ_t that a program would add; quadrature is given
    times, and is compared with the exact weights for those times.
    """
    import mpmath as mp

    process = vp_linear(config)
    lam = float(process.lam(config["start"]))
    times = np.asarray(process.time_from_lam(lam + h * np.array([1.0, 0.0, -1.0, -2.0])))
    with mp.workdps(config["digits"]):
        levels = [_exact_lam(config, mp.mpf(float(t))) for t in times]
        exact = _phi_weights(mp.mpf(h), mp.exp, mp.mpf)

        def weight(j: int) -> Any:
            others = [v for k, v in enumerate(levels[1:]) if k != j]
            return mp.quad(
                lambda x: -mp.exp(-x) * mp.fprod((x - v) / (levels[1 + j] - v) for v in others),
                [levels[1], levels[0]],
                method="gauss-legendre",
            )

        at_times = [weight(j) for j in range(3)]
        ours = da.quadrature_weights(process, "eps", "lam", times[1:], times[1], times[0])
        return {
            "quadrature": _relative(ours, at_times),
            "closed64": _relative(_phi_weights(np.float64(h), np.exp, np.float64), exact),
            "closed32": _relative(_phi_weights(np.float32(h), np.exp, np.float32), exact),
            "expm1": _relative(_phi_weights(np.float64(h), None, np.float64), exact),
        }


def _exact_lam(config: Config, t: Any) -> Any:
    import mpmath as mp

    b0, b1 = mp.mpf(config["beta_min"]), mp.mpf(config["beta_max"])
    return -mp.log(mp.expm1(t * (b0 + (b1 - b0) * t / 2))) / 2


def _phi_weights(h: Any, exp: Any, kind: Any) -> list[Any]:
    """The three weights over −ρ_s by the φ recurrence, in the arithmetic of ``kind``; expm1 if no ``exp`` is given."""
    one, two = kind(1), kind(2)
    phi1 = (exp(h) - one) / h if exp is not None else np.expm1(h) / h
    phi2 = (phi1 - one) / h
    phi3 = (phi2 - one / two) / h
    return [h * (phi1 + kind(3) / two * phi2 + phi3), -two * h * (phi2 + phi3), h * (phi2 / two + phi3)]


def findings(frame: Frame) -> dict[tuple[str, str], dict[str, float]]:
    """Per panel and method: worst error, the step where it is, the error at the longest step, and where it is 100 %."""
    found = {}
    for key, rows in frame.groupby(["panel", "method"], sort=False):
        finite = rows.dropna().sort_values("step")
        worst = finite.loc[finite.error.idxmax()]
        lost = rows[rows.error.isna() | (rows.error >= 1)]
        found[key] = {
            "worst": float(worst.error),
            "best": float(finite.error.min()),
            "longest": float(finite.error.iloc[-1]),
            "lost_below": float(lost.step.max()) if len(lost) else 0.0,
        }
    return found


def verdict(frame: Frame, config: Config) -> str:
    """The worst errors of each way of computing the weights."""
    f, text = findings(frame), style.as_text
    ours = max(f[("t", "quadrature")]["worst"], f[("lam", "quadrature")]["worst"])
    h = config["t_steps"][1]

    def lost(key: tuple[str, str]) -> str:
        below = f[key]["lost_below"]
        return (
            f"has no correct digit at steps of {text(below, 1)} and less"
            if below
            else f"errs by at most {text(f[key]['worst'], 1)}"
        )

    riemann, points = text(f[("t", "riemann64")]["longest"]), config["riemann_points"]
    return (
        f"Relative to the largest weight, quadrature errs by at most {text(ours)} at every step length, the "
        f"{points:,}-point Riemann sum by {riemann} at a step of {h:g} in t (in float32 it "
        f"{lost(('t', 'riemann32'))}), and the naive closed form of degree {config['lam_degree']} in λ "
        f"{lost(('lam', 'closed64'))} ({_times_form(f)}), in float32 it {lost(('lam', 'closed32'))}."
    )


def _times_form(f: dict[tuple[str, str], dict[str, float]]) -> str:
    below = f[("lam", "expm1")]["lost_below"]
    return (
        f"expm1 moves that to {style.as_text(below, 1)}"
        if below
        else f"expm1: at most {style.as_text(f[('lam', 'expm1')]['worst'], 1)}"
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Error against step length; left (ε, t), right (ε, λ)."""
    f, text = findings(frame), style.as_text
    ours = max(f[("t", "quadrature")]["worst"], f[("lam", "quadrature")]["worst"])
    below = f[("lam", "closed64")]["lost_below"]
    riemann = text(f[("t", "riemann64")]["best"], 1)
    headline = (
        f"Quadrature keeps weights to {text(ours, 1)} at every step; the released Riemann sum stops at {riemann}"
        + (f", closed forms lose all digits at h = {text(below, 1)}" if below else "")
    )
    note = (
        f"Largest error of a weight over the largest weight, against mpmath with {config['digits']} digits; "
        f"{style.setting(config)}, step from t = {config['start']:g}, earlier nodes one step apart. Closed form: φ1 = "
        "(e^h − 1)/h, φ2 = (φ1 − 1)/h, φ3 = (φ2 − 1/2)/h. A cross on top: not finite, or wrong by more than 100 times."
    )
    fig = style.new_figure(12.0, 6.6, headline, note)
    margins = style.body(fig, bottom=0.6, left=0.85, right=0.3, extra_top=0.35)
    axes = fig.subplots(1, 2, sharey=True, gridspec_kw={**margins, "wspace": 0.08})
    titles = {
        "t": (f"tAB, degree {config['t_degree']}: ε interpolated in t", "step in t"),
        "lam": (f"log-ρ, degree {config['lam_degree']}: ε interpolated in λ", "step in λ (half log-SNR)"),
    }
    for ax, (panel, (title, label)) in zip(axes, titles.items(), strict=True):
        _panel(ax, frame[frame.panel == panel])
        ax.set(title=title, xlabel=label)
    axes[0].set_ylabel("relative error of the weights")
    return fig


def _panel(ax: Any, rows: Frame) -> None:
    ceiling, floor = 100.0, 3e-18
    for method, part in rows.groupby("method", sort=False):
        name, colour, marker, line, share, offset, side = METHODS[str(method)]
        part = part.sort_values("step")
        fine = part[part.error <= ceiling]
        shown = np.maximum(fine.error.to_numpy(), floor)
        look = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "markerfacecolor": "white" if line == "--" else colour,
        }
        ax.plot(fine.step, shown, **look, linewidth=2.4 if method == "quadrature" else 1.4)
        k = round(share * (len(fine) - 1))
        label = {"ha": side, "va": "center", "color": colour, "fontsize": 9.5}
        ax.annotate(name, (fine.step.iloc[k], shown[k]), xytext=offset, textcoords="offset points", **label)
        gone = part[~(part.error <= ceiling)]
        ax.plot(gone.step, np.full(len(gone), ceiling), color=colour, marker="x", linestyle="none", clip_on=False)
    ax.axhline(1.0, color="#999999", lw=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", ylim=(1e-18, ceiling))
