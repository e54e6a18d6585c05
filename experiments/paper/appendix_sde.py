"""Does noise help? The λ-family, stochastic DDIM, and all samplers with noise, on a Gaussian where laws are exact."""

from __future__ import annotations

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
from experiments.core import cells, panels, style
from experiments.models import studies
from experiments.models.problems import digits, distinct_solvers, steps_for, vp_linear

NAME = "appendix_sde"
QUESTION = (
    "From how many model calls on does a sampler with noise draw a better law than one without, with a right and a "
    "wrong model?"
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
    "solvers": None,
    "preferred": ["ddpm"],
    "ode": ["ddim", "dpmpp_2m", "tab3"],
    "own_moments": ["analytic_ddpm", "analytic_ddim"],
    "compared_at": [10, 20],
    "point": [0.7, 10],
    "exact_below": 1e-12,
    "tolerance": 0.15,
    "choices": {
        "measure": "2-Wasserstein distance to the law of one Gaussian, exact, where the paper has FID",
        "cases": "how far a model may be off is not in the paper: three simple errors of it, and none",
        "x_T": "has the exact law, so that the prior's mismatch is not in the numbers",
        "lams": "the paper's λ are not known; ddim_eta takes η = λ",
    },
}  # cases: what is wrong with the model: ε is scaled by 1 + first, and belongs to data of second times the variance
QUICK: Config = {
    "lams": [0.0, 0.5, 1.0],
    "calls": [5, 10, 20, 40],
    "solvers": ["sde_dpmpp_1", "ddpm", "sde_dpmpp_2m", "seeds_3_x0", "euler_maruyama", "sde_dpm_2m", "analytic_ddpm"],
    "own_moments": ["analytic_ddpm"],
}
THOROUGH: Config = {
    "families": ["ddim_eta", "eps_0", "eps_1", "eps_2", "eps_3", "x0_0", "x0_1", "x0_2"],
    "lams": [0.0, 0.1, 0.25, 0.5, 0.75, 1.0],
    "calls": [5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 56, 80, 112, 160, 200, 280, 400],
}
Build = Callable[[Process, Array], da.Tableau]
OWN = "*"  # marks Analytic-DPM with the moments of the data rather than those of standard normal data
_COLUMNS = 3  # of the list of samplers


# -- the λ-family, with right and wrong models ----------------------------------------------------
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


def families(config: Config, progress: Progress) -> list[dict[str, Any]]:
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
    return rows


# -- all samplers with noise, with the exact model ------------------------------------------------
def with_moments(name: str, variance: Array) -> Build:
    """Analytic-DPM with the Γ_t of Gaussian data: the mean over the axes of σ²/(α² v + σ²)."""
    eta = {"analytic_ddpm": 1.0, "analytic_ddim": 0.0}[name]

    def build(process: Process, ts: Array) -> da.Tableau:
        def moments(t: float) -> float:
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            return float(np.mean(sigma**2 / (alpha**2 * variance + sigma**2)))

        return da.analytic_dpm(process, ts, moments, eta, name=name + OWN)

    return build


def methods(config: Config, variance: Array) -> dict[str, tuple[Build, list[str], str]]:
    """Name → (build, other names of the same method, "sde" or "ode")."""
    process = vp_linear(config)
    names = sorted(config["solvers"] or da.SOLVERS, key=lambda name: name not in config["preferred"])
    groups = distinct_solvers(process, da.grid(process, 12, config["grid"]), names, stochastic=True)
    found = {name: (da.SOLVERS[name].build, same[1:], "sde") for name, same in groups.items()}
    for name in config["own_moments"]:
        found[name + OWN] = (with_moments(name, variance), [], "sde")
    for name in config["ode"]:
        found[name] = (da.SOLVERS[name].build, [], "ode")
    return found


def registry(config: Config, progress: Progress) -> list[dict[str, Any]]:
    """Rows of part "law" (solver, nfe: W₂ per pixel, relative error of the total variance), "order", "point"."""
    process, (mean, variance) = vp_linear(config), moments()
    found = methods(config, variance)
    rows: list[dict[str, Any]] = []
    for done, (name, (build, same, kind)) in enumerate(found.items(), 1):
        common = {"solver": name, "same_as": " = ".join(same), "kind": kind}
        rows += [{"part": "law", **common, **row} for row in _laws(build, name, process, (mean, variance), config)]
        if kind == "sde":
            row = da.SOLVERS[name.rstrip(OWN)]
            home, _, options = da.order_problem(row.home)
            order = da.weak_order(build, home, step_counts(row, "weak"), **options)
            rows.append({"part": "order", **common, "declared": row.order, "slope": order.slope,
                         "slope_error": order.standard_error})  # fmt: skip
        at, steps = config["point"]
        table = build(process, da.grid(process, steps, config["grid"], config["t_start"], config["t_end"]))
        rows.append({"part": "point", **common, "w2": float(da.law_error(table, process, at, 0.0)[0])})
        progress(done / len(found))
    return rows


