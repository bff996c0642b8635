"""Hints over pub/sub: what scripts publish, believed only where it repeats the secret of the watch.

    <stem>reply:<channel>   [secret, [[kind, id, generation, record or ''], …]], to one watch
    <stem>events            [kind, id, generation, attempts], to every watch of the queue

Anybody who may publish can write to a channel, so whatever is not exactly this is ignored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from jobq.errors import StorageError
from jobq.storage.contract import Hint, HintKind
from jobq.storage.redis.records import HINT_KINDS, read_snapshot

_TOLD = (HintKind.SETTLED, HintKind.CANCELLED)

_decode_reply = msgspec.msgpack.Decoder(tuple[str, list[tuple[int, str, str, msgspec.Raw]]]).decode
_decode_event = msgspec.msgpack.Decoder(tuple[int, str, str, int]).decode
_HEADS = {0xD9: 2, 0xDA: 3, 0xDB: 5}
"""Lengths of the heads of longer texts in MessagePack; the server packs bytes as texts."""


class RedisWatch:
    """One subscription to hints."""

    def __init__(
        self, channel: str, secret: str, handler: Callable[[Hint], None], end: Callable[[RedisWatch], Awaitable[None]]
    ) -> None:
        self.channel = channel
        self._secret = secret
        self._handler = handler
        self._end = end
        self._open = True

    @property
    def address(self) -> str:
        return f"{self.channel}.{self._secret}"

    async def close(self) -> None:
        if self._open:
            self._open = False
            await self._end(self)

    def receive_reply(self, message: bytes) -> None:
        """Take a message from the watch's own channel."""
        try:
            secret, lines = _decode_reply(message)
            hints = [_told(*line) for line in lines]
        except (msgspec.DecodeError, StorageError, ValueError, RecursionError):
            return
        if secret == self._secret and self._open:
            for hint in hints:
                if hint is not None:
                    self._handler(hint)

    def miss(self) -> None:
        """Say that the channel is heard again after a time in which it was not."""
        if self._open:
            self._handler(Hint(HintKind.MISSED, "", ""))

    def receive_event(self, hint: Hint) -> None:
        if self._open:
            self._handler(hint)


def decode_event(message: bytes) -> Hint | None:
    """Read a message of the events channel; None if it is none of ours."""
    try:
        number, id, generation, attempts = _decode_event(message)
    except (msgspec.DecodeError, ValueError):
        return None
    kind = HINT_KINDS.get(number)
    return None if kind is None or kind in _TOLD else Hint(kind, id, generation, None, attempts)


def _told(number: int, id: str, generation: str, raw: msgspec.Raw) -> Hint | None:
    kind = HINT_KINDS.get(number)
    if kind not in _TOLD:
        return None
    packed = bytes(raw)
    record = packed[_HEADS.get(packed[0], 1) :]
    return Hint(kind, id, generation, read_snapshot(id, record) if record else None)
