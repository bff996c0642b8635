"""Bugs in what stands around a queue: forks, loops and threads beside each other, other hands in its directory."""

from __future__ import annotations

from functools import partial

from mutants.mutant import Mutant, kit

_memory, _file, _valkey = partial(kit, "Memory"), partial(kit, "File"), partial(kit, "Valkey")
_EXECUTOR = "tests/engine/test_executor.py::"
_FILES = "tests/outside/test_file_storage.py::"
_FORKS = "tests/faults/test_forks.py::"
_LIFECYCLE = "tests/engine/test_lifecycle.py::"
_ASKED = "of_many_who_asked_the_latest_are_told"

AROUND = (
    Mutant(
        "file-opened-on-both-sides-of-a-fork",
        "storage/opened.py",
        "jobs that a forked child and its parent accepted are gone with the log that one of them deletes",
        "        cls._inherited.update(cls._here.values())\n",
        "",
        (f"{_FORKS}test_a_directory_that_was_open_at_the_fork_is_refused_in_the_child_also_by_a_new_object",),
    ),
    Mutant(
        "file-closed-but-never-forgotten",
        "storage/opened.py",
        "a directory that the parent has closed is refused in its children for ever",
        "        cls._here.pop(user, None)\n",
        "        pass\n",
        (f"{_FORKS}test_a_directory_that_was_open_at_the_fork_is_refused_in_the_child_also_by_a_new_object",),
    ),
    Mutant(
        "fork-inherits-the-renewer",
        "_lease.py",
        "in a child that was forked under a queue of a closed loop nobody renews, and long jobs run again and again",
        "os.register_at_fork(after_in_child=Renewer.forget_all)\n",
        "",
        (f"{_FORKS}test_a_queue_whose_loop_ended_before_the_fork_keeps_its_leases_in_the_child[redis]",),
    ),
    Mutant(
        "file-log-unwatched",
        "storage/sqlite.py",
        "what is accepted after somebody removed the log is gone with the process",
        '        self._take_note_of("-wal", "-shm")\n',
        "",
        (f"{_FILES}test_what_sqlite_keeps_beside_the_database_is_missed_at_once[deleted--wal]",),
        quick=True,
    ),
    Mutant(
        "file-forbidden-taken-for-deleted",
        "storage/opened.py",
        "waiters give up for good when a directory may not be read for a moment",
        "    except FileNotFoundError:\n",
        "    except OSError:\n",
        (f"{_FILES}test_a_directory_that_may_not_be_read_for_a_moment_is_no_deleted_one",),
    ),
    Mutant(
        "file-thread-ends-beside-a-checkpoint",
        "storage/sqlite.py",
        "every later call waits for ever when there was no memory for a checkpoint",
        "                with contextlib.suppress(Exception):",
        "                with contextlib.suppress(sqlite3.Error, OSError):",
        (f"{_FILES}test_trouble_beside_a_checkpoint_ends_nothing",),
    ),
    Mutant(
        "file-thread-keeps-its-storage",
        "storage/sqlite.py",
        "a program that leaves storages behind drowns in threads and descriptors",
        "weakref.WeakMethod(answer), opened,",
        "lambda: answer, opened,",
        (f"{_FILES}test_a_storage_that_nobody_closed_is_collected_with_all_that_it_holds",),
    ),
    Mutant(
        "home-taken-while-a-start-is-under-way",
        "_home.py",
        "of two threads that start one queue at the same moment, one waits for ever",
        "(self._turns or used())",
        "used()",
        (f"{_LIFECYCLE}test_of_two_loops_that_start_at_the_same_moment_the_second_is_refused[memory-Queue]",),
        quick=True,
    ),
    Mutant(
        "start-cancelled-closes-twice",
        "queue.py",
        "a shared storage is closed under the queues that still use it",
        """                if self._stopping is not None or self._open is opened:
                    # If this is cancelled again, it goes on in the background.
                    await asyncio.wait([self._stopping or self._begin_to_stop(opened, 0.0)])
                raise
""",
        """                await self._close(opened, 0.0)
                raise
""",
        (f"{_LIFECYCLE}test_a_start_cancelled_while_a_stop_is_under_way_disconnects_once[file]",),
    ),
    Mutant(
        "dead-start-ends-the-next",
        "storage/file.py",
        "what a closed loop left behind ends the database that its successor uses, and every call waits for ever",
        "            if self._database is database:  # Else its loop has ended in here, and there is another by now.\n",
        "            if True:\n",
        (f"{_LIFECYCLE}test_a_loop_closed_in_the_middle_of_a_start_or_a_stop_leaves_the_next_alone[file]",),
    ),
    Mutant(
        "dead-stop-counts-for-the-next",
        "storage/connection.py",
        "what a closed loop left behind makes the storage count as closed under its successor",
        "            except GeneratorExit:  # Its loop has ended in here, and who is counted now is of another.\n",
        "            except ZeroDivisionError:\n",
        (f"{_LIFECYCLE}test_a_loop_closed_in_the_middle_of_a_start_or_a_stop_leaves_the_next_alone[file]",),
    ),
    Mutant(
        "memory-wakes-the-dead",
        "storage/memory.py",
        "a job waits for up to a minute after a loop was closed under an idle worker",
        "            if self._sleepers.pop(0).wake():\n",
        "            if self._sleepers.pop(0).wake() or True:\n",
        (f"{_LIFECYCLE}test_a_worker_of_a_closed_loop_is_not_woken_instead_of_the_next[memory]",),
    ),
    Mutant(
        "group-kept-without-a-thread",
        "_lease.py",
        "after one start without a thread the leases of a storage are never renewed again",
        """                self._thread = start_thread(self._run, twin, name="jobq-leases")
""",
        """                self._thread = threading.current_thread()
                self._thread = start_thread(self._run, twin, name="jobq-leases")
""",
        (f"{_LIFECYCLE}test_a_start_without_a_thread_is_refused_and_leaves_nothing[jobq-leases]",),
    ),
    Mutant(
        "stopped-claimer-keeps-what-it-learned",
        "_worker.py",
        "a delayed job lies for up to a minute when a worker is stopped at a bad moment",
        "            self._loop.call_soon(self._awaken)\n",
        "            return True\n",
        ("tests/engine/test_worker.py::test_a_worker_that_is_stopped_as_it_learns_of_a_delay_leaves_that_to_another",),
    ),
    Mutant(
        "no-thread-counts-as-an-attempt",
        "_executor.py",
        "jobs fail although their handlers were never called, since there was no thread for a while",
        "            case NoThreadError():",
        "            case NoThreadError() if False:",
        (f"{_EXECUTOR}test_a_function_that_no_thread_can_be_had_for_is_given_back[memory]",),
    ),
    Mutant(
        "lack-of-threads-told-again-and-again",
        "_threads.py",
        "the worker says once for each job that there is no thread, and floods its log",
        "            first, self._short = not self._short, True\n",
        "            first = True\n",
        (f"{_EXECUTOR}test_a_function_that_no_thread_can_be_had_for_is_given_back[memory]",),
    ),
    Mutant(
        "memory-addresses-without-end",
        "storage/records.py",
        "a job's record grows with every program that ever looked for it",
        "(*self.replies, reply_to)[-MOST_ADDRESSES:]",
        "(*self.replies, reply_to)",
        _memory(_ASKED),
    ),
    Mutant(
        "file-addresses-without-end",
        "storage/rows.py",
        "a job's record grows with every program that ever looked for it",
        "(*addresses, reply_to)[-MOST_ADDRESSES:]",
        "(*addresses, reply_to)",
        _file(_ASKED),
    ),
    Mutant(
        "redis-latest-address-left-out",
        "storage/redis/_record.lua",
        "who asks for a job that many have asked for is answered a second late",
        "    noted = string.sub(noted, string.find(noted, ' ', 1, true) + 1)\n",
        "    return false\n",
        _valkey(_ASKED),
    ),
)
