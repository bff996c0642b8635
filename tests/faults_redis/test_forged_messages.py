"""Messages of others on the queue's channels: they answer nobody, and nobody stops listening because of them."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import redis.asyncio as redis

from jobq import Queue, RedisStorage, State
from jobq.job import NewJob, Settlement
from tests.engine.scenes import Waiting
from tests.faults_redis.scenes import Work, eventually, in_loop
from tests.servers.server import Server


@in_loop
async def test_forged_and_garbled_messages_answer_nobody(either_server: Server, key_prefix: str) -> None:
    """Neither bytes of any kind, nor a result in the right shape without the secret; and nobody stops listening."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    async with Work(storage, handles=False) as work:
        stem = f"{key_prefix}{{default}}:"
        wait = asyncio.create_task(work.queue.enqueue_and_wait("job", 21, timeout=20))
        await eventually(lambda: either_server.command("EXISTS", f"{stem}j:job"), "the job")
        status = await work.queue.get_status("job")
        assert status is not None
        record = await forged_record(storage, either_server, stem, status.generation)
        channels = either_server.command("PUBSUB", "CHANNELS", f"{glob(stem)}*")
        reply = next(channel for channel in channels if ":reply:" in channel)
        async with redis.Redis.from_url(either_server.url) as forger:
            for message in messages(status.generation, record):
                for channel in (reply, f"{stem}events"):
                    assert await forger.publish(channel, message) == 1
        await work.queue.counts()

        assert not wait.done()
        async with Work(RedisStorage(either_server.url, key_prefix=key_prefix)) as worker:
            assert await wait == 42
            assert worker.runs == {"job": 1}
        assert work.of("error") == []


@in_loop
async def test_a_message_nested_too_deep_is_ignored_in_silence(either_server: Server, key_prefix: str) -> None:
    """It needs no secret, and what a program does about errors in its loop is not for strangers to set off."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    async with Work(storage) as work, redis.Redis.from_url(either_server.url) as forger:
        stem = f"{key_prefix}{{default}}:"
        wait = asyncio.create_task(work.queue.enqueue_and_wait("job", 21, delay=0.5, timeout=20))
        await eventually(lambda: either_server.command("EXISTS", f"{stem}j:job"), "the job")
        channels = either_server.command("PUBSUB", "CHANNELS", f"{glob(stem)}*")
        deep = b"\x92\xa1s\x91\x94\x01\xa3job\xa1g" + b"\x91" * 5_000 + b"\xc0"
        for channel in channels:
            assert await forger.publish(channel, deep) == 1

        assert await wait == 42
    assert failures == []


@in_loop
async def test_messages_of_a_later_version_are_ignored_and_cost_only_time(
    either_server: Server, key_prefix: str
) -> None:
    """A worker that was updated first may say more, or say it otherwise: callers of this version still get answers."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    queue, waiting = Queue[int, int](storage, visibility_timeout=300.0, block_timeout=0.2), Waiting()
    errors: list[BaseException] = []
    queue.on("error", errors.append)
    queue.execute(waiting)
    async with queue:
        wait = asyncio.create_task(queue.enqueue_and_wait("job", 21, timeout=20))
        await waiting.begun()
        status = await queue.get_status("job")
        assert status is not None
        stem = f"{key_prefix}{{default}}:"
        channels = either_server.command("PUBSUB", "CHANNELS", f"{glob(stem)}*")
        reply = next(channel for channel in channels if ":reply:" in channel)
        async with redis.Redis.from_url(either_server.url) as later:
            addresses = await later.get(f"{stem}j:job")
            secret = re.search(rb"[0-9a-f]{16}\.([0-9a-f]{24}) ", addresses or b"")
            assert secret is not None, "the address that is told how the job ends"
            record = await forged_record(storage, either_server, stem, status.generation)
            for message in later_messages(secret[1].decode(), status.generation, record):
                for channel in (reply, f"{stem}events"):
                    assert await later.publish(channel, message) == 1
        await queue.counts()

        assert not wait.done()
        assert (waiting.cancelled, waiting.jobs[0].signal.aborted) == ([], False)
        waiting.release.set()
        assert await wait == 21
    assert errors == []


