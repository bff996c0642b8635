"""Link: many callers, one connection. What they send within one turn of the loop leaves in one write.

A server answers in the order in which it was asked, so a queue of futures beside the connection is all there is to it:

1.  A caller that is cancelled leaves its place in the queue, and its reply is dropped there.
2.  When the connection breaks, everything in flight fails at once: what the server did of it is unknown. Whoever asked
    may ask again, and waits for the next connection, at most the time limit.
3.  Since replies cannot overtake each other, one that is overdue breaks the connection: one timer for all. Each has the
    whole time limit after the one before it, since they may be large, and the line slow.
4.  Where another server may take over, a second of silence is told, so that somebody looks; and a connection that has
    nothing to send asks now and then, so that silence is noticed. A machine that is gone does not hang up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from jobq.errors import StorageError
from jobq.storage.redis.packing import Command, pack
from jobq.storage.redis.trouble import unavailable
from jobq.storage.redis.wire import Dialer, Wire

_DOUBTED_AFTER = 1.0
"""Seconds that a reply must be owed for the server to be doubted, and between two doubts."""
_PULSE = 2.0
"""Seconds after which a connection with nothing to send asks."""
_LARGE = 8192
"""Bytes of a command that is sent at once, and not together with what else is asked for in a turn of the loop."""
_PING: Command = ("PING",)
_RENEWED_AFTER = 1.0
"""Seconds that a connection must be old to be given up on suspicion."""


class Closed(StorageError):
    """The connection is closed for good, and the command was not sent."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the connections to {address} are closed: start a queue on the storage", code="CLOSED")


