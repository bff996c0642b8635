"""Serdes: a value to bytes and back, exact or refused, and never by pickle.

msgspec alone would turn NaN into null, sets into lists, int keys, datetimes and bytes into text, without a word. Here
what would not come back equal is a `SerializationError` that names the place and the remedy. Only a tuple may come back
as a list. Without a type the value's own types prove that; with one, what was written is decoded and compared.

Both serdes raise nothing but `SerializationError`, except MemoryError. They hold no state and may be used from threads.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, Generic, NoReturn, Protocol, TypeVar, overload

import msgspec

from jobq._exact import DECLARE, DEEPEST, SELF_EVIDENT, Format, Trail, children, place_of, proves_exact, same
from jobq.checks import shown
from jobq.errors import ConfigError, SerializationError

T = TypeVar("T")

# Under the 4,300 digits that Python and msgspec read.
_JSON_INT_BITS = 14_000
_SHOWN = 200


class Serde(Protocol[T]):
    """Turns values into bytes and back. Implementations must give back what they were given, or raise.

    Example:
        >>> class Latin:
        ...     def serialize(self, value: str) -> bytes:
        ...         return value.encode("latin-1")
        ...     def deserialize(self, data: bytes) -> str:
        ...         return data.decode("latin-1")
        >>> serde: Serde[str] = Latin()
        >>> serde.deserialize(serde.serialize("é"))
        'é'
    """

    def serialize(self, value: T) -> bytes: ...

    def deserialize(self, data: bytes) -> T: ...


class _MsgspecSerde(Generic[T]):
    """What both formats share; a subclass names its codec and what it keeps."""

    _codec: Any
    _format: Format

    def __init__(self, type: object, root: str) -> None:
        self._root = root
        self._encode: Callable[[object], bytes] = self._codec.Encoder().encode
        self._typed = type is not None and type is not Any and type is not object
        # Values of these types come back equal whenever they can be encoded at all, so that they need no proof.
        self._evident = frozenset(kind for kind in SELF_EVIDENT if kind is type or not self._typed)
        if self._typed:
            ensure_decodable(type)
        try:
            self._decode = self._codec.Decoder(type if self._typed else Any).decode
        except Exception as error:
            raise ConfigError(_undecodable(type, error)) from error

    def serialize(self, value: T) -> bytes:
        """Encode a value that will come back equal.

        Raises:
            SerializationError: it would not; the message names the place and the remedy.
        """
        trail: Trail = []
        try:
            if type(value) in self._evident:
                return self._encode(value)
            if not self._typed:
                if proves_exact(value, self._format, trail):
                    return self._encode(value)
            else:
                data = self._encode(value)
                if same(value, self._decode(data), trail):
                    return data
        except MemoryError:
            raise
        except Exception as error:
            self._refuse(value, error)
        raise SerializationError(f"{place_of(self._root, trail)}: {trail[0]}")

    def deserialize(self, data: bytes) -> T:
        """Decode bytes, into the declared type if there is one.

        Raises:
            SerializationError: they are not of this format or do not fit the type; the code is ``DESERIALIZATION``.
        """
        if not isinstance(data, bytes):
            raise _not_decoded(self._root, f"must be bytes, not {type(data).__name__}")
        try:
            value: T = self._decode(data)
        except MemoryError:
            raise
        except RecursionError as error:
            raise _not_decoded(self._root, "the bytes are nested too deeply to be decoded") from error
        except msgspec.DecodeError as error:
            raise _not_decoded(*_located(self._root, error)) from error
        except Exception as error:
            raise _not_decoded(self._root, f"decoding raised {type(error).__name__}") from error
        return value

    def _refuse(self, value: object, error: Exception) -> NoReturn:
        """Raise for a value that could not be encoded, or whose bytes do not fit the declared type."""
        if isinstance(error, RecursionError):
            raise SerializationError(f"{self._root}: is nested too deeply, or contains itself; flatten it") from error
        if isinstance(error, msgspec.DecodeError):
            place, reason = _located(self._root, error)
            remedy = "pass a value of the declared type"
            if "got `null`" in reason:
                remedy += "; NaN and infinity become null: use None where declared, or leave it out"
            raise SerializationError(f"{place}: does not fit its declared type: {reason}; {remedy}") from error
        place, part, cause = self._culprit(value, error)
        raise SerializationError(f"{place}: {_unencodable(part, cause)}") from error

    def _culprit(self, value: object, error: Exception) -> tuple[str, object, Exception]:
        """Descend to the innermost part that cannot be encoded, by trying each."""
        place = self._root
        for _ in range(DEEPEST):  # Bounded, because a value may contain itself.
            step = self._failing_step(value)
            if step is None:
                break
            place, value, error = place + step[0], step[1], step[2]
        return place, value, error

    def _failing_step(self, value: object) -> tuple[str, object, Exception] | None:
        try:
            parts = list(children(value))
        except Exception:  # What raised in the encoder may raise here as well.
            return None
        for step, part in parts:
            try:
                self._encode(part)
            except MemoryError:
                raise
            except Exception as error:
                return step, part, error
        return None


class _JsonFormat:
    def refuses(self, value: object) -> str | None:
        if type(value) is int:
            if value.bit_length() <= _JSON_INT_BITS:
                return None
            return "is an int of more than 4,000 digits; send it as text"
        if type(value) is float:
            return "is NaN or infinite, which JSON cannot hold; use None or leave it out"
        if type(value) is bytes:
            return f"is bytes, which would come back as text; {DECLARE}, or use MsgpackSerde"
        return _unkept(value)

    def refuses_key(self, key: object) -> str | None:
        return f"has a key of type {type(key).__name__}, which would not come back; use str keys"


class _MsgpackFormat:
    def refuses(self, value: object) -> str | None:
        if type(value) is int:
            return "is an int beyond 64 bits; send it as text, or use JsonSerde"
        if type(value) is float or type(value) is bytes:
            return None
        if type(value) is dt.datetime and value.tzinfo is dt.UTC and not value.fold:
            return None
        return _unkept(value)

    def refuses_key(self, key: object) -> str | None:
        if type(key) is bytes or (type(key) is int and -(2**63) <= key < 2**64):
            return None
        return f"has a key of type {type(key).__name__} that may not come back; use str keys"


class JsonSerde(_MsgspecSerde[T]):
    """JSON. With a type, payloads are decoded into it and checked.

    ``root`` is what messages call the value, such as ``"payload"``.

    Raises:
        ConfigError: msgspec cannot decode the type.

    Example:
        >>> JsonSerde().serialize({"to": "a@example.com", "tries": 3})
        b'{"to":"a@example.com","tries":3}'
        >>> JsonSerde(set[int]).deserialize(b"[1]")
        {1}
        >>> JsonSerde(root="payload").serialize({"items": [1, float("nan")]})
        Traceback (most recent call last):
            ...
        jobq.errors.SerializationError: payload.items[1]: is NaN or infinite, which JSON cannot hold; use None or \
