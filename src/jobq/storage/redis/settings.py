"""How to connect: read from a URL or taken over from a client of redis-py, whose connections are never touched.

redis-py makes and secures each connection. What it would do on its own beside that is switched off here, in one
place: sending a command again, timing reads out, decoding replies, speaking RESP3, pinging, and (before version 6)
accepting a certificate that was made for another host.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from jobq.errors import ConfigError
from jobq.storage.redis.parsing import Parser
from jobq.storage.redis.urls import Options, Place, Target, read_url

# What a client's own options do not decide here: it concerns its pool, or is set for every connection.
_NOT_TAKEN = {
    *("host", "port", "path", "connection_pool", "connection_class", "max_connections", "parser_class"),
    *("retry", "retry_on_error", "retry_on_timeout", "redis_connect_func", "response_callbacks", "legacy_responses"),
    *("encoder_class", "encoding", "encoding_errors", "decode_responses", "event_dispatcher", "himport_registry"),
    *("maint_notifications_config", "maint_notifications_pool_handler", "maintenance_state"),
    *("maintenance_notification_hash", "oss_cluster_maint_notifications_handler"),
    *("orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout", "server_type"),
}


class Settings:
    """What is needed to connect; never changes, and connects to nothing itself."""

    def __init__(
        self,
        target: Target,
        connection_class: type[AbstractConnection],
        options: Options,
        sentinel_options: Options | None = None,
    ) -> None:
        self.target = target
        self._connection_class = connection_class
        self._options = dict(options)
        self._sentinel_options = dict(sentinel_options or {})

    def __repr__(self) -> str:
        return f"<Settings for {self.target}>"

    @classmethod
    def from_url(cls, url: str) -> Settings:
        """Read a URL as `urls` describes it.

        Raises:
            ConfigError: it is malformed; the message names the part and the remedy, and never shows a secret.
        """
        target, options, sentinel_options = read_url(url)
        connection_class: type[AbstractConnection] = SSLConnection if target.secure else Connection
        if not target.places[0].port:
            connection_class = UnixDomainSocketConnection
        return cls(target, connection_class, options, sentinel_options)

    @classmethod
    def from_client(cls, client: object) -> Settings:
        """Take over the settings of a client of `redis.asyncio`, its Sentinels or its Cluster included.

        Raises:
            ConfigError: it is no such client.
        """
        if isinstance(client, RedisCluster):
            return _of_cluster(client)
        if isinstance(client, Redis):
            return _of_pool(client.connection_pool)
        kind = type(client)
        raise ConfigError(
            f"client={kind.__module__}.{kind.__qualname__}: must be a redis.asyncio.Redis or RedisCluster"
        )

    def connection(self, place: Place, connect_limit: float) -> AbstractConnection:
        """Make a connection to a server, not yet open."""
        return _made(self._connection_class, self._options, place, connect_limit)

    def sentinel_connection(self, place: Place, connect_limit: float) -> AbstractConnection:
        """Make a connection to a Sentinel, not yet open."""
        return _made(self._connection_class, self._sentinel_options, place, connect_limit)


def _made(
    connection_class: type[AbstractConnection], options: Options, place: Place, connect_limit: float
) -> AbstractConnection:
    where: dict[str, object] = {"path": place.host}
    if place.port:
        where = {"host": place.host, "port": place.port, "socket_keepalive": True}
        own = options.get("socket_keepalive_options")
        where["socket_keepalive_options"] = own if isinstance(own, Mapping) else _keepalive()
    if issubclass(connection_class, SSLConnection):
        unchecked = options.get("ssl_cert_reqs", "required") in ("none", None, ssl.CERT_NONE)
        where["ssl_check_hostname"] = not unchecked and options.get("ssl_check_hostname", True)
        # Without one OpenSSL would ask the terminal for it, and the loop would stand still meanwhile.
        where["ssl_password"] = options.get("ssl_password") or ""
    fixed = {
        "protocol": 2,
        "parser_class": Parser,
        "decode_responses": False,
        "socket_timeout": None,
        "socket_connect_timeout": connect_limit,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "client_name": None,  # Set by ourselves afterwards, since a user who may not set one can still work.
    }
    arguments: dict[str, Any] = {**options, **where, **fixed}
    return connection_class(**arguments)


def _keepalive() -> dict[int, int]:
    """Have the kernel give up a peer that acknowledges nothing, also while it owes us an acknowledgement."""
    wanted = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def _of_pool(pool: Any) -> Settings:
    options: Mapping[str, Any] = pool.connection_kwargs
    connection_class: type[AbstractConnection] = pool.connection_class
    database = int(options.get("db") or 0)
    if isinstance(pool, SentinelConnectionPool):
        return _of_sentinels(pool, database)
    if issubclass(connection_class, UnixDomainSocketConnection):
        place = Place(str(options.get("path", "")), 0)
    else:
        place = Place(str(options.get("host", "localhost")), int(options.get("port", 6379)))
    target = Target("single", issubclass(connection_class, SSLConnection), (place,), "", database)
    taken = _taken(options)
    if options.get("redis_connect_func") is not None:
        taken["redis_connect_func"] = options["redis_connect_func"]
    return Settings(target, connection_class, taken)


def _of_sentinels(pool: Any, database: int) -> Settings:
    secure = issubclass(pool.connection_class, SSLConnection)
    sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    places = tuple(Place(str(one["host"]), int(one["port"])) for one in sentinels)
    target = Target("sentinel", secure, places, str(pool.service_name), database)
    # Not the pool's own class of connections, since that asks its pool for the address.
    connection_class = SSLConnection if secure else Connection
    return Settings(target, connection_class, _taken(pool.connection_kwargs), _taken(sentinels[0]))


def _of_cluster(client: Any) -> Settings:
    options = client.get_connection_kwargs()
    places = tuple(Place(str(node.host), int(node.port)) for node in client.nodes_manager.startup_nodes.values())
    connection_class = options.get("connection_class", Connection)
    target = Target("cluster", issubclass(connection_class, SSLConnection), places)
    return Settings(target, connection_class, _taken(options))


def _taken(options: Mapping[str, Any]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name not in _NOT_TAKEN}
