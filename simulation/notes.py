"""Notes: what happened in a history, line by line, and which rules were broken."""

from __future__ import annotations

import asyncio
from collections import Counter


class Notes:
    """One history's notes. A line is put into words only when somebody reads it, which is seldom."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """What happened how often: the goals without which a simulation proves nothing."""
        self.broken: list[str] = []
        self._lines: list[tuple[float, str, tuple[object, ...]]] = []

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def write(self, who: str, *words: object) -> None:
        self._lines.append((self.now(), who, words))

    def demand(self, holds: bool, *rule: object) -> None:
        """Note a broken rule; the history goes on, so that all of them are told."""
        if not holds:
            self.broken.append(_sentence(rule))
            self.write("!!!!", *rule)

    @property
    def lines(self) -> list[str]:
        return [f"{at:10.4f} {who:<4} {_sentence(words)}" for at, who, words in self._lines]


def _sentence(words: tuple[object, ...]) -> str:
    return " ".join(map(str, words))
