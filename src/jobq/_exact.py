"""Whether a value comes back equal: the proof behind "exact or refused".

Two walks, both over types that are trusted because they are compared by identity, so that no ``__eq__`` of a stranger
is ever asked. `proves_exact` needs no decoding: the builtin types that a format keeps are known. `same` compares what
was sent with what came back. Both answer False and leave a trail: the reason first, then the steps from the inside
out, so that nothing is spent on places while all is well.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import struct
import uuid
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from jobq.checks import shown

DEEPEST = 200
"""Levels of nesting; more might not be decodable by a reader with a smaller stack."""
DECLARE = "declare a type, as in Queue[Payload, Result]"
_TOO_DEEP = f"is nested deeper than {DEEPEST} levels, or contains itself; flatten it"
_LONGEST_PLACE = 200
_LEAST, _MOST = -(2**63), 2**64 - 1
SELF_EVIDENT = frozenset({str, bool, type(None)})
"""Types of which every value that can be encoded comes back equal."""
_EQUAL_WHEN_EQUAL = frozenset(
    {str, int, bool, type(None), bytes, bytearray, dt.date, dt.timedelta, type(msgspec.UNSET)}
)

Trail = list[str]


class Format(Protocol):
    """What a format keeps beyond what every format keeps."""

    def refuses(self, value: object) -> str | None:
        """Return why a value that is no plain text, number or container would not come back equal."""

    def refuses_key(self, key: object) -> str | None:
        """Return why a key that is no plain text would not come back equal."""


def proves_exact(value: object, form: Format, trail: Trail, depth: int = 0) -> bool:
    """Tell whether a value without a declared type comes back equal, except that tuples become lists."""
    kind = type(value)
    if kind is dict:
        return _proves_dict(value, form, trail, depth)
    if kind is list or kind is tuple:
        return _proves_items(value, form, trail, depth)
    return _proves_leaf(value, form, trail)


def _proves_dict(value: Any, form: Format, trail: Trail, depth: int) -> bool:
    for key, item in value.items():
        if type(key) is not str and (reason := form.refuses_key(key)):
            trail.append(reason)
            return False
        kind = type(item)
        if kind in SELF_EVIDENT or (kind is int and _LEAST <= item <= _MOST):
            continue
        if kind is dict or kind is list or kind is tuple:
            if depth >= DEEPEST:
                trail.append(_TOO_DEEP)
            elif proves_exact(item, form, trail, depth + 1):
                continue
        elif _proves_leaf(item, form, trail):
            continue
        trail.append(key_step(key))
        return False
    return True


def _proves_items(value: Any, form: Format, trail: Trail, depth: int) -> bool:
    kinds = set(map(type, value))
    if kinds <= SELF_EVIDENT or (kinds == {float} and all(map(math.isfinite, value))):
        return True
    for index, item in enumerate(value):
        kind = type(item)
        if kind in SELF_EVIDENT or (kind is int and _LEAST <= item <= _MOST):
            continue
        if kind is dict or kind is list or kind is tuple:
            if depth >= DEEPEST:
                trail.append(_TOO_DEEP)
            elif proves_exact(item, form, trail, depth + 1):
                continue
        elif _proves_leaf(item, form, trail):
            continue
        trail.append(f"[{index}]")
        return False
    return True


def _proves_leaf(value: object, form: Format, trail: Trail) -> bool:
    kind = type(value)
    if kind in SELF_EVIDENT:
        return True
    if kind is int and isinstance(value, int) and _LEAST <= value <= _MOST:
        return True
    if kind is float and isinstance(value, float) and math.isfinite(value):
        return True
    if reason := form.refuses(value):
        trail.append(reason)
        return False
    return True


def same(sent: object, back: object, trail: Trail, depth: int = 0) -> bool:
    """Tell whether what came back equals what was sent, in value and in type, at every place."""
    kind = type(sent)
    if kind is not type(back) and not (kind is tuple and type(back) is list):
        trail.append(
            f"is a {kind.__name__} and would come back as {type(back).__name__}; pass the declared type itself"
        )
        return False
    if kind in _EQUAL_WHEN_EQUAL:
        return sent == back or _differs(sent, trail)
    if kind is float and sent == back and sent:
        return True  # Zeros have signs, and NaN differs from itself: their bits are compared below.
    if depth > DEEPEST:
        trail.append(_TOO_DEEP)
        return False
    if kind is dict:
        return _same_dict(sent, back, trail, depth)
    if kind is list or issubclass(kind, tuple):
        return _same_items(sent, back, trail, depth)
    if kind is set or kind is frozenset:
        return _same_set(sent, back, trail)
    names = field_names(kind)
    if names is None:
        return _token(sent) == _token(back) or _differs(sent, trail)
    for name in names:
        if not same(getattr(sent, name), getattr(back, name), trail, depth + 1):
            trail.append(key_step(name))
            return False
    return True


def field_names(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of a Struct, a dataclass or an attrs class; None for every other class."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return tuple(attribute.name for attribute in attributes)
    return None


def children(value: object) -> Iterable[tuple[str, object]]:
    """Yield the parts of a container with the step that leads to each."""
    kind = type(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield f" key {shown(key)}", key
            yield key_step(key), item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield "[...]", item
    else:
        for name in field_names(kind) or ():
            yield key_step(name), getattr(value, name)


def key_step(key: object) -> str:
    """Return the step to a key: ``.name``, or ``['a b']`` for what is no short identifier."""
    if type(key) is str and key.isidentifier() and key.isascii() and len(key) <= 80:
        return f".{key}"
    return f"[{shown(key)}]"


def place_of(root: str, trail: Trail) -> str:
    place = root + "".join(reversed(trail[1:]))
    return place if len(place) <= _LONGEST_PLACE else place[:_LONGEST_PLACE] + "…"


def _differs(sent: object, trail: Trail) -> bool:
    if isinstance(sent, dt.datetime | dt.time):
        remedy = "use one with a plain offset, best by astimezone(datetime.UTC)"
    else:
        remedy = "convert it before sending"
    trail.append(f"is a {type(sent).__name__} that would come back with another value; {remedy}")
    return False


def _same_dict(sent: Any, back: Any, trail: Trail, depth: int) -> bool:
    if len(sent) != len(back):
        lost = next((key for key in sent if type(key) is str and key not in back), None)
        if lost is None:
            return _differs(sent, trail)
        trail.append("is no field of the declared type and would be lost; declare it or leave it out")
        trail.append(key_step(lost))
        return False
    # Decoding keeps the order of the keys, except where a TypedDict or a repeated key makes another dict of it.
    for (key, item), (key_back, item_back) in zip(sent.items(), back.items(), strict=True):
        if not same(key, key_back, trail, depth + 1):
            trail.append(f" key {shown(key)}")
            return False
        if not same(item, item_back, trail, depth + 1):
            trail.append(key_step(key))
            return False
    return True


def _same_items(sent: Any, back: Any, trail: Trail, depth: int) -> bool:
    # The plain iterators, because a subclass may have replaced its own.
    base = list if type(sent) is list else tuple
    base_back = list if type(back) is list else tuple
    if base.__len__(sent) != base_back.__len__(back):
        return _differs(sent, trail)
    pairs = zip(base.__iter__(sent), base_back.__iter__(back), strict=True)
    for index, (item, item_back) in enumerate(pairs):
        if not same(item, item_back, trail, depth + 1):
            trail.append(f"[{index}]")
            return False
    return True


def _same_set(sent: Any, back: Any, trail: Trail) -> bool:
    tokens = {_token(item) for item in back}
    for item in sent:
        if _token(item) not in tokens:
            _differs(item, trail)
            trail.append("[...]")
            return False
    return len(sent) == len(back) or _differs(sent, trail)


class _Unknown:
    """Equal to nothing else: the token of what cannot be compared."""


def _token(value: Any) -> object:
    """Return something made of trusted types alone that is equal exactly where values are the same."""
    kind = type(value)
    if kind in _EQUAL_WHEN_EQUAL and kind is not bytearray:
        return kind, value
    if kind is float:
        return kind, struct.pack("<d", value)
    if kind is decimal.Decimal:
        return kind, value.as_tuple()
    if kind is uuid.UUID:
        return kind, value.int
    if kind is dt.datetime or kind is dt.time:
        return kind, value.replace(tzinfo=None), value.fold, _zone_token(value.tzinfo)
    if isinstance(kind, enum.EnumMeta):
        return kind, id(value)  # A member is one object.
    if kind is frozenset:
        return kind, frozenset(map(_token, value))
    if issubclass(kind, tuple):
        return kind, tuple(map(_token, tuple.__iter__(value)))
    names = field_names(kind)
    if names is None:
        return _Unknown()
    return kind, tuple(_token(getattr(value, name)) for name in names)


def _zone_token(zone: dt.tzinfo | None) -> object:
    """Zones with rules come back as a bare offset, so only plain offsets without a name of their own are the same."""
    if zone is None:
        return None
    return (zone.utcoffset(None), zone.tzname(None)) if type(zone) is dt.timezone else _Unknown()
