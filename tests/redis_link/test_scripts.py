"""The scripts: texts that a program has from its start."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from jobq.storage.redis import scripts

VERBS = [path.stem for path in Path(scripts.__file__).parent.glob("*.lua") if not path.stem.startswith("_")]


def test_no_file_is_opened_when_a_verb_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be gone by then, or no descriptor be free: what a handler has done must be stored all the same."""

    def gone(package: object) -> None:
        raise FileNotFoundError(package)

    monkeypatch.setattr(resources, "files", gone)
    monkeypatch.setattr(Path, "open", gone)
    monkeypatch.setattr(Path, "read_text", gone)

    assert {scripts.script(verb).verb for verb in VERBS} >= {"add", "claim", "settle", "extend", "wake"}
