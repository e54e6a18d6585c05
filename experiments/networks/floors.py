"""What does arithmetic cost? Digits of weights, and what a network's arithmetic and rounded times cost its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.by_model import by_model
from experiments.core.cells import squares_to
from experiments.core.frames import at
from experiments.core.judging import error_row, with_band
from experiments.core.style import as_text
from experiments.models import studies
from experiments.models.problems import steps_for, vp_linear

NAME = "floors"
QUESTION = "What do ways of computing weights, and a network's arithmetic and rounded times, cost in accuracy?"
CONFIG: Config = {
    **studies.BASE, "models": ["digits8", "digits8_flow"], "kept": ["digits8", "digits8_flow"],
    "variants": ["float32", "bfloat16", "nearest", "linear"], "solver": "tab3", "grid": "t2",
    "calls": [10, 20, 40, 100], "compared_at": 20, "start": 0.3, "t_degree": 3, "t_steps": [1e-8, 0.2, 16],
    "lam_steps": [1e-8, 1.5, 17], "riemann_points": 10_000, "digits": 50,
    "choices": {
        "exact": "the network in float64, its time embedding too, asked at real network times",
        "float32, bfloat16": "weights and arithmetic of the network; times and embedding in float32; state in float64",
        "nearest, linear": "float64, network times rounded, or interpolated linearly between integers",
    },
}  # fmt: skip
QUICK: Config = {"calls": [10, 20], "samples": 2, "network_rtol": 1e-4, "network_tolerance": 1e-2,
                 "t_steps": [1e-8, 0.2, 4], "lam_steps": [1e-8, 1.5, 4], "digits": 40}  # fmt: skip
THOROUGH: Config = {"calls": [10, 20, 40, 80, 160, 320, 640], "network_rtol": 1e-9, "network_tolerance": 1e-6}
WEIGHTS: dict[str, tuple[str, tuple[float, float], dict[str, Any]]] = {  # method: name, place in its panel, look
    "quadrature": ("Gauss quadrature (here)", (0.03, 0.2), {"color": style.BLUE, "marker": "o", "linewidth": 2}),
    "riemann64": ("Riemann sum, float64", (0.5, 0.52), {"color": style.ORANGE, "marker": "s"}),
    "riemann32": ("Riemann sum, float32", (0.28, 0.86), {"color": "#9a6a00", "marker": "s", "linestyle": "--"}),
    "closed64": ("closed form", (0.5, 0.72), {"color": style.VERMILLION, "marker": "^"}),
    "closed32": ("closed form, float32", (0.62, 0.86), {"color": style.VERMILLION, "marker": "^", "linestyle": "--"}),
    "expm1": ("closed form with expm1", (0.03, 0.38), {"color": style.GREEN, "marker": "v"}),
}
NETWORKS = {"exact": ("error, float64 at real times", style.BLACK), "float32": ("float32", style.BLUE),
            "bfloat16": ("bfloat16", style.PURPLE), "nearest": ("nearest times", style.VERMILLION),
            "linear": ("linear in time", style.ORANGE)}  # fmt: skip


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "weights" and, of each network, "reference" and "sample"."""
    weights = pd.DataFrame(weight_rows(config))
    networks = by_model(NAME, config, lambda model, report: network_rows(model, config, report), progress)
    return pd.concat([weights, networks], ignore_index=True)


# -- weights --------------------------------------------------------------------------------------
def weight_rows(config: Config) -> list[dict[str, Any]]:
    """Largest error of a weight, relative to the largest weight, by panel, step and method; NaN if not finite."""
    with mp.workdps(config["digits"]):
        return [
            {"model": "weights", "part": "weights", "panel": panel, "step": h, "method": method,
             "error": _relative(weights, exact)}
            for panel, by_method in (("t", _in_t), ("lam", _in_lam))
            for h in np.geomspace(*config[f"{panel}_steps"])
            for method, (weights, exact) in by_method(config, float(h)).items()
        ]  # fmt: skip


