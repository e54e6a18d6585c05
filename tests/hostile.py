"""Hostile calls, generated: every public callable with good arguments of which one at a time is replaced by a bad one.

A case ends as

* "refused": a ValueError or TypeError that was raised on purpose and names the argument;
* "unnamed": one that names another: that with which the value does not go together, or what was made of it;
* "raw": any other exception;
* "its own": an exception of a function that was given where one is wanted, but is not of that kind;
* "hang": it ran for more than `LIMIT_S` seconds of processor time, or waited for 24 times as long;
* "swallowed": None, NaN or infinity in a numeric argument gave a result (None where it is the default is no such case);
* "accepted": another value gave a result; some of these values are good ones for some arguments.

`tests/fuzz.py` runs all, `tests/test_hostile.py` a sample of them.
"""

from __future__ import annotations

import contextlib
import decimal
import fractions
import inspect
import io
import math
import os
import pathlib
import random
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

import deis_analysis as da
from deis_analysis import analysis, audit, diagnostics, interop, networks, problems, steppers, tuning
from deis_analysis.interop import published
from deis_analysis.problems.log_normal import MultiplicativeNoise
from deis_analysis.process.grids import check_grid
from deis_analysis.reference import flow as _flow  # noqa: F401 - torchdiffeq is imported before the clock runs
from deis_analysis.tableau.many import by_time

LIMIT_S = 5.0
VP, EDM, VE, FLOW = da.VPLinear(), da.EDM(), da.VE(), da.RectifiedFlow()
MIX = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.5, 0.3])
WIDE = da.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [0.8, 0.5]], [0.5, 0.3])
GAUSS = da.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
PRODUCT = da.ProductMixture([MIX, MIX])
TS = da.grid(VP, 4, "t2")
TAB, HEUN, NOISY, BDIA = (da.build(name, VP, TS) for name in ("tab2", "rhork_2heun", "ddpm", "bdia"))
X = np.linspace(-1.0, 1.0, 4)
X2 = np.linspace(-1.0, 1.0, 6).reshape(3, 2)
T2 = torch.as_tensor(X2)
IMAGES = torch.zeros(2, 1, 8, 8)
MODEL = MIX.eps(VP)
SCORE = by_time(WIDE.model(VP, "score"))
ALPHAS = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 20))
FOLDER = pathlib.Path(tempfile.gettempdir()) / f"hostile-{os.getpid()}"

THEIRS = """
def euler(model, x, sigmas):
    for high, low in zip(sigmas, sigmas[1:]):
        x = x + (low - high) * (x - model(x, high)) / high
    return x
"""


def linear(x: Any, t: float) -> Any:
    """A model of two dimensions that torch differentiates."""
    return -0.5 * x


HOSTILE: dict[str, Any] = {
    "None": None,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "-1": -1,
    "0": 0,
    "0.5": 0.5,
    "-0.5": -0.5,
    "tiny": 1e-320,
    "large": 1e308,
    "10**9": 10**9,
    "1e9": 1e9,
    "10**19": 10**19,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "True": True,
    "complex": 1 + 2j,
    "text": "abc",
    "empty text": "",
    "long text": "x" * 10_000,
    "bytes": b"abc",
    "NUL": "\0",
    "number as text": "0.5",
    "[]": [],
    "()": (),
    "{}": {},
    "set": {1.0},
    "[None]": [None],
    "[text]": ["a"],
    "[nan]": [math.nan],
    "ragged": [[1.0], [1.0, 2.0]],
    "nested": [[[[0.5]]]],
    "range": range(3),
    "object": object(),
    "class": int,
    "module": math,
    "function": lambda: None,
    "raises": max,
    "nan array": np.array([0.5, math.nan]),
    "inf array": np.array([math.inf, 0.5, 0.1]),
    "text array": np.array(["a", "b"]),
    "object array": np.array([None, 1.0], dtype=object),
    "empty array": np.zeros((0,)),
    "cube": np.ones((2, 3, 4)),
    "int array": np.array([3, 2, 1]),
    "0-d nan": np.float64("nan"),
    "float32": np.float32(0.25),
    "date": np.datetime64("2020-01-01"),
    "record": np.zeros(2, dtype=[("a", float)]),
    "meta tensor": torch.zeros(3, device="meta"),
    "nan tensor": torch.tensor([math.nan, 1.0]),
    "complex tensor": torch.tensor([1j]),
    "bool tensor": torch.tensor([True, False]),
    "tensor": torch.tensor(0.5),
    "sparse tensor": torch.eye(2).to_sparse(),
    "Fraction": fractions.Fraction(1, 3),
    "Decimal nan": decimal.Decimal("nan"),
    "path": pathlib.Path("/nonexistent/place"),
    "table": TAB,
    "process": EDM,
    "mixture": WIDE,
    "array class": np.ndarray,
}
NOTHING = {
    "None",
    "nan",
    "inf",
    "-inf",
    "[None]",
    "[nan]",
    "nan array",
    "inf array",
    "0-d nan",
    "nan tensor",
    "Decimal nan",
    "object array",
}


