"""The offline check: reads the audit files of a run, and nothing else, and tells what was broken.

It reads every file once, in any order, into a `Ledger` of fixed size; what depends on order is decided by instants and
tokens. A second look at the workers' files finds when the orphans of killed workers began again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from jobq import State
from soak.audit import Line, Source, sources
from soak.ledger import STATES, Ledger, Mark, add_one, doubled, lost, unexpected
from soak.plan import Plan
from soak.recovery import Orphan, Orphans, Quiet, Recovery, recoveries
from soak.troubles import Troubles
from soak.work import Manner, manner_of

_MOST_TOLD = 100
"""Findings that are kept in words; all are counted."""
_SLACK = 2.0
"""Seconds beside the lease within which an orphan must run again, unless more was in trouble than its worker."""
_GRACE = 1_000_000
"""Microseconds after a trouble of the storage for which what is late is still put down to it."""
_BAD = ("lost", "doubled", "unexpected", "never accepted", "waiters without an answer", "recovered too late")
"""What fails a run."""
Finding = tuple[int | None, str]
"""The number of a job, if it is about one, and what is wrong."""


class Verdict(msgspec.Struct):
    """What the check found."""

    counts: dict[str, int] = {}
    goals: dict[str, tuple[int, int]] = {}
    """By name: how often it was seen, and how often it must be."""
    seconds: dict[str, float] = {}
    findings: list[Finding] = []

    @property
    def missed(self) -> list[str]:
        return [name for name, (seen, least) in self.goals.items() if seen < least]

    @property
    def passed(self) -> bool:
        return not any(self.counts[name] for name in _BAD) and not self.missed


def check(directory: Path) -> Verdict:
    """Check a run from its audit files."""
    return Checker(Plan.read(directory), sources(directory)).verdict()


class Checker:
    """One check."""

    def __init__(self, plan: Plan, audit: Sequence[Source]) -> None:
        self._plan = plan
        self._audit = audit
        self._ledger = Ledger(plan.jobs)
        self._seen: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._findings: list[Finding] = []
        self._struck: dict[str, int] = {}
        self._troubles = Troubles()
        self._orphans: list[Orphan] = []
        self._waits: dict[int, int] = {}
        """Waits that were not answered yet: the number of the job, and since when."""
        self._answers: list[tuple[int, int, int]] = []
        """Of which job, when the waiter asked, and when it was answered."""
        self._stalled: Counter[str] = Counter()

    def verdict(self) -> Verdict:
        roles: dict[str, Callable[[Source], None]] = {
            "producer": self._read_producer,
            "waiter": self._read_waiter,
            "worker": self._read_worker,
            "reaper": self._read_reaper,
            "surveyor": self._read_surveyor,
        }
        for source in self._audit:
            if source.role == "nemesis":
                self._read_nemesis(source)
        for source in self._audit:
            if source.role in roles:
                roles[source.role](source)
        self._judge_jobs()
        self._judge_waiters()
        return self._sum_up(recoveries(self._orphans, self._audit, Quiet(self._troubles.everybodys), _GRACE))

    # Reading.

    def _read_nemesis(self, source: Source) -> None:
        for line in source.lines():
            self._troubles.follow(line)
            match line.fact:
                case "terminated":
                    self._seen[line.fact] += 1
                case "killed":
                    self._struck.setdefault(line.values[0], line.instant)
                case "died":
                    self._died(line)
                case "cut" | "reconnected":
                    self._seen[line.fact] += int(line.values[0])
                case "left" if line.values[0] != "0":
                    self._tell("unexpected", None, f"when all was quiet there were {' '.join(line.values)} left")
            self._note_unexpected(source, line)
        self._seen += self._troubles.seen

    def _died(self, line: Line) -> None:
        part, code = line.values
        if code == "-9":
            self._seen["killed"] += 1
            self._struck.setdefault(part, line.instant)
        elif code not in ("0", "-15"):
            self._tell("unexpected", None, f"{part} ended with {code}")

    def _read_producer(self, source: Source) -> None:
        ledger, open_calls = self._ledger, set[int]()
        for line in source.lines():
            number = self._number(line)
            match line.fact:
                case "ask":
                    self._ask(number, open_calls)
                case "told":
                    open_calls.discard(number)
                    self._told(number, line.values[1])
                case "unknown":
                    open_calls.discard(number)
                    ledger.mark(number, Mark.UNKNOWN)
                    self._seen["ambiguous"] += 1
                case "full":
                    open_calls.discard(number)
                    ledger.mark(number, Mark.FULL)
                    self._seen["refused because the storage was full"] += 1
                case "cancel":
                    ledger.mark(number, Mark.CANCEL_ASKED)
                case "cancel-told":
                    self._cancel_told(number, line)
                case _:
                    self._note_unexpected(source, line)
        self._cut_off(open_calls)

    def _ask(self, number: int, open_calls: set[int]) -> None:
        self._ledger.mark(number, Mark.ASKED)
        self._seen["attempted"] += 1
        open_calls.add(number)

    def _told(self, number: int, status: str) -> None:
        self._ledger.mark(number, Mark.TOLD)
        self._seen["acknowledged"] += 1
        if status == "queued":
            add_one(self._ledger.queued, number)

    def _cancel_told(self, number: int, line: Line) -> None:
        if line.values[1] == "cancelled":
            self._ledger.mark(number, Mark.CANCELLED)
            self._ledger.cancelled_at[number] = line.instant
        elif line.values[1] == "cancelling":
            self._ledger.mark(number, Mark.CANCELLING)

    def _cut_off(self, open_calls: set[int]) -> None:
        """Take calls that were under way when their process was killed for ambiguous ones."""
        for number in open_calls:
            self._ledger.mark(number, Mark.UNKNOWN)
        self._seen["ambiguous"] += len(open_calls)

    def _read_worker(self, source: Source) -> None:
        ledger, orphans, returned = self._ledger, Orphans(), set[str]()
        for line in source.lines():
            orphans.follow(line)
            number = self._number(line)
            match line.fact:
                case "start":
                    self._start(number, line)
                    returned.discard(line.values[0])
                case "end":
                    returned.add(line.values[0])
                case "completed":
                    self._completed(number, line)
                case "failed":
                    add_one(ledger.failed, number)
                    self._seen["poison failures"] += line.values[1] == "WORKER_LOST"
                case "cancelled":
                    self._seen["cancelled runs"] += 1
                case "lost":
                    self._seen["leases lost by living workers"] += 1
                    self._seen["stale settles refused"] += line.values[0] in returned
                case "failing" | "requeued" | "aborted":
                    self._seen[line.fact] += 1
                case _:
                    self._note_unexpected(source, line)
            if line.fact in ("completed", "failed", "failing", "requeued", "lost"):
                returned.discard(line.values[0])
        if source.name in self._struck:
            self._orphans += orphans.left(self._struck[source.name])

    def _start(self, number: int, line: Line) -> None:
        ledger, token, attempt = self._ledger, int(line.values[1]), int(line.values[2])
        ledger.runs[number] = min(65_535, ledger.runs[number] + 1)
        ledger.attempts[number] = max(ledger.attempts[number], attempt)
        ledger.last_token[number] = max(ledger.last_token[number], token)
        ledger.last_start[number] = max(ledger.last_start[number], line.instant)
        self._seen["runs"] += 1

    def _completed(self, number: int, line: Line) -> None:
        ledger = self._ledger
        add_one(ledger.completed, number)
        ledger.completed_by[number] = int(line.values[1])
        ledger.completed_at[number] = line.instant

    def _read_reaper(self, source: Source) -> None:
        for line in source.lines():
            if line.fact == "stalled":
                self._stalled[source.part] += 1
            elif line.fact == "leader":
                self._seen["leaderships"] += 1
            self._note_unexpected(source, line)

    def _read_waiter(self, source: Source) -> None:
        requests = set[int]()
        for line in source.lines():
            number = self._number(line)
            match line.fact:
                case "wait":
                    self._waits[number] = line.instant
                    if manner_of(self._plan, number) is Manner.REQUESTED and number not in requests:
                        self._ask(number, requests)
                case "answer" | "answer-failed" | "answer-cancelled":
                    self._answered(number, line, requests)
                case "absent":
                    self._waits.pop(number, None)
                case "wait-unknown":
                    self._seen["waits to be called again"] += 1
                case "timeout":
                    self._tell("waiters without an answer", number, "a waiter gave up")
                    self._waits.pop(number, None)
                case _:
                    self._note_unexpected(source, line)

    def _answered(self, number: int, line: Line, requests: set[int]) -> None:
        asked_at = self._waits.pop(number, line.instant)
        self._seen["answered"] += 1
        if number in requests:
            requests.discard(number)
            self._told(number, "answered")
        if line.fact == "answer":
            ledger, token = self._ledger, int(line.values[1])
            if ledger.answered_by[number] not in (0, token):
                self._tell("doubled", number, f"answered with runs {ledger.answered_by[number]} and {token}")
            ledger.answered_by[number] = token
            self._answers.append((number, asked_at, line.instant))

    def _read_surveyor(self, source: Source) -> None:
        ledger = self._ledger
        for line in source.lines():
            number = self._number(line)
            if line.fact == "found":
                state, attempts, token, code = line.values[1:5]
                ledger.mark(number, Mark.SURVEYED)
                ledger.state[number] = STATES.index(State(state)) + 1
                ledger.attempts[number] = max(ledger.attempts[number], int(attempts))
                ledger.stored_by[number] = int(token) if token != "-" else int(code) if code.isdigit() else 0
            elif line.fact == "gone":
                ledger.mark(number, Mark.SURVEYED)
            else:
                self._note_unexpected(source, line)

    def _number(self, line: Line) -> int:
        """Return the job that a line is about, 0 for a line about none."""
        number = int(line.values[0]) if line.values and line.values[0].isdigit() else 0
        if number >= self._plan.jobs:
            self._tell("unexpected", None, f"there is no job {number}: {' '.join(line.values)}")
            return 0
        return number

    def _note_unexpected(self, source: Source, line: Line) -> None:
        if line.fact == "unexpected":
            self._tell("unexpected", None, f"{source.name}: {' '.join(line.values)}")
        elif line.fact == "trouble":
            self._seen["errors told"] += 1

    # Judging.

    def _judge_jobs(self) -> None:
        ledger = self._ledger
        for number in range(ledger.jobs):
            manner = manner_of(self._plan, number)
            for kind, findings in (
                ("lost", lost(ledger, number)),
                ("doubled", doubled(ledger, number)),
                ("unexpected", unexpected(ledger, number, fails=manner.fails)),
            ):
                for text in findings:
                    self._tell(kind, number, text)
            if not ledger.has(number, Mark.TOLD):
                self._tell("never accepted", number, "nobody was told that it was accepted")
            if not ledger.has(number, Mark.SURVEYED):
                self._tell("unexpected", number, "the survey did not reach it")
            self._judge_doubt(number, manner)

    def _judge_doubt(self, number: int, manner: Manner) -> None:
        """Count what became of enqueues whose outcome was unknown."""
        ledger = self._ledger
        if ledger.has(number, Mark.UNKNOWN) and ledger.has(number, Mark.TOLD):
            took_effect = not ledger.queued[number] and manner is not Manner.REQUESTED
            self._seen["ambiguous enqueues that took effect"] += took_effect
        if ledger.has(number, Mark.CANCELLING) and ledger.found(number) is None:
            self._seen["cancels that hit a running job"] += 1

    def _judge_waiters(self) -> None:
        for number in self._waits:
            self._tell("waiters without an answer", number, "a waiter was still waiting at the end")

    @property
    def _bound(self) -> float:
        return self._plan.lease + _SLACK

    def _judge_recoveries(self, recovered: Sequence[Recovery]) -> None:
        for one in recovered:
            if one.seconds > self._bound and not one.disturbed:
                self._tell("recovered too late", one.orphan.number, f"begun {one.seconds:.2f} s after its worker died")

    def _tell(self, kind: str, number: int | None, text: str) -> None:
        self._found[kind] += 1
        if len(self._findings) < _MOST_TOLD:
            self._findings.append((number, f"{kind}: {text}"))

    # Summing up.

    def _sum_up(self, recovered: Sequence[Recovery]) -> Verdict:
        seen, found, ledger = self._seen, self._found, self._ledger
        seen["rescues"] = max(self._stalled.values(), default=0)
        counts = {"jobs": ledger.jobs}
        counts |= {name: seen[name] for name in ("attempted", "acknowledged", "ambiguous", "runs")}
        self._judge_recoveries(recovered)
        counts |= {name: found[name] for name in _BAD}
        counts |= {state: ledger.state.count(number + 1) for number, state in enumerate(STATES)}
        counts["absent"] = ledger.state.count(0)
        counts |= {"orphans of killed workers": len(self._orphans), "recovered": len(recovered)}
        others = {name: count for name, count in sorted(seen.items()) if name not in counts}
        return Verdict(counts | others, self._goals(), self._seconds(recovered), self._findings)

    def _goals(self) -> dict[str, tuple[int, int]]:
        server = self._plan.storage != "file"
        least = {
            "killed": 20,
            "rescues": 20,
            "leases lost by living workers": 20,
            "stale settles refused": 5,
            "ambiguous enqueues that took effect": 10,
            "poison failures": 5,
            "cancels that hit a running job": 10,
            "faults of the storage": 5,
            "reconnected": 10 if server else 0,
        }
        scale = min(1.0, self._plan.minutes)
        return {name: (self._seen[name], round(count * scale)) for name, count in least.items() if count}

    def _seconds(self, recovered: Sequence[Recovery]) -> dict[str, float]:
        calm = sorted(one.seconds for one in recovered if not one.disturbed)
        rough = [one.seconds for one in recovered if one.disturbed]
        late = sorted(self._delays())
        return {
            "bound of recovery": self._bound,
            "recovery, median": _at(calm, 0.5),
            "recovery, 99 %": _at(calm, 0.99),
            "longest recovery": _at(calm, 1.0),
            "longest recovery while more was in trouble": max(rough, default=0.0),
            "answer after completion, median": _at(late, 0.5),
            "answer after completion, 99 %": _at(late, 0.99),
            "longest wait for an answer after completion": _at(late, 1.0),
        }

    def _delays(self) -> Iterator[float]:
        """Yield how long after the end of their jobs waiters were answered, the storage and they themselves well."""
        quiet = Quiet(self._troubles.everybodys + self._troubles.waiters)
        for number, asked_at, answered_at in self._answers:
            since = max(asked_at, self._ledger.completed_at[number])
            if self._ledger.completed_at[number] and quiet.between(since - _GRACE, answered_at):
                yield max(0, answered_at - since) / 1e6


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def lines_about(directory: Path, number: int) -> list[str]:
    """Return every line about a job, in the order of time, with who wrote it."""
    about: list[tuple[int, str]] = []
    for source in sources(directory):
        about += (
            (line.instant, f"{line.instant} {source.name} {line.fact} {' '.join(line.values)}")
            for line in source.lines()
            if line.values and line.values[0] == str(number) and source.role != "nemesis"
        )
    return [text for _, text in sorted(about)]
