"""A pytest plugin: three assertions with which a package's maintainers keep their samplers honest.

Installed with this package, it gives every test the fixture ``sampler_audit``::

    def test_my_sampler(sampler_audit):
        sampler_audit.assert_order(my_sampler, 2, convention="sigmas")
        sampler_audit.assert_exact_on_constants(my_sampler, convention="sigmas")
        sampler_audit.assert_no_wasted_calls(my_sampler, convention="sigmas")

The functions can also be imported from here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deis_analysis.audit.report import Report


def _report(sampler: Any, options: dict[str, Any]) -> Report:
    from deis_analysis.audit import audit_sampler  # only tests that use the plugin load the package

    report = audit_sampler(sampler, **options)
    failed = [f for f in report.findings if f.code == "RUN-FAILED"]
    if failed:
        pytest.fail(f"{report.spec}: {failed[0].message}", pytrace=False)
    return report


def assert_order(sampler: Any, order: int, convention: str = "sigmas", *, start: str = "exact", **options: Any) -> None:
    """Fail unless the sampler converges with ``order`` on a smooth mixture with exact flow, within 0.4 on both sides.

    Args:
        sampler: a function in a ``convention``, a spec, or a `Subject`, see `audit_sampler`.
        start: ``"exact"`` first states, or the sampler's ``"own"``; samplers with noise: order of the law.
        options: of `audit_sampler` and of the function.
    """
    from deis_analysis.validate import choose, positive_int

    positive_int("order", order), choose("start", start, ("exact", "own"))
    report = _report(sampler, options if isinstance(sampler, str) else {"convention": convention, **options})
    exact = report.order_without_startup
    found = exact if start == "exact" and exact is not None else report.observed_order
    if found is None:
        pytest.fail(f"{report.spec}: its order could not be measured", pytrace=False)
    if abs(found - order) > 0.4:
        pytest.fail(f"{report.spec}: order {found:.2f} with {start} start, expected {order}", pytrace=False)


def assert_exact_on_constants(sampler: Any, convention: str = "sigmas", **options: Any) -> None:
    """Fail unless the sampler is exact where ε and x₀ are constant, and tells the model the level that it uses."""
    report = _report(sampler, options if isinstance(sampler, str) else {"convention": convention, **options})
    wrong = [f for f in report.findings if f.code == "INV-CONSTANTS" or f.code.startswith("SCH-")]
    wrong = [f for f in wrong if f.code == "INV-CONSTANTS" or f.severity == "error"]
    if wrong:
        pytest.fail(f"{report.spec}: {wrong[0].code}: {wrong[0].message}", pytrace=False)


def assert_no_wasted_calls(sampler: Any, convention: str = "sigmas", **options: Any) -> None:
    """Fail if the output of a model call is not used, or if the model is asked the same question twice."""
    report = _report(sampler, options if isinstance(sampler, str) else {"convention": convention, **options})
    wrong = [f for f in report.findings if f.code in ("NFE-WASTED", "NFE-REPEATED")]
    if wrong:
        pytest.fail(f"{report.spec}: {wrong[0].code}: {wrong[0].message}", pytrace=False)


@pytest.fixture
def sampler_audit() -> SimpleNamespace:
    """The three assertions."""
    return SimpleNamespace(
        assert_order=assert_order,
        assert_exact_on_constants=assert_exact_on_constants,
        assert_no_wasted_calls=assert_no_wasted_calls,
    )
