"""One connection through the fault proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import TypeAlias

from tests.servers.resp import Frame, Frames
from tests.servers.trouble import Direction, Ending, Fault, Line, command_name

READ_AT_MOST = 65_536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST."""
ANSWERED_PER_CHANNEL = {f"{prefix}SUBSCRIBE" for prefix in ("", "P", "S", "UN", "PUN", "SUN")}

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Item: TypeAlias = tuple[float, bytes | Ending]
"""When something is to be delivered, by the loop's clock, and what: bytes, or what becomes of the connection then."""


class Connection:
    """Reads whole requests and answers as they come, decides about each, and delivers what passes when it is due."""

    def __init__(self, line: Line, client: Stream, server: Stream) -> None:
        self._line = line
        self._readers = {Direction.REQUESTS: client[0], Direction.REPLIES: server[0]}
        self._writers = {Direction.REQUESTS: server[1], Direction.REPLIES: client[1]}
        self._queues: dict[Direction, asyncio.Queue[Item]] = {direction: asyncio.Queue() for direction in Direction}
        self._passes = {direction: asyncio.Event() for direction in Direction}
        # Of each request that was forwarded, in order: the fault that is to hit its answer. A request that was dropped
        # stands there as well, so that the connection ends when everything before it is answered.
        self._pending: deque[Fault | None] = deque()
        self._dropped: set[Direction] = set()
        self._harmed = self._silent = False
        self._ended = asyncio.Event()
        self.heal()

    async def serve(self) -> None:
        """Forward until the connection has ended and what was to be delivered is."""
        tasks = [
            asyncio.create_task(step(direction)) for direction in Direction for step in (self._read, self._deliver)
        ]
        try:
            await self._ended.wait()
            for writer in self._writers.values():
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers.values():
                writer.transport.abort()

    def end(self, ending: Ending) -> None:
        """Do at once what the ending says."""
        match ending:
            case Ending.HOLD:
                for passes in self._passes.values():
                    passes.clear()
            case Ending.SILENCE:
                self._harmed = self._silent = True
                self._dropped.update(Direction)
            case Ending.HALF_CLOSE:
                self._harmed = True
                self._dropped.add(Direction.REPLIES)
                self._writers[Direction.REPLIES].write_eof()
            case Ending.RESET:
                for writer in self._writers.values():
                    with contextlib.suppress(OSError):
                        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    writer.transport.abort()
                self._ended.set()
            case Ending.CLOSE:
                for writer in self._writers.values():
                    writer.close()
                self._ended.set()

    def heal(self) -> None:
        """Let what was held pass, spare the answers that were to be hit, and reset what has lost something."""
        self._pending = deque([None] * len(self._pending))
        for passes in self._passes.values():
            passes.set()
        if self._harmed:
            self.end(Ending.RESET)

    async def _read(self, direction: Direction) -> None:
        frames, decide = Frames(), self._decide_request if direction is Direction.REQUESTS else self._decide_reply
        try:
            while data := await self._readers[direction].read(READ_AT_MOST):
                self._line.reads += direction is Direction.REQUESTS
                for frame in frames.feed(data):
                    decide(frame)
        except OSError:
            self._queue(direction, Ending.RESET)
        except Exception as error:
            self._line.errors.append(error)
            self.end(Ending.RESET)
        else:
            self._queue(direction, Ending.CLOSE)

    def _decide_request(self, frame: Frame) -> None:
        if Direction.REQUESTS in self._dropped:
            return
        fault = self._line.choose(frame.words)
        if fault is not None and fault.direction is Direction.REQUESTS:
            self._line.happened(fault)
            if fault.ending is not Ending.HOLD:
                self._harmed = True
                self._dropped.add(Direction.REQUESTS)
                self._pending.append(fault)
                self._end_if_answered()
                return
            self._queue(Direction.REQUESTS, Ending.HOLD)
            fault = None
        self._pending.extend([fault] * _answers(frame))
        self._queue(Direction.REQUESTS, frame.data)

    def _decide_reply(self, frame: Frame) -> None:
        if Direction.REPLIES in self._dropped:
            return
        fault = self._pending.popleft() if self._pending and not frame.pushed else None
        if fault is not None:
            self._line.happened(fault)
            self._queue(Direction.REPLIES, fault.ending)
            if fault.ending is not Ending.HOLD:
                self._harmed = True
                self._dropped.add(Direction.REPLIES)
                return
        self._queue(Direction.REPLIES, frame.data)
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        """End the connection if the next to be answered is a request that was dropped."""
        fault = self._pending[0] if self._pending else None
        if fault is not None and fault.direction is Direction.REQUESTS:
            self._queue(Direction.REPLIES, fault.ending)
            self._dropped.add(Direction.REPLIES)

    def _queue(self, direction: Direction, what: bytes | Ending) -> None:
        due = asyncio.get_running_loop().time() + self._line.delays.get(direction, 0.0)
        self._queues[direction].put_nowait((due, what))

    async def _deliver(self, direction: Direction) -> None:
        while True:
            due, what = await self._queues[direction].get()
            if (early := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(early)
            await self._line.passes.wait()
            await self._passes[direction].wait()
            if self._silent:
                continue
            if what is Ending.HOLD:
                self._passes[direction].clear()
            elif isinstance(what, Ending):
                self.end(what)
            else:
                await self._write(direction, what)

    async def _write(self, direction: Direction, data: bytes) -> None:
        writer, pause = self._writers[direction], self._line.pauses.get(direction)
        try:
            if pause is None:
                writer.write(data)
                await writer.drain()
                return
            for position in range(len(data)):
                writer.write(data[position : position + 1])
                await writer.drain()
                await asyncio.sleep(pause)
        except OSError:
            self.end(Ending.RESET)


def _answers(frame: Frame) -> int:
    """Return how many answers a request gets."""
    return max(len(frame.words) - 1, 1) if command_name(frame.words) in ANSWERED_PER_CHANNEL else 1
