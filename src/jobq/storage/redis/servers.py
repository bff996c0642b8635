"""Servers: what the rest of the storage sees of connections, the same for one server, for Sentinels and for a Cluster.

Four connections at most to a server: commands, channels, markers, and the commands of a twin. None is used in another
loop, and each is made again when it is lost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from jobq.errors import StorageError
from jobq.storage.redis.channels import Subscription
from jobq.storage.redis.cluster import Cluster
from jobq.storage.redis.direct import Direct
from jobq.storage.redis.outage import Outage
from jobq.storage.redis.packing import Command
from jobq.storage.redis.settings import Settings

_CONTROL_LASTS = 1000
"""Milliseconds after which a push to a control list is forgotten; by then the BLPOP that it is for has seen it."""


class Servers:
    """The connections of one storage object; may be opened again after they were closed, in another loop as well."""

    def __init__(
        self, settings: Settings, time_limit: float = 5.0, *, control: str = "jobq:control", role: str = "commands"
    ) -> None:
        self._settings = settings
        self._time_limit = time_limit
        self._role = role
        self._control = control
        """What the name of the list begins with by which a process ends its own blocking reads."""
        self._outage = Outage()
        self.give_back: Callable[[str], Awaitable[None]] = self._push
        """Puts back a marker that was popped for nobody; may be replaced by what pushes only where there is none."""
        self._route = self._make_route()

    def __repr__(self) -> str:
        return f"<Servers {self.address}>"

    @property
    def address(self) -> str:
        """For people: the URL without user, password and options."""
        return str(self._settings.target)

    def report_outages(self, on_outage: Callable[[StorageError], None], on_recovery: Callable[[float], None]) -> None:
        """Have an outage told once when it begins, and once when it ends, with its seconds.

        Only what interrupts commands is an outage.
        """
        self._outage.on_outage, self._outage.on_recovery = on_outage, on_recovery

    def twin(self) -> Servers:
        """Return the same servers over connections of their own, not yet open, for another loop."""
        return Servers(self._settings, self._time_limit, control=self._control, role="twin")

    async def open(self) -> None:
        """Connect for commands.

        Raises:
            StorageUnavailableError: there was no answer within the time limit.
            StorageError: the server refuses us; trying again would not help. Its code is ``MISCONFIGURED``.
        """
        self._route = self._make_route()
        await self._route.open()

    async def close(self) -> None:
        """Close all connections; what is in flight fails."""
        await self._route.close()

    def call(self, slot_key: str, command: Command) -> Coroutine[Any, Any, Any]:
        """Send a command to the server that has a key, and return its reply.

        Commands sent within one turn of the loop leave in one write, and are answered in order. One that is cancelled
        may or may not have been done.

        Raises:
            NoScript: the server does not know the script.
            StorageUnavailableError: the outcome is unknown.
            StorageError: the server refuses the command.
        """
        return self._route.call(slot_key, command)

    async def call_everywhere(self, command: Command) -> list[Any]:
        """Send a command to every server that keeps jobs, and return the replies of those that can be reached.

        Raises like `call`, if there is none.
        """
        return await self._route.call_everywhere(command)

    async def subscribe(
        self, slot_key: str, channel: str, receive: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """Listen to a channel, from the server's confirmation on, for which this waits.

        Args:
            slot_key: in a Cluster, only what is published by who has this key's slot is heard.
            channel: nobody else of this object may listen to it.
            receive: called with each message.
            missed: called when the channel is heard again after a time in which it was not.

        Raises:
            StorageUnavailableError: there was no confirmation within the time limit; nothing is subscribed.
            StorageError: the server refuses.
        """
        await self._route.subscribe(slot_key, Subscription(channel, receive, missed))

    async def unsubscribe(self, channel: str) -> None:
        """Stop listening; nothing is received any more."""
        await self._route.unsubscribe(channel)

    def wait_for_marker(self, key: str, timeout: float) -> Coroutine[Any, Any, bool]:
        """Wait until a marker can be popped from a list.

        Returns:
            False when the time is over; True if a marker was popped for this call, or may have been. While the server
            is away, time passes.
        """
        return self._route.wait_for_marker(key, timeout)

    def _make_route(self) -> Direct | Cluster:
        route = Cluster if self._settings.target.mode == "cluster" else Direct
        return route(
            self._settings,
            role=self._role,
            time_limit=self._time_limit,
            control=f"{self._control}:{os.urandom(8).hex()}",  # Drawn late: after a fork each child has one of its own.
            outage=self._outage,
            interrupt=self._interrupt,
            give_back=self._give_back,
        )

    async def _interrupt(self, control: str) -> None:
        push, expiry = ("LPUSH", control, 1), ("PEXPIRE", control, _CONTROL_LASTS)
        await asyncio.gather(self.call(control, push), self.call(control, expiry))

    async def _give_back(self, key: str) -> None:
        await self.give_back(key)

    async def _push(self, key: str) -> None:
        await self.call(key, ("LPUSH", key, 1))
