"""URLs and clients: each spelling means one thing, everything else is refused, and no message shows a secret."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel

from jobq import RedisStorage
from jobq.errors import ConfigError
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.urls import Place, Target
from tests.servers.secret import SECRET


@pytest.mark.parametrize(
    ("url", "shown", "attributes"),
    [
        ("redis://host", "redis://host:6379/0", {"host": "host", "port": 6379, "db": 0}),
        ("valkey://host:7000/2", "redis://host:7000/2", {"port": 7000, "db": 2}),
        ("redis://host?db=3", "redis://host:6379/3", {"db": 3}),
        ("redis://host/", "redis://host:6379/0", {"db": 0}),
        ("redis://[::1]:7000/0", "redis://[::1]:7000/0", {"host": "::1", "port": 7000}),
        ("redis://:p%40ss@host", "redis://host:6379/0", {"username": None, "password": "p@ss"}),
        ("redis://user:%2F%3F%23@host", "redis://host:6379/0", {"username": "user", "password": "/?#"}),
        ("rediss://host:1", "rediss://host:1/0", {"port": 1}),
        ("valkeys://u:p@host/1", "rediss://host:6379/1", {"username": "u", "password": "p", "db": 1}),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
        ("redis+unix://u:p@/a%20b", "unix:///a b", {"path": "/a b", "username": "u", "password": "p"}),
        ("unix:///s?username=u&password=p", "unix:///s", {"username": "u", "password": "p"}),
    ],
)
def test_a_url_says_how_to_connect(url: str, shown: str, attributes: dict[str, Any]) -> None:
    """The connection of redis-py has what the URL says; what people are shown has no secret."""
    settings = Settings.from_url(url)

    connection: Any = settings.connection(settings.target.places[0], 5.0)

    assert str(settings.target) == shown
    assert {name: getattr(connection, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("url", "mode", "places", "shown"),
    [
        ("redis+sentinel://a,b:1/jobs", "sentinel", [("a", 26379), ("b", 1)], "redis+sentinel://a:26379,b:1/jobs/0"),
        ("valkeys+sentinel://u:p@a/jobs/3", "sentinel", [("a", 26379)], "rediss+sentinel://a:26379/jobs/3"),
        ("redis+cluster://a,[::1]:2", "cluster", [("a", 6379), ("::1", 2)], "redis+cluster://a:6379,[::1]:2"),
        ("rediss+cluster://u:p@a:1/0", "cluster", [("a", 1)], "rediss+cluster://a:1"),
    ],
)
def test_a_url_may_name_sentinels_or_nodes(url: str, mode: str, places: list[tuple[str, int]], shown: str) -> None:
    """Several hosts, each with a port of its own or the usual one."""
    target = Settings.from_url(url).target

    assert (target.mode, list(target.places), str(target)) == (mode, places, shown)


def test_sentinels_have_a_login_of_their_own() -> None:
    """The master's password is not shown to them, nor theirs to the master."""
    settings = Settings.from_url("redis+sentinel://u:p@a/jobs?sentinel_username=su&sentinel_password=sp")

    server: Any = settings.connection(Place("a", 1), 5.0)
    sentinel: Any = settings.sentinel_connection(Place("a", 1), 5.0)

    assert (server.username, server.password) == ("u", "p")
    assert (sentinel.username, sentinel.password) == ("su", "sp")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"http://u:{SECRET}@host", "scheme"),
        (f"redis+magic://u:{SECRET}@host", "scheme"),
        (f"unix+cluster://u:{SECRET}@/x", "scheme"),
        (f"rediss+unix://u:{SECRET}@/x", "unix"),
        (f"redis://u:{SECRET}@", "host"),
        (f"redis://u:{SECRET}@:1", "host"),
        (f"redis://u:{SECRET}@host:port", "port"),
        (f"redis://u:{SECRET}@host:0", "port"),
        (f"redis://u:{SECRET}@host:65536", "port"),
        (f"redis://u:{SECRET}@host:٣", "port"),
        (f"redis://u:{SECRET}@[::1", "bracket"),
        (f"redis://u:{SECRET}@host/one", "database"),
        (f"redis://u:{SECRET}@host/-1", "database"),
        (f"redis://u:{SECRET}@host/0/1", "path"),
        (f"redis://u:{SECRET}@host/0?db=1", "path"),
        (f"redis://u:{SECRET}@host?db=1&db=2", "twice"),
        (f"redis://u:{SECRET}@host?timeout=3", "timeout"),
        (f"redis://u:{SECRET}@host?ssl_ca_certs=/x", "rediss"),
        (f"redis://u:{SECRET}@host?sentinel_password=x", "sentinel_password"),
        (f"rediss://u:{SECRET}@host?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        (f"rediss://u:{SECRET}@host?ssl_check_hostname=maybe", "ssl_check_hostname"),
        (f"rediss://u:{SECRET}@host?ssl_ca_certs=", "ssl_ca_certs"),
        (f"rediss://u:{SECRET}@host?ssl_ca_certs=/%00", "ssl_ca_certs"),
        (f"rediss://u:{SECRET}@host?ssl_keyfile=/x", "ssl_certfile"),
        (f"redis://u:{SECRET}@host?db", "options"),
        (f"redis://u:{SECRET}/x@host", "percent-encoded"),
        (f"redis://u:{SECRET}?x@host", "percent-encoded"),
        (f"redis://u:{SECRET}#x@host", "percent-encoded"),
        (f"redis://:{SECRET}/x", "host"),
        (f"redis://u:{SECRET}@a,b", "sentinel"),
        ("redis://user@host", "password"),
        (f"unix://u:{SECRET}@host/path", "three slashes"),
        ("unix://", "three slashes"),
        (f"unix://u:{SECRET}@/a%0AERROR:forged", "printed"),
        (f"unix://u:{SECRET}@/a%00b", "printed"),
        (f"redis://u:{SECRET}@host%C2%9B2J", "host"),
        (f"redis+sentinel://u:{SECRET}@a,b", "service"),
        (f"redis+cluster://u:{SECRET}@a/1", "database"),
        (f"redis+cluster://u:{SECRET}@a,,b", "host"),
        ("", "scheme"),
        (f"{SECRET}@host:6379", "scheme"),
        (f"u%40{SECRET}:p@host/0", "scheme"),
        (f"redis://u:{SECRET}@host?db=", "database"),
        (f"unix://u:{SECRET}@/path?db=", "database"),
        ("redis://:@host", "empty"),
        ("redis://host?password=", "password is empty"),
        ("redis://host?username=", "username is empty"),
        (f"redis+sentinel://a/jobs?sentinel_username=&sentinel_password={SECRET}", "sentinel_username is empty"),
        ("redis+sentinel://a/jobs?sentinel_password=", "sentinel_password is empty"),
        (f"redis://u:{SECRET}@host?password=p", "twice"),
        (f"redis://u:p@host?username=u&password={SECRET}", "twice"),
        (f"redis://u:{SECRET}@ho st", "host"),
        (f"redis://u:{SECRET}@ host", "host"),
        (f"redis://u:{SECRET}@ho%20st", "host"),
        (f"redis://u:{SECRET}@host\n", "host"),
        (f"redis://u:{SECRET}@ho\0st", "host"),
        (f"redis+cluster://u:{SECRET}@a, b", "host"),
    ],
)
def test_a_malformed_url_is_refused(url: str, named: str) -> None:
    """The message names the part, says what to write, and never shows the password, encoded or not."""
    with pytest.raises(ConfigError) as refused:
        Settings.from_url(url)

    assert named in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_certificate_is_checked_for_its_host_unless_the_user_says_otherwise() -> None:
    """Versions of redis-py differ in what they do by default."""
    checked = {
        "rediss://h": True,
        "rediss://h?ssl_check_hostname=false": False,
        "rediss://h?ssl_cert_reqs=none": False,
        "rediss+cluster://h?ssl_cert_reqs=required": True,
    }

    for url, expected in checked.items():
        connection: Any = Settings.from_url(url).connection(Place("h", 1), 5.0)
        assert isinstance(connection, SSLConnection)
        assert connection.ssl_context.check_hostname is expected


