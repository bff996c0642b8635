"""Both serdes give back exactly what they were given, or refuse it with a place and a remedy."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import struct
import uuid
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq._exact import DEEPEST
from jobq.errors import ConfigError, SerializationError
from jobq.serde import JsonSerde, MsgpackSerde, ensure_decodable, serde_for

BOTH = pytest.mark.parametrize("kind", [JsonSerde, MsgpackSerde])


class Color(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


class Item(msgspec.Struct):
    name: str
    when: dt.datetime
    price: Decimal = Decimal("1.00")


class Discounted(Item):
    percent: int = 0


@dataclasses.dataclass
class Order:
    id: uuid.UUID
    items: list[Item]
    tags: set[str]
    raw: bytes
    color: Color
    points: dict[str, Point]
    note: str | None = None
    share: float = 0.0


class Options(TypedDict):
    a: int


class Liar:
    """Claims to equal everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        raise RuntimeError

    def __reduce__(self) -> str:
        raise AssertionError("pickled")


class Text(str):
    __slots__ = ()


class Frozen(msgspec.Struct, frozen=True):
    a: int

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def order(**changes: Any) -> Order:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    first = Order(uuid.UUID(int=7), [Item("a", when)], {"x", "y"}, bytes(range(256)), Color.RED, {"p": Point(1, -0.0)})
    return dataclasses.replace(first, **changes)


def strictly_equal(sent: Any, back: Any) -> bool:
    """An independent, slow notion of equality: types too, bits of floats, and lists for tuples."""
    if type(sent) is tuple:
        sent = list(sent)
    if type(sent) is not type(back):
        return False
    if type(sent) is float:
        return struct.pack("<d", sent) == struct.pack("<d", back)
    if type(sent) is list:
        return len(sent) == len(back) and all(map(strictly_equal, sent, back))
    if type(sent) is dict:
        return strictly_equal(list(sent), list(back)) and strictly_equal(list(sent.values()), list(back.values()))
    return bool(sent == back)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def self_containing() -> list[Any]:
    value: list[Any] = [1]
    value.append({"me": value})
    return value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.decimals()
    | st.uuids()
    | st.sampled_from([Color.RED, Point(1, 2.0), Text("x"), {1}, "\ud800", "\0", -0.0, 2**64, -(2**63) - 1])
)
KEYS = st.text() | st.text() | st.integers() | st.none() | st.booleans() | st.binary() | st.floats() | st.just("\ud800")
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.dictionaries(KEYS, inner)
    ),
    max_leaves=12,
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@BOTH
@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(value=VALUES)
def test_any_value_comes_back_strictly_equal_or_is_refused(kind: Any, value: Any) -> None:
    """The central promise, over every kind of value at once."""
    serde = kind()

    try:
        data = serde.serialize(value)
    except SerializationError:
        return

    assert strictly_equal(value, serde.deserialize(data))


@BOTH
@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(value=PLAIN)
def test_plain_values_are_never_refused(kind: Any, value: Any) -> None:
    """Refusing everything would keep the promise too."""
    serde = kind()

    assert strictly_equal(value, serde.deserialize(serde.serialize(value)))


@BOTH
@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_typed_value_comes_back_strictly_equal_or_is_refused(kind: Any, value: Any) -> None:
    """A declared type changes how equality is proved, not the promise."""
    serde = kind(list[Any])

    try:
        data = serde.serialize([value])
    except SerializationError:
        return

    assert strictly_equal([value], serde.deserialize(data))


@BOTH
@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60), type=st.sampled_from([None, int, Order, Item, dict[str, float]]))
def test_any_bytes_decode_or_raise_the_typed_error(kind: Any, data: bytes, type: Any) -> None:
    """No other exception may reach a worker from bytes that somebody else wrote."""
    code = "DESERIALIZATION"

    try:
        kind(type).deserialize(data)
    except SerializationError as error:
        code = error.code

    assert code == "DESERIALIZATION"


@BOTH
@pytest.mark.parametrize(
    "value", [None, False, True, 0, 1, 1.0, -0.0, "", "\0", [], {}, 2**64 - 1, -(2**63), "x" * 10**7]
)
def test_falsy_and_extreme_values_round_trip(kind: Any, value: Any) -> None:
    """The empty ones are what sloppy code takes for nothing."""
    serde = kind()

    assert strictly_equal(value, serde.deserialize(serde.serialize(value)))


