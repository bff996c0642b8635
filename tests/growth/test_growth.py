"""The growth run finds what grows: its sums, and short scenes on real storages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from growth.place import opened
from growth.sampling import Sample, megabytes_a_minute, risen
from growth.scenes import backoff
from jobq import MemoryStorage

ROOT = Path(__file__).parents[2]


def samples(*, memory: float = 0.0, tasks: float = 0.0) -> list[Sample]:
    """A minute of looks at a process that grows by so much in each second."""
    return [Sample(float(at), round(50e6 + memory * at), round(5 + tasks * at), 3, 20, 0) for at in range(60)]


def test_memory_is_told_by_its_slope() -> None:
    assert megabytes_a_minute(samples(memory=2**20)) == pytest.approx(60.0)
    assert megabytes_a_minute(samples()) == 0.0


def test_a_count_that_creeps_up_is_told() -> None:
    assert risen(samples(tasks=1.0), "tasks") == 40.0
    assert risen(samples(), "tasks") == 0.0
    assert risen(samples(tasks=1.0), "threads") == 0.0


@pytest.mark.slow
def test_a_flood_grows_nothing_but_the_backlog() -> None:
    """Seconds say nothing of memory, but all that is counted must hold already."""
    command = [sys.executable, "-m", "growth", "--storage", "file", "--only", "flood", "--minutes", "0.07", "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)

    rows = {row["name"].removeprefix("flood: "): row["passed"] for row in json.loads(done.stdout)["rows"]}
    counted = {name for name, passed in rows.items() if passed is not None and not name.startswith("memory")}
    assert counted == {
        "jobs that are missing from the backlog",
        *(f"{what} more at the end" for what in ("tasks", "threads", "descriptors", "connections")),
    }
    assert [name for name in counted if not rows[name]] == []
    assert done.returncode == (False in rows.values())


@pytest.mark.slow
def test_jobs_in_backoff_delay_no_call_on_files() -> None:
    """A thousand of them; ten thousand take ten times as long to fail."""
    with opened("file") as place:
        (row,) = backoff(place, 0, failed=1000, calls=200)

    assert row.passed, row


@pytest.mark.slow
def test_jobs_in_backoff_delay_no_call_in_memory() -> None:
    (row,) = backoff(InMemory(), 0, failed=1000, calls=200)

    assert row.passed, row


class InMemory:
    """A place whose storage ends with its object."""

    def storage(self) -> MemoryStorage:
        return MemoryStorage()

    def size(self) -> int:
        return 0

    def connections(self) -> int:
        return 0
