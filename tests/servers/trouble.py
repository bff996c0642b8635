"""What the fault proxy is asked to do, and what it has seen: shared by all of its connections, in its thread."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from tests.servers.waiting import PATIENCE

Predicate: TypeAlias = Callable[[Sequence[bytes]], bool]
"""Asked about a request: the command's name as it was sent, then its arguments."""


class Direction(StrEnum):
    """Which way bytes go."""

    REQUESTS = "requests"
    REPLIES = "replies"


class Ending(StrEnum):
    """What becomes of a connection after a fault."""

    CLOSE = "close"
    """Both sides see an orderly end (FIN)."""
    RESET = "reset"
    """Both sides see a reset (RST)."""
    HALF_CLOSE = "half close"
    """The client reads the end, but what it writes still reaches the server."""
    SILENCE = "silence"
    """It stays open and nothing passes any more, not even the end of the other side; `heal` resets it."""
    HOLD = "hold"
    """It stays open, and `heal` lets what was held flow on: nothing is lost."""


@dataclass(eq=False)
class Fault:
    """Trouble for one command; see `FaultProxy.drop_request`."""

    direction: Direction
    name: str | None
    ending: Ending
    nth: int = 1
    times: int = 1
    when: Predicate | None = None
    seen: int = 0
    """How many requests it might have hit."""
    done: int = 0
    """How many it has hit."""
    _happened: threading.Event = field(default_factory=threading.Event)

    def chooses(self, words: Sequence[bytes]) -> bool:
        """Count a request, and tell whether it is to be hit."""
        if self.name is not None and self.name.upper() != command_name(words):
            return False
        if self.when is not None and not self.when(words):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times

    def happen(self) -> None:
        self.done += 1
        self._happened.set()

    def wait(self, within: float = PATIENCE) -> None:
        """Wait in a test's thread until it has hit."""
        if not self._happened.wait(within):
            raise TimeoutError(f"no {self.name or 'command'} was hit within {within:g} s")


@dataclass
class Line:
    """The state of the line, and what was counted on it."""

    delays: dict[Direction, float] = field(default_factory=dict)
    """Seconds that everything takes longer."""
    pauses: dict[Direction, float] = field(default_factory=dict)
    """Where bytes go one by one: seconds between two."""
    faults: list[Fault] = field(default_factory=list)
    passes: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, nothing passes."""
    connections_ever: int = 0
    reads: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    faults_done: Counter[str] = field(default_factory=Counter)
    errors: list[Exception] = field(default_factory=list)
    """Defects of the proxy or of a test's predicate, raised when it is closed."""

    def __post_init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.delays.clear()
        self.pauses.clear()
        self.faults.clear()
        self.passes.set()

    def choose(self, words: Sequence[bytes]) -> Fault | None:
        """Count a request, and return the first fault that is to hit it."""
        self.commands[command_name(words)] += 1
        choosing = [fault for fault in self.faults if fault.chooses(words)]
        return choosing[0] if choosing else None

    def happened(self, fault: Fault) -> None:
        self.faults_done[f"{fault.direction} {fault.ending}"] += 1
        fault.happen()


def command_name(words: Sequence[bytes]) -> str:
    return words[0].decode(errors="replace").upper() if words else ""
