"""The storages that the engine is tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobq import FileStorage, MemoryStorage
from jobq.storage.contract import Storage


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.storage(name)) for name in ("memory", "file")])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Make a storage with nothing in it."""
    return MemoryStorage() if request.param == "memory" else FileStorage(tmp_path)
