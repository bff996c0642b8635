"""One queue's jobs on a Redis server: each verb is one script, and every script may be sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Protocol

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
    STATES,
    TOKEN_SIZE,
    corrupt,
    micro,
    milli,
    read_claim,
    read_snapshot,
    tail,
    token_bytes,
)

_HELD = (Held.LOST, Held.HELD, Held.CANCEL_ASKED)
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
        answers = await self._run("add", arguments)
        return [self._snapshot(job.id, answer) for job, answer in zip(jobs, answers, strict=True)]

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        session, _, number = nonce.rpartition(".")
        arguments = (worker_id, milli(lease), min(limit, _TAKEN_AT_ONCE), session, number, self._clock.random_bytes(5))
        next_in, taken, rescued, longest = await self._run("claim", arguments)
        self._longest_sleep = min(self._longest_sleep, longest / 1e3)  # A server that lost its data must be told again.
        claims = []
        for id, raw in zip(taken[::2], taken[1::2], strict=True):
            # The script reads only the head of a record. If the rest is damaged, the job is left to its lease, and
            # whoever reads it is told; the others of this claim must not be lost with it.
            # So is one whose id is no UTF-8, since nobody could have added it.
            with suppress(StorageCorruptError, UnicodeDecodeError):
                claims.append(read_claim(id.decode(), raw))
        return Claimed(claims, _rescued(rescued), _seconds(next_in))

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        arguments: list[Part] = [milli(lease)]
        for id, token in claims:
            arguments += (id, token_bytes(token))
        answers = await self._run("extend", arguments)
        return [
            _HELD[answer] if isinstance(answer, int) else _problem(id, answer)
            for (id, _), answer in zip(claims, answers, strict=True)
        ]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        if not settlements:
            return []
        arguments: list[Part] = []
        for one in settlements:
            outcome = one.result if one.state is State.COMPLETED else one.error
            arguments += (one.id, token_bytes(one.token), NUMBERS[one.state], milli(one.ttl), milli(one.delay))
            arguments += (int(outcome is not None), outcome or b"")
        answers = await self._run("settle", arguments)
        return [
            SETTLED_ANSWERS.get(answer) or corrupt(one.id, f"it was settled as {answer}")
            if isinstance(answer, int)
            else _problem(one.id, answer)
            for one, answer in zip(settlements, answers, strict=True)
        ]

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        return self._state(id, await self._run("cancel", (id, nonce, int(running))))

    async def revive(self, id: str, nonce: str) -> State | None:
        return self._state(id, await self._run("revive", (id, nonce)))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        return self._state(id, await self._run("retain", (id, nonce, milli(ttl))))

    async def rescue(self, limit: int) -> Rescue:
        next_in, rescued = await self._run("rescue", (min(limit, _TAKEN_AT_ONCE),))
        return Rescue(_rescued(rescued), _seconds(next_in))

    async def prune(self, limit: int) -> int:
        """Do nothing, as a rule: the server itself removes a record when it has lingered."""
        removed = 0
        if self._counts_time:
            async for ids in self._ids():
                removed += await self._run("prune", ids[: limit - removed])
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        arguments: list[Part] = []
        for ref in refs:
            arguments += (ref.id, ref.generation or "", ref.reply_to or "")
        answers = await self._run("get", arguments)
        return [self._snapshot(ref.id, answer) for ref, answer in zip(refs, answers, strict=True)]

    async def wait_for_work(self, timeout: float) -> bool:
        if timeout > self._longest_sleep:
            next_in = _seconds(await self._run("rest", (milli(timeout),)))
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
        return bool(await self._run("hold", (name, owner, milli(ttl))))

    async def release(self, name: str, owner: str) -> None:
        await self._run("release", (name, owner))

    async def counts(self) -> Counts:
        counts: dict[State, int] = {}
        async for ids in self._ids():
            for state in await self._run("census", ids):
                if 0 < state < NUMBERS[State.CANCELLED]:
                    counts[STATES[state - 1]] = counts.get(STATES[state - 1], 0) + 1
        return counts

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        wanted: set[str] = set()
        async for ids in self._ids():
            states = await self._run("census", ids)
            wanted |= {id for id, found in zip(ids, states, strict=True) if found == NUMBERS[state] and id > after}
        found: list[Snapshot] = []
        for some in _chunks(sorted(wanted)[:limit]):
            answers = await self.get([Ref(id) for id in some])
            found += [answer for answer in answers if isinstance(answer, Snapshot) and answer.state is state]
        return found

    async def workers(self) -> Sequence[tuple[str, int]]:
        leases = await self._commands.call(self._stem, ("ZRANGE", f"{self._stem}leases", 0, -1))
        held: dict[str, int] = {}
        ids = _readable(lease[TOKEN_SIZE:] for lease in leases)
        for some in _chunks(ids):
            for answer in await self.get([Ref(id) for id in some]):
                if isinstance(answer, Snapshot) and answer.state is State.PROCESSING:
                    held[answer.worker_id or ""] = held.get(answer.worker_id or "", 0) + 1
        return sorted(held.items())

    async def _run(self, verb: str, arguments: Sequence[Part]) -> Any:
        self._clock.failpoint(f"{verb}.before")
        if self._counts_time:
            times: tuple[Part, Part] = (micro(self._clock.now()), micro(self._clock.monotonic()))
        else:
            times = ("", "")
        answer = await self._commands.run(self._stem, verb, times, arguments)
        self._clock.failpoint(f"{verb}.after")
        return answer

    def _snapshot(self, id: str, answer: Any) -> Snapshot | StorageError | None:
        if isinstance(answer, list):
            return _problem(id, answer)
        try:
            return read_snapshot(id, answer) if answer else None
        except StorageCorruptError as error:
            return error

    def _state(self, id: str, answer: Any) -> State | None:
        if isinstance(answer, list):
            raise _problem(id, answer)
        return STATES[answer - 1] if answer else None

    async def _ids(self) -> AsyncIterator[list[str]]:
        """Look through all of the queue's ids, some at a time; slow where the server keeps much else."""
        start = f"{self._stem}j:"
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in start) + "*"
        cursor, seen = 0, set[str]()
        while True:
            cursor, keys = await self._commands.call(self._stem, ("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE))
            ids = set(_readable(key[len(start.encode()) :] for key in keys)) - seen
            seen |= ids  # A scan may show a key more than once.
            for some in _chunks(sorted(ids)):
                yield some
            if int(cursor) == 0:
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
    return [Rescued(text(id), text(generation), STATES[state - 1], count) for id, generation, state, count in rows]


def _chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[start : start + _PAGE]) for start in range(0, len(ids), _PAGE))


def _ignore() -> None:
    """Hints were missed: whoever waits reads again within a second anyway."""


def _answered(answers: Sequence[AddAnswer] | BaseException) -> Sequence[AddAnswer]:
    if isinstance(answers, BaseException):
        raise answers
    return answers
