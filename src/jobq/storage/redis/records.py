"""The record of a job as the scripts keep it: numbers at fixed places, then texts, then the payload to the end."""

from __future__ import annotations

import math
import struct
from functools import lru_cache
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

HEAD = ">BI6I7I6BBBBhI4I4I6I6I6Bc0Bc0"
"""How Lua's struct packs what a claim changes: the fixed fields, and two texts, each behind its length."""
START = HEAD.removesuffix("Bc0")
"""The fixed fields and the token."""
LAYOUT = HEAD + "Bc0Bc0I2c0I2c0I4c0"
"""The whole record; the payload follows."""
_FIXED = struct.Struct(">BHIBHIHIBBBBhIIHIHIHI")
_TAIL = struct.Struct(">BBBBhIIHIHIHI")
_TOKEN = struct.Struct(">BHI5s")
TOKEN_SIZE = _TOKEN.size
START_SIZE = _FIXED.size + 1 + TOKEN_SIZE
_MILLI = 1e3
_MICRO = 1e6


class Record(NamedTuple):
    """A record's fields, in their order; instants are ms since 1970, durations are ms, and 0 is what is not set."""

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
    worker: str
    generation: str
    settled: bytes
    """The token that settled it last."""
    recent: bytes
    """Requests that were answered lately, in MessagePack."""
    replies: bytes
    """Addresses of watches, each followed by a space."""
    outcome: bytes
    """The result, or the error of the last attempt."""
    payload: bytes


def read_claim(id: str, raw: bytes) -> Claim:
    """Read the record of a job that was just claimed.

    Raises:
        StorageCorruptError: it is damaged, or written by a newer version.
    """
    try:
        numbers, (token, worker, generation, _, outcome) = _parse(raw)
        return Claim(
            id,
            token_text(raw[_FIXED.size + 1 : token]),
            raw[worker + 1 : generation].decode(),
            raw[outcome:],
            numbers[13],
            numbers[14],
            (numbers[1] << 32 | numbers[2]) / _MILLI,
            (numbers[15] << 32 | numbers[16]) / _MILLI,
        )
    except (struct.error, ValueError, IndexError) as error:
        raise corrupt(id, str(error)) from None


def read_snapshot(id: str, raw: bytes) -> Snapshot:
    """Read the record of a job that somebody asked for, or was told of.

    Raises:
        StorageCorruptError: it is damaged, or written by a newer version.
    """
    try:
        numbers, (token, worker, generation, replies, outcome) = _parse(raw)
        created2, created, place3, place2, place, term2, term = numbers[1:8]
        state, cancel_asked, _, has_outcome, priority, attempts, max_attempts = numbers[8:15]
        ttl2, ttl, started2, started, finished2, finished = numbers[15:]
        found, until, began, ended = (
            STATES[state - 1],
            term2 << 32 | term,
            started2 << 32 | started,
            finished2 << 32 | finished,
        )
        result = raw[replies + 4 : outcome] if has_outcome else None
        completed = found is State.COMPLETED
        return Snapshot(
            id,
            raw[worker + 1 : generation].decode(),
            found,
            attempts,
            max_attempts,
            (created2 << 32 | created) / _MILLI,
            until / _MILLI if until and found.waiting else (place3 << 48 | place2 << 32 | place) / _MICRO,
            (ttl2 << 32 | ttl) / _MILLI,
            priority,
            began / _MILLI if began else None,
            ended / _MILLI if ended else None,
            until / _MILLI if found.terminal else None,
            result if completed else None,
            None if completed else result,
            raw[token + 1 : worker].decode() or None,
            bool(cancel_asked),
        )
    except (struct.error, ValueError, IndexError) as error:
        raise corrupt(id, str(error)) from None


def _parse(raw: bytes) -> tuple[tuple[int, ...], tuple[int, int, int, int, int]]:
    """Return the numbers of a record, and where its token, worker, generation, replies and outcome end."""
    # Numbers of 6 or 7 bytes are read in pieces of 1, 2 and 4. Every job is read here, twice, hence the long hand.
    numbers = _FIXED.unpack_from(raw)
    if numbers[0] != FORMAT or not 1 <= numbers[8] <= len(STATES):
        raise ValueError(f"it has the format {numbers[0]} and the state {numbers[8]}")
    token = _FIXED.size + 1 + raw[_FIXED.size]
    worker = token + 1 + raw[token]
    generation = worker + 1 + raw[worker]
    settled = generation + 1 + raw[generation]
    recent = settled + 2 + (raw[settled] << 8 | raw[settled + 1])
    replies = recent + 2 + (raw[recent] << 8 | raw[recent + 1])
    outcome = replies + 4 + int.from_bytes(raw[replies : replies + 4])
    if outcome > len(raw):
        raise ValueError("its end is missing")
    return numbers, (token, worker, generation, replies, outcome)


def corrupt(id: str, problem: str) -> StorageCorruptError:
    return StorageCorruptError(
        f"the record of job {id!r} cannot be read ({problem}): "
        "if no newer jobq wrote it, delete its key and enqueue the job anew"
    )


def tail(job: NewJob) -> bytes:
    """Pack a new job's record from its state on; what comes before is known to the server alone."""
    generation = job.nonce.encode()
    head, reply = _head(job.priority, job.max_attempts, job.result_ttl), _reply(job.reply_to)
    return b"".join((head, len(generation).to_bytes(1, "big"), generation, reply, job.payload))


# Most jobs of a producer have these in common.


@lru_cache(256)
def _head(priority: int, max_attempts: int, result_ttl: float) -> bytes:
    ttl = milli(result_ttl)
    numbers = (NUMBERS[State.QUEUED], 0, 0, 0, priority, 0, max_attempts, ttl >> 32, ttl & 0xFFFFFFFF)
    return _TAIL.pack(*numbers, 0, 0, 0, 0) + b"\0\0"


@lru_cache(256)
def _reply(address: str | None) -> bytes:
    reply = b"" if address is None else address.encode() + b" "
    return b"".join((b"\0\0\0", len(reply).to_bytes(2, "big"), reply, b"\0\0\0\0"))


def token_text(token: bytes) -> str:
    """Return the token of a record as the contract writes it."""
    high, middle, low, random = _TOKEN.unpack(token)
    return f"{high << 48 | middle << 32 | low}-{random.hex()}"


def token_bytes(text: str) -> bytes:
    """Return a token as records keep it; empty for what can be no token of ours."""
    counter, _, random = text.partition("-")
    try:
        number = int(counter)
        return number.to_bytes(7, "big") + bytes.fromhex(random) if len(random) == 10 else b""
    except (ValueError, OverflowError):
        return b""


@lru_cache(256)  # The same few durations over and over.
def milli(seconds: float) -> int:
    """Return a duration in ms, at least as long as it is."""
    return math.ceil(round(seconds * _MICRO) / _MICRO * _MILLI)


def micro(seconds: float) -> int:
    """Return an instant in µs, as Redis tells its time."""
    return round(seconds * _MICRO)
