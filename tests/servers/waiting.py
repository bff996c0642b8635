"""Waiting for other processes and threads: the one place here that polls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")

PATIENCE = 20.0
"""Seconds after which something that should happen counts as never happening, also on a busy machine."""


def wait_for(look: Callable[[], Seen | None], what: str, within: float = PATIENCE) -> Seen:
    """Look until something true is seen, and return it.

    Raises:
        TimeoutError: Nothing was seen ``within`` these seconds; it says ``what`` was waited for.
    """
    give_up_at = time.monotonic() + within
    while not (seen := look()):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"no {what} within {within:g} s")
        time.sleep(0.005)
    return seen
