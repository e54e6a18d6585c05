"""The sampling functions of k-diffusion: α = 1, noise levels σ, x₀ predictions.

``k_diffusion/sampling.py`` is loaded by itself: the package's own import pulls in torchvision and CLIP.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deis_analysis.audit.packages.shared import BrownianNoise, check_options, fit_steps, quiet
from deis_analysis.audit.subject import Prepared, near
from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.convention import Convention
from deis_analysis.process.grids import grid
from deis_analysis.process.schedules import EDM
from deis_analysis.validate import choose

INSTALL = "pip install --no-deps k-diffusion"
CATALOGUE = (
    "sample_euler",
    "sample_euler?s_churn=3.0",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_lms",
    "sample_lms?order=2",
    "sample_dpm_fast",
    "sample_dpm_adaptive",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_2s_ancestral?eta=0.0",
    "sample_dpmpp_sde",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2m_sde?solver_type=heun",
    "sample_dpmpp_2m_sde?eta=0.0",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_3m_sde?eta=0.0",
)
_ORDERS = {
    "sample_euler": 1,
    "sample_euler_ancestral": 1,
    "sample_heun": 2,
    "sample_dpm_2": 2,
    "sample_dpmpp_sde": 2,
    "sample_dpmpp_2m": 2,
    "sample_dpmpp_2m_sde": 2,
    "sample_dpmpp_3m_sde": 3,
}
_SECOND_ORDER_STEPS = ("sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral")  # of order 2 where no noise is added
_TREES = ("sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde")  # take noise from a Brownian tree in σ
_NOT_OPTIONS = {
    "model",
    "x",
    "sigmas",
    "extra_args",
    "callback",
    "disable",
    "noise_sampler",
    "return_info",
    "n",
    "sigma_min",
    "sigma_max",
}
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # of its configurations


@functools.cache
def sampling() -> Any:
    """The module ``k_diffusion.sampling`` without the package around it."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None
    assert spec.submodule_search_locations
    parent, utils = types.ModuleType("k_diffusion_alone"), types.ModuleType("k_diffusion_alone.utils")
    parent.__path__ = []
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
    parent.utils = utils  # type: ignore[attr-defined]
    path = f"{next(iter(spec.submodule_search_locations))}/sampling.py"
    alone = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
    assert alone is not None
    assert alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    loaded = {parent.__name__: parent, utils.__name__: utils, module.__name__: module}
    sys.modules.update(loaded)
    try:
        with quiet():
            alone.loader.exec_module(module)
    finally:
        for name in loaded:
            del sys.modules[name]
    return module


@dataclass(frozen=True)
class KDiffusionSubject:
    """A function ``sample_…`` of k-diffusion with options.

    On its own it runs on its levels of Karras et al. in float32, σ from 80 to 0.01 and then 0; on the ladder, on the
    levels of the order problem in float64, without the step to 0.
    """

    spec: str
    name: str
    options: dict[str, Any]
    declared_order: int | None

    @property
    def _ends(self) -> bool:
        """Whether it wants the first and last level instead of all."""
        return "sigmas" not in inspect.signature(getattr(sampling(), self.name)).parameters

    def own(self, nfe: int) -> Prepared:
        """On `get_sigmas_karras`; x_T is unit noise times σ_max."""
        return fit_steps(self._default, nfe)

    def ladder(self, steps: int) -> Prepared:
        """On the order problem's levels; the functions that make their own levels between the same two ends."""
        import torch

        process, _, options = order_problem()
        levels = torch.as_tensor(process.rho(grid(process, steps, **options)))
        edm = EDM(float(levels[-1]) / 2, float(levels[0]) * 2)
        low, high = float(levels[-1]), float(levels[0])
        listed = None if self._ends else tuple(map(float, levels))
        sampler = self._sampler(lambda: levels, (low, high, steps), 1.0, torch.float64)
        return Prepared(sampler, edm, _convention(edm), low, "karras", end_level=low, levels=listed)

    def _default(self, steps: int) -> Prepared:
        import torch

        with quiet():
            levels = sampling().get_sigmas_karras(steps, SIGMA_MIN, SIGMA_MAX)
        if steps == 1:  # their ramp of one point starts at σ_max
            levels = torch.tensor([SIGMA_MAX, 0.0])
        edm = EDM(SIGMA_MIN / 10, SIGMA_MAX * 1.5)
        last = SIGMA_MIN if self._ends else 0.0
        listed = None if self._ends else tuple(map(float, levels))
        sampler = self._sampler(lambda: levels, (SIGMA_MIN, SIGMA_MAX, steps), SIGMA_MAX, torch.float32)
        return Prepared(sampler, edm, _convention(edm), last, "karras", start_std=1.0, end_level=last, levels=listed)

    def _sampler(
        self, levels: Callable[[], Any], ends: tuple[float, float, int], scale: float, dtype: Any
    ) -> Callable[..., Any]:
        def sampler(model: Callable[..., Any], x: Any) -> Any:
            import torch

            function, x = getattr(sampling(), self.name), scale * x
            names = inspect.signature(function).parameters
            options = {"disable": True, **self.options}
            if self.name in _TREES:
                options["noise_sampler"] = BrownianNoise(x)
            elif "noise_sampler" in names:
                options["noise_sampler"] = lambda *_: torch.randn_like(x)
            low, high, steps = ends
            arguments = [low, high, *([steps] if "n" in names else [])] if self._ends else [levels()]
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                with quiet():
                    return function(model, x, *arguments, **options)
            finally:
                torch.set_default_dtype(before)

        return sampler


def _convention(edm: EDM) -> Convention:
    return Convention("x0", lambda raw: near(raw, edm.sigma_min, edm.sigma_max), state="karras")


def adapt(spec: str, name: str, options: dict[str, Any]) -> KDiffusionSubject:
    """The subject ``k_diffusion:sample_NAME?options``; options are those of the function."""
    module = sampling()
    names = [entry for entry in dir(module) if entry.startswith("sample_")]
    function = getattr(module, choose("sampler", name, names))
    parameters = inspect.signature(function).parameters
    check_options(spec, options, set(parameters) - _NOT_OPTIONS)
    order = _ORDERS.get(name)
    if name in _SECOND_ORDER_STEPS and options.get("eta") == 0:
        order = 2
    if "order" in parameters:
        order = int(options.get("order", parameters["order"].default))
    return KDiffusionSubject(spec, name, options, order)
