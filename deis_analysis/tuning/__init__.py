"""Choose and tune a sampler for a model: `choose` among what is known, `tune` beyond, `grid`s that know the model."""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(
    __name__,
    {
        "bank": "Bank trajectories",
        "choice": "Choice choose",
        "grids": "GRIDS grid model_calls",
        "page": "choice_page",
        "target": "Target target_of",
        "together": "run_together",
        "tuned": "Tuned tune",
    },
)
