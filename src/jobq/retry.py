"""Retry policies: how long to wait before the next attempt."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

from jobq.checks import check_clock, check_number, check_seconds
from jobq.clock import Clock

RetryPolicy = Callable[[int, BaseException], float]
"""Called with the number of the attempt that failed, 1 for the first, and its error; returns seconds."""


class ExponentialBackoff:
    """Wait ``initial``, then ``factor`` times as long each time, at most ``maximum``, spread by ``jitter``.

    The delay after attempt n is ``min(maximum, initial * factor ** (n - 1)) * (1 ± jitter)``.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> policy = ExponentialBackoff(initial=1, factor=2, maximum=300, jitter=0)
        >>> [policy(attempt, ValueError()) for attempt in (1, 2, 3, 20)]
        [1.0, 2.0, 4.0, 300.0]
    """

    def __init__(
        self,
        initial: float | timedelta = 1.0,
        factor: float = 2.0,
        maximum: float | timedelta = 300.0,
        jitter: float = 0.1,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.initial = check_seconds("initial", initial)
        self.factor = check_number("factor", factor, least=1.0, most=1e6)
        self.maximum = check_seconds("maximum", maximum)
        self.jitter = check_number("jitter", jitter, least=0.0, most=1.0)
        self._clock = check_clock(clock)

    def __call__(self, attempt: int, error: BaseException) -> float:
        delay = min(self.maximum, self._grown(attempt))
        return delay * self._clock.uniform(1.0 - self.jitter, 1.0 + self.jitter)

    def _grown(self, attempt: int) -> float:
        if self.initial == 0.0:
            return 0.0
        # In logarithms, because factor ** 2000 overflows a float.
        growth = (attempt - 1) * math.log(self.factor)
        exponent = math.log(self.initial) + growth
        if exponent > 700.0:
            return self.maximum
        if growth > 700.0:  # Much of very little.
            return math.exp(exponent)
        return self.initial * float(self.factor ** (attempt - 1))

    def __repr__(self) -> str:
        return (
            f"ExponentialBackoff(initial={self.initial}, factor={self.factor}, "
            f"maximum={self.maximum}, jitter={self.jitter})"
        )


class FixedDelay:
    """Wait the same number of seconds after each failed attempt.

    Example:
        >>> FixedDelay(5)(3, ValueError())
        5.0
    """

    def __init__(self, seconds: float | timedelta) -> None:
        self.seconds = check_seconds("seconds", seconds)

    def __call__(self, attempt: int, error: BaseException) -> float:
        return self.seconds

    def __repr__(self) -> str:
        return f"FixedDelay({self.seconds})"