def _relative(weights: Any, exact: list[Any]) -> float:
    """max |w − w*| / max |w*|, subtracted with all digits."""
    if not np.isfinite(np.array(weights, dtype=float)).all():
        return float("nan")
    gaps = [abs(mp.mpf(float(w)) - e) for w, e in zip(weights, exact, strict=True)]
    return float(max(gaps) / max(abs(e) for e in exact))


def _integral(config: Config, t: Any) -> tuple[Any, Any]:
    """∫ β and β at t, with all digits."""
    b0, b1, t = mp.mpf(config["beta_min"]), mp.mpf(config["beta_max"]), mp.mpf(t)
    return t * (b0 + (b1 - b0) * t / 2), b0 + (b1 - b0) * t


def _exact(nodes: list[Any], end: Any, rate: Any) -> list[Any]:
    """∫ ℓ_j(u) rate(u) du from the first of the nodes to ``end``, with all digits."""
    return [mp.quad(lambda u, node=node: rate(u) * mp.fprod((u - v) / (node - v) for v in nodes if v != node),
                    [nodes[0], end], method="gauss-legendre") for node in nodes]  # fmt: skip


def _in_t(config: Config, h: float) -> dict[str, Any]:
    """(ε, t) weights of a step of ``h`` from nodes ``h`` apart, all in the form α_s ∫ ℓ_j dρ, and the exact ones."""
    process, end = vp_linear(config), config["start"] - h
    nodes = config["start"] + h * np.arange(config["t_degree"] + 1)

    def rate(t: Any) -> Any:  # dρ/dt
        integral, beta = _integral(config, t)
        return mp.exp(integral) * beta / (2 * mp.sqrt(mp.expm1(integral)))

    alpha = mp.exp(-_integral(config, end)[0] / 2)
    exact = [alpha * weight for weight in _exact([mp.mpf(float(t)) for t in nodes], mp.mpf(end), rate)]
    ours = float(process.alpha(end)) * da.quadrature_weights(process, "eps", "t", nodes, nodes[0], end)
    sums = {f"riemann{bits}": _riemann(config, nodes, end, kind) for bits, kind in ((64, np.float64), (32, np.float32))}
    return {method: (weights, exact) for method, weights in {"quadrature": ours, **sums}.items()}


def _riemann(config: Config, nodes: Array, end: float, dtype: Any) -> list[Any]:
    """Left Riemann sum of −½ (d log ᾱ/dτ) √(ᾱ_s/ᾱ_τ)/√(1−ᾱ_τ) ℓ_j(τ), every operation in ``dtype``; ᾱ = α²."""
    points, u, s = config["riemann_points"], nodes.astype(dtype), dtype(end)
    b0, b1 = dtype(config["beta_min"]), dtype(config["beta_max"])
    width = (s - u[0]) / dtype(points)
    tau = u[0] + width * np.arange(points).astype(dtype)

    def log_alpha_bar(t: Any) -> Any:
        return -b0 * t - dtype(0.5) * (b1 - b0) * t * t

    integrand = dtype(0.5) * (b0 + (b1 - b0) * tau) * np.exp(dtype(0.5) * (log_alpha_bar(s) - log_alpha_bar(tau)))
    integrand = integrand / np.sqrt(dtype(1) - np.exp(log_alpha_bar(tau)))
    with np.errstate(divide="ignore", invalid="ignore"):
        bases = [np.prod([(tau - v) / (node - v) for v in np.delete(u, j)], axis=0, dtype=dtype)
                 for j, node in enumerate(u)]  # fmt: skip
        return [np.sum(integrand * basis * width, dtype=dtype) for basis in bases]


