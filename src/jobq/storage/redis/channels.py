"""Channels: one connection that listens to every channel of a process.

1.  A subscription counts from the server's confirmation on, since what is published before is not heard.
2.  After every reconnect each channel is subscribed again, and its owner is told, after the confirmation, that messages
    may have been missed.
3.  Silence is normal here. So the server is asked from time to time whether it is still there, and only one that does
    not answer is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from redis.exceptions import InvalidResponse, RedisError, ResponseError

from jobq.storage.redis.packing import Command, pack
from jobq.storage.redis.trouble import code_of, explained, unavailable
from jobq.storage.redis.wire import Dialer, Wire

_MESSAGES = (b"message", b"smessage")
_CONFIRMATIONS = (b"subscribe", b"ssubscribe")
_ENDS = (b"unsubscribe", b"sunsubscribe")


class Subscription:
    """One channel, and who listens to it."""

    def __init__(self, channel: str, receive: Callable[[bytes], None], missed: Callable[[], None]) -> None:
        self.channel = channel
        self.receive = receive
        self.missed = missed
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has confirmed it for the first time, or refused it."""
        self.heard = False
        """Whether the present connection hears it."""


class _Asked(NamedTuple):
    """A command whose answer is still to come."""

    ends: bool
    subscription: Subscription | None


