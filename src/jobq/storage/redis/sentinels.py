"""Sentinels: whom to ask for the master, before each connection anew."""

from __future__ import annotations

import asyncio

from redis.exceptions import InvalidResponse, RedisError

from jobq.storage.redis.settings import Settings
from jobq.storage.redis.trouble import unavailable
from jobq.storage.redis.urls import Place
from jobq.storage.redis.wire import Wire, opened


class Sentinels:
    """Knows the Sentinels of a service, and asks them in turn."""

    def __init__(self, settings: Settings, time_limit: float) -> None:
        self._settings = settings
        self._places = list(settings.target.places)
        self._time_limit = time_limit / (len(self._places) + 1)
        """Seconds for each, so that all can be asked within the time of one attempt."""

    async def master(self) -> Place:
        """Ask one after the other who the master is.

        Raises:
            StorageUnavailableError: none of them knows it.
            RedisError, OSError: none of them answered.
        """
        trouble: Exception | None = None
        for place in tuple(self._places):
            found = None
            try:
                async with asyncio.timeout(self._time_limit):
                    found = await self._ask(place)
            except (RedisError, OSError) as error:
                trouble = error
            # The next time another is asked first, since this one may be dead, or alone with an old answer.
            self._places.remove(place)
            self._places.append(place)
            if found is not None:
                return found
        target = self._settings.target
        raise trouble or unavailable(str(target), f"no Sentinel knows a master of the service {target.service!r}")

    async def _ask(self, place: Place) -> Place | None:
        wire: Wire = await opened(self._settings.sentinel_connection(place, self._time_limit), place)
        try:
            answer = await wire.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.target.service))
        finally:
            await wire.close()
        try:
            return None if answer is None else Place(answer[0].decode(), int(answer[1]))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidResponse(f"no address of a master: {error}") from error
