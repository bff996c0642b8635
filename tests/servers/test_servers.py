"""The real servers start, end, fail over and come back as the other tests need it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.binaries import Kind
from tests.servers.cluster import Cluster
from tests.servers.fixtures import REDIS_KINDS, Starter, require
from tests.servers.secret import SECRET
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Persistence, Server
from tests.servers.tls import Certificate
from tests.servers.trouble import Ending
from tests.servers.waiting import wait_for

ONCE = Retry(NoBackoff(), 0)
ROOT = Path(__file__).resolve().parents[2]


def test_the_shared_servers_answer_by_url_and_by_socket(either_server: Server, key_prefix: str) -> None:
    assert either_server.command("SET", key_prefix, b"\xff\x00") == "OK"

    with redis.Redis.from_url(either_server.url) as by_url:
        assert by_url.get(key_prefix) == b"\xff\x00"
    with redis.Redis(unix_socket_path=str(either_server.socket_path)) as by_socket:
        assert by_socket.get(key_prefix) == b"\xff\x00"
    assert either_server.command("GET", key_prefix).encode(errors="surrogateescape") == b"\xff\x00"
    assert either_server.calls()["set"] >= 1


@pytest.mark.parametrize("kind", REDIS_KINDS)
@pytest.mark.parametrize(("persistence", "kept"), [("none", None), ("everysec", "1"), ("always", "1")])
def test_a_server_keeps_what_its_persistence_says_and_its_port(
    start: Starter, kind: Kind, persistence: Persistence, kept: str | None
) -> None:
    server = start.server(kind, persistence=persistence, options=["maxmemory 100mb"])
    url = server.url
    server.command("SET", "key", 1)

    server.restart()

    assert server.command("GET", "key") == kept
    assert server.url == url
    assert server.command("CONFIG", "GET", "maxmemory")[1] == str(100 * 2**20)


@pytest.mark.parametrize("kind", REDIS_KINDS)
def test_a_killed_server_refuses_until_it_is_started_again(start: Starter, kind: Kind) -> None:
    server = start.server(kind, persistence="always")
    server.command("SET", "key", 1)

    server.kill()
    with pytest.raises(redis.ConnectionError):
        server.command("PING")
    server.start()

    assert server.command("GET", "key") == "1"
    server.restart(keep_data=False)
    assert server.command("GET", "key") is None


def test_nobody_else_is_given_the_port_of_a_server_that_is_down(start: Starter) -> None:
    server = start.server()

    server.kill()

    with closing(socket.socket()) as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", server.port))
    server.start()


def test_a_frozen_server_takes_connections_and_answers_when_it_is_resumed(start: Starter) -> None:
    server = start.server()
    server.pause()

    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=0.1)) as client:
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(100)
        server.resume()
        client.settimeout(5)
        assert client.recv(100) == b"+PONG\r\n"
    server.pause()
    server.stop()
    assert not server.running


def test_a_password_is_asked_for(start: Starter) -> None:
    server = start.server(password=SECRET)

    assert server.command("PING") == "PONG"
    with redis.Redis(port=server.port, retry=ONCE) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()
    with redis.Redis.from_url(server.url) as somebody:
        assert somebody.ping()


def test_a_server_that_cannot_start_tells_why(start: Starter) -> None:
    with pytest.raises(RuntimeError, match="maxmemory"):
        start.server(options=["maxmemory nonsense"])


ORPHAN = """
import pathlib, sys
from tests.servers.server import Server

