"""What every storage object shares: opened by the first queue, closed by the last, used in one loop and one process."""

from __future__ import annotations

from jobq._home import Home
from jobq.errors import StorageError


class Connection:
    """Counts opens and closes, and refuses use from another loop or from a forked child.

    Subclasses implement `_connect` and `_disconnect`, which never run at the same time.
    """

    def __init__(self) -> None:
        self._users = 0
        self._home = Home("the storage", StorageError)

    async def open(self) -> None:
        async with self._home.turn(self._is_used, self._abandon):
            if self._users == 0:
                await self._connect()
            self._users += 1

    async def close(self) -> None:
        if self._users == 0:
            return
        async with self._home.turn(self._is_used, self._abandon):
            try:
                if self._users == 1:
                    await self._disconnect()
            except GeneratorExit:  # Its loop has ended in here, and who is counted now is of another.
                raise
            except BaseException:  # What was disconnected must not count as open.
                self._leave()
                raise
            self._leave()

    def check_usable(self) -> None:
        """Raise unless this is the loop and the process that opened the connection."""
        if self._users == 0:
            raise StorageError("the storage is not open: start a queue on it first", code="CLOSED")
        self._home.check()

    async def _connect(self) -> None:
        raise NotImplementedError

    async def _disconnect(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        self._users = max(0, self._users - 1)  # It may have been abandoned meanwhile.

    def _is_used(self) -> bool:
        return self._users > 0

    def _abandon(self) -> None:
        """Forget a connection whose loop was closed under it."""
        self._users = 0
