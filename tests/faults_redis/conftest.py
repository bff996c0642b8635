"""The real servers that these tests may use, shared ones and ones to break."""

from tests.servers.fixtures import either_server, start

__all__ = ["either_server", "start"]
