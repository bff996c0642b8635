"""Turns: whose turn it is, by priority and then by the moment at which a job became ready, and since when."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from simulation.notes import Notes

_ROUNDING = 1e-6
_PROMPT = 0.5
"""Seconds beside the longest sleep, within which healthy workers with slots to spare take a job that is due. They may
sleep for so long, since a wake-up may have gone to a worker that had died."""


class Turn:
    """A run's place in the line of its queue."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.place: int | None = None
        """Its number among those that became ready; None of one that had to wait for a time, as nobody looked then."""
        self.due_at = 0.0
        """By the storage's wall clock."""
        self.ready_at = 0.0
        """By the same: since when it could have been taken."""
        self.was_due = False
        """Whether it had been due when the clock was set back: it is ready, if somebody looked meanwhile."""


class Turns:
    """The line of one queue, and what must hold of it."""

    def __init__(self, notes: Notes, wall: Callable[[], float], longest_sleep: float) -> None:
        self._demand = notes.demand
        self._wall = wall
        self._prompt = longest_sleep + _PROMPT
        self._last = 0
        self.calm_since: float | None = None
        """By the storage's wall clock: since when there are healthy workers with slots to spare; None before."""

    def joins(self, priority: int, delay: float) -> Turn:
        turn = Turn(priority)
        self.waits(turn, delay)
        return turn

    def joins_again(self, turn: Turn) -> None:
        """It is due at once, behind those of its priority that are ready."""
        self.waits(turn, 0.0)

    def waits(self, turn: Turn, delay: float) -> None:
        self._last += 1
        turn.place = self._last if delay == 0.0 else None
        turn.due_at = turn.ready_at = self._wall() + delay
        turn.was_due = delay == 0.0

    def returns(self, turn: Turn) -> None:
        """It keeps the place that it had."""
        turn.ready_at = self._wall()
        turn.was_due = True

    def wall_is_set(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            turn.was_due = turn.was_due or turn.due_at <= self._wall()

    def taken(self, taken: Sequence[Turn], waiting: Sequence[Turn]) -> None:
        """Look at one answer to a claim, and at those that it has left."""
        now = self._wall()
        for turn in taken:
            self._demand(turn.was_due or now >= turn.due_at - _ROUNDING, "claimed", turn.due_at - now, "s too early")
            if self.calm_since is not None:
                late = now - max(turn.ready_at, turn.due_at, self.calm_since)
                self._demand(late <= self._prompt, "claimed", late, "s after it could have been")
        for before, after in itertools.pairwise(taken):
            self._in_order(before, after)
        left = [turn for turn in waiting if turn.due_at <= now]
        for turn in taken:
            for other in left:
                self._in_order(turn, other)

    def _in_order(self, first: Turn, second: Turn) -> None:
        self._demand(first.priority >= second.priority, "priority", second.priority, "after", first.priority)
        if first.priority == second.priority and first.place is not None and second.place is not None:
            self._demand(first.place < second.place, "place", second.place, "in the line after", first.place)