leave it out
    """

    _codec = msgspec.json
    _format = _JsonFormat()

    @overload
    def __init__(self: JsonSerde[Any], type: None = None, *, root: str = "value") -> None: ...

    @overload
    def __init__(self, type: type[T], *, root: str = "value") -> None: ...

    @overload
    def __init__(self: JsonSerde[Any], type: object, *, root: str = "value") -> None: ...

    def __init__(self, type: object = None, *, root: str = "value") -> None:
        super().__init__(type, root)


class MsgpackSerde(_MsgspecSerde[T]):
    """MessagePack: smaller than JSON, and it keeps bytes, int keys, NaN and infinity without a type.

    Raises:
        ConfigError: msgspec cannot decode the type.

    Example:
        >>> serde = MsgpackSerde()
        >>> serde.deserialize(serde.serialize({"image": bytes([0, 255])}))
        {'image': b'\\x00\\xff'}
    """

    _codec = msgspec.msgpack
    _format = _MsgpackFormat()

    @overload
    def __init__(self: MsgpackSerde[Any], type: None = None, *, root: str = "value") -> None: ...

    @overload
    def __init__(self, type: type[T], *, root: str = "value") -> None: ...

    @overload
    def __init__(self: MsgpackSerde[Any], type: object, *, root: str = "value") -> None: ...

    def __init__(self, type: object = None, *, root: str = "value") -> None:
        super().__init__(type, root)


def serde_for(type: object, *, root: str = "value") -> JsonSerde[Any]:
    """Return the serde a queue uses for a type; None, Any and object mean no type.

    Raises:
        ConfigError: msgspec cannot decode the type.

    Example:
        >>> serde_for(tuple[int, str]).deserialize(b'[1, "a"]')
        (1, 'a')
    """
    return JsonSerde(type, root=root)


def ensure_decodable(type: object) -> None:
    """Refuse a type that msgspec cannot decode.

    Raises:
        ConfigError: names the type and the part that cannot be decoded.

    Example:
        >>> ensure_decodable(dict[str, list[int]])
        >>> ensure_decodable(complex)
        Traceback (most recent call last):
            ...
        jobq.errors.ConfigError: type <class 'complex'>: complex cannot be decoded by msgspec; use a msgspec Struct, \
a dataclass, a TypedDict or builtin types, or pass a serde
    """
    try:
        msgspec.json.Decoder(type)
        pending: list[object] = [msgspec.inspect.type_info(type)]
    except Exception as error:
        raise ConfigError(_undecodable(type, error)) from error
    # msgspec accepts any class here, hoping for a decoding hook; types may refer to themselves.
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, tuple):
            pending.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.CustomType) and node.cls is not object:
                raise ConfigError(_undecodable(type, node.cls.__name__))
            pending.extend(getattr(node, name) for name in node.__struct_fields__ if name != "default")


def _undecodable(type: object, why: object) -> str:
    text = why if isinstance(why, str) else shown(why)
    return (
        f"type {shown(type)}: {text} cannot be decoded by msgspec; "
        "use a msgspec Struct, a dataclass, a TypedDict or builtin types, or pass a serde"
    )


def _unkept(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, str | int | float | bytes | list | dict | tuple):
        return f"is a {name}, a subclass that would come back as its base; convert it, or {DECLARE}"
    if isinstance(value, set | frozenset):
        return f"is a {name}, which would come back as a list; use a list, or {DECLARE}"
    return f"is a {name}, which cannot come back without a type; {DECLARE}, or send plain values"


def _unencodable(part: object, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "has a lone surrogate, which is no valid text; replace it, or send the bytes"
    if isinstance(error, RecursionError):
        return "is nested too deeply, or contains itself; flatten it"
    return f"a {type(part).__name__} cannot be encoded ({type(error).__name__}); send plain values or a declared type"


def _located(root: str, error: msgspec.DecodeError) -> tuple[str, str]:
    """Split msgspec's message into the place and a reason that quotes no value."""
    reason, _, path = str(error).partition(" - at `")
    reason = re.sub(r"(Invalid (?:enum )?value) .*", r"\1", reason, flags=re.DOTALL)[:_SHOWN]
    steps = re.search(r"\$(.*?)`?$", path)
    place = root + (steps.group(1)[:_SHOWN] if steps else "")
    return (f"{place} key" if path.startswith("key`") else place), reason


def _not_decoded(place: str, reason: str) -> SerializationError:
    return SerializationError(
        f"{place}: cannot be decoded: {reason}; check that producer and worker use the same serde and type",
        code="DESERIALIZATION",
    )
