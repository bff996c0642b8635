"""One connection to a server, and how to get one: at once where that is possible, else again and again.

An attempt that hangs may be in vain, because whoever answered the call before has gone; or it may be a slow network.
So after a while a further attempt is made beside it, and the first that succeeds is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hiredis import Reader
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError, ResponseError

from jobq.clock import uniform
from jobq.errors import StorageError
from jobq.storage.redis.packing import Command, pack
from jobq.storage.redis.parsing import UnreadableError, error_of
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import MISCONFIGURED, NoScript, code_of, explained, misconfigured, unavailable
from jobq.storage.redis.urls import Place

_PATIENCE = 1.0
"""Seconds after which an attempt is doubted, and another made beside it."""
_MOST_ATTEMPTS = 3
_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_FAREWELL = 1.0
_NOTHING = object()
_GONE = (ConnectionRefusedError, FileNotFoundError)
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError)


class Wire(asyncio.Protocol):
    """An open connection: redis-py made and secured it, and from then on its bytes come here without a detour.

    A reply goes to whoever listens, within the turn of the loop in which its last byte came. Streams and tasks between
    the two cost more than all the rest of a call.
    """

    def __init__(self, connection: AbstractConnection, place: Place) -> None:
        self._connection = connection
        self.place = place
        self.connected_at = asyncio.get_running_loop().time()
        self.full = False
        """Whether the server takes no more for the moment: better not to write."""
        self._replies = Reader(protocolError=InvalidResponse, replyError=error_of, notEnoughData=_NOTHING)
        self._unread: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        self._receive: Callable[[Any], None] = self._keep
        self._lost: Callable[[Exception], None] = lambda _: None
        self._emptied: Callable[[], None] = lambda: None
        # There is no public way to it; every redis-py since its asyncio part exists keeps its StreamWriter there.
        self._transport = cast(asyncio.Transport, cast(Any, connection)._writer.transport)
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def listen(
        self,
        receive: Callable[[Any], None],
        *,
        lost: Callable[[Exception], None],
        emptied: Callable[[], None] = lambda: None,
    ) -> None:
        """Have every reply from now on given to `receive`, an error as a `RedisError`.

        Args:
            lost: told once, when the connection has ended.
            emptied: told when `full` is over.
        """
        self._receive, self._lost, self._emptied = receive, lost, emptied
        while self._unread:
            receive(self._unread.popleft())
        if self._problem is not None:
            lost(self._problem)

    def write(self, data: bytes) -> None:
        """Send, at once if the server takes it."""
        self._transport.write(data)

    async def ask(self, command: Command) -> Any:
        """Send one command and return its reply; for a connection that nobody listens to.

        Raises:
            RedisError: the reply is an error, or the connection was lost.
        """
        self.write(pack(command))
        return await self.read()

    async def read(self) -> Any:
        """Return the next reply; for a connection that nobody listens to. Raises like `ask`."""
        while not self._unread:
            if self._problem is not None:
                raise self._problem
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        reply = self._unread.popleft()
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def close(self, *, gently: bool = False) -> None:
        """Close; gently means to wait until the peer and the loop have forgotten it."""
        # A closing TLS connection still hands over what had come; by then its reader may use another connection.
        self._receive, self._lost, self._emptied = lambda _: None, lambda _: None, lambda: None
        with contextlib.suppress(RedisError, TimeoutError):  # The farewell took too long.
            async with asyncio.timeout(_FAREWELL):
                await self._connection.disconnect(nowait=not gently)

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        while True:
            try:
                reply = self._replies.gets()
            except Exception as error:  # Not only of ours: hiredis has errors of Python's own for what it cannot make.
                self._end(InvalidResponse(f"{type(error).__name__}: {error}"))
                return
            if reply is _NOTHING:
                return
            if type(reply) is UnreadableError:
                self._end(reply)
                return
            self._receive(reply)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._emptied()

    def connection_lost(self, error: Exception | None) -> None:
        self._before.connection_lost(error)  # Whoever closes it waits for that.
        self._end(ConnectionLost("the server closed the connection") if error is None else error)

    def _keep(self, reply: Any) -> None:
        self._unread.append(reply)
        self._wake_reader()

    def _end(self, problem: Exception) -> None:
        if self._problem is None:
            self._problem = problem
            self._wake_reader()
            self._lost(problem)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Dialer:
    """Makes connections of one kind to one server: a certain one, or whoever has a certain task now."""

    def __init__(
        self,
        settings: Settings,
        role: str,
        *,
        time_limit: float,
        locate: Callable[[], Awaitable[Place]],
        address: str,
    ) -> None:
        self._settings = settings
        self._name = f"jobq-{role}-{os.getpid()}"
        self._time_limit = time_limit
        self._locate = locate
        self._failures = 0
        self._succeeded_at = 0.0
        self.address = address
        """The server's name for people."""
        self.trouble: StorageError | None = None
        """Why the last attempt failed; None if it did not."""
        self.vain_attempts = 0
        """How many failed before the last connection was made."""

    async def first(self) -> Wire:
        """Connect within the time limit.

        Raises:
            StorageUnavailableError: nobody listens there, or nobody answered in time.
            StorageError: with code ``MISCONFIGURED``, if trying again would not help.
        """
        self._failures, self._succeeded_at, self.trouble = 0, 0.0, None
        try:
            async with asyncio.timeout(self._time_limit):
                return await self._dial(first=True)
        except TimeoutError:
            raise self.unavailable(self._time_limit) from None

    async def again(self) -> Wire:
        """Connect, however long it takes."""
        if asyncio.get_running_loop().time() - self._succeeded_at > _LONGEST_PAUSE:
            self._failures = 0
        else:  # A server that hangs up on everybody who calls is left in peace for a moment.
            self._failures += 1
            await asyncio.sleep(self._pause())
        return await self._dial(first=False)

    def unavailable(self, limit: float) -> StorageError:
        """Return the error for who waited in vain; what stands in the way of every connection is named."""
        trouble = self.trouble
        if trouble is None:
            return unavailable(self.address, f"no answer within {limit:g} s")
        return type(trouble)(str(trouble), code=trouble.code)

    async def _dial(self, *, first: bool) -> Wire:
        self.vain_attempts = 0
        attempts: set[asyncio.Task[Wire]] = set()
        wire: Wire | None = None
        try:
            wire = await self._first_success(attempts, first=first)
            await _end(attempts)
        except BaseException:
            await _end(attempts)
            if wire is not None:
                await wire.close()
            raise
        return wire

    async def _first_success(self, attempts: set[asyncio.Task[Wire]], *, first: bool) -> Wire:
        """Make attempts until one succeeds; those that are not needed any more stay in the set."""
        while True:
            if len(attempts) < _MOST_ATTEMPTS:
                attempts.add(asyncio.create_task(self._attempt()))
            done, _ = await asyncio.wait(attempts, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                attempts.discard(attempt)
                error = attempt.exception()
                if error is None:
                    self._succeeded_at, self.trouble = asyncio.get_running_loop().time(), None
                    return attempt.result()
                self._note(error, first=first)
            if done:
                await asyncio.sleep(self._pause())

    def _note(self, error: BaseException, *, first: bool) -> None:
        cause = error.__cause__ or error.__context__
        problem: StorageError | NoScript
        if self._settings.target.secure and isinstance(cause, _UNREADABLE):
            problem = misconfigured(self.address, f"a file that ssl_… names cannot be read: {cause}")
        else:
            problem = explained(self.address, error)
        assert isinstance(problem, StorageError)
        self.trouble = problem
        self.vain_attempts += 1
        self._failures += 1
        hopeless = problem.code == MISCONFIGURED or (
            self._settings.target.mode == "single" and isinstance(cause, _GONE)
        )
        if first and hopeless:
            raise problem from error

    def _pause(self) -> float:
        longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._failures, 10))
        return uniform(longest / 2, longest)

    async def _attempt(self) -> Wire:
        async with asyncio.timeout(self._time_limit):
            place = await self._locate()
            wire = await opened(self._settings.connection(place, self._time_limit), place)
            try:
                await self._greet(wire)
            except BaseException:
                await wire.close()
                raise
            return wire

    async def _greet(self, wire: Wire) -> None:
        """Say who we are, and see that the server is ready to work."""
        commands: list[Command] = [("CLIENT", "SETNAME", self._name), ("PING",)]
        if self._settings.target.mode == "sentinel":
            commands.append(("ROLE",))
        wire.write(b"".join(map(pack, commands)))
        for command in commands:
            try:
                reply = await wire.read()
            except ResponseError as error:
                # Without these permissions we can still work; a server that is not ready says so to a ping.
                if command[0] == "PING" and code_of(error) != "NOPERM":
                    raise
                continue
            if command[0] == "ROLE" and reply[0] != b"master":
                raise ReadOnlyError(f"{wire.place} is not the master")


async def opened(connection: AbstractConnection, place: Place) -> Wire:
    """Open a connection of redis-py.

    Raises:
        RedisError, OSError: that was not possible.
    """
    connect = cast(Callable[[], Awaitable[None]], connection.connect)
    try:
        await connect()
    except BaseException as error:
        await connection.disconnect(nowait=True)  # redis-py leaves it half open when cancelled.
        if isinstance(error, (TypeError, ValueError, LookupError, AttributeError)):
            raise InvalidResponse(f"{type(error).__name__}: {error}") from error  # It took a reply for another.
        raise
    return Wire(connection, place)


async def _end(attempts: set[asyncio.Task[Wire]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for late in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(late, Wire):
            await late.close()