def _laws(build: Build, name: str, process: Process, data: tuple[Array, Array], config: Config) -> list[dict[str, Any]]:
    rows = []
    alpha, sigma = float(process.alpha(config["t_end"])), float(process.sigma(config["t_end"]))
    exact = alpha**2 * data[1] + sigma**2
    for steps in dict.fromkeys(steps_for(name.rstrip(OWN), calls) for calls in config["compared_at"]):
        if steps == 0:
            continue
        table = build(process, da.grid(process, steps, config["grid"], config["t_start"], config["t_end"]))
        mean, variance = da.output_law(table, process, *data)
        square = (mean - alpha * data[0]) ** 2 + (np.sqrt(variance) - np.sqrt(exact)) ** 2
        rows.append({"steps": steps, "nfe": table.nfe, "w2": float(np.sqrt(square.mean())),
                     "variance": float(variance.sum() / exact.sum() - 1.0)})  # fmt: skip
    return rows


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of `families`, of part "model", and of `registry`."""
    rows = [{"part": "model", **row} for row in families(config, cells.part_of(progress, 0, 2))]
    return pd.DataFrame(rows + registry(config, cells.part_of(progress, 1, 2)))


# -- what was found -------------------------------------------------------------------------------
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
    """Of one model: cells with at most ``small`` calls and λ > 0 where the ODE is closer; who overtakes when."""
    tables = {family: curves(frame, family, case) for family in frame.family.unique()}
    noisy = [lam for lam in sorted(frame.lam.unique()) if lam > 0]
    early = {family: table[table.index <= config["small"]] for family, table in tables.items()}
    worse = sum(int((t[noisy].to_numpy() > t[[0.0]].to_numpy()).sum()) for t in early.values())
    return {
        "worse": worse,
        "cells": sum(t[noisy].size for t in early.values()),
        "overtakes": {family: overtakes(table, noisy[-1]) for family, table in tables.items()},
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


def at_calls(frame: Frame, calls: int) -> Frame:
    """Per solver the result of most calls up to ``calls``; ordered by W₂."""
    rows = frame[(frame.part == "law") & (frame.nfe <= calls)]
    return rows.sort_values("nfe").groupby("solver", sort=False).tail(1).sort_values("w2").set_index("solver")


def findings(frame: Frame, config: Config) -> dict[str, Any]:
    """The numbers that verdict and headline state."""
    order = frame[frame.part == "order"]
    points = frame[(frame.part == "point") & (frame.kind == "sde")]
    off = (order.slope - order.declared).abs()
    return {
        "off": float(off.max()),
        "met": int((off <= config["tolerance"]).sum()),
        "count": len(order),
        "exact": points[points.w2 < config["exact_below"]].solver.tolist(),
        "points": points,
        "at": {calls: at_calls(frame, calls) for calls in config["compared_at"]},
    }  # fmt: skip


def verdict(frame: Frame, config: Config) -> str:
    """Where and how much the best SDE is closer; where the largest λ overtakes its ODE; what all samplers do."""
    ours = frame[frame.part == "model"]
    cases = list(ours.case.unique())
    last = [best(ours, case).iloc[-1] for case in cases]
    factors = ", ".join(style.as_text(float(at.ode / at.sde)) for at in last)
    since = [list(summary(ours, config, case)["overtakes"].values()) for case in cases]
    won = ", ".join(str(sum(calls is not None for calls in counts)) for counts in since)
    return (
        f"{_most(ours)}; at {ours.nfe.max():.0f} calls {factors} times. λ = {ours.lam.max():g} overtakes its own ODE "
        f"for good in {won} of {len(since[0])} families. {_registry_said(frame, config)}"
    )


def _registry_said(frame: Frame, config: Config) -> str:
    f, first, closer = findings(frame, config), [], []
    for calls, at in f["at"].items():
        sde, still = at[at.kind == "sde"], at[at.kind == "ode"].iloc[0]
        first.append(
            f"{sde.index[0]} at {calls} calls ({style.as_text(sde.w2.iloc[0])}; {still.name} {style.as_text(still.w2)})"
        )
        beaten = ", ".join(str(int((sde.w2 < at.w2[name]).sum())) for name in config["ode"])
        closer.append(f"{beaten} of {len(sde)}")
    return (
        f"With the exact model closest with noise is {', '.join(first)}; {' and '.join(closer)} are closer than "
        f"{', '.join(config['ode'])}; the weak order is the declared one within {config['tolerance']:g} for {f['met']} "
        f"of {f['count']}; {len(f['exact'])} of {len(f['points'])} are exact for a point mass."
    )


def headline(frame: Frame) -> str:
    """With the right model, and with the wrong one that noise helps most."""
    ours = frame[frame.part == "model"]
    counts = {case: closer(best(ours, case)) for case in ours.case.unique()}
    helped = max((case for case in counts if case != "exact"), key=counts.__getitem__)
    return (
        f"The best sampler with noise is closer in law than the best without at {counts['exact']} of "
        f"{ours.nfe.nunique()} numbers of calls with an exact model, at {counts[helped]} with {helped}"
    )


# -- the figure -----------------------------------------------------------------------------------
def draw(frame: Frame, config: Config) -> Figure:
    """A panel per model: W₂ of the best ODE and the best SDE, of each family thin; below, all samplers with noise."""
    ours = frame[frame.part == "model"]
    cases, most = list(ours.case.unique()), float(ours.lam.max())
    names = ", ".join(title(family) for family in ours.family.unique())
    calls = config["compared_at"]
    note = (
        "2-Wasserstein distance per pixel to the law of the Gaussian with the digits' mean and covariance (64-D), by "
        f"linear algebra, no sampling; x_T has its exact law. {style.setting(config)}, {config['grid']} grid. Thick: "
        f"the best of the families {names}, with λ = 0 and with the best λ > 0; thin: each family with λ = 0 and "
        f"{most:g}. Dotted: the λ-SDE, λ = 0 and {most:g}, solved exactly with that model. Lowest: every sampler with "
        f"noise, exact model, hollow {calls[0]} and full {calls[-1]} calls; triangle: exact for a point "
        f"mass; (+n): n more names; {OWN}: moments of these data; lines: {config['ode'][-1]}, no noise."
    )
    at = {n: at_calls(frame, n) for n in calls}
    order = [str(name) for name in at[calls[0]].index[at[calls[0]].kind == "sde"]]
    rows = -(-len(order) // _COLUMNS)
    upper, lower = 3.7, 0.15 * rows + 0.9
    fig = panels.sheet(headline(frame), note, upper + lower)
    share = upper / (upper + lower)
    axes, _ = panels.small_multiples(
        fig, [_model(case) for case in cases], 2, extra_top=0.45, hspace=0.25, wspace=0.08, end=share - 0.04
    )
    for ax, case in zip(axes, cases, strict=True):
        _panel(ax, ours[ours.case == case], best(ours, case))
        ax.set_ylabel("W₂ per pixel" if ax.get_subplotspec().is_first_col() else "", fontsize=8.5)
    axes[0].set(yscale="log", ylim=(max(0.5 * ours.w2.min(), 3e-6), 1.5))
    panels.calls_axis(axes, [c for c in (5, 10, 20, 40, 80, 200) if c <= ours.nfe.max()])
    panels.key(fig, axes[0])
    lists, _ = panels.small_multiples(
        fig, ["samplers with noise"] + [""] * (_COLUMNS - 1), _COLUMNS, share_y=False, begin=share + 0.1, left=1.25,
        wspace=0.95, bottom=0.42,
    )  # fmt: skip
    for ax, first in zip(lists, range(0, len(order), rows), strict=False):
        _listed(ax, at, order[first : first + rows], frame, config)
        ax.set_ylim(rows - 0.4, -0.6)
    return fig


def _listed(ax: Any, at: dict[int, Frame], names: list[str], frame: Frame, config: Config) -> None:
    point = frame[frame.part == "point"].set_index("solver")
    same, limit = style.texts(point.same_as), 3.0
    for calls, hollow in zip(at, (True, False), strict=False):
        ax.axvline(at[calls].w2[config["ode"][-1]], color="#333333", lw=0.9, ls="--" if hollow else "-", zorder=0)
        for y, name in enumerate(names):
            if name not in at[calls].index:
                continue
            value, colour = float(at[calls].w2[name]), style.family(name.rstrip(OWN))[0]
            marker = "^" if point.w2[name] < config["exact_below"] else "o"
            ax.plot(min(value, limit), y, marker, color=colour, markersize=4, clip_on=False,
                    markerfacecolor="white" if hollow else colour)  # fmt: skip
    more = {name: f" (+{same[name].count('=') + 1})" if same[name] else "" for name in names}
    ax.set_yticks(range(len(names)), [name + more[name] for name in names])
    ax.set(xscale="log", xlim=(8e-4, limit))
    style.plain_log_ticks(ax.xaxis, [0.001, 0.01, 0.1, 1])
    ax.tick_params(axis="x", labelsize=panels.SMALL)
    ax.tick_params(axis="y", labelsize=panels.SMALL, length=0, labelleft=True)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("W₂ per pixel", fontsize=8, labelpad=1)


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
