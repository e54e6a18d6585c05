"""Does noise help? The λ-family, stochastic DDIM, and all samplers with noise, on a Gaussian where laws are exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.analysis.law import affine_form
from deis_analysis.analysis.measurement import step_counts
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import panels, style
from experiments.core.frames import at
from experiments.models import studies
from experiments.models.problems import digits, distinct_solvers, steps_for, vp_linear

NAME = "appendix_sde"
QUESTION = "From how many calls on does a sampler with noise draw a better law, with a right and with a wrong model?"
CONFIG: Config = {
    **{key: studies.BASE[key] for key in ("beta_min", "beta_max", "t_start", "t_end")},
    "grid": "t2", "families": ["ddim_eta", "eps_0", "eps_2", "x0_1"], "lams": [0.0, 0.25, 0.5, 0.75, 1.0],
    "cases": {"exact": [0.0, 1.0], "ε × 1.02": [0.02, 1.0], "ε × 0.98": [-0.02, 1.0], "variance × 1.2": [0.0, 1.2]},
    "calls": [5, 7, 10, 14, 20, 28, 40, 80, 200], "solvers": None, "preferred": ["ddpm"], "compared_at": [10, 20],
    "own_moments": ["analytic_ddpm", "analytic_ddim"], "ode": ["ddim", "dpmpp_2m", "tab3"],
    "point": [0.7, 10], "exact_below": 1e-12, "tolerance": 0.15,
    "choices": {
        "measure": "2-Wasserstein distance to the law of one Gaussian, exact, where the paper has FID",
        "cases": "not in the paper: ε is scaled by 1 + first, and belongs to data of second times the variance",
        "lams": "the paper's λ are not known; ddim_eta takes η = λ",
    },
}  # fmt: skip
QUICK: Config = {"lams": [0.0, 0.5, 1.0], "calls": [5, 10, 20, 40], "own_moments": ["analytic_ddpm"],
                 "solvers": ["sde_dpmpp_1", "ddpm", "sde_dpmpp_2m", "seeds_3_x0", "euler_maruyama", "sde_dpm_2m",
                             "analytic_ddpm"]}  # fmt: skip
THOROUGH: Config = {"lams": [0.0, 0.1, 0.25, 0.5, 0.75, 1.0], "calls": [*range(5, 15), 20, 40, 80, 200],
                    "families": ["ddim_eta", *(f"eps_{r}" for r in range(4)), "x0_0", "x0_1", "x0_2"]}  # fmt: skip
Law = tuple[Array, Array]  # means and variances along the axes
OWN = "*"  # marks Analytic-DPM with the moments of the data rather than those of standard normal data
COLOURS = {"best ODE": style.BLACK, "best SDE": style.VERMILLION}


def build(family: str, process: Process, ts: Array, lam: float) -> da.Tableau:
    """A member of a family: ``ddim_eta`` with η = λ, or ``eps_r`` and ``x0_r``, exponential Adams of degree r."""
    if family == "ddim_eta":
        return da.ddim_eta(process, ts, lam)
    kind, degree = family.rsplit("_", 1)
    return da.adams(process, ts, int(degree), prediction=kind, variable={"eps": "t", "x0": "lam"}[kind], lam_sde=lam)


def moments() -> Law:
    """(64,) means and variances of the digits along their principal axes."""
    data = digits()
    variance, axes = np.linalg.eigh(np.cov(data.T))
    return np.asarray(axes.T @ data.mean(axis=0)), np.maximum(variance, 0.0)


def distance(table: da.Tableau, process: Process, data: Law, case: list[float]) -> float:
    """W₂ per pixel between the output's law and the data's at the last time, with a wrong model.

    A model (1 + δ) ε is the right one with the table's weights of ε times 1 + δ; x_T has the exact law.
    """
    (m, v), (delta, factor), table = data, case, table.in_terms_of(process, "eps")
    (a, s), (b, r) = ((float(process.alpha(t)), float(process.sigma(t))) for t in table.times[[0, -1]])
    c, d, e = affine_form(replace(table, outputs=table.outputs * (1.0 + delta)), process, m, factor * v)
    mean = c * a * m + d - b * m
    spread = np.sqrt(c**2 * (a**2 * v + s**2) + np.sum(e**2, axis=1)) - np.sqrt(b**2 * v + r**2)
    return float(np.sqrt(np.mean(mean**2 + spread**2)))


def floor(process: Process, data: Law, case: list[float], lam: float, ends: tuple[float, float]) -> float:
    r"""W₂ per pixel of the λ-SDE itself, solved exactly, with the wrong model.

    In u = ρ² the variance V of x/α obeys :math:`V' = a V/(v' + u) - λ²` with a = (1 + λ²)(1 + δ) and v' the variance
    that the model believes, so :math:`V = λ²/(a-1)\,(v'+u) + C (v'+u)^a`; the mean is right from the start.
    """
    (_, v), (delta, factor) = data, case
    u_T, u = (float(process.rho(t)) ** 2 for t in ends)
    a, start, end = (1.0 + lam**2) * (1.0 + delta), factor * v + u_T, factor * v + u
    driven = lam**2 / (a - 1.0) if lam else 0.0
    found = driven * end + (v + u_T - driven * start) * (end / start) ** a
    gap = float(process.alpha(ends[1])) * (np.sqrt(found) - np.sqrt(v + u))
    return float(np.sqrt(np.mean(gap**2)))


def families(config: Config) -> list[dict[str, Any]]:
    """Rows (family, lam, case, nfe): ``w2`` per pixel; ``floor``, that of the exact λ-SDE with the same model."""
    process, data, ends, rows = vp_linear(config), moments(), (config["t_start"], config["t_end"]), []
    for family, lam, calls in itertools.product(config["families"], config["lams"], config["calls"]):
        table = build(family, process, da.grid(process, calls, config["grid"], *ends), lam)
        rows += [{"part": "model", "family": family, "lam": lam, "nfe": table.nfe, "case": case,
                  "w2": distance(table, process, data, wrong), "floor": floor(process, data, wrong, lam, ends)}
                 for case, wrong in config["cases"].items()]  # fmt: skip
    return rows


def with_moments(name: str, variance: Array) -> Callable[[Process, Array], da.Tableau]:
    """Analytic-DPM with the Γ_t of Gaussian data: the mean over the axes of 1/(1 + v/ρ²)."""
    eta = {"analytic_ddpm": 1.0, "analytic_ddim": 0.0}[name]
    return lambda process, ts: da.analytic_dpm(
        process, ts, lambda t: float(np.mean(1 / (1 + variance / process.rho(t) ** 2))), eta, name=name + OWN
    )


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "model", see `families`, "law" (W₂ per pixel, error of the total variance), "order" and "point"."""
    process, (mean, variance), ends = vp_linear(config), moments(), (config["t_start"], config["t_end"])
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    groups = distinct_solvers(process, da.grid(process, 12, config["grid"]), names, stochastic=True)
    own = {name + OWN: with_moments(name, variance) for name in config["own_moments"]}
    found = {name: own.get(name) or da.SOLVERS[name].build for name in [*groups, *own, *config["ode"]]}
    alpha, (place, count), rows = float(process.alpha(ends[1])), config["point"], families(config)
    exact = alpha**2 * variance + float(process.sigma(ends[1])) ** 2
    for done, (name, build) in enumerate(found.items(), 1):
        row = da.SOLVERS[name.rstrip(OWN)]
        kind = "ode" if name in config["ode"] else "sde"
        common = {"solver": name, "same_as": " = ".join(groups.get(name, [])[1:]), "kind": kind}
        for steps in filter(None, dict.fromkeys(steps_for(name.rstrip(OWN), calls) for calls in config["compared_at"])):
            table = build(process, da.grid(process, steps, config["grid"], *ends))
            m, v = da.output_law(table, process, mean, variance)
            w2 = np.sqrt(((m - alpha * mean) ** 2 + (np.sqrt(v) - np.sqrt(exact)) ** 2).mean())
            rows.append({"part": "law", **common, "steps": steps, "nfe": table.nfe, "w2": float(w2),
                         "variance": float(v.sum() / exact.sum() - 1.0)})  # fmt: skip
        if kind == "sde":
            home, _, options = da.order_problem(row.home)
            order = da.weak_order(build, home, step_counts(row, "weak"), **options)
            rows.append({"part": "order", **common, "declared": row.order, "slope": order.slope,
                         "slope_error": order.standard_error})  # fmt: skip
        table = build(process, da.grid(process, count, config["grid"], *ends))
        rows.append({"part": "point", **common, "w2": float(da.law_error(table, process, place, 0.0)[0])})
        progress(done / len(found))
    return pd.DataFrame(rows)


