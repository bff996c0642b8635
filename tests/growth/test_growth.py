"""The growth run finds what grows: its sums, and a scene on a real storage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from growth.sampling import Sample, megabytes_a_minute, risen

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


def test_a_flood_grows_nothing_but_the_backlog() -> None:
    """Two seconds say nothing of memory, but all that is counted must hold already."""
    command = [sys.executable, "-m", "growth", "--storage", "file", "--only", "flood", "--minutes", "0.04", "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)

    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["flood: jobs that are missing from the backlog"]["passed"], done.stdout
    assert done.returncode == (not all(row["passed"] in (True, None) for row in rows.values()))
