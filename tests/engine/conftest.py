"""After each test of the engine nothing is left of it: no thread, no descriptor, no socket file."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.waiting import wait_for


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look what was there before and what is there afterwards; tasks are looked for by `in_loop`, in their loop."""
    if "storage" in request.fixturenames:
        request.getfixturevalue("storage")  # A server that many tests share may start with this one, and stays.
    # Asked for now, it outlasts this fixture.
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    threads, descriptors = set(threading.enumerate()), opened()
    yield

    def left() -> list[object]:
        sockets = folder.rglob("sockets/*") if folder is not None else ()
        return [*(set(threading.enumerate()) - threads), *(opened() - descriptors), *sockets]

    if left():
        gc.collect()  # What a test abandoned on purpose is closed when it is collected.
        try:
            wait_for(lambda: not left(), "end of what the test began", within=5.0)
        except TimeoutError:
            pytest.fail(f"the test left behind: {left()}")


def opened() -> set[tuple[str, str]]:
    """Return this process's descriptors, and what each stands for."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:  # That of the listing itself.
            continue
        if not target.startswith("/proc/"):
            found.add((path.name, target))
    return found
