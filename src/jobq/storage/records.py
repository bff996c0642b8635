"""What MemoryStorage's transitions move: records, the heaps that order them, sleepers and watches."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import operator
from collections import deque
from collections.abc import Callable
from itertools import compress

from jobq.job import Claim, NewJob, Snapshot, State
from jobq.storage.contract import LINGER, MOST_ADDRESSES, MOST_REMEMBERED, PUSHED_RESULT_LIMIT, Hint, HintKind, Settled

NEVER = math.inf
UNKNOWN = object()
"""What `Record.answered` says of a nonce that it does not remember."""

Answer = State | Settled | None
Answers = dict[str, tuple[Answer, float]]
NO_ANSWERS: Answers = {}
"""Shared by all records that remember nothing, because one dict for each would cost memory and time; never changed."""


class Record:
    """One stored job; the storage's lock guards every change."""

    __slots__ = (
        "attempts",
        "cancel_asked",
        "created_at",
        "due",
        "error",
        "expires_at",
        "finished_at",
        "generation",
        "job",
        "lease",
        "lease_until",
        "lingers_until",
        "payload",
        "place",
        "ready_key",
        "recent",
        "replies",
        "result",
        "settled_as",
        "settled_token",
        "started_at",
        "state",
        "token",
        "worker_id",
    )

    def __init__(self, job: NewJob, now: float, recent: Answers) -> None:
        self.job = job
        self.generation = job.nonce
        self.payload = job.payload
        self.state = State.QUEUED
        self.attempts = 0
        self.created_at = now
        self.place = 0
        """Order among equals: the µs at which it became ready, made unique."""
        self.ready_key: int | None = None
        """Place and priority in one number: the smallest runs first."""
        self.due = NEVER
        self.lease = 0.0
        self.lease_until = NEVER
        self.expires_at = NEVER
        self.token: str | None = None
        self.settled_token: str | None = None
        """The last token that settled it."""
        self.settled_as: Settled | None = None
        self.cancel_asked = False
        self.recent = recent
        """Requests that were answered lately, by nonce or token: what was answered, and when. Replaced, not changed."""
        self.lingers_until = 0.0
        """When it may be removed, if it has expired. Like `recent`, by the clock that is never set: else a jump of the
        wall clock would make it forget requests that are still being sent again, and an add would be done twice."""
        self.replies: tuple[str, ...] = () if job.reply_to is None else (job.reply_to,)
        self.result: bytes | None = None
        self.error: bytes | None = None
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.worker_id: str | None = None

    def absent(self, now: float) -> bool:
        # What expired as it ended is absent by whatever clock, should it have jumped back.
        return self.expires_at <= now or (self.finished_at is not None and self.expires_at <= self.finished_at)

    def start(self, worker_id: str, token: str, lease: float, until: float, now: float) -> None:
        self.ready_key, self.due = None, NEVER
        self.state = State.PROCESSING
        self.attempts += 1
        self.worker_id = worker_id
        self.token = token
        self.lease = lease
        self.lease_until = until
        self.started_at = now

    def leave_waiting(self) -> None:
        self.ready_key, self.due = None, NEVER

    def note(self, reply_to: str | None) -> None:
        if reply_to is not None and not self.state.terminal and reply_to not in self.replies:
            self.replies = (*self.replies, reply_to)[-MOST_ADDRESSES:]

    def remember(self, nonce: str, answer: Answer, monotonic: float) -> None:
        lately = {key: value for key, value in self.recent.items() if value[1] > monotonic - LINGER}
        self.recent = {**lately, nonce: (answer, monotonic)}
        while len(self.recent) > MOST_REMEMBERED:
            del self.recent[next(iter(self.recent))]
        self.lingers_until = monotonic + LINGER

    def remember_generation(self, monotonic: float) -> None:
        """Keep the nonce of the add that began this generation; that of a revive is remembered with its answer."""
        if self.generation not in self.recent:
            self.remember(self.generation, None, monotonic)

    def answered(self, nonce: str, monotonic: float) -> object:
        """Return what a request was answered within the last `LINGER` seconds, or `UNKNOWN`."""
        answer, at = self.recent.get(nonce, (UNKNOWN, NEVER))
        return UNKNOWN if at <= monotonic - LINGER else answer

    def handed_on(self, monotonic: float) -> Answers:
        """Return what the record that replaces this one must still remember."""
        self.remember_generation(monotonic)
        if self.settled_token is not None:
            self.remember(self.settled_token, self.settled_as, monotonic)
        return self.recent

    def claim(self) -> Claim:
        assert self.token is not None
        return Claim(
            self.job.id,
            self.token,
            self.generation,
            self.payload,
            self.attempts,
            self.job.max_attempts,
            self.created_at,
            self.job.result_ttl,
        )

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.job.id,
            self.generation,
            self.state,
            self.attempts,
            self.job.max_attempts,
            self.created_at,
            self.place / 1e6 if self.due == NEVER else self.due,
            self.job.result_ttl,
            self.job.priority,
            self.started_at,
            self.finished_at,
            None if self.expires_at == NEVER else self.expires_at,
            self.result,
            self.error,
            self.worker_id,
            self.cancel_asked,
        )

    def hint(self, kind: HintKind) -> Hint:
        small = len(self.result or self.error or b"") <= PUSHED_RESULT_LIMIT
        return Hint(kind, self.job.id, self.generation, self.snapshot() if small else None)


