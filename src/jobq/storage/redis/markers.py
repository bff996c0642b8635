"""Markers: one connection that blocks on every list on which somebody of this process waits for a marker.

A marker says that there may be work, so none may be lost between the server and a caller that has just gone away:

1.  A marker popped for a list on which nobody waits any more, or handed to a caller that was cancelled before it could
    look, goes to the next who waits here, or is given back.
2.  All lists are in one BLPOP, together with a control list. Who begins to wait on a further list has the control list
    pushed, which ends the BLPOP that does not have it yet.
3.  A BLPOP lasts at most a few seconds; a server that does not answer soon after is given up, and never before.
4.  A connection that breaks may have taken a marker with it, and a server that was away may have lost one. So when
    there is a connection again, everybody who waits looks for work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from redis.exceptions import InvalidResponse, RedisError, ResponseError

from jobq.errors import StorageError
from jobq.storage.redis.packing import Command
from jobq.storage.redis.trouble import code_of
from jobq.storage.redis.wire import Dialer, Wire

LONGEST_ROUND = 5.0
"""Seconds that a BLPOP may last."""
GRACE = 2.0
"""Seconds after the end of a BLPOP within which a living server answers."""
_SHORTEST_ROUND = 0.05
_FAREWELL = 0.5
"""Seconds for a server to end the last BLPOP and take back what it popped."""
_PAUSE = 0.5
_ELSEWHERE = ("UNBLOCKED", "READONLY", "MASTERDOWN", "LOADING", "MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN")


class _Waiter(NamedTuple):
    woken: asyncio.Future[bool]
    deadline: int
    """In ms of the loop's clock."""


class _Alarm(NamedTuple):
    timer: asyncio.TimerHandle
    waiters: set[_Waiter]