class Channels:
    """The listening connection to one server; made at the first subscription, and kept until it is closed."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        time_limit: float,
        sharded: bool = False,
        astray: Callable[[Subscription], None] | None = None,
    ) -> None:
        self._dialer = dialer
        self._time_limit = time_limit
        self._subscribe, self._unsubscribe = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        self._astray = astray
        """Told of a channel that this node of a Cluster does not serve, or no longer."""
        self._subscriptions: dict[bytes, Subscription] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._asked: deque[_Asked] = deque()
        self._heard_at = 0.0

    @property
    def wire(self) -> Wire | None:
        """The connection, while there is one."""
        return self._wire

    @property
    def subscriptions(self) -> Iterable[Subscription]:
        return self._subscriptions.values()

    async def subscribe(self, subscription: Subscription) -> None:
        """Listen to a channel, and return when the server has confirmed it.

        Raises:
            StorageUnavailableError: there was no confirmation within the time limit.
            StorageError: the server refuses it.
        """
        self.add(subscription)
        try:
            async with asyncio.timeout(self._time_limit):
                await asyncio.shield(subscription.confirmed)
        except TimeoutError:
            self.remove(subscription)
            raise unavailable(self._dialer.address, f"no subscription within {self._time_limit:g} s") from None
        except BaseException:
            self.remove(subscription)
            raise

    def add(self, subscription: Subscription) -> None:
        """Listen to a channel as soon as that is possible."""
        self._subscriptions[subscription.channel.encode()] = subscription
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        else:
            self._ask(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Stop listening; what still comes is dropped."""
        name = subscription.channel.encode()
        if self._subscriptions.get(name) is subscription:
            del self._subscriptions[name]
            self._send((self._unsubscribe, name), _Asked(True, subscription))
        subscription.heard = False

    def renew(self) -> None:
        """Connect anew, since the server is no longer the right one."""
        if self._keeper is not None:
            self._keeper.cancel()  # At once: the new one may be cancelled before it begins.
            self._keeper = asyncio.create_task(self._keep(after=self._keeper))

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        for subscription in self._subscriptions.values():
            if not subscription.confirmed.done():
                subscription.confirmed.set_exception(unavailable(self._dialer.address, "closed"))
                subscription.confirmed.exception()
        self._subscriptions.clear()

    async def _keep(self, after: asyncio.Task[None] | None = None) -> None:
        if after is not None:
            await asyncio.wait([after])
        while True:
            wire = await self._dialer.again()
            closing = True
            try:
                await self._serve(wire)
                closing = False
            finally:
                self._wire = None
                self._asked.clear()
                for subscription in self._subscriptions.values():
                    subscription.heard = False
                await wire.close(gently=closing)

    async def _serve(self, wire: Wire) -> None:
        """Use a connection until it is lost, or the server keeps silent although it was asked."""
        loop = asyncio.get_running_loop()
        self._wire, self._heard_at = wire, loop.time()
        lost: asyncio.Future[None] = loop.create_future()

        def end(_error: Exception) -> None:
            if not lost.done():
                lost.set_result(None)

        def receive(reply: Any) -> None:
            self._heard_at = loop.time()
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                end(reply)
            elif self._expects(reply):
                self._receive(reply)
            else:  # From now on nobody knows which answer belongs to what.
                end(InvalidResponse("a reply that nobody asked for"))

        wire.listen(receive, lost=end)
        for subscription in self._subscriptions.values():
            self._ask(subscription)
        while await self._passes(lost, self._time_limit):
            asked_at = loop.time()
            for subscription in self._subscriptions.values():
                if not subscription.heard:
                    self._ask(subscription)
            self._send(("PING",), _Asked(False, None))
            if not await self._passes(lost, self._time_limit) or self._heard_at < asked_at:
                return

    async def _passes(self, lost: asyncio.Future[None], seconds: float) -> bool:
        """Wait, and tell whether the connection is still there."""
        done, _ = await asyncio.wait([lost], timeout=seconds)
        return not done

    def _expects(self, reply: Any) -> bool:
        """Tell whether a server could say that after what it was asked."""
        if isinstance(reply, ResponseError):
            return True
        if not isinstance(reply, list):
            return bool(self._asked)
        if reply and reply[0] in _MESSAGES:
            return len(reply) == 3 and isinstance(reply[1], bytes) and isinstance(reply[2], bytes)
        if reply and reply[0] in _ENDS:
            return len(reply) == 3 and isinstance(reply[1], bytes)
        if reply and reply[0] in _CONFIRMATIONS:
            asked = self._asked[0].subscription if self._asked else None
            return asked is not None and reply[1:2] == [asked.channel.encode()]
        return bool(reply and self._asked)

    def _receive(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            self._refused(reply)
        elif not isinstance(reply, list):
            self._asked.popleft()
        elif reply[0] in _MESSAGES:
            self._deliver(reply[1], reply[2])
        elif reply[0] in _CONFIRMATIONS:
            self._confirm(self._asked.popleft().subscription)
        elif reply[0] in _ENDS:
            self._end(reply[1])
        else:
            self._asked.popleft()

    def _deliver(self, channel: bytes, message: bytes) -> None:
        subscription = self._subscriptions.get(channel)
        if subscription is not None:
            try:
                subscription.receive(message)
            except Exception as error:
                context = {"message": f"a listener to {subscription.channel} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _confirm(self, subscription: Subscription | None) -> None:
        if subscription is None or self._subscriptions.get(subscription.channel.encode()) is not subscription:
            return
        subscription.heard = True
        if subscription.confirmed.done():
            subscription.missed()
        else:
            subscription.confirmed.set_result(None)

    def _end(self, channel: bytes) -> None:
        if self._asked and self._asked[0].ends:
            asked = self._asked[0].subscription
            if asked is not None and asked.channel.encode() == channel:
                self._asked.popleft()
                return
        subscription = self._subscriptions.get(channel)
        if subscription is not None:  # The server ended it: in a Cluster its slot has moved away.
            subscription.heard = False
            if self._astray is not None:
                self._astray(subscription)

    def _refused(self, error: ResponseError) -> None:
        subscription = self._asked.popleft().subscription if self._asked else None
        if subscription is None or self._subscriptions.get(subscription.channel.encode()) is not subscription:
            return
        if self._astray is not None and code_of(error) in ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN"):
            self._astray(subscription)
        elif not subscription.confirmed.done():
            problem = explained(self._dialer.address, error, (self._subscribe,))
            subscription.confirmed.set_exception(problem)
            subscription.confirmed.exception()

    def _ask(self, subscription: Subscription) -> None:
        self._send((self._subscribe, subscription.channel), _Asked(False, subscription))

    def _send(self, command: Command, asked: _Asked) -> None:
        if self._wire is not None:
            self._wire.write(pack(command))
            self._asked.append(asked)
