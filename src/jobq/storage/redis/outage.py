"""Outage: tells once that servers are lost, and once that they are back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from jobq.errors import StorageError

T = TypeVar("T")


class Outage:
    """What the connections for commands report to."""

    def __init__(self) -> None:
        self.on_outage: Callable[[StorageError], None] | None = None
        self.on_recovery: Callable[[float], None] | None = None
        self._lost: set[str] = set()
        self._since = 0.0

    def lost(self, server: str, error: StorageError) -> None:
        if not self._lost:
            self._since = asyncio.get_running_loop().time()
            _tell(self.on_outage, error)
        self._lost.add(server)

    def back(self, server: str) -> None:
        """Note that a server is connected again, or is not needed any more."""
        if server in self._lost:
            self._lost.discard(server)
            if not self._lost:
                _tell(self.on_recovery, asyncio.get_running_loop().time() - self._since)


def _tell(listener: Callable[[T], None] | None, what: T) -> None:
    """Tell somebody whose own errors must not keep us from connecting again."""
    if listener is not None:
        try:
            listener(what)
        except Exception as error:
            context = {"message": "a listener to outages failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
