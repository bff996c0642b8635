"""The scripts: one Lua file for each verb; where it says what it uses, those files are put in."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import NamedTuple

from jobq.storage.contract import LINGER, MOST_ADDRESSES, PUSHED_RESULT_LIMIT
from jobq.storage.redis.records import HEAD, HINT_KINDS, LAYOUT, NUMBERS, SETTLED_ANSWERS, START, START_SIZE, Record

_SHEBANG = re.compile(r"\A#!lua[^\n]*\n")
_NAME = re.compile(r"\b[A-Z][A-Z_]{2,}\b")
_USES = re.compile(r"^ *-- uses: ([a-z, ]+)$", re.MULTILINE)


CONSTANTS = {
    **{field.upper(): place for place, field in enumerate(Record._fields, 1)},
    **{state.name: number for state, number in NUMBERS.items()},
    **{f"{kind.name}_HINT": number for number, kind in HINT_KINDS.items()},
    **{f"SETTLED_{answer.name}": number for number, answer in SETTLED_ANSWERS.items()},
    "ACCEPTED": 10,
    "HEAD": f"'{HEAD}'",
    "LAYOUT": f"'{LAYOUT}'",
    "START": f"'{START}'",
    "START_SIZE": START_SIZE,
    "MOST_ADDRESSES": MOST_ADDRESSES,
    "MOST_BYTES": 4 * 2**20,
    "LARGE": 2**16,
    "LINGER": round(LINGER * 1e6),
    "PUSHED_RESULT_LIMIT": PUSHED_RESULT_LIMIT,
}
"""What the names in capitals in the Lua files mean."""


class Script(NamedTuple):
    """The text of a script, and the digest by which a server knows it."""

    verb: str
    text: str
    digest: str


def script(verb: str) -> Script:
    """Return the script of a verb."""
    return _SCRIPTS[verb]


def _made(verb: str) -> Script:
    body = _FILES[f"{verb}.lua"]
    shebang = _SHEBANG.match(body)
    if shebang is None or _USES.search(body) is None:
        raise RuntimeError(f"{verb}.lua must begin with a #!lua line and say what it uses")
    text = shebang[0] + _numbered(_USES.sub(_parts, body[shebang.end() :]))
    return Script(verb, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _parts(uses: re.Match[str]) -> str:
    return "\n".join(_FILES[f"_{name.strip()}.lua"] for name in uses[1].split(","))


def _numbered(text: str) -> str:
    """Put in the numbers that stand for names in capitals, outside of comments and texts."""
    lines = []
    for line in text.splitlines():
        code, comment, rest = line.partition("--")
        lines.append(_NAME.sub(lambda name: str(CONSTANTS.get(name[0], name[0])), code) + comment + rest)
    return "\n".join(lines)


# All at once: a program goes on when its files have been removed, replaced, or cannot be opened for a while.
_FILES = {
    file.name: file.read_text("utf-8") for file in resources.files(__package__).iterdir() if file.name.endswith(".lua")
}
_SCRIPTS = {name[:-4]: _made(name[:-4]) for name in _FILES if not name.startswith("_")}
