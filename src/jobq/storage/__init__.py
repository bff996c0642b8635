"""Where jobs are kept: `open_storage`, the contract, and the storages that keep it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from jobq.checks import is_scheme, shown
from jobq.errors import ConfigError
from jobq.storage.contract import Storage

_STORAGES = {
    # By name and imported late, because the storages stand above this floor: the module, and the extra it needs.
    "MemoryStorage": ("jobq.storage.memory", None),
    "FileStorage": ("jobq.storage.file", None),
    "RedisStorage": ("jobq.storage.redis", "redis"),
}
_PACKAGES = {"redis": ("redis", "hiredis")}
"""What an extra brings."""
_REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
_FORMS = "memory://, file:///path/to/directory, or redis://host:6379/0"


def open_storage(url: str) -> Storage:
    """Make a storage from a URL.

    ``memory://``; ``file:///path/to/directory`` (a relative one is ``file:./data``); ``redis://``, ``rediss://``,
    ``valkey://``, ``valkeys://``, ``redis+sentinel://``, ``redis+cluster://``, ``unix://``. Nothing is opened before a
    queue starts on it.

    Raises:
        ConfigError: the URL is malformed, or of an unknown scheme.
        ImportError: the storage needs an extra that is not installed; the message says which.

    Example:
        >>> open_storage("memory://")
        <MemoryStorage with 0 queues>
    """
    if not isinstance(url, str):
        raise ConfigError(f"url={shown(url)}: must be a str")
    scheme, colon, rest = url.partition(":")
    if scheme == "memory":
        if rest.strip("/"):
            raise ConfigError("url: a memory storage is written memory:// and nothing else")
        return cast(Storage, load_storage("MemoryStorage")())
    if scheme == "file":
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ConfigError("url: a file storage is written file:///path/to/directory") from None
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise ConfigError("url: a file storage is written file:///path/to/directory")
        if parts.query or parts.fragment:
            raise ConfigError("url: a file storage has no options; write %3F for a ? and %23 for a # in its path")
        return cast(Storage, load_storage("FileStorage")(unquote(parts.path, errors="surrogateescape")))
    if scheme.partition("+")[0] in _REDIS_SCHEMES:
        return cast(Storage, load_storage("RedisStorage")(url))
    if not colon or not is_scheme(scheme):
        raise ConfigError(f"url: it begins with no scheme; use {_FORMS}")
    raise ConfigError(f"url: there is no storage for the scheme {shown(scheme)}; use {_FORMS}")


def load_storage(name: str) -> Any:
    """Import a storage's class.

    Raises:
        ImportError: it needs an extra that is not installed.
    """
    module, extra = _STORAGES[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").partition(".")[0] not in _PACKAGES[extra]:
            raise
        raise ImportError(f"{name} needs an extra that is not installed: pip install 'jobq[{extra}]'") from error
