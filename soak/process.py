"""One process of a soak: ``python -m soak.process ROLE INDEX INCARNATION DIRECTORY``."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
from pathlib import Path

from soak import producer, reaper, surveyor, waiter, worker
from soak.part import Part

_ROLES = {
    "producer": producer.produce,
    "worker": worker.work,
    "reaper": reaper.reap,
    "waiter": waiter.wait,
    "surveyor": surveyor.survey,
}
_DEATH_OF_THE_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    role, index, incarnation, directory = sys.argv[1:]
    # Nobody survives the conductor, not even who is frozen.
    ctypes.CDLL(None).prctl(_DEATH_OF_THE_PARENT, signal.SIGKILL)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    part = Part(role, int(index), int(incarnation), Path(directory))
    try:
        asyncio.run(part.run(_ROLES[role]))
    except Exception as error:
        part.audit.note("unexpected", f"the process ended: {error!r}")
        raise


if __name__ == "__main__":
    main()
