"""Random sequences of calls, compared with a model after each: for what no list of behaviours has thought of.

Few ids, so that everything collides; current tokens and old ones; time that passes a little, past leases, past
expiries; and at any moment the last request of a verb once more, as after a lost reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobq.storage.contract import Storage
from jobq.testing.clocks import ManualClock

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

Make = Callable[[ManualClock], Storage]
Reopen = Callable[[Storage], Storage]


def storage_machine(make: Make, *, reopen: Reopen | None = None) -> type[RuleBasedStateMachine]:
    """Return a Hypothesis state machine that drives storages of one kind.

    Args:
        make: returns a new storage without jobs, not yet opened, that tells its time by the given clock.
        reopen: returns another storage object on the data of a closed one; without it the same object is opened again.

    Raises:
        ImportError: ``hypothesis`` is not installed.

    Example:
        >>> from jobq import MemoryStorage
        >>> TestMine = storage_machine(lambda clock: MemoryStorage(clock=clock)).TestCase
    """
    try:
        from jobq.testing.rules import StorageMachine
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError("the state machine of jobq.testing needs hypothesis: pip install hypothesis") from error

    class Machine(StorageMachine):
        def make(self, clock: ManualClock) -> Storage:
            return make(clock)

        def reopened(self, storage: Storage) -> Storage:
            return storage if reopen is None else reopen(storage)

    return Machine


def check_storage_machine(
    make: Make, *, reopen: Reopen | None = None, examples: int = 100, steps: int = 50, **options: Any
) -> None:
    """Run a `storage_machine`: the same sequences at every run, and a failing one is printed as a program.

    Args:
        make: see `storage_machine`.
        reopen: see `storage_machine`.
        examples: how many sequences.
        steps: how many calls each has at most.
        options: further settings of Hypothesis, or others than ours, such as ``derandomize=False``.
    """
    machine = storage_machine(make, reopen=reopen)
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    usual: dict[str, Any] = {
        "max_examples": examples,
        "stateful_step_count": steps,
        "derandomize": True,
        "database": None,
        "print_blob": True,
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
    }
    run_state_machine_as_test(machine, settings=settings(**{**usual, **options}))
