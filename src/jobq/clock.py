"""Time, randomness and failpoints: what a test replaces, in one object.

Every storage takes ``clock=``, and the queues on it use the same one. Two clocks are kept apart on purpose: ``now`` is
the wall clock, for instants that people chose (due times, expiries); ``monotonic`` cannot be set and counts suspended
time too, for leases.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from random import SystemRandom

uniform = SystemRandom().uniform
"""Draw a float between two. It has no seed: a program that seeds `random` must not get workers that all pause alike,
and our threads must not take from the sequence that it relies on."""


class Clock:
    """The machine's own clocks. Subclass it to inject time, randomness or faults."""

    def now(self) -> float:
        """Return the wall clock, in epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since the machine started, suspended time included where the system can tell."""
        return _boottime()

    def boot_id(self) -> str:
        """Name this run of the machine: two values of `monotonic` compare only within one boot."""
        return _boot_id()

    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)

    def uniform(self, low: float, high: float) -> float:
        return uniform(low, high)

    def failpoint(self, name: str) -> None:
        """Do nothing. A test's clock may raise, block or kill the process here.

        Names are ``"<verb>.before"``, ``"<verb>.commit"`` (applied, not yet durable) and ``"<verb>.after"`` (durable,
        not yet answered), for each verb of the storage contract.
        """


if hasattr(time, "CLOCK_BOOTTIME"):
    _boottime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # pragma: no cover
    _boottime = partial(time.monotonic)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # Elsewhere the time of the boot is nearly constant, to the minute.
        return f"boot-{round((time.time() - _boottime()) / 60)}"
