"""Does noise help? The λ-family and stochastic DDIM, from the ODE to the SDE, on a Gaussian where laws are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.analysis.law import affine_form
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.models import studies
from experiments.models.problems import digits, vp_linear

NAME = "appendix_sde"
QUESTION = (
    "From how many model calls on does the λ-SDE sample a better law than its ODE, with a right and a wrong model?"
)
CONFIG: Config = {
    "beta_min": studies.BASE["beta_min"],
    "beta_max": studies.BASE["beta_max"],
    "t_start": studies.BASE["t_start"],
    "t_end": studies.BASE["t_end"],
    "grid": "t2",
    "families": ["ddim_eta", "eps_0", "eps_2", "x0_1"],
    "lams": [0.0, 0.25, 0.5, 0.75, 1.0],
    "cases": {"exact": [0.0, 1.0], "ε × 1.02": [0.02, 1.0], "ε × 0.98": [-0.02, 1.0], "variance × 1.2": [0.0, 1.2]},
    "calls": [5, 7, 10, 14, 20, 28, 40, 80, 200],
    "small": 10,
    "choices": {
        "measure": "2-Wasserstein distance to the law of one Gaussian, exact, where the paper has FID",
        "cases": "how far a model may be off is not in the paper: three simple errors of it, and none",
        "x_T": "has the exact law, so that the prior's mismatch is not in the numbers",
        "lams": "the paper's λ are not known; ddim_eta takes η = λ",
    },
}  # cases: what is wrong with the model: ε is scaled by 1 + first, and belongs to data of second times the variance
QUICK: Config = {"lams": [0.0, 0.5, 1.0], "calls": [5, 10, 20, 40]}
THOROUGH: Config = {
    "families": ["ddim_eta", "eps_0", "eps_1", "eps_2", "eps_3", "x0_0", "x0_1", "x0_2"],
    "lams": [0.0, 0.1, 0.25, 0.5, 0.75, 1.0],
    "calls": [5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 56, 80, 112, 160, 200, 280, 400],
}


def title(family: str) -> str:
    """What a family is called in figure and verdict."""
    if family == "ddim_eta":
        return "DDIM(η = λ)"
    prediction, degree = family.rsplit("_", 1)
    return f"{'ε in t' if prediction == 'eps' else 'x₀ in log-SNR'} of degree {degree}"


def build(family: str, process: Process, ts: Array, lam: float) -> da.Tableau:
    """A member of a family: ``ddim_eta`` with η = λ, or ``eps_r`` and ``x0_r``, exponential Adams of degree r."""
    if family == "ddim_eta":
        return da.ddim_eta(process, ts, lam)
    prediction, degree = family.rsplit("_", 1)
    variable = "t" if prediction == "eps" else "lam"
    return da.adams(process, ts, int(degree), prediction=prediction, variable=variable, lam_sde=lam)


def moments() -> tuple[Array, Array]:
    """(64,) means and variances of the digits along their principal axes."""
    data = digits()
    variance, axes = np.linalg.eigh(np.cov(data.T))
    return np.asarray(axes.T @ data.mean(axis=0)), np.maximum(variance, 0.0)


def distances(table: da.Tableau, process: Process, data: tuple[Array, Array], cases: list[list[float]]) -> list[float]:
    """W₂ per pixel between the output's law and the data's at the last time, per case of a wrong model.

    A model (1 + δ) ε is the right one with the table's weights of ε times 1 + δ; x_T has the exact law.
    """
    (m, v), (first, last) = data, (float(table.times[0]), float(table.times[-1]))
    start = float(process.alpha(first)) ** 2 * v + float(process.sigma(first)) ** 2
    exact = float(process.alpha(last)) ** 2 * v + float(process.sigma(last)) ** 2
    table, found = table.in_terms_of(process, "eps"), {}
    for delta in dict.fromkeys(delta for delta, _ in cases):
        factors = [factor for d, factor in cases if d == delta]
        scaled = replace(table, outputs=table.outputs * (1.0 + delta))
        model = np.tile(m, len(factors)), np.concatenate([factor * v for factor in factors])
        parts = [a.reshape(len(factors), v.size, *a.shape[1:]) for a in affine_form(scaled, process, *model)]
        for factor, c, d, e in zip(factors, *parts, strict=True):
            mean = c * float(process.alpha(first)) * m + d - float(process.alpha(last)) * m
            spread = np.sqrt(c**2 * start + np.sum(e**2, axis=1)) - np.sqrt(exact)
            found[delta, factor] = float(np.sqrt(np.mean(mean**2 + spread**2)))
    return [found[delta, factor] for delta, factor in cases]


def floor(
    process: Process, data: tuple[Array, Array], case: list[float], lam: float, ends: tuple[float, float]
) -> float:
    r"""W₂ per pixel of the λ-SDE itself, solved exactly, with the wrong model.

    In u = ρ² the variance V of x/α obeys :math:`V' = a V/(v' + u) - λ²` with a = (1 + λ²)(1 + δ) and v' the variance
    that the model believes, so :math:`V = λ²/(a-1)\,(v'+u) + C (v'+u)^a`; the mean is right from the start.
    """
    (_, v), (delta, factor) = data, case
    u_T, u = (float(process.rho(t)) ** 2 for t in ends)
    a, believed = (1.0 + lam**2) * (1.0 + delta), factor * v
    if a == 1.0:
        found = (v + u_T) * (believed + u) / (believed + u_T)
    else:
        rest = v + u_T - lam**2 / (a - 1.0) * (believed + u_T)
        found = lam**2 / (a - 1.0) * (believed + u) + rest * ((believed + u) / (believed + u_T)) ** a
    gap = float(process.alpha(ends[1])) * (np.sqrt(found) - np.sqrt(v + u))
    return float(np.sqrt(np.mean(gap**2)))


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (family, lam, case, nfe): ``w2`` per pixel; ``floor``, that of the exact λ-SDE with the same model."""
    process, data, rows = vp_linear(config), moments(), []
    ends, cases = (config["t_start"], config["t_end"]), config["cases"]
    members = [(family, lam) for family in config["families"] for lam in config["lams"]]
    for done, (family, lam) in enumerate(members, 1):
        limits = [floor(process, data, case, lam, ends) for case in cases.values()]
        for calls in config["calls"]:
            table = build(family, process, da.grid(process, calls, config["grid"], *ends), lam)
            found = distances(table, process, data, list(cases.values()))
            for case, w2, limit in zip(cases, found, limits, strict=True):
                rows.append({"family": family, "lam": lam, "case": case, "nfe": table.nfe, "w2": w2, "floor": limit})
        progress(done / len(members))
    return pd.DataFrame(rows)


