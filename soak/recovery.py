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
        self._running: dict[int, int] = {}

    def follow(self, line: Line) -> None:
        if line.fact == "start":
            self._running[int(line.values[0])] = int(line.values[1])
        elif line.fact in _ENDS:
            self._running.pop(int(line.values[0]), None)

    def left(self, killed_at: int) -> Iterator[Orphan]:
        for number, token in self._running.items():
            yield Orphan(number, token, killed_at)


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


def recoveries(orphans: Iterable[Orphan], audit: Sequence[Source], quiet: Quiet, grace: int) -> list[Recovery]:
    """Find the next start of each orphan.

    The quiet must have begun so many microseconds, ``grace``, before the kill: what a storage in trouble delayed is
    still late for a while.
    """
    waiting: dict[int, list[Orphan]] = {}
    for orphan in orphans:
        waiting.setdefault(orphan.number, []).append(orphan)
    starts = _instants("start", audit, waiting)
    rescues = [_instants("stalled", [source], waiting) for source in audit if source.role == "reaper"]
    found = []
    for number, several in waiting.items():
        for orphan in several:
            later = [instant for instant in starts[number] if instant > orphan.killed_at]
            if later:
                started_at = min(later)
                disturbed = not quiet.between(orphan.killed_at - grace, started_at)
                rescued = (sum(orphan.killed_at < at < started_at for at in told[number]) for told in rescues)
                found.append(Recovery(orphan, started_at, disturbed or max(rescued, default=0) > 1))
    return found


def _instants(fact: str, audit: Iterable[Source], numbers: Iterable[int]) -> dict[int, list[int]]:
    """Return when a fact about some jobs was noted."""
    found: dict[int, list[int]] = {number: [] for number in numbers}
    for source in audit:
        if source.role in ("worker", "reaper"):
            for line in source.lines():
                if line.fact == fact and (instants := found.get(int(line.values[0]))) is not None:
                    instants.append(line.instant)
    return found
