"""``jobq status``, ``get`` and ``cancel``: open the storage, ask one thing, print the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from rich.console import Console
from rich.text import Text

from jobq import ErrorInfo, JobStatus, JsonSerde, Queue, State, open_storage
from jobq.cli.exits import CommandError, Exit
from jobq.cli.text import compact_json, plain, readable_json

A = TypeVar("A")

_COLOURS = {State.COMPLETED: "green", State.FAILED: "red", State.FAILING: "yellow", State.PROCESSING: "cyan"}
_DATABASE = "jobq.sqlite3"
"""What `FileStorage` keeps its jobs in."""
_CANCEL_EXITS = {"cancelled": Exit.DONE, "cancelling": Exit.DONE, "not_found": Exit.NOT_FOUND}


class Source(NamedTuple):
    """Which queue a command is about."""

    url: str
    queue: str


def status(source: Source, id: str, *, as_json: bool) -> int:
    """Print one look at a job."""
    found = _status(source, id)
    if as_json:
        print(compact_json(_as_builtins(found)))
    else:
        console = Console(highlight=False, markup=False, emoji=False)
        for label, value in _lines(found):
            style = _COLOURS.get(found.state, "") if label == "state" else ""
            console.print(Text.assemble((f"{label:<10} ", "dim"), (plain(value), style)), soft_wrap=True)
    return Exit.DONE


def get(source: Source, id: str, *, as_json: bool) -> int:
    """Print a job's result, or say why there is none."""
    found = _status(source, id)
    if found.state is State.FAILED:
        raise CommandError(f"job {_quoted(id)} failed: {_error_line(found.error)}", Exit.FAILED)
    if found.state is not State.COMPLETED:
        raise CommandError(f"job {_quoted(id)} has no result yet: it is {found.state.value}", Exit.NOT_NOW)
    if isinstance(found.result, Unreadable):
        raise CommandError(f"the result of job {_quoted(id)} is {found.result}; its own program can decode it")
    if as_json:
        print(compact_json({"id": found.id, "state": found.state.value, "result": found.result}))
    else:
        print(readable_json(found.result))
    return Exit.DONE


def cancel(source: Source, id: str, *, running: bool, as_json: bool) -> int:
    """Cancel a job, and print what was found."""
    answer = _ask(source, lambda queue: queue.cancel(id, running=running))
    exit = _CANCEL_EXITS.get(answer.status, Exit.NOT_NOW)
    if as_json:
        print(compact_json({"id": id, "status": answer.status}))
        return exit
    if exit is Exit.NOT_FOUND:
        raise CommandError(f"no job {_quoted(id)} in queue {source.queue!r}", exit)
    if exit is Exit.NOT_NOW:
        remedy = "; --running asks it to stop" if answer.status == "processing" else ""
        raise CommandError(f"job {_quoted(id)} was not cancelled: it is {answer.status}{remedy}", exit)
    print(answer.status)
    return exit


class Unreadable(msgspec.Struct, frozen=True):
    """A result that is not JSON: only the program that wrote it can decode it."""

    size: int

    def __str__(self) -> str:
        return f"{self.size} bytes that are not JSON"


class _AnyJson:
    """Decodes JSON of any type; other bytes become `Unreadable` instead of an error, so that the status still shows."""

    def serialize(self, value: object) -> bytes:
        return JsonSerde().serialize(value)

    def deserialize(self, data: bytes) -> object:
        try:
            return JsonSerde().deserialize(data)
        except Exception:
            return Unreadable(len(data))


def _status(source: Source, id: str) -> JobStatus[Any]:
    found = _ask(source, lambda queue: queue.get_status(id))
    if found is None:
        raise CommandError(f"no job {_quoted(id)} in queue {source.queue!r}", Exit.NOT_FOUND)
    return found


def _ask(source: Source, question: Callable[[Queue[Any, Any]], Awaitable[A]]) -> A:
    async def connect_and_ask() -> A:
        storage = open_storage(source.url)
        _check_place(source.url)
        queue = Queue[Any, Any](storage, name=source.queue, result_serde=_AnyJson())
        async with queue:
            return await question(queue)

    try:
        return asyncio.run(connect_and_ask())
    except KeyboardInterrupt:
        raise CommandError("interrupted", Exit.INTERRUPTED) from None


def _check_place(url: str) -> None:
    """Refuse what could hold no job, since opening it would make an empty storage there."""
    scheme, _, path, _, _ = urlsplit(url)
    if scheme == "memory":
        raise CommandError("memory:// lives inside one process; no other can look into it", Exit.USAGE)
    if scheme == "file" and not Path(unquote(path), _DATABASE).is_file():
        raise CommandError(f"there is no storage at {unquote(path)!r}: it has no file {_DATABASE}")


def _as_builtins(found: JobStatus[Any]) -> object:
    fields = msgspec.structs.asdict(found)
    fields["state"] = found.state.value
    if found.error is not None:
        fields["error"] = msgspec.structs.asdict(found.error)
    if isinstance(found.result, Unreadable):
        fields["result"] = None
        fields["unreadable_result_bytes"] = found.result.size
    return fields


def _lines(found: JobStatus[Any]) -> list[tuple[str, str]]:
    lines = [
        ("id", found.id),
        ("state", found.state.value),
        ("attempts", f"{found.attempts} of {found.max_attempts}"),
        ("created", _instant(found.created_at)),
    ]
    if found.state.waiting:
        lines.append(("due", _instant(found.run_at)))
    for label, instant in (("started", found.started_at), ("finished", found.finished_at)):
        if instant is not None:
            lines.append((label, _instant(instant)))
    if found.expires_at is not None:
        lines.append(("expires", _instant(found.expires_at)))
    if found.worker_id is not None:
        lines.append(("worker", found.worker_id))
    if found.state is State.COMPLETED:
        readable = not isinstance(found.result, Unreadable)
        lines.append(("result", compact_json(found.result) if readable else str(found.result)))
    if found.error is not None:
        lines.append(("error", _error_line(found.error)))
    return lines


def _error_line(error: ErrorInfo | None) -> str:
    if error is None:
        return "no error was stored"
    code = f" [{error.code}]" if error.code else ""
    return f"{error.type}: {error.message}{code}"


def _instant(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} seconds since 1970"


def _quoted(id: str) -> str:
    return f"'{plain(id)}'"
