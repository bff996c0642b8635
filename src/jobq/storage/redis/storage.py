"""RedisStorage: jobs on a Redis or Valkey server, shared by any number of processes and machines.

A verb of the contract is one Lua script (``*.lua``), and its arguments and answers are packed in `namespace` and
`records`. `servers` knows which server to ask, and moves commands and replies. Keys and the record are described in
docs/reference/redis-keys.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from jobq.checks import check_bool, check_clock, check_seconds, shown
from jobq.clock import Clock
from jobq.errors import ConfigError, StorageError
from jobq.storage.connection import Connection
from jobq.storage.contract import QueueStorage
from jobq.storage.redis.namespace import RedisNamespace
from jobq.storage.redis.packing import Command, Part
from jobq.storage.redis.readiness import refuse_forbidden, refuse_unfit
from jobq.storage.redis.scripts import script
from jobq.storage.redis.servers import Servers
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import NoScript

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

_logger = logging.getLogger("jobq.storage")
_PREFIX = re.compile(r"[^{}\s\x00-\x1f\x7f\ud800-\udfff]{1,128}")


class RedisStorage(Connection):
    """Keeps jobs on a Redis 7 or Valkey 8 server, or a later one; alone, behind Sentinels, or in a Cluster.

    What the server's own persistence keeps is what jobq keeps: see docs/how-to/redis.md.

    Args:
        url: such as ``redis://user:password@host:6379/0``; ``docs/how-to/redis.md`` lists all forms.
        key_prefix: what the names of all keys begin with; without braces.
        client: a `redis.asyncio.Redis` or `RedisCluster` whose settings are used instead of ``url``, and never its
            connections.
        operation_timeout: seconds after which a server that does not answer counts as lost.
        allow_eviction: whether to accept a server that may remove jobs when its memory is full.
        clock: replaces the server's clock, in tests.
    """

    remote: ClassVar[bool] = True

    def __init__(
        self,
        url: str | None = None,
        *,
        key_prefix: str = "jobq:",
        client: Redis | RedisCluster | None = None,
        operation_timeout: float | timedelta = 5.0,
        allow_eviction: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(key_prefix, str) or not _PREFIX.fullmatch(key_prefix):
            raise ConfigError(f"key_prefix={shown(key_prefix)}: must be 1 to 128 characters without braces and spaces")
        if url is not None and client is not None:
            raise ConfigError("url, client: give one of the two")
        if client is not None:
            settings = Settings.from_client(client)
        else:
            settings = Settings.from_url("redis://localhost:6379/0" if url is None else url)
        self._cluster = settings.target.mode == "cluster"
        self._database = settings.target.database
        time_limit = check_seconds("operation_timeout", operation_timeout, zero=False)
        servers = Servers(settings, time_limit, control=f"{key_prefix}control")
        servers.report_outages(self._tell_outage, self._tell_recovery)
        self._use(servers, key_prefix, clock)
        self._allow_eviction = check_bool("allow_eviction", allow_eviction)
        self._looked_at = False
        """Whether the servers are known to be fit, as a twin's are."""

    def _use(self, servers: Servers, key_prefix: str, clock: Clock | None) -> None:
        self._servers = servers
        servers.give_back = self._put_marker_back
        self._key_prefix = key_prefix
        self._given_clock = clock
        self._clock = check_clock(clock)
        self._publish = "SPUBLISH" if self._cluster else "PUBLISH"
        self._namespaces: dict[str, RedisNamespace] = {}

    @property
    def clock(self) -> Clock:
        return self._clock

    def namespace(self, name: str) -> QueueStorage:
        if name not in self._namespaces:
            stem = f"{self._key_prefix}{{{name}}}:"
            counts_time = self._given_clock is not None
            self._namespaces[name] = RedisNamespace(self, stem, self._clock, counts_time=counts_time)
        return self._namespaces[name]

    def twin(self) -> RedisStorage:
        twin = RedisStorage.__new__(RedisStorage)
        Connection.__init__(twin)
        twin._cluster, twin._database = self._cluster, self._database
        twin._use(self._servers.twin(), self._key_prefix, self._given_clock)
        twin._looked_at = True
        return twin

    def __repr__(self) -> str:
        return f"<RedisStorage {self._servers.address}>"

    # What namespaces need of the connections.

    # Coroutines are handed on as they are, because each one awaited within another costs every call.

    def call(self, slot_key: str, command: Command) -> Coroutine[Any, Any, Any]:
        self.check_usable()
        return self._servers.call(slot_key, command)

    def run(
        self, slot_key: str, verb: str, times: tuple[Part, Part], arguments: Sequence[Part]
    ) -> Coroutine[Any, Any, Any]:
        """Run a script by its digest, or by its text if the server does not know it (any more)."""
        self.check_usable()
        return self._run(slot_key, verb, times, arguments)

    async def subscribe(
        self, slot_key: str, channel: str, receive: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        self.check_usable()
        await self._servers.subscribe(slot_key, channel, receive, missed)

    def events(self, stem: str) -> str:
        """Return the channel of a queue's events: one for each database, since channels know no databases."""
        return f"{stem}events:{self._database}" if self._database else f"{stem}events"

    async def unsubscribe(self, channel: str) -> None:
        await self._servers.unsubscribe(channel)

    def wait_for_marker(self, key: str, timeout: float) -> Coroutine[Any, Any, bool]:
        self.check_usable()
        return self._servers.wait_for_marker(key, timeout)

    async def _run(self, slot_key: str, verb: str, times: tuple[Part, Part], arguments: Sequence[Part]) -> Any:
        one = script(verb)
        rest = (2, slot_key, self.events(slot_key), *times, self._publish, *arguments)
        try:
            return await self._servers.call(slot_key, ("EVALSHA", one.digest, *rest))
        except NoScript:
            return await self._servers.call(slot_key, ("EVAL", one.text, *rest))

    def _tell_outage(self, error: StorageError) -> None:
        _logger.warning("%s", error)

    def _tell_recovery(self, seconds: float) -> None:
        _logger.warning("%s is back after %.1f s", self._servers.address, seconds)

    async def _put_marker_back(self, key: str) -> None:
        await self._run(key.removesuffix("wake"), "wake", ("", ""), ())

    async def _connect(self) -> None:
        for namespace in self._namespaces.values():
            namespace.forget()
        await self._servers.open()
        try:
            stem = f"{self._key_prefix}{{-}}:"  # No queue can have this name.
            address = self._servers.address
            if not self._looked_at:
                for info in await self._servers.call_everywhere(("INFO",)):
                    refuse_unfit(address, info, allow_eviction=self._allow_eviction, cluster=self._cluster)
                await self._try_commands(stem, address)
        except GeneratorExit:  # Its loop has ended in here, and what is connected now is of another.
            raise
        except BaseException:
            await self._servers.close()
            raise

    async def _try_commands(self, stem: str, address: str) -> None:
        """Send what will be sent: scripts by both ways in which they are run, and what scripts cannot try."""
        one = script("check")
        for way, body in (("EVAL", one.text), ("EVALSHA", one.digest)):
            command: Command = (way, body, 2, stem, self.events(stem), 1, 1, self._publish)
            with suppress(NoScript):  # Somebody flushed the scripts between the two; it may be run by its digest.
                refuse_forbidden(address, await self._servers.call(stem, command))
        leave = "SUNSUBSCRIBE" if self._cluster else "UNSUBSCRIBE"
        commands: list[Command] = [("BLPOP", f"{stem}check", 0.01), ("SCAN", 0, "COUNT", 1), (leave, f"{stem}check")]
        for command in commands:
            await self._servers.call(stem, command)

    async def _disconnect(self) -> None:
        await self._servers.close()
