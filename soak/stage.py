"""Where a soak takes place: a storage of its own, and the trouble that can be made with it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

from soak.part import QUEUE
from tests.servers.binaries import Kind
from tests.servers.cluster import SLOTS, Cluster
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server
from tests.servers.trouble import Ending

_LOCKED_TO_WRITE = 120
"""The byte of the shared memory's file that SQLite locks for whoever writes to a database with a log."""
_STORED = ("EVALSHA", "EVALSHA", "EVALSHA", "BLPOP", "SUBSCRIBE")


class Trouble(NamedTuple):
    """One fault of the storage, made by `make` and over when `heal` was called so many seconds later."""

    name: str
    make: Callable[[], object]
    heal: Callable[[], object] | None = None
    seconds: float = 0.0


class Stage(Protocol):
    """A storage that is up, and troubles to choose from."""

    urls: tuple[str, ...]

    def troubles(self, lot: random.Random) -> Sequence[Trouble]:
        """Return what may happen now; ``lot`` decides about the details."""
        ...

    def heal(self) -> None:
        """End all trouble."""
        ...

    def held_by(self, process: int) -> bool:
        """Whether nobody can write to the storage for as long as this process, which is frozen, stands still."""
        ...

    def counts(self) -> tuple[int, int]:
        """Return how many connections were cut so far, and how many were made again."""
        ...

    def left(self) -> Mapping[str, int]:
        """Return what a storage without open jobs should not hold: by name, how much of it there is."""
        ...

    def close(self) -> None: ...


class FileStage:
    """A directory. Its full disks are the nemesis's, since they are limits of processes."""

    urls: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self._path = directory / "jobs" / "jobq.sqlite3"
        self._locker: sqlite3.Connection | None = None

    def troubles(self, lot: random.Random) -> Sequence[Trouble]:
        return [Trouble("lock", self._lock, self.heal, lot.uniform(0.5, 2.5))]

    def heal(self) -> None:
        if self._locker is not None:
            self._locker.close()
            self._locker = None

    def held_by(self, process: int) -> bool:
        """Look among the locks that the kernel tells of, such as ``1: POSIX ADVISORY WRITE 4711 fd:01:812 120 120``."""
        try:
            shared = str(Path(f"{self._path}-shm").stat().st_ino)
        except FileNotFoundError:  # Nobody has it open.
            return False
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, *_, mode, owner, file, first, last = line.split()
            ours = (kind, mode, owner, file.rpartition(":")[2]) == ("POSIX", "WRITE", str(process), shared)
            if ours and last != "EOF" and int(first) <= _LOCKED_TO_WRITE <= int(last):
                return True
        return False

    def counts(self) -> tuple[int, int]:
        return 0, 0

    def left(self) -> Mapping[str, int]:
        with closing(sqlite3.connect(self._path)) as connection:
            (open_jobs,) = connection.execute(
                "SELECT count(*) FROM jobs WHERE state <= 2 OR due IS NOT NULL OR lease_until IS NOT NULL"
            ).fetchone()
            damages = [text for (text,) in connection.execute("PRAGMA quick_check") if text != "ok"]
        return {"open-jobs": open_jobs, "damages": len(damages)}

    def close(self) -> None:
        self.heal()

    def _lock(self) -> None:
        """Hold the write lock, as a backup or a person with a shell may do."""
        self._locker = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        try:
            self._locker.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # Its users were quicker; this trouble does not happen.
            self.heal()


