"""What other people wrote, made safe to print.

Ids, errors and results come from anybody: an escape sequence in them would recolour, overwrite or rename somebody's
terminal, and a line end would forge a second log line. Nothing here goes through rich's markup.
"""

from __future__ import annotations

import json


def plain(text: str) -> str:
    """Return the text on one line; what is not printable becomes its escape: ``\\x1b``, ``\\n``, ``\\u202e``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def compact_json(value: object) -> str:
    """Return ASCII JSON on one line, for programs."""
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")


def readable_json(value: object) -> str:
    """Return indented JSON for people: other scripts stay as they are, what is not printable is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A line end that stands here is one of the indentation: inside strings they are escaped already.
    return "".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]
