"""Slots: which node of a Cluster is the master of which slot, as the nodes themselves tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import InvalidResponse, RedisError

from jobq.errors import StorageError
from jobq.storage.redis.link import Link
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import explained, unavailable
from jobq.storage.redis.urls import Place
from jobq.storage.redis.wire import opened

SLOTS = 16384
_QUESTION = ("CLUSTER", "SLOTS")
_LOOK_LIMIT = 1.5
"""Seconds for each node that is asked."""


class Slots:
    """The map of a Cluster."""

    def __init__(self, settings: Settings, time_limit: float) -> None:
        self._settings = settings
        self._look_limit = min(_LOOK_LIMIT, time_limit / 2)
        self._owners: list[Place | None] = [None] * SLOTS
        self._known: list[Place] = list(settings.target.places)
        """All nodes ever heard of in the last answer, replicas included, and those that the user named."""

    def slot(self, key: str) -> int:
        """Return the slot of a key, which is that of its hash tag."""
        return key_slot(key.encode())

    def owner(self, slot: int) -> Place | None:
        return self._owners[slot]

    def assign(self, slot: int, place: Place) -> None:
        """Note what a node said about one slot."""
        self._owners[slot] = place

    def masters(self) -> set[Place]:
        return {place for place in self._owners if place is not None}

    async def look(self, links: Iterable[Link]) -> None:
        """Ask the nodes, first those to which there is a connection, until one answers.

        Raises:
            StorageError: none of them did; of the last one's trouble.
        """
        trouble: StorageError = unavailable(str(self._settings.target), "none of its nodes answers")
        asked = set()
        for link in links:
            if link.wire is not None:
                place = link.wire.place
                asked.add(place)
                try:
                    async with asyncio.timeout(self._look_limit):
                        return self._read(await link.call(_QUESTION), place)
                except (RedisError, OSError, StorageError) as error:
                    trouble = self._explained(error)
        for place in self._known:
            if place not in asked:
                try:
                    async with asyncio.timeout(self._look_limit):
                        return self._read(await self._ask(place), place)
                except (RedisError, OSError) as error:
                    trouble = self._explained(error)
        raise trouble

    async def _ask(self, place: Place) -> Any:
        wire = await opened(self._settings.connection(place, self._look_limit), place)
        try:
            return await wire.ask(_QUESTION)
        finally:
            await wire.close()

    def _read(self, answer: Any, asked: Place) -> None:
        owners: list[Place | None] = [None] * SLOTS
        known = dict.fromkeys(self._settings.target.places)
        try:
            if not isinstance(answer, list):
                raise TypeError("no list")
            for first, last, *nodes in answer:
                places = [_place(node, asked) for node in nodes]
                known |= dict.fromkeys(places)
                for slot in range(first, last + 1):
                    owners[slot] = places[0]
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidResponse(f"no map of slots: {error}") from error
        self._owners, self._known = owners, list(known)

    def _explained(self, error: Exception) -> StorageError:
        problem = explained(str(self._settings.target), error, _QUESTION)
        assert isinstance(problem, StorageError)
        return problem


def _place(node: list[Any], asked: Place) -> Place:
    # A node that does not know its own address means the one at which it was asked.
    host = node[0].decode() if node[0] else ""
    return Place(asked.host if host in ("", "?") else host, int(node[1]))
