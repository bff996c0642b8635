"""What a run is made of: written to a file once, and read by every process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

Kind: TypeAlias = Literal["file", "redis", "valkey", "cluster"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RESULT_TTL = 10 * 86_400.0
"""Seconds; nothing expires while a soak runs, so that everything can be surveyed at its end."""
WRONG_BY = 3600.0
"""Seconds by which the wall clocks of some processes are wrong."""


class Plan(msgspec.Struct, frozen=True):
    """All settings of one run."""

    storage: Kind
    minutes: float
    jobs: int
    seed: int
    begins_at: float = 0.0
    """When producers begin, by CLOCK_MONOTONIC, which all processes of a machine share."""
    producers: int = 2
    workers: int = 4
    reapers: int = 2
    waiters: int = 1
    concurrency: int = 16
    lease: float = 2.0
    urls: tuple[str, ...] = ()
    """Where the storage is; a part takes the one that its index chooses. A directory has none."""

    @property
    def chaos_seconds(self) -> float:
        """How long jobs are handed over and the nemesis is at work; what is left of the minutes is for the end."""
        return max(5.0, self.minutes * 60 - 14.0)

    def offset(self, role: str, index: int) -> float:
        """Return by how many seconds the wall clock of a process is wrong."""
        match role, index:
            case (("producer" | "worker"), 1):
                return WRONG_BY
            case ("reaper", 1) | ("waiter", 0):
                return -WRONG_BY
        return 0.0

    def write(self, directory: Path) -> None:
        (directory / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def read(cls, directory: Path) -> Plan:
        return msgspec.json.decode((directory / "plan.json").read_bytes(), type=cls)
