"""TLS with good and bad certificates, a unix socket, a client of the user's own: the same queue, or a clear refusal."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from jobq import Queue, RedisStorage, StorageError, StorageUnavailableError, open_storage
from tests.faults_redis.scenes import SLACK, Work, clients, in_loop, names
from tests.servers.binaries import Kind
from tests.servers.cluster import Cluster
from tests.servers.fixtures import REDIS_KINDS, Starter, require
from tests.servers.secret import SECRET
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Server
from tests.servers.tls import Certificate, TlsProxy, write_certificates

BAD = [certificate for certificate in Certificate if certificate is not Certificate.GOOD]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def trusting(proxy: TlsProxy) -> str:
    return f"{proxy.url}?ssl_ca_certs={proxy.ca_path}"


async def works(storage: Any, **options: Any) -> None:
    """See that jobs come through, every kind of connection included."""
    async with Work(storage, **options) as work:
        ids = names(20)
        assert await asyncio.gather(*(work.queue.enqueue_and_wait(id, n) for n, id in enumerate(ids))) == [
            2 * n for n in range(20)
        ]
        assert set(work.runs.values()) == {1}


async def refused(storage: RedisStorage) -> str:
    with pytest.raises(StorageError) as caught:
        await Queue[int, int](storage).start()
    assert caught.value.code == "MISCONFIGURED"
    return str(caught.value)


@in_loop
async def test_a_good_certificate_is_accepted(either_server: Server, start: Starter, key_prefix: str) -> None:
    proxy = start.tls_proxy(either_server.port)

    await works(RedisStorage(trusting(proxy), key_prefix=key_prefix))


@pytest.mark.parametrize("certificate", BAD)
@in_loop
async def test_a_bad_certificate_is_refused(valkey_server: Server, start: Starter, certificate: Certificate) -> None:
    """By every redis-py, also before version 6, which did not compare names by itself; with the remedy."""
    proxy = start.tls_proxy(valkey_server.port, certificate)

    said = await refused(RedisStorage(trusting(proxy)))

    assert "certificate" in said
    assert str(proxy.port) in said


@pytest.mark.parametrize("certificate", BAD)
@in_loop
async def test_a_bad_certificate_is_refused_with_a_client_of_ones_own(
    valkey_server: Server, start: Starter, certificate: Certificate
) -> None:
    proxy = start.tls_proxy(valkey_server.port, certificate)
    client = redis.Redis(host="127.0.0.1", port=proxy.port, ssl=True, ssl_ca_certs=str(proxy.ca_path))

    assert "certificate" in await refused(RedisStorage(client=client))
    await client.aclose()


@in_loop
async def test_what_is_not_checked_was_asked_not_to_be(valkey_server: Server, start: Starter, key_prefix: str) -> None:
    """Each check can be switched off by name, and by nothing else."""
    wrong_name = start.tls_proxy(valkey_server.port, Certificate.WRONG_NAME)
    foreign = start.tls_proxy(valkey_server.port, Certificate.FOREIGN)

    await works(RedisStorage(f"{trusting(wrong_name)}&ssl_check_hostname=false", key_prefix=key_prefix))
    await works(RedisStorage(f"{foreign.url}?ssl_cert_reqs=none", key_prefix=f"{key_prefix}b:"))
    assert "certificate" in await refused(RedisStorage(f"{trusting(foreign)}&ssl_check_hostname=false"))


@pytest.mark.slow
@in_loop
async def test_plain_text_to_a_tls_port_and_tls_to_a_plain_one_do_not_hang(
    valkey_server: Server, start: Starter
) -> None:
    """Neither side says what is wrong, so nothing better can be told than that there was no answer."""
    proxy = start.tls_proxy(valkey_server.port)
    storages = [
        RedisStorage(f"redis://127.0.0.1:{proxy.port}/0"),
        RedisStorage(f"rediss://127.0.0.1:{valkey_server.port}/0"),
    ]
    begun = time.monotonic()

    errors = await asyncio.gather(*(storage.open() for storage in storages), return_exceptions=True)

    assert [type(error) for error in errors] == [StorageUnavailableError] * 2
    assert time.monotonic() - begun < 5.0 + SLACK


@in_loop
async def test_a_unix_socket(either_server: Server, key_prefix: str) -> None:
    await works(RedisStorage(f"unix://{either_server.socket_path}", key_prefix=key_prefix))


@pytest.mark.slow
@in_loop
async def test_a_cluster_behind_tls(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every node that the first one names is spoken to over TLS as well, and its certificate looked at."""
    require("redis")
    directory = tmp_path_factory.mktemp("tls")
    trusted = write_certificates(directory)
    with Cluster("redis", directory, certificates=directory) as cluster:
        url = f"{cluster.tls_url}?ssl_ca_certs={trusted}"
        for name in ("a", "b", "c", "d"):
            await works(RedisStorage(url), name=name)

        assert all(node.calls().get("evalsha", 0) for node in cluster.masters), "they should be spread over all nodes"
        assert "certificate" in await refused(RedisStorage(cluster.tls_url))