class Markers:
    """The blocking connection to one server; made when somebody waits for the first time, kept until it is closed."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        control: str,
        interrupt: Callable[[str], Awaitable[None]],
        give_back: Callable[[str], Awaitable[None]],
        refused: Callable[[ResponseError], None],
    ) -> None:
        self._dialer = dialer
        self._control = control
        self._interrupt = interrupt
        """Pushes to the control list."""
        self._give_back = give_back
        """Pushes a marker that nobody here needs."""
        self._refused = refused
        """Told of a server's error reply."""
        self._waiters: dict[str, list[_Waiter]] = {}
        self._alarms: dict[int, _Alarm] = {}
        """By deadline: a thousand idle queues, whose time is over at one moment, need one timer."""
        self._round: frozenset[str] = frozenset()
        """The lists of the BLPOP that is on its way; empty if there is none."""
        self._rounds = 0
        self._interrupted = False
        self._missed = False
        """Whether a connection broke, and perhaps a marker went with it."""
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._closing = False
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire | None:
        """The connection, while there is one."""
        return self._wire

    async def wait(self, key: str, timeout: float) -> bool:
        """Wait for a marker on a list.

        Returns:
            False when the time is over; True if a marker was popped for this call, or may have been.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), math.ceil((loop.time() + timeout) * 1000))
        self._set_alarm(waiter, loop)
        self._waiters.setdefault(key, []).append(waiter)
        self._join(key)
        try:
            return await waiter.woken
        except asyncio.CancelledError:
            if waiter.woken.done() and not waiter.woken.cancelled() and waiter.woken.result():
                self._hand_on(key)
            raise
        finally:
            self._leave(key, waiter)
            self._unset_alarm(waiter)

    def renew(self) -> None:
        """Connect anew, since the server is no longer the right one."""
        if self._keeper is not None and not self._closing:
            self._keeper.cancel()  # At once: the new one may be cancelled before it begins.
            self._keeper = asyncio.create_task(self._keep(after=self._keeper))

    async def close(self) -> None:
        """End the BLPOP rather than hang up on it, since it may be popping a marker at this moment."""
        self._closing = True
        self._wanted.set()
        if self._round:
            self._send_errand(self._interrupt(self._control))
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + _FAREWELL
        while left := self._work_left():
            patience = max(0.0, patient_until - loop.time())
            done, late = await asyncio.wait(left, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                for task in late:
                    task.cancel()
                await asyncio.wait(late)
        for waiters in self._waiters.values():
            for waiter in waiters:
                _wake(waiter, False)

    def _work_left(self) -> set[asyncio.Task[None]]:
        """Return what must end before the connection is closed."""
        keeper = self._keeper
        if keeper is None or keeper.done():
            return set(self._errands)
        if not self._round:
            keeper.cancel()  # It only waits for a connection or for somebody who waits.
        return {keeper, *self._errands}

    def _set_alarm(self, waiter: _Waiter, loop: asyncio.AbstractEventLoop) -> None:
        alarm = self._alarms.get(waiter.deadline)
        if alarm is None:
            timer = loop.call_at(waiter.deadline / 1000, self._ring, waiter.deadline)
            alarm = self._alarms[waiter.deadline] = _Alarm(timer, set())
        alarm.waiters.add(waiter)

    def _unset_alarm(self, waiter: _Waiter) -> None:
        alarm = self._alarms.get(waiter.deadline)
        if alarm is not None:
            alarm.waiters.discard(waiter)
            if not alarm.waiters:
                alarm.timer.cancel()
                del self._alarms[waiter.deadline]

    def _ring(self, deadline: int) -> None:
        for waiter in self._alarms.pop(deadline).waiters:
            _wake(waiter, False)

    def _join(self, key: str) -> None:
        if self._keeper is None and not self._closing:
            self._keeper = asyncio.create_task(self._keep())
        self._wanted.set()
        if self._round and key not in self._round and not self._interrupted:
            self._interrupted = True
            self._send_errand(self._interrupt(self._control))

    def _leave(self, key: str, waiter: _Waiter) -> None:
        waiters = self._waiters[key]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[key]

    def _hand_on(self, key: str) -> None:
        """Give a marker to the first who waits for it, or back to the server."""
        for waiter in self._waiters.get(key, ()):
            if not waiter.woken.done():
                _wake(waiter, True)
                return
        self._send_errand(self._carry_back(key))

    async def _carry_back(self, key: str) -> None:
        while True:
            try:
                await self._give_back(key)
            except StorageError:
                if not self._closing:
                    await asyncio.sleep(_PAUSE)
                    continue
            return

    def _send_errand(self, work: Awaitable[None]) -> None:
        errand = asyncio.create_task(_quietly(work))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)

    async def _keep(self, after: asyncio.Task[None] | None = None) -> None:
        if after is not None:
            await asyncio.wait([after])
        while not self._closing:
            wire = await self._dialer.again()
            self._wire = wire
            if self._missed or self._dialer.vain_attempts:
                self._missed = False
                self._wake_all()
            try:
                # The connection for commands tells of outages.
                with contextlib.suppress(RedisError, OSError):
                    await self._serve(wire)
            finally:
                self._missed = self._missed or bool(self._round)
                self._wire, self._round = None, frozenset()
                await wire.close(gently=self._closing)

    async def _serve(self, wire: Wire) -> None:
        """Use a connection until it is lost."""
        loop = asyncio.get_running_loop()
        while not self._closing:
            self._wanted.clear()
            if not self._waiters:
                await self._wanted.wait()
                continue
            longest = max(self._alarms, default=0) / 1000
            lasting = round(min(LONGEST_ROUND, max(_SHORTEST_ROUND, longest - loop.time())), 3)
            command: Command = ("BLPOP", *self._lists(), lasting)
            self._round, self._interrupted = frozenset(self._waiters), False
            async with asyncio.timeout(lasting + GRACE):
                reply = await self._ask(wire, command)
            key = None if reply is None else self._popped(reply)
            self._round = frozenset()
            if key is not None and key != self._control:
                self._hand_on(key)

    async def _ask(self, wire: Wire, command: Command) -> Any:
        try:
            return await wire.ask(command)
        except ResponseError as error:
            self._refused(error)
            if code_of(error) in _ELSEWHERE:
                raise
            # A list of another type, or one that we may not read: then looking for work now and then must do.
            await asyncio.sleep(_PAUSE)
            self._wake_all()
            return None

    def _popped(self, reply: Any) -> str:
        """Return from which list a marker came; raise for what is no answer to the BLPOP that is on its way."""
        if isinstance(reply, list) and len(reply) == 2 and isinstance(reply[0], bytes):
            key = reply[0].decode("utf-8", "replace")
            if key == self._control or key in self._round:
                return key
        raise InvalidResponse("no answer to a BLPOP")

    def _lists(self) -> list[str]:
        """Return the lists to wait on, each of them first in its turn, since a server looks at them in order."""
        keys = list(self._waiters)
        self._rounds += 1
        first = self._rounds % len(keys)
        return [self._control, *keys[first:], *keys[:first]]

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                _wake(waiter, True)


def _wake(waiter: _Waiter, marked: bool) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(marked)


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(StorageError):  # What was to be told comes late instead: the BLPOP ends by itself.
        await work
