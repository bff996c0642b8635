"""Hints between processes: unix datagrams between sockets in one directory.

A hint is lossy by nature: a full socket is tried again for 100 ms and then left, a dead one is removed, garbage is
ignored, and where sockets are impossible there is none of this and everybody polls.

A socket's path is limited to about 100 bytes, so it is addressed through the directory's descriptor. An idle worker
leaves a marker file; who unlinks it owns the right and the duty to wake that worker: one, not all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from jobq.storage.contract import Hint

Message = tuple[str, list[tuple[str, Hint]]]
"""A queue's name, and hints, each with the secret of the watch that it is for (empty: for all of the queue)."""

_MOST_BYTES = 100 * 1024
_TRY_FOR = 0.1
_TRY_EVERY = 0.005
_SOCKET, _IDLE = "s-", "idle-"
_IS_SOCKET = re.compile(r"s-[0-9a-f]{1,64}").fullmatch
_IS_MARKER = re.compile(r"idle-[0-9]+-([0-9]+)-[0-9]+-(s-[0-9a-f]{1,64})").fullmatch
_log = logging.getLogger("jobq.storage")
_DECODER = msgspec.msgpack.Decoder(Message | str)


class HintSocket:
    """This storage object's socket, and the way to those of others."""

    def __init__(
        self, directory: Path, name: str, heard: Callable[[str, str, Hint], None], woken: Callable[[str], None]
    ) -> None:
        self.name = _SOCKET + name
        self._path = directory
        self._heard = heard
        self._woken = woken
        self._loop = asyncio.get_running_loop()
        # The storage's thread sends too: what it sends on is not closed meanwhile.
        self._lock = threading.RLock()
        self._directory = -1
        self._socket: socket.socket | None = None
        self._at_exit: weakref.finalize[..., HintSocket] | None = None

    def open(self) -> bool:
        """Bind and listen; False where that is impossible."""
        try:
            self._path.mkdir(0o700, exist_ok=True)
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._check_private()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.bind(self._address(self.name))
            os.chmod(self.name, 0o600, dir_fd=self._directory)
            self._remove_dead()
            # A program that ends without a stop leaves nothing that others would have to find dead.
            self._at_exit = weakref.finalize(self, _remove_own, self._directory, self.name, os.getpid())
        except (OSError, AttributeError):
            self.close()
            return False
        self._loop.add_reader(self._socket.fileno(), self._read)
        return True

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError, RuntimeError, ValueError):
                    self._loop.remove_reader(self._socket.fileno())
                self._socket.close()
                self._socket = None
            if self._directory >= 0:
                self._forget(self.name)
                # Collected, this may have been finalized already, and the descriptor's number be another file's.
                if self._at_exit is None or self._at_exit.detach() is not None:
                    os.close(self._directory)
                self._directory = -1

    def send(self, name: str, queue: str, hints: list[tuple[str, Hint]]) -> None:
        """Send hints to one socket, in as few datagrams as fit."""
        some: list[tuple[str, Hint]] = []
        size = 0
        for secret, hint in hints:
            snapshot = hint.snapshot
            length = 512 + len(hint.id) + (len(snapshot.result or snapshot.error or b"") if snapshot else 0)
            if some and size + length > _MOST_BYTES:
                self._send(name, msgspec.msgpack.encode((queue, some)))
                some, size = [], 0
            some.append((secret, hint))
            size += length
        if some:
            self._send(name, msgspec.msgpack.encode((queue, some)))

    def send_to_all(self, queue: str, hints: list[Hint]) -> None:
        for name in self._names(_SOCKET):
            if name != self.name:
                self.send(name, queue, [("", hint) for hint in hints])

    def marker(self, queue: int, until: float, number: int) -> str:
        """Return the name of the marker that says that a worker sleeps until then."""
        return f"{_IDLE}{queue}-{int(until * 1000)}-{number}-{self.name}"

    def mark_idle(self, marker: str) -> None:
        """Leave a marker: a second name of our socket, which costs a fraction of a file of its own."""
        with contextlib.suppress(OSError), self._lock:
            os.link(self.name, marker, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def unmark(self, marker: str) -> bool:
        """Remove a marker; True if it was still there."""
        try:
            with self._lock:
                os.unlink(marker, dir_fd=self._directory)
        except OSError:
            return False
        return True

    def wake_one(self, queue: int, before: float | None = None) -> bool:
        """Wake one idle worker of another process; with ``before`` only if all of them would sleep longer."""
        prefix = f"{_IDLE}{queue}-"
        idle = [(marker[0], int(marker[1]), marker[2]) for marker in map(_IS_MARKER, self._names(prefix)) if marker]
        idle = [(marker, until, name) for marker, until, name in idle if name != self.name]
        if before is not None and any(until <= before * 1000 for _, until, _ in idle):
            return False
        return any(self.unmark(marker) and self._send(name, msgspec.msgpack.encode(marker)) for marker, _, name in idle)

    def _names(self, prefix: str) -> list[str]:
        try:
            with self._lock:
                # By descriptor, which pathlib cannot: the directory may have been renamed.
                names = os.listdir(self._directory) if self._directory >= 0 else []  # noqa: PTH208
        except OSError:
            return []
        return sorted(name for name in names if name.startswith(prefix))

    def _send(self, name: str, data: bytes, give_up_at: float | None = None) -> bool:
        """Send without waiting; False if the receiver is dead."""
        if not _IS_SOCKET(name):
            return False
        try:
            with self._lock:
                if self._socket is None:
                    return False
                self._socket.sendto(data, self._address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            self._forget(name)
            return False
        except OSError as error:
            now = time.monotonic()
            give_up_at = now + _TRY_FOR if give_up_at is None else give_up_at
            if isinstance(error, BlockingIOError) and now < give_up_at:
                with contextlib.suppress(RuntimeError):  # The loop may have been closed.
                    self._loop.call_soon_threadsafe(
                        self._loop.call_later, _TRY_EVERY, self._send, name, data, give_up_at
                    )
        return True

    def _read(self) -> None:
        for _ in range(64):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(2 * _MOST_BYTES)
                message: Any = _DECODER.decode(data)
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
                continue  # Anybody with access to the directory can send anything.
            if isinstance(message, str):
                self._woken(message)
                continue
            queue, hints = message
            for secret, hint in hints:
                self._heard(queue, secret, hint)

    def _check_private(self) -> None:
        """Raise if others could put sockets of theirs in the place of ours, and hear what is sent to us."""
        found = os.fstat(self._directory)
        trusted = (os.geteuid(), self._path.parent.stat().st_uid)
        if found.st_uid not in trusted or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            _log.warning(
                "%s may be changed by other users, and is not used: remove it, or run chmod 700 on it", self._path
            )
            raise PermissionError(f"{self._path} is not private")

    def _remove_dead(self) -> None:
        for name in filter(_IS_SOCKET, self._names(_SOCKET)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
                try:
                    probe.connect(self._address(name))
                except ConnectionRefusedError:
                    self._forget(name)
                except OSError:
                    continue

    def _forget(self, name: str) -> None:
        """Remove a socket and the markers of its workers."""
        for marker in [name, *(marker for marker in self._names(_IDLE) if marker.endswith(f"-{name}"))]:
            self.unmark(marker)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._directory}/{name}"


def _remove_own(directory: int, name: str, pid: int) -> None:
    """Remove a socket and its markers, in the process that made it; a forked child leaves them alone."""
    if os.getpid() == pid:
        for found in os.listdir(directory):
            if found == name or found.endswith(f"-{name}"):
                with contextlib.suppress(OSError):
                    os.unlink(found, dir_fd=directory)
    os.close(directory)
