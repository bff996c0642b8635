"""Packing: the same bytes with and without hiredis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobq.storage.redis.packing import Command, pack, plain_pack

PARTS = st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.floats(allow_nan=False)


@given(st.lists(PARTS, min_size=1).map(tuple))
def test_both_ways_to_pack_a_command_agree(command: Command) -> None:
    """Who has hiredis must not send anything else than who has not."""
    assert pack(command) == plain_pack(command)


def test_a_packed_command_is_an_array_of_byte_strings() -> None:
    """Sizes are those of the bytes, not of the letters."""
    assert pack(("GET", "é", 7)) == b"*3\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n$1\r\n7\r\n"
