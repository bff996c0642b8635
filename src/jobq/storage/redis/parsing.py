"""redis-py's parser, made safe: the bytes of a reply are read by hiredis, in C."""

from __future__ import annotations

from redis.asyncio.connection import DefaultParser
from redis.exceptions import InvalidResponse, RedisError, ResponseError


class UnreadableError(InvalidResponse, ResponseError):
    """An error reply whose text redis-py cannot take apart."""


class Parser(DefaultParser):  # type: ignore[misc, valid-type]
    """Makes an exception of each error reply, and raises none: raised within a nested reply, it crashes hiredis 3.5."""

    @classmethod
    def parse_error(cls, response: str) -> RedisError:
        try:
            error: RedisError = super().parse_error(response)
        except Exception as raised:
            return UnreadableError(f"an error reply cannot be read ({type(raised).__name__}: {raised})")
        return error
