"""The output: a table for people, or JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row

_WIDTH = 120


def machine(server: str | None = None) -> dict[str, str]:
    """Say where the figures come from; without that they mean nothing."""
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "sqlite" if server is None else "server": server or sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
        "loop": "asyncio, of the standard library",
        "command": shlex.join(["python", "-m", Path(sys.argv[0]).parent.name, *sys.argv[1:]]),
    }


def print_table(sections: Sequence[tuple[str, Sequence[Row]]], server: str | None = None) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)  # For a file: as wide as the table wants to be.
    for name, value in machine(server).items():
        console.print(f"[dim]{name:>8}[/dim]  {value}", highlight=False)
    every_row = [row for _, rows in sections for row in rows]
    if any(row.details for row in every_row):
        console.print(_details([row for row in every_row if row.details]))
    console.print(_targets(sections))


def print_json(sections: Sequence[tuple[str, Sequence[Row]]], server: str | None = None) -> None:
    found = [
        {
            "benchmark": name,
            "name": row.goal.name,
            "unit": row.goal.unit,
            "target": row.goal.target,
            "at_least": row.goal.at_least,
            "measured": row.measured,
            "values": list(row.values),
            "details": dict(row.details),
            "passed": row.passed,
        }
        for name, rows in sections
        for row in rows
    ]
    print(json.dumps({"machine": machine(server), "rows": found}, indent=2))


def measured(row: Row) -> str:
    """Return a row's figure with its unit."""
    return f"{_number(row.measured)} {row.goal.unit}"


def _details(rows: Sequence[Row]) -> Table:
    table = Table("what", *rows[0].details, caption="Milliseconds, but for the first two.")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.goal.name, *map(_number, row.details.values()))
    return table


def _targets(sections: Sequence[tuple[str, Sequence[Row]]]) -> Table:
    repeated = any(len(row.values) > 1 for _, rows in sections for row in rows)
    table = Table("what", "target", "measured", caption="Medians of 3 runs." if repeated else None)
    if repeated:
        table.add_column("of 3 runs")
    table.add_column("")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for _, rows in sections:
        for row in rows:
            table.add_row(*_cells(row, repeated=repeated))
        table.add_section()
    return table


def _cells(row: Row, *, repeated: bool) -> list[str]:
    goal = row.goal
    target = "" if goal.target is None else f"{'≥' if goal.at_least else '≤'} {_number(goal.target)} "
    spread = [f"{_number(min(row.values))} – {_number(max(row.values))}"] if repeated else []
    verdict = {True: "[green]pass[/green]", False: "[red]miss[/red]", None: ""}[row.passed]
    return [goal.name, f"{target}{goal.unit}", _number(row.measured), *spread, verdict]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
