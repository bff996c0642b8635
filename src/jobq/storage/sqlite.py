"""One SQLite database on one dedicated thread, with group commit.

The loop hands over a list of operations; the thread runs the whole list in one transaction and answers with one call
into the loop. While it works, further operations gather for the next list. So everything that one loop tick asks for
shares one commit, and the loop never waits for a disk or a lock.

Each operation of a list stands alone: it fails in a savepoint of its own, or all fail with the commit.

Checkpoints are made here and not by SQLite: before 3.51.3 it is reported to have a rare race when several connections
write and checkpoint. A second connection copies (passively) while the first holds the write lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from jobq._process import start_thread
from jobq.clock import Clock, uniform
from jobq.errors import ConfigError, StorageCorruptError, StorageError, StorageFullError, StorageUnavailableError
from jobq.storage.opened import FileId, OpenFiles, file_id
from jobq.storage.wal import Log

BUSY_FOR = 5.0
"""Seconds after its submission within which an operation waits for another process's write lock."""
CHECKPOINT_BYTES = 8 * 2**20
"""How far the write-ahead log grows between checkpoints, and how much of it is kept."""
_LASTING = frozenset({"add", "settle", "cancel", "revive", "retain"})
"""Verbs whose answer is a promise that outlives a power cut, with durability "full". A claim, an extend or a rescue
that a power cut undoes leaves the job to be run again, as the loss of its worker would have done anyway."""
_APPLICATION_ID = 0x6A6F6271  # "jobq"
_VERSION = 1
_log = logging.getLogger("jobq.storage")

_SENSELESS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, msgspec.MsgspecError)
# The last two are what our own statements get where the tables are not ours any more.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}
_REASONS = {
    sqlite3.SQLITE_READONLY: ("READONLY", "is read-only: make the file and its directory writable"),
    sqlite3.SQLITE_PERM: ("PERMISSION", "may not be used: give this user access to the file and its directory"),
    sqlite3.SQLITE_AUTH: ("PERMISSION", "may not be used: give this user access to the file and its directory"),
    sqlite3.SQLITE_CANTOPEN: ("CANNOT_OPEN", "cannot be opened: check that it exists, its permissions and open files"),
    sqlite3.SQLITE_IOERR: ("IO", "cannot be read or written: check the disk; network file systems are not supported"),
}


class Audience(Protocol):
    """Who hears of an operation's result, once that is committed."""

    def tell_others(self, result: Any, /) -> None:
        """Called in the thread, so that other processes need not wait until the loop has its turn."""
        ...

    def deliver(self, result: Any, /) -> None:
        """Called in the loop, even if nobody waits for the answer any more."""
        ...


