"""Steps that FileStorage's transitions are made of: reading and writing rows, counting, telling."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from jobq.clock import Clock
from jobq.errors import StorageCorruptError
from jobq.job import State
from jobq.storage.contract import Hint, HintKind
from jobq.storage.rows import COLUMNS, NUMBER_OF, SET_ASIDE, Row, fetch, read_row

_MOST_IDS = 256
_MOST_COUNTED = 2**62
_log = logging.getLogger("jobq.storage")
_KEPT = [name for name in Row.__struct_fields__ if name not in ("number", "id", "priority", "max_attempts")]
_SAVE = f"""
    UPDATE jobs SET {", ".join(f"{name} = ?" for name in _KEPT)},
        payload = CASE WHEN ? THEN x'' ELSE payload END WHERE number = ?"""


class Steps:
    """One operation on one queue, within a transaction that its caller opened."""

    def __init__(self, connection: sqlite3.Connection, queue: int, clock: Clock) -> None:
        self._run = connection.execute
        self._fetch = partial(fetch, connection)
        self._run_many = connection.executemany
        self._queue = queue
        self._clock = clock
        self._now = clock.now()
        self._monotonic = clock.monotonic()
        self._counter: int | None = None
        self._counted = False
        self.hints: list[tuple[tuple[str, ...] | None, Hint]] = []
        """To be told after the commit; without addresses to every watch of the queue."""
        self.ready = 0
        """How many sleepers should be woken."""
        self.earlier: float | None = None
        """Seconds until something falls due or lapses that sleepers may not know of."""

    def finish(self) -> None:
        """Write what is written once per operation."""
        if self._counted:
            self._run("UPDATE queues SET counter = ? WHERE number = ?", (self._counter, self._queue))

    def _end(self, row: Row, state: State, ttl: float) -> None:
        addresses = row.addresses
        row.finish(state, self._now, ttl)
        if addresses:
            kind = HintKind.CANCELLED if state is State.CANCELLED else HintKind.SETTLED
            self.hints.append((addresses, row.hint(kind)))

    def _once(self, id: str, nonce: str, change: Callable[[Row], None]) -> State | None:
        """Apply a change unless the nonce was answered before; answer with the state found."""
        row = self._rows((id,), COLUMNS).get(id)
        if isinstance(row, StorageCorruptError):
            raise row
        if row is None:
            return None
        answer = row.answered(nonce, self._now)
        if isinstance(answer, State):
            return answer
        if row.absent(self._now):
            return None
        found = row.state
        change(row)
        row.remember(nonce, found, self._now)
        self._save(row)
        return found

    def _set_back(self) -> None:
        """Bound each lease by its own length, should the clock have jumped back."""
        first = self._run(
            """SELECT lease_until - lease FROM jobs INDEXED BY leased WHERE queue = ? AND lease_until IS NOT NULL
            ORDER BY lease_until LIMIT 1""",
            (self._queue,),
        ).fetchone()
        if first is not None and first[0] > self._monotonic:
            self._run(
                """UPDATE jobs SET lease_until = ? + lease
                WHERE queue = ? AND lease_until IS NOT NULL AND lease_until - lease > ?""",
                (self._monotonic, self._queue, self._monotonic),
            )

    def _announce(self, delay: float) -> None:
        if delay <= 0.0:
            self.ready += 1
        elif self.earlier is None or delay < self.earlier:
            self.earlier = delay

    def _count(self, many: int = 1) -> int:
        """Return the first of as many new counters; see invariant 2."""
        if self._counter is None:
            (self._counter,) = self._run("SELECT counter FROM queues WHERE number = ?", (self._queue,)).fetchone()
        if type(self._counter) is not int or not 0 <= self._counter < _MOST_COUNTED:
            raise StorageCorruptError(
                f"the counter of the queue with the number {self._queue} is damaged: restore jobq.sqlite3 from a "
                "backup, or set the counter to 0 in that row of its table queues"
            )
        first = max(self._counter + 1, int(self._now * 1e6))
        self._counter, self._counted = first + many - 1, True
        return first

    def _lapses_in(self) -> float | None:
        (until,) = self._run(
            "SELECT min(lease_until) FROM jobs INDEXED BY leased WHERE queue = ? AND lease_until IS NOT NULL",
            (self._queue,),
        ).fetchone()
        until = instant(until)
        return None if until is None else max(0.0, until - self._monotonic)

    def _note(self, row: Row, reply_to: str | None) -> None:
        if row.note(reply_to):
            self._run("UPDATE jobs SET replies = ? WHERE number = ?", (row.replies, row.number))

    def _tell_all(self, kind: HintKind, row: Row) -> None:
        self.hints.append((None, Hint(kind, row.id, row.generation, None, row.attempts)))

    def _rows(self, ids: Iterable[str], columns: str) -> dict[str, Row | StorageCorruptError]:
        wanted = list(ids)
        rows: dict[str, Row | StorageCorruptError] = {}
        for start in range(0, len(wanted), _MOST_IDS):
            some = wanted[start : start + _MOST_IDS]
            # Of few different lengths, so that few different statements are prepared.
            length = 1 << (len(some) - 1).bit_length()
            some += some[-1:] * (length - len(some))
            marks = ",".join("?" * length)
            found = self._fetch(
                f"SELECT {columns} FROM jobs INDEXED BY by_id WHERE queue = ? AND id IN ({marks})", (self._queue, *some)
            )
            for values in found:
                try:
                    rows[values[1]] = read_row(values)
                except StorageCorruptError as error:
                    rows[values[1]] = error
        return rows

    def _save(self, row: Row) -> None:
        values = [getattr(row, name) for name in _KEPT]
        values[_KEPT.index("state")] = NUMBER_OF[row.state]
        self._run(_SAVE, (*values, row.state in (State.COMPLETED, State.CANCELLED), row.number))

    def _set_aside(self, columns: Sequence[Any], error: StorageCorruptError) -> None:
        """Take a damaged record out of everybody's way; its other columns stay for whoever looks into it."""
        _log.warning("%s", error)
        self._run("UPDATE jobs SET state = ?, due = NULL, lease_until = NULL WHERE number = ?", (SET_ASIDE, columns[0]))


def instant(value: object) -> float | None:
    """Return what the smallest of a column's instants is; what is no number sorts behind them all, and is none."""
    return value if isinstance(value, float) else None
