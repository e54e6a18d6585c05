"""Released samplers beside our tables: k-diffusion 0.1.1, azula 0.11, diffusers 0.42.

Same exact model of a Gaussian mixture, same start, same noise; what is compared is ‖theirs − ours‖/‖ours‖.  A row is
(their sampler, our table).  A pair that differs has a test of its own, in which the cause is modelled: equal with the
cause, different without.  Schedules are kept apart from formulas: our table is built on *their* noise levels, and the
model is told the time that *they* tell it.

Everything runs in float64.  diffusers casts levels, and in places the state, to float32; for the comparison of formulas
its modules see a torch and a NumPy whose float32 is float64, and `test_diffusers_as_released…` shows that this removes
rounding only.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

import deis_analysis as da
from deis_analysis.solvers.dpm_solver import Stage, _blocks, fast_orders

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # torch scalars in NumPy functions
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of diffusers about its own options
]

MIX = da.GaussianMixture(
    [0.3, 0.5, 0.2],
    [[1.5, -0.4], [-0.7, 0.9], [0.2, 1.6]],
    [[[0.20, 0.05], [0.05, 0.10]], [[0.15, -0.04], [-0.04, 0.25]], [[0.10, 0.0], [0.0, 0.30]]],
)
BATCH = 6
SAME = 1e-12  # relative; formulas agree to rounding, 2e-14 at most where this was written
DIFFERENT = 1e-4  # what is explained is larger than this


def gap(a: Any, b: Any) -> float:
    """‖a − b‖/‖b‖."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def start(process: da.Process, t: float, seed: int = 3) -> torch.Tensor:
    return torch.as_tensor(MIX.sample(BATCH, seed, process, t))


def normals(count: int, seed: int = 11) -> list[torch.Tensor]:
    return list(torch.as_tensor(np.random.default_rng(seed).standard_normal((count, BATCH, 2))))


