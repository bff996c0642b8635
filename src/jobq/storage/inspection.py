"""FileStorage's reads for people, and the registration of queues; each runs within a transaction of its caller."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from jobq.errors import StorageCorruptError
from jobq.job import Counts, Snapshot, State
from jobq.storage.rows import COLUMNS, NUMBER_OF, STATES, fetch, read_row


def register(connection: sqlite3.Connection, name: str) -> int:
    """Return the number of a queue, new if there is none."""
    connection.execute("INSERT INTO queues (name, counter) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
    (number,) = connection.execute("SELECT number FROM queues WHERE name = ?", (name,)).fetchone()
    return int(number)


def count_states(connection: sqlite3.Connection, queue: int, now: float) -> Counts:
    """Count jobs from the partial indexes alone; together they hold every job once."""
    rows = connection.execute(
        """
        SELECT state, count(*) FROM jobs INDEXED BY ready
            WHERE queue = ? AND state <= 1 AND due IS NULL GROUP BY state
        UNION ALL SELECT state, count(*) FROM jobs INDEXED BY later
            WHERE queue = ? AND due IS NOT NULL GROUP BY state
        UNION ALL SELECT 2, count(*) FROM jobs INDEXED BY leased WHERE queue = ? AND lease_until IS NOT NULL
        UNION ALL SELECT state, count(*) FROM jobs INDEXED BY expiring
            WHERE queue = ? AND expires_at > ? AND expires_at > finished_at GROUP BY state""",
        (queue, queue, queue, queue, now),
    )
    counts: dict[State, int] = {}
    for state, count in rows.fetchall():
        if count and state in NUMBER_OF.values():  # That of a damaged record is told when somebody asks for it.
            counts[STATES[state]] = counts.get(STATES[state], 0) + count
    return counts


def read_page(
    connection: sqlite3.Connection, queue: int, *, state: State, after: str, limit: int, now: float
) -> list[Snapshot]:
    rows = fetch(
        connection,
        f"""SELECT {COLUMNS} FROM jobs INDEXED BY by_id
        WHERE queue = ? AND id > ? AND state = ? AND (expires_at IS NULL OR expires_at > ?) ORDER BY id LIMIT ?""",
        (queue, after, NUMBER_OF[state], now, limit),
    )
    page: list[Snapshot] = []
    for values in rows:
        with suppress(StorageCorruptError):  # Whoever asks for that job is told.
            page.append(read_row(values).snapshot())
    return page


def list_workers(connection: sqlite3.Connection, queue: int) -> list[tuple[str, int]]:
    rows = fetch(
        connection,
        """SELECT coalesce(worker, ''), count(*) FROM jobs INDEXED BY leased
        WHERE queue = ? AND lease_until IS NOT NULL GROUP BY worker ORDER BY 1""",
        (queue,),
    )
    return [(worker, count) for worker, count in rows if isinstance(worker, str)]
