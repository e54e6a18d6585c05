"""What several tests need and is dear: computed once in a run of the tests, by the first of its processes that asks."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest

from deis_analysis.storage import atomic
from experiments.models import studies

T = TypeVar("T")
FOLDER = Path()  # of this run of the tests, all its processes see it; set in conftest.py
ALIGNED: dict[str, dict[str, Any]] = {  # beyond QUICK, so that several tests can take the same results:
    "network_work_precision": {"samples": 2},  # one certified flow of two samples per network
    "network_samples": {"samples": 2, "shown": 2},
    "gpu_validation": {"samples": 2, "many": 8, "batch": 4},
    "paper_claims": {"samples": 128},  # test_paper_claims.py says which claims hold on so many
}


def once(name: str, make: Callable[[], T]) -> T:
    """``make()`` as the first who asked under this name made it; who comes meanwhile waits."""
    path = FOLDER / f"{name}.pkl"
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with atomic(path) as temporary:
                temporary.write_bytes(pickle.dumps(make()))
    return pickle.loads(path.read_bytes())


def references() -> Path:
    """Where certified flows of networks are kept in this run: none is taken from an earlier one."""
    return FOLDER / "references"


def shared(compute: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """An experiment's ``compute`` that computes each configuration once."""

    def first(config: dict[str, Any], progress: Callable[[float], None]) -> pd.DataFrame:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(studies, "reference_folders", lambda net: [references()])
            return compute(config, progress)

    @functools.wraps(compute)
    def inner(config: dict[str, Any], progress: Callable[[float], None]) -> pd.DataFrame:
        mark = hashlib.sha256(json.dumps([compute.__module__, config], sort_keys=True).encode()).hexdigest()
        return once(f"{compute.__module__}-{mark[:16]}", lambda: first(config, progress))

    return inner


def settings(module: Any) -> dict[str, Any]:
    """The quick configuration of an experiment."""
    return {**module.CONFIG, **module.QUICK, **ALIGNED.get(module.NAME, {})}


def quick(module: Any, **changes: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(frame, configuration) of a quick run, with changes to the configuration.

    For tests that replace parts of what computes: `quick_anew`.
    """
    config = settings(module) | changes
    return shared(module.compute)(config, lambda share: None), config


def quick_anew(module: Any, **changes: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A quick run of the module as it is now."""
    config = settings(module) | changes
    return module.compute(config, lambda share: None), config
