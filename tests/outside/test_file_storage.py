"""What is special to files: refusals, permissions, other processes, growth. The rest is the conformance kit's."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sqlite3
import sys
import threading
import warnings
import weakref
from pathlib import Path

import pytest

from jobq.clock import Clock
from jobq.errors import ConfigError, StorageCorruptError, StorageError, StorageUnavailableError
from jobq.job import NewJob, Settlement, State
from jobq.storage.contract import Hint, HintKind, Ref
from jobq.storage.file import FileStorage
from jobq.storage.sqlite import CHECKPOINT_BYTES
from jobq.storage.wal import Log
from tests.servers.waiting import wait_for

DATABASE = "jobq.sqlite3"


class SetClock(Clock):
    """A clock that tests set, and that fails where they say."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.boot = "first"
        self.failing = ""

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def boot_id(self) -> str:
        return self.boot

    def failpoint(self, name: str) -> None:
        if name == self.failing:
            raise StorageUnavailableError("the test says so")


def job(id: str, *, nonce: str = "", payload: bytes = b"x", reply_to: str | None = None) -> NewJob:
    return NewJob(id, nonce or f"n.{id}", payload, 3, 60.0, 0.0, 0, reply_to)


def test_files_are_private_and_nothing_is_left_running(tmp_path: Path) -> None:
    """Payloads may be secret, and a stopped program must leave neither threads nor sockets."""

    async def use() -> None:
        storage = FileStorage(tmp_path / "a" / "b")
        await storage.open()
        await storage.namespace("q").add([job("a")])
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "b").iterdir()}
        assert modes == {DATABASE: 0o600, f"{DATABASE}-wal": 0o600, f"{DATABASE}-shm": 0o600, "sockets": 0o700}
        await storage.close()

    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    asyncio.run(use())

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert list((tmp_path / "a" / "b" / "sockets").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "directory", "garbage", "foreign", "newer", "base is a file"])
def test_what_is_not_our_database_is_refused(tmp_path: Path, kind: str) -> None:
    """A planted link or somebody else's file must be neither followed nor changed."""
    path = tmp_path / DATABASE
    base = tmp_path
    if kind == "link":
        (tmp_path / "elsewhere").touch()
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"not a database at all" * 100)
    elif kind == "base is a file":
        base = tmp_path / "file"
        base.touch()
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE other (x)")
        if kind == "newer":
            connection.execute(f"PRAGMA application_id = {0x6A6F6271}")
            connection.execute("PRAGMA user_version = 99")
        connection.close()

    with pytest.raises(ConfigError if kind == "base is a file" else StorageCorruptError, match=str(base)):
        asyncio.run(FileStorage(base).open())


async def opened(path: Path, clock: Clock | None = None) -> FileStorage:
    storage = FileStorage(path, durability="normal", clock=clock)
    await storage.open()
    return storage


def test_a_twin_puts_no_empty_database_in_the_place_of_a_deleted_one(tmp_path: Path) -> None:
    """Whoever is told to put the file back must not find another one there, nor another process take it for ours."""

    async def use() -> None:
        storage = FileStorage(tmp_path / "jobs")
        await storage.open()
        for path in (tmp_path / "jobs").glob(f"{DATABASE}*"):
            path.unlink()
        with pytest.raises(StorageCorruptError) as caught:
            await storage.twin().open()
        await storage.close()
        assert caught.value.code == "DELETED"

    asyncio.run(use())
    assert not [*(tmp_path / "jobs").glob(f"{DATABASE}*")]


def test_a_deleted_database_is_an_error_and_no_empty_queue(tmp_path: Path) -> None:
    """A silently new queue would swallow jobs that nobody ever sees again."""

    async def use() -> None:
        storage = await opened(tmp_path)
        queue = storage.namespace("q")
        await queue.add([job("a")])
        (tmp_path / DATABASE).unlink()
        with pytest.raises(StorageCorruptError) as caught:
            await queue.add([job("b")])
        assert caught.value.code == "DELETED"
        await storage.close()

    asyncio.run(use())


