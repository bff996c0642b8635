"""A real Sentinel group: a master, one replica, and three sentinels that watch them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import redis

from tests.servers.binaries import Kind
from tests.servers.instrument import Instrument
from tests.servers.server import Server
from tests.servers.waiting import wait_for

NAME = "jobs"
"""What the sentinels call the master."""
DOWN_AFTER_MS = 1000
"""Milliseconds of silence after which a server counts as down."""
QUICK = {"info-period": 200, "ping-period": 400, "ask-period": 100, "publish-period": 200, "election-timeout": 2000}
"""Milliseconds between a sentinel's looks, which by default are seconds.

The `ping-period` is bounded on both sides. A broken link is made anew only once in it, so it must be well below
`DOWN_AFTER_MS`, else a new master counts as down at once. And a replica is promoted only if news of it are younger than
five of it, while those come only once a second when its master is down.
"""


class SentinelServer(Server):
    """One sentinel; it keeps what it learns in its configuration file."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        watched: Server,
        password: str | None = None,
        watched_password: str | None = None,
    ) -> None:
        super().__init__(kind, directory, password=password)
        self._watched = watched
        self._watched_password = watched_password

    def start(self) -> Self:
        super().start()
        self.command("SENTINEL", "DEBUG", *(word for pair in QUICK.items() for word in pair))
        return self

    def master_port(self) -> int:
        """Return the port of the server that it takes for the master."""
        return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def sees(self, *, sentinels: int, replicas: int) -> bool:
        """Whether it knows that many others and replicas, and finds the master well."""
        words = self.command("SENTINEL", "MASTER", NAME)
        told = dict(zip(words[::2], words[1::2], strict=True))
        found = (told["num-other-sentinels"], told["num-slaves"], told["flags"])
        return found == (str(sentinels), str(replicas), "master")

    def _lines(self) -> list[str]:
        lines = [] if self._password is None else [f"requirepass {self._password}"]
        if self._password is not None:
            lines.append(f"sentinel sentinel-pass {self._password}")
        lines += [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket_path}",
            f"dir {self.directory}",
            f"sentinel monitor {NAME} 127.0.0.1 {self._watched.port} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} 2000",
        ]
        if self._watched_password is not None:
            lines.append(f"sentinel auth-pass {NAME} {self._watched_password}")
        return lines

    def _arguments(self) -> list[str]:
        return ["--sentinel"]


class SentinelGroup(Instrument):
    """`start` returns when each sentinel knows the two others and the replica."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        options: Sequence[str] = (),
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        first = Server(kind, directory / "server-1", options=options, password=password)
        following = ["repl-ping-replica-period 1", f"replicaof 127.0.0.1 {first.port}"]
        second = Server(kind, directory / "server-2", options=[*options, *following], password=password)
        self.servers = [first, second]
        places = [directory / f"sentinel-{number}" for number in (1, 2, 3)]
        self.sentinels = [
            SentinelServer(kind, place, watched=first, password=sentinel_password, watched_password=password)
            for place in places
        ]

    @property
    def url(self) -> str:
        """All sentinels and the master's name: ``redis+sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/jobs``."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{NAME}"

    @property
    def master(self) -> Server:
        """The server that all running sentinels take for the master."""
        (port,) = {sentinel.master_port() for sentinel in self.sentinels if sentinel.running}
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> Server:
        master = self.master
        return next(server for server in self.servers if server is not master)

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        # Sentinels learn of a replica from its master, which must know it by then or they look again only later.
        wait_for(lambda: _follows(self.servers[1]), "link to the master")
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_until_watched()
        return self

    def close(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.close()

    def wait_until_watched(self) -> None:
        """Wait until every sentinel knows the others and finds the master well, and the replica follows the master."""
        wait_for(lambda: all(one.sees(sentinels=2, replicas=1) for one in self.sentinels), "sentinels that know all")
        wait_for(lambda: _follows(self.replica), "link to the master")

    def kill_master(self) -> Server:
        """Kill the master, and return it; the sentinels promote the replica within some seconds."""
        master = self.master
        master.kill()
        return master

    def wait_for_new_master(self, old: Server) -> Server:
        """Wait until all sentinels name another server, and it knows that it is the master.

        The old one, started again, is made its replica by the sentinels: `wait_until_watched`.
        """
        return wait_for(lambda: self._master_after(old), "new master")

    def _master_after(self, old: Server) -> Server | None:
        ports = {sentinel.master_port() for sentinel in self.sentinels if sentinel.running}
        new = [server for server in self.servers if {server.port} == ports and server is not old]
        return new[0] if new and _replication(new[0]).get("role") == "master" else None


def _follows(server: Server) -> bool:
    return _replication(server).get("master_link_status") == "up"


def _replication(server: Server) -> dict[str, str]:
    """Return what a server tells about its role; nothing at the moment at which sentinels change it."""
    try:
        return server.info("replication")
    except redis.ConnectionError:
        # They end all of its connections then, so that clients ask anew who the master is.
        return {}
