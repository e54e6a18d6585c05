"""One module = one question = one figure with its data and a sentence that is computed from them.

An experiment is a module of one of its `ROOMS` with

* ``NAME``, ``QUESTION`` (one sentence), ``CONFIG`` (JSON-able), ``QUICK`` (what of it changes for a run of seconds),
* ``compute(config, progress) -> DataFrame``: all the numbers, tidy; ``progress`` takes the share done, 0 … 1,
* ``verdict(frame, config) -> str``: one sentence, computed from the frame,
* ``draw(frame, config) -> Figure``: from the frame alone, so that a figure can be redrawn from its CSV,
* if it likes, ``THOROUGH``: what of ``CONFIG`` changes for a long run; and in ``CONFIG`` a list ``models``, names from
  `experiments.models.studies`, which ``--model`` replaces, and a ``device``, which ``--device`` replaces;
* if its numbers are not computed by ``reproduce``, ``COMMITTED``: how they are; its figure is redrawn from the CSV;
* if its numbers agree less closely between machines than others, ``TOLERANCES``: column → (relative, absolute);
* if its models cannot be image networks, ``IMAGE_NETWORKS = False``;
* if what it measures is a GPU, ``NEEDS_CUDA = True``: where there is none it is run only by its name.

Adding one is adding a file. Most are a sweep and panels of curves: `core.cells.sweep` of a model of the study, or
`models.problems.Problem.tried` of any other one; `core.judging` for errors with bands, `core.frames.at` for rows of a
frame, `core.panels.lines` for the figure; transfer.py and convergence.py are the shortest.

The rest is ``core``, ``models``, what is sampled from, and ``training``.
  ``python -m experiments list`` shows them, ``run`` runs them.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

Config = dict[str, Any]
Progress = Callable[[float], None]
Frame = Any  # a pandas.DataFrame, whose stubs do not follow access to columns by name
ROOMS = ("paper", "study", "networks")  # where experiments lie; a result depends on ``core`` and ``models`` too


_PARTS = ("NAME", "QUESTION", "CONFIG", "QUICK", "compute", "verdict", "draw")


class Experiment(Protocol):
    """What a module of this package offers."""

    __name__: str
    NAME: str
    QUESTION: str
    CONFIG: Config
    QUICK: Config

    def compute(self, config: Config, progress: Progress) -> Frame:
        """All the numbers, as a tidy data frame."""

    def verdict(self, frame: Frame, config: Config) -> str:
        """What was found, in one sentence computed from the frame."""

    def draw(self, frame: Frame, config: Config) -> Any:
        """The figure, from the frame alone."""


def discover() -> dict[str, Experiment]:
    """All experiments by name, in alphabetical order of their modules; one that cannot be read is a warning."""
    places = [Path(__file__).with_name(room) for room in ROOMS]
    found = sorted((info.name, place.name) for place in places for info in pkgutil.iter_modules([str(place)]))
    experiments: dict[str, Experiment] = {}
    for name, room in found:
        try:
            module = cast(Experiment, importlib.import_module(f"{__name__}.{room}.{name}"))
            missing = [part for part in _PARTS if not hasattr(module, part)]
            if missing:
                raise AttributeError(f"it has no {', '.join(missing)}")
            if module.NAME in experiments:
                raise ValueError(f"its NAME={module.NAME!r} is another's, too")
            experiments[module.NAME] = module
        except (Exception, SystemExit) as error:  # one broken file does not stop the others
            warnings.warn(f"no experiment: {room}/{name}.py ({type(error).__name__}: {error})")
    return experiments


def of_this_machine() -> dict[str, Experiment]:
    """All experiments but those that measure what is not here, see ``NEEDS_CUDA``."""
    import torch

    cuda = torch.cuda.is_available()
    return {name: one for name, one in discover().items() if cuda or not getattr(one, "NEEDS_CUDA", False)}
