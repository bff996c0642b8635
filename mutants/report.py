"""What became of the mutants, as a table for people and as JSON for programs."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import msgspec

from mutants.gate import Judgement
from mutants.mutant import Mutant

_HEADINGS = ("mutant", "where", "what it breaks", "killed by", "seconds")


def as_text(judgement: Judgement) -> str:
    rows = [_HEADINGS]
    for verdict in judgement.verdicts:
        mutant, by = verdict.mutant, verdict.by.rpartition("::")[2] if verdict.killed else verdict.by
        fate = by if verdict.fate == "killed" else f"{verdict.fate.upper()}: {by}"
        rows.append((mutant.name, mutant.file, mutant.breaks, fate, f"{verdict.seconds:.1f}"))
    return _table(rows)


def as_list(mutants: Sequence[Mutant]) -> str:
    return _table(
        [
            ("mutant", "quick", "where", "what it breaks"),
            *((one.name, "quick" if one.quick else "", one.file, one.breaks) for one in mutants),
        ]
    )


def as_json(judgement: Judgement) -> bytes:
    found = {
        "passed": judgement.passed,
        "problem": judgement.problem,
        "python": platform.python_version(),
        "seconds": round(judgement.seconds, 1),
        "mutants": [
            {
                "name": verdict.mutant.name,
                "file": verdict.mutant.file,
                "breaks": verdict.mutant.breaks,
                "fate": verdict.fate,
                "by": verdict.by,
                "seconds": round(verdict.seconds, 2),
            }
            for verdict in judgement.verdicts
        ],
    }
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def summary(judgement: Judgement) -> str:
    """Return the outcome in a line."""
    if judgement.problem:
        return judgement.problem
    fates = [verdict.fate for verdict in judgement.verdicts]
    told = [
        f"{fates.count(fate)} {fate}" for fate in ("killed", "hung", "survived", "stale", "broken") if fate in fates
    ]
    return f"{len(fates)} mutants: {', '.join(told)}; {judgement.seconds:.0f} s"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
