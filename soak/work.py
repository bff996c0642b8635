"""What job number n is, and how it must end: a function of the run's seed and n alone, so that no list is needed."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from soak.plan import Plan

MANY_ATTEMPTS = 1000
"""So that a job that shares its worker with others does not fail because that worker is killed often."""
POISON_ATTEMPTS = 2
_LARGE = 80_000
"""Characters; such a result does not fit into a hint and must be read."""
_POISONED = 10
_FROZEN = 12
"""These a minute: each costs a worker, so that their number must not grow with the jobs."""
_FATAL = 24
"""These in a run: whoever follows a producer must read all that it wrote."""


class Manner(StrEnum):
    """How a job behaves."""

    PLAIN = "plain"
    DELAYED = "delayed"
    SLOW = "slow"
    """Runs long enough to be running when its worker is killed."""
    BLOCKING = "blocking"
    """Blocks its worker's event loop for a moment."""
    FLAKY = "flaky"
    """Fails twice, then succeeds."""
    FAILING = "failing"
    """Fails on every attempt."""
    GIVING_UP = "giving up"
    REQUESTED = "requested"
    """Enqueued and waited for in one call, by a waiter."""
    LARGE = "large"
    CANCELLED = "cancelled"
    """Cancelled by its producer once it is accepted."""
    STOPPED = "stopped"
    """Runs long, and is cancelled by its producer while it does."""
    POISON = "poison"
    """Kills its worker."""
    FREEZING = "freezing"
    """Freezes its worker for longer than the lease, on the first attempt, and then returns as if nothing had been."""

    @property
    def fails(self) -> bool:
        return self in (Manner.FAILING, Manner.GIVING_UP, Manner.POISON)

    @property
    def cancelled(self) -> bool:
        """Whether somebody tries to cancel it."""
        return self in (Manner.CANCELLED, Manner.STOPPED)


class Work(msgspec.Struct, frozen=True):
    """A payload."""

    number: int
    manner: Manner
    seconds: float
    text: str = ""


class Done(msgspec.Struct, frozen=True):
    """A result: which run of which job wrote it."""

    number: int
    token: int
    text: str = ""


# Of a thousand jobs; what is left is plain.
_SHARES = (
    (Manner.DELAYED, 50),
    (Manner.SLOW, 30),
    (Manner.BLOCKING, 10),
    (Manner.FLAKY, 40),
    (Manner.FAILING, 10),
    (Manner.GIVING_UP, 10),
    (Manner.REQUESTED, 60),
    (Manner.LARGE, 1),
    (Manner.CANCELLED, 20),
    (Manner.STOPPED, 8),
)
_SECONDS = {Manner.SLOW: 0.6, Manner.BLOCKING: 0.02, Manner.STOPPED: 6.0}


def id_of(number: int) -> str:
    return f"job-{number}"


def number_of(id: str) -> int:
    return int(id.removeprefix("job-"))


def work_of(plan: Plan, number: int) -> Work:
    manner, chance = manner_of(plan, number), _mixed(plan.seed, number) >> 20
    seconds = _SECONDS.get(manner, 0.002) * (0.5 + chance % 1024 / 1024)
    return Work(number, manner, seconds, "x" * _LARGE if manner is Manner.LARGE else "")


def manner_of(plan: Plan, number: int) -> Manner:
    if _is_spread(plan, number, round(_POISONED * plan.minutes), 2):
        return Manner.POISON
    if _is_spread(plan, number, round(_FROZEN * plan.minutes), 3):
        return Manner.FREEZING
    drawn = _mixed(plan.seed, number) % 1000
    for manner, share in _SHARES:
        drawn -= share
        if drawn < 0:
            return manner
    return Manner.PLAIN


def options_of(work: Work) -> dict[str, Any]:
    """Return what else is said to `enqueue`."""
    match work.manner:
        case Manner.DELAYED:
            return {"delay": 1000 * work.seconds % 2.0}
        case Manner.FAILING:
            return {"max_attempts": 3}
        case Manner.POISON:
            return {"max_attempts": POISON_ATTEMPTS}
    return {}


def askers_of(plan: Plan, number: int) -> set[int]:
    """Return which producers hand a job over; some jobs are asked for twice. A requested job is a waiter's."""
    manner = manner_of(plan, number)
    if manner is Manner.REQUESTED:
        return set()
    first = number % plan.producers
    if manner is Manner.PLAIN and (_mixed(plan.seed, number) >> 12) % 20 == 0:
        return {first, (first + 1) % plan.producers}
    return {first}


def kills_its_producer(plan: Plan, number: int) -> bool:
    """Whether the producer that asks for it first is killed while it does."""
    return _is_spread(plan, number, _FATAL, 5)


def is_waited_for(plan: Plan, number: int) -> bool:
    """Whether a waiter waits for it."""
    return manner_of(plan, number) is Manner.REQUESTED or (_mixed(plan.seed, number) >> 32) % 20 == 0


def _is_spread(plan: Plan, number: int, times: int, part: int) -> bool:
    """Whether it is one of so many jobs, evenly spread; ``part`` keeps those of different kinds apart."""
    apart = plan.jobs // max(1, times)
    return apart > 0 and number % apart == apart // part


def _mixed(seed: int, number: int) -> int:
    """Return 64 bits that look drawn by lot (splitmix64)."""
    mixed = (number * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 1) & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31