def best(frame: Frame) -> Frame:
    """Rows (case, nfe): W₂ of the best ODE and of the best SDE, λ > 0, of all families; whether the SDE is closer."""
    rows = at(frame, part="model")
    least = rows.groupby(["case", "nfe", rows.lam > 0], sort=False).w2.min().unstack().set_axis(list(COLOURS), axis=1)
    return least.assign(closer=least["best SDE"] < least["best ODE"]).reset_index()


def at_calls(frame: Frame, calls: int) -> Frame:
    """Per solver the result of most calls up to ``calls``; ordered by W₂."""
    rows = at(frame, part="law").sort_values("nfe")
    return rows[rows.nfe <= calls].groupby("solver", sort=False).tail(1).sort_values("w2").set_index("solver")


def verdict(frame: Frame, config: Config) -> str:
    """At how many numbers of calls the best SDE is closer, per model; what all samplers with noise do."""
    least, order, points = best(frame), at(frame, part="order"), at(frame, part="point", kind="sde")
    counts, few, still = least.groupby("case", sort=False).closer.sum(), config["compared_at"][0], config["ode"][-1]
    law, met = at_calls(frame, few), ((order.slope - order.declared).abs() <= config["tolerance"]).sum()
    sde = at(law, kind="sde").w2
    told = ", ".join(f"{n} with {case}" for case, n in counts.items() if case != "exact")
    return (
        f"With an exact model the best SDE is closer in law than the best ODE at {counts['exact']} of "
        f"{least.nfe.nunique()} counts of calls; it is at {told}; {(sde < law.w2[still]).sum()} of {len(sde)} samplers "
        f"with noise beat {still} at {few} calls with an exact model, {met} have their declared weak order, "
        f"{(points.w2 < config['exact_below']).sum()} are exact for a point mass."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: W₂ of the best ODE and the best SDE, of each family thin; below, samplers with noise."""
    ours, least, most = at(frame, part="model"), best(frame), max(config["lams"])
    thin = at(ours, lam=[0.0, most]).assign(line=ours.family + ours.lam.astype(str))
    note = (
        "2-Wasserstein distance per pixel to the Gaussian with the digits' mean and covariance, by linear algebra. "
        f"Thin: families with λ = 0 and {most:g}; dotted: λ-SDE itself with that model. Lowest: closest samplers, red: "
        f"with noise, exact model, {config['compared_at'][0]} calls. {style.setting(config)}, {config['grid']} grid."
    )
    fig = panels.sheet(verdict(frame, config).split("; ")[0], note, 6.1)
    axes = panels.lines(
        fig, pd.concat([thin, least.melt(["case", "nfe"], list(COLOURS), "line", "w2")]),
        {case: f"model with {case}" if case != "exact" else "exact model" for case in config["cases"]}, 2,
        x="nfe", y="w2", panel="case", line="line", names=list(COLOURS), ylabel="W₂ per pixel", end=0.6, hspace=0.3,
        look=lambda name: {"color": COLOURS[name], "marker": "o", "linewidth": 2.0}, ticks=[5, 10, 20, 40, 80, 200],
    )  # fmt: skip
    axes[0].set_ylim(max(0.5 * ours.w2.min(), 3e-6), 1.5)
    for ax, (case, closer) in zip(axes, least.groupby("case", sort=False).closer, strict=True):
        for lam, colour in zip((0.0, most), COLOURS.values(), strict=True):
            ax.axhline(at(ours, case=case, lam=lam).floor.iloc[0], color=colour, ls=":", lw=1.1)
        panels.words(ax, 0.03, 0.03, f"SDE closer at {closer.sum()} of {len(closer)}", ha="left", va="bottom")
    law = at_calls(frame, config["compared_at"][0]).head(12)
    (ax,), _ = panels.small_multiples(fig, ["W₂ per pixel"], 1, left=1.5, begin=0.72, bottom=0.2)
    ax.scatter(law.w2, law.index, c=[COLOURS[f"best {kind.upper()}"] for kind in law.kind], s=16)
    ax.set(xscale="log", ylim=(len(law) - 0.5, -0.5))
    style.plain_log_ticks(ax.xaxis, [0.01, 0.02, 0.05, 0.1])
    return fig
