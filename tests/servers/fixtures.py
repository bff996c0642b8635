"""The fixtures that give tests real servers, started when the first test asks for them.

What a whole test process shares (`valkey_server`, `redis_server`, `cluster`, `sentinel_group`) must be left as it was
found; tests keep apart by `key_prefix`. Whoever wants to break something takes one of its own: `start`,
`own_cluster`, `own_sentinel_group`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers.binaries import Kind, server_program
from tests.servers.cluster import Cluster
from tests.servers.proxy import FaultProxy
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Persistence, Server
from tests.servers.tls import Certificate, TlsProxy
from tests.servers.user import User, listed

REDIS_KINDS: tuple[Kind, ...] = ("valkey", "redis")


def require(kind: Kind) -> None:
    """Skip the test if the server is not installed, or fail it where every server must be."""
    if server_program(kind) is not None:
        return
    reason = f"{kind}-server is not installed"
    if os.environ.get("JOBQ_ALL_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The Valkey server of this test process."""
    require("valkey")
    with Server("valkey", tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The Redis server of this test process."""
    require("redis")
    with Server("redis", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=REDIS_KINDS)
def either_server(request: pytest.FixtureRequest) -> Server:
    """The shared server of each kind in turn."""
    server = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(server, Server)
    return server


@pytest.fixture
def key_prefix() -> str:
    """A beginning of keys that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def smallest_user(valkey_server: Server, key_prefix: str) -> Iterator[User]:
    """A user of the shared server with exactly the permissions that the documents list."""
    user = User(valkey_server, key_prefix)
    user.may(listed())
    yield user
    user.leave()


class Starter:
    """Starts servers and proxies of a test's own, which end with it."""

    def __init__(self, directory: Path, ending: ExitStack) -> None:
        self._directory = directory
        self._ending = ending
        self._count = 0

    def server(
        self,
        kind: Kind = "valkey",
        *,
        options: Sequence[str] = (),
        persistence: Persistence = "none",
        password: str | None = None,
    ) -> Server:
        require(kind)
        directory = self._new_directory()
        server = Server(kind, directory, options=options, persistence=persistence, password=password)
        return self._ending.enter_context(server)

    def proxy(self, server_port: int) -> FaultProxy:
        """Start a fault proxy in front of a port, which may be that of another proxy."""
        return self._ending.enter_context(FaultProxy(server_port))

    def tls_proxy(self, server_port: int, certificate: Certificate = Certificate.GOOD) -> TlsProxy:
        return self._ending.enter_context(TlsProxy(server_port, self._new_directory(), certificate))

    def _new_directory(self) -> Path:
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        return directory


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Start what a test may break: ``start.server("redis")``, ``start.proxy(port)``, ``start.tls_proxy(port)``."""
    # Not tmp_path: it carries the name of the test, and a socket's path must be short.
    with ExitStack() as ending:
        yield Starter(tmp_path_factory.mktemp("own"), ending)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The Valkey cluster of this test process."""
    require("valkey")
    with Cluster("valkey", tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=REDIS_KINDS)
def own_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster to break, of each kind in turn."""
    require(request.param)
    with Cluster(request.param, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sentinel_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """The Valkey servers under Sentinel of this test process."""
    require("valkey")
    with SentinelGroup("valkey", tmp_path_factory.mktemp("sentinel")) as group:
        yield group


@pytest.fixture(params=REDIS_KINDS)
def own_sentinel_group(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SentinelGroup]:
    """Servers under Sentinel to break, of each kind in turn."""
    require(request.param)
    with SentinelGroup(request.param, tmp_path_factory.mktemp("sentinel")) as group:
        yield group
