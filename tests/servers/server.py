"""A real Valkey or Redis server of a test's own, on a loopback port and a unix socket."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.binaries import Kind, server_program
from tests.servers.instrument import Instrument
from tests.servers.waiting import wait_for

Persistence: TypeAlias = Literal["none", "everysec", "always"]

LONGEST_SOCKET_PATH = 100
"""A longer path does not fit into a socket address."""
WATCHDOG = 'read -r line; kill -KILL "$1"'
"""Reads until the pipe ends, as it does however the process that holds the other end goes."""

UNTYPED_CONNECTION: Any = redis.Connection
"""The methods of the library's class have no annotations."""


class Server(Instrument):
    """A server process; `start` begins it, and it ends at the latest with the process that began it.

    ``options`` are further lines of the configuration file. Every answer of `command` is text.
    """

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        options: Sequence[str] = (),
        port: int | None = None,
        persistence: Persistence = "none",
        password: str | None = None,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.socket_path = directory / "socket"
        self._options = options
        self._persistence = persistence
        self._password = password
        # Bound and never listening, so that the port stays ours from before the first start and while the server is
        # down: nobody else is given it, and whoever connects is refused.
        self._guards = [hold_port(port or 0)]
        self.port: int = self._guards[0].getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        secret = "" if self._password is None else f":{self._password}@"
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server, and return when it answers."""
        assert not self.running, "the server is running"
        program = server_program(self.kind)
        assert program is not None, f"{self.kind}-server is not installed"
        assert len(str(self.socket_path)) <= LONGEST_SOCKET_PATH, f"too long for a socket: {self.socket_path}"
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "server.conf"
        # Some servers write what they learn into it, so it is not written anew at a restart.
        if not configuration.exists():
            configuration.write_text("\n".join([*self._lines(), *self._options]) + "\n")
        command: list[str | Path] = [program, configuration, *self._arguments()]
        # In a group of their own, so that Ctrl-C in a terminal is left to the tests.
        with (self.directory / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=output, stderr=output, start_new_session=True
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            wait_for(self._answers, f"answer of {self.kind}-server")
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End the server in order: it writes what its persistence keeps. Harmless if it is not running."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._reap()

    def kill(self) -> None:
        """End the server with SIGKILL. Harmless if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self, *, keep_data: bool = True) -> None:
        """Start it again on the same port, after ending it in order if it is still running."""
        self.stop()
        if not keep_data:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.start()

    def close(self) -> None:
        """End the server without ceremony, and give up its port."""
        self.kill()
        for guard in self._guards:
            guard.close()

    def pause(self) -> None:
        """Freeze the process with SIGSTOP: connections stay open, and new ones are taken by the kernel."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str | int | float | bytes) -> Any:
        """Send one command over a connection of its own, and return the answer as it came, with text for bytes."""
        connection = self._connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()

    def info(self, section: str = "everything") -> dict[str, str]:
        """Return INFO as names and texts: ``info("replication")["role"]``."""
        lines = self.command("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def calls(self) -> dict[str, int]:
        """Return how often each command was called, by its name in small letters; CONFIG RESETSTAT begins anew.

        The calls of `command` count as well, and with each a `client|setinfo` or two, which redis-py sends.
        """
        stats = self.info("commandstats").items()
        return {name.removeprefix("cmdstat_"): int(text.split(",")[0].removeprefix("calls=")) for name, text in stats}

    def _lines(self) -> list[str]:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"unixsocket {self.socket_path}", f"dir {self.directory}"]
        lines += ["enable-debug-command local", 'save ""', "repl-diskless-sync-delay 0"]
        if self._persistence != "none":
            lines += ["appendonly yes", f"appendfsync {self._persistence}"]
        if self._password is not None:
            lines += [f"requirepass {self._password}", f"masterauth {self._password}"]
        return lines

    def _arguments(self) -> list[str]:
        return []

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            output = (self.directory / "output.log").read_text(errors="replace")
            raise RuntimeError(f"{self.kind}-server ended at once: {output[-2000:]}")
        try:
            return bool(self.command("PING") == "PONG") and self.socket_path.exists()
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError):
            return False

    def _connection(self) -> Any:
        # Plain and without retries: what a test sends leaves once, or fails.
        return UNTYPED_CONNECTION(
            host="127.0.0.1",
            port=self.port,
            password=self._password,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            encoding_errors="surrogateescape",
        )

    def _reap(self) -> None:
        """Wait for the end of the server, then of its watchdog, which must not outlive the number that it knows."""
        process, watchdog = self._process, self._watchdog
        self._process = self._watchdog = None
        if watchdog is not None:
            watchdog.kill()
            watchdog.communicate()
        if process is not None:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def hold_port(port: int = 0) -> socket.socket:
    """Bind a port without listening there. Linux lets the server, and nobody without SO_REUSEADDR, bind it as well."""
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    guard.bind(("127.0.0.1", port))
    return guard
