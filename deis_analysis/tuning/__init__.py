"""Choose and tune a sampler for a model: trajectories to learn from, and time grids made for one model.

* `bank`: trajectories of a model on a fine grid, run once and used by all that follows.
* `grids`: the door to the grids; `denoising` (entropic, AYS), `score_path` (score-optimal), `jumps` (GITS, OSS) and
  `weight_bound` (DM) hold one mathematics each.
"""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(
    __name__,
    {
        "bank": "Bank trajectories",
        "grids": "GRIDS grid model_calls",
    },
)
