"""Samplers that are not a table: they decide as they go, and return the table that was run. No order is claimed."""

from deis_analysis.steppers.adaptive import AdaptiveDPM
from deis_analysis.steppers.denoising_mcmc import Chains, exact_classifier, hand_over, langevin_gibbs, level_grid
from deis_analysis.steppers.evodiff import EVODiff
from deis_analysis.steppers.history import History, Traced
from deis_analysis.steppers.langevin import Langevin, PredictorCorrector
from deis_analysis.steppers.protocol import (
    STEPPERS,
    Simulation,
    Stepper,
    StepperRow,
    register_stepper,
    simulate,
)
from deis_analysis.steppers.thresholding import dynamic_thresholding, static_thresholding

__all__ = [
    "STEPPERS",
    "AdaptiveDPM",
    "Chains",
    "EVODiff",
    "History",
    "Langevin",
    "PredictorCorrector",
    "Simulation",
    "Stepper",
    "StepperRow",
    "Traced",
    "dynamic_thresholding",
    "exact_classifier",
    "hand_over",
    "langevin_gibbs",
    "level_grid",
    "register_stepper",
    "simulate",
    "static_thresholding",
]
