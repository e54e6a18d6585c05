r"""A network with all that is needed to sample from it, and the same network on another process.

All processes of the zoo noise the same x₀ with the same ε: :math:`x = α (x_0 + ρ ε)`. What a network of process P
knows at :math:`(x α_P(t_P)/α_Q(t), t_P)`, :math:`ρ_P(t_P) = ρ_Q(t)`, is therefore a model of every Q.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from deis_analysis.networks.convention import ImageModel
from deis_analysis.networks.diffusers_folder import in_one_line
from deis_analysis.networks.dsm import zero_mean
from deis_analysis.networks.folder import describe_process
from deis_analysis.networks.guided import Called, Guidance
from deis_analysis.networks.times import embed_exactly
from deis_analysis.process.convention import Convention
from deis_analysis.process.process import PREDICTIONS, Array, Process
from deis_analysis.validate import checked, choose

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Network:
    """A network, its process and what it is told.

    Attributes:
        model: ``model(x, t) -> prediction``, x (batch, channels, height, width), t a float or (batch,) process times.
        process: the process that it was trained on. shape: (channels, height, width).
        prediction: "eps", "x0", "v" or "score". name: what it was asked for as.
        digest: sha256 in hex of the weights (names, dtypes, shapes, values), the architecture, the process, the
            convention, ``times``, ``labels`` and ``guidance``: all that its predictions depend on beside libraries, and
            equal on all machines. The architecture is the config of diffusers, or the class name and printed form of
            another module; what such a module holds beside is not in it. Of what has neither parameters nor buffers,
            such as a function, there is nothing to be hashed: its digest is a new one at each load.
        card: what card.json says, None where there is none.
    """

    model: ImageModel
    process: Process
    shape: tuple[int, int, int]
    prediction: str
    name: str
    digest: str
    card: dict[str, Any] | None = None
    _guidance: Guidance | None = field(default=None, repr=False)
    _architecture: str | None = field(default=None, repr=False)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Network:
        """A copy on another device or of another dtype; in float64 diffusers' time embedding is computed in it too.

        Raises:
            ValueError: a device that cannot be used here, another dtype than one of torch's floating ones, or one that
                the network does not compute in.
        """
        net = placed(copy.deepcopy(self.model.net), device, dtype)
        return assembled(
            net, self.model.convention, self.process, self.shape, self.name, times=self.model.times,
            guidance=self._guidance, card=self.card, architecture=self._architecture, old=self.digest,
        )  # fmt: skip

    def carried_to(self, process: Process, prediction: str = "eps") -> Carried:
        """The same network as a model of another process; see `Carried`."""
        return Carried(self.model, zero_mean(process), choose("prediction", prediction, PREDICTIONS))


@dataclass(frozen=True)
class Carried:
    r"""A model of P as a model of Q, at equal ρ: ``carried(x, t)``, t in Q's time, a float or (batch,).

    With :math:`x_P = x α_P/α_Q = α_P x_0 + σ_P ε` and :math:`p_P = a_P x_0 + b_P ε` the answer is the combination
    :math:`c x_P + d p_P` that equals :math:`a_Q x_0 + b_Q ε`.

    Attributes:
        model: the model of P. process: Q. prediction: what is answered.

    Raises:
        ValueError: when called at t where P does not reach ρ_Q(t), or where (x_P, p_P) does not tell the prediction.
    """

    model: ImageModel
    process: Process
    prediction: str

    @property
    def digest(self) -> str | None:
        """What names the model in a cache, None where the network's does not."""
        if self.model.digest is None:
            return None
        return _sha256(self.model.digest, _described(self.process), self.prediction)

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """The prediction at (x, t)."""
        own, other = self.model.process, self.process
        times = t.detach().cpu().double().numpy() if isinstance(t, torch.Tensor) else np.asarray(t, dtype=np.float64)
        try:
            own_times = own.time_from_rho(other.rho(times))
        except ValueError as error:
            raise ValueError(f"t={t!r} of {other!r} is no time of the network's {own!r}: {error}") from error
        scale = own.alpha(own_times) / other.alpha(times)
        c, d = self._combination(own_times, times)

        def factor(values: Array) -> torch.Tensor:
            return torch.as_tensor(values, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))

        answer = self.model(factor(scale) * x, own_times)
        return factor(d) * answer + (factor(c * scale) * x if np.any(c) else 0.0)

    def _combination(self, own_times: Array, times: Array) -> tuple[Array, Array]:
        own = self.model.process
        a, b = own.prediction_parts(self.model.convention.prediction, own_times)
        a_new, b_new = self.process.prediction_parts(self.prediction, times)
        if np.array_equal(a, a_new) and np.array_equal(b, b_new):
            return np.zeros_like(a), np.ones_like(a)
        alpha, sigma = own.alpha(own_times), own.sigma(own_times)
        det = alpha * b - sigma * a
        if np.any(det == 0):
            raise ValueError(f"t={times!r}: {self.prediction!r} cannot be told from x and the network's prediction")
        return (a_new * b - b_new * a) / det, (alpha * b_new - sigma * a_new) / det


