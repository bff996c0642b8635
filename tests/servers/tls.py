"""A proxy that speaks TLS to clients and plain text to a server, with good and bad certificates."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

import trustme

from tests.servers.connection import Stream
from tests.servers.instrument import Instrument
from tests.servers.loop_thread import LoopThread

READ_AT_MOST = 65_536


class Certificate(StrEnum):
    """What the server shows."""

    GOOD = "good"
    FOREIGN = "foreign"
    """Of an authority that the client does not trust."""
    EXPIRED = "expired"
    WRONG_NAME = "wrong name"
    """For another host."""


def write_certificates(directory: Path) -> Path:
    """Make a good certificate for servers of this machine, and return the authority that clients are to trust."""
    authority = trustme.CA()
    shown = authority.issue_cert("127.0.0.1", "localhost")
    shown.private_key_pem.write_to_path(directory / "key.pem")
    shown.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    return directory / "ca-cert.pem"


class TlsProxy(Instrument):
    """Forwards to a port of this machine; `ca_path` is the authority that clients trust, whatever is shown."""

    def __init__(self, server_port: int, directory: Path, certificate: Certificate = Certificate.GOOD) -> None:
        self._server_port = server_port
        self._certificate = certificate
        self._thread: LoopThread | None = None
        self._listener: asyncio.Server | None = None
        self._authority = trustme.CA()
        self.ca_path = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_path)
        self.port = 0

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        self._thread = LoopThread("TLS proxy")
        self._thread.run(self._listen())
        return self

    def close(self) -> None:
        """End every connection and the thread. Closing twice is harmless."""
        if self._thread is not None and self._listener is not None:
            self._thread.close(self._listener.close)
        self._thread = self._listener = None

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._shown().configure_cert(context)
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _shown(self) -> trustme.LeafCert:
        match self._certificate:
            case Certificate.GOOD:
                return self._authority.issue_cert("127.0.0.1", "localhost")
            case Certificate.FOREIGN:
                return trustme.CA().issue_cert("127.0.0.1", "localhost")
            case Certificate.EXPIRED:
                return self._authority.issue_cert("127.0.0.1", "localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
            case Certificate.WRONG_NAME:
                return self._authority.issue_cert("elsewhere.example")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            return
        else:
            await _forward_both_ways((reader, writer), (server_reader, server_writer))
        finally:
            writer.transport.abort()


async def _forward_both_ways(client: Stream, server: Stream) -> None:
    """Forward until one side ends, then end both."""
    tasks = [asyncio.create_task(way) for way in (_forward(client[0], server[1]), _forward(server[0], client[1]))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        server[1].transport.abort()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_AT_MOST):
            writer.write(data)
            await writer.drain()
