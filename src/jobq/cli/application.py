"""The commands and their options, and the one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from jobq import JobQueueError
from jobq.cli import exits, reading, serving
from jobq.cli.exits import CommandError, Exit
from jobq.cli.text import plain

application = typer.Typer(
    name="jobq",
    help="Serve a job queue, and look at its jobs.",
    # \b keeps the lines as they are.
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exits.HELP),
    add_completion=False,
    rich_markup_mode=None,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id; after -- if it begins with a dash.")]
StorageUrl = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="JOBQ_STORAGE",
        metavar="URL",
        help="Such as file:///path/to/directory or redis://host:6379/0.",
    ),
]
QueueName = Annotated[str, typer.Option("--queue", envvar="JOBQ_QUEUE", metavar="NAME", help="The queue's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Whatever goes wrong is told in one line on stderr."""
    _make_streams_forgiving()
    command = typer.main.get_command(application)
    try:
        answer = command.main(args=list(arguments) or ["--help"], prog_name="jobq", standalone_mode=False)
        if sys.stdout is not None:  # It is None if it was closed from the beginning.
            sys.stdout.flush()
    except (SystemExit, BrokenPipeError):  # rich and typer turn a closed pipe into SystemExit.
        _forget_stdout()
        return _fail("the output was closed before everything was written", Exit.OUTPUT_CLOSED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", Exit.INTERRUPTED)
    except CommandError as error:
        return _fail(str(error), error.exit)
    except (JobQueueError, OSError) as error:
        return _fail(str(error) or type(error).__name__, Exit.ERROR)
    except Exception as error:
        return _fail(*_unexpected(error))
    if not arguments:
        return Exit.USAGE
    return answer if isinstance(answer, int) else Exit.DONE


@application.command()
def worker(
    target: Annotated[str, typer.Argument(metavar="MODULE:QUEUE", help="Such as app.tasks:queue.")],
    burst: Annotated[bool, typer.Option("--burst", help="End once nothing is left to do.")] = False,
) -> int:
    """Serve a queue until SIGTERM or SIGINT.

    MODULE is imported with the current directory on its path; QUEUE is a Queue in it, or a function without arguments
    that returns one.

    The first signal lets running jobs finish; a second one aborts at once, and other workers take the jobs over when
    their leases lapse.
    """
    return serving.serve(target, burst=burst)


@application.command()
def status(id: JobId, storage: StorageUrl, queue: QueueName = "default", json: AsJson = False) -> int:
    """Show where a job is."""
    return reading.status(reading.Source(storage, queue), id, as_json=json)


@application.command()
def get(id: JobId, storage: StorageUrl, queue: QueueName = "default", json: AsJson = False) -> int:
    """Print a job's result, as JSON."""
    return reading.get(reading.Source(storage, queue), id, as_json=json)


@application.command()
def cancel(
    id: JobId,
    storage: StorageUrl,
    queue: QueueName = "default",
    running: Annotated[bool, typer.Option("--running", help="Also ask a running job to stop.")] = False,
    json: AsJson = False,
) -> int:
    """Cancel a job that waits; with --running also one that runs."""
    return reading.cancel(reading.Source(storage, queue), id, running=running, as_json=json)


for _command in application.registered_commands:
    _command.epilog = application.info.epilog


def _fail(message: str, exit: Exit) -> int:
    with contextlib.suppress(OSError, ValueError):  # If nobody reads stderr either, the exit code still tells.
        print(f"jobq: {plain(message)}", file=sys.stderr, flush=True)
    return exit


def _unexpected(error: Exception) -> tuple[str, Exit]:
    """Tell typer's own errors, which are known by what they can do, since their class differs between versions."""
    words = getattr(error, "format_message", None)
    if callable(words):
        return f"{words()} (see jobq --help)", Exit.USAGE
    if type(error) is ImportError:  # An extra is missing; the message is a whole sentence.
        return str(error), Exit.ERROR
    return f"{type(error).__name__}: {error}", Exit.ERROR


def _make_streams_forgiving() -> None:
    """Let a stream that cannot encode a character print its escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Send what is still buffered to nowhere: the interpreter would complain of it at exit."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
