r"""A scheduler of diffusers that runs one table of numbers. This file needs torch and diffusers only; it is copied.

A sampler that calls its model N times is a table: x at the first time is u₀, and with p_j the model's prediction at u_j

.. math:: u_k = \sum_{j<k} S_{kj} u_j + \sum_{j<k} F_{kj} p_j + \sum_l Z_{kl} z_l  ,
          \qquad \text{the sample is the last } u .

``table`` is a dictionary of lists, numbers and strings, n nodes long:

================  =================================================================================================
``kind``          ``"vp"``: u = α x₀ + σ ε with α² + σ² = 1; ``"flow"``: α + σ = 1
``prediction``    what the p_j are: ``"eps"``, ``"x0"`` or ``"v"`` (α ε − σ x₀ of a ``"vp"``, ε − x₀ of a ``"flow"``)
``states``        per node its terms [j, S_kj];  ``outputs``: [j, F_kj];  ``noise``: [l, Z_kl]
``alpha sigma``   per node α and σ
``told``          per node what the network is told of the time
``grid_nodes``    the nodes that hold the state of the sample; the others are stages
``shifted``       optional: the told times are not those of α and σ, on purpose
================  =================================================================================================
"""

from __future__ import annotations

import inspect
import math
import operator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "v"}
_KEYS = ("kind", "prediction", "states", "outputs", "noise", "alpha", "sigma", "told", "grid_nodes")
_TOLD_SLACK = 1e-2  # relative: pipelines may have cast a time to half precision
_LEVEL_SLACK = 1e-2  # of log σ/α: a schedule kept in float32, or read between two of its levels
Terms = list[tuple[int, float]]


class Table(NamedTuple):
    """A checked table; ``calls`` are the nodes at which the model is called."""

    kind: str
    prediction: str
    states: list[Terms]
    outputs: list[Terms]
    noise: list[Terms]
    alpha: list[float]
    sigma: list[float]
    told: list[float]
    grid_nodes: list[int]
    calls: list[int]
    shifted: bool

    def starts_at(self, node: int) -> bool:
        """Whether a run may start with the state of ``node`` alone: on the grid, and nothing before it is used."""
        later = range(node + 1, len(self.told))
        past = {j for k in range(node + 1) for j, _ in self.noise[k]}
        return (
            node in self.grid_nodes
            and all(j >= node for k in later for j, _ in self.states[k] + self.outputs[k])
            and not any(j in past for k in later for j, _ in self.noise[k])
        )


class TableauScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A sampler's table as a scheduler: ``TableauScheduler.from_config(pipe.scheduler.config, table=table)``.

    The table fixes the number of steps and the times: ``timesteps`` has one entry for each model call, what the network
    is told there. Samples are on the scale of the model, start with standard deviation 1, are never clipped, and are
    kept in float32 or better between the steps. A sample that was changed between two steps (inpainting) takes the
    place of the state at nodes of the grid; at stages it counts only as what the model was asked about. A stochastic
    table draws from ``generator``; pipelines of flows do not hand theirs on, and then torch's own is used.

    Args:
        num_train_timesteps: of the model.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction"; of a flow "flow_prediction",
            ε − x₀, under either name. None is the first, or for a flow the last.
        table: see the module's docstring.
        use_flow_sigmas: set for flows, so that pipelines leave the steps to the scheduler.
        beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr, shift: of the model's own scheduler,
            where it has them; a table of other levels is refused. They change nothing else.

    Raises:
        ValueError: no table, a damaged one, one whose first call does not see the start, or a model of other levels.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str | None = None,
        table: dict | None = None,
        use_flow_sigmas: bool | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        shift: float | None = None,
    ) -> None:
        given = read_table(table)
        flow = given.kind == "flow"
        kind = prediction_type or ("flow_prediction" if flow else "epsilon")
        allowed = [name for name in _PREDICTIONS if flow or name != "flow_prediction"]
        if kind not in allowed:
            raise ValueError(f"prediction_type={kind!r} of a {given.kind} table; allowed: {', '.join(allowed)}")
        if not flow and (use_flow_sigmas or shift is not None):
            raise ValueError("the model is one of flow matching, but the table is of kind 'vp'; allowed: 'flow'")
        if flow and beta_schedule is not None and not (use_flow_sigmas or kind == "flow_prediction"):
            raise ValueError("the model has betas, but the table is of kind 'flow'; allowed: 'vp'")
        self.register_to_config(prediction_type=kind, use_flow_sigmas=True if flow else use_flow_sigmas)
        _check_levels(given, self.config)
        self._conversions = _conversions(given, _PREDICTIONS[kind])
        self.table = _converted(given, self._conversions)._replace(prediction=_PREDICTIONS[kind])
        self.init_noise_sigma = 1.0
        self.set_timesteps()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler with the config of another one of the same model, and ``table=``; see `ConfigMixin`."""
        if not isinstance(config, dict):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        own = inspect.signature(cls.__init__).parameters
        # what was left at its default says what the model is, too; what is not ours, pipelines may ask for
        taken = {k: v for k, v in config.items() if k in own or (k.startswith("_") and k != "_use_default_values")}
        rest = {k: v for k, v in config.items() if k not in own and not k.startswith("_")}
        found: Any = super().from_config(taken, return_unused_kwargs, **kwargs)
        (found[0] if return_unused_kwargs else found).register_to_config(**rest)
        return found

    # -- times ------------------------------------------------------------------------------------
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Start a run; the times are the table's.

        Args:
            num_inference_steps: the number of model calls of the table, or None.
            timesteps: the table's, or None.
            sigmas: the table's (with or without the last), or None. Of a flow also 1, 1 − 1/N, …, 1/N, which most
                pipelines of flows pass where their user has not said anything: it is not followed.
            mu: of a flow, the shift of a resolution; it is not followed, as the table's times are fixed.

        Raises:
            ValueError: another number of steps, other times or levels.
        """
        count = len(self.table.calls)
        if num_inference_steps is not None and num_inference_steps != count:
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, but the table makes {count} model calls; allowed: {count}"
            )
        if mu is not None and self.table.kind != "flow":
            raise ValueError(f"mu={mu!r} is for flows, and the table is of kind {self.table.kind!r}; allowed: None")
        told, levels = [self.table.told[k] for k in self.table.calls], self._levels()
        if timesteps is not None and not _near(timesteps, told):
            raise ValueError(f"timesteps={_shown(timesteps)} are not the table's; allowed: {_shown(told)}, or None")
        if sigmas is not None:
            usual = [1.0 - k / count for k in range(count)] if self.table.kind == "flow" else levels
            if not any(_near(sigmas, known) for known in (levels, levels[:-1], usual)):
                raise ValueError(f"sigmas={_shown(sigmas)} are not the table's; allowed: {_shown(levels)}, or None")
        self.num_inference_steps = count
        self.timesteps = torch.tensor(told, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._forget()

    def _levels(self) -> list[float]:
        """σ of a flow, σ/α of a VP, at each call and at the end."""
        alpha, sigma = self.table.alpha, self.table.sigma
        nodes = [*self.table.calls, len(sigma) - 1]
        return [sigma[k] if self.table.kind == "flow" else sigma[k] / alpha[k] for k in nodes]

    @property
    def begin_index(self) -> int | None:
        """The place in ``timesteps`` at which a run was told to start, None where it was not."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The place in ``timesteps`` of the next step, None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start a run at this place in ``timesteps``, as from an image.

        Raises:
            ValueError: the table cannot start there, because its rows use states or outputs of earlier nodes.
        """
        count = len(self.table.calls)
        if not 0 <= begin_index < count:
            raise ValueError(f"begin_index={begin_index} must lie in 0 … {count - 1}, the model calls of the table")
        if begin_index and not self.table.starts_at(self.table.calls[begin_index]):
            able = [i for i, k in enumerate(self.table.calls) if i == 0 or self.table.starts_at(k)]
            raise ValueError(
                f"begin_index={begin_index}: the table cannot start there, as it goes on from earlier states or "
                f"outputs; allowed: {', '.join(map(str, able))}; take a one-step method to start from an image"
            )
        self._begin_index = int(begin_index)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """``sample``: the model sees it as it is."""
        return sample

    def _index_of(self, timestep: Any) -> int:
        """The place of a told time: of equal or cast ones the current place, else the nearest; ValueError if none."""
        given, told = float(timestep), [self.table.told[k] for k in self.table.calls]
        current = self._begin_index if self._step_index is None else self._step_index
        exact = [i for i, t in enumerate(told) if _is_told(given, t, 1e-6)]
        if current in exact or (not exact and current is not None and current < len(told)):
            exact = [i for i in [current] if i is not None and _is_told(given, told[i], _TOLD_SLACK)]
        nearest = min(range(len(told)), key=lambda i: abs(told[i] - given))
        for i in [*exact, nearest]:
            if _is_told(given, told[i], _TOLD_SLACK):
                return i
        raise ValueError(f"timestep={given!r} is none of the table's; allowed: {_shown(told)}")

    # -- running ----------------------------------------------------------------------------------
    def _forget(self) -> None:
        self._states: dict[int, torch.Tensor] = {}
        self._outputs: dict[int, torch.Tensor] = {}
        self._noises: dict[int, torch.Tensor] = {}

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one model call to the next: what the model is to be called with then, or the result.

        Args:
            model_output: shape of ``sample``. timestep: the entry of ``timesteps``. sample: what the model was given.
            generator: of the noise; one, or one for each sample.

        Raises:
            ValueError: another shape, a time out of turn, a step after the last.
        """
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {tuple(model_output.shape)}; allowed: {tuple(sample.shape)}, that of sample"
            )
        index = self._turn(timestep)
        node, last = self.table.calls[index], index + 1 == len(self.table.calls)
        following = len(self.table.told) - 1 if last else self.table.calls[index + 1]
        x, seen = self._state(node, sample)
        self._outputs[node] = model_output.to(x.dtype)
        from_x, from_output = self._conversions[node]
        if x is not seen and from_x:  # the rows take x for what the model saw
            self._outputs[node] = self._outputs[node] + (from_x / from_output) * (seen - x)
        for k in range(node + 1, following + 1):
            self._states[k] = self._row(k, x, generator)
        found = self._states[following].to(sample.dtype, copy=True)  # a pipeline may change it in place
        self._step_index = index + 1
        if last:
            self._forget()
        else:
            self._let_go(following)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _turn(self, timestep: Any) -> int:
        """The place of this step."""
        if self._step_index is None and self._begin_index is None:
            self.set_begin_index(self._index_of(timestep))
        index = self._begin_index if self._step_index is None else self._step_index
        assert index is not None
        if index >= len(self.table.calls):
            raise ValueError("the table has made its last step; call set_timesteps to start another run")
        told = self.table.told[self.table.calls[index]]
        if not _is_told(float(timestep), told, _TOLD_SLACK):
            raise ValueError(f"timestep={float(timestep)!r} is out of turn; allowed: {told!r}, step {index}")
        return index

    def _state(self, node: int, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(state, what the model was asked about), in working precision: one, but at a stage that was changed."""
        given = sample.to(torch.float64 if sample.dtype == torch.float64 else torch.float32)
        kept = self._states.get(node)
        if kept is not None and torch.equal(kept.to(sample.dtype), sample):
            return kept, kept
        if kept is None or node in self.table.grid_nodes:
            self._states[node] = kept = given
        return kept, given

    def _row(self, k: int, like: torch.Tensor, generator: Any) -> torch.Tensor:
        """u_k."""
        parts = [(c, self._states[j]) for j, c in self.table.states[k]]
        parts += [(c, self._outputs[j]) for j, c in self.table.outputs[k]]
        for j, c in self.table.noise[k]:
            if j not in self._noises:
                self._noises[j] = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            parts.append((c, self._noises[j]))
        if not parts:
            return torch.zeros_like(like)
        total = parts[0][1] * parts[0][0]
        for c, value in parts[1:]:
            total.add_(value, alpha=c)
        return total

    def _let_go(self, node: int) -> None:
        """Drop what no row after ``node`` uses; its own state is still to be asked about."""
        later = range(node + 1, len(self.table.told))
        for kept, terms in (
            (self._states, self.table.states),
            (self._outputs, self.table.outputs),
            (self._noises, self.table.noise),
        ):
            used = {j for k in later for j, _ in terms[k]}
            for j in [j for j in kept if j not in used and not (kept is self._states and j == node)]:
                del kept[j]

    # -- noise on an image ------------------------------------------------------------------------
    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """α x₀ + σ ε at times of ``timesteps``, one or one for each sample; ValueError for other times."""
        times = torch.as_tensor(timesteps).reshape(-1).tolist()
        nodes = [self.table.calls[self._index_of(t)] for t in times]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (
            torch.tensor([values[k] for k in nodes], dtype=torch.float64).to(original_samples).reshape(shape)
            for values in (self.table.alpha, self.table.sigma)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise`, as pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]


# -- reading and checking a table -------------------------------------------------------------------
def read_table(table: Any) -> Table:
    """The table of a dictionary; ValueError that says what is wrong with it."""
    if not isinstance(table, dict):
        raise ValueError(f"table={_shown(table)}; allowed: a dictionary with {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in table]
    if missing:
        raise ValueError(f"table has no {', '.join(missing)}; allowed: a dictionary with {', '.join(_KEYS)}")
    for key, allowed in (("kind", ("vp", "flow")), ("prediction", ("eps", "x0", "v"))):
        if table[key] not in allowed:
            raise ValueError(f"table: {key}={table[key]!r}; allowed: {', '.join(allowed)}")
    try:
        alpha, sigma, told = ([_number(v) for v in table[key]] for key in ("alpha", "sigma", "told"))
        states, outputs, noise = ([_terms(row) for row in table[key]] for key in ("states", "outputs", "noise"))
        grid_nodes = [operator.index(k) for k in table["grid_nodes"]]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"table: its lists are not made of numbers and places ({error})") from error
    calls, shifted = sorted({j for row in outputs for j, _ in row}), bool(table.get("shifted", False))
    lists = (states, outputs, noise, alpha, sigma, told, grid_nodes, calls)
    found = Table(table["kind"], table["prediction"], *lists, shifted)
    _check_shape(found)
    return found


def _number(value: Any) -> float:
    if isinstance(value, (str, bool)):  # which float would take
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _terms(row: Any) -> list[tuple[int, float]]:
    terms = [(operator.index(j), _number(c)) for j, c in row]
    if len(dict(terms)) < len(terms):
        raise ValueError(f"one place stands twice in {row!r}")
    return terms


def _check_shape(table: Table) -> None:
    n = len(table.told)
    for name in ("states", "outputs", "noise", "alpha", "sigma"):
        if len(getattr(table, name)) != n:
            raise ValueError(f"table: {name} has {len(getattr(table, name))} entries; allowed: {n}, one for each node")
    for name in ("states", "outputs", "noise"):
        for k, row in enumerate(getattr(table, name)):
            if any(j < 0 or (name != "noise" and j >= k) or (name == "noise" and k == 0) for j, _ in row):
                raise ValueError(f"table: row {k} of {name} uses what is not known there: {row}")
            if not all(math.isfinite(c) for _, c in row):
                raise ValueError(f"table: row {k} of {name} must be finite: {row}")
    for name, least in (("alpha", 0.0), ("sigma", 0.0), ("told", -math.inf)):
        if not all(math.isfinite(v) and v >= least for v in getattr(table, name)):
            said = "" if least < 0 else " and >= 0"
            raise ValueError(f"table: {name}={getattr(table, name)} must be finite{said}")
    grid = table.grid_nodes
    if not grid or grid[0] != 0 or grid[-1] != n - 1 or any(a >= b for a, b in pairwise(grid)):
        raise ValueError(f"table: grid_nodes={grid} must increase from 0 to {n - 1}")
    if not table.calls or table.calls[0] != 0:
        raise ValueError(
            f"table: its first model call is at node {table.calls[0] if table.calls else None}; allowed: 0, as "
            "pipelines call the model with what they start from"
        )
    total = {k: table.alpha[k] + table.sigma[k] if table.kind == "flow" else math.hypot(table.alpha[k], table.sigma[k])
             for k in range(n)}  # fmt: skip
    wrong = [k for k, value in total.items() if abs(value - 1.0) > 1e-4]
    if wrong:
        said = "alpha + sigma" if table.kind == "flow" else "alpha² + sigma²"
        raise ValueError(f"table: {said} is not 1 at node {wrong[0]}, as it is for kind {table.kind!r}")


def _conversions(table: Table, source: str) -> dict[int, tuple[float, float]]:
    """Per call (c, d): the table's prediction is c·x + d·output of a model that predicts ``source``."""
    found = {}
    for k in table.calls:
        alpha, sigma = table.alpha[k], table.sigma[k]
        v = (-1.0, 1.0) if table.kind == "flow" else (-sigma, alpha)
        parts = {"eps": (0.0, 1.0), "x0": (1.0, 0.0), "v": v}  # (a, b): a x₀ + b ε
        (a, b), (a_new, b_new) = parts[source], parts[table.prediction]
        det = alpha * b - sigma * a
        if source == table.prediction:
            found[k] = 0.0, 1.0
        elif det == 0:
            raise ValueError(
                f"table: {table.prediction!r} cannot be told from a model's {source!r} at node {k}, where "
                f"alpha={alpha!r}, sigma={sigma!r}; allowed: another prediction_type, or a table that starts later"
            )
        else:
            found[k] = (a_new * b - b_new * a) / det, (alpha * b_new - sigma * a_new) / det
    return found


def _converted(table: Table, conversions: dict[int, tuple[float, float]]) -> Table:
    """The same method with the conversions in its rows: in float32 they would cost digits where α or σ is small."""
    states, outputs = [], []
    for of_states, of_outputs in zip(table.states, table.outputs, strict=True):
        moved = dict(of_states)
        for j, c in of_outputs:
            moved[j] = moved.get(j, 0.0) + c * conversions[j][0]
        states.append([(j, c) for j, c in sorted(moved.items()) if c])
        outputs.append([(j, c * conversions[j][1]) for j, c in of_outputs])
    return table._replace(states=states, outputs=outputs)


def _check_levels(table: Table, config: Any) -> None:
    """ValueError where the model's own schedule has another level at a told time than the table."""
    calls = table.calls
    count = config.num_train_timesteps
    if table.kind == "flow":
        at = max(calls, key=lambda k: table.sigma[k])
        if abs(table.told[at] - count * table.sigma[at]) > 0.1 * count:
            raise ValueError(
                f"table: the network is told {table.told[at]!r} at sigma={table.sigma[at]!r}, but by "
                f"num_train_timesteps={count} it is {count * table.sigma[at]!r}; it was made for another model"
            )
        return
    levels = _own_levels(config)
    if levels is None:
        return
    told = [table.told[k] for k in calls]
    for i, k in enumerate(calls):
        gaps = [abs(told[i] - other) for other in told[max(i - 1, 0) : i + 2] if other != told[i]]
        reach = 0.5 * max(gaps, default=0.0) if table.shifted else 0.0
        if told[i] > len(levels):  # one past the last level is the end of a process of real time
            raise ValueError(
                f"table: the network is told {told[i]!r}; allowed: at most {len(levels)}, its training times"
            )
        low, high = _bracket(levels, told[i] - reach, min(told[i] + reach, len(levels)))
        level = math.log(table.sigma[k] / table.alpha[k]) if table.sigma[k] > 0 and table.alpha[k] > 0 else 0.0
        if not low <= level <= high:
            raise ValueError(
                f"table: sigma/alpha={math.exp(level):.6g} where the network is told {told[i]:.6g}, but by the model's "
                f"own betas it lies in [{math.exp(low):.6g}, {math.exp(high):.6g}] there: it was made for another model"
            )


def _bracket(levels: list[float], first: float, last: float) -> tuple[float, float]:
    """Least and largest log σ/α allowed at told times in [first, last]; nothing is known outside of the levels."""
    n, ends = len(levels), []
    for t in (first, last):
        i = min(max(math.floor(t), 0), n - 2)
        gap = levels[i + 1] - levels[i]
        if not math.isfinite(gap):
            return -math.inf, math.inf
        ends.append((levels[i] + (t - i) * gap, _LEVEL_SLACK + (0.25 * gap if t != math.floor(t) else 0.0)))
    low = -math.inf if first < 1 else ends[0][0] - ends[0][1]
    high = math.inf if last > n - 1 else ends[1][0] + ends[1][1]
    return low, high


def _own_levels(config: Any) -> list[float] | None:
    """log σ/α by the betas of a config, per training time; None where it has none that are known here."""
    n = config.num_train_timesteps
    first, last = config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = [float(b) for b in config.trained_betas]
    elif config.beta_schedule in ("linear", "scaled_linear") and first is not None and last is not None:
        power = 2.0 if config.beta_schedule == "scaled_linear" else 1.0
        a, b = first ** (1 / power), last ** (1 / power)
        betas = [(a + (b - a) * i / (n - 1)) ** power for i in range(n)]
    elif config.beta_schedule == "squaredcos_cap_v2":
        bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = [min(1.0 - bar[i + 1] / bar[i], 0.999) for i in range(n)]
    else:
        return None
    logs, total = [], 0.0
    for beta in betas:
        total += math.log1p(-min(beta, 1.0 - 1e-12))
        logs.append(total)
    alphas = [math.exp(0.5 * value) for value in logs]
    if config.rescale_betas_zero_snr:
        end, scale = alphas[-1], alphas[0] / (alphas[0] - alphas[-1])
        alphas = [(a - end) * scale for a in alphas]
        return [0.5 * math.log(1.0 / a**2 - 1.0) if a > 0 else math.inf for a in alphas]
    return [0.5 * math.log(math.expm1(-value)) for value in logs]


def _is_told(given: float, told: float, slack: float) -> bool:
    return abs(given - told) <= slack * max(1e-3, abs(told))


def _near(given: Any, known: list[float]) -> bool:
    """Whether a list of numbers is ``known``, to the rounding of float32."""
    try:
        values = [float(v) for v in given]
    except (TypeError, ValueError):
        return False
    return len(values) == len(known) and all(
        abs(a - b) <= 1e-5 * max(1e-3, abs(b)) for a, b in zip(values, known, strict=True)
    )


def _shown(value: Any) -> str:
    try:
        return "[" + ", ".join(f"{float(v):.6g}" for v in value) + "]"
    except (TypeError, ValueError):
        return repr(value)[:80]
