"""The fixtures of real servers, for the tests of the instruments themselves."""

from tests.servers.fixtures import (
    cluster,
    either_server,
    key_prefix,
    own_cluster,
    own_sentinel_group,
    redis_server,
    sentinel_group,
    start,
    valkey_server,
)

__all__ = [
    "cluster",
    "either_server",
    "key_prefix",
    "own_cluster",
    "own_sentinel_group",
    "redis_server",
    "sentinel_group",
    "start",
    "valkey_server",
]