def _in_lam(config: Config, h: float) -> dict[str, Any]:
    """(ε, λ) weights of degree 2 for a step of ``h`` from nodes ``h`` apart, and the exact ones.

    Closed forms are given h itself, without the cancellation in λ_s − λ_t that a program would add; quadrature is given
    times, and is compared with the exact weights for those times.
    """
    process = vp_linear(config)
    times = np.asarray(process.time_from_lam(float(process.lam(config["start"])) + h * np.arange(1.0, -3.0, -1.0)))
    end, *nodes = (-mp.log(mp.expm1(_integral(config, float(t))[0])) / 2 for t in times)
    ours = da.quadrature_weights(process, "eps", "lam", times[1:], times[1], times[0])
    exact = _closed(mp.mpf(h), mp.expm1)
    return {
        "quadrature": (ours, _exact(nodes, end, lambda u: -mp.exp(-u))),
        "closed64": (_closed(np.float64(h), lambda h: np.exp(h) - 1), exact),
        "closed32": (_closed(np.float32(h), lambda h: np.exp(h) - 1), exact),
        "expm1": (_closed(np.float64(h), np.expm1), exact),
    }


def _closed(h: Any, expm1: Callable[[Any], Any]) -> list[Any]:
    """The three weights over −ρ_s by φ_k = (φ_{k−1} − 1/(k−1)!)/h, in the arithmetic of ``h``."""
    phi1 = expm1(h) / h
    phi2 = (phi1 - 1) / h
    phi3 = (phi2 - 0.5) / h
    return [h * (phi1 + 1.5 * phi2 + phi3), -2 * h * (phi2 + phi3), h * (phi2 / 2 + phi3)]


# -- networks -------------------------------------------------------------------------------------
def load(name: str, variant: str, config: Config) -> Any:
    """The ε model under one of the variants, on flat states of the network's own process; ValueError for another."""
    import torch

    from deis_analysis import networks as learned

    if variant not in config["variants"]:
        raise ValueError(f"variant={variant!r} is unknown; allowed: {', '.join(config['variants'])}")
    timed = variant in ("nearest", "linear")
    net = learned.load(name, device=config["device"], dtype=torch.float64 if timed else getattr(torch, variant),
                       times=variant if timed else "fractional", allow_pickle=config["allow_pickle"])  # fmt: skip
    return studies.flat(net, net.process)


def sampled(study: studies.Study, config: Config, model: Any) -> dict[int, Any]:
    """Number of calls → samples of ``model`` from the starts of the study."""
    solver, other = config["solver"], dataclasses.replace(study, model=model)
    steps = {calls: steps_for(solver, calls) for calls in config["calls"]}
    return {calls: other.solve(solver, da.grid(study.process, n, config["grid"])) for calls, n in steps.items()}


def network_rows(name: str, config: Config, progress: Progress) -> list[dict[str, Any]]:
    """Rows of part "reference" (how well the truth is known) and "sample" (variant, calls: error, gap)."""
    study = studies.on_its_own_process(name, {**config, "network_dtype": "float64"})
    found = study.certified()
    rows: list[dict[str, Any]] = [{"part": "reference", "process": repr(study.process), "nfe": found.nfe,
                                   "agreement": found.agreement, "certified": found.certified}]  # fmt: skip
    own = sampled(study, config, study.model)
    for done, variant in enumerate(["exact", *config["variants"]], 1):
        ends = own if variant == "exact" else sampled(study, config, load(name, variant, config))
        for calls, x in ends.items():
            rows.append({"part": "sample", "variant": variant, "calls": calls})
            for key, other in (("error", found.states[-1]), ("gap", own[calls])):
                banded = error_row(squares_to(other)(x)["squares"], config["seed"], 2000)
                rows[-1] |= with_band(key, (banded["rms"], banded["low"], banded["high"]))
        progress(done / (1 + len(config["variants"])))
    return rows


# -- what was found -------------------------------------------------------------------------------
def rules_from(frame: Frame, config: Config) -> Frame:
    """By variant, the calls from which on, with every network and beyond both bands, it costs more than the sampler's
    own error, or inf."""
    least = at(frame, part="sample").pivot(index=["model", "calls"], columns="variant", values="gap_low")
    own = at(frame, part="sample", variant="exact").set_index(["model", "calls"]).error_high
    larger = least[config["variants"]].gt(own, axis=0).groupby("calls").all().sort_index()
    return larger[::-1].cummin().apply(lambda column: min(column.index[column], default=np.inf))


