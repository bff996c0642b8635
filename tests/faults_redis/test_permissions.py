"""The smallest set of permissions with which everything works, and what is said if one of them is missing."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from jobq import Queue, RedisStorage, StorageError
from jobq.storage.contract import Storage
from jobq.testing import Bench, ManualClock, StorageCase, StorageContract
from tests.faults_redis.scenes import Work, eventually, in_loop
from tests.servers.cluster import Cluster
from tests.servers.secret import SECRET
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Server
from tests.servers.user import COURTESIES, User, listed

COMMANDS = [command for command in listed() if command not in COURTESIES]
"""Every command that jobq needs on a server without Sentinels and Cluster, as docs/how-to/redis.md lists them."""

CHANNELS = ("subscribe", "unsubscribe", "publish")
"""Those that begin with an s in a Cluster."""


@pytest.fixture
def user(either_server: Server, key_prefix: str) -> Iterator[User]:
    """A user with exactly the smallest set of permissions."""
    user = User(either_server, key_prefix)
    user.may(COMMANDS)
    yield user
    user.leave()


@asynccontextmanager
async def bench_on(storage: RedisStorage) -> AsyncIterator[Bench]:
    """A bench on a user's storage, with the server's own clock."""
    await storage.open()
    bench = Bench(StorageCase(), ManualClock(), storage)
    try:
        yield bench
    finally:
        await bench.close()


def storage_of(user: User) -> RedisStorage:
    return RedisStorage(user.url, key_prefix=user.prefix)


async def refused(storage: RedisStorage) -> str:
    """Return what is said when a queue does not start."""
    with pytest.raises(StorageError) as caught:
        await Queue[int, int](storage).start()
    assert caught.value.code == "MISCONFIGURED"
    assert SECRET not in str(caught.value)
    return str(caught.value)


@in_loop
async def test_every_missing_command_is_named_at_the_start(user: User) -> None:
    """So the set is the smallest: nothing of it can be left out."""
    for command in COMMANDS:
        user.may([other for other in COMMANDS if other != command])

        said = await refused(storage_of(user))

        assert re.search(rf"\b{command.upper()}\b", said), command
        user.may(COMMANDS)
        async with Work(storage_of(user), name=f"after-{command}") as work:
            assert await work.queue.enqueue_and_wait("job", 21, timeout=5) == 42, command


@in_loop
async def test_a_renewal_that_is_refused_is_no_lost_lease(user: User) -> None:
    """A worker would else drop all that it runs, although nobody has taken it."""
    async with bench_on(storage_of(user)) as bench:
        claim = await bench.processing()
        user.may([command for command in COMMANDS if command != "getrange"])

        for asked in (bench.extend(claim), bench.queue.counts()):
            with pytest.raises(StorageError) as caught:
                await asked
            assert caught.value.code == "MISCONFIGURED"

        user.may(COMMANDS)
        assert str(await bench.extend(claim)) == "held"


@in_loop
async def test_what_is_refused_for_want_of_a_permission_is_not_stored(user: User) -> None:
    """Taken away while the queue runs, from the command that wakes a worker: it is the last that an enqueue needs."""
    async with Work(storage_of(user), handles=False) as work:
        user.may([command for command in COMMANDS if command != "lpush"])

        with pytest.raises(StorageError) as caught:
            await work.queue.enqueue("job", 1)

        assert caught.value.code == "MISCONFIGURED"
        user.may(COMMANDS)
        assert await work.queue.get_status("job") is None


@pytest.mark.parametrize(
    ("keys", "about"),
    [
        (["&{prefix}*"], "key"),
        (["~other:*", "&{prefix}*"], "key"),
        (["%R~{prefix}*", "&{prefix}*"], "key"),
        (["%W~{prefix}*", "&{prefix}*"], "key"),
        (["~{prefix}*"], "PUBLISH"),
        (["~{prefix}*", "&other:*"], "PUBLISH"),
    ],
)
@in_loop
async def test_missing_keys_and_channels_are_told_at_the_start(user: User, keys: Sequence[str], about: str) -> None:
    user.may(COMMANDS, keys)

    said = await refused(storage_of(user))

    assert about in said
    assert "ACL SETUSER" in said or "docs/how-to/redis.md" in said


@in_loop
async def test_other_keys_and_commands_are_not_needed(user: User, either_server: Server) -> None:
    """Beside it the user may do nothing: neither read what others have, nor look into the server's settings."""
    either_server.command("ACL", "LOG", "RESET")
    async with Work(storage_of(user)) as work:
        assert await work.queue.enqueue_and_wait("job", 21) == 42
        assert len(await work.queue.counts()) > 0

    logged = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in either_server.command("ACL", "LOG")]
    denied = {entry["object"] for entry in logged if entry["username"] == user.name}
    # These two are asked for as a courtesy, and not missed.
    assert denied <= {"client|setname", "client|setinfo", "ping"}


