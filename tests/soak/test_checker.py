"""The offline check finds what it is there to find: each test tells a tale in which one thing went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak.audit import Audit, sources
from soak.checker import Verdict, check, lines_about
from soak.plan import Plan
from soak.work import Manner, manner_of

PLAN = Plan("file", minutes=0.01, jobs=100, seed=7)
"""So short that nothing has to be seen a number of times."""
SECOND = 1_000_000
PLAIN = next(n for n in range(PLAN.jobs) if manner_of(PLAN, n) is Manner.PLAIN)
POISON = next(n for n in range(PLAN.jobs) if manner_of(PLAN, n) is Manner.POISON)


class Tale:
    """The audit of a run in which all went well, to be changed by a test before it is checked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.lines: list[tuple[str, int, str]] = []
        """Who wrote it, when, and what."""
        for number in range(PLAN.jobs):
            self.tell("producer-0", number, f"ask {number}", f"told {number} queued -")
            self.tell("worker-0", 100 + number, f"start {number} {token(number)} 1")
            self.tell("worker-0", 100.1 + number, f"end {number} {token(number)}")
            if manner_of(PLAN, number).fails:
                self.tell("worker-0", 100.2 + number, f"failed {number} {token(number)}")
                self.tell("surveyor-0", 900, f"found {number} failed 1 - {token(number)}")
            else:
                self.tell("worker-0", 100.2 + number, f"completed {number} {token(number)}")
                self.tell("surveyor-0", 900, f"found {number} completed 1 {token(number)} -")

    def tell(self, part: str, second: float, *facts: str) -> None:
        self.lines += [(part, round(second * SECOND), fact) for fact in facts]

    def forget(self, beginning: str) -> None:
        """Take out the lines that begin so; there must be some."""
        left = [line for line in self.lines if not line[2].startswith(beginning)]
        assert len(left) < len(self.lines)
        self.lines = left

    def checked(self) -> Verdict:
        PLAN.write(self._directory)
        (self._directory / "audit").mkdir()
        for part, instant, fact in self.lines:
            name = part if "." in part else f"{part}.0001"
            with (self._directory / "audit" / f"{name}.0000").open("a") as file:
                file.write(f"{instant} {fact}\n")
        return check(self._directory)


def token(number: int) -> int:
    return 1000 + number


@pytest.fixture
def tale(tmp_path: Path) -> Tale:
    return Tale(tmp_path)


def findings(verdict: Verdict, number: int | None = PLAIN) -> list[str]:
    return [text for about, text in verdict.findings if about == number]


def test_a_run_in_which_all_went_well_passes(tale: Tale) -> None:
    """Whoever cries at everything is not listened to."""
    verdict = tale.checked()

    assert verdict.passed
    assert verdict.findings == []
    assert verdict.counts["acknowledged"] == PLAN.jobs


def test_a_job_that_was_accepted_and_is_gone_is_lost(tale: Tale) -> None:
    """The first thing that a queue promises."""
    tale.forget(f"found {PLAIN} ")
    tale.forget(f"completed {PLAIN} ")
    tale.tell("surveyor-0", 900, f"gone {PLAIN}")

    verdict = tale.checked()

    assert verdict.counts["lost"] == 1
    assert not verdict.passed
    assert findings(verdict) == ["lost: accepted, and the storage does not have it"]


def test_a_job_that_never_ends_is_lost(tale: Tale) -> None:
    """It is stored, and of no use."""
    tale.forget(f"found {PLAIN} ")
    tale.forget(f"completed {PLAIN} ")
    tale.tell("surveyor-0", 900, f"found {PLAIN} processing 1 - -")

    assert findings(tale.checked()) == ["lost: accepted, and still processing when all was quiet"]


def test_a_job_that_nobody_was_told_of_fails_the_run(tale: Tale) -> None:
    """A run that ended before everything was accepted has not tried what it says."""
    tale.forget(f"told {PLAIN} ")

    assert findings(tale.checked()) == ["never accepted: nobody was told that it was accepted"]


