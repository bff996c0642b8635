"""Packing: what a server reads is what was meant, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobq.storage.redis.packing import Command, pack

PARTS = st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.floats(allow_nan=False)


@given(st.lists(PARTS, min_size=1).map(tuple))
def test_a_packed_command_is_an_array_of_byte_strings(command: Command) -> None:
    pieces = [part if isinstance(part, bytes) else str(part).encode() for part in command]

    assert pack(command) == b"*%d\r\n" % len(pieces) + b"".join(b"$%d\r\n%b\r\n" % (len(one), one) for one in pieces)


def test_sizes_are_those_of_the_bytes_and_not_of_the_letters() -> None:
    assert pack(("GET", "é", 7)) == b"*3\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n$1\r\n7\r\n"
