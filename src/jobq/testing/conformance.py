"""StorageContract: the whole conformance kit in one class."""

from __future__ import annotations

from jobq.testing.adding import Adding
from jobq.testing.claiming import Claiming
from jobq.testing.ending import Cancelling, Reviving
from jobq.testing.inspecting import Inspecting, Locking
from jobq.testing.leasing import Leasing
from jobq.testing.racing import Racing
from jobq.testing.resending import Resending
from jobq.testing.settling import Settling
from jobq.testing.waking import Sleeping, Telling


class StorageContract(
    Adding,
    Claiming,
    Leasing,
    Settling,
    Cancelling,
    Reviving,
    Resending,
    Telling,
    Sleeping,
    Locking,
    Inspecting,
    Racing,
):
    """Every behaviour that `jobq.storage.contract` demands of a storage, as tests.

    Subclass it, say how a storage is made, and let pytest or unittest collect it. No plugin is needed: each test
    runs a loop of its own. With pytest, put ``pytest.register_assert_rewrite("jobq.testing")`` into ``conftest.py`` to
    see the values that a failed comparison compared.

    Example:
        >>> from jobq import MemoryStorage
        >>> class TestMine(StorageContract):
        ...     async def make_storage(self, clock: ManualClock) -> Storage:
        ...         return MemoryStorage(clock=clock)
        >>> TestMine().test_the_first_writer_wins()
    """