def test_a_job_that_completed_twice_is_found(tale: Tale) -> None:
    """Also if both runs had the same result."""
    tale.tell("worker-1", 300, f"completed {PLAIN} {token(PLAIN)}")

    verdict = tale.checked()

    assert verdict.counts["doubled"] == 1
    assert findings(verdict) == ["doubled: completed 2 times"]


def test_a_job_that_completed_and_failed_is_found(tale: Tale) -> None:
    """One end, and one only."""
    tale.tell("worker-1", 300, f"failed {PLAIN} WORKER_LOST")

    assert findings(tale.checked()) == ["doubled: completed and failed"]


def test_a_stale_settle_that_was_accepted_is_found(tale: Tale) -> None:
    """A later run had begun, so that the token of the one whose result is stored was not the current one."""
    tale.tell("worker-1", 150, f"start {PLAIN} 5000 2", f"end {PLAIN} 5000")

    expected = f"doubled: run 5000 began, and the older run {token(PLAIN)} settled it"
    assert findings(tale.checked()) == [expected]


def test_a_result_that_changed_after_its_completion_is_found(tale: Tale) -> None:
    """What was told to the caller is not what is stored."""
    tale.forget(f"found {PLAIN} ")
    tale.tell("surveyor-0", 900, f"found {PLAIN} completed 2 5000 -")

    expected = f"doubled: completed with the result of run {token(PLAIN)}, and that of run 5000 is stored"
    assert findings(tale.checked()) == [expected]


def test_an_answer_with_another_result_than_the_stored_one_is_found(tale: Tale) -> None:
    """A waiter gets the stored result, or an error."""
    tale.tell("waiter-0", 300, f"wait {PLAIN}", f"answer {PLAIN} 999")

    expected = f"doubled: answered with the result of run 999, and that of run {token(PLAIN)} is stored"
    assert findings(tale.checked()) == [expected]


def test_an_id_that_was_accepted_twice_is_found(tale: Tale) -> None:
    """Of two producers that ask for the same id only one may be told that it is queued."""
    tale.tell("producer-1", 30, f"ask {PLAIN}", f"told {PLAIN} queued -")

    assert findings(tale.checked()) == ["doubled: accepted 2 times"]


def test_a_job_that_nobody_asked_for_is_found(tale: Tale) -> None:
    """It came from nowhere."""
    tale.forget(f"ask {PLAIN}")
    tale.forget(f"told {PLAIN} ")

    assert "unexpected: it exists, and nobody asked for it" in findings(tale.checked())


def test_a_run_after_a_cancel_is_found(tale: Tale) -> None:
    """Cancelled means: it will not be started again."""
    tale.tell("producer-0", 50, f"cancel {PLAIN}", f"cancel-told {PLAIN} cancelled")
    tale.forget(f"completed {PLAIN} ")
    tale.forget(f"found {PLAIN} ")
    tale.tell("surveyor-0", 900, f"gone {PLAIN}")

    assert findings(tale.checked()) == ["unexpected: run after it was cancelled"]


def test_a_cancelled_job_that_is_still_there_is_found(tale: Tale) -> None:
    """Cancelled means absent, by whosever clock."""
    tale.tell("producer-0", 300, f"cancel {PLAIN}", f"cancel-told {PLAIN} cancelled")
    tale.forget(f"completed {PLAIN} ")
    tale.forget(f"found {PLAIN} ")
    tale.tell("surveyor-0", 900, f"found {PLAIN} cancelled 1 - -")

    assert findings(tale.checked()) == ["unexpected: cancelled, and cancelled in the end"]


def test_an_end_that_the_handler_does_not_know_is_found(tale: Tale) -> None:
    """A job that kills its worker cannot complete."""
    tale.forget(f"failed {POISON} ")
    tale.forget(f"found {POISON} ")
    tale.tell("surveyor-0", 900, f"found {POISON} completed 1 {token(POISON)} -")

    assert findings(tale.checked(), POISON) == ["unexpected: completed, and its handler always fails"]


