"""The audit of a file of the user's, which is code: in a process of its own, with a time limit.

What it prints goes to stderr; when it hangs, forks, or leaves the process by ``os._exit``, the report says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from deis_analysis.audit.findings import Finding
from deis_analysis.audit.report import MOST_CALLS, Report, audit_sampler
from deis_analysis.audit.specs import subject_of
from deis_analysis.audit.subject import parse_spec, placed
from deis_analysis.process.process import Process
from deis_analysis.validate import between, checked, positive, positive_int

TIMEOUT = 120.0  # seconds


@checked
def audit_file(
    spec: str, *, nfe: int = 20, process: Process | None = None, kind: str | None = None, timeout: float = TIMEOUT
) -> Report:
    """The report on ``path/file.py:function?…``, made by a child process.

    Args:
        nfe, process, kind: see `audit_sampler` and `placed`. timeout: seconds until it is ended, with its own children.

    Raises:
        ValueError: an unknown file, function or option; in the file's code anything is in the report.
    """
    positive(timeout=timeout)
    between("timeout", timeout, 0.0, 1e6)
    positive_int("nfe", nfe, most=MOST_CALLS)
    parse_spec(spec)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_audit, args=(theirs, spec, nfe, process, kind), daemon=False)
    child.start()
    theirs.close()
    answer: Any = None
    try:
        if ours.poll(timeout):
            with contextlib.suppress(EOFError):
                answer = ours.recv()
            if answer is None:
                child.join(1.0)
                answer = _failed(spec, f"it ended the process, with status {child.exitcode}, before there was a report")
        else:
            answer = _failed(spec, f"it did not end within {timeout:g} s")
    finally:
        _end(child)
    if isinstance(answer, ValueError):
        raise answer
    report: Report = answer
    return report


def _failed(spec: str, text: str) -> Report:
    return Report.failed(spec, [Finding("RUN-FAILED", "error", text)])


def _alone(report: Report) -> Report:
    """The report without the sampler, which cannot leave its process."""
    found = report.convergence
    return replace(report, convergence=found and replace(found, case=None, fine=None))


def _end(child: Any) -> None:
    """End the child and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _audit(pipe: Connection, spec: str, nfe: int, process: Process | None, kind: str | None) -> None:
    """In the child: the report, or the ValueError that says what is wrong with the question."""
    os.setsid()  # a group of its own, which `_end` can reach
    os.dup2(2, 1)
    try:
        answer: Any = _alone(audit_sampler(placed(subject_of(spec), process, kind), nfe=nfe))
    except ValueError as error:
        answer = ValueError(str(error))
    except (Exception, SystemExit) as error:
        answer = _failed(spec, f"the audit of it failed: {type(error).__name__}: {error}")
    pipe.send(answer)
