"""Cluster: the route to whichever node has a key's slot now.

1.  A command goes to the node that the map names. A node that has lost the slot says so (``MOVED``), and the command
    goes on from there; what is passing (``TRYAGAIN``, ``CLUSTERDOWN``, a key on the move) is tried again within the
    time limit.
2.  A script is never sent after a slot that is on the move (``ASK``). It touches keys which that node may not have yet,
    and would take them for absent.
3.  While a node is lost, the map is read again until the node is back or another has its slots. Then the connections to
    a node that is no master any more are closed, and channels are listened to where their slot is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import AskError, MovedError, RedisError

from jobq.clock import uniform
from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.redis.channels import Channels, Subscription
from jobq.storage.redis.link import Closed, Link
from jobq.storage.redis.markers import Markers
from jobq.storage.redis.outage import Outage
from jobq.storage.redis.packing import Command
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.slots import Slots
from jobq.storage.redis.trouble import explained, passes, unavailable
from jobq.storage.redis.urls import Place
from jobq.storage.redis.wire import Dialer, Wire

_LOOK_PAUSE = 0.25
"""Seconds between two looks at the map."""
_TRY_PAUSE = 0.1
"""Seconds between two tries of a command, on average."""
_ASKING: Command = ("ASKING",)
_SCRIPTS = ("EVALSHA", "EVAL")


class Node(NamedTuple):
    """The connections to one master."""

    link: Link
    channels: Channels

    async def close(self) -> None:
        await self.channels.close()
        await self.link.close()


class Home(NamedTuple):
    """Where a channel is listened to."""

    subscription: Subscription
    slot: int
    node: Node


class Cluster:
    """Two connections to each node that is used, and a blocking one for each list on which somebody waits."""

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
        self._dialer = partial(Dialer, settings, time_limit=time_limit, address=self._address)
        self._role = role
        self._time_limit = time_limit
        self._control = control
        self._outage = outage
        self._interrupt = interrupt
        self._give_back = give_back
        self._slots = Slots(settings, time_limit)
        self._nodes: dict[Place, Node] = {}
        self._homes: dict[str, Home] = {}
        self._astray: set[Subscription] = set()
        """Channels that their node refused or gave up."""
        self._markers: dict[str, Markers] = {}
        self._looking: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._open = False

    async def open(self) -> None:
        """Read the map, which also shows whether we are let in; connections are made when they are needed."""
        try:
            async with asyncio.timeout(self._time_limit):
                await self._slots.look(())
        except TimeoutError:
            raise unavailable(self._address, f"no connection within {self._time_limit:g} s") from None
        self._open = True

    async def close(self) -> None:
        self._open = False
        tasks = [*self._leaving, *([] if self._looking is None else [self._looking])]
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(markers.close() for markers in self._markers.values()))
        await asyncio.gather(*(node.close() for node in self._nodes.values()))
        await asyncio.gather(*tasks, return_exceptions=True)
        self._nodes.clear()
        self._markers.clear()
        self._homes.clear()

    async def call(self, slot_key: str, command: Command) -> Any:
        slot = self._slots.slot(slot_key)
        deadline = asyncio.get_running_loop().time() + self._time_limit
        tries, asking = 0, None
        while True:
            place = asking or self._slots.owner(slot) or await self._owner(slot, deadline)
            try:
                return await self._send(place, command, deadline, after=_ASKING if asking else None)
            except (RedisError, Closed) as error:
                asking = self._redirected(error, slot, place, command)
                await self._pause(error, tries, deadline)
                tries += 1

    async def call_everywhere(self, command: Command) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + self._time_limit
        calls = [self._send(place, command, deadline) for place in self._slots.masters()]
        if not calls:
            raise unavailable(self._address, "no node has any slots")
        replies = await asyncio.gather(*calls, return_exceptions=True)
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        away = [error for error in errors if isinstance(error, StorageUnavailableError)]
        if len(errors) > len(away) or len(errors) == len(replies):
            error = next((error for error in errors if error not in away), errors[0])
            raise explained(self._address, error, command) from error
        return [reply for reply in replies if reply not in away]

    async def subscribe(self, slot_key: str, subscription: Subscription) -> None:
        slot = self._slots.slot(slot_key)
        place = await self._owner(slot, asyncio.get_running_loop().time() + self._time_limit)
        node = self._node(place)
        self._homes[subscription.channel] = Home(subscription, slot, node)
        try:
            await node.channels.subscribe(subscription)
        except BaseException:
            await self.unsubscribe(subscription.channel)
            raise

    async def unsubscribe(self, channel: str) -> None:
        home = self._homes.pop(channel, None)
        if home is not None:
            self._astray.discard(home.subscription)
            home.node.channels.remove(home.subscription)

    async def wait_for_marker(self, key: str, timeout: float) -> bool:
        markers = self._markers.get(key)
        if markers is None:
            slot = self._slots.slot(key)
            markers = self._markers[key] = Markers(
                self._dialer("markers", locate=partial(self._located, slot)),
                control=f"{key}:{self._control}" if "{" in key else f"{{{key}}}:{self._control}",
                interrupt=self._interrupt,
                give_back=self._give_back,
                refused=partial(self._marker_refused, slot),
            )
        return await markers.wait(key, timeout)

    async def _send(self, place: Place, command: Command, deadline: float, after: Command | None = None) -> Any:
        limit = deadline - asyncio.get_running_loop().time()
        return await self._node(place).link.call(command, after=after, limit=limit)

    def _redirected(self, error: RedisError | Closed, slot: int, place: Place, command: Command) -> Place | None:
        """Return where to ask for once, or None to try again by the map; raise if that is in vain."""
        if isinstance(error, MovedError):
            self._slots.assign(slot, _named(error, place))
        elif isinstance(error, AskError):
            return None if command[0] in _SCRIPTS else _named(error, place)
        elif isinstance(error, Closed) and not self._open:
            raise error
        elif not isinstance(error, Closed) and not passes(error):
            raise explained(self._address, error, command) from error
        self._look_soon()
        return None

    async def _pause(self, error: RedisError | Closed, tries: int, deadline: float) -> None:
        if asyncio.get_running_loop().time() >= deadline:
            raise unavailable(self._address, error) from error
        if tries or not isinstance(error, AskError):
            await asyncio.sleep(uniform(0.5, 1.5) * _TRY_PAUSE)

    async def _owner(self, slot: int, deadline: float) -> Place:
        """Return whose a slot is, as soon as anybody knows."""
        loop = asyncio.get_running_loop()
        while True:
            place = self._slots.owner(slot)
            if place is not None:
                return place
            if loop.time() >= deadline or not self._open:
                raise unavailable(self._address, "no node has the queue's slot")
            self._look_soon()
            await asyncio.sleep(_TRY_PAUSE)

    async def _located(self, slot: int) -> Place:
        return await self._owner(slot, 0.0)

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            if not self._open:
                raise Closed(self._address)
            node = self._nodes[place] = self._make_node(place)
            node.link.begin()
        return node

    def _make_node(self, place: Place) -> Node:
        locate = partial(_given, place)
        link = Link(
            self._dialer(self._role, locate=locate),
            time_limit=self._time_limit,
            connected=partial(self._connected, place),
            lost=partial(self._lost, place),
            doubted=self._look_soon,
        )
        channels = Channels(
            self._dialer("channels", locate=locate), time_limit=self._time_limit, sharded=True, astray=self._stray
        )
        return Node(link, channels)

    def _connected(self, place: Place, wire: Wire) -> None:
        self._outage.back(str(place))

    def _lost(self, place: Place, error: StorageError) -> None:
        self._outage.lost(str(place), error)
        self._look_soon()

    def _stray(self, subscription: Subscription) -> None:
        self._astray.add(subscription)
        self._look_soon()

    def _marker_refused(self, slot: int, error: RedisError) -> None:
        if isinstance(error, MovedError):
            self._slots.assign(slot, _named(error, Place("", 0)))
        self._look_soon()

    def _look_soon(self) -> None:
        if self._open and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """Read the map until nothing is amiss, and follow it."""
        while True:
            with contextlib.suppress(StorageError):  # As long as nobody answers, the old map is the best.
                await self._slots.look([node.link for node in self._nodes.values()])
                self._follow()
            await asyncio.sleep(_LOOK_PAUSE)
            if not self._astray and all(node.link.wire is not None for node in self._nodes.values()):
                return

    def _follow(self) -> None:
        """Move channels and blocking reads to where their slots are, and leave nodes that are masters no longer."""
        for home in list(self._homes.values()):
            owner = self._slots.owner(home.slot)
            if owner is not None and (home.subscription in self._astray or self._nodes.get(owner) is not home.node):
                home.node.channels.remove(home.subscription)
                node = self._node(owner)
                self._homes[home.subscription.channel] = home._replace(node=node)
                node.channels.add(home.subscription)
        self._astray.clear()
        for key, markers in self._markers.items():
            if markers.wire is not None and markers.wire.place != self._slots.owner(self._slots.slot(key)):
                markers.renew()
        for place in self._nodes.keys() - self._slots.masters():
            leaving = asyncio.create_task(self._nodes.pop(place).close())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            self._outage.back(str(place))


def _named(error: AskError, asked: Place) -> Place:
    """Return the node that an error names; without a host it means the one that was asked."""
    return Place(error.host or asked.host, error.port)


async def _given(place: Place) -> Place:
    return place
