"""The schedulers of diffusers by kind, what cannot be driven and why, and the configurations of a sweep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How a class speaks, and how it is put on given levels.

    Attributes:
        kind: ``"index"``, ᾱ looked up at integer times; ``"sigmas"``, a list of levels ρ, state αx₀ + σε; ``"karras"``,
            the same with state x₀ + ρε; ``"flow"``, a list of times of rectified flow; ``"edm"``, levels σ and EDM's
            preconditioning; ``"ipndm"``, σ and the angle.
        order: what its author claims, or the option that holds it.
        ladder: ``"leading"``, ``"ends at 0"`` or ``"ends above 0"``, by trained β; ``"relabel"`` or ``"assign"`` levels
            in place of its own; ``"betas"``; None if it cannot be put on given levels.
        end: level of the result of an ``"index"`` class: ``"alpha"`` as ``set_alpha_to_one`` says, ``"data"``, 0, or
            ``"first"``, that of time 0.
        why_not: why it has no ladder, in words.
    """

    kind: str
    order: int | str | None
    ladder: str | None
    end: str = "data"
    why_not: str = ""


DISTILLED = "it samples a distilled model: each step guesses the data anew, and no flow is integrated"
FAMILIES = {
    "DDIMScheduler": Family("index", 1, "leading", "alpha"),
    "DDIMParallelScheduler": Family("index", 1, "leading", "alpha"),
    "CogVideoXDDIMScheduler": Family("index", 1, None, "alpha", "its ᾱ are shifted after they are made from β"),
    "DDPMScheduler": Family("index", 1, "leading"),
    "DDPMParallelScheduler": Family("index", 1, "leading"),
    "UnCLIPScheduler": Family("index", 1, None, why_not="it takes no β but those of its own schedule"),
    "PNDMScheduler": Family("index", 4, "leading", "alpha"),
    "LCMScheduler": Family("index", None, None, why_not=DISTILLED),
    "TCDScheduler": Family("index", None, None, "first", DISTILLED),
    "DPMSolverMultistepScheduler": Family("sigmas", "solver_order", "ends above 0"),
    "DPMSolverSinglestepScheduler": Family("sigmas", "solver_order", "ends above 0"),
    "DEISMultistepScheduler": Family("sigmas", "solver_order", "ends above 0"),
    "UniPCMultistepScheduler": Family("sigmas", "solver_order", "ends above 0"),
    "SASolverScheduler": Family("sigmas", "predictor_order", "ends above 0"),
    "EulerDiscreteScheduler": Family("karras", 1, "ends at 0"),
    "EulerAncestralDiscreteScheduler": Family("karras", 1, "ends at 0"),
    "HeunDiscreteScheduler": Family("karras", 2, "ends at 0"),
    "KDPM2DiscreteScheduler": Family("karras", 2, "ends at 0"),
    "KDPM2AncestralDiscreteScheduler": Family("karras", None, "ends at 0"),
    "LMSDiscreteScheduler": Family("karras", "order", "ends at 0"),
    "DPMSolverSDEScheduler": Family("karras", 2, "ends at 0"),
    "IPNDMScheduler": Family("ipndm", 4, "betas"),
    "EDMEulerScheduler": Family("edm", 1, "assign"),
    "EDMDPMSolverMultistepScheduler": Family("edm", "solver_order", "assign"),
    "CosineDPMSolverMultistepScheduler": Family("edm", "solver_order", "assign"),
    "FlowMatchEulerDiscreteScheduler": Family("flow", 1, "relabel"),
    "FlowMatchHeunDiscreteScheduler": Family("flow", 2, "relabel"),
    "FlowMatchLCMScheduler": Family("flow", None, None, why_not=DISTILLED),
    "FlowMapEulerDiscreteScheduler": Family("flow", None, "relabel"),
    "LTXEulerAncestralRFScheduler": Family("flow", 1, "relabel"),
    "MiniMaxH3Scheduler": Family("flow", 1, "relabel"),
}
_TOKENS = "it samples discrete tokens, not a diffusion"
_OWN_LOOP = "it needs its own pipeline: its step takes more than (output, time, state)"
_INVERSE = "it runs from data to noise"
REASONS = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CogVideoXDPMScheduler": _OWN_LOOP,
    "DDPMWuerstchenScheduler": _OWN_LOOP,
    "HeliosDMDScheduler": _OWN_LOOP,
    "HeliosScheduler": _OWN_LOOP,
    "PiflowScheduler": _OWN_LOOP,
    "RFD4ProteinaScheduler": _OWN_LOOP,
    "RePaintScheduler": _OWN_LOOP,
    "ScoreSdeVeScheduler": "its corrector's step size is a ratio of norms of the noise and the score: not linear",
    "CMStochasticIterativeScheduler": DISTILLED,
    "SCMScheduler": DISTILLED,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "KarrasVeScheduler": "it was moved to the deprecated pipelines",
}
_DPM, _SINGLE, _UNIPC, _DEIS = (
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
)
_FLOW = "use_flow_sigmas=true&prediction_type=flow_prediction"
CATALOGUE = (
    "DDIMScheduler",
    "DDIMScheduler?clip_sample=false",
    "DDIMScheduler?clip_sample=false&timestep_spacing=linspace",
    "DDIMScheduler?clip_sample=false&timestep_spacing=trailing",
    "DDIMScheduler?clip_sample=false&eta=1.0",
    "DDIMParallelScheduler?clip_sample=false",
    "CogVideoXDDIMScheduler?clip_sample=false",
    "DDPMScheduler?clip_sample=false",
    "DDPMScheduler?clip_sample=false&variance_type=fixed_large",
    "DDPMScheduler?clip_sample=false&variance_type=fixed_large_log",
    "DDPMParallelScheduler?clip_sample=false",
    "UnCLIPScheduler?clip_sample=false",
    "PNDMScheduler",
    "PNDMScheduler?skip_prk_steps=true",
    "IPNDMScheduler",
    "LCMScheduler",
    "TCDScheduler",
    _DPM,
    f"{_DPM}?solver_type=heun",
    f"{_DPM}?solver_order=3",
    f"{_DPM}?solver_order=3&use_karras_sigmas=true&final_sigmas_type=sigma_min",
    f"{_DPM}?use_karras_sigmas=true",
    f"{_DPM}?beta_schedule=squaredcos_cap_v2&use_karras_sigmas=true",
    f"{_DPM}?use_lu_lambdas=true",
    f"{_DPM}?algorithm_type=dpmsolver&final_sigmas_type=sigma_min",
    f"{_DPM}?algorithm_type=dpmsolver&solver_order=3&final_sigmas_type=sigma_min",
    f"{_DPM}?algorithm_type=sde-dpmsolver++",
    f"{_DPM}?algorithm_type=sde-dpmsolver++&solver_order=3",
    f"{_DPM}?algorithm_type=sde-dpmsolver&solver_order=3&final_sigmas_type=sigma_min",
    f"{_DPM}?{_FLOW}",
    _SINGLE,
    f"{_SINGLE}?solver_order=3",
    f"{_SINGLE}?algorithm_type=sde-dpmsolver++",
    f"{_SINGLE}?algorithm_type=sde-dpmsolver++&solver_order=3&solver_type=heun",
    _DEIS,
    f"{_DEIS}?solver_order=3",
    f"{_DEIS}?use_karras_sigmas=true",
    f"{_DEIS}?solver_order=3&use_karras_sigmas=true",
    f"{_DEIS}?{_FLOW}",
    _UNIPC,
    f"{_UNIPC}?solver_order=3",
    f"{_UNIPC}?solver_type=bh1",
    f"{_UNIPC}?solver_type=bh1&final_sigmas_type=sigma_min",
    f"{_UNIPC}?predict_x0=false&final_sigmas_type=sigma_min",
    f"{_UNIPC}?{_FLOW}",
    "SASolverScheduler",
    "EulerDiscreteScheduler",
    "EulerDiscreteScheduler?timestep_spacing=leading",
    "EulerDiscreteScheduler?use_karras_sigmas=true",
    "EulerDiscreteScheduler?s_churn=2.0",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "HeunDiscreteScheduler?use_karras_sigmas=true",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler?solver_order=3",
    "EDMDPMSolverMultistepScheduler?algorithm_type=sde-dpmsolver++",
    "CosineDPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler?shift=3.0",
    "FlowMatchEulerDiscreteScheduler?stochastic_sampling=true",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler?shift=3.0",
    "FlowMatchLCMScheduler",
    "FlowMapEulerDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "CMStochasticIterativeScheduler",
    "ScoreSdeVeScheduler",
)
