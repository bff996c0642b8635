"""jobq: a reliable job queue. At-least-once execution, exactly-once completion."""

from typing import TYPE_CHECKING, Any

from jobq.errors import (
    ConfigError,
    ErrorInfo,
    JobCancelledError,
    JobError,
    JobFailedError,
    JobNotFoundError,
    JobQueueError,
    JobTimeoutError,
    MaxRetriesError,
    PayloadTooLargeError,
    QueueClosedError,
    ResultExpiredError,
    SerializationError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from jobq.job import (
    CancelResult,
    EnqueueItem,
    EnqueueResult,
    ExecutionContext,
    GiveUp,
    Job,
    JobStatus,
    RetryLater,
    RetryResult,
    State,
    UpdateResultTTLResult,
)
from jobq.queue import Queue
from jobq.reaper import LeaderElection, Reaper
from jobq.retry import ExponentialBackoff, FixedDelay, RetryPolicy
from jobq.serde import JsonSerde, MsgpackSerde, Serde
from jobq.signal import AbortSignal, JobAborted
from jobq.storage import open_storage
from jobq.storage.file import FileStorage
from jobq.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from jobq.storage.redis import RedisStorage as RedisStorage

__version__ = "0.1.0"

__all__ = [
    "AbortSignal",
    "CancelResult",
    "ConfigError",
    "EnqueueItem",
    "EnqueueResult",
    "ErrorInfo",
    "ExecutionContext",
    "ExponentialBackoff",
    "FileStorage",
    "FixedDelay",
    "GiveUp",
    "Job",
    "JobAborted",
    "JobCancelledError",
    "JobError",
    "JobFailedError",
    "JobNotFoundError",
    "JobQueueError",
    "JobStatus",
    "JobTimeoutError",
    "JsonSerde",
    "LeaderElection",
    "MaxRetriesError",
    "MemoryStorage",
    "MsgpackSerde",
    "PayloadTooLargeError",
    "Queue",
    "QueueClosedError",
    "Reaper",
    "ResultExpiredError",
    "RetryLater",
    "RetryPolicy",
    "RetryResult",
    "Serde",
    "SerializationError",
    "State",
    "StorageCorruptError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "UpdateResultTTLResult",
    "open_storage",
]


def __getattr__(name: str) -> Any:
    """Import what needs an extra only when it is asked for by name, and not by a star: so it is not in ``__all__``."""
    if name == "RedisStorage":
        from jobq.storage import load_storage

        return load_storage(name)
    raise AttributeError(f"module 'jobq' has no attribute {name!r}")