@pytest.mark.parametrize("end", ["-wal", "-shm"])
@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_what_sqlite_keeps_beside_the_database_is_missed_at_once(tmp_path: Path, end: str, replaced: bool) -> None:
    """Who goes on writing to a deleted log accepts jobs that nobody finds. What was accepted before, a stop keeps."""
    beside = tmp_path / f"{DATABASE}{end}"

    async def use() -> None:
        storage = await opened(tmp_path)
        queue = storage.namespace("q")
        await queue.add([job("a")])
        beside.unlink()
        if replaced:
            beside.touch()
        with pytest.raises(StorageCorruptError, match=end) as caught:
            await queue.add([job("b")])
        assert caught.value.code == "DELETED"
        await storage.close()
        storage = await opened(tmp_path)
        assert [found is not None for found in await storage.namespace("q").get([Ref("a"), Ref("b")])] == [True, False]
        await storage.close()

    asyncio.run(use())


def test_a_directory_that_may_not_be_read_for_a_moment_is_no_deleted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits would give up for good. What root may do is not asked, so it is played."""

    async def use() -> None:
        storage = await opened(tmp_path)
        queue = storage.namespace("q")
        with monkeypatch.context() as patch:
            patch.setattr(os, "lstat", forbidden)
            with pytest.raises(StorageUnavailableError) as caught:
                await queue.add([job("a")])
        assert caught.value.code == "CANNOT_OPEN"
        assert await queue.add([job("a")]) == [None]
        await storage.close()

    def forbidden(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    asyncio.run(use())


def test_trouble_beside_a_checkpoint_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As no memory for it: a thread that ended would leave every later call without an answer."""
    troubles: list[BaseException] = [MemoryError(), RecursionError()]
    grown = Log.grown

    def failing(log: Log) -> bool:
        if troubles:
            raise troubles.pop()
        return grown(log)

    async def use() -> list[object]:
        storage = await opened(tmp_path)
        queue = storage.namespace("q")
        async with asyncio.timeout(5):
            added = [await queue.add([job(id)]) for id in "abc"]
        await storage.close()
        return added

    monkeypatch.setattr(Log, "grown", failing)
    assert asyncio.run(use()) == [[None]] * 3
    assert not troubles


def test_a_storage_that_nobody_closed_is_collected_with_all_that_it_holds(tmp_path: Path) -> None:
    """Also where warnings are errors. A program that makes one in each of its loops must not drown in threads."""
    before = {*threading.enumerate()}
    left: list[weakref.ref[FileStorage]] = []

    async def leave() -> None:
        storage = await opened(tmp_path)
        await storage.namespace("q").add([job("a")])
        left.append(weakref.ref(storage))

    def gone() -> bool:
        gc.collect()
        return left[0]() is None

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        unraisable: list[object] = []
        patch.setattr(sys, "unraisablehook", lambda said: unraisable.append(said.exc_value))
        warnings.simplefilter("error")
        asyncio.run(leave())
        wait_for(gone, "end of the storage")
    for thread in {*threading.enumerate()} - before:
        thread.join(5)

    assert [type(error) for error in unraisable if str(tmp_path) in str(error)] == [ResourceWarning]
    assert not {*threading.enumerate()} - before
    assert not [opened for opened in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if str(tmp_path) in opened]
    assert not [*(tmp_path / "sockets").iterdir()]


def test_a_restart_of_the_machine_lapses_every_lease(tmp_path: Path) -> None:
    """The clock of leases began anew, so old deadlines mean nothing."""

    async def use() -> None:
        clock = SetClock()
        storage = await opened(tmp_path, clock)
        await storage.namespace("q").add([job("a")])
        await storage.namespace("q").claim("w", 1e6, 1, "s.1")
        await storage.namespace("q").hold("lock", "a", 1e6)
        await storage.close()
        clock.boot = "second"
        storage = await opened(tmp_path, clock)
        assert [rescued.id for rescued in (await storage.namespace("q").rescue(10)).rescued] == ["a"]
        assert await storage.namespace("q").hold("lock", "b", 1.0)
        await storage.close()

    asyncio.run(use())


@pytest.mark.parametrize("where", ["before", "commit", "after"])
def test_a_fault_fails_one_call_and_not_its_neighbours(tmp_path: Path, where: str) -> None:
    """Calls of one tick share a transaction, and must not share a fault."""

    async def use() -> None:
        clock = SetClock()
        storage = await opened(tmp_path, clock)
        queue = storage.namespace("q")
        await queue.counts()
        clock.failing = f"cancel.{where}"
        await queue.add([job("a")])
        # The first call leaves alone; while it is under way, the other two gather.
        _, failed, added = await asyncio.gather(
            queue.counts(), queue.cancel("a", False, "c.1"), queue.add([job("b")]), return_exceptions=True
        )
        clock.failing = ""
        assert isinstance(failed, StorageUnavailableError)
        assert added == [None]
        assert await queue.counts() == {State.QUEUED: 1 if where == "after" else 2}
        await storage.close()

    asyncio.run(use())


