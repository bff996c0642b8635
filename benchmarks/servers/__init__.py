"""Benchmarks on a Redis or Valkey server of their own. Run ``python -m benchmarks --on redis`` (or ``valkey``).

`server` starts it and reads its figures; every other module measures one kind of thing, and finds and leaves the
server empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import Plan, Row
from benchmarks.servers import backlog, commands, herd, idle, memory, pickup, request_response, throughput
from benchmarks.servers.server import Server

SERVER_BENCHMARKS: dict[str, Callable[[Server, Plan], Iterator[Row]]] = {
    "request_response": request_response.measure,
    "throughput": throughput.measure,
    "pickup": pickup.measure,
    "memory": memory.measure,
    "commands": commands.measure,
    "backlog": backlog.measure,
    "idle": idle.measure,
    "herd": herd.measure,
}
