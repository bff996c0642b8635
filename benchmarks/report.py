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


def machine() -> dict[str, str]:
    """Say where the figures come from; without that they mean nothing."""
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
        "loop": "asyncio, of the standard library",
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def print_table(sections: Sequence[tuple[str, Sequence[Row]]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)  # For a file: as wide as the table wants to be.
    for name, value in machine().items():
        console.print(f"[dim]{name:>8}[/dim]  {value}", highlight=False)
    table = Table("what", "target", "measured", "of 3 runs", "", caption="Medians of 3 runs after one to warm up.")
    for column in table.columns[1:4]:
        column.justify = "right"
    for _, rows in sections:
        for row in rows:
            table.add_row(*_cells(row))
        table.add_section()
    console.print(table)


def print_json(sections: Sequence[tuple[str, Sequence[Row]]]) -> None:
    found = [
        {
            "benchmark": name,
            "name": row.goal.name,
            "unit": row.goal.unit,
            "target": row.goal.target,
            "at_least": row.goal.at_least,
            "measured": row.measured,
            "values": list(row.values),
            "passed": row.passed,
        }
        for name, rows in sections
        for row in rows
    ]
    print(json.dumps({"machine": machine(), "rows": found}, indent=2))


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    goal = row.goal
    sign = "≥" if goal.at_least else "≤"
    spread = f"{_number(min(row.values))} – {_number(max(row.values))}"
    verdict = "[green]pass[/green]" if row.passed else "[red]miss[/red]"
    return goal.name, f"{sign} {_number(goal.target)} {goal.unit}", _number(row.measured), spread, verdict


def _number(value: float) -> str:
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
