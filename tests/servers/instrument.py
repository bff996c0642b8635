"""What all instruments share: a `with` block starts them and ends them, also if the start fails half-way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Instrument(ABC):
    """Something that a test starts and that must not outlive it."""

    @abstractmethod
    def start(self) -> Self:
        """Start it, and return when it can be used."""

    @abstractmethod
    def close(self) -> None:
        """End all of it, whatever its state. Closing twice is harmless."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
