"""A user of a server with exactly the permissions that the documents list, or with chosen ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.servers.secret import SECRET
from tests.servers.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "redis.md"
KEYS = ("~{prefix}*", "&{prefix}*")
"""Which keys and which channels; the prefix is that of the storage."""
COURTESIES = ("ping", "client|setname")
"""Listed, and not missed."""


def listed() -> list[str]:
    """Read what the page says that a user needs on a server without Sentinels and Cluster, names of commands only."""
    found = re.search(r"redis-cli ACL SETUSER jobs (.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{PAGE.name} lists no permissions"
    words = found[1].replace("\\\n", " ").replace("'", "").split()
    patterns = [pattern.format(prefix="jobq:") for pattern in KEYS]
    beginning = ["on", ">secret", "resetkeys", patterns[0], "resetchannels", patterns[1], "-@all"]
    assert words[: len(beginning)] == beginning, f"{PAGE.name} gives more than commands"
    return [word.removeprefix("+") for word in words[len(beginning) :]]


class User:
    """One with a key prefix of its own; `leave` removes it."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self.name = prefix.removesuffix(":")
        self.prefix = prefix

    @property
    def url(self) -> str:
        return self.login(self._server.url)

    def login(self, url: str) -> str:
        """Put this user into a URL of this server, or of a set that it belongs to."""
        return url.replace("://", f"://{self.name}:{SECRET}@")

    def may(self, commands: Sequence[str], keys: Sequence[str] = KEYS) -> None:
        rules = [key.format(prefix=self.prefix) for key in keys] + [f"+{command}" for command in commands]
        self._server.command("ACL", "SETUSER", self.name, "reset", "on", f">{SECRET}", *rules)

    def leave(self) -> None:
        self._server.command("ACL", "DELUSER", self.name)
