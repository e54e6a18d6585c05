"""What is diffused: processes, their schedules and time grids, and what a model of one predicts."""

from deis_analysis.process.convention import Model as Model
from deis_analysis.process.grids import check_grid as check_grid
from deis_analysis.process.grids import grid as grid
from deis_analysis.process.process import PREDICTIONS as PREDICTIONS
from deis_analysis.process.process import VARIABLES as VARIABLES
from deis_analysis.process.process import Array as Array
from deis_analysis.process.process import MeanReverting as MeanReverting
from deis_analysis.process.process import Process as Process
from deis_analysis.process.process import require_process as require_process
