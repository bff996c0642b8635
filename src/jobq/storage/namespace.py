"""One queue's view of a FileStorage: verbs become operations of its thread, answers wake sleepers and tell watches.

A sleeper registers first and looks then, so work that arrives in between is seen either by the look or by its producer.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from jobq.clock import Clock
from jobq.job import Counts, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import (
    AddAnswer,
    Claimed,
    GetAnswer,
    HeldAnswer,
    Hint,
    Ref,
    Rescue,
    SettleAnswer,
)
from jobq.storage.inspection import count_states, list_workers, read_page, register
from jobq.storage.sockets import HintSocket
from jobq.storage.sqlite import Audience
from jobq.storage.transitions import Transitions

A = TypeVar("A")

POLL_EVERY = 0.5
"""Seconds between the looks at the database of a process with sleepers."""
_MOST_SESSIONS = 64
_LONGEST_UNTIL_DUE = 5.0
"""Seconds after which one looks again that waits for a due time."""


class Sleeper:
    """One worker that waits for work."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.woken = False
        self.marker = ""
        self.marked = True
        """Whether the marker may be there."""
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        self.woken = True
        self.finish()

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class FileWatch:
    """One subscription to hints."""

    def __init__(self, watches: dict[str, FileWatch], queue: str, handler: Callable[[Hint], None], name: str) -> None:
        self._watches = watches
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self.queue = queue
        self.address = name
        self._secret = _secret_in(name)
        watches[self._secret] = self

    async def close(self) -> None:
        self._watches.pop(self._secret, None)

    def deliver(self, hint: Hint) -> None:
        try:
            self._handler(hint)
        except Exception as error:  # One listener's fault must not keep others from their answers.
            self._loop.call_exception_handler({"message": "a handler of hints raised", "exception": error})


class Host(Protocol):
    """What a namespace needs of its storage, which stands above it."""

    hints: HintSocket | None
    watches: dict[str, FileWatch]
    sleepers: dict[str, Sleeper]

    @property
    def clock(self) -> Clock: ...

    def check_usable(self) -> None: ...

    def shrink(self, connection: sqlite3.Connection) -> None: ...

    def saw(self, version: int) -> None: ...

    async def submit(
        self,
        name: str,
        run: Callable[[sqlite3.Connection], A],
        *,
        writes: bool,
        audience: Audience | None = None,
        before: Callable[[], object] | None = None,
    ) -> A: ...


