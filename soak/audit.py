"""Audit files: what each process wrote down, a line at a time, before and after whatever it did.

A line is ``instant fact values…``: the instant in microseconds of CLOCK_MONOTONIC, which all processes share; a word;
and mostly the number of a job. A line is one write, so it survives the death of its process. The facts:

    producer   ask N                  an enqueue is about to be called
               told N status state    it returned
               unknown N code         it raised: the outcome is unknown, so it is asked again
               full N                 it raised `StorageFullError`: nothing was stored
               cancel N               a cancel is about to be called
               cancel-told N status   it returned
               cancel-unknown N code  it raised, and is asked again
    worker     start N token attempt  a handler began
               end N token            it is about to return or to raise
               aborted N token reason it was cancelled
               completed N token, failed N code, failing N attempt, requeued N, cancelled N, lost N     events
    reaper     stalled N, leader, follower     events
    waiter     wait N                 a wait is about to be called
               answer N token, answer-failed N code, answer-cancelled N     how it ended
               wait-unknown N code, absent N     it is called again
               timeout N              it gave up
    surveyor   found N state attempts token code     what the storage holds at the end; ``-`` stands for none
               gone N                 it holds no such job
    nemesis    killed part, terminated part, frozen part, thawed part, died part code     what became of a process
               holding part           while it is frozen nobody can write to the storage
               still seconds          the machine had so long no time for the nemesis, which looks 50 times a second
               fault name, healed name     trouble with the storage
               left count name        what the storage holds at the end and should not
               cut count, reconnected count     connections ended, and made again
    everybody  serving                it begins
               stopped                it ends in order
               trouble code           an error of the documented kinds, by an event
               unexpected text…       anything else that was raised
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SEGMENT = 256 * 1024
"""Bytes after which a new file is begun: a process that may not write beyond a limit can still write its audit."""


class Audit:
    """Appends lines to the files of one part."""

    def __init__(self, directory: Path, part: str, incarnation: int = 0) -> None:
        self._stem = directory / "audit" / f"{part}.{incarnation:04}"
        self._segment = 0
        self._left = 0
        self._descriptor = -1

    def note(self, fact: str, *values: object) -> None:
        line = " ".join((str(time.monotonic_ns() // 1000), fact, *map(str, values))).replace("\n", "|") + "\n"
        data = line.encode()
        if self._left < len(data):
            self._begin_segment()
        os.write(self._descriptor, data)
        self._left -= len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._left = 0

    def _begin_segment(self) -> None:
        self.close()
        path = f"{self._stem}.{self._segment:04}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._segment += 1
        self._left = SEGMENT


class Line(NamedTuple):
    """One fact."""

    instant: int
    fact: str
    values: Sequence[str]


class Source(NamedTuple):
    """All files of one incarnation of a part, in order."""

    part: str
    """Such as ``worker-2``."""
    incarnation: int
    paths: Sequence[Path]

    @property
    def role(self) -> str:
        return self.part.partition("-")[0]

    @property
    def name(self) -> str:
        return f"{self.part}.{self.incarnation:04}"

    def lines(self) -> Iterator[Line]:
        """Yield what was written in order; a last line that was cut off counts as not written."""
        for path in self.paths:
            with path.open(encoding="utf-8", errors="replace") as file:
                for text in file:
                    if text.endswith("\n"):
                        instant, fact, *values = text.split()
                        yield Line(int(instant), fact, values)


def sources(directory: Path, part: str = "*") -> list[Source]:
    """Return who wrote audit files there: all, or the incarnations of one part."""
    found: dict[tuple[str, int], list[Path]] = {}
    for path in sorted((directory / "audit").glob(f"{part}.*.*")):
        name, incarnation, _ = path.name.split(".")
        found.setdefault((name, int(incarnation)), []).append(path)
    return [Source(name, incarnation, paths) for (name, incarnation), paths in found.items()]
