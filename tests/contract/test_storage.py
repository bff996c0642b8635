"""Every storage of ours keeps the contract: the conformance kit, as anybody runs it on a storage of their own."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import ClassVar

import pytest

from jobq import FileStorage, MemoryStorage, RedisStorage
from jobq.storage.contract import Storage
from jobq.testing import ManualClock, StorageContract
from tests.servers.cluster import Cluster
from tests.servers.sentinel import SentinelGroup
from tests.servers.server import Server


@pytest.mark.storage("memory")
class TestMemory(StorageContract):
    async def make_storage(self, clock: ManualClock) -> Storage:
        return MemoryStorage(clock=clock)


@pytest.mark.storage("file")
class TestFile(StorageContract):
    folders: ClassVar[dict[Storage, Path]] = {}

    async def make_storage(self, clock: ManualClock) -> Storage:
        folder = Path(tempfile.mkdtemp(prefix="jobq-"))
        storage = FileStorage(folder, durability="normal", clock=clock)
        self.folders[storage] = folder
        return storage

    async def make_peer(self, storage: Storage) -> Storage | None:
        return FileStorage(self.folders[storage], durability="normal", clock=storage.clock)

    async def destroy(self, storage: Storage) -> None:
        shutil.rmtree(self.folders.pop(storage))


class OnServer(StorageContract):
    """The kit on a server; each test keeps to a prefix of its own."""

    time_is_a_servers = True
    url = ""
    prefixes: ClassVar[dict[Storage, str]] = {}

    async def make_storage(self, clock: ManualClock) -> Storage:
        prefix = f"kit-{uuid.uuid4().hex[:12]}:"
        storage = RedisStorage(self.url, key_prefix=prefix, clock=clock)
        self.prefixes[storage] = prefix
        return storage

    async def make_peer(self, storage: Storage) -> Storage | None:
        return RedisStorage(self.url, key_prefix=self.prefixes[storage], clock=storage.clock)

    async def destroy(self, storage: Storage) -> None:
        del self.prefixes[storage]


@pytest.mark.storage("redis")
class TestRedis(OnServer):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server) -> None:
        self.url = redis_server.url


@pytest.mark.storage("valkey")
class TestValkey(OnServer):
    @pytest.fixture(autouse=True)
    def _server(self, valkey_server: Server) -> None:
        self.url = valkey_server.url


@pytest.mark.storage("cluster")
class TestCluster(OnServer):
    @pytest.fixture(autouse=True)
    def _server(self, cluster: Cluster) -> None:
        self.url = cluster.url


@pytest.mark.storage("sentinel")
class TestSentinel(OnServer):
    @pytest.fixture(autouse=True)
    def _server(self, sentinel_group: SentinelGroup) -> None:
        self.url = sentinel_group.url
