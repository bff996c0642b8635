"""Before the first job: is this a server that can keep what jobq promises?"""

from __future__ import annotations

import re

from jobq.errors import StorageError
from jobq.storage.redis.trouble import garbled

OLDEST = (7, 0)
"""The first Redis whose scripts can be told to run while memory is full."""


def refuse_unfit(address: str, info: object, *, allow_eviction: bool, cluster: bool) -> None:
    """Look at a server's ``INFO``.

    Raises:
        StorageError: with code ``MISCONFIGURED``; the message names what to change.
        StorageUnavailableError: with code ``GARBLED``; that is no ``INFO``.
    """
    if not isinstance(info, bytes):
        raise garbled("INFO")
    said = dict(re.findall(r"^(\w+):(.*?)\r?$", info.decode("utf-8", "replace"), re.MULTILINE))
    version = said.get("redis_version", "0")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise _unfit(address, f"is Redis {version}; jobq needs Redis 7.0 or Valkey 8.0 or later")
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not allow_eviction:
        raise _unfit(
            address,
            f"may remove jobs when its memory is full (maxmemory-policy {policy}); set maxmemory-policy noeviction, or "
            "pass allow_eviction=True to accept that jobs are lost",
        )
    if said.get("role") == "slave" and not cluster:
        raise _unfit(address, "is a replica; connect to its master")
    if said.get("cluster_enabled") == "1" and not cluster:
        raise _unfit(address, "is a node of a Cluster; write redis+cluster:// in its URL")


def refuse_forbidden(address: str, answer: object) -> None:
    """Look at the answer of the script ``check``.

    Raises:
        StorageError: with code ``MISCONFIGURED``; the message names the command and the key.
        StorageUnavailableError: with code ``GARBLED``; that is no answer of the script.
    """
    if not isinstance(answer, bytes):
        raise garbled("the script check")
    if answer:
        raise _unfit(
            address,
            f"refuses what jobq needs: {answer.decode('utf-8', 'replace')}; docs/how-to/redis.md lists the "
            "smallest set of permissions",
        )


def _unfit(address: str, what: str) -> StorageError:
    return StorageError(f"{address} {what}", code="MISCONFIGURED")