class FileNamespace:
    """One queue's jobs."""

    def __init__(self, storage: Host, name: str) -> None:
        self._storage = storage
        self._name = name
        self._clock = storage.clock
        self._number: int | None = None
        self._sleepers: list[Sleeper] = []
        self._slept = 0
        self._empty_claims: dict[str, str] = {}
        """The nonces of claims that got nothing, by session. They are kept here and not in the database, since a
        write by every idle worker would make the others look for work, and so on for ever."""

    def forget(self) -> None:
        """Forget what was true of an earlier connection: another database may be there now."""
        self._number = None
        self._sleepers = []

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        return await self._do("add", lambda work: work.add(jobs))

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        def verb(work: Transitions) -> Claimed:
            session = nonce.rpartition(".")[0]
            if self._empty_claims.get(session) == nonce:
                return Claimed([], [], work.due_in())
            answer = work.claim(worker_id, lease, limit, nonce)
            if not answer.claims:
                self._remember_empty(session, nonce)
            return answer

        return await self._do("claim", verb)

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        return await self._do("extend", lambda work: work.extend(claims, lease))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        return await self._do("settle", lambda work: work.settle(settlements))

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        return await self._do("cancel", lambda work: work.cancel(id, running, nonce))

    async def revive(self, id: str, nonce: str) -> State | None:
        return await self._do("revive", lambda work: work.revive(id, nonce))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        return await self._do("retain", lambda work: work.retain(id, ttl, nonce))

    async def rescue(self, limit: int) -> Rescue:
        return await self._do("rescue", lambda work: work.rescue(limit))

    async def prune(self, limit: int) -> int:
        removed = await self._do("prune", lambda work: work.prune(limit))
        await self._storage.submit("shrink", self._storage.shrink, writes=True)
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        notes = any(ref.reply_to is not None for ref in refs)
        return await self._do("get", lambda work: work.get(refs), writes=notes)

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        return await self._do("hold", lambda work: work.hold(name, owner, ttl))

    async def release(self, name: str, owner: str) -> None:
        await self._do("release", lambda work: work.release(name, owner))

    async def counts(self) -> Counts:
        return await self._read(
            "counts", lambda connection, number: count_states(connection, number, self._clock.now())
        )

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        def read(connection: sqlite3.Connection, number: int) -> list[Snapshot]:
            return read_page(connection, number, state=state, after=after, limit=limit, now=self._clock.now())

        return await self._read("page", read)

    async def workers(self) -> Sequence[tuple[str, int]]:
        return await self._read("workers", list_workers)

    async def wait_for_work(self, timeout: float) -> bool:
        storage, loop = self._storage, asyncio.get_running_loop()
        storage.check_usable()
        number = await self._queue_number()
        sleeper = Sleeper(self._clock.monotonic() + timeout)
        self._slept += 1
        sleeper.marker = f"{number}-{self._slept}"
        if storage.hints is not None:
            sleeper.marker = storage.hints.marker(number, sleeper.until, self._slept)
        self._sleepers.append(sleeper)
        storage.sleepers[sleeper.marker] = sleeper
        timer: asyncio.TimerHandle | None = None
        due_in: float | None = None
        try:
            due_in, version = await storage.submit(
                "look",
                lambda connection: self._look(connection, number),
                writes=False,
                before=lambda: self._mark_idle(sleeper),
            )
            if due_in == 0.0:
                return True
            storage.saw(version)
            # What falls due follows the wall clock, which may be set; whoever is told of it looks as often as it wants.
            timer = loop.call_later(
                timeout if due_in is None else min(timeout, due_in, _LONGEST_UNTIL_DUE), sleeper.finish
            )
            await sleeper.future
            return sleeper.woken or due_in is not None
        except asyncio.CancelledError:
            # Somebody may have woken us, or be about to, or rely on us to be awake when something falls due.
            self._remove(sleeper)  # First, or it would pass the news on to itself.
            self._wake(1)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._remove(sleeper)

    async def watch(self, handler: Callable[[Hint], None]) -> FileWatch:
        storage = self._storage
        storage.check_usable()
        socket = "-" if storage.hints is None else storage.hints.name
        address = f"{socket}:{self._clock.random_bytes(12).hex()}"
        return FileWatch(storage.watches, self._name, handler, address)

    def tell_watches(self, hint: Hint) -> None:
        """Deliver a hint to every watch of this queue in this process."""
        for watch in list(self._storage.watches.values()):
            if watch.queue == self._name:
                watch.deliver(hint)

    def tell_others(self, result: tuple[Any, Transitions]) -> None:
        """Tell the watches and sleepers of other processes what was committed; called in the thread."""
        work, socket = result[1], self._storage.hints
        if socket is None:
            return
        if work.hints:
            self._tell_abroad(socket, work.hints)
        if self._sleepers or self._number is None:
            return  # It is for `deliver` to say which of ours is woken.
        if work.ready:
            socket.wake_one(self._number)
        elif work.earlier is not None and work.earlier < 2 * POLL_EVERY:
            # What falls due later than that is noticed in time by everybody who sleeps, at the next poll.
            socket.wake_one(self._number, before=self._clock.monotonic() + work.earlier)
        work.ready, work.earlier = 0, None

    def deliver(self, result: tuple[Any, Transitions]) -> None:
        """Tell our own watches and sleepers what was committed."""
        work = result[1]
        for addresses, hint in work.hints:
            if addresses is None:
                self.tell_watches(hint)
                continue
            for address in addresses:
                if watch := self._storage.watches.get(_secret_in(address)):
                    watch.deliver(hint)
        if work.ready:
            self._wake(work.ready)
        elif work.earlier is not None:
            self._wake_if_earlier(work.earlier)

    async def _do(self, name: str, verb: Callable[[Transitions], A], *, writes: bool = True) -> A:
        number = self._number if self._number is not None else await self._queue_number()

        def run(connection: sqlite3.Connection) -> tuple[A, Transitions]:
            work = Transitions(connection, number, self._clock)
            answer = verb(work)
            work.finish()
            return answer, work

        answer, _ = await self._storage.submit(name, run, writes=writes, audience=self)
        return answer

    async def _read(self, name: str, read: Callable[[sqlite3.Connection, int], A]) -> A:
        number = await self._queue_number()
        return await self._storage.submit(name, lambda connection: read(connection, number), writes=False)

    async def _queue_number(self) -> int:
        # A transaction of its own, so that a number is believed only once it is committed.
        if self._number is None:
            self._number = await self._storage.submit(
                "register", lambda connection: register(connection, self._name), writes=True
            )
        return self._number

    def _remember_empty(self, session: str, nonce: str) -> None:
        self._empty_claims.pop(session, None)
        self._empty_claims[session] = nonce
        if len(self._empty_claims) > _MOST_SESSIONS:
            del self._empty_claims[next(iter(self._empty_claims))]

    def _mark_idle(self, sleeper: Sleeper) -> None:
        """Leave a marker before anything is read, so that who commits later finds it."""
        storage = self._storage
        if storage.hints is not None and sleeper.marker in storage.sleepers:
            storage.hints.mark_idle(sleeper.marker)
            if sleeper.marker not in storage.sleepers:  # It left meanwhile, perhaps before there was a marker.
                storage.hints.unmark(sleeper.marker)

    def _look(self, connection: sqlite3.Connection, number: int) -> tuple[float | None, int]:
        return Transitions(connection, number, self._clock).due_in(), data_version(connection)

    def _tell_abroad(self, socket: HintSocket, hints: list[tuple[tuple[str, ...] | None, Hint]]) -> None:
        by_socket: dict[str, list[tuple[str, Hint]]] = {}
        for_all: list[Hint] = []
        for addresses, hint in hints:
            if addresses is None:
                for_all.append(hint)
                continue
            for address in addresses:
                secret = _secret_in(address)
                if secret not in self._storage.watches:
                    by_socket.setdefault(address.rpartition(":")[0], []).append((secret, hint))
        for name, some in by_socket.items():
            socket.send(name, self._name, some)
        if for_all:
            socket.send_to_all(self._name, for_all)

    def _wake(self, most: int) -> None:
        """Wake as many sleepers of this process, or one of another; who leaves work behind wakes the next."""
        woken = False
        while most > 0 and self._sleepers:
            sleeper = self._sleepers[0]
            self._remove(sleeper)
            sleeper.wake()
            most, woken = most - 1, True
        if not woken and self._storage.hints is not None and self._number is not None:
            self._storage.hints.wake_one(self._number)

    def _wake_if_earlier(self, seconds: float) -> None:
        """Wake a sleeper if none of them would be awake when ``seconds`` have passed."""
        at = self._clock.monotonic() + seconds
        if any(sleeper.until <= at for sleeper in self._sleepers):
            return
        if self._sleepers:
            self._wake(1)
        elif self._storage.hints is not None and self._number is not None:
            self._storage.hints.wake_one(self._number, before=at)

    def _remove(self, sleeper: Sleeper) -> None:
        if sleeper in self._sleepers:
            self._sleepers.remove(sleeper)
        hints, known = self._storage.hints, self._storage.sleepers.pop(sleeper.marker, None)
        if known is not None and sleeper.marked and hints is not None:
            hints.unmark(sleeper.marker)


def _secret_in(address: str) -> str:
    return address.rpartition(":")[2]


def data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes with every commit of another connection."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
