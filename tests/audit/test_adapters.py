"""Adapters of the audit: released samplers read as tables, and compared with ours on the same levels.

What each released sampler computes is established in ``test_peers.py`` by running it; here the same facts are read off
tables, which shows that the adapters hand the samplers what they expect and name times and levels as they mean them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import deis_analysis as da
from deis_analysis.audit import packages
from deis_analysis.audit.specs import subject_of
from deis_analysis.tableau.extraction import Refusal, read_sampler, table_of

STEPS = 8


def needs(source):
    if importlib.util.find_spec(source) is None:
        pytest.skip(f"{source} is not installed")
    for module in ("torch", *(("torchsde", "torchdiffeq", "scipy") if source == "k_diffusion" else ())):
        pytest.importorskip(module)


def prepared(spec, steps=STEPS, which="ladder"):
    needs(spec.split(":")[0])
    return getattr(subject_of(spec), which)(steps)


def read(ready):
    return read_sampler(ready.sampler, backend=ready.backend)


def table(ready):
    """The table of a prepared sampler, its result in the scale of the process, without noises that it throws away."""
    reading, convention = read(ready), ready.convention
    times = np.append([convention.process_time(ready.process, raw) for raw in reading.told], ready.t_end)
    rows = reading.rows.copy()
    if ready.end_scale == "karras" and convention.state == "process":
        rows[-1] *= float(ready.process.alpha(ready.t_end))
    used = np.any(rows != 0, axis=0)
    used[: 1 + reading.calls] = True
    return table_of(replace(reading, rows=rows[:, used]), ready.process, times, convention)


def adams(order, prediction, variable="lam", rule="exact", **options):
    return lambda p, ts: da.adams(p, ts, order - 1, prediction=prediction, variable=variable, rule=rule, **options)


def row(name):
    return lambda p, ts: da.build(name, p, ts)


def rhoab(order):
    return adams(order, "eps", "rho")


def unipc(order, **options):
    return lambda p, ts: da.unipc(p, ts, order, prediction="x0", lower_order_final=False, **options)


def single(order, prediction, **options):
    return lambda p, ts: da.singlestep(p, ts[::order], order, prediction=prediction, **options)


MULTI = "diffusers:DPMSolverMultistepScheduler"
SAME = [
    ("k_diffusion:sample_euler", row("ddim")),
    ("k_diffusion:sample_heun", row("rhork_2heun")),
    ("k_diffusion:sample_dpm_2", row("dpm_2")),
    ("k_diffusion:sample_lms", rhoab(4)),
    ("k_diffusion:sample_lms?order=2", rhoab(2)),
    ("k_diffusion:sample_euler_ancestral", lambda p, ts: da.ancestral(p, ts, 1.0)),
    ("k_diffusion:sample_dpmpp_2s_ancestral", lambda p, ts: da.ancestral(p, ts, 1.0, second=True)),
    ("k_diffusion:sample_dpmpp_2s_ancestral?eta=0.0", row("dpmpp_2s")),
    ("k_diffusion:sample_dpmpp_2m", row("dpmpp_2m")),
    ("k_diffusion:sample_dpmpp_2m_sde", row("sde_dpmpp_2m")),
    ("k_diffusion:sample_dpmpp_2m_sde?solver_type=heun", row("sde_dpmpp_2m_exact")),
    ("k_diffusion:sample_dpmpp_3m_sde", row("sde_dpmpp_3m")),
    ("azula:DDPMSampler", row("ddpm")),
    ("azula:DDIMSampler", row("ddim")),
    ("azula:HeunSampler", row("rhork_2heun")),
    ("azula:zABSampler?order=3", rhoab(3)),
    ("azula:zEABSampler?order=3", adams(3, "eps")),
    ("azula:xEABSampler?order=3", adams(3, "x0")),
    ("diffusers:DDIMScheduler?clip_sample=false", row("ddim")),
    ("diffusers:DDIMScheduler?clip_sample=false&eta=1.0", row("ddpm")),
    ("diffusers:DDPMScheduler?clip_sample=false", row("ddpm")),
    ("diffusers:PNDMScheduler?skip_prk_steps=true", lambda p, ts: da.pndm(p, ts, "plms")),
    ("diffusers:IPNDMScheduler", row("ipndm4")),
    (MULTI, adams(2, "x0", rule="midpoint", lower_order_final=False)),
    (f"{MULTI}?use_karras_sigmas=true", adams(2, "x0", rule="midpoint", lower_order_final=False)),
    (f"{MULTI}?solver_order=3", adams(3, "x0", rule="released", lower_order_final=False)),
    (f"{MULTI}?lower_order_final=true", adams(2, "x0", rule="midpoint", lower_order_final=True)),
    (f"{MULTI}?algorithm_type=sde-dpmsolver++", adams(2, "x0", rule="midpoint", lam_sde=1.0)),
    (f"{MULTI}?algorithm_type=dpmsolver", adams(2, "eps", rule="midpoint")),
    (f"{MULTI}?use_flow_sigmas=true&prediction_type=flow_prediction", adams(2, "x0", rule="midpoint")),
    ("diffusers:DEISMultistepScheduler?solver_order=3", adams(3, "eps")),
    ("diffusers:UniPCMultistepScheduler", unipc(2, variant="bh2")),
    ("diffusers:UniPCMultistepScheduler?solver_order=3", unipc(3, variant="bh2")),
    ("diffusers:EulerDiscreteScheduler", row("ddim")),
    ("diffusers:EulerAncestralDiscreteScheduler", lambda p, ts: da.ancestral(p, ts, 1.0)),
    ("diffusers:HeunDiscreteScheduler", row("rhork_2heun")),
    ("diffusers:KDPM2DiscreteScheduler", row("dpm_2")),
    ("diffusers:LMSDiscreteScheduler", rhoab(4)),
    ("diffusers:EDMEulerScheduler", row("ddim")),
    ("diffusers:EDMDPMSolverMultistepScheduler", adams(2, "x0", rule="midpoint")),
    ("diffusers:CosineDPMSolverMultistepScheduler", adams(2, "x0", rule="midpoint", lam_sde=1.0)),
    ("diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0", row("flow_euler")),
    ("diffusers:FlowMatchHeunDiscreteScheduler", row("flow_heun")),
    ("diffusers:MiniMaxH3Scheduler", row("flow_euler")),
]


@pytest.mark.parametrize(("spec", "ours"), SAME, ids=[spec for spec, _ in SAME])
def test_on_the_ladder_it_is_the_table_that_it_should_be(spec, ours):
    ready = prepared(spec)
    theirs = table(ready)
    ts = ready.process.time_from_rho(np.array(ready.levels))
    mine = ours(ready.process, ts).in_terms_of(ready.process, theirs.prediction)
    assert da.distance(theirs, mine) <= 1e-12


def test_the_ladder_tells_methods_apart():
    ready = prepared("k_diffusion:sample_dpmpp_2m")
    ts = ready.process.time_from_rho(np.array(ready.levels))
    assert da.distance(table(ready), da.build("ddim", ready.process, ts).in_terms_of(ready.process, "x0")) > 1e-3


@pytest.mark.parametrize("source", ["k_diffusion", "azula"])
def test_every_entry_of_the_catalogue_is_linear_or_says_why_not(source):
    needs(source)
    entries = packages.catalogue(source)
    assert len(set(entries)) == len(entries) >= {"k_diffusion": 10, "azula": 8}[source]
    for spec in entries:
        own, ladder = read(prepared(spec, 10, "own")), read(prepared(spec, 4))
        if "adaptive" in spec:
            assert "depends on the data" in own.note
            continue
        assert own.linear
        assert ladder.linear
        assert max(own.residual, ladder.residual) < 1e-14
        assert own.calls <= 10


UNREADABLE = {  # part of the spec: part of the reason
    "fixed_large_log": "NaN",
    "solver_order=3&use_karras_sigmas=true&final_sigmas_type=sigma_min": "NaN",
    "UniPCMultistepScheduler?solver_type=bh1": "NaN",
    "algorithm_type=sde-dpmsolver&solver_order=3&final_sigmas_type=sigma_min": "UnboundLocalError",
    "CMStochasticIterativeScheduler": "distilled",
    "ScoreSdeVeScheduler": "not linear",
}


def outcome(spec):
    """(prepared sampler, its reading, ""), or (None, None, why it cannot be read)."""
    try:
        ready = prepared(spec, 20, "own")
        return ready, read(ready), ""
    except Refusal as error:
        return None, None, str(error)


def test_every_scheduler_of_diffusers_is_read_or_says_why_not():
    needs("diffusers")
    entries = packages.catalogue("diffusers")
    assert len(set(entries)) == len(entries) >= 25
    assert len({entry.split("?")[0] for entry in entries}) >= 18
    for spec in entries:
        ready, reading, why = outcome(spec)
        expected = next((reason for part, reason in UNREADABLE.items() if spec.endswith(part)), "")
        assert bool(why) == bool(expected), spec
        assert expected in why
        if why:
            continue
        assert reading.linear == (spec != "diffusers:DDIMScheduler")  # clips to [−1, 1] unless told not to
        assert reading.residual < 2e-6 or not reading.linear
        assert 19 <= reading.calls <= 20
        told = [ready.convention.process_time(ready.process, raw) for raw in reading.told]
        assert np.all(np.isfinite(told))


class Constant:
    """A model that says the data are 1, whatever it sees; it sees what the convention says."""

    def __init__(self, ready):
        self.ready = ready

    def __call__(self, x, raw, *_, **__):
        convention, process = self.ready.convention, self.ready.process
        t = convention.process_time(process, float(raw.reshape(-1)[0]))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        if convention.state == "karras":
            alpha, sigma = 1.0, sigma / alpha
        a, b = process.prediction_parts(convention.prediction, t)
        return float(a) + float(b) * (x - alpha) / sigma


TIMES_ARE_LEVELS = [
    "azula:zEABSampler?order=3",
    "k_diffusion:sample_dpmpp_2m",
    "diffusers:DDIMScheduler?clip_sample=false",
    "diffusers:PNDMScheduler?skip_prk_steps=true",
    "diffusers:DPMSolverMultistepScheduler",
    "diffusers:EulerDiscreteScheduler",
    "diffusers:EulerAncestralDiscreteScheduler",
    "diffusers:HeunDiscreteScheduler",
    "diffusers:EDMDPMSolverMultistepScheduler",
    "diffusers:CosineDPMSolverMultistepScheduler",
    "diffusers:FlowMatchHeunDiscreteScheduler?shift=3.0",
    "diffusers:MiniMaxH3Scheduler",
]


@pytest.mark.parametrize("spec", TIMES_ARE_LEVELS)
def test_as_released_the_conventions_fit_together(spec):
    """With data that are 1 every method is exact, if times, scales and predictions mean what the adapter says."""
    import torch

    ready = prepared(spec, 12, "own")
    torch.manual_seed(0)
    x = ready.start_std * torch.randn(500, 1, 1, 1, dtype=torch.float64)
    end = ready.sampler(Constant(ready), x)
    scale = 1.0 if ready.end_level == 0 else float(ready.process.alpha(ready.t_end))
    assert abs(float(end.mean()) - scale) < 1e-3
    assert abs(float(end.std()) - scale * ready.end_level) < max(1e-6, 0.05 * ready.end_level)


# -- what the audit must see ---------------------------------------------------------------------------
def own_table(spec, nfe=20):
    ready = prepared(spec, nfe, "own")
    return ready, read(ready)


def test_cosine_betas_and_karras_levels_repeat_times():
    spec = f"{MULTI}?beta_schedule=squaredcos_cap_v2&use_karras_sigmas=true"
    ready, reading = own_table(spec)
    assert reading.calls - np.unique(reading.told).size == 8
    assert "repeated" in ready.note


def test_deis_with_karras_levels_ignores_its_last_call():
    ready, reading = own_table("diffusers:DEISMultistepScheduler?use_karras_sigmas=true")
    assert ready.levels[-1] == ready.levels[-2]
    assert abs(reading.rows[-1, reading.calls]) < 1e-12
    assert reading.rows[-1, reading.calls - 1] != 0


def test_flow_shift_is_applied_twice_at_the_last_level():
    _, reading = own_table("diffusers:FlowMatchEulerDiscreteScheduler?shift=3.0")
    once = 3e-3 / 1.002
    assert reading.told[-1] / 1000 == pytest.approx(3 * once / (1 + 2 * once), rel=1e-4)


def test_pndm_ends_with_a_call_that_moves_nothing():
    _, reading = own_table("diffusers:PNDMScheduler")
    assert reading.rows[-1, reading.calls] == 0


def test_x_T_is_unit_noise_where_the_pipeline_scales_it():
    import torch

    ready = prepared("diffusers:EulerDiscreteScheduler", 20, "own")
    assert ready.start_std == 1.0
    seen = []

    def model(x, t):
        seen.append(x)
        return 0.0 * x

    ready.sampler(model, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    rho = ready.levels[0]
    assert float(seen[0]) == pytest.approx(rho / np.hypot(1.0, rho), rel=1e-6)


def test_brownian_noise_is_one_path():
    """Stage and step of DPM-Solver++ (SDE) share the path: their noises have the correlation √(part of the step)."""
    reading = read(prepared("k_diffusion:sample_dpmpp_sde", 2))
    stage, step = reading.rows[1, 3 + 2 :], reading.rows[2, 3 + 2 :]
    assert np.count_nonzero(stage) == 1
    levels = np.array(prepared("k_diffusion:sample_dpmpp_sde", 2).levels)
    part = (levels[0] - np.sqrt(levels[0] * levels[1])) / (levels[0] - levels[1])
    assert step[0] / np.hypot(step[0], step[1]) == pytest.approx(np.sqrt(part), rel=1e-9)


# -- names, options, packages --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("diffusers:DEISMultistep", "nearest: DEISMultistepScheduler"),
        ("diffusers:DDIMScheduler?clip_samples=false", "nearest: clip_sample"),
        ("k_diffusion:sample_dpmpp_2n", "nearest: .*sample_dpmpp_2m"),
        ("k_diffusion:sample_heun?churn=1", "option='churn' is unknown; nearest: s_churn"),
        ("azula:DDIM", "DDIMSampler"),
        ("azula:DDIMSampler?etta=1", "nearest: eta"),
    ],
)
def test_unknown_names_and_options_are_named(spec, message):
    needs(spec.split(":")[0])
    with pytest.raises(ValueError, match=message):
        subject_of(spec)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    for source in packages.SOURCES:
        with pytest.raises(ValueError, match="is not installed; pip install") as error:
            subject_of(f"{source}:x")
        assert ("deis-analysis[peers]" if source == "diffusers" else source.replace("_", "-")) in str(error.value)


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("diffusers:LMSDiscreteScheduler", 4),
        ("diffusers:LMSDiscreteScheduler?order=2", 2),
        ("diffusers:DEISMultistepScheduler", 2),
        (f"{MULTI}?solver_order=3", 3),
        ("diffusers:SASolverScheduler", 2),
        ("diffusers:LCMScheduler", None),
        ("azula:xEABSampler?order=3", 3),
        ("k_diffusion:sample_lms", 4),
        ("k_diffusion:sample_dpm_2_ancestral?eta=0", 2),
        ("k_diffusion:sample_dpm_2_ancestral", None),
    ],
)
def test_declared_orders(spec, order):
    needs(spec.split(":")[0])
    assert subject_of(spec).declared_order == order


def test_importing_the_modules_of_packages_imports_no_package():
    code = (
        "import sys; import deis_analysis.audit.packages.shared, deis_analysis.audit.packages.azula;"
        "import deis_analysis.audit.packages.k_diffusion, deis_analysis.audit.packages.diffusers.ladder;"
        "print(sorted({'torch', 'diffusers', 'azula', 'k_diffusion'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_too_few_calls_are_refused():
    """PNDM starts with twelve model calls of Runge-Kutta."""
    assert read(prepared("diffusers:PNDMScheduler", 13, "own")).calls == 13
    with pytest.raises(Refusal, match="takes 13 model calls or more"):
        prepared("diffusers:PNDMScheduler", 12, "own")


def test_a_ladder_that_is_not_there_has_a_reason():
    needs("diffusers")
    made = subject_of("diffusers:LCMScheduler")
    assert made.ladder(8) is None
    assert "distilled" in made.reason
    assert subject_of(MULTI).reason == ""


def test_global_state_is_left_as_it_was():
    """float64 is switched on inside a run only."""
    import torch

    before = torch.get_default_dtype()
    ready = prepared("diffusers:DEISMultistepScheduler")
    module = sys.modules["diffusers.schedulers.scheduling_deis_multistep"]
    read(ready)
    assert torch.get_default_dtype() == before
    assert module.torch is torch
    assert module.np is np


def test_azula_process_inverts_and_has_the_rate_of_its_scales():
    from deis_analysis.audit.packages.azula import AzulaVP

    process, t, h = AzulaVP(), np.linspace(0.05, 0.95, 7), 1e-6
    assert np.allclose(process.time_from_rho(process.rho(t)), t, rtol=1e-9)
    for function, rate in (
        (lambda t: np.log(process.rho(t)), process.log_rho_rate),
        (lambda t: np.log(process.alpha(t)), process.drift),
        (lambda t: process.kappa("score", t), lambda t: process.kappa_rate("score", t)),
    ):
        slope = (function(t + h) - function(t - h)) / (2 * h)
        assert np.allclose(slope, rate(t), rtol=1e-6)
