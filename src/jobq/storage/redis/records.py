"""The record of a job as the scripts keep it: numbers at fixed places, then texts, then the payload to the end."""

from __future__ import annotations

import struct
from typing import NamedTuple

from jobq.errors import StorageCorruptError
from jobq.job import Claim, NewJob, Snapshot, State
from jobq.storage.contract import HintKind, Settled

FORMAT = 1
"""The version of the record and of the keys; the first byte of every record, and in ``seq``."""

STATES = (State.QUEUED, State.PROCESSING, State.FAILING, State.COMPLETED, State.FAILED, State.CANCELLED)
"""A state's number is its place here, from 1."""
NUMBERS = {state: number for number, state in enumerate(STATES, 1)}
HINT_KINDS = {1: HintKind.SETTLED, 2: HintKind.CANCELLED, 3: HintKind.RESCUED, 4: HintKind.CANCEL_ASKED}
SETTLED_ANSWERS = {20: Settled.LOST, 21: Settled.APPLIED, 22: Settled.CANCELLED}
"""What scripts answer and publish instead of words."""

HEAD = ">BI8I8I8BBBBhI4I4I8I8I8Bc0Bc0"
"""How Lua's struct packs a record: its fixed fields, and the texts, each behind its length. This is what a claim changes."""
LAYOUT = HEAD + "Bc0Bc0I2c0I2c0I4c0"
"""The whole of it; the payload follows."""
_FIXED = struct.Struct(">BQQQBBBBhIIQQQ")
_TAIL = struct.Struct(">BBBBhIIQQQ")
_LENGTHS = (1, 1, 1, 1, 2, 2, 4)
_TOKEN = struct.Struct(">Q6s")
TOKEN_SIZE = _TOKEN.size
_MICRO = 1e6


class Record(NamedTuple):
    """One record; instants are µs since 1970, durations are µs, and 0 is what is not set."""

    format: int
    created: int
    place: int
    """Order among equals: the µs at which it became ready, made unique."""
    term: int
    """While it waits, when it is due, 0 for at once; while it runs, how long its lease is; then, when it expires."""
    state: int
    cancel_asked: int
    settled_as: int
    """What the settle with the token ``settled`` was answered."""
    has_outcome: int
    priority: int
    attempts: int
    max_attempts: int
    result_ttl: int
    started: int
    finished: int
    token: bytes
    worker: bytes
    generation: bytes
    settled: bytes
    """The token that settled it last."""
    recent: bytes
    """Requests that were answered lately, in MessagePack."""
    replies: bytes
    """Addresses of watches, each followed by a space."""
    outcome: bytes
    """The result, or the error of the last attempt."""
    payload: bytes

    def claim(self, id: str) -> Claim:
        return Claim(
            id,
            token_text(self.token),
            self.generation.decode(),
            self.payload,
            self.attempts,
            self.max_attempts,
            self.created / _MICRO,
            self.result_ttl / _MICRO,
        )

    def snapshot(self, id: str) -> Snapshot:
        state = STATES[self.state - 1]
        outcome = self.outcome if self.has_outcome else None
        completed = state is State.COMPLETED
        return Snapshot(
            id,
            self.generation.decode(),
            state,
            self.attempts,
            self.max_attempts,
            self.created / _MICRO,
            (self.term if state.waiting and self.term else self.place) / _MICRO,
            self.result_ttl / _MICRO,
            self.priority,
            self.started / _MICRO if self.started else None,
            self.finished / _MICRO if self.finished else None,
            self.term / _MICRO if state.terminal else None,
            outcome if completed else None,
            None if completed else outcome,
            self.worker.decode() or None,
            bool(self.cancel_asked),
        )


def decode(id: str, raw: bytes) -> Record:
    """Read a record.

    Raises:
        StorageCorruptError: it is damaged, or written by a newer version.
    """
    try:
        fixed = _FIXED.unpack_from(raw)
        if fixed[0] != FORMAT or not 1 <= fixed[4] <= len(STATES):
            raise ValueError(f"it has the format {fixed[0]} and the state {fixed[4]}")
        texts, at = [], _FIXED.size
        for size in _LENGTHS:
            start = at + size
            at = start + int.from_bytes(raw[at:start], "big")
            texts.append(raw[start:at])
        if at > len(raw):
            raise ValueError("its end is missing")
        record = Record._make((*fixed, *texts, raw[at:]))
        record.generation.decode()
        record.worker.decode()
        return record
    except (struct.error, ValueError) as error:
        raise corrupt(id, str(error)) from None


def corrupt(id: str, problem: str) -> StorageCorruptError:
    return StorageCorruptError(
        f"the record of job {id!r} cannot be read ({problem}): "
        "if no newer jobq wrote it, delete its key and enqueue the job anew"
    )


def tail(job: NewJob) -> bytes:
    """Pack a new job's record from its state on; what comes before is known to the server alone."""
    generation = job.nonce.encode()
    reply = b"" if job.reply_to is None else job.reply_to.encode() + b" "
    fixed = _TAIL.pack(NUMBERS[State.QUEUED], 0, 0, 0, job.priority, 0, job.max_attempts, micro(job.result_ttl), 0, 0)
    texts = (b"\0\0", len(generation).to_bytes(1, "big"), generation, b"\0\0\0", len(reply).to_bytes(2, "big"), reply)
    return b"".join((fixed, *texts, b"\0\0\0\0", job.payload))


def token_text(token: bytes) -> str:
    """Return the token of a record as the contract writes it."""
    counter, random = _TOKEN.unpack(token)
    return f"{counter}-{random.hex()}"


def token_bytes(text: str) -> bytes:
    """Return a token as records keep it; empty for what can be no token of ours."""
    counter, _, random = text.partition("-")
    try:
        return _TOKEN.pack(int(counter), bytes.fromhex(random)) if len(random) == 12 else b""
    except (ValueError, struct.error):
        return b""


def micro(seconds: float) -> int:
    """Seconds in µs, which is as exact as Redis tells its time."""
    return round(seconds * _MICRO)
