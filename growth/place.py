"""Where the jobs are kept for a run: a directory, or a server that was started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.disk import checkpointed
from benchmarks.measure import directory
from jobq import FileStorage
from jobq.storage.contract import Storage

if TYPE_CHECKING:
    from benchmarks.servers.server import Server

KINDS = ("file", "redis", "valkey")


class Place(Protocol):
    """A storage, and what its keeper can tell of it."""

    def storage(self) -> Storage:
        """Return a new storage, not yet open."""

    def size(self) -> int:
        """Return the bytes that it takes: on disk, or in the server's memory."""

    def connections(self) -> int:
        """Return how many connections the server has, ours for looking included; 0 where there is none."""


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def storage(self) -> Storage:
        return FileStorage(self._path)

    def size(self) -> int:
        return checkpointed(self._path)

    def connections(self) -> int:
        return 0


@contextmanager
def opened(kind: str) -> Iterator[Place]:
    if kind == "file":
        with directory() as path:
            yield _Directory(path)
    else:
        # Imported here, because files do without what the extra redis brings.
        from benchmarks.servers.server import own_server

        with own_server(kind) as server:
            yield _OnServer(server)


class _OnServer:
    def __init__(self, server: Server) -> None:
        self._server = server

    def storage(self) -> Storage:
        return self._server.storage()

    def size(self) -> int:
        return self._server.used_memory()

    def connections(self) -> int:
        return self._server.connections()