@dataclass(frozen=True)
class Case:
    """One call: ``where`` says which value, of which argument, of which callable."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    name: str
    argument: str
    value: str

    @property
    def where(self) -> str:
        return f"{self.name}({self.argument}={self.value})"


def _callables() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Name → (callable, good arguments)."""
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}

    def add(name: str, function: Callable[..., Any], /, **good: Any) -> None:
        found[name] = function, good

    for name in ("adams", "singlestep"):
        add(name, getattr(da, name), process=VP, ts=TS, degree=2) if name == "adams" else add(
            name, da.singlestep, process=VP, ts=TS, order=2
        )
    for name in (
        "ancestral",
        "bdia",
        "ddim_eta",
        "ddpm",
        "dpm_fast",
        "edm_churn",
        "edm_sampler",
        "euler_maruyama",
        "gdss_splitting",
        "ipndm",
        "mrs",
        "obelm",
        "one_sde_step",
        "pndm",
        "resfusion",
        "resnoise_weight",
        "reverse_diffusion",
        "reversible_heun",
        "runge_kutta",
        "unipc",
        "analytic_dpm",
    ):
        process = FLOW if name.startswith("res") else VP
        add(name, getattr(da, name), process=process, ts=da.grid(process, 4, "t2"))
    for name in ("flow_sampler", "flow_sde"):
        add(name, getattr(da, name), process=FLOW, ts=da.grid(FLOW, 4, "t2"))
    add("belm", da.belm, process=VP, ts=TS, g=0.5)
    add("ei_score", da.solvers.ei_score, process=VP, ts=TS)
    add("euler", da.solvers.euler, process=VP, ts=TS)
    add("build", da.build, name="tab2", process=VP, ts=TS)
    add("sample", da.sample, solver="tab2", model=MODEL, x_T=X, steps=4, grid="t2", process=VP)
    add("grid", da.grid, process=VP, steps=4, kind="t2", t_start=0.9, t_end=0.1)
    add("check_grid", check_grid, process=VP, ts=TS)
    add("two_stage_grid", da.two_stage_grid, process=VP, steps=6, levels=12)
    add("phi", da.phi, k=2, h=0.5)
    add(
        "quadrature_weights",
        da.quadrature_weights,
        process=VP,
        prediction="eps",
        variable="t",
        nodes=[0.5, 0.4],
        a=0.4,
        b=0.2,
    )
    add("resfusion_start", da.resfusion_start, process=VP)
    # processes
    add("VPLinear", da.VPLinear, beta_min=0.1, beta_max=20.0)
    add("SubVP", da.SubVP, beta_min=0.1, beta_max=20.0)
    add("VE", da.VE, sigma_min=0.01, sigma_max=50.0)
    add("EDM", da.EDM, sigma_min=0.002, sigma_max=80.0)
    add("VPCosine", da.VPCosine, s=0.008, t_max=0.99)
    add("VPDiscrete", da.VPDiscrete, alphas_cumprod=ALPHAS)
    add("MeanReverting", da.MeanReverting, process=VP, mean=1.0, noise_scale=1.0)
    for process in (VP, EDM, FLOW, da.VPCosine(), da.VPDiscrete(ALPHAS)):
        kind = type(process).__name__
        middle = 0.5 * sum(process.sampling_range)
        for name in ("alpha", "sigma", "rho", "lam", "drift", "diffusion_squared", "log_rho_rate"):
            add(f"{kind}.{name}", getattr(process, name), t=middle)
        add(f"{kind}.psi", process.psi, s=middle / 2, t=middle)
        add(f"{kind}.time_from_rho", process.time_from_rho, rho=0.3)
        add(f"{kind}.time_from_lam", process.time_from_lam, lam=1.0)
        for name in ("gamma", "kappa", "kappa_rate", "prediction_parts"):
            add(f"{kind}.{name}", getattr(process, name), prediction="eps", t=middle)
        add(f"{kind}.variable_rate", process.variable_rate, variable="t", t=middle)
        add(f"{kind}.convert", process.convert, source="eps", target="x0", t=middle)
        add(f"{kind}.translate", process.translate, x=X, p=X, source="eps", target="x0", t=middle)
    add("Convention", da.Convention, prediction="eps", time="t", scale=1.0, offset=0.0, state="process")
    add("Convention.told", da.Convention().told, process=VP, t=0.5)
    add("Convention.process_time", da.Convention().process_time, process=VP, told=0.5)
    add("Convention.input_scale", da.Convention().input_scale, process=VP, t=0.5)
    add("Model", da.Model, function=linear, process=VP, prediction="eps")
    add("flow_model", da.flow_model, model=linear, data_time=0.0, noise_time=1.0)
    # tables
    add(
        "Tableau",
        da.Tableau,
        times=TAB.times,
        states=TAB.states,
        outputs=TAB.outputs,
        noise=None,
        prediction="eps",
        name="a",
        labels=(),
        intervals=None,
        grid_nodes=(),
        mean=None,
        process=VP,
    )
    add("Tableau.label", TAB.label, k=1)
    add("Tableau.then", da.build("ddim", VP, [0.9, 0.5]).then, other=da.build("ddim", VP, [0.5, 0.1]))
    add("Tableau.in_terms_of", TAB.in_terms_of, process=VP, prediction="x0")
    add("Tableau.for_model", TAB.for_model, model=MODEL)
    add("Tableau.latex", TAB.latex, digits=4, limit=12)
    add("Tableau.from_json", da.Tableau.from_json, text=TAB.to_json())
    add("BrownianPath", da.BrownianPath, shape=(2,), seed=0)
    add("BrownianPath()", da.BrownianPath((2,)), u=0.5)
    add("BrownianPath.normal", da.BrownianPath((2,)).normal, start=1.0, stop=0.5)
    add("run", da.run, tableau=TAB, model=MODEL, x=X, noise=None, keep=(), progress=False, model_dtype=None, check=True)
    add("run noisy", da.run, tableau=NOISY, model=MODEL, x=X, noise=0)
    add("run_many", da.run_many, tables=[TAB] * 4, model=linear, x=X, noise=None)
    add("invert", da.invert, tableau=BDIA)
    add("round_trip_error", da.round_trip_error, tableau=BDIA, model=linear, x=X)
    add("extract", da.extract, sampler=lambda model, x: model(x, 1.0), calls=1, prediction="eps", noises=0)
    add(
        "extract own",
        da.extract,
        sampler=lambda model, x: x - 0.1 * model(x, 0.5),
        convention=da.Convention(),
        process=VP,
        t_end=0.1,
        backend="numpy",
    )
    # problems
    add("GaussianMixture", da.GaussianMixture, weights=[0.4, 0.6], means=[-1.0, 0.8], covariances=[0.5, 0.3])
    for name, mix, x in (("mixture", MIX, X), ("product", PRODUCT, X2)):
        add(f"{name}.sample", mix.sample, n=3, seed=0, process=VP, t=0.5)
        add(f"{name}.log_prob", mix.log_prob, x=x, process=VP, t=0.5)
        add(f"{name}.flow", mix.flow, process=VP, x=x, t_from=0.9, t_to=0.1)
        add(f"{name}.eps", mix.eps, process=VP)
        add(f"{name}.model", mix.model, process=VP, prediction="x0")
        add(f"{name}.model()", mix.model(VP, "x0"), x=x, t=0.5)
    add("mixture.from_prior", GAUSS.from_prior, process=VP, x=X2, t=0.9)
    add("ProductMixture", da.ProductMixture, marginals=[MIX, MIX])
    add("ideal_denoiser", da.ideal_denoiser, data=X2, process=VP, std=0.1)
    add("ideal_denoiser()", da.ideal_denoiser(X2, VP, 0.1), x=X2, t=0.5)
    add("order_problem", da.order_problem, process=VP)
    add("components", problems.components, mix=WIDE)
    add("condition", problems.condition, mix=WIDE, A=np.ones((1, 2)), y=[0.5], noise_covariance=[[0.1]])
    add("gaussian_of", problems.gaussian_of, data=X2 + np.eye(3, 2), floor=0.0)
    add(
        "moment_closure",
        problems.moment_closure,
        gaussian=GAUSS,
        process=VP,
        A=np.ones((1, 2)),
        y=[0.5],
        noise_covariance=[[0.1]],
        v_squared=0.5,
        t_start=0.9,
        t_end=0.5,
        rtol=1e-4,
    )
    add("teleport", problems.teleport, source=GAUSS, process=VP, x_T=X2, t_start=0.9, t_skip=0.5)
    add("MultiplicativeNoise", MultiplicativeNoise, mu=0.0, sigma=1.0)
    add("Interpolant", problems.Interpolant, mix0=MIX, mix1=MIX)
    # steppers
    stepper = da.STEPPERS["dpmpp_adaptive_12"].build(VP, TS)
    add("simulate", da.simulate, stepper=stepper, model=MODEL, x=X)
    add("AdaptiveDPM", steppers.AdaptiveDPM, process=VP, t_start=0.9, t_end=0.1, order=2, prediction="eps", atol=0.01)
    add("EVODiff", steppers.EVODiff, process=VP, ts=TS)
    add("Langevin", steppers.Langevin, process=VP, t=0.5, steps=3, snr=0.16, step_size=0.1)
    add("PredictorCorrector", steppers.PredictorCorrector, process=VP, ts=TS)
    add("dynamic_thresholding", da.dynamic_thresholding, model=linear, process=VP, ratio=0.99, max_value=1.0)
    add("static_thresholding", da.static_thresholding, model=linear, process=VP, max_value=1.0)
    add("level_grid", steppers.level_grid, process=VP, levels=10)
    add("exact_classifier", steppers.exact_classifier, mix=MIX, process=VP, times=[0.9, 0.5, 0.1])
    add("hand_over", da.hand_over, model=SCORE, process=VP, x=X2, times=[0.9, 0.5, 0.4], steps=3)
    classifier = steppers.exact_classifier(WIDE, VP, TS)
    add(
        "langevin_gibbs",
        da.langevin_gibbs,
        model=SCORE,
        classifier=classifier,
        process=VP,
        times=TS,
        x=X2,
        level=[0, 1, 2],
        sweeps=2,
    )
    # analysis
    add("distance", da.distance, a=TAB, b=HEUN)
    add("transfer", da.transfer, tableau=TAB, process=VP, variance=0.5)
    add("exact_transfer", da.exact_transfer, process=VP, variance=0.5, t_start=0.9, t_end=0.1)
    add("law_error", da.law_error, tableau=NOISY, process=VP, mean=0.0, variance=0.5)
    add("output_law", da.output_law, tableau=NOISY, process=VP, mean=0.0, covariance=0.5)
    add("strong_distance", da.strong_distance, a=NOISY, b=NOISY, process=VP, mean=0.0, variance=0.5)
    add("affine_form", analysis.affine_form, tableau=NOISY, process=VP, mean=0.0, variance=0.5)
    add("amplification", da.amplification, tableau=TAB)
    add(
        "exactness_degree",
        da.exactness_degree,
        tableau=TAB,
        process=VP,
        prediction="eps",
        variable="t",
        lam_sde=0.0,
        max_degree=3,
        tolerance=1e-9,
    )
    add(
        "step_moment",
        analysis.step_moment,
        table=TAB,
        process=VP,
        prediction="eps",
        variable="t",
        first=0,
        last=1,
        power=0,
    )
    for name in ("global_error", "local_errors", "transported_errors"):
        add(name, getattr(da, name), tableau=TAB, process=VP, mix=MIX, x=X)
    add("extrapolation_error", da.extrapolation_error, model=MODEL, process=VP, path=lambda t: X, ts=TS, degree=1)
    add("observed_order", da.observed_order, solver="ddim", process=VP, mix=MIX, steps=(4, 8, 16), kind="t2", samples=4)
    add("weak_order", da.weak_order, solver="ddpm", process=VP, steps=(4, 8, 16), mean=0.0, variance=0.5)
    add("strong_order", da.strong_order, solver="ddpm", process=VP, steps=(4, 8, 16), mean=0.0, variance=0.5)
    add("step_counts", da.step_counts, row=da.SOLVERS["ddim"], start="own")
    add("energy_distance", da.energy_distance, a=X2, b=X2 + 1)
    add("wasserstein2", da.wasserstein2, a=X2, b=X2 + 1)
    add("wasserstein2 sliced", da.wasserstein2, a=X2, b=X2 + 1, method="sliced", slices=8, most=3)
    add("wasserstein2_between", da.wasserstein2_between, a=MIX, b=X)
    add("wasserstein2_floor", da.wasserstein2_floor, x=X, n=2, draws=3)
    add("gaussian_wasserstein2", da.gaussian_wasserstein2, mean_a=[0.0], cov_a=[[1.0]], mean_b=[1.0], cov_b=[[2.0]])
    add("diffused", da.diffused, mixture=MIX, process=VP, t=0.5)
    add("bits_per_dim", da.bits_per_dim, log_prob=X, dimension=2, offset=0.0)
    add("log_likelihood", da.log_likelihood, model=linear, process=VP, x_0=T2, steps=3)
    add("log_likelihood hutchinson", da.log_likelihood, model=linear, process=VP, x_0=T2, steps=3, trace="hutchinson")
    add("log_likelihood_rk45", da.log_likelihood_rk45, model=linear, process=VP, x_0=T2, rtol=1e-2, atol=1e-2)
    add("error_budget", da.error_budget, model=MODEL, exact=MODEL, solver="ddim", nfe=3, process=VP, x_T=X, rtol=1e-3)
    add("moment_estimate", da.moment_estimate, model=MODEL, ts=TS, data=X)
    add(
        "reference_solution",
        da.reference_solution,
        model=MODEL,
        process=VP,
        x_T=X,
        t_end=0.4,
        rtol=1e-2,
        atol=1e-2,
        t_start=0.5,
        certify=False,
    )
    add(
        "reference_path",
        da.reference_path,
        model=MODEL,
        process=VP,
        x_T=X,
        times=[0.5, 0.4],
        rtol=1e-2,
        atol=1e-2,
        certify=False,
    )
    # diagnostics
    add("fokker_planck_residual", da.fokker_planck_residual, score=linear, process=VP, x=T2, t=0.5)
    add("time_derivative", diagnostics.time_derivative, score=linear, process=VP, x=T2, t=0.5)
    add("jacobian_asymmetry", diagnostics.jacobian_asymmetry, score=linear, x=T2, t=0.5)
    add("loop_integral", diagnostics.loop_integral, score=linear, center=[0.0, 0.0], radius=0.5, plane=np.eye(2), t=0.5)
    add("as_score", diagnostics.as_score, model=linear, process=VP)
    add("embedded_error", diagnostics.embedded_error, tableau=HEUN, model=MODEL, x=X)
    add("embedded_nodes", diagnostics.embedded_nodes, tableau=HEUN)
    add("equal_time_pairs", diagnostics.equal_time_pairs, tableau=HEUN)
    add("stiffness_estimates", diagnostics.stiffness_estimates, tableau=HEUN, model=MODEL, x=X)
    add(
        "linear_score_gap",
        diagnostics.linear_score_gap,
        gain=lambda t: -1.0,
        process=VP,
        variance_start=1.0,
        t_start=0.9,
        t_end=0.5,
    )
    add("martingale_defect", diagnostics.martingale_defect, tableau=NOISY, process=VP, mean=0.0, variance=0.5)
    add(
        "sampled_martingale_defect",
        diagnostics.sampled_martingale_defect,
        tableau=NOISY,
        model=MODEL,
        process=VP,
        x=X,
        pairs=2,
    )
    move = diagnostics.table_flow("ddim", VP, linear, 2)
    add("table_flow", diagnostics.table_flow, solver="ddim", process=VP, model=linear, steps=2)
    add("mean_velocity", diagnostics.mean_velocity, flow=move, x=X, t=0.9, r=0.5)
    add("semigroup_defect", diagnostics.semigroup_defect, flow=move, x=X, t=0.9, s=0.7, r=0.5)
    add(
        "mean_velocity_residual",
        diagnostics.mean_velocity_residual,
        flow=move,
        velocity=linear,
        x=X,
        t=0.9,
        r=0.5,
        delta=0.01,
    )
    # tuning, audit, interop, networks
    add("choose", da.choose, model="mixture", nfe=5, solvers=["ddim"], grids=["t2"], samples=8, certify=False)
    add(
        "tune",
        da.tune,
        model="mixture",
        nfe=3,
        samples=16,
        held_out=16,
        rounds=1,
        start="ddim",
        grid="t2",
        certify=False,
    )
    add("target_of", tuning.target_of, model="mixture")
    add("tuning.grid", tuning.grid, model=MODEL, x=X, steps=4, kind="entropic")
    add("model_calls", tuning.model_calls, kind="entropic", steps=4, points=10, draws=1)
    add("trajectories", tuning.trajectories, model=MODEL, x=X, points=5)
    add("run_together", tuning.run_together, tables=[TAB], model=linear, x=X)
    add("audit_sampler", da.audit_sampler, sampler="registry:ddim", nfe=5)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "theirs.py").write_text(THEIRS)
    add("audit_file", audit.audit_file, spec=f"{FOLDER}/theirs.py:euler", nfe=3, process=None, kind=None, timeout=60.0)
    add("function_subject", audit.function_subject, function=linear)
    add("subject_of", audit.subject_of, spec="registry:ddim")
    add("catalogue", audit.catalogue, source="registry")
    add("portable", interop.portable, tableau=TAB, process=VP, told=None, source="", shifted=None)
    made = interop.portable(TAB, VP)
    add(
        "PortableTable",
        interop.PortableTable,
        tableau=TAB,
        alpha=made.alpha,
        sigma=made.sigma,
        told=made.told,
        kind="vp",
    )
    add("PortableTable.from_json", interop.PortableTable.from_json, text=made.to_json())
    add("to_sigmas", interop.to_sigmas, table=made)
    add("to_k_diffusion", interop.to_k_diffusion, table=made)
    add("to_comfyui", interop.to_comfyui, table=made, folder=FOLDER / "comfy")
    add("write_k_diffusion", interop.write_k_diffusion, table=made, file=FOLDER / "sampler.py")
    add("read_levels", published.read_levels, source="[3.0, 1.0, 0.5]", scale="rho")
    add("process_from", networks.process_from, description=networks.describe_process(VP))
    add("describe_process", networks.describe_process, process=VP)
    add("networks.load", networks.load, spec="digits8")
    add("MLP", networks.MLP, dimension=2, process=VP, width=4, depth=1, features=2, seed=0)
    return found


