"""How many model calls does a log-likelihood need? ρRK-DEIS beside RK45, against exact densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import deis_analysis as da
from deis_analysis import backend
from deis_analysis.analysis.likelihood import Likelihood, bits_per_dim, log_likelihood, log_likelihood_rk45
from deis_analysis.process.process import Array, Process
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models.problems import digits, gaussian_like, product_mixture, vp_linear

NAME = "appendix_likelihood"
QUESTION = "Do a few tens of calls of rhoRK-DEIS give the bits per dimension that RK45 needs about a hundred for?"
CONFIG: Config = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "t_start": 1.0,
    "t_end": 1e-3,
    "grids": ["rho7", "logrho", "t2"],
    "methods": ["2heun", "3kutta", "4rk"],
    "calls": [12, 24, 36, 48, 72],
    "known_variance": 1.0,
    "tolerances": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6],
    "usual_tolerance": 1e-5,
    "wanted": 0.01,
    "few": 50,
    "samples": {"mixture": 128, "gaussian": 32},
    "floor": 1e-4,
    "seed": 0,
    "choices": {
        "methods": "the paper's scheme is a ρRK of unknown order and grid: three orders on three grids",
        "known_variance": "not in the paper: the flow that data of this variance would have is solved exactly",
        "wanted": "a likelihood counts as found within so many bits per dimension; few: at most so many calls",
        "densities": "exact ones, not images: no dequantisation",
    },
}
QUICK: Config = {
    "grids": ["t2"],
    "methods": ["3kutta"],
    "calls": [12, 48],
    "tolerances": [1e-3, 1e-5],
    "samples": {"mixture": 16, "gaussian": 2},
}
THOROUGH: Config = {
    "methods": ["2heun", "3kutta", "4rk"],
    "calls": [12, 24, 36, 48, 60, 72, 96, 120],
    "tolerances": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8],
    "samples": {"mixture": 1024, "gaussian": 128},
}
PROBLEMS = {
    "mixture": "4-D mixture, turned",
    "gaussian": "64-D Gaussian with the digits' moments",
}
FORMS = {"plain": "ρRK on log q", "split": "ρRK, unit-variance part exact"}
_ORDER = {"2heun": "s", "3kutta": "^", "4rk": "D"}
_LINES: dict[str, Any] = {"t2": "-", "logrho": "--", "rho7": ":"}


class Problem(NamedTuple):
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


def problems(config: Config) -> dict[str, Problem]:
    """The two densities with data x ~ p_0, not p_{t₀}: a likelihood is asked of data."""
    from scipy.stats import ortho_group

    like = gaussian_like(digits(), config["floor"])
    variances, axes = np.linalg.eigh(like.covariances[0])
    mixes: dict[str, tuple[Any, Array]] = {
        "mixture": (product_mixture(), ortho_group.rvs(4, random_state=config["seed"])),
        "gaussian": (da.GaussianMixture([1.0], like.means @ axes, variances[None]), axes),
    }
    return {
        name: Problem(mix, q, mix.sample(config["samples"][name], config["seed"]) @ q.T)
        for name, (mix, q) in mixes.items()
    }


def compute(config: Config, progress: Progress) -> Frame:
    """Errors in bits per dimension: rows of part "rhork", "rk45", and the parts that no solver can mend."""
    process = vp_linear(config)
    rows: list[dict[str, Any]] = []
    cases = problems(config)
    for done, (name, problem) in enumerate(cases.items()):
        truth = problem.log_prob(problem.x, process, config["t_end"])

        def error(log_prob: Any, exact: Any, problem: Problem = problem) -> dict[str, float]:
            gap = bits_per_dim(np.asarray(log_prob), problem.mix.dimension)
            gap = gap - bits_per_dim(np.asarray(exact), problem.mix.dimension)
            return {"rms": float(np.sqrt(np.mean(gap**2))), "mean_error": float(np.mean(gap))}

        runs = _runs(problem, process, config)
        for i, (labels, run) in enumerate(runs, 1):
            found = run()
            costs = {"nfe": found.nfe, "products": found.products}
            rows.append({"problem": name, **labels, **costs, **error(found.log_prob, truth)})
            progress((done + i / len(runs)) / len(cases))
        x_T = problem.mix.flow(process, problem.x @ problem.axes, config["t_end"], config["t_start"])
        scale = float(process.sigma(config["t_start"]))
        normal = -0.5 * np.sum((x_T / scale) ** 2 + np.log(2 * np.pi * scale**2), axis=1)
        prior = problem.mix.log_prob(x_T, process, config["t_start"])
        rows.append({"problem": name, "part": "prior", **error(normal, prior)})
        rows.append({"problem": name, "part": "truncation", **error(truth, problem.log_prob(problem.x))})
    return pd.DataFrame(rows)


def _runs(problem: Problem, process: Process, config: Config) -> list[tuple[dict[str, Any], Callable[[], Likelihood]]]:
    """Labels and a run for each cell; the exact prior throughout, so that what is seen is the solver's error."""
    model, x = problem.model(process), problem.x
    ends = {"t_start": config["t_start"], "t_end": config["t_end"]}
    runs: list[tuple[dict[str, Any], Callable[[], Likelihood]]] = []

    def prior(x_T: Any) -> Any:
        return problem.log_prob(x_T, process, config["t_start"])

    def add(part: str, call: Callable[..., Likelihood], labels: dict[str, Any], settings: dict[str, Any]) -> None:
        shared = {**ends, "seed": config["seed"], "prior": prior}
        runs.append(({"part": part, **labels}, lambda: call(model, process, x, **shared, **settings)))

    for tol in config["tolerances"]:
        add("rk45", log_likelihood_rk45, {"trace": "exact", "tolerance": tol}, {"rtol": tol, "atol": tol})
    tol = config["usual_tolerance"]
    noisy = {"rtol": tol, "atol": tol, "trace": "hutchinson"}
    add("rk45", log_likelihood_rk45, {"trace": "hutchinson", "tolerance": tol}, noisy)
    for method in config["methods"]:
        for kind in config["grids"]:
            for calls in config["calls"]:
                for form, trace in (("plain", "exact"), ("split", "exact"), ("split", "hutchinson")):
                    known = config["known_variance"] if form == "split" else None
                    if trace == "hutchinson" and kind != config["grids"][-1]:
                        continue  # its noise does not depend on the grid
                    settings = {"steps": calls // len(da.RUNGE_KUTTA[method].b), "method": method, "kind": kind}
                    labels = {"form": form, "method": method, "grid": kind, "trace": trace}
                    add("rhork", log_likelihood, labels, {**settings, "trace": trace, "known_variance": known})
    return runs


def findings(frame: Frame, config: Config) -> dict[str, dict[str, Any]]:
    """Per problem: the cheapest rows within the wanted error, RK45 at its usual tolerance, and what else is wrong."""
    found = {}
    for problem, rows in frame.groupby("problem", sort=False):
        exact, noisy = rows[rows.trace == "exact"], rows[rows.trace == "hutchinson"]
        rk45 = exact[exact.part == "rk45"]
        groups = {form: exact[exact.form == form] for form in FORMS} | {"rk45": rk45}
        usual = rk45[rk45.tolerance == config["usual_tolerance"]].iloc[0]
        found[str(problem)] = {
            **{name: _cheapest(group, config["wanted"]) for name, group in groups.items()},
            "usual": usual,
            "noise": float(noisy[noisy.part == "rk45"].rms.iloc[0]),
            "prior": float(rows[rows.part == "prior"].rms.iloc[0]),
            "truncation": float(rows[rows.part == "truncation"].rms.iloc[0]),
        }
    return found


def _cheapest(rows: Frame, wanted: float) -> Any:
    """The row of fewest calls within ``wanted``, of those the most accurate; None if there is none."""
    good = rows[rows.rms <= wanted].sort_values(["nfe", "rms"])
    return good.iloc[0] if len(good) else None


def _costs(found: dict[str, dict[str, Any]], key: str) -> str:
    """The calls of one way on each problem, for a sentence."""
    return " and ".join("more than tried" if f[key] is None else str(int(f[key].nfe)) for f in found.values())


def holds(found: dict[str, dict[str, Any]], config: Config, form: str) -> list[str]:
    """The problems on which a few tens of calls of that form suffice and RK45 at its usual tolerance takes more."""
    return [
        name
        for name, f in found.items()
        if f[form] is not None and f[form].nfe <= config["few"] and f["usual"].nfe > f[form].nfe
    ]


def verdict(frame: Frame, config: Config) -> str:
    """What an error of ``wanted`` costs by each method, and whether that is the paper's claim."""
    found = findings(frame, config)
    claims = [len(holds(found, config, form)) for form in FORMS]
    return (
        f"Bits per dimension within {config['wanted']:g} take ρRK on log q {_costs(found, 'plain')} calls "
        f"({' and '.join(found)}), {_costs(found, 'split')} with the unit-variance part exact, RK45 "
        f"{_costs(found, 'rk45')}, at its usual tolerance {_costs(found, 'usual')}: at most {config['few']}, fewer "
        f"than the latter, suffice for ρRK on {claims[0]} of {len(found)} problems, with that part "
        f"exact on {claims[1]}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: the two forms of ρRK; columns: problems; errors against calls, RK45 in black."""
    found = findings(frame, config)
    texts = {key: _costs(found, key) for key in (*FORMS, "rk45")}
    headline = (
        f"{config['wanted']:g} bits per dimension take ρRK {texts['plain']} calls, {texts['split']} with the "
        f"unit-variance part exact; RK45 {texts['rk45']} (mixture and Gaussian)"
    )
    few = ", ".join(f"{config['samples'][name]} ({name})" for name in PROBLEMS)
    note = (
        "Error of −log₂ p/d at t₀ against the exact density, root mean square over samples; exact prior p_T, exact "
        f"trace but for the grey line (one Hutchinson probe, best method at each NFE). {style.setting(config)}; "
        f"samples: {few}. Horizontal lines: errors that are not the solver's."
    )
    fig = style.new_figure(12.0, 9.0, headline, note)
    margins = style.body(fig, bottom=0.95, left=0.85, right=0.3, extra_top=0.35)
    axes = fig.subplots(2, 2, sharex=True, sharey=True, gridspec_kw={**margins, "wspace": 0.06, "hspace": 0.16})
    for row, form in zip(axes, FORMS, strict=True):
        for ax, problem in zip(row, PROBLEMS, strict=True):
            _panel(ax, frame[frame.problem == problem], form, found[problem], config)
            ax.set_title(f"{PROBLEMS[problem]}: {FORMS[form]}")
        row[0].set_ylabel("error, bits per dimension")
    for ax in axes[-1]:
        ax.set_xlabel("model calls (NFE)")
    _legend(fig, config)
    return fig


def _panel(ax: Any, rows: Frame, form: str, found: dict[str, Any], config: Config) -> None:
    colour = style.VERMILLION if form == "plain" else style.BLUE
    cells = rows[(rows.part == "rhork") & (rows.form == form)]
    for (method, kind), part in cells[cells.trace == "exact"].groupby(["method", "grid"], sort=False):
        ax.plot(part.nfe, part.rms, color=colour, marker=_ORDER[method], linestyle=_LINES[kind], lw=1.1,
                markerfacecolor="white", alpha=0.9)  # fmt: skip
    noisy = cells[cells.trace == "hutchinson"].groupby("nfe").rms.min()
    ax.plot(noisy.index, noisy, color=style.GREY, lw=2.0)
    rk45 = rows[(rows.part == "rk45") & (rows.trace == "exact")].sort_values("nfe")
    ax.plot(rk45.nfe, rk45.rms, color=style.BLACK, marker="o", lw=1.8)
    usual = found["usual"]
    ax.annotate(f"rtol {usual.tolerance:g}", (usual.nfe, usual.rms), xytext=(6, 2), textcoords="offset points",
                fontsize=9, va="center")  # fmt: skip
    ax.axhline(config["wanted"], color=style.GREEN, lw=0.9)
    label: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5}
    below: dict[str, Any] = {"xytext": (4, -2), "va": "top"}
    above: dict[str, Any] = {"xytext": (4, 1), "va": "bottom"}
    ax.annotate(f"wanted: {config['wanted']:g}", (10, config["wanted"]), color=style.GREEN, **below, **label)
    for key, text in (("prior", "prior N(0, σ²I) is not p_T"), ("truncation", f"t₀ = {config['t_end']:g} is not 0")):
        ax.axhline(found[key], color="#777777", lw=0.9, linestyle=(0, (6, 3)))
        lower = key == min(("prior", "truncation"), key=lambda k: found[k])  # the two may be close
        ax.annotate(text, (10, found[key]), color="#555555", **(below if lower else above), **label)
    ax.set(xscale="log", yscale="log", xlim=(10, 150), ylim=(1e-5, 12))
    style.plain_log_ticks(ax.xaxis, [12, 24, 36, 48, 72, 96, 130])


def _legend(fig: Any, config: Config) -> None:
    entries = [
        Line2D([], [], color="#444444", marker=_ORDER[m], linestyle="none", markerfacecolor="white", label=m)
        for m in config["methods"]
    ]
    entries += [Line2D([], [], color="#444444", linestyle=_LINES[k], label=f"{k} grid") for k in config["grids"]]
    entries += [
        Line2D([], [], color=style.BLACK, marker="o", lw=1.8, label="RK45 in t"),
        Line2D([], [], color=style.GREY, lw=2.0, label="Hutchinson, one probe"),
    ]
    fig.legend(handles=entries, loc="lower center", ncols=len(entries), columnspacing=1.4, handletextpad=0.5)
