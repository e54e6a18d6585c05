"""Does a black-box integrator get cheaper when the ODE is written in ρ? SciPy's RK45 on three forms of one flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deis_analysis.process.process import Array
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.models import studies

NAME = "appendix_blackbox_tolerance"
QUESTION = "Does RK45 need fewer model calls for the same error on dy/dρ = ε than on the original ODE in t?"
CONFIG: Config = {
    **studies.BASE,
    "models": ["mixture", "digits"],
    "forms": ["t", "rho", "lam"],
    "tolerances": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8],
    "targets": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
    "floor_factor": 3.0,
    "choices": {
        "tolerances": "the paper's are not known; rtol = atol, as score SDE has it, one step size for the whole batch",
        "lam": "the form in λ is not in the paper",
        "floor_factor": "errors below so many times the reference's own are not compared",
    },
}  # rtol and atol are equal, as in score SDE's black-box sampler; one step size for the whole batch, flattened
QUICK: Config = {**studies.BASE_QUICK, "tolerances": [1e-1, 1e-2, 1e-3], "targets": [1e-1, 1e-2]}
THOROUGH: Config = {
    "models": ["mixture", "gaussian", "digits", "network"],
    "samples": 512,
    "rtol": 1e-9,
    "tolerances": [10 ** (-i / 2) for i in range(2, 17)],
}
TITLES = {"t": "dx/dt, the original ODE", "rho": "dy/dρ = ε", "lam": "dy/dλ"}
LOOKS = {"t": (style.BLUE, "o"), "rho": (style.VERMILLION, "s"), "lam": (style.GREEN, "^")}
STAGES = 6  # new model calls per step that RK45 tries


def compute(config: Config, progress: Progress) -> Frame:
    """Rows (model, form, tolerance): nfe, steps taken and rejected, RMS error and that of the reference, estimated."""
    rows = []
    for i, name in enumerate(config["models"]):
        problem = studies.study(name, config)
        truth, estimate = problem.reference(config["t_end"])
        truth = truth.cpu().numpy()
        for j, form in enumerate(config["forms"]):
            for tolerance in config["tolerances"]:
                found = black_box(problem, form, config["t_start"], config["t_end"], tolerance)
                gap = found.pop("x") - truth
                rows.append({"model": name, "form": form, "tolerance": tolerance, **found,
                             "rms": float(np.sqrt(np.mean(gap**2))), "estimate": estimate})  # fmt: skip
            progress((i + (j + 1) / len(config["forms"])) / len(config["models"]))
    return pd.DataFrame(rows)


def black_box(problem: studies.Study, form: str, t_start: float, t_end: float, tolerance: float) -> dict[str, Any]:
    """SciPy's RK45 at rtol = atol = ``tolerance`` from ``problem.x_T``, as in Song et al. 2021 (app. D.2).

    Forms: ``t``: dx/dt = f x + (g²/2σ) ε.  ``rho``: dy/dρ = ε with y = x/α.  ``lam``: dy/dλ = −e^{−λ} ε.

    Returns:
        x (n, d) NumPy, nfe, steps, rejected (steps that were tried and not taken).
    """
    from scipy.integrate import solve_ivp

    rate, clock, scale = _form(problem, form, t_start, t_end)
    begin = problem.x_T.cpu().numpy().ravel() / scale(t_start)
    found = solve_ivp(rate, (clock(t_start), clock(t_end)), begin, method="RK45", rtol=tolerance, atol=tolerance)
    if not found.success:
        raise ValueError(f"tolerance={tolerance!r}: RK45 stopped on form {form!r}: {found.message}")
    steps = found.t.size - 1
    x = found.y[:, -1].reshape(tuple(problem.x_T.shape)) * scale(t_end)
    return {"x": x, "nfe": found.nfev, "steps": steps, "rejected": (found.nfev - 2) // STAGES - steps}


Function = Callable[[float], float]


def _form(problem: studies.Study, form: str, t_start: float, t_end: float) -> tuple[Any, Function, Function]:
    """(right-hand side on flat NumPy states, clock of a time, x = scale · state at a time)."""
    import torch

    process, like = problem.process, problem.x_T

    def eps(x: Array, t: float) -> Array:
        states = torch.as_tensor(x.reshape(tuple(like.shape)), dtype=like.dtype, device=like.device)
        return np.asarray(problem.model(states, t).detach().cpu()).ravel()

    def alpha(t: float) -> float:
        return float(process.alpha(t))

    def in_t(t: float, x: Array) -> Array:
        t = float(t)
        return float(process.drift(t)) * x + float(process.diffusion_squared(t) / (2 * process.sigma(t))) * eps(x, t)

    def in_rho(rho: float, y: Array) -> Array:
        t = float(np.clip(process.time_from_rho(rho), t_end, t_start))
        return eps(alpha(t) * y, t)

    def in_lam(lam: float, y: Array) -> Array:
        return -np.exp(-lam) * in_rho(float(np.exp(-lam)), y)

    match form:
        case "t":
            return in_t, float, lambda t: 1.0
        case "rho":
            return in_rho, lambda t: float(process.rho(t)), alpha
        case "lam":
            return in_lam, lambda t: float(process.lam(t)), alpha
    raise ValueError(f"form={form!r} is unknown; allowed: {', '.join(TITLES)}")


def calls_for(rows: Frame, target: float) -> float:
    """Model calls at which one form's error falls to ``target`` and stays: between tolerances, in log–log.

    NaN if that is never, or already at the loosest tolerance.

    Args:
        rows: of one model and form.
    """
    ordered = rows.sort_values("tolerance", ascending=False)
    nfe, rms = ordered.nfe.to_numpy(float), ordered.rms.to_numpy(float)
    above = np.flatnonzero(rms > target)
    if above.size == 0:
        return float("nan")
    i = int(above[-1])
    if i == rms.size - 1:
        return float("nan")
    share = np.log(rms[i] / target) / np.log(rms[i] / rms[i + 1])
    return float(np.exp(np.log(nfe[i]) + share * np.log(nfe[i + 1] / nfe[i])))


def equal_error(frame: Frame, config: Config) -> Frame:
    """Rows (model, target): calls of each form for the same error, where all reach it above the reference's own."""
    rows = []
    for model, part in frame.groupby("model", sort=False):
        for target in config["targets"]:
            if target > config["floor_factor"] * part.estimate.max():
                calls = {form: calls_for(part[part.form == form], target) for form in config["forms"]}
                if np.all(np.isfinite(list(calls.values()))):
                    rows.append({"model": model, "target": target, **calls})
    return pd.DataFrame(rows, columns=["model", "target", *config["forms"]])


