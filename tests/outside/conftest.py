"""The fixture that starts servers of a test's own, for the programs that are tested on them."""

from tests.servers.fixtures import start

__all__ = ["start"]
