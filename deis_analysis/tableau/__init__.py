"""A sampler as numbers: the table, the fold that runs it, and its text."""

from deis_analysis.tableau.fold import fold as fold
from deis_analysis.tableau.tableau import Builder as Builder
from deis_analysis.tableau.tableau import Butcher as Butcher
from deis_analysis.tableau.tableau import Model as Model
from deis_analysis.tableau.tableau import Tableau as Tableau
from deis_analysis.tableau.tableau import Trajectory as Trajectory
from deis_analysis.tableau.tableau import run as run
