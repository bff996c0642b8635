"""Other users of the machine: they cannot read what FileStorage keeps, and what they plant is refused."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobq import FileStorage, Queue, StorageCorruptError, StorageError
from tests.engine.scenes import Waiting, in_loop
from tests.hostile.scenes import DATABASE, double

pytestmark = pytest.mark.storage("file")

STRANGER = 54_321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes_in(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.lstat().st_mode for path in directory.rglob("*")}


def open_to_all(directory: Path) -> Path:
    """Let every user make files in a directory, as in that for temporary files."""
    directory.chmod(0o1777)
    return directory


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
@in_loop
async def test_directories_and_files_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """With jobs that run, a worker that sleeps and a caller that waits: directories 0700, files and sockets 0600."""
    base, waiting = tmp_path / "a" / "b", Waiting()
    with umask(mask):
        busy, idle = Queue[int, int](FileStorage(base)), Queue[int, int](FileStorage(base), name="idle")
        busy.execute(waiting)
        idle.execute(double)
        async with busy, idle:
            wait = asyncio.create_task(busy.enqueue_and_wait("job", 1))
            await waiting.begun()
            while not list((base / "sockets").glob("idle-*")):
                await idle.counts()
            modes = modes_in(tmp_path)
            waiting.release.set()
            await wait

    kinds = {stat.S_IFMT(mode) for mode in modes.values()}
    assert kinds == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK}
    for path, mode in modes.items():
        assert mode & 0o777 == (0o700 if stat.S_ISDIR(mode) else 0o600), path


@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"])
@pytest.mark.parametrize("dangling", [False, True])
@in_loop
async def test_a_planted_link_is_refused_and_not_followed(tmp_path: Path, name: str, dangling: bool) -> None:
    """SQLite would write to what it points to, such as a file of ours in another place."""
    base, victim = tmp_path / "base", tmp_path / "victim"
    base.mkdir()
    if not dangling:
        victim.write_text("precious")
    (base / name).symlink_to(victim)

    with pytest.raises(StorageCorruptError, match="link") as refused:
        await FileStorage(base).open()

    assert refused.value.code == "NOT_A_FILE"
    assert victim.exists() is not dangling
    assert dangling or victim.read_text() == "precious"


@in_loop
async def test_a_planted_link_in_place_of_the_sockets_is_not_followed(tmp_path: Path) -> None:
    """Without sockets everybody polls, and nothing is written where the link leads."""
    (tmp_path / "elsewhere").mkdir()
    base = tmp_path / "base"
    base.mkdir(0o700)
    (base / "sockets").symlink_to(tmp_path / "elsewhere")
    caller, worker = Queue[int, int](FileStorage(base)), Queue[int, int](FileStorage(base))
    worker.execute(double)

    async with caller, worker:
        assert await caller.enqueue_and_wait("job", 21, timeout=8) == 42
        assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
@in_loop
async def test_sockets_that_others_could_replace_are_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Else they would be sent the results that callers wait for."""
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets").chmod(mode)
    async with Queue[int, int](FileStorage(tmp_path)) as queue:
        queue.execute(double)
        assert (await queue.enqueue("job", 1)).status == "queued"
        assert list((tmp_path / "sockets").iterdir()) == []

    assert [record.levelno for record in caplog.records if "chmod 700" in record.getMessage()] == [logging.WARNING]


@in_loop
async def test_a_directory_that_everybody_may_change_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is used, since its owner asked for it, and the log names the remedy."""
    base = open_to_all(tmp_path)

    async with Queue[int, int](FileStorage(base)) as queue:
        assert (await queue.enqueue("job", 1)).status == "queued"

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"{base} may be changed by every user" in warnings[0]
    assert "run chmod 700 on it" in warnings[0]


@as_root
@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"])
@in_loop
async def test_a_file_that_another_user_planted_in_an_open_directory_is_refused(tmp_path: Path, name: str) -> None:
    """They could read every job in it, and add some."""
    planted = open_to_all(tmp_path) / name
    planted.touch(0o666)
    os.chown(planted, STRANGER, STRANGER)

    with pytest.raises(StorageError) as refused:
        await FileStorage(tmp_path).open()

    assert refused.value.code == "NOT_OURS"
    assert planted.stat().st_size == 0


@as_root
@in_loop
async def test_sockets_of_another_user_are_not_used(tmp_path: Path) -> None:
    """Whoever owns the directory can put a socket of theirs in the place of ours."""
    (tmp_path / "sockets").mkdir(0o700)
    os.chown(tmp_path / "sockets", STRANGER, STRANGER)

    async with Queue[int, int](FileStorage(tmp_path)) as queue:
        assert (await queue.enqueue("job", 1)).status == "queued"
        assert list((tmp_path / "sockets").iterdir()) == []
