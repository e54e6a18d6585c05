"""A small one of what `make soak` does for long."""

from __future__ import annotations

import numpy as np
import soak


def test_runs_and_audits_leave_no_memory_behind():
    assert soak.memory(200) < soak.MOST_MB


def test_the_harness_sees_what_it_looks_for(monkeypatch):
    """Planted: runs that keep their result."""
    kept, run = [], soak.da.run

    def keeping(*args, **kwargs):
        kept.append(np.ones(100_000))  # all of it written to, or it would take no memory
        return run(*args, **kwargs)

    monkeypatch.setattr(soak.da, "run", keeping)
    monkeypatch.setattr(soak.da, "audit_sampler", lambda *_, **__: None)
    assert soak.memory(200) > soak.MOST_MB


def test_a_run_that_is_killed_and_started_again_ends_as_in_peace(tmp_path):
    found, _, differ = soak.killed(("transfer", "convergence"), 2, 0, tmp_path)
    assert len(found) == 2
    assert differ == []