def curves(frame: Frame, family: str, case: str) -> Frame:
    """W₂ against calls, a column per λ."""
    rows = frame[(frame.family == family) & (frame.case == case)]
    return rows.pivot(index="nfe", columns="lam", values="w2").sort_index()


def overtakes(table: Frame, lam: float) -> int | None:
    """Calls from which on, up to the most measured, λ is closer than the ODE; None if it is not closer there."""
    good = np.asarray(table[lam] < table[0.0])
    bad = np.flatnonzero(~good)
    first = int(bad[-1]) + 1 if bad.size else 0
    return int(table.index[first]) if first < len(table) else None


def summary(frame: Frame, config: Config, case: str) -> dict[str, Any]:
    """Of one model: cells with at most ``small`` calls and λ > 0 where the ODE is closer; who overtakes when; the best
    ODE and the best SDE at ``small`` calls and at the most; floors of λ = 0 and of the largest λ."""
    tables = {family: curves(frame, family, case) for family in frame.family.unique()}
    noisy = [lam for lam in sorted(frame.lam.unique()) if lam > 0]
    early = {family: table[table.index <= config["small"]] for family, table in tables.items()}
    worse = sum(int((t[noisy].to_numpy() > t[[0.0]].to_numpy()).sum()) for t in early.values())
    rows = frame[frame.case == case]

    def best(calls: int, noise: bool) -> Any:
        at = rows[(rows.nfe == calls) & ((rows.lam > 0) == noise)]
        return at.loc[at.w2.idxmin()]

    limits = rows.groupby("lam").floor.first()
    return {
        "worse": worse,
        "cells": sum(t[noisy].size for t in early.values()),
        "overtakes": {family: overtakes(table, noisy[-1]) for family, table in tables.items()},
        "best": {calls: (best(calls, False), best(calls, True)) for calls in (config["small"], rows.nfe.max())},
        "floors": (float(limits.loc[0.0]), float(limits.iloc[-1])),
    }