class Link:
    """The connection for commands; connects again whenever it is lost, until it is closed."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        time_limit: float,
        connected: Callable[[Wire], None],
        lost: Callable[[StorageError], None],
        doubted: Callable[[], None] | None = None,
    ) -> None:
        self._dialer = dialer
        self._time_limit = time_limit
        self._doubted = doubted
        """Called again and again while the server is silent; None if nobody could take over."""
        self._look_after = time_limit if doubted is None else min(_DOUBTED_AFTER, time_limit)
        self._tell_connected = connected
        self._tell_lost = lost
        self._keeper: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._attached: asyncio.Future[None] | None = None
        """Resolves for those who wait for a connection."""
        self._broken: asyncio.Future[StorageError] | None = None
        self._buffer: list[bytes] = []
        self._flushing = False
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._answered = 0
        self._answered_at = 0.0
        self._sent: deque[tuple[int, float]] = deque()
        """How many commands had been sent at which time, oldest first, while some of them are unanswered."""
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        return self._dialer.address

    @property
    def wire(self) -> Wire | None:
        """The connection, while there is one."""
        return self._wire

    async def open(self) -> None:
        """Connect, and raise if that is not possible within the time limit."""
        self.begin(await self._dialer.first())

    def begin(self, wire: Wire | None = None) -> None:
        """Keep a connection from now on; without one, calls wait for it."""
        self._loop = asyncio.get_running_loop()
        self._attached = self._loop.create_future()
        if wire is not None:
            self._attach(wire)
        self._keeper = self._loop.create_task(self._keep(wire))

    async def close(self) -> None:
        """End the connection; what is in flight fails, and who waits for a connection gets `Closed`."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        wire = self._wire
        if wire is not None:  # The keeper was cancelled before it began.
            self._detach(unavailable(self.address, "the connection was closed"))
            await wire.close(gently=True)
        if self._attached is not None and not self._attached.done():
            _fail(self._attached, Closed(self.address))

    def call(self, command: Command, *, after: Command | None = None, limit: float | None = None) -> Awaitable[Any]:
        """Send a command, and return what resolves to its reply.

        Args:
            after: a command that is sent immediately before it, and whose reply nobody needs.
            limit: seconds for a call that must wait for a connection first; by default the time limit.

        Raises:
            StorageUnavailableError: the connection was lost, no reply came, or no connection was found in time.
            Closed: the link is closed, and the command was not sent.
            RedisError: the server's reply is an error.
        """
        if self._wire is None:
            return self._call_later(command, after, self._time_limit if limit is None else limit)
        return self._submit(command, after)

    def renew(self, reason: object) -> None:
        """Give up the connection, because of what the server said: another may be the right one by now.

        That is no outage, unless there is no other for a while.
        """
        wire = self._wire
        if wire is not None and self._loop.time() - wire.connected_at >= _RENEWED_AFTER:
            error = unavailable(self.address, reason)
            self._break(error, tell=False)
            self._loop.call_later(_RENEWED_AFTER, self._tell_if_lost, error)

    async def _call_later(self, command: Command, after: Command | None, limit: float) -> Any:
        try:
            async with asyncio.timeout(limit):
                while self._wire is None:
                    if self._keeper is None or self._attached is None:
                        raise Closed(self.address)
                    await asyncio.shield(self._attached)
                return await self._submit(command, after)
        except TimeoutError:
            raise self._dialer.unavailable(limit) from None

    def _submit(self, command: Command, after: Command | None) -> asyncio.Future[Any]:
        if after is not None:
            self._buffer.append(pack(after))
            self._waiting.append(self._loop.create_future())
        reply: asyncio.Future[Any] = self._loop.create_future()
        packed = pack(command)
        self._buffer.append(packed)
        self._waiting.append(reply)
        if len(packed) >= _LARGE:
            self._flush()  # The server is busy with it while the rest of this turn is done.
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return reply

    async def _keep(self, wire: Wire | None) -> None:
        while True:
            if wire is None:
                wire = await self._dialer.again()
                self._attach(wire)
            await self._serve(wire)
            wire = None

    async def _serve(self, wire: Wire) -> None:
        assert self._broken is not None
        closing = True
        try:
            await self._broken
            closing = False
        finally:
            self._detach(unavailable(self.address, "the connection was closed"))
            await wire.close(gently=closing)

    def _attach(self, wire: Wire) -> None:
        self._wire = wire
        self._broken = self._loop.create_future()
        assert self._attached is not None
        self._attached.set_result(None)
        if self._doubted is not None:
            self._alarm = self._loop.call_later(self._look_after, self._look_for_overdue)
        self._tell_connected(wire)
        wire.listen(self._receive, lost=self._lose, emptied=self._flush)  # Last, since it may have ended already.

    def _break(self, error: StorageError, *, tell: bool = True) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(error)
            self._detach(error)
            if tell:
                self._tell_lost(error)

    def _tell_if_lost(self, error: StorageError) -> None:
        if self._wire is None and self._keeper is not None:
            self._tell_lost(error)

    def _detach(self, error: StorageError) -> None:
        """Forget the connection, and fail what is in flight: nobody knows what the server did of it."""
        if self._wire is None:
            return
        self._wire = None
        self._attached = self._loop.create_future()
        waiting, self._waiting = self._waiting, deque()
        self._buffer = []
        self._sent.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for reply in waiting:
            _fail(reply, type(error)(str(error), code=error.code))

    def _flush(self) -> None:
        """Send what the callers of this turn of the loop have asked for, unless the server takes no more."""
        self._flushing = False
        wire = self._wire
        if wire is not None and self._buffer and not wire.full:
            data, self._buffer = self._buffer, []
            self._note_sent()
            wire.write(data[0] if len(data) == 1 else b"".join(data))

    def _receive(self, reply: Any) -> None:
        if not self._waiting:
            self._break(unavailable(self.address, f"a reply that nobody asked for: {reply!r:.80}"))
            return
        waiter = self._waiting.popleft()
        self._answered += 1
        self._answered_at = self._loop.time()
        if isinstance(reply, RedisError):
            _fail(waiter, reply)
        elif not waiter.done():
            waiter.set_result(reply)

    def _lose(self, error: Exception) -> None:
        self._break(unavailable(self.address, error))

    def _note_sent(self) -> None:
        self._forget_answered()
        self._sent.append((self._answered + len(self._waiting), self._loop.time()))
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._look_after, self._look_for_overdue)

    def _forget_answered(self) -> None:
        while self._sent and self._sent[0][0] <= self._answered:
            self._sent.popleft()

    def _look_for_overdue(self) -> None:
        self._alarm = None
        self._forget_answered()
        if not self._sent:
            if self._doubted is not None:
                self._alarm = self._loop.call_later(min(_PULSE, self._time_limit), self._take_pulse)
            return
        owed_for = self._loop.time() - max(self._sent[0][1], self._answered_at)
        if owed_for >= self._time_limit:
            self._break(unavailable(self.address, f"no reply within {self._time_limit:g} s"))
            return
        if self._doubted is not None and owed_for >= _DOUBTED_AFTER:
            self._doubted()
        next_in = self._look_after - owed_for if owed_for < self._look_after else _DOUBTED_AFTER
        self._alarm = self._loop.call_later(min(next_in, self._time_limit - owed_for), self._look_for_overdue)

    def _take_pulse(self) -> None:
        self._alarm = None
        if self._sent:
            self._look_for_overdue()
        else:
            self._submit(_PING, None)


def _fail(reply: asyncio.Future[Any], error: Exception) -> None:
    if not reply.done():
        reply.set_exception(error)
        reply.exception()  # Its caller may be cancelled before it looks: then nobody is to blame.
