"""As much of the Redis protocol as is needed to see where its requests and answers end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

AGGREGATES = {b"*": 1, b"~": 1, b">": 1, b"%": 2}
"""Types that are followed by that many elements; of a map the number counts pairs."""
BLOBS = b"$!="
"""Types that are followed by that many bytes."""


class Frame(NamedTuple):
    """One whole request or answer."""

    data: bytes
    """As it came."""
    words: tuple[bytes, ...]
    """The texts in it, in order and however nested: of a request its name and arguments."""

    @property
    def pushed(self) -> bool:
        """Whether it is news that nobody asked for; in the older protocol such news comes as ordinary arrays."""
        first = self.words[0] if self.words else b""
        if first in (b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe"):
            return False
        return self.data[:1] == b">" or (self.data[:1] == b"*" and first in (b"message", b"pmessage", b"smessage"))


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete with these bytes; the beginning of another is kept."""
        self._rest += data
        start = 0
        words: list[bytes] = []
        while (end := _end(self._rest, start, words)) is not None:
            yield Frame(bytes(self._rest[start:end]), tuple(words))
            start = end
            words = []
        del self._rest[:start]


def _end(data: bytearray, start: int, words: list[bytes]) -> int | None:
    """Return where the value that begins at ``start`` ends, or None if it is not complete; note its texts."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, head, end = bytes(data[start : start + 1]), bytes(data[start + 1 : line_end]), line_end + 2
    if kind in AGGREGATES:
        return _end_of_elements(data, end, AGGREGATES[kind] * max(int(head), 0), words)
    if kind in BLOBS and int(head) >= 0:
        after = end + int(head)
        if len(data) < after + 2:
            return None
        words.append(bytes(data[end:after]))
        return after + 2
    if kind in (b"+", b"-"):
        words.append(head)
    elif kind.isalpha():
        # An inline request, as people type it.
        words.extend(bytes(data[start:line_end]).split())
    return end


def _end_of_elements(data: bytearray, start: int, count: int, words: list[bytes]) -> int | None:
    end: int | None = start
    for _ in range(count):
        assert end is not None
        end = _end(data, end, words)
        if end is None:
            return None
    return end
