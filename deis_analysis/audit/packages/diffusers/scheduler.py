"""The schedulers of diffusers, driven by the denoising loop of its pipelines, one fresh scheduler a run.

On its own a scheduler runs as released, with 1000 training times and float32 levels; `ladder` puts
its formula on the levels of the order problem.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.audit.packages.diffusers.families import FAMILIES, REASONS, Family
from deis_analysis.audit.packages.shared import BrownianNoise, fit_steps, quiet
from deis_analysis.audit.subject import Prepared, near
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process
from deis_analysis.process.schedules import EDM, RectifiedFlow, VPCosine, VPDiscrete
from deis_analysis.tableau.extraction import NotApplicable, Refusal
from deis_analysis.validate import choose

LISTS = ("timesteps", "sigmas")  # options of ``set_timesteps`` that give the steps themselves
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "v"}
NOT_OPTIONS = {
    "self",
    "kwargs",
    "trained_betas",
    "tau_func",
    "solver_p",
    "disable_corrector",
    "model_output",
    "timestep",
    "sample",
    "generator",
    "return_dict",
    "variance_noise",
    "pred_original_sample",
    "per_token_timesteps",
    "prev_timestep",
    "r_timestep",
    "num_inference_steps",
    "device",
}


@dataclass(frozen=True)
class Scheduler:
    """A scheduler class of diffusers with options of its constructor, of ``set_timesteps`` and of ``step``."""

    spec: str
    name: str
    config: dict[str, Any]
    timing: dict[str, Any]
    step: dict[str, Any]
    declared_order: int | None
    strength: float = 1.0

    @property
    def family(self) -> Family:
        """How the class speaks; `Refusal` says why it cannot be driven."""
        if self.name not in FAMILIES:
            raise NotApplicable(
                f"{self.name} cannot be read: {REASONS.get(self.name, 'this adapter does not know it')}"
            )
        return FAMILIES[self.name]

    @property
    def kind(self) -> str:
        """As the family's; ``use_flow_sigmas`` makes a flow of a VP class."""
        return "flow" if self.config.get("use_flow_sigmas") else self.family.kind

    @property
    def reason(self) -> str:
        """Why there is no ladder; empty where there is one."""
        return FAMILIES[self.name].why_not if self.name in FAMILIES else REASONS.get(self.name, "unknown")

    def own(self, nfe: int) -> Prepared:
        """As released: 1000 training times, the class's defaults and the spec's options."""
        assert self.family
        pristine = self.make()
        given = next((values for key, values in self.timing.items() if key in LISTS and values is not None), None)
        if given is not None:
            return _own(self, pristine, len(given))
        return fit_steps(lambda steps: _own(self, pristine, steps), nfe)

    def make(self, **changes: Any) -> Any:
        """A fresh scheduler; `Refusal` where its constructor fails."""
        import diffusers

        try:
            with quiet():
                return getattr(diffusers, self.name)(**{**self.config, **changes})
        except Exception as error:
            raise Refusal(f"{self.name} cannot be made: {type(error).__name__}: {error}") from error


# -- running -----------------------------------------------------------------------------------------
def denoise(
    subject: Scheduler, scheduler: Any, model: Callable[..., Any], x: Any, skip: int = 0, begin: int = 0
) -> Any:
    """The loop of every pipeline, from its time ``begin`` on, without the last ``skip`` model calls."""
    ask = _ask(subject, scheduler, model)
    times = list(scheduler.timesteps)
    takes_next = "prev_timestep" in inspect.signature(scheduler.step).parameters
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = BrownianNoise(x)
    for i, t in list(enumerate(times))[begin : len(times) - skip]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        following = {"prev_timestep": times[i + 1]} if takes_next and i + 1 < len(times) else {}
        x = scheduler.step(ask(scaled, t), t, x, **following, **subject.step).prev_sample
    return x


def _ask(subject: Scheduler, scheduler: Any, model: Callable[..., Any]) -> Callable[..., Any]:
    """What the loop calls: the model, or the network F whose preconditioned output is the model's x₀."""
    if subject.name == "MiniMaxH3Scheduler":
        return lambda x, t: -model(x, t)  # its velocity points to the data
    if subject.kind != "edm":
        return model
    data, sign = scheduler.config.sigma_data, 1.0 if scheduler.config.prediction_type == "epsilon" else -1.0

    def network(scaled: Any, t: Any) -> Any:
        sigma = _edm_level(subject, float(t))
        c = math.hypot(sigma, data)
        state = scaled * c
        return (model(state, t) - (data / c) ** 2 * state) / (sign * sigma * data / c)

    return network


