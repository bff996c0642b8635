"""Nodes: processes of the simulation, each with clocks and a bad connection of its own; they may die."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from jobq.clock import Clock
from jobq.storage.contract import Hint, Storage
from jobq.testing import LOSE_REQUEST, FaultyStorage, RandomPlan, Trouble, VirtualClock, VirtualLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_current: contextvars.ContextVar[Node | None] = contextvars.ContextVar("node", default=None)
"""Whose code is running; None is the simulation's own, and the storage's."""


def alive() -> bool:
    """Whether the process whose code is running has not died; what it does after that has no effect."""
    node = _current.get()
    return node is None or not node.dead


class NodeLoop(VirtualLoop):
    """The loop of all processes; no timer of one that has died goes off, and so it comes to rest."""

    def __init__(self) -> None:
        super().__init__(most_turns=20_000)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        node = _current.get()
        if node is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, node.fire, callback, *args, context=context)


class NodeClock(VirtualClock):
    """A machine's clocks: it has been up for a time of its own, and its wall clock may be set."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(seed=rng.getrandbits(32))
        self._up = rng.uniform(0.0, 1e6)
        self.jump_wall(-self._up)

    def monotonic(self) -> float:
        return self._up + super().monotonic()


class Weather:
    """Trouble by chance until it clears up, and now and then a stall that is longer than a lease."""

    def __init__(self, rng: random.Random, lease: float) -> None:
        self._random = random.Random(rng.getrandbits(32))
        self._plan = RandomPlan(
            rng.getrandbits(32),
            rate=rng.choice((0.0, 0.02, 0.1)),
            slow=rng.choice((0.0, 0.1, 0.4)),
            longest=rng.choice((0.01, lease / 2)),
        )
        self._stalls = rng.choice((0.0, 0.0, 0.01))
        self._cut = rng.random() < 0.1
        """Whether the line is cut for some seconds, longer than the library asks again by itself."""
        self._lost_hints = rng.choice((0.0, 0.3, 1.0))
        self._share_of_late = rng.choice((0.0, 0.3))
        self._doubled_hints = rng.choice((0.0, 0.2))
        self.met: Counter[str] = Counter()
        """Which trouble there was, and how often."""
        self._lease = lease
        self.clear = False

    def __call__(self, verb: str, index: int) -> Trouble | None:
        if verb == "hint":
            return self._meet_hint()
        if self.clear:
            return None
        if self._cut and 2.0 < asyncio.get_running_loop().time() < 9.0:
            self.met["a request was lost"] += 1
            return LOSE_REQUEST
        # What comes from a worker that has lost its lease meanwhile must be refused, and what it is handed by then is
        # not its own any more.
        stalls = 5.0 * self._stalls if verb in ("settle", "extend", "claim") else self._stalls
        if self._random.random() < stalls:
            self.met["a call stalled for longer than a lease"] += 1
            stall = self._random.uniform(1.0, 2.5) * self._lease
            return Trouble(delay_back=stall) if self._random.random() < 0.5 else Trouble(delay=stall)
        trouble = self._plan(verb, index)
        if trouble is not None:
            self.met["a request was lost"] += trouble.request_lost
            self.met["a reply was lost"] += trouble.reply_lost
            self.met["a call was late"] += trouble.delay + trouble.delay_back > 0.0
        return trouble

    def doubles_hint(self) -> bool:
        return self._random.random() < self._doubled_hints

    def _meet_hint(self) -> Trouble | None:
        """Hints stay as they are when it has cleared up: they may always be lost."""
        fate = self._random.random()
        if fate < self._lost_hints:
            return LOSE_REQUEST
        if fate < self._lost_hints + self._share_of_late:
            self.met["a hint came late"] += 1
            return Trouble(delay=self._random.uniform(0.0, 3.0))
        return None


class Node(FaultyStorage):
    """A process, as a connection: when it has died, nothing of it arrives any more, and nothing is answered.

    Args:
        storage: what it is connected to.
        weather: the trouble of its connection.
        clock: its machine's.
        dies_at: which of its calls it does not survive, from 1; a half more lets that call take effect. None: it
            survives them all.
    """

    def __init__(self, storage: Storage, weather: Weather, clock: NodeClock, dies_at: float | None) -> None:
        super().__init__(storage, weather)
        self.weather = weather
        self.machine = clock
        self.label = ""
        """Its name for people, which also decides when its idle workers look."""
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forsaken: list[object] = []
        """What will not happen any more; kept, so that whoever waits for it is not taken for lost."""
        self._dies_at = dies_at
        self._arrived = 0
        self.vigilant = False
        """Whether nothing that can be claimed is missed by who sleeps; see `jobq.storage.contract.is_vigilant`."""
        self.doubled = 0
        """How many hints came twice."""

    @property
    def clock(self) -> Clock:
        return self.machine

    @property
    def dead(self) -> bool:
        return self.death.done()

    def die(self) -> None:
        if not self.dead:
            self.death.set_result(None)

    async def run(self, life: Callable[[Node], Awaitable[None]]) -> None:
        """Run its program; what that starts belongs to this process too."""
        _current.set(self)
        await life(self)

    def fire(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Let a timer of this process go off."""
        if self.dead:
            self._forsaken.append((callback, args))
        else:
            callback(*args)

    async def meet(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        if verb == "wait_for_work" and self.vigilant:
            return await self._sleep(call)

        async def arrive() -> T:
            self._arrived += 1
            number = self._arrived
            await self._pass(number)
            answer = await _outside(call)
            await self._pass(number + 0.5)
            return answer

        return await super().meet(verb, arrive)

    def deliver(self, handler: Callable[[Hint], None], hint: Hint) -> None:
        if self.dead:
            return
        teller = _current.set(self)  # The handler is this process's, whoever has caused the hint.
        try:
            super().deliver(handler, hint)
            if self.weather.doubles_hint():
                self.doubled += 1
                super().deliver(handler, hint)
        finally:
            _current.reset(teller)

    async def _sleep(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait for work on a storage that misses nothing: no weather lies between it and its sleepers."""
        woken = await _outside(call)
        await self._pass(0)
        self.weather.met["a sleeper was woken in good weather"] += self.weather.clear and bool(woken)
        return woken

    async def _pass(self, number: float) -> None:
        if number == self._dies_at:
            self.die()
        if self.dead:
            unanswered = asyncio.get_running_loop().create_future()
            self._forsaken.append(unanswered)
            await unanswered


async def _outside(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call of the storage, which is another process: its timers outlive the one that calls."""
    process = _current.set(None)
    try:
        return await call()
    finally:
        _current.reset(process)
