"""Random sequences of calls against the model: memory and file behave alike because both behave as it says."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import pytest

from jobq import FileStorage, MemoryStorage, RedisStorage
from jobq.clock import Clock
from jobq.storage.contract import Storage
from jobq.testing import ManualClock, check_storage_machine
from tests.servers.cluster import Cluster
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Server


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.storage("memory")
def test_random_sequences_agree_with_the_model_on_memory() -> None:
    """Five hundred sequences, the same at every run."""
    check_storage_machine(lambda clock: MemoryStorage(clock=clock), examples=500)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.storage("file")
def test_random_sequences_agree_with_the_model_on_file(tmp_path: Path) -> None:
    """Reopening is by another object, so nothing may be remembered outside the file."""
    folders: dict[Storage, Path] = {}
    names = itertools.count()

    def make(clock: ManualClock) -> Storage:
        return opened(tmp_path / str(next(names)), clock)

    def reopen(storage: Storage) -> Storage:
        return opened(folders[storage], storage.clock)

    def opened(folder: Path, clock: Clock) -> Storage:
        storage = FileStorage(folder, durability="normal", clock=clock)
        folders[storage] = folder
        return storage

    check_storage_machine(make, reopen=reopen, examples=500, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fixture", "examples"),
    [
        pytest.param("redis_server", 250, marks=pytest.mark.storage("redis")),
        pytest.param("valkey_server", 250, marks=pytest.mark.storage("valkey")),
        pytest.param("cluster", 50, marks=pytest.mark.storage("cluster")),
        pytest.param("sentinel_group", 50, marks=pytest.mark.storage("sentinel")),
    ],
)
def test_random_sequences_agree_with_the_model_on_servers(
    fixture: str, examples: int, request: pytest.FixtureRequest
) -> None:
    """Reopening is by another object, so nothing may be remembered outside the server."""
    server: Server | Cluster | SentinelGroup = request.getfixturevalue(fixture)
    prefixes: dict[Storage, str] = {}

    def make(clock: ManualClock) -> Storage:
        return opened(f"machine-{uuid.uuid4().hex[:12]}:", clock)

    def reopen(storage: Storage) -> Storage:
        return opened(prefixes[storage], storage.clock)

    def opened(prefix: str, clock: Clock) -> Storage:
        storage = RedisStorage(server.url, key_prefix=prefix, clock=clock)
        prefixes[storage] = prefix
        return storage

    check_storage_machine(make, reopen=reopen, examples=examples, steps=30)
