"""Servers that cannot keep what jobq promises are refused at the start, with the remedy, and without a secret."""

from __future__ import annotations

import asyncio
import time

import pytest

from jobq import Queue, RedisStorage, StorageError, StorageFullError, StorageUnavailableError
from tests.faults_redis.scenes import SLACK, Work, counted, eventually, in_loop, names
from tests.servers.binaries import Kind
from tests.servers.fixtures import REDIS_KINDS, Starter
from tests.servers.secret import SECRET, WRONG
from tests.servers.server import Server

EVICTING = ("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl")


async def refused(storage: RedisStorage) -> StorageError:
    """Return the error with which a queue does not start; it must be told at once and show no secret."""
    begun = time.monotonic()
    with pytest.raises(StorageError) as caught:
        await Queue[int, int](storage).start()
    assert time.monotonic() - begun < 5.0 + SLACK
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    return caught.value


@pytest.mark.parametrize("policy", EVICTING)
@in_loop
async def test_a_server_that_may_evict_is_refused_unless_that_is_allowed(start: Starter, policy: str) -> None:
    server = start.server("redis", options=["maxmemory 100mb", f"maxmemory-policy {policy}"])

    error = await refused(RedisStorage(server.url))

    assert error.code == "MISCONFIGURED"
    assert policy in str(error)
    assert "noeviction" in str(error)
    assert "allow_eviction=True" in str(error)
    async with Work(RedisStorage(server.url, allow_eviction=True)) as work:
        assert await work.queue.enqueue_and_wait("job", 21) == 42


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_workers_drain_a_server_whose_memory_is_full(start: Starter, kind: Kind) -> None:
    """Nothing new is accepted; what is stored runs, ends, is read and cancelled; afterwards jobs are accepted again."""
    server = start.server(kind)
    async with Work(RedisStorage(server.url), handles=False) as producer:
        await producer.queue.enqueue_many([(id, 1) for id in names(100)])
        # One byte is used up by whatever the server keeps.
        server.command("CONFIG", "SET", "maxmemory", 1)

        with pytest.raises(StorageFullError, match="maxmemory") as caught:
            await producer.queue.enqueue("more", 1)

        assert caught.value.code == "FULL"
        assert (await producer.queue.cancel("job-99")).status == "cancelled"
        async with Work(RedisStorage(server.url, allow_eviction=True)) as worker:
            await eventually(lambda: len(worker.completed) == 99, "all jobs")
            assert await producer.queue.wait("job-0") == 2
            assert (await producer.queue.update_result_ttl("job-0", 60)).status == "updated"
            server.command("CONFIG", "SET", "maxmemory", 0)
            assert await producer.queue.enqueue_and_wait("more", 21) == 42
        assert sum((await counted(producer.queue)).values()) == 100


@in_loop
async def test_each_caller_of_a_batch_is_told_that_memory_is_full(start: Starter) -> None:
    """Twenty callers in one batch: each of them is told, and nothing of it is stored."""
    server = start.server()
    async with Work(RedisStorage(server.url), handles=False) as work:
        server.command("CONFIG", "SET", "maxmemory", 1)

        answers = await asyncio.gather(*(work.queue.enqueue(id, 1) for id in names(20)), return_exceptions=True)

        assert [type(answer) for answer in answers] == [StorageFullError] * 20
        server.command("CONFIG", "SET", "maxmemory", 0)
        assert await counted(work.queue) == {}


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_wrong_password_or_none_or_a_wrong_user_is_refused(start: Starter, kind: Kind) -> None:
    server = start.server(kind, password=WRONG)
    at = f"127.0.0.1:{server.port}"

    for login in (f":{SECRET}@", "", f"nobody:{SECRET}@"):
        error = await refused(RedisStorage(f"redis://{login}{at}/0"))

        assert error.code == "MISCONFIGURED", login
        assert at in str(error), login
        assert "password" in str(error), login


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_password_in_the_url_is_used_and_never_shown(start: Starter, kind: Kind) -> None:
    server = start.server(kind, password=SECRET)
    storage = RedisStorage(server.url)
    async with Work(storage) as work:
        assert await work.queue.enqueue_and_wait("job", 21) == 42
        server.kill()

        with pytest.raises(StorageUnavailableError) as caught:
            await work.queue.enqueue("job", 1)

        shown = f"{caught.value} {caught.value!r} {storage!r} {work.queue!r} {work.of('error')}"
        assert SECRET not in shown
        assert str(server.port) in str(caught.value)
    error = await refused(RedisStorage(server.url))
    assert isinstance(error, StorageUnavailableError)


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_database_that_does_not_exist_is_refused(start: Starter, kind: Kind) -> None:
    server = start.server(kind)

    error = await refused(RedisStorage(f"redis://127.0.0.1:{server.port}/99"))

    assert error.code == "MISCONFIGURED"
    assert "database" in str(error)


@in_loop
async def test_databases_of_one_server_are_kept_apart(valkey_server: Server, key_prefix: str) -> None:
    url = f"redis://127.0.0.1:{valkey_server.port}"
    async with (
        Work(RedisStorage(f"{url}/0", key_prefix=key_prefix), handles=False) as first,
        Work(RedisStorage(f"{url}/1", key_prefix=key_prefix), handles=False) as second,
    ):
        await first.queue.enqueue("job", 1)

        assert (await second.queue.enqueue("job", 2)).status == "queued"


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_replica_is_refused_and_a_master_that_becomes_one_is_unavailable(start: Starter, kind: Kind) -> None:
    """``READONLY`` may pass by itself, since a master may come back; meanwhile calls end in five seconds."""
    master, server = start.server(kind), start.server(kind)
    async with Work(RedisStorage(server.url)) as work:
        assert await work.queue.enqueue_and_wait("before", 1) == 2
        server.command("REPLICAOF", "127.0.0.1", master.port)
        await eventually(lambda: server.info("replication")["master_link_status"] == "up", "replication")

        error = await refused(RedisStorage(server.url))
        begun = time.monotonic()
        with pytest.raises(StorageUnavailableError, match=r"(?i)read.?only"):
            await work.queue.enqueue("during", 1)

        assert (error.code, "replica" in str(error)) == ("MISCONFIGURED", True)
        assert time.monotonic() - begun < 5.0 + SLACK
        server.command("REPLICAOF", "NO", "ONE")
        begun = time.monotonic()
        assert await work.queue.enqueue_and_wait("after", 1) == 2
        assert time.monotonic() - begun < 2.0


@in_loop
async def test_a_port_where_nobody_listens_and_one_that_speaks_something_else(start: Starter) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = start.server()
    server.kill()
    web = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = web.sockets[0].getsockname()[1]

    errors = [await refused(RedisStorage(f"redis://:{SECRET}@127.0.0.1:{port}/0")) for port in (server.port, port)]

    web.close()
    assert [isinstance(error, StorageUnavailableError) for error in errors] == [True, True]


@in_loop
async def test_a_format_of_the_future_is_refused(valkey_server: Server, key_prefix: str) -> None:
    """Nothing of the queue is touched; other queues go on."""
    valkey_server.command("HSET", f"{key_prefix}{{default}}:seq", "format", "2")
    storage = RedisStorage(valkey_server.url, key_prefix=key_prefix)
    async with Work(storage, handles=False) as work, Work(storage, name="other") as other:
        with pytest.raises(StorageError, match="format 2"):
            await work.queue.enqueue("job", 1)

        assert await other.queue.enqueue_and_wait("job", 21) == 42
        assert valkey_server.command("EXISTS", f"{key_prefix}{{default}}:j:job") == 0
