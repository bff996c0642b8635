"""The real servers that these tests may use, shared ones and ones to break."""

from tests.servers.fixtures import cluster, either_server, own_cluster, own_sentinel_group, sentinel_group, start

__all__ = ["cluster", "either_server", "own_cluster", "own_sentinel_group", "sentinel_group", "start"]
