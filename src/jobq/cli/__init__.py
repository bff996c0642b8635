"""The command ``jobq``: serve a queue, and look at jobs. Needs the extra ``cli``.

Read `application` first: one function per command. `serving` and `reading` do the work, `target` finds a queue in a
module, `text` makes what other people wrote safe to print, `exits` lists the exit codes. Only the public names of
`jobq` are used.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and end the process with the command's exit code."""
    try:
        from jobq.cli.application import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        print("jobq: the command line needs two more packages: pip install jobq[cli]", file=sys.stderr)
        sys.exit(1)
    sys.exit(run(sys.argv[1:]))
