"""How far the benchmarks are, on stderr: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.measure import Row
from benchmarks.report import measured

_REFRESHES = 2
"""Of the bar, in a second: drawing it takes time from what is measured."""


class Teller:
    """Tells which benchmark runs, and what was measured last."""

    def __init__(self, count: int) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            refresh_per_second=_REFRESHES,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=count, note="")
        self._started = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        self._started = time.perf_counter()
        self._bar.update(self._task, description=name, note="")
        self._print(f"{name} …", end=" ")

    def found(self, row: Row) -> None:
        self._bar.update(self._task, note=f"{row.goal.name}: {measured(row)}")

    def end(self) -> None:
        self._bar.advance(self._task)
        self._print(f"{time.perf_counter() - self._started:.0f} s")

    def _print(self, text: str, end: str = "\n") -> None:
        if not self._console.is_terminal:
            print(text, end=end, file=sys.stderr, flush=True)
