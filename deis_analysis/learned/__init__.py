"""Networks as models: training on points and on images, what a network is told, its folder, and loading any network."""

from deis_analysis.learned.convention import Convention, ImageModel, standard_convention
from deis_analysis.learned.dsm import TRAINED, TrainingRecord, train_dsm
from deis_analysis.learned.folder import describe_process, equivalent_scheduler, process_from, save_folder
from deis_analysis.learned.loading import load, shipped
from deis_analysis.learned.mlp import MLP
from deis_analysis.learned.network import Carried, Network, time_floor
from deis_analysis.learned.training import Plan, Training, denoising_loss, train_images

__all__ = [
    "MLP",
    "TRAINED",
    "Carried",
    "Convention",
    "ImageModel",
    "Network",
    "Plan",
    "Training",
    "TrainingRecord",
    "denoising_loss",
    "describe_process",
    "equivalent_scheduler",
    "load",
    "process_from",
    "save_folder",
    "shipped",
    "standard_convention",
    "time_floor",
    "train_dsm",
    "train_images",
]