@checked
def time_floor(network: Network, x: torch.Tensor, t: Any) -> dict[str, float]:
    """Largest \\|p_times − p_fractional\\| over the states x at the times t, for ``times`` "nearest" and "linear".

    It is how far a network that is told rounded times is from a smooth function of time there, and so what a fine
    solver meets as a floor.

    Args:
        x: (batch, channels, height, width). t: a float, or (batch,) times, so that states of a path go in one batch.
    """
    with torch.no_grad():
        exact = network.model.with_times("fractional")(x, t)
        rounded = {times: network.model.with_times(times)(x, t) for times in ("nearest", "linear")}
    return {times: float((answer - exact).abs().max()) for times, answer in rounded.items()}


# -- making one -----------------------------------------------------------------------------------
def usable(device: str) -> torch.device:
    """The device of that name; ValueError where it cannot be used."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here ({reason})") from error
    return found


def placed(net: torch.nn.Module, device: Any, dtype: torch.dtype | None) -> torch.nn.Module:
    """``net`` itself, on a device, in a dtype, frozen, in evaluation mode."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(map(str, DTYPES))}")
    where = None if device is None else usable(device)
    moved = torch.nn.Module.to(embed_exactly(net), device=where, dtype=dtype)  # diffusers' own warns needlessly
    return moved.eval().requires_grad_(False)


def assembled(
    net: torch.nn.Module,
    convention: Convention,
    process: Process,
    shape: tuple[int, int, int],
    name: str,
    *,
    times: str,
    guidance: Guidance | None,
    card: dict[str, Any] | None,
    architecture: str | None,
    old: str | None = None,
) -> Network:
    """A `Network` that has answered once; ``old`` is the digest of what has no weights."""
    model = ImageModel(net, process, convention, times, shape=shape, batch=None if guidance is None else guidance.batch)
    _try(model, name)
    weights = _weights(net.net if isinstance(net, Called) else net)
    if weights is None:
        digest = old or secrets.token_hex(32)
    else:
        spoken = json.dumps([convention.card(), times, None if guidance is None else asdict(guidance)])
        digest = _sha256(weights, architecture or _printed(net), _described(process), spoken)
    model.digest = digest
    return Network(model, process, shape, convention.prediction, name, digest, card, guidance, architecture)


def _try(model: ImageModel, name: str) -> None:
    """Ask the model once; ValueError if it fails, or answers another shape."""
    assert model.shape is not None
    weights = next(model.net.parameters(), torch.zeros(0))
    start, end = model.process.sampling_range
    x = torch.zeros(model.batch or 1, *model.shape, dtype=weights.dtype, device=weights.device)
    try:
        with torch.no_grad():
            found = model(x, 0.5 * (start + end))
    except Exception as error:  # of the user's own network
        raise ValueError(
            f"{name!r} does not answer to x of shape {tuple(x.shape)} in {x.dtype} "
            f"({type(error).__name__}: {in_one_line(error)}); "
            "look at shape=, dtype= and how it is called: f(input, network_time)"
        ) from error
    if found.shape != x.shape:
        raise ValueError(f"{name!r} answers {tuple(found.shape)} to x of shape {tuple(x.shape)}; allowed: that shape")


def _weights(net: Any) -> str | None:
    """sha256 of parameters and buffers, None if there are none."""
    state = net.state_dict() if isinstance(net, torch.nn.Module) else {}
    if not state:
        return None
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _printed(net: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(net).__module__}.{type(net).__qualname__} {net!r}")


def _described(process: Process) -> str:
    """A process as text; one that `describe_process` does not know by its scales at 33 times."""
    try:
        return json.dumps(describe_process(process))
    except ValueError:
        t = np.linspace(process.t_min, process.t_max, 33)
        return f"{type(process).__name__} {[*map(float.hex, np.append(process.alpha(t), process.sigma(t)))]}"


def _sha256(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
