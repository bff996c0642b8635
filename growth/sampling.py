"""What is looked at while jobs flow: memory, tasks, threads, descriptors, and the connections of a server."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from growth.place import Place

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """This process at one instant."""

    at: float
    memory: int
    """Bytes of resident memory."""
    tasks: int
    threads: int
    descriptors: int
    connections: int
    """What the server counts; 0 where there is none."""


def look(place: Place) -> Sample:
    return Sample(
        time.monotonic(),
        int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
        len(asyncio.all_tasks()),
        threading.active_count(),
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        place.connections(),
    )


async def watch(place: Place, seconds: float, *, every: float = 1.0) -> list[Sample]:
    """Look again and again."""
    samples, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        gc.collect(0)
        samples.append(look(place))
        await asyncio.sleep(every)
    return samples


def megabytes_a_minute(samples: Sequence[Sample]) -> float:
    """Return the slope of the memory, fitted over all samples."""
    slope, _ = statistics.linear_regression([one.at for one in samples], [float(one.memory) for one in samples])
    return slope * 60 / 2**20


def risen(samples: Sequence[Sample], what: str) -> float:
    """Return by how much a count is higher in the last third than in the first, by their medians."""
    third = max(1, len(samples) // 3)
    counts = [getattr(one, what) for one in samples]
    return statistics.median(counts[-third:]) - statistics.median(counts[:third])
