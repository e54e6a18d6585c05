r"""Reading a sampler's table off the sampler: feed it unit vectors, and watch what it asks the model.

A linear sampler combines x_T, the model's outputs and its noises.  Let x_T be e₀, the k-th model call return e_{1+k}
and the l-th noise be e_{1+K+l}, with the components along the batch axis: then what the model is asked about, and the
result, *are* the rows of the table.  A second run on random numbers of size 5 must agree with the table: what clips,
thresholds, normalises or adapts its steps does not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process
from deis_analysis.tableau import Tableau
from deis_analysis.validate import checked, choose, positive_int

MOST_CALLS = 2000  # a sampler that calls the model more often is stopped
_SIZES = np.array([5.0] * 4 + [1e6] * 3)  # of the random numbers in the superposition test: some clip large ones only
_LINEAR = 1e-4  # relative residual above which a sampler is not linear; float32 leaves about 1e-7


class Refusal(ValueError):
    """Why a sampler could not be read: a sentence for the report, not a traceback."""


class NotApplicable(Refusal):
    """The sampler is known, and is of a kind that has no table: nothing is wrong with it."""


class NotLinear(Refusal):
    """It ran, and its result is not a linear combination of x_T, outputs and noises."""


@dataclass(frozen=True)
class Reading:
    """What one sampler run asked and returned, as coefficients of (x_T, outputs, noises).

    Attributes:
        told: (K,) what the model was told at each call, as floats.
        rows: (K + 1, 1 + K + L) coefficients of the model's inputs, and of the result in the last row.
        residual: relative superposition residual of a run on random numbers. linear: whether it is small.
        precision: the dtype in which the model saw the state.
        note: why it is not linear, where known.
        kinds: (K,) which of the model's outputs each call asks for, by what is passed beside state and time.
        asked: calls that were made, of which `together` may leave fewer.
        apart: of a model with several outputs, (n, K + 1, K) coefficients of each output by itself, which ``rows`` adds
            up; empty for one output.
    """

    told: Array
    rows: Array
    residual: float
    linear: bool
    precision: str
    note: str = ""
    kinds: tuple[int, ...] = ()
    asked: int = 0
    apart: Array | None = None

    @property
    def shares(self) -> Array | None:
        """(K, n) shares of the outputs in the row after each call, such as 4 and −3 of guidance; None for one output.

        NaN where the outputs cancel.
        """
        if self.apart is None:
            return None
        after = np.stack([np.diagonal(kind, offset=-1) for kind in self.apart], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(after / after.sum(axis=1, keepdims=True))

    @property
    def calls(self) -> int:
        """K, model calls."""
        return int(self.told.size)

    @property
    def rounding(self) -> float:
        """Relative rounding of the sampler's numbers: of its arithmetic, or of weights that are float32 numbers."""
        raw = self.rows[min(1, self.calls)]
        weights = raw[raw != 0]
        single = bool(np.all(weights == weights.astype(np.float32)))
        short = bool(np.all(weights == weights.astype(np.float16)))  # 1, ½ and their like say nothing
        return max(self.residual, 6e-8 if single and not short else 0.0)

    @property
    def noises(self) -> int:
        """L, noises drawn."""
        return max(0, int(self.rows.shape[1] - 1 - self.calls))


Sampler = Callable[..., Any]  # sampler(model, x) or, if it takes noise explicitly, sampler(model, x, noise)
Run = tuple[list[float], list[Array], Array]  # told times, model inputs, result


def read_sampler(sampler: Sampler, *, backend: str = "torch", dtype: str = "float64", seed: int = 0) -> Reading:
    """Read the coefficients off a sampler, and test that it is linear.

    Args:
        sampler: ``sampler(model, x)`` → result, with ``model(x, time)``; noise drawn by torch or NumPy functions is
            intercepted; a third parameter named ``noise`` receives a function that returns the next noise.
        backend: ``"torch"`` or ``"numpy"``, the arrays that it is fed, of shape (batch, 1, 1, 1).

    Raises:
        Refusal: it never calls the model, calls it too often, returns another shape, NaN, or fails.
    """
    return _read_twice(sampler, backend, dtype, seed) or _read_counted(sampler, backend, dtype, seed)


