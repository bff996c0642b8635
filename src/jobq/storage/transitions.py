"""FileStorage's transitions: each verb of the contract as plain SQL, within a transaction that its caller opened.

The plan of every verb is the same: read the rows that it names in one statement, decide in Python by the rules that
`jobq.storage.memory` spells out, write all decisions of one kind in one ``executemany``. The write lock is held from
before the first read, so nothing changes in between. What others must hear of is gathered and told after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from jobq.errors import StorageCorruptError
from jobq.job import Claim, NewJob, Settlement, State
from jobq.storage.contract import (
    LINGER,
    WORKER_LOST,
    AddAnswer,
    Claimed,
    GetAnswer,
    Held,
    HeldAnswer,
    HintKind,
    Ref,
    Rescue,
    Rescued,
    SettleAnswer,
    Settled,
)
from jobq.storage.rows import COLUMNS, LIGHT_COLUMNS, NUMBER_OF, SETTLED, UNKNOWN, Row, damaged, read_row
from jobq.storage.steps import Steps, instant

_COMPLETED, _FAILED, _CANCELLED = (NUMBER_OF[s] for s in (State.COMPLETED, State.FAILED, State.CANCELLED))
_PROCESSING, _FAILING = NUMBER_OF[State.PROCESSING], NUMBER_OF[State.FAILING]
_ON_THE_WAY = 100
"""How many lapsed leases a claim ends beside those that it may take."""

_INSERT = """
    INSERT INTO jobs (queue, id, generation, state, max_attempts, priority, place, due, created_at, result_ttl,
        recent, replies, payload) VALUES {rows} ON CONFLICT DO NOTHING"""
_VALUES = "(?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MOST_ROWS = 64
_INSERTS = {1 << n: _INSERT.format(rows=", ".join([_VALUES] * (1 << n))) for n in range(_MOST_ROWS.bit_length())}
"""By the number of rows."""
_DUE = "SELECT min(due) FROM jobs INDEXED BY later WHERE queue = queues.number AND due IS NOT NULL"
_LAPSES = (
    "FROM jobs INDEXED BY leased WHERE queue = queues.number AND lease_until IS NOT NULL ORDER BY lease_until LIMIT 1"
)
_READY = "FROM jobs INDEXED BY ready WHERE queue = {queue} AND state <= 1 AND due IS NULL"
_OUTLOOK = f"""
    SELECT counter, (SELECT nonce FROM claims WHERE queue = queues.number AND session = ?), ({_DUE}),
        (SELECT lease_until {_LAPSES}), (SELECT lease_until - lease {_LAPSES}) FROM queues WHERE number = ?"""
_WAITS = f"""
    SELECT EXISTS (SELECT 1 {_READY.format(queue="queues.number")}), ({_DUE}), (SELECT lease_until {_LAPSES})
    FROM queues WHERE number = ?"""
_FIND = f"""
    SELECT number, id, state, generation, payload, attempts + 1, max_attempts, created_at, result_ttl
    {_READY.format(queue="?")} ORDER BY priority DESC, place LIMIT ?"""
_FOUND = (int, str, int, str, bytes, int, int, float, float)
"""The types of what is found; a record with others is damaged."""
_TAKE = """
    UPDATE jobs SET state = 2, attempts = attempts + 1, worker = ?, token = ?, lease = ?, lease_until = ?,
        started_at = ? WHERE number = ?"""
_UNLEASE = "token = NULL, lease_until = NULL, settled_token = token, settled_as = "
_ENDED = f"""
    UPDATE jobs SET state = ?, result = ?, error = ?, finished_at = ?, expires_at = ?, cancel_asked = 0,
        replies = NULL, payload = CASE ? WHEN {_FAILED} THEN payload ELSE x'' END, {_UNLEASE} ?"""
_END = f"{_ENDED} WHERE number = ?"
_END_PLAINLY = f"""{_ENDED}
    WHERE queue = ? AND id = ? AND token = ? AND cancel_asked = 0 AND replies IS NULL AND settled_token IS NULL"""
_RETURN = f"UPDATE jobs SET state = 1, error = ?, place = ?, due = ?, {_UNLEASE} 0 WHERE number = ?"
_REMEMBER = "UPDATE jobs SET recent = ? WHERE number = ?"
_GIVE_BACK = f"UPDATE jobs SET state = ?, attempts = ?, {_UNLEASE} 0 WHERE number = ?"


class Transitions(Steps):
    """The verbs on one queue; one object for each operation."""

    def add(self, jobs: Sequence[NewJob]) -> list[AddAnswer]:
        now = self._now
        places = range(self._count(len(jobs)), 0x7FFFFFFFFFFFFFFF)
        new = [self._new(job, place, None) for job, place in zip(jobs, places, strict=False)]
        answers: list[AddAnswer] = [None] * len(jobs)
        if self._insert(new) != len(jobs):
            rows = self._rows((job.id for job in jobs), COLUMNS)
            answers = [self._add_held(job, rows, values) for job, values in zip(jobs, new, strict=True)]
        for job, answer in zip(jobs, answers, strict=True):
            if answer is None:
                self._announce(job.delay)
        self._now = now
        return answers

    def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        [(self._counter, last, due, lapses, leased)] = self._fetch(_OUTLOOK, (nonce.rpartition(".")[0], self._queue))
        due, lapses = instant(due), instant(lapses)
        if last == nonce:
            return Claimed(self._repeated_claim(nonce), [], self.due_in())
        rescued: list[Rescued] = []
        promoted = due is not None and due <= self._now
        if promoted:
            self._promote()
        lapsed = lapses is not None and (lapses <= self._monotonic or leased > self._monotonic)
        if lapsed:
            rescued = self._rescue(limit + _ON_THE_WAY)  # Or only set back, should the clock have jumped back.
        ready = self._fetch(_FIND, (self._queue, limit))
        found = self._whole(ready)
        claims: list[Claim] = []
        if found:
            claims = self._take(found, worker_id, lease, nonce)
            lapses = self._monotonic + lease if lapses is None else min(lapses, self._monotonic + lease)
        # Unless more was touched than ready jobs, what else falls due is as it was.
        touched = promoted or lapsed or len(ready) == limit
        due_in = self.due_in() if touched else self._sooner(due, lapses)
        if due_in == 0.0:
            self.ready += 1  # One worker wakes the next, so that an add wakes no herd.
        elif found:
            self.earlier = due_in  # What the claimer knew of it may be too busy for by then.
        return Claimed(claims, rescued, due_in)

    def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> list[HeldAnswer]:
        rows = self._rows((id for id, _ in claims), LIGHT_COLUMNS)
        until = self._monotonic + lease
        answers: list[HeldAnswer] = []
        extended: set[int] = set()
        for id, token in claims:
            row = rows.get(id)
            if isinstance(row, StorageCorruptError):
                answers.append(row)
            elif row is None or row.token != token:
                answers.append(Held.LOST)
            else:
                if until > (row.lease_until or 0.0):
                    extended.add(row.number)
                answers.append(Held.CANCEL_ASKED if row.cancel_asked else Held.HELD)
        self._run_many(
            "UPDATE jobs SET lease = ?, lease_until = ? WHERE number = ?", [(lease, until, n) for n in extended]
        )
        return answers

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        if self._ended_plainly(settlements):
            return [Settled.APPLIED] * len(settlements)
        # What was ended just now is found with its token settled, and answered as applied like any repetition.
        rows = self._rows((settlement.id for settlement in settlements), LIGHT_COLUMNS)
        writes: dict[str, list[tuple[Any, ...]]] = {_REMEMBER: [], _END: [], _RETURN: [], _GIVE_BACK: []}
        answers = [self._settle(settlement, rows.get(settlement.id), writes) for settlement in settlements]
        for statement, values in writes.items():
            if values:
                self._run_many(statement, values)
        return answers

    def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        def change(row: Row) -> None:
            if row.state.waiting:
                row.due = None
                row.error = None
                self._end(row, State.CANCELLED, 0.0)
            elif row.state is State.PROCESSING and running:
                row.cancel_asked = 1
                self._tell_all(HintKind.CANCEL_ASKED, row)

        return self._once(id, nonce, change)

    def revive(self, id: str, nonce: str) -> State | None:
        def change(row: Row) -> None:
            if row.state is not State.FAILED:
                return
            row.remember_generation(self._now)
            row.generation = nonce
            row.state, row.attempts = State.QUEUED, 0
            row.error = row.started_at = row.finished_at = row.expires_at = row.replies = None
            row.place = self._count()
            self._announce(0.0)

        return self._once(id, nonce, change)

    def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        def change(row: Row) -> None:
            if row.state.terminal and row.finished_at is not None:
                # By a clock that is behind that of who ended it, its end lies ahead: it must not count as expired then.
                row.expires_at = max(self._now, row.finished_at) + ttl

        return self._once(id, nonce, change)

    def rescue(self, limit: int) -> Rescue:
        return Rescue(self._rescue(limit), self._lapses_in())

    def prune(self, limit: int) -> int:
        self._run("DELETE FROM claims WHERE queue = ? AND at < ?", (self._queue, self._monotonic - LINGER))
        return self._run(
            """DELETE FROM jobs WHERE number IN (SELECT number FROM jobs INDEXED BY expiring
            WHERE queue = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?)""",
            (self._queue, self._now - LINGER, limit),
        ).rowcount

    def get(self, refs: Sequence[Ref]) -> list[GetAnswer]:
        rows = self._rows((ref.id for ref in refs), COLUMNS)
        return [self._get(ref, rows.get(ref.id)) for ref in refs]

    def hold(self, name: str, owner: str, ttl: float) -> bool:
        return (
            self._run(
                """INSERT INTO locks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
                SET owner = excluded.owner, until = excluded.until
                WHERE owner = excluded.owner OR until <= ? OR typeof(until) <> 'real'""",
                (self._queue, name, owner, self._monotonic + ttl, self._monotonic),
            ).rowcount
            == 1
        )

    def release(self, name: str, owner: str) -> None:
        self._run("DELETE FROM locks WHERE queue = ? AND name = ? AND owner = ?", (self._queue, name, owner))

    def due_in(self) -> float | None:
        """Return seconds until something may be claimed, as `Claimed.next_in` has it."""
        waits, due, lapses = self._run(_WAITS, (self._queue,)).fetchone()
        return 0.0 if waits else self._sooner(instant(due), instant(lapses))

    # Steps that the verbs are made of.

    def _new(self, job: NewJob, place: int, recent: bytes | None) -> tuple[Any, ...]:
        return (
            self._queue, job.id, job.nonce, job.max_attempts, job.priority, place,
            self._now + job.delay if job.delay > 0.0 else None, self._now, job.result_ttl, recent, job.reply_to,
            job.payload,
        )  # fmt: skip

    def _insert(self, rows: list[tuple[Any, ...]]) -> int:
        """Insert rows whose ids are free, and return how many.

        Many rows make one statement, because between two statements the thread must get the interpreter's lock back.
        Their number is a power of two, so that few different statements are prepared.
        """
        inserted = start = 0
        while start < len(rows):
            many = min(_MOST_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
            inserted += self._run(_INSERTS[many], [*chain.from_iterable(rows[start : start + many])]).rowcount
            start += many
        return inserted

    def _add_held(self, job: NewJob, rows: dict[str, Row | StorageCorruptError], values: tuple[Any, ...]) -> AddAnswer:
        """Answer an add whose id may have been held, by somebody else or by this very request."""
        row = rows.get(job.id)
        if row is None:
            return StorageCorruptError(f"the id {job.id!r} is taken and cannot be found: restore it from a backup")
        if isinstance(row, StorageCorruptError):
            return row
        if row.generation == job.nonce or row.answered(job.nonce, self._now) is not UNKNOWN:
            return None
        if not row.absent(self._now):
            self._note(row, job.reply_to)
            return row.snapshot()
        self._run("DELETE FROM jobs WHERE number = ?", (row.number,))
        self._insert([(*values[:9], row.hand_on(self._now), *values[10:])])
        rows.update(self._rows((job.id,), COLUMNS))
        return None

    def _whole(self, found: list[Any]) -> list[Any]:
        """Return the records that are whole; the others are set aside, and whoever asks for those jobs is told."""
        whole = []
        for row in found:
            if tuple(map(type, row)) == _FOUND and row[2] >= 0:
                whole.append(row)
            else:
                self._set_aside(row, damaged(row, "found while claiming"))
        return whole

    def _take(self, found: list[Any], worker_id: str, lease: float, nonce: str) -> list[Claim]:
        first, random = self._count(len(found)), self._clock.random_bytes(8).hex()
        until, now = self._monotonic + lease, self._now
        claims: list[Claim] = []
        values: list[tuple[Any, ...]] = []
        for counter, (number, id, _, *rest) in enumerate(found, first):
            token = f"{counter}-{random}"
            claims.append(Claim(id, token, *rest))
            values.append((worker_id, token, lease, until, now, number))
        self._run_many(_TAKE, values)
        numbers = msgspec.msgpack.encode([row[0] for row in found])
        self._run(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._queue, nonce.rpartition(".")[0], nonce, self._monotonic, first, random, numbers),
        )
        return claims

    def _repeated_claim(self, nonce: str) -> list[Claim]:
        """Return those of the last claim's claims that still stand."""
        [(first, random, packed)] = self._fetch(
            "SELECT first, random, numbers FROM claims WHERE queue = ? AND session = ?",
            (self._queue, nonce.rpartition(".")[0]),
        )
        try:
            numbers = enumerate(msgspec.msgpack.decode(packed, type=list[int]), first)
        except (TypeError, msgspec.DecodeError) as error:
            raise StorageCorruptError("the record of this worker's last claim is damaged: claim anew") from error
        claims: list[Claim] = []
        for counter, number in numbers:
            still = self._fetch(
                """SELECT number, id, state, generation, payload, attempts, max_attempts, created_at, result_ttl
                FROM jobs WHERE number = ? AND token = ?""",
                (number, f"{counter}-{random}"),
            )
            claims += (Claim(id, f"{counter}-{random}", *rest) for _, id, _, *rest in self._whole(still))
        return claims

    def _ended_plainly(self, settlements: Sequence[Settlement]) -> bool:
        """End the claims that nothing more has to be known of, in one statement each; True if that was all."""
        now, plain = self._now, []
        for settlement in settlements:
            state = NUMBER_OF[settlement.state]
            if state not in (_COMPLETED, _FAILED):
                return False
            ended = (state, settlement.result, settlement.error, now, now + settlement.ttl, state, 0)
            plain.append((*ended, self._queue, settlement.id, settlement.token))
        return self._run_many(_END_PLAINLY, plain).rowcount == len(settlements)

    def _settle(
        self, settlement: Settlement, row: Row | StorageCorruptError | None, writes: dict[str, list[tuple[Any, ...]]]
    ) -> SettleAnswer:
        if row is None:
            return Settled.LOST
        if isinstance(row, StorageCorruptError):
            return row
        if row.token != settlement.token:
            if row.settled_token == settlement.token:
                return SETTLED[row.settled_as or 0]
            answer = row.answered(settlement.token, self._now)
            return answer if isinstance(answer, Settled) else Settled.LOST
        cancelled = bool(row.cancel_asked)
        if row.settled_token is not None:
            row.remember(row.settled_token, SETTLED[row.settled_as or 0], self._now)
            writes[_REMEMBER].append((row.recent, row.number))
        row.token, row.settled_token, row.settled_as = None, settlement.token, int(cancelled)
        if cancelled:
            self._write_end(row, Settlement(row.id, "", State.COMPLETED), _CANCELLED, writes)
            return Settled.CANCELLED
        if settlement.state is State.QUEUED:
            row.attempts -= 1
            writes[_GIVE_BACK].append((int(row.attempts > 0), row.attempts, row.number))
            self._announce(0.0)
        elif settlement.state is State.FAILING:
            place, due = self._when(settlement.delay, row)
            writes[_RETURN].append((settlement.error, place, due, row.number))
        else:
            self._write_end(row, settlement, NUMBER_OF[settlement.state], writes)
        return Settled.APPLIED

    def _write_end(
        self, row: Row, settlement: Settlement, state: int, writes: dict[str, list[tuple[Any, ...]]]
    ) -> None:
        now, kind = self._now, HintKind.CANCELLED if state == _CANCELLED else HintKind.SETTLED
        ended = (state, settlement.result, settlement.error, now, now + settlement.ttl, state, int(state == _CANCELLED))
        writes[_END].append((*ended, row.number))
        if row.replies:
            row.result, row.error = settlement.result, settlement.error
            addresses = row.addresses
            final = State.CANCELLED if state == _CANCELLED else settlement.state
            row.finish(final, now, settlement.ttl)
            self.hints.append((addresses, row.hint(kind)))

    def _get(self, ref: Ref, row: Row | StorageCorruptError | None) -> GetAnswer:
        if row is None or isinstance(row, StorageCorruptError):
            return row
        if row.absent(self._now) and row.generation != ref.generation:
            return None
        self._note(row, ref.reply_to)
        return row.snapshot()

    def _rescue(self, limit: int) -> list[Rescued]:
        self._set_back()
        lapsed = self._fetch(
            f"""SELECT {COLUMNS} FROM jobs INDEXED BY leased
            WHERE queue = ? AND lease_until <= ? ORDER BY lease_until, number LIMIT ?""",
            (self._queue, self._monotonic, limit),
        )
        rescued: list[Rescued] = []
        for columns in lapsed:
            try:
                row = read_row(columns)
            except StorageCorruptError as error:
                self._set_aside(columns, error)
                continue
            row.token = row.lease_until = None
            if row.cancel_asked:
                row.error = None
                self._end(row, State.CANCELLED, 0.0)
            elif row.attempts >= row.max_attempts:
                row.error = WORKER_LOST
                self._end(row, State.FAILED, row.result_ttl)
            else:
                row.state = State.FAILING
                row.place = self._count()
                self._announce(0.0)
            self._save(row)
            rescued.append(Rescued(row.id, row.generation, row.state, row.attempts))
            self._tell_all(HintKind.RESCUED, row)
        return rescued

    def _sooner(self, due: float | None, lapses: float | None) -> float | None:
        """Return seconds until the earlier of a due time and a lease's end."""
        due_in = None if due is None else max(0.0, due - self._now)
        lapses_in = None if lapses is None else max(0.0, lapses - self._monotonic)
        if due_in is None or lapses_in is None:
            return lapses_in if due_in is None else due_in
        return min(due_in, lapses_in)

    def _promote(self) -> None:
        """Make due jobs ready, in the place that their due time gives them."""
        self._run(
            "UPDATE jobs SET place = CAST(due * 1e6 AS INTEGER), due = NULL WHERE queue = ? AND due <= ?",
            (self._queue, self._now),
        )

    def _when(self, delay: float, row: Row) -> tuple[int, float | None]:
        """Return place and due time of a job that is to run again."""
        self._announce(delay)
        return (row.place, self._now + delay) if delay > 0.0 else (self._count(), None)