@pytest.mark.parametrize(
    ("client", "kind", "shown", "attributes"),
    [
        (Redis(host="h", port=1, db=2, username="u", password="p"), Connection, "redis://h:1/2", {"password": "p"}),
        (Redis(ssl=True, ssl_ca_certs="/ca"), SSLConnection, "rediss://localhost:6379/0", {}),
        (Redis(unix_socket_path="/s", db=1), UnixDomainSocketConnection, "unix:///s?db=1", {"path": "/s"}),
        (Redis.from_url("redis://u:p@h/4?socket_timeout=3"), Connection, "redis://h:6379/4", {"db": 4}),
        (Redis(decode_responses=True, protocol=3, client_name="x"), Connection, "redis://localhost:6379/0", {}),
        (RedisCluster(host="h", port=1, password="p"), Connection, "redis+cluster://h:1", {"password": "p"}),
        (RedisCluster(host="h", port=1, ssl=True), SSLConnection, "rediss+cluster://h:1", {}),
    ],
    ids=["tcp", "tls", "unix", "url", "decoding", "cluster", "tls cluster"],
)
def test_a_client_lends_its_settings(client: Any, kind: type, shown: str, attributes: dict[str, Any]) -> None:
    """What it would do by itself is switched off all the same."""
    settings = Settings.from_client(client)

    connection: Any = settings.connection(settings.target.places[0], 5.0)

    assert (type(connection), str(settings.target)) == (kind, shown)
    assert {name: getattr(connection, name) for name in attributes} == attributes
    fixed = (connection.protocol, connection.socket_timeout, connection.health_check_interval, connection.client_name)
    assert fixed == (2, None, 0, None)
    assert connection.retry.get_retries() == 0
    assert connection.encoder.decode_responses is False


