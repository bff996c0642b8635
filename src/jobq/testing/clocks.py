"""Clocks for tests: one that is set by hand, and one that acts where a storage passes a failpoint."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping

from jobq.checks import check_clock
from jobq.clock import Clock


class ManualClock(Clock):
    """A clock that stands still until it is moved, with randomness that repeats.

    Args:
        now: where the wall clock begins, in epoch seconds.
        seed: of `random_bytes` and `uniform`.

    Example:
        >>> clock = ManualClock(now=100.0)
        >>> clock.advance(2.5)
        >>> clock.now()
        102.5
    """

    def __init__(self, *, now: float = 1_800_000_000.0, seed: int = 0) -> None:
        self._now = now
        self._monotonic = 5_000.0
        self._boots = 1
        self._random = random.Random(seed)

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def random_bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def advance(self, seconds: float) -> None:
        """Let time pass: both clocks move."""
        self._now += seconds
        self._monotonic += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, forwards or back; no time passes."""
        self._now += seconds

    def jump_monotonic(self, seconds: float) -> None:
        """Move only the clock of leases: what a restored virtual machine or a broken clock source does."""
        self._monotonic += seconds

    def reboot(self) -> None:
        """Restart the machine: another boot id, and the clock of leases begins anew."""
        self._boots += 1
        self._monotonic = 5.0


class FailpointClock(Clock):
    """Acts where a storage passes a failpoint, and counts the passes.

    Args:
        actions: what to call at a failpoint, by its name, as ``{"settle.after": kill_process}``. An action may raise,
            block, or end the process; see `at_pass` for acting only once.
        clock: tells the time; the machine's own by default.

    Example:
        >>> clock = FailpointClock({"settle.after": lambda: print("settled")})
        >>> clock.failpoint("settle.after")
        settled
        >>> clock.passed["settle.after"]
        1
    """

    def __init__(self, actions: Mapping[str, Callable[[], object]], *, clock: Clock | None = None) -> None:
        self._actions = dict(actions)
        self._clock = check_clock(clock)
        self.passed: Counter[str] = Counter()
        """How often each failpoint was passed."""

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def boot_id(self) -> str:
        return self._clock.boot_id()

    def random_bytes(self, size: int) -> bytes:
        return self._clock.random_bytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self._clock.uniform(low, high)

    def failpoint(self, name: str) -> None:
        self.passed[name] += 1
        if action := self._actions.get(name):
            action()


def at_pass(number: int, action: Callable[[], object]) -> Callable[[], object]:
    """Return an action that acts only when it is called for the ``number``-th time; 1 is the first.

    Example:
        >>> action = at_pass(2, lambda: print("now"))
        >>> action()
        >>> action()
        now
    """
    calls = 0

    def act() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            action()

    return act


def kill_process() -> None:
    """End this process as ``kill -9`` does: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)
