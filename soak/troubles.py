"""When the storage, the machine or a waiter was in trouble: then what is late is not put down to the queue."""

from __future__ import annotations

from collections import Counter

from soak.audit import Line

Span = tuple[int, int]
"""From when until when, in microseconds."""


class Troubles:
    """Follows what the nemesis wrote."""

    def __init__(self) -> None:
        self.everybodys: list[Span] = []
        """Of the storage, or of the machine."""
        self.waiters: list[Span] = []
        """While a waiter was frozen: it reads late what came meanwhile."""
        self.seen: Counter[str] = Counter()
        self._fault_since: int | None = None
        self._frozen: dict[str, int] = {}
        self._holding: set[str] = set()
        """Who is frozen, and keeps others from writing to the storage."""

    def follow(self, line: Line) -> None:
        match line.fact:
            case "fault":
                self.seen["faults of the storage"] += 1
                self._fault_since = line.instant
            case "healed" if self._fault_since is not None:
                self.everybodys.append((self._fault_since, line.instant))
                self._fault_since = None
            case "still":
                self.seen["times the machine stood still"] += 1
                self.everybodys.append((line.instant - round(float(line.values[0]) * 1e6), line.instant))
            case "frozen":
                self.seen["frozen"] += 1
                self._frozen[line.values[0]] = line.instant
            case "holding":
                self.seen["frozen while nobody else could write"] += 1
                self._holding.add(line.values[0])
            case "thawed" | "died":
                self._thawed(line.values[0], line.instant)

    def _thawed(self, part: str, instant: int) -> None:
        since = self._frozen.pop(part, None)
        if since is None:
            return
        if part.startswith("waiter"):
            self.waiters.append((since, instant))
        if part in self._holding:
            self._holding.discard(part)
            self.everybodys.append((since, instant))
