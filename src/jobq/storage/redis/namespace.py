"""One queue's jobs on a Redis server: each verb is one script, and every script may be sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from operator import index
from typing import Any, Protocol, TypeVar

from jobq.clock import Clock
from jobq.errors import StorageCorruptError, StorageError
from jobq.job import Counts, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import (
    AddAnswer,
    Claimed,
    GetAnswer,
    Held,
    HeldAnswer,
    Hint,
    Ref,
    Rescue,
    Rescued,
    SettleAnswer,
)
from jobq.storage.redis.hints import RedisWatch, decode_event
from jobq.storage.redis.packing import Command, Part
from jobq.storage.redis.records import (
    NUMBERS,
    SETTLED_ANSWERS,
    TOKEN_SIZE,
    corrupt,
    micro,
    milli,
    read_claim,
    read_snapshot,
    tail,
    token_bytes,
)
from jobq.storage.redis.trouble import garbled

A = TypeVar("A")

_HELD = {0: Held.LOST, 1: Held.HELD, 2: Held.CANCEL_ASKED}
_STATE = {number: state for state, number in NUMBERS.items()}
_FOUND = {0: None, **_STATE}
"""What scripts answer for a job in a state, or for none."""
_YES = {0: False, 1: True}
_PAGE = 500
_ADDED_AT_ONCE = 128
_TAKEN_AT_ONCE = 2000
"""Lua passes at most some 8,000 values to a command, and there are two for each job."""


class Commands(Protocol):
    """What a namespace needs of the connections; `slot_key` says to which server of a Cluster a command goes."""

    def call(self, slot_key: str, command: Command) -> Awaitable[Any]: ...

    def run(self, slot_key: str, verb: str, times: tuple[Part, Part], arguments: Sequence[Part]) -> Awaitable[Any]: ...

    async def subscribe(
        self, slot_key: str, channel: str, receive: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None: ...

    async def unsubscribe(self, channel: str) -> None: ...

    def events(self, stem: str) -> str: ...

    def wait_for_marker(self, key: str, timeout: float) -> Awaitable[bool]: ...


class RedisNamespace:
    """One queue's view of a server."""

    def __init__(self, commands: Commands, stem: str, clock: Clock, *, counts_time: bool) -> None:
        self._commands = commands
        self._stem = stem
        self._clock = clock
        self._counts_time = counts_time
        """Whether the clock is the test's, and the server is told its time."""
        self._events = commands.events(stem)
        self.forget()

    def forget(self) -> None:
        """Begin anew, since the connections are new, perhaps in another loop after the last was closed under us."""
        self._longest_sleep = 0.0
        self._watches: list[RedisWatch] = []
        self._subscribing = asyncio.Lock()

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        if len(jobs) <= _ADDED_AT_ONCE:
            return await self._add(jobs)
        # All parts begin in one turn of the loop, so that they leave over one connection in their order. The server is
        # busy with the first while the next ones are packed, and with the last while the first answers are read.
        parts = [self._add(jobs[first : first + _ADDED_AT_ONCE]) for first in range(0, len(jobs), _ADDED_AT_ONCE)]
        # All are awaited, also if one fails: then all are sent again, and what was added is known by its nonce.
        answers = await asyncio.gather(*parts, return_exceptions=True)
        return list(chain.from_iterable(_answered(some) for some in answers))

    async def _add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        if not jobs:
            return []
        arguments: list[Part] = []
        for job in jobs:
            arguments += (job.id, job.nonce, milli(job.delay), -job.priority, job.reply_to or "", tail(job))
        return await self._run(
            "add",
            arguments,
            lambda answers: [_snapshot(job.id, answer) for job, answer in zip(jobs, _items(answers), strict=True)],
        )

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        session, _, number = nonce.rpartition(".")
        arguments = (worker_id, milli(lease), min(limit, _TAKEN_AT_ONCE), session, number, self._clock.random_bytes(5))
        claimed, longest = await self._run("claim", arguments, _claimed)
        self._longest_sleep = min(self._longest_sleep, longest)  # A server that lost its data must be told again.
        return claimed

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        arguments: list[Part] = [milli(lease)]
        for id, token in claims:
            arguments += (id, token_bytes(token))
        return await self._run(
            "extend",
            arguments,
            lambda answers: [
                _HELD[answer] if isinstance(answer, int) else _problem(id, answer)
                for (id, _), answer in zip(claims, _items(answers), strict=True)
            ],
        )

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        if not settlements:
            return []
        arguments: list[Part] = []
        for one in settlements:
            outcome = one.result if one.state is State.COMPLETED else one.error
            arguments += (one.id, token_bytes(one.token), NUMBERS[one.state], milli(one.ttl), milli(one.delay))
            arguments += (int(outcome is not None), outcome or b"")
        return await self._run(
            "settle",
            arguments,
            lambda answers: [
                SETTLED_ANSWERS.get(answer) or corrupt(one.id, f"it was settled as {answer}")
                if isinstance(answer, int)
                else _problem(one.id, answer)
                for one, answer in zip(settlements, _items(answers), strict=True)
            ],
        )

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        return await self._change("cancel", id, (nonce, int(running)))

    async def revive(self, id: str, nonce: str) -> State | None:
        return await self._change("revive", id, (nonce,))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        return await self._change("retain", id, (nonce, milli(ttl)))

    async def rescue(self, limit: int) -> Rescue:
        return await self._run("rescue", (min(limit, _TAKEN_AT_ONCE),), _rescue)

    async def prune(self, limit: int) -> int:
        """Do nothing, as a rule: the server itself removes a record when it has lingered."""
        removed = 0
        if self._counts_time:
            async for ids in self._ids():
                removed += await self._run("prune", ids[: limit - removed], index)
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        answers: list[GetAnswer] = []
        while len(answers) < len(refs):
            answers += await self._get(refs[len(answers) :])
        return answers

    async def _get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        """Look at jobs, or at the first of them if they are large together."""
        arguments: list[Part] = []
        for ref in refs:
            arguments += (ref.id, ref.generation or "", ref.reply_to or "")
        return await self._run(
            "get",
            arguments,
            lambda answers: [
                _snapshot(ref.id, answer)
                for ref, answer in zip(refs[: len(answers) or 1], _items(answers), strict=True)
            ],
        )

    async def wait_for_work(self, timeout: float) -> bool:
        if timeout > self._longest_sleep:
            next_in = await self._run("rest", (milli(timeout),), _seconds)
            self._longest_sleep = timeout
            if next_in is not None and next_in < timeout:
                return True  # It came before the server knew of this sleeper, so that nobody was woken for it.
        await self._commands.wait_for_marker(f"{self._stem}wake", timeout)
        return True  # A marker may be lost, and without one nothing has been looked at.

    async def watch(self, handler: Callable[[Hint], None]) -> RedisWatch:
        channel, secret = self._clock.random_bytes(8).hex(), self._clock.random_bytes(12).hex()
        watch = RedisWatch(channel, secret, handler, self._end_watch)
        async with self._subscribing:
            try:
                await self._commands.subscribe(self._stem, self._reply_channel(watch), watch.receive_reply, watch.miss)
                if not self._watches:
                    await self._commands.subscribe(self._stem, self._events, self._receive_event, _ignore)
            except BaseException:
                await self._commands.unsubscribe(self._reply_channel(watch))
                raise
            self._watches.append(watch)
        return watch

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        return await self._run("hold", (name, owner, milli(ttl)), lambda answer: _YES[answer])

    async def release(self, name: str, owner: str) -> None:
        await self._run("release", (name, owner), lambda answer: _YES[answer])

    async def counts(self) -> Counts:
        counts: dict[State, int] = {}
        async for ids in self._ids():
            for _, state in await self._census(ids):
                if state is not None and state is not State.CANCELLED:
                    counts[state] = counts.get(state, 0) + 1
        return counts

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        wanted: set[str] = set()
        async for ids in self._ids():
            wanted |= {id for id, found in await self._census(ids) if found is state and id > after}
        found: list[Snapshot] = []
        for some in _chunks(sorted(wanted)[:limit]):
            answers = await self.get([Ref(id) for id in some])
            found += [answer for answer in answers if isinstance(answer, Snapshot) and answer.state is state]
        return found

    async def workers(self) -> Sequence[tuple[str, int]]:
        leases = await self._commands.call(self._stem, ("ZRANGE", f"{self._stem}leases", 0, -1))
        held: dict[str, int] = {}
        ids = _read("ZRANGE", leases, lambda leases: _readable(lease[TOKEN_SIZE:] for lease in _items(leases)))
        for some in _chunks(ids):
            for answer in await self.get([Ref(id) for id in some]):
                if isinstance(answer, Snapshot) and answer.state is State.PROCESSING:
                    held[answer.worker_id or ""] = held.get(answer.worker_id or "", 0) + 1
        return sorted(held.items())

    async def _census(self, ids: Sequence[str]) -> list[tuple[str, State | None]]:
        return await self._run(
            "census",
            ids,
            lambda answers: [(id, _FOUND[number]) for id, number in zip(ids, _items(answers), strict=True)],
        )

    async def _change(self, verb: str, id: str, arguments: Sequence[Part]) -> State | None:
        found = await self._run(
            verb, (id, *arguments), lambda answer: _problem(id, answer) if isinstance(answer, list) else _FOUND[answer]
        )
        if isinstance(found, StorageCorruptError):
            raise found
        return found

    async def _run(self, verb: str, arguments: Sequence[Part], read: Callable[[Any], A]) -> A:
        self._clock.failpoint(f"{verb}.before")
        if self._counts_time:
            times: tuple[Part, Part] = (micro(self._clock.now()), micro(self._clock.monotonic()))
        else:
            times = ("", "")
        answer = await self._commands.run(self._stem, verb, times, arguments)
        self._clock.failpoint(f"{verb}.after")
        return _read(verb, answer, read)

    async def _ids(self) -> AsyncIterator[list[str]]:
        """Look through all of the queue's ids, some at a time; slow where the server keeps much else."""
        start = f"{self._stem}j:"
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in start) + "*"
        cursor, seen = 0, set[str]()
        while True:
            answer = await self._commands.call(self._stem, ("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE))
            cursor, keys = _read("SCAN", answer, _scanned)
            ids = set(_readable(key[len(start.encode()) :] for key in keys)) - seen
            seen |= ids  # A scan may show a key more than once.
            for some in _chunks(sorted(ids)):
                yield some
            if cursor == 0:
                return

    def _reply_channel(self, watch: RedisWatch) -> str:
        return f"{self._stem}reply:{watch.channel}"

    def _receive_event(self, message: bytes) -> None:
        hint = decode_event(message)
        if hint is not None:
            for watch in list(self._watches):
                watch.receive_event(hint)

    async def _end_watch(self, watch: RedisWatch) -> None:
        async with self._subscribing:
            if watch not in self._watches:
                return  # Of a loop that was closed.
            self._watches.remove(watch)
            await self._commands.unsubscribe(self._reply_channel(watch))
            if not self._watches:
                await self._commands.unsubscribe(self._events)


def _read(asked: str, answer: Any, read: Callable[[Any], A]) -> A:
    """Read an answer; what is none to what was asked, and thus comes of no script of ours, is told as such."""
    try:
        return read(answer)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise garbled(asked) from error


def _items(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise TypeError("no list")
    return answer


def _snapshot(id: str, answer: Any) -> Snapshot | StorageError | None:
    if isinstance(answer, list):
        return _problem(id, answer)
    try:
        return None if answer == b"" else read_snapshot(id, answer)
    except StorageCorruptError as error:
        return error


def _claimed(answer: Any) -> tuple[Claimed, float]:
    """Return what was claimed, and for how long the server believes that anybody sleeps."""
    next_in, taken, rescued, longest = _items(answer)
    claims = []
    for id, raw in zip(taken[::2], taken[1::2], strict=True):
        # The script reads only the head of a record. If the rest is damaged, the job is left to its lease, and
        # whoever reads it is told; the others of this claim must not be lost with it.
        # So is one whose id is no UTF-8, since nobody could have added it.
        with suppress(StorageCorruptError, UnicodeDecodeError):
            claims.append(read_claim(id.decode(), raw))
    return Claimed(claims, _rescued(rescued), _seconds(next_in)), longest / 1e3


def _rescue(answer: Any) -> Rescue:
    next_in, rescued = _items(answer)
    return Rescue(_rescued(rescued), _seconds(next_in))


def _scanned(answer: Any) -> tuple[int, list[bytes]]:
    cursor, keys = _items(answer)
    if not all(isinstance(key, bytes) for key in _items(keys)):
        raise TypeError("no keys")
    return int(cursor), keys


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _readable(ids: Iterable[bytes]) -> list[str]:
    """Leave out what can be no id: whoever wrote it was not jobq."""
    found = []
    for id in ids:
        with suppress(UnicodeDecodeError):
            found.append(id.decode())
    return found


def _problem(id: str, answer: Any) -> StorageCorruptError:
    problem = str(answer[0]) if isinstance(answer[0], Exception) else text(answer[0])
    if "WRONGTYPE" in problem:
        return StorageCorruptError(
            f"job {id!r}: other software wrote to a key of its queue: {problem}; remove that key"
        )
    return corrupt(id, problem)


def _seconds(micros: int) -> float | None:
    return None if micros < 0 else micros / 1e6


def _rescued(rows: Iterable[list[Any]]) -> list[Rescued]:
    return [Rescued(text(id), text(generation), _STATE[state], index(count)) for id, generation, state, count in rows]


def _chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[start : start + _PAGE]) for start in range(0, len(ids), _PAGE))


def _ignore() -> None:
    """Hints were missed: whoever waits reads again within a second anyway."""


def _answered(answers: Sequence[AddAnswer] | BaseException) -> Sequence[AddAnswer]:
    if isinstance(answers, BaseException):
        raise answers
    return answers
