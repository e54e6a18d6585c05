"""Networks as models: training on points and on images, what a network is told, and the folder it is kept in."""

from deis_analysis.learned.convention import Convention, ImageModel, standard_convention
from deis_analysis.learned.dsm import TRAINED, TrainingRecord, train_dsm
from deis_analysis.learned.folder import describe_process, equivalent_scheduler, process_from, save_folder
from deis_analysis.learned.mlp import MLP
from deis_analysis.learned.training import Plan, Training, denoising_loss, train_images

__all__ = [
    "MLP",
    "TRAINED",
    "Convention",
    "ImageModel",
    "Plan",
    "Training",
    "TrainingRecord",
    "denoising_loss",
    "describe_process",
    "equivalent_scheduler",
    "process_from",
    "save_folder",
    "standard_convention",
    "train_dsm",
    "train_images",
]