class LazyHeap:
    """Records ordered by one of their attributes; an entry whose key is no longer the attribute's value is stale.

    Nearly all keys come in order. They wait in a line, where nothing need be compared with its neighbours; only what
    comes out of order goes into a heap. The line is two deques, since a pair for each record would cost memory.
    """

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._keys: deque[float] = deque()
        self._line: deque[Record] = deque()
        self._heap: list[tuple[float, int, Record]] = []
        self._pushed = 0
        self._compact_at = 1024

    def push(self, key: float, record: Record) -> None:
        """Add a record whose attribute has the value ``key``."""
        keys, heap = self._keys, self._heap
        if not keys or key >= keys[-1]:
            keys.append(key)
            self._line.append(record)
        else:
            self._pushed += 1
            heapq.heappush(heap, (key, self._pushed, record))
        if len(keys) + len(heap) > self._compact_at:
            self._compact()

    def top(self) -> Record | None:
        record = self.pop()
        if record is not None:  # It goes back to the head of the line, wherever it came from: it is the first.
            self._keys.appendleft(getattr(record, self._attribute))
            self._line.appendleft(record)
        return record

    def pop(self) -> Record | None:
        """Take the first record away."""
        keys, heap, attribute = self._keys, self._heap, self._attribute
        while keys or heap:
            if keys and (not heap or keys[0] <= heap[0][0]):
                key, record = keys.popleft(), self._line.popleft()
            else:
                key, _, record = heapq.heappop(heap)
            if getattr(record, attribute) == key:
                return record
        return None

    def _compact(self) -> None:
        """Drop what is stale; the work is paid for by the pushes since the last time."""
        attribute = self._attribute
        fresh = list(map(operator.eq, map(operator.attrgetter(attribute), self._line), self._keys))
        self._keys, self._line = deque(compress(self._keys, fresh)), deque(compress(self._line, fresh))
        self._heap = [entry for entry in self._heap if getattr(entry[2], attribute) == entry[0]]
        heapq.heapify(self._heap)
        self._compact_at = 2 * (len(self._keys) + len(self._heap)) + 1024


class Sleeper:
    """One worker that waits for work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        self.until = until
        self.woken = False
        self.future: asyncio.Future[None] = loop.create_future()
        self._loop = loop

    @property
    def gone(self) -> bool:
        """Whether its loop was closed under it."""
        return self._loop.is_closed()

    def wake(self) -> bool:
        """Wake it from any thread; False if it is gone."""
        self.woken = True
        call_in(self._loop, self.finish)
        return not self.gone

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class MemoryWatch:
    """One subscription to hints."""

    def __init__(self, watches: dict[str, MemoryWatch], handler: Callable[[Hint], None], address: str) -> None:
        self._watches = watches
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self.address = address

    async def close(self) -> None:
        self._watches.pop(self.address, None)

    def deliver(self, hint: Hint, here: asyncio.AbstractEventLoop | None) -> None:
        """Tell the handler, from a thread whose running loop is ``here``."""
        if here is self._loop:
            self._handler(hint)
        else:
            call_in(self._loop, self._handler, hint)


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Call at once in the loop's own thread, else hand over; a loop that is closed hears nothing more."""
    if running_loop() is loop:
        function(*arguments)
        return
    with contextlib.suppress(RuntimeError):  # The loop was closed: its waiters are gone.
        loop.call_soon_threadsafe(function, *arguments)
