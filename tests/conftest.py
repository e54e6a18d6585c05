"""Hypothesis profiles: ``default`` for CI, ``--hypothesis-profile=thorough`` for a long look; one torch thread."""

import hypothesis
import pytest
import quick_runs
import torch

pytest_plugins = ["pytester"]  # runs pytest inside a test
hypothesis.settings.register_profile("default", max_examples=100, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)  # tests run side by side


@pytest.fixture(scope="session", autouse=True)
def _what_this_run_computes(request, tmp_path_factory):
    """All workers of a run share one folder of results."""
    base = tmp_path_factory.getbasetemp()
    quick_runs.FOLDER = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    quick_runs.FOLDER.mkdir(exist_ok=True)
