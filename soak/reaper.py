"""A reaper: recovers what dead workers left, as one of several of whom one acts."""

from __future__ import annotations

import asyncio
import signal

from jobq import LeaderElection, Reaper
from soak.part import QUEUE, Part
from soak.work import number_of


async def reap(part: Part) -> None:
    lease = part.plan.lease
    election = LeaderElection(lock_ttl=lease, acquire_retry_interval=0.5)
    reaper = Reaper(part.storage(), name=QUEUE, visibility_timeout=lease, leader_election=election)
    note = part.audit.note
    reaper.on("stalled", lambda id: note("stalled", number_of(id)))
    reaper.on("leadership_acquired", lambda: note("leader"))
    reaper.on("leadership_lost", lambda: note("follower"))
    reaper.on("error", part.report)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await part.begin(reaper.start)
    await ended.wait()
    await reaper.stop()
