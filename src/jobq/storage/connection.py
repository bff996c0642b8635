"""What every storage object shares: opened by the first queue, closed by the last, used in one loop and one process."""

from __future__ import annotations

import asyncio
import os

from jobq.errors import StorageError


class Connection:
    """Counts opens and closes, and refuses use from another loop or from a forked child.

    Subclasses implement `_connect` and `_disconnect`, which never run at the same time.
    """

    def __init__(self) -> None:
        self._users = 0
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing: asyncio.Lock | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._users and self._loop is not loop and self._loop is not None and self._loop.is_closed():
            self._abandon()
        if self._users:
            self.check_usable(loop)
        if self._loop is not loop or self._changing is None:
            self._loop, self._changing = loop, asyncio.Lock()
        self._pid = os.getpid()
        async with self._changing:
            if self._users == 0:
                await self._connect()
            self._users += 1

    async def close(self) -> None:
        if self._users == 0 or self._changing is None:
            return
        async with self._changing:
            try:
                if self._users == 1:
                    await self._disconnect()
            finally:  # Also if this is cancelled: what was disconnected must not count as open.
                self._users -= 1

    def check_usable(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raise unless this is the loop and the process that opened the connection."""
        if self._users == 0:
            raise StorageError("the storage is not open: start a queue on it first", code="CLOSED")
        if self._pid != os.getpid():
            raise StorageError(
                "the storage was opened before a fork: fork before you open it, or spawn the child process",
                code="FORKED",
            )
        if self._loop is not loop:
            raise StorageError(
                "the storage is open in another event loop: use one storage object per loop", code="WRONG_LOOP"
            )

    async def _connect(self) -> None:
        raise NotImplementedError

    async def _disconnect(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Forget a connection whose loop was closed under it."""
        self._users = 0
