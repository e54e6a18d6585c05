"""The samplers of azula: x₀ predictions, any schedule, times equidistant unless overridden."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.audit.packages.shared import check_options, fit_steps, quiet
from deis_analysis.audit.subject import Prepared, near
from deis_analysis.problems.mixture import order_problem
from deis_analysis.process.convention import Convention
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Array, Process
from deis_analysis.validate import choose

INSTALL = "pip install --no-deps azula"
CATALOGUE = (
    "DDPMSampler",
    "DDIMSampler",
    "DDIMSampler?eta=0.25",
    "DDIMSampler?eta=1.0",
    "EulerSampler",
    "HeunSampler",
    "ItoSampler",
    "ItoSampler?eta=0.0",
    *(f"{name}?order={order}" for name in ("zABSampler", "vABSampler", "zEABSampler") for order in (2, 3)),
    *(f"{name}?order={order}" for name in ("xEABSampler", "REABSampler") for order in (1, 2, 3)),
    "PCSampler",
)
_ORDERS = {"DDPMSampler": 1, "DDIMSampler": 1, "EulerSampler": 1, "HeunSampler": 2, "ItoSampler": 1}
_NOT_OPTIONS = {"self", "denoiser", "kwargs", "steps", "silent", "dtype", "device"}


class AzulaVP(Process):
    """azula's `VPSchedule`: α = α_min^(t²), σ = √(1 − α² + σ_min²), so α² + σ² = 1 + σ_min²."""

    def __init__(self, alpha_min: float = 1e-3, sigma_min: float = 1e-3) -> None:
        self.t_min, self.t_max = 0.0, 1.0
        self.log_alpha, self.total = math.log(alpha_min), 1.0 + sigma_min**2

    def __repr__(self) -> str:
        return f"AzulaVP({math.exp(self.log_alpha):g}, {math.sqrt(self.total - 1.0):g})"

    def _alpha(self, t: Array) -> Array:
        return np.exp(self.log_alpha * t * t)

    def _sigma(self, t: Array) -> Array:
        return np.sqrt(-np.expm1(2.0 * self.log_alpha * t * t) + (self.total - 1.0))

    def _rho(self, t: Array) -> Array:
        return self._sigma(t) / self._alpha(t)

    def _rate(self, t: Array) -> Array:
        return -self._drift(t) * self.total / self._sigma(t) ** 2

    def _drift(self, t: Array) -> Array:
        return 2.0 * self.log_alpha * t

    def _time_from_rho(self, rho: Array) -> Array:
        return np.sqrt(np.maximum(0.5 * (np.log(self.total) - np.log1p(rho * rho)) / self.log_alpha, 0.0))

    def _kappa_score(self, t: Array) -> Array:
        return -self.total / self._alpha(t)


@dataclass(frozen=True)
class AzulaSubject:
    """A sampler class of azula with options.

    On its own it runs azula's default schedule from t = 1 to 0 in float32 times; on the ladder, the same class with the
    times of the order problem in float64.
    """

    spec: str
    name: str
    options: dict[str, Any]
    declared_order: int | None

    def own(self, nfe: int) -> Prepared:
        """With azula's `VPSchedule` and equidistant times."""
        return fit_steps(self._default, nfe)

    def ladder(self, steps: int) -> Prepared:
        """On the order problem."""
        process, _, options = order_problem()
        ts = grid(process, steps, **options)
        kept = {key: value for key, value in self.options.items() if key not in ("start", "stop")}
        sampler = self._sampler(lambda: _schedule(process), {"steps": steps, **kept}, ts)
        return Prepared(
            sampler,
            process,
            Convention("x0", lambda raw: near(raw, process.t_min, process.t_max)),
            float(ts[-1]),
            end_level=float(process.rho(ts[-1])),
            levels=tuple(map(float, process.rho(ts))),
        )

    def _default(self, steps: int) -> Prepared:
        import azula.noise

        process = AzulaVP()
        span = (self.options.get("start", 1.0), self.options.get("stop", 0.0))
        ts = np.linspace(*span, steps + 1)
        sampler = self._sampler(azula.noise.VPSchedule, {"steps": steps, **self.options}, None)
        return Prepared(
            sampler,
            process,
            Convention("x0", lambda raw: near(raw, 0.0, 1.0)),
            float(ts[-1]),
            start_std=float(process.sigma(ts[0])),
            end_level=float(process.rho(ts[-1])),
            levels=tuple(map(float, process.rho(ts))),
        )

    def _sampler(self, schedule: Callable[[], Any], options: dict[str, Any], ts: Array | None) -> Callable[..., Any]:
        def sampler(model: Callable[..., Any], x: Any) -> Any:
            import azula.denoise
            import azula.sample
            import torch

            class Asked(azula.denoise.Denoiser):
                def __init__(self) -> None:
                    super().__init__()
                    self.schedule = schedule()

                def forward(self, x_t: Any, t: Any, **_: Any) -> Any:
                    return azula.denoise.DiracPosterior(model(x_t, t))

            cls = getattr(azula.sample, self.name)
            if ts is not None:
                times = torch.as_tensor(ts)
                cls = type(self.name, (cls,), {"timesteps": property(lambda _: times)})
            with quiet():
                return cls(Asked(), silent=True, **options)(x)

        return sampler


def _schedule(process: Process) -> Any:
    """A schedule object of azula that is one of our processes."""
    import azula.noise
    import torch

    class Ours(azula.noise.Schedule):
        def __call__(self, t: Any) -> tuple[Any, Any]:
            at = t.detach().cpu().double().numpy()
            return torch.as_tensor(process.alpha(at)), torch.as_tensor(process.sigma(at))

    return Ours()


def adapt(spec: str, name: str, options: dict[str, Any]) -> AzulaSubject:
    """The subject ``azula:NAME?options``; options are those of the class, and ``start`` and ``stop``."""
    import azula.sample

    names = [entry for entry in azula.sample.__all__ if entry != "Sampler"]
    cls = getattr(azula.sample, choose("sampler", name, names))
    parameters = inspect.signature(cls.__init__).parameters
    base = inspect.signature(azula.sample.Sampler.__init__).parameters
    check_options(spec, options, (set(parameters) | set(base)) - _NOT_OPTIONS)
    order = _ORDERS.get(name)
    if "order" in parameters:
        order = int(options.get("order", parameters["order"].default))
    return AzulaSubject(spec, name, options, order)
