"""Where jobs are kept: `open_storage`, the contract, and the storages that keep it."""

from __future__ import annotations

from importlib import import_module
from typing import cast
from urllib.parse import unquote, urlsplit

from jobq.checks import shown
from jobq.errors import ConfigError
from jobq.storage.contract import Storage


def open_storage(url: str) -> Storage:
    """Make a storage from a URL: ``memory://`` or ``file:///path/to/directory``.

    Nothing is opened before a queue starts on it. A relative directory is ``file:./data``.

    Raises:
        ConfigError: the URL is malformed, or of an unknown scheme.

    Example:
        >>> open_storage("memory://")
        <MemoryStorage with 0 queues>
    """
    if not isinstance(url, str):
        raise ConfigError(f"url={shown(url)}: must be a str")
    parts = urlsplit(url)
    match parts.scheme:
        case "memory":
            return _made("jobq.storage.memory", "MemoryStorage")
        case "file":
            if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
                raise ConfigError("url: a file storage is written file:///path/to/directory")
            return _made("jobq.storage.file", "FileStorage", unquote(parts.path))
        case scheme:
            raise ConfigError(
                f"url: there is no storage for the scheme {shown(scheme)}; use memory:// or file:///path/to/directory"
            )


def _made(module: str, name: str, *arguments: str) -> Storage:
    # Imported by name and late, because the storages stand above this floor.
    return cast(Storage, getattr(import_module(module), name)(*arguments))