def _read_twice(sampler: Sampler, backend: str, dtype: str, seed: int) -> Reading | None:
    """A sampler that draws nothing and is linear, by two runs to which nobody listens, as listening is slow.

    None where it draws, fails, or is not linear by these runs, as after draws from a generator of its own, which go
    unnoticed here: `_read_counted` says what it is.
    """
    lab = _Laboratory(sampler, backend, dtype, "watches")
    rng = np.random.default_rng(seed)
    x, outputs = _SIZES * rng.standard_normal(_SIZES.size), list[Array]()

    def drawn(_: int) -> Array:
        outputs.append(_SIZES * rng.standard_normal(_SIZES.size))
        return outputs[-1]

    try:
        random = lab.run(x, drawn)
        kinds, calls = tuple(lab.kinds), len(random[0])
        if lab.drew or calls == 0:
            return None
        basis = np.eye(1 + calls)
        plain = lab.run(basis[0], list(basis[1:]))
    except Refusal:
        return None
    if lab.drew or lab.exceeded or len(plain[0]) != calls:
        return None
    reading = _compared(plain, random, np.stack([x, *outputs]), lab.precision, kinds)
    return reading if reading.linear else None


def _read_counted(sampler: Sampler, backend: str, dtype: str, seed: int) -> Reading:
    """Any sampler: its calls and noises are counted, then it is read, then tested."""
    lab = _Laboratory(sampler, backend, dtype)
    told, _, _ = lab.run(np.zeros((1, 1)))
    calls, noises = len(told), lab.drawn
    if noises == 0:  # a sampler that drew nothing is not slowed down any more
        lab.mode = "runs"
    if calls == 0:
        raise Refusal("the sampler never called the model")
    basis = np.eye(1 + calls + noises)
    plain = lab.run(basis[0], list(basis[1 : 1 + calls]), list(basis[1 + calls :]))
    told, inputs, result = plain
    rows = np.stack([*inputs, result])
    note = ""
    if lab.exceeded or len(told) != calls:
        note = f"the number of model calls depends on the data ({calls}, then {len(told)})"
    rng = np.random.default_rng(seed)
    size = _SIZES.size
    x, outputs = _SIZES * rng.standard_normal(size), list(_SIZES * rng.standard_normal((calls, size)))
    draws = list(_SIZES * rng.standard_normal((noises, size)))
    again = lab.run(x, outputs, draws)
    if note or len(again[0]) != calls or lab.exceeded:
        return Reading(_floats(told), rows, float("inf"), False, lab.precision, note or "calls depend on the data")
    return _compared(plain, again, np.stack([x, *outputs, *draws]), lab.precision, tuple(lab.kinds))


def _compared(plain: Run, again: Run, numbers: Array, precision: str, kinds: tuple[int, ...]) -> Reading:
    """What a run on unit vectors says, tested by one on ``numbers`` (1 + K + L, n)."""
    (told, inputs, result), (then, seen, end) = plain, again
    rows = np.stack([*inputs, result])
    expected = rows @ numbers
    gap = np.abs(np.stack([*seen, end]) - expected).max(axis=0)
    residual = float(np.max(gap / np.maximum(np.abs(expected).max(axis=0), _SIZES)))
    changed = not np.allclose(_floats(told), _floats(then), rtol=1e-6, atol=1e-9)
    linear = residual < _LINEAR and not changed
    reason = "the told times depend on the data" if changed else "clipped, thresholded, normalised or adaptive"
    return Reading(_floats(told), rows, residual, linear, precision, "" if linear else reason, kinds, len(told))