def _edm_level(subject: Scheduler, raw: float) -> float:
    """σ from what the network is told: log(σ)/4, or the angle in quarter turns."""
    return math.tan(raw * math.pi / 2) if subject.name.startswith("Cosine") else math.exp(4.0 * raw)


# -- as released -------------------------------------------------------------------------------------
_REPEATED = (
    "its first time is repeated: a plain loop starts it at the second of its levels, and it runs off their list at the "
    "end; here it was told to begin at the first (set_begin_index)"
)


def _own(subject: Scheduler, pristine: Any, steps: int) -> Prepared:
    known: dict[Any, Any] = {}

    def scheduler() -> Any:
        made = copy.deepcopy(pristine)
        remember(made, known)
        with quiet():
            listed = {key: values for key, values in subject.timing.items() if key in LISTS}
            made.set_timesteps(*(() if listed else (steps,)), **subject.timing)
            if hasattr(made, "set_begin_index") and (subject.strength < 1 or _repeats_first(made)):
                made.set_begin_index(_begin(subject, made))
        return made

    def sampler(model: Callable[..., Any], x: Any) -> Any:
        fresh = scheduler()
        with quiet():
            first = 1.0 if subject.strength < 1 else getattr(fresh, "init_noise_sigma", 1.0)
            return denoise(subject, fresh, model, x * first, begin=_begin(subject, fresh))

    try:
        example = scheduler()
        process, time = process_of(subject, example)
        end = _end_level(subject, example, process)
        t_end = _time_at(process, end)
        t_start = _start_of_an_image(subject, example, process) if subject.strength < 1 else None
    except Exception as error:
        raise Refusal(f"{subject.name} cannot take {steps} steps: {type(error).__name__}: {error}") from error
    return Prepared(
        sampler,
        process,
        convention_of(subject, example, time),
        t_end,
        "karras" if subject.kind in ("karras", "edm") else "process",
        start_std=1.0 if t_start is None else None,
        t_start=t_start,
        end_level=end,
        levels=_levels(subject, example),
        asked_least=_asked_least(subject, example),
        note=_REPEATED if _repeats_first(example) else "",
        remark=_remark(example) if subject.kind in ("index", "sigmas", "karras") else "",
    )


def _begin(subject: Scheduler, scheduler: Any) -> int:
    """The place in ``timesteps`` at which the pipelines start from an image: the share ``strength`` is left."""
    order = int(getattr(scheduler, "order", 1))
    steps = (len(scheduler.timesteps) + order - 1) // order
    return (steps - min(int(steps * subject.strength), steps)) * order


