"""What a run has found, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path

import msgspec

from soak.checker import Verdict, lines_about
from soak.plan import Plan

_WIDTH = 52
_MOST_SHOWN = 5


def machine(server: str | None) -> dict[str, str]:
    """Say where the figures come from."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "storage": server or f"SQLite {sqlite3.sqlite_version}",
        "system": f"{platform.system()} {platform.release()}",
    }


def as_json(plan: Plan, verdict: Verdict, where: dict[str, str]) -> bytes:
    found = {
        "command": command(plan),
        "machine": where,
        "plan": plan,
        "passed": verdict.passed,
        "missed": verdict.missed,
        "counts": verdict.counts,
        "goals": verdict.goals,
        "seconds": verdict.seconds,
        "findings": verdict.findings,
    }
    return msgspec.json.format(msgspec.json.encode(found))


def as_text(plan: Plan, verdict: Verdict, where: dict[str, str]) -> str:
    lines = [command(plan), ", ".join(f"{name} {value}" for name, value in where.items()), ""]
    lines += [f"{name:<{_WIDTH}} {count:>10,}" for name, count in verdict.counts.items()]
    lines += ["", f"{'seen':<{_WIDTH}} {'times':>10}  at least"]
    for name, (seen, least) in verdict.goals.items():
        lines.append(f"{name:<{_WIDTH}} {seen:>10,}  {least:>8,}{'' if seen >= least else '   missed'}")
    lines += ["", *(f"{name:<{_WIDTH}} {seconds:>10.3f} s" for name, seconds in verdict.seconds.items())]
    return "\n".join(lines)


def trail(directory: Path, verdict: Verdict) -> str:
    """Return what is wrong, with the audit lines of the first jobs that it is about."""
    lines, numbers = [], list[int]()
    for number, text in verdict.findings:
        lines.append(text if number is None else f"job {number}: {text}")
        if number is not None and number not in numbers:
            numbers.append(number)
    for number in numbers[:_MOST_SHOWN]:
        lines += ["", f"job {number}:", *(f"    {text}" for text in lines_about(directory, number))]
    return "\n".join(lines)


def command(plan: Plan) -> str:
    """Return how to run the same again."""
    options = f"--storage {plan.storage} --minutes {plan.minutes:g} --jobs {plan.jobs} --seed {plan.seed}"
    return f"python -m soak {options}"
