"""redis-py's parser, made safe: the bytes of a reply are taken apart by hiredis, in C."""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio.connection import DefaultParser
from redis.exceptions import InvalidResponse, RedisError, ResponseError

_take_apart: Callable[[str], RedisError] = DefaultParser.parse_error


class UnreadableError(InvalidResponse, ResponseError):
    """An error reply whose text redis-py cannot take apart."""


def error_of(text: str) -> RedisError:
    """Make an exception of an error reply, and raise none: raised within a nested reply, it crashes hiredis 3.5."""
    try:
        return _take_apart(text)
    except Exception as raised:
        return UnreadableError(f"an error reply cannot be read ({type(raised).__name__}: {raised})")


Parser = type("Parser", (DefaultParser,), {"parse_error": staticmethod(error_of)})
"""For what redis-py itself says on a new connection."""