@pytest.mark.slow
@in_loop
async def test_sentinels_and_servers_with_a_password_of_their_own_each(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In the URL and by a client; also with the next master, which every connection must log in to again."""
    require("valkey")
    directory = tmp_path_factory.mktemp("sentinel")
    with SentinelGroup("valkey", directory, password="first", sentinel_password="second") as group:
        url = group.url.replace("://", "://:first@")
        untyped: Any = Sentinel
        manager = untyped(
            [("127.0.0.1", sentinel.port) for sentinel in group.sentinels],
            sentinel_kwargs={"password": "second"},
            password="first",
        )
        client = manager.master_for("jobs")
        async with Work(RedisStorage(f"{url}?sentinel_password=second")) as work:
            assert await work.queue.enqueue_and_wait("before", 1) == 2
            old = await asyncio.to_thread(group.kill_master)
            await asyncio.to_thread(group.wait_for_new_master, old)
            assert await work.queue.enqueue_and_wait("after", 1) == 2

        await works(RedisStorage(client=client))
        wrong = f"{group.url.replace('://', '://:wrong@')}?sentinel_password=second"
        for refused_url in (url, wrong):
            assert "password" in await refused(RedisStorage(refused_url))
        await client.aclose()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@in_loop
async def test_an_address_of_ipv6(start: Starter) -> None:
    """In brackets, as in every URL; messages spell it so, too."""
    server = start.server(options=["bind 127.0.0.1 ::1"])
    storage = RedisStorage(f"redis://[::1]:{server.port}/0")

    await works(storage)

    server.kill()
    with pytest.raises(StorageUnavailableError, match=r"redis://\[::1\]:\d+/0 is unavailable"):
        await storage.open()


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_password_with_every_sign_in_the_url(start: Starter, kind: Kind) -> None:
    server = start.server(kind, password=f"a:b@c%2Fd&e?{SECRET}")

    await works(open_storage(f"{kind}://:a%3Ab%40c%252Fd%26e%3F{SECRET}@127.0.0.1:{server.port}/0"))


@in_loop
async def test_a_client_lends_its_settings_and_never_its_connections(start: Starter) -> None:
    """Whatever it decodes, however it times out and tries again, and whether or not it is open."""
    server = start.server(password=SECRET)
    client = redis.Redis(
        host="127.0.0.1",
        port=server.port,
        password=SECRET,
        db=1,
        decode_responses=True,
        socket_timeout=0.01,
        max_connections=1,
        protocol=3,
        client_name="mine",
    )
    await client.set("key", "value")

    await works(RedisStorage(client=client), block_timeout=1.0)

    assert await client.get("key") == "value"
    assert await client.exists("jobq:{default}:j:job-0") == 1
    assert len(clients(server, "mine")) == 1
    assert clients(server, "jobq-") == []
    await client.aclose()
