"""The one password of the tests: whatever a test or a program of it says must not contain it.

`tests/conftest.py` looks: at what was printed and logged, at what programs said into pipes, at how a test failed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SECRET = "pw-n3ver-to-be-shown"
WRONG = f"wrong-{SECRET}"
SHOWN = "the password of the tests was shown"


def fail_if_shown(report: pytest.TestReport) -> None:
    """Turn the report of a test that showed the password into one of a failure that says where.

    One that has failed anyway keeps its reason, and says so beside it.
    """
    places = [name for name, text in report.sections if SECRET in text]
    if SECRET in report.longreprtext:
        places.append("its own report")
    if places and report.failed:
        report.sections.append((SHOWN, ", ".join(places)))
    elif places:
        report.outcome = "failed"
        report.longrepr = f"{SHOWN}: {', '.join(places)}"


@contextmanager
def reading_along(note: Callable[[str], None]) -> Iterator[None]:
    """Note what programs say into the pipes of whoever started them, as far as that is read to its end.

    What they say without a pipe is captured like a test's own words.
    """
    communicate = subprocess.Popen.communicate

    def communicating(process: subprocess.Popen[Any], *arguments: Any, **options: Any) -> tuple[Any, Any]:
        said = communicate(process, *arguments, **options)
        for stream in said:
            if stream:
                note(stream if isinstance(stream, str) else stream.decode("utf-8", "replace"))
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", communicating)
        yield