def together(reading: Reading) -> Reading:
    """Calls at one state and time for different outputs, such as with and without a condition, as one call.

    It is what the sampler does where these outputs agree: the weights are added up, and kept apart in ``apart``.
    """
    rows, told, kept = reading.rows.copy(), reading.told, [0]
    place = np.zeros(reading.calls, dtype=int)
    for k in range(1, reading.calls):
        first = kept[-1]
        same = told[k] == told[first] and np.allclose(rows[k], rows[first], rtol=1e-9, atol=1e-12)
        if same and reading.kinds and reading.kinds[k] not in reading.kinds[first:k]:
            rows[:, 1 + first] += rows[:, 1 + k]
        else:
            kept.append(k)
        place[k] = len(kept) - 1
    if len(kept) == reading.calls:
        return reading
    columns, which = [0, *(1 + k for k in kept), *range(1 + reading.calls, rows.shape[1])], [*kept, reading.calls]
    apart = np.zeros((max(reading.kinds) + 1, len(which), len(kept)))
    for k, kind in enumerate(reading.kinds):
        apart[kind, :, place[k]] = reading.rows[which, 1 + k]
    kinds = tuple(reading.kinds[k] for k in kept)
    return replace(reading, told=told[kept], rows=rows[which][:, columns], kinds=kinds, apart=apart)


def count_calls(sampler: Sampler, backend: str = "torch") -> int:
    """How often the sampler calls a model that answers zero.

    Raises:
        Refusal: as `read_sampler`.
    """
    lab = _Laboratory(sampler, backend, "float64", "watches")
    with suppress(Refusal):
        told = lab.run(np.zeros((1, 1)))[0]
        if not lab.drew:
            return len(told)
    return len(_Laboratory(sampler, backend, "float64").run(np.zeros((1, 1)))[0])


def _floats(values: list[float]) -> Array:
    return np.array(values, dtype=np.float64)