class ServerStage:
    """A Redis or Valkey server that keeps its data, behind two proxies: every other part goes through the same one."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self._server = Server(kind, directory / "server", persistence="always").start()
        self._proxies = [FaultProxy(self._server.port).start() for _ in range(2)]
        self.urls = tuple(proxy.url for proxy in self._proxies)
        self._cut = 0
        self._again = 0
        self._ever_before = 0

    def troubles(self, lot: random.Random) -> Sequence[Trouble]:
        proxy, seconds = lot.choice(self._proxies), lot.uniform(0.5, 2.0)
        name, nth, times = lot.choice(_STORED), lot.randrange(1, 20), lot.randrange(1, 4)
        ending = lot.choice([Ending.CLOSE, Ending.RESET, Ending.HALF_CLOSE, Ending.SILENCE])
        return [
            Trouble(
                f"drop-request-{name}",
                lambda: proxy.drop_request(name, nth=nth, times=times, ending=ending),
                proxy.heal,
                1.0,
            ),
            *[
                Trouble(
                    f"drop-reply-{name}",
                    lambda: proxy.drop_reply(name, nth=nth, times=times, ending=ending),
                    proxy.heal,
                    1.0,
                )
            ]
            * 3,
            Trouble("delay", lambda: proxy.delay(requests=0.05, replies=0.1), proxy.heal, seconds),
            *[Trouble("black-hole", proxy.black_hole, proxy.heal, 3.0)] * 2,
            Trouble("cut", lambda: self._end_connections(proxy, ending), self._count_again, 0.5),
            Trouble("refuse", lambda: self._refuse(proxy, ending), lambda: self._admit(proxy), seconds),
            Trouble("client-kill", lambda: self._kill_clients("normal"), self._count_again, 0.5),
            Trouble("client-kill-pubsub", lambda: self._kill_clients("pubsub"), self._count_again, 0.5),
            Trouble("script-flush", lambda: self._server.command("SCRIPT", "FLUSH")),
            Trouble("restart", lambda: self._restart(by_force=False), self._count_again, 0.5),
            Trouble("restart-by-force", lambda: self._restart(by_force=True), self._count_again, 0.5),
            Trouble("memory-limit", self._limit_memory, self._free_memory, seconds),
        ]

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()
        if not self._server.running:
            self._server.start()
        self._free_memory()

    def held_by(self, process: int) -> bool:
        return False

    def counts(self) -> tuple[int, int]:
        return self._cut, self._again

    def left(self) -> Mapping[str, int]:
        return _entries(self._server)

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        self._server.close()

    def _end_connections(self, proxy: FaultProxy, ending: Ending) -> None:
        self._cutting(proxy.connections)
        proxy.end_connections(Ending.RESET if ending is Ending.SILENCE else ending)

    def _refuse(self, proxy: FaultProxy, ending: Ending) -> None:
        proxy.refuse()
        self._end_connections(proxy, ending)

    def _admit(self, proxy: FaultProxy) -> None:
        proxy.heal()
        self._count_again()

    def _kill_clients(self, kind: str) -> None:
        self._cutting(0)
        self._cut += int(self._server.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))

    def _restart(self, *, by_force: bool) -> None:
        self._cutting(sum(proxy.connections for proxy in self._proxies))
        if by_force:
            self._server.kill()
        self._server.restart()

    def _limit_memory(self) -> None:
        used = int(self._server.info("memory")["used_memory"])
        self._server.command("CONFIG", "SET", "maxmemory", max(1, used // 2))

    def _free_memory(self) -> None:
        self._server.command("CONFIG", "SET", "maxmemory", 0)

    def _cutting(self, count: int) -> None:
        self._cut += count
        self._ever_before = sum(proxy.connections_ever for proxy in self._proxies)

    def _count_again(self) -> None:
        self._again += sum(proxy.connections_ever for proxy in self._proxies) - self._ever_before


class ClusterStage:
    """Three masters and a replica. No proxy stands between, since a Cluster tells its clients where its nodes are."""

    def __init__(self, directory: Path) -> None:
        self._cluster = Cluster("valkey", directory / "cluster").start()
        places = ",".join(f"127.0.0.1:{node.port}" for node in self._cluster.nodes)
        self.urls: tuple[str, ...] = (f"redis+cluster://{places}",)
        slot = self._cluster.nodes[0].command("CLUSTER", "KEYSLOT", f"{{{QUEUE}}}")
        assert 0 <= slot < SLOTS
        self._slot = int(slot)
        self._cut = 0

    def troubles(self, lot: random.Random) -> Sequence[Trouble]:
        kind = lot.choice(["normal", "normal", "pubsub"])
        return [
            Trouble("fail-over", self._cluster.failover),
            Trouble("migration", lambda: self._migrate(lot)),
            Trouble("client-kill", lambda: self._kill_clients(kind)),
            Trouble("script-flush", self._flush_scripts),
        ]

    def heal(self) -> None:
        self._cluster.wait_until_whole()

    def held_by(self, process: int) -> bool:
        return False

    def counts(self) -> tuple[int, int]:
        # Nobody stands between and counts who comes back; that all goes on says that they did.
        return self._cut, self._cut

    def left(self) -> Mapping[str, int]:
        return _entries(self._cluster.node_of(self._slot))

    def close(self) -> None:
        self._cluster.close()

    def _migrate(self, lot: random.Random) -> None:
        source = self._cluster.node_of(self._slot)
        self._cluster.migrate_slot(self._slot, lot.choice([node for node in self._cluster.masters if node != source]))

    def _kill_clients(self, kind: str) -> None:
        for node in self._cluster.masters:
            self._cut += int(node.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))

    def _flush_scripts(self) -> None:
        for node in self._cluster.masters:
            node.command("SCRIPT", "FLUSH")


def _entries(server: Server) -> Mapping[str, int]:
    return {name: int(server.command("ZCARD", f"jobq:{{{QUEUE}}}:{name}")) for name in ("ready", "later", "leases")}


def open_stage(kind: str, directory: Path) -> Stage:
    match kind:
        case "file":
            return FileStage(directory)
        case "redis":
            return ServerStage("redis", directory)
        case "valkey":
            return ServerStage("valkey", directory)
        case "cluster":
            return ClusterStage(directory)
    raise ValueError(f"there is no stage {kind!r}")
