"""The model for which a sampler is chosen: whatever a user has, with its noise and its ground truth."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis import backend
from deis_analysis.networks.network import Network
from deis_analysis.problems.denoiser import ideal_denoiser
from deis_analysis.problems.mixture import GaussianMixture, ProductMixture
from deis_analysis.process.convention import Model, type_of
from deis_analysis.process.grids import grid
from deis_analysis.process.process import Process
from deis_analysis.process.schedules import VPLinear
from deis_analysis.reference.flow import reference_solution
from deis_analysis.solvers.exponential_adams import adams
from deis_analysis.storage import module_of
from deis_analysis.tableau import run
from deis_analysis.tuning.judged import rms
from deis_analysis.validate import checked, positive_int

EMBEDDED = ("mixture", "digits")
_MARGINALS = (
    ([1.0], [0.3], [0.2]),
    ([0.4, 0.6], [-1.0, 0.8], [0.05, 0.03]),
    ([0.2, 0.5, 0.3], [-1.2, 0.0, 1.0], [0.02, 0.05, 0.02]),
    ([0.8, 0.2], [-0.2, 0.9], [0.3, 0.01]),
)


@dataclass(frozen=True)
class Target:
    """A typed model with the shape of its states, how noise is drawn, and where sampling starts and ends.

    Attributes:
        name: how the user calls it. model: typed, without gradients. shape: of one state.
        t_start, t_end: process times. digest: names the model in a cache, None where nothing does.
        exact: the law of the data, where it is known; its flow is then the ground truth.
        network: what `networks.load` made, None for other models. torch: whether states are tensors.
    """

    name: str
    model: Any
    shape: tuple[int, ...]
    t_start: float
    t_end: float
    digest: str | None = None
    exact: Any = None
    network: Network | None = None
    torch: bool = True

    @property
    def process(self) -> Process:
        """Whose states and times the model takes."""
        found: Process = self.model.process
        return found

    @property
    def prediction(self) -> str:
        """What the model predicts."""
        return str(self.model.prediction)

    def noise(self, samples: int, seed: int) -> Any:
        """(samples, *shape) states at ``t_start``: N(0, s² I), s = max(1, σ), the same for equal seeds."""
        rng = np.random.default_rng([seed, 7741])
        x = rng.standard_normal((positive_int("samples", samples), *self.shape))
        x *= max(1.0, float(self.process.sigma(self.t_start)))
        if not self.torch:
            return x
        import torch

        weight = next(self.network.model.parameters(), None) if self.network is not None else None
        return torch.as_tensor(
            x,
            dtype=torch.float64 if weight is None else weight.dtype,
            device=None if weight is None else weight.device,
        )

    def truth(self, x: Any, accuracy: float = 1e-3) -> tuple[Any, float]:
        """(states at ``t_end`` of the flow of ``x``, their RMS error): exact, or by steps doubled until that is small.

        Args:
            accuracy: RMS error wanted; the steps are doubled, from 40 to 640 at most, on the first 16 samples.
        """
        if self.exact is not None:
            return self.exact.flow(self.process, x, self.t_start, self.t_end), 0.0
        some, steps = x[:16], 40
        before = self._fine(some, steps)
        while True:
            after = self._fine(some, 2 * steps)
            gap = rms(after, before) / 7.0  # a third-order method: what is left of it, by Richardson
            if gap <= accuracy or steps >= 320:
                break
            before, steps = after, 2 * steps
        rest = [self._fine(part, 2 * steps) for part in _parts(x[len(some) :], 128)]
        return _joined([after, *rest]), gap

    def certified(self, x: Any, cache: Any = None, progress: bool = False) -> tuple[Any, str]:
        """(states at ``t_end``, what vouches for them): exact, or DOPRI5 with a certificate to 1e-3 in every entry.

        It costs some thousand calls per sample of a network; what has a digest is kept in the folder ``cache``.
        """
        if self.exact is not None:
            return self.exact.flow(self.process, x, self.t_start, self.t_end), "exact flow"
        import torch

        wide = x.double() if self.torch else x
        found = reference_solution(
            self.model, self.process, wide, self.t_end, 1e-5, 1e-5, t_start=self.t_start, prediction=self.prediction,
            model_dtype=x.dtype if self.torch and x.dtype != torch.float64 else None, tolerance=1e-3, batch=128,
            cache=cache if self.digest else None, key=self.digest, progress=progress,
        )  # fmt: skip
        return found.x, found.message

    def _fine(self, x: Any, steps: int) -> Any:
        ts = grid(self.process, steps, "logrho", self.t_start, self.t_end)
        return run(adams(self.process, ts, 2, prediction="x0", variable="lam"), self.model, x)


def _parts(x: Any, size: int) -> list[Any]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


# -- what a user has ------------------------------------------------------------------------------
@checked
def target_of(
    model: Any,
    *,
    shape: Any = None,
    t_start: float | None = None,
    t_end: float | None = None,
    dtype: Any = None,
    device: Any = None,
    times: str = "fractional",
) -> Target:
    """The target that ``model`` means.

    Args:
        model: "mixture" (four coordinates, exact), "digits" (the exact model of scikit-learn's digits), whatever
            `networks.load` takes, a `Network`, ``FILE.py:make`` (a function without arguments that returns any of
            these), or a typed model (see `deis_analysis.Model`) with the ``shape`` of a state.
        t_start, t_end: default the process's sampling range. dtype, device, times: of networks, see `networks.load`.

    Raises:
        ValueError: an unknown model, a bare function, a missing shape, a model that answers with NaN or infinity.
    """
    found = _made(model, shape, dtype, device, times)
    start, end = found.process.sampling_range
    found = replace(
        found,
        t_start=start if t_start is None else found.process._check_scalar(t_start, "t_start"),
        t_end=end if t_end is None else found.process._check_scalar(t_end, "t_end"),
    )
    if not found.t_end < found.t_start:
        raise ValueError(f"t_end={found.t_end!r} must be below t_start={found.t_start!r}")
    _check_answers(found)
    return found


def _made(model: Any, shape: Any, dtype: Any, device: Any, times: str) -> Target:
    if isinstance(model, Target):
        return model
    if isinstance(model, str):
        if model in EMBEDDED:
            return _embedded(model)
        path, colon, name = model.rpartition(":")
        if colon and path.endswith(".py"):
            made = getattr(module_of(Path(path)), name, None)
            if not callable(made):
                raise ValueError(f"model={model!r}: {path!r} has no function {name!r}")
            return _made(made(), shape, dtype, device, times)
    if isinstance(model, GaussianMixture | ProductMixture):
        return _of_mixture(model)
    if isinstance(model, Network):
        return _of_network(model)
    if type_of(model) is not None and not hasattr(model, "parameters"):
        if shape is None:
            raise ValueError("shape=None: of a typed model the shape of one state must be given, such as (2,)")
        size = tuple(positive_int("shape", n) for n in np.atleast_1d(shape))
        name = getattr(getattr(model, "function", None), "__name__", type(model).__name__)
        return Target(
            name, model, size, math.nan, math.nan, getattr(model, "digest", None), torch=_wants_torch(model, size)
        )
    if callable(model) and not hasattr(model, "parameters"):
        raise ValueError(
            f"model={model!r} does not say what it predicts, of which process; "
            "allowed: deis_analysis.Model(function, process, prediction)"
        )
    return _of_network(_loaded(model, shape, dtype, device, times))


def _loaded(model: Any, shape: Any, dtype: Any, device: Any, times: str) -> Network:
    import torch

    from deis_analysis.networks.loading import load

    options = {} if shape is None else {"shape": shape}
    try:
        return load(model, dtype=dtype or torch.float32, device=device or "cpu", times=times, **options)
    except ValueError as error:
        raise ValueError(str(error).replace("spec=", "model=", 1)) from error


def _of_network(network: Network) -> Target:
    return Target(
        network.name, _without_gradients(network), network.shape, math.nan, math.nan, network.digest, network=network
    )


def _without_gradients(network: Network) -> Model:
    import torch

    def answer(x: Any, t: float) -> Any:
        with torch.no_grad():
            return network.model(x, t)

    return Model(answer, network.process, network.prediction)


def _of_mixture(mixture: Any) -> Target:
    process = VPLinear()
    shape = (mixture.dimension,) if isinstance(mixture, ProductMixture) or mixture.means.ndim > 1 else ()
    exact = mixture if isinstance(mixture, ProductMixture) or shape == () or mixture.weights.size == 1 else None
    return Target("mixture", mixture.eps(process), shape, math.nan, math.nan, None, exact, torch=False)


@functools.cache
def _embedded(name: str) -> Target:
    if name == "mixture":
        return _of_mixture(ProductMixture([GaussianMixture(*parts) for parts in _MARGINALS]))
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("model='digits' needs scikit-learn: pip install 'deis-analysis[models]'") from error
    data = torch.tensor(load_digits().data / 8.0 - 1.0)
    return Target(name, ideal_denoiser(data, VPLinear(), std=0.1), (64,), math.nan, math.nan)


def _wants_torch(model: Any, shape: tuple[int, ...]) -> bool:
    """Whether it answers to a tensor rather than to an array of NumPy."""
    t = float(np.mean(model.process.sampling_range))
    try:
        return not isinstance(model(np.zeros((1, *shape)), t), np.ndarray)
    except Exception:  # of the user's own model: it is asked again, with a tensor
        return True


def _check_answers(target: Target) -> None:
    """Ask at both ends and between them; what is not finite there is named."""
    x, process = target.noise(2, 0), target.process
    for t in grid(process, 6, "t2", target.t_start, target.t_end)[:-1]:
        try:
            answer = target.model(x, float(t))
        except Exception as error:
            raise ValueError(f"model={target.name!r} failed at t={t:.6g}: {type(error).__name__}: {error}") from error
        if tuple(answer.shape) != tuple(x.shape):
            raise ValueError(
                f"model={target.name!r} answers {tuple(answer.shape)} to {tuple(x.shape)}; allowed: that shape"
            )
        if not np.all(np.isfinite(backend.flat(answer))):
            raise ValueError(
                f"model={target.name!r} answers with NaN or infinity at t={t:.6g}; allowed: finite answers"
            )
