"""What the pages about servers tell people to type does what they say."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import pytest

from jobq import Job, Queue, RedisStorage
from tests.servers.binaries import client_program
from tests.servers.fixtures import Starter

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "how-to" / f"redis{name}.md" for name in ("", "-data", "-servers")] + [DOCS / "reference/redis-keys.md"]
COMMAND = re.compile(r"^    (redis-cli (?:.*\\\n)*(?:.*\"\n(?:(?!    \").*\n)+    \" )?.*)$", re.MULTILINE)
"""One line, one with backslashes at its ends, or one with a script in quotes."""


def printed() -> list[str]:
    commands = [found for page in PAGES for found in COMMAND.findall(page.read_text(encoding="utf-8"))]
    # Those of a Cluster name hosts that are not here.
    return [command for command in commands if " -h node-1 " not in command]


async def leave_traces(url: str) -> None:
    """Have one job that has ended and one that is delayed, in the queue that the pages speak of."""
    queue = Queue[str, str](RedisStorage(url), name="emails")

    @queue.execute
    async def answer(job: Job[str]) -> str:
        return job.payload

    async with queue:
        await queue.enqueue_and_wait("email-1", "hello")
        await queue.enqueue("email-2", "later", delay=60)


def typed(command: str, port: int) -> str:
    """Run it as it stands, but for the port; `-e` makes an error of the server one of the command."""
    client = f"redis-cli -e -p {port}"
    piped = command.replace("xargs -r redis-cli", f"xargs -r {client}")
    whole = f'redis-cli() {{ command {client} "$@"; }}; set -o pipefail; {piped}'
    done = subprocess.run(
        ["bash", "-c", whole], capture_output=True, text=True, errors="replace", check=False, timeout=20
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.skipif(client_program("redis") is None, reason="redis-cli is not installed")
def test_every_command_that_is_printed_is_accepted(start: Starter) -> None:
    server = start.server("redis")
    commands = printed()
    [reset] = [command for command in commands if "RESETSTAT" in command]
    [removal] = [command for command in commands if "xargs" in command]

    typed(reset, server.port)
    asyncio.run(leave_traces(server.url))
    looks = [command for command in commands if command not in (reset, removal)]
    answers = {command.split("#")[0].strip(): typed(command, server.port) for command in looks}
    typed(removal, server.port)

    assert len(answers) >= 14
    assert answers["redis-cli ZCARD 'jobq:{emails}:later'"] == "1\n"
    assert "\nworker\n" in next(answer for command, answer in answers.items() if "EVAL_RO" in command)
    assert server.command("KEYS", "jobq:{emails}:*") == []
    assert "jobs" in server.command("ACL", "USERS")