class Operation:
    """One call of a verb on its way through the thread."""

    __slots__ = ("audience", "before", "error", "future", "name", "result", "run", "submitted_at", "writes")

    def __init__(
        self,
        name: str,
        run: Callable[[sqlite3.Connection], Any],
        future: asyncio.Future[Any],
        *,
        writes: bool,
        audience: Audience | None,
        before: Callable[[], object] | None,
    ) -> None:
        self.name = name
        self.run = run
        self.future = future
        self.writes = writes
        self.audience = audience
        self.before = before
        """What must be done before the transaction begins. It is in no hurry, and travels after those that are."""
        self.submitted_at = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """The thread, its connections and its inbox. It never refers to the storage object, which may thus be collected."""

    def __init__(self, path: Path, *, synchronous: str, clock: Clock, create: bool = True) -> None:
        self._path = path
        self._create = create
        self._synchronous = synchronous
        self._clock = clock
        self._inbox: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._in_place: dict[str, FileId] = {}
        """The database and what SQLite keeps beside it, each by its path: whether they are still what is open here."""
        self._set_synchronous = synchronous
        self._log: Log | None = None
        self._shrinking = False
        self._leaving = False
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop, answer: Callable[[list[Operation]], None]) -> asyncio.Future[None]:
        """Start the thread; the future tells when the database is open, or why not.

        Raises:
            StorageUnavailableError: no thread can be started.
        """
        opened: asyncio.Future[None] = loop.create_future()
        self._ended = ended = loop.create_future()
        # The thread keeps nothing alive whose method it is to call: a storage that nobody holds any more ends it.
        self._thread = start_thread(self._serve, loop, weakref.WeakMethod(answer), opened, ended, name="jobq-file")
        return opened

    async def ended(self) -> None:
        """Wait until the thread has closed the database and is gone."""
        if self._thread is not None and self._ended is not None:
            await self._ended
            self._thread.join()

    def put(self, operations: list[Operation] | None) -> None:
        """Hand over a list of operations; None ends the thread after what was handed over before."""
        if operations is None:
            self._leaving = True  # Nobody waits any more for what another process's lock holds up.
        self._inbox.put(operations)

    def shrink(self, connection: sqlite3.Connection, pages: int) -> None:
        """Within a transaction: give free pages back to the file system, and checkpoint after the commit."""
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (total,) = connection.execute("PRAGMA page_count").fetchone()
        # Some free pages are kept, because a queue that goes on will soon want them again.
        if free > 8 + (total - free) // 4:
            # One page each: Python 3.11 takes only one step of a statement without columns, and each step frees one.
            for _ in range(min(free, pages)):
                connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
            self._shrinking = True

    def _serve(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: weakref.WeakMethod[Callable[[list[Operation]], None]],
        opened: asyncio.Future[None],
        ended: asyncio.Future[None],
    ) -> None:
        connections: list[sqlite3.Connection] = []
        try:
            try:
                self._open(connections)
            except BaseException as error:
                _tell(loop, _fail, opened, self._translated(error))
                return
            _tell(loop, _succeed, opened)
            while (operations := self._inbox.get()) is not None:
                self._work(connections[0], operations)
                if not _tell(loop, _call, answer, operations):
                    return
                del operations
                with contextlib.suppress(Exception):  # It stays due; also without memory for it, as for one operation.
                    self._checkpoint(*connections)
        finally:
            for connection in reversed(connections):
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            if self._log is not None:
                self._log.close()
            OpenFiles.leave(self)
            _tell(loop, _succeed, ended)

    # One list of operations.

    def _work(self, connection: sqlite3.Connection, operations: list[Operation]) -> None:
        standing = [operation for operation in operations if self._passed(operation, "before")]
        try:
            if standing:
                for operation in standing:
                    if operation.before is not None:
                        operation.before()
                self._begin(connection, standing)
                self._check_in_place()
                for operation in standing:
                    self._apply(connection, operation, alone=len(standing) == 1)
                    if not connection.in_transaction:
                        raise operation.error or StorageError("the transaction ended by itself")
                connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            translated = self._translated(error)
            for operation in standing:
                operation.error, operation.result = operation.error or translated, None
        for operation in standing:
            if operation.error is None:
                self._passed(operation, "after")
                self._tell_others(operation)

    def _apply(self, connection: sqlite3.Connection, operation: Operation, *, alone: bool) -> None:
        guarded = operation.writes and not alone
        if guarded:
            connection.execute("SAVEPOINT operation")
        try:
            with self._making_sense():
                operation.result = operation.run(connection)
            self._clock.failpoint(f"{operation.name}.commit")
        except BaseException as error:
            operation.error, operation.result = self._translated(error), None
            if alone:
                raise
            if guarded and connection.in_transaction:
                connection.execute("ROLLBACK TO operation")
        if guarded and connection.in_transaction:
            connection.execute("RELEASE operation")

    def _passed(self, operation: Operation, where: str) -> bool:
        try:
            self._clock.failpoint(f"{operation.name}.{where}")
        except BaseException as error:
            operation.error = error
            return False
        return True

    def _tell_others(self, operation: Operation) -> None:
        try:
            if operation.audience is not None:
                operation.audience.tell_others(operation.result)
        except Exception:  # It is done, whether or not others hear of it.
            _log.exception("telling others of %s failed", operation.name)

    def _begin(self, connection: sqlite3.Connection, operations: list[Operation]) -> None:
        # One that begins by reading may not write later: SQLite refuses that at once when others have written.
        statement = "BEGIN IMMEDIATE" if any(operation.writes for operation in operations) else "BEGIN"
        synchronous = self._synchronous if any(o.name in _LASTING for o in operations) else "NORMAL"
        if synchronous != self._set_synchronous:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._set_synchronous = synchronous
        self._patiently(lambda: connection.execute(statement), min(o.submitted_at for o in operations) + BUSY_FOR)

    def _patiently(self, attempt: Callable[[], object], until: float) -> None:
        """Try again at short random intervals while locked: SQLite's own, longer ones starve one of two writers."""
        while True:
            try:
                attempt()
            except sqlite3.OperationalError as error:
                if _primary(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if self._leaving or time.monotonic() >= until:
                    raise
                time.sleep(uniform(0.0002, 0.005))
            else:
                return

    def _check_in_place(self) -> None:
        """Raise if others would find other files than those that are open here, and lose what is written to these."""
        for path, identity in self._in_place.items():
            if file_id(path) != identity:
                raise self._deleted(path)

    def _deleted(self, path: str) -> StorageCorruptError:
        is_database = path == str(self._path)
        remedy = "put the file back if you can" if is_database else "which saves what this one held"
        return StorageCorruptError(
            f"{path} was deleted or replaced while it was in use: stop all queues on it, {remedy}, and start again",
            code="DELETED",
        )

    def _checkpoint(self, writer: sqlite3.Connection, copier: sqlite3.Connection) -> None:
        """Copy the log into the database if it has grown; the next write then begins the log anew."""
        if self._log is None or not (self._shrinking or self._log.grown()):
            return
        writer.execute("BEGIN IMMEDIATE")
        try:
            [(_, frames, _)] = copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            writer.execute("COMMIT")
        self._log.checkpointed(frames)
        if self._shrinking:
            self._shrinking = False
            _cut_log(writer)

    # Opening.

    def _open(self, connections: list[sqlite3.Connection]) -> None:
        self._create_file()
        self._take_note_of("")
        if not OpenFiles.enter(self, self._in_place[str(self._path)]):
            raise StorageError(
                f"{self._path} was open when this process was forked, and SQLite cannot be used on both sides of a "
                "fork: fork before a queue is started on it, or start the child by spawn or forkserver",
                code="FORKED",
            )
        until = time.monotonic() + BUSY_FOR
        # Without a busy timeout: `_patiently` waits, and a checkpoint need not.
        connections += (sqlite3.connect(self._path, isolation_level=None, timeout=0.0) for _ in range(2))
        for connection in connections:
            with self._making_sense():
                self._patiently(partial(self._prepare, connection), until)
        self._take_note_of("-wal", "-shm")
        (page_size,) = connections[0].execute("PRAGMA page_size").fetchone()
        self._log = Log(Path(f"{self._path}-wal"), page_size=page_size, every=CHECKPOINT_BYTES)

    def _take_note_of(self, *ends: str) -> None:
        for path in (f"{self._path}{end}" for end in ends):
            identity = file_id(path)
            if identity is None:
                raise self._deleted(path)
            self._in_place[path] = identity

    def _create_file(self) -> None:
        if self._create:
            self._create_directories()
        try:
            found = self._path.lstat()
        except FileNotFoundError as error:
            if not self._create:
                raise self._deleted(str(self._path)) from error
            # Exclusive, so that a link planted meanwhile is refused, and only we see it before its mode is set.
            with contextlib.suppress(FileExistsError):
                self._path.touch(0o600, exist_ok=False)
            found = self._path.lstat()
        self._check_file(self._path, found)
        for end in ("-wal", "-shm", "-journal"):
            beside = Path(f"{self._path}{end}")
            with contextlib.suppress(FileNotFoundError):
                self._check_file(beside, beside.lstat())

    def _check_file(self, path: Path, found: os.stat_result) -> None:
        """Raise for what somebody else may have planted: SQLite would follow it, and show them what it writes."""
        if not stat.S_ISREG(found.st_mode):
            raise StorageCorruptError(
                f"{path} is not a regular file, and a link or device is refused: remove it, or choose another "
                "base_path",
                code="NOT_A_FILE",
            )
        base = path.parent.stat()
        if base.st_mode & stat.S_IWOTH and found.st_uid not in (os.geteuid(), base.st_uid):
            raise StorageCorruptError(
                f"{path} belongs to another user, and every user may write to its directory: remove the file, and run "
                "chmod 700 on the directory",
                code="NOT_OURS",
            )

    def _create_directories(self) -> None:
        base = self._path.parent
        missing = [path for path in (base, *base.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(0o700, exist_ok=True)
        except NotADirectoryError as error:
            raise ConfigError(f"base_path={str(base)!r}: a part of it is not a directory; choose another") from error
        if not base.is_dir():
            raise ConfigError(f"base_path={str(base)!r}: is not a directory; choose another or remove the file")
        found = base.stat()
        if found.st_mode & stat.S_IWOTH:
            _log.warning("%s may be changed by every user of this machine: run chmod 700 on it", base)
        elif os.geteuid() not in (found.st_uid, 0) and found.st_uid != 0:
            _log.warning("%s belongs to another user, who may change what is in it: use a directory of your own", base)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # Takes effect only before the first table.
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION_ID:
            raise StorageCorruptError(f"{self._path} is a database of another program: choose another base_path")
        if version > _VERSION:
            raise StorageCorruptError(
                f"{self._path} has version {version}, and this jobq knows {_VERSION}: upgrade jobq",
                code="NEWER_VERSION",
            )
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StorageUnavailableError(
                f"{self._path} cannot use a write-ahead log (its journal is {mode!r}): move it to a local disk, since "
                "network file systems are not supported",
                code="MISCONFIGURED",
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES}")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._create_schema(connection)
            self._check_boot(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _create_schema(self, connection: sqlite3.Connection) -> None:
        text = Path(__file__).with_name("file.sql").read_text("utf-8")
        for statement in text.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _check_boot(self, connection: sqlite3.Connection) -> None:
        """After a restart of the machine its monotonic clock began anew: nobody holds anything any more."""
        boot_id = self._clock.boot_id()
        stored = connection.execute("SELECT id FROM boot").fetchone()
        if stored is None:
            connection.execute("INSERT INTO boot VALUES (?)", (boot_id,))
        elif stored[0] != boot_id:
            connection.execute("UPDATE boot SET id = ?", (boot_id,))
            connection.execute("UPDATE jobs SET lease_until = 0 WHERE lease_until IS NOT NULL")
            connection.execute("DELETE FROM locks")
            connection.execute("DELETE FROM claims")

    @contextlib.contextmanager
    def _making_sense(self) -> Iterator[None]:
        """Tell of damage where what was read is not what is written there: rows, columns and types are relied upon."""
        try:
            yield
        except _SENSELESS as error:
            raise StorageCorruptError(
                f"{self._path}: what is stored makes no sense ({type(error).__name__}: {error}): run PRAGMA "
                "integrity_check, and if it finds damage, restore it from a backup"
            ) from error

    def _damaged(self, error: Exception) -> StorageCorruptError:
        return StorageCorruptError(f"{self._path} is damaged or not a database ({error}): restore it from a backup")

    def _translated(self, error: BaseException) -> BaseException:
        """Return an error of ours for one of SQLite's or the system's; others stay what they are."""
        if isinstance(error, OSError):
            translated: StorageError = StorageUnavailableError(
                f"{self._path} cannot be used: {error.strerror or error}", code="CANNOT_OPEN"
            )
        elif isinstance(error, sqlite3.Error):
            translated = self._translated_sqlite(error)
        else:
            return error
        translated.__cause__ = error
        return translated

    def _translated_sqlite(self, error: sqlite3.Error) -> StorageError:
        code, extended = _primary(error), getattr(error, "sqlite_errorcode", 0)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageUnavailableError(
                f"{self._path} was locked by another process for {BUSY_FOR:g} s: call again with the same id",
                code="BUSY",
            )
        if code in _FULL or extended in _FULL:
            return StorageFullError(f"there is no room left for {self._path}: free disk space, then call again")
        if code in _DAMAGED:
            return self._damaged(error)
        if code in _REASONS:
            name, reason = _REASONS[code]
            return StorageUnavailableError(f"{self._path} {reason} ({error})", code=name)
        return StorageError(f"{self._path}: {error}", code="SQLITE")


def _cut_log(writer: sqlite3.Connection) -> None:
    """Let the log begin anew, and give what it took back to the file system."""
    writer.execute("PRAGMA journal_size_limit = 0").fetchall()
    try:
        # Any write will do, and counters may skip numbers.
        writer.execute("UPDATE queues SET counter = counter + 1")
    finally:
        writer.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES}").fetchall()


def _primary(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> bool:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # The loop was closed under a storage that was never closed.
        return False
    return True


def _call(answer: weakref.WeakMethod[Callable[[list[Operation]], None]], operations: list[Operation]) -> None:
    if (method := answer()) is not None:
        method(operations)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