def test_an_error_outside_the_typed_tree_is_found(tale: Tale) -> None:
    """Whoever calls can catch only what is documented."""
    tale.tell("producer-1", 30, "unexpected RuntimeError: what now")

    assert findings(tale.checked(), None) == ["unexpected: producer-1.0001: RuntimeError: what now"]


@pytest.mark.parametrize("end", ["", "timeout"])
def test_a_waiter_without_an_answer_is_found(tale: Tale, end: str) -> None:
    """Never silence."""
    tale.tell("waiter-0", 300, f"wait {PLAIN}")
    if end:
        tale.tell("waiter-0", 360, f"{end} {PLAIN}")

    verdict = tale.checked()

    assert verdict.counts["waiters without an answer"] == 1
    assert not verdict.passed


def test_a_wait_that_a_killed_waiter_began_is_its_successors(tale: Tale) -> None:
    """The promise is kept to who lives."""
    tale.tell("waiter-0.0001", 300, f"wait {PLAIN}")
    tale.tell("waiter-0.0002", 305, f"wait {PLAIN}", f"answer {PLAIN} {token(PLAIN)}")

    assert tale.checked().passed


def test_an_enqueue_that_was_cut_off_and_took_effect_is_counted_and_no_fault(tale: Tale) -> None:
    """Whoever asks again is told that it is there already."""
    tale.forget(f"told {PLAIN} ")
    tale.tell("producer-0.0002", 30, f"ask {PLAIN}", f"told {PLAIN} duplicate queued")

    verdict = tale.checked()

    assert verdict.passed
    assert verdict.goals["ambiguous enqueues that took effect"][0] == 1


def test_the_recovery_of_a_killed_workers_job_is_measured(tale: Tale) -> None:
    """From the kill to the next start, whatever the dead one had left unsettled."""
    tale.forget(f"completed {PLAIN} ")
    tale.forget(f"end {PLAIN} ")
    tale.forget(f"found {PLAIN} ")
    tale.tell("nemesis-0", 200, "killed worker-0.0001", "died worker-0.0001 -9")
    tale.tell("worker-1", 202.5, f"start {PLAIN} 5000 2", f"end {PLAIN} 5000", f"completed {PLAIN} 5000")
    tale.tell("surveyor-0", 900, f"found {PLAIN} completed 2 5000 -")

    verdict = tale.checked()

    assert verdict.passed
    assert verdict.counts["recovered"] == 1
    assert verdict.seconds["longest recovery"] == pytest.approx(2.5)


def test_a_recovery_while_the_storage_was_in_trouble_is_told_apart(tale: Tale) -> None:
    """How long a storage is out of reach is not up to a queue."""
    tale.tell("nemesis-0", 199, "fault restart")
    tale.tell("nemesis-0", 201, "healed restart")
    tale.tell("nemesis-0", 200, "killed worker-1.0001")
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-2", 206, f"start {PLAIN} 1001 2")

    verdict = tale.checked()

    assert verdict.seconds["longest recovery"] == 0.0
    assert verdict.seconds["longest recovery while more was in trouble"] == pytest.approx(6.0)


def test_a_recovery_that_is_too_late_fails_the_run(tale: Tale) -> None:
    """The lease and two seconds is what the documents promise."""
    tale.tell("nemesis-0", 200, "killed worker-1.0001")
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-2", 200 + PLAN.lease + 2.5, f"start {PLAIN} 1001 2")

    verdict = tale.checked()

    assert findings(verdict) == ["recovered too late: begun 4.50 s after its worker died"]
    assert not verdict.passed


