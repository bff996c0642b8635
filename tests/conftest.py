"""What the tests share: `--storage`, and the storages that it chooses from."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobq import FileStorage, MemoryStorage, RedisStorage
from jobq.storage.contract import Storage
from tests.servers.cluster import Cluster
from tests.servers.secret import SECRET, fail_if_shown, reading_along
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Server
from tests.servers.user import User

pytest_plugins = ["tests.servers.fixtures"]

# Before anything imports it: the kit's assertions are to show the values that they compared.
pytest.register_assert_rewrite("jobq.testing")

STORAGES = ("memory", "file", "redis", "valkey")
SETS = ("cluster", "sentinel", "acl")
"""Sets of servers, and a server whose user may do as little as possible.

Tests that go through every storage run on them only when they are chosen, since they take long; those of `SAMPLE` run
always.
"""
SAMPLE = {"acl": ("tests/engine/test_queue.py", "tests/engine/test_reaper.py")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storage",
        action="append",
        choices=STORAGES + SETS,
        help="run only tests on this storage, and those that are on none; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "storage(name): the storage that a test runs on; see --storage")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, pytest.TestReport]:
    """See that no test showed a password, in what it or its programs printed, in what it logged, in how it failed."""
    report: pytest.TestReport = yield
    fail_if_shown(report)
    return report


@pytest.fixture(autouse=True)
def _reading_along(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have what a program of a test said belong to the test's report, if the password is in it."""

    def note(said: str) -> None:
        if SECRET in said:
            request.node.add_report_section("call", "from a program", said)

    with reading_along(note):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests on storages that were not chosen."""
    chosen = config.getoption("--storage")
    left_out = [item for item in items if not _wanted(item, chosen)]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


def _wanted(item: pytest.Item, chosen: list[str] | None) -> bool:
    mark = item.get_closest_marker("storage")
    if mark is None:
        return True
    if chosen:
        return mark.args[0] in chosen
    if mark.args[0] not in SETS or "storage" not in getattr(item, "fixturenames", ()):
        return True
    return item.nodeid.partition("::")[0] in SAMPLE.get(mark.args[0], ())


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.storage(name)) for name in STORAGES + SETS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A new storage of each kind, on the machine's own clock; whoever uses it opens it."""
    match request.param:
        case "memory":
            return MemoryStorage()
        case "file":
            return FileStorage(tmp_path / "jobs")
        case "acl":
            user: User = request.getfixturevalue("smallest_user")
            return RedisStorage(user.url, key_prefix=user.prefix)
        case kind:
            servers = {"redis": "redis_server", "valkey": "valkey_server", "sentinel": "sentinel_group"}
            server: Server | Cluster | SentinelGroup = request.getfixturevalue(servers.get(kind, kind))
            return RedisStorage(server.url, key_prefix=request.getfixturevalue("key_prefix"))
