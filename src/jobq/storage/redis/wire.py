"""One connection to a server, and how to get one: at once where that is possible, else again and again.

An attempt that hangs may be in vain, because whoever answered the call before has gone; or it may be a slow network.
So after a while a further attempt is made beside it, and the first that succeeds is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from jobq.errors import StorageError
from jobq.storage.redis.packing import Command, pack
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import MISCONFIGURED, NoScript, code_of, explained, misconfigured, unavailable
from jobq.storage.redis.urls import Place

_PATIENCE = 1.0
"""Seconds after which an attempt is doubted, and another made beside it."""
_MOST_ATTEMPTS = 3
_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_FAREWELL = 1.0
_GONE = (ConnectionRefusedError, FileNotFoundError)
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError)


class Wire:
    """An open connection of redis-py, reduced to its public calls for the hot path."""

    __slots__ = ("_connection", "connected_at", "place", "read")

    def __init__(self, connection: AbstractConnection, place: Place) -> None:
        self._connection = connection
        self.place = place
        self.connected_at = asyncio.get_running_loop().time()
        self.read = cast(Callable[..., Awaitable[Any]], connection.read_response)
        """Read a reply: call it with ``disconnect_on_error=False``, since closing is for the owner to decide."""

    async def send(self, data: bytes) -> None:
        """Write at once, and wait while the server does not take more."""
        await self._connection.send_packed_command(data, check_health=False)

    async def ask(self, command: Command) -> Any:
        """Send one command and read its reply; for a connection that nobody else reads yet."""
        await self.send(pack(command))
        return await self.read(disconnect_on_error=False)

    async def close(self, *, gently: bool = False) -> None:
        """Close; gently means to wait until the peer and the loop have forgotten it."""
        with contextlib.suppress(RedisError, TimeoutError):  # The farewell took too long.
            async with asyncio.timeout(_FAREWELL):
                await self._connection.disconnect(nowait=not gently)


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
        return random.uniform(longest / 2, longest)

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
        await wire.send(b"".join(map(pack, commands)))
        for command in commands:
            try:
                reply = await wire.read(disconnect_on_error=False)
            except ResponseError as error:
                # Without these permissions we can still work; a server that is not ready says so to a ping.
                if command[0] == "PING" and code_of(error) != "NOPERM":
                    raise
                continue
            if command[0] == "ROLE" and reply[0] != b"master":
                raise ReadOnlyError(f"{wire.place} is not the master")


async def opened(connection: AbstractConnection, place: Place) -> Wire:
    """Open a connection of redis-py."""
    connect = cast(Callable[[], Awaitable[None]], connection.connect)
    try:
        await connect()
    except BaseException:
        await connection.disconnect(nowait=True)  # redis-py leaves it half open when cancelled.
        raise
    return Wire(connection, place)


def report_unexpected(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Tell the loop of what ended tasks other than by the loss of their connection."""
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RedisError | OSError):
            context = {"message": "a connection was given up after an unexpected error", "exception": error}
            task.get_loop().call_exception_handler(context)


async def _end(attempts: set[asyncio.Task[Wire]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for late in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(late, Wire):
            await late.close()