def test_results_and_work_reach_another_storage_object(tmp_path: Path) -> None:
    """Two storage objects on one directory are to each other as two processes."""

    async def use() -> None:
        caller, worker = await opened(tmp_path), await opened(tmp_path)
        told: asyncio.Future[Hint] = asyncio.get_running_loop().create_future()
        watch = await caller.namespace("q").watch(told.set_result)
        sleeping = asyncio.ensure_future(worker.namespace("q").wait_for_work(30.0))
        while not list((tmp_path / "sockets").glob("idle-*")):
            await worker.namespace("q").counts()

        await caller.namespace("q").add([job("a", reply_to=watch.address)])
        await asyncio.wait_for(sleeping, 5.0)
        (claim,) = (await worker.namespace("q").claim("w", 30.0, 1, "s.1")).claims
        await worker.namespace("q").settle([Settlement("a", claim.token, State.COMPLETED, b"r", ttl=60.0)])
        hint = await asyncio.wait_for(told, 5.0)

        assert hint.kind is HintKind.SETTLED
        assert hint.snapshot is not None
        assert hint.snapshot.result == b"r"
        await caller.close()
        await worker.close()

    asyncio.run(use())


@pytest.mark.slow
def test_the_file_shrinks_when_jobs_have_expired(tmp_path: Path) -> None:
    """Nobody should have to compact anything by hand."""

    async def use() -> None:
        clock = SetClock()
        storage = await opened(tmp_path, clock)
        queue = storage.namespace("q")
        await queue.add([job(f"j{number}", payload=b"x" * 400) for number in range(10_000)])
        full = (tmp_path / f"{DATABASE}").stat().st_size
        taken = (await queue.claim("w", 30.0, 10_000, "s.1")).claims
        await queue.settle([Settlement(c.id, c.token, State.COMPLETED, b"r" * 400, ttl=1.0) for c in taken])
        full = max(full, (tmp_path / DATABASE).stat().st_size)
        clock.time += 60.0
        for _ in range(100):
            await queue.prune(256)
        await queue.counts()
        size = sum(path.stat().st_size for path in tmp_path.glob("jobq*"))  # noqa: ASYNC240
        assert size < 2**20 < full
        await storage.close()

    asyncio.run(use())


