"""FileStorage: jobs in one SQLite database in a directory, shared by any number of processes of one machine.

    base_path/jobq.sqlite3        the database, mode 0600; -wal and -shm beside it while it is open
    base_path/sockets/s-…         one datagram socket for each open storage object, mode 0700 for the directory
    base_path/sockets/idle-…      one marker for each worker that sleeps

The transitions are in `jobq.storage.transitions`, the thread that runs them in `jobq.storage.sqlite`, hints between
processes in `jobq.storage.sockets`. Here is the loop's side: verbs become operations, answers wake and tell others.
A sleeper registers first and looks then, so work that arrives in between is seen either by the look or by its producer.
Nothing depends on hints: while somebody sleeps, ``PRAGMA data_version`` is looked at every half second.
"""

from __future__ import annotations

import asyncio
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from jobq.checks import shown
from jobq.clock import Clock
from jobq.errors import ConfigError
from jobq.job import Counts, NewJob, Settlement, Snapshot, State
from jobq.storage.connection import Connection
from jobq.storage.contract import (
    AddAnswer,
    Claimed,
    GetAnswer,
    HeldAnswer,
    Hint,
    QueueStorage,
    Ref,
    Rescue,
    SettleAnswer,
)
from jobq.storage.inspection import count_states, list_workers, read_page, register
from jobq.storage.sockets import HintSocket
from jobq.storage.sqlite import Database, Operation
from jobq.storage.transitions import Transitions

A = TypeVar("A")

_POLL_EVERY = 0.5
_SHRINK_PAGES = 500
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}


