"""The server that is measured: started for it, asked for its figures, ended afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from jobq import RedisStorage

_PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "own_server.py"
_OUTSIDE = ("auth", "blpop", "client|", "config|", "eval", "hello", "info", "ping", "script|", "select", "subscribe")
"""How the names of commands begin that jobq or we send; all others run inside scripts."""


class Server:
    """A running server, as whoever administers it sees it."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self._client: Any = redis.Redis.from_url(url, decode_responses=True, lib_name=None, lib_version=None)

    def __str__(self) -> str:
        facts = self._client.info("server")
        return f"{self.kind} {facts.get('valkey_version') or facts['redis_version']}"

    def storage(self, database: int = 0) -> RedisStorage:
        """Return a new storage on this server, not yet open."""
        return RedisStorage(f"{self.url.removesuffix('/0')}/{database}")

    def empty(self) -> None:
        """Remove everything, and wait for it."""
        self._client.flushall()

    def used_memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def connections(self) -> int:
        return int(self._client.info("clients")["connected_clients"])

    def reads(self) -> int:
        """Return how often the server has read from a socket so far."""
        return int(self._client.info("stats")["total_reads_processed"])

    def calls(self) -> dict[str, int]:
        """Return how often each command ran so far, in scripts or not; without those by which we ask."""
        stats = self._client.info("commandstats")
        found = {name.removeprefix("cmdstat_"): int(figures["calls"]) for name, figures in stats.items()}
        return {name: count for name, count in found.items() if not name.startswith(("info", "flushall"))}


def scripts_in(calls: dict[str, int]) -> int:
    """Return how many of the calls ran a script."""
    return calls.get("evalsha", 0) + calls.get("eval", 0)


def inside_scripts(calls: dict[str, int]) -> int:
    """Return how many of the calls were made by scripts."""
    return sum(count for name, count in calls.items() if not name.startswith(_OUTSIDE))


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the calls that came between two looks."""
    return {name: count - before.get(name, 0) for name, count in after.items()}


@contextmanager
def own_server(kind: str) -> Iterator[Server]:
    """Start a server, and end it afterwards.

    Raises:
        SystemExit: there is none; one line on stderr has said why.
    """
    # In a group of its own, so that Ctrl-C ends the benchmark first and the server after it.
    command = [sys.executable, str(_PROGRAM), kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        url = keeper.stdout.readline().strip()
        if not url:
            sys.exit(1)
        try:
            yield Server(kind, url)
        finally:
            keeper.stdin.close()