def best(frame: Frame, case: str) -> Frame:
    """W₂ of the best ODE and of the best SDE, λ > 0, of all families at each number of calls."""
    rows = frame[frame.case == case]
    least = rows.groupby(["nfe", rows.lam > 0]).w2.min().unstack()
    return least.rename(columns={False: "ode", True: "sde"}).sort_index()


def closer(least: Frame) -> int:
    """At how many numbers of calls the best SDE is closer than the best ODE."""
    return int((least.sde < least.ode).sum())


def _most(frame: Frame) -> str:
    told = [f"{closer(best(frame, case))} with {_short(case)}" for case in frame.case.unique()]
    counts = frame.nfe.nunique()
    return f"Of {counts} numbers of calls the best SDE is closer in law than the best ODE at {', '.join(told)}"


def _short(case: str) -> str:
    return "an exact model" if case == "exact" else case


def verdict(frame: Frame, config: Config) -> str:
    """Where and how much the best SDE is closer; where the ODE is at few calls; who is overtaken by the largest λ."""
    most, small, parts = frame.lam.max(), config["small"], []
    last = [best(frame, case).iloc[-1] for case in frame.case.unique()]
    factors = ", ".join(style.as_text(float(at.ode / at.sde)) for at in last)
    for case in frame.case.unique():
        f = summary(frame, config, case)
        counts = [calls for calls in f["overtakes"].values() if calls]
        since = f" from {min(counts)} calls" if counts else ""
        parts.append(f"{_model(case)} {f['worse']} of {f['cells']}, {len(counts)} of {len(f['overtakes'])}{since}")
    return (
        f"{_most(frame)}; at {frame.nfe.max()} calls {factors} times. By W2 to the law of the "
        f"Gaussian with the digits' moments: cells of at most "
        f"{small} calls where the ODE is closer than the SDE, and families where λ = {most:g} overtakes it for good: "
        f"{'; '.join(parts)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: W₂ of the best ODE and of the best SDE, and of each family at λ = 0 and at the largest λ."""
    cases, most = list(frame.case.unique()), float(frame.lam.max())
    families = ", ".join(title(family) for family in frame.family.unique())
    note = (
        "2-Wasserstein distance per pixel to the law of the Gaussian with the digits' mean and covariance (64-D), by "
        f"linear algebra, no sampling; x_T has its exact law. {style.setting(config)}, {config['grid']} grid. Thick: "
        f"the best of the families {families}, with λ = 0 and with the best λ > 0; thin: each family with λ = 0 and "
        f"{most:g}. Dotted: the λ-SDE, λ = 0 and {most:g}, solved exactly with that model."
    )
    fig = panels.sheet(_most(frame), note, 4.3)
    axes, _ = panels.small_multiples(fig, [_model(case) for case in cases], 2, extra_top=0.5, hspace=0.25, wspace=0.08)
    for ax, case in zip(axes, cases, strict=True):
        _panel(ax, frame[frame.case == case], best(frame, case))
    axes[0].set(yscale="log", ylim=(max(0.5 * frame.w2.min(), 3e-6), 1.5))
    panels.calls_axis(axes, [c for c in (5, 10, 20, 40, 80, 200) if c <= frame.nfe.max()])
    fig.supylabel("W₂ per pixel", fontsize=8.5, x=0.012)
    panels.key(fig, axes[0])
    return fig


def _model(case: str) -> str:
    return "exact model" if case == "exact" else f"model with {case}"


def _panel(ax: Any, rows: Frame, least: Frame) -> None:
    for name, lam, colour, label in (
        ("ode", 0.0, style.BLACK, "best ODE"),
        ("sde", float(rows.lam.max()), style.VERMILLION, "best SDE"),
    ):
        for _, part in rows[rows.lam == lam].groupby("family"):
            ax.plot(part.nfe, part.w2, color=colour, lw=0.6, alpha=0.45)
        panels.curve(ax, least.index, least[name], label=label, color=colour, marker="o", linewidth=2.0)
        limit = float(rows[rows.lam == lam].floor.iloc[0])
        if limit > 1e-12:
            ax.axhline(limit, color=colour, ls=":", lw=1.1, zorder=1)
    told = f"SDE closer at {closer(least)} of {len(least)} numbers of calls"
    panels.words(ax, 0.03, 0.03, told, ha="left", va="bottom")
