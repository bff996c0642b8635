"""A proxy between a client and a Redis or Valkey server, which does to the traffic what networks do.

It runs in a thread of its own, and every method may be called from any other thread: when it returns, what it asks for
is in force. Two kinds of trouble can be had, and `heal` ends both:

- to one command, chosen by name, number and arguments: `drop_request` and `drop_reply`;
- to the whole line: `delay`, `slice`, `black_hole`, `refuse`, and at once to all connections: `end_connections`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Self

from tests.servers.connection import Connection
from tests.servers.instrument import Instrument
from tests.servers.loop_thread import Answer, LoopThread
from tests.servers.server import hold_port
from tests.servers.trouble import Direction, Ending, Fault, Line, Predicate


class FaultProxy(Instrument):
    """Forwards connections to a server's port; `start` opens it on a port of its own."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._line = Line()
        self._thread: LoopThread | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        # Bound and never listening: the port stays ours while connections are refused.
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        self._thread = LoopThread("fault proxy")
        self._thread.run(self._listen())
        return self

    def close(self) -> None:
        """End every connection and the thread. Closing twice is harmless."""
        if self._thread is not None:
            self._thread.close(self._stop_listening)
            self._thread = None
        self._guard.close()
        if self._line.errors:
            raise self._line.errors.pop()

    def drop_request(
        self,
        name: str | None = None,
        *,
        nth: int = 1,
        times: int = 1,
        when: Predicate | None = None,
        ending: Ending = Ending.CLOSE,
    ) -> Fault:
        """Lose the nth request of that name from now on, and the ``times - 1`` after it; None is any name.

        What was sent before it on its connection is forwarded and answered, then the connection ends; with
        `Ending.HOLD` the request and what follows it are kept until `heal`. Only requests that ``when`` likes are
        counted; it runs in the proxy's thread and must not call the proxy.
        """
        return self._add(Fault(Direction.REQUESTS, name, ending, nth, times, when))

    def drop_reply(
        self,
        name: str | None = None,
        *,
        nth: int = 1,
        times: int = 1,
        when: Predicate | None = None,
        ending: Ending = Ending.CLOSE,
    ) -> Fault:
        """Let the server do what is asked, and lose its answer; the rest is as with `drop_request`."""
        return self._add(Fault(Direction.REPLIES, name, ending, nth, times, when))

    def delay(self, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Let everything take that many seconds longer; what follows does not queue behind it."""
        self._call(lambda: self._line.delays.update({Direction.REQUESTS: requests, Direction.REPLIES: replies}))

    def slice(self, pause: float, *directions: Direction) -> None:
        """Send single bytes, with a pause after each; both ways if no direction is named."""
        self._call(lambda: self._line.pauses.update(dict.fromkeys(directions or Direction, pause)))

    def black_hole(self) -> None:
        """Forward nothing, close nothing, refuse nothing: like an unplugged cable. `heal` lets what was held arrive."""
        self._call(self._line.passes.clear)

    def refuse(self) -> None:
        """Refuse new connections; those that there are go on."""
        self._call(self._stop_listening)

    def end_connections(self, ending: Ending = Ending.CLOSE) -> None:
        """End those that there are now, in the middle of whatever they do; new ones are welcome."""
        self._call(lambda: self._end_connections(ending))

    def heal(self) -> None:
        """Forget all trouble: what was held flows on, what has lost something is reset, the port listens."""
        assert self._thread is not None, "the proxy is not started"
        self._thread.run(self._heal())

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._call(lambda: len(self._connections))

    @property
    def connections_ever(self) -> int:
        return self._call(lambda: self._line.connections_ever)

    @property
    def commands(self) -> Counter[str]:
        """How many requests have arrived here of each name, in capital letters."""
        return self._call(self._line.commands.copy)

    @property
    def reads(self) -> int:
        """In how many pieces requests have arrived: at most as many as the clients' writes, if these are small."""
        return self._call(lambda: self._line.reads)

    @property
    def faults(self) -> Counter[str]:
        """How many commands were hit, by "requests close", "replies reset", …"""
        return self._call(self._line.faults_done.copy)

    def _call(self, function: Callable[[], Answer]) -> Answer:
        # Before the start and after the end there is nothing that could be disturbed.
        return function() if self._thread is None else self._thread.call(function)

    def _add(self, fault: Fault) -> Fault:
        self._call(lambda: self._line.faults.append(fault))
        return fault

    def _end_connections(self, ending: Ending) -> None:
        for connection in self._connections:
            connection.end(ending)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _heal(self) -> None:
        self._line.heal()
        for connection in self._connections:
            connection.heal()
        if self._listener is None:
            await self._listen()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._line.connections_ever += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            # The server is down, and the client sees it as far as a proxy can show it.
            return
        else:
            await self._serve(Connection(self._line, (reader, writer), server))
        finally:
            writer.transport.abort()

    async def _serve(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
