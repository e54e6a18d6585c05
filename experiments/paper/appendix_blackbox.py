"""What does a black-box integrator take? RK45 on three forms of one flow, and for likelihoods, beside ρRK-DEIS."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis import backend
from deis_analysis.analysis.likelihood import bits_per_dim, log_likelihood, log_likelihood_rk45
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import judging, panels, style
from experiments.core.black_box import black_box
from experiments.core.frames import at, calls_for, span
from experiments.models import problems, studies

NAME = "appendix_blackbox"
QUESTION = "Does RK45 need fewer calls on dy/dρ = ε than on dx/dt, and do tens of calls of ρRK give its likelihoods?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"], "forms": ["t", "rho", "lam"], "floor_factor": 3.0,
    "tolerances": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], "targets": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "densities": {"mixture": 128, "gaussian": 32}, "known_variance": 1.0, "wanted": 0.01, "few": 50,
    "likelihood_tolerances": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6], "usual_tolerance": 1e-5,
    "methods": ["2heun", "3kutta", "4rk"], "grids": ["rho7", "logrho", "t2"], "calls": [12, 24, 36, 48, 72],
    "choices": {
        "tolerances": "the paper's are not known; rtol = atol, as score SDE has it, one step size for the whole batch",
        "methods": "the paper's ρRK for likelihoods is of unknown order and grid; known_variance is not in the paper",
        "densities": "exact ones with so many samples, not images: no dequantisation; found within ``wanted`` bits",
    },
}  # fmt: skip
QUICK: Config = {
    **studies.BASE_QUICK, "tolerances": [1e-1, 1e-2, 1e-3], "targets": [1e-1, 1e-2], "grids": ["t2"],
    "methods": ["3kutta"], "calls": [12, 48], "likelihood_tolerances": [1e-3, 1e-5],
    "densities": {"mixture": 16, "gaussian": 2},
}  # fmt: skip
THOROUGH: Config = {"models": list(studies.MODELS), "samples": 512, "densities": {"mixture": 1024, "gaussian": 128},
                    "tolerances": [10 ** (-i / 2) for i in range(2, 17)], "rtol": 1e-9}  # fmt: skip
DENSITIES = {"mixture": "turned 4-D mixture", "gaussian": "Gaussian with the digits' moments"}
LINES = {  # form of the ODE, or way to a likelihood
    "t": {"label": "dx/dt, the original ODE", "color": style.BLUE, "marker": "o"},
    "rho": {"label": "dy/dρ = ε", "color": style.VERMILLION, "marker": "s"},
    "lam": {"label": "dy/dλ", "color": style.GREEN, "marker": "^"},
    "rk45": {"label": "RK45 in t", "color": style.BLACK, "marker": "o"},
    "plain": {"label": "ρRK on log q", "color": style.VERMILLION, "marker": "s"},
    "split": {"label": "ρRK, unit-variance part exact", "color": style.BLUE, "marker": "D"},
    "noisy": {"label": "one Hutchinson probe", "color": style.GREY},
}


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of part "samples", errors on a form of the ODE; of parts "rk45" and "rhork", errors of likelihoods in bits
    per dimension; of "prior" and "truncation", those that no solver can mend."""
    rows, known, of = [], densities(config), len(config["models"]) + len(config["densities"])
    for done, name in enumerate(config["models"], 1):
        problem = studies.study(name, config)
        judge = judging.Judge(problem, config)
        for form, tolerance in itertools.product(config["forms"], config["tolerances"]):
            found = black_box(problem, form, config["t_start"], config["t_end"], tolerance)
            squares = judge.counted(judge.truth.new_tensor(found.pop("x")))
            rows.append({"model": name, "part": "samples", "form": form, "tolerance": tolerance,
                         "estimate": judge.estimate, **found, "rms": float(np.sqrt(np.nanmean(squares)))})  # fmt: skip
        progress(done / of)
    for done, (name, density) in enumerate(known.items(), len(config["models"]) + 1):
        rows += [{"model": name, **row} for row in _likelihoods(density, config)]
        progress(done / of)
    return pd.DataFrame(rows)


class Density(NamedTuple):
    """A density in coordinates z = x·axes in which it is simple; x are the coordinates that the samplers see."""

    mix: Any
    axes: Array
    x: Array

    def model(self, process: Process) -> Callable[[Any, float], Any]:
        """The exact ε on torch tensors; off the axes, so that ∂ε/∂x is not diagonal and an estimated trace is noisy."""
        import torch

        axes, eps = torch.as_tensor(self.axes), self.mix.eps(process)
        return lambda x, t: eps(x @ axes, t) @ axes.T

    def log_prob(self, x: Any, process: Process | None = None, t: float | None = None) -> Any:
        """Log density at time t, NumPy or torch."""
        return self.mix.log_prob(x @ backend.like(self.axes, x), process, t)