def test_a_sleeper_that_leaves_before_it_is_marked_leaves_no_marker(tmp_path: Path) -> None:
    """Else a wake-up would go to somebody who sleeps no more."""

    async def use() -> None:
        storage = await opened(tmp_path)
        queue = storage.namespace("q")
        await queue.counts()
        for turns in range(8):
            sleeping = asyncio.ensure_future(queue.wait_for_work(30.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            sleeping.cancel()
            await asyncio.wait([sleeping])
        await queue.counts()
        assert [*(tmp_path / "sockets").glob("idle-*")] == []
        await storage.close()

    asyncio.run(use())


@pytest.mark.slow
def test_a_sleeper_that_leaves_as_another_process_wakes_it_wakes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes its marker is just about to wake it, and wakes nobody else."""
    monkeypatch.setattr("jobq.storage.file.POLL_EVERY", 60.0)

    async def use() -> None:
        storage = FileStorage(tmp_path)
        await storage.open()
        first, second = (asyncio.create_task(storage.namespace("q").wait_for_work(60.0)) for _ in range(2))
        await _marked(tmp_path, 2)
        min((tmp_path / "sockets").glob("idle-*"), key=lambda marker: marker.name.split("-")[3]).unlink()
        first.cancel()
        async with asyncio.timeout(10):
            assert await second is True
        await storage.close()

    asyncio.run(use())


def test_a_worker_that_died_in_its_sleep_takes_no_wake_up_from_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marker may be the first that is found; the next one is tried then."""
    monkeypatch.setattr("jobq.storage.file.POLL_EVERY", 60.0)

    async def use() -> None:
        storage, other = FileStorage(tmp_path), FileStorage(tmp_path)
        await storage.open()
        await other.open()
        sleeper = asyncio.create_task(storage.namespace("q").wait_for_work(60.0))
        await _marked(tmp_path, 1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(tmp_path / "sockets" / "s-dead"))
        (tmp_path / "sockets" / "idle-1-1-1-s-dead").hardlink_to(tmp_path / "sockets" / "s-dead")
        await other.namespace("q").add([job("a")])
        async with asyncio.timeout(10):
            assert await sleeper is True
        await storage.close()
        await other.close()

    asyncio.run(use())


def test_a_database_that_was_removed_while_it_was_closed_is_begun_anew(tmp_path: Path) -> None:
    """Nothing of the old one is believed of the new one."""

    async def use() -> None:
        storage = FileStorage(tmp_path)
        await storage.open()
        for name in ("first", "second"):
            await storage.namespace(name).add([job("a")])
        await storage.close()
        _remove_database(tmp_path)
        await storage.open()
        assert await storage.namespace("second").add([job("a")]) == [None]
        assert await storage.namespace("first").counts() == {}
        assert await storage.namespace("second").counts() == {State.QUEUED: 1}
        await storage.close()

    asyncio.run(use())


def _remove_database(path: Path) -> None:
    for found in path.glob(f"{DATABASE}*"):
        found.unlink()


async def _marked(path: Path, many: int) -> None:
    """Wait until so many workers sleep."""
    async with asyncio.timeout(10):
        while len(list((path / "sockets").glob("idle-*"))) < many:
            await asyncio.sleep(0)


def test_the_log_is_written_anew_when_it_has_grown(tmp_path: Path) -> None:
    """By whichever process notices; it is kept, but it does not grow for ever."""

    async def use() -> None:
        writers = await opened(tmp_path), await opened(tmp_path)
        for number in range(120):
            payload = b"x" * 500_000
            assert await writers[number % 2].namespace("q").add([job(f"j{number}", payload=payload)]) == [None]
        log = (tmp_path / f"{DATABASE}-wal").stat().st_size
        assert CHECKPOINT_BYTES <= log < 2 * CHECKPOINT_BYTES
        assert (await writers[0].namespace("q").counts())[State.QUEUED] == 120
        for writer in writers:
            await writer.close()

    asyncio.run(use())


def test_what_was_promised_is_on_the_disk_before_it_is_answered(tmp_path: Path) -> None:
    """A power cut undoes nothing that was answered; also not what travelled with verbs that may be undone."""

    def synchronous(connection: sqlite3.Connection) -> int:
        (found,) = connection.execute("PRAGMA synchronous").fetchone()
        return int(found)

    async def use() -> None:
        storage = FileStorage(tmp_path)
        await storage.open()
        full, normal = 2, 1
        for verb in ("add", "settle", "cancel", "revive", "retain"):
            assert await storage.submit(verb, synchronous, writes=True) == full, verb
        assert await storage.submit("claim", synchronous, writes=True) == normal
        alone, *together = await asyncio.gather(
            *(storage.submit(verb, synchronous, writes=True) for verb in ("extend", "claim", "settle", "extend"))
        )
        assert (alone, together) == (normal, [full] * 3)
        await storage.close()

    asyncio.run(use())


def test_use_before_open_and_in_another_loop_is_refused(tmp_path: Path) -> None:
    """A typed error, and never a silent hang."""
    storage = FileStorage(tmp_path)

    async def use() -> None:
        await storage.namespace("q").counts()

    with pytest.raises(StorageError) as caught:
        asyncio.run(use())
    assert caught.value.code == "CLOSED"


@pytest.mark.slow
def test_a_close_that_is_cancelled_leaves_the_storage_closed(tmp_path: Path) -> None:
    """At whichever step: it can be opened again and works, and no thread stays behind."""

    async def use() -> None:
        storage = FileStorage(tmp_path)
        for turns in range(1, 7):
            await storage.open()
            closing = asyncio.ensure_future(storage.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            async with asyncio.timeout(2):
                await storage.open()
                await storage.namespace("q").add([job(f"job-{turns}")])
                await storage.close()

    threads = set(threading.enumerate())
    asyncio.run(use())
    for thread in set(threading.enumerate()) - threads:
        thread.join(2)
    assert not set(threading.enumerate()) - threads
