"""Which types a queue's payloads and results have, read from what the user has written anyway."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jobq.job import Job


def types_of(queue: object, generic: type, handler: object) -> tuple[Any, Any]:
    """Return the payload's and the result's type, each None where nothing is said.

    ``Queue[P, R](…)`` comes first, then the bases of a subclass, then the handler's annotations.
    """
    candidates = [getattr(queue, "__orig_class__", None), *getattr(type(queue), "__orig_bases__", ())]
    for candidate in candidates:
        if get_origin(candidate) is not None and issubclass(get_origin(candidate), generic):
            arguments = get_args(candidate)
            if len(arguments) == 2:
                return _said(arguments[0]), _said(arguments[1])
    return _types_of_handler(handler)


def _types_of_handler(handler: object) -> tuple[Any, Any]:
    if handler is None:
        return None, None
    function = handler if inspect.isroutine(handler) else getattr(type(handler), "__call__", handler)
    try:
        hints = get_type_hints(function)
    except Exception:  # Names that cannot be resolved here say nothing.
        return None, None
    result = _said(hints.pop("return", None))
    if get_origin(result) in (Awaitable, Coroutine):
        result = _said(get_args(result)[-1])
    for hint in hints.values():
        if get_origin(hint) is Job:
            return _said(get_args(hint)[0]), result
    return None, result


def _said(hint: Any) -> Any:
    return None if hint is Any or isinstance(hint, TypeVar) else hint