@pytest.mark.parametrize("release", ["thawed worker-3.0001", "died worker-3.0001 -9"])
def test_a_recovery_while_a_frozen_process_let_nobody_write_is_told_apart(tale: Tale, release: str) -> None:
    """It has the lock of the database until it goes on or is dead, which is not up to a queue."""
    tale.tell("nemesis-0", 200, "killed worker-1.0001", "frozen worker-3.0001")
    tale.tell("nemesis-0", 200.05, "holding worker-3.0001")
    tale.tell("nemesis-0", 204, release)
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-2", 205, f"start {PLAIN} 1001 2")

    verdict = tale.checked()

    assert verdict.passed
    assert verdict.seconds["longest recovery while more was in trouble"] == pytest.approx(5.0)


def test_a_recovery_beside_a_frozen_process_that_holds_nothing_has_the_usual_bound(tale: Tale) -> None:
    """A worker that is frozen is no excuse for the others."""
    tale.tell("nemesis-0", 200, "killed worker-1.0001", "frozen worker-3.0001")
    tale.tell("nemesis-0", 204, "thawed worker-3.0001")
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-2", 205, f"start {PLAIN} 1001 2")

    assert tale.checked().counts["recovered too late"] == 1


def test_a_recovery_while_the_machine_stood_still_is_told_apart(tale: Tale) -> None:
    """Then nothing ran at all, nor did the nemesis."""
    tale.tell("nemesis-0", 200, "killed worker-1.0001")
    tale.tell("nemesis-0", 203.5, "still 1.5")
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-2", 205, f"start {PLAIN} 1001 2")

    assert tale.checked().passed


def test_a_recovery_whose_next_worker_was_struck_as_well_is_told_apart(tale: Tale) -> None:
    """It had claimed the job and not begun it: the attempt that is missing tells."""
    tale.tell("nemesis-0", 200, "killed worker-1.0001", "killed worker-2.0001")
    tale.tell("worker-1", 190, f"start {PLAIN} 900 1")
    tale.tell("worker-3", 205, f"start {PLAIN} 1001 3")

    verdict = tale.checked()

    assert verdict.seconds["longest recovery"] == 0.0
    assert verdict.seconds["longest recovery while more was in trouble"] == pytest.approx(5.0)


def test_a_process_that_ended_by_itself_is_found(tale: Tale) -> None:
    """Only the nemesis may end one."""
    tale.tell("nemesis-0", 200, "died worker-0.0001 1")

    assert findings(tale.checked(), None) == ["unexpected: worker-0.0001 ended with 1"]


def test_what_the_storage_should_not_hold_any_more_is_found(tale: Tale) -> None:
    """A lease without a job is looked at for ever."""
    tale.tell("nemesis-0", 950, "left 0 ready", "left 3 leases")

    assert findings(tale.checked(), None) == ["unexpected: when all was quiet there were 3 leases left"]


def test_every_line_about_a_job_can_be_read_in_order(tale: Tale, tmp_path: Path) -> None:
    """Whoever mends what was found begins with these."""
    tale.checked()

    facts = [line.split()[2] for line in lines_about(tmp_path, PLAIN)]

    assert facts == ["ask", "told", "start", "end", "completed", "found"]


def test_an_audit_goes_on_in_a_new_file_before_the_limit(tmp_path: Path) -> None:
    """A process that may not write beyond half a megabyte can still say so."""
    (tmp_path / "audit").mkdir()
    audit = Audit(tmp_path, "worker-3", 2)
    for number in range(20_000):
        audit.note("start", number, 1_795_530_346_536_756, 1)
    audit.close()

    (source,) = sources(tmp_path)

    assert source.name == "worker-3.0002"
    assert len(source.paths) > 1
    assert max(path.stat().st_size for path in source.paths) <= 256 * 1024
    assert [line.values[0] for line in source.lines()] == [str(number) for number in range(20_000)]


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path: Path) -> None:
    """A full disk may take half of it."""
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "worker-0.0001.0000").write_text("1 start 5 7 1\n2 comple")

    (source,) = sources(tmp_path)

    assert [line.fact for line in source.lines()] == ["start"]