def warm() -> None:
    """Make every good call once, so that no clock runs while libraries are imported."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for function, good in _callables().values():
            function(**good)


def cases() -> Iterator[Case]:
    """All, in an order that does not change."""
    for name, (function, good) in _callables().items():
        known = inspect.signature(function).parameters
        others = [p for p in known if p not in good and known[p].kind is not known[p].VAR_KEYWORD]
        for argument in (*good, *others):
            if argument == "progress" or known.get(argument, None) is None:
                continue
            for value in HOSTILE:
                yield Case(function, {**good, argument: HOSTILE[value]}, name, argument, value)


def sample(count: int, seed: int) -> list[Case]:
    """So many of them, drawn at random."""
    return random.Random(seed).sample(list(cases()), count)


class Hang(BaseException):
    """The clock ran out; no except clause of a library catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` where the block takes longer, of the processor: a busy machine is no hang."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 24 * seconds))
    before = [signal.signal(number, late) for number, _, _ in clocks]
    for _, timer, limit in clocks:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(timer, 0.0)
            signal.signal(number, handler)


def numeric(case: Case) -> bool:
    """Whether the argument takes numbers: by what it is annotated with, or its good value."""
    parameter = inspect.signature(case.function).parameters[case.argument]
    kind = str(parameter.annotation)
    good = _GOOD[case.name].get(case.argument, parameter.default)
    if isinstance(good, str) or kind.split(" | ")[0] in ("str", "bool") or callable(good):
        return False
    return kind.split(" | ")[0] in ("int", "float") or isinstance(good, (int, float, np.ndarray, torch.Tensor))


def allowed(case: Case) -> bool:
    """Whether nothing, or infinity, is what the argument may be."""
    parameter = inspect.signature(case.function).parameters[case.argument]
    good = _GOOD[case.name].get(case.argument, parameter.default)
    nothing = case.value == "None" and (
        parameter.default is None or good is None or "None" in str(parameter.annotation)
    )
    return nothing or (case.name, case.argument, case.value) in ALLOWED


# whatever they are annotated with
FUNCTIONS = (
    "features",
    "prior",
    "told",
    "noise",
    "solver",
    "builder",
    "model",
    "guided",
    "score",
    "moments",
    "asked",
    "teacher",
)
ALLOWED: set[tuple[str, str, str]] = {
    ("RectifiedFlow.time_from_lam", "lam", "inf array"),  # λ = ∞ is t = 0, where these processes are the data
    ("RectifiedFlow.time_from_lam", "lam", "inf"),
    ("VPCosine.time_from_lam", "lam", "inf"),
    ("VPLinear.time_from_lam", "lam", "inf"),
    ("VPLinear.time_from_lam", "lam", "inf array"),
    ("edm_churn", "rho_max", "inf"),  # its default
    ("VPCosine.time_from_lam", "lam", "inf array"),
}
_GOOD = {name: good for name, (_, good) in _callables().items()}


def calls_it(case: Case) -> bool:
    """Whether the value is a function, as the argument should be, so that what it raises is its own business."""
    parameter = inspect.signature(case.function).parameters[case.argument]
    good = _GOOD[case.name].get(case.argument, parameter.default)
    wanted = callable(good) or "Callable" in str(parameter.annotation) or case.argument in FUNCTIONS
    return wanted and callable(HOSTILE[case.value])


def outcome(case: Case) -> tuple[str, str]:
    """(how it ended, the message)."""
    start = time.process_time()
    try:
        with limited(LIMIT_S), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            case.function(**case.arguments)
    except Hang:
        return "hang", ""
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({pathlib.Path(place.filename).name}:{place.lineno})"
        deliberate = "deis_analysis" in place.filename and str(place.line).startswith("raise")
        if not deliberate or not isinstance(error, (ValueError, TypeError)):
            return ("its own" if calls_it(case) else "raw"), said  # of NumPy, torch or Python itself
        named = re.search(rf"(?<![A-Za-z]){re.escape(case.argument)}(?![A-Za-z])", str(error)) is not None
        return ("refused" if named else "unnamed"), said
    if time.process_time() - start > LIMIT_S:
        return "hang", "it did not hear the clock"
    if case.value in NOTHING and numeric(case) and not allowed(case):
        return "swallowed", ""
    return "accepted", ""
