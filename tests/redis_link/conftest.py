"""The real servers that these tests may use, shared ones and ones to break."""

from tests.servers.fixtures import either_server, own_cluster, own_sentinel_group, start

__all__ = ["either_server", "own_cluster", "own_sentinel_group", "start"]
