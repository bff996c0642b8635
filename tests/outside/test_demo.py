"""The demo, on a few files, in a plain pipe; and its own checks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from tests.servers.fixtures import require
from tests.servers.secret import SECRET

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("jobq_demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["jobq_demo"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_it_kills_a_worker_and_every_total_agrees() -> None:
    """The largest files only, so that the worker that is killed surely holds some."""
    done = subprocess.run([sys.executable, DEMO, "--limit", "60"], capture_output=True, text=True, timeout=180)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicates answered from the cache   60" in done.stdout
    assert "killed with" in done.stdout
    assert "Every total agrees with a plain loop" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_it_does_the_same_on_a_server_that_it_starts(kind: Literal["redis", "valkey"]) -> None:
    require(kind)

    done = subprocess.run(
        [sys.executable, DEMO, "--limit", "40", "--storage", kind], capture_output=True, text=True, timeout=180
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every total agrees with a plain loop" in done.stdout


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        (f"redis://:{SECRET}@127.0.0.1:1", "redis://127.0.0.1:1/0 is unavailable"),
        ("redis", "redis-server is missing: install it"),
        ("memory://", "lives inside one process"),
    ],
)
def test_a_storage_that_is_not_there_is_told(storage: str, told: str) -> None:
    """Without a traceback, and without the password."""
    done = subprocess.run(
        [sys.executable, DEMO, "--limit", "1", "--storage", storage],
        env=os.environ | {"PATH": "/nowhere", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    printed = done.stdout + done.stderr

    assert done.returncode == 1
    assert told in printed
    assert SECRET not in printed
    assert "Traceback" not in printed


def test_a_total_that_differs_is_named(demo: ModuleType) -> None:
    """A demo that cannot fail would show nothing."""
    true = demo.Totals(files=3, lines=10, functions=2, classes=1, imports=4, unparsed=0)
    found = demo.Totals(files=3, lines=11, functions=2, classes=1, imports=4, unparsed=0)

    assert demo.differences(found, true) == ["lines: the queue counted 11, a plain loop 10"]
    assert demo.differences(true, true) == []


def test_a_file_that_does_not_parse_is_a_result(demo: ModuleType, tmp_path: Path) -> None:
    """Some of the standard library's test data is wrong on purpose."""
    path = tmp_path / "wrong.py"
    path.write_text("def (:\n", encoding="utf-8")

    report = demo.read_module(path)

    assert report.lines == 1
    assert report.reason.startswith("SyntaxError")