def densities(config: Config) -> dict[str, Density]:
    """The two densities with data x ~ p_0, not p_{t₀}: a likelihood is asked of data."""
    from scipy.stats import ortho_group

    like, seed = problems.gaussian_like(problems.digits(), config["floor"]), config["seed"]
    variances, axes = np.linalg.eigh(like.covariances[0])
    mixes = {
        "mixture": (problems.product_mixture(), ortho_group.rvs(4, random_state=seed)),
        "gaussian": (da.GaussianMixture([1.0], like.means @ axes, variances[None]), axes),
    }
    counts = config["densities"]
    return {name: Density(mix, q, mix.sample(counts[name], seed) @ q.T) for name, (mix, q) in mixes.items()}


def _likelihoods(density: Density, config: Config) -> list[dict[str, Any]]:
    """Errors by each solver; with the exact prior, so that what is seen is the solver's error."""
    process, x, t_start, t_end = problems.vp_linear(config), density.x, config["t_start"], config["t_end"]
    model, truth, known = density.model(process), density.log_prob(x, process, t_end), config["known_variance"]
    shared: dict[str, Any] = {"t_start": t_start, "t_end": t_end, "seed": config["seed"],
                              "prior": lambda x_T: density.log_prob(x_T, process, t_start)}  # fmt: skip
    rows: list[dict[str, Any]] = []

    def add(log_prob: Array, exact: Array, **labels: Any) -> None:
        gap = bits_per_dim(log_prob, x.shape[1]) - bits_per_dim(exact, x.shape[1])
        rows.append({**labels, "rms": float(np.sqrt(np.mean(gap**2)))})

    exact = [(tolerance, "exact") for tolerance in config["likelihood_tolerances"]]
    for tolerance, trace in [*exact, (config["usual_tolerance"], "hutchinson")]:
        found = log_likelihood_rk45(model, process, x, rtol=tolerance, atol=tolerance, trace=trace, **shared)
        add(found.log_prob, truth, part="rk45", trace=trace, tolerance=tolerance, nfe=found.nfe)
    for method, kind, calls in itertools.product(config["methods"], config["grids"], config["calls"]):
        chosen = {**shared, "method": method, "kind": kind, "steps": calls // len(da.RUNGE_KUTTA[method].b)}
        found = log_likelihood(model, process, x, known_variance=known, **chosen)
        labels: dict[str, Any] = {"part": "rhork", "method": method, "grid": kind, "nfe": found.nfe}
        # with the known part or without the path and its traces are the same: what differs is the same for any model
        rule, formula = (
            log_likelihood(lambda x, t: 0 * x, process, x[:1], trace="hutchinson", known_variance=v, **chosen).log_prob
            for v in (None, known)
        )
        add(found.log_prob + (rule - formula), truth, form="plain", trace="exact", **labels)
        add(found.log_prob, truth, form="split", trace="exact", **labels)
        if kind == config["grids"][-1]:  # the noise of a probe does not depend on the grid
            found = log_likelihood(model, process, x, known_variance=known, trace="hutchinson", **chosen)
            add(found.log_prob, truth, form="split", trace="hutchinson", **labels)
    x_T, scale = density.mix.flow(process, x @ density.axes, t_end, t_start), float(process.sigma(t_start))
    normal = -0.5 * np.sum((x_T / scale) ** 2 + np.log(2 * np.pi * scale**2), axis=1)
    add(normal, density.mix.log_prob(x_T, process, t_start), part="prior")
    add(truth, density.log_prob(x), part="truncation")
    return rows


def calls_to_stay(rows: Frame, target: float) -> float:
    """Calls at which one form's error comes down to ``target`` for good, between two tolerances in log–log; infinite if
    that is never, or already at the loosest tolerance."""
    ordered = rows.sort_values("tolerance", ascending=False)
    above = np.flatnonzero(ordered.rms > target)
    last = ordered.iloc[above[-1] if above.size else len(ordered) :]
    return calls_for(last.nfe, last.rms, target)


def equal_error(frame: Frame, config: Config) -> Frame:
    """Rows (model, target): calls of each form for the same error, where all reach it above the reference's own."""
    known = at(frame, part="samples").groupby(["model", "form"], sort=False)
    calls = pd.DataFrame({target: known.apply(calls_to_stay, target) for target in config["targets"]}).stack()
    found = calls.unstack("form", sort=False)[config["forms"]].rename_axis(["model", "target"]).reset_index()
    least = found.model.map(config["floor_factor"] * at(frame, part="samples").groupby("model").estimate.max())
    return found[(found.target > least) & np.isfinite(found[config["forms"]]).all(axis=1)]


def ways(frame: Frame) -> Frame:
    """Rows of likelihoods with their ``way``: the form of ρRK, RK45, or noisy by a Hutchinson probe."""
    rows = frame.dropna(subset="trace")
    return rows.assign(way=rows.form.fillna(rows.part).where(rows.trace == "exact", "noisy"))


def costs(frame: Frame, config: Config) -> Frame:
    """Per density the least calls within ``wanted`` by each way, infinite if never, and RK45's usual ones."""
    rows = ways(frame)
    good = rows[rows.rms <= config["wanted"]].groupby(["model", "way"]).nfe.min().unstack()
    usual = at(rows, way="rk45", tolerance=config["usual_tolerance"]).set_index("model").nfe
    return good.reindex(index=usual.index, columns=["plain", "split", "rk45"]).fillna(np.inf).assign(usual=usual)


def verdict(frame: Frame, config: Config) -> str:
    """At equal errors the calls of the ρ-form over those of the original ODE; whether few calls give a likelihood."""
    found, likely = equal_error(frame, config), costs(frame, config)
    ratio, rhork = found.rho / found.t, likely[["plain", "split"]]
    tens = (rhork.le(config["few"]) & rhork.lt(likely.usual, axis=0)).sum()
    said = "With RK45 the forms have no error in common"
    if len(found):
        said = f"For the same error RK45 takes {span(ratio)} times the calls on the ρ-ODE that it takes on the original"
        said += f" ODE; it takes fewer at {(ratio < 1).sum()} of {len(found)} errors"
    return (
        f"{said}; {config['wanted']:g} bits per dimension take at most {config['few']} calls of ρRK, fewer than RK45's "
        f"usual {' and '.join(f'{n:.0f}' for n in likely.usual)}, on {tens.plain} of {len(likely)} densities, with the "
        f"unit-variance part exact on {tens.split}; for them RK45 itself takes {span(likely.rk45)}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Errors against calls: above of samples, a panel per model and a line per form; below of likelihoods."""
    samples, found, likely = at(frame, part="samples"), equal_error(frame, config), costs(frame, config)
    least = ways(frame).groupby(["model", "way", "nfe"], sort=False).rms.min().reset_index()
    note = (
        f"Above: scipy's RK45, rtol = atol from {max(config['tolerances']):g} down, {config['samples']} samples as one "
        f"state, of which digits that flip do not count, y = x/α; reference good to "
        f"{style.as_text(samples.estimate.max(), 1)}. Below: −log₂ p/d at t₀; green: wanted; "
        f"grey: of the prior N(0, σ²I), dashed, and of t₀ > 0, dotted. {style.setting(config)}."
    )
    models, rows = list(samples.model.unique()), -(-samples.model.nunique() // 2)
    fig = panels.sheet(verdict(frame, config).split("; ")[0], note, 2.3 * rows + 2.9)
    common: dict[str, Any] = {"x": "nfe", "y": "rms", "look": LINES.__getitem__, "legend": False, "columns": 2}
    upper = panels.lines(fig, samples, {m: f"samples: {studies.title(m)}" for m in models}, line="form", **common,
                         ylabel="RMS error", ticks=[20, 50, 100, 200, 500], end=rows / (rows + 1) - 0.05)  # fmt: skip
    titles = {m: f"likelihoods: {DENSITIES.get(m, m)}" for m in likely.index}
    lower = panels.lines(fig, least, titles, line="way", **common, ylabel="error, bits per dimension",
                         ticks=[12, 24, 48, 96], begin=rows / (rows + 1) + 0.12)  # fmt: skip
    upper[0].set_ylim(bottom=samples.rms.min() / 30)
    lower[0].set_ylim(bottom=least.rms.min() / 10)
    for ax, model in zip(upper, models, strict=True):
        if len(part := at(found, model=model)):
            told = f"calls over those of dx/dt: ρ {span(part.rho / part.t)}, λ {span(part.lam / part.t)}"
            panels.words(ax, 0.03, 0.03, told, ha="left", va="bottom")
    for ax, row in zip(lower, likely.itertuples(), strict=True):
        known = at(frame, model=row.Index).groupby("part").rms.max()
        for error, dashes in ((config["wanted"], "-"), (known.prior, "--"), (known.truncation, ":")):
            ax.axhline(error, color=style.GREEN if dashes == "-" else "#777777", lw=0.9, ls=dashes)
        told = f"calls: ρRK {row.plain:.0f}, part exact {row.split:.0f}, RK45 {row.rk45:.0f}"
        panels.words(ax, 0.03, 0.03, told, ha="left", va="bottom")
    upper[0].legend(fontsize=panels.SMALL, loc="upper right")
    lower[0].legend(fontsize=panels.SMALL, ncols=4, loc="lower left", bbox_to_anchor=(-0.1, 1.12))
    return fig
