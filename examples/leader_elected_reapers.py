"""Run one reaper beside each worker, and let one of them act at a time.

A reaper that stops hands the lead over; one that crashes loses it after ``lock_ttl``. Jobs are recovered once in any
case: the election only saves work.

Run it with ``python examples/leader_elected_reapers.py``.
"""

from __future__ import annotations

import asyncio

from jobq import LeaderElection, MemoryStorage, Reaper


class Host:
    """One machine with a reaper on it."""

    def __init__(self, name: str, storage: MemoryStorage) -> None:
        election = LeaderElection(lock_ttl=3.0, acquire_retry_interval=0.1)
        self.leads = asyncio.Event()
        self.reaper = Reaper(storage, leader_election=election)
        self.reaper.on("leadership_acquired", self.leads.set)
        self.reaper.on("leadership_acquired", lambda: print(f"{name} leads"))
        self.reaper.on("leadership_lost", lambda: print(f"{name} has handed over"))
        self.reaper.on("stalled", lambda id: print(f"{name} rescued {id}"))


async def main() -> None:
    storage = MemoryStorage()
    first, second = Host("first", storage), Host("second", storage)

    async with asyncio.timeout(10):
        await first.reaper.start()
        await first.leads.wait()
        await second.reaper.start()
        print("second leads:", second.reaper.is_leader)
        await first.reaper.stop()
        await second.leads.wait()
        await second.reaper.stop()


if __name__ == "__main__":
    asyncio.run(main())

# first leads
# second leads: False
# first has handed over
# second leads
# second has handed over
