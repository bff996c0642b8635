"""FileStorage: jobs in one SQLite database in a directory, shared by any number of processes of one machine.

    base_path/jobq.sqlite3        the database, mode 0600; -wal and -shm beside it while it is open
    base_path/sockets/s-…         one datagram socket for each open storage object, mode 0700 for the directory
    base_path/sockets/idle-…      one marker for each worker that sleeps: a second name of its socket

The transitions are in `jobq.storage.transitions`, the thread that runs them in `jobq.storage.sqlite`, hints between
processes in `jobq.storage.sockets`, one queue's verbs in `jobq.storage.namespace`. Here operations are gathered for the
thread, and its answers handed out. Nothing depends on hints: while somebody sleeps, ``PRAGMA data_version`` is looked
at every half second.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import msgspec

from jobq.checks import check_clock, shown
from jobq.clock import Clock
from jobq.errors import ConfigError
from jobq.storage.connection import Connection
from jobq.storage.contract import Hint, QueueStorage
from jobq.storage.namespace import POLL_EVERY, FileNamespace, FileWatch, Sleeper, data_version
from jobq.storage.sockets import HintSocket
from jobq.storage.sqlite import Audience, Database, Operation

A = TypeVar("A")

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

    vigilant: ClassVar[bool] = True

    def __init__(
        self, base_path: str | Path, *, durability: Literal["full", "normal"] = "full", clock: Clock | None = None
    ) -> None:
        super().__init__()
        if not isinstance(base_path, str | Path) or not str(base_path) or "\0" in str(base_path):
            raise ConfigError(f"base_path={shown(base_path)}: must be the path of a directory")
        try:
            os.fsencode(base_path)
        except UnicodeEncodeError:
            raise ConfigError(f"base_path={shown(base_path)}: has a lone surrogate; it must be valid text") from None
        if not isinstance(durability, str) or durability not in _SYNCHRONOUS:
            raise ConfigError(f"durability={shown(durability)}: must be 'full' or 'normal'")
        self._base_path = Path(base_path).absolute()
        self._durability: Literal["full", "normal"] = durability
        self._clock = check_clock(clock)
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
            self._end_thread()
            if self.hints is not None:
                self.hints.close()
            # Last: where warnings are errors, nothing comes after it.
            warnings.warn(
                f"{self!r} was never closed: stop the queues on it", ResourceWarning, stacklevel=2, source=self
            )

    async def submit(
        self,
        name: str,
        run: Callable[[sqlite3.Connection], A],
        *,
        writes: bool,
        audience: Audience | None = None,
        before: Callable[[], object] | None = None,
    ) -> A:
        """Let the thread run something in its next transaction, or ``before`` and then it in the one after that."""
        self.check_usable()
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._outbox.append(Operation(name, run, future, writes=writes, audience=audience, before=before))
        if before is not None:
            self._flush_soon()  # A crowd of idle workers falls asleep at a time, and nobody waits for them.
        elif not self._busy and not self._scheduled:
            self._flush()  # At once: who comes while the thread works travels together, and nobody waits for company.
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
        # A twin joins what is in use: where that was deleted, a new and empty file would hide the loss.
        self._database = database = Database(
            self._base_path / "jobq.sqlite3", synchronous=synchronous, clock=self._clock, create=not self._is_twin
        )
        try:
            await database.start(loop, self._answered)
        except BaseException:
            if self._database is database:  # Else its loop has ended in here, and there is another by now.
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
            hurried = [operation for operation in self._outbox if operation.before is None]
            others = [operation for operation in self._outbox if operation.before is not None]
            self._outbox, self._busy = [], bool(hurried)
            for operations in (hurried, others):
                if operations:
                    self._database.put(operations)

    def _flush_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _answered(self, operations: list[Operation]) -> None:
        self._busy = self._busy and operations[0].before is not None
        for operation in operations:
            if operation.result is not None and operation.audience is not None:
                operation.audience.deliver(operation.result)
            future = operation.future
            if not future.done():
                if operation.error is None:
                    future.set_result(operation.result)
                else:
                    future.set_exception(operation.error)
        if self._outbox:
            # After the callers that were just answered have had their turn, so that what they ask for next comes along.
            self._flush_soon()

    async def _poll(self) -> None:
        while self.sleepers:
            await asyncio.sleep(POLL_EVERY)
            try:
                version = await self.submit("poll", data_version, writes=False)
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
            sleeper.marked = False  # Who wakes us has removed it.
            sleeper.wake()
