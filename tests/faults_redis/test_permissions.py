"""The smallest set of permissions with which everything works, and what is said if one of them is missing."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from jobq import Queue, RedisStorage, StorageError
from jobq.storage.contract import Storage
from jobq.testing import ManualClock, StorageContract
from tests.faults_redis.scenes import Work, eventually, in_loop
from tests.servers.secret import SECRET
from tests.servers.server import Server

COMMANDS = [
    *("eval", "evalsha", "info", "scan", "lpush", "blpop", "pexpire", "subscribe", "unsubscribe", "publish"),
    *("time", "get", "set", "mget", "mset", "del", "exists", "hmget", "hset"),
    *("zadd", "zcard", "zrange", "zrem", "zscore"),
]
"""Every command that jobq needs on a server without Sentinels and Cluster, as docs/how-to/redis.md lists them."""
KEYS = ("~{prefix}*", "&{prefix}*")
"""Which keys and which channels; the prefix is that of the storage."""


class User:
    """A user of the server with chosen permissions and a key prefix of its own."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._name = prefix.removesuffix(":")
        self.prefix = prefix

    @property
    def url(self) -> str:
        return f"redis://{self._name}:{SECRET}@127.0.0.1:{self._server.port}/0"

    def storage(self) -> RedisStorage:
        return RedisStorage(self.url, key_prefix=self.prefix)

    def may(self, commands: Sequence[str], keys: Sequence[str] = KEYS) -> None:
        rules = [key.format(prefix=self.prefix) for key in keys] + [f"+{command}" for command in commands]
        self._server.command("ACL", "SETUSER", self._name, "reset", "on", f">{SECRET}", *rules)

    def leave(self) -> None:
        self._server.command("ACL", "DELUSER", self._name)


@pytest.fixture
def user(either_server: Server, key_prefix: str) -> Iterator[User]:
    """A user with exactly the smallest set of permissions."""
    user = User(either_server, key_prefix)
    user.may(COMMANDS)
    yield user
    user.leave()


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

        said = await refused(user.storage())

        assert re.search(rf"\b{command.upper()}\b", said), command
        user.may(COMMANDS)
        async with Work(user.storage(), name=f"after-{command}") as work:
            assert await work.queue.enqueue_and_wait("job", 21, timeout=5) == 42, command


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

    said = await refused(user.storage())

    assert about in said
    assert "ACL SETUSER" in said or "docs/how-to/redis.md" in said


@in_loop
async def test_other_keys_and_commands_are_not_needed(user: User, either_server: Server) -> None:
    """Beside it the user may do nothing: neither read what others have, nor look into the server's settings."""
    either_server.command("ACL", "LOG", "RESET")
    async with Work(user.storage()) as work:
        assert await work.queue.enqueue_and_wait("job", 21) == 42
        assert len(await work.queue.counts()) > 0

    logged = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in either_server.command("ACL", "LOG")]
    denied = {entry["object"] for entry in logged if entry["username"] == user.prefix.removesuffix(":")}
    # These two are asked for as a courtesy, and not missed.
    assert denied <= {"client|setname", "client|setinfo", "ping"}


@in_loop
async def test_a_permission_that_is_taken_away_while_jobs_run_is_told_typed(user: User, either_server: Server) -> None:
    """The worker goes on when it is given back."""
    async with Work(user.storage()) as work:
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