@BOTH
@pytest.mark.parametrize(
    ("value", "place", "remedy"),
    [
        ({"items": [0, {"when": dt.datetime(2026, 1, 1)}]}, "payload.items[1].when", "declare a type"),  # noqa: DTZ001
        ({"a b": {1, 2}}, "payload['a b']", "declare a type"),
        ({"a": {None: 1}}, "payload.a:", "use str keys"),
        ({"a": Decimal(1)}, "payload.a", "declare a type"),
        ([uuid.UUID(int=1)], "payload[0]", "declare a type"),
        ([Color.RED], "payload[0]", "declare a type"),
        ([Text("x")], "payload[0]", "convert it"),
        (Point(1, 2.0), "payload:", "convert it"),
        ({"a": "\ud800"}, "payload.a", "replace it"),
        ({"\ud800": 1}, "payload key", "replace it"),
        (object(), "payload:", "declare a type"),
        ({"a": lambda: None}, "payload.a", "send plain values"),
        ((item for item in ()), "payload:", "send plain values"),
        ({"a": [Liar()]}, "payload.a[0]", "send plain values"),
        (bytearray(b"x"), "payload:", "send plain values"),
        (self_containing(), "payload[1].me", "flatten it"),
        (nested(100_000), "payload[0][0]", "flatten it"),
    ],
)
def test_refusal_names_the_place_and_the_remedy(kind: Any, value: Any, place: str, remedy: str) -> None:
    """Whoever reads the message must be able to mend the payload without a debugger."""
    with pytest.raises(SerializationError) as caught:
        kind(root="payload").serialize(value)

    assert str(caught.value).startswith(place)
    assert remedy in str(caught.value)
    assert caught.value.code == "SERIALIZATION"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, b"x", {1: 2}])
def test_json_refuses_what_messagepack_keeps(value: Any) -> None:
    """What the format can hold decides, not the library's fear."""
    with pytest.raises(SerializationError, match=r"^value\.a"):
        JsonSerde().serialize({"a": value})

    packed = MsgpackSerde()
    assert strictly_equal({"a": value}, packed.deserialize(packed.serialize({"a": value})))


def test_json_keeps_ints_beyond_64_bits_and_messagepack_refuses_them() -> None:
    """Python's ints have no size; JSON's need none."""
    json = JsonSerde()

    assert json.deserialize(json.serialize([2**70, -(2**70)])) == [2**70, -(2**70)]
    with pytest.raises(SerializationError, match="64 bits"):
        MsgpackSerde().serialize(2**70)
    with pytest.raises(SerializationError, match="send it as text"):
        json.serialize(10**5000)


async def _coroutine() -> None: ...


@BOTH
def test_coroutine_is_refused(kind: Any) -> None:
    """A handler that forgets an await returns one."""
    coroutine = _coroutine()

    with pytest.raises(SerializationError, match="coroutine"):
        kind().serialize(coroutine)

    coroutine.close()


@BOTH
def test_declared_type_comes_back_whole(kind: Any) -> None:
    """With a type, everything that msgspec knows is kept: times, decimals, sets, bytes, enums, nested classes."""
    serde = kind(Order)

    back = serde.deserialize(serde.serialize(order()))

    assert back == order()
    assert type(back.items[0]) is Item
    assert type(back.points["p"]) is Point
    assert math.copysign(1.0, back.points["p"].y) == -1.0
    assert str(back.items[0].price) == "1.00"


