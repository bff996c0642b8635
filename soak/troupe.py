"""The processes of a soak: started, restarted when they died, frozen and thawed, ended."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from soak.audit import Audit
from soak.plan import Plan

_ROOT = Path(__file__).resolve().parents[1]
_UNLIMITED = resource.RLIM_INFINITY


class Player:
    """One part, and the process that plays it now."""

    def __init__(self, role: str, index: int, directory: Path) -> None:
        self.role = role
        self.index = index
        self.name = f"{role}-{index}"
        self.incarnation = 0
        self.ended = False
        """Whether it has done all that it had to do."""
        self.terminated = False
        """Whether it was asked to end."""
        self.frozen = False
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def title(self) -> str:
        return f"{self.name}.{self.incarnation:04}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def process(self) -> int | None:
        """The number of its process, if there is one."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def stopped(self) -> bool:
        """Whether its process is frozen, by us or by itself."""
        return self._process is not None and _stands_still(Path(f"/proc/{self._process.pid}"))

    @property
    def stands_still(self) -> bool:
        """Whether it is frozen to its last thread: one that waits for a disk goes on until it has been answered."""
        return self._process is not None and all(map(_stands_still, Path(f"/proc/{self._process.pid}/task").glob("*")))

    def start(self) -> None:
        self.incarnation += 1
        self.terminated = self.frozen = False
        command = [sys.executable, "-m", "soak.process", self.role, str(self.index), str(self.incarnation)]
        with (self._directory / "logs" / f"{self.name}.log").open("ab") as log:
            # In a group of its own, so that Ctrl-C is left to the conductor.
            self._process = subprocess.Popen(
                [*command, str(self._directory)], cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def poll(self) -> int | None:
        """Return the exit code if it has ended since it was started."""
        return None if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    def limit_files(self, size: int | None) -> None:
        """Let nothing be written beyond so many bytes of a file; None for no limit."""
        if self._process is not None and self.alive:
            limit = _UNLIMITED if size is None else size
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit, _UNLIMITED))

    def wait(self, seconds: float) -> int | None:
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


class Troupe:
    """All parts."""

    def __init__(self, plan: Plan, directory: Path, audit: Audit) -> None:
        roles = (("producer", plan.producers), ("worker", plan.workers), ("reaper", plan.reapers))
        self.players = [
            Player(role, index, directory)
            for role, count in (*roles, ("waiter", plan.waiters))
            for index in range(count)
        ]
        self._audit = audit

    def of(self, *roles: str) -> list[Player]:
        return [player for player in self.players if player.role in roles]

    def start(self) -> None:
        for player in self.players:
            player.start()

    def attend(self) -> None:
        """Start again whoever died; those who ended in order, having done their part, stay away."""
        for player in self.players:
            code = None if player.ended else player.poll()
            if code is None:
                continue
            self._audit.note("died", player.title, code)
            if code == 0 and not player.terminated:
                player.ended = True
            else:
                player.start()

    def end(self, players: Iterable[Player], seconds: float = 10.0) -> None:
        """Ask to end in order, and note who did not."""
        players = [player for player in players if player.alive]
        for player in players:
            player.ended = True
            player.send(signal.SIGCONT)
            player.send(signal.SIGTERM)
        until = time.monotonic() + seconds
        for player in players:
            code = player.wait(max(0.1, until - time.monotonic()))
            self._audit.note("died", player.title, "late" if code is None else code)

    def close(self) -> None:
        for player in self.players:
            player.ended = True
            player.send(signal.SIGKILL)
            player.wait(5.0)


def _stands_still(task: Path) -> bool:
    try:
        text = (task / "stat").read_text()
    except OSError:
        return False
    return text.rpartition(") ")[2][:1] == "T"
