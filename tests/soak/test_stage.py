"""Where a soak takes place: what it says about processes is so."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from soak.stage import FileStage
from soak.troupe import Player
from tests.servers.waiting import wait_for

_PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE IF NOT EXISTS jobs (state, due, lease_until)")
connection.execute(sys.argv[2])
connection.execute("SELECT * FROM jobs").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


class _Reader(Player):
    """A process that has begun a transaction, and waits."""

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def stage(tmp_path: Path) -> FileStage:
    (tmp_path / "jobs").mkdir()
    return FileStage(tmp_path)


@pytest.fixture
def player(tmp_path: Path) -> Iterator[_Reader]:
    player = _Reader("worker", 0, tmp_path)
    yield player
    player.close()


@pytest.mark.parametrize(("begin", "holds"), [("BEGIN IMMEDIATE", True), ("BEGIN", False)])
def test_a_frozen_process_is_told_by_the_lock_that_it_has(
    stage: FileStage, player: _Reader, tmp_path: Path, begin: str, holds: bool
) -> None:
    """While it stands still nobody can write, which the check must not put down to the queue."""
    player.start(str(tmp_path / "jobs" / "jobq.sqlite3"), begin)

    player.send(signal.SIGSTOP)
    wait_for(lambda: player.stands_still or None, "process that stands still")

    assert player.process is not None
    assert stage.held_by(player.process) is holds


def test_a_lock_that_was_given_back_is_not_held(stage: FileStage, player: _Reader, tmp_path: Path) -> None:
    """Most processes have written at some time."""
    player.start(str(tmp_path / "jobs" / "jobq.sqlite3"), "SELECT 1")

    assert player.process is not None
    assert not stage.held_by(player.process)