@BOTH
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"share": 1}, "payload.share"),
        ({"note": Text("x")}, "payload.note"),
        ({"note": 5}, "payload.note"),
        ({"note": "\ud800"}, "payload.note"),
        ({"points": {"p": Point(1, 2)}}, "payload.points.p[1]"),
        ({"items": [Discounted("a", dt.datetime(2026, 1, 1, tzinfo=dt.UTC))]}, "payload.items[0]"),
        ({"items": [Item("a", dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")))]}, "payload.items[0].when"),
        ({"items": [{"name": "a"}]}, "payload.items[0]"),
        ({"raw": bytearray(b"x")}, "payload.raw"),
        ({"raw": Liar()}, "payload.raw"),
        ({"tags": ["x"]}, "payload.tags"),
        ({"tags": {Text("x")}}, "payload.tags[...]"),
    ],
)
def test_typed_refusal_names_the_place(kind: Any, changes: dict[str, Any], place: str) -> None:
    """A value that only looks like the declared type would come back as another."""
    with pytest.raises(SerializationError) as caught:
        kind(Order, root="payload").serialize(order(**changes))

    assert str(caught.value).startswith(place)


def test_offset_is_kept_by_json_and_refused_by_messagepack() -> None:
    """MessagePack stores instants: another offset would come back as UTC, equal to Python and yet another value."""
    when = dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    json = JsonSerde(dt.datetime)

    assert json.deserialize(json.serialize(when)).utcoffset() == dt.timedelta(hours=2)
    with pytest.raises(SerializationError, match="astimezone"):
        MsgpackSerde(dt.datetime).serialize(when)


@BOTH
def test_depth_of_the_limit_round_trips_and_one_more_does_not(kind: Any) -> None:
    """The limit is the same on every Python, whatever its own recursion limit."""
    serde = kind()

    assert serde.deserialize(serde.serialize(nested(DEEPEST))) == nested(DEEPEST)
    with pytest.raises(SerializationError, match="flatten it"):
        serde.serialize(nested(DEEPEST + 1))
    typed = kind(list[Any])
    assert typed.deserialize(typed.serialize(nested(DEEPEST))) == nested(DEEPEST)
    with pytest.raises(SerializationError, match="flatten it"):
        typed.serialize(nested(DEEPEST + 1))


def test_typed_nan_is_refused_with_its_remedy() -> None:
    """JSON writes null, which no float field takes."""
    with pytest.raises(SerializationError, match=r"^value\.share: .*NaN"):
        JsonSerde(Order).serialize(order(share=math.nan))


@BOTH
@pytest.mark.parametrize(("type", "value"), [(int, True), (float, 1), (int, 1.0), (bool, 1), (Any, Text("a"))])
def test_true_one_and_one_point_zero_differ(kind: Any, type: Any, value: Any) -> None:
    """They are equal to Python and different to everybody else."""
    with pytest.raises(SerializationError):
        kind(type).serialize(value)


@BOTH
def test_equality_of_strangers_is_never_asked(kind: Any) -> None:
    """A class that claims to equal everything is compared by its fields."""
    serde = kind(set[Frozen])

    assert {item.a for item in serde.deserialize(serde.serialize({Frozen(1)}))} == {1}
    with pytest.raises(SerializationError):
        kind(Frozen).serialize(Frozen(True))  # Passes no validation on the way in.


@BOTH
def test_key_that_the_typed_dict_lacks_is_named(kind: Any) -> None:
    """msgspec would drop it in silence."""
    with pytest.raises(SerializationError, match=r"^value\.extra: .*lost"):
        kind(Options).serialize({"a": 1, "extra": 2})


@BOTH
@pytest.mark.parametrize("type", [None, list[Any]])
def test_depth_neither_crashes_nor_leaks(kind: Any, type: Any) -> None:
    """Endless nesting arrives from handlers that return their own state, and from hostile bytes."""
    for value in (nested(100_000), self_containing()):
        with pytest.raises(SerializationError, match="flatten it"):
            kind(type).serialize(value)
    data = b"[" * 100_000 if kind is JsonSerde else b"\x91" * 100_000
    with pytest.raises(SerializationError) as caught:
        kind(type).deserialize(data)
    assert caught.value.code == "DESERIALIZATION"


@BOTH
def test_decoding_error_names_the_place_and_not_the_payload(kind: Any) -> None:
    """Error texts are stored and shown; payloads may hold secrets."""
    data = kind().serialize({"name": "a", "when": "s3cret", "price": "1"})

    with pytest.raises(SerializationError) as caught:
        kind(Item, root="payload").deserialize(data)

    assert caught.value.code == "DESERIALIZATION"
    assert "payload.when" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SerializationError) as caught:
        kind(Color).deserialize(kind().serialize("s3cret"))
    assert "s3cret" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("data", ["{}", None, bytearray(b"1"), memoryview(b"1"), 5])
def test_only_bytes_are_decoded(kind: Any, data: Any) -> None:
    """A backend that answers text has a defect that must not pass as a payload."""
    with pytest.raises(SerializationError, match="must be bytes"):
        kind().deserialize(data)


@BOTH
def test_exception_of_the_payload_itself_is_wrapped(kind: Any) -> None:
    """User code runs while encoding and decoding; what it raises must not leak."""

    class Moody(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise KeyError("boo")

    @dataclasses.dataclass
    class Picky:
        a: int

        def __post_init__(self) -> None:
            raise KeyError("boo")

    with pytest.raises(SerializationError):
        kind().serialize(Moody(a=1))
    with pytest.raises(SerializationError) as caught:
        kind(Picky).deserialize(kind().serialize({"a": 1}))
    assert caught.value.code == "DESERIALIZATION"


@pytest.mark.parametrize("type", [complex, list[Liar], dict[str, Liar], int | str | bytes, "Nowhere", list["Nowhere"]])  # type: ignore[name-defined]  # noqa: F821
def test_undecodable_type_is_a_config_error(type: Any) -> None:
    """It must be found at start, not by the first job."""
    for build in (ensure_decodable, serde_for, JsonSerde, MsgpackSerde):
        with pytest.raises(ConfigError, match="msgspec"):
            build(type)


@pytest.mark.parametrize("type", [None, Any, object, dict[str, object], Order, list[Item] | None])
def test_decodable_types_are_accepted(type: Any) -> None:
    """object within a type means anything, as in annotations of strict programs."""
    assert isinstance(serde_for(type), JsonSerde)