def headline(frame: Frame, config: Config) -> str:
    """Which variants are the first to cost more than the sampler's own error."""
    rules, own = rules_from(frame, config), f"more than {config['solver']}'s own error"
    if rules.min() == np.inf:
        return f"No arithmetic costs samples of all networks {own}"
    worst = style.in_words([NETWORKS[variant][0] for variant in rules.index[rules == rules.min()]])
    return f"{worst} cost samples of all networks {own} from {rules.min():g} calls on"


def verdict(frame: Frame, config: Config) -> str:
    """What each way of computing costs."""
    shown, weights = at(frame, part="sample", calls=config["compared_at"]), at(frame, part="weights")
    gaps, worst = shown.groupby("variant").gap.max(), weights.groupby("method").error.max()
    told = ", ".join(f"{NETWORKS[variant][0]} {as_text(gaps[variant], 1)}" for variant in config["variants"])
    lost = max(weights[(weights.method == "closed64") & ~(weights.error < 1)].step, default=0.0)
    return (
        f"{headline(frame, config)}; at {config['compared_at']} calls at most {told} (own error "
        f"{as_text(at(shown, variant='exact').error.max(), 1)}). Weights: quadrature errs by at most "
        f"{as_text(worst.quadrature)}, the released Riemann sum by {as_text(worst.riemann64)}, and a closed form has "
        f"no digit at steps up to {as_text(lost, 1)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Above the weights' errors against the step; below the samples' against calls."""
    weights, samples = at(frame, part="weights"), at(frame, part="sample")
    known = at(frame, part="reference").set_index("model").agreement
    least = at(samples, variant="exact").groupby("model").error.min()
    below = ", ".join(name for name in known.index if least[name] <= known[name])
    note = (
        f"Above: error of a weight over the largest weight, VPLinear, step from t = {config['start']:g}; x: over 100 "
        f"or not finite. Below: {config['solver']}, {studies.how_many(config)}, RMS per pixel, bootstrap bands, 95 %; "
        f"black: to the flow of the float64 network, known to {' and '.join(known.map(as_text))}, "
        f"{f'not below all errors of {below}' if below else 'below all errors'}; colours: to float64 at the same calls."
    )
    fig = panels.sheet(headline(frame, config), note, 5.2)
    titles = {"t": f"weights in t, degree {config['t_degree']}", "lam": "weights in λ, degree 2"}
    drawn = weights.assign(shown=weights.error.where(weights.error <= 100).clip(lower=1e-17))
    axes = panels.lines(fig, drawn, titles, 2, x="step", y="shown", panel="panel", line="method", legend=False,
                        look=lambda name: WEIGHTS[name][2], ticks=[1e-8, 1e-6, 1e-4, 1e-2, 1], xlabel="step",
                        ylabel="relative error", end=0.44)  # fmt: skip
    for ax, panel in zip(axes, titles, strict=True):
        for method, part in at(weights, panel=panel).groupby("method"):
            name, place, look = WEIGHTS[str(method)]
            gone = part[~(part.error <= 100)].step
            ax.plot(gone, 100 + 0 * gone, "x", color=look["color"], markersize=3.5, clip_on=False)
            panels.words(ax, *place, name, look["color"])
        ax.set_ylim(1e-18, 1e4)
    samples = samples.assign(**{f"shown{end}": samples[f"gap{end}"].where(samples.variant != "exact",
                                samples[f"error{end}"]) for end in ("", "_low", "_high")})  # fmt: skip
    axes = panels.lines(fig, samples, {name: name for name in config["models"]}, 2, x="calls", y="shown",
                        line="variant", look=lambda name: {"color": NETWORKS[name][1], "marker": "o"},
                        label=lambda name: NETWORKS[name][0], band=("shown_low", "shown_high"), legend=False,
                        ylabel="error, difference", begin=0.56)  # fmt: skip
    axes[0].legend(fontsize=panels.SMALL, loc="center left", bbox_to_anchor=(0.0, 0.42))
    return fig
