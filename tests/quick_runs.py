"""What an experiment computes with its quick settings."""

from __future__ import annotations

from typing import Any

import pandas as pd


def quick(module: Any, **changes: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(frame, configuration) of a quick run, with changes to the configuration."""
    config = {**module.CONFIG, **module.QUICK, **changes}
    return module.compute(config, lambda share: None), config