@in_loop
async def test_a_forged_request_to_cancel_stops_nothing(either_server: Server, key_prefix: str) -> None:
    """The storage is asked whether it is true; a true one stops the run long before its lease is renewed."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    queue, waiting = Queue[int, int](storage, visibility_timeout=300.0, block_timeout=0.2), Waiting()
    queue.execute(waiting)
    async with queue:
        wait = asyncio.create_task(queue.enqueue_and_wait("job", 21, timeout=20))
        await waiting.begun()
        status = await queue.get_status("job")
        assert status is not None
        forged = msgspec.msgpack.encode([4, "job", status.generation, 1])
        for _ in range(1000):
            assert either_server.command("PUBLISH", f"{key_prefix}{{default}}:events", forged) == 1
        await queue.counts()
        job = waiting.jobs[0]
        assert (job.signal.aborted, waiting.cancelled) == (False, [])
        waiting.release.set()

        assert await wait == 21
        waiting.release.clear()
        await queue.enqueue("another", 1)
        await waiting.begun(2)
        assert (await queue.cancel("another", running=True)).status == "cancelling"
        await eventually(lambda: waiting.cancelled == ["another"], "end of the run", within=5.0)
    assert len(waiting.jobs) == 2


def glob(text: str) -> str:
    """Return a pattern that stands for a text alone."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def messages(generation: str, done: bytes) -> Iterator[bytes]:
    """Yield what others might publish: noise, other shapes, and a result in our own shape without the secret."""
    chance = random.Random(1)
    encode = msgspec.msgpack.encode
    yield from (b"", b"\xc1", b"null", b"\x00" * 70_000, encode(None), encode([]), encode({"secret": 1}))
    yield from (chance.randbytes(chance.randrange(1, 60)) for _ in range(100))
    for secret in ("", "0" * 24, 7, None, b"\xff", ["secret"]):
        for kind in (0, 1, 2, 3, 4, 99, -1, "1"):
            for record in (done, done[:-3], b"\x02" + done[1:]):
                yield encode([secret, [[kind, "job", generation, text(record)]]])
            yield encode([kind, "job", generation, 1])
            yield encode([kind, "job", generation, done, 1, 2, 3])


def later_messages(secret: str, generation: str, done: bytes) -> Iterator[bytes]:
    """Yield shapes that a later version could use, all of them with the true secret."""
    encode = msgspec.msgpack.encode
    later = b"\x02" + done[1:]
    record, odd = text(done), text(later)
    yield encode([secret, [[1, "job", generation, odd]]])  # A record of the next format,
    yield encode([secret, [[1, "job", generation, record, {"trace": "00-ab-01"}]]])  # a field more,
    yield encode([secret, [[1, "job", generation, record]], 2])  # a part more,
    yield encode([2, secret, [[1, "job", generation, record]]])  # a version in front,
    yield encode([secret, [[5, "job", generation, record]]])  # a kind that is new,
    yield encode([secret, [["settled", "job", generation, record]]])  # kinds as words,
    yield encode({"version": 2, "secret": secret, "news": [{"kind": 1, "id": "job", "generation": generation}]})
    yield encode([secret, [[1, {"id": "job", "partition": 3}, generation, record]]])
    yield encode([5, "job", generation, 1])
    yield encode([4, "job", generation, 1, "because of a deploy"])
    yield encode({"version": 2, "kind": 4, "id": "job", "generation": generation, "attempts": 1})
    yield b"\x02" + encode([secret, [[1, "job", generation, record]]])
    yield encode([4, "job", generation, 1]) + encode([4, "job", generation, 1])


def text(record: bytes) -> msgspec.Raw:
    """Return bytes packed as a text, which is how the server does it."""
    return msgspec.Raw(b"\xdb" + len(record).to_bytes(4, "big") + record)


async def forged_record(storage: RedisStorage, server: Server, stem: str, generation: str) -> bytes:
    """Return a record as the server would keep it if the job had completed with 666."""
    other = storage.namespace("forge")
    assert list(await other.add([NewJob("job", generation, b"", 3, 3600.0)])) == [None]
    [claim] = (await other.claim("worker", 30.0, 1, "session.1")).claims
    await other.settle([Settlement("job", claim.token, State.COMPLETED, b"666", None, 3600.0)])
    async with redis.Redis.from_url(server.url) as thief:
        record = await thief.get(stem.replace("default", "forge") + "j:job")
    assert isinstance(record, bytes)
    return record
