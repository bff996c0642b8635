"""The one password of the tests: whatever a test prints or logs must not contain it, and `tests/conftest.py` looks."""

from __future__ import annotations

import pytest

SECRET = "pw-n3ver-to-be-shown"
WRONG = f"wrong-{SECRET}"


def fail_if_shown(report: pytest.TestReport) -> None:
    """Turn the report of a test that showed the password into one of a failure that says where."""
    places = [name for name, text in report.sections if SECRET in text]
    if places and not report.failed:
        report.outcome = "failed"
        report.longrepr = f"the password of the tests was shown: {', '.join(places)}"
