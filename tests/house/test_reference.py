"""The reference is complete: every public name, option, member, event, error code and exit code, with true defaults."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import jobq
import jobq.testing
from jobq.cli import exits
from jobq.events import QUEUE_EVENTS, REAPER_EVENTS
from tests.house.sources import ROOT

REFERENCE = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
COMMAND_LINE = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"`([^`\n]+)`", REFERENCE))))
CONFIGURED = [jobq.Queue, jobq.Reaper, jobq.LeaderElection, jobq.FileStorage, jobq.MemoryStorage, jobq.RedisStorage]
REQUIRED = inspect.Parameter.empty


@pytest.mark.parametrize("name", [*jobq.__all__, "RedisStorage", *jobq.testing.__all__])
def test_a_public_name_is_in_the_reference(name: str) -> None:
    """What can be imported can be looked up."""
    assert name in NAMED


@pytest.mark.parametrize("kind", CONFIGURED, ids=lambda kind: kind.__name__)
def test_the_options_and_their_defaults_are_those_of_the_reference(kind: Callable[..., Any]) -> None:
    """A default that has changed in silence is the worst kind of wrong."""
    parameters = inspect.signature(kind).parameters
    taken = {name: parameter.default for name, parameter in parameters.items()}

    assert _options_of(kind.__name__) == taken


@pytest.mark.parametrize("kind", [jobq.Queue, jobq.Reaper], ids=lambda kind: kind.__name__)
def test_every_public_member_is_in_the_reference(kind: type) -> None:
    """Whoever holds the object finds what it can do."""
    assert {name for name in vars(kind) if not name.startswith("_")} <= NAMED


def test_every_event_is_in_the_reference() -> None:
    """A listener is registered by a name that nobody can guess."""
    assert {*QUEUE_EVENTS, *REAPER_EVENTS} <= NAMED


def test_every_error_stands_in_the_reference_with_its_code() -> None:
    """Machines decide by the code."""
    kinds = [value for value in vars(jobq).values() if isinstance(value, type)]
    errors = {kind.__name__: kind.code for kind in kinds if issubclass(kind, jobq.JobQueueError)}

    assert dict(re.findall(r"^\| `(\w+Error)` \| `(\w+)` \|", REFERENCE, re.MULTILINE)) == errors


def test_the_exit_codes_are_those_that_the_command_tells() -> None:
    """Scripts are written from this table."""
    assert re.findall(r"^\| (\d+) \| (.+) \|$", COMMAND_LINE, re.MULTILINE) == list(exits.HELP)


def _options_of(name: str) -> dict[str, object]:
    """Return the options that a table of the reference lists, with their defaults."""
    _, _, table = REFERENCE.partition(f"| option of `{name}` | default | meaning |\n")
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`)? ?\|", table.partition("\n\n")[0], re.MULTILINE)
    return {option: ast.literal_eval(default) if default else REQUIRED for option, default in rows}