class _Laboratory:
    """Runs a sampler with prescribed model outputs and noises, components along the batch axis.

    Args:
        mode: what becomes of draws: "listens", they are prescribed, and counted in ``drawn``; "watches", whether there
            were any is in ``drew``; "runs", nothing.
    """

    def __init__(self, sampler: Sampler, backend: str, dtype: str, mode: str = "listens") -> None:
        self.sampler, self.backend, self.dtype = sampler, choose("backend", backend, ("torch", "numpy")), dtype
        self.mode, self.precision, self.drawn, self.exceeded, self.drew = mode, dtype, 0, False, False
        self.kinds: list[int] = []

    def array(self, values: Array) -> Any:
        """(n,) numbers as a new (n, 1, 1, 1) array of the sampler's library, which the sampler may write to."""
        shaped = np.array(values, dtype=self.dtype).reshape(-1, 1, 1, 1)
        return sys.modules["torch"].as_tensor(shaped) if self.backend == "torch" else shaped

    def run(
        self, x: Array, outputs: list[Array] | Callable[[int], Array] | None = None, noises: list[Array] | None = None
    ) -> Run:
        """One run; past the prescribed outputs and noises, or where none are prescribed, it gets zeros."""
        if self.backend == "torch":
            import torch  # noqa: F401 - foreign samplers are torch
        start = self.array(x)
        told: list[float] = []
        inputs: list[Array] = []
        self.drawn, self.exceeded, self.kinds = 0, False, []
        asked: list[str] = []

        def model(state: Any, time: Any, *beside: Any, **named: Any) -> Any:
            if len(told) >= MOST_CALLS:
                raise Refusal(f"the sampler called the model more than {MOST_CALLS} times")
            told.append(float(np.asarray(_plain(time), dtype=np.float64).reshape(-1)[0]))
            what = _named([*beside, *sorted(named.items())])
            asked.extend([] if what in asked else [what])
            self.kinds.append(asked.index(what))
            values = _plain(state)
            if values.shape != tuple(start.shape):
                raise Refusal(f"the model was asked about an array of shape {values.shape}, not {tuple(start.shape)}")
            self.precision = str(values.dtype) if values.dtype != np.float64 else self.precision
            inputs.append(np.array(values, dtype=np.float64).reshape(-1))  # a copy: the sampler goes on in place
            return self.array(outputs(len(told) - 1) if callable(outputs) else prescribed(outputs, len(told) - 1))

        def noise(*_: Any, **__: Any) -> Any:
            self.drawn, self.drew = self.drawn + 1, True
            return self.array(prescribed(noises, self.drawn - 1))

        def prescribed(values: list[Array] | None, k: int) -> Array:
            if values is not None and k < len(values):
                return values[k]
            self.exceeded |= values is not None
            return np.zeros(start.shape[0])

        result = self._call(model, start, noise)
        values = np.asarray(_plain(result), dtype=np.float64)
        if values.shape != tuple(start.shape):
            raise Refusal(f"the sampler returned an array of shape {values.shape}, not {tuple(start.shape)}")
        if not all(np.all(np.isfinite(v)) for v in (*inputs, values)):
            where = next((k for k, v in enumerate(inputs) if not np.all(np.isfinite(v))), len(inputs))
            what = "its result" if where == len(inputs) else f"its question at call {where + 1}, told {told[where]:g}"
            raise Refusal(f"NaN or infinity in {what}")
        return told, inputs, values.reshape(-1)

    def _call(self, model: Any, start: Any, noise: Any) -> Any:
        import inspect

        try:
            explicit = "noise" in inspect.signature(self.sampler).parameters
        except (TypeError, ValueError):
            explicit = False
        try:
            with self._draws(noise, tuple(start.shape)):
                return self.sampler(model, start, noise) if explicit else self.sampler(model, start)
        except Refusal:
            raise
        except (Exception, SystemExit) as error:
            raise Refusal(f"the sampler failed: {type(error).__name__}: {error}") from error

    def _draws(self, noise: Callable[..., Any], shape: tuple[int, ...]) -> AbstractContextManager[None]:
        if self.mode == "listens":
            return _intercepted(noise, shape)
        return self._watched() if self.mode == "watches" else nullcontext()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Whether torch's global generator is drawn from, which is then put back, or what `_intercepted` has of NumPy.

        It costs nothing while the sampler runs, whereas `_intercepted` has every call of torch go through Python.
        """
        torch = sys.modules.get("torch")
        before = torch and torch.get_rng_state()

        def heard(name: str) -> Any:
            function = getattr(np.random, name)

            def drawing(*args: Any, **kwargs: Any) -> Any:
                self.drew = True
                return function(*args, **kwargs)

            return patch.object(np.random, name, drawing)

        try:
            with heard("default_rng"), heard("normal"), heard("randn"), heard("standard_normal"):
                yield
        finally:
            if torch and not torch.equal(before, torch.get_rng_state()):
                self.drew = True
                torch.set_rng_state(before)


def _named(value: Any) -> str:
    """What tells one extra argument of a model from another: its value, or which object it is."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_named, value))}]"
    if isinstance(value, dict):
        return _named(list(value.items()))
    if hasattr(value, "shape") and math.prod(value.shape) <= 4096:
        return f"{tuple(value.shape)} {_plain(value).tolist()}"
    return repr(value) if value is None or isinstance(value, (str, int, float, bool)) else str(id(value))


def _plain(x: Any) -> Array:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


