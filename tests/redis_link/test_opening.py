"""Opening: what cannot work is refused at once and says why; what may pass is waited for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from jobq.errors import StorageError, StorageFullError, StorageUnavailableError
from jobq.storage.redis.servers import Servers
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import NoScript
from tests.engine.scenes import in_loop
from tests.redis_link.scenes import comes_true, connected, dialer_to, outcome, server_shows
from tests.servers.fixtures import Starter
from tests.servers.secret import SECRET, WRONG
from tests.servers.server import Server
from tests.servers.tls import Certificate


@in_loop
async def test_a_unix_socket_is_as_good(either_server: Server) -> None:
    """Without a network, and with a database of its own."""
    async with connected(f"unix://{either_server.socket_path}?db=3") as servers:
        assert "db=3" in (await servers.call("k", ("CLIENT", "INFO"))).decode()


@in_loop
async def test_nobody_listening_is_said_at_once(start: Starter) -> None:
    """There is nothing to wait for; the server is named."""
    server = start.server()
    server.kill()
    begun = time.monotonic()

    error = await _opening(server.url)

    assert type(error) is StorageUnavailableError
    assert f"127.0.0.1:{server.port}" in str(error)
    assert time.monotonic() - begun < 1


@in_loop
async def test_a_silent_server_is_given_up_at_the_time_limit(start: Starter) -> None:
    """A start must not hang."""
    server = start.server()
    server.pause()
    try:
        begun = time.monotonic()
        error = await _opening(server.url, 0.7)
    finally:
        server.resume()

    assert type(error) is StorageUnavailableError
    assert 0.6 < time.monotonic() - begun < 1.5


@in_loop
async def test_a_server_that_is_loading_is_waited_for(start: Starter) -> None:
    """It reads its data, and will be there in a moment."""
    slow = ["key-load-delay 10000", "loading-process-events-interval-bytes 1024", "rdbcompression no"]
    server = start.server("redis", options=slow)
    server.command("EVAL", "for n = 1, 600 do redis.call('SET', n, string.rep('x', 1000)) end", 0)
    server.command("SAVE")
    server.stop()
    starting = asyncio.ensure_future(asyncio.to_thread(server.start))

    async def loading() -> bool:
        return "is loading" in str(await _opening(server.url, 0.5))

    await comes_true(loading)
    ready = asyncio.ensure_future(asyncio.to_thread(server.command, "CONFIG", "SET", "key-load-delay", 0))
    async with connected(server.url) as servers:
        await ready
        assert await servers.call("k", ("DBSIZE",)) == 600
    await starting


@pytest.mark.parametrize(
    ("user_info", "query", "named"),
    [("", "", "NOAUTH|Authentication"), (f":{WRONG}@", "", "password"), (f"nobody:{WRONG}@", "", "password")],
)
def test_a_refused_login_is_said_at_once(start: Starter, user_info: str, query: str, named: str) -> None:
    """Trying again would not help, and might lock the user out."""
    server = start.server(password=SECRET)

    error = asyncio.run(_opening(f"redis://{user_info}127.0.0.1:{server.port}/0{query}"))

    assert (type(error), error.code) == (StorageError, "MISCONFIGURED")
    assert "wrong" not in str(error).replace("WRONGPASS", "")
    assert "the user and the password" in str(error)


@in_loop
async def test_a_database_that_does_not_exist_is_said_at_once(either_server: Server) -> None:
    """The number is in the URL."""
    error = await _opening(f"redis://127.0.0.1:{either_server.port}/99")

    assert error.code == "MISCONFIGURED"
    assert "database" in str(error)


@in_loop
async def test_a_lone_server_is_no_cluster(either_server: Server) -> None:
    """And is told so rather than used as one."""
    error = await _opening(f"redis+cluster://127.0.0.1:{either_server.port}")

    assert error.code == "MISCONFIGURED"


@pytest.mark.parametrize("certificate", [Certificate.FOREIGN, Certificate.EXPIRED, Certificate.WRONG_NAME])
def test_a_bad_certificate_is_refused_at_once(valkey_server: Server, start: Starter, certificate: Certificate) -> None:
    """Whoever shows it may be anybody."""
    proxy = start.tls_proxy(valkey_server.port, certificate)
    begun = time.monotonic()

    error = asyncio.run(_opening(f"{proxy.url}?ssl_ca_certs={proxy.ca_path}"))

    assert error.code == "MISCONFIGURED"
    assert "certificate" in str(error)
    assert time.monotonic() - begun < 2


@in_loop
async def test_a_missing_file_of_certificates_is_said_at_once() -> None:
    """It looks like a missing server otherwise."""
    error = await _opening("rediss://127.0.0.1:1?ssl_ca_certs=/does/not/exist.pem")

    assert error.code == "MISCONFIGURED"
    assert "ssl_" in str(error)


@in_loop
async def test_a_good_certificate_is_accepted(valkey_server: Server, start: Starter) -> None:
    """Every kind of connection is encrypted."""
    proxy = start.tls_proxy(valkey_server.port)
    async with connected(f"{proxy.url}?ssl_ca_certs={proxy.ca_path}") as servers:
        assert await servers.call("k", ("ECHO", b"x" * 200_000)) == b"x" * 200_000
        assert await servers.wait_for_marker("{tls}:wake", 0.05) is False
        await servers.subscribe("k", "tls", print, print)


@in_loop
async def test_a_client_lends_its_settings_and_no_connection(valkey_server: Server) -> None:
    """It may decode, speak RESP3 and have a connection open: ours are others."""
    client: Any = Redis(host="127.0.0.1", port=valkey_server.port, db=5, decode_responses=True, protocol=3)
    await client.set("lent", "é")
    servers = Servers(Settings.from_client(client))
    await servers.open()

    assert await servers.call("lent", ("GET", "lent")) == "é".encode()
    await servers.call("lent", ("DEL", "lent"))
    await servers.close()
    assert await client.ping() is True
    await client.aclose()


@in_loop
async def test_missing_permissions_that_only_concern_names_do_not_matter(start: Starter) -> None:
    """A user who may not name connections, ping or select can still work; what is forbidden is named."""
    server = start.server("redis")
    server.command("ACL", "SETUSER", "worker", "on", f">{SECRET}", "+get", "~allowed:*")
    async with connected(f"redis://worker:{SECRET}@127.0.0.1:{server.port}") as servers:
        assert await servers.call("k", ("GET", "allowed:k")) is None
        command = await outcome(servers.call("k", ("SET", "allowed:k", "private")))
        key = await outcome(servers.call("k", ("GET", "other:k")))

    assert (command.code, key.code) == ("MISCONFIGURED", "MISCONFIGURED")
    assert "SET" in str(command)
    assert "ACL SETUSER" in str(key)
    assert "private" not in str(command)
    assert SECRET not in str(command) + str(key)


@in_loop
async def test_errors_of_the_server_are_ours(start: Starter) -> None:
    """Full, forbidden to write, unknown script, and plain nonsense."""
    server = start.server("redis")
    async with connected(server.url) as servers:
        with pytest.raises(NoScript):
            await servers.call("k", ("EVALSHA", "0" * 40, 0))
        nonsense = await outcome(servers.call("k", ("SET", "k")))
        unknown = await outcome(servers.call("k", ("NONSENSE", "k")))
        server.command("CONFIG", "SET", "maxmemory", 1)
        full = await outcome(servers.call("k", ("SET", "k", 1)))
        server.command("CONFIG", "SET", "maxmemory", 0)
        server.command("REPLICAOF", "127.0.0.1", 1)
        replica = await outcome(servers.call("k", ("SET", "k", 1)))

    assert (type(nonsense), nonsense.code) == (StorageError, "STORAGE")
    assert (type(unknown), unknown.code) == (StorageError, "MISCONFIGURED")
    assert type(full) is StorageFullError
    assert type(replica) is StorageUnavailableError
    assert all(servers.address in str(error) for error in (nonsense, unknown, full, replica))


@in_loop
async def test_a_server_that_is_not_ready_costs_no_connections(start: Starter) -> None:
    """Whoever asks it every second, for a night, must not have used up all descriptors in the morning."""
    server = start.server("redis")
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.command("REPLICAOF", "127.0.0.1", 1)
    dialer = dialer_to(server, "patient")
    connecting = asyncio.ensure_future(dialer.again())

    await comes_true(lambda: dialer.vain_attempts >= 4)

    assert "MASTER is down" in str(dialer.trouble)
    await server_shows(lambda: str(server.command("CLIENT", "LIST")).count("name=jobq-patient-") <= 1)
    server.command("REPLICAOF", "NO", "ONE")
    wire = await connecting
    assert await wire.ask(("PING",)) == b"PONG"
    await wire.close(gently=True)


@in_loop
async def test_a_server_that_hangs_up_on_everybody_is_called_less_and_less_often(either_server: Server) -> None:
    """Each call costs it and us a handshake; the pauses double, and are cut by lot to half at most."""
    dialer = dialer_to(either_server, "hung-up")
    await (await dialer.first()).close()
    begun = time.monotonic()

    for _ in range(4):
        await (await dialer.again()).close()

    assert time.monotonic() - begun > 0.05 + 0.1 + 0.2 + 0.4


async def _opening(url: str, time_limit: float = 5.0) -> Any:
    """Open connections in vain, and return the error."""
    servers = Servers(Settings.from_url(url), time_limit)
    error = await outcome(servers.open())
    if error is None:
        await servers.close()
    return error
