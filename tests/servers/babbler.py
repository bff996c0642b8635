"""A server that speaks the Redis protocol and says whatever a test wants, sense or nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias, cast

from tests.servers.resp import Frames

Words: TypeAlias = tuple[bytes, ...]


class Babbler:
    """Listens in the loop of the test, and answers each request by a function; None is no answer."""

    def __init__(self, answer: Callable[[Words], bytes | None] | None = None) -> None:
        self.answer = answer or self.sensible
        self.port = 0
        self.asked: list[bytes] = []
        """The names of all requests so far."""
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Line(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0)  # Aborted transports close their sockets in the next turn of the loop.

    def begin(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)

    def end(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)

    def reply(self, words: Words) -> bytes | None:
        self.asked.append(words[0].upper())
        return self.answer(words)

    def sensible(self, words: Words) -> bytes | None:
        """Answer as an empty server would, alone, as the one node of a Cluster or as a Sentinel and its master."""
        address = (b"127.0.0.1", b"%d" % self.port)
        match words[0].upper():
            case b"INFO":
                return bulk(b"redis_version:7.4.0\r\nrole:master\r\n")
            case b"EVAL" | b"EVALSHA":
                return bulk(b"")
            case b"BLPOP":
                return b"*-1\r\n" if float(words[-1]) < 0.02 else None
            case b"SCAN":
                return array(bulk(b"0"), array())
            case b"ROLE":
                return array(bulk(b"master"))
            case b"SENTINEL":
                return array(*map(bulk, address))
            case b"CLUSTER":
                return array(array(b":0\r\n", b":16383\r\n", array(bulk(address[0]), b":%b\r\n" % address[1])))
            case b"SUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"SUNSUBSCRIBE" as name:
                return array(bulk(name.lower()), bulk(words[1]), b":1\r\n")
            case _:
                return b"+OK\r\n"


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, babbler: Babbler) -> None:
        self._babbler = babbler
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._babbler.begin(self._transport)

    def data_received(self, data: bytes) -> None:
        for request in self._frames.feed(data):
            answer = self._babbler.reply(request.words)
            if answer is not None:
                self._transport.write(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._babbler.end(self._transport)


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def array(*values: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(values), b"".join(values))