@contextmanager
def _intercepted(noise: Callable[..., Any], shape: tuple[int, ...]) -> Iterator[None]:
    """Standard-normal draws of torch and NumPy that have the state's shape come from ``noise``.

    Of torch: ``randn``, ``randn_like``, ``normal`` and ``Tensor.normal_``, by any name. Of NumPy: the functions
    ``np.random.randn``, ``standard_normal`` and ``normal``, and the generators that ``np.random.default_rng`` makes
    while the sampler runs; a generator made before cannot be reached.
    """

    class Generator(np.random.Generator):
        """A generator whose normal draws of the state's shape are the laboratory's."""

        def standard_normal(self, size: Any = None, *args: Any, **kwargs: Any) -> Any:
            return noise() if _size(size) == shape else super().standard_normal(size, *args, **kwargs)

        def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
            return loc + scale * noise() if _size(size) == shape else super().normal(loc, scale, size)

    def made(seed: Any = None) -> np.random.Generator:
        return seed if isinstance(seed, np.random.Generator) else Generator(np.random.PCG64(seed))

    def scaled(loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        return loc + scale * noise() if _size(size) == shape else normal(loc, scale, size)

    normal = np.random.normal
    patches: list[Any] = [
        patch.object(np.random, "default_rng", made),
        patch.object(np.random, "normal", scaled),
        *(
            patch.object(np.random, name, _instead(getattr(np.random, name), noise, shape, size))
            for name, size in (("randn", lambda *n: _size(n)), ("standard_normal", lambda size=None: _size(size)))
        ),
    ]

    torch = sys.modules.get("torch")
    if torch is not None:
        patches.append(_torch_draws(torch, noise, shape))
    with ExitStack() as stack:
        for p in patches:
            stack.enter_context(p)
        yield


def _torch_draws(torch: Any, noise: Callable[..., Any], shape: tuple[int, ...]) -> Any:
    """A mode in which torch's normal draws of the state's shape come from ``noise``, also under names bound before."""

    def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, **_: Any) -> Any:
        sizes = [tuple(size or ()), *(tuple(getattr(a, "shape", ())) for a in (mean, std))]
        return mean + std * noise() if shape in sizes else None

    def normal_(x: Any, mean: float = 0.0, std: float = 1.0, **_: Any) -> Any:
        return x.copy_(mean + std * noise()) if tuple(x.shape) == shape else None

    draws: dict[Any, Callable[..., Any]] = {
        torch.randn: lambda *size, **kwargs: noise() if _torch_shape(*size, **kwargs) == shape else None,
        torch.randn_like: lambda x, **_: noise() if tuple(x.shape) == shape else None,
        torch.normal: normal,
        torch.Tensor.normal_: normal_,
    }

    class Draws(torch.overrides.TorchFunctionMode):
        """What is asked for ``noise``."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = draws[func](*args, **(kwargs or {})) if func in draws else None
            return func(*args, **(kwargs or {})) if found is None else found

    return Draws()


def _instead(
    original: Callable[..., Any], noise: Callable[..., Any], shape: tuple[int, ...], size: Callable[..., Any]
) -> Callable[..., Any]:
    """``original``, but for draws of the state's shape, which come from ``noise``."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        return noise() if size(*args, **kwargs) == shape else original(*args, **kwargs)

    return drawn


def _size(size: Any) -> tuple[int, ...] | None:
    """NumPy's ``size`` as a shape."""
    return None if size is None else (size,) if isinstance(size, int) else tuple(size)


def _torch_shape(*size: Any, **kwargs: Any) -> tuple[int, ...] | None:
    size = kwargs.get("size", size)
    size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    return tuple(int(n) for n in size)


