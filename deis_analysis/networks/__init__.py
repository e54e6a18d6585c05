"""Networks as models: training on points and on images, what a network is told, its folder, and loading any network."""

from deis_analysis.networks.convention import ImageModel, standard_convention
from deis_analysis.networks.diffusers_folder import scheduler_process
from deis_analysis.networks.dsm import TRAINED, TrainingRecord, train_dsm
from deis_analysis.networks.folder import describe_process, equivalent_scheduler, process_from, save_folder
from deis_analysis.networks.loading import load, shipped
from deis_analysis.networks.mlp import MLP
from deis_analysis.networks.network import Carried, Network, time_floor
from deis_analysis.process.convention import Convention

__all__ = [
    "MLP",
    "TRAINED",
    "Carried",
    "Convention",
    "ImageModel",
    "Network",
    "TrainingRecord",
    "describe_process",
    "equivalent_scheduler",
    "load",
    "process_from",
    "save_folder",
    "scheduler_process",
    "shipped",
    "standard_convention",
    "time_floor",
    "train_dsm",
]