def _start_of_an_image(subject: Scheduler, scheduler: Any, process: Process) -> float:
    """Process time of the level to which ``add_noise`` (``scale_noise`` of flows) brings an image at the first time."""
    import torch

    image, noise = torch.tensor([[1.0], [0.0]], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    first = scheduler.timesteps[_begin(subject, scheduler) :][:1]
    if hasattr(scheduler, "add_noise"):
        made = scheduler.add_noise(image, noise, first.repeat(2))
    else:
        made = scheduler.scale_noise(image, first.repeat(2), noise)
    alpha, sigma = (float(v) for v in made.reshape(-1))
    return float(process.time_from_rho(near(sigma / alpha, float(process.rho(process.t_min)), math.inf)))


def remember(scheduler: Any, known: dict[Any, Any]) -> None:
    """Let LMS take the integrals that an equal scheduler computed before: they are most of its time."""
    compute = getattr(scheduler, "get_lms_coefficient", None)
    if compute is None:
        return

    def coefficient(*key: Any) -> Any:
        if key not in known:
            known[key] = compute(*key)
        return known[key]

    scheduler.get_lms_coefficient = coefficient


def _repeats_first(scheduler: Any) -> bool:
    """Whether a scheduler that looks its place up by the time would find the second of two equal ones."""
    times = np.asarray(scheduler.timesteps, dtype=np.float64)
    return hasattr(scheduler, "set_begin_index") and times.size > 1 and bool(times[0] == times[1])


def process_of(subject: Scheduler, scheduler: Any) -> tuple[Process, Callable[[float], float]]:
    """The process that a scheduler follows, and process time of what it tells its model."""
    match subject.kind:
        case "flow":
            return RectifiedFlow(), _flow_time(subject, scheduler)
        case "edm":
            low, high = float(scheduler.config.sigma_min), float(scheduler.config.sigma_max)
            return EDM(low, high), lambda raw: near(_edm_level(subject, raw), low, high)
        case "ipndm":
            cosine = VPCosine(1e-15, 1.0 - 1e-12)  # no offset: the angle itself
            return cosine, lambda raw: near(raw, 0.0, cosine.t_max)
        case _:
            process = VPDiscrete(_descending(scheduler)[0])
            config = scheduler.config
            if config.get("timestep_type") == "continuous" and config.prediction_type == "v_prediction":
                low, high = (float(process.rho(t)) for t in (0.0, process.t_max))
                return process, lambda raw: float(process.time_from_rho(near(math.exp(4.0 * raw), low, high)))
            return process, lambda raw: near(raw, 0.0, process.t_max)


def _descending(scheduler: Any) -> tuple[Array, list[int]]:
    """ᾱ with the times at which it does not fall, such as the last of a zero terminal SNR: those before give way."""
    alphas = np.clip(np.asarray(scheduler.alphas_cumprod, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    rises = [int(k) for k in np.flatnonzero(np.diff(alphas) >= 0) + 1]
    for k in range(alphas.size - 1, 0, -1) if rises else ():
        alphas[k - 1] = max(alphas[k - 1], alphas[k] * (1.0 + 1e-9))
    return alphas, rises


def _remark(scheduler: Any) -> str:
    """What is odd about its levels."""
    rises = _descending(scheduler)[1] if hasattr(scheduler, "alphas_cumprod") else []
    places = ", ".join(map(str, rises[:3])) + (" …" if len(rises) > 3 else "")
    return f"ᾱ does not fall at time {places}, where it is not below that of the time before" if rises else ""


def _flow_time(subject: Scheduler, scheduler: Any) -> Callable[[float], float]:
    if subject.name == "MiniMaxH3Scheduler":
        return lambda raw: 1.0 - raw
    count = float(scheduler.config.num_train_timesteps)
    return lambda raw: near(raw / count, 0.0, 1.0)


def convention_of(subject: Scheduler, scheduler: Any, time: Callable[[float], float]) -> Convention:
    """How the scheduler speaks to its model, told ``time``."""
    if subject.kind == "edm":
        return Convention("x0", time, state="karras")
    default = "v_prediction" if subject.kind in ("flow", "ipndm") else "epsilon"
    kind = choose("prediction_type", scheduler.config.get("prediction_type", default), _PREDICTIONS)
    return Convention(_PREDICTIONS[kind], time)


def _levels(subject: Scheduler, scheduler: Any) -> tuple[float, ...] | None:
    """ρ of the scheduler's list of levels, if it has one."""
    if subject.kind == "ipndm":
        sigma, alpha = (np.asarray(values, dtype=np.float64) for values in (scheduler.betas, scheduler.alphas))
    elif subject.kind == "index" or not _has_list(scheduler):
        return None
    else:
        sigma = np.asarray(scheduler.sigmas, dtype=np.float64)
        alpha = 1.0 - sigma if subject.kind == "flow" else np.ones_like(sigma)
    with np.errstate(divide="ignore"):
        return tuple(map(float, sigma / alpha))


def _has_list(scheduler: Any) -> bool:
    """Whether it steps through ``sigmas``: before 0.21 the multistep classes looked ᾱ up at integer times."""
    return len(getattr(scheduler, "sigmas", ())) == len(scheduler.timesteps) + 1


def _asked_least(subject: Scheduler, scheduler: Any) -> float | None:
    """ρ of the least time of flow matching, 1 of num_train_timesteps, under its static shift once."""
    shift = float(subject.config.get("shift", 1.0) or 1.0)
    changed = {
        "use_dynamic_shifting",
        "shift_terminal",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
    }
    if not subject.name.startswith("FlowMatch") or subject.timing or changed & set(subject.config):
        return None
    least = 1.0 / float(scheduler.config.num_train_timesteps)
    least = shift * least / (1.0 + (shift - 1.0) * least)
    return least / (1.0 - least)


def _end_level(subject: Scheduler, scheduler: Any, process: Process) -> float:
    listed = _levels(subject, scheduler)
    if listed is not None:
        return listed[-1]
    end = "first" if subject.kind == "sigmas" else subject.family.end
    if end == "alpha":
        return 0.0 if scheduler.config.set_alpha_to_one else float(process.rho(0.0))
    return float(process.rho(0.0)) if end == "first" else 0.0


def _time_at(process: Process, level: float) -> float | None:
    """Process time of a level, put into the process's range if rounding carried it out; None if it has none."""
    if level == 0.0 and not isinstance(process, VPDiscrete):
        return 0.0
    first = float(process.rho(process.t_min))
    return float(process.time_from_rho(near(level, first, math.inf))) if level >= first * (1 - 1e-4) else None


def plus(value: Any) -> Any:
    """A plus sign of ``sde-dpmsolver++``, which a query string reads as a space."""
    return value.replace(" ", "+") if isinstance(value, str) else value