def table_of(
    reading: Reading,
    process: Process,
    times: Array,
    convention: Convention,
    name: str = "",
    t_start: float | None = None,
    scaled: bool = False,
) -> Tableau:
    """The state-free table of a reading: nodes are the model calls, then the result.

    Args:
        times: (K + 1,) process time of each call and of the result. t_start: of x_T, by default the first of them.
        scaled: the sampler is handed noise of unit variance and scales it to x_T itself.

    Raises:
        NotLinear: the sampler is not linear.
    """
    if not reading.linear:
        raise NotLinear(f"not linear: {reading.note}, superposition residual {reading.residual:.1e}")
    k, rows = reading.calls, _rescaled(reading, process, times, convention)
    first = rows[0]
    plain = first[0] != 0 and not np.any(first[1:])
    if plain or (scaled and first[0] != 0):  # x_T was scaled before the first call: start from what the model saw of it
        rows[:, 0] /= first[0]
    if not plain:  # something was added before the first call
        times = np.concatenate([times[:1] if t_start is None else [t_start], times])
    count = times.size
    states, outputs = np.zeros((count, count)), np.zeros((count, count))
    lead = count - rows.shape[0]
    states[1:, 0] = rows[1 - lead :, 0]
    outputs[lead:, lead : lead + k] = rows[:, 1 : 1 + k]
    noise = np.zeros((count, reading.noises))
    noise[lead:] = rows[:, 1 + k :]
    noise = noise[:, np.any(noise != 0, axis=0)]  # some samplers draw noise and do not use it
    intervals = _intervals_of(noise, np.asarray(process.rho(times)) ** 2)
    return Tableau(times, states, outputs, noise, convention.prediction, name, intervals=intervals)


def _rescaled(reading: Reading, process: Process, times: Array, convention: Convention) -> Array:
    rows = reading.rows.copy()
    rows[:-1] *= convention.input_scale(process, times[:-1])[:, None]  # the result stays in the scale it is given in
    return rows


def _intervals_of(noise: Array, level: Array) -> Array:
    """An interval of the ρ² clock per noise: the step at whose end it enters, shared by those that enter together.

    A step is as many calls as lie between two noises at least, so that a method of two stages has its whole steps.
    """
    level = np.where(np.isfinite(level), level, 2.0 * np.max(level[np.isfinite(level)], initial=1.0))
    intervals = np.zeros((noise.shape[1], 2))
    enters = [int(np.flatnonzero(column)[0]) if np.any(column) else 1 for column in noise.T]
    nodes = sorted(set(enters))
    calls = int(min(np.diff(nodes), default=1))
    for node in nodes:
        columns = [i for i, k in enumerate(enters) if k == node]
        start = max(node - calls, 0)
        high, low = max(level[start], level[node]), min(level[start], level[node])
        high = high if high > low else low + 1.0
        cuts = np.linspace(high, low, len(columns) + 1)
        for i, column in enumerate(columns):
            intervals[column] = cuts[i : i + 2]
    return intervals


@checked
def extract(
    sampler: Sampler,
    calls: int | None = None,
    *,
    prediction: str = "eps",
    noises: int | None = None,
    convention: Convention | None = None,
    process: Process | None = None,
    t_end: float | None = None,
    backend: str = "numpy",
) -> Tableau:
    """The table of a sampler, read off one run.

    Args:
        sampler: ``sampler(model, x)`` or ``sampler(model, x, noise)``, see `read_sampler`.
        calls, noises: how many it makes and draws; checked if given.
        prediction: what it wants from the model; ``convention`` says more.
        process: the forward process, for time and scale; by default times are taken as told, on `VPLinear`'s range.
        t_end: the time of the result; by default the process's last sampling time.

    Raises:
        Refusal (a ValueError): it fails, never calls the model, is not linear, or the numbers differ from those given.
    """
    from deis_analysis.process.schedules import VPLinear

    reading = read_sampler(sampler, backend=backend)
    for name, wanted, found in (("calls", calls, reading.calls), ("noises", noises, reading.noises)):
        if wanted is not None and positive_int(name, wanted, 0) != found:
            raise Refusal(f"{name}={wanted}, but the sampler makes {found}")
    convention = convention or Convention(prediction)
    process = process or VPLinear()
    times = np.array([convention.process_time(process, raw) for raw in reading.told])
    if not np.all(np.isfinite(times)):
        bad = reading.told[~np.isfinite(times)][0]
        raise Refusal(f"the model was told {bad:g} as {convention.time}, which {process!r} does not reach")
    end = process.sampling_range[1] if t_end is None else t_end
    return table_of(reading, process, np.append(times, end), convention)