def test_a_client_under_sentinels_lends_both_logins() -> None:
    """The address comes from the Sentinels, not from the client's pool."""
    sentinel = Sentinel([("a", 1), ("b", 2)], sentinel_kwargs={"password": "sp"}, password="p", db=3)

    settings = Settings.from_client(sentinel.master_for("jobs"))

    assert settings.target == Target("sentinel", False, (Place("a", 1), Place("b", 2)), "jobs", 3)
    server: Any = settings.connection(Place("h", 1), 5.0)
    other: Any = settings.sentinel_connection(Place("h", 1), 5.0)
    assert (type(server), server.password, other.password) == (Connection, "p", "sp")


@pytest.mark.parametrize("client", [object(), "redis://h", None])
def test_what_is_no_client_is_refused(client: object) -> None:
    """A synchronous client has no connections that a loop could use."""
    with pytest.raises(ConfigError, match="client="):
        Settings.from_client(client)


@pytest.mark.parametrize("given", [{}, {"ssl_password": None}, {"ssl_password": "another"}])
def test_an_encrypted_key_without_its_password_is_refused_and_nobody_is_asked(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    """OpenSSL itself would ask the terminal for it, and stop the loop until somebody answers."""
    issued = trustme.CA().issue_cert("h")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode()))
    (tmp_path / "key").write_bytes(encrypted)
    (tmp_path / "certificate").write_bytes(issued.cert_chain_pems[0].bytes())
    files: dict[str, Any] = {"ssl_certfile": str(tmp_path / "certificate"), "ssl_keyfile": str(tmp_path / "key")}
    settings = Settings.from_client(Redis(ssl=True, **files, **given))

    connection: Any = settings.connection(Place("h", 1), 5.0)

    assert connection.ssl_context.password is not None
    with pytest.raises(ssl.SSLError):
        connection.ssl_context.get()


def test_a_clients_unchecked_certificates_stay_unchecked() -> None:
    """What the user switched off with redis-py is their own decision."""
    settings = Settings.from_client(Redis(ssl=True, ssl_cert_reqs="none"))

    connection: Any = settings.connection(Place("h", 1), 5.0)

    assert connection.ssl_context.cert_reqs == ssl.CERT_NONE
    assert connection.ssl_context.get().check_hostname is False


@pytest.mark.parametrize("prefix", ["\ud800", "jobq:\udfff:", "", "a b", "{a}", "\n", "x" * 129, 7, None])
def test_a_prefix_that_can_begin_no_key_is_refused(prefix: Any) -> None:
    """When it is given, and not by the first command that cannot be encoded."""
    with pytest.raises(ConfigError, match="key_prefix="):
        RedisStorage(key_prefix=prefix)


@pytest.mark.parametrize("allowed", ["no", "false", 0, 1, None])
def test_what_allows_eviction_is_true_or_false(allowed: Any) -> None:
    """A text that says no would be taken for yes, and jobs be lost."""
    with pytest.raises(ConfigError, match="allow_eviction="):
        RedisStorage(allow_eviction=allowed)
