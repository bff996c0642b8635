"""Every storage of ours keeps the contract: the conformance kit, as anybody runs it on a storage of their own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from jobq import FileStorage, MemoryStorage
from jobq.storage.contract import Storage
from jobq.testing import ManualClock, StorageContract


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
