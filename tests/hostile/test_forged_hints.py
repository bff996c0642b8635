"""Datagrams of others on FileStorage's sockets: they answer nobody, stop nobody, and nobody stops listening."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobq import FileStorage, Queue, State
from jobq.job import Snapshot
from jobq.storage.contract import Hint, HintKind
from tests.engine.scenes import Events, Waiting, in_loop
from tests.hostile.scenes import double

pytestmark = pytest.mark.storage("file")


@in_loop
async def test_forged_and_garbled_datagrams_answer_nobody_and_stop_nobody(tmp_path: Path) -> None:
    """Neither bytes of any kind nor a result in the right shape; afterwards a true hint still answers at once."""
    caller, worker = Queue[int, int](FileStorage(tmp_path)), Queue[int, int](FileStorage(tmp_path))
    waiting, events = Waiting(), Events(worker)
    worker.execute(waiting)
    async with caller, worker:
        wait = asyncio.create_task(caller.enqueue_and_wait("job", 21, timeout=20))
        await waiting.begun()
        status = await caller.get_status("job")
        assert status is not None

        sent = await flood(tmp_path / "sockets", list(messages(status.generation)))
        await caller.counts()
        await worker.counts()

        assert sent > 500
        assert not wait.done()
        assert (waiting.cancelled, waiting.jobs[0].signal.aborted) == ([], False)
        waiting.release.set()
        assert await wait == 21
    assert events.of("error") == []
    assert events.of("completed") == [("job", 21)]


@in_loop
async def test_a_datagram_nested_too_deep_is_ignored_in_silence(tmp_path: Path) -> None:
    """In a field that a hint does not have; the next datagram is heard."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    encode = msgspec.msgpack.encode
    hint = b"\x84" + b"".join(map(encode, ("kind", "settled", "id", "job", "generation", "g", "x")))
    deep = b"\x92" + encode("default") + b"\x91\x92" + encode("secret") + hint + b"\x91" * 5_000 + b"\xc0"
    caller, worker = Queue[int, int](FileStorage(tmp_path)), Queue[int, int](FileStorage(tmp_path))
    worker.execute(double)
    async with caller, worker:
        await caller.enqueue_and_wait("first", 1, timeout=5)
        assert await flood(tmp_path / "sockets", [deep]) > 0

        assert await caller.enqueue_and_wait("job", 21, timeout=5) == 42
    assert failures == []


@in_loop
async def test_a_forged_wake_up_costs_a_look_and_no_job(tmp_path: Path) -> None:
    """Markers with any name lie in the directory, and sleepers are woken for nothing: work is found all the same."""
    caller, worker = Queue[int, int](FileStorage(tmp_path)), Queue[int, int](FileStorage(tmp_path))
    worker.execute(double)
    sockets = tmp_path / "sockets"
    async with caller, worker:
        for number in range(20):
            markers = [path.name for path in sockets.glob("idle-*")]
            await flood(sockets, [msgspec.msgpack.encode(marker) for marker in (*markers, "idle", "")])
            for name in ("idle-1-abc-1-s-0", f"idle-1-{10**15}-1-s-00", f"idle-1-{10**16}-1-..", "s-x", "s-\xff", "x"):
                (sockets / name).touch()

            # One that is due soon looks at what every marker says.
            assert (await caller.enqueue(f"later-{number}", 1, delay=0.01)).status == "queued"
            assert await caller.enqueue_and_wait(f"job-{number}", 21, timeout=5) == 42


async def flood(directory: Path, messages: list[bytes]) -> int:
    """Send everything to every socket in the directory, and return how many datagrams arrived there."""
    loop, sent = asyncio.get_running_loop(), 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as forger:
        for path in sockets_in(directory):
            forger.connect(str(path))
            for message in messages:
                try:
                    await asyncio.wait_for(loop.sock_sendall(forger, message), 5.0)
                    sent += 1
                except OSError:  # Too long for a datagram.
                    continue
    return sent


def sockets_in(directory: Path) -> list[Path]:
    return [path for path in directory.glob("s-*") if path.is_socket()]


def messages(generation: str) -> Iterator[bytes]:
    """Yield noise, other shapes and versions, what is too long, and a result in our own shape without the secret."""
    chance, encode = random.Random(1), msgspec.msgpack.encode
    yield from (b"", b"\xc1", b"null", b"{}", encode(None), encode([]), encode({"queue": 1}), encode(["default", []]))
    yield from (chance.randbytes(chance.randrange(1, 100)) for _ in range(300))
    yield from (b"\x91" * size for size in (10_000, 150_000, 210_000))
    yield encode("idle-1-1-1-" + "x" * 150_000)
    snapshot = Snapshot("job", generation, State.COMPLETED, 1, 3, 0.0, 0.0, 60.0, result=b"666")
    for secret in ("", "0" * 24, "s-0:0", "\0", "é" * 50):
        for kind in HintKind:
            for told in (snapshot, None, msgspec.structs.replace(snapshot, state=State.CANCELLED)):
                whole = encode(("default", [(secret, Hint(kind, "job", generation, told))]))
                yield from (whole, whole[:-1], whole[:-1] + b"\xff", whole.replace(b"666", b"\xff\xff\xff"))
                yield encode(("default", [(secret, Hint(kind, "job", generation, told)), (secret, 7)]))
                yield encode((["default"], [(secret, [9, "job", generation, told])]))