class FileStorage(Connection):
    """Keeps jobs in a directory of this machine; a network file system will not do.

    Args:
        base_path: the directory; it is created with its parents, for this user only.
        durability: ``"full"`` keeps every acknowledged job through a power cut; ``"normal"`` through a crash of the
            process, and may lose the last moments at a power cut.
        clock: replaces the machine's clocks, in tests.
    """

    def __init__(
        self, base_path: str | Path, *, durability: Literal["full", "normal"] = "full", clock: Clock | None = None
    ) -> None:
        super().__init__()
        if not isinstance(base_path, str | Path) or not str(base_path) or "\0" in str(base_path):
            raise ConfigError(f"base_path={shown(base_path)}: must be the path of a directory")
        if durability not in _SYNCHRONOUS:
            raise ConfigError(f"durability={shown(durability)}: must be 'full' or 'normal'")
        self._base_path = Path(base_path).absolute()
        self._durability: Literal["full", "normal"] = durability
        self._clock = clock or Clock()
        self._is_twin = False
        self._namespaces: dict[str, FileNamespace] = {}
        self._database: Database | None = None
        self._outbox: list[Operation] = []
        self._busy = False
        self._scheduled = False
        self._poller: asyncio.Task[None] | None = None
        self._version: int | None = None
        self.watches: dict[str, FileWatch] = {}
        """By secret; for this storage's namespaces."""
        self.sleepers: dict[str, Sleeper] = {}
        """By the name of their marker; for this storage's namespaces."""
        self.hints: HintSocket | None = None

    @property
    def clock(self) -> Clock:
        return self._clock

    def namespace(self, name: str) -> QueueStorage:
        if name not in self._namespaces:
            self._namespaces[name] = FileNamespace(self, name)
        return self._namespaces[name]

    def twin(self) -> FileStorage:
        twin = FileStorage(self._base_path, durability=self._durability, clock=self._clock)
        twin._is_twin = True  # It renews leases, and neither waits nor watches.
        return twin

    def __repr__(self) -> str:
        return f"<FileStorage at {str(self._base_path)!r}>"

    def __del__(self) -> None:
        if getattr(self, "_database", None) is not None:
            warnings.warn(f"{self!r} was never closed: stop the queues on it", ResourceWarning, source=self)
            self._end_thread()

    async def submit(
        self, name: str, run: Callable[[sqlite3.Connection], A], *, writes: bool, deliver: Callable[[A], None] | None
    ) -> A:
        """Let the thread run something in its next transaction; ``deliver`` is called even if nobody waits any more."""
        loop = asyncio.get_running_loop()
        self.check_usable(loop)
        future: asyncio.Future[A] = loop.create_future()
        self._outbox.append(Operation(name, run, future, writes=writes, deliver=deliver))
        if not self._busy and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return await future

    def shrink(self, connection: sqlite3.Connection) -> None:
        assert self._database is not None
        self._database.shrink(connection, _SHRINK_PAGES)

    def saw(self, version: int) -> None:
        """Take note of the data version that a sleeper's look saw, and watch for others from now on."""
        if self._version is None:
            self._version = version
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for namespace in self._namespaces.values():
            namespace.forget()
        self._outbox, self._busy, self._scheduled = [], False, False
        synchronous = _SYNCHRONOUS[self._durability]
        self._database = Database(self._base_path / "jobq.sqlite3", synchronous=synchronous, clock=self._clock)
        try:
            await self._database.start(loop, self._answered)
        except BaseException:
            self._end_thread()
            raise
        if not self._is_twin:
            name = self._clock.random_bytes(8).hex()
            hints = HintSocket(self._base_path / "sockets", name, self._heard, self._woken)
            self.hints = hints if hints.open() else None

    async def _disconnect(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        self._version = None
        if self.hints is not None:
            self.hints.close()
            self.hints = None
        database = self._database
        if database is not None:
            database.put(self._outbox)
            self._outbox = []
            self._end_thread()
            await database.ended()

    def _abandon(self) -> None:
        super()._abandon()
        self._end_thread()
        self._poller, self._version = None, None
        self.watches.clear()
        self.sleepers.clear()
        if self.hints is not None:
            self.hints.close()
            self.hints = None

    def _end_thread(self) -> None:
        if self._database is not None:
            self._database.put(None)
            self._database = None

    def _flush(self) -> None:
        self._scheduled = False
        if self._outbox and not self._busy and self._database is not None:
            self._busy = True
            operations, self._outbox = self._outbox, []
            self._database.put(operations)

    def _answered(self, operations: list[Operation]) -> None:
        self._busy = False
        for operation in operations:
            if operation.result is not None and operation.deliver is not None:
                operation.deliver(operation.result)
            future = operation.future
            if not future.done():
                if operation.error is None:
                    future.set_result(operation.result)
                else:
                    future.set_exception(operation.error)
        if not self._scheduled and self._loop is not None:
            # After the callers that were just answered have had their turn, so that what they ask for next comes along.
            self._scheduled = True
            self._loop.call_soon(self._flush)

    async def _poll(self) -> None:
        while self.sleepers:
            await asyncio.sleep(_POLL_EVERY)
            try:
                version = await self.submit("poll", data_version, writes=False, deliver=None)
            except Exception:
                version = None  # The sleepers' own claims will tell what is wrong.
            if version != self._version:
                self._version = version
                for sleeper in list(self.sleepers.values()):
                    sleeper.finish()
        self._poller, self._version = None, None

    def _heard(self, queue: str, secret: str, hint: Hint) -> None:
        watch = self.watches.get(secret)
        if watch is not None and watch.queue == queue:
            watch.deliver(hint)
            return
        namespace = self._namespaces.get(queue)
        if namespace is not None:
            # Without the secret it may come from anybody: it is worth a look, and never an answer.
            namespace.tell_watches(msgspec.structs.replace(hint, snapshot=None))

    def _woken(self, marker: str) -> None:
        if sleeper := self.sleepers.get(marker):
            sleeper.wake()


class Sleeper:
    """One worker that waits for work."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.woken = False
        self.marker = ""
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
        self._secret = name.rpartition(":")[2]
        watches[self._secret] = self

    async def close(self) -> None:
        self._watches.pop(self._secret, None)

    def deliver(self, hint: Hint) -> None:
        try:
            self._handler(hint)
        except Exception as error:  # One listener's fault must not keep others from their answers.
            self._loop.call_exception_handler({"message": "a handler of hints raised", "exception": error})


class FileNamespace:
    """One queue's jobs."""

    def __init__(self, storage: FileStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._clock = storage.clock
        self._number: int | None = None
        self._sleepers: list[Sleeper] = []
        self._slept = 0

    def forget(self) -> None:
        """Forget what was true of an earlier connection: another database may be there now."""
        self._number = None
        self._sleepers = []

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        return await self._do("add", lambda work: work.add(jobs))

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        return await self._do("claim", lambda work: work.claim(worker_id, lease, limit, nonce))

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
        await self._storage.submit("shrink", self._storage.shrink, writes=True, deliver=None)
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

    async def wait_for_work(self, timeout: float) -> None:
        storage, loop = self._storage, asyncio.get_running_loop()
        storage.check_usable(loop)
        number = await self._queue_number()
        sleeper = Sleeper(self._clock.monotonic() + timeout)
        self._slept += 1
        sleeper.marker = f"{number}-{self._slept}"
        if storage.hints is not None:
            sleeper.marker = storage.hints.mark_idle(number, sleeper.until, self._slept)
        self._sleepers.append(sleeper)
        storage.sleepers[sleeper.marker] = sleeper
        timer: asyncio.TimerHandle | None = None
        try:
            due_in, version = await self._read("look", self._look)
            if due_in == 0.0:
                return
            storage.saw(version)
            timer = loop.call_later(timeout if due_in is None else min(timeout, due_in), sleeper.finish)
            await sleeper.future
        except asyncio.CancelledError:
            # A marker that is gone was taken by somebody who is just about to wake us.
            if sleeper.woken or (storage.hints is not None and not storage.hints.unmark(sleeper.marker)):
                self._wake(1)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._remove(sleeper)

    async def watch(self, handler: Callable[[Hint], None]) -> FileWatch:
        storage = self._storage
        storage.check_usable(asyncio.get_running_loop())
        socket = "-" if storage.hints is None else storage.hints.name
        address = f"{socket}:{self._clock.random_bytes(12).hex()}"
        return FileWatch(storage.watches, self._name, handler, address)

    def tell_watches(self, hint: Hint) -> None:
        """Deliver a hint to every watch of this queue in this process."""
        for watch in list(self._storage.watches.values()):
            if watch.queue == self._name:
                watch.deliver(hint)

    async def _do(self, name: str, verb: Callable[[Transitions], A], *, writes: bool = True) -> A:
        number = self._number if self._number is not None else await self._queue_number()

        def run(connection: sqlite3.Connection) -> tuple[A, Transitions]:
            work = Transitions(connection, number, self._clock)
            answer = verb(work)
            work.finish()
            return answer, work

        answer, _ = await self._storage.submit(name, run, writes=writes, deliver=self._deliver)
        return answer

    async def _read(self, name: str, read: Callable[[sqlite3.Connection, int], A]) -> A:
        number = await self._queue_number()
        return await self._storage.submit(name, lambda connection: read(connection, number), writes=False, deliver=None)

    async def _queue_number(self) -> int:
        # A transaction of its own, so that a number is believed only once it is committed.
        if self._number is None:
            self._number = await self._storage.submit(
                "register", lambda connection: register(connection, self._name), writes=True, deliver=None
            )
        return self._number

    def _look(self, connection: sqlite3.Connection, number: int) -> tuple[float | None, int]:
        return Transitions(connection, number, self._clock).due_in(), data_version(connection)

    def _deliver(self, result: tuple[Any, Transitions]) -> None:
        """Tell others what was committed."""
        work = result[1]
        if work.hints:
            self._tell(work.hints)
        if work.ready:
            self._wake(work.ready)
        elif work.earlier is not None:
            self._wake_if_earlier(work.earlier)

    def _tell(self, hints: list[tuple[tuple[str, ...] | None, Hint]]) -> None:
        storage, abroad = self._storage, list[Hint]()
        by_socket: dict[str, list[tuple[str, Hint]]] = {}
        for addresses, hint in hints:
            if addresses is None:
                self.tell_watches(hint)
                abroad.append(hint)
                continue
            for address in addresses:
                socket, _, secret = address.rpartition(":")
                if watch := storage.watches.get(secret):
                    watch.deliver(hint)
                else:
                    by_socket.setdefault(socket, []).append((secret, hint))
        if storage.hints is not None:
            for socket, some in by_socket.items():
                storage.hints.send(socket, self._name, some)
            if abroad:
                storage.hints.send_to_all(self._name, abroad)

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
        if self._storage.sleepers.pop(sleeper.marker, None) is not None and self._storage.hints is not None:
            self._storage.hints.unmark(sleeper.marker)


def data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes with every commit of another connection."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