server = Server("valkey", pathlib.Path(sys.argv[1])).start()
print(server.port, flush=True)
sys.stdin.read()
"""


def test_a_server_ends_with_the_process_that_started_it_however_that_ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    require("valkey")
    command: list[str | Path] = [sys.executable, "-c", ORPHAN, tmp_path_factory.mktemp("orphan")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert _listens(port)

        process.send_signal(signal.SIGKILL)

    wait_for(lambda: not _listens(port), "end of the orphan")


def test_a_missing_server_skips_at_home_and_fails_where_all_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    monkeypatch.delenv("JOBQ_ALL_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="redis-server is not installed"):
        require("redis")
    monkeypatch.setenv("JOBQ_ALL_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"):
        require("redis")


REFUSALS = {
    Certificate.GOOD: None,
    Certificate.FOREIGN: "unable to get local issuer certificate",
    Certificate.EXPIRED: "certificate has expired",
    Certificate.WRONG_NAME: "IP address mismatch",
}


@pytest.mark.parametrize("certificate", Certificate)
def test_a_certificate_is_accepted_only_if_it_is_good(
    start: Starter, valkey_server: Server, certificate: Certificate
) -> None:
    proxy = start.tls_proxy(valkey_server.port, certificate)
    client = redis.Redis.from_url(proxy.url, ssl_ca_certs=str(proxy.ca_path), ssl_check_hostname=True, retry=ONCE)

    with client:
        refusal = REFUSALS[certificate]
        if refusal is None:
            assert client.ping()
            return
        with pytest.raises(redis.ConnectionError, match=refusal):
            client.ping()


def test_faults_can_be_had_behind_tls(start: Starter, valkey_server: Server) -> None:
    faults = start.proxy(valkey_server.port)
    proxy = start.tls_proxy(faults.port)
    faults.drop_reply("PING", ending=Ending.RESET)

    with redis.Redis.from_url(
        proxy.url, ssl_ca_certs=str(proxy.ca_path), ssl_check_hostname=True, retry=ONCE
    ) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()
        assert client.ping()


@pytest.mark.slow
def test_the_shared_cluster_is_whole(cluster: Cluster, key_prefix: str) -> None:
    with redis.RedisCluster.from_url(cluster.urls[2]) as client:
        for number in range(30):
            client.set(f"{key_prefix}{number}", number)

        assert [client.get(f"{key_prefix}{number}") for number in range(30)] == [b"%d" % n for n in range(30)]
    assert len(cluster.masters) == 3


@pytest.mark.slow
def test_a_cluster_fails_over_and_migrates_a_slot_step_by_step(own_cluster: Cluster) -> None:
    slot = own_cluster.nodes[0].command("CLUSTER", "KEYSLOT", "{06S}")
    old = own_cluster.node_of(slot)
    for key in "abc":
        old.command("SET", "{06S}" + key, b"\xff")

    source = own_cluster.failover()
    assert own_cluster.node_of(slot) is source
    assert own_cluster.replica is old
    target = next(master for master in own_cluster.masters if master is not source)
    own_cluster.begin_migration(slot, target)
    assert own_cluster.move_keys(slot, target, limit=2) == 2
    with pytest.raises(redis.exceptions.AskError):
        source.command("GET", "{06S}missing")
    assert own_cluster.move_keys(slot, target) == 1
    own_cluster.end_migration(slot, target)

    assert own_cluster.node_of(slot) is target
    assert target.command("GET", "{06S}c") == "\udcff"
    with pytest.raises(redis.exceptions.MovedError):
        source.command("GET", "{06S}c")
    own_cluster.migrate_slot(slot, source)
    assert source.command("GET", "{06S}c") == "\udcff"


@pytest.mark.slow
def test_the_shared_sentinels_know_their_master(sentinel_group: SentinelGroup, key_prefix: str) -> None:
    places = [("127.0.0.1", sentinel.port) for sentinel in sentinel_group.sentinels]
    untyped: Any = redis.Sentinel
    master = untyped(places).master_for("jobs")

    assert master.set(key_prefix, 1)

    master.close()
    wait_for(lambda: sentinel_group.replica.command("GET", key_prefix) == "1", "replication")


@pytest.mark.slow
def test_sentinels_promote_the_replica_and_take_the_old_master_back(own_sentinel_group: SentinelGroup) -> None:
    group = own_sentinel_group
    before = group.replica

    old = group.kill_master()
    new = group.wait_for_new_master(old)
    assert new is before
    assert new.command("SET", "key", 1) == "OK"
    old.start()
    group.wait_until_watched()

    assert group.replica is old
    assert group.master is new
    wait_for(lambda: old.command("GET", "key") == "1", "replication")


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