@pytest.mark.slow
@in_loop
async def test_what_is_listed_for_a_cluster_is_enough(cluster: Cluster, key_prefix: str) -> None:
    """Sharded channels instead of the others, and the map: at every node."""
    commands = [f"s{command}" if command in CHANNELS else command for command in COMMANDS] + ["cluster|slots", "asking"]
    users = [User(node, key_prefix) for node in cluster.nodes]
    for user in users:
        user.may(commands)
    storage = RedisStorage(users[0].login(cluster.url), key_prefix=key_prefix)

    async with Work(storage, name="a") as first, Work(storage, name="b") as second, Work(storage, name="c") as third:
        waits = [work.queue.enqueue_and_wait(f"job-{n}", n) for work in (first, second, third) for n in range(5)]
        assert await asyncio.gather(*waits) == 3 * [2 * n for n in range(5)]

    for user in users:
        user.leave()


@pytest.mark.slow
@in_loop
async def test_what_is_listed_behind_sentinels_is_enough(sentinel_group: SentinelGroup, key_prefix: str) -> None:
    user = User(sentinel_group.master, key_prefix)
    for commands in ([*COMMANDS, "role"], COMMANDS):
        user.may(commands)
        async with Work(RedisStorage(user.login(sentinel_group.url), key_prefix=key_prefix)) as work:
            assert await work.queue.enqueue_and_wait(f"job-{len(commands)}", 21) == 42
    user.leave()


@in_loop
async def test_a_permission_that_is_taken_away_while_jobs_run_is_told_typed(user: User, either_server: Server) -> None:
    """The worker goes on when it is given back."""
    async with Work(storage_of(user)) as work:
        assert await work.queue.enqueue_and_wait("before", 21) == 42
        user.may([command for command in COMMANDS if command != "mset"])

        with pytest.raises(StorageError) as caught:
            await work.queue.enqueue("during", 1)

        assert caught.value.code == "MISCONFIGURED"
        user.may(COMMANDS)
        assert await work.queue.enqueue_and_wait("after", 21) == 42
        await eventually(lambda: "after" in work.completed, "the event")


class TestUnderTheSmallest(StorageContract):
    """The whole conformance kit as that user."""

    time_is_a_servers = True
    user: User
    prefixes: ClassVar[dict[Storage, str]] = {}

    async def make_storage(self, clock: ManualClock) -> Storage:
        prefix = f"{self.user.prefix}{uuid.uuid4().hex[:8]}:"
        storage = RedisStorage(self.user.url, key_prefix=prefix, clock=clock)
        self.prefixes[storage] = prefix
        return storage

    async def make_peer(self, storage: Storage) -> Storage | None:
        return RedisStorage(self.user.url, key_prefix=self.prefixes[storage], clock=storage.clock)

    async def destroy(self, storage: Storage) -> None:
        del self.prefixes[storage]

    @pytest.fixture(autouse=True)
    def _user(self, user: User) -> None:
        self.user = user
