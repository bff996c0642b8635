"""Virtual time: hours of a queue's life in milliseconds of a test.

The loop never waits. When nothing is ready, its time jumps to the next timer, so a test sees every timeout, retry and
lease in its true order, and the same order at every run. Everything must happen in the loop's own thread: a thread
waits in real time, which does not pass here. That excludes plain functions as handlers, storages with threads of their
own, and lease renewal by a twin; `OnLoop` moves the last into the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple

from jobq.clock import Clock
from jobq.storage.contract import QueueStorage, Storage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_INSTANT = 1000
"""Turns of the loop that happen at one instant; the others take some time, as they really do."""
_RESOLUTION = 1e-9
_POLL_EVERY = 64
"""Turns of the loop after which signals are looked for, while no socket is waited for."""


class VirtualTimeError(Exception):
    """A test in virtual time cannot end: nothing is left to wake it, or time does not move."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual; for `asyncio.Runner`, pass the class as ``loop_factory``.

    Args:
        most_turns: turns of the loop without a timer going off, after which a test counts as wedged.
    """

    def __init__(self, most_turns: int = 1_000_000) -> None:
        self._selector_of_time = _JumpingSelector(most_turns)
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if asyncio._get_running_loop() is self:
            return self.call_soon(callback, *args, context=context)  # Nobody need be woken, by writing to a socket.
        return super().call_soon_threadsafe(callback, *args, context=context)


class VirtualClock(Clock):
    """The clock of a storage that lives in virtual time, with randomness that repeats.

    Args:
        loop: whose time it tells; by default that of the loop that is running when it is asked.
        base: the wall clock at the loop's time 0, in epoch seconds.
        seed: of `random_bytes` and `uniform`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None = None, *, base: float = 1_800_000_000.0, seed: int = 0
    ) -> None:
        self._loop = loop
        self._base = base
        self._random = random.Random(seed)

    def now(self) -> float:
        return self._base + self.monotonic()

    def monotonic(self) -> float:
        return (self._loop or asyncio.get_running_loop()).time()

    def boot_id(self) -> str:
        return "virtual"

    def random_bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, forwards or back; no time passes."""
        self._base += seconds


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]], *, limit: float = 86_400.0) -> T:
    """Run a coroutine function in virtual time, like `asyncio.run`.

    Args:
        main: what to run.
        limit: virtual seconds after which the test is taken to be endless.

    Raises:
        TimeoutError: ``limit`` was reached; the message says so.
        VirtualTimeError: everything waits for something that no timer will bring.

    Example:
        >>> async def sleep_an_hour() -> float:
        ...     await asyncio.sleep(3600)
        ...     return asyncio.get_running_loop().time()
        >>> run_virtual(sleep_an_hour)
        3600.0
    """

    async def limited() -> T:
        try:
            async with asyncio.timeout(limit) as within:
                return await main()
        except TimeoutError as error:
            if not within.expired():
                raise  # One of its own.
            raise TimeoutError(
                f"the coroutine had not ended after limit={limit:g} virtual seconds: find out what it waits for, or "
                "raise the limit. Threads work in real time, and virtual time does not wait for them"
            ) from error

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(limited())


class OnLoop:
    """A storage without a twin, so that leases are renewed in the loop and not in a thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def clock(self) -> Clock:
        return self._storage.clock

    async def open(self) -> None:
        await self._storage.open()

    async def close(self) -> None:
        await self._storage.close()

    def namespace(self, name: str) -> QueueStorage:
        return self._storage.namespace(name)

    def twin(self) -> Storage | None:
        return None


class _JumpingSelector(selectors.PollSelector):
    """Moves time on instead of waiting."""

    def __init__(self, most_turns: int) -> None:
        super().__init__()
        self.now = 0.0
        self._most_turns = most_turns
        self._turns = 0
        self._unpolled = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._poll(timeout)
        if timeout is not None and timeout > 0.0 and not events:
            self.now += timeout
            if self.now + _RESOLUTION == self.now:
                # After some months floats are coarser than the loop's resolution, without which no timer counts as due.
                self.now = math.nextafter(self.now, math.inf)
            self._turns = 0
        elif timeout is None and not events:
            raise VirtualTimeError("every task waits, and there is no timer that could wake one")
        self._turns += 1
        if self._turns > _INSTANT:
            self.now += _RESOLUTION  # Who waits again and again for less than the loop can resolve gets there.
        if self._turns > self._most_turns:
            self._turns = 0
            raise VirtualTimeError(f"time has stood still at {self.now} for {self._most_turns} turns of the loop")
        return events

    def _poll(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Ask the system, which costs more than a turn of the loop: only if somebody may have something to say."""
        self._unpolled += 1
        if timeout is not None and len(self.get_map()) == 1 and self._unpolled < _POLL_EVERY:
            return []  # The one thing to listen to is the loop's own alarm.
        self._unpolled = 0
        return super().select(0)
