"""The storages that the engine is tested on."""

from __future__ import annotations

from pathlib import Path

import jobq
import pytest
from jobq.storage.contract import Storage

HAS_FILE = (Path(jobq.__file__).parent / "storage" / "file.py").exists()


@pytest.fixture(params=["memory", *(["file"] if HAS_FILE else [])])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "memory":
        return jobq.MemoryStorage()
    return jobq.FileStorage(tmp_path)
