"""How soon work begins again whose worker was killed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from soak.audit import Line, Source

_ENDS = frozenset({"completed", "failed", "failing", "requeued", "cancelled", "lost", "aborted"})


class Orphan(NamedTuple):
    """A job that its worker was running when it was killed."""

    number: int
    token: int
    attempt: int
    killed_at: int


class Recovery(NamedTuple):
    """An orphan that began again, in microseconds."""

    orphan: Orphan
    started_at: int
    disturbed: bool
    """Whether the storage was in trouble meanwhile, or who claimed it next was struck as well."""

    @property
    def seconds(self) -> float:
        return (self.started_at - self.orphan.killed_at) / 1e6


class Orphans:
    """Follows one worker's lines: what it had begun and not settled is an orphan if it is killed."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[int, int]] = {}
        """By number, token and attempt."""

    def follow(self, line: Line) -> None:
        if line.fact == "start":
            self._running[int(line.values[0])] = int(line.values[1]), int(line.values[2])
        elif line.fact in _ENDS:
            self._running.pop(int(line.values[0]), None)

    def left(self, killed_at: int) -> Iterator[Orphan]:
        for number, (token, attempt) in self._running.items():
            yield Orphan(number, token, attempt, killed_at)


class Quiet:
    """When there was no trouble."""

    def __init__(self, troubles: Iterable[tuple[int, int]]) -> None:
        self._begins: list[int] = []
        self._latest: list[int] = []
        """By the beginning of a trouble, the latest end of it and all before."""
        for begin, end in sorted(troubles):
            self._latest.append(max(end, self._latest[-1] if self._latest else 0))
            self._begins.append(begin)

    def between(self, begin: int, end: int) -> bool:
        before = bisect_right(self._begins, end)
        return before == 0 or self._latest[before - 1] < begin


def recoveries(orphans: Sequence[Orphan], audit: Sequence[Source], quiet: Quiet, grace: int) -> list[Recovery]:
    """Find the next start of each orphan.

    The quiet must have begun so many microseconds, ``grace``, before the kill: what a storage in trouble delayed is
    still late for a while. A claim counts as an attempt, so one that was made in between and came to nothing is seen.
    """
    starts: dict[int, list[tuple[int, int]]] = {orphan.number: [] for orphan in orphans}
    for source in audit:
        if source.role == "worker":
            for line in source.lines():
                if line.fact == "start" and (known := starts.get(int(line.values[0]))) is not None:
                    known.append((line.instant, int(line.values[2])))
    found = []
    for orphan in orphans:
        later = [start for start in starts[orphan.number] if start[0] > orphan.killed_at]
        if later:
            started_at, attempt = min(later)
            undisturbed = attempt <= orphan.attempt + 1 and quiet.between(orphan.killed_at - grace, started_at)
            found.append(Recovery(orphan, started_at, not undisturbed))
    return found
