"""Direct: the route to one server, or to whoever is the master of a service that Sentinels watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from jobq.errors import StorageError
from jobq.storage.redis.channels import Channels, Subscription
from jobq.storage.redis.link import Link
from jobq.storage.redis.markers import Markers
from jobq.storage.redis.outage import Outage
from jobq.storage.redis.packing import Command
from jobq.storage.redis.sentinels import Sentinels
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import code_of, explained
from jobq.storage.redis.urls import Place
from jobq.storage.redis.wire import Dialer, Wire

_NO_MASTER = ("READONLY", "MASTERDOWN")


class Direct:
    """At most three connections, each made when it is first needed."""

    def __init__(
        self,
        settings: Settings,
        *,
        role: str,
        time_limit: float,
        control: str,
        outage: Outage,
        interrupt: Callable[[str], Awaitable[None]],
        give_back: Callable[[str], Awaitable[None]],
    ) -> None:
        self._address = str(settings.target)
        self._outage = outage
        locate: Callable[[], Awaitable[Place]] = partial(_given, settings.target.places[0])
        self._sentinels: Sentinels | None = None
        if settings.target.mode == "sentinel":
            self._sentinels = Sentinels(settings, time_limit)
            locate = self._sentinels.master
        dialer = partial(Dialer, settings, time_limit=time_limit, locate=locate, address=self._address)
        self._link = Link(
            dialer(role),
            time_limit=time_limit,
            connected=self._connected,
            lost=self._lost,
            doubted=None if self._sentinels is None else self._doubt,
        )
        self._channels = Channels(dialer("channels"), time_limit=time_limit)
        self._markers = Markers(
            dialer("markers"), control=control, interrupt=interrupt, give_back=give_back, refused=self._suspect
        )
        self._subscriptions: dict[str, Subscription] = {}
        self._asking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await asyncio.gather(self._markers.close(), self._channels.close())
        await self._link.close()  # Last, since markers are given back over it.
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def call(self, slot_key: str, command: Command) -> Any:
        try:
            return await self._link.call(command)
        except RedisError as error:
            self._suspect(error)
            raise explained(self._address, error, command) from error

    async def call_everywhere(self, command: Command) -> list[Any]:
        return [await self.call("", command)]

    async def subscribe(self, slot_key: str, subscription: Subscription) -> None:
        self._subscriptions[subscription.channel] = subscription
        try:
            await self._channels.subscribe(subscription)
        except BaseException:
            self._subscriptions.pop(subscription.channel, None)
            raise

    async def unsubscribe(self, channel: str) -> None:
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._channels.remove(subscription)

    def wait_for_marker(self, key: str, timeout: float) -> Coroutine[Any, Any, bool]:
        return self._markers.wait(key, timeout)

    def _connected(self, wire: Wire) -> None:
        """Have the other connections follow to a new master."""
        self._outage.back(self._address)
        for other in (self._channels, self._markers):
            if other.wire is not None and other.wire.place != wire.place:
                other.renew()

    def _lost(self, error: StorageError) -> None:
        self._outage.lost(self._address, error)

    def _doubt(self) -> None:
        """Ask the Sentinels whether this silent server is the master still."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_for_another())

    async def _ask_for_another(self) -> None:
        wire = self._link.wire
        assert self._sentinels is not None
        with contextlib.suppress(RedisError, OSError, StorageError):  # Nobody knows better: it may answer yet.
            master = await self._sentinels.master()
            if wire is not None and self._link.wire is wire and master != wire.place:
                self._link.renew(f"{wire.place} is silent, and {master} is the master now")

    def _suspect(self, error: RedisError) -> None:
        """Look for another master if this server says that it is none."""
        if code_of(error) in _NO_MASTER:
            self._link.renew(error)


async def _given(place: Place) -> Place:
    return place
