"""Programs that end without a stop: soon, whatever runs, and without leaving a socket file or a connection."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults_redis.scenes import clients
from tests.servers.fixtures import Starter

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN = 2.0


@pytest.mark.parametrize("how", ["producing", "idle", "in the loop", "in a thread", "raising"])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.storage(k)) for k in ("memory", "file", "redis")])
@pytest.mark.slow
def test_a_program_ends_soon_without_a_stop(kind: str, how: str, start: Starter, tmp_path: Path) -> None:
    """Nobody waits for a worker that sleeps, a handler that does not end, or a caller that still waits."""
    server = start.server("redis") if kind == "redis" else None
    url = server.url if server else "memory://" if kind == "memory" else f"file://{tmp_path}/data"

    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.leaving", url, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert time.monotonic() - float(ended.stdout) < ENDS_WITHIN, ended.stderr
    assert ended.returncode == (7 if how == "raising" else 0), ended.stderr
    assert list(tmp_path.rglob("sockets/*")) == []
    assert server is None or clients(server, "jobq") == []
