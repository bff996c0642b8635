"""One stored job as FileStorage's transitions see it: a row of the table ``jobs``, without its payload.

The rules that need one record only are here; what needs the table is in `jobq.storage.transitions`.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import msgspec

from jobq.checks import shown
from jobq.errors import StorageCorruptError
from jobq.job import Snapshot, State
from jobq.storage.contract import LINGER, MOST_ADDRESSES, MOST_REMEMBERED, PUSHED_RESULT_LIMIT, Hint, HintKind, Settled

STATES = (State.QUEUED, State.FAILING, State.PROCESSING, State.COMPLETED, State.FAILED, State.CANCELLED)
NUMBER_OF = {state: number for number, state in enumerate(STATES)}
"""How a state is stored. Waiting states are the smallest, because the indexes of file.sql say ``state <= 1``."""
SETTLED = (Settled.APPLIED, Settled.CANCELLED)
UNKNOWN = object()
"""What `Row.answered` says of a nonce that it does not remember."""
SET_ASIDE = len(STATES)
"""Kept in place of the state of a record that a claim or a rescue came upon and could not read: it stands in nobody's
way any more, and whoever asks for the job is told."""

_ADDED, _STATE, _SETTLED = 0, 1, 2
_Remembered = dict[str, tuple[int, str | None, float]]


class Row(msgspec.Struct):
    """The columns of a job, in the order in which they are read; see file.sql for what they mean."""

    number: int
    id: str
    generation: str
    state: State
    attempts: int
    max_attempts: int
    priority: int
    place: int
    due: float | None
    created_at: float
    result_ttl: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    token: str | None
    lease: float
    lease_until: float | None
    cancel_asked: int
    settled_token: str | None
    settled_as: int | None
    worker: str | None
    recent: bytes | None
    replies: str | None
    result: bytes | None = None
    error: bytes | None = None

    def absent(self, now: float) -> bool:
        if self.expires_at is None:
            return False
        # What expired as it ended is absent by whatever clock, also by one that is behind that of who ended it.
        return self.expires_at <= now or (self.finished_at is not None and self.expires_at <= self.finished_at)

    def note(self, reply_to: str | None) -> bool:
        """Add an address to be told; True if that changed anything."""
        addresses = self.addresses
        if reply_to is None or self.state.terminal or reply_to in addresses:
            return False
        self.replies = "\n".join((*addresses, reply_to)[-MOST_ADDRESSES:])
        return True

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self.replies.split("\n")) if self.replies else ()

    def answered(self, nonce: str, now: float) -> object:
        """Return what a request was answered within the last `LINGER` seconds, or `UNKNOWN`."""
        if self.recent is None:
            return UNKNOWN
        kind, value, at = self._remembered().get(nonce, (_ADDED, None, float("-inf")))
        if at <= now - LINGER:
            return UNKNOWN
        if kind == _ADDED:
            return None
        return State(value or "") if kind == _STATE else Settled(value or "")

    def remember(self, nonce: str, answer: State | Settled | None, now: float) -> None:
        kept = {key: value for key, value in self._remembered().items() if value[2] > now - LINGER}
        kind = _ADDED if answer is None else _STATE if isinstance(answer, State) else _SETTLED
        kept[nonce] = (kind, answer, now)
        while len(kept) > MOST_REMEMBERED:
            del kept[next(iter(kept))]
        self.recent = msgspec.msgpack.encode(kept)

    def remember_generation(self, now: float) -> None:
        """Keep the nonce of the add that began this generation; that of a revive is remembered with its answer."""
        if self.generation not in self._remembered():
            self.remember(self.generation, None, now)

    def hand_on(self, now: float) -> bytes | None:
        """Return what the record that replaces this one must still remember, as a ``recent`` column."""
        self.remember_generation(now)
        if self.settled_token is not None:
            self.remember(self.settled_token, SETTLED[self.settled_as or 0], now)
        return self.recent

    def finish(self, state: State, now: float, ttl: float) -> None:
        """Make it terminal; what is told to whom is the caller's business."""
        self.state = state
        self.finished_at = now
        self.expires_at = now + ttl
        self.cancel_asked = 0
        self.replies = None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.id,
            self.generation,
            self.state,
            self.attempts,
            self.max_attempts,
            self.created_at,
            self.place / 1e6 if self.due is None else self.due,
            self.result_ttl,
            self.priority,
            self.started_at,
            self.finished_at,
            self.expires_at,
            self.result,
            self.error,
            self.worker,
            bool(self.cancel_asked),
        )

    def hint(self, kind: HintKind) -> Hint:
        small = len(self.result or self.error or b"") <= PUSHED_RESULT_LIMIT
        return Hint(kind, self.id, self.generation, self.snapshot() if small else None)

    @property
    def problem(self) -> str | None:
        """What is wrong with the record as a whole, although each column for itself could be right."""
        processing, ended = self.state is State.PROCESSING, self.state.terminal
        if (self.token is not None, self.lease_until is not None) != (processing, processing):
            return "its lease does not fit its state"
        if (self.finished_at is not None, self.expires_at is not None) != (ended, ended):
            return "its end does not fit its state"
        if self.settled_as not in (None, 0, 1):
            return f"settled_as {self.settled_as}"
        try:
            for nonce in self._remembered() if self.recent is not None else ():
                self.answered(nonce, float("-inf"))
        except (msgspec.DecodeError, ValueError) as error:
            return f"recent: {error}"
        return None

    def _remembered(self) -> _Remembered:
        return {} if self.recent is None else msgspec.msgpack.decode(self.recent, type=_Remembered)


_NAMES = Row.__struct_fields__
COLUMNS = ", ".join(_NAMES)
LIGHT_COLUMNS = ", ".join(_NAMES[:-2])
"""Without result and error, which no decision depends on."""


_KINDS = tuple(frozenset({int} if hint is State else get_args(hint) or {hint}) for hint in get_type_hints(Row).values())
"""What SQLite may answer for each column; it keeps anything anywhere."""


def read_row(columns: Sequence[Any]) -> Row:
    """Return a row, or raise for a record that makes no sense."""
    if not all(map(operator.contains, _KINDS, map(type, columns))):
        wrong = [name for name, kinds, value in zip(_NAMES, _KINDS, columns, strict=False) if type(value) not in kinds]
        raise damaged(columns, f"{', '.join(wrong)} of another type")
    if not 0 <= columns[3] < len(STATES):
        raise damaged(columns, "set aside" if columns[3] == SET_ASIDE else f"state {columns[3]}")
    row = Row(*columns)
    row.state = STATES[columns[3]]
    if problem := row.problem:
        raise damaged(columns, problem)
    return row


def damaged(columns: Sequence[Any], problem: str) -> StorageCorruptError:
    number, id, *_ = columns
    return StorageCorruptError(
        f"the stored record of job {shown(id)} is damaged ({problem}): restore jobq.sqlite3 from a backup, or delete "
        f"row {number} of its table jobs and enqueue the job anew"
    )


def fetch(connection: sqlite3.Connection, statement: str, values: Sequence[object]) -> list[Any]:
    """Return all rows of a query. A text that is no UTF-8 comes as bytes, and does not fail its neighbours."""
    try:
        return connection.execute(statement, values).fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) is not None:
            raise
    usual, connection.text_factory = connection.text_factory, _text
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.text_factory = usual


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