@pytest.fixture
def double():
    """Python numbers become float64 tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# -- k-diffusion: α = 1, σ = t -----------------------------------------------------------------------
EDM = da.EDM(0.002, 200.0)  # room above 80, so that churn is not capped


@pytest.fixture(scope="module")
def kd():
    """``k_diffusion.sampling`` by itself: the package's own import pulls in torchvision and CLIP."""
    for needed in ("torchsde", "torchdiffeq", "scipy", "tqdm"):
        pytest.importorskip(needed)
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    parent, utils = types.ModuleType("k_diffusion_alone"), types.ModuleType("k_diffusion_alone.utils")
    parent.__path__ = []
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    parent.utils = utils
    path = f"{spec.submodule_search_locations[0]}/sampling.py"
    alone = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
    module = importlib.util.module_from_spec(alone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion_alone", parent)
        patch.setitem(sys.modules, "k_diffusion_alone.utils", utils)
        patch.setitem(sys.modules, "k_diffusion_alone.sampling", module)
        alone.loader.exec_module(module)
        yield module


def denoiser(x, sigma, **_):
    return MIX.x0(EDM)(x, float(sigma.reshape(-1)[0]))


def lam(degree, rule="exact", eta=0.0, prediction="x0"):
    """A multistep method in λ; k-diffusion's SDE samplers have η = λ²."""
    return lambda process, ts: da.adams(
        process, ts, degree, prediction=prediction, variable="lam", rule=rule, lam_sde=eta**0.5
    )


def rhoab(degree):
    return lambda process, ts: da.adams(process, ts, degree, variable="rho")


def ancestral(eta, second=False):
    return lambda process, ts: da.ancestral(process, ts, eta, second=second)


def dpm2(prediction):
    return lambda process, ts: da.singlestep(process, ts, 2, prediction=prediction)


@dataclass(frozen=True)
class Karras:
    """A sampler of k-diffusion, our table, and how ours takes the last step.

    ``last``: "table", our table ends at σ = 0 as theirs does; "denoise", their step to σ = 0 gives x₀ of the last
    state; "none", the levels given to both end above 0.
    """

    theirs: str
    ours: Any
    last: str = "denoise"
    options: dict = field(default_factory=dict)

    def __str__(self):
        return "-".join([self.theirs, *(f"{k}={v}" for k, v in self.options.items())])


CHURN = {"s_churn": 3.0, "s_tmin": 0.3, "s_tmax": 60.0, "s_noise": 1.003}
OUR_CHURN = {"churn": 3.0, "rho_min": 0.3, "rho_max": 60.0, "noise_scale": 1.003}
KARRAS = [
    Karras("sample_euler", lambda p, ts: da.build("edm_euler", p, ts), "table"),
    Karras("sample_euler", lambda p, ts: da.build("ddim", p, ts), "none"),
    Karras("sample_heun", lambda p, ts: da.build("edm_heun", p, ts), "table"),
    Karras("sample_euler", lambda p, ts: da.edm_churn(p, ts, None, **OUR_CHURN), "table", CHURN),
    Karras("sample_heun", lambda p, ts: da.edm_churn(p, ts, **OUR_CHURN), "table", CHURN),
    Karras("sample_dpm_2", lambda p, ts: da.build("dpm_2", p, ts)),  # stage at the geometric mean of the levels
    *(Karras("sample_lms", rhoab(r - 1), "none", {"order": r}) for r in (1, 2, 3, 4)),
    Karras("sample_dpmpp_2m", lambda p, ts: da.build("dpmpp_2m", p, ts)),
    *(Karras("sample_euler_ancestral", ancestral(eta), "denoise", {"eta": eta}) for eta in (0.0, 0.4, 1.0)),
    *(Karras("sample_dpmpp_2s_ancestral", ancestral(eta, True), "denoise", {"eta": eta}) for eta in (0.4, 1.0)),
    Karras("sample_dpmpp_2s_ancestral", lambda p, ts: da.build("dpmpp_2s", p, ts), options={"eta": 0.0}),
    Karras("sample_dpmpp_sde", lambda p, ts: da.build("dpmpp_2s", p, ts), options={"eta": 0.0}),
    *(
        Karras("sample_dpmpp_2m_sde", lam(1, rule, eta), "denoise", {"solver_type": solver, "eta": eta})
        for solver, rule in (("midpoint", "midpoint"), ("heun", "exact"))
        for eta in (0.0, 0.5, 1.0)
    ),
    Karras("sample_dpmpp_2m_sde", lambda p, ts: da.build("sde_dpmpp_2m", p, ts)),
    Karras("sample_dpmpp_2m_sde", lambda p, ts: da.build("sde_dpmpp_2m_exact", p, ts), options={"solver_type": "heun"}),
    # degree 1, of the second step, is integrated exactly; only degree 2 is halved
    Karras("sample_dpmpp_3m_sde", lambda p, ts: da.build("sde_dpmpp_3m", p, ts)),
    *(Karras("sample_dpmpp_3m_sde", lam(2, "halved", eta), "denoise", {"eta": eta}) for eta in (0.0, 0.5)),
]


def run_karras(kd, theirs, ts, x, noise, **options):
    """Their sampler on the levels ``ts``, with the given noise in the order in which it is drawn."""
    draws = iter(noise)
    sampler = getattr(kd, theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd.torch, "randn_like", lambda x: next(draws))
        if "noise_sampler" in inspect.signature(sampler).parameters and "noise_sampler" not in options:
            options["noise_sampler"] = lambda *_: next(draws)
        return sampler(denoiser, x, torch.as_tensor(ts), disable=True, **options)


@pytest.mark.parametrize("row", KARRAS, ids=str)
def test_k_diffusion(kd, row):
    levels = da.grid(EDM, 9, "rho7", 80.0, 0.05)
    theirs_at = levels if row.last == "none" else np.append(levels, 0.0)
    x, noise = start(EDM, 80.0), normals(20)
    found = run_karras(kd, row.theirs, theirs_at, x, noise, **row.options)
    table = row.ours(EDM, theirs_at if row.last == "table" else levels)
    if row.options.get("s_churn"):  # they draw at every step and use it where they churn
        noise = [z for z, level in zip(noise, levels, strict=False) if CHURN["s_tmin"] <= level <= CHURN["s_tmax"]]
    ours = da.run(table.in_terms_of(EDM, "x0"), MIX.x0(EDM), x, noise[: table.noise.shape[1]])
    if row.last == "denoise":
        ours = MIX.x0(EDM)(ours, levels[-1])
    assert gap(found, ours) <= SAME


@pytest.mark.parametrize("calls", [6, 7, 8])
def test_k_diffusion_dpm_fast(kd, double, calls):
    """Their blocks have equal length in λ whatever their order; ours are given by the times."""
    blocks = fast_orders(calls)
    ends = np.linspace(np.log(80.0), np.log(0.05), len(blocks) + 1)
    levels = [a + (b - a) * k / o for a, b, o in zip(ends, ends[1:], blocks, strict=False) for k in range(o)]
    table = da.dpm_fast(EDM, np.exp([*levels, ends[-1]]))
    x = start(EDM, 80.0)
    found = kd.sample_dpm_fast(denoiser, x, 0.05, 80.0, calls, disable=True)
    assert table.nfe == calls
    assert gap(found, da.run(table, MIX.eps(EDM), x)) <= SAME


def brownian(levels, pieces, clock):
    """k-diffusion's noise sampler on one path: normalised increments in ``clock``, from normals per piece of a step."""
    c = np.asarray(clock(np.asarray(levels)))
    moves = [np.sqrt(abs(d)) * z.numpy() for d, z in zip(np.diff(c), pieces, strict=False)]
    path = np.concatenate([np.zeros((1, BATCH, 2)), np.cumsum(moves, axis=0)])

    def at(sigma):
        k = int(np.argmin(np.abs(np.log(levels) - np.log(float(sigma)))))
        assert abs(np.log(levels[k] / float(sigma))) < 1e-9
        return k

    def sample(sigma, sigma_next):
        i, j = at(sigma), at(sigma_next)
        return torch.as_tensor((path[j] - path[i]) / np.sqrt(abs(c[j] - c[i])))

    return sample


def with_correlation(table, correlation):
    """SEEDS-2 in which the step's noise has this correlation with the stage's, (N,) or a number."""
    noise = table.noise.copy()
    for i, c in enumerate(np.broadcast_to(correlation, (noise.shape[1] // 2,))):
        noise[2 * i + 2, 2 * i : 2 * i + 2] = np.hypot(*noise[2 * i + 2, 2 * i : 2 * i + 2]) * np.array(
            [c, np.sqrt(1 - c**2)]
        )
    return replace(table, noise=noise)


def share_of_stage(table, clock):
    """Correlation of stage and step on a Brownian path in ``clock``."""
    c = clock(table.times)
    return np.sqrt((c[1::2] - c[:-1:2]) / (c[2::2] - c[:-1:2]))


def test_k_diffusion_dpmpp_sde_is_seeds_2_on_another_brownian_path(kd):
    """Equal if the path runs in the clock of the SDE, 1/σ² for x₀; as released it runs in σ.

    The stage's noise is part of the step's.  Each alone has the right variance in any clock, both together only in the
    SDE's own.  To leading order the clocks agree, so the weak order is still 2, as a test below measures.
    """
    ts = da.grid(EDM, 9, "rho7", 80.0, 0.05)
    table = da.build("seeds_2_x0", EDM, ts)
    x, noise = start(EDM, 80.0), normals(18)
    ours = da.run(table, MIX.x0(EDM), x, noise)
    for clock, equal in ((lambda s: s**-2.0, True), (lambda s: s, False)):
        sampler = brownian(table.times, noise, clock)
        found = run_karras(kd, "sample_dpmpp_sde", ts, x, [], noise_sampler=sampler)
        modelled = with_correlation(table, share_of_stage(table, clock))
        assert gap(found, da.run(modelled, MIX.x0(EDM), x, noise)) <= SAME
        assert gap(found, ours) <= SAME if equal else gap(found, ours) > 0.01


def test_k_diffusion_brownian_tree_runs_in_sigma(kd):
    """Increments over two parts of a step add up with weights √dσ."""
    tree = kd.BrownianTreeNoiseSampler(start(EDM, 80.0), 0.05, 80.0, seed=1)
    a, b, c = 9.0, 4.0, 1.0
    for clock, equal in ((lambda s: s, True), (lambda s: s**-2.0, False)):
        part = abs(clock(b) - clock(a)) / abs(clock(c) - clock(a))
        whole = np.sqrt(part) * tree(a, b) + np.sqrt(1 - part) * tree(b, c)
        assert (gap(whole, tree(a, c)) <= 1e-6) == equal


def test_k_diffusion_has_two_meanings_of_eta(kd):
    """η of the ancestral samplers is DDIM's; η of the SDE samplers is λ², so at η = ½ they are different methods."""
    ts = da.grid(EDM, 9, "rho7", 80.0, 0.05)
    x, noise = start(EDM, 80.0), normals(9)
    half = run_karras(kd, "sample_euler_ancestral", ts, x, noise, eta=0.5)
    assert gap(half, da.run(da.ddim_eta(EDM, ts, 0.5), MIX.eps(EDM), x, noise)) <= SAME
    assert gap(half, da.run(lam(0, eta=0.5)(EDM, ts), MIX.x0(EDM), x, noise)) > DIFFERENT


def test_k_diffusion_dpm_2_ancestral_is_dpm_2_to_sigma_down(kd):
    """No row of ours; step by step, dpm_2 from σ to σ_down and noise up to the next level."""
    ts = da.grid(EDM, 6, "rho7", 80.0, 0.05)
    x, noise = start(EDM, 80.0), normals(6)
    found = run_karras(kd, "sample_dpm_2_ancestral", ts, x, noise, eta=0.8)
    for a, b, z in zip(ts, ts[1:], noise, strict=False):
        up = min(b, 0.8 * b * np.sqrt(1 - (b / a) ** 2))
        down = np.sqrt(b**2 - up**2)
        x = da.run(da.build("dpm_2", EDM, [a, down]), MIX.eps(EDM), x) + up * z
    assert gap(found, x) <= SAME


def test_k_diffusion_dpm_2_ancestral_forgets_the_noise_where_sigma_down_is_0(kd):
    """Defect: with η so large that σ_up = σ_next, the Euler branch adds no noise; its sister euler_ancestral does."""
    ts, (z,) = np.array([2.0, 1.0]), normals(1)
    x = start(EDM, 2.0)
    forgot = run_karras(kd, "sample_dpm_2_ancestral", ts, x, [z], eta=2.0)
    ours = da.run(da.ancestral(EDM, ts, 2.0), MIX.eps(EDM), x, [z])
    assert gap(run_karras(kd, "sample_euler_ancestral", ts, x, [z], eta=2.0), ours) <= SAME
    assert gap(forgot + 1.0 * z, ours) <= SAME
    assert gap(forgot, ours) > 0.1


@pytest.mark.parametrize("name", ["sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"])
def test_k_diffusion_sde_multistep_fails_on_a_single_step_to_zero(kd, name):
    """Defect: the step length is unbound if the first step is the one to σ = 0."""
    with pytest.raises(UnboundLocalError):
        run_karras(kd, name, np.array([2.0, 0.0]), start(EDM, 2.0), normals(1))


# -- azula: any schedule ------------------------------------------------------------------------------
VP, FLOW = da.VPLinear(0.1, 20.0), da.RectifiedFlow()
SPAN = (0.95, 0.02)  # of time, on every process below


@pytest.fixture(scope="module")
def azula():
    return pytest.importorskip("azula")


def run_azula(azula, theirs, process, x, noise=(), steps=9, **options):
    """Their sampler on our process, told as a schedule, with the exact denoiser."""

    class Schedule(azula.noise.Schedule):
        def __call__(self, t):
            t = t.numpy()
            return torch.as_tensor(process.alpha(t)), torch.as_tensor(process.sigma(t))

    class Exact(azula.denoise.Denoiser):
        schedule = Schedule()

        def forward(self, x_t, t, **_):
            return azula.denoise.DiracPosterior(MIX.x0(process)(x_t, float(t)))

    draws = iter(noise)
    sampler = getattr(azula.sample, theirs)(
        Exact(), start=SPAN[0], stop=SPAN[1], steps=steps, silent=True, dtype=torch.float64, **options
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(azula.sample.torch, "randn_like", lambda x: next(draws))
        return sampler(x)


AZULA = [
    ("DDPMSampler", {}, lambda p, ts: da.build("ddpm", p, ts)),
    ("DDIMSampler", {}, lambda p, ts: da.build("ddim", p, ts)),
    ("DDIMSampler", {"eta": 1.0}, lambda p, ts: da.build("ddpm", p, ts)),
    ("EulerSampler", {}, lambda p, ts: da.build("edm_euler", p, ts)),
    ("HeunSampler", {}, lambda p, ts: da.build("rhork_2heun", p, ts)),  # corrects the last step too
    *(
        ("ItoSampler", {"eta": eta}, lam(0, eta=eta**2, prediction="eps"))  # η is our λ
        for eta in (0.0, 0.5, 1.0)
    ),
    *(("zABSampler", {"order": r}, rhoab(r - 1)) for r in (1, 2, 3, 4)),
    *(("zEABSampler", {"order": r}, lam(r - 1, prediction="eps")) for r in (1, 2, 3, 4)),
    *(("xEABSampler", {"order": r}, lam(r - 1)) for r in (1, 2, 3, 4)),
]


@pytest.mark.parametrize("process", [VP, FLOW, da.VE(0.01, 50.0), da.VPCosine()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("theirs", "options", "ours"), AZULA, ids=lambda o: str(o) if isinstance(o, (str, dict)) else ""
)
def test_azula(azula, theirs, options, ours, process):
    ts = da.grid(process, 9, "t1", *SPAN)
    x, noise = start(process, SPAN[0]), normals(9)
    table = ours(process, ts).in_terms_of(process, "eps")
    found = run_azula(azula, theirs, process, x, noise, **options)
    assert gap(found, da.run(table, MIX.eps(process), x, noise[: table.noise.shape[1]])) <= SAME


@pytest.mark.parametrize("process", [VP, FLOW], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_azula_vab_is_adams_on_the_velocity_of_rectified_flow(azula, process, order):
    """On any process: x/(α + σ) is a state of rectified flow at the time σ/(α + σ)."""
    ts = da.grid(process, 9, "t1", *SPAN)
    scale = process.alpha(ts) + process.sigma(ts)
    flow_ts = process.sigma(ts) / scale
    table = da.adams(FLOW, flow_ts, order - 1, prediction="v", variable="t")
    x = start(process, SPAN[0])
    ours = scale[-1] * da.run(table, MIX.v(FLOW), x / scale[0])
    assert gap(run_azula(azula, "vABSampler", process, x, order=order), ours) <= SAME


def test_azula_eta_is_the_square_of_ddims_eta(azula):
    """The variance is η σ_s²(1 − ρ_s²/ρ_t²), not η² as in DDIM: azula's ¼ is the paper's ½."""
    ts = da.grid(VP, 9, "t1", *SPAN)
    x, noise = start(VP, SPAN[0]), normals(9)
    found = run_azula(azula, "DDIMSampler", VP, x, noise, eta=0.25)
    assert gap(found, da.run(da.ddim_eta(VP, ts, 0.5), MIX.eps(VP), x, noise)) <= SAME
    assert gap(found, da.run(da.ddim_eta(VP, ts, 0.25), MIX.eps(VP), x, noise)) > 0.01


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_azula_reab_has_a_wrong_subscript(azula, order):
    """Defect: √(α_s² + σ_t²) where √(α_s² + σ_s²) is meant, which is 1 on VP for every s.

    Without it REAB is Adams on v in λ, but for 256 trapezia a step, relative 1e-6.
    """
    ts = da.grid(VP, 9, "t1", *SPAN)
    exact = da.adams(VP, ts, order - 1, prediction="v", variable="lam")
    factor = np.sqrt(VP.alpha(ts[1:]) ** 2 + VP.sigma(ts[:-1]) ** 2)
    assert np.all(np.abs(VP.alpha(ts) ** 2 + VP.sigma(ts) ** 2 - 1) < 1e-14)
    assert factor.max() > 1.01
    wrong = replace(exact, outputs=exact.outputs * np.append(1.0, factor)[:, None])
    x = start(VP, SPAN[0])
    found = run_azula(azula, "REABSampler", VP, x, order=order)
    assert gap(found, da.run(wrong, MIX.v(VP), x)) <= 3e-6
    assert gap(found, da.run(exact, MIX.v(VP), x)) > 0.01


def test_azula_trapezia_are_the_rest_of_reabs_difference(azula):
    """Four times as many trapezia, a sixteenth of what is left."""
    ts = da.grid(VP, 9, "t1", *SPAN)
    exact = da.adams(VP, ts, 1, prediction="v", variable="lam")
    factor = np.sqrt(VP.alpha(ts[1:]) ** 2 + VP.sigma(ts[:-1]) ** 2)
    wrong = replace(exact, outputs=exact.outputs * np.append(1.0, factor)[:, None])
    x, linspace, left = start(VP, SPAN[0]), torch.linspace, []
    for refined in (1, 4):

        def finer(a, b, steps, refined=refined, **options):
            return linspace(a, b, (steps - 1) * refined + 1 if steps == 257 else steps, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(azula.sample.torch, "linspace", finer)
            found = run_azula(azula, "REABSampler", VP, x, order=2)
        left.append(gap(found, da.run(wrong, MIX.v(VP), x)))
    assert 15 < left[0] / left[1] < 17


# -- diffusers: 1000 levels of scaled-linear β, integer times ------------------------------------------
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_KARRAS_STATE = ("Euler", "EulerAncestral", "Heun", "KDPM2", "LMS", "DPMSolverSDE")  # their state is x/α


class InDouble:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture
def hf(diffusers, double, monkeypatch):
    """Makes a scheduler whose module computes in float64."""

    def make(name, betas=BETAS, **config):
        cls = getattr(diffusers, name if hasattr(diffusers, name) else f"{name}Scheduler")
        module = sys.modules[cls.__module__]
        for used in ("torch", "np"):
            if hasattr(module, used) and not isinstance(getattr(module, used), InDouble):
                monkeypatch.setattr(module, used, InDouble(getattr(module, used)))
        return cls(**betas, **config)

    return make


def vp(scheduler):
    return da.VPDiscrete(np.asarray(scheduler.alphas_cumprod, dtype=np.float64))


def told(table, process, times, prediction="eps"):
    """The table for ε (or v), its model told ``times`` in place of those at which it is called."""
    table = table.in_terms_of(process, prediction)
    at = table.times.copy()
    at[list(table.evaluated)] = np.asarray(times, dtype=np.float64)
    return replace(table, times=at)


def denoising_loop(scheduler, model, x, noise=(), **options):
    """The loop of every pipeline; ``noise`` in the order in which it is drawn."""
    draws = iter(noise)
    module = sys.modules[type(scheduler).__module__]
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            output = model(scaled, float(t))
            x = scheduler.step(output, t, x, **options).prev_sample
    return x


def denoised(process, x, sigma, t):
    """x₀ of the state x at the level ``sigma`` by a model told the time ``t``."""
    alpha = 1.0 / np.hypot(1.0, sigma)
    return x / alpha - sigma * MIX.eps(process)(x, t)


@dataclass(frozen=True)
class Hf:
    """A scheduler of diffusers, its options, our table, and the levels they use.

    ``levels``: "theirs", made by ``set_timesteps``; "logrho", 1 + steps levels equidistant in λ put in their place, for
    stages that our table has at fixed shares of a step.
    """

    theirs: str
    ours: Any
    config: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    steps: int = 10
    levels: str = "theirs"

    def __str__(self):
        named = [f"{k}={v}" for k, v in {**self.config, **self.options}.items() if k != "final_sigmas_type"]
        return "-".join([self.theirs, *named, str(self.steps)])


def run_hf(scheduler, row, process, x, noise):
    """(theirs, the levels ρ they used, the times they told)."""
    scheduler.set_timesteps(row.steps)
    if row.levels == "logrho":
        rho = np.geomspace(process.rho(999.0), process.rho(0.0), row.steps + 1)
        scheduler.sigmas = torch.as_tensor(rho)
        scheduler.timesteps = torch.as_tensor(process.time_from_rho(rho[:-1]))
    rho = torch.unique_consecutive(scheduler.sigmas).numpy().astype(np.float64)
    inside = row.theirs not in _KARRAS_STATE
    first, last = (1.0 if inside else 1.0 / np.hypot(1.0, s) for s in (rho[0], rho[-1]))
    found = denoising_loop(scheduler, MIX.eps(process), x / first, noise, **row.options)
    return found * last, rho, scheduler.timesteps.numpy().astype(np.float64)


def run_ours(row, process, rho, times, x, noise):
    positive = rho[rho > 0]
    table = row.ours(process, process.time_from_rho(positive))
    ours = da.run(told(table, process, times[: table.nfe]), MIX.eps(process), x, noise[: table.noise.shape[1]])
    return ours if rho[-1] > 0 else denoised(process, ours, positive[-1], times[-1])


MIN = {"final_sigmas_type": "sigma_min"}


def multistep(order, prediction, rule="exact", eta=0.0, final=True):
    return lambda process, ts: da.adams(
        process,
        ts,
        order - 1,
        prediction=prediction,
        variable="lam",
        rule=rule,
        lam_sde=eta,
        lower_order_final=final,
    )


_RULES = {(1, "midpoint"): "exact", (2, "midpoint"): "midpoint", (3, "midpoint"): "released", (3, "heun"): "halved"}
DPM = [
    Hf(
        "DPMSolverMultistep",
        multistep(order, prediction, _RULES.get((order, solver), "exact"), eta),
        {"algorithm_type": kind, "solver_order": order, "solver_type": solver, **MIN},
    )
    for kind, prediction, eta, orders in (
        ("dpmsolver++", "x0", 0.0, (1, 2, 3)),
        ("dpmsolver", "eps", 0.0, (1, 2, 3)),
        ("sde-dpmsolver++", "x0", 1.0, (1, 2)),
        ("sde-dpmsolver", "eps", 1.0, (1, 2)),
    )
    for order in orders
    for solver in ("midpoint", "heun")
    if order > 1 or solver == "midpoint"
]
DPM += [  # from 15 steps on, the last ones are of full order too
    Hf("DPMSolverMultistep", multistep(3, "x0", "released", final=False), {"solver_order": 3, **MIN}, steps=15),
    Hf("DPMSolverMultistep", multistep(2, "x0", "midpoint", final=False), {}),  # as shipped: last step denoises
    Hf("DPMSolverMultistep", multistep(2, "x0", "midpoint", final=False), {"use_lu_lambdas": True}),
]


def singlestep(order, prediction, taylor=False):
    return lambda process, ts: da.singlestep(process, ts[::order], order, prediction=prediction, taylor=taylor)


SINGLE = [
    Hf(
        "DPMSolverSinglestep",
        singlestep(order, prediction, solver == "heun"),
        {"algorithm_type": kind, "solver_order": order, "solver_type": solver, "lower_order_final": False, **MIN},
        steps=12,
        levels="logrho",
    )
    for kind, prediction in (("dpmsolver++", "x0"), ("dpmsolver", "eps"))
    for order, solver in ((2, "midpoint"), (2, "heun"), (3, "heun"))
]
UNIPC = [
    Hf(
        "UniPCMultistep",
        lambda p, ts, o=order, q=prediction, b=variant, f=final: da.unipc(
            p, ts, o, prediction=q, variant=b, lower_order_final=f
        ),
        {"solver_order": order, "solver_type": variant, "predict_x0": x0, "lower_order_final": final, **MIN},
    )
    for order in (1, 2, 3)
    for variant in ("bh1", "bh2")
    for x0, prediction in ((True, "x0"), (False, "eps"))
    for final in (True, False)
]
KARRAS_STATE = [
    Hf("Euler", lambda p, ts: da.build("ddim", p, ts)),
    Hf("Euler", lambda p, ts: da.build("edm_euler", p, ts), {"timestep_spacing": "leading"}),
    Hf("Euler", lambda p, ts: da.build("ddim", p, ts), {"use_karras_sigmas": True}),
    Hf("EulerAncestral", ancestral(1.0)),
    Hf("Heun", lambda p, ts: da.build("rhork_2heun", p, ts)),  # then a last step by Euler: edm_heun
    Hf("KDPM2", lambda p, ts: da.build("dpm_2", p, ts)),
    *(Hf("LMS", rhoab(r - 1), {}, {"order": r}, levels="logrho") for r in (1, 2, 3, 4)),
]
DEIS = [Hf("DEISMultistep", multistep(r, "eps"), {"solver_order": r}) for r in (1, 2, 3)]
DEIS += [Hf("DEISMultistep", multistep(3, "eps", final=False), {"solver_order": 3}, steps=15)]
HF = [*DPM, *SINGLE, *UNIPC, *KARRAS_STATE, *DEIS]


def full(theirs):
    suffix = "DiscreteScheduler" if theirs in _KARRAS_STATE[:5] else "Scheduler"
    return theirs + suffix


@pytest.mark.parametrize("row", HF, ids=str)
def test_diffusers(hf, row):
    scheduler = hf(full(row.theirs), **row.config)
    process = vp(scheduler)
    x, noise = start(process, 999.0), normals(20)
    found, rho, times = run_hf(scheduler, row, process, x, noise)
    assert gap(found, run_ours(row, process, rho, times, x, noise)) <= SAME


def test_diffusers_as_released_differs_by_rounding_to_float32(diffusers):
    """Without the float64 modules: the same rows, 3e-5 in place of 1e-12.

    ᾱ near 1 is the sensitive quantity: 1 − ᾱ₀ = 8.5e-4 has a relative error of 6e-5 in float32, so the process is built
    from their own ᾱ.  DEIS loses most, 6e-6, in closed forms that cancel.
    """
    for row in (DPM[0], DPM[2], UNIPC[4], KARRAS_STATE[0], KARRAS_STATE[4], DEIS[2]):
        scheduler = getattr(diffusers, full(row.theirs))(**BETAS, **row.config)
        process = vp(scheduler)
        x, noise = start(process, 999.0), normals(20)
        found, rho, times = run_hf(scheduler, row, process, x, noise)
        rho = np.clip(rho, process.rho(0.0), process.rho(999.0)) * (rho > 0)
        assert gap(found, run_ours(row, process, rho, times, x, noise)) <= 3e-5


# -- diffusers: samplers on integer times
LAST = {"timestep_spacing": "leading", "steps_offset": 1}  # times 901, 801, …, 1
ALPHA = {"set_alpha_to_one": False}  # then the last step goes to time 0, not to σ = 0
GRID = np.append(np.arange(901.0, 0.0, -100.0), 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_diffusers_ddim(hf, eta):
    scheduler = hf("DDIM", clip_sample=False, **LAST, **ALPHA)
    scheduler.set_timesteps(10)
    process = vp(scheduler)
    x, noise = start(process, 901.0), normals(10)
    found = denoising_loop(scheduler, MIX.eps(process), x, noise, eta=eta)
    assert gap(found, da.run(da.ddim_eta(process, GRID, eta), MIX.eps(process), x, noise)) <= SAME


@pytest.mark.parametrize(("kind", "ours"), [("fixed_small", "posterior"), ("fixed_large", "forward")])
def test_diffusers_ddpm(hf, kind, ours):
    """The last step, from time 0 to ᾱ = 1, gives x₀."""
    scheduler = hf("DDPM", variance_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    process, ts = vp(scheduler), np.arange(900.0, -1.0, -100.0)
    x, noise = start(process, 900.0), normals(10)
    found = denoising_loop(scheduler, MIX.eps(process), x, noise)
    end = da.run(da.ddpm(process, ts, ours), MIX.eps(process), x, noise[:9])
    assert gap(found, MIX.x0(process)(end, 0.0)) <= SAME


@pytest.mark.parametrize(("skip", "kind"), [(False, "f"), (True, "plms")])
def test_diffusers_pndm(hf, skip, kind):
    """The stages in the middle of a step fall on integer times if the step is even."""
    scheduler = hf("PNDM", skip_prk_steps=skip, **LAST, **ALPHA)
    scheduler.set_timesteps(10)
    process = vp(scheduler)
    x, table = start(process, 901.0), da.pndm(process, GRID, kind)
    assert len(scheduler.timesteps) == table.nfe == (19 if kind == "f" else 11)
    found = denoising_loop(scheduler, MIX.eps(process), x)
    assert gap(found, da.run(table, MIX.eps(process), x)) <= SAME


def angle_model(process, prediction):
    """A model that is told (2/π) arctan ρ."""
    return lambda x, t: MIX.model(process, prediction)(x, float(process.time_from_rho(np.tan(t * np.pi / 2))))


def test_diffusers_ipndm(hf):
    """Their "betas" are σ, and the model predicts v; on levels of ours: iPNDM with four terms."""
    ts = da.grid(VP, 10, "t1", *SPAN)
    scheduler = hf("IPNDM", betas={}, trained_betas=VP.sigma(ts).tolist())
    scheduler.set_timesteps(10)
    x = start(VP, SPAN[0])
    found = denoising_loop(scheduler, angle_model(VP, "v"), x)
    assert gap(found, da.run(da.build("ipndm4", VP, ts), MIX.eps(VP), x)) <= SAME


def velocity(x, t):
    return MIX.v(FLOW)(x, t / 1000)


FLOWS = [
    ("FlowMatchEulerDiscrete", {}, lambda ts: da.build("flow_euler", FLOW, ts)),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, lambda ts: da.adams(FLOW, ts, 0, prediction="v")),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, lambda ts: heun_then_euler(ts)),
    ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, lambda ts: da.build("flow_euler", FLOW, ts)),
]


def heun_then_euler(ts):
    return da.build("flow_heun", FLOW, ts[:-1]).then(da.build("flow_euler", FLOW, ts[-2:]))


@pytest.mark.parametrize(("theirs", "config", "ours"), FLOWS, ids=("euler", "shifted", "heun", "karras"))
def test_diffusers_flow_matching(hf, theirs, config, ours):
    """From t = 1, pure noise, to t = 0: the tables in v are finite at both ends."""
    scheduler = hf(f"{theirs}Scheduler", betas={}, **config)
    scheduler.set_timesteps(8)
    ts = torch.unique_consecutive(scheduler.sigmas).numpy()
    x = start(FLOW, 1.0)
    assert gap(denoising_loop(scheduler, velocity, x), da.run(ours(ts), MIX.v(FLOW), x)) <= SAME


def test_diffusers_stochastic_flow_matching_is_ancestral_with_all_noise_new(hf):
    """x_s = (1 − s) x₀ + s z: ρ_up = ρ_s, which is η = ∞."""
    scheduler = hf("FlowMatchEulerDiscreteScheduler", betas={}, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=np.linspace(0.95, 0.1, 8))
    ts = scheduler.sigmas.numpy()[:-1]
    x, noise = start(FLOW, 0.95), normals(8)
    found = denoising_loop(scheduler, velocity, x, noise)
    end = da.run(da.ancestral(FLOW, ts, 1e9), MIX.eps(FLOW), x, noise[:7])
    assert gap(found, MIX.x0(FLOW)(end, ts[-1])) <= SAME


def edm_network(x, t):
    """EDM's F for σ_data = ½, from the scaled input and c_noise = log(σ)/4."""
    sigma = float(np.exp(4 * t))
    c = np.hypot(sigma, 0.5)
    return (MIX.x0(EDM)(x * c, sigma) - (0.5 / c) ** 2 * (x * c)) / (sigma * 0.5 / c)


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_diffusers_edm_euler(hf, last):
    """With final sigma_min the last level is repeated: that step does nothing."""
    scheduler = hf("EDMEulerScheduler", betas={}, final_sigmas_type=last)
    scheduler.set_timesteps(10)
    ts = torch.unique_consecutive(scheduler.sigmas).numpy()
    x = start(EDM, 80.0)
    found = denoising_loop(scheduler, edm_network, x)
    assert len(scheduler.timesteps) == len(ts) - (last == "zero") == 10
    assert gap(found, da.run(da.build("edm_euler", EDM, ts), MIX.eps(EDM), x)) <= SAME


@pytest.mark.parametrize(("order", "rule"), [(1, "exact"), (2, "midpoint"), (3, "released")])
def test_diffusers_edm_dpm(hf, order, rule):
    scheduler = hf("EDMDPMSolverMultistepScheduler", betas={}, solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(10)
    ts = scheduler.sigmas.numpy()[:-1]
    x = start(EDM, 80.0)
    ours = da.run(multistep(order, "x0", rule, final=False)(EDM, ts), MIX.x0(EDM), x)
    assert gap(denoising_loop(scheduler, edm_network, x), MIX.x0(EDM)(ours, ts[-1])) <= SAME


# -- diffusers: what differs, and why --------------------------------------------------------------------
def own_levels(scheduler, process, steps):
    """Put ``steps`` + 1 levels equidistant in λ in place of the scheduler's; returns the process times."""
    scheduler.set_timesteps(steps)
    rho = np.geomspace(process.rho(999.0), process.rho(0.0), steps + 1)
    ts = process.time_from_rho(rho)
    scheduler.sigmas, scheduler.timesteps = torch.as_tensor(rho), torch.as_tensor(ts[:-1])
    return ts


def second_difference(process, ts):
    """(N, N) weights of the second divided difference of the latest three outputs, in units of the step in λ."""
    lam_t, rows = process.lam(ts), np.zeros((ts.size, ts.size))
    for i in range(2, ts.size - 1):
        z = (lam_t[[i, i - 1, i - 2]] - lam_t[i]) / (lam_t[i + 1] - lam_t[i])
        rows[i + 1, [i, i - 1, i - 2]] = [1 / np.prod(z[j] - np.delete(z, j)) for j in range(3)]
    return rows


def test_diffusers_third_order_sde_has_a_wrong_sign(hf):
    """Defect: (1 − e^{−2h} − 2h)/(2h)² − ½ where + ½ is meant.

    The coefficient of the second difference is off by −α_s, which does not vanish with h: order 1, not 2.
    """
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "lower_order_final": False, **MIN}
    scheduler = hf("DPMSolverMultistepScheduler", **config)
    process = vp(scheduler)
    ts = own_levels(scheduler, process, 12)
    right = da.adams(process, ts, 2, prediction="x0", variable="lam", lam_sde=1.0, rule="released")
    wrong = replace(right, outputs=right.outputs - process.alpha(ts)[:, None] * second_difference(process, ts))
    x, noise = start(process, 999.0), normals(12)
    found = denoising_loop(scheduler, MIX.eps(process), x, noise)
    assert gap(found, da.run(wrong, MIX.x0(process), x, noise)) <= SAME
    assert gap(found, da.run(right, MIX.x0(process), x, noise)) > 0.1
    assert np.all(da.exactness_degree(wrong, process, "x0", "lam", lam_sde=1.0)[2:] == 1)
    assert abs(law_order(lambda p, t: third_sde(p, t, sign=-1.0)) - 1) < 0.1
    assert abs(law_order(lambda p, t: third_sde(p, t, sign=1.0)) - 2) < 0.15


def test_diffusers_singlestep_third_order_sde_has_the_same_wrong_sign(hf):
    """With solver_type "heun"; shown on the mean, all noise 0."""
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    scheduler = hf("DPMSolverSinglestepScheduler", lower_order_final=False, **config, **MIN)
    process = vp(scheduler)
    ts = own_levels(scheduler, process, 12)
    right = da.singlestep(process, ts[::3], 3, prediction="x0", taylor=True, lam_sde=1.0)
    shift = np.zeros_like(right.outputs)
    for i in range(0, 12, 3):  # twice the divided difference through the shares 0, ⅓, ⅔: f″ in units of the step
        shift[i + 3, i : i + 3] = -float(process.alpha(ts[i + 3])) * 2 * np.array([4.5, -9.0, 4.5])
    x, none = start(process, 999.0), [0.0 * z for z in normals(12)]
    found = denoising_loop(scheduler, MIX.eps(process), x, none)
    assert gap(found, da.run(replace(right, outputs=right.outputs + shift), MIX.x0(process), x, none)) <= SAME
    assert gap(found, da.run(right, MIX.x0(process), x, none)) > 0.1


def third_sde(process, ts, sign):
    table = da.adams(process, ts, 2, prediction="x0", variable="lam", lam_sde=1.0, rule="released")
    shift = (sign - 1.0) / 2.0 * process.alpha(ts)[:, None] * second_difference(process, ts)
    return replace(table, outputs=table.outputs + shift)


def law_order(build, steps=(160, 320, 640)):
    """Order of the error of the law on Gaussian data, on a smooth stretch of VPLinear."""
    errors = [da.law_error(build(VP, da.grid(VP, n, "logrho", 0.4, 0.1)), VP, [0.3], [0.4])[0] for n in steps]
    return float(np.polyfit(np.log(steps), -np.log(errors), 1)[0])


def test_diffusers_singlestep_sde_draws_the_steps_noise_anew(hf):
    """Defect: the stage's noise is no part of the step's; SEEDS-2 with correlation 0.

    Fed with correlated noise it is SEEDS-2 (x₀) exactly.
    """
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "lower_order_final": False, **MIN}
    scheduler = hf("DPMSolverSinglestepScheduler", **config)
    process = vp(scheduler)
    ts = own_levels(scheduler, process, 12)
    table = da.build("seeds_2_x0", process, ts[::2])
    share = share_of_stage(table, lambda t: process.rho(t) ** -2.0)
    x, noise = start(process, 999.0), normals(12)
    ours = da.run(table, MIX.x0(process), x, noise)
    parts = [
        z if k % 2 == 0 else share[k // 2] * noise[k - 1] + np.sqrt(1 - share[k // 2] ** 2) * z
        for k, z in enumerate(noise)
    ]
    found = denoising_loop(scheduler, MIX.eps(process), x, parts)
    assert gap(found, ours) <= SAME
    own_levels(scheduler, process, 12)
    as_released = denoising_loop(scheduler, MIX.eps(process), x, noise)
    assert gap(as_released, da.run(with_correlation(table, 0.0), MIX.x0(process), x, noise)) <= SAME
    assert gap(as_released, ours) > 0.1


def test_weak_orders_of_the_three_noises():
    """SEEDS-2: 2.  On a path in the clock ρ (k-diffusion, diffusers' DPMSolverSDE): 2.  Independent (singlestep): 1."""

    def seeds(process, ts, correlation=None):
        table = da.build("seeds_2_x0", process, ts)
        return table if correlation is None else with_correlation(table, correlation(process, table))

    assert abs(law_order(seeds) - 2) < 0.1
    assert abs(law_order(lambda p, ts: seeds(p, ts, lambda p, table: share_of_stage(table, p.rho))) - 2) < 0.1
    assert abs(law_order(lambda p, ts: seeds(p, ts, lambda *_: 0.0)) - 1) < 0.1


def test_diffusers_dpm_solver_sde_is_k_diffusions(hf):
    """And told its own times: those of the stages are interpolated in log σ."""
    pytest.importorskip("torchsde")
    scheduler = hf("DPMSolverSDEScheduler")
    scheduler.set_timesteps(10)
    process = vp(scheduler)
    rho = torch.unique_consecutive(scheduler.sigmas).numpy()
    table = da.build("seeds_2_x0", process, process.time_from_rho(rho[:-1]))
    x, noise = start(process, 999.0), normals(18)
    levels, times = process.rho(table.times), scheduler.timesteps.numpy()
    for clock in (lambda s: s, lambda s: s**-2.0):
        scheduler.set_timesteps(10)
        scheduler.noise_sampler = brownian(levels, noise, clock)
        found = denoising_loop(scheduler, MIX.eps(process), x * np.hypot(1.0, rho[0]))
        modelled = with_correlation(table, share_of_stage(table, lambda t, clock=clock: clock(process.rho(t))))
        ours = da.run(told(modelled, process, times[: table.nfe]), MIX.eps(process), x, noise)
        assert gap(found, denoised(process, ours, rho[-2], times[-1])) <= SAME


def blocks(process, ts, orders, prediction, stages):
    """Singlestep blocks of the given orders on the given times."""
    ends = np.cumsum([0, *orders])[:-1]
    parts = [
        (np.array([e for e, o in zip(ends, orders, strict=True) if o == order]), stages(order))
        for order in sorted(set(orders))
    ]
    return _blocks(process, ts, parts, prediction, 0.0, "blocks")


def midpoint_stages(order):
    """As released: the second stage of order 3 is the midpoint rule, where the paper integrates exactly."""
    return (Stage((0,)), Stage((0, 1), midpoint=True), Stage((0, 2)))[:order]


@pytest.mark.parametrize(("kind", "prediction"), [("dpmsolver++", "x0"), ("dpmsolver", "eps")])
@pytest.mark.parametrize("steps", [10, 11, 12])
@pytest.mark.parametrize("order", [2, 3])
def test_diffusers_singlestep_third_order_has_a_stage_by_midpoint(hf, kind, prediction, steps, order):
    """Their own grid; with ``lower_order_final`` order 3 spends its calls as DPM-Solver-fast does.

    A variant of DPM-Solver-3: its stage is of second order either way.
    """
    config = {"solver_order": order, "algorithm_type": kind, "lower_order_final": True, **MIN}
    scheduler = hf("DPMSolverSinglestepScheduler", **config)
    scheduler.set_timesteps(steps)
    process, orders = vp(scheduler), np.array(scheduler.order_list)
    orders = orders[np.append(orders[1:] == 1, True)].tolist()  # 1, 2, 3, 1, 2, … counts the stages of each block
    ts, times = process.time_from_rho(scheduler.sigmas.numpy()), scheduler.timesteps.numpy()
    x = start(process, 999.0)
    found = denoising_loop(scheduler, MIX.eps(process), x)
    table = told(blocks(process, ts, orders, prediction, midpoint_stages), process, times)
    assert gap(found, da.run(table, MIX.eps(process), x)) <= SAME
    if order == 3:
        assert orders == fast_orders(steps)
        exact = told(da.dpm_fast(process, ts, prediction=prediction), process, times)
        assert gap(found, da.run(exact, MIX.eps(process), x)) > DIFFERENT


@pytest.mark.parametrize(
    ("spacing", "steps", "differs"), [("linspace", 10, True), ("trailing", 30, True), ("leading", 30, False)]
)
def test_diffusers_ddim_steps_to_another_level_than_it_tells(hf, spacing, steps, differs):
    """Defect: the step goes to t − ⌊1000/N⌋, whatever the next time is: from 999 to 899, but 888 is told."""
    scheduler = hf("DDIM", clip_sample=False, timestep_spacing=spacing, **ALPHA)
    scheduler.set_timesteps(steps)
    process, times = vp(scheduler), scheduler.timesteps.numpy().astype(float)
    x = start(process, times[0])
    found = denoising_loop(scheduler, MIX.eps(process), x)
    modelled = x
    for t in times[times > 0]:
        goes_to = max(t - 1000 // steps, 0.0)
        modelled = da.run(da.build("ddim", process, [t, goes_to]), MIX.eps(process), modelled)
    assert gap(found, modelled) <= SAME
    meant = da.run(da.build("ddim", process, np.unique([*times, 0.0])[::-1]), MIX.eps(process), x)
    assert (gap(found, meant) > DIFFERENT) == differs


def test_diffusers_pndm_spends_its_last_call_on_a_step_of_length_0(hf):
    """Defect of the defaults: "leading" ends at time 0, and the next level is ᾱ₀ too."""
    scheduler = hf("PNDM")
    scheduler.set_timesteps(10)
    process = vp(scheduler)
    ts = np.arange(900.0, -1.0, -100.0)
    x, table = start(process, 900.0), da.pndm(process, ts, "f")
    found = denoising_loop(scheduler, MIX.eps(process), x)
    assert len(scheduler.timesteps) == table.nfe + 1
    assert gap(found, da.run(table, MIX.eps(process), x)) <= SAME


NULL_STEPS = [
    ("DEISMultistep", multistep(3, "eps", final=False), {"solver_order": 3, "use_karras_sigmas": True}, 16),
    ("DEISMultistep", multistep(2, "eps", final=False), {"use_karras_sigmas": True}, 10),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "config", "steps"), NULL_STEPS, ids=lambda o: str(o) if isinstance(o, str) else ""
)
def test_diffusers_karras_levels_repeat_the_last_one(hf, theirs, ours, config, steps):
    """Defect: σ_min is both the last Karras level and the level after it, so the last model call moves nothing."""
    scheduler = hf(f"{theirs}Scheduler", **config)
    scheduler.set_timesteps(steps)
    process = vp(scheduler)
    rho, times = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
    assert rho[-1] == rho[-2]
    x = start(process, 999.0)
    rho = np.clip(rho, process.rho(0.0), process.rho(999.0))
    table = ours(process, process.time_from_rho(rho[:-1]))
    found = denoising_loop(scheduler, MIX.eps(process), x)
    ours_is = da.run(told(table, process, times[: table.nfe]), MIX.eps(process), x)
    assert table.nfe == len(scheduler.timesteps) - 1
    assert gap(found, ours_is) <= SAME


@pytest.mark.parametrize(
    ("theirs", "config"),
    [
        ("DPMSolverMultistep", {"solver_order": 3}),
        ("DPMSolverMultistep", {"solver_type": "heun"}),
        ("UniPCMultistep", {"solver_order": 3, "lower_order_final": False}),
    ],
)
def test_diffusers_repeated_level_gives_nan(diffusers, theirs, config):
    """Defect: the same repetition, where a weight is 0/0.  In float32, as released: in float64 rounding parts them."""
    scheduler = getattr(diffusers, f"{theirs}Scheduler")(use_karras_sigmas=True, **BETAS, **MIN, **config)
    scheduler.set_timesteps(18)
    process = vp(scheduler)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
    x = start(process, 999.0).to(torch.float32)
    draws = []

    def model(x, t):
        draws.append(bool(torch.isfinite(x).all()))
        return MIX.eps(process)(x, t)

    assert torch.isnan(denoising_loop(scheduler, model, x)).all()
    assert all(draws)  # it is the last step that does it


def euler_churned(hf, prediction, noise, churn):
    """(their result in the state x/α, the levels, a model of that state told (y, ρ), the start)."""
    scheduler = hf("EulerDiscreteScheduler", prediction_type=prediction)
    scheduler.set_timesteps(10)
    process, rho = vp(scheduler), scheduler.sigmas.numpy()
    told_at = dict(zip(rho, scheduler.timesteps.numpy(), strict=False))

    def model(y, level):
        t = told_at[level] if level in told_at else float(process.time_from_rho(min(level, rho[0])))
        return MIX.eps(process)(y / np.hypot(1.0, level), t)

    theirs = MIX.v(process) if prediction == "v_prediction" else MIX.eps(process)
    y = start(process, 999.0) * np.hypot(1.0, rho[0])
    return denoising_loop(scheduler, theirs, y, noise, s_churn=churn), rho, model, y


def test_diffusers_euler_churn_calls_the_model_before_the_noise(hf):
    """Defect: in EDM's algorithm 2 the model sees the state after the noise, at σ̂; here it saw it before, at σ."""
    noise, edm = normals(10), da.EDM(0.01, 200.0)
    found, rho, model, y = euler_churned(hf, "epsilon", noise, 2.0)
    right = da.edm_churn(edm, rho, None, churn=2.0)
    before = list(right.grid_nodes[:-1])
    after = [k + 1 for k in before]
    outputs = right.outputs.copy()
    outputs[:, before], outputs[:, after] = outputs[:, after], 0.0
    assert gap(found, da.run(replace(right, outputs=outputs), model, y, noise)) <= SAME
    assert gap(found, da.run(right, model, y, noise)) > 0.01


def test_diffusers_euler_churn_depends_on_what_the_model_predicts(hf):
    """Defect: with v, x₀ is read off the noisy state with the level before the noise; without churn ε and v agree."""
    noise = normals(10)
    for churn, equal in ((0.0, True), (2.0, False)):
        by_eps, by_v = (euler_churned(hf, kind, noise, churn)[0] for kind in ("epsilon", "v_prediction"))
        assert gap(by_v, by_eps) <= SAME if equal else gap(by_v, by_eps) > 0.01


def test_diffusers_ipndm_ignores_its_first_model_call(hf):
    """Defect of the default levels: α = 0 at the first one, where ε is x whatever v is, and x₀ is taken to be 0.

    DDIM's limit there is x_s = σ_s x − α_s v.
    """
    first = []
    for offset in (0.0, 1.0):
        scheduler = hf("IPNDMScheduler", betas={})
        scheduler.set_timesteps(10)
        x = normals(1)[0]
        v = normals(2)[1] + offset
        first.append(scheduler.step(v, scheduler.timesteps[0], x).prev_sample)
        alpha, sigma = scheduler.alphas[1], scheduler.betas[1]
        assert gap(first[-1], sigma * x) <= SAME
        assert gap(first[-1], sigma * x - alpha * v) > 0.01
    assert gap(*first) <= SAME


def test_diffusers_ddpm_fixed_large_log_gives_nan(hf):
    """Defect: the logarithm of the variance goes where the variance should, and its square root is taken."""
    scheduler = hf("DDPM", variance_type="fixed_large_log", clip_sample=False)
    scheduler.set_timesteps(10)
    x, z = normals(2)
    assert torch.isnan(scheduler.step(x, scheduler.timesteps[0], z).prev_sample).all()


def test_diffusers_ddpm_fixed_large_adds_noise_to_its_result(hf):
    """Defect: the last step goes to ᾱ = 1, and unless it starts at time 0 exactly it adds noise of its whole level."""
    scheduler = hf("DDPM", variance_type="fixed_large", clip_sample=False, **LAST)
    scheduler.set_timesteps(10)
    process = vp(scheduler)
    x, noise = start(process, 901.0), normals(10)
    found = denoising_loop(scheduler, MIX.eps(process), x, noise)
    end = da.run(da.ddpm(process, GRID[:-1], "forward"), MIX.eps(process), x, noise[:9])
    clean = MIX.x0(process)(end, 1.0)
    assert gap(found, clean + process.sigma(1.0) * noise[9]) <= SAME
    assert gap(found, clean) > 0.01


@pytest.mark.parametrize(
    ("theirs", "config"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", **MIN, **BETAS}),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_diffusers_third_order_is_missing_for_some_sdes(hf, theirs, config):
    """Defect: accepted as an option, then an unbound variable at the third step."""
    scheduler = hf(theirs, betas={}, solver_order=3, **config)
    scheduler.set_timesteps(10)
    with pytest.raises(UnboundLocalError):
        denoising_loop(scheduler, lambda x, t: 0.0 * x, normals(1)[0], normals(20))


def test_diffusers_flow_shift_is_applied_twice(hf):
    """Defect: the last level has been shifted when the scheduler was made, and is again when the levels are set.

    The levels are our "shift3" grid that ends at s(s(1/1000)), not at s(1/1000).
    """
    scheduler = hf("FlowMatchEulerDiscreteScheduler", betas={}, shift=3.0)
    scheduler.set_timesteps(10)

    def shifted(u):
        return 3.0 * u / (1.0 + 2.0 * u)

    twice, once = (da.grid(FLOW, 9, "shift3", 1.0, end) for end in (shifted(shifted(1e-3)), shifted(1e-3)))
    assert gap(scheduler.sigmas[:-1], twice) <= SAME
    assert gap(scheduler.sigmas[:-1], once) > 1e-3
    assert shifted(shifted(1e-3)) > 2.9 * shifted(1e-3)


FLOW_SIGMAS = [
    ("DPMSolverMultistep", multistep(2, "x0", "midpoint", final=False), {}, "zero"),
    ("DPMSolverMultistep", multistep(3, "x0", "released", final=False), {"solver_order": 3}, "zero"),
    ("DEISMultistep", multistep(2, "eps", final=False), {}, "repeated"),
    ("DEISMultistep", multistep(3, "eps", final=False), {"solver_order": 3}, "repeated"),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "config", "last"), FLOW_SIGMAS, ids=lambda o: str(o) if isinstance(o, str) else ""
)
def test_diffusers_multistep_on_flow_levels(hf, theirs, ours, config, last):
    """They tell 1000 σ rounded down to an integer, but step from σ. DEIS ends at its last level but one, σ = 1/N.

    Defect of DEIS: the last level is repeated rather than followed by 0, so the result keeps 10 % of the noise.
    """
    scheduler = hf(
        f"{theirs}Scheduler", use_flow_sigmas=True, prediction_type="flow_prediction", lower_order_final=False, **config
    )
    scheduler.set_timesteps(10)
    ts, times = scheduler.sigmas.numpy(), scheduler.timesteps.numpy().astype(float)
    assert np.array_equal(times, np.floor(1000 * ts[:-1]))
    x = start(FLOW, ts[0])
    found = denoising_loop(scheduler, velocity, x)
    table = told(ours(FLOW, ts[:-1]), FLOW, times[:-1] / 1000, "v")
    end = da.run(table, MIX.v(FLOW), x)
    if last == "zero":
        assert gap(found, end - ts[-2] * MIX.v(FLOW)(end, times[-1] / 1000)) <= SAME
    else:
        assert ts[-1] == ts[-2] > 0.09
        assert gap(found, end) <= SAME
        assert gap(found, MIX.x0(FLOW)(end, ts[-1])) > 0.01
    exact = da.run(ours(FLOW, ts[:-1]).in_terms_of(FLOW, "v"), MIX.v(FLOW), x)
    assert gap(end, exact) > 1e-5  # what rounding the told time costs
