"""A real cluster: three masters that share the slots, and one replica of the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import redis

from tests.servers.binaries import Kind
from tests.servers.instrument import Instrument
from tests.servers.server import Server, hold_port
from tests.servers.waiting import wait_for

SLOTS = 16_384
NODE_TIMEOUT_MS = 1000
"""Milliseconds of silence after which a node counts as failed."""


class ClusterNode(Server):
    """One node; `id` is its name in the cluster."""

    def __init__(
        self, kind: Kind, directory: Path, *, options: Sequence[str] = (), certificates: Path | None = None
    ) -> None:
        super().__init__(kind, directory, options=options)
        self._certificates = certificates
        self._guards += [hold_port(), hold_port()]
        self.bus_port, self.tls_port = (int(guard.getsockname()[1]) for guard in self._guards[1:])

    @property
    def id(self) -> str:
        return str(self.command("CLUSTER", "MYID"))

    @property
    def is_master(self) -> bool:
        return self.info("replication")["role"] == "master"

    def knows(self, count: int) -> bool:
        """Whether it finds the cluster whole, with that many nodes."""
        told = dict(line.split(":", 1) for line in self.command("CLUSTER", "INFO").splitlines())
        return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == count

    def _lines(self) -> list[str]:
        lines = ["cluster-enabled yes", f"cluster-port {self.bus_port}", f"cluster-node-timeout {NODE_TIMEOUT_MS}"]
        # A replica that was cut off for some seconds may still take over, and a master never gives its last one away.
        lines += ["cluster-replica-validity-factor 0", "cluster-allow-replica-migration no"]
        if self._certificates is not None:
            lines += [f"tls-{part}-file {self._certificates / part}.pem" for part in ("cert", "key", "ca-cert")]
            lines += [f"tls-port {self.tls_port}", "tls-auth-clients no", "tls-cluster yes", "tls-replication yes"]
        return [*super()._lines(), *lines]


class Cluster(Instrument):
    """Four nodes; `start` returns when each finds the cluster whole.

    With ``certificates``, a directory of ``cert.pem``, ``key.pem`` and ``ca-cert.pem``, they speak TLS, at `tls_url` to
    clients and among themselves; of the two kinds only Redis can, since the wheel's Valkey was built without it.
    """

    def __init__(
        self, kind: Kind, directory: Path, *, options: Sequence[str] = (), certificates: Path | None = None
    ) -> None:
        places = [directory / f"node-{number}" for number in range(4)]
        self.nodes = [ClusterNode(kind, place, options=options, certificates=certificates) for place in places]
        self._secure = certificates is not None

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        """All nodes: ``redis+cluster://127.0.0.1:1,127.0.0.1:2,…``."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def tls_url(self) -> str:
        return "rediss+cluster://" + ",".join(f"127.0.0.1:{node.tls_port}" for node in self.nodes)

    @property
    def masters(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.running and node.is_master]

    @property
    def replica(self) -> ClusterNode:
        (replica,) = (node for node in self.nodes if node.running and not node.is_master)
        return replica

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        first, second, third, replica = self.nodes
        borders = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for number, node in enumerate((first, second, third)):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.command("CLUSTER", "ADDSLOTSRANGE", borders[number], borders[number + 1] - 1)
        for node in (second, third, replica):
            port = node.tls_port if self._secure else node.port
            first.command("CLUSTER", "MEET", "127.0.0.1", port, node.bus_port)
        wait_for(lambda: self._replicate(replica, first), "replica in the cluster")
        self.wait_until_whole()
        return self

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def wait_until_whole(self) -> None:
        """Wait until the running nodes find the cluster whole and agree about it, and replicas have their link."""
        wait_for(self._whole, "agreement of the cluster")

    def node_of(self, slot: int) -> ClusterNode:
        """Return the master that serves a slot; all agree about it."""
        (port,) = {self._port_of(node, slot) for node in self.nodes if node.running}
        return next(node for node in self.nodes if node.port == port)

    def failover(self) -> ClusterNode:
        """Let the replica take over from its living master without losing anything, and return the new master."""
        replica = self.replica
        replica.command("CLUSTER", "FAILOVER")
        wait_for(lambda: replica.is_master, "promotion of the replica")
        self.wait_until_whole()
        return replica

    def begin_migration(self, slot: int, target: ClusterNode) -> None:
        """Open a slot for migration: from now on keys that are missing at its master are asked for at the target."""
        source = self.node_of(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, target: ClusterNode, *, limit: int = 1000) -> int:
        """Move at most that many keys of a slot that is open for migration, and return how many it were."""
        source = self.node_of(slot)
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, limit)
        if keys:
            names = [key.encode(errors="surrogateescape") for key in keys]
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
        return len(keys)

    def end_migration(self, slot: int, target: ClusterNode) -> None:
        """Give the slot to the target, which holds its keys now, and wait until all agree."""
        source, target_id = self.node_of(slot), target.id
        for node in (target, source, *(master for master in self.masters if master not in (target, source))):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        self.wait_until_whole()

    def migrate_slot(self, slot: int, target: ClusterNode) -> None:
        """Take all steps of a migration."""
        self.begin_migration(slot, target)
        while self.move_keys(slot, target):
            pass
        self.end_migration(slot, target)

    def _replicate(self, replica: ClusterNode, master: ClusterNode) -> bool:
        try:
            return bool(replica.command("CLUSTER", "REPLICATE", master.id) == "OK")
        except redis.ResponseError:
            # The replica has not heard of its master yet.
            return False

    def _whole(self) -> bool:
        running = [node for node in self.nodes if node.running]
        if not all(node.knows(len(self.nodes)) for node in running):
            return False
        states = [node.info("replication") for node in running]
        if not all(state["role"] == "master" or state["master_link_status"] == "up" for state in states):
            return False
        return len({self._view(node) for node in running}) == 1

    def _view(self, node: ClusterNode) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Return who serves what as a node sees it: first and last slot, ports of the master and of its replicas."""
        ranges = node.command("CLUSTER", "SLOTS")
        return tuple(sorted((first, last, tuple(node[1] for node in nodes)) for first, last, *nodes in ranges))

    def _port_of(self, node: ClusterNode, slot: int) -> int:
        return next(ports[0] for first, last, ports in self._view(node) if first <= slot <= last)
