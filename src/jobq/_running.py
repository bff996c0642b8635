"""Running: one claimed job while its handler runs, shared by worker, executor and lease keeper."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jobq.job import Claim, Job
from jobq.signal import AbortReason, AbortSignal


class Running:
    """What is known here about one claim, from the claim until its one decision."""

    __slots__ = (
        "claim",
        "decided",
        "job",
        "judging",
        "lease_until",
        "renew_until",
        "reviewed",
        "signal",
        "standing",
        "started_at",
        "task",
        "tick",
        "troubled",
    )

    def __init__(self, claim: Claim, lease_until: float, renew_until: float) -> None:
        self.claim = claim
        self.lease_until = lease_until
        """By the clock's monotonic time, counted from before the claim or the last extend was sent."""
        self.renew_until = renew_until
        """From then on the lease is left to lapse: the job's time is over, and also the time to end."""
        self.signal = AbortSignal()
        self.job: Job[Any] | None = None
        """What the handler was given; None before it began."""
        self.started_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self.judging: asyncio.Task[None] | None = None
        """Settles it because its time is over, while the handler may go on."""
        self.reviewed = False
        """Whether the hook was called: for an attempt that is once, whatever becomes of it meanwhile."""
        self.standing: Any = None
        """The `Outcome` of a handler that ended in time, while the hook reviews it and may still change it."""
        self.decided = False
        """Whether its outcome stands: there is one decision per token."""
        self.troubled = False
        """Whether trouble with its settle was told."""
        self.tick = -1
        """Where its `job_timeout` waits among the timeouts."""

    @property
    def reason(self) -> AbortReason | None:
        """Why the handler was asked to end, if it was."""
        return self.signal.reason


class JobTime:
    """A job's time among the timeouts; equal for the same job, so that it can be discarded."""

    __slots__ = ("_expired", "_running")

    def __init__(self, running: Running, expired: Callable[[Running], None]) -> None:
        self._running = running
        self._expired = expired

    def expire(self) -> None:
        self._expired(self._running)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobTime) and other._running is self._running

    def __hash__(self) -> int:
        return hash(id(self._running))
