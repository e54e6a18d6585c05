"""The registry: one row per sampler, with what its author claims. Tests measure every claim and demand equality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import signature
from typing import Any

from deis_analysis.process.convention import Model, type_of
from deis_analysis.process.grids import check_grid
from deis_analysis.process.grids import grid as time_grid
from deis_analysis.process.process import PREDICTIONS, VARIABLES, Array, Process, require_process
from deis_analysis.process.schedules import VPLinear
from deis_analysis.tableau.tableau import Builder, Tableau, run
from deis_analysis.validate import checked, choose, instance


@dataclass(frozen=True)
class Solver:
    """A registry row. NFE, history and noise are read off the table; the rest is declared here and measured by tests.

    Attributes:
        name: registry name.
        build: (process, ts) → `Tableau`, ts a descending grid.
        family: the file's method family.
        order: global order of convergence with the method's own start; for a stochastic row the weak order, that of
            the law of the output.
        order_exact_start: global order when the first ``starting_steps`` states are exact; None for stochastic rows.
        degree: largest d such that a step after the start-up is exact whenever ``prediction`` is a polynomial of degree
            d in ``variable`` along the solution; −1 if not even constants are integrated exactly.
        prediction, variable: where ``degree`` is measured.
        stages, extra_calls: the method makes ``stages`` · N + ``extra_calls`` model calls in N steps.
        starting_steps, final_steps: steps before the method runs at its full degree, and last steps that do not.
        block: the steps of the grid are used in groups of this many; claims hold for multiples of it.
        lam_sde: λ of the λ-family of SDEs whose mean ``degree`` refers to; 0 is the probability flow.
        strong_order: order of the distance between paths driven by one Brownian path; None for deterministic rows.
        home: the process on which the claims are measured; they hold wherever the formulas are finite, except that
            ``degree`` of a method written in t holds where t is the clock of its prediction.
        source: paper and equation.
    """

    name: str
    build: Callable[[Process, Array], Tableau]
    family: str
    order: int
    order_exact_start: int | None
    degree: int
    source: str
    prediction: str = "eps"
    variable: str = "t"
    stages: int = 1
    starting_steps: int = 0
    extra_calls: int = 0
    final_steps: int = 0
    block: int = 1
    lam_sde: float = 0.0
    strong_order: float | None = None
    home: Process = field(default_factory=VPLinear)

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, PREDICTIONS)
        choose("variable", self.variable, VARIABLES)

    @cached_property
    def stochastic(self) -> bool:
        """Whether the method draws noise, read off a short table."""
        return self.build(self.home, time_grid(self.home, self.shortest)).stochastic

    @property
    def shortest(self) -> int:
        """The fewest steps with one at full degree and one after it, in whole blocks."""
        return -(-(self.starting_steps + self.final_steps + 2) // self.block) * self.block

    def calls(self, steps: int) -> int:
        """Model calls in ``steps`` steps."""
        return self.stages * steps + self.extra_calls


SOLVERS: dict[str, Solver] = {}


def register(row: Solver | str, *, alias: str = "", **changes: Any) -> Solver:
    """Add a row, or one more name of a registered method: ``register("ancestral_ve", alias="ddpm", source=...)``.

    Args:
        row: the row, or with ``alias`` a new name.
        alias: the registered name whose row is repeated, its table under the new name. changes: claims that differ.

    Raises:
        ValueError: the name is taken; ``row`` is not a `Solver`; an unknown ``alias``.
    """
    if alias:
        known = named("alias", alias)
        row = replace(known, name=str(row), build=_named(known.build, str(row)), **changes)
    added: Solver = instance("row", row, Solver)
    if added.name in SOLVERS:
        raise ValueError(f"name={added.name!r} is already registered, by {SOLVERS[added.name].source}")
    SOLVERS[added.name] = added
    return added


def family(builder: Callable[..., Tableau], **shared: Any) -> Callable[..., Solver]:
    """What rows of a family share, said once: ``row(name, order, degree, options, **claims)``, which registers a row.

    Args:
        builder: (process, ts, **options) → `Tableau`; ``row(..., build=other)`` takes another one. Its tables get the
            row's name if it takes a ``name``.
        shared: claims of every row, by the names of `Solver`'s fields. The order with an exact start is the order
            unless it is said; for a row with a strong order it is None.
    """

    def row(name: str, order: int, degree: int, options: dict[str, Any] | None = None, **claims: Any) -> Solver:
        claims = {"build": builder, **shared, **claims}
        claims["build"] = _named(partial(claims["build"], **(options or {})), name)
        exact_start = None if claims.get("strong_order") is not None else order
        return register(Solver(name=name, order=order, degree=degree, **{"order_exact_start": exact_start, **claims}))

    return row


def _named(build: Callable[..., Tableau], name: str) -> Callable[..., Tableau]:
    """``build`` with ``name`` for its tables, if it takes one."""
    return partial(build, name=name) if "name" in signature(build).parameters else build


_ELSEWHERE = {  # names of methods in other packages, in small letters; the longer ones first
    "dpmsolversinglestep": "dpmpp_2s",
    "dpmsolversde": "sde_dpmpp_2m",
    "dpmsolver": "dpmpp_2m",
    "eulerancestral": "euler_ancestral",
    "eulerdiscrete": "ddim",
    "heun": "edm_heun",
    "unipc": "unipc2_bh2_x0",
    "pndm": "f_pndm",
    "lms": "rhoab3",
    "deis": "tab3",
}


def named(argument: str, name: Any) -> Solver:
    """The row of that name; a ValueError that names the argument and the nearest ones."""
    return SOLVERS[choose(argument, name, SOLVERS, _ELSEWHERE)]


@checked
def build(name: str, process: Process, ts: Any) -> Tableau:
    """The table of the registered sampler ``name`` for ``process`` on the descending grid ``ts`` (N + 1 times).

    Raises:
        ValueError: unknown name (with the nearest ones); a grid that is not descending, finite and in range.
    """
    return named("name", name).build(process, check_grid(process, ts))


def row_of(solver: str | Solver | Builder, argument: str = "solver") -> Solver | Builder:
    """The registry row of a name, a row itself, or a function (process, ts) → `Tableau`.

    Raises:
        ValueError: an unknown name (with the nearest ones), or none of the three, given as ``argument``.
    """
    if isinstance(solver, Solver) or (callable(solver) and not isinstance(solver, str)):
        return solver
    return named(argument, solver)


def builder_of(solver: str | Solver | Builder, argument: str = "solver") -> Builder:
    """The function (process, ts) → `Tableau` of a name, a row, or a function itself; errors as `row_of`."""
    row = row_of(solver, argument)
    return row.build if isinstance(row, Solver) else row


@checked
def sample(
    solver: str | Solver | Builder,
    model: Any,
    x_T: Any,
    steps: int = 10,
    grid: str = "t2",
    *,
    process: Process | None = None,
    prediction: str | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    noise: Any = None,
    progress: bool = False,
    model_dtype: Any = None,
) -> Any:
    """Sample in one line: the grid, the table, in terms of what the model predicts, and its run.

    Args:
        solver: a registry name, a row, or a function (process, ts) → `Tableau`.
        model: a model that says what it is (`deis_analysis.Model`), or a function with ``process`` and ``prediction``.
        x_T: the state at the grid's first time, any shape, of floating dtype.
        steps, grid, t_start, t_end: see `deis_analysis.grid`, of which ``grid`` is the kind.
        noise, progress, model_dtype: see `deis_analysis.run`.

    Returns:
        the sample, kind, shape and dtype of ``x_T``.

    Raises:
        ValueError: a bare function without process or prediction, or with others than a model says; as `run`.
    """
    known = type_of(model)
    if known is None:
        missing = [n for n, v in (("process", process), ("prediction", prediction)) if v is None]
        if missing:
            raise ValueError(f"model does not say what it is, and {missing[0]}=None; allowed: a Model, or both")
        model = Model(model, require_process(process), str(prediction))
    elif process not in (None, known[0]) or prediction not in (None, known[1]):
        raise ValueError(
            f"process={process!r}, prediction={prediction!r}, but the model says {known[0]!r}, {known[1]!r}"
        )
    ts = time_grid(model.process, steps, grid, t_start, t_end)
    table = builder_of(solver)(model.process, ts)
    return run(table, model, x_T, noise, progress=progress, model_dtype=model_dtype)