def _range(values: Any) -> str:
    low, high = (style.as_text(float(v)) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def verdict(frame: Frame, config: Config) -> str:
    """At equal errors, the calls of the ρ- and λ-form over those of the original ODE; at how many the claim holds."""
    found = equal_error(frame, config)
    if found.empty:
        return (
            f"With RK45 the {len(config['forms'])} forms have no error in common, so that their calls do not compare."
        )
    parts = []
    for form, name in (("rho", "ρ-form"), ("lam", "λ-form")):
        times = ", ".join(
            f"{_range(part[form] / part.t)} times ({model})" for model, part in found.groupby("model", sort=False)
        )
        parts.append(f"on the {name} {times}, fewer at {int((found[form] < found.t).sum())} of {len(found)}")
    fewer = int((found.rho < found.t).sum())
    said = "holds" if fewer == len(found) else "does not hold" if fewer == 0 else f"holds at {fewer} of {len(found)}"
    return (
        f"For equal errors from {found.target.max():g} to {found.target.min():g} RK45 takes, against the original ODE, "
        f"{' and '.join(parts)}: that the ρ-form needs fewer calls {said}."
    )


def draw(frame: Frame, config: Config) -> Figure:
    """A row per model: error against model calls; error against tolerance; share of rejected steps."""
    names, found = list(frame.model.unique()), equal_error(frame, config)
    ratio = found.rho / found.t
    lam = found.lam / found.t
    headline = (
        f"RK45 on the ρ-ODE takes {_range(ratio)}× the calls of the original ODE for the same error "
        f"(fewer at {int((ratio < 1).sum())} of {len(found)} errors), on the λ-form {_range(lam)}×"
        if len(found) else "The forms have no error in common"
    )  # fmt: skip
    note = (
        f"scipy.integrate.solve_ivp, RK45, rtol = atol from {max(config['tolerances']):g} to "
        f"{style.as_text(min(config['tolerances']), 1)}; the batch of {config['samples']} samples is one flat state; "
        f"{style.setting(config)}. y = x/α. Reference accurate to {style.as_text(frame.estimate.max(), 1)}. "
        "Rejected: share of the steps tried that were not taken."
    )
    fig = style.new_figure(12.5, 1.6 + 3.2 * len(names), headline, note)
    margins = style.body(fig, bottom=0.6, left=0.85, right=0.3, extra_top=0.35)
    axes = fig.subplots(len(names), 3, squeeze=False, sharex="col",
                        gridspec_kw={**margins, "wspace": 0.3, "hspace": 0.24})  # fmt: skip
    for row, model in zip(axes, names, strict=True):
        part = frame[frame.model == model]
        for form, rows in part.groupby("form", sort=False):
            colour, marker = LOOKS[str(form)]
            look = {"color": colour, "marker": marker, "lw": 1.8, "label": TITLES[str(form)]}
            row[0].plot(rows.nfe, rows.rms, **look)
            row[1].plot(rows.tolerance, rows.rms, **look)
            row[2].plot(rows.tolerance, 100 * rows.rejected / (rows.steps + rows.rejected), **look)
        _finish(row, part, studies.title(model))
    axes[0, 0].legend(loc="upper right", fontsize=9)
    for ax, label in zip(axes[-1], ("model calls (NFE)", *["tolerance (rtol = atol)"] * 2), strict=True):
        ax.set_xlabel(label)
    return fig


def _finish(row: Any, part: Frame, title: str) -> None:
    for ax in row[:2]:
        ax.set(xscale="log", yscale="log", ylabel="RMS error")
        if part.estimate.max() > 0:
            ax.axhline(part.estimate.max(), color="#999999", lw=0.8, ls="--", zorder=0)
            ax.text(0.02, part.estimate.max() * 1.15, "reference", transform=ax.get_yaxis_transform(), fontsize=8,
                    color="#777777", va="bottom")  # fmt: skip
    row[0].set_title(title[0].upper() + title[1:])
    row[1].plot([part.tolerance.min(), part.tolerance.max()], [part.tolerance.min(), part.tolerance.max()],
                color="#bbbbbb", lw=0.9, zorder=0)  # fmt: skip
    row[1].set_title("Error against tolerance (grey: equal)")
    row[2].set(xscale="log", ylabel="rejected steps, %", title="Rejected steps")
    row[2].set_ylim(bottom=0)
    style.plain_log_ticks(row[0].xaxis, [v for v in (20, 50, 100, 200, 500, 1000, 2000) if v <= part.nfe.max() * 1.5])
