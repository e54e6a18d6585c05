r"""A table with all that another package needs to run it: the scales at its nodes, and what the network is told there.

A `Tableau` holds coefficients and times of a process. To use it elsewhere one must know α and σ at its nodes, to
convert what the model predicts, and the time as the network counts it: 0 … 999 of DDPM, 1000 t of flows, 100 t of
networks that were trained here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deis_analysis.process.convention import Convention
from deis_analysis.process.process import Array, Process, require_process
from deis_analysis.process.schedules import RectifiedFlow
from deis_analysis.tableau import Tableau
from deis_analysis.tableau.document import Document
from deis_analysis.tableau.rows import row_terms
from deis_analysis.tableau.text import FORMAT as TABLEAU
from deis_analysis.tableau.text import table_of
from deis_analysis.validate import boolean, checked, choose, finite, instance

FORMAT = "deis_analysis.PortableTable/1"
KINDS = ("vp", "flow", "other")
_FLOW_TIMES = 1000.0
_SCALE_SLACK = 1e-6


@checked
@dataclass(frozen=True, eq=False)
class PortableTable:
    """A table, and what it takes to run it with the model of another package; `portable` makes one.

    Attributes:
        tableau: it predicts "eps", "x0", or, on kinds "vp" and "flow", "v".
        alpha, sigma: (n,) scales of x = α x₀ + σ ε at its n nodes.
        told: (n,) what the network is told of the time; it counts where the model is called.
        kind: "vp", α² + σ² = 1 and v = α ε − σ x₀; "flow", α + σ = 1 and v = ε − x₀; or "other".
        source: where it came from, for people.
        shifted: whether told is not the time of α and σ, on purpose: tuning may move it.

    Raises:
        ValueError: names what does not fit.
    """

    tableau: Tableau
    alpha: Array
    sigma: Array
    told: Array
    kind: str
    source: str = ""
    shifted: bool = False

    def __post_init__(self) -> None:
        instance("tableau", self.tableau, Tableau)
        choose("kind", self.kind, KINDS)
        instance("source", self.source, str)
        boolean("shifted", self.shifted)
        if self.tableau.mean is not None:
            raise ValueError("tableau reverts to a mean; allowed: one that does not, as other packages have none")
        choose("prediction", self.tableau.prediction, ("eps", "x0") if self.kind == "other" else ("eps", "x0", "v"))
        n = self.tableau.times.size
        for name in ("alpha", "sigma", "told"):
            values = finite(name, getattr(self, name), -math.inf if name == "told" else 0.0)
            if values.shape != (n,):
                raise ValueError(f"{name} has shape {values.shape}; allowed: ({n},), one for each node")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.kind != "other":
            total = self.alpha + self.sigma if self.kind == "flow" else np.hypot(self.alpha, self.sigma)
            wrong = np.flatnonzero(np.abs(total - 1.0) > _SCALE_SLACK)
            if wrong.size:
                said = "alpha + sigma" if self.kind == "flow" else "alpha² + sigma²"
                raise ValueError(f"{said} is not 1 at node {wrong[0]}, as it is for kind={self.kind!r}")

    @property
    def nfe(self) -> int:
        """Number of model calls."""
        return self.tableau.nfe

    def to_json(self) -> str:
        """Text that `from_json` restores bit for bit."""
        numbers = {name: getattr(self, name).tolist() for name in ("alpha", "sigma", "told")}
        said = {"kind": self.kind, "source": self.source, "shifted": self.shifted}
        return json.dumps({"format": FORMAT, **said, **numbers, "tableau": json.loads(self.tableau.to_json())})

    @staticmethod
    def from_json(text: str) -> PortableTable:
        """The table that `to_json` wrote; ValueError if ``text`` is not one, or damaged."""
        data = Document.read(text, FORMAT, "a table written by PortableTable.to_json")
        fields = {name: data[name] for name in ("alpha", "sigma", "told", "kind", "source", "shifted")}
        tableau = Tableau(**table_of(Document.of(data["tableau"], TABLEAU, "a tableau written by to_json", "tableau")))
        return PortableTable(tableau, **fields)

    def rows(self) -> dict[str, Any]:
        """The table as lists, numbers and strings: what files of other packages hold; see `scheduler_table`."""
        terms = {
            name: [[[j, c] for c, j in row] for row in row_terms(matrix)]
            for name, matrix in self.tableau.matrices._asdict().items()
        }
        numbers = {name: getattr(self, name).tolist() for name in ("alpha", "sigma", "told")}
        return {
            "name": self.tableau.name,
            "source": self.source,
            "kind": self.kind,
            "prediction": self.tableau.prediction,
            "shifted": self.shifted,
            **terms,
            **numbers,
            "grid_nodes": list(self.tableau.grid_nodes),
        }

    def scheduler_table(self) -> dict[str, Any]:
        """``table=`` of `TableauScheduler`, JSON-able; ValueError for kind "other", which it does not run."""
        choose("kind", self.kind, ("vp", "flow"))
        return self.rows()


@checked
def portable(
    tableau: Tableau, process: Process, told: Any = None, source: str = "", shifted: bool | None = None
) -> PortableTable:
    """``tableau`` with the scales of ``process``, and what the network is told at its nodes.

    Args:
        tableau: of any prediction: one of the score becomes one of ε, and so does one of v where v is neither that of
            variance-preserving processes nor that of `RectifiedFlow`.
        process: without a mean; the tableau's own, where it says one.
        told: None: t itself, which on `VPDiscrete` counts levels, and 1000 t on `RectifiedFlow`. Or the `Convention` of
            a network (``load(name).model.convention``), or (n,) numbers, one for each node.
        source: where it came from, for people.
        shifted: see `PortableTable`; by default True if ``told`` is numbers.

    Raises:
        ValueError: another process than the tableau's, a time outside of it, a ``told`` of another length.
    """
    instance("tableau", tableau, Tableau)
    require_process(process)
    if process.mean is not None or tableau.mean is not None:
        raise ValueError(f"process={process!r} reverts to a mean; allowed: one that does not")
    if tableau.process not in (None, process):
        raise ValueError(f"process={process!r}, but tableau {tableau.name!r} was made for {tableau.process!r}")
    kind = "vp" if process.variance_preserving else "flow" if isinstance(process, RectifiedFlow) else "other"
    if tableau.prediction == "score" or (tableau.prediction == "v" and kind == "other"):
        tableau = tableau.in_terms_of(process, "eps")
    times = tableau.times
    given = told is not None and not isinstance(told, Convention)
    if not given:
        convention = told or Convention(scale=_FLOW_TIMES if kind == "flow" else 1.0)
        told = _told(convention, process, tableau)
    alpha, sigma = process.alpha(times), process.sigma(times)
    return PortableTable(tableau, alpha, sigma, told, kind, source, given if shifted is None else shifted)


def _told(convention: Convention, process: Process, tableau: Tableau) -> Array:
    """What a network is told at the nodes; 0 where it is not called and the clock is infinite, as λ of the data is."""
    told = np.array(convention.told(process, tableau.times))
    silent = ~np.isfinite(told)
    silent[list(tableau.evaluated)] = False
    told[silent] = 0.0
    return told
