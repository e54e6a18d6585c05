"""The audit: read any sampler's table off the sampler, and say which method it is and what is wrong with it.

Names are loaded when they are used: the pytest plugin in this package must not load the rest into every test run.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "CODES": "findings",
    "Finding": "findings",
    "FunctionSubject": "subject",
    "Prepared": "subject",
    "Report": "report",
    "Subject": "subject",
    "TableSubject": "subject",
    "audit_file": "child",
    "audit_sampler": "report",
    "catalogue": "specs",
    "facts": "html_page",
    "function_subject": "subject",
    "junit": "ci",
    "overview": "html_page",
    "page": "html_page",
    "placed": "subject",
    "sarif": "ci",
    "subject_of": "specs",
    "summary": "html_page",
}

__all__ = [
    "CODES",
    "Finding",
    "FunctionSubject",
    "Prepared",
    "Report",
    "Subject",
    "TableSubject",
    "audit_file",
    "audit_sampler",
    "catalogue",
    "facts",
    "function_subject",
    "junit",
    "overview",
    "page",
    "placed",
    "sarif",
    "subject_of",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"deis_analysis.audit.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
